"""A conversation through the model's own chat template: ids, labels, and where each turn's content lies.

The template is given marks in place of the words, so what it writes and what people wrote stay apart: its control
tokens become control tokens, theirs stay text, and an answer is known by where it was put, not by searching for it.

    template   <|im_start|>user\\n⟨open 0⟩⟨piece 0⟩<|vision_start|><|image_pad|><|vision_end|>⟨close 0⟩<|im_end|>\\n
    pieces     0: "what is it?"
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from finetune.families.base import Encoded, ImageTokens
from finetune.families.parts import picture_breaks, thoughts, trimming
from finetune.families.parts.pieces import Control, Picture, Piece, Slots
from finetune.families.parts.tokenizer import is_panic
from finetune.printable import one_line
from finetune.samples.conversation import Conversation, ImageRef, Part, Role, VideoRef

if TYPE_CHECKING:
    import torch

IGNORED = -100
_EDGE = "\ufdd0"  # a noncharacter of Unicode: no template writes it or treats it in a way of its own
_FAILURES = (
    ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TemplateSyntaxError, TypeError,
)  # fmt: skip
"""What a chat template that is no such thing raises; its own refusals are TemplateErrors of other kinds."""
_MARK = re.compile(f"{_EDGE}(open|close|piece) (\\d+){_EDGE}")


class BrokenTemplate(ValueError):  # noqa: N818
    """A chat template that no conversation can be written with."""


class Chat(NamedTuple):
    """input_ids, labels  of equal length; labels are -100 but for answers and the token that ends each
    turn_spans         (start, end) of each turn's content, its pictures' frames included
    image_starts       index of the first token of each picture and video, and of each ``Slots``, in order of tokens"""

    input_ids: list[int]
    labels: list[int]
    turn_spans: list[tuple[int, int]]
    image_starts: list[int]

    def encoded(
        self,
        *,
        images: Iterable[ImageTokens] = (),
        media: Mapping[str, torch.Tensor] | None = None,
        per_token: Mapping[str, np.ndarray] | None = None,
    ) -> Encoded:
        """The chat as arrays, with what the family adds to it."""
        return Encoded(
            input_ids=np.array(self.input_ids, dtype=np.int64),
            labels=np.array(self.labels, dtype=np.int64),
            turn_spans=tuple(self.turn_spans),
            images=tuple(images),
            media=media or {},
            per_token=per_token or {},
        )


_POLYGON = re.compile(r"<quad>\s*\(\s*\d")


def encode_conversation(
    processor: Any,
    conversation: Conversation,
    pieces: Callable[[Part], Iterable[Piece]],
    *,
    image_token: str,
    end_of_turn: str,
    video_token: str | None = None,
    add_generation_prompt: bool = False,
) -> Chat:
    """``encode_chat`` of a conversation.

    pieces   what a part of a turn becomes: words, a picture's place, a box as the family writes it. It is called once
             for each part, in order, so it may count pictures.
    """
    return encode_chat(
        processor,
        [(turn.role, _pieces_of(turn.parts, pieces)) for turn in conversation.turns],
        image_token=image_token,
        video_token=video_token,
        end_of_turn=end_of_turn,
        add_generation_prompt=add_generation_prompt,
        trained=[turn.trained for turn in conversation.turns],
    )


def _pieces_of(parts: Iterable[Part], pieces: Callable[[Part], Iterable[Piece]]) -> list[Piece]:
    """A family that ends a video with a line break writes the one with which the record parts it from its words."""
    found: list[Piece] = []
    is_media = False
    for part in parts:
        if is_media and isinstance(part, str) and found and picture_breaks.is_ended(found[-1]):
            part = picture_breaks.without_first_break(part)
        is_media = isinstance(part, ImageRef | VideoRef)
        if isinstance(part, str) and _POLYGON.search(part):
            raise ValueError(
                "found a polygon, <quad>(x,y),…</quad>, which Qwen-VL of 2023 alone reads; its thousandths would be "
                "trained as words: write the box around it, or leave the sample out"
            )
        found += pieces(part)
    return [piece for piece in found if piece != ""]


def encode_chat(
    processor: Any,
    turns: Sequence[tuple[Role, Sequence[Piece]]],
    *,
    image_token: str,
    end_of_turn: str,
    video_token: str | None = None,
    add_generation_prompt: bool = False,
    trained: Sequence[bool] | None = None,
) -> Chat:
    """Ids as ``apply_chat_template`` and the tokenizer give them, for words without control tokens.

    An answer is cut from its header before byte-pair merging, as it is in generation: after a prompt that ends in a
    line break, an answer that begins with one has a token of its own for it. Where a template knows thoughts, the last
    answer follows the prompt from which it is generated (``thoughts``).

    image_token   what the template writes for a picture; it is repeated
    video_token   and for a video, where its place is the template's to say
    end_of_turn   what ends an answer, and is learned with it
    trained       of each turn, whether it is trained or measured if it is an answer; None: all are

    Raises ValueError if the template refuses the conversation, leaves something of it out, has a trained answer
    generated elsewhere than it writes it, or does not end an answer with ``end_of_turn``.
    """
    write = functools.partial(_written, processor)
    if any(isinstance(piece, Picture) for _, content in turns for piece in content):
        breaks = picture_breaks.breaks_of(processor, write, image_token)
        turns = turns if breaks is None else picture_breaks.as_read(turns, breaks)
    if (found := trimming.trimming_of(processor, write)).roles:
        turns = trimming.trimmed(turns, found)
    habit = thoughts.habit_of(processor, write)
    if habit is not None:
        trained = [True] * len(turns) if trained is None else trained
        turns = thoughts.written_once(turns, habit, trained=trained, generating=add_generation_prompt)
    pieces = [piece for _, content in turns for piece in content if not isinstance(piece, Picture)]
    pictures = [piece for _, content in turns for piece in content if isinstance(piece, Picture)]
    writer = _Writer(processor.tokenizer, _own_first(processor))
    used = list[int]()
    shown = {image_token: iter([one for one in pictures if one.kind == "image"])}
    if video_token is not None:
        shown[video_token] = iter([one for one in pictures if one.kind == "video"])
    after_prompt = habit is not None and not add_generation_prompt
    for kind, value in _parsed(processor, _rendered(processor, turns, add_generation_prompt, after_prompt)):
        if kind == "piece":
            used.append(int(value))
            writer.piece(pieces[int(value)])
        elif kind in ("open", "close"):
            writer.mark(kind, int(value), alone=turns[int(value)][0] == "assistant")
        elif kind == "control" and value in shown:
            writer.slots(Slots(value, next(shown[value], Picture(0)).tokens))
        else:
            writer.write(Control(value) if kind == "control" else value)
    writer.flush()
    places = len(pictures) + sum(isinstance(piece, Slots) for piece in pieces)
    _check_complete(turns, writer, used == [*range(len(pieces))], places)
    spans = [(writer.places["open", i], writer.places["close", i]) for i in range(len(turns))]
    return Chat(writer.ids, _labels(processor, turns, writer.ids, spans, end_of_turn), spans, writer.images)


class _Writer:
    """Ids of what is written, byte-pair merged from one control token to the next.

    ids      so far
    images   the first place of each picture and of each ``Slots``
    places   the token at which each mark lies
    before   ids that the tokenizer itself puts before a text: what follows them is still the text's first word
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self.tokenizer, self.before = tokenizer, list(before)
        self.ids: list[int] = []
        self.images: list[int] = []
        self.places: dict[tuple[str, int], int] = {}
        self._text = ""
        self._marks: list[tuple[str, int, int]] = []

    def write(self, piece: str) -> None:
        if isinstance(piece, Control):
            self.flush()
            self.ids.append(self._id(piece))
        else:
            self._text += piece

    def piece(self, piece: str | Slots) -> None:
        if isinstance(piece, Slots):
            self.slots(piece)
        else:
            self.write(piece)

    def slots(self, slots: Slots) -> None:
        self.flush()
        self.images.append(len(self.ids))
        self.ids += [self._id(slots.token)] * slots.tokens

    def mark(self, kind: str, turn: int, *, alone: bool) -> None:
        """Note this place, "open" or "close" of a turn; ``alone``: no token may reach across it."""
        if alone:
            self.flush()
        self._marks.append((kind, turn, len(self._text)))

    def flush(self) -> None:
        before, starts, ends = len(self.ids), list[int](), list[int]()
        if self._text:
            ids, offsets = self._read(self._text)
            self.ids += ids
            starts, ends = [list(side) for side in zip(*offsets, strict=True)]
        for kind, turn, at in self._marks:
            place = bisect_right(ends, at) if kind == "open" else bisect_left(starts, at)
            self.places[kind, turn] = before + place
        self._text, self._marks = "", []

    def _read(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the characters of each. Control tokens in people's words are split: they are text."""
        follows = (
            bool(self.ids)
            and self.ids[-1] in _controls(self.tokenizer, len(self.tokenizer)).ids.values()
            and self.ids != self.before
        )
        continuing = _continuing(self.tokenizer, len(self.tokenizer)) if follows else None
        try:
            return _tokens(self.tokenizer, continuing, text)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise ValueError(
                f"{one_line(str(self.tokenizer.name_or_path), 300)}: the tokenizer fails on "
                f"{one_line(repr(text), 80)}: {one_line(str(error), 200)}; expected patterns that end "
                "(tokenizer.json); take the file of the published model"
            ) from error

    def _id(self, token: str) -> int:
        found = _controls(self.tokenizer, len(self.tokenizer)).ids.get(str(token))
        if found is None:
            raise ValueError(
                f"the tokenizer has no control token {str(token)!r}, which this family's chats need"
            )
        return found


def _tokens(tokenizer: Any, continuing: Any | None, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and the characters of each; ``continuing``: as ``_continuing`` gives it."""
    if continuing is not None:
        read = continuing.encode(text, add_special_tokens=False)
        return read.ids, read.offsets
    found = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    return found["input_ids"], found["offset_mapping"]


class _Controls(NamedTuple):
    """A tokenizer's control tokens, by name, and a pattern that finds them and our marks."""

    ids: dict[str, int]
    pattern: re.Pattern[str]


@functools.lru_cache(maxsize=8)
def _controls(tokenizer: Any, size: int) -> _Controls:
    """size   of the vocabulary: tokens may be added later"""
    ids = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True))
    return _Controls(ids, re.compile(f"({_MARK.pattern}|{names})" if names else f"({_MARK.pattern})"))


