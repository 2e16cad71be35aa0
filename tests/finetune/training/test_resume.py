"""A run that is killed and started again by the same command ends as if nothing had happened, bit for bit."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

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
        os._exit(work())
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
    assert_same_run(tmp_path / "straight", tmp_path / "out")
