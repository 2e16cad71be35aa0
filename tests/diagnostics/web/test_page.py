"""The page without a browser: limits, rooms, numbers, probes, and what the server refuses."""

import base64
import io
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image

import web_demo_mm
from diagnostics.records.probes import read_probes
from diagnostics.web import handlers, sessions, uploads, views
from diagnostics.web.chat_messages import CUT_ANSWER, readable
from diagnostics.web.checkpoints import Checkpoints, find_checkpoints
from diagnostics.web.handlers import Page, json_errors
from diagnostics.web.page import build, serve
from diagnostics.web.probe_saver import ProbeFile
from diagnostics.web.reply_queue import Partial
from diagnostics.web.sessions import Asked, Sessions, user_turn
from diagnostics.web.texts import NO_WORDS, TEXTS
from diagnostics.web.trace import SeenImage, Trace, TraceCache
from diagnostics.web.uploads import Upload, bound_waiting
from finetune.families.base import ImageTokens
from finetune.samples.conversation import ImageRef

TOKENS = ("<s>", "<image>", "<image>", "<image>", "<image>", "<image>", "<image>", "what", "?", "a", " cat")
KINDS = ("other", *["image 0"] * 6, "question", "question", "answer", "answer")
GRID = (2, 3)
SIZE = (90, 40)  # pixels, width and height


def a_trace(*, seed: int = 0) -> Trace:
    """Two layers, two heads; token i is cell i of a grid of 2 × 3; rows of the question and the answer."""
    random = np.random.default_rng(seed)
    positions = np.array([0, 7, 8, 9])
    rows = {}
    for layer in (1, 3):
        made = random.random((2, len(positions), len(TOKENS)))
        made *= np.arange(len(TOKENS))[None, None] <= positions[None, :, None]
        rows[layer] = (made / made.sum(-1, keepdims=True)).astype(np.float16)
    row, column = np.divmod(np.arange(6), 3)
    boxes = np.stack([column * 30, row * 20, column * 30 + 30, row * 20 + 20], 1).astype(float)
    image = SeenImage(ImageTokens(np.arange(1, 7), GRID, boxes, SIZE, False), Image.new("RGB", SIZE, "navy"))
    sinks = np.zeros((2, len(TOKENS)), bool)
    sinks[:, 0] = True
    return Trace(TOKENS, KINDS, (1, 3), positions, rows, (), {}, sinks, (image,))


REQUEST = {
    "part": "language",
    "layer": 1,
    "head": -1,
    "tokens": [9],
    "image": 0,
    "sinks": True,
    "box": None,
    "patch": None,
    "window": [7, 11],
    "wanted": ["overview"],
}


class FakeEngine:
    """Says what it is told, word by word; stops where it is asked to; fails at questions that say so."""

    name = "/somewhere/output/checkpoint-20"
    has_adapter = False
    is_demo = True

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.words = ["a ", "a cat"]
        self.cut = False

    def reply(self, turns, *, stop, max_new_tokens=0) -> Iterator[Partial]:
        self.asked.append(turns)
        if "fail" in turns[-1].parts[-1]:
            raise ValueError("the conversation is too long; clear it")
        text = ""
        for word in self.words:
            if word == "fail":
                raise ValueError("the model ran out of memory")
            if stop.is_set():
                break
            text = word
            yield Partial(text, False, None)
        yield Partial(text, True, a_trace(), cut=self.cut)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", SIZE, "navy").save(path)
    return path


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(FakeEngine(), probe_file=tmp_path / "probes.json", folder=tmp_path)  # type: ignore[arg-type]


def refused(steps: list) -> str:
    """What a question's refusal says; it changes nothing else, and the messages stay to be read."""
    assert all(told == gr.skip() for told in steps[-1][:-1])
    return steps[-1].status


def ask(page: Page, key: str, text: str, *files: Path) -> list:
    return list(page.send(key, {"text": text, "files": [str(file) for file in files]}, "en"))


# --- words ------------------------------------------------------------------------------------------------------------


def test_both_languages_say_the_same_things():
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, words in TEXTS["en"].items():
        assert set(re.findall(r"{\w+}", words)) == set(re.findall(r"{\w+}", TEXTS["zh"][key])), key


def test_every_word_of_the_scripts_is_there():
    folder = Path(views.__file__).parent
    for script in ("attention.js", "compare.js", "welcome.js"):
        text = (folder / script).read_text(encoding="utf-8")
        used = set(re.findall(r'\bt\("(\w+)"\)', text))
        chosen = [
            name for call in re.findall(r"\bt\(([^()]*)\)", text) for name in re.findall(r'"(\w+)"', call)
        ]
        assert used and {*used, *chosen} <= TEXTS["en"].keys()


def test_markup_is_read_out():
    assert readable("<ref>the cat</ref><box>(1,2),(3,4)</box> sleeps", boxes_drawn=True) == "the cat sleeps"
    assert readable("<box>(1,2),(3,4)</box>", boxes_drawn=True) == "[(1,2),(3,4)]"
    assert readable("a <ref>cat</ref> <box>(1,2),(3", boxes_drawn=True) == "a cat (1,2),(3"  # torn


def test_coordinates_of_a_phrase_are_dropped_only_where_its_box_is_drawn():
    def drawn(text):
        return readable(text, boxes_drawn=True)

    assert drawn("<ref>cats</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>.") == "cats."  # InternVL's
    assert drawn("<ref>cat</ref><box>[1, 2, 3]</box>") == "cat [1, 2, 3]"
    assert drawn("<ref>cat</ref><box>(1,2),(3,1700)</box>") == "cat [(1,2),(3,1700)]"  # pixels, perhaps
    assert readable("<ref>cat</ref><box>(1,2),(3,4)</box>", boxes_drawn=False) == "cat [(1,2),(3,4)]"
    assert (
        readable("<ref>猫</ref><box>[[1, 2, 3, 4]]</box> here", boxes_drawn=False) == "猫 [[1, 2, 3, 4]] here"
    )


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_picture_is_refused_json_errors(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="^cat.png: cannot be read as a picture; use PNG or JPEG.$"):
        Upload.read(path)


def test_pixels_are_counted_before_anything_is_decoded(picture, monkeypatch):
    monkeypatch.setattr(uploads, "PIXELS_MAX", SIZE[0] * SIZE[1] - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="found 90 × 40 pixels"):
        Upload.read(picture)


def test_bytes_are_limited(picture, monkeypatch):
    monkeypatch.setattr(uploads, "FILE_MAX_BYTES", picture.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"cat.png: found .* MB"):
        Upload.read(picture)


def test_pictures_of_a_conversation_are_limited(page, picture):
    key = page.sessions.open()
    ask(page, key, "what?", *[picture] * 6)
    assert refused(ask(page, key, "and this?", picture)) == (
        "Pictures: found 7, expected at most 6 per conversation; clear it and start again."
    )
    assert len(page.sessions.get(key).turns) == 2


def test_pictures_are_numbered_on(picture):
    upload = Upload.read(picture)
    turn = user_turn("which?", [upload, upload], 1)
    assert [part if isinstance(part, str) else "IMAGE" for part in turn.parts] == [
        *("Picture 2: ", "IMAGE", "\nPicture 3: ", "IMAGE", "\nwhich?")
    ]
    assert isinstance(turn.parts[1], ImageRef) and turn.parts[1].data == picture.read_bytes()


# --- conversation -----------------------------------------------------------------------------------------------------


