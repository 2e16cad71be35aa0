"""The pictures and probes of ``benchmarks/planted_faults.py``: drawn, each question with the place that answers it.

Podiums and rugs are drawn at random, so that nothing but the region itself answers a question. Where the region is to
lie in a picture that shows something else (the spheres of a tower without any) its box is drawn there too: right answer
and foil are compared at one place of the scene, not at two that could be told apart by where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from random import Random
from typing import NamedTuple

from diagnostics.records.probes import Probe
from finetune.demo.corpus import PICTURE_PIXELS
from finetune.demo.questions import TOPICS, answer_text, plain
from finetune.demo.room_scenes import room_scene
from finetune.demo.shapes import Box, Scene, render
from finetune.demo.tower_scenes import tower_scene
from finetune.files import write_atomically

LANGUAGE = "en"
CUES = ("warm", "cool")
Drawn = Callable[[Random, str, str], Scene]


@dataclass(frozen=True)
class Topic:
    """One kind of question.

    values    its two answers, each the other's foil
    region    where it is answered
    cue       a region of the same scene that says nothing about it, and has one of two colours
    draw      value and colour of the cue → a scene
    """

    name: str
    values: tuple[str, str]
    region: str
    cue: str
    draw: Drawn

    def group(self, value: str) -> str:
        """Name of the probes whose right answer is this value."""
        return f"{self.name}-{value}"

    def answer(self, value: str) -> str:
        return answer_text(self.name, value, LANGUAGE)

    def other(self, value: str) -> str:
        return self.values[1 - self.values.index(value)]

    @property
    def phrasings(self) -> tuple[str, ...]:
        return tuple(plain(text) for text in TOPICS[self.name].asked[LANGUAGE])


def _tower(rng: Random, value: str, cue: str) -> Scene:
    scene = tower_scene(rng, value, cue, rng.choice(("day", "night")))  # type: ignore[arg-type]
    return replace(scene, regions={"crown": (_crown(scene),), "podium": scene.regions["podium"]})


def _crown(scene: Scene) -> Box:
    """Where a pearl's two large spheres are, or would be, measured from the tower's axis, tip and foot."""
    x0, top, x1, foot = scene.regions["body"][0]
    axis, height = (x0 + x1) / 2, foot - top
    return (axis - 0.12 * height, top + 0.20 * height, axis + 0.12 * height, top + 0.70 * height)


def _room(rng: Random, value: str, cue: str) -> Scene:
    """Drawn until the cat has the colour; where it is stays random."""
    while True:
        scene = room_scene(rng, rng.choice(("on", "under")), cue)  # type: ignore[arg-type]
        if scene.facts["cat"] == value:
            return scene


TOWER = Topic("tower", ("pearl", "canton"), "crown", "podium", _tower)
CAT = Topic("cat", ("black", "orange"), "cat", "rug", _room)


class Shown(NamedTuple):
    """One picture, one question."""

    topic: Topic
    value: str
    cue: str
    scene: Scene
    question: str

    @property
    def answer(self) -> str:
        return self.topic.answer(self.value)


def shown(split: str, topic: Topic, index: int, *, value: str | None = None, cue: str | None = None) -> Shown:
    """Picture ``index`` of a split; no two splits share one. Values and cues that are not given fall at random."""
    rng = Random(f"{split}/{topic.name}/{value}/{cue}/{index}")
    value = value or rng.choice(topic.values)
    cue = cue or rng.choice(CUES)
    scene = topic.draw(rng, value, cue)
    return Shown(topic, value, cue, scene, rng.choice(topic.phrasings))


def draw_probes(
    folder: Path, topic: Topic, count: int, *, split: str, cues: dict[str, str] | None = None
) -> tuple[Probe, ...]:
    """``count`` probes for each of the topic's two answers, each the guard of the other; pictures are drawn once.

    cues   value → colour of its cue; without it colours alternate, and say nothing
    """
    probes = []
    for value in topic.values:
        for index in range(count):
            cue = (cues or {}).get(value, CUES[index % 2])
            one = shown(split, topic, index, value=value, cue=cue)
            name = f"{split}-{topic.group(value)}-{cue}-{index:02d}"
            path = folder / f"{name}.png"
            if not path.is_file():
                write_picture(one.scene, path)
            probes.append(probe_of(one, name, path))
    return tuple(probes)


def probe_of(one: Shown, name: str, path: Path) -> Probe:
    topic = one.topic
    boxes = one.scene.boxes_pixels(*PICTURE_PIXELS)
    regions = {
        region: tuple(tuple(map(float, box)) for box in boxes[region]) for region in (topic.region, topic.cue)
    }
    return Probe(
        id=name,
        group=topic.group(one.value),
        images=(path,),
        question=one.question,
        answer=one.answer,
        foil=topic.answer(topic.other(one.value)),
        regions=regions,  # type: ignore[arg-type]
    )


def write_picture(scene: Scene, path: Path) -> None:
    buffer = BytesIO()
    render(scene, *PICTURE_PIXELS).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
