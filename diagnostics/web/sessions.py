"""Visitors' sessions: each one's conversation and traces, and limits on questions and memory."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from diagnostics.web.texts import NO_WORDS, Language, RefusedError, Words
from diagnostics.web.trace import Trace, TraceCache
from diagnostics.web.uploads import SESSION_FILES, PictureFiles, Upload
from finetune.samples.conversation import ImageRef, Turn

Place: TypeAlias = Literal["chat", "compare"]
PICTURES_MAX = 6
QUESTION_MAX_CHARACTERS = 4000
TURNS_MAX = 40
SESSIONS_MAX = 64
"""Concurrent visitors; a new one replaces the one idle for longest."""
TOTAL_BYTES = 2 * 2**30
"""Traces and pictures of all sessions together, at most."""
LEFT_SECONDS = 600
"""How long a session whose page was closed waits for a reload."""


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the pictures of the conversation until then.

    name      of the checkpoint that answered
    cut       whether the answer was ended before its end, by the limit of tokens or by Stop
    earlier   number of questions before this one
    before    number of their pictures
    """

    question: str
    reply: str
    pictures: tuple[Upload, ...]
    name: Words = NO_WORDS
    cut: bool = False
    earlier: int = 0
    before: int = 0


@dataclass
class Session:
    """One visitor's conversation and traces.

    looks      the trace of each answer; None for one without
    compared   the traces shown in before / after, in order
    draft      a question without an answer, and its pictures: a reload finds it in the input
    cut        numbers of the exchanges whose answer was ended before its end
    visit      counts pages that took over from one that was still generating
    left       when its page was closed (``time.monotonic``); None while one is open
    """

    traces: TraceCache
    files: PictureFiles
    language: Language | None = None
    compared: tuple[str, ...] = ()
    draft: tuple[str, list[Upload]] | None = None
    visit: int = 0
    left: float | None = None
    turns: list[Turn] = field(default_factory=list)
    exchanges: list[tuple[str, str]] = field(default_factory=list)  # (question, answer)
    looks: list[str | None] = field(default_factory=list)
    pictures: list[Upload] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)
    added: list[int] = field(default_factory=list)  # number of pictures added with each question
    asked: dict[str, Asked] = field(default_factory=dict)  # by the key of its trace
    status: dict[Place, Words] = field(default_factory=dict)  # the last status lines below input and question
    stop: threading.Event = field(default_factory=threading.Event)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, question: str, uploads: Sequence[Upload]) -> None:
        """Append a question as the last turn. Raises ValueError beyond the limits."""
        if not question.strip() and not uploads:
            raise RefusedError("nothing_asked")
        if len(question) > QUESTION_MAX_CHARACTERS:
            raise RefusedError("question_long", found=len(question), most=QUESTION_MAX_CHARACTERS)
        if (found := len(self.pictures) + len(uploads)) > PICTURES_MAX:
            raise RefusedError("pictures_many", found=found, most=PICTURES_MAX)
        if len(self.turns) >= TURNS_MAX:
            raise RefusedError("turns_many", most=TURNS_MAX)
        self.draft = None
        self.turns.append(user_turn(question, uploads, len(self.pictures)))
        self.exchanges.append((question, ""))
        self.pictures += uploads
        self.added.append(len(uploads))

    def answered(self, text: str, trace: Trace | None, *, cut: bool = False) -> None:
        """Store the answer and its trace."""
        self.turns.append(Turn("assistant", (text,)))
        question = self.exchanges[-1][0]
        self.exchanges[-1] = (question, text)
        earlier = len(self.exchanges) - 1
        if cut:
            self.cut.add(earlier)
        look = None
        if trace is not None:
            before = len(self.pictures) - self.added[-1]
            asked = Asked(question, text, tuple(self.pictures), cut=cut, earlier=earlier, before=before)
            look = self.keep(trace, asked)
        self.looks.append(look)

    def keep(self, trace: Trace, asked: Asked) -> str:
        """Put a trace into the cache; forget the questions of evicted traces."""
        key = self.traces.put(trace)
        self.asked[key] = asked
        self.asked = {key: one for key, one in self.asked.items() if key in self.traces}
        return key

    def take_back_answer(self) -> bool:
        """Remove the last answer so that it can be regenerated; False if there is none."""
        if self.turns and self.turns[-1].role == "assistant":
            self.turns.pop()
            self.looks.pop()
            self.exchanges[-1] = (self.exchanges[-1][0], "")
            self.cut.discard(len(self.exchanges) - 1)
        return bool(self.turns)

    def take_back_question(self) -> tuple[str, list[Upload]]:
        """Remove an unanswered question and return it with its pictures; empty if there is none."""
        if not self.turns:
            return "", []
        self.take_back_answer()
        self.turns.pop()
        question, _ = self.exchanges.pop()
        start = len(self.pictures) - self.added.pop()
        uploads = self.pictures[start:]
        del self.pictures[start:]
        return question, uploads

    def interrupt(self) -> None:
        """Keep an unanswered question as a draft."""
        if self.turns and self.turns[-1].role == "user":
            self.draft = self.take_back_question()

    def take_over(self) -> None:
        """Free the session from a request that has not ended, and now may end whenever it likes."""
        self.visit += 1
        self.busy, self.stop = threading.Lock(), threading.Event()
        self.interrupt()

    @property
    def kept_look(self) -> str | None:
        """The trace of the last answer; None if it had to make room."""
        look = self.looks[-1] if self.looks else None
        return look if look in self.asked else None

    @property
    def bytes(self) -> int:
        """Memory of its traces and pictures, each picture once."""
        uploads = {id(one): len(one.data) for asked in [*self.asked.values()] for one in asked.pictures}
        uploads |= {id(one): len(one.data) for one in [*self.pictures]}
        return self.traces.bytes + sum(uploads.values())

    def drop_oldest(self) -> bool:
        """Evict the least recently used trace with its question; False if there is none."""
        dropped = self.traces.drop_oldest()
        self.asked = {key: one for key, one in self.asked.items() if key in self.traces}
        return dropped

    def clear(self) -> None:
        """Forget the conversation and its traces."""
        self.stop.set()
        self.compared, self.draft = (), None
        for kept in (self.turns, self.exchanges, self.looks, self.pictures, self.added, self.cut):
            kept.clear()
        self.asked.clear()
        self.status.pop("chat", None)
        self.traces.clear()
        self.files.clear()


