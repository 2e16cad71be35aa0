"""Checks DeepSpeed's configuration against the flags before anything is loaded: types, precision, sizes, typos.

transformers fills in "auto" and compares the rest with the flags only once the model is loaded; DeepSpeed reads its
sections later still. Whatever they would reject is rejected here, by the name of the file and of the field.
"""

import difflib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from finetune import fields
from finetune.fields import NULL, OBJECT, TEXT, TRUTH, Kind, items, number, one_of, whole
from finetune.flags.packages import is_installed
from finetune.printable import one_line
from finetune.samples.listing import shortened

EXAMPLES = "ds_config_zero2.json and ds_config_zero3.json beside finetune.py are examples"


def _auto(kind: Kind) -> Kind:
    return (kind | one_of("auto"))._replace(words=f'{kind.words}, or "auto"')


_SIZE = _auto(whole(1))
_PRECISION = {"enabled": _auto(TRUTH), "auto_cast": TRUTH}
_OFFLOAD = {"device": one_of("none", "cpu", "nvme"), "nvme_path": TEXT | NULL, "pin_memory": TRUTH}
SHAPE: dict[str, fields.Kind | fields.Shape] = {
    "train_batch_size": _SIZE,
    "train_micro_batch_size_per_gpu": _SIZE,
    "gradient_accumulation_steps": _SIZE,
    "gradient_clipping": _auto(number(0)),
    "steps_per_print": number(0) | NULL,
    "wall_clock_breakdown": TRUTH,
    "zero_allow_untested_optimizer": TRUTH,
    "zero_force_ds_cpu_optimizer": TRUTH,
    "bf16": _PRECISION,
    "fp16": {
        **_PRECISION,
        "loss_scale": number(0),
        **dict.fromkeys(("loss_scale_window", "initial_scale_power", "hysteresis"), whole(0)),
        "min_loss_scale": number(0),
    },
    "zero_optimization": {
        "stage": whole(0, 3),
        "overlap_comm": _auto(TRUTH) | NULL,
        **dict.fromkeys(("contiguous_gradients", "allgather_partitions", "reduce_scatter"), TRUTH),
        **dict.fromkeys(("allgather_bucket_size", "sub_group_size"), whole(0)),
        **dict.fromkeys(
            ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
            _auto(whole(0)),
        ),
        **dict.fromkeys(("stage3_max_live_parameters", "stage3_max_reuse_distance"), whole(0)),
        "stage3_gather_16bit_weights_on_model_save": TRUTH,
    },
    "optimizer": {
        "type": TEXT,
        "params": {
            **dict.fromkeys(("lr", "eps", "weight_decay"), _auto(number(0))),
            "betas": _auto(items(number(0, 1), 2)),
        },
    },
    "scheduler": {"type": TEXT, "params": OBJECT},
}
OTHERS = (
    "activation_checkpointing", "aio", "amp", "autotuning", "checkpoint", "comms_logger", "communication_data_type",
    "compression_training", "compile", "csv_monitor", "curriculum_learning", "data_efficiency", "data_types",
    "dataloader_drop_last", "disable_allgather", "dump_state", "elasticity", "eigenvalue", "flops_profiler",
    "gradient_predivide_factor", "memory_breakdown", "monitor_config", "prescale_gradients", "sparse_attention",
    "sparse_gradients", "tensorboard", "tensor_parallel", "torch_autocast", "use_data_before_expert_parallelism",
    "wandb",
)  # fmt: skip
OPTIMIZERS = (
    "adam", "adamw", "lamb", "lion", "muon", "adagrad", "onebitadam", "onebitlamb", "zerooneadam", "muadam", "muadamw",
    "musgd",
)  # fmt: skip
SCHEDULERS = ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")


def name_of(value: str | Mapping[str, Any]) -> str:
    """How messages refer to it: the flag with the file name, or the flag alone for inline JSON."""
    return (
        f"--deepspeed {value}"
        if isinstance(value, str) and not value.lstrip().startswith("{")
        else "--deepspeed"
    )


