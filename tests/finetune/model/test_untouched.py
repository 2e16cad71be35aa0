"""What is put back after a model was looked at."""

import random

import numpy as np
import pytest
import torch

from finetune.model.untouched import untouched
from tests.finetune.families.tiny_families import qwen_vl


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
