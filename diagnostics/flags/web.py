"""The flags of ``python -m diagnostics.web``."""

from __future__ import annotations

import argparse

DESCRIPTION = """The web demo: chat with a vision-language model and see its attention.

    python -m diagnostics.web --visualize-attention
    python -m diagnostics.web -c output_qwen --visualize-attention --checkpoints output_qwen
"""


def parser() -> argparse.ArgumentParser:
    """Flags of the demo; those of Qwen-VL's 2023 ``web_demo_mm.py`` keep their names."""
    made = argparse.ArgumentParser(
        prog="python -m diagnostics.web",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "-c",
        "--checkpoint-path",
        help="model folder, adapter folder or hub name (default: the embedded demo)",
    )
    made.add_argument("--visualize-attention", action="store_true", help="show the attention of each answer")
    made.add_argument(
        "--checkpoints", nargs="+", default=[], metavar="FOLDER", help="other checkpoints, for before / after"
    )
    made.add_argument("--base", metavar="FOLDER", help="base of the adapters, if not at the path they record")
    made.add_argument(
        "--allow-other-base",
        "--allow_other_base",
        action="store_true",
        help="open adapters on a base other than the one they were trained on, if the shapes fit",
    )
    made.add_argument(
        "--probe-file", default="probes_saved.json", help="file that drawn boxes are saved to as probes"
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
        help="selection: least similar tokens, or those attended to in the second layer (docs/keep.md)",
    )
    made.add_argument("--cpu-only", action="store_true", help="do not use the GPU")
    made.add_argument("--server-port", type=_port, default=8000)
    made.add_argument(
        "--server-name",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 opens the page to your network",
    )
    made.add_argument("--share", action="store_true", help="create a public link through Gradio's server")
    made.add_argument("--auth", metavar="USER:PASSWORD", help="require this login")
    made.add_argument("--inbrowser", action="store_true", help="open a browser")
    return made


def _port(written: str) -> int:
    if not written.isascii() or not written.isdigit() or not 1 <= int(written) <= 65535:
        raise argparse.ArgumentTypeError(f"found {written!r}, expected a whole number from 1 to 65535")
    return int(written)
