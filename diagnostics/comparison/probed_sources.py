"""The models among the sources of a comparison: opened one after another, asked all probes, their records saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from diagnostics.probing.before import (
    AdapterOff,
    BeforeModel,
    NotAtHandError,
    OtherModel,
    difference,
    is_base_when_off,
    require_room,
)
from diagnostics.probing.layer_choice import Calibration, calibrate, held_out
from diagnostics.probing.prober import Prober, auto_key_layers
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.probing.trained_on import TrainedOn, trained_on, with_base
from diagnostics.records.measurement_plan import WATCH, MeasurementPlan, cost_words
from diagnostics.records.names import record_name
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord
from finetune.families import bare_model, family_of
from finetune.families.parts.processors import differing_settings
from finetune.model.checkpoint import check, load, load_processor, resolve
from finetune.model.folders import read
from finetune.model.run_data import RunData

Records = Mapping[str, AttentionRecord]


class Probed(NamedTuple):
    """Records by the place of their model among the sources, the probes to judge, and why the attention of the first
    was not put back into the last."""

    records: dict[int, Records]
    judged: tuple[Probe, ...]
    why_not_patched: str | None


@dataclass(frozen=True)
class Models:
    """Those of the sources whose folder of records is None.

    base, allow_other_base   of adapters: as in ``finetune.model.checkpoint.load``
    """

    sources: tuple[str, ...]
    folders: tuple[Path | None, ...]
    base: str | None
    allow_other_base: bool

    def check(self) -> None:
        """Raises ValueError, before anything is loaded, for what is no model."""
        for source, folder in zip(self.sources, self.folders, strict=True):
            if folder is None:
                check(source, base=self.base, allow_other_base=self.allow_other_base)

    def processor_warning(self) -> str | None:
        """One line where the processors of "before" and "after" have different settings: what is read through the
        adapter's, or read differently. None where they have the same, where one has none (the base of an adapter that
        brings its own), and for records."""
        if self.folders[0] is not None or self.folders[-1] is not None:
            return None
        try:
            before, after = (
                load_processor(one, base=self.base) for one in (self.sources[0], self.sources[-1])
            )
        except ValueError:  # the models that need it are refused where they are loaded
            return None
        differing = ", ".join(differing_settings(before, after))
        if not differing:
            return None
        if self._share_one_model():
            return (
                "Before and after are both read through the adapter's processor, whose settings are not the base's own "
                f"({differing}): the base by itself may answer otherwise."
            )
        return (
            f"Before and after are read through processors of other settings ({differing}): some of what differs may "
            "come from them, not from training."
        )

    def probe(
        self,
        probes: tuple[Probe, ...],
        calibration: Sequence[Probe],
        layers: tuple[int, ...] | None,
        depth: MeasurementPlan,
        output_dir: Path,
        why_not_patched: str | None,
    ) -> Probed:
        """Ask every model all probes, and save the records in the output folder.

        layers            key layers, or None: chosen on the first model
        why_not_patched   the reason, if it is known before anything is loaded
        """
        records: dict[int, Records] = {}
        judged, why_not = probes, why_not_patched
        last = len(self.sources) - 1
        lends = depth.patching and self.folders[0] is None and self.folders[last] is None
        kept: Any = None
        notes = self._notes((*calibration, *probes))
        for at, model, processor, state in self._opened():
            before = None
            if at == last and kept is not None:
                before, why_not = _before(kept, model, self.sources[0])
            with state:
                reader = ProbeEncoder(family_of(bare_model(model).config), processor)
                for line in reader.check((*calibration, *probes), "probes"):
                    if at == 0:
                        print(f"warning: {line}", flush=True)
                if layers is None:
                    layers, judged = _calibrated(model, processor, probes, calibration, output_dir)
                folder = output_dir / "attention" / _name(at, len(self.sources))
                loaded = (model, processor)
                records[at] = _probed(
                    loaded, self.sources[at], at, probes, layers, depth, folder, before, notes[at]
                )
            if at == 0 and lends:
                why_not = None if not isinstance(state, nullcontext) else _lack_of_room(model)
                kept = model if why_not is None else None
        return Probed(records, judged, why_not)

    def _notes(self, probes: Sequence[Probe]) -> dict[int, TrainedOn]:
        """What is known of each model's training, by its place; before any is loaded, for that is said first."""
        data = RunData(path for probe in probes for path in probe.images)
        return {
            at: trained_on(with_base(self.sources[at], base=self.base), data)
            for at, folder in enumerate(self.folders)
            if folder is None
        }

    def _opened(self) -> Iterator[tuple[int, Any, Any, AbstractContextManager[Any]]]:
        """Index, model, processor and probing context of each model; "before" comes first, so that key layers are
        chosen on it."""
        last = len(self.sources) - 1
        kept = self._load(last) if self._share_one_model() else None
        for at, folder in enumerate(self.folders):
            if folder is not None:
                continue
            if kept is not None and at in (0, last):
                model, processor = kept
                yield at, model, processor, model.disable_adapter() if at == 0 else nullcontext()
            else:
                model, processor = self._load(at)
                yield at, model, processor, nullcontext()

    def _load(self, at: int) -> tuple[Any, Any]:
        return load(self.sources[at], base=self.base, allow_other_base=self.allow_other_base)

    def _share_one_model(self) -> bool:
        """Whether "after" is an adapter that, switched off, leaves exactly "before"."""
        if self.folders[0] is not None or self.folders[-1] is not None:
            return False
        base, adapter = resolve(self.sources[-1], base=self.base)
        if adapter is None or resolve(self.sources[0], base=self.base)[1] is not None:
            return False
        return _same_place(self.sources[0], base) and is_base_when_off(read(adapter))


