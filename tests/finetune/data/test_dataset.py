import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.dataset import Collator, ConversationDataset, Fault, Rows, Sample, build_dataset
from finetune.data.kept_samples import KeptSamples, room_bytes, size_bytes
from finetune.data.look import LookRow, arrays_of
from finetune.data.mixture import Mixture, Source
from finetune.families.base import Encoded
from finetune.families.qwen_vl import QwenVLFamily
from finetune.model.checkpoint import load_processor
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.samples.source import read
from tests.finetune.conftest import IMAGE_START_ID, N_QUERIES
from tests.finetune.families.tiny_families import GRIDS

FAMILY = QwenVLFamily()
IM_START, IM_END = 257, 258
BLANK = Encoded(
    np.array([70, 71]), np.array([-100, -100]), (), (), {"pixel_values": torch.full((1, 3, 2, 5), 70.0)}
)


@pytest.fixture(scope="module")
def processor(checkpoint_folder: Path):
    return load_processor(checkpoint_folder)


@pytest.fixture(scope="module")
def conversations(data_file: Path) -> list[Conversation]:
    return list(read(data_file, say=lambda _: None))


def encoded(ids: list[int], labels: list[int], pictures: int = 0, **per_token: list[int]) -> Encoded:
    media = {"pixel_values": torch.full((pictures, 3, 2, 5), float(ids[0]))} if pictures else {}
    kinds = {name: np.array(values) for name, values in per_token.items()}
    return Encoded(np.array(ids), np.array(labels), ((0, len(ids)),), (None,) * pictures, media, kinds)  # type: ignore[arg-type]


def build(
    conversations, processor, *, max_length: int = 200, on_bad_sample: Any = "error", **more
) -> ConversationDataset:
    return build_dataset(
        conversations, processor, more.pop("family", FAMILY), max_length=max_length, on_bad_sample=on_bad_sample, **more
    )  # fmt: skip


def test_items_are_as_long_as_counted_and_hold_their_picture(processor, conversations):
    dataset = build(conversations, processor)
    assert len(dataset) == len(conversations) == 12
    sample = dataset[1]
    assert sample.number == 1
    assert dataset.lengths is not None and len(sample.encoded.input_ids) == dataset.lengths.tokens[1]
    assert sample.encoded.media["pixel_values"].shape == (1, 3, 12, 12)
    start = sample.encoded.input_ids.tolist().index(IMAGE_START_ID)
    assert sample.encoded.input_ids[start + N_QUERIES + 1] == IMAGE_START_ID + 1


class Counting(QwenVLFamily):
    """Counts the samples that are read whole."""

    whole = 0

    def encode(self, *args: Any, media: bool = True, **options: Any) -> Encoded:
        self.whole += media
        return super().encode(*args, media=media, **options)


def same(one: Sample, other: Sample) -> bool:
    mine, theirs = one.encoded.media, other.encoded.media
    alike = all(torch.equal(mine[name], theirs[name]) for name in mine.keys() | theirs.keys())
    return one.number == other.number and alike and np.array_equal(one.encoded.labels, other.encoded.labels)


def test_kept_samples_are_read_once_and_are_those_that_reading_gives(processor, conversations):
    family = Counting()
    dataset = build(conversations, processor, family=family)
    read_anew = [dataset[at] for at in range(3)] + [dataset[at] for at in range(3)]
    assert family.whole == 6 and len(dataset.kept) == 0  # none is kept unless it is asked for
    dataset.keep(2**20)
    first, again = [dataset[at] for at in range(3)], [dataset[at] for at in range(3)]
    assert family.whole == 9 and len(dataset.kept) == 3
    assert all(map(same, first, read_anew)) and all(map(same, again, read_anew))


def test_kept_samples_stay_within_their_room_and_the_first_that_fit_stay(processor, conversations):
    family = Counting()
    dataset = build(conversations, processor, family=family)
    dataset.keep(2.5 * size_bytes(dataset[0].encoded))
    family.whole = 0
    for _ in range(2):
        for at in (5, 6, 7, 8):
            assert same(dataset[at], dataset[at])
    assert len(dataset.kept) == 2 and dataset.kept.room_bytes >= 0
    assert dataset.kept.get(5) is not None and dataset.kept.get(6) is not None
    assert family.whole == 2 + 2 * 2 * 2  # two once, and two in each of two epochs twice


