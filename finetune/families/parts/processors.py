"""Settings that families read from transformers' processors and configurations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.families.base import AttentionShape


def language_shape(text: Any) -> AttentionShape:
    """The attention of a language layer of Llama, Qwen and their like; ``text``: its configuration."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return AttentionShape(heads, text.num_key_value_heads, width, "tokens at tokens before them")


def tower_shape(vision: Any, looks: str) -> AttentionShape:
    """The attention of a layer of CLIP's, SigLIP's or InternVL's tower; ``vision``: its configuration."""
    heads = vision.num_attention_heads
    return AttentionShape(heads, heads, vision.hidden_size // heads, looks)


def required_settings(name: str, settings: Mapping[str, Any], needed: Sequence[str]) -> dict[str, Any]:
    """The settings of a checkpoint's processor_config.json that determine how many tokens a picture takes.

    Raises ValueError if one is missing, as in early revisions of published checkpoints.
    """
    missing = [setting for setting in needed if settings.get(setting) is None]
    if missing:
        raise ValueError(
            f"{name}: processor_config.json has no {', '.join(missing)}, needed to count the tokens of a picture; "
            "take the file from the published model's newest revision"
        )
    return {setting: settings[setting] for setting in needed}


def chat_template(
    name: str,
    settings: Mapping[str, Any],
    tokenizer: Any,
    *,
    copy_from: str = "the model this one was made from",
) -> str:
    """A checkpoint's chat template, from whichever of its files holds it.

    copy_from   where to take one, for the error

    Raises ValueError if there is none.
    """
    template = settings.get("chat_template") or tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if template is None:
        raise ValueError(
            f"{name}: found no chat template, expected chat_template.jinja, chat_template.json, or one in "
            f"tokenizer_config.json; copy it from {copy_from}"
        )
    return template


PUBLISHED = " (with the published bounds)"
"""Said of a size that a checkpoint's own processor may have made another."""


def picture_settings(processor: Any) -> dict[str, Any]:
    """What a loaded processor's file says of pictures, and what was set since."""
    return dict(processor.image_processor.to_dict())


_NAMES = (
    "processor_class", "image_processor_type", "auto_map", "data_format", "input_data_format", "return_tensors",
    "device", "disable_grouping", "default_to_square",
)  # fmt: skip
"""Settings that name classes, how arrays are handed over and where they are computed: what is seen is the same. Image
processors by torchvision write them, those by Pillow do not."""


def differing_settings(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Settings by which two processors may read one picture or question differently: name → both values, None where one
    has none. Of a chat template and of a vocabulary, which are long, the SHA-256.

    ``{"max_pixels": (1003520, 200704)}``
    """
    first, second = _settings(one), _settings(other)
    names = [*first, *(name for name in second if name not in first)]
    found = {name: (first.get(name), second.get(name)) for name in names}
    return {name: both for name, both in found.items() if both[0] != both[1]}


def _settings(processor: Any) -> dict[str, Any]:
    read = json.loads(
        json.dumps(picture_settings(processor), default=str)
    )  # of files: tuples are lists there
    tokenizer = processor.tokenizer
    texts: dict[str, Any] = {
        "chat_template": processor.chat_template or tokenizer.chat_template,
        "vocabulary": sorted((str(word), number) for word, number in tokenizer.get_vocab().items()),
    }
    return {name: value for name, value in read.items() if name not in _NAMES} | {
        name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for name, value in texts.items()
    }


class KeepsVideoSettings:
    """Goes before one of transformers' processors in a class's bases, for one without its video half: that asks for
    torchvision. What its files say of videos is kept in ``videos``, and written back."""

    videos: dict[str, Any] | None = None

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def to_dict(self) -> dict[str, Any]:
        saved = super().to_dict()  # type: ignore[misc]
        saved.pop("videos", None)
        if self.videos:
            saved["video_processor"] = self.videos
        return saved


def without_videos(processor_class: type) -> type:
    """One of transformers' processors without its video half, under the same name: what is saved names transformers'
    own."""

    class PicturesProcessor(KeepsVideoSettings, processor_class):  # type: ignore[misc, valid-type]
        pass

    PicturesProcessor.__name__ = processor_class.__name__
    return PicturesProcessor
