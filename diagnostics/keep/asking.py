"""Asks a model its probes with fewer image tokens: those not kept are out of every other token's sight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from tqdm import tqdm

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.keep.rankings import (
    FASTV,
    FIRST_TOKEN,
    Seen,
    rankings,
    region_weights,
    with_first_token,
)
from diagnostics.measures.geometry import patch_boxes_pixels, resampled
from diagnostics.measures.token_orders import Ranking, kept
from diagnostics.probing.interventions import TrialRunner
from diagnostics.probing.prober import BATCH_SIZE
from diagnostics.probing.prompts import EncodedProbe, ProbeEncoder, padded
from diagnostics.records.probes import Probe
from finetune.families import Family, ImageTokens, bare_model, family_of
from finetune.families.parts.modules import (
    attending_layers,
    check_measurable,
    language_layers,
    layer_words,
    tower_layers,
)
from finetune.families.parts.processors import picture_settings
from finetune.families.parts.tower import patches_a_side
from finetune.model.untouched import untouched

TOWER_ROWS_LIMIT_BYTES = 2**30
"""Of a tower layer's rows over one picture; above it the tower's order is not measured."""

Point = tuple[str, float]
"""An order and a share."""


class ProbeAnswers(NamedTuple):
    """One probe, asked with fewer and fewer image tokens.

    image_tokens   how many there are, newlines, marks and margins not counted: what shares are shares of
    margin_tokens  how many show only the margins of padded pictures; they are dropped with the first others
    whole          the margin with all of them, nats
    margins        order and share → the margin; of random orders one for each draw
    region_kept    order and share → share of the main region that the kept tokens stand for, [0, 1]; random: mean
    first_token    order and share → the margin with the first image token kept in any case, and dropped in any case
    """

    probe: Probe
    image_tokens: int
    margin_tokens: int
    whole: float
    margins: dict[Point, tuple[float, ...]]
    region_kept: dict[Point, float]
    first_token: dict[Point, tuple[float, float]]


class Asker:
    """Asks one model its probes with shares of the image tokens, in every order.

    shares        of the image tokens, each in (0, 1]
    key_layer     the language layer whose map ranks them
    fastv_layer   FastV's K: the attention of the K-th layer ranks them, and layers after it do without the rest
    draws         random orders

    Position ids stay as they are, and the kernel is the model's own. The model is left as it was.

    Raises ValueError for a layer that does not exist, and for a model with layers that no mask reaches.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        shares: Sequence[float],
        key_layer: int,
        fastv_layer: int = 2,
        draws: int = 10,
        batch_size: int = BATCH_SIZE,
        family: Family | None = None,
    ) -> None:
        check_measurable(model)
        self.model = bare_model(model)
        self.family = family or family_of(self.model.config)
        check_can_ask(self.model, self.family, key_layer=key_layer, fastv_layer=fastv_layer)
        self.reader = ProbeEncoder(self.family, processor)
        self.shares = tuple(shares)
        self.key_layer = key_layer
        self.fastv_layer = fastv_layer
        self.draws = draws
        self.batch_size = batch_size
        self.tower_layer = tower_layers(self.model, self.family)[-1]
        self.why_no_tower = ""

    def ask_all(self, probes: Sequence[Probe], *, progress: bool = False) -> list[ProbeAnswers]:
        """Every probe's answers, in order. Each needs a foil and a picture."""
        bar = tqdm(probes, desc="asking", unit="probe", disable=not progress, leave=False)
        with untouched(self.model):
            return [self.ask(self.reader.read(probe)) for probe in bar]

    def ask(self, asked: EncodedProbe) -> ProbeAnswers:
        """One probe's answers.

        Raises ValueError for margins that are not finite.
        """
        assert asked.foil is not None and asked.answer.images, "probes without them are left out before"
        images = asked.answer.images
        seen = self._seen(asked)
        ranked = rankings(asked.probe, images, seen, draws=self.draws)
        shown = np.concatenate([image.all_positions for image in images])
        blank = np.concatenate([image.margin_positions for image in images])
        with AttentionExtractor(self.model, [], connector=False, family=self.family) as extractor:
            runner = TrialRunner(self.model, self.reader, extractor, batch_size=self.batch_size)
            wanted = _Wanted(asked, np.concatenate([shown, blank]), runner)
            points = {
                (name, share): [
                    wanted.add(kept(one, share), share, self._first_layer(name)) for one in rankings_of
                ]
                for name, rankings_of in ranked.items()
                for share in self.shares
            }
            sinks = {
                (name, share): tuple(
                    wanted.add(
                        self._by_first(ranked[name][0], share, images, keep=keep),
                        share,
                        self._first_layer(name),
                    )
                    for keep in (True, False)
                )
                for name in FIRST_TOKEN
                for share in self.shares
            }
            margins = wanted.margins()
        if not np.isfinite(margins).all():
            raise ValueError(
                f"probe {asked.probe.id}: {np.count_nonzero(~np.isfinite(margins))} of {len(margins)} margins are not "
                "finite, expected none: does the model overflow in this precision? Load it in bfloat16 or float32"
            )
        weights = region_weights(asked.probe, images, seen.connector)
        return ProbeAnswers(
            asked.probe,
            len(shown),
            len(blank),
            margins[wanted.whole],
            {point: tuple(margins[at] for at in places) for point, places in points.items()},
            {} if weights is None else _region_kept(ranked, self.shares, images[0], weights),
            {point: (margins[places[0]], margins[places[1]]) for point, places in sinks.items()},
        )

    def _names(self) -> tuple[str, ...]:
        with AttentionExtractor(self.model, [], connector=False, family=self.family) as extractor:
            return extractor.names

    def _first_layer(self, name: str) -> int:
        """The first language layer that does without what is not kept."""
        return self.fastv_layer if name == FASTV else 0

    @staticmethod
    def _by_first(ranking: Ranking, share: float, images: Sequence[ImageTokens], *, keep: bool) -> np.ndarray:
        first = min(int(image.all_positions.min()) for image in images)
        return with_first_token(ranking, share, first, keep=keep)

    def _seen(self, asked: EncodedProbe) -> Seen:
        """One reading of the answer's sequence, and one more for each further picture's tower."""
        answer = asked.answer
        layers = sorted({self.key_layer, self.fastv_layer - 1})
        queries = [asked.queries[0].position, answer.turn_spans[-1][0] - 1]
        inputs = padded([answer], next(self.model.parameters()).device, left=False)
        reads_tower = self._reads_tower(answer.images)
        connector, tower = [], []
        for at, image in enumerate(answer.images):
            with (
                AttentionExtractor(
                    self.model,
                    layers,
                    query_tokens=queries,
                    images=[at],
                    vision_layers=[self.tower_layer] if reads_tower else (),
                    tiles=[one.tiles for one in answer.images],
                    family=self.family,
                ) as extractor,
                HiddenStates(self.model, [0], family=self.family) as states,
            ):
                self.model(**inputs, use_cache=False, logits_to_keep=1)
            weights = extractor.attention_weights
            reads = weights["visual_attn"][0].mean(0) if image.through_connector else None
            connector += [] if reads is None else [reads]
            if reads_tower:
                tower.append(self._received(weights.get(f"vision_layer_{self.tower_layer}"), image, reads))
            if not reads_tower and not image.through_connector:
                break  # one reading shows all
        measured = [one for one in tower if one is not None]
        return Seen(
            answer_row=weights[f"layer_{self.key_layer}"][0, :, 0].mean(0),
            prompt_row=weights[f"layer_{self.fastv_layer - 1}"][0, :, 1].mean(0),
            features=states.hidden_states["layer_0"][0],
            connector=tuple(connector),
            tower=tuple(measured) if reads_tower and len(measured) == len(answer.images) else None,
        )

    def _reads_tower(self, images: Sequence[ImageTokens]) -> bool:
        """Are a token's patches known, and do the tower's rows fit? Notes the first reason why not."""
        for image in images:
            finer = self._patches_a_side(image)
            if finer is None:
                return self._without_tower("the tower's patches are not those of whole cells (tiles)")
            shape = self.family.attention_shape(self.model.config, f"vision_layer_{self.tower_layer}")
            assert shape is not None
            patches = len(image.cell_boxes_pixels) * finer**2
            if 4 * shape.heads * patches**2 > TOWER_ROWS_LIMIT_BYTES:
                return self._without_tower(f"a picture of {patches:,} patches has too many rows to keep")
        return True

    def _patches_a_side(self, image: ImageTokens) -> int | None:
        settings = picture_settings(self.reader.processor)
        return patches_a_side(self.family, self.model.config, image, settings)

    def _without_tower(self, why: str) -> bool:
        self.why_no_tower = self.why_no_tower or why
        return False

    def _received(
        self, rows: np.ndarray | None, image: ImageTokens, reads: np.ndarray | None
    ) -> np.ndarray | None:
        """What each token's place receives from all patches, mean over heads: Float[tokens of ``all_positions``]."""
        finer = self._patches_a_side(image)
        assert finer is not None
        if rows is None or rows.shape[-1] != len(image.cell_boxes_pixels) * finer**2:
            self._without_tower("the tower's last layer has no row for each patch of the picture's cells")
            return None
        received = rows[0].mean(axis=(0, 1))  # heads, queries
        if reads is not None:
            return reads @ received
        boxes = patch_boxes_pixels(image, finer)
        views = [image] if image.overview is None else [image, image.overview]
        return np.concatenate([resampled(received, boxes, view) for view in views])


