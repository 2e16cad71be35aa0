"""AttentionMonitor: when to probe during training, and on which rank. It draws nothing and measures nothing itself.

It takes the model from the event and never holds a Trainer, so any Trainer of transformers or TRL can have it::

    Trainer(…, callbacks=[AttentionMonitor(processor=processor, probes="probes.json", output_dir="out")])
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import distributed, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from diagnostics.archive import RecordArchive
from diagnostics.calibration import Calibration, calibrate, check_apart, held_out
from diagnostics.depth import DEPTHS, WATCH, Depth, cost_words
from diagnostics.probe import BATCH_SIZE, Prober, auto_key_layers
from diagnostics.probes import Probe, read_probes, write_probes
from diagnostics.reading import Reader, check_processor
from diagnostics.records import AttentionRecord
from diagnostics.verdicts import CORRECTED
from finetune.families import bare_model, family_of

if TYPE_CHECKING:
    from diagnostics.cases import TrainingSample
    from diagnostics.pairs import ProbePair
    from diagnostics.render import Rendered, Renderer
    from diagnostics.tensorboard import AttentionBoard

logger = logging.getLogger(__name__)

FAILURES = (RuntimeError, ValueError, OSError)  # out of memory is a RuntimeError, a full disk an OSError


class AttentionMonitor(TrainerCallback):
    """Probes the model before the first step, at every checkpoint, and at the end; then compares.

    processor      the model's, as for training: transformers' (``AutoProcessor``) or this project's, not a tokenizer
    probes         a probe file, or probes already read
    output_dir     gets ``attention/``, ``runs/`` and ``comparison/``; None: the run's own
    key_layers     language layers whose maps are kept, or "auto": chosen on the untrained model (``calibration``)
    calibration_probes   a probe file, or probes, to choose them on, of other pictures than ``probes``; None: every
                   fifth picture of ``probes``, which is then left out of the verdicts, or four layers evenly spaced
                   where too few would be left
    depth          "quick", "full" or a ``Depth``: what is measured at both ends of the run
    probe_steps    probe every so many steps; None: whenever a checkpoint is saved
    stop_when      "corrected": end training once every group is (and what must be kept, is); measured at every
                   checkpoint then, at the whole depth, each look paid for (``statistics.alpha_of_look``)
    stop_patience  at so many checkpoints in a row
    samples        what is trained on; the report shows those that bear on its cases
    tb_writer      the run's SummaryWriter, closed by its owner; None: one of its own in ``output_dir/runs``
    batch_size     as for ``Prober``

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
        calibration_probes: str | Path | Sequence[Probe] | None = None,
        depth: str | Depth = "quick",
        probe_steps: int | None = None,
        stop_when: str | None = None,
        stop_patience: int = 2,
        samples: Sequence[TrainingSample] = (),
        tb_writer: Any | None = None,
        batch_size: int | None = None,
    ) -> None:
        if probe_steps is not None and probe_steps < 1:
            raise ValueError(
                f"probe_steps: found {probe_steps}, expected at least 1, or None for every checkpoint"
            )
        if stop_when not in (None, CORRECTED):
            raise ValueError(f'stop_when: found {stop_when!r}, expected "{CORRECTED}" or None')
        if stop_patience < 1:
            raise ValueError(f"stop_patience: found {stop_patience}, expected at least 1 checkpoint")
        check_processor(processor)
        self.processor = processor
        self.probes = _read(probes)
        if not self.probes:
            raise ValueError("probes: found none, expected at least one")
        self.calibration_probes = () if calibration_probes is None else _read(calibration_probes)
        check_apart(self.calibration_probes, self.probes)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.key_layers = key_layers
        self.depth = _depth(depth)
        self.probe_steps = probe_steps
        self.stop_when = stop_when
        self.stop_patience = stop_patience
        self.samples = tuple(samples)
        self.tb_writer = tb_writer
        self.batch_size = BATCH_SIZE if batch_size is None else batch_size
        self._judged: tuple[Probe, ...] = self.probes
        self._baseline: dict[str, AttentionRecord] = {}
        self._looks = self._corrected_looks = 0
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
        Reader(family_of(bare_model(model).config), self.processor).check(
            (*self.calibration_probes, *self.probes), "probes"
        )
        self._layers = self._chosen_layers(args, state, model)
        self._archive = RecordArchive(self.attention_dir, [probe.id for probe in self.probes], self._layers)
        self._prober(args, model, self.depth).self_check()
        if state.is_world_process_zero:
            with self._reporting("probes.json could not be written"):
                write_probes(self.probes, self.attention_dir / "probes.json")
            self._open_board()
            if state.global_step == 0:
                self._write_architecture(model)
        if not self._everywhere(self._archive.is_complete(0, self.depth)):
            self._require_start(
                state, self._archive.folder(0), "complete baseline of these probes and layers"
            )
            if state.is_world_process_zero:
                print(cost_words(self.depth, self.probes, len(self._layers)), flush=True)
            self._baseline = self._probe(
                args, state, model, step=0, depth=self.depth, words=_base_words(model)
            )
        elif state.is_world_process_zero:
            with self._reporting("the baseline could not be read"):
                self._baseline = self._archive.load(0)
        if state.is_world_process_zero and state.global_step == 0:
            self._show(0, self._baseline)
        if state.global_step > 0 and self._is_due(state) and state.global_step < state.max_steps:
            self._probe_unless_complete(args, state, model, WATCH)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """With ``probe_steps``: probe at its multiples, unless training stops here: then the end of it measures."""
        if control.should_training_stop:
            return
        if self.probe_steps is not None and self._is_due(state) and state.global_step < state.max_steps:
            self._look(args, state, control, event["model"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Without ``probe_steps``: probe at every checkpoint; the last is left to the end of training."""
        if self.probe_steps is None and state.global_step < state.max_steps:
            self._look(args, state, control, event["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Probe once more, with interventions, and compare with the baseline."""
        self._probe_unless_complete(args, state, event["model"], self.depth)
        if state.is_world_process_zero:
            self._finish(state.global_step)

    def _look(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> None:
        """Probe at a checkpoint, and end training where that was asked for and the correction took."""
        records = self._probe_now(args, state, model, WATCH if self.stop_when is None else self.depth)
        if self.stop_when is not None and self._everywhere(self._has_taken(records, state.global_step)):
            control.should_training_stop = True

    def _has_taken(self, records: Mapping[str, AttentionRecord], step: int) -> bool:
        """Has every group been corrected, at as many checkpoints in a row as patience asks?

        A look that finds by chance what is not there is one more chance to stop, so each look pays for itself.
        """
        from diagnostics.comparison import comparison_of
        from diagnostics.pairs import pair_all
        from diagnostics.report import headline
        from diagnostics.statistics import alpha_of_look
        from diagnostics.verdicts import requirement, shortfalls

        if not records:
            return False
        # Those of before a restart have been paid for too.
        self._looks = max(self._looks + 1, sum(0 < look <= step for look in self._archive.steps(self.depth)))
        level = 1 - alpha_of_look(self._looks)
        groups: dict[str, Any] = {}
        with self._reporting("a checkpoint could not be compared with the baseline"):
            groups = comparison_of(pair_all(self._judged, self._baseline, records), level=level)["groups"]
        if not groups:
            return False  # said above; the other ranks wait for an answer
        short = shortfalls(requirement(CORRECTED, groups), groups)
        self._corrected_looks = 0 if short else self._corrected_looks + 1
        print(f"look {self._looks}: {headline(groups)}", flush=True)
        if self._corrected_looks < self.stop_patience:
            return False
        print(f"corrected at {self._corrected_looks} checkpoints in a row: training ends here", flush=True)
        return True

    def _is_due(self, state: TrainerState) -> bool:
        """Is the present step one at which to probe? A checkpoint is, and only from one does a run go on."""
        return self.probe_steps is None or state.global_step % self.probe_steps == 0

    def _require_start(self, state: TrainerState, path: Path, what: str) -> None:
        if state.global_step > 0:
            raise ValueError(
                f"{path}: found no {what}, and this run goes on from step {state.global_step}, where the untrained "
                "model is gone; expected what step 0 left. Start anew in another output folder, or go on without the "
                "monitor"
            )

    # --- what ------------------------------------------------------------------------------------------------
    def _chosen_layers(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module
    ) -> tuple[int, ...]:
        """The key layers: those given, those that an earlier start of this run chose, or those chosen now."""
        if self.key_layers != "auto":
            return tuple(self.key_layers)
        path = self.attention_dir / "calibration.json"
        # The first rank's, on every rank: the choice must be one, and the folder need not be shared.
        found = _gathered(Calibration.load(path) if path.is_file() else None)[0]
        if found is None:
            self._require_start(state, path, "key layers that were chosen on the untrained model")
            found = self._calibrated(args, state, model)
        own = set(found.probes)
        if not self.calibration_probes:
            self._judged = tuple(probe for probe in self.probes if probe.id not in own)
        if state.is_world_process_zero:
            print(f"key layers: {found.why}", flush=True)
            with self._reporting("calibration.json could not be written"):
                found.save(path)
        return found.layers

    def _calibrated(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> Calibration:
        evenly = auto_key_layers(model)
        probes = self.calibration_probes or held_out(self.probes)
        depth = replace(WATCH, generate=False)
        prober = Prober(
            model,
            self.processor,
            key_layers=evenly,
            probes=probes,
            depth=depth,
            batch_size=self.batch_size,
            autocast=_autocast(args),
        )
        first = state.is_world_process_zero
        parts = []
        if probes:
            parts = self._shared_out(
                probes, lambda share: prober.run_all(0, "base", probes=share, progress=first)
            )
        records = {record.probe_id: record for part, _ in parts for record in part}
        failures = [failure for _, failure in parts if failure is not None]
        if failures:
            raise failures[0]
        return calibrate(probes, records, evenly=evenly)

    def _shared_out(
        self, probes: Sequence[Probe], run: Callable[[Sequence[Probe]], list[AttentionRecord]]
    ) -> list[tuple[list[AttentionRecord], Exception | None]]:
        """What every rank makes of its share of probes, on every rank: records, and the failure if one came."""
        rank, ranks = _rank()
        in_step = is_deepspeed_zero3_enabled()
        failure: Exception | None = None
        records: list[AttentionRecord] = []
        try:
            records = run(probes if in_step else probes[rank::ranks])
        except FAILURES as error:
            failure = error
        # Every rank arrives here, whatever happened to it: the others would wait for it for ever.
        return [(records, failure)] if in_step else _gathered((records, failure))

    def _probe_unless_complete(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, depth: Depth
    ) -> None:
        if not self._everywhere(self._archive.is_complete(state.global_step, depth)):
            self._probe_now(args, state, model, depth)

    def _probe_now(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, depth: Depth
    ) -> dict[str, AttentionRecord]:
        step = state.global_step
        records = self._probe(
            args, state, model, step=step, depth=depth, words=f"{args.output_dir} at step {step}"
        )
        if records:
            self._show(step, records)
        return records

    def _probe(
        self,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        *,
        step: int,
        depth: Depth,
        words: str,
    ) -> dict[str, AttentionRecord]:
        """Probe on all ranks and write on the first. Returns the records there, nothing elsewhere or on failure.

        The baseline's failure is raised: a run that cannot be compared should end in its first minute.
        """
        first = state.is_world_process_zero
        prober = self._prober(args, model, depth)
        outcomes = self._shared_out(
            self.probes, lambda share: prober.run_all(step, words, probes=share, progress=first)
        )
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
            self._archive.save(step, ordered, depth)
            return ordered
        return {}

    def _prober(self, args: TrainingArguments, model: nn.Module, depth: Depth) -> Prober:
        return Prober(
            model,
            self.processor,
            key_layers=self._layers,
            probes=self.probes,
            depth=depth,
            batch_size=self.batch_size,
            autocast=_autocast(args),
        )

    # --- on disk ---------------------------------------------------------------------------------------------
    @property
    def attention_dir(self) -> Path:
        """Where records and pictures of this run lie."""
        assert self.output_dir is not None
        return self.output_dir / "attention"

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

    def _write_architecture(self, model: nn.Module) -> None:
        from diagnostics.inspect import architecture, markdown
        from finetune.families import bare_model

        # Any exception: a configuration may lack what only this card reads of it, and a card must not end a run.
        with self._reporting("the architecture could not be written", Exception):
            if self._board is not None:
                found = architecture(bare_model(model).config, name=_base_words(model))
                self._board.write_architecture(markdown(found))

    @property
    def _log_dir(self) -> Path:
        assert self.output_dir is not None
        return Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or self.output_dir / "runs")

    def _show(self, step: int, records: Mapping[str, AttentionRecord]) -> None:
        """Numbers at once, pictures when the drawing process has them."""
        from diagnostics.pairs import pair_all

        with self._reporting("a checkpoint could not be compared with the baseline"):
            pairs = pair_all(self.probes, self._baseline, records)
            self._warn_of_loss([pair for pair in pairs if pair.probe in self._judged], step)
            with self._reporting("TensorBoard could not be written"):
                if self._board is not None:
                    self._board.write_step(pairs, step)
        if self._renderer is not None:
            self._renderer.submit(step)
            self._write_pictures(self._renderer.poll())

    def _warn_of_loss(self, pairs: Sequence[ProbePair], step: int) -> None:
        """Say at the checkpoint, and not at the end, that something is being forgotten."""
        from diagnostics.comparison import lost_groups

        for sentence in lost_groups(pairs):
            logger.warning("attention monitor: step %d: %s", step, sentence)

    def _write_pictures(self, rendered: Sequence[Rendered]) -> None:
        with self._reporting("TensorBoard could not be written"):
            for one in rendered:
                if self._board is not None:
                    self._board.write_pictures(one.pictures, one.step)

    def _finish(self, step: int) -> None:
        from diagnostics.compare import compare, table
        from diagnostics.tensorboard import open_command

        if self._renderer is not None:
            self._renderer.submit_strips()
            self._write_pictures(self._renderer.close())
        assert self.output_dir is not None
        with self._reporting("the comparison could not be made"):
            ids = [probe.id for probe in self._judged]
            series = {
                one: self._archive.stored(one, ids) for one in self._archive.steps(WATCH) if one <= step
            }
            missing = [one for one in (0, step) if one not in series]
            if missing:
                raise ValueError(f"the records of step {missing[0]} are not there")
            comparison = compare(
                series[0],
                series[step],
                self.output_dir,
                probes=self._judged,
                series=series,
                samples=self.samples,
            )
            if self._board is not None:
                self._board.write_verdicts(comparison, step)
            print(table(comparison), flush=True)
            print(
                f"before and after, side by side: {self.output_dir / 'comparison' / 'index.html'}", flush=True
            )
        print(f"curves and maps: {open_command(self._log_dir)}", flush=True)
        if self._owns_writer and self.tb_writer is not None:
            self.tb_writer.close()

    @contextmanager
    def _reporting(
        self, what: str, failures: type[Exception] | tuple[type[Exception], ...] = FAILURES
    ) -> Iterator[None]:
        """Nothing that is shown or written may end a training run."""
        try:
            yield
        except failures as error:
            self._report(what, error)

    def _report(self, what: str, error: Exception) -> None:
        if what not in self._reported:
            self._reported.add(what)
            logger.warning(
                "attention monitor: %s (%s: %s); training goes on", what, type(error).__name__, error
            )


def _read(probes: str | Path | Sequence[Probe]) -> tuple[Probe, ...]:
    return read_probes(probes) if isinstance(probes, str | Path) else tuple(probes)


def _depth(depth: str | Depth) -> Depth:
    if isinstance(depth, Depth):
        return depth
    if depth not in DEPTHS:
        raise ValueError(f"depth: found {depth!r}, expected {' or '.join(DEPTHS)}")
    return DEPTHS[depth]


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
