"""White space at the edges of words, where a chat template trims it: it is neither read nor learned then.

Trap: the template is given marks in place of words (``chat``), so its own ``| trim`` has nothing to trim.

    " a dog\\n"  →  Gemma 3: model\\na dog<end_of_turn>;  Qwen: assistant\\n a dog\\n<|im_end|>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from finetune.families.parts.pieces import Picture, Piece, Turns, is_words
from finetune.families.parts.templates import Write, template_of
from finetune.samples.conversation import Role

_WORD = "\ufdd8"  # a noncharacter of Unicode: no template writes it


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
        roles = [role for role in ("system", "user", "assistant") if _trims(write, role)]
        _FOUND[key] = Trimming(frozenset(roles), "user" in roles and _trims(write, "user", {"type": "image"}))
    return _FOUND[key]


def _trims(write: Write, role: str, *before: Mapping[str, Any]) -> bool:
    def written(words: str) -> str:
        said = {"role": role, "content": [*before, {"type": "text", "text": words}]}
        asked = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        return write(
            [said] if role == "user" else [said, asked] if role == "system" else [asked, said], False
        )

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
    begun = _edge(list(content), at_pictures, str.lstrip)
    return [piece for piece in _edge(begun[::-1], at_pictures, str.rstrip)[::-1] if piece != ""]


def _edge(pieces: list[Piece], at_pictures: bool, strip: Callable[[str], str]) -> list[Piece]:
    """Trims what comes first, and what follows a picture; white space alone is nothing, so what is behind it is too."""
    is_edge = True
    for at, piece in enumerate(pieces):
        if is_edge and is_words(piece):
            pieces[at] = strip(str(piece))
        is_edge = (is_edge and pieces[at] == "") or (at_pictures and isinstance(piece, Picture))
    return pieces
