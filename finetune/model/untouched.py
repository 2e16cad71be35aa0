"""Restores a model after it was measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's train flag, what it remembers of its last inputs
    (``_remembered``), every configuration's ``use_cache`` and all random states (Python, NumPy, torch, each GPU)
    afterwards as before, also after an exception.

    So a training run that generates has the losses of one that doesn't, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    configs = {id(c): c for module in model.modules() if (c := vars(module).get("config")) is not None}
    caches = [(config, config.use_cache) for config in configs.values() if "use_cache" in vars(config)]
    remembered = _remembered(model)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for kept, values in remembered:
            kept.update(values)
        for config, use_cache in caches:
            config.use_cache = use_cache
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)


def _remembered(model: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What forward passes leave in modules for the next one: (dictionary to put it back into, its values now).

    Trap: the Qwen-VL models of transformers add ``rope_deltas``, how far the last prompt's pictures moved positions, to
    those of a later forward that brings no pictures of its own: text, or embeddings. Rotary embeddings that scale with
    the length keep the greatest that they met, and the frequencies for it (InternVL's, of type "dynamic").
    """
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        own = vars(module)
        if "rope_deltas" in own:
            found.append((own, {"rope_deltas": own["rope_deltas"]}))
        if lengths := {name: own[name] for name in own if name.endswith("max_seq_len_cached")}:
            found += [(own, lengths), (module._buffers, dict(module._buffers))]
    return found
