"""The flags of ``python -m diagnostics.diagnose``."""

from __future__ import annotations

import argparse
from pathlib import Path

from diagnostics.flags.language import add_language

DESCRIPTION = """Where on the way from pixels to words is the right answer lost? One model, nothing to compare with.

    python -m diagnostics.diagnose MODEL --probes P --output_dir O

MODEL is a model folder, a hub name or an adapter folder. The report is O/index.html, the numbers O/diagnosis.json.
"""

THRESHOLDS: dict[str, tuple[float, str]] = {
    "least_probes": (20, "pictures of a group, below which nothing is said of it"),
    "least_each_answer": (10, "pictures of each of two answers, below which they are not told apart"),
    "least_right": (0.8, "right answers of a right group, and after one shift of the margin"),
    "least_moved": (0.2, "part of the margin that must move with the picture"),
    "least_told": (0.75, "share that a linear probe must get right; chance is 0.5"),
    "least_looked": (1.0, "times its area's share that the region must be looked at"),
    "least_cost": (0.25, "part of the margin that hiding a region must move"),
}
"""Flag → default and meaning: the fields of :class:`diagnostics.diagnosis.thresholds.Thresholds`."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.diagnose",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", metavar="MODEL", help="model folder, hub name or adapter folder")
    made.add_argument("--probes", type=Path, required=True, help="probe file")
    made.add_argument("--output_dir", type=Path, required=True, help="gets index.html and diagnosis.json")
    made.add_argument("--base", help="where the base of an adapter is, if not where it says")
    made.add_argument(
        "--allow_other_base",
        action="store_true",
        help="open an adapter over other weights than it was trained on, as long as they fit",
    )
    add_language(made)
    made.add_argument("--seed", type=int, default=0, help="of folds and shuffles (default: 0)")
    thresholds = made.add_argument_group("what each test asks for")
    for name, (least, what) in THRESHOLDS.items():
        kind = int if name in ("least_probes", "least_each_answer") else float
        thresholds.add_argument(f"--{name}", type=kind, default=least, help=f"{what} (default: {least})")
    return made
