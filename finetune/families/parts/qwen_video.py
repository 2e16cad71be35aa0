"""Videos for the families of Qwen's grids: a film strip whose frames merge two pictures of the file each.

Frames are resized alike to whole cells; two that follow each other are one step of time, a token for each of its cells:

    Qwen2-VL, Qwen2.5-VL    <|vision_start|> steps · cells × <|video_pad|> <|vision_end|>
    Qwen3-VL, Qwen3.5       <0.2 seconds><|vision_start|> cells × <|video_pad|> <|vision_end|><1.2 seconds>…

transformers 5.23 leaves the template's own <|vision_start|> and <|vision_end|> around the second; earlier releases and
the model's authors put it in their place, and so do we.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from finetune.families.base import Encoded, ImageTokens
from finetune.families.parts.chat import Control, Piece, Slots
from finetune.samples.conversation import VideoRef

if TYPE_CHECKING:
    import torch

VISION_START, VISION_END, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
VIDEO = 2  # in mm_token_type_ids

Size = tuple[int, int]  # width, height in pixels


class Film(NamedTuple):
    """A video on its way to a family.

    size      (width, height) of a frame in the file
    resized   and as the tower gets it
    grid      (steps of time, rows, columns) of cells
    seconds   when each step of time is, the mean of its frames
    step      seconds from one step of time to the next; 1 where there is one frame alone
    """

    size: Size
    resized: Size
    grid: tuple[int, int, int]
    seconds: tuple[float, ...]
    step: float

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


def film(ref: VideoRef, size: Size, resized: Size, *, cell: int, merged: int) -> Film:
    """A video as it will be read.

    cell     pixels a side of what becomes one token
    merged   frames that become one step of time; the last is repeated where they do not divide
    """
    seconds = np.array([*ref.seconds, *ref.seconds[-1:] * (-len(ref.seconds) % merged)]).reshape(-1, merged)
    # As transformers' processors do: the mean of the first and the last.
    middles = (seconds[:, 0] + seconds[:, -1]) / 2
    between = len(ref.seconds) - 1
    step = merged * (ref.seconds[-1] - ref.seconds[0]) / between if between else 1.0
    grid = (len(seconds), resized[1] // cell, resized[0] // cell)
    return Film(size, resized, grid, tuple(middles.tolist()), step)


def without_times(one: Film) -> list[Piece]:
    """A video's place in the prompts of Qwen2-VL and Qwen2.5-VL."""
    return [Control(VISION_START), Slots(VIDEO_PAD, one.tokens), Control(VISION_END)]


def with_times(one: Film) -> list[Piece]:
    """A video's place in the prompts of Qwen3-VL: each temporal step after its time stamp."""
    cells = one.grid[1] * one.grid[2]
    return [
        piece
        for seconds in one.seconds
        for piece in (
            f"<{seconds:.1f} seconds>",
            Control(VISION_START),
            Slots(VIDEO_PAD, cells),
            Control(VISION_END),
        )
    ]


def video_tokens(
    starts: Sequence[int], one: Film, still: Callable[[int, Size, Size], ImageTokens]
) -> ImageTokens:
    """The film strip's cells.

    starts   index of the first token of each ``Slots`` that stands for the video
    still    (start, grid, size) → the tokens of a picture of that grid
    """
    steps, rows, columns = one.grid
    width, height = one.size
    strip = still(0, (steps * rows, columns), (width, steps * height))
    each = np.arange(one.tokens // len(starts))
    return replace(strip, positions=np.concatenate([start + each for start in starts]), seconds=one.seconds)


def pixel_values(processor: Any, frames: Sequence[Any], one: Film) -> torch.Tensor:
    """Float[patches of all steps, 3 · merged · patch²]: each frame as the image processor makes a picture of it.

    The image processor shows a picture ``merged`` times, as one step of time; here each time is a frame of its own.
    """
    import torch
    from transformers.image_utils import SizeDict

    image = processor.image_processor
    merged, pixels = image.temporal_patch_size, one.resized[0] * one.resized[1]
    exact = dict(SizeDict(shortest_edge=pixels, longest_edge=pixels))
    stills = [
        image(frame.resize(one.resized, image.resample), size=exact, return_tensors="pt")["pixel_values"]
        for frame in frames
    ]
    stills += stills[-1:] * (-len(stills) % merged)
    steps = []
    for start in range(0, len(stills), merged):
        shape = (len(stills[start]), 3, merged, image.patch_size**2)
        apart = [
            still.reshape(shape)[:, :, time] for time, still in enumerate(stills[start : start + merged])
        ]
        steps.append(torch.stack(apart, dim=2).reshape(shape[0], -1))
    found = torch.cat(steps)
    side = image.patch_size * image.merge_size
    assert len(found) == one.tokens * image.merge_size**2 and one.resized[0] == one.grid[2] * side, one
    return found


def bounds(processor: Any, published: tuple[int, int]) -> tuple[int, int]:
    """Minimum and maximum pixels from the checkpoint's video settings; ``published`` where it has none."""
    said = processor.videos or {}
    size = said.get("size") or {}
    least = said.get("min_pixels") or size.get("shortest_edge") or published[0]
    most = said.get("max_pixels") or size.get("longest_edge") or published[1]
    return int(least), int(most)


def rotary_positions(encoded: Encoded, steps_of_time: Sequence[float] = ()) -> Int[torch.Tensor, "3 tokens"]:
    """Time, row and column of each token, as the models' own ``get_rope_index`` (Wang et al. 2024, arXiv 2409.12191,
    section 2.1).

    Text counts on in all three; a picture keeps one time, its rows and columns count from there, and text goes on
    behind the longer side. Two tokens, a picture of 1 × 2 cells, one token:

        time    0 1 2 2 4
        row     0 1 2 2 4
        column  0 1 2 3 4

    A video's steps of time count on from its first where they stand together, 1 apart, or as ``steps_of_time`` says of
    each video, rounded down; where time stamps stand between them each is a picture of its own.
    """
    import torch

    positions = np.zeros((3, len(encoded.input_ids)), dtype=np.int64)
    place = following = 0
    apart = iter(steps_of_time)
    for start, (steps, rows, columns), is_video in _stretches(encoded.images):
        step = np.float32(next(apart, 1.0) if is_video else 1.0)  # in fp32, as the models count
        positions[:, place:start] = following + np.arange(start - place)
        following += start - place
        place = start + steps * rows * columns
        time, row, column = np.indices((steps, rows, columns)).reshape(3, -1)
        positions[:, start:place] = following + np.stack(
            [(time.astype(np.float32) * step).astype(np.int64), row, column]
        )
        following += max(rows, columns)
    positions[:, place:] = following + np.arange(positions.shape[1] - place)
    return torch.from_numpy(positions)


def _stretches(images: Sequence[ImageTokens]) -> Iterator[tuple[int, tuple[int, int, int], bool]]:
    """Where tokens of pictures and frames stand in a row, their (steps, rows, columns), and whether of a video."""
    for image in images:
        rows, columns = image.grid[0] // image.frames, image.grid[1]
        cells = rows * columns
        together: list[int] = []
        for start in image.positions[::cells].tolist():
            if together and start != together[-1] + cells:  # a time stamp stands between
                yield together[0], (len(together), rows, columns), bool(image.seconds)
                together = []
            together.append(start)
        yield together[0], (len(together), rows, columns), bool(image.seconds)
