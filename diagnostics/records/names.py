"""File names from probe ids and TensorBoard tags from groups; no two ids or groups share one.

An id is a file name unchanged, or refused; a group is free text, and characters that divide tags are escaped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

CHARACTERS_MAX = 120
BYTES_MAX = 225
"""Of an id in UTF-8. File systems allow names of 255 bytes, and ``.ID.safetensors.1234567.tmp`` is the longest here."""
EXPECTED = (
    f"a file name: letters, digits, '_', '-', '.', at most {CHARACTERS_MAX} (and {BYTES_MAX} bytes, which are "
    f"{BYTES_MAX // 3} Chinese characters), not starting with '.'"
)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, to Windows
_RECORD = ".safetensors"


def id_fault(probe_id: str) -> str | None:
    """Why this cannot be a probe id, worded for "found …"; None if it can."""
    if len(probe_id.encode("utf-8", "surrogatepass")) > BYTES_MAX or len(probe_id) > CHARACTERS_MAX:
        size = len(probe_id.encode("utf-8", "surrogatepass"))
        return f"{probe_id[:20]!r}…, {len(probe_id)} characters in {size} bytes"
    if not probe_id or probe_id.startswith(".") or not all(map(_may_stand, probe_id)):
        return repr(probe_id)
    if _RESERVED.fullmatch(probe_id) or probe_id.endswith("."):
        return f"{probe_id!r}, not a valid file name on Windows"
    return None


def file_name(probe_id: str, suffix: str = "") -> str:
    """The name of a file or folder for this probe: its id and ``suffix``.

    Raises ValueError for an id that is not a file name; ``read_probes`` refuses those too.
    """
    fault = id_fault(probe_id)
    if fault is not None:
        raise ValueError(f"probe id: found {fault}; expected {EXPECTED}")
    return probe_id + suffix


def record_name(probe_id: str) -> str:
    """The file of a probe's record, in the folder of its step."""
    return file_name(probe_id, _RECORD)


def same_file(probe_id: str) -> str:
    """A key that is equal for ids that some file systems treat as one file: macOS and Windows ``A`` and ``a``, macOS
    also ``é`` and ``e`` with a combining accent."""
    return nfc(nfc(probe_id).casefold())


def colliding(probe_ids: Iterable[str]) -> list[list[str]]:
    """Groups of different ids that would share a file."""
    found: dict[str, list[str]] = {}
    for one in dict.fromkeys(probe_ids):
        found.setdefault(same_file(one), []).append(one)
    return [alike for alike in found.values() if len(alike) > 1]


def check_ids(probe_ids: Iterable[str]) -> None:
    """Raises ValueError for an id that cannot name a file, appears twice, or would share a file with another."""
    ids = list(probe_ids)
    for one in ids:
        file_name(one)
    twice = next((one for one in ids if ids.count(one) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise ValueError(f"probe id: found {twice!r} more than once; expected each once, rename the others")
    for alike in colliding(ids):
        raise ValueError("probe ids: found {}; expected {}".format(*same_file_words(alike)))


def same_file_words(alike: Sequence[str]) -> tuple[str, str]:
    """Found and expected, in words, for one group of ``colliding``."""
    names = ", ".join(map(ascii if len(set(map(nfc, alike))) < 2 else repr, alike))
    return (
        f"{names}, one file on macOS or Windows",
        "ids that differ in more than case or accents' encoding; rename one",
    )


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def tag_part(group: str) -> str:
    """A group as one part of a TensorBoard tag, which slashes divide: ``a/b`` → ``a%2Fb``, and ``%`` → ``%25``, so
    that no two groups share a tag."""
    return group.replace("%", "%25").replace("/", "%2F")


def _may_stand(character: str) -> bool:
    """Letters of any script with their marks (Thai and Hindi vowels are such), digits, and ``_ - .``"""
    return character in "_-." or character.isalnum() or unicodedata.category(character)[0] == "M"