def read(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration from ``--deepspeed``: a file name, inline JSON, or an already parsed one.

    Raises ValueError if the file is missing, broken or of another shape.
    """
    if isinstance(value, Mapping):
        content: Any = dict(value)
    elif value.lstrip().startswith("{"):
        content = fields.parse(value, "--deepspeed")
    elif not os.path.isfile(value):
        raise ValueError(
            f"--deepspeed: no such file: {shortened(repr(value))} (working directory {os.getcwd()}); {EXAMPLES}"
        )
    else:
        try:
            content = fields.read(Path(value))
        except ValueError as error:
            raise ValueError(f"--deepspeed {error}") from error
    fields.check(content, SHAPE, name_of(value), required=("zero_optimization",), remedy=EXAMPLES)
    return content


def faults(value: str, given: Mapping[str, Any]) -> Iterator[str]:
    """One for each setting of the file that is invalid or contradicts the flags.

    given   flag → value, of all groups
    """
    try:
        config = read(value)
    except ValueError as error:
        yield str(error)
        return
    where = name_of(value)
    found = [
        *_unknown(config),
        *_types(config),
        *_mismatches(config, given),
        *_overlap(config["zero_optimization"]),
        *_offload(config, given),
    ]
    for fault in found or _zero_faults(config["zero_optimization"]):
        yield f"{where}: {fault}"


def remarks(value: str, given: Mapping[str, Any]) -> Iterator[str]:
    """A line for each section of the file that makes flags ineffective, or lacks what would make them effective."""
    config, where = read(value), name_of(value)
    clipping = given.get("max_grad_norm")
    if "gradient_clipping" not in config and clipping:
        yield (
            f'{where}: no "gradient_clipping": gradients are not clipped, though --max_grad_norm is '
            f'{clipping:g}; "gradient_clipping": "auto" takes the value of the flag'
        )
    for name, replaced in (("scheduler", "lr_scheduler_type"), ("optimizer", "optim")):
        if name in config:
            yield f"{where}: {_replacing(name, config[name], f'--{replaced} {_word(given[replaced])}', given)}"


_MAX, _STEPS = {"warmup_max_lr": "--learning_rate"}, {"warmup_num_steps": "--warmup_steps"}
_OF_SCHEDULERS = {"WarmupLR": _MAX | _STEPS, "WarmupDecayLR": _MAX | _STEPS, "WarmupCosineLR": _STEPS}
_OF_OPTIMIZERS = {
    "lr": "--learning_rate",
    "betas": "--adam_beta1 and --adam_beta2",
    "eps": "--adam_epsilon",
    "weight_decay": "--weight_decay",
}
"""Parameter of a section → the flags that its "auto" takes; where it is missing, DeepSpeed's own value holds."""


def _replacing(name: str, section: Mapping[str, Any], flag: str, given: Mapping[str, Any]) -> str:
    """What becomes of the flags beside a scheduler or optimizer of the file's own."""
    params, kind = section.get("params", {}), section.get("type")
    taken = _OF_OPTIMIZERS if name == "optimizer" else _OF_SCHEDULERS.get(str(kind), {})
    idle = [
        flag,
        *(f'{flags} (no "{one}" in its params)' for one, flags in taken.items() if one not in params),
    ]
    decay = params.get("weight_decay") if name == "optimizer" else None
    decay = given["weight_decay"] if decay == "auto" else decay
    also = f"; biases and norms decay too, by {decay:g}" if decay else ""
    return (
        f'its "{name}"{f" ({kind})" if kind else ""} decides; without effect: {", ".join(idle)}{also}; remove "{name}" '
        "from the file, so that the flags decide"
    )


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


def _unknown(config: Mapping[str, Any]) -> Iterator[str]:
    known = [*SHAPE, *OTHERS]
    for name in config:
        near = [] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near:
            yield f"{one_line(name, 80)}: DeepSpeed would ignore it; did you mean {near[0]}?"


def _types(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("optimizer", {}).get("type")
    if kind is not None and kind.lower() not in OPTIMIZERS and not hasattr(torch.optim, kind):
        yield f"optimizer.type: found {fields.shown(kind)}, expected AdamW or another of {', '.join(OPTIMIZERS)}"
    kind = config.get("scheduler", {}).get("type")
    if kind is not None and kind not in SCHEDULERS and not hasattr(torch.optim.lr_scheduler, kind):
        yield f"scheduler.type: found {fields.shown(kind)}, expected one of {', '.join(SCHEDULERS)}"


def _mismatches(config: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Numbers and precisions that differ between the file and the flags."""
    rows, accumulated = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu")
    if not any(name in config for name in sizes):
        yield f'{sizes[1]}: missing; expected "auto", which takes the value of --per_device_train_batch_size'
    if "gradient_accumulation_steps" not in config and accumulated != 1:
        yield f'gradient_accumulation_steps: missing, which means 1, but the flag says {accumulated}; expected "auto"'
    half = {name: bool(given.get(name) or given.get(f"{name}_full_eval")) for name in ("bf16", "fp16")}
    params = config.get("optimizer", {}).get("params", {})
    for field, found, flag, wanted in (
        ("train_micro_batch_size_per_gpu", config.get(sizes[1]), "--per_device_train_batch_size", rows),
        ("gradient_accumulation_steps", config.get("gradient_accumulation_steps"), "--gradient_accumulation_steps",
         accumulated),
        ("train_batch_size", config.get(sizes[0]),
         f"{rows} per device × {accumulated} accumulated × {processes} processes", rows * accumulated * processes),
        ("gradient_clipping", config.get("gradient_clipping"), "--max_grad_norm", given["max_grad_norm"]),
        ("optimizer.params.lr", params.get("lr"), "--learning_rate", given["learning_rate"]),
        ("optimizer.params.betas", params.get("betas"), "--adam_beta1 and --adam_beta2",
         [given["adam_beta1"], given["adam_beta2"]]),
        ("optimizer.params.eps", params.get("eps"), "--adam_epsilon", given["adam_epsilon"]),
        ("optimizer.params.weight_decay", params.get("weight_decay"), "--weight_decay", given["weight_decay"]),
        ("bf16.enabled", config.get("bf16", {}).get("enabled"), "--bf16", half["bf16"]),
        ("fp16.enabled", config.get("fp16", {}).get("enabled"), "--fp16", half["fp16"]),
    ):  # fmt: skip
        if found is not None and found not in ("auto", wanted):
            yield (
                f"{field}: found {found if isinstance(found, list) else fields.shown(found)}, but {flag} says "
                f'{wanted}; give both the same value, or write "auto" into the file'
            )


def _overlap(zero: Mapping[str, Any]) -> Iterator[str]:
    stage, overlap = zero.get("stage", 0), zero.get("overlap_comm")
    if overlap is True or (overlap in (None, "auto") and stage == 3):
        found = {True: "true", None: "missing, which with stage 3 means true"}.get(
            overlap, '"auto", which with stage 3 means true'
        )
        yield (
            f'"overlap_comm" is {found}; reducing gradients during the backward pass has led to losses of 0 and '
            'NaN; expected "overlap_comm": false in "zero_optimization"'
        )


def _offload(config: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    zero = config["zero_optimization"]
    for name in ("offload_optimizer", "offload_param"):
        part = zero.get(name)
        if part is None:
            continue
        wrong = list(fields.faults(part, _OFFLOAD, at=f"zero_optimization.{name}."))
        yield from wrong
        if wrong or part.get("device", "none") == "none":
            continue
        if zero.get("stage", 0) < (2 if name == "offload_optimizer" else 3):
            yield (
                f"zero_optimization.{name}: stage {zero.get('stage', 0)} does not offload this; use stage 3, or "
                "leave it out"
            )
        if part["device"] == "nvme" and not os.path.isdir(part.get("nvme_path") or ""):
            yield f"zero_optimization.{name}.nvme_path: found {fields.shown(part.get('nvme_path'))}, expected a folder"
        if name == "offload_optimizer":
            yield from _offloaded_optimizer(config, given)


def _offloaded_optimizer(config: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """DeepSpeed's CPU Adam replaces the optimizer of --optim, and is compiled when first used."""
    field, optim = "zero_optimization.offload_optimizer", _word(given["optim"])
    adam = optim.startswith(("adamw_torch", "adamw_bnb"))
    if "optimizer" not in config and not adam and config.get("zero_force_ds_cpu_optimizer", True):
        yield (
            f"{field}: would replace --optim {optim} by DeepSpeed's Adam; use adamw_torch, or do not offload"
        )
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        yield (
            f"{field}: DeepSpeed has to compile its Adam for this, but there is no C++ compiler; on Debian: apt "
            "install g++"
        )


def _zero_faults(zero: Mapping[str, Any]) -> Iterator[str]:
    """DeepSpeed's own errors for its section; checked last, because importing DeepSpeed takes seconds."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**{name: value for name, value in zero.items() if value != "auto"})
    except ValidationError as error:
        for one in error.errors()[: fields.MOST_FAULTS_SHOWN]:
            place = ".".join(["zero_optimization", *map(str, one["loc"])])
            yield f"{one_line(place, 120)}: found {fields.shown(one['input'])}: {one['msg'][:200]}"


_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher says in the environment. Where one is missing, DeepSpeed asks MPI."""


def check_launch(deepspeed: Any) -> None:
    """Raises ValueError if DeepSpeed could not learn which process this is; it asks once the model is loaded."""
    missing = [name for name in _LAUNCHED if name not in os.environ]
    if missing and not is_installed("mpi4py"):
        raise ValueError(
            f"{name_of(deepspeed)}: DeepSpeed needs a launcher, and found no {', '.join(missing)} in the environment; "
            "start it with torchrun --nproc_per_node 1 finetune.py ..."
        )
