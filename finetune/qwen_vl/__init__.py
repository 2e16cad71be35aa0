"""Qwen-VL (2023) for today's transformers: configuration, model, tokenizer, processor; no remote code."""

from finetune.qwen_vl.configuration import QwenVLConfig
from finetune.qwen_vl.modeling import QwenVLForConditionalGeneration, QwenVLModel
from finetune.qwen_vl.tokenization import QwenVLTokenizer

__all__ = ["QwenVLConfig", "QwenVLForConditionalGeneration", "QwenVLModel", "QwenVLTokenizer"]
