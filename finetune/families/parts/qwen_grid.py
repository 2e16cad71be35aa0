"""Shared by Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: pictures of any shape become grids of cells, one token each.
Videos are ``qwen_video``'s.

A picture is resized to whole cells of ``patch_size · merge_size`` pixels a side, keeping its shape as nearly as that
allows; patches of ``patch_size`` go through the tower, and a merger makes one token of ``merge_size²`` of them:

    100 × 75 pixels → 112 × 84, cells of 28 → 8 × 6 patches → 4 × 3 cells
    → <|vision_start|> 12 × <|image_pad|> <|vision_end|>
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
from finetune.families.parts import qwen_video, tower
from finetune.families.parts.chat import Control, Picture, Piece, encode_conversation
from finetune.families.parts.parameter_counts import decoder, output_layer, require
from finetune.families.parts.processors import PUBLISHED
from finetune.families.parts.qwen_video import Film, rotary_positions
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Part, VideoRef
from finetune.samples.images import open_image, size_of
from finetune.samples.videos import frame_size, open_frames

if TYPE_CHECKING:
    import torch

IGNORED = -100
IMAGE = 1  # in mm_token_type_ids: 0 text, 1 picture, 2 video
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
IM_END, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
MOST_ELONGATED = 200  # of width to height, or the other way round: transformers' own bound

Size = tuple[int, int]  # width, height in pixels


class QwenGridFamily:
    """All but what a family's file says: modules, the processor, how boxes are written, how the tower attends."""

    name: str
    model_type: ClassVar[str]
    paths: ModulePaths
    lora_targets = DECODER_LAYERS
    published_pixels: ClassVar[
        tuple[int, int]
    ]  # least and most pixels of a picture, as published processors say

    video_pixels: ClassVar[
        tuple[int, int]
    ]  # the same of a frame; of all frames together where they have time stamps
    has_time_stamps: ClassVar[bool] = False  # between the frames of a video

    def written_boxes(self, ref: BoxRef, resized: Size) -> Sequence[str | Control]:
        """Boxes as the family was trained to read and say them; ``resized``: their picture, after the resize."""
        raise NotImplementedError

    def processor_class(self) -> Any:
        """The class of the family's processor; imported on first use."""
        raise NotImplementedError

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
        seen = [self._seen(processor, ref, opened=media) for ref in conversation.media]
        shown = iter(seen)
        chat = encode_conversation(
            self.chat_template(processor),
            conversation,
            lambda part: self._pieces(processor, part, shown, seen),
            image_token=IMAGE_PAD,
            end_of_turn=IM_END,
            add_generation_prompt=add_generation_prompt,
        )
        kinds = np.zeros(len(chat.input_ids), dtype=np.int64)
        starts = iter(chat.image_starts)
        images = []
        for one in seen:
            # A video has a start for each frame behind a time stamp.
            several = one.film is not None and self.has_time_stamps
            places = [next(starts) for _ in range(one.film.grid[0] if one.film and several else 1)]
            images.append(one.tokens(processor, places))
            kinds[images[-1].positions] = IMAGE if one.film is None else qwen_video.VIDEO
        return chat.encoded(
            images=images if media else (),
            media=self._media(processor, seen) if media else {},
            per_token={"mm_token_type_ids": kinds},
        )

    def _seen(self, processor: Any, ref: ImageRef | VideoRef, *, opened: bool) -> Seen:
        """A picture or a video, opened or not, and what it will be resized to."""
        if isinstance(ref, ImageRef):
            picture = self.load_image(ref) if opened else None
            size = _size(ref) if picture is None else picture.size
            return Seen(size, resize(processor, size, _budget(processor, ref), _name(ref)), (picture,), ref)
        frames = open_frames(ref, self.load_image) if opened else ()
        size = frames[0].size if frames else frame_size(ref)
        merged = processor.image_processor.temporal_patch_size
        new = self.resized_video(processor, ref, size)
        one = qwen_video.film(ref, size, new, cell=cell_side(processor), merged=merged)
        return Seen(size, new, tuple(frames), ref, one)

    def resized_picture(self, processor: Any, ref: ImageRef) -> Size:
        """(width, height) of a picture as the model gets it, from its header alone."""
        return self._seen(processor, ref, opened=False).resized

    def resized_video(self, processor: Any, ref: VideoRef, size: Size) -> Size:
        """(width, height) of a video's frames after the resize: each within the bounds of a picture."""
        least, most = qwen_video.bounds(processor, self.video_pixels)
        most = most if ref.max_pixels is None else min(most, ref.max_pixels)
        return resized(size, cell_side(processor), (min(least, most), most), repr(ref.written))

    def _media(self, processor: Any, seen: Sequence[Seen]) -> dict[str, torch.Tensor]:
        import torch

        pictures = [one for one in seen if one.film is None]
        films = [(one, one.film) for one in seen if one.film is not None]
        media = _pixels(processor, pictures)
        if films:
            merge = processor.image_processor.merge_size
            grids = [(one.grid[0], one.grid[1] * merge, one.grid[2] * merge) for _, one in films]
            values = [qwen_video.pixel_values(processor, one.frames, film) for one, film in films]
            media |= {"pixel_values_videos": torch.cat(values), "video_grid_thw": torch.tensor(grids)}
        return media

    def chat_template(self, processor: Any) -> Any:
        """What writes conversations: the processor, or one that has its ``tokenizer`` and ``apply_chat_template``."""
        return processor

    def _pieces(
        self, processor: Any, part: Part, shown: Iterator[Seen], seen: Sequence[Seen]
    ) -> Sequence[Piece]:
        """What a part of a turn becomes.

        shown   the pictures and videos that are still to come, in order
        seen    all of them, which boxes refer to by number
        """
        if isinstance(part, ImageRef):
            return (Picture(_tokens(processor, next(shown).resized)),)
        if isinstance(part, VideoRef):
            film = next(shown).film
            assert film is not None
            return (qwen_video.with_times if self.has_time_stamps else qwen_video.without_times)(film)
        return self.written_boxes(part, seen[part.image].resized) if isinstance(part, BoxRef) else (part,)

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        """Tokens at which an answer ends."""
        return tuple(processor.tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]))

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        return self.processor_class().from_pretrained(name_or_path, **hub)

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """Written into ``image_processor.size``, which resizing reads and ``save_pretrained`` keeps.

        Trap: attributes ``min_pixels`` and ``max_pixels``, where somebody has set them, overrule it in calls, and what
        counts tokens without a picture does not see them. They go.
        """
        least, most = _processor_budget(processor)
        least = least if min_pixels is None else min_pixels
        most = most if max_pixels is None else max_pixels
        cell = cell_side(processor) ** 2
        if most < cell:
            raise ValueError(
                f"--max_pixels {most:,}: expected at least {cell:,}, one cell of {self.name} "
                f"({cell_side(processor)} × {cell_side(processor)} pixels, one token)"
            )
        if not 0 < least <= most:
            raise ValueError(
                f"--min_pixels {least:,}{'' if min_pixels else ' (from the processor)'}, --max_pixels {most:,}"
                f"{'' if max_pixels else ' (from the processor)'}: expected 0 < min_pixels <= max_pixels; give both"
            )
        for name in ("min_pixels", "max_pixels"):
            vars(processor.image_processor).pop(name, None)
        processor.image_processor.size = _size_dict(least, most)

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """``<|vision_start|><|image_pad|><|vision_end|>``: one cell of zeros, the mean colour."""
        import torch

        image = processor.image_processor
        ids = processor.tokenizer.convert_tokens_to_ids([VISION_START, IMAGE_PAD, VISION_END])
        numbers = 3 * image.temporal_patch_size * image.patch_size**2
        side = cell_side(processor)
        return Encoded(
            input_ids=np.array(ids, dtype=np.int64),
            labels=np.full(3, IGNORED, dtype=np.int64),
            turn_spans=(),
            images=(image_tokens(1, (1, 1), (side, side)),),
            media={
                "pixel_values": torch.zeros(image.merge_size**2, numbers),
                "image_grid_thw": torch.tensor([[1, image.merge_size, image.merge_size]]),
            },
            per_token={"mm_token_type_ids": np.array([0, IMAGE, 0], dtype=np.int64)},
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [4, 1, tokens]: each sample's tokens counted from 0, then time, row and column.

        Trap: with the last three alone, transformers does not see where samples begin, and they see each other.
        """
        import torch

        rotary = torch.cat([rotary_positions(one, self.steps_of_time(config, one)) for one in samples], dim=1)
        return {"position_ids": torch.cat([restarting_positions(samples)[None], rotary])[:, None]}

    def steps_of_time(self, config: Any, encoded: Encoded) -> Sequence[float]:
        """How far the frames of each video are apart in the rotary positions; () if it is 1."""
        return ()

    # --- configuration alone -----------------------------------------------------------------------------
    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        return tower.frames(inputs["grid_thw"].tolist(), config.vision_config.spatial_merge_size)

    def attention_shape(self, config: Any, name: str) -> AttentionShape | None:
        if name.startswith("layer_"):
            text = config.text_config
            # Qwen3 says it, Qwen2 shares the hidden size among its heads.
            width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
            heads, key_heads = text.num_attention_heads, text.num_key_value_heads
            return AttentionShape(heads, key_heads, width, "tokens at tokens before them")
        vision = config.vision_config
        width = self.tower_width(config) // vision.num_heads
        looks = self.tower_looks(config, int(name.removeprefix("vision_layer_")))
        return AttentionShape(vision.num_heads, vision.num_heads, width, looks)

    def parameter_counts(self, config: Any) -> ParameterCounts:
        text, vision = config.text_config, config.vision_config
        require(
            (text.model_type, vision.model_type), (f"{self.model_type}_text", f"{self.model_type}_vision")
        )
        parts = {"model.language_model": decoder(text), **self.tower_parameters(vision)}
        return ParameterCounts(parts | output_layer(config), text.num_hidden_layers, vision.depth)

    def tower_parameters(self, vision: Any) -> dict[str, int]:
        """Of the tower and its mergers, by module."""
        raise NotImplementedError

    def tower_width(self, config: Any) -> int:
        """Numbers for each patch between the tower's layers."""
        return config.vision_config.hidden_size

    def tower_looks(self, config: Any, layer: int) -> str:
        return "patches at patches of the picture"

    def image_arithmetic(
        self, config: Any, size_pixels: Size, settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        vision = config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        bounds = self.published_pixels if settings is None else _budget_of(settings)
        width, height = resized(size_pixels, patch * merge, bounds, f"of {size_pixels}")
        rows, columns = height // patch, width // patch
        tokens = rows * columns // merge**2
        words = (
            f"{size_pixels[0]} × {size_pixels[1]} pixels, resized to {width} × {height}"
            f"{PUBLISHED if settings is None else ''} → {columns} × {rows} patches of {patch} → "
            f"merged {merge} × {merge} → {columns // merge} × {rows // merge} = {tokens} tokens"
        )
        return ImageArithmetic((width, height), (rows, columns), tokens, words)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------


def cell_side(processor: Any) -> int:
    """Pixels a side of what becomes one token."""
    return processor.image_processor.patch_size * processor.image_processor.merge_size


def resize(processor: Any, size: Size, budget: tuple[int, int], name: str) -> Size:
    """(width, height) after the resize, in whole cells; ``budget``: least and most pixels.

    Raises ValueError, with the picture's name, where it is too elongated.
    """
    return resized(size, cell_side(processor), budget, name)


def resized(size: Size, cell: int, budget: tuple[int, int], name: str) -> Size:
    """Both sides to the nearest whole cells; where that leaves the budget, both by one factor, down to whole cells or
    up, as transformers' Qwen2-VL does it (whose code imports torch)."""
    (width, height), (least, most) = size, budget
    if max(size) > MOST_ELONGATED * min(size):
        raise ValueError(
            f"image {name}: found {width} × {height} pixels, expected no side more than {MOST_ELONGATED} times the "
            "other; cut it, or leave it out"
        )
    pixels = width * height
    new_width, new_height = (round(side / cell) * cell for side in size)
    if new_width * new_height > most:
        factor = math.sqrt(pixels / most)
        new_width, new_height = (max(math.floor(side / factor / cell), 1) * cell for side in size)
    elif new_width * new_height < least:
        factor = math.sqrt(least / pixels)
        new_width, new_height = (math.ceil(side * factor / cell) * cell for side in size)
    return new_width, new_height


def _processor_budget(processor: Any) -> tuple[int, int]:
    size = processor.image_processor.size
    return size["shortest_edge"], size["longest_edge"]


def _budget_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Least and most pixels by a file, which has them in ``size`` or, as older ones, apart: then those count."""
    size = settings.get("size") or _usual_size()
    least, most = settings.get("min_pixels"), settings.get("max_pixels")
    return (
        size["shortest_edge"] if least is None else least,
        size["longest_edge"] if most is None else most,
    )


def _usual_size() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.size


def _budget(processor: Any, ref: ImageRef | VideoRef) -> tuple[int, int]:
    """Least and most pixels of one picture: the processor's, and no more than it may have itself.

    Raises ValueError if somebody has set an attribute that overrules ``size`` in calls: each picture's own bound
    would be overruled too.
    """
    for name in ("min_pixels", "max_pixels"):
        found = vars(processor.image_processor).get(name)
        if found is not None:
            raise ValueError(
                f"processor: found image_processor.{name} = {found:,} set by hand, expected it in its size; "
                f"load the processor with AutoProcessor.from_pretrained(…, {name}={found})"
            )
    least, most = _processor_budget(processor)
    most = most if ref.max_pixels is None else min(most, ref.max_pixels)
    return min(least, most), most


def _size_dict(least: int, most: int) -> Any:
    from transformers.image_utils import SizeDict

    # "Edges" by name; what they hold are pixels of the whole picture.
    return SizeDict(shortest_edge=least, longest_edge=most)


def _size(ref: ImageRef) -> Size:
    return ref.size_pixels or size_of(ref.path if ref.data is None else ref)


def _name(ref: ImageRef) -> str:
    return repr(ref.written or str(ref.path))


def _grid(processor: Any, resized: Size) -> tuple[int, int]:
    """(rows, columns) of cells."""
    side = cell_side(processor)
    return resized[1] // side, resized[0] // side


def _tokens(processor: Any, resized: Size) -> int:
    rows, columns = _grid(processor, resized)
    return rows * columns


class Seen(NamedTuple):
    """A picture or a video that was opened, or whose header was read.

    size      (width, height) in the file
    resized   and as the tower gets it
    frames    the picture, or the video's frames; of a header alone (None,) or ()
    film      of a video
    """

    size: Size
    resized: Size
    frames: tuple[Any, ...]
    ref: ImageRef | VideoRef
    film: Film | None = None

    def tokens(self, processor: Any, starts: Sequence[int]) -> ImageTokens:
        if self.film is None:
            return image_tokens(starts[0], _grid(processor, self.resized), self.size)
        return qwen_video.video_tokens(starts, self.film, image_tokens)


def _pixels(processor: Any, pictures: Sequence[Seen]) -> dict[str, torch.Tensor]:
    """``pixel_values`` Float[patches of all, 3 · frames · patch²], ``image_grid_thw`` Int[pictures, 3] in patches."""
    import torch

    if not pictures:
        return {}
    found = [
        processor.image_processor(
            one.frames[0], size=dict(_size_dict(*_budget(processor, one.ref))), return_tensors="pt"
        )
        for one in pictures
    ]
    grids = torch.cat([one["image_grid_thw"] for one in found])
    patch = processor.image_processor.patch_size
    expected = [[1, one.resized[1] // patch, one.resized[0] // patch] for one in pictures]
    assert grids.tolist() == expected, (
        f"counted {expected} patches, the image processor made {grids.tolist()}"
    )
    return {"pixel_values": torch.cat([one["pixel_values"] for one in found]), "image_grid_thw": grids}


# ---------------------------------------------------------------------------------------------------------------------
# Places
# ---------------------------------------------------------------------------------------------------------------------


def image_tokens(start: int, grid: tuple[int, int], size: Size) -> ImageTokens:
    """A picture of (width, height) pixels whose cells are the tokens from ``start`` on, row by row.

    The resize stretches both sides to whole cells, so all cells are of one size in the original too.
    """
    rows, columns = grid
    x, y = np.linspace(0, size[0], columns + 1), np.linspace(0, size[1], rows + 1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return ImageTokens(
        positions=start + np.arange(rows * columns),
        grid=grid,
        cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
        image_size_pixels=size,
        through_connector=False,
    )
