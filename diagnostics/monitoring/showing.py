"""What a monitored run shows while it trains, on its first rank: curves, cards, pictures, and where to look at them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostics.drawing import worker_client
from diagnostics.drawing.board import AttentionBoard
from diagnostics.drawing.tensorboard import TensorBoardSink, address, open_command, plain_flags, written_tags
from diagnostics.drawing.trackers import KNOWN
from diagnostics.flags.board import PORT, START
from diagnostics.monitoring.failures import Failures

if TYPE_CHECKING:
    from diagnostics.comparison.pairs import ProbePair
    from diagnostics.drawing.sink import Sink
    from diagnostics.drawing.worker_client import Rendered

LOGS_END = ".attention"
"""Suffix of this monitor's own event files: those of others are never moved."""


@dataclass(frozen=True)
class ShownRun:
    """What is shown of a run.

    output_dir   the run's folder
    groups       of the judged probes
    layers       the key layers
    trained_on   those of them whose attention the run trains on, or was trained on before
    writer       the run's SummaryWriter, closed by its owner; None: one of its own
    trackers     names as in ``--report_to``
    flags        of the run, for the HParams tab
    """

    output_dir: Path
    groups: Sequence[str]
    layers: Sequence[int]
    writer: Any | None
    trackers: Sequence[str]
    flags: Mapping[str, Any]
    trained_on: Collection[int] = ()

    @property
    def log_dir(self) -> Path:
        """The folder of TensorBoard's files."""
        return log_dir(self.output_dir, self.writer)


class Showing:
    """TensorBoard, trackers and the drawing process of one run. A failure of one is reported; the others go on."""

    def __init__(self, run: ShownRun, failures: Failures, *, step: int) -> None:
        """``step``: where this start begins; what was shown before is not shown twice."""
        self._run, self._failures = run, failures
        self._own_writer: Any | None = None
        self._renderer: worker_client.Renderer | None = worker_client.Renderer(run.output_dir / "attention")
        self._board: AttentionBoard | None = AttentionBoard(
            self._sinks(step), self._reporting, trained_on=run.trained_on
        )
        self._board.begin(run.groups)

    def where_to_look(self) -> str:
        """The commands that show the run, and their addresses."""
        run = self._run
        own = run.log_dir == run.output_dir / "runs"
        folder = shlex.quote(str(run.output_dir if own else run.log_dir))
        judged = [layer for layer in run.layers if layer not in run.trained_on]
        return (
            f"curves and maps: python -m diagnostics.board {folder}, at http://localhost:{PORT}{START}\n"
            f"  or {open_command(run.log_dir)}, at {address(run.groups, judged)}"
        )

    def architecture(self, words: str) -> None:
        """Show the architecture of the trained model, given as Markdown."""
        if self._board is not None:
            self._board.write_architecture(words)

    def diagnosis(self, words: str) -> None:
        """Show where the untrained model loses the right answer, given as Markdown."""
        if self._board is not None:
            self._board.write_diagnosis(words)

    def step(self, pairs: Sequence[ProbePair], step: int) -> None:
        """Show a step's numbers and cards."""
        if self._board is not None:
            self._board.write_step(pairs, step)

    def forget(self, step: int) -> None:
        """Let a step be shown again, of another model."""
        if self._board is not None:
            self._board.forget(step)

    def draw(self, step: int) -> None:
        """Have a step's pictures drawn, and show those that are."""
        if self._renderer is not None:
            self._renderer.submit(step)
            self._pictures(self._renderer.poll())

    def make_up(self, pairs: Sequence[ProbePair], step: int) -> None:
        """Show what was measured but not shown when the run was killed."""
        if self._board is not None and self._renderer is not None:
            self._board.write_step(pairs, step)
            if self._board.lacks_pictures(pairs, step):
                self._renderer.submit(step)

    def verdicts(self, comparison: Mapping[str, Any], step: int) -> None:
        """Show the verdicts of a comparison."""
        if self._board is not None:
            self._board.write_verdicts(comparison, step)

    def close(self) -> None:
        """Wait for the pictures, note which are missing, and close what is open."""
        if self._renderer is not None:
            self._renderer.submit_strips()
            self._pictures(self._renderer.close())
            # Renderers of tests, which draw nothing, lack both.
            problem, undrawn = (getattr(self._renderer, name, None) for name in ("problem", "undrawn"))
            if problem:
                self._failures.lack(f"pictures: {problem}")
            elif undrawn:
                more = f", and {len(undrawn) - 1} more" if len(undrawn) > 1 else ""
                self._failures.lack(f"pictures: {undrawn[0]}{more}")
            self._renderer = None
        if self._board is not None:
            self._board.close()
        if self._own_writer is not None:
            self._own_writer.close()
        self._own_writer = self._board = None

    def _pictures(self, rendered: Sequence[Rendered]) -> None:
        for one in rendered:
            if self._board is not None:
                self._board.write_pictures(one.pictures, one.step)

    def _sinks(self, step: int) -> list[Sink]:
        sinks: list[Sink] = []
        with self._reporting("TensorBoard"):
            sinks.append(self._tensorboard(step))
        for name in self._run.trackers:
            if name in KNOWN:
                with self._reporting(name):
                    sinks.append(KNOWN[name](self._run.output_dir / "attention" / "trackers.json"))
            elif name != "tensorboard":
                print(f"--report_to {name} gets the training curves; probes go elsewhere", flush=True)
        return sinks

    def _tensorboard(self, step: int) -> Sink:
        place, writer = self._run.log_dir, self._run.writer
        written = written_tags(place) if step > 0 else ()
        if writer is None:
            from torch.utils.tensorboard import SummaryWriter

            purge = step + 1 if step > 0 else None
            writer = self._own_writer = SummaryWriter(str(place), purge_step=purge, filename_suffix=LOGS_END)
        return TensorBoardSink(writer, place, written=written, flags=plain_flags(self._run.flags))

    def _reporting(self, sink: str) -> AbstractContextManager[None]:
        return self._failures.reporting(f"{sink} could not be written", lacks=sink)


def log_dir(output_dir: Path, writer: Any | None) -> Path:
    """The folder of TensorBoard's files: the writer's, or the run's own."""
    given = getattr(writer, "log_dir", None)  # SummaryWriter's attribute; another writer may lack it
    if given is not None:
        return Path(given)
    return Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or output_dir / "runs")
