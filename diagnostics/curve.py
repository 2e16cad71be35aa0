"""How many corrective samples does a correction need? Trains on nested fractions of them and compares.

Usage and flags: ``diagnostics/flags/curve.py``.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diagnostics.flags.curve import parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

from diagnostics.comparison.curve import VERSION, CurvePoint, check_comparison, curve_of, headline
from diagnostics.drawing.curve_chart import curve_chart
from diagnostics.records.json_files import parsed_file
from diagnostics.records.pictures import picture_mark
from diagnostics.records.probes import KEPT_SHARE, read_probes
from diagnostics.report.curve_page import HEAD, curve_html, lead, neighbour_words, rows_of
from diagnostics.report.languages import LANGUAGES
from diagnostics.report.tables import columns
from finetune import fields, folder_lock
from finetune.fields import TEXT, by_name, items, part, whole
from finetune.files import check_writable, fault_words, write_atomically, writing
from finetune.printable import printable

Json = dict[str, Any]
COUNTS_SHAPE = {
    "of": items(TEXT), "sources": by_name(part({"samples": whole(), "trained": whole()})),
}  # fmt: skip
ROOT = Path(__file__).parents[1]
TRAINING = "attention_finetune.train"
OURS = {
    "output_dir": "--output_dir before the --",
    "data_fraction": "--fractions",
    "data_fraction_of": "--subset",
    "data_fraction_same": "--same",
    "resume_from_checkpoint": "nothing: the same command goes on with what is unfinished",
    "overwrite_output_dir": "another --output_dir before the --",
    "baseline": "nothing: all runs share the first one's",
    "dry_run": "nothing: the first run is checked so before it trains",
    "streaming": "nothing: the order of the samples needs all of them",
    "stop_when": "nothing: every run makes all its steps, or each would be judged at another moment",
    "load_best_model_at_end": "nothing: a point is of the samples of all steps, and the best checkpoint, which would "
    "be judged, has not seen them all",
}
"""Flags of finetune.py that the curve gives itself or goes without, and what to give instead."""
GOES_WITHOUT = ("streaming", "stop_when", "load_best_model_at_end")
"""Those that it overrides with none of its own, so that a --config may not set them either."""
SEEDS = ("seed", "data_seed")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""After which a run saves a checkpoint and stops."""


@dataclass(frozen=True)
class TrainingRun:
    """One run of the curve.

    fraction   of the corrective data; seed: None for finetune.py's own
    folder     below the output folder
    """

    fraction: float
    seed: int | None
    folder: str


class RunFailedError(Exception):
    """A run ended with a status other than 0; it has said why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print the table, write the result. Exit status: 0; 2 where something given is wrong; that
    of a run which failed or was stopped."""
    options = parser().parse_args(arguments)
    try:
        check(options.fractions, options.seeds, options.flags)
        with folder_lock.held(options.output_dir):
            content = curve(options)
    except (ValueError, OSError) as error:
        print(printable(f"error: {fault_words(error)}"), file=sys.stderr)
        sys.exit(2)
    except RunFailedError as failed:
        sys.exit(failed.status)
    print(table(content))
    print(f"\nresult: {options.output_dir / 'index.html'}")


def check(fractions: Sequence[float], seeds: Sequence[int] | None, flags: Sequence[str]) -> None:
    """Raises ValueError for fractions, seeds and flags that make no curve."""
    wrong = [one for one in fractions if not 0 < one <= 1]
    if wrong:
        raise ValueError(
            f"--fractions: found {wrong[0]:g}; expected fractions above 0 and at most 1, such as 0.25 0.5 1"
        )
    for name, values in (("fractions", fractions), ("seeds", seeds or ())):
        again = [one for one in values if [*values].count(one) > 1]
        if again:
            raise ValueError(f"--{name}: found {again[0]:g} several times; expected each once")
    if len(fractions) < 2:
        raise ValueError(
            f"--fractions: found {len(fractions)}; expected at least two: a curve has two points"
        )
    given = {token[2:].partition("=")[0].replace("-", "_") for token in flags if token.startswith("--")}
    refused = {name for name in given & {*OURS} if name not in GOES_WITHOUT or _is_true(flags, name)}
    for name in sorted(refused):
        raise ValueError(f"--{name} after the --: the curve decides it for each run; expected {OURS[name]}")
    configured = {name: value for name, value in _configured(flags).items() if name not in given}
    for name in GOES_WITHOUT:
        if name in configured and _is_yes([configured[name]]):
            raise ValueError(
                f"--config after the --: found {name} in it, but the curve decides it for each run; expected "
                f"{OURS[name]}"
            )
    if "monitor" in given and not _is_true(flags, "monitor"):
        raise ValueError(
            "--monitor False after the --: the curve is made of what the monitor measures; leave it out"
        )
    both = [name for name in SEEDS if name in given or (name == "data_seed" and name in configured)]
    if seeds and both:
        raise ValueError(
            f"--{both[0]} after the --{'' if both[0] in given else ' (in its --config)'}, and --seeds before it: "
            f"expected one of them; leave out --{both[0]}"
        )
    if flags and not flags[0].startswith("--"):
        raise ValueError(f"after the --: found {flags[0]!r}; expected flags of finetune.py")


