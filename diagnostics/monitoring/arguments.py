"""What a monitor is given, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.comparison.verdicts import CORRECTED
from diagnostics.records.measurement_plan import DEPTHS, MeasurementPlan
from diagnostics.records.probes import Probe, read_probes


def probes_of(given: str | Path | Sequence[Probe]) -> tuple[Probe, ...]:
    """A probe file's probes, or those given.

    Raises ValueError for anything else, for none, and for a probe without a picture.
    """
    if isinstance(given, str | Path):
        return read_probes(given)
    probes: Any = given
    if not isinstance(probes, Sequence) or not all(isinstance(probe, Probe) for probe in probes):
        raise ValueError(f"probes: found {type(given).__name__}, expected a probe file, or Probes in a list")
    for probe in probes:
        if not probe.images:
            raise ValueError(f"probe {probe.id}: images: found none, expected at least one picture")
    return tuple(probes)


def plan_of(depth: str | MeasurementPlan, known: Mapping[str, MeasurementPlan] = DEPTHS) -> MeasurementPlan:
    """The plan of a name. Raises ValueError for a name that is not ``known``."""
    if isinstance(depth, MeasurementPlan):
        return depth
    if depth not in known:
        raise ValueError(f"depth: found {depth!r}, expected {' or '.join(known)}")
    return known[depth]


def check_key_layers(layers: Any) -> None:
    """Raises ValueError for anything but "auto" and numbers."""
    numbers = isinstance(layers, Sequence) and not isinstance(layers, str)
    if layers != "auto" and not (numbers and layers and all(isinstance(one, int) for one in layers)):
        raise ValueError(f'key_layers: found {layers!r}, expected "auto", or numbers of layers in a list')


def check_numbers(
    probe_steps: int | None, stop_when: str | None, stop_patience: int, batch_size: int | None
) -> None:
    """Raises ValueError for the first of a monitor's arguments that is out of range."""
    if probe_steps is not None and probe_steps < 1:
        raise ValueError(
            f"probe_steps: found {probe_steps}, expected at least 1, or None for every checkpoint"
        )
    if stop_when not in (None, CORRECTED):
        raise ValueError(f'stop_when: found {stop_when!r}, expected "{CORRECTED}" or None')
    if stop_patience < 1:
        raise ValueError(f"stop_patience: found {stop_patience}, expected at least 1 checkpoint")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: found {batch_size}, expected at least 1")
