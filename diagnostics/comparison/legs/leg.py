"""One leg of a verdict, and the format of its numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from diagnostics.measures.statistics import Interval
from finetune.percent import percent_words

_BELOW_ZERO = {"under": "over", "over": "under"}  # bounds of a size, said of a number below 0
NO_SPREAD = "the same on every picture"
"""What an interval says whose ends do not differ."""


class Leg(NamedTuple):
    """One piece of evidence.

    holds      whether it meets its threshold significantly; None: not measured
    probes     number of probes behind it
    value      the number compared with the threshold; None without one
    ci95       its interval, at the level of the comparison; of "mediation" at the level of its test, which its reason
               says
    threshold  the least value that holds
    reason     one sentence
    """

    holds: bool | None
    probes: int
    value: float | None
    ci95: tuple[float, float] | None
    threshold: float
    reason: str

    def json(self) -> dict[str, Any]:
        """The form in comparison.json."""
        return {**self._asdict(), "ci95": None if self.ci95 is None else list(self.ci95)}


def not_measured(threshold: float, reason: str, probes: int = 0) -> Leg:
    """A leg without a measurement."""
    return Leg(None, probes, None, None, threshold, reason)


def too_few(threshold: float, what: str, images: int, probes: int, least: int) -> Leg:
    """A leg with too few pictures."""
    return not_measured(
        threshold, f"{what} measured on {count(images, 'picture')}, and {least} are needed.", probes
    )


def percent(share: float, *, signed: bool = False) -> str:
    """0.4129 → "41.3 %", signed "+41.3 %"; 0.9996 → "over 99.9 %", -0.0003 → "over -0.1 %": ``percent_words``."""
    words = percent_words(abs(share))
    if words == "0 %":
        return words
    sign = "-" if share < 0 else "+" if signed else ""
    first, _, rest = words.partition(" ")
    if first not in _BELOW_ZERO:
        return f"{sign}{words}"
    return f"{_BELOW_ZERO[first] if share < 0 else first} {sign}{rest}"


def whole_percent(share: float) -> str:
    """0.4129 → "41 %"; "0 %" and "100 %" are none and all: 0.004 → "0.4 %", 0.9996 → "over 99.9 %"."""
    words = f"{share:.0%}".replace("%", " %")
    return percent(share) if words in ("0 %", "-0 %", "100 %", "-100 %") else words


def percent_interval(interval: Interval | tuple[float, float], level: float) -> str:
    """ "95 % interval +31.2 % to +48.9 %"."""
    low, high = (percent(end, signed=True) for end in interval[-2:])
    return f"{percent(level)} interval {low} to {high}" if low != high else NO_SPREAD


def nats_interval(interval: Interval, level: float) -> str:
    """ "95 % interval +0.12 to +0.40"."""
    low, high = nats(interval.low), nats(interval.high)
    return f"{percent(level)} interval {low} to {high}" if low != high else NO_SPREAD


def nats(value: float) -> str:
    """ "+8.88"; never "-0.00"."""
    return f"{round(value, 2) + 0.0:+.2f}"


def count(number: int, noun: str) -> str:
    """ "1 probe", "2 probes"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part) if words else ""
