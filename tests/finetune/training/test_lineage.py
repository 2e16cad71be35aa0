"""What a run's weights were trained on before: other data of the same run, and the models that it began with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune.flags.parse import parse
from finetune.model.run_data import RunData, run_of
from finetune.training import run_folder
from finetune.training.lineage import (
    Earlier,
    Lineage,
    Stint,
    begun,
    note,
    of_content,
    of_export,
    recorded_run_of,
    trained_with,
)
from tests.finetune.training.test_run_folder import add_checkpoint

CATS, DOGS, BIRDS = (
    {"data_path": f"/data/{name}.json", "data sha256": name} for name in ("cats", "dogs", "birds")
)


def spans(found: Lineage | None) -> list[tuple[int, str, bool]]:
    assert found is not None
    return [(one.after, one.marks["data sha256"], one.whole) for one in found.stints]


def trained(folder: Path, marks: dict[str, Any], *steps: int) -> Path:
    """A run that goes on from what the folder holds and leaves checkpoints."""
    run_folder.write_run(folder, marks, finished=False)
    for step in steps:
        add_checkpoint(folder, step)
    run_folder.write_run(folder, marks, finished=True)
    return folder


def test_other_data_is_added_with_the_step_from_which_it_was_trained_on(tmp_path: Path):
    run = trained(tmp_path / "run", CATS, 5, 10)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True)]
    trained(run, CATS | {"max_steps": 12}, 11)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True)]
    trained(run, DOGS, 12)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True), (11, "dogs", True)]
    run_folder.set_beyond_aside(
        run, 5
    )  # it goes on from there with yet other data: the dogs are another branch's
    trained(run, BIRDS)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True), (5, "birds", True)]
    shutil.rmtree(run / "checkpoint-5")
    assert spans(run_folder.lineage_of(trained(run, DOGS))) == [(0, "dogs", True)]  # begun anew


@pytest.mark.parametrize(
    ("began", "changed"),
    [
        ({"data_fraction": 0.25, "seed": 42}, {"seed": 7}),
        ({"data_fraction": 0.25, "seed": 42, "data_seed": 1}, {"data_seed": None}),
        ({"on_bad_sample": "drop", "model_max_length": 90}, {"model_max_length": 70}),
        ({"on_bad_sample": "drop", "model_max_length": 90}, {"on_bad_sample": "shrink"}),
        ({"on_bad_sample": "drop", "data_format": "llava"}, {"data_format": "sharegpt"}),
        ({"on_bad_sample": "drop", "box_units": "pixels"}, {"box_units": "text"}),
        ({"on_bad_sample": "drop", "video_fps": 2.0}, {"video_fps": 1.0}),
        ({"on_bad_sample": "drop", "video_max_frames": 32}, {"video_max_frames": 8}),
        ({"image_folder": "/pictures"}, {"image_folder": "/others"}),
    ],
)
def test_other_samples_of_the_same_files_are_other_data(tmp_path: Path, began: dict, changed: dict):
    run = trained(tmp_path / "run", CATS | began, 10)
    trained(run, CATS | began | {"learning_rate": 1e-3}, 15)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True)]
    trained(run, CATS | began | changed)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True), (15, "cats", True)]


def test_a_fraction_of_sources_in_another_order_is_other_data(tmp_path: Path):
    """What it keeps of each goes by its place; a run without a fraction has all of each."""
    b, c = ({f"corrective_data /{name}.json": {"share": None, "repeat": 1}} for name in "bc")
    for name, fraction, stints in (("part", 0.5, 2), ("whole", None, 1)):
        run = trained(tmp_path / name, CATS | {"data_fraction": fraction} | b | c, 10)
        trained(run, CATS | {"data_fraction": fraction} | c | b)
        assert len(spans(run_folder.lineage_of(run))) == stints


def test_how_videos_are_read_decides_nothing_where_no_sample_is_dropped(tmp_path: Path):
    run = trained(tmp_path / "run", CATS | {"on_bad_sample": "error", "video_fps": 2.0}, 10)
    trained(run, CATS | {"on_bad_sample": "error", "video_fps": 1.0})
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True)]


def test_another_seed_without_a_fraction_is_the_same_data(tmp_path: Path):
    run = trained(tmp_path / "run", CATS | {"seed": 42}, 10)
    trained(run, CATS | {"seed": 7})
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True)]


def test_a_run_of_an_earlier_release_does_not_know_whether_there_was_other_data(tmp_path: Path):
    run = trained(tmp_path / "run", CATS, 10)
    content = json.loads((run / "run.json").read_text())
    del content["lineage"]
    (run / "run.json").write_text(json.dumps(content))
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", False)]
    trained(run, CATS)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", False), (10, "cats", True)]


@pytest.mark.parametrize("as_model", [False, True])
def test_what_it_continues_from_is_told_back_to_the_beginning(tmp_path: Path, as_model: bool):
    key = "model_name_or_path" if as_model else "lora_weight_path"
    first = trained(tmp_path / "first", CATS, 10)
    second = trained(tmp_path / "second", DOGS | {key: str(first / "checkpoint-10")}, 7)
    third = trained(tmp_path / "third", BIRDS | {key: str(second)}, 3)
    trained(third, CATS, 4)  # and goes on
    found = run_folder.lineage_of(third)
    assert found is not None
    assert [(Path(one.model).name, one.end) for one in found.earlier] == [
        ("checkpoint-10", 10),
        ("second", None),
    ]
    assert [one.stints[0].marks["data sha256"] for one in found.earlier if one.stints] == ["cats", "dogs"]
    assert {one.kind for one in found.earlier} == {"model" if as_model else "adapter"}
    assert spans(found) == [(0, "birds", True), (3, "cats", True)]


def test_what_no_run_of_ours_trained_is_not_recorded_and_a_base_is_no_origin(tmp_path: Path):
    for place in ("somebodys", "run/base"):
        (tmp_path / place).mkdir(parents=True)
    trained(tmp_path / "run", CATS)
    for adapter in ("somebodys", "run/base", "hub/adapter"):
        found = begun({"lora_weight_path": str(tmp_path / adapter)}, None, 0)
        assert [one.stints for one in found.earlier] == [None]
        assert begun({"model_name_or_path": str(tmp_path / adapter)}, None, 0).earlier == ()
    broken = trained(tmp_path / "broken", CATS)
    (broken / "run.json").write_text('{"marks": {}, "lineage": {"stints": [3], "earlier": []}}')
    assert begun({"lora_weight_path": str(broken)}, None, 0).earlier[0].stints is None


def test_weights_are_of_a_run_where_its_record_is_of_them(tmp_path: Path):
    """A checkpoint that was left behind comes from its run, which went on with other data in its place."""
    run = trained(tmp_path / "run", CATS | {"model_name_or_path": str(tmp_path / "run" / "base")}, 5, 10)
    run_folder.set_beyond_aside(run, 5)
    trained(run, DOGS, 10)
    (run / "base").mkdir()
    left = run / "superseded" / "checkpoint-10"
    for weights, own, recorded in (
        (run, run, run), (run / "checkpoint-5", run, run), (left, run, None), (run / "base", None, None),
        (tmp_path, None, None),
    ):  # fmt: skip
        assert (run_of(weights), recorded_run_of(weights)) == (own, recorded), weights
    (one,) = begun({"lora_weight_path": str(left)}, None, 0).earlier
    assert one.stints and (one.model, one.end) == (str(left), 10)
    assert [stint.marks["data sha256"] for stint in one.stints] == ["cats"]
    (one,) = begun({"lora_weight_path": str(run / "checkpoint-10")}, None, 0).earlier
    assert one.stints and [stint.after for stint in one.stints] == [0, 5]


def test_a_checkpoint_that_was_left_behind_keeps_the_data_of_its_branch(tmp_path: Path):
    """The run's record has that of the branch which was trained in its place."""
    run = trained(tmp_path / "run", CATS, 10)
    trained(run, DOGS, 20)
    note(run / "checkpoint-20")  # as it was saved
    for other in (BIRDS, CATS):  # the second time, under a name of its own
        run_folder.set_beyond_aside(run, 10)
        trained(run, other, 20)
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True)]
    names = {"checkpoint-20": [(0, "cats"), (10, "dogs")], "checkpoint-20-2": [(0, "cats"), (10, "birds")]}
    for name, expected in names.items():
        left = run / "superseded" / name
        (one,) = of_export(left) or ()
        assert (one.model, one.kind, one.end) == (str(left), "model", 20)
        assert [(stint.after, stint.marks["data sha256"]) for stint in one.stints or ()] == expected
    assert run_folder.damage(run / "superseded" / "checkpoint-20", ours=True) is None
    trained(run, DOGS | {"resume_from_checkpoint": str(run / "superseded" / "checkpoint-20")})
    found = run_folder.lineage_of(run)  # the data of that branch, not of the checkpoint in its place
    assert found is not None and spans(found) == [(20, "dogs", True)]
    assert [stint.marks["data sha256"] for stint in found.earlier[0].stints or ()] == ["cats", "dogs"]