def _before(kept: Any, after: Any, name: str) -> tuple[BeforeModel | None, str | None]:
    """The model before, as the source of attention; or None and the reason, which is printed."""
    try:
        if kept is after:
            return AdapterOff(after, name), None
        if (fault := difference(kept, after)) is None:
            return OtherModel(kept, name), None
        raise NotAtHandError(fault)
    except NotAtHandError as error:
        print(NOT_PUT_BACK.format(error), flush=True)
        return None, str(error)


def _lack_of_room(model: Any) -> str | None:
    try:
        require_room(model)
    except NotAtHandError as error:
        print(NOT_PUT_BACK.format(error), flush=True)
        return str(error)
    return None


NOT_PUT_BACK = "attention of the model before is not put back into the model after: {}"


def _probed(
    loaded: tuple[Any, Any],
    name: str,
    step: int,
    probes: Sequence[Probe],
    layers: Sequence[int],
    depth: MeasurementPlan,
    folder: Path,
    before: BeforeModel | None,
    notes: TrainedOn,
) -> Records:
    model, processor = loaded
    prober = Prober(
        model,
        processor,
        key_layers=layers,
        probes=probes,
        depth=depth,
        before=before,
        supervised=notes.supervised,
        seen=notes.seen,
    )
    prober.self_check()
    print(f"{name}: {cost_words(depth, tuple(probes), len(layers), prober.allowed)}", flush=True)
    records = {record.probe_id: record for record in prober.run_all(step, name, progress=True)}
    for probe_id, record in records.items():
        record.save(folder / record_name(probe_id))
    return records


def _calibrated(
    model: Any, processor: Any, probes: Sequence[Probe], calibration: Sequence[Probe], output_dir: Path
) -> tuple[tuple[int, ...], tuple[Probe, ...]]:
    """Key layers chosen on the first model, and the remaining probes to judge."""
    found = calibrated(model, processor, probes, calibration)
    found.save(output_dir / "attention" / "calibration.json")
    print(f"key layers: {found.why}", flush=True)
    own = set() if calibration else set(found.probes)
    return found.layers, tuple(probe for probe in probes if probe.id not in own)


def calibrated(
    model: Any, processor: Any, probes: Sequence[Probe], calibration: Sequence[Probe]
) -> Calibration:
    """Key layers chosen on one model: on ``calibration``, else on pictures held out from the probes."""
    evenly = auto_key_layers(model)
    chosen_on = calibration or held_out(probes)
    quiet = replace(WATCH, generate=False)
    prober = Prober(model, processor, key_layers=evenly, probes=chosen_on, depth=quiet)
    records = {record.probe_id: record for record in prober.run_all(0, "base", progress=True)}
    return calibrate(chosen_on, records, evenly=evenly)


def _same_place(first: str, second: str) -> bool:
    return first == second or Path(first).resolve() == Path(second).resolve()


def _name(at: int, count: int) -> str:
    return "before" if at == 0 else "after" if at == count - 1 else f"between-{at}"
