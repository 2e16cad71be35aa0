"""The sources of a comparison: models, adapters or folders of records → records."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnostics.probing.layer_choice import Calibration, check_apart
from diagnostics.records.archive import load_records, why_not_patched
from diagnostics.records.measurement_plan import MeasurementPlan
from diagnostics.records.probes import Probe, read_probes, write_probes
from diagnostics.records.record import AttentionRecord

if TYPE_CHECKING:
    from diagnostics.comparison.probed_sources import Models

Records = Mapping[str, AttentionRecord]


class Found(NamedTuple):
    """Records of each source in the given order, the probes to judge, a number to order the sources by (the training
    step if all are records of ascending steps, else the index), if known, why the attention of the first was not put
    back into the last, and what the report must say of all groups."""

    probes: tuple[Probe, ...]
    records: tuple[Records, ...]
    steps: tuple[int, ...]
    why_not_patched: str | None = None
    warnings: tuple[str, ...] = ()


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

    Probes on which the key layers of records were chosen are not judged; a line says how many.

    base, allow_other_base   of adapters: as in ``finetune.model.checkpoint.load``

    Raises:
        ValueError: a source is neither records nor a model, there is no probe file, or layers do not match the records.
    """
    folders = [_record_folder(source) for source in sources]
    if base is not None and None not in folders:
        print("warning: --base is not used: all that is compared are records", flush=True)
    models = _models(sources, folders, base, allow_other_base)
    for line in order_warnings(sources):
        print(f"warning: {line}", flush=True)
    probes = read_probes(_probe_file(probes_file, folders))
    calibration = read_probes(calibration_file) if calibration_file is not None else ()
    check_apart(calibration, probes)
    records: dict[int, Records] = {at: load_records(one) for at, one in enumerate(folders) if one is not None}
    processors = None if models is None else models.processor_warning()
    warnings = (
        *_left_out(records.values(), (*calibration, *probes)),
        *([] if processors is None else [processors]),
    )
    for line in warnings:
        print(f"warning: {line}", flush=True)
    layers = _given_layers(key_layers, records.values())
    judged, why_not = probes, _why_not(folders, depth)
    if models is not None:
        probed = models.probe(probes, calibration, layers, depth, output_dir, why_not)
        records |= probed.records
        judged, why_not = probed.judged, probed.why_not_patched
        write_probes(probes, output_dir / "attention" / "probes.json")
    if calibration_file is None:
        judged = _without_chosen_on(judged, folders, layers)
    ordered = tuple(records[at] for at in range(len(sources)))
    return Found(judged, ordered, _steps(ordered, folders), why_not, warnings)


def _left_out(records: Iterable[Records], probes: Sequence[Probe]) -> tuple[str, ...]:
    """One line where records are of more probes than the file has: who picks probes once their answers are known can
    have any result."""
    known = {probe_id for one in records for probe_id in one}
    missing = len(known - {probe.id for probe in probes})
    if not missing:
        return ()
    return (
        f"{missing} of {len(known)} probes of the records are not in the probe file: what is picked once answers are "
        "known can show anything; give all probes of the records, unless these were left out beforehand.",
    )


def _models(
    sources: Sequence[str], folders: Sequence[Path | None], base: str | None, allow_other_base: bool
) -> Models | None:
    """Those of the sources that are models, checked; None where all are records, which need no torch."""
    if None not in folders:
        return None
    from diagnostics.comparison.probed_sources import Models

    models = Models(tuple(sources), tuple(folders), base, allow_other_base)
    models.check()
    return models


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


def _given_layers(key_layers: str, records: Any) -> tuple[int, ...] | None:
    """The layers of existing records, else the given ones; None: to be chosen.

    Raises ValueError for given ones that are no numbers, or others than those of the records.
    """
    given = None
    if key_layers != "auto":
        try:
            given = tuple(int(layer) for layer in key_layers.split(","))
        except ValueError as error:
            raise ValueError(
                f"--key_layers: found {key_layers!r}; expected auto, or numbers as in 8,16,24,31"
            ) from error
    for one in records:
        layers: tuple[int, ...] = next(iter(one.values())).layers
        if given is not None and set(given) != set(layers):
            raise ValueError(
                f"--key_layers: found {key_layers}, expected {','.join(map(str, layers))}, the layers of the records; "
                "leave the flag out, or compare the models instead of their records"
            )
        return layers
    return given


def _without_chosen_on(
    probes: tuple[Probe, ...], folders: Sequence[Path | None], layers: tuple[int, ...] | None
) -> tuple[Probe, ...]:
    """The probes on which the layers of records were not chosen: a run keeps them out of its verdicts too.

    Raises ValueError where none is left, and for a calibration that cannot be read.
    """
    for path in dict.fromkeys(one.parent / "calibration.json" for one in folders if one is not None):
        if not path.is_file() or set((found := Calibration.load(path)).layers) != set(layers or ()):
            continue
        left = tuple(probe for probe in probes if probe.id not in found.probes)
        if not left:
            raise ValueError(
                f"{path}: the key layers were chosen on all {len(probes)} probes, expected others to judge; if they "
                "were chosen on another file, whose ids are the same, give it as --calibration_probes"
            )
        if len(left) < len(probes):
            print(
                f"{len(probes) - len(left)} of {len(probes)} probes are left out of the verdicts: the key layers were "
                f"chosen on them ({path}); if they were chosen on another file, give it as --calibration_probes",
                flush=True,
            )
        probes = left
    return probes


def _steps(records: Sequence[Records], folders: Sequence[Path | None]) -> tuple[int, ...]:
    steps = tuple(next(iter(one.values())).step for one in records)
    is_one_run = None not in folders and list(steps) == sorted(set(steps))
    return steps if is_one_run else tuple(range(len(records)))


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
