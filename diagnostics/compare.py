"""Before and after: answers and attention of two models, as a table, a report and JSON.

Usage and flags: ``diagnostics/flags/compare.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from diagnostics.flags.compare import NOT_OF_SERVERS, THRESHOLDS, parser

if __name__ == "__main__":
    parser().parse_args()  # handle --help and wrong flags before the slow imports below

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.legs.leg import percent
from diagnostics.comparison.legs.shown import LEGEND, marks, shown_legs
from diagnostics.comparison.legs.shown import NAMES as LEG_NAMES
from diagnostics.comparison.onset import onset_of
from diagnostics.comparison.pairs import pair_all
from diagnostics.comparison.sources import Found, records_of
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.trajectory import evolution_of, read_series, series_of
from diagnostics.comparison.verdicts import KEPT, UNGUARDED, requirement, shortfalls
from diagnostics.probing.server_client import ServerClient, is_address
from diagnostics.records.archive import best_in
from diagnostics.records.measurement_plan import DEPTHS, QUICK, MeasurementPlan
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord
from diagnostics.report.case_studies import TrainingSample
from diagnostics.report.languages import Language, check_language
from diagnostics.report.page import TIME_STEPS_MIN, report_html
from diagnostics.report.served_page import count_rows, served_html
from diagnostics.report.tables import columns
from finetune import folder_lock
from finetune.files import check_writable, fault_words, write_atomically
from finetune.printable import printable

Json = dict[str, Any]
Records = Mapping[str, AttentionRecord]


def compare(
    before_records: Records,
    after_records: Records,
    output_dir: str | Path,
    *,
    probes: Sequence[Probe],
    series: Mapping[int, Records] | None = None,
    samples: Sequence[TrainingSample] = (),
    thresholds: Thresholds | None = None,
    why_not_patched: str | None = None,
    warnings: Sequence[str] = (),
    language: Language = "en",
) -> Json:
    """Compare two models' records of the same probes and write the report.

    Args:
        before_records, after_records: probe id → record.
        output_dir: gets ``comparison/index.html`` and ``comparison/comparison.json``.
        probes: what is judged, in the order of the probe file.
        series: step → records of every checkpoint, the model before included, and the model after where it is that of
            the last step; with three or more the report shows the development over training, and what began when.
        samples: training samples; the report shows those related to its cases.
        thresholds: what each leg of a verdict requires.
        why_not_patched: why the attention of the model before was not put back, for the verdicts' reasons.
        warnings: what is to be known of every group.
        language: what the report shows first; it has a switch.

    Returns:
        The content of comparison.json.

    Raises:
        ValueError: records are missing, or belong to other probes, layers or pictures; an unknown language.
    """
    check_language(language)
    pairs = pair_all(probes, before_records, after_records)
    comparison = comparison_of(pairs, thresholds=thresholds, why_not_patched=why_not_patched)
    for group in comparison["groups"].values():
        group["warnings"] += warnings
    evolution = None
    if series is not None and len(series) > 1:
        evolution = evolution_of(series)
        read = read_series(probes, evolution)
        comparison["series"] = series_of(probes, evolution, read)
        if len(evolution.steps) >= TIME_STEPS_MIN:
            comparison["onset"] = onset_of(pairs, evolution.steps, read, thresholds)
    folder = Path(output_dir) / "comparison"
    _require_finite(comparison)
    text = json.dumps(comparison, ensure_ascii=False, indent=1, allow_nan=False)
    page = report_html(comparison, pairs, evolution=evolution, samples=samples, language=language)
    write_atomically(folder / "comparison.json", (text + "\n").encode())
    write_atomically(folder / "index.html", page.encode())
    return comparison


def _require_finite(content: Any, where: str = "comparison") -> None:
    """Raises ValueError naming a number that is not finite, which JSON cannot represent."""
    if isinstance(content, float) and not math.isfinite(content):
        raise ValueError(
            f"{where}: found {content}; expected a finite number: a probed model overflowed there; probe it again in "
            "another precision"
        )
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, one in pairs:
        _require_finite(one, f"{where}.{key}")


def table(comparison: Mapping[str, Any]) -> str:
    """The comparison for a terminal: one line per group, then each verdict with its legs or reasons."""
    lines = _overview(comparison)
    for name, group in comparison["groups"].items():
        legs = [f"  {leg.mark} {leg.name}: {leg.reason}" for leg in shown_legs(group)]
        lines += ["", f"{name}: {group['verdict']}"]
        lines += legs or [f"  - {reason}" for reason in group["reasons"]]
        onset = (comparison.get("onset") or {"groups": {}})["groups"].get(name)
        lines += [f"  onset: {onset['words']}"] if onset is not None else []
        boxes = group.get("boxes") or {}
        lines += [f"  boxes {side}: {scores['words']}" for side, scores in boxes.items()]
        lines += [f"  warning: {line}" for line in group.get("warnings", ())]
    return "\n".join(line.rstrip() for line in lines)


def short_table(comparison: Mapping[str, Any]) -> str:
    """One line per group, and reasons where no leg was judged: the end of a run, whose report has the rest."""
    lines = _overview(comparison)
    for name, group in comparison["groups"].items():
        reasons = group["reasons"][:1] if not marks(group) and group["verdict"] != KEPT else []
        lines += [f"{name}: {line}" for line in (*reasons, *group.get("warnings", ()))]
    return "\n".join(line.rstrip() for line in lines)


def _overview(comparison: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            "group",
            "probes",
            "right",
            "margin, nats",
            "attention on region",
            "hiding it costs",
            "legs",
            "verdict",
        )
    ]
    for name, group in comparison["groups"].items():
        rows.append(
            (
                name,
                str(group["probes"]),
                _right_cell(group["accuracy"]),
                _arrow(group["margin_nats"], "{:+.2f}"),
                _attention_cell(group["enrichment"]),
                _arrow(group["occlusion_nats"], "{:+.2f}"),
                marks(group),
                group["verdict"],
            )
        )
    lines = columns(rows)
    if any(marks(group) for group in comparison["groups"].values()):
        lines += ["", f"legs: {', '.join(LEG_NAMES)}; {LEGEND}"]
    return lines


def _right_cell(accuracy: Mapping[str, Any] | None) -> str:
    """ "0 % → 70 %, 40 % by picture": where probes share pictures both shares, of which the smaller one is judged."""
    if accuracy is None:
        return "–"
    words = f"{percent(accuracy['before'])} → {percent(accuracy['after'])}"
    if accuracy.get("images") == accuracy.get("probes") or "pictures_right" not in accuracy:
        return words
    return f"{words}, {percent(accuracy['pictures_right']['after'])} by picture"


def _arrow(change: Mapping[str, Any] | None, form: str) -> str:
    return "–" if change is None else f"{form.format(change['before'])} → {form.format(change['after'])}"


def _attention_cell(enrichment: Mapping[str, Any] | None) -> str:
    if enrichment is None:
        return "–"
    low, high = enrichment["ci95"]
    return f"{_arrow(enrichment, '{:.2f}×')} [{low:+.2f}, {high:+.2f}]"


# ---------------------------------------------------------------- from the command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison of the command line, print the table and the path of the report.

    Exit status: 0; 1 if ``--require`` is not met; 2 for wrong input, or if the report could not be made.
    """
    options = parser().parse_args(arguments)
    if is_address(options.after):
        _main_of_server(options)
        return
    try:
        if options.served_model is not None or options.key_variable is not None:
            raise ValueError(
                f"--served_model, --key_variable: found {options.after!r} as --after; expected a server's address, "
                "http://HOST:PORT/v1, or neither flag"
            )
        with folder_lock.held(options.output_dir):
            comparison = compare_sources(
                options.before,
                options.after,
                options.output_dir,
                between=options.between,
                probes_file=options.probes,
                calibration_file=options.calibration_probes,
                key_layers=options.key_layers,
                depth=_depth(options.depth, options.maps),
                base=options.base,
                allow_other_base=options.allow_other_base,
                thresholds=_thresholds(vars(options)),
                language=options.language,
            )
        required = requirement(options.require, comparison["groups"]) if options.require else {}
    except (ValueError, OSError) as error:
        _exit(2, f"error: {fault_words(error)}")
    print(table(comparison))
    print(f"\nreport: {options.output_dir / 'comparison' / 'index.html'}")
    as_good = (UNGUARDED,) if options.allow_unguarded else ()
    short = shortfalls(required, comparison["groups"], as_good=as_good)
    if short:
        _exit(1, "\n".join(["", f"required: {options.require}; not met:", *short]))
    if required:
        print(f"required: {options.require}; met")


