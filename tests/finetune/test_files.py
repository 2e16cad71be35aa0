"""Which errors are a disk that takes no more, and what of a killed process's temporary files is deleted."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune.files import (
    WriteError,
    check_writable,
    delete_left_behind,
    give_usual_mode,
    in_place_of,
    is_refused_write,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.png"), True),
        (OSError(errno.EROFS, "Read-only file system", "a.png"), True),
        (WriteError(Path("a.png"), OSError(errno.EACCES, "Permission denied")), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (OSError(errno.EACCES, "Permission denied", "a.png"), False),  # it may have been reading
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("wrong"), False),
    ],
)
def test_a_disk_that_takes_no_more(error: Exception, expected: bool):
    assert is_refused_write(error) is expected


def test_safetensors_on_a_full_disk():
    with pytest.raises(Exception) as caught:
        save_file({"w": torch.zeros(5, 3)}, "/dev/full/w.safetensors")
    assert not is_refused_write(caught.value)  # no folder
    words = f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"
    assert is_refused_write(type(caught.value)(words))


def test_what_killed_processes_left_is_deleted_and_nothing_else(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = [f".{ended.pid}-140002310898240.tmp", f".{os.getpid()}-1.tmp", ".tmpKR5cyl"]
    stays = [f".{os.getppid()}-140002310898240.tmp", ".tmp", ".tmpKR5cyl.png", "a.tmp", ".trial", "12-3.tmp"]
    for name in (*gone, *stays):
        (tmp_path / name).write_bytes(b"")
    delete_left_behind([tmp_path, tmp_path / "missing"])
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(stays)


def test_a_file_is_no_folder_to_write_to(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match=r"out: found a file; expected a folder with room"):
        check_writable(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_others_may_read_what_safetensors_wrote(tmp_path: Path):
    before = os.umask(0o027)
    try:
        save_file({"w": torch.zeros(5, 3)}, tmp_path / "a.safetensors")
        with in_place_of(tmp_path / "b.safetensors") as temporary:
            save_file({"w": torch.zeros(5, 3)}, temporary)
        give_usual_mode([tmp_path / "a.safetensors"])
    finally:
        assert os.umask(before) == 0o027
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("a.safetensors", "b.safetensors")] == [
        "0o640", "0o640",
    ]  # fmt: skip