def test_a_kept_sample_takes_the_memory_of_its_supervised_rows_too(processor, conversations):
    plain = build(conversations, processor)[1]
    tokens = np.arange(100)
    looks = [LookRow(row, tokens, np.ones((2, 50)), np.array([], np.int64)) for row in range(30)]
    more = size_bytes(plain.encoded, arrays_of(looks)) - size_bytes(plain.encoded)
    assert more == tokens.nbytes + 30 * 2 * 50 * 8  # where the tokens are is one array for all rows
    kept = KeptSamples(size_bytes(plain.encoded) + more - 1)
    kept.offer(1, plain._replace(looks=tuple(looks)), plain.encoded, arrays_of(looks))
    assert len(kept) == 0


def test_room_for_kept_samples_is_a_share_of_what_is_free_for_all_processes():
    assert room_bytes(1.0, free_bytes=2**40, processes=8) == 2**30
    assert room_bytes(1.0, free_bytes=2**30, processes=2) == 2**27
    assert room_bytes(0.0, free_bytes=2**40, processes=1) == 0


def limit_that_leaves_out_two(dataset: ConversationDataset) -> int:
    assert dataset.lengths is not None
    return int(np.sort(dataset.lengths.tokens)[-3])


def test_too_long_samples_are_an_error_that_counts_and_names_them(processor, conversations):
    whole = build(conversations, processor)
    limit = limit_that_leaves_out_two(whole)
    names = [conversations[i].source for i in np.flatnonzero(whole.lengths.tokens > limit)]
    with pytest.raises(ValueError) as caught:
        build(conversations, processor, max_length=limit)
    message = str(caught.value)
    assert f"{len(names)} of 12 samples are over --model_max_length {limit}" in message
    assert "--on_bad_sample drop" in message
    assert all(f"{name}: " in message for name in names)


def test_too_long_samples_are_dropped_whole_and_said(processor, conversations):
    whole = build(conversations, processor)
    limit = limit_that_leaves_out_two(whole)
    said: list[str] = []
    dataset = build(conversations, processor, max_length=limit, on_bad_sample="drop", say=said.append)
    assert dataset.lengths.tokens.tolist() == [n for n in whole.lengths.tokens if n <= limit]
    assert len(said) == 1 and "left out" in said[0]
    assert [one.source for one in dataset.conversations[:3]] == [
        dataset.conversations[i].source for i in range(3)
    ]
    for i, length in enumerate(dataset.lengths.tokens):  # nothing is cut
        assert len(dataset[i].encoded.input_ids) == length


def test_sources_are_cleared_each_by_itself_and_keep_their_part_of_an_epoch(processor, conversations):
    whole = build(conversations, processor)
    limit = limit_that_leaves_out_two(whole)
    both = Mixture(
        [Source("base", conversations, "base"), Source("spheres", conversations[:6], "corrective", None, 2)],
        3,
    )
    dataset = build(both, processor, max_length=limit, on_bad_sample="drop", say=lambda _: None)
    fits = whole.lengths.tokens <= limit
    assert dataset.mixture.names == ("base", "spheres")
    assert np.bincount(dataset.source_of).tolist() == [fits.sum(), fits[:6].sum()]
    assert len(dataset.mixture.order(0)) == fits.sum() + 2 * fits[:6].sum()
    assert dataset.lengths.images.tolist() == [len(one.images) for one in dataset.conversations]
    last = dataset[len(dataset) - 1]
    assert last.source == 1 and last.number == len(dataset) - 1


def test_dropping_every_sample_is_an_error(processor, conversations):
    with pytest.raises(ValueError, match=r"no sample is left: all 12 are over --model_max_length 9"):
        build(conversations, processor, max_length=9, on_bad_sample="drop", say=lambda _: None)


