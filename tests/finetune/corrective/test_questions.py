"""Pictures with boxes → questions: geometry, names, sentences, and who is held out; by hand-made scenes."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from finetune.corrective import building_questions, general_questions, relation_questions, user_templates
from finetune.corrective.box_relations import OPPOSITE, RELATIONS, holds
from finetune.corrective.category_names import COCO, Name, Names, read_names
from finetune.corrective.sampling import (
    Asked,
    beyond_draw,
    draw,
    for_probes,
    for_training,
    guessed_from_words,
    hold_out,
    topics_of,
)
from finetune.corrective.scenes import AnnotatedBox, Question, Scene

# --- geometry --------------------------------------------------------------------------------------------------------

CAT, BENCH = (100, 100, 200, 200), (80, 190, 300, 300)


@pytest.mark.parametrize(
    ("relation", "a", "b", "expected"),
    [
        # 40 wide each; they may overlap by 2, and share 10 of 40 in height.
        ("left of", (0, 0, 40, 40), (50, 0, 90, 40), True),
        ("left of", (0, 0, 40, 40), (38, 30, 78, 70), True),
        ("left of", (0, 0, 40, 40), (37, 30, 77, 70), None),
        ("left of", (0, 0, 40, 40), (50, 31, 90, 71), None),
        ("left of", (50, 0, 90, 40), (0, 0, 40, 40), False),
        ("right of", (50, 0, 90, 40), (0, 0, 40, 40), True),
        # 20 high: 2 between them, and 10 of 40 in width.
        ("above", (0, 0, 40, 20), (0, 22, 40, 42), True),
        ("above", (0, 0, 40, 20), (0, 21, 40, 41), None),
        ("above", (0, 0, 40, 20), (30, 22, 70, 42), True),
        ("above", (0, 0, 40, 20), (31, 22, 71, 42), None),
        ("above", (0, 22, 40, 42), (0, 0, 40, 20), False),
        ("below", (0, 22, 40, 42), (0, 0, 40, 20), True),
        ("on", CAT, BENCH, True),
        ("above", CAT, BENCH, None),
        # A bench of 190 to 300: the bottom is at most at 190 + 82.5, and 10 over its top.
        ("on", (100, 172, 200, 272), BENCH, True),
        ("on", (100, 173, 200, 273), BENCH, None),
        ("on", (100, 80, 200, 180), BENCH, True),
        ("on", (100, 79, 200, 179), BENCH, None),
        # 80 of 100 lie over it, or 79.
        ("on", (60, 100, 160, 200), BENCH, True),
        ("on", (59, 100, 159, 200), BENCH, None),
        ("on", (310, 100, 410, 200), BENCH, False),
        ("on", (309, 100, 409, 200), BENCH, None),
        ("on", (100, 320, 200, 380), BENCH, False),  # below it
        ("inside", (20, 20, 40, 40), (10, 10, 60, 50), True),
        ("inside", (4, 20, 24, 40), (8, 10, 60, 50), True),  # 16 of 20
        ("inside", (3, 20, 23, 40), (8, 10, 60, 50), None),
        ("inside", (10, 10, 55, 50), (10, 10, 60, 50), None),  # as large as what it would be in
        ("inside", (70, 20, 90, 40), (10, 10, 60, 50), False),
        ("inside", (60, 20, 80, 40), (10, 10, 60, 50), None),
        ("next to", (0, 0, 40, 50), (60, 10, 100, 60), True),
        ("next to", (0, 0, 40, 50), (61, 10, 101, 60), None),
        ("next to", (0, 0, 40, 50), (60, 11, 100, 61), None),  # their bottoms are not on a level
        ("next to", (0, 0, 40, 50), (120, 0, 160, 50), False),
        ("next to", (0, 0, 40, 50), (39, 0, 79, 50), None),
    ],
)
def test_relations_by_hand(relation, a, b, expected):
    assert holds(relation, a, b) is expected


def test_relations_of_chance_boxes_agree_with_one_another():
    rng = Random(0)

    def box():
        x, y = rng.uniform(0, 90), rng.uniform(0, 60)
        return (x, y, x + rng.uniform(2, 40), y + rng.uniform(2, 40))

    met = Counter()
    for _ in range(3000):
        a, b = box(), box()
        found = {relation: holds(relation, a, b) for relation in RELATIONS}
        met.update(relation for relation, verdict in found.items() if verdict)
        for one, other in OPPOSITE.items():
            assert found[one] is (None if found[other] is None else not found[other])
            assert found[one] is holds(other, b, a)
        assert not (found["on"] and (found["below"] or (found["above"] and a[3] > b[1])))
        mirrored = [(100 - x1, y0, 100 - x0, y1) for x0, y0, x1, y1 in (a, b)]
        assert found["on"] is holds("on", *mirrored)
    assert min(met[relation] for relation in RELATIONS) > 10


# --- names -----------------------------------------------------------------------------------------------------------


def test_coco_has_its_eighty_categories_in_two_languages():
    assert len(COCO) == 80
    assert all(re.fullmatch(r"[\u4e00-\u9fff]+", name.zh) for name in COCO.values())
    assert len({name.zh for name in COCO.values()}) == 80
    listed = {word for name in COCO.values() for word in (*name.carries, *name.holds)}
    assert listed <= set(COCO)


def test_articles_and_plurals():
    names = Names()
    said = [names[one].a("en") for one in ("cat", "apple", "skis", "broccoli", "tv", "umbrella")]
    assert said == ["a cat", "an apple", "skis", "broccoli", "a TV", "an umbrella"]
    assert (names["cat"].the("en"), names["cat"].the("zh"), names["cat"].a("zh")) == ("the cat", "猫", "猫")
    tower = Name("东方明珠", "the Oriental Pearl Tower")
    assert tower.a("en") == tower.the("en") == "the Oriental Pearl Tower"
    many = [Name("", one).many for one in ("sphere", "box", "lorry", "day", "bus", "y")]
    assert many == ["spheres", "boxes", "lorries", "days", "buses", "ys"]


TOWERS = {
    "pearl tower": {
        "zh": "东方明珠", "en": "the Oriental Pearl Tower", "foil": "canton tower", "evidence": ["sphere"],
    },
    "canton tower": {"zh": "广州塔", "en": "the Canton Tower", "foil": "pearl tower"},
    "sphere": {"zh": "球体", "en": "sphere"},
}  # fmt: skip


def names_file(folder: Path, content: object) -> Path:
    path = folder / "names.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_names_are_read(tmp_path: Path):
    given = {**TOWERS, "cat": {"zh": "小猫", "en": "kitten"}, "bench": {"zh": "凳子", "en": "bench"}}
    names = read_names(names_file(tmp_path, given), ["pearl tower", "canton tower", "cat", "bench"])
    assert names["pearl tower"].foil == {"zh": "广州塔", "en": "the Canton Tower"}
    assert list(names.buildings) == ["pearl tower", "canton tower"]
    assert names["cat"].a("en") == "a kitten" and "cat" in names["bench"].carries
    assert names.word("dog", "zh").zh == "狗" and not names.without_chinese
    assert names.word("gazebo", "zh").zh == "gazebo" and names.without_chinese == {"gazebo"}


def test_a_building_that_is_only_mistaken_for_needs_no_pictures(tmp_path: Path):
    """Pictures of one tower alone, and the names of the page as printed."""
    page = (Path(__file__).parents[3] / "docs" / "corrective-data.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"```json names\.json\n(.*?)```", page, re.DOTALL)
    names = read_names(names_file(tmp_path, json.loads(printed)), ["pearl tower", "sphere"])
    assert names["pearl tower"].foil == {"zh": "广州塔", "en": "the Canton Tower"}
    # Two that name each other and are both misspelt are no excuse for one another.
    misspelt = {"pearl towr": {**TOWERS["pearl tower"], "foil": "canton towr"}, "sphere": TOWERS["sphere"]}
    misspelt["canton towr"] = {**TOWERS["canton tower"], "foil": "pearl towr"}
    with pytest.raises(ValueError, match="(?s)'pearl towr': not in.*'canton towr': not in"):
        read_names(names_file(tmp_path, misspelt), ["pearl tower", "canton tower"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "expected an object of categories"),
        ({"cat": "猫"}, "'cat': expected an object"),
        ({"cat": {"zh": "猫"}}, "'cat': en: found None, expected text"),
        ({"cat": {"zh": "猫", "en": " "}}, "'cat': en: found ' ', expected text"),
        ({"cat": {"zh": "猫", "en": "cat", "colour": 1}}, "colour: unknown, expected zh, en"),
        ({"cat": {"zh": "猫", "en": "cat", "carries": "dog"}}, "carries: found 'dog', expected a list"),
        ({"cat": {"zh": "猫", "en": "cat", "carries": ["dgo"]}}, "carries: found 'dgo'.*did you mean 'dog'"),
        ({"cat": {"zh": "猫", "en": "cat", "foil": "dgo"}}, "foil: found 'dgo', expected"),
        ({"cat": {"zh": "猫", "en": "cat", "foil": {"zh": "狗"}}}, "foil: found"),
        ({"cat": {"zh": "猫", "en": "cat", "evidence": ["dog"]}}, "evidence: needs a foil too"),
        (
            {"tower": {"zh": "塔", "en": "x", "foil": {"zh": "a", "en": "b"}}},
            "'tower': not in the annotations",
        ),
        ({"cat": {"zh": "猫", "en": "cat", "kind": "tower"}}, "kind: found 'tower'"),
    ],
)
def test_faults_of_names(content, words, tmp_path: Path):
    with pytest.raises(ValueError, match=f"(?s)names.json.*{words}"):
        read_names(names_file(tmp_path, content), ["cat", "dog"])


# --- relations -------------------------------------------------------------------------------------------------------


def scene(*things: tuple[str, tuple[float, ...]], crowds=(), digest="d", size=(640, 480)) -> Scene:
    return Scene(Path("a.png"), size, tuple(AnnotatedBox(*one) for one in things), frozenset(crowds), digest)


ROOM = scene(("cat", CAT), ("bench", BENCH), ("apple", (350, 350, 380, 380)), ("skis", (500, 100, 600, 200)))


def asked(one: Scene, language="en", trained=RELATIONS, **wanted: str) -> list[Question]:
    found = relation_questions.ask(one, Names(), trained, language, Random(1))
    return [q for q in found if all(getattr(q, key) == value for key, value in wanted.items())]


def test_sentences_in_english():
    (where,) = asked(ROOM, topic="on", form="where")
    assert where.text in ("Where is the cat in the picture?", "In this picture, where is the cat?")
    assert (where.answer, where.foil) == ("on the bench", "below the bench")
    assert where.regions == {"cat": (CAT,), "bench": (BENCH,)}
    assert where.phrases == {"cat": "cat", "bench": "bench"}
    assert where.relation == {"phrase": "on", "subject": "cat", "object": "bench"}
    (what,) = asked(ROOM, topic="on", form="what")
    assert "what is on the bench" in what.text.lower() and (what.answer, what.foil) == ("a cat", "an apple")
    (find,) = asked(ROOM, topic="on", form="find")
    assert find.text in (
        "Find the cat that is on the bench in the picture.",
        "In this picture, draw a box around the cat that is on the bench.",
    )
    # 100 / 640 and 200 / 640 of the width, 100 / 480 and 200 / 480 of the height.
    assert find.answer == "<ref>the cat</ref><box>(156,208),(312,416)</box>" and not find.probed
    side = asked(ROOM, form="side", topic="right of")[0]
    assert "are the skis" in side.text and (side.answer, side.foil) == ("on the right", "on the left")


def test_sentences_in_chinese():
    (where,) = asked(ROOM, "zh", topic="on", form="where")
    assert where.text in ("图中的猫在哪里？", "图中的猫在什么地方？")
    assert (where.answer, where.foil) == ("在长椅上", "在长椅下面")
    assert where.phrases == {"猫": "cat", "长椅": "bench"}
    assert where.relation == {"phrase": "上", "subject": "cat", "object": "bench"}
    (find,) = asked(ROOM, "zh", topic="left of", form="find")
    assert "滑雪双板左边的猫" in find.text
    questions = asked(ROOM, "zh", form="yes or no")
    assert {(q.answer, q.foil) for q in questions} == {("在", "不在"), ("不在", "在")}
    assert not re.search(r"[a-z{}]", "".join(q.text for q in asked(ROOM, "zh")))


def test_a_name_that_holds_a_word_for_a_relation_is_none():
    """What is read of a probe is the first such word of its question: here it would be one of the coat's name."""
    names = Names({"cat": Name("上衣", "coat"), "bench": COCO["bench"]})
    room = scene(("cat", CAT), ("bench", BENCH))
    found = relation_questions.ask(room, Names(names.given), RELATIONS, "zh", Random(1))
    words = {q.form: q.relation["phrase"] for q in found if q.topic == "on" and q.relation and q.probed}
    assert words == {"yes or no": "on", "where": "上"}


