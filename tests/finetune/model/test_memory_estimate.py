"""The memory estimate: published figures, cases by hand, and what torch really keeps for the backward pass."""

from typing import Any

import pytest
import torch
from torch import nn

from finetune.families.qwen_vl import QwenVLFamily
from finetune.model.adaptation import Plan, adapt
from finetune.model.memory_estimate import (
    ADAM_8BIT,
    GIB,
    RESERVE_BYTES,
    Layer,
    Parameters,
    Sharding,
    Stack,
    Step,
    activation_bytes,
    advice,
    bytes_per_token,
    estimate,
    estimate_text,
    layer_of,
    logit_bytes,
    optimizer_bytes,
    parameters_of,
    states,
    verdict,
)
from finetune.qwen_vl import QwenVLForConditionalGeneration
from tests.finetune.conftest import tiny_config

FAMILY = QwenVLFamily()
PATHS = FAMILY.paths
GPT = Layer(100, 300, 100, 400, is_gated=False, is_fused=False, is_trained=True, norm_is_native=True)
GATED = Layer(
    8, 12, 6, 20, is_gated=True, is_fused=False, is_trained=False, adapter_inputs=10, has_dropout=True
)


# --- published figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_shares_out_as_its_paper_says(stage: int, gigabytes: float):
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters, Adam, 64 devices, mixed precision."""
    parameters = Parameters(2 * 7.5e9, int(7.5e9), 2)
    sharding = Sharding(stage, 64, is_deepspeed=True)
    gradients, optimizer = states(parameters, "adamw_torch", sharding, width=2)
    weights = parameters.resting_bytes / (64 if stage == 3 else 1)
    assert (weights + gradients + optimizer) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_a_layer_of_gpt_keeps_what_korthikanti_counts():
    """arXiv 2205.05198, equation 1: 34 bytes x hidden, of which 2 are dropout's masks, and attention's squares."""
    assert bytes_per_token(GPT, width=2, stream_width=2) == 32 * 100


# --- by hand -------------------------------------------------------------------------------------------------------


def test_a_frozen_layer_with_adapters_by_hand():
    norms = 2 * 8 * 4
    attention, mlp = 12 + 6, 3 * 20
    adapters = 10 * (2 + 1)
    assert bytes_per_token(GATED, width=2, stream_width=2) == norms + (attention + mlp) * 2 + adapters
    trained = GATED._replace(is_trained=True, is_fused=True)
    more = (
        2 * 8 * 2 + (2 * 8 + 20 + 8) * 2
    )  # normalised inputs; inputs of linear layers; the fused projection
    assert bytes_per_token(trained, 2, 2) == bytes_per_token(GATED, 2, 2) + more


def step(**changes: Any) -> Step:
    settings = {
        "parameters": Parameters(1000.0, 100, 4), "stacks": (Stack(GPT, 3, 7),), "vocabulary": 50, "rows": 7,
        "trained_rows": 2, "width": 2, "stream_width": 2, "is_mixed": False, "checkpointing": False,
        "optimizer": "adamw_torch",
    }  # fmt: skip
    return Step(**{**settings, **changes})


def test_kinds_by_hand():
    found = estimate(step())
    assert found == (1000, 400, 800, 3 * 7 * 3200, 50 * (7 * 2 + 2 * 12))
    assert found.peak == sum(found)
    assert estimate(step(is_mixed=True)).weights == 1000 + 2 * 100  # copies in bf16 of what is fp32
    assert logit_bytes(step(trained_rows=0)) == 50 * 7 * 2


def test_with_checkpointing_inputs_remain_and_one_layer_or_the_logits():
    inputs, again = 3 * 7 * 100 * 2, 7 * (3200 + 400 * 2)
    kept = step(checkpointing=True)
    assert activation_bytes(kept) == inputs
    assert estimate(kept).activations + estimate(kept).logits == inputs + again
    loud = step(checkpointing=True, vocabulary=100_000)
    assert estimate(loud).activations == inputs  # the logits are the larger, and counted as logits


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adamw_torch", 8), ("adamw_torch_fused", 8), ("adamw_bnb_8bit", ADAM_8BIT), ("adamw_8bit", ADAM_8BIT),
     ("paged_adamw_32bit", 8), ("adafactor", 0), ("sgd", 0), ("lion_32bit", 4), ("lion_8bit", ADAM_8BIT / 2)],
)  # fmt: skip
def test_what_an_optimizer_keeps(name: str, expected: float):
    assert optimizer_bytes(name, 4) == expected
    assert optimizer_bytes("adamw_torch", 2) == 4


def test_deepspeed_keeps_copies_and_may_put_things_aside():
    parameters = Parameters(1000.0, 100, 2)
    plain = Sharding(2, 4, is_deepspeed=True)
    assert states(parameters, "adamw_torch", plain, 2) == (100 * 2 / 4, 100 * 12 / 4)
    aside = Sharding(3, 4, is_deepspeed=True, offloads_optimizer=True, offloads_weights=True)
    found = estimate(step(parameters=parameters, sharding=aside))
    assert (found.weights, found.optimizer) == (0, 0) and found.gradients == 50
    third = estimate(step(parameters=parameters, sharding=Sharding(3, 4, is_deepspeed=True)))
    assert third.weights == 250


def test_four_bit_weights_weigh_half_a_byte_and_their_scales():
    model = nn.Linear(4, 3, bias=False, device="meta")
    model.weight = nn.Parameter(torch.empty(6, 1, dtype=torch.uint8, device="meta"), requires_grad=False)
    assert parameters_of(model) == (6 + 12 * 0.127 / 8, 0, 0)


# --- shapes of models ----------------------------------------------------------------------------------------------


def model_of(
    plan: Plan, layers: int = 2, *, dtype: torch.dtype = torch.float32, master: bool = True
) -> nn.Module:
    torch.manual_seed(0)
    config = tiny_config(
        num_hidden_layers=layers, hidden_size=48, kv_channels=24, intermediate_size=240,
        visual=tiny_config().visual | {"output_dim": 48},
    )  # fmt: skip
    return adapt(
        QwenVLForConditionalGeneration(config).to(dtype), FAMILY, plan, master_weights=master
    ).train()


def test_shapes_are_read_off_the_modules():
    full, depth = layer_of(
        model_of(Plan(language="full")), PATHS.language_layers, PATHS.language_attention
    ) or (0, 0)
    assert full == Layer(48, 144, 48, 120, is_gated=True, is_fused=True, is_trained=True) and depth == 2
    lora, _ = layer_of(model_of(Plan(rank=4)), PATHS.language_layers, PATHS.language_attention) or (0, 0)
    assert lora == full._replace(is_trained=False, adapter_inputs=4 * 48, has_dropout=True)
    dry, _ = layer_of(
        model_of(Plan(rank=4, dropout=0.0)), PATHS.language_layers, PATHS.language_attention
    ) or (0, 0)
    assert dry == full._replace(is_trained=False, adapter_inputs=2 * 48)  # c_attn's, and one for w1 and w2
    tower, depth = layer_of(model_of(Plan()), PATHS.vision_layers, PATHS.vision_attention) or (0, 0)
    assert depth == 1
    assert tower == Layer(
        16, 48, 16, 32, is_gated=False, is_fused=True, is_trained=False, norm_is_native=True
    )


def test_a_layout_that_is_not_known_is_none():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(2, 2)})])})
    assert layer_of(model, "layers", "attn") is None


@pytest.mark.parametrize("plan", [Plan(language="full"), Plan(rank=4), Plan(rank=4, dropout=0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_what_torch_keeps(plan: Plan, dtype: torch.dtype):
    """The judge: bytes that autograd saves, each storage once, weights left out; one layer is what two add to one."""
    tokens = 2 * 90
    kept = [saved_bytes(model_of(plan, layers, dtype=dtype, master=False)) for layers in (1, 3)]
    measured = (kept[1] - kept[0]) / 2 / tokens
    model = model_of(plan, dtype=dtype, master=False)
    layer, _ = layer_of(model, PATHS.language_layers, PATHS.language_attention) or (GPT, 0)
    width = dtype.itemsize
    # The CPU's dropout keeps its mask in the computing precision, a GPU's in bytes.
    own = layer.adapter_inputs * (width - 1) * layer.has_dropout
    assert bytes_per_token(layer, width, width) + own == pytest.approx(measured, rel=0.03)


def saved_bytes(model: nn.Module) -> int:
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    body = (model.get_base_model() if hasattr(model, "get_base_model") else model).transformer
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = body(input_ids=torch.randint(0, 200, (2, 90)), use_cache=False)
    assert alive is not None
    return sum(found.values())


def test_parameters_are_counted_as_they_rest():
    model = model_of(Plan(rank=4), dtype=torch.bfloat16)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert parameters_of(model) == (2 * frozen + 4 * trained, trained, 4)


# --- for people ----------------------------------------------------------------------------------------------------


def large(**changes: Any) -> Step:
    layer = Layer(
        4096, 3 * 4096, 4096, 11008, is_gated=True, is_fused=True, is_trained=False, adapter_inputs=16384
    )
    settings = {
        "parameters": Parameters(18e9, 112_000_000, 4), "stacks": (Stack(layer, 32, 4 * 2048),),
        "vocabulary": 151_936, "rows": 4 * 2048, "trained_rows": 4 * 512, "is_mixed": True,
    }  # fmt: skip
    return step(**{**settings, **changes})


def test_a_step_that_does_not_fit_lists_remedies():
    device = ("a GPU", 40 * GIB)
    assert "DOES NOT FIT" in estimate_text(large(), device)
    found = advice(large(), 4, 40 * GIB)
    assert found[0].startswith("--gradient_checkpointing True: ") and not any(
        "deepspeed" in line for line in found
    )
    peak = float(found[-1].split(": ")[1].removesuffix(" GiB"))
    assert peak + RESERVE_BYTES / GIB <= 40  # they end where it fits
    hopeless = advice(large(), 4, GIB)
    assert "--per_device_train_batch_size 1 (and --gradient_accumulation_steps 4" in hopeless[1]
    assert hopeless[-2].startswith("--optim adamw_bnb_8bit: ") and "--q_lora True" in hopeless[-1]
    shared = advice(large(sharding=Sharding(ranks=8)), 1, GIB)
    assert [line.split(":")[0] for line in shared[1:3]] == [
        "--deepspeed ds_config_zero2.json", "--deepspeed ds_config_zero3.json",
    ]  # fmt: skip
    peaks = [float(line.split(": ")[1].removesuffix(" GiB").replace(",", "")) for line in shared[:-1]]
    assert peaks == sorted(peaks, reverse=True)


def test_the_text_names_every_kind():
    text = estimate_text(large(), None)
    assert [line.split()[0] for line in text.splitlines()] == [
        "weights", "gradients", "optimizer", "activations", "logits", "peak",
    ]  # fmt: skip
    assert "8,192 rows of 151,936 words" in text and "no activation checkpointing" in text
    assert verdict(10 * GIB, ("a GPU", 24 * GIB)).endswith("; a GPU has 24.0 GiB: fits")
    assert verdict(23 * GIB, ("a GPU", 24 * GIB)).endswith("DOES NOT FIT")  # the reserve counts
