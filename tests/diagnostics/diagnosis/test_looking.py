"""Where a wrong answer looks is read from the map, in which a head counts by how much it sees of the picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.pairs import pair_records
from diagnostics.diagnosis.cases import Case
from diagnostics.diagnosis.looking import attention_test, unsupervised
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.report.languages import translated
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


def told(
    cases: list[Case], layers: tuple[int, ...], *, connector: bool = False, pictures: int = 0
) -> list[Case]:
    """Cases of a model whose attention was trained on, on the first ``pictures`` of theirs."""
    return [
        case._replace(
            record=replace(
                case.record,
                supervised_layers=layers,
                supervised_connector=connector,
                supervised_picture=at < pictures,
            )
        )
        for at, case in enumerate(cases)
    ]


def looking_in_layer_1_alone(folder: Path) -> list[Case]:
    looks, away = (wrong_cases(folder, region, (1.0, 1.0)) for region in ((1.6, 0.1), (0.2, 0.1)))
    return [
        one._replace(record=replace(one.record, rows=np.stack([one.record.rows[0], other.record.rows[1]])))
        for one, other in zip(looks, away, strict=True)
    ]


def test_a_layer_that_a_loss_told_where_to_look_does_not_say_that_the_model_looks(tmp_path: Path):
    cases = looking_in_layer_1_alone(tmp_path)
    assert attention_test(cases, Thresholds())[0].holds
    leg, layer = attention_test(told(cases, (0, 1)), Thresholds())
    assert (leg.holds, layer) == (False, 3) and "in layer 3, chosen" in leg.reason
    assert leg.reason.endswith(
        " of the pictures. Attention was trained on in layers 0 and 1; it is judged only where it was not."
    )
    assert translated(leg.reason)


def test_pictures_of_streamed_data_are_said_not_to_be_known(tmp_path: Path):
    cases = [
        one._replace(record=replace(one.record, supervised_unknown=True))
        for one in told(looking_in_layer_1_alone(tmp_path), (0, 1))
    ]
    leg, _ = attention_test(cases, Thresholds())
    assert leg.reason.endswith("as far as that is known: not for the supervised pictures of streamed data.")
    assert translated(leg.reason)


def test_pictures_that_a_loss_saw_are_left_out(tmp_path: Path):
    cases = looking_in_layer_1_alone(tmp_path)
    leg, _ = attention_test(told(cases, (0,), pictures=5), Thresholds())
    assert leg.probes == 7 and "in layer 0 and on 5 of these probes' pictures; it is judged" in leg.reason
    leg, _ = attention_test(told(cases, (0,), pictures=9), Thresholds())
    assert leg.holds is None and "and there are 3. Attention was trained on" in leg.reason
    assert translated(leg.reason)


@pytest.mark.parametrize(
    ("layers", "connector", "pictures", "words"),
    [
        ((1, 3), False, 0, "in layers 1 and 3, every layer that could be judged"),
        (
            (0,),
            False,
            12,
            "in layer 0 and on 12 of these probes' pictures, every picture that could be judged",
        ),
        ((0,), True, 0, "in layer 0 and in the resampler, through which every layer looks at the picture"),
    ],
)
def test_where_nothing_is_left_attention_is_not_measured(tmp_path: Path, layers, connector, pictures, words):
    cases = told(looking_in_layer_1_alone(tmp_path), layers, connector=connector, pictures=pictures)
    leg, layer = attention_test(cases, Thresholds())
    assert (leg.holds, leg.value, layer) == (None, None, None) and words in leg.reason
    assert unsupervised([case.record for case in cases]) == ((), (), leg.reason) and translated(leg.reason)
