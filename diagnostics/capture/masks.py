"""Attention masks in the format of each kernel, with keys removed for a knock-out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finetune.attention.rows import LEFT_OUT_BY_SDPA, rules
from finetune.attention.watch import Call
from finetune.families.base import TowerSequence


def with_mask(call: Call, mask: Tensor) -> Call:
    """The call with another mask of four axes. Flash kernels take none and are replaced: by SDPA, or by
    eager where the call has terms that SDPA drops."""
    if not call.is_flash:
        return call._replace(mask=mask)
    if all(call.options.get(term) is None for term in LEFT_OUT_BY_SDPA):
        return call.under("sdpa", mask)
    return call.under("eager", additive(mask, call.query.dtype))


def additive(seen: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A mask as eager attention takes it: 0 where a key is seen, the lowest number where it is not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def mask_without(call: Call, blocked: Bool[Tensor, "batch query key"], *, start: int) -> Tensor:
    """The call's mask with the blocked keys removed, in the form that its kernel takes.

    ``start``: position of this call's first query in the whole sequence (0 unless it continues from a cache).
    """
    batch, _, queries, _ = call.query.shape
    keys, device = call.key.shape[2], call.query.device
    if blocked.shape[0] not in (1, batch):
        raise ValueError(
            f"knock-out: found a mask of {blocked.shape[0]}, the attention is of {batch} sequences or images; expected "
            "one for all, or one for each (beams and several answers count as sequences)"
        )
    part = blocked[:, :, call.first_key : call.first_key + keys].to(device)
    part = part if part.shape[1] == 1 else part[:, start : start + queries]
    out = torch.zeros(blocked.shape[0], 1, queries, keys, dtype=torch.bool, device=device)
    out[:, 0, : queries if part.shape[1] == 1 else part.shape[1], : part.shape[2]] = part
    if call.mask is not None and call.mask.ndim == 4:
        mask = call.mask[..., :keys]
        return mask & ~out if mask.dtype == torch.bool else mask.masked_fill(out, torch.finfo(mask.dtype).min)
    every = torch.arange(batch, device=device)
    allowed, _ = rules(call, every, torch.arange(queries, device=device).expand(batch, -1))
    seen = (~out if allowed is None else allowed & ~out).expand(batch, -1, queries, keys)
    return seen if call.kernel != "eager" else additive(seen, call.query.dtype)


def by_place(
    blocked: Bool[Tensor, "images query key"], sequences: Sequence[TowerSequence]
) -> Bool[Tensor, "sequences query key"]:
    """A knock-out by patch → by place of the sequences; class tokens are left alone, and patches beyond the mask's.

    Raises ValueError for an image that the mask says nothing of: one mask is for all, several are one for each.
    """
    return torch.stack([_at_places(blocked.to("cpu"), one) for one in sequences])


def check_count(name: str, masks: int, *, pictures: int, images: int) -> None:
    """Raises ValueError unless there is one mask for all of a pass's pictures, or one for each; their overviews, which
    are among its images, may have masks too."""
    if masks != 1 and not pictures <= masks <= max(images, pictures):
        raise ValueError(
            f"knock-out: found {masks} masks for {name}, the pass has {pictures} pictures; expected one for all, or "
            "one for each"
        )


def _at_places(
    blocked: Bool[Tensor, "images query key"], one: TowerSequence
) -> Bool[Tensor, "query_or_1 place"]:
    count, queries, keys = blocked.shape
    image, patch = torch.from_numpy(one.image), torch.from_numpy(one.patch)
    rows = 1 if queries == 1 else len(one)
    if int(image.max()) >= count:
        if one.is_overview:
            return torch.zeros(rows, len(one), dtype=torch.bool)
        if count > 1:
            check_count("the tower", count, pictures=int(image.max()) + 1, images=0)
    of = image if count > 1 else torch.zeros_like(image)
    has_key = (patch >= 0) & (patch < keys)
    key = patch.clamp(0, keys - 1)
    if queries == 1:
        return (blocked[of, 0, key] & has_key)[None]
    has_row = (patch >= 0) & (patch < queries)
    is_same_image = image[:, None] == image[None, :]
    found = blocked[of[:, None], patch.clamp(0, queries - 1)[:, None], key[None, :]]
    return found & has_row[:, None] & has_key[None, :] & is_same_image
