"""Qwen2-VL (2024): a token for each cell of a picture, boxes in thousandths between markers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.families.base import ModulePaths
from finetune.families.parts.boxes import THOUSANDTHS, in_thousandths
from finetune.families.parts.chat import Control
from finetune.families.parts.parameter_counts import layer_norm, linear, qwen_layer, qwen_merger, qwen_pixels
from finetune.families.parts.qwen_grid import QwenGridFamily, Size
from finetune.samples.conversation import BoxRef


class Qwen2VLFamily(QwenGridFamily):
    name = "qwen2-vl"
    model_type = "qwen2_vl"
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.visual.patch_embed", "model.visual.blocks"),
        vision_layers="model.visual.blocks",
        vision_attention="attn",
        connector=("model.visual.merger",),
        connector_attention=None,
    )
    published_pixels = (3136, 12_845_056)
    video_pixels = (128 * 28 * 28, 768 * 28 * 28)

    def processor_class(self) -> Any:
        from finetune.families.parts.qwen_processors import Qwen2VLProcessor

        return Qwen2VLProcessor

    def tower_parameters(self, vision: Any) -> dict[str, int]:
        width = vision.embed_dim
        inner = int(width * vision.mlp_ratio)
        layer = qwen_layer(vision, width, linear(width, inner) + linear(inner, width), layer_norm(width))
        return {
            "model.visual.patch_embed": linear(qwen_pixels(vision), width, bias=False),
            "model.visual.blocks": vision.depth * layer,
            "model.visual.merger": layer_norm(width) + qwen_merger(vision, width, vision.hidden_size),
        }

    def tower_width(self, config: Any) -> int:
        return config.vision_config.embed_dim  # its hidden_size is that of the language model

    def written_boxes(self, ref: BoxRef, resized: Size) -> Sequence[str | Control]:
        """``<|object_ref_start|>dog<|object_ref_end|><|box_start|>(250,0),(500,999)<|box_end|>``, in thousandths from 0
        to 999 (Wang et al. 2024, arXiv 2409.12191, section 2.2)."""
        pieces: list[str | Control] = []
        if ref.label is not None:
            pieces += [Control("<|object_ref_start|>"), ref.label, Control("<|object_ref_end|>")]
        for box in ref.boxes:
            x0, y0, x1, y1 = in_thousandths(box, most=THOUSANDTHS - 1)
            numbers = f"({x0},{y0})" if ref.key == "point_2d" else f"({x0},{y0}),({x1},{y1})"
            pieces += [Control("<|box_start|>"), numbers, Control("<|box_end|>")]
        return pieces
