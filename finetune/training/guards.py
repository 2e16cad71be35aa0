"""Ends training when trainable tensors get no gradient."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.utils import logging

from finetune.distributed import reduced
from finetune.families.base import Family
from finetune.families.parts.modules import bare_model
from finetune.model.adaptation import COMPONENTS, component_of
from finetune.sharding import local_values

logger = logging.get_logger(__name__)

MOST_NAMES_SHOWN = 20

ABSENT, ZERO, THERE = 0, 1, 2
"""Levels of a tensor's gradient: never computed, all zero, nonzero. Ordered: the maximum over micro-batches and
processes is the level of the step."""

_HALVES = ((".lora_A.", ".lora_B."), (".lora_embedding_A.", ".lora_embedding_B."))


class TrainingError(ValueError):
    """Training cannot go on: the loss is not finite, or trainable tensors get no gradient."""


class GradientCheck(TrainerCallback):
    """After the first step, a trainable tensor whose gradient is absent or zero throughout ends training.

    Such a tensor never learns, and the loss hides it, since it falls through the tensors that do. The check covers all
    micro-batches and processes of the step. Three kinds of zero are legitimate:

    - one half of a fresh LoRA adapter has exactly zero as long as the other half *is* zero (the product B·A starts at
      zero by B = 0, so the gradient of A is zero, and that of B is not)
    - vision tower and connector get none in a step without pictures: they are checked in the first step with one
    - rows of an embedding that no token used; other rows of the tensor have gradients

    Hooks see gradients as they are computed and are removed after the check: DeepSpeed moves gradients before
    ``.grad`` could be read. FSDP computes with other tensors than the parameters, so their hooks never run: there
    ``.grad`` is read before the optimizer's step.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.names: list[str] = []
        self.levels = self.partners = torch.zeros(0)
        self.pictures = self.samples = self.stepped = False
        self.handles: dict[str, Any] = {}
        self.shards: dict[int, nn.Parameter] = {}

    @property
    def watching(self) -> bool:
        return bool(self.handles)

    def saw_batch(self, *, pictures: bool, samples: bool = True) -> None:
        """Call for each micro-batch of this process: does it hold pictures, and samples (all may be left out)?"""
        self.pictures |= pictures
        self.samples |= samples

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        assert model is not None
        self._forget(self.names)
        trained = {name: p for name, p in bare_model(model).named_parameters() if p.requires_grad}
        self.names, self.pictures, self.samples, self.stepped = [*trained], False, False, False
        self.levels = torch.full((len(trained),), ABSENT, device=args.device)
        self.partners = torch.ones_like(self.levels)
        for index, (name, parameter) in enumerate(trained.items()):
            self.handles[name] = parameter.register_hook(functools.partial(self._seen, index))
            if isinstance(parameter, DTensor):
                self.shards[index] = parameter
            partner = trained.get(_partner(name))
            if partner is not None:
                self.partners[index] = _is_anything(local_values(partner).detach())

    def _seen(self, index: int, gradient: Tensor) -> None:
        level = torch.where(_is_anything(gradient.detach()), THERE, ZERO).to(self.levels)
        self.levels[index] = torch.maximum(self.levels[index], level)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for index, parameter in self.shards.items():
            if parameter.grad is not None:
                self._seen(index, local_values(parameter.grad))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stepped = True
        if not self.watching:
            return
        found, pictures, samples = self._of_all_processes()
        if not samples:
            return  # all samples were left out: this step has no gradients to check
        waiting = set() if pictures else {name for name in found if self._needs_a_picture(name)}
        self._forget([name for name in self.handles if name not in waiting])
        faults = {name: level for name, level in found.items() if name not in waiting}
        if faults:
            self._forget(self.names)
            raise TrainingError(_message(faults, self.family))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.watching and self.stepped:
            logger.warning(
                f"{len(self.handles)} trainable tensors of vision and connector did not learn: "
                "no step had a picture"
            )
        self._forget(self.names)

    def _of_all_processes(self) -> tuple[dict[str, int], bool, bool]:
        """Watched tensors with a faulty gradient and its level; whether any process had pictures; and samples."""
        there = torch.tensor([self.pictures, self.samples]).to(self.levels)
        seen = torch.cat([self.levels, self.partners, there])
        *numbers, any_pictures, any_samples = reduced(seen, distributed.ReduceOp.MAX).tolist()
        levels, partners = numbers[: len(self.names)], numbers[len(self.names) :]
        at_fault = {
            name: level
            for name, level, partner in zip(self.names, levels, partners, strict=True)
            if name in self.handles and level < THERE and not (level == ZERO and partner == 0)
        }
        return at_fault, bool(any_pictures), bool(any_samples)

    def _needs_a_picture(self, name: str) -> bool:
        return component_of(name, self.family.paths) in ("vision", "connector")

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            handle = self.handles.pop(name, None)
            if handle is not None:
                handle.remove()
        if not self.handles:
            self.shards.clear()


def _partner(name: str) -> str:
    """The other half of an adapter: ``…lora_A.default.weight`` ↔ ``…lora_B.default.weight``; "" for other tensors."""
    for one, other in _HALVES:
        for here, there in ((one, other), (other, one)):
            if here in name:
                return name.replace(here, there)
    return ""


def _is_anything(values: Tensor) -> Tensor:
    """Is any value nonzero (NaN counts)? Makes no copy: an output layer has hundreds of millions of values."""
    if values.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device=values.device)
    low, high = values.aminmax()
    return (low != 0) | (high != 0)


def _message(faults: Mapping[str, int], family: Family) -> str:
    shown = [
        f"  {'absent' if level == ABSENT else 'zero  '}  {name}" for name, level in sorted(faults.items())
    ]
    if len(shown) > MOST_NAMES_SHOWN:
        shown = [*shown[:MOST_NAMES_SHOWN], f"  ... and {len(faults) - MOST_NAMES_SHOWN} more"]
    components = sorted({component_of(name, family.paths) for name in faults} & {*COMPONENTS})
    frozen = " ".join(f"--{component} frozen" for component in components) or "freeze them"
    return "\n".join(
        [
            f"{len(faults)} trainable tensors got no gradient in the first step:",
            *shown,
            "they would never learn (absent: the loss does not depend on them; zero: no gradient reaches "
            f"them); leave out what cannot learn ({frozen}), or try without --gradient_checkpointing, which cuts "
            "gradients of models that do not support it",
        ]
    )
