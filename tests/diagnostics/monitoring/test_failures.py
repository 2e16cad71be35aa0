"""A failure beside training: warned of once, listed with its reason, and named in one line at the end."""

import logging
from pathlib import Path

import pytest

from diagnostics.monitoring.failures import LINE_MAX, Failures


def test_a_failure_is_warned_of_once_and_what_is_lacking_is_listed(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    assert failures.words(Path("out")) == ""
    with caplog.at_level(logging.WARNING, logger="diagnostics.monitor"):
        for step in (2, 4):
            with failures.reporting("numbers could not be written", lacks=f"step {step}"):
                raise OSError("no space left")
    assert [record.message for record in caplog.records] == [
        "attention monitor: numbers could not be written (OSError: no space left); training continues"
    ]
    assert failures.missing == ["step 2 (no space left)", "step 4"]
    assert failures.words(Path("out")) == "out lacks: step 2 (no space left); step 4"
    failures.lack("x" * 2 * LINE_MAX)
    assert len(failures.words(Path("out"))) == LINE_MAX


def test_ctrl_c_is_no_failure() -> None:
    failures = Failures()
    with pytest.raises(KeyboardInterrupt), failures.reporting("anything"):
        raise KeyboardInterrupt
    assert failures.missing == []


def test_a_killed_data_worker_ends_the_run() -> None:
    failures = Failures()
    words = "DataLoader worker (pid 7) is killed by signal: Killed. "  # torch/utils/data/_utils/signal_handling.py
    with pytest.raises(RuntimeError, match="DataLoader worker"), failures.reporting("anything", lacks="all"):
        raise RuntimeError(words)
    assert failures.missing == []
