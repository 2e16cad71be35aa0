"""The small vocabulary: Qwen's file format, and a token for each word of the demo."""

import base64

import pytest
import tiktoken

from finetune.demo.vocabulary import byte_order, demo_ranks, learn_ranks, write_ranks
from finetune.qwen_vl.tokenization import SPLIT_PATTERN, QwenVLTokenizer


@pytest.fixture(scope="module")
def encoding():
    ranks = {token: rank for rank, token in enumerate(demo_ranks())}
    return tiktoken.Encoding("demo", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})


def test_merges_are_learned_by_frequency():
    ranks = learn_ranks(["abab", "abc", "c|ab"])
    assert ranks[:256] == byte_order()
    # ab stands there 4 times; then ab+c and ab+ab once each, the greater bytes first
    assert ranks[256:] == [b"ab", b"abc", b"abab"]


def test_bytes_come_first_in_the_order_of_the_published_file():
    order = byte_order()
    assert (
        order[:3] == [b"!", b'"', b"#"]
        and order[188] == b"\x00"
        and order[220] == b" "
        and order[198] == b"\n"
    )
    assert sorted(order) == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("这座塔是什么?", ["这座", "塔", "是", "什么", "?"]),
        ("东方明珠", ["东方明珠"]),
        ("桌子上面", ["桌子", "上面"]),
        ("What is this tower?", ["What", " is", " this", " tower", "?"]),
        ("Oriental Pearl", ["Oriental", " Pearl"]),
        ("You are a helpful assistant.", ["You", " are", " a", " helpful", " assistant", "."]),
    ],
)
def test_words_are_tokens(encoding, text, pieces):
    assert [encoding.decode([token]) for token in encoding.encode_ordinary(text)] == pieces


def test_any_text_survives(encoding):
    text = "Ünknown wörds, 漢字 🐈\r\n\x00"
    assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_the_file_is_read_by_the_tokenizer(tmp_path):
    path = tmp_path / "qwen.tiktoken"
    ranks = demo_ranks()
    write_ranks(ranks, path)
    lines = path.read_bytes().splitlines()
    assert lines[256].split()[1] == b"256" and base64.b64decode(lines[256].split()[0]) == ranks[256]
    tokenizer = QwenVLTokenizer(str(path), image_tokens=49)
    assert tokenizer.img_start_id == len(ranks) + 214
    assert len(tokenizer) == len(ranks) + 217
    assert [p.name for p in tmp_path.iterdir()] == ["qwen.tiktoken"]