MOST_SHOWN = 10
"""Differing answers shown on the terminal; the page shows all."""
SAME = "same"


def _main_of_server(options: argparse.Namespace) -> None:
    """Compare with the server, print the table, and exit as ``main`` does."""
    try:
        _check_server_flags(options)
        with folder_lock.held(options.output_dir):
            content = compare_served(
                options.before,
                ServerClient(
                    options.after,
                    options.served_model,
                    timeout_seconds=options.timeout,
                    key=_key(options.key_variable),
                ),
                options.output_dir,
                probes_file=options.probes,
                base=options.base,
                allow_other_base=options.allow_other_base,
            )
    except (ValueError, OSError) as error:
        _exit(2, f"error: {fault_words(error)}")
    print(served_table(content))
    print(f"\nreport: {options.output_dir / 'served' / 'index.html'}")
    if options.require is None:
        return
    other = content["all"]["probes"] - content["all"]["same"]
    if other:
        _exit(1, f"\nrequired: {SAME}; not met: {other} answers differ")
    print(f"required: {SAME}; met")


def _check_server_flags(options: argparse.Namespace) -> None:
    """Raises ValueError for flags that do not apply to a server."""
    asked = [name for name in NOT_OF_SERVERS if getattr(options, name) != parser().get_default(name)]
    if asked:
        raise ValueError(
            f"{', '.join(f'--{name}' for name in asked)}: found --after {options.after}; a server only returns "
            "answers: leave these flags out, or give the checkpoint that it serves as --after"
        )
    if options.require not in (None, SAME):
        raise ValueError(
            f"--require: found {options.require!r}; expected {SAME!r}: verdicts need attention, which servers do not "
            "return"
        )
    if options.probes is None:
        raise ValueError("--probes: no probe file given; expected one, since a server has none beside it")
    if not options.timeout > 0:
        raise ValueError(f"--timeout: found {options.timeout:g}; expected seconds above 0")
    if is_address(options.before) or _has_records(Path(options.before).expanduser()):
        raise ValueError(
            f"--before: found {options.before}, a server or records; expected the served checkpoint: a model folder, a "
            "hub name or an adapter folder"
        )


