"""Threads for the machine as it may be used: container quotas, affinity, hyper-threads; never over the user's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import threads

ROOT = Path(__file__).parents[2]


def written(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_hyper_threads_of_a_core_count_once_and_only_those_allowed(tmp_path):
    for cpu, siblings in enumerate(["0,4", "1,5", "2,6", "3,7"] * 2):
        written(tmp_path / f"cpu{cpu}" / "topology", thread_siblings_list=siblings)
    assert threads._cores({0, 4, 1, 5, 2}, tmp_path) == 3
    assert threads._cores({0, 1, 2}, tmp_path / "none") == 3  # a machine that does not say


@pytest.mark.parametrize(
    ("own", "quota"),
    [
        ("0::/pod/training", [float("inf"), 2.5, 1.5]),
        ("0::/", [float("inf")]),
        (
            "5:memory:/pod\n3:cpu,cpuacct:/pod/training\n0::/",
            [float("inf"), 0.75, float("inf"), float("inf")],
        ),
    ],
    ids=["version 2", "no limit", "version 1"],
)
def test_quotas_of_the_process_and_of_the_groups_above_it(tmp_path, own, quota):
    root = tmp_path / "cgroup"
    written(root / "pod", cpu__max="150000 100000")
    written(root / "pod" / "training", cpu__max="250000 100000")
    written(root / "cpu" / "pod", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    written(root / "cpu" / "pod" / "training", cpu__cfs_quota_us="75000", cpu__cfs_period_us="100000")
    (tmp_path / "own").write_text(own + "\n")
    found = [*threads._quotas(tmp_path / "own", root)]
    assert [one for one in found if one != float("inf")] == [one for one in quota if one != float("inf")]
    assert found[0] == float("inf")


def test_a_core_is_left_where_a_quota_grants_less(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda allowed: 8.0)
    for quotas, cores in (([0.5], 1), ([2.9, float("inf")], 2), ([float("inf")], 8)):
        monkeypatch.setattr(threads, "_quotas", lambda quotas=quotas: iter(quotas))
        assert threads.usable_cores() == cores
    environment = {"LOCAL_WORLD_SIZE": "3"}
    threads.set_defaults(environment)
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("2", "passive")


def test_what_the_user_set_is_kept():
    environment = {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "active"}
    threads.set_defaults(environment)
    assert environment == {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "active"}


@pytest.mark.parametrize(
    "program", ["finetune.py", "attention_finetune/train.py", "attention_finetune/demo.py"]
)
def test_programs_set_them_before_torch_is_loaded(program):
    """torch is replaced by a failure, so what the environment holds at that moment is seen."""
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except ImportError: import os; print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    ran = subprocess.run(
        [sys.executable, "-c", code, program], cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout.split() == ["passive", str(threads.usable_cores())], ran.stderr
