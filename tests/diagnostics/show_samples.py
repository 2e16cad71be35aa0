"""Made-up probes, records and pictures for the tests of what is shown: no model, no square, Chinese and English."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diagnostics.records.probes import Probe, write_probes
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

SIZE = (120, 80)  # width, height of the picture
GRID = (4, 6)  # rows, columns: cells of 20 x 20 pixels
LAYERS = (1, 3)  # key layers, of four
HEADS = 2


def image_tokens() -> ImageTokens:
    """Five resampler queries at positions 3 to 7 over 4 x 6 cells."""
    rows, columns = GRID
    boxes = [[20 * c, 20 * r, 20 * c + 20, 20 * r + 20] for r in range(rows) for c in range(columns)]
    return ImageTokens(np.arange(3, 8), GRID, np.array(boxes, float), SIZE, through_connector=True)


def connector(cell: int, strength: float) -> np.ndarray:
    """Each query reads ``cell`` with ``strength`` and the other cells evenly."""
    cells = GRID[0] * GRID[1]
    row = np.full(cells, (1 - strength) / (cells - 1), np.float32)
    row[cell] = strength
    return np.tile(row, (5, 1))


def record(
    probe: Probe, step: int, *, cell: int, strength: float, margin: float, said: str
) -> AttentionRecord:
    """A record whose attention lies on one cell; ``margin`` nats between answer and foil."""
    rows = np.full((len(LAYERS), HEADS, 1, 12), 1 / 12, np.float32)
    hidden = tuple(
        intervention
        for kind in ("occlusion", "knockout")
        for intervention in [
            Intervention(kind, probe.main_region or "", margin - 1.75 * step / 10, (margin - 0.1,))
        ]
        if probe.main_region is not None
    )
    return AttentionRecord(
        probe_id=probe.id,
        group=probe.group,
        step=step,
        model=f"checkpoint-{step}" if step else "base",
        tokens=tuple("abcdefghijkl"),
        queries=(Query(9, "answer", "东"),),
        layers=LAYERS,
        rows=rows,
        image_tokens=(image_tokens(),),
        connector=(connector(cell, strength),),
        region_mass={name: np.full((4, HEADS), strength, np.float32) for name in probe.regions},
        visual_share=np.full((4, HEADS), 5 / 12, np.float32),
        scores=Scores(-1.0, None if probe.foil is None else -1.0 - margin, said),
        interventions=hidden if probe.foil is not None else (),
        picture_controls=(PictureControl("blank", 0.1 * margin), PictureControl("other", -margin, "another")),
        patches=() if not step else patched(margin),
        patched_from=None if not step else PatchSource("base", 0.5 - margin),  # as ``records`` have it before
    )


def patched(margin: float) -> tuple[PatternPatch, ...]:
    """Half of the change goes with all language layers, most of it with layer 3; little with layer 1."""
    return (
        PatternPatch("language", margin - 2, (0, 1, 2, 3)),
        PatternPatch("key layers", margin - 1.8, LAYERS),
        PatternPatch("layer", margin - 0.2, (1,)),
        PatternPatch("layer", margin - 1.5, (3,)),
        PatternPatch("connector", margin - 0.1),
    )


def probes(folder: Path, *, per_group: int = 3, guards: int = 0) -> list[Probe]:
    """Two groups; the sphere is the cell in row 1, column 2 (number 8). And guards of the first, if asked for."""
    made = []
    groups = [
        ("sphere-building", "这座塔是什么?", "东方明珠", "广州塔"),
        ("retention", "What colour is the sky? <|im_end|>", "blue & <b>bright</b>", "red"),
    ]
    if guards:
        groups.append(("neighbour", "这座塔是什么?", "广州塔", "东方明珠"))
    for group, question, answer, foil in groups:
        for index in range(guards if group == "neighbour" else per_group):
            path = folder / "images" / f"{group}-{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", SIZE, ((40 + 30 * index) % 256, 60 + index, 110 + len(group)))
            ImageDraw.Draw(picture).ellipse((42, 22, 58, 38), fill=(230, 60, 120))
            picture.save(path)
            regions = {"body": ((40.0, 20.0, 60.0, 80.0),), "spheres": ((40.0, 20.0, 60.0, 40.0),)}
            phrases = {answer: "spheres"} if group == "sphere-building" else {}
            made.append(
                Probe(f"{group}-{index}", group, (path,), question, answer, foil, regions, phrases)
                if group == "sphere-building"
                else Probe(f"{group}-{index}", group, (path,), question, answer, foil)
            )
    return made


def records(of: list[Probe], step: int) -> dict[str, AttentionRecord]:
    """Before (step 0): wrong on spheres, looking at cell 20. After: right, half of the attention on the sphere."""
    made = {}
    for index, probe in enumerate(of):
        spheres = probe.group == "sphere-building"
        after = step > 0
        made[probe.id] = record(
            probe,
            step,
            cell=8 if after and spheres else 20,
            strength=0.5,
            margin=(2.0 + index / 10) if after or not spheres else -1.5 - index / 10,
            said=probe.answer if after or not spheres else probe.foil or "",
        )
    return made


def run_folder(
    folder: Path, *, per_group: int = 3, guards: int = 0, steps: tuple[int, ...] = (0, 10)
) -> Path:
    """An attention folder as a run leaves it; returns it."""
    attention = folder / "attention"
    of = probes(folder, per_group=per_group, guards=guards)
    write_probes(of, attention / "probes.json")
    for step in steps:
        for name, made in records(of, step).items():
            made.save(attention / f"step-{step:06d}" / f"{name}.safetensors")
    return attention