@functools.lru_cache(maxsize=8)
def _continuing(tokenizer: Any, size: int) -> Any | None:
    """The tokenizer as it reads text behind a control token; None where it reads all text alike.

    Those of Llama put a space before the first word of a text, and (``legacy=False``) before no word behind a control
    token: "<image>\\nhi" has no token of a space. A text that is read alone is a first word always.

    size   of the vocabulary, for the cache
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    spaces = [one for one in _steps(parts["pre_tokenizer"]) if one.get("prepend_scheme") == "first"]
    if not spaces:
        return None
    for one in spaces:
        one["prepend_scheme"] = "never"
    from tokenizers import Tokenizer

    continuing = Tokenizer.from_str(json.dumps(parts))
    continuing.encode_special_tokens = True
    return continuing


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer in tokenizer.json, which is one or a sequence."""
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))


def _own_first(processor: Any) -> list[int]:
    """Ids that the tokenizer itself puts before a text (``<s>``), where it is the one who puts them there: a template
    that writes ``<s>`` makes it part of the text."""
    return list(processor.own_first) if isinstance(processor, TurnByTurn) else []


def control_tokens(tokenizer: Any) -> Mapping[str, int]:
    """A tokenizer's control tokens and their ids."""
    return _controls(tokenizer, len(tokenizer)).ids