def test_an_answer_streams_and_its_look_follows(page, picture):
    key = page.sessions.open()
    steps = ask(page, key, "what?", picture)
    said = [step.messages[-1]["content"] for step in steps]
    assert said == ["…", "a ", "a cat", "a cat"]
    told = json.loads(steps[-1][2])
    assert page.facts(key, told["look"])["reply"] == "a cat"
    assert steps[-1][3] == "what?" and Path(steps[-1][4]).is_file()  # the same question, ready to compare


def test_markup_of_the_web_is_shown_and_not_followed(page):
    page.engine.words = ["<img src='http://other/a.png'>"]
    steps = ask(page, page.sessions.open(), "<script>")
    assert [one["content"] for one in steps[-1][0]] == [
        "&lt;script&gt;",
        "&lt;img src='http://other/a.png'&gt;",
    ]


def test_turns_are_remembered_and_forgotten(page):
    key = page.sessions.open()
    ask(page, key, "one?")
    ask(page, key, "two?")
    assert [turn.role for turn in page.engine.asked[-1]] == ["user", "assistant", "user"]
    page.clear(key, "en")
    ask(page, key, "three?")
    assert len(page.engine.asked[-1]) == 1


def test_answering_again_asks_the_same(page):
    key = page.sessions.open()
    ask(page, key, "one?")
    list(page.again(key, "en"))
    assert page.engine.asked[0] == page.engine.asked[1]
    assert page.sessions.get(key).exchanges == [("one?", "a cat")]


def test_regenerating_without_a_question_changes_nothing(page):
    """Gradio sets every output to null if a generator yields nothing, and the input dies of it."""
    key = page.sessions.open()
    assert list(page.again(key, "en")) == [(gr.skip(),) * 6]
    ask(page, key, "one?")
    page.clear(key, "en")
    assert list(page.again(key, "en")) == [(gr.skip(),) * 6]
    assert len(page.engine.asked) == 1


def test_stop_keeps_what_was_written(page):
    key = page.sessions.open()
    steps = page.send(key, {"text": "what?", "files": []}, "en")
    next(steps), next(steps)
    page.stop(key)
    *_, last = steps
    assert last[0][-1]["content"] == "a "
    assert page.sessions.get(key).exchanges == [("what?", "a ")]
    assert ask(page, key, "and now?")[-1][0][-1]["content"] == "a cat"  # stopped once, not for ever


def test_a_stop_before_the_answer_begins_returns_the_question(page, picture):
    """As in the queue behind another visitor: it is no empty answer of the model."""
    key = page.sessions.open()
    ask(page, key, "one?", picture)
    steps = page.send(key, {"text": "two?", "files": [str(picture)]}, "en")
    next(steps)
    page.stop(key)
    *_, last = steps
    assert [one["content"] for one in last.messages[1:]] == ["one?", "a cat"]
    assert last.message["value"]["text"] == "two?" and len(last.message["value"]["files"]) == 1
    session = page.sessions.get(key)
    assert [turn.role for turn in session.turns] == ["user", "assistant"] and len(session.pictures) == 1
    assert page.resumed(key, "en")[0].message["value"]["text"] == "two?"  # also after a reload
    steps = page.send(key, {"text": "two?", "files": []}, "en")
    next(steps)
    page.stop(key)
    list(steps)
    ask(page, key, "three?")
    assert page.resumed(key, "en")[0].message == gr.skip()  # another question took its place


@pytest.mark.parametrize("stopped", [True, False])
def test_attention_of_an_answer_that_was_taken_back_is_not_shown(page, picture, stopped):
    key = page.sessions.open()
    first = json.loads(ask(page, key, "one?", picture)[-1].pane)["look"]
    second = json.loads(ask(page, key, "two?")[-1].pane)["look"]
    assert first and second and first != second
    page.engine.words = ["fail"]
    for look in (first, None):
        steps = page.again(key, "en")
        begun = next(steps)
        if stopped:
            page.stop(key)
        taken_back = [step for step in [begun, *steps] if step.pane != gr.skip()]
        assert [json.loads(step.pane)["look"] for step in taken_back] == [look]
        assert json.loads(page.chat_pane(key, "en"))["look"] == look  # as after a reload


def test_an_answer_that_was_cut_off_says_so(page):
    key = page.sessions.open()
    page.engine.cut = True
    last = ask(page, key, "what?")[-1]
    assert [one["content"] for one in last.messages] == ["what?", "a cat", CUT_ANSWER]
    facts = page.facts(key, json.loads(last.pane)["look"])
    assert facts["cut"] and facts["reply"] == "a cat"
    page.engine.cut = False
    (last,) = list(page.again(key, "en"))[-1:]
    assert [one["content"] for one in last.messages] == ["what?", "a cat"]
    assert not page.facts(key, json.loads(last.pane)["look"])["cut"]


def test_an_empty_answer_is_shown_as_empty(page):
    key = page.sessions.open()
    page.engine.words = [""]
    steps = ask(page, key, "what?")
    assert [step[0][-1]["content"] for step in steps[:2]] == ["…", "…"]
    assert steps[-1][0][-1] == {"role": "assistant", "content": "∅ (empty answer · 空回答)"}
    page.engine.words = ["a cat"]
    shown = ask(page, key, "and now?")[0][0]
    assert [one["content"] for one in shown] == ["what?", "∅ (empty answer · 空回答)", "and now?", "…"]


def test_a_visitor_who_leaves_while_it_writes(page):
    key = page.sessions.open()
    steps = page.send(key, {"text": "what?", "files": []}, "en")
    next(steps), next(steps)
    steps.close()
    session = page.sessions.get(key)
    assert session.turns == [] and not session.busy.locked()


def test_cleared_while_it_writes(page):
    key = page.sessions.open()
    steps = page.send(key, {"text": "what?", "files": []}, "en")
    next(steps), next(steps)
    page.clear(key, "en")
    *_, last = steps
    assert last[0] == [] and page.sessions.get(key).turns == [] and len(page.sessions.get(key).traces) == 0


def test_a_question_that_fails_goes_and_says_why(page, picture):
    key = page.sessions.open()
    ask(page, key, "one?", picture)
    *_, back, last = ask(page, key, "fail", picture)
    assert "too long" in refused([last]) and back.messages[-1]["content"] == "a cat"
    assert back.message["value"]["text"] == "fail"  # in the input again, with its picture
    (file,) = back.message["value"]["files"]
    assert Path(file).name == "cat.png" and Path(file).read_bytes() == picture.read_bytes()
    session = page.sessions.get(key)
    assert len(session.turns) == 2 and len(session.pictures) == 1 and not session.busy.locked()


def test_one_question_at_a_time(page):
    key = page.sessions.open()
    steps = page.send(key, {"text": "what?", "files": []}, "en")
    next(steps)
    assert "still being generated" in refused(ask(page, key, "and?"))


def test_boxes_of_an_answer_are_drawn_on_the_last_picture(page, picture):
    page.engine.words = ["<ref>cat</ref><box>(100,100),(800,900)</box>"]
    key = page.sessions.open()
    shown = ask(page, key, "where?", picture)[-1][0]
    drawn = Image.open(shown[-1]["content"]["path"])
    assert shown[-2]["content"] == "cat"
    colours = set(drawn.get_flattened_data())
    assert len(colours) > 1 and drawn.width / drawn.height == SIZE[0] / SIZE[1]
    assert (0, 0, 0) in colours  # the ground of the label