def _is_true(flags: Sequence[str], name: str) -> bool:
    """Is the last value of a flag of truth, however it is written, not a no?"""
    words = [word for token in flags for word in token.split("=", 1)]
    at = max(place for place, word in enumerate(words) if word.replace("-", "_") == f"__{name}")
    return _is_yes(words[at + 1 : at + 2])


def _is_yes(values: Sequence[str]) -> bool:
    return not values or values[0].lower() not in ("false", "no", "f", "n", "0")


def _configured(flags: Sequence[str]) -> dict[str, str]:
    """Flag → its value, of those in the --config among the flags; none of one that cannot be read: the first run says
    why."""
    words = [word for token in flags for word in token.split("=", 1)]
    if "--config" not in words[:-1]:
        return {}
    try:
        content = yaml.safe_load(Path(words[words.index("--config") + 1]).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    known = content.items() if isinstance(content, dict) else ()
    return {str(name): str(value) for name, value in known if value is not None}


def curve(options: Any) -> Json:
    """Train and compare every fraction, write curve.json, curve.png and index.html; returns curve.json's content.

    Raises:
        ValueError: the folder holds another curve, or a run left no comparison.
        RunFailedError: a run failed or was stopped.
    """
    output_dir: Path = options.output_dir
    check_writable(output_dir)
    _claim(output_dir, options)
    runs = [*_runs(options.fractions, options.seeds)]
    _check_first(runs, options)
    for number, run in enumerate(runs, 1):
        seed = "" if run.seed is None else f", seed {run.seed}"
        log = output_dir / "logs" / f"{run.folder}.txt"
        print(
            f"[{number} of {len(runs)}] fraction {run.fraction:g}{seed}; its output is in {log}", flush=True
        )
        status = _run(
            [*_flags(run, options), *_shared_baseline(run, runs, output_dir)], options.launcher, log
        )
        if status:
            print(
                f"fraction {run.fraction:g}{seed}: ended with status {status}; the same command goes on",
                file=sys.stderr,
            )
            raise RunFailedError(status)
    sources = _subsetted(output_dir / runs[0].folder)
    points = _with_most([_point(run, output_dir, sources) for run in runs])
    content = _content(points, sources, options)
    kept = [name for name in content["groups"] if name in KEPT_SHARE]
    charts = {one: curve_chart(content["groups"], kept, one) for one in LANGUAGES}
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_atomically(output_dir / "curve.json", text.encode())
    write_atomically(output_dir / "curve.png", charts["en"])
    write_atomically(output_dir / "index.html", curve_html(content, charts, opens=options.language).encode())
    return content


def table(content: Json) -> str:
    """The result for a terminal: a table for each group and what follows from it."""
    lines = [headline(content["groups"]), lead(content)]
    for name, group in content["groups"].items():
        lines += ["", f"{name}: {group['words']}"]
        lines += [f"  {line}".rstrip() for line in columns([HEAD, *rows_of(group)])]
        lines += [f"  {neighbour_words(group)}"]
    return "\n".join(lines)


# ---------------------------------------------------------------- the runs


def _runs(fractions: Sequence[float], seeds: Sequence[int] | None) -> Iterator[TrainingRun]:
    """From the smallest fraction to the largest: the first result is there early."""
    for fraction in sorted(fractions):
        for seed in seeds or (None,):
            name = f"fraction-{fraction:g}" + ("" if seed is None else f"-seed-{seed}")
            yield TrainingRun(fraction, seed, name)


def _flags(run: TrainingRun, options: Any) -> list[str]:
    flags = [*options.flags]
    flags += ["--monitor", "True", "--data_fraction", str(run.fraction), "--data_fraction_same", options.same]
    flags += ["--data_fraction_of", *options.subset] if options.subset else []
    flags += [] if run.seed is None else ["--seed", str(run.seed)]
    return [*flags, "--output_dir", str(options.output_dir / run.folder)]


def _shared_baseline(run: TrainingRun, runs: Sequence[TrainingRun], output_dir: Path) -> list[str]:
    """The untrained model is the same in every run of a seed, and measured in the first of them."""
    first = next(one for one in runs if one.seed == run.seed)
    return [] if first == run else ["--baseline", str(output_dir / first.folder)]


def _check_first(runs: Sequence[TrainingRun], options: Any) -> None:
    """The smallest fraction as a dry run, unless a run has begun: wrong flags, data and probes are one message then.

    Raises RunFailedError where it is refused.
    """
    if any((options.output_dir / run.folder / "run.json").is_file() for run in runs):
        return
    print("checking flags, data and probes", flush=True)
    log = options.output_dir / "logs" / "check.txt"
    status = _run([*_flags(runs[0], options), "--dry_run", "True"], "", log)
    if status:
        raise RunFailedError(2)


def _run(flags: Sequence[str], launcher: str, log: Path) -> int:
    """Run finetune.py in a process of its own, its lines in ``log`` and its progress on the terminal; returns the
    status. A stop signal is passed on, so that the run saves a checkpoint."""
    command = [*(shlex.split(launcher) or [sys.executable]), "-m", TRAINING, *flags]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("w", encoding="utf-8")
    with file:
        process = subprocess.Popen(command, stdout=file, env={**os.environ, "PYTHONPATH": path})
        before = {
            number: signal.signal(number, lambda got, _: process.send_signal(got)) for number in STOP_SIGNALS
        }
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C reached the run as well
            return process.wait() or 130
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


# ---------------------------------------------------------------- what they left


def _claim(output_dir: Path, options: Any) -> None:
    """Raises ValueError where the folder holds a curve of other flags; more fractions and seeds are welcome."""
    place = output_dir / "curve-of.json"
    now = {"version": VERSION, "flags": options.flags, "subset": options.subset, "same": options.same}
    if place.is_file():
        before = parsed_file(place, "curve's flags")
        fields.check(before, {}, str(place))
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            raise ValueError(
                f"{output_dir}: holds a curve with other {', '.join(other)}: found {before.get(other[0])}, expected "
                f"{now[other[0]]}; choose another --output_dir, or give the same again"
            )
        return
    write_atomically(place, (json.dumps(now, ensure_ascii=False, indent=1) + "\n").encode())


def _point(run: TrainingRun, output_dir: Path, sources: Sequence[str]) -> CurvePoint:
    """Raises ValueError where the run's files are missing or broken."""
    folder = output_dir / run.folder
    place = folder / "comparison" / "comparison.json"
    comparison = parsed_file(place, "comparison")
    check_comparison(comparison, str(place))
    counts = [_count_of(folder, name) for name in sources]
    trained = sum(one["trained"] for one in counts)
    if not trained:
        raise ValueError(
            f"{folder}: found no sample of {', '.join(sources)} among those that it trained on; expected at least one: "
            "give more steps (--max_steps or --num_train_epochs), and another --output_dir"
        )
    return CurvePoint(
        run.fraction,
        run.seed,
        trained,
        sum(one["samples"] for one in counts),
        int(comparison["after"]["step"]),
        comparison,
        run.folder,
    )


def _with_most(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Where few steps reach other numbers of samples with other seeds, a fraction's number is the largest of them: so
    many are enough in all, and its seeds stay one number."""
    most = {point.fraction: 0 for point in points}
    for point in points:
        most[point.fraction] = max(most[point.fraction], point.samples)
    return [point._replace(samples=most[point.fraction]) for point in points]


def _counts(folder: Path) -> Json:
    """What the run says of its samples: "sources", each with how many it has and how many different ones it trained
    on, and "of", those that the fraction is of."""
    place = folder / "data_fraction.json"
    content = parsed_file(place, "count of samples")
    fields.check(content, COUNTS_SHAPE, str(place), required=("sources",))
    return dict(content)


def _count_of(folder: Path, source: str) -> Json:
    counts = _counts(folder)["sources"]
    if source not in counts:
        raise ValueError(
            f"{folder / 'data_fraction.json'}: found no count of {source}; expected one of each source: delete the "
            "run's folder and call again"
        )
    return dict(counts[source])


def _subsetted(folder: Path) -> list[str]:
    """The sources that the fractions are of; in files without them those that the smallest did not train on whole."""
    content = _counts(folder)
    counts = content["sources"]
    part_of = [name for name, one in counts.items() if one["trained"] < one["samples"]]
    return content.get("of") or part_of or [*counts]


def _content(points: Sequence[CurvePoint], sources: Sequence[str], options: Any) -> Json:
    probes = read_probes(options.output_dir / points[0].folder / "attention" / "probes.json")
    return {
        "version": VERSION,
        "flags": options.flags,
        "same": options.same,
        "seeds": sorted({point.seed for point in points}, key=lambda seed: seed or 0),
        "sources": [*sources],
        "runs": [
            {
                "fraction": point.fraction,
                "seed": point.seed,
                "samples": point.samples,
                "of": point.of,
                "steps": point.steps,
                "folder": point.folder,
            }
            for point in sorted(points, key=lambda one: (one.samples, one.seed or 0))
        ],
        "groups": curve_of(points, {probe.id: picture_mark(probe.images[0]) for probe in probes}),
    }


if __name__ == "__main__":
    main()
