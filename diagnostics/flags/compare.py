"""The flags of ``python -m diagnostics.compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from diagnostics.flags.language import add_language

DESCRIPTION = """Before and after: answers and attention of two models, as a table, a report and JSON.

    python -m diagnostics.compare --before X --after Y [--probes P] --output_dir O

X and Y are each a model folder or hub name, an adapter folder, or a folder of records
(OUTPUT/attention/step-000050). The report is O/comparison/index.html, the numbers O/comparison/comparison.json.

    python -m diagnostics.compare --before X --after http://127.0.0.1:8000/v1 --probes P --output_dir O

asks a server (vLLM, SGLang, transformers serve) whether it answers as the checkpoint X does: O/served/index.html and
O/served/served.json.
"""

DEPTHS = ("quick", "full")
MAPS = ("relative", "gradient", "rollout")
"""The names of :mod:`diagnostics.records.measurement_plan`, which takes seconds to import."""

THRESHOLDS = {
    "least_probes": (20, "probes, on as many pictures, for each piece of evidence"),
    "least_right": (0.8, "right answers after, and of the guards"),
    "most_disagreement": (0.1, "difference between answers right by margin and right as generated"),
    "least_picture": (0.5, "part of the margin that must be lost without the true picture"),
    "least_move": (
        0.05,
        "relative change of attention on the region, 2 (after - before) / (after + before), which is 0.67 for twice as "
        "much; and its lead over each other place",
    ),
    "least_cause": (0.2, "rise of the cost of hiding the region, as a share of the margin's rise"),
    "least_cost": (0.5, "cost of hiding the region after, as a share of the margin after"),
    "least_mediated": (0.1, "part of the margin's change that attention must carry"),
}
"""Flag → default and meaning: the fields of :class:`diagnostics.comparison.thresholds.Thresholds`."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--before", required=True, help="model folder, hub name, adapter folder or folder of records"
    )
    made.add_argument("--after", required=True, help="the same; or a server's address, http://HOST:PORT/v1")
    made.add_argument(
        "--between", nargs="*", default=[], help="checkpoints between the two, in training order"
    )
    made.add_argument("--base", help="base of the adapters, if not at the path they record")
    made.add_argument(
        "--allow_other_base",
        action="store_true",
        help="open adapters on a base other than the one they were trained on, if the shapes fit",
    )
    made.add_argument("--probes", type=Path, help="probe file (default: the one beside the records)")
    made.add_argument("--output_dir", type=Path, required=True, help="folder for comparison/")
    made.add_argument(
        "--key_layers", default="auto", help="auto (chosen on the model before), or layers: 8,16,24,31"
    )
    made.add_argument(
        "--calibration_probes", type=Path, help="probe file, of other pictures, to choose the key layers on"
    )
    made.add_argument("--depth", default="quick", choices=DEPTHS, help="how much is measured for each model")
    add_language(made)
    made.add_argument("--maps", nargs="*", default=[], help=f"further maps: {', '.join(MAPS)}")
    made.add_argument(
        "--require",
        help='fail unless this is met: "corrected" (every group, and kept what must be kept), or GROUP=VERDICT; '
        'of a server: "same" (every answer)',
    )
    made.add_argument(
        "--allow_unguarded",
        action="store_true",
        help='let "corrected, unguarded" pass where --require asks for "corrected"',
    )
    _add_server_flags(made)
    thresholds = made.add_argument_group("thresholds of a verdict (shares from 0 to 1)")
    for name, (least, what) in THRESHOLDS.items():
        kind = int if name == "least_probes" else float
        thresholds.add_argument(f"--{name}", type=kind, default=least, help=f"{what} (default: {least})")
    return made


NOT_OF_SERVERS = ("between", "calibration_probes", "maps", "key_layers", "depth", "allow_unguarded")
"""Flags for what a server does not return."""


def _add_server_flags(made: argparse.ArgumentParser) -> None:
    server = made.add_argument_group("if --after is a server")
    server.add_argument(
        "--served_model", help="name of the model at the server (default: the only one listed)"
    )
    server.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer (default: 120)")
    server.add_argument(
        "--key_variable", help="environment variable that holds the server's key; sent to that address only"
    )
