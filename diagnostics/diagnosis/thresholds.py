"""What each test of a diagnosis asks for; every number can be changed by a flag of ``diagnostics.diagnose``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from diagnostics.comparison.thresholds import check_count, check_share
from diagnostics.records.probes import ENOUGH_PROBES


@dataclass(frozen=True)
class Thresholds:
    """Shares are from 0 to 1.

    probes       pictures of a group, below which nothing is said of it
    each_answer  pictures of each of two answers, below which nothing is told apart
    right        share of right answers: as many, and the group is right; as many after one shift of the margin, and the
                 model knows but says otherwise
    moved        part of the margin that must move with the picture; below it the answer is not asked of the picture
    told         share that a linear probe must get right on other pictures (mean of both answers; chance is .5)
    looked       times its area's share that a region must be looked at
    cost         part of the margin that hiding a region must move, to decide or to be used
    """

    probes: int = ENOUGH_PROBES
    each_answer: int = 10
    right: float = 0.8
    moved: float = 0.2
    told: float = 0.75
    looked: float = 1.0
    cost: float = 0.25

    def __post_init__(self) -> None:
        for one in fields(self):
            value: Any = getattr(self, one.name)
            flag = f"--least_{one.name}"
            if one.name in ("probes", "each_answer"):
                check_count(flag, value)
            elif one.name == "looked":
                if not 0 < value < float("inf"):
                    raise ValueError(f"{flag}: found {value}; expected a number of times above 0")
            else:
                check_share(flag, value)
