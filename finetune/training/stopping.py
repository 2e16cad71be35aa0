"""Being told to stop: SIGTERM and SIGUSR1 end training at the end of the running step, with a checkpoint.

Schedulers send one of the two some time before they kill (SLURM: ``--signal``), and ``kill`` sends SIGTERM. The exit
status is 128 + the signal's number, as a shell reports it (143, 138): not 0, so that ``finetune && evaluate`` does not
evaluate what is half trained. Ctrl-C ends at once (130).
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
"""Launcher and scheduler often both deliver one signal. A later one means it: then the process ends at once."""


class Stopped(Exception):  # noqa: N818  (no error: it was asked for)
    """Training was told to stop, and has stopped with a checkpoint."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        self.signal_number, self.checkpoint = signal_number, checkpoint
        super().__init__(
            f"{signal.Signals(signal_number).name}: training stops here, saved in {checkpoint}; "
            "the same command goes on from it"
        )

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + self.signal_number


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint at the end of the step in which a signal came, and raises :class:`Stopped`.

    All processes stop at the same step, whichever of them got the signal. Goes before callbacks that take long: they
    are told by ``control.should_training_stop`` that this step is the last, and none of them sees the end of training.
    An evaluation that was due at this step is left out, since the time until the kill is short.

    Before the first step there is nothing to save, and after the last one everything is: then a signal ends the
    process as ever.
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
        """Also where the signal came while a checkpoint was written that was due anyway."""
        number = self._agreed(args)
        if number:
            for one in SIGNALS:
                signal.signal(one, signal.SIG_IGN)  # the launcher's, when the first process has ended
            raise Stopped(number, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the signals back to whoever had them."""
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
        """The signal that any process has got, on every process; 0 for none."""
        if args.world_size == 1:
            return self.received
        number = torch.tensor(self.received, device=args.device)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
        return int(number)


def interrupted(folder: Path) -> str:
    """What to say after Ctrl-C: how to go on."""
    newest, _ = run_folder.last_complete(folder)
    if newest is None:
        return "interrupted; no checkpoint had been written, so the same command starts anew"
    return f"interrupted; the same command goes on from {newest}"
