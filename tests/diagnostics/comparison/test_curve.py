"""What follows from runs on more and more samples, from comparisons whose every number is made."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from diagnostics.comparison.curve import CurvePoint, _neighbours, check_comparison, curve_of, headline
from diagnostics.comparison.group_report import comparison_of
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of

WRONG, RIGHT = -3.0, 6.0


@pytest.fixture(scope="module")
def corrected(tmp_path_factory) -> dict[str, Any]:
    groups = pairs_of(tmp_path_factory.mktemp("curve"), spheres=Made(), neighbour=GUARDS)
    return comparison_of(flat(groups))


def images(comparison: dict[str, Any]) -> dict[str, str]:
    return {probe["id"]: probe["id"] for probe in comparison["probes"]}


def point(
    comparison: dict[str, Any],
    samples: int,
    *,
    verdict: str | None = None,
    right: int = 24,
    attention: float = 1.0,
    cost: float = 1.0,
    seed: int | None = None,
) -> CurvePoint:
    """The run of so many samples: ``right`` of 24 answers are right, attention and cost so many times as much."""
    made = deepcopy(comparison)
    spheres = [probe for probe in made["probes"] if probe["group"] == "spheres"]
    for at, probe in enumerate(spheres):
        probe["correct"]["after"] = at < right
        probe["occlusion_nats"]["after"] *= cost
        for layer in probe["layers"]:
            layer["regions"]["spheres"]["enrichment"]["after"] *= attention
    if verdict is not None:
        made["groups"]["spheres"]["verdict"] = verdict
    return CurvePoint(samples / 400, seed, samples, 400, 50, made, f"fraction-{samples / 400:g}")


def spheres(comparison: dict[str, Any], *points: CurvePoint) -> dict[str, Any]:
    return curve_of(points, images(comparison))["spheres"]


def test_the_smallest_number_whose_verdict_holds_here_and_with_every_larger_one(corrected):
    assert corrected["groups"]["spheres"]["verdict"] == "corrected"
    few = point(corrected, 50, verdict="it did not move")
    found = spheres(corrected, point(corrected, 400), few, point(corrected, 100), point(corrected, 200))
    assert (found["enough_from"], found["conclusion"]) == (100, "enough")
    assert found["words"] == (
        '100 samples are enough: "corrected", and with every larger number tried; with 50: "it did not move".'
    )
    assert [one["samples"] for one in found["points"]] == [50, 100, 200, 400]
    assert spheres(corrected, point(corrected, 50), point(corrected, 100))["words"] == (
        '50 samples are enough: "corrected", the smallest number tried.'
    )


def test_a_verdict_that_comes_and_goes_is_called_so(corrected):
    gone = point(corrected, 200, verdict="answers changed, a guard broke")
    found = spheres(corrected, point(corrected, 100), gone, point(corrected, 400))
    assert found["enough_from"] == 400
    assert found["words"].endswith("Not monotone: it also held with 100, and not with every larger number.")


def test_not_enough_yet_where_the_last_step_still_helped(corrected):
    few = point(corrected, 100, verdict="answers changed, too few right", right=6)
    more = point(corrected, 400, verdict="answers changed, too few right", right=18)
    found = spheres(corrected, few, more)
    assert (found["enough_from"], found["conclusion"]) == (None, "not enough yet")
    assert found["words"] == (
        'Not enough yet: "answers changed, too few right" with 400 samples, the largest number tried.'
    )
    (step,) = found["neighbours"]
    # 12 of 24 pictures gained and none lost: 2 / 2^12, of three tests the smallest
    assert step["answers"]["difference"] == 0.5 and step["answers"]["p_adjusted"] == pytest.approx(
        3 * 2 / 2**12
    )
    assert (step["rose"], step["fell"]) == (["answers"], [])


def test_more_does_not_help_where_nothing_rises_and_the_verdict_stays(corrected):
    claim = "it did not move"
    found = spheres(corrected, point(corrected, 100, verdict=claim), point(corrected, 400, verdict=claim))
    assert found["conclusion"] == "more does not help"
    assert found["words"] == (
        'More does not help: from 100 samples to 400 nothing rises beyond chance, and the verdict stays "it did not '
        'move".'
    )
    # what could have been missed: 0 of 24 changed says no more than 14.2 % either way
    assert found["neighbours"][0]["answers"]["ci95"] == pytest.approx([-0.1425, 0.1425], abs=1e-4)
    other = spheres(
        corrected, point(corrected, 100, verdict="too few probes"), point(corrected, 400, verdict=claim)
    )
    assert other["conclusion"] == "not enough yet"
    worse = spheres(
        corrected, point(corrected, 100, verdict=claim), point(corrected, 400, verdict=claim, cost=0.5)
    )
    assert worse["conclusion"] == "more does not help" and worse["neighbours"][0]["fell"] == ["cause"]


@pytest.mark.parametrize(
    ("claim", "conclusion"),
    [
        ("too few probes", "not known"),
        ("answers not measured", "not known"),
        ("answers changed, attention not measured", "not known"),
        ("not held out", "not known"),
        ("it did not move", "more does not help"),
        ("answers changed, attention did not", "more does not help"),
        ("answers changed, a guard broke", "not enough yet"),  # guards may still rise
        ("it answers from the words", "not enough yet"),
        ("margin and answer disagree", "not enough yet"),
    ],
)
def test_more_does_not_help_only_where_what_decides_was_compared(corrected, claim, conclusion):
    found = spheres(corrected, point(corrected, 100, verdict=claim), point(corrected, 400, verdict=claim))
    assert (found["enough_from"], found["conclusion"]) == (None, conclusion)
    assert found["neighbours"][0]["rose"] == [] and f'"{claim}"' in found["words"]


def test_more_does_not_help_is_not_said_of_what_was_not_measured(corrected):
    claim = "answers and attention changed, cause does not agree"
    runs = [point(corrected, samples, verdict=claim) for samples in (100, 400)]
    assert spheres(corrected, *runs)["conclusion"] == "more does not help"
    for run in runs:
        for probe in run.comparison["probes"]:
            probe["occlusion_nats"] = None
    assert spheres(corrected, *runs)["conclusion"] == "not enough yet"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_mean_that_a_few_probes_carry_has_neither_risen_nor_fallen(sign):
    """What hiding costs falls a little with 80 of 100 probes, and rises much with the others."""
    costs = {100: [0.0] * 100, 400: [sign * (-0.2 if at < 80 else 5.0) for at in range(100)]}
    points = [
        CurvePoint(samples / 400, None, samples, 400, 50, {"probes": [
            {"id": str(at), "group": "a", "region": None, "correct": {"after": None}, "occlusion_nats": {"after": cost}}
            for at, cost in enumerate(of)
        ]}, "f")
        for samples, of in costs.items()
    ]  # fmt: skip
    (step,) = _neighbours("a", points, None, {str(at): str(at) for at in range(100)})
    low, high = step["cause"]["ci95"]
    assert step["cause"]["p_adjusted"] < 0.05 and low * high > 0 and sign * low > 0
    assert (step["rose"], step["fell"]) == ([], [])


def test_each_quantity_is_compared_over_the_same_probes(corrected):
    found = spheres(corrected, point(corrected, 100), point(corrected, 400, attention=2.0, cost=1.5))
    (step,) = found["neighbours"]
    assert step["attention"]["difference"] == pytest.approx(2 / 3)  # 2 (2 − 1) / (2 + 1)
    assert step["cause"]["difference"] == pytest.approx(0.5 * found["points"][0]["cost_nats"], abs=1e-6)
    assert step["rose"] == ["attention", "cause"]


def test_numbers_of_a_point_stand_on_the_base(corrected):
    found = spheres(corrected, point(corrected, 100), point(corrected, 400))
    one, group = found["points"][0], corrected["groups"]["spheres"]
    assert found["layer"] == 3 and found["base"]["enrichment"] == pytest.approx(3.0, abs=0.05)
    assert one["enrichment"] == pytest.approx(9.0, abs=0.1)
    low, high = one["enrichment_ci95"]
    assert low < one["enrichment"] < high
    assert one["cost_nats_ci95"][0] == pytest.approx(
        group["occlusion_nats"]["before"] + group["occlusion_nats"]["ci95"][0]
    )
    assert (one["right"], one["guards"], one["holds"]) == (1.0, 1.0, True)


def test_all_seeds_must_hold(corrected):
    at_100 = [point(corrected, 100, seed=0), point(corrected, 100, seed=1, verdict="it did not move")]
    at_400 = [point(corrected, 400, seed=seed) for seed in (0, 1)]
    found = spheres(corrected, *at_100, *at_400)
    assert found["enough_from"] == 400
    assert found["words"].endswith('with 100: "corrected" or "it did not move".')


def test_the_headline(corrected):
    of_all = curve_of([point(corrected, 100), point(corrected, 400)], images(corrected))
    assert of_all["neighbour"]["enough_from"] == 100
    assert headline(of_all) == "100 samples are enough for every group."
    claim = "it did not move"
    short = [point(corrected, samples, verdict=claim) for samples in (100, 400)]
    of_some = curve_of(short, images(corrected))
    assert headline(of_some) == "Not settled for spheres; 1 of 2 groups have enough samples."


def test_the_share_of_pictures_is_read_where_a_comparison_has_it(tmp_path: Path) -> None:
    """Runs of earlier versions have none, and are not trained again for it."""
    content = json.loads(json.dumps(comparison_of(flat(pairs_of(tmp_path, towers=Made(probes=4))))))
    content["onset"] = None
    check_comparison(content, "run")
    accuracy = content["groups"]["towers"]["accuracy"]
    del accuracy["pictures_right"]
    check_comparison(content, "run")
    run = CurvePoint(0.25, None, 100, 400, 50, content, "run")
    assert curve_of([run], images(content))["towers"]["points"][0]["right_ci95"] == accuracy["after_ci95"]
    accuracy["images"] = 2  # an interval of pictures, whose share is not there
    (shown,) = curve_of([run], images(content))["towers"]["points"]
    assert shown["pictures_right"] is None and shown["right_ci95"] is None
    accuracy["pictures_right"] = {"before": 0.0, "after": "most"}
    with pytest.raises(ValueError, match=r"run: groups\.towers\.accuracy\.pictures_right: found an object"):
        check_comparison(content, "run")
