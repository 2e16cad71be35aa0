"""Trouble: adapters of the vision tower get no gradient; the loss falls all the same, and nobody notices.

Promise: after the first step, each trainable tensor whose gradient is absent or zero is named, and training ends.
"""

# ruff: noqa: F811 (fixtures of another file)

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

from finetune.qwen_vl.visual import VisionStack
from tests.finetune.test_program import ROOT, environment, flags, program  # noqa: F401  (fixtures)

EYES = ("--use_lora", "True", "--vision", "lora", "--connector", "lora")
TENSORS = 8  # A and B beside the four linear layers of the tower's one block


@pytest.mark.parametrize("more", [(), ("--gradient_checkpointing", "True"), ("--use_dora", "True")], ids=str)
def test_eyes_learn(
    program: ModuleType, flags: Callable[..., list[str]], tmp_path: Path, more: tuple[str, ...]
):
    accumulated = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "3")
    assert program.main(flags(*EYES, *more, *accumulated, "--max_steps", "2", "--save_strategy", "no")) == 0
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    moved = {name for name, tensor in saved.items() if "visual" in name and "lora_B" in name and tensor.any()}
    assert len(moved) == 4 + 2  # the tower's, and the connector's kv_proj and out_proj


def test_eyes_that_are_cut_off_end_training_by_name(
    program: ModuleType,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    plain = VisionStack.forward
    monkeypatch.setattr(VisionStack, "forward", lambda self, x: plain(self, x).detach())
    assert program.main(flags(*EYES, "--save_steps", "1")) == 1
    error = capsys.readouterr().err
    assert (
        f"{TENSORS} trainable tensors got no gradient in the first step:\n  absent  transformer.visual."
        in error
    )
    assert "--vision frozen" in error and "Traceback" not in error
    assert not list((tmp_path / "out").glob("checkpoint-*"))


CUT = """
import runpy, sys
from finetune.qwen_vl.visual import VisionStack
plain = VisionStack.forward
VisionStack.forward = lambda self, x: plain(self, x).detach()
program = runpy.run_path(sys.argv[1])
sys.exit(program["main"](sys.argv[2:]))
"""


def test_two_processes_that_share_every_tensor_see_it_too(flags: Callable[..., list[str]], tmp_path: Path):
    """ZeRO-3: no process has a whole tensor, and one may have no picture."""
    script = tmp_path / "cut.py"
    script.write_text(CUT)
    sharded = ("--deepspeed", str(ROOT / "ds_config_zero3.json"), "--per_device_train_batch_size", "1")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(script), str(ROOT / "finetune.py"), *flags(*EYES, *sharded),
    ]  # fmt: skip
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert done.stderr.count(f"{TENSORS} trainable tensors got no gradient in the first step:") == 1, (
        done.stderr[-3000:]
    )
    named = [line for line in done.stderr.splitlines() if line.startswith("  absent  ")]
    assert len(named) == TENSORS
    assert all(line.startswith("  absent  transformer.visual.transformer.resblocks.0.") for line in named)
