"""Qwen-VL's image processor: pictures as paths, URLs, base64, bytes, PIL images, arrays or tensors → pixel values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from finetune.qwen_vl.configuration import QwenVLConfig
from finetune.qwen_vl.options import check_options, refuse
from finetune.qwen_vl.rendering import flattened, from_base64
from finetune.samples.conversation import ImageRef
from finetune.samples.images import ImageSource
from finetune.samples.images import open_image as load_image

OPTIONS = (
    "return_tensors", "do_resize", "do_convert_rgb", "do_rescale", "do_normalize", "image_mean", "image_std",
    "rescale_factor", "input_data_format",
)  # fmt: skip
_CHANNELS = (1, 3, 4)
_SECONDS_TO_WAIT = 20
_MOST_BYTES = 200_000_000  # limit of a downloaded picture
_LONGEST_PATH = 4096
_SHORTEST_BASE64 = 64  # any picture takes more; a shorter string is a path


class QwenVLImageProcessor(BaseImageProcessor):
    """Pictures → ``pixel_values`` Float[images, 3, image_size, image_size], resized to a square, normalised.

    Mean and deviation are CLIP's (Radford et al. 2021), as Qwen-VL was trained with.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 448,
        patch_size: int = 14,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        do_rescale: bool = True,
        do_normalize: bool = True,
        rescale_factor: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.do_rescale = do_rescale
        self.do_normalize = do_normalize
        self.rescale_factor = rescale_factor
        self.image_size = image_size
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Saved settings; from config.json for a published checkpoint, which has no preprocessor_config.json."""
        from finetune.qwen_vl.configuration import QwenVLConfig

        try:
            return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            visual = QwenVLConfig.from_pretrained(pretrained_model_name_or_path).visual
            assert visual is not None
            return {"image_size": visual["image_size"], "patch_size": visual["patch_size"]}, kwargs

    def pixels(
        self,
        source: Any,
        *,
        do_rescale: bool | None = None,
        do_normalize: bool | None = None,
        rescale_factor: float | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        input_data_format: str | None = None,
    ) -> torch.Tensor:
        """Float32[3, image_size, image_size] of one picture."""
        picture = load_image(picture_of(source, input_data_format))
        resized = picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
        factor = self.rescale_factor if rescale_factor is None else rescale_factor
        if self.do_rescale if do_rescale is None else do_rescale:
            values = values.div(255) if factor is None else values * factor
        if not (self.do_normalize if do_normalize is None else do_normalize):
            return values
        mean, std = (
            torch.tensor(x, dtype=torch.float32).view(3, 1, 1)
            for x in (image_mean or self.image_mean, image_std or self.image_std)
        )
        return (values - mean) / std

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **options: Any) -> BatchFeature:
        """``pixel_values`` of one picture, or of a list of them.

        A picture is a path, an http(s) URL, base64, bytes, a PIL image, or an array or tensor: [height, width],
        [height, width, channels] or [channels, height, width], values from 0 to 255, or from 0 to 1 as floats.

        Raises ValueError naming a picture that cannot be read, TypeError for an unknown option.
        """
        check_options("QwenVLImageProcessor", {k: v for k, v in options.items() if k not in OPTIONS}, OPTIONS)
        kept = {name: options.pop(name, None) is False for name in ("do_resize", "do_convert_rgb")}
        refuse(
            "QwenVLImageProcessor",
            {name: "False" for name, off in kept.items() if off},
            "Qwen-VL reads RGB pictures of one size",
        )
        given = {name: value for name, value in options.items() if value is not None}
        sources = [*flattened([*images] if getattr(images, "ndim", 0) == 4 else [images])]
        if not sources:
            raise ValueError("QwenVLImageProcessor: expected a picture, found none")
        pixel_values = torch.stack([self.pixels(source, **given) for source in sources])
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)


def picture_of(source: Any, input_data_format: str | None = None) -> ImageSource:
    """A picture in a form that ``open_image`` accepts, from an array, a URL or base64 too.

    Raises ValueError for anything else, and for a failed download.
    """
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if isinstance(source, np.ndarray):
        return Image.fromarray(_bytes_of(_channels_last(source, input_data_format)))
    if isinstance(source, str):
        return _behind(source)
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, ImageRef | os.PathLike | bytes | Image.Image):
        return source
    raise ValueError(
        f"expected a picture (path, address, base64, bytes, PIL image, array or tensor), found "
        f"{type(source).__name__} {str(source)[:60]!r}"
    )


def _channels_last(array: np.ndarray, layout: str | None) -> np.ndarray:
    shape = array.shape
    if array.ndim == 2:
        return array
    first, last = array.ndim == 3 and shape[0] in _CHANNELS, array.ndim == 3 and shape[-1] in _CHANNELS
    if layout is not None:
        first, last = (first and "first" in str(layout).lower(), last and "last" in str(layout).lower())
    if first == last:
        raise ValueError(
            f"an array of shape {shape} as a picture: expected [height, width, channels] or "
            f"[channels, height, width] with 1, 3 or 4 channels"
            + ("; say which by input_data_format='channels_first' or 'channels_last'" if first else "")
        )
    array = array.transpose(1, 2, 0) if first else array
    return array[..., 0] if array.shape[-1] == 1 else array


def _bytes_of(array: np.ndarray) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    least, most = (float(x) for x in (array.min(initial=0), array.max(initial=0)))
    if not (least >= 0 and most <= 255):  # also true for NaN
        raise ValueError(
            f"an array as a picture: found values from {least:g} to {most:g}, expected 0 to 255, or 0 to 1 as "
            "floats; give the picture before normalisation"
        )
    if np.issubdtype(array.dtype, np.floating):
        array = np.round(array * 255 if most <= 1 else array)
    return array.astype(np.uint8)


def _behind(text: str) -> ImageSource:
    if text.startswith(("http://", "https://")):
        return ImageRef(text, Path(text), data=_fetched(text))
    if text.startswith("data:"):
        return from_base64(text, "a picture")
    if len(text) >= _SHORTEST_BASE64 and _is_base64(text):
        return from_base64(text, "a picture")
    if len(text) > _LONGEST_PATH:
        raise ValueError(
            f"image {text[:60]!r}… ({len(text):,} characters): neither a path nor a picture in base64"
        )
    return text


def _is_base64(text: str) -> bool:
    """Whether a text is base64: long, of its alphabet only, and not an existing file, since paths use it too."""
    letters = "".join(text.split())
    return len(letters) % 4 == 0 and letters.rstrip("=").isascii() and not _is_file(text) and _decodes(text)


def _decodes(text: str) -> bool:
    try:
        from_base64(text, "")
    except ValueError:
        return False
    return True


def _is_file(path: str) -> bool:
    try:
        return os.path.exists(path)
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def _fetched(address: str) -> bytes:
    try:
        with urlopen(address, timeout=_SECONDS_TO_WAIT) as reply:
            found = reply.read(_MOST_BYTES + 1)
    except (URLError, OSError, ValueError) as error:
        raise ValueError(
            f"image {address[:200]!r}: could not be fetched ({error}); download it and give its path"
        ) from error
    if len(found) > _MOST_BYTES:
        raise ValueError(f"image {address[:200]!r}: more than {_MOST_BYTES:,} bytes")
    return found


AutoImageProcessor.register(
    QwenVLConfig, image_processor_classes={"pil": QwenVLImageProcessor}, exist_ok=True
)
