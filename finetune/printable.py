"""Text from files, made fit for a message: nothing in it steers a terminal, and all of it can be printed."""

import re

# Control characters but the line break and the tab; marks that turn the order of a line round; halves of UTF-16 pairs.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with everything unfit written as Python writes it: ESC becomes ``\x1b``, half of a pair ``\ud83d``.

    Chinese, accents, emoji, line breaks and tabs stay.
    """
    return _UNFIT.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str, most: int) -> str:
    r"""The same for a name within a line: line breaks and tabs become ``\n`` and ``\t``, and the end is cut off."""
    plain = printable(text if len(text) <= most else f"{text[: most - 1]}…")
    return plain.replace("\n", "\\n").replace("\t", "\\t")
