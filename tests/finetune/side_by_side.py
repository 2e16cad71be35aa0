"""Small runs that are started as one process by a test and as two by this file, to be compared.

python -m tests.finetune.side_by_side CHECKPOINT DATA OUT SCENARIO ...   (with what torch.distributed reads set)
"""

import functools
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune.data.dataset import build_dataset
from finetune.data.mixture import Mixture, Source
from finetune.families.qwen_vl import QwenVLFamily
from finetune.flags.arguments import TrainingArguments
from finetune.model import checkpoint
from finetune.model.adaptation import Plan, adapt
from finetune.qwen_vl.modeling import QwenVLModel
from finetune.samples.source import read
from finetune.training.trainer import FinetuneTrainer, build_trainer

ROOT = Path(__file__).parents[2]
FAMILY = QwenVLFamily()
EPOCHS, STEP_ROWS = 2, 4

FSDP = {
    "fsdp": True,
    "fsdp_config": {"transformer_layer_cls_to_wrap": ["QwenVLBlock", "VisionBlock"]},
}

SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "packed": {"packing": True},
    "fsdp": FSDP,
    "zero-3": {"deepspeed": str(ROOT / "ds_config_zero3.json")},
    "zero-3 adapters": {
        "deepspeed": str(ROOT / "ds_config_zero3.json"),
        "plan": Plan(vision="frozen", connector="full", language="lora", rank=4, dropout=0.0),
    },
}
"""Changes to a run whose steps have ``STEP_ROWS`` rows, of texts and pictures, over all processes."""


def start_afresh() -> None:
    """Forget how the last run was shared out: accelerate keeps that for the life of a process, and transformers, which
    loads weights in shards where it is ZeRO-3, for as long as the last run's arguments are there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        del os.environ[name]


def share_out_by_fsdp(trainer: FinetuneTrainer) -> None:
    """accelerate takes FSDP on GPUs alone, and plain DDP on a CPU; torch's FSDP works on both."""
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def run(checkpoint_folder: Path, data: Path, out: Path, scenario: str) -> dict[str, Any]:
    """Train vision tower, connector and language model; some batches of one process have no picture. Returns the logs.

    Qwen-VL's own help for batches without pictures is off, since other families have none.
    """
    start_afresh()
    settings = dict(SCENARIOS[scenario])
    packing = settings.pop("packing", False)
    accumulation = settings.get("gradient_accumulation_steps", 1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(3)
    model, processor = checkpoint.load(checkpoint_folder, for_training=True)
    conversations = list(read(data, say=lambda _: None))
    mixed = Mixture(
        [Source("base", conversations, "base"), Source("text", conversations[::3], "corrective", None, 2)], 7
    )
    dataset = build_dataset(mixed, processor, FAMILY, max_length=250, on_bad_sample="error")
    plan = settings.pop("plan", Plan(vision="full", connector="full", language="full"))
    args = TrainingArguments(
        output_dir=str(out / scenario), report_to="none", num_train_epochs=EPOCHS, learning_rate=1e-3, logging_steps=1,
        per_device_train_batch_size=STEP_ROWS // world // accumulation, per_device_eval_batch_size=2,
        save_strategy="no", disable_tqdm=True, seed=5, max_grad_norm=1.0, optim="sgd", **settings,
    )  # fmt: skip
    model = adapt(model, FAMILY, plan, master_weights="deepspeed" not in settings)
    trainer = build_trainer(model, processor, args, dataset, dataset, packing=packing)
    if scenario == "fsdp":
        share_out_by_fsdp(trainer)
    with patch.object(QwenVLModel, "_eye_must_run", lambda self: False):
        trainer.train()
        trainer.evaluate()
    if plan.lora:
        trainer.save_model()
    shards = [p for p in trainer.model.parameters() if hasattr(p, "ds_id") or isinstance(p, DTensor)]
    names = ("loss", "grad_norm", "loss by source/", "samples by source/", "eval_loss")
    return {
        "logs": [
            {name: value for name, value in entry.items() if name.startswith(names)}
            for entry in trainer.state.log_history
            if "loss" in entry or "eval_loss" in entry
        ],
        "steps": trainer.state.global_step,
        "blank": trainer._all_must_see(),
        "shards": len(shards),
    }


def two_processes_folder(data: Path, scenarios: tuple[str, ...]) -> Path:
    """What the runs of two processes leave: a folder for each scenario."""
    return data.parent / f"two processes, {', '.join(scenarios)}"


@functools.cache
def in_two_processes(
    checkpoint_folder: Path, data: Path, scenarios: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Results of the first of two processes, for each scenario. Started once for the tests of a file."""
    out = two_processes_folder(data, scenarios)
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tests.finetune.side_by_side",
        str(checkpoint_folder),
        str(data),
        str(out),
        *scenarios,
    ]
    shared = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore",
        "TORCH_EXTENSIONS_DIR": str(ROOT / ".venv" / "torch_extensions"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(error[-3000:] for _, error in said)
    return json.loads((out / "found.json").read_text())


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same steps, losses, norms of gradients and counts, whatever the rounding of sums in another order."""
    assert one["steps"] == other["steps"] == len([entry for entry in one["logs"] if "loss" in entry])
    for here, there in zip(one["logs"], other["logs"], strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            assert math.isclose(value, there[name], rel_tol=5e-6), (name, value, there[name])


if __name__ == "__main__":
    folder, data, out = map(Path, sys.argv[1:4])
    found = {scenario: run(folder, data, out, scenario) for scenario in sys.argv[4:]}
    if os.environ["RANK"] == "0":
        (out / "found.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of gloo and DeepSpeed abort the interpreter's end now and then
