"""``attention-finetune completion SHELL``: a script that completes verbs, their flags, and the values of a flag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Verb(NamedTuple):
    """A verb for shell completion: a one-line summary, and its flags (``--depth``) with their values.

    (): free values, completed as file names.
    """

    summary: str
    flags: Mapping[str, tuple[str, ...]]


Verbs = Mapping[str, Verb]


def bash(program: str, verbs: Verbs) -> str:
    """To be read by ``source <(attention-finetune completion bash)``."""
    function = "_" + program.replace("-", "_")
    flags = [f'        {name}) words="{" ".join(verb.flags)}" ;;' for name, verb in verbs.items()]
    values = [
        f'        "{name} {flag}") words="{" ".join(found)}" ;;'
        for name, verb in verbs.items()
        for flag, found in verb.flags.items()
        if found
    ]
    lines = [
        f"{function}() {{",
        '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        '    if [[ "$COMP_CWORD" -eq 1 ]]; then',
        f'        words="{" ".join(verbs)} --help --version"',
        '    elif [[ "$current" == -* || "$COMP_CWORD" -eq 2 ]]; then',
        '        case "${COMP_WORDS[1]}" in',
        *flags,
        "        esac",
        "    else",
        '        case "${COMP_WORDS[1]} $previous" in',
        *values,
        "        esac",
        "    fi",
        '    COMPREPLY=( $(compgen -W "$words" -- "$current") )',
        "}",
        f"complete -o default -F {function} {program}",
    ]
    return "\n".join(lines)


def zsh(program: str, verbs: Verbs) -> str:
    """The script of bash, through zsh's own module for such scripts."""
    start = [
        f"#compdef {program}",
        "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
        "autoload -Uz bashcompinit && bashcompinit",
    ]
    return "\n".join([*start, bash(program, verbs)])


def fish(program: str, verbs: Verbs) -> str:
    """To be read by ``attention-finetune completion fish | source``."""
    lines = []
    for name, verb in verbs.items():
        lines.append(
            f"complete -c {program} -f -n __fish_use_subcommand -a {name} -d {_quoted(verb.summary)}"
        )
        for flag, values in verb.flags.items():
            seen = (
                f"complete -c {program} -n '__fish_seen_subcommand_from {name}' -l {flag.removeprefix('--')}"
            )
            lines.append(f"{seen} -x -a '{' '.join(values)}'" if values else seen)
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[str, Verbs], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
