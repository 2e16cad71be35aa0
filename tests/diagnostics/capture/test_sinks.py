"""Sink logits: an InternVL whose language model is a GPT-OSS, against its own eager attention."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from diagnostics.capture import masks, watcher
from diagnostics.capture.extractor import AttentionExtractor, Call
from diagnostics.capture.gradients import gradient_rows
from diagnostics.capture.head_means import head_means
from diagnostics.capture.self_check import self_check
from diagnostics.measures.attention import row_entropy, visual_share
from diagnostics.web.trace_recorder import TraceRecorder
from finetune.attention import rows
from finetune.attention.rows import attention_logits, attention_rows, sink_logits
from finetune.families.internvl import InternVLFamily

FAMILY = InternVLFamily()
HEADS, LAYERS, WINDOW, EACH = 4, 4, 5, 8
IMAGE = 40
PICTURE = [7, *[IMAGE] * EACH]
IDS = torch.tensor([[1, *PICTURE, 4, 9, 2, 6], [3, *PICTURE, 8, 8, 5, 1]])


@pytest.fixture
def model():
    """Layers 0 and 2 see five keys back, 1 and 3 all. Heads' sinks take from next to nothing to most of a row."""
    torch.manual_seed(0)
    text = {
        "model_type": "gpt_oss", "vocab_size": 48, "hidden_size": 32, "intermediate_size": 24, "head_dim": 8,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2, "num_local_experts": 4,
        "num_experts_per_tok": 2, "sliding_window": WINDOW, "initializer_range": 0.2, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "model_type": "internvl_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": [16, 16], "patch_size": [4, 4],
    }  # fmt: skip
    config = InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, downsample_ratio=0.5, attn_implementation="eager"
    )  # fmt: skip
    made = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for at, layer in enumerate(made.model.language_model.layers):
            layer.self_attn.sinks.copy_(torch.tensor([-4.0, 0.0, 1.5, 4.0]).roll(at))
    return made


def inputs(padded=0):
    torch.manual_seed(1)
    mask = torch.ones_like(IDS)
    mask[1, :padded] = 0
    return {
        "input_ids": IDS,
        "attention_mask": mask,
        "pixel_values": torch.randn(4, 3, 16, 16),
    }  # two tiles each


def one():
    given = inputs()
    return {
        "input_ids": IDS[:1],
        "attention_mask": given["attention_mask"][:1],
        "pixel_values": given["pixel_values"][:2],
    }


@torch.no_grad()
@pytest.mark.parametrize("padded", [0, 1])
def test_rows_are_those_of_eager_attention(model, padded):
    given = inputs(padded)
    expected = model(**given, output_attentions=True).attentions
    plain = model(**given).logits
    with AttentionExtractor(model, family=FAMILY) as extractor:
        assert torch.equal(model(**given).logits, plain)
        weights = extractor.attention_weights
    assert sorted(weights) == [f"layer_{at}" for at in range(LAYERS)]
    for at in range(LAYERS):
        rows = weights[f"layer_{at}"]
        for sequence in (0, 1):
            real = slice(padded if sequence else 0, None)
            np.testing.assert_allclose(rows[sequence, :, real], expected[at][sequence, :, real], atol=1e-6)
        sums = rows[0].sum(-1)
        assert (sums < 1).all() and (sums > 0).all()
        assert sums.min() < 0.5 and sums.max() > 0.9  # heads differ in what their sinks take
        assert (rows[0, :, WINDOW:, 0] == 0).all() == (at % 2 == 0)


@torch.no_grad()
def test_the_check_of_capture_holds_and_sees_what_is_wrong(model, monkeypatch):
    given = inputs()
    self_check(model, given, family=FAMILY)
    with (
        monkeypatch.context() as patched,
        pytest.raises(ValueError, match="rows × values differ from the kernel"),
    ):
        patched.setattr(watcher, "sink_logits", lambda call: None)
        self_check(model, given, family=FAMILY)
    true = rows.attention_rows
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="expected 1 at most"):
        patched.setattr(watcher, "attention_rows", lambda *given: true(*given) * 3)
        self_check(model, given, family=FAMILY)


def test_a_row_beside_a_sink_logit_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, -torch.inf], [-torch.inf, -torch.inf]]])  # one head, three rows
    rows = attention_rows(logits, torch.tensor([2.0]).log())
    assert torch.allclose(rows, torch.tensor([[[0.25, 0.25], [1 / 3, 0], [0, 0]]]))
    # A sink is a head's own, and the same in each row of it.
    rows = attention_rows(torch.zeros(2, 3, 2), torch.tensor([0.0, 2.0]).exp().log())
    assert torch.allclose(rows.sum(-1)[:, 0], torch.tensor([2 / 3, 2 / (2 + np.e**2)], dtype=torch.float32))


def test_a_kernel_that_leaves_sinks_out_is_refused():
    call = Call("sdpa", nn.Identity(), torch.zeros(1, 1, 1, 2), *[torch.zeros(1, 1, 3, 2)] * 2, None,
                {"s_aux": torch.zeros(1)})  # fmt: skip
    with pytest.raises(ValueError, match="sink logits, which the kernel 'sdpa' ignores; .*'eager'"):
        sink_logits(call)
    assert sink_logits(call._replace(kernel="flash_attention_2")).tolist() == [0.0]
    assert sink_logits(call._replace(options={})) is None


