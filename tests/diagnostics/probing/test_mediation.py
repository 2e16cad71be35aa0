"""The attention of the model before, put back: planted changes whose path is known; and what patching costs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from diagnostics.probing.before import OtherModel
from diagnostics.probing.mediation import Part, parts_of
from diagnostics.probing.prober import Prober
from diagnostics.records.measurement_plan import (
    CONNECTOR,
    FULL,
    KEY_LAYERS,
    LANGUAGE,
    LAYER,
    QUICK,
    WATCH,
    Allowed,
    cost_words,
)
from diagnostics.records.record import AttentionRecord
from tests.diagnostics.tiny_qwen_vl import N_LAYERS, tiny_probes

WIDTH = 32
PATCHING = replace(WATCH, generate=False, patching=True)
EACH_LAYER = replace(PATCHING, windows=True)


@pytest.fixture(scope="module")
def probes(folder):
    return tiny_probes(folder)


def changed(model: nn.Module, layer: int, rows: slice, *, seed: int = 1) -> nn.Module:
    """A copy whose layer makes other queries and keys (rows 0 to 63) or values (64 to 95) out of what it reads."""
    other = copy.deepcopy(model)
    weight = other.transformer.h[layer].attn.c_attn.weight
    with torch.no_grad():
        part = weight[rows]
        part.add_(torch.randn(part.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return other


def probed(after, before, processor, probes, depth=EACH_LAYER, **options) -> list[AttentionRecord]:
    source = None if before is None else OtherModel(before, "the base")
    prober = Prober(after, processor, key_layers=[0, 1], probes=probes, depth=depth, before=source, **options)
    return prober.run_all(5, "after")


def margins(record: AttentionRecord) -> dict[tuple[str, tuple[int, ...]], float]:
    return {(patch.part, patch.layers): patch.margin_nats for patch in record.patches}


def test_queries_and_keys_of_one_layer_carry_all_of_the_change_and_the_others_none(model, processor, probes):
    after = changed(model, 1, slice(0, 2 * WIDTH))
    [*without] = probed(model, None, processor, probes)
    for record, before in zip(probed(after, model, processor, probes), without, strict=True):
        own, base = record.scores.margin_nats, before.scores.margin_nats
        assert abs(own - base) > 0.05
        assert record.patched_from.model == "the base"
        assert record.patched_from.margin_nats == pytest.approx(base, abs=1e-4)
        found = margins(record)
        assert list(found) == [
            (LANGUAGE, (0, 1, 2)), (KEY_LAYERS, (0, 1)), (LAYER, (0,)), (LAYER, (1,)), (LAYER, (2,)), (CONNECTOR, ()),
        ]  # fmt: skip
        for part in ((LANGUAGE, (0, 1, 2)), (KEY_LAYERS, (0, 1)), (LAYER, (1,))):
            assert found[part] == pytest.approx(base, abs=1e-4)
        for part in ((LAYER, (0,)), (CONNECTOR, ())):  # before layer 1 nothing differs
            assert found[part] == pytest.approx(own, abs=1e-4)


def test_values_of_the_last_layer_carry_none_of_it_through_attention(model, processor, probes):
    after = changed(model, N_LAYERS - 1, slice(2 * WIDTH, None))
    for record in probed(after, model, processor, probes):
        assert abs(record.scores.margin_nats - record.patched_from.margin_nats) > 0.02
        for margin in margins(record).values():
            assert margin == pytest.approx(record.scores.margin_nats, abs=1e-4)


def test_values_of_an_early_layer_move_what_later_ones_look_at(model, processor, probes):
    after = changed(model, 0, slice(2 * WIDTH, None))
    [record, *_] = probed(after, model, processor, probes)
    found, own = margins(record), record.scores.margin_nats
    assert found[LAYER, (0,)] == pytest.approx(own, abs=1e-4)
    assert abs(found[LANGUAGE, (0, 1, 2)] - own) > 1e-3


def test_the_connector_alone(model, processor, probes):
    after = copy.deepcopy(model)
    with torch.no_grad():
        after.transformer.visual.attn_pool.query.add_(
            torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(2)) * 2
        )
    for record in probed(after, model, processor, probes):
        base, own = record.patched_from.margin_nats, record.scores.margin_nats
        assert abs(own - base) > 0.005
        assert margins(record)[CONNECTOR, ()] == pytest.approx(base, abs=1e-4)


def test_two_pictures_and_small_batches_change_nothing(model, processor, probes):
    after = changed(model, 1, slice(0, 2 * WIDTH))
    pair = replace(probes[1], images=(probes[1].images[0], probes[0].images[0]))
    [large] = probed(after, model, processor, [pair])
    for size in (1, 2, 4):
        [small] = probed(after, model, processor, [pair], batch_size=size)
        assert [(one.part, one.layers) for one in small.patches] == list(margins(large))
        assert [one.margin_nats for one in small.patches] == pytest.approx(
            list(margins(large).values()), abs=1e-4
        )
    [alone] = probed(model, None, processor, [pair])
    assert margins(large)[LAYER, (1,)] == pytest.approx(alone.scores.margin_nats, abs=1e-4)


def test_a_model_as_its_own_before_changes_nothing(model, processor, probes):
    for record in probed(model, model, processor, probes):
        assert record.patched_from.margin_nats == pytest.approx(record.scores.margin_nats, abs=1e-4)
        assert list(margins(record).values()) == pytest.approx(
            [record.scores.margin_nats] * len(record.patches), abs=1e-4
        )


def test_without_foil_model_before_or_plan_nothing_is_patched(model, processor, probes):
    bare = replace(probes[1], foil=None)
    for records in (
        probed(model, model, processor, [bare]),
        probed(model, None, processor, probes),
        probed(model, model, processor, probes, depth=replace(WATCH, generate=False)),
    ):
        assert all(record.patches == () and record.patched_from is None for record in records)


def test_patches_survive_the_disk(model, processor, probes, tmp_path):
    [record] = probed(changed(model, 1, slice(0, 64)), model, processor, probes[:1])
    record.save(tmp_path / "one.safetensors")
    again = AttentionRecord.load(tmp_path / "one.safetensors")
    assert (again.patches, again.patched_from) == (record.patches, record.patched_from)


def test_parts_by_hand():
    names = ("layer_1", "layer_4", "layer_7", "visual_attn", "vision_layer_0")
    assert parts_of(names, (4, 7), every_layer=False) == (
        Part(LANGUAGE, (1, 4, 7)), Part(KEY_LAYERS, (4, 7)), Part(LAYER, (4,)), Part(LAYER, (7,)), Part(CONNECTOR),
    )  # fmt: skip
    assert [part.layers for part in parts_of(names[:3], (4,), every_layer=True)] == [
        (1, 4, 7), (4,), (1,), (4,), (7,)]  # fmt: skip
    assert Part(CONNECTOR).names == ("visual_attn",) and Part(KEY_LAYERS, (1, 4)).names == (
        "layer_1",
        "layer_4",
    )


@pytest.mark.parametrize("depth", [WATCH, PATCHING, QUICK, replace(FULL, controls=2)])
def test_patching_costs_what_was_said(model, processor, probes, depth):
    read, counts = 0, []
    before = copy.deepcopy(model)

    def count(_, arguments, options):
        nonlocal read
        cache = options.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            read += len(options["input_ids"])

    hooks = [one.register_forward_pre_hook(count, with_kwargs=True) for one in (model, before)]
    for source in (None, before):
        read = 0
        probed(model, source, processor, probes[:1], depth=depth)
        counts.append(read)
    for hook in hooks:
        hook.remove()
    plain = Allowed(resampler=True, alone=True, lent=frozenset())
    with_before = plain._replace(patched=N_LAYERS)
    extra = depth.passes(probes[0], 2, with_before) - depth.passes(probes[0], 2, plain)
    assert counts[1] - counts[0] == extra
    expected = {"watch": 0, "quick": 6, "full": 7}  # one before, language, key layers, connector, each layer
    assert extra == (6 if depth is PATCHING else expected[depth.name])


def test_the_cost_in_words_counts_the_model_before(probes):
    plan = replace(QUICK, kinds=(), pictures=(), relations=False, generate=False, kept=True)
    allowed = Allowed(resampler=True, alone=True, lent=frozenset())
    words = cost_words(plan, probes, 2, allowed)
    assert words.startswith("quick probing of 3 probes: 3 sequences to read (1.0 a probe)")
    words = cost_words(plan, probes, 2, allowed._replace(patched=3))
    assert words.startswith("quick probing of 3 probes: 21 sequences to read (7.0 a probe)")
