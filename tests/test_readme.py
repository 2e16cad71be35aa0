"""README and docs tell the truth: their files are there, their flags are flags, their JSON is JSON.

The Python of ``docs/api.md`` runs in ``test_api_page``, that of the notebook in ``test_notebook``.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attention_finetune.cli import VERBS
from finetune.demo.prepare import DemoData
from finetune.demo.settings import training_flags
from finetune.flags import parse

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md")
}
README, INDEX = PAGES["README.md"], PAGES["docs/README.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\b[^\n]*\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str) -> list[str]:
    """Lines of a page's shell blocks, joined where they go on, without comments."""
    lines = [line for text in blocks(page, "bash") for line in text.replace("\\\n", " ").splitlines()]
    return [one for line in lines if (one := line.partition(" #")[0].strip()) and not one.startswith("#")]


def flags_of(command: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--(\w[\w-]*)", command))


def test_the_first_screen_has_the_two_commands():
    first = "\n".join(README.splitlines()[:22])
    assert "bash scripts/finetune_lora_ds.sh" in first and "bash scripts/test.sh" in first


def test_the_readme_is_short_and_has_one_picture():
    assert len(README.splitlines()) <= 100 and README.count("![") == 1


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_that_it_links_is_there(page: str):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(((?!http)[^)\s]+)\)", PAGES[page]):
        name, _, heading = link.partition("#")
        path = (folder / name).resolve() if name else ROOT / page
        assert path.exists(), link
        if heading:
            there = [re.sub(r"[^\w -]", "", line.lstrip("# ")).strip().lower().replace(" ", "-")
                     for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]  # fmt: skip
            assert heading in there, link
    for script in re.findall(r"(?<![\w/])scripts/[\w-]+\.(?:sh|sbatch)|`(\w+\.sh)`", PAGES[page]):
        assert not script or (ROOT / "scripts" / script).is_file(), script


def test_the_index_has_every_page_and_the_readme_the_index():
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", INDEX))
    assert listed == {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert "(docs/README.md)" in README


@pytest.mark.parametrize("page", PAGES)
def test_every_program_and_flag_of_a_command_is_there(page: str):
    """Of training, by its parser; of the programs, by their own."""
    known = {action.dest for action in parse.parser()._actions} | {"deepspeed", "help"}
    for command in commands(page):
        own, _, of_training = command.partition(" -- ")  # what curve trains with follows its --
        module = re.search(r"-m ((?:diagnostics|finetune|attention_finetune)[\w.]*)", own)
        if module is not None:
            verbs = [verb for verb in VERBS.values() if verb.module == module[1]]
            place = ROOT / module[1].replace(".", "/")
            assert place.is_dir() or place.with_suffix(".py").is_file(), command
            for verb in verbs:
                declared = (ROOT / verb.flags).read_text(encoding="utf-8")
                assert not {one for one in flags_of(own) - {"help"} if f'"--{one}"' not in declared}, command
        elif re.search(r"(?:scripts/finetune_\w+\.sh|finetune\.py)\b", own):
            of_training = own
        assert flags_of(of_training) <= known, (command, flags_of(of_training) - known)


def test_the_flags_of_tables_and_prose_about_training_are_flags():
    known = {action.dest for action in parse.parser()._actions} | {"deepspeed"}
    prose = re.sub(r"```.*?```", "", PAGES["docs/training.md"], flags=re.DOTALL)
    used = {flag for flag in re.findall(r"`--(\w+)[ `]", prose) if not flag.endswith("_")}
    assert {"packing", "vision_learning_rate", "box_units", "config"} <= used
    assert used <= known, used - known
    for page in ("docs/guide.md", "README.md"):
        table = set(re.findall(r"^\| `--(\w+)", PAGES[page], re.MULTILINE))
        assert table <= known, (page, table - known)


def test_the_json_of_data_and_of_probes_is_json():
    (data,) = map(json.loads, blocks("docs/training.md", "json"))
    (probes,) = map(json.loads, blocks("docs/guide.md", "json"))
    assert data[0]["conversations"][0]["from"] == "user"
    assert probes["version"] == 1


def test_the_demo_leaves_the_checkpoints_and_probes_that_are_named():
    """A comparison of a checkpoint that no run leaves fails minutes away from the page."""
    flags = training_flags(DemoData(*[Path(name) for name in DemoData._fields]), processes=1)
    of = dict(zip(flags[::2], flags[1::2], strict=True))
    saved = range(0, int(of["--max_steps"]) + 1, int(of["--save_steps"]))
    for page in ("README.md", "docs/demo.md"):
        found = re.findall(r"output_qwen/\S*?(?:checkpoint|step)-0*(\d+)", PAGES[page])
        assert {int(step) for step in found} <= set(saved)
        for file in set(re.findall(r"data/demo/(\S+\.json)", PAGES[page])):
            assert file in ("probes/probes.json", "development/probes.json")
    assert "output_qwen/checkpoint-110" in PAGES["docs/demo.md"]


def test_the_programs_of_the_readme_answer():
    """``--help`` of each, as a newcomer's second command."""
    for program in (["web_demo_mm.py"], ["-m", "diagnostics.diagnose"], ["finetune.py"]):
        assert " ".join(program) in README
        done = subprocess.run(
            [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert done.returncode == 0 and "--" in done.stdout and not done.stderr, program
