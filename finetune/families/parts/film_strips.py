"""Videos read as single pictures, each frame resized to one square (InternVL, LLaVA-OneVision,
SmolVLM).

A frame is resized as the family's pictures are, with Pillow; colours are shifted and scaled, and edges chosen, as the
checkpoint's files say of videos. Every frame takes as many tokens, whatever its size: a bound of pixels changes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.families.base import ImageTokens

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]  # width, height in pixels


def strip(stills: Sequence[ImageTokens], seconds: Sequence[float]) -> ImageTokens:
    """Frames, each as a picture of its own, as one film strip: what ``ImageTokens.frame`` takes apart.

    seconds   when each is shown
    """
    first = stills[0]
    (rows, columns), (width, height) = first.grid, first.image_size_pixels
    boxes = [one.cell_boxes_pixels + np.array([0, height, 0, height]) * at for at, one in enumerate(stills)]
    return ImageTokens(
        positions=np.concatenate([one.positions for one in stills]),
        grid=(len(stills) * rows, columns),
        cell_boxes_pixels=np.concatenate(boxes),
        image_size_pixels=(width, len(stills) * height),
        through_connector=False,
        seconds=tuple(seconds),
        tiles=(len(stills),),
    )


def pixels(processor: Any, frames: Sequence[Any], sizes: Sequence[Size]) -> torch.Tensor:
    """Float[frames, 3, height, width]: frames of one size, resized to each of ``sizes`` (width, height) in turn."""
    import torch

    pictures, said = processor.image_processor, processor.videos or {}

    def setting(name: str) -> Any:
        found = said.get(name)
        return getattr(pictures, name) if found is None else found

    stills = []
    for frame in frames:
        for size in sizes:
            frame = frame.resize(size, resample=setting("resample"))
        values = pictures.rescale(np.asarray(frame).transpose(2, 0, 1), setting("rescale_factor"))
        stills.append(pictures.normalize(values, setting("image_mean"), setting("image_std")))
    return torch.from_numpy(np.stack(stills)).float()
