"""Every planted fault is reported, all at once, with probe, field, found and expected."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diagnostics.records.probes import Probe, as_asked, groups_of, read_probes, write_probes


def an_entry(**changes) -> dict:
    entry = {
        "id": "pearl-night-03",
        "group": "sphere-building",
        "images": ["images/pearl.png"],
        "question": "这座塔是什么?",
        "answer": "东方明珠",
        "foil": "广州塔",
        "regions": {"spheres": [[41, 30, 63, 52], [38, 60, 66, 80]], "body": [[36, 12, 68, 80]]},
        "phrases": {"东方明珠": "spheres", "这座塔": "body"},
        "relation": None,
    }
    return {**entry, **changes}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (120, 80)).save(tmp_path / "images" / "pearl.png")
    return tmp_path


def write(folder: Path, *entries: dict, version=1) -> Path:
    path = folder / "probes.json"
    path.write_text(json.dumps({"version": version, "probes": list(entries)}), encoding="utf-8")
    return path


def test_a_sound_file_is_read_and_written_again_elsewhere(folder):
    path = write(
        folder,
        an_entry(),
        an_entry(id="猫-2", group="spatial-relation", phrases={},
                 relation={"phrase": "on", "subject": "body", "object": "spheres"}),
        {"id": "c", "group": "retention", "images": ["images/pearl.png"], "question": "q", "answer": "a"},
    )  # fmt: skip
    probes = read_probes(path)
    assert probes[0].images == (folder / "images" / "pearl.png",)
    assert probes[0].regions["spheres"] == ((41, 30, 63, 52), (38, 60, 66, 80))
    assert [probe.main_region for probe in probes] == ["spheres", "spheres", None]
    assert probes[1].relation.subject == "body" and probes[2].foil is None
    assert {name: len(group) for name, group in groups_of(probes).items()} == {
        "sphere-building": 1, "spatial-relation": 1, "retention": 1}  # fmt: skip
    write_probes(probes, folder / "out" / "attention" / "probes.json")
    again = read_probes(folder / "out" / "attention" / "probes.json")
    assert [probe.images[0].resolve() for probe in again] == [folder.resolve() / "images" / "pearl.png"] * 3
    assert [(p.id, p.regions, p.phrases, p.relation) for p in again] == [
        (p.id, p.regions, p.phrases, p.relation) for p in probes
    ]
    assert [p.name for p in (folder / "out" / "attention").iterdir()] == ["probes.json"]


def test_spellings_are_read_and_written_as_they_were(folder):
    path = write(
        folder,
        an_entry(answer=["东方明珠", "东方明珠塔"]),
        an_entry(id="b"),
        an_entry(id="c", answer=["东方明珠"]),
    )
    probes = read_probes(path)
    assert [probe.answer for probe in probes] == ["东方明珠"] * 3
    assert [probe.spellings for probe in probes] == [("东方明珠", "东方明珠塔"), ("东方明珠",), ("东方明珠",)]
    assert probes[0].main_region == "spheres"  # that of the scored answer as a phrase
    write_probes(probes, folder / "again.json")
    written = json.loads((folder / "again.json").read_text(encoding="utf-8"))["probes"]
    assert [entry["answer"] for entry in written] == [["东方明珠", "东方明珠塔"], "东方明珠", "东方明珠"]
    assert [probe.spellings for probe in read_probes(folder / "again.json")] == [
        probe.spellings for probe in probes
    ]


def test_a_replaced_answer_has_no_other_spellings():
    probe = Probe("p", "g", (Path("a.png"),), "q", "Pearl", "Canton", spellings=("Pearl", "Oriental Pearl"))
    assert probe.spellings == ("Pearl", "Oriental Pearl") == replace(probe, id="r").spellings
    assert replace(probe, answer="Canton", foil="Pearl").spellings == ("Canton",)
    with pytest.raises(ValueError, match="probe p: spellings: found .*; expected the answer"):
        replace(probe, answer="Oriental Pearl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["images/none.png"]}, "images: found images/none.png (no such file); expected an image at"),
        ({"images": []}, "images: found []; expected a list with at least one path"),
        ({"regions": {"spheres": [[41, 30, 63, 90]]}, "phrases": {}},
         "regions.spheres[0]: found [41, 30, 63, 90]; expected a box inside its image of 120×80 pixels"),
        ({"regions": {"spheres": [[0.2, 0.1, 0.5, 1]]}, "phrases": {}},
         "regions.spheres[0]: found [0.2, 0.1, 0.5, 1], which looks like fractions of the picture; expected pixels of "
         "its image of 120×80; multiply x by 120 and y by 80"),
        ({"regions": {"spheres": [[0, 0, 1, 1]]}, "phrases": {}}, "which looks like fractions of the picture"),
        ({"regions": {"spheres": [[-1, 30, 63, 50]]}, "phrases": {}}, "expected a box inside its image"),
        ({"regions": {"spheres": [[41, 30, 41, 52]]}, "phrases": {}},
         "regions.spheres[0]: found [41, 30, 41, 52], an empty box; expected x0 < x1"),
        ({"regions": {"spheres": [[41, 30, 63]]}, "phrases": {}},
         "regions.spheres[0]: found [41, 30, 63]; expected four"),
        ({"regions": {"spheres": []}, "phrases": {}},
         "regions.spheres: found []; expected a list of at least one box"),
        ({"phrases": {"猫": "spheres"}},
         "phrases: found '猫'; expected words that appear verbatim in the question or the answer"),
        ({"phrases": {"东方明珠": "ball"}},
         "phrases.东方明珠: found 'ball'; expected one of the regions: spheres, body"),
        ({"relation": {"phrase": "on", "subject": "cat", "object": "body"}},
         "relation.subject: found 'cat'; expected one of the regions"),
        ({"relation": {"phrase": "on"}}, "relation: found {'phrase': 'on'}; expected null or"),
        ({"id": "a/b"}, "id: found 'a/b'; expected a file name"),
        ({"id": ".."}, "id: found '..'; expected a file name"),
        ({"foil": "东方明珠"}, "foil: found '东方明珠', the answer itself; expected a wrong answer"),
        ({"foil": "“东方明珠”。"},
         "foil: found '“东方明珠”。', the answer itself ('东方明珠'); expected a wrong answer"),
        ({"foil": "东方"},
         "foil: found '东方' against the answer '东方明珠': '东方' begins '东方明珠'; expected two answers"),
        ({"foil": "东方明珠 塔"},
         "'东方明珠' begins '东方明珠 塔'; expected two answers, neither a prefix of the other"),
        ({"answer": ["东方明珠", "Ｐearl"], "foil": " PEARL tower"},
         "foil: found ' PEARL tower' against the answer 'Ｐearl': 'Ｐearl' begins ' PEARL tower'; expected two"),
        ({"answer": ["东方明珠", "Pearl"], "foil": "pearl."}, "foil: found 'pearl.', the answer itself ('Pearl')"),
        ({"answer": ["东方明珠", "Pearl", "PEARL!"]}, "answer: found 'PEARL!' twice among the spellings; expected"),
        ({"answer": [], "phrases": {}}, "answer: found []; expected non-empty text, or a list of accepted spellings"),
        ({"answer": ["东方明珠", " "]}, "answer: found ' '; expected non-empty text, or a list"),
        ({"answer": ["东方明珠", 3]}, "answer: found 3; expected non-empty text, or a list"),
        ({"answer": ["Pearl", "东方明珠"]}, "phrases: found '东方明珠'; expected words that appear verbatim"),
        ({"question": " ", "phrases": {}}, "question: found ' '; expected non-empty text"),
        ({"answr": "x"}, "answr: found an unknown field; expected one of id, group"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_named(folder, changes, message):
    path = write(folder, an_entry(id="first"), an_entry(**changes))
    with pytest.raises(ValueError) as error:
        read_probes(path)
    name = changes.get("id", "pearl-night-03")
    assert str(error.value).startswith(f"{path}: 1 fault(s) in the probe file:\n  probe 1 (id {name!r}): ")
    assert message in str(error.value)


def test_all_faults_come_at_once_and_duplicates_name_their_places(folder):
    path = write(folder, an_entry(foil="东方明珠"), an_entry(images=["no.png"]), an_entry(id="b", group=""))
    with pytest.raises(ValueError) as error:
        read_probes(path)
    text = str(error.value)
    assert (
        "4 fault(s)" in text
        and "probes 0, 1: id: found 'pearl-night-03' 2 times; expected each id once" in text
    )
    assert "probe 0" in text and "probe 1" in text and "probe 2 (id 'b'): group: found ''" in text


def test_faults_of_the_file_itself(folder):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no probe file there"):
        read_probes(folder / "none.json")
    with pytest.raises(ValueError, match="version: found 2; expected"):
        read_probes(write(folder, an_entry(), version=2))
    with pytest.raises(ValueError, match="probes: found none; expected a list of at least one probe"):
        read_probes(write(folder))
    (folder / "probes.json").write_text('{"version": 1,\n "probes": [,]}')
    with pytest.raises(ValueError, match=r"probes\.json: not readable as JSON .*line 2 column 13"):
        read_probes(folder / "probes.json")
    (folder / "images" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"images/broken\.png \(not readable as an image"):
        read_probes(write(folder, an_entry(images=["images/broken.png"])))


def test_boxes_are_in_pixels_of_the_image_as_it_is_shown(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 120×80 on disk, 80×120 to look at
    Image.new("RGB", (120, 80)).save(folder / "images" / "turned.jpg", exif=exif)
    entry = an_entry(images=["images/turned.jpg"], regions={"top": [[0, 90, 80, 120]]}, phrases={})
    assert read_probes(write(folder, entry))[0].regions["top"] == ((0, 90, 80, 120),)
    with pytest.raises(ValueError, match="inside its image of 80×120 pixels"):
        read_probes(write(folder, {**entry, "regions": {"right": [[90, 0, 120, 80]]}}))


def test_a_probe_made_in_python_may_name_its_picture_by_a_string(shapes_unchecked):
    probe = Probe("p", "g", ("a/b.png",), "what?", "a box")
    assert probe.images == (Path("a/b.png"),)


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("<image>\nWhat is this?", "What is this?"),
        ("<image> <image>这是什么? <image>", "这是什么?"),
        ("Is <image> like <image> there?", "Is <image> like <image> there?"),
        ("What?", "What?"),
    ],
)
def test_a_question_as_people_read_it(question: str, asked: str) -> None:
    assert as_asked(question) == asked


@pytest.mark.parametrize("question", ["Picture 1: <img>a.png</img>\nWhat?", "write \\<image> here"])
def test_what_training_data_say_of_a_picture_is_no_question(folder, question):
    path = write(folder, an_entry(question=question, phrases={"东方明珠": "spheres"}))
    with pytest.raises(ValueError, match=r"question: found (<img>|\\<image>).*expected <image> or nothing"):
        read_probes(path)
