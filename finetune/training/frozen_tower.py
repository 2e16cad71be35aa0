"""A frozen vision tower sees each picture once: what it makes of it stays with the kept sample, in place of pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from finetune.families.base import Encoded, Family, TowerApart
from finetune.model.adaptation import component_of
from finetune.sharding import is_zero3


def ahead(model: nn.Module, family: Family) -> Callable[[Encoded], Encoded] | None:
    """Samples → the same with the tower's output in place of pixels; None where that is not the same.

    model   bare. Its tower must be frozen, without dropout, and without hooks, which would see no picture again;
            its family must know how to run it apart (``families.base.TowerApart``)
    """
    if not isinstance(family, TowerApart):
        return None
    weights = [one for name, one in model.named_parameters() if component_of(name, family.paths) == "vision"]
    if any(one.requires_grad or is_zero3(one) for one in weights):
        return None
    inside = [
        module for name, module in model.named_modules() if component_of(name, family.paths) == "vision"
    ]
    if any(_changes_or_is_watched(module) for module in inside):
        return None
    return functools.partial(_with_states, model, family)


def _changes_or_is_watched(module: nn.Module) -> bool:
    drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return bool(drops or module._forward_hooks or module._forward_pre_hooks)


@torch.no_grad()
def _with_states(model: nn.Module, family: TowerApart, encoded: Encoded) -> Encoded:
    return replace(encoded, media=family.tower_states(model, encoded.media)) if encoded.media else encoded
