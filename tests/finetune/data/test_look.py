"""Supervised rows of every family: each look at the tokens of its own words, whatever the family writes around them."""

import json

import pytest
from PIL import Image

from finetune.data.dataset import build_dataset
from finetune.data.look import placed
from finetune.families.parts.phrases import token_texts
from finetune.samples.source import read
from finetune.training import look_preview
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_siglip import SIGLIPS

FAMILIES = {**ALL, **LLAVAS, **SIGLIPS}
FIRST, SECOND = "<box>(122,202),(502,902)</box>", "<box>(502,302),(922,722)</box>"
CAT = "<ref>cat</ref>"


@pytest.fixture(scope="module", params=[*FAMILIES])
def rows(request, tmp_path_factory):
    """Function: of an answer, the text that its tokens give, and for each supervised row x0 of its box and where in the
    text the written token lies."""
    folder = tmp_path_factory.mktemp(request.param.replace("/", "-"))
    family, processor = FAMILIES[request.param].family, FAMILIES[request.param].processor(folder)
    Image.new("RGB", (50, 40)).save(folder / "a.png")

    def tokens(answer, *, supervised="first", **more):
        """The texts of the answer's tokens, and of each supervised row x0 of its box and the token that it writes."""
        said = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": answer, **more}]
        (folder / "data.json").write_text(json.dumps([{"messages": said, "images": ["a.png"]}]))
        (conversation,) = read(folder / "data.json", say=lambda _: None)
        encoded = family.encode(processor, conversation, media=False)
        start, end = encoded.turn_spans[-1]
        texts = token_texts(processor.tokenizer, encoded.input_ids[start:end].tolist())
        return texts, [
            (one.look.ends[0][0][0], one.row + 1 - start)
            for one in placed(conversation, encoded, processor, supervised)
        ]

    def found(answer, **more):
        texts, rows = tokens(answer, **more)
        return "".join(texts), [
            (left, range(len("".join(texts[:token])), len("".join(texts[: token + 1]))))
            for left, token in rows
        ]

    found.tokens = tokens
    return found


def all_of(word, text):
    """Where a word begins in a text, each time."""
    return [at for at in range(len(text)) if text.startswith(word, at)]


def test_each_phrase_of_markup_is_its_own(rows):
    text, found = rows(f"The cat sees {CAT}{FIRST} and {CAT}{SECOND}, a cat.")
    before, first, second, behind = all_of("cat", text)
    assert [left for left, _ in found] == [0.122, 0.502]
    assert first in found[0][1] and second in found[1][1]


def test_white_space_at_the_ends_that_a_template_trims_is_no_fault(rows):
    """Gemma 3's does, so its tokens lack it."""
    text, found = rows(f"\nThe {CAT}{FIRST} is here. \n")
    bare, same = rows(f"The {CAT}{FIRST} is here.")
    [(left, at)] = found
    [(_, at_bare)] = same
    assert left == 0.122 and text[at.start : at.stop].strip() == bare[at_bare.start : at_bare.stop].strip()
    assert rows(f"{CAT}{FIRST}\n")[1]


def test_a_phrase_of_several_boxes_does_not_take_the_next_ones_place(rows):
    text, found = rows(f"{CAT}{FIRST}{SECOND}, {CAT}{SECOND}")
    places = all_of("cat", text)
    assert len(places) in (2, 3)  # a family writes it once, or with each box
    assert places[0] in found[0][1] and places[-1] in found[1][1]


def test_a_number_is_not_looked_for_among_the_numbers_of_a_box(rows):
    look_at = [{"phrase": "2", "boxes": [[5, 0, 20, 20]]}]
    text, found = rows(f"{CAT}{FIRST} 2 cats", look_at=look_at)
    assert [text.rindex("2 cats") in place for _, place in found] == [True]


def test_a_phrase_in_quotes_is_found_where_json_escapes_them(rows):
    text, found = rows(f'I see <ref>the "big" cat</ref>{FIRST}')
    assert [text.rindex("the") in place for _, place in found] == [True]
    text, found = rows(f'I see <ref>the "big" cat</ref>{FIRST}', supervised="phrase")
    written = {at for _, place in found for at in place}
    assert written >= {*range(text.rindex("the"), text.rindex(" cat") + 4)}


def test_words_and_a_phrase_of_markup_are_supervised_without_what_is_between(rows):
    text, found = rows(
        f"two {CAT}{FIRST}s", supervised="phrase", look_at=[{"phrase": "two cats", "boxes": [[5, 0, 20, 20]]}]
    )
    written = {at for _, place in found for at in place}
    assert written >= {*range(text.index("two"), 3), text.rindex("cat"), len(text) - 1}
    assert (
        not {at for at in all_of("2", text) if at < text.rindex("cat") or at > text.rindex("cat") + 6}
        & written
    )


def test_entries_of_one_phrase_are_at_its_occurrences(rows):
    look_at = [{"phrase": "cat", "boxes": [[left, 0, 40, 20]]} for left in (5, 20)]
    text, found = rows("a cat and a cat", look_at=look_at)
    assert [(left, at in place) for (left, place), at in zip(found, all_of("cat", text), strict=True)] == [
        (0.1, True),
        (0.4, True),
    ]


@pytest.mark.parametrize("before", ["", "It is "])
def test_a_phrase_begins_at_the_first_bytes_of_its_first_character(rows, before):
    """Of a character of several tokens the last has its text; the row that decides is the one that writes the first."""
    look_at = [{"phrase": "鹳雀楼", "boxes": [[5, 0, 20, 20]]}]
    texts, ((_, first),) = rows.tokens(f"{before}鹳雀楼.", look_at=look_at)
    start = "".join(texts).index("鹳")
    assert first == next(at for at in range(len(texts)) if len("".join(texts[:at])) == start)
    _, phrase = rows.tokens(f"{before}鹳雀楼.", supervised="phrase", look_at=look_at)
    written = [token for _, token in phrase]
    assert written == [*range(first, first + len(written))]
    assert "".join(texts[token] for token in written).startswith("鹳雀楼")


@pytest.mark.parametrize("supervised", ["first", "phrase"])
def test_two_phrases_that_begin_in_one_token_would_teach_one_row_two_places(tmp_path, supervised):
    """左右 is one token of published tokenizers; 左、右 are several."""
    tiny = FAMILIES["gemma3"]
    processor = tiny.processor(tmp_path)
    processor.tokenizer.add_tokens(["左右"])
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    looks = [{"phrase": one, "boxes": [[at, 0, at + 20, 40]]} for one, at in (("左", 0), ("右", 30))]

    def rows(answer):
        turns = [
            {"role": "user", "content": "<image>?"},
            {"role": "assistant", "content": answer, "look_at": looks},
        ]
        (tmp_path / "data.json").write_text(json.dumps([{"messages": turns, "images": ["a.png"]}]))
        made = build_dataset(
            read(tmp_path / "data.json", say=lambda _: None), processor, tiny.family, max_length=500,
            on_bad_sample="error", look=supervised, say=lambda _: None,
        )  # fmt: skip
        return sum(look_preview.count_rows(made).rows.values())

    assert rows("左、右") == (2 if supervised == "first" else 6)  # each a token for each of its bytes
    with pytest.raises(ValueError, match=r"data\.json.*record 0: look_at: found the phrases '左' and '右', which begin "
                       "in one token of this model's tokenizer, '左右'"):  # fmt: skip
        rows("左右")
