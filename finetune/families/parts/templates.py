"""A chat template: its text, by which what it does is found once, and how it is let write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Write = Callable[[Sequence[Mapping[str, Any]], bool], str]
"""Messages, and whether a prompt for an answer follows them → what the template writes. Raises ValueError where it
refuses them."""


def template_of(processor: Any) -> tuple[type, str]:
    """The processor's kind and its template's text, which together decide what is written; the processor may be one
    around the model's own."""
    inner = getattr(processor, "processor", processor)
    text = getattr(inner, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    return type(processor), str(text)
