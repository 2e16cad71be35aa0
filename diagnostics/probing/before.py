"""The model before, run beside the model after: its adapter switched off, or a second model in memory.

The source of attention in ``diagnostics.probing.mediation``. If it is not available, ``NotAtHandError`` gives the
reason, and nothing is measured instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.tensor import DTensor

from finetune.families import Family, attention_modules, bare_model, family_of
from finetune.families.parts.modules import adapted_model, adapter_outside
from finetune.model.checkpoint import load
from finetune.model.free_memory import available_bytes
from finetune.model.memory_estimate import gibibytes
from finetune.model.untouched import untouched
from finetune.sharding import gathered, is_flat, is_zero3, whole_values

RESERVE_BYTES = 2**28
"""Memory left free beside a second model: activations of one probe, and its queries and keys."""
OF_PEFT = ("_disable_adapters", "_active_adapter")
"""Attributes of PEFT's layers that change when an adapter is switched off and on."""
WHOLLY_OFF = ("LORA", "LOHA", "LOKR", "IA3")
"""PEFT's kinds, as adapters name them, that leave the weights of the base as they are."""
BESIDE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Starts of LoRA that do so too. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take a part out of the weights, again each time
that the adapter is opened."""


class NotAtHandError(ValueError):
    """The model before cannot be run beside the model after; the message gives the reason."""


class BeforeModel(Protocol):
    """A model that can run between two runs of the model after.

    name   the model's name in the records before
    """

    @property
    def name(self) -> str: ...

    def running(self) -> AbstractContextManager[nn.Module]:
        """Yields the model before, ready to run; restores both models afterwards."""


@dataclass(frozen=True)
class AdapterOff:
    """The base of an adapter: the same model with the adapter switched off, and with the base's own copies of modules
    that train in full beside it (PEFT's ``modules_to_save``).

    It equals the start of training only if the adapter started as zero (LoRA's B = 0): not for PiSSA, OLoRA and LoftQ,
    which subtract a part from the base's weights, and not if an earlier adapter was continued. The margin of
    ``patched_from`` in records shows this.

    Raises NotAtHandError for a model without an adapter, for one whose biases train too, which stay when the adapter is
    switched off, and for a merged one: unmerging rounds the weights.
    """

    model: nn.Module
    name: str

    def __post_init__(self) -> None:
        if (fault := adapter_fault(self.model)) is not None:
            raise NotAtHandError(fault)

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        adapted: Any = adapted_model(self.model)
        with _adapter_state_kept(adapted), _switched_off(adapted):
            yield adapted


@dataclass(frozen=True)
class OtherModel:
    """A second model."""

    model: nn.Module
    name: str

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        with untouched(self.model):
            yield self.model


def adapter_fault(model: nn.Module) -> str | None:
    """The reason why a model's adapter cannot be switched off and on; None if it can."""
    adapted: Any = adapted_model(model)
    if adapted is None:
        return f"found a {type(bare_model(model)).__name__} without an adapter, expected one to switch off"
    for name, config in adapted.peft_config.items():
        if (bias := getattr(config, "bias", "none")) != "none":
            return (
                f"the adapter trains biases of the base itself ({name}: bias {bias}), which stay as trained when it is "
                "switched off"
            )
    merged = [module for module in adapted.modules() if getattr(module, "merged", False) is True]
    if merged:
        return (
            f"the adapter is merged into the weights of {len(merged)} modules, and taking it out again would round "
            "them; unmerge it before probing"
        )
    if (outside := adapter_outside(model)) is not None:
        return f"the model has {outside}, without which it is measured"
    if is_sharded(model):
        return SHARDED
    return None


def is_base_when_off(fields: Mapping[str, Any]) -> bool:
    """Whether a model opened with an adapter is the base, weight for weight, once the adapter is switched off; False
    where that is not known.

    fields   of the adapter's configuration (``adapter_config.json``)
    """
    return (
        fields.get("peft_type") in WHOLLY_OFF
        and fields.get("bias", "none") == "none"
        and fields.get("init_lora_weights") in BESIDE_THE_BASE
        and not fields.get("layer_replication")
    )


def has_trained_adapter(model: nn.Module) -> bool:
    """Whether a model that has not trained yet computes something else than its base: it has a LoRA that is not zero,
    as one that is trained further is. Every rank must call this, as in ``model_marks``.

    False for starts that are not zero and leave the sum as it was (PiSSA, OLoRA), which nothing tells from a
    LoRA that is trained further, and for flat shards (FSDP 1), which cannot be read.
    """
    adapted: Any = adapted_model(model)
    if adapted is None or any(is_flat(one) for one in adapted.parameters()):
        return False
    beside = [
        name
        for name, config in adapted.peft_config.items()
        if getattr(config, "init_lora_weights", "") in BESIDE_THE_BASE
    ]
    found = False
    for module in adapted.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        for factors in (getattr(module, name, {}) for name in ZERO_AT_FIRST):
            for name in (one for one in module.active_adapters if one in beside and one in factors):
                weight = getattr(factors[name], "weight", factors[name])
                with gathered([weight]):
                    found |= bool(whole_values(weight).any())
    return found


ZERO_AT_FIRST = ("lora_B", "lora_embedding_A")
"""The factor of a LoRA that starts as zero: of linear layers, of embeddings."""
SHARDED = "the weights are sharded over processes (ZeRO-3, FSDP); compare with python -m diagnostics.compare afterwards"


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter is sharded over processes."""
    return any(is_zero3(one) or is_flat(one) or isinstance(one, DTensor) for one in model.parameters())


@contextmanager
def _switched_off(adapted: Any) -> Iterator[None]:
    """Without the adapter; ``_adapter_state_kept`` switches it on again.

    PEFT's own context manager also asks for a status, and switches on, which reads every module of the model ten times
    over, for each probe. It is left to tuners that switch in a way of their own (X-LoRA, adaption prompts).
    transformers' own adapters have no tuner: their layers are switched one by one, as a tuner does.
    """
    if not hasattr(adapted, "get_base_model"):
        for module in adapted.modules():
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(False)
        yield
        return
    tuner = adapted.base_model
    if getattr(type(tuner), "disable_adapter_layers", None) is not BaseTuner.disable_adapter_layers:
        with adapted.disable_adapter():
            yield
        return
    tuner.disable_adapter_layers()
    yield


@contextmanager
def _adapter_state_kept(adapted: nn.Module) -> Iterator[None]:
    """Restores what PEFT changes when it switches adapters off and on: it marks their parameters as trainable, and
    stores the names of active adapters in another form."""
    layers = [one for one in adapted.modules() if any(hasattr(one, name) for name in OF_PEFT)]
    # A layer may have an attribute from its class alone, until PEFT sets it.
    states = [{name: vars(one)[name] for name in OF_PEFT if name in vars(one)} for one in layers]
    trained = [(parameter, parameter.requires_grad) for one in layers for parameter in one.parameters()]
    try:
        yield
    finally:
        for layer, state in zip(layers, states, strict=True):
            for name in OF_PEFT:
                vars(layer).pop(name, None)
            vars(layer).update(state)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def difference(before: nn.Module, after: nn.Module) -> str | None:
    """The reason why one model's attention cannot be put into the other; None if both have the same architecture."""
    ours, theirs = _built(after), _built(before)
    for name in (*ours, *(name for name in theirs if name not in ours)):
        if ours.get(name) != theirs.get(name):
            return (
                f"the two models differ in architecture: {name} is {theirs.get(name, 'missing')} before and "
                f"{ours.get(name, 'missing')} after; attention can only be put back into the same architecture"
            )
    return None


def _built(model: nn.Module) -> dict[str, str]:
    bare: Any = bare_model(model)
    family = family_of(bare.config)
    found = {
        "the family": family.name,
        "the vocabulary": f"{bare.config.get_text_config().vocab_size:,} tokens",
    }
    return found | {name: _shape(family, bare, name) for name in attention_modules(bare, family)}


def _shape(family: Family, bare: Any, name: str) -> str:
    shape = family.attention_shape(bare.config, name)
    if shape is None:
        return "without an attention map"
    return f"{shape.heads} heads over {shape.key_heads} of {shape.head_width}"


def loaded_beside(
    reference: str, after: nn.Module, *, base: str | None = None, cache_dir: str | None = None
) -> OtherModel:
    """The model before, loaded with the precision, device and kernel of the model after.

    base        of a ``reference`` that is an adapter: the one that it runs on here; None: the one that it names
    cache_dir   where models of the hub were downloaded to; None: to the hub's own place

    Raises NotAtHandError if weights are sharded or in 4 bit, memory is too small, the checkpoint cannot be opened, or
    its architecture differs.
    """
    if is_sharded(after):
        raise NotAtHandError(SHARDED)
    bare: Any = bare_model(after)
    if getattr(bare, "is_loaded_in_4bit", False):  # transformers writes it for 4-bit models alone
        raise NotAtHandError(
            "its weights are in 4 bit, and a second model beside it would be in full precision"
        )
    require_room(after)
    first = next(bare.parameters())
    try:
        with untouched(after):  # random states: missing weights of a checkpoint are drawn at random
            model, _ = load(
                reference,
                dtype=first.dtype,
                device=first.device,
                attn_implementation=_kernel(bare.config),
                cache_dir=cache_dir,
                base=base,
                allow_other_base=base is not None,  # it runs on it already
            )
    except (ValueError, OSError) as error:
        raise NotAtHandError(f"{reference} could not be opened a second time: {error}") from error
    if (fault := difference(model, after)) is not None:
        raise NotAtHandError(fault)
    return OtherModel(model, reference)


def _kernel(config: Any) -> str | None:
    """The kernel to ask for; None where the language model has another than the rest, as ``load`` chooses where SDPA
    cannot compute its attention."""
    whole: str = config._attn_implementation
    text = getattr(config, "text_config", None)
    return whole if text is None or text._attn_implementation == whole else None


def require_room(model: nn.Module) -> None:
    """Raises NotAtHandError if memory is too small for a second model of these weights, on its device or, during
    loading, in the system."""
    needed = RESERVE_BYTES + sum(one.numel() * one.element_size() for one in bare_model(model).parameters())
    device = next(model.parameters()).device
    for place in dict.fromkeys((device, torch.device("cpu"))):
        free = available_bytes(place)
        if free < needed:
            raise NotAtHandError(
                f"a second model beside this one needs {gibibytes(needed)}, found {gibibytes(free)} free on {place}; "
                "run python -m diagnostics.compare on a machine with more memory"
            )
