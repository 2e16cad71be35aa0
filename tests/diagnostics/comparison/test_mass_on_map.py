"""Regions and places beside them are read from one map, in which a head counts by how much it sees of the picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.enrichment import localisation
from diagnostics.comparison.legs.attention import SALIENT, other_levels
from diagnostics.comparison.pairs import mass_on_map, pair_records
from tests.diagnostics.comparison.made_pairs import Made, pairs_of

PICTURE = slice(4, 28)  # the image tokens of a made record, one for each of its 24 cells
REGION, PLACE = 1, 10


def looked(record, shares, weights):
    """A record with the rows and masses of heads with ``shares`` on region and place, ``weights`` on the picture."""
    rows = np.zeros_like(record.rows)
    for head, ((region, place), weight) in enumerate(zip(shares, weights, strict=True)):
        cells = np.full(24, (1 - region - place) / 22)
        cells[[REGION, PLACE]] = region, place
        rows[:, head, 0, PICTURE], rows[:, head, 0, 0] = weight * cells, 1 - weight
    every = np.asarray(shares, np.float32).T[:, None].repeat(4, 1)  # region and place, layers, heads
    masses = {**record.region_mass, "spheres": every[0]}
    return replace(record, rows=rows, region_mass=masses, salient_mass={"spheres": every[1]})


def test_a_place_that_every_head_looks_at_as_at_the_region_has_its_enrichment(tmp_path: Path):
    pair = pairs_of(tmp_path, tower=Made(probes=4))["tower"][0]
    weights = (0.6, 0.01)
    before = looked(pair.before, [(1 / 24, 1 / 24)] * 2, weights)
    after = looked(pair.after, [(4 / 24, 4 / 24), (1 / 24, 1 / 24)], weights)
    pair = pair_records(pair.probe, before, after)
    reading = pair.reading(pair.layers[0])
    assert reading is not None and reading.enrichment_after == pytest.approx(
        (0.6 * 4 + 0.01) / 0.61, rel=1e-5
    )
    found = other_levels(pair, 0)[SALIENT]
    assert found == pytest.approx((reading.enrichment_before, reading.enrichment_after), rel=1e-5)


def test_without_sinks_weighs_heads_by_what_is_left(tmp_path: Path):
    record = pairs_of(tmp_path, tower=Made(probes=4))["tower"][0].after
    record = looked(record, [(0.5, 0.1), (0.2, 0.1)], (0.6, 0.3))
    sinks = np.zeros((len(record.layers), record.rows.shape[-1]), bool)
    sinks[:, 4 + REGION] = True
    masses = {"spheres": np.tile(np.float32([0.4, 0.8]), (4, 1))}
    record = replace(record, sinks=sinks, region_mass_without_sinks=masses)
    left = np.array([0.6 * 0.5, 0.3 * 0.8])
    expected = float(left @ [0.4, 0.8] / left.sum())
    assert mass_on_map(record, "region_mass_without_sinks", "spheres", 0) == pytest.approx(expected, rel=1e-5)
    assert mass_on_map(record, "salient_mass", "sky", 0) is None


def test_a_layer_that_does_not_see_the_picture_points_nowhere(tmp_path: Path):
    pairs = pairs_of(tmp_path, tower=Made(probes=4))["tower"]
    every, seen = localisation(pairs), pairs[1:]
    sides = []
    for record in (pairs[0].before, pairs[0].after):
        rows = record.rows.copy()
        rows[0, :, 0, PICTURE] = 0
        sides.append(replace(record, rows=rows))
    assert mass_on_map(sides[1], "salient_mass", "spheres", 0) is None
    pair = pair_records(pairs[0].probe, *sides)
    found, others = localisation([pair, *seen]), localisation(seen)
    assert found is not None and every is not None and others is not None
    assert found["1"] == others["1"] and found["3"] == every["3"]
    alone = localisation([pair])
    assert alone is not None and list(alone) == ["3"]
