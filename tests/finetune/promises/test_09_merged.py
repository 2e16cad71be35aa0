"""Trouble: the merged model answers otherwise than base and adapter did, or has lost its processor.

Promise: adapters, QLoRA's too, are merged into the unquantised base in the precision of training, with processor and
generation settings, and the result is compared with what was trained before it is called done.
"""

# ruff: noqa: F811 (fixtures of another file)

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from finetune import export
from tests.finetune.model.test_adaptation import batch
from tests.finetune.test_program import program  # noqa: F401
from tests.finetune.training.test_resume import flags  # noqa: F401


def test_a_merged_qlora_is_what_was_trained(
    program: ModuleType,
    flags: Callable[..., list[str]],
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    more = ("--q_lora", "True", "--bf16", "True", "--train_connector", "True", "--learning_rate", "3e-2")
    assert program.main(flags("out", *more)) == 0
    capsys.readouterr()
    out, merged = tmp_path / "out", tmp_path / "merged"
    assert export.main([str(out), "--output_dir", str(merged)]) == 0
    said = capsys.readouterr().out
    assert "merging in bfloat16" in said and "the adapter was trained on a 4-bit base" in said
    config = json.loads((merged / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert (merged / "generation_config.json").is_file()
    a, b = (AutoProcessor.from_pretrained(folder).tokenizer for folder in (merged, checkpoint_folder))
    assert a("<img>x</img>東方明珠").input_ids == b("<img>x</img>東方明珠").input_ids

    inputs = {**batch(), "pixel_values": batch()["pixel_values"].bfloat16()}
    base = AutoModelForImageTextToText.from_pretrained(checkpoint_folder, dtype=torch.bfloat16)
    with torch.no_grad():
        plain = base.eval()(**inputs).logits
        trained = PeftModel.from_pretrained(base, str(out)).eval()(**inputs).logits
        ours = AutoModelForImageTextToText.from_pretrained(merged).eval()(**inputs).logits
    moved = (trained - plain).abs().max()
    assert (ours - trained).abs().max() < 0.05 * trained.abs().max() < moved
