"""The web demo: chat with a vision-language model, and see what it looks at.

python -m diagnostics.web --visualize-attention
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

from diagnostics.flags.web import parser

if TYPE_CHECKING:  # Gradio and torch are read once the flags are known to be right
    from diagnostics.web.engine import Engine, Keep

EXAMPLE = (Path(__file__).with_name("tower.png"), "这座塔是什么?")


def require_free(name: str, port: int) -> None:
    """Raises ValueError, before a model is loaded, where the page could not listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
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
    from diagnostics.web.engine import Engine, Keep, Mode

    require_free(given.server_name, given.server_port)
    checkpoints = find_checkpoints(given.checkpoints)
    named = {"base": given.base, "allow_other_base": given.allow_other_base}
    bases = {name: value for name, value in named.items() if value}
    check_checkpoints(checkpoints, **bases)
    if given.visualize_attention and Path(given.probe_file).exists():
        read_probes(given.probe_file)
    keep = None if given.keep_image_tokens is None else Keep(given.keep_image_tokens, given.keep_by)
    if keep is not None:
        _check_keep(keep, watches=given.low_memory or given.visualize_attention)
    mode: Mode = "low" if given.low_memory else "full" if given.visualize_attention else "text"
    engine = Engine.load(given.checkpoint_path, mode=mode, cpu_only=given.cpu_only, bases=bases, keep=keep)
    return engine, checkpoints


def _check_keep(keep: Keep, *, watches: bool) -> None:
    """Raises ValueError, naming the flag, for a share that cannot be and beside flags that show maps."""
    from diagnostics.measures.token_orders import count_kept

    if watches:
        raise ValueError(
            f"--keep_image_tokens {keep.share:g}: found --visualize-attention or --low-memory, whose maps are of whole "
            "pictures; expected one or the other"
        )
    try:
        count_kept(1, keep.share)
    except ValueError as error:
        raise ValueError(f"--keep_image_tokens: {error}") from error


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
        blocks = build(page, attention=given.visualize_attention, example=EXAMPLE)
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
