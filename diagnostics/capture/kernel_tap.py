"""Passes every kernel call of chosen modules to a callback while the model runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from diagnostics.capture.forwards import Forwards
from diagnostics.capture.watcher import check_masks, placed
from finetune.attention.watch import Call, Watch, check_is_free
from finetune.families import Family, attention_copies, bare_model, family_of

Tap: TypeAlias = Callable[
    [str, Call, Tensor], Tensor
]  # name, call, kernel's output → the output to go on with


class KernelTap:
    """Passes every kernel call of chosen attention modules to a tap, and does nothing else. For many generations in a
    row, where a new ``AttentionExtractor`` for each would cost time: most of the setup is done once.

    names   as ``attention_weights`` has them

    One at a time on a model, and not beside an extractor; it does not keep the model alive.
    """

    def __init__(self, model: nn.Module, names: Collection[str], *, family: Family | None = None) -> None:
        bare = bare_model(model)
        self._bare, self._family = weakref.ref(bare), family or family_of(bare.config)
        modules = attention_copies(bare, self._family)
        self._modules = [
            (name, weakref.ref(module)) for name in names if name in modules for module in modules[name]
        ]

    @contextmanager
    def tapped(self, tap: Tap) -> Iterator[None]:
        """While the block lasts, as ``AttentionExtractor.tapped``; also outside the model's own forward.

        Raises ValueError if the model is gone.
        """
        bare = self._bare()
        found = [(name, module) for name, reference in self._modules if (module := reference()) is not None]
        if bare is None or len(found) < len(self._modules):
            raise ValueError("KernelTap: its model is gone; make a new one for the model in use")
        check_is_free(module for _, module in found)
        forwards = Forwards()
        watch = Watch(self, bare)
        try:
            watch.forward(bare, before=forwards.begin, after=forwards.after)
            for name, module in found:
                watch.kernel(module, _Listener(name, tap, forwards))
            watch.check_kernels()
            check_masks(bare, self._family)
            yield
        finally:
            watch.close()


class _Listener(NamedTuple):
    name: str
    tap: Tap
    forwards: Forwards

    def run(self, call: Call) -> tuple[Tensor, Any]:
        if self.name.startswith("layer_"):
            call = placed(call, self.forwards)
        output, more = call.run()
        return self.tap(self.name, call, output), more
