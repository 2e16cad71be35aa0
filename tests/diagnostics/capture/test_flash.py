"""What FlashAttention is asked for and what its package can: windows, sinks, soft caps, static caches, bf16."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.head_means import head_means
from diagnostics.capture.self_check import self_check
from tests.diagnostics.capture.test_sinks import FAMILY as SINKS_FAMILY
from tests.diagnostics.capture.test_sinks import inputs
from tests.diagnostics.capture.test_sinks import model as sinking  # noqa: F401  (a fixture)
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from tests.flash_standin import attend, by_stretch, flash_2, package, standing_in, using

LEFT = torch.tensor([[1] * 7, [0, 0] + [1] * 5])
WINDOW = 3


def tiny_mistral():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, sliding_window=WINDOW,
    )  # fmt: skip
    made = MistralForCausalLM(config).eval()
    made.model.tower = nn.ModuleList()
    return made


@torch.no_grad()
def rows_of(model, family=FAMILY, **inputs):
    with AttentionExtractor(model, family=family) as seen:
        logits = model(**inputs).logits
    return logits, seen.attention_weights


def eager_of(model):
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return other


def check_same(found, expected, real):
    assert found.keys() == expected.keys() and found
    for name, rows in found.items():
        assert np.abs(rows - expected[name]).transpose(0, 2, 1, 3)[real].max() < 1e-5, name


@pytest.mark.parametrize("mask", [torch.ones_like(IDS), LEFT], ids=["", "padded"])
def test_a_window_hides_what_is_before_it(mask):
    mistral = tiny_mistral()
    _, expected = rows_of(eager_of(mistral), input_ids=IDS, attention_mask=mask)
    with standing_in(2), using(mistral, 2):
        _, found = rows_of(mistral, input_ids=IDS, attention_mask=mask)
        with torch.no_grad():
            self_check(mistral, {"input_ids": IDS, "attention_mask": mask}, family=FAMILY)
    check_same(found, expected, mask.bool().numpy())
    assert found["layer_1"][0, :, 6, : 7 - WINDOW].max() == 0 < found["layer_1"][0, :, 6, 7 - WINDOW :].min()


@torch.no_grad()
def test_a_package_without_windows_leaves_them_out_and_so_do_rows():
    """transformers asks the package's function what it takes, and says nothing where that is no window."""

    def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
        return attend(q, k, v, softmax_scale, causal, (-1, -1), 0.0)

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False):
        return by_stretch(lambda *x: flash_attn_func(*x, None, causal), q, k, v, cu_seqlens_q, cu_seqlens_k)

    mistral = tiny_mistral()
    with standing_in(2, package("flash_attn", flash_attn_func, flash_attn_varlen_func)), using(mistral, 2):
        _, found = rows_of(mistral, input_ids=IDS)
        self_check(mistral, {"input_ids": IDS}, family=FAMILY)
    assert found["layer_1"][0, :, 6].min() > 0


