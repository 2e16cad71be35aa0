"""Boxes in any format become fractions of the upright picture, by hand-computed cases."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.samples.box_numbers import fractions, point_fractions
from finetune.samples.conversation import BoxRef, Part
from finetune.samples.source import read

WIDE, TALL = (448, 200), (30, 120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", WIDE).save(tmp_path / "wide.png")
    Image.new("RGB", TALL).save(tmp_path / "tall.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown upright: 200 × 448
    Image.new("RGB", WIDE).save(tmp_path / "turned.jpg", exif=exif)
    return tmp_path


def parse(
    folder: Path, question: str, answer: str, *pictures: str, units: Any = None, **more: Any
) -> list[Part]:
    """The parts of question and answer, pictures in front, read from messages."""
    turns = [
        {"role": "user", "content": "<image>" * len(pictures) + question},
        {"role": "assistant", "content": answer},
    ]
    record = {"messages": turns, "images": list(pictures), **more}
    (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    (found,) = read(folder / "data.json", box_units=units, say=lambda _: None)
    return [
        part for turn in found.turns for part in turn.parts[len(pictures) if turn.role == "user" else 0 :]
    ]


# --- Qwen-VL's markup ------------------------------------------------------------------------------------------------


def test_markup_is_thousandths_whatever_the_units(folder: Path):
    for units in (None, "pixels"):
        parts = parse(
            folder, "a?", "<ref>the dog</ref><box>(250,0),(500,1000)</box>.", "wide.png", units=units
        )
        written = "<ref>the dog</ref><box>(250,0),(500,1000)</box>"
        assert parts == ["a?", BoxRef(written, ((0.25, 0.0, 0.5, 1.0),), "the dog", 0, "qwen-vl"), "."]


def test_several_boxes_after_one_phrase(folder: Path):
    answer = (
        "<ref>dogs</ref> <box>(1,2),(3,4)</box><box>( 5 , 6 ) , ( 7 , 8 )</box> and <box>(0,0),(1,1)</box>"
    )
    first, words, second = parse(folder, "a?", answer, "wide.png")[1:]
    assert isinstance(first, BoxRef) and isinstance(second, BoxRef)
    assert first.boxes == ((0.001, 0.002, 0.003, 0.004), (0.005, 0.006, 0.007, 0.008))
    assert (first.label, words, second.label) == ("dogs", " and ", None)
    assert first.written + words + second.written == answer


def test_boxes_in_questions_and_a_quad_that_stays_text(folder: Path):
    quad = " <quad>(1,2),(3,4),(5,6),(7,8)</quad>"
    parts = parse(folder, f"what is <box>(0,0),(9,9)</box>?{quad}", "x", "wide.png")
    assert parts == ["what is ", BoxRef("<box>(0,0),(9,9)</box>", ((0, 0, 0.009, 0.009),)), f"?{quad}", "x"]


def test_markup_in_qwen_vl_data_and_none_in_a_system_turn(folder: Path):
    values = [
        ("system", "answer with <box>(x,y),(x,y)</box>"),
        ("user", "<img>wide.png</img>?"),
        ("assistant", "<box>(1,2),(3,4)</box>"),
    ]
    record = {"conversations": [{"from": role, "value": value} for role, value in values]}
    (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    (found,) = read(folder / "data.json")
    assert found.turns[0].parts == (values[0][1],)
    assert found.turns[2].parts == (BoxRef(values[2][1], ((0.001, 0.002, 0.003, 0.004),)),)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_boxes_in_pixels_and_the_text_around_them(folder: Path):
    answer = (
        '```json\n[{"bbox_2d": [112, 0, 224, 100], "label": "a {dog}"},\n'
        ' {"label": "b", "bbox_2d": [0, 0, 448.0, 200]}]\n```'
    )
    parts = parse(folder, "find", answer, "wide.png", units="pixels")[1:]
    first, second = parts[1], parts[3]
    assert first == BoxRef(
        '{"bbox_2d": [112, 0, 224, 100], "label": "a {dog}"}', ((0.25, 0, 0.5, 0.5),), "a {dog}", 0, "json"
    )
    assert isinstance(second, BoxRef) and (second.label, second.boxes) == ("b", ((0, 0, 1, 1),))
    assert parts[::2] == ["```json\n[", ",\n ", "]\n```"]
    assert "".join(part.written if isinstance(part, BoxRef) else str(part) for part in parts) == answer


def test_json_boxes_in_thousandths_alone_or_several(folder: Path):
    one = parse(folder, "find", '{"bbox_2d": [250, 0, 500, 12.5]}', "wide.png", units="thousandths")[1]
    two = parse(folder, "find", '{"bbox_2d": [[1, 2, 3, 4], [0, 0, 5, 5]]}', "wide.png", units="thousandths")[
        1
    ]
    assert isinstance(one, BoxRef) and isinstance(two, BoxRef)
    assert (one.boxes, one.label) == (((0.25, 0, 0.5, 0.0125),), None)
    assert two.boxes == ((0.001, 0.002, 0.003, 0.004), (0, 0, 0.005, 0.005))


def test_pixels_are_those_of_the_picture_as_a_person_sees_it(folder: Path):
    answer = '{"bbox_2d": [50, 112, 200, 448]}'  # beyond the 200 rows of the picture as stored
    (box,) = parse(folder, "find", answer, "turned.jpg", units="pixels")[1:]
    assert isinstance(box, BoxRef) and box.boxes == ((0.25, 0.25, 1.0, 1.0),)


def test_json_without_boxes_stays_text(folder: Path):
    answer = '{"colour": "red", "size": [1, 2]}'
    assert parse(folder, "find", answer, "wide.png")[1:] == [answer]


@pytest.mark.parametrize("key", ["bbox_2d", "bbox"])
def test_either_key_of_a_box_is_a_box(folder: Path, key: str):
    (box,) = parse(folder, "find", f'{{"{key}": [112, 0, 224, 100]}}', "wide.png", units="pixels")[1:]
    assert isinstance(box, BoxRef) and (box.boxes, box.key) == (((0.25, 0, 0.5, 0.5),), key)


def test_points_are_two_numbers(folder: Path):
    answer = '{"point_2d": [112, 50], "label": "dog"}'
    assert parse(folder, "find", answer, "wide.png", units="pixels")[1:] == [
        BoxRef(answer, ((0.25, 0.25, 0.25, 0.25),), "dog", 0, "json", "point_2d")
    ]
    answer = "<|box_start|>(250,500)<|box_end|>"
    assert parse(folder, "find", answer, "wide.png")[1:] == [
        BoxRef(answer, ((0.25, 0.5, 0.25, 0.5),), None, 0, "qwen2-vl", "point_2d")
    ]
    (point,) = parse(folder, "find", "<bbox>", "wide.png", units="pixels", objects={"bbox": [[448, 0]]})[1:]
    assert isinstance(point, BoxRef) and (point.boxes, point.key) == (((1, 0, 1, 0),), "point_2d")


def test_numbers_may_be_words_and_names_of_numbers_are(folder: Path):
    answer = '{"bbox": [1, 2, 3, 4], "category": "dog"}'
    assert parse(folder, "find", answer, "wide.png", units="text")[1:] == [answer]
    asked = 'answer with {"bbox_2d": [x1, y1, x2, y2]} or {"point_2d": [x, y]}'
    assert parse(folder, asked, "none", "wide.png") == [asked, "none"]
    assert parse(folder, "hi", answer) == ["hi", answer]  # no picture that it could be in


# --- the families' control tokens in data ----------------------------------------------------------------------------

OBJECT = "<|object_ref_start|>the dog<|object_ref_end|>"


def test_qwen2_vls_own_markup_is_boxes_and_phrases(folder: Path):
    box = "<|box_start|>(250,0),(500,1000)<|box_end|>"
    parts = parse(folder, f"find {OBJECT}", f"{OBJECT}{box} and {box}", "wide.png")
    corners = ((0.25, 0.0, 0.5, 1.0),)
    assert parts == [
        "find ",
        BoxRef(OBJECT, (), "the dog", 0, "qwen2-vl"),
        BoxRef(OBJECT + box, corners, "the dog", 0, "qwen2-vl"),
        " and ",
        BoxRef(box, corners, None, 0, "qwen2-vl"),
    ]


def test_internvls_boxes_and_a_phrase_alone(folder: Path):
    answer = "<ref>dogs</ref><box>[[250, 0, 500, 500], [0, 0, 1, 1]]</box>"
    parts = parse(folder, "find <ref>the dogs</ref>", answer, "wide.png")
    assert parts[1] == BoxRef("<ref>the dogs</ref>", (), "the dogs", 0, "qwen-vl")
    assert parts[2] == BoxRef(answer, ((0.25, 0, 0.5, 0.5), (0, 0, 0.001, 0.001)), "dogs", 0, "internvl")


def test_a_backslash_makes_words_of_markup_and_so_does_a_chat_without_pictures(folder: Path):
    parts = parse(folder, "what is \\<|box_start|> and \\<box>?", "a \\<ref>mark\\</ref>", "wide.png")
    assert parts == ["what is <|box_start|> and <box>?", "a <ref>mark</ref>"]
    assert parse(folder, OBJECT, "<ref>note</ref>") == [OBJECT, "<ref>note</ref>"]


WRITTEN = {
    "qwen2-vl": "<|object_ref_start|>the dog<|object_ref_end|> <|object_ref_start|>the dog<|object_ref_end|>"
    "<|box_start|>(250,0),(500,999)<|box_end|> <|box_start|>(250,500)<|box_end|>",
    "qwen2.5-vl": 'the dog {"bbox_2d": [12, 0, 24, 16], "label": "the dog"} {"point_2d": [12, 8]}',
    "qwen3-vl": 'the dog {"bbox_2d": [250, 0, 500, 1000], "label": "the dog"} {"point_2d": [250, 500]}',
    "qwen-vl": '<ref>the dog</ref> <ref>the dog</ref><box>(250,0),(500,999)</box> {"point_2d": [250, 500]}',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_family_gets_them_in_its_own_unit_and_control_tokens(folder: Path, name: str):
    from tests.finetune.families.tiny_families import ALL

    answer = f"{OBJECT} {OBJECT}<|box_start|>(250,0),(500,1000)<|box_end|> <|box_start|>(250,500)<|box_end|>"
    record = {
        "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": answer}],
        "images": ["small.png"],
    }
    Image.new("RGB", (50, 18)).save(folder / "small.png")
    (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    tiny = ALL[name]
    processor = tiny.processor(folder)
    (conversation,) = read(folder / "data.json", say=lambda _: None)
    found = tiny.family.encode(processor, conversation)
    ids = found.input_ids[slice(*found.turn_spans[-1])].tolist()
    assert processor.tokenizer.decode(ids) == WRITTEN[name]
    for mark in ("<|object_ref_start|>", "<|box_start|>") if name == "qwen2-vl" else ():
        assert ids.count(processor.tokenizer.convert_tokens_to_ids(mark)) == 2


# --- placeholders ----------------------------------------------------------------------------------------------------


def test_placeholders_take_phrases_and_boxes_in_order(folder: Path):
    objects = {"ref": ["dog", "cat", "cat"], "bbox": [[0, 0, 224, 50], [112, 100, 448, 200]]}
    parts = parse(
        folder, "find <ref-object> and <ref-object>", "<bbox>, <ref-object><bbox>", "wide.png",
        units="pixels", objects=objects,
    )  # fmt: skip
    assert parts == [
        "find dog and cat",
        BoxRef("<bbox>", ((0, 0, 0.5, 0.25),), None, 0, "placeholder"),
        ", ",
        BoxRef("<ref-object><bbox>", ((0.25, 0.5, 1, 1),), "cat", 0, "placeholder"),
    ]


MS_SWIFT = """[
\t{"bbox_2d": <bbox>, "label": "<ref-object>"},
\t{"label": "<ref-object>", "bbox_2d": <bbox>}
]"""
DOG, CAT = [0, 0, 224, 50], [112, 100, 448, 200]
OBJECTS = {"ref": ["dog", 'a "big" cat'], "bbox": [DOG, CAT]}


def test_an_object_around_placeholders_is_one_box(folder: Path):
    """ms-swift's grounding data: a box put in place of <bbox> alone would be an object within an object."""
    parts = parse(folder, "find", MS_SWIFT, "wide.png", units="pixels", objects=OBJECTS)[1:]
    first, second = MS_SWIFT.split("\n")[1].strip("\t,"), MS_SWIFT.split("\n")[2].strip("\t")
    assert parts == [
        "[\n\t",
        BoxRef(first, ((0, 0, 0.5, 0.25),), "dog", 0, "json"),
        ",\n\t",
        BoxRef(second, ((0.25, 0.5, 1, 1),), 'a "big" cat', 0, "json"),
        "\n]",
    ]


