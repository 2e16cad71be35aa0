"""A run that has passed every check: what training starts from."""

from typing import Any, NamedTuple

from finetune.data import dataset
from finetune.flags.arguments import Arguments
from finetune.training import run_folder

SAMPLES_SHOWN_FROM = 2000
"""The report of a run shows a few training samples, out of this many first ones."""


class Probes(NamedTuple):
    """What is watched, and what its key layers are chosen on; () where nothing is."""

    judged: Any = ()
    calibration: Any = ()


class Ready(NamedTuple):
    """A run that has passed every check."""

    args: Arguments
    marks: dict[str, Any]
    start: run_folder.Start
    model: Any
    processor: Any
    train_set: dataset.ConversationDataset
    eval_set: dataset.ConversationDataset | None
    probes: Probes
