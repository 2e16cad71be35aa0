"""A model's modules by the paths that its family names: attention, layers, copies that PEFT keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from finetune.families.base import Family

if TYPE_CHECKING:
    from torch import nn

# Class of a wrapper → where it keeps what it wraps. By name: most of them need not be installed.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",  # torch.compile
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


def _below_wrappers(module: nn.Module) -> nn.Module:
    while names := [one.__name__ for one in type(module).__mro__ if one.__name__ in WRAPPERS]:
        module = getattr(module, WRAPPERS[names[0]])
    return module


def bare_model(model: nn.Module) -> nn.Module:
    """The transformers model below PEFT, distributed wrappers and torch.compile."""
    while True:
        model = _below_wrappers(model)
        if not hasattr(model, "get_base_model"):  # PeftModel
            return model
        model = model.get_base_model()  # type: ignore[operator]


def adapted_model(model: nn.Module) -> nn.Module | None:
    """The PeftModel below distributed wrappers and torch.compile; None if there is no adapter."""
    model = _below_wrappers(model)
    return model if hasattr(model, "get_base_model") else None


def attention_modules(model: nn.Module, family: Family) -> dict[str, nn.Module]:
    """Every module that attends, by the name under which its rows are reported: of several copies the one in use.

    ``layer_N`` language layers, ``visual_attn`` the connector's cross-attention, ``vision_layer_N`` the tower.
    Language layers without an attention map (the family's ``attention_shape`` is None) are not among them; the others
    keep their numbers.
    """
    model = bare_model(model)
    return {
        name: _below_wrappers(model.get_submodule(path)) for name, path in _attention_paths(model, family)
    }


def attention_copies(model: nn.Module, family: Family) -> dict[str, list[nn.Module]]:
    """``attention_modules`` with every copy of each (``copies_of``)."""
    model = bare_model(model)
    return {name: copies_of(model, path) for name, path in _attention_paths(model, family)}


def copies_of(model: nn.Module, path: str) -> list[nn.Module]:
    """The module at a path, as often as there is one: PEFT keeps what trains in full beside an adapter twice, and runs
    the original while the adapter is off. What watches a module must watch all of them."""
    found = _unwrapped(model)
    for name in path.split("."):
        found = [copy for one in found for copy in _unwrapped(one.get_submodule(name))]
    return found


def _unwrapped(module: nn.Module) -> list[nn.Module]:
    module = _below_wrappers(module)
    if not hasattr(module, "modules_to_save"):
        return [module]
    return [*module.modules_to_save.values(), module.original_module]  # type: ignore[operator,union-attr,list-item]


def _attention_paths(model: nn.Module, family: Family) -> Iterator[tuple[str, str]]:
    paths = family.paths
    for index in attending_layers(model, family):
        yield f"layer_{index}", f"{paths.language_layers}.{index}.{paths.language_attention}"
    if paths.connector_attention is not None:
        yield "visual_attn", paths.connector_attention
    for index in range(len(list(model.get_submodule(paths.vision_layers).children()))):
        yield f"vision_layer_{index}", f"{paths.vision_layers}.{index}.{paths.vision_attention}"


def language_layers(model: nn.Module, family: Family) -> list[nn.Module]:
    """All of them, in order, whether they attend or not."""
    return list(bare_model(model).get_submodule(family.paths.language_layers).children())


def attending_layers(model: nn.Module, family: Family) -> tuple[int, ...]:
    """Numbers of the language layers that have an attention map: of hybrids (linear attention) only some."""
    config: Any = bare_model(model).config
    numbers = range(len(language_layers(model, family)))
    return tuple(at for at in numbers if family.attention_shape(config, f"layer_{at}") is not None)


def layer_words(attending: Sequence[int]) -> str:
    """Which layers can be asked for, in an error: "0 to 3", "3, 7 (the others have no attention map)"."""
    if [*attending] == [*range(len(attending))]:
        return f"0 to {len(attending) - 1}"
    return f"{', '.join(map(str, attending))} (the others have no attention map)"
