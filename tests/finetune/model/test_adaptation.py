import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from finetune.families.base import ModulePaths
from finetune.families.parts.modules import attention_modules, bare_model
from finetune.families.qwen_vl import QwenVLFamily
from finetune.flags.arguments import Mode
from finetune.model import checkpoint
from finetune.model.adaptation import (
    COMPONENTS,
    Plan,
    Rates,
    Row,
    adapt,
    component_of,
    left_frozen,
    plain_name,
    table,
    table_text,
    target_pattern,
)
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration
from tests.finetune.conftest import IMAGE_START_ID, N_QUERIES, tiny_config

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


def test_rows_that_differ_in_counts_alone_are_one_line(model: nn.Module):
    """Norms are apart from matrices where they do not decay."""
    adapted = adapt(model, FAMILY, replace(LORA, connector="full"), master_weights=True)
    lines = {
        decay: [
            line.split()[3:6]
            for line in table_text(table(adapted, FAMILY, Rates(1e-3, weight_decay=decay))).splitlines()
            if line.startswith("connector: trained copy")
        ]
        for decay in (0.0, 0.1)
    }
    (whole,), parts = lines[0.0], lines[0.1]
    assert len(parts) == 2
    for column in range(3):
        numbers = [int(row[column].replace(",", "")) for row in (whole, *parts)]
        assert numbers[0] == sum(numbers[1:]), column


# ---------------------------------------------------------------------------------------------------------------------
# Modes
# ---------------------------------------------------------------------------------------------------------------------

MODES: tuple[Mode, ...] = ("frozen", "lora", "full")
ALL_PLANS = [
    Plan(vision=v, connector=c, language=w, rank=4, dropout=0.0)
    for v, c, w in itertools.product(MODES, repeat=3)
    if (v, c, w) != ("frozen",) * 3
]


def name_of(plan: Plan) -> str:
    return "-".join(plan.modes.values())


@pytest.mark.parametrize("plan", ALL_PLANS, ids=name_of)
def test_every_combination_trains_what_it_says_in_fp32(plan: Plan, model: nn.Module):
    adapted = adapt(model.bfloat16(), FAMILY, plan, master_weights=True)
    found: dict[str, set[str]] = {component: set() for component in COMPONENTS}
    for name, parameter in bare_model(adapted).named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        if parameter.requires_grad:
            kind = "lora" if ".lora_" in name else "full"
            found[component_of(name, FAMILY.paths)].add(kind)
            assert (".modules_to_save." in name) == (kind == "full" and plan.lora), name
    assert found == {c: set() if mode == "frozen" else {mode} for c, mode in plan.modes.items()}


@pytest.mark.parametrize("plan", ALL_PLANS[::3] + ALL_PLANS[-2:], ids=name_of)
def test_saved_folders_open_without_this_project(plan: Plan, checkpoint_folder: Path, tmp_path: Path):
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    adapted = adapt(base, FAMILY, plan, master_weights=True)
    perturb(adapted)
    adapted.save_pretrained(tmp_path)
    if plan.lora:
        fresh = AutoModelForImageTextToText.from_pretrained(checkpoint_folder)
        loaded = PeftModel.from_pretrained(fresh, str(tmp_path))
    else:
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch()).logits, adapted.eval()(**batch()).logits)


@pytest.mark.parametrize("more", [{"dora": True}, {"bias": "all"}, {"bias": "lora_only"}], ids=str)
def test_dora_and_biases_open_in_plain_peft(more: dict[str, Any], checkpoint_folder: Path, tmp_path: Path):
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    plan = replace(LORA, vision="lora", connector="lora", **more)
    adapted = adapt(base, FAMILY, plan, master_weights=True)
    names = trained(adapted)
    assert any("lora_magnitude_vector" in name for name in names) == plan.dora
    assert any(name.endswith(".bias") for name in names) == (plan.bias != "none")
    perturb(adapted)
    adapted.save_pretrained(tmp_path)
    fresh = AutoModelForImageTextToText.from_pretrained(checkpoint_folder)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    with torch.no_grad():
        # DoRA divides by a norm that is computed in another order once it is loaded.
        assert torch.allclose(loaded(**batch()).logits, adapted.eval()(**batch()).logits, atol=1e-6)


def test_biases_train_where_adapters_are(model: nn.Module):
    plan = Plan(vision="lora", connector="frozen", language="frozen", bias="all", rank=4)
    biases = {
        name for name in trained(adapt(model, FAMILY, plan, master_weights=True)) if ".lora_" not in name
    }
    assert biases and all(name.startswith(FAMILY.paths.vision) and name.endswith(".bias") for name in biases)


