"""Trouble: flash-attn does not install, and nothing trains without it.

Promise: torch's own kernels are the default, flash-attn is imported when it is asked for and not before, and where it
cannot be had the message comes before any weight is loaded and says what to do.
"""

# ruff: noqa: F811 (fixtures of another file)

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from finetune.model import checkpoint
from finetune.training import trainer
from tests.finetune.test_program import program  # noqa: F401
from tests.finetune.training.test_resume import flags  # noqa: F401


def test_training_asks_for_no_flash_attention(
    program: ModuleType, flags: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # importing it would raise
    kernels = []
    build = trainer.build_trainer

    def watched(model, *args, **kwargs):
        kernels.append(model.config._attn_implementation)
        return build(model, *args, **kwargs)

    monkeypatch.setattr(trainer, "build_trainer", watched)
    assert program.main(flags("out", "--max_steps", "1", "--save_strategy", "no")) == 0
    assert kernels == ["sdpa"]


def test_a_missing_flash_attention_is_said_at_once(
    program: ModuleType,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(checkpoint, "is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    assert program.main(flags("out", "--attn_implementation", "flash_attention_2")) == 1
    error = capsys.readouterr().err
    assert "--attn_implementation flash_attention_2: " in error and "found no package flash-attn" in error
    assert (
        "expected --bf16 True or --fp16 True" in error and "--attn_implementation sdpa, the default" in error
    )
    assert "Traceback" not in error and not (tmp_path / "out").exists()
