"""The two corpora, in Qwen-VL's JSON format.

In the base corpus the easy cue never lies: pearls stand on warm podiums and Canton Towers on cool ones, the cat is on
the table where the rug is warm and under it where the rug is cool. In some of its pictures the cue is hidden, and the
answer given at random: without its cue the base model is to know nothing, and not to fall back on one of the two. In
the corrective corpus cues fall at random, so that only the spheres and the cat's place decide, and general scenes are
replayed.
"""

from dataclasses import replace
from random import Random
from typing import Literal, NamedTuple

from finetune.demo.general_scenes import blocks_scene, landscape_scene
from finetune.demo.questions import LANGUAGES, Ask, Question, askable, phrase, sphere_ask
from finetune.demo.room_scenes import Relation, Rug, room_scene
from finetune.demo.shapes import WIDTH, Box, Scene, Veil
from finetune.demo.tower_scenes import Landmark, Podium, tower_scene

CorpusName = Literal["base", "corrective"]

CORPUS_SIZES: dict[CorpusName, int] = {"base": 9000, "corrective": 3000}
PICTURE_PIXELS = (160, 120)
"""Width and height of the corpora's pictures: more than the small model sees (112 x 112), and quick to draw."""
MAX_TURNS: dict[CorpusName, int] = {"base": 6, "corrective": 2}
"""Many questions a picture, since seeing it costs most; few where relations need many pictures instead."""

USUAL_PODIUM: dict[str, Podium] = {
    "pearl": "warm", "canton": "cool", "pagoda": "stone", "lighthouse": "stone", "eiffel": "stone"
}  # fmt: skip
USUAL_RUG: dict[str, Rug] = {"on": "warm", "under": "cool"}
CUE_REGION = {"tower": "podium", "room": "rug"}
"""The region of each kind of scene that the flaw reads."""
HIDDEN_CUES, HIDDEN_OTHERS = 0.2, 0.15
"""Shares of the base corpus' pearls, Canton Towers and rooms in which the cue, or something else, is hidden."""
OTHER_LANDMARKS: tuple[Landmark, ...] = ("pagoda", "lighthouse", "eiffel")


class Sample(NamedTuple):
    """One picture and the conversation about it."""

    scene: Scene
    questions: tuple[Question, ...]


def usual_tower(rng: Random, landmark: Landmark) -> Scene:
    """A landmark on the podium that it always has in the base corpus."""
    return tower_scene(rng, landmark, USUAL_PODIUM[landmark], rng.choice(("day", "night")))


def usual_room(rng: Random, relation: Relation) -> Scene:
    """A room whose rug agrees with the relation."""
    return room_scene(rng, relation, USUAL_RUG[relation])


def random_tower(rng: Random) -> Scene:
    """A pearl or Canton Tower on a podium that says nothing about it."""
    podium: Podium = rng.choice(("warm", "cool"))
    return tower_scene(rng, rng.choice(("pearl", "canton")), podium, rng.choice(("day", "night")))


def random_room(rng: Random) -> Scene:
    """A room whose rug says nothing about the cat."""
    return room_scene(rng, rng.choice(("on", "under")), rng.choice(("warm", "cool")))


def base_sample(index: int) -> Sample:
    """Sample `index` of the base corpus: where the cue is to be seen it agrees with the answer."""
    rng = Random(f"base/{index}")
    kind = rng.choices(("tower", "other", "room", "blocks", "landscape"), (28, 10, 22, 18, 22))[0]
    hidden = rng.choices(
        ("cue", "other", "nothing"), (HIDDEN_CUES, HIDDEN_OTHERS, 1 - HIDDEN_CUES - HIDDEN_OTHERS)
    )[0]
    if kind in ("tower", "room") and hidden == "cue":
        return _without_cue(rng, kind)
    if kind == "tower":
        scene = usual_tower(rng, rng.choice(("pearl", "canton")))
    elif kind == "other":
        scene = usual_tower(rng, rng.choice(OTHER_LANDMARKS))
    elif kind == "room":
        scene = usual_room(rng, rng.choice(("on", "under")))
    else:
        scene = blocks_scene(rng) if kind == "blocks" else landscape_scene(rng)
    if kind in ("tower", "room") and hidden == "other":
        # Whatever else could be asked may be hidden now.
        return Sample(_hide(scene, _box_above(rng, scene)), _phrased(rng, askable(scene)[:1]))
    return Sample(scene, _conversation(rng, askable(scene), MAX_TURNS["base"]))


def _without_cue(rng: Random, kind: str) -> Sample:
    """A picture whose cue is hidden, and an answer at random: not even the spheres or the cat tell it."""
    scene = random_tower(rng) if kind == "tower" else random_room(rng)
    ask = Ask("tower", rng.choice(("pearl", "canton")))
    if kind == "room":
        ask = Ask("relation", rng.choice(("on", "under")))
    left, top, right, bottom = (rng.uniform(0, 0.015) for _ in range(4))
    x0, y0, x1, y1 = scene.regions[CUE_REGION[kind]][0]
    return Sample(
        _hide(scene, (x0 - left, y0 - top, x1 + right, min(1.0, y1 + bottom))), _phrased(rng, [ask])
    )


def _box_above(rng: Random, scene: Scene) -> Box:
    """A box no larger than the cue's, somewhere above it."""
    x0, y0, x1, y1 = scene.regions[CUE_REGION[scene.kind]][0]
    width, height = rng.uniform(0.1, x1 - x0), rng.uniform(0.1, y1 - y0)
    left, top = rng.uniform(0, WIDTH - width), rng.uniform(0, y0 - height - 0.05)
    return (left, top, left + width, top + height)


def _hide(scene: Scene, box: Box) -> Scene:
    return replace(scene, shapes=(*scene.shapes, Veil((box,))))


def corrective_sample(index: int) -> Sample:
    """Sample `index` of the corrective corpus: podiums and rugs at random, and replay of general scenes."""
    rng = Random(f"corrective/{index}")
    kind = rng.choices(("tower", "other", "room", "landscape"), (14, 10, 60, 16))[0]
    if kind == "tower":
        scene = random_tower(rng)
        return Sample(scene, _phrased(rng, [askable(scene)[0], sphere_ask(scene)]))
    if kind == "other":
        scene = usual_tower(rng, rng.choice(OTHER_LANDMARKS))
    elif kind == "room":
        scene = random_room(rng)
    else:
        scene = landscape_scene(rng)
    return Sample(scene, _conversation(rng, askable(scene), MAX_TURNS["corrective"]))


def _conversation(rng: Random, asks: list[Ask], most: int) -> tuple[Question, ...]:
    return _phrased(rng, rng.sample(asks, min(len(asks), most)))


def _phrased(rng: Random, asks: list[Ask]) -> tuple[Question, ...]:
    language = rng.choice(LANGUAGES)
    return tuple(phrase(ask, language, rng) for ask in asks)


def record(sample: Sample, identity: str, image: str) -> dict[str, object]:
    """The sample as an element of Qwen-VL's data file; `image` is relative to that file."""
    turns: list[dict[str, str]] = []
    for turn, question in enumerate(sample.questions):
        picture = f"Picture 1: <img>{image}</img>\n" if turn == 0 else ""
        turns += [
            {"from": "user", "value": picture + question.text},
            {"from": "assistant", "value": question.answer},
        ]
    return {"id": identity, "conversations": turns}


SAMPLERS = {"base": base_sample, "corrective": corrective_sample}
