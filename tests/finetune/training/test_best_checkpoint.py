"""The weights that are kept are those of the best checkpoint, wherever it lies and whatever lies between."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from finetune.data.dataset import ConversationDataset
from finetune.training import run_folder
from finetune.training.best_checkpoint import put_right
from finetune.training.trainer import FinetuneTrainer
from tests.finetune.training.test_resume import weights
from tests.finetune.training.test_trainer import dataset, make  # noqa: F401  (a fixture)

LOSSES = {1: 1.0, 2: 3.0, 3: 2.0, 4: 4.0, 5: 6.0, 6: 5.0}


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's evaluation gives what ``LOSSES`` says."""

    def evaluate(self: FinetuneTrainer, *_) -> dict[str, float]:
        metrics = {"eval_loss": LOSSES[self.state.global_step]}
        self.state.log_history.append({**metrics, "step": self.state.global_step})
        return metrics

    monkeypatch.setattr(FinetuneTrainer, "_evaluate", evaluate)


def built(checkpoint_folder: Path, data: ConversationDataset, folder: Path, **changes) -> FinetuneTrainer:
    best = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2, "max_steps": 4,
        "load_best_model_at_end": True,
    }  # fmt: skip
    return make(checkpoint_folder, data, folder, evaluation=data, **{**best, **changes})


