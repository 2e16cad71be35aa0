"""AttentionExtractor against eager attention of transformers, hand-made masks, and itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import convert_to_fp32

from diagnostics.capture import watcher
from diagnostics.capture.extractor import AttentionExtractor, Call
from diagnostics.capture.self_check import self_check
from finetune.attention import rows, watch
from finetune.attention.rows import attention_logits, attention_rows
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama


def extractor(model, *args, **kwargs) -> AttentionExtractor:
    return AttentionExtractor(model, *args, family=FAMILY, **kwargs)


@pytest.fixture
def model():
    return tiny_llama()


@torch.no_grad()
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_rows_are_those_of_eager_attention(model, padding):
    mask = torch.ones_like(IDS)
    if padding != "none":
        mask[1, slice(5, None) if padding == "right" else slice(0, 2)] = 0
    expected = tiny_llama("eager")(input_ids=IDS, attention_mask=mask, output_attentions=True).attentions
    with extractor(model, [0, 2], query_tokens=[2, -1]) as rows:
        model(input_ids=IDS, attention_mask=mask)
        weights = rows.attention_weights
    assert set(weights) == {"layer_0", "layer_2"}
    for layer in (0, 2):
        assert weights[f"layer_{layer}"].dtype == np.float32
        assert weights[f"layer_{layer}"].shape == (2, 4, 2, 7)
        # a padded query has no row worth comparing
        real = [(b, q) for b in (0, 1) for q, at in enumerate((2, 6)) if mask[b, at]]
        for b, q in real:
            want = expected[layer][b, :, (2, 6)[q]].numpy()
            np.testing.assert_allclose(weights[f"layer_{layer}"][b, :, q], want, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_logits_are_bit_identical_with_capture_attached(kernel):
    model = tiny_llama(kernel)
    mask = torch.tensor([[1] * 7, [0, 0] + [1] * 5])
    for inputs in ({"input_ids": IDS}, {"input_ids": IDS, "attention_mask": mask}):
        plain = model(**inputs).logits
        with extractor(model):
            assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_highest_logits_are_those_that_enter_the_softmax(monkeypatch, kernel, padding):
    mask = torch.ones_like(IDS)
    if padding != "none":
        mask[1, slice(5, None) if padding == "right" else slice(0, 2)] = 0
    entered = []
    softmax = torch.nn.functional.softmax
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.nn.functional, "softmax", lambda x, *a, **k: (entered.append(x), softmax(x, *a, **k))[1]
        )
        tiny_llama("eager")(input_ids=IDS, attention_mask=mask)
    expected = torch.stack(entered)[:, :, [3, 0]][..., [1, 4], :].amax(-1)  # layers, batch, heads, queries
    if padding == "left":
        expected[:, 1, :, 0] = -torch.inf  # the second sequence's token 1 is padding
    with extractor(model := tiny_llama(kernel), [0, 2], heads=[3, 0], query_tokens=[1, 4]) as rows:
        model(input_ids=IDS, attention_mask=mask)
        highest = rows.highest_logits
        assert set(highest) == {"layer_0", "layer_2"}
        for layer in (0, 2):
            assert highest[f"layer_{layer}"].dtype == np.float32
            np.testing.assert_allclose(highest[f"layer_{layer}"], expected[layer], atol=1e-4)
        cache = model(input_ids=IDS[:, :6], use_cache=True).past_key_values
        prefill = rows.highest_logits["layer_2"]
        model(input_ids=IDS[:, 6:], past_key_values=cache)
        assert np.array_equal(rows.highest_logits["layer_2"], prefill)  # a cached step adds none
    rows.clear()
    assert rows.highest_logits == {}


def test_every_row_every_layer_when_nothing_is_chosen(model):
    with torch.no_grad(), extractor(model) as rows:
        model(input_ids=IDS)
    assert [rows.attention_weights[f"layer_{i}"].shape for i in range(3)] == [(2, 4, 7, 7)] * 3
    upper = np.triu_indices(7, k=1)
    assert rows.attention_weights["layer_1"][..., upper[0], upper[1]].max() == 0
    np.testing.assert_allclose(rows.attention_weights["layer_1"].sum(-1), 1, atol=1e-5)


def test_heads_sequences_and_queries_of_each_sequence_are_chosen(model):
    with torch.no_grad(), extractor(model, [1]) as everything:
        model(input_ids=IDS)
    whole = everything.attention_weights["layer_1"]
    with (
        torch.no_grad(),
        extractor(
            model, [1], heads=[3, 0], sequences=[1, 0], query_tokens=torch.tensor([[2, 4], [6, 1]])
        ) as chosen,
    ):
        model(input_ids=IDS)
    got = chosen.attention_weights["layer_1"]
    expected = np.stack([whole[1][[3, 0]][:, [2, 4]], whole[0][[3, 0]][:, [6, 1]]])
    np.testing.assert_allclose(got, expected, atol=1e-6)


@torch.no_grad()
def test_generation_keeps_the_prefill_and_every_step(model):
    with extractor(model, [0, 2], query_tokens=[-1]) as rows:
        out = model.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        prefill, steps = rows.attention_weights["layer_2"], rows.decode_weights["layer_2"]
        assert prefill.shape == (1, 4, 1, 7)
        assert [step.shape for step in steps] == [(1, 4, 1, 8), (1, 4, 1, 9), (1, 4, 1, 10)]
        rows.query_tokens = None
        model(input_ids=out[:, :-1])  # the same tokens at once
        whole = rows.attention_weights["layer_2"]
        assert rows.decode_weights["layer_2"] == []
    for at, step in enumerate(steps):
        np.testing.assert_allclose(step[0, :, 0], whole[0, :, 7 + at, : 8 + at], atol=1e-5)


def test_configs_and_hooks_are_restored_also_after_an_exception(model):
    with pytest.raises(RuntimeError, match="boom"), extractor(model):
        assert model.config._attn_implementation == "sdpa"
        raise RuntimeError("boom")
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks and not model._forward_hooks
    extractor(model).remove()  # nothing is left that a new one would trip over


def test_a_second_extractor_is_refused_and_remove_twice_is_harmless(model):
    first = extractor(model)
    with pytest.raises(ValueError, match=r"another AttentionExtractor is attached.*remove\(\)"):
        extractor(model)
    first.remove()
    first.remove()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key_layers": [1, 3]}, "no language layer 3; expected 0 to 2"),
        ({"vision_layers": [0]}, "no vision layer 0"),
    ],
)
def test_a_missing_layer_is_an_error_and_leaves_the_model_alone(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        extractor(model, **arguments)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_tokens": [7]}, "query token 7 does not exist; the sequence has 7 tokens"),
        (
            {"query_tokens": 5},
            r"layer_0: query tokens: found the single number 5, expected positions: a list",
        ),
        ({"query_tokens": torch.ones(7, dtype=torch.bool)}, r"found a Bool mask.*mask\.nonzero\(\)"),
        ({"query_tokens": [False, True]}, "found a Bool mask, expected positions"),
        ({"query_tokens": [0.5]}, "found fractions, expected positions"),
        ({"query_tokens": torch.zeros(1, 1, 1, dtype=torch.long)}, "found 3 axes, expected positions"),
        ({"heads": [4]}, "head 4 does not exist; expected 0 to 3"),
        ({"sequences": [2]}, "sequence 2 does not exist; expected 0 to 1"),
    ],
)
def test_a_missing_row_head_or_sequence_is_an_error(model, arguments, message):
    with extractor(model, **arguments), pytest.raises(ValueError, match=message):
        model(input_ids=IDS)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_knock_out_is_a_softmax_over_the_keys_that_are_left(kernel):
    model = tiny_llama(kernel)
    blocked = torch.zeros(2, 7, 7, dtype=torch.bool)
    blocked[0, 6, [1, 2]] = True
    with extractor(model, [0]) as rows:
        plain = model(input_ids=IDS).logits
        before = rows.attention_weights["layer_0"]
        with rows.knocked_out({"layer_0": blocked}):
            changed = model(input_ids=IDS).logits
            after = rows.attention_weights["layer_0"]
        assert torch.equal(model(input_ids=IDS).logits, plain)
    assert not torch.equal(changed[0, 6], plain[0, 6])
    torch.testing.assert_close(changed[0, :6], plain[0, :6], atol=1e-5, rtol=0)
    torch.testing.assert_close(changed[1], plain[1], atol=1e-5, rtol=0)
    left = before[0, :, 6].copy()
    left[:, [1, 2]] = 0
    np.testing.assert_allclose(after[0, :, 6], left / left.sum(-1, keepdims=True), atol=1e-5)


@torch.no_grad()
def test_knock_out_in_a_cached_step_counts_queries_in_the_whole_sequence(model):
    blocked = torch.zeros(1, 7, 7, dtype=torch.bool)
    blocked[0, 6, 3] = True
    with extractor(model, [1], query_tokens=[-1]) as rows, rows.knocked_out({"layer_1": blocked}):
        whole = model(input_ids=IDS[:1]).logits[:, -1]
        cache = model(input_ids=IDS[:1, :6], use_cache=True).past_key_values
        stepped = model(input_ids=IDS[:1, 6:], past_key_values=cache).logits[:, -1]
        assert rows.decode_weights["layer_1"][0][0, :, 0, 3].max() == 0
    torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=0)


def test_knock_out_of_an_unknown_module_names_the_known_ones(model):
    blocked = {"layer_9": torch.zeros(1, 1, 7, dtype=torch.bool)}
    with extractor(model) as rows, pytest.raises(ValueError, match="no attention module 'layer_9'.*layer_0"):
        rows.knocked_out(blocked).__enter__()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_training_under_activation_checkpointing_gives_the_same_rows_and_gradients():
    def run(*, watch: bool):
        model = tiny_llama().train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        rows = extractor(model, [1], query_tokens=[3]) if watch else None
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return rows, model.model.layers[0].self_attn.q_proj.weight.grad

    rows, gradient = run(watch=True)
    assert rows.attention_weights["layer_1"].shape == (2, 4, 1, 7)
    assert torch.equal(gradient, run(watch=False)[1])


@torch.no_grad()
def test_bf16_rows_are_fp32_and_sum_to_one_also_under_autocast(model):
    with extractor(model, [2]) as rows:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=IDS)
        autocast = rows.attention_weights["layer_2"]
        model.to(torch.bfloat16)(input_ids=IDS)
    for weights in (autocast, rows.attention_weights["layer_2"]):
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def rows_of(query, key, mask, *, kernel, module=None, **options):
    call = Call(kernel, module or SimpleNamespace(is_causal=True), query, key, key, mask, options)
    return attention_rows(logits_of(call))


def logits_of(call):
    """Of every sequence and query."""
    batch, _, queries, _ = call.query.shape
    return attention_logits(call, torch.arange(batch), torch.arange(queries).expand(batch, -1))


def test_each_kernel_has_its_own_causal_rule():
    query, key = torch.zeros(1, 2, 2, 4), torch.zeros(1, 1, 5, 4)
    sdpa = rows_of(query, key, None, kernel="sdpa")[0, 0]
    flash = rows_of(query, key, None, kernel="flash_attention_2")[0, 0]
    eager = rows_of(query, key, None, kernel="eager")[0, 0]
    tower = rows_of(query, key, None, kernel="sdpa", module=SimpleNamespace(is_causal=False))[0, 0]
    assert sdpa.tolist() == [[1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0]]
    assert flash.tolist() == [[0.25, 0.25, 0.25, 0.25, 0], [pytest.approx(0.2)] * 5]
    assert (eager == 0.2).all() and (tower == 0.2).all()


def test_flash_padding_window_and_packing_are_rebuilt():
    query, key = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    padded = rows_of(query, key, torch.tensor([[0, 1, 1, 1]]), kernel="flash_attention_2")[0, 0]
    assert padded.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0] + [pytest.approx(1 / 3)] * 3]
    window = rows_of(query, key, None, kernel="flash_attention_2", sliding_window=2)[0, 0]
    assert window.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]
    bounds = dict.fromkeys(["cu_seq_lens_q", "cu_seq_lens_k"], torch.tensor([0, 1, 4]))
    packed = rows_of(query, key, None, kernel="flash_attention_2", **bounds, max_length_q=3, max_length_k=3)[
        0, 0
    ]
    assert packed.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0] + [pytest.approx(1 / 3)] * 3]


def test_scale_soft_cap_and_additive_mask_by_hand():
    query, key = torch.tensor([[[[2.0]]]]), torch.tensor([[[[1.0], [3.0]]]])
    mask = torch.tensor([[[[0.0, -1.0]]]])
    row = rows_of(query, key, mask, kernel="eager", scaling=0.5, softcap=2.0)[0, 0, 0]
    scores = np.array([2 * np.tanh(1 / 2), 2 * np.tanh(3 / 2) - 1])
    np.testing.assert_allclose(row, np.exp(scores) / np.exp(scores).sum(), rtol=1e-6)


def test_highest_logit_by_hand_negative_biased_and_of_a_row_that_sees_nothing():
    query = torch.tensor([[[[2.0], [1.0], [1.0]]]])
    key = torch.tensor([[[[-1.0], [3.0]]]])
    lowest = torch.finfo(torch.float32).min
    mask = torch.tensor([[[[0.0, lowest], [0.5, -4.0], [lowest, lowest]]]])
    call = Call("eager", SimpleNamespace(), query, key, key, mask, {"scaling": 0.5})
    assert rows.highest(call, logits_of(call)).tolist() == [[[-1.0, 0.0, -np.inf]]]
    call = call._replace(mask=mask == 0, kernel="sdpa")
    assert rows.highest(call, logits_of(call)).tolist() == [[[-1.0, -np.inf, -np.inf]]]


def test_a_row_that_sees_nothing_is_zero_and_a_broken_one_stays_broken():
    rows = attention_rows(torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf], [torch.nan, 0.0]]))
    assert rows[:2].tolist() == [[0.5, 0.5], [0, 0]]
    assert rows[2].isnan().all()


def test_terms_that_rows_cannot_show_are_refused():
    with pytest.raises(ValueError, match="adds position_bias to its attention; its rows cannot be shown"):
        rows_of(
            torch.zeros(1, 1, 1, 2),
            torch.zeros(1, 1, 3, 2),
            None,
            kernel="sdpa",
            position_bias=torch.zeros(1),
        )
    with pytest.raises(ValueError, match="'flex_attention' cannot be observed"):
        watch.check_kernel("flex_attention")


@torch.no_grad()
def test_self_check_passes_a_sound_model(model):
    self_check(model, {"input_ids": IDS}, family=FAMILY)
    self_check(tiny_llama("eager"), {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 7, [0] + [1] * 6])},
               family=FAMILY)  # fmt: skip
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_self_check_finds_rows_that_are_not_the_kernels(model, monkeypatch):
    true = rows.attention_rows
    monkeypatch.setattr(watcher, "attention_rows", lambda *a, **k: true(*a, **k).flip(1))
    with pytest.raises(
        ValueError, match=r"layer_0: rows × values differ from the kernel's output by .*at most 0.001"
    ):
        self_check(model, {"input_ids": IDS}, family=FAMILY)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_self_check_judges_by_the_precision_of_the_kernel_not_of_the_logits(kernel, dtype, monkeypatch):
    """Accelerate turns outputs under autocast into fp32; queries are fp32 there too, after the rotary embedding."""
    model = tiny_llama(kernel)
    inner = torch.autocast("cpu", dtype=dtype)(model.forward)
    model.forward = lambda **inputs: convert_to_fp32(inner(**inputs))
    assert model(input_ids=IDS).logits.dtype == torch.float32
    self_check(model, {"input_ids": IDS}, family=FAMILY)
    true = rows.attention_rows
    monkeypatch.setattr(watcher, "attention_rows", lambda *a, **k: true(*a, **k).roll(1, -1))
    with pytest.raises(ValueError, match="layer_0: rows × values differ .*, expected at most 0.03"):
        self_check(model, {"input_ids": IDS}, family=FAMILY)


@torch.no_grad()
def test_self_check_finds_rows_that_do_not_sum_to_one(model, monkeypatch):
    true = rows.attention_rows
    monkeypatch.setattr(watcher, "attention_rows", lambda *a, **k: true(*a, **k) * 1.01)
    with pytest.raises(ValueError, match="layer_0: a row's sum is off by 0.01, expected 1"):
        self_check(model, {"input_ids": IDS}, family=FAMILY)


@torch.no_grad()
def test_self_check_finds_attention_that_the_model_does_not_use(model):
    model.model.layers[2].self_attn.o_proj.weight.zero_()
    with pytest.raises(ValueError, match="layer_2: taking keys away left the logits as they were"):
        self_check(model, {"input_ids": IDS}, family=FAMILY)
