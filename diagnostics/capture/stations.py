"""Hidden states at the stations between pixels and words: what the connector is given, what it adds further down, and
what the words are read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.capture.forwards import by_name
from finetune.attention.watch import Watch
from finetune.families import Family, bare_model, copies_of, family_of


class Stations:
    """States of one forward over one sequence; take them with ``clear`` between forwards.

    connector_input   what the connector is given, Float[views, patches, width] or Float[patches, width]: the tower's
                      last word. Of towers that are called once for pictures and once for videos, the first
    deep              outputs of the connectors that feed further language layers (deep stack), each Float[tokens,
                      width] in the order of the image tokens
    head_input        what the words are read from, Float[tokens, width], after the last norm
    tower_inputs      arguments of the forwards of model and tower, by name: they decide which patch is where

    What is watched is what a module is given by its caller, so hooks that change an earlier module's output are seen.

    Everything is detached and None (or empty) until the model has run. It does not keep the model alive.
    """

    def __init__(self, model: nn.Module, *, family: Family | None = None) -> None:
        bare = bare_model(model)
        paths = (family or family_of(bare.config)).paths
        self._watch = Watch(self, bare)
        tower = paths.vision_layers.rpartition(".")[0]
        self._watch.forward(bare, before=self._keep_given)
        for module in copies_of(bare, tower):
            self._watch.forward(module, before=self._keep_given)
        for module in copies_of(bare, paths.connector[0]):
            self._watch.forward(module, before=self._keep_connector)
        for path in paths.connector[1:]:
            for one in _parts(bare, path):
                for module in copies_of(bare, one):
                    self._watch.forward(module, after=self._keep_deep)
        for module in copies_of(bare, paths.language[-1]):
            self._watch.forward(module, before=self._keep_head)
        self.clear()

    def clear(self) -> None:
        """Forget the last forward."""
        self.connector_input: Tensor | None = None
        self.deep: list[Tensor] = []
        self.head_input: Tensor | None = None
        self.tower_inputs: dict[str, Any] = {}

    def remove(self) -> None:
        """Leave the model as it was; states stay readable."""
        self._watch.close()

    def __enter__(self) -> Stations:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _keep_given(self, module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        self.tower_inputs = {**self.tower_inputs, **by_name(module, arguments, options)}

    def _keep_connector(self, module: nn.Module, arguments: Any, options: Mapping[str, Any]) -> None:
        if self.connector_input is None:
            given = arguments[0] if arguments else next(iter(options.values()))
            self.connector_input = _copy(given)

    def _keep_deep(self, _: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            self.deep.append(_copy(output).reshape(-1, output.shape[-1]))

    def _keep_head(self, _: nn.Module, arguments: Any, options: Mapping[str, Any]) -> None:
        given = arguments[0] if arguments else next(iter(options.values()))
        self.head_input = _copy(given)[0]


def _copy(states: Tensor) -> Tensor:
    return torch.clone(states.detach())


def _parts(model: nn.Module, path: str) -> list[str]:
    """Paths of the modules in a list of them; none for a parameter (a newline's embedding) or a single module."""
    listed = [module for name, module in model.named_modules() if name == path]
    return [
        f"{path}.{at}"
        for one in listed
        if isinstance(one, nn.ModuleList)
        for at in range(len(list(one.children())))
    ]
