"""Drift is of the picture whose maps it compares."""

from dataclasses import replace

import numpy as np
import pytest

from diagnostics.comparison.group_means import drift_of
from diagnostics.comparison.pairs import pair_records
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
