"""AttentionRecord: what one model did with one probe, enough to redraw and remeasure it without the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from finetune.families.base import ImageTokens


class Query(NamedTuple):
    """A token whose attention row is kept.

    position   index in the sequence of the token that looks
    label      "answer" (the row that predicts the first token where answer and foil differ), or the probe's
               phrase: "phrase:东方明珠"
    text       the token it predicts (answer) or reads (phrase)
    """

    position: int
    label: str
    text: str


@dataclass(frozen=True)
class Scores:
    """What the model made of the probe's answer.

    answer_nats   log p(answer | prompt), summed over its tokens, nats
    foil_nats     the same of the wrong answer; None where the probe has no foil
    generated     the model's own greedy answer, "" where it was not asked
    """

    answer_nats: float
    foil_nats: float | None
    generated: str

    @property
    def margin_nats(self) -> float | None:
        return None if self.foil_nats is None else self.answer_nats - self.foil_nats


class Intervention(NamedTuple):
    """The margin after something was taken away. ``kind`` is "occlusion" or "knockout"; ``region`` names it;
    ``control_margins_nats`` are the margins after the same was done to area-matched random regions."""

    kind: str
    region: str
    margin_nats: float
    control_margins_nats: tuple[float, ...]


@dataclass(frozen=True)
class AttentionRecord:
    """One probe at one moment of one model.

    probe_id, group        as in the probe file
    step                   global training step, 0 is the baseline
    model                  words for a person: folder or name of the checkpoint
    tokens                 text of each token of prompt + answer, len = keys
    queries                the kept rows, len = rows.shape[2]; the first is the answer query
    layers                 indices of the key language layers, len = rows.shape[0]
    rows                   Float32[layers, heads, queries, keys], each row sums to 1
    image_tokens           one for each image of the probe
    connector              one Float32[image tokens, cells] for each image (mean over the connector's heads),
                           or () where the family has no attending connector
    region_mass            region name → Float32[all layers, heads]: share of the answer query's attention to
                           the image that lies on the region, range [0, 1]
    visual_share           Float32[all layers, heads]: attention of the answer query on image tokens, [0, 1]
    scores, interventions  what was answered, and what hiding or masking a region did to it
    """

    probe_id: str
    group: str
    step: int
    model: str
    tokens: tuple[str, ...]
    queries: tuple[Query, ...]
    layers: tuple[int, ...]
    rows: np.ndarray
    image_tokens: tuple[ImageTokens, ...]
    connector: tuple[np.ndarray, ...]
    region_mass: dict[str, np.ndarray]
    visual_share: np.ndarray
    scores: Scores
    interventions: tuple[Intervention, ...] = field(default=())
