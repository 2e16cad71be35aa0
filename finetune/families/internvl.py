"""InternVL in transformers' layout (InternVL3, InternVL3.5; 2025): pictures in tiles, and an overview behind them.

A picture is stretched over as many tiles (of 448 × 448 pixels) as come nearest to its shape, at most 12; where it is
more than one, the picture squeezed into one tile follows. A tile is 32 × 32 patches and a class token, which is left
out; a pixel shuffle makes one of 2 × 2 patches, and two linear layers make a token of each:

    1000 × 500 pixels → 896 × 448, 2 × 1 tiles and an overview → <img> 3 × 256 × <IMG_CONTEXT> </img>, 32 × 16 cells

Cells are the tokens of the tiles, put side by side; the overview's tokens are of the same places, only coarser
(``ImageTokens.overview``). A picture of one tile has no overview.

A video is its frames, each squeezed into one tile, between the pictures in the order of the conversation:

    Frame1: <img> 256 × <IMG_CONTEXT> </img>\\nFrame2: <img> 256 × <IMG_CONTEXT> </img>\\n
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetune.families.base import (
    DECODER_LAYERS,
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ImageTokens,
    ModulePaths,
    ParameterCounts,
    TowerSequence,
    restarting_positions,
)
from finetune.families.parts import film_strips, tower
from finetune.families.parts.boxes import in_thousandths, without_box
from finetune.families.parts.chat import Control, Picture, Piece, Slots, encode_conversation
from finetune.families.parts.parameter_counts import (
    layer_norm,
    linear,
    require,
    with_projector,
)
from finetune.families.parts.processors import (
    PUBLISHED,
    chat_template,
    language_shape,
    tower_shape,
    without_videos,
)
from finetune.families.parts.squares import cell_boxes
from finetune.families.parts.tiles import Size, squeezed_tokens
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Part, VideoRef
from finetune.samples.images import known_size, open_image
from finetune.samples.videos import frame_size, open_frames

if TYPE_CHECKING:
    import torch

IGNORED = -100
IMAGE, BEGIN, END = "<IMG_CONTEXT>", "<img>", "</img>"
IM_END, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
PUBLISHED_TILES = (1, 12)  # least and most, as published processors say

Grid = tuple[int, int]  # rows, columns


class InternVLFamily:
    name = "internvl"
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.vision_tower",),
        vision_layers="model.vision_tower.encoder.layer",
        vision_attention="attention",
        connector=("model.multi_modal_projector",),
        connector_attention=None,
    )
    lora_targets = DECODER_LAYERS

    def matches(self, config: Any) -> bool:
        """Before Qwen2, Qwen3 or Llama. Those before mixtures of experts, or with sinks in their attention, are
        others."""
        return (
            getattr(config, "model_type", None) == "internvl"
            and config.vision_config.model_type == "internvl_vision"
            and config.text_config.model_type in ("llama", "qwen2", "qwen3")
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
        """Through the model's own chat template. With ``media=False`` headers tell the sizes of pictures and videos."""
        seen = [self._seen(processor, ref, opened=media) for ref in conversation.media]
        side = math.isqrt(processor.image_seq_length)
        tiles = iter([one.tiles for one in seen if isinstance(one.ref, ImageRef)])
        chat = encode_conversation(
            _Framed(processor),
            conversation,
            lambda part: _pieces(part, tiles, side**2),
            image_token=IMAGE,
            end_of_turn=IM_END,
            add_generation_prompt=add_generation_prompt,
        )
        starts = iter(chat.image_starts)
        return chat.encoded(
            images=(one.tokens(starts, side) for one in seen) if media else (),
            media=_media(processor, seen) if media and seen else {},
        )

    def _seen(self, processor: Any, ref: ImageRef | VideoRef, *, opened: bool) -> Seen:
        """A picture or a video, opened or not, and the tiles it will be read in."""
        if isinstance(ref, VideoRef):
            frames = open_frames(ref, self.load_image) if opened else ()
            return Seen(ref, frames[0].size if frames else frame_size(ref), frames, (1, 1))
        pictures = (self.load_image(ref),) if opened else ()
        size = pictures[0].size if pictures else known_size(ref)
        bounds = _bounds(processor, ref)
        return Seen(ref, size, pictures, _tiles(size, _pixels(processor), bounds), bounds)

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        return tuple(processor.tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]))

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """InternVLProcessor without its video half, which asks for torchvision."""
        from transformers.models.auto.video_processing_auto import get_video_processor_config
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        tokenizer = load_tokenizer(name_or_path, **hub)
        settings, _ = processor_class().get_processor_dict(name_or_path, **hub)
        kept = ("image_seq_length",)
        processor = processor_class()(
            GotOcr2ImageProcessorPil.from_pretrained(name_or_path, **hub),
            tokenizer,
            chat_template=chat_template(name_or_path, settings, tokenizer),
            **{name: settings[name] for name in kept if name in settings},
        )
        processor.videos = get_video_processor_config(name_or_path, **hub)
        return processor

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """As whole tiles, the overview not counted: ``image_processor.min_patches`` and ``max_patches``."""
        pictures, tile = processor.image_processor, _pixels(processor) ** 2
        least = pictures.min_patches if min_pixels is None else math.ceil(min_pixels / tile)
        most = pictures.max_patches if max_pixels is None else max_pixels // tile
        if most < 1:
            raise ValueError(
                f"--max_pixels {max_pixels:,}: expected at least {tile:,}, one tile of {self.name}"
            )
        if not 1 <= least <= most:
            raise ValueError(
                f"--min_pixels, --max_pixels: found at least {least} and at most {most} tiles of {tile:,} pixels, "
                "expected 1 <= least <= most; give both"
            )
        pictures.min_patches, pictures.max_patches = least, most

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """``<img>``, one tile of zeros (the mean colour), ``</img>``."""
        import torch

        count, pixels = processor.image_seq_length, _pixels(processor)
        names = [BEGIN, *[IMAGE] * count, END]
        ids = np.array(processor.tokenizer.convert_tokens_to_ids(names), dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(tiled_tokens(1, (1, 1), math.isqrt(count), (pixels, pixels)),),
            media={"pixel_values": torch.zeros(1, 3, pixels, pixels)},
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [1, tokens]: each sample's tokens counted from 0, by which transformers tells them apart."""
        return {"position_ids": restarting_positions(samples)[None]}

    # --- configuration alone -----------------------------------------------------------------------------
    def not_read(self, config: Any) -> tuple[str, ...]:
        """The token that stood for hidden patches when the tower was trained; and what is behind the layer that is
        read, where that is not the tower's output (−1)."""
        hidden = "model.vision_tower.embeddings.mask_token"
        if config.vision_feature_layer == -1:
            return (hidden,)
        return (hidden, *tower.not_read(self.paths, config, "layernorm"))

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        """A class token and the patches of one tile: a picture's tiles, row by row, joined to one grid, then its
        overview; a video's frames, joined to a strip. Pictures and videos are numbered together, in the order of the
        conversation. The model does not know which tiles make a picture; ``inputs`` must say."""
        of_pictures = tower.tiles_of_images(inputs, len(inputs["hidden_states"]))
        return tower.tiled(of_pictures, _patches(config), overview_first=False, class_tokens=1)

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            return language_shape(config.text_config)
        return tower_shape(config.vision_config, "patches at patches of their tile, and a class token")

    def parameter_counts(self, config: Any) -> ParameterCounts:
        wide = config.text_config.hidden_size
        merged = config.vision_config.hidden_size * int(1 / config.downsample_ratio) ** 2
        projector = layer_norm(merged) + linear(merged, wide) + linear(wide, wide)
        return with_projector(config, _tower(config.vision_config), projector)

    def image_arithmetic(
        self, config: Any, size_pixels: Size, settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        pixels = config.vision_config.image_size[0]
        bounds = PUBLISHED_TILES if settings is None else _bounds_of(settings)
        rows, columns = _tiles(size_pixels, pixels, bounds)
        down, across = _patches(config)
        merge = round(1 / config.downsample_ratio)
        views, each = _views((rows, columns)), down * across // merge**2
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, resized to {columns * pixels} × {rows * pixels} → {columns} "
            f"× {rows} tiles of {pixels}{' and an overview' if views > 1 else ''}"
            f"{PUBLISHED if settings is None else ''} → {across} × {down} patches each → "
            f"merged {merge} × {merge} → {views} × {each} = {views * each} tokens"
        )
        return ImageArithmetic(
            (columns * pixels, rows * pixels), (rows * down, columns * across), views * each, words
        )


def _tower(vision: Any) -> int:
    """Parameters of InternViT, whose layers scale what they add and may norm queries and keys."""
    width, inner, bias = vision.hidden_size, vision.intermediate_size, vision.attention_bias
    require(width % vision.num_attention_heads, 0)
    require(
        (vision.norm_type, vision.use_mask_token, vision.use_absolute_position_embeddings),
        ("layer_norm", False, True),
    )
    (height, across), patch = vision.image_size, vision.patch_size
    patches = (across // patch[1]) * (height // patch[0])
    stem = linear(vision.num_channels * patch[0] * patch[1], width) + width + (patches + 1) * width
    layer = (
        linear(width, 3 * width, bias=bias) + linear(width, width) + (2 * width if vision.use_qk_norm else 0)
    )
    layer += linear(width, inner) + linear(inner, width) + 2 * layer_norm(width) + 2 * width
    last_norm = 0 if vision.use_mean_pooling else layer_norm(width)
    return stem + vision.num_hidden_layers * layer + last_norm


def processor_class() -> Any:
    """transformers' processor without video support; created on first use."""
    from transformers import InternVLProcessor

    return without_videos(InternVLProcessor)


class _Framed:
    """A processor whose chat template has ``<img>`` and ``</img>`` around a picture's place; transformers' own
    processor puts them there after the template."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        written = self.processor.apply_chat_template(messages, **options)
        bare = written.replace(f"{BEGIN}{IMAGE}{END}", IMAGE)
        return bare.replace(IMAGE, f"{BEGIN}{IMAGE}{END}")


# ---------------------------------------------------------------------------------------------------------------------
# Tiles
# ---------------------------------------------------------------------------------------------------------------------


def tiled_tokens(start: int, tiles: Grid, side: int, size: Size) -> ImageTokens:
    """A picture of (width, height) pixels stretched over (rows, columns) of tiles, each of side × side tokens, tile
    after tile from ``start`` on, and an overview after the last of several.

    1 × 2 tiles of 2 × 2 tokens, from 0: cells, row by row, are tokens 0, 1, 4, 5 and 2, 3, 6, 7; 8 to 11 the overview.
    """
    rows, columns = tiles[0] * side, tiles[1] * side
    is_one = tiles == (1, 1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    tile = row // side * tiles[1] + column // side
    return ImageTokens(
        positions=start + tile * side**2 + row % side * side + column % side,
        grid=(rows, columns),
        cell_boxes_pixels=cell_boxes((rows, columns), size),
        image_size_pixels=size,
        through_connector=False,
        overview=None if is_one else squeezed_tokens(start + rows * columns, side, size),
        tiles=None if is_one else tiles,
    )


def _tiles(size: Size, pixels: int, bounds: tuple[int, int]) -> Grid:
    """(rows, columns) of tiles for a picture of (width, height) pixels; ``bounds``: least and most tiles."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas((size[1], size[0]), (pixels, pixels), *bounds)
    return rows, columns


def _views(tiles: Grid) -> int:
    """Pictures that the tower sees of one: its tiles, and an overview where they are several."""
    count = tiles[0] * tiles[1]
    return count if count == 1 else count + 1


def _bounds_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Least and most tiles by the settings of a processor."""
    if "min_patches" in settings and "max_patches" in settings:
        return settings["min_patches"], settings["max_patches"]
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil as Usual

    least = settings.get("min_patches", Usual.min_patches)
    return least, settings.get("max_patches", Usual.max_patches)


def _bounds(processor: Any, ref: ImageRef) -> tuple[int, int]:
    """Least and most tiles of one picture: the processor's, and no more than it may have itself."""
    least, most = processor.image_processor.min_patches, processor.image_processor.max_patches
    if ref.max_pixels is not None:
        most = max(min(most, ref.max_pixels // _pixels(processor) ** 2), 1)
    return min(least, most), most


def _pixels(processor: Any) -> int:
    """Pixels a side of a tile."""
    return processor.image_processor.size["height"]


def _patches(config: Any) -> Grid:
    """(rows, columns) of patches of a tile."""
    vision = config.vision_config
    return vision.image_size[0] // vision.patch_size[0], vision.image_size[1] // vision.patch_size[1]


def _written_boxes(ref: BoxRef) -> Sequence[str | Control]:
    """``<ref>dog</ref><box>[[250, 0, 500, 1000]]</box>`` in thousandths of the picture (InternVL's documentation, "Chat
    data format", grounding and detection data)."""
    label = () if ref.label is None else (Control("<ref>"), ref.label, Control("</ref>"))
    if not ref.boxes:
        return label
    if (written := without_box(ref)) is not None:
        return (written,)
    corners = [list(in_thousandths(box)) for box in ref.boxes]
    return (*label, Control("<box>"), str(corners), Control("</box>"))


class Seen(NamedTuple):
    """A picture or a video that was opened, or whose header was read.

    size     (width, height) in the file, of a frame
    opened   the picture, or the video's frames; () of a header alone
    tiles    of the picture, or of each frame
    bounds   least and most tiles of a picture
    """

    ref: ImageRef | VideoRef
    size: Size
    opened: Sequence[Any]
    tiles: Grid
    bounds: tuple[int, int] = (1, 1)

    def tokens(self, starts: Iterator[int], side: int) -> ImageTokens:
        """starts   the first token of the picture, or of each frame"""
        if isinstance(self.ref, ImageRef):
            return tiled_tokens(next(starts), self.tiles, side, self.size)
        seconds = self.ref.seconds
        stills = [tiled_tokens(next(starts), self.tiles, side, self.size) for _ in seconds]
        return film_strips.strip(stills, seconds)


def _frames(ref: VideoRef, each: int) -> list[Piece]:
    """What stands for a video, and the line break that the published templates put behind each picture and video."""
    pieces: list[Piece] = []
    for number in range(len(ref.seconds)):
        pieces += [f"Frame{number + 1}: ", Control(BEGIN), Slots(IMAGE, each), Control(END), "\n"]
    return pieces


def _pieces(part: Part, tiles: Iterator[Grid], each: int) -> Sequence[Piece]:
    """What a part of a turn becomes.

    tiles   (rows, columns) of each picture, in order
    each    tokens of a tile
    """
    if isinstance(part, ImageRef):
        return (Picture(_views(next(tiles)) * each),)
    if isinstance(part, VideoRef):
        return _frames(part, each)
    return _written_boxes(part) if isinstance(part, BoxRef) else (part,)


def _media(processor: Any, seen: Sequence[Seen]) -> dict[str, torch.Tensor]:
    """``pixel_values`` Float[tiles, overviews and frames, 3, pixels, pixels], in the order of the conversation."""
    import torch

    side = (_pixels(processor), _pixels(processor))
    return {
        "pixel_values": torch.cat([
            _tile_pixels(processor, one)
            if isinstance(one.ref, ImageRef)
            else film_strips.pixels(processor, one.opened, [side])
            for one in seen
        ])
    }  # fmt: skip


def _tile_pixels(processor: Any, one: Seen) -> torch.Tensor:
    """Of a picture."""
    # The processor's own file says False; transformers' processor overrules it in each call.
    options = {"crop_to_patches": True, "min_patches": one.bounds[0], "max_patches": one.bounds[1]}
    found = processor.image_processor(one.opened[0], return_tensors="pt", **options)["pixel_values"]
    assert len(found) == _views(one.tiles), (
        f"counted {_views(one.tiles)} tiles, the image processor made {len(found)}"
    )
    return found
