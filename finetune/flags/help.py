"""The flags of ``finetune.py``, parsed from the sources that declare them: for ``--help`` and unknown flags.

Importing transformers' TrainingArguments takes six seconds (5.23: it imports PEFT, and with it much of torch), so its
flags can only be listed quickly by parsing its source; ours are read in the same way. This file is also run on its
own, before any package is imported: it may import nothing but the standard library.
"""

import ast
import difflib
import functools
import importlib.util
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

OURS = Path(__file__).with_name("arguments.py")
OLD = Path(__file__).with_name("flags_of_2023.py")
BASE = "TrainingArguments"
FLAG_COLUMNS = 34
USUAL_END = "--given"
"""Separates the default flags of a script from those that its user gives."""


class Flag(NamedTuple):
    """One flag. ``kind`` and ``default`` are source text; ``default`` is None if there is none to show."""

    name: str
    kind: str
    default: str | None
    help: str

    @property
    def values(self) -> tuple[str, ...]:
        """The values it may have; () if they are free."""
        shown = _value(self.kind)
        return tuple(shown.split("|")) if "|" in shown else ()


class Group(NamedTuple):
    """Flags that belong together, under one title."""

    title: str
    flags: tuple[Flag, ...]


def answer(argv: Sequence[str]) -> None:
    """Print the help, or the errors for unknown flags, and exit; return where there is neither."""
    if {"-h", "--help"} & {*argv}:
        _end(help_text(), status=0, to=sys.stdout)
    names = [name for name in map(_name, argv) if name and name != USUAL_END]
    faults = [no_such_flag(name) for name in names if name not in known()]
    for before, word in zip((USUAL_END, *argv), argv, strict=False):
        if before == USUAL_END and not word.startswith("-"):
            faults.append(no_flag(word))
    if faults:
        _end("\n".join(f"finetune.py: {fault}" for fault in faults), status=2, to=sys.stderr)


def _name(token: str) -> str:
    """``--learning_rate=1e-5`` → ``--learning_rate``; "" for a value."""
    return token.partition("=")[0] if token.startswith("--") else ""


def _end(words: str, *, status: int, to: Any) -> None:
    if os.environ.get("RANK", "0") == "0":
        try:
            print(words, file=to, flush=True)
        # ``| head`` has closed the pipe; without the redirection Python would report it once more on exit.
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())
    raise SystemExit(status)


def no_such_flag(name: str) -> str:
    """The error for an unknown flag."""
    near = difflib.get_close_matches(name, [one for one in known() if "-" not in one[2:]], n=2)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{name[:80]}: unknown flag{meant} (python finetune.py --help lists all)"


def no_flag(word: str) -> str:
    """The error for a word that belongs to no flag."""
    meant = f"--config {word}" if word.endswith((".yaml", ".yml")) else "--data_path FILE"
    return f"found {word[:80]!r}, which belongs to no flag; did you mean {meant}? (python finetune.py --help lists all)"


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------


def groups() -> list[Group]:
    """Our groups, then the remaining flags of transformers' Trainer."""
    ours = [
        _group(one) for one in _classes(OURS) if one.name != "Arguments" and one.name.endswith("Arguments")
    ]
    declared = {flag.name for group in ours for flag in group.flags}
    theirs = next(one for one in _classes(_transformers()) if one.name == BASE)
    flags = tuple(flag for flag in _flags(theirs) if flag.name not in declared)
    return [*ours, Group("Training: all other flags of transformers' Trainer.", flags)]


def _group(one: ast.ClassDef) -> Group:
    return Group((ast.get_docstring(one) or one.name).splitlines()[0], tuple(_flags(one)))


@functools.cache
def known() -> set[str]:
    """Every spelling of every accepted flag, including the flags of 2023."""
    names = {f"--{name}" for table in ("RENAMED", "BOOLEAN_VALUES", "DROPPED") for name in _table(table)}
    for group in groups():
        for flag in group.flags:
            names |= {f"--{flag.name}", f"--{flag.name.replace('_', '-')}"}
            if flag.kind.startswith("bool") and flag.default == "True":
                names |= {f"--no_{flag.name}", f"--no-{flag.name.replace('_', '-')}"}
    return names | {"--help"}


def _transformers() -> Path:
    found = importlib.util.find_spec("transformers")  # does not import it
    assert found is not None and found.origin is not None, "transformers is not installed"
    return Path(found.origin).with_name("training_args.py")


def _classes(path: Path) -> list[ast.ClassDef]:
    return [
        node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    ]


def _table(name: str) -> dict[str, Any]:
    """A table of :mod:`finetune.flags.flags_of_2023`, by its name."""
    for node in ast.parse(OLD.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{OLD} has no table {name}")


def _flags(one: ast.ClassDef) -> Iterator[Flag]:
    """The fields of a dataclass that become flags."""
    for node in one.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = ast.unparse(node.annotation)
            if kind.startswith("ClassVar"):
                continue
            given = {}
            if isinstance(node.value, ast.Call):
                given = {keyword.arg: keyword.value for keyword in node.value.keywords}
            default = given.get("default", None if isinstance(node.value, ast.Call) else node.value)
            shown = None if default is None else ast.unparse(default)
            shown = None if shown in ("None", "''") else shown
            yield Flag(node.target.id, kind, shown, _help(given.get("metadata")))


def _help(metadata: ast.expr | None) -> str:
    """The text of ``metadata={"help": ...}``; computed parts are left out."""
    if not isinstance(metadata, ast.Dict):
        return ""
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "help":
            texts = [part.value for part in ast.walk(value) if isinstance(part, ast.Constant)]
            return " ".join("".join(str(text) for text in texts).replace("%%", "%").split())
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


def help_text() -> str:
    """All flags, in groups."""
    columns = min(120, shutil.get_terminal_size((100, 24)).columns)
    lines = [
        "python finetune.py --model_name_or_path MODEL --data_path DATA [flags]",
        "Fine-tune a vision-language model and see where its attention goes. Without flags: the embedded demo.",
    ]
    for group in groups():
        lines += ["", group.title]
        for flag in group.flags:
            lines += _lines(flag, columns)
    return "\n".join(lines)


def _lines(flag: Flag, columns: int) -> list[str]:
    default = "" if flag.default is None else f" [{flag.default.strip(chr(39))}]"
    head = f"  --{flag.name} {_value(flag.kind)}"
    text = textwrap.wrap(flag.help + default, max(30, columns - FLAG_COLUMNS), break_on_hyphens=False) or [""]
    if len(head) >= FLAG_COLUMNS - 1:
        text = ["", *text]
    first, *rest = text
    return [f"{head:<{FLAG_COLUMNS}}{first}".rstrip(), *(" " * FLAG_COLUMNS + line for line in rest)]


def _value(kind: str) -> str:
    """``Literal['frozen', 'lora'] | None`` → ``frozen|lora``."""
    if "Literal[" in kind:
        inside = kind[kind.index("Literal[") + len("Literal[") : kind.index("]")]
        return "|".join(part.strip().strip("'") for part in inside.split(","))
    words = {"bool": "True|False", "int": "N", "float": "X", "list[str]": "TEXT ...", "dict": "JSON"}
    return next((word for start, word in words.items() if kind.startswith(start)), "TEXT")
