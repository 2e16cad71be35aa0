"""Stop signals: SIGTERM and SIGUSR1 end training after the current step, with a checkpoint.

Schedulers send one of the two some time before they kill (SLURM: ``--signal``), and ``kill`` sends SIGTERM. The exit
status is 128 + the signal's number, as a shell reports it (143, 138): not 0, so that ``finetune && evaluate`` does not
evaluate a half-trained model. Ctrl-C ends at once (130).
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState

from finetune.flags.arguments import TrainingArguments
from finetune.training import run_folder

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C."""

SAME_SECONDS = 2.0
"""Launcher and scheduler often both deliver one signal. A later repeat ends the process at once."""


class Stopped(Exception):  # noqa: N818  (not an error: the user asked for it)
    """Training stopped on a signal and saved a checkpoint."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        self.signal_number, self.checkpoint = signal_number, checkpoint
        super().__init__(
            f"{signal.Signals(signal_number).name}: training stops here, saved in {checkpoint}; "
            "the same command resumes from it"
        )

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + self.signal_number


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint after the step in which a signal arrived, and raises :class:`Stopped`.

    All processes stop at the same step, whichever received the signal. Register it before slow callbacks: they see
    ``control.should_training_stop`` at this last step, and their ``on_train_end`` does not run. An evaluation due at
    this step is skipped, since the scheduler kills soon.

    Before the first step and after the last one there is nothing to save, and signals act as usual.
    """

    def __init__(self) -> None:
        self.received = 0
        self.at = 0.0
        self.handlers: dict[int, Any] = {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.handlers:
            for number in SIGNALS:
                self.handlers[number] = signal.signal(number, self._receive)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._agreed(args):
            control.should_log = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop after this checkpoint, also where the signal arrived while a scheduled one was being written."""
        number = self._agreed(args)
        if number:
            for one in SIGNALS:
                signal.signal(one, signal.SIG_IGN)  # the launcher sends one when the first process ends
            raise Stopped(number, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Restore the earlier signal handlers."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and time.monotonic() - self.at > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if not self.received:
            self.received, self.at = number, time.monotonic()

    def _agreed(self, args: TrainingArguments) -> int:
        """The signal that any process received, the same on every process; 0 for none."""
        if args.world_size == 1:
            return self.received
        number = torch.tensor(self.received, device=args.device)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
        return int(number)


def interrupted(folder: Path) -> str:
    """The message after Ctrl-C: how to resume."""
    newest, _ = run_folder.last_complete(folder)
    if newest is None:
        return "interrupted; no checkpoint was written, so the same command starts over"
    return f"interrupted; the same command resumes from {newest}"
