"""The page: chat, attention, before / after. Gradio holds it together; the panes draw themselves from numbers.

``Page`` answers what visitors do, ``build`` lays it out, ``serve`` starts it, closed to all but this machine.
"""

from __future__ import annotations

import html
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks the network then

import gradio as gr
from PIL import ImageFont
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from diagnostics.web import views
from diagnostics.web.checkpoints import Checkpoints, short_name
from diagnostics.web.engine import CACHE_BYTES, Engine
from diagnostics.web.probe_saver import ProbeFile
from diagnostics.web.sessions import (
    FILE_MAX_BYTES,
    QUESTION_MAX_CHARACTERS,
    Asked,
    Place,
    Session,
    Sessions,
    Upload,
    user_turn,
)
from diagnostics.web.texts import TEXTS, Language, RefusedError, Words, words_of
from diagnostics.web.views import Frame, Json
from finetune.fonts import text_font
from finetune.samples.markup import draw_boxes, parse_boxes, to_list_format

logger = logging.getLogger(__name__)

Messages: TypeAlias = list[dict[str, Any]]
_HERE = Path(__file__).parent
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
NOTHING_SAID = "∅ (nothing was said · 没有回答)"
LOOPBACK = ("127.0.0.1", "localhost")
"""The only names by which a page of this machine alone answers: a site that lets its own name lead here (DNS rebinding)
is refused."""
FONTS = ["system-ui", "Noto Sans CJK SC", "sans-serif"]  # of the visitor's machine: nothing is fetched


def in_words(method: Callable[..., Json]) -> Callable[[list[Any]], Json]:
    """What the browser gets for a wish that cannot be met: ``{"error": words by language}``. Other failures stay in the
    log."""
    expected = tuple(inspect.signature(method).parameters)

    def answered(asked: list[Any]) -> Json:
        try:
            if not isinstance(asked, list) or len(asked) != len(expected):
                raise ValueError(f"{method.__name__}: expected a list of {', '.join(expected)}")
            return method(*asked)
        except ValueError as error:
            return {"error": words_of(error).both()}
        except Exception:  # the visitor must not see a path or a line of code
            logger.exception("%s failed", method.__name__)
            return {"error": Words("not_drawn").both()}

    answered.__name__ = method.__name__  # the browser calls it by this; its own arguments come as one list
    return answered


class Step(NamedTuple):
    """What the chat's outputs become, in their order; what is left out stays as it is."""

    messages: Any = gr.skip()
    message: Any = gr.skip()
    pane: Any = gr.skip()
    question: Any = gr.skip()
    picture: Any = gr.skip()
    status: Any = gr.skip()


