"""docs/add-a-family.md says what is: its names exist, its table is the Protocol, its commands have such flags."""

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.families import FAMILIES, base, family_of
from finetune.flags import parse
from tests.finetune.families import tiny_families

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "add-a-family.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
NAMES = sorted(set(re.findall(r"`([^`]+)`", PROSE)))
MODULES = (
    "finetune.families.base",
    "finetune.families.parts.boxes",
    "finetune.families.parts.chat",
    "finetune.families.parts.tower",
    "finetune.samples.images",
    "diagnostics.capture.extractor",
    "diagnostics.capture.self_check",
    "finetune.attention.watch",
    "tests.finetune.families.test_contract",
    "tests.finetune.families.tiny_families",
    "tests.finetune.families.parts.test_tiles",
)
OF_TRANSFORMERS = {"token_type_ids", "mm_token_type_ids"}


def known():
    """Every name that the page may use, by the code it is of."""
    names = {name for module in MODULES for name in dir(importlib.import_module(module))}
    for one in (base.ModulePaths, base.ImageTokens, base.Encoded, tiny_families.Tiny):
        names |= {field.name for field in fields(one)}
    return names | questions()


def questions():
    """What ``Family`` asks."""
    asked = {name for name in vars(base.Family) if not name.startswith("_")}
    return asked | {*inspect.get_annotations(base.Family)}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_of_the_code(name):
    if "/" in name:
        assert (ROOT / name).exists()
    elif name == "media=False":
        assert "media" in inspect.signature(base.Family.encode).parameters
    elif name in OF_TRANSFORMERS:
        sources = (ROOT / "finetune" / "families").rglob("*.py")
        assert any(f'"{name}"' in path.read_text(encoding="utf-8") for path in sources)
    else:
        assert name in known()


FOLDER = ROOT / "finetune" / "families"
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))
EXTENDS = {"qwen3_5": "qwen3_vl"}  # a subclass: the same pictures and videos before other language layers


def imported_families(path):
    """Modules of families/ that a file imports."""
    text = path.read_text(encoding="utf-8")
    return {*re.findall(r"^\s*from finetune\.families\.(\w+) import", text, re.MULTILINE)} & {*FILES}


@pytest.mark.parametrize("family", FILES)
def test_a_family_needs_no_other_family(family):
    assert imported_families(FOLDER / f"{family}.py") <= {EXTENDS.get(family, family)}


def test_parts_need_no_family():
    paths = [*(FOLDER / "parts").glob("*.py"), FOLDER / "base.py"]
    assert all(imported_families(path) == set() for path in paths)
    assert "families.parts" not in (FOLDER / "base.py").read_text(encoding="utf-8")


def test_its_table_is_the_protocol():
    table = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(table) == sorted(questions())


def test_invented_is_as_long_as_it_says():
    (said,) = re.findall(r"a whole one in (\d+) lines", PAGE)
    lines = (
        (ROOT / "tests" / "finetune" / "families" / "invented.py").read_text(encoding="utf-8").splitlines()
    )
    assert len(lines) <= int(said)


def test_its_commands_have_such_flags_and_select_tests():
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
    ]
    flags = {action.dest for action in parse.parser()._actions}
    used = [flag for line in commands if "finetune.py" in line for flag in re.findall(r"--(\w+)", line)]
    assert used and {*used} <= flags
    (tested,) = (line.split() for line in commands if "pytest" in line)
    assert (ROOT / tested[4]).is_file()
    assert tested[-1] in importlib.import_module("tests.finetune.families.test_contract").FAMILIES
    (shown,) = (line.split()[2] for line in commands if "-m diagnostics" in line)
    importlib.import_module(shown)


def test_its_python_prints_the_modules(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/add-a-family.md", "exec"), {})
    said = capsys.readouterr().out.split()
    assert "model.language_model.layers" in said and "model.language_model.layers.1.self_attn" in said


def test_an_unknown_model_is_told_what_is_missing_and_where_to_read():
    unknown = SimpleNamespace(model_type="mystery", vision_config=object())
    with pytest.raises(ValueError, match="type 'mystery'") as raised:
        family_of(unknown)
    said = str(raised.value)
    assert all(family.name in said for family in FAMILIES)
    assert "vision_config" not in said
    (page,) = re.findall(r"docs/[\w-]+\.md", said)
    assert (ROOT / page).read_text(encoding="utf-8") == PAGE
    with pytest.raises(ValueError, match="it has no vision_config"):
        family_of(SimpleNamespace(model_type="mystery"))
