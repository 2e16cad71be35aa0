"""Figures of what people have: tensors, lists, any tokenizer's spelling, any picture; and of what is no attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from diagnostics.drawing.figure_inputs import as_tokens, byte_of
from diagnostics.drawing.figures import AttentionVisualizer
from tests.diagnostics.drawing.test_figures import a_record, causal, images, written

VISUALIZER = AttentionVisualizer()
CHARACTER = {byte: character for character, byte in byte_of().items()}


def spelled(text: str | bytes) -> str:
    """As a byte-level vocabulary has it: " tower" → "Ġtower"."""
    return "".join(CHARACTER[byte] for byte in (text.encode() if isinstance(text, str) else text))


def labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------

TOWER = "塔".encode()


@pytest.mark.parametrize(
    ("tokens", "read"),
    [
        ([b"<img>", b" tower", TOWER[:2], TOWER[2:]], ["<img>", " tower", "塔 1/2", "塔 2/2"]),  # Qwen-VL
        (["<|im_end|>", b"\n", "东".encode(), b"\xff"], ["<|im_end|>", "\\n", "东", "\\xff"]),
        (
            [spelled(" tower"), spelled("\n"), spelled("东方"), "<|im_end|>"],
            [" tower", "\\n", "东方", "<|im_end|>"],
        ),
        ([spelled(TOWER[:1]), spelled(TOWER[1:]), "ok", "塔"], ["塔 1/2", "塔 2/2", "ok", "塔"]),
        (
            [spelled("。".encode() + TOWER[:2]), spelled(TOWER[2:]), "a", "b"],
            ["。 塔 1/2", "塔 2/2", "a", "b"],
        ),
        (
            [spelled(TOWER)[1:], spelled(" a"), "b", "c"],
            ["\\xa1\\x94", " a", "b", "c"],
        ),  # cut out of a longer list
        (["caf", "é", "naïve", "ß"], ["caf", "é", "naïve", "ß"]),  # plain text, though GPT-2 spells bytes so
        (["▁the", "<0xE5>", "<0xA1>", "<0x94>"], [" the", "塔 1/3", "塔 2/3", "塔 3/3"]),  # SentencePiece
        ([151644, 872, np.int64(3), torch.tensor(4)], ["151644", "872", "3", "4"]),
        (np.array([1, 2, 3, 4]), ["1", "2", "3", "4"]),
        (torch.tensor([1, 2, 3, 4]), ["1", "2", "3", "4"]),
        (["a", None, "", "\t"], ["a", "None", "·", "\\t"]),
        (None, ["0", "1", "2", "3"]),
    ],
)
def test_tokens_of_any_tokenizer_are_read(tokens: Any, read: list[str]) -> None:
    figure = VISUALIZER.visualize_text_attention(causal(4), tokens, 1)
    assert labels(figure) == read
    if tokens is not None:
        figure = VISUALIZER.visualize_cross_attention(Image.new("RGB", (60, 30)), tokens, np.ones((4, 2, 3)))
        assert [axes.get_title() for axes in figure.axes if axes.get_images()] == read


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("abcd", "tokens is 'str'; expected a list"),
        (b"abcd", "tokens is 'bytes'"),
        (7, "tokens is 'int'"),
        (["a", ["b"], "c", "d"], r"tokens\[1\] is of type list"),
        ([], "4 queries and 4 keys, tokens has 0"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused(tokens: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VISUALIZER.visualize_text_attention(causal(4), tokens, 1)


def test_a_whole_vocabulary_of_bytes_is_spelled_and_read() -> None:
    assert (
        len(byte_of()) == 256 and byte_of()["Ġ"] == 0x20 and byte_of()["Ċ"] == 0x0A and byte_of()["ł"] == 0xA0
    )
    text = "东方明珠 is a tower,\n上海。 Ünïcödé 😀"
    assert "".join(as_tokens([spelled(character) for character in text], "tokens")) == text


def test_emoji_and_very_many_tokens_are_drawn() -> None:
    tokens = [spelled(f" token{number}") for number in range(1200)]
    figure = VISUALIZER.visualize_text_attention(causal(1200), [*tokens[:-1], spelled("😀")], 1)
    assert 10 < len(labels(figure)) < 60 and labels(figure)[0] == " token0"
    figure = VISUALIZER.visualize_text_attention(causal(2), [spelled("😀"), spelled(" 塔")], 1)
    assert labels(figure) == ["[U+1F600]", " 塔"]


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        lambda one: torch.tensor(one, dtype=torch.bfloat16).requires_grad_(),
        lambda one: torch.tensor(one)[None],
        lambda one: one.astype(np.float16),
        lambda one: one.tolist(),
        lambda one: [torch.tensor(row) for row in one],
        lambda one: np.asfortranarray(one),
    ],
)
def test_tensors_and_lists_are_drawn_as_arrays_are(kind: Callable[[np.ndarray], Any]) -> None:
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    figure = VISUALIZER.visualize_text_attention(kind(weights), ["a", "b", "c"], 1)
    np.testing.assert_array_equal(images(figure)[0], weights)
    picture, maps = Image.new("RGB", (60, 30)), np.array([[1, 0, 2], [0.5, 0.5, 2]])
    for drawn in (
        VISUALIZER.visualize_image_attention(picture, torch.tensor(maps)),
        VISUALIZER.visualize_image_attention(picture, maps.astype(np.float16).tolist()),
        VISUALIZER.visualize_cross_attention(picture, ["a"], [maps.tolist()]),
    ):
        np.testing.assert_allclose(images(drawn)[1], maps)


def test_heads_in_half_precision_are_averaged_in_full() -> None:
    heads = np.full((64, 1, 4096), 1 / 4096, np.float16)
    figure = VISUALIZER.visualize_text_attention(heads, [str(one) for one in range(4096)], 1)
    assert images(figure)[0].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("nothing", [0.0, np.nan, -np.inf])
@pytest.mark.parametrize("queries", [4, 2, 1])
def test_tokens_that_come_later_do_not_look_like_zero_attention(nothing: float, queries: int) -> None:
    weights = causal(4)
    weights[np.triu_indices(4, 1)] = nothing
    figure = VISUALIZER.visualize_text_attention(weights[4 - queries :], list("abcd"), 1)
    hidden = np.ma.getmaskarray(figure.axes[0].get_images()[0].get_array())
    np.testing.assert_array_equal(hidden, np.triu(np.ones((4, 4), bool), 1)[4 - queries :])
    assert figure.axes[0].patch.get_hatch() == "////"
    assert legend(figure) == (["comes later, cannot be seen"] if queries > 1 else [])


def test_a_record_hides_what_comes_after_each_of_its_rows() -> None:
    record = a_record()
    record.rows[:, :, 1, 11] = 0  # the phrase's row, of token 10
    figure = VISUALIZER.visualize_text_attention(record, layer_idx=8)
    hidden = np.ma.getmaskarray(figure.axes[0].get_images()[0].get_array())
    np.testing.assert_array_equal(hidden, [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    assert legend(figure) == ["comes later, cannot be seen"]


def test_nan_is_no_value_and_is_said() -> None:
    weights = causal(4)
    weights[2, 1] = weights[3, 0] = np.nan
    figure = VISUALIZER.visualize_text_attention(weights, list("abcd"), 1)
    values, lacking = figure.axes[0].get_images()
    assert np.ma.getmaskarray(values.get_array())[[2, 3], [1, 0]].all()
    assert (~np.ma.getmaskarray(lacking.get_array())).sum() == 2
    assert legend(figure) == ["comes later, cannot be seen", "no value (NaN): 2"]
    both_ways = np.full((3, 3), 1 / 3)  # later tokens are seen: one NaN among them is no mask
    both_ways[0, 2] = np.nan
    assert legend(
        VISUALIZER.visualize_text_attention(np.vstack([both_ways[:1], both_ways[1:]]), list("abc"), 1)
    ) == ["no value (NaN): 1"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, -0.25])
def test_what_no_attention_can_be_is_refused(value: float) -> None:
    weights = causal(4)
    weights[3, 1] = value
    with pytest.raises(ValueError, match=rf"attn_matrix holds {value:.4g} at \[3, 1\] \(and 0 more.*softmax"):
        VISUALIZER.visualize_text_attention(weights, list("abcd"), 1)
    with pytest.raises(ValueError, match="must be finite, not negative"):
        VISUALIZER.visualize_image_attention(Image.new("RGB", (60, 30)), weights)
    record = a_record()
    record.rows[0, :, 0, 1] = value
    with pytest.raises(ValueError, match="the record's rows holds"):
        VISUALIZER.visualize_text_attention(record, layer_idx=8)


@pytest.mark.parametrize(
    "weights", [[[1.0], [0.5, 0.5]], [], None, "abc", np.zeros((0, 0)), [["a"]], np.ones((2, 2), complex), {}]
)
def test_what_is_no_array_of_numbers_is_refused(weights: Any) -> None:
    for draw in (
        lambda: VISUALIZER.visualize_text_attention(weights, [], 1),
        lambda: VISUALIZER.visualize_image_attention(Image.new("RGB", (60, 30)), weights),
        lambda: VISUALIZER.visualize_cross_attention(
            Image.new("RGB", (60, 30)), ["a"], weights if weights is not None else {}
        ),
    ):
        with pytest.raises(ValueError, match="is no array of numbers: found"):
            draw()


def test_nan_alone_equal_weights_one_cell_and_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="holds NaN alone"):
        VISUALIZER.visualize_text_attention(np.full((2, 2), np.nan), ["a", "b"], 1)
    for weights in (np.full((3, 3), 1 / 3), np.zeros((3, 3)), np.ones((1, 1))):
        figure = VISUALIZER.visualize_text_attention(weights, list("abc")[: len(weights)], 1)
        (shown,) = figure.axes[0].get_images()
        assert shown.get_clim()[1] > 0
        FigureCanvasAgg(figure).draw()
    figure = VISUALIZER.visualize_image_attention(Image.new("RGB", (60, 30)), [[2.0]])
    np.testing.assert_array_equal(images(figure)[1], [[1.0]])


def test_a_grid_tells_as_many_heads_as_tokens_from_maps() -> None:
    picture, weights = Image.new("RGB", (60, 30)), np.random.default_rng(0).random((2, 2, 6))
    as_heads = VISUALIZER.visualize_cross_attention(picture, ["a", "b"], weights, grid=(2, 3))
    assert images(as_heads)[1].shape == (2, 3)
    as_maps = VISUALIZER.visualize_cross_attention(picture, ["a", "b"], weights, grid=(2, 6))
    assert images(as_maps)[1].shape == (2, 6)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def a_picture() -> Image.Image:
    """Dark, with a bright box at the lower right."""
    picture = Image.new("L", (60, 30), 40)
    ImageDraw.Draw(picture).rectangle((40, 20, 55, 28), fill=220)
    return picture


def sixteen_bit(folder: Path) -> Path:
    values = np.asarray(a_picture()).astype(np.uint16) * 257
    Image.fromarray(values).save(folder / "picture.png")
    return folder / "picture.png"


def turned(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    a_picture().rotate(90, expand=True).save(folder / "picture.jpg", exif=exif, quality=98)
    return folder / "picture.jpg"


def animated(folder: Path) -> Path:
    frames = [Image.new("L", (60, 30), level) for level in (0, 255)]
    a_picture().save(folder / "picture.gif", save_all=True, append_images=frames)
    return folder / "picture.gif"


PICTURES: dict[str, Callable[[Path], Any]] = {
    "16 bit": sixteen_bit,
    "I;16": lambda folder: Image.open(sixteen_bit(folder)),
    "I": lambda folder: Image.fromarray(np.asarray(a_picture()).astype(np.int32) * 257),
    "turned": turned,
    "turned, opened": lambda folder: Image.open(turned(folder)),
    "animated": animated,
    "CMYK": lambda folder: a_picture().convert("RGB").convert("CMYK"),
    "palette": lambda folder: a_picture().convert("P"),
    "LA": lambda folder: a_picture().convert("LA"),
    "transparent palette": lambda folder: a_picture().convert("RGBA").quantize(8),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_any_kind_is_drawn_as_it_is_shown(tmp_path: Path, kind: str) -> None:
    figure = VISUALIZER.visualize_image_attention(PICTURES[kind](tmp_path), np.ones((2, 3)))
    grey = images(figure)[0]
    assert grey.shape == (30, 60)
    assert grey[:18].mean() == pytest.approx(40, abs=6) and grey[22:27, 43:53].mean() == pytest.approx(
        220, abs=8
    )


@pytest.mark.parametrize("size", [(4, 3000), (3000, 4), (1, 5000), (1, 1)])
@pytest.mark.parametrize("figsize", [(12, 8), (4, 3)])
def test_a_sliver_of_a_picture_takes_no_terabyte_and_can_be_seen(
    size: tuple[int, int], figsize: tuple[float, float]
) -> None:
    visualizer, picture = AttentionVisualizer(figsize), Image.new("RGB", size, (90, 90, 90))
    for figure in (
        visualizer.visualize_image_attention(picture, np.ones((2, 3))),
        visualizer.visualize_cross_attention(picture, ["a", "b"], np.ones((2, 2, 3))),
    ):
        shown = written(figure)
        panel = figure.axes[0].get_window_extent()
        assert (
            min(panel.width, panel.height) > 4 and max(panel.width, panel.height) > 0.3 * figure.bbox.height
        )
        assert figure.bbox.width * figure.bbox.height < 2e6 and max(images(figure)[0].shape) <= 3600
        (unit,) = [text for text, _ in shown if text.startswith("times the even share")]
        assert unit.endswith("picture widened") == (size != (1, 1))


@pytest.mark.parametrize("given", [b"bytes", 7, None, np.zeros((3, 4, 3))])
def test_what_is_no_picture_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="image_path is of type .*; expected a file or a PIL image"):
        VISUALIZER.visualize_image_attention(given, np.ones((2, 3)))
