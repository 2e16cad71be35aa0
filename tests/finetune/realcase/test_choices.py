"""Choosing among answers: likelihoods are those of whole sequences, and the mass is that of the answer's row."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import families
from finetune.families.parts.coverage import region_coverage, token_weights
from finetune.model import checkpoint
from finetune.realcase import assemble, choices, corpus
from finetune.realcase.choices import read_questions
from finetune.realcase.onnx_weights import read_onnx
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.realcase.parts_in_small import (
    HEAD_WIDTH,
    PIXELS,
    as_onnx,
    dinov2,
    drawn_pictures,
    language,
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tuple:
    folder: Path = tmp_path_factory.mktemp("choices")
    (folder / "tower.onnx").write_bytes(as_onnx(dinov2()))
    tower = assemble.read_tower(read_onnx(folder / "tower.onnx"), PIXELS, head_width=HEAD_WIDTH)
    assemble.save(*assemble.put_together(tower, language()), folder / "model")
    probes = corpus.write_probes(drawn_pictures(), folder / "held_out", corpus.held_out_plan(1))
    model, processor = checkpoint.load(folder / "model", attn_implementation="eager")
    return model.eval(), processor, read_questions(probes)


@torch.no_grad()
def whole(model, processor, question, answer):
    family = families.family_of(model.config)
    turns = (Turn("user", (ImageRef("x", question.image), "\n", question.text)), Turn("assistant", (answer,)))
    encoded = family.encode(processor, Conversation(turns))
    first, end = encoded.turn_spans[-1]
    ids = torch.from_numpy(encoded.input_ids)[None]
    out = model(input_ids=ids, **encoded.media, output_attentions=True)
    logits = out.logits[0, first - 1 : end].log_softmax(-1)
    return float(logits.gather(-1, ids[0, first : end + 1, None]).sum()), out.attentions, encoded, first


def test_the_likeliest_answer_is_chosen(opened):
    model, processor, questions = opened
    for question in (questions[0], questions[-1], next(one for one in questions if one.group == "on-both")):
        nats = [whole(model, processor, question, answer)[0] for answer in question.choices]
        chosen = choices.choose(model, processor, question)
        assert chosen.choice == int(np.argmax(nats)) and chosen.choices == len(question.choices)
        assert np.diff(np.sort(nats))[-1] > 1e-3  # else the test would say nothing


def test_mass_is_of_the_row_that_writes_the_answer(opened):
    model, processor, questions = opened
    question = next(one for one in questions if one.group == "side-both" and one.language == "en")
    _, attentions, encoded, first = whole(model, processor, question, question.choices[0])
    opening = question.choices[0].removesuffix(question.phrase)
    assert opening in ("Left: ", "Right: ")
    row_of_name = first + len(opening) - 1  # tokens are bytes; one row before the name's first
    image = encoded.images[0]
    assert image.tiles == (1, 2)  # so that the overview counts too
    row = attentions[1][0, :, row_of_name, image.all_positions]
    covered = torch.from_numpy(token_weights(region_coverage(question.boxes, image), image)).float()
    expected = ((row / row.sum(-1, keepdim=True)) @ covered).mean().item()
    chosen = choices.choose(model, processor, question)
    assert len(chosen.mass) == 2 and chosen.mass[1] == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 1


def test_an_answer_of_a_name_alone_is_written_by_the_prompts_last_row(opened):
    model, processor, questions = opened
    question = next(one for one in questions if one.group == "what-both")
    _, attentions, encoded, first = whole(model, processor, question, question.choices[0])
    row = attentions[0][0, :, first - 1, encoded.images[0].all_positions]
    covered = torch.from_numpy(region_coverage(question.boxes, encoded.images[0])).float()
    expected = ((row / row.sum(-1, keepdim=True)) @ covered).mean().item()
    assert choices.choose(model, processor, question).mass[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("nats", "choice"),
    [([-1.0, -2.0, -3.0], 0), ([-2.0, -1.0, -3.0], 1), ([-1.0, -1.0, -3.0], 1), ([-2.0, -2.0, -2.0], 2)],
)
def test_a_tie_is_not_right(opened, monkeypatch, nats, choice):
    model, processor, questions = opened
    question = next(one for one in questions if len(one.choices) >= 3)._replace(boxes=())
    monkeypatch.setattr(choices, "_answers_nats", lambda *_, **__: (torch.tensor(nats), None))
    assert choices.choose(model, processor, question).choice == choice


def test_numbers_that_are_not_finite_choose_nothing(opened, monkeypatch):
    model, processor, questions = opened
    question = questions[0]._replace(boxes=())
    monkeypatch.setattr(choices, "_answers_nats", lambda *_, **__: (torch.tensor([float("nan")] * 2), None))
    with pytest.raises(ValueError, match=f"question {question.identity}: found log probabilities .*nan"):
        choices.choose(model, processor, question)
