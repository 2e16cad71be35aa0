"""Several processes and machines: one run, as one process would have it, whichever of them is told to stop."""

# ruff: noqa: F811 (fixtures of another file)

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import PartialState
from safetensors.numpy import load_file

from diagnostics import AttentionMonitor, AttentionRecord
from finetune.model.look_file import supervised_of
from finetune.training import run_folder, trainer
from tests.finetune.conftest import with_boxes, write_checkpoint, write_data
from tests.finetune.test_program import environment, program, scalars  # noqa: F401
from tests.finetune.training.test_resume import started, status_of, write_probes

ROOT = Path(__file__).parents[1]
STEPS = 4


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    folder = tmp_path_factory.mktemp("parts")
    model, data = write_checkpoint(folder / "tiny"), with_boxes(write_data(folder / "data"))

    def make(out: Path, size: int, *more: str) -> list[str]:
        return [
            "--model_name_or_path", str(model), "--data_path", str(data), "--output_dir", str(out),
            "--per_device_train_batch_size", str(size), "--max_steps", str(STEPS), "--save_steps", "2",
            "--logging_steps", "1", "--learning_rate", "1e-2", "--use_lora", "True", "--lora_r", "4",
            "--lora_dropout", "0", "--disable_tqdm", "True", *more,
        ]  # fmt: skip

    return make


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def losses(folder: Path) -> list[float]:
    curve = scalars(folder / "runs")["train/loss"]
    assert list(curve) == [1, 2, 3, 4]
    return list(curve.values())


def machine(rank: int, port: int, flags: list[str]) -> subprocess.Popen[str]:
    """One launch, by the scripts' own ``launch``, over the Python of the tests."""
    code = (
        f"source '{ROOT}/scripts/launch.sh'; VENV='{Path(sys.executable).parents[1]}' GPUS=0 CORES=1 PRECISION=none; "
        'launch deepspeed "$@"'
    )
    where = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        ["bash", "-c", code, "launch", *flags], env=environment(GPUS_PER_NODE="1", **where),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip


def test_two_machines_train_as_one_process_does(program: ModuleType, flags, tmp_path: Path):
    """They have no disk in common: the second keeps its random state, and needs nothing else."""
    looking = ("--look_weight", "0.5", "--look_layers", "all")
    assert program.main(flags(tmp_path / "one", 4, *looking)) == 0
    port = free_port()
    both = [
        machine(rank, port, flags(tmp_path / name, 2, *looking))
        for rank, name in enumerate(("two", "elsewhere"))
    ]
    said = [one.communicate(timeout=400)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert "language: adapters" in said[0] and "language: adapters" not in said[1]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert run_folder.last_complete(tmp_path / "two") == (tmp_path / "two" / "checkpoint-4", [])
    left = {
        path.relative_to(tmp_path / "elsewhere").as_posix() for path in (tmp_path / "elsewhere").rglob("*.*")
    }
    assert left == {"checkpoint-2/rng_state_1.pth", "checkpoint-4/rng_state_1.pth"}


def ranks(
    program: ModuleType, flags: list[str], *, signalled: int | None = None, apart: bool = False
) -> list[int]:
    """Two processes of one run, forked, and their exit statuses.

    signalled   the one that gets SIGTERM in its third step
    apart       the second does not see the first's checkpoints
    """
    port = free_port()

    def work(rank: int) -> int:
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in place.items()})
        PartialState._reset_state()
        if apart and rank == 1:
            run_folder.STATE_FILE = "on another disk"
        training_step = trainer.FinetuneTrainer.training_step

        def then_signalled(self: trainer.FinetuneTrainer, *args, **kwargs):
            if rank == signalled and self.state.global_step == 2:
                signal.raise_signal(signal.SIGTERM)
            return training_step(self, *args, **kwargs)

        trainer.FinetuneTrainer.training_step = then_signalled  # type: ignore[method-assign]
        return program.main(flags)

    return [status_of(child) for child in [started(lambda rank=rank: work(rank)) for rank in (0, 1)]]


def records(folder: Path) -> dict[str, dict[str, list[float]]]:
    found = {path.relative_to(folder).as_posix(): load_file(path) for path in folder.rglob("*.safetensors")}
    return {
        name: {key: array.astype(float).ravel().tolist() for key, array in one.items()}
        for name, one in found.items()
    }


def test_probes_are_shared_out_and_the_records_do_not_tell(
    program: ModuleType, flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for drawing in ("_open_board", "_show", "_finish"):  # takes longer than all the rest
        monkeypatch.setattr(AttentionMonitor, drawing, lambda *_: None)
    watched = ("--monitor", "True", "--probes", str(write_probes(tmp_path)))
    watched += ("--look_weight", "0.5")  # in the key layers, which the monitor chooses
    assert program.main(flags(tmp_path / "one", 4, *watched)) == 0
    assert ranks(program, flags(tmp_path / "two", 2, *watched)) == [0, 0]
    shown = [scalars(tmp_path / name / "runs") for name in ("one", "two")]
    for name in ("train/loss", "train/look loss", "train/look mass by source/data"):
        here, there = (one[name] for one in shown)
        assert [*here] == [*there] and len(here) >= 3, name  # in the last step the weight is 0
        assert [*there.values()] == pytest.approx([*here.values()], abs=1e-4), name
    for folder in (tmp_path / "two", tmp_path / "two" / "checkpoint-2"):
        trained = supervised_of(folder)
        assert trained is not None and (trained.layers, len(trained.pictures or ())) == ((0, 1), 8)
    steps = [
        sorted((tmp_path / "two" / "attention" / f"step-{at:06d}").glob("*.safetensors")) for at in (0, 4)
    ]
    assert [AttentionRecord.load(some[0]).supervised_layers for some in steps] == [(), (0, 1)]
    one, two = (records(tmp_path / name / "attention") for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 3 * 3  # three probes, at steps 0, 2 and 4
    for name, arrays in one.items():
        assert arrays.keys() == two[name].keys() and len(arrays) > 3
        for key, values in arrays.items():
            assert two[name][key] == pytest.approx(values, abs=2e-3), (name, key)


def test_one_process_that_is_told_to_stop_stops_all(
    program: ModuleType, flags, tmp_path: Path, capfd: pytest.CaptureFixture
):
    again = flags(tmp_path / "out", 2)
    assert ranks(program, again, signalled=1) == [143, 143]
    newest = tmp_path / "out" / "checkpoint-3"
    assert run_folder.last_complete(tmp_path / "out") == (newest, [])
    assert capfd.readouterr().err.count("SIGTERM: training stops here") == 1

    # A machine without that checkpoint is named, and none trains.
    assert ranks(program, again, apart=True) == [1, 1]
    error = capfd.readouterr().err
    assert f"{newest}: missing on {socket.gethostname()}; copy it there" in error
    assert "--save_on_each_node True" in error and error.count("finetune.py: ") == 1

    assert ranks(program, again) == [0, 0]
    assert f"resuming from {newest}" in capfd.readouterr().out
    assert ranks(program, flags(tmp_path / "straight", 2)) == [0, 0]
    assert losses(tmp_path / "out") == losses(tmp_path / "straight")