def test_boxes_are_drawn_on_the_picture_that_the_question_names(page, picture, tmp_path):
    page.engine.words = ["<ref>cat</ref><box>[[100, 100, 800, 900]]</box>"]
    key = page.sessions.open()
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 70), "white").save(other)
    drawn = Image.open(
        ask(page, key, "where in the first picture?", picture, other)[-1][0][-1]["content"]["path"]
    )
    assert drawn.width / drawn.height == SIZE[0] / SIZE[1]


def test_a_box_that_nothing_draws_keeps_its_coordinates(page):
    page.engine.words = ["<ref>cat</ref><box>(100,100),(800,900)</box>"]
    shown = ask(page, page.sessions.open(), "where?")[-1][0]
    assert [one["content"] for one in shown] == ["where?", "cat [(100,100),(800,900)]"]


# --- rooms ------------------------------------------------------------------------------------------------------------


def test_visitors_do_not_see_each_other(page):
    mine, other = page.sessions.open(), page.sessions.open()
    trace = json.loads(ask(page, mine, "what?")[-1][2])["look"]
    facts = json_errors(page.facts)
    assert "error" not in facts([mine, trace])
    assert "make room" in facts([other, trace])["error"]["en"]
    assert "session has ended" in facts(["guess", trace])["error"]["en"]
    assert "session has ended" in facts([None, trace])["error"]["en"]
    assert "session has ended" in refused(ask(page, "guess", "what?"))


def test_leaving_forgets_and_stops(page):
    key = page.sessions.open()
    ask(page, key, "what?")
    session = page.sessions.get(key)
    page.sessions.close(key)
    assert session.stop.is_set() and not session.turns and not len(session.traces) and len(page.sessions) == 0


def test_the_longest_silent_visitor_makes_room(monkeypatch, tmp_path):
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 2)
    opened = Sessions(2**20, tmp_path)
    first, second = opened.open(), opened.open()
    opened.get(first)
    opened.open()
    assert opened.get(first)
    with pytest.raises(ValueError, match="reload the page"):
        opened.get(second)


def test_all_visitors_share_one_bound_and_the_idle_make_room(page, picture):
    first, second, third = (page.sessions.open() for _ in range(3))
    for key in (first, second, third):
        ask(page, key, "one?", picture)
    one = page.sessions.get(third).bytes
    assert one == a_trace().bytes + picture.stat().st_size
    page.sessions.total_bytes = 3 * one
    ask(page, third, "two?")  # the first is idle for longest
    assert [len(page.sessions.get(key).traces) for key in (first, second, third)] == [0, 1, 2]
    assert page.sessions.get(first).turns and page.sessions.bytes <= 3 * one
    page.sessions.total_bytes = one
    ask(page, third, "three?")
    assert len(page.sessions) == 1 and len(page.sessions.get(third).traces) == 1


def test_what_waits_to_be_asked_about_is_bounded_on_disk(tmp_path):
    for number in range(5):
        place = tmp_path / f"upload{number}" / "a.png"
        place.parent.mkdir()
        place.write_bytes(b"x" * 10)
        os.utime(place, (number, number))
    (tmp_path / uploads.SESSION_FILES / "room").mkdir(parents=True)
    bound_waiting(tmp_path, most_files=4, most_bytes=1000)
    bound_waiting(tmp_path, most_files=4, most_bytes=29)
    assert sorted(one.parent.name for one in tmp_path.glob("*/a.png")) == ["upload3", "upload4"]
    for place in tmp_path.iterdir():
        os.utime(place, (0, 0))
    bound_waiting(tmp_path)  # empty folders go later: an upload may be about to be written there
    assert sorted(one.name for one in tmp_path.iterdir()) == [uploads.SESSION_FILES, "upload3", "upload4"]
    assert (tmp_path / uploads.SESSION_FILES / "room").is_dir()


def test_the_pictures_of_one_session_are_bounded_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "SESSION_MAX_FILES", 3)
    files = uploads.PictureFiles(tmp_path / "session")
    places = [files.original(Upload(f"{number}.png", bytes([number] * 10))) for number in range(5)]
    for number, place in enumerate(places[2:]):
        os.utime(place, (number, number))
    assert [place.is_file() for place in places] == [False, False, True, True, True]
    monkeypatch.setattr(uploads, "SESSION_MAX_BYTES", 25)
    newest = files.original(Upload("5.png", b"x" * 10))
    assert newest.is_file() and [place.is_file() for place in places] == [False] * 4 + [True]


def test_pictures_on_disk_end_with_their_session(page, picture, tmp_path):
    key, other = page.sessions.open(), page.sessions.open()
    ask(page, key, "what?", picture)
    ask(page, other, "what?", picture)
    assert len(list((tmp_path / "sessions").glob("*/*.jpg"))) == 2
    page.clear(key, "en")
    page.sessions.close(other)
    assert list((tmp_path / "sessions").iterdir()) == []


def test_a_reload_finds_the_chat_and_a_stranger_does_not(page, picture):
    key = page.enter("")
    look = json.loads(ask(page, key, "what?", picture)[-1].pane)["look"]
    steps = page.send(key, {"text": "and this?", "files": [str(picture)]}, "en")
    next(steps), next(steps)
    page.sessions.leave(key)
    steps.close()  # as the server does with the page that was closed
    assert page.enter(key) == key and page.enter(key[:-1]) != key and page.enter(None) != key
    step, _ = page.resumed(key, "zh")
    assert [one["content"] for one in step.messages[1:]] == ["what?", "a cat"]
    assert json.loads(step.pane) == {"room": key, "look": look, "language": "zh"}
    assert step.message["value"]["text"] == "and this?" and len(step.message["value"]["files"]) == 1
    assert page.resumed(key, "zh")[0].message == gr.skip()  # once


def test_a_reload_does_not_wait_for_an_answer_that_nobody_ends(page, monkeypatch):
    monkeypatch.setattr(handlers, "ENDING_SECONDS", 0.01)
    key = page.enter("")
    steps = page.send(key, {"text": "what?", "files": []}, "en")
    next(steps), next(steps)
    assert page.enter(key) == key  # the closed page's request still runs
    assert page.resumed(key, "en")[0].message["value"]["text"] == "what?"
    assert ask(page, key, "and this?")[-1].messages[-1]["content"] == "a cat"
    assert list(steps) == []  # whatever it still says
    steps.close()
    assert [one for one, _ in page.sessions.get(key).exchanges] == ["and this?"]


@pytest.mark.parametrize("words", [["a ", "fail"], ["fail"]])
def test_an_answer_that_fails_after_a_reload_takes_nothing_of_the_new_page(page, monkeypatch, words):
    monkeypatch.setattr(handlers, "ENDING_SECONDS", 0.01)
    key = page.enter("")
    ask(page, key, "one?")
    page.engine.words = words
    steps = page.send(key, {"text": "two?", "files": []}, "en")
    for _ in words:
        next(steps)
    assert page.enter(key) == key
    page.resumed(key, "en")
    assert list(steps) == []
    session = page.sessions.get(key)
    assert session.exchanges == [("one?", "a cat")] and len(session.turns) == 2
    assert len(page.engine.asked) == len(words)  # not asked any more if the reload came first


