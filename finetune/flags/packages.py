"""Packages that flags require; a missing one would otherwise fail only after the model is loaded."""

import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

REPORTERS: dict[str, tuple[tuple[str, ...], str]] = {
    "tensorboard": (("tensorboard",), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
    "swanlab": (("swanlab",), "swanlab"),
    "mlflow": (("mlflow",), "mlflow"),
    "trackio": (("trackio",), "trackio"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "dvclive": (("dvclive",), "dvclive"),
    "neptune": (("neptune",), "neptune"),
    "dagshub": (("dagshub", "mlflow"), "dagshub mlflow"),
    "azure_ml": (("azureml.core.run",), "azureml-core"),
    "flyte": (("flytekit", "flytekitplugins.deck"), "flytekit flytekitplugins-deck-standard"),
    "kubeflow": ((), ""),  # provided by the environment that it runs in
}
"""``--report_to`` → the modules that it imports, and what to install for them."""

OPTIMIZERS: dict[str, tuple[str, str]] = {
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch-npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    **dict.fromkeys(
        ("paged", "lion", "ademamix", "rmsprop_bnb", "adamw_bnb"), ("bitsandbytes", "bitsandbytes")
    ),
    **dict.fromkeys(("adamw_8bit",), ("bitsandbytes", "bitsandbytes")),
}
"""Beginning of ``--optim`` → the module that it imports, and what to install for it."""

_OF_TARGETS = ("galore", "apollo")


def faults(given: Mapping[str, Any]) -> Iterator[str]:
    """One for each flag whose package is not installed, or whose value is unknown."""
    for name in _reporters(given.get("report_to")):
        if name not in REPORTERS:
            near = difflib.get_close_matches(name, REPORTERS, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            yield f"--report_to {name[:80]}: expected one of {', '.join(REPORTERS)}, or none{meant}"
            continue
        modules, install = REPORTERS[name]
        if not all(map(is_installed, modules)):
            yield f"--report_to {name}: {install} is not installed; pip install {install}, or leave it out"
    optim = str(getattr(given.get("optim"), "value", given.get("optim") or ""))
    for beginning, (module, install) in OPTIMIZERS.items():
        if optim.startswith(beginning) and not is_installed(module):
            yield f"--optim {optim}: {install} is not installed; pip install {install}, or use adamw_torch"
    if optim.startswith(_OF_TARGETS) and not given.get("optim_target_modules"):
        yield f"--optim {optim}: requires --optim_target_modules, the layers that it applies to, e.g. attn mlp"
    if given.get("deepspeed") and not is_installed("deepspeed"):
        yield "--deepspeed: deepspeed is not installed; pip install deepspeed, or leave it out"
    if given.get("q_lora") and not is_installed("bitsandbytes"):
        yield "--q_lora: bitsandbytes is not installed; pip install bitsandbytes, or use --use_lora True"


def is_installed(module: str) -> bool:
    """Can the module be imported?"""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a missing parent package; a module without a spec
        return False


def _reporters(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else list(value or [])
    return [name for name in names if name not in ("all", "none")]
