"""Turning pictures into Qwen-VL's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from finetune.images import ImageSource
from finetune.images import open_image as load_image


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
