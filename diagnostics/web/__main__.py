"""The web demo: chat with a vision-language model and see its attention.

Usage and flags: ``diagnostics/flags/web.py``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostics.flags.web import parser

if TYPE_CHECKING:  # Gradio and torch are imported after the flags are checked
    from diagnostics.web.engine import Engine, Keep


def require_free(name: str, port: int) -> None:
    """Raises ValueError, before a model is loaded, if the page cannot listen on this name and port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"--server-name {name} --server-port {port}: cannot listen there ({error.strerror}); choose another port, "
            "or a host name of this machine"
        ) from error


def opened(given: argparse.Namespace) -> tuple[Engine, list[Path]]:
    """The engine, and the other checkpoints. Raises ValueError or OSError, before weights are read, for what would fail
    later in front of a visitor: a port in use, a checkpoint without its base, an invalid probe file."""
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
    sys.exit(128 + signal.SIGTERM)  # the shell's convention; the exit deletes what visitors uploaded


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
    from finetune.scratch import scratch_folder

    with scratch_folder("web") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # uploads are deleted with the server
        import finetune  # noqa: F401 - before peft: it silences bitsandbytes on import
        from diagnostics.web.page import Page, build, serve

        try:
            engine, checkpoints = opened(given)
        except (OSError, ValueError) as error:
            flags.exit(1, f"{error}\n")
        page = Page(engine, checkpoints=checkpoints, probe_file=given.probe_file, folder=folder)
        blocks = build(page, attention=given.visualize_attention)
        open_to_all = given.share or given.server_name not in ("127.0.0.1", "localhost", "::1")
        if open_to_all and not given.auth:
            logging.warning(
                "the page is open to others without a password; set one with --auth USER:PASSWORD"
            )
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
