"""Gemma 3 (2025): every picture becomes one square, 256 tokens that see each other in both directions.

    1600 × 900 pixels → 896 × 896 (stretched) → 64 × 64 patches of 14 → mean of 4 × 4 → 16 × 16 tokens
    → \\n\\n<start_of_image> 256 × <image_soft_token> <end_of_image>\\n\\n

A picture's block is marked by ``token_type_ids`` (1); without them its tokens see only what is before them.
"""

from __future__ import annotations

import math
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
    TowerSequence,
)
from finetune.families.parts.boxes import as_json, in_thousandths
from finetune.families.parts.chat import Picture, Piece, encode_conversation
from finetune.families.parts.parameter_counts import (
    linear,
    require,
    siglip_tower,
    with_projector,
)
from finetune.families.parts.processors import chat_template, tower_shape
from finetune.families.parts.squares import stretched_tokens
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.samples.conversation import BoxRef, Conversation, ImageRef
from finetune.samples.images import open_image

if TYPE_CHECKING:
    import torch

IGNORED = -100
IMAGE = 1  # in token_type_ids: 0 text, 1 picture
START_OF_IMAGE, IMAGE_TOKEN, END_OF_IMAGE = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
END_OF_TURN = "<end_of_turn>"


class Gemma3Family:
    name = "gemma3"
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
    looks_ahead = "tokens of a picture see those after them in it"

    def matches(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == "gemma3" and hasattr(config, "vision_config")

    # --- conversations -----------------------------------------------------------------------------------
    def encode(
        self,
        processor: Any,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        media: bool = True,
    ) -> Encoded:
        """Through the model's own chat template. All pictures have one size, so ``media=False`` reads no header.

        Raises ValueError if the processor cuts pictures into crops: they have no tokens in the prompt.
        """
        _check_whole(processor.image_processor, "processor")
        refs = conversation.images
        chat = encode_conversation(
            _Template(processor),
            conversation,
            lambda part: _pieces(processor, part),
            image_token=IMAGE_TOKEN,
            end_of_turn=END_OF_TURN,
            add_generation_prompt=add_generation_prompt,
        )
        kinds = np.zeros(len(chat.input_ids), dtype=np.int64)
        for start in chat.image_starts:
            kinds[start : start + processor.image_seq_length] = IMAGE
        opened = [self.load_image(ref) for ref in refs] if media else []
        return chat.encoded(
            images=(
                stretched_tokens(start, processor.image_seq_length, picture.size)
                for start, picture in zip(chat.image_starts, opened, strict=media)
            ),
            media=_pixels(processor, opened),
            per_token={"token_type_ids": kinds},
        )

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        """Tokens at which an answer ends."""
        tokenizer = processor.tokenizer
        return tuple(tokenizer.convert_tokens_to_ids([END_OF_TURN, tokenizer.eos_token]))

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """Transformers' own; pictures are resized with Pillow, whatever else is installed.

        Raises ValueError if the processor cuts pictures into crops ("pan and scan").
        """
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
        from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

        settings, _ = Gemma3Processor.get_processor_dict(name_or_path, **hub)
        tokenizer = load_tokenizer(name_or_path, **hub)
        template = chat_template(
            name_or_path, settings, tokenizer, copy_from="an instruction-tuned Gemma 3 (names end in -it)"
        )
        pictures = Gemma3ImageProcessorPil.from_pretrained(name_or_path, **hub)
        _check_whole(pictures, name_or_path)
        return Gemma3Processor(
            pictures, tokenizer, template, image_seq_length=settings.get("image_seq_length", 256)
        )

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        if (min_pixels, max_pixels) != (None, None):
            size = processor.image_processor.size
            raise ValueError(
                f"--min_pixels, --max_pixels: pictures of {self.name} all become {size['width']} × {size['height']} "
                "pixels; leave them out"
            )

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """``<start_of_image>``, a picture of zeros (the mean colour), ``<end_of_image>``."""
        import torch

        count, size = processor.image_seq_length, processor.image_processor.size
        tokens = [START_OF_IMAGE, *[IMAGE_TOKEN] * count, END_OF_IMAGE]
        return Encoded(
            input_ids=np.array(processor.tokenizer.convert_tokens_to_ids(tokens), dtype=np.int64),
            labels=np.full(len(tokens), IGNORED, dtype=np.int64),
            turn_spans=(),
            images=(stretched_tokens(1, count, (size["width"], size["height"])),),
            media={"pixel_values": torch.zeros(1, 3, size["height"], size["width"])},
            per_token={"token_type_ids": np.array([0, *[IMAGE] * count, 0], dtype=np.int64)},
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Never: in sliding layers transformers asks "is this place in a picture?" of a row by places counted from
        the sample's start, so words of a later sample would see ahead where the row's first sample has a picture."""
        raise ValueError(
            f"{self.name}: samples cannot share a row: in its sliding layers a picture's block would be looked for "
            "where the first sample of the row has one; train without --packing"
        )

    # --- configuration alone -----------------------------------------------------------------------------
    def not_read(self, config: Any) -> tuple[str, ...]:
        """SigLIP's pooling to one vector, where a checkpoint has it."""
        return ("model.vision_tower.head",)

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        return None  # one sequence a picture, patches row-major, no class token

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            text = config.text_config
            looks = "tokens at tokens before them, a picture's at all of their picture"
            if text.layer_types[int(name.removeprefix("layer_"))] == "sliding_attention":
                looks += f", none further back than {text.sliding_window - 1:,}"
            return AttentionShape(text.num_attention_heads, text.num_key_value_heads, text.head_dim, looks)
        return tower_shape(config.vision_config, "patches at patches of the picture")

    def parameter_counts(self, config: Any) -> ParameterCounts:
        text, width = config.text_config, config.vision_config.hidden_size
        # True would halve the window.
        require((text.model_type, text.use_bidirectional_attention), ("gemma3_text", False))
        projector = linear(width, text.hidden_size, bias=False) + width
        return with_projector(config, siglip_tower(config.vision_config), projector)

    def image_arithmetic(
        self, config: Any, size_pixels: tuple[int, int], settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        vision, tokens = config.vision_config, config.mm_tokens_per_image
        side, patches, cells = vision.image_size, vision.image_size // vision.patch_size, math.isqrt(tokens)
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, stretched to {side} × {side} → {patches} × {patches} patches "
            f"of {vision.patch_size} → mean of {patches // cells} × {patches // cells} → {cells} × {cells} = "
            f"{tokens} tokens"
        )
        if settings is not None and settings.get("do_pan_and_scan"):
            words += "; its processor cuts crops too (do_pan_and_scan), which is refused where it trains or is probed"
        return ImageArithmetic((side, side), (patches, patches), tokens, words)


class _Template:
    """The model's chat template, with what its processor adds around a picture.

    Trap: of a system turn the template reads the first piece of text alone, and puts it before the first question;
    so the turn is given as one piece.
    """

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        written = self.processor.apply_chat_template([_as_one(message) for message in messages], **options)
        framed = f"\n\n{START_OF_IMAGE}{IMAGE_TOKEN}{END_OF_IMAGE}\n\n"
        return written.replace(START_OF_IMAGE, framed)


def _as_one(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if message["role"] == "system" and all(part["type"] == "text" for part in content):
        content = [{"type": "text", "text": "".join(part["text"] for part in content)}]
    return {**message, "content": content}


def _pieces(processor: Any, part: Any) -> Sequence[Piece]:
    """Boxes are ``{"bbox_2d": [250, 0, 500, 1000], "label": "dog"}`` in thousandths of the picture: the family was
    trained on no boxes of its own, so this is what other families' data look like."""
    if isinstance(part, ImageRef):
        return (Picture(processor.image_seq_length),)
    if isinstance(part, BoxRef):
        return (as_json(part, [in_thousandths(box) for box in part.boxes]),)
    return (part,)


def _check_whole(pictures: Any, name: str) -> None:
    if pictures.do_pan_and_scan:
        raise ValueError(
            f"{name}: found do_pan_and_scan true in its processor's settings, expected false or null as published: "
            "crops are not supported; set it to false"
        )


def _pixels(processor: Any, pictures: Sequence[Any]) -> dict[str, torch.Tensor]:
    """``pixel_values`` Float[pictures, 3, side, side]."""
    if not pictures:
        return {}
    return {"pixel_values": processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]}
