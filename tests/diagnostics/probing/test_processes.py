"""Probes shared out among processes: the same records in the same order, and no trace in this process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diagnostics.probing import processes
from diagnostics.probing.prober import Prober
from diagnostics.probing.processes import in_processes, parted, worthwhile
from diagnostics.records.measurement_plan import WATCH
from tests.diagnostics.tiny_qwen_vl import tiny_probes


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_are_equal_and_as_many_for_each_process():
    sizes = [len(part) for part in parted(range(152), 2, most=32)]
    assert sizes == [25, 25, 26, 25, 25, 26]
    assert [[*part] for part in parted([3, 1, 2], 2, most=8)] == [[3], [1, 2]]
    assert [[*part] for part in parted([7], 4, most=8)] == [[7]]


def test_a_large_model_and_a_single_thread_stay_in_one_process(two_threads, monkeypatch):
    model = nn.Linear(8, 8)
    assert [worthwhile(model, count) for count in (0, 31, 32, 500)] == [1, 1, 2, 2]
    monkeypatch.setattr(processes, "SMALL_BYTES", 4 * 8 * 9 - 1)
    assert worthwhile(model, 500) == 1
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert worthwhile(model, 500) == 1
    assert worthwhile(nn.Linear(8, 8, device="meta"), 500) == 1


def test_a_process_that_may_have_no_children_does_all_itself(two_threads, monkeypatch):
    monkeypatch.setattr("multiprocessing.process._current_process._config", {"daemon": True})
    assert worthwhile(nn.Linear(8, 8), 500) == 1


def test_what_marks_a_sink_is_found_on_the_same_probes_however_many_processes(
    model, processor, folder, two_threads, monkeypatch
):
    """On the first that are equally long, here those of other places than the first few."""
    of = tiny_probes(folder, 9)
    probes = [replace(one, question=one.question + " now" * (at > 0)) for at, one in enumerate(of)]
    found: list[list[int]] = []
    monkeypatch.setattr(
        "diagnostics.probing.prober.sink_dimensions",
        lambda hidden: found[-1].append(len(hidden)) or np.zeros(0, int),
    )
    settings = {"key_layers": [0], "probes": probes, "depth": replace(WATCH, generate=False), "batch_size": 4}
    for least in (processes.WORTH_A_PROCESS, 2):
        monkeypatch.setattr(processes, "WORTH_A_PROCESS", least)
        found.append([])
        Prober(model, processor, **settings).run_all(3, "tiny")
    assert found[0] == found[1] and len(found[0]) > 0


def test_records_are_those_of_one_process(model, processor, folder, two_threads, monkeypatch):
    probes = tiny_probes(folder, 9)
    settings = {
        "key_layers": [0, 2],
        "probes": probes,
        "depth": replace(WATCH, generate=False),
        "batch_size": 4,
    }
    alone = Prober(model, processor, **settings).run_all(3, "tiny")
    monkeypatch.setattr(processes, "WORTH_A_PROCESS", 2)
    forks: list[int] = []
    monkeypatch.setattr("diagnostics.probing.prober.in_processes", lambda *given, processes: (
        forks.append(processes), in_processes(*given, processes=processes)
    )[1])  # fmt: skip
    shared = Prober(model, processor, **settings).run_all(3, "tiny")
    assert forks == [2] and torch.get_num_threads() == 2
    assert [one.probe_id for one in shared] == [one.probe_id for one in alone] == [one.id for one in probes]
    for one, other in zip(shared, alone, strict=True):
        assert one.scores.answer_nats == pytest.approx(other.scores.answer_nats, abs=1e-4)
        np.testing.assert_allclose(one.rows, other.rows, atol=1e-5)
        np.testing.assert_array_equal(one.sinks, other.sinks)


def where(part: Sequence[int]) -> list[tuple[int, int, int]]:
    if -1 in part:
        os.kill(os.getpid(), signal.SIGKILL)
    if -2 in part:
        raise ValueError("probe 2 is broken")
    return [(number, os.getpid(), torch.get_num_threads()) for number in part]


def test_parts_come_back_in_order_from_other_processes_with_a_thread_each(two_threads):
    found = [one for part in in_processes(where, [[0, 1], [2], [3, 4]], processes=2) for one in part]
    assert [number for number, _, _ in found] == [0, 1, 2, 3, 4]
    assert os.getpid() not in {pid for _, pid, _ in found} and {threads for _, _, threads in found} == {1}


def test_what_fails_there_fails_here(two_threads):
    with pytest.raises(ValueError, match="probe 2 is broken"):
        [*in_processes(where, [[0], [-2]], processes=2)]
    with pytest.raises(ChildProcessError, match="one of 2 processes that read probes was killed"):
        [*in_processes(where, [[0], [-1]], processes=2)]
    assert torch.get_num_threads() == 2


def test_a_process_whose_parent_is_gone_ends():
    child = os.fork()
    if child == 0:
        processes._end_with(parent=-1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_without_memory_for_a_thread_is_killed():
    """Without, it waits for the thread for ever."""

    def exhausted(self: threading.Thread) -> None:
        raise MemoryError

    def begin() -> None:
        threading.Thread._bootstrap = exhausted  # type: ignore[attr-defined]
        processes._begin(print, os.getppid())

    worker = multiprocessing.get_context("fork").Process(target=begin)
    worker.start()
    worker.join(30)
    was = worker.exitcode
    worker.kill()
    assert was == -signal.SIGKILL