UNDER = (120, 340, 200, 420)  # below BENCH, 300 / 480


def test_where_is_asked_of_what_is_below_too():
    """Asked only where the cat is on the bench, the question would be the answer."""
    room = scene(("cat", UNDER), ("bench", BENCH))
    (where,) = asked(room, form="where")
    assert (where.answer, where.foil) == ("below the bench", "on the bench")
    assert (where.topic, where.label, where.against) == ("on", "below", "on")
    assert where.relation == {"phrase": "below", "subject": "cat", "object": "bench"}
    (chinese,) = asked(room, "zh", form="where")
    assert (chinese.answer, chinese.foil) == ("在长椅下面", "在长椅上")
    assert chinese.relation["phrase"] == "下面"
    (beside,) = asked(scene(("banana", (100, 100, 140, 150)), ("bowl", (160, 90, 240, 150))), form="where")
    assert (beside.answer, beside.foil) == ("next to the bowl", "inside the bowl")


@pytest.mark.parametrize(
    ("more", "crowds"),
    [
        ([("couch", (100, 400, 300, 470))], []),  # it lies on the couch
        ([("couch", (100, 350, 300, 470))], []),  # or perhaps
        ([], ["couch"]),
    ],
)
def test_what_is_on_something_else_is_not_said_to_be_below(more, crowds):
    assert (
        asked(scene(("cat", UNDER), ("bench", BENCH), *more, crowds=crowds), form="where", label="below")
        == []
    )
    far = scene(("cat", UNDER), ("bench", BENCH), ("couch", (400, 10, 600, 90)), crowds=["zebra"])
    assert len(asked(far, form="where", label="below")) == 1


