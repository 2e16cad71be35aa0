"""The arrows of the architecture: one way between folders, no circle of files, and what may stay unloaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("finetune", "diagnostics", "attention_finetune")
FILES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
# Trap: CPython 3.11 shares the depth of this recursion between threads, so that a server's thread of another test may
# break it ("AST constructor recursion depth mismatch"). While tests are collected there is none.
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# Bottom up: a folder may import from those above it in its list, never from those below. Modules that lie directly in
# a package stand here by their own names.
FLOORS = {
    "finetune": (
        ("files", "percent", "printable"),
        (
            "auto_classes",
            "distributed",
            "fields",
            "folder_lock",
            "fonts",
            "image_arithmetic",
            "scratch",
            "sharding",
            "threads",
        ),
        ("samples",),
        ("qwen_vl",),
        ("families",),
        ("attention",),
        ("data",),
        ("flags",),
        ("model",),
        ("training",),
        ("corrective", "demo", "export", "realcase"),
    ),
    "diagnostics": (
        ("flags", "measures", "records", "capture"),
        ("probing", "pruning"),
        ("comparison",),
        ("diagnosis",),
        ("drawing",),
        ("report",),
        ("board", "inspect", "compare", "diagnose", "render", "fusion", "keep", "web"),
        ("monitoring",),
        ("curve", "monitor"),
    ),
    "attention_finetune": (
        ("completion", "ending", "ready"),
        ("cli", "inputs", "looking", "model", "watch"),
        ("train",),
        ("demo",),
    ),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules of the project that a file imports anywhere (or at its top level), ``TYPE_CHECKING`` left out."""
    names: set[str] = set()
    nodes = list(TREES[path].body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            # ``from package import module`` needs the module; only other names need what __init__ defines.
            names |= below if below <= MODULES.keys() else below | {node.module}
        if not top_level:
            nodes += list(ast.iter_child_nodes(node))
    return names & MODULES.keys()


def room(module: str) -> str:
    """``finetune.samples.formats.boxes`` → ``samples``; "" for a package's own ``__init__``."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_its_floor(package):
    rooms = {room(name) for name in MODULES if name.startswith(f"{package}.")}
    listed = [one for floor in FLOORS[package] for one in floor]
    assert sorted(listed) == sorted(rooms)


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_rooms_point_one_way(package):
    floor = {one: height for height, floor in enumerate(FLOORS[package]) for one in floor}
    wrong = [
        f"{name} → {other}"
        for name, path in MODULES.items()
        for other in imported(path)
        if name.startswith(f"{package}.") and other.startswith(f"{package}.") and room(other)
        if room(name) != room(other) and floor[room(name)] <= floor[room(other)]
    ]
    assert not wrong


def test_training_knows_nothing_of_diagnostics():
    for name, path in MODULES.items():
        if name.split(".")[0] == "finetune":
            assert not [one for one in imported(path) if not one.startswith("finetune")], path


def test_diagnostics_know_nothing_of_how_training_is_done():
    allowed = (
        "samples",
        "families",
        "attention",
        "model",
        "fonts",
        "distributed",
        "files",
        "folder_lock",
        "sharding",
        "qwen_vl",
        "image_arithmetic",
        "fields",
        "percent",
        "printable",
        "scratch",
        "",
    )
    for name, path in MODULES.items():
        if name.split(".")[0] == "diagnostics":
            theirs = [one for one in imported(path) if not one.startswith("diagnostics")]
            assert not [
                one for one in theirs if not one.startswith("finetune") or room(one) not in allowed
            ], path


@pytest.mark.parametrize(
    ("place", "forbidden"),
    [
        ("diagnostics.measures", ("diagnostics.capture", "diagnostics.records", "diagnostics.drawing")),
        ("diagnostics.records", ("diagnostics.capture", "diagnostics.measures", "diagnostics.drawing")),
        ("diagnostics.capture", ("diagnostics.measures", "diagnostics.records")),
        ("diagnostics.comparison", ("diagnostics.drawing", "diagnostics.capture")),
        ("diagnostics.drawing", ("diagnostics.capture", "diagnostics.probing")),
        ("diagnostics.fusion.recipes", ("diagnostics.drawing", "diagnostics.capture", "diagnostics.probing")),
        (
            "diagnostics.fusion.judging",
            ("diagnostics.drawing", "diagnostics.capture", "diagnostics.probing.prober"),
        ),
        ("diagnostics.fusion.sheet", ("diagnostics.measures", "diagnostics.capture", "diagnostics.probing")),
    ],
)
def test_measuring_and_drawing_do_not_know_each_other(place, forbidden):
    inside = [name for name in MODULES if name == place or name.startswith(f"{place}.")]
    assert inside
    for name in inside:
        assert not [one for one in imported(MODULES[name]) if one.startswith(forbidden)], name


def test_no_circle_of_files():
    # A package's own __init__ is run before any of its modules: importing from it is no circle there.
    graph = {
        name: {
            one for one in imported(path, top_level=True) if one != name and not name.startswith(f"{one}.")
        }
        for name, path in MODULES.items()
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


def test_training_needs_neither_diagnostics_nor_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['diagnostics'] = None\n"
        "import finetune.training.trainer, finetune.data.dataset, finetune.model.adaptation, finetune.demo.settings\n"
        "import attention_finetune.train"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize(
    ("loaded", "absent"),
    [
        ("import finetune, diagnostics, attention_finetune", "torch transformers numpy PIL peft matplotlib"),
        (
            "import finetune.samples.source, finetune.data.mixture",
            "torch transformers",
        ),
        ("import finetune.demo.prepare, finetune.demo.settings", "torch transformers numpy"),
        ("import diagnostics.inspect", "torch transformers numpy"),
        ("from finetune.families import FAMILIES", "torch transformers peft PIL.ImageDraw"),
        ("import diagnostics.compare", "torch transformers peft scipy.stats"),
        ("import diagnostics.drawing.worker", "torch transformers peft scipy.stats"),
        ("import finetune; from transformers import AutoConfig", "finetune.qwen_vl.modeling"),
    ],
)
def test_what_an_import_leaves_unloaded(loaded, absent):
    """Importing torch takes two seconds, transformers' models three more: modules are counted, not seconds."""
    code = f"{loaded}\nimport sys; print(*[name for name in {absent.split()!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.stdout.split(), ran.stderr, ran.returncode) == ([], "", 0)
