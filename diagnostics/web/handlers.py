"""Event handlers of the page: each public method of ``Page`` handles one event or one request of a pane."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from diagnostics.web import views
from diagnostics.web.chat_messages import chat_messages, readable
from diagnostics.web.checkpoints import Checkpoints
from diagnostics.web.engine import CACHE_BYTES, Engine
from diagnostics.web.example_questions import examples
from diagnostics.web.named_pictures import about, numbers_of_pictures
from diagnostics.web.probe_saver import ProbeFile
from diagnostics.web.sessions import Asked, Place, Session, Sessions, user_turn
from diagnostics.web.texts import TEXTS, Language, RefusedError, Words, words_of
from diagnostics.web.trace import Trace
from diagnostics.web.uploads import Upload
from diagnostics.web.views import Frame, Json

logger = logging.getLogger(__name__)

ENDING_SECONDS = 1.0
"""How long a reload waits for the answer that the closed page was generating; Gradio may end it much later."""


def json_errors(method: Callable[..., Json]) -> Callable[[list[Any]], Json]:
    """Wraps a method for calls from a pane, with its arguments as one list.

    A ValueError becomes ``{"error": text by language}``; details of any other failure go only to the log.
    """
    expected = tuple(inspect.signature(method).parameters)

    def answered(arguments: list[Any]) -> Json:
        try:
            if not isinstance(arguments, list) or len(arguments) != len(expected):
                raise ValueError(f"{method.__name__}: expected a list of {', '.join(expected)}")
            return method(*arguments)
        except ValueError as error:
            return {"error": words_of(error).both()}
        except Exception:  # visitors must not see paths or code
            logger.exception("%s failed", method.__name__)
            return {"error": Words("not_drawn").both()}

    answered.__name__ = method.__name__  # the name that the browser calls
    return answered


class Step(NamedTuple):
    """An update of the chat's outputs, in the order in which they are wired; omitted fields stay unchanged."""

    messages: Any = gr.skip()
    message: Any = gr.skip()
    pane: Any = gr.skip()
    question: Any = gr.skip()
    picture: Any = gr.skip()
    status: Any = gr.skip()


