"""What bertviz is handed. Its own head view took this dictionary (bertviz 1.4.1, tried by hand)."""

import numpy as np

from diagnostics.records.bertviz import to_bertviz
from tests.diagnostics.records.test_record import a_record, with_overview


def test_rows_tokens_and_layers_go_where_bertviz_looks_for_them():
    record = a_record()
    handed = to_bertviz(record)
    assert handed["include_layers"] == list(record.layers)
    for at, layer in enumerate(record.layers):
        rows = handed["cross_attention"][layer]
        assert rows.shape == (1, *record.rows[at].shape)
        assert rows.shape[2:] == (len(handed["decoder_tokens"]), len(handed["encoder_tokens"]))
        assert np.array_equal(rows[0].numpy(), record.rows[at])
    assert len(handed["cross_attention"]) == max(record.layers) + 1
    first = int(record.image_tokens[0].positions[0])
    assert handed["encoder_tokens"][first] == "<image 0>"
    others = set(range(len(record.tokens))) - {int(p) for p in record.image_tokens[0].positions}
    assert all(handed["encoder_tokens"][i] == record.tokens[i] for i in others)


def test_an_overview_s_tokens_are_numbered_beside_the_cells():
    assert to_bertviz(with_overview())["encoder_tokens"][:3] == ["<overview 0>", "<overview 1>", "<image 0>"]
