"""Attention between the two ends of a relation, for a probe such as "the cat is on the table".

Each value has a control, since some attention goes everywhere:

    phrase/subject, phrase/object  Float32[all layers, heads]: enrichment of the relation word's row on either end
                                   (times its area's share; both ends must be looked at, so the smaller counts)
    nouns, nouns/swapped           Float32[all layers, heads]: share of the later noun's row on the earlier noun, and
                                   the same with the two nouns exchanged in question and answer
    vision, vision/control         Float32[vision layers, heads]: enrichment, on the object, of the vision tower's
                                   rows of the subject's patches, and on area-matched random regions; a tower that
                                   reads a picture in tiles sees 0 of an object in another tile

The signal is diffuse: order is spread in strips over the background. Box-aligned attention predicts answers about
spatial relations all the same ("AdaptVis: why is spatial reasoning hard for VLMs?", ICML 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import nn

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.head_means import in_all_layers
from diagnostics.measures.attention import enrichment, random_coverages
from diagnostics.measures.geometry import cells_from_row
from diagnostics.probing.prompts import ProbeEncoder, padded, text_spans
from diagnostics.records.probes import Probe, Relation
from finetune.families import Encoded, ImageTokens, bare_model
from finetune.families.parts.coverage import region_coverage
from finetune.families.parts.modules import tower_layers
from finetune.families.parts.phrases import find_span
from finetune.families.parts.processors import picture_settings
from finetune.samples.formats.look_at import composed, whole_words

CONTROLS = 16


class Ends(NamedTuple):
    """Token positions of the relation word's last token, and of the two nouns, earlier first. Each is None if it does
    not appear in question or answer."""

    word: int | None
    nouns: tuple[range, range] | None


def key_vision_layers(count: int) -> tuple[int, ...]:
    """Four of this many layers of the vision tower, evenly spaced, including the last."""
    return tuple(sorted({min(round(quarter * count / 4), count - 1) for quarter in (1, 2, 3, 4)}))


def read_relation(model: nn.Module, reader: ProbeEncoder, probe: Probe) -> dict[str, np.ndarray]:
    """The values of one probe with a relation, from two forwards. Omits what cannot be measured: a word that does not
    appear, a tower whose patches are not the picture's cells."""
    assert probe.relation is not None
    encoded = reader.encode(probe, probe.answer)
    found = _read(model, reader, encoded, probe, vision=True)
    turned = exchanged(probe)
    if "nouns" in found and turned is not None:
        swapped = _read(model, reader, reader.encode(turned, turned.answer), turned, vision=False)
        if "nouns" in swapped:
            found["nouns/swapped"] = swapped["nouns"]
    return {name: values.astype(np.float32) for name, values in found.items()}


def exchanged(probe: Probe) -> Probe | None:
    """The probe with its two nouns exchanged in question and answer; None if one of them has no phrase, or is read
    where it is no word of its own: "cats" cannot become "tables" by exchanging cat and table.

    "Is the cat located on the table?" becomes "Is the table located on the cat?": the same words, the other way round.
    """
    nouns = noun_phrases(probe)
    if nouns is None or not all(_is_word(noun, probe) for noun in nouns):
        return None
    first, second = nouns
    other = {composed(first): second, composed(second): first}
    either = whole_words(
        *sorted(other, key=len, reverse=True)
    )  # the longer first: one may begin with the other

    def turn(text: str) -> str:
        return either.sub(lambda found: other[found[0]], composed(text))

    assert probe.relation is not None
    return replace(
        probe,
        question=turn(probe.question),
        answer=turn(probe.answer),
        phrases={first: probe.relation.subject, second: probe.relation.object},
    )


def _is_word(noun: str, probe: Probe) -> bool:
    """Whether a noun is a whole word in the text in which ``ends_of`` reads it; True if it is in neither."""
    noun = composed(noun)
    text = next((one for one in map(composed, (probe.question, probe.answer)) if noun in one), noun)
    return whole_words(noun).search(text) is not None


def noun_phrases(probe: Probe) -> tuple[str, str] | None:
    """The phrases that name the relation's subject and object."""
    relation = probe.relation
    if relation is None:
        return None
    by_region = {region: phrase for phrase, region in probe.phrases.items()}
    if relation.subject not in by_region or relation.object not in by_region:
        return None
    return by_region[relation.subject], by_region[relation.object]


