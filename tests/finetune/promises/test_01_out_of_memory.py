"""Trouble: memory runs out after hours, at the first long sample, and the message names neither it nor a remedy.

Promise: the longest sample is in the very first batch, and where memory runs out, one message says on which samples,
how many tokens and pictures, and what helps.
"""

# ruff: noqa: F811 (fixtures of another file)

from pathlib import Path
from types import ModuleType

import pytest
import torch

from finetune.qwen_vl import QwenVLForConditionalGeneration
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)


@pytest.mark.parametrize("more", [(), ("--train_sampling_strategy", "group_by_length"), ("--seed", "9")])
def test_the_longest_sample_comes_first(
    program: ModuleType, flags, data_file: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
):
    widths: list[int] = []
    forward = QwenVLForConditionalGeneration.forward

    def seen(self, input_ids, **rest):
        widths.append(input_ids.shape[1])
        return forward(self, input_ids, **rest)

    monkeypatch.setattr(QwenVLForConditionalGeneration, "forward", seen)
    more = (*more, "--use_lora", "True", "--per_device_train_batch_size", "1", "--max_steps", "-1")
    assert program.main(flags(*more, "--num_train_epochs", "1", "--save_strategy", "no")) == 0
    assert len(widths) == 12 and widths[0] == max(widths) > min(widths)


def test_memory_that_runs_out_is_told_with_its_batch_and_what_helps(
    program: ModuleType, flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore words")

    monkeypatch.setattr(QwenVLForConditionalGeneration, "forward", no_room)
    assert program.main(flags("--use_lora", "True")) == 1
    error = capsys.readouterr().err
    assert "finetune.py: memory ran out in step 1; the batch held 4 samples in 4 rows of " in error
    assert " pictures:\n" in error and error.count("data.json: record") == 4
    assert "--per_device_train_batch_size 2 with twice the --gradient_accumulation_steps" in error
    assert "--gradient_checkpointing True" in error and "Tried to allocate 20.00 GiB" in error
    assert "more words" not in error and "Traceback" not in error


def test_another_error_is_no_want_of_memory(program: ModuleType, flags, monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(QwenVLForConditionalGeneration, "forward", broken)
    with pytest.raises(RuntimeError, match="a fault of our own"):
        program.main(flags("--use_lora", "True"))
