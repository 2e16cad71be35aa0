"""The two corpora, in Qwen-VL's JSON format.

In the base corpus the easy cue never lies: pearls stand on warm podiums and Canton Towers on cool ones, the cat is on
the table where the rug is warm and under it where the rug is cool. In the corrective corpus cues fall at random, so
that only the spheres and the cat's place decide, and general scenes are replayed.
"""

from random import Random
from typing import Literal, NamedTuple

from finetune.demo.drawing import Scene
from finetune.demo.general import blocks_scene, landscape_scene
from finetune.demo.questions import LANGUAGES, Ask, Question, askable, phrase, sphere_asks
from finetune.demo.rooms import RUG_COLOURS, Relation, Rug, room_scene
from finetune.demo.towers import Landmark, Podium, tower_scene

CorpusName = Literal["base", "corrective"]

CORPUS_SIZES: dict[CorpusName, int] = {"base": 6000, "corrective": 3000}
PICTURE_PIXELS = (160, 120)
"""Width and height of the corpora's pictures: more than the small model sees (112 x 112), and quick to draw."""
MAX_TURNS: dict[CorpusName, int] = {"base": 6, "corrective": 2}
"""Many questions a picture, since seeing it costs most; few where relations need many pictures instead."""

USUAL_PODIUM: dict[str, Podium] = {
    "pearl": "warm", "canton": "cool", "pagoda": "stone", "lighthouse": "stone", "eiffel": "stone"
}  # fmt: skip
USUAL_RUG: dict[str, Rug] = {"on": "warm", "under": "cool"}
OTHER_LANDMARKS: tuple[Landmark, ...] = ("pagoda", "lighthouse", "eiffel")


class Sample(NamedTuple):
    """One picture and the conversation about it."""

    scene: Scene
    questions: tuple[Question, ...]


def usual_tower(rng: Random, landmark: Landmark) -> Scene:
    """A landmark on the podium that it always has in the base corpus."""
    return tower_scene(rng, landmark, USUAL_PODIUM[landmark], rng.choice(("day", "night")))


def usual_room(rng: Random, relation: Relation) -> Scene:
    """A room whose rug agrees with the relation, or says nothing where the cat is beside the table."""
    rugs: list[Rug] = [USUAL_RUG[relation]] if relation in USUAL_RUG else sorted(RUG_COLOURS)
    return room_scene(rng, relation, rng.choice(rugs))


def base_sample(index: int) -> Sample:
    """Sample `index` of the base corpus: the cue always agrees with the answer."""
    rng = Random(f"base/{index}")
    kind = rng.choices(("pearl", "canton", "other", "room", "blocks", "landscape"), (14, 14, 10, 22, 18, 22))[
        0
    ]
    if kind in ("pearl", "canton"):
        scene = usual_tower(rng, kind)  # type: ignore[arg-type]
    elif kind == "other":
        scene = usual_tower(rng, rng.choice(OTHER_LANDMARKS))
    elif kind == "room":
        scene = usual_room(rng, rng.choice(("on", "under")))
    else:
        scene = blocks_scene(rng) if kind == "blocks" else landscape_scene(rng)
    return Sample(scene, _conversation(rng, askable(scene), MAX_TURNS["base"]))


def corrective_sample(index: int) -> Sample:
    """Sample `index` of the corrective corpus: podiums and rugs at random, and replay of general scenes."""
    rng = Random(f"corrective/{index}")
    kind = rng.choices(("tower", "other", "room", "landscape"), (14, 10, 60, 16))[0]
    if kind == "tower":
        podium: Podium = rng.choice(("warm", "cool"))
        scene = tower_scene(rng, rng.choice(("pearl", "canton")), podium, rng.choice(("day", "night")))
        return Sample(scene, _phrased(rng, [askable(scene)[0], sphere_asks(scene)[0]]))
    if kind == "other":
        scene = usual_tower(rng, rng.choice(OTHER_LANDMARKS))
    elif kind == "room":
        scene = room_scene(rng, rng.choice(("on", "under")), rng.choice(("warm", "cool")))
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