def test_a_kernel_that_leaves_a_soft_cap_out_is_refused():
    """SDPA of older transformers does so in silence; rows with the cap would not be those of the model."""
    keys = torch.ones(1, 1, 3, 2)
    call = Call("sdpa", nn.Identity(), keys[:, :, :1], keys, keys, None, {"softcap": 0.5})
    first = torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(
        ValueError, match="a soft cap of its logits, which the kernel 'sdpa' ignores; .*'eager'"
    ):
        attention_logits(call, *first)
    capped = attention_logits(call._replace(kernel="eager"), *first)
    assert torch.allclose(capped, torch.full((1, 1, 1, 3), 0.5 * np.tanh(2**0.5 / 0.5)))


@torch.no_grad()
def test_knock_out_leaves_the_sink(model):
    """The keys that are left share the row with the sink as before: a softmax over them and it."""
    given = inputs()
    blocked = torch.zeros(1, 1, IDS.shape[1], dtype=torch.bool)
    blocked[..., 2:10] = True  # the picture
    with AttentionExtractor(model, [3], family=FAMILY, query_tokens=[-1]) as extractor:
        model(**given)
        before, highest = extractor.attention_weights["layer_3"], extractor.highest_logits["layer_3"]
        with extractor.knocked_out({"layer_3": blocked}):
            model(**given)
        after = extractor.attention_weights["layer_3"]
    assert (after[..., 2:10] == 0).all() and np.isfinite(highest).all()
    keys = ~blocked[0, 0].numpy()
    sink = 1 - before.sum(-1, keepdims=True)
    expected = before[..., keys] / (before[..., keys].sum(-1, keepdims=True) + sink)
    np.testing.assert_allclose(after[..., keys], expected, atol=1e-6)


def test_a_flash_kernel_is_replaced_by_one_that_knows_sinks():
    query, key = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    call = Call("flash_attention_2", nn.Identity(), query, key, key, None, {"s_aux": torch.zeros(1)})
    blocked = torch.tensor([[[True, False]]])
    mask = masks.mask_without(call, blocked, start=0)
    replaced = masks.with_mask(call, mask)
    lowest = torch.finfo(torch.float32).min
    assert replaced.kernel == "eager" and replaced.mask.tolist() == [[[[lowest, lowest], [lowest, 0.0]]]]
    assert masks.with_mask(call._replace(options={}), mask).kernel == "sdpa"


@torch.no_grad()
def test_rows_of_a_generated_reply_are_those_of_one_pass(model):
    given = one()
    names = [f"layer_{at}" for at in range(LAYERS)]
    taken = TraceRecorder(names, lambda: [0, 3, 10])
    with AttentionExtractor(model, [], family=FAMILY) as extractor, extractor.tapped(taken):
        reply = model.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    whole = {**given, "input_ids": reply, "attention_mask": torch.ones_like(reply)}
    with AttentionExtractor(model, family=FAMILY) as extractor:
        model(**whole)
        expected = extractor.attention_weights
    for name in names:
        found = taken.rows(name, most=100).float().numpy()
        want = expected[name][0][:, taken.positions, : found.shape[-1]]
        np.testing.assert_allclose(found, want, atol=2e-3, err_msg=name)  # half precision
        assert (found.sum(-1) < 1).all()


@torch.no_grad()
def test_head_means_are_of_the_same_rows(model):
    given = one()
    means = head_means(model, given, family=FAMILY)
    expected = model(**given, output_attentions=True).attentions
    np.testing.assert_allclose(means, np.stack([one[0].mean(0) for one in expected]), atol=1e-6)


def test_gradients_are_of_the_same_rows(model):
    """A little more of a row's key is worth what autograd through eager attention says."""
    given = one()
    found = gradient_rows(
        model, given, lambda logits: logits[0, -1, 3], key_layers=[3], query_tokens=[-1], family=FAMILY
    )
    with torch.no_grad():
        expected = model(**given, output_attentions=True).attentions[3]
    np.testing.assert_allclose(found.rows["layer_3"][0, :, 0], expected[0, :, -1], atol=1e-6)
    assert np.abs(found.gradients["layer_3"]).max() > 0


def test_metrics_of_rows_that_sum_to_less_than_one():
    """A head that rests on its sink is at rest, not frozen on a token."""
    even = np.full((1, 8), 0.001 / 8)
    assert row_entropy(even, 8) == pytest.approx(1.0)
    assert row_entropy(np.array([0.25, 0.125, 0.125, 0.0]), 3) == pytest.approx(1.5 * np.log(2) / np.log(3))
    assert visual_share(np.array([0.1, 0.2, 0.3]), np.array([1, 2])) == pytest.approx(0.5)
    assert row_entropy(np.zeros(3), 3) == 0.0


def test_shape_and_language_layers(model):
    shape = FAMILY.attention_shape(model.config, "layer_1")
    assert (shape.heads, shape.key_heads, shape.head_width) == (HEADS, 2, 8)
