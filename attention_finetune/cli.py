"""``attention-finetune VERB …``: every program of this project under one name.

A verb runs the same module as ``python -m MODULE``, with the same flags. Only the standard library is imported until a
verb's flags are checked, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attention_finetune import __version__, completion

PROGRAM = "attention-finetune"
PACKAGES = Path(__file__).parents[1]
TRAINING_FLAGS = "finetune/flags/help.py"


class Verb(NamedTuple):
    """A program: what it does, in a line, the module that ``python -m`` runs, and the file that declares its flags.

    That file is run by its path: the training flags are parsed from sources, before any package is imported.
    """

    summary: str
    module: str
    flags: str


VERBS = {
    "train": Verb(
        "fine-tune a model, optionally with the attention monitor", "attention_finetune.train", TRAINING_FLAGS
    ),
    "compare": Verb(
        "before / after: two checkpoints on the same probes, with a verdict",
        "diagnostics.compare",
        "diagnostics/flags/compare.py",
    ),
    "diagnose": Verb(
        "one model: where on the way from pixels to words the right answer is lost",
        "diagnostics.diagnose",
        "diagnostics/flags/diagnose.py",
    ),
    "inspect": Verb(
        "a model's architecture, from its configuration alone",
        "diagnostics.inspect",
        "diagnostics/flags/inspect.py",
    ),
    "board": Verb(
        "TensorBoard on a run, with nothing smoothed and no value left out as an outlier",
        "diagnostics.board",
        "diagnostics/flags/board.py",
    ),
    "render": Verb("redraw the attention maps of a run", "diagnostics.render", "diagnostics/flags/render.py"),
    "fusion": Verb(
        "compare fused attention maps with the best single one",
        "diagnostics.fusion",
        "diagnostics/flags/fusion.py",
    ),
    "keep": Verb(
        "the answers with fewer image tokens: is what the model looks at enough?",
        "diagnostics.keep",
        "diagnostics/flags/keep.py",
    ),
    "curve": Verb(
        "how many corrective samples are needed: trains on fractions of them and compares",
        "diagnostics.curve",
        "diagnostics/flags/curve.py",
    ),
    "export": Verb(
        "merge an adapter into its base model, checked", "finetune.export", "finetune/flags/export.py"
    ),
    "corrective": Verb(
        "make corrective samples and probes from pictures with boxes",
        "finetune.corrective",
        "finetune/flags/corrective.py",
    ),
    "realcase": Verb(
        "teach a vision tower and a language model from package registries to read photographs",
        "finetune.realcase",
        "finetune/flags/realcase.py",
    ),
    "web": Verb(
        "chat with a model in the browser and see its attention",
        "diagnostics.web",
        "diagnostics/flags/web.py",
    ),
    "demo": Verb(
        "correct the embedded small Qwen-VL: minutes on a CPU", "attention_finetune.demo", TRAINING_FLAGS
    ),
}
COMPLETION = "completion"
COMPLETION_SUMMARY = f"print the script that completes verbs and flags: {', '.join(completion.SHELLS)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that ``argv`` (``sys.argv[1:]``) names; returns the exit status.

    Status 2 for an unknown verb, with the nearest one named.
    """
    verb, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if verb in ("-h", "--help"):
        print(help_text())
        return 0
    if verb in ("-V", "--version"):
        print(f"{PROGRAM} {__version__}")
        return 0
    if verb == COMPLETION:
        print(completion.SHELLS[_completion_parser().parse_args(rest).shell](PROGRAM, completed_verbs()))
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, [*VERBS, COMPLETION], n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        print(f"{PROGRAM}: unknown verb {verb!r}{meant} ({PROGRAM} --help lists them)", file=sys.stderr)
        return 2
    answer(VERBS[verb], rest)
    run(VERBS[verb].module, rest)
    return 0


def answer(verb: Verb, argv: Sequence[str]) -> None:
    """Raises SystemExit for --help and wrong flags, as the program itself would."""
    found = _declared(verb)
    if verb.flags == TRAINING_FLAGS:
        found["answer"](argv)
    else:
        found["parser"]().parse_args(argv)


def run(module: str, argv: Sequence[str]) -> None:
    """What ``python -m MODULE argv…`` does, in this process. Raises SystemExit as the program does."""
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def help_text() -> str:
    """The verbs, one per line."""
    summaries = {name: verb.summary for name, verb in VERBS.items()} | {COMPLETION: COMPLETION_SUMMARY}
    width = max(map(len, summaries))
    verbs = [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join(
        [f"usage: {PROGRAM} VERB [flags]", "", *verbs, "", f"{PROGRAM} VERB --help lists a verb's flags."]
    )


def completed_verbs() -> dict[str, completion.Verb]:
    """Every verb with its flags, from the programs' own parsers."""
    verbs = {name: completion.Verb(verb.summary, _flags(verb)) for name, verb in VERBS.items()}
    return verbs | {COMPLETION: completion.Verb(COMPLETION_SUMMARY, dict.fromkeys(completion.SHELLS, ()))}


def _flags(verb: Verb) -> dict[str, tuple[str, ...]]:
    """Flag → its possible values; () if they are free."""
    found = _declared(verb)
    if verb.flags == TRAINING_FLAGS:
        flags = {f"--{flag.name}": flag.values for group in found["groups"]() for flag in group.flags}
        return flags | {"--help": ()}
    return {
        option: tuple(one for one in map(str, action.choices or ()) if " " not in one)
        for action in found["parser"]()._actions
        for option in action.option_strings
        if option.startswith("--")
    }


def _declared(verb: Verb) -> dict[str, Any]:
    return runpy.run_path(str(PACKAGES / verb.flags))


def _completion_parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=f"{PROGRAM} {COMPLETION}",
        description=f"Complete verbs and flags in a shell. For bash: source <({PROGRAM} {COMPLETION} bash)",
    )
    made.add_argument("shell", choices=list(completion.SHELLS))
    return made


if __name__ == "__main__":
    sys.exit(main())
