"""What fails while a run is monitored: reported once, and listed at its end, so that training goes on without it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.samples.workers import is_data_worker_death

logger = logging.getLogger("diagnostics.monitor")

LINE_MAX, REASON_MAX = 1000, 200
"""Maximum characters of the line that says what is missing, and of each reason in it."""
EXPECTED = (RuntimeError, ValueError, OSError)  # out of memory is a RuntimeError, a full disk an OSError
FAILURES = (Exception,)  # of any kind: a missing picture must not end hours of training


class Failures:
    """The failures of one run.

    missing   what the run should have left and did not
    """

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._reported: set[str] = set()

    @contextmanager
    def reporting(self, what: str, *, lacks: str | None = None) -> Iterator[None]:
        """Report a failure instead of raising it: training goes on without what ``lacks`` names."""
        try:
            yield
        except FAILURES as error:
            self.report(what, error, lacks=lacks)

    def report(self, what: str, error: Exception, *, lacks: str | None) -> None:
        """Warn, the first time that ``what`` is said, and note what the run lacks.

        Raises ``error`` again where it is no failure of the monitor's but the end of the run.
        """
        if is_data_worker_death(error):
            raise error
        if lacks is not None:
            self.lack(f"{lacks} ({str(error)[:REASON_MAX]})" if what not in self._reported else lacks)
        if what not in self._reported:
            self._reported.add(what)
            words = "attention monitor: %s (%s: %s); training continues"
            trace = None if isinstance(error, EXPECTED) else error
            logger.warning(words, what, type(error).__name__, str(error)[:LINE_MAX], exc_info=trace)

    def lack(self, what: str) -> None:
        """Note what the run lacks, once."""
        if what not in self.missing:
            self.missing.append(what)

    def made_up(self, what: str) -> None:
        """What the run lacked is there after all."""
        self.missing = [one for one in self.missing if one != what and not one.startswith(f"{what} (")]

    def words(self, folder: Path | None) -> str:
        """What the folder lacks, in one line; "" if nothing."""
        return f"{folder} lacks: {'; '.join(self.missing)}"[:LINE_MAX] if self.missing else ""
