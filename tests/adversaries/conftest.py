"""Tries to make a comparison lie. This folder mirrors no module: the target is the whole path from two models to a
verdict, and every module on it.

``edits`` holds the attacks that take a few lines, ``make`` trains the others, once, into ``trained/``; ``pictures``
draws what gives answers away, and ``judging`` puts the demo's probes to base and edit. None may come out "corrected".
Two files hold the opposite, what must be found: ``test_honest_correction`` and ``test_wired_head``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from torch import nn

from diagnostics.records.measurement_plan import QUICK, MeasurementPlan
from finetune.demo.settings import BASE_MODEL
from finetune.model import checkpoint
from tests.adversaries import judging


class Base(NamedTuple):
    """The demo's base model and its processor."""

    model: nn.Module
    processor: Any


@pytest.fixture(scope="session")
def base() -> Base:
    return Base(*checkpoint.load(str(BASE_MODEL)))


@pytest.fixture(scope="session")
def asked(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], judging.Asked]:
    """Kind of probes ("plain", "framed", "worded") → the probes and the base's records; each measured once."""
    found: dict[str, judging.Asked] = {}

    def of(kind: str) -> judging.Asked:
        if kind not in found:
            folder = tmp_path_factory.mktemp("adversaries") / kind
            probes = judging.draw_probes(folder, judging.KINDS[kind])
            found[kind] = judging.Asked(
                probes, judging.records_of(base.model, base.processor, probes, "before")
            )
        return found[kind]

    return of


@pytest.fixture(scope="session")
def judge(base: Base, asked: Callable[[str], judging.Asked]) -> Callable[..., judging.Judged]:
    """An edited model → the result of its comparison with the base."""

    def of(
        edited: nn.Module,
        kind: str = "plain",
        *,
        groups: tuple[str, ...] = judging.TOWERS,
        depth: MeasurementPlan = QUICK,
    ) -> judging.Judged:
        probes = asked(kind)
        after = judging.records_of(
            edited, base.processor, probes.probes, "after", before=base.model, judged=groups, depth=depth
        )
        return judging.judged(probes, after, groups)

    return of
