"""The flags of ``python -m diagnostics.render``."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Draw the pictures of a run's records: by hand, or for the monitor, which starts this beside a training.

    python -m diagnostics.render --attention_dir OUTPUT/attention --steps 50 100
    python -m diagnostics.render --attention_dir OUTPUT/attention --strips
"""

SHOWN_PER_GROUP = 3
"""As in :mod:`diagnostics.drawing.tensorboard`, which takes seconds to import."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.render",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--attention_dir", type=Path, required=True, help="the run's attention/ folder")
    made.add_argument(
        "--steps", type=int, nargs="*", help="draw these steps' archive (none named: all that lack it)"
    )
    made.add_argument(
        "--strips", action="store_true", help="draw every probe over the recorded steps: images/ID/strip.png"
    )
    made.add_argument(
        "--scratch_dir", type=Path, help="serve the monitor, handing pictures over in this folder"
    )
    made.add_argument("--shown_per_group", type=int, default=SHOWN_PER_GROUP)
    made.add_argument("--probes", type=Path, help="probe file, where probes.json is gone from the folder")
    return made
