"""Trouble: the loss is 0 or NaN, and training goes on for a day.

Promise: "overlap_comm", which has done this, is off in the configurations here and refused in others; a loss or a
gradient that is not finite ends training with the batch named, and a loss of exactly 0 is pointed out.
"""

# ruff: noqa: F811 (fixtures of another file)

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from finetune.qwen_vl import QwenVLForConditionalGeneration
from finetune.training import trainer
from tests.finetune.test_program import ROOT, flags, program  # noqa: F401  (fixtures)


@pytest.mark.parametrize("stage", [2, 3])
def test_configurations_here_do_not_overlap(stage: int):
    config = json.loads((ROOT / f"ds_config_zero{stage}.json").read_text())
    assert config["zero_optimization"]["overlap_comm"] is False


@pytest.mark.parametrize(
    ("zero", "found"),
    [
        ({"stage": 2, "overlap_comm": True}, "true"),
        ({"stage": 3}, "missing, which with stage 3 means true"),
        ({"stage": 3, "overlap_comm": None}, "missing, which with stage 3 means true"),
    ],
)
def test_a_configuration_that_overlaps_is_refused(
    program: ModuleType, flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], zero: dict, found: str
):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto"}))
    assert program.main(flags("--use_lora", "True", "--deepspeed", str(path))) == 1
    error = capsys.readouterr().err
    assert f'"overlap_comm" is {found}' in error and 'expected "overlap_comm": false' in error


class Spoiled(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def logits_become(monkeypatch: pytest.MonkeyPatch, change) -> None:
    forward = QwenVLForConditionalGeneration.forward

    def changed(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.logits = change(outputs.logits)
        return outputs

    monkeypatch.setattr(QwenVLForConditionalGeneration, "forward", changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits: logits * float("nan"), "the loss is nan in step 1; the batch held\n"),
        (
            Spoiled.apply,
            "the gradient of step 1 is not finite (norm nan), though its loss is; the step held\n",
        ),
    ],
)
def test_what_is_not_finite_ends_training_with_the_samples_named(
    program: ModuleType, flags, capsys, monkeypatch: pytest.MonkeyPatch, change, words: str
):
    logits_become(monkeypatch, change)
    assert program.main(flags("--use_lora", "True")) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("data.json: record") == 4 and "--learning_rate" in error


def test_a_loss_of_exactly_0_is_pointed_out_once(
    program: ModuleType, flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    nats = trainer.loss.token_nats
    monkeypatch.setattr(trainer.logger, "warning", said.append)
    monkeypatch.setattr(trainer.loss, "token_nats", lambda *args, **options: 0 * nats(*args, **options))
    more = ("--gradient_accumulation_steps", "2", "--max_steps", "1", "--save_strategy", "no")
    assert program.main(flags("--use_lora", "True", *more)) == 1
    assert len(said) == 1 and "trained tokens is exactly 0 in step 1" in said[0]
    assert said[0].count("data.json: record") == 4
    assert "got no gradient in the first step" in capsys.readouterr().err