def test_yes_and_no_are_true():
    for question in asked(ROOM, form="yes or no"):
        a, b = (question.regions[question.relation[end]][0] for end in ("subject", "object"))
        assert holds(question.topic, a, b) is (question.answer == "yes")


def test_only_things_that_there_is_one_of_are_asked_about():
    two = scene(("cat", CAT), ("bench", BENCH), ("bench", (400, 190, 600, 300)))
    assert not asked(two)
    assert not asked(scene(("cat", CAT), ("bench", BENCH), crowds=["cat"]))
    assert not asked(
        scene(("bear", CAT), ("teddy bear", (300, 100, 400, 200)))
    )  # whose name stands in the other
    assert not asked(scene(("dog", CAT), ("hot dog", (300, 100, 400, 200))), "zh")  # 狗, 热狗


APART = (500, 180, 600, 290)  # right of CAT and of BENCH


@pytest.mark.parametrize("other", ["black cat", "cats", "two Cats", "cat, asleep"])
@pytest.mark.parametrize("crowd", [False, True])
def test_a_name_that_another_category_shares_is_no_single_thing(other: str, crowd: bool):
    """Neither in relations nor in templates: "the cat" may be the black one. That one is still "the black cat"."""
    more, crowds = ([], [other]) if crowd else ([(other, APART)], [])
    one = scene(("cat", CAT), ("bench", BENCH), *more, crowds=crowds)
    assert not [q for q in asked(one) if "cat" in q.regions]
    assert crowd or (other == "cats") != any(other in q.regions for q in asked(one))
    where = ({"en": ("Where is {the subject}?",)}, {"en": "{box subject}"}, None, "subject")
    template = user_templates.Template("own-0", "g", frozenset(["cat"]), None, None, *where)
    assert not list(template.ask(one, Names(), "en", Random(0)))
    ball = scene(("sports ball", CAT), ("person", APART), ("tennis racket", BENCH))  # 球, 网球拍
    assert [q for q in asked(ball, "zh") if "sports ball" in q.regions]


def test_boxes_alone_put_nobody_on_a_table():
    behind = scene(("person", (100, 50, 200, 210)), ("dining table", (80, 190, 300, 300)))
    assert not asked(behind, topic="on")
    assert asked(scene(("cup", (100, 150, 130, 210)), ("dining table", (80, 190, 300, 300))), topic="on")
    assert not asked(
        scene(("sandwich", CAT), ("oven", (80, 80, 300, 300))), topic="inside"
    )  # it is on the stove
    ridden = scene(
        ("person", (100, 50, 200, 210)), ("horse", (80, 150, 300, 300)), ("dog", (400, 0, 450, 90))
    )
    assert {q.form for q in asked(ridden, topic="on")} == {"yes or no", "where", "find"}  # and no "what"


def test_what_is_on_it_has_one_answer():
    both = scene(
        ("cat", CAT), ("cup", (210, 150, 230, 200)), ("bench", BENCH), ("skis", (500, 100, 600, 200))
    )
    assert not asked(both, form="what")
    assert not asked(scene(("cat", CAT), ("bench", BENCH)), form="what")  # no wrong answer in the picture
    sits, far = ("person", (210, 60, 280, 230)), ("person", (500, 100, 570, 280))
    cat, behind = (("cat", CAT), ("bench", BENCH)), ("car", (150, 100, 400, 250))
    assert asked(scene(*cat, far), form="what")[0].foil == "a person"
    for more, crowds in (([sits, far], []), ([far, sits], []), ([behind, far], []), ([far], ["dog"])):
        assert not asked(scene(*cat, *more, crowds=crowds), form="what")
    lies = scene(("teddy bear", CAT), ("bench", BENCH), ("bear", (500, 100, 570, 280)))
    assert not asked(lies, form="what")  # "a bear" is no wrong answer where a teddy bear is right


def test_relations_that_are_not_trained_are_neighbours():
    questions = asked(ROOM, trained=("on", "inside"))
    assert {q.topic for q in questions if q.trained} == {"on"}
    others = [q for q in questions if q.topic in ("left of", "right of", "next to")]
    assert others and all(q.group == "neighbour" and not q.trained for q in others)


# --- buildings, presence ---------------------------------------------------------------------------------------------

