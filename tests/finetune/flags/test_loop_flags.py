"""Flags of order, packing and processes, together and through finetune.py."""

# ruff: noqa: F811 (fixtures of another file)

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.finetune.test_program import flags, program, scalars  # noqa: F401  (fixtures)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--packing", "True", "--streaming", "True"), "--packing with --streaming"),
        (("--streaming", "True", "--group_by_length", "True"), "group_by_length with --streaming"),
        (("--packing", "True", "--group_by_length", "True"), "--packing with --train_sampling_strategy"),
        (("--train_sampling_strategy", "batch_rebalance"), "expected random, sequential or group_by_length"),
        (("--fsdp",), "--fsdp: accelerate ignores it on a CPU"),
    ],
)
def test_flags_that_cannot_go_together_are_refused(
    program: ModuleType, flags, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
):
    assert program.main(flags("--use_lora", "True", *more)) == 1
    assert message in capsys.readouterr().err


def test_a_packed_run_of_two_sources(
    program: ModuleType, flags, tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
):
    some = data_file.parent / "some.json"
    some.write_text(json.dumps(json.loads(data_file.read_text())[:3]))
    more = ("--corrective_data", f"{some}:x2", "--packing", "True", "--model_max_length", "250")
    size = ("--per_device_train_batch_size", "1", "--max_steps", "-1", "--num_train_epochs", "2")
    evaluated = ("--eval_data_path", str(data_file), "--eval_strategy", "epoch", "--save_strategy", "no")
    assert program.main(flags("--use_lora", "True", *more, *size, *evaluated)) == 0
    assert "keeps the samples of a row apart by a mask of 250 × 250" in capsys.readouterr().out
    curves = scalars(tmp_path / "out" / "runs")
    steps = max(curves["train/loss"])
    assert 2 * 18 / 3 <= steps < 2 * 18 * 0.7  # rows of two or three samples
    assert curves["train/samples by source/data"][steps] == 24
    assert curves["train/samples by source/some"][steps] == 12
    assert {"train/loss by source/data", "train/loss by source/some", "eval/loss"} <= curves.keys()
    some.unlink()


def test_a_streamed_run_leaves_out_what_is_bad_and_says_so(
    program: ModuleType, flags, tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
):
    records = json.loads(data_file.read_text())
    records[4]["conversations"][1]["from"] = "bot"
    mixed = data_file.parent / "mixed.json"
    mixed.write_text(json.dumps(records))
    said: list[str] = []
    monkeypatch.setattr("finetune.training.trainer.logger.warning", said.append)
    more = (
        "--data_path",
        str(mixed),
        "--streaming",
        "True",
        "--on_bad_sample",
        "drop",
        "--save_strategy",
        "no",
    )
    assert program.main(flags("--use_lora", "True", *more, "--max_steps", "3")) == 0
    assert len(said) == 1 and said[0].startswith("1 sample could not be read") and "'bot'" in said[0]
    mixed.unlink()
