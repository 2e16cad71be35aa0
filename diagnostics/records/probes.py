"""The probe file: read, validate, write. A probe is a question with a right answer, a wrong one, and where to
look."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from diagnostics.records.json_files import parsed_file, shown
from diagnostics.records.names import EXPECTED, colliding, id_fault, same_file_words
from finetune.files import write_atomically
from finetune.printable import one_line
from finetune.samples.box_numbers import looks_like_fractions
from finetune.samples.images import open_image
from finetune.samples.spelling import bare, begins

VERSION = 1
FIELDS = ("id", "group", "images", "question", "answer", "foil", "regions", "phrases", "relation")
REQUIRED = ("id", "group", "images", "question", "answer")
MESSAGE_MAX = 1600  # bytes of faults in one message; more of them are counted
FIELD_SHOWN = 200  # characters of a place, of what was found there, of what was expected
PLACEHOLDER = "<image>"
"""In a question: the place of a picture."""
_PATH_IN_TEXT = re.compile(rf"<img>.*?</img>|\\{PLACEHOLDER}", re.DOTALL)
"""What training data say so of a picture, and of the word for one, would be words in a probe."""
_AT_ENDS = re.compile(rf"^(?:\s*{PLACEHOLDER})+\s*|\s*(?:{PLACEHOLDER}\s*)+$")

BoxPixels = tuple[float, float, float, float]


class Relation(NamedTuple):
    """A phrase that relates two regions: {"phrase": "on", "subject": "cat", "object": "table"}."""

    phrase: str
    subject: str
    object: str


@dataclass(frozen=True)
class Probe:
    """One question that the model answers at every checkpoint.

    id, group        unique, usable as a file name; free text ("retention" and "neighbour" are
                     guards)
    images           files, in reading order; regions are places in the first
    question, answer, foil    the foil is a wrong answer, or None. A question may mark the place of each
                     picture with ``<image>``; otherwise pictures come before it, as in Qwen-VL's data
    spellings        every accepted spelling of the answer; the first is ``answer``, which is scored. An answer
                     that takes the place of another (``replace(probe, answer=…)``) is the only one
    regions          name → boxes x0 y0 x1 y1 in pixels of the first image as shown (EXIF orientation
                     applied)
    phrases          a phrase of question or answer → the region it should look at
    relation         two regions in a relation, or None
    """

    id: str
    group: str
    images: tuple[Path, ...]
    question: str
    answer: str
    foil: str | None = None
    regions: Mapping[str, tuple[BoxPixels, ...]] = field(default_factory=dict)
    phrases: Mapping[str, str] = field(default_factory=dict)
    relation: Relation | None = None
    spellings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.answer in self.spellings[1:]:
            raise ValueError(
                f"probe {self.id}: spellings: found {self.spellings!r}; expected the answer {self.answer!r} first"
            )
        if self.spellings[:1] != (self.answer,):
            object.__setattr__(self, "spellings", (self.answer,))
        object.__setattr__(self, "images", tuple(Path(image) for image in self.images))

    @property
    def main_region(self) -> str | None:
        """The region that claims are about: that of the answer as a phrase, else of the first phrase, else
        the first region; None if the probe has no region."""
        of_answer = [region for phrase, region in self.phrases.items() if phrase == self.answer]
        return next(iter([*of_answer, *self.phrases.values(), *self.regions]), None)


class Fault(NamedTuple):
    """One thing wrong in a probe file, in words: where (probe and field), found, expected and what to do."""

    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}"


def as_asked(question: str) -> str:
    """A question as people read it: without the places of pictures before and after it.

    "<image>\\nWhat is this?" → "What is this?"; "Is <image> like <image>?" stays.
    """
    return _AT_ENDS.sub("", question)


def read_probes(path: str | Path) -> tuple[Probe, ...]:
    """Read a probe file of version 1. Image paths are relative to the file.

    Raises FileNotFoundError, and ValueError that lists every fault of the file at once, each with the probe's
    index and id, field, found and expected.
    """
    path = Path(path)
    content = parsed_file(path, "probe file")
    faults = [Fault(*map(_cut, words)) for words in _file_faults(content, path.parent)]
    if faults:
        lines = "\n".join(_within_limits(faults))
        raise ValueError(f"{path}: {len(faults)} fault(s) in the probe file:\n{lines}")
    return tuple(_probe(entry, path.parent) for entry in content["probes"])


def _cut(words: str) -> str:
    return one_line(words, FIELD_SHOWN + 1)


def _within_limits(faults: Sequence[Fault]) -> Iterator[str]:
    """One line per fault, as many as fit a message that people still read."""
    room = MESSAGE_MAX
    for number, fault in enumerate(faults):
        line = f"  {fault}"
        room -= len(line.encode("utf-8", "replace")) + 1
        if room < 0 and number:
            yield f"  … and {len(faults) - number} more"
            return
        yield line


def readable_probes(path: str | Path) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """The probes of a file that can be read, and a line for each of the others (one whose picture is missing, say).

    Raises like ``read_probes`` if no probe can be read.
    """
    path = Path(path)
    try:
        return read_probes(path), ()
    except ValueError:
        found, faults = _one_by_one(path)
        if not found:
            raise
        return found, faults


def _one_by_one(path: Path) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    found: dict[str, Probe] = {}
    lines: list[str] = []
    for entry in _entries(path):
        faults = [Fault(*map(_cut, words)) for words in _entry_faults(entry, path.parent)]
        if faults:
            lines.append(f"probe {shown(entry.get('id'))}: {faults[0]}")
        else:
            found.setdefault(entry["id"], _probe(entry, path.parent))
    return tuple(found.values()), tuple(lines)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a probe file, whatever else is wrong with it; none if it is not a probe file."""
    try:
        content = parsed_file(path, "probe file")
    except ValueError:
        return []
    entries = content.get("probes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or content.get("version") != VERSION:
        return []
    return [entry for entry in entries if isinstance(entry, dict)]


def write_probes(probes: Iterable[Probe], path: str | Path) -> None:
    """Write probes atomically. Images are not copied; their paths are relative to the file."""
    path = Path(path)
    content = {"version": VERSION, "probes": [_entry(probe, path.parent) for probe in probes]}
    write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def _probe(entry: Mapping[str, Any], folder: Path) -> Probe:
    relation = entry.get("relation")
    return Probe(
        id=entry["id"],
        group=entry["group"],
        images=tuple(folder / image for image in entry["images"]),
        question=entry["question"],
        answer=_spellings(entry)[0],
        spellings=tuple(_spellings(entry)),
        foil=entry.get("foil"),
        regions={
            name: tuple((b[0], b[1], b[2], b[3]) for b in boxes)
            for name, boxes in (entry.get("regions") or {}).items()
        },
        phrases=dict(entry.get("phrases") or {}),
        relation=Relation(**relation) if relation else None,
    )


def _spellings(entry: Mapping[str, Any]) -> list[Any]:
    """The accepted spellings of an entry's answer, which is a text or a list of texts."""
    answer = entry.get("answer")
    return answer if isinstance(answer, list) else [answer]


def _entry(probe: Probe, folder: Path) -> dict[str, Any]:
    return {
        "id": probe.id,
        "group": probe.group,
        "images": [Path(os.path.relpath(image, folder)).as_posix() for image in probe.images],
        "question": probe.question,
        "answer": probe.answer if len(probe.spellings) == 1 else list(probe.spellings),
        "foil": probe.foil,
        "regions": {name: [list(box) for box in boxes] for name, boxes in probe.regions.items()},
        "phrases": dict(probe.phrases),
        "relation": probe.relation._asdict() if probe.relation else None,
    }


FaultWords = tuple[str, str, str]


def _file_faults(content: Any, folder: Path) -> Iterator[FaultWords]:
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = shown(content.get("version")) if isinstance(content, dict) else f"a {type(content).__name__}"
        yield "version", found, f'{{"version": {VERSION}, "probes": […]}}'
        return
    entries = content.get("probes")
    if not isinstance(entries, list) or not entries:
        yield (
            "probes",
            "none" if not entries else f"a {type(entries).__name__}",
            "a list of at least one probe",
        )
        return
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield f"probe {index}", f"a {type(entry).__name__}", "an object with " + ", ".join(REQUIRED)
            continue
        for where, found, expected in _entry_faults(entry, folder):
            yield f"probe {index} (id {shown(entry.get('id'))}): {where}", found, expected
    places: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            places.setdefault(entry["id"], []).append(index)
    for name, at in places.items():
        if len(at) > 1:
            found = f"{shown(name)} {len(at)} times"
            yield f"probes {', '.join(map(str, at))}: id", found, "each id once; rename the others"
    for alike in colliding(places):
        found, expected = same_file_words(alike)
        yield f"probes {', '.join(str(places[one][0]) for one in alike)}: id", found, expected


def _entry_faults(entry: Mapping[str, Any], folder: Path) -> Iterator[FaultWords]:
    yield from _text_faults(entry)
    images = entry.get("images")
    size = None
    if not _is_list_of(images, str) or not images:
        yield "images", shown(images), "a list with at least one path, relative to the probe file"
    else:
        sizes = [_size_or_reason(folder / image) for image in images]
        for image, one in zip(images, sizes, strict=True):
            if isinstance(one, str):
                yield (
                    "images",
                    f"{image if len(image) <= 80 else image[:80] + '…'} ({one})",
                    f"an image at {folder / image}; correct the path or add the file",
                )
        size = sizes[0]
        asked = str(entry.get("question")).count(PLACEHOLDER)
        if asked not in (0, len(images)):
            yield "question", f"{asked} × {PLACEHOLDER}", f"one for each of the {len(images)} images, or none"
        elif (found := _PATH_IN_TEXT.search(str(entry.get("question")))) is not None:
            yield (
                "question",
                found[0],
                f"{PLACEHOLDER} or nothing in place of a picture, and its file in images",
            )
    yield from _region_faults(entry.get("regions"), None if isinstance(size, str) else size)
    yield from _reference_faults(entry)


def _text_faults(entry: Mapping[str, Any]) -> Iterator[FaultWords]:
    for name in sorted(set(entry) - set(FIELDS)):
        yield name, "an unknown field", "one of " + ", ".join(FIELDS)
    for name in ("id", "group", "question"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            yield name, shown(entry.get(name)), "non-empty text"
    identity = entry.get("id")
    if isinstance(identity, str) and identity.strip() and (fault := id_fault(identity)) is not None:
        yield "id", fault, EXPECTED
    yield from _answer_faults(_spellings(entry), entry.get("foil"))


def _answer_faults(spellings: Sequence[Any], foil: Any) -> Iterator[FaultWords]:
    """Faults of an answer's spellings and of the foil, which must differ from their first character on."""
    texts = [one for one in spellings if isinstance(one, str) and one.strip()]
    if not texts or len(texts) < len(spellings):
        found = shown(next((one for one in spellings if one not in texts), []))
        yield "answer", found, "non-empty text, or a list of accepted spellings, the first of which is scored"
    for place, text in enumerate(texts):
        if bare(text) in map(bare, texts[:place]):
            yield "answer", f"{text!r} twice among the spellings", "each once: case and width do not count"
    if foil is None:
        return
    if not isinstance(foil, str) or not foil.strip():
        yield "foil", shown(foil), "the wrong answer as text, or null"
        return
    for text in texts:
        if bare(text) == bare(foil):
            itself = "the answer itself" if foil == text else f"the answer itself ({text!r})"
            yield "foil", f"{foil!r}, {itself}", "a wrong answer, or null"
        elif begins(text, foil):
            shorter, longer = sorted((text, foil), key=lambda one: len(bare(one)))
            yield (
                "foil",
                f"{foil!r} against the answer {text!r}: {shorter!r} begins {longer!r}",
                "two answers, neither a prefix of the other; word one of them differently",
            )


def _region_faults(regions: Any, size: tuple[int, int] | None) -> Iterator[FaultWords]:
    if regions is not None and not isinstance(regions, dict):
        yield "regions", shown(regions), "an object: name → list of boxes [x0, y0, x1, y1]"
        return
    for name, boxes in (regions or {}).items():
        if not isinstance(boxes, list) or not boxes:
            yield f"regions.{name}", shown(boxes), "a list of at least one box [x0, y0, x1, y1]"
            continue
        for index, box in enumerate(boxes):
            where = f"regions.{name}[{index}]"
            if not _is_list_of(box, int, float) or len(box) != 4:
                yield where, shown(box), "four numbers x0, y0, x1, y1 in pixels of the first image"
            elif not (box[0] < box[2] and box[1] < box[3]):
                yield where, f"{box}, an empty box", "x0 < x1 and y0 < y1; swap the corners"
            elif size and (min(box) < 0 or box[2] > size[0] or box[3] > size[1]):
                yield (
                    where,
                    f"{box}",
                    f"a box inside its image of {size[0]}×{size[1]} pixels (original, not resized)",
                )
            elif size and looks_like_fractions(box, size):
                yield (
                    where,
                    f"{box}, which looks like fractions of the picture",
                    f"pixels of its image of {size[0]}×{size[1]}; multiply x by {size[0]} and y by {size[1]}",
                )


def _reference_faults(entry: Mapping[str, Any]) -> Iterator[FaultWords]:
    given = entry.get("regions")
    regions: dict[str, Any] = given if isinstance(given, dict) else {}
    known = "one of the regions: " + (", ".join(regions) or "there are none")
    phrases = entry.get("phrases")
    if phrases is not None and not isinstance(phrases, dict):
        yield "phrases", shown(phrases), "an object: phrase → region"
        phrases = None
    said = [str(entry.get("question", "")), *map(str, _spellings(entry)[:1])]
    for phrase, region in (phrases or {}).items():
        if not phrase or not any(phrase in one for one in said):
            yield (
                "phrases",
                shown(phrase),
                "words that appear verbatim in the question or the answer (of several spellings: the first)",
            )
        if not isinstance(region, str) or region not in regions:
            yield f"phrases.{phrase}", shown(region), known
    relation = entry.get("relation")
    if relation is None:
        return
    if not isinstance(relation, dict) or set(relation) != set(Relation._fields):
        yield "relation", shown(relation), 'null or {"phrase": …, "subject": a region, "object": a region}'
        return
    if not isinstance(relation["phrase"], str) or not relation["phrase"].strip():
        yield "relation.phrase", shown(relation["phrase"]), "the words that relate the two, as text"
    for end in ("subject", "object"):
        if not isinstance(relation[end], str) or relation[end] not in regions:
            yield f"relation.{end}", shown(relation[end]), known


def _is_list_of(value: Any, *kinds: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, kinds) and not isinstance(one, bool) for one in value
    )


def _size_or_reason(path: Path) -> tuple[int, int] | str:
    try:
        if not path.is_file():
            return "no such file"
        stat = path.stat()
    except OSError as error:  # a name that is too long, an unreadable folder
        return f"not readable: {error.strerror}"
    return _cached_size(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _cached_size(path: Path, _modified: int, _bytes: int) -> tuple[int, int] | str:
    """(width, height) of a picture as shown. It is decoded in full, so that a truncated one is found before the model
    runs."""
    try:
        return open_image(path).size
    except ValueError as error:
        reason = str(error).removeprefix(f"image {os.fspath(path)!r}: ")
        return f"not readable as an image: {reason}"


def groups_of(probes: Sequence[Probe]) -> dict[str, list[Probe]]:
    """Probes by group, in order of first appearance."""
    groups: dict[str, list[Probe]] = {}
    for probe in probes:
        groups.setdefault(probe.group, []).append(probe)
    return groups


def check_no_group_is(all_probes: str, probes: Sequence[Probe], file: str | Path) -> None:
    """Raises ValueError for a group named as all groups together are called: its numbers would overwrite theirs."""
    named = next((probe for probe in probes if probe.group == all_probes), None)
    if named is not None:
        raise ValueError(
            f"{file}: probe {named.id}: found group {all_probes!r}, a name reserved for all groups together; "
            "expected another name; rename the group"
        )


ENOUGH_PROBES = 20  # five pairs cannot go below p = 1/16

KEPT_SHARE = {"retention": 0.97, "neighbour": 0.95}  # of the accuracy before; less is a loss

RETENTION, NEIGHBOUR = "retention", "neighbour"