def test_such_objects_take_phrases_and_boxes_in_their_place_among_others(folder: Path):
    last = '{"bbox": <bbox>, "label": "the <ref-object>", "image": 1}'
    answer = f'A <ref-object>: <bbox> and {{"point_2d": <bbox>}}; {last}'
    objects = {"ref": ["dog", "cat"], "bbox": [DOG, [112, 50], [15, 60, 30, 120]], "image_id": [0, 0, 1]}
    found = parse(folder, "find", answer, "wide.png", "tall.png", units="pixels", objects=objects)[1:]
    assert [one for one in found if isinstance(one, str)] == ["A dog: ", " and ", "; "]
    assert [(one.boxes[0], one.label, one.image, one.key) for one in found if isinstance(one, BoxRef)] == [
        ((0, 0, 0.5, 0.25), None, 0, "bbox_2d"),
        ((0.25, 0.25, 0.25, 0.25), None, 0, "point_2d"),
        ((0.5, 0.5, 1, 1), "the cat", 1, "bbox"),
    ]


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_families_write_them_as_they_write_objects_with_numbers(folder: Path, name: str):
    from tests.finetune.families.tiny_families import ALL

    tiny, texts = ALL[name], []
    processor = tiny.processor(folder)
    literal = MS_SWIFT.replace("<bbox>", "%s").replace("<ref-object>", "%s") % (DOG, "dog", "cat", CAT)
    for answer, more in ((MS_SWIFT, {"objects": {"ref": ["dog", "cat"], "bbox": [DOG, CAT]}}), (literal, {})):
        said = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": answer}]
        (folder / "data.json").write_text(json.dumps([{"messages": said, "images": ["wide.png"], **more}]))
        (conversation,) = read(folder / "data.json", box_units="pixels", say=lambda _: None)
        encoded = tiny.family.encode(processor, conversation, media=False)
        texts.append(processor.tokenizer.decode(encoded.input_ids[slice(*encoded.turn_spans[-1])].tolist()))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "answer",
    [
        '{"box": <bbox>, "label": "<ref-object>"}', '{"bbox_2d": [<bbox>]}', '{"bbox_2d": [[<bbox>]]}',
        '{"bbox_2d": "<bbox>"}', "{'bbox_2d': <bbox>, 'label': '<ref-object>'}", '{"bbox_2d": <bbox>',
        '{"dog": <bbox>}', '{"label": "dog", "bbox_2d": <bbox> }}, "bbox": <bbox>',
        '["<bbox>"]', '"bbox_2d": <bbox>', '```json\n"bbox_2d": [<bbox>]\n```', '{bbox_2d: <bbox>}',
        '{"answer": "dog <bbox>"}', '{"boxes": ["x", <bbox>]}', '{"a": {"b": 1}, "boxes": [[1], <bbox>]}',
    ],
)  # fmt: skip
def test_a_placeholder_that_would_be_a_box_within_an_object_is_a_fault(folder: Path, answer: str):
    objects = {"ref": ["dog"][: "<ref" in answer], "bbox": [DOG] * answer.count("<bbox>")}
    with pytest.raises(
        ValueError, match=r"1 fault\n.*content: found .*<bbox>.*, expected <bbox> alone or as \{"
    ):
        parse(folder, "find", answer, "wide.png", units="pixels", objects=objects)