def test_a_comparison_ends_with_its_page(page, monkeypatch):
    """What its answers were cut to is not compared, and the new page can compare at once."""
    monkeypatch.setattr(handlers, "ENDING_SECONDS", 0.01)
    key = page.enter("")
    steps = page.compare(key, "en", ("own", "own"), "what?", None)
    next(steps)
    assert page.enter(key) == key
    list(page.compare(key, "en", ("own",) * 3, "what?", None))
    new = page.sessions.get(key).compared
    assert list(steps) == [] and len(new) == 3
    assert page.sessions.get(key).compared == new
    assert page.status(key, "compare", "en") == "Answers compared: 3."


def test_a_comparison_that_fails_after_a_reload_says_nothing_to_the_new_page(page, monkeypatch):
    monkeypatch.setattr(handlers, "ENDING_SECONDS", 0.01)
    key = page.enter("")

    def reloaded(turns, *, stop):
        page.enter(key)
        raise ValueError("the conversation is too long; clear it")

    monkeypatch.setattr(page.engine, "reply", reloaded)
    assert [words for _, words in page.compare(key, "en", ("own", "own"), "what?", None)] == [
        "output/checkpoint-20 (1 of 2) …"
    ]
    assert "too long" not in page.status(key, "compare", "en")


def test_a_closed_page_is_forgotten_after_a_while(page, monkeypatch):
    key, other = page.sessions.open(), page.sessions.open()
    page.sessions.leave(key)
    page.sessions.open()
    assert page.enter(key) == key  # within the time of a reload
    page.sessions.leave(key)
    monkeypatch.setattr(sessions, "LEFT_SECONDS", -1)
    page.sessions.open()
    assert page.enter(key) != key and page.enter(other) == other


def test_an_example_is_asked_in_the_visitor_s_language(page):
    key = page.sessions.open()
    *_, last = page.ask_example(key, 2, "zh")
    assert last.messages[-2]["content"] == "猫在桌子的哪里?" and len(page.sessions.get(key).pictures) == 1
    for number in (4, -1, "0", None):
        assert "expected a number from 0 to 3" in refused(list(page.ask_example(key, number, "en")))


def test_a_look_that_had_to_go_says_so(page):
    page.sessions.cache_bytes = a_trace().bytes + 1
    key = page.sessions.open()
    first = json.loads(ask(page, key, "one?")[-1][2])["look"]
    second = json.loads(ask(page, key, "two?")[-1][2])["look"]
    assert "make room" in json_errors(page.facts)([key, first])["error"]["en"]
    assert page.facts(key, second)["question"] == "two?"
    assert set(page.sessions.get(key).asked) == {second}


def test_failures_are_not_shown(caplog):
    def broken():
        raise KeyError("/secret/path")

    error = json_errors(broken)([])["error"]
    assert error.keys() == TEXTS.keys() and "secret" not in str(error)
    assert "broken failed" in caplog.text


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_map_is_times_the_even_share():
    trace = a_trace()
    seen = views.view(trace, REQUEST, TraceCache(2**20))
    row = trace.rows[3][:, trace.row_of(9)].astype(np.float64).mean(0)
    on_image = row[1:7]
    assert seen["image"]["grid"] == list(GRID)
    assert np.allclose(seen["image"]["cells"], on_image / on_image.sum() * 6, atol=2e-3)
    assert seen["image"]["mass"] == pytest.approx(on_image.sum(), abs=1e-3)
    assert seen["text_mass"] + seen["image_mass"] == pytest.approx(1, abs=1e-3)
    assert np.allclose(seen["text"], row, atol=1e-3)
    assert seen["cross"][0]["cells"] == seen["image"]["cells"]


def test_a_share_that_is_not_none_stays_above_none():
    shown = views._numbers(np.array([0.0, 4e-7, 0.25, np.nan]))
    assert shown == [0.0, 4e-7, 0.25, None]


def test_text_alone_has_all_of_the_attention_despite_half_precision():
    trace = a_trace()
    kinds = tuple("other" if kind.startswith("image") else kind for kind in trace.kinds)
    rows = {layer: (values * 0.9998).astype(np.float16) for layer, values in trace.rows.items()}
    seen = views.view(
        replace(trace, kinds=kinds, images=(), rows=rows), {**REQUEST, "wanted": []}, TraceCache(10**6)
    )
    assert (seen["text_mass"], seen["image_mass"]) == (pytest.approx(1, abs=1e-6), 0)


def test_head_and_sinks_are_followed():
    trace = a_trace()
    seen = views.view(trace, {**REQUEST, "head": 1, "layer": 0, "sinks": False}, TraceCache(2**20))
    row = trace.rows[1][1, trace.row_of(9)].astype(np.float64)
    assert seen["text"][0] == 0
    kept = np.where(np.arange(len(row)) == 0, 0, row)
    assert np.argmax(seen["text"]) == np.argmax(kept)


def test_tokens_ahead_that_a_row_sees_are_shown():
    """PaliGemma's question sees the whole prompt: rows 7 and 8 see token 9, and nobody token 10 of the answer."""
    trace = a_trace()
    for rows in trace.rows.values():
        rows[:, 1:3, 8:10] = 0.125
    matrix = views.view(trace, REQUEST, TraceCache(2**20))["matrix"]
    assert [[value is None for value in line] for line in matrix["values"]] == [[False] * 3 + [True]] * 3
    assert matrix["values"][0][2] == 0.125


def test_the_future_is_empty_and_not_nothing():
    matrix = views.view(a_trace(), REQUEST, TraceCache(2**20))["matrix"]
    assert (matrix["rows"], matrix["columns"]) == ([7, 8, 9], [7, 8, 9, 10])
    assert [[value is None for value in line] for line in matrix["values"]] == [
        [False, True, True, True],
        [False, False, True, True],
        [False, False, False, True],
    ]


def test_a_box_in_fractions_is_pixels_of_the_original():
    assert views.box_pixels(a_trace(), [0.5, 0.25, 1, 1], 0) == (45, 10, 90, 40)
    seen = views.view(
        a_trace(), {**REQUEST, "box": [0, 0, 1 / 3, 0.5], "shows": "box_mass"}, TraceCache(2**20)
    )
    assert seen["box"]["area"] == pytest.approx(1 / 6)
    assert np.allclose(seen["box"]["enrichment"], np.array(seen["box"]["mass"]) * 6, atol=1e-2)
    assert seen["overview"] == seen["box"]["mass"]
    assert len(seen["box"]["mean_mass"]) == len(seen["box"]["mean_enrichment"]) == len(seen["box"]["mass"])


