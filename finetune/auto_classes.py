"""Teaches transformers' Auto classes Qwen-VL when they are loaded: importing ``finetune`` loads no torch.

Importing a module of ``finetune.qwen_vl`` registers its classes. What remains is to import it in time: as soon as the
module of transformers that defines the Auto class has been executed, before anyone can ask it for a model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AUTO = "transformers.models.auto"
REGISTERING = {
    f"{AUTO}.configuration_auto": "finetune.qwen_vl.configuration",
    f"{AUTO}.image_processing_auto": "finetune.qwen_vl.images",
    f"{AUTO}.modeling_auto": "finetune.qwen_vl.modeling",
    f"{AUTO}.processing_auto": "finetune.qwen_vl.processing",
    f"{AUTO}.tokenization_auto": "finetune.qwen_vl.tokenization",
    # Our model needs these whole, and may find one half imported: the one that loads the others. The last registers.
    "transformers.modeling_layers": "finetune.qwen_vl.modeling",
    "finetune.qwen_vl.visual": "finetune.qwen_vl.modeling",
}
"""Module that defines an Auto class, or that ours needs → our module that registers, once they are whole."""


def teach() -> None:
    """Register now where transformers' module is loaded already, else once it is."""
    if not any(isinstance(finder, _AutoFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoFinder())
    for theirs, ours in REGISTERING.items():
        if theirs in sys.modules:
            import_module(ours)


class _AutoFinder(MetaPathFinder):
    """Finds the modules of ``REGISTERING`` where Python finds them, with a loader that imports ours after them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REGISTERING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Python's own loader, and after it the import of our module."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Handed back at once: tracebacks and pickles ask a module for its loader.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        # Ours may be half imported, where it is what loads transformers: then it registers at its own end.
        ours = REGISTERING[module.__name__]
        theirs = (name for name, registers in REGISTERING.items() if registers == ours)
        if not any(_is_loading(name) for name in theirs if name != module.__name__):
            import_module(ours)


def _is_loading(name: str) -> bool:
    """Is this module half imported?"""
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)
