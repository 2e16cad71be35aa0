"""The web demo: chat with a vision-language model, and see what it looks at.

python web_demo_mm.py --visualize-attention
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Gradio and torch are read once the flags are known to be right
    from diagnostics.web.engine import Engine

EXAMPLE = (Path(__file__).parent / "docs" / "images" / "tower.png", "这座塔是什么?")


def parser() -> argparse.ArgumentParser:
    """Flags of the demo; those of Qwen-VL's 2023 ``web_demo_mm.py`` keep their names."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def require_free(name: str, port: int) -> None:
    """Raises ValueError, before a model is loaded, where the page could not listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            asked.bind(address)
    except OSError as error:
        raise ValueError(
            f"--server-name {name} --server-port {port}: the page cannot listen there ({error.strerror}); choose "
            "another port, or a name of this machine"
        ) from error


def opened(given: argparse.Namespace) -> tuple[Engine, list[Path]]:
    """The model, and the checkpoints beside it. Raises ValueError or OSError, before weights are read, for what a
    visitor would run into later: a port that is taken, a checkpoint without its base, a probe file with faults."""
    from diagnostics.records.probes import read_probes
    from diagnostics.web.checkpoints import check_checkpoints, find_checkpoints
    from diagnostics.web.engine import Engine, Mode

    require_free(given.server_name, given.server_port)
    checkpoints = find_checkpoints(given.checkpoints)
    named = {"base": given.base, "allow_other_base": given.allow_other_base}
    bases = {name: value for name, value in named.items() if value}
    check_checkpoints(checkpoints, **bases)
    if given.visualize_attention and Path(given.probe_file).exists():
        read_probes(given.probe_file)
    mode: Mode = "low" if given.low_memory else "full" if given.visualize_attention else "text"
    return Engine.load(given.checkpoint_path, mode=mode, cpu_only=given.cpu_only, bases=bases), checkpoints


def _end(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)  # as a shell tells it; what visitors sent is deleted on the way out


def main(arguments: list[str] | None = None) -> None:
    flags = parser()
    given = flags.parse_args(arguments)
    user, colon, password = (given.auth or "").partition(":")
    if given.auth and not (user and password):
        flags.error("--auth: expected USER:PASSWORD, both not empty")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|torch|peft|accelerate)\."
    )
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="web-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what visitors send goes when the server does
        import finetune  # noqa: F401 - before peft: it silences what bitsandbytes says on import
        from diagnostics.web.page import Page, build, serve

        try:
            engine, checkpoints = opened(given)
        except (OSError, ValueError) as error:
            flags.exit(1, f"{error}\n")
        page = Page(engine, checkpoints=checkpoints, probe_file=given.probe_file, folder=Path(folder))
        blocks = build(
            page, attention=given.visualize_attention, example=EXAMPLE if EXAMPLE[0].is_file() else None
        )
        open_to_all = given.share or given.server_name not in ("127.0.0.1", "localhost", "::1")
        if open_to_all and not given.auth:
            logging.warning("open to others without a password; --auth USER:PASSWORD asks for one")
        serve(
            blocks,
            server_name=given.server_name,
            server_port=given.server_port,
            share=given.share,
            auth=(user, password) if colon else None,
            inbrowser=given.inbrowser,
        )


if __name__ == "__main__":
    main()
