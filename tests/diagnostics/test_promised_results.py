"""A promised result that is not there ends a program with a status and one line, and leaves nothing half-made."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diagnostics import compare, diagnose, inspect, render
from diagnostics.fusion import __main__ as fusion
from diagnostics.keep import __main__ as keep
from finetune import files
from tests.diagnostics.show_samples import run_folder


@pytest.fixture
def attention(tmp_path: Path) -> Path:
    return run_folder(tmp_path, per_group=2)


def ended(
    capsys: pytest.CaptureFixture[str], program: Callable[[list[str]], Any], *arguments: str
) -> tuple[Any, str]:
    """Exit status, and what was said of it."""
    try:
        code = program(list(arguments))
    except SystemExit as stopped:
        code = stopped.code
    return code, capsys.readouterr().err


def comparing(attention: Path, out: Path) -> list[str]:
    steps = ["--before", str(attention / "step-000000"), "--after", str(attention / "step-000010")]
    return [*steps, "--output_dir", str(out)]


def test_a_report_into_a_place_that_cannot_be_written(
    attention: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = attention.parent / "taken"
    taken.write_text("a file")
    code, told = ended(capsys, compare.main, *comparing(attention, taken))
    assert code == 2 and told.count("\n") == 1 and "taken: found a file" in told
    code, told = ended(
        capsys,
        fusion.main,
        "--model",
        "m",
        "--probes",
        str(attention / "probes.json"),
        "--output_dir",
        str(taken),
    )
    assert code == 2 and "taken" in told
    code, told = ended(capsys, render.main, "--attention_dir", str(taken))
    assert code == 2 and told.count("\n") == 1


@pytest.mark.parametrize("program", [diagnose.main, keep.main])
def test_refused_probes_leave_no_folder(
    program: Callable[[list[str]], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    probes, out = tmp_path / "probes.json", tmp_path / "new" / "out"
    probes.write_text("[")
    code, told = ended(capsys, program, "m", "--probes", str(probes), "--output_dir", str(out))
    assert code == 2 and "probes.json" in told
    assert not out.parent.exists()


def test_a_refused_source_leaves_no_folder(
    attention: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    given = [*comparing(attention, out)[:2], "--after", str(tmp_path / "nothing"), "--output_dir", str(out)]
    code, told = ended(capsys, compare.main, *given)
    assert code == 2 and "nothing" in told
    assert not out.parent.exists()


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "kept").mkdir()
    files.check_writable(tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_disk_that_is_full_at_the_report(
    attention: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = attention.parent / "out"
    (out / "comparison").mkdir(parents=True)
    (out / "comparison" / "index.html").write_text("the last report")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "index.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    code, told = ended(capsys, compare.main, *comparing(attention, out))
    page = out / "comparison" / "index.html"
    cause = "No space left on device; free some space, or give another folder"
    assert code == 2 and told == f"error: cannot write {page}: {cause}\n"
    assert (out / "comparison" / "index.html").read_text() == "the last report"
    assert not list(out.rglob("*.tmp"))


def test_pictures_that_could_not_be_drawn(attention: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (attention / "step-000010" / "retention-1.safetensors").write_bytes(b"cut")
    code, told = ended(capsys, render.main, "--attention_dir", str(attention), "--steps", "10")
    last = told.splitlines()[-1]
    assert code == 1 and last.startswith("error: not drawn: step 10: picture of probe retention-1: ")
    assert len(list(attention.glob("images/*/*.png"))) == 3
    code, told = ended(capsys, render.main, "--attention_dir", str(attention), "--strips")
    assert code == 1 and "error: not drawn: strips: strip of probe retention-1" in told
    code, told = ended(capsys, render.main, "--attention_dir", str(attention), "--steps", "70")
    assert code == 1 and "and 3 more (above)" in told


def test_pictures_of_a_run_whose_baseline_is_gone(
    attention: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (attention / "step-000000").iterdir():
        path.unlink()
    code, told = ended(capsys, render.main, "--attention_dir", str(attention))
    assert code == 2 and told.count("\n") == 1 and "step-000000: no attention records there" in told


def test_a_picture_that_is_gone_costs_the_report_and_says_which(
    attention: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = attention.parent / "images" / "retention-1.png"
    picture.unlink()
    code, told = ended(capsys, compare.main, *comparing(attention, attention.parent / "out"))
    assert code == 2 and "retention-1.png (no such file)" in told
    Image.new("RGB", (80, 120)).save(picture)
    code, told = ended(capsys, compare.main, *comparing(attention, attention.parent / "out"))
    assert code == 2 and "found 80 × 120 pixels, the records of 'retention-1' were made of 120 × 80" in told


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, told = ended(capsys, inspect.main, str(tmp_path / "nothing"))
    assert code == 1 and "nothing" in told and len(told) < 2000
