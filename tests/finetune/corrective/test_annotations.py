"""Annotations as people have them: files put together, labels spelled in several ways, fields of other types."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from diagnostics.records.pictures import picture_mark
from finetune.corrective import general_questions
from finetune.corrective.__main__ import main
from finetune.corrective.annotations import read_scenes
from finetune.corrective.category_names import Names
from finetune.corrective.scenes import Scene
from tests.finetune.corrective_data import room, write_coco

CAT, DOG = (10, 10, 30, 30), (50, 50, 80, 80)  # x0 y0 x1 y1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (100, 90), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def coco() -> dict[str, Any]:
    """A cat in a.png, a dog in b.png."""
    return {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [50, 50, 30, 30]},
        ],
    }


def scenes(folder: Path, content: Any, **options: Any) -> list[Scene]:
    path = folder / "boxes.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_scenes(path, folder, **{"say": lambda _: None, **options})


def marked(picture: str, *labels: str) -> dict[str, Any]:
    """A conversation with a box for each label, all at different places."""
    boxes = ", ".join(
        f"<ref>{one}</ref><box>({50 * i},0),({50 * i + 100},200)</box>" for i, one in enumerate(labels)
    )
    turns = [{"from": "user", "value": f"<img>{picture}</img>\nwhat?"}, {"from": "assistant", "value": boxes}]
    return {"conversations": turns}


# --- what is listed twice ----------------------------------------------------------------------------------


def test_two_exports_that_each_count_from_1_are_refused(folder: Path):
    content = coco()
    content["images"] += [{"id": 2, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]
    content["categories"].append({"id": 1, "name": "cup"})
    with pytest.raises(ValueError, match="3 faults") as caught:
        scenes(folder, content)
    expected = ("images[2].id: found 2, the id of images[1]", "images[3].id: found 1, the id of images[0]")
    for fault in (*expected, "categories[2].id: found 1, the id of categories[0], expected one of its own"):
        assert fault in str(caught.value)


def test_a_file_under_two_ids_is_one_scene_with_each_box_once(folder: Path):
    (folder / "link").symlink_to(folder)
    content = coco()
    content["images"][0] |= {"width": 100, "height": 90}
    content["images"] += [{"id": 3, "file_name": "a.png"}, {"id": 4, "file_name": "link/a.png"}]
    cat = content["annotations"][0]
    content["annotations"] += [
        {**cat, "id": 3}, {**cat, "id": 4, "image_id": 3},
        {"id": 5, "image_id": 4, "category_id": 2, "bbox": [50, 50, 30, 30]},
        {"id": 6, "image_id": 3, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ]  # fmt: skip
    first, second = scenes(folder, content)
    assert first.image.name == "a.png" and second.image.name == "b.png"
    assert [(thing.category, thing.box) for thing in first.things] == [("cat", CAT), ("dog", DOG)]
    assert first.crowds == {"dog"} and [one.category for one in first.single] == ["cat"]


def test_a_file_that_is_listed_with_two_sizes_is_a_fault(folder: Path):
    content = coco()
    content["images"][0] |= {"width": 100, "height": 90}
    content["images"].append({"id": 3, "file_name": "a.png", "width": 50, "height": 45})
    words = r"images\[2\] .*: found 50 × 45 pixels, but images\[0\] .* is the same file and has 100 × 90"
    with pytest.raises(ValueError, match=words):
        scenes(folder, content)


def saved_again(one: Path, other: Path) -> None:
    words = PngInfo()
    words.add_text("Software", "exported again")
    Image.open(one).save(other, pnginfo=words)


def turned(one: Path, other: Path) -> None:
    """Stored on its side, with the orientation that sets it upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(one).transpose(Image.Transpose.ROTATE_90).save(other, exif=exif)


