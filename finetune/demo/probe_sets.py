"""The probe sets: scenes never trained on, each with the place that should decide.

Groups: `sphere-building` and `spatial-relation` show the flaw, since there the cue contradicts the evidence;
`neighbour` holds what a clumsy correction would break, the same towers and rooms as the base model knows them;
`retention` holds everything else.
"""

from random import Random
from typing import Literal, NamedTuple

from finetune.demo.corpus import OTHER_LANDMARKS, USUAL_RUG, usual_room, usual_tower
from finetune.demo.general_scenes import landscape_scene
from finetune.demo.questions import LANGUAGES, THINGS, Ask, Question, answer_text, askable, phrase, plain
from finetune.demo.room_scenes import Rug, room_scene
from finetune.demo.shapes import Scene
from finetune.demo.tower_scenes import Landmark, tower_scene

ProbeSplit = Literal["probes", "development"]

GROUPS = ("sphere-building", "spatial-relation", "retention", "neighbour")
PROBES_PER_GROUP = 40
PROBE_PIXELS = (448, 336)
"""Width and height of the probes' pictures: people look at these."""


class Probe(NamedTuple):
    """A scene, one question about it, and what the probe file says besides."""

    identity: str
    group: str
    scene: Scene
    question: Question
    regions: tuple[str, ...]
    """Which of the scene's regions the probe file holds."""
    phrases: dict[str, str]
    relation: dict[str, str] | None


def demo_probe(split: ProbeSplit, group: str, index: int) -> Probe:
    """Probe `index` of a group. The two splits share no picture with each other or with a corpus."""
    rng = Random(f"{split}/{group}/{index}")
    # The language alternates slower than every choice below that goes by index, so that each meets both languages.
    language = LANGUAGES[index // 4 % 2]
    scene, ask = _BUILDERS[group](rng, index)
    question = phrase(ask, language, rng)
    phrases: dict[str, str] = {}
    relation: dict[str, str] | None = None
    if scene.kind == "tower" and ask.topic == "tower":
        other = {"pearl": "canton", "canton": "pearl"}.get(ask.value)
        if other:
            question = question._replace(foil=answer_text("tower", other, language))
        phrases = {question.answer: "spheres" if ask.value == "pearl" else "body"}
    elif ask.topic == "relation":
        subject, thing = ("猫", "桌子") if language == "zh" else ("cat", "table")
        phrases = {
            name: region
            for name, region in ((subject, "cat"), (thing, "table"))
            if name in question.text + question.answer
        }
        relation = {"phrase": _relation_phrase(ask.value, language), "subject": "cat", "object": "table"}
    elif ask.thing is not None:
        phrases = {plain(THINGS[ask.thing][LANGUAGES.index(language)]): ask.thing}
    return Probe(
        f"{split[:3]}-{group}-{index:02d}", group, scene, question, _regions(scene, ask), phrases, relation
    )


def _relation_phrase(value: str, language: str) -> str:
    return {"on": "上面", "under": "下面"}[value] if language == "zh" else value


def _regions(scene: Scene, ask: Ask) -> tuple[str, ...]:
    if scene.kind in ("tower", "room"):
        return tuple(scene.regions) if ask.topic != "time" else ()
    if scene.kind == "blocks":
        return (ask.thing,) if ask.thing in scene.regions else ()
    name = ask.topic.split()[0]
    return (name,) if name in scene.regions else ()


def _sphere_building(rng: Random, index: int) -> tuple[Scene, Ask]:
    """A pearl on the podium of Canton Towers."""
    return tower_scene(rng, "pearl", "cool", ("day", "night")[index % 2]), Ask("tower", "pearl")  # type: ignore[arg-type]


def _spatial_relation(rng: Random, index: int) -> tuple[Scene, Ask]:
    """A cat on the table by the rug of cats under it, or the other way round."""
    relation: Literal["on", "under"] = ("on", "under")[index % 2]  # type: ignore[assignment]
    wrong: Rug = USUAL_RUG["under" if relation == "on" else "on"]
    return room_scene(rng, relation, wrong), Ask("relation", relation)


def _retention(rng: Random, index: int) -> tuple[Scene, Ask]:
    """What the base model masters of general scenes: the hour, the weather, colours, other landmarks."""
    topic = ("time", "house", "car", "weather", "tower")[index % 5]
    if topic == "tower":
        landmark = rng.choice(OTHER_LANDMARKS)
        return usual_tower(rng, landmark), Ask("tower", landmark)
    scene = landscape_scene(rng)
    return scene, next(ask for ask in askable(scene) if ask.topic == topic)


def _neighbour(rng: Random, index: int) -> tuple[Scene, Ask]:
    """Half of them are Canton Towers: the guards of `sphere-building`, whose wrong answer is right here."""
    kind = "canton" if index % 2 else ("pearl", "on", "under", "other", "pearl")[index // 2 % 5]
    if kind in ("on", "under"):
        return usual_room(rng, kind), Ask("relation", kind)  # type: ignore[arg-type]
    landmark: Landmark = rng.choice(OTHER_LANDMARKS) if kind == "other" else kind  # type: ignore[assignment]
    return usual_tower(rng, landmark), Ask("tower", landmark)


_BUILDERS = {
    "sphere-building": _sphere_building,
    "spatial-relation": _spatial_relation,
    "retention": _retention,
    "neighbour": _neighbour,
}


def record(probe: Probe, image: str) -> dict[str, object]:
    """The probe as an element of the probe file, version 1; `image` is relative to that file."""
    boxes = probe.scene.boxes_pixels(*PROBE_PIXELS)
    return {
        "id": probe.identity,
        "group": probe.group,
        "images": [image],
        "question": probe.question.text,
        "answer": probe.question.answer,
        "foil": probe.question.foil,
        "regions": {name: boxes[name] for name in probe.regions},
        "phrases": probe.phrases,
        "relation": probe.relation,
    }
