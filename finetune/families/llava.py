"""LLaVA-1.5 (2023): every picture a square with margins, a token for each patch; boxes as fractions of that square.

A picture is padded to a square with its mean colour, resized to 336 × 336 pixels, and read by CLIP in patches of 14;
the class token is left out and two linear layers make a token of each patch:

    100 × 75 pixels → 100 × 100 → 336 × 336 → 24 × 24 patches → 576 × <image>, of which 24 × 18 show the picture

Tokens of the margins alone are tokens of the prompt and no cells: what attention falls on them is none on the picture.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune.conversation import BoxRef, Conversation, ImageRef
from finetune.families import tower
from finetune.families.base import (
    DECODER_LAYERS,
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ImageTokens,
    ModulePaths,
    restarting_positions,
)
from finetune.families.boxes import without_box
from finetune.families.chat import Picture, Piece, control_tokens, encode_chat
from finetune.families.tokenizer import load_tokenizer
from finetune.families.tower import TowerSequence
from finetune.images import open_image, told_size

IGNORED = -100
IMAGE = "<image>"

Size = tuple[int, int]  # width, height in pixels
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
        """Through the model's own chat template, which puts the pictures of a turn before its words."""
        refs = conversation.images
        opened = [self.load_image(ref) for ref in refs] if media else []
        sizes = [one.size for one in opened] if media else [told_size(ref) for ref in refs]
        cells = _side(processor)
        chat = encode_chat(
            TurnByTurn(processor, processor.tokenizer.eos_token),
            [
                (turn.role, [_piece(part, sizes, cells**2) for part in turn.parts])
                for turn in conversation.turns
            ],
            image_token=IMAGE,
            end_of_turn=processor.tokenizer.eos_token,
            add_generation_prompt=add_generation_prompt,
        )
        starts = zip(chat.image_starts, sizes, strict=True)
        return Encoded(
            input_ids=np.array(chat.input_ids, dtype=np.int64),
            labels=np.array(chat.labels, dtype=np.int64),
            turn_spans=tuple(chat.turn_spans),
            images=tuple(square_tokens(at, cells, size) for at, size in starts) if media else (),
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
            **said(name_or_path, settings, needed),
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
        vision = config.vision_config
        heads = vision.num_attention_heads
        return AttentionShape(
            heads, heads, vision.hidden_size // heads, "patches at patches of the square, and a class token"
        )

    def image_arithmetic(self, config: Any, size_pixels: Size) -> ImageArithmetic:
        pixels, patch = config.vision_config.image_size, config.vision_config.patch_size
        side = pixels // patch
        rows, columns = square_tokens(0, side, size_pixels).grid
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, padded to a square, resized to {pixels} × {pixels} → {side} "
            f"× {side} patches of {patch} = {side**2} tokens, {columns} × {rows} of them of the picture"
        )
        return ImageArithmetic((pixels, pixels), (side, side), side**2, words)


def language_shape(text: Any) -> AttentionShape:
    """What the layers of a Llama or Qwen attend with."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return AttentionShape(heads, text.num_key_value_heads, width, "tokens at tokens before them")


def said(name: str, settings: Mapping[str, Any], needed: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint's processor_config.json says, by which pictures' tokens are counted.

    Raises ValueError where it says less; early revisions of published checkpoints did.
    """
    missing = [one for one in needed if settings.get(one) is None]
    if missing:
        raise ValueError(
            f"{name}: processor_config.json says nothing of {', '.join(missing)}, by which the tokens of a picture are "
            "counted; take the file from the published model's newest revision"
        )
    return {one: settings[one] for one in needed}


def chat_template(name: str, settings: Mapping[str, Any], tokenizer: Any) -> str:
    """The template of a checkpoint, wherever it keeps it.

    Raises ValueError where there is none.
    """
    template = settings.get("chat_template") or tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if template is None:
        raise ValueError(
            f"{name}: found no chat template, expected chat_template.jinja, chat_template.json, or one in "
            "tokenizer_config.json; copy it from the model this one was made from"
        )
    return template


# ---------------------------------------------------------------------------------------------------------------------
# Squares
# ---------------------------------------------------------------------------------------------------------------------


