"""Restores a model after it was measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's train flag, every configuration's ``use_cache`` and all
    random states (Python, NumPy, torch, each GPU) afterwards as before, also after an exception.

    So a training run that generates has the losses of one that doesn't, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    configs = {id(c): c for module in model.modules() if (c := vars(module).get("config")) is not None}
    caches = [(config, config.use_cache) for config in configs.values() if "use_cache" in vars(config)]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for config, use_cache in caches:
            config.use_cache = use_cache
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
