"""The flags of ``python -m finetune.export``. The standard library alone: ``--help`` answers at once."""

import argparse

DTYPES = ("float32", "fp32", "bfloat16", "bf16", "float16", "fp16")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m finetune.export",
        description="Merge an adapter into its base, or take the weights out of a checkpoint, and check the result.",
    )
    made.add_argument("checkpoint", help="an adapter folder, a checkpoint-N of a run, or a model folder")
    made.add_argument("--output_dir", required=True, help="where the model goes; new or empty")
    made.add_argument(
        "--dtype", choices=DTYPES, help="precision of the weights; default: that of training, else the base's"
    )
    made.add_argument("--base", help="another place of the base than the one that the adapter names")
    made.add_argument(
        "--allow_other_base",
        action="store_true",
        help="merge it into other weights than it was trained on, as long as it fits",
    )
    made.add_argument("--device", default="cpu", help="where it is merged and compared (cuda:0 is faster)")
    made.add_argument("--max_shard_size", default="5GB", help="most bytes of a weight file")
    made.add_argument("--cache_dir", help="where the hub's downloads are kept")
    return made
