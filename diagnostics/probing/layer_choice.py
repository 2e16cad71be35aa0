"""Chooses key layers and heads on the untrained model, on probes that no verdict uses, then freezes them.

Fixed layers (8, 16, 24, 31) do not work: the layers that read the picture differ from model to model, and choosing
after training by the largest change would be circular. So each layer is tested before training: does it attend to the
named regions more than to area-matched random ones?
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diagnostics.measures.statistics import (
    benjamini_hochberg,
    effect_size,
    head_tests,
    relative_change,
    sign_flip_p,
    signed_rank_direction,
)
from diagnostics.records.pictures import names_by_picture, picture_mark
from diagnostics.records.probes import ENOUGH_PROBES, KEPT_SHARE, Probe, groups_of
from diagnostics.records.record import AttentionRecord
from finetune import fields
from finetune.families.parts.coverage import region_coverage
from finetune.fields import NULL, TEXT, TRUTH, items, number, one_of, whole
from finetune.files import write_atomically

VERSION = 1
LAYERS_WANTED = 4
"""At most, and never more than half of a model's layers."""
HEADS_WANTED = 10
SIGNIFICANT = 0.05
LEAST_PROBES = 12
"""Correct answers with a region needed to choose: the sign flips of 12 differences reach p = 1/2,048."""
HELD_OUT = 5  # one image in five is held out for calibration unless calibration probes are given


REMEDY = f"not a calibration of version {VERSION}: delete it to calibrate again"
LISTS = ("layers", "probes", "enrichment", "by_chance", "p_adjusted")
SHAPE = {
    "version": one_of(VERSION), "layers": items(whole(0)), "heads": items(items(whole(0), 2)), "chosen": TRUTH,
    "probes": items(TEXT), "enrichment": items(number(0) | NULL), "by_chance": items(number(0) | NULL),
    "p_adjusted": items(number(0, 1) | NULL), "why": TEXT,
}  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """The chosen layers and heads, and why.

    layers        key layers, in order
    heads         (layer, head) with the most attention on named regions, best first
    chosen        False if no layer stood out or probes were too few, so that layers are evenly spaced
    probes        ids of the probes used; no verdict may use them
    enrichment    for each language layer: enrichment of the region, mean over heads and probes. Not that of the layer's
                  map, in which a head counts by how much it sees of the picture;
                  None, here and below, for a layer without an attention map
    by_chance     the same for area-matched random regions
    p_adjusted    for each language layer: p of that difference, Benjamini-Hochberg over layers
    why           one sentence
    """

    layers: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    chosen: bool
    probes: tuple[str, ...]
    enrichment: tuple[float | None, ...]
    by_chance: tuple[float | None, ...]
    p_adjusted: tuple[float | None, ...]
    why: str

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        content = {"version": VERSION, **asdict(self)}
        write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what ``save`` wrote.

        Raises FileNotFoundError, and ValueError naming the file if it holds anything else.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path}: no calibration there")
        content = fields.load(path, SHAPE, required=tuple(SHAPE), remedy=REMEDY)
        unknown = [name for name in content if name not in SHAPE]
        lists: dict[str, Any] = {name: tuple(content[name]) for name in LISTS}
        found = cls(
            heads=tuple((int(layer), int(head)) for layer, head in content["heads"]),
            chosen=content["chosen"],
            why=content["why"],
            **lists | {"layers": tuple(map(int, content["layers"]))},
        )
        counts = {len(found.enrichment), len(found.by_chance), len(found.p_adjusted)}
        fields.refuse(
            [
                *(f"{name}: found a field that no calibration has" for name in unknown),
                *(["layers: found none, or one of them twice"] if not _are_layers(found.layers) else []),
                *(
                    ["enrichment, by_chance, p_adjusted: found other numbers of layers"]
                    if len(counts) > 1
                    else []
                ),
            ],
            str(path),
            REMEDY,
        )
        return found


def _are_layers(layers: Sequence[int]) -> bool:
    return bool(layers) and len(set(layers)) == len(layers)


