"""The flags of ``python -m diagnostics.inspect``."""

from __future__ import annotations

import argparse

DESCRIPTION = "The architecture of a model, from its configuration alone: no weights are read."

PICTURE = (1280, 720)
"""Width and height of the example: neither square nor a multiple of any patch."""
TOKENS = 1024


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m diagnostics.inspect", description=DESCRIPTION)
    made.add_argument("model", metavar="MODEL", help="hub name, model folder or adapter folder")
    shown = made.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="for programs")
    shown.add_argument("--mermaid", action="store_true", help="a flow chart for Markdown")
    made.add_argument(
        "--tokens", type=_positive, default=TOKENS, help="length that maps are counted for (%(default)s)"
    )
    made.add_argument(
        "--picture", type=_picture, default=PICTURE, metavar="WxH", help="example in pixels (1280x720)"
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
