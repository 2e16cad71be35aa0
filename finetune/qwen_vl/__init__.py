"""Qwen-VL (2023) for current transformers: configuration, model, tokenizer, processor; no remote code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.qwen_vl.configuration import QwenVLConfig
    from finetune.qwen_vl.images import QwenVLImageProcessor
    from finetune.qwen_vl.modeling import QwenVLForConditionalGeneration, QwenVLModel
    from finetune.qwen_vl.processing import QwenVLProcessor
    from finetune.qwen_vl.tokenization import QWenTokenizer, QwenVLTokenizer

__all__ = [
    "QWenTokenizer",
    "QwenVLConfig",
    "QwenVLForConditionalGeneration",
    "QwenVLImageProcessor",
    "QwenVLModel",
    "QwenVLProcessor",
    "QwenVLTokenizer",
]

_HOMES = {
    "QWenTokenizer": "tokenization",
    "QwenVLConfig": "configuration",
    "QwenVLForConditionalGeneration": "modeling",
    "QwenVLImageProcessor": "images",
    "QwenVLModel": "modeling",
    "QwenVLProcessor": "processing",
    "QwenVLTokenizer": "tokenization",
}
"""Name → the module that is loaded when it is asked for: reading a configuration needs no model."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
