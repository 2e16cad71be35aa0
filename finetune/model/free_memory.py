"""Free memory of a GPU or the system, within container limits."""

from __future__ import annotations

from pathlib import Path

import torch


def available_bytes(device: torch.device) -> float:
    """Free memory: of the GPU, or of the system within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_system_bytes(), _container_bytes())


def _system_bytes(file: Path = Path("/proc/meminfo")) -> float:
    fields = dict(line.split(":", 1) for line in file.read_text(encoding="ascii").splitlines() if ":" in line)
    return float(fields["MemAvailable"].split()[0]) * 1024


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Memory left under the container's limit (cgroup 2); infinity without a limit."""
    limit, used = folder / "memory.max", folder / "memory.current"
    if not limit.is_file() or (allowed := limit.read_text(encoding="ascii").strip()) == "max":
        return float("inf")
    return int(allowed) - int(used.read_text(encoding="ascii")) + _file_cache_bytes(folder / "memory.stat")


def _file_cache_bytes(file: Path) -> int:
    """File cache that counts as used but is reclaimed on demand."""
    lines = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return sum(int(count) for name, count in lines if name == "inactive_file")
