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
from matplotlib.image import AxesImage
from PIL import Image, ImageOps

from diagnostics.drawing.attention_matrix import matrix_of_array, matrix_of_record, scale_top
from diagnostics.drawing.figure_inputs import as_array, as_tokens
from diagnostics.drawing.figure_page import Page, drawn_size, font
from diagnostics.drawing.record_rows import (
    ANSWER,
    layer_rows,
    picture_density,
    query_places,
    query_words,
)
from diagnostics.records.record import AttentionRecord
from finetune.families.base import ImageTokens
from finetune.percent import percent_words
from finetune.samples.images import open_image

# Less is blue and more is orange, as on the probe pictures.
_LESS_MORE = LinearSegmentedColormap.from_list(
    "less_more", ["#1d6fd1", "#9cc8f5", "#f7f7f7", "#ffb066", "#c4560a"]
)

ImageLike = str | Path | Image.Image

# More token panels than this make a figure nobody reads; the caller chooses which tokens matter.
_PANELS_MAX = 24


class AttentionVisualizer:
    """Draws attention as the extractor returns it, or as a record keeps it.

    >>> visualizer = AttentionVisualizer(figsize=(12, 8))
    >>> figure = visualizer.visualize_text_attention(rows, tokens, layer_idx=16)
    >>> figure.savefig("layer-16.png")

    >>> record = AttentionRecord.load("attention/step-000050/pearl-night-03.safetensors")
    >>> visualizer.visualize_cross_attention("pearl-night-03.png", record, layer_idx=16)

    Args:
        figsize: width and height of a figure in inches. Letters, and how many tokens are written out, follow it.

    Every method raises ValueError, with what to install, for Chinese where no font on this machine has it.
    """

    def __init__(self, figsize: tuple[float, float] = (12, 8)) -> None:
        self.figsize = figsize

    def visualize_text_attention(
        self,
        attn_matrix: np.ndarray | AttentionRecord,
        tokens: Sequence[str] | None = None,
        layer_idx: int | None = None,
        head_idx: int | None = None,
    ) -> Figure:
        """Which tokens does each token look at?

        Tokens that come later and get nothing (0, NaN or -inf) are hatched grey: they cannot be seen, which is not the
        same as a share of 0. Where a token that can be seen has NaN, the place is blue, and the legend counts it. The
        first token sees itself alone, always at 1.0, which would leave the rest dark: the colour scale is that of the
        other rows, and ends at their 98th percentile (at their maximum, up to 50 entries), as the bar shows.

        Args:
            attn_matrix: Float[query key], Float[heads query key] or Float[1 heads query key], rows summing
                to 1 (to less where the model has sink logits): an array, a tensor or lists. Fewer queries than tokens
                are taken to be the last ones. Or a record: its kept rows, each picture's tokens as one key.
            tokens: text of each key; a record has its own. As any tokenizer's ``convert_ids_to_tokens`` gives them
                (texts, bytes, ``Ġtower``, None), or ids; None, with a layer: numbered from 0.
            layer_idx: the layer's number: for the title, and which of a record's layers.
            head_idx: one head, or None for the mean over heads.

        Raises:
            ValueError: shapes that do not fit, a layer or head that is not there, or weights that are no attention:
                negative, infinite, or all NaN.
        """
        if isinstance(attn_matrix, AttentionRecord):
            drawn = matrix_of_record(attn_matrix, tokens, layer_idx, head_idx)
        else:
            drawn = matrix_of_array(attn_matrix, tokens, layer_idx, head_idx)
        matrix = np.ma.masked_array(drawn.values, drawn.is_future | np.isnan(drawn.values))
        if not matrix.count():
            raise ValueError(
                "attn_matrix holds NaN alone; expected attention: the model that gave it has overflowed"
            )
        page = Page(self.figsize)
        axes = page.figure.add_subplot()
        top = scale_top(matrix)
        shown = axes.imshow(matrix, cmap="magma", aspect="auto", vmin=0.0, vmax=top, interpolation="nearest")
        page.mark_unseen(axes, drawn)
        page.name_tokens(axes, drawn.keys, drawn.queries)
        axes.set_xlabel("key (looked at)", fontsize=page.points)
        axes.set_ylabel("query (looking)", fontsize=page.points)
        page.title(axes, f"Layer {layer_idx}, {_head_words(drawn.heads, head_idx)}", width=0.7 * page.width)
        page.bar(
            shown, axes, "share of attention" + (f", clipped at {top:.2g}" if matrix.max() > top else "")
        )
        return page.figure

    def visualize_image_attention(
        self,
        image_path: ImageLike,
        attn_weights: np.ndarray | AttentionRecord,
        *,
        grid: tuple[int, int] | None = None,
        title: str = "",
        layer_idx: int | None = None,
        head_idx: int | None = None,
        query: str | None = None,
        image: int = 0,
    ) -> Figure:
        """Where in the image does the attention lie?

        Args:
            image_path: a file or a PIL image.
            attn_weights: Float[rows columns]; or Float[cells]; or the extractor's "visual_attn",
                Float[images heads queries cells]; draws the first image's mean over heads and queries.
                Or a record: one of its rows, over the pixels of the probe's picture.
            grid: (rows, columns) of the cells of an array. May be left out for a square number of cells, since
                Qwen-VL squeezes every image into a square; any other count needs it.
            title: left out, a record says which layer, heads and token.
            layer_idx, head_idx: of a record; head_idx None is the mean over heads.
            query: which row of a record: "answer", or a phrase of the probe; None: the answer's.
            image: which picture of a record that has several.

        Raises:
            ValueError: weights that are no map: wrong shape, negative, not finite, or all zero; a layer, head, row or
                picture that the record has not.
        """
        picture = _open(image_path)
        if isinstance(attn_weights, AttentionRecord):
            words, [(name, density)] = _record_maps(
                attn_weights, picture, [query or ANSWER], layer_idx, head_idx, image, grid
            )
            title = title or f"{name} · {words}"
        else:
            _refuse_choices(
                "attn_weights", layer_idx=layer_idx, head_idx=head_idx, query=query, image=image or None
            )
            weights = as_array(attn_weights, "attn_weights")
            if weights.ndim == 4:
                weights = weights[0].mean(axis=(0, 1))
            density = _density(_as_map(weights, grid, "attn_weights"), "attn_weights")
        page = Page(self.figsize, "compressed")
        axes = page.figure.add_subplot()
        shown = _overlay(axes, picture, density, density.max())
        page.heading(title)
        page.bar(shown, axes, _unit(picture), across=page.row(1, picture)[1])
        return page.figure

    def visualize_cross_attention(
        self,
        image_path: ImageLike,
        text_tokens: Sequence[str] | AttentionRecord,
        cross_attn_weights: np.ndarray | AttentionRecord | None = None,
        *,
        grid: tuple[int, int] | None = None,
        layer_idx: int | None = None,
        head_idx: int | None = None,
        image: int = 0,
    ) -> Figure:
        """Where in the image does each of these tokens look? One panel a token, one colour scale for all.

        Args:
            image_path: a file or a PIL image.
            text_tokens: the tokens that look, at most 24. Of a record: "answer" and phrases of the probe, or the
                record itself in their place, for all its rows.
            cross_attn_weights: Float[tokens cells], Float[tokens rows columns], or Float[heads tokens cells],
                of which the mean over heads is drawn. Or a record.
            grid: (rows, columns) of the cells of an array, as in ``visualize_image_attention``. Where heads are as many
                as tokens, it says that these are not [tokens rows columns].
            layer_idx, head_idx, image: which layer, head (None: the mean) and picture of a record.

        Raises:
            ValueError: shapes that do not fit, or weights that are no map; a layer, head, row or picture that the
                record has not.
        """
        picture = _open(image_path)
        record, names = _record_and_names(text_tokens, cross_attn_weights)
        title = ""
        if record is not None:
            title, found = _record_maps(record, picture, names, layer_idx, head_idx, image, grid)
            names, maps = [name for name, _ in found], [density for _, density in found]
        else:
            assert names is not None
            _refuse_choices("cross_attn_weights", layer_idx=layer_idx, head_idx=head_idx, image=image or None)
            names = as_tokens(names, "text_tokens")
            maps = _token_maps(as_array(cross_attn_weights, "cross_attn_weights"), len(names), grid)
        page = Page(self.figsize, "compressed")
        columns, width = page.row(len(maps), picture)
        panels = page.figure.subplots(math.ceil(len(maps) / columns), columns, squeeze=False)
        top = max(density.max() for density in maps)
        for axes, density, token in zip(panels.flat, maps, names, strict=False):
            shown = _overlay(axes, picture, density, top)
            page.title(axes, token, width=width, loc="center")
        for axes in panels.flat[len(maps) :]:
            axes.remove()
        page.heading(title)
        page.bar(shown, list(page.figure.axes), _unit(picture), across=columns * width)
        return page.figure

    def visualize_video_attention(
        self,
        frames: Sequence[ImageLike],
        attn_weights: Float[np.ndarray, " cells"],
        video: ImageTokens,
        *,
        title: str = "",
    ) -> Figure:
        """Which frames of a video does the attention lie on, and where in them? One panel a frame, one colour scale.

        Over each stands when it is and its share of the attention to the video.

        Args:
            frames: a picture for each of the video's frames, at most 24: of those that the model merges into one, any.
            attn_weights: Float[cells] of the film strip, as ``geometry.cells_from_row`` gives it.
            video: the film strip's layout, as the family's ``encode`` gives it.

        Raises:
            ValueError: not a video, another number of frames or cells than it has, or weights that are no map.
        """
        if not video.seconds or len(frames) != video.frames or not 1 <= len(frames) <= _PANELS_MAX:
            raise ValueError(
                f"frames has {len(frames)} pictures for a video of {len(video.seconds)} frames; expected one picture "
                f"for each, at most {_PANELS_MAX}"
            )
        cells = as_array(attn_weights, "attn_weights")
        density = _density(_as_map(cells, video.grid, "attn_weights"), "attn_weights")
        shares = density.reshape(video.frames, -1).sum(1) / density.size
        pictures = [_open(frame) for frame in frames]
        page = Page(self.figsize, "compressed")
        columns, width = page.row(len(frames), pictures[0])
        panels = page.figure.subplots(math.ceil(len(frames) / columns), columns, squeeze=False)
        maps = np.split(density, video.frames)
        for axes, picture, one, seconds, share in zip(
            panels.flat, pictures, maps, video.seconds, shares, strict=False
        ):
            shown = _overlay(axes, picture, one, density.max())
            page.title(axes, f"{seconds:.1f} s · {percent_words(share)}", width=width, loc="center")
        for axes in panels.flat[len(frames) :]:
            axes.remove()
        page.heading(title)
        page.bar(shown, list(page.figure.axes), _unit(pictures[0]))
        return page.figure


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
    figure.suptitle(f"{title}\n{unit}", fontproperties=font(title, 11))
    return figure


