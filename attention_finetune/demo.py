"""The embedded demo: training without a model or data of one's own. ``attention-finetune demo [flags]``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Handle --help and unknown flags before the slow imports below.
    flags_module = Path(__file__).parents[1] / "finetune" / "flags" / "help.py"
    runpy.run_path(str(flags_module))["answer"](sys.argv[1:])
    from finetune import threads  # and what importing finetune silences in bitsandbytes

    threads.set_defaults()  # before torch is loaded

from attention_finetune import train
from attention_finetune.ending import exit_status, refusing
from attention_finetune.inputs import NOT_OF_THE_DEMO
from finetune.flags import parse


@refusing()
def refuse_own_input(argv: Sequence[str]) -> None:
    """Raises RefusedError if a flag, or the file of ``--config``, names a model or data."""
    argv = parse.expanded(argv)
    given = [f"--{name}" for name in NOT_OF_THE_DEMO if parse.has_value(argv, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)}: the demo has its own model and data; to train yours: attention-finetune train"
        )


def stations(argv: Sequence[str]) -> None:
    """The stations of a training run, on the demo's model and data."""
    refuse_own_input(argv)
    train.stations(argv)


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status."""
    return exit_status(stations, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