SPHERES = ((120, 150, 180, 200), (110, 290, 190, 350))
PEARL = scene(
    ("pearl tower", (100, 100, 200, 400)), *(("sphere", box) for box in SPHERES), ("sphere", (0, 0, 9, 9))
)
CANTON = scene(("canton tower", (100, 100, 200, 400)))


@pytest.fixture
def towers(tmp_path: Path) -> Names:
    return read_names(names_file(tmp_path, TOWERS), TOWERS)


def about(one: Scene, names: Names, language: str) -> dict[str, Question]:
    return {q.form: q for q in building_questions.ask(one, names, language, Random(0))}


def test_a_building_and_its_parts(towers: Names):
    found = about(PEARL, towers, "zh")
    name = found["name"]
    assert (name.group, name.answer, name.foil) == ("sphere-building", "东方明珠", "广州塔")
    assert name.regions["sphere"] == SPHERES  # and not the one beside it
    assert name.phrases == {"东方明珠": "sphere"} and "塔" in name.text
    assert (found["has"].answer, found["has"].foil) == ("有", "没有")
    assert found["count"].answer == "两个" and found["count"].foil in ("一个", "三个")
    assert (
        found["find"].answer == "<ref>球体</ref><box>(187,312),(281,416)</box><box>(171,604),(296,729)</box>"
    )
    english = about(PEARL, towers, "en")
    assert english["name"].answer == "the Oriental Pearl Tower"
    assert english["count"].answer == "two" and "spheres" in english["count"].text
    assert english["count"].phrases == {"spheres": "sphere"}


def test_the_building_that_it_is_mistaken_for_is_a_neighbour(towers: Names):
    found = about(CANTON, towers, "en")
    assert set(found) == {"name", "has"}
    assert (found["name"].group, found["name"].foil) == ("neighbour", "the Oriental Pearl Tower")
    assert (found["has"].answer, found["has"].phrases) == ("no", {})
    beside = scene(("canton tower", (100, 100, 200, 400)), ("sphere", (0, 0, 9, 9)))
    assert set(about(beside, towers, "en")) == {"name"}  # a sphere whose place says nothing about the tower
    assert not about(scene(("pearl tower", CAT), ("canton tower", BENCH)), towers, "en")
    unseen = about(scene(("pearl tower", (100, 100, 200, 400))), towers, "en")
    assert set(unseen) == {"name"} and not unseen["name"].probed  # of its spheres nothing is known here


def test_presence():
    found = list(general_questions.ask(ROOM, Names(), {"cat", "skis", "dog", "person"}, "en", Random(0)))
    assert {(q.topic, q.group, q.trained) for q in found} == {("presence", "retention", False)}
    yes = {next(iter(q.regions)): q for q in found if q.answer == "yes"}
    assert set(yes) == {"cat", "skis"} and yes["skis"].text in (
        "Are there skis in the picture?", "Can you see skis in this picture?",
    )  # fmt: skip
    assert len([q for q in found if q.answer == "no" and not q.regions]) == 2
    crowd = scene(("cat", CAT), crowds=["dog"])
    assert all(
        "dog" not in q.text for q in general_questions.ask(crowd, Names(), {"cat", "dog"}, "en", Random(0))
    )