def _record_maps(
    record: AttentionRecord,
    picture: Image.Image,
    names: Sequence[str] | None,
    layer: int | None,
    head: int | None,
    image: int,
    grid: tuple[int, int] | None,
) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """Which layer and heads, in words; and of each chosen row its name and its density over the picture."""
    if grid is not None:
        raise ValueError(f"grid is {grid}, but a record knows the cells of its pictures; leave grid out")
    rows = layer_rows(record, layer, head)
    places = query_places(record, names)
    if not 1 <= len(places) <= _PANELS_MAX:
        raise ValueError(f"text_tokens names {len(places)} rows; expected 1 to {_PANELS_MAX}, one panel each")
    maps = [(query_words(record.queries[at]), picture_density(record, rows[at], image)) for at in places]
    if picture.size != record.image_tokens[image].image_size_pixels:
        raise ValueError(
            f"the picture is {picture.width} x {picture.height} pixels, that of the record of {record.probe_id!r} was "
            "{} x {}; expected the probe's own picture".format(*record.image_tokens[image].image_size_pixels)
        )
    return f"layer {layer}, {_head_words(record.rows.shape[1], head)}", maps


def _record_and_names(
    tokens: Sequence[str] | AttentionRecord, weights: np.ndarray | AttentionRecord | None
) -> tuple[AttentionRecord | None, Sequence[str] | None]:
    """The record, wherever it was given, and the tokens that were named (None: all of the record's)."""
    if isinstance(tokens, AttentionRecord):
        if weights is not None:
            raise ValueError(
                "text_tokens is a record and cross_attn_weights was given too; expected the record alone, or names of "
                "its rows as text_tokens and the record as cross_attn_weights"
            )
        return tokens, None
    if weights is None:
        raise ValueError("cross_attn_weights is missing; expected an array or a record beside text_tokens")
    return (weights, tokens) if isinstance(weights, AttentionRecord) else (None, tokens)