def test_who_looks_at_a_patch():
    trace = a_trace()
    who = views.view(trace, {**REQUEST, "patch": 4}, TraceCache(2**20))["who"]
    assert who[1] is None  # a picture's token has no row
    assert who[9] == pytest.approx(float(trace.rows[3][:, trace.row_of(9), 5].astype(float).mean()), abs=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("layer", 2, "layer: found 2, expected a whole number from 0 to 1"),
        ("head", 2, "head: found 2"),
        ("head", True, "head: found True"),
        ("tokens", [], "tokens: found"),
        ("tokens", ["x"], "token: found 'x'"),
        ("part", "brain", "part: found 'brain', expected one of language"),
        ("part", "vision", "layer: found 1"),
        ("image", 1, "image: found 1"),
        ("box", [0.5, 0.5, 0.5, 0.9], "box: found"),
        ("box", "all", "box: found 'all'"),
        ("patch", 6, "patch 6 does not exist"),
    ],
)
def test_wishes_that_cannot_be_met(field, value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        views.view(a_trace(), {**REQUEST, field: value}, TraceCache(2**20))


def test_everything_is_json():
    trace = a_trace()
    json.dumps(views.facts(trace, "q", "a"), allow_nan=False)
    json.dumps(
        views.view(trace, {**REQUEST, "patch": 0, "box": [0, 0, 1, 1]}, TraceCache(9)), allow_nan=False
    )


def test_tokens_of_a_picture_are_one_run():
    runs = views.facts(a_trace(), "q", "a")["runs"]
    assert runs[:3] == [
        {"start": 0, "end": 1, "image": None},
        {"start": 1, "end": 7, "image": 0},
        {"start": 7, "end": 8, "image": None},
    ]


def test_a_thin_picture_is_drawn_thick_enough_to_click():
    def drawn(*size: int) -> tuple[int, int]:
        address = views.data_address(Image.new("RGB", size))
        return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size

    assert drawn(4000, 8) == (640, 40) and drawn(8, 4000) == (40, 640) and drawn(90, 45) == (640, 320)


def test_layers_without_sinks_are_listed():
    assert views.facts(a_trace(), "q", "a")["sinks"] == [True, True]


# --- before / after ---------------------------------------------------------------------------------------------------


def test_maps_side_by_side_end_at_the_99th_percentile_and_name_the_peak():
    frames = [views.Frame(NO_WORDS, "a cat", a_trace(seed=seed)) for seed in (0, 1)]
    for frame in frames:
        rows = frame.trace.rows[1]
        rows[:, :, 1:7] = 0.01
        rows[:, :, 3] = 0.4 if frame is frames[1] else 0.01
    told = views.compare(frames, {"layer": 0, "head": -1, "token": 0})
    even, peaked = (one["cells"] for one in told["frames"])
    assert even == pytest.approx([1] * 6) and peaked[2] == pytest.approx(0.4 / (0.45 / 6), rel=1e-3)
    percentile = np.percentile(peaked, 99)
    assert told["scale"]["top"] == pytest.approx(percentile, rel=1e-3) and percentile < peaked[2]
    assert told["scale"]["peak"] == pytest.approx(peaked[2], rel=1e-3)
    assert told["scale"]["swing"] == pytest.approx(
        np.percentile(np.abs(np.subtract(peaked, 1)), 99), rel=1e-3
    )
    finer = replace(frames[1].trace.images[0].tokens, grid=(3, 2))
    other = replace(
        frames[1].trace, images=(SeenImage(finer, frames[1].trace.images[0].picture),), key="other"
    )
    apart = views.compare([frames[0], replace(frames[1], trace=other)], {"layer": 0, "head": -1, "token": 0})
    assert apart["scale"]["swing"] is None and apart["scale"]["top"] == told["scale"]["top"]


def test_tokens_without_rows_are_counted_and_not_compared():
    """Of a long answer only the last rows fit."""
    whole = a_trace()
    late = replace(
        whole, positions=whole.positions[3:], rows={at: one[:, 3:] for at, one in whole.rows.items()}
    )
    facts = views.facts(late, "what?", "a cat")
    assert (facts["answer"], facts["left_out"]) == ([10], 1)
    assert views.facts(whole, "what?", "a cat")["left_out"] == 0
    frames = [views.Frame(NO_WORDS, "a cat", one) for one in (whole, late)]
    known = views.compare_facts(frames)
    assert (known["first_token"], known["answer_tokens"]) == (1, 2)
    shown = views.compare(frames, {"layer": 0, "head": -1, "token": 1})["frames"]
    assert [one["token"] for one in shown] == [" cat", " cat"]
    with pytest.raises(ValueError, match="token: found 0, expected a whole number from 1 to 1"):
        views.compare(frames, {"layer": 0, "head": -1, "token": 0})


def test_each_checkpoint_has_the_cells_of_its_own_grid():
    one = a_trace()
    row, column = np.divmod(np.arange(6), 2)  # 3 × 2 cells, as many as 2 × 3
    boxes = np.stack([column * 45, row * 10, column * 45 + 45, row * 10 + 10], 1).astype(float)
    image = SeenImage(ImageTokens(np.arange(1, 7), (3, 2), boxes, SIZE, False), one.images[0].picture)
    other = replace(a_trace(seed=1), images=(image,))
    told = views.compare_facts([views.Frame(NO_WORDS, "a cat", trace) for trace in (one, other)])
    assert [frame["boxes"][1] for frame in told["frames"]] == [
        pytest.approx([1 / 3, 0, 2 / 3, 1 / 2], abs=1e-4),
        pytest.approx([1 / 2, 0, 1, 1 / 4], abs=1e-4),
    ]


def test_the_same_question_to_both(page, picture):
    key = page.sessions.open()
    *_, (value, words) = page.compare(key, "en", ("own", "own"), "what?", str(picture))
    traces = json.loads(value)["looks"]
    assert page.engine.asked[0] == page.engine.asked[1] and words == "Answers compared: 2."
    facts = page.compare_facts(key, traces)
    assert (
        facts["layers"] == [1, 3]
        and [one["name"]["zh"] for one in facts["frames"]] == ["output/checkpoint-20"] * 2
    )
    frames = page.compare_view(key, traces, {"layer": 0, "head": 1, "token": 1})["frames"]
    assert [one["token"] for one in frames] == [" cat", " cat"] and frames[0]["cells"] == frames[1]["cells"]
    *_, (kept, words) = page.compare(key, "en", ("own", "/etc"), "what?", None)
    assert "expected one of the list" in words and len(json.loads(kept)["looks"]) == 1
    assert list(page.compare(key, "zh", ("own",), " ", None)) == [(gr.skip(), TEXTS["zh"]["no_question"])]


def test_the_picture_that_the_chat_s_question_names_is_ready_to_compare(page, picture, tmp_path):
    key = page.sessions.open()
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 70), "white").save(other)
    last = ask(page, key, "what is in the first picture?", picture, other)[-1]
    resumed, _ = page.resumed(key, "en")
    for step in (last, resumed):
        with Image.open(step.picture) as shown:
            assert shown.size == SIZE


def test_a_question_about_another_picture_says_that_models_saw_one(page, picture):
    key = page.sessions.open()
    *_, (_, words) = page.compare(key, "en", ("own",), "what is in the second picture?", str(picture))
    assert words.startswith(
        "Answers compared: 1. The question names Picture 2, but each model saw one picture"
    )
    *_, (_, words) = page.compare(key, "en", ("own",), "what is in picture 1?", str(picture))
    assert words == "Answers compared: 1."


@pytest.mark.parametrize(
    ("after", "is_cut", "agreement"),
    [
        ("<ref>cat</ref><box>(100,200),(400,700)</box>", False, "same_answer"),
        ("<ref>cat</ref><box>(100,200),(400,700)</box>", True, "same_beginning"),
        ("<ref>cat</ref><box>(600,100),(900,300)</box>", False, "other_answer"),
        ("<ref>cat</ref><box>[[600, 100, 900, 300]]</box>", False, "other_answer"),
    ],
)
def test_answers_whose_boxes_differ_are_not_the_same(page, picture, after, is_cut, agreement):
    key = page.sessions.open()
    said = iter([("<ref>cat</ref><box>(100,200),(400,700)</box>", False), (after, is_cut)])

    def reply(turns, *, stop):
        text, cut = next(said)
        yield Partial(text, True, a_trace(), cut=cut)

    page.engine.reply = reply
    *_, (value, _) = page.compare(key, "en", ("own", "own"), "where?", str(picture))
    frames = page.compare_facts(key, json.loads(value)["looks"])["frames"]
    assert [one["agreement"] for one in frames] == ["same_answer", agreement]
    assert frames[0]["answer"] == "cat [(100,200),(400,700)]"  # no box is drawn there


