"""Figures, tested by their artists."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from diagnostics.plots import AttentionVisualizer, layers_heads_figure
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


@pytest.mark.skipif(chinese_font() is None, reason="needs a font with Chinese glyphs")
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
