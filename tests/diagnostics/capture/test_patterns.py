"""Patterns put into another model: against dense attention, against the model that lent them, and refused."""

import copy

import pytest
import torch
from torch import nn

from diagnostics.capture.extractor import AttentionExtractor
from tests.diagnostics.capture.test_sinks import FAMILY as SINK_FAMILY
from tests.diagnostics.capture.test_sinks import inputs as sink_inputs
from tests.diagnostics.capture.test_sinks import model as sink_model  # noqa: F401  (a fixture)
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from tests.diagnostics.tiny_qwen_vl import N_PATCHES, N_QUERIES, tiny_model
from tests.finetune.families.test_caches import cache_of, windowed_llama
from tests.flash_standin import standing_in, using

BOTH = torch.tensor([True, True])
LAYERS = ("layer_0", "layer_1", "layer_2")
PADDING = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])


def watched(model: nn.Module) -> AttentionExtractor:
    return AttentionExtractor(model, [], family=FAMILY)


@torch.no_grad()
def changed(model: nn.Module, *parts: str, seed: int = 3) -> nn.Module:
    """A copy with other weights in the parameters whose names have one of ``parts``."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if any(part in name for part in parts):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return other


@torch.no_grad()
def kept_by(model: nn.Module, **inputs):
    with watched(model) as extractor, extractor.keeping_patterns() as kept:
        logits = model(**inputs).logits
    return kept, logits


@torch.no_grad()
def patched(model: nn.Module, kept, chosen, **inputs):
    with watched(model) as extractor, extractor.with_patterns(kept, chosen):
        return model(**inputs).logits


def dense(query, key, value, mask=None):
    """softmax(q k / √d) v of grouped keys, causal; Float[batch, queries, heads, dim]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        seen = seen & mask.bool()[:, None, None, :]
    return (scores.masked_fill(~seen, -1e9).softmax(-1) @ value).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [None, PADDING], ids=["", "padded"])
def test_a_patched_layer_gives_softmax_of_the_lenders_logits_times_its_own_values(kernel, mask):
    before, after = tiny_llama(kernel), changed(tiny_llama(kernel), "self_attn", "mlp")
    kept, _ = kept_by(before, input_ids=IDS, attention_mask=mask)
    found = {}

    def tap(name, call, output):
        found[name] = (call.value, output)
        return output

    with watched(after) as extractor, extractor.tapped(tap):
        after(input_ids=IDS, attention_mask=mask)
        own = dict(found)
        with extractor.with_patterns(kept, {"layer_1": BOTH}):
            after(input_ids=IDS, attention_mask=mask)
    real = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask.bool()
    query, key = kept[1].query, kept[1].key
    value, output = found["layer_1"]
    assert (query.shape, key.shape) == ((2, 4, 7, 8), (2, 2, 7, 8))
    torch.testing.assert_close(output[real], dense(query, key, value, mask)[real])
    assert (output - own["layer_1"][1])[real].abs().max() > 0.05
    assert torch.equal(value, own["layer_1"][0]) and torch.equal(found["layer_0"][1], own["layer_0"][1])


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [tiny_llama, windowed_llama])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_own_patterns_change_no_bit_also_over_a_cache(make, kernel, kind):
    """Prompt, several tokens, one token; windows of 4 tokens drop keys from the cache."""
    model = make(kernel)

    def read():
        cache = cache_of(kind, model, 12)
        cuts = [(0, 4), (4, 6), (6, 7)]
        return [model(input_ids=IDS[:, a:b], past_key_values=cache, use_cache=True).logits for a, b in cuts]

    plain = read()
    with watched(model) as extractor:
        with extractor.keeping_patterns() as kept:
            assert all(map(torch.equal, read(), plain))
        every = dict.fromkeys({call.name for call in kept}, BOTH)
        with extractor.with_patterns(kept, every):
            assert all(map(torch.equal, read(), plain))
    layers = len(model.model.layers)
    assert [call.name for call in kept] == [f"layer_{at}" for at in range(layers)] * 3


@torch.no_grad()
def test_keys_of_a_static_cache_are_kept_as_they_were():
    """The cache overwrites them in place; what a step keeps must not change with the next."""
    model = tiny_llama()
    cache = cache_of("static", model, 9)
    with watched(model) as extractor, extractor.keeping_patterns() as kept:
        model(input_ids=IDS[:, :5], past_key_values=cache, use_cache=True)
        model(input_ids=IDS[:, 5:], past_key_values=cache, use_cache=True)
    assert kept[0].key[:, :, 5:].eq(0).all() and kept[3].key[:, :, 5:7].ne(0).any()


