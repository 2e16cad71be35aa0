"""``--help`` and wrong flags of ``python -m finetune.…``, answered before the package imports what takes seconds."""

from collections.abc import Sequence
from importlib import import_module

PROGRAMS = ("export", "corrective", "realcase")
"""Programs of ``finetune`` that have their flags in a module of this folder."""


def answer(command: Sequence[str]) -> None:
    """End the process where the program is asked for help, or is given flags that it does not have.

    command   ``["python", "-m", "finetune.export", "--help"]``
    """
    if "-m" not in command:
        return
    module, *argv = command[command.index("-m") + 1 :]
    package, _, program = module.partition(".")
    if package == "finetune" and program in PROGRAMS:
        import_module(f"finetune.flags.{program}").parser().parse_args(argv)
