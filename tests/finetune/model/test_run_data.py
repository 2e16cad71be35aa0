"""Pictures of probes that were not given to the training are looked up in the data that run.json names."""

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from finetune.model import run_data
from finetune.model.run_data import RunData, content_digest, run_of
from finetune.training import lineage, run_folder
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
    for name in ("checkpoint-4", "merged"):
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


def stinted(run: Path, *stints: tuple[int, Path], left: Path | None = None) -> None:
    """Steps after the given ones were trained on the data of other runs; ``left``: a checkpoint of which that is said
    beside it."""
    marks = [(after, json.loads((one / "run.json").read_text())["marks"]) for after, one in stints]
    written = [{"after": after, "marks": one, "whole": True} for after, one in marks]
    if left is not None:
        end = int(left.name.partition("-")[2])
        earlier = [{"model": str(left), "kind": "model", "end": end, "stints": written}]
        (left / "lineage.json").write_text(json.dumps({"version": 1, "earlier": earlier}))
        return
    content = json.loads((run / "run.json").read_text()) | {"marks": marks[-1][1]}
    (run / "run.json").write_text(json.dumps({**content, "lineage": {"earlier": [], "stints": written}}))


@pytest.fixture
def abc(pictures, tmp_path) -> list[Path]:
    """Three runs; each was trained on two pictures."""
    return [a_run(tmp_path / name, pictures[at : at + 2]) for at, name in ((0, "a"), (2, "b"), (4, "c"))]


def test_a_checkpoint_was_trained_on_what_came_before_it(pictures, abc):
    """Steps 1 to 10 on A, to 20 on B: whatever the order in which they are asked about."""
    run = abc[1]
    stinted(run, (0, abc[0]), (10, abc[1]))
    for step in (5, 10, 11):
        (run / f"checkpoint-{step}").mkdir()
    every = {digest(one) for one in pictures[:4]}
    for folders in ([5, 10, 11], [11, 10, 5]):
        data = RunData(pictures)
        for step in folders:
            of_a = {digest(one) for one in pictures[:2]}
            assert data.trained_on([run / f"checkpoint-{step}"]) == (every if step == 11 else of_a), step
        assert data.trained_on([run]) == every
    for step, known in (
        (10, {digest(one) for one in pictures[:2]}),
        (20, every),
    ):  # what goes on from it, too
        further = abc[2]
        content = json.loads((further / "run.json").read_text())
        content["marks"] |= {"data_path": None, "lora_weight_path": str(run / f"checkpoint-{step}")}
        (run / f"checkpoint-{step}").mkdir(exist_ok=True)
        (further / "run.json").write_text(json.dumps(content))
        assert RunData(pictures).trained_on([further]) == known


def test_a_checkpoint_that_was_copied_out_of_its_run_says_what_came_before_it(pictures, abc, tmp_path):
    run = abc[1]
    stinted(run, (0, abc[0]), (10, abc[1]))
    for step, known in ((10, pictures[:2]), (11, pictures[:4])):
        saved = run / f"checkpoint-{step}"
        saved.mkdir()
        (saved / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        lineage.note(saved)
        copied = saved.rename(tmp_path / f"copied {step}")
        assert RunData(pictures).trained_on([copied]) == {digest(one) for one in known}


def test_a_model_that_training_began_with_was_trained_on_what_came_before_it(pictures, abc):
    stints = [
        {"after": after, "marks": json.loads((one / "run.json").read_text())["marks"], "whole": True}
        for after, one in ((0, abc[0]), (10, abc[1]))
    ]
    content = json.loads((abc[2] / "run.json").read_text())
    for end, known in ((10, pictures[:2] + pictures[4:]), (11, pictures), (None, pictures)):
        earlier = [{"model": "gone", "kind": "adapter", "end": end, "stints": stints}]
        (abc[2] / "run.json").write_text(
            json.dumps({**content, "lineage": {"earlier": earlier, "stints": []}})
        )
        assert RunData(pictures).trained_on([abc[2]]) == {digest(one) for one in known}


def test_a_checkpoint_that_was_left_behind_has_the_data_of_its_own_branch(pictures, abc, capsys):
    """A, from step 10 on B, which was left for C. Without its own record nobody knows of B, and that is said."""
    run = abc[2]
    stinted(run, (0, abc[0]), (10, abc[2]))
    (left := run / "superseded" / "checkpoint-20").mkdir(parents=True)
    assert RunData(pictures).trained_on([left]) == {digest(one) for one in pictures[:2]}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {left}: its run left it behind") and line.endswith(UNKNOWN)
    stinted(run, (0, abc[0]), (10, abc[1]), left=left)
    assert RunData(pictures).trained_on([left]) == {digest(one) for one in pictures[:4]}
    assert capsys.readouterr().out == ""


def test_data_that_was_moved_between_two_starts_is_the_same_data(pictures, tmp_path, capsys):
    run = a_run(tmp_path, pictures[:2])
    content = json.loads((run / "run.json").read_text())
    old = content["marks"] | {"data_path": "/mnt/old/data.json"}
    stints = [
        {"after": after, "marks": one, "whole": True} for after, one in ((0, old), (10, content["marks"]))
    ]
    (run / "run.json").write_text(json.dumps({**content, "lineage": {"earlier": [], "stints": stints}}))
    assert RunData(pictures).trained_on([run]) == {digest(one) for one in pictures[:2]}
    assert capsys.readouterr().out == ""
    stints[0]["marks"]["data sha256"] = "other content"
    (run / "run.json").write_text(json.dumps({**content, "lineage": {"earlier": [], "stints": stints}}))
    RunData(pictures).trained_on([run])
    assert f"its data /mnt/old/data.json is gone; {UNKNOWN}" in capsys.readouterr().out


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
    data = RunData(pictures)
    assert data.trained_on([run]) == known
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "lineage.json").write_text(json.dumps({"version": 1, "earlier": earlier}))
    assert data.trained_on([merged]) == {digest(one) for one in pictures[:2]}
    (line,) = capsys.readouterr().out.splitlines()  # once, of all that began with it
    assert f"{run}: it began with somebodys/adapter, of whose data there is no record" in line
    assert line.endswith(UNKNOWN)
    (merged / "lineage.json").write_text('{"version": 1}')
    assert RunData(pictures).trained_on([merged]) == frozenset()
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{merged}: what it was trained on cannot be read" in line and "earlier: missing" in line


