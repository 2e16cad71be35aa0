"""The drawing process: the archive, what goes to TensorBoard, and that its death costs pictures only."""

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diagnostics.comparison.maps import LayerMaps
from diagnostics.drawing import archive_pictures, worker
from diagnostics.drawing.archive_pictures import STRIP_STEPS_MAX, ArchivePictures
from diagnostics.drawing.probe_picture import WIDTH, ProbeSheet, draw_probe
from diagnostics.drawing.worker_client import Renderer
from diagnostics.records.archive import load_records, recorded_steps
from diagnostics.render import main
from tests.diagnostics.show_samples import LAYERS, run_folder


def pictures(attention: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(attention / "images")): Image.open(path).size
        for path in attention.glob("images/*/*.png")
    }


def test_by_hand_it_draws_the_archive_that_is_missing(tmp_path: Path) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=(0, 10, 20))
    main(["--attention_dir", str(attention), "--steps", "20"])
    assert set(pictures(attention)) == {"sphere-building-0/step-000020.png", "retention-0/step-000020.png"}
    assert ArchivePictures.open(attention).missing_steps() == [10]
    main(["--attention_dir", str(attention), "--steps"])
    drawn = pictures(attention)
    assert len(drawn) == 4 and {width for width, _ in drawn.values()} == {WIDTH}
    assert not list(attention.rglob("*.tmp"))


def test_drawing_a_step_returns_its_pictures(tmp_path: Path) -> None:
    attention = run_folder(tmp_path, per_group=2, steps=(0, 10))
    renderer = Renderer(attention, shown_per_group=1)
    started = time.monotonic()
    renderer.submit(0)
    renderer.submit(10)
    assert time.monotonic() - started < 1.0
    base, now = renderer.close(timeout=300)
    assert (base.step, now.step) == (0, 10) and base.problems == now.problems == ()
    tags = {picture.tag for picture in now.pictures}
    groups = {"3 attention - sphere-building": "sphere-building", "5 guards - retention": "retention"}
    maps = {f"{heading}/{g}-0/layer_{n}" for heading, g in groups.items() for n in LAYERS}
    strips = {"1 verdict/drift strip/sphere-building", "5 guards/drift strip/retention"}
    assert tags == maps | strips | {"3 attention/layers x heads/sphere-building"}
    assert all(picture.png.startswith(b"\x89PNG") and picture.size[0] >= 700 for picture in now.pictures)
    # the archive has every probe, and nothing of the baseline set against itself
    assert len(pictures(attention)) == 4 and all(
        name.endswith("step-000010.png") for name in pictures(attention)
    )
    assert renderer.problem is None and renderer.close() == []


def test_what_a_killed_run_left_undrawn_is_drawn_by_the_next(tmp_path: Path) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=(0, 10, 20))
    worker.serve(attention, 1, ['{"step": 20}'], io.StringIO())
    assert ArchivePictures.open(attention).missing_steps() == []


def test_one_picture_that_cannot_be_drawn_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = run_folder(tmp_path, per_group=2, steps=(0, 10))

    def draw_or_fail(sheet: ProbeSheet, layers: list[LayerMaps]) -> Image.Image:
        if sheet.probe_id == "sphere-building-1":
            raise ValueError("no font with Chinese glyphs")
        return draw_probe(sheet, layers)

    monkeypatch.setattr(archive_pictures, "draw_probe", draw_or_fail)
    answers = io.StringIO()
    worker.serve(attention, 1, ['{"step": 10}'], answers)
    done = json.loads(answers.getvalue().splitlines()[-1])
    assert done["problems"] == ["picture of probe sphere-building-1: no font with Chinese glyphs"]
    assert len(pictures(attention)) == 3 and len(done["pictures"]) == 7


def test_a_drawing_failure_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    renderer = Renderer(tmp_path)
    for step in (10, 20):
        message = {
            "done": step,
            "pictures": [],
            "problems": [f"picture of probe {n}: no font" for n in range(3)],
        }
        assert renderer._received(message) == (step, (), tuple(message["problems"]))  # type: ignore[arg-type]
    assert caplog.messages == ["step 10: 3 pictures could not be drawn, first: picture of probe 0: no font"]


