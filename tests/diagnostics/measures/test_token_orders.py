"""Orders of image tokens, by hand."""

import numpy as np
import pytest

from diagnostics.measures.token_orders import best_first, count_kept, divprune_order, random_order


def directions(*degrees, lengths=None):
    angles = np.deg2rad(degrees)
    lengths = np.ones(len(angles)) if lengths is None else np.array(lengths, float)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]


def test_divprune_begins_with_the_loneliest_and_goes_on_with_the_farthest_from_those_chosen():
    # nearest neighbours are 12, 12, 10, 10 and 80 degrees away; from 180 the farthest is 0; then 90 has 90 to both
    assert divprune_order(directions(0, 12, 90, 100, 180)).tolist() == [4, 0, 2, 1, 3]


def test_divprune_looks_at_directions_alone_and_breaks_ties_by_place():
    assert divprune_order(directions(0, 12, 90, 100, 180, lengths=[9, 0.1, 2, 5, 1])).tolist() == [
        4,
        0,
        2,
        1,
        3,
    ]
    assert divprune_order(np.ones((3, 2))).tolist() == [0, 1, 2]
    assert divprune_order(np.ones((1, 4))).tolist() == [0]


def test_divprune_by_brute_force_in_stretches(monkeypatch):
    monkeypatch.setattr("diagnostics.measures.token_orders.CHUNK_ROWS", 3)
    features = np.random.default_rng(0).normal(size=(11, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    chosen = [int(distance.min(1).argmax())]
    while len(chosen) < 11:
        left = [at for at in range(11) if at not in chosen]
        chosen.append(max(left, key=lambda at: distance[at, chosen].min()))
    assert divprune_order(features).tolist() == chosen


@pytest.mark.parametrize("features", [np.zeros((0, 3)), np.array([[1.0, np.nan]])])
def test_divprune_refuses_what_has_no_distance(features):
    with pytest.raises(ValueError, match="expected at least one, all finite"):
        divprune_order(features)


@pytest.mark.parametrize(
    ("tokens", "share", "count"),
    [(49, 0.11, 5), (5, 0.5, 3), (3, 0.1, 1), (7, 1, 7), (256, 0.33, 84), (6, 0.25, 2)],
)
def test_a_share_is_rounded_half_up_and_never_nothing(tokens, share, count):
    assert count_kept(tokens, share) == count


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_shares_outside_are_refused(share):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        count_kept(7, share)


def test_best_first_keeps_the_order_of_equals_and_random_orders_are_the_same_everywhere():
    assert best_first(np.array([0.1, 0.4, 0.1, 0.4])).tolist() == [1, 3, 0, 2]
    first, again, other = (random_order(9, name="p/0", draw=draw) for draw in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert sorted(first) == list(range(9))
