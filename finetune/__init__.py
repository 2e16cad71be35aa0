"""Fine-tuning of vision-language models. Importing this package teaches the Auto classes Qwen-VL."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from finetune.qwen_vl import (
    QWenTokenizer,
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLProcessor,
    QwenVLTokenizer,
)

AutoConfig.register("qwen", QwenVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(
    QwenVLConfig, tokenizer_class=QwenVLTokenizer, slow_tokenizer_class=QWenTokenizer, exist_ok=True
)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)
