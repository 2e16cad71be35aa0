"""Small runs that are started as one process by a test and as two by this file, to be compared.

python side_by_side.py CHECKPOINT DATA OUT SCENARIO ...     (with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set)
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch

from finetune import checkpoint
from finetune.adaptation import Plan, adapt
from finetune.arguments import TrainingArguments
from finetune.data import build_dataset
from finetune.families.qwen_vl import QwenVLFamily
from finetune.mixture import Mixture, Source
from finetune.reading import read
from finetune.trainer import build_trainer

FAMILY = QwenVLFamily()
EPOCHS, STEP_ROWS = 2, 4

FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                                      "transformer_layer_cls_to_wrap": ["QwenVLBlock", "VisionBlock"]}}  # fmt: skip

SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "packed": {"packing": True},
    "sharded": FSDP,
    "zero-3": {"deepspeed": str(ROOT / "ds_config_zero3.json")},
}
"""Changes to a run whose steps have ``STEP_ROWS`` rows, of texts and pictures, over all processes."""


def run(checkpoint_folder: Path, data: Path, out: Path, scenario: str) -> dict[str, Any]:
    """Train the eye, the connector and adapters; returns what was logged and the trained weights' fingerprints."""
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
    plan = Plan(vision="full", connector="full", language="full")
    args = TrainingArguments(
        output_dir=str(out / scenario), report_to="none", num_train_epochs=EPOCHS, learning_rate=1e-3, logging_steps=1,
        per_device_train_batch_size=STEP_ROWS // world // accumulation, per_device_eval_batch_size=2, save_strategy="no",
        disable_tqdm=True, seed=5, max_grad_norm=1.0, optim="sgd", **settings,
    )  # fmt: skip
    model = adapt(model, FAMILY, plan, master_weights="deepspeed" not in settings)
    trainer = build_trainer(model, processor, args, dataset, dataset, packing=packing)
    trainer.train()
    if scenario != "zero-3":
        trainer.evaluate()
    names = ("loss", "grad_norm", "loss by source/", "samples by source/", "eval_loss")
    return {
        "logs": [
            {name: value for name, value in entry.items() if name.startswith(names)}
            for entry in trainer.state.log_history
            if "loss" in entry or "eval_loss" in entry
        ],
        "steps": trainer.state.global_step,
        "blank": trainer._all_must_see(),
    }


def in_two_processes(
    checkpoint_folder: Path, data: Path, out: Path, *scenarios: str
) -> dict[str, dict[str, Any]]:
    """What the first of two processes found, of each scenario."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(checkpoint_folder), str(data), str(out), *scenarios]
    shared = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore",
        "TORCH_EXTENSIONS_DIR": str(ROOT / ".venv" / "torch_extensions"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            command,
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


if __name__ == "__main__":
    folder, data, out = map(Path, sys.argv[1:4])
    found = {scenario: run(folder, data, out, scenario) for scenario in sys.argv[4:]}
    if os.environ["RANK"] == "0":
        (out / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
