"""Gradients of attention, with any kernel, against autograd of eager attention's own weights."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.gradients import gradient_rows
from tests.diagnostics.capture.test_qwen_vl import inputs_of
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from tests.diagnostics.tiny_qwen_vl import tiny_model

QUERIES = torch.tensor([[6, 3], [4, 1]])  # of each sequence
PADDED = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}


@pytest.fixture(autouse=True)
def softmax_keeps_double(monkeypatch):
    """Eager attention takes its softmax in fp32: as a judge of SDPA to 1e-6 it must not, so all is double."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, **_: softmax(x, dim))


def in_double(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def objective(logits: torch.Tensor) -> torch.Tensor:
    """log p of a token after the last of each sequence, nats."""
    nats = logits.double().log_softmax(-1)
    return nats[0, 6, 11] + nats[1, 4, 3]


def eager_gradients(model, inputs) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights of each layer and their gradients, kept by autograd."""
    out = model(**inputs, output_attentions=True, use_cache=False)
    for weights in out.attentions:
        weights.retain_grad()
    objective(out.logits).backward()
    weights = [weights.detach().numpy() for weights in out.attentions]
    return weights, [weights.grad.numpy() for weights in out.attentions]


def chosen(whole: np.ndarray) -> np.ndarray:
    return np.stack([of_one[:, queries] for of_one, queries in zip(whole, QUERIES.numpy(), strict=True)])


def assert_equal_to_eager(got, weights, gradients, layers) -> None:
    assert list(got.rows) == list(got.gradients) == [f"layer_{layer}" for layer in layers]
    for layer in layers:
        name = f"layer_{layer}"
        assert got.gradients[name].dtype == np.float32
        assert np.abs(gradients[layer]).max() > 1e-3
        np.testing.assert_allclose(got.rows[name], chosen(weights[layer]), atol=1e-6)
        np.testing.assert_allclose(got.gradients[name], chosen(gradients[layer]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("layers", [[0, 1, 2], [1], [2, 0]])
def test_gradients_are_those_of_eager_attention_with_grouped_keys_and_padding(kernel, is_frozen, layers):
    weights, gradients = eager_gradients(tiny_llama("eager").double(), PADDED)
    model = tiny_llama(kernel).double().requires_grad_(not is_frozen)
    got = gradient_rows(model, PADDED, objective, key_layers=layers, query_tokens=QUERIES, family=FAMILY)
    assert_equal_to_eager(got, weights, gradients, sorted(layers))
    assert got.gradients[f"layer_{layers[0]}"].shape == (2, 4, 2, 7)
    assert all(parameter.requires_grad is not is_frozen for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_gradients_are_those_of_eager_attention_in_qwen_vl_under_frozen_lora(kernel):
    lora = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)

    def model_with(kernel):
        torch.manual_seed(0)
        return get_peft_model(tiny_model(kernel), lora).double().eval()

    inputs = in_double(inputs_of(2))
    weights, gradients = eager_gradients(model_with("eager"), inputs)
    model = model_with(kernel)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():  # as a probe runs
        got = gradient_rows(model, inputs, objective, query_tokens=QUERIES)
        assert not torch.is_grad_enabled()
    assert_equal_to_eager(got, weights, gradients, [0, 1, 2])
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_foretells_what_a_little_more_attention_does():
    """Against no autograd at all: the kernel's output moved by ε · v of one key, in one row of one head."""
    model, head, query, key, epsilon = tiny_llama().double(), 2, 3, 1, 1e-3
    told = gradient_rows(model, PADDED, objective, key_layers=[1], query_tokens=[query], family=FAMILY)

    def moved(size: float) -> float:
        def tap(name, call, output):
            if name == "layer_1":
                output = output.clone()
                output[0, query, head] += size * call.value[0, head // 2, key]
            return output

        with (
            torch.no_grad(),
            AttentionExtractor(model, [], family=FAMILY) as extractor,
            extractor.tapped(tap),
        ):
            return float(objective(model(**PADDED).logits))

    slope = (moved(epsilon) - moved(-epsilon)) / (2 * epsilon)
    assert abs(slope) > 1e-3
    assert told.gradients["layer_1"][0, head, 0, key] == pytest.approx(slope, rel=5e-3)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("is_reentrant", [False, True])
def test_a_model_in_training_is_given_back_with_its_checkpointing_gradients_and_modes(is_reentrant):
    weights, gradients = eager_gradients(tiny_llama("eager").double(), PADDED)
    model = tiny_llama().double().train()
    model.config.attention_dropout = model.model.layers[0].self_attn.attention_dropout = 0.5
    model.model.layers[1].mlp.eval()
    model.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
    modes = [module.training for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    with torch.no_grad():
        plain = tiny_llama().double()(**PADDED).logits
    seen = []

    def keeping(logits):
        seen.append(logits)
        return objective(logits)

    got = gradient_rows(model, PADDED, keeping, key_layers=[0, 2], query_tokens=QUERIES, family=FAMILY)
    assert_equal_to_eager(got, weights, gradients, [0, 2])
    assert torch.equal(seen[0], plain)  # bit for bit
    assert [module.training for module in model.modules()] == modes
    assert all(bool((parameter.grad == 7).all()) for parameter in model.parameters())
    assert model.is_gradient_checkpointing and torch.is_grad_enabled()
    assert model.config._attn_implementation == "sdpa"


def test_nothing_below_the_lowest_layer_is_recorded():
    model = tiny_llama()
    recorded = []

    def record(module, arguments, output):
        recorded.append((output[0] if isinstance(output, tuple) else output).requires_grad)

    for layer in model.model.layers:
        layer.register_forward_hook(record)
    gradient_rows(model, PADDED, objective, key_layers=[1], query_tokens=[0], family=FAMILY)
    assert recorded == [False, True, True]


def test_modes_are_restored_after_an_error():
    model = tiny_llama().train()
    with pytest.raises(ValueError, match="query token 9 does not exist"):
        gradient_rows(model, PADDED, objective, query_tokens=[9], family=FAMILY)
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda logits: logits[:, -1], r"objective: found shape \(2, 31\), made of the logits; expected one number"),
        (lambda logits: logits.detach().sum(), r"objective: found shape \(\), made without the logits; expected one"),
    ],
)  # fmt: skip
def test_an_objective_that_is_no_number_of_the_logits_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        gradient_rows(tiny_llama(), PADDED, wrong, query_tokens=[0], family=FAMILY)


def test_no_layer_and_inference_mode_are_refused():
    with pytest.raises(ValueError, match="found no key layer, expected at least one"):
        gradient_rows(tiny_llama(), PADDED, objective, key_layers=[], query_tokens=[0], family=FAMILY)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"found torch\.inference_mode, expected no_grad"),
    ):
        gradient_rows(tiny_llama(), PADDED, objective, query_tokens=[0], family=FAMILY)
