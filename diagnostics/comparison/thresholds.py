"""Thresholds of the evidence for a verdict; each can be changed by a flag of ``diagnostics.compare``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from diagnostics.records.probes import ENOUGH_PROBES


def check_count(flag: str, value: Any) -> None:
    """Raises ValueError unless it is a number of probes that a claim may rest on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise ValueError(f"{flag}: found {value}; expected a whole number from 2")


def check_share(flag: str, value: Any) -> None:
    """Raises ValueError unless it lies from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{flag}: found {value}; expected a share from 0 to 1")


@dataclass(frozen=True)
class Thresholds:
    """The thresholds. Shares are from 0 to 1.

    probes        probes on as many different pictures, for each leg
    right         share of right answers after
    disagreement  largest difference between the shares that are right by margin and by generated answer
    picture       share of the margin after that is lost without the true picture
    move          relative change of attention on the region, and lead over each other place
    cause         rise of the cost of hiding the region, as a share of the rise of the margin
    cost          the cost of hiding the region after, as a share of the margin after; another region that shifts the
                  margin by as much counts as decisive too
    mediated      share of the margin's change that goes when attention is put back as it was before
    """

    probes: int = ENOUGH_PROBES
    right: float = 0.8
    disagreement: float = 0.1
    picture: float = 0.5
    move: float = 0.05
    cause: float = 0.2
    cost: float = 0.5
    mediated: float = 0.1

    def __post_init__(self) -> None:
        for one in fields(self):
            value: Any = getattr(self, one.name)
            flag = f"--{'most' if one.name == 'disagreement' else 'least'}_{one.name}"
            if one.name == "probes":
                check_count(flag, value)
            else:
                check_share(flag, value)
