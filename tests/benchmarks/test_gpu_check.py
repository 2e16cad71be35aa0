"""The check for GPUs runs whole on a CPU: every line says PASS, or what it needs."""

from benchmarks import gpu_check


def test_every_check_passes_here_or_says_what_it_needs(tmp_path):
    output = tmp_path / "check.txt"
    assert gpu_check.main(["--shape", "tiny", "--device", "cpu", "--output", str(output)]) == 0
    head, *lines = output.read_text(encoding="utf-8").splitlines()
    assert "tiny shape of Qwen-VL, random weights" in head
    assert [line.partition(" ")[2].partition(":")[0] for line in lines] == list(gpu_check.CHECKS)
    skipped = [line for line in lines if line.startswith("SKIP")]
    assert skipped == [
        "SKIP FlashAttention 2 with the monitor: needs a GPU",
        "SKIP FlashAttention 3 with the monitor: needs a GPU",
        "SKIP Liger: needs a GPU",
    ]
    assert all(line.startswith("PASS") for line in lines if line not in skipped)


def test_what_raises_or_comes_too_late_is_said(tmp_path):
    here = gpu_check.Here("cpu", "tiny", (48, 96))

    def broken(_):
        raise RuntimeError("no kernel image\nand more")

    later = gpu_check.time.monotonic() + 60
    assert gpu_check.verdict("x", broken, here, later) == "FAIL x: RuntimeError: no kernel image"
    assert gpu_check.verdict("x", lambda _: (False, "1.3 times"), here, later) == "FAIL x: 1.3 times"
    assert gpu_check.verdict("x", broken, here, 0.0) == "SKIP x: the 10 minutes are over"
