"""Qwen2.5-VL (2025): a tower that attends within windows, boxes in pixels of the resized picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.families.base import Encoded, ModulePaths, TowerSequence
from finetune.families.parts import tower
from finetune.families.parts.boxes import as_json, in_pixels
from finetune.families.parts.parameter_counts import gated, linear, qwen_layer, qwen_merger, qwen_pixels
from finetune.families.parts.qwen_grid import QwenGridFamily, Seen, Size
from finetune.samples.conversation import BoxRef

if TYPE_CHECKING:
    import torch

SECONDS = "second_per_grid_ts"  # from one step of a video's time to the next, for each video


class Qwen25VLFamily(QwenGridFamily):
    name = "qwen2.5-vl"
    model_type = "qwen2_5_vl"
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
        from finetune.families.parts.qwen_processors import Qwen2_5_VLProcessor

        return Qwen2_5_VLProcessor

    def tower_parameters(self, vision: Any) -> dict[str, int]:
        width, root_mean_square_norm = vision.hidden_size, vision.hidden_size
        layer = qwen_layer(
            vision, width, gated(width, vision.intermediate_size, bias=True), root_mean_square_norm
        )
        return {
            "model.visual.patch_embed": linear(qwen_pixels(vision), width, bias=False),
            "model.visual.blocks": vision.depth * layer,
            "model.visual.merger": root_mean_square_norm + qwen_merger(vision, width, vision.out_hidden_size),
        }

    def written_boxes(self, ref: BoxRef, resized: Size) -> Sequence[str]:
        """``{"bbox_2d": [14, 0, 28, 84], "label": "dog"}`` in pixels of the picture as the model gets it, not of the
        file (Bai et al. 2025, arXiv 2502.13923, section 2.2; the object as in its grounding examples)."""
        return (as_json(ref, [in_pixels(box, resized) for box in ref.boxes]),)

    def _media(self, processor: Any, seen: Sequence[Seen]) -> dict[str, torch.Tensor]:
        import torch

        media = super()._media(processor, seen)
        seconds = [one.film.step for one in seen if one.film is not None]
        return media | ({SECONDS: torch.tensor(seconds)} if seconds else {})

    def steps_of_time(self, config: Any, encoded: Encoded) -> Sequence[float]:
        """In seconds, not in frames (Bai et al. 2025, arXiv 2502.13923, section 2.1.2)."""
        import torch

        seconds = encoded.media.get(SECONDS, torch.zeros(0))
        return (config.vision_config.tokens_per_second * seconds).tolist()

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        vision = config.vision_config
        merge = vision.spatial_merge_size
        side = vision.window_size // (merge * vision.patch_size)
        order = tower.windows_by_frame if layer in vision.fullatt_block_indexes else tower.windows
        return order(inputs["grid_thw"].tolist(), merge, side)

    def tower_looks(self, config: Any, layer: int) -> str:
        vision = config.vision_config
        if layer in vision.fullatt_block_indexes:
            return "patches at patches of the picture"
        return f"patches at patches of their window, {vision.window_size} × {vision.window_size} pixels"
