"""LoRA over 4-bit language layers: what evaluation must not change, DoRA beside it, and what is saved.

Rows of 64 and more: bitsandbytes scales 4-bit weights by blocks of 64, and on some CPUs handles shorter rows otherwise.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.families.parts.modules import bare_model
from finetune.families.qwen_vl import QwenVLFamily
from finetune.model import checkpoint
from finetune.model.adaptation import Plan, adapt, table
from finetune.qwen_vl import QwenVLForConditionalGeneration
from tests.finetune.conftest import tiny_config, write_checkpoint
from tests.finetune.model.test_adaptation import batch, perturb

bitsandbytes = pytest.importorskip("bitsandbytes")

FAMILY = QwenVLFamily()
LORA = Plan(rank=4, dropout=0.0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a language model whose rows are whole blocks."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "wide")
    torch.manual_seed(0)
    visual = {**(tiny_config().visual or {}), "output_dim": 64}
    config = tiny_config(hidden_size=64, kv_channels=32, intermediate_size=128, visual=visual)
    QwenVLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def four_bit(folder: Path, plan: Plan = LORA) -> nn.Module:
    model, _ = checkpoint.load(folder, quantize=True, for_training=True)
    torch.manual_seed(1)
    return adapt(model, FAMILY, plan, master_weights=True).train()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch()).logits.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def quantised(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def test_no_layer_may_repack(wide: Path):
    layers = quantised(four_bit(wide))
    assert len(layers) == 2 * 5
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())


def test_training_does_not_depend_on_an_evaluation_before_it(wide: Path):
    model = four_bit(wide)
    perturb(model)
    before = gradients(model)
    weights = {name: layer.weight.data.clone() for name, layer in quantised(model).items()}
    model.eval()
    with torch.no_grad():
        model(**batch())
    model.train()
    after = gradients(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(weights[name], layer.weight) for name, layer in quantised(model).items())


def test_gradients_are_those_of_the_weights_that_4_bits_stand_for(wide: Path):
    """Against the same adapters over ordinary layers that hold the dequantised weights."""
    model = four_bit(wide)
    perturb(model)
    plain, _ = checkpoint.load(wide, for_training=True)
    reference = adapt(plain, FAMILY, LORA, master_weights=True).train()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            twin = model.get_parameter(name)
            if twin.dtype == torch.uint8:
                twin = bitsandbytes.functional.dequantize_4bit(twin.data, twin.quant_state)
            parameter.copy_(twin)
    expected, found = gradients(reference), gradients(model)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-6) for name in expected)


@pytest.mark.parametrize("more", [{"dora": True}, {"vision": "lora", "connector": "full"}], ids=str)
def test_dora_and_other_components_beside_it(more: dict[str, Any], wide: Path, tmp_path: Path):
    plan = Plan(rank=4, dropout=0.0, **more)
    model = four_bit(wide, plan)
    found = gradients(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trained.keys()
    assert all(p.dtype == torch.float32 for p in trained.values())
    perturb(model)
    model.save_pretrained(tmp_path)
    # What is saved goes onto the 4-bit base again, with the same answers.
    again = four_bit(wide, Plan(rank=4, dropout=0.0, adapter=str(tmp_path), **more))
    with torch.no_grad():
        assert torch.allclose(again(**batch()).logits, model(**batch()).logits, atol=1e-5)


def test_the_table_counts_weights_and_not_bytes(wide: Path):
    rows = {row.label: row for row in table(four_bit(wide), FAMILY)}
    plain, _ = checkpoint.load(wide)
    whole = sum(p.numel() for n, p in plain.named_parameters() if n.startswith(FAMILY.paths.language))
    assert rows["language: frozen"].parameters == whole
    assert rows["language: frozen"].precision == "float32+uint8"


def test_tower_and_connector_keep_their_precision(wide: Path):
    names = list(quantised(bare_model(four_bit(wide))))
    assert all(name.startswith("transformer.h.") for name in names)
