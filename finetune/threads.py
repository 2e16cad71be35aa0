"""How many threads compute on a CPU, and how they wait: for the machine as this process may use it.

Waiting threads sleep (``OMP_WAIT_POLICY=passive``): a thread that spins at a barrier takes the core from the thread
that the others wait for, so a step beside other processes takes several times as long. Nothing here looks at the load:
sums depend on the number of threads, and a resumed run has to reach the weights of one that was never interrupted.

The standard library alone: OpenMP reads both variables when torch is loaded, and the scripts run this file by its path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
CPUS = Path("/sys/devices/system/cpu")


def set_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what the user has not set. Call before torch is imported."""
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    environment.setdefault("OMP_WAIT_POLICY", "passive")


def usable_cores() -> int:
    """Physical cores that this process may run on, within the CPU quota of its container; at least 1."""
    return max(1, int(min(_cores(_allowed()), *_quotas())))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return os.sched_getaffinity(0)
    return {*range(os.cpu_count() or 1)}


def _cores(allowed: set[int], cpus: Path = CPUS) -> float:
    """Cores under the allowed CPUs; hyper-threads of one core share its arithmetic and count once."""
    siblings = set()
    for cpu in allowed:
        file = cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        siblings.add(file.read_text(encoding="ascii").strip() if file.is_file() else str(cpu))
    return float(len(siblings))


def _quotas(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> Iterator[float]:
    """Cores that each control group above this process grants, version 1 or 2; infinity where one grants all.

    Within a container the own group is often mounted as the root, under another path than its name: both are read.
    """
    yield float("inf")
    lines = own.read_text(encoding="ascii").splitlines() if own.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif "cpu" in controllers.split(","):
            base = next((one for one in (root / controllers, root / "cpu") if one.is_dir()), root)
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == base or base in folder.parents:
                yield _quota(folder)


def _quota(group: Path) -> float:
    if (group / "cpu.max").is_file():  # version 2: "150000 100000", or "max 100000"
        granted, period = (group / "cpu.max").read_text(encoding="ascii").split()
    elif (group / "cpu.cfs_quota_us").is_file():  # version 1: -1 for all
        granted = (group / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
        period = (group / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    else:
        return float("inf")
    return float("inf") if granted in ("max", "-1") else int(granted) / int(period)
