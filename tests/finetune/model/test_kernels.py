"""Liger's kernels: refused where they would not run, and never in the place of the loss."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.flags.arguments import TrainingArguments
from finetune.model import kernels


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), report_to="none", use_liger_kernel=True, **more)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and with Liger, which knows one model."""
    parts = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    for part in parts:
        module = types.ModuleType(part)
        module.__spec__ = types.SimpleNamespace(name=part)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, part, module)
    sys.modules[parts[-1]].MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen2_5_vl": print}  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_qwen_vl_has_none(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--use_liger_kernel: found Qwen-VL \(2023\), .*leave it out"):
        kernels.prepare(arguments(tmp_path), "qwen")


def test_a_machine_without_liger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="is not installed; pip install liger-kernel, or leave it out"):
        kernels.prepare(arguments(tmp_path), "qwen2_5_vl")


def test_a_machine_without_a_gpu(tmp_path: Path, liger: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="--use_liger_kernel: found no GPU, which its kernels need; leave it out"
    ):
        kernels.prepare(arguments(tmp_path), "qwen2_5_vl")


def test_a_model_that_liger_does_not_know(tmp_path: Path, liger: None):
    with pytest.raises(
        ValueError, match="found a model of type 'new', expected one of qwen2_5_vl; leave it out"
    ):
        kernels.prepare(arguments(tmp_path), "new")


@pytest.mark.parametrize("given", [None, {"rope": False}, '{"rope": false}'])
def test_the_loss_stays_ours(given: Any, tmp_path: Path, liger: None):
    training = arguments(tmp_path)
    training.liger_kernel_config = given
    kernels.prepare(training, "qwen2_5_vl")
    rest = {"rope": False} if given else {}
    assert training.liger_kernel_config == {
        **rest,
        "fused_linear_cross_entropy": False,
        "cross_entropy": False,
    }


def test_a_loss_of_ligers_is_refused(tmp_path: Path, liger: None):
    training = arguments(tmp_path)
    training.liger_kernel_config = {"fused_linear_cross_entropy": True}
    with pytest.raises(
        ValueError, match="found fused_linear_cross_entropy, expected kernels other than the loss"
    ):
        kernels.prepare(training, "qwen2_5_vl")


def test_liger_is_not_touched_without_the_flag(tmp_path: Path):
    training = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    kernels.prepare(training, "qwen")
    assert training.liger_kernel_config is None