@pytest.mark.parametrize("key", ["lora_weight_path", "resume_from_checkpoint"])
def test_a_run_of_an_earlier_release_began_with_weights_of_unknown_data(pictures, tmp_path, capsys, key):
    """Its run.json has no lineage. What the weights were trained on is known while their run is there."""
    first = a_run(tmp_path / "a", pictures[:2])
    run = a_run(tmp_path / "b", pictures[2:3], **{key: str(first)})
    assert RunData(pictures).trained_on([run]) == {digest(one) for one in pictures[:3]}
    assert capsys.readouterr().out == ""
    shutil.rmtree(first)
    data = RunData(pictures)
    assert data.trained_on([run]) == data.trained_on([run]) == {digest(pictures[2])}
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{run}: it began with {first}, of whose data there is no record; {UNKNOWN}" in line


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
    for at, path in enumerate(pictures):  # places in a part are among samples that were checked
        Image.new("RGB", (9 + at, 7)).save(path)
    run = a_run(tmp_path, pictures, data_fraction=0.5, data_fraction_same="epochs", seed=3)
    found = RunData(pictures).trained_on([run])
    assert len(found) == 3 and found < {digest(path) for path in pictures}


def in_two_orders(tmp_path: Path, pictures: list[Path], **marks) -> tuple[dict, dict]:
    """Marks of two starts of a run, which had its two corrective sources in another order each."""
    for at, path in enumerate(pictures):
        Image.new("RGB", (9 + at, 7)).save(path)
    keys = {}
    for name, some in (("b", pictures[1:20]), ("c", pictures[20:])):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(records_of(some)))
        key = f"corrective_data {file}"
        keys[name] = {key: {"share": None, "repeat": 1}, f"{key} sha256": content_digest(file)}
    run = a_run(tmp_path, pictures[:1])
    known = json.loads((run / "run.json").read_text())["marks"]
    return known | keys["b"] | keys["c"] | marks, known | keys["c"] | keys["b"] | marks


def with_stints(run: Path, *every: dict) -> Path:
    stints = [{"after": 10 * at, "marks": marks, "whole": True} for at, marks in enumerate(every)]
    content = {"version": 1, "marks": every[-1], "lineage": {"earlier": [], "stints": stints}}
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps(content))
    return run


def test_a_part_of_sources_in_another_order_is_another_part(tmp_path):
    """Which samples of a source are kept depends on its place: what only the first start had was trained on too."""
    pictures = [tmp_path / f"{at}.png" for at in range(39)]
    part = {"data_fraction": 0.25, "data_fraction_same": "epochs", "seed": 42}
    first, second = in_two_orders(tmp_path, pictures, **part)
    of_first, of_second, of_both = (
        RunData(pictures).trained_on([with_stints(tmp_path / "run", *every)])
        for every in ((first,), (second,), (first, second))
    )
    assert of_first - of_second and of_second - of_first
    assert of_both == of_first | of_second
    runs = with_stints(tmp_path / "one", first), with_stints(tmp_path / "other", second)
    assert RunData(pictures).trained_on(runs) == of_both
    of_earlier = RunData(pictures, looked_through=second).trained_on([with_stints(tmp_path / "run", first)])
    assert of_earlier == of_first  # what the run under way looks through itself is another part