class Shrinkable(QwenVLFamily):
    """Pictures take a token for each 10 of their pixels."""

    name = "shrinkable"

    def encode(self, processor, conversation, **options) -> Encoded:
        found = super().encode(processor, conversation, **options)
        pixels = [min(20 * 14, ref.max_pixels or 20 * 14) for ref in conversation.images]
        more = np.full(sum(pixels) // 10, 65)
        ids, labels = np.concatenate([more, found.input_ids]), np.concatenate([more * 0 - 100, found.labels])
        return replace(found, input_ids=ids, labels=labels)


def test_pictures_of_too_long_samples_are_made_smaller(processor, conversations):
    said: list[str] = []
    options: dict[str, Any] = {"family": Shrinkable(), "say": said.append}
    whole = build(conversations, processor, **options)
    limit = int(whole.lengths.tokens.max()) - 9
    dataset = build(conversations, processor, max_length=limit, on_bad_sample="shrink", **options)
    assert len(dataset) == 12 and dataset.lengths.tokens.max() <= limit
    long = whole.lengths.tokens > limit
    assert f"the pictures of {long.sum()} of 12 samples were downscaled" in said[0]
    assert (dataset.lengths.tokens[~long] == whole.lengths.tokens[~long]).all()
    first = int(np.flatnonzero(long)[0])
    assert len(dataset[first].encoded.input_ids) == dataset.lengths.tokens[first] > limit - 10
    with pytest.raises(ValueError, match="are too long even with the smallest pictures"):
        build(conversations, processor, max_length=60, on_bad_sample="shrink", **options)


def test_a_sample_that_changed_since_it_was_counted_is_named(processor, conversations):
    dataset = build(conversations, processor)
    dataset.lengths.tokens[4] += 1
    with pytest.raises(ValueError, match=r"(?s)record 4 .*found \d+ tokens, expected \d+ as counted before"):
        dataset[4]


# ---------------------------------------------------------------------------------------------------------------------
# Streaming
# ---------------------------------------------------------------------------------------------------------------------


class Silent(QwenVLFamily):
    def encode(self, *args, **kwargs) -> Encoded:
        full = super().encode(*args, **kwargs)
        return Encoded(full.input_ids, np.full_like(full.labels, -100), full.turn_spans)


def test_streaming_counts_nothing_ahead_and_names_what_is_wrong_when_it_comes(
    processor, conversations, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(QwenVLFamily, "encode", lambda *_, **__: pytest.fail("a sample was read"))
        dataset = build(conversations, processor, max_length=80, streaming=True)
    assert dataset.lengths is None and len(dataset) == 12
    assert len(dataset[0].encoded.input_ids) <= 80
    with pytest.raises(ValueError, match=r"record 4 .*: 86 tokens, 1 image, over --model_max_length 80"):
        dataset[4]
    with pytest.raises(ValueError, match=r"record 0 .*: no token to learn"):
        build(conversations, processor, streaming=True, family=Silent())[0]
    shrunk = build(
        conversations, processor, max_length=100, on_bad_sample="shrink", streaming=True, family=Shrinkable()
    )
    assert 90 < len(shrunk[4].encoded.input_ids) <= 100


def test_a_row_tells_its_faults_beside_its_samples(processor):
    missing = ImageRef("gone.png", Path("gone.png"))
    several = [
        Conversation((Turn("user", ("hi",)), Turn("assistant", ("ho",))), "a.json: record 1"),
        Conversation((Turn("user", (missing,)), Turn("assistant", ("ho",))), "a.json: record 2"),
    ]
    sample, fault = Rows(build(several, processor, streaming=True))[(0, 1)]
    assert isinstance(sample, Sample) and sample.number == 0
    assert isinstance(fault, Fault) and fault.number == 1
    assert fault.message.startswith("a.json: record 2: image 'gone.png'")


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


def test_a_batch_is_padded_on_the_right_to_its_longest_row():
    batch = Collator(9, BLANK)(
        [
            [Sample(4, encoded([1, 2, 9], [1, -100, 9]), 1)],
            [Sample(7, encoded([5, 6, 7, 8, 3], [5, -100, 7, -100, 3], pictures=2), 0)],
            [Sample(2, encoded([4, 4], [4, 4], pictures=1), 1)],
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9, 9], [5, 6, 7, 8, 3], [4, 4, 9, 9, 9]]
    # The first token has no predictor, so it counts nowhere.
    assert batch["labels"].tolist() == [
        [-100, -100, 9, -100, -100],
        [-100, -100, 7, -100, 3],
        [-100, 4, -100, -100, -100],
    ]
    # The third token of the first row is the padding id and yet text.
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [5.0, 5.0, 4.0]
    about = batch["about"]
    assert about["samples"].tolist() == [4, 7, 2] and about["sample_sources"].tolist() == [1, 0, 1]
    assert about["sources"].tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    # Labels are at 1 (third row), 2 (first and second) and 4 (second): their predictors stand one before.
    assert about["kept"].tolist() == [0, 1, 3]
    assert about["pictures"].item() == 3 and about["faults"] == {}


def test_what_each_token_has_beside_its_id_is_padded_with_0_and_missing_in_no_sample():
    batch = Collator(9, BLANK)(
        [[Sample(0, encoded([1, 2], [1, 2], kind=[1, 1]))], [Sample(1, encoded([3], [3], kind=[1]))]]
    )
    assert batch["kind"].tolist() == [[1, 1], [1, 0]]
    with pytest.raises(AssertionError, match=r"samples of one batch differ .*\[\[\], \['kind'\]\]"):
        Collator(9, BLANK)([[Sample(0, encoded([1], [1], kind=[1]))], [Sample(1, encoded([3], [3]))]])


def test_a_batch_of_text_has_no_media_unless_every_process_must_see():
    rows = [[Sample(0, encoded([1, 2, 3], [1, 2, 3]))], [Sample(1, encoded([4], [4]))]]
    assert "pixel_values" not in Collator(0, BLANK)(rows)
    batch = Collator(0, BLANK, blank_pictures=True)(rows)
    # At the end of the shortest row, where nothing comes after it; it trains nothing and is no picture.
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 70, 71]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch["pixel_values"].shape == (1, 3, 2, 5) and batch["about"]["pictures"].item() == 0
    seeing = [[Sample(0, encoded([1, 2], [1, 2], pictures=1))], *rows]
    assert len(Collator(0, BLANK, blank_pictures=True)(seeing)["pixel_values"]) == 1


def test_a_batch_without_samples_is_a_blank_row_that_trains_nothing():
    for rows in ([], [[Fault(3, "broken")]]):
        batch = Collator(0, BLANK)(rows)
        assert batch["input_ids"].tolist() == [[70, 71]] and (batch["labels"] == -100).all()
        assert batch["about"]["samples"].tolist() == [] and batch["about"]["kept"].tolist() == [0]
    assert batch["about"]["faults"] == {3: "broken"}


def test_packed_rows_by_hand():
    seen: list[list[list[int]]] = []

    def packed(row):
        seen.append([one.input_ids.tolist() for one in row])
        return {"position_ids": torch.cat([torch.arange(len(one.input_ids)) for one in row])[None]}

    batch = Collator(9, BLANK, packed=packed)(
        [
            [Sample(4, encoded([1, 2, 3], [1, 2, 3]), 1), Sample(7, encoded([5, 6], [5, 6], pictures=1), 0)],
            [Sample(2, encoded([4, 4], [4, 4], pictures=1), 1)],
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 5, 6], [4, 4, 9, 9, 9]]
    # The last token of one sample does not predict the first of the next.
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 6], [-100, 4, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert seen == [[[1, 2, 3], [5, 6]], [[4, 4], [9, 9, 9]]] and "attention_mask" not in batch
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [5.0, 4.0]
    assert batch["about"]["sources"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert batch["about"]["samples"].tolist() == [4, 7, 2]


def test_packed_rows_joined_into_one_by_hand():
    """The same two rows as of a kernel that learns where samples begin of one row alone: nothing is padding."""

    def packed(row):
        return {"position_ids": torch.cat([torch.arange(len(one.input_ids)) for one in row])[None]}

    look = LookRow(0, np.array([1]), np.array([[0.5]]), np.array([0]))
    batch = Collator(9, BLANK, packed=packed, one_row=True)(
        [
            [Sample(4, encoded([1, 2, 3], [1, 2, 3]), 1), Sample(7, encoded([5, 6], [5, 6], pictures=1), 0)],
            [Fault(5, "broken"), Sample(2, encoded([4, 8], [4, 8], pictures=1), 1, (look,))],
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 5, 6, 4, 8]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 6, -100, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]] and "attention_mask" not in batch
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [5.0, 4.0]
    about = batch["about"]
    assert about["sources"].tolist() == [[1, 1, 1, 0, 0, 1, 1]] and about["samples"].tolist() == [4, 7, 2]
    assert about["kept"].tolist() == [0, 1, 3, 5] and about["faults"] == {5: "broken"}
    # The sample begins at token 5, after one picture.
    assert about["look"]["sequences"].tolist() == [0] and about["look"]["positions"].tolist() == [[5]]
    assert about["look"]["tokens"].tolist() == [[6]] and about["look"]["images"].tolist() == [[1]]
    nothing = Collator(9, BLANK, packed=packed, one_row=True)([[Fault(3, "broken")]])
    assert nothing["input_ids"].tolist() == [[70, 71]] and nothing["position_ids"].tolist() == [[0, 1]]


def test_labels_are_the_content_of_the_answer_and_the_frames(processor, tmp_path: Path):
    turns = [{"from": "user", "value": "a<|im_end|>"}, {"from": "assistant", "value": "bc"}]
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"conversations": turns}]))
    sample = build(read(path, say=lambda _: None), processor, max_length=99)[0]
    ids, labels = sample.encoded.input_ids, sample.encoded.labels
    # <|im_end|> in a user's words is text: three turns have three ends.
    assert (ids == IM_END).sum() == 3 and (ids == IM_START).sum() == 3
    start, end = sample.encoded.turn_spans[1]
    assert labels[start:end].tolist() == ids[start:end].tolist() == [ord("b"), ord("c")]
    assert labels[start - len("assistant\n") : start].tolist() == [-100] * len("assistant\n")
    assert labels[end] == IM_END
    user_start, user_end = sample.encoded.turn_spans[0]
    assert (labels[user_start:user_end] == -100).all()


