"""Margins with something hidden, in every family (fp64): those of whole sequences, read one by one without a cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.margins import Margins, ScoredInput, reads_pictures_first
from diagnostics.probing.prompts import ProbeEncoder, padded, scored_span
from diagnostics.records.probes import Probe
from finetune.families.base import reads_prompts_whole
from finetune.families.parts.modules import attending_layers
from tests.diagnostics.probing.test_reading import FAMILIES, in_fp64, inputs_of, wide
from tests.finetune.families.test_contract import picture

BATCH = 2
TRAILING = {"llava-1.5", "llava-next", "llava-onevision"}
"""A wide picture's last cell is not its last token: padding or a newline follows, which a knock-out hides from too."""


@pytest.fixture(scope="module", params=[*FAMILIES])
def case(request, tmp_path_factory):
    tiny, folder = FAMILIES[request.param], tmp_path_factory.mktemp("margins")
    model, images = in_fp64(request.param), []
    for number, size in enumerate([(60, 33), (29, 70)]):
        images.append(folder / f"{number}.png")
        picture(*size, number).save(images[-1])
    encoder = ProbeEncoder(tiny.family, tiny.processor(folder))
    one = encoder.read(Probe("a", "g", tuple(images[:1]), "what is it?", "the cat", "the dogs there"))
    two = encoder.read(Probe("b", "g", tuple(images), "what?", "pearl", "canton"))
    return model, tiny.family, one, two, request.param


def hidden(asked, model, family):
    """Token knock-outs everywhere and in windows; the probe as it is; and a token that nothing sees."""
    last = attending_layers(model, family)[-1]
    places = asked.answer.images[0].all_positions
    return [
        ScoredInput(asked.answer, tokens=places[:2]),
        ScoredInput(asked.answer),
        ScoredInput(asked.answer, tokens=places[-3:]),
        ScoredInput(asked.answer, tokens=places[:3], layers=(last, last)),
        ScoredInput(asked.answer, dropped=places[:1], layers=(0, last)),
        ScoredInput(asked.answer, tokens=places[1:3], layers=(0, last)),
    ]


def by_hand(model, family, asked, case):
    """log p(answer) − log p(foil), each sequence read whole with its mask written out."""
    nats = []
    for one in (asked.answer, asked.foil):
        start, end = scored_span(one)
        count = len(one.input_ids)
        with torch.no_grad(), AttentionExtractor(model, [], connector=False, family=family) as extractor:
            blocked = torch.zeros(1, count, count, dtype=torch.bool)
            first, last = case.layers or (0, 10**6)
            if case.tokens is not None:
                behind = int(one.images[0].all_positions.max()) + 1
                blocked[0, asked.parted - 1 if case.layers else behind :, torch.from_numpy(case.tokens)] = (
                    True
                )
            if case.dropped is not None:
                blocked[0][:, torch.from_numpy(case.dropped)] = True
                blocked[0].fill_diagonal_(False)
            names = [name for name in extractor.language_names if first <= int(name.split("_")[1]) <= last]
            with extractor.knocked_out(dict.fromkeys(names, blocked)):
                logits = model(**inputs_of(one), use_cache=False).logits[0].log_softmax(-1)
        nats.append(sum(float(logits[at - 1, one.input_ids[at]]) for at in range(start, end)))
    return nats[0] - nats[1]


def nats_in_fp64(logits, tokens):
    return logits.log_softmax(-1).gather(1, tokens[:, None]).sum()


def counted(model, family, asked, cases, monkeypatch):
    """The margins, and how many sequences were read from their start."""
    started = 0
    monkeypatch.setattr(
        "diagnostics.probing.margins.padded", lambda *given, **options: wide(padded(*given, **options))
    )
    monkeypatch.setattr("diagnostics.probing.margins.summed_nats", nats_in_fp64)

    def count(_, arguments, options):
        nonlocal started
        started += len(options["input_ids"]) if options.get("past_key_values") is None else 0

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    with torch.no_grad(), AttentionExtractor(model, [], connector=False, family=family) as extractor:
        margins = Margins(model, extractor, batch_size=BATCH).read(asked, cases)
    hook.remove()
    return margins, started


def compared(model, family, asked, monkeypatch):
    """The same, for every way of hiding, once they are found equal to those by hand."""
    cases = hidden(asked, model, family)
    margins, started = counted(model, family, asked, cases, monkeypatch)
    expected = [by_hand(model, family, asked, one) for one in cases]
    np.testing.assert_allclose(margins, expected, rtol=0, atol=1e-5)
    return margins, started


def test_margins_are_those_of_whole_sequences(case, monkeypatch):
    model, family, asked, _, name = case
    margins, started = compared(model, family, asked, monkeypatch)
    assert len({round(one, 4) for one in margins}) == 6
    if reads_prompts_whole(family):
        assert started == 6
    else:
        assert started == (4 + 1 if name in TRAILING else 2 + 1)
    assert reads_pictures_first(family, asked.answer) == (started == 3)


def test_a_second_picture_sees_less_of_the_first(case, monkeypatch):
    """Then only windows at the answer go on from the pictures."""
    model, family, _, asked, _ = case
    _, started = compared(model, family, asked, monkeypatch)
    assert started == (6 if reads_prompts_whole(family) else 4 + 1)


def test_nothing_lies_between_a_picture_and_its_answer_but_marks(case, tmp_path, monkeypatch):
    """A question that ends with its picture."""
    model, family, asked, _, name = case
    processor = FAMILIES[name].processor(tmp_path)
    probe = replace(asked.probe, question="what is it? <image>", phrases={})
    asked = ProbeEncoder(family, processor).read(probe)
    compared(model, family, asked, monkeypatch)
