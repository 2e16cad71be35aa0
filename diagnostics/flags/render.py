"""The flags of ``python -m diagnostics.render``."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Draw a run's records: by hand, or for the monitor, which starts this beside training.

    python -m diagnostics.render --attention_dir OUTPUT/attention --steps 50 100
    python -m diagnostics.render --attention_dir OUTPUT/attention --strips
"""

SHOWN_PER_GROUP = 3
"""The same as in :mod:`diagnostics.drawing.board`, which takes seconds to import."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.render",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--attention_dir", type=Path, required=True, help="the run's attention/ folder")
    made.add_argument(
        "--steps",
        type=int,
        nargs="*",
        help="draw these steps into the archive (without numbers: all that are not drawn yet)",
    )
    made.add_argument(
        "--strips", action="store_true", help="draw every probe over the recorded steps: images/ID/strip.png"
    )
    made.add_argument(
        "--serve", action="store_true", help="for the monitor: steps and pictures go through pipes"
    )
    made.add_argument("--shown_per_group", type=int, default=SHOWN_PER_GROUP)
    made.add_argument("--probes", type=Path, help="probe file, if probes.json is missing from the folder")
    return made
