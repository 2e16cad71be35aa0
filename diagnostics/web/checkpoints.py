"""The models of before / after: the chat's, the same without its adapter, and those of ``--checkpoints``."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from diagnostics.web.engine import EMBEDDED, Engine
from diagnostics.web.texts import RefusedError, Words
from finetune.model.checkpoint import check

logger = logging.getLogger(__name__)

_STEP = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("config.json", "adapter_config.json")


def find_checkpoints(folders: Sequence[str | Path]) -> list[Path]:
    """Checkpoints in these folders, by step: the folder itself if it is one, and each ``checkpoint-N`` inside it.

    Duplicates are listed once. Raises ValueError for a folder without a checkpoint.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        numbered = [
            (int(match[1]), path)
            for path in folder.glob("checkpoint-*")
            if (match := _STEP.fullmatch(path.name))
        ]
        inside = [path for _, path in sorted(numbered)] + [folder]
        here = [path for path in inside if any((path / name).is_file() for name in _WEIGHTS)]
        if not here:
            raise ValueError(
                f"--checkpoints {folder}: found no checkpoint, expected a model or adapter folder, or a run's folder "
                "that holds checkpoint-N"
            )
        found += here
    return list({path.resolve(): path for path in found}.values())


def check_checkpoints(
    paths: Sequence[Path], *, base: str | None = None, allow_other_base: bool = False
) -> None:
    """Raises ValueError at startup for a checkpoint that cannot be opened: an adapter with a missing or different base,
    truncated files, or a model of an unknown family."""
    for path in paths:
        try:
            check(path, base=base, allow_other_base=allow_other_base)
        except (OSError, ValueError) as error:
            raise ValueError(f"--checkpoints {path}: {error}") from error


def short_name(checkpoint: str, parts: int = 2) -> str:
    """A checkpoint's name for visitors: the last parts of its path, which hides the rest."""
    found = Path(checkpoint).parts
    return checkpoint if len(found) <= parts else "/".join(found[-parts:])


def _short_names(checkpoints: Sequence[str]) -> list[str]:
    """Short names that tell different paths apart: ``day-1/run/checkpoint-110`` beside ``day-2/run/checkpoint-110``."""
    longest = max(len(Path(one).parts) for one in checkpoints)
    names = [short_name(one) for one in checkpoints]
    for parts in range(3, longest + 1):
        if len(set(names)) == len(set(checkpoints)):
            break
        twice = {name for name in names if names.count(name) > 1}
        names = [
            short_name(one, parts) if name in twice else name
            for name, one in zip(names, checkpoints, strict=True)
        ]
    return names


def about(engine: Engine) -> Words:
    """What a model is, for visitors: its size, and of the demo what it knows."""
    name = Words.of(short_name(engine.name))
    if engine.is_demo:
        return Words("demo_model") if Path(engine.name) == EMBEDDED else Words("tuned_demo", {"name": name})
    count = engine.parameters
    size = f"{count / 1e9:.1f}B" if count >= 10**9 else f"{count / 1e6:.0f}M"
    return Words("other_model", {"name": name, "size": size})


class Checkpoints:
    """Engines by the names on the page. Keeps one other model open beside the chat's own."""

    def __init__(self, engine: Engine, paths: Sequence[Path]) -> None:
        self._engine = engine
        own = Path(engine.name).resolve()
        others = (path for path in paths if path.resolve() != own)
        # Keys reach every browser, so they must not contain paths.
        self._paths = {f"checkpoint {number}": path for number, path in enumerate(others)}
        self._open: tuple[str, Engine] | None = None
        self._opening = threading.Lock()

    def names(self) -> list[tuple[Words, str]]:
        """(label, key) of each, in training order: the model without its adapter first."""
        name, *names = map(Words.of, _short_names([self._engine.name, *map(str, self._paths.values())]))
        own, others = (name, "own"), list(zip(names, self._paths, strict=True))
        if not self._engine.has_adapter:
            return [own, *others]
        return [(Words("adapter_off", {"name": own[0]}), "adapter_off"), *others, own]

    def engine(self, key: str) -> Engine:
        """Raises ValueError for an unknown key, or if there is no memory for another model."""
        if key == "own":
            return self._engine
        if key == "adapter_off":
            return self._engine.adapter_off()
        if key not in self._paths:
            raise ValueError(f"checkpoint: found {key!r}, expected one of the list")
        with self._opening:
            if self._open is None or self._open[0] != key:
                self._open = None  # freed before the next is opened: three may not fit
                self._open = (key, self._opened(self._paths[key]))
            return self._open[1]

    def _opened(self, path: Path) -> Engine:
        try:
            return self._engine.with_checkpoint(path)
        except RefusedError:  # in words for visitors already
            raise
        except (OSError, ValueError) as error:  # visitors must not see the checkpoint's path
            logger.exception("%s cannot be opened", path)
            message = str(error)
            for written in (str(path.resolve()), str(path)):
                message = message.replace(written, short_name(written))
            raise ValueError(message) from error
