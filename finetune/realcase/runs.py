"""The trainings of the real case, each a run of finetune.py that goes on where it stopped."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

Arm = Literal["language", "look"]
ROOT = Path(__file__).parents[2]

TRAINING = {
    "use_lora": "True",
    "lora_r": "16",
    "lora_alpha": "32",
    "lora_dropout": "0",
    "lora_target_modules": "q_proj k_proj v_proj o_proj",
    "train_connector": "True",
    "learning_rate": "1e-3",
    "connector_learning_rate": "3e-4",
    "weight_decay": "0.01",
    "per_device_train_batch_size": "8",
    "gradient_accumulation_steps": "1",
    "warmup_steps": "20",
    # Not falling: every checkpoint is what a run of that length gives, and the curve is one.
    "lr_scheduler_type": "constant_with_warmup",
    "max_grad_norm": "1",
    "logging_steps": "10",
    "save_strategy": "steps",
    "model_max_length": "256",
}
LOOK_LAYERS = (8, 12, 16, 20, 24)
"""Of 30: supervised. Attention is judged in the others."""


class Run(NamedTuple):
    """One training."""

    arm: Arm
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def runs_of(work: Path, arms: Iterable[Arm], seeds: Iterable[int]) -> list[Run]:
    """Seeds outermost, so that both arms of a seed are there first."""
    arms = list(arms)
    return [Run(arm, seed, work / "runs" / f"{arm}-{seed}") for seed in seeds for arm in arms]


def command(
    run: Run, model: Path, data: Path, *, steps: int, save_steps: int, look_weight: float, bf16: bool
) -> list[str]:
    """finetune.py and its flags. The two arms differ in the weight of attention supervision alone."""
    flags = training_flags(
        model, data, run.folder, steps=steps, save_steps=save_steps, seed=run.seed, bf16=bf16
    )
    if run.arm == "look":
        # Not released at the end: a curve needs checkpoints that are alike.
        flags += [*look_flags(look_weight), *(["--look_release", "0"] if look_weight else [])]
    return [sys.executable, str(ROOT / "finetune.py"), *flags]


def training_flags(
    model: Path, data: Path, folder: Path, *, steps: int, save_steps: int, bf16: bool, seed: int = 0
) -> list[str]:
    given = {
        "model_name_or_path": str(model),
        "data_path": str(data),
        "output_dir": str(folder),
        "max_steps": str(steps),
        "save_steps": str(save_steps),
        "seed": str(seed),
        "bf16": str(bf16),
    }
    found = []
    for name, value in given.items():
        found += [f"--{name}", value]
    for name, value in TRAINING.items():
        found += [f"--{name}", *value.split()]
    return found


def multiplies_in_bf16() -> bool:
    """Does the machine multiply matrices in bfloat16, rather than by way of float32?"""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def look_flags(weight: float) -> list[str]:
    """None at weight 0, as where nothing is supervised finetune.py refuses layers for it."""
    return (
        []
        if weight == 0
        else ["--look_weight", f"{weight:g}", "--look_layers", ",".join(map(str, LOOK_LAYERS))]
    )


def call(name: str, argv: Sequence[str]) -> None:
    """Run a program of the project. Trainings begin, go on, or are found finished.

    Raises:
        ValueError: it ended with another status than 0.
    """
    print(f"{name}: {shlex.join(argv)}", flush=True)
    status = subprocess.run(argv, cwd=ROOT, check=False).returncode
    if status:
        raise ValueError(
            f"{name} ended with status {status}. What it refused stands above; where it was stopped, the same command "
            "goes on from there"
        )


def checkpoints(run: Run) -> dict[int, Path]:
    """Step → adapter folder, of the checkpoints that are there."""
    found = {int(one.name.removeprefix("checkpoint-")): one for one in run.folder.glob("checkpoint-*")}
    return dict(sorted(found.items()))