def saved_at_end(trainer: FinetuneTrainer, folder: Path) -> dict[str, torch.Tensor]:
    trainer.save_model(str(folder / "end"))
    return weights(folder / "end")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_evaluation_between_checkpoints_does_not_choose(
    checkpoint_folder: Path,
    dataset: ConversationDataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    """Step 1 is the best of all and not saved: no later checkpoint would beat it, and the last, the worst, be kept."""
    trainer = built(checkpoint_folder, dataset, tmp_path)
    trainer.train()
    state = trainer.state
    assert (state.best_global_step, state.best_metric) == (2, 3.0)
    end = saved_at_end(trainer, tmp_path)
    assert equal(end, weights(tmp_path / "checkpoint-2"))
    assert not equal(end, weights(tmp_path / "checkpoint-4"))
    said = capsys.readouterr().out
    assert (
        "chosen among checkpoints (--save_steps 2); evaluations between them (--eval_steps 1) choose nothing"
        in said
    )
    built(checkpoint_folder, dataset, tmp_path / "each", save_steps=1, max_steps=1).train()
    assert "choose nothing" not in capsys.readouterr().out


def test_each_evaluation_chooses_where_the_best_are_saved(
    checkpoint_folder: Path,
    dataset: ConversationDataset,  # noqa: F811
    tmp_path: Path,
):
    trainer = built(checkpoint_folder, dataset, tmp_path, save_strategy="best", max_steps=3)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("step", [3, 4])
def test_an_evaluation_that_is_made_up_chooses_where_the_run_would_have_saved(
    checkpoint_folder: Path,
    dataset: ConversationDataset,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
):
    """The checkpoint of step 3 is there because a signal came; a run that was left alone has none."""
    monkeypatch.setitem(LOSSES, step, 0.5)
    unevaluated = {"eval_strategy": "no", "load_best_model_at_end": False, "save_steps": 1, "max_steps": step}
    built(checkpoint_folder, dataset, tmp_path, **unevaluated).train()
    trainer = built(checkpoint_folder, dataset, tmp_path, max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert trainer.state.log_history[step]["eval_loss"] == 0.5
    assert trainer.state.best_global_step == 4


def test_a_best_checkpoint_that_moved_with_its_run_is_still_the_best(
    checkpoint_folder: Path,
    dataset: ConversationDataset,  # noqa: F811
    tmp_path: Path,
):
    """A finished run is gone on with to make its report again: no step is left."""
    built(checkpoint_folder, dataset, tmp_path / "old").train()
    there = (tmp_path / "old").rename(tmp_path / "new")
    trainer = built(checkpoint_folder, dataset, there)
    trainer.train(resume_from_checkpoint=str(there / "checkpoint-4"))
    assert trainer.state.best_model_checkpoint == str(there / "checkpoint-2")
    assert equal(saved_at_end(trainer, tmp_path), weights(there / "checkpoint-2"))


def test_a_best_checkpoint_that_is_gone_leaves_its_place_to_the_best_that_is_there(
    checkpoint_folder: Path,
    dataset: ConversationDataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    """As after going on from an earlier step, when another branch's better one had replaced it."""
    built(checkpoint_folder, dataset, tmp_path).train()
    shutil.rmtree(tmp_path / "checkpoint-2")
    trainer = built(checkpoint_folder, dataset, tmp_path, max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (4, 4.0)
    assert equal(saved_at_end(trainer, tmp_path), weights(tmp_path / "checkpoint-4"))
    assert (
        "of step 2 (3), is no checkpoint that is there; of those that are there, checkpoint-4 is the best"
        in (capsys.readouterr().out)
    )


LOG = [
    {"step": 2, "eval_loss": 3.0}, {"step": 2, "eval_exact_match": 0.25}, {"step": 4, "eval_loss": 4.0},
    {"step": 4, "eval_exact_match": 0.75}, {"step": 6, "eval_loss": float("nan")}, {"step": 6, "loss": 0.1},
]  # fmt: skip


def state_of(best: int, value: float, **changes) -> TrainerState:
    return TrainerState(
        global_step=6,
        best_global_step=best,
        best_metric=value,
        log_history=[*LOG],
        best_model_checkpoint=None,
        **changes,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (2, 4, 6):
        saved(tmp_path / f"checkpoint-{step}", step)
    return tmp_path


def saved(checkpoint: Path, step: int, log: list[dict[str, float]] = LOG) -> Path:
    checkpoint.mkdir(parents=True)
    content = {"global_step": step, "log_history": [one for one in log if one["step"] <= step]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(content))
    run_folder.mark_complete(checkpoint, processes=1)
    return checkpoint


def test_a_best_by_another_metric_is_none(run: Path):
    """0.25 right answers would stay the best loss of any."""
    state = state_of(4, 0.75)
    assert "was not chosen by eval_loss; " in put_right(
        state, run / "checkpoint-6", "eval_loss", greater=False
    )
    assert (state.best_global_step, state.best_metric) == (2, 3.0)
    state = state_of(2, 3.0)
    put_right(state, run / "checkpoint-6", "eval_exact_match", greater=True)
    assert (state.best_model_checkpoint, state.best_metric) == (str(run / "checkpoint-4"), 0.75)


def test_a_best_by_the_other_direction_is_none(run: Path):
    """A run that goes on with another --greater_is_better: what was the best is the worst."""
    state = state_of(4, 4.0)
    assert put_right(state, run / "checkpoint-6", "eval_loss", greater=False) == (
        "the best so far, of step 4 (4), was not chosen by the smallest eval_loss (--greater_is_better False); "
        "of those that are there, checkpoint-2 is the best (eval_loss 3)"
    )
    assert (state.best_model_checkpoint, state.best_global_step, state.best_metric) == (
        str(run / "checkpoint-2"), 2, 3.0,
    )  # fmt: skip
    state = state_of(2, 3.0)
    assert "the largest eval_loss (--greater_is_better True)" in put_right(
        state, run / "checkpoint-6", "eval_loss", greater=True
    )
    assert (state.best_global_step, state.best_metric) == (4, 4.0)
    shutil.rmtree(run / "checkpoint-2")  # a value whose weights are gone beats none
    state = state_of(4, 4.0)
    assert put_right(state, run / "checkpoint-6", "eval_loss", greater=False) == ""
    assert (state.best_model_checkpoint, state.best_metric) == (str(run / "checkpoint-4"), 4.0)


def test_a_checkpoint_that_was_evaluated_after_it_was_saved_does_not_replace_the_best(tmp_path: Path):
    """A signal stopped the run at step 3, where it would not have saved; its evaluation was made up for later."""
    log = [{"step": 2, "eval_loss": 3.0}, {"step": 3, "eval_loss": 0.5}, {"step": 4, "eval_loss": 2.0}]
    saved(tmp_path / "checkpoint-3", 3, log[:1])
    saved(tmp_path / "checkpoint-4", 4, log)
    state = TrainerState(global_step=4, best_global_step=4, best_metric=2.0, log_history=log)
    assert put_right(state, tmp_path / "checkpoint-4", "eval_loss", greater=False) == ""
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-4")


def test_a_best_by_a_metric_that_was_not_asked_of_it_is_none(run: Path):
    """A loss of 3 would stay the largest share of right answers."""
    state = state_of(2, 3.0)
    state.log_history = [one for one in LOG if "eval_exact_match" not in one]
    for step in (2, 4, 6):
        shutil.rmtree(run / f"checkpoint-{step}")
        saved(run / f"checkpoint-{step}", step, state.log_history)
    words = put_right(state, run / "checkpoint-6", "eval_exact_match", greater=True)
    assert "was not chosen by eval_exact_match; no other that is there was evaluated" in words
    assert (state.best_model_checkpoint, state.best_metric) == (None, None)


def test_a_checkpoint_of_another_training_is_not_taken_for_the_best(run: Path, tmp_path: Path):
    """Of a branch that was left, or of another run, with the same step in its name."""
    other = [{**LOG[0], "eval_loss": 2.5}, *LOG[1:]]
    beside = tmp_path / "superseded"
    saved(beside / "checkpoint-2", 2, other)
    own = saved(beside / "checkpoint-2-2", 2)
    newest = saved(beside / "checkpoint-6-2", 6)
    state = state_of(2, 3.0)
    assert put_right(state, newest, "eval_loss", greater=False) == ""
    assert state.best_model_checkpoint == str(own)
    saved(beside / "checkpoint-4", 4, [])  # of a run that logged nothing by then
    state = state_of(4, 4.0)
    assert "is no checkpoint that is there" in put_right(state, newest, "eval_loss", greater=False)
    shutil.rmtree(own)
    state = state_of(2, 3.0)
    assert "is no checkpoint that is there" in put_right(state, newest, "eval_loss", greater=False)


def test_the_best_lies_beside_the_checkpoint_that_a_link_points_to(run: Path, tmp_path: Path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "latest"
    link.symlink_to(run / "checkpoint-6")
    state = state_of(2, 3.0)
    assert put_right(state, link, "eval_loss", greater=False) == ""
    assert state.best_model_checkpoint == str(run / "checkpoint-2")


def test_without_an_evaluated_checkpoint_there_is_no_best(run: Path):
    """Nor is one that was not written to its end; the value of one that is gone would keep all others out."""
    (run / "checkpoint-2" / "complete.json").unlink()
    shutil.rmtree(run / "checkpoint-4")
    state = state_of(4, 4.0)
    words = put_right(state, run / "checkpoint-6", "eval_loss", greater=False)
    assert words.endswith("no other that is there was evaluated: the best is chosen from here on")
    assert (state.best_model_checkpoint, state.best_global_step, state.best_metric) == (None, None, None)


def test_the_best_of_an_earlier_release_may_have_had_no_checkpoint(run: Path):
    """Its path was then of the best one before, and no later checkpoint could take its place."""
    state = state_of(3, 1.0)
    state.log_history.append({"step": 3, "eval_loss": 1.0})
    state.best_model_checkpoint = str(run / "checkpoint-4")
    put_right(state, run / "checkpoint-6", "eval_loss", greater=False)
    assert (state.best_model_checkpoint, state.best_metric) == (str(run / "checkpoint-2"), 3.0)


def test_a_best_that_is_there_stays_without_a_word(run: Path, tmp_path: Path):
    state = state_of(2, 3.0)
    assert put_right(state, run / "checkpoint-6", "eval_loss", greater=False) == ""
    assert (state.best_model_checkpoint, state.best_metric) == (str(run / "checkpoint-2"), 3.0)
    copied = Path(shutil.copytree(run / "checkpoint-6", tmp_path / "other" / "mine"))
    state = state_of(2, 3.0)
    state.best_model_checkpoint = str(run / "checkpoint-2")  # of another folder, where it still is
    assert put_right(state, copied, "eval_loss", greater=False) == ""
    assert state.best_model_checkpoint == str(run / "checkpoint-2")
    assert put_right(TrainerState(global_step=6), copied, "eval_loss", greater=False) == ""
