"""Trouble: samples are prepared slowly before training, or the device waits for data, and nobody sees that it does.

Promise: pictures are decoded by the loader's workers when it is their turn; only token counts are made ahead, and kept
for the next run; the share of time spent waiting for data is a curve.
"""

# ruff: noqa: F811 (fixtures of another file)

import time
from pathlib import Path
from types import ModuleType

import pytest

from finetune.families.qwen_vl import QwenVLFamily
from finetune.training.trainer import Clock
from tests.finetune.test_program import flags, program, scalars  # noqa: F401  (fixtures)


def test_counts_are_kept_and_pictures_are_opened_by_workers_alone(
    program: ModuleType, flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = ("--use_lora", "True", "--max_steps", "2", "--save_strategy", "no", "--logging_steps", "1")
    assert program.main(flags(*run)) == 0
    load, encode = QwenVLFamily.load_image, QwenVLFamily.encode
    opened, counted = tmp_path / "opened", []

    def noted(self, ref):
        if ref.data is None:  # a file: not the picture that a processor is tried with
            with opened.open("a") as file:
                file.write(f"{ref.path.name} {torch_worker()}\n")
        return load(self, ref)

    def counting(self, *args, media=True, **rest):
        counted.append(media)
        return encode(self, *args, media=media, **rest)

    monkeypatch.setattr(QwenVLFamily, "load_image", noted)
    monkeypatch.setattr(QwenVLFamily, "encode", counting)
    again = (
        "--output_dir",
        str(tmp_path / "again"),
        "--dataloader_num_workers",
        "1",
        "--overwrite_output_dir",
        "True",
    )
    assert program.main(flags(*run, *again)) == 0
    # Of 12 samples; the preview tries in two sentences whether pictures come before words.
    assert counted.count(False) <= 2, "counts of the first run were kept"
    workers = [line.split()[1] for line in opened.read_text().splitlines()]
    shown = len({line.split()[0] for line in opened.read_text().splitlines() if line.endswith("main")})
    assert workers.count("worker") == 8 and shown <= 2  # of samples that are shown before training
    waiting = scalars(tmp_path / "again" / "runs")["train/waiting for data (share)"]
    assert [*waiting] == [1, 2] and all(0 <= share <= 1 for share in waiting.values())


def torch_worker() -> str:
    from torch.utils.data import get_worker_info

    return "main" if get_worker_info() is None else "worker"


def test_the_share_waited_by_hand(monkeypatch: pytest.MonkeyPatch):
    now = computed = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(lambda: computed)

    def slow():
        nonlocal now, computed
        for batch in range(2):
            now += 5.0
            computed += 2.0  # of these five seconds: the tower, of a sample that is kept
            yield batch

    source = slow()
    clock.begin()
    assert list(clock.watching(source)) == [0, 1]
    now += 2.0
    clock.end()
    now += 100.0  # evaluation, saving
    clock.end()
    assert clock.taken() == 0.5 and clock.taken() == 0.0