def test_all_of_sources_in_another_order_is_read_once(tmp_path, monkeypatch):
    pictures = [tmp_path / f"{at}.png" for at in range(39)]
    run = with_stints(tmp_path / "run", *in_two_orders(tmp_path, pictures))
    found, read = run_data._found_by, list[dict]()
    monkeypatch.setattr(run_data, "_found_by", lambda marks, *rest: read.append(marks) or found(marks, *rest))
    assert len(RunData(pictures).trained_on([run])) == 39 and len(read) == 1


def long_data(tmp_path: Path, model: Path | None) -> tuple[Path, list[Path]]:
    """A run that dropped what has over 100 tokens: picture 1 is shown in a long sample alone, 2 in a long and a short
    one. ``model``: its processor lies in the run's folder."""
    pictures = [tmp_path / f"{at}.png" for at in range(3)]
    for at, path in enumerate(pictures):
        Image.new("RGB", (20 + at, 14), (at * 20, 90, 200)).save(path)
    run = a_run(tmp_path, pictures, on_bad_sample="drop", model_max_length=100)
    data = run.parent / "data.json"
    records = [record for path in (*pictures, pictures[2]) for record in records_of([path])]
    for at in (1, 2):
        records[at]["conversations"][1]["value"] = "A tower. " * 10
    data.write_text(json.dumps(records))
    content = json.loads((run / "run.json").read_text())
    content["marks"] |= {"model_name_or_path": "hub/model", "data sha256": content_digest(data)}
    (run / "run.json").write_text(json.dumps(content))
    if model is not None:
        shutil.copytree(model, run, dirs_exist_ok=True)
    return run, pictures


@pytest.mark.parametrize("data_fraction", [None, 0.99])
def test_what_was_left_out_as_too_long_was_not_trained_on(checkpoint_folder, tmp_path, capsys, data_fraction):
    run, pictures = long_data(tmp_path, checkpoint_folder)
    content = json.loads((run / "run.json").read_text())
    content["marks"] |= {"data_fraction": data_fraction, "data_fraction_same": "epochs"}
    (run / "run.json").write_text(json.dumps(content))
    assert RunData(pictures).trained_on([run]) == {digest(pictures[0]), digest(pictures[2])}
    content["marks"]["on_bad_sample"] = "shrink"  # too long ones would have ended the run
    (run / "run.json").write_text(json.dumps(content))
    assert len(RunData(pictures).trained_on([run])) == 3
    assert capsys.readouterr().out == ""


def test_pictures_inside_the_data_are_told_apart(checkpoint_folder, tmp_path):
    """Each is a file of its own, though no path says so."""
    run, pictures = long_data(tmp_path, checkpoint_folder)
    data = run.parent / "data.json"
    records = json.loads(data.read_text())
    for record in records:
        content = base64.b64encode(Path(record["image"]).read_bytes()).decode()
        record["image"] = f"data:image/png;base64,{content}"
    data.write_text(json.dumps(records))
    content = json.loads((run / "run.json").read_text())
    content["marks"]["data sha256"] = content_digest(data)
    (run / "run.json").write_text(json.dumps(content))
    assert RunData(pictures).trained_on([run]) == {digest(pictures[0]), digest(pictures[2])}


def test_where_no_processor_tells_what_was_left_out_it_is_said_and_not_counted(tmp_path, capsys):
    run, pictures = long_data(tmp_path, None)
    data = RunData(pictures)
    for _ in range(2):
        assert data.trained_on([run]) == frozenset()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"warning: {run}: its data {tmp_path / 'data.json'} shows 3 pictures of the probes, but it may have left them "
        "out (--on_bad_sample drop, --model_max_length 100), and cannot be asked (no processor is left in its folder); "
        "they are not counted as trained on"
    )


def test_data_that_is_looked_through_already_is_not_looked_through_again(pictures, abc):
    """A run that is resumed: its own data, but not what an earlier start of it had."""
    run = abc[1]
    stinted(run, (0, abc[0]), (10, abc[1]))
    marks = json.loads((run / "run.json").read_text())["marks"]
    of_a = {digest(one) for one in pictures[:2]}
    assert RunData(pictures, looked_through=marks).trained_on([run]) == of_a
    assert len(RunData(pictures, looked_through=marks | {"data_fraction": 0.5}).trained_on([run])) == 4


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