def _parsed(processor: Any, rendered: str) -> Iterator[tuple[str, str]]:
    """What the template wrote: ("text", …), ("control", token), ("open" | "close", turn), ("piece", number)."""
    position = 0
    for match in _controls(processor.tokenizer, len(processor.tokenizer)).pattern.finditer(rendered):
        if match.start() > position:
            yield "text", rendered[position : match.start()]
        yield (match[2], match[3]) if match[2] else ("control", match[0])
        position = match.end()
    yield "text", rendered[position:]


def _rendered(
    processor: Any,
    turns: Sequence[tuple[Role, Sequence[Piece]]],
    add_generation_prompt: bool,
    after_prompt: bool,
) -> str:
    """What the template writes of marks; ``after_prompt``: an answer at the end follows the prompt for it."""
    numbers = itertools.count()
    messages = []
    for index, (role, content) in enumerate(turns):
        parts = [
            {"type": piece.kind} if isinstance(piece, Picture) else _text(f"piece {next(numbers)}")
            for piece in content
        ]
        messages.append({"role": role, "content": [_text(f"open {index}"), *parts, _text(f"close {index}")]})
    written = _written(processor, messages, add_generation_prompt)
    if not (after_prompt and len(turns) > 1 and turns[-1][0] == "assistant"):
        return written
    begin = _text(f"open {len(turns) - 1}")["text"]
    return _written(processor, messages[:-1], True) + begin + written.partition(begin)[2]


