"""Drawing beside the training: a process of low priority that turns records into pictures.

The monitor starts it (``Renderer``) and talks to it in lines of JSON: ``{"step": 50}`` on its standard input asks
for the pictures of a step, ``{"strips": true}`` for those over all steps; it answers on its standard output with what
it has drawn. It reads records only, so a training step never waits for it, and its death costs pictures, not a run.
By hand it draws the archive anew::

    python -m diagnostics.render --attention_dir OUTPUT/attention --steps 50 100
    python -m diagnostics.render --attention_dir OUTPUT/attention --strips
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from diagnostics.archive import (
    fault_words,
    record_faults,
    record_path,
    recorded_steps,
    step_folder,
    whole_records,
)
from diagnostics.composite import Outcome, ProbeSheet, Strip, draw_probe, draw_strip, encode_png
from diagnostics.evolution import Evolution, evenly_chosen, evolution_of, strip_maps
from diagnostics.files import check_writable, write_atomically
from diagnostics.names import file_name
from diagnostics.pairs import ProbePair, pair_records, pairs_by_group
from diagnostics.plots import layers_heads_figure
from diagnostics.probes import Probe, groups_of, readable_probes
from diagnostics.records import AttentionRecord
from diagnostics.tensorboard import SHOWN_PER_GROUP, TaggedPicture, map_tag, overview_tag, shown_probes
from finetune.images import open_image

logger = logging.getLogger(__name__)

ARCHIVE_WIDTH = 640
"""Pixels; an archive picture of three layers is about 150 kB then."""
WORKERS_MAX = 4
NICENESS = 15
STRIPS = "strips"  # what is asked for and answered in place of a step
STRIP_STEPS_MAX = 8
"""Panels of a strip; of more steps these many are taken evenly, the first and the last among them."""
_ROOT = Path(__file__).resolve().parent.parent


Message = dict[str, Any]  # one line of JSON from the drawing process: progress, or a step that is done


class Rendered(NamedTuple):
    """One step's pictures for TensorBoard, and what could not be drawn, in words."""

    step: int
    pictures: tuple[TaggedPicture, ...]
    problems: tuple[str, ...]