@torch.no_grad()
def test_windows_hold_in_cached_steps():
    mistral = tiny_mistral()

    def steps(one):
        with AttentionExtractor(one, family=FAMILY) as seen:
            one.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        return seen.decode_weights

    expected = steps(eager_of(mistral))
    with standing_in(2), using(mistral, 2):
        found = steps(mistral)
    for name, rows in found.items():
        assert len(rows) == 3
        for one, other in zip(rows, expected[name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask", [torch.ones_like(IDS), LEFT], ids=["", "padded"])
def test_a_static_cache_has_rows_of_the_tokens_that_are_in_it(mask):
    llama = tiny_llama()

    def rows(one):
        with AttentionExtractor(one, family=FAMILY) as seen:
            one.generate(IDS, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0,
                         eos_token_id=None, cache_implementation="static")  # fmt: skip
        return seen.attention_weights, seen.decode_weights

    prompt, expected = rows(eager_of(llama))
    with standing_in(2), using(llama, 2):
        found, steps = rows(llama)
    check_same(found, prompt, mask.bool().numpy())
    for name, one in steps.items():
        for step, other in zip(one, expected[name], strict=True):
            np.testing.assert_allclose(step, other, atol=1e-5)


@torch.no_grad()
def test_half_precision_and_autocast_are_those_of_the_kernel():
    llama = tiny_llama()
    with standing_in(2), using(llama, 2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self_check(llama, {"input_ids": IDS}, family=FAMILY)
        self_check(llama.to(torch.bfloat16), {"input_ids": IDS, "attention_mask": LEFT}, family=FAMILY)


# --- sinks and soft caps ---------------------------------------------------------------------------------
@torch.no_grad()
def test_sink_logits_that_a_package_does_not_take_are_refused(sinking):  # noqa: F811
    words = "has sink logits, which the kernel 'flash_attention_2' ignores; load the model with .*='eager'"
    with standing_in(2), using(sinking, 2), AttentionExtractor(sinking, family=SINKS_FAMILY) as seen:
        with pytest.raises(ValueError, match=words):
            sinking(**inputs())
        assert seen.attention_weights == {}


@torch.no_grad()
def test_sink_logits_that_a_package_takes_are_in_the_rows(sinking):  # noqa: F811
    """FlashAttention 3 as vLLM builds it."""

    def flash_attn_func(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), s_aux=None):
        return attend(q, k, v, softmax_scale, causal, window_size, 0.0, s_aux)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False,
        window_size=(-1, -1), s_aux=None,
    ):  # fmt: skip
        def one(q, k, v):
            return attend(q, k, v, softmax_scale, causal, window_size, 0.0, s_aux)

        return by_stretch(one, q, k, v, cu_seqlens_q, cu_seqlens_k)

    given = inputs(1)
    of_eager, expected = rows_of(sinking, SINKS_FAMILY, **given)
    made = package("flash_attn_interface", flash_attn_func, flash_attn_varlen_func)
    with standing_in(3, made), using(sinking, 3):
        logits, found = rows_of(sinking, SINKS_FAMILY, **given)
        self_check(sinking, given, family=SINKS_FAMILY)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(logits[real], of_eager[real], atol=1e-4, rtol=1e-4)
    check_same(found, expected, real.numpy())


def gemma():
    """Soft caps low enough to be felt, and a window in every second layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, sliding_window=WINDOW,
        attn_logit_softcapping=2.0, query_pre_attn_scalar=8, attn_implementation="eager",
    )  # fmt: skip
    made = Gemma2ForCausalLM(config).eval()
    made.model.tower = nn.ModuleList()
    return made


@torch.no_grad()
def test_soft_caps_are_in_the_rows_and_stay_in_a_knock_out():
    model = gemma()
    blocked = torch.zeros(1, 7, 7, dtype=torch.bool)
    blocked[0, 5:, 3:5] = True

    def run():
        with AttentionExtractor(model, family=FAMILY) as seen:
            plain = model(input_ids=IDS, attention_mask=LEFT).logits, seen.attention_weights
            with seen.knocked_out({"layer_1": blocked}):
                return *plain, model(input_ids=IDS, attention_mask=LEFT).logits, seen.attention_weights

    expected = run()
    with standing_in(2), using(model, 2):
        found = run()
    real = LEFT.bool()
    for at in (0, 2):
        torch.testing.assert_close(found[at][real], expected[at][real], atol=1e-4, rtol=1e-4)
    for at in (1, 3):
        check_same(found[at], expected[at], real.numpy())
    assert not torch.equal(found[0], found[2])


def test_the_stand_in_is_taken_away_again():
    with standing_in(2), using(llama := tiny_llama(), 2):
        assert head_means(llama, {"input_ids": IDS[:1]}, FAMILY).shape == (3, 7, 7)
    assert flash_2().__name__ not in __import__("sys").modules
    assert llama.config._attn_implementation == "sdpa"