def _has_records(folder: Path) -> bool:
    named = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return not named and any(folder.glob("*.safetensors"))


def _key(variable: str | None) -> str | None:
    """The server's key. Raises ValueError if the variable is not set, or not valid in a header."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"--key_variable: found {'no' if not key else 'an unprintable'} key in the environment variable "
            f"{variable!r}; export the server's key there"
        )
    return key


def compare_served(
    checkpoint: str,
    client: ServerClient,
    output_dir: Path,
    *,
    probes_file: Path,
    base: str | None = None,
    allow_other_base: bool = False,
) -> Json:
    """Compare a server's answers with the checkpoint's own and write served/index.html and served/served.json.

    Raises:
        ValueError: a source or the probes cannot be read, the server fails, or the folder cannot be written.
    """
    check_writable(output_dir)
    from diagnostics.comparison.served import compare_with_server  # imports torch

    content = compare_with_server(
        checkpoint, client, probes_file, base=base, allow_other_base=allow_other_base
    )
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomically(output_dir / "served" / "served.json", (text + "\n").encode())
    write_atomically(output_dir / "served" / "index.html", served_html(content).encode())
    return content


def served_table(content: Mapping[str, Any]) -> str:
    """For a terminal: counts by group, the differences found, and the first differing answers."""
    lines = columns(count_rows(content))
    lines += ["", "what differs:"]
    lines += [f"  - {line}" for line in content["differences"]] or ["  nothing was found"]
    lines += [f"  not compared: {line}" for line in content["not_compared"]]
    parted = [one for one in content["probes"] if not one["same"]]
    if parted:
        lines += ["", "not the same (here | at the server):"]
        lines += [
            f"  {one['id']}: {one['said']['here']!r} | {one['said']['server']!r}"
            for one in parted[:MOST_SHOWN]
        ]
        lines += [f"  and {len(parted) - MOST_SHOWN} more"] if len(parted) > MOST_SHOWN else []
    return "\n".join(line.rstrip() for line in lines)


def _depth(name: str, maps: Sequence[str]) -> MeasurementPlan:
    return DEPTHS[name].with_maps(*maps)


def _thresholds(options: Mapping[str, Any]) -> Thresholds:
    return Thresholds(**{name.split("_", 1)[1]: options[name] for name in THRESHOLDS})


def _exit(status: int, message: str) -> NoReturn:
    print(printable(message), file=sys.stderr)
    sys.exit(status)


def compare_sources(
    before: str,
    after: str,
    output_dir: Path,
    *,
    between: Sequence[str] = (),
    probes_file: Path | None = None,
    calibration_file: Path | None = None,
    key_layers: str = "auto",
    depth: MeasurementPlan = QUICK,
    base: str | None = None,
    allow_other_base: bool = False,
    thresholds: Thresholds | None = None,
    language: Language = "en",
) -> Json:
    """Compare two models or folders of records, and the checkpoints between them; records probed here are saved in the
    output folder.

    Raises:
        ValueError: a source is neither, there is no probe file, or the output folder cannot be written.
        OSError: the disk is full.
    """
    check_writable(output_dir)
    found = records_of(
        [before, *between, after],
        output_dir,
        probes_file=probes_file,
        calibration_file=calibration_file,
        key_layers=key_layers,
        depth=depth,
        base=base,
        allow_other_base=allow_other_base,
    )
    series, best = _series((before, *between, after), found) if between else (None, [])
    for line in best:
        print(f"warning: {line}", flush=True)
    comparison = compare(
        found.records[0],
        found.records[-1],
        output_dir,
        probes=found.probes,
        series=series,
        thresholds=thresholds,
        why_not_patched=found.why_not_patched,
        warnings=found.warnings,
        language=language,
    )
    return comparison


def _series(sources: Sequence[str], found: Found) -> tuple[dict[int, Records], list[str]]:
    """The records of every checkpoint by its step or place, without those of the best model, which a run loaded at its
    end and measured in place of the last step's: it is of an earlier step; and a line on each of these. What is
    compared with always stays."""
    series, left_out = {}, []
    for at, records, source in zip(found.steps, found.records, sources, strict=True):
        best = None if at == found.steps[0] else best_in(Path(source).expanduser())
        if best is None:
            series[at] = records
        else:
            left_out.append(
                f"The time series leaves out {printable(source)}: its records are of {printable(best)}, the best "
                "model, which its run loaded at the end."
            )
    return series, left_out


if __name__ == "__main__":
    main()
