"""A compiler that was killed left torch's lock behind: found, said, deleted. One at work keeps it."""

import os

import pytest
from torch.utils.file_baton import FileBaton

from finetune.training import extension_locks


@pytest.mark.parametrize("below", ["deepspeed_shm_comm", "py311_cpu/deepspeed shm"])
def test_a_lock_without_a_living_process_is_deleted(tmp_path, below):
    lock = tmp_path / below / "lock"
    lock.parent.mkdir(parents=True)
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    (line,) = extension_locks.mend(tmp_path)
    assert line == f"{lock.parent.name}: is being compiled by process {os.getpid()}; waiting for it"
    assert lock.exists()
    os.close(baton.fd)  # as it is when its process was killed
    (line,) = extension_locks.mend(tmp_path)
    assert line.startswith(f"{lock}: left by a compiler that was killed; deleted") and not lock.exists()
    assert extension_locks.mend(tmp_path) == []


def test_a_machine_that_does_not_list_its_processes_keeps_the_lock(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "lock").touch()
    (line,) = extension_locks.mend(tmp_path, processes=tmp_path / "proc")
    assert (
        "if no process is compiling this extension, delete the file" in line
        and (tmp_path / "a" / "lock").exists()
    )


def test_the_root_is_where_torch_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert extension_locks.build_root() == tmp_path
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert extension_locks.build_root().name.startswith("torch_extensions")
