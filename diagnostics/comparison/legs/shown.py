"""The legs of a verdict for pages, tables and cards, from comparison.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diagnostics.comparison.legs.leg import percent

HOLDS, FAILS, NOT_MEASURED = "✓", "✗", "–"
LEGEND = f"{HOLDS} holds, {FAILS} does not, {NOT_MEASURED} not measured"


class _Words(NamedTuple):
    """A leg's Chinese name, and the unit of its value."""

    chinese: str
    unit: str
    signed: bool = False


_WORDS = {
    "answers": _Words("回答", "of the answers right"),
    "picture": _Words("图像", "of the margin lost with another picture"),
    "attention": _Words("注意力", "gain of the region, or its weakest lead", signed=True),
    "cause": _Words("因果", "of the margin’s rise, in cost of hiding it"),
    "mediation": _Words("中介", "of the margin’s change goes with attention"),
    "guards": _Words("护栏", "of the guards right"),
}
NAMES = tuple(_WORDS)


class ShownLeg(NamedTuple):
    """One leg in words.

    mark       ``HOLDS``, ``FAILS`` or ``NOT_MEASURED``
    value      "97.5 %"; "" without one
    unit       what the value is a share of: "of the answers right"
    interval   "86.8 to 99.9 %"; "" without one
    threshold  the least value that holds: "80 %"
    """

    name: str
    chinese: str
    mark: str
    value: str
    unit: str
    interval: str
    threshold: str
    probes: int
    reason: str

    @property
    def says(self) -> str:
        """The mark in words."""
        return {HOLDS: "holds", FAILS: "does not hold", NOT_MEASURED: "not measured"}[self.mark]


def shown_legs(group: Mapping[str, Any]) -> list[ShownLeg]:
    """The legs behind a group's verdict; none if it was judged without legs.

    That applies to groups that must be kept, to groups with too few probes or pictures that were trained on, and to
    comparisons of earlier versions; their reasons are then not those of legs.

    group   one of "groups" of comparison.json
    """
    legs: Mapping[str, Any] = group.get("legs") or {}
    if list(group["reasons"]) != [leg["reason"] for leg in legs.values()]:
        return []
    return [_shown(name, leg) for name, leg in legs.items()]


def marks(group: Mapping[str, Any]) -> str:
    """The marks of all legs, in order: "✓✓✓✓✓–"; "" without legs."""
    return "".join(leg.mark for leg in shown_legs(group))


def _shown(name: str, leg: Mapping[str, Any]) -> ShownLeg:
    words = _WORDS[name]
    value, interval = "", ""
    if leg["value"] is not None:
        value = percent(leg["value"], signed=words.signed)
    if leg["ci95"] is not None:
        low, high = (percent(end, signed=words.signed) for end in leg["ci95"])
        interval = "" if low == high else f"{low.removesuffix(' %')} to {high}"
    mark = NOT_MEASURED if leg["holds"] is None else HOLDS if leg["holds"] else FAILS
    return ShownLeg(
        name,
        words.chinese,
        mark,
        value,
        words.unit,
        interval,
        percent(leg["threshold"]),
        leg["probes"],
        leg["reason"],
    )
