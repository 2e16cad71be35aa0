"""What enters the language layers: hidden states, from which attention sinks are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from diagnostics.watch import Watch
from finetune.families import Family, bare_model, family_of


class HiddenStates:
    """What does each token carry into chosen language layers, while the model runs as it always does?

    Attached from construction until ``remove()`` (or the end of a ``with`` block). ``hidden_states`` has, from
    the model's last pass over a sequence (a plain forward, or a prefill; steps that go on from a cache are
    ignored), ``layer_N`` → np.float32 (batch, tokens, width): the residual stream before the layer's first norm.

    layers      language layers by index; None: all
    sequences   which sequences of the batch to keep; None: all

    It does not keep the model alive, and is off when it is dropped.

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
        self._numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._watch = Watch(self, bare)
        self._watch.forward(bare, before=self._begin, after=self._end)
        for index in chosen:
            self._numbers[found[index]] = index
            self._watch.forward(found[index], before=self._keep)

    @property
    def hidden_states(self) -> dict[str, np.ndarray]:
        """States of the last pass over a sequence; see the class. Copied from the device on each access."""
        return {name: states.float().cpu().numpy() for name, states in self._states.items()}

    def remove(self) -> None:
        """Give the model back as it was. Doing it twice does no harm; states stay readable."""
        self._watch.close()

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # States are taken while the whole model's forward runs: activation checkpointing runs layers again in
    # backward, and those calls must not be taken for new ones.
    def _begin(self, _: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        cache = options.get("past_key_values")
        self._is_reading = cache is None or cache.get_seq_length() == 0

    def _end(self, _: nn.Module, output: Any) -> None:
        self._is_reading = False

    def _keep(self, layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self._is_reading:
            states = arguments[0] if arguments else options["hidden_states"]
            kept = states.detach() if self._sequences is None else states.detach()[self._sequences]
            # A copy: some models add to the residual stream in place.
            self._states[f"layer_{self._numbers[layer]}"] = kept.clone()
