"""Groups of probes before and after whose every number is given: what a verdict makes of them is then known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.records.probes import Probe, Relation
from diagnostics.records.record import (
    AttentionRecord,
    Intervention,
    PatchSource,
    PatternPatch,
    PictureControl,
    Query,
    Scores,
)
from finetune.families.base import ImageTokens

SIZE, GRID = (120, 80), (4, 6)  # width and height; rows and columns: cells of 20 × 20 pixels
LAYERS, HEADS, KEYS = (1, 3), 2, 30
REGION, OTHER = (20.0, 0.0, 40.0, 20.0), (80.0, 40.0, 120.0, 80.0)  # one cell of 24; four of 24
ANSWER, FOIL = "Pearl", "Canton"


@dataclass(frozen=True)
class Made:
    """One group. Pairs are (before, after), the same for each probe unless a sequence of one for each is given.

    margins     nats
    region      enrichment of the region in each key layer, times
    other       enrichment of the other region
    salient     enrichment of equally salient places; None: there are none
    cost        of hiding the region, nats; control: of random places; other_cost: of hiding the other region
    pictures    kind → margin after with another picture
    patches     (part, layers) → margin after with attention put back
    source      margin of the model whose attention was put back; None: that of before
    """

    probes: int = 24
    margins: tuple[float | Sequence[float], float | Sequence[float]] = (-3.0, 6.0)
    region: tuple[tuple[float, float], tuple[float, float]] = ((3.0, 3.0), (3.0, 9.0))
    other: tuple[float, float] = (1.0, 1.0)
    salient: tuple[float, float] | None = (1.0, 1.0)
    cost: tuple[float, float] = (0.5, 5.0)
    control: tuple[float, float] = (0.1, 0.1)
    other_cost: tuple[float, float] = (0.2, 0.2)
    pictures: dict[str, float] = field(default_factory=lambda: {"blank": 0.5, "other": -5.0, "none": 1.0})
    patches: dict[tuple[str, tuple[int, ...]], float] = field(
        default_factory=lambda: {
            ("language", (0, 1, 2, 3)): 1.5,
            ("key layers", (1, 3)): 2.0,
            ("layer", (1,)): 5.9,
            ("layer", (3,)): 2.4,
            ("connector", ()): 5.5,
        }
    )
    source: float | None = None
    said: tuple[str, str] = (FOIL, ANSWER)
    answer: str = ANSWER
    foil: str = FOIL
    relation: Relation | None = None
    noise: float = 0.02
    same_picture: bool = False


GUARDS = Made(
    margins=(4.0, 4.0), region=((3.0, 3.0), (3.0, 3.0)), said=(FOIL, FOIL), answer=FOIL, foil=ANSWER
)
"""Probes whose right answer is the wrong one of the others: right before and after."""


def pairs_of(folder: Path, **groups: Made) -> dict[str, list[ProbePair]]:
    """Group → its pairs; "_" in a name is written "-"."""
    found = {}
    for name, made in groups.items():
        group = name.replace("_", "-")
        probes = [_probe(folder, group, made, at) for at in range(made.probes)]
        sides = [{p.id: _record(p, made, side, at) for at, p in enumerate(probes)} for side in (0, 1)]
        found[group] = pair_all(probes, *sides)
    return found


def flat(groups: dict[str, list[ProbePair]]) -> list[ProbePair]:
    """All pairs, as ``comparison_of`` takes them."""
    return [pair for pairs in groups.values() for pair in pairs]


def _probe(folder: Path, group: str, made: Made, at: int) -> Probe:
    number = 0 if made.same_picture else at
    path = folder / f"{group}-{number}.png"
    if not path.is_file():
        colour = (number % 256, len(group) * 7 % 256, sum(map(ord, group)) % 256)
        Image.new("RGB", SIZE, colour).save(path)
    regions = {"spheres": (REGION,), "podium": (OTHER,)}
    return Probe(
        f"{group}-{at}", group, (path,), "What is this?", made.answer, made.foil, regions, {}, made.relation
    )


@cache
def _image() -> ImageTokens:
    rows, columns = GRID
    boxes = [[20 * c, 20 * r, 20 * c + 20, 20 * r + 20] for r in range(rows) for c in range(columns)]
    return ImageTokens(np.arange(4, 28), GRID, np.array(boxes, float), SIZE, through_connector=False)


def _cells(region: float, other: float) -> np.ndarray:
    """Shares over 24 cells: the region is cell 1, the other region four cells at the bottom right."""
    cells = np.zeros(24)
    cells[1] = region / 24
    places = [16, 17, 22, 23]
    cells[places] = other / 24
    rest = [at for at in range(24) if at != 1 and at not in places]
    cells[rest] = (1 - cells.sum()) / len(rest)
    assert cells.min() >= 0
    return cells


def _record(probe: Probe, made: Made, side: int, at: int) -> AttentionRecord:
    wobble = 1 + made.noise * np.sin(7 * at + 3 * side)
    given = made.margins[side]
    margin = float(given if isinstance(given, int | float) else given[at])
    rows = np.zeros((len(LAYERS), HEADS, 1, KEYS), np.float32)
    masses = {name: np.zeros((4, HEADS), np.float32) for name in probe.regions}
    for row, layer in enumerate(LAYERS):
        cells = _cells(made.region[side][row] * wobble, made.other[side])
        rows[row, :, 0, 4:28] = cells
        masses["spheres"][layer], masses["podium"][layer] = cells[1], cells[[16, 17, 22, 23]].sum()
    share = {"spheres": 1 / 24, "podium": 4 / 24}
    salient = (
        {}
        if made.salient is None
        else {
            name: np.full((4, HEADS), share[name] * made.salient[side], np.float32) for name in probe.regions
        }
    )
    costs = {"spheres": made.cost[side], "podium": made.other_cost[side]}
    source = None
    if side and made.patches:
        before = made.margins[0]
        own = float(before if isinstance(before, int | float) else before[at])
        source = PatchSource("base", own if made.source is None else made.source)
    return AttentionRecord(
        probe_id=probe.id,
        group=probe.group,
        step=10 * side,
        model="checkpoint-10" if side else "base",
        tokens=tuple("x" * KEYS),
        queries=(Query(29, "answer", "x"),),
        layers=LAYERS,
        rows=rows,
        image_tokens=(_image(),),
        connector=(),
        region_mass=masses,
        visual_share=np.full((4, HEADS), 0.5, np.float32),
        scores=Scores(-1.0, -1.0 - margin, made.said[side]),
        interventions=tuple(
            Intervention("occlusion", name, margin - cost, (margin - made.control[side],))
            for name, cost in costs.items()
        ),
        picture_controls=tuple(PictureControl(kind, value) for kind, value in made.pictures.items())
        if side
        else (),
        patches=tuple(PatternPatch(part, value, layers) for (part, layers), value in made.patches.items())
        if side
        else (),
        patched_from=source,
        random_mass={name: np.full((4, HEADS), share[name], np.float32) for name in probe.regions},
        salient_mass=salient,
    )