class _Wanted:
    """The sets of kept tokens of one probe, each asked once however many orders lead to it."""

    def __init__(self, asked: EncodedProbe, every: np.ndarray, runner: TrialRunner) -> None:
        self._asked, self._every, self._runner = asked, np.sort(every), runner
        self._cases: dict[tuple[int, bytes], int] = {}
        self._dropped: list[tuple[np.ndarray, int]] = []
        self.whole = self.add(every, 1.0, 0)

    def add(self, kept_tokens: np.ndarray, share: float, first_layer: int) -> int:
        """The number of its margin. Of a share of 1 nothing is dropped, margins neither."""
        kept_tokens = self._every if share == 1 else kept_tokens
        dropped = np.setdiff1d(self._every, kept_tokens, assume_unique=True)
        key = (first_layer if len(dropped) else 0, dropped.tobytes())
        if key not in self._cases:
            self._cases[key] = len(self._dropped)
            self._dropped.append((dropped, first_layer))
        return self._cases[key]

    def margins(self) -> list[float]:
        return self._runner.margins_without(self._asked, self._dropped)


def _region_kept(
    ranked: dict[str, list[Ranking]], shares: Sequence[float], image: ImageTokens, weights: np.ndarray
) -> dict[Point, float]:
    """An overview is left out: it shows the region a second time."""
    own = weights[: len(image.positions)]
    return {
        (name, share): float(
            np.mean(
                [
                    own[np.isin(image.positions, kept(one, share))].sum() / max(own.sum(), 1e-12)
                    for one in rankings_of
                ]
            )
        )
        for name, rankings_of in ranked.items()
        for share in shares
    }


def check_can_ask(model: nn.Module, family: Family, *, key_layer: int | None, fastv_layer: int) -> None:
    """Raises ValueError for a layer that does not exist, and where tokens can be read past a mask of attention. Needs
    no weights. ``key_layer``: None where it is still to be chosen."""
    attending, layers = attending_layers(model, family), len(language_layers(model, family))
    if len(attending) < layers:
        raise ValueError(
            f"{family.name}: {layers - len(attending)} of {layers} language layers mix tokens by linear attention, "
            "which no mask reaches, so that what is not kept would still be read; expected a model whose language "
            "layers all attend"
        )
    if key_layer is not None and key_layer not in attending:
        raise ValueError(f"--key_layer: no language layer {key_layer}; expected {layer_words(attending)}")
    if not 1 <= fastv_layer < layers:
        raise ValueError(
            f"--fastv_layer: found {fastv_layer}, expected 1 to {layers - 1}: the layer after which tokens "
            f"are dropped, of {layers}"
        )
