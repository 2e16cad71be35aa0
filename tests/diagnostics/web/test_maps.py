"""Maps from a trace made by hand: every number here can be worked out on paper."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diagnostics.measures.attention import enrichment, region_mass
from diagnostics.measures.geometry import cells_from_row
from diagnostics.web import maps
from diagnostics.web.trace import SeenImage, Trace, TraceCache
from diagnostics.web.views import _numbers
from finetune.families.base import ImageTokens
from finetune.families.parts.coverage import region_coverage

GRID = (2, 3)
SIZE = (60, 40)  # cells of 20 × 20 pixels


def image_tokens(positions, *, through_connector: bool) -> ImageTokens:
    row, column = np.divmod(np.arange(6), 3)
    boxes = 20.0 * np.stack([column, row, column + 1, row + 1], axis=1)
    return ImageTokens(np.array(positions), GRID, boxes, SIZE, through_connector)


# Tokens: start, two of the picture, "what", "?", then the answer "a" "b".
TOKENS = ("<s>", "<image>", "<image>", "what", "?", "a", "b")
KINDS = ("other", "image 0", "image 0", "question", "question", "answer", "answer")
READ = np.array([[1, 0, 0, 0, 0, 0], [0.5, 0, 0.5, 0, 0, 0]])  # what the two queries of the resampler read


def look_by_hand(*, sinks=()) -> Trace:
    """Rows of <s>, what, ?, a in layers 1 and 3; head 1 looks at the start alone."""
    rows = np.zeros((2, 4, 7), np.float16)
    rows[0, 0, 0] = 1
    rows[0, 1] = [0.5, 0.25, 0, 0.25, 0, 0, 0]
    rows[0, 2] = [0.2, 0.3, 0.1, 0.2, 0.2, 0, 0]  # of "?", which wrote "a"
    rows[0, 3] = [0.5, 0, 0.5, 0, 0, 0, 0]  # of "a", which wrote "b"
    rows[1, :, 0] = 1
    later = rows.copy()
    later[0, 2] = [1, 0, 0, 0, 0, 0, 0]
    marked = np.zeros((2, 7), bool)
    marked[:, list(sinks)] = True
    eyes = np.stack([np.eye(6), np.roll(np.eye(6), 1, axis=1)]).astype(np.float16)
    return Trace(
        tokens=TOKENS,
        kinds=KINDS,
        layers=(1, 3),
        positions=np.array([0, 3, 4, 5]),
        rows={1: rows, 3: later},
        connector=(READ[None].astype(np.float16),),
        vision={7: (eyes,)},
        sinks=marked,
        images=(SeenImage(image_tokens([1, 2], through_connector=True), Image.new("RGB", SIZE)),),
    )


def look_without_connector(seed: int = 0) -> Trace:
    """Random rows; six tokens of the picture are its cells."""
    rng = np.random.default_rng(seed)
    rows = {layer: rng.dirichlet(np.ones(9), (2, 3)).astype(np.float16) for layer in (0, 1)}
    return Trace(
        tokens=("<s>", *["<image>"] * 6, "?", "a"),
        kinds=("other", *["image 0"] * 6, "question", "answer"),
        layers=(0, 1),
        positions=np.array([0, 7, 8]),
        rows=rows,
        connector=(),
        vision={},
        sinks=np.zeros((2, 9), bool),
        images=(SeenImage(image_tokens(range(1, 7), through_connector=False), Image.new("RGB", SIZE)),),
    )


def look_with_overview() -> Trace:
    """Six cells and an overview of the left and of the right half of the picture, tokens 1 to 6 and 7 to 8."""
    halves = np.array([(0.0, 0, 30, 40), (30, 0, 60, 40)])
    overview = ImageTokens(np.array([7, 8]), (1, 2), halves, SIZE, False)
    seen = replace(image_tokens(range(1, 7), through_connector=False), overview=overview, tiles=(1, 1))
    rows = np.zeros((1, 2, 11), np.float16)
    rows[0, 0] = [0, 0, 0, 0, 0, 0, 0.125, 0, 0.375, 0.5, 0]  # of "?", which wrote "a"
    rows[0, 1] = [0, 0, 0.25, 0, 0, 0, 0, 0.25, 0, 0.25, 0.25]
    return Trace(
        tokens=("<s>", *["<image>"] * 8, "?", "a"),
        kinds=("other", *["image 0"] * 8, "question", "answer"),
        layers=(0,),
        positions=np.array([9, 10]),
        rows={0: rows},
        connector=(),
        vision={},
        sinks=np.zeros((1, 11), bool),
        images=(SeenImage(seen, Image.new("RGB", SIZE)),),
    )


def test_an_overview_is_of_the_picture_in_every_map_and_number():
    """.375 on the right half: .125 on each of the two cells of the right column, .0625 on those of the middle one."""
    trace = look_with_overview()
    found = maps.image_map(trace, 0, 0, [10])
    np.testing.assert_allclose(
        found.cells, np.array([[0, 0.0625, 0.125], [0, 0.0625, 0.25]]) / 0.5, atol=1e-3
    )
    assert found.mass == pytest.approx(0.5, abs=1e-3)
    assert maps.overview(trace, [10]).values[0, 0] == pytest.approx(0.5, abs=1e-3)
    assert maps.box_numbers(trace, (40, 20, 60, 40)).mass[0, 0] == pytest.approx(0.5, abs=1e-3)
    assert maps.box_numbers(trace, (0, 0, 20, 40)).mass[0, 0] == 0
    who = maps.who_looks(trace, 0, 0, 5)
    assert who[[9, 10]] == pytest.approx([0.25, 0.25], abs=1e-3) and np.isnan(who[:9]).all()
    assert trace.bytes > replace(trace, images=look_without_connector().images).bytes


def test_a_token_of_the_answer_is_read_by_the_row_that_wrote_it_and_others_by_their_own():
    trace = look_by_hand()
    assert trace.answer == (5, 6) and trace.heads == 2
    assert [trace.row_of(token) for token in (0, 3, 4, 5, 6)] == [0, 1, 2, 2, 3]
    assert [trace.has_row(token) for token in range(7)] == [True, False, False, True, True, True, True]
    with pytest.raises(ValueError, match=r"token 1 \('<image>'\) has no attention row.* last 4"):
        trace.row_of(1)
    with pytest.raises(ValueError, match="token 7 does not exist; expected 0 to 6"):
        trace.has_row(7)


def test_where_a_token_looked_through_the_resampler():
    found = maps.image_map(look_by_hand(), 1, 0, [5])
    np.testing.assert_allclose(found.cells, [[0.875, 0, 0.125], [0, 0, 0]], atol=1e-3)
    assert found.mass == pytest.approx(0.4, abs=1e-3) and (found.image, found.token) == (0, 5)


def test_of_several_tokens_rows_are_averaged_before_they_become_shares():
    # [.3, .1] and [0, .5] → [.15, .3] @ R = [.3, 0, .15], of .45.
    found = maps.image_map(look_by_hand(), 1, 0, [5, 6])
    np.testing.assert_allclose(found.cells, [[2 / 3, 0, 1 / 3], [0, 0, 0]], atol=1e-3)
    assert found.token is None


def test_the_mean_of_heads_halves_what_one_of_two_looks_at():
    trace = look_by_hand()
    assert maps.image_map(trace, 1, maps.MEAN, [5]).mass == pytest.approx(0.2, abs=1e-3)
    assert maps.image_map(trace, 1, 1, [5]).mass == 0
    assert not maps.image_map(trace, 1, 1, [5]).cells.any()


def test_sinks_can_be_taken_out():
    trace = look_by_hand(sinks=(1,))
    found = maps.image_map(trace, 1, 0, [5], with_sinks=False)
    np.testing.assert_allclose(found.cells, [[0.5, 0, 0.5], [0, 0, 0]], atol=1e-3)
    assert found.mass == pytest.approx(0.1, abs=1e-3)
    assert maps.image_map(trace, 1, 0, [5]).mass == pytest.approx(0.4, abs=1e-3)
    assert maps.overview(trace, [5], with_sinks=False).values[0, 0] == pytest.approx(0.1, abs=1e-3)
    assert maps.text_map(trace, 1, 0, (0, 7), with_sinks=False).rows[2].tolist()[1] == 0


def test_a_window_of_text_has_the_rows_of_its_own_tokens():
    found = maps.text_map(look_by_hand(), 1, 0, (3, 7))
    assert found.queries.tolist() == [3, 4, 5] and found.keys.tolist() == [3, 4, 5, 6]
    np.testing.assert_allclose(found.rows, [[0.25, 0, 0, 0], [0.2, 0.2, 0, 0], [0, 0, 0, 0]], atol=1e-3)
    with pytest.raises(ValueError, match="window 3 to 9: expected a range within the 7 tokens"):
        maps.text_map(look_by_hand(), 1, 0, (3, 9))


def test_connector_and_tower_have_maps_of_their_own():
    trace = look_by_hand()
    np.testing.assert_allclose(
        maps.image_map(trace, 1, 0, [], part="connector").cells, [[0.75, 0, 0.25], [0, 0, 0]]
    )
    whole = maps.image_map(trace, 7, 0, [], part="vision")
    np.testing.assert_allclose(whole.cells, np.full(GRID, 1 / 6))
    one = maps.image_map(trace, 7, 1, [], part="vision", patch=3)  # head 1 looks at the next patch
    np.testing.assert_allclose(one.cells, [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(
        maps.image_map(trace, 7, -1, [], part="vision", patch=3).cells, [[0, 0, 0], [0.5, 0.5, 0]]
    )


def test_a_tower_s_map_is_as_fine_as_its_patches():
    trace = look_without_connector()
    rows = np.random.default_rng(1).dirichlet(np.ones(24), (2, 24)).astype(np.float16)
    finer = replace(trace, vision={0: (rows,)})
    assert maps.image_map(finer, 0, 0, [], part="vision").cells.shape == (4, 6)


def test_the_overview_has_a_share_for_each_layer_and_head():
    found = maps.overview(look_by_hand(), [5])
    np.testing.assert_allclose(found.values, [[0.4, 0], [0, 0]], atol=1e-3)
    assert found.unit == "share"
    boxed = maps.overview(
        look_by_hand(), [5], 0, (0, 0, 20, 20)
    )  # the first cell: .875 of a sixth of the picture
    np.testing.assert_allclose(boxed.values, [[5.25, 0], [0, 0]], atol=1e-2)
    assert boxed.unit == "times"


def test_shares_that_are_added_up_are_none_of_them_made_larger():
    tiny = np.full(4096, 2e-7, np.float16)
    numbers = _numbers(tiny)
    assert min(numbers) > 0 and sum(numbers) == pytest.approx(tiny.astype(float).sum(), rel=1e-2)
    assert _numbers(np.array([0.0, 0.123456789, np.nan])) == [0.0, pytest.approx(0.12346, abs=1e-5), None]


@pytest.mark.parametrize(
    "trace",
    [look_by_hand(), look_without_connector(), look_with_overview()],
    ids=["resampler", "cells", "overview"],
)
def test_a_box_s_numbers_are_those_of_the_metrics(trace):
    box = (10, 5, 47, 30)
    found = maps.box_numbers(trace, box)
    seen = trace.images[0].tokens
    coverage = region_coverage([box], seen)
    read = trace.connector[0].mean(0) if trace.connector else None
    for at, layer in enumerate(trace.layers):
        rows = np.stack([trace.rows[layer][:, trace.row_of(token)] for token in trace.answer]).mean(0)
        cells = cells_from_row(rows, seen, read)
        np.testing.assert_allclose(found.mass[at], region_mass(cells, coverage), atol=1e-3)
        np.testing.assert_allclose(found.enrichment[at], enrichment(cells, coverage), atol=1e-2)
        drawn = maps.image_map(trace, layer, -1, trace.answer).cells.ravel()
        np.testing.assert_allclose(found.mean_mass[at], region_mass(drawn, coverage), atol=1e-3)
        np.testing.assert_allclose(found.mean_enrichment[at], enrichment(drawn, coverage), atol=1e-2)


def test_in_the_mean_a_head_counts_by_how_much_it_looks_at_the_picture():
    """.6 of one head's row lies evenly on the six cells, .01 of the other's all in the box, which is one of them."""
    trace = look_without_connector()
    rows = {layer: np.zeros_like(one) for layer, one in trace.rows.items()}
    for one in rows.values():
        one[0, :, 1:7], one[1, :, 2] = 0.1, 0.01
    found = maps.box_numbers(replace(trace, rows=rows), (20, 0, 40, 20))
    np.testing.assert_allclose(found.mass, np.tile([1 / 6, 1], (2, 1)), rtol=1e-3)
    np.testing.assert_allclose(found.mean_mass, (0.1 + 0.01) / 0.61, rtol=1e-3)
    np.testing.assert_allclose(found.mean_enrichment, 6 * 0.11 / 0.61, rtol=1e-3)


def test_who_looks_at_a_patch():
    trace = look_by_hand()
    found = maps.who_looks(trace, 1, 0, 0)
    # Patch 0 is read by query 0 wholly and by query 1 by half: "a" by the row of "?", .3 + .05; "b" .25.
    np.testing.assert_allclose(found, [0, np.nan, np.nan, 0.25, 0.35, 0.35, 0.25], atol=1e-3)
    with pytest.raises(ValueError, match="patch 6 does not exist; picture 0 has 6"):
        maps.who_looks(trace, 1, 0, 6)
    cells = look_without_connector()
    assert maps.who_looks(cells, 0, 1, 2)[8] == pytest.approx(float(cells.rows[0][1, 1, 3]))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (
            lambda trace: maps.image_map(trace, 2, 0, [5]),
            r"layer 2 was not captured; expected one of \[1, 3\]",
        ),
        (lambda trace: maps.image_map(trace, 1, 2, [5]), "layer 1 has no head 2; expected 0 to 1, or -1"),
        (lambda trace: maps.image_map(trace, 1, 0, []), "found no tokens, expected at least one"),
        (lambda trace: maps.image_map(trace, 1, 0, [5], 1), "picture 1 does not exist; .* has 1"),
        (
            lambda trace: maps.image_map(trace, 1, 0, [], part="vision"),
            r"layer 1 of the vision tower .* \[7\]",
        ),
        (lambda trace: maps.image_map(trace, 7, 0, [], part="vision", patch=6), "patch 6 does not exist"),
        (lambda trace: maps.box_numbers(trace, (70, 0, 90, 20)), "does not overlap .* within 60 × 40 pixels"),
    ],
)
def test_an_invalid_request_has_a_message(ask, words):
    with pytest.raises(ValueError, match=words):
        ask(look_by_hand())


def test_a_connector_without_attention_has_no_map():
    with pytest.raises(ValueError, match="connector has no attention"):
        maps.image_map(look_without_connector(), 0, 0, [], part="connector")


def test_the_cache_drops_the_least_recently_used_trace():
    traces = [look_by_hand() for _ in range(3)]
    size = traces[0].bytes
    # Rows 2 × (2 × 4 × 7), read 12, patches 2 × 36 in two bytes; positions and boxes in eight; sinks; the picture.
    assert size == 2 * (112 + 12 + 72) + 8 * (4 + 2 + 24) + 14 + 3 * 60 * 40
    cache = TraceCache(limit_bytes=2 * size)
    first, second = cache.put(traces[0]), cache.put(traces[1])
    assert cache.get(first) is traces[0]
    third = cache.put(traces[2])
    assert second not in cache and first in cache and third in cache and cache.get(second) is None
    assert cache.bytes == 2 * size and len(cache) == 2
    cache.clear()
    assert cache.bytes == 0 and cache.get(first) is None


def test_a_look_larger_than_the_cache_is_kept_alone():
    cache = TraceCache(limit_bytes=1)
    cache.put(look_by_hand())
    key = cache.put(look_by_hand())
    assert len(cache) == 1 and key in cache


def test_maps_of_the_embedded_model_s_shape():
    """Of the embedded model's shape: 4 layers and heads, 49 queries of 196 patches, 150 tokens."""
    rng = np.random.default_rng(0)
    boxes = np.zeros((196, 4))
    row, column = np.divmod(np.arange(196), 14)
    boxes[:] = np.stack([column, row, column + 1, row + 1], axis=1)
    seen = ImageTokens(np.arange(20, 69), (14, 14), boxes, (14, 14), True)
    trace = Trace(
        tokens=("x",) * 150,
        kinds=tuple("answer" if at > 100 else "other" for at in range(150)),
        layers=(0, 1, 2, 3),
        positions=np.array([at for at in range(149) if not 20 <= at < 69]),
        rows={layer: rng.dirichlet(np.ones(150), (4, 100)).astype(np.float16) for layer in range(4)},
        connector=(rng.dirichlet(np.ones(196), (1, 49)).astype(np.float16),),
        vision={},
        sinks=np.zeros((4, 150), bool),
        images=(SeenImage(seen, Image.new("RGB", (14, 14))),),
    )
    ways = [
        lambda: maps.text_map(trace, 2, -1, (0, 150)),
        lambda: maps.image_map(trace, 2, -1, trace.answer),
        lambda: maps.overview(trace, trace.answer),
        lambda: maps.who_looks(trace, 2, -1, 30),
        lambda: maps.box_numbers(trace, (2, 3, 9, 8)),
    ]
    assert all(way() is not None for way in ways)