def held_out(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """The probes to calibrate on, held out from a file that is also judged: every fifth picture, the same on every
    machine. Empty if a group would keep too few for a verdict.

    Probes of one picture stay together, since a second probe on a picture is not independent evidence.
    """
    names = names_by_picture(probes)
    pictures = sorted(names, key=lambda mark: (zlib.crc32(names[mark].encode()), names[mark]))
    taken = set(pictures[::HELD_OUT])
    for name, members in groups_of(probes).items():
        own = {*names_by_picture(members)}
        if name not in KEPT_SHARE and len(own - taken) < ENOUGH_PROBES <= len(own):
            return ()
    chosen = tuple(probe for probe in probes if picture_mark(probe.images[0]) in taken)
    return chosen if sum(bool(probe.regions) for probe in chosen) >= LEAST_PROBES else ()


def check_apart(calibration: Sequence[Probe], judged: Sequence[Probe]) -> None:
    """Checks that no picture serves both calibration and verdicts, under one name or as a copy.

    Raises ValueError naming a shared picture.
    """
    first, second = ({picture_mark(one.images[0]): one for one in given} for given in (calibration, judged))
    if both := [mark for mark in first if mark in second]:
        own, other = (given[both[0]].images[0].resolve() for given in (first, second))
        copied = "" if own == other else f", the same picture as {other}"
        raise ValueError(
            f"calibration probes: {len(both)} of their pictures are also among the probes (such as {own}{copied}); "
            "expected other pictures, remove them from one of the files"
        )


def calibrate(
    probes: Sequence[Probe], records: Mapping[str, AttentionRecord], *, evenly: Sequence[int]
) -> Calibration:
    """Choose key layers and heads from the untrained model's records of calibration probes.

    Layers: up to four (or half of them) whose attention on the probe's region, mean over heads, is above that on
    area-matched random regions with adjusted p < .05, by effect size. Heads: up to ten by the same test over all layers
    and heads, among those that look at the picture at all (visual share above the elbow of all heads: Kang et al.,
    "Your large vision-language model only needs a few attention heads for visual grounding", CVPR 2025). Probes that
    the model answers right are used, or all if those are fewer than 12: a model that errs may well look elsewhere.

    ``evenly``: the layers to use if none can be chosen, which ``chosen`` and ``why`` then record.
    """
    usable = [(probe, records[probe.id]) for probe in probes if probe.main_region is not None]
    right = [one for one in usable if (one[1].scores.margin_nats or 0.0) > 0]
    used = right if len(right) >= LEAST_PROBES else usable
    names = tuple(probe.id for probe in probes)
    if len(used) < LEAST_PROBES:
        words = (
            f"{len(used)} probes with a region are too few to choose layers, {LEAST_PROBES} are needed"
            if probes
            else f"no probe was set aside to choose layers on, since {ENOUGH_PROBES} pictures a group must be left to "
            f"judge and {LEAST_PROBES} with a region chosen on; more probes, or calibration probes of their own "
            "(--calibration_probes), change that"
        )
        why = f"{words}: they are evenly spaced."
        return Calibration(tuple(evenly), (), False, names, (), (), (), why)
    pictures = [picture_mark(probe.images[0]) for probe, _ in used]
    region = np.stack([_enrichment(probe, record, record.region_mass) for probe, record in used])
    random = np.stack([_enrichment(probe, record, record.random_mass) for probe, record in used])
    attending = np.flatnonzero(np.isfinite(region).all((0, 2)))  # the others have no attention map
    region, random = region[:, attending], random[:, attending]
    gain = (region - random).mean(-1)  # [probes, layers]
    chance = benjamini_hochberg(np.array([sign_flip_p(one, pictures) for one in gain.T]))
    effects = [effect_size(one, pictures) or 0.0 for one in gain.T]
    most = max(1, min(LAYERS_WANTED, gain.shape[1] // 2))
    # The test sums over probes and the effect is of pictures' means: pictures of many probes may set them apart.
    stands = (chance < SIGNIFICANT) & (gain.mean(0) > 0) & (np.array(effects) > 0)
    found = np.flatnonzero(stands).tolist()
    best = sorted(int(attending[place]) for place in sorted(found, key=lambda place: -effects[place])[:most])
    share = np.stack([record.visual_share for _, record in used]).mean(0)[attending]
    heads = tuple((int(attending[at]), head) for at, head in _heads(region, random, pictures, share))
    of = "answered right" if used is right else "of any answer"
    if best:
        why = (
            f"Layers {', '.join(map(str, best))} look at the named regions more than at random ones of their size, "
            f"in the mean of their heads, most significantly of all {gain.shape[1]} (measured before training on "
            f"{len(used)} probes {of}, which no verdict uses)."
        )
    else:
        why = (
            f"No layer looks at the named regions more than at random ones of their size ({len(used)} probes {of}): "
            "the layers are evenly spaced."
        )
    return Calibration(
        tuple(best) or tuple(evenly),
        heads,
        bool(best),
        names,
        _by_number(region.mean((0, 2)), attending),
        _by_number(random.mean((0, 2)), attending),
        _by_number(chance, attending),
        why,
    )


def _by_number(values: np.ndarray, attending: np.ndarray) -> tuple[float | None, ...]:
    """One for each layer up to the last that attends; None if a layer has no attention map."""
    found = dict(zip(attending.tolist(), values.tolist(), strict=True))
    return tuple(found.get(layer) for layer in range(int(attending[-1]) + 1))


def _heads(
    region: Float[np.ndarray, "probes layers heads"],
    random: Float[np.ndarray, "probes layers heads"],
    pictures: Sequence[str],
    share: Float[np.ndarray, "layers heads"],
) -> tuple[tuple[int, int], ...]:
    chance = benjamini_hochberg(head_tests(random, region, pictures))
    gain = region - random
    effect = gain.mean(0) / np.maximum(gain.std(0, ddof=1), 1e-12)
    looks = (share > elbow(share.ravel())) | (share.min() == share.max())
    toward = (effect > 0) & (signed_rank_direction(relative_change(random, region), pictures) > 0)
    stands = (chance < SIGNIFICANT) & toward & looks
    order = np.argsort(-np.where(stands, effect, -np.inf), axis=None, kind="stable")[: int(stands.sum())]
    places = np.unravel_index(order[:HEADS_WANTED], effect.shape)
    return tuple((int(layer), int(head)) for layer, head in zip(*places, strict=True))


def elbow(values: Float[np.ndarray, " n"]) -> float:
    """Where sorted values stop being small: the value farthest below the line from the smallest to the largest.

    [0, 0, 0, .1, .9, 1] gives .1; values on one line give the smallest. Satopää et al. 2011, "Finding a kneedle in a
    haystack".
    """
    ordered = np.sort(values)
    line = np.linspace(ordered[0], ordered[-1], len(ordered))
    return float(ordered[int(np.argmax(line - ordered))])


def _enrichment(
    probe: Probe, record: AttentionRecord, masses: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "layers heads"]:
    assert probe.main_region is not None
    coverage = region_coverage(probe.regions[probe.main_region], record.image_tokens[0])
    return masses[probe.main_region].astype(np.float64) / coverage.mean()
