"""Fine-tuning of vision-language models. Importing this package teaches the Auto classes Qwen-VL."""

import logging

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

# On some CPUs bitsandbytes says, when first imported, which kernel of a hub it could not fetch. None is fetched here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

AutoConfig.register("qwen", QwenVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(
    QwenVLConfig, tokenizer_class=QwenVLTokenizer, slow_tokenizer_class=QWenTokenizer, exist_ok=True
)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)