@pytest.mark.parametrize("rows", [[True, False], [False, True]])
def test_only_the_chosen_sequences_and_modules_get_them(rows):
    before, after = tiny_llama(), changed(tiny_llama(), "self_attn")
    kept, _ = kept_by(before, input_ids=IDS)
    _, own = kept_by(after, input_ids=IDS)
    found = patched(after, kept, {"layer_1": torch.tensor(rows)}, input_ids=IDS)
    other = rows.index(False)
    assert torch.equal(found[other], own[other])
    assert (found[1 - other] - own[1 - other]).abs().max() > 0.01
    assert torch.equal(patched(after, kept, {}, input_ids=IDS), own)
    none = {"layer_1": torch.tensor([False, False])}
    assert torch.equal(patched(after, kept, none, input_ids=IDS), own)


@torch.no_grad()
def test_one_kept_sequence_serves_a_batch_and_its_two_tails():
    """Three sequences of one prompt, each then continued by both tails, as margins are taken."""
    before, after = tiny_llama(), changed(tiny_llama(), "self_attn")
    prompt, tails = IDS[:1, :4], torch.stack([IDS[0, 4:6], IDS[1, 4:6]])

    def read(model, batch):
        first = model(input_ids=prompt.repeat(batch, 1), use_cache=True)
        cache = first.past_key_values
        cache.reorder_cache(torch.arange(batch).repeat_interleave(2))
        rest = model(input_ids=tails.repeat(batch, 1), past_key_values=cache, use_cache=True).logits
        return torch.cat([first.logits[:, -1:].repeat_interleave(2, 0), rest], 1)

    with watched(before) as extractor, extractor.keeping_patterns() as kept:
        read(before, 1)
    chosen = {"layer_0": torch.tensor([False, True, True]), "layer_2": torch.tensor([False, False, True])}
    with watched(after) as extractor, extractor.with_patterns(kept, chosen):
        found = read(after, 3)
    for row, layers in enumerate([(), ("layer_0",), ("layer_0", "layer_2")]):
        for tail in range(2):
            ids = torch.cat([prompt, tails[tail : tail + 1]], 1)
            whole, _ = kept_by(before, input_ids=ids)
            expected = patched(after, whole, dict.fromkeys(layers, torch.tensor([True])), input_ids=ids)
            torch.testing.assert_close(found[2 * row + tail], expected[0, 3:], atol=1e-5, rtol=1e-5)
    assert (found[0] - found[2]).abs().max() > 0.01 and (found[2] - found[4]).abs().max() > 0.01


def test_queries_and_keys_alone_make_the_difference_and_go_back_whole():
    """After differs in q and k of layer 1: layer 1 put back is the model before, another layer is not."""
    before = tiny_llama()
    after = changed(before, "1.self_attn.q_proj", "1.self_attn.k_proj")
    kept, wanted = kept_by(before, input_ids=IDS)
    _, own = kept_by(after, input_ids=IDS)
    assert (own - wanted).abs().max() > 0.1
    assert torch.equal(patched(after, kept, {"layer_1": BOTH}, input_ids=IDS), wanted)
    assert torch.equal(patched(after, kept, {"layer_0": BOTH}, input_ids=IDS), own)


def test_the_connector_of_qwen_vl_looks_where_it_looked():
    before = tiny_model()
    after = changed(before, "attn_pool.query", "attn_pool.ln_q")
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, 470, *range(N_QUERIES), 471, 7, 470, *range(N_QUERIES), 471, 9]])
    with torch.no_grad():
        alone = {"input_ids": ids, "pixel_values": pixels}
        with AttentionExtractor(before, []) as extractor, extractor.keeping_patterns() as kept:
            wanted = before(**alone).logits[0]
        own = after(**alone).logits[0]
        twice = {"input_ids": ids.repeat(2, 1), "pixel_values": pixels.repeat(2, 1, 1, 1)}
        with (
            AttentionExtractor(after, []) as extractor,
            extractor.with_patterns(kept, {"visual_attn": torch.tensor([True, False])}),
        ):
            found = after(**twice).logits
    assert kept[0].name == "visual_attn" and kept[0].key.shape[2] == N_PATCHES
    assert (own - wanted).abs().max() > 0.01
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], own, atol=1e-5, rtol=1e-5)


# --- refused ---------------------------------------------------------------------------------------------
def test_patterns_of_other_tokens_are_refused_longer_and_shorter():
    model = tiny_llama()
    for length in (6, 7):
        kept, _ = kept_by(model, input_ids=IDS[:, :length])
        words = f"layer_0 has {13 - length} queries over {13 - length} keys, expected {length} over {length}"
        for chosen in ({}, {"layer_2": BOTH}):
            with pytest.raises(ValueError, match=words):
                patched(model, kept, chosen, input_ids=IDS[:, : 13 - length])


