"""Typical probes: nearest to the medians, and never against the direction in which their group went."""

from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.pairs import ProbePair
from diagnostics.comparison.typical import story, typical_before, typical_change
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of

LAYER = 3


def one(
    folder: Path,
    name: str,
    margins: tuple[float, float],
    times: tuple[float, float] = (3.0, 9.0),
    cost: tuple[float, float] = (0.5, 5.0),
) -> ProbePair:
    """A probe of its own group, with its enrichment in layer 3."""
    region = ((3.0, times[0]), (3.0, times[1]))
    made = Made(probes=1, margins=margins, region=region, cost=cost, noise=0.0)
    return flat(pairs_of(folder, **{name: made}))[0]


def test_a_story_is_margin_attention_and_cost(tmp_path: Path):
    pair = one(tmp_path, "a", (-2.0, 4.0), (2.0, 8.0), (0.5, 5.0))
    assert story(pair, "before", LAYER) == pytest.approx((-2.0, np.log(2), 0.5), abs=1e-5)
    assert story(pair, "after", LAYER) == pytest.approx((4.0, np.log(8), 5.0), abs=1e-5)


def test_the_probe_nearest_in_all_three_is_chosen_and_not_the_median_of_margins(tmp_path: Path):
    """Medians after: margin 4, 8 times, cost 5. "b" has the median margin, and looks away."""
    pairs = [
        one(tmp_path, "a", (-2.0, 3.0), (2.0, 8.0), (0.5, 5.0)),
        one(tmp_path, "b", (-2.0, 4.0), (2.0, 1.0), (0.5, 0.1)),
        one(tmp_path, "c", (-2.0, 4.2), (2.0, 8.5), (0.5, 5.2)),
        one(tmp_path, "d", (-2.0, 9.0), (2.0, 16.0), (0.5, 9.0)),
        one(tmp_path, "e", (-2.0, 3.5), (2.0, 7.0), (0.5, 4.0)),
    ]
    assert typical_change(pairs, LAYER, pairs) is pairs[2]
    assert typical_change(pairs, LAYER, pairs[:2]) is pairs[0]  # "b" goes the other way than its group
    assert typical_change(pairs, LAYER, [pairs[1]]) is pairs[1]  # there is no other
    assert typical_change(pairs, LAYER, []) is None


def test_a_preferred_one_is_taken_among_the_three_nearest_only(tmp_path: Path):
    pairs = [one(tmp_path, f"p{n}", (-2.0, 4.0 + n)) for n in range(6)]  # median 6.5: p2, p3, then p1, p4
    nearest = typical_change(pairs, LAYER, pairs)
    assert nearest is pairs[2]
    assert typical_change(pairs, LAYER, pairs, prefer=lambda pair: pair is pairs[1]) is pairs[1]
    assert typical_change(pairs, LAYER, pairs, prefer=lambda pair: pair is pairs[5]) is pairs[2]


def test_the_example_beside_it_is_typical_of_before(tmp_path: Path):
    pairs = [one(tmp_path, f"p{n}", (margin, 0.0)) for n, margin in enumerate((1.0, 9.0, 2.0))]
    assert typical_before(pairs, LAYER) is pairs[2]
    assert typical_before([], LAYER) is None


@pytest.mark.parametrize("seed", range(12))
def test_the_story_goes_the_way_of_its_group(tmp_path: Path, seed: int):
    """Noisy groups that went any way: wherever some probe went as the medians did in all three, the story does."""
    rng = np.random.default_rng(seed)
    way = rng.choice([-1.0, 1.0], size=2)
    pairs = []
    for n in range(15):
        gain, cost = np.exp(way[0] * 0.5 + rng.normal(0, 0.7)), way[1] * 2 + rng.normal(0, 3.0)
        after = float(rng.normal(3.0, 2.0))
        pairs.append(one(tmp_path, f"p{n}", (-3.0, after), (2.0, float(2 * gain)), (3.0, float(3 + cost))))
    changes = np.array([np.subtract(story(p, "after", LAYER), story(p, "before", LAYER)) for p in pairs])
    wrong_to_right = [pair for pair in pairs if (pair.after.scores.margin_nats or 0) > 0]
    chosen = typical_change(pairs, LAYER, wrong_to_right)
    assert chosen in wrong_to_right
    at = next(index for index, pair in enumerate(pairs) if pair is chosen)
    assert (np.sign(changes[at]) == np.sign(np.median(changes, axis=0))).all()
