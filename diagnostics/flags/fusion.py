"""The flags of ``python -m diagnostics.fusion``."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Fuse several maps of one picture and test the result against the best single map, on held-out pictures.

    python -m diagnostics.fusion --model X --probes P --output_dir O [--resolutions 1 0.5]

X is a model folder, an adapter folder or a hub name. O gets fusion.json, and fusion/ID.png for each probe with a
region: picture, best single map and fused map on one colour scale; those of --calibration_probes are in
fusion/choosing/.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.fusion",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", required=True, help="model folder, adapter folder or hub name")
    made.add_argument(
        "--probes", type=Path, required=True, help="probe file; at least 40 pictures with regions"
    )
    made.add_argument(
        "--output_dir", type=Path, required=True, help="folder for fusion.json and fusion/ID.png"
    )
    made.add_argument(
        "--calibration_probes",
        type=Path,
        help="probe file, of other pictures, to choose maps on (default: one picture in two of --probes)",
    )
    made.add_argument(
        "--resolutions",
        type=float,
        nargs="+",
        default=[1.0],
        help="shares of its pixels to read each picture at, including 1 (only 1 for families of one size)",
    )
    made.add_argument(
        "--vision_layers",
        type=int,
        nargs="*",
        help="layers of the vision tower (default: the last that is read; without numbers: none)",
    )
    return made
