"""Locks that a compiler left behind when it was killed at work, for which every later run would wait without a word.

torch marks the folder of an extension that is being compiled with a file ``lock``, which its maker keeps open, and
waits for as long as there is one (2.13). A process that is killed cannot delete it.
"""

from __future__ import annotations

import os
from pathlib import Path

PROCESSES = Path("/proc")
MOST_LEVELS = ("*/lock", "*/*/lock")
"""Below the root: one folder for each extension, in torch's own root below one for each version of Python and CUDA."""


def build_root() -> Path:
    """Where torch compiles extensions: ``$TORCH_EXTENSIONS_DIR``, else its folder in the user's cache."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())


def mend(root: Path, *, processes: Path = PROCESSES) -> list[str]:
    """Delete the locks below ``root`` that no living process of this machine has open; returns a line for each lock.

    processes   the kernel's list of processes; where there is none, nothing is deleted
    """
    lines: list[str] = []
    for lock in sorted(one for pattern in MOST_LEVELS for one in root.glob(pattern)):
        holders = _holders(lock, processes)
        if holders is None:
            lines.append(
                f"{lock}: if no process is compiling this extension, delete the file: torch waits for it"
            )
        elif holders:
            named = ", ".join(map(str, holders))
            lines.append(f"{lock.parent.name}: is being compiled by process {named}; waiting for it")
        else:
            lock.unlink(missing_ok=True)
            lines.append(
                f"{lock}: left by a compiler that was killed; deleted, so that torch does not wait for it"
            )
    return lines


def _holders(lock: Path, processes: Path) -> list[int] | None:
    """Processes that have the file open; None where the machine does not say."""
    if not (processes / "self").exists():
        return None
    try:
        wanted = lock.stat()
    except FileNotFoundError:
        return []
    found = []
    for process in processes.glob("[0-9]*"):
        try:
            opened = [*(process / "fd").iterdir()]
        except OSError:  # it has ended, or is another user's, who does not compile into this folder
            continue
        if any(_is(one, wanted) for one in opened):
            found.append(int(process.name))
    return sorted(found)


def _is(opened: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(opened.stat(), wanted)
    except OSError:  # closed meanwhile
        return False
