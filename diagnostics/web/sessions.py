"""Visitors' sessions: each one's conversation and traces, and limits on uploads and questions."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from diagnostics.web.texts import NO_WORDS, RefusedError, Words
from diagnostics.web.trace import Trace, TraceCache
from finetune.samples.conversation import ImageRef, Turn
from finetune.samples.images import open_image, size_of

Place: TypeAlias = Literal["chat", "compare"]
FILE_MAX_BYTES = 10 * 2**20
PICTURES_MAX = 6
PIXELS_MAX = 25_000_000
QUESTION_MAX_CHARACTERS = 4000
TURNS_MAX = 40
SESSIONS_MAX = 64
"""Concurrent visitors; a new one replaces the one idle for longest."""


@dataclass(frozen=True)
class Upload:
    """An uploaded picture: the checked bytes of its file, and its upright size (EXIF applied)."""

    name: str
    data: bytes

    @classmethod
    def read(cls, path: str | Path) -> Upload:
        """Raises ValueError, with a message for the visitor, for a file that is not a picture or too large. Pixels are
        counted from the header, before decoding."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:  # no longer in the upload folder
            raise RefusedError("no_image", file=_short(path.name)) from error
        if len(data) > FILE_MAX_BYTES:
            found = f"{len(data) / 2**20:.1f}"
            raise RefusedError(
                "file_large", file=_short(path.name), found=found, most=FILE_MAX_BYTES // 2**20
            )
        most = PIXELS_MAX // 10**6
        try:
            width, height = size_of(data)
            if width * height <= PIXELS_MAX:
                open_image(data)
        except ValueError as error:  # its message names an object in memory
            key = "pixels_too_many" if "expected at most" in str(error) else "no_image"
            raise RefusedError(key, file=_short(path.name), most=most) from error
        if width * height > PIXELS_MAX:
            raise RefusedError("pixels_many", file=_short(path.name), width=width, height=height, most=most)
        return cls(path.name, data)

    def open(self) -> Image.Image:
        """The picture, upright."""
        return open_image(self.reference())

    def reference(self) -> ImageRef:
        return ImageRef(self.name, Path(self.name), data=self.data)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:40]}…{name[-15:]}"


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the pictures of the conversation until then."""

    question: str
    reply: str
    pictures: tuple[Upload, ...]
    name: Words = NO_WORDS  # of the checkpoint that answered


@dataclass
class Session:
    """One visitor's conversation and traces."""

    traces: TraceCache
    turns: list[Turn] = field(default_factory=list)
    exchanges: list[tuple[str, str]] = field(default_factory=list)  # (question, answer)
    pictures: list[Upload] = field(default_factory=list)
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
        self.turns.append(user_turn(question, uploads, len(self.pictures)))
        self.exchanges.append((question, ""))
        self.pictures += uploads
        self.added.append(len(uploads))

    def answered(self, text: str, trace: Trace | None) -> None:
        """Store the answer and its trace."""
        self.turns.append(Turn("assistant", (text,)))
        question = self.exchanges[-1][0]
        self.exchanges[-1] = (question, text)
        if trace is not None:
            self.keep(trace, Asked(question, text, tuple(self.pictures)))

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
            self.exchanges[-1] = (self.exchanges[-1][0], "")
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

    def clear(self) -> None:
        """Forget the conversation and its traces."""
        self.stop.set()
        for kept in (self.turns, self.exchanges, self.pictures, self.added):
            kept.clear()
        self.asked.clear()
        self.status.pop("chat", None)
        self.traces.clear()


class Sessions:
    """Sessions by an unguessable key; only its holder can read the session."""

    def __init__(self, cache_bytes: int) -> None:
        self.cache_bytes = cache_bytes
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def open(self) -> str:
        """The key of a new session."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._sessions[key] = Session(TraceCache(self.cache_bytes))
            silent = [
                self._sessions.popitem(last=False)[1] for _ in range(len(self._sessions) - SESSIONS_MAX)
            ]
        for session in silent:
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

    def close(self, key: str) -> None:
        """Forget a visitor; a reply in progress ends within one token."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.clear()

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