def _refuse_choices(name: str, **choices: object) -> None:
    """An array has nothing to choose from, and a choice without effect would be taken for one that had it."""
    given = [f"{choice}={value!r}" for choice, value in choices.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} with {name} as an array; expected a record, or the array of that choice alone"
        )


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
    if weights.ndim == 3 and weights.shape[1] == tokens:
        maps_too = weights.shape[0] == tokens and grid in (None, weights.shape[1:])
        weights = weights if maps_too else weights.mean(axis=0)
    if weights.ndim not in (2, 3) or weights.shape[0] != tokens:
        raise ValueError(
            f"cross_attn_weights has shape {weights.shape} for {tokens} tokens; expected [tokens cells], "
            "[tokens rows columns] or [heads tokens cells]"
        )
    return [_density(_as_map(row, grid, "cross_attn_weights"), "cross_attn_weights") for row in weights]


def _overlay(axes: Axes, picture: Image.Image, density: np.ndarray, top: float) -> AxesImage:
    """The map over the grey picture, in the picture's own pixels."""
    extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
    axes.imshow(_grey(picture, axes), cmap="gray", vmin=0, vmax=400, extent=extent)
    shown = axes.imshow(density, cmap="inferno", vmin=0.0, vmax=top, extent=extent, interpolation="bilinear")
    # Grows with the attention, so that the picture shows where nobody looks. Smoothed as the colours are.
    shown.set_alpha(np.clip(density / top, 0.0, 1.0) ** 0.6 * 0.85)
    wide, high = drawn_size(picture)
    axes.set_aspect((high / picture.height) / (wide / picture.width))
    axes.set_axis_off()
    return shown


def _grey(picture: Image.Image, axes: Axes) -> np.ndarray:
    """The picture in grey, at 300 dots an inch of the panel's share of the page: 24 panels of a photograph of 12
    megapixels take 4 seconds so, and 30 with all its pixels."""
    place, figure = axes.get_subplotspec(), axes.get_figure(root=True)
    assert place is not None and figure is not None
    small = ImageOps.grayscale(picture)
    most = math.ceil(300 * figure.get_figwidth() / place.get_gridspec().ncols)
    small.thumbnail((most, max(most, 1200)))
    return np.asarray(small)


def _unit(picture: Image.Image) -> str:
    """What the colours of a map mean; and that a sliver is not drawn true."""
    return "times the even share" + ("" if drawn_size(picture) == picture.size else "; picture widened")


def _open(image: ImageLike) -> Image.Image:
    """Upright and in RGB, whatever its mode: as the models are given it.

    Raises ValueError naming the picture.
    """
    if not isinstance(image, str | Path | Image.Image):
        raise ValueError(f"image_path is of type {type(image).__name__}; expected a file or a PIL image")
    try:
        return open_image(image)
    except ValueError as error:
        raise ValueError(f"cannot open the image {image}: {error}") from error