def test_a_dead_renderer_is_logged_once_and_nothing_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    renderer = Renderer(tmp_path)
    renderer.submit(10)
    assert renderer.close(timeout=60) == []
    renderer.submit(20)
    assert renderer.poll() == [] and renderer.close() == []
    (told,) = caplog.messages
    assert "drawing of attention pictures ended early" in told and "Training continues" in told
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    never = Renderer(tmp_path)
    never.submit(10)
    assert never.close() == [] and never.problem is not None and "could not be started" in never.problem


@pytest.mark.parametrize("when", ["asked", "closed"])
def test_another_process_draws_what_a_killed_one_left(tmp_path: Path, when: str) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=(0, 10))
    renderer = Renderer(attention)
    renderer.submit(0)
    assert renderer._process is not None
    if when == "asked":
        renderer._process.kill()
        renderer._process.wait()
    else:
        # Stopped until it is killed, while closing waits for it.
        first = renderer._process.pid
        os.kill(first, signal.SIGSTOP)
        threading.Timer(0.3, os.killpg, (first, signal.SIGKILL)).start()
    renderer.submit(10)
    assert [one.step for one in renderer.close(timeout=300)] == [0, 10]
    assert len(pictures(attention)) == 2 and renderer.problem is None


def test_a_hanging_renderer_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nsleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    renderer = Renderer(tmp_path)
    renderer.submit(10)
    started = time.monotonic()
    assert renderer.close(timeout=0.2) == [] and time.monotonic() - started < 10
    assert (
        renderer.problem is not None
        and "did not finish within 0 s; steps [10] lack pictures" in renderer.problem
    )


def test_records_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "step-000010").mkdir()
    assert recorded_steps(tmp_path) == []
    with pytest.raises(ValueError, match="step-000010: no attention records there"):
        load_records(tmp_path / "step-000010")


def test_strips_are_drawn_over_the_recorded_steps_and_nothing_else(tmp_path: Path) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=(0, 10, 20))
    main(["--attention_dir", str(attention), "--strips"])
    assert set(pictures(attention)) == {"sphere-building-0/strip.png", "retention-0/strip.png"}
    main(["--attention_dir", str(attention), "--strips", "--steps", "20"])
    assert len(pictures(attention)) == 4


def test_of_many_steps_a_strip_has_some_with_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=tuple(range(0, 110, 10)))
    asked: list[list[int]] = []

    def draw(archive: ArchivePictures, probe: object, steps: list[int]) -> None:
        asked.append(steps)

    class Here:
        def submit(self, work: object, *given: object) -> Future[None]:
            done: Future[None] = Future()
            done.set_result(work(*given))  # type: ignore[operator]
            return done

    monkeypatch.setattr(archive_pictures, "draw_archive_strip", draw)
    assert list(
        archive_pictures.render_strips(
            ArchivePictures.open(attention), Here(), ArchivePictures.open(attention).probes
        )
    ) == [
        None,
        None,
    ]  # type: ignore[arg-type]
    assert len(asked[0]) == STRIP_STEPS_MAX and (asked[0][0], asked[0][-1]) == (0, 100)


def test_a_strip_that_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=(0, 10))
    archive = ArchivePictures.open(attention)
    archive.record_path("retention-0", 10).unlink()
    problem = archive_pictures.draw_archive_strip(archive, archive.probes[1], [0, 10])
    assert problem is not None and problem.startswith("strip of probe retention-0: ")


def test_strips_are_drawn_like_a_step_and_stay_in_the_archive(tmp_path: Path) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=(0, 10))
    answers = io.StringIO()
    worker.serve(attention, 1, ['{"strips": true}'], answers)
    done = json.loads(answers.getvalue().splitlines()[-1])
    assert done == {"done": "strips", "pictures": [], "problems": []}
    assert set(pictures(attention)) == {"sphere-building-0/strip.png", "retention-0/strip.png"}
    renderer = Renderer(attention)
    renderer._waiting = ["strips", 10]
    assert renderer._received(done) is None and renderer._waiting == [10]


