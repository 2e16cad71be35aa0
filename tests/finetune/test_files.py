"""Which errors are a disk that takes no more, and what of a killed process's temporary files is deleted."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune.files import (
    NOT_WHOLE,
    WriteError,
    check_writable,
    delete_left_behind,
    fault_words,
    files_into,
    folder_in_place_of,
    give_usual_mode,
    in_place_of,
    is_refused_write,
    refusal_words,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.png"), True),
        (OSError(errno.EROFS, "Read-only file system", "a.png"), True),
        (WriteError(Path("a.png"), OSError(errno.EACCES, "Permission denied")), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (RuntimeError("open file failed with strerror: No space left on device"), True),
        (RuntimeError("open file failed with strerror: Permission denied"), False),
        (OSError(errno.EACCES, "Permission denied", "a.png"), False),  # it may have been reading
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("wrong"), False),
    ],
)
def test_a_disk_that_takes_no_more(error: Exception, expected: bool):
    assert is_refused_write(error) is expected


@pytest.mark.parametrize("numbers", [5, 50_000])
def test_what_torch_says_of_a_full_disk_is_said_in_words(numbers: int):
    """It says one thing of what fits into its buffer, and another of what does not."""
    with pytest.raises(RuntimeError) as caught:
        torch.save({"w": torch.zeros(numbers)}, "/dev/full")
    assert is_refused_write(caught.value) and refusal_words(caught.value) == NOT_WHOLE


def test_safetensors_on_a_full_disk():
    with pytest.raises(Exception) as caught:
        save_file({"w": torch.zeros(5, 3)}, "/dev/full/w.safetensors")
    assert not is_refused_write(caught.value)  # no folder
    words = f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"
    assert is_refused_write(type(caught.value)(words))


def test_files_move_into_a_folder_or_leave_it_as_it_was(tmp_path: Path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="full"), files_into(tmp_path) as made:
        (made / "a").write_text("")
        raise OSError(errno.ENOSPC, "full")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept": "kept", "a": "old"}
    with files_into(tmp_path) as made:
        (made / "below").mkdir()
        (made / "below" / "b").write_text("b")
        (made / "a").write_text("new")
        assert made.parent == tmp_path and (tmp_path / "a").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "a", "below"}
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "below" / "b").read_text() == "b"


def test_what_killed_processes_left_is_deleted_and_nothing_else(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = [f".{ended.pid}-140002310898240.tmp", f".{os.getpid()}-1.tmp", ".tmpKR5cyl"]
    stays = [f".{os.getppid()}-140002310898240.tmp", ".tmp", ".tmpKR5cyl.png", "a.tmp", ".trial", "12-3.tmp"]
    for name in (*gone, *stays):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".{ended.pid}-7.tmp" / "images").mkdir(parents=True)
    (tmp_path / f".{ended.pid}-8.tmp.json").write_bytes(b"")
    delete_left_behind([tmp_path], of_safetensors=False)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*stays, ".tmpKR5cyl"])
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


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")
NO_SPACE = "No space left on device; free some space, or give another folder"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("data.json: wrong"), "data.json: wrong"),
        (WriteError(Path("a.png"), FULL_DISK), f"cannot write a.png: {NO_SPACE}"),
        (FULL_DISK, f"cannot write a file: {NO_SPACE}"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "cannot write a: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "a.json: Permission denied"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "[Errno 111] Connection refused"),
        (OSError("no such model on the hub"), "no such model on the hub"),
    ],
)  # fmt: skip
def test_what_a_program_says_of_an_error(error: Exception, words: str):
    assert fault_words(error) == words


def test_another_process_may_raise_it():
    error = pickle.loads(pickle.dumps(WriteError(Path("a.png"), FULL_DISK)))
    assert isinstance(error, WriteError) and (str(error), error.errno) == (
        "cannot write a.png: No space left on device", errno.ENOSPC,
    )  # fmt: skip


def test_two_files_at_a_time_and_the_inner_one_is_named(tmp_path: Path):
    (tmp_path / "b").write_text("before")
    with pytest.raises(WriteError, match=r"cannot write .*/b: "), in_place_of(tmp_path / "a") as outer:
        outer.write_text("a")
        with in_place_of(tmp_path / "b", suffix=".json") as inner:
            assert inner != outer and inner.suffix == ".json"
            inner.write_text("b")
            raise FULL_DISK
    assert [one.name for one in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_text() == "before"


@pytest.mark.parametrize(
    "error", [FULL_DISK, RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")]
)
def test_a_folder_replaces_another_whole_or_not_at_all(tmp_path: Path, error: Exception):
    part = tmp_path / "made" / "part"
    for content in ("old", "new"):
        with folder_in_place_of(part) as folder:
            (folder / content).write_text(content)
        assert [one.name for one in part.iterdir()] == [content]
    with pytest.raises(WriteError, match=f"cannot write {part}: "), folder_in_place_of(part) as folder:
        (folder / "half").write_text("ha")
        raise error
    with pytest.raises(FileNotFoundError), folder_in_place_of(part) as folder:
        (tmp_path / "missing.json").read_text()
    assert [one.name for one in part.iterdir()] == ["new"] and [*part.parent.iterdir()] == [part]


def test_a_full_disk_takes_an_empty_file_and_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, content: bytes) -> None:
        path.touch()
        if content:
            raise FULL_DISK

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"below: found a folder that cannot be written \(No space left"):
        check_writable(tmp_path / "out" / "below")
    assert not list(tmp_path.iterdir())