def test_comparing_can_be_stopped_and_shows_those_that_are_done(page):
    key = page.sessions.open()
    steps = page.compare(key, "en", ("own",) * 3, "what?", None)
    next(steps), next(steps)  # the second is asked
    page.stop(key)
    *_, (value, words) = steps
    assert len(json.loads(value)["looks"]) == 1 and words == "Stopped; answers compared: 1 of 3."
    assert len(page.engine.asked) == 2  # the third is not asked any more
    steps = page.compare(key, "en", ("own",), "what?", None)
    next(steps)
    page.stop(key)
    assert list(steps) == [(gr.skip(), "Stopped; answers compared: 0 of 1.")]


def test_answers_that_were_cut_off_are_compared_as_such(page):
    key = page.sessions.open()
    page.engine.cut = True
    *_, (value, _) = page.compare(key, "en", ("own",), "what?", None)
    assert [one["cut"] for one in page.compare_facts(key, json.loads(value)["looks"])["frames"]] == [True]


def test_status_lines_follow_the_language(page):
    key = page.sessions.open()
    assert (
        page.status(key, "compare", "zh") == page.status("", "compare", "zh") == TEXTS["zh"]["one_checkpoint"]
    )
    assert refused(ask(page, key, " ")) == TEXTS["en"]["nothing_asked"]
    assert page.status(key, "chat", "zh") == TEXTS["zh"]["nothing_asked"]
    ask(page, key, "what?")
    assert page.status(key, "chat", "zh") == ""
    list(page.compare(key, "en", ("own", "own"), "what?", None))
    assert page.status(key, "compare", "zh") == TEXTS["zh"]["compared"].format(n=2)


def test_a_status_is_text_and_not_markup(page, tmp_path):
    """As it is: ``words.js`` sets it as the text of an element."""
    path = tmp_path / "<img src=x>{{7}}${7}.png"
    path.write_bytes(b"")
    assert refused(ask(page, page.sessions.open(), "", path)).startswith(
        "<img src=x>{{7}}${7}.png: cannot be"
    )


def test_checkpoints_are_found_by_step(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "runs"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "adapter_config.json").touch()
    assert [path.name for path in find_checkpoints([tmp_path / "out"])] == ["checkpoint-20", "checkpoint-100"]
    with pytest.raises(ValueError, match="found no checkpoint"):
        find_checkpoints([tmp_path])


def test_one_other_checkpoint_is_kept_open(tmp_path):
    opened = []

    class Engine(FakeEngine):
        def with_checkpoint(self, path):
            opened.append(path.name)
            return FakeEngine()

    adapted = FakeEngine()
    adapted.has_adapter = True
    names = [name for _, name in Checkpoints(adapted, [tmp_path / "a"]).names()]  # type: ignore[arg-type]
    assert names == ["adapter_off", "checkpoint 0", "own"]
    words = Checkpoints(adapted, []).names()[0][0]  # type: ignore[arg-type]
    assert words.text("zh") == "output/checkpoint-20，适配器关闭"

    choices = Checkpoints(Engine(), [tmp_path / "a", tmp_path / "b"])  # type: ignore[arg-type]
    for number in (0, 0, 1, 0):
        choices.engine(f"checkpoint {number}")
    assert opened == ["a", "b", "a"]


def test_checkpoints_of_two_runs_have_names_that_differ(tmp_path):
    paths = [tmp_path / day / "run" / "checkpoint-20" for day in ("first", "second")]
    others = Checkpoints(FakeEngine(), [*paths, tmp_path / "first" / "run" / "checkpoint-30"])  # type: ignore[arg-type]
    assert [words.text("en") for words, _ in others.names()] == [
        "output/checkpoint-20", "first/run/checkpoint-20", "second/run/checkpoint-20", "run/checkpoint-30",
    ]  # fmt: skip


def test_the_page_hides_checkpoint_paths(tmp_path):
    page = Page(FakeEngine(), checkpoints=[tmp_path / "runs" / "a"], folder=tmp_path)  # type: ignore[arg-type]
    told = json.dumps(build(page, attention=True).get_config_file(), default=str)
    assert "runs/a" in told and str(tmp_path / "runs") not in told


def test_a_checkpoint_that_cannot_be_opened_does_not_say_where_it_lies(tmp_path):
    class Engine(FakeEngine):
        def with_checkpoint(self, path):
            raise OSError(f"{path} needs 20 GiB")

    place = tmp_path / "runs" / "checkpoint-20"
    page = Page(Engine(), checkpoints=[place], folder=tmp_path)  # type: ignore[arg-type]
    *_, (kept, words) = page.compare(page.sessions.open(), "en", ("own", "checkpoint 0"), "what?", None)
    assert words == "runs/checkpoint-20 needs 20 GiB" and len(json.loads(kept)["looks"]) == 1


