"""Signals: which end training with a checkpoint, which at once, and the messages."""

# ruff: noqa: F811 (fixtures of another file)

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import TrainerControl, TrainerState

from finetune.flags.arguments import TrainingArguments
from finetune.training import run_folder, stopping
from finetune.training.stopping import StopOnSignal, Stopped
from tests.finetune.test_program import program  # noqa: F401
from tests.finetune.training.test_resume import KILLED, SAVED, flags, run, started, status_of  # noqa: F401


@pytest.fixture
def events(tmp_path: Path) -> Iterator[tuple[TrainingArguments, TrainerState, TrainerControl]]:
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    yield args, TrainerState(global_step=7), TrainerControl(should_evaluate=True)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_waits_for_the_end_of_the_step_and_for_its_checkpoint(
    events, tmp_path: Path, number, status: int
):
    args, state, control = events
    stop = StopOnSignal()
    stop.on_step_begin(args, state, control)
    stop.on_step_end(args, state, control)
    stop.on_save(args, state, control)  # one that was due
    assert control == TrainerControl(should_evaluate=True)
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)  # the same, by another way
    stop.on_step_end(args, state, control)
    assert control.should_save and control.should_log and control.should_training_stop
    assert not control.should_evaluate
    with pytest.raises(
        Stopped, match=rf"{number.name}: training stops here, saved in .*checkpoint-7; the same"
    ) as caught:
        stop.on_save(args, state, control)
    assert caught.value.status == status and caught.value.checkpoint == tmp_path / "checkpoint-7"


def test_signals_are_given_back_and_were_not_taken_before_the_first_step(events):
    args, state, control = events
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    stop = StopOnSignal()
    stop.on_train_begin(args, state, control)
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    stop.on_step_begin(args, state, control)
    stop.on_step_begin(args, state, control)
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == [stop._receive, stop._receive]
    stop.on_train_end(args, state, control)
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_a_second_signal_ends_at_once(events, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "SAME_SECONDS", 0.01)

    def work() -> int:
        StopOnSignal().on_step_begin(*events)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    assert status_of(started(work)) == -signal.SIGTERM


def test_ctrl_c_is_a_line_that_says_how_to_go_on(
    program: ModuleType, flags: Callable[..., list[str]], tmp_path: Path, capfd: pytest.CaptureFixture
):
    again = flags("out", "--use_lora", "True", "--lora_r", "4")
    assert run(program, again, signal.SIGINT, step=1) == 130
    assert capfd.readouterr().err.endswith(
        "finetune.py: interrupted; no checkpoint was written, so the same command starts over\n"
    )
    assert run(program, again, signal.SIGINT) == 130
    error = capfd.readouterr().err
    newest = tmp_path / "out" / f"checkpoint-{SAVED}"
    assert error.endswith(f"\nfinetune.py: interrupted; the same command resumes from {newest}\n")
    assert "Traceback" not in error
    assert run_folder.last_complete(tmp_path / "out") == (newest, [])


def test_a_stop_signal_saves_even_without_scheduled_checkpoints(
    program: ModuleType, flags: Callable[..., list[str]], tmp_path: Path
):
    again = flags("out", "--use_lora", "True", "--lora_r", "4", "--save_strategy", "no")
    assert run(program, again, signal.SIGUSR1) == 138
    assert run_folder.last_complete(tmp_path / "out") == (tmp_path / "out" / f"checkpoint-{KILLED + 1}", [])
    assert program.main(again) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "the same command resumes from it"),
        ({"resume_from_checkpoint": "True"}, "the same command resumes from it"),
        ({"resume_from_checkpoint": "OUT/checkpoint-7"}, "the same command resumes from it"),
        (
            {"overwrite_output_dir": True},
            "the same command without --overwrite_output_dir True (it deletes every checkpoint) resumes from it",
        ),
        (
            {"resume_from_checkpoint": "OUT/checkpoint-2"},
            "the same command with --resume_from_checkpoint True in place of OUT/checkpoint-2 resumes from it",
        ),
        (
            {"overwrite_output_dir": True, "resume_from_checkpoint": "best"},
            "the same command without --overwrite_output_dir True (it deletes every checkpoint) and with "
            "--resume_from_checkpoint True in place of best resumes from it",
        ),
        (
            {"save_only_model": True},
            "it holds weights alone (--save_only_model True), so no run resumes from it",
        ),
    ],
)
def test_what_continues_from_a_checkpoint_is_said_by_the_flags_of_the_command(
    events, tmp_path: Path, flags: dict, words: str
):
    flags = {
        name: str(tmp_path).join(v.split("OUT")) if isinstance(v, str) else v for name, v in flags.items()
    }
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", **flags)
    stop = StopOnSignal()
    stop.on_step_begin(args, *events[1:])
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught:
        stop.on_save(args, *events[1:])
    assert words.replace("OUT", str(tmp_path)) in str(caught.value)


def test_ctrl_c_without_a_checkpoint_to_resume_from(tmp_path: Path):
    def said(**flags) -> str:
        return stopping.interrupted(TrainingArguments(output_dir=str(tmp_path), report_to="none", **flags))

    assert said(resume_from_checkpoint="best").endswith("so the same command starts from best again")
    (tmp_path / "checkpoint-7").mkdir()
    assert f"{tmp_path / 'checkpoint-7'}; it holds weights alone" in said(save_only_model=True)
