"""Image tokens taken out of a running model: shorter sequences, shorter cache, the positions as they were.

    encoded = family.encode(processor, conversation, add_generation_prompt=True)
    with keep_image_tokens(model, encoded, share=0.33, by="divprune"):
        model.generate(**padded([encoded], model.device, left=True))

Tokens leave at the entrance of a language layer, so that whatever lies outside the layers (embeddings, position ids,
masks, generation) sees a sequence of full length: hidden states, rotary angles and masks are cut to what is kept, the
cache's layers hold what is kept and say the full length, and what leaves the language model gets its length back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from diagnostics.capture.forwards import by_name
from diagnostics.capture.kernel_tap import KernelTap
from diagnostics.measures.token_orders import best_first, count_kept, divprune_order, kept, parts_of, ranked
from finetune.attention.rows import attention_logits, attention_rows, sink_logits
from finetune.attention.watch import Call
from finetune.families import Encoded, Family, bare_model, family_of
from finetune.families.parts.modules import attending_layers, language_layers

DIVPRUNE, FASTV = "divprune", "fastv"
WAYS = (DIVPRUNE, FASTV)


@contextmanager
def keep_image_tokens(
    model: nn.Module,
    encoded: Encoded,
    *,
    share: float,
    by: str = DIVPRUNE,
    layer: int = 2,
    family: Family | None = None,
) -> Iterator[Removal]:
    """While the block lasts, the model reads a share of the conversation's image tokens, and generates from them.

    encoded   the one sequence that forwards and ``generate`` begin with; several answers to it and beams are copies
    share     of each picture's tokens, and of its overview's, in (0, 1]; 1 leaves the model as it is. Tokens that show
              only the margins of a padded picture are dropped with the first others: a tower has mixed the picture into
              them
    by        "divprune": what is least like the rest, before the first language layer (Alvar et al., 2503.02175).
              "fastv": what the last token looks at in the ``layer``-th layer, for those after it (Chen et al.,
              2403.06764)

    Equal to hiding the others from every token in the same layers (``diagnostics.keep``), up to rounding. Position ids
    stay. A whole forward's logits have every place, those of dropped tokens without meaning. With the cache that a pass
    leaves, only steps in the same block may go on.

    Raises ValueError for a share, a way or a layer that cannot be, for no image, and for a model in which removal is
    not the same as hiding; while the model runs, for another sequence, and for a cache that is not dynamic.
    """
    bare = bare_model(model)
    family = family or family_of(bare.config)
    check_can_drop(bare, family, share=share, by=by, layer=layer)
    if not encoded.images:
        raise ValueError(
            "keep_image_tokens: found no image in the conversation, expected one whose tokens to drop"
        )
    removal = Removal(bare, family, encoded, share=share, by=by, layer=layer)
    with ExitStack() as stack:
        removal.attach(stack)
        yield removal


def check_can_drop(model: nn.Module, family: Family, *, share: float, by: str, layer: int = 2) -> None:
    """Raises ValueError for arguments that cannot be, and for a model whose layers would read other tokens than with
    the dropped ones hidden. Needs no weights."""
    count_kept(1, share)
    if by not in WAYS:
        raise ValueError(f"keep_by: found {by!r}, expected {' or '.join(WAYS)}")
    layers, attending = len(language_layers(model, family)), attending_layers(model, family)
    if by == FASTV and not 1 <= layer < layers:
        raise ValueError(f"layer: found {layer}, expected 1 to {layers - 1}: tokens are dropped after it")
    if len(attending) < layers:
        raise ValueError(
            f"{family.name}: {layers - len(attending)} of {layers} language layers mix tokens by linear attention, "
            "whose state runs over every token; image tokens cannot be dropped"
        )
    config: Any = bare_model(model).config
    text = config.get_text_config()
    types = getattr(text, "layer_types", None)
    slides = (
        any("sliding" in one for one in types) if types else getattr(text, "sliding_window", None) is not None
    )
    if slides:
        raise ValueError(
            f"{family.name}: some language layers look back over a fixed number of tokens, which reach further where "
            "image tokens are dropped between; expected a model without sliding windows"
        )
    deep = len(getattr(config.vision_config, "deepstack_visual_indexes", ())) if _has_vision(config) else 0
    if by == FASTV and layer < deep:
        raise ValueError(
            f"{family.name}: its first {deep} language layers get features of all image tokens added (deep stack); "
            f"found layer {layer}, expected at least {deep}, or keep_by divprune"
        )


def _has_vision(config: Any) -> bool:
    return getattr(config, "vision_config", None) is not None


class Removal:
    """What ``keep_image_tokens`` does; ``kept``: once a pass has begun, the places in the sequence that are left."""

    def __init__(
        self, model: nn.Module, family: Family, encoded: Encoded, *, share: float, by: str, layer: int
    ) -> None:
        self.kept: np.ndarray | None = None
        self.first_layer = 0 if by == DIVPRUNE else layer
        self._model, self._family, self._encoded = model, family, encoded
        self._share, self._by = share, by
        self._length = 0  # of the pass's sequence
        self._is_pass = False

    def attach(self, stack: ExitStack) -> None:
        """Take hold of the model until the stack is closed. Raises ValueError where its kernels are watched."""
        names = [f"layer_{index}" for index in attending_layers(self._model, self._family)]
        stack.enter_context(KernelTap(self._model, names, family=self._family).tapped(self._tap))
        if self._share == 1:
            return
        layers = language_layers(self._model, self._family)
        root = self._model.get_submodule(self._family.paths.language_layers.rpartition(".")[0])
        hooks = [
            self._model.register_forward_pre_hook(self._begin, with_kwargs=True),
            root.register_forward_pre_hook(self._enter, with_kwargs=True),
            root.register_forward_hook(self._leave),
        ]
        for index in range(self.first_layer, len(layers)):
            before = partial(self._before_layer, index)
            hooks.append(layers[index].register_forward_pre_hook(before, with_kwargs=True))
        for hook in hooks:
            stack.callback(hook.remove)

    def _begin(self, model: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        given = by_name(model, arguments, options)
        cache: Any = given.get("past_key_values")
        ids: Any = given.get("input_ids")
        self._is_pass = cache is None or cache.get_seq_length() == 0
        if not self._is_pass:
            return
        self.kept = None
        wanted = torch.from_numpy(np.asarray(self._encoded.input_ids))
        found = 0 if ids is None else ids.shape[1]
        if not self._least() <= found <= len(wanted) or not (ids.cpu() == wanted[:found]).all():
            raise ValueError(
                f"keep_image_tokens: found a pass over {'embeddings' if ids is None else f'{found} tokens'}, expected "
                f"the {len(wanted)} tokens of the conversation that was given, alone and without padding, or their "
                "beginning up to an answer"
            )
        self._length = found

    def _least(self) -> int:
        """Tokens through the last image token."""
        return 1 + int(self._image_tokens().max())

    def _image_tokens(self) -> Int[np.ndarray, " tokens"]:
        """Their places in the sequence, margins included."""
        return np.concatenate(
            [places for one in self._encoded.images for places in (one.all_positions, one.margin_positions)]
        )

    def _enter(self, _: nn.Module, arguments: Any, options: dict[str, Any]) -> Any:
        """Deep-stack features are added between layers, at the places of image tokens: cut with them."""
        places = options.get("visual_pos_masks")
        if not self._is_pass or self.first_layer > 0 or places is None:
            return None
        kept = self._places(options["inputs_embeds"])
        left = torch.zeros_like(places)
        left[:, kept] = True
        features = [one[left[places].to(one.device)] for one in options["deepstack_visual_embeds"]]
        cut = {"visual_pos_masks": places[:, kept], "deepstack_visual_embeds": features}
        return arguments, {**options, **cut}

    def _before_layer(self, index: int, layer: nn.Module, arguments: Any, options: dict[str, Any]) -> Any:
        options = dict(options)
        if not self._is_pass:
            options["attention_mask"] = self._cut_keys(options.get("attention_mask"))
            return arguments, options
        states = arguments[0] if arguments else options["hidden_states"]
        kept = self._places(states)
        if index == self.first_layer:
            states = states[:, kept]
            arguments = (states, *arguments[1:]) if arguments else arguments
            options |= {} if arguments else {"hidden_states": states}
        _shorten(options.get("past_key_values"), index, self._length - len(kept))
        return arguments, _cut(options, kept, self._length)

    def _leave(self, _: nn.Module, arguments: Any, output: Any) -> Any:
        """Back to the full length: zeros where tokens were dropped."""
        if not self._is_pass or self.kept is None:
            return output
        states = output[0]
        whole = states.new_zeros(states.shape[0], self._length, states.shape[-1])
        whole[:, self._indices(states)] = states
        if isinstance(output, tuple):
            return (whole, *output[1:])
        output["last_hidden_state"] = whole
        return output

    def _places(self, states: Float[Tensor, "batch tokens width"]) -> Int[Tensor, " kept"]:
        if self.kept is None:
            assert self._by == DIVPRUNE, "the layer before has ranked them"
            features = states[0].detach().float().cpu().numpy()
            self._choose(
                [divprune_order(features[part.positions]) for part in parts_of(self._encoded.images)]
            )
        return self._indices(states)

    def _choose(self, orders: list[np.ndarray]) -> None:
        parts = parts_of(self._encoded.images)
        ranking = tuple(ranked(part, order) for part, order in zip(parts, orders, strict=True))
        left = np.setdiff1d(self._image_tokens(), kept(ranking, self._share))
        self.kept = np.setdiff1d(np.arange(self._length), left)

    def _indices(self, like: Tensor) -> Int[Tensor, " kept"]:
        return torch.from_numpy(self.kept).to(like.device)

    def _tap(self, name: str, call: Call, output: Tensor) -> Tensor:
        """FastV's ranking: the last token's row in the layer before the first that does without."""
        ranks = self._by == FASTV and name == f"layer_{self.first_layer - 1}"
        if ranks and self._share < 1 and self._is_pass:
            with torch.no_grad():
                device = call.query.device
                last = torch.tensor([[call.query.shape[2] - 1]], device=device)
                logits = attention_logits(call, torch.zeros(1, dtype=torch.long, device=device), last)
                row = attention_rows(logits, sink_logits(call))[0, :, 0].mean(0).cpu().numpy()
            self._choose([best_first(row[part.positions]) for part in parts_of(self._encoded.images)])
        return output

    def _cut_keys(self, mask: Tensor | None) -> Tensor | None:
        """A step's mask over all tokens so far → over those in the cache."""
        if mask is None or self.kept is None:
            return mask
        later = torch.arange(self._length, mask.shape[-1], device=mask.device)
        return mask[..., torch.cat([self._indices(mask), later])]


