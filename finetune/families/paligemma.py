"""PaliGemma (2024) and PaliGemma 2: pictures first, then a question with bidirectional attention, then the answer.

    1600 × 900 pixels → 224 × 224 (stretched) → 16 × 16 patches of 14 = 256 tokens
    → 256 × <image> <bos> what is it? \\n │ a cow <eos>

Left of the bar every token sees every other (``token_type_ids`` 0), right of it those before (1). Two traps: without
``token_type_ids`` nothing is causal, so answers see themselves; and there is no chat template, since the family
was trained on one question and one answer. A longer conversation continues after the bar, each question with its
pictures before it and a line break after it; a system turn stands before the first question.
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
from finetune.families.parts.boxes import without_box
from finetune.families.parts.chat import Chat, Picture, Piece, encode_conversation
from finetune.families.parts.parameter_counts import (
    linear,
    require,
    siglip_tower,
    with_projector,
)
from finetune.families.parts.processors import tower_shape
from finetune.families.parts.squares import stretched_tokens
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.samples.conversation import BoxRef, Conversation, ImageRef
from finetune.samples.images import open_image

if TYPE_CHECKING:
    import torch

IGNORED = -100
PREFIX, SUFFIX = 0, 1  # in token_type_ids
IMAGE = "<image>"
LOCATIONS = 1024


class PaliGemmaFamily:
    name = "paligemma"
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
    looks_ahead = "tokens of pictures and question see those after them"
    reads_prompts_whole = True

    def matches(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == "paligemma" and hasattr(config, "vision_config")

    # --- conversations -----------------------------------------------------------------------------------
    def encode(
        self,
        processor: Any,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        media: bool = True,
    ) -> Encoded:
        """As the family was trained; a prompt ends in a line break. All pictures have one size, so ``media=False``
        reads no header."""
        refs, count = conversation.images, processor.image_seq_length
        chat = encode_conversation(
            _Layout(processor),
            conversation,
            lambda part: [_piece(part, count)],
            image_token=IMAGE,
            end_of_turn=processor.tokenizer.eos_token,
            add_generation_prompt=add_generation_prompt,
        )
        opened = [self.load_image(ref) for ref in refs] if media else []
        pixels = (
            {"pixel_values": processor.image_processor(opened, return_tensors="pt")["pixel_values"]}
            if opened
            else {}
        )
        return chat.encoded(
            images=(
                stretched_tokens(start, count, picture.size)
                for start, picture in zip(chat.image_starts, opened, strict=media)
            ),
            media=pixels,
            per_token={"token_type_ids": _kinds(conversation, chat)},
        )

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        return (processor.tokenizer.eos_token_id,)

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """Transformers' own; pictures are resized with Pillow, whatever else is installed."""
        from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        tokenizer = load_tokenizer(name_or_path, **hub)
        pictures = SiglipImageProcessorPil.from_pretrained(name_or_path, **hub)
        return PaliGemmaProcessor(pictures, tokenizer)

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        if (min_pixels, max_pixels) != (None, None):
            size = processor.image_processor.size
            raise ValueError(
                f"--min_pixels, --max_pixels: pictures of {self.name} all become {size['width']} × {size['height']} "
                "pixels; leave them out, or take a checkpoint of another size (224, 448, 896)"
            )

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """A picture of zeros (the mean colour), marked as suffix: nothing before it sees it."""
        import torch

        count, size = processor.image_seq_length, processor.image_processor.size
        ids = np.full(count, processor.tokenizer.convert_tokens_to_ids(IMAGE), dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(stretched_tokens(0, count, (size["width"], size["height"])),),
            media={"pixel_values": torch.zeros(1, 3, size["height"], size["width"])},
            per_token={"token_type_ids": np.full_like(ids, SUFFIX)},
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Never: transformers lets every token of a row that is of a prefix see every other, whichever sample it is
        of."""
        raise ValueError(
            f"{self.name}: samples cannot share a row: pictures and questions are read in both directions, and would "
            "see those of the row's other samples; train without --packing"
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
            looks = "pictures and first question at all of them, later tokens at tokens before them"
            kinds = getattr(text, "layer_types", None)  # Gemma 2's; Gemma's layers are all alike
            if kinds and kinds[int(name.removeprefix("layer_"))] == "sliding_attention":
                looks += f", these none further back than {text.sliding_window - 1:,}"
            return AttentionShape(text.num_attention_heads, text.num_key_value_heads, text.head_dim, looks)
        return tower_shape(config.vision_config, "patches at patches of the picture")

    def parameter_counts(self, config: Any) -> ParameterCounts:
        vision = config.vision_config
        require(config.text_config.model_type in ("gemma", "gemma2"), True)
        return with_projector(config, siglip_tower(vision), linear(vision.hidden_size, config.projection_dim))

    def image_arithmetic(
        self, config: Any, size_pixels: tuple[int, int], settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        pixels, patch = config.vision_config.image_size, config.vision_config.patch_size
        side = pixels // patch
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, stretched to {pixels} × {pixels} → {side} × {side} patches "
            f"of {patch} = {side**2} tokens"
        )
        return ImageArithmetic((pixels, pixels), (side, side), side**2, words)


class _Layout:
    """What stands in for a chat template: the layout that the family was trained on (Beyer et al. 2024,
    arXiv 2407.07726, section 3)."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        answered = next(
            (i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages)
        )
        prefix, rest = messages[:answered], messages[answered:]
        pictures = "".join(IMAGE * _pictures(message) for message in prefix)
        written = f"{pictures}{self.tokenizer.bos_token}" + "".join(map(self._words, prefix))
        return written + "".join(IMAGE * _pictures(message) + self._words(message) for message in rest)

    def _words(self, message: Mapping[str, Any]) -> str:
        words = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        return words + {"assistant": self.tokenizer.eos_token, "system": " "}.get(message["role"], "\n")


def _pictures(message: Mapping[str, Any]) -> int:
    return sum(part["type"] == "image" for part in message["content"])


def _kinds(conversation: Conversation, chat: Chat) -> np.ndarray:
    """Int64[tokens]: prefix up to the first answer, suffix from there."""
    kinds = np.full(len(chat.input_ids), PREFIX, dtype=np.int64)
    for turn, (start, _) in zip(conversation.turns, chat.turn_spans, strict=True):
        if turn.role == "assistant":
            kinds[start:] = SUFFIX
            break
    return kinds


def _piece(part: Any, count: int) -> Piece:
    if isinstance(part, ImageRef):
        return Picture(count)
    return _written(part) if isinstance(part, BoxRef) else part


def _written(ref: BoxRef) -> str:
    """``<loc0000><loc0256><loc0768><loc0512> dog``: top, left, bottom, right in 1024 bins of the picture (same paper,
    section 3.2.1); of several boxes, the same again after `` ; ``."""
    if (written := without_box(ref)) is not None:
        return written
    label = "" if ref.label is None else f" {ref.label}"
    return " ; ".join(
        "".join(f"<loc{min(math.floor(value * LOCATIONS), LOCATIONS - 1):04}>" for value in (y0, x0, y1, x1))
        + label
        for x0, y0, x1, y1 in ref.boxes
    )