def ends_of(probe: Probe, nouns: tuple[str, str] | None, encoded: Encoded, texts: Sequence[str]) -> Ends:
    """The positions of word and nouns. The word is searched in the answer first, where it is a claim and not a choice
    offered ("on or under?"); nouns in the question first."""
    assert probe.relation is not None
    question, reply = text_spans(encoded)
    word = find_span(probe.relation.phrase, texts, *reply) or find_span(
        probe.relation.phrase, texts, *question
    )
    if nouns is None:
        return Ends(None if word is None else word[-1], None)
    spans = [find_span(noun, texts, *question) or find_span(noun, texts, *reply) for noun in nouns]
    found = sorted((span for span in spans if span is not None), key=lambda span: span[-1])
    is_pair = len(found) == 2 and found[0][-1] < found[1][0]
    return Ends(None if word is None else word[-1], (found[0], found[1]) if is_pair else None)


def _read(
    model: nn.Module, reader: ProbeEncoder, encoded: Encoded, probe: Probe, *, vision: bool
) -> dict[str, np.ndarray]:
    assert probe.relation is not None
    ends = ends_of(probe, noun_phrases(probe), encoded, reader.texts(encoded))
    places = [ends.word] if ends.word is not None else []
    places += [ends.nouns[1][-1]] if ends.nouns is not None else []
    image = encoded.images[0]
    subject = region_coverage(probe.regions[probe.relation.subject], image)
    patches = np.flatnonzero(subject > 0)
    vision = vision and _sees_cells(model, reader, image)
    layers = key_vision_layers(len(tower_layers(model, reader.family))) if vision else ()
    with AttentionExtractor(
        model,
        None if places else [],
        query_tokens=places,
        images=[0],
        vision_layers=layers,
        tiles=[one.tiles for one in encoded.images],
        vision_tokens=patches.tolist(),
        family=reader.family,
    ) as extractor:
        inputs = padded([encoded], next(model.parameters()).device, left=False)
        model(**inputs, use_cache=False, logits_to_keep=1)
        weights = extractor.attention_weights
        rows = [weights[name][0] for name in extractor.language_names] if places else []
    found: dict[str, np.ndarray] = {}
    if ends.word is not None:
        connector = weights["visual_attn"][0].mean(0) if "visual_attn" in weights else None
        word = cells_from_row(np.stack(rows)[:, :, 0], image, connector)
        for end in ("subject", "object"):
            coverage = region_coverage(probe.regions[getattr(probe.relation, end)], image)
            found[f"phrase/{end}"] = in_all_layers(model, reader.family, enrichment(word, coverage))
    if ends.nouns is not None:
        on_first = np.stack(rows)[:, :, -1, list(ends.nouns[0])].sum(-1)
        found["nouns"] = in_all_layers(model, reader.family, on_first)
    if vision:
        found |= _read_vision(weights, layers, probe, probe.relation, image, subject[patches])
    return found


def _sees_cells(model: nn.Module, reader: ProbeEncoder, image: ImageTokens) -> bool:
    """Whether the tower's patches are the picture's cells. The number alone is ambiguous: a tile of 32 × 32 patches has
    as many as a picture of 2 × 2 tiles has cells if 2 × 2 patches are merged."""
    config = bare_model(model).config
    settings = picture_settings(reader.processor)
    rows, columns = reader.family.image_arithmetic(config, image.image_size_pixels, settings).patches
    return rows * columns == image.grid[0] * image.grid[1]


def _read_vision(
    weights: dict[str, np.ndarray],
    layers: Sequence[int],
    probe: Probe,
    relation: Relation,
    image: ImageTokens,
    subject: Float[np.ndarray, " patches"],
) -> dict[str, np.ndarray]:
    """How much more than its area's share of the subject's view of the picture falls on the object."""
    tower = np.stack(
        [weights[f"vision_layer_{layer}"][0] for layer in layers]
    )  # [layers, heads, patches, cells]
    cells = image.grid[0] * image.grid[1]
    if tower.shape[-1] != cells:
        return {}
    rows = np.einsum("lhpc,p->lhc", tower, subject / subject.sum())
    rows = rows / rows.sum(-1, keepdims=True)
    boxes = probe.regions[relation.object]
    chance = [
        enrichment(rows, one)
        for one in random_coverages(boxes, image, count=CONTROLS, name=probe.id)
        if one.any()
    ]
    return {
        "vision": enrichment(rows, region_coverage(boxes, image)),
        "vision/control": np.mean(chance, axis=0),
    }
