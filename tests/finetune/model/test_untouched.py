"""What is put back after a model was looked at."""

import random

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.model.untouched import untouched
from tests.finetune.families.tiny_families import GRIDS, qwen_vl


def test_modes_caching_and_random_states_are_restored_even_after_an_error():
    model = qwen_vl().train()
    model.get_submodule("transformer.visual").eval()  # a mixture, as frozen parts have it
    model.config.use_cache = False
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="boom"), untouched(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        model.config.use_cache = True
        random.random(), np.random.rand(), torch.rand(3)
        raise RuntimeError("boom")
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is False and torch.is_grad_enabled()
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


@torch.no_grad()
def test_positions_of_the_last_prompt_are_those_from_before():
    """The model that trains adds them to what a later forward brings without pictures."""
    model = GRIDS["qwen2.5-vl"].model()
    ids, kept = torch.tensor([[3, 5, 9, 2, 7]]), torch.tensor([[-4]])
    embedded = model.get_input_embeddings()(ids)
    for was in (None, kept):
        model.model.rope_deltas = was
        before = model(inputs_embeds=embedded).logits
        with untouched(model):
            model.model.rope_deltas = torch.tensor([[11], [12]])
        assert model.model.rope_deltas is was
        assert torch.equal(model(inputs_embeds=embedded).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("looked_at", [4, 40])
def test_a_rotary_embedding_that_scales_with_the_length_forgets_what_it_was_shown(looked_at):
    settings = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, rope_parameters=settings,
    )  # fmt: skip
    model, own = LlamaForCausalLM(config).eval(), torch.arange(12)[None]
    before = model(input_ids=torch.arange(20)[None]).logits, model(input_ids=own).logits
    with untouched(model):
        model(input_ids=torch.arange(looked_at)[None] % 32)
    assert torch.equal(model(input_ids=own).logits, before[1])
