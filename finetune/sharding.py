"""Sharded parameters (ZeRO-3, FSDP): whole shapes, local values, and gathering.

ZeRO-3 leaves an empty parameter with the whole shape in ``ds_shape`` and the shard in ``ds_tensor``; FSDP 2 makes a
DTensor; FSDP 1 makes flat shards, whose parameters cannot be identified.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_zero3(parameter: Tensor) -> bool:
    """Does DeepSpeed's ZeRO-3 shard this parameter?"""
    return hasattr(parameter, "ds_id")


def is_flat(parameter: Tensor) -> bool:
    """Is this a flat shard of FSDP 1, or, with ``use_orig_params``, a view into one?"""
    return getattr(parameter, "_fsdp_flattened", False)


def whole_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of the whole tensor, which under ZeRO-3 is not the shape of what lies here."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def local_values(tensor: Tensor) -> Tensor:
    """The values in this process: under ZeRO-3 and FSDP 2 its shard, which may be empty."""
    shard = getattr(tensor, "ds_tensor", tensor)
    return shard.to_local() if isinstance(shard, DTensor) else shard


def whole_values(parameter: Tensor) -> Tensor:
    """All values, to be read inside ``gathered``. Under FSDP 2 every process must call this."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[object]:
    """Inside, parameters that ZeRO-3 shards are whole. Every process must enter; without any, nothing happens."""
    sharded = [parameter for parameter in parameters if is_zero3(parameter)]
    if not sharded:
        return nullcontext()
    import deepspeed  # .zero is an attribute, no module

    return deepspeed.zero.GatheredParameters(sharded)  # type: ignore[no-any-return]
