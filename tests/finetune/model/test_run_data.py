"""Pictures of probes that were not given to the training are looked up in the data that run.json names."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from finetune.model.run_data import RunData, content_digest, run_of
from finetune.training import run_folder
from tests.finetune.model.a_run import a_run, records_of

UNKNOWN = "it is not known whether pictures of the probes were trained on"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Six that differ, of one size in bytes; their headers are never read."""
    found = [tmp_path / f"{at}.png" for at in range(6)]
    for at, path in enumerate(found):
        path.write_bytes(b"picture %d" % at)
    return found


def test_a_run_its_checkpoints_and_what_goes_on_from_it(pictures, tmp_path, capsys):
    """Under another name too: what counts is the content."""
    first = a_run(tmp_path / "a", pictures[:2])
    second = a_run(tmp_path / "b", pictures[2:3], model_name_or_path=str(first), lora_weight_path="")
    (copy := tmp_path / "copy.png").write_bytes(pictures[1].read_bytes())
    asked = [copy, pictures[2], pictures[5]]
    for name in ("checkpoint-4", "superseded/checkpoint-4", "merged"):
        (first / name).mkdir(parents=True)
        assert RunData(asked).trained_on([first / name]) == {digest(copy)}
    assert RunData(asked).trained_on([str(first)]) == {digest(copy)}
    assert RunData(asked).trained_on([second]) == {digest(copy), digest(pictures[2])}
    assert RunData(asked).trained_on([tmp_path, "Qwen/Qwen-VL-Chat", tmp_path / "gone"]) == frozenset()
    assert RunData([]).trained_on([second]) == frozenset()
    assert capsys.readouterr().out == ""


def test_data_of_earlier_starts_is_looked_through_too(pictures, tmp_path, capsys):
    """A run that was resumed with other data names the last; its lineage has the data of the steps before."""
    earlier, run = a_run(tmp_path / "a", pictures[:2]), a_run(tmp_path / "b", pictures[2:3])
    before = json.loads((earlier / "run.json").read_text())["marks"]
    content = json.loads((run / "run.json").read_text())
    stints = [
        {"after": 0, "marks": before, "whole": True},
        {"after": 3, "marks": content["marks"], "whole": True},
    ]
    (run / "run.json").write_text(json.dumps({**content, "lineage": {"earlier": [], "stints": stints}}))
    assert RunData(pictures).trained_on([run]) == {digest(one) for one in pictures[:3]}
    Path(before["data_path"]).unlink()
    assert RunData(pictures).trained_on([run]) == {digest(pictures[2])}
    assert f"its data {before['data_path']} is gone; {UNKNOWN}" in capsys.readouterr().out


def test_data_of_models_that_are_gone_is_known_by_the_record_of_what_began_with_them(
    pictures, tmp_path, capsys
):
    first, run = a_run(tmp_path / "a", pictures[:2]), a_run(tmp_path / "b", pictures[2:3])
    stints = [{"after": 0, "marks": json.loads((first / "run.json").read_text())["marks"], "whole": True}]
    earlier = [
        {"model": str(first), "kind": "model", "end": 4, "stints": stints},
        {"model": "somebodys/adapter", "kind": "adapter", "end": None, "stints": None},
    ]
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "lineage": {"earlier": earlier, "stints": []}}))
    shutil.rmtree(first)
    known = {digest(one) for one in pictures[:3]}
    assert RunData(pictures).trained_on([run]) == known
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "lineage.json").write_text(json.dumps({"version": 1, "earlier": earlier}))
    assert RunData(pictures).trained_on([merged]) == {digest(one) for one in pictures[:2]}
    assert capsys.readouterr().out == ""
    (merged / "lineage.json").write_text('{"version": 1}')
    assert RunData(pictures).trained_on([merged]) == frozenset()
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{merged}: what it was trained on cannot be read" in line and "earlier: missing" in line


def test_the_model_that_a_run_began_with_does_not_come_from_it(pictures, tmp_path):
    run = a_run(tmp_path, pictures, model_name_or_path=str(tmp_path / "run" / "base"))
    for name in ("base", "other"):
        (run / name).mkdir()
    assert run_of(run / "base") is None and run_of(run / "other") == run


def test_every_source_is_looked_through(pictures, tmp_path):
    more = tmp_path / "more.json"
    more.write_text(json.dumps(records_of(pictures[3:4])))
    key = f"corrective_data {more}"
    extra = {key: {"share": 0.5, "repeat": 1}, f"{key} sha256": content_digest(more)}
    run = a_run(tmp_path, pictures[:1], **extra)
    assert RunData(pictures).trained_on([run]) == {digest(pictures[0]), digest(pictures[3])}


def test_of_a_part_of_the_data_the_rest_was_not_trained_on(pictures, tmp_path):
    from PIL import Image

    for at, path in enumerate(pictures):  # places in a part are among samples that were checked
        Image.new("RGB", (9 + at, 7)).save(path)
    run = a_run(tmp_path, pictures, data_fraction=0.5, data_fraction_same="epochs", seed=3)
    found = RunData(pictures).trained_on([run])
    assert len(found) == 3 and found < {digest(path) for path in pictures}


def streamed(run: Path) -> str:
    content = json.loads((run / "run.json").read_text())
    content["marks"]["streaming"] = True
    (run / "run.json").write_text(json.dumps(content))
    return "data.json was streamed (--streaming), and is not looked through"


def gone(run: Path) -> str:
    (run.parent / "data.json").unlink()
    return "data.json is gone"


def changed(run: Path) -> str:
    with (run.parent / "data.json").open("a") as file:
        file.write("\n")
    return "data.json has changed since"


def moved(run: Path) -> str:
    for path in run.parent.glob("[13].png"):
        path.rename(path.with_suffix(".moved"))
    return "data.json 2 of 4 samples looked at can no longer be read, the first: record 1 (id '1'): image: "


def foreign(run: Path) -> str:
    (run / "run.json").write_text('{"version": 1, "marks": {"data_path": 3}}')
    return "run.json: marks.data_path: found 3, expected text or null"


@pytest.mark.parametrize("spoil", [streamed, gone, changed, moved, foreign])
def test_what_cannot_be_looked_up_is_said_once(pictures, tmp_path, capsys, spoil):
    run = a_run(tmp_path, pictures[:4])
    words = spoil(run)
    left = [path for path in pictures if path.is_file()]
    data = RunData(left)
    for _ in range(2):  # a monitor asks at every checkpoint
        found = data.trained_on([run, run])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {run}: ") and words in line and line.endswith(UNKNOWN)
    assert found == ({digest(pictures[0]), digest(pictures[2])} if spoil is moved else set())


def test_data_is_known_by_the_digest_that_runs_write(pictures, tmp_path):
    """Of a file, and of a folder with files in folders."""
    (tmp_path / "data" / "part").mkdir(parents=True)
    for name in ("part/a.parquet", "b.parquet"):
        (tmp_path / "data" / name).write_bytes(name.encode())
    for path in (pictures[0], tmp_path / "data"):
        assert content_digest(path) == run_folder._content(path, names_alone=False)
