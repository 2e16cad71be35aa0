"""Where a wrong answer looks is read from the map, in which a head counts by how much it sees of the picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.pairs import pair_records
from diagnostics.diagnosis.cases import Case
from diagnostics.diagnosis.looking import attention_test
from diagnostics.diagnosis.thresholds import Thresholds
from tests.diagnostics.comparison.made_pairs import Made, pairs_of
from tests.diagnostics.comparison.test_mass_on_map import PICTURE, looked

SEES, IDLE = 0.6, 0.005  # of a head's row on the picture
EVEN = 1 / 24


def wrong_cases(folder: Path, region: tuple[float, float], place: tuple[float, float]) -> list[Case]:
    """12 wrong answers; ``region`` and ``place``: times their area's share of the head that sees and the idle one."""
    cases = []
    for pair in pairs_of(folder, tower=Made(probes=12, margins=(-3.0, -3.0)))["tower"]:
        record = looked(pair.before, [(times * EVEN, EVEN) for times in region], (SEES, IDLE))
        masses = np.tile(np.float32(place) * np.float32(EVEN), (4, 1))
        cases.append(Case(pair.probe, replace(record, random_mass={"spheres": masses}), None))
    return cases


def on_map(region: tuple[float, float]) -> float:
    return (SEES * region[0] + IDLE * region[1]) / (SEES + IDLE)


@pytest.mark.parametrize(("region", "looks"), [((0.2, 8.0), False), ((1.6, 0.1), True)])
def test_a_head_that_hardly_sees_the_picture_hardly_counts(tmp_path: Path, region, looks):
    cases = wrong_cases(tmp_path, region, (1.0, 1.0))
    leg, layer = attention_test(cases, Thresholds())
    assert (leg.holds, layer) == (looks, 1)
    assert leg.value == pytest.approx(on_map(region), rel=1e-3)
    case = cases[0]
    reading = pair_records(case.probe, case.record, case.record).layers[0].readings["spheres"]
    assert leg.value == pytest.approx(reading.enrichment_before, rel=1e-3)


def test_random_places_are_read_from_the_same_map(tmp_path: Path):
    leg, _ = attention_test(wrong_cases(tmp_path, (1.6, 0.1), (2.0, 0.0)), Thresholds())
    assert not leg.holds and f"random places {on_map((2.0, 0.0)):.2f})" in leg.reason
    assert attention_test(wrong_cases(tmp_path, (1.6, 0.1), (0.5, 9.0)), Thresholds())[0].holds


def test_a_layer_that_sees_nothing_of_the_picture_does_not_look(tmp_path: Path):
    half, none = [], []
    for case in wrong_cases(tmp_path, (1.6, 0.1), (1.0, 1.0)):
        rows = case.record.rows.copy()
        rows[0, :, 0, PICTURE] = 0
        half.append(case._replace(record=replace(case.record, rows=rows)))
        none.append(case._replace(record=replace(case.record, rows=np.zeros_like(rows))))
    leg, layer = attention_test(half, Thresholds())
    assert leg.holds and layer == 3 and "in layer 3, chosen" in leg.reason
    leg, _ = attention_test(none, Thresholds())
    assert leg.holds is False and leg.value == 0 and "random places 0.00)" in leg.reason
