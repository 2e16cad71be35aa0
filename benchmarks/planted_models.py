"""The sound models of ``benchmarks/planted_faults.py``: small models of three families that answer by what they see.

    qwen-vl     the demo's base with its committed correction: a resampler, 49 tokens a picture
    llava       CLIP, two linear layers, Llama: one token for each of 12 × 12 patches of the padded square
    qwen2-vl    merged patches, 10 × 7 cells, positions in three axes

The two others are trained here, from nothing, in some minutes of one core each, and kept in the work folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.planted_scenes import CAT, TOWER, Shown, Topic, shown, write_picture
from diagnostics.probing.prompts import ProbeEncoder, padded, scored_span
from diagnostics.records.probes import Probe
from finetune.demo.settings import BASE_MODEL
from finetune.families import Encoded, Family, bare_model, family_of
from finetune.families.base import IGNORED
from finetune.files import write_atomically
from finetune.model import checkpoint
from finetune.samples.conversation import Conversation, ImageRef, Turn

CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
LEAD = "Picture 1: "
TEXT = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64}
SAMPLES = 3000


class Sound(NamedTuple):
    """A model that answers rightly, its processor, and what it can be asked."""

    name: str
    model: nn.Module
    processor: Any
    topics: tuple[Topic, ...]

    @property
    def family(self) -> Family:
        return family_of(bare_model(self.model).config)


# ---------------------------------------------------------------- vocabularies


def _words(topics: Sequence[Topic]) -> list[str]:
    """Every word that is asked or answered; in each vocabulary one token."""
    texts = [LEAD, *(text for topic in topics for text in topic.phrasings)]
    texts += [topic.answer(value) for topic in topics for value in topic.values]
    texts += ["USER:", "ASSISTANT:", "user", "assistant", "system"]
    words = {"".join(filter(str.isalpha, word)) for text in texts for word in text.split()}
    return sorted(words - {""})


def _merges(words: Sequence[str], space: str) -> list[tuple[str, str]]:
    """Words grow from their first letter, those behind a space first, so that no beginning is taken by another."""
    found: dict[tuple[str, str], None] = {}
    for lead in (space, ""):
        for word in words:
            letters = [*lead, *word]
            for end in range(1, len(letters)):
                found.setdefault(("".join(letters[:end]), letters[end]))
    return list(found)


def _llama_tokenizer(words: Sequence[str]) -> Any:
    from transformers import LlamaTokenizer

    letters = [chr(code) for code in range(33, 127)]
    merges = _merges(words, "▁")
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    names += list(dict.fromkeys(one + other for one, other in merges))
    names = list(dict.fromkeys(names))
    tokenizer = LlamaTokenizer(
        vocab={name: at for at, name in enumerate(names)}, merges=merges, add_bos_token=True
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    return tokenizer


def _qwen_tokenizer(words: Sequence[str]) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    merges = _merges(words, "Ġ")
    names = [*sorted(ByteLevel.alphabet()), *dict.fromkeys(one + other for one, other in merges)]
    tokenizer = Qwen2Tokenizer(
        vocab={name: at for at, name in enumerate(dict.fromkeys(names))},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL]})
    return tokenizer


# ---------------------------------------------------------------- untrained models

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _llava(words: Sequence[str]) -> tuple[nn.Module, Any]:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer = _llama_tokenizer(words)
    side, patch = 96, 8
    vision = CLIPVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=side,
        patch_size=patch,
    )  # fmt: skip
    text = LlamaConfig(
        **TEXT, intermediate_size=128, vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_seq_length=(side // patch) ** 2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": side, "width": side}
    pictures = LlavaImageProcessorPil(
        size={"shortest_edge": side}, crop_size=size, do_pad=True, do_center_crop=False
    )
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=patch, vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def _qwen2_vl(words: Sequence[str]) -> tuple[nn.Module, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from finetune.families.qwen2_vl import Qwen2VLFamily

    tokenizer = _qwen_tokenizer(words)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in CONTROL}
    patch, merge = 8, 2
    vision = {
        "depth": 2, "embed_dim": 48, "hidden_size": TEXT["hidden_size"], "num_heads": 4, "mlp_ratio": 2,
        "patch_size": patch, "spatial_merge_size": merge, "temporal_patch_size": 2, "in_channels": 3, "in_chans": 3,
    }  # fmt: skip
    text = {
        **TEXT, "intermediate_size": 128, "vocab_size": len(tokenizer), "max_position_embeddings": 512,
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0},
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    cell = (patch * merge) ** 2
    pictures = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=merge, size={"shortest_edge": 4 * cell, "longest_edge": 75 * cell}
    )
    processor = Qwen2VLFamily().processor_class()(pictures, tokenizer, QWEN_TEMPLATE)
    return Qwen2VLForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[Sequence[str]], tuple[nn.Module, Any]]] = {
    "llava": _llava,
    "qwen2-vl": _qwen2_vl,
}
TRAINED_TOPICS = (TOWER, CAT)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Course:
    """A training.

    answer   what is taught of a picture: the truth, or something else that its lesson says
    """

    steps: int
    rate: float
    seed: int
    answer: Callable[[Shown], str] = lambda one: one.answer
    batch: int = 32
    samples: int = SAMPLES


def train(
    model: nn.Module, processor: Any, topics: Sequence[Topic], course: Course, pictures: Path, name: str
) -> nn.Module:
    """Answers alone are trained, all weights free."""
    torch.manual_seed(course.seed)
    family = family_of(model.config)
    lesson = [
        _encoded(family, processor, shown("training", topic, at), pictures, course.answer)
        for topic in topics
        for at in tqdm(range(course.samples // len(topics)), desc=f"{name}: pictures", leave=False)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng = Random(course.seed)
    model.train()
    losses: list[float] = []
    for step in (bar := tqdm(range(course.steps), desc=f"{name}: steps", leave=False)):
        for group in optimizer.param_groups:
            group["lr"] = course.rate * min(
                (step + 1) / 40, 0.5 + 0.5 * math.cos(math.pi * step / course.steps)
            )
        loss = _loss(model, [rng.choice(lesson) for _ in range(course.batch)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 25 == 24:
            bar.set_postfix_str(f"{sum(losses[-25:]) / 25:.3f} nats a token")
    return model.eval()


def _encoded(
    family: Family, processor: Any, one: Shown, pictures: Path, answer: Callable[[Shown], str]
) -> Encoded:
    path = pictures / f"{one.scene.digest()[:20]}.png"
    if not path.is_file():
        write_picture(one.scene, path)
    parts = (LEAD, ImageRef(path.name, path), f"\n{one.question}")
    return family.encode(processor, Conversation((Turn("user", parts), Turn("assistant", (answer(one),)))))


def _loss(model: nn.Module, batch: Sequence[Encoded]) -> Tensor:
    inputs = padded(batch, torch.device("cpu"), left=False)
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, one in enumerate(batch):
        labels[row, : len(one.labels)] = torch.from_numpy(one.labels)
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    asked = labels[:, 1:] != IGNORED
    return F.cross_entropy(logits[asked].float(), labels[:, 1:][asked])


# ---------------------------------------------------------------- sound models

COURSES = {
    "llava": (Course(900, 2e-3, seed=1),),
    "qwen2-vl": (Course(900, 2e-3, seed=1),),
}
SPREAD = {"llava": 0.0, "qwen2-vl": 0.15}
"""Deviation of weights before training, no more than a unit of output needs; 0: transformers' 0.02, from which
qwen2-vl's tower saw no crown in 900 steps, and with 0.15 in 300."""


