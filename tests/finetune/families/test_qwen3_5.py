"""Qwen3.5: layers without an attention map keep their numbers, and nothing is measured, chosen or cut in them."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from attention_finetune.model import check_key_layers
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.head_means import head_means
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.compare import compare
from diagnostics.comparison.enrichment import heads
from diagnostics.comparison.pairs import pair_all
from diagnostics.drawing.figures import layers_heads_figure
from diagnostics.inspect import architecture, mermaid, table
from diagnostics.probing.layer_choice import calibrate
from diagnostics.probing.prober import Prober, _masses_without_sinks, auto_key_layers
from diagnostics.probing.prompts import padded, scored_span
from diagnostics.probing.regions import region_tokens
from diagnostics.records.measurement_plan import FULL, QUICK
from finetune.families.parts.coverage import region_coverage
from finetune.families.parts.modules import attending_layers, attention_modules, layer_words
from finetune.model import memory_estimate
from tests.diagnostics.test_anyones_trainer import probes
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS, qwen3_5

TINY = HYBRIDS["qwen3.5"]
LINEAR, ATTENDING = [0, 2], [1, 3]


@pytest.fixture(scope="module")
def model():
    return qwen3_5()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    (folder / "images").mkdir()
    return folder


@pytest.fixture(scope="module")
def processor(place):
    return TINY.processor(place)


@pytest.fixture(scope="module")
def asked(place):
    """Of unequal ends: the answer's tokens are read from a cache, which holds states of linear layers too."""
    return [replace(one, answer="perle", foil="pasta") for one in probes(place)]


@pytest.fixture(scope="module")
def prober(model, processor, asked):
    depth = replace(QUICK, windows=True)
    return Prober(model, processor, key_layers=ATTENDING, probes=asked, depth=depth, family=TINY.family)


@pytest.fixture(scope="module")
def records(prober):
    return prober.run_all(0, "base")


# --- which layers ----------------------------------------------------------------------------------------
def test_layers_that_attend_keep_their_numbers(model):
    modules = attention_modules(model, TINY.family)
    assert [name for name in modules if name.startswith("layer_")] == ["layer_1", "layer_3"]
    assert modules["layer_3"] is model.model.language_model.layers[3].self_attn
    assert auto_key_layers(model) == (1, 3)
    assert (
        layer_words([1, 3]) == "1, 3 (the others have no attention map)" and layer_words([0, 1]) == "0 to 1"
    )


def test_a_layer_without_a_map_cannot_be_asked_for(model, processor, asked):
    message = r"no language layer 2; expected 1, 3 \(the others have no attention map\)"
    with pytest.raises(ValueError, match=message):
        AttentionExtractor(model, [2])
    with pytest.raises(ValueError, match=message):
        Prober(model, processor, key_layers=[1, 2], probes=asked)


def test_training_refuses_a_key_layer_without_a_map(model):
    asked_for = SimpleNamespace(monitor=SimpleNamespace(chosen_layers=lambda: (1, 2)))
    with pytest.raises(
        ValueError, match=r"--key_layers: found \[2\], expected layers of this model, 1, 3 \(the"
    ):
        check_key_layers(asked_for, model, TINY.family)


def test_inspect_names_layers_without_a_map(model):
    found = architecture(model.config, name="tiny")
    language = [kind for kind in found.attention if kind.first.startswith("layer_")]
    assert [(kind.first, kind.heads, kind.map_bytes > 0) for kind in language] == [
        ("layer_0", 0, False), ("layer_1", 4, True), ("layer_2", 0, False), ("layer_3", 4, True),
    ]  # fmt: skip
    assert language[0].module == "model.language_model.layers.0"
    [linear] = [line for line in table(found).splitlines() if "no attention map (linear attention)" in line]
    assert linear.startswith("layer_0, 2 ")
    assert "4 layers<br/>4 heads × 8" in mermaid(found)
    assert found.components[2].layers == 4
    turned = copy.deepcopy(model.config)
    turned.text_config.layer_types = turned.text_config.layer_types[::-1]  # the last layer does not attend
    assert "4 layers<br/>4 heads × 8" in mermaid(architecture(turned, name="turned"))


def test_memory_of_a_step_is_not_guessed(model):
    paths = TINY.family.paths
    assert memory_estimate.layer_of(model, paths.language_layers, paths.language_attention) is None


# --- what is measured ------------------------------------------------------------------------------------
def test_numbers_of_all_layers_are_at_their_places(model, processor, records, prober, asked):
    record, probe = records[0], asked[0]
    assert record.layers == (1, 3) and record.rows.shape[0] == 2
    for values in (
        record.visual_share,
        record.head_entropy,
        record.highest_logit,
        record.region_mass["disc"],
    ):
        assert values.shape == (4, 4)
        assert np.isnan(values[LINEAR]).all() and np.isfinite(values[ATTENDING]).all()
    encoded = prober.reader.encode(probe, probe.answer)
    with torch.no_grad(), AttentionExtractor(model, [3]) as seen:
        model(**padded([encoded], torch.device("cpu"), left=False))
    rows = seen.attention_weights["layer_3"][0][:, [query.position for query in record.queries]]
    assert np.abs(record.rows[1] - rows).max() < 1e-5
    cells = rows[:, 0][:, encoded.images[0].positions]
    assert record.visual_share[3] == pytest.approx(cells.sum(-1), abs=1e-5)
    mass = (cells @ region_coverage(probe.regions["disc"], encoded.images[0])) / cells.sum(-1)
    assert record.region_mass["disc"][3] == pytest.approx(mass, abs=1e-5)


