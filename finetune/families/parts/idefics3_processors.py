"""The processor of SmolVLM, without its video part.

Because of videos, transformers' own asks for torchvision and for a package that spells numbers. This has the same name,
reads and writes the same files, and what they say of videos is kept and written back.
"""

from __future__ import annotations

from typing import Any

from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from finetune.families.parts.processors import KeepsVideoSettings


class SmolVLMProcessor(KeepsVideoSettings, Idefics3Processor):
    """Idefics3's, under SmolVLM's name."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_seq_len: int,
        chat_template: str | None = None,
        videos: dict[str, Any] | None = None,
    ) -> None:
        """videos   settings of the video processor, kept for those who use it"""
        super().__init__(image_processor, tokenizer, image_seq_len, chat_template=chat_template)
        self.videos = videos
