"""``attention-finetune VERB``: the same programs as ``python -m MODULE``, with help at once and completed flags."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from attention_finetune import __version__, cli, completion
from diagnostics.drawing.board import SHOWN_PER_GROUP
from diagnostics.flags import compare, render
from diagnostics.records import measurement_plan
from finetune import export
from finetune.corrective import box_relations
from finetune.flags import corrective
from finetune.flags import export as export_flags

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "PIL", "matplotlib", "gradio", "peft")


def imports_of(*command: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """A run of Python, and the packages that it imported."""
    asked = [sys.executable, "-X", "importtime", *command]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, cwd=ROOT)
    found = re.findall(r"^import time:.*\|\s+([\w.]+)$", done.stderr, re.MULTILINE)
    return done, {name.split(".")[0] for name in found}


@pytest.mark.parametrize("verb", [*cli.VERBS, cli.COMPLETION])
def test_help_of_a_verb_imports_nothing_heavy(verb: str):
    done, imported = imports_of("-m", "attention_finetune.cli", verb, "--help")
    assert done.returncode == 0 and "--" in done.stdout
    assert not imported & {*HEAVY}


@pytest.mark.parametrize("module", sorted({verb.module for verb in cli.VERBS.values()}))
def test_help_and_wrong_flags_of_a_module_import_nothing_heavy(module: str):
    for flag, status in (("--help", 0), ("--no_such_flag", 2)):
        done, imported = imports_of("-m", module, flag)
        assert done.returncode == status, done.stderr[-500:]
        assert not imported & {*HEAVY}


@pytest.mark.parametrize("module", ["finetune.demo.prepare", "finetune.demo.make_base"])
def test_help_of_what_makes_the_demo_imports_no_model(module: str):
    done, imported = imports_of("-m", module, "--help")
    assert done.returncode == 0 and "--output_dir" in done.stdout
    assert not imported & {"torch", "transformers", "numpy"}


def test_flags_name_what_the_modules_behind_them_have():
    assert list(measurement_plan.DEPTHS) == list(compare.DEPTHS)
    assert measurement_plan.MAPS == compare.MAPS
    assert render.SHOWN_PER_GROUP == SHOWN_PER_GROUP
    assert tuple(export.DTYPES) == export_flags.DTYPES
    assert box_relations.RELATIONS == corrective.RELATIONS


def test_a_verb_runs_its_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    ran = []
    monkeypatch.setattr(cli.runpy, "run_module", lambda module, **_: ran.append((module, sys.argv)))
    monkeypatch.setattr(sys, "argv", ["attention-finetune"])
    assert cli.main(["inspect", "MODEL", "--json"]) == 0
    assert ran == [("diagnostics.inspect", ["diagnostics.inspect", "MODEL", "--json"])]


def test_an_unknown_verb_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["compair"]) == 2
    assert "unknown verb 'compair'; did you mean compare?" in capsys.readouterr().err


def test_one_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"attention-finetune {__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert f"Unreleased: {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers where the last word is being typed."""
    typed = " ".join(f"'{word}'" for word in words)
    command = (
        f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _attention_finetune; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True)
    assert not done.stderr
    return done.stdout.split()


def test_bash_completes_verbs_flags_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    typed = "attention-finetune"
    assert completed(script, typed, "") == [*cli.VERBS, cli.COMPLETION, "--help", "--version"]
    assert completed(script, typed, "com") == ["compare", "completion"]
    assert completed(script, typed, "compare", "--be") == ["--before", "--between"]
    assert completed(script, typed, "compare", "--depth", "") == ["quick", "full"]
    assert completed(script, typed, "train", "--lora_bi") == ["--lora_bias"]
    assert completed(script, typed, "train", "--use_lora", "T") == ["True"]
    assert completed(script, typed, "web", "--cpu-only", "--server-p") == ["--server-port"]
    assert completed(script, typed, "completion", "f") == ["fish"]
    assert completed(script, typed, "inspect", "some/folder") == []  # bash then offers names of files
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("shell", list(completion.SHELLS))
def test_completion_covers_every_verb_and_flag(shell: str):
    verbs = cli.completed_verbs()
    script = completion.SHELLS[shell](cli.PROGRAM, verbs)
    for name, verb in verbs.items():
        assert name in script
        for flag in verb.flags:
            assert flag.removeprefix("--") in script
    assert len(verbs["train"].flags) > 150


def test_the_demo_refuses_a_model():
    flags = ["--model_name_or_path", "some/model", "--dry_run"]
    done = subprocess.run(
        [sys.executable, "-m", "attention_finetune.cli", "demo", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "--model_name_or_path: the demo has its own model and data" in done.stderr


def test_packages_for_few_are_imported_only_by_what_uses_them():
    code = (
        "import sys; import finetune, diagnostics, attention_finetune.train, diagnostics.inspect\n"
        "from diagnostics import AttentionExtractor, AttentionMonitor, AttentionRecord, remove_all, to_bertviz\n"
        "print([name for name in ('gradio', 'deepspeed', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"
