"""Validates probe files, version 1, before they are written.

finetune does not import diagnostics, so the rules are repeated here; a test checks that they agree with the reader's.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.samples.images import size_of
from finetune.samples.spelling import bare, begins

VERSION = 1
REQUIRED = ("id", "group", "question", "answer")
FIELDS = (*REQUIRED, "images", "foil", "regions", "phrases", "relation")
IDENTITY = re.compile(r"(?!\.)[\w.\-]{1,120}")


def faults(content: Any, folder: Path) -> list[str]:
    """The faults of a probe file's content, paths relative to ``folder``; [] if it is valid."""
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return [f'expected {{"version": {VERSION}, "probes": [...]}}']
    probes = content.get("probes")
    if not isinstance(probes, list) or not probes:
        return ["probes: expected a list of at least one"]
    found = [
        f"probe {index}: {fault}" for index, probe in enumerate(probes) for fault in _faults(probe, folder)
    ]
    identities = Counter(str(probe.get("id")) for probe in probes if isinstance(probe, dict))
    return [*found, *(f"id {one!r}: found {times} times" for one, times in identities.items() if times > 1)]


def _faults(probe: Any, folder: Path) -> Iterator[str]:
    if not isinstance(probe, dict):
        yield f"expected an object, found {probe!r:.80}"
        return
    for key in sorted(set(probe) - set(FIELDS)):
        yield f"{key}: unknown"
    for key in ("id", "group", "question"):
        if not _is_text(probe.get(key)):
            yield f"{key}: found {probe.get(key)!r:.80}, expected text"
    if _is_text(probe.get("id")) and not IDENTITY.fullmatch(probe["id"]):
        yield f"id: found {probe['id']!r}, expected letters, digits, _ - . that can be a file's name"
    yield from _answer_faults(_spellings(probe), probe.get("foil"))
    yield from _place_faults(probe, folder)
    yield from _reference_faults(probe)


def _spellings(probe: Mapping[str, Any]) -> list[Any]:
    """The accepted spellings of an answer (a text or a list of texts)."""
    answer = probe.get("answer")
    return answer if isinstance(answer, list) else [answer]


def _answer_faults(spellings: list[Any], foil: Any) -> Iterator[str]:
    if not spellings or not all(map(_is_text, spellings)):
        yield f"answer: found {spellings!r:.80}, expected text, or a list of accepted spellings"
        return
    if len({*map(bare, spellings)}) < len(spellings):
        yield f"answer: found {spellings!r:.80}, expected each spelling once"
    if foil is None:
        return
    if not _is_text(foil):
        yield f"foil: found {foil!r:.80}, expected text, or null"
    elif any(begins(one, foil) for one in spellings):
        yield f"foil: found {foil!r:.80}, expected a text that does not start like the answer, or null"


def _place_faults(probe: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Pictures, and boxes in the first of them."""
    images = probe.get("images")
    size = None
    placed = str(probe.get("question")).count("<image>")
    if not isinstance(images, list) or not images or not all(isinstance(one, str) for one in images):
        yield f"images: found {images!r:.80}, expected a list of paths"
    elif placed not in (0, len(images)):
        yield f"question: found {placed} × <image>, expected one for each of the {len(images)} images, or none"
    else:
        for number, image in enumerate(images):
            try:
                found = size_of(folder / image)
                size = found if number == 0 else size
            except ValueError as error:
                yield f"images: {error}"
    regions = probe.get("regions")
    if regions is not None and not isinstance(regions, dict):
        yield f"regions: found {regions!r:.80}, expected names with boxes"
        return
    for name, boxes in (regions or {}).items():
        if not isinstance(boxes, list) or not boxes:
            yield f"regions.{name}: found {boxes!r:.80}, expected a list of boxes"
            continue
        for box in boxes:
            if not _is_box(box, size):
                yield f"regions.{name}: found {box!r:.80}, expected x0 < x1, y0 < y1 inside the picture"


def _is_box(box: Any, size: tuple[int, int] | None) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in box):
        return False
    x0, y0, x1, y1 = box
    inside = size is None or (min(box) >= 0 and x1 <= size[0] and y1 <= size[1])
    return x0 < x1 and y0 < y1 and inside


def _reference_faults(probe: Mapping[str, Any]) -> Iterator[str]:
    """Checks phrases and the relation against texts and regions."""
    given = probe.get("regions")
    regions = given if isinstance(given, dict) else {}
    said = (str(probe.get("question", "")), *map(str, _spellings(probe)[:1]))
    phrases = probe.get("phrases")
    if phrases is not None and not isinstance(phrases, dict):
        yield f"phrases: found {phrases!r:.80}, expected phrase → region"
        phrases = None
    for phrase, region in (phrases or {}).items():
        if not phrase or not any(phrase in text for text in said):
            yield f"phrases: {phrase!r} is neither in the question nor in the answer"
        if region not in regions:
            yield f"phrases.{phrase}: found {region!r}, which is not a region"
    relation = probe.get("relation")
    if relation is None:
        return
    if not isinstance(relation, dict) or set(relation) != {"phrase", "subject", "object"}:
        yield f"relation: found {relation!r:.80}, expected phrase, subject, object"
        return
    for end in ("subject", "object"):
        if relation[end] not in regions:
            yield f"relation.{end}: found {relation[end]!r}, which is not a region"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
