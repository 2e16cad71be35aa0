"""Prober against the model asked step by step, without batches, padding or capture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftType, PromptTuningConfig, get_peft_model

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.attention import random_regions
from diagnostics.measures.geometry import cells_from_row
from diagnostics.monitor import AttentionMonitor
from diagnostics.probing import regions as regions_module
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import user_parts
from diagnostics.probing.reading import PromptReader
from diagnostics.probing.regions import occlude, region_cells, region_tokens
from diagnostics.records.measurement_plan import QUICK, WATCH
from diagnostics.records.pictures import names_by_picture
from finetune.families import family_of
from finetune.families.parts.coverage import region_coverage
from finetune.families.parts.phrases import find_phrase, token_texts
from finetune.model.look_file import Supervised
from finetune.samples import images
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.diagnostics.tiny_qwen_vl import N_HEADS, N_LAYERS, N_PATCHES, N_QUERIES, tiny_model, tiny_probes

KEY_LAYERS = (0, 2)
ATTENTION = r"transformer\.h\.\d+\.attn\.c_attn"
LANGUAGE = [f"layer_{layer}" for layer in range(N_LAYERS)]
TWO_CONTROLS = replace(QUICK, controls=2, kept=True)
SILENT = replace(WATCH, generate=False)
SILENT_TRIALS = replace(QUICK, generate=False)


@pytest.fixture(scope="module")
def probes(folder):
    return tiny_probes(folder)


@pytest.fixture(scope="module")
def records(model, processor, probes):
    return list(
        Prober(
            model, processor, key_layers=KEY_LAYERS, probes=probes, batch_size=5, depth=TWO_CONTROLS
        ).run_all(50, "tiny")
    )


def encoded(model, processor, probe, reply, images=None):
    turns = (Turn("user", user_parts(probe, images)), Turn("assistant", (reply,)))
    return family_of(model.config).encode(processor, Conversation(turns))


@torch.no_grad()
def nats(model, one, blocked=None):
    """log p of the reply and its end, token by token, of one unpadded sequence."""
    ids = torch.from_numpy(one.input_ids)[None]
    with (
        AttentionExtractor(model, []) as extractor,
        extractor.knocked_out({} if blocked is None else blocked),
    ):
        logits = model(input_ids=ids, pixel_values=one.media["pixel_values"]).logits[0].log_softmax(-1)
    start, end = one.turn_spans[-1]
    return sum(float(logits[at - 1, ids[0, at]]) for at in range(start, end + 1))


def test_scores_are_those_of_the_reply_token_by_token(model, processor, probes, records):
    for probe, record in zip(probes, records, strict=True):
        assert (record.probe_id, record.group, record.step, record.model) == (
            probe.id,
            probe.group,
            50,
            "tiny",
        )
        assert record.precision == "float32"
        assert record.scores.answer_nats == pytest.approx(
            nats(model, encoded(model, processor, probe, probe.answer)), abs=1e-4
        )
        assert record.scores.foil_nats == pytest.approx(
            nats(model, encoded(model, processor, probe, probe.foil)), abs=1e-4
        )
    assert len({record.scores.answer_nats for record in records}) == 3


def test_the_answer_query_predicts_the_first_token_where_answer_and_foil_part(
    model, processor, probes, records
):
    start, _ = encoded(model, processor, probes[0], "东方").turn_spans[-1]
    # bytes of 东方 E4 B8 9C E6 96 B9, of 东京 E4 B8 9C E4 BA AC: they part at the fourth
    assert records[0].queries[0].position == start + 3 - 1
    start, _ = encoded(model, processor, probes[1], "red").turn_spans[-1]
    assert records[1].queries[0] == (start - 1, "answer", "r")
    phrase = records[1].queries[1]
    assert phrase.label == "phrase:球" and records[1].tokens[phrase.position] == "球"
    joined = "".join(records[1].tokens)
    assert "球在哪里? the disc" in joined and joined.count("<image>") == N_QUERIES


def test_rows_are_the_models_and_stop_at_the_answers_end(model, processor, probes, records):
    one = encoded(model, processor, probes[0], probes[0].answer)
    with torch.no_grad(), AttentionExtractor(model) as extractor:
        model(input_ids=torch.from_numpy(one.input_ids)[None], pixel_values=one.media["pixel_values"])
        weights = extractor.attention_weights
    record = records[0]
    assert record.rows.shape == (2, N_HEADS, 2, len(one.input_ids)) and record.layers == KEY_LAYERS
    for row, layer in enumerate(KEY_LAYERS):
        for at, query in enumerate(record.queries):
            expected = weights[f"layer_{layer}"][0, :, query.position]
            np.testing.assert_allclose(record.rows[row, :, at], expected, atol=1e-5)
    np.testing.assert_allclose(record.rows.sum(-1), 1, atol=1e-5)
    assert record.connector[0].shape == (N_QUERIES, N_PATCHES)
    np.testing.assert_allclose(record.connector[0], weights["visual_attn"][0].mean(0), atol=1e-5)


def test_region_mass_and_visual_share_cover_every_layer_and_head(model, processor, probes, records):
    record, image = records[0], records[0].image_tokens[0]
    assert set(record.region_mass) == {"disc", "corner"}
    assert record.region_mass["disc"].shape == record.visual_share.shape == (N_LAYERS, N_HEADS)
    cells = cells_from_row(record.rows[1, :, 0], image, record.connector[0])
    expected = cells @ region_coverage(probes[0].regions["disc"], image)
    np.testing.assert_allclose(record.region_mass["disc"][2], expected, atol=1e-5)
    np.testing.assert_allclose(
        record.visual_share[2], record.rows[1, :, 0][:, image.positions].sum(-1), atol=1e-5
    )


def test_occlusion_is_the_margin_with_the_region_painted_over(model, processor, probes, records):
    probe, record = probes[0], records[0]
    controls = random_regions(probe.regions["disc"], (60, 40), count=2, name=probe.id)
    picture = family_of(model.config).load_image(ImageRef("", probe.images[0]))

    def margin(boxes):
        hidden = [occlude(picture, boxes)]
        return nats(model, encoded(model, processor, probe, probe.answer, hidden)) - nats(
            model, encoded(model, processor, probe, probe.foil, hidden)
        )

    occlusion, corner = [one for one in record.interventions if one.kind == "occlusion"]
    assert (occlusion.region, corner.region) == ("disc", "corner")
    assert occlusion.margin_nats == pytest.approx(margin(probe.regions["disc"]), abs=1e-4)
    assert occlusion.control_margins_nats == pytest.approx([margin(boxes) for boxes in controls], abs=1e-4)
    assert abs(occlusion.margin_nats - record.scores.margin_nats) > 1e-3


def test_a_probing_decodes_each_picture_once(model, processor, folder, monkeypatch):
    probes, decoded = tiny_probes(folder), []
    decode = images._decoded
    names_by_picture(probes)  # by marks of decoded pictures, which are kept for good

    def counted(place, name):
        decoded.append(place)
        return decode(place, name)

    monkeypatch.setattr(images, "_decoded", counted)
    regions_module._salient_places.cache_clear()
    prober = Prober(model, processor, key_layers=KEY_LAYERS, probes=probes, depth=TWO_CONTROLS)
    prober.run_all(50, "tiny")
    assert sorted(decoded) == sorted({path for probe in probes for path in probe.images})
    prober.run_all(60, "tiny")
    assert len(decoded) == 2 * len(set(decoded))  # none is kept from one probing to the next


def test_tower_knock_out_is_the_margin_with_the_regions_patches_unread(model, processor, probes, records):
    probe, record = probes[1], records[1]
    answer, foil = (encoded(model, processor, probe, reply) for reply in (probe.answer, probe.foil))
    cells = region_cells(answer.images[0], probe.regions["disc"])
    unread = torch.from_numpy(cells)
    tower = unread[None, :] & ~unread[:, None]  # [reader, read]: nobody outside the region reads inside
    blocked = {"visual_attn": unread[None, None], "vision_layer_0": tower[None]}
    knockout, _ = [one for one in record.interventions if one.kind == "tower knockout"]
    expected = nats(model, answer, blocked) - nats(model, foil, blocked)
    assert knockout.margin_nats == pytest.approx(expected, abs=1e-4)
    assert len(knockout.control_margins_nats) == 2
    assert abs(knockout.margin_nats - record.scores.margin_nats) > 1e-3


def test_knock_out_keeps_what_follows_from_the_queries_that_read_the_region(
    model, processor, probes, records
):
    probe, record = probes[1], records[1]
    image, corner = record.image_tokens[0], probe.regions["corner"]
    tokens = torch.from_numpy(region_tokens(image, corner, record.connector[0]))
    expected = []
    for reply in (probe.answer, probe.foil):
        one = encoded(model, processor, probe, reply)
        blocked = torch.zeros(1, len(one.input_ids), len(one.input_ids), dtype=torch.bool)
        blocked[0, int(image.positions.max()) + 1 :, tokens] = True
        expected.append(nats(model, one, dict.fromkeys(LANGUAGE, blocked)))
    _, found = [one for one in record.interventions if one.kind == "knockout"]
    assert found.region == "corner"
    assert found.margin_nats == pytest.approx(expected[0] - expected[1], abs=1e-4)
    tower = [one for one in record.interventions if one.kind == "tower knockout"][1]
    assert abs(found.margin_nats - tower.margin_nats) > 1e-3


def test_generated_is_the_greedy_answer_of_a_prompt_alone(model, processor, probes, records):
    for probe, record in zip(probes, records, strict=True):
        conversation = Conversation((Turn("user", user_parts(probe)),))
        prompt = family_of(model.config).encode(processor, conversation, add_generation_prompt=True)
        ids, pixels = prompt.input_ids.tolist(), prompt.media["pixel_values"]
        reply: list[int] = []
        while len(reply) < 16 and (not reply or reply[-1] not in (257, 258, 256)):
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([ids + reply]), pixel_values=pixels, use_cache=False
                ).logits
            reply.append(int(logits[0, -1].argmax()))
        stop = next((at for at, token in enumerate(reply) if token in (256, 258)), len(reply))
        assert record.scores.generated == processor.tokenizer.decode(reply[:stop]).strip()


def test_without_foil_regions_or_interventions_nothing_is_made_up(model, processor, probes):
    bare = replace(probes[1], foil=None, regions={}, phrases={})
    record = Prober(model, processor, key_layers=[1], probes=[bare], depth=SILENT_TRIALS).run(bare, 0, "tiny")
    assert record.scores.margin_nats is None and record.scores.generated == ""
    assert record.region_mass == {} and record.interventions == () and len(record.queries) == 1
    record = Prober(model, processor, key_layers=[1], probes=probes, depth=SILENT).run(probes[0], 0, "tiny")
    assert record.interventions == () and record.scores.margin_nats is not None


def test_two_images_number_themselves_and_regions_stay_with_the_first(model, processor, probes):
    pair = replace(probes[1], images=(probes[1].images[0], probes[0].images[0]))
    assert [part if isinstance(part, str) else part.written for part in user_parts(pair)] == [
        "Picture 1: ", "1.png", "\nPicture 2: ", "0.png", "\n球在哪里? the disc"]  # fmt: skip
    record = Prober(model, processor, key_layers=[1], probes=[pair], depth=SILENT_TRIALS, batch_size=3).run(
        pair, 0, "tiny"
    )
    assert len(record.image_tokens) == len(record.connector) == 2
    single = Prober(model, processor, key_layers=[1], probes=[pair], depth=SILENT_TRIALS)
    again = single.run(pair, 0, "tiny")
    for one, other in zip(record.interventions, again.interventions, strict=True):
        assert one.margin_nats == pytest.approx(other.margin_nats, abs=1e-4)


def test_a_probed_model_in_training_gives_the_same_loss_as_an_unprobed_one(processor, probes):
    def losses(*, probe: bool):
        model = tiny_model(attn_dropout_prob=0.2).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        one = encoded(model, processor, probes[0], "东方")
        inputs = {
            "input_ids": torch.from_numpy(one.input_ids)[None],
            "pixel_values": one.media["pixel_values"],
        }
        torch.manual_seed(1)
        found = []
        for _ in range(2):
            if probe:
                list(Prober(model, processor, key_layers=[1], probes=probes[:1]).run_all(0, ""))
            loss = model(**inputs, labels=inputs["input_ids"]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    assert losses(probe=True) == losses(probe=False)


def test_key_layers_may_be_given_in_any_order(model, processor, probes, monkeypatch):
    """Tiny models are too narrow for sinks: one is invented for each key layer, another in each."""
    first = encoded(model, processor, probes[0], probes[0].answer).images[0].positions[0]

    def of_layers(self, seen):
        places = first + np.array(self.key_layers)[:, None]
        return [np.arange(one.rows.shape[-1]) == places for one in seen]

    monkeypatch.setattr(Prober, "_sinks", of_layers)
    found = {
        layers: Prober(model, processor, key_layers=layers, probes=probes, depth=SILENT).run(
            probes[0], 0, "tiny"
        )
        for layers in ((0, 1, 2), (2, 0, 1))
    }
    rising, mixed = found.values()
    assert rising.region_mass_without_sinks
    for name, mass in rising.region_mass_without_sinks.items():
        assert not np.allclose(mass, rising.region_mass[name])
        np.testing.assert_allclose(mixed.region_mass_without_sinks[name], mass, atol=1e-6)
    np.testing.assert_allclose(mixed.rows, rising.rows[[2, 0, 1]], atol=1e-6)


def test_a_key_layer_named_twice_is_refused(model, processor, probes):
    with pytest.raises(ValueError, match="key layers: found layer 2 2 times, expected each once"):
        Prober(model, processor, key_layers=(2, 0, 2), probes=probes)


def prompted(model):
    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def invoked(model):
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules=ATTENTION, alora_invocation_tokens=[3, 5])
    )


def mixed(model):
    adapted = get_peft_model(model, LoraConfig(target_modules=ATTENTION))
    adapted.peft_config["default"].peft_type = PeftType.XLORA
    return adapted


def offloaded(model):
    model.transformer.h[1].attn.to("meta")
    return model


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (prompted, r"has a learned prompt \(default: PROMPT_TUNING\), expected an adapter within its layers"),
        (invoked, r"has an aLoRA, .* \(default: alora_invocation_tokens\), expected an adapter within"),
        (mixed, r"has an adapter that its own forward pass steers \(default: XLORA\), expected"),
        (
            offloaded,
            r"model's transformer.h.1.attn.c_attn.weight is on the meta device, expected weights in memory",
        ),
    ],
)
def test_a_model_that_is_more_than_the_bare_one_is_refused(changed, words, processor, probes, tmp_path):
    model = changed(tiny_model())
    with pytest.raises(ValueError, match=words):
        Prober(model, processor, key_layers=[0], probes=probes)
    with pytest.raises(ValueError, match=words):
        AttentionMonitor(processor, probes, tmp_path / "out", key_layers=[0]).probe(0, model)
    assert not (tmp_path / "out").exists()


def test_weights_that_a_hook_fetches_are_measured_but_not_by_a_monitor(processor, probes, tmp_path):
    """As ``device_map="auto"`` leaves a model: the first layers in memory, others offloaded."""
    model = tiny_model().eval()
    measured = [Prober(model, processor, key_layers=[0], probes=probes, depth=WATCH).run(probes[0], 0, "m")]
    cpu_offload(model.transformer.h[-1], execution_device=torch.device("cpu"))
    measured.append(
        Prober(model, processor, key_layers=[0], probes=probes, depth=WATCH).run(probes[0], 0, "m")
    )
    assert measured[0].scores == measured[1].scores
    with pytest.raises(ValueError, match="cannot be told from others when a run is resumed or compared"):
        AttentionMonitor(processor, probes, tmp_path / "out", key_layers=[0]).probe(0, model)


def test_self_check_passes(model, processor, probes):
    Prober(model, processor, key_layers=KEY_LAYERS, probes=probes).self_check()


def test_self_check_finds_a_connector_that_does_not_matter(processor, probes):
    model = tiny_model()
    with torch.no_grad():
        model.transformer.visual.attn_pool.attn.out_proj.weight.zero_()
    with pytest.raises(ValueError, match="visual_attn: taking keys away left the logits as they were"):
        Prober(model, processor, key_layers=[0], probes=probes).self_check()


def test_token_texts_join_to_the_whole_also_where_a_character_is_cut(processor):
    ids = processor.tokenizer.encode_text("a东b")
    assert token_texts(processor.tokenizer, ids) == ["a", "", "", "东", "b"]
    assert token_texts(processor.tokenizer, ids[:2] + ids, {1})[:3] == ["a", "<image>", "a"]


def test_ids_that_no_token_spells_do_not_end_a_run(model, processor):
    reader = PromptReader(model, family_of(model.config), processor, key_layers=[1], max_new_tokens=1)
    assert 258 in reader.stops
    assert reader._decoded([ord("a"), 479, ord("b"), 258, ord("c")]) == "a\N{REPLACEMENT CHARACTER}b"


def test_phrases_are_found_where_they_end():
    texts = ["<image>", "东", "方", "明珠", "塔", "东方"]
    assert find_phrase("东方明", texts, 1, 6) == 3
    assert find_phrase("东方", texts, 1, 6) == 2
    assert find_phrase("塔塔", texts, 1, 6) is None


def test_a_phrase_inside_a_word_is_none_where_words_have_borders():
    for phrase, text, place in (
        ("cat", "its category", None),
        ("cat", "category of a cat", 16),
        ("caf", "a café", None),
        ("кот", "который", None),
        ("кот", "это кот.", 6),
        ("कि", "किताब", None),
        ("猫", "一只小猫咪", 3),
        ("cat", "一只cat在", 4),
        ("고양이", "고양이가", 2),
    ):
        assert find_phrase(phrase, list(text), 0, len(text)) == place, text


def test_a_phrase_that_is_not_in_the_tokens_names_the_probe(model, processor, probes):
    lost = replace(probes[0], phrases={"猫": "disc"})
    with pytest.raises(ValueError, match="probe disc-0: phrase '猫' not found"):
        Prober(model, processor, key_layers=[1], probes=[lost], depth=SILENT_TRIALS).run(lost, 0, "tiny")
    assert model.config._attn_implementation == "sdpa"  # also after an error


def test_a_question_may_say_where_its_pictures_stand(probes):
    probe = replace(
        probes[0], images=probes[0].images[:1] * 2, question="Before <image> and after <image>: what?"
    )
    first, one, then, two, last = user_parts(probe, max_pixels=400)
    assert (first, then, last) == ("Before ", " and after ", ": what?")
    assert (one.path, one.max_pixels) == (probe.images[0], 400) and two.max_pixels is None
    assert [
        type(part) for part in user_parts(replace(probe, images=probe.images[:1], question="<image>\nwhat?"))
    ] == [
        ImageRef,
        str,
    ]


@pytest.mark.parametrize("connector", [True, False])
@pytest.mark.parametrize("attends", [True, False])
def test_records_say_whether_the_resampler_was_trained_on_where_the_model_looks_through_one(
    model, processor, probes, monkeypatch, connector, attends
):
    supervised = Supervised((1,), None, connector)
    prober = Prober(
        model, processor, key_layers=KEY_LAYERS, probes=probes[:1], depth=SILENT, supervised=supervised
    )
    record = prober.run(probes[0], 0, "tiny")
    assert record.supervised_connector is connector and record.supervised_layers == (1,)
    assert record.supervised_unknown  # no picture is named
    if not attends:  # what it says of families whose connector has no attention
        paths = replace(prober.family.paths, connector_attention=None)
        monkeypatch.setattr(type(prober.family), "paths", paths)
        assert prober.looks_through_supervised is False