# --- what a model cannot read --------


def elongated(folder, bad=(1, 3)):
    """Five samples, some with a picture that Qwen's grids refuse."""
    for i in range(5):
        Image.new("RGB", (2000, 5) if i in bad else (50 + i, 31)).save(folder / f"{i}.png")
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}]
    records = [{"id": f"r{i}", "image": f"{i}.png", "messages": said} for i in range(5)]
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return read(folder / "data.json", workers=1, say=lambda _: None)


@pytest.mark.parametrize("again", [False, True])
def test_every_picture_that_the_model_refuses_is_named_at_once(tmp_path, again):
    tiny = GRIDS["qwen2-vl"]
    conversations = elongated(tmp_path)
    for _ in range(1 + again):  # counted, then kept
        with pytest.raises(ValueError) as caught:
            build(conversations, tiny.processor(tmp_path), family=tiny.family, max_length=999)
    message = str(caught.value)
    assert message.startswith("2 of 5 samples cannot be trained on with this model:\n  ")
    for name in ("record 1 (id 'r1'): image '1.png': found 2000 × 5", "record 3 (id 'r3'): image '3.png'"):
        assert name in message
    assert message.endswith("--on_bad_sample drop") and len(message.encode()) < 2000


def test_what_the_model_refuses_is_dropped_and_said(tmp_path):
    tiny, said = GRIDS["qwen2-vl"], []
    conversations = elongated(tmp_path)
    options = {"family": tiny.family, "max_length": 999, "on_bad_sample": "drop"}
    dataset = build(conversations, tiny.processor(tmp_path), say=said.append, **options)
    kept = [dataset.conversations[i].source[-4:-2] for i in range(len(dataset))]
    assert kept == ["r0", "r2", "r4"]
    assert [len(dataset[i].encoded.images) for i in range(3)] == [1, 1, 1]
    assert "2 of 5 samples" in said[0] and said[0].endswith("left out, as --on_bad_sample drop says")
    with pytest.raises(ValueError, match="no sample is left"):
        build(elongated(tmp_path, range(5)), tiny.processor(tmp_path), say=said.append, **options)
