"""Fine-tuning of vision-language models. Once this package is imported, the Auto classes know Qwen-VL."""

import logging

from finetune import auto_classes

# On some CPUs bitsandbytes says, when first imported, which kernel of a hub it could not fetch. None is fetched here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

auto_classes.teach()
