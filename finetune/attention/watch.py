"""Observes a model from outside, without changing it, its configuration, its saves or its copies.

While anything is watched, three things change in the process:

- ``AttentionInterface``, where models of transformers look up their kernels, returns each kernel wrapped in an
  observer;
- ``__call__`` and ``forward`` of the watched modules' classes report when a watched module runs;
- whatever torch has compiled runs uncompiled, since compiled code would bypass both.

Hooks, or a name of our own in the configuration, would be simpler and break: deepcopy and torch.save take them along,
flash attention reads the kernel's name a second time, ``set_attn_implementation`` overwrites it.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakMethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune.families import bare_model

EAGER_NAMES = ("eager_attention_forward", "eager_attention")
UNSUPPORTED_KERNELS = ("flex_attention", "paged|")

Kernel = Callable[..., tuple[Tensor, Any]]


class Call(NamedTuple):
    """One call of an attention kernel, as the model made it.

    kernel               its name: "sdpa", "eager", "flash_attention_2", …
    module               the attention module that calls
    query, key, value    Float[batch, heads or kv_heads, queries or keys, dim]
    mask                 Bool or additive Float[batch or 1, heads or 1, queries or 1, keys], or flash's
                         Bool[batch, keys], or None
    options              scaling, dropout and what else the module passes
    past                 tokens read before the first query: its place in the whole sequence. None in calls that are not
                         over a sequence of tokens: the connector's, the tower's
    keeps_keys           ``key`` stays unchanged after the call; caches of fixed shape overwrite theirs
    function             the kernel itself; None: what its name means for the module
    """

    kernel: str
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]
    past: int | None = None
    keeps_keys: bool = True
    function: Kernel | None = None

    @property
    def lengths(self) -> tuple[int, int]:
        """(queries, keys)."""
        return self.query.shape[2], self.key.shape[2]

    @property
    def is_flash(self) -> bool:
        return "flash" in self.kernel

    @property
    def first_key(self) -> int:
        """The token of the first key: above 0 where a sliding cache has dropped the tokens before."""
        queries, keys = self.lengths
        return 0 if self.past is None else max(self.past + queries - keys, 0)

    def of_tokens(self) -> Call:
        """The call without the keys of a static cache that no token has filled yet.

        Raises ValueError if the kernel reads those keys too.
        """
        queries, keys = self.lengths
        if self.past is None or self.past + queries >= keys:
            return self
        if self.is_flash and self.mask is None:
            raise ValueError(
                f"{self.kernel} over a cache of {keys} places, {self.past + queries} of them filled, was given no mask "
                "and reads the empty ones; give the forward an attention_mask"
            )
        filled = slice(None, self.past + queries)
        return self._replace(key=self.key[:, :, filled], value=self.value[:, :, filled])

    def by_token(
        self, rows: Float[Tensor, "kept heads rows keys"]
    ) -> Float[Tensor, "kept heads rows tokens"]:
        """Rows over the keys of ``of_tokens`` → over all tokens so far: 0 for those that the cache has dropped."""
        return nn.functional.pad(rows, (self.first_key, 0)) if self.first_key else rows

    def under(self, kernel: str, mask: Tensor) -> Call:
        """The same call of another kernel, with its mask."""
        return self._replace(kernel=kernel, mask=mask, function=None)

    def run(self) -> tuple[Tensor, Any]:
        """The real kernel's output, Float[batch, queries, heads, dim], and what else it returns."""
        function = self.function or real_kernel(self.kernel, self.module)
        return function(self.module, self.query, self.key, self.value, self.mask, **self.options)


class KernelWatcher(Protocol):
    """What happens around the kernel of one attention module. It holds its owner weakly."""

    def run(self, call: Call) -> tuple[Tensor, Any]: ...


