"""Idefics3 (2024) and SmolVLM (2025): a picture is cut into square tiles, plus an overview of the whole.

A picture's longer side becomes ``size`` pixels, both sides are stretched to whole tiles of ``max_image_size``, and a
small overview follows; each of them is read by the tower alone and gives the same number of tokens:

    1600 × 900 pixels → 2048 × 1152 → 2048 × 1536 → 3 rows × 4 columns of 512 + overview → 13 × 64 tokens
    → <fake_token_around_image> <row_1_col_1> 64 × <image> <fake_…> <row_1_col_2> 64 × <image> … \\n … \\n\\n
      <fake_…> <global-img> 64 × <image> <fake_…>

Cells are the tokens of the tiles; the overview's tokens are of the same places, only coarser
(``ImageTokens.overview``). Marks and line breaks are of no place: what attention falls on them is none on the picture.
A picture of one tile is its overview, and cells are the overview's tokens.

SmolVLM reads videos too. Each frame is a picture of one tile, between the pictures in the order of the conversation:

    You are provided the following series of four frames from a 0:00:02 [H:MM:SS] video.\\n
    \\nFrame from 00:00: <fake_…> <global-img> 64 × <image> <fake_…> \\nFrame from 00:01: … \\n\\n
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

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
from finetune.families.parts import film_strips, idefics3_chat, tower
from finetune.families.parts.chat import encode_conversation
from finetune.families.parts.idefics3_chat import AROUND, END, IMAGE, OVERVIEW, views_of
from finetune.families.parts.parameter_counts import (
    decoder,
    linear,
    output_layer,
    require,
    siglip_tower,
)
from finetune.families.parts.processors import PUBLISHED, chat_template, language_shape, tower_shape
from finetune.families.parts.squares import cell_boxes
from finetune.families.parts.tiles import Size, squeezed_tokens
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.samples.conversation import Conversation, ImageRef, VideoRef
from finetune.samples.images import known_size, open_image
from finetune.samples.videos import frame_size, open_frames

if TYPE_CHECKING:
    import torch

IGNORED = -100
BLANK_PIXEL = 1.0  # white: a picture of zeros is taken for padding, and left out


class Idefics3Family:
    name = "idefics3"
    model_type = "idefics3"
    paths = ModulePaths(
        language=("model.text_model", "lm_head"),
        language_layers="model.text_model.layers",
        language_attention="self_attn",
        vision=("model.vision_model",),
        vision_layers="model.vision_model.encoder.layers",
        vision_attention="self_attn",
        connector=("model.connector",),
        connector_attention=None,
    )
    lora_targets = DECODER_LAYERS
    published_longest = 4  # tiles of the longer side, as published processors say
    reads_videos: ClassVar[bool] = False

    def matches(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == self.model_type and hasattr(config, "vision_config")

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
        refs = conversation.media if self.reads_videos else conversation.images
        seen = [self._seen(processor, ref, opened=media) for ref in refs]
        tiles = [one.tiles for one in seen if isinstance(one.ref, ImageRef)]
        shown = iter(tiles)
        chat = encode_conversation(
            idefics3_chat.Template(processor, tiles),
            conversation,
            lambda part: idefics3_chat.pieces(processor, part, shown),
            image_token=IMAGE,
            end_of_turn=END,
            add_generation_prompt=add_generation_prompt,
        )
        starts = iter(chat.image_starts)
        return chat.encoded(
            images=(one.tokens(starts, processor.image_seq_len) for one in seen) if media else (),
            media=_pixels(processor, seen) if media and seen else {},
        )

    def _seen(self, processor: Any, ref: ImageRef | VideoRef, *, opened: bool) -> Seen:
        """A picture or a video, opened or not, and the tiles it will be read in."""
        if isinstance(ref, VideoRef):
            frames = open_frames(ref, self.load_image) if opened else ()
            size = frames[0].size if frames else frame_size(ref)
            return Seen(ref, size, frames, (1, 1), _longest_of_videos(processor))
        pictures = (self.load_image(ref),) if opened else ()
        size = pictures[0].size if pictures else known_size(ref)
        longest, tiles = _longest(processor, ref, size), (1, 1)
        if processor.image_processor.do_image_splitting:
            tiles = tiles_of(size, longest, _tile(processor))
        return Seen(ref, size, pictures, tiles, longest)

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        """Tokens at which an answer ends."""
        end, eos = processor.tokenizer.convert_tokens_to_ids(END), processor.tokenizer.eos_token_id
        return tuple(dict.fromkeys((end, eos)))

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """Transformers' own, but resizing with Pillow whatever is installed, and without its video half."""
        from transformers.models.auto.video_processing_auto import get_video_processor_config
        from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

        tokenizer = load_tokenizer(name_or_path, **hub)
        settings, _ = Idefics3Processor.get_processor_dict(name_or_path, **hub)
        template = chat_template(name_or_path, settings, tokenizer)
        pictures = self.image_processor_class().from_pretrained(name_or_path, **hub)
        videos = get_video_processor_config(name_or_path, **hub)
        return self.processor(pictures, tokenizer, settings.get("image_seq_len", 169), template, videos)

    def image_processor_class(self) -> Any:
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        return Idefics3ImageProcessorPil

    def processor(
        self,
        pictures: Any,
        tokenizer: Any,
        image_seq_len: int,
        template: str,
        videos: dict[str, Any] | None = None,
    ) -> Any:
        from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

        return Idefics3Processor(pictures, tokenizer, image_seq_len, chat_template=template)

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """Written into ``image_processor.size``, as the longest side of whole tiles that keeps any shape below it.

        Raises ValueError for ``min_pixels``: every picture's longer side is made as long as it may be.
        """
        if min_pixels is not None:
            raise ValueError(
                f"--min_pixels {min_pixels:,}: small pictures of {self.name} are always made as large as large ones; "
                "leave it out, and give --max_pixels alone"
            )
        if max_pixels is None:
            return
        tile = _tile(processor)
        if max_pixels < tile**2:
            raise ValueError(
                f"--max_pixels {max_pixels:,}: expected at least {tile**2:,}, one tile of {self.name} "
                f"({tile} × {tile} pixels)"
            )
        if not processor.image_processor.do_image_splitting:
            raise ValueError(
                f"--max_pixels {max_pixels:,}: this processor cuts no tiles (do_image_splitting is false), so all "
                f"pictures become {tile} × {tile} pixels; leave it out"
            )
        processor.image_processor.size = _size_dict(math.isqrt(max_pixels) // tile * tile)

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """``<fake_token_around_image><global-img>``, a white tile, ``<fake_token_around_image>``."""
        import torch

        tile, count = _tile(processor), processor.image_seq_len
        around, image = processor.tokenizer.convert_tokens_to_ids([AROUND, IMAGE])
        # A mark may be a control token or, in older vocabularies, several tokens of text.
        mark = processor.tokenizer(OVERVIEW, add_special_tokens=False)["input_ids"]
        ids = np.array([around, *mark, *[image] * count, around], dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(image_tokens([1 + len(mark)], (1, 1), (tile, tile), count),),
            media={"pixel_values": torch.full((1, 1, 3, tile, tile), BLANK_PIXEL)},
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [1, tokens]: each sample's tokens counted from 0, by which transformers tells them apart."""
        return {"position_ids": restarting_positions(samples)[None]}

    # --- configuration alone -----------------------------------------------------------------------------
    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        """A picture's tiles, row by row, joined to one grid, then its overview; a video's frames, joined to a strip.
        Pictures and videos are numbered together, in the order of the conversation. The model is not told which tiles
        make a picture; ``inputs`` must."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        of_pictures = tower.tiles_of_images(inputs, len(inputs["inputs_embeds"]))
        return tower.tiled(of_pictures, (side, side), overview_first=False)

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            return language_shape(config.text_config)
        return tower_shape(config.vision_config, "patches at patches of the tile")

    def parameter_counts(self, config: Any) -> ParameterCounts:
        text, vision = config.text_config, config.vision_config
        merged = vision.hidden_size * config.scale_factor**2
        require(text.model_type, "llama")
        parts = {
            "model.vision_model": siglip_tower(vision, f"{self.model_type}_vision"),
            "model.connector": linear(merged, text.hidden_size, bias=False),
            "model.text_model": decoder(text),
        }
        return ParameterCounts(parts | output_layer(config), text.num_hidden_layers, vision.num_hidden_layers)

    def image_arithmetic(
        self, config: Any, size_pixels: Size, settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        vision, factor = config.vision_config, config.scale_factor
        tile, side = vision.image_size, vision.image_size // vision.patch_size
        longest, splits = self.published_longest * tile, True
        if settings is not None:
            longest = (settings.get("size") or self.image_processor_class().size)["longest_edge"]
            if "do_image_splitting" in settings:  # null is no
                splits = bool(settings["do_image_splitting"])
            else:
                splits = self.image_processor_class().do_image_splitting
        rows, columns = tiles_of(size_pixels, longest, tile) if splits else (1, 1)
        views = views_of((rows, columns))
        count = (side // factor) ** 2
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, resized to {columns * tile} × {rows * tile} → {columns} × "
            f"{rows} tiles of {tile}{' and an overview' if views > 1 else ''}"
            f"{PUBLISHED if settings is None else ''} → {side} × {side} patches of "
            f"{vision.patch_size} each → merged {factor} × {factor} → {views} × {count} = {views * count} tokens"
        )
        return ImageArithmetic(
            (columns * tile, rows * tile), (rows * side, columns * side), views * count, words
        )


class SmolVLMFamily(Idefics3Family):
    """The same shape under another name, which reads videos too."""

    name = "smolvlm"
    model_type = "smolvlm"
    reads_videos = True

    def image_processor_class(self) -> Any:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        return SmolVLMImageProcessorPil

    def processor(
        self,
        pictures: Any,
        tokenizer: Any,
        image_seq_len: int,
        template: str,
        videos: dict[str, Any] | None = None,
    ) -> Any:
        from finetune.families.parts.idefics3_processors import SmolVLMProcessor

        return SmolVLMProcessor(pictures, tokenizer, image_seq_len, template, videos)


class Seen(NamedTuple):
    """A picture or a video that was opened, or whose header was read.

    size      (width, height) in the file, of a frame
    opened    the picture, or the video's frames; () of a header alone
    tiles     (rows, columns) of the picture, or of each frame
    longest   pixels of the longer side, before it is stretched to tiles
    """

    ref: ImageRef | VideoRef
    size: Size
    opened: Sequence[Any]
    tiles: tuple[int, int]
    longest: int

    def tokens(self, starts: Iterator[int], count: int) -> ImageTokens:
        """starts   the first token of each view of the picture, or of each frame; count: tokens of each"""
        if isinstance(self.ref, ImageRef):
            views = [next(starts) for _ in range(views_of(self.tiles))]
            return image_tokens(views, self.tiles, self.size, count)
        seconds = self.ref.seconds
        return film_strips.strip(
            [image_tokens([next(starts)], self.tiles, self.size, count) for _ in seconds], seconds
        )


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------


def tiles_of(size: Size, longest: int, tile: int) -> tuple[int, int]:
    """(rows, columns) of tiles of a picture of (width, height), its longer side made ``longest`` pixels.

    The arithmetic of transformers' image processor, roundings included: 1600 × 900 with 2048 and 512 → (3, 4).
    """
    from transformers.models.idefics3 import image_processing_pil_idefics3 as theirs

    width, height = size
    height, width = theirs._resize_output_size_rescale_to_max_len(height, width, max_len=longest)
    height, width = theirs._resize_output_size_scale_below_upper_bound(
        height, width, max_len=theirs.MAX_IMAGE_SIZE
    )
    shape = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        return math.ceil(int(columns * tile / shape) / tile), columns
    rows = math.ceil(height / tile)
    return rows, math.ceil(int(rows * tile * shape) / tile)


def _tile(processor: Any) -> int:
    return processor.image_processor.max_image_size["longest_edge"]


def _size_dict(longest: int) -> Any:
    from transformers.image_utils import SizeDict

    return SizeDict(longest_edge=longest)


def _longest(processor: Any, ref: ImageRef, size: Size) -> int:
    """Pixels of the longer side: the processor's, or as many whole tiles as the picture's own budget allows (one, where
    it allows less)."""
    most, tile = processor.image_processor.size["longest_edge"], _tile(processor)
    if ref.max_pixels is None:
        return most
    for longest in range(most, tile, -tile):
        if math.prod(tiles_of(size, longest, tile)) * tile**2 <= ref.max_pixels:
            return longest
    return min(most, tile)


def _longest_of_videos(processor: Any) -> int:
    """Pixels of a frame's longer side before it is squeezed into a tile: from the checkpoint's video settings, or where
    it has none, from those of pictures."""
    said = processor.videos or {}
    size = (
        said.get("size") or said.get("video_sampling", {}).get("video_size") or processor.image_processor.size
    )
    return size["longest_edge"]


def _pixels(processor: Any, seen: Sequence[Seen]) -> dict[str, torch.Tensor]:
    """``pixel_values`` Float[views and frames of all, 1, 3, tile, tile], in the order of the conversation: each view
    goes as a picture of its own, so that batches need no padding, and no ``pixel_attention_mask``."""
    import torch

    found = [
        (_view_pixels if isinstance(one.ref, ImageRef) else _frame_pixels)(processor, one) for one in seen
    ]
    return {"pixel_values": torch.cat(found)[:, None]}


def _view_pixels(processor: Any, one: Seen) -> torch.Tensor:
    """Of a picture's tiles and its overview."""
    views = processor.image_processor(
        [[one.opened[0]]], size=dict(_size_dict(one.longest)), return_tensors="pt", return_row_col_info=True
    )
    made = (views["rows"][0][0] or 1, views["cols"][0][0] or 1)
    assert made == one.tiles, f"counted {one.tiles} tiles, the image processor made {made}"
    return views["pixel_values"][0]


def _frame_pixels(processor: Any, one: Seen) -> torch.Tensor:
    """Of a video's frames: the longer side first, then a square, as transformers' processor resizes them."""
    from transformers.models.idefics3 import image_processing_pil_idefics3 as theirs

    width, height = one.size
    longest = min(one.longest, theirs.MAX_IMAGE_SIZE)
    height, width = theirs._resize_output_size_rescale_to_max_len(height, width, max_len=longest)
    tile = _tile(processor)
    return film_strips.pixels(processor, one.opened, [(width, height), (tile, tile)])


# ---------------------------------------------------------------------------------------------------------------------
# Places
# ---------------------------------------------------------------------------------------------------------------------


def image_tokens(starts: Sequence[int], tiles: tuple[int, int], size: Size, count: int) -> ImageTokens:
    """A picture of (width, height) pixels whose views' tokens begin at ``starts``, ``count`` in each: its tiles', and
    after several the overview's.

    The resize stretches both sides to whole tiles, so all cells are of one size in the original too. 1 × 2 tiles of
    2 × 2 tokens from 5 and 11 on, positions row by row over the picture: [[5, 6, 11, 12], [7, 8, 13, 14]].
    """
    side, is_one = math.isqrt(count), tiles == (1, 1)
    cut = tiles[0] * tiles[1]
    rows, columns = tiles[0] * side, tiles[1] * side
    places = np.asarray(starts[:cut]).reshape(*tiles, 1, 1) + np.arange(count).reshape(1, 1, side, side)
    return ImageTokens(
        positions=places.transpose(0, 2, 1, 3).reshape(-1),
        grid=(rows, columns),
        cell_boxes_pixels=cell_boxes((rows, columns), size),
        image_size_pixels=size,
        through_connector=False,
        overview=None if is_one else squeezed_tokens(starts[cut], side, size),
        tiles=None if is_one else tiles,
    )
