"""Counting tokens ahead, keeping the counts, and shrinking pictures until a sample fits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data import lengths
from finetune.data.lengths import Lengths, measure, shrink
from finetune.data.mixture import Joined
from finetune.families.base import Encoded, ImageTokens
from finetune.families.qwen_vl import QwenVLFamily
from finetune.qwen_vl import QwenVLProcessor
from finetune.samples import workers as parallel
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.samples.source import read
from tests.finetune.conftest import N_QUERIES


class Grid:
    """A family of dynamic resolution: a letter is a token, and so is every 10 × 10 pixels of a picture, at least 4."""

    name = "grid"
    learned = ("assistant",)

    def __init__(self) -> None:
        self.encoded = 0

    def blank(self, processor: Any) -> Any:
        return self.encode(
            processor, Conversation((Turn("user", (ImageRef("", Path(), size_pixels=(9, 5)),)),))
        )

    def encode(self, processor: Any, conversation: Conversation, *, media: bool = True) -> Encoded:
        self.encoded += 1
        kinds: list[int] = []
        labels: list[int] = []
        for turn in conversation.turns:
            before = len(kinds)
            for part in turn.parts:
                kinds += [0] * len(part) if isinstance(part, str) else [1] * self.cells(part)
            learned = turn.role in self.learned
            labels += [7 if learned else -100] * (len(kinds) - before)
        image = ImageTokens(np.flatnonzero(kinds), (1, 1), np.zeros((1, 4)), (9, 5), False)
        return Encoded(
            np.array(kinds),
            np.array(labels),
            (),
            (image,) if media else (),
            per_token={"mm_token_type_ids": np.array(kinds)},
        )

    def cells(self, ref: Any) -> int:
        width, height = ref.size_pixels
        pixels = min(width * height, ref.max_pixels or width * height, 160_000)
        return max(4, pixels // 100)


class Processor:
    """Saves its settings, as every processor does."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(self.settings))


def sample(text: str, answer: str, *sizes: tuple[int, int]) -> Conversation:
    refs = [ImageRef(f"{i}.png", Path(f"{i}.png"), size_pixels=size) for i, size in enumerate(sizes)]
    return Conversation((Turn("user", (*refs, text)), Turn("assistant", (answer,))), f"sample {text}")


SAMPLES = [sample("abc", "de"), sample("a", "bcd", (70, 20)), sample("", "x", (70, 20), (30, 20))]


def test_what_a_sample_weighs_by_hand(tmp_path: Path):
    found = measure(SAMPLES, Processor(), Grid(), cache_dir=tmp_path)
    assert [column.tolist() for column in found] == [
        [5, 18, 21],
        [2, 3, 1],
        [0, 14, 20],
        [0, 1, 2],
        [0, 0, 0],
    ]
    assert Lengths._fields == ("tokens", "trained_tokens", "image_tokens", "images", "videos")


def test_counts_are_kept_and_belong_to_what_decides_them(tmp_path: Path):
    family = Grid()

    def counted(*args: Any) -> bool:
        before = family.encoded
        measure(*args, cache_dir=tmp_path)
        return family.encoded > before

    assert counted(SAMPLES, Processor(), family)
    assert not counted(list(SAMPLES), Processor(), family)
    assert counted(SAMPLES[:2], Processor(), family)
    assert counted(SAMPLES, Processor(max_pixels=9), family)
    assert counted(SAMPLES, Processor(max_pixels=8), family)
    assert counted([*SAMPLES[:2], sample("", "y", (70, 20), (30, 20))], Processor(), family)
    assert counted([*SAMPLES[:2], sample("", "x", (71, 20), (30, 20))], Processor(), family)
    family.name = "other"
    assert counted(SAMPLES, Processor(), family)


def test_sources_of_a_mixture_are_kept_apart(tmp_path: Path):
    family = Grid()
    measure(SAMPLES, Processor(), family, cache_dir=tmp_path)
    before = family.encoded
    found = measure(Joined([SAMPLES[:1], SAMPLES]), Processor(), family, cache_dir=tmp_path)
    assert found.tokens.tolist() == [5, 5, 18, 21] and found.images.tolist() == [0, 0, 1, 2]
    assert family.encoded == before + 2  # the other source's one sample, and the blank


def test_what_is_kept_is_what_was_counted(tmp_path: Path):
    first = measure(SAMPLES, Processor(), Grid(), cache_dir=tmp_path)
    again = measure(SAMPLES, Processor(), Grid(), cache_dir=tmp_path)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    again.tokens[0] = 3  # an array of one's own
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("harm", [lambda c: c[:-1], lambda c: b"", lambda c: bytes([c[0] ^ 1]) + c[1:]])
def test_a_broken_file_is_counted_anew_and_said(tmp_path: Path, harm: Any):
    first = measure(SAMPLES, Processor(), Grid(), cache_dir=tmp_path)
    (kept,) = tmp_path.rglob("*.counts")
    kept.write_bytes(harm(kept.read_bytes()))
    said: list[str] = []
    again = measure(SAMPLES, Processor(), Grid(), cache_dir=tmp_path, say=said.append)
    assert said == [f"{kept}: the cached token counts are broken; counting again"]
    assert again.tokens.tolist() == first.tokens.tolist()
    measure(SAMPLES, Processor(), Grid(), cache_dir=tmp_path, say=lambda _: pytest.fail("was not mended"))


