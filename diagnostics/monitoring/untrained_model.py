"""The model that training begins with: what it is called, and where it is, so that its attention can be put back."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path

from torch import nn

from diagnostics.probing.before import (
    AdapterOff,
    BeforeModel,
    NotAtHandError,
    has_trained_adapter,
    loaded_beside,
)
from finetune.families import bare_model
from finetune.families.parts.modules import adapted_model
from finetune.model.folders import is_adapter

WITH_ADAPTER, UNKNOWN_ADAPTER = " with the adapter ", "it came with"
"""In the name of an untrained model: it is not its base alone, since its adapter was trained before."""
UNKNOWN_ADAPTER_WARNING = (
    "warning: the adapter was trained before, and nothing says where its folder is: it is not known whether pictures "
    "of the probes, or attention, were trained on; give the monitor reference=, that folder"
)


def opened_from(model: nn.Module) -> str | None:
    """The folder or hub name that the weights below any adapter were read from; None where they were not."""
    return str(getattr(bare_model(model).config, "name_or_path", "") or "") or None


def base_words(model: nn.Module) -> str:
    """The name of the weights below any adapter."""
    return opened_from(model) or "base"


def untrained_words(model: nn.Module, reference: str | None) -> str:
    """The name of the model that training begins with. Every rank must call this."""
    base, further = base_words(model), has_trained_adapter(model)
    adapter = None if reference is None else _adapter_folder(reference)
    if adapter is None and not further:
        return base
    return f"{base}{WITH_ADAPTER}{adapter or UNKNOWN_ADAPTER}"


def is_of_unknown_adapter(name: str) -> bool:
    """Whether a model of this name has an adapter that came from nobody knows where: PEFT keeps no trace of the folder
    that an adapter was opened from."""
    return name.endswith(f"{WITH_ADAPTER}{UNKNOWN_ADAPTER}")


def untrained_at_hand(
    model: nn.Module, name: str, reference: str | None, *, cache_dir: str | None
) -> BeforeModel:
    """The untrained model beside the one in training.

    name        ``untrained_words`` of it
    reference   its folder or hub name; None: not known, so that an adapter must be switched off

    Raises NotAtHandError where there is none, and what loading raises.
    """
    if reference is not None and _adapter_folder(reference) is not None:
        return loaded_beside(reference, model, base=opened_from(model), cache_dir=cache_dir)
    if WITH_ADAPTER in name:
        raise NotAtHandError(
            "the adapter was trained before, so the model without it is not the one that this training began with; "
            "give the monitor reference=, the folder of that adapter, or compare with python -m diagnostics.compare"
        )
    if adapted_model(model) is not None:
        with suppress(NotAtHandError) if reference is not None else nullcontext():
            return AdapterOff(model, name)
    if reference is None:
        raise NotAtHandError(
            "there is no adapter to switch off, and nothing says where the untrained model is; give the monitor "
            "reference=, its folder or name, or compare with python -m diagnostics.compare"
        )
    return loaded_beside(reference, model, cache_dir=cache_dir)


def _adapter_folder(name: str) -> Path | None:
    """The folder of a name that is an adapter's; None for a model, and for hub names."""
    folder = Path(name).expanduser()
    return folder if is_adapter(folder) else None