@pytest.mark.parametrize("copied", [shutil.copy, saved_again, turned])
def test_copies_of_a_picture_are_one_scene_with_all_that_is_annotated(folder: Path, copied: Any):
    copied(folder / "a.png", folder / "b.png")
    content = coco()
    content["annotations"].append(
        {"image_id": 2, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    )
    (found,) = scenes(folder, content)
    assert found.image.name == "a.png" and found.crowds == {"dog"} and found.categories == {"cat", "dog"}
    assert [thing.box for thing in found.things] == [CAT, DOG]
    assert found.digest == picture_mark(folder / "a.png") == picture_mark(folder / "b.png")


def test_a_fault_in_one_copy_leaves_out_the_others(folder: Path):
    """Alone, the first would be asked whether it has what the second names."""
    shutil.copy(folder / "a.png", folder / "b.png")
    Image.new("RGB", (100, 90), "green").save(folder / "c.png")
    content = coco()
    content["images"].append({"id": 3, "file_name": "c.png"})
    content["annotations"] += [{"image_id": 2, "category_id": 2, "bbox": [95, 0, 9, 9]}]
    content["annotations"] += [{"image_id": 3, "category_id": 1, "bbox": [10, 10, 20, 20]}]
    said: list[str] = []
    (found,) = scenes(folder, content, on_bad_picture="drop", say=said.append)
    assert found.image.name == "c.png"
    assert (
        "images[0] (id 1, 'a.png'): the same picture as images[1] (id 2, 'b.png'), which has a fault"
        in said[0]
    )


@pytest.mark.parametrize(
    ("box", "category", "count"),
    [
        ([10.0, 10.2, 20, 19.9], 1, 1),  # 20 × 19.8 shared of 20 × 20.1: .985
        ([10, 10, 19.1, 20], 1, 1),  # .955
        ([10, 10, 18.9, 20], 1, 2),  # .945
        ([10, 10, 20, 20], 2, 2),  # of another category
    ],
)
def test_boxes_that_cover_one_another_are_one(folder: Path, box: list[float], category: int, count: int):
    content = coco()
    content["annotations"].append({"image_id": 1, "category_id": category, "bbox": box})
    assert len(scenes(folder, content)[0].things) == count


# --- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "named", "expected"),
    [
        (("the cat", "cat", "A  cat ", "an apple"), (), ("cat", "cat", "cat", "apple")),
        (("Cat", "cat", "CAT"), (), ("cat", "cat", "cat")),
        (("TV", "Cat", "theatre", "another", "the"), (), ("TV", "Cat", "theatre", "another", "the")),
        (("The Hague", "Hague"), ("the Hague",), ("the Hague", "Hague")),
        (("bench", "The BENCH"), ("Bench",), ("Bench", "Bench")),
        (("Polish", "polish", "POLISH"), ("Polish", "polish"), ("Polish", "polish", "polish")),
    ],
)
@pytest.mark.parametrize("written", ["COCO", "<ref>"])
def test_labels_of_one_category_are_put_together(
    folder: Path, written: str, labels: tuple[str, ...], named: tuple[str, ...], expected: tuple[str, ...]
):
    content: Any = [marked("a.png", *labels)]
    if written == "COCO":
        content = coco()
        content["categories"] = [{"id": index, "name": label} for index, label in enumerate(labels)]
        content["annotations"] = [
            {"image_id": 1, "category_id": i, "bbox": [i, 0, 10, 18]} for i in range(len(labels))
        ]
    (found,) = scenes(folder, content, named=named)
    assert tuple(thing.category for thing in found.things) == expected


def test_it_says_in_one_line_which_labels_were_put_together(folder: Path):
    said: list[str] = []
    scenes(folder, [marked("a.png", "the cat", "cat", "dog"), marked("b.png", " the  dog")], say=said.append)
    shown = "'cat', 'the cat' as cat; ' the  dog', 'dog' as dog"
    assert said[-1] == f"{folder / 'boxes.json'}: labels are read as categories: {shown}"
    many = [marked("a.png", *(f"the thing {i:02d}" for i in range(12)))]
    scenes(folder, many, say=said.append)
    assert said[-1].endswith("; 'the thing 09' as thing 09 and 2 more")
    said.clear()
    scenes(folder, coco(), say=said.append)
    assert not said