def test_a_checkpoint_is_listed_once(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    found = find_checkpoints(["out", tmp_path / "out"])
    assert len(found) == 1
    engine = FakeEngine()
    engine.name = str(tmp_path / "out")
    assert [key for _, key in Checkpoints(engine, found).names()] == ["own"]  # type: ignore[arg-type]


def test_a_checkpoint_of_the_chat_s_picture_sees_what_was_sent(page, tmp_path):
    """The chat shows a copy of at most 1024 pixels; the model reads the original in both tabs."""
    path = tmp_path / "large.png"
    Image.effect_noise((1500, 700), 50).save(path)
    key = page.sessions.open()
    shown = ask(page, key, "what?", path)[-1].picture
    assert Image.open(shown).size == (1024, 478)
    list(page.compare(key, "en", ("own",), "what?", shown))
    references = [turns[0].parts[1] for turns in page.engine.asked]
    assert [one.data for one in references] == [path.read_bytes()] * 2
    other = tmp_path / "other.png"
    Image.new("RGB", SIZE).save(other)
    list(page.compare(key, "en", ("own",), "what?", str(other)))
    assert page.engine.asked[-1][0].parts[1].data == other.read_bytes()


# --- probes -----------------------------------------------------------------------------------------------------------


def written(**changed) -> dict:
    fields = {
        "id": "cat-1",
        "group": "cats",
        "region": "cat",
        "question": "what?",
        "answer": "a dog",
        "foil": "a cat",
    }
    return {**fields, "box": [0.5, 0.25, 1, 1], "image": 0, **changed}


def test_a_box_becomes_a_probe(tmp_path, picture):
    file = ProbeFile(tmp_path / "saved" / "probes.json")
    asked = Asked("what?", "a cat", (Upload.read(picture),))
    file.add(a_trace(), asked, written())
    file.add(a_trace(), asked, written(id="cat-2", foil=""))
    first, second = read_probes(file.path)
    assert first.regions == {"cat": ((45, 10, 90, 40),)} and first.phrases == {"a dog": "cat"}
    assert second.foil is None and len(file) == 2
    assert Image.open(first.images[0]).size == SIZE


def test_an_id_is_made_up_from_the_group(tmp_path, picture):
    """The first free number; what may not be in a file name becomes a dash; a picture left behind takes its number."""
    file = ProbeFile(tmp_path / "probes.json")
    asked = Asked("what?", "a cat", (Upload.read(picture),))
    for group in ("on / under", "on / under", "塔", "../.."):
        file.add(a_trace(), asked, written(id="", group=group))
    (tmp_path / "images" / "塔-02.png").write_bytes(b"")
    file.add(a_trace(), asked, written(id=" ", group="塔"))
    ids = [probe.id for probe in read_probes(file.path)]
    assert ids == ["on-under-01", "on-under-02", "塔-01", "probe-01", "塔-03"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"answer": ""}, "right answer: must not be empty"),
        ({"id": "../escaped"}, "id: found '../escaped'"),
        ({"id": ".hidden"}, "id: found"),
        ({"group": " "}, "group: must not be empty"),
        ({"box": None}, "box: found None"),
        ({"image": 1}, "image: found 1"),
        ({"foil": "a dog"}, "foil"),
        ({"id": "cat-0"}, "already in probes.json"),
    ],
)
def test_a_probe_that_is_not_valid_leaves_nothing(tmp_path, picture, changed, words):
    file = ProbeFile(tmp_path / "saved" / "probes.json")
    asked = Asked("what?", "a cat", (Upload.read(picture),))
    file.add(a_trace(), asked, written(id="cat-0"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=re.escape(words)):
        file.add(a_trace(), asked, written(**changed))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_question_about_several_pictures_is_no_probe(tmp_path, picture):
    file = ProbeFile(tmp_path / "probes.json")
    uploads = (Upload.read(picture), Upload.read(picture))
    trace = a_trace()
    trace = replace(trace, images=trace.images * 2)
    with pytest.raises(ValueError, match="A probe has one picture, but this question has 2"):
        file.add(trace, Asked("which is taller?", "a cat", uploads), written())
    later = Asked("what is in picture 2?", "a cat", uploads, earlier=1, before=1)
    with pytest.raises(ValueError, match="found Picture 2, but the picture of a probe is Picture 1"):
        file.add(trace, later, written(image=1, question="what is in picture 2?"))
    with pytest.raises(ValueError, match="found Picture 2, but the picture of a probe is Picture 1"):
        file.add(trace, later, written(image=1, question="第二张图里有什么?"))
    assert not file.path.exists()
    file.add(trace, later, written(image=1, question="what is in the picture?"))
    assert len(file) == 1


def test_a_saved_probe_says_that_earlier_turns_are_not_in_it(page, picture):
    key = page.sessions.open()
    looks = [
        json.loads(ask(page, key, text, *files)[-1].pane)["look"]
        for text, files in (("one?", [picture]), ("two?", []))
    ]
    first, second = (
        page.save_probe(key, look, written(id=name))["words"] for name, look in zip("ab", looks, strict=True)
    )
    assert "earlier" not in first["en"] and "earlier turns" in second["en"] and "之前的对话" in second["zh"]


def test_a_probe_file_with_faults_does_not_say_where_it_lies(tmp_path, picture):
    file = ProbeFile(tmp_path / "probes.json")
    asked = Asked("what?", "a cat", (Upload.read(picture),))
    with pytest.raises(ValueError, match="fault") as raised:  # of the trial file
        file.add(a_trace(), asked, written(foil="a dog"))
    assert str(tmp_path) not in str(raised.value)
    file.path.write_text("{bad")
    with pytest.raises(ValueError, match="^probes.json: not readable as JSON") as raised:
        file.add(a_trace(), asked, written())
    assert str(tmp_path) not in str(raised.value)


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A served page of the fake engine; what is asked of it goes through ``serve``'s own settings."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    made = []

    def start(**settings) -> str:
        blocks = build(Page(FakeEngine(), folder=tmp_path), attention=True)  # type: ignore[arg-type]
        made.append(blocks)
        return serve(blocks, server_port=free_port(), wait=False, **settings)

    yield start
    for blocks in made:
        blocks.close(verbose=False)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def test_what_gradio_keeps_of_page_loads_is_bounded(tmp_path, monkeypatch):
    """.25 MB of each, of 10,000 if it is not told."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    blocks = build(Page(FakeEngine(), folder=tmp_path), attention=True)  # type: ignore[arg-type]
    serve(blocks, server_port=free_port(), wait=False)
    try:
        held, most = blocks.state_holder, 2 * sessions.SESSIONS_MAX
        for number in range(most + 40):
            assert held[f"visitor {number}"]
        assert most <= len(held.session_data) <= most + 1
    finally:
        blocks.close(verbose=False)


def test_no_file_of_the_machine_is_served(server, tmp_path):
    address = server()
    assert address.startswith("http://127.0.0.1:")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    root = Path(web_demo_mm.__file__).parent
    for path in ("/etc/passwd", root / "README.md", "README.md", "probes_saved.json", secret):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
            assert httpx.get(f"{address}{route}{path}").status_code in (403, 404), (route, path)
    page = httpx.get(address).text
    assert not re.findall(r"(?:src|href)=\"https?://(?!127\.0\.0\.1)", page)


def test_large_files_and_foreign_functions_are_refused(server, monkeypatch):
    monkeypatch.setattr("diagnostics.web.page.FILE_MAX_BYTES", 1000)
    address = server()
    sent = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", io.BytesIO(b"x" * 2000))})
    assert sent.status_code == 413
    asked = {"data": ["guess", "look"], "component_id": 0, "fn_name": "facts", "session_hash": "x"}
    components = httpx.get(f"{address}config").json()["components"]
    ids = [one["id"] for one in components if one["props"].get("elem_id") == "attention-pane"]
    answer = httpx.post(f"{address}gradio_api/component_server", json={**asked, "component_id": ids[0]})
    assert "session has ended" in answer.json()["error"]["en"]
    assert (
        httpx.post(f"{address}gradio_api/component_server", json={**asked, "fn_name": "send"}).status_code
        >= 400
    )


def test_with_a_password_nothing_answers_without(server):
    address = server(auth=("me", "secret"))
    for route in ("config", "gradio_api/component_server", "gradio_api/upload"):
        ask = httpx.get if route == "config" else httpx.post
        assert ask(f"{address}{route}").status_code == 401, route


def test_flags(capsys):
    given = web_demo_mm.parser().parse_args([])
    assert (given.server_name, given.server_port, given.share, given.auth) == ("127.0.0.1", 8000, False, None)
    with pytest.raises(SystemExit):
        web_demo_mm.main(["--auth", "me"])
    assert "USER:PASSWORD" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_image_tokens", "0"], "--keep_image_tokens: found share 0, expected one above 0"),
        (["--keep_image_tokens", "1.5"], "--keep_image_tokens: found share 1.5"),
        (["--keep_image_tokens", "0.5", "--visualize-attention"], "whose maps are of whole pictures"),
        (["--keep_by", "random"], "invalid choice: 'random'"),
    ],
)
def test_image_tokens_that_cannot_be_kept(capsys, flags, message):
    with pytest.raises(SystemExit):
        web_demo_mm.main([*flags, "--cpu-only", "--server-port=18117"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "-5", "0", "x"])
def test_a_port_that_does_not_exist(capsys, port):
    with pytest.raises(SystemExit):
        web_demo_mm.main([f"--server-port={port}"])
    assert (
        f"--server-port: found '{port}', expected a whole number from 1 to 65535" in capsys.readouterr().err
    )


def refusal_of(capsys, *flags: str) -> str:
    """What the program says as it ends."""
    with pytest.raises(SystemExit) as ended:
        web_demo_mm.main(["--server-port", str(free_port()), *flags])
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_problems_for_visitors_are_reported_at_the_start(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # and as it was afterwards
    monkeypatch.setattr("diagnostics.web.engine.Engine.load", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refusal_of(capsys, "--server-port", str(port))
    assert told == (
        f"--server-name 127.0.0.1 --server-port {port}: cannot listen there (Address already in use); "
        "choose another port, or a host name of this machine\n"
    )
    assert "--server-name 192.0.2.1 " in refusal_of(capsys, "--server-name", "192.0.2.1")
    assert "--server-name no.invalid " in refusal_of(capsys, "--server-name", "no.invalid")
    probes = tmp_path / "probes.json"
    probes.write_text("{bad")
    told = refusal_of(capsys, "--visualize-attention", "--probe-file", str(probes))
    assert told.startswith(f"{probes}: not readable as JSON")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/base"}')
    told = refusal_of(capsys, "--checkpoints", str(tmp_path))
    assert told.startswith(f"--checkpoints {tmp_path}: ") and "'/nowhere/base' is missing" in told


def test_a_language_that_was_chosen_while_the_page_was_loading_stays(page):
    blocks = build(page, attention=True)
    settle = next(one.fn for one in blocks.fns.values() if one.name == "settle")
    key = page.sessions.open()
    found = {(offered, now): settle(key, offered, now) for offered in ("en", "zh") for now in ("en", "zh")}
    assert {asked: spoken for asked, (spoken, _) in found.items()} == {
        ("en", "en"): "en",
        ("en", "zh"): "zh",
        ("zh", "en"): "zh",
        ("zh", "zh"): "zh",
    }
    assert all(json.loads(pane)["language"] == spoken for spoken, pane in found.values())


def test_the_chat_alone(tmp_path):
    blocks = build(Page(FakeEngine(), folder=tmp_path), attention=False)  # type: ignore[arg-type]
    components = blocks.get_config_file()["components"]
    kinds = [one["type"] for one in components]
    assert "chatbot" in kinds and kinds.count("tabitem") == 1
    assert not [one for one in components if str(one["props"].get("elem_id")).endswith("-pane")]


# --- pictures and failures as people have them ------------------------------------------------------------------------


def saved(name: str, change=lambda data: data, **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(SIZE, 60).convert("RGBA" if name == "DDS" else "RGB").save(
        buffer, format=name, **options
    )
    return change(bytearray(buffer.getvalue()))


BROKEN = {
    "an empty file": b"",
    "a text": b"<html>not found</html>",
    "a PNG cut off": saved("PNG")[:900],
    "a JPEG cut off": saved("JPEG", quality=95)[:700],
    "a DDS of a format nobody knows": saved(
        "DDS", lambda data: data[:80] + b"\x04\0\0\0DX10" + data[88:128] + b"\x93" * 20 + data[128:]
    ),
    "a TIFF that points beyond its end": saved("TIFF", lambda data: data[:4] + b"\xff\xff\x00\x00" + data[8:]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_strange_picture_is_one_message_in_both_languages_and_the_input_stays(page, tmp_path, kind):
    (tmp_path / "cat.png").write_bytes(BROKEN[kind])
    key = page.sessions.open()
    for language, words in (
        ("en", "cat.png: cannot be read as a picture"),
        ("zh", "cat.png：无法识别为图片"),
    ):
        steps = list(page.send(key, {"text": "what?", "files": [str(tmp_path / "cat.png")]}, language))
        assert len(steps) == 1 and refused(steps).startswith(words)  # the input keeps its text and picture
    assert page.sessions.get(key).turns == []
    *_, (pane, status) = page.compare(key, "zh", ["own"], "what?", str(tmp_path / "cat.png"))
    assert pane == gr.skip() and status.startswith("cat.png：无法识别为图片")


def test_a_picture_deleted_on_the_server_has_a_message(page, tmp_path):
    key = page.sessions.open()
    assert refused(ask(page, key, "what?", tmp_path / "gone.png")).startswith("gone.png: cannot be read")
    *_, (_, status) = page.compare(key, "en", ["own"], "what?", str(tmp_path / "gone.png"))
    assert status.startswith("gone.png: cannot be read")


@pytest.mark.parametrize("mode", ["I;16", "CMYK", "LA", "P", "1", "F"])
def test_a_picture_of_any_mode_is_shown_and_asked_about(page, tmp_path, mode):
    grey = Image.new("L", SIZE, 128)
    values = np.asarray(grey).astype(np.uint16) * 257
    made = Image.fromarray(values) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / f"cat.{'tiff' if mode in ('F', 'CMYK') else 'png'}"
    made.save(path)
    key = page.sessions.open()
    ask(page, key, "what?", path)
    shown = np.asarray(Image.open(page._picture_asked_about(page.sessions.get(key))))
    assert shown.shape == (SIZE[1], SIZE[0], 3) and (mode in ("1", "F") or 118 < shown.mean() < 138)


def test_a_failure_of_the_model_is_one_message_and_the_question_is_in_the_input_again(
    page, picture, caplog, monkeypatch
):
    def broken(*_, **__):
        raise RuntimeError("/secret/path: mat1 and mat2 shapes cannot be multiplied")
        yield

    key = page.sessions.open()
    ask(page, key, "first?", picture)
    monkeypatch.setattr(page.engine, "reply", broken)
    steps = list(page.send(key, {"text": "second?", "files": [str(picture)]}, "zh"))
    assert steps[-1].status == "无法回答；详见服务器日志。" and "/secret/path" in caplog.text
    assert steps[-2].message["value"]["text"] == "second?" and len(steps[-2].message["value"]["files"]) == 1
    assert len(page.sessions.get(key).turns) == 2 and not page.sessions.get(key).busy.locked()
    *_, (pane, status) = page.compare(key, "en", ["own"], "what?", str(picture))
    assert pane == gr.skip() and status.startswith("This could not be answered")


def test_an_error_of_another_module_is_introduced_in_chinese_and_is_not_endless(page, picture, monkeypatch):
    def refuses(*_, **__):
        raise ValueError("found 1 × 300 pixels " + "x" * 5000)
        yield

    monkeypatch.setattr(page.engine, "reply", refuses)
    key = page.sessions.open()
    told = list(page.send(key, {"text": "what?", "files": [str(picture)]}, "zh"))[-1].status
    assert told.startswith("无法完成。原因（英文）：found 1 × 300 pixels") and len(told) < 700
    assert page.status(key, "chat", "en").startswith("found 1 × 300 pixels")


def test_a_probe_that_cannot_be_written_leaves_nothing_and_says_so(tmp_path, picture, monkeypatch):
    file = ProbeFile(tmp_path / "probes.json")
    asked = Asked("what?", "a cat", (Upload.read(picture),))
    monkeypatch.setattr(
        "finetune.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(ValueError, match="probes.json could not be written"):
        file.add(a_trace(), asked, written(id="cat-1"))
    monkeypatch.undo()
    assert not list(tmp_path.glob("images/*")) and not list(tmp_path.rglob("*.tmp"))
    file.add(a_trace(), asked, written(id="cat-1"))
    for name, words in (
        ("塔" * 84, "225 bytes"),
        ("CAT-1", "is already in probes.json"),
        ("a/b", "expected a name"),
    ):
        with pytest.raises(ValueError, match=words):
            file.add(a_trace(), asked, written(id=name))
