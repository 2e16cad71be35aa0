"""The flags of ``python -m diagnostics.board``."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """TensorBoard, opened so that curves of few points tell the truth: nothing is smoothed, no value is left
off the axis as an outlier, what matters is pinned at the top, and every picture is kept.

    python -m diagnostics.board output_qwen

FOLDER is a run's output folder, while it trains or later, or a folder of several, to compare them.
"""

PORT = 6006
START = "/data/plugin/drift/start"
"""The page that sets the browser up and goes on to the curves."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.board",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "folder", metavar="FOLDER", type=Path, help="output folder, or a folder of output folders"
    )
    made.add_argument("--port", type=int, default=PORT, help="where to listen (%(default)s)")
    made.add_argument("--host", default="localhost", help="address to listen on (%(default)s)")
    return made
