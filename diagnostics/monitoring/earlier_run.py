"""An earlier run in a folder: may this training resume it, or take over what it measured of the untrained model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diagnostics.monitoring.moments import PRECISION, Moment, in_words, precision_difference
from diagnostics.probing.layer_choice import Calibration
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.records.archive import RecordArchive, begun_there, fault_words, step_folder, whole_records
from diagnostics.records.identity import ModelMarks, Run, model_difference
from diagnostics.records.measurement_plan import MeasurementPlan
from diagnostics.records.probe_marks import probe_differences, probe_marks
from diagnostics.records.probes import KEPT_SHARE, Probe
from diagnostics.records.record import AttentionRecord
from finetune.families import Family

CHECKED_READINGS = 16
"""Probes that are encoded again when a run resumes, to check that processor and template are unchanged."""


@dataclass(frozen=True)
class EarlierRun:
    """What an earlier run left, and what this training would measure.

    folder      its ``attention/``
    probes, processor, family   of this training
    depth       what is measured at both of its ends
    at          when and in which precision this training begins or resumes
    """

    folder: Path
    probes: Sequence[Probe]
    processor: Any
    family: Family
    depth: MeasurementPlan
    at: Moment

    def to_resume(
        self,
        marks: ModelMarks,
        key_layers: Literal["auto"] | Sequence[int],
        runs: Sequence[str] | None,
    ) -> tuple[Run, Calibration | None]:
        """The run, and how its layers were chosen.

        runs   those that the checkpoint names from which training resumes; None without such a checkpoint

        Raises:
            ValueError: this training cannot resume it.
        """
        chosen, layers, step = None, key_layers, self.at.step
        if isinstance(layers, str):
            path = self.folder / "calibration.json"
            if not path.is_file():
                raise _no_start(step, path, "key layers that were chosen on the untrained model")
            chosen = Calibration.load(path)
            layers = chosen.layers
        layers = tuple(layers)
        what, base = "complete baseline of these probes and layers", step_folder(self.folder, 0)
        try:
            run = Run.from_json(begun_there(self.folder))
        except ValueError as error:
            raise _no_start(step, base, f"{what} ({error})") from error
        archive = self._archive(run, layers)
        other = (
            probe_differences(run.probes, probe_marks(self.probes))
            or (
                f"layers {list(run.key_layers)} there, {list(layers)} now"
                if run.key_layers != layers
                else None
            )
            or model_difference(run.model, marks)
            or ("the checkpoint belongs to another run" if runs is not None and run.run not in runs else None)
            or archive.shortfall(0, self.depth)
            or self._other_precision()
            or self._other_reading(archive)
        )
        if other is not None:
            raise _no_start(step, base, f"{what} ({other})")
        return run, chosen

    def baseline_for(self, run: Run) -> RecordArchive:
        """The archive whose step 0 is what ``run`` would measure of the untrained model.

        Raises:
            ValueError: it measured anything else.
        """
        other = Run.from_json(begun_there(self.folder))
        archive = self._archive(other, run.key_layers)
        differs = (
            probe_differences(other.probes, run.probes)
            or ("the model before training is another" if other.model != run.model else None)
            or archive.shortfall(0, self.depth)
            or self._other_precision()
            or self._other_reading(archive)
        )
        if differs:
            raise ValueError(differs)
        return archive

    def _archive(self, run: Run, layers: Sequence[int]) -> RecordArchive:
        return RecordArchive(self.folder, [probe.id for probe in self.probes], tuple(layers), run.run)

    def _other_precision(self) -> str | None:
        """Why the baseline was measured in another precision than this training would; None if it was not. Earlier
        versions kept no note of it, and measured what Accelerate had prepared in the weights' own precision."""
        begun, now = begun_there(self.folder), self.at.precision
        if isinstance(begun, dict) and PRECISION in begun:
            return precision_difference(begun[PRECISION], now)
        if not self.at.is_prepared:
            return None
        return f"an earlier version, which kept no note of its precision, measured it; now it would be {in_words(now)}"

    def _less_was_measured(
        self, archive: RecordArchive, records: Mapping[str, AttentionRecord]
    ) -> str | None:
        """Why a probe's record holds less than this training measures: its group was to be kept, and is called
        otherwise now."""
        if archive.measured_kept(0) or not self.depth.kinds:
            return None
        for probe in self.probes:
            called = records[probe.id].group
            if called in KEPT_SHARE and probe.group not in KEPT_SHARE and probe.foil and probe.regions:
                return (
                    f"probe {probe.id} was measured as one of {called}, of which a {self.depth.name} probing hides no "
                    f"region; call its group {called} again"
                )
        return None

    def _other_reading(self, archive: RecordArchive) -> str | None:
        """Why the baseline's records do not match what would be measured now: they are broken, or tokenizer, template
        or pixel budget have changed. None if they match."""
        records, faults = whole_records(archive.folder(0), archive.probe_ids)
        if faults:
            return fault_words(faults)
        if (renamed := self._less_was_measured(archive, records)) is not None:
            return renamed
        reader = ProbeEncoder(self.family, self.processor)
        for probe in self.probes[:CHECKED_READINGS]:
            record, now = records[probe.id], reader.layout(probe)
            before = (record.tokens, tuple(image.grid for image in record.image_tokens))
            if before != now:
                return f"probe {probe.id} is encoded differently now: processor, template or pixel budget have changed"
        return None


def _no_start(step: int, path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: found no {what}; this run resumes from step {step}, where the untrained model can no longer be "
        "measured. Expected the records of step 0: start again in another output folder, or resume without the monitor"
    )