def square_tokens(start: int, side: int, size: Size, *, edges: np.ndarray | None = None) -> ImageTokens:
    """A picture of (width, height) pixels in the middle of a square of side × side tokens from ``start`` on.

    edges   side + 1 fractions of the square, where tokens begin and end; None: all are of one size

    Cells are the tokens that show any of the picture, cut to it; those of margins alone are left out. 100 × 75 pixels
    in 4 × 4 tokens of 25 pixels, 12 above and 13 below: all four rows, the first and the last of 13 and 12 pixels.
    """
    longest = max(size)
    left, top = ((longest - length) // 2 for length in size)
    edges = longest * (np.linspace(0, 1, side + 1) if edges is None else edges)
    x, y = np.clip(edges - left, 0, size[0]), np.clip(edges - top, 0, size[1])
    rows, columns = np.flatnonzero(np.diff(y) > 0), np.flatnonzero(np.diff(x) > 0)
    row, column = (axis.reshape(-1) for axis in np.meshgrid(rows, columns, indexing="ij"))
    return ImageTokens(
        positions=start + row * side + column,
        grid=(len(rows), len(columns)),
        cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
        image_size_pixels=size,
        through_connector=False,
    )


def written_boxes(ref: BoxRef, size: Size) -> str:
    """``dog [0.25, 0.12, 0.50, 0.88]``: fractions of the padded square, two decimals, as in LLaVA-1.5's data for
    RefCOCO and Visual Genome (Liu et al. 2023, arXiv 2310.03744, appendix; the square by measuring that data)."""
    if (written := without_box(ref)) is not None:
        return written
    longest = max(size)
    left, top = ((longest - length) // 2 for length in size)
    boxes = []
    for box in ref.boxes:
        x0, x1 = ((value * size[0] + left) / longest for value in box[::2])
        y0, y1 = ((value * size[1] + top) / longest for value in box[1::2])
        boxes.append(f"[{x0:.2f}, {y0:.2f}, {x1:.2f}, {y1:.2f}]")
    return " ".join([*([] if ref.label is None else [ref.label]), ", ".join(boxes)])


def _piece(part: Any, sizes: Sequence[Size], tokens: int) -> Piece:
    if isinstance(part, ImageRef):
        return Picture(tokens)
    return written_boxes(part, sizes[part.image]) if isinstance(part, BoxRef) else part


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

_ANSWER, _END = "\ufdd1", "\ufdd2"  # noncharacters of Unicode: no template writes them


def end_of_answers(processor: Any) -> str:
    """The control token that a chat template writes after an answer (``<|im_end|>``, ``<|eot_id|>``); where it writes
    none, the tokenizer's own end (``</s>``)."""
    asked = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": _END}]}
    written = processor.apply_chat_template([asked, answered], tokenize=False)
    found = re.match(rf"\s*({_control_names(processor.tokenizer)})", written.partition(_END)[2])
    return processor.tokenizer.eos_token if found is None else found[1]


def _control_names(tokenizer: Any) -> str:
    """A pattern that finds any of them, the longest first."""
    return "|".join(map(re.escape, sorted(control_tokens(tokenizer), key=len, reverse=True)))


class TurnByTurn:
    """A processor whose chat template is read as the model was trained, where the published template is not quite.

    - It is given the pictures of a turn first, as LLaVA was trained, and the words in one piece: the templates put
      pictures first too, and a space or a line break at each piece of words, of which nothing was in training.
    - What stands before an answer is what stands before it in generation. LLaVA-OneVision's template writes
      "assistant \\n" there, and "assistant\\n" as the prompt; LLaVA-1.5's "ASSISTANT: " and "ASSISTANT:".
    - An answer ends with ``end_of_turn``. LLaVA-1.5's template leaves it out: who learns from it never learns to stop.
    - A tokenizer's first token (``<s>``) comes first.
    """

    def __init__(self, processor: Any, end_of_turn: str) -> None:
        self.processor, self.end_of_turn = processor, end_of_turn
        self.tokenizer = processor.tokenizer

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """What the template writes, turn by turn. Raises ValueError where a turn changes what was before it."""
        assert not tokenize
        first = self.tokenizer("")["input_ids"]
        written, before = self.tokenizer.decode(first), ""
        joined = [self._joined(message) for message in messages]
        for index, message in enumerate(joined):
            through = self._rendered(joined[: index + 1])
            if not through.startswith(before):
                raise ValueError(
                    f"the model's chat template writes the turns before turn {index} ({message['role']}) otherwise "
                    "when it comes after them; expected one turn after the other"
                )
            part = through[len(before) :].removeprefix(written if index == 0 else "")
            if message["role"] == "assistant":
                prompt = self._rendered(joined[:index], add_generation_prompt=True)[len(before) :]
                part = self._answer(part, prompt if index else part.partition(_ANSWER)[0])
            written, before = written + part, through
        if add_generation_prompt:
            written += self._rendered(joined, add_generation_prompt=True)[len(before) :]
        return written

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        if not messages:
            return ""
        return self.processor.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _joined(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The turn's pictures, then its words as they were written, in one piece."""
        pictures = [part for part in message["content"] if part["type"] != "text"]
        words = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        if message["role"] == "assistant":
            words = _ANSWER + words + _END
        return {"role": message["role"], "content": [*pictures, {"type": "text", "text": words}]}

    def _answer(self, part: str, prompt: str) -> str:
        """One answer with the header of generation and an end."""
        answer = part.partition(_ANSWER)[2]
        words, _, rest = answer.partition(_END)
        if not re.match(rf"\s*(?:{_control_names(self.tokenizer)})", rest):
            rest = self.end_of_turn + rest.removeprefix(" ")
        return prompt + words + rest
