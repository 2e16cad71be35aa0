"""Which samples are trained in which step: one order for all processes, determined by seed and epoch."""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from finetune.data.packing import pack

Row = tuple[int, ...]
"""The samples of one row of a batch: one, or several that are packed into it."""

Strategy = Literal["random", "sequential", "group_by_length"]

GROUPED_STEPS = 50
"""Samples are grouped by length within windows of this many steps, so that the order stays mostly random."""


class StepShape(NamedTuple):
    """What makes a step of the optimizer.

    rows           rows of a micro-batch of one process
    processes      that train side by side
    accumulation   micro-batches of each process in a step
    """

    rows: int
    processes: int = 1
    accumulation: int = 1


class EpochRows(NamedTuple):
    """The rows of an epoch, in the order in which they are trained.

    samples   Int[samples], those of the first row, then those of the second, ...
    starts    Int[rows + 1]: where each row begins in ``samples``
    """

    samples: Int[np.ndarray, "samples"]
    starts: Int[np.ndarray, "ends"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, index: int) -> Row:
        return tuple(self.samples[self.starts[index] : self.starts[index + 1]].tolist())

    def exchanged(self, one: int, other: int) -> "EpochRows":
        """The same rows, two of them exchanged."""
        places = np.arange(len(self))
        places[[one, other]] = places[[other, one]]
        lengths = np.diff(self.starts)[places]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        inside = np.arange(len(self.samples)) - np.repeat(starts[:-1], lengths)
        return EpochRows(self.samples[np.repeat(self.starts[:-1][places], lengths) + inside], starts)


