"""Chat templates that do not end, or fill the memory, are refused when a checkpoint is opened."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.model import checkpoint, trial
from finetune.model.trial import excess
from tests.finetune.families.tiny_families import GRIDS

pytestmark = pytest.mark.usefixtures("trials")


@pytest.fixture(autouse=True)
def _in_a_second(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "SECONDS", 1)


def endless() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (endless, "computes for more than 1 seconds"),
        (lambda: (2**40) ** (2**40), "computes for more than 1 seconds"),  # in C, where no signal is heard
        (lambda: "x" * 10**11, "asks for more than 1 GiB of memory"),
        (lambda: [bytes(10**8) for _ in range(100)], "asks for more than 1 GiB of memory"),
        (lambda: 1 / 0, None),
        (lambda: os._exit(7), None),
        (lambda: "x" * 10**8, None),
    ],
)
def test_what_takes_too_much_is_told(work, words):
    assert excess(work) == words


def test_what_waits_for_ever_has_shown_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "PATIENCE_SECONDS", 0.2)
    assert excess(lambda: time.sleep(100)) is None


def test_a_thread_forks_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(excess, endless).result() is None


def test_where_nobody_is_told_of_its_end_nothing_is_shown():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert excess(lambda: None) is None
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_nothing_of_it_is_left():
    kept: list[int] = []
    assert excess(lambda: kept.append(1)) is None and kept == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "computes for more",
        ),
        ("{{ 'a' * 10**11 }}", "asks for more"),
    ],
)
def test_a_template_without_an_end_is_refused_with_its_folder(tmp_path: Path, template: str, words: str):
    GRIDS["qwen2.5-vl"].write(tmp_path)
    checkpoint.load_processor(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as refused:
        checkpoint.load_processor(tmp_path)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path}: ") and "chat_template.jinja" in said and len(said) < 500


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ messages + 1 }}", "TypeError"),
        ("{% for message in messages %}", "TemplateSyntaxError"),  # without its end
        ("{{ messages | no_such_filter }}", "TemplateAssertionError"),
    ],
)
def test_a_template_that_fails_names_its_file(tmp_path: Path, template: str, kind: str):
    GRIDS["qwen2.5-vl"].write(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ValueError, match=f"this chat template fails: {kind}") as refused:
        checkpoint.load_processor(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'chat_template.jinja'}: ")