@pytest.mark.parametrize("answer", ["[<bbox>, <bbox>]", 'Dogs, "left": <bbox>', "the bbox: <bbox>"])
def test_lists_of_placeholders_and_words_in_quotes_are_no_objects(folder: Path, answer: str):
    count = answer.count("<bbox>")
    found = parse(folder, "find", answer, "wide.png", units="pixels", objects={"bbox": [DOG] * count})
    assert sum(isinstance(part, BoxRef) for part in found) == count


@pytest.mark.parametrize(
    ("answer", "objects", "message"),
    [
        ('{"bbox_2d": <bbox>, "score": 1}', {"bbox": [DOG]}, "found 'score' beside bbox_2d"),
        ('{"bbox_2d": <bbox>}', {"bbox": [[1, 2]]}, r"found the box \[1, 2\], expected four numbers"),
        ('{"bbox_2d": <bbox>}', {"bbox": [DOG], "ref": ["dog"]}, "objects.ref: found 1, and 0 <ref-object>"),
        ('{"bbox_2d": <bbox>, "label": "<ref-object>"}', {"bbox": [DOG]}, "objects.ref: found 0, and 1 <ref-object>"),
        ('{"bbox_2d": <bbox>}', {"ref": []}, "objects.bbox: found 0, and 1 <bbox>"),
        ('{"bbox_2d": <bbox>}', {"bbox": [None]}, "found the box None, expected four numbers"),
        ('{"bbox_2d": <bbox>, "image": 1}', {"bbox": [DOG], "image_id": [0]}, "found picture 1 in an object whose box"),
    ],
)  # fmt: skip
def test_faults_of_an_object_around_placeholders(folder: Path, answer: str, objects: Any, message: str):
    with pytest.raises(ValueError, match=rf"1 fault\n  record 0: .*{message}"):
        pictures = ("wide.png", "tall.png") if "image" in answer else ("wide.png",)
        parse(folder, "find", answer, *pictures, units="pixels", objects=objects)


