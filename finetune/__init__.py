"""Fine-tuning of vision-language models. Importing this package teaches the Auto classes Qwen-VL."""

import logging
import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for a program: ``python -m finetune.export``
    from finetune.flags import programs

    programs.answer(sys.orig_argv)  # --help and wrong flags, before the imports below, which take seconds

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from finetune.qwen_vl import (
    QWenTokenizer,
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLImageProcessor,
    QwenVLModel,
    QwenVLProcessor,
    QwenVLTokenizer,
)

# On some CPUs bitsandbytes says, when first imported, which kernel of a hub it could not fetch. None is fetched here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

AutoConfig.register("qwen", QwenVLConfig, exist_ok=True)
AutoModel.register(QwenVLConfig, QwenVLModel, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(
    QwenVLConfig, tokenizer_class=QwenVLTokenizer, slow_tokenizer_class=QWenTokenizer, exist_ok=True
)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)
AutoImageProcessor.register(
    QwenVLConfig, image_processor_classes={"pil": QwenVLImageProcessor}, exist_ok=True
)
