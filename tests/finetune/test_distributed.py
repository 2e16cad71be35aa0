"""The processes of a run: they end with their launcher, and what the first decides holds for all."""

import os
import select
import signal
import sys
import time

import pytest

from finetune import distributed
from finetune.distributed import decided_by_first, end_with_launcher


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent has died")
@pytest.mark.parametrize("launched", [True, False])
def test_a_process_ends_with_torchrun_and_with_nothing_else(monkeypatch: pytest.MonkeyPatch, launched: bool):
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    ready, to_ready = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        rank = os.fork()
        if rank == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            end_with_launcher()
        else:
            os.write(to_ready, b"%d " % rank)
        if rank == 0:
            os.write(to_ready, b"armed")
        time.sleep(60)
        os._exit(0)
    said = b""
    while b"armed" not in said or b" " not in said:
        said += os.read(ready, 100)
    rank = int(said.replace(b"armed", b""))
    waiting = select.poll()
    waiting.register(os.pidfd_open(rank), select.POLLIN)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    try:
        assert bool(waiting.poll(10_000 if launched else 200)) is launched
    finally:
        if not launched:
            os.kill(rank, signal.SIGKILL)


@pytest.mark.parametrize(
    "fault", [None, ValueError("another run's"), OSError(28, "No space left on device", "run.json")]
)
def test_what_the_first_process_decides_or_raises_reaches_the_others(monkeypatch: pytest.MonkeyPatch, fault):
    def decide() -> str:
        if fault is not None:
            raise fault
        return "resumed"

    told: list[object] = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    for rank in (0, 1):

        def broadcast(outcome: list[object], src: int, rank: int = rank) -> None:
            assert src == 0
            if rank == 0:
                told[:] = outcome
            else:
                outcome[:] = told

        monkeypatch.setattr(distributed, "rank_and_world_size", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(distributed.distributed, "broadcast_object_list", broadcast)
        asked = decide if rank == 0 else lambda: pytest.fail("decided on another process")
        if fault is None:
            assert decided_by_first(asked) == "resumed"
        else:
            with pytest.raises(type(fault)) as raised:
                decided_by_first(asked)
            assert raised.value is fault
