"""What libraries say goes to a file of the run's folder; what they fail of stays on the terminal too."""

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

from finetune.training import library_log
from finetune.training.library_log import LOG_FILE


class ToStderr(logging.Handler):
    """To whatever stderr is now: pytest has another one in each phase of a test."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@pytest.fixture
def library():
    """A library's logger as they are: a handler of its own to stderr, and nothing to the root."""
    logger, handler = logging.getLogger("filelock"), ToStderr()
    before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger
    library_log.end()
    logger.removeHandler(handler)
    logger.propagate, logger.level = before


def test_a_librarys_lines_go_to_the_file_and_its_errors_to_both(library, tmp_path: Path, capfd):
    library_log.begin(tmp_path)
    assert library_log.written() is None and not (tmp_path / LOG_FILE).exists()  # made with its first line
    library.warning("a note")
    library.error("a fault")
    library.addHandler(late := ToStderr())  # as importing DeepSpeed adds one, in the middle of a run
    library.warning("a later note")
    library.removeHandler(late)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("a deprecation", stacklevel=1)
    assert library_log.end() == tmp_path / LOG_FILE
    library.warning("afterwards")
    told = (tmp_path / LOG_FILE).read_text()
    assert (
        all(words in told for words in ("a note", "a fault", "a later note", "a deprecation"))
        and "afterwards" not in told
    )
    assert capfd.readouterr().err == "a fault\nafterwards\n"


def test_what_is_printed_while_it_starts_goes_there_too(library, tmp_path: Path, capfd):
    """By Python, by another process and by C; the terminal is back afterwards, also after an error."""
    library_log.begin(tmp_path)
    with pytest.raises(ValueError, match="broken"), library_log.printed():
        print("of Python")
        os.write(1, b"of C++\n")
        os.system("echo of another >&2")
        late = logging.getLogger("accelerate")  # a handler that appears with the library
        late.addHandler(handler := ToStderr())
        raise ValueError("broken")
    late.warning("late")
    late.removeHandler(handler)
    print("ours")
    told = (tmp_path / LOG_FILE).read_text()
    assert all(words in told for words in ("of Python", "of C++", "of another", "late"))
    assert capfd.readouterr() == ("ours\n", "")


def test_an_empty_log_is_no_file(library, tmp_path: Path, capfd):
    with library_log.printed():
        print("before any log")
    library_log.begin(tmp_path)
    with library_log.printed():
        pass
    assert library_log.end() is None and not list(tmp_path.iterdir())
    assert capfd.readouterr().out == "before any log\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_has_one_line_and_ends_nothing(library, tmp_path: Path, capfd):
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    library_log.begin(tmp_path)
    library.warning("a note")
    library.warning("another")
    library_log.end()
    assert (
        capfd.readouterr().err
        == f"{tmp_path / LOG_FILE}: No space left on device; what libraries say is lost\n"
    )
