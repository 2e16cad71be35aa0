"""The flags of ``python -m finetune.corrective``. The standard library alone: ``--help`` answers at once."""

import argparse
from pathlib import Path

DESCRIPTION = """Corrective training data and probes, made from pictures with boxes.

    python -m finetune.corrective --images photos --boxes instances.json --output_dir towers
    python -m finetune.corrective --images photos --boxes boxes.json --names names.json --templates spheres \\
        --language zh --output_dir towers

OUT/corrective.json is training data for finetune.py (--corrective_data OUT/corrective.json:0.3), OUT/probes.json are
probes of other pictures (--monitor True --probes OUT/probes.json).
"""
RELATIONS = ("left of", "right of", "above", "below", "on", "inside", "next to")
"""As in :mod:`finetune.corrective.box_relations`."""
GOOD_PROBES = 40


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m finetune.corrective",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--images", type=Path, required=True, help="folder with the pictures")
    add(
        "--boxes",
        type=Path,
        required=True,
        help="COCO annotations (.json), or training data with <ref> and <box>",
    )
    add("--output_dir", type=Path, required=True, help="folder for corrective.json and probes.json")
    add(
        "--templates",
        nargs="+",
        default=["relations"],
        metavar="relations|spheres|FILE",
        help="kinds of questions to make (default: relations)",
    )
    add(
        "--relations",
        nargs="+",
        default=list(RELATIONS),
        choices=RELATIONS,
        help="relations to train; the others are only probed, as neighbour (default: all)",
    )
    add("--names", type=Path, help="names of categories, and what each building is mistaken for (.json)")
    add(
        "--language",
        choices=("zh", "en", "both"),
        default="both",
        help="language of the questions (default: both)",
    )
    add(
        "--held_out", type=float, default=0.2, help="share of the pictures held out for probes (default: 0.2)"
    )
    add("--per_picture", type=int, default=6, help="maximum training questions per picture (default: 6)")
    add("--most_samples", type=int, help="maximum training samples in total (default: no limit)")
    add("--probes_per_group", type=int, default=GOOD_PROBES, help="maximum probes per group (default: 40)")
    add(
        "--box_units",
        choices=("pixels", "thousandths"),
        help="unit of bbox_2d and objects.bbox, in training data that has them",
    )
    add(
        "--on_bad_picture",
        choices=("error", "drop"),
        default="error",
        help="stop at faulty pictures, or leave them out (default: error)",
    )
    add("--overwrite", type=_truth, default=False, metavar="True", help="replace existing files")
    add("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    return made


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"found {word!r}, expected True or False")
    return word.lower() == "true"