class Renderer:
    """The drawing process, seen from the training.

    >>> renderer = Renderer(output_dir / "attention")
    >>> renderer.submit(50)            # returns at once
    >>> for step in renderer.poll():   # what has been drawn since the last call
    ...     board.write_pictures(step.pictures, step.step)
    >>> renderer.close(timeout=120)    # the rest, with a progress bar

    No method raises for a failure of the process: that is logged once as a warning, ``problem`` says it in words,
    and everything asked afterwards is a no-op.
    """

    def __init__(self, attention_dir: str | Path, *, shown_per_group: int = SHOWN_PER_GROUP) -> None:
        self.attention_dir = Path(attention_dir)
        self.shown_per_group = shown_per_group
        self.problem: str | None = None
        self.undrawn: list[str] = []  # what could not be drawn, in words
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._waiting: list[int | str] = []
        self._told = False

    def start(self) -> None:
        """Start the process; ``submit`` does it by itself when it is not running."""
        self._scratch = tempfile.TemporaryDirectory(prefix="attention-pictures-")
        command = [
            sys.executable,
            "-m",
            "diagnostics.render",
            "--attention_dir",
            str(self.attention_dir.resolve()),
        ]
        command += ["--scratch_dir", self._scratch.name, "--shown_per_group", str(self.shown_per_group)]
        paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        # One thread, and no accelerator: this process must not compete for what the training uses.
        quiet = {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": paths,
            "PYTHONUNBUFFERED": "1",
        }
        self._errors = Path(self._scratch.name) / "errors.txt"
        try:
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env={**os.environ, **quiet},
                    start_new_session=True,  # Ctrl-C ends the training; this process ends when its input does
                )
        except OSError as error:
            self._fail(f"could not be started: {error}")
            return
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    def submit(self, step: int) -> None:
        """Ask for the pictures of a step whose records are complete. Returns at once."""
        self._ask({"step": step}, step)

    def submit_strips(self) -> None:
        """Ask for the strips of each group's first probes over the steps recorded so far: the archive's last. Returns
        at once; ``--strips`` by hand draws all of them."""
        self._ask({STRIPS: True}, STRIPS)

    def _ask(self, request: Message, awaited: int | str) -> None:
        if self._process is None and self.problem is None:
            self.start()
        if self._process is None or self._process.stdin is None or self.problem is not None:
            return
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            self._waiting.append(awaited)
        except OSError:
            self._fail(self._last_words())

    def poll(self) -> list[Rendered]:
        """What has been drawn since the last call. Returns at once."""
        rendered = [done for message in self._drain() if (done := self._received(message)) is not None]
        if self._process is not None and self._process.poll() is not None and self._waiting:
            # The last lines may still be on their way from the reading thread.
            rendered += [done for message in self._drain() if (done := self._received(message)) is not None]
            if self._waiting:
                self._fail(self._last_words())
        return rendered

    def close(self, timeout: float = 300.0) -> list[Rendered]:
        """Wait for what was asked for, at most ``timeout`` seconds, and end the process."""
        if self._process is None:
            return []
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                logger.debug("the drawing process was gone before its input was closed")
        rendered = self._wait(time.monotonic() + timeout)
        if self._process.poll() is None and self._waiting:
            self._fail(f"was not done after {timeout:.0f} s; steps {self._waiting} lack pictures")
        self._end()
        return rendered

    def _wait(self, deadline: float) -> list[Rendered]:
        rendered: list[Rendered] = []
        with tqdm(desc="drawing attention", unit="picture", disable=not self._waiting, leave=False) as bar:
            while self._waiting and self.problem is None and time.monotonic() < deadline:
                for message in self._drain():
                    if "drawn" in message:
                        bar.total, bar.n = message["of"], message["drawn"]
                        bar.refresh()
                    done = self._received(message)
                    rendered += [] if done is None else [done]
                rendered += self.poll()
                time.sleep(0.05)
        return rendered

    def _end(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # it and its helpers: it leads a session of its own
            self._process.wait()
        self._process = None
        self._scratch.cleanup()

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            self._messages.put(json.loads(line))

    def _drain(self) -> Iterator[Message]:
        while not self._messages.empty():
            yield self._messages.get()

    def _received(self, message: Message) -> Rendered | None:
        """A finished step, its pictures read from the scratch folder; None for a report of progress, and for strips,
        which stay in the archive."""
        if "done" not in message:
            return None
        step, problems = message["done"], tuple(message["problems"])
        self.undrawn += problems
        if step in self._waiting:
            self._waiting.remove(step)
        if problems and not self._told:
            self._told = True
            logger.warning(
                "%s: %d pictures could not be drawn, first: %s",
                step if step == STRIPS else f"step {step}",
                len(problems),
                problems[0],
            )
        if step == STRIPS:
            return None
        pictures = []
        for entry in message["pictures"]:
            path = Path(entry["path"])
            pictures.append(TaggedPicture(entry["tag"], path.read_bytes(), tuple(entry["size"])))
            path.unlink()
        return Rendered(step, tuple(pictures), problems)

    def _last_words(self) -> str:
        words = self._errors.read_text(errors="replace").strip().splitlines()
        return f"ended early: {words[-1]}" if words else "ended early, without a word"

    def _fail(self, problem: str) -> None:
        if self.problem is None:
            self.problem = f"the drawing of attention pictures {problem}"
            self._waiting.clear()
            logger.warning(
                "%s. Training goes on; draw later with: python -m diagnostics.render --attention_dir %s",
                self.problem,
                self.attention_dir,
            )


@dataclass
class Archive:
    """Records of a run, and the pictures drawn of them. The baseline is read once.

    problems   a line for each probe that has no picture, or no whole record of the baseline, so that nothing is drawn
    """

    attention_dir: Path
    probes: Sequence[Probe]
    baseline: Mapping[str, AttentionRecord]
    problems: tuple[str, ...] = ()

    @classmethod
    def open(cls, attention_dir: str | Path, probes_file: str | Path | None = None) -> Archive:
        """The records below ``attention/`` that can be drawn.

        Raises FileNotFoundError where the probes are gone, and ValueError where nothing can be drawn.
        """
        attention_dir = Path(attention_dir)
        path = attention_dir / "probes.json" if probes_file is None else Path(probes_file)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no probe file there; give the one that was used: --probes FILE")
        probes, lines = readable_probes(path)
        folder = step_folder(attention_dir, 0)
        baseline, faults = whole_records(folder, [probe.id for probe in probes])
        if not baseline:
            raise ValueError(f"{folder}: no attention records there that can be read; {fault_words(faults)}")
        problems = [*lines, *(f"probe {name}: baseline's record: {fault}" for name, fault in faults.items())]
        drawn = [probe for probe in probes if probe.id in baseline]
        return cls(attention_dir, drawn, baseline, tuple(problems))

    def whole_pairs(self, step: int) -> tuple[list[ProbePair], list[str]]:
        """Base against ``step`` of every probe that has both records, and what there is not."""
        pairs: list[ProbePair] = []
        problems: list[str] = []
        names = [probe.id for probe in self.probes]
        now, faults = (
            (self.baseline, {}) if step == 0 else whole_records(step_folder(self.attention_dir, step), names)
        )
        if faults:
            problems.append(f"step {step}: {fault_words(faults)}")
        for probe in self.probes:
            if probe.id not in now:
                continue
            try:
                pairs.append(pair_records(probe, self.baseline[probe.id], now[probe.id]))
            except ValueError as error:
                problems.append(str(error))
        return pairs, problems

    def pair(self, probe: Probe, step: int) -> ProbePair:
        """One probe, base against ``step``, read from the disk."""
        before, after = (AttentionRecord.load(self.record_path(probe.id, at)) for at in (0, step))
        return pair_records(probe, before, after)

    def without_records(self) -> Archive:
        """The same place, light enough to be sent to another process."""
        return Archive(self.attention_dir, (), {})

    def record_path(self, probe_id: str, step: int) -> Path:
        return record_path(step_folder(self.attention_dir, step), probe_id)

    def picture_path(self, probe_id: str, step: int) -> Path:
        return self.attention_dir / "images" / file_name(probe_id) / f"step-{step:06d}.png"

    def strip_path(self, probe_id: str) -> Path:
        return self.attention_dir / "images" / file_name(probe_id) / "strip.png"

    def missing_steps(self) -> list[int]:
        """Steps after the baseline with records and without all their pictures, as a killed run leaves them."""
        return [
            step
            for step in recorded_steps(self.attention_dir)
            if step > 0 and not all(self.picture_path(probe.id, step).is_file() for probe in self.probes)
        ]


def load_step(attention_dir: str | Path, step: int) -> dict[str, AttentionRecord]:
    """Every record of one step, by probe."""
    return load_records(Path(attention_dir) / f"step-{step:06d}")


def load_records(folder: str | Path) -> dict[str, AttentionRecord]:
    """Every record in a folder, by probe.

    Raises:
        ValueError: the folder has none, one that is broken, or two of one probe.
    """
    places: dict[str, Path] = {}
    records: dict[str, AttentionRecord] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        record = AttentionRecord.load(path)
        if record.probe_id in records:
            raise ValueError(
                f"{path}: found a second record of probe {record.probe_id!r}, beside {places[record.probe_id].name}; "
                "expected one of each, remove the copy"
            )
        records[record.probe_id], places[record.probe_id] = record, path
    if not records:
        raise ValueError(
            f"{folder}: no attention records there; expected ID.safetensors of at least one probe"
        )
    return records


def load_evolution(attention_dir: str | Path, *, steps_max: int | None = None) -> Evolution:
    """Every recorded step of a run, or at most ``steps_max`` of them, evenly chosen with the first and the last.

    Raises:
        ValueError: no step has records, or they are not of the same probes, layers and pictures.
    """
    steps = recorded_steps(attention_dir)
    if not steps:
        raise ValueError(
            f"{attention_dir}: found no step-NNNNNN folder with records; expected those that a monitored run leaves"
        )
    if steps_max is not None:
        steps = [steps[index] for index in evenly_chosen(len(steps), steps_max)]
    return evolution_of({step: load_step(attention_dir, step) for step in steps})


def probe_sheet(pair: ProbePair) -> ProbeSheet:
    """What is drawn and written on one probe's picture."""
    probe, before, after = pair.probe, pair.before, pair.after
    return ProbeSheet(
        probe_id=probe.id,
        group=probe.group,
        picture=picture_of(pair),
        question=probe.question,
        answer=probe.answer,
        foil=probe.foil,
        regions={name: probe.regions[name] for name in pair.region_order()},
        base_step=before.step,
        step=after.step,
        before=Outcome(before.scores.generated, before.scores.margin_nats),
        after=Outcome(after.scores.generated, after.scores.margin_nats),
    )


def picture_of(pair: ProbePair) -> Image.Image:
    """The picture that a probe was asked about.

    Raises:
        ValueError: it cannot be read, or is another than the records': maps and boxes would lie beside what they mean.
    """
    picture, expected = open_picture(pair.probe.images[0]), pair.after.image_tokens[0].image_size_pixels
    if picture.size != expected:
        raise ValueError(
            f"cannot draw over {pair.probe.images[0]}: found {picture.width} × {picture.height} pixels, the records of "
            f"{pair.probe.id!r} were made of {expected[0]} × {expected[1]}; expected the picture that was probed with"
        )
    return picture


def open_picture(path: Path) -> Image.Image:
    """A picture as it is shown: upright, in colour.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return open_image(path)
    except ValueError as error:
        raise ValueError(f"cannot draw over {path}: {error}") from error


def overview_png(pairs: Sequence[ProbePair]) -> TaggedPicture | None:
    """A group's layers x heads picture: mean region mass over its probes; None where none has a region."""
    with_region = [pair for pair in pairs if pair.region is not None]
    if not with_region:
        return None
    before, after = (
        np.mean([getattr(pair, side).region_mass[pair.region] for pair in with_region], axis=0)
        for side in ("before", "after")
    )
    group, step = pairs[0].probe.group, pairs[0].after.step
    regions = sorted({pair.region for pair in with_region if pair.region is not None})
    where = regions[0] if len(regions) == 1 else "each probe's region"
    figure = layers_heads_figure(
        before,
        after,
        title=f"{group}: attention on {where}, mean of {len(with_region)} probes, step {step}",
        key_layers=pairs[0].after.layers,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return TaggedPicture(overview_tag(group), buffer.getvalue(), Image.open(buffer).size)


def render_archive(archive: Archive, step: int, pool: Executor) -> Iterator[str | None]:
    """Draw the archive picture of every probe at one step; yields, for each, None or what went wrong."""
    light = archive.without_records()
    asked = [pool.submit(draw_archive_picture, light, probe, step) for probe in archive.probes]
    yield from map(_outcome, as_completed(asked))


def _outcome(drawn: Future[str | None]) -> str | None:
    """What went wrong, also where the process that was to draw is gone (most likely for want of memory)."""
    try:
        return drawn.result()
    except BrokenExecutor as error:
        return f"a drawing process ended early: {error}"


def draw_archive_picture(archive: Archive, probe: Probe, step: int) -> str | None:
    """Draw one probe's picture of all key layers, from its records on disk; returns None or what went wrong."""
    try:
        pair = archive.pair(probe, step)
        picture = draw_probe(probe_sheet(pair), pair.maps())
        write_atomically(archive.picture_path(probe.id, step), encode_png(picture, width=ARCHIVE_WIDTH))
    except (ValueError, OSError) as error:  # one bad picture, a full disk: the others are still drawn
        return f"picture of probe {probe.id}: {error}"
    return None


def first_of_groups(probes: Sequence[Probe], count: int) -> list[Probe]:
    """The first ``count`` probes of each group: those that TensorBoard shows."""
    return [probe for members in groups_of(probes).values() for probe in members[:count]]


def render_strips(archive: Archive, pool: Executor, probes: Sequence[Probe]) -> Iterator[str | None]:
    """Draw the strips of probes, each over the steps of which its record is whole; yields, for each, None or what went
    wrong, and before them a line for each step that some strips go without."""
    light = archive.without_records()
    steps = recorded_steps(archive.attention_dir)
    without: dict[int, dict[str, str]] = {}
    for step in steps:
        without[step] = record_faults(
            step_folder(archive.attention_dir, step), [probe.id for probe in probes]
        )
    yield from (_left_out(step, faults) for step, faults in without.items() if faults)
    asked = []
    for probe in probes:
        whole = [step for step in steps if probe.id not in without[step]]
        chosen = [whole[index] for index in evenly_chosen(len(whole), STRIP_STEPS_MAX)]
        asked.append(pool.submit(draw_archive_strip, light, probe, chosen))
    yield from map(_outcome, as_completed(asked))


def _left_out(step: int, faults: Mapping[str, str]) -> str:
    name = next(iter(faults))
    others = f" (and {len(faults) - 1} others)" if len(faults) > 1 else ""
    return f"strip of probe {name}{others}: without step {step}, where {fault_words(faults)}"


def draw_archive_strip(archive: Archive, probe: Probe, steps: Sequence[int]) -> str | None:
    """Draw one probe over steps, every key layer, from its records on disk; returns None or what went wrong."""
    try:
        records = {step: AttentionRecord.load(archive.record_path(probe.id, step)) for step in steps}
        evolution = evolution_of({step: {probe.id: record} for step, record in records.items()})
        strips: list[Strip] = [strip_maps(probe, evolution, layer) for layer in evolution.layers]
        sheet = probe_sheet(pair_records(probe, records[steps[0]], records[steps[-1]]))
        picture = draw_strip(sheet, strips)
        write_atomically(archive.strip_path(probe.id), encode_png(picture, width=picture.width * 2 // 3))
    except (ValueError, OSError) as error:  # one bad picture, a full disk: the others are still drawn
        return f"strip of probe {probe.id}: {error}"
    return None


def render_board(
    archive: Archive, step: int, pool: Executor, per_group: int = SHOWN_PER_GROUP
) -> Iterator[TaggedPicture | str]:
    """The pictures for TensorBoard: a probe's for each key layer, a group's layers x heads; or what went wrong."""
    pairs, problems = archive.whole_pairs(step)
    yield from problems
    light = archive.without_records()
    asked = [
        pool.submit(draw_board_pictures, light, pair.probe, step) for pair in shown_probes(pairs, per_group)
    ]
    overviews = [overview_png(group) for group in pairs_by_group(pairs).values()]
    for future in asked:
        yield from future.result()
    yield from (overview for overview in overviews if overview is not None)


def draw_board_pictures(archive: Archive, probe: Probe, step: int) -> list[TaggedPicture | str]:
    """Draw one probe's pictures for TensorBoard, one for each key layer; or say what went wrong."""
    drawn: list[TaggedPicture | str] = []
    try:
        pair = archive.pair(probe, step)
        sheet = probe_sheet(pair)
        for maps in pair.maps():
            picture = draw_probe(sheet, [maps])
            tag = map_tag(sheet.group, sheet.probe_id, maps.layer)
            drawn.append(TaggedPicture(tag, encode_png(picture), picture.size))
    except (ValueError, OSError) as error:
        drawn.append(f"picture of probe {probe.id}: {error}")
    return drawn


def drawing_pool() -> ProcessPoolExecutor:
    """Processes that draw side by side; forked, so that they start at once and share what is loaded."""
    workers = min(WORKERS_MAX, os.cpu_count() or 1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the monitor on standard input, or draw ``--steps`` by hand.

    Exit status by hand: 0; 1 where a picture could not be drawn; 2 where there is nothing to draw from.
    """
    parser = argparse.ArgumentParser(prog="python -m diagnostics.render", description=__doc__)
    parser.add_argument("--attention_dir", type=Path, required=True, help="the run's attention/ folder")
    parser.add_argument(
        "--steps", type=int, nargs="*", help="draw these steps' archive (none named: all that lack it)"
    )
    parser.add_argument(
        "--strips", action="store_true", help="draw every probe over the recorded steps: images/ID/strip.png"
    )
    parser.add_argument(
        "--scratch_dir", type=Path, help="serve the monitor, handing pictures over in this folder"
    )
    parser.add_argument("--shown_per_group", type=int, default=SHOWN_PER_GROUP)
    parser.add_argument("--probes", type=Path, help="probe file, where probes.json is gone from the folder")
    options = parser.parse_args(arguments)
    if options.scratch_dir is None:
        status = _by_hand(options.attention_dir, options.probes, options.steps, strips=options.strips)
        if status:
            sys.exit(status)
    else:
        os.nice(NICENESS)
        if hasattr(os, "SCHED_IDLE"):
            # Nice alone leaves drawing a share of the cores, and a training step waits for its slowest thread.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        _serve(options.attention_dir, options.scratch_dir, options.shown_per_group, sys.stdin)


def _by_hand(attention_dir: Path, probes: Path | None, steps: Sequence[int] | None, *, strips: bool) -> int:
    """Draw, and say in one line what is missing. Returns the exit status."""
    try:
        check_writable(attention_dir / "images")
        problems = _draw_by_hand(Archive.open(attention_dir, probes), steps, strips=strips)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if problems:
        rest = f", and {len(problems) - 1} more (above)" if len(problems) > 1 else ""
        print(f"error: not drawn: {problems[0]}{rest}", file=sys.stderr)
    return 1 if problems else 0


def _draw_by_hand(archive: Archive, steps: Sequence[int] | None, *, strips: bool) -> list[str]:
    """The archive of ``steps``; every missing step where ``[]`` is given, or nothing at all was asked for. Returns what
    could not be drawn."""
    problems = [*archive.problems]
    for problem in problems:
        tqdm.write(problem)
    undrawn = archive.missing_steps() if steps == [] or (steps is None and not strips) else steps or []
    with drawing_pool() as pool:
        for step in undrawn:
            drawn = render_archive(archive, step, pool)
            problems += _draw_with_bar(drawn, f"step {step}", len(archive.probes))
        if strips:
            drawn = render_strips(archive, pool, archive.probes)
            problems += _draw_with_bar(drawn, "strips", len(archive.probes))
    return problems


def _draw_with_bar(drawn: Iterator[str | None], what: str, total: int) -> list[str]:
    problems: list[str] = []
    bar = tqdm(drawn, desc=what, total=total, unit="picture")
    for problem in bar:
        if problem is not None:
            bar.write(f"{what}: {problem}")
            problems.append(f"{what}: {problem}")
    return problems


def _serve(attention_dir: Path, scratch_dir: Path, per_group: int, requests: Iterable[str]) -> None:
    """Draw each step asked for: first what TensorBoard shows, then the archive."""
    archive = None
    with drawing_pool() as pool:
        for line in requests:
            asked = json.loads(line)
            left = []
            if STRIPS in asked:
                archive = archive or Archive.open(attention_dir)
                shown = first_of_groups(archive.probes, SHOWN_PER_GROUP)
                drawn = _counted(render_strips(archive, pool, shown), STRIPS, len(shown))
                _say({"done": STRIPS, "pictures": [], "problems": drawn})
                continue
            step = int(asked["step"])
            if archive is None:
                archive = Archive.open(attention_dir)
                left = [missing for missing in archive.missing_steps() if missing < step]
            pictures, problems = _draw_board(archive, step, per_group, scratch_dir, pool)
            problems += archive.problems
            # First what a killed run has left undrawn. The baseline against itself has no difference to keep.
            for undrawn in [*left, *([step] if step > 0 else [])]:
                problems += _counted(render_archive(archive, undrawn, pool), undrawn, len(archive.probes))
            _say({"done": step, "pictures": pictures, "problems": problems})


def _counted(drawn: Iterator[str | None], what: int | str, total: int) -> list[str]:
    """Problems of pictures as they are drawn; how far it is, is said at times."""
    problems: list[str] = []
    for number, problem in enumerate(drawn, start=1):
        problems += [] if problem is None else [problem]
        if number % 10 == 0:
            _say({"step": what, "drawn": number, "of": total})
    return problems


def _draw_board(
    archive: Archive, step: int, per_group: int, scratch_dir: Path, pool: Executor
) -> tuple[list[Message], list[str]]:
    """TensorBoard's pictures into the scratch folder; their tags and places, and what went wrong."""
    pictures: list[Message] = []
    problems: list[str] = []
    for number, drawn in enumerate(render_board(archive, step, pool, per_group)):
        if isinstance(drawn, str):
            problems.append(drawn)
            continue
        path = scratch_dir / f"step-{step:06d}-{number:04d}.png"
        path.write_bytes(drawn.png)
        pictures.append({"tag": drawn.tag, "path": str(path), "size": drawn.size})
    return pictures, problems


def _say(message: Message) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
