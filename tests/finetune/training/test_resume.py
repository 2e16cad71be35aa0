"""A run that is killed and started again by the same command ends as if nothing had happened, bit for bit."""

import json
import os
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune.training import run_folder, trainer
from tests.finetune.test_program import program, scalars  # noqa: F401  (a fixture)

STEPS, SAVED, KILLED = (
    7,
    3,
    4,
)  # 3 steps are an epoch: killed in the second, in the middle of a saving interval
LORA = ("--use_lora", "True", "--lora_r", "4", "--lora_dropout", "0.3", "--train_connector", "True")
MODES = {"lora": LORA, "qlora": (*LORA, "--q_lora", "True"), "full": ("--fix_vit", "False")}


@pytest.fixture
def flags(checkpoint_folder: Path, data_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def make(name: str, *more: str) -> list[str]:
        # In bytes and words of no other test: dropout, accumulation, a schedule, and epochs that a checkpoint cuts.
        return [
            "--model_name_or_path", str(checkpoint_folder), "--data_path", str(data_file),
            "--output_dir", str(tmp_path / name), "--per_device_train_batch_size", "2",
            "--gradient_accumulation_steps", "2", "--max_steps", str(STEPS), "--save_steps", str(SAVED),
            "--logging_steps", "1", "--learning_rate", "1e-2", "--warmup_steps", "2", "--disable_tqdm", "True", *more,
        ]  # fmt: skip

    return make


def started(work: Callable[[], int]) -> int:
    """``work`` in a process of its own, forked so that nothing is imported anew; its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of every fork
        child = os.fork()
    if child == 0:
        status = 70
        try:
            status = work()
        except BaseException:  # else the child would go on as a second run of the tests
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    """The exit status of a process, when it has ended; of one that a signal ended, the number below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(program: ModuleType, flags: list[str], number: int, step: int = KILLED) -> int:  # noqa: F811
    """The program in a process of its own, with a signal in the middle of ``step``."""

    def work() -> int:
        # Ignored where the tests run in the background of a script or under nohup.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        training_step = trainer.FinetuneTrainer.training_step

        def then_signalled(self: trainer.FinetuneTrainer, *args, **kwargs):
            if self.state.global_step == step:
                signal.raise_signal(number)
            return training_step(self, *args, **kwargs)

        trainer.FinetuneTrainer.training_step = then_signalled  # type: ignore[method-assign]
        return program.main(flags)

    return status_of(started(work))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def assert_same_run(a: Path, b: Path) -> None:
    curves, resumed = (scalars(folder / "runs") for folder in (a, b))
    for tag in ("train/loss", "train/learning_rate", "train/grad_norm"):
        assert curves[tag] == resumed[tag] and len(curves[tag]) == STEPS
    for folder in (".", f"checkpoint-{STEPS}"):
        there, here = weights(a / folder), weights(b / folder)
        assert there.keys() == here.keys()
        assert [name for name in there if not torch.equal(there[name], here[name])] == []
    states = [torch.load(folder / f"checkpoint-{STEPS}" / "optimizer.pt") for folder in (a, b)]
    moments = [[state["exp_avg_sq"] for state in one["state"].values()] for one in states]
    assert moments[0] and all(torch.equal(x, y) for x, y in zip(*moments, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_killed_run_resumes_bit_for_bit(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],
    tmp_path: Path,
    mode: str,
    number: signal.Signals,
    capfd: pytest.CaptureFixture,
):
    assert program.main(flags("straight", *MODES[mode])) == 0
    again = flags("out", *MODES[mode])
    status = run(program, again, number)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 143)
    out = tmp_path / "out"
    newest = out / f"checkpoint-{SAVED if number == signal.SIGKILL else KILLED + 1}"
    assert run_folder.last_complete(out) == (newest, [])
    shown = capfd.readouterr()
    if number == signal.SIGTERM:
        assert (
            f"SIGTERM: training stops here, saved in {newest}; the same command resumes from it" in shown.err
        )
        assert "Traceback" not in shown.err
    assert program.main(again) == 0
    assert f"resuming from {newest}" in capfd.readouterr().out
    assert_same_run(tmp_path / "straight", out)


def write_probes(folder: Path) -> Path:
    probes = []
    for i in range(3):
        Image.new("RGB", (21, 13 + i), (200, 40 * i, 90)).save(folder / f"probe-{i}.png")
        probes.append(
            {
                "id": f"probe-{i}", "group": "things", "images": [f"probe-{i}.png"], "question": "what?",
                "answer": "yes", "foil": "no", "regions": {"thing": [[2, 3, 11, 9]]},
            }
        )  # fmt: skip
    path = folder / "probes.json"
    path.write_text(json.dumps({"version": 1, "probes": probes}))
    return path


def test_watching_changes_nothing_and_does_not_keep_a_signal_waiting(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
):
    assert program.main(flags("straight", *LORA)) == 0
    probes = ("--monitor", "True", "--probes", str(write_probes(tmp_path)), "--key_layers", "0,1")
    watched = flags("out", *LORA, *probes, "--probe_steps", "1")
    assert run(program, watched, signal.SIGTERM) == 143
    records = [path.name for path in sorted((tmp_path / "out" / "attention").glob("step-*"))]
    assert records == [f"step-{step:06}" for step in range(KILLED + 1)]  # the step that ends is not probed
    assert not (tmp_path / "out" / "comparison").exists()
    assert program.main(watched) == 0
    assert (tmp_path / "out" / "comparison" / "index.html").is_file()
    assert "Not judged" not in (tmp_path / "out" / "README.md").read_text()  # it knows the monitor's words
    assert_same_run(tmp_path / "straight", tmp_path / "out")


def test_an_evaluation_that_a_signal_left_out_is_made_up(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],
    tmp_path: Path,
    data_file: Path,
):
    """The best model is that of the run that was left alone: step 2, where the other one was stopped."""
    each = (
        "--eval_data_path",
        str(data_file),
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--save_steps",
        "2",
    )
    best = ("--load_best_model_at_end", "True", "--greater_is_better", "True")
    assert program.main(flags("straight", *LORA, *each, *best)) == 0
    again = flags("out", *LORA, *each, *best)
    assert run(program, again, signal.SIGTERM, step=1) == 143
    state = tmp_path / "out" / "checkpoint-2" / "trainer_state.json"
    assert "eval_loss" not in state.read_text()
    assert program.main(again) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "out")
    last = json.loads((tmp_path / "out" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert last["best_global_step"] == 2
    assert [one["step"] for one in last["log_history"] if "eval_loss" in one] == [2, 4, 6, 7]


def test_going_on_from_an_earlier_checkpoint_leaves_no_other_branch(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    assert program.main(flags("out", *LORA)) == 0
    out = tmp_path / "out"
    capsys.readouterr()
    branch = flags("out", *LORA, "--label_smoothing_factor", "0.9", "--save_steps", "5")
    named = [*branch, "--resume_from_checkpoint", str(out / "checkpoint-3")]
    assert program.main([*named, "--dry_run", "True"]) == 0
    assert (out / "checkpoint-6").exists()
    assert run(program, named, signal.SIGTERM, step=3) == 143
    assert [path.name for path in run_folder.checkpoints(out)] == ["checkpoint-3", "checkpoint-4"]
    assert (out / "superseded" / "checkpoint-6" / "adapter_model.safetensors").is_file()
    assert program.main(branch) == 0
    assert f"resuming from {out / 'checkpoint-4'}" in capsys.readouterr().out
    smoothed = flags("straight", *LORA, "--label_smoothing_factor", "0.9", "--save_steps", "5")
    more = ("--resume_from_checkpoint", str(out / "checkpoint-3"))
    assert program.main([*smoothed, *more]) == 0
    there, here = weights(tmp_path / "straight"), weights(out)
    assert all(torch.equal(there[name], here[name]) for name in there)


def test_an_adapter_does_not_go_on_over_another_base_without_a_word(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    base = shutil.copytree(checkpoint_folder, tmp_path / "base")
    (path,) = base.glob("*.safetensors")
    same = flags("out", *LORA, "--model_name_or_path", str(base))
    assert run(program, same, signal.SIGTERM) == 143

    def replace(scale: float) -> None:
        save_file({name: scale * t for name, t in load_file(path).items()}, path, {"format": "pt"})

    replace(1.5)
    capsys.readouterr()
    assert program.main(same) == 1
    assert "holds another run:\n  model weights: " in capsys.readouterr().err
    meant = [*same, "--resume_from_checkpoint", "True"]
    assert program.main(meant) == 1
    assert "this adapter was trained on other weights than" in capsys.readouterr().err
    assert program.main([*meant, "--allow_other_base", "True"]) == 0
    assert program.main(same) == 0
    assert "this run is already finished" in capsys.readouterr().out
    replace(0.5)
    assert program.main(same) == 1