class Sessions:
    """Sessions by an unguessable key; only its holder can read the session.

    cache_bytes   memory for the traces of one session
    folder        where each session's pictures get a folder of their own
    total_bytes   memory for traces and pictures of all sessions together
    """

    def __init__(self, cache_bytes: int, folder: Path, total_bytes: int = TOTAL_BYTES) -> None:
        self.cache_bytes = cache_bytes
        self.total_bytes = total_bytes
        self._folder = folder / SESSION_FILES
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def open(self) -> str:
        """The key of a new session."""
        key = secrets.token_urlsafe(24)
        files = PictureFiles(
            self._folder / secrets.token_hex(8)
        )  # its name reaches browsers, the key must not
        with self._lock:
            self._sessions[key] = Session(TraceCache(self.cache_bytes), files)
            gone = [self._sessions.popitem(last=False)[1] for _ in range(len(self._sessions) - SESSIONS_MAX)]
            now = time.monotonic()
            over = [
                key
                for key, one in self._sessions.items()
                if one.left is not None and now - one.left > LEFT_SECONDS
            ]
            gone += [self._sessions.pop(key) for key in over]
        for session in gone:
            session.clear()
        return key

    def get(self, key: object) -> Session:
        """Raises ValueError if there is no such session (closed, or never opened)."""
        with self._lock:
            session = self._sessions.get(key) if isinstance(key, str) else None
            if session is None:
                raise RefusedError("session_ended")
            self._sessions.move_to_end(str(key))
            return session

    def leave(self, key: str) -> None:
        """A visitor's page was closed: an answer in progress ends within one token, and the session waits for a
        reload."""
        with self._lock:
            session = self._sessions.get(key)
            if session is not None:
                session.left = time.monotonic()
                session.stop.set()

    def close(self, key: str) -> None:
        """Forget a visitor; a reply in progress ends within one token."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.clear()

    def make_room(self, key: str) -> None:
        """Keep all sessions within ``total_bytes``: evict the traces of those idle for longest, then these sessions
        themselves, and at last the older traces of this one."""
        while self.bytes > self.total_bytes:
            idle = self._longest_idle(key)
            if idle is None:
                break
            if not idle[1].drop_oldest():
                self.close(idle[0])
        session = self.get(key)
        while self.bytes > self.total_bytes and len(session.traces) > 1:
            session.drop_oldest()

    def _longest_idle(self, key: str) -> tuple[str, Session] | None:
        with self._lock:
            others = [(name, one) for name, one in self._sessions.items() if name != key and one.bytes]
        return min(others, key=lambda other: not len(other[1].traces), default=None)

    @property
    def bytes(self) -> int:
        """Memory of all traces and pictures."""
        with self._lock:
            return sum(session.bytes for session in self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)


def user_turn(question: str, uploads: Sequence[Upload], before: int) -> Turn:
    """A question with its pictures in Qwen-VL's format: ``Picture 3: `` image ``\\n`` question, numbered from the
    ``before`` pictures of earlier turns."""
    parts: list[str | ImageRef] = []
    text = ""
    for number, upload in enumerate(uploads, start=before + 1):
        parts += [f"{text}Picture {number}: ", upload.reference()]
        text = "\n"
    return Turn("user", (*parts, text + question))
