"""Saves complete checkpoints, and restores every tensor in them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from finetune import files, folder_lock
from finetune.families import family_of
from finetune.families.base import ignored_elsewhere
from finetune.families.parts.modules import bare_model
from finetune.flags.arguments import TrainingArguments
from finetune.model import adapters, look_file, seen_file, weights
from finetune.model.folders import is_adapter
from finetune.sharding import gathered, is_zero3
from finetune.training import lineage, model_card, run_folder, stopping
from finetune.training.guards import TrainingError


class SavingTrainer(Trainer):
    """Beyond transformers' own:

    - a checkpoint is marked once every process has written its part and every trained tensor is found in its files,
      by name and shape; only then are older ones deleted
    - a checkpoint that cannot be written, on a full disk say, ends training with one message; the older ones stay
    - resuming restores every saved tensor, whatever name its file gives it, or names those that do not fit
    """

    def __init__(self, **kwargs: Any) -> None:
        args: TrainingArguments = kwargs["args"]
        self.keep_checkpoints = args.save_total_limit
        args.save_total_limit = None  # deleting is done here, after the mark
        super().__init__(**kwargs)
        begun = Path(str(args.output_dir)) / run_folder.RUN_FILE
        self.run_file = (
            begun if begun.is_file() else None
        )  # None for a trainer that no program of ours started
        self.base_fingerprint: str | None = None
        """Of the weights that adapters are trained on, taken when they were loaded; None: taken when one is saved."""

    # --- writing ---------------------------------------------------------------------------------------------
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        newest = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        self._require_folder(newest.parent)
        if self.args.should_save and newest.exists():
            shutil.rmtree(
                newest
            )  # of an earlier start: its leftovers must not pass for parts of this checkpoint
        self.accelerator.wait_for_everyone()
        with self._writing(newest):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        self._require_folder(newest.parent, made=newest)
        if self.args.should_save:
            self.require_trained(newest)
            with self._writing(newest):
                self._copy_notes(newest)
                if self.run_file is not None:
                    lineage.note(newest)
                run_folder.mark_complete(newest, processes=self.args.world_size)
            self._delete_old(newest)

    def _copy_notes(self, checkpoint: Path) -> None:
        """Who judges a checkpoint that was copied out of its run has to know what it was trained on: its attention, and
        pictures of its probes."""
        for name in (look_file.LOOK_FILE, seen_file.SEEN_FILE):
            of_the_run = checkpoint.parent / name
            if of_the_run.is_file():
                shutil.copy(of_the_run, checkpoint)

    def _require_folder(self, folder: Path, made: Path | None = None) -> None:
        """Raises TrainingError where the run's folder was deleted or replaced: a checkpoint made in a new folder would
        belong to no run, and nothing could resume from it. ``made``: the checkpoint that is deleted then."""
        if self.run_file is None or self.run_file.is_file():
            return
        if made is not None and self.args.should_save:
            shutil.rmtree(made, ignore_errors=True)
            with suppress(OSError):  # writing the checkpoint may have made it anew
                folder.rmdir()
        raise TrainingError(folder_lock.lost_words(folder))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; a write failure ends in one message."""
        self._tables = gathered_tables(self.model)
        if _internal_call:  # part of _save_checkpoint, which handles failures
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        self._require_folder(Path(str(self.args.output_dir)))
        with self._writing(folder, part=False):
            super().save_model(output_dir)
        if self.args.should_save:
            self.require_trained(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder, base = Path(output_dir or str(self.args.output_dir)), bare_model(self.model).name_or_path
        state_dict = None if state_dict is None else {**self._tables, **state_dict}
        if not self.args.should_save:  # it takes part in gathering weights, and writes nothing
            super()._save(str(folder), state_dict)
            return
        with files.files_into(folder) as temporary:
            if (folder / model_card.CARD_FILE).is_file():  # PEFT adds to the one that is there
                shutil.copy(folder / model_card.CARD_FILE, temporary)
            super()._save(str(temporary), state_dict)
            files.give_usual_mode(temporary.glob("*.safetensors"))
        if base and is_adapter(folder):
            adapters.write_base(folder, str(base), self.base_fingerprint)
        self._write_card(folder)

    def _write_card(self, folder: Path) -> None:
        """In place of PEFT's, for runs of our program: of others neither base nor data is known."""
        if self.run_file is not None:
            family = family_of(bare_model(self.model).config)
            model_card.write(
                folder,
                run=self.run_file.parent,
                family=family.name,
                step=self.state.global_step,
                elsewhere=ignored_elsewhere(family, self.processing_class),
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Of what is pushed to the hub."""
        if self.run_file is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self._write_card(Path(str(self.args.output_dir)))

    def require_trained(self, folder: Path) -> None:
        """Raises TrainingError if a trained tensor is not in the folder's files."""
        if self.is_fsdp_enabled or (not weights.weight_files(folder) and self.is_deepspeed_enabled):
            return  # each process wrote its shard, which only that library can read
        missing = weights.not_saved(self.accelerator.unwrap_model(self.model), folder)
        if missing:
            raise TrainingError(
                f"{folder}: lacks trained tensors, so no run could resume from it:\n{weights.listed(missing)}\n"
                "older checkpoints are unchanged"
            )

    @contextmanager
    def _writing(self, folder: Path, *, part: bool = True) -> Iterator[None]:
        """Turn a write failure into a TrainingError. ``part``: the folder is incomplete and is deleted."""
        try:
            yield
        except Exception as error:
            if not is_write_failure(error):
                raise
            if part and self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise TrainingError(self._not_written(folder, error)) from error

    def _not_written(self, folder: Path, error: Exception) -> str:
        output = Path(str(self.args.output_dir))
        self._require_folder(output)
        older, _ = run_folder.last_complete(output)
        free = shutil.disk_usage(output).free / 2**30
        return (
            f"{folder} could not be written: {files.refusal_words(error)} ({free:.1f} GiB free). "
            + (f"Older checkpoints are unchanged; the newest is {older}. " if older else "")
            + "Free some space, or keep fewer checkpoints (--save_total_limit)"
            + (f"; {stopping.next_words(self.args, older)}" if older else ", and run the same command again")
        )

    def _delete_old(self, newest: Path) -> None:
        """Keep as many checkpoints as --save_total_limit says, the newest and the best among them."""
        if not self.keep_checkpoints:
            return
        # Later ones are of an earlier start, half-written: they are no older than this one.
        step = run_folder.number_of(newest)
        there = [path for path in run_folder.checkpoints(newest.parent) if run_folder.number_of(path) <= step]
        needed = {newest.resolve(), Path(self.state.best_model_checkpoint or newest).resolve()}
        others = [path for path in there if path.resolve() not in needed]
        for path in others[: max(0, len(there) - self.keep_checkpoints)]:
            shutil.rmtree(path)

    # --- resuming -------------------------------------------------------------------------------------------
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        self._restore(Path(resume_from_checkpoint), self.model if model is None else model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        self._restore(Path(str(self.state.best_model_checkpoint)), self.model)

    def _restore(self, folder: Path, model: nn.Module) -> None:
        try:
            weights.restore(self.accelerator.unwrap_model(model), folder)
        except ValueError as error:
            raise TrainingError(str(error)) from error


def gathered_tables(model: nn.Module) -> dict[str, Tensor]:
    """Under ZeRO-3, the gathered frozen tensors of modules that PEFT trains as copies; otherwise empty.

    PEFT saves whole copies, frozen tables included (Qwen-VL's ``pos_embed``), but transformers gathers only trainable
    tensors. Every process must call this.
    """
    frozen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".modules_to_save." in name and not parameter.requires_grad and is_zero3(parameter)
    }
    with gathered(list(frozen.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in frozen.items()}


def is_write_failure(error: Exception) -> bool:
    """Did a write fail, within a block that only writes?"""
    if isinstance(error, OSError):
        return error.errno is not None
    # safetensors' own error, and torch's
    return any(word in str(error) for word in ("(os error ", "strerror: ")) or files.is_refused_write(error)
