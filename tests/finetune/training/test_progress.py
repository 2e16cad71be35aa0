"""What a terminal shows of training: every number once, and never two bars."""

import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm
from transformers import TrainerControl, TrainerState

from finetune.training.progress import Progress, duration, line

STEP = {
    "loss": 0.29221, "grad_norm": 0.2765, "learning_rate": 0.0024, "waiting for data (share)": 0.1224,
    "epoch": 0.05319, "learning_rate_connector": 0.0024, "learning_rate_language": 0.0024,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "loss 0.292, gradient norm 0.277, rate 0.0024"),
        (
            {"learning_rate_connector": 1e-5},
            "loss 0.292, gradient norm 0.277, rate 0.0024, of the connector 1e-05",
        ),
        (
            {
                "language loss": 0.19,
                "look loss": 0.5,
                "loss by source/towers": 0.31,
                "samples by source/towers": 90,
            },
            "loss 0.292, language loss 0.19, gradient norm 0.277, look loss 0.5, rate 0.0024, towers 0.31",
        ),
        (
            {"waiting for data (share)": 0.42},
            "loss 0.292, gradient norm 0.277, rate 0.0024, 42% of the time waiting for data",
        ),
    ],
)
def test_a_step_is_one_line(more, words):
    assert line(STEP | more, 10, 330) == f"step 10 of 330: {words}"


def test_an_evaluation_and_the_end():
    evaluated = {"eval_loss": 0.4, "eval_loss by source/a": 0.5, "eval_runtime": 3.0, "epoch": 1.0}
    assert line(evaluated, 20, 40) == "step 20 of 40, held out: loss 0.4, a 0.5"
    ended = {"train_runtime": 161.2, "train_samples_per_second": 65.54, "train_loss": 0.1699, "epoch": 3.5}
    assert line(ended, 330, 330) == "trained to step 330 in 2 min 41 s, 65.5 samples a second; mean loss 0.17"
    assert line({"total_flos": 3.0}, 3, 3) == ""
    assert [duration(s) for s in (9.6, 59.6, 3599, 7384)] == ["10 s", "1 min 0 s", "59 min 59 s", "2 h 3 min"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch):
    """Names of the bars that are on the terminal, at each line that is written."""
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(tqdm, "write", lambda words, **_: seen.append(bars()))
    return seen


def bars() -> tuple[str, ...]:
    return tuple(str(one.desc).removesuffix(": ") for one in tqdm._instances)


def events(progress: Progress, steps: int):
    state = TrainerState(max_steps=steps, is_world_process_zero=True)

    def tell(name: str, **more) -> None:
        getattr(progress, f"on_{name}")(SimpleNamespace(), state, TrainerControl(), **more)

    return state, tell


def test_one_bar_at_a_time_that_leaves_when_others_come(shown, capsys):
    progress = Progress(is_shown=True, probe_steps=3)
    state, tell = events(progress, 4)
    tell("train_begin")
    there = []
    for step in range(1, 5):
        tell("step_begin")
        state.global_step = step
        tell("step_end")
        tell("log", logs=STEP)
        there.append(bars())
        assert progress.bar is None or (progress.bar.n, progress.bar.total) == (step, 4)
        if step == 2:
            tell("save")
            assert bars() == ()
    tell("prediction_step", eval_dataloader=[1, 2])
    assert bars() == ("evaluating",)
    tell("evaluate")
    tell("train_end")
    assert there == [("training",), ("training",), (), ("training",)] and bars() == ()  # at step 3 it probes
    assert shown == there and "training: " in capsys.readouterr().err


def test_without_bars_there_are_lines(capsys):
    progress = Progress(is_shown=False)
    state, tell = events(progress, 4)
    tell("train_begin")
    tell("step_begin")
    state.global_step = 1
    tell("step_end")
    tell("prediction_step", eval_dataloader=[1])
    tell("log", logs=STEP)
    told = capsys.readouterr()
    assert told.out == "step 1 of 4: loss 0.292, gradient norm 0.277, rate 0.0024\n" and told.err == ""
    assert bars() == () and "tqdm" in sys.modules


def test_another_process_shows_nothing(capsys):
    progress = Progress(is_shown=True)
    state, tell = events(progress, 4)
    state.is_world_process_zero = False
    for name in ("train_begin", "step_begin", "step_end", "prediction_step"):
        tell(name)
    tell("log", logs=STEP)
    assert capsys.readouterr() == ("", "")
