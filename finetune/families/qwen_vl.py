"""Qwen-VL (2023): a resampler squeezes every picture into n_queries tokens; language layers of Qwen-7B."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from finetune.conversation import Conversation, ImageRef
from finetune.families.base import Encoded, ImageTokens, ModulePaths


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
        from finetune.qwen_vl.chatml import encode_chat

        chat = encode_chat(
            processor.tokenizer, conversation.turns, add_generation_prompt=add_generation_prompt
        )
        images: list[ImageTokens] = []
        pixels: list[torch.Tensor] = []
        if media:
            for ref, start in zip(conversation.images, chat.image_starts, strict=True):
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

    def load_image(self, ref: ImageRef) -> Any:
        from finetune.qwen_vl.images import load_image

        return load_image(ref.path)

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

    def tower_sequences(self, config: Any, layer: int, inputs: Any) -> None:
        """One sequence a picture, its patches row-major."""
