"""A run that has passed every check, ready to be built."""

from collections.abc import Collection
from typing import Any, NamedTuple

from finetune.data import dataset
from finetune.flags.arguments import Arguments
from finetune.training import run_folder

SAMPLES_SHOWN_FROM = 2000
"""The report shows a few training samples, chosen from this many first ones."""


class Probes(NamedTuple):
    """The probes to judge by, and those to choose the key layers on; () if there are none."""

    judged: Any = ()
    calibration: Any = ()


class Ready(NamedTuple):
    """A run that has passed every check.

    looked_at   SHA-256 of the pictures on which attention is supervised; None where none is, or they are not known
    seen        SHA-256 of the judged probes' pictures that are in the training data
    """

    args: Arguments
    marks: dict[str, Any]
    start: run_folder.Start
    model: Any
    processor: Any
    train_set: dataset.ConversationDataset
    eval_set: dataset.ConversationDataset | None
    probes: Probes
    looked_at: Collection[str] | None = None
    seen: Collection[str] = ()
