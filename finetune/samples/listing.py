"""Shortens long lists in messages and counts what is left out."""

from collections.abc import Iterator, Sequence

from finetune.printable import one_line

MOST_CHARACTERS = 1500
"""Characters of all lines together: a message stays below 2 kB."""
LONGEST_LINE = 600


def shown(lines: Sequence[str], most: int, *, characters: int = MOST_CHARACTERS) -> Iterator[str]:
    """At most ``most`` lines, indented, and a line that counts the rest."""
    left, count = characters, 0
    for line in lines[:most]:
        line = shortened(line)
        if count and len(line.encode()) > left:
            break
        yield f"  {line}"
        left, count = left - len(line.encode()), count + 1
    if len(lines) > count:
        yield f"  ... and {len(lines) - count:,} more"


def shortened(line: str, most: int = LONGEST_LINE) -> str:
    """A line fit for a message: printable, and with its middle cut out if it is too long."""
    return one_line(line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}", most + 5)
