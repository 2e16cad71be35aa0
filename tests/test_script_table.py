"""Each training script with each family, against the table in docs/scripts.md."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from finetune.families import FAMILIES as KNOWN
from tests.finetune.script_table import EAGER, FAMILIES, ROOT, SCRIPTS
from tests.finetune.test_program import environment

MEASURED = sorted((ROOT / "benchmarks" / "results").glob("scripts_by_family_*.json"))[-1]


def documented() -> dict[str, dict[str, str]]:
    """Script → family → what docs/scripts.md says: "yes", or the flags that are needed beside."""
    lines = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")
    ]
    header, _, *body = rows
    return {
        script: {row[0]: row[column] for row in body} for column, script in enumerate(header) if column > 0
    }


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All dry runs, and training under ZeRO-3, in one process of its own: DeepSpeed leaves its marks on it."""
    output = tmp_path_factory.mktemp("table") / "table.json"
    command = [sys.executable, "-m", "tests.finetune.script_table", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())["scripts"]


def test_the_table_has_every_script_and_every_family():
    table = documented()
    assert sorted(table) == SCRIPTS
    assert all(list(row) == list(FAMILIES) for row in table.values())
    assert {one.name for one in KNOWN} <= {tiny.family.name for tiny in FAMILIES.values()}


def test_what_a_script_refuses_is_what_the_table_says(quick: dict[str, dict[str, Any]]):
    """At the dry run, which loads no weights, and in one line."""
    said = {
        script: {family: cell["needed"] or cell["refusal"] or "yes" for family, cell in row.items()}
        for script, row in quick.items()
    }
    assert said == documented()
    refusals = [cell["refusal"] for row in quick.values() for cell in row.values() if cell["refusal"]]
    assert all(re.search(rf"give {' '.join(EAGER)}$", refusal) for refusal in refusals)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_3_trains_saves_and_is_exported(quick: dict[str, dict[str, Any]], family: str):
    cell = quick["finetune_ds.sh"][family]
    assert cell["stages"] == {"two steps": "ok", "export": "ok"}
    assert len(cell["losses"]) == 2 and cell["losses"][0] != cell["losses"][1]


def test_the_whole_table_was_run_and_held():
    """``python -m tests.finetune.script_table``; two steps are the same with and without DeepSpeed."""
    measured = json.loads(MEASURED.read_text())["scripts"]
    table = documented()
    assert sorted(measured) == SCRIPTS
    for script, row in measured.items():
        assert {name: cell["needed"] or "yes" for name, cell in row.items()} == table[script]
        for family, cell in row.items():
            assert set(cell["stages"].values()) == {"ok"} and len(cell["stages"]) == 4, (script, family, cell)
    for one, other in (("lora_ds", "lora_single_gpu"), ("qlora_ds", "qlora_single_gpu")):
        for family in FAMILIES:
            a, b = (measured[f"finetune_{name}.sh"][family]["losses"] for name in (one, other))
            assert a == pytest.approx(b, abs=1e-3), family
    for family in FAMILIES:  # full training and fresh adapters begin at the same loss
        a, b = (measured[f"finetune_{name}.sh"][family]["losses"][0] for name in ("ds", "lora_single_gpu"))
        assert a == pytest.approx(b, abs=1e-3), family
