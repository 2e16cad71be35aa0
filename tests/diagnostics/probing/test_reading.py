"""Prompts that are read once, in every family (fp64): what whole sequences give, read one by one without a cache."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.probing.prompts import ProbeEncoder, padded, scored_span
from diagnostics.probing.reading import PromptReader, alike
from diagnostics.records.probes import Probe
from finetune.families.parts.modules import attending_layers
from tests.finetune.families.test_contract import picture
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

FAMILIES = {**ALL, **HYBRIDS, **LLAVAS, **SIGLIPS}
NEW = 3


def probes(folder):
    """Two whose prompts are equally long, and that part at the first token and later; one with two pictures."""
    images = []
    for number, (width, height) in enumerate([(60, 33), (60, 33), (29, 70)]):
        images.append(folder / f"{number}.png")
        picture(width, height, number).save(images[-1])
    box = {"disc": ((4.0, 4.0, 20.0, 24.0),)}
    return [
        Probe("a", "g", (images[0],), "what?", "pearl", "canton", regions=box, phrases={"pearl": "disc"}),
        Probe("b", "g", (images[2], images[1]), "what is it?", "pearl", None),
        Probe("c", "g", (images[1],), "what?", "the cat", "the dogs", regions=box, phrases={"what": "disc"}),
    ]


def in_fp64(name):
    """A family's small model, the same each time."""
    torch.manual_seed(0)
    model = FAMILIES[name].model().double().eval()
    if "moe" in name:
        model.set_experts_implementation("eager")  # the grouped product knows no fp64
    return model


@pytest.fixture(scope="module", params=[*FAMILIES])
def case(request, tmp_path_factory):
    tiny, folder = FAMILIES[request.param], tmp_path_factory.mktemp("reading")
    model = in_fp64(request.param)
    processor = tiny.processor(folder)
    encoder = ProbeEncoder(tiny.family, processor)
    return model, tiny.family, processor, [encoder.read(one) for one in probes(folder)]


def wide(batch):
    """Media as the model in fp64 takes them."""
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def inputs_of(encoded):
    return wide(padded([encoded], torch.device("cpu"), left=False))


@torch.no_grad()
def nats(model, encoded):
    start, end = scored_span(encoded)
    logits = model(**inputs_of(encoded), use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logits[at - 1, encoded.input_ids[at]]) for at in range(start, end))


def test_what_is_read_is_that_of_whole_sequences(case, monkeypatch):
    model, family, processor, asked = case
    monkeypatch.setattr(
        "diagnostics.probing.reading.padded", lambda *given, **options: wide(padded(*given, **options))
    )
    layers = attending_layers(model, family)[:1]
    reader = PromptReader(model, family, processor, key_layers=layers, max_new_tokens=NEW)
    batches = [*alike(asked, 2)]
    assert batches == [[0, 2], [1]]
    with torch.no_grad(), AttentionExtractor(model, family=family) as extractor:
        read = {}
        for batch in batches:
            read |= zip(batch, reader.read(extractor, [asked[at] for at in batch]), strict=True)
    for at, one in enumerate(asked):
        found = read[at]
        assert found.answer_nats == pytest.approx(nats(model, one.answer), abs=1e-5)
        if one.foil is None:
            assert found.foil_nats is None
        else:
            assert found.foil_nats == pytest.approx(nats(model, one.foil), abs=1e-5)
        check_rows(model, family, one, found, layers)
        check_reply(model, reader, one, found)
    assert asked[0].queries[1].position > asked[0].queries[0].position  # a row of the answer's own tokens
    assert asked[2].queries[0].position >= asked[2].answer.turn_spans[-1][0]  # parted behind "the "


def check_rows(model, family, one, found, layers):
    with (
        torch.no_grad(),
        AttentionExtractor(model, family=family) as extractor,
        HiddenStates(model, layers, family=family) as states,
    ):
        model(**inputs_of(one.answer), use_cache=False)
        weights, highest = extractor.attention_weights, extractor.highest_logits
    places = [query.position for query in one.queries]
    rows = np.stack([weights[name][0][:, places] for name in extractor.language_names])
    np.testing.assert_allclose(found.rows, rows, atol=1e-6)
    logits = np.stack([highest[name][0, :, places[0]] for name in extractor.language_names])
    np.testing.assert_allclose(found.highest_logit, logits, rtol=1e-5, atol=1e-5)
    for name, hidden in states.hidden_states.items():
        np.testing.assert_allclose(found.hidden[name], hidden[0], rtol=1e-5, atol=1e-5)
    connector = weights["visual_attn"].mean(1) if "visual_attn" in weights else ()
    assert len(found.connector) == len(connector)
    for mine, theirs in zip(found.connector, connector, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def check_reply(model, reader, one, found):
    """Greedy, each token from the whole sequence so far."""
    start = one.answer.turn_spans[-1][0]
    ids: list[int] = one.answer.input_ids[:start].tolist()
    said: list[int] = []
    while len(said) < NEW and (not said or said[-1] not in reader.stops):
        whole = extended(one.answer, ids + said)
        with torch.no_grad():
            logits = model(**inputs_of(whole), use_cache=False).logits
        said.append(int(logits[0, -1].argmax()))
    assert found.reply == reader._decoded(said)


def extended(encoded, ids):
    """Another reply behind the same prompt, its tokens marked as the reply's first one is."""
    start = encoded.turn_spans[-1][0]
    per_token = {
        name: np.concatenate([values[:start], np.full(len(ids) - start, values[start])])
        for name, values in encoded.per_token.items()
    }
    return replace(encoded, input_ids=np.array(ids), per_token=per_token)


def test_batches_keep_their_order_and_their_limit(case):
    *_, asked = case
    assert [*alike(asked, 1)] == [[0], [2], [1]]
    assert all(one < other for batch in alike(asked, 2) for one, other in pairwise(batch))
