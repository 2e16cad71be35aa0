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

    def __init__(self, signal_number: int, checkpoint: Path, next_words: str) -> None:
        """``next_words``: what continues from the checkpoint (``next_words``)."""
        self.signal_number, self.checkpoint = signal_number, checkpoint
        super().__init__(
            f"{signal.Signals(signal_number).name}: training stops here, saved in {checkpoint}; {next_words}"
        )

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + self.signal_number


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint after the step in which a signal arrived, and raises :class:`Stopped`.

    All processes stop at the same step, whichever received the signal. Register it before slow callbacks: they see
    ``control.should_training_stop`` at this last step, and their ``on_train_end`` does not run. An evaluation due at
    this step is left to the run that resumes, since the scheduler kills soon.

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
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            raise Stopped(number, checkpoint, next_words(args, checkpoint))

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


def interrupted(args: TrainingArguments) -> str:
    """The message after Ctrl-C: how to resume."""
    folder = Path(str(args.output_dir))
    newest, _ = run_folder.last_complete(folder)
    if newest is not None:
        return f"interrupted; {next_words(args, newest, str(newest))}"
    if args.save_only_model and (found := run_folder.checkpoints(folder)):
        return f"interrupted; the newest checkpoint is {found[-1]}; {next_words(args, found[-1])}"
    named = run_folder.named_checkpoint(args.resume_from_checkpoint)
    start = f"starts from {named} again" if named else "starts over"
    return f"interrupted; no checkpoint was written, so the same command {start}"


def next_words(args: TrainingArguments, checkpoint: Path, it: str = "it") -> str:
    """``the same command resumes from it``, and what to change in the command where its flags would do otherwise.

    it   the checkpoint, as the sentence calls it
    """
    if args.save_only_model:
        return (
            f"{it} holds weights alone (--save_only_model True), so no run resumes from it; to train them further, "
            "give them as --lora_weight_path (an adapter) or --model_name_or_path (a model)"
        )
    return f"the same command{changes_to_resume(args, checkpoint)} resumes from {it}"


def changes_to_resume(args: TrainingArguments, checkpoint: Path | None = None) -> str:
    """``" without --overwrite_output_dir True (it deletes every checkpoint)"``: what the same command must not say, or
    say otherwise, to resume from its newest checkpoint; "" where it resumes as it is."""
    changes = []
    if args.overwrite_output_dir:
        changes.append("without --overwrite_output_dir True (it deletes every checkpoint)")
    named = run_folder.named_checkpoint(args.resume_from_checkpoint)
    if named is not None and (checkpoint is None or named.resolve() != checkpoint.resolve()):
        changes.append(f"with --resume_from_checkpoint True in place of {named}")
    return "".join(f" {'and ' if at else ''}{change}" for at, change in enumerate(changes))
