"""The formats of training data, and detection of the format of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from finetune.printable import one_line
from finetune.samples.box_numbers import BoxUnits
from finetune.samples.conversation import Conversation
from finetune.samples.formats import alpaca, llava, openai, qwen_vl, sharegpt
from finetune.samples.formats.boxes import with_boxes
from finetune.samples.formats.record import Record, Spoken, a_kind, spelling_of

MOST_SHAPES_SHOWN = 3


class Format(NamedTuple):
    """A format of conversations; one module each.

    may_be   whether a record with these roles and this text could be in the format
    turns    a record's turns; problems become faults of the record
    """

    name: str
    shape: str
    may_be: Callable[[Mapping[str, Any], set[str], str], bool]
    turns: Callable[[Record], list[Spoken]]

    def read(self, record: Record, source: str, units: BoxUnits | None) -> Conversation:
        """The conversation of a record; valid only where the record has no faults."""
        turns = with_boxes(record, self.turns(record), units)
        return Conversation(turns, source)


FORMATS = (
    Format(qwen_vl.NAME, qwen_vl.SHAPE, qwen_vl.may_be, qwen_vl.turns),
    Format(llava.NAME, llava.SHAPE, llava.may_be, llava.turns),
    Format(sharegpt.NAME, sharegpt.SHAPE, sharegpt.may_be, sharegpt.turns),
    Format(openai.NAME, openai.SHAPE, openai.may_be, openai.turns),
    Format(alpaca.NAME, alpaca.SHAPE, alpaca.may_be, alpaca.turns),
)
"""Records without a picture may fit several formats that read them alike; the first is used."""


def named(name: str) -> Format:
    return next(one for one in FORMATS if one.name == name)


class Recognised(NamedTuple):
    """A file's format, and a phrase on how it was detected."""

    format: Format
    because: str


def recognise(name: str, records: Sequence[tuple[str, Any]]) -> Recognised:
    """The format that fits all records, apart from those that fit none.

    name      of the file, for errors
    records   (name for messages, content) of each record examined

    Raises ValueError with what was found and the known formats if no format fits them all.
    """
    fitting = [(where, content, _fitting(content)) for where, content in records]
    known = [names for _, _, names in fitting if names]
    common = frozenset.intersection(*known) if known else frozenset()
    if not common:
        raise ValueError(_unrecognised(name, fitting))
    chosen = next(one for one in FORMATS if one.name in common)
    others = [one.name for one in FORMATS if one.name in common and one is not chosen]
    looked = f"{len(known):,} record{'' if len(known) == 1 else 's'} looked at"
    if others:
        return Recognised(chosen, f"recognised from {looked}; {' and '.join(others)} would read them alike")
    return Recognised(chosen, f"recognised from {looked}")


def _fitting(content: Any) -> frozenset[str]:
    """Names of the formats that a record fits."""
    if not isinstance(content, Mapping):
        return frozenset()
    content = {key: value for key, value in content.items() if value is not None}
    listed = [key for key in ("messages", "conversations") if key in content]
    said, roles = _turns_and_roles(content)
    known = roles & openai.ROLES.keys()
    if len(listed) > 1 or (listed and not known - {"system"}):
        return frozenset()
    texts = [item.get(key) for item in said for key in ("value", "content")]
    text = "".join(one for one in texts if isinstance(one, str))
    return frozenset(one.name for one in FORMATS if one.may_be(content, known, text))


def _turns_and_roles(content: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], set[str]]:
    """The turns listed in a record of any format, and their roles."""
    items = content.get("messages", content.get("conversations"))
    said = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    spelled = [(item, keys) for item in said if (keys := spelling_of(item)) is not None]
    return said, {str(item[keys[0]]) for item, keys in spelled}


def _unrecognised(name: str, fitting: Sequence[tuple[str, Any, frozenset[str]]]) -> str:
    first: dict[str, str] = {}
    shapes: Counter[str] = Counter()
    for where, content, names in fitting:
        shape = _shape(content) + (f" ({' or '.join(sorted(names))})" if names else "")
        shapes[shape] += 1
        first.setdefault(shape, where)
    mixed = any(names for _, _, names in fitting)
    found = "its records are in several formats" if mixed else "unknown format"
    lines = [f"{name}: {found}"]
    for shape, count in shapes.most_common(MOST_SHAPES_SHOWN):
        lines.append(f"  found in {count:,} of {len(fitting):,} looked at: {shape}; {first[shape]} first")
    if len(shapes) > MOST_SHAPES_SHOWN:
        lines.append(f"  ... and {len(shapes) - MOST_SHAPES_SHOWN} more")
    lines += _first_turn(fitting)
    lines.append("  expected one of")
    lines += [f"    {one.name:9} {one.shape}" for one in FORMATS]
    lines.append("  choose one with --data_format; records that do not follow it are then listed one by one")
    return "\n".join(lines)


def _shape(content: Any) -> str:
    if not isinstance(content, Mapping):
        return a_kind(content)
    keys = "keys " + ", ".join(sorted(map(str, content))) if content else "an object without keys"
    unknown = sorted(_turns_and_roles(content)[1] - openai.ROLES.keys())
    roles = (
        f", unknown role{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}" if unknown else ""
    )
    return one_line(f"{keys}{roles}", 160)


def _first_turn(fitting: Sequence[tuple[str, Any, frozenset[str]]]) -> list[str]:
    """A line that shows the first turn of an unknown format."""
    for _, content, names in fitting:
        said = _turns_and_roles(content)[0] if isinstance(content, Mapping) and not names else []
        if said:
            return [f"  a turn: {said[0]!r:.160}"]
    return []


def spread(count: int, most: int) -> Iterator[int]:
    """At most ``most`` indices, spread evenly over 0 to ``count`` - 1, the first included."""
    return islice(range(0, count, max(1, -(-count // most))), most)
