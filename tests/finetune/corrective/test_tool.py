"""python -m finetune.corrective as a user meets it: what it leaves, what it refuses, and whether training takes it."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from diagnostics.records.probes import read_probes
from finetune.corrective import probe_file
from finetune.corrective.__main__ import main, make, parser
from finetune.corrective.annotations import read_scenes
from finetune.corrective.writing import DATA_FILE, PROBE_FILE
from finetune.samples import source
from finetune.samples.markup import Box
from tests.finetune.corrective_data import NAMES, SIZE, room, skyline, write_coco, write_rooms, write_towers
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms")
    write_rooms(folder, 60)
    return folder


@pytest.fixture
def call(rooms: Path, tmp_path: Path):
    def run(*more: str, folder: Path = rooms, boxes: str = "instances.json") -> list[str]:
        given = ["--images", str(folder / "pictures"), "--boxes", str(folder / boxes)]
        return [*given, "--output_dir", str(tmp_path / "out"), *more]

    return run


def left(folder: Path) -> tuple[list[dict], list[dict]]:
    data = json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))
    return data, json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))["probes"]


def test_what_it_leaves(call, rooms: Path, tmp_path: Path, capsys):
    assert main(call("--held_out", "0.4", "--probes_per_group", "15")) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [DATA_FILE, PROBE_FILE]
    data, entries = left(tmp_path / "out")
    pictures = {re.search("<img>(.*?)</img>", one["conversations"][0]["value"])[1] for one in data}
    assert f"{len(data)} samples of {len(pictures)} pictures" in shown and 24 <= len(pictures) <= 45
    assert "spatial-relation: 15 probes, expected at least 20 (recommended: 40)" in shown
    assert "a sample (room-" in shown and "a probe (room-" in shown

    # Both are read by those who use them, and share no picture.
    conversations = source.read(tmp_path / "out" / DATA_FILE, say=lambda _: None)
    probes = read_probes(tmp_path / "out" / PROBE_FILE)
    assert Counter(probe.group for probe in probes) == {"retention": 15, "spatial-relation": 15}
    trained = {ref.path.read_bytes() for one in conversations for ref in one.images}
    assert not trained & {probe.images[0].read_bytes() for probe in probes}

    # Yes and no as often, in each language together, for each relation; three pairs of opposite words.
    answers = Counter(record["conversations"][1]["value"] for record in data)
    assert answers["yes"] == answers["no"] > 8 and answers["在"] == answers["不在"] > 8
    assert answers["above"] == answers["below"] > 0 and answers["上方"] == answers["下方"] > 0
    assert answers["to the left"] + answers["左边"] + answers["on the left"] > 0
    chinese = [r for r in data if re.search("[\u4e00-\u9fff]", r["conversations"][1]["value"])]
    assert 0.3 < len(chinese) / len(data) < 0.7
    boxed = [r["conversations"][1]["value"] for r in data if "<box>" in r["conversations"][1]["value"]]
    assert any(value.startswith("<ref>the cat</ref><box>(") for value in boxed)
    assert "<box>" not in "".join(probe.answer for probe in probes)
    related = [probe for probe in probes if probe.relation]
    assert related and all(
        set(probe.regions) >= {probe.relation.subject, probe.relation.object} for probe in related
    )


def test_where_cannot_be_told_from_the_question(tmp_path: Path, capsys):
    """The cat is on the bench in half of the pictures and below it in the other; nothing else is ever on it."""
    bench, cats = ("bench", [8, 20, 30, 8]), ([12, 8, 10, 14], [12, 32, 10, 14])
    pictures = {f"{i}.png": [bench, ("cat", cats[i % 2]), ("dog", [50, 30, 10, 10])] for i in range(60)}
    pictures |= {f"a{i}.png": [bench, ("cat", [20 + i, 8, 6, 14])] for i in range(8)}
    write_coco(tmp_path, pictures)
    options = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    assert (
        main(
            [
                *options,
                "--relations",
                "on",
                "--language",
                "en",
                "--held_out",
                "0.4",
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    data, probes = left(tmp_path / "out")
    asked = [[turn["value"].split("\n")[-1] for turn in record["conversations"]] for record in data]
    answers = Counter(answer for text, answer in asked if "here is the cat" in text)
    assert set(answers) == {"on the bench", "below the bench"} and len(set(answers.values())) == 1
    probed = Counter((one["answer"], one["foil"]) for one in probes if "here is the cat" in one["question"])
    assert probed["on the bench", "below the bench"] == probed["below the bench", "on the bench"] > 2
    shown = capsys.readouterr().out
    assert not [
        text for text, _ in asked if re.search("[Ww]hat is on the bench", text)
    ]  # a cat, in every picture
    assert re.search(
        r"^left out 30 questions of 30 pictures to which all pictures give one answer", shown, re.M
    )
    assert "could be answered from their words" in shown


def test_own_questions_that_their_words_answer_are_counted(tmp_path: Path, capsys):
    """The dog is always on the bench; the cat is half of the time on it and half of the time on the sphere."""
    things = ("bench", [4, 24, 24, 8]), ("sphere", [36, 24, 24, 8])
    on = {at: [at, 8, 10, 16] for at in (10, 42)}
    pictures = {f"{i}.png": [*things, ("cat", on[10 if i % 2 else 42])] for i in range(40)}
    pictures |= {f"d{i}.png": [*things, ("dog", on[10])] for i in range(20)}
    write_coco(tmp_path, pictures)
    template = {
        "group": "place", "subject": ["cat", "dog"], "relation": "on", "object": ["bench", "sphere"],
        "question": {"en": "What is {the subject} lying on?"}, "answer": {"en": "{the object}"},
    }  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps({"version": 1, "templates": [template]}))
    options = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    options += ["--templates", str(tmp_path / "own.json"), "--language", "en", "--held_out", "0.4"]
    assert main([*options, "--output_dir", str(tmp_path / "out")]) == 0
    data, _ = left(tmp_path / "out")
    dogs = sum("the dog lying on" in record["conversations"][0]["value"] for record in data)
    shown = capsys.readouterr().out
    known, times = re.findall(
        r"^  (\d+) of these, of your own templates, could be answered from their words, where chance gives \d+ of "
        r"\d+: 'What is the dog lying on\?' is answered 'the bench' in (\d+) of \2;",
        shown,
        re.M,
    )[0]
    assert int(times) == dogs <= int(known) < len(data) and dogs > 5  # they are kept
    probed = shown.partition("probes.json")[2]  # guessed by what is trained, not by one another
    assert re.search(
        rf"'What is the dog lying on\?' is answered 'the bench' in {dogs} of {dogs} of the samples;", probed
    )


def test_the_same_call_makes_the_same_files(call, tmp_path: Path, rooms: Path):
    assert main(call()) == 0
    first = [(tmp_path / "out" / name).read_bytes() for name in (DATA_FILE, PROBE_FILE)]
    assert main(call()) == 0  # what is there has the same content, so nothing is lost
    assert [(tmp_path / "out" / name).read_bytes() for name in (DATA_FILE, PROBE_FILE)] == first
    assert main(call("--seed", "1")) == 1
    assert main(call("--seed", "1", "--overwrite", "True")) == 0
    assert (tmp_path / "out" / DATA_FILE).read_bytes() != first[0]


def test_it_does_not_write_over_other_files_or_leave_half_of_them(call, tmp_path: Path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / PROBE_FILE).write_text("mine")
    assert main(call()) == 1
    assert "already exists with other content" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [PROBE_FILE] and (out / PROBE_FILE).read_text() == "mine"
    monkeypatch.setattr(probe_file, "faults", lambda content, folder: ["probe 0: something"])
    assert main(call("--overwrite", "True")) == 1
    assert "probe 0: something" in capsys.readouterr().err
    assert (out / PROBE_FILE).read_text() == "mine" and not (out / DATA_FILE).exists()
    assert [path.name for path in out.iterdir()] == [PROBE_FILE]


def test_copies_of_a_picture_are_asked_about_once(tmp_path: Path):
    """Every picture there is twice under other names: the second of each is no picture of its own."""
    pictures = {f"{name}-{i}.png": room(i) for i in range(20) for name in ("a", "b")}
    write_coco(tmp_path, pictures)
    for i in range(20):
        shutil.copy(tmp_path / "pictures" / f"a-{i}.png", tmp_path / "pictures" / f"b-{i}.png")
    options = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    made = make(parser().parse_args([*options, "--held_out", "0.5", "--output_dir", str(tmp_path / "out")]))
    names = {one.scene.image.name for one in made.training}
    held = {one.scene.image.name for one in made.probes}
    assert len(made.scenes) == 20 == len(names | held) and not held & names
    assert {name[0] for name in names | held} == {"a"}


def test_calls_over_the_same_pictures_hold_out_the_same_ones(tmp_path: Path, capsys):
    """Other templates, names, language and neighbours in the file: no call trains on what another one probes, but for
    the pictures that it says it held out besides."""
    write_towers(tmp_path, 50)
    content = json.loads((tmp_path / "instances.json").read_text())
    rooms = {one["id"] for one in content["images"] if one["file_name"].startswith("room")}
    content["images"] = [one for one in content["images"] if one["id"] in rooms]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in rooms]
    (tmp_path / "rooms.json").write_text(json.dumps(content))
    calls = {
        "rooms": ["--boxes", str(tmp_path / "rooms.json")],
        "towers": ["--boxes", str(tmp_path / "instances.json"), "--names", str(tmp_path / "names.json"),
                   "--templates", "spheres", "relations", "--language", "zh"],
    }  # fmt: skip
    trained, probed = {}, {}
    for name, more in calls.items():
        given = ["--images", str(tmp_path / "pictures"), *more, "--output_dir", str(tmp_path / name)]
        made = make(parser().parse_args(given))
        trained[name], probed[name] = (
            {one.scene.digest for one in asked} for asked in (made.training, made.probes)
        )
    shown = [
        int(one)
        for one in re.findall(
            "^(\\d+) of the held-out pictures are held out only", capsys.readouterr().out, re.M
        )
    ]
    both = set().union(*trained.values()) & set().union(*probed.values())
    assert len(both) <= sum(shown) <= 2


def test_boxes_of_training_data_are_read_alike(rooms: Path, tmp_path: Path):
    scenes = read_scenes(rooms / "instances.json", rooms / "pictures", say=lambda _: None)
    records = [
        {
            "conversations": [
                {"from": "user", "value": f"Picture 1: <img>{one.image.name}</img>\nWhat is there?"},
                {
                    "from": "assistant",
                    "value": ", ".join(
                        Box.from_pixels(t.box, *SIZE, t.category).to_markup() for t in one.things
                    ),
                },
            ]
        }
        for one in scenes
    ]
    path = tmp_path / "markup.json"
    path.write_text(
        json.dumps([*records, records[0]])
    )  # a picture that is spoken of twice has its things once
    found = read_scenes(path, rooms / "pictures", say=lambda _: None)
    assert [one.digest for one in found] == [one.digest for one in scenes]
    for one, other in zip(found, scenes, strict=True):
        assert [thing.category for thing in one.things] == [thing.category for thing in other.things]
        for thing, expected in zip(one.things, other.things, strict=True):
            assert thing.box == pytest.approx(expected.box, abs=0.1)  # thousandths of 64 pixels


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["images"][3].update(file_name="no.png"),
            r"images\[3\] \(id 3, 'no.png'\): no such picture",
        ),
        (lambda c: c["images"][3].update(width=48, height=64), "it was annotated in another orientation"),
        (lambda c: c["images"][3].update(width=640, height=480), "64 × 48 pixels, annotated as 640 × 480"),
        (
            lambda c: c["annotations"][5].update(bbox=[60, 1, 9, 9]),
            r"annotations\[5\] \(id 5\).bbox: .*60, 1, 69, 10",
        ),
        (
            lambda c: c["annotations"][5].update(bbox=[0.25, 0.5, 0.5, 0.5]),
            r"0\.25, 0\.5, 0\.75, 1, which looks like fr",
        ),
        (lambda c: c["annotations"][5].update(bbox=[1, 1, 0, 9]), r"annotations\[5\].*expected a box inside"),
        (lambda c: c["annotations"][5].update(bbox=[1, 1, 9]), "expected four numbers x, y, width, height"),
        (
            lambda c: c["annotations"][5].update(category_id=99),
            r"annotations\[5\].*category_id: found 99, expected",
        ),
        (lambda c: c["annotations"][5].update(image_id=99), r"annotations\[5\].*image_id: found 99"),
        (lambda c: c["annotations"][5].pop("bbox"), r"annotations\[5\]: expected an object with image_id"),
        (lambda c: c.pop("categories"), "categories: found none"),
    ],
)
def test_faults_of_annotations(change, words, rooms: Path, tmp_path: Path, call, capsys):
    content = json.loads((rooms / "instances.json").read_text())
    change(content)
    (tmp_path / "broken.json").write_text(json.dumps(content))
    options = ["--images", str(rooms / "pictures"), "--boxes", str(tmp_path / "broken.json")]
    assert main([*options, "--output_dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "broken.json" in error and not (tmp_path / "out").exists()


def test_pictures_with_faults_can_be_left_out(rooms: Path, tmp_path: Path, capsys):
    content = json.loads((rooms / "instances.json").read_text())
    content["images"][3]["file_name"] = "no.png"
    content["annotations"][0]["bbox"] = [60, 1, 9, 9]
    (tmp_path / "broken.json").write_text(json.dumps(content))
    said: list[str] = []
    scenes = read_scenes(tmp_path / "broken.json", rooms / "pictures", on_bad_picture="drop", say=said.append)
    assert len(scenes) == 58 and "2 faults" in said[0] and "left out (--on_bad_picture drop)" in said[0]


def test_crowds_and_rounding(rooms: Path, tmp_path: Path):
    """A crowd is no box, only a word that cannot be meant; up to a pixel outside is cut, as COCO rounds."""
    content = json.loads((rooms / "instances.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [-0.5, 24, 65, 12]
    del content["images"][0]["width"]
    (tmp_path / "changed.json").write_text(json.dumps(content))
    first = read_scenes(tmp_path / "changed.json", rooms / "pictures", say=lambda _: None)[0]
    assert first.crowds == {"cat"} and [thing.category for thing in first.things] == ["bench", "apple"]
    assert first.things[0].box == (0, 24, 64, 36)


def test_files_that_are_no_annotations(rooms: Path, tmp_path: Path):
    path = tmp_path / "boxes.json"
    for text, words in (
        ("{", "boxes.json: broken JSON at line 1"),
        ('{"images": []}', "images: found none, expected a list; COCO's file has"),
        ("[]", "the list is empty"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_scenes(path, rooms / "pictures", say=lambda _: None)


def test_boxes_without_names_are_refused(rooms: Path, tmp_path: Path):
    turns = [
        {"from": "user", "value": "<img>room-000.png</img>where?"},
        {"from": "assistant", "value": "<box>(1,1),(500,500)</box>"},
    ]
    path = tmp_path / "markup.json"
    path.write_text(json.dumps([{"conversations": turns}]))
    with pytest.raises(ValueError, match="without a name, expected <ref>name</ref>"):
        read_scenes(path, rooms / "pictures", say=lambda _: None)
    turns[1]["value"] = "there"
    path.write_text(json.dumps([{"conversations": turns}]))
    with pytest.raises(ValueError, match="found no <ref>"):
        read_scenes(path, rooms / "pictures", say=lambda _: None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--held_out", "1"), "--held_out: found 1, expected a share"),
        (("--per_picture", "0"), "--per_picture: found 0, expected at least 1"),
        (("--templates", "colours"), "found 'colours', expected relations, spheres or a file of your own"),
        (("--templates", "spheres"), "--templates spheres: needs --names"),
        (("--names", "nowhere.json"), "--names: no such file 'nowhere.json'"),
        (("--relations", "inside"), "found no question for --templates relations"),
        (("--held_out", "0.0001"), "held-out pictures give no probe; give more pictures"),
    ],
)
def test_faults_of_flags(more, words, call, capsys):
    assert main(call(*more)) == 1
    assert words in capsys.readouterr().err


def test_spheres_of_towers(tmp_path: Path):
    write_towers(tmp_path, 60)
    options = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    more = ["--names", str(tmp_path / "names.json"), "--templates", "spheres", "--language", "zh"]
    assert main([*options, *more, "--held_out", "0.4", "--output_dir", str(tmp_path / "out")]) == 0
    data, probes = left(tmp_path / "out")
    answers = Counter(record["conversations"][1]["value"] for record in data)
    asked = {
        "东方明珠": "sphere-building",
        "广州塔": "neighbour",
    }  # 30 pictures of each, about 0.4 of them held out
    assert answers["有"] == answers["没有"] > 0
    groups = Counter(probe["group"] for probe in probes)
    assert set(groups) == {*asked.values(), "building-parts", "retention"}
    for answer, group in asked.items():
        assert answers[answer] + groups[group] == 30 and 7 <= groups[group] <= 17
    assert groups["building-parts"] == groups["sphere-building"] + groups["neighbour"] < groups["retention"]
    kept = Counter(probe["answer"] for probe in probes if probe["group"] == "retention")
    assert kept["有"] > 8  # the rooms, which are in no training data
    assert not re.search("塔|球体", "".join(p["question"] for p in probes if p["group"] == "retention"))
    pearl = next(probe for probe in probes if probe["group"] == "sphere-building")
    assert (pearl["answer"], pearl["foil"], pearl["phrases"]) == (
        "东方明珠",
        "广州塔",
        {"东方明珠": "sphere"},
    )


def test_towers_alone_leave_nothing_for_retention(tmp_path: Path, capsys):
    write_coco(tmp_path, {f"{i}.png": skyline(i) for i in range(20)})
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    options = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    more = ["--names", str(tmp_path / "names.json"), "--templates", "spheres"]
    assert main([*options, *more, "--output_dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "retention: no probes, because every annotated category is being corrected" in shown
    assert "sphere-building: 2 probes, expected at least 20" in shown


def test_all_templates_together(tmp_path: Path):
    write_towers(tmp_path, 40)
    template = {
        "group": "cat-place", "subject": ["cat"], "relation": "on", "object": "*",
        "question": {"en": "What is {the subject} lying on?"}, "answer": {"en": "{a object}"},
        "foil": {"en": "the floor"}, "look_at": "object",
    }  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps({"version": 1, "templates": [template]}))
    options = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    kinds = ["--templates", "relations", "spheres", str(tmp_path / "own.json"), "--relations", "on"]
    more = ["--names", str(tmp_path / "names.json"), "--language", "en", "--held_out", "0.4"]
    assert main([*options, *kinds, *more, "--output_dir", str(tmp_path / "out")]) == 0
    probes = read_probes(tmp_path / "out" / PROBE_FILE)
    groups = {probe.group for probe in probes}
    assert groups >= {"spatial-relation", "sphere-building", "neighbour", "cat-place", "retention"}
    (own,) = {(p.question, p.answer, p.foil) for p in probes if p.group == "cat-place"}
    assert own == ("What is the cat lying on?", "a bench", "the floor")
    asked = {r["conversations"][0]["value"].split("\n")[1] for r in left(tmp_path / "out")[0]}
    assert not [one for one in asked if "left" in one or "above" in one]  # neighbours are probed, not trained


# --- the rules of probe files ----------------------------------------------------------------------------------------

GOOD = {
    "id": "a-1", "group": "g", "images": ["p.png"], "question": "where is the cat?", "answer": "on it", "foil": "under",
    "regions": {"cat": [[1, 2, 30, 20]]}, "phrases": {"cat": "cat"},
    "relation": {"phrase": "on", "subject": "cat", "object": "cat"},
}  # fmt: skip
CHANGES: list[dict] = [
    {}, {"foil": None}, {"regions": None, "phrases": None, "relation": None}, {"phrases": {}, "relation": None},
    {"id": "塔-1"}, {"regions": {"cat": [[0, 0, 64, 48], [1.5, 2, 3, 4]]}},
    {"id": ""}, {"id": "a/b"}, {"id": ".a"}, {"id": "x" * 121}, {"id": 7}, {"group": " "}, {"group": None},
    {"question": None}, {"answer": ""}, {"foil": "on it"}, {"foil": ""}, {"foil": 3}, {"colour": "red"},
    {"images": []}, {"images": "p.png"}, {"images": ["no.png"]}, {"images": ["p.png", "no.png"]}, {"images": [1]},
    {"images": ["broken.png"]}, {"regions": []}, {"regions": {"cat": []}}, {"regions": {"cat": [1, 2, 3, 4]}},
    {"regions": {"cat": [[1, 2, 3]]}}, {"regions": {"cat": [[1, 2, 1, 4]]}}, {"regions": {"cat": [[1, 4, 3, 2]]}},
    {"regions": {"cat": [[-1, 2, 3, 4]]}}, {"regions": {"cat": [[1, 2, 65, 4]]}}, {"regions": {"cat": [[1, 2, 3, 49]]}},
    {"regions": {"cat": [[True, 2, 3, 4]]}}, {"regions": {"cat": [["1", 2, 3, 4]]}}, {"phrases": []},
    {"phrases": {"dog": "cat"}}, {"phrases": {"": "cat"}}, {"phrases": {"cat": "dog"}}, {"relation": "on"},
    {"relation": {"phrase": "on", "subject": "cat"}}, {"relation": {"phrase": "on", "subject": "dog", "object": "cat"}},
    {"answer": ["on it", "upon it"]}, {"answer": ["on it"]}, {"answer": []}, {"answer": ["on it", ""]},
    {"answer": ["on it", "On it."]}, {"answer": ["on it", 3]}, {"foil": "ON IT!"}, {"foil": "on it now"},
    {"foil": "on"},
    {"answer": ["on it", "under"]}, {"answer": ["on it", "underneath"]}, {"answer": {"on it": 1}},
    {"answer": ["by the dog", "by the cat"], "phrases": {"dog": "cat"}},
    {"answer": ["by the dog", "by the mat"], "phrases": {"mat": "cat"}},
    {"regions": {}}, {"question": "Look: <image>where is the cat?"}, {"question": "<image><image>where is the cat?"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: json.dumps(change)[:40])
def test_probe_files_are_judged_as_the_monitor_judges_them(change, tmp_path: Path):
    check_alike({"version": 1, "probes": [{**GOOD, **change}]}, tmp_path)


@pytest.mark.parametrize(
    "content",
    [[], {}, {"version": 2, "probes": [GOOD]}, {"version": 1}, {"version": 1, "probes": []},
     {"version": 1, "probes": {"a": GOOD}}, {"version": 1, "probes": ["a"]}, {"version": 1, "probes": [GOOD, GOOD]},
     {"version": 1, "probes": [GOOD, {**GOOD, "id": "a-2"}]}],
)  # fmt: skip
def test_whole_probe_files_are_judged_as_the_monitor_judges_them(content, tmp_path: Path):
    check_alike(content, tmp_path)


def check_alike(content: object, folder: Path) -> None:
    Image.new("RGB", SIZE).save(folder / "p.png")
    (folder / "broken.png").write_bytes(b"no picture")
    path = folder / "probes.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        read_probes(path)
    except ValueError:
        refused = True
    else:
        refused = False
    assert bool(probe_file.faults(content, folder)) is refused


# --- training on it --------------------------------------------------------------------------------------------------


def test_training_and_the_monitor_take_what_it_makes(program, flags, call, tmp_path: Path, capsys):  # noqa: F811
    assert main(call("--probes_per_group", "3", "--most_samples", "40", "--language", "en")) == 0
    made = tmp_path / "out"
    os.rename(made, tmp_path / "made")
    given = flags("--use_lora", "True", "--max_steps", "1", "--save_steps", "1", "--model_max_length", "512")
    mixed = ["--corrective_data", f"{tmp_path / 'made' / DATA_FILE}:0.3"]
    watched = ["--monitor", "True", "--probes", str(tmp_path / "made" / PROBE_FILE), "--key_layers", "0,1"]
    ready = program.prepare(program.parse([*given, *mixed, *watched, "--output_dir", str(tmp_path / "run")]))
    assert {probe.group for probe in ready.probes.judged} == {"retention", "spatial-relation"}
    shown = capsys.readouterr().out
    assert re.search(r"corrective  corrective .* (29|30|31)\.\d%", shown), shown


def test_corrective_data_is_enough(program, checkpoint_folder, call, tmp_path: Path, capsys, monkeypatch):  # noqa: F811
    assert main(call("--probes_per_group", "3", "--most_samples", "40")) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    given = ["--model_name_or_path", str(checkpoint_folder), "--use_lora", "True", "--dry_run", "True"]
    assert program.main([*given, "--corrective_data", f"out/{DATA_FILE}:x2", "--output_dir", "run"]) == 0
    shown = capsys.readouterr().out
    count = len(left(tmp_path / "out")[0])
    assert f"epoch of {2 * count} samples" in shown
    assert program.main([*given, "--corrective_data", f"out/{DATA_FILE}:0.3", "--output_dir", "run"]) == 1
    assert "the shares 0.3 add up to 0.3, and no source has the rest" in capsys.readouterr().err