class _Axis(NamedTuple):
    """Where the tokens lie in an argument of a layer."""

    axis: int
    is_square: bool = False


OPTIONS = {
    "attention_mask": _Axis(-1, is_square=True),
    "position_ids": _Axis(-1),
    "cache_position": _Axis(-1),
    "position_embeddings": _Axis(-2),
    "rotary": _Axis(-2),
    "logn": _Axis(-2),
}
"""Arguments of language layers that have a place for each token, in all families."""


def _cut(options: Mapping[str, Any], kept_places: Int[Tensor, " kept"], length: int) -> dict[str, Any]:
    """A layer's arguments over a whole sequence → over what is kept."""

    def cut(value: Any, where: _Axis) -> Any:
        if isinstance(value, tuple):
            return tuple(cut(one, where) for one in value)
        if value is None or value.shape[where.axis] != length:
            return value
        places = kept_places.to(value.device)
        value = value.index_select(where.axis, places)
        if where.is_square and value.ndim == 4 and value.shape[-2] == length:
            value = value.index_select(-2, places)
        return value

    return {name: cut(value, OPTIONS[name]) if name in OPTIONS else value for name, value in options.items()}


class _ShortLayer(DynamicLayer):
    """A layer of a cache that lacks tokens and does not say so: positions and masks are made for the whole sequence."""

    def __init__(self, dropped: int) -> None:
        super().__init__()
        self._dropped = dropped

    def get_seq_length(self) -> int:
        found = super().get_seq_length()
        return found + self._dropped if found else 0


def _shorten(cache: Any, index: int, dropped: int) -> None:
    """Let a cache's layer hold fewer tokens than it says. Raises ValueError for a cache of another kind."""
    if cache is None:
        return
    layers = cache.layers if isinstance(cache, DynamicCache) and not cache.offloading else None
    if layers is None or (index < len(layers) and type(layers[index]) not in (DynamicLayer, _ShortLayer)):
        raise ValueError(
            f"keep_image_tokens: found a {type(cache).__name__}, expected a DynamicCache that holds every token on the "
            "model's device; leave out cache_implementation and past_key_values"
        )
    layers[index : index + 1] = [_ShortLayer(dropped)]
