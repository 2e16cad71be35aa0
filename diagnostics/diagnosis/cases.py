"""A probe of a diagnosis, what the model did on it, and what tests of several have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diagnostics.comparison.legs.leg import percent_interval
from diagnostics.diagnosis.contrasts import Side
from diagnostics.diagnosis.features import Features
from diagnostics.records.pictures import picture_mark
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord

LEVEL = 0.95


class Case(NamedTuple):
    """A probe, what the model did on it, and its hidden states where they were asked for."""

    probe: Probe
    record: AttentionRecord
    features: Features | None


class SideCase(NamedTuple):
    """A side of a contrast with its case, and its states at the contrast's place."""

    side: Side
    case: Case
    features: Features


def pictures_of(cases: Sequence[Case]) -> list[str]:
    """The picture of each case, by what it shows."""
    return [picture_mark(case.probe.images[0]) for case in cases]


def margins_of(cases: Sequence[Case]) -> np.ndarray:
    """Float[cases]: log p(answer) − log p(foil), nats."""
    return np.array([case.record.scores.margin_nats for case in cases], float)


def share_interval(low: float, high: float) -> str:
    """ "95 % interval 31.2 % to 48.9 %"."""
    return percent_interval((low, high), LEVEL).replace("+", "")