def _written(processor: Any, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    try:
        return _applied(processor, messages, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise ValueError(
            f"the model's chat template refuses the conversation: {one_line(str(error), 300)}"
        ) from error


def _applied(processor: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """What the processor's template writes.

    Raises TemplateError where the template refuses the messages, and BrokenTemplate, naming the file, where it fails.
    """
    try:
        return processor.apply_chat_template(messages, tokenize=False, **options)
    except _FAILURES as error:
        raise BrokenTemplate(
            f"{_template_file(processor)}: this chat template fails: {type(error).__name__}: "
            f"{one_line(str(error), 300)}; take the file of the published model"
        ) from error


def _template_file(processor: Any) -> str:
    """The file of a checkpoint that holds its chat template; the checkpoint's name where there is no such file."""
    name = str(getattr(processor.tokenizer, "name_or_path", "") or "the model")
    files = [
        Path(name) / one for one in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    ]
    return one_line(str(next((one for one in files if one.is_file()), name)), 300)


def _text(mark: str) -> dict[str, str]:
    return {"type": "text", "text": f"{_EDGE}{mark}{_EDGE}"}


def _check_complete(
    turns: Sequence[tuple[Role, Sequence[Piece]]], writer: _Writer, in_order: bool, pictures: int
) -> None:
    missing = [
        f"turn {i} ({role})"
        for i, (role, _) in enumerate(turns)
        if not {("open", i), ("close", i)} <= writer.places.keys()
    ]
    if missing or not in_order:
        raise ValueError(
            f"the model's chat template leaves out {', '.join(missing) or 'some of the words'}, or puts them "
            "elsewhere; expected every turn, in order: put a template that does so into the model's folder "
            "(chat_template.jinja)"
        )
    if len(writer.images) != pictures:
        raise ValueError(
            f"the model's chat template has places for {len(writer.images)} of {pictures} pictures, expected one "
            "for each"
        )


def _labels(
    processor: Any,
    turns: Sequence[tuple[Role, Sequence[Piece]]],
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    end_of_turn: str,
) -> list[int]:
    labels = [IGNORED] * len(ids)
    end_id = _controls(processor.tokenizer, len(processor.tokenizer)).ids.get(end_of_turn)
    for index, ((role, _), (start, end)) in enumerate(zip(turns, spans, strict=True)):
        if role != "assistant":
            continue
        if end == len(ids) or ids[end] != end_id:
            found = "nothing" if end == len(ids) else repr(processor.tokenizer.decode([ids[end]]))
            raise ValueError(
                f"the model's chat template writes {found} after turn {index} (assistant), expected {end_of_turn!r}, "
                "which ends an answer"
            )
        labels[start : end + 1] = ids[start : end + 1]
    return labels


_ANSWER, _END = "\ufdd1", "\ufdd2"  # noncharacters of Unicode: no template writes them


def end_of_answers(processor: Any) -> str:
    """The control token that a chat template writes after an answer (``<|im_end|>``, ``<|eot_id|>``); where it writes
    none, the tokenizer's own end (``</s>``)."""
    asked = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": _END}]}
    written = _applied(processor, [asked, answered])
    found = re.match(rf"\s*({_control_names(processor.tokenizer)})", written.partition(_END)[2])
    return processor.tokenizer.eos_token if found is None else found[1]


def _control_names(tokenizer: Any) -> str:
    """A pattern that finds any of them, the longest first."""
    return "|".join(map(re.escape, sorted(control_tokens(tokenizer), key=len, reverse=True)))


class TurnByTurn:
    """A processor whose chat template is read as the model was trained, where the published template is not quite.

    - It is given the pictures of a turn first, as LLaVA was trained, and the words in one piece: the templates put
      pictures first too, and a space or a line break at each piece of text, neither of which training had.
    - What stands before an answer is what stands before it in generation. LLaVA-OneVision's template writes
      "assistant \\n" there, and "assistant\\n" as the prompt; LLaVA-1.5's "ASSISTANT: " and "ASSISTANT:".
    - An answer ends with ``end_of_turn``. LLaVA-1.5's template leaves it out: who learns from it never learns to stop.
    - A tokenizer's first token (``<s>``) comes first.
    """

    def __init__(self, processor: Any, end_of_turn: str) -> None:
        self.processor, self.end_of_turn = processor, end_of_turn
        self.tokenizer = processor.tokenizer

    @property
    def own_first(self) -> list[int]:
        """Ids that the tokenizer puts before a text; none where the template writes them."""
        first = self.tokenizer("")["input_ids"]
        asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        return [] if self._rendered(asked).startswith(self.tokenizer.decode(first)) else first

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """What the template writes, turn by turn. Raises ValueError if a turn changes what was before it."""
        assert not tokenize
        first = self.tokenizer("")["input_ids"]
        written, before = self.tokenizer.decode(first), ""
        joined = [self._joined(message) for message in messages]
        for index, message in enumerate(joined):
            through = self._rendered(joined[: index + 1])
            if not through.startswith(before):
                raise ValueError(
                    f"the model's chat template writes the turns before turn {index} ({message['role']}) otherwise "
                    "when it comes after them; expected one turn after the other"
                )
            part = through[len(before) :].removeprefix(written if index == 0 else "")
            if message["role"] == "assistant":
                prompt = self._rendered(joined[:index], add_generation_prompt=True)[len(before) :]
                part = self._answer(part, prompt if index else part.partition(_ANSWER)[0])
            written, before = written + part, through
        if add_generation_prompt:
            written += self._rendered(joined, add_generation_prompt=True)[len(before) :]
        return written

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        if not messages:
            return ""
        return _applied(self.processor, list(messages), add_generation_prompt=add_generation_prompt)

    def _joined(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The turn's pictures, then its words as they were written, in one piece."""
        pictures = [part for part in message["content"] if part["type"] != "text"]
        words = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        if message["role"] == "assistant":
            words = _ANSWER + words + _END
        return {"role": message["role"], "content": [*pictures, {"type": "text", "text": words}]}

    def _answer(self, part: str, prompt: str) -> str:
        """One answer with the header of generation and an end."""
        answer = part.partition(_ANSWER)[2]
        words, _, rest = answer.partition(_END)
        if not re.match(rf"\s*(?:{_control_names(self.tokenizer)})", rest):
            rest = self.end_of_turn + rest.removeprefix(" ")
        return prompt + words + rest
