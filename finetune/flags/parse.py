"""Flags → ``Arguments``."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from finetune.flags import deepspeed_file, help, limits, packages, run_file
from finetune.flags.arguments import (
    AdaptationArguments,
    Arguments,
    DataArguments,
    EvaluationArguments,
    LookArguments,
    ModelArguments,
    MonitorArguments,
    TrainingArguments,
)
from finetune.flags.argv import join_flag, split_flags
from finetune.flags.checks import check, check_values, object_faults, refuse, remarks
from finetune.flags.flags_of_2023 import translate
from finetune.samples.listing import shortened

GROUPS = (
    ModelArguments,
    DataArguments,
    AdaptationArguments,
    EvaluationArguments,
    MonitorArguments,
    LookArguments,
    TrainingArguments,
)


PRECISIONS = ("bf16", "fp16")


def _is_on(values: Sequence[str]) -> bool:
    """``--bf16``, ``--bf16 True``: the words are those of transformers' parser."""
    return not values or values[-1].lower() not in ("false", "no", "n", "f", "0")


def default_values() -> dict[str, Any]:
    """Flag → its default."""
    every = [one for group in GROUPS for one in dataclasses.fields(group)]
    return {one.name: one.default for one in every if one.default is not dataclasses.MISSING}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises ValueError: argparse's own message would repeat all flags, 20 kB of them."""
        raise ValueError(f"{shortened(message)} (python finetune.py --help lists all)")


def parser() -> HfArgumentParser:
    made = _Parser(
        GROUPS,
        description="Fine-tune a Qwen-VL and see where its attention goes. Without flags: the embedded demo.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for action in made._actions:
        if action.dest == "report_to":  # of "text or a list of texts" HfArgumentParser reads one text
            action.nargs = "+"
    return made


def has_value(argv: Sequence[str], name: str) -> bool:
    """Is the flag given on this command line?"""
    return any(given == name for given, _ in split_flags(argv))


def merge(defaults: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Default flags overridden by ``argv``, flag by flag; a precision that is given replaces both by default."""
    given = {name for name, _ in split_flags(argv)}
    if any(name in PRECISIONS and _is_on(values) for name, values in split_flags(argv)):
        given |= {*PRECISIONS}
    kept = [
        token
        for name, values in split_flags(defaults)
        if name not in given
        for token in join_flag(name, values)
    ]
    return [*kept, *argv]


def expanded(argv: Sequence[str]) -> list[str]:
    """The command line with the flags of ``--config`` written out.

    Default flags of a script, which stand before ``--given``, are overridden by the file, and both by the flags given.

    Raises ValueError for an invalid file, as :mod:`finetune.flags.run_file` does.
    """
    defaults, given = _parted(argv)
    files = [value for name, values in split_flags(given) if name == "config" for value in values]
    if not files:
        return merge(defaults, given)
    if len(files) > 1:
        raise ValueError(f"--config: found {len(files)} files ({', '.join(files)}), expected one")
    rest = [
        token for name, values in split_flags(given) if name != "config" for token in join_flag(name, values)
    ]
    flags = run_file.flags_of(files[0])
    if "output_dir" not in dict(split_flags(rest)):
        run_file.check_moved(Path(files[0]), flags)
    return merge(defaults, merge(flags, rest))


def _parted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The default flags of a script and the given ones; without ``--given`` all of them are given."""
    if help.USUAL_END not in argv:
        return [], [*argv]
    at = [*argv].index(help.USUAL_END)
    return [*argv[:at]], [*argv[at + 1 :]]


def parse(argv: Sequence[str]) -> tuple[Arguments, list[str]]:
    """Parse flags; returns the arguments, and lines about translated flags and surprising values.

    Raises ValueError if a flag is unknown, a number is out of range, flags contradict each other, or a file or
    package that they name is missing.
    """
    argv = expanded(argv)
    lines = _repeated(argv)
    translated, more = translate(argv)
    reader = parser()
    check_values(reader, translated)
    namespace, _ = reader.parse_known_args(_joined(translated))
    given = vars(namespace)
    faults = [*limits.faults(given), *packages.faults(given), *object_faults(given)]
    deepspeed = given["deepspeed"]
    faults += deepspeed_file.faults(deepspeed, given) if deepspeed and not faults else ()
    refuse(faults)
    arguments = Arguments(*reader.parse_dict(given))
    check(arguments)
    lines += [*more, *limits.remarks(given), *remarks(arguments)]
    lines += deepspeed_file.remarks(deepspeed, given) if deepspeed else ()
    return arguments, lines


def _joined(argv: Sequence[str]) -> list[str]:
    """Join single values with "=": argparse would take -1e-5 and -inf for flags."""
    return [
        token
        for name, values in split_flags(argv)
        for token in ([f"--{name}={values[0]}"] if len(values) == 1 else join_flag(name, values))
    ]


def _repeated(argv: Sequence[str]) -> list[str]:
    """A line for each flag that is given several times with different values."""
    values: dict[str, list[list[str]]] = {}
    for name, found in split_flags(argv):
        values.setdefault(name, []).append(found)
    return [
        f"--{name}: given {len(found)} times; using the last value: {' '.join(found[-1])}"
        for name, found in values.items()
        if name and any(one != found[-1] for one in found)
    ]
