"""The formats and their containers: the same conversation, however it is written."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from finetune.samples.conversation import ImageRef
from finetune.samples.formats import FORMATS
from finetune.samples.source import read


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 9)).save(tmp_path / "b.png")
    return tmp_path


def write(folder: Path, records: Any, name: str = "data.json") -> Path:
    path = folder / name
    text = "\n".join(map(json.dumps, records)) if name.endswith("jsonl") else json.dumps(records)
    path.write_text(text, encoding="utf-8")
    return path


def quietly(*args: Any, **kwargs: Any) -> Any:
    return read(*args, **kwargs, say=lambda _: None)


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def messages(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def shown(folder: Path, found: Any) -> list[Any]:
    """Roles and parts, a picture as its name."""
    return [
        (turn.role, *(part.path.name if isinstance(part, ImageRef) else part for part in turn.parts))
        for turn in found.turns
    ]


ONE = [("user", "a.png", "\nwhat?"), ("assistant", "a dog")]
TWO = [("system", "be brief"), ("user", "see ", "a.png", " and ", "b.png"), ("assistant", "ok")]
TEXT = [("user", "hi"), ("assistant", "ho")]

WRITTEN = [
    ("qwen-vl", ONE, chat(("user", "<img>a.png</img>\nwhat?"), ("assistant", "a dog"), id="1")),
    (
        "qwen-vl",
        TWO,
        chat(
            ("system", "be brief"), ("user", "see <img>a.png</img> and <img>b.png</img>"), ("assistant", "ok")
        ),
    ),
    ("llava", ONE, chat(("human", "<image>\nwhat?"), ("gpt", "a dog"), image="a.png")),
    ("llava", ONE, chat(("human", "<image>\nwhat?"), ("gpt", "a dog"), image=["a.png"], id=3)),
    (
        "llava",
        TWO,
        chat(
            ("system", "be brief"),
            ("human", "see <image> and <image>"),
            ("gpt", "ok"),
            image=["a.png", "b.png"],
        ),
    ),
    ("sharegpt", ONE, chat(("human", "<image>\nwhat?"), ("gpt", "a dog"), images=["a.png"])),
    ("sharegpt", ONE, chat(("user", "<image>\nwhat?"), ("assistant", "a dog"), images=["a.png"])),
    (
        "sharegpt",
        TWO,
        chat(
            ("human", "see <image> and <image>"), ("gpt", "ok"), images=["a.png", "b.png"], system="be brief"
        ),
    ),
    ("openai", ONE, messages(("user", "<image>\nwhat?"), ("assistant", "a dog"), images=["a.png"])),
    (
        "openai",
        ONE,
        messages(
            ("user", [{"type": "image", "image": "a.png"}, {"type": "text", "text": "\nwhat?"}]),
            ("assistant", [{"type": "text", "text": "a dog"}]),
        ),
    ),
    (
        "openai",
        ONE,
        messages(
            ("user", [{"type": "image"}, {"type": "text", "text": "\nwhat?"}]),
            ("assistant", "a dog"),
            images=["a.png"],
        ),
    ),
    (
        "openai",
        TWO,
        messages(
            ("system", "be brief"),
            (
                "user",
                [
                    {"type": "text", "text": "s"},
                    {"type": "text", "text": "ee "},
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "text", "text": " and "},
                    {"type": "image_url", "image_url": "b.png"},
                ],
            ),
            ("assistant", "ok"),
        ),
    ),
    ("alpaca", ONE, {"instruction": "<image>", "input": "what?", "output": "a dog", "images": ["a.png"]}),
    ("alpaca", ONE, {"query": "<image>\nwhat?", "response": "a dog", "image": "a.png"}),
    (
        "alpaca",
        TWO,
        {
            "instruction": "see <image> and <image>",
            "input": "",
            "output": "ok",
            "images": ["a.png", "b.png"],
            "system": "be brief",
        },
    ),
    (
        "alpaca",
        [*ONE, ("user", "and ", "b.png"), ("assistant", "a cat")],
        {
            "history": [["<image>\nwhat?", "a dog"]],
            "instruction": "and <image>",
            "output": "a cat",
            "images": ["a.png", "b.png"],
        },
    ),
]


@pytest.mark.parametrize(("name", "expected", "record"), WRITTEN)
@pytest.mark.parametrize("container", ["data.json", "data.jsonl", "named as json", "data.parquet", "saved"])
def test_every_format_reads_alike_from_every_container(
    folder: Path, name: str, expected: Any, record: Any, container: str
):
    records = [record, record]
    rows = datasets.Dataset.from_list(records, on_mixed_types="use_json")
    if container == "data.parquet":
        path = folder / container
        rows.to_parquet(path)
    elif container == "saved":
        path = folder / container
        rows.save_to_disk(path)
    elif container == "named as json":  # as many tools write JSON Lines
        path = write(folder, records, "x.jsonl").rename(folder / "data.json")
    else:
        path = write(folder, records, container)
    said: list[str] = []
    found = read(path, image_folder=folder, say=said.append)
    assert [shown(folder, one) for one in found] == [expected, expected]
    assert f", {name} (recognised from 2 records" in said[-1]
    sizes = {"a.png": (7, 5), "b.png": (4, 9)}
    assert all(image.size_pixels == sizes[image.path.name] for one in found for image in one.images)


@pytest.mark.parametrize("container", ["data.json", "data.parquet"])
def test_null_counts_as_missing(folder: Path, container: str):
    picture = chat(("human", "<image>\nwhat?"), ("gpt", "a dog"), image=None, images=["a.png"], messages=None)
    text = chat(("human", "hi"), ("gpt", "ho"), image=None, images=None, messages=None)
    if container == "data.json":
        path = write(folder, [picture, text])
    else:
        path = folder / container
        datasets.Dataset.from_list([picture, text]).to_parquet(path)
    said: list[str] = []
    assert [shown(folder, one) for one in read(path, say=said.append)] == [ONE, TEXT]
    assert ", sharegpt (recognised" in said[-1]


def test_text_of_many_bytes_a_letter_and_any_layout(folder: Path):
    record = chat(("human", "<image>\n这座塔是什么? 🗼"), ("gpt", "东方明珠"), image="a.png", id="é")
    dense = json.dumps(record, ensure_ascii=False)
    layouts = {
        "a.json": json.dumps([record] * 3, ensure_ascii=False, indent=2),
        "b.json": f"\ufeff [{dense}\n,\t{dense},{dense} ]\n",
        "c.jsonl": f"\ufeff{dense}\r\n\r\n  {dense}\r\n{dense}",
        "d.json": f"\ufeff{dense}\n{dense}\n{dense}\n",
    }
    for name, content in layouts.items():
        (folder / name).write_bytes(content.encode())
        found = quietly(folder / name)
        assert len(found) == 3
        for one in found:
            assert shown(folder, one) == [
                ("user", "a.png", "\n这座塔是什么? 🗼"),
                ("assistant", "东方明珠"),
            ], name


def test_each_format_has_a_case_above():
    assert {name for name, _, _ in WRITTEN} == {one.name for one in FORMATS}


# --- pictures inside the data ----------------------------------------------------------------------------------------


def test_pictures_inside_parquet_stay_bytes(folder: Path):
    record = messages(("user", "<image>\nwhat?"), ("assistant", "a dog"), images=[str(folder / "a.png")])
    content = (folder / "a.png").read_bytes()
    inside = datasets.Dataset.from_list([{**record, "images": [{"bytes": content, "path": "dog.png"}]}])
    inside.cast_column("images", [datasets.Image()]).to_parquet(folder / "data.parquet")
    (found,) = quietly(folder / "data.parquet")
    (image,) = found.images
    assert (image.data, image.size_pixels, image.written) == (content, (7, 5), "dog.png")
    assert found.turns[0].parts[1] == "\nwhat?"


def test_pictures_in_data_addresses_are_decoded(folder: Path):
    content = (folder / "b.png").read_bytes()
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    part = {"type": "image_url", "image_url": {"url": address}}
    record = messages(("user", [part, {"type": "text", "text": "?"}]), ("assistant", "a"))
    (found,) = quietly(write(folder, [record], "data.jsonl"))
    assert found.images[0].data == content and found.images[0].size_pixels == (4, 9)
    assert found.images[0].written == "messages[0].content[0].image_url"


def test_a_file_address_is_a_path(folder: Path):
    Image.new("RGB", (2, 3)).save(folder / "a b.png")
    record = chat(("human", "<image>?"), ("gpt", "a"), image=f"file://{folder}/a%20b.png")
    assert quietly(write(folder, [record]))[0].images[0].path == folder / "a b.png"


ADDRESSES = {
    "usual": "data:image/png;base64,{}", "without a kind": "data:;base64,{}", "bare kind": "data:image;base64,{}",
    "with a charset": "data:image/png;charset=utf-8;base64,{}", "capital letters": "DATA:image/PNG;BASE64,{}",
    "any bytes": "data:application/octet-stream;base64,{}", "alone": "{}",
}  # fmt: skip


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("lines", [False, True])
def test_base64_is_read_however_its_address_is_written(folder: Path, name: str, lines: bool):
    content = (folder / "b.png").read_bytes()
    text = (base64.encodebytes if lines else base64.b64encode)(content).decode()
    record = messages(("user", "<image>?"), ("assistant", "a"), images=[ADDRESSES[name].format(text)])
    (found,) = quietly(write(folder, [record]))
    assert found.images[0].data == content and found.images[0].size_pixels == (4, 9)


def test_base64_of_another_alphabet_or_in_a_mapping_is_read(folder: Path):
    content = (folder / "b.png").read_bytes()
    urlsafe = base64.urlsafe_b64encode(content).decode().rstrip("=")
    percent = base64.b64encode(content).decode().replace("+", "%2B").replace("=", "%3D")
    for spec in (
        f"data:;base64,{urlsafe}",
        f"data:image/png;base64,{percent}",
        {"bytes": urlsafe, "path": None},
    ):
        record = messages(("user", "<image>?"), ("assistant", "a"), images=[spec])
        assert quietly(write(folder, [record]))[0].images[0].data == content


def test_bare_pixels_in_base64_are_refused_in_few_words(folder: Path):
    pixels = base64.b64encode(bytes(range(256)) * 3000).decode()
    with pytest.raises(
        ValueError, match=r"images\[0\]: found 1,024,000 characters, base64 of 768,000 bytes"
    ) as caught:
        quietly(write(folder, [messages(("user", "<image>?"), ("assistant", "a"), images=[pixels])]))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("there", "written"),
    [
        ("e\u0301한.png", "\u00e9한.png"), ("\u00e9.png", "e\u0301.png"), ("sub/a.png", "sub\\a.png"),
        ("sub/a.png", ".\\sub\\a.png"), ("a b.png", "a%20b.png"), ("a%20b.png", "a%20b.png"),
        ("a b.png", "file:///FOLDER/a%20b.png"), ("a%20b.png", "FILE://localhost/FOLDER/a%20b.png"),
        ("\u00e9/e\u0301.png", "e\u0301/\u00e9.png"),
    ],
)  # fmt: skip
def test_a_file_is_found_however_its_name_is_spelled(folder: Path, there: str, written: str):
    (folder / there).parent.mkdir(exist_ok=True)
    Image.new("RGB", (2, 3)).save(folder / there)
    record = chat(("human", "<image>?"), ("gpt", "a"), image=written.replace("/FOLDER", str(folder)))
    (found,) = quietly(write(folder, [record]))
    assert found.images[0].path == folder / there


@pytest.mark.parametrize(
    ("there", "written", "near"),
    [
        ("images/A.PNG", "images/a.png", "images/A.PNG"), ("images/a.jpeg", "images/a.jpg", "images/a.jpeg"),
        ("images/c.png", "D:\\data\\images\\c.png", "images/c.png"), ("c.png", "/home/bob/c.png", "c.png"),
        ("c.png", "images/c.png", "c.png"),
    ],
)  # fmt: skip
def test_a_missing_file_comes_with_one_that_is_near(folder: Path, there: str, written: str, near: str):
    (folder / there).parent.mkdir(exist_ok=True)
    Image.new("RGB", (2, 3)).save(folder / there)
    with pytest.raises(ValueError) as caught:
        quietly(write(folder, [chat(("human", "<image>?"), ("gpt", "a"), image=written)]))
    assert f"no such file (looked at {'' if written[0] == '/' else folder}" in str(caught.value)
    assert f"; there is {folder / near}; see --image_folder" in str(caught.value)


def test_links_to_nowhere_and_folders_are_named_as_such(folder: Path):
    (folder / "link.png").symlink_to("gone.png")
    (folder / "album").mkdir()
    for written, message in (
        ("link.png", "is a link to 'gone.png', which does not exist"),
        ("album", r"is a folder \("),
    ):
        with pytest.raises(ValueError, match=message):
            quietly(write(folder, [chat(("human", "<image>?"), ("gpt", "a"), image=written)]))


# --- recognising -----------------------------------------------------------------------------------------------------


def test_a_format_is_recognised_from_all_records_together(folder: Path):
    text = chat(("human", "hi"), ("gpt", "ho"))
    picture = chat(("human", "<image>?"), ("gpt", "ho"))
    for more, name in (({"image": "a.png"}, "llava"), ({"images": ["a.png"]}, "sharegpt")):
        said: list[str] = []
        found = read(write(folder, [text, {**picture, **more}]), say=said.append)
        assert (
            shown(folder, found[0]) == TEXT and f", {name} (recognised from 2 records looked at)" in said[0]
        )


def test_where_two_formats_read_alike_it_says_so(folder: Path):
    said: list[str] = []
    assert (
        shown(folder, read(write(folder, [chat(("human", "hi"), ("gpt", "ho"))]), say=said.append)[0]) == TEXT
    )
    assert "llava (recognised from 1 record looked at; sharegpt would read them alike)" in said[0]


@pytest.mark.parametrize(
    "record",
    [
        {"text": "hi", "label": 1},
        {**chat(("human", "hi"), ("gpt", "ho")), **messages(("user", "hi"), ("assistant", "ho"))},
        {"conversations": [{"speaker": "user", "words": "hi"}]},
    ],
)
def test_an_unknown_shape_is_refused_with_what_there_is(folder: Path, record: Any):
    with pytest.raises(ValueError) as caught:
        quietly(write(folder, [record]))
    message = str(caught.value)
    assert (
        f"data.json: unknown format\n  found in 1 of 1 looked at: keys {', '.join(sorted(record))}" in message
    )
    turns = record.get("conversations", [])
    assert ("a turn: {'speaker': 'user', 'words': 'hi'}" in message) == any("speaker" in one for one in turns)
    assert "--data_format" in message and all(f"    {one.name} " in message for one in FORMATS)


def test_pictures_beside_a_query_without_a_place_come_first(folder: Path):
    record = {"query": "\nwhat?", "response": "a dog", "images": ["a.png"], "history": []}
    said: list[str] = []
    assert shown(folder, read(write(folder, [record]), say=said.append)[0]) == ONE
    assert ", alpaca (recognised" in said[0] and "come before the first question" in said[1]


def test_unknown_roles_are_listed(folder: Path):
    with pytest.raises(ValueError, match="keys conversations, unknown roles 'ai', 'me'; record 0 first"):
        quietly(write(folder, [chat(("me", "hi"), ("ai", "ho"))]))


def test_mixed_shapes_are_refused_and_counted(folder: Path):
    records = [chat(("human", "hi"), ("gpt", "ho"), image=[])] * 3 + [
        messages(("user", "hi"), ("assistant", "ho"))
    ]
    with pytest.raises(ValueError) as caught:
        quietly(write(folder, records))
    assert "its records are in several formats" in str(caught.value)
    assert "found in 3 of 4 looked at: keys conversations, image (llava); record 0 first" in str(caught.value)
    assert "found in 1 of 4 looked at: keys messages (openai); record 3 first" in str(caught.value)
    with pytest.raises(ValueError, match=r"1 fault\n  record 3: conversations: found none"):
        quietly(write(folder, records), data_format="llava")
    assert len(quietly(write(folder, records), data_format="llava", on_bad_sample="drop")) == 3


def test_a_record_unlike_the_recognised_format_is_a_fault(folder: Path):
    records = [chat(("human", "hi"), ("gpt", "ho"), image="a.png"), {"text": "x"}]
    records[0]["conversations"][0]["value"] += "<image>"
    with pytest.raises(ValueError, match=r"1 fault\n  record 1: conversations: found none"):
        quietly(write(folder, records))


# --- faults ----------------------------------------------------------------------------------------------------------

USER, ANSWER = ("user", "<image>?"), ("assistant", "a")
ASKED = {"instruction": "what?", "images": ["a.png"]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (chat(("human", "?"), ("gpt", "a"), image="a.png"), r"image: found 1 picture and 0 <image> in the text"),
        (chat(("human", "<image>"), ("gpt", "a"), image=[]), r"image: found 0 pictures and 1 <image> in the text"),
        (
            chat(("human", "<image><image>"), ("gpt", "a"), images=["a.png", "b.png", "a.png"]),
            r"images: found 3 pictures and 2 <image> in the text, expected one for each",
        ),
        (chat(("human", "<image>"), ("gpt", "a"), image="no.png"), r"record 0: image: image 'no.png': no such file"),
        (chat(("human", "<image>"), ("gpt", "a"), images=["a.png", 7]), r"images\[1\]: found 7, expected the path"),
        (chat(("human", "a"), ("gpt", "<image>"), image="a.png"), r"a picture 'a.png' in a turn of the assistant"),
        (chat(("human", "a"), ("gpt", "b"), images=[], system=3), r"system: found a number, expected text"),
        (
            chat(("system", "s"), ("human", "a"), ("gpt", "b"), images=[], system="t"),
            r"conversations\[0\].from: a second system turn",
        ),
        (messages(USER, ANSWER, images=["no.png"]), r"images\[0\]: image 'no.png': no such file \(looked at .*no.png"),
        (messages(USER, ANSWER, images=["https://x.y/a.png"]), r"is a URL, expected a file; download it first"),
        (messages(USER, ANSWER, images=["data:image/png;base64,a?"]), r"found a broken data: URL"),
        (messages(USER, ANSWER, images=["data:text/html,x"]), r"found 'data:text/html,x', expected data:image/png"),
        (messages(USER, ANSWER, images=["data:image/png;base64,AAAA"]), r"images\[0\].*not an image file"),
        (messages(("user", 7), ANSWER), r"messages\[0\].content: found a number, expected text or a list of parts"),
        (messages(("user", [{"type": "audio", "audio": "v"}]), ANSWER), r"content\[0\]: found .*'audio'.* expected a"),
        (messages(("user", [{"type": "video", "video": "v"}]), ANSWER), r"content\[0\].video: video 'v': no such file"),
        (messages(("user", "a"), ("tool", "b"), ANSWER), r"messages\[1\].role: found a tool call or its result"),
        (messages(("user", "a"), ("wizard", "b"), ANSWER), r"messages\[1\].role: unknown role 'wizard'"),
        (messages(("user", "a"), ("user", "b"), ANSWER), r"messages\[1\].role: two user turns in a row"),
        (ASKED | {"output": "a"}, r"images: found 1 picture and 0 <image> in the text"),
        (ASKED | {"output": ["good", "bad"]}, r"output: found a list, expected text"),
        (ASKED | {"output": ""}, r"output: found an empty answer"),
        (ASKED | {"output": "a", "query": "b"}, r"query: found it beside instruction, expected one of them"),
        (ASKED | {"output": "a", "input": 3}, r"input: found a number, expected text"),
        (ASKED | {"output": "a", "history": "b"}, r"history: found a string, expected a list of \[question, answer\]"),
        (ASKED | {"output": "a", "history": [["b"]]}, r"history\[0\]: found \['b'\], expected a pair of texts"),
        (ASKED | {"output": "a", "history": [["b", "<image>"]]}, r"history\[0\]\[1\]: found a picture 'a.png' in a"),
        (messages(("user", "a"), ("assistant", [])), r"messages\[1\].content: found an empty answer"),
    ],
)  # fmt: skip
def test_faults_name_record_and_field(folder: Path, record: Any, message: str):
    with pytest.raises(ValueError, match=f"record 0: .*{message}|{message}"):
        quietly(write(folder, [record]))


def test_an_arrow_file_with_broken_offsets_is_refused_before_a_row_is_read(folder: Path):
    """Arrow reads whatever lies between two offsets: ended by an error of the interpreter, or another row's text."""
    records = [messages(("user", "abcd"[: 2 + at]), ("assistant", "efgh")) for at in range(3)]
    datasets.Dataset.from_list(records).save_to_disk(folder / "saved")
    (file,) = (folder / "saved").glob("*.arrow")
    written = file.read_bytes()
    questions = struct.pack("<7i", 0, 2, 6, 9, 13, 17, 21)  # ends of question, answer, question, ...
    assert written.count(questions) == 1
    assert len(quietly(folder / "saved")) == 3
    file.write_bytes(written.replace(questions, struct.pack("<7i", 0, 2, 6, 0, 13, 17, 21)))
    with pytest.raises(ValueError, match=r"saved: broken dataset: .*write it again with save_to_disk"):
        quietly(folder / "saved")


def test_folders_that_are_no_data_are_named(folder: Path):
    rows = datasets.Dataset.from_list([messages(("user", "a"), ANSWER)])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "both")
    with pytest.raises(
        ValueError, match=r"both: found the splits train, test, expected one; give .*both/train"
    ):
        quietly(folder / "both")
    assert len(quietly(folder / "both" / "train")) == 1
    parts = folder / "parts"
    parts.mkdir()
    with pytest.raises(ValueError, match=r"parts: found a folder of nothing, expected \*\.parquet"):
        quietly(parts)
    for number in range(2):
        rows.to_parquet(parts / f"train-0000{number}-of-00002.parquet")
    assert len(quietly(parts)) == 2
    rows.to_parquet(parts / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"parts: found parts of test, train, expected one of them"):
        quietly(parts)
