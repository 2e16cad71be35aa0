"""Which folder holds the model, and which the adapter, that a name on the command line means.

Nothing here imports torch: what a name means is known before anything is loaded.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.fields import NULL, TEXT, load, shown

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin")
REMEDY = "copy the adapter again, or correct the file"

WHICH_FLAG = (
    "give its folder: --base FOLDER (export, compare, web demo), or in training --model_name_or_path FOLDER "
    "--lora_weight_path ADAPTER"
)

Fields = Mapping[str, Any]


def resolve(name_or_path: str | Path, *, base: str | None = None) -> tuple[str, Path | None]:
    """(base checkpoint, adapter folder or None). ``base`` replaces the base that an adapter names.

    Raises ValueError for a folder that holds neither a model nor an adapter, for one that holds both, and for an
    adapter whose base folder is missing.
    """
    path = Path(name_or_path).expanduser()
    if not path.exists():
        if looks_like_a_path(str(name_or_path)):
            raise ValueError(
                f"{name_or_path}: there is no such folder (working directory {os.getcwd()}); "
                "expected a model folder, an adapter folder, or a hub name such as Qwen/Qwen-VL-Chat"
            )
        return str(name_or_path), None
    if holds_model(path):
        # Absolute, because adapters write down the name of their base.
        return os.path.abspath(path), None
    if not is_adapter(path):
        raise ValueError(
            f"{path}: found neither {MODEL_CONFIG} nor {ADAPTER_CONFIG}; expected the folder of a model or an adapter"
        )
    if base is None:
        return _base_of(path), path
    base_name, inner = resolve(base)
    if inner is not None:
        raise ValueError(
            f"--base {base}: is an adapter itself, expected a model; merge it first: python -m finetune.export "
            f"{shlex.quote(str(base))} "
            "--output_dir MERGED"
        )
    return base_name, path


def holds_model(folder: Path) -> bool:
    """Some programs leave the base's config.json beside an adapter: without weights of a model it makes none.

    Raises ValueError for a model and an adapter in one folder: transformers attaches the adapter unasked.
    """
    if not (folder / MODEL_CONFIG).is_file() or not is_adapter(folder):
        return (folder / MODEL_CONFIG).is_file()
    found = next((path.name for pattern in MODEL_FILES for path in sorted(folder.glob(pattern))), None)
    if found is not None:
        raise ValueError(both(str(folder), f"{MODEL_CONFIG}, {found}"))
    return False


def both(place: str, model: str = MODEL_CONFIG) -> str:
    """What is said of a place that holds a model and an adapter."""
    return (
        f"{place}: found a model ({model}) and an adapter ({ADAPTER_CONFIG}), expected one of them: transformers "
        "attaches the adapter unasked, and neither would be what is opened; move adapter_config.json and "
        "adapter_model.* to a folder of their own, and give that one for the adapter, this one for the model"
    )


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def read(folder: Path) -> Fields:
    """The fields of an adapter's configuration, unchecked.

    Raises ValueError for a file that does not hold a JSON object, and for a base name that is not a string.
    """
    file = folder / ADAPTER_CONFIG
    found = load(file, {"base_model_name_or_path": TEXT | NULL}, remedy=REMEDY)
    base = found.get("base_model_name_or_path")
    if base and "\0" in base:
        raise ValueError(f"{file}: base_model_name_or_path: found {shown(base)}, expected a name or a path")
    return found


def looks_like_a_path(name: str) -> bool:
    """A hub name has at most one slash, and neither starts with a dot, a slash or a tilde nor ends with a slash."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _base_of(adapter: Path) -> str:
    file = adapter / ADAPTER_CONFIG
    base = read(adapter).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{file}: base_model_name_or_path is missing, expected the checkpoint it was trained on; "
            f"{WHICH_FLAG}"
        )
    if looks_like_a_path(base) and not os.path.exists(base):
        raise ValueError(f"{file}: its base model {shortened(base)!r} is missing; {WHICH_FLAG}")
    if not os.path.exists(base):
        return str(base)
    holds_model(Path(base))
    return os.path.abspath(base)


def shortened(name: str) -> str:
    return name if len(name) <= 300 else f"{name[:297]}..."
