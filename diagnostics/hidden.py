"""What enters the language layers: hidden states, from which attention sinks are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from finetune.families import Family, bare_model, family_of


class HiddenStates:
    """What does each token carry into chosen language layers, while the model runs as it always does?

    Attached from construction until ``remove()`` (or the end of a ``with`` block). ``hidden_states`` has, from
    the model's last pass over a sequence (a plain forward, or a prefill; steps that go on from a cache are
    ignored), ``layer_N`` → np.float32 (batch, tokens, width): the residual stream before the layer's first norm.

    layers      language layers by index; None: all
    sequences   which sequences of the batch to keep; None: all

    Memory: sequences × tokens × width numbers a layer, in the model's precision and on its device.

    Raises ValueError where a layer does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] | None = None,
        *,
        sequences: Sequence[int] | None = None,
        family: Family | None = None,
    ) -> None:
        bare = bare_model(model)
        paths = (family or family_of(bare.config)).paths
        found = list(bare.get_submodule(paths.language_layers).children())
        chosen = range(len(found)) if layers is None else layers
        for index in chosen:
            if not 0 <= index < len(found):
                raise ValueError(f"no language layer {index}; expected 0 to {len(found) - 1}")
        self._sequences = None if sequences is None else list(sequences)
        self._states: dict[str, Tensor] = {}
        self._is_reading = False
        self._hooks: list[RemovableHandle] = [
            bare.register_forward_pre_hook(self._begin, with_kwargs=True),
            bare.register_forward_hook(self._end, always_call=True),
        ]
        for index in chosen:
            keep = self._keeper(f"layer_{index}")
            self._hooks.append(found[index].register_forward_pre_hook(keep, with_kwargs=True))

    @property
    def hidden_states(self) -> dict[str, np.ndarray]:
        """States of the last pass over a sequence; see the class. Copied from the device on each access."""
        return {name: states.float().cpu().numpy() for name, states in self._states.items()}

    def remove(self) -> None:
        """Give the model back as it was. Doing it twice does no harm; states stay readable."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # States are taken while the whole model's forward runs: activation checkpointing runs layers again in
    # backward, and those calls must not be taken for new ones.
    def _begin(self, _: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        cache = options.get("past_key_values")
        self._is_reading = cache is None or cache.get_seq_length() == 0

    def _end(self, *_: object) -> None:
        self._is_reading = False

    def _keeper(self, name: str) -> Any:
        def keep(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            if self._is_reading:
                states = arguments[0] if arguments else options["hidden_states"]
                kept = states.detach() if self._sequences is None else states.detach()[self._sequences]
                self._states[name] = kept.clone()  # some models add to the residual stream in place

        return keep
