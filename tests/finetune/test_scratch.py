"""Scratch folders: what a killed program left goes, and what is in use stays."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from finetune import scratch
from finetune.scratch import scratch_folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_for_as_long_as_the_block_runs(place: Path):
    with pytest.raises(ValueError, match="mine"), scratch_folder("web") as folder:
        assert folder.parent == place and scratch.MADE_HERE.fullmatch(folder.name)
        (folder / "a").mkdir()
        raise ValueError("mine")
    assert not list(place.iterdir())


def test_what_a_killed_program_left_is_deleted_and_what_is_used_stays(place: Path):
    left = Path(tempfile.mkdtemp(prefix=f"{scratch.PREFIX}web-"))
    (left / "uploads").mkdir()
    link = place / f"{left.name[:-8]}linklink"
    assert scratch.MADE_HERE.fullmatch(link.name)
    # Others', the sources unpacked from an archive among them.
    others = [
        place / name for name in ("attention-finetune-main", f"{scratch.PREFIX}notes", "attention-finetune")
    ]
    for one in others:
        one.mkdir()
    link.symlink_to(others[0])
    with scratch_folder("web") as used, scratch_folder("processor") as second:
        assert {*place.iterdir()} == {used, second, link, *others}


def test_one_that_is_deleted_before_it_is_locked_is_made_again(place: Path, monkeypatch: pytest.MonkeyPatch):
    lock, deleted = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not deleted:
            deleted.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            deleted[0].rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(scratch.fcntl, "flock", late)
    with scratch_folder("web") as folder:
        assert deleted and folder != deleted[0] and [*place.iterdir()] == [folder]
