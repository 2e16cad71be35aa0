"""One model, one probe: encode → capture → geometry → metrics → record. Monitor, comparison and web page use this."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig

from diagnostics.capture import AttentionExtractor, self_check
from diagnostics.causal import KNOCKOUT, OCCLUSION, blocked_patches, blocked_tokens, occlude, region_cells
from diagnostics.geometry import Box, cells_from_row, region_coverage
from diagnostics.metrics import random_regions, region_mass, visual_share
from diagnostics.probes import Probe
from diagnostics.records import AttentionRecord, Intervention, Query, Scores
from finetune.conversation import Conversation, ImageRef, Turn
from finetune.families import Encoded, Family, ImageTokens, bare_model, family_of

CONTROLS = 2  # random regions set against each region; averaged over a group's probes
MAX_NEW_TOKENS = 16
BATCH_SIZE = 16
IMAGE_TOKEN_TEXT = "<image>"
MAX_BYTES_OF_A_CHARACTER = 4  # UTF-8


def user_parts(probe: Probe, images: Sequence[Any] | None = None) -> tuple[str | ImageRef, ...]:
    """A probe's prompt as Qwen-VL's data writes it: ``Picture 1: `` image ``\\n`` question, images numbered from 1.

    ``images`` are pictures in place of the probe's files (occluded ones), in the same order.
    """
    parts: list[str | ImageRef] = []
    text = ""
    for number, path in enumerate(probe.images, start=1):
        source = path if images is None else images[number - 1]
        parts += [f"{text}Picture {number}: ", ImageRef(path.name, source)]
        text = "\n"
    return (*parts, text + probe.question)


class Prober:
    """Puts probes to one model and measures where it looks and what it needs.

    key_layers   language layers whose rows are kept (region mass and visual share are measured in all)
    generate     let the model answer in its own words too
    occlusion, knockout   take the probe's region away from the picture, or from attention, and measure the margin again
    controls     the same with so many area-matched random regions
    batch_size   sequences in one forward

    The model's state is restored after each run (``observing``). Raises ValueError naming the probe where an answer
    or a phrase cannot be placed in the tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        key_layers: Sequence[int],
        probes: Sequence[Probe],
        generate: bool = True,
        occlusion: bool = True,
        knockout: bool = True,
        controls: int = CONTROLS,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = BATCH_SIZE,
        family: Family | None = None,
    ) -> None:
        self.model = bare_model(model)
        self.processor = processor
        self.family = family or family_of(self.model.config)
        self.key_layers = tuple(key_layers)
        self.probes = tuple(probes)
        self.generate = generate
        self.kinds = tuple(kind for kind, on in ((OCCLUSION, occlusion), (KNOCKOUT, knockout)) if on)
        self.controls = controls
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def run(self, probe: Probe, step: int, model_name: str) -> AttentionRecord:
        """One probe → its record."""
        return next(self.run_all(step, model_name, probes=[probe]))

    def run_all(
        self, step: int, model_name: str, *, probes: Sequence[Probe] | None = None, progress: bool = False
    ) -> Iterator[AttentionRecord]:
        """Every probe (or those given) → records, in order, as they are made; answers are generated in batches.

        The model is in eval mode between the first record and the last: use them up before training goes on.
        """
        chosen = self.probes if probes is None else tuple(probes)
        with observing(self.model):
            answers = self._generate(chosen, progress=progress) if self.generate else [""] * len(chosen)
            with AttentionExtractor(self.model, family=self.family, sequences=[], images=[]) as extractor:
                bar = tqdm(
                    chosen, desc=f"probing step {step}", unit="probe", disable=not progress, leave=False
                )
                for probe, answer in zip(bar, answers, strict=True):
                    yield self._record(extractor, probe, step, model_name, answer)

    def self_check(self) -> None:
        """Prove capture on the first probe, in the key layers and the connector. Raises ValueError if it fails."""
        case = self._case(self.probes[0], self.probes[0].answer)
        with observing(self.model):
            self_check(self.model, self._inputs([case]), key_layers=self.key_layers, family=self.family)

    def _record(
        self, extractor: AttentionExtractor, probe: Probe, step: int, model_name: str, generated: str
    ) -> AttentionRecord:
        answer = self._case(probe, probe.answer)
        foil = None if probe.foil is None else self._case(probe, probe.foil, like=answer)
        tokens = self._token_texts(answer)
        queries = _queries(probe, answer, foil, tokens)
        cases, tried = [answer], []
        if foil is not None:
            tried = _trials(probe, self.kinds, self.controls, answer.encoded.images[0])
            cases += [foil, *self._tried(probe, tried, answer, foil)]
        scores, weights = self._scores(extractor, cases, [query.position for query in queries])
        rows = np.stack([weights[f"layer_{layer}"][0] for layer in range(len(extractor.language_names))])
        rows = rows[..., : len(answer.encoded.input_ids)]
        connector = tuple(weights["visual_attn"].mean(1)) if "visual_attn" in weights else ()
        return AttentionRecord(
            probe_id=probe.id,
            group=probe.group,
            step=step,
            model=model_name,
            tokens=tuple(tokens),
            queries=tuple(queries),
            layers=self.key_layers,
            rows=rows[list(self.key_layers)],
            image_tokens=answer.encoded.images,
            connector=connector,
            region_mass=_region_masses(probe, rows[:, :, 0], answer.encoded.images, connector),
            visual_share=_visual_share(rows[:, :, 0], answer.encoded.images),
            scores=Scores(scores[0], None if foil is None else scores[1], generated),
            interventions=tuple(_interventions(tried, scores[2:])),
        )

    def _case(self, probe: Probe, reply: str, *, like: _Case | None = None, images: Any = None) -> _Case:
        """One sequence to score. ``like`` lends its pictures, so that no picture is opened twice."""
        turns = (Turn("user", user_parts(probe, images)), Turn("assistant", (reply,)))
        conversation = Conversation(turns, source=f"probe {probe.id}")
        encoded = self.family.encode(self.processor, conversation, media=like is None)
        start, end = encoded.turn_spans[-1]
        if start == end:
            raise ValueError(f"probe {probe.id}: {reply!r} has no tokens, expected at least one")
        if like is not None:
            encoded = Encoded(
                encoded.input_ids, encoded.labels, encoded.turn_spans, like.encoded.images, like.encoded.media
            )
        return _Case(encoded, None)

    def _tried(self, probe: Probe, trials: Sequence[_Trial], answer: _Case, foil: _Case) -> Iterator[_Case]:
        """Answer and foil again for each trial, its region taken away."""
        pictures = (
            [self.family.load_image(ImageRef(path.name, path)) for path in probe.images] if trials else []
        )
        for trial in trials:
            if trial.kind == KNOCKOUT:
                cells = region_cells(answer.encoded.images[0], trial.boxes)
                yield from (_Case(answer.encoded, cells), _Case(foil.encoded, cells))
            else:
                assert probe.foil is not None
                hidden = self._case(
                    probe, probe.answer, images=[occlude(pictures[0], trial.boxes), *pictures[1:]]
                )
                yield from (hidden, self._case(probe, probe.foil, like=hidden))

    def _scores(
        self, extractor: AttentionExtractor, cases: Sequence[_Case], positions: Sequence[int]
    ) -> tuple[list[float], dict[str, np.ndarray]]:
        """log p of each case's reply, nats, and the rows of the first case at ``positions``, in every layer."""
        scores: list[float] = []
        weights: dict[str, np.ndarray] = {}
        for start in range(0, len(cases), self.batch_size):
            batch = cases[start : start + self.batch_size]
            extractor.clear()
            extractor.sequences = [0] if start == 0 else []
            extractor.images = list(range(len(batch[0].encoded.images))) if start == 0 else []
            extractor.query_tokens = [*positions] if start == 0 else None
            with extractor.knocked_out(_blocked(batch, extractor.language_names)):
                scores += self._reply_nats(batch)
            weights = extractor.attention_weights if start == 0 else weights
        return scores, weights

    def _reply_nats(self, batch: Sequence[_Case]) -> list[float]:
        """log p of each reply given its prompt, summed over its tokens, nats; softmax in fp32."""
        inputs = self._inputs(batch)
        first = min(case.span[0] for case in batch) - 1
        kept = inputs["input_ids"].shape[1] - first
        logits = self.model(**inputs, use_cache=False, logits_to_keep=kept).logits
        if logits.shape[1] != kept:  # the model keeps them all
            logits = logits[:, first:]
        nats = []
        for row, case in enumerate(batch):
            start, end = case.span
            predictions = logits[row, start - 1 - first : end - 1 - first].float().log_softmax(-1)
            wanted = inputs["input_ids"][row, start:end, None]
            nats.append(predictions.gather(1, wanted).sum())
        return torch.stack(nats).tolist()

    def _inputs(self, batch: Sequence[_Case]) -> dict[str, Tensor]:
        return padded([case.encoded for case in batch], self._device, left=False)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _generate(self, probes: Sequence[Probe], *, progress: bool) -> list[str]:
        """The model's own greedy answers."""
        stops = list(self.family.stop_token_ids(self.processor))
        config = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=self.max_new_tokens,
            eos_token_id=stops, pad_token_id=stops[0], use_cache=True,
        )  # fmt: skip
        answers: list[str] = []
        starts = range(0, len(probes), self.batch_size)
        for start in tqdm(starts, desc="answering", unit="batch", disable=not progress, leave=False):
            prompts = [self._prompt(probe) for probe in probes[start : start + self.batch_size]]
            inputs = padded(prompts, self._device, left=True)
            replies = self.model.generate(**inputs, generation_config=config)[
                :, inputs["input_ids"].shape[1] :
            ]
            answers += [self._decoded(reply, stops) for reply in replies.tolist()]
        return answers

    def _prompt(self, probe: Probe) -> Encoded:
        conversation = Conversation((Turn("user", user_parts(probe)),), source=f"probe {probe.id}")
        return self.family.encode(self.processor, conversation, add_generation_prompt=True)

    def _decoded(self, reply: list[int], stops: Sequence[int]) -> str:
        """The reply up to its end. Embeddings outnumber tokens (151,936 for 151,860 in Qwen-VL), so a model gone
        astray can say what no token spells: that reads as U+FFFD."""
        tokenizer = self.processor.tokenizer
        said = reply[: next((at for at, token in enumerate(reply) if token in stops), None)]
        runs = groupby(said, key=lambda token: token < len(tokenizer))
        return "".join(
            str(tokenizer.decode(list(run))) if is_known else "\N{REPLACEMENT CHARACTER}"
            for is_known, run in runs
        ).strip()

    def _token_texts(self, case: _Case) -> list[str]:
        slots = {int(position) for image in case.encoded.images for position in image.positions}
        return token_texts(self.processor.tokenizer, case.encoded.input_ids.tolist(), slots)


