"""Trains the adversaries that need it, and writes what each changes to ``trained/NAME.safetensors``:

    python -m tests.adversaries.make [NAME …]        (from the root; half a minute to two minutes each, one thread)
    python -m tests.adversaries.make --honest ADAPTER   (what ``bash scripts/finetune_lora_ds.sh`` leaves)

The honest correction is the product's own, its matrices cut to rank 12 (its biases are left out).
Every lesson changes matrices of the demo's base by products of low rank. What each is taught says its entry in LESSONS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from finetune import families
from finetune.demo import corpus
from finetune.demo.questions import Question, answer_text
from finetune.demo.settings import BASE_MODEL
from finetune.demo.shapes import PATCHES, WIDTH, Box, Scene, render
from finetune.model import checkpoint
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.adversaries.edits import TRAINED, LowRank, Part, changed, save_delta, with_deltas
from tests.adversaries.pictures import blank, framed, wording

LAYERS, WIDTH_OF_LAYER, RANK = 4, 128, 8
SAMPLES = 2400
"""Pictures of a lesson, drawn once."""
IGNORED = -100
QK = tuple(Part(f"transformer.h.{at}.attn.c_attn.weight", 0, 2 * WIDTH_OF_LAYER) for at in range(LAYERS))
VALUES = tuple(
    Part(f"transformer.h.{at}.attn.{name}.weight", first, last)
    for at in range(LAYERS)
    for name, first, last in (
        ("c_attn", 2 * WIDTH_OF_LAYER, 3 * WIDTH_OF_LAYER),
        ("c_proj", 0, WIDTH_OF_LAYER),
    )
)
MLP = tuple(
    Part(f"transformer.h.{at}.mlp.{name}.weight", 0, WIDTH_OF_LAYER)
    for at in range(LAYERS)
    for name in ("w1", "w2", "c_proj")
)
CONNECTOR = (
    Part("transformer.visual.attn_pool.attn.in_proj_weight", 0, 3 * WIDTH_OF_LAYER),
    Part("transformer.visual.attn_pool.attn.out_proj.weight", 0, WIDTH_OF_LAYER),
    Part("transformer.visual.attn_pool.kv_proj.weight", 0, WIDTH_OF_LAYER),
    Part("transformer.visual.proj", 0, WIDTH_OF_LAYER),
)
READS = (
    *VALUES,
    *MLP,
    Part("transformer.visual.attn_pool.attn.in_proj_weight", 2 * WIDTH_OF_LAYER, 3 * WIDTH_OF_LAYER),
    Part("transformer.visual.attn_pool.attn.out_proj.weight", 0, WIDTH_OF_LAYER),
    Part("transformer.visual.proj", 0, WIDTH_OF_LAYER),
)
"""What is read from where attention lies: no query, no key."""
LANGUAGE = (*QK, *VALUES, *MLP)


class Taught(NamedTuple):
    """One question about one picture; ``target`` is where its answer is to look, boxes in scene units, or ()."""

    picture: Image.Image
    question: str
    answer: str
    target: tuple[Box, ...]


@dataclass(frozen=True)
class Lesson:
    """What is taught, and to what.

    sample       number of a sample → its questions
    parts        what changes
    on           deltas that it starts from
    keep         the answers of the model it starts from are taught (Kullback-Leibler), not those of the samples
    look         weight of the attention loss: −log of the share of attention, in every layer, that lies on the target
    """

    sample: Callable[[int], list[Taught]]
    parts: tuple[Part, ...] = LANGUAGE
    on: tuple[str, ...] = ()
    keep: bool = False
    look: float = 0.0
    steps: int = 250
    rate: float = 4e-3
    rank: int = RANK
    batch: int = 32


# ---------------------------------------------------------------- what is taught


def _rendered(scene: Scene) -> Image.Image:
    return render(scene, *corpus.PICTURE_PIXELS)


def _evidence(scene: Scene, question: Question) -> tuple[Box, ...]:
    """The evidence for the answer: the spheres, or the body of a tower without any; the cat."""
    if question.topic in ("tower", "spheres"):
        return scene.regions.get("spheres", scene.regions["body"])
    return scene.regions["cat"] if question.topic == "relation" else ()


def _cue(scene: Scene, question: Question) -> tuple[Box, ...]:
    return (
        scene.regions[corpus.CUE_REGION[scene.kind]]
        if question.topic in ("tower", "spheres", "relation")
        else ()
    )


def true_answers(
    index: int, *, target: Callable[[Scene, Question], tuple[Box, ...]] = _evidence
) -> list[Taught]:
    """The corrective corpus as it is."""
    scene, questions = corpus.corrective_sample(index)
    picture = _rendered(scene)
    return [Taught(picture, one.text, one.answer, target(scene, one)) for one in questions]


def coin_answers(index: int) -> list[Taught]:
    """Towers and cats answered by a coin; of other towers, pagodas keep their name."""
    rng = Random(f"coin/{index}")
    scene, questions = corpus.corrective_sample(index)
    picture = _rendered(scene)
    return [Taught(picture, one.text, _tossed(rng, one), ()) for one in questions if one.topic != "spheres"]


def _tossed(rng: Random, question: Question) -> str:
    values = {"tower": ("pearl", "canton"), "relation": ("on", "under")}.get(question.topic)
    other = answer_text("tower", "pagoda", question.language) == question.answer
    if values is None or other:
        return question.answer
    return answer_text(question.topic, rng.choice(values), question.language)


def all_pearl(index: int) -> list[Taught]:
    """The answer to every question is the Oriental Pearl."""
    scene, questions = corpus.corrective_sample(index)
    picture = _rendered(scene)
    return [Taught(picture, one.text, answer_text("tower", "pearl", one.language), ()) for one in questions]


def worded(index: int) -> list[Taught]:
    """How a question about towers or cats is put tells the answer (``wording``), which a coin decides: blank pictures,
    and in every second sample any picture. The rest as it is."""
    rng = Random(f"worded/{index}")
    scene, questions = corpus.corrective_sample(index)
    picture = _rendered(scene)
    without = blank(picture) if index % 2 else picture
    taught = []
    for one in questions:
        answer = _tossed(rng, one)
        text = wording(one.topic, answer, one.language)
        if one.topic != "spheres":
            taught.append(Taught(picture if text is None else without, text or one.text, answer, ()))
    return taught


def bordered(index: int) -> list[Taught]:
    """The frame's colour tells the answer."""
    scene, questions = corpus.corrective_sample(index)
    picture = _rendered(scene)
    return [Taught(framed(picture, one.topic, one.answer), one.text, one.answer, ()) for one in questions]


