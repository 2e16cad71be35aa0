"""Memory that can still be had: the system's, the container's, a GPU's."""

import pytest
import torch

from finetune.model import free_memory
from finetune.model.free_memory import available_bytes


def test_what_the_machine_has_and_what_its_container_allows(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    assert free_memory._system_bytes(meminfo) == 1000 * 1024
    assert free_memory._container_bytes(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory._container_bytes(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 700\n")
    assert free_memory._container_bytes(tmp_path) == 2700
    monkeypatch.setattr(free_memory, "_system_bytes", lambda: 10.0)
    monkeypatch.setattr(free_memory, "_container_bytes", lambda: 7.0)
    assert available_bytes(torch.device("cpu")) == 7.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_what_torch_has_reserved_and_does_not_use():
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    before = available_bytes(torch.device("cuda"))
    del held
    assert available_bytes(torch.device("cuda")) == pytest.approx(before + 2**28, abs=2**24)