def broken_run(folder: Path) -> Path:
    """Three steps of which one is half written, and one picture that is gone."""
    attention = run_folder(folder, per_group=3, steps=(0, 10, 20))
    path = attention / "step-000010" / "retention-0.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    (attention / "step-000010" / "retention-1.safetensors").unlink()
    (folder / "images" / "retention-2.png").unlink()
    return attention


def test_of_a_run_with_an_incomplete_step_all_that_is_whole_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attention = broken_run(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        main(["--attention_dir", str(attention), "--strips", "--steps"])
    drawn, said = pictures(attention), capsys.readouterr()
    strips = {name.split("/")[0] for name in drawn if name.endswith("strip.png")}
    assert strips == {f"sphere-building-{n}" for n in range(3)} | {"retention-0", "retention-1"}
    assert sum(name.endswith("step-000010.png") for name in drawn) == 3
    assert sum(name.endswith("step-000020.png") for name in drawn) == 5
    told = said.out + said.err
    assert told.count("without step 10, where 2 records are incomplete (retention-0: broken") == 1
    assert "probe 'retention-2': images: found " in told and "no such file" in told


def test_tensorboard_s_pictures_of_an_incomplete_step_are_those_that_there_are(tmp_path: Path) -> None:
    attention = broken_run(tmp_path)
    (attention / "step-000000" / "sphere-building-2.safetensors").write_bytes(b"")
    archive = ArchivePictures.open(attention)
    assert [probe.id for probe in archive.probes] == [
        "sphere-building-0",
        "sphere-building-1",
        "retention-0",
        "retention-1",
    ]
    assert len(archive.problems) == 2 and "sphere-building-2" in archive.problems[1]
    pairs, problems = archive.whole_pairs(10)
    assert [pair.probe.id for pair in pairs] == ["sphere-building-0", "sphere-building-1"]
    assert len(problems) == 1 and problems[0].startswith("step 10: 2 records are incomplete (retention-0: ")


def test_where_the_probes_are_gone_the_file_that_was_used_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attention = run_folder(tmp_path, per_group=1)
    # Its paths are relative to its folder.
    (attention / "probes.json").rename(tmp_path / "images" / "mine.json")
    with pytest.raises(SystemExit, match="2"):
        main(["--attention_dir", str(attention)])
    assert "give the one that was used: --probes FILE" in capsys.readouterr().err
    main(["--attention_dir", str(attention), "--probes", str(tmp_path / "images" / "mine.json")])
    assert len(pictures(attention)) == 2


def test_where_the_training_was_killed_nothing_more_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = run_folder(tmp_path, per_group=1, steps=(0, 10, 20))
    ended: list[bool] = []
    drawn: list[int] = []

    class Pool(contextlib.nullcontext[None]):
        def __enter__(self) -> Any:
            return self

        def shutdown(self, *, cancel_futures: bool) -> None:
            ended.append(cancel_futures)

    class Unread(io.StringIO):
        def write(self, words: str) -> int:
            raise BrokenPipeError

    def draw(archive: ArchivePictures, step: int, pool: Pool) -> Iterator[None]:
        drawn.append(step)
        return iter([None])

    monkeypatch.setattr(worker, "drawing_pool", Pool)
    monkeypatch.setattr(worker, "render_board", lambda *_: [])
    monkeypatch.setattr(worker, "render_archive", draw)
    with pytest.raises(BrokenPipeError):
        worker.serve(attention, 1, ['{"step": 10}', '{"step": 20}'], Unread())
    assert drawn == [10] and ended == [True]


def test_drawing_has_no_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kills it or the training, nothing is left; and its last words are read from a file without a name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    speaker = tmp_path / "speaker"
    speaker.write_text("#!/bin/sh\necho out of memory >&2\nls -A . >&2\n")
    speaker.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(speaker))
    renderer = Renderer(tmp_path / "attention")
    renderer.submit(10)
    renderer.close(timeout=60)
    assert renderer.problem is not None and renderer.problem.endswith("ended early: speaker")


def test_of_a_killed_process_whole_lines_are_read(tmp_path: Path) -> None:
    renderer = Renderer(tmp_path)
    renderer._listen(io.StringIO('{"step": 10, "drawn": 10, "of": 20}\n{"done": 10, "pic'))
    assert [*renderer._drain()] == [{"step": 10, "drawn": 10, "of": 20}]