@torch.no_grad()
def test_another_cut_of_the_same_tokens_is_refused():
    model = tiny_llama()
    kept, _ = kept_by(model, input_ids=IDS)
    cache = cache_of("dynamic", model, 0)
    with (
        watched(model) as extractor,
        pytest.raises(ValueError, match="4 queries over 4 keys, expected 7 over 7"),
        extractor.with_patterns(kept, {"layer_0": BOTH}),
    ):
        model(input_ids=IDS[:, :4], past_key_values=cache)


@torch.no_grad()
def test_more_fewer_and_other_calls_are_refused():
    model = tiny_llama()
    kept, _ = kept_by(model, input_ids=IDS)
    with watched(model) as extractor:
        more = pytest.raises(ValueError, match="a call of layer_0, expected none after the 3 kept")
        with more, extractor.with_patterns(kept, {}):
            model(input_ids=IDS)
            model(input_ids=IDS)
        fewer = pytest.raises(ValueError, match="found 0 calls, expected 3 as kept, the next of layer_0")
        with fewer, extractor.with_patterns(kept, {}):
            pass
        other = pytest.raises(ValueError, match="call 1 is of layer_0, expected layer_1 as kept")
        with other, extractor.with_patterns(kept[1:], {}):
            model(input_ids=IDS)
        with pytest.raises(KeyError, match="boom"), extractor.with_patterns(kept, {}):
            raise KeyError("boom")  # its own error, not that calls are missing
        assert torch.equal(model(input_ids=IDS).logits, tiny_llama()(input_ids=IDS).logits)


def test_other_heads_widths_and_precision_are_refused():
    kept, _ = kept_by(tiny_llama(), input_ids=IDS)
    one = kept[0]
    for other, words in (
        (one._replace(query=one.query[:, :2]), "4 heads × 8 in float32 of queries, expected 2 heads × 8"),
        (one._replace(key=one.key[..., :4]), "2 heads × 8 in float32 of keys, expected 2 heads × 4"),
        (one._replace(key=one.key.bfloat16()), "float32 of keys, expected 2 heads × 8 in bfloat16"),
        (one._replace(terms={**one.terms, "scaling": 0.5}), "scaling of layer_0 differs"),
        (one._replace(terms={**one.terms, "softcap": 30.0}), "softcap of layer_0 differs"),
        (one._replace(query=one.query.repeat(2, 1, 1, 1)[:3]), "2 sequences or images, expected a multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            patched(tiny_llama(), [other, *kept[1:]], {"layer_0": BOTH}, input_ids=IDS)
    with pytest.raises(ValueError, match="expected a multiple of the 3 to choose from"):
        patched(tiny_llama(), kept, {"layer_0": torch.ones(3, dtype=torch.bool)}, input_ids=IDS)
    for name in ("layer_3", "vision_layer_0"):
        with pytest.raises(
            ValueError, match=f"no attention module '{name}' to patch; expected one of layer_0"
        ):
            patched(tiny_llama(), kept, {name: BOTH}, input_ids=IDS)


@torch.no_grad()
def test_sink_logits_that_differ_are_refused_and_the_same_ones_kept(sink_model):  # noqa: F811
    given = sink_inputs()
    with AttentionExtractor(sink_model, [], family=SINK_FAMILY) as extractor:
        with extractor.keeping_patterns() as kept:
            plain = sink_model(**given).logits
        with extractor.with_patterns(kept, dict.fromkeys(("layer_0", "layer_3"), BOTH)):
            assert torch.equal(sink_model(**given).logits, plain)
        kept[3] = kept[3]._replace(terms={**kept[3].terms, "s_aux": kept[3].terms["s_aux"] + 0.1})
        with (
            pytest.raises(ValueError, match="s_aux of layer_3 differs from the kept call's"),
            extractor.with_patterns(kept, {"layer_3": BOTH}),
        ):
            sink_model(**given)
        with extractor.with_patterns(kept, {"layer_0": BOTH}):  # layer 3 keeps its own pattern
            assert torch.equal(sink_model(**given).logits, plain)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("mask", [None, PADDING])
def test_flash_attention_reads_kept_queries_and_keys_too(version, mask):
    """Its own change nothing, and another model's give what SDPA gives with them; rows without tokens left out."""
    inputs = {"input_ids": IDS[:, :7], "attention_mask": mask}
    before = tiny_llama()
    after = changed(before, "q_proj", "v_proj")
    chosen = {"layer_1": BOTH}
    kept, _ = kept_by(before, **inputs)
    expected = patched(after, kept, chosen, **inputs)
    seen = torch.ones(2, 7, dtype=torch.bool) if mask is None else mask.bool()
    with standing_in(version), using(before, version), using(after, version):
        own, plain = kept_by(after, **inputs)
        assert torch.equal(patched(after, own, dict.fromkeys(LAYERS, BOTH), **inputs), plain)
        kept, _ = kept_by(before, **inputs)
        found = patched(after, kept, chosen, **inputs)
    assert not torch.allclose(plain[seen], found[seen], atol=1e-3)
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-5)