class Watch:
    """All that one owner watches of one model: until ``close()``, or until either is gone.

    Both are held weakly, so a dropped owner leaves the model free, and a dropped model leaves the memory.
    """

    def __init__(self, owner: object, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._modules: list[weakref.ref[nn.Module]] = []
        self._classes: set[type] = set()
        self._finalizers = [weakref.finalize(one, self.close) for one in (owner, model)]
        for finalizer in self._finalizers:
            finalizer.atexit = False
        with _LOCK:
            _WATCHES.add(self)  # first: a garbage collection in between may close others
            _patch_process()

    @property
    def is_open(self) -> bool:
        return self in _WATCHES

    @property
    def model(self) -> nn.Module | None:
        return self._model()

    def kernel(self, module: nn.Module, watcher: KernelWatcher) -> None:
        """Hand every kernel call of an attention module to ``watcher``, which runs it.

        Raises ValueError for a module that another watches, and for a kernel that cannot be observed.
        """
        if module in _KERNELS and _KERNELS[module][0] is not self:
            check_is_free([module])
        _KERNELS[module] = self, watcher
        self._modules.append(weakref.ref(module))

    def check_kernels(self) -> None:
        """Raises ValueError if a watched module is to run a kernel that cannot be observed."""
        configs = (vars(module).get("config") for module in self._watched() if module in _KERNELS)
        for config in {id(config): config for config in configs if config is not None}.values():
            check_kernel(str(config._attn_implementation))

    def forward(
        self,
        module: nn.Module,
        *,
        before: Callable[[nn.Module, Any, dict[str, Any]], None] | None = None,
        after: Callable[[nn.Module, Any], None] | None = None,
    ) -> None:
        """Call methods around each forward of a module: ``before(module, arguments, options)`` and ``after(module,
        output)``, whose output is None if it raised. Not when a backward pass runs the module again (activation
        checkpointing). The methods' owner is held weakly."""
        found = _Forward(self, *(None if one is None else WeakMethod(one) for one in (before, after)))
        _FORWARDS[module] = (*_FORWARDS.get(module, ()), found)
        self._modules.append(weakref.ref(module))
        with _LOCK:
            self._classes.add(type(module))
            _USERS.setdefault(type(module), set()).add(self)
            if type(module) not in _PATCHES:
                _PATCHES[type(module)] = [
                    _Patch(type(module), name, _reporting) for name in ("__call__", "forward")
                ]

    def touches(self, modules: Iterable[nn.Module]) -> bool:
        """Is any of the modules watched, or the watched model itself?"""
        return not {self._model(), *self._watched()}.isdisjoint(modules)

    def _watched(self) -> list[nn.Module]:
        """The watched modules that still exist."""
        return [module for reference in self._modules if (module := reference()) is not None]

    def close(self) -> None:
        """Leave the model as it was. Doing it twice does no harm."""
        for finalizer in self._finalizers:
            finalizer.detach()
        for module in self._watched():
            if module in _KERNELS and _KERNELS[module][0] is self:
                del _KERNELS[module]
            if left := tuple(one for one in _FORWARDS.get(module, ()) if one.watch is not self):
                _FORWARDS[module] = left
            else:
                _FORWARDS.pop(module, None)
        with _LOCK:
            for cls in self._classes:
                _USERS[cls].discard(self)
                if not _USERS[cls]:
                    del _USERS[cls]
                    for patch in _PATCHES.pop(cls):
                        patch.undo()
            self._modules, self._classes = [], set()
            _WATCHES.discard(self)
            if not _WATCHES:
                _restore_process()


class _Forward(NamedTuple):
    watch: Watch
    before: WeakMethod[Any] | None
    after: WeakMethod[Any] | None


_LOCK = threading.RLock()
_WATCHES: set[Watch] = set()  # all that are open
_KERNELS: WeakKeyDictionary[nn.Module, tuple[Watch, KernelWatcher]] = WeakKeyDictionary()
_FORWARDS: WeakKeyDictionary[nn.Module, tuple[_Forward, ...]] = WeakKeyDictionary()
_RUNNING: dict[int, int] = {}  # id of a watched module whose forward runs → its thread
_USERS: dict[type, set[Watch]] = {}
_PATCHES: dict[type, list[_Patch]] = {}


def remove_all(model: nn.Module) -> None:
    """Detach everything that watches a model (extractors, taps, hidden states), whoever holds it.

    Rows captured so far stay readable. Does nothing if nothing watches.
    """
    modules = {model, *bare_model(model).modules()}
    for watch in [one for one in _WATCHES if one.touches(modules)]:
        watch.close()


def check_is_free(modules: Iterable[nn.Module]) -> None:
    """Raises ValueError if another extractor or tap watches one of the modules."""
    if any(module in _KERNELS and _KERNELS[module][0].is_open for module in modules):
        raise ValueError(
            "another AttentionExtractor is attached to this model; call its remove() first (or "
            "diagnostics.remove_all(model), if it is lost), or capture all layers with one extractor"
        )


def check_kernel(kernel: str) -> None:
    """Raises ValueError for kernels that hide their mask (flex, paged)."""
    if kernel.startswith(UNSUPPORTED_KERNELS):
        raise ValueError(
            f"attention kernel {kernel!r} cannot be observed; load the model with 'sdpa', 'eager' or flash"
        )


# --- kernels ---------------------------------------------------------------------------------------------
class _Observed:
    """A kernel as models get it from ``AttentionInterface`` while anything is watched."""

    def __init__(self, name: str, function: Kernel) -> None:
        self.kernel, self.function = name, function
        functools.update_wrapper(self, function)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Any]:
        _, watcher = _KERNELS.get(module, (None, None))
        if watcher is None:
            return self.function(module, query, key, value, attention_mask, **options)
        check_kernel(self.kernel)
        return watcher.run(
            Call(self.kernel, module, query, key, value, attention_mask, options, function=self.function)
        )


def _observed(name: str | None, function: Kernel) -> Kernel:
    return function if isinstance(function, _Observed) else _Observed(name or "eager", function)


