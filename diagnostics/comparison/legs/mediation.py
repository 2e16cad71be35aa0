"""The leg "mediation": how much of the change goes when attention is put back as it was before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diagnostics.comparison.legs.leg import Leg, listed, not_measured, percent, percent_interval, too_few
from diagnostics.comparison.pairs import ProbePair, images_of
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.statistics import Interval, ratio_of_means
from diagnostics.records.measurement_plan import CONNECTOR, KEY_LAYERS, LANGUAGE, LAYER
from diagnostics.records.record import PatternPatch

ROUNDING_NATS, ROUNDING_SHARE = 0.05, 0.05
"""Tolerance between the margins of the model whose attention was put back and those recorded before: another batch or
kernel in half precision."""
MOST_APART = 0.05
"""Share of the probes that may exceed the tolerance."""

Json = dict[str, Any]


class Mediated(NamedTuple):
    """The share of the margin's change that one part's attention carries. ``layers`` as in ``PatternPatch``."""

    part: str
    layers: tuple[int, ...]
    share: Interval

    def json(self) -> Json:
        """The form in comparison.json."""
        mean, low, high = self.share
        return {"part": self.part, "layers": list(self.layers), "share": mean, "ci95": [low, high]}


class Mediation(NamedTuple):
    """The leg, and what each part carries, in the order measured."""

    leg: Leg
    parts: tuple[Mediated, ...]

    def of_layer(self, layer: int) -> Interval | None:
        """What a single layer carries; None if it was not patched by itself."""
        return next((one.share for one in self.parts if one.part == LAYER and one.layers == (layer,)), None)


def mediation_of(
    pairs: Sequence[ProbePair], thresholds: Thresholds, level: float, *, why_not: str | None = None
) -> Mediation:
    """Causal mediation by patching: the model after with the attention of the model before.

    The claim rests on the key layers together, in which attention is judged, or on the connector, whichever carries
    more; each is tested at half the error level (Bonferroni), and the leg's interval is of that level. Not on all
    language layers: what a layer reads changes the attention of later layers, so that adapters without a query or a key
    reached up to 33 % there, but 6 % in the key layers (real corrections: 22 to 35 %).

    why_not   the reason why nothing was patched, if known

    Source: Vig et al., "Investigating gender bias in language models using causal mediation analysis", NeurIPS 2020;
    Meng et al., "Locating and editing factual associations in GPT", NeurIPS 2022.
    """
    patched = [pair for pair in pairs if pair.after.patches and pair.after.patched_from is not None]
    images = len(set(images_of(patched)))
    if not patched:
        why = why_not or "the attention of the model before was not put back"
        return Mediation(
            not_measured(thresholds.mediated, f"What carries the change was not measured: {why}."), ()
        )
    if images < thresholds.probes:
        what = "What carries the change was"
        return Mediation(too_few(thresholds.mediated, what, images, len(patched), thresholds.probes), ())
    if apart := _apart(patched):
        reason = (
            f"What carries the change was not measured: the model whose attention was put back "
            f"({patched[0].after.patched_from.model}) gives other margins than the one before "  # type: ignore[union-attr]
            f"({apart} of {len(patched)} probes)."
        )
        return Mediation(not_measured(thresholds.mediated, reason, len(patched)), ())
    parts = []
    for part, layers in dict.fromkeys(
        (one.part, one.layers) for pair in patched for one in pair.after.patches
    ):
        share = _share(patched, part, layers, level)
        if share is not None:
            parts.append(Mediated(part, layers, share))
    return Mediation(_leg(patched, parts, thresholds, level), tuple(parts))


def mediated_nats(pair: ProbePair, layer: int) -> float | None:
    """Margin after that is lost when one layer's attention is put back; None if not measured."""
    patch = _patch(pair, LAYER, (layer,))
    margin = pair.after.scores.margin_nats
    return None if patch is None or margin is None else margin - patch.margin_nats


def _leg(
    patched: Sequence[ProbePair], parts: Sequence[Mediated], thresholds: Thresholds, level: float
) -> Leg:
    claimed = [one for one in parts if one.part in (KEY_LAYERS, CONNECTOR)]
    if not claimed:
        return not_measured(
            thresholds.mediated,
            f"What carries the change was not measured: {_why_no_share(patched)}.",
            len(patched),
        )
    best = max(claimed, key=lambda one: one.share.mean)
    level_of_two = 1 - (1 - level) / 2
    of_two = _share(patched, best.part, best.layers, level_of_two)
    tested, tested_level = (best.share, level) if of_two is None else (of_two, level_of_two)
    words = listed([f"{percent(one.share.mean)} in {_where(one)}" for one in _shown(parts)])
    return Leg(
        best.share.mean >= thresholds.mediated and of_two is not None and of_two.is_above_zero,
        len(patched),
        best.share.mean,
        (tested.low, tested.high),
        thresholds.mediated,
        f"With attention put back as it was before, this share of the margin's change goes: {words} "
        f"({percent_interval(tested, tested_level)} of {_where(best)}; looking must carry at least "
        f"{percent(thresholds.mediated)}).",
    )


def _why_no_share(patched: Sequence[ProbePair]) -> str:
    having = sum(any(one.part in (KEY_LAYERS, CONNECTOR) for one in pair.after.patches) for pair in patched)
    if having < len(patched):
        return f"attention was put back in the key layers or the connector in only {having} of {len(patched)} probes"
    return "the margin did not rise significantly, so there is no change to carry"


def _shown(parts: Sequence[Mediated]) -> list[Mediated]:
    """All parts, but of single layers only the one that carries most."""
    layers = sorted((one for one in parts if one.part == LAYER), key=lambda one: -one.share.mean)[:1]
    return [*(one for one in parts if one.part != LAYER), *layers]


def _where(one: Mediated) -> str:
    return {
        LANGUAGE: "all language layers",
        KEY_LAYERS: "the key layers",
        CONNECTOR: "the connector",
    }.get(one.part) or f"layer {one.layers[0]} alone"


def _share(patched: Sequence[ProbePair], part: str, layers: tuple[int, ...], level: float) -> Interval | None:
    found = [(pair, patch) for pair in patched if (patch := _patch(pair, part, layers)) is not None]
    if len(found) < len(patched):
        return None
    after = np.array([pair.after.scores.margin_nats for pair in patched], float)
    before = np.array([pair.before.scores.margin_nats for pair in patched], float)
    gone = after - np.array([patch.margin_nats for _, patch in found])
    return ratio_of_means(gone, after - before, images_of(patched), level=level)


def _patch(pair: ProbePair, part: str, layers: tuple[int, ...]) -> PatternPatch | None:
    return next((one for one in pair.after.patches if (one.part, one.layers) == (part, layers)), None)


def _apart(patched: Sequence[ProbePair]) -> int:
    """Number of probes showing that the attention came from another model than "before"; 0 if rounding explains it."""
    apart = 0
    for pair in patched:
        source, before, after = pair.after.patched_from, pair.before.scores, pair.after.scores
        assert source is not None and before.margin_nats is not None and after.margin_nats is not None
        change = abs(after.margin_nats - before.margin_nats)
        apart += abs(source.margin_nats - before.margin_nats) > ROUNDING_NATS + ROUNDING_SHARE * change
    return apart if apart > MOST_APART * len(patched) else 0
