"""The arrows of the architecture, all one way, and what may stay unloaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for package in ("finetune", "diagnostics") for path in (ROOT / package).rglob("*.py")]
# Trap: CPython 3.11 shares the depth of this recursion between threads, so that a server's thread of another test may
# break it ("AST constructor recursion depth mismatch"). While tests are collected there is none.
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(path: Path) -> set[str]:
    """Names of the project's modules that a file imports anywhere, ``TYPE_CHECKING`` blocks left out."""
    names: set[str] = set()
    nodes = list(TREES[path].body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        nodes += list(ast.iter_child_nodes(node))
    return {name for name in names if name.split(".")[0] in ("finetune", "diagnostics")}


def test_training_knows_nothing_of_diagnostics():
    for path in (ROOT / "finetune").rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("diagnostics")], path


def test_diagnostics_know_nothing_of_the_trainer():
    forbidden = (
        "finetune.trainer",
        "finetune.data",
        "finetune.arguments",
        "finetune.adaptation",
        "finetune.demo",
    )
    for path in (ROOT / "diagnostics").rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith(forbidden)], path


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("metrics", ("plots", "composite", "tensorboard", "capture", "report")),
        ("geometry", ("metrics", "plots", "composite", "capture")),
        ("plots", ("metrics", "capture", "monitor", "probe")),
        ("composite", ("capture", "monitor", "probe")),
        ("capture", ("geometry", "metrics", "plots", "records")),
        ("records", ("capture", "plots", "metrics", "probe")),
        ("fusion/recipes", ("metrics", "plots", "composite", "capture", "probe")),
        ("fusion/judging", ("plots", "composite", "capture", "probe", "fusion.views", "fusion.sheet")),
        ("fusion/sheet", ("metrics", "capture", "probe", "fusion.recipes", "fusion.judging", "fusion.views")),
        ("probe", ("plots", "composite", "tensorboard", "monitor", "compare")),
    ],
)
def test_rooms_of_diagnostics(module, forbidden):
    names = imported(ROOT / "diagnostics" / f"{module}.py")
    assert not [n for n in names if any(n == f"diagnostics.{f}" for f in forbidden)]


def test_no_circle():
    modules = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    # A package's own __init__ is run before any of its modules: importing from it is no circle there.
    graph = {
        name: {n for n in top_level(path) if n in modules and n != name and not name.startswith(f"{n}.")}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for other in graph[name]:
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def top_level(path: Path) -> set[str]:
    names: set[str] = set()
    for node in TREES[path].body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_training_needs_neither_diagnostics_nor_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['diagnostics'] = None\n"
        "import finetune.trainer, finetune.data, finetune.adaptation, finetune.checkpoint, finetune.demo.settings"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
