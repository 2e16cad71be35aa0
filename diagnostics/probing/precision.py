"""The precision that a model is measured in, as records name it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn


def precision_words(model: nn.Module, autocast: torch.dtype | None = None) -> str:
    """ "bfloat16", "float32 (autocast: bfloat16)", "4 bit (bfloat16)" or "8 bit (bitsandbytes, float16)": the weights',
    and what computes, if another.

    Of weights that come quantised, bits and method are those of their configuration, and what computes is the dtype of
    most others. 4 bits of bitsandbytes, which is what ``--q_lora`` makes, are named without a method.

    model      the bare model; an adapter's own weights in it are few and do not count
    autocast   dtype of mixed precision; None: the weights' own
    """
    weights: Any = model
    if getattr(weights, "is_loaded_in_4bit", False):  # transformers writes it for 4-bit models alone
        from bitsandbytes.nn import Linear4bit

        computed = {one.compute_dtype for one in model.modules() if isinstance(one, Linear4bit)}
        own = f"4 bit ({', '.join(sorted(map(_name, computed)))})"
    else:
        sizes = Counter[torch.dtype]()
        for one in model.parameters():
            if one.is_floating_point():
                sizes[one.dtype] += getattr(one, "ds_numel", one.numel())  # ZeRO-3 leaves 0 elements in place
        own = _quantised(getattr(weights, "config", None), _name(sizes.most_common(1)[0][0]))
    return own if autocast is None else f"{own} (autocast: {_name(autocast)})"


def _quantised(config: Any, computed: str) -> str:
    """What computes, with bits and method of the weights where a library has quantised them."""
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return computed
    said: dict[str, Any] = settings if isinstance(settings, dict) else settings.to_dict()
    method = said.get("quant_method") or "unknown method"
    loaded = next((bits for bits in (8, 4) if said.get(f"load_in_{bits}bit")), None)
    bits = loaded or said.get("bits") or said.get("w_bit")
    return (
        f"{'quantised' if bits is None else f'{bits} bit'} ({getattr(method, 'value', method)}, {computed})"
    )


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
