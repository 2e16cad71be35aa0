"""A frozen vision tower sees each picture once: what it makes of it stays with the kept sample, in place of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from finetune.families.base import Encoded, Family, TowerApart, joined_media
from finetune.model.adaptation import component_of
from finetune.sharding import is_zero3


class FrozenTower:
    """Samples → the same with the tower's output in place of pixels, to the bit as each sample gets it alone.

    A resumed run meets its samples in other company. They go through together, which takes little more than half the
    time, where that changes no bit of any of them: tried once for each number of pictures (``together``).
    """

    def __init__(self, model: nn.Module, family: TowerApart) -> None:
        self.model, self.family = model, family
        self.together: dict[int, bool] = {}

    @torch.no_grad()
    def __call__(self, samples: Sequence[Encoded]) -> list[Encoded]:
        seen = [one for one in samples if one.media]
        states = iter(self._states(seen))
        return [replace(one, media=next(states)) if one.media else one for one in samples]

    def _states(self, samples: Sequence[Encoded]) -> list[dict[str, Tensor]]:
        counts = [len(next(iter(one.media.values()))) for one in samples]
        if self.together.get(sum(counts)) is False or len(samples) < 2:
            return self._alone(samples)
        whole = self.family.tower_states(self.model, joined_media(samples))
        cut = {name: values.split(counts) for name, values in whole.items()}
        # Copies: a part would hold the batch's memory for as long as one sample is kept.
        parts = [{name: values[i].clone() for name, values in cut.items()} for i in range(len(samples))]
        if self.together.get(sum(counts)):
            return parts
        alone = self._alone(samples)
        self.together[sum(counts)] = all(
            torch.equal(part[name], one[name])
            for part, one in zip(parts, alone, strict=True)
            for name in part
        )
        return alone

    def _alone(self, samples: Sequence[Encoded]) -> list[dict[str, Tensor]]:
        return [self.family.tower_states(self.model, one.media) for one in samples]


def ahead(model: nn.Module, family: Family) -> FrozenTower | None:
    """None where a tower cannot run before the rest of the model.

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
    return FrozenTower(model, family)


def _changes_or_is_watched(module: nn.Module) -> bool:
    drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return bool(drops or module._forward_hooks or module._forward_pre_hooks)
