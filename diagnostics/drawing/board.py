"""What a run logs of its probes, at the start, at every checkpoint and at the end, into any number of sinks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from diagnostics.comparison.box_answers import of_probe
from diagnostics.comparison.pairs import ProbePair, pairs_by_group
from diagnostics.comparison.verdicts import CORRECTED, KEPT
from diagnostics.drawing import tags
from diagnostics.drawing.cards import Card, escaped, probe_card, verdict_card
from diagnostics.drawing.sink import NOT_YET, Sink, TaggedPicture
from finetune.families.parts.box_scores import box_scores

SHOWN_PER_GROUP = 3
"""Probes of each group whose pictures and cards are logged; the archive on disk has all."""


class AttentionBoard:
    """Writes each step to every sink. What one sink refuses, the others still get.

    reporting   sink's name → the context in which it is written to, which may report a failure instead of raising it
    trained_on  language layers whose attention the run trains on, or was trained on before
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        reporting: Callable[[str], AbstractContextManager[Any]],
        *,
        trained_on: Collection[int] = (),
    ) -> None:
        self.sinks = tuple(sinks)
        self._reporting = reporting
        self._trained_on = frozenset(trained_on)

    def begin(self, groups: Sequence[str]) -> None:
        """Say where runs are compared that this one has no verdict yet."""
        self._each(lambda sink: sink.verdicts(dict.fromkeys(groups, NOT_YET)))

    def write_architecture(self, words: str) -> None:
        """Write the architecture of the trained model, given as Markdown."""
        self._each(lambda sink: sink.cards({tags.ARCHITECTURE: Card((words,))}, 0))

    def write_diagnosis(self, words: str) -> None:
        """Write where the untrained model loses the right answer, given as Markdown."""
        self._each(lambda sink: sink.cards({tags.DIAGNOSIS: Card((words,))}, 0))

    def write_step(self, pairs: Sequence[ProbePair], step: int, *, per_group: int = SHOWN_PER_GROUP) -> None:
        """Write the numbers of every group, and the cards of the shown probes."""
        values = scalars(pairs, self._trained_on)
        cards = {
            tags.probe_tag(pair.probe.group, pair.probe.id): probe_card(pair)
            for pair in shown_probes(pairs, per_group)
        }

        def write(sink: Sink) -> None:
            sink.numbers(values, step)
            sink.cards(cards, step)

        self._each(write)

    def write_pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None:
        """Write the pictures that were drawn of a step."""
        self._each(lambda sink: sink.pictures(pictures, step))

    def lacks_pictures(self, pairs: Sequence[ProbePair], step: int) -> bool:
        """Does any sink lack a picture of this step?"""
        wanted = picture_tags(pairs)
        return any((tag, step) not in sink.written for sink in self.sinks for tag in wanted)

    def write_verdicts(self, comparison: Mapping[str, Any], step: int) -> None:
        """Write each group's verdict with its legs, or its reasons where it rests on none."""
        groups: Mapping[str, Any] = comparison["groups"]
        onset = (comparison.get("onset") or {"groups": {}})["groups"]
        values = {
            tags.holds_tag(name): float(group["verdict"] in (CORRECTED, KEPT))
            for name, group in groups.items()
        }
        cards = {tags.verdict_tag(name): verdict_card(group) for name, group in groups.items()}
        cards |= {tags.onset_tag(name): Card((escaped(group["words"]),)) for name, group in onset.items()}
        verdicts = {name: str(group["verdict"]) for name, group in groups.items()}

        def write(sink: Sink) -> None:
            sink.numbers(values, step)
            sink.cards(cards, step)
            sink.verdicts(verdicts)

        self._each(write)

    def forget(self, step: int) -> None:
        """Let a step be written again, of another model: an earlier start may have ended there, and judged another."""
        for sink in self.sinks:
            sink.forget(step)

    def close(self) -> None:
        """Write what is left in every sink."""
        self._each(lambda sink: sink.close())

    def _each(self, write: Callable[[Sink], None]) -> None:
        for sink in self.sinks:
            with self._reporting(sink.name):
                write(sink)


def scalars(pairs: Sequence[ProbePair], trained_on: Collection[int] = ()) -> dict[str, float]:
    """Tag → value of every number of one step; means over probes, and over heads where there are heads.

    ``trained_on``: layers whose tags say that their attention is trained on, at step 0 too, so that a curve is whole.
    Groups without a foil have no accuracy and margin, groups without a region no mass and enrichment.
    """
    values: dict[str, list[float]] = defaultdict(list)
    speaking = {pair.probe.group for pair in pairs if pair.after.scores.generated}
    for pair in pairs:
        group = pair.probe.group
        margin = pair.after.scores.margin_nats
        if margin is not None:
            values[tags.answers_tag("accuracy", group)].append(float(margin > 0))
            values[tags.answers_tag("margin_nats", group)].append(margin)
        box = of_probe(pair)
        if box is not None and group in speaking:  # an empty reply among others has no box
            scores = box_scores([box._replace(said=pair.after.scores.generated)])
            values[tags.answers_tag("box_accuracy", group)].append(scores.accuracy)
            values[tags.answers_tag("box_iou", group)].append(scores.mean_iou)
            values[tags.answers_tag("box_pointing", group)].append(scores.pointing)
        for layer in pair.layers:
            reading = pair.reading(layer)
            if reading is not None:
                tag = partial(
                    tags.attention_tag, group=group, layer=layer.layer, trained_on=layer.layer in trained_on
                )
                values[tag("region_mass")].append(reading.mass_after)
                values[tag("enrichment")].append(reading.enrichment_after)
            share = float(pair.after.visual_share[layer.layer].mean())
            values[tags.drift_tag("visual_share", layer.layer)].append(share)
            if layer.drift_jsd_nats is not None:
                values[tags.drift_tag("drift_jsd_nats", layer.layer)].append(layer.drift_jsd_nats)
    return {tag: float(np.mean(of_probes)) for tag, of_probes in values.items()}


def shown_probes(pairs: Sequence[ProbePair], per_group: int = SHOWN_PER_GROUP) -> list[ProbePair]:
    """The first ``per_group`` of each group, in file order: fixed before training, not picked by result."""
    return [pair for group in pairs_by_group(pairs).values() for pair in group[:per_group]]


def picture_tags(pairs: Sequence[ProbePair], per_group: int = SHOWN_PER_GROUP) -> list[str]:
    """Tags of every picture of one step."""
    groups = pairs_by_group(pairs).items()
    return [
        *(tags.strip_tag(name) for name, _ in groups),
        *(
            tags.map_tag(pair.probe.group, pair.probe.id, layer.layer)
            for pair in shown_probes(pairs, per_group)
            for layer in pair.layers
        ),
        *(
            tags.overview_tag(name)
            for name, group in groups
            if any(pair.region is not None for pair in group)
        ),
    ]
