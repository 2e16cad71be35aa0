"""LLaVA-OneVision (2024): one picture in tiles behind an overview of it; several as squares with margins.

A picture that is alone in its conversation is fitted into the best of some canvases of whole tiles (of 384 pixels, 27 ×
27 patches by SigLIP), black around it. The tokens of the tiles, joined to one grid, lose the rows or columns of the
margins, are pooled where they are too many, and get a newline token at each row's end; those of the overview (the
picture squeezed into one tile) come before them:

    768 × 500 pixels → 768 × 768, 2 × 2 tiles → 54 × 54 patches, 9 rows above and 9 below are margins
    → 729 of the overview, then 36 rows of 54 and a newline: 2,709 × <image>

Cells are the tokens of the tiles. The overview's and the newlines' are tokens of the prompt, not cells: an overview's
token is of a place too, but of a coarser one, and a second count of it; a newline is of none. Attention on them is in
no map and in no share of the picture, and knocking a region out leaves the overview's tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.conversation import BoxRef, Conversation, ImageRef
from finetune.families import tower
from finetune.families.base import (
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ImageTokens,
    ModulePaths,
    restarting_positions,
)
from finetune.families.boxes import as_json, in_thousandths
from finetune.families.chat import Picture, Piece, encode_chat
from finetune.families.llava import TurnByTurn, chat_template, language_shape, said, square_tokens
from finetune.families.tower import TowerSequence
from finetune.images import open_image, size_of

IGNORED = -100
IMAGE, IM_END, END_OF_TEXT = "<image>", "<|im_end|>", "<|endoftext|>"
POOLED_ABOVE = 1.1  # times as many a side as are allowed: transformers' and the authors' own bound

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class _Tiling:
    """What decides a picture's tokens.

    pixels      a side of a tile
    side        tokens a side of a tile
    canvases    (height, width) in pixels of those that a picture may be fitted into
    most_tiles  as many tiles' tokens as are not pooled
    """

    pixels: int
    side: int
    canvases: Sequence[tuple[int, int]]
    most_tiles: int


class LlavaOnevisionFamily:
    name = "llava-onevision"
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.vision_tower",),
        vision_layers="model.vision_tower.encoder.layers",
        vision_attention="self_attn",
        connector=("model.multi_modal_projector", "model.image_newline"),
        connector_attention=None,
    )
    lora_targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    def matches(self, config: Any) -> bool:
        return (
            getattr(config, "model_type", None) == "llava_onevision"
            and config.vision_config.model_type == "siglip_vision_model"
            and config.text_config.model_type == "qwen2"
            and config.vision_feature_select_strategy == "full"
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
        """Through the model's own chat template, which puts the pictures of a turn before its words. Whether pictures
        are tiled is told by how many the conversation has, as in training."""
        refs = conversation.images
        opened = [self.load_image(ref) for ref in refs] if media else []
        sizes = [one.size for one in opened] if media else [_size(ref) for ref in refs]
        bounded = [_bounded(processor, ref, size) for ref, size in zip(refs, sizes, strict=True)]
        tiling, alone = _of_processor(processor), len(refs) == 1
        counts = [_count(tiling, one, ref, alone) for one, ref in zip(bounded, refs, strict=True)]
        chat = encode_chat(
            TurnByTurn(processor, IM_END),
            _pieces(conversation, counts),
            image_token=IMAGE,
            end_of_turn=IM_END,
            add_generation_prompt=add_generation_prompt,
        )
        places = zip(chat.image_starts, bounded, sizes, strict=True)
        return Encoded(
            input_ids=np.array(chat.input_ids, dtype=np.int64),
            labels=np.array(chat.labels, dtype=np.int64),
            turn_spans=tuple(chat.turn_spans),
            images=tuple(_tokens(tiling, at, new, old, alone) for at, new, old in places) if media else (),
            media=_pixels(processor, opened, bounded) if opened else {},
        )

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        return tuple(processor.tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]))

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """LlavaOnevisionProcessor without its video half, which asks for torchvision."""
        from transformers import AutoTokenizer
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub)
        settings, _ = processor_class().get_processor_dict(name_or_path, **hub)
        needed = ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio")
        return processor_class()(
            LlavaOnevisionImageProcessorPil.from_pretrained(name_or_path, **hub),
            tokenizer,
            chat_template=chat_template(name_or_path, settings, tokenizer),
            **said(name_or_path, {"vision_aspect_ratio": "anyres_max_9", **settings}, needed),
        )

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """``image_processor.max_pixels``: larger pictures are scaled down before a canvas is chosen for them.

        The canvases themselves are in the model's configuration too, and must stay what they are there.
        """
        if min_pixels is not None:
            raise ValueError(
                f"--min_pixels: {self.name} fits every picture into at least one tile; leave it out"
            )
        if max_pixels is not None:
            if max_pixels < 1:
                raise ValueError(f"--max_pixels {max_pixels:,}: expected at least 1")
            processor.image_processor.max_pixels = max_pixels

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """A square of one tile, its mean colour: overview, tile and newlines, so that all that a picture reaches is
        reached."""
        tiling = _of_processor(processor)
        size = (tiling.pixels, tiling.pixels)
        count = _layout(tiling, size).tokens
        ids = np.full(count, processor.tokenizer.convert_tokens_to_ids(IMAGE), dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(_tokens(tiling, 0, size, size, alone=True),),
            media={
                "pixel_values": torch.zeros(2, 3, *size),
                "image_sizes": torch.tensor([size]),
                "batch_num_images": torch.tensor([1]),
            },
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [1, tokens]: each sample's tokens counted from 0, by which transformers tells them apart."""
        return {"position_ids": restarting_positions(samples)[None]}

    # --- configuration alone -----------------------------------------------------------------------------
    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        """Each tile and each overview a picture of its own, in that order: the tower is not told which belong
        together, and no patch of one attends to another's."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        return tower.whole_images([side**2] * len(inputs["inputs_embeds"]))

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            return language_shape(config.text_config)
        vision = config.vision_config
        heads = vision.num_attention_heads
        return AttentionShape(heads, heads, vision.hidden_size // heads, "patches at patches of their tile")

    def image_arithmetic(self, config: Any, size_pixels: Size) -> ImageArithmetic:
        """Of a picture that is alone in its conversation."""
        vision = config.vision_config
        tiling = _Tiling(
            vision.image_size,
            vision.image_size // vision.patch_size,
            config.image_grid_pinpoints,
            _most_tiles(config.vision_aspect_ratio),
        )
        found = _layout(tiling, size_pixels)
        height, width = found.canvas
        rows, columns = (length // tiling.pixels * tiling.side for length in found.canvas)
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, fitted into {width} × {height}, tiles of {tiling.pixels} → "
            f"{columns} × {rows} patches → {found.columns} × {found.rows} without margins, pooled where too many → and "
            f"{found.rows} newlines, after {tiling.side**2} of an overview = {found.tokens} tokens"
        )
        return ImageArithmetic((width, height), (rows, columns), found.tokens, words)


def processor_class() -> Any:
    """transformers' processor without its video half; made when it is asked for."""
    from transformers import LlavaOnevisionProcessor

    class PicturesProcessor(LlavaOnevisionProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    PicturesProcessor.__name__ = LlavaOnevisionProcessor.__name__  # what is saved names transformers' own
    return PicturesProcessor


# ---------------------------------------------------------------------------------------------------------------------
# Tiles
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """A picture's place among the tokens of its tiles.

    canvas          (height, width) in pixels
    rows, columns   of cells, margins cut off, pooled
    y, x            the edges of rows and of columns in pixels of the picture: rows + 1 and columns + 1 numbers
    tokens          the overview's and newlines included
    """

    canvas: tuple[int, int]
    y: np.ndarray
    x: np.ndarray
    tokens: int

    @property
    def rows(self) -> int:
        return len(self.y) - 1

    @property
    def columns(self) -> int:
        return len(self.x) - 1


def _layout(tiling: _Tiling, size: Size) -> _Layout:
    """Of a picture of (width, height) pixels that is alone in its conversation."""
    from transformers.image_processing_utils import select_best_resolution

    width, height = size
    canvas = select_best_resolution((height, width), list(tiling.canvases))
    tiles = [length // tiling.pixels for length in canvas]
    rows, columns = (count * tiling.side for count in tiles)
    # The model finds the margins in whole tokens, by a rule of its own that need not agree with the pixels'.
    if width / height > columns / rows:
        above, left = (rows - int(round(height * (columns / width), 7))) // 2, 0
    else:
        above, left = 0, (columns - int(round(width * (rows / height), 7))) // 2
    scale = min(canvas[0] / height, canvas[1] / width)
    fitted = [
        min(math.ceil(length * scale), most) for length, most in zip((height, width), canvas, strict=True)
    ]
    ratio = math.sqrt((rows - 2 * above) * (columns - 2 * left) / (tiling.most_tiles * tiling.side**2))
    edges = []
    for axis, (length, margin) in enumerate(((height, above), (width, left))):
        kept = _tile_edges(tiling, tiles[axis])[margin : tiles[axis] * tiling.side - margin + 1]
        if ratio > POOLED_ABOVE:
            pooled = int((len(kept) - 1) // ratio)
            kept = np.interp(np.linspace(0, len(kept) - 1, pooled + 1), np.arange(len(kept)), kept)
        paste = (canvas[axis] - fitted[axis]) // 2
        edge = np.clip((kept - paste) * length / fitted[axis], 0, length)
        if len(edge) > 1:
            edge[0], edge[-1] = (
                0,
                length,
            )  # less than one token of the picture may be cut off with the margins
        edges.append(edge)
    y, x = edges
    return _Layout(canvas, y, x, tiling.side**2 + (len(y) - 1) * len(x))


def _tile_edges(tiling: _Tiling, tiles: int) -> np.ndarray:
    """Where tokens begin along one axis of a canvas, in pixels. 27 patches of 14 reach over 378 of a tile's 384 pixels:
    the last of a tile is given the 6 that no patch sees."""
    patch = tiling.pixels // tiling.side
    begin = np.arange(tiles)[:, None] * tiling.pixels + np.arange(tiling.side) * patch
    return np.append(begin.reshape(-1), tiles * tiling.pixels).astype(float)


def _tokens(tiling: _Tiling, start: int, bounded: Size, size: Size, alone: bool) -> ImageTokens:
    """Cells of a picture of (width, height) pixels, which the model gets scaled down to ``bounded``."""
    if not alone:
        return square_tokens(start, tiling.side, size, edges=_tile_edges(tiling, 1) / tiling.pixels)
    found = _layout(tiling, bounded)
    x, y = found.x * size[0] / bounded[0], found.y * size[1] / bounded[1]
    row, column = np.divmod(np.arange(found.rows * found.columns), found.columns)
    return ImageTokens(
        positions=start + tiling.side**2 + row * (found.columns + 1) + column,
        grid=(found.rows, found.columns),
        cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
        image_size_pixels=size,
        through_connector=False,
    )


def _count(tiling: _Tiling, size: Size, ref: ImageRef, alone: bool) -> int:
    """Tokens of one picture. Of several, each is a square of one tile and a newline."""
    if not alone:
        return tiling.side**2 + 1
    found = _layout(tiling, size)
    if found.rows < 1 or found.columns < 1:
        name = ref.written or str(ref.path)
        raise ValueError(
            f"image {name!r}: found {size[0]} × {size[1]} pixels, too thin for a row of tokens; cut it, or leave it out"
        )
    return found.tokens


def _of_processor(processor: Any) -> _Tiling:
    size = processor.image_processor.size
    return _Tiling(
        size["shortest_edge"] or size["height"],
        math.isqrt(processor.num_image_tokens),
        processor.image_processor.image_grid_pinpoints,
        _most_tiles(processor.vision_aspect_ratio),
    )


def _most_tiles(aspect_ratio: str) -> int:
    """9 in "anyres_max_9"."""
    return int(aspect_ratio.removeprefix("anyres_max_"))


def _pieces(conversation: Conversation, counts: Sequence[int]) -> list[tuple[Any, list[Piece]]]:
    """Each turn as its role and what it is made of. The model was published without a word on how it writes boxes:
    they are JSON, in thousandths of the picture."""
    left = iter(counts)
    turns: list[tuple[Any, list[Piece]]] = []
    for turn in conversation.turns:
        pieces: list[Piece] = []
        for part in turn.parts:
            if isinstance(part, ImageRef):
                pieces.append(Picture(next(left)))
            elif isinstance(part, BoxRef):
                pieces.append(as_json(part, [in_thousandths(box) for box in part.boxes]))
            elif isinstance(part, str):
                pieces.append(part)
        turns.append((turn.role, pieces))
    return turns


def _pixels(processor: Any, opened: Sequence[Any], bounded: Sequence[Size]) -> dict[str, torch.Tensor]:
    """``pixel_values`` Float[overviews and tiles, 3, pixels, pixels], ``image_sizes`` Int[pictures, 2] (height, width),
    ``batch_num_images`` Int[1]."""
    scaled = [
        one if one.size == size else one.resize(size, resample=processor.image_processor.resample)
        for one, size in zip(opened, bounded, strict=True)
    ]
    # A list in a list is one conversation: then several pictures are not tiled.
    found = processor.image_processor([scaled], return_tensors="pt")
    return {
        "pixel_values": torch.cat(list(found["pixel_values"])),
        "image_sizes": torch.as_tensor(found["image_sizes"]),
        "batch_num_images": torch.tensor([len(scaled)]),
    }


def _bounded(processor: Any, ref: ImageRef, size: Size) -> Size:
    """(width, height) with no more pixels than the processor and the picture itself allow, to the pixel below."""
    bounds = [getattr(processor.image_processor, "max_pixels", None), ref.max_pixels]
    most = min((one for one in bounds if one is not None), default=math.prod(size))
    scale = min(1.0, math.sqrt(most / math.prod(size)))
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


def _size(ref: ImageRef) -> Size:
    return ref.size_pixels or size_of(ref.path if ref.data is None else ref)
