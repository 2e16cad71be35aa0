"""What stands beside a group's attention is of the same probes and layers, and heads are named with what they lead."""

from dataclasses import replace

import numpy as np
import pytest

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.legs.attention import _second_half
from diagnostics.comparison.pairs import ProbePair, images_of, pair_records
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of


def in_two_layers(folder) -> list[ProbePair]:
    """In one half of the pictures attention rises in layer 1, in the other in layer 3: each half is read in the layer
    in which it does not rise. Random places get 2 times their area in layer 1, and 4 times in layer 3."""
    first, second = (
        flat(pairs_of(folder, tower=Made(probes=48, patches={}, region=((2.0, 8.0), after))))
        for after in ((8.0, 8.5), (2.0, 15.0))
    )
    chosen = [(second if late else first)[at] for at, late in enumerate(_second_half(images_of(first)))]
    layers = np.array([1.0, 2.0, 3.0, 4.0])[:, None] / 24
    random = {"spheres": np.tile(layers, (1, 2)).astype(np.float32)}
    return [
        pair_records(pair.probe, *(replace(one, random_mass=random) for one in (pair.before, pair.after)))
        for pair in chosen
    ]


def test_random_places_are_of_each_probes_own_layer(tmp_path):
    group = comparison_of(in_two_layers(tmp_path))["groups"]["tower"]
    assert group["enrichment"]["layers"] == [1, 3]
    in_each = {one["layer"]: one["random"]["after"] for one in group["enrichment_by_layer"]}
    assert in_each == pytest.approx({1: 2.0, 3: 4.0}, rel=1e-4)
    assert group["enrichment"]["random"]["after"] == pytest.approx(3.0, rel=1e-4)


def test_random_places_are_of_the_judged_probes(tmp_path):
    """Random places of pictures that a loss on attention saw are not those of the pictures that are judged."""
    pairs = []
    for at, pair in enumerate(flat(pairs_of(tmp_path, tower=Made(probes=72)))):
        told = replace(pair.after, supervised_layers=(0,), supervised_picture=at < 48)
        if at < 48:
            told = replace(told, random_mass={name: 4 * one for name, one in told.random_mass.items()})
        pairs.append(pair_records(pair.probe, pair.before, told))
    group = comparison_of(pairs)["groups"]["tower"]
    assert group["legs"]["attention"]["probes"] == 24
    assert group["enrichment"]["random"] == pytest.approx({"before": 1.0, "after": 1.0}, rel=1e-4)
    assert group["enrichment_by_layer"][0]["random"]["after"] == pytest.approx(3.0, rel=1e-4)


def test_a_head_is_named_with_its_lead_and_what_random_places_got(tmp_path):
    """The region gets more, 10 to 12 %, and random places four times as much: a lead below 0."""
    pairs = []
    for at, pair in enumerate(flat(pairs_of(tmp_path, tower=Made()))):
        wobble = 1 + 0.02 * np.sin(5 * at)
        sides = (
            replace(
                record,
                region_mass={**record.region_mass, "spheres": np.full((4, 2), region * wobble, np.float32)},
                random_mass={"spheres": np.full((4, 2), random * wobble, np.float32)},
            )
            for record, region, random in ((pair.before, 0.10, 0.02), (pair.after, 0.12, 0.08))
        )
        pairs.append(pair_records(pair.probe, *sides))
    found = comparison_of(pairs)["groups"]["tower"]["heads"]
    assert found["over_random_places"] is True
    head = found["significant"][0]
    assert head["before"] < head["after"] and head["lead"] == head["relative_change"] == pytest.approx(-0.25)
    assert head["random"] == pytest.approx({"before": 0.02, "after": 0.08}, rel=0.01)
    bare = [
        pair_records(pair.probe, *(replace(one, random_mass={}) for one in (pair.before, pair.after)))
        for pair in pairs
    ]
    found = comparison_of(bare)["groups"]["tower"]["heads"]
    assert found["over_random_places"] is False
    assert (found["significant"][0]["lead"], found["significant"][0]["random"]) == (None, None)
