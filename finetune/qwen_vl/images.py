"""Opening pictures as people have them, and turning them into Qwen-VL's pixels."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

ImageSource = str | os.PathLike | bytes | Image.Image
MAX_PIXELS = (
    100_000_000  # a 10,000 × 10,000 picture takes 300 MB as RGB; beyond that it is an accident or an attack
)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def load_image(source: ImageSource) -> Image.Image:
    """One picture in RGB, upright, whatever its mode, from a path, bytes or a PIL image.

    EXIF orientation is applied, so boxes and maps are those of the picture as a person sees it. 16-bit greys
    are scaled to 8 bits, not clipped. Alpha is dropped, as the original does.

    Raises ValueError naming the picture where it is missing, broken, or larger than 100 megapixels.
    """
    name = _name_of(source)
    opened = source if isinstance(source, Image.Image) else _open(source, name)
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"image {name}: found {width} × {height} pixels, expected at most {MAX_PIXELS:,}; scale it down first"
        )
    try:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in _SIXTEEN_BIT:
            return _from_sixteen_bit(upright)
        return upright.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
    ) as error:  # what PIL raises while decoding a cut or corrupt file
        raise ValueError(f"image {name}: found a broken file ({error}); save or download it again") from error


def _name_of(source: ImageSource) -> str:
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"<PIL image {source.size[0]} × {source.size[1]}>"
    return repr(os.fspath(source))


def _reader(source: str | os.PathLike | bytes) -> Image.Image:
    warnings.simplefilter(
        "ignore", Image.DecompressionBombWarning
    )  # our own limit, checked by the caller, says more
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _open(source: str | os.PathLike | bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings(), _reader(source) as opened:
            if opened.size[0] * opened.size[1] <= MAX_PIXELS:
                opened.load()
            return opened
    except FileNotFoundError as error:
        raise ValueError(f"image {name}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image {name}: found no picture in it (unknown or broken format)") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name}: expected at most {MAX_PIXELS:,} pixels; {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"image {name}: found a broken file ({error}); save or download it again") from error


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if image.mode == "I" and values.max(initial=0) <= 255:
        scaled = values
    else:
        scaled = values // 257  # 65535 → 255
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")


class QwenVLImageProcessor(BaseImageProcessor):
    """Pictures → ``pixel_values`` Float[images, 3, image_size, image_size], squeezed to a square, normalised.

    Mean and deviation are CLIP's (Radford et al. 2021), as Qwen-VL was trained with.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 448,
        patch_size: int = 14,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def pixels(self, source: ImageSource) -> torch.Tensor:
        """Float32[3, image_size, image_size] of one picture."""
        resized = load_image(source).resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.image_mean, self.image_std))
        return (values - mean) / std

    def preprocess(
        self, images: ImageSource | Sequence[ImageSource], return_tensors: str | None = "pt", **_: Any
    ) -> BatchFeature:
        sources: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        pixel_values = torch.stack([self.pixels(source) for source in sources])
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    def __call__(self, images: ImageSource | Sequence[ImageSource], **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)
