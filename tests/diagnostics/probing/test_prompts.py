"""Probes as tokens: over which of them log probabilities are summed, and where answer and foil part."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prober import Prober, auto_key_layers
from diagnostics.probing.prompts import ProbeEncoder, forget_positions, parted, queries, scored_span
from diagnostics.probing.regions import region_tokens
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import Probe
from finetune.families import family_of
from finetune.samples.conversation import Conversation, Turn
from tests.diagnostics.fusion.test_program import some_probes
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes, tiny_processor
from tests.finetune.families.parts.test_picture_order import FIRST
from tests.finetune.families.test_contract import FAMILIES
from tests.finetune.families.tiny_families import ALL

SCORED = {
    "qwen-vl": "Canton Tower<|im_end|>",
    "qwen2-vl": "Canton Tower<|im_end|>",
    "qwen2.5-vl": "Canton Tower<|im_end|>",
    "qwen3-vl": "Canton Tower<|im_end|>",
    "qwen3-vl-moe": "Canton Tower<|im_end|>",
    "qwen3.5": "Canton Tower<|im_end|>",
    "qwen3.5-moe": "Canton Tower<|im_end|>",
    "llava-1.5": "Canton Tower</s>",
    "llava-next": "Canton Tower</s>",
    "llava-onevision": "Canton Tower<|im_end|>",
    "internvl": "Canton Tower<|im_end|>",
    "gemma3": "Canton Tower<end_of_turn>",
    "idefics3": " Canton Tower<end_of_utterance>",
    "smolvlm": " Canton Tower<end_of_utterance>",
    "paligemma": "Canton Tower<eos>",
    "paligemma2": "Canton Tower<eos>",
    "invented": "Canton Tower<|end|>",
}


def encoded(tiny, processor, reply):
    return tiny.family.encode(
        processor, Conversation((Turn("user", ("Which?",)), Turn("assistant", (reply,))))
    )


@pytest.mark.parametrize("name", SCORED)
def test_every_family_s_replies_are_scored_through_the_token_that_ends_them(name, tmp_path):
    tiny = FAMILIES[name]
    processor = tiny.processor(tmp_path)
    read = processor.tokenizer.decode
    answer, longer = (encoded(tiny, processor, reply) for reply in ("Canton Tower", "Canton Tower 宝塔"))
    start, end = scored_span(answer)
    assert read(answer.input_ids[start:end].tolist()) == SCORED[name]
    assert answer.input_ids[end - 1] in tiny.family.stop_token_ids(processor)
    assert answer.labels[start:end].tolist() == answer.input_ids[start:end].tolist()
    # one reply begins the other: they part where the shorter one ends
    assert parted(answer, longer) == parted(longer, answer) == end - 1
    with pytest.raises(ValueError, match="answer and foil have the same tokens"):
        parted(answer, answer)


def test_no_family_is_left_out():
    assert {*SCORED} == {*FAMILIES}


@pytest.mark.parametrize("name", SCORED)
def test_no_positions_of_an_earlier_prompt_are_left_in_any_module(name):
    model = FAMILIES[name].model()
    keeping = [module for module in model.modules() if hasattr(module, "rope_deltas")]
    assert bool(keeping) == name.startswith(("qwen2", "qwen3"))
    for module in keeping:
        module.rope_deltas = torch.tensor([[3]])
    forget_positions(model)
    assert all(module.rope_deltas is None for module in keeping)


INSTALLED_ONCE = ("_forward_hooks", "_output_capturing_hooks_installed")
"""What transformers puts into a tower at its first request of hidden states, idle until the next."""


def remembered(model):
    """(module, attribute) → its value, tensors as lists."""
    found = {}
    for name, module in model.named_modules():
        for key, value in (vars(module) | module._buffers).items():
            if key not in ("_parameters", "_modules", "_buffers", *INSTALLED_ONCE):
                found[name, key] = value.tolist() if isinstance(value, torch.Tensor) else repr(value)
    return found


@pytest.mark.parametrize("name", SCORED)
def test_probing_leaves_nothing_in_any_module(name, tmp_path):
    tiny = FAMILIES[name]
    model = tiny.model().train()
    Image.new("RGB", (60, 33), "navy").save(tmp_path / "p.png")
    probe = Probe(
        id="p", group="t", images=(tmp_path / "p.png",), question="what?", answer="pearl", foil="tower",
        regions={"disc": ((4.0, 4.0, 20.0, 24.0),)},
    )  # fmt: skip
    before = remembered(model)
    last = auto_key_layers(model, tiny.family)[-1:]
    prober = Prober(model, tiny.processor(tmp_path), key_layers=last, probes=[probe], family=tiny.family)
    prober.self_check()
    prober.run_all(0, "tiny")
    assert remembered(model) == before


@pytest.mark.parametrize(
    ("cut", "found"), [(0, "nothing"), (1, "a token that is not trained on")], ids=["nothing", "not trained"]
)
def test_a_reply_without_an_end_is_an_error(cut, found, tmp_path):
    tiny = FAMILIES["llava-1.5"]
    whole = encoded(tiny, tiny.processor(tmp_path), "Canton Tower")
    end = whole.turn_spans[-1][1] + cut
    labels = np.where(np.arange(len(whole.labels)) < whole.turn_spans[-1][1], whole.labels, -100)
    with pytest.raises(ValueError, match=f"found {found} after the last reply; expected the token that ends"):
        scored_span(replace(whole, input_ids=whole.input_ids[:end], labels=labels[:end]))


@pytest.fixture(scope="module")
def asked(model, processor, folder):
    """An answer that begins its foil, which is 8 tokens longer (bytes)."""
    probe = replace(tiny_probes(folder, 1)[0], answer="宝塔", foil="宝塔山顶上的", phrases={})
    return ProbeEncoder(family_of(model.config), processor).read(probe)


def test_the_answer_query_of_an_answer_that_begins_its_foil_predicts_its_end(asked):
    end = asked.answer.turn_spans[-1][1]
    assert asked.queries[0] == (end - 1, "answer", "<|im_end|>") and asked.parted == end
    assert queries(asked.probe, asked.foil, asked.answer, asked.tokens + ("",) * 9)[0].position == end - 1


@torch.no_grad()
def test_a_knock_out_holds_through_the_end_of_a_foil_that_is_longer_than_the_answer(model, processor, asked):
    """Against whole sequences, without a cache."""
    probe, image = asked.probe, asked.answer.images[0]
    depth = replace(QUICK, generate=False, controls=1, windows=True)
    record = Prober(model, processor, key_layers=[2], probes=[probe], depth=depth).run(probe, 0, "tiny")
    (found,) = (one for one in record.interventions if one.layers == (2, 2))
    boxes = probe.regions[probe.main_region]
    cut = torch.from_numpy(region_tokens(image, boxes, record.connector[0]))
    nats = []
    for one in (asked.answer, asked.foil):
        ids = torch.from_numpy(one.input_ids)[None]
        mask = torch.zeros(1, ids.shape[1], ids.shape[1], dtype=torch.bool)
        mask[:, asked.parted - 1 :, cut] = True
        with AttentionExtractor(model, []) as extractor, extractor.knocked_out({"layer_2": mask}):
            logits = model(input_ids=ids, pixel_values=one.media["pixel_values"]).logits[0].log_softmax(-1)
        start, end = scored_span(one)
        nats.append(sum(float(logits[at - 1, ids[0, at]]) for at in range(start, end)))
    assert len(asked.foil.input_ids) > len(asked.answer.input_ids) + 8
    assert found.margin_nats == pytest.approx(nats[0] - nats[1], abs=1e-4)


def test_a_generated_answer_has_room_for_the_longest_spelling_and_the_foil(model, processor, folder):
    """Bytes are tokens here: 东方明珠塔顶 has 18, the foil 4."""
    probe = replace(tiny_probes(folder, 1)[0], answer="东方", foil="none", phrases={})
    several = replace(probe, spellings=("东方", "东方明珠塔顶"))
    prober = Prober(model, processor, key_layers=[0], probes=[probe], depth=QUICK)
    assert prober.max_new_tokens == 16
    prober = Prober(model, processor, key_layers=[0], probes=[probe, several], depth=QUICK)
    assert prober.max_new_tokens == 18 + 8
    longer = replace(probe, foil="x" * 30)
    assert Prober(model, processor, key_layers=[0], probes=[longer], depth=QUICK).max_new_tokens == 38


def test_unlike_lengths_are_warned_of_by_name(tmp_path):
    """Scored with their end: 6 bytes and 1, 12 bytes and 1."""
    probe = tiny_probes(tmp_path)[0]
    processor = tiny_processor(tmp_path)
    reader = ProbeEncoder(family_of(tiny_model().config), processor)
    alike = replace(probe, answer="Canton", foil="Towers", phrases={})
    unlike = [replace(alike, id=f"p{at}", foil="Canary Wharf") for at in range(5)]
    assert reader.check([alike, replace(alike, foil=None)], "probes.json") == ()
    (line,) = reader.check([alike, *unlike], "probes.json")
    assert line.startswith(
        "probes.json: in 5 of 6 probes answer and foil differ in their number of tokens: p0 (7 and 13), p1 (7 and 13), "
        "p2 (7 and 13) and 2 more; "
    )


def test_pixels_are_kept_up_to_a_limit_and_read_anew_where_a_picture_changed(tmp_path):
    model, processor = tiny_model(), tiny_processor(tmp_path)
    first, second, third = tiny_probes(tmp_path, 3)
    family = family_of(model.config)
    media = ProbeEncoder(family, processor).read(first).answer.media
    size = sum(one.numel() * one.element_size() for one in media.values())
    encoder = ProbeEncoder(family, processor, keep_bytes=2 * size)
    read = [encoder.read(one) for one in (first, second, third)]
    assert [encoder.read(one) is before for one, before in zip((first, second, third), read, strict=True)] == [
        True, True, False]  # fmt: skip
    asked = replace(first, question="<image>球在哪里? the disc")
    assert encoder.read(asked).probe == asked and encoder.read(first) is read[0]
    picture, before = first.images[0], first.images[0].stat()
    changed = ImageOps.invert(Image.open(picture).convert("RGB"))
    for times in ((1, 1), (1, 1), (before.st_atime_ns, before.st_mtime_ns)):
        changed = ImageOps.invert(
            changed.rotate(7)
        )  # of another size in the file, also where the time is kept
        changed.save(picture)
        os.utime(picture, ns=times)
        read.append(encoder.read(first))
        assert not torch.equal(*(one.answer.media["pixel_values"] for one in (read[0], read[-1])))
    assert not torch.equal(*(one.answer.media["pixel_values"] for one in read[-3:-1]))


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_an_earlier_picture_does_not_move_the_positions_behind_a_prompt_without_one(
    name: str, tmp_path: Path
) -> None:
    tiny = ALL[name]
    [seen] = some_probes(tmp_path, 1)
    heard = replace(seen, id="words", images=(), question="What?", regions={}, phrases={})
    model = tiny.model()

    def margin(probe):
        prober = Prober(model, tiny.processor(tmp_path), key_layers=[0], probes=[probe], family=tiny.family)
        return prober.run(probe, 0, "m").scores.margin_nats

    fresh = margin(heard)
    margin(seen)
    assert margin(heard) == pytest.approx(fresh, abs=1e-5)


@pytest.mark.parametrize("name", SCORED)
def test_a_server_is_sent_no_line_break_that_its_template_writes_itself(name: str, tmp_path: Path):
    """Ours leaves the second one out of the words; a server's has nothing that would."""
    tiny = FAMILIES[name]
    reader = ProbeEncoder(tiny.family, tiny.processor(tmp_path))
    Image.new("RGB", (60, 33), "teal").save(tmp_path / "a.png")
    probe = Probe("a", "g", (tmp_path / "a.png",), "<image>\nWhat?", "pearl", "canton")
    sent = reader.parts_for_a_server(probe)
    plain = reader.encode(replace(probe, question="<image>What?"), "pearl").input_ids
    writes_it = np.array_equal(reader.encode(probe, "pearl").input_ids, plain)
    assert sent[1] == ("What?" if writes_it else "\nWhat?")
    assert writes_it == (
        name
        in {"llava-1.5", "llava-next", "llava-onevision", "internvl", "gemma3", "paligemma", "paligemma2"}
    )


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_has_a_label_where_it_stands_behind_one(name: str, count: int, tmp_path: Path):
    """Where pictures are read first it would stand alone, in front of the question, in what a server is sent too."""
    tiny = FAMILIES[name]
    files = [tmp_path / f"{at}.png" for at in range(count)]
    for file in files:
        Image.new("RGB", (60, 33), "teal").save(file)
    reader = ProbeEncoder(tiny.family, tiny.processor(tmp_path))
    probe = Probe("a", "g", tuple(files), "What?", "pearl", "canton")
    text = "".join(reader.texts(reader.encode(probe, "pearl")))
    sent = [part for part in reader.parts_for_a_server(probe) if isinstance(part, str)]
    for words in (text, "".join(sent)):
        assert words.count("Picture") == (0 if name in FIRST else count)
        assert "What?" in words


@pytest.mark.parametrize(
    "question",
    [
        "What is in <ref>it</ref><box>(250,250),(500,500)</box>?",
        "Find <ref>the dog</ref>.",
        "What is <|box_start|>(1,2),(3,4)<|box_end|>?",
    ],
)
@pytest.mark.parametrize("name", ["qwen-vl", "qwen2.5-vl", "llava-1.5"])
def test_boxes_in_a_question_are_refused_where_training_would_write_them_otherwise(
    name: str, question: str, tmp_path: Path
):
    tiny = FAMILIES[name]
    Image.new("RGB", (60, 33), "teal").save(tmp_path / "a.png")
    reader = ProbeEncoder(tiny.family, tiny.processor(tmp_path))
    probe = Probe("a", "g", (tmp_path / "a.png",), question, "pearl", "canton")
    if name == "qwen-vl":
        reader.read(probe)
        return
    with pytest.raises(ValueError, match="probe 'a': question: found '<.*expected words"):
        reader.read(probe)
    kept = reader.read(replace(probe, question=question.replace("<", "\\<"))).answer
    assert question in "".join(reader.texts(kept))  # words, without the backslash, as in training
