"""What each station of a model holds of a probe: the region and the background in the tower, in the image tokens, and
the state that the answer is read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.capture.stations import Stations
from diagnostics.diagnosis.patches import patches_of_cells, rows_of_patches
from diagnostics.probing.processes import in_processes, parted, worthwhile
from diagnostics.probing.prompts import EncodedProbe, ProbeEncoder, padded
from diagnostics.probing.regions import region_tokens
from diagnostics.records.probes import Probe
from finetune.families import Encoded, Family, ImageTokens, bare_model, family_of
from finetune.families.parts.coverage import Box, region_coverage
from finetune.families.parts.modules import language_layers, tower_layers
from finetune.model.untouched import untouched

Regions = Mapping[str, Sequence[Box]]
Blocks = tuple[np.ndarray, ...]
USUAL = 16
"""Pictures, at most, from which it is taken how a resampler's tokens usually read a picture."""
TOGETHER = 8
"""Probes, at most, between two moves of the progress bar."""
GREY = (128, 128, 128)
"""Of blank pictures: one for all, since the mean colour of a picture may tell what it shows."""


class Place(NamedTuple):
    """States of one place of a picture, as blocks of mean states, Float32[width] each.

    region      of the cells that the region covers, by how much
    background  of the cells that no named region touches; None where there are none
    """

    region: Blocks
    background: Blocks | None


@dataclass(frozen=True)
class Features:
    """A probe's states.

    tower      what the connector is given; None where its rows cannot be told apart by cell, or no place was asked for
    tokens     the image tokens as the language model gets them; None where no place was asked for
    answer     of the answer query: what enters the last two language layers, and what the words are read from
    words      ids of the tokens up to the answer query, those of the pictures left out
    blank      as ``answer``, with grey pictures: what the words alone leave there; None where that was not read
    """

    tower: Place | None
    tokens: Place | None
    answer: Blocks
    words: tuple[int, ...] = ()
    blank: Blocks | None = None


class Asked(NamedTuple):
    """A probe, the boxes of the place to look at (None: none), and all boxes that are no background; ``blank``: with
    grey pictures of the same sizes in the place of its own."""

    probe: Probe
    boxes: Sequence[Box] | None
    named: Sequence[Box]
    blank: bool = False


