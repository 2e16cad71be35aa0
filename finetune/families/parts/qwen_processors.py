"""The processors of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, without their video part.

Transformers' own ask for torchvision because of videos, and with it resize pictures by another kernel: pixels would
depend on what is installed. These have the same names, read and write the same files, and resize with Pillow alone.
What the files say of videos is kept and written back, so that the folder serves transformers' own processors too.
"""

from __future__ import annotations

import os
from typing import Any

from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.models.qwen2_5_vl import processing_qwen2_5_vl
from transformers.models.qwen2_vl import processing_qwen2_vl
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl import processing_qwen3_vl
from transformers.processing_utils import ProcessorMixin

from finetune.families.parts.processors import KeepsVideoSettings, chat_template
from finetune.families.parts.tokenizer import load_tokenizer


class _Pictures(KeepsVideoSettings, ProcessorMixin):
    """Goes before one of transformers' processors in a class's bases."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        videos: dict[str, Any] | None = None,
    ) -> None:
        """videos   settings of the video processor, kept for those who use it"""
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.videos = videos

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **hub: Any) -> Any:  # type: ignore[override]
        """From a folder or a hub name; ``hub``: ``cache_dir``, ``revision`` and the like."""
        name = os.fspath(pretrained_model_name_or_path)
        tokenizer = load_tokenizer(name, **hub)
        settings, _ = cls.get_processor_dict(name, **hub)
        template = chat_template(name, settings, tokenizer)
        videos = get_video_processor_config(name, **hub)
        return cls(Qwen2VLImageProcessorPil.from_pretrained(name, **hub), tokenizer, template, videos)


class Qwen2VLProcessor(_Pictures, processing_qwen2_vl.Qwen2VLProcessor):
    """Qwen2-VL."""


class Qwen2_5_VLProcessor(_Pictures, processing_qwen2_5_vl.Qwen2_5_VLProcessor):  # noqa: N801 (transformers' name)
    """Qwen2.5-VL."""


class Qwen3VLProcessor(_Pictures, processing_qwen3_vl.Qwen3VLProcessor):
    """Qwen3-VL."""
