"""Calls of our modules checked against their annotations, shapes included: the first of a test, then every so many.

Checking every call took a sixth of the suite: pure functions of arrays are called a million times.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
FIRST_CALLS = 24
"""Of a function in one test: all of these are checked."""
THEN_EVERY = 32

_test = 0


def check(modules: Sequence[str]) -> None:
    """From their import on. Not by pytest's option --jaxtyping-packages: it has no room for the numeric tower of PEP
    484, by which an int may stand for a float."""
    jaxtyping.install_import_hook(modules, CHECKER)
    sys.meta_path.insert(0, _Finder(modules))


def next_test() -> None:
    """The first calls are counted anew."""
    global _test
    _test += 1


class _Finder(MetaPathFinder):
    """Finds the modules where the finders behind it do, with a loader that thins out what theirs has decorated."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = tuple(modules)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname == one or fullname.startswith(f"{one}.") for one in self.modules):
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    def __init__(self, theirs: Loader) -> None:
        self.theirs = theirs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.theirs.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.theirs.exec_module(module)
        for owner in (module, *(one for one in vars(module).values() if isinstance(one, type))):
            if (owner if owner is module else sys.modules[owner.__module__]) is not module:
                continue  # a class of another module
            for name, value in [*vars(owner).items()]:
                if (
                    isinstance(value, FunctionType)
                    and _is_checked(value)
                    and value.__module__ == module.__name__
                ):
                    setattr(owner, name, thinned(value))


def _is_checked(function: FunctionType) -> bool:
    """By jaxtyping, whose wrapper this is."""
    return function.__code__.co_filename.endswith("jaxtyping/_decorator.py") and hasattr(
        function, "__wrapped__"
    )


def thinned(checked: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the first calls of a test, then every so many."""
    plain: Callable[..., Any] = checked.__wrapped__  # type: ignore[attr-defined]
    calls, of_test = 0, _test

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal calls, of_test
        if of_test != _test:
            calls, of_test = 0, _test
        calls += 1
        is_checked = calls <= FIRST_CALLS or calls % THEN_EVERY == 0
        return (checked if is_checked else plain)(*args, **kwargs)

    return call
