"""A model's modules by the paths that its family names: attention, layers, copies that PEFT keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from finetune.families.base import Family, not_read

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
BEYOND_LAYERS = ("XLORA", "POLY", "SHADOW")
"""PEFT's kinds whose model has a forward pass of its own that says what its layers compute."""


def _inside(module: nn.Module) -> nn.Module | None:
    """What a distributed wrapper or torch.compile wraps; None for any other module."""
    names = [one.__name__ for one in type(module).__mro__ if one.__name__ in WRAPPERS]
    return getattr(module, WRAPPERS[names[0]]) if names else None


def _below_wrappers(module: nn.Module) -> nn.Module:
    while (inside := _inside(module)) is not None:
        module = inside
    return module


def down_to_bare(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and what each wrapper in turn wraps; ``bare_model`` is the last."""
    yield model
    while True:
        inside = _inside(model)
        if inside is None and hasattr(model, "get_base_model"):  # PeftModel
            inside = model.get_base_model()  # type: ignore[operator]
        if inside is None:
            return
        yield (model := inside)


def bare_model(model: nn.Module) -> nn.Module:
    """The transformers model below PEFT, distributed wrappers and torch.compile."""
    *_, bare = down_to_bare(model)
    return bare


def adapted_model(model: nn.Module) -> nn.Module | None:
    """The model that has an adapter, below distributed wrappers and torch.compile: the PeftModel, or a transformers
    model after its own ``add_adapter``; None if there is no adapter."""
    model = _below_wrappers(model)
    has_one = hasattr(model, "get_base_model") or getattr(model, "_hf_peft_config_loaded", False)
    return model if has_one else None


def adapter_outside(model: nn.Module) -> str | None:
    """What of an adapter works only in PEFT's forward pass, so that the bare model runs without it, in words: a learned
    prompt (prompt tuning, prefix tuning, P-tuning, CPT), an aLoRA, a mixture of adapters (X-LoRA). None if the bare
    model computes what the adapted one does, as with LoRA and all that lives in single layers.
    """
    adapted: Any = adapted_model(model)
    if adapted is None or not hasattr(adapted, "get_base_model"):
        return None
    for name, config in adapted.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if config.is_prompt_learning:
            return f"a learned prompt ({name}: {kind})"
        if getattr(config, "alora_invocation_tokens", None):
            return f"an aLoRA, which acts from its invocation tokens on ({name}: alora_invocation_tokens)"
        if kind in BEYOND_LAYERS:
            return f"an adapter that its own forward pass steers ({name}: {kind})"
    return None


def check_measurable(model: nn.Module) -> None:
    """Refuse what cannot be measured on the bare model.

    Raises:
        ValueError: a part of the adapter works outside it (``adapter_outside``), or weights are on the meta device that
            no hook fetches when they are needed, or the first weights are, to which inputs go.
    """
    found = adapter_outside(model)
    if found is not None:
        raise ValueError(
            f"the model has {found}, expected an adapter within its layers, such as LoRA: attention and answers are "
            "measured on the model inside PEFT's, which runs without that part, so they would stay those of the base; "
            "use another kind of adapter, or do without these measurements (no monitor)"
        )
    bare = bare_model(model)
    for at, (name, one) in enumerate(bare.named_parameters()):
        holder = bare.get_submodule(name.rpartition(".")[0]) if one.is_meta else None
        if holder is not None and (at == 0 or not hasattr(holder, "_hf_hook")):
            where = "the first weights" if at == 0 else "weights"
            raise ValueError(
                f"the model's {name} is on the meta device, expected {where} in memory; load the model without "
                "offloading it, say in 4 bit"
            )


def check_identifiable(model: nn.Module) -> None:
    """Refuse a model that cannot be told from others: runs are resumed and compared by marks of the weights.

    Raises:
        ValueError: weights are on the meta device, where ``device_map`` has offloaded them.
    """
    away = next((name for name, one in bare_model(model).named_parameters() if one.is_meta), None)
    if away is not None:
        raise ValueError(
            f"the model's {away} is on the meta device, expected weights in memory: offloaded ones cannot be told from "
            "others when a run is resumed or compared; load the model without offloading, say in 4 bit"
        )


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


def tower_layers(model: nn.Module, family: Family) -> tuple[int, ...]:
    """Numbers of the vision tower's layers that the model reads: of LLaVA-1.5's 24 not the last, from which nothing
    goes on."""
    bare = bare_model(model)
    unread, path = not_read(family, bare.config), family.paths.vision_layers
    count = len(list(bare.get_submodule(path).children()))
    return tuple(layer for layer in range(count) if f"{path}.{layer}" not in unread)


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