def test_adapters_outside_the_language_layers_by_name(model: nn.Module):
    plan = Plan(vision="lora", connector="lora", language="frozen", rank=4)
    adapted = adapt(model, FAMILY, plan, master_weights=True)
    found = {name.rpartition(".lora_A")[0] for name in trained(adapted) if ".lora_A." in name}
    block, pool = "transformer.visual.transformer.resblocks.0", "transformer.visual.attn_pool"
    assert found == {
        f"{block}.attn.in_proj", f"{block}.attn.out_proj", f"{block}.mlp.c_fc", f"{block}.mlp.c_proj",
        f"{pool}.kv_proj", f"{pool}.attn.out_proj",
    }  # fmt: skip
    assert left_frozen(adapted, FAMILY, plan) == [
        "transformer.visual.positional_embedding",
        "transformer.visual.proj",
        "transformer.visual.conv1.weight",
        f"{pool}.query",
        f"{pool}.attn.in_proj_weight",
    ]


def test_an_adapter_to_continue_must_hold_what_the_plan_trains(checkpoint_folder: Path, tmp_path: Path):
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    adapt(base, FAMILY, replace(LORA, connector="full"), master_weights=True).save_pretrained(tmp_path)

    def go_on(plan: Plan) -> nn.Module:
        base, _ = checkpoint.load(checkpoint_folder, for_training=True)
        return adapt(base, FAMILY, replace(plan, adapter=str(tmp_path)), master_weights=True)

    expected = (
        r"found connector: trained copy, language: adapters, expected vision: adapters; give --vision as"
    )
    with pytest.raises(ValueError, match=expected):
        go_on(replace(LORA, vision="lora"))
    with pytest.raises(ValueError, match="expected connector: adapters"):
        go_on(replace(LORA, connector="lora"))
    with pytest.raises(ValueError, match="was trained without --use_dora"):
        go_on(replace(LORA, dora=True))
    # What the flags leave frozen stays as the adapter has it.
    assert not any("attn_pool" in name for name in trained(go_on(LORA)))


@pytest.mark.parametrize(
    "plan",
    [
        FULL,
        replace(LORA, connector="full", embeddings=True),
        replace(LORA, vision="lora", dora=True, bias="all"),
        Plan(vision="lora", connector="full", language="full"),
    ],
    ids=name_of,
)
def test_a_model_without_weights_shows_what_would_train(plan: Plan, model: nn.Module):
    with torch.device("meta"):
        empty = QwenVLForConditionalGeneration(tiny_config())
    shown = adapt(empty, FAMILY, plan, master_weights=True)
    assert {p.device.type for p in shown.parameters()} == {"meta"}
    assert table(shown, FAMILY) == table(adapt(model, FAMILY, plan, master_weights=True), FAMILY)


def test_an_adapter_folder_shows_on_a_model_without_weights(checkpoint_folder: Path, tmp_path: Path):
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    real = adapt(base, FAMILY, LORA, master_weights=True)
    real.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = QwenVLForConditionalGeneration(tiny_config())
    shown = adapt(empty, FAMILY, replace(LORA, adapter=str(tmp_path)), master_weights=True)
    assert table(shown, FAMILY) == table(real, FAMILY)


# ---------------------------------------------------------------------------------------------------------------------
# Other families
# ---------------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj(self.attn(x, x, x)[0])


class Tower(nn.Module):
    """Three blocks of which the last is not used, and a merger inside, as some towers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))
        self.merger = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patches(pixels)
        for block in self.blocks[:2]:
            x = block(x)
        return self.merger(x)


class Invented(nn.Module):
    """Tower and language layers share the names ``blocks``, ``proj`` and ``attn.out_proj``."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.tower = Tower()
        self.embed = nn.Embedding(11, 12)
        self.blocks = nn.ModuleList(Block(12) for _ in range(2))
        self.head = nn.Linear(12, 11, bias=False)

    def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.tower(pixels), self.embed(ids)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def prepare_inputs_for_generation(self) -> None:
        """PEFT looks for it in a model that generates."""


class InventedFamily(QwenVLFamily):
    name = "invented"
    paths = ModulePaths(
        language=("embed", "blocks", "head"),
        language_layers="blocks",
        language_attention="attn",
        vision=("tower",),
        vision_layers="tower.blocks",
        vision_attention="attn",
        connector=("tower.merger",),
        connector_attention=None,
        never_trained=("tower.blocks.2",),
    )
    lora_targets = ("proj",)


@pytest.fixture
def invented() -> nn.Module:
    torch.manual_seed(0)
    return Invented()


def test_another_family_is_adapted_by_its_paths_alone(invented: nn.Module):
    plan = Plan(vision="lora", connector="lora", rank=2)
    adapted = adapt(invented, InventedFamily(), plan, master_weights=True)
    found = {name.rpartition(".lora_A")[0] for name in trained(adapted) if ".lora_A." in name}
    # Not attn.out_proj: nn.MultiheadAttention never calls it. Not the last block: nothing reads it.
    assert found == {
        "tower.patches", "tower.blocks.0.proj", "tower.blocks.1.proj", "tower.merger.1",
        "blocks.0.proj", "blocks.1.proj",
    }  # fmt: skip
    assert left_frozen(adapted, InventedFamily(), plan) == [
        "tower.blocks.N.attn.in_proj_weight",
        "tower.blocks.N.attn.out_proj.weight",
    ]
    bare_model(adapted)(torch.tensor([[1, 2, 3]]), torch.randn(1, 7, 5)).square().mean().backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if p.requires_grad)


