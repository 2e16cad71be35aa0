"""The only file that knows how attention is obtained: exact rows beside the real kernel, and keys taken away.

Every model of transformers looks its kernel up by name in ``AttentionInterface`` and calls it with q and k as
they enter the product (after rotary embedding, norms and the cache). So the extractor gives each kernel in
use a second name, whose function calls the real kernel with the very same arguments, and then computes the
softmax of the wanted query rows alone, in fp32. The output of the model is that of the real kernel, bit for
bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune.families import Family, attention_modules, bare_model, family_of

ROW_SUM_TOLERANCE = 1e-4
PREFIX = "observed_"  # the real kernel's name stays inside: models test names for "flash"
EAGER_NAMES = ("eager_attention_forward", "eager_attention")
UNSUPPORTED_KERNELS = ("flex_attention", "paged|")
UNSUPPORTED_TERMS = ("s_aux", "position_bias")  # sink logits and biases: rows without them would be wrong

_EXTRACTORS: WeakKeyDictionary[nn.Module, AttentionExtractor] = WeakKeyDictionary()  # by bare model
_WATCHERS: WeakKeyDictionary[nn.Module, _Watcher] = WeakKeyDictionary()  # by attention module


class AttentionExtractor:
    """Which keys did each query look at, in chosen layers, while the model runs as it always does?

    Attached from construction until ``remove()`` (or the end of a ``with`` block); one at a time on a model.

    ``attention_weights`` has, from the model's last pass over a sequence (a plain forward, or a prefill):

    - ``layer_N``         np.float32 (batch, heads, query tokens, key tokens), language layers
    - ``visual_attn``     np.float32 (images, heads, queries, patches), the connector's cross-attention
    - ``vision_layer_N``  np.float32 (images, heads, patches, patches), the vision tower

    Rows are probabilities before dropout; each sums to 1, a padded query's is all 0 or what its kernel makes
    of it. ``decode_weights`` has what generation adds: ``layer_N`` → a list with one array for each cached
    step since that pass, (batch, heads, tokens of the step, keys so far), every new token's row whatever
    ``query_tokens`` says.

    key_layers     language layers by index; None: all of them; []: none (to take keys away only)
    heads          heads of the language layers by index; None: all
    query_tokens   positions of the rows to keep, from the end where negative: a list for all of the batch, or
                   Int[batch, queries], one list for each kept sequence; None: every row, a square for each
                   layer
    sequences      which sequences of the batch to keep; None: all
    images         which images of the pass to keep for ``visual_attn`` and ``vision_layer_N``; None: all
    vision_layers  layers of the vision tower by index
    connector      keep the connector's rows, where the family's connector attends

    Cost: k·q of the wanted rows in fp32, queries × keys numbers a head; never keys × keys unless every row is
    asked.

    Raises ValueError where a layer does not exist, another extractor is attached, or a kernel cannot be
    observed.
    """

    def __init__(
        self,
        model: nn.Module,
        key_layers: Sequence[int] | None = None,
        *,
        heads: Sequence[int] | None = None,
        query_tokens: Sequence[int] | Int[Tensor, "batch query"] | None = None,
        sequences: Sequence[int] | None = None,
        images: Sequence[int] | None = None,
        vision_layers: Sequence[int] = (),
        connector: bool = True,
        family: Family | None = None,
    ) -> None:
        self._model = bare_model(model)
        self.family = family or family_of(self._model.config)
        self._modules = attention_modules(self._model, self.family)
        self._wanted = _wanted_names(self._modules, key_layers, vision_layers, connector=connector)
        self.heads = None if heads is None else list(heads)
        self.query_tokens = query_tokens
        self.sequences = None if sequences is None else list(sequences)
        self.images = None if images is None else list(images)
        self._blocked: dict[str, Tensor] = {}
        self._proof: dict[str, float] | None = None
        self.clear()
        self._attach()

    @property
    def names(self) -> tuple[str, ...]:
        """Every module that attends, in the words of ``attention_weights``; only some of them are
        captured."""
        return tuple(self._modules)

    @property
    def language_names(self) -> tuple[str, ...]:
        """``layer_0`` to the last language layer, in order."""
        return tuple(name for name in self._modules if name.startswith("layer_"))

    @property
    def attention_weights(self) -> dict[str, np.ndarray]:
        """Rows of the last pass over a sequence; see the class. Copied from the device on each access."""
        return {name: _joined(name, calls) for name, calls in self._rows.items()}

    @property
    def decode_weights(self) -> dict[str, list[np.ndarray]]:
        """Rows of each cached step since that pass; see the class. Copied from the device on each access."""
        return {name: [_to_numpy(step) for step in steps] for name, steps in self._steps.items()}

    def clear(self) -> None:
        """Forget the rows seen so far."""
        self._rows: dict[str, list[Tensor]] = {}
        self._steps: dict[str, list[Tensor]] = {}
        self._inside = False
        self._touched: set[str] = set()
        self._new_sequence = False

    def remove(self) -> None:
        """Give the model back as it was. Doing it twice does no harm; rows stay readable."""
        for hook in self._hooks:
            hook.remove()
        for config, kernel in self._kernels:
            config._attn_implementation_internal = kernel
        self._hooks, self._kernels = [], []
        if _EXTRACTORS.get(self._model) is self:
            del _EXTRACTORS[self._model]
            for module in self._modules.values():
                _WATCHERS.pop(module, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @contextmanager
    def knocked_out(self, blocked: Mapping[str, Bool[Tensor, "batch query key"]]) -> Iterator[None]:
        """Take keys away from queries while the block lasts.

        ``blocked`` has, by the names of ``attention_weights`` (captured or not), Bool[batch or images,
        queries or 1, keys]: True where a query may not see a key. Queries count in the whole sequence, also
        under a cache; keys beyond the mask's are left alone. The mask is handed to the real kernel, so the
        same path is used as without; only flash kernels, which take no mask, are replaced by SDPA in the
        modules named.

        Raises ValueError for an unknown name.
        """
        for name in blocked:
            if name not in self._modules:
                raise ValueError(
                    f"no attention module {name!r} to knock out; expected one of {_span(self._modules)}"
                )
        before, self._blocked = self._blocked, {**self._blocked, **blocked}
        try:
            yield
        finally:
            self._blocked = before

    def _attach(self) -> None:
        if self._model in _EXTRACTORS:
            raise ValueError(
                "another AttentionExtractor is attached to this model; call its remove() first, or ask one extractor "
                "for all the layers"
            )
        configs = {id(m.config): m.config for m in self._model.modules() if _is_config(vars(m).get("config"))}
        kernels = [
            (c, c._attn_implementation) for c in configs.values() if c._attn_implementation is not None
        ]
        observed = [observe_kernel(kernel) for _, kernel in kernels]
        self._hooks: list[Any] = [
            self._model.register_forward_pre_hook(self._begin),
            self._model.register_forward_hook(self._end, always_call=True),
        ]
        self._kernels: list[tuple[PreTrainedConfig, str]] = kernels
        for (config, _), name in zip(kernels, observed, strict=True):
            config._attn_implementation_internal = name
        _EXTRACTORS[self._model] = self
        for name, module in self._modules.items():
            _WATCHERS[module] = _Watcher(self, name)

    # Rows are taken while the whole model's forward runs: activation checkpointing runs layers again in
    # backward, # and those calls must not be taken for new ones.
    def _begin(self, *_: object) -> None:
        self._inside, self._touched, self._new_sequence = True, set(), False

    def _end(self, *_: object) -> None:
        self._inside = False
        if self._new_sequence:
            self._rows = {name: rows for name, rows in self._rows.items() if name in self._touched}
            self._steps = {name: [] for name in self._steps if name in self._touched}

    def _store(self, name: str, rows: Tensor, *, cached: bool) -> None:
        if cached:
            self._steps.setdefault(name, []).append(rows)
        elif name in self._touched and not name.startswith("layer_"):
            self._rows[name].append(rows)  # towers that call once per image or window
        else:
            self._rows[name] = [rows]
            if name.startswith("layer_"):
                self._steps[name] = []
        self._touched.add(name)


class _Watcher:
    """What happens around the real kernel of one attention module."""

    def __init__(self, owner: AttentionExtractor, name: str) -> None:
        self.owner = owner
        self.name = name

    def run(
        self,
        kernel: str,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Any]:
        owner, name = self.owner, self.name
        is_language = name.startswith("layer_")
        if (blocked := owner._blocked.get(name)) is not None and owner._inside:
            start = key.shape[2] - query.shape[2] if is_language else 0
            mask = _mask_without(blocked, kernel, module, query, key, mask, kwargs, start=start)
            kernel = "sdpa" if "flash" in kernel else kernel
        output = real_kernel(kernel, module)(module, query, key, value, mask, **kwargs)
        cached = is_language and query.shape[2] < key.shape[2]
        if owner._inside:
            owner._new_sequence |= is_language and not cached
            if name in owner._wanted:
                self._observe(kernel, module, query, key, value, mask, kwargs, output[0], cached=cached)
        return output

    @torch.no_grad()
    def _observe(
        self, kernel: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any],
        output: Tensor, *, cached: bool,
    ) -> None:  # fmt: skip
        owner = self.owner
        is_language = self.name.startswith("layer_")
        kept = owner.sequences if is_language else owner.images
        chosen = _indices(
            kept, query.shape[0], f"{self.name}: {'sequence' if is_language else 'image'}", query.device
        )
        heads = _indices(
            owner.heads if is_language else None, query.shape[1], f"{self.name}: head", query.device
        )
        tokens = None if cached or not is_language else owner.query_tokens
        positions = _positions(tokens, len(chosen), query.shape[2], self.name, query.device)
        rows = attention_rows(
            query,
            key,
            mask,
            kernel=kernel,
            module=module,
            sequences=chosen,
            positions=positions,
            kwargs=kwargs,
        )
        if owner._proof is not None:
            owner._proof[self.name] = _disagreement(rows, value[chosen], output[chosen], positions)
        owner._store(self.name, rows[:, heads], cached=cached)


def observe_kernel(kernel: str) -> str:
    """The name under which ``kernel`` runs with its rows observed; registered, with its mask function, on
    first use.

    Raises ValueError for kernels that hide their mask (flex, paged).
    """
    if kernel.startswith(UNSUPPORTED_KERNELS) or kernel.startswith(PREFIX):
        raise ValueError(
            f"attention kernel {kernel!r} cannot be observed; load the model with 'sdpa', 'eager' or flash"
        )
    name = PREFIX + kernel
    if name not in ALL_ATTENTION_FUNCTIONS:

        def observed(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any = None,
            **kwargs: Any,
        ) -> tuple[Tensor, Any]:
            watcher = _WATCHERS.get(module)
            if watcher is None:
                return real_kernel(kernel, module)(module, query, key, value, attention_mask, **kwargs)
            return watcher.run(kernel, module, query, key, value, attention_mask, kwargs)

        AttentionInterface.register(name, observed)
    # A name without a mask function would be handed no mask at all: not even the causal one.
    if kernel in ALL_MASK_ATTENTION_FUNCTIONS and name not in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    return name


def real_kernel(kernel: str, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The function that ``kernel`` means for ``module``.

    Eager has no entry in transformers' table: it is a function of the file, or the package, that wrote the
    module.
    """
    return ALL_ATTENTION_FUNCTIONS[kernel] if kernel != "eager" else _eager_kernel(type(module))


