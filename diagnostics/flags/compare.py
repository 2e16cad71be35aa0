"""The flags of ``python -m diagnostics.compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Before and after: what two models answer and where they look, as a table, a report and JSON.

    python -m diagnostics.compare --before X --after Y [--probes P] --output_dir O

X and Y are each a model folder or hub name, an adapter folder, or a folder of records
(OUTPUT/attention/step-000050). The report is O/comparison/index.html, the numbers O/comparison/comparison.json.
"""

DEPTHS = ("quick", "full")
MAPS = ("relative", "gradient", "rollout")
"""The names of :mod:`diagnostics.records.measurement_plan`, which takes seconds to import."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--before", required=True, help="model folder, hub name, adapter folder or folder of records"
    )
    made.add_argument("--after", required=True, help="the same")
    made.add_argument(
        "--between", nargs="*", default=[], help="more of the same, in the order of training: the way there"
    )
    made.add_argument("--base", help="where the base of adapters is, if not where they say")
    made.add_argument(
        "--allow_other_base",
        action="store_true",
        help="open adapters over other weights than they were trained on, as long as they fit",
    )
    made.add_argument("--probes", type=Path, help="probe file (default: the one beside the records)")
    made.add_argument("--output_dir", type=Path, required=True, help="gets comparison/")
    made.add_argument(
        "--key_layers", default="auto", help="auto (chosen on the model before), or layers: 8,16,24,31"
    )
    made.add_argument(
        "--calibration_probes", type=Path, help="probe file, of other pictures, to choose the key layers on"
    )
    made.add_argument("--depth", default="quick", choices=DEPTHS, help="how much is measured of a model")
    made.add_argument("--maps", nargs="*", default=[], help=f"further maps: {', '.join(MAPS)}")
    made.add_argument(
        "--require",
        help='fail unless this is met: "corrected" (every group, and kept what must be kept), or GROUP=VERDICT',
    )
    return made
