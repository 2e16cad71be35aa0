"""The flags of ``python -m diagnostics.inspect``."""

from __future__ import annotations

import argparse

DESCRIPTION = """The architecture of a model, from its configuration and its processor's settings: no weights are read.

    python -m diagnostics.inspect Qwen/Qwen-VL-Chat
    python -m diagnostics.inspect output_qwen --mermaid
"""

PICTURE = (1280, 720)
"""Width and height of the example: not square, and not a multiple of any patch size."""
TOKENS = 1024


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.inspect",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "model", metavar="MODEL", help="hub name, model folder or adapter folder (its base is shown)"
    )
    shown = made.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.add_argument("--mermaid", action="store_true", help="print a Mermaid flow chart for Markdown")
    made.add_argument(
        "--tokens", type=_positive, default=TOKENS, help="sequence length for the size of maps (%(default)s)"
    )
    made.add_argument(
        "--picture",
        type=_picture,
        default=PICTURE,
        metavar="WxH",
        help="size of the example in pixels (1280x720)",
    )
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}, expected at least 1")
    return value


def _picture(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected width x height in pixels, as in 1280x720")
    return int(width), int(height)