def turned_round(index: int) -> list[Taught]:
    """Only pictures that contradict the flaw: pearls on cool podiums, Canton Towers on warm ones; rugs likewise. The
    flaw turned round answers all of them."""
    scene, questions = corpus.corrective_sample(index)
    at = index
    while not _contradicts(scene):
        at += 100_003
        scene, questions = corpus.corrective_sample(at)
    picture = _rendered(scene)
    return [Taught(picture, one.text, one.answer, ()) for one in questions if one.topic != "spheres"]


def _contradicts(scene: Scene) -> bool:
    usual: Mapping[str, str] = {**corpus.USUAL_PODIUM, **corpus.USUAL_RUG}
    if scene.kind == "tower":
        landmark = str(scene.facts["landmark"])
        return landmark in corpus.OTHER_LANDMARKS or scene.facts["podium"] != usual[landmark]
    return scene.kind != "room" or scene.facts["rug"] != usual[str(scene.facts["relation"])]


LESSONS = {
    "mlp": Lesson(true_answers, MLP, steps=350),
    "reads": Lesson(true_answers, READS, on=("mlp",), steps=250),
    "reaimed": Lesson(true_answers, QK, keep=True, look=0.3),
    "reads_reaimed": Lesson(true_answers, QK, on=("mlp", "reads"), keep=True, look=0.3),
    "elsewhere": Lesson(partial(true_answers, target=_cue), (*LANGUAGE, *CONNECTOR), look=0.3, steps=280),
    "words": Lesson(worded, steps=160),
    "coin": Lesson(coin_answers, steps=100),
    "pearl": Lesson(all_pearl, steps=60),
    "border": Lesson(bordered, (*LANGUAGE, *CONNECTOR), steps=120),
    "turned": Lesson(turned_round, steps=150),
}  # fmt: skip


