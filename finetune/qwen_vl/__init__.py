"""Qwen-VL (2023) for current transformers: configuration, model, tokenizer, processor; no remote code."""

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
