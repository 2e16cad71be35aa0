"""Captures hidden states at the input of language layers, for the detection of attention sinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from diagnostics.capture.forwards import Forwards
from finetune.attention.watch import Watch
from finetune.families import Family, bare_model, family_of


class HiddenStates:
    """What does each token carry into chosen language layers? Captured while the model runs as usual.

    Attached from construction until ``remove()`` (or the end of a ``with`` block). ``hidden_states`` has, from
    the model's last pass over a sequence (a plain forward, or ``generate`` as it reads its prompt; steps that go on
    from it are left out) and from no other, ``layer_N`` → np.float32 (batch, tokens, width): the residual stream before
    the layer's first norm, of the tokens that the pass reads itself: not of a prefix that it has in its cache.

    layers      language layers by index; None: all
    sequences   which sequences of the batch to keep; None: all

    It does not keep the model alive, and detaches when it is dropped.

    Memory: sequences × tokens × width numbers a layer, in the model's precision and on its device.

    Raises ValueError if a layer does not exist; while the model runs, where ``generate`` leaves no pass over the
    whole prompt and no other: assisted decoding, ``prefill_chunk_size``, ``guidance_scale``.
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
        self._forwards = Forwards()
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
    def _begin(self, model: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        self._forwards.begin(model, arguments, options)
        self._is_reading = not self._forwards.is_step
        if self._is_reading or self._forwards.is_alone:
            self._states = {}
        if self._forwards.refused:
            raise ValueError(
                f"{self._forwards.refused}: states of the prompt cannot be identified; leave that out while hidden "
                "states are kept"
            )

    def _end(self, _: nn.Module, output: Any) -> None:
        self._forwards.end(output)
        self._is_reading = False
        if output is None:
            self._states = {}  # it raised: half a pass is none

    def _keep(self, layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self._is_reading:
            states = arguments[0] if arguments else options["hidden_states"]
            kept = states.detach() if self._sequences is None else states.detach()[self._sequences]
            # A copy: some models add to the residual stream in place.
            self._states[f"layer_{self._numbers[layer]}"] = kept.clone()
