"""``attention-finetune VERB …``: every program of this project under one name.

A verb runs the same module as ``python -m MODULE``, with the same flags. Nothing but the standard library is imported
before a verb is chosen, so that the list of verbs is printed at once.
"""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

PROGRAM = "attention-finetune"


class Verb(NamedTuple):
    """A program: what it does, in a line, and the module that ``python -m`` runs."""

    summary: str
    module: str


VERBS = {
    "train": Verb("fine-tune a model, with the attention monitor if asked", "attention_finetune.train"),
    "compare": Verb(
        "before / after: two checkpoints on the same probes, with a verdict", "diagnostics.compare"
    ),
    "inspect": Verb("a model's architecture, from its configuration alone", "diagnostics.inspect"),
    "render": Verb("draw the attention maps of a run anew", "diagnostics.render"),
    "fusion": Verb("are several attention maps better than the best one?", "diagnostics.fusion"),
    "export": Verb("merge an adapter into its base model, checked", "finetune.export"),
    "corrective": Verb("make corrective samples and probes from pictures with boxes", "finetune.corrective"),
    "demo": Verb("correct the embedded small Qwen-VL: minutes on a CPU", "attention_finetune.train"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that ``argv`` (``sys.argv[1:]``) names; returns the exit status.

    Status 2 for an unknown verb, with the nearest one named.
    """
    verb, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if verb in ("-h", "--help"):
        print(help_text())
        return 0
    if verb in ("-V", "--version"):
        print(f"{PROGRAM} {installed_version()}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        print(f"{PROGRAM}: unknown verb {verb!r}{meant} ({PROGRAM} --help lists them)", file=sys.stderr)
        return 2
    run(VERBS[verb].module, rest)
    return 0


def run(module: str, argv: Sequence[str]) -> None:
    """What ``python -m MODULE argv…`` does, in this process. Raises SystemExit as the program does."""
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def help_text() -> str:
    """The verbs, a line each."""
    width = max(map(len, VERBS))
    verbs = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [f"usage: {PROGRAM} VERB [flags]", "", *verbs, "", f"{PROGRAM} VERB --help lists a verb's flags."]
    )


def installed_version() -> str:
    """The version of the installed package; of a source tree that is not installed, says so."""
    try:
        return version(PROGRAM)
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
