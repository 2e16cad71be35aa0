"""AttentionMonitor: when to probe during training, and on which rank. Measuring and drawing happen elsewhere.

It takes the model from the event and never holds a Trainer, so it works with any Trainer of transformers or TRL::

    Trainer(…, callbacks=[AttentionMonitor(processor=processor, probes="probes.json", output_dir="out")])

A custom training loop calls it directly::

    monitor.probe(0, model)                # before the first step
    monitor.probe(50, model)               # as often as needed
    monitor.finish()
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diagnostics.diagnosis.at_start import hindrance, lines, markdown, trained_components
from diagnostics.diagnosis.diagnosing import Diagnosis, diagnose_model
from diagnostics.monitoring.arguments import check_key_layers, check_numbers, plan_of, probes_of
from diagnostics.monitoring.clearing import make_room, set_later_aside
from diagnostics.monitoring.earlier_run import EarlierRun
from diagnostics.monitoring.failures import FAILURES, LINE_MAX, Failures
from diagnostics.monitoring.moments import (
    PRECISION,
    Moment,
    best_checkpoint,
    moment,
    moment_by_hand,
    name_run,
    precision_difference,
    runs_of,
)
from diagnostics.monitoring.ranks import failure_of, shared_out
from diagnostics.monitoring.series import series_until
from diagnostics.monitoring.stopping import Stopping, why_unjudged
from diagnostics.monitoring.training_data import (
    LOOKED_THROUGH,
    UNKNOWN,
    LookedThrough,
    TrainingData,
    paths_of,
    pictures_among,
    seen_words,
)
from diagnostics.monitoring.untrained_model import (
    UNKNOWN_ADAPTER_WARNING,
    base_words,
    is_of_unknown_adapter,
    opened_from,
    untrained_at_hand,
    untrained_words,
)
from diagnostics.probing.before import BeforeModel
from diagnostics.probing.layer_choice import Calibration, calibrate, check_apart, held_out
from diagnostics.probing.prober import BATCH_SIZE, Prober, auto_key_layers
from diagnostics.probing.prompts import ProbeEncoder, check_processor
from diagnostics.probing.trained_on import TrainedOn, trained_on, with_base
from diagnostics.records.archive import NOT_PATCHED, RecordArchive, why_not_patched
from diagnostics.records.identity import (
    Run,
    model_marks,
    new_run,
)
from diagnostics.records.measurement_plan import (
    CHECKPOINT_DEPTHS,
    OCCLUSION,
    PICTURES,
    WATCH,
    MeasurementPlan,
    cost_words,
)
from diagnostics.records.probes import KEPT_SHARE, Probe, groups_of, write_probes
from diagnostics.records.record import AttentionRecord
from diagnostics.report.languages import Language, check_language
from finetune.distributed import decided_by_first, gathered, rank_and_world_size
from finetune.families import bare_model, family_of
from finetune.families.parts.modules import adapted_model, check_identifiable, check_measurable
from finetune.files import write_atomically
from finetune.model.run_data import RunData
from finetune.samples.workers import is_data_worker_death

if TYPE_CHECKING:
    from diagnostics.comparison.pairs import ProbePair
    from diagnostics.monitoring.showing import Showing
    from diagnostics.report.case_studies import TrainingSample

logger = logging.getLogger(__name__)

KEPT_PIXELS_BYTES = 2**28
"""Memory for pixels of probes, which stay from one checkpoint to the next."""


class Unsaved(NamedTuple):
    """Records of a step that are not on disk yet, and the arguments of ``RecordArchive.save``."""

    step: int
    records: Mapping[str, AttentionRecord]
    depth: MeasurementPlan
    best: str | None


class AttentionMonitor(TrainerCallback):
    """Probes the model before the first step, at every checkpoint, and at the end; then compares.

    processor      the model's, as for training: transformers' (``AutoProcessor``) or this project's, not a tokenizer
    probes         a probe file, or probes already read
    output_dir     gets ``attention/``, ``runs/`` and ``comparison/``; None: the run's own
    key_layers     language layers whose maps are kept, or "auto": chosen on the untrained model (``calibration``)
    calibration_probes   a probe file, or probes, to choose them on, of other pictures than ``probes``; None: every
                   fifth picture of ``probes``, which is then left out of the verdicts, or four layers evenly spaced
                   where too few would be left
    depth          "quick", "full" or a ``MeasurementPlan``: what is measured at both ends of the run
    probe_steps    probe every this many steps; None: whenever a checkpoint is saved
    stop_when      "corrected": end training once every group is (and what must be kept, is); every checkpoint is
                   then measured at full ``depth``, and adjusted for repeated looks (``statistics.alpha_of_look``)
    stop_patience  for this many checkpoints in a row
    checkpoint_depth   "watch", "cause" or a ``MeasurementPlan``: what is measured at checkpoints between
    language       "en" or "zh": what the report of the comparison shows first; it has a switch
    baseline       output folder of another run of the same model, probes and layers: its measurements of the untrained
                   model are taken over; where it differs, a line says so and the model is measured
    diagnose       at step 0, say where the untrained model loses the right answer, and whether that part trains
    samples        training samples; the report shows those related to its case studies
    tb_writer      the run's SummaryWriter, closed by its owner; None: one of its own in ``output_dir/runs``
    batch_size     as for ``Prober``
    reference      where the untrained model is, folder or hub name: its attention is put back into the trained one, and
                   it is loaded a second time for that where memory allows. Not needed with a new adapter, which is
                   switched off instead; of an adapter that is trained further, the adapter's folder
    cache_dir      where models of the hub were downloaded to, for ``reference``; None: to the hub's own place
    data           what this training is on: data files as ``finetune.py`` reads them, or paths of pictures. Groups
                   whose probes' pictures are among them are "not held out". None: not looked through, which a line
                   says; ``LOOKED_THROUGH``: the caller has
    trackers       of "wandb", "swanlab", "mlflow", "trackio": those that get the same as TensorBoard; None: those that
                   the Trainer reports to (``report_to``)
    flags          of the run, for TensorBoard's HParams tab; None: the Trainer's arguments

    Errors at the start raise: a broken probe file, a layer that does not exist, a failed self-check of capture. A later
    failure is reported once, and training continues.

    Occlusion and knock-out cost more than everything else and are measured only at both ends of the run; checkpoints
    between have scores, answers and attention, and with ``checkpoint_depth="cause"`` occlusion. Each rank probes its
    share, rank 0 writes; where weights are sharded (ZeRO-3, FSDP), so that a forward pass needs every rank, all of them
    run all probes in lockstep.

    At step 0 a new training begins: whatever an earlier one left in the folder is moved to ``earlier-N`` in
    ``output_dir``, with a line that says so. A resumed run reuses its earlier measurements where run, model, probes,
    layers and depth are the same, and is refused otherwise; it catches up on the checkpoint it resumes from, and on
    tags and pictures that were not written before the run was killed.

    ``missing`` lists what the run should have left and did not.
    """

    def __init__(
        self,
        processor: Any,
        probes: str | Path | Sequence[Probe],
        output_dir: str | Path | None = None,
        *,
        key_layers: Literal["auto"] | Sequence[int] = "auto",
        calibration_probes: str | Path | Sequence[Probe] | None = None,
        depth: str | MeasurementPlan = "quick",
        probe_steps: int | None = None,
        stop_when: str | None = None,
        stop_patience: int = 2,
        checkpoint_depth: str | MeasurementPlan = "watch",
        baseline: str | Path | None = None,
        diagnose: bool = True,
        language: Language = "en",
        samples: Sequence[TrainingSample] = (),
        tb_writer: Any | None = None,
        batch_size: int | None = None,
        reference: str | Path | None = None,
        cache_dir: str | Path | None = None,
        data: TrainingData | LookedThrough | None = None,
        trackers: Sequence[str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> None:
        check_numbers(probe_steps, stop_when, stop_patience, batch_size)
        check_key_layers(key_layers)
        check_language(language)
        check_processor(processor)
        self.processor = processor
        self.probes = probes_of(probes)
        if not self.probes:
            raise ValueError("probes: found none, expected at least one")
        self.calibration_probes = () if calibration_probes is None else probes_of(calibration_probes)
        check_apart(self.calibration_probes, self.probes)
        self._given_output_dir = None if output_dir is None else Path(output_dir)
        self.output_dir = self._given_output_dir
        self.key_layers = key_layers
        self.depth = plan_of(depth)
        self.checkpoint_depth = plan_of(checkpoint_depth, CHECKPOINT_DEPTHS)
        self.baseline = None if baseline is None else Path(baseline)
        self.diagnose = diagnose
        self.language: Language = language
        self.probe_steps = probe_steps
        self.stop_when = stop_when
        self.stop_patience = stop_patience
        self.samples = tuple(samples)
        self.tb_writer = tb_writer
        self.batch_size = BATCH_SIZE if batch_size is None else batch_size
        self.reference = None if reference is None else str(reference)
        self.cache_dir = None if cache_dir is None else str(cache_dir)
        self.data = () if data is LOOKED_THROUGH else None if data is None else paths_of(data)
        if trackers is not None:
            from diagnostics.drawing.trackers import check_trackers

            check_trackers(trackers)
        self.trackers, self.flags = trackers, flags
        self._trackers, self._flags = tuple(trackers or ()), flags or {}
        self._supervision: tuple[Callable[[], Sequence[int]], bool] | None = None
        self._forget()

    def _forget(self) -> None:
        """Reset to the state before any training: one monitor may serve several, one after another."""
        self._failures = Failures()
        self._shown: Showing | None = None
        self._run: Run | None = None
        self._is_ending = False
        self._best: str | None = None  # the checkpoint that is compared in place of the last step's model
        self._judged: tuple[Probe, ...] = self.probes
        self._supervised_layers: frozenset[int] = frozenset()  # of the key layers
        self._in_data: frozenset[str] = frozenset()  # SHA-256 of the probes' pictures in ``data``
        self._baseline: dict[str, AttentionRecord] = {}
        self._last: dict[str, AttentionRecord] = {}
        self._unsaved: Unsaved | None = None
        self._stopping = Stopping(self.stop_patience)
        self._reader: ProbeEncoder | None = None

    # --- when ------------------------------------------------------------------------------------------------
    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Begin the run of a tracker whose callback cannot do so itself; of an earlier Trainer nothing counts."""
        self._supervision = None
        if "swanlab" in (args.report_to or ()) and state.is_world_process_zero:
            from diagnostics.drawing.trackers import Swanlab

            Swanlab.begin_for_trainer(args.run_name)

    def will_be_supervised(self, layers: Callable[[], Sequence[int]], *, connector: bool) -> None:
        """A Trainer whose run trains on attention says where: in language layers, which may be the key layers, and in
        the resampler."""
        self._supervision = layers, connector

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Self-check, the baseline, and what a killed run missed at the step it resumes from."""
        self.output_dir = self._given_output_dir or Path(str(args.output_dir))
        model = event["model"]
        check_measurable(model)
        check_identifiable(model)
        at = moment(args, state, model)
        if self.trackers is None:
            self._trackers = tuple(args.report_to or ())
        if self.flags is None:
            self._flags = args.to_dict()
        self._begin(at, model, runs=runs_of(state))
        if at.step > 0 and self._is_due(state) and at.step < state.max_steps:
            self._probe_unless_complete(at, model, self.checkpoint_depth)
        assert self._run is not None
        if self._run.run not in runs_of(state):
            name_run(state, self._run.run)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """With ``probe_steps``: probe at its multiples, unless training stops here and its end is probed anyway."""
        if control.should_training_stop:
            return
        if self.probe_steps is not None and self._is_due(state) and state.global_step < state.max_steps:
            self._look(args, state, control, event["model"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Without ``probe_steps``: probe at every checkpoint but the last, which the end of training probes."""
        if control.should_training_stop:
            return
        if self.probe_steps is None and state.global_step < state.max_steps:
            self._look(args, state, control, event["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        """Probe once more, with interventions, and compare with the baseline."""
        self._is_ending = True
        at = moment(args, state, event["model"])
        best = best_checkpoint(state) if args.load_best_model_at_end else ""
        if best not in ("", f"checkpoint-{at.step}"):
            # The Trainer has loaded the best checkpoint: the model is not that of the last step, which may be judged.
            if self._shown is not None:
                self._shown.forget(at.step)
            self._best = best
            at = replace(at, words=f"{args.output_dir}: the best, {best}", best=best)
            self._probe_now(at, event["model"], self.depth)
        else:
            self._probe_unless_complete(at, event["model"], self.depth)
        if at.first:
            self._finish(at.step)

    # --- by hand ---------------------------------------------------------------------------------------------
    def probe(self, step: int, model: nn.Module) -> dict[str, AttentionRecord]:
        """Measure the model of a custom training loop, on every rank, and compare it with step 0 (on the first).

        Step 0 is the model before training and starts a new run. A first call with a later step resumes from what is
        in ``output_dir``. Each call measures the whole ``depth`` and updates ``comparison/``. Mixed precision is that
        of the caller (``with torch.autocast(…)``, or a model that Accelerate has prepared).

        Returns probe id → record on the first rank, nothing on the others or after a failure. The first call raises
        ValueError for wrong arguments, and for a folder of another model, other probes or other layers.
        """
        if self.output_dir is None:
            raise ValueError(
                "output_dir: found none, expected a folder: without a Trainer there is no default"
            )
        if step < 0:
            raise ValueError(f"step: found {step}, expected 0 (before training) or more")
        check_measurable(model)
        check_identifiable(model)
        at = moment_by_hand(step, model, self.output_dir)
        if step == 0 or self._run is None:
            self._begin(at, model, runs=None)
            if step == 0:
                return dict(self._baseline)
        records = self._probe_now(at, model, self.depth)
        if records:
            self._compare(step)
        return records

    def finish(self) -> None:
        """Draw the last pictures and the strips. For a custom training loop, on every rank or on the first only."""
        if self._run is not None and rank_and_world_size()[0] == 0:
            self._close()

    # --- how -------------------------------------------------------------------------------------------------
    def _begin(self, at: Moment, model: nn.Module, *, runs: Sequence[str] | None) -> None:
        """Start a new run at step 0, resume elsewhere. ``runs``: the runs that the resumed checkpoint names; None
        without such a checkpoint."""
        self._forget()
        family = family_of(bare_model(model).config)
        self._reader = ProbeEncoder(family, self.processor, keep_bytes=KEPT_PIXELS_BYTES)
        for line in self._reader.check((*self.calibration_probes, *self.probes), "probes"):
            if at.step == 0 and rank_and_world_size()[0] == 0:
                print(f"warning: {line}", flush=True)
        decided_by_first(self._look_through_data)
        if at.step == 0:
            self._begin_anew(at, model)
        else:
            self._go_on(at, model, runs)

    def _look_through_data(self) -> None:
        """Which pictures of the probes is this training on? Raises ValueError for data that cannot be read."""
        if self.data is None:
            print(UNKNOWN, flush=True)
            return
        files = [path for probe in self.probes for path in probe.images]
        found = pictures_among(files, self.data) if self.data else {}
        self._in_data = frozenset(found.values())
        remedy = "draw other probes, or take these pictures out of the data"
        where, stop = "is in the training data", self.stop_when
        for line in seen_words(self.probes, found, where=where, remedy=remedy, of="probes", stop_when=stop):
            print(line, flush=True)

    def _begin_anew(self, at: Moment, model: nn.Module) -> None:
        chosen = None if self.key_layers != "auto" else self._calibrated(at, model)
        layers = self._layers = self._given_layers(chosen)
        prober = self._prober(at, model, self.depth, layers)
        self._check_judged(at, prober)
        prober.self_check()
        run = new_run(model_marks(model), untrained_words(model, self.reference), self.probes, layers)
        decided_by_first(lambda: make_room(self._folder, run, logs=self._own_logs))
        self._take(at, decided_by_first(lambda: run), chosen)
        if chosen is not None:
            decided_by_first(lambda: chosen.save(self.attention_dir / "calibration.json"))
        self._write_probes()
        if at.first:
            self._warn_if_never_met()
            if is_of_unknown_adapter(self._name):
                print(UNKNOWN_ADAPTER_WARNING, flush=True)
            self._open_board(at)
            self._write_architecture(model)
            self._print_cost(prober, model)
        if self.baseline is None or not decided_by_first(lambda: self._has_taken_over(at, run, model)):
            self._baseline = self._probe(replace(at, words=self._name), model, depth=self.depth)
        if at.first:
            self._show(0, self._baseline)
        if self.diagnose:
            self._diagnose(at, model)

    def _warn_if_never_met(self) -> None:
        """With ``stop_when``: name the groups that would keep training from ever ending early."""
        from diagnostics.comparison.verdicts import never_met

        for sentence in never_met(self._judged) if self.stop_when is not None else ():
            print(f"warning: --stop_when {self.stop_when} cannot be met: {sentence}", flush=True)

    def _check_judged(self, at: Moment, prober: Prober) -> None:
        """Say where attention is trained on so that none of it is left to be judged.

        Raises ValueError with ``stop_when``, which could never be met.
        """
        layers = {*(() if prober.supervised is None else prober.supervised.layers)}
        connector = prober.looks_through_supervised
        if self._supervision is not None:
            asked, trains_connector = self._supervision
            layers, connector = layers | {*asked()}, connector or trains_connector
        self._supervised_layers = frozenset(self._layers if connector else layers.intersection(self._layers))
        why = why_unjudged(self._layers, layers, connector=connector)
        if not why or all(name in KEPT_SHARE for name in groups_of(self.probes)):
            return
        if self.stop_when is not None:
            raise ValueError(
                f"stop_when {self.stop_when} cannot be met: attention will not be judged, since {why}; or leave out "
                "stop_when"
            )
        if at.first:
            print(f"attention will not be judged, since {why}", flush=True)

    def _diagnose(self, at: Moment, model: nn.Module) -> None:
        """Where does the untrained model lose the right answer, and does this run train that part?"""
        found = self._diagnosis(at, model) if at.first else None
        path = self.attention_dir / "diagnosis.json"
        decided_by_first(lambda: None if found is None else write_atomically(path, found.to_bytes()))
        if found is None:
            return
        with self._reporting("the diagnosis could not be shown", lacks="the diagnosis in TensorBoard"):
            bare = bare_model(model)
            trains = trained_components(bare, family_of(bare.config))
            for line in lines(found, trains):
                print(line, flush=True)
            if self._shown is not None:
                self._shown.diagnosis(markdown(found, trains))

    def _diagnosis(self, at: Moment, model: nn.Module) -> Diagnosis | None:
        """None where it cannot be made, which is said."""
        bare, measured = bare_model(model), {*self.depth.kinds, *self.depth.pictures}
        why_not = hindrance(bare, measured, {OCCLUSION, *PICTURES})
        if why_not is not None:
            print(
                f"the untrained model is not diagnosed: {why_not}; see python -m diagnostics.diagnose",
                flush=True,
            )
            return None
        mixed = torch.autocast(
            next(bare.parameters()).device.type, at.autocast, enabled=at.autocast is not None
        )
        with self._reporting("the untrained model could not be diagnosed", lacks="diagnosis.json"), mixed:
            return diagnose_model(
                bare,
                self.processor,
                self.probes,
                name=self.reference or self._name,
                probe_file=str(self.attention_dir / "probes.json"),
                records=self._baseline,
                batch_size=self.batch_size,
                progress=True,
            )
        return None

    def _has_taken_over(self, at: Moment, run: Run, model: nn.Module) -> bool:
        """Take over what another run measured of this untrained model; where it measured anything else, a line says so
        and nothing is taken."""
        assert self.baseline is not None
        folder = self.baseline / "attention"
        try:
            archive = self._left_in(folder, at, model).baseline_for(run)
        except ValueError as error:
            print(f"{folder}: its baseline is not taken over, and the model is measured: {error}", flush=True)
            return False
        self._baseline = archive.load(0)
        self._archive.save(0, self._baseline, self.depth)
        print(f"the untrained model's measurements are those of {folder}", flush=True)
        return True

    def _print_cost(self, prober: Prober, model: nn.Module) -> None:
        """Before training, and at its end, where the attention of the model before is put back."""
        cost = (self.depth, self.probes, len(self._layers))
        print(cost_words(*cost, prober.allowed), flush=True)
        if self.depth.patching and (self.reference is not None or adapted_model(model) is not None):
            patched = prober.allowed._replace(patched=len(prober.attending))
            print(
                f"at the end, with the attention of step 0 put back: {cost_words(*cost, patched)}", flush=True
            )

    def _go_on(self, at: Moment, model: nn.Module, runs: Sequence[str] | None) -> None:
        marks = model_marks(model)
        earlier = self._left_in(self.attention_dir, at, model)
        run, chosen = decided_by_first(lambda: earlier.to_resume(marks, self.key_layers, runs))
        self._take(at, run, chosen)
        prober = self._prober(at, model, self.depth, self._layers)
        self._check_judged(at, prober)
        prober.self_check()
        self._write_probes()
        if not at.first:
            return
        self._baseline = self._archive.load(0)
        best = self._archive.best(at.step)
        set_later_aside(self._archive, at.step, best)
        self._open_board(at)
        if best is not None and self._shown is not None:
            self._shown.forget(at.step)
        self._make_up(at.step)

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        """The key layers, given or chosen on the untrained model: known once training has begun."""
        return self._layers

    def _given_layers(self, chosen: Calibration | None) -> tuple[int, ...]:
        if chosen is not None:
            return chosen.layers
        assert not isinstance(self.key_layers, str)
        return tuple(self.key_layers)

    def _take(self, at: Moment, run: Run, chosen: Calibration | None) -> None:
        """Adopt the run, the layers chosen at its start, and the precision, from here on."""
        self._run, self._layers, self._precision = run, run.key_layers, at.precision
        begun = run.as_json() | {PRECISION: at.precision}
        self._archive = RecordArchive(
            self.attention_dir, [probe.id for probe in self.probes], run.key_layers, run.run, begun
        )
        if chosen is None:
            return
        if not self.calibration_probes:
            own = set(chosen.probes)
            self._judged = tuple(probe for probe in self.probes if probe.id not in own)
        if rank_and_world_size()[0] == 0:
            print(f"key layers: {chosen.why}", flush=True)

    def _own_logs(self) -> list[Path]:
        """This monitor's own event files of an earlier training."""
        from diagnostics.monitoring.showing import LOGS_END, log_dir

        if self.tb_writer is not None:
            return []
        return [*log_dir(self._folder, None).glob(f"*tfevents*{LOGS_END}")]

    def _left_in(self, folder: Path, at: Moment, model: nn.Module) -> EarlierRun:
        family = family_of(bare_model(model).config)
        return EarlierRun(folder, self.probes, self.processor, family, self.depth, at)

    def _make_up(self, step: int) -> None:
        """Write tags and pictures of steps that were measured but not yet shown when the run was killed."""
        from diagnostics.comparison.pairs import pair_all

        for done in [one for one in self._archive.steps(WATCH) if one <= step]:
            with self._reporting(
                "a checkpoint could not be compared with the baseline", lacks=f"step {done}"
            ):
                pairs = pair_all(self._judged, self._baseline, self._archive.load(done))
                if self._shown is not None:
                    self._shown.make_up(pairs, done)

    def _look(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> None:
        """Probe at a checkpoint, and end training if ``stop_when`` is met."""
        depth = self.checkpoint_depth if self.stop_when is None else self.depth
        records = self._probe_now(moment(args, state, model), model, depth)
        if self.stop_when is not None and decided_by_first(
            lambda: self._has_taken(records, state.global_step)
        ):
            control.should_training_stop = True

    def _has_taken(self, records: Mapping[str, AttentionRecord], step: int) -> bool:
        """Has every group been corrected, for ``stop_patience`` checkpoints in a row?"""
        from diagnostics.comparison.pairs import pair_all

        # Looks from before a restart count too.
        earlier = sum(0 < look < step for look in self._archive.steps(self.depth))
        with self._reporting("a checkpoint could not be compared with the baseline"):
            return bool(records) and self._stopping.look(
                pair_all(self._judged, self._baseline, records), earlier=earlier
            )
        return False  # reported above; the other ranks wait for an answer

    def _is_due(self, state: TrainerState) -> bool:
        """Should this step be probed? Every checkpoint is, and a run can only resume from one."""
        return self.probe_steps is None or state.global_step % self.probe_steps == 0

    # --- what ------------------------------------------------------------------------------------------------
    def _calibrated(self, at: Moment, model: nn.Module) -> Calibration:
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
            autocast=at.autocast,
        )
        outcomes = []
        if probes:
            outcomes = shared_out(
                model, probes, lambda share: prober.run_all(0, "base", probes=share, progress=at.first)
            )
        if (failure := failure_of(outcomes)) is not None:
            raise failure
        records = {record.probe_id: record for part, _ in outcomes for record in part}
        return calibrate(probes, records, evenly=evenly)

    def _probe_unless_complete(self, at: Moment, model: nn.Module, depth: MeasurementPlan) -> None:
        if not decided_by_first(lambda: self._archive.is_complete(at.step, depth)):
            self._probe_now(at, model, depth)

    def _probe_now(self, at: Moment, model: nn.Module, depth: MeasurementPlan) -> dict[str, AttentionRecord]:
        self._save_late()
        self._last = records = self._probe(at, model, depth=depth)
        if records:
            self._show(at.step, records, at.best)
        return records

    def _probe(self, at: Moment, model: nn.Module, *, depth: MeasurementPlan) -> dict[str, AttentionRecord]:
        """Probe on all ranks and write on the first. Returns the records there, nothing elsewhere or on failure.

        A failure of the baseline is raised, also one of writing it: a run that cannot be compared should end in its
        first minute.
        """
        if (other := precision_difference(self._precision, at.precision)) is not None:
            error = ValueError(f"step 0 was {other}; call the monitor in one precision throughout")
            lacks = f"records of step {at.step}"
            self._failures.report("a checkpoint could not be probed", error, lacks=lacks)
            return {}
        before = self._before(at, model, depth)
        prober = self._prober(at, model, depth, self._layers, before)
        outcomes = shared_out(
            model,
            self.probes,
            lambda share: prober.run_all(at.step, at.words, probes=share, progress=at.first),
        )
        if (failure := failure_of(outcomes)) is not None:
            if at.step == 0:
                raise failure
            lacks = f"records of step {at.step}"
            self._failures.report("a checkpoint could not be probed", failure, lacks=lacks)
            return {}
        found = {record.probe_id: record for part, _ in outcomes for record in part} if at.first else {}
        ordered = {probe.id: found[probe.id] for probe in self.probes if at.first}
        if at.step == 0:
            decided_by_first(lambda: self._archive.save(0, ordered, depth))
            return ordered
        if not at.first:
            return {}
        self._unsaved = Unsaved(at.step, ordered, depth, at.best)
        return ordered if self._saved() else {}

    def _saved(self) -> bool:
        """Write the records that were measured last; where a disk refuses them, they stay for another try."""
        assert self._unsaved is not None
        step, records, depth, best = self._unsaved
        lacks = f"records of step {step}"
        with self._reporting("records could not be written", lacks=lacks):
            self._archive.save(step, records, depth, best=best)
            self._unsaved = None
            self._failures.made_up(lacks)
        return self._unsaved is None

    def _save_late(self) -> None:
        """Another try at what a disk refused at the last checkpoint: its model is gone, and with it all that could
        measure it again."""
        if self._unsaved is None:
            return
        step, records, _, best = self._unsaved
        if self._saved():
            self._last = dict(records)
            self._show(step, records, best)
        self._unsaved = None  # kept on, they would lie in memory beside those of the next checkpoint

    def _before(self, at: Moment, model: nn.Module, depth: MeasurementPlan) -> BeforeModel | None:
        """The untrained model, the source of attention to put back; None if any rank lacks it, which is reported."""
        if at.step == 0 or not depth.patching:
            return None
        found, reason = None, None
        try:
            found = untrained_at_hand(model, self._name, self.reference, cache_dir=self.cache_dir)
        except FAILURES as error:  # of any kind, out of memory too: the rest is measured all the same
            if is_data_worker_death(error):
                raise
            reason = str(error)[:LINE_MAX]
        reason = next((one for one in gathered(reason) if one is not None), None)
        if at.first:
            self._report_not_patched(reason)
        return found if reason is None else None

    @property
    def _name(self) -> str:
        """How the records of step 0 call the model."""
        assert self._run is not None
        return self._run.model_name

    def _report_not_patched(self, reason: str | None) -> None:
        place = self.attention_dir / NOT_PATCHED
        with self._reporting(f"{NOT_PATCHED} could not be written"):
            if reason is None:
                place.unlink(missing_ok=True)
            else:
                print(f"attention of the model before is not put back into this one: {reason}", flush=True)
                write_atomically(place, f"{reason}\n".encode())

    def _prober(
        self,
        at: Moment,
        model: nn.Module,
        depth: MeasurementPlan,
        layers: Sequence[int],
        before: BeforeModel | None = None,
    ) -> Prober:
        supervised, seen = decided_by_first(lambda: self._trained_on(at.step, model))
        return Prober(
            model,
            self.processor,
            key_layers=layers,
            probes=self.probes,
            depth=depth,
            batch_size=self.batch_size,
            autocast=at.autocast,
            before=before,
            supervised=supervised,
            seen=seen,
            reader=self._reader,
        )

    @cached_property
    def _run_data(self) -> RunData:
        return RunData(path for probe in self.probes for path in probe.images)

    def _trained_on(self, step: int, model: nn.Module) -> TrainedOn:
        """What is noted of the model that training begins with and, once it has begun, in the run's folder: trained
        attention, and pictures of its probes. The first rank alone has that folder where disks are not shared."""
        places = [place for one in (self.reference, opened_from(model)) if one for place in with_base(one)]
        if step == 0:
            return trained_on(places, self._run_data)
        found = trained_on(places, self._run_data, running=self.output_dir)
        return found._replace(seen=found.seen | self._in_data)

    # --- on disk ---------------------------------------------------------------------------------------------
    @property
    def attention_dir(self) -> Path:
        """The folder of this run's records and pictures."""
        return self._folder / "attention"

    @property
    def _folder(self) -> Path:
        assert self.output_dir is not None
        return self.output_dir

    def _write_probes(self) -> None:
        """Without them no picture is drawn. Nothing is trained yet: a disk that refuses them ends the run."""
        decided_by_first(lambda: write_probes(self.probes, self.attention_dir / "probes.json"))

    # --- showing: on the first rank alone --------------------------------------------------------------------
    def _open_board(self, at: Moment) -> None:
        from diagnostics.monitoring.showing import Showing, ShownRun

        groups = list(groups_of(self._judged))
        run = ShownRun(
            self._folder,
            groups,
            self._layers,
            self.tb_writer,
            self._trackers,
            self._flags,
            trained_on=self._supervised_layers,
        )
        self._shown = Showing(run, self._failures, step=at.step)
        print(self._shown.where_to_look(), flush=True)

    def _write_architecture(self, model: nn.Module) -> None:
        from diagnostics.inspect import architecture, markdown
        from finetune.families.parts.processors import picture_settings

        with self._reporting("the architecture could not be written"):
            if self._shown is not None:
                settings = picture_settings(self.processor)
                found = architecture(bare_model(model).config, name=base_words(model), settings=settings)
                self._shown.architecture(markdown(found))

    def _show(self, step: int, records: Mapping[str, AttentionRecord], best: str | None = None) -> None:
        """Numbers at once, pictures when the drawing process has them.

        best   the checkpoint that these records are of, where it was loaded at the end: it is of an earlier step, and
               no point of a curve over steps
        """
        from diagnostics.comparison.checkpoint_line import checkpoint_line
        from diagnostics.comparison.pairs import pair_all

        lacks = f"numbers of step {step}"
        with self._reporting("a checkpoint could not be compared with the baseline", lacks=lacks):
            pairs = pair_all(self._judged, self._baseline, records)
            if step > 0 and not self._is_ending:  # the table of the end follows
                print(checkpoint_line(pairs, step), flush=True)
            self._warn_of_loss(pairs, f"step {step}" if best is None else f"{best}, the best")
            if self._shown is not None and best is None:
                self._shown.step(pairs, step)
        if self._shown is not None:
            self._shown.draw(step)

    def _warn_of_loss(self, pairs: Sequence[ProbePair], when: str) -> None:
        """Warn at the checkpoint, not only at the end, that something is being forgotten."""
        from diagnostics.comparison.group_report import lost_groups

        for sentence in lost_groups(pairs):
            logger.warning("attention monitor: %s: %s", when, sentence)

    def _finish(self, step: int) -> None:
        """Write the comparison and the last pictures, and report what is missing."""
        self._save_late()
        self._compare(step, say=True)
        shown = self._shown
        self._close()
        if shown is not None:
            print(shown.where_to_look(), flush=True)

    def _compare(self, step: int, *, say: bool = False) -> None:
        from diagnostics.compare import short_table

        lacks = "comparison/: before and after cannot be seen side by side"
        with self._reporting("the comparison could not be made", lacks=lacks):
            comparison = self._compared(step)
            if self._shown is not None:
                self._shown.verdicts(comparison, step)
            if say:
                print(short_table(comparison), flush=True)
                if self._best is not None:
                    print(
                        f"compared is {self._best}, the best; curves are of the steps themselves", flush=True
                    )
                place = self._folder / "comparison" / "index.html"
                print(f"before and after, side by side: {place}", flush=True)

    def _compared(self, step: int) -> Mapping[str, Any]:
        """Compare a step with the baseline, with all complete steps up to it as the series; a best model is not in it,
        for it is of an earlier step."""
        from diagnostics.compare import compare

        ids = [probe.id for probe in self._judged]
        series = series_until(self._archive, step, ids, in_memory=(self._baseline, self._last))
        if series.left_out:
            self._failures.lack(f"in the comparison's series: {'; '.join(series.left_out)}")
        return compare(
            series.steps[0],
            series.steps[step],
            self._folder,
            probes=self._judged,
            series={
                one: records for one, records in series.steps.items() if one != step or self._best is None
            },
            samples=self.samples,
            why_not_patched=why_not_patched(self.attention_dir),
            language=self.language,
        )

    def _close(self) -> None:
        """Wait for the pictures, and report what is missing."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None
        if self.missing:
            logger.warning("attention monitor: %s", self.missing_words)

    @property
    def missing(self) -> list[str]:
        """What the run should have left and did not."""
        return self._failures.missing

    @property
    def missing_words(self) -> str:
        """``missing`` in one line; "" if nothing is."""
        return self._failures.words(self.output_dir)

    def _reporting(self, what: str, *, lacks: str | None = None) -> AbstractContextManager[None]:
        """Report a failure instead of raising it: training goes on without what ``lacks`` names."""
        return self._failures.reporting(what, lacks=lacks)