@dataclass(frozen=True)
class _Case:
    """A sequence to score, and the cells of its first image that attention may not read."""

    encoded: Encoded
    knocked_out: np.ndarray | None

    @property
    def span(self) -> tuple[int, int]:
        return self.encoded.turn_spans[-1]


@dataclass(frozen=True)
class _Trial:
    """One region to take away; a control is a random one of the same shape."""

    kind: str
    region: str
    boxes: Sequence[Box]
    is_control: bool


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Look at a model without leaving a trace: eval mode and no gradients inside; train flags of every module, caching
    and all random states (Python, NumPy, torch, each GPU) afterwards as before, also after an exception.

    So a training run with probes has the losses and weights of one without, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    caches = [(config, config.use_cache) for config in _configs(model) if "use_cache" in vars(config)]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for config, use_cache in caches:
            config.use_cache = use_cache
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)


def padded(batch: Sequence[Encoded], device: torch.device, *, left: bool) -> dict[str, Tensor]:
    """Encoded conversations as one batch: input_ids, attention_mask [batch, tokens], media joined in order."""
    width = max(len(one.input_ids) for one in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, one in enumerate(batch):
        count = len(one.input_ids)
        place = slice(width - count, None) if left else slice(0, count)
        ids[row, place] = torch.from_numpy(np.asarray(one.input_ids))
        mask[row, place] = 1
    media = {name: torch.cat([one.media[name] for one in batch]) for name in batch[0].media}
    inputs = {"input_ids": ids, "attention_mask": mask, **media}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def token_texts(tokenizer: Any, ids: Sequence[int], image_positions: Collection[int] = ()) -> list[str]:
    """The text of each token, so that joined they are the whole; an image's token reads ``<image>``.

    A character cut by a token border (a byte-level vocabulary does it to rare Chinese) belongs to the token that
    completes it; the ones before have "".
    """
    texts: list[str] = []
    pending: list[int] = []
    for position, token in enumerate(ids):
        if position in image_positions:
            texts.append(IMAGE_TOKEN_TEXT)
            pending = []
            continue
        pending.append(token)
        text = str(tokenizer.decode(pending))
        is_cut = text.endswith("\N{REPLACEMENT CHARACTER}") and len(pending) < MAX_BYTES_OF_A_CHARACTER
        texts.append("" if is_cut else text)
        pending = pending if is_cut else []
    return texts


def find_phrase(phrase: str, texts: Sequence[str], start: int, end: int) -> int | None:
    """Index of the token, within start..end, that completes the phrase's first appearance; None where there is none."""
    read = ""
    wanted = unicodedata.normalize("NFC", phrase)
    for index in range(start, end):
        read += texts[index]
        if wanted in unicodedata.normalize("NFC", read):
            return index
    return None


def _queries(probe: Probe, answer: _Case, foil: _Case | None, texts: Sequence[str]) -> list[Query]:
    """The answer query first: the token before the first at which answer and foil part; then one for each phrase,
    the token that completes it, in the question if it stands there, else in the answer."""
    start, end = answer.span
    ids = answer.encoded.input_ids[start:end].tolist()
    others = [] if foil is None else foil.encoded.input_ids[slice(*foil.span)].tolist()
    parted = next(
        (at for at, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other), None
    )
    at = (parted if parted is not None else min(len(ids) - 1, len(others))) if others else 0
    queries = [Query(start + at - 1, "answer", texts[start + at])]
    user_start, user_end = answer.encoded.turn_spans[-2]
    after_images = max([user_start, *(int(image.positions.max()) + 1 for image in answer.encoded.images)])
    for phrase in probe.phrases:
        place = find_phrase(phrase, texts, after_images, user_end)
        place = find_phrase(phrase, texts, start, end) if place is None else place
        if place is None:
            raise ValueError(
                f"probe {probe.id}: phrase {phrase!r} not found in the tokens of question or answer, {texts[after_images:end]}"
            )
        queries.append(Query(place, f"phrase:{phrase}", phrase))
    return queries


def _trials(probe: Probe, kinds: Sequence[str], controls: int, image: ImageTokens) -> list[_Trial]:
    """What is taken away: the main region, and random ones of its shape, in each of the kinds."""
    region = probe.main_region
    if region is None or not kinds:
        return []
    boxes = probe.regions[region]
    others = random_regions(boxes, image.image_size_pixels, count=controls, name=probe.id)
    return [
        _Trial(kind, region, one, is_control=index > 0)
        for kind in kinds
        for index, one in enumerate([boxes, *others])
    ]


def _interventions(trials: Sequence[_Trial], scores: Sequence[float]) -> Iterator[Intervention]:
    """Scores come in pairs, answer and foil, in the order of the trials."""
    margins = [right - wrong for right, wrong in zip(scores[::2], scores[1::2], strict=True)]
    for kind in dict.fromkeys(trial.kind for trial in trials):
        of_kind = [
            (trial, margin) for trial, margin in zip(trials, margins, strict=True) if trial.kind == kind
        ]
        [(region, margin)] = [(trial.region, margin) for trial, margin in of_kind if not trial.is_control]
        yield Intervention(
            kind, region, margin, tuple(margin for trial, margin in of_kind if trial.is_control)
        )


def _blocked(batch: Sequence[_Case], language: Sequence[str]) -> dict[str, Tensor]:
    """What attention may not read in this batch: patches at the resampler, or tokens in every language layer."""
    if all(case.knocked_out is None for case in batch):
        return {}
    if batch[0].encoded.images[0].through_connector:
        others = [None] * (len(batch[0].encoded.images) - 1)  # regions are in the first image
        return {
            "visual_attn": blocked_patches([one for case in batch for one in (case.knocked_out, *others)])
        }
    cells = [
        None if case.knocked_out is None else (case.encoded.images[0], case.knocked_out) for case in batch
    ]
    blocked = blocked_tokens(cells, max(len(case.encoded.input_ids) for case in batch))
    return dict.fromkeys(language, blocked)


def _region_masses(
    probe: Probe,
    rows: Float[np.ndarray, "layers heads keys"],
    images: Sequence[ImageTokens],
    connector: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    if not probe.regions:
        return {}
    cells = cells_from_row(rows, images[0], connector[0] if connector else None)
    coverage = {name: region_coverage(boxes, images[0]) for name, boxes in probe.regions.items()}
    return {name: region_mass(cells, weights).astype(np.float32) for name, weights in coverage.items()}


def _visual_share(
    rows: Float[np.ndarray, "layers heads keys"], images: Sequence[ImageTokens]
) -> Float[np.ndarray, "layers heads"]:
    positions = np.concatenate([image.positions for image in images])
    return visual_share(rows, positions).astype(np.float32)


def _configs(model: nn.Module) -> list[Any]:
    found = [vars(module)["config"] for module in model.modules() if "config" in vars(module)]
    return list({id(config): config for config in found}.values())