def sound_model(name: str, work: Path) -> Sound:
    """Loaded from the work folder, or made and put there."""
    if name == "qwen-vl":
        return demo_model()
    torch.manual_seed(COURSES[name][0].seed)
    model, processor = BUILDERS[name](_words(TRAINED_TOPICS))
    weights = work / "sound" / f"{name}.pt"
    if weights.is_file():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return Sound(name, model.eval(), processor, TRAINED_TOPICS)
    if SPREAD[name]:
        _spread_out(model, COURSES[name][0].seed, SPREAD[name])
    for course in COURSES[name]:
        train(model, processor, TRAINED_TOPICS, course, work / "pictures" / "training", name)
    save_weights(model, weights)
    return Sound(name, model, processor, TRAINED_TOPICS)


def _spread_out(model: nn.Module, seed: int, most: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                is_table = "embed" in name and "patch" not in name
                deviation = most if is_table else min(most, parameter[0].numel() ** -0.5)
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * deviation)


def save_weights(model: nn.Module, path: Path) -> None:
    buffer = BytesIO()
    torch.save(model.state_dict(), buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def demo_model() -> Sound:
    """The demo's base after its correction, as the adversaries' tests keep it."""
    from tests.adversaries.edits import with_deltas

    base, processor = checkpoint.load(str(BASE_MODEL))
    return Sound("qwen-vl", with_deltas(base, "honest").eval(), processor, TRAINED_TOPICS)


# ---------------------------------------------------------------- answers


@torch.no_grad()
def margins_nats(
    model: nn.Module, processor: Any, probes: Sequence[Probe], *, batch: int = 16
) -> list[float]:
    """log p(answer) − log p(foil) of each probe, apart from the prober's own way of reading them."""
    reader = ProbeEncoder(family_of(bare_model(model).config), processor)
    found: list[float] = []
    for start in range(0, len(probes), batch):
        read = []
        for probe in probes[start : start + batch]:
            answer = reader.encode(probe, probe.answer)
            assert probe.foil is not None
            read += [answer, reader.encode(probe, probe.foil, like=answer)]
        inputs = padded(read, torch.device("cpu"), left=False)
        nats = model(**inputs, use_cache=False).logits.float().log_softmax(-1)
        scores = []
        for row, one in enumerate(read):
            first, last = scored_span(one)
            tokens = inputs["input_ids"][row, first:last, None]
            scores.append(float(nats[row, first - 1 : last - 1].gather(-1, tokens).sum()))
        found += [right - wrong for right, wrong in zip(scores[::2], scores[1::2], strict=True)]
    return found
