from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageTextToText

from finetune import checkpoint
from finetune.adaptation import Plan, adapt, left_frozen, plain_name, table, target_pattern
from finetune.families.base import attention_modules, bare_model
from finetune.families.qwen_vl import QwenVLFamily
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration
from tests.training.conftest import IMAGE_START_ID, N_QUERIES, tiny_config

FAMILY = QwenVLFamily()
LORA = Plan(language="lora", rank=4, dropout=0.0)
FULL = Plan(connector="full", language="full")
TABLE = "transformer.visual.attn_pool.pos_embed"


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return QwenVLForConditionalGeneration(tiny_config())


def trained(model: nn.Module) -> set[str]:
    return {plain_name(name) for name, p in bare_model(model).named_parameters() if p.requires_grad}


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    image = [IMAGE_START_ID, *[0] * N_QUERIES, IMAGE_START_ID + 1]
    ids = torch.tensor([[65, *image, 66, 67, 68], [70, *image, 71, 72, 73]])
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 12, 12)}


def perturb(model: nn.Module) -> None:
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def test_lora_reaches_128_modules_of_the_published_shape():
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(QwenVLConfig())
    adapted = adapt(model, FAMILY, replace(LORA, rank=64), master_weights=False)
    assert sum(name.endswith("lora_A") for name, _ in adapted.named_modules()) == 128
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 112_197_632
    rows = {row.label: row for row in table(adapted, FAMILY)}
    assert rows["language: adapters"].trainable == 112_197_632
    assert rows["vision: frozen"].parameters == 1_842_770_688


def test_lora_stays_inside_the_language_layers(model: nn.Module):
    names = trained(adapt(model, FAMILY, replace(LORA, targets=("c_proj", "w1")), master_weights=True))
    assert names and all(name.startswith("transformer.h.") for name in names)
    # The vision tower has a c_proj too; attn.c_proj and mlp.c_proj both end in it.
    assert {".".join(name.split(".")[3:5]) for name in names} == {"attn.c_proj", "mlp.c_proj", "mlp.w1"}


def test_targets_end_at_dots(model: nn.Module):
    assert (
        target_pattern(model, FAMILY, replace(LORA, targets=("attn.c_proj",)))
        == r"transformer\.h\.\d+\.(?:.+\.)?(?:attn\.c_proj)"
    )
    with pytest.raises(
        ValueError, match=r"--lora_target_modules: proj, q_proj matches no linear layer below"
    ):
        target_pattern(model, FAMILY, replace(LORA, targets=("w1", "proj", "q_proj")))


def test_an_unmatched_target_lists_what_there_is(model: nn.Module):
    with pytest.raises(
        ValueError, match=r"expected some of: attn\.c_attn, attn\.c_proj, mlp\.c_proj, mlp\.w1, mlp\.w2"
    ):
        target_pattern(model, FAMILY, replace(LORA, targets=("in_proj",)))  # the vision tower's


def test_full_mode_trains_everything_but_a_fixed_vision_tower_and_the_tables(model: nn.Module):
    adapt(model, FAMILY, FULL, master_weights=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert TABLE in frozen
    tower = {name for name, _ in model.named_parameters() if name.startswith(FAMILY.paths.vision)}
    assert frozen == {TABLE} | tower
    assert {"transformer.visual.proj", "transformer.visual.ln_post.weight", "lm_head.weight"} <= trained(
        model
    )


def test_full_mode_may_train_the_vision_tower_but_never_the_tables(model: nn.Module):
    adapt(model, FAMILY, replace(FULL, vision="full"), master_weights=True)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {TABLE}


def test_full_mode_without_connector(model: nn.Module):
    adapt(model, FAMILY, replace(FULL, connector="frozen"), master_weights=True)
    assert not any("visual" in name for name in trained(model))


def test_lora_with_connector_and_vision_trains_them_but_not_the_tables(model: nn.Module):
    adapted = adapt(model, FAMILY, replace(LORA, connector="full", vision="full"), master_weights=True)
    names = trained(adapted)
    assert "transformer.visual.attn_pool.query" in names
    assert "transformer.visual.transformer.resblocks.0.attn.in_proj.weight" in names
    assert not any("pos_embed" in name for name in names)
    assert left_frozen(adapted, FAMILY, replace(LORA, connector="full", vision="full")) == [
        "transformer.visual.positional_embedding",
        "transformer.visual.proj",
    ]
    # Names of the parts still lead to the module that runs: the copy.
    modules = attention_modules(adapted, FAMILY)
    assert modules["visual_attn"].in_proj_weight.requires_grad


def test_trained_weights_are_fp32_and_frozen_ones_keep_their_precision(model: nn.Module):
    adapted = adapt(model.bfloat16(), FAMILY, replace(LORA, connector="full"), master_weights=True)
    for name, parameter in adapted.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize(
    "plan", [LORA, replace(LORA, connector="full"), replace(LORA, connector="full", embeddings=True)]
)
def test_an_adapter_is_complete_for_plain_peft(plan: Plan, checkpoint_folder: Path, tmp_path: Path):
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    with torch.no_grad():
        before = base.eval()(**batch()).logits
    adapted = adapt(base, FAMILY, plan, master_weights=True)
    perturb(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted.eval()(**batch()).logits
        fresh = AutoModelForImageTextToText.from_pretrained(checkpoint_folder)
        loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
        assert not torch.allclose(expected, before, atol=1e-3)
        assert torch.equal(loaded(**batch()).logits, expected)
        with loaded.disable_adapter():
            assert torch.equal(loaded(**batch()).logits, before)


def test_an_adapter_can_be_trained_further(checkpoint_folder: Path, tmp_path: Path):
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    adapted = adapt(base, FAMILY, replace(LORA, connector="full"), master_weights=True)
    perturb(adapted)
    adapted.save_pretrained(tmp_path)
    wanted = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    again = adapt(base, FAMILY, replace(LORA, connector="full", adapter=str(tmp_path)), master_weights=True)
    found = {name: p for name, p in again.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_bias_all_means_the_language_model_alone(model: nn.Module):
    names = trained(adapt(model, FAMILY, replace(LORA, bias="all"), master_weights=True))
    assert any(name.endswith("c_attn.bias") for name in names)
    assert not any("visual" in name for name in names)


def test_nothing_to_train_is_an_error(model: nn.Module):
    class Deaf(QwenVLFamily):
        paths = replace(QwenVLFamily.paths, language=())

    with pytest.raises(ValueError, match="nothing would train"):
        adapt(model, Deaf(), replace(FULL, connector="frozen"), master_weights=True)


def test_the_table_adds_up(model: nn.Module):
    adapted = adapt(model, FAMILY, replace(LORA, connector="full"), master_weights=True)
    rows = table(adapted, FAMILY)
    assert [row.label for row in rows] == [
        "vision: frozen",
        "connector: frozen",
        "connector: trained copy",
        "connector: trained copy",
        "language: frozen",
        "language: adapters",
        "tables: frozen",
    ]
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in adapted.parameters())
    assert sum(row.trainable for row in rows) == sum(
        p.numel() for p in adapted.parameters() if p.requires_grad
    )
