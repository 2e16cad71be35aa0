"""The prompts of Idefics3 and SmolVLM: marks around a picture's views, and a video's frames in words.

1 × 2 tiles → <fake_token_around_image> <row_1_col_1> 64 × <image> <fake_…> <row_1_col_2> 64 × <image> \\n
              \\n <fake_…> <global-img> 64 × <image> <fake_…>
a video     → You are provided the following series of four frames from a 0:00:02 [H:MM:SS] video.\\n
              \\nFrame from 00:00: <fake_…> <global-img> 64 × <image> <fake_…> … \\n\\n
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from finetune.families.parts.boxes import as_json, in_thousandths
from finetune.families.parts.chat import Control, Picture, Piece, Slots, control_tokens
from finetune.samples.conversation import BoxRef, ImageRef, Part, VideoRef

AROUND, IMAGE, OVERVIEW = "<fake_token_around_image>", "<image>", "<global-img>"
END = "<end_of_utterance>"


def views_of(tiles: tuple[int, int]) -> int:
    """How many views of a picture the tower reads: its tiles and an overview, or the overview alone."""
    return 1 if tiles == (1, 1) else tiles[0] * tiles[1] + 1


def pieces(processor: Any, part: Part, tiles: Iterator[tuple[int, int]]) -> Sequence[Piece]:
    """What a part of a turn becomes: a picture takes a place for each view of it.

    Boxes are ``{"bbox_2d": [250, 0, 500, 1000], "label": "dog"}`` in thousandths of the picture: the family was
    trained on no boxes of its own, so they are written as in other families' data.

    tiles   (rows, columns) of each picture, in order
    """
    if isinstance(part, ImageRef):
        return [Picture(processor.image_seq_len)] * views_of(next(tiles))
    if isinstance(part, VideoRef):
        return _frames(processor, part)
    if isinstance(part, BoxRef):
        return (as_json(part, [in_thousandths(box) for box in part.boxes]),)
    return (part,)


class Template:
    """The model's chat template, with what its processor makes of a picture.

    Two traps. The template writes ``User:`` or ``User: `` by whether a turn begins with a picture, so a mark may not
    come before it. And a prompt ends in ``Assistant:``, so the space after it is the answer's: " yes", one token.

    tiles   (rows, columns) of each picture
    """

    def __init__(self, processor: Any, tiles: Sequence[tuple[int, int]]) -> None:
        self.processor, self.tokenizer, self.tiles = processor, processor.tokenizer, tiles

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        shown = iter(self.tiles)
        opens = [message["content"][0]["text"] for message in messages]
        given = [
            {**message, "content": _picture_first(_one_each(message["content"], shown))}
            for message in messages
        ]
        written = self.processor.apply_chat_template(given, tokenize=False, **_without(options, "tokenize"))
        for message, mark in zip(messages, opens, strict=True):
            written = written.replace(f"{IMAGE}{mark}", f"{mark}{IMAGE}")
            if message["role"] == "assistant":
                written = written.replace(f": {mark}", f":{mark} ")
        first, *rest = written.split(IMAGE)
        layouts = [_layout(tiles) + after for tiles, after in zip(self.tiles, rest, strict=True)]
        return first + "".join(layouts)


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def _one_each(
    content: Sequence[Mapping[str, Any]], shown: Iterator[tuple[int, int]]
) -> list[Mapping[str, Any]]:
    """A turn's parts with one for each picture, not one for each tile."""
    found: list[Mapping[str, Any]] = []
    skipped = 0
    for part in content:
        if part["type"] != "image":
            found.append(part)
        elif skipped:
            skipped -= 1
        else:
            skipped = views_of(next(shown)) - 1
            found.append(part)
    return found


def _picture_first(content: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The mark at the start of a turn goes behind its first picture, where the turn begins with one."""
    mark, *parts = content
    return [parts[0], mark, *parts[1:]] if parts and parts[0]["type"] == "image" else content


def _layout(tiles: tuple[int, int]) -> str:
    """What stands for a picture: ``<image>`` once for each view, between marks that say which it is."""
    overview = f"{AROUND}{OVERVIEW}{IMAGE}{AROUND}"
    if tiles == (1, 1):
        return overview
    rows = [
        "".join(f"{AROUND}<row_{row + 1}_col_{column + 1}>{IMAGE}" for column in range(tiles[1]))
        for row in range(tiles[0])
    ]
    return "".join(f"{row}\n" for row in rows) + f"\n{overview}"


def _frames(processor: Any, ref: VideoRef) -> list[Piece]:
    """A video's place in the prompt, as transformers' processor writes it: whole seconds, rounded down."""
    duration = ref.seconds[-1] if ref.duration is None else ref.duration
    pieces: list[Piece] = [
        f"You are provided the following series of {in_words(len(ref.seconds))} frames from a "
        f"{timedelta(seconds=int(duration))} [H:MM:SS] video.\n"
    ]
    is_control = OVERVIEW in control_tokens(processor.tokenizer)
    for seconds in ref.seconds:
        minutes, rest = divmod(int(seconds), 60)
        pieces += [
            f"\nFrame from {minutes:02d}:{rest:02d}:",
            Control(AROUND),
            Control(OVERVIEW) if is_control else OVERVIEW,
            Slots(IMAGE, processor.image_seq_len),
            Control(AROUND),
        ]
    return [*pieces, "\n\n"]


def in_words(number: int) -> str:
    """A number of frames as SmolVLM's prompts spell it: 32 is thirty-two, 105 one hundred and five.

    Raises ValueError above 999.
    """
    if number > 999:
        raise ValueError(f"found a video of {number:,} frames, expected at most 999; take fewer of it")
    if number >= 100:
        rest = f" and {in_words(number % 100)}" if number % 100 else ""
        return f"{_SMALL[number // 100]} hundred{rest}"
    if number >= 20:
        return _TENS[number // 10 - 2] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    return _SMALL[number]


_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
