"""Checks the options of a call: unknown or ineffective ones are errors."""

from collections.abc import Collection, Mapping, Sized
from difflib import get_close_matches
from typing import Any

from transformers.utils.chat_template_utils import _get_template_variables


def check_options(caller: str, unknown: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises TypeError naming the first of ``unknown`` and the closest known option."""
    for name in unknown:
        near = get_close_matches(name, [*known], n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(known))}"
        raise TypeError(f"{caller} has no option {name!r}{hint}")


def refuse(caller: str, found: Mapping[str, Any], why: str) -> None:
    """Raises ValueError naming options that are set but have no effect here."""
    asked = [name for name, value in found.items() if _is_given(value)]
    if asked:
        raise ValueError(
            f"{caller}: {', '.join(f'{name}={repr(found[name])[:60]}' for name in asked)}: {why}"
        )


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and not (isinstance(value, Sized) and len(value) == 0)


def check_variables(caller: str, variables: Collection[str], template: str, options: Collection[str]) -> None:
    """Raises TypeError for a name that is neither an option of the call nor a variable of the template."""
    own = _get_template_variables(template)
    check_options(caller, dict.fromkeys(name for name in variables if name not in own), {*options, *own})
