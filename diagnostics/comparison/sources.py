"""The sources of a comparison: models, adapters or folders of records → records."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from diagnostics.probing.before import (
    AdapterOff,
    BeforeModel,
    NotAtHandError,
    OtherModel,
    difference,
    require_room,
)
from diagnostics.probing.layer_choice import Calibration, calibrate, check_apart, held_out
from diagnostics.probing.prober import Prober, auto_key_layers
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.records.archive import load_records, why_not_patched
from diagnostics.records.measurement_plan import WATCH, MeasurementPlan, cost_words
from diagnostics.records.names import record_name
from diagnostics.records.probes import Probe, read_probes, write_probes
from diagnostics.records.record import AttentionRecord
from finetune.families import bare_model, family_of
from finetune.model.checkpoint import check, load, resolve
from finetune.model.look_file import supervised_of
from finetune.model.seen_file import seen_of

Records = Mapping[str, AttentionRecord]


class Found(NamedTuple):
    """Records of each source in the given order, the probes to judge, a number to order the sources by (the training
    step if all are records of ascending steps, else the index), and, if known, why the attention of the first was not
    put back into the last."""

    probes: tuple[Probe, ...]
    records: tuple[Records, ...]
    steps: tuple[int, ...]
    why_not_patched: str | None = None


class Opening(NamedTuple):
    """Where adapters among the sources find their bases."""

    base: str | None
    allow_other_base: bool

    def check(self, source: str) -> None:
        check(source, **self._asdict())

    def load(self, source: str) -> tuple[Any, Any]:
        return load(source, **self._asdict())


def records_of(
    sources: Sequence[str],
    output_dir: Path,
    *,
    probes_file: Path | None,
    calibration_file: Path | None,
    key_layers: str,
    depth: MeasurementPlan,
    base: str | None = None,
    allow_other_base: bool = False,
) -> Found:
    """Load sources that are records, and probe those that are models, one after another.

    If "before" is the base of the adapter "after", one loaded model serves both, with the adapter disabled for the
    first. With ``patching`` in the plan, the attention of "before" is put back into "after": the former stays in memory
    if both fit; if not, or if their architectures differ, the reason is printed and nothing is patched.

    base, allow_other_base   of adapters: as in ``finetune.model.checkpoint.load``

    Raises:
        ValueError: a source is neither records nor a model, there is no probe file, or layers do not match the records.
    """
    folders = [_record_folder(source) for source in sources]
    opening = Opening(base, allow_other_base)
    for source, folder in zip(sources, folders, strict=True):
        if folder is None:
            opening.check(source)
    for line in order_warnings(sources):
        print(f"warning: {line}", flush=True)
    probes = read_probes(_probe_file(probes_file, folders))
    calibration = read_probes(calibration_file) if calibration_file is not None else ()
    check_apart(calibration, probes)
    records: dict[int, Records] = {at: load_records(one) for at, one in enumerate(folders) if one is not None}
    layers = _given_layers(key_layers, records.values())
    judged = probes
    last = len(sources) - 1
    lends = depth.patching and folders[0] is None and folders[last] is None
    kept: Any = None
    why_not = _why_not(folders, depth)
    for at, model, processor, state in _models(sources, folders, opening):
        before = None
        if at == last and kept is not None:
            before, why_not = _before(kept, model, sources[0])
        with state:
            reader = ProbeEncoder(family_of(bare_model(model).config), processor)
            for line in reader.check((*calibration, *probes), "probes"):
                if at == 0:
                    print(f"warning: {line}", flush=True)
            if layers is None:
                layers, judged = _calibrated(model, processor, probes, calibration, output_dir)
            folder = output_dir / "attention" / _name(at, len(sources))
            records[at] = _probed((model, processor), sources[at], at, probes, layers, depth, folder, before)
        if at == 0 and lends:
            why_not = None if not isinstance(state, nullcontext) else _lack_of_room(model)
            kept = model if why_not is None else None
    if len(records) > sum(folder is not None for folder in folders):
        write_probes(probes, output_dir / "attention" / "probes.json")
    ordered = tuple(records[at] for at in range(len(sources)))
    return Found(judged, ordered, _steps(ordered, folders), why_not)


def order_warnings(sources: Sequence[str]) -> list[str]:
    """One line where checkpoints of one folder are not in the order of training: a shell sorts 1000 before 200."""
    found = [
        (Path(one).absolute(), re.fullmatch(r"(checkpoint|step)-(\d+)", Path(one).name)) for one in sources
    ]
    numbered = [(path, int(match[2])) for path, match in found if match is not None]
    return [
        f"{path.name} is given before {after.name}: charts show checkpoints in the order given, so give them in the "
        "order of training"
        for (path, step), (after, other) in itertools.pairwise(numbered)
        if path.parent == after.parent and step > other
    ][:1]


def _why_not(folders: Sequence[Path | None], depth: MeasurementPlan) -> str | None:
    """The reason, if it is known before anything is loaded."""
    first, last = folders[0], folders[-1]
    if last is not None:
        return why_not_patched(last.parent)
    if first is not None:
        return "the model before is given only as records, and patching needs the model itself"
    return None if depth.patching else f"{depth.name} probing does not put attention back"


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


def _models(
    sources: Sequence[str], folders: Sequence[Path | None], opening: Opening
) -> Iterator[tuple[int, Any, Any, AbstractContextManager[Any]]]:
    """Index, model, processor and probing context of each source that is a model; "before" comes first, so that key
    layers are chosen on it."""
    last = len(sources) - 1
    shared = _adapter_base(sources[last], opening.base) if folders[last] is None else None
    shares = (
        folders[0] is None
        and _adapter_base(sources[0], opening.base) is None
        and _same_place(sources[0], shared)
    )
    kept: tuple[Any, Any] | None = opening.load(sources[last]) if shares else None
    for at, source in enumerate(sources):
        if folders[at] is not None:
            continue
        if kept is not None and at in (0, last):
            model, processor = kept
            yield at, model, processor, model.disable_adapter() if at == 0 else nullcontext()
        else:
            model, processor = opening.load(source)
            yield at, model, processor, nullcontext()


def _probed(
    loaded: tuple[Any, Any],
    name: str,
    step: int,
    probes: Sequence[Probe],
    layers: Sequence[int],
    depth: MeasurementPlan,
    folder: Path,
    before: BeforeModel | None,
) -> Records:
    model, processor = loaded
    prober = Prober(
        model,
        processor,
        key_layers=layers,
        probes=probes,
        depth=depth,
        before=before,
        supervised=supervised_of(name),
        seen=seen_of(name),
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


def _given_layers(key_layers: str, records: Any) -> tuple[int, ...] | None:
    """The layers of existing records, else the given ones; None: to be chosen."""
    for one in records:
        return next(iter(one.values())).layers
    if key_layers == "auto":
        return None
    try:
        return tuple(int(layer) for layer in key_layers.split(","))
    except ValueError as error:
        raise ValueError(
            f"--key_layers: found {key_layers!r}; expected auto, or numbers as in 8,16,24,31"
        ) from error


def _name(at: int, count: int) -> str:
    return "before" if at == 0 else "after" if at == count - 1 else f"between-{at}"


def _steps(records: Sequence[Records], folders: Sequence[Path | None]) -> tuple[int, ...]:
    steps = tuple(next(iter(one.values())).step for one in records)
    is_one_run = None not in folders and list(steps) == sorted(set(steps))
    return steps if is_one_run else tuple(range(len(records)))


def _adapter_base(source: str, given: str | None) -> str | None:
    base, adapter = resolve(source, base=given)
    return None if adapter is None else base


def _same_place(first: str, second: str | None) -> bool:
    return second is not None and (first == second or Path(first).resolve() == Path(second).resolve())


def _record_folder(source: str) -> Path | None:
    """The folder of records that a source names, or None if it names a model.

    Raises:
        ValueError: the folder exists and holds neither.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() or any(
        (folder / name).is_file() for name in ("config.json", "adapter_config.json")
    ):
        return None
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder}: found neither config.json, adapter_config.json nor records (ID.safetensors); expected a model "
            "folder, an adapter folder, or a folder of records such as OUTPUT/attention/step-000050"
        )
    return folder


def _probe_file(given: Path | None, folders: Sequence[Path | None]) -> Path:
    if given is not None:
        return given
    beside = [folder.parent / "probes.json" for folder in folders if folder is not None]
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        raise ValueError("--probes: no probe file given, and none beside the records; give the probe file")
    return found