# --- which picture ---------------------------------------------------------------------------------------------------


def test_a_box_is_in_the_picture_that_is_named_or_the_last_before_it(folder: Path):
    both = ("wide.png", "tall.png")
    (last,) = parse(folder, "find", '{"bbox_2d": [15, 60, 30, 120]}', *both, units="pixels")[1:]
    (named,) = parse(folder, "find", '{"bbox_2d": [112, 50, 448, 200], "image": 0}', *both, units="pixels")[
        1:
    ]
    objects = {"bbox": [[112, 50, 448, 200], [15, 60, 30, 120]], "image_id": [0, 1]}
    listed = parse(folder, "find", "<bbox><bbox>", *both, units="pixels", objects=objects)[1:]
    assert [(box.image, box.boxes) for box in (last, named, *listed) if isinstance(box, BoxRef)] == [
        (1, ((0.5, 0.5, 1, 1),)),
        (0, ((0.25, 0.25, 1, 1),)),
        (0, ((0.25, 0.25, 1, 1),)),
        (1, ((0.5, 0.5, 1, 1),)),
    ]


def test_named_pictures_are_counted_without_videos(folder: Path):
    """A video, wide.png, tall.png: number 1 is tall.png, in place 2; beside videos the only picture is meant."""
    from tests.finetune.samples.test_videos import write_video

    write_video(folder / "clip.mp4")
    named = '{"bbox_2d": [15, 60, 30, 120], "image": 1}'
    for answer, more in (
        (named, {}),
        ("<bbox>", {"objects": {"bbox": [[15, 60, 30, 120]], "image_id": [1]}}),
    ):
        turns = [
            {"role": "user", "content": "<video><image><image>find"},
            {"role": "assistant", "content": answer},
        ]
        record = {"messages": turns, "images": ["wide.png", "tall.png"], "videos": ["clip.mp4"], **more}
        (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
        (found,) = read(folder / "data.json", box_units="pixels", say=lambda _: None)
        (box,) = [part for part in found.turns[1].parts if isinstance(part, BoxRef)]
        assert (box.image, box.boxes) == (2, ((0.5, 0.5, 1, 1),))
    turns[0]["content"], turns[1]["content"] = "<image><video>find", '{"bbox_2d": [112, 50, 448, 200]}'
    record = {"messages": turns, "images": ["wide.png"], "videos": ["clip.mp4"]}
    (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    (found,) = read(folder / "data.json", box_units="pixels", say=lambda _: None)
    assert [part.image for part in found.turns[1].parts if isinstance(part, BoxRef)] == [0]


def test_between_two_pictures_a_box_is_in_the_first(folder: Path):
    turns = [
        {"role": "user", "content": "<image><box>(0,0),(5,5)</box><image><box>(0,0),(7,7)</box>"},
        {"role": "assistant", "content": "x"},
    ]
    record = {"messages": turns, "images": ["wide.png", "tall.png"]}
    (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    (found,) = read(folder / "data.json")
    assert [part.image for part in found.turns[0].parts if isinstance(part, BoxRef)] == [0, 1]


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (448, 200), (30, 120), (9999, 10_000), (1333, 777)])
def test_fractions_give_the_pixels_back_to_a_thousandth(size: tuple[int, int]):
    width, height = size
    for box in ([0, 0, width, height], [0.123, 0.456, width * 0.789, height * 0.987]):
        found = fractions(box, "pixels", size)
        back = [one * side for one, side in zip(found, (width, height) * 2, strict=True)]
        assert max(abs(a - b) for a, b in zip(back, box, strict=True)) < 1e-9


def test_rounding_of_a_sum_is_no_fault_a_pixel_is():
    assert fractions([0.1, 0, 448.0000001, 200], "pixels", WIDE)[2] == 1.0
    assert fractions([-0.0000001, 0, 2, 1], "pixels", WIDE)[0] == 0.0
    with pytest.raises(ValueError, match="expected it inside the picture, 448 × 200 pixels"):
        fractions([0, 0, 448.01, 200], "pixels", WIDE)


@pytest.mark.parametrize("size", [(448, 200), (2, 3), (1000, 1000)])
@pytest.mark.parametrize("box", [[0.1, 0.2, 0.5, 0.9], [0, 0, 0.5, 1], [0, 0, 1, 0.25]])
def test_fractions_of_the_picture_are_no_box_in_its_corner(size: tuple[int, int], box: list[float]):
    with pytest.raises(ValueError, match=r"\[0.* in pixels, which looks like fractions.*multiply x by"):
        fractions(box, "pixels", size)
    with pytest.raises(ValueError, match=r"in thousandths, which looks like fr.*; multiply all by 1000$"):
        fractions(box, "thousandths", (1000, 1000))
    with pytest.raises(ValueError, match=r"the point \[0.*, which looks like fractions"):
        point_fractions([0.5, box[1]], "pixels", size)


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [-1e-7, 1e-7, 1, 1 - 1e-7]])
def test_the_whole_picture_is_no_pixel_in_its_corner(box: list[float]):
    with pytest.raises(ValueError, match="looks like fractions"):
        fractions(box, "pixels", WIDE)
    # Markup is in whole thousandths.
    assert fractions([0, 0, 1, 1], "thousandths", (1000, 1000)) == (0, 0, 0.001, 0.001)