@cache
def _eager_kernel(cls: type[nn.Module]) -> Callable[..., tuple[Tensor, Any]]:
    for base in cls.__mro__:
        package = base.__module__.rpartition(".")[0] + "."
        siblings = (
            [name for name in sorted(sys.modules) if name.startswith(package)] if len(package) > 1 else []
        )
        for file in (base.__module__, *siblings):
            for name in EAGER_NAMES:
                if name in vars(sys.modules[file]):
                    return vars(sys.modules[file])[name]
    raise ValueError(
        f"{cls.__name__} runs eager attention, but neither {cls.__module__} nor its package has a function "
        f"{' or '.join(EAGER_NAMES)}; load the model with attn_implementation='sdpa'"
    )


def attention_rows(
    query: Float[Tensor, "batch heads query dim"],
    key: Float[Tensor, "batch kv_heads key dim"],
    attention_mask: Tensor | None,
    *,
    kernel: str,
    module: nn.Module,
    sequences: Int[Tensor, " kept"],
    positions: Int[Tensor, "kept rows"],
    kwargs: Mapping[str, Any],
) -> Float[Tensor, "kept heads rows key"]:
    """softmax(q·k·scale + mask) of chosen query rows, in fp32, as ``kernel`` would have it. Range [0, 1].

    ``positions`` count in this call's queries. Grouped keys are not repeated: each group's queries are
    multiplied with their one key head. A row that may see no key is all 0. Raises ValueError for terms that
    rows cannot show.
    """
    present = [term for term in UNSUPPORTED_TERMS if kwargs.get(term) is not None]
    if present:
        raise ValueError(
            f"{type(module).__name__} adds {', '.join(present)} to its attention; its rows cannot be shown"
        )
    batch, heads, _, dim = query.shape
    groups = heads // key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        chosen = query[sequences].gather(2, positions[:, None, :, None].expand(-1, heads, -1, dim)).float()
        keys = (key if key.shape[0] == batch else key.expand(batch, -1, -1, -1))[sequences].float()
        folded = chosen.reshape(len(sequences), key.shape[1], groups * positions.shape[1], dim)
        scores = (folded @ keys.transpose(2, 3)).view(len(sequences), heads, positions.shape[1], key.shape[2])
        scale = kwargs.get("scaling")
        scores *= dim**-0.5 if scale is None else scale
        if (cap := kwargs.get("softcap")) is not None:
            scores = torch.tanh(scores / cap) * cap
        allowed, bias = _rules(query, key, attention_mask, kernel, module, sequences, positions, kwargs)
        if bias is not None:
            scores += bias.float()
        if allowed is None:
            return scores.softmax(-1)
        return scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num(0.0)


