"""Flags of Qwen-VL's 2023 ``finetune.py`` and of transformers before version 5, translated to today's."""

import dataclasses
from collections.abc import Mapping, Sequence

from finetune.flags.arguments import TrainingArguments
from finetune.flags.argv import join_flag, split_flags

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # below 1, warmup_steps is a ratio
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Old name → new name, applied where the installed transformers knows the new name."""

BOOLEAN_VALUES = {
    "group_by_length": ("train_sampling_strategy", "group_by_length"),
    "adafactor": ("optim", "adafactor"),
}
"""Former switch → the flag and the value that it stands for."""

DROPPED = {
    "save_safetensors": "weights are always saved as safetensors",
    "fp16_opt_level": "transformers no longer uses apex",
    "fp16_backend": "mixed precision is always that of torch",
    "half_precision_backend": "mixed precision is always that of torch",
    "sharded_ddp": "use --deepspeed or --fsdp",
    "fsdp_min_num_params": "set it in --fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "set it in --fsdp_config",
    "use_mps_device": "the device is detected automatically",
    "use_ipex": "torch has it built in",
    "jit_mode_eval": "use --torch_compile",
    "torchdynamo": "use --torch_compile",
    "tpu_num_cores": "the device is detected automatically",
    "tpu_metrics_debug": "use --debug",
    "past_index": "no current model needs it",
    "mp_parameters": "transformers no longer supports SageMaker's launcher",
    "ray_scope": "there is no hyperparameter search here",
    "use_legacy_prediction_loop": "there is only one evaluation loop",
    "dispatch_batches": "set it in --accelerator_config",
    "include_inputs_for_metrics": "evaluation computes only the loss",
    "push_to_hub_organization": "set it in --hub_model_id",
    "xpu_backend": "use --ddp_backend",
}
"""Flags that transformers dropped, and what replaces them."""


def translate(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of 2023 → flags of the installed transformers, and one line for each that changed.

    ``["--warmup_ratio", "0.01", "--save_safetensors", "False"]`` becomes ``["--warmup_steps", "0.01"]`` and two
    lines. ``--flag value``, ``--flag=value`` and a switch without a value are understood.
    """
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    given = dict(split_flags(argv))
    translated: list[str] = []
    lines: list[str] = []
    for name, values in split_flags(argv):
        new, notes = _translate_one(name, values, known, given)
        translated += new
        lines += notes
    return translated, lines


def _translate_one(
    name: str, values: list[str], known: set[str], given: Mapping[str, list[str]]
) -> tuple[list[str], list[str]]:
    shown = " ".join([f"--{name}", *values])
    new_name = RENAMED.get(name)
    if name == "warmup_ratio":
        _check_share(name, values)
    if new_name in known:
        new = [f"--{new_name}", *values]
        return new, [f"{shown}: is now {' '.join(new)}, and used as that"]
    if name in known:
        return join_flag(name, values), []
    if name in BOOLEAN_VALUES:
        return _translate_switch(name, values, given)
    if name in DROPPED:
        return [], [f"{shown}: ignored, transformers no longer has it; {DROPPED[name]}"]
    return join_flag(name, values), []


def _translate_switch(
    name: str, values: list[str], given: Mapping[str, list[str]]
) -> tuple[list[str], list[str]]:
    """A switch as the flag that replaced it. Switched off it excludes one value: the default is then given as a flag,
    since the value may stand in a file of flags, unless another is given."""
    shown = " ".join([f"--{name}", *values])
    new_name, value = BOOLEAN_VALUES[name]
    other = given.get(new_name, [value])
    if not _truth(name, values):
        if other != [value]:
            return [], [f"{shown}: is now --{new_name}, which says {' '.join(other)}"]
        value = str(TrainingArguments.__dataclass_fields__[new_name].default)
    new = [f"--{new_name}", value]
    return new, [f"{shown}: is now {' '.join(new)}, and used as that"]


def _check_share(name: str, values: list[str]) -> None:
    """1 and more would be read as a number of steps under the flag's name of today."""
    try:
        share = float(" ".join(values))
    except ValueError:
        return  # the parser says what is wrong with it
    if not 0 <= share < 1:
        raise ValueError(
            f"--{name}: found {values[0]}, expected a share of all steps, from 0 to below 1; a number of steps is "
            "--warmup_steps"
        )


def _truth(name: str, values: list[str]) -> bool:
    if not values:
        return True
    word = values[0].lower()
    if len(values) > 1 or word not in ("true", "false", "yes", "no", "1", "0"):
        raise ValueError(f"--{name}: found {' '.join(values)!r}, expected True or False")
    return word in ("true", "yes", "1")
