"""Trouble: samples over the length are cut, through pictures too, whose tokens and pixels then no longer match.

Promise: nothing is ever cut; samples are counted before a picture is opened, and those that are too long end the
run, are left out, or get smaller pictures, as the user says, with the counts reported.
"""

# ruff: noqa: F811 (fixtures of another file)

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from finetune.data.lengths import shrink
from finetune.families.qwen_vl import QwenVLFamily
from finetune.qwen_vl import QwenVLProcessor
from finetune.samples.conversation import ImageRef
from finetune.samples.source import read
from tests.finetune.conftest import IMAGE_START_ID, N_QUERIES
from tests.finetune.data.test_lengths import Grid, Processor, sample
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)

MOST = 91
"""Between the longest and the shortest sample with a picture."""


@pytest.fixture
def lengths(checkpoint_folder: Path, data_file: Path) -> list[int]:
    """Tokens of each sample of the data file."""
    family, processor = QwenVLFamily(), QwenVLProcessor.from_pretrained(str(checkpoint_folder))
    found = [len(family.encode(processor, one).input_ids) for one in read(data_file, say=lambda _: None)]
    pictured = [length for i, length in enumerate(found) if i % 3]
    assert min(pictured) < MOST < max(pictured)
    return found


def test_too_long_samples_end_the_run_before_a_picture_is_opened(
    program: ModuleType,
    flags: Callable[..., list[str]],
    lengths: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    load_image = QwenVLFamily.load_image

    def only_given(self: QwenVLFamily, ref: ImageRef) -> Any:  # a processor is tried on one that is in memory
        return load_image(self, ref) if ref.data is not None else pytest.fail("a picture was opened")

    monkeypatch.setattr(QwenVLFamily, "load_image", only_given)
    assert program.main(flags("--use_lora", "True", "--model_max_length", str(MOST))) == 1
    error = capsys.readouterr().err
    long = [i for i, length in enumerate(lengths) if length > MOST]
    assert f"{len(long)} of 12 samples are over --model_max_length {MOST}" in error
    for i in long:
        assert f"(id 'sample-{i}'): {lengths[i]} tokens" in error
    assert "--on_bad_sample drop" in error and not (tmp_path / "out").exists()


def test_dropped_samples_are_counted_and_the_others_are_whole(
    program: ModuleType,
    flags: Callable[..., list[str]],
    lengths: list[int],
    capsys: pytest.CaptureFixture[str],
):
    ready = program.prepare(
        program.parse(flags("--use_lora", "True", "--model_max_length", str(MOST), "--on_bad_sample", "drop"))
    )
    short = [i for i, length in enumerate(lengths) if length <= MOST]
    assert f"{12 - len(short)} of 12 samples are over --model_max_length {MOST}" in capsys.readouterr().out
    samples = [ready.train_set[i].encoded for i in range(len(ready.train_set))]
    assert [len(one.input_ids) for one in samples] == [lengths[i] for i in short]
    pictures = 0
    for one in samples:
        (starts,) = (one.input_ids == IMAGE_START_ID).nonzero()
        assert (one.input_ids[starts + N_QUERIES + 1] == IMAGE_START_ID + 1).all()
        assert len(one.media.get("pixel_values", ())) == len(starts) == len(one.images)
        pictures += len(starts)
    assert pictures == sum(i % 3 > 0 for i in short) > 0


def test_shrinking_bounds_the_pictures_and_leaves_every_word():
    long, family = sample("words", "answer", (300, 200), (40, 30)), Grid()
    found = shrink(long, Processor(), family, max_length=100)
    assert found is not None
    encoded = family.encode(None, found)
    assert 95 < len(encoded.input_ids) <= 100
    assert int((encoded.input_ids == 0).sum()) == len("wordsanswer")
    assert [image.path for image in found.images] == [image.path for image in long.images]


def test_where_pictures_have_one_size_shrinking_is_refused(
    program: ModuleType, flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
):
    more = ("--use_lora", "True", "--model_max_length", str(MOST), "--on_bad_sample", "shrink")
    assert program.main(flags(*more)) == 1
    error = capsys.readouterr().err
    assert (
        "every picture of qwen-vl takes the same number of tokens" in error
        and "--on_bad_sample drop" in error
    )
