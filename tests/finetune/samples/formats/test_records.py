"""Every key of a record is read or reported as unread: nothing is left out silently."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from finetune.data.dataset import build_dataset
from finetune.samples.conversation import ImageRef
from finetune.samples.source import read
from finetune.training.preview import sample_text
from tests.finetune.families.tiny_families import ALL

WIDE = (56, 40)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        Image.new("RGB", WIDE, "red").save(tmp_path / f"{name}.png")
    return tmp_path


def turns(*said: tuple[str, Any], **marks: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


ASKED = [("user", "<image>What is this?"), ("assistant", "A box.")]
UNPLACED = [("user", "What is this?"), ("assistant", "A box.")]


def write(folder: Path, record: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(record if isinstance(record, list) else [record]), encoding="utf-8")
    return path


def opened(folder: Path, record: Any, said: list[str] | None = None, **options: Any) -> Any:
    say = (lambda _: None) if said is None else said.append
    return read(write(folder, record), workers=1, say=say, **options)


def trained(folder: Path, record: Any, family: str = "qwen2-vl") -> str:
    """A sample as --dry_run shows it."""
    tiny = ALL[family]
    processor = tiny.processor(folder)
    found = build_dataset(
        opened(folder, record), processor, tiny.family, max_length=9999, on_bad_sample="error", workers=1,
        say=lambda _: None,
    )  # fmt: skip
    return sample_text(found[0].encoded, processor, name="one", colour=False)


def parts(conversation: Any) -> list[Any]:
    return [
        part.path.name if isinstance(part, ImageRef) else part
        for turn in conversation.turns
        for part in turn.parts
    ]


def refused(folder: Path, record: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        opened(folder, record, **options)
    assert len(str(caught.value).encode()) < 2000
    return str(caught.value)


# --- the system prompt -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_system_prompt_beside_the_turns_is_the_one_that_is_trained(folder: Path, key: str):
    shown = trained(folder, {key: turns(*ASKED), "images": ["a.png"], "system": "You answer like a pirate."})
    assert "<|im_start|>system⏎You answer like a pirate.<|im_end|>" in shown
    assert "helpful" not in shown


def test_a_developers_turn_is_a_system_turn_and_two_are_refused(folder: Path):
    (found,) = opened(folder, {"messages": turns(("developer", "be brief"), *UNPLACED)})
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant"]
    record = {"messages": turns(("system", "s"), *UNPLACED), "system": "t"}
    assert "messages[0].role: a second system turn, beside the key 'system'" in refused(folder, record)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["image", "images", "image_path", "image_paths"])
def test_pictures_beside_messages_are_read_under_any_of_their_names(folder: Path, key: str):
    for value in ("a.png", ["a.png"]):
        said: list[str] = []
        (found,) = opened(folder, {"messages": turns(*ASKED), key: value}, said)
        assert parts(found) == ["a.png", "What is this?", "A box."] and len(said) == 1
        (found,) = opened(folder, {"messages": turns(*UNPLACED), key: value}, said)
        assert parts(found) == ["a.png", "What is this?", "A box."]
        assert "pictures or videos without a placeholder (1 record) come before the first" in said[-1]


@pytest.mark.parametrize("key", ["image", "images"])
def test_a_turns_own_pictures_come_before_its_words(folder: Path, key: str):
    said = [*turns(*UNPLACED), *turns(("user", "And <image> now?"), ("assistant", "Two."))]
    said[0][key] = ["a.png"]
    said[2][key] = ["b.png"]
    (found,) = opened(folder, {"messages": said})
    assert parts(found) == ["a.png", "What is this?", "A box.", "And ", "b.png", " now?", "Two."]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": turns(*UNPLACED), "image": "a.png"}, "image: found 1 picture and 0 <image> in the text"),
        ({"conversations": turns(*UNPLACED), "image_path": "a.png"}, "image_path: found 1 picture and 0 <image>"),
        ({"messages": turns(*ASKED), "images": ["a.png", "b.png"]}, "images: found 2 pictures and 1 <image> in"),
        ({"messages": turns(*ASKED), "images": ["a.png"], "image": "b.png"}, "images: found it beside image"),
        ({"messages": turns(*UNPLACED), "photo": "a.png"}, "photo: found 'a.png', which looks like a picture"),
        ({"messages": turns(*UNPLACED), "img_file": ["x/y.JPG"]}, "img_file: found ['x/y.JPG'], which looks like"),
        (
            {"messages": [{"role": "user", "content": "?", "picture": "a.png"}, *turns(ASKED[1])]},
            "messages[0].picture: found 'a.png', which looks like a picture",
        ),
        ({"messages": turns(*UNPLACED), "audio": "a.wav"}, "audio: found 'a.wav', but audio is not supported"),
        (
            {"messages": [{**turns(ASKED[0])[0], "audios": ["a.wav"]}, *turns(ASKED[1])], "image": "a.png"},
            "messages[0].audios: found ['a.wav'], but audio is not supported",
        ),
        (
            {"messages": turns(("user", [{"type": "text", "text": "?", "image": "a.png"}]), ASKED[1])},
            "content[0]: found a picture or a video in a part of type text",
        ),
        (
            {"messages": turns(("user", "<|vision_start|><|image_pad|><|vision_end|>?"), ASKED[1]), "image": "a.png"},
            "the text has <|vision_start|>, which is plain text in data: write <image> instead",
        ),
        (
            {"conversations": [{"from": "user", "value": "<img>a.png</img>"}, {"from": "assistant", "value": "x"}],
             "images": ["b.png"]},
            "images: found ['b.png'], expected pictures in the text, as <img>path</img>",
        ),
    ],
)  # fmt: skip
def test_a_picture_that_is_given_and_not_placed_is_an_error(folder: Path, record: Any, message: str):
    options = {"data_format": "qwen-vl"} if "<img>" in json.dumps(record) else {}
    assert message in refused(folder, record, **options)


def test_a_picture_column_of_parquet_is_read_as_bytes_dict_or_path(folder: Path):
    content = (folder / "a.png").read_bytes()
    for value in (content, {"bytes": content, "path": None}, "a.png"):
        rows = datasets.Dataset.from_list([{"messages": turns(*UNPLACED), "image": value}])
        rows.to_parquet(folder / "data.parquet")
        (found,) = read(folder / "data.parquet", workers=1, say=lambda _: None)
        assert isinstance(found.turns[0].parts[0], ImageRef) and found.images[0].size_pixels == WIDE


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"image": "a.png"},
        {"type": "input_image", "image_url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image", "url": "a.png", "text": None},
    ],
)
def test_parts_are_read_as_the_field_writes_them(folder: Path, part: Any):
    said = turns(("user", [part, {"type": "input_text", "text": "What is this?"}]), ASKED[1])
    assert parts(opened(folder, {"messages": said})[0]) == ["a.png", "What is this?", "A box."]


def test_a_part_whose_type_is_no_text_is_named(folder: Path):
    part = {"type": {"type": "image_url"}, "image_url": {"url": "a.png"}}
    assert "content[0]: found {'type': {'type'" in refused(
        folder, {"messages": turns(("user", [part]), ASKED[1])}
    )


# --- who learns what -------------------------------------------------------------------------------------------------

TWO = [("user", "<image>What?"), ("assistant", "WRONG"), ("user", "Sure?"), ("assistant", "A box.")]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False},
                                  {"train_on_turn": False}, {"loss_mask": 0}])  # fmt: skip
@pytest.mark.parametrize("family", ["qwen2-vl", "qwen-vl"])
def test_an_answer_that_is_marked_as_not_learned_is_not(folder: Path, family: str, mark: dict[str, Any]):
    for key in ("messages", "conversations"):
        said = turns(*TWO)
        said[1] |= mark
        shown = trained(folder, {key: said, "images": ["a.png"]}, family)
        learned = "".join(line for line in shown.splitlines() if line.startswith("  train |"))
        assert "WRONG" in shown and "WRONG" not in learned and "A box." in learned


def test_the_token_that_ends_an_answer_goes_with_it_and_marks_of_1_change_nothing(folder: Path):
    tiny = ALL["qwen2-vl"]

    def labels(**mark: Any) -> np.ndarray:
        said = turns(*TWO)
        said[1] |= mark
        found = build_dataset(
            opened(folder, {"messages": said, "images": ["a.png"]}), tiny.processor(folder), tiny.family,
            max_length=9999, on_bad_sample="error", workers=1, say=lambda _: None,
        )  # fmt: skip
        assert (
            found.lengths is not None
            and found.lengths.trained_tokens[0] == (found[0].encoded.labels != -100).sum()
        )
        return found[0].encoded.labels

    plain, one, none = labels(), labels(weight=1), labels(weight=0)
    assert (plain == one).all()
    assert (plain != none).sum() == len("WRONG") + 1 and (none[plain != none] == -100).all()


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"weight": 0.5}, "messages[1].weight: found 0.5, expected 1 or true"),
        ({"loss": "false"}, "messages[1].loss: found 'false', expected 1 or true"),
        (
            {"weight": 0, "loss": True},
            "messages[1]: found weight: 0, loss: True, which contradict each other",
        ),
        ({"mask": True}, "messages[1].mask: found True, which is ambiguous"),
        ({"weight": 0, "last": True}, "found every answer excluded from training"),
    ],
)
def test_marks_that_cannot_be_obeyed_are_refused(folder: Path, mark: dict[str, Any], message: str):
    said = turns(*TWO)
    said[1] |= mark
    if mark.get("last"):
        said[3] |= {"weight": 0}
    assert message in refused(folder, {"messages": said, "images": ["a.png"]})


def test_an_evaluated_answer_is_one_that_is_learned(folder: Path):
    from finetune.samples.conversation import questions
    from finetune.training.evaluation import _up_to_answer

    said = turns(*TWO)
    said[3] |= {"weight": 0}
    (found,) = opened(folder, {"messages": said, "images": ["a.png"]})
    assert len(_up_to_answer(found).turns) == 2
    assert [answer for _, _, answer in questions([found])] == ["WRONG"]


# --- what is not read ------------------------------------------------------------------------------------------------


def test_each_unread_key_is_reported_once_with_its_count(folder: Path):
    record = {
        "messages": [{**turns(ASKED[0])[0], "name": "ann"}, {**turns(ASKED[1])[0], "reasoning_content": "hm"}],
        "images": ["a.png"], "id": 7, "tools": '[{"name": "zoom"}]', "rejected_response": "A cat.",
        "history": [["a", "b"]], "score": float("nan"), "empty": [], "none": None,
    }  # fmt: skip
    said: list[str] = []
    opened(folder, [record, record, {"messages": turns(*UNPLACED), "tools": "[]", "score": 1}], said)
    notes = sorted(line.split(": ", 1)[1] for line in said[1:])
    assert notes == [
        "key 'history' (2 records) is not read",
        "key 'messages[].name' (2 records) is not read",
        "key 'messages[].reasoning_content' (2 records) is not read",
        "key 'rejected_response' (2 records) is not read",
        "key 'score' (3 records) is not read",
        "key 'tools' (2 records) is not read",
    ]


def test_unread_keys_of_a_part_are_reported(folder: Path):
    part = {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}, "max_pixels": 50176}
    said: list[str] = []
    opened(folder, {"messages": turns(("user", [part, {"type": "text", "text": "?"}]), ASKED[1])}, said)
    assert sorted(line.split("'")[1] for line in said[1:]) == [
        "messages[].content[].image_url.detail",
        "messages[].content[].max_pixels",
    ]


def test_a_place_that_names_another_picture_of_the_list_is_refused(folder: Path):
    def of(*indices: int | None) -> dict[str, Any]:
        places = [{"type": "image", "index": index, "text": None} for index in indices]
        words = {"type": "text", "index": None, "text": "?"}
        return {"messages": turns(("user", [*places, words]), ASKED[1]), "images": ["a.png", "b.png"]}

    said: list[str] = []
    (read_one,) = opened(folder, of(0, 1), said)
    assert [one.written for one in read_one.media] == ["a.png", "b.png"]
    assert not any("index" in line for line in said)
    opened(folder, of(None, None))
    assert "messages[0].content[0].index: found 1, expected 0" in refused(folder, of(1, 0))


def test_streamed_data_reports_unread_keys_of_the_records_checked(folder: Path):
    said: list[str] = []
    opened(folder, [{"messages": turns(*UNPLACED), "tools": "[1]"}] * 3, said, streaming=True)
    assert said[1].endswith("key 'tools' (3 records looked at) is not read")


@pytest.mark.parametrize(
    "said",
    [
        [
            *turns(ASKED[0]),
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
            *turns(ASKED[1]),
        ],
        [*turns(ASKED[0]), *turns(("tool", "zoomed")), *turns(ASKED[1])],
        [*turns(ASKED[0]), *turns(("function_call", "{}"), ("observation", "ok")), *turns(ASKED[1])],
    ],
)
def test_tool_calls_are_one_fault_a_record(folder: Path, said: Any):
    message = refused(folder, {"messages": said, "images": ["a.png"]}, data_format="openai")
    assert "1 fault\n" in message and "found a tool call or its result, which is not supported" in message


# --- spellings -------------------------------------------------------------------------------------------------------


def test_either_spelling_of_a_turn_is_read_under_either_key(folder: Path):
    other = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A box."}]
    for key, said in (("conversations", turns(("user", "<image>What?"), ASKED[1])), ("messages", other)):
        (found,) = opened(folder, {"id": 0, "image": "a.png", key: said})
        assert parts(found) == ["a.png", "What?", "A box."]
        assert [turn.role for turn in found.turns] == ["user", "assistant"]


# --- words that look like a picture ----------------------------------------------------------------------------------


def test_a_backslash_makes_words_of_a_place(folder: Path):
    record = {
        "messages": turns(("user", "<image>Write an \\<image> tag"), ("assistant", "\\<image>")),
        "image": "a.png",
    }
    assert parts(opened(folder, record)[0]) == ["a.png", "Write an <image> tag", "<image>"]
    del record["image"]
    assert "put a backslash before it: \\<image>" in refused(folder, record)
    said = [
        {"from": "user", "value": "<img>a.png</img>what is \\<img>?"},
        {"from": "assistant", "value": "a tag"},
    ]
    assert parts(opened(folder, {"conversations": said})[0]) == ["a.png", "what is <img>?", "a tag"]


IN_TEXT = "Picture 1: <img>a.png</img>\nWhat is this?"


def said_by(user: str, assistant: str, question: str, answer: str = "A box.") -> list[dict[str, str]]:
    return [{"from": user, "value": question}, {"from": assistant, "value": answer}]


@pytest.mark.parametrize(
    ("record", "data_format", "at", "key"),
    [
        ({"messages": turns(("user", IN_TEXT), ASKED[1])}, "auto", "messages[0].content", "images"),
        ({"messages": said_by("human", "gpt", IN_TEXT)}, "auto", "messages[0].value", "images"),
        ({"conversations": said_by("human", "gpt", IN_TEXT)}, "auto", "conversations[0].value", "image"),
        ({"conversations": said_by("user", "assistant", IN_TEXT)}, "llava", "conversations[0].value", "image"),
        (
            {"image": "a.png", "conversations": said_by("human", "gpt", "<image>?", "<img>a.png</img>")},
            "auto", "conversations[1].value", "image",
        ),
        ({"messages": turns(("user", [{"type": "text", "text": IN_TEXT}]), ASKED[1])}, "auto", "content[0]", "images"),
        ({"instruction": "What?", "input": "<img>a.png</img>", "output": "A box."}, "auto", "instruction", "images"),
        ({"instruction": IN_TEXT, "output": "A box."}, "alpaca", "instruction", "images"),
    ],
)  # fmt: skip
def test_a_picture_in_qwen_vls_markup_is_no_words_of_another_format(
    folder: Path, record: Any, data_format: str, at: str, key: str
):
    message = refused(folder, record, data_format=data_format)
    assert "1 fault\n" in message
    assert (
        f"{at}: found <img>a.png</img>, which is plain text in this format; expected <image> and the"
        in message
    )
    assert f"named under {key} (or --data_format qwen-vl" in message
    assert message.endswith("to keep it as words write \\<img>")


def test_one_record_with_qwen_vls_markup_among_llavas_is_named(folder: Path):
    records = [
        {"image": "a.png", "conversations": said_by("human", "gpt", "<image>What?")},
        {"conversations": said_by("human", "gpt", IN_TEXT)},
    ]
    assert "record 1: conversations[0].value: found <img>a.png</img>" in refused(folder, records)


ESCAPED, WORDS = "<image>Is \\<img>b.png\\</img> a tag?", "Is <img>b.png</img> a tag?"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"messages": turns(("user", ESCAPED), ASKED[1]), "images": ["a.png"]}, "openai"),
        (
            {"messages": turns(("user", ESCAPED.removeprefix("<image>")), ASKED[1]), "images": ["a.png"]},
            "openai",
        ),
        ({"conversations": said_by("human", "gpt", ESCAPED), "image": "a.png"}, "llava"),
        ({"conversations": said_by("user", "assistant", ESCAPED), "image": "a.png"}, "llava"),
        ({"conversations": said_by("human", "gpt", ESCAPED), "images": ["a.png"]}, "sharegpt"),
        ({"instruction": ESCAPED, "output": "A box.", "images": ["a.png"]}, "alpaca"),
    ],
)
def test_a_backslash_makes_words_of_qwen_vls_markup_in_every_format(folder: Path, record: Any, name: str):
    said: list[str] = []
    (found,) = opened(folder, record, said)
    assert parts(found) == ["a.png", WORDS, "A box."]
    assert f", {name} (recognised" in said[0]


def test_a_mark_alone_is_words_and_named_where_a_picture_has_no_place(folder: Path):
    alone = ("user", "How do I close <img>?")
    assert parts(opened(folder, {"messages": turns(alone, ASKED[1])})[0])[0] == alone[1]
    message = refused(folder, {"messages": turns(alone, ASKED[1]), "images": ["a.png"]})
    assert "the text has <img>, which is plain text in data: write <image> instead" in message


@pytest.mark.parametrize("mark", ["<image>", "<video>"])
def test_beside_parts_that_are_pictures_a_place_in_the_text_is_a_fault(folder: Path, mark: str):
    """The model would read words where its data means a picture, and it a second time in its own place."""
    shown = {"type": "image", "image": "a.png"}
    for text in (f"{mark}\nWhat is this?", f"first {mark}, then {mark}"):
        for asked in ([shown, {"type": "text", "text": text}], [{"text": text}, shown]):
            message = refused(folder, {"messages": turns(("user", asked), ASKED[1])})
            assert (
                f"content[{asked[0] is shown:d}]: found {mark} beside pictures or videos that are parts"
                in message
            )
            assert message.count("record 0: ") == 1 and message.endswith(
                f"put a backslash before it: \\{mark}"
            )
    asked = [shown, {"type": "text", "text": f"How do I write an \\{mark} tag?"}]
    (found,) = opened(folder, {"messages": turns(("user", asked), ASKED[1])})
    assert parts(found) == ["a.png", f"How do I write an {mark} tag?", "A box."]
    # Pictures beside the messages are what the marks stand for, and there must be as many.
    asked = [shown, {"type": "text", "text": "then <image>?"}]
    (found,) = opened(folder, {"messages": turns(("user", asked), ASKED[1]), "images": ["b.png"]})
    assert parts(found) == ["a.png", "then ", "b.png", "?", "A box."]
    assert "found 0 pictures and 1 <image>" in refused(
        folder, {"messages": turns(("user", asked[1:]), ASKED[1])}
    )


@pytest.mark.parametrize("mark", ["<image>", "<video>"])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": turns(("user", "MARK what?"), ASKED[1])},
        {"messages": turns(ASKED[0], ("assistant", "a MARK tag")), "image": "a.png"},
        {"conversations": said_by("human", "gpt", "MARK what?"), "image": None, "video": None},
        {"conversations": said_by("human", "gpt", "MARK what?"), "images": [], "videos": []},
        {"conversations": said_by("human", "gpt", "<image> what?", "a MARK"), "image": "a.png", "clip_id": "v_12"},
        {"instruction": "MARK what?", "output": "A box."},
        {"instruction": "What?", "output": "A box.", "history": [["a MARK", "yes"]]},
        {"messages": turns(ASKED[0], ASKED[1]), "image": "a.png", "system": "a MARK is a picture"},
        {"conversations": said_by("human", "gpt", "what?"), "system": "a MARK is a picture"},
        {"instruction": "What?", "output": "A box.", "system": "a MARK is a picture"},
        {"data_format": "qwen-vl", "conversations": said_by("user", "assistant", "<img>a.png</img>a MARK")},
        {"data_format": "qwen-vl", "conversations": said_by("user", "assistant", "?"), "system": "a MARK"},
    ],
)  # fmt: skip
def test_a_place_without_a_picture_is_no_words(folder: Path, record: Any, mark: str):
    options = {"data_format": record.get("data_format", "auto")}
    template = json.dumps({key: value for key, value in record.items() if key != "data_format"})
    message = refused(folder, json.loads(template.replace("MARK", mark)), **options)
    assert "1 fault\n" in message and f"put a backslash before it: \\{mark}" in message
    (found,) = opened(folder, json.loads(template.replace("MARK", f"\\\\{mark}")), **options)
    words = "".join(one for one in parts(found) if isinstance(one, str))
    assert mark in words and "\\" not in words


def test_a_dry_run_tells_control_tokens_from_words(folder: Path):
    said = turns(
        ("user", "<image>Stop at <|im_end|>?"),
        ("assistant", "<|image_pad|> and <|box_start|>(1,2),(3,4)<|box_end|>"),
    )
    shown = trained(folder, {"messages": said, "image": "a.png"})
    assert "Stop at \\<|im_end|>?<|im_end|>⏎" in shown
    assert "train | \\<|image_pad|> and <|box_start|>(1,2),(3,4)<|box_end|><|im_end|>" in shown
    assert "(a backslash before the name of a control token: here it is plain text)" in shown


@pytest.mark.parametrize("at", ["messages[0].content", "messages[1].content", "system"])
def test_half_a_surrogate_pair_is_named(folder: Path, at: str):
    """As JSON has it where an emoji was cut in two; tokenizers refuse it with a TypeError of their own."""
    half = "so \ud83d"
    words = {"messages[0].content": "<image>what?", "messages[1].content": "a box", "system": "Be brief."}
    words[at] = half + words[at]
    turns = [
        {"role": "user", "content": words["messages[0].content"]},
        {"role": "assistant", "content": words["messages[1].content"]},
    ]
    (folder / "data.json").write_text(
        json.dumps([{"messages": turns, "images": ["a.png"], "system": words["system"]}])
    )
    with pytest.raises(ValueError, match="half of a surrogate pair") as error:
        read(folder / "data.json", workers=1, say=lambda _: None)
    assert f"record 0: {at}: found '\\ud83d' at character 3" in str(error.value)


def test_a_word_about_pages_does_not_change_the_format_of_a_file(folder: Path):
    """A record of Qwen-VL's format with <video> in its text is refused for that, not for being of another format."""
    said = [{"from": "user", "value": "Which tag?"}, {"from": "assistant", "value": "Use the <video> tag."}]
    shown = [{"from": "user", "value": "<img>a.png</img>What?"}, {"from": "assistant", "value": "A box."}]
    (folder / "pages.json").write_text(json.dumps([{"conversations": shown}, {"conversations": said}]))
    with pytest.raises(ValueError, match=r"record 1: .*found <video>, which is plain text in this format"):
        read(folder / "pages.json", say=lambda _: None)
