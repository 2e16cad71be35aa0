"""How a run ends where the disk takes no more: one message. Other errors keep their traceback."""

import errno
import threading

import pytest

from attention_finetune.ending import exit_status
from finetune import folder_lock


def test_a_full_disk_is_one_message(capsys: pytest.CaptureFixture):
    def stations(argv):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "out/runs")

    assert exit_status(stations, []) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "finetune.py: cannot write out/runs: Disk quota exceeded. What was saved before is unchanged"
    )
    assert error.count("\n") == 1


def test_an_error_that_is_no_disk_keeps_its_traceback():
    def stations(argv):
        raise PermissionError(errno.EACCES, "Permission denied", "data.json")

    with pytest.raises(PermissionError):
        exit_status(stations, [])


def test_a_folder_that_is_gone_is_one_message(tmp_path, capsys: pytest.CaptureFixture):
    def stations(argv):
        folder_lock.take(tmp_path / "out")
        (tmp_path / "out").rename(tmp_path / "moved")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", b"out/runs/events")

    assert exit_status(stations, []) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"finetune.py: {tmp_path / 'out'}: was deleted, moved or emptied during the run")
    assert error.count("\n") == 1


def test_a_thread_that_cannot_write_has_one_line(capsys: pytest.CaptureFixture, monkeypatch):
    others: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", others.append)
    full = OSError(errno.EDQUOT, "Disk quota exceeded", b"out/runs")

    def stations(argv):
        for error in (full, KeyError("a")):

            def work(error=error):
                raise error

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    assert exit_status(stations, []) == 0
    assert capsys.readouterr().err == "finetune.py: cannot write out/runs: Disk quota exceeded\n"
    assert [one.exc_type for one in others] == [KeyError] and threading.excepthook == others.append