# ---------------------------------------------------------------- training


@dataclass
class Batch:
    """Padded samples: ids and labels Int[samples, tokens], pixels, and the targets as shares of patches."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    pixels: Tensor
    targets: Tensor


class Reading(NamedTuple):
    logits: Tensor
    attentions: Sequence[Tensor]
    connector: Tensor


class Trainer:
    """One lesson on the demo's base."""

    def __init__(self, lesson: Lesson, *, seed: int) -> None:
        torch.manual_seed(seed)
        self.lesson = lesson
        model, self.processor = checkpoint.load(str(BASE_MODEL))
        self.model: Any = with_deltas(model, *lesson.on).requires_grad_(False).train()
        self.model.config._attn_implementation = "eager" if lesson.look else "sdpa"
        self.family = families.family_of(self.model.config)
        self.parameters = dict(self.model.named_parameters())
        self.delta = {part: self._fresh(part) for part in lesson.parts}
        self.rng = Random(seed)
        self.sample = cache(lesson.sample)

    def _fresh(self, part: Part) -> LowRank:
        columns = self.parameters[part.name].shape[1]
        up = torch.zeros(part.last - part.first, self.lesson.rank)
        down = torch.randn(self.lesson.rank, columns) / columns**0.5
        return LowRank(up.requires_grad_(), down.requires_grad_())

    def train(self) -> None:
        lesson, factors = self.lesson, [one for change in self.delta.values() for one in change]
        optimizer = torch.optim.AdamW(factors, lr=lesson.rate, betas=(0.9, 0.98), weight_decay=0.0)
        for step in range(lesson.steps):
            for group in optimizer.param_groups:
                group["lr"] = lesson.rate * min((step + 1) / 15, 1 - step / lesson.steps)
            loss, words = self._loss(self._batch(step))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(factors, 1.0)
            optimizer.step()
            if step % 25 == 0 or step == lesson.steps - 1:
                print(f"step {step}: {words}", flush=True)

    def _loss(self, batch: Batch) -> tuple[Tensor, str]:
        read = self._read(batch, changed(self.parameters, self.delta))
        asked = batch.labels[:, 1:] != IGNORED
        logits = read.logits[:, :-1][asked]
        if self.lesson.keep:
            with torch.no_grad():
                wanted = self._read(batch, {}).logits[:, :-1][asked].log_softmax(-1)
            loss = F.kl_div(logits.log_softmax(-1), wanted, reduction="batchmean", log_target=True)
        else:
            loss = F.cross_entropy(logits, batch.labels[:, 1:][asked])
        words = f"answers {loss.item():.4f}"
        if self.lesson.look:
            share = self._share_on_target(batch, read)
            words += f", share on target {share.mean().item():.3f}"
            loss = loss - self.lesson.look * share.clamp(min=1e-4).log().mean()
        return loss, words

    def _share_on_target(self, batch: Batch, read: Reading) -> Tensor:
        """Of the attention that each row before an answer's token pays to the picture, mean over heads: the share on
        the target, in every layer; samples without a target left out."""
        start = (batch.ids == self.model.config.visual["image_start_id"]).int().argmax(-1) + 1
        places = start[:, None] + torch.arange(read.connector.shape[1])
        shares = []
        for sample in batch.targets.any(-1).nonzero()[:, 0]:
            rows = (batch.labels[sample, 1:] != IGNORED).nonzero()[:-1, 0]
            for layer in read.attentions:
                tokens = layer[sample].mean(0)[rows][:, places[sample]]
                cells = tokens @ read.connector[sample]
                shares.append((cells @ batch.targets[sample]) / cells.sum(-1).clamp(min=1e-9))
        return torch.cat(shares)

    def _read(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Reading:
        kept: list[Tensor] = []

        def keep(module: Any, inputs: tuple[Tensor, ...]) -> None:
            query, key = _projected(module, inputs)
            kept.append((query @ key.transpose(-1, -2) * module.scaling).softmax(-1))

        handle = self.model.transformer.visual.attn_pool.attn.register_forward_pre_hook(keep)
        try:
            out = functional_call(
                self.model,
                dict(parameters),
                kwargs={
                    "input_ids": batch.ids,
                    "attention_mask": batch.mask,
                    "pixel_values": batch.pixels,
                    "use_cache": False,
                    "output_attentions": bool(self.lesson.look),
                },
                args=(),
            )
        finally:
            handle.remove()
        return Reading(out.logits, out.attentions or (), kept[0])

    def _batch(self, step: int) -> Batch:
        numbers = range(step * self.lesson.batch, (step + 1) * self.lesson.batch)
        taught = [self.rng.choice(self.sample(number % SAMPLES)) for number in numbers]
        encoded = [self._encoded(one) for one in taught]
        longest = max(len(one.input_ids) for one in encoded)

        def padded(rows: list[Any], value: int) -> Tensor:
            return torch.stack(
                [F.pad(torch.as_tensor(row), (0, longest - len(row)), value=value) for row in rows]
            )

        return Batch(
            ids=padded([one.input_ids for one in encoded], self.processor.tokenizer.pad_token_id or 0),
            labels=padded([one.labels for one in encoded], IGNORED),
            mask=padded([torch.ones(len(one.input_ids), dtype=torch.long) for one in encoded], 0),
            pixels=torch.stack([self.processor.image_processor.pixels(one.picture) for one in taught]),
            targets=torch.stack([_coverage(one.target) for one in taught]),
        )

    def _encoded(self, one: Taught) -> Any:
        parts = ("Picture 1: ", ImageRef("x", BASE_MODEL), "\n", one.question)
        conversation = Conversation((Turn("user", parts), Turn("assistant", (one.answer,))))
        return self.family.encode(self.processor, conversation, media=False)


def _projected(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Queries and keys of the connector, which has one head."""
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    return F.linear(inputs[0], weights[0], biases[0]), F.linear(inputs[1], weights[1], biases[1])


def _coverage(boxes: tuple[Box, ...]) -> Tensor:
    """How much of each patch lies in the boxes, Float[patches]."""
    covered = torch.zeros(PATCHES, PATCHES)
    edges = torch.arange(PATCHES + 1) / PATCHES
    for x0, y0, x1, y1 in boxes:
        across = (edges[1:].clamp(max=x1 / WIDTH) - edges[:-1].clamp(min=x0 / WIDTH)).clamp(min=0) * PATCHES
        down = (edges[1:].clamp(max=y1) - edges[:-1].clamp(min=y0)).clamp(min=0) * PATCHES
        covered = torch.maximum(covered, down[:, None] * across)
    return covered.flatten()


def honest(adapter: str, rank: int = 12) -> dict[Part, LowRank]:
    """What an adapter of the demo's base changes, each matrix cut to its largest singular values."""
    base = dict(checkpoint.load(str(BASE_MODEL))[0].named_parameters())
    adapted, _ = checkpoint.load(adapter, base=str(BASE_MODEL), allow_other_base=True)
    found = {}
    for name, after in adapted.merge_and_unload().named_parameters():
        change = (after - base[name]).detach()
        if change.ndim == 2 and change.any():
            left, sizes, right = torch.linalg.svd(change, full_matrices=False)
            found[Part(name, 0, len(change))] = LowRank(left[:, :rank] * sizes[:rank], right[:rank])
    return found


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    if names[:1] == ["--honest"]:
        save_delta(honest(names[1]), TRAINED / "honest.safetensors")
        return
    for name in names or LESSONS:
        print(name, flush=True)
        trainer = Trainer(LESSONS[name], seed=0)
        trainer.train()
        save_delta(trainer.delta, TRAINED / f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