HALVES, QUARTERS = ({"bf16": bf16, "fp16": False, "q_lora": not bf16} for bf16 in (True, False))


def test_a_checkpoint_keeps_the_precision_of_the_start_that_saved_it(tmp_path: Path):
    """With the same data the run has one stint, of the marks that it began with."""
    run = trained(tmp_path / "run", CATS | HALVES, 10)
    note(run / "checkpoint-10")
    trained(run, CATS | QUARTERS, 20)
    note(run / "checkpoint-20")
    assert spans(run_folder.lineage_of(run)) == [(0, "cats", True)]
    assert (trained_with(run / "checkpoint-10"), trained_with(run / "checkpoint-20")) == (HALVES, QUARTERS)
    run_folder.set_beyond_aside(run, 10)
    trained(run, CATS | HALVES, 20)
    assert trained_with(run / "superseded" / "checkpoint-20") == QUARTERS
    assert trained_with(run) is None and trained_with(run / "checkpoint-20") is None  # neither has a file


def test_a_lineage_of_an_earlier_release_says_no_precision_and_a_broken_one_is_one_message(tmp_path: Path):
    file = trained(tmp_path / "run", CATS | HALVES, 10) / "checkpoint-10" / "lineage.json"
    note(file.parent)
    written = json.loads(file.read_text())
    assert written["version"] == 1  # earlier releases read it as before
    assert RunData([tmp_path / "none.png"]).trained_on([file.parent]) == frozenset()
    del written["trained_with"]
    file.write_text(json.dumps(written))
    assert trained_with(file.parent) is None and len(of_export(file.parent) or ()) == 1
    file.write_text(json.dumps(written | {"trained_with": {"bf16": True}}))
    with pytest.raises(
        ValueError, match=r"lineage\.json: trained_with: .*expected an object with bf16, fp16, q_lora"
    ):
        trained_with(file.parent)
    run_folder.set_beyond_aside(tmp_path / "run", 5)  # which training does not need
    assert trained_with(tmp_path / "run" / "superseded" / "checkpoint-10") is None