class Page:
    """The page's event handlers. Each visitor has a session, identified by its key."""

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
        self.sessions = Sessions(cache_bytes, folder)

    # --- visits ---------------------------------------------------------------------------------------------------

    def enter(self, kept: object) -> str:
        """The key of a visitor's session: the one that the browser's tab kept, or of a new one."""
        try:
            session = self.sessions.get(kept)
        except ValueError:
            return self.sessions.open()
        session.stop.set()
        if session.busy.acquire(timeout=ENDING_SECONDS):
            session.busy.release()
        else:
            session.take_over()
        session.left = None
        return str(kept)

    def resumed(self, key: str, language: Language) -> tuple[Step, Any]:
        """The chat as it was left and the pane of before / after; empty for a new session."""
        session = self.sessions.get(key)
        question, uploads = session.draft or ("", [])
        session.draft = None
        files = [str(session.files.original(upload)) for upload in uploads]
        step = Step(
            chat_messages(session),
            gr.update(value={"text": question, "files": files}) if question or files else gr.skip(),
            self.chat_pane(key, language),
            session.exchanges[-1][0] if session.exchanges else gr.skip(),
            self._picture_asked_about(session) or gr.skip(),
        )
        return step, self._compare_pane(
            key, [one for one in session.compared if one in session.asked], language
        )

    def speak(self, key: str, language: Language) -> None:
        """Remember the language that a visitor chose."""
        with suppress(ValueError):  # an ended session has none
            self.sessions.get(key).language = language

    def chat_pane(self, key: str, language: Language) -> str:
        """The attention pane's value for the chat's last answer."""
        return self.pane(key, self.sessions.get(key).kept_look, language)

    # --- chat -----------------------------------------------------------------------------------------------------

    def send(self, key: str, message: Json | None, language: Language) -> Iterator[Step]:
        """Answer a question with its pictures.

        Errors are shown below the input: one raised to Gradio would cover the conversation.
        """
        try:
            session = self.sessions.get(key)
            with _one_at_a_time(session):
                uploads = [Upload.read(path) for path in (message or {}).get("files") or ()]
                session.ask((message or {}).get("text") or "", uploads)
                yield from self._answer(key, session, language)
        except ValueError as error:
            yield Step(status=self._set_status(key, "chat", words_of(error), language))

    def ask_example(self, key: str, number: object, language: Language) -> Iterator[Step]:
        """Answer one of the page's examples."""
        try:
            offered = examples()
            if not isinstance(number, int) or not 0 <= number < len(offered):
                raise ValueError(f"example: expected a number from 0 to {len(offered) - 1}")
            session = self.sessions.get(key)
            with _one_at_a_time(session):
                session.ask(offered[number].questions[language], [offered[number].upload])
                yield from self._answer(key, session, language)
        except ValueError as error:
            yield Step(status=self._set_status(key, "chat", words_of(error), language))

    def again(self, key: str, language: Language) -> Iterator[Step]:
        """Regenerate the last answer."""
        try:
            session = self.sessions.get(key)
            with _one_at_a_time(session):
                if session.take_back_answer():
                    yield from self._answer(key, session, language)
                else:  # Gradio sets every output to None for a generator that yields nothing
                    yield Step()
        except ValueError as error:
            yield Step(status=self._set_status(key, "chat", words_of(error), language))

    def stop(self, key: str) -> None:
        """Stop the answer that is being generated, if any."""
        with suppress(ValueError):  # an ended session has none
            self.sessions.get(key).stop.set()

    def clear(self, key: str, language: Language) -> Step:
        """Forget the conversation and its traces."""
        try:
            self.sessions.get(key).clear()
        except ValueError as error:
            return Step(status=self._set_status(key, "chat", words_of(error), language))
        return Step([], None, self.pane(key, None, language), "", None, "")

    def _answer(self, key: str, session: Session, language: Language) -> Iterator[Step]:
        """Stream the answer.

        On failure the question returns to the input and ValueError is raised; it also returns if it was stopped before
        the answer began.
        """
        stop, visit = session.stop, session.visit  # a reload may give the session others
        stop.clear()
        text, trace, done, cut = "", None, False, False
        try:
            yield Step(
                chat_messages(session, "…"),
                gr.update(value=None),
                status=self._set_status(key, "chat", None, language),
            )
            if session.visit != visit:  # a reload took the session over
                return
            for partial in self.engine.reply(tuple(session.turns), stop=stop):
                if session.visit != visit:
                    return
                text, trace, done, cut = partial.text, partial.trace or trace, partial.done, partial.cut
                if done:  # shown below, once it is kept: the visitor may leave at any yield
                    continue
                words = TEXTS[language]["waiting"].format(n=partial.waiting) if partial.waiting else text
                yield Step(chat_messages(session, words or "…"))
        except Exception as error:
            if session.visit != visit:  # the last question is another page's
                return
            yield self._taken_back(key, session, language, *session.take_back_question())
            raise _for_visitor(error) from error
        finally:
            if (
                not done and session.visit == visit
            ):  # the visitor left: a reload finds the question in the input
                session.interrupt()
        if session.visit != visit:
            return
        if not session.turns:  # cleared during generation
            yield Step([])
            return
        if stop.is_set() and not text:  # it was still waiting, or read its prompt
            session.interrupt()
            yield self._taken_back(key, session, language, *(session.draft or ("", [])))
            return
        session.answered(text, trace, cut=cut)
        self.sessions.make_room(key)
        pane = self.pane(key, trace.key if trace else None, language)
        yield Step(
            chat_messages(session),
            pane=pane,
            question=session.exchanges[-1][0],
            picture=self._picture_asked_about(session),
        )

    def _taken_back(
        self, key: str, session: Session, language: Language, question: str, uploads: Sequence[Upload]
    ) -> Step:
        """The chat without its last question, which is in the input again, and the attention of the last answer that
        it still has."""
        files = [str(session.files.original(upload)) for upload in uploads]
        return Step(
            chat_messages(session),
            gr.update(value={"text": question, "files": files}),
            self.pane(key, session.kept_look, language),
        )

    def status(self, key: object, place: Place, language: Language) -> str:
        """The last message of a status line, in another language."""
        try:
            words = self.sessions.get(key).status.get(place) if key else None  # the page is still loading
        except ValueError:  # the session has ended; the line already shows that
            return gr.skip()
        if words is None and place == "compare" and len(self.checkpoints.names()) < 2:
            words = Words("one_checkpoint")
        return _as_text(words, language)

    def _set_status(self, key: object, place: Place, words: Words | None, language: Language) -> str:
        with suppress(ValueError):  # nothing is remembered for an ended session
            shown = self.sessions.get(key).status
            shown.pop(place, None)
            if words is not None:
                shown[place] = words
        return _as_text(words, language)

    def _picture_asked_about(self, session: Session) -> str | None:
        """The picture that the chat's last question is about, as before / after asks it again."""
        if not session.pictures:
            return None
        question, _ = session.exchanges[-1]
        return str(session.files.shown(session.pictures[about(question, len(session.pictures))]))

    # --- attention ------------------------------------------------------------------------------------------------

    def pane(self, key: str, trace: str | None, language: Language) -> str:
        """The attention pane's value: session, trace and language."""
        return json.dumps({"room": key, "look": trace, "language": language})

    def facts(self, key: str, trace: str) -> Json:
        """See ``views.facts``."""
        found, asked = self._trace(key, trace)
        return views.facts(found, asked.question, asked.reply, cut=asked.cut)

    def view(self, key: str, trace: str, asked: Json) -> Json:
        """See ``views.view``."""
        return views.view(self._trace(key, trace)[0], _fields(asked), self.sessions.get(key).traces)

    def save_probe(self, key: str, trace: str, written: Json) -> Json:
        """Append a drawn box to the probe file."""
        found, asked = self._trace(key, trace)
        probe = self.probe_file.add(found, asked, _fields(written))
        what = {"id": probe.id, "n": len(self.probe_file), "file": self.probe_file.path.name}
        saved = Words("saved_alone" if asked.earlier else "saved", what)
        return {"words": saved.both()}

    # --- before / after -------------------------------------------------------------------------------------------

    def compare(
        self, key: str, language: Language, chosen: Sequence[str], question: str, picture: str | None
    ) -> Iterator[tuple[Any, str]]:
        """Ask several checkpoints the same question, in order; yields (pane, status line).

        If it is stopped or fails, the answers so far are shown.
        """
        traces: list[str] = []
        session: Session | None = None
        visit = 0
        try:
            session = self.sessions.get(key)
            visit = session.visit
            with _one_at_a_time(session):
                session.stop.clear()
                if not question.strip():
                    raise RefusedError("no_question")
                asked = Asked(question.strip(), "", (self._chosen(session, picture),) if picture else ())
                for words in self._ask_each(session, chosen, asked, traces):
                    yield gr.skip(), self._set_status(key, "compare", words, language)
                if session.visit != visit:  # a reload took the session over: nobody waits for this
                    return
                self.sessions.make_room(key)
            outcome = Words("compared", {"n": len(traces)})
            if asked.pictures and (named := max(numbers_of_pictures(question), default=1)) > 1:
                outcome = Words("compared_on_one_picture", {"n": len(traces), "found": named})
            if len(traces) < len(chosen):
                outcome = Words("stopped", {"n": len(traces), "of": len(chosen)})
        except Exception as error:  # the answers so far are still shown
            if session is not None and session.visit != visit:
                return
            outcome = words_of(_for_visitor(error))
        yield self._compare_pane(key, traces, language), self._set_status(key, "compare", outcome, language)

    def _compare_pane(self, key: str, traces: Sequence[str], language: Language) -> Any:
        return json.dumps({"room": key, "looks": [*traces], "language": language}) if traces else gr.skip()

    def _chosen(self, session: Session, path: str) -> Upload:
        """The picture to compare on: the original if ``path`` is the chat's smaller copy."""
        try:
            shown = Path(path).read_bytes()
        except OSError as error:  # no longer in the upload folder
            raise RefusedError("no_image", file=Path(path).name) from error
        sent = (upload for upload in session.pictures if session.files.shown(upload).read_bytes() == shown)
        return next(sent, None) or Upload.read(path)

    def _ask_each(
        self, session: Session, chosen: Sequence[str], asked: Asked, traces: list[str]
    ) -> Iterator[Words]:
        """Yields the name of each checkpoint before it answers, and appends the key of its trace to ``traces``.

        A stopped answer is not compared, nor is one whose page was reloaded.
        """
        stop, visit = session.stop, session.visit  # a reload may give the session others
        names = {key: name for name, key in self.checkpoints.names()}
        turn = user_turn(asked.question, asked.pictures, 0)
        for number, key in enumerate(chosen, start=1):
            name = names.get(key, Words.of(key))
            yield Words("asking", {"name": name, "n": number, "of": len(chosen)})
            *_, last = self.checkpoints.engine(key).reply((turn,), stop=stop)
            if stop.is_set() or session.visit != visit:
                return
            if last.trace is None:
                raise RefusedError("no_answer", name=name)
            traces.append(session.keep(last.trace, replace(asked, reply=last.text, name=name, cut=last.cut)))
            session.compared = tuple(traces)

    def compare_facts(self, key: str, traces: list[str]) -> Json:
        """See ``views.compare_facts``."""
        return views.compare_facts(self._frames(key, traces))

    def compare_view(self, key: str, traces: list[str], asked: Json) -> Json:
        """See ``views.compare``."""
        return views.compare(self._frames(key, traces), _fields(asked))

    def _frames(self, key: str, traces: list[str]) -> list[Frame]:
        if not isinstance(traces, list) or not 1 <= len(traces) <= len(self.checkpoints.names()) + 1:
            raise ValueError("traces: expected a list of compared answers")
        found = [self._trace(key, trace) for trace in traces]
        return [
            Frame(asked.name, readable(asked.reply, boxes_drawn=False), trace, asked.cut)
            for trace, asked in found
        ]

    def _trace(self, key: str, name: str) -> tuple[Trace, Asked]:
        session = self.sessions.get(key)
        trace = session.traces.get(name) if isinstance(name, str) else None
        if trace is None:
            raise RefusedError("made_room", limit=session.traces.limit_bytes // 2**20)
        return trace, session.asked[name]


@contextmanager
def _one_at_a_time(session: Session) -> Iterator[None]:
    """Rejects a visitor's second request during the first."""
    busy = session.busy  # a reload may give the session another
    if not busy.acquire(blocking=False):
        raise RefusedError("busy")
    try:
        yield
    finally:
        busy.release()


def _for_visitor(error: Exception) -> ValueError:
    """A ValueError unchanged; any other error is logged and hidden, since visitors must not see its details."""
    if isinstance(error, ValueError):
        return error
    logger.error("an answer failed", exc_info=error)
    return RefusedError("not_answered")


def _as_text(words: Words | None, language: Language) -> str:
    """The content of a status line."""
    return words.text(language) if words else ""


def _fields(given: Any) -> Json:
    if not isinstance(given, dict):
        raise ValueError(f"found {type(given).__name__}, expected an object of fields")
    return given
