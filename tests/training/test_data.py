import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.checkpoint import load_processor
from finetune.conversation import Conversation, Turn, read_qwen_vl
from finetune.data import Collator, Sample, build_dataset, count_tokens, show_sample
from finetune.families.base import Encoded
from finetune.families.qwen_vl import QwenVLFamily
from tests.training.conftest import IMAGE_START_ID, N_QUERIES

FAMILY = QwenVLFamily()
IM_START, IM_END = 257, 258


@pytest.fixture(scope="module")
def processor(checkpoint_folder: Path):
    return load_processor(checkpoint_folder)


@pytest.fixture(scope="module")
def conversations(data_file: Path) -> list[Conversation]:
    return read_qwen_vl(data_file)


def encoded(ids: list[int], labels: list[int], pictures: int = 0) -> Encoded:
    media = {"pixel_values": torch.full((pictures, 3, 2, 5), float(ids[0]))} if pictures else {}
    return Encoded(np.array(ids), np.array(labels), ((0, len(ids)),), (), media)


def test_lengths_are_counted_without_opening_a_picture(
    processor, data_file: Path, monkeypatch: pytest.MonkeyPatch
):
    conversations = read_qwen_vl(data_file)[:3]
    monkeypatch.setattr(QwenVLFamily, "load_image", lambda *_: pytest.fail("a picture was opened"))
    # By hand, one token a byte: 2 of frame and the newline a turn, and the newline after the role.
    system = 3 + len("system\n") + len("You are a helpful assistant.")
    user = 3 + len("user\n") + len("Picture 1: ") + 2 + N_QUERIES + len("\nwhat?")
    assistant = 3 + len("assistant\n") + len("yes yes ")
    text_only = system + 3 + len("user\nsay it") + 3 + len("assistant\nyes ")
    assert count_tokens(conversations, processor, FAMILY)[:2] == [text_only, system + user + assistant]


def test_items_are_as_long_as_counted_and_hold_their_picture(processor, conversations):
    dataset = build_dataset(conversations, processor, FAMILY, max_length=200, on_bad_sample="error")
    assert len(dataset) == len(conversations) == 12
    sample = dataset[1]
    assert sample.number == 1
    assert len(sample.encoded.input_ids) == dataset.lengths[1]
    assert sample.encoded.media["pixel_values"].shape == (1, 3, 12, 12)
    start = sample.encoded.input_ids.tolist().index(IMAGE_START_ID)
    assert sample.encoded.input_ids[start + N_QUERIES + 1] == IMAGE_START_ID + 1


def test_too_long_samples_are_an_error_that_counts_and_names_them(processor, conversations):
    lengths = count_tokens(conversations, processor, FAMILY)
    limit = sorted(lengths)[-3]
    names = [c.source for c, length in zip(conversations, lengths, strict=True) if length > limit]
    with pytest.raises(ValueError) as caught:
        build_dataset(conversations, processor, FAMILY, max_length=limit, on_bad_sample="error")
    message = str(caught.value)
    assert f"{len(names)} of 12 samples are over --model_max_length {limit}" in message
    assert "--on_bad_sample drop" in message
    assert all(f"{name}: " in message for name in names)


def test_too_long_samples_are_dropped_whole_and_said(processor, conversations):
    lengths = count_tokens(conversations, processor, FAMILY)
    limit = sorted(lengths)[-3]
    said: list[str] = []
    dataset = build_dataset(
        conversations, processor, FAMILY, max_length=limit, on_bad_sample="drop", say=said.append
    )
    assert dataset.lengths == [length for length in lengths if length <= limit]
    assert len(said) == 1 and "left out" in said[0]
    for i, length in enumerate(dataset.lengths):  # nothing is cut
        assert len(dataset[i].encoded.input_ids) == length


def test_dropping_every_sample_is_an_error(processor, conversations):
    with pytest.raises(ValueError, match=r"no sample is left: all 12 are over --model_max_length 9"):
        build_dataset(
            conversations, processor, FAMILY, max_length=9, on_bad_sample="drop", say=lambda _: None
        )


def test_a_sample_without_a_token_to_learn_is_named(processor):
    class Silent(QwenVLFamily):
        def encode(self, *args, **kwargs) -> Encoded:
            full = super().encode(*args, **kwargs)
            return Encoded(full.input_ids, np.full_like(full.labels, -100), full.turn_spans)

    conversation = Conversation((Turn("user", ("hi",)), Turn("assistant", ("ho",))), "file.json: record 4")
    with pytest.raises(ValueError, match=r"(?s)1 of 1 samples have no token to learn:.*file\.json: record 4"):
        count_tokens([conversation], processor, Silent())


def test_a_batch_is_padded_on_the_right_to_its_longest_sample():
    batch = Collator(pad_id=9)(
        [
            Sample(4, encoded([1, 2, 9], [1, -100, 9])),
            Sample(7, encoded([5, 6, 7, 8, 3], [5, -100, 7, -100, 3], pictures=2)),
            Sample(2, encoded([4, 4], [4, 4], pictures=1)),
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
    assert batch["sample_indices"].tolist() == [4, 7, 2]


def test_a_batch_of_text_has_no_media():
    assert "pixel_values" not in Collator(pad_id=0)([Sample(0, encoded([1, 2], [1, 2]))])


def test_labels_are_the_content_of_the_answer_and_the_frames(processor, tmp_path: Path):
    turns = [{"from": "user", "value": "a<|im_end|>"}, {"from": "assistant", "value": "bc"}]
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"conversations": turns}]))
    sample = build_dataset(read_qwen_vl(path), processor, FAMILY, max_length=99, on_bad_sample="error")[0]
    ids, labels = sample.encoded.input_ids, sample.encoded.labels
    # <|im_end|> in a user's words is text: three turns have three ends.
    assert (ids == IM_END).sum() == 3 and (ids == IM_START).sum() == 3
    start, end = sample.encoded.turn_spans[1]
    assert labels[start:end].tolist() == ids[start:end].tolist() == [ord("b"), ord("c")]
    assert labels[start - len("assistant\n") : start].tolist() == [-100] * len("assistant\n")
    assert labels[end] == IM_END
    user_start, user_end = sample.encoded.turn_spans[0]
    assert (labels[user_start:user_end] == -100).all()


def test_a_sample_is_shown_with_its_labels(processor, conversations):
    dataset = build_dataset(conversations, processor, FAMILY, max_length=200, on_bad_sample="error")
    shown = show_sample(dataset[0], processor)
    assert shown.splitlines()[0] == f"sample 0: {dataset.lengths[0]} tokens, 13 supervised, 0 images"
    assert "  train | yes <|im_end|>⏎" in shown
    assert "        | user⏎say it" in shown
