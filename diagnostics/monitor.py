"""AttentionMonitor: when to probe during training, and on which rank. It draws nothing and measures nothing itself.

It takes the model from the event and never holds a Trainer, so any Trainer of transformers or TRL can have it::

    Trainer(…, callbacks=[AttentionMonitor(processor=processor, probes="probes.json", output_dir="out")])
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import distributed, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from diagnostics.probe import Prober, auto_key_layers
from diagnostics.probes import Probe, read_probes, write_probes
from diagnostics.records import AttentionRecord

if TYPE_CHECKING:
    from diagnostics.render import Rendered, Renderer
    from diagnostics.tensorboard import AttentionBoard

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
VERSION = 1
FAILURES = (RuntimeError, ValueError, OSError)  # out of memory is a RuntimeError, a full disk an OSError


class AttentionMonitor(TrainerCallback):
    """Probes the model before the first step, at every checkpoint, and at the end; then compares.

    processor      the model's, as for training
    probes         a probe file, or probes already read
    output_dir     gets ``attention/``, ``runs/`` and ``comparison/``; None: the run's own
    key_layers     language layers whose maps are kept, or "auto": four, evenly spaced
    probe_steps    probe every so many steps; None: whenever a checkpoint is saved
    tb_writer      the run's SummaryWriter, closed by its owner; None: one of its own in ``output_dir/runs``
    controls, generate, batch_size    as for ``Prober``

    At the start wrong wiring raises: a broken probe file, a layer that does not exist, capture that fails its
    self-check. Later on a failure is reported once, and training goes on.

    Occlusion and knock-out cost more than all the rest and are measured at both ends of the run; checkpoints between
    have scores, answers and attention. Each rank probes its share, rank 0 writes; under ZeRO-3, where a forward needs
    every rank, all of them run all probes in step.

    Records of a step count as complete when its ``complete.json`` is there: a run that was killed and goes on skips
    what it has, and makes up for the checkpoint that it goes on from.
    """

    def __init__(
        self,
        processor: Any,
        probes: str | Path | Sequence[Probe],
        output_dir: str | Path | None = None,
        *,
        key_layers: Literal["auto"] | Sequence[int] = "auto",
        probe_steps: int | None = None,
        tb_writer: Any | None = None,
        controls: int | None = None,
        generate: bool = True,
        batch_size: int | None = None,
    ) -> None:
        if probe_steps is not None and probe_steps < 1:
            raise ValueError(
                f"probe_steps: found {probe_steps}, expected at least 1, or None for every checkpoint"
            )
        self.processor = processor
        self.probes = read_probes(probes) if isinstance(probes, str | Path) else tuple(probes)
        if not self.probes:
            raise ValueError("probes: found none, expected at least one")
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.key_layers = key_layers
        self.probe_steps = probe_steps
        self.tb_writer = tb_writer
        chosen: dict[str, Any] = {"controls": controls, "batch_size": batch_size, "generate": generate}
        self._settings = {name: value for name, value in chosen.items() if value is not None}
        self._baseline: dict[str, AttentionRecord] = {}
        self._renderer: Renderer | None = None
        self._board: AttentionBoard | None = None
        self._owns_writer = False
        self._reported: set[str] = set()

    # --- when ------------------------------------------------------------------------------------------------
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Self-check, the baseline, and what a killed run has missed at the step that it goes on from."""
        self.output_dir = self.output_dir or Path(str(args.output_dir))
        model = event["model"]
        self._layers = auto_key_layers(model) if self.key_layers == "auto" else tuple(self.key_layers)
        self._prober(args, model, full=True).self_check()
        if state.is_world_process_zero:
            with self._reporting("probes.json could not be written"):
                write_probes(self.probes, self.attention_dir / "probes.json")
            self._open_board()
        if not self._everywhere(self._is_complete(0, full=True)):
            self._require_start(state)
            self._baseline = self._probe(args, state, model, step=0, full=True, words=_base_words(model))
        elif state.is_world_process_zero:
            with self._reporting("the baseline could not be read"):
                self._baseline = self._load(0)
        if state.is_world_process_zero and state.global_step == 0:
            self._show(0, self._baseline)
        if state.global_step > 0 and self._is_due(state) and state.global_step < state.max_steps:
            self._probe_unless_complete(args, state, model, full=False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """With ``probe_steps``: probe at its multiples."""
        if self.probe_steps is not None and self._is_due(state) and state.global_step < state.max_steps:
            self._probe_now(args, state, event["model"], full=False)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Without ``probe_steps``: probe at every checkpoint; the last is left to the end of training."""
        if self.probe_steps is None and state.global_step < state.max_steps:
            self._probe_now(args, state, event["model"], full=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Probe once more, with interventions, and compare with the baseline."""
        self._probe_unless_complete(args, state, event["model"], full=True)
        if state.is_world_process_zero:
            self._finish(state.global_step)

    def _is_due(self, state: TrainerState) -> bool:
        """Is the present step one at which to probe? A checkpoint is, and only from one does a run go on."""
        return self.probe_steps is None or state.global_step % self.probe_steps == 0

    def _require_start(self, state: TrainerState) -> None:
        if state.global_step > 0:
            raise ValueError(
                f"{self._folder(0)}: found no complete baseline of these probes and layers, and this run goes on from "
                f"step {state.global_step}, where the untrained model is gone; expected the records of step 0. Start "
                "anew in another output folder, or go on without the monitor"
            )

    # --- what ------------------------------------------------------------------------------------------------
    def _probe_unless_complete(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, *, full: bool
    ) -> None:
        if not self._everywhere(self._is_complete(state.global_step, full=full)):
            self._probe_now(args, state, model, full=full)

    def _probe_now(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, *, full: bool
    ) -> None:
        step = state.global_step
        records = self._probe(
            args, state, model, step=step, full=full, words=f"{args.output_dir} at step {step}"
        )
        if records:
            self._show(step, records)

    def _probe(
        self,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        *,
        step: int,
        full: bool,
        words: str,
    ) -> dict[str, AttentionRecord]:
        """Probe on all ranks and write on the first. Returns the records there, nothing elsewhere or on failure.

        The baseline's failure is raised: a run that cannot be compared should end in its first minute.
        """
        first, rank, ranks = state.is_world_process_zero, *_rank()
        in_step = is_deepspeed_zero3_enabled()
        share = self.probes if in_step else self.probes[rank::ranks]
        prober = self._prober(args, model, full=full)
        failure: Exception | None = None
        records: list[AttentionRecord] = []
        try:
            records = prober.run_all(step, words, probes=share, progress=first)
        except FAILURES as error:
            failure = error
        # Every rank arrives here, whatever happened to it: the others would wait for it for ever.
        outcomes = [(records, failure)] if in_step else _gathered((records, failure))
        failures = [error for _, error in outcomes if error is not None]
        if failures and step == 0:
            raise failures[0]
        if failures:
            self._report("a checkpoint could not be probed", failures[0])
            return {}
        if not first:
            return {}
        found = {record.probe_id: record for part, _ in outcomes for record in part}
        ordered = {probe.id: found[probe.id] for probe in self.probes}
        with self._reporting("records could not be written"):
            self._save(step, ordered, full=full)
            return ordered
        return {}

    def _prober(self, args: TrainingArguments, model: nn.Module, *, full: bool) -> Prober:
        return Prober(
            model,
            self.processor,
            key_layers=self._layers,
            probes=self.probes,
            occlusion=full,
            knockout=full,
            autocast=_autocast(args),
            **self._settings,
        )

    # --- on disk ---------------------------------------------------------------------------------------------
    @property
    def attention_dir(self) -> Path:
        """Where records and pictures of this run lie."""
        assert self.output_dir is not None
        return self.output_dir / "attention"

    def _folder(self, step: int) -> Path:
        return self.attention_dir / f"step-{step:06d}"

    def _marks(self, step: int, *, full: bool) -> dict[str, Any]:
        """What makes records of a step the ones that are wanted."""
        ids = [probe.id for probe in self.probes]
        return {
            "version": VERSION,
            "step": step,
            "probes": ids,
            "key_layers": list(self._layers),
            "full": full,
        }

    def _save(self, step: int, records: Mapping[str, AttentionRecord], *, full: bool) -> None:
        folder = self._folder(step)
        (folder / COMPLETE).unlink(missing_ok=True)
        for name, record in records.items():
            record.save(folder / f"{name}.safetensors")
        temporary = folder / f".{COMPLETE}.tmp"
        temporary.write_text(
            json.dumps(self._marks(step, full=full), ensure_ascii=False) + "\n", encoding="utf-8"
        )
        os.replace(temporary, folder / COMPLETE)

    def _is_complete(self, step: int, *, full: bool) -> bool:
        path = self._folder(step) / COMPLETE
        if not path.is_file():
            return False
        found = json.loads(path.read_text(encoding="utf-8"))
        wanted = self._marks(step, full=full)
        there = all((self._folder(step) / f"{probe.id}.safetensors").is_file() for probe in self.probes)
        return there and found in (wanted, {**wanted, "full": True})

    def _load(self, step: int) -> dict[str, AttentionRecord]:
        folder = self._folder(step)
        return {probe.id: AttentionRecord.load(folder / f"{probe.id}.safetensors") for probe in self.probes}

    def _everywhere(self, answer: bool) -> bool:
        """The first rank's answer, on every rank: folders need not be shared between machines."""
        return bool(_gathered(answer)[0])

    # --- showing: on the first rank alone --------------------------------------------------------------------
    def _open_board(self) -> None:
        from diagnostics.render import Renderer
        from diagnostics.tensorboard import AttentionBoard

        self._renderer = Renderer(self.attention_dir)
        with self._reporting("TensorBoard could not be written"):
            if self.tb_writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self.tb_writer, self._owns_writer = SummaryWriter(str(self._log_dir)), True
            self._board = AttentionBoard(self.tb_writer)

    @property
    def _log_dir(self) -> Path:
        assert self.output_dir is not None
        return Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or self.output_dir / "runs")

    def _show(self, step: int, records: Mapping[str, AttentionRecord]) -> None:
        """Numbers at once, pictures when the drawing process has them."""
        from diagnostics.pairs import pair_all

        with self._reporting("TensorBoard could not be written"):
            if self._board is not None:
                self._board.write_step(pair_all(self.probes, self._baseline, records), step)
        if self._renderer is not None:
            self._renderer.submit(step)
            self._write_pictures(self._renderer.poll())

    def _write_pictures(self, rendered: Sequence[Rendered]) -> None:
        with self._reporting("TensorBoard could not be written"):
            for one in rendered:
                if self._board is not None:
                    self._board.write_pictures(one.pictures, one.step)

    def _finish(self, step: int) -> None:
        from diagnostics.compare import compare, table
        from diagnostics.tensorboard import open_command

        if self._renderer is not None:
            self._write_pictures(self._renderer.close())
        assert self.output_dir is not None
        with self._reporting("the comparison could not be made"):
            comparison = compare(self._baseline, self._load(step), self.output_dir, probes=self.probes)
            print(table(comparison), flush=True)
            print(
                f"before and after, side by side: {self.output_dir / 'comparison' / 'index.html'}", flush=True
            )
        print(f"curves and maps: {open_command(self._log_dir)}", flush=True)
        if self._owns_writer and self.tb_writer is not None:
            self.tb_writer.close()

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        """Nothing that is shown or written may end a training run."""
        try:
            yield
        except FAILURES as error:
            self._report(what, error)

    def _report(self, what: str, error: Exception) -> None:
        if what not in self._reported:
            self._reported.add(what)
            logger.warning(
                "attention monitor: %s (%s: %s); training goes on", what, type(error).__name__, error
            )


def _base_words(model: nn.Module) -> str:
    from finetune.families import bare_model

    return str(getattr(bare_model(model).config, "name_or_path", "") or "base")


def _rank() -> tuple[int, int]:
    """(rank, number of ranks)."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _gathered(mine: Any) -> list[Any]:
    """What each rank has, on every rank."""
    _, ranks = _rank()
    if ranks == 1:
        return [mine]
    everyone: list[Any] = [None] * ranks
    distributed.all_gather_object(everyone, mine)
    return everyone


def _autocast(args: TrainingArguments) -> torch.dtype | None:
    """Torch's own mixed precision has fp32 weights that only autocast lets meet the others; DeepSpeed's has not."""
    if args.deepspeed or not (args.bf16 or args.fp16):
        return None
    return torch.bfloat16 if args.bf16 else torch.float16
