"""The notebook runs from its first cell to its last, on small settings, and shows what a real run showed."""

import json
from pathlib import Path

import pytest

from finetune.demo import corpus, prepare, probe_sets

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
SMALL = """
STEPS = 1
PROBES_A_GROUP = 2
BASE = "finetune/demo/base"
DATA = Path({data!r})
OUT = Path({out!r})
"""


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def printed(cell: dict) -> str:
    return "".join("".join(one.get("text", ())) for one in cell["outputs"] if one.get("name") == "stdout")


def test_it_is_committed_with_its_outputs(cells):
    """Of one run, in order, without bars and warnings, with pictures; below a megabyte."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [one for cell in code for one in cell["outputs"]]
    assert not [one for one in shown if one.get("name") == "stderr" or one["output_type"] == "error"]
    assert sum("image/png" in one.get("data", {}) for one in shown) == 2
    said = "".join(map(printed, code))
    assert "sphere-building: corrected" in said and "/home/" not in said and "/tmp/" not in said
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_every_cell_runs(cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The cells as they are but for their settings; the data is drawn as the demo draws it, less of it."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setitem(corpus.CORPUS_SIZES, "corrective", 64)
    monkeypatch.setattr(probe_sets, "PROBES_PER_GROUP", 2)
    prepare.prepare(tmp_path / "data", ("corrective", "probes"), progress=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    settings.source = SMALL.format(data=str(tmp_path / "data"), out=str(tmp_path / "out"))
    client.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    said = [printed(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert "it says:  " in said[3] and "sphere-building: too few probes" in said[6]
    assert (tmp_path / "out" / "run" / "comparison" / "index.html").is_file()
