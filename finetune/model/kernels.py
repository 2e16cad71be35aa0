"""Liger's fused kernels (``--use_liger_kernel``): which models can use them, and which kernels.

transformers only logs a line where Liger does not support the model. Here that is an error, before anything is loaded.
"""

import importlib.util
import json
from typing import Any

import torch

from finetune.flags.arguments import TrainingArguments

LOSSES = ("fused_linear_cross_entropy", "cross_entropy")
"""Liger's kernels of the loss. The trainer's own loss is normalised by tokens over the whole step and takes logits,
which the fused one never makes."""


def prepare(training: TrainingArguments, model_type: str) -> None:
    """Check that Liger supports the model and machine, and switch off its loss.

    Raises ValueError for a model without such kernels, a machine that cannot run them, and a loss of Liger's.
    """
    if not training.use_liger_kernel:
        return
    if model_type == "qwen":
        raise ValueError(
            "--use_liger_kernel: found Qwen-VL (2023), which Liger and transformers do not support; leave it out"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ValueError(
            "--use_liger_kernel: liger-kernel is not installed; pip install liger-kernel, or leave it out"
        )
    if not torch.cuda.is_available():
        raise ValueError("--use_liger_kernel: found no GPU, which its kernels need; leave it out")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    if model_type not in KNOWN:
        raise ValueError(
            f"--use_liger_kernel: found a model of type {model_type!r}, expected one of {', '.join(sorted(KNOWN))}; "
            "leave it out"
        )
    training.liger_kernel_config = _without_losses(training.liger_kernel_config)


def _without_losses(given: Any) -> dict[str, Any]:
    chosen = json.loads(given) if isinstance(given, str) else dict(given or {})
    losses = [name for name in LOSSES if chosen.get(name)]
    if losses:
        raise ValueError(
            f"--liger_kernel_config: found {', '.join(losses)}, expected kernels other than the loss, which is "
            "normalised by tokens here and needs logits; leave it out of the configuration"
        )
    return {**chosen, **dict.fromkeys(LOSSES, False)}
