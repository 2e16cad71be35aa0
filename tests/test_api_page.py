"""docs/api.md: every public name is on it, and its examples run one after another, from any folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import diagnostics
import finetune.qwen_vl

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_public_name_is_on_the_page():
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    for name in diagnostics.__all__:
        assert name in prose and any(name in code for code in CODE), name
    for name in finetune.qwen_vl.__all__:
        assert f"`{name}`" in prose, name


def test_its_examples_run_in_any_folder(tmp_path: Path):
    (tmp_path / "page.py").write_text("\n".join(CODE), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
