"""A family that the project does not have, in one file: LLaVA's shape, but CLIP, two linear layers, Mistral.

Chats are ``USER: words<|end|>ASSISTANT: words<|end|>``; every picture becomes a square of 20 × 20 pixels, 5 × 5 tokens;
boxes are percent of the picture. It stands the same contract tests as those that are built in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    Qwen2Tokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from finetune.families.base import (
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ImageTokens,
    ModulePaths,
    TowerSequence,
    restarting_positions,
)
from finetune.families.parts import tower
from finetune.families.parts.chat import Picture, Piece, encode_conversation
from finetune.samples.conversation import BoxRef, Conversation, ImageRef
from finetune.samples.images import open_image

SIDE, PATCH = 20, 4
CELLS = SIDE // PATCH
IMAGE, END = "<image>", "<|end|>"
TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


class InventedFamily:
    name = "invented"
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.vision_tower",),
        vision_layers="model.vision_tower.encoder.layers",
        vision_attention="self_attn",
        connector=("model.multi_modal_projector",),
        connector_attention=None,
    )
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")

    def matches(self, config: Any) -> bool:
        return config.model_type == "llava" and config.text_config.model_type == "mistral"

    def encode(
        self,
        processor: Any,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        media: bool = True,
    ) -> Encoded:
        opened = [self.load_image(ref) for ref in conversation.images] if media else []
        chat = encode_conversation(
            processor, conversation, _pieces, image_token=IMAGE, end_of_turn=END,
            add_generation_prompt=add_generation_prompt,
        )  # fmt: skip
        return chat.encoded(
            images=[_tokens(at, one.size) for at, one in zip(chat.image_starts, opened, strict=media)],
            media=dict(processor.image_processor(opened, return_tensors="pt")) if opened else {},
        )

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        return (processor.tokenizer.convert_tokens_to_ids(END),)

    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        tokenizer = Qwen2Tokenizer.from_pretrained(name_or_path, **hub)
        template = (Path(name_or_path) / "chat_template.jinja").read_text()
        return _processor(CLIPImageProcessorPil.from_pretrained(name_or_path, **hub), tokenizer, template)

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        if (min_pixels, max_pixels) != (None, None):
            raise ValueError(
                f"--max_pixels: pictures of {self.name} all have {SIDE} × {SIDE} pixels; leave it out"
            )

    def blank(self, processor: Any) -> Encoded:
        ids = np.full(CELLS**2, processor.tokenizer.convert_tokens_to_ids(IMAGE))
        pixels = torch.zeros(1, 3, SIDE, SIDE)
        return Encoded(
            ids, np.full_like(ids, -100), (), (_tokens(0, (SIDE, SIDE)),), {"pixel_values": pixels}
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        return {"position_ids": restarting_positions(samples)[None]}

    def not_read(self, config: Any) -> tuple[str, ...]:
        return tower.not_read(self.paths, config, "post_layernorm")

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        return tower.whole_images([CELLS**2] * len(inputs["inputs_embeds"]), class_tokens=1)

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        part = config.text_config if name.startswith("layer_") else config.vision_config
        heads = part.num_attention_heads
        return AttentionShape(heads, heads, part.hidden_size // heads, "all at all")

    def image_arithmetic(
        self, config: Any, size_pixels: tuple[int, int], settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        return ImageArithmetic((SIDE, SIDE), (CELLS, CELLS), CELLS**2, f"{CELLS} × {CELLS} tokens")


def _pieces(part: Any) -> Sequence[Piece]:
    if isinstance(part, ImageRef):
        return (Picture(CELLS**2),)
    if isinstance(part, BoxRef):
        percent = (str([round(100 * value) for value in box]) for box in part.boxes)
        return (f"{part.label or ''}{''.join(percent)}",)
    return (part,) if part else ()


def _tokens(start: int, size: tuple[int, int]) -> ImageTokens:
    x, y = (np.linspace(0, side, CELLS + 1) for side in size)
    row, column = np.divmod(np.arange(CELLS**2), CELLS)
    boxes = np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1)
    return ImageTokens(start + np.arange(CELLS**2), (CELLS, CELLS), boxes, size, through_connector=False)


def _processor(image_processor: Any, tokenizer: Any, template: str) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip


def processor(folder: Path) -> LlavaProcessor:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=letters, merges=[], eos_token=END, pad_token=END, unk_token=None)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    return _processor(pictures, tokenizer, TEMPLATE)


def config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    text = MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=270,
        max_position_embeddings=512, num_key_value_heads=4, sliding_window=None,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_id=257)


def model() -> nn.Module:
    from tests.finetune.families.tiny_families import built

    return built(LlavaForConditionalGeneration, config())
