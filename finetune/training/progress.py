"""What a terminal shows of training: one bar, and a line at each logging step with the numbers that matter, once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WAITING_FROM = 0.2
"""The share of a step spent waiting for data from which a line says so: more workers would help."""
_RATE, _SOURCE = "learning_rate", "loss by source/"


class Progress(TrainerCallback):
    """Instead of transformers' callbacks for bars and logs; to be given first, so that its bar makes room for others'.

    is_shown     False: lines without a bar (``--disable_tqdm``)
    probe_steps  of the monitor, whose own bar follows these steps; None: it follows checkpoints alone
    is_held_out  False: the evaluation data is trained on too, and is called so
    """

    def __init__(self, *, is_shown: bool, probe_steps: int | None = None, is_held_out: bool = True) -> None:
        self.is_shown, self.probe_steps, self.is_held_out = is_shown, probe_steps, is_held_out
        self.bar: tqdm | None = None
        self.evaluating: tqdm | None = None
        self.begun: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        self.begun = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        if not self.is_shown or self.bar is not None or not state.is_world_process_zero:
            return
        step = state.global_step
        self.bar = tqdm(
            desc="training", unit="step", total=state.max_steps, initial=step, leave=False, dynamic_ncols=True,
            smoothing=0,
        )  # fmt: skip
        if self.begun is None:
            self.begun, self.first_step = self.bar.start_t, step
        # The rate counts probing and evaluation too, so that the time left is what is left to wait.
        self.bar.start_t, self.bar.initial = self.begun, self.first_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        if self.probe_steps is not None and state.global_step % self.probe_steps == 0:
            self._make_room()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        if not self.is_shown or not state.is_world_process_zero:
            return
        if self.evaluating is None:
            self._make_room()
            try:
                total = len(event["eval_dataloader"])
            except (KeyError, TypeError):
                total = None
            self.evaluating = tqdm(
                desc="evaluating", unit="batch", total=total, leave=False, dynamic_ncols=True
            )
        self.evaluating.update()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        self._make_room()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        self._make_room()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        self._make_room()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **event: Any,
    ) -> None:
        if state.is_world_process_zero and (
            words := line(logs or {}, state.global_step, state.max_steps, is_held_out=self.is_held_out)
        ):
            tqdm.write(words)  # above a bar that is there

    def _make_room(self) -> None:
        """Take the bars off the terminal; the next step puts its own back."""
        for one in (self.bar, self.evaluating):
            if one is not None:
                one.close()
        self.bar = self.evaluating = None


def line(logs: Mapping[str, Any], step: int, steps: int, *, is_held_out: bool = True) -> str:
    """One event of the Trainer's log: ``step 10 of 330: loss 0.292, gradient norm 0.277, rate 0.00243``.

    A source's loss, a component's rate and the wait for data are named where they say more. "" for what nobody reads
    here: TensorBoard has it all.
    """
    if "train_runtime" in logs:
        speed = float(logs.get("train_samples_per_second", math.nan))
        mean = f"; mean loss {logs['train_loss']:.3g}" if "train_loss" in logs else ""
        return (
            f"trained to step {step} in {duration(logs['train_runtime'])}, {speed:.3g} samples a second{mean}"
        )
    numbers = [*(_evaluated(logs) if "eval_loss" in logs else _trained(logs))]
    if not numbers:
        return ""
    data = ("held out" if is_held_out else "on training data") if "eval_loss" in logs else ""
    return f"step {step} of {steps}{data and f', {data}'}: {', '.join(numbers)}"


def _trained(logs: Mapping[str, Any]) -> list[str]:
    named = {"loss": "loss", "language loss": "language loss", "grad_norm": "gradient norm"}
    named |= {"look loss": "look loss", _RATE: "rate"}
    found = [f"{words} {float(logs[name]):.3g}" for name, words in named.items() if name in logs]
    found += [
        f"of the {name.removeprefix(_RATE + '_')} {value:.3g}"
        for name, value in logs.items()
        if name.startswith(_RATE + "_") and value != logs.get(_RATE)
    ]
    found += _by_source(logs, _SOURCE)
    waited = float(logs.get("waiting for data (share)", 0))
    return found + ([f"{waited:.0%} of the time waiting for data"] if waited >= WAITING_FROM else [])


def _evaluated(logs: Mapping[str, Any]) -> list[str]:
    return [f"loss {float(logs['eval_loss']):.3g}", *_by_source(logs, f"eval_{_SOURCE}")]


def _by_source(logs: Mapping[str, Any], start: str) -> list[str]:
    return [
        f"{name.removeprefix(start)} {float(value):.3g}"
        for name, value in logs.items()
        if name.startswith(start)
    ]


def duration(seconds: float) -> str:
    """``161`` → "2 min 41 s"."""
    whole = round(float(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
