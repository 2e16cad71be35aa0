"""The processes of a run: which one this is, what they exchange, and the precision they compute in."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1


def is_main() -> bool:
    """Is this the first process of the run?"""
    return os.environ.get("RANK", "0") == "0"


def end_with_launcher() -> None:
    """Under torchrun, have the system send SIGTERM when the launcher dies, as it would send itself: its processes would
    train on without it, hold the output folder and the GPUs, and no command would find them. Linux alone has this.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it died before
        os.kill(os.getpid(), signal.SIGTERM)


def is_distributed() -> bool:
    """Is there a process group, of one process or more?"""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """(rank, number of ranks)."""
    return (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)


def local_processes() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def say(*lines: str) -> None:
    """Print on the first process alone."""
    if is_main():
        for line in lines:
            print(line, flush=True)


def decided_by_first(decide: Callable[[], T]) -> T:
    """Call ``decide`` on the first process and return its result on every process. What it raises is raised on each:
    the others would wait for ever."""
    outcome: list[Any] = [None, None]
    if rank_and_world_size()[0] == 0:
        try:
            outcome = [decide(), None]
        except Exception as error:
            outcome = [None, error]
    if is_distributed():
        distributed.broadcast_object_list(outcome, src=0)
    value, failure = outcome
    if failure is not None:
        raise failure
    return value  # type: ignore[no-any-return]


def gathered(mine: Any) -> list[Any]:
    """The values of all ranks, in their order, on every rank."""
    _, ranks = rank_and_world_size()
    if ranks == 1:
        return [mine]
    everyone: list[Any] = [None] * ranks
    distributed.all_gather_object(everyone, mine)
    return everyone


def joined(mine: list[T]) -> list[T]:
    """The lists of all ranks, one after another, on every rank."""
    return [one for part in gathered(mine) for one in part]


def reduced(values: Tensor, how: Any = distributed.ReduceOp.SUM) -> Tensor:
    """The sum (or what ``how`` says) over all ranks, in place."""
    if is_distributed():
        distributed.all_reduce(values, how)
    return values


def autocast_dtype(args: TrainingArguments) -> torch.dtype | None:
    """The dtype of a training's mixed precision, to run a forward pass in outside the Trainer; None: the weights' own.

    PyTorch's mixed precision keeps fp32 weights, which only autocast lets meet bf16 or fp16 activations. DeepSpeed
    casts the weights themselves, so nothing is left for autocast to do.
    """
    if args.deepspeed or not (args.bf16 or args.fp16):
        return None
    return torch.bfloat16 if args.bf16 else torch.float16