def _get_interface(get: Callable[..., Kernel]) -> Callable[..., Kernel]:
    def get_interface(self: Any, attn_implementation: str | None, default: Kernel) -> Kernel:
        return _observed(attn_implementation, get(self, attn_implementation, default))

    return get_interface


def _get_item(get: Callable[..., Kernel]) -> Callable[..., Kernel]:
    def get_item(self: Any, key: str) -> Kernel:
        return _observed(key, get(self, key))

    return get_item


def real_kernel(kernel: str, module: nn.Module) -> Kernel:
    """The function that ``kernel`` means for ``module``.

    Eager has no entry in transformers' table: it is a function of the file, or the package, that wrote the
    module.
    """
    if kernel != "eager":
        found = ALL_ATTENTION_FUNCTIONS[kernel]
        return found.function if isinstance(found, _Observed) else found
    return _eager_kernel(type(module))  # type: ignore[arg-type]  # torch's annotations hide that classes are hashable


@functools.cache
def _eager_kernel(cls: Hashable) -> Kernel:
    assert isinstance(cls, type)
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


# --- forwards --------------------------------------------------------------------------------------------
def _reporting(original: Callable[..., Any]) -> Callable[..., Any]:
    """A class's ``__call__`` or ``forward`` that reports when a watched instance runs."""

    @functools.wraps(original)
    def reporting(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        watchers = _watching(module)
        if not watchers:
            return original(module, *arguments, **options)
        return _run_watched(original, watchers, module, arguments, options)

    return reporting


def _watching(module: nn.Module) -> tuple[_Forward, ...]:
    """The watchers to notify that this module runs. Raises ValueError if its rows would be mixed up or lost."""
    found = _FORWARDS.get(module, ())
    if not found:
        _check_is_no_replica(module)
        return ()
    running = _RUNNING.get(id(module))
    if running == threading.get_ident() or torch._C._current_graph_task_id() != -1:
        return ()  # forward inside __call__; or a backward pass that runs it again
    if running is not None:
        raise ValueError(
            f"{type(module).__name__} is watched and runs in two threads at once, which would mix their rows; run one "
            "after the other, or detach the AttentionExtractor while both run"
        )
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{type(module).__name__} is watched and being captured in a CUDA graph, whose replays nothing would see; "
            "capture it without an AttentionExtractor, or run it without a graph"
        )
    return found


def _run_watched(
    run: Callable[..., Any], watchers: Iterable[_Forward], module: nn.Module, arguments: Any, options: Any
) -> Any:
    begun = []
    _RUNNING[id(module)] = threading.get_ident()
    try:
        for one in watchers:
            _notify(one.before, module, arguments, options)
            begun.append(one)
        output = run(module, *arguments, **options)
    except BaseException:
        for one in begun:
            _notify(one.after, module, None)
        raise
    finally:
        del _RUNNING[id(module)]
    for one in begun:
        _notify(one.after, module, output)
    return output


def _notify(method: WeakMethod[Any] | None, *arguments: Any) -> None:
    alive = None if method is None else method()
    if alive is not None:  # its owner may be gone
        alive(*arguments)


def _check_is_no_replica(module: nn.Module) -> None:
    """torch's DataParallel runs copies of the model, one per device, and none of them is watched."""
    if not vars(module).get("_is_replica", False):
        return
    config = vars(module).get("config")
    if any(one.model is not None and vars(one.model).get("config") is config for one in _WATCHES):
        raise ValueError(
            "the watched model runs in torch.nn.DataParallel on several devices, as copies that are not "
            "watched; call the model inside it (.module), give DataParallel one device, or use DistributedDataParallel"
        )


# --- the process -----------------------------------------------------------------------------------------
class _Patch:
    """An attribute of a class, replaced for a while."""

    def __init__(self, cls: type, name: str, made: Callable[[Any], Any]) -> None:
        self.cls, self.name = cls, name
        self.own = vars(cls).get(name)  # None: inherited
        self.put = made(getattr(cls, name))
        setattr(cls, name, self.put)

    def undo(self) -> None:
        if vars(self.cls).get(self.name) is not self.put:
            return  # replaced by someone else since; ours does nothing for unwatched modules
        if self.own is None:
            delattr(self.cls, self.name)
        else:
            setattr(self.cls, self.name, self.own)


_INTERFACE_PATCHES: list[_Patch] = []
_STANCE: list[Any] = []


def _patch_process() -> None:
    if not _STANCE:
        _STANCE.append(torch.compiler.set_stance("force_eager"))  # as a function: in force until undone
    if not _INTERFACE_PATCHES:
        _INTERFACE_PATCHES.append(_Patch(AttentionInterface, "__getitem__", _get_item))
        _INTERFACE_PATCHES.append(_Patch(AttentionInterface, "get_interface", _get_interface))


def _restore_process() -> None:
    while _INTERFACE_PATCHES:
        _INTERFACE_PATCHES.pop().undo()
    while _STANCE:
        _STANCE.pop().__exit__(None, None, None)
