"""What families read off a processor or configuration that transformers made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.families.base import (
    AttentionShape,
)


def language_shape(text: Any) -> AttentionShape:
    """What the layers of a Llama or Qwen attend with."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return AttentionShape(heads, text.num_key_value_heads, width, "tokens at tokens before them")


def said(name: str, settings: Mapping[str, Any], needed: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint's processor_config.json says, by which pictures' tokens are counted.

    Raises ValueError where it says less; early revisions of published checkpoints did.
    """
    missing = [one for one in needed if settings.get(one) is None]
    if missing:
        raise ValueError(
            f"{name}: processor_config.json says nothing of {', '.join(missing)}, by which the tokens of a picture are "
            "counted; take the file from the published model's newest revision"
        )
    return {one: settings[one] for one in needed}


def chat_template(name: str, settings: Mapping[str, Any], tokenizer: Any) -> str:
    """The template of a checkpoint, wherever it keeps it.

    Raises ValueError where there is none.
    """
    template = settings.get("chat_template") or tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if template is None:
        raise ValueError(
            f"{name}: found no chat template, expected chat_template.jinja, chat_template.json, or one in "
            "tokenizer_config.json; copy it from the model this one was made from"
        )
    return template
