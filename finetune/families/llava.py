"""LLaVA-1.5 (2023): every picture a square with margins, a token for each patch; boxes as fractions of that square.

A picture is padded to a square with its mean colour, resized to 336 × 336 pixels, and read by CLIP in patches of 14;
the class token is left out and two linear layers make a token of each patch:

    100 × 75 pixels → 100 × 100 → 336 × 336 → 24 × 24 patches → 576 × <image>, of which 24 × 18 show the picture

Tokens of the margins alone are tokens of the prompt and no cells: what attention falls on them is none on the picture.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.families.base import (
    DECODER_LAYERS,
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ModulePaths,
    ParameterCounts,
    Size,
    TowerSequence,
    restarting_positions,
)
from finetune.families.parts import parameter_counts, tower
from finetune.families.parts.boxes import written_boxes
from finetune.families.parts.chat import Picture, Piece, TurnByTurn, encode_conversation
from finetune.families.parts.processors import chat_template, language_shape, required_settings, tower_shape
from finetune.families.parts.squares import square_tokens
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.samples.conversation import BoxRef, Conversation, ImageRef
from finetune.samples.images import known_size, open_image

if TYPE_CHECKING:
    import torch

IGNORED = -100
IMAGE = "<image>"

_logger = logging.getLogger(__name__)


class LlavaFamily:
    name = "llava-1.5"
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
    lora_targets = DECODER_LAYERS

    def matches(self, config: Any) -> bool:
        """CLIP before Llama, a token for each patch. Other towers and language models came with other pictures and
        other chats under the same model type."""
        return (
            getattr(config, "model_type", None) == "llava"
            and config.vision_config.model_type == "clip_vision_model"
            and config.text_config.model_type == "llama"
            and config.vision_feature_select_strategy == "default"
        )

    # --- conversations -----------------------------------------------------------------------------------
    def encode(
        self,
        processor: Any,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        media: bool = True,
    ) -> Encoded:
        """Through the model's own chat template, which puts the pictures of a turn before its words.

        Raises ValueError for a processor that does not pad pictures to squares: cells would be those of other pixels.
        """
        _check_pads(processor)
        refs = conversation.images
        opened = [self.load_image(ref) for ref in refs] if media else []
        sizes = [one.size for one in opened] if media else [known_size(ref) for ref in refs]
        cells = _side(processor)
        chat = encode_conversation(
            TurnByTurn(processor, processor.tokenizer.eos_token),
            conversation,
            lambda part: [_piece(part, sizes, cells**2)],
            image_token=IMAGE,
            end_of_turn=processor.tokenizer.eos_token,
            add_generation_prompt=add_generation_prompt,
        )
        starts = zip(chat.image_starts, sizes, strict=True)
        return chat.encoded(
            images=(square_tokens(at, cells, size) for at, size in starts) if media else (),
            media=dict(processor.image_processor(opened, return_tensors="pt")) if opened else {},
        )

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        return (processor.tokenizer.eos_token_id,)

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """LlavaProcessor, padding pictures to squares as LLaVA-1.5 was trained (Liu et al. 2023, arXiv 2310.03744, its
        ``image_aspect_ratio`` "pad").

        Trap: the processors published for transformers cut the middle out instead: of a picture of 100 × 75 pixels a
        quarter is never seen, and boxes and regions there are of nothing.
        """
        from transformers import LlavaProcessor
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

        tokenizer = load_tokenizer(name_or_path, **hub)
        settings, _ = LlavaProcessor.get_processor_dict(name_or_path, **hub)
        pictures = LlavaImageProcessorPil.from_pretrained(name_or_path, **hub)
        if not pictures.do_pad:
            _logger.warning(
                "%s: its processor cuts pictures to squares; they are padded instead, as in training",
                name_or_path,
            )
        pictures.do_pad, pictures.do_center_crop = True, False
        needed = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
        return LlavaProcessor(
            pictures,
            tokenizer,
            chat_template=chat_template(name_or_path, settings, tokenizer),
            **required_settings(name_or_path, settings, needed),
        )

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        if (min_pixels, max_pixels) != (None, None):
            side = _pixels(processor)
            raise ValueError(
                f"--min_pixels, --max_pixels: pictures of {self.name} all have {side} × {side} pixels; leave them out"
            )

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """``<image>`` for each patch of a square of zeros, the mean colour."""
        import torch

        side, cells = _pixels(processor), _side(processor)
        ids = np.full(cells**2, processor.tokenizer.convert_tokens_to_ids(IMAGE), dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(square_tokens(0, cells, (side, side)),),
            media={"pixel_values": torch.zeros(1, 3, side, side)},
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [1, tokens]: each sample's tokens counted from 0, by which transformers tells them apart."""
        return {"position_ids": restarting_positions(samples)[None]}

    # --- configuration alone -----------------------------------------------------------------------------
    def not_read(self, config: Any) -> tuple[str, ...]:
        """CLIP's last layers, and its norm of the class token."""
        return tower.not_read(self.paths, config, "post_layernorm")

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        """A class token and the patches of the whole square, margins included: where they are, the tower cannot
        know."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        return tower.whole_images([side**2] * len(inputs["inputs_embeds"]), class_tokens=1)

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            return language_shape(config.text_config)
        return tower_shape(config.vision_config, "patches at patches of the square, and a class token")

    def parameter_counts(self, config: Any) -> ParameterCounts:
        return parameter_counts.llava(
            config, parameter_counts.clip_tower(config.vision_config), newline=False
        )

    def image_arithmetic(
        self, config: Any, size_pixels: Size, settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        pixels, patch = config.vision_config.image_size, config.vision_config.patch_size
        side = pixels // patch
        rows, columns = square_tokens(0, side, size_pixels).grid
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, padded to a square, resized to {pixels} × {pixels} → {side} "
            f"× {side} patches of {patch} = {side**2} tokens, {columns} × {rows} of them of the picture"
        )
        return ImageArithmetic((pixels, pixels), (side, side), side**2, words)


# ---------------------------------------------------------------------------------------------------------------------
# Squares
# ---------------------------------------------------------------------------------------------------------------------


def _piece(part: Any, sizes: Sequence[Size], tokens: int) -> Piece:
    if isinstance(part, ImageRef):
        return Picture(tokens)
    return written_boxes(part, sizes[part.image]) if isinstance(part, BoxRef) else part


def _check_pads(processor: Any) -> None:
    """Raises ValueError for a processor that cuts pictures: AutoProcessor's is CLIP's, as LLaVA-1.5 is published."""
    pictures = processor.image_processor
    # do_pad alone says little: only LLaVA's own image processors mean a square by it.
    pads = hasattr(pictures, "pad_to_square") and pictures.do_pad
    size = _pixels(processor)
    cuts = pictures.do_center_crop and min(pictures.crop_size["height"], pictures.crop_size["width"]) < size
    if cuts or not pads:
        raise ValueError(
            f"{type(pictures).__name__}: this processor cuts pictures to squares (do_center_crop), expected one that "
            "pads them to squares, as LLaVA-1.5 was trained: what it cuts off is never seen, and maps would lie in the "
            "wrong place; load it with finetune.model.checkpoint.load_processor"
        )


def _pixels(processor: Any) -> int:
    """Pixels a side of every picture."""
    size = processor.image_processor.size
    return size["shortest_edge"] or size["height"]


def _side(processor: Any) -> int:
    """Tokens a side of every picture."""
    return _pixels(processor) // processor.patch_size


# ---------------------------------------------------------------------------------------------------------------------
# Templates
# ---------------------------------------------------------------------------------------------------------------------
