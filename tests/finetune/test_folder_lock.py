"""Two runs into one folder: the second is refused, by a lock that dies with its process."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import folder_lock
from finetune.training import run_folder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from finetune import folder_lock
folder_lock.take(Path(sys.argv[1]))
if __import__("os").fork():
    print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def released():
    yield
    folder_lock.release_all()


def begun(folder, **more):
    return run_folder.begin(
        folder, {"a": 1}, **{"resume": None, "overwrite": False, "world_size": 1, "deepspeed": False, **more}
    )


def test_a_second_run_is_refused_until_the_first_is_dead_even_by_sigkill(tmp_path):
    out = tmp_path / "a folder" / "输出"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a folder")
    # A group of its own, for the forked child: as a loader's worker it outlives its parent.
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as first:
        try:
            assert first.stdout.readline() == "held\n"
            run_folder.write_run(out, {"a": 0}, finished=False)
            for name, more in ((out, {}), (link / "输出", {"overwrite": True})):
                with pytest.raises(
                    ValueError,
                    match=rf"{re.escape(str(out))}: another run is writing there \(process {first.pid} on ",
                ):
                    begun(name, **more)
            assert (out / "run.json").is_file()
            first.kill()
            first.wait()
            assert begun(out, overwrite=True).how == "new"
        finally:
            os.killpg(first.pid, signal.SIGKILL)


def test_a_refused_run_leaves_no_folder_and_a_finished_one_holds_no_lock(tmp_path):
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        begun(tmp_path / "a" / "b", resume="True")
    assert not (tmp_path / "a").exists()
    assert begun(tmp_path / "c").how == "new" and (tmp_path / "c" / "run.lock").is_file()
    folder_lock.release_all()
    assert not (tmp_path / "c").exists()
    run_folder.write_run(tmp_path / "d", {"a": 1}, finished=True)
    assert begun(tmp_path / "d").how == "finished" and os.listdir(tmp_path / "d") == ["run.json"]


def test_a_file_system_without_locks_is_said_and_a_file_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: is a file, expected a folder; choose another"):
        begun(tmp_path / "file")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    (line,) = begun(tmp_path / "network").lines
    assert "its file system has no locks (No locks available)" in line
    assert os.listdir(tmp_path / "network") == []


def test_a_program_holds_its_folder_and_keeps_what_it_held_before(tmp_path):
    with folder_lock.held(tmp_path / "new"):
        assert (tmp_path / "new" / "run.lock").is_file()
    assert not (tmp_path / "new").exists()
    folder_lock.take(tmp_path)
    with folder_lock.held(tmp_path):
        pass
    assert (tmp_path / "run.lock").is_file()


def test_a_full_disk_under_the_lock_is_told_and_nothing_is_locked(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call, words in (("pwrite", r"cannot write .*run\.lock: No space left"), ("open", "No space left")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=words):
            patch.setattr(folder_lock.os, call, full)
            folder_lock.take(tmp_path / "a" / "out")
        assert not (tmp_path / "a").exists() and not folder_lock._held


def test_a_folder_that_is_gone_is_known(tmp_path):
    folder_lock.take(tmp_path / "kept")
    folder_lock.take(tmp_path / "out")
    assert folder_lock.lost() is None
    (tmp_path / "out").rename(tmp_path / "moved")
    assert folder_lock.lost() == tmp_path / "out"
    assert f"{tmp_path / 'out'}: was deleted, moved or emptied" in folder_lock.lost_words(tmp_path / "out")
