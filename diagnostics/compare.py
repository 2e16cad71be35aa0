"""Before and after: what two models answer and where they look, as a table, a report and JSON.

    python -m diagnostics.compare --before X --after Y [--probes P] --output_dir O

X and Y are each a model folder or hub name, an adapter folder, or a folder of records
(OUTPUT/attention/step-000050). The report is O/comparison/index.html, the numbers O/comparison/comparison.json.
"""

from __future__ import annotations

import argparse
import json
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diagnostics.pairs import Cost, LayerPair, ProbePair, cost, pair_all, pairs_by_group
from diagnostics.probes import Probe, read_probes, write_probes
from diagnostics.records import AttentionRecord
from diagnostics.render import load_records, write_atomically
from diagnostics.report import report_html
from diagnostics.statistics import Change, benjamini_hochberg, paired_change, sign_flip_p
from diagnostics.verdicts import GroupNumbers, Verdict, verdict

VERSION = 1
SIGNIFICANT = 0.05

Json = dict[str, Any]
Records = Mapping[str, AttentionRecord]


def compare(
    before_records: Records,
    after_records: Records,
    output_dir: str | Path,
    *,
    probes: Sequence[Probe],
) -> Json:
    """Set two models' records of the same probes against each other and write the report.

    Args:
        before_records, after_records: probe id → record.
        output_dir: gets ``comparison/index.html`` and ``comparison/comparison.json``.
        probes: what was probed, in the order of the probe file.

    Returns:
        The content of comparison.json.

    Raises:
        ValueError: records are missing, or of other probes, layers or pictures.
    """
    pairs = pair_all(probes, before_records, after_records)
    comparison = comparison_of(pairs)
    folder = Path(output_dir) / "comparison"
    text = json.dumps(comparison, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomically(folder / "comparison.json", (text + "\n").encode())
    write_atomically(folder / "index.html", report_html(comparison, pairs).encode())
    return comparison


def comparison_of(pairs: Sequence[ProbePair]) -> Json:
    """Every number of a comparison, as comparison.json holds it.

    Differences are after - before; ``ci95`` is the paired bootstrap interval of the difference, whole images drawn
    with replacement. A number that was not measured is null.
    """
    groups = pairs_by_group(pairs)
    chances = _adjusted_chances(groups)
    return {
        "version": VERSION,
        "before": _model_words(pairs[0].before),
        "after": _model_words(pairs[0].after),
        "key_layers": [layer.layer for layer in pairs[0].layers],
        "groups": {name: _group(name, members, chances) for name, members in groups.items()},
        "probes": [_probe(pair) for pair in pairs],
    }


def table(comparison: Json) -> str:
    """The comparison for a terminal: one line a group, then the reasons of each verdict."""
    rows = [("group", "probes", "right", "margin, nats", "attention on region", "hiding it costs", "verdict")]
    for name, group in comparison["groups"].items():
        rows.append(
            (
                name,
                str(group["probes"]),
                _arrow(group["accuracy"], "{:.1%}"),
                _arrow(group["margin_nats"], "{:+.2f}"),
                _attention_cell(group["enrichment"]),
                _arrow(group["occlusion_nats"], "{:+.2f}"),
                group["verdict"],
            )
        )
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_pad(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    for name, group in comparison["groups"].items():
        lines += ["", f"{name}: {group['verdict']}", *(f"  - {reason}" for reason in group["reasons"])]
    return "\n".join(line.rstrip() for line in lines)


def _group(name: str, pairs: Sequence[ProbePair], chances: Mapping[tuple[str, int], float]) -> Json:
    scored = [pair for pair in pairs if pair.after.scores.margin_nats is not None]
    by_layer = _enrichment_by_layer(name, pairs, chances)
    judged = _judged_layer(by_layer)
    accuracy, margin = _accuracy(scored), _margin(scored)
    occlusion, knockout = _costs(pairs, "occlusion"), _costs(pairs, "knockout")
    claim = _verdict(name, pairs, accuracy, judged, occlusion)
    return {
        "probes": len(pairs),
        "accuracy": _change_json(accuracy),
        "margin_nats": _change_json(margin),
        "said_the_answer": _said_the_answer(pairs),
        "enrichment": None if judged is None else judged.json(),
        "enrichment_by_layer": [one.json() for one in by_layer],
        "relation_enrichment": _relation(pairs),
        "occlusion_nats": _costs_json(occlusion),
        "knockout_nats": _costs_json(knockout),
        "visual_share": _by_layer(pairs, _visual_share),
        "drift_jsd_nats": _by_layer(pairs, lambda pair, layer: layer.drift_jsd_nats),
        "verdict": claim.verdict,
        "reasons": list(claim.reasons),
    }


@dataclass(frozen=True)
class LayerEnrichment:
    """A group's enrichment of the judged region in one key layer; ``chance`` is the sign-flip p, adjusted for all
    groups and key layers that were looked at."""

    layer: int
    region: str
    change: Change
    chance: float

    def json(self) -> Json:
        change = self.change
        return {
            "layer": self.layer,
            "region": self.region,
            "before": change.before,
            "after": change.after,
            "difference": change.difference.mean,
            "ci95": [change.difference.low, change.difference.high],
            "p_adjusted": self.chance,
        }


def _enrichment_by_layer(
    name: str, pairs: Sequence[ProbePair], chances: Mapping[tuple[str, int], float]
) -> list[LayerEnrichment]:
    members = [pair for pair in pairs if pair.region is not None]
    if not members:
        return []
    regions = sorted({pair.region for pair in members if pair.region is not None})
    region = regions[0] if len(regions) == 1 else "each probe's own"
    return [
        LayerEnrichment(
            layer.layer,
            region,
            paired_change(*_enrichments(members, index), clusters=_images(members)),
            chances[name, layer.layer],
        )
        for index, layer in enumerate(members[0].layers)
    ]


def _judged_layer(by_layer: Sequence[LayerEnrichment]) -> LayerEnrichment | None:
    """The key layer that the verdict rests on.

    Several were fixed beforehand, so taking the best needs paying for: the one with the highest lower bound counts
    if it stays significant when adjusted for all that were looked at, else the one with the lowest stands.
    """
    if not by_layer:
        return None
    best = max(by_layer, key=lambda one: one.change.difference.low)
    return best if best.chance < SIGNIFICANT else min(by_layer, key=lambda one: one.change.difference.low)


def _adjusted_chances(groups: Mapping[str, Sequence[ProbePair]]) -> dict[tuple[str, int], float]:
    """(group, layer) → sign-flip p of the change of enrichment, Benjamini-Hochberg over all of them."""
    chances: dict[tuple[str, int], float] = {}
    for name, pairs in groups.items():
        members = [pair for pair in pairs if pair.region is not None]
        for index, layer in enumerate(members[0].layers if members else ()):
            before, after = _enrichments(members, index)
            chances[name, layer.layer] = sign_flip_p(after - before)
    if not chances:
        return {}
    adjusted = benjamini_hochberg(np.array(list(chances.values())))
    return dict(zip(chances, map(float, adjusted), strict=True))


def _enrichments(pairs: Sequence[ProbePair], layer_index: int) -> tuple[np.ndarray, np.ndarray]:
    readings = [pair.reading(pair.layers[layer_index]) for pair in pairs]
    return (
        np.array([reading.enrichment_before for reading in readings if reading is not None]),
        np.array([reading.enrichment_after for reading in readings if reading is not None]),
    )


def _images(pairs: Sequence[ProbePair]) -> list[str]:
    return [str(pair.probe.images[0].resolve()) for pair in pairs]


def _accuracy(scored: Sequence[ProbePair]) -> Change | None:
    return _paired(scored, lambda record: float((record.scores.margin_nats or 0.0) > 0))


def _margin(scored: Sequence[ProbePair]) -> Change | None:
    return _paired(scored, lambda record: record.scores.margin_nats or 0.0)


def _paired(pairs: Sequence[ProbePair], value: Callable[[AttentionRecord], float]) -> Change | None:
    if not pairs:
        return None
    before, after = ([value(getattr(pair, side)) for pair in pairs] for side in ("before", "after"))
    return paired_change(np.array(before), np.array(after), clusters=_images(pairs))


def _said_the_answer(pairs: Sequence[ProbePair]) -> Json | None:
    """Share of probes whose own greedy answer contains the right one, letter for letter but for case."""
    asked = [pair for pair in pairs if pair.before.scores.generated and pair.after.scores.generated]
    if not asked:
        return None
    return {
        side: float(
            np.mean(
                [pair.probe.answer.lower() in getattr(pair, side).scores.generated.lower() for pair in asked]
            )
        )
        for side in ("before", "after")
    }


@dataclass(frozen=True)
class CostChange:
    """What an intervention on the judged region costs, and the same on random regions, nats."""

    region: Change
    control: tuple[float, float]


def _costs(pairs: Sequence[ProbePair], kind: str) -> CostChange | None:
    measured: list[tuple[ProbePair, Cost, Cost]] = []
    for pair in pairs:
        before, after = (cost(record, kind, pair.region) for record in (pair.before, pair.after))
        if before is not None and after is not None:
            measured.append((pair, before, after))
    if not measured:
        return None
    members, before_costs, after_costs = zip(*measured, strict=True)
    change = paired_change(
        np.array([one.region for one in before_costs]),
        np.array([one.region for one in after_costs]),
        clusters=_images(members),
    )
    control = (
        float(np.mean([one.control for one in before_costs])),
        float(np.mean([one.control for one in after_costs])),
    )
    return CostChange(change, control)


def _costs_json(costs: CostChange | None) -> Json | None:
    if costs is None:
        return None
    control = [_finite(value) for value in costs.control]
    return {
        "before": costs.region.before,
        "after": costs.region.after,
        "ci95": [costs.region.difference.low, costs.region.difference.high],
        "control": {"before": control[0], "after": control[1]},
    }


def _verdict(
    name: str,
    pairs: Sequence[ProbePair],
    accuracy: Change | None,
    judged: LayerEnrichment | None,
    occlusion: CostChange | None,
) -> Verdict:
    if accuracy is None:
        return Verdict(
            "answers not measured", ("No probe of this group has a foil to set against its answer.",)
        )
    has_control = occlusion is not None and all(map(math.isfinite, occlusion.control))
    claim = verdict(
        GroupNumbers(
            group=name,
            probes=len(pairs),
            accuracy=accuracy,
            enrichment=None if judged is None else judged.change,
            occlusion_cost_nats=None if occlusion is None else occlusion.region,
            control_cost_nats=occlusion.control if occlusion is not None and has_control else None,
        )
    )
    return Verdict(claim.verdict, (*claim.reasons, *_layer_reason(claim.verdict, judged, pairs)))


def _layer_reason(claim: str, judged: LayerEnrichment | None, pairs: Sequence[ProbePair]) -> list[str]:
    if judged is None or claim in ("kept", "forgot", "broke a neighbour", "too few probes"):
        return []  # these verdicts rest on answers alone
    layers = [layer.layer for layer in pairs[0].layers]
    return [
        f"Attention is that of layer {judged.layer}, of the key layers {', '.join(map(str, layers))} fixed before "
        f"training (p = {judged.chance:.2g}, adjusted for every group and layer looked at)."
    ]


def _relation(pairs: Sequence[ProbePair]) -> Json | None:
    """Enrichment of both ends of the relation, for each key layer, as measured; null without a relation."""
    related = [pair for pair in pairs if pair.probe.relation is not None]
    if not related:
        return None
    ends: Json = {}
    for end in ("subject", "object"):
        ends[end] = []
        for index, layer in enumerate(related[0].layers):
            readings = [pair.layers[index].readings[getattr(pair.probe.relation, end)] for pair in related]
            change = paired_change(
                np.array([reading.enrichment_before for reading in readings]),
                np.array([reading.enrichment_after for reading in readings]),
                clusters=_images(related),
            )
            ends[end].append({"layer": layer.layer, **(_change_json(change) or {})})
    return ends


def _by_layer(pairs: Sequence[ProbePair], value: Callable[[ProbePair, LayerPair], Any]) -> Json:
    """Layer → mean over the probes of a number, or of several under names of their own."""
    means: Json = {}
    for index, layer in enumerate(pairs[0].layers):
        values = [value(pair, pair.layers[index]) for pair in pairs]
        if isinstance(values[0], dict):
            means[str(layer.layer)] = {key: float(np.mean([one[key] for one in values])) for key in values[0]}
        else:
            means[str(layer.layer)] = float(np.mean(values))
    return means


def _visual_share(pair: ProbePair, layer: LayerPair) -> dict[str, float]:
    return {side: float(getattr(pair, side).visual_share[layer.layer].mean()) for side in ("before", "after")}


def _probe(pair: ProbePair) -> Json:
    probe, before, after = pair.probe, pair.before.scores, pair.after.scores
    return {
        "id": probe.id,
        "group": probe.group,
        "question": probe.question,
        "answer": probe.answer,
        "foil": probe.foil,
        "region": pair.region,
        "said": {"before": before.generated, "after": after.generated},
        "margin_nats": {"before": before.margin_nats, "after": after.margin_nats},
        "correct": {
            "before": None if before.margin_nats is None else before.margin_nats > 0,
            "after": None if after.margin_nats is None else after.margin_nats > 0,
        },
        "occlusion_nats": _probe_costs(pair, "occlusion"),
        "knockout_nats": _probe_costs(pair, "knockout"),
        "layers": [_probe_layer(layer) for layer in pair.layers],
    }


def _probe_costs(pair: ProbePair, kind: str) -> Json | None:
    before, after = (cost(record, kind, pair.region) for record in (pair.before, pair.after))
    if before is None or after is None:
        return None
    return {
        "before": before.region,
        "after": after.region,
        "control": {"before": _finite(before.control), "after": _finite(after.control)},
    }


def _probe_layer(layer: LayerPair) -> Json:
    return {
        "layer": layer.layer,
        "drift_jsd_nats": layer.drift_jsd_nats,
        "regions": {
            name: {
                "mass": {"before": reading.mass_before, "after": reading.mass_after},
                "enrichment": {"before": reading.enrichment_before, "after": reading.enrichment_after},
            }
            for name, reading in layer.readings.items()
        },
    }


def _change_json(change: Change | None) -> Json | None:
    if change is None:
        return None
    interval = change.difference
    return {
        "before": change.before,
        "after": change.after,
        "difference": interval.mean,
        "ci95": [interval.low, interval.high],
    }


def _model_words(record: AttentionRecord) -> Json:
    return {"model": record.model, "step": record.step}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _arrow(change: Mapping[str, Any] | None, form: str) -> str:
    return "–" if change is None else f"{form.format(change['before'])} → {form.format(change['after'])}"


def _attention_cell(enrichment: Mapping[str, Any] | None) -> str:
    if enrichment is None:
        return "–"
    low, high = enrichment["ci95"]
    return f"{_arrow(enrichment, '{:.2f}×')} [{low:+.2f}, {high:+.2f}]"


def _width(text: str) -> int:
    """Columns of a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


# ---------------------------------------------------------------- from the command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare what the command line names, print the table and say where the report is."""
    parser = argparse.ArgumentParser(
        prog="python -m diagnostics.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--before", required=True, help="model folder, hub name, adapter folder or folder of records"
    )
    parser.add_argument("--after", required=True, help="the same")
    parser.add_argument("--probes", type=Path, help="probe file (default: the one beside the records)")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets comparison/")
    parser.add_argument("--key_layers", default="auto", help="auto, or layers with commas: 8,16,24,31")
    options = parser.parse_args(arguments)
    try:
        comparison = compare_sources(
            options.before,
            options.after,
            options.output_dir,
            probes_file=options.probes,
            key_layers=options.key_layers,
        )
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    print(table(comparison))
    print(f"\nreport: {options.output_dir / 'comparison' / 'index.html'}")


def compare_sources(
    before: str, after: str, output_dir: Path, *, probes_file: Path | None = None, key_layers: str = "auto"
) -> Json:
    """Compare two models or folders of records; what is probed here leaves its records in the output folder.

    Raises:
        ValueError: a source is neither, or nothing says what to probe.
    """
    folders = [_record_folder(source) for source in (before, after)]
    probes = read_probes(_probe_file(probes_file, folders))
    records: list[Records | None] = [load_records(folder) if folder else None for folder in folders]
    given = next((records_ for records_ in records if records_ is not None), None)
    layers = None if given is None else next(iter(given.values())).layers
    if None in records:
        records = _probe_sources((before, after), records, probes, output_dir, layers or key_layers)
        write_probes(probes, output_dir / "attention" / "probes.json")
    assert records[0] is not None and records[1] is not None
    return compare(records[0], records[1], output_dir, probes=probes)


def _probe_sources(
    sources: tuple[str, str],
    records: Sequence[Records | None],
    probes: Sequence[Probe],
    output_dir: Path,
    key_layers: str | tuple[int, ...],
) -> list[Records | None]:
    """Probe the sources that are models. Where "before" is the very base of the adapter "after", one loaded model
    serves both, with the adapter switched off for the first."""
    from finetune.checkpoint import load, resolve  # torch and transformers only where a model is loaded

    filled = list(records)
    adapter_base = (
        resolve(sources[1])[0] if records[1] is None and resolve(sources[1])[1] is not None else None
    )
    shares = records[0] is None and resolve(sources[0])[1] is None and _same_place(sources[0], adapter_base)
    loaded: tuple[Any, Any] | None = None
    for index in (1, 0):
        if filled[index] is not None:
            continue
        reuse = index == 0 and shares and loaded is not None
        if not reuse:
            loaded = load(sources[index])
        assert loaded is not None
        without_adapter = loaded[0].disable_adapter() if reuse else nullcontext()
        folder = output_dir / "attention" / ("before", "after")[index]
        filled[index] = _probe_model(
            loaded, sources[index], index, probes, folder, key_layers, without_adapter
        )
    return filled


def _probe_model(
    loaded: tuple[Any, Any],
    name: str,
    step: int,
    probes: Sequence[Probe],
    folder: Path,
    key_layers: str | tuple[int, ...],
    state: AbstractContextManager[Any],
) -> Records:
    from diagnostics.probe import Prober

    model, processor = loaded
    layers = _layers(key_layers, model)
    records = {}
    with state:
        prober = Prober(model, processor, key_layers=layers, probes=probes)
        for record in prober.run_all(step, name, progress=True):
            record.save(folder / f"{record.probe_id}.safetensors")
            records[record.probe_id] = record
    return records


def _layers(key_layers: str | tuple[int, ...], model: Any) -> tuple[int, ...]:
    from diagnostics.probe import auto_key_layers

    if isinstance(key_layers, tuple):
        return key_layers
    if key_layers == "auto":
        return tuple(auto_key_layers(model))
    try:
        return tuple(int(layer) for layer in key_layers.split(","))
    except ValueError as error:
        raise ValueError(
            f"--key_layers: found {key_layers!r}; expected auto, or numbers as in 8,16,24,31"
        ) from error


def _same_place(first: str, second: str | None) -> bool:
    return second is not None and (first == second or Path(first).resolve() == Path(second).resolve())


def _record_folder(source: str) -> Path | None:
    """The folder of records that a source names, or None where it names a model.

    Raises:
        ValueError: the folder is there and is neither.
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
        raise ValueError(
            "--probes: no probe file given, and none beside the records; give the file to probe with"
        )
    return found


if __name__ == "__main__":
    main()
