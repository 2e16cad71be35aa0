"""Trouble: training that goes on from a checkpoint has lost the projector, or is another training than before.

Promise: every trained tensor is in every checkpoint, and a run that was killed ends as if it had not been, to the bit.
"""

# ruff: noqa: F811 (fixtures of another file)

import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file

from finetune.training import run_folder
from tests.finetune.test_program import program  # noqa: F401
from tests.finetune.training.test_resume import flags, run  # noqa: F401

PROJECTOR = ("--use_lora", "True", "--lora_r", "4", "--lora_dropout", "0.2", "--train_connector", "True")


def test_the_projector_survives_a_kill(
    program: ModuleType, flags: Callable[..., list[str]], checkpoint_folder: Path, tmp_path: Path
):
    assert program.main(flags("straight", *PROJECTOR)) == 0
    again = flags("out", *PROJECTOR)
    assert run(program, again, signal.SIGTERM) == 143
    newest, _ = run_folder.last_complete(tmp_path / "out")
    assert newest is not None
    base = load_file(checkpoint_folder / "model.safetensors")
    half = load_file(newest / "adapter_model.safetensors")
    projector = [name for name in half if ".attn_pool." in name and not name.endswith(".pos_embed")]
    assert len(projector) >= 8
    assert not any(torch.equal(half[n], base[n.removeprefix("base_model.model.")]) for n in projector)
    assert program.main(again) == 0
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("straight", "out"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(half[name], b[name]) for name in projector)  # it went on learning
