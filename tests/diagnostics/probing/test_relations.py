"""What ties two things together, against rows read by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.attention import enrichment
from diagnostics.measures.geometry import cells_from_row
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.probing.relations import (
    _sees_cells,
    ends_of,
    exchanged,
    key_vision_layers,
    noun_phrases,
    read_relation,
)
from diagnostics.records.probes import Relation
from finetune.families import family_of
from finetune.families.parts.coverage import region_coverage
from finetune.families.parts.phrases import find_span
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.diagnostics.tiny_qwen_vl import N_HEADS, N_LAYERS, tiny_model, tiny_probes, tiny_processor
from tests.finetune.families.tiny_llava import LLAVAS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("relations")


@pytest.fixture(scope="module")
def reader(folder):
    return ProbeEncoder(family_of(tiny_model().config), tiny_processor(folder))


@pytest.fixture(scope="module")
def probe(folder):
    return replace(
        tiny_probes(folder, 1)[0],
        question="Is the cat on the mat?",
        answer="on the mat",
        foil="under the mat",
        regions={"a": ((30.0, 8.0, 48.0, 26.0),), "b": ((0.0, 10.0, 15.0, 30.0),)},
        phrases={"cat": "a", "mat": "b"},
        relation=Relation("on", "a", "b"),
    )


def test_nouns_are_exchanged_in_question_and_answer(probe):
    turned = exchanged(probe)
    assert (turned.question, turned.answer) == ("Is the mat on the cat?", "on the cat")
    assert noun_phrases(turned) == ("cat", "mat")
    assert exchanged(replace(probe, phrases={"cat": "a"})) is None


@pytest.mark.parametrize(
    ("nouns", "question", "turned"),
    [
        (("cat", "table"), "Is the cat located on the table?", "Is the table located on the cat?"),
        (("car", "carpet"), "Is the car on the carpet?", "Is the carpet on the car?"),
        (("carpet", "car"), "Is the carpet under the car?", "Is the car under the carpet?"),
        (("woman", "man"), "Is the man on the woman's left?", "Is the woman on the man's left?"),
        (
            ("车", "车站"),
            "车在车站的左边吗?",
            "车站在车的左边吗?",
        ),  # no borders, and one begins with the other
        (("猫", "桌子"), "这只猫在桌子上吗?", "这只桌子在猫上吗?"),
    ],
)
def test_nouns_are_exchanged_as_whole_words(probe, nouns, question, turned):
    one = replace(
        probe, question=question, answer=question, phrases=dict(zip(nouns, ("a", "b"), strict=True))
    )
    found = exchanged(one)
    assert (found.question, found.answer) == (turned, turned)
    assert exchanged(found).question == question


def test_a_noun_that_is_only_a_part_of_words_is_not_exchanged(probe):
    assert exchanged(replace(probe, question="Are the cats on the mat?")) is None
    assert exchanged(replace(probe, question="Is it located there?", answer="the cat is on the mat")) is None
    turned = exchanged(replace(probe, question="Where is it?", answer="the cat is on the mat"))
    assert turned.answer == "the mat is on the cat"


def test_words_are_found_where_they_are_words(probe, reader):
    person = replace(probe, question="Does the person see the cat, or the mat?", answer="on the mat")
    encoded = reader.encode(person, person.answer)
    texts = reader.texts(encoded)
    ends = ends_of(person, noun_phrases(person), encoded, texts)
    assert ends.word is not None and ends.word >= encoded.turn_spans[-1][0]
    assert ends.nouns is not None
    assert ["".join(texts[i] for i in noun) for noun in ends.nouns] == ["cat", "mat"]
    tokens = list("a person on it")
    assert find_span("on", tokens, 0, len(tokens)) == range(9, 11)
    assert find_span("rson", tokens, 0, len(tokens)) is None
    assert find_span("x", tokens, 0, len(tokens)) is None


@torch.no_grad()
def test_readings_are_those_of_the_rows(probe, reader):
    model = tiny_model()
    found = read_relation(model, reader, probe)
    assert set(found) == {
        "phrase/subject", "phrase/object", "nouns", "nouns/swapped", "vision", "vision/control"}  # fmt: skip
    encoded = reader.encode(probe, probe.answer)
    texts = reader.texts(encoded)
    image = encoded.images[0]
    with AttentionExtractor(model, vision_layers=[0]) as extractor:
        model(input_ids=torch.from_numpy(encoded.input_ids)[None], pixel_values=encoded.media["pixel_values"])
        weights = extractor.attention_weights
    start, end = encoded.turn_spans[-1]
    word = find_span("on", texts, start, end)[-1]
    text = range(image.positions.max() + 1, encoded.turn_spans[-2][1])
    cat, mat = (find_span(noun, texts, text.start, text.stop) for noun in ("cat", "mat"))
    for layer in range(N_LAYERS):
        rows = weights[f"layer_{layer}"][0]
        cells = cells_from_row(rows[:, word], image, weights["visual_attn"][0].mean(0))
        for name, region in (("phrase/subject", "a"), ("phrase/object", "b")):
            expected = enrichment(cells, region_coverage(probe.regions[region], image))
            np.testing.assert_allclose(found[name][layer], expected, atol=1e-4)
        np.testing.assert_allclose(found["nouns"][layer], rows[:, mat[-1], list(cat)].sum(-1), atol=1e-5)
    assert found["nouns"].shape == found["nouns/swapped"].shape == (N_LAYERS, N_HEADS)
    assert not np.allclose(found["nouns"], found["nouns/swapped"], atol=1e-5)
    weight = region_coverage(probe.regions["a"], image)
    tower = np.einsum("hpc,p->hc", weights["vision_layer_0"][0], weight / weight.sum())
    expected = enrichment(tower, region_coverage(probe.regions["b"], image))
    np.testing.assert_allclose(found["vision"][0], expected, atol=1e-4)
    assert found["vision"].shape == found["vision/control"].shape
    assert not np.allclose(found["vision"], found["vision/control"], atol=1e-4)


def test_the_towers_patches_are_counted_by_the_processors_own_settings(tmp_path):
    """By the published bounds this picture would have 8 × 12 patches, other than it has cells."""
    tiny = LLAVAS["llava-onevision"]
    processor = tiny.processor(tmp_path)
    tiny.family.set_pixel_budget(processor, min_pixels=None, max_pixels=20 * 14)
    Image.new("RGB", (56, 28)).save(tmp_path / "a.png")
    asked = Turn("user", (ImageRef("a.png", tmp_path / "a.png"), "?"))
    (image,) = tiny.family.encode(processor, Conversation((asked, Turn("assistant", ("a",))))).images
    assert image.grid == (4, 8) and _sees_cells(tiny.model(), ProbeEncoder(tiny.family, processor), image)


def test_what_cannot_be_read_is_left_out(probe, reader):
    found = read_relation(
        tiny_model(), reader, replace(probe, phrases={}, relation=Relation("above", "a", "b"))
    )
    assert set(found) == {"vision", "vision/control"}


def test_key_vision_layers_are_spread_evenly():
    assert key_vision_layers(48) == (12, 24, 36, 47) and key_vision_layers(2) == (0, 1)