@pytest.mark.parametrize(
    ("there", "absent"),
    [
        ("teddy bear", "bear"), ("hot dog", "dog"), ("black cat", "cat"), ("cats", "cat"), ("cat", "two cats"),
        ("knife", "knives"), ("person", "people"), ("Black Cat", "cat"), ("热狗", "dog"), ("狗", "hot dog"),
        ("carrot", "car"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_is_denied_whose_name_is_alike_to_one_that_is_there(there, absent, crowd, language):
    one = scene(("bench", BENCH), crowds=[there]) if crowd else scene((there, CAT))
    found = list(general_questions.ask(one, Names(), {there, absent, "zebra"}, language, Random(0)))
    denied = [q.text for q in found if q.label == "no"]
    assert len(denied) == 1 and ("zebra" if language == "en" else "斑马") in denied[0]


@pytest.mark.parametrize("beside", ["small sphere", "spheres", "glass sphere"])
def test_parts_whose_names_are_alike_are_neither_denied_nor_counted(beside: str, tmp_path: Path):
    entries = {**TOWERS, "canton tower": {**TOWERS["canton tower"], "evidence": [beside]}}
    entries[beside] = {"zh": f"{len(beside)}号球体", "en": beside}
    names = read_names(names_file(tmp_path, entries), entries)
    assert set(about(scene(("canton tower", (100, 100, 200, 400)), (beside, SPHERES[0])), names, "en")) == {
        "name", "has", "count", "find one",
    }  # fmt: skip
    unseen = building_questions.ask(scene(("canton tower", (100, 100, 200, 400))), names, "en", Random(0))
    assert {q.form for q in unseen} == {"name"}  # its own are called spheres too
    mixed = scene(*PEARL.things, (beside, (130, 220, 170, 260)))
    asked_of = list(building_questions.ask(mixed, names, "en", Random(0)))
    assert {(q.form, q.answer) for q in asked_of if q.form != "name"} == {("has", "yes")}


@pytest.mark.parametrize(("absent", "denied"), [(None, True), (frozenset(), False), ({"sphere"}, True)])
def test_a_part_is_denied_where_it_is_known_not_to_be_there(absent, denied: bool, tmp_path: Path):
    """A federated file says of few categories that they are not there."""
    names = read_names(names_file(tmp_path, TOWERS), TOWERS)
    tower = replace(scene(("canton tower", (100, 100, 200, 400))), absent=absent)
    asked = building_questions.ask(tower, names, "en", Random(0))
    assert [q.answer for q in asked if q.form == "has"] == ["no"] * denied
    unsure = replace(tower, unsure=frozenset({"sphere", "pearl tower"}))
    asked = building_questions.ask(unsure, names, "en", Random(0))
    assert [q.form for q in asked] == ["name"]  # a rejected answer's box hides no building


# --- a user's own templates ------------------------------------------------------------------------------------------

TEMPLATE = {
    "group": "cat-place", "subject": ["cat", "dog"], "relation": "on", "object": ["bench", "couch"],
    "question": {"en": ["What is {the subject} lying on?"], "zh": "{subject}趴在什么上面？"},
    "answer": {"en": "{a object}", "zh": "{object}"}, "foil": {"en": "the floor", "zh": "地板"},
    "look_at": "object",
}  # fmt: skip


def template_file(folder: Path, *templates: object) -> Path:
    path = folder / "own.json"
    path.write_text(json.dumps({"version": 1, "templates": templates}), encoding="utf-8")
    return path


def test_own_templates(tmp_path: Path):
    boxed = {
        "group": "g", "subject": "*", "question": {"en": "Where is {the subject}?"},
        "answer": {"en": "{box subject}"},
    }  # fmt: skip
    first, second = user_templates.read_templates(
        template_file(tmp_path, TEMPLATE, boxed), ["cat", "dog", "bench", "couch"], "en"
    )
    (question,) = first.ask(ROOM, Names(), "en", Random(0))
    assert (question.text, question.answer, question.foil) == (
        "What is the cat lying on?",
        "a bench",
        "the floor",
    )
    assert question.phrases == {"a bench": "bench", "cat": "cat", "bench": "bench"}
    assert question.relation == {"phrase": "on", "subject": "cat", "object": "bench"}
    (chinese,) = first.ask(ROOM, Names(), "zh", Random(0))
    assert (chinese.text, chinese.answer, chinese.foil) == ("猫趴在什么上面？", "长椅", "地板")
    found = list(second.ask(ROOM, Names(), None, Random(0)))
    assert len(found) == 4 and not any(q.probed for q in found) and {q.language for q in found} == {"en"}
    assert found[0].answer.startswith("<ref>the cat</ref><box>(")


@pytest.mark.parametrize("look_at", ["subject", "object"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_right_answer_looks_where_its_template_says_though_it_is_a_bare_name(tmp_path, language, look_at):
    bare = TEMPLATE | {"answer": {"en": "{object}", "zh": "{object}"}, "look_at": look_at}
    (template,) = user_templates.read_templates(
        template_file(tmp_path, bare), ["cat", "dog", "bench", "couch"], language
    )
    (question,) = template.ask(ROOM, Names(), language, Random(0))
    expected = {"subject": "cat", "object": "bench"}[look_at]
    assert question.phrases[question.answer] == expected
    assert next(iter(question.phrases)) == question.answer


@pytest.mark.parametrize(
    ("wording", "word"),
    [
        ("{subject}趴在什么上面？", "上面"),
        ("什么东西上有{subject}？", "上"),
        ("图上的{subject}趴在什么上面？", "上面"),
        ("图上的{subject}趴在什么东西上？", "on"),  # its first 上 would be read, which is the picture's
        ("什么东西上有{subject}，图上看得见吗？", "上"),
        ("图片上的{subject}趴着什么？", "on"),
        ("{subject}趴着什么？", "on"),
    ],
)
def test_the_relation_of_a_template_is_the_word_that_its_question_has(tmp_path, wording, word):
    given = TEMPLATE | {"question": {"en": "What is {the subject} on?", "zh": wording}}
    (template,) = user_templates.read_templates(
        template_file(tmp_path, given), ["cat", "dog", "bench", "couch"], None
    )
    (chinese,), (english,) = (list(template.ask(ROOM, Names(), one, Random(0))) for one in ("zh", "en"))
    assert (chinese.relation["phrase"], english.relation["phrase"]) == (word, "on")


def test_the_word_for_a_relation_is_looked_for_in_the_answer_first():
    assert relation_questions.relation_word("on", "zh", "在桌子上", "图上的猫在桌子上面吗？") == "上面"
    assert relation_questions.relation_word("on", "zh", "在桌子上", "图上的猫在桌子上吗？") == "上"
    assert relation_questions.relation_word("left of", "en", "the cat", "What is left of the dog?") == "left"
    named = {"names": ("上衣", "椅子")}  # no relation, though it has the word in it
    assert relation_questions.relation_word("on", "zh", "上衣", "椅子上放的是什么？", **named) == "on"
    assert relation_questions.relation_word("on", "zh", "是", "椅子上放的是衣服吗？", **named) == "上"
    assert relation_questions.relation_word("on", "zh", "是", "椅子上有上衣吗？", **named) == "上"
    assert relation_questions.relation_word("on", "zh", "是", "上衣在椅子上吗？", **named) == "on"


@pytest.mark.parametrize(
    ("relation", "question", "word"),
    [
        ("inside", "猫在哪里？", "inside"),
        ("inside", "图里的猫藏在什么地方？", "inside"),
        ("inside", "图片里面的猫藏在什么东西当中？", "inside"),
        ("inside", "图片内，猫是不是在箱子里？", "里"),
        ("inside", "猫在箱子里面吗？图里看得见。", "里面"),
        ("inside", "画面里的猫在箱子内吗？", "内"),
        ("inside", "猫在箱子里还是盒子内？", "inside"),  # which of the two is not known
        ("inside", "室内的猫藏在什么当中？", "inside"),
        ("inside", "箱子内存放着猫吗？", "内"),
        ("on", "照片上，猫在哪里？", "on"),
        ("on", "早上的猫趴着什么？", "on"),
        ("on", "箱子上周围有猫吗？", "上"),
        ("on", "箱子上衣服旁有猫吗？", "上"),
        ("on", "箱子上网球旁有猫吗？", "上"),
        ("next to", "路旁的猫挨着什么？", "next to"),
        ("next to", "路旁的猫在箱子旁边吗？", "旁边"),
        ("below", "下面哪个东西盖着猫？", "below"),
        ("below", "箱子下面哪个是猫？", "下面"),
        ("above", "上面这张图片中，猫在哪里？", "above"),
        ("left of", "图片左边的猫挨着什么？", "left of"),
        ("left of", "猫在箱子的左边还是右边？", "左边"),
    ],
)
def test_a_syllable_of_another_word_and_a_place_in_the_picture_are_no_relation(relation, question, word):
    names = ("猫", "箱子")
    assert relation_questions.relation_word(relation, "zh", "是", question, names=names) == word


@pytest.mark.parametrize("thing", ["图片", "画"])
def test_where_the_picture_is_one_of_the_things_its_place_is_a_relation(thing):
    assert (
        relation_questions.relation_word("on", "zh", "是", f"猫趴在{thing}上吗？", names=("猫", thing))
        == "上"
    )


LEFT, MIDDLE, RIGHT, FAR = (
    (10, 150, 60, 250),
    (100, 150, 160, 250),
    (300, 150, 390, 250),
    (400, 150, 450, 250),
)
OVER = (90, 0, 260, 120)
WHAT = ("What is to the left of {the object}?", "{the subject}")
BOTH = ("Is {the subject} or something else to the left of {the object}?", "{the subject}")


@pytest.mark.parametrize(
    ("things", "crowds", "wording", "expected"),
    [
        ([("cat", LEFT), ("bench", RIGHT)], [], WHAT, ["the cat"]),
        ([("cat", LEFT), ("dog", MIDDLE), ("bench", RIGHT)], [], WHAT, ["the cat"]),  # left of the dog
        ([("cat", LEFT), ("dog", MIDDLE), ("bench", RIGHT)], [], BOTH, ["the cat", "the cat", "the dog"]),
        ([("cat", LEFT), ("dog", MIDDLE), ("dog", (170, 150, 210, 250)), ("bench", RIGHT)], [], WHAT, []),
        ([("cat", LEFT), ("dog", OVER), ("bench", RIGHT)], [], WHAT, []),  # perhaps left of it
        ([("cat", LEFT), ("bench", RIGHT), ("dog", FAR)], [], BOTH, ["the cat", "the cat", "the bench"]),
        ([("cat", LEFT), ("bench", RIGHT)], ["dog"], WHAT, []),
        ([("cat", LEFT), ("bench", RIGHT)], ["bench"], WHAT, []),
        ([("cat", LEFT), ("bench", RIGHT)], [], ("Find it.", "{box subject}"), ["the cat"]),
        ([("cat", LEFT), ("dog", MIDDLE), ("bench", RIGHT)], [], ("Find it.", "{box subject}"), []),
    ],
)  # fmt: skip
def test_a_question_with_several_answers_is_left_out(things, crowds, wording, expected):
    given = ({"en": (wording[0],)}, {"en": wording[1]}, None, "subject")
    template = user_templates.Template("own-0", "g", None, "left of", None, *given)
    one = scene(*things, crowds=crowds, digest="d")
    found = [list(template.ask(one, Names(), "en", Random(0))) for _ in range(2)][1]
    assert sorted(re.sub("</?ref>|<box>.*", "", q.answer) for q in found) == sorted(expected)
    if not expected and "bench" not in crowds:
        shown = wording[0].format_map({"the object": "the bench"})
        assert template.said().startswith("own-0: left out 1 questions of 1 pictures")
        assert repr(shown) in template.said()
    elif len(things) == 2:
        assert template.said() is None


def test_a_question_about_one_thing_has_one_answer():
    given = ({"en": ("What animal is this?", "What is {the subject}?")}, {"en": "{subject}"}, None, "subject")
    template = user_templates.Template("own-0", "g", frozenset(["cat", "dog"]), None, None, *given)
    for more, crowds, count in (
        ([], [], 1),
        ([("dog", APART)], [], 0),
        ([("bench", APART)], [], 1),
        ([], ["dog"], 0),
    ):
        one = scene(("cat", CAT), *more, crowds=crowds)
        assert len(list(template.ask(one, Names(), "en", Random(0)))) == count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": ""}, r"templates\[0\].group: missing"),
        ({"subject": ["catt"]}, "subject: found 'catt'.*did you mean 'cat'"),
        ({"subject": "cat"}, "subject: found 'cat', expected a list"),
        ({"relation": "beside"}, "relation: found 'beside', expected one of left of"),
        ({"object": None, "relation": None}, "object: found None"),
        ({"colour": "red"}, "colour: unknown"),
        ({"look_at": "cat"}, "look_at: found 'cat', expected subject or object"),
        ({"question": {"fr": "quoi?"}}, "question: found"),
        ({"question": {"zh": "什么？"}}, "question: found none in 'en'"),
        ({"answer": {"en": "yes"}}, "answer: found .*languages of question: en, zh"),
        ({"foil": "no"}, "foil: found 'no'"),
        ({"question": {"en": "{thing}?", "zh": "？"}}, r"question.en: found \{thing\}"),
        ({"question": {"en": [], "zh": "？"}}, "question.en: found"),
    ],
)
def test_faults_of_templates(change, words, tmp_path: Path):
    with pytest.raises(ValueError, match=f"(?s)own.json.*{words}"):
        user_templates.read_templates(
            template_file(tmp_path, {**TEMPLATE, **change}), ["cat", "dog", "bench", "couch"], "en"
        )


def test_a_template_file_says_its_version(tmp_path: Path):
    path = tmp_path / "own.json"
    path.write_text('{"templates": []}')
    with pytest.raises(ValueError, match='"version": 1'):
        user_templates.read_templates(path, [], None)
    with pytest.raises(ValueError, match="relation and object belong together"):
        alone = {key: value for key, value in TEMPLATE.items() if key != "object"}
        user_templates.read_templates(template_file(tmp_path, alone), ["cat", "dog"], None)


# --- choosing --------------------------------------------------------------------------------------------------------


def question(topic: str, label: str = "yes", group: str = "g", **more) -> Question:
    return Question(
        group,
        topic,
        "yes or no",
        "en",
        f"{topic}?",
        label,
        label,
        **{"against": {"yes": "no", "no": "yes"}.get(label), **more},
    )


def sides(digests: range, topic, share: float = 0.3, seed: int = 0) -> tuple[set[str], set[str], int]:
    """Digests to train on and held out, where each picture has probes of ``topic`` of its number; and those beyond."""
    scenes = [scene(digest=f"{i:04d}") for i in digests]
    topics = {place: topics_of([topic(i)]) for place, i in enumerate(digests)}
    trained, held = hold_out(scenes, topics, share, seed)
    assert sorted(trained + held) == list(range(len(scenes)))
    beyond = beyond_draw(scenes, held, share, seed)
    return {scenes[i].digest for i in trained}, {scenes[i].digest for i in held}, beyond


def test_the_side_of_a_picture_is_its_own():
    """Whatever is asked, and of which other pictures, and where the share is larger."""
    trained, held, beyond = sides(range(1000), lambda i: question("a"))
    assert 250 < len(held) < 350 and beyond == 0
    for digests, topic in (
        (range(1000), lambda i: question(f"b{i % 7}", group="other")),
        (range(500, 1500), lambda i: question("a" if i < 900 else "c")),
        (range(0, 1000, 3), lambda i: question("a", probed=i % 2 == 0)),
    ):
        others = sides(digests, topic)
        assert not others[0] & held and not others[1] & trained and others[2] == 0
    assert held < sides(range(1000), lambda i: question("a"), share=0.4)[1]
    assert held != sides(range(1000), lambda i: question("a"), seed=1)[1]


def test_copies_stay_together():
    scenes = [scene(digest=f"{i // 2}") for i in range(40)]
    for side in hold_out(scenes, dict.fromkeys(range(40), topics_of([question("a")])), 0.3, seed=0):
        assert side and all(i ^ 1 in side for i in side)


@pytest.mark.parametrize("seed", range(8))
def test_every_topic_and_every_verdict_has_probes(seed: int):
    """Beside 400 pictures, five of a rare topic that have one of the five to probe, a group of 100 that has the 20 of a
    verdict, a topic of three that has none, and a picture whose question is never probed; taken in the same order."""

    def topic(i: int) -> Question:
        if i < 5:
            return question("rare")
        if i < 105:
            return question("b", group="just enough")
        if i < 108:
            return question("c", group="few")
        return question("a", probed=i > 108)

    trained, held, beyond = sides(range(500), topic, share=0.2, seed=seed)
    drawn = {f"{i:04d}" for i in range(500) if draw(f"{i:04d}", seed) < 0.2}
    assert drawn <= held and len(held - drawn) == beyond
    for first, last, least in ((0, 5, 1), (5, 105, 20)):
        of_it = sorted((f"{i:04d}" for i in range(first, last)), key=lambda digest: draw(digest, seed))
        count = max(least, len(drawn.intersection(of_it)))
        assert held.intersection(of_it) == set(of_it[:count])
    assert all(draw(digest, seed) < 0.2 for digest in held if digest >= "0105")


def test_the_draw_is_even():
    found = np.array([draw(f"{i}", 0) for i in range(2000)])
    assert found.min() >= 0 and found.max() < 1
    assert np.abs(np.sort(found) - np.arange(2000) / 2000).max() < 0.03


def test_contrasting_answers_are_equally_frequent():
    """Nine of ten pictures say yes; nothing but yes-or-no is left over from a relation that is never wrong."""
    scenes = [scene(digest=str(i)) for i in range(100)]

    def ask(place: int) -> list[Question]:
        return [
            question("on", "no" if place % 10 == 0 else "yes"),
            question("inside", "yes"),
            question("on", "on"),
        ]

    chosen = for_training(scenes, range(100), ask, per_picture=3, most=None, seed=0)
    counts = Counter((one.question.topic, one.question.label) for one in chosen)
    assert counts == {("on", "yes"): 10, ("on", "no"): 10, ("on", "on"): 100}
    few = for_training(scenes, range(100), ask, per_picture=3, most=50, seed=0)
    assert 10 < len(few) <= 50


def about_two(form: str, label: str, *two: str, **more) -> Question:
    opposite = {"on": "below", "below": "on", "left": "right", "right": "left", "yes": "no", "no": "yes"}
    return Question(
        "g", "on", form, "en", f"{form} {two}?", label, label, against=opposite.get(label), about=two, **more
    )


def where_is(place: int) -> list[Question]:
    """The cat is on the bench in two of three pictures, the dog on the table in all, the bird never on the chair."""
    cat = "below" if place % 3 == 0 else "on"
    if place % 3 == 2:
        return [about_two("where", "on", "dog", "table", only_balanced=True), question("on", "on")]
    return [about_two("where", cat, "cat", "bench", only_balanced=True), question("on", "on")]


def test_where_has_each_answer_as_often_for_each_two_things():
    scenes = [scene(digest=str(i)) for i in range(90)]

    def ask(place: int) -> list[Question]:
        found = where_is(place)
        return [about_two("where", "on", "cat", "bench", only_balanced=True)] if place >= 60 else found

    chosen = for_training(scenes, range(90), ask, per_picture=3, most=None, seed=0)
    counts = Counter(
        (one.question.about, one.question.label) for one in chosen if one.question.form == "where"
    )
    assert counts == {(("cat", "bench"), "on"): 20, (("cat", "bench"), "below"): 20}
    for per_group in (11, 30, 90):
        topics = {i: topics_of(ask(i)) for i in range(90)}
        probes = for_probes(scenes, topics, range(90), ask, per_group=per_group, seed=0)
        counts = Counter((one.question.about, one.question.label) for one in probes if one.question.about)
        assert counts[("cat", "bench"), "on"] == counts[("cat", "bench"), "below"] > 2 and len(counts) == 2
        assert len(probes) == min(
            per_group, 80
        )  # of the 90 the last 30 are asked nothing else: 20 have a partner


def test_what_has_no_answer_that_is_more_frequent_than_all_others():
    scenes = [scene(digest=str(i)) for i in range(60)]

    def ask(place: int) -> list[Question]:
        label = "cat" if place % 3 else ("dog", "bird")[place % 2]
        what = Question("g", "on", "what", "en", "What?", label, label, about=("bench",), only_balanced=True)
        return [what, question("on", "on")]

    chosen = for_training(scenes, range(60), ask, per_picture=2, most=None, seed=0)
    counts = Counter(one.question.label for one in chosen if one.question.form == "what")
    assert counts == {"cat": 20, "dog": 10, "bird": 10}
    topics = {i: topics_of(ask(i)) for i in range(60)}
    probes = for_probes(scenes, topics, range(60), ask, per_group=60, seed=0)
    counts = Counter(one.question.label for one in probes if one.question.form == "what")
    assert 9 < counts["cat"] <= counts["dog"] + counts["bird"] and len(probes) == 60


def test_answers_are_balanced_for_each_two_things_as_far_as_there_are_pictures():
    """The cat is mostly left of the bench, the dog right of it; what is surplus goes where one side is ahead."""
    scenes = [scene(digest=str(i)) for i in range(100)]

    def ask(place: int) -> list[Question]:
        if place < 40:
            return [about_two("side", "right" if place % 4 == 0 else "left", "cat", "bench")]
        return [about_two("side", "right", "dog", "bench")] if place < 80 else [question("on", "on")]

    chosen = for_training(scenes, range(100), ask, per_picture=3, most=None, seed=0)
    counts = Counter((one.question.about[0], one.question.label) for one in chosen if one.question.about)
    assert counts == {("cat", "left"): 30, ("cat", "right"): 10, ("dog", "right"): 20}
    found = guessed_from_words(chosen)
    assert found is not None and (found.right, found.of, found.chance) == (50, 60, 30)
    assert (found.example.about[0], found.example.label, found.times, found.among) in (
        ("cat", "left", 30, 40),
        ("dog", "right", 20, 20),
    )
    topics = {i: topics_of(ask(i)) for i in range(100)}
    probes = for_probes(scenes, topics, range(100), ask, per_group=40, seed=0)
    counts = Counter((one.question.about[0], one.question.label) for one in probes if one.question.about)
    assert counts["cat", "left"] - counts["cat", "right"] <= 4 < 8 <= counts["cat", "right"]


def test_own_questions_are_balanced_by_choice_and_none_is_dropped():
    """The cat lies on the bench in three of four pictures; beside it another template asks about a dog."""
    scenes = [scene(digest=str(i)) for i in range(80)]

    def lying(label: str, about: str = "cat") -> Question:
        return Question("g", "own-0", "own-0", "en", "What?", label, label, about=(about,), own=True)

    def ask(place: int) -> list[Question]:
        return [lying("couch" if place % 4 == 0 else "bench")]

    chosen = for_training(scenes, range(80), ask, per_picture=3, most=None, seed=0)
    assert Counter(one.question.label for one in chosen) == {"bench": 60, "couch": 20}
    found = guessed_from_words(chosen)
    assert found is not None and (found.right, found.of, found.chance) == (60, 80, 40)
    topics = {i: topics_of(ask(i)) for i in range(80)}
    probes = for_probes(scenes, topics, range(80), ask, per_group=38, seed=0)
    counts = Counter(one.question.label for one in probes)
    assert counts == {"bench": 19, "couch": 19}
    alone = [Asked(scenes[0], lying("bench", str(at))) for at in range(5)]
    assert guessed_from_words(alone) is None  # each is asked once
    assert guessed_from_words(alone, chosen) is None


def test_words_that_tell_nothing_are_not_said_to(tmp_path: Path):
    """Answers drawn evenly, for many things and for few, asked once and often; then three of four are yes."""
    rng = np.random.default_rng(0)

    def drawn(things: int, times: int, share: float) -> list[Asked]:
        labels = np.where(rng.random((things, times)) < share, "yes", "no")
        return [
            Asked(
                scene(digest=f"{at}"),
                Question("g", "on", "is it", "en", "Is it?", label, label, against="?", about=(str(at),)),
            )
            for at, row in enumerate(labels.tolist())
            for label in row
        ]

    sizes = [(500, 1), (300, 2), (200, 3), (60, 7), (6, 30)]
    for things, times in sizes * 10:
        samples = drawn(things, times, 0.5)
        assert guessed_from_words(samples) is None, (things, times)
        assert guessed_from_words(drawn(things, 1, 0.5), samples) is None, (things, times)
    for things, times in sizes:
        samples = drawn(things, times, 0.8)
        found = guessed_from_words(samples), guessed_from_words(drawn(things, 6, 0.8), samples)
        assert (found[0] is None) == (found[1] is None) == (times < 3), (things, times)
        if found[0] is not None:
            assert found[0].right > found[0].chance == found[0].of / 2


def test_of_two_that_agree_and_of_one_nothing_is_guessed():
    """By hand: a, a, b of one thing: only b has a majority against it; c, c, c: each is guessed by the two others."""

    def asked(about: str, *labels: str) -> list[Asked]:
        one = scene(digest="0")
        return [
            Asked(one, Question("g", "t", "f", "en", "?", label, label, about=(about,), own=True))
            for label in labels
        ]

    five = [one for at in range(5) for one in asked(str(at), "c", "c", "c", "c")]
    found = guessed_from_words([*five, *asked("x", "a", "a", "b"), *asked("y", "a", "a")])
    assert found is not None and (found.right, found.of, found.chance) == (20, 21, 10.5)
    assert (found.times, found.among, found.example.label) == (4, 4, "c")
    probes = [*asked("0", "c"), *asked("x", "b", "a"), *asked("y", "a"), *asked("new", "a")]
    assert guessed_from_words(probes, [*five, *asked("x", "a", "a", "b")]) is None  # 2 of 3: chance
    found = guessed_from_words(probes + five, [*five, *asked("x", "a", "a", "b")])
    assert found is not None and (found.right, found.of) == (22, 23)


def test_rare_questions_come_first():
    scenes = [scene(digest=str(i)) for i in range(60)]

    def ask(place: int) -> list[Question]:
        rare = [question("rare", "x")] if place % 6 == 0 else []
        return [*rare, question("often", "x"), question("often too", "x")]

    chosen = for_training(scenes, range(60), ask, per_picture=1, most=None, seed=0)
    counts = Counter(one.question.topic for one in chosen)
    assert counts["rare"] == 10 and abs(counts["often"] - counts["often too"]) <= 1


def test_a_picture_is_probed_once_in_a_group():
    scenes = [scene(digest=str(i // 2)) for i in range(40)]  # each file twice

    def ask(place: int) -> list[Question]:
        label = "yes" if place % 4 < 2 else "no"
        return [question("a", label), question("b", label), question("c", label, group="other", probed=False)]

    topics = {i: topics_of(ask(i)) for i in range(40)}
    probes = for_probes(scenes, topics, range(40), ask, per_group=12, seed=0)
    assert len(probes) == 12 == len({one.scene.digest for one in probes})
    assert Counter(one.question.topic for one in probes) == {"a": 6, "b": 6}
    every = for_probes(scenes, topics, range(40), ask, per_group=100, seed=0)
    assert len(every) == 20 and all(isinstance(one, Asked) for one in every)
    assert all(one.question.group <= other.question.group for one, other in pairwise(every))


@pytest.mark.parametrize(("pictures", "per_group", "expected"), [(60, 12, 6), (60, 60, 30), (12, 40, 6)])
def test_probes_say_no_as_often_as_yes(pictures, per_group, expected):
    """Every other picture can only be asked what is answered no; the rest have another question too."""
    scenes = [scene(digest=str(i)) for i in range(pictures)]

    def ask(place: int) -> list[Question]:
        return [question("on", "no")] if place % 2 else [question("on", "yes"), question("on", "on")]

    topics = {i: topics_of(ask(i)) for i in range(pictures)}
    probes = for_probes(scenes, topics, range(pictures), ask, per_group=per_group, seed=0)
    labels = Counter(one.question.label for one in probes)
    assert len(probes) == min(pictures, per_group)
    assert abs(labels["yes"] - labels["no"]) <= 1 and labels["no"] >= expected - 2
