"""A model has the same marks sharded and whole: ZeRO-3 and FSDP 2 are gathered, FSDP 1 is not compared."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from diagnostics.records.identity import (
    ModelMarks,
    model_difference,
    model_marks,
)
from diagnostics.records.probe_marks import probe_differences, probe_marks
from diagnostics.records.probes import Probe

ROOT = Path(__file__).parents[3]
NOT_COMPARED = ModelMarks(None, None, None)


def tiny(*, frozen: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 300), nn.Linear(300, 301), nn.LayerNorm(301), nn.Linear(301, 5))
    model[0].requires_grad_(not frozen)
    return model


@pytest.fixture(scope="module")
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: nn.Sequential) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def test_fsdp_2_has_the_marks_of_the_whole_model_also_after_save_and_load(alone):
    before = model_marks(tiny())
    model = sharded(tiny())
    assert model_marks(model) == before
    saved = {name: values.clone() for name, values in get_model_state_dict(model).items()}
    with torch.no_grad():
        model[3].weight.add_(1)
    moved = model_marks(model)
    assert (moved.shapes, moved.frozen) == (before.shapes, before.frozen) and moved.trained != before.trained
    assert model_difference(before, moved) is None
    set_model_state_dict(model, saved)
    assert model_marks(model) == before
    with torch.no_grad():
        model[0].weight.add_(1)
    assert model_difference(before, model_marks(model)) is not None


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.parametrize("policy", [None, ModuleWrapPolicy({nn.Linear})], ids=["whole", "by layer"])
def test_under_fsdp_1_a_model_is_not_compared(alone, use_orig_params, policy):
    model = tiny(frozen=False)
    wrapped = FullyShardedDataParallel(
        model, use_orig_params=use_orig_params, auto_wrap_policy=policy, device_id=torch.device("cpu")
    )
    for seen in (wrapped, model):
        assert model_marks(seen) == NOT_COMPARED
    assert model_difference(NOT_COMPARED, model_marks(tiny())) is None


ZERO_3 = """
import os, sys
sys.path.insert(0, {root!r})
import deepspeed, torch, torch.distributed as dist
from tests.diagnostics.records.test_identity import model_marks, tiny
before = model_marks(tiny())
dist.init_process_group("gloo")
options = {{
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {{"type": "Adam", "params": {{"lr": 0.001, "torch_adam": True}}}},
    "zero_optimization": {{"stage": 3, "stage3_param_persistence_threshold": 0}},
    "zero_force_ds_cpu_optimizer": False,
}}
model = tiny()
trained = [one for one in model.parameters() if one.requires_grad]
engine = deepspeed.initialize(model=model, config=options, model_parameters=trained)[0]
assert all(one.numel() == 0 for one in engine.parameters()), "nothing is sharded"
assert model_marks(engine) == model_marks(engine.module) == before
engine.save_checkpoint({folder!r})
engine.backward(engine(torch.ones(2, 7)).square().sum())
engine.step()
moved = model_marks(engine)
assert (moved.shapes, moved.frozen) == (before.shapes, before.frozen) and moved.trained != before.trained
engine.load_checkpoint({folder!r})
assert model_marks(engine) == before
assert all(one.numel() == 0 for one in engine.parameters()), "gathered for good"
dist.barrier()
sys.stdout.flush()
os._exit(0)  # threads of gloo and DeepSpeed abort the interpreter's end now and then: "terminate called without …"
"""


def test_zero_3_has_the_marks_of_the_whole_model_also_after_save_and_load(tmp_path):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(ROOT / ".venv" / "torch_extensions")}
    code = ZERO_3.format(root=str(ROOT), folder=str(tmp_path))
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in started:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in started:
            process.kill()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_probe_s_mark_holds_its_spellings_and_is_as_before_where_it_has_one(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    probe = Probe("p", "g", (tmp_path / "a.png",), "which?", "Pearl", "Canton")
    several = replace(probe, spellings=("Pearl", "Oriental Pearl"))
    content = {
        "question": "which?", "answer": "Pearl", "foil": "Canton", "regions": {}, "phrases": {}, "relation": None,
        "pictures": [hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()],
    }  # fmt: skip
    [mark] = probe_marks([probe]).values()
    assert mark == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    assert probe_marks([several])["p"] != mark
    assert probe_differences({"p": mark}, probe_marks([several])) is not None
