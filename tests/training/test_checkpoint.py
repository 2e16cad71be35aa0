import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from finetune import checkpoint
from finetune.adaptation import adapt
from finetune.families.qwen_vl import QwenVLFamily
from finetune.qwen_vl import QwenVLForConditionalGeneration, QwenVLProcessor
from tests.training.test_adaptation import LORA, batch, perturb


@pytest.fixture(scope="module")
def adapter(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter folder without a processor of its own, and its logits."""
    folder = tmp_path_factory.mktemp("adapter")
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    adapted = adapt(base, QwenVLFamily(), replace(LORA, connector="full"), master_weights=True)
    perturb(adapted)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return folder, adapted.eval()(**batch()).logits


def test_a_model_folder(checkpoint_folder: Path):
    model, processor = checkpoint.load(checkpoint_folder, dtype=torch.bfloat16)
    assert isinstance(model, QwenVLForConditionalGeneration) and not model.training
    assert isinstance(processor, QwenVLProcessor)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_an_adapter_folder_brings_its_base_from_anywhere(
    adapter: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, logits = adapter
    monkeypatch.chdir(tmp_path)
    model, processor = checkpoint.load(folder)
    assert isinstance(model, PeftModel) and isinstance(processor, QwenVLProcessor)
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, logits)
    assert any(p.requires_grad for p in checkpoint.load(folder, for_training=True)[0].parameters())


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"nowhere: there is no such folder .*expected a model folder, an adapter folder"
    ):
        checkpoint.load(tmp_path / "nowhere")


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"found neither config\.json nor adapter_config\.json"):
        checkpoint.load(tmp_path)


def test_an_adapter_whose_base_is_gone(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/gone/base/model"}))
    with pytest.raises(
        ValueError, match=r"adapter_config\.json: its base model '/gone/base/model' is not there"
    ):
        checkpoint.load(tmp_path)


def test_weights_that_are_quantised_already_are_refused(checkpoint_folder: Path, tmp_path: Path):
    config = json.loads((checkpoint_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantised already \(gptq\).*--q_lora"):
        checkpoint.load(tmp_path)


def test_a_text_only_qwen_is_refused(checkpoint_folder: Path, tmp_path: Path):
    config = json.loads((checkpoint_folder / "config.json").read_text())
    del config["visual"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="text-only Qwen"):
        checkpoint.load(tmp_path)


def test_four_bit_is_for_the_language_layers_alone(checkpoint_folder: Path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, _ = checkpoint.load(checkpoint_folder, quantize=True, for_training=True)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            inside = name.startswith("transformer.h.")
            assert isinstance(module, bitsandbytes.nn.Linear4bit) == inside, name
    adapted = adapt(model, QwenVLFamily(), LORA, master_weights=True)
    inputs = batch()
    out = adapted(**inputs).logits
    out.square().mean().backward()
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert len(gradients) == 16 and all(g is not None for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)
