"""Qwen-VL (2023): a resampler squeezes every picture into n_queries tokens; language layers of Qwen-7B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.families.base import (
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ImageTokens,
    ModulePaths,
    ParameterCounts,
    restarting_positions,
)
from finetune.families.parts.boxes import as_markup, without_box
from finetune.families.parts.parameter_counts import gated, layer_norm, linear, require
from finetune.qwen_vl.fixed_sizes import N_POSITIONS, RESAMPLER_HEAD_WIDTH
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Part, Turn

if TYPE_CHECKING:
    import torch

IGNORED = -100


class QwenVLFamily:
    name = "qwen-vl"
    paths = ModulePaths(
        language=("transformer.wte", "transformer.h", "transformer.ln_f", "lm_head"),
        language_layers="transformer.h",
        language_attention="attn",
        vision=(
            "transformer.visual.conv1",
            "transformer.visual.positional_embedding",
            "transformer.visual.ln_pre",
            "transformer.visual.transformer",
        ),
        vision_layers="transformer.visual.transformer.resblocks",
        vision_attention="attn",
        connector=("transformer.visual.attn_pool", "transformer.visual.ln_post", "transformer.visual.proj"),
        connector_attention="transformer.visual.attn_pool.attn",
        never_trained=("transformer.visual.attn_pool.pos_embed",),
    )
    lora_targets: tuple[str, ...] = ("c_attn", "attn.c_proj", "w1", "w2")

    def matches(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == "qwen" and isinstance(
            getattr(config, "visual", None), dict
        )

    def encode(
        self,
        processor: Any,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        media: bool = True,
    ) -> Encoded:
        """With ``media=False`` no picture is opened: ids, labels and spans only, for counting tokens."""
        import torch

        from finetune.qwen_vl.chatml import encode_chat

        refs = conversation.images
        turns = [Turn(turn.role, tuple(map(_in_own_markup, turn.parts))) for turn in conversation.turns]
        chat = encode_chat(processor.tokenizer, turns, add_generation_prompt=add_generation_prompt)
        images: list[ImageTokens] = []
        pixels: list[torch.Tensor] = []
        if media:
            for ref, start in zip(refs, chat.image_starts, strict=True):
                picture = self.load_image(ref)
                pixels.append(processor.image_processor.pixels(picture))
                images.append(self._image_tokens(processor, start, picture.size))
        return Encoded(
            input_ids=np.array(chat.input_ids, dtype=np.int64),
            labels=np.array(chat.labels, dtype=np.int64),
            turn_spans=tuple(chat.turn_spans),
            images=tuple(images),
            media={"pixel_values": torch.stack(pixels)} if pixels else {},
        )

    def image_places(self, processor: Any, input_ids: np.ndarray) -> np.ndarray:
        """Bool[tokens]: what stands between ``<img>`` and ``</img>``: the bytes of a path, then padding."""
        tokenizer = processor.tokenizer
        opened, closed = (
            np.cumsum(input_ids == mark) for mark in (tokenizer.img_start_id, tokenizer.img_end_id)
        )
        return (opened > closed) & (input_ids != tokenizer.img_start_id)

    def load_image(self, ref: ImageRef) -> Any:
        from finetune.samples.images import open_image

        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        """Tokens at which an answer ends."""
        return (processor.tokenizer.im_end_id, processor.tokenizer.eod_id)

    def _image_tokens(self, processor: Any, start: int, size: tuple[int, int]) -> ImageTokens:
        """Cells are the ViT's patches: the picture is squeezed to a square, so cells stretch as the picture does."""
        width, height = size
        side = processor.image_processor.image_size // processor.image_processor.patch_size
        x, y = np.linspace(0, width, side + 1), np.linspace(0, height, side + 1)
        row, column = np.divmod(np.arange(side * side), side)
        return ImageTokens(
            positions=start + 1 + np.arange(processor.tokenizer.image_tokens),
            grid=(side, side),
            cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
            image_size_pixels=(width, height),
            through_connector=True,
        )

    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        from finetune.qwen_vl import QwenVLProcessor

        return QwenVLProcessor.from_pretrained(name_or_path, **hub)

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """Every picture becomes a square of one size, so there is nothing to set."""
        if min_pixels is None and max_pixels is None:
            return
        side = processor.image_processor.image_size
        raise ValueError(
            f"--min_pixels, --max_pixels: {self.name} squeezes every picture to {side} × {side} pixels, "
            f"{processor.tokenizer.image_tokens} tokens; leave them out"
        )

    def blank(self, processor: Any) -> Encoded:
        """``<img>``, slots, ``</img>``: a picture of zeros, the mean colour."""
        import torch

        side = processor.image_processor.image_size
        ids = np.array(processor.tokenizer.image_slots(), dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(self._image_tokens(processor, 0, (side, side)),),
            media={"pixel_values": torch.zeros(1, 3, side, side)},
        )

    def tower_states(self, model: Any, media: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"patch_states": model.transformer.visual.patch_states(media["pixel_values"])}

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [1, tokens] that start again at 0: transformers' masks keep apart what restarts."""
        return {"position_ids": restarting_positions(samples)[None]}

    def tower_sequences(self, config: Any, layer: int, inputs: Any) -> None:
        """One sequence a picture, its patches row-major."""

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            heads = config.num_attention_heads
            return AttentionShape(heads, heads, config.kv_channels, "tokens at tokens before them")
        if name == "visual_attn":
            width = config.visual["output_dim"]
            heads = max(width // RESAMPLER_HEAD_WIDTH, 1)
            return AttentionShape(heads, heads, width // heads, "queries at patches of the picture")
        heads = config.visual["heads"]
        return AttentionShape(
            heads, heads, config.visual["width"] // heads, "patches at patches of the picture"
        )

    def parameter_counts(self, config: Any) -> ParameterCounts:
        parts = {**_language_parameters(config), **_visual_parameters(config.visual)}
        return ParameterCounts(parts, config.num_hidden_layers, config.visual["layers"])

    def image_arithmetic(
        self, config: Any, size_pixels: tuple[int, int], settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        side, patch, queries = (config.visual[name] for name in ("image_size", "patch_size", "n_queries"))
        cells = side // patch
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, squeezed to {side} × {side} → {cells} × {cells} patches of "
            f"{patch} → {queries} queries → {queries} tokens"
        )
        return ImageArithmetic((side, side), (cells, cells), queries, words)


def _language_parameters(config: Any) -> dict[str, int]:
    width, attending = config.hidden_size, config.num_attention_heads * config.kv_channels
    bias, inner = not config.no_bias, config.intermediate_size // 2  # of each branch
    require(
        (config.intermediate_size % 2, config.kv_channels % 2, width), (0, 0, config.visual["output_dim"])
    )
    layer = linear(width, 3 * attending) + linear(attending, width, bias=bias) + 2 * width
    layer += gated(width, inner, bias=bias)
    words = config.vocab_size * width
    parts = {
        "transformer.wte": words,
        "transformer.h": config.num_hidden_layers * layer,
        "transformer.ln_f": width,
    }
    return parts if config.tie_word_embeddings else parts | {"lm_head": words}


def _visual_parameters(visual: Mapping[str, Any]) -> dict[str, int]:
    width, out, queries = visual["width"], visual["output_dim"], visual["n_queries"]
    inner = int(width * visual["mlp_ratio"])
    cells = (visual["image_size"] // visual["patch_size"]) ** 2
    require((width % visual["heads"], out % max(out // RESAMPLER_HEAD_WIDTH, 1)), (0, 0))
    require((math.isqrt(queries) ** 2, bool(cells)), (queries, True))
    layer = linear(width, 3 * width) + linear(width, width) + linear(width, inner) + linear(inner, width)
    reading = 0 if width == out else linear(width, out, bias=False)
    return {
        "transformer.visual.conv1": linear(3 * visual["patch_size"] ** 2, width, bias=False),
        "transformer.visual.positional_embedding": N_POSITIONS * width,
        "transformer.visual.ln_pre": layer_norm(width),
        "transformer.visual.transformer": visual["layers"] * (layer + 2 * layer_norm(width)),
        "transformer.visual.attn_pool": 2 * queries * out
        + reading
        + 4 * linear(out, out)
        + 2 * layer_norm(out),
        "transformer.visual.ln_post": layer_norm(out),
        "transformer.visual.proj": out**2,
    }


def _in_own_markup(part: Part) -> Part:
    """Boxes that were not written in Qwen-VL's markup, in it (Bai et al. 2023, arXiv 2308.12966, section 2.2)."""
    if not isinstance(part, BoxRef) or part.style == "qwen-vl":
        return part
    if part.boxes and (written := without_box(part)) is not None:
        return replace(part, written=written)
    return replace(
        part, written=as_markup(part, ref_marks=("<ref>", "</ref>"), box_marks=("<box>", "</box>"))
    )
