"""The architecture of a model as numbers and names, and the folder where what was found once is kept.

Where a configuration leaves values out, finding its architecture takes the model's classes, and importing those takes
seconds. So what was found is kept in the cache folder, by everything that it follows from. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import fields
from finetune.fields import OBJECT, TEXT, items, whole
from finetune.files import write_atomically
from finetune.image_arithmetic import ImageArithmetic
from finetune.model.folders import MODEL_CONFIG, resolve
from finetune.samples.cache import cache_folder

PROJECT = Path(__file__).parents[2]
DECIDED_BY = (
    "finetune/families/**/*.py", "finetune/qwen_vl/*.py", "finetune/model/*.py", "diagnostics/inspect.py",
)  # fmt: skip
"""The code of this project from which an architecture follows."""
LIBRARIES = ("transformers", "torch")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Which of a folder's files hold how pictures are made ready."""


@dataclass(frozen=True)
class Component:
    """One part of the model: its modules (dotted names), number of layers, and number of parameters."""

    name: str
    modules: tuple[str, ...]
    layers: int
    parameters: int


@dataclass(frozen=True)
class AttentionKind:
    """Modules with the same attention: ``first`` and ``last`` are the names their rows are reported under.

    heads, key_heads, head_width   of one module; all 0 where the layers have no attention map
    map_bytes                      one layer's whole map of one sequence, all heads, fp32
    """

    first: str
    last: str
    count: int
    module: str
    heads: int
    key_heads: int
    head_width: int
    looks: str
    queries: int
    keys: int
    map_bytes: int


@dataclass(frozen=True)
class Architecture:
    """A model's architecture, as ``inspect`` shows it."""

    name: str
    family: str
    model_type: str
    parameters: int
    components: tuple[Component, ...]
    attention: tuple[AttentionKind, ...]
    picture: ImageArithmetic
    tokens: int


def to_json(found: Architecture) -> str:
    """JSON for programs, with the size of all maps in bytes."""
    return json.dumps(asdict(found), ensure_ascii=False, indent=1)


PARTS: dict[str, fields.Shape] = {
    "components": {"name": TEXT, "modules": items(TEXT), **dict.fromkeys(("layers", "parameters"), whole())},
    "attention": {
        **dict.fromkeys(("first", "last", "module", "looks"), TEXT),
        **dict.fromkeys(
            ("count", "heads", "key_heads", "head_width", "queries", "keys", "map_bytes"), whole()
        ),
    },
}
PICTURE = {
    "resized_pixels": items(whole(), 2),
    "patches": items(whole(), 2),
    "tokens": whole(),
    "words": TEXT,
}
SHAPE: fields.Shape = {
    **dict.fromkeys(("name", "family", "model_type"), TEXT), "parameters": whole(), "tokens": whole(),
    **dict.fromkeys(PARTS, items(OBJECT)), "picture": PICTURE,
}  # fmt: skip


def from_json(text: str) -> Architecture:
    """What ``to_json`` wrote. Raises ValueError for anything else."""
    return _architecture(fields.parse(text, "architecture"))


def _architecture(found: Any) -> Architecture:
    fields.check(found, SHAPE, "architecture", required=tuple(SHAPE))
    every = [(one, shape) for name, shape in PARTS.items() for one in found[name]] + [
        (found["picture"], PICTURE)
    ]
    for one, shape in every:
        fields.check(one, shape, "architecture", required=tuple(shape))
        fields.refuse([f"{name}: unknown" for name in one if name not in shape], "architecture")
    fields.refuse([f"{name}: unknown" for name in found if name not in SHAPE], "architecture")
    picture = found["picture"]
    return Architecture(
        **{
            **found,
            "components": tuple(
                Component(**{**part, "modules": tuple(part["modules"])}) for part in found["components"]
            ),
            "attention": tuple(AttentionKind(**kind) for kind in found["attention"]),
            "picture": ImageArithmetic(
                **{
                    **picture,
                    "resized_pixels": tuple(picture["resized_pixels"]),
                    "patches": tuple(picture["patches"]),
                }
            ),
        }
    )


def processor_place(model: str) -> str:
    """The folder or hub name whose processor goes with a model: an adapter's own, where it has one, else its base's.

    Raises ValueError for a folder that holds no model.
    """
    base, adapter = resolve(model)
    has_own = adapter is not None and any((adapter / name).is_file() for name in PROCESSOR_FILES)
    return str(adapter) if has_own else base


def place_of(model: str, *, tokens: int, picture: tuple[int, int]) -> Path | None:
    """Where the architecture of a model folder (or of an adapter's base folder, with the adapter's processor) is kept;
    None for a hub name.

    tokens    length of the prompt for which maps are counted
    picture   (width, height) in pixels of the example

    Raises ValueError for a folder that holds no model.
    """
    config = Path(resolve(model)[0]) / MODEL_CONFIG
    if not config.is_file():
        return None
    digest = hashlib.sha256(config.read_bytes())
    for path in (Path(processor_place(model)) / name for name in PROCESSOR_FILES):
        content = path.read_bytes() if path.is_file() else None
        digest.update(repr((path.name, content)).encode())
    digest.update(repr((tokens, picture, [(name, version(name)) for name in LIBRARIES])).encode())
    for pattern in DECIDED_BY:
        for source in sorted(PROJECT.glob(pattern)):
            digest.update(source.read_bytes())
    return cache_folder() / "architectures" / f"{digest.hexdigest()}.json"


def kept(place: Path | None) -> Architecture | None:
    """What was found before; None where nothing was, or where the file is broken: then it is found anew."""
    if place is None:
        return None
    try:
        return _architecture(fields.read(place))
    except ValueError:
        return None


def keep(place: Path | None, found: Architecture) -> None:
    """Keep what was found, where the cache folder can be written; the next look is slow where it cannot."""
    if place is not None:
        with contextlib.suppress(OSError):
            write_atomically(place, to_json(found).encode())