def test_small_boxes_are_no_fractions():
    assert fractions([1, 0, 2, 1], "pixels", WIDE) == (1 / 448, 0, 2 / 448, 1 / 200)  # one pixel
    assert fractions([1e-7, 0, 2, 1 - 1e-7], "pixels", WIDE)[1] == 0  # two pixels, from a sum
    assert fractions([0.25, 0.5, 1.25, 0.75], "pixels", WIDE)[1] == 0.0025
    assert fractions([0.5, 0.5, 1, 1], "pixels", (2, 2)) == (0.25, 0.25, 0.5, 0.5)
    assert point_fractions([1, 0], "pixels", WIDE) == (1 / 448, 0, 1 / 448, 0)


# --- JSON that is none -----------------------------------------------------------------------------------------------

PYTHON = "{'bbox_2d': [64, 96, 320, 132], 'label': 'cat'}"
GEMINI = '{"box_2d": [64, 96, 132, 320], "label": "cat"}'


@pytest.mark.parametrize("units", ["pixels", "thousandths", None])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            PYTHON,
            r"found 'bbox_2d', which is no JSON, expected \{\"bbox_2d\": .*write double quotes.*--box_units text",
        ),
        (f"[{PYTHON}, {PYTHON}]", "found 'bbox_2d', which is no JSON"),
        ("{'bbox': [[64, 96, 320, 132]]}", "found 'bbox', which is no JSON"),
        ("{'point_2d': (64, 96)}", "found 'point_2d', which is no JSON"),
        (GEMINI, 'found "box_2d", Gemini.s key for thousandths y0, x0, y1, x1, expected .*exchange x and y'),
        (GEMINI.replace('"', "'"), "found 'box_2d', Gemini.s key"),
        ('{"bbox_2d": [np.float64(64.0), np.float64(96.0)]}', 'found "bbox_2d".*, which is no JSON'),
        ("{'bbox_2d': [np.float64(64.0), np.float64(96.0)]}", "found 'bbox_2d', which is no JSON"),
        ('{"bbox_2d": array([64, 96, 320, 132]), "label": "cat"}', 'found "bbox_2d".*, which is no JSON'),
        ("{'bbox': tensor([64., 96., 320., 132.])}", "found 'bbox', which is no JSON"),
        (PYTHON.replace("'", '\\"'), r'found \\"bbox_2d\\", which is no JSON'),
        (GEMINI.replace('"', '\\"'), r'found \\"box_2d\\", Gemini.s key'),
        ("bbox_2d: [64, 96, 320, 132]", "found bbox_2d, which is no JSON"),
        ("point_2d: (64, 96)", "found point_2d, which is no JSON"),
        ("box_2d: [96, 64, 132, 320]", "found box_2d, Gemini.s key"),
        ("{“bbox_2d”: [64, 96, 320, 132]}", "found “bbox_2d”, which is no JSON"),
        ('{"bbox_2d"：[64, 96, 320, 132]}', 'found "bbox_2d"：.*, which is no JSON'),
        ('{"bbox_2d": [.25, .25, .5, .5]}', 'found "bbox_2d": .*, which is no JSON'),
    ],
)
def test_what_is_meant_as_a_box_does_not_stay_text(folder: Path, answer: str, units: Any, message: str):
    with pytest.raises(ValueError, match=rf"1 fault\n  record 0: messages\[1\].content: {message}"):
        parse(folder, "find", answer, "wide.png", units=units)