class Schedule(Sampler[list[Row]]):
    """The micro-batches of every epoch, those of all processes in turn: process 0's first, process 1's first, ...

    accelerate gives each process its own. A step of 2 processes × 2 rows has the samples of a step of 1 process × 4
    rows, also at the end of an epoch, where too few rows are left for all: then micro-batches are smaller, or empty,
    and no sample is seen twice to fill them.

    order      epoch → Int[samples of the epoch], in the order of chance; every epoch has as many
    tokens     Int[all samples]; None if nothing was counted: then there is neither packing nor grouping
    capacity   most tokens of a packed row; None: one sample a row
    longest_first   the run's first row is the longest of epoch 0, so that memory runs out at once or not at all
    drop_last  leave out the rows at the end of an epoch that do not fill a micro-batch of every process
    """

    def __init__(
        self,
        order: Callable[[int], Int[np.ndarray, "samples"]],
        shape: StepShape,
        *,
        tokens: Int[np.ndarray, "all"] | None = None,
        capacity: int | None = None,
        strategy: Strategy = "random",
        seed: int = 0,
        longest_first: bool = True,
        drop_last: bool = False,
    ) -> None:
        assert tokens is not None or (capacity is None and strategy != "group_by_length")
        self.order, self.shape, self.tokens, self.capacity = order, shape, tokens, capacity
        self.strategy, self.seed = strategy, seed
        self.longest_first, self.drop_last = longest_first, drop_last
        self.epoch = 0
        self._latest: tuple[int, EpochRows] | None = None
        self._micro_batches: dict[int, int] = {}

    # --- as the data loader sees it: the current epoch -----------------------------------------------------------
    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.micro_batches(self.epoch) * self.shape.processes

    def __iter__(self) -> Iterator[list[Row]]:
        rows = self.rows(self.epoch)
        together = self.shape.rows * self.shape.processes
        for start in range(0, len(rows), together):
            left = range(start, min(start + together, len(rows)))
            for part in np.array_split(np.array(left), self.shape.processes):
                yield [rows.row(index) for index in part.tolist()]

    # --- as a plan of the run ------------------------------------------------------------------------------------
    def rows(self, epoch: int) -> EpochRows:
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, self._rows(epoch))
        return self._latest[1]

    def micro_batches(self, epoch: int) -> int:
        """Of each process, in one epoch. Packed epochs differ in it; others have the same number of samples."""
        epoch = epoch if self.capacity is not None else 0
        if epoch not in self._micro_batches:
            together = self.shape.rows * self.shape.processes
            self._micro_batches[epoch] = math.ceil(len(self.rows(epoch)) / together)
        return self._micro_batches[epoch]

    def steps(self, epoch: int) -> int:
        return math.ceil(self.micro_batches(epoch) / self.shape.accumulation)

    def steps_of(self, epochs: float) -> int:
        """Steps in a number of epochs: 2.5 are two whole ones and half of the third."""
        whole = math.floor(epochs)
        part = epochs - whole
        steps = sum(self.steps(epoch) for epoch in range(whole))
        return steps + (math.ceil(part * self.steps(whole)) if part else 0)

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, steps of it that are done) after ``step`` steps of the run."""
        epoch = 0
        while step >= self.steps(epoch):
            step -= self.steps(epoch)
            epoch += 1
        return epoch, step

    def trained(self, step: int) -> Iterator[Int[np.ndarray, "samples"]]:
        """The samples of the run's first ``step`` steps, an array for each epoch."""
        last, steps = self.place(step)
        for epoch in range(last):
            yield self.rows(epoch).samples
        rows = self.rows(last)
        done = steps * self.shape.rows * self.shape.processes * self.shape.accumulation
        yield rows.samples[: rows.starts[min(done, len(rows))]]

    # --- one epoch -----------------------------------------------------------------------------------------------
    def _rows(self, epoch: int) -> EpochRows:
        samples = self.order(epoch)
        if self.strategy == "sequential":
            samples = np.sort(samples)
        if self.strategy == "group_by_length":
            samples = self._grouped(samples, epoch)
        rows = self._packed(samples)
        if self.drop_last:
            together = self.shape.rows * self.shape.processes
            starts = rows.starts[: len(rows) // together * together + 1]
            rows = EpochRows(rows.samples[: starts[-1]], starts)
        if not len(rows):
            raise ValueError(
                f"an epoch has no steps: {len(samples)} samples do not fill one batch of {self.shape.rows} rows × "
                f"{self.shape.processes} processes; leave out --dataloader_drop_last"
            )
        if epoch == 0 and self.longest_first and self.tokens is not None:
            lengths = np.add.reduceat(self.tokens[rows.samples], rows.starts[:-1])
            rows = rows.exchanged(0, int(lengths.argmax()))
        return rows

    def _packed(self, samples: Int[np.ndarray, "samples"]) -> EpochRows:
        if self.capacity is None:
            return EpochRows(samples, np.arange(len(samples) + 1))
        assert self.tokens is not None
        row_of = pack(self.tokens[samples], self.capacity)
        return EpochRows(
            samples[np.argsort(row_of, kind="stable")], np.concatenate([[0], np.cumsum(np.bincount(row_of))])
        )

    def _grouped(self, samples: Int[np.ndarray, "samples"], epoch: int) -> Int[np.ndarray, "samples"]:
        """Steps of samples of like length, in the order of chance within each window of steps."""
        assert self.tokens is not None
        size = self.shape.rows * self.shape.processes * self.shape.accumulation
        generator = np.random.default_rng([self.seed, epoch])
        return np.concatenate(
            [
                _shuffled_groups(part[np.argsort(-self.tokens[part], kind="stable")], size, generator)
                for part in np.split(samples, range(GROUPED_STEPS * size, len(samples), GROUPED_STEPS * size))
            ]
        )


def _shuffled_groups(
    samples: Int[np.ndarray, "samples"], size: int, generator: np.random.Generator
) -> Int[np.ndarray, "samples"]:
    """Groups of ``size``, shuffled; what does not fill a group stays at the end."""
    full = len(samples) // size * size
    groups = generator.permutation(samples[:full].reshape(-1, size))
    return np.concatenate([groups.reshape(-1), samples[full:]])
