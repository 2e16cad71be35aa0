"""Reads JSON written by users or other programs; errors are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.fields import MOST_BYTES, MOST_LEVELS, each_once, has_half_pair, levels
from finetune.printable import one_line


def parsed_file(path: Path, what: str) -> Any:
    """The content of a JSON file in UTF-8. ``what`` names the kind of file in messages.

    Raises FileNotFoundError, and ValueError naming the file where it cannot be read.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no {what} there")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"{path}: found {path.stat().st_size:,} bytes, expected a {what} of at most {MOST_BYTES:,}"
            )
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); save it in UTF-8") from error
    except OSError as error:
        raise ValueError(f"{shown(str(path))}: not readable ({error.strerror}); expected a {what}") from error
    try:
        return parsed(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parsed(text: str) -> Any:
    """The content of a JSON text.

    Raises ValueError, worded to follow the file's name, for text that is not JSON, nested too deep to read, has a key
    twice (Python would keep the last, in silence), or holds characters that no file can (halves of UTF-16 pairs).
    """
    try:
        content = json.loads(text, object_pairs_hook=each_once)
    except RecursionError as error:
        raise ValueError("not readable as JSON (nested too deep); fix the file") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not readable as JSON ({error}); fix the file there") from error
    except ValueError as error:  # a number of thousands of digits, a key twice
        raise ValueError(f"not readable as JSON ({error}); fix the file") from error
    if levels(content) > MOST_LEVELS:
        raise ValueError("not readable as JSON (nested too deep); fix the file")
    if has_half_pair(content):
        raise ValueError(
            "not readable as JSON (half of a UTF-16 pair, such as \\ud83d alone, which is no character); fix the text"
        )
    return content


def shown(value: Any, most: int = 80) -> str:
    """A value for a message: its repr, truncated where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deep, or a number of thousands of digits
        return f"a {type(value).__name__}"
    return one_line(text, most + 1)