@pytest.mark.parametrize(
    "asked",
    [
        '{"bbox_2d": [左上x, 左上y, 右下x, 右下y], "label": "类别"}',
        '{"bbox_2d": [$x_1$, $y_1$, $x_2$, $y_2$]}',
        '{"bbox_2d": ["x1", "y1", "x2", "y2"], "label": "..."}',
        '{"bbox_2d": [x1, y1, x2, y2]} with bbox_2d: the corners',
        "what does bbox_2d mean, and bbox: [1, 2]?",
    ],
)
def test_an_instruction_that_names_the_numbers_stays_text(folder: Path, asked: str):
    assert parse(folder, asked, "none", "wide.png", units="pixels")[-2:] == [asked, "none"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            '{"label": "cat", "bbox_2d": [64, 96, 320, 132], "label": "dog"}',
            '"label" appears twice.*keep one',
        ),
        ('{"bbox_2d": [64, 96, 320, 132], "bbox_2d": [1, 2, 3, 4]}', "appears twice|nested in or beside"),
        (f'{{"bbox_2d": [{"9" * 401}, 96, 320, 132]}}', "expected four numbers"),
        (f"<box>({'9' * 5000},1),(2,3)</box>", "found a <box> that is not written"),
        (f"<box>({'9' * 401},1),(2,3)</box>", "found a <box> that is not written"),
        ('{"bbox_2d": [64, 96, 320, 132], "label": "\\ud83d"}', "half of a surrogate pair"),
    ],
)
def test_what_json_alone_can_hold_is_a_fault_of_its_record(folder: Path, answer: str, message: str):
    with pytest.raises(ValueError, match=rf"fault.*\n.*record 0: messages\[1\].content: .*({message})"):
        parse(folder, "find", answer, "wide.png", units="pixels")


