"""Probes shared out among the ranks of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from diagnostics.monitoring.failures import FAILURES
from diagnostics.probing.before import is_sharded
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord
from finetune.distributed import gathered, rank_and_world_size

Outcome = tuple[list[AttentionRecord], Exception | None]


def shared_out(
    model: nn.Module, probes: Sequence[Probe], run: Callable[[Sequence[Probe]], list[AttentionRecord]]
) -> list[Outcome]:
    """Run every rank's share of probes; returns, on every rank, the records and the failure, if any, of each.

    Where weights are sharded (ZeRO-3, FSDP), so that a forward pass needs every rank, all run all probes in lockstep.
    """
    rank, ranks = rank_and_world_size()
    in_step = is_sharded(model)
    failure: Exception | None = None
    records: list[AttentionRecord] = []
    try:
        records = run(probes if in_step else probes[rank::ranks])
    except FAILURES as error:
        failure = error
    # Every rank must get here, even after a failure: the others would wait forever.
    return [(records, failure)] if in_step else gathered((records, failure))


def failure_of(outcomes: Sequence[Outcome]) -> Exception | None:
    """The first rank's that failed; None where all are well."""
    return next((error for _, error in outcomes if error is not None), None)
