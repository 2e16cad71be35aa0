"""Reads the pickles of a checkpoint without running code in them, whoever made it and wherever it was copied.

A pickle may name any function and have it called. DeepSpeed (0.19) and torch's distributed checkpoints (2.13) read
theirs without a restriction, transformers (5.23) with torch's: tensors, plain containers, and classes that are listed.
That restriction is put on everything that is read while a run resumes; DeepSpeed's few classes are listed.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from finetune.training.guards import TrainingError

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch, over the argument of any torch.load
NOT_WEIGHTS_ONLY = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # its opposite; torch refuses to have both
OF_DEEPSPEED = "global_step*/**/*.pt"
OF_FSDP = "*/.metadata"
OF_A_SHARDED_CHECKPOINT: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__name__): kind
    for kind in (
        metadata.BytesStorageMetadata, metadata.ChunkStorageMetadata, metadata.Metadata, metadata.MetadataIndex,
        metadata.StorageMeta, metadata.TensorProperties, metadata.TensorStorageMetadata, metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo, torch.Size, torch.serialization._get_layout, pathlib.Path, pathlib.PosixPath,
        OrderedDict,
    )
}  # fmt: skip
"""What torch writes into the ``.metadata`` of a sharded checkpoint (FSDP), beside dtypes."""


def refuse_code(checkpoint: Path) -> None:
    """Raises ValueError, before anything is loaded, where a file of DeepSpeed's or FSDP's names anything but tensors,
    plain containers and what these libraries write."""
    for file in sorted(checkpoint.glob(OF_DEEPSPEED)):
        with _readable(file), safe_globals(_classes_of_deepspeed()):
            found = get_unsafe_globals_in_checkpoint(file)
        if found:
            raise ValueError(_refusal(file, ", ".join(sorted(found))))
    for file in sorted(checkpoint.glob(OF_FSDP)):
        with _readable(file), file.open("rb") as opened:
            _ShardedMetadata(opened).load()


@contextmanager
def no_code_run(place: Path, *, deepspeed: bool) -> Iterator[None]:
    """Every ``torch.load`` within runs no code, whatever it was asked for.

    place   what is read, for the message

    Raises TrainingError where a file needs it to.
    """
    before = {name: os.environ.pop(name) for name in (WEIGHTS_ONLY, NOT_WEIGHTS_ONLY) if name in os.environ}
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        with safe_globals(_classes_of_deepspeed() if deepspeed else []):
            yield
    except pickle.UnpicklingError as error:
        raise TrainingError(_refusal(place, str(error))) from error
    finally:
        del os.environ[WEIGHTS_ONLY]
        os.environ.update(before)


def _classes_of_deepspeed() -> list[Any]:
    """The classes in DeepSpeed's files: they hold numbers and do nothing when they are made."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


class _ShardedMetadata(pickle.Unpickler):
    """Reads the ``.metadata`` of a sharded checkpoint. Raises UnpicklingError for a name that torch does not write."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in OF_A_SHARDED_CHECKPOINT:
            return OF_A_SHARDED_CHECKPOINT[module, name]
        kind = getattr(torch, name, None) if module == "torch" else None
        if isinstance(kind, torch.dtype):
            return kind
        raise pickle.UnpicklingError(f"{module}.{name}")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn a file that is no pickle, or one that names too much, into a ValueError."""
    try:
        yield
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(_refusal(file, str(error) or type(error).__name__)) from error


def _refusal(place: Path, found: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", found)  # in torch's long message
    what = named.group(1) if named else found.partition("\n")[0][:300]
    return (
        f"{place}: found {what}, which would run code when it is read or cannot be read; expected tensors and "
        "what DeepSpeed or torch writes beside them. Take a checkpoint that this program wrote, or start from the "
        "weights alone (--model_name_or_path, or --lora_weight_path for adapters)"
    )
