"""The flags of ``python -m diagnostics.web``."""

from __future__ import annotations

import argparse

DESCRIPTION = "The web demo: chat with a vision-language model, and see what it looks at."


def parser() -> argparse.ArgumentParser:
    """Flags of the demo; those of Qwen-VL's 2023 ``web_demo_mm.py`` keep their names."""
    made = argparse.ArgumentParser(prog="python -m diagnostics.web", description=DESCRIPTION)
    made.add_argument(
        "-c", "--checkpoint-path", help="model folder, adapter folder or hub name; without it the demo"
    )
    made.add_argument("--visualize-attention", action="store_true", help="show what each answer looked at")
    made.add_argument(
        "--checkpoints", nargs="+", default=[], metavar="FOLDER", help="others, for before / after"
    )
    made.add_argument("--base", metavar="FOLDER", help="where the base of adapters is, if not where they say")
    made.add_argument(
        "--allow-other-base",
        "--allow_other_base",
        action="store_true",
        help="open adapters over other weights than they were trained on, as long as they fit",
    )
    made.add_argument(
        "--probe-file", default="probes_saved.json", help="where drawn boxes are saved as probes"
    )
    made.add_argument(
        "--low-memory", action="store_true", help="4-bit on a GPU, key layers only, smaller pictures"
    )
    made.add_argument(
        "--keep_image_tokens",
        "--keep-image-tokens",
        type=float,
        metavar="SHARE",
        help="reply from this share of each picture's tokens (0.33); not beside --visualize-attention or --low-memory",
    )
    made.add_argument(
        "--keep_by",
        "--keep-by",
        choices=("divprune", "fastv"),
        default="divprune",
        help="which: those least alike, or those looked at in the second layer (docs/keep.md)",
    )
    made.add_argument("--cpu-only", action="store_true", help="leave the GPU alone")
    made.add_argument("--server-port", type=_port, default=8000)
    made.add_argument("--server-name", default="127.0.0.1", help="0.0.0.0 opens it to your network")
    made.add_argument("--share", action="store_true", help="a public address, through a server of Gradio's")
    made.add_argument("--auth", metavar="USER:PASSWORD", help="ask visitors for these")
    made.add_argument("--inbrowser", action="store_true", help="open a browser")
    return made


def _port(written: str) -> int:
    if not written.isascii() or not written.isdigit() or not 1 <= int(written) <= 65535:
        raise argparse.ArgumentTypeError(f"found {written!r}, expected a whole number from 1 to 65535")
    return int(written)
