"""When a run is probed, and the names of monitored runs in a Trainer's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments

from finetune.distributed import autocast_dtype

STATE_KEY = "attention monitor"
"""The key under which ``trainer_state.json`` names the monitored run."""


@dataclass(frozen=True)
class Moment:
    """When, where and in which precision the model is probed.

    step       of training; 0 is before the first
    first      is this the first rank, which writes?
    autocast   dtype of mixed precision; None: the weights' own
    words      names the model for a person
    best       the checkpoint that was loaded at the end of training, where the model is not the step's own
    """

    step: int
    first: bool
    autocast: torch.dtype | None
    words: str
    best: str | None = None


def moment(args: TrainingArguments, state: TrainerState) -> Moment:
    """Now, as a Trainer knows it."""
    words = f"{args.output_dir} at step {state.global_step}"
    return Moment(state.global_step, state.is_world_process_zero, autocast_dtype(args), words)


def runs_of(state: TrainerState) -> list[str]:
    """The monitored runs that a Trainer's state names; ``trainer_state.json`` of a checkpoint keeps them."""
    kept: Any = state.stateful_callbacks
    found = kept.get(STATE_KEY, {}) if isinstance(kept, dict) else {}
    attributes = found.get("attributes", {}) if isinstance(found, dict) else {}
    runs = attributes.get("runs", []) if isinstance(attributes, dict) else []
    return [str(run) for run in runs] if isinstance(runs, list) else []


def name_run(state: TrainerState, run: str) -> None:
    """Name the run in the Trainer's state, so that its checkpoints cannot be mistaken for those of another run. Not as
    the monitor's own state: the Trainer would rebuild the callback from it, and a processor is not JSON."""
    kept: Any = state.stateful_callbacks
    if isinstance(kept, dict):
        kept[STATE_KEY] = {"args": {}, "attributes": {"runs": [*runs_of(state), run]}}
