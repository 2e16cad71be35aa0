"""The flags of ``python -m diagnostics.curve``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diagnostics.flags.language import add_language

DESCRIPTION = """How many corrective samples does a correction need? Trains on nested fractions of them and compares.

    python -m diagnostics.curve --fractions 0.125 0.25 0.5 1 --output_dir O -- [flags of finetune.py]

Each fraction is one run in O/fraction-F, with its own comparison; finished ones are kept, interrupted ones go on. The
result is O/index.html, O/curve.png and O/curve.json. Without a model and data after the --: the embedded demo.
"""

FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 1.0)


class _Parser(argparse.ArgumentParser):
    """What stands after ``--`` is for finetune.py, and kept as ``flags``."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = [*(sys.argv[1:] if args is None else args)]
        at = given.index("--") if "--" in given else len(given)
        found = super().parse_args(given[:at], namespace)
        found.flags = given[at + 1 :]
        return found


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog="python -m diagnostics.curve",
        usage="python -m diagnostics.curve [flags] -- [flags of finetune.py]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=list(FRACTIONS),
        help=f"of the corrective data, above 0 and at most 1 (default: {' '.join(map(str, FRACTIONS))})",
    )
    made.add_argument(
        "--output_dir",
        type=Path,
        default=Path("output_curve"),
        help="gets the runs and the result (output_curve)",
    )
    made.add_argument(
        "--subset",
        nargs="+",
        help="names of the sources that the fractions are of (default: those of --corrective_data, else --data_path; "
        "--replay_data stays whole)",
    )
    made.add_argument(
        "--same",
        default="steps",
        choices=("steps", "epochs"),
        help="steps: every run trains as many, and fewer samples are seen more often; epochs: each sample is seen as "
        "often, and fewer samples train for fewer steps (default: steps)",
    )
    made.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="seeds of training and of the samples' order: each trains every fraction (default: finetune.py's one)",
    )
    add_language(made)
    made.add_argument(
        "--launcher",
        default="",
        help='what starts a run, such as "torchrun --nproc_per_node 4" (default: this Python)',
    )
    return made
