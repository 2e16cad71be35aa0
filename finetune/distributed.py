"""The processes of a run: which one this is, what one tells the others, and the precision they compute in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from transformers import TrainingArguments


def is_main() -> bool:
    """Is this the first process of the run?"""
    return os.environ.get("RANK", "0") == "0"


def say(*lines: str) -> None:
    """Print on the first process alone."""
    if is_main():
        for line in lines:
            print(line, flush=True)


def decided_by_first(decide: Any) -> Any:
    """What ``decide()`` gives on the first process, on every process; its ValueError is raised on each."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [decide()]
        except ValueError as error:
            outcome = [error]
    if distributed:
        torch.distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def rank_and_world_size() -> tuple[int, int]:
    """(rank, number of ranks)."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gathered(mine: Any) -> list[Any]:
    """What each rank has, on every rank."""
    _, ranks = rank_and_world_size()
    if ranks == 1:
        return [mine]
    everyone: list[Any] = [None] * ranks
    distributed.all_gather_object(everyone, mine)
    return everyone


def autocast_dtype(args: TrainingArguments) -> torch.dtype | None:
    """The dtype of a training's mixed precision, to run a forward pass in outside the Trainer; None: the weights' own.

    PyTorch's mixed precision keeps fp32 weights, which only autocast lets meet bf16 or fp16 activations. DeepSpeed
    casts the weights themselves, so nothing is left for autocast to do.
    """
    if args.deepspeed or not (args.bf16 or args.fp16):
        return None
    return torch.bfloat16 if args.bf16 else torch.float16