class Page:
    """What a visitor can do, each in a room of its own."""

    def __init__(
        self,
        engine: Engine,
        *,
        checkpoints: Sequence[Path] = (),
        probe_file: str | Path = "probes_saved.json",
        cache_bytes: int = CACHE_BYTES,
        folder: Path,
    ) -> None:
        self.engine = engine
        self.checkpoints = Checkpoints(engine, checkpoints)
        self.probe_file = ProbeFile(probe_file)
        self.sessions = Sessions(cache_bytes)
        self.folder = folder  # drawn boxes, until the server ends

    # --- chat -----------------------------------------------------------------------------------------------------

    def send(self, key: str, message: Json | None, language: Language) -> Iterator[Step]:
        """A question with its pictures. What is refused is told beneath the input, for an error of Gradio's would lie
        over the conversation."""
        try:
            session = self.sessions.get(key)
            with _one_at_a_time(session):
                uploads = [Upload.read(path) for path in (message or {}).get("files") or ()]
                session.ask((message or {}).get("text") or "", uploads)
                yield from self._answer(key, session, language)
        except ValueError as error:
            yield Step(status=self._say(key, "chat", words_of(error), language))

    def again(self, key: str, language: Language) -> Iterator[Step]:
        """The last question once more."""
        try:
            session = self.sessions.get(key)
            with _one_at_a_time(session):
                if session.take_back_answer():
                    yield from self._answer(key, session, language)
                else:  # Gradio takes a generator that ends without a word for None in every output
                    yield Step()
        except ValueError as error:
            yield Step(status=self._say(key, "chat", words_of(error), language))

    def stop(self, key: str) -> None:
        """End the answer that is being written; where the session has ended, none is."""
        with suppress(ValueError):
            self.sessions.get(key).stop.set()

    def clear(self, key: str, language: Language) -> Step:
        """Forget the conversation and what it looked at."""
        try:
            self.sessions.get(key).clear()
        except ValueError as error:
            return Step(status=self._say(key, "chat", words_of(error), language))
        return Step([], None, self.pane(key, None, language), "", None, "")

    def _answer(self, key: str, session: Session, language: Language) -> Iterator[Step]:
        """Raises ValueError for a question that the engine refuses, once it is back in the input."""
        session.stop.clear()
        text, trace, done = "", None, False
        try:
            yield Step(
                self._messages(session, "…"),
                gr.update(value=None),
                status=self._say(key, "chat", None, language),
            )
            for partial in self.engine.reply(tuple(session.turns), stop=session.stop):
                text, trace, done = partial.text, partial.trace or trace, partial.done
                words = TEXTS[language]["waiting"].format(n=partial.waiting) if partial.waiting else text
                yield Step(self._messages(session, words or "…"))
        except Exception as error:  # whatever it is, the question goes back into the input
            question, uploads = session.take_back_question()
            files = [str(self._sent(upload)) for upload in uploads]
            yield Step(self._messages(session), gr.update(value={"text": question, "files": files}))
            raise _for_visitors(error) from error
        finally:
            if (
                not done and session.turns and session.turns[-1].role == "user"
            ):  # the visitor left, or it failed
                session.take_back_question()
        if not session.turns:  # cleared while it was written
            yield Step([])
            return
        session.answered(text, trace)
        pane = self.pane(key, trace.key if trace else None, language)
        yield Step(
            self._messages(session), pane=pane, question=session.said[-1][0], picture=self._picture(session)
        )

    def status(self, key: object, place: Place, language: Language) -> str:
        """What was last told there, in another language."""
        try:
            words = self.sessions.get(key).status.get(place) if key else None  # the page is still loading
        except ValueError:  # it has ended, and stays told
            return gr.skip()
        if words is None and place == "compare" and len(self.checkpoints.names()) < 2:
            words = Words("one_checkpoint")
        return _as_html(words, language)

    def _say(self, key: object, place: Place, words: Words | None, language: Language) -> str:
        with suppress(ValueError):  # a session that has ended is told so all the same
            told = self.sessions.get(key).status
            told.pop(place, None)
            if words is not None:
                told[place] = words
        return _as_html(words, language)

    def _messages(self, session: Session, writing: str | None = None) -> Messages:
        """The conversation as the chat shows it; ``writing`` is the answer so far."""
        messages: Messages = []
        at = 0
        for number, (question, answer) in enumerate(session.said):
            count = session.added[number]
            shown = session.pictures[at : at + count]
            at += count
            messages += [_says("user", {"path": str(self._file(upload))}) for upload in shown]
            messages += [_says("user", question)] if question else []
            is_asked = number == len(session.said) - 1 and session.turns[-1].role == "user"
            if answer or not is_asked:
                messages.append(_says("assistant", readable(answer) or NOTHING_SAID))
                if parse_boxes(answer) and at:
                    messages.append(
                        _says("assistant", {"path": str(self._boxed(session.pictures[at - 1], answer))})
                    )
        if writing is not None:
            messages.append(_says("assistant", readable(writing)))
        return messages

    def _file(self, upload: Upload) -> Path:
        """The picture as a file for the chat, upright and no larger than the screen needs; written once."""
        place = self.folder / f"{abs(hash(upload.data)):x}.jpg"
        if not place.is_file():
            small = upload.open().convert("RGB")
            small.thumbnail((1024, 1024))
            small.save(place, quality=90)
        return place

    def _sent(self, upload: Upload) -> Path:
        """The picture as a file as it was sent, under its own name."""
        place = self.folder / f"{abs(hash(upload.data)):x}" / upload.name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(upload.data)
        return place

    def _boxed(self, upload: Upload, answer: str) -> Path:
        place = self.folder / f"{abs(hash((upload.data, answer))):x}.png"
        if not place.is_file():
            picture = upload.open().convert("RGB")
            factor = max(1, round(480 / max(picture.size)))
            picture = picture.resize((picture.width * factor, picture.height * factor))
            draw_boxes(picture, answer, font=ImageFont.truetype(str(text_font(answer)), 18)).save(place)
        return place

    def _picture(self, session: Session) -> str | None:
        return str(self._file(session.pictures[-1])) if session.pictures else None

    # --- attention ------------------------------------------------------------------------------------------------

    def pane(self, key: str, trace: str | None, language: Language) -> str:
        """What the attention pane is told: whose look, and in which language."""
        return json.dumps({"room": key, "look": trace, "language": language})

    def facts(self, key: str, trace: str) -> Json:
        """See ``page_views.facts``."""
        found, asked = self._trace(key, trace)
        return views.facts(found, asked.question, asked.reply)

    def view(self, key: str, trace: str, asked: Json) -> Json:
        """See ``page_views.view``."""
        return views.view(self._trace(key, trace)[0], _fields(asked), self.sessions.get(key).traces)

    def save_probe(self, key: str, trace: str, written: Json) -> Json:
        """Append a drawn box to the probe file."""
        found, asked = self._trace(key, trace)
        probe = self.probe_file.add(found, asked, _fields(written))
        saved = Words("saved", {"id": probe.id, "n": len(self.probe_file), "file": self.probe_file.path.name})
        return {"words": saved.both()}

    # --- before / after -------------------------------------------------------------------------------------------

    def compare(
        self, key: str, language: Language, chosen: Sequence[str], question: str, picture: str | None
    ) -> Iterator[tuple[Any, str]]:
        """One question to several checkpoints, in order: (pane, words on how far it is). Stopped or refused on the way,
        those that are done are shown."""
        traces: list[str] = []
        try:
            session = self.sessions.get(key)
            with _one_at_a_time(session):
                session.stop.clear()
                if not question.strip():
                    raise RefusedError("no_question")
                asked = Asked(question.strip(), "", (self._chosen(session, picture),) if picture else ())
                for words in self._ask_each(session, chosen, asked, traces):
                    yield gr.skip(), self._say(key, "compare", words, language)
            outcome = Words("compared", {"n": len(traces)})
            if len(traces) < len(chosen):
                outcome = Words("stopped", {"n": len(traces), "of": len(chosen)})
        except Exception as error:  # whatever it is, the answers that are done are shown
            outcome = words_of(_for_visitors(error))
        pane = json.dumps({"room": key, "looks": traces, "language": language}) if traces else gr.skip()
        yield pane, self._say(key, "compare", outcome, language)

    def _chosen(self, session: Session, path: str) -> Upload:
        """The picture to compare by: as it was sent, where what is shown is the chat's smaller copy of it."""
        try:
            shown = Path(path).read_bytes()
        except OSError as error:  # gone from the server's folder of uploads
            raise RefusedError("no_image", file=Path(path).name) from error
        sent = (upload for upload in session.pictures if self._file(upload).read_bytes() == shown)
        return next(sent, None) or Upload.read(path)

    def _ask_each(
        self, session: Session, chosen: Sequence[str], asked: Asked, traces: list[str]
    ) -> Iterator[Words]:
        """Whose turn it is; each answer's look goes into ``looks``. An answer that was cut short is not compared."""
        names = {key: name for name, key in self.checkpoints.names()}
        turn = user_turn(asked.question, asked.pictures, 0)
        for number, key in enumerate(chosen, start=1):
            name = names.get(key, Words.of(key))
            yield Words("asking", {"name": name, "n": number, "of": len(chosen)})
            *_, last = self.checkpoints.engine(key).reply((turn,), stop=session.stop)
            if session.stop.is_set():
                return
            if last.trace is None:
                raise RefusedError("no_answer", name=name)
            traces.append(session.keep(last.trace, replace(asked, reply=last.text, name=name)))

    def compare_facts(self, key: str, traces: list[str]) -> Json:
        """See ``page_views.compare_facts``."""
        return views.compare_facts(self._frames(key, traces))

    def compare_view(self, key: str, traces: list[str], asked: Json) -> Json:
        """See ``page_views.compare``."""
        return {"frames": views.compare(self._frames(key, traces), _fields(asked))}

    def _frames(self, key: str, traces: list[str]) -> list[Frame]:
        if not isinstance(traces, list) or not 1 <= len(traces) <= len(self.checkpoints.names()) + 1:
            raise ValueError("looks: expected a list of the answers that were compared")
        found = [self._trace(key, trace) for trace in traces]
        return [Frame(asked.name, readable(asked.reply), trace) for trace, asked in found]

    def _trace(self, key: str, name: str) -> tuple[Any, Asked]:
        session = self.sessions.get(key)
        trace = session.traces.get(name) if isinstance(name, str) else None
        if trace is None:
            raise RefusedError("made_room", limit=session.traces.limit_bytes // 2**20)
        return trace, session.asked[name]


class _one_at_a_time:  # noqa: N801 - read as a statement
    """A visitor's second request while the first is being answered is refused in words."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> None:
        if not self.session.busy.acquire(blocking=False):
            raise RefusedError("busy")

    def __exit__(self, *_: object) -> None:
        self.session.busy.release()


def _for_visitors(error: Exception) -> ValueError:
    """The error itself where it is in words; of any other the log has what a visitor must not see."""
    if isinstance(error, ValueError):
        return error
    logger.error("an answer failed", exc_info=error)
    return RefusedError("not_answered")


def _as_html(words: Words | None, language: Language) -> str:
    """For a status line: names of files are quoted in it, and what they hold is not followed."""
    return html.escape(words.spoken(language)).replace("\n", "<br>") if words else ""


def _fields(given: Any) -> Json:
    if not isinstance(given, dict):
        raise ValueError("expected an object of fields")
    return given


def readable(text: str) -> str:
    """An answer without markup: phrases stay, the corners of their boxes go (they are drawn); a box without a phrase
    shows its corners."""
    words, named = "", False
    for part in to_list_format(text):
        if "box" in part:
            words += "" if named else f"[{part['box']}]"
        else:
            words += next(iter(part.values()))
            named = "ref" in part
    return words


def _says(role: str, content: Any) -> Json:
    """A message; text is escaped, for the chat would fetch what an ``<img>`` in it names from outside."""
    return {
        "role": role,
        "content": html.escape(content, quote=False) if isinstance(content, str) else content,
    }


def _script(*names: str) -> str:
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


# --- layout -------------------------------------------------------------------------------------------------------


class Worded(NamedTuple):
    """A component whose ``property`` is the text ``key`` in the visitor's language."""

    component: Any
    property: str
    key: str

    def spoken(self, language: Language) -> Json:
        return {self.property: TEXTS[language][self.key]}


class Choices(NamedTuple):
    """A list to choose a checkpoint from, by names in the visitor's language."""

    component: gr.Dropdown
    names: Sequence[tuple[Words, str]]

    def spoken(self, language: Language) -> Json:
        return {"choices": [(words.spoken(language), key) for words, key in self.names]}


def build(page: Page, *, attention: bool, example: tuple[Path, str] | None = None) -> gr.Blocks:
    """The page; without ``attention`` the chat alone. ``example`` is a picture and a question to try."""
    words = TEXTS["en"]
    with gr.Blocks(
        title=words["title"], analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as blocks:
        key = gr.State("")
        with gr.Row(elem_id="top"):
            title = gr.Markdown(words["title"], elem_id="title")
            language = gr.Radio(
                [("English", "en"), ("中文", "zh")],
                value="en",
                show_label=False,
                container=False,
                elem_id="language",
            )
        worded: list[Worded | Choices] = [Worded(title, "value", "title")]
        with gr.Tabs():
            with gr.Tab(words["chat"]) as tab:
                chat = _chat(page, example, worded)
            worded.append(Worded(tab, "label", "chat"))
            if attention:
                with gr.Tab(words["attention"]) as tab:
                    seen: Any = _pane("attention", page.facts, page.view, page.save_probe)
                worded.append(Worded(tab, "label", "attention"))
                with gr.Tab(words["compare"]) as tab:
                    comparison = _comparison(page, key, language, worded)
                worded.append(Worded(tab, "label", "compare"))
            else:
                seen, comparison = gr.State(""), Comparison(*(gr.State("") for _ in Comparison._fields))
        outputs = Step(
            chat.messages, chat.message, seen, comparison.question, comparison.picture, chat.status
        )
        _wire_chat(page, chat, key, language, list(outputs))
        statuses: dict[Place, Any] = {"chat": chat.status, "compare": comparison.status}
        _wire_language(page, key, language, [seen, comparison.pane], statuses, worded)
        _wire_visit(page, blocks, key, language, seen)
    return blocks


class Chat(NamedTuple):
    """The chat's components."""

    messages: gr.Chatbot
    message: gr.MultimodalTextbox
    stop: gr.Button
    again: gr.Button
    clear: gr.Button
    status: gr.HTML


class Comparison(NamedTuple):
    """What a finished turn fills in, the pane, and the line that says how far it is."""

    question: Any
    picture: Any
    pane: Any
    status: Any


def _chat(page: Page, example: tuple[Path, str] | None, worded: list[Worded | Choices]) -> Chat:
    words = TEXTS["en"]
    messages = gr.Chatbot(
        show_label=False,
        height="58vh",
        elem_id="chat",
        render_markdown=False,  # a picture's address in an answer would be fetched from outside
        buttons=["copy"],
    )
    message = gr.MultimodalTextbox(
        placeholder=words["ask"],
        show_label=False,
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=QUESTION_MAX_CHARACTERS,
        elem_id="message",
    )
    status = gr.HTML(elem_id="chat_status", elem_classes="status", padding=False)
    with gr.Row(elem_id="buttons"):
        stop, again, clear = (
            gr.Button(words[name], elem_id=name, size="sm", min_width=90)
            for name in ("stop", "again", "clear")
        )
    if example is not None:
        gr.Examples([[{"text": example[1], "files": [str(example[0])]}]], message, label="Example · 示例")
    gr.Markdown(f"`{short_name(page.engine.name)}`", elem_id="model")
    worded += [Worded(button, "value", str(button.elem_id)) for button in (stop, again, clear)]
    worded.append(Worded(message, "placeholder", "ask"))
    return Chat(messages, message, stop, again, clear, status)


def _wire_chat(page: Page, chat: Chat, key: gr.State, language: gr.Radio, outputs: list[Any]) -> None:
    message, many = chat.message, {"concurrency_limit": None, "show_progress": "hidden", **_PRIVATE}
    message.submit(page.send, [key, message, language], outputs, **many)
    chat.again.click(page.again, [key, language], outputs, **many)
    chat.stop.click(page.stop, key, None, queue=False, **_PRIVATE)
    for cleared in (chat.clear.click, chat.messages.clear):
        cleared(page.clear, [key, language], outputs, queue=False, **_PRIVATE)


def _wire_language(
    page: Page,
    key: gr.State,
    language: gr.Radio,
    panes: list[Any],
    statuses: dict[Place, Any],
    worded: Sequence[Worded | Choices],
) -> None:
    components = list(dict.fromkeys(one.component for one in worded))

    def reworded(session: str, spoken: Language, *told: str) -> list[Any]:
        panes = [json.dumps({**json.loads(one or "{}"), "language": spoken}) for one in told]
        lines = [page.status(session, place, spoken) for place in statuses]
        updates = {one: gr.update() for one in components}
        for one in worded:
            updates[one.component] |= one.spoken(spoken)
        return [*panes, *lines, *updates.values()]

    inputs, outputs = [key, language, *panes], [*panes, *statuses.values(), *components]
    language.change(reworded, inputs, outputs, queue=False, show_progress="hidden", **_PRIVATE)


def _wire_visit(page: Page, blocks: gr.Blocks, key: gr.State, language: gr.Radio, seen: Any) -> None:
    """A visitor gets a room on loading the page, in the browser's language; it is cleared on leaving."""
    held: dict[str, str] = {}

    def enter(request: gr.Request) -> tuple[str, Language, str]:
        session = page.sessions.open()
        if request.session_hash:
            held[request.session_hash] = session
        spoken: Language = (
            "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
        )
        return session, spoken, page.pane(session, None, spoken)

    def settle(session: str, offered: Language, now: Language) -> tuple[Language, str]:
        chosen = offered if now == "en" else now  # Chinese was chosen while the page was loading
        return chosen, page.pane(session, None, chosen)

    def leave(request: gr.Request) -> None:
        page.sessions.close(held.pop(request.session_hash or "", ""))

    offered = gr.State("en")
    quietly = {"show_progress": "hidden", **_PRIVATE}
    entered = blocks.load(enter, None, [key, offered, seen], **quietly)
    entered.then(settle, [key, offered, language], [language, seen], **quietly)
    blocks.unload(leave)


def _comparison(page: Page, key: gr.State, language: gr.Radio, worded: list[Worded | Choices]) -> Comparison:
    words, names = TEXTS["en"], page.checkpoints.names()
    shown = [(one.spoken("en"), name) for one, name in names]
    with gr.Row():
        before = gr.Dropdown(shown, value=names[0][1], label=words["before"], elem_id="before", min_width=260)
        after = gr.Dropdown(shown, value=names[-1][1], label=words["after"], elem_id="after", min_width=260)
    with gr.Row():
        picture = gr.Image(
            type="filepath",
            image_mode=None,
            sources=["upload"],
            label=words["picture_box"],
            placeholder=words["drop"],
            height=180,
            scale=1,
        )
        with gr.Column(scale=2):
            question = gr.Textbox(
                label=words["question_box"], max_length=QUESTION_MAX_CHARACTERS, elem_id="question"
            )
            with gr.Row():
                go = gr.Button(words["compare_go"], variant="primary", elem_id="compare_go")
                every = gr.Button(words["play_all"], elem_id="play_all", interactive=len(names) > 2)
                stop = gr.Button(words["stop"], elem_id="compare_stop")
            alone = html.escape(words["one_checkpoint"]) if len(names) < 2 else ""
            status = gr.HTML(alone, elem_id="compare_status", elem_classes="status", padding=False)
    pane = _pane("compare", page.compare_facts, page.compare_view)
    worded += [Choices(before, names), Choices(after, names)]
    worded += [Worded(before, "label", "before"), Worded(after, "label", "after")]
    worded += [Worded(picture, "label", "picture_box"), Worded(picture, "placeholder", "drop")]
    worded += [Worded(question, "label", "question_box"), Worded(go, "value", "compare_go")]
    worded += [Worded(every, "value", "play_all"), Worded(stop, "value", "stop")]

    def pair(key: str, spoken: Language, one: str, two: str, asked: str, shown: str | None) -> Iterator[Any]:
        yield from page.compare(key, spoken, (one, two), asked, shown)

    def all_of_them(key: str, spoken: Language, asked: str, shown: str | None) -> Iterator[Any]:
        yield from page.compare(key, spoken, [name for _, name in names], asked, shown)

    many = {"concurrency_limit": None, "show_progress": "hidden", **_PRIVATE}
    go.click(pair, [key, language, before, after, question, picture], [pane, status], **many)
    every.click(all_of_them, [key, language, question, picture], [pane, status], **many)
    stop.click(page.stop, key, None, queue=False, **_PRIVATE)
    return Comparison(question, picture, pane, status)


def _pane(name: str, *functions: Callable[..., Json]) -> gr.HTML:
    """A pane that draws itself: its script asks the server functions and nothing else."""
    return gr.HTML(
        value="{}",
        html_template="<div class='pane'></div>",
        css_template=(_HERE / "pane.css").read_text(encoding="utf-8"),
        js_on_load=f"const TEXTS = {json.dumps(TEXTS)};\n" + _script("heat.js", f"{name}.js"),
        server_functions=[in_words(function) for function in functions],
        elem_id=f"{name}-pane",
    )


def serve(
    blocks: gr.Blocks,
    *,
    server_name: str = "127.0.0.1",
    server_port: int = 8000,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    inbrowser: bool = False,
    wait: bool = True,
) -> str:
    """Start the page, tell its address in the log, and return it: at the end of the server, where ``wait`` is set. No
    file is served but what visitors sent and the page drew for them."""
    hosts = LOOPBACK if server_name in LOOPBACK and not share else ("*",)
    blocks.queue(api_open=False)
    _, address, shared = blocks.launch(
        server_name=server_name,
        server_port=server_port,
        share=share,
        auth=auth,
        inbrowser=inbrowser,
        prevent_thread_lock=True,
        max_file_size=FILE_MAX_BYTES,
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        quiet=True,
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])]},
        theme=gr.themes.Base(primary_hue="orange", font=FONTS, font_mono=["monospace"]),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
    )
    logger.info("%s", " ".join(filter(None, (address, shared))))
    if wait:
        try:
            blocks.block_thread()
        finally:  # before the files go that it serves
            blocks.close(verbose=False)
    return address
