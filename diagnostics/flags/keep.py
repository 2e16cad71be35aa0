"""The flags of ``python -m diagnostics.keep``."""

from __future__ import annotations

import argparse
from pathlib import Path

from diagnostics.flags.language import add_language

DESCRIPTION = """Is it enough to keep what the model looks at? The probes are asked again with a share of the image
tokens, chosen by attention, by diversity, at random, by the region and by least attention.

    python -m diagnostics.keep MODEL --probes P --output_dir O

MODEL is a model folder, an adapter folder or a hub name. O gets keep.json, keep.png and index.html.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.keep",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", help="model folder, adapter folder or hub name")
    made.add_argument("--probes", type=Path, required=True, help="probe file; those with a foil are asked")
    made.add_argument(
        "--output_dir",
        type=Path,
        default=Path("output_keep"),
        help="gets keep.json, keep.png and index.html (default: output_keep)",
    )
    made.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.5, 0.33, 0.22, 0.11],
        help="of the image tokens, each above 0 and at most 1 (default: 0.5 0.33 0.22 0.11)",
    )
    made.add_argument(
        "--key_layer",
        default="auto",
        help="the language layer whose map ranks the tokens; auto: chosen on probes that are not judged",
    )
    made.add_argument(
        "--calibration_probes",
        type=Path,
        help="probe file, of other pictures, to choose the layer on (default: one picture in five of --probes)",
    )
    made.add_argument(
        "--fastv_layer",
        type=int,
        default=2,
        help="FastV ranks by this layer, counted from 1, and drops after it",
    )
    made.add_argument("--draws", type=int, default=10, help="random orders (default: 10)")
    made.add_argument("--batch_size", type=int, default=16, help="sequences in one forward pass")
    add_language(made)
    made.add_argument("--base", help="where the base of an adapter is, if not where it says")
    made.add_argument(
        "--allow_other_base",
        action="store_true",
        help="open an adapter over other weights than it was trained on, as long as they fit",
    )
    return made
