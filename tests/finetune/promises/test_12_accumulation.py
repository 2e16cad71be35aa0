"""Trouble: the loss depends on how a step is cut into micro-batches and processes, because means are averaged.

Promise: a step's loss is the mean over its trained tokens, whatever --gradient_accumulation_steps, the number of
processes and the packing of rows; no sample is repeated to fill up a process.
"""

from pathlib import Path

import pytest

from tests.finetune.side_by_side import assert_same, in_two_processes, run

SCENARIOS = ("accumulated", "packed")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_have_the_losses_gradients_and_counts_of_one(
    checkpoint_folder: Path, data_file: Path, tmp_path: Path, scenario: str
):
    one = run(checkpoint_folder, data_file, tmp_path, scenario)
    assert_same(one, in_two_processes(checkpoint_folder, data_file, SCENARIOS)[scenario])
    # Two epochs of 12 samples, and of 4 of them twice.
    last = one["logs"][-2]
    assert (last["samples by source/base"], last["samples by source/text"]) == (24, 16)
    assert one["logs"][-1].keys() == {"eval_loss", "eval_loss by source/base", "eval_loss by source/text"}


def test_accumulation_changes_nothing(checkpoint_folder: Path, data_file: Path, tmp_path: Path):
    plain, accumulated = (
        run(checkpoint_folder, data_file, tmp_path, name) for name in ("plain", "accumulated")
    )
    assert_same(plain, accumulated)
