"""The flags of ``python -m finetune.export``. The standard library alone: ``--help`` answers at once."""

import argparse

DESCRIPTION = """Merge an adapter into its base, or extract the weights of a checkpoint, and verify the result.

    python -m finetune.export out/checkpoint-80 --output_dir merged
"""
DTYPES = ("float32", "fp32", "bfloat16", "bf16", "float16", "fp16")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m finetune.export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("checkpoint", help="an adapter folder, a checkpoint-N of a run, or a model folder")
    made.add_argument("--output_dir", required=True, help="folder for the model; new or empty")
    made.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the weights (default: that of training, else the base's)",
    )
    made.add_argument("--base", help="base model, if not at the path that the adapter records")
    made.add_argument(
        "--allow_other_base",
        action="store_true",
        help="merge into a base other than the one it was trained on, if the shapes fit",
    )
    made.add_argument("--device", default="cpu", help="device for merging and verifying (cuda:0 is faster)")
    made.add_argument("--max_shard_size", default="5GB", help="maximum size of a weight file")
    made.add_argument("--cache_dir", help="folder for downloads from the hub")
    return made