def test_sinks_are_left_out_of_the_layers_in_which_they_were_found(prober, asked):
    """Rows that look at every token alike; in layer 3, and there alone, a cell of the region is a sink."""
    encoded = prober.reader.encode(asked[0], "pearl")
    image = encoded.images[0]
    length = len(encoded.input_ids)
    sinks = np.zeros((2, length), bool)
    sinks[1, region_tokens(image, asked[0].regions["disc"], None)[0]] = True
    rows = np.full((2, 4, length), 1 / length, np.float32)
    seen = SimpleNamespace(connector=())
    found = _masses_without_sinks(asked[0], rows, seen, sinks, [image], (1, 3), (1, 3))["disc"]
    assert (found[1] < found[0]).all()


def test_states_are_read_before_linear_layers_too(model, prober, asked):
    inputs = padded([prober.reader.encode(asked[0], "pearl")], torch.device("cpu"), left=False)
    with torch.no_grad(), HiddenStates(model, [0, 2]) as states:
        expected = model(**inputs, output_hidden_states=True).hidden_states
    for layer in (0, 2):
        assert np.array_equal(states.hidden_states[f"layer_{layer}"], expected[layer].numpy())


def test_rollout_goes_through_the_layers_that_attend(model, prober, asked):
    inputs = padded([prober.reader.encode(asked[0], "pearl")], torch.device("cpu"), left=False)
    assert head_means(model, inputs).shape[0] == len(attending_layers(model, TINY.family))


# --- what is cut -----------------------------------------------------------------------------------------
def test_windows_cut_the_attending_layers_in_them_and_no_others(model, prober, records, asked):
    """Against whole sequences without a cache: log p(answer) - log p(foil), the region cut in one layer."""
    probe = asked[0]
    reading = prober.reader.read(probe)
    tokens = region_tokens(reading.answer.images[0], probe.regions["disc"], None)
    place = reading.parted - 1
    for layer in ATTENDING:
        (found,) = (one for one in records[0].interventions if one.layers == (layer, layer))
        nats = []
        for encoded in (reading.answer, reading.foil):
            inputs = padded([encoded], torch.device("cpu"), left=False)
            rows = torch.zeros(1, *2 * inputs["input_ids"].shape[1:], dtype=torch.bool)
            rows[:, place:, torch.from_numpy(tokens)] = True
            cut = {f"layer_{layer}": rows}
            with torch.no_grad(), AttentionExtractor(model, []) as seen, seen.knocked_out(cut):
                logits = model(**inputs).logits[0].log_softmax(-1)
            start, end = scored_span(encoded)
            ids = inputs["input_ids"][0, start:end]
            nats.append(logits[start - 1 : end - 1].gather(1, ids[:, None]).sum().item())
        assert found.margin_nats == pytest.approx(nats[0] - nats[1], abs=1e-4)
        assert found.margin_nats != pytest.approx(records[0].scores.margin_nats, abs=1e-4)


# --- what is chosen and compared -------------------------------------------------------------------------
def test_key_layers_are_chosen_among_those_that_attend(asked, records):
    """Twelve pictures on which layer 3 looks at the region ten times as much as chance."""
    many, of = [], {}
    generator = np.random.default_rng(0)
    for index in range(12):
        path = asked[0].images[0].with_name(f"one-{index}.png")
        Image.new("RGB", (4, 3), (index, 0, 0)).save(path)
        probe = replace(asked[0], id=f"one-{index}", images=(path,))
        mass, random = (np.full((4, 4), np.nan) for _ in range(2))
        random[ATTENDING] = mass[ATTENDING] = generator.uniform(0.04, 0.06, (2, 4))
        mass[3] *= 10
        many.append(probe)
        of[probe.id] = replace(
            records[0], probe_id=probe.id, region_mass={"disc": mass}, random_mass={"disc": random}
        )
    found = calibrate(many, of, evenly=(1, 3))
    assert found.chosen and found.layers == (3,)
    assert found.heads and {layer for layer, _ in found.heads} <= {3}
    assert [one is None for one in found.enrichment] == [True, False, True, False]


def test_a_comparison_counts_the_layers_that_attend(prober, records, asked, tmp_path):
    before = {record.probe_id: record for record in records}
    low = np.array([1, 1, 1, 0.001], np.float32)[:, None]
    after = {
        name: replace(
            record, step=4, region_mass={"disc": record.region_mass["disc"] * 1.5}, model="trained",
            head_entropy=record.head_entropy * low,
        )
        for name, record in before.items()
    }  # fmt: skip
    found = compare(before, after, tmp_path, probes=asked)
    group = found["groups"]["tower"]
    assert group["heads"]["tested"] == 2 * 4
    assert found["collapse"]["lowest_entropy"]["layer"] == 3

    def refuse(word):
        raise AssertionError(f"{word} in comparison.json")

    json.loads((tmp_path / "comparison" / "comparison.json").read_text(), parse_constant=refuse)
    chances = np.ones((2, 4))
    chances[1, 2] = 0.01
    (listed,) = heads(pair_all(asked, before, after), chances, 0.0)["significant"]
    assert (listed["layer"], listed["head"]) == (3, 2)
    mass = records[0].region_mass["disc"]
    panels = layers_heads_figure(mass, 2 * mass, title="t", key_layers=[1, 3]).axes
    assert panels[0].images[0].get_clim()[1] == pytest.approx(2 * np.nanmax(mass))


def test_the_whole_depth_is_measured(model, processor, asked):
    depth = replace(FULL, maps=("relative", "gradient", "rollout"))
    whole = Prober(model, processor, key_layers=[3], probes=asked, depth=depth, family=TINY.family)
    whole.self_check()
    record = whole.run(asked[1], 0, "base")
    assert {name: maps.shape[0] for name, maps in record.maps.items()} == {
        "relative": 1,
        "gradient": 1,
        "rollout": 1,
    }
    assert all(np.isfinite(maps).all() for maps in record.maps.values())
