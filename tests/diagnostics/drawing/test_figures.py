"""Figures, tested by their artists."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from diagnostics.drawing.figures import AttentionVisualizer, layers_heads_figure
from diagnostics.drawing.record_rows import with_pictures_as_one_key
from diagnostics.measures.geometry import cells_from_row, pixel_map
from diagnostics.records.record import AttentionRecord, Query, Scores
from finetune import fonts
from finetune.families.base import ImageTokens
from finetune.fonts import chinese_font

PICTURE = Image.new("RGB", (60, 30), (100, 120, 140))
TOKENS = ["图", " ", "\n", "$x$", "tower"]


def rows(heads: int = 3, queries: int = 4, keys: int = 5) -> np.ndarray:
    values = np.random.default_rng(0).random((heads, queries, keys))
    return values / values.sum(-1, keepdims=True)


def images(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]


def test_text_attention_is_the_mean_over_heads_or_one_head() -> None:
    attention = rows()
    visualizer = AttentionVisualizer(figsize=(7, 5))
    figure = visualizer.visualize_text_attention(attention, TOKENS, 16)
    assert tuple(figure.get_size_inches()) == (7, 5)
    np.testing.assert_allclose(images(figure)[0], attention.mean(0))
    assert figure.axes[0].get_title(loc="left") == "Layer 16, mean over 3 heads"
    figure = visualizer.visualize_text_attention(attention[None], TOKENS, 16, head_idx=2)
    np.testing.assert_allclose(images(figure)[0], attention[2])
    assert figure.axes[0].get_title(loc="left") == "Layer 16, head 2"


def test_text_attention_labels_keys_and_the_last_queries() -> None:
    axes = AttentionVisualizer().visualize_text_attention(rows(), TOKENS, 1).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["图", "·", "\\n", r"\$x\$", "tower"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["·", "\\n", r"\$x\$", "tower"]


def causal(queries: int) -> np.ndarray:
    """Each token looks at all before it alike."""
    return np.tril(np.ones((queries, queries))) / np.arange(1, queries + 1)[:, None]


def test_the_future_is_grey_and_the_first_row_does_not_make_the_scale() -> None:
    figure = AttentionVisualizer().visualize_text_attention(causal(3)[None], ["a", "b", "c"], 1)
    (shown,) = figure.axes[0].get_images()
    hidden = np.ma.getmaskarray(shown.get_array())
    np.testing.assert_array_equal(hidden, [[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert to_hex(figure.axes[0].get_facecolor()) == "#9a9a9a"
    assert shown.get_clim() == (0, 0.5)  # of the rows [.5 .5] and [⅓ ⅓ ⅓]
    assert figure.axes[1].get_ylabel() == "share of attention, clipped at 0.5"


def test_the_last_rows_of_a_long_text_are_not_black() -> None:
    tokens = [str(number) for number in range(200)]
    figure = AttentionVisualizer().visualize_text_attention(causal(200)[None], tokens, 1)
    (shown,) = figure.axes[0].get_images()
    assert shown.get_clim()[1] <= 10 / 200  # each of the last row's shares is 1 / 200
    sink = 0.1 * causal(200)
    sink[:, 0] += 0.9
    figure = AttentionVisualizer().visualize_text_attention(sink[None], tokens, 1)
    (shown,) = figure.axes[0].get_images()
    assert shown.get_clim()[1] < 0.02


def test_a_map_that_is_not_causal_is_shown_whole() -> None:
    attention = rows(queries=5)
    figure = AttentionVisualizer().visualize_text_attention(attention, TOKENS, 1)
    (shown,) = figure.axes[0].get_images()
    assert not np.ma.getmaskarray(shown.get_array()).any()
    assert shown.get_clim() == (0, attention.mean(0).max())
    assert figure.axes[1].get_ylabel() == "share of attention"


@pytest.mark.skipif(
    chinese_font() is None, reason="needs a font with Chinese glyphs (Debian: apt-get install fonts-noto-cjk)"
)
def test_chinese_tokens_get_a_font_that_has_them() -> None:
    axes = AttentionVisualizer().visualize_text_attention(rows(), TOKENS, 1).axes[0]
    assert axes.get_xticklabels()[0].get_fontproperties().get_file() == str(chinese_font())


@pytest.mark.parametrize(
    ("attention", "tokens", "head", "message"),
    [
        (rows(), TOKENS[:4], None, "4 queries and 5 keys, tokens has 4"),
        (rows(), TOKENS, 3, "head_idx is 3, attn_matrix has 3 heads; expected 0 to 2"),
        (np.ones((2, 3, 4, 5)), TOKENS, None, "batch of 2"),
        (np.ones(5), TOKENS, None, r"shape \(5,\)"),
    ],
)
def test_text_attention_says_what_does_not_fit(
    attention: np.ndarray, tokens: list[str], head: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionVisualizer().visualize_text_attention(attention, tokens, 1, head_idx=head)


def test_image_attention_lies_over_the_picture_in_times_the_even_share(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "picture.png")
    weights = np.array([[1.0, 0, 0], [0, 0, 3]])
    figure = AttentionVisualizer().visualize_image_attention(tmp_path / "picture.png", weights)
    picture, cells = figure.axes[0].get_images()
    assert picture.get_extent() == cells.get_extent() == [-0.5, 59.5, 29.5, -0.5]
    np.testing.assert_allclose(np.asarray(cells.get_array()), [[1.5, 0, 0], [0, 0, 4.5]])


def test_image_attention_takes_the_connectors_attention_and_flat_cells() -> None:
    connector = np.zeros((1, 2, 7, 9))
    connector[..., 5] = 1.0  # row 1, column 2 of 3 x 3
    figure = AttentionVisualizer().visualize_image_attention(PICTURE, connector)
    assert np.unravel_index(images(figure)[1].argmax(), (3, 3)) == (1, 2)
    figure = AttentionVisualizer().visualize_image_attention(PICTURE, np.eye(8)[6], grid=(2, 4))
    assert np.unravel_index(images(figure)[1].argmax(), (2, 4)) == (1, 2)


@pytest.mark.parametrize(
    ("weights", "grid", "message"),
    [
        (np.ones(8), None, r"8 cells, which is no square; give grid=\(rows, columns\)"),
        (np.ones(8), (3, 3), "grid 3 x 3 has 9"),
        (np.zeros((2, 3)), None, "not all zero"),
        (np.full((2, 3), np.nan), None, "must be finite"),
        (np.ones((2, 3, 4)), None, r"shape \(2, 3, 4\)"),
    ],
)
def test_image_attention_says_what_is_no_map(
    weights: np.ndarray, grid: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionVisualizer().visualize_image_attention(PICTURE, weights, grid=grid)


def test_a_missing_image_is_named() -> None:
    with pytest.raises(ValueError, match="cannot open the image nowhere.png"):
        AttentionVisualizer().visualize_image_attention("nowhere.png", np.ones((2, 3)))


def test_cross_attention_has_a_panel_a_token_on_one_scale() -> None:
    maps = np.random.default_rng(1).random((5, 2, 3))
    figure = AttentionVisualizer().visualize_cross_attention(PICTURE, TOKENS, maps)
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in panels] == ["图", "·", "\\n", r"\$x\$", "tower"]
    assert len({axes.get_images()[1].get_clim() for axes in panels}) == 1
    over_heads = np.stack([maps.reshape(5, 6)] * 2)
    again = AttentionVisualizer().visualize_cross_attention(PICTURE, TOKENS, over_heads, grid=(2, 3))
    np.testing.assert_allclose(images(again)[1], images(figure)[1])


def test_cross_attention_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 6\) for 5 tokens"):
        AttentionVisualizer().visualize_cross_attention(PICTURE, TOKENS, np.ones((4, 6)))
    with pytest.raises(ValueError, match="has 25 tokens; expected 1 to 24"):
        AttentionVisualizer().visualize_cross_attention(PICTURE, ["a"] * 25, np.ones((25, 4)))


def test_layers_by_heads_shares_a_scale_and_marks_key_layers() -> None:
    before, after = np.full((6, 2), 0.1), np.full((6, 2), 0.1)
    after[4, 1] = 0.5
    figure = layers_heads_figure(before, after, title="sphere-building 塔", key_layers=(2, 4))
    shown = [axes.get_images()[0] for axes in figure.axes if axes.get_images()][:3]
    assert shown[0].get_clim() == shown[1].get_clim() == (0.0, 0.5)
    assert shown[2].get_clim() == pytest.approx((-0.4, 0.4))
    np.testing.assert_allclose(np.asarray(shown[2].get_array())[4], [0.0, 0.4])
    assert list(figure.axes[0].get_yticks()) == [2, 4]
    with pytest.raises(ValueError, match="expected the same"):
        layers_heads_figure(before, after[:5], title="")


def test_nothing_global_is_touched() -> None:
    import matplotlib.pyplot as plt

    settings = dict(matplotlib.rcParams)
    AttentionVisualizer().visualize_image_attention(PICTURE, np.ones((2, 3)))
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == settings


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


def a_record(through_connector: bool = False) -> AttentionRecord:
    """Two key layers, two heads, two rows; eight cells (2 x 4) at positions 2 to 9, or three queries that read them.

    The cells cover the left 80 of 100 x 60 pixels: the crop of a family that does not see the right edge."""
    tokens = 3 if through_connector else 8
    boxes = [[20.0 * c, 30.0 * r, 20.0 * c + 20, 30.0 * r + 30] for r in range(2) for c in range(4)]
    image = ImageTokens(np.arange(2, 2 + tokens), (2, 4), np.array(boxes), (100, 60), through_connector)
    keys = 4 + tokens
    values = np.random.default_rng(3).random((2, 2, 2, keys))
    read = np.random.default_rng(4).random((tokens, 8)).astype(np.float32)
    return AttentionRecord(
        probe_id="pearl", group="sphere-building", step=50, model="base",
        tokens=("<s>", "<img>", *["<image>"] * tokens, "塔", "?"),
        queries=(Query(keys - 1, "answer", "东"), Query(keys - 2, "phrase:塔", "塔")),
        layers=(8, 16), rows=(values / values.sum(-1, keepdims=True)).astype(np.float32),
        image_tokens=(image,), connector=(read,) if through_connector else (), region_mass={},
        visual_share=np.zeros((20, 2), np.float32), scores=Scores(-1.0, None, ""),
    )  # fmt: skip


PROBE_PICTURE = Image.new("RGB", (100, 60), (100, 120, 140))


def test_a_record_tells_its_tokens_and_its_picture_is_one_key() -> None:
    record = a_record()
    figure = AttentionVisualizer().visualize_text_attention(record, layer_idx=16)
    rows = record.rows[1].mean(0)
    by_hand = np.stack([rows[:, 0], rows[:, 1], rows[:, 2:10].sum(1), rows[:, 10], rows[:, 11]], axis=1)
    np.testing.assert_allclose(images(figure)[0], by_hand, rtol=1e-6)
    axes = figure.axes[0]
    keys = [label.get_text() for label in axes.get_xticklabels()]
    assert keys == ["<s>", "<img>", "picture (8 tokens)", "塔", "?"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["answer → 东", "塔"]
    assert axes.get_title(loc="left") == "Layer 16, mean over 2 heads"
    one = AttentionVisualizer().visualize_text_attention(record, layer_idx=8, head_idx=1)
    np.testing.assert_allclose(images(one)[0][:, 0], record.rows[0, 1, :, 0])


def test_an_overview_is_part_of_its_picture_s_one_key() -> None:
    record = a_record()
    whole = record.image_tokens[0]
    cells = replace(whole, positions=whole.positions[2:], grid=(1, len(whole.positions) - 2))
    overview = replace(whole, positions=whole.positions[:2], grid=(1, 2), through_connector=False)
    seen = replace(record, image_tokens=(replace(cells, overview=overview),))
    shown, keys = with_pictures_as_one_key(seen, record.rows[1].mean(0), record.tokens)
    expected, names = with_pictures_as_one_key(record, record.rows[1].mean(0), record.tokens)
    assert keys == names and "picture (8 tokens)" in keys
    np.testing.assert_allclose(shown, expected, rtol=1e-6)


@pytest.mark.parametrize("through_connector", [False, True])
def test_a_records_map_is_geometrys_over_the_pixels_that_cells_cover(through_connector: bool) -> None:
    record = a_record(through_connector)
    figure = AttentionVisualizer().visualize_image_attention(
        PROBE_PICTURE, record, layer_idx=16, head_idx=1, query="塔"
    )
    shown = images(figure)[1]
    image = record.image_tokens[0]
    connector = record.connector[0] if through_connector else None
    cells = cells_from_row(record.rows[1, 1, 1], image, connector)
    expected = pixel_map(cells, image, smooth=True)
    expected[:, 80:] = 0  # no cell lies there
    np.testing.assert_allclose(shown, expected / expected.mean(), rtol=1e-6)
    assert shown.mean() == pytest.approx(1) and not shown[:, 80:].any()
    assert figure.get_suptitle() == "塔 · layer 16, head 1"


def test_without_a_name_it_is_the_answers_row_and_the_mean_over_heads() -> None:
    record = a_record()
    figure = AttentionVisualizer().visualize_image_attention(PROBE_PICTURE, record, layer_idx=8)
    named = AttentionVisualizer().visualize_cross_attention(PROBE_PICTURE, ["answer"], record, layer_idx=8)
    np.testing.assert_array_equal(images(figure)[1], images(named)[1])
    expected = pixel_map(
        cells_from_row(record.rows[0, :, 0].mean(0), record.image_tokens[0]),
        record.image_tokens[0],
        smooth=True,
    )
    np.testing.assert_allclose(images(figure)[1][:, :80], (expected / expected[:, :80].sum())[:, :80] * 6000)


def test_cross_attention_of_a_record_has_a_panel_a_row_or_those_named() -> None:
    record = a_record()
    figure = AttentionVisualizer().visualize_cross_attention(PROBE_PICTURE, record, layer_idx=16)
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in panels] == ["answer → 东", "塔"]
    assert len({axes.get_images()[1].get_clim() for axes in panels}) == 1
    assert figure.get_suptitle() == "layer 16, mean over 2 heads"
    named = AttentionVisualizer().visualize_cross_attention(PROBE_PICTURE, ["塔"], record, layer_idx=16)
    np.testing.assert_array_equal(images(named)[1], images(figure)[3])


def test_the_second_picture_of_a_record_is_its_own() -> None:
    record = a_record()
    small = replace(
        record.image_tokens[0],
        grid=(1, 2),
        positions=np.array([2, 3]),
        cell_boxes_pixels=np.array([[0.0, 0, 1500, 1000], [1500, 0, 3000, 1000]]),
        image_size_pixels=(3000, 1000),
    )
    record = replace(record, image_tokens=(record.image_tokens[0], small))
    photograph = Image.new("RGB", (3000, 1000))
    figure = AttentionVisualizer((4, 3)).visualize_image_attention(photograph, record, layer_idx=8, image=1)
    picture, cells = figure.axes[0].get_images()
    assert 900 < np.asarray(picture.get_array()).shape[1] <= 1200  # 300 dots an inch
    assert cells.get_extent() == picture.get_extent() == [-0.5, 2999.5, 999.5, -0.5]
    shown = np.asarray(cells.get_array())
    assert shown.shape == (171, 512)  # a map, not three million numbers
    left, right = record.rows[0, :, 0, 2:4].mean(0)
    assert shown[:, :128].mean() / shown[:, -128:].mean() == pytest.approx(left / right, rel=1e-3)


TEXT, IMAGE, CROSS = (
    "visualize_text_attention",
    "visualize_image_attention",
    "visualize_cross_attention",
)
LAYER = {"layer_idx": 8}
RECORD = a_record()
BLIND = replace(RECORD, rows=0 * RECORD.rows)


@pytest.mark.parametrize(
    ("method", "given", "choices", "message"),
    [
        (TEXT, [RECORD], {"layer_idx": 9}, "layer_idx is 9; the record of 'pearl' keeps layers 8, 16"),
        (TEXT, [RECORD], {}, "layer_idx is None; the record of 'pearl' keeps layers 8, 16"),
        (TEXT, [RECORD, None, 8, 2], {}, "head_idx is 2, the record has 2 heads; expected 0 to 1"),
        (TEXT, [RECORD, ["a", "b"], 8], {}, "tokens has 2, the record of 'pearl' has 12 keys"),
        (TEXT, [rows()], {}, "an array, which tells neither its tokens nor its layer"),
        (IMAGE, [PICTURE, RECORD], LAYER, "is 60 x 30 pixels, that of the record of 'pearl' was 100 x 60"),
        (IMAGE, [PROBE_PICTURE, RECORD], {"query": "cat", **LAYER}, "no kept row 'cat' .* 'answer', '塔'"),
        (IMAGE, [PROBE_PICTURE, RECORD], {"image": 1, **LAYER}, "image is 1, .* 'pearl' has 1 picture"),
        (IMAGE, [PROBE_PICTURE, RECORD], {"grid": (2, 4), **LAYER}, "a record knows the cells"),
        (IMAGE, [PROBE_PICTURE, np.ones((2, 3))], LAYER, "layer_idx=8 with attn_weights as an array"),
        (IMAGE, [PROBE_PICTURE, BLIND], LAYER, "no attention on picture 0"),
        (CROSS, [PROBE_PICTURE, [], RECORD], LAYER, "names 0 rows; expected 1 to 24"),
        (
            CROSS,
            [PROBE_PICTURE, RECORD, RECORD.rows],
            LAYER,
            "text_tokens is a record and cross_attn_weights",
        ),
        (CROSS, [PROBE_PICTURE, ["a"]], {}, "cross_attn_weights is missing"),
    ],
)
def test_what_a_record_has_not_is_said(
    method: str, given: list[Any], choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(AttentionVisualizer(), method)(*given, **choices)


def test_the_guides_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "capture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (code,) = [block for block in blocks if "AttentionRecord" in block]
    layers = np.repeat(RECORD.rows, 2, axis=1)  # of four heads
    queries = (RECORD.queries[0], Query(10, "phrase:Oriental Pearl", "Oriental Pearl"))
    share = np.zeros((32, 4), np.float32)
    record = replace(RECORD, layers=(16, 24), rows=layers, queries=queries, visual_share=share)
    record.save(tmp_path / "output_towers/attention/step-000150/pearl-night-03.safetensors")
    (tmp_path / "images").mkdir()
    PROBE_PICTURE.save(tmp_path / "images/pearl-night-03.png")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert all(
        (tmp_path / name).stat().st_size > 5000 for name in ("each-row.png", "one-head.png", "text.png")
    )


# ---------------------------------------------------------------------------------------------------------------------
# At any size
# ---------------------------------------------------------------------------------------------------------------------

EN = ["Which", " tower", " is", " this", "?", "\n", "Oriental", " Pearl", "<|vision_start|>"]
ZH = list("这座塔是什么?这是东方明珠")


def figures(figsize: tuple[float, float], tokens: list[str]) -> Iterator[Figure]:
    visualizer = AttentionVisualizer(figsize=figsize)
    yield visualizer.visualize_text_attention(rows(2, len(tokens), len(tokens)), tokens, 16)
    yield visualizer.visualize_text_attention(causal(len(tokens))[None], tokens, 16)
    weights = np.random.default_rng(5).random((min(len(tokens), 24), 2, 3))
    yield visualizer.visualize_image_attention(PICTURE, weights[0], title=" ".join(tokens[:9]))
    portrait = Image.new("RGB", (30, 80))
    yield visualizer.visualize_cross_attention(portrait, tokens[:24], weights)
    yield visualizer.visualize_cross_attention(PROBE_PICTURE, a_record(), layer_idx=16)


def written(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text of a figure as it is drawn, and where."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not axes.axison or not min(view := axis.get_view_interval()) <= tick.get_loc() <= max(view)
    }
    texts = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    drawn = [one for one in texts if one not in unseen]
    return [(one.get_text(), one.get_window_extent(canvas.get_renderer())) for one in drawn]


@pytest.mark.parametrize("figsize", [(4, 3), (12, 8), (20, 6)])
@pytest.mark.parametrize(
    "tokens",
    [EN[:3], EN * 20, ZH[:3], ZH * 9, ["a_very_long_identifier_of_a_token", "东方明珠广播电视塔"] * 5],
    ids=["few", "many", "few-zh", "many-zh", "long"],
)
def test_at_any_size_no_text_lies_on_another_or_is_cut_off(
    figsize: tuple[float, float], tokens: list[str]
) -> None:
    if chinese_font() is None and tokens[0] not in EN:
        pytest.skip("needs a font with Chinese glyphs (Debian: apt-get install fonts-noto-cjk)")
    for figure in figures(figsize, tokens):
        page = figure.bbox.padded(2)
        shown = written(figure)
        for at, (text, box) in enumerate(shown):
            assert page.containsx(box.x0) and page.containsx(box.x1), text
            assert page.containsy(box.y0) and page.containsy(box.y1), text
            for other, beside in shown[:at]:
                common = Bbox.intersection(box, beside)
                assert common is None or common.width < 1 or common.height < 1, (text, other)
        panels = Bbox.union([axes.get_window_extent() for axes in figure.axes])
        assert panels.width > 0.5 * figure.bbox.width or panels.height > 0.5 * figure.bbox.height


def test_without_a_chinese_font_chinese_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "chinese_font", lambda: None)
    visualizer = AttentionVisualizer()
    for draw in (
        lambda: visualizer.visualize_text_attention(rows(), TOKENS, 1),
        lambda: visualizer.visualize_image_attention(PICTURE, np.ones((2, 3)), title="塔"),
        lambda: visualizer.visualize_cross_attention(PICTURE, ["塔"], np.ones((1, 2, 3))),
    ):
        with pytest.raises(ValueError, match="no font with Chinese glyphs .*pip install mplfonts"):
            draw()
    visualizer.visualize_text_attention(rows(), ["a", "b", "c", "d", "e"], 1)
