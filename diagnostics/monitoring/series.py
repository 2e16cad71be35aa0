"""The steps that a run's comparison is over: what was recorded, and what is still in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diagnostics.records.archive import RecordArchive, fault_words, recorded_steps, whole_records
from diagnostics.records.measurement_plan import WATCH
from diagnostics.records.record import AttentionRecord

Records = Mapping[str, AttentionRecord]


class Series(NamedTuple):
    """Step → records of the judged probes, in the order of steps; and the steps that are not in it, each with why."""

    steps: Mapping[int, Records]
    left_out: Sequence[str]


def series_until(
    archive: RecordArchive, step: int, ids: Sequence[str], *, in_memory: Sequence[Records]
) -> Series:
    """All complete steps up to one.

    in_memory   records of the first step and of this one, used as they are: their files need not be readable

    Raises ValueError if the first step or this one is missing.
    """
    found: dict[int, Records] = {}
    left_out: list[str] = []
    for one in [one for one in recorded_steps(archive.attention_dir) if one <= step]:
        short = archive.shortfall(one, WATCH)
        if short is None and 0 < one < step:
            faults = whole_records(archive.folder(one), ids)[1]
            short = fault_words(faults) if faults else None
        if short is None:
            found[one] = archive.stored(one, ids)
        else:
            left_out.append(f"step {one} ({short})")
    for one, records in zip((0, step), in_memory, strict=True):
        if records and next(iter(records.values())).step == one:
            found[one] = {name: records[name] for name in ids}
    missing = [one for one in (0, step) if one not in found]
    if missing:
        raise ValueError(f"the records of step {missing[0]} are missing")
    return Series({one: found[one] for one in sorted(found)}, left_out)
