"""When a run is probed, and the names of monitored runs in a Trainer's state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from finetune.distributed import autocast_dtype, rank_and_world_size
from finetune.families.parts.modules import down_to_bare
from finetune.fields import shown

STATE_KEY = "attention monitor"
"""The key under which ``trainer_state.json`` names the monitored run."""
PRECISION = "autocast"
"""The key under which the records of step 0 name ``Moment.precision``."""


@dataclass(frozen=True)
class Moment:
    """When, where and in which precision the model is probed.

    step       of training; 0 is before the first
    first      is this the first rank, which writes?
    autocast   dtype of mixed precision; None: the weights' own
    words      names the model for a person
    best       the checkpoint that was loaded at the end of training, where the model is not the step's own
    is_prepared   only a wrapper of the model's forward says the precision (Accelerate's ``prepare``), not the Trainer's
               arguments or the caller's context
    """

    step: int
    first: bool
    autocast: torch.dtype | None
    words: str
    best: str | None = None
    is_prepared: bool = False

    @property
    def precision(self) -> str | None:
        """The name of ``autocast``, as files have it: "bfloat16"."""
        return None if self.autocast is None else str(self.autocast).removeprefix("torch.")


def moment(args: TrainingArguments, state: TrainerState, model: nn.Module) -> Moment:
    """Now, as a Trainer knows it."""
    words = f"{args.output_dir} at step {state.global_step}"
    autocast, is_prepared = _autocast(model, autocast_dtype(args))
    return Moment(state.global_step, state.is_world_process_zero, autocast, words, is_prepared=is_prepared)


def moment_by_hand(step: int, model: nn.Module, output_dir: Path) -> Moment:
    """Now, in a loop without a Trainer: in the precision of the prepared model, else in the one that the caller is in.

    Raises:
        ValueError: Accelerate prepared the model for mixed precision, and which one cannot be found.
    """
    device = next(model.parameters()).device.type
    around = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    autocast, is_prepared = _autocast(model, around)
    words, first = f"{output_dir} at step {step}", rank_and_world_size()[0] == 0
    return Moment(step, first, autocast, words, is_prepared=is_prepared)


def _autocast(model: nn.Module, around: torch.dtype | None) -> tuple[torch.dtype | None, bool]:
    """The dtype that the model's own forward runs in, and whether a wrapper of it alone says so. ``around``:
    the dtype outside it.

    Trap: ``Accelerator.prepare`` wraps the forward of the model that it is given. With an adapter that is the
    PeftModel, and the bare model inside, which is the one measured, would run in fp32.
    """
    chain = list(down_to_bare(model))
    found = [one for module in chain for one in _contexts(vars(module).get("forward"))]
    if found:
        device = next(model.parameters()).device.type
        with found[-1]:  # the innermost
            inside = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return inside, inside != around
    if around is None and any("_original_forward" in vars(module) for module in chain):
        raise ValueError(
            "the model was prepared by Accelerate for mixed precision, and no torch.autocast was found around its "
            "forward, so its precision is unknown; call the monitor inside accelerator.autocast()"
        )
    return around, False


def _contexts(forward: Any) -> Iterator[torch.autocast]:
    """Those that decorate a function, outermost first."""
    while forward is not None:
        forward = getattr(forward, "__func__", forward)
        for cell in getattr(forward, "__closure__", None) or ():
            with suppress(ValueError):  # a cell may be empty
                if isinstance(cell.cell_contents, torch.autocast):
                    yield cell.cell_contents
        forward = getattr(forward, "__wrapped__", None)


def precision_difference(then: Any, now: str | None) -> str | None:
    """How the precision of a measurement differs from that of the baseline; None if it does not."""
    return None if then == now else f"measured {in_words(then)}, now it would be {in_words(now)}"


def in_words(precision: Any) -> str:
    """``Moment.precision`` in a sentence."""
    return "in the weights' own precision" if precision is None else f"under autocast in {shown(precision)}"


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


def best_checkpoint(state: TrainerState) -> str:
    """``checkpoint-N`` of the best model, whatever its folder is called; "" without one.

    Trap: ``best_global_step`` of transformers' own Trainer is that of the best evaluation, which may lie between two
    checkpoints; what is loaded is the folder.
    """
    if state.best_model_checkpoint is None:
        return ""
    folder = Path(state.best_model_checkpoint)
    with suppress(OSError, ValueError, KeyError, TypeError):
        written = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return f"checkpoint-{int(written['global_step'])}"
    return folder.name
