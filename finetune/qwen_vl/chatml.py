"""ChatML: turns → ids, labels, and the span of each turn's content. The only module that writes control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from finetune.qwen_vl.tokenization import BOX, QUAD, REF, QwenVLTokenizer
from finetune.samples.conversation import BoxRef, ImageRef, Part, Turn, VideoRef

DEFAULT_SYSTEM = "You are a helpful assistant."
IGNORED = -100
# Special tokens anywhere in a text, as in Qwen-VL's own training: an escaped \<box> of the data is one too.
# <|im_start|> is ordinary text.
_USER_MARKUP = (*REF, *BOX, *QUAD)


class ChatML(NamedTuple):
    """input_ids, labels  of equal length; labels are -100 where nothing is trained on
    turn_spans         (start, end) of each given turn's content
    image_starts       index of each image's ``<img>``"""

    input_ids: list[int]
    labels: list[int]
    turn_spans: list[tuple[int, int]]
    image_starts: list[int]


def encode_parts(tokenizer: QwenVLTokenizer, parts: Sequence[Part]) -> tuple[list[int], list[int]]:
    """Ids of text and images in reading order, and the index of each ``<img>``."""
    ids: list[int] = []
    starts: list[int] = []
    text = ""  # adjacent texts are tokenised together, as in a rendered chat
    for part in parts:
        if isinstance(part, ImageRef):
            ids += tokenizer.encode_text(text, allowed_special=_USER_MARKUP)
            text = ""
            starts.append(len(ids))
            ids += tokenizer.image_slots(part.written, strict=False)
        elif not isinstance(part, VideoRef):  # the family refuses videos earlier
            text += part.written if isinstance(part, BoxRef) else part
    return ids + tokenizer.encode_text(text, allowed_special=_USER_MARKUP), starts


def encode_chat(
    tokenizer: QwenVLTokenizer,
    turns: Sequence[Turn],
    *,
    add_generation_prompt: bool = False,
    default_system: str = DEFAULT_SYSTEM,
) -> ChatML:
    """A conversation in Qwen-VL's training format; a leading system turn replaces the default system prompt.

    Layout of one turn:  <|im_start|> role \\n content <|im_end|> \\n
    Labels:              trained      -    -  -  or ✓  trained    trained
    Only the content of assistant turns is trained; the markers around every turn are trained too, except the role and
    its newline.
    """
    newline = tokenizer.encode_text("\n", allowed_special=())
    leading_system = bool(turns) and turns[0].role == "system"
    all_turns = list(turns) if leading_system else [Turn("system", (default_system,)), *turns]
    chat = ChatML([], [], [], [])
    for turn in all_turns:
        role = tokenizer.encode_text(turn.role, allowed_special=()) + newline
        content, image_starts = encode_parts(tokenizer, turn.parts)
        start = len(chat.input_ids) + 1 + len(role)
        chat.turn_spans.append((start, start + len(content)))
        chat.image_starts.extend(start + i for i in image_starts)
        chat.input_ids.extend([tokenizer.im_start_id, *role, *content, tokenizer.im_end_id, *newline])
        trained = content if turn.role == "assistant" else [IGNORED] * len(content)
        chat.labels.extend(
            [tokenizer.im_start_id, *[IGNORED] * len(role), *trained, tokenizer.im_end_id, *newline]
        )
    if not leading_system:
        del chat.turn_spans[0]
    if add_generation_prompt:
        opening = [tokenizer.im_start_id, *tokenizer.encode_text("assistant", allowed_special=()), *newline]
        chat.input_ids.extend(opening)
        chat.labels.extend([IGNORED] * len(opening))
    return chat