def test_the_longest_path_says_which_component_it_is():
    paths = InventedFamily.paths
    assert component_of("tower.blocks.1.proj.weight", paths) == "vision"
    assert component_of("tower.merger.1.weight", paths) == "connector"
    assert component_of("tower.blocks.2.proj.weight", paths) == "tables"
    assert component_of("blocks.2.proj.lora_A.default.weight", paths) == "language"
    assert component_of("towers.0.weight", paths) == "other"


def test_another_family_trains_in_full_but_for_what_nothing_reads(invented: nn.Module):
    plan = Plan(vision="full", connector="frozen", language="frozen")
    names = trained(adapt(invented, InventedFamily(), plan, master_weights=True))
    assert names == {
        f"tower.{name}"
        for name, _ in Tower().named_parameters()
        if not name.startswith(("merger.", "blocks.2."))
    }


def test_a_component_without_linear_layers_cannot_have_adapters(invented: nn.Module):
    class Bare(InventedFamily):
        paths = replace(InventedFamily.paths, connector=("tower.merger.0",))

    plan = Plan(connector="lora", language="frozen")
    with pytest.raises(
        ValueError, match=r"--connector lora: found no linear layer below tower\.merger\.0, expected"
    ):
        adapt(invented, Bare(), plan, master_weights=True)


class TiedFamily(QwenVLFamily):
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.visual",),
        vision_layers="model.visual.blocks",
        vision_attention="attn",
        connector=("model.visual.merger",),
        connector_attention=None,
    )
    lora_targets = ("q_proj", "down_proj")


@pytest.fixture
def tied() -> nn.Module:
    """A tiny Qwen2.5-VL whose output layer is its embedding."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16, "patch_size": 2,
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    )


def test_embeddings_mean_the_output_layer_too(model: nn.Module):
    names = trained(adapt(model, FAMILY, replace(LORA, embeddings=True), master_weights=True))
    assert {name for name in names if ".lora_" not in name} == {"transformer.wte.weight", "lm_head.weight"}


def test_tied_embeddings_stay_tied(tied: nn.Module, tmp_path: Path):
    fresh = copy.deepcopy(tied)
    assert tied.lm_head.weight is tied.model.language_model.embed_tokens.weight
    adapted = adapt(tied, TiedFamily(), replace(LORA, embeddings=True), master_weights=True)
    inputs, outputs = bare_model(adapted).model.language_model.embed_tokens, bare_model(adapted).lm_head
    assert outputs.weight is inputs.weight and inputs.weight.requires_grad
    perturb(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path))
    ids = torch.tensor([[3, 5, 8]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits)


def test_a_copy_of_a_tied_language_model_is_refused(tied: nn.Module):
    plan = Plan(vision="lora", connector="frozen", language="full")
    with pytest.raises(
        ValueError, match=r"would lose the tie .*give --language lora, or no lora \(--vision\)"
    ):
        adapt(tied, TiedFamily(), plan, master_weights=True)


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def test_the_table_by_hand():
    rows = [
        Row("vision", "frozen", 2, 3000, 0, None, None, "bfloat16"),
        Row("language", "full", 1, 1000, 1000, 1e-5, 0.1, "float32"),
    ]
    assert table_text(rows) == "\n".join(
        [
            "what            tensors  parameters  trainable   rate  decay  precision",
            "vision: frozen        2       3,000          0      -      -  bfloat16",
            "language: full        1       1,000      1,000  1e-05    0.1  float32",
            "all                   3       4,000      1,000                25.00% trains",
        ]
    )


def test_the_table_of_the_published_shape_fits_a_screen():
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(QwenVLConfig()).bfloat16()
    plan = Plan(vision="lora", connector="full", embeddings=True, dora=True)
    rates = Rates(1.25e-5, {"vision": 2.5e-6}, 0.1)
    rows = table(adapt(model, FAMILY, plan, master_weights=True), FAMILY, rates)
    assert max(map(len, table_text(rows).splitlines())) <= 100
    found = {(row.label, row.weight_decay): row for row in rows}
    adapters = found["vision: adapters", 0.1]
    assert (adapters.tensors, adapters.learning_rate) == (48 * 4 * 2, 2.5e-6)
    assert adapters.parameters == 48 * 64 * ((1664 + 4992) + (1664 + 1664) + (1664 + 8192) + (8192 + 1664))
    magnitudes = found["vision: adapters", 0.0]
    assert (magnitudes.tensors, magnitudes.parameters) == (48 * 4, 48 * (4992 + 1664 + 8192 + 1664))
    assert found["connector: trained copy", 0.1].learning_rate == 1.25e-5
    assert found["vision: frozen", None].learning_rate is None
