"""Hidden states against those that the model itself reports."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from diagnostics.capture.hidden_states import HiddenStates
from tests.diagnostics.capture.test_qwen_vl import inputs_of
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from tests.diagnostics.tiny_qwen_vl import tiny_model


@torch.no_grad()
def test_states_are_those_that_enter_the_layers():
    model = tiny_llama()
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    out = model(input_ids=IDS, attention_mask=mask, output_hidden_states=True)
    with HiddenStates(model, [2, 0], family=FAMILY) as states:
        logits = model(input_ids=IDS, attention_mask=mask).logits
    assert torch.equal(logits, out.logits)
    assert set(states.hidden_states) == {"layer_0", "layer_2"}
    for layer in (0, 2):
        entering = states.hidden_states[f"layer_{layer}"]
        assert entering.shape == (2, 7, 32) and entering.dtype == np.float32
        assert np.array_equal(entering, out.hidden_states[layer].numpy())


@torch.no_grad()
def test_only_the_sequences_wanted_are_kept():
    model = tiny_llama()
    with HiddenStates(model, [1], family=FAMILY) as states:
        model(input_ids=IDS)
        every = states.hidden_states["layer_1"]
    with HiddenStates(model, [1], sequences=[1], family=FAMILY) as states:
        model(input_ids=IDS)
    assert np.array_equal(states.hidden_states["layer_1"], every[1:2])


@torch.no_grad()
def test_all_layers_of_qwen_vl_under_peft_in_bf16_when_none_is_named():
    lora = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    model, inputs = get_peft_model(tiny_model(), lora).to(torch.bfloat16).eval(), inputs_of(2)
    out = model(**inputs, output_hidden_states=True)
    with HiddenStates(model) as states:
        model(**inputs)
    assert list(states.hidden_states) == ["layer_0", "layer_1", "layer_2"]
    for layer, entering in enumerate(states.hidden_states.values()):
        assert np.array_equal(entering, out.hidden_states[layer].float().numpy())


@torch.no_grad()
def test_steps_that_go_on_from_a_cache_are_ignored_and_a_new_sequence_is_not():
    model = tiny_llama()
    with HiddenStates(model, [1], family=FAMILY) as states:
        model(input_ids=IDS[1:, :5])
        prefill = states.hidden_states["layer_1"]
        model(input_ids=IDS[:1, :5])
        model.generate(IDS[1:, :5], max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
        np.testing.assert_allclose(states.hidden_states["layer_1"], prefill, atol=1e-5)
        cache = model(input_ids=IDS, use_cache=True).past_key_values
        model(input_ids=IDS[:, :3], past_key_values=cache)
        assert states.hidden_states["layer_1"].shape == (2, 7, 32)


@torch.no_grad()
def test_what_a_layer_does_to_its_input_afterwards_is_not_seen():
    model = tiny_llama()
    entering = model(input_ids=IDS, output_hidden_states=True).hidden_states[1].numpy()
    with HiddenStates(model, [1], family=FAMILY) as states:
        model.model.layers[1].register_forward_pre_hook(lambda _, arguments: (arguments[0].mul_(3),))
        model(input_ids=IDS)
    assert np.array_equal(states.hidden_states["layer_1"], entering)


def test_a_layer_that_runs_outside_a_forward_of_the_model_is_not_taken_for_a_pass():
    model = tiny_llama()
    with HiddenStates(model, family=FAMILY) as states:
        model.model(input_ids=IDS)  # as recomputation in backward: layers without the whole
        assert states.hidden_states == {}
        model(input_ids=IDS)
        before = states.hidden_states
        model.model(input_ids=IDS[:, :4])
        assert states.hidden_states["layer_0"].shape == before["layer_0"].shape == (2, 7, 32)


def test_hooks_are_removed_once_and_for_all_and_states_stay():
    model = tiny_llama()
    with pytest.raises(RuntimeError, match="boom"), HiddenStates(model, family=FAMILY) as states:
        model(input_ids=IDS)
        raise RuntimeError("boom")
    states.remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    model(input_ids=IDS[:, :2])
    assert states.hidden_states["layer_2"].shape == (2, 7, 32)


@pytest.mark.parametrize("layer", [3, -1])
def test_a_missing_layer_is_an_error_and_leaves_no_hook(layer):
    model = tiny_llama()
    with pytest.raises(ValueError, match=f"no language layer {layer}; expected 0 to 2"):
        HiddenStates(model, [0, layer], family=FAMILY)
    assert not any(module._forward_pre_hooks for module in model.modules())
