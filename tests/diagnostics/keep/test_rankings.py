"""Which tokens each order keeps, on a picture of two rows and three columns, by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.keep.rankings import Seen, rankings, region_weights, with_first_token
from diagnostics.measures.token_orders import kept, parts_of
from diagnostics.records.probes import Probe
from finetune.families import ImageTokens

BOXES = np.array([(x, y, x + 10, y + 10) for y in (0, 10) for x in (0, 10, 20)], float)
IMAGE = ImageTokens(np.arange(3, 9), (2, 3), BOXES, (30, 20), through_connector=False)
# tokens 3 to 8 are the cells; the text around them gets attention that ranks nothing
ANSWER_ROW = np.array([0.9, 0, 0, 0.01, 0.2, 0.05, 0.3, 0.02, 0.1, 0.5, 0])
PROMPT_ROW = np.array([0, 0, 0.9, 0.3, 0.01, 0.2, 0.02, 0.05, 0.1, 0, 0])
DEGREES = (0, 12, 90, 100, 180, 5)


def seen(**other):
    angles = np.deg2rad(DEGREES)
    features = np.zeros((11, 2))
    features[3:9] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    tower = (np.array([0.1, 0.1, 0.4, 0.2, 0.1, 0.3]),)
    return Seen(**{
        "answer_row": ANSWER_ROW, "prompt_row": PROMPT_ROW, "features": features, "connector": (), "tower": tower,
        **other,
    })  # fmt: skip


def probe(regions=True):
    boxes = {"spot": ((15.0, 0.0, 30.0, 10.0),)} if regions else {}  # half of cell 1, all of cell 2
    return Probe("p", "g", (Path("p.png"),), "what?", "red", "blue", boxes)


def order(name, *, of=None, **other):
    [[ranked]] = rankings(of or probe(), [IMAGE], seen(**other), draws=2)[name]
    return ranked.tolist()


def test_each_order_by_hand():
    assert order("map") == [6, 4, 8, 5, 7, 3]
    assert order("least") == [3, 7, 5, 8, 4, 6]
    assert order("fastv") == [3, 5, 8, 7, 6, 4]
    assert order("tower") == [5, 8, 6, 3, 4, 7]
    # 180° is loneliest, 0° farthest from it, 90° between; then 12° (12 from 0), 100° (10 from 90), 5°
    assert order("divprune") == [7, 3, 5, 4, 6, 8]
    # the region's cells 2 and 1, then as the map has the rest
    assert order("region") == [5, 4, 6, 8, 7, 3]


def test_kept_tokens_stand_in_the_order_of_the_sequence():
    [ranking] = rankings(probe(), [IMAGE], seen(), draws=1)["map"]
    assert kept(ranking, 0.5).tolist() == [4, 6, 8]
    assert kept(ranking, 0.11).tolist() == [6]
    assert kept(ranking, 1).tolist() == [3, 4, 5, 6, 7, 8]


def test_random_draws_differ_and_what_is_not_measured_is_left_out():
    found = rankings(probe(regions=False), [IMAGE], seen(tower=None), draws=3)
    assert "region" not in found and "tower" not in found
    assert len({tuple(ranking[0]) for ranking in found["random"]}) == 3
    assert region_weights(probe(regions=False), [IMAGE], ()) is None


def test_the_first_token_is_kept_or_dropped_whatever_its_rank():
    [ranking] = rankings(probe(), [IMAGE], seen(), draws=1)["map"]  # token 3 is last
    assert with_first_token(ranking, 0.5, 3, keep=True).tolist() == [3, 4, 6]
    assert with_first_token(ranking, 0.5, 3, keep=False).tolist() == [4, 6, 8]
    [ranking] = rankings(probe(), [IMAGE], seen(), draws=1)["fastv"]  # token 3 is first
    assert with_first_token(ranking, 0.33, 3, keep=False).tolist() == [5, 8]
    assert with_first_token(ranking, 1, 3, keep=False).tolist() == [3, 4, 5, 6, 7, 8]


def test_an_overview_keeps_a_share_of_its_own():
    coarse = ImageTokens(
        np.array([9, 10]), (1, 2), np.array([[0, 0, 15, 20], [15, 0, 30, 20]], float), (30, 20), False
    )
    both = replace(IMAGE, overview=coarse)
    assert [part.start for part in parts_of([both])] == [0, 6]
    features = np.random.default_rng(0).normal(size=(11, 2))
    found = rankings(probe(), [both], seen(features=features, tower=None), draws=1)
    assert kept(found["map"][0], 0.5).tolist() == [4, 6, 8, 9]
    assert kept(found["region"][0], 0.5).tolist() == [4, 5, 6, 10]
    for [ranking] in found.values():
        assert [len(part) for part in ranking] == [6, 2]


def test_a_resamplers_queries_stand_for_what_they_read():
    reads = np.array(
        [[0, 0.5, 0.5, 0, 0, 0], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    )
    image = replace(IMAGE, positions=np.arange(4, 8), through_connector=True)
    weights = region_weights(probe(), [image], (reads,))
    np.testing.assert_allclose(weights, [0.75, 0.25, 0.5, 0])
    found = rankings(probe(), [image], seen(connector=(reads,), tower=None), draws=1)
    assert found["region"][0][0].tolist() == [4, 6, 5, 7]
    assert found["map"][0][0].tolist() == [6, 4, 5, 7]  # by the row over queries itself


@pytest.mark.parametrize("share", [0, 1.5])
def test_shares_outside_are_refused(share):
    [ranking] = rankings(probe(), [IMAGE], seen(), draws=1)["map"]
    with pytest.raises(ValueError, match="at most 1"):
        kept(ranking, share)
