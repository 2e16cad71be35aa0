"""Chooses another probe's picture to replace a probe's own: one for which its answer is wrong, from the probe file."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from diagnostics.records.measurement_plan import OTHER, SAME_ANSWER
from diagnostics.records.pictures import picture_mark
from diagnostics.records.probes import Probe


class Loan(NamedTuple):
    """Another probe, whose pictures are borrowed, and their kind: ``OTHER`` if its right answer differs, else
    ``SAME_ANSWER``."""

    kind: str
    lender: Probe


def loan_for(probe: Probe, probes: Sequence[Probe]) -> Loan | None:
    """The probe whose pictures replace those of ``probe``; None if there is none.

    In this order: a probe of the same group whose right answer is this probe's foil; one of any group; one of the same
    group with another answer to the same question (for another question, other words may be the same answer:
    "东方明珠", "Oriental Pearl"); as ``SAME_ANSWER``, any of the same group. Lenders have the same number of pictures,
    none equal to one of the probe's. Ties are broken by a checksum of both ids, so that the choice depends neither on
    the order of the file nor on the other probes of a run.
    """
    own = {picture_mark(path) for path in probe.images}
    for kind, candidates in _by_preference(probe, probes):
        for one in sorted(candidates, key=lambda one: (_draw(probe, one), one.id)):
            if own.isdisjoint(map(picture_mark, one.images)):
                return Loan(kind, one)
    return None


def _by_preference(probe: Probe, probes: Sequence[Probe]) -> Iterator[tuple[str, list[Probe]]]:
    if not probe.images:
        return
    others = [one for one in probes if one.id != probe.id and len(one.images) == len(probe.images)]
    group = [one for one in others if one.group == probe.group]
    right = _words(probe.spellings)
    foil = _words(() if probe.foil is None else (probe.foil,))

    def differing(given: Sequence[Probe], is_one: Callable[[frozenset[str]], bool]) -> list[Probe]:
        answers = [(one, _words(one.spellings)) for one in given]
        return [one for one, said in answers if said.isdisjoint(right) and is_one(said)]

    yield OTHER, differing(group, lambda said: not said.isdisjoint(foil))
    yield OTHER, differing(others, lambda said: not said.isdisjoint(foil))
    asked = _words((probe.question,))
    yield OTHER, differing([one for one in group if _words((one.question,)) == asked], lambda said: True)
    yield SAME_ANSWER, group


def _words(spellings: Sequence[str]) -> frozenset[str]:
    return frozenset(" ".join(one.split()).casefold() for one in spellings)


def _draw(probe: Probe, lender: Probe) -> int:
    return zlib.crc32(f"{probe.id}\n{lender.id}".encode())
