"""The flags of ``python -m finetune.demo.make_base``."""

from __future__ import annotations

import argparse
from pathlib import Path

SEED = 42


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m finetune.demo.make_base", description="Rebuilds the base model of the demo."
    )
    made.add_argument("--output_dir", type=Path, help="folder for the model (default: the demo's own base)")
    made.add_argument(
        "--work_dir", type=Path, help="folder for the files of the training run (default: output_demo_base)"
    )
    made.add_argument("--data_dir", type=Path, help="folder for the pictures (default: that of the demo)")
    made.add_argument("--seed", type=int, default=SEED, help="of weights and training (%(default)s)")
    return made