def test_a_broken_lineage_beside_an_export_is_one_message(tmp_path: Path):
    (tmp_path / "lineage.json").write_text('{"version": 1, "earlier": [{"model": 3}]}')
    with pytest.raises(
        ValueError, match=r"lineage\.json: earlier: found a list of 1, .*\ncopy it or export it again"
    ):
        of_export(tmp_path)
    assert begun({"model_name_or_path": str(tmp_path)}, None, 0).earlier[0].stints is None
    assert of_export(tmp_path / "none") is None


def test_a_run_that_goes_on_in_another_folder_has_the_steps_of_the_first(tmp_path: Path):
    checkpoint = trained(tmp_path / "first", CATS, 10) / "checkpoint-10"
    data = tmp_path / "d.json"
    data.write_text("[]")
    flags = ["--model_name_or_path", "m", "--data_path", str(data), "--use_lora", "True"]
    given = ["--output_dir", str(tmp_path / "second"), "--resume_from_checkpoint", str(checkpoint)]
    marks = run_folder.fingerprint(parse([*flags, *given])[0], 1)
    found = run_folder.lineage_of(trained(tmp_path / "second", marks, 12))
    assert found is not None and found.stints[0].after == 10
    assert [(one.kind, one.end, one.stints and one.stints[0].marks) for one in found.earlier] == [
        ("checkpoint", 10, CATS)
    ]
    plain = run_folder.fingerprint(parse([*flags, *given[:2]])[0], 1)
    assert run_folder._differences(marks, plain) == []  # the same run, that goes on in its own folder
    own = ["--output_dir", str(tmp_path / "first"), "--resume_from_checkpoint", str(checkpoint)]
    assert "resume_from_checkpoint" not in run_folder.fingerprint(parse([*flags, *own])[0], 1)


@pytest.mark.parametrize(
    "lineage",
    [[], {"stints": []}, {"stints": [{}], "earlier": []}, {"stints": [], "earlier": [{"model": 3}]}],
)
def test_a_broken_lineage_is_one_message(tmp_path: Path, lineage: Any):
    run = trained(tmp_path / "run", CATS)
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"lineage": lineage}))
    with pytest.raises(ValueError, match="run.json"):
        run_folder.marks_of(run)


def test_it_is_read_as_it_was_written(tmp_path: Path):
    trained(tmp_path / "first", CATS, 10)
    made = begun(DOGS | {"lora_weight_path": str(tmp_path / "first")}, None, 0)
    run_folder.write_run(
        tmp_path / "second", DOGS | {"lora_weight_path": str(tmp_path / "first")}, finished=False
    )
    assert run_folder.lineage_of(tmp_path / "second") == made
    assert made.stints == (Stint(0, DOGS | {"lora_weight_path": str(tmp_path / "first")}),)


def test_what_a_later_release_says_beside_is_left_out():
    stint = {"after": 0, "marks": {"data_path": "a.json"}, "whole": True, "more": 1}
    earlier = {"model": "/runs/cats", "kind": "adapter", "end": 12, "stints": [stint], "more": 1}
    found = of_content({"lineage": {"earlier": [earlier], "stints": [stint], "more": 1}}, "run.json")
    expected = (Stint(0, {"data_path": "a.json"}),)
    assert found == Lineage((Earlier("/runs/cats", "adapter", 12, expected),), expected)
