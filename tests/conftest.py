"""Shared by all tests: the package path, the golden folder, and small models built from configurations."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import jaxtyping
import pytest
import torch

from finetune.model import checkpoint, trial
from finetune.training import extension_locks
from tests import annotations, order

# Their calls are checked against their annotations.
SHAPES_CHECKED = (
    "diagnostics.measures",
    "diagnostics.records",
    "finetune.qwen_vl.modeling",
    "finetune.qwen_vl.visual",
)
annotations.check(SHAPES_CHECKED)
torch.set_num_threads(1)
GOLDEN = Path(__file__).parent / "golden"


def pytest_sessionstart() -> None:
    """A test that was killed while DeepSpeed compiled left its lock behind, and others would wait for it until their
    time is up."""
    for root in (extension_locks.build_root(), Path(__file__).parents[1] / ".venv" / "torch_extensions"):
        extension_locks.mend(root)


_files_begun: set[Path] = set()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """At each file leaves what is there out of garbage collection: a Trainer collects at each start, .5 s over all that
    tests have imported by then."""
    annotations.next_test()
    if item.path not in _files_begun:
        _files_begun.add(item.path)
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; xdist keeps this order with ``--no-loadscope-reorder`` (its own is by number of tests)."""
    order.slow_first(items)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches token counts in a folder of the tests, also for processes that they start."""
    os.environ["ATTENTION_FINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def no_trials() -> Iterator[None]:
    """The chat templates of small models end: trying each in a process of its own would take a tenth of all time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "excess", lambda work: None)
        yield


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates are tried, for tests of some that do not end."""
    monkeypatch.setattr(checkpoint, "excess", trial.excess)


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def qwen_vocabulary() -> Path:
    """The real qwen.tiktoken, from the package dashscope."""
    import importlib.util

    spec = importlib.util.find_spec("dashscope")
    assert spec is not None and spec.origin is not None, (
        "tests need the package dashscope (requirements-dev.txt)"
    )
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """For tests of our own shape errors, which the annotation checks would pre-empt."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
