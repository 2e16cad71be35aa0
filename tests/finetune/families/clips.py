"""Videos and pictures of noise, and conversations about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.samples.conversation import Conversation, ImageRef, Turn, VideoRef
from finetune.samples.videos import video_of_frames
from tests.finetune.families.tiny_families import CELL, Tiny

CPU = torch.device("cpu")


def grid_processor(tiny: Tiny, folder: Path) -> Any:
    """Of a Qwen whose frames are of 2 to 12 cells."""
    made, family = tiny.processor(folder), tiny.family
    # Qwen3-VL's are bounds of all frames together.
    frames = 6 if family.has_time_stamps else 1  # type: ignore[attr-defined]
    bounds = {"shortest_edge": 2 * CELL**2 * frames, "longest_edge": 12 * CELL**2 * frames}
    made.videos = {"size": bounds}
    return made


def still(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def clip_of(stills: list[Image.Image], fps: float = 2.0) -> VideoRef:
    frames = [ImageRef(f"frame {at}.png", picture) for at, picture in enumerate(stills)]  # type: ignore[arg-type]
    return video_of_frames(frames, "clip", fps)


def video(size: tuple[int, int] = (50, 31), count: int = 6, *, fps: float = 2.0, seed: int = 0) -> VideoRef:
    return clip_of([still(size, seed + at) for at in range(count)], fps)


def picture(size: tuple[int, int] = (30, 60), seed: int = 90) -> ImageRef:
    return ImageRef("a.png", still(size, seed))  # type: ignore[arg-type]


def about(*parts: Any, answer: str = "yes") -> Conversation:
    return Conversation((Turn("user", (*parts, "what?")), Turn("assistant", (answer,))))
