"""Attention as matplotlib figures. Neither saves nor shows; no pyplot, so nothing global is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from PIL import Image, ImageOps

from finetune.fonts import drawable, text_font

# Less is blue and more is orange, as on the probe pictures.
_LESS_MORE = LinearSegmentedColormap.from_list(
    "less_more", ["#1d6fd1", "#9cc8f5", "#f7f7f7", "#ffb066", "#c4560a"]
)

ImageLike = str | Path | Image.Image

# More labels than this cannot be read on one axis; every n-th is written then.
_LABELS_MAX = 64
# More token panels than this make a figure nobody reads; the caller chooses which tokens matter.
_PANELS_MAX = 24


class AttentionVisualizer:
    """Draws attention as the extractor returns it.

    >>> visualizer = AttentionVisualizer(figsize=(12, 8))
    >>> figure = visualizer.visualize_text_attention(rows, tokens, layer_idx=16)
    >>> figure.savefig("layer-16.png")

    Args:
        figsize: width and height of a figure in inches.
    """

    def __init__(self, figsize: tuple[float, float] = (12, 8)) -> None:
        self.figsize = figsize

    def visualize_text_attention(
        self,
        attn_matrix: np.ndarray,
        tokens: Sequence[str],
        layer_idx: int,
        head_idx: int | None = None,
    ) -> Figure:
        """Which tokens does each token look at?

        Args:
            attn_matrix: Float[query key], Float[heads query key] or Float[1 heads query key], rows summing
                to 1. Fewer queries than tokens are taken to be the last ones.
            tokens: text of each key.
            layer_idx: the layer's number, for the title.
            head_idx: one head, or None for the mean over heads.

        Raises:
            ValueError: shapes that do not fit, or a head that is not there.
        """
        matrix, heads = _one_matrix(attn_matrix, head_idx)
        if matrix.shape[1] != len(tokens) or matrix.shape[0] > len(tokens):
            raise ValueError(
                f"attn_matrix has {matrix.shape[0]} queries and {matrix.shape[1]} keys, tokens has {len(tokens)}; "
                "expected one token for each key and no more queries than keys"
            )
        figure, axes = self._one_axes()
        shown = axes.imshow(matrix, cmap="magma", aspect="auto", vmin=0.0, interpolation="nearest")
        labels = [_label(token) for token in tokens]
        _token_ticks(axes, "x", labels)
        _token_ticks(axes, "y", labels[len(labels) - matrix.shape[0] :])
        axes.set_xlabel("key (looked at)")
        axes.set_ylabel("query (looking)")
        axes.set_title(f"Layer {layer_idx}, {_head_words(heads, head_idx)}", loc="left")
        figure.colorbar(shown, ax=axes, label="share of attention", fraction=0.03, pad=0.01)
        return figure

    def visualize_image_attention(
        self,
        image_path: ImageLike,
        attn_weights: np.ndarray,
        *,
        grid: tuple[int, int] | None = None,
        title: str = "",
    ) -> Figure:
        """Where in the image does the attention lie?

        Args:
            image_path: a file or a PIL image.
            attn_weights: Float[rows columns]; or Float[cells]; or the extractor's "visual_attn",
                Float[images heads queries cells], of which the first image's mean over heads and queries is drawn.
            grid: (rows, columns) of the cells. May be left out for a square number of cells, since Qwen-VL
                squeezes every image into a square; any other count needs it.

        Raises:
            ValueError: weights that are no map: wrong shape, negative, not finite, or all zero.
        """
        picture = _open(image_path)
        if attn_weights.ndim == 4:
            attn_weights = attn_weights[0].mean(axis=(0, 1))
        density = _density(
            _as_map(np.asarray(attn_weights, dtype=np.float64), grid, "attn_weights"), "attn_weights"
        )
        figure, axes = self._one_axes()
        shown = _overlay(axes, picture, density, density.max())
        axes.set_title(title, loc="left", fontproperties=_font_properties(title))
        figure.colorbar(shown, ax=axes, label="attention, times the even share", fraction=0.03, pad=0.01)
        return figure

    def visualize_cross_attention(
        self,
        image_path: ImageLike,
        text_tokens: Sequence[str],
        cross_attn_weights: np.ndarray,
        *,
        grid: tuple[int, int] | None = None,
    ) -> Figure:
        """Where does each of these tokens look? One panel a token, one colour scale for all.

        Args:
            image_path: a file or a PIL image.
            text_tokens: the tokens that look, at most 24.
            cross_attn_weights: Float[tokens cells], Float[tokens rows columns], or Float[heads tokens cells],
                of which the mean over heads is drawn.
            grid: (rows, columns) of the cells, as in ``visualize_image_attention``.

        Raises:
            ValueError: shapes that do not fit, or weights that are no map.
        """
        maps = _token_maps(np.asarray(cross_attn_weights, dtype=np.float64), len(text_tokens), grid)
        picture = _open(image_path)
        # Square panels on a landscape page: slightly more columns than rows.
        columns = min(len(maps), max(1, math.ceil(math.sqrt(len(maps) * self.figsize[0] / self.figsize[1]))))
        figure = Figure(figsize=self.figsize, layout="constrained")
        panels = figure.subplots(math.ceil(len(maps) / columns), columns, squeeze=False)
        top = max(density.max() for density in maps)
        for axes, density, token in zip(panels.flat, maps, text_tokens, strict=False):
            shown = _overlay(axes, picture, density, top)
            axes.set_title(_label(token), fontproperties=_font_properties(token))
        for axes in panels.flat[len(maps) :]:
            axes.remove()
        figure.colorbar(
            shown, ax=list(figure.axes), label="attention, times the even share", fraction=0.03, pad=0.01
        )
        return figure

    def _one_axes(self) -> tuple[Figure, Axes]:
        figure = Figure(figsize=self.figsize, layout="constrained")
        return figure, figure.add_subplot()


def layers_heads_figure(
    before: Float[np.ndarray, "layers heads"],
    after: Float[np.ndarray, "layers heads"],
    *,
    title: str,
    key_layers: Sequence[int] = (),
    names: tuple[str, str] = ("base", "now"),
    unit: str = "share of the attention to the image",
) -> Figure:
    """One number for each layer and head, before, after and difference: the overview of the whole model.

    Args:
        before, after: Float[layers, heads], same shape; e.g. the region mass of a group's mean. Layers of NaN, which
            have no attention map, stay blank.
        key_layers: layers marked beside the axis.

    Raises:
        ValueError: shapes that differ.
    """
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(
            f"before has shape {before.shape}, after {after.shape}; expected the same [layers, heads]"
        )
    layers, heads = before.shape
    figure = Figure(figsize=(8, min(7.0, max(2.8, 1.5 + 0.16 * layers))), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    top = float(max(np.nanmax(before), np.nanmax(after), 1e-9))
    swing = float(max(np.nanmax(np.abs(after - before)), 1e-9))
    for axes, values, name in zip(panels, (before, after), names, strict=False):
        shown = axes.imshow(
            values, cmap="inferno", vmin=0.0, vmax=top, aspect="auto", interpolation="nearest"
        )
        axes.set_title(name, loc="left")
    figure.colorbar(shown, ax=list(panels[:2]), fraction=0.04, pad=0.02)
    changed = panels[2].imshow(
        after - before, cmap=_LESS_MORE, vmin=-swing, vmax=swing, aspect="auto", interpolation="nearest"
    )
    panels[2].set_title("difference", loc="left")
    figure.colorbar(changed, ax=panels[2], label="less  ·  more", fraction=0.08, pad=0.02)
    for axes in panels:
        axes.set_xlabel("head")
        axes.set_xticks(range(0, heads, max(1, math.ceil(heads / 8))))
    panels[0].set_ylabel("layer")
    panels[0].set_yticks(
        sorted(key_layers) if key_layers else range(0, layers, max(1, math.ceil(layers / 12))),
    )
    # The unit beside the bar would lie over the next panel's title where there are few layers.
    figure.suptitle(f"{title}\n{unit}", fontproperties=_font_properties(title), fontsize=11)
    return figure


def _one_matrix(attention: np.ndarray, head: int | None) -> tuple[np.ndarray, int]:
    """[query key] of one head or of the mean, and how many heads there were."""
    if attention.ndim == 4:
        if attention.shape[0] != 1:
            raise ValueError(
                f"attn_matrix holds a batch of {attention.shape[0]}; expected one sample, e.g. attn_matrix[0]"
            )
        attention = attention[0]
    if attention.ndim == 2:
        attention = attention[None]
    if attention.ndim != 3:
        raise ValueError(
            f"attn_matrix has shape {attention.shape}; expected [query key] or [heads query key]"
        )
    heads = attention.shape[0]
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head_idx is {head}, attn_matrix has {heads} heads; expected 0 to {heads - 1}")
    return (attention.mean(axis=0) if head is None else attention[head]), heads


def _head_words(heads: int, head: int | None) -> str:
    return f"head {head}" if head is not None else f"mean over {heads} heads" if heads > 1 else "one head"


def _as_map(weights: np.ndarray, grid: tuple[int, int] | None, name: str) -> np.ndarray:
    """[rows columns] of weights that are a map already, or a row of cells."""
    if weights.ndim == 2 and (grid is None or weights.shape == grid):
        return weights
    if weights.ndim != 1:
        raise ValueError(
            f"{name} has shape {weights.shape}; expected [rows columns], [cells], or [images heads queries cells]"
        )
    side = math.isqrt(weights.size)
    if grid is None and side * side != weights.size:
        raise ValueError(f"{name} has {weights.size} cells, which is no square; give grid=(rows, columns)")
    rows, columns = grid or (side, side)
    if rows * columns != weights.size:
        raise ValueError(f"{name} has {weights.size} cells; grid {rows} x {columns} has {rows * columns}")
    return weights.reshape(rows, columns)


def _density(cells: np.ndarray, name: str) -> np.ndarray:
    """Weights → times the even share (mean 1)."""
    if not np.isfinite(cells).all() or (cells < 0).any() or cells.sum() <= 0:
        raise ValueError(f"{name} must be finite, not negative and not all zero, as attention is")
    return cells * cells.size / cells.sum()


def _token_maps(weights: np.ndarray, tokens: int, grid: tuple[int, int] | None) -> list[np.ndarray]:
    if not 1 <= tokens <= _PANELS_MAX:
        raise ValueError(f"text_tokens has {tokens} tokens; expected 1 to {_PANELS_MAX}, one panel each")
    if weights.ndim == 3 and weights.shape[0] != tokens and weights.shape[1] == tokens:
        weights = weights.mean(axis=0)
    if weights.ndim not in (2, 3) or weights.shape[0] != tokens:
        raise ValueError(
            f"cross_attn_weights has shape {weights.shape} for {tokens} tokens; expected [tokens cells], "
            "[tokens rows columns] or [heads tokens cells]"
        )
    return [_density(_as_map(row, grid, "cross_attn_weights"), "cross_attn_weights") for row in weights]


def _overlay(axes: Axes, picture: Image.Image, density: np.ndarray, top: float) -> AxesImage:
    """The map over the grey picture, in the picture's own pixels."""
    extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
    axes.imshow(np.asarray(ImageOps.grayscale(picture)), cmap="gray", vmin=0, vmax=400, extent=extent)
    shown = axes.imshow(density, cmap="inferno", vmin=0.0, vmax=top, extent=extent, interpolation="bilinear")
    # Grows with the attention, so that the picture shows where nobody looks. Smoothed as the colours are.
    shown.set_alpha(np.clip(density / top, 0.0, 1.0) ** 0.6 * 0.85)
    axes.set_axis_off()
    return shown


def _open(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise ValueError(
            f"cannot open the image {image}: {error}; expected a readable picture file"
        ) from error


def _label(token: str) -> str:
    """A token for a tick or a title: white space made visible, what the font lacks spelled out."""
    shown = token.replace("\n", "\\n").replace("\t", "\\t")
    shown = shown if shown.strip() else "·" * max(1, len(shown))
    # matplotlib would read $…$ as mathematics
    return drawable(shown, text_font(shown)).replace("$", r"\$")


def _font_properties(text: str) -> FontProperties:
    """The font to write ``text`` with; asks for nothing global (no rcParams, no font registry)."""
    return FontProperties(fname=str(text_font(text)))


def _token_ticks(axes: Axes, which: str, labels: Sequence[str]) -> None:
    every = max(1, math.ceil(len(labels) / _LABELS_MAX))
    places = list(range(0, len(labels), every))
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(places, [labels[place] for place in places])
    font = _font_properties("".join(labels))
    font.set_size(9 if len(places) <= 32 else 7)
    for text in axis.get_ticklabels():
        text.set_fontproperties(font)
        if which == "x":
            text.set_rotation(90 if len(places) > 12 else 45)
