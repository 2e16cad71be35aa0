"""Trouble: a wrong label mask, seen only when the model has learned to repeat questions, or nothing.

Promise: a preview shows every token's label, in colour; a sample with nothing to learn is an error that names it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from finetune.families.qwen_vl import QwenVLFamily
from finetune.model.checkpoint import load_processor
from finetune.samples.source import read
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)

GREEN, DIM = "\033[1;32m", "\033[2m"
TURNS = [("user", "is assistant a word?"), ("assistant", "it is"), ("user", "and 塔?"), ("assistant", "也是")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    turns = [{"from": role, "value": text} for role, text in TURNS]
    path = tmp_path / "turns.json"
    path.write_text(json.dumps([{"id": "two", "conversations": turns}]), encoding="utf-8")
    return path


def shown_labels(text: str) -> list[tuple[bool, str]]:
    """(is trained, text) of each line of a coloured preview."""
    lines = [line for line in text.splitlines() if re.match(r"  \033\[(1;32|2)m(train|     ) \|", line)]
    return [
        (line.startswith(f"  {GREEN}train"), re.sub(r"\033\[[\d;]*m", "", line).partition("| ")[2])
        for line in lines
    ]


def test_the_preview_shows_what_the_batch_is_trained_on(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    data: Path,
    checkpoint_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert program.main(flags("--data_path", str(data), "--use_lora", "True", "--dry_run", "True")) == 0
    shown = shown_labels(capsys.readouterr().out)
    # Not a letter of a question is learned, every letter of an answer is, and so is its end.
    assert shown == [
        (False, "<|im_start|>system⏎You are a helpful assistant."),
        (True, "<|im_end|>⏎<|im_start|>"),
        (False, "user⏎is assistant a word?"),
        (True, "<|im_end|>⏎<|im_start|>"),
        (False, "assistant⏎"),
        (True, "it is<|im_end|>⏎<|im_start|>"),
        (False, "user⏎and 塔?"),
        (True, "<|im_end|>⏎<|im_start|>"),
        (False, "assistant⏎"),
        (True, "也是<|im_end|>⏎"),
    ]
    # And these are the labels of training.
    processor = load_processor(checkpoint_folder)
    encoded = QwenVLFamily().encode(processor, read(data, say=lambda _: None)[0])
    trained = encoded.input_ids[1:][encoded.labels[1:] != -100]
    written = "".join(text for is_trained, text in shown if is_trained).replace("⏎", "\n")
    assert processor.tokenizer.decode(trained.tolist()) == written


def test_a_sample_with_nothing_to_learn_is_an_error_that_names_it(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    # Counts of their own: this family masks everything.
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path / "counts"))
    encode = QwenVLFamily.encode

    def masked(self, *args, **kwargs):
        found = encode(self, *args, **kwargs)
        found.labels[:] = np.full_like(found.labels, -100)
        return found

    monkeypatch.setattr(QwenVLFamily, "encode", masked)
    assert program.main(flags("--data_path", str(data), "--dry_run", "True")) == 1
    error = capsys.readouterr().err
    assert "1 of 1 samples have no token to learn" in error and "record 0 (id 'two')" in error