def test_a_folder_that_cannot_be_written_is_said_and_no_more(tmp_path: Path):
    (tmp_path / "file").write_text("")
    said: list[str] = []
    found = measure(SAMPLES, Processor(), Grid(), cache_dir=tmp_path / "file", say=said.append)
    assert found.tokens.tolist() == [5, 18, 21] and "cannot be cached" in said[-1]


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path / "here"))
    measure(SAMPLES, Processor(), Grid())
    assert len(list((tmp_path / "here" / "lengths").iterdir())) == 1


def test_samples_without_a_token_to_learn_are_named(tmp_path: Path):
    family = Grid()
    family.learned = ()  # type: ignore[assignment]
    for _ in range(2):  # counted, then kept
        with pytest.raises(
            ValueError,
            match=r"2 of 2 samples have no token to learn:\n  sample abc: no token to learn\n  sample a: no",
        ):
            measure(SAMPLES[:2], Processor(), family, cache_dir=tmp_path)


def test_a_first_token_is_never_learned(tmp_path: Path):
    with pytest.raises(ValueError, match="1 of 1 samples have no token to learn"):
        measure([sample("", "x")], Processor(), Grid(), cache_dir=tmp_path)


def test_several_processes_count_what_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "CHUNK", 8)
    many = [sample("a" * i, "b", *[(30, 20)] * (i % 3)) for i in range(1, 60)]
    one, three = (
        measure(many, Processor(), Grid(), workers=workers, cache_dir=tmp_path / str(workers))
        for workers in (1, 3)
    )
    assert one.tokens.tolist() == three.tokens.tolist() == [i + 1 + 6 * (i % 3) for i in range(1, 60)]


def test_an_error_while_counting_names_the_sample(tmp_path: Path):
    class Strict(Grid):
        def encode(self, *args: Any, **kwargs: Any) -> Encoded:
            raise ValueError("no such token")

    family = Strict()
    family.blank = Grid().blank  # type: ignore[method-assign]
    with pytest.raises(
        ValueError,
        match=r"^3 of 3 samples cannot be trained on with this model:\n  sample abc: no such token",
    ):
        measure(SAMPLES, Processor(), family, cache_dir=tmp_path)


def test_qwen_vl_is_counted_without_opening_a_picture(
    checkpoint_folder: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    family, processor = QwenVLFamily(), QwenVLProcessor.from_pretrained(str(checkpoint_folder))
    conversations = read(data_file)
    encoded = [family.encode(processor, one) for one in conversations]
    monkeypatch.setattr(QwenVLFamily, "load_image", lambda *_: pytest.fail("a picture was opened"))
    found = measure(conversations, processor, family, cache_dir=tmp_path)
    assert found.tokens.tolist() == [len(one.input_ids) for one in encoded]
    assert found.trained_tokens.tolist() == [int((one.labels[1:] != -100).sum()) for one in encoded]
    assert found.image_tokens.tolist() == [len(one.images) * N_QUERIES for one in encoded]
    assert found.images.tolist() == [i % 3 > 0 for i in range(12)]
    monkeypatch.setattr(lengths, "_counted", lambda *_: pytest.fail("was counted again"))
    measure(read(data_file), processor, family, cache_dir=tmp_path)


# --- shrinking -------------------------------------------------------------------------------------------------------


def test_only_as_much_is_shrunk_as_is_needed():
    large = sample("abcd", "efgh", (300, 200), (40, 30))  # 8 letters, 600 and 12 cells
    family = Grid()
    found = shrink(large, Processor(), family, max_length=320)
    assert found is not None and found.source == large.source
    first, second = found.images
    assert second.max_pixels is None  # 1,200 pixels were never the trouble
    assert 29_700 <= (first.max_pixels or 0) < 30_100  # 300 cells of 100 pixels are left for it
    assert 317 <= len(family.encode(None, found).input_ids) <= 320
    assert found.turns[0].parts[2:] == large.turns[0].parts[2:] and found.turns[1] == large.turns[1]


def test_what_fits_stays_as_it_is():
    fitting = sample("abcd", "efgh", (300, 200))
    assert shrink(fitting, Processor(), Grid(), max_length=608) is fitting


def test_a_bound_that_was_there_is_kept():
    bounded = sample("ab", "cd", (300, 200), (300, 200))
    first, second, *words = bounded.turns[0].parts
    bounded = replace(
        bounded, turns=(Turn("user", (replace(first, max_pixels=5000), second, *words)), bounded.turns[1])
    )
    found = shrink(bounded, Processor(), Grid(), max_length=4 + 50 + 80)
    assert found is not None
    assert found.images[0].max_pixels == 5000 and 7900 <= (found.images[1].max_pixels or 0) < 8100


def test_what_no_shrinking_helps_is_none():
    assert shrink(sample("a" * 50, "b"), Processor(), Grid(), max_length=50) is None
    assert shrink(sample("a" * 50, "b", (70, 20)), Processor(), Grid(), max_length=54) is None
    assert shrink(sample("a" * 50, "b", (70, 20)), Processor(), Grid(), max_length=55) is not None


def test_a_family_of_one_size_refuses(checkpoint_folder: Path, tmp_path: Path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    processor = QwenVLProcessor.from_pretrained(str(checkpoint_folder))
    one = Conversation(
        (Turn("user", (ImageRef("a.png", tmp_path / "a.png"), "what?")), Turn("assistant", ("x" * 50,))),
        "the sample",
    )
    with pytest.raises(
        ValueError,
        match=r"the sample: too long, and every picture of qwen-vl takes the same number of tokens",
    ):
        shrink(one, processor, QwenVLFamily(), max_length=20)
