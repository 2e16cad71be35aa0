"""White space at the edges of words, where a chat template trims it: it is neither read nor learned then.

Trap: the template is given marks in place of words (``chat``), so its own ``| trim`` has nothing to trim.

    " a dog\\n"  →  Gemma 3: model\\na dog<end_of_turn>;  Qwen: assistant\\n a dog\\n<|im_end|>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from finetune.families.parts.pieces import Control, Picture, Piece
from finetune.families.parts.templates import Write, template_of
from finetune.samples.conversation import Role

_WORD = "\ufdd8"  # a noncharacter of Unicode: no template writes it

Turns = Sequence[tuple[Role, Sequence[Piece]]]


class Trimming(NamedTuple):
    """What a chat template trims.

    roles     those whose turns it trims at both ends
    at_pictures   whether it trims a user's words beside a picture too, for it takes the parts of a turn one by one
    """

    roles: frozenset[str]
    at_pictures: bool


_FOUND: dict[tuple[type, str], Trimming] = {}


def trimming_of(processor: Any, write: Write) -> Trimming:
    """Found by letting the template write words with and without white space around them."""
    key = template_of(processor)
    if key not in _FOUND:
        roles = [role for role in ("user", "assistant") if _trims(write, role)]
        _FOUND[key] = Trimming(frozenset(roles), "user" in roles and _trims(write, "user", {"type": "image"}))
    return _FOUND[key]


def _trims(write: Write, role: str, *before: Mapping[str, Any]) -> bool:
    def written(words: str) -> str:
        asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}] if role == "assistant" else []
        said = {"role": role, "content": [*before, {"type": "text", "text": words}]}
        return write([*asked, said], False)

    try:
        return written(f" {_WORD}\n") == written(_WORD)
    except ValueError:  # it refuses such turns; what it makes of real ones is asked then
        return False


def trimmed(turns: Turns, trimming: Trimming) -> list[tuple[Role, Sequence[Piece]]]:
    """Turns without the white space that the template would trim."""
    return [
        (role, _turn(content, trimming.at_pictures) if role in trimming.roles else content)
        for role, content in turns
    ]


def _turn(content: Sequence[Piece], at_pictures: bool) -> list[Piece]:
    pieces = list(content)
    for at, piece in enumerate(content):
        if not isinstance(piece, str) or isinstance(piece, Control):
            continue
        words = str(piece)
        if at == 0 or (at_pictures and isinstance(content[at - 1], Picture)):
            words = words.lstrip()
        if at == len(content) - 1 or (at_pictures and isinstance(content[at + 1], Picture)):
            words = words.rstrip()
        pieces[at] = words
    return [piece for piece in pieces if piece != ""]
