"""Help and mistyped flags are answered at once, from the sources, and say what the parser knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.flags import flags_of_2023, help, parse

ROOT = Path(__file__).parents[3]


def test_the_sources_declare_what_the_parser_knows():
    options = {name for name in parse.parser()._option_string_actions if name.startswith("--")}
    old = {
        f"--{name}"
        for name in (*flags_of_2023.RENAMED, *flags_of_2023.BOOLEAN_VALUES, *flags_of_2023.DROPPED)
    }
    assert help.known() == options | old


def test_every_flag_is_in_the_help_once_with_its_words():
    text = help.help_text()
    for action in parse.parser()._actions:
        name = next((one for one in action.option_strings if one.startswith("--")), "--help")
        if name not in ("--help", "-h") and not name.startswith("--no_"):
            assert len(re.findall(rf"^  {name} ", text, re.MULTILINE)) == 1, name  # words wrap further in
    flat = " ".join(text.split())
    assert "makes it 30 % of the samples" in flat and "%%" not in flat
    assert "--lora_bias none|all|lora_only" in flat and "Rank of the adapters. [64]" in flat
    assert "How to train the connector" in flat and "--connector frozen|lora|full" in flat
    groups = [group.title for group in help.groups()]
    assert groups[:3] == ["Model.", "Data.", "Trained parameters."]
    assert len([flag for group in help.groups() for flag in group.flags if flag.help]) > 150


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--help"], 0, "Model."),
        (
            ["--learnig_rate", "1e-5", "--data_path", "d"],
            2,
            "--learnig_rate: unknown flag; did you mean --learning",
        ),
        (["--xyzzy=3"], 2, "--xyzzy: unknown flag (python finetune.py --help lists all)"),
    ],
)
def test_the_program_answers_before_it_imports_anything(flags: list[str], status: int, words: str):
    command = [sys.executable, "-X", "importtime", str(ROOT / "finetune.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and words in done.stdout + done.stderr
    assert "torch" not in done.stderr and "transformers.training_args" not in done.stderr


def test_known_flags_go_on_to_the_parser(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    help.answer(["--learning_rate=1e-5", "--warmup_ratio", "0.1", "--no_fix_vit", "--lora-r", "3", "-1"])
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        help.answer(["--xyzzy"])
    assert capsys.readouterr().err == ""
