"""The README tells the truth: its files are there, its flags are flags, its Python runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.demo.prepare import DemoData
from finetune.demo.settings import training_flags
from finetune.flags import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_first_screen_has_the_two_commands():
    first = "\n".join(README.splitlines()[:22])
    assert "bash scripts/finetune_lora_ds.sh" in first and "bash scripts/test.sh" in first


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\(([^)h][^)]*)\)|`(\w+\.sh)`", README))))
def test_every_file_that_it_names_is_there(name):
    link, script = name
    path = ROOT / link if link else ROOT / "scripts" / script
    assert path.is_file(), path


@pytest.mark.parametrize("script", sorted(set(re.findall(r"bash (scripts/\w+\.sh)", README))))
def test_every_script_is_there(script):
    assert (ROOT / script).is_file()


def test_every_flag_of_training_is_a_flag():
    known = {action.dest for action in parse.parser()._actions}
    commands = [line for text in blocks("bash") for line in text.replace("\\\n", " ").splitlines()]
    training = [line for line in commands if "finetune_lora_ds.sh --" in line]
    table = re.findall(r"^\| `--(\w+)", README, re.MULTILINE)
    used = {flag for line in training for flag in re.findall(r"--(\w+)", line)} | set(table)
    assert {"data_path", "probes", "train_connector"} <= used
    assert used <= known, used - known


def test_its_json_is_json():
    data, probes = map(json.loads, blocks("json"))
    assert data[0]["conversations"][0]["from"] == "user"
    assert probes["version"] == 1


def test_its_python_runs():
    (code,) = blocks("python")
    check = "\nassert extractor.attention_weights['layer_2'].ndim == 4, 'shape'"
    subprocess.run([sys.executable, "-c", code + check], check=True, cwd=ROOT, timeout=120)


def test_flags_of_the_training_page_are_flags():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    known = {action.dest for action in parse.parser()._actions} | {"deepspeed"}
    commands = [text for text in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "finetune.py" in text]
    used = {flag for text in commands for flag in re.findall(r"--(\w+)", text)}
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    used |= {flag for flag in re.findall(r"`--(\w+)[ `]", prose) if not flag.endswith("_")}
    assert {"corrective_data", "packing", "vision_learning_rate", "box_units"} <= used
    assert used <= known, used - known
    for link in re.findall(r"\]\(([\w-]+\.md)\)|`(scripts/[\w.]+)`", page):
        name = (link[0] and f"docs/{link[0]}") or link[1]
        assert (ROOT / name).is_file(), name


def test_the_demo_leaves_the_checkpoints_and_probes_that_it_names():
    """A comparison of a checkpoint that no run leaves fails at the hub, minutes away from the README."""
    flags = training_flags(DemoData(*[Path(name) for name in DemoData._fields]), processes=1)
    of = dict(zip(flags[::2], flags[1::2], strict=True))
    saved = range(0, int(of["--max_steps"]) + 1, int(of["--save_steps"]))
    named = {int(step) for step in re.findall(r"output_qwen/\S*?(?:checkpoint|step)-0*(\d+)", README)}
    assert named and named <= set(saved)
    for file in set(re.findall(r"data/demo/(\S+\.json)", README)):
        assert file in ("probes/probes.json", "development/probes.json")
