"""Groups of parameters: a learning rate for each component, and weight decay only for matrices."""

from typing import Any, NamedTuple

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_optimizer import is_optimizer_factory

from finetune.families.base import Family
from finetune.families.parts.modules import bare_model
from finetune.model.adaptation import COMPONENTS, OTHER, Rates, component_of, decaying


def parameter_groups(model: nn.Module, family: Family, rates: Rates) -> list[dict[str, Any]]:
    """Trainable parameters by component and weight decay, as torch's optimizers take them.

    Each group: ``params``, ``lr`` (a schedule scales it), ``weight_decay``, and the ``component`` that its rate
    is logged under. No group is empty: DeepSpeed cannot flatten an empty one.
    """
    bare = bare_model(model)
    decays = decaying(bare)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in bare.named_parameters():
        if parameter.requires_grad:
            key = (component_of(name, family.paths), name in decays)
            groups.setdefault(key, []).append(parameter)
    order = sorted(groups, key=lambda key: ((*COMPONENTS, OTHER).index(key[0]), not key[1]))
    return [
        {
            "params": groups[component, decay],
            "lr": rates.of(component),
            "weight_decay": rates.weight_decay if decay else 0.0,
            "component": component,
        }
        for component, decay in order
    ]


class Choice(NamedTuple):
    """An optimizer class and its options, as transformers' Trainer takes them."""

    optimizer_class: Any
    options: dict[str, Any]


def with_groups(choice: Choice, model: nn.Module, family: Family, rates: Rates) -> Choice:
    """transformers' choice of an optimizer, over our groups.

    Its Trainer uses ``params`` in the options instead of groups of its own. Optimizers that make their own groups
    (GaLore, LOMO, Muon) have theirs there already, or take the model: those stay as they are.

    Raises ValueError if such an optimizer meets a component's own learning rate.
    """
    own_groups = is_optimizer_factory(choice.optimizer_class) or {"params", "model", "optimizer_dict"} & {
        *choice.options
    }
    if not own_groups:
        groups = parameter_groups(model, family, rates)
        return Choice(choice.optimizer_class, {**choice.options, "params": groups})
    if rates.own:
        raise ValueError(
            f"{choice.optimizer_class.__name__} makes its own groups of parameters, and {', '.join(rates.own)} has a "
            "learning rate of its own; take --optim adamw_torch, or leave that rate out"
        )
    return choice


class ComponentRates(TrainerCallback):
    """Adds the learning rate of each component that trains to what is logged: ``learning_rate_vision``, ...

    It must stand before the callbacks that write. Rates are those of the step just taken, as transformers' own
    ``learning_rate`` is: read before the schedule moves on.
    """

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        groups = optimizer.param_groups if optimizer is not None else []
        self.rates = {group["component"]: float(group["lr"]) for group in groups if "component" in group}

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs is not None and "learning_rate" in logs:
            logs.update({f"learning_rate_{component}": rate for component, rate in self.rates.items()})
