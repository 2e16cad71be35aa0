"""Drift is of the picture whose maps it compares."""

import json
from dataclasses import replace

import numpy as np
import pytest

from diagnostics.compare import compare
from diagnostics.comparison.group_means import drift_of, mean_by_layer
from diagnostics.comparison.pairs import SIDES, pair_records
from tests.diagnostics.comparison.made_pairs import Made, pairs_of


def test_drift_of_several_pictures_is_that_of_the_first(tmp_path):
    """.1 of the row lies on the first picture and moves from cell 0 to cell 23; .6 stays on the second."""
    pair = pairs_of(tmp_path, tower=Made(probes=1))["tower"][0]

    def looking_at(record, cell: int):
        rows = np.zeros((2, 2, 1, 60), np.float32)
        rows[..., 0], rows[..., 4 + cell], rows[..., 30:54] = 0.3, 0.1, 0.6 / 24
        first = record.image_tokens[0]
        return replace(
            record,
            rows=rows,
            tokens=tuple("x" * 60),
            image_tokens=(first, replace(first, positions=np.arange(30, 54))),
            visual_share=np.full((4, 2), 0.7, np.float32),
        )

    moved = pair_records(pair.probe, looking_at(pair.before, 0), looking_at(pair.after, 23))
    found = drift_of(moved, moved.layers[0])
    assert found["elsewhere_in_image"] == pytest.approx(0.1) and found["more_at_image"] == pytest.approx(0.0)


@pytest.mark.parametrize("sides", [("after",), ("before",), ("before", "after")])
@pytest.mark.parametrize("every", [False, True])
def test_a_key_layer_that_does_not_look_at_the_picture_costs_its_drift_alone(tmp_path, sides, every):
    """As fp16 may leave a row whose attention lies on a sink; the comparison has all else."""
    pairs = pairs_of(tmp_path, tower=Made())["tower"]

    def away(record):
        rows = record.rows.copy()
        looked = rows[1][..., record.image_tokens[0].positions].sum(-1)
        rows[1][..., record.image_tokens[0].positions] = 0
        rows[1][..., 0] += looked
        return replace(record, rows=rows)

    changed = [
        pair_records(pair.probe, *(away(one) if side in sides else one for side, one in both))
        if every or number == 0
        else pair
        for number, pair in enumerate(pairs)
        for both in [(("before", pair.before), ("after", pair.after))]
    ]
    found, all_look = (mean_by_layer(some, drift_of) for some in (changed, pairs[1:]))
    assert found["1"] == pytest.approx(mean_by_layer(pairs, drift_of)["1"])
    places = {name: value for name, value in found["3"].items() if name != "more_at_image"}
    assert found["3"]["more_at_image"] is not None and len(places) == 4
    if every:
        assert set(places.values()) == {None}
    else:
        assert places == pytest.approx({name: all_look["3"][name] for name in places})
    compare(
        *({pair.probe.id: getattr(pair, side) for pair in changed} for side in SIDES),
        tmp_path / "out",
        probes=[pair.probe for pair in changed],
    )
    written = json.loads((tmp_path / "out" / "comparison" / "comparison.json").read_text())
    assert written["groups"]["tower"]["drift"]["3"] == found["3"]
