"""Two models' records of a random probe file, on disk, as noisy and as incomplete as real ones are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diagnostics.records.probes import Probe, Relation, write_probes
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

GRIDS = ((4, 6), (5, 3), (3, 7))  # rows and columns
CELL = (20.0, 16.0)  # width and height, pixels
EVERY, HEADS, TEXT = 6, 3, 7  # language layers, heads, tokens of text
QUERIES = 5  # tokens of a resampler
SIDES = ("before", "after")
KINDS = ("occlusion", "knockout", "tower knockout")


@dataclass(frozen=True)
class Group:
    """One group of a random run. Pairs are (before, after).

    probes, pictures   how many; fewer pictures than probes: some are shared
    margins            means, nats; spread: standard deviation of both
    gain               by what factor attention on the judged region rises in each key layer
    cost               share of the margin that hiding the judged region costs
    carried            share of the margin's change that goes with each patched part, at most
    missing            chance that a probe lacks a measurement
    said               chance that a generated answer is the right one
    trained            how many probes' pictures are in the training data
    told               layers whose attention was trained on, on the pictures of so many probes, and in the resampler
    """

    name: str
    probes: int = 24
    pictures: int = 24
    margins: tuple[float, float] = (-3.0, 5.0)
    spread: float = 2.0
    gain: tuple[float, float, float] = (1.2, 3.0, 1.0)
    cost: tuple[float, float] = (0.1, 0.8)
    other_cost: tuple[float, float] = (0.6, 0.1)
    carried: float = 0.6
    missing: float = 0.0
    said: tuple[float, float] = (0.1, 0.95)
    answer: str = "Pearl"
    foil: str | None = "Canton"
    regions: tuple[str, ...] = ("spheres", "podium", "sky")
    related: bool = False
    trained: int = 0
    told: tuple[tuple[int, ...], int, bool] = ((), 0, False)


@dataclass(frozen=True)
class Layout:
    """What all records of a run share. ``layers`` are the key layers; attention has no map in layer ``blind``."""

    grid: tuple[int, int]
    connector: bool
    overview: bool
    sinks: bool
    layers: tuple[int, ...] = (1, 3, 4)
    blind: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        return round(self.grid[1] * CELL[0]), round(self.grid[0] * CELL[1])


def saved_run(folder: Path, groups: Sequence[Group], seed: int) -> Path:
    """Write ``probes.json``, ``before/ID.safetensors`` and ``after/ID.safetensors``; returns the folder."""
    rng = np.random.default_rng(seed)
    layout = Layout(
        grid=GRIDS[seed % len(GRIDS)],
        connector=seed % 3 == 1,
        overview=seed % 3 == 2,
        sinks=seed % 2 == 0,
        blind=0 if seed % 2 else None,
    )
    probes = []
    for group in groups:
        for at in range(group.probes):
            probe = _probe(folder, group, layout, at, rng)
            probes.append(probe)
            for side, record in zip(SIDES, _records(probe, group, layout, rng), strict=True):
                record.save(folder / side / f"{probe.id}.safetensors")
    write_probes(probes, folder / "probes.json")
    return folder


def _probe(folder: Path, group: Group, layout: Layout, at: int, rng: np.random.Generator) -> Probe:
    number = at % group.pictures
    path = folder / f"{group.name}-{number}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (layout.size[1], layout.size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
    places: dict[str, tuple[tuple[float, float, float, float], ...]] = {}
    for name in group.regions:
        boxes = [_box(layout, rng) for _ in range(1 + (rng.random() < 0.3))]  # they may overlap
        places[name] = tuple(boxes)
    if "tower" in group.regions:  # what contains the judged region
        x0, y0, x1, y1 = places[group.regions[0]][0]
        places["tower"] = (
            (max(x0 - 9, 0), max(y0 - 7, 0), min(x1 + 11, layout.size[0]), min(y1 + 13, layout.size[1])),
        )
    relation = Relation("on", *group.regions[:2]) if group.related else None
    return Probe(
        f"{group.name}-{at}",
        group.name,
        (path,),
        "What is this?",
        group.answer,
        group.foil,
        places,
        {},
        relation,
        (group.answer, f"{group.answer} Tower"),
    )


def _box(layout: Layout, rng: np.random.Generator) -> tuple[float, float, float, float]:
    width, height = layout.size
    wide, high = rng.uniform(14, width / 2), rng.uniform(11, height / 2)
    x0, y0 = rng.uniform(0, width - wide), rng.uniform(0, height - high)
    return round(x0, 2), round(y0, 2), round(x0 + wide, 2), round(y0 + high, 2)


def _image(layout: Layout) -> ImageTokens:
    rows, columns = layout.grid
    boxes = [
        [CELL[0] * c, CELL[1] * r, CELL[0] * (c + 1), CELL[1] * (r + 1)]
        for r in range(rows)
        for c in range(columns)
    ]
    tokens = QUERIES if layout.connector else rows * columns
    overview = None
    if layout.overview:
        across, down = layout.size[0] / 2, layout.size[1] / 2
        halves = [
            [across * c, down * r, across * (c + 1), down * (r + 1)] for r in range(2) for c in range(2)
        ]
        places = np.arange(2 + tokens, 6 + tokens)
        overview = ImageTokens(places, (2, 2), np.array(halves), layout.size, through_connector=False)
    return ImageTokens(
        np.arange(2, 2 + tokens), layout.grid, np.array(boxes), layout.size, layout.connector, (), overview
    )


def _records(
    probe: Probe, group: Group, layout: Layout, rng: np.random.Generator
) -> tuple[AttentionRecord, AttentionRecord]:
    image = _image(layout)
    keys = TEXT + len(image.all_positions)
    cells = layout.grid[0] * layout.grid[1]
    base = rng.gamma(0.6, 1, (len(layout.layers), HEADS, 2, keys)) + 1e-3
    gains = np.ones((2, len(layout.layers)))
    if probe.regions:
        gains[1] = np.array(group.gain) * np.exp(rng.normal(0, 0.5, len(layout.layers)))
    if rng.random() < 0.05:
        gains[1] = 1.0  # nothing changed
    read = rng.dirichlet(np.full(cells, 0.4), QUERIES).astype(np.float32) if layout.connector else None
    favoured = _favoured(probe, image, read)
    steady = bool((gains[1] == 1).all())
    shared = {name: rng.uniform(0.05, 0.4, (EVERY, HEADS)) for name in probe.regions}
    scored = [rng.normal(group.margins[side], group.spread) for side in range(2)]
    found = []
    for side in range(2):
        rows = base.copy()
        if not steady:
            rows *= np.exp(rng.normal(0, 0.15, rows.shape))
        rows[..., image.positions] *= 1 + favoured * (gains[side][:, None, None, None] - 1)
        rows /= rows.sum(-1, keepdims=True)
        found.append(_record(probe, group, layout, image, rows, read, shared, scored, side, rng))
    return found[0], found[1]


def _favoured(probe: Probe, image: ImageTokens, read: np.ndarray | None) -> np.ndarray:
    """1 for tokens whose cell's centre lies in the judged region, 0 for others (a resampler's: some)."""
    if probe.main_region is None:
        return np.zeros(len(image.positions))
    x, y = image.cell_boxes_pixels[:, [0, 2]].mean(1), image.cell_boxes_pixels[:, [1, 3]].mean(1)
    inside = np.zeros(len(x))
    for x0, y0, x1, y1 in probe.regions[probe.main_region]:
        inside = np.maximum(inside, (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1))
    if read is None:
        return inside
    weight = read @ inside
    return (weight >= np.median(weight)).astype(float) if weight.any() else weight


def _record(
    probe: Probe,
    group: Group,
    layout: Layout,
    image: ImageTokens,
    rows: np.ndarray,
    read: np.ndarray | None,
    shared: dict[str, np.ndarray],
    margins: Sequence[float],
    side: int,
    rng: np.random.Generator,
) -> AttentionRecord:
    margin = float(margins[side])

    def has() -> bool:
        return rng.random() >= group.missing

    def masses(noise: float, gain: float) -> dict[str, np.ndarray]:
        values = {
            name: (np.minimum(one * gain * np.exp(rng.normal(0, noise, one.shape)), 0.99)).astype(np.float32)
            for name, one in shared.items()
        }
        if layout.blind is not None:
            for one in values.values():
                one[layout.blind] = np.nan
        return values

    every = (EVERY, HEADS)
    visual = rng.uniform(0.3, 0.6, every).astype(np.float32)
    entropy, logit = (rng.uniform(low, high, every).astype(np.float32) for low, high in ((0.2, 0.9), (5, 40)))
    if layout.blind is not None:
        visual[layout.blind] = entropy[layout.blind] = logit[layout.blind] = np.nan
    said = group.answer if rng.random() < group.said[side] else (group.foil or "no idea")
    cells = layout.grid[0] * layout.grid[1]
    foil = None if group.foil is None else -1.0 - margin
    number = int(probe.id.rpartition("-")[2])
    return AttentionRecord(
        probe_id=probe.id,
        group=probe.group,
        step=10 * side,
        model="checkpoint-10" if side else "base",
        tokens=tuple("x" * rows.shape[-1]),
        queries=(Query(rows.shape[-1] - 1, "answer", "x"), Query(1, "phrase:it", "it")),
        layers=layout.layers,
        rows=rows.astype(np.float32),
        image_tokens=(image,),
        connector=() if read is None else (read,),
        region_mass=masses(0.25, group.gain[1] if side else 1.0),
        visual_share=visual,
        scores=Scores(-1.0, foil, f"It is the {said}."),
        interventions=_interventions(probe, group, layout, margin, side, rng) if foil is not None else (),
        picture_controls=_controls(margin, has, rng) if side and foil is not None else (),
        patches=_patches(group, layout, margins, rng) if side and foil is not None and group.carried else (),
        trained_picture=side == 1 and number < group.trained,
        supervised_layers=group.told[0] if side else (),
        supervised_picture=side == 1 and number < group.told[1],
        supervised_connector=side == 1 and group.told[2],
        patched_from=(
            PatchSource("base", margins[0] + rng.normal(0, 0.01))
            if side and foil is not None and group.carried
            else None
        ),
        random_mass=masses(0.1, 1.0) if has() or group.missing < 0.3 else {},
        salient_mass=masses(0.1, 1.0) if has() else {},
        sinks=rng.random((len(layout.layers), rows.shape[-1])) < 0.1 if layout.sinks else np.zeros((0, 0)),
        region_mass_without_sinks=masses(0.2, 1.5 if side else 1.0) if layout.sinks and has() else {},
        head_entropy=entropy,
        highest_logit=logit,
        maps={
            "relative": rng.normal(0, 1, (len(layout.layers), cells)).astype(np.float32),
            "rollout": rng.random((1, cells)).astype(np.float32),
        }
        if has()
        else {},
        relation={
            name: rng.random((EVERY, HEADS)).astype(np.float32)
            for name in ("phrase/subject", "phrase/object")
        }
        if probe.relation
        else {},
        curves={"deletion": rng.normal(0, 2, 7).astype(np.float32)} if foil is not None and has() else {},
    )


def _interventions(
    probe: Probe, group: Group, layout: Layout, margin: float, side: int, rng: np.random.Generator
) -> tuple[Intervention, ...]:
    found = []
    kinds = [kind for kind in KINDS if rng.random() >= group.missing]
    skipped = (
        int(probe.id.rpartition("-")[2]) % 3 == 2 and group.missing > 0
    )  # the same regions on both sides
    for name in [name for name in probe.regions if not skipped or name != "podium"]:
        share = group.cost[side] if name == probe.main_region else group.other_cost[side]
        for kind in kinds:
            controls = tuple(margin - rng.normal(0.1, 0.3) for _ in range(1 + side))
            left = margin - share * abs(margin) - rng.normal(0, 0.5)
            found.append(Intervention(kind, name, left, controls))
        if name == probe.main_region and "knockout" in kinds:
            for layer in layout.layers:
                left = margin - rng.normal(0.3, 0.5)
                found.append(Intervention("knockout", name, left, (margin - 0.1,), (layer - 1, layer + 1)))
    return tuple(found)


def _controls(margin: float, has: Callable[[], bool], rng: np.random.Generator) -> tuple[PictureControl, ...]:
    lost = {"blank": 0.7, "other": 1.8, "none": 0.8}
    return tuple(
        PictureControl(kind, margin * (1 - share) + rng.normal(0, 0.8), "p" if kind == "other" else "")
        for kind, share in lost.items()
        if has()
    )


def _patches(
    group: Group, layout: Layout, margins: Sequence[float], rng: np.random.Generator
) -> tuple[PatternPatch, ...]:
    every = tuple(range(EVERY)) if layout.blind is None else tuple(range(1, EVERY))
    parts = [("language", every, 1.0), ("key layers", layout.layers, 0.7)]
    parts += [("layer", (layer,), 0.4 * (layer == layout.layers[1])) for layer in layout.layers]
    parts += [("connector", (), 0.1)] if layout.connector else []
    change = margins[1] - margins[0]
    return tuple(
        PatternPatch(part, margins[1] - change * group.carried * share + rng.normal(0, 0.4), layers)
        for part, layers, share in parts
    )
