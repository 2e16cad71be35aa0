"""Which weights a comparison in a run's folder is of."""

import json
from pathlib import Path

import pytest

from finetune.training import judged


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "out" / "comparison").mkdir(parents=True)
    (tmp_path / "out" / "run.yaml").write_text("output_dir: runs/out\nuse_lora: true\n")
    return tmp_path / "out"


def found(run: Path, model: object, step: object) -> judged.Judged | None:
    content = {"groups": {}, "after": {"model": model, "step": step}, "probes": []}
    (run / "comparison" / "comparison.json").write_text(json.dumps(content))
    return judged.read(run)


def is_of(run: Path, model: str, step: int | None, weights: Path, at: int | None) -> bool:
    one = found(run, model, step)
    assert one is not None
    return judged.is_of(one, weights, run=run, step=at)


@pytest.mark.parametrize(
    ("model", "step"),
    [(None, 4), ("out at step 3", 4), ("out at step 4", None), ("out at step 4", -1), (3, 4)],
)
def test_what_names_no_model_is_of_none(run: Path, model: object, step: object):
    assert found(run, model, step) is None


def test_a_run_is_known_where_it_lies_and_by_the_name_that_it_wrote_down(run: Path, tmp_path: Path):
    assert is_of(run, f"{run} at step 4", 4, run, None)
    assert is_of(run, "runs/out at step 4", 4, run, None)  # from another working directory
    assert not is_of(run, "runs/other at step 4", 4, run, None)
    (run / "run.yaml").write_text("output_dir: /elsewhere/runs/out\n")  # as runs write it, in full
    for place in (
        "runs/out",
        "./runs/out/",
        "../out",
        "../../runs/out",
        "out",
        ".",
        "..",
        "/elsewhere/runs/out",
    ):
        assert is_of(run, f"{place} at step 4", 4, run, None), place
    for place in ("runs/other", "ns/out", "other/elsewhere/runs/out", "/runs/out"):
        assert not is_of(run, f"{place} at step 4", 4, run, None), place
    (run / "run.yaml").write_text(f"output_dir: {tmp_path}/before\n")  # moved since
    assert is_of(run, f"{tmp_path}/before at step 4", 4, run, None)
    (tmp_path / "before").mkdir()  # another run is there now
    assert not is_of(run, f"{tmp_path}/before at step 4", 4, run, None)
    (run / "run.yaml").write_text("output_dir: runs/out\n")  # of an earlier release
    assert is_of(run, "runs/out at step 4", 4, run, None)
    (run / "run.yaml").unlink()
    assert not is_of(run, "runs/out at step 4", 4, run, None)
    (run / "loop").symlink_to(run / "loop")
    for words in ("a\0b", "~nobody/out", "n" * 5000, f"{run}/loop/x"):
        for name in (words, f"{words} at step 4", f"/{words} at step 4"):
            assert not is_of(run, name, 4, run, None)


@pytest.mark.parametrize("left", ["checkpoint-6", "attention/step-000006"])
def test_a_verdict_of_a_step_that_the_run_went_on_from_is_not_of_its_end(run: Path, left: str):
    words = f"{run} at step 4"
    assert is_of(run, words, 4, run, None)
    (run / left).mkdir(parents=True)
    assert not is_of(run, words, 4, run, None)


def test_a_copy_in_a_runs_folder_is_no_checkpoint_of_it(run: Path):
    words = f"{run} at step 4"
    assert is_of(run, words, 4, run / "checkpoint-4", 4)
    assert not is_of(run, words, 4, run / "mine", 4) and not is_of(run, words, 4, run / "mine", None)


@pytest.mark.parametrize(
    ("place", "step", "beyond"),
    [
        ("{run} at step 4", 4, True),
        ("{run} at step 2", 2, False),  # only the end is made up
        ("{run}: the best, checkpoint-2", 4, True),
        ("{run}", 1, True),
        ("{run}/checkpoint-2", 1, False),
        ("{run}/checkpoint-4", 1, True),
        ("{run}/../other", 1, False),
    ],
)
def test_what_lies_beyond_the_step_that_a_run_goes_on_from(run: Path, place: str, step: int, beyond: bool):
    one = found(run, place.format(run=run), step)
    assert one is not None and judged.lies_beyond(one, run, 2) is beyond
