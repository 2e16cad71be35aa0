"""How a run ends where the disk takes no more: one message. Other errors keep their traceback."""

import errno

import pytest

from attention_finetune.ending import exit_status


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