def features_of(
    model: nn.Module,
    processor: Any,
    asked: Sequence[Asked],
    *,
    family: Family | None = None,
    progress: bool = False,
) -> list[Features]:
    """One forward a probe, and before a resampler ``USUAL`` more; the model is left as it was.

    A small model on a CPU is forked into processes that share the probes out (``diagnostics.probing.processes``).

    Raises ValueError naming the probe whose region covers no cell.
    """
    bare = bare_model(model)
    family = family or family_of(bare.config)
    reader = ProbeEncoder(family, processor)
    last = len(language_layers(bare, family)) - 1
    layers = sorted({0, max(last - 1, 0), last})
    processes = worthwhile(bare, len(asked))
    bar = tqdm(
        total=len(asked), desc="reading hidden states", unit="probe", disable=not progress, leave=False
    )
    with (
        bar,
        untouched(bare),
        AttentionExtractor(bare, [], family=family) as extractor,
        HiddenStates(bare, layers, sequences=[0], family=family) as states,
        Stations(bare, family=family) as stations,
    ):
        run = _Forward(bare, family, extractor, states, stations, layers)
        if family.paths.connector_attention is not None:
            placed = [one.probe for one in asked if one.boxes is not None]
            chosen = placed[:: -(-len(placed) // USUAL)] if placed else []
            run = run._replace(connector=run.usual_connector([reader.read(probe) for probe in chosen]))

        def read(part: Sequence[Asked]) -> list[Features]:
            return [run.features(_read(reader, one), one) for one in part]

        found: list[Features] = []
        parts = parted(asked, processes, most=TOGETHER)
        for some in in_processes(read, parts, processes=processes) if processes > 1 else map(read, parts):
            found += some
            bar.update(len(some))
        return found


def _read(reader: ProbeEncoder, asked: Asked) -> EncodedProbe:
    """The probe with the pictures asked for. The reply stands as far behind blank ones, which have the same sizes."""
    read = reader.read(asked.probe)
    if not asked.blank:
        return read
    pictures = [Image.new("RGB", one.image_size_pixels, GREY) for one in read.answer.images]
    return read._replace(answer=reader.encode(asked.probe, asked.probe.answer, images=pictures))


class _Forward(NamedTuple):
    model: nn.Module
    family: Family
    extractor: AttentionExtractor
    states: HiddenStates
    stations: Stations
    layers: Sequence[int]
    connector: Float[np.ndarray, "tokens cells"] | None = None

    def usual_connector(self, read: Sequence[EncodedProbe]) -> Float[np.ndarray, "tokens cells"] | None:
        """How a resampler's tokens share their attention out over a picture, mean over these; None without a picture.

        Which tokens stand for a place must not depend on the picture: tokens that were the same for every picture told
        93 % of two answers, by which of them were taken.
        """
        device = next(self.model.parameters()).device
        found = []
        for one in read:
            if one.answer.images:
                inputs = padded([one.answer], device, left=False)
                self.model(**inputs, use_cache=False, logits_to_keep=1)
                found.append(self.extractor.attention_weights["visual_attn"][0].mean(0))
        return np.mean(found, axis=0) if found else None

    def features(self, read: EncodedProbe, asked: Asked) -> Features:
        encoded, place = read.answer, read.queries[0].position
        device = next(self.model.parameters()).device
        self.stations.clear()
        self.extractor.query_tokens = [place]
        keep = len(encoded.input_ids) - place
        self.model(**padded([encoded], device, left=False), use_cache=False, logits_to_keep=keep)
        hidden = self.states.hidden_states
        head = self.stations.head_input
        assert head is not None
        answer = [hidden[f"layer_{layer}"][0, place] for layer in self.layers[-2:]]
        answer.append(head[-keep].float().cpu().numpy())
        found = Features(None, None, tuple(answer), _words(encoded, place))
        if asked.boxes is None or not encoded.images:
            return found
        tokens = self._tokens(encoded, asked, hidden["layer_0"][0])
        return replace(found, tower=self._tower(encoded, asked), tokens=tokens)

    def _tower(self, encoded: Encoded, asked: Asked) -> Place | None:
        given = self.stations.connector_input
        if given is None:
            return None
        rows = given.reshape(-1, given.shape[-1])
        blocks = [
            (_numbers(rows[torch.from_numpy(of_cells).to(rows.device)]).mean(1), view)
            for of_cells, view in cell_rows(self.model, self.family, self.stations, encoded)
        ]
        return _placed(blocks, asked) if blocks else None

    def _tokens(self, encoded: Encoded, asked: Asked, hidden: Float[np.ndarray, "tokens width"]) -> Place:
        image = encoded.images[0]
        states = [hidden, *(self._deep(encoded, one, hidden) for one in self.stations.deep)]
        if image.through_connector:
            assert asked.boxes is not None
            return Place(
                *(
                    tuple(one[region_tokens(image, boxes, self.connector)].mean(0) for one in states)
                    for boxes in (asked.boxes, _elsewhere(image, asked))
                )
            )
        views = [view for view in (image, image.overview) if view is not None]
        return _placed([(one[view.positions], view) for one in states for view in views], asked)

    def _deep(self, encoded: Encoded, added: Tensor, hidden: np.ndarray) -> np.ndarray:
        """What a connector adds further up, by place in the sequence; its rows are the image tokens in their order."""
        positions = np.sort(np.concatenate([one.all_positions for one in encoded.images]))
        found = np.zeros((len(hidden), added.shape[-1]), np.float32)
        found[positions] = _numbers(added)
        return found


def cell_rows(
    model: nn.Module, family: Family, stations: Stations, encoded: Encoded
) -> list[tuple[Int[np.ndarray, "cells patches"], ImageTokens]]:
    """Which rows of what the connector was given stand for each cell of the first picture: for its own cells, and for
    its overview's where it has one. Left out where it cannot be told (tiles whose tokens were pooled).

    stations   after the model's forward over ``encoded``
    """
    given = stations.connector_input
    assert given is not None
    views = len(given) if given.ndim == 3 else 1
    count = given.numel() // given.shape[-1]
    inputs = {**stations.tower_inputs, "tiles": [one.tiles for one in encoded.images], "images_before": 0}
    sequences = family.tower_sequences(model.config, tower_layers(model, family)[-1], inputs)
    image, found = encoded.images[0], []
    for number, view in ((0, image), (len(encoded.images), image.overview)):
        if view is None:
            continue
        rows = rows_of_patches(sequences, number, count, views)
        cells = None if rows is None else patches_of_cells(view, len(rows), _run(encoded, view, len(rows)))
        if rows is not None and cells is not None and cells.max() < len(rows):
            found.append((rows[cells], view))
    return found


def _placed(blocks: Sequence[tuple[np.ndarray, ImageTokens]], asked: Asked) -> Place:
    """Means over the region's cells and over the background's, of each block of states of cells."""
    assert asked.boxes is not None
    region, background = [], []
    for states, view in blocks:
        covered = region_coverage(asked.boxes, view)
        if not covered.any():
            raise ValueError(
                f"probe {asked.probe.id}: its region covers no cell of the picture; give a box that covers a part of it"
            )
        region.append(covered @ states / covered.sum())
        free = region_coverage(asked.named, view) == 0
        if free.any():
            background.append(states[free].mean(0))
    return Place(tuple(region), tuple(background) if len(background) == len(region) else None)


def _elsewhere(image: ImageTokens, asked: Asked) -> list[Box]:
    """The cells that no named region touches, as boxes; the whole picture where there are none."""
    free = region_coverage(asked.named, image) == 0
    return [tuple(box) for box in image.cell_boxes_pixels[free if free.any() else ~free]]


def _run(encoded: Encoded, view: ImageTokens, patches: int) -> int | None:
    """Where the unbroken run of one id begins that the view's tokens lie in, if it has as many as there are patches:
    or one more, a newline's."""
    ids, at = encoded.input_ids, int(view.positions[0])
    other = np.flatnonzero(ids != ids[at])
    before, after = other[other < at], other[other > at]
    begin = int(before[-1]) + 1 if len(before) else 0
    end = int(after[0]) if len(after) else len(ids)
    return begin if view.tiles is None and 0 <= end - begin - patches <= 1 else None


def _words(encoded: Encoded, place: int) -> tuple[int, ...]:
    """Ids of the tokens up to ``place``, without those of pictures: line breaks and margins come with their size."""
    is_word = np.ones(place + 1, bool)
    for image in encoded.images:
        own = np.concatenate([image.all_positions, image.margin_positions])
        is_word[own.min() : own.max() + 1] = False
    return tuple(encoded.input_ids[: place + 1][is_word].tolist())


def _numbers(states: Tensor) -> np.ndarray:
    return states.float().cpu().numpy()