def test_an_empty_phrase_is_no_answer(folder: Path):
    record = {
        "messages": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "<ref-object>"}],
        "images": ["wide.png"], "objects": {"ref": [" "], "bbox": []},
    }  # fmt: skip
    path = folder / "empty.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    with pytest.raises(ValueError, match="found an empty phrase in objects.ref"):
        read(path, say=lambda _: None)


@pytest.mark.parametrize("written", [PYTHON, GEMINI])
def test_it_is_text_where_that_is_meant_and_without_a_picture(folder: Path, written: str):
    assert parse(folder, "find", written, "wide.png", units="text")[1:] == [written]
    assert parse(folder, "find", written, units="pixels")[1:] == [written]
    asked = "answer with {'bbox_2d': [x0, y0, x1, y1]} or \"box_2d\""
    assert parse(folder, asked, "none", "wide.png", units="pixels") == [asked, "none"]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "units", "pictures", "more", "message"),
    [
        ("<box>(1,2),(3,4)</box>", None, (), {}, r"found a box, but no picture in the conversation"),
        ("<box>(3,2),(3,4)</box>", None, ("wide.png",), {}, r"found the box \[3, 2, 3, 4\], expected x0 < x1"),
        ("<box>(1,4),(3,2)</box>", None, ("wide.png",), {}, r"found the box \[1, 4, 3, 2\], expected x0 < x1 and y0"),
        ("<box>(1,2),(3,1001)</box>", None, ("wide.png",), {}, r"in thousandths, expected it inside the picture"),
        ("<box>(-1,2),(3,4)</box>", None, ("wide.png",), {}, r"expected it inside the picture, 1000 × 1000 thous"),
        ("<box>(1,2)</box>", None, ("wide.png",), {}, r"found a <box> that is not written <box>\(x0,y0\)"),
        ("<box>(0.1,0.2),(0.3,0.4)</box>", None, ("wide.png",), {}, r"whole thousandths of the picture"),
        ('{"bbox_2d": [1, 2, 3, 4]}', None, ("wide.png",), {}, r"content: bbox_2d may be in pixels or .*--box_un"),
        ('{"bbox_2d": [1, 2, 3]}', "pixels", ("wide.png",), {}, r"found the box \[1, 2, 3\], expected four numbers"),
        ('{"bbox_2d": [1, 2, 3, "4"]}', "pixels", ("wide.png",), {}, r"expected four numbers"),
        ('{"bbox_2d": [1, 2, 3, NaN]}', "pixels", ("wide.png",), {}, r"expected four numbers"),
        ('{"bbox_2d": [1, 2, 3, 201]}', "pixels", ("wide.png",), {}, r"expected it inside the picture, 448 × 200"),
        ('{"bbox_2d": [1, 2, 3, 4], "label": 5}', "pixels", ("wide.png",), {}, r"found a number as the label"),
        ('{"bbox_2d": [1, 2, 3, 4], "score": 5}', "pixels", ("wide.png",), {}, r"found 'score' beside bbox_2d"),
        ('{"bbox_2d": [1, 2, 3, 4], "image": 1}', "pixels", ("wide.png",), {}, r"in picture 1, expected 0 to 0"),
        ('"bbox_2d": [1, 2, 3, 4]', "pixels", ("wide.png",), {}, r"found bbox_2d outside an object"),
        ('{"bbox_2d": [1, 2, 3, 4}', "pixels", ("wide.png",), {}, r"found bbox_2d outside an object"),
        ("<bbox>", None, ("wide.png",), {"objects": {"bbox": [[1, 2, 3, 4]]}}, r"objects.bbox may be in pixels"),
        ("<bbox>", "pixels", ("wide.png",), {}, r"objects.bbox: found 0, and 1 <bbox> in the text"),
        ("x", "pixels", ("wide.png",), {"objects": {"bbox": [[1, 2, 3, 4]]}}, r"objects.bbox: found 1, and 0 <bbox>"),
        ("<ref-object>", "pixels", ("wide.png",), {"objects": {"ref": []}}, r"objects.ref: found 0, and 1 <ref-obj"),
        ("<ref-object>", "pixels", ("wide.png",), {"objects": {"ref": [3]}}, r"objects.ref\[0\]: found a number"),
        ("x", "pixels", ("wide.png",), {"objects": [1]}, r"objects: found a list, expected an object"),
        ("x", "pixels", ("wide.png",), {"objects": {"bbox": 1}}, r"objects.bbox: found a number, expected a list"),
        ("x", "pixels", ("wide.png",), {"objects": {"bbox_type": "real"}}, r"objects.bbox_type: is not read here"),
        ('{"bbox": [1, 2, 3, 4]}', None, ("wide.png",), {}, r"bbox may be in pixels or in thousandths"),
        ('{"point_2d": [1, 2, 3]}', "pixels", ("wide.png",), {}, r"found the point \[1, 2, 3\], expected two numbers"),
        ('{"point_2d": [1, 201]}', "pixels", ("wide.png",), {}, r"the point \[1, 201\] in pixels, expected it inside"),
        ('{"bbox": [1, 2, 3, 4], "kind": 5}', "pixels", ("wide.png",), {}, r"'kind' beside bbox.*--box_units text"),
        ("<|box_start|>(1.5,2),(3,4)<|box_end|>", None, ("wide.png",), {}, r"found a <.box_start.> that is not writ"),
        ("<|quad_start|>(1,2),(3,4),(5,6),(7,8)<|quad_end|>", None, ("wide.png",), {}, r"found a <.quad_start.> that"),
        ("what is <|object_ref_start|>?", None, ("wide.png",), {}, r"put a backslash before it"),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", None, (), {}, r"found a box, but no picture in the conversation"),
        ('{"a":' * 9000 + '"bbox_2d": [1, 2, 3, 4]', "pixels", ("wide.png",), {}, r"found bbox_2d outside an object"),
        (
            "<bbox>", "pixels", ("wide.png",), {"objects": {"bbox": [[1, 2, 3, 4]], "image_id": [0, 0]}},
            r"objects.image_id: found 2 for 1 boxes",
        ),
    ],
)  # fmt: skip
def test_wrong_boxes_are_named(folder: Path, answer: str, units: Any, pictures: Any, more: Any, message: str):
    with pytest.raises(ValueError, match=f"record 0: .*{message}|record 0: {message}"):
        parse(folder, "find", answer, *pictures, units=units, **more)


def test_a_box_before_its_picture_needs_to_say_which(folder: Path):
    turns = [
        {"role": "user", "content": "<box>(0,0),(5,5)</box><image><image>"},
        {"role": "assistant", "content": "x"},
    ]
    record = {"messages": turns, "images": ["wide.png", "tall.png"]}
    (folder / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"content: found a box before the first of 2 pictures"):
        read(folder / "data.json")


def test_all_faults_of_a_record_are_listed(folder: Path):
    answer = '<box>(3,2),(3,4)</box> {"bbox_2d": [1, 2]} <box>(1,1),(2,2000)</box>'
    with pytest.raises(ValueError, match="3 faults"):
        parse(folder, "find", answer, "wide.png", units="pixels")