def test_no_question_denies_what_another_article_names(tmp_path: Path):
    """Pictures of cats, every other one labelled "the cat": a cat is in all of them."""
    write_coco(tmp_path, {f"{i}.png": room(i) for i in range(60)})
    content = json.loads((tmp_path / "instances.json").read_text())
    content["categories"].append({"id": 99, "name": "the cat"})
    for entry in content["annotations"]:
        if entry["category_id"] == content["categories"][0]["id"] and entry["image_id"] % 2:
            entry["category_id"] = 99
    (tmp_path / "instances.json").write_text(json.dumps(content))
    flags = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    more = ["--language", "en", "--held_out", "0.5"]
    assert main([*flags, *more, "--output_dir", str(tmp_path / "out")]) == 0
    probes = json.loads((tmp_path / "out" / "probes.json").read_text())["probes"]
    kept = [one for one in probes if one["group"] == "retention" and "cat" in one["question"]]
    assert kept and {one["answer"] for one in kept} == {"yes"}


def test_names_of_the_users_keep_their_articles(tmp_path: Path):
    """Through the command: --names is read before labels become categories."""
    write_coco(tmp_path, {f"{i}.png": room(i) for i in range(30)})
    text = (tmp_path / "instances.json").read_text()
    (tmp_path / "instances.json").write_text(text.replace('"name": "bench"', '"name": "the  Bench"'))
    (tmp_path / "names.json").write_text(json.dumps({"the Bench": {"zh": "长椅", "en": "the old bench"}}))
    flags = ["--images", str(tmp_path / "pictures"), "--boxes", str(tmp_path / "instances.json")]
    more = [
        "--language",
        "en",
        "--names",
        str(tmp_path / "names.json"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main([*flags, *more]) == 0
    assert "the old bench" in (tmp_path / "out" / "corrective.json").read_text()


# --- fields of other types -----------------------------------------------------------------------------------


def change(key: str, index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[key][index].update(fields)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (change("categories", 1, name=""), 'categories[1].name: found "", expected text that is not blank'),
        (change("categories", 1, name=3), "categories[1].name: found 3, expected text"),
        (change("categories", 1, name=None), "categories[1].name: found null, expected text"),
        (change("categories", 1, id={}), "categories[1].id: found an object of 0, expected a whole number or"),
        (change("images", 1, id=[1]), "images[1].id: found a list of 1, expected a whole number or text"),
        (change("images", 1, id=True), "images[1].id: found true, expected a whole number or text"),
        (change("images", 1, file_name=None), "images[1].file_name: found null, expected text"),
        (change("images", 0, file_name="a\0.png"), r"images[0] (id 1, 'a\x00.png'): no such picture"),
        (change("images", 0, file_name="\ud83d.png"), "images[0] (id 1, '\\ud83d.png'): no such picture"),
        (change("annotations", 0, image_id=[1]), "annotations[0].image_id: found a list of 1, expected"),
        (change("annotations", 0, category_id=[1]), "annotations[0] (id 1).category_id: found [1], expected one"),
        (change("annotations", 0, category_id=None), "category_id: found None, expected one of categories (1, 2)"),
        (change("annotations", 0, bbox=[1, 1, 10**400, 2]), "expected four numbers x, y, width, height"),
        (change("images", 0, width="100", height="90"), """'a.png').width: found "100", expected a whole number"""),
        (change("images", 0, width=100.5, height=90), "'a.png').width: found 100.5, expected a whole number"),
    ],
)  # fmt: skip
def test_fields_of_other_types_are_one_message(folder: Path, changed: Any, words: str):
    content = coco()
    changed(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        scenes(folder, content)


def test_an_unknown_category_is_named_beside_ids_of_two_types(folder: Path):
    content = coco()
    content["categories"][1]["id"] = "2"
    with pytest.raises(ValueError, match=r"category_id: found 2, expected one of categories \(1, '2'\)"):
        scenes(folder, content)


def test_a_size_of_null_is_one_that_is_not_given(folder: Path):
    content = coco()
    content["images"][0] |= {"width": None, "height": None}
    content["images"][1] |= {"width": 100.0, "height": 90}
    assert [one.size for one in scenes(folder, content)] == [(100, 90), (100, 90)]


def test_a_wrong_size_can_be_left_out(folder: Path):
    content = coco()
    content["images"][0]["width"] = "100"
    (found,) = scenes(folder, content, on_bad_picture="drop")
    assert found.image.name == "b.png"


# --- what a file does not say ------------------------------------------------------------------------------


def test_what_is_not_there_is_known_where_a_federated_file_says_so(folder: Path):
    """LVIS: the cat of a.png has company without boxes, b.png has no cat, and of a dog in a.png nothing is known."""
    content, said = coco(), []
    content["categories"].append({"id": 3, "name": "cup"})
    content["images"][0] |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [1]}
    one, other = scenes(folder, content, say=said.append)
    assert (one.absent, other.absent) == ({"cup"}, frozenset())
    assert one.crowds == {"cat"} and not one.single and [thing.category for thing in other.single] == ["dog"]
    assert [line.split(": ", 1)[1] for line in said] == [
        "what is not in a picture is taken from neg_category_ids, which 1 of 2 have",
        "1 picture(s) have not_exhaustive_category_ids: of these categories there may be more than has boxes",
    ]
    asked = [
        [*general_questions.ask(scene, Names(), ["cat", "dog", "cup"], "en", Random(0))]
        for scene in (one, other)
    ]
    assert [[(q.about[0], q.answer) for q in of] for of in asked] == [
        [("cat", "yes"), ("cup", "no")],
        [("dog", "yes")],
    ]
    content = coco()
    plain = scenes(folder, content)
    assert [one.absent for one in plain] == [None, None]
    content["images"][1]["neg_category_ids"] = [9]
    with pytest.raises(
        ValueError, match=r"images\[1\].*neg_category_ids: found \[9\], expected a list of ids"
    ):
        scenes(folder, content)


def test_a_box_to_be_ignored_is_a_crowd(folder: Path):
    content, said = coco(), []
    content["annotations"][0]["ignore"] = 1
    one, _ = scenes(folder, content, say=said.append)
    assert one.crowds == {"cat"} and not one.things
    assert said == [f"{folder / 'boxes.json'}: 1 annotation(s) to be ignored are read as crowds"]


def test_boxes_of_answers_that_are_not_trained_on_are_no_annotations(folder: Path):
    """The first is the wrong one: the next question says so."""
    wrong, right = (
        {"role": "assistant", "content": f"<ref>the {name}</ref><box>(0,0),(200,200)</box>"}
        for name in ("cat", "dog")
    )
    messages = [
        {"role": "user", "content": "<image>Find the dog"},
        wrong | {"weight": 0},
        {"role": "user", "content": "No."},
        right,
    ]
    said: list[str] = []
    alone = {
        "images": ["b.png"],
        "messages": [*messages[:3], {"role": "assistant", "content": "?"}],
    }
    [scene] = scenes(folder, [{"images": ["a.png"], "messages": messages}, alone], say=said.append)
    assert [thing.category for thing in scene.things] == ["dog"] and scene.image.name == "a.png"
    assert (scene.crowds, scene.unsure, [one.category for one in scene.single]) == (set(), {"cat"}, ["dog"])
    assert any(
        "2 box(es) in answers that are not trained on (weight 0) are not read; whether" in one for one in said
    )
    # The cat may be there or not.
    asked = general_questions.ask(scene, Names(), ["cat", "dog", "cup"], "en", Random(0))
    assert [(q.about[0], q.answer) for q in asked] == [("dog", "yes"), ("cup", "no")]