def _rules(
    query: Tensor, key: Tensor, mask: Tensor | None, kernel: str, module: nn.Module, sequences: Tensor, positions: Tensor,
    kwargs: Mapping[str, Any],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """What the kernel lets each chosen row see: (Bool[kept, 1 or heads, rows, keys] or None, additive or
    None)."""
    keys = torch.arange(key.shape[2], device=query.device)
    if mask is not None and mask.ndim == 4:
        mask = mask[..., : key.shape[2]].expand(query.shape[0], -1, -1, -1)[sequences]
        if mask.shape[2] > 1:
            index = positions[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
            mask = mask.gather(2, index)
        return (mask, None) if mask.dtype == torch.bool else (None, mask)
    offset = _causal_offset(kernel, module, query.shape[2], key.shape[2], kwargs, masked=mask is not None)
    rows = positions[:, None, :, None] + (key.shape[2] - query.shape[2] if "flash" in kernel else 0)
    allowed = None if offset is None else keys <= positions[:, None, :, None] + offset
    if "flash" in kernel and kwargs.get("sliding_window"):
        near = rows - keys < kwargs["sliding_window"]
        allowed = near if allowed is None else allowed & near
    if (bounds := kwargs.get("cu_seq_lens_q")) is not None:  # packed: each token sees its own stretch alone
        stretch = torch.bucketize(keys, bounds[1:].to(keys), right=True)
        same = stretch[positions][:, None, :, None] == stretch
        allowed = same if allowed is None else allowed & same
    if mask is not None:  # flash: Bool or Int[batch, keys], 1 where a token is real
        real = mask[sequences, -key.shape[2] :].bool()[:, None, None, :]
        allowed = real if allowed is None else allowed & real
    return allowed, None


def _causal_offset(
    kernel: str, module: nn.Module, queries: int, keys: int, kwargs: Mapping[str, Any], *, masked: bool
) -> int | None:
    """Row i sees keys up to i + offset; None: no causal rule beside the mask. Each kernel has its own
    rule."""
    is_causal = kwargs.get("is_causal")
    is_causal = (
        getattr(module, "is_causal", True) if is_causal is None else is_causal
    )  # the kernels' own default
    if kernel == "eager" or not is_causal:
        return None  # eager applies its mask and nothing else
    if "flash" in kernel:
        return keys - queries  # aligned at the end
    return 0 if queries > 1 and not masked else None  # sdpa without a mask: aligned at the start


def _mask_without(
    blocked: Tensor, kernel: str, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None,
    kwargs: dict[str, Any], *, start: int,
) -> Tensor:  # fmt: skip
    """The kernel's mask with the blocked keys taken out, in the form that the kernel takes.

    ``start`` is the place in the whole sequence of this call's first query (0 but for cached steps).
    """
    queries, keys = query.shape[2], key.shape[2]
    out = torch.zeros(blocked.shape[0], queries, keys, dtype=torch.bool, device=query.device)
    known = min(keys, blocked.shape[2])
    part = blocked[:, :, :known].to(query.device)
    if blocked.shape[1] == 1:
        out[:, :, :known] = part
    else:
        part = part[:, start : start + queries]
        out[:, : part.shape[1], :known] = part
    if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
        return mask[..., :keys].masked_fill(out[:, None], torch.finfo(mask.dtype).min)
    if mask is not None and mask.ndim == 4:
        return mask[..., :keys] & ~out[:, None]
    every = torch.arange(query.shape[0], device=query.device)
    positions = torch.arange(queries, device=query.device).expand(query.shape[0], -1)
    allowed, _ = _rules(query, key, mask, kernel, module, every, positions, kwargs)
    seen = ~out[:, None] if allowed is None else allowed & ~out[:, None]
    if kernel != "eager":
        return seen.expand(query.shape[0], -1, queries, keys)
    return torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(
        ~seen, torch.finfo(query.dtype).min
    )


def self_check(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    key_layers: Sequence[int] | None = None,
    family: Family | None = None,
) -> None:
    """Prove, on one input, that what will be shown is what the model does. Silent where all is well.

    In turn: the logits with capture are those without, bit for bit; every row has its shape and sums to 1;
    rows × values give the very output of the kernel; and taking keys away through the same path changes the
    logits, in each key layer and in the connector. Run it in eval mode, under no_grad, with at least two
    tokens.

    Raises ValueError naming the first layer that fails, with found and expected.
    """
    plain = model(**inputs).logits
    with AttentionExtractor(model, key_layers, family=family) as extractor:
        extractor._proof = {}
        observed = model(**inputs).logits
        if not torch.equal(plain, observed):
            worst = (plain - observed).abs().max().item()
            raise ValueError(
                f"logits with attention captured differ by {worst:.3g}, expected 0: capture is wired wrongly"
            )
        batch, length = inputs["input_ids"].shape
        _check_rows(extractor, batch, length, inputs.get("attention_mask"), observed.dtype)
        for name, rows in extractor.attention_weights.items():
            blocked = _all_but_own(name, rows.shape)
            with extractor.knocked_out({name: blocked}):
                changed = model(**inputs).logits
            if torch.equal(changed, plain):
                raise ValueError(
                    f"{name}: taking keys away left the logits as they were, expected a change: "
                    "this is not the attention that the model uses"
                )


def _check_rows(
    extractor: AttentionExtractor, batch: int, length: int, padding: Tensor | None, dtype: torch.dtype
) -> None:
    real = np.ones((batch, length), bool) if padding is None else padding.bool().cpu().numpy()
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    missing = [
        name for name in extractor._wanted if name.startswith("layer_") and name not in extractor._rows
    ]
    if missing:
        raise ValueError(
            f"{missing[0]}: its attention never ran through the interface; expected one call in a forward"
        )
    for name, rows in extractor.attention_weights.items():
        if name.startswith("layer_") and (rows.shape[0], *rows.shape[2:]) != (batch, length, length):
            raise ValueError(
                f"{name}: rows of shape {rows.shape}, expected ({batch}, heads, {length}, {length})"
            )
        sums = rows.sum(-1)
        if name.startswith("layer_"):
            sums = sums.transpose(0, 2, 1)[real]
        worst = float(np.abs(sums - 1).max())
        if worst > ROW_SUM_TOLERANCE:
            raise ValueError(
                f"{name}: a row's sum is off by {worst:.3g}, expected 1 within {ROW_SUM_TOLERANCE}"
            )
        if extractor._proof is not None and extractor._proof[name] > tolerance:
            raise ValueError(
                f"{name}: rows × values differ from the kernel's output by {extractor._proof[name]:.3g} of its size, "
                f"expected at most {tolerance}: the rows are not what the kernel used"
            )


def _all_but_own(name: str, shape: tuple[int, ...]) -> Tensor:
    """Blocks, for each token, every other one; for the connector, every second patch."""
    queries, keys = shape[2:]
    if name.startswith("layer_"):
        return ~torch.eye(queries, keys, dtype=torch.bool)[None]
    return (torch.arange(keys) % 2 == 0)[None, None]


def _disagreement(rows: Tensor, value: Tensor, output: Tensor, positions: Tensor) -> float:
    """Largest |rows × values − kernel output|, relative to the largest output, over rows that see
    anything."""
    value = value.float().repeat_interleave(rows.shape[1] // value.shape[1], dim=1)
    index = positions[:, None, :, None].expand(-1, rows.shape[1], -1, value.shape[-1])
    true = output.transpose(1, 2).float().gather(2, index)
    seen = rows.sum(-1, keepdim=True) > 0
    return float((((rows @ value) - true) * seen).abs().max() / true.abs().max().clamp(min=1e-12))


def _wanted_names(
    modules: Mapping[str, nn.Module],
    key_layers: Sequence[int] | None,
    vision_layers: Sequence[int],
    *,
    connector: bool,
) -> set[str]:
    language = [name for name in modules if name.startswith("layer_")]
    vision = [name for name in modules if name.startswith("vision_layer_")]
    wanted = set(language) if key_layers is None else {f"layer_{index}" for index in key_layers}
    for name in sorted(wanted - set(language)):
        raise ValueError(
            f"no language layer {name.removeprefix('layer_')}; expected 0 to {len(language) - 1}"
        )
    for name in (f"vision_layer_{index}" for index in vision_layers):
        if name not in modules:
            index = name.removeprefix("vision_layer_")
            raise ValueError(f"no vision layer {index}; expected 0 to {len(vision) - 1}")
        wanted.add(name)
    return wanted | ({"visual_attn"} & set(modules) if connector else set())


def _indices(
    chosen: Sequence[int] | None, size: int, what: str, device: torch.device
) -> Int[Tensor, " chosen"]:
    if chosen is None:
        return torch.arange(size, device=device)
    for index in chosen:
        if not 0 <= index < size:
            raise ValueError(f"{what} {index} does not exist; expected 0 to {size - 1}")
    return torch.tensor(list(chosen), device=device, dtype=torch.long)


def _positions(
    tokens: Sequence[int] | Tensor | None, kept: int, length: int, name: str, device: torch.device
) -> Int[Tensor, "kept rows"]:
    if tokens is None:
        return torch.arange(length, device=device).expand(kept, -1)
    positions = torch.as_tensor(tokens, device=device, dtype=torch.long)
    positions = positions.expand(kept, -1) if positions.ndim == 1 else positions
    if positions.shape[0] != kept:
        raise ValueError(f"{name}: query tokens for {positions.shape[0]} sequences, expected {kept}")
    wrong = positions[(positions >= length) | (positions < -length)]
    if len(wrong):
        raise ValueError(
            f"{name}: query token {int(wrong[0])} does not exist; the sequence has {length} tokens"
        )
    return positions % length


def _joined(name: str, calls: Sequence[Tensor]) -> np.ndarray:
    """One array of a module's calls in one pass. Windows of unequal size have no common array."""
    if len({call.shape[1:] for call in calls}) > 1:
        raise ValueError(
            f"{name} attends in windows of unequal size, {[tuple(c.shape) for c in calls]}: no single array"
        )
    return _to_numpy(torch.cat(list(calls)) if len(calls) > 1 else calls[0])


def _to_numpy(rows: Tensor) -> np.ndarray:
    return rows.cpu().numpy()


def _is_config(value: object) -> bool:
    return isinstance(value, PreTrainedConfig)


def _span(names: Iterable[str]) -> str:
    return ", ".join(names)
