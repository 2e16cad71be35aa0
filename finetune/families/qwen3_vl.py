"""Qwen3-VL (2025): mergers at several depths of the tower (deep stack), boxes in thousandths as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.families.base import ATTENTION_LAYERS, ModulePaths
from finetune.families.parts import qwen_video
from finetune.families.parts.boxes import as_json, in_thousandths
from finetune.families.parts.parameter_counts import layer_norm, linear, qwen_layer, qwen_merger, qwen_pixels
from finetune.families.parts.qwen_grid import QwenGridFamily, Size, cell_side
from finetune.samples.conversation import BoxRef, VideoRef


class Qwen3VLFamily(QwenGridFamily):
    name = "qwen3-vl"
    model_type = "qwen3_vl"
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks"),
        vision_layers="model.visual.blocks",
        vision_attention="attn",
        connector=("model.visual.merger", "model.visual.deepstack_merger_list"),
        connector_attention=None,
    )
    published_pixels = (65_536, 16_777_216)
    video_pixels = (128 * 32 * 32, 768 * 32 * 32)
    has_time_stamps = True

    def processor_class(self) -> Any:
        from finetune.families.parts.qwen_processors import Qwen3VLProcessor

        return Qwen3VLProcessor

    def tower_parameters(self, vision: Any) -> dict[str, int]:
        merged = vision.hidden_size * vision.spatial_merge_size**2
        deep = layer_norm(merged) + qwen_merger(vision, vision.hidden_size, vision.out_hidden_size)
        return {
            **tower_without_deep_stack(vision),
            "model.visual.deepstack_merger_list": len(vision.deepstack_visual_indexes) * deep,
        }

    def resized_video(self, processor: Any, ref: VideoRef, size: Size) -> Size:
        """The bounds are of all frames together: long videos have small ones."""
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        image = processor.image_processor
        least, most = qwen_video.bounds(processor, self.video_pixels)
        frames = max(len(ref.seconds), image.temporal_patch_size)  # one alone is shown twice
        most = most if ref.max_pixels is None else min(most, frames * ref.max_pixels)
        height, width = smart_resize(
            frames,
            size[1],
            size[0],
            temporal_factor=image.temporal_patch_size,
            factor=cell_side(processor),
            min_pixels=min(least, most),
            max_pixels=most,
        )
        return width, height

    def written_boxes(self, ref: BoxRef, resized: Size) -> Sequence[str]:
        """``{"bbox_2d": [250, 0, 500, 1000], "label": "dog"}`` in thousandths of the picture, whatever its size (its
        grounding examples; Qwen2.5-VL's objects look the same and hold pixels)."""
        return (as_json(ref, [in_thousandths(box) for box in ref.boxes]),)


def tower_without_deep_stack(vision: Any) -> dict[str, int]:
    """Parameters of the tower and the merger at its end, by module."""
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = qwen_layer(vision, width, linear(width, inner) + linear(inner, width), layer_norm(width))
    return {
        "model.visual.patch_embed": linear(qwen_pixels(vision), width),
        "model.visual.pos_embed": vision.num_position_embeddings * width,
        "model.visual.blocks": vision.depth * layer,
        "model.visual.merger": layer_norm(width) + qwen_merger(vision, width, vision.out_hidden_size),
    }


class Qwen3VLMoeFamily(Qwen3VLFamily):
    """Mixtures of experts: their weights are no linear layers of their own, so adapters go to attention alone."""

    name = "qwen3-vl-moe"
    model_type = "qwen3_vl_moe"
    lora_targets = ATTENTION_LAYERS
