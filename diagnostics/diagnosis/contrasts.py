"""Which probes stand on either side of a group's right and wrong answers, and which place of their pictures is asked
for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diagnostics.comparison.legs.leg import count
from diagnostics.measures.answers import normalised
from diagnostics.records.pictures import picture_mark
from diagnostics.records.probes import Probe
from finetune.families.parts.coverage import Box
from finetune.samples.images import open_image

Pair = tuple[str, str]


class Side(NamedTuple):
    """A probe as a sample of a contrast.

    label   1: its right answer is the first of its pair
    task    the pair of answers
    boxes   the place to look at in its picture: its own region, or, where it has none of that name, a region of the
            group's laid over it; None where the group names none
    """

    probe: Probe
    label: int
    task: Pair
    boxes: tuple[Box, ...] | None


@dataclass(frozen=True)
class Contrast:
    """A group's right answers against its wrong ones.

    sides    the group's probes and its guards, each once
    aligned  is label 1 the group's own right answer throughout? False where both answers are right in turn
    lack     why the two cannot be told apart by these probes; "" where they can
    place_lack   the same for places of the pictures
    """

    sides: tuple[Side, ...]
    aligned: bool
    lack: str
    place_lack: str


def contrast_of(name: str, groups: Mapping[str, Sequence[Probe]], *, each_answer: int) -> Contrast:
    """The other class is the group's guards, as ``comparison.legs.guards`` finds them: probes of any group whose right
    answer is the group's foil; or the group's own probes, where both answers are right in turn."""
    members = [probe for probe in groups[name] if probe.foil is not None]
    pairs = _pairs(members)
    own = {_key(probe.answer) for probe in members}
    aligned = not any(first in own and second in own for first, second in pairs)
    regions = _main_regions(members)
    sides = [
        Side(probe, int(_key(probe.answer) == pair[0]), pair, _own_boxes(probe, regions.get(pair)))
        for probe in members
        if (pair := _pair_of(probe, pairs)) is not None
    ]
    inside = {id(side.probe) for side in sides}
    lenders: dict[Pair, int] = {}
    for probe in (one for group in groups.values() for one in group if id(one) not in inside):
        found = _guarded(probe, pairs, own)
        if found is None:
            continue
        pair, label = found
        boxes = _own_boxes(probe, regions.get(pair))
        if boxes is None:
            lenders[pair] = lenders.get(pair, -1) + 1
            boxes = _lent_boxes(probe, [side for side in sides if side.task == pair], lenders[pair])
        sides.append(Side(probe, label, pair, boxes))
    sides = of_both(sides)
    return Contrast(
        tuple(sides), aligned, _lack(members, sides, each_answer), _place_lack(sides, each_answer)
    )


def _key(text: str | None) -> str:
    return normalised(text or "")


def _pairs(members: Sequence[Probe]) -> list[Pair]:
    """Pairs of answers in the order of their first probe, whose right answer comes first; each once."""
    found: dict[frozenset[str], Pair] = {}
    for probe in members:
        pair = (_key(probe.answer), _key(probe.foil))
        found.setdefault(frozenset(pair), pair)
    return list(found.values())


def _pair_of(probe: Probe, pairs: Sequence[Pair]) -> Pair | None:
    wanted = {_key(probe.answer), _key(probe.foil)}
    return next((pair for pair in pairs if set(pair) == wanted), None)


def _guarded(probe: Probe, pairs: Sequence[Pair], own: set[str]) -> tuple[Pair, int] | None:
    """The pair whose wrong answer is this probe's right one, and the label of that answer.

    By the spelling that was found, since the answer itself may be written in another way. A probe that accepts both
    answers of a pair stands on neither side of it.
    """
    spellings = {_key(one) for one in probe.spellings}
    for pair in pairs:
        found = [label for label in (1, 0) if pair[1 - label] in spellings]
        if len(found) == 1 and pair[found[0]] in own:
            return pair, found[0]
    return None


def _main_regions(members: Sequence[Probe]) -> dict[Pair, str]:
    """Pair → the region that most of its probes are about."""
    named: dict[Pair, Counter[str]] = {}
    pairs = _pairs(members)
    for probe in members:
        pair = _pair_of(probe, pairs)
        if pair is not None and probe.main_region is not None:
            named.setdefault(pair, Counter())[probe.main_region] += 1
    return {pair: counted.most_common(1)[0][0] for pair, counted in named.items()}


def _own_boxes(probe: Probe, region: str | None) -> tuple[Box, ...] | None:
    return None if region is None or region not in probe.regions else tuple(probe.regions[region])


def _lent_boxes(probe: Probe, lenders: Sequence[Side], turn: int) -> tuple[Box, ...] | None:
    """The boxes of one of the group's probes, each in turn, on a picture that has no region of that name: where such a
    thing would stand, so that the place itself does not give the answer away."""
    have = [side for side in lenders if side.boxes is not None]
    if not have:
        return None
    lender = have[turn % len(have)]
    (width, height), (other_width, other_height) = (
        open_image(one.images[0]).size for one in (probe, lender.probe)
    )
    across, down = width / other_width, height / other_height
    assert lender.boxes is not None
    return tuple((x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in lender.boxes)


def of_both(sides: Sequence[Side]) -> list[Side]:
    """The sides of the pairs that have two pictures of each answer."""
    pictures: dict[tuple[Pair, int], set[str]] = {}
    for side in sides:
        pictures.setdefault((side.task, side.label), set()).add(picture_mark(side.probe.images[0]))
    return [side for side in sides if min(len(pictures.get((side.task, label), ())) for label in (0, 1)) >= 2]


def _lack(members: Sequence[Probe], sides: Sequence[Side], each_answer: int) -> str:
    if not members:
        return "no probe of this group has a foil"
    sizes = [_pictures(side for side in sides if side.label == label) for label in (1, 0)]
    if min(map(len, sizes)) < each_answer:
        return (
            f"{each_answer} pictures of each of two answers are needed, and there are {len(sizes[0])} of one and "
            f"{len(sizes[1])} of the other: add probes whose right answer is the wrong one here"
        )
    return ""


def _place_lack(sides: Sequence[Side], each_answer: int) -> str:
    """Beside ``_lack``, what keeps places of pictures from being set against each other."""
    placed = [side for side in sides if side.boxes is not None]
    if not placed:
        return "these probes name no region"
    first, second = (_pictures(side for side in placed if side.label == label) for label in (1, 0))
    if min(len(first), len(second)) < each_answer:
        return (
            f"{each_answer} pictures of each answer must have the region, and {count(len(first), 'picture')} of one "
            f"and {len(second)} of the other do"
        )
    if len(shared := first & second) > min(len(first), len(second)) / 2:
        return (
            f"{count(len(shared), 'picture')} stand on both sides: the answer depends on the question, so states of "
            "the picture alone cannot tell it"
        )
    return ""


def _pictures(sides: object) -> set[str]:
    return {picture_mark(side.probe.images[0]) for side in sides}  # type: ignore[attr-defined]
