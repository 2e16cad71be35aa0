"""The contract of families under FlashAttention 2 and 3, a stand-in on the CPU: rows, knock-outs, generation, training.

Eager attention of the same model is the judge.
"""

# ruff: noqa: F401, F811 (tests and fixtures of another file)

import itertools

import numpy as np
import pytest
import torch

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.gradients import gradient_rows
from diagnostics.capture.head_means import head_means
from diagnostics.capture.kernel_tap import KernelTap
from diagnostics.capture.self_check import self_check
from diagnostics.probing.prompts import padded
from finetune.families.base import flash_fault
from finetune.families.parts.modules import attending_layers
from finetune.model import checkpoint
from finetune.training.loss import token_nats
from tests.finetune.families.test_contract import (
    FAMILIES,
    IGNORED,
    _prompt_of,
    collated,
    encoded,
    family,
    known,
    logits,
    processor,
    test_a_batch_gives_what_its_samples_give_alone,
    test_a_blank_picture_changes_nothing_before_it,
    test_a_blank_picture_reaches_every_module_that_pictures_reach,
    test_answers_in_a_batch_are_those_read_without_a_cache,
    test_rows_of_the_tower_are_over_the_patches_of_each_picture,
)
from tests.flash_standin import standing_in, using

UNABLE = ("gemma3", "paligemma", "paligemma2")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name not in UNABLE])
def tiny(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def eager(tiny):
    model = tiny.model()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def model(tiny):
    model = tiny.model()
    with standing_in(2), using(model, 2):
        yield model


def batches(encoded):
    """One sample; two of unequal length, padded on either side."""
    yield padded([encoded[1]], CPU, left=False)
    for left in (True, False):
        yield padded(encoded[1:], CPU, left=left)


def watched(model, family, inputs, blocked=None, **options):
    """Logits and rows of every module that can be shown as one array."""
    every = AttentionExtractor(model, family=family, **options)
    with torch.no_grad(), every as seen, seen.knocked_out(blocked or {}):
        return model(**inputs, use_cache=False).logits, seen.attention_weights


def check_same_rows(found, expected, real=None):
    assert found.keys() == expected.keys() and found
    for name, rows in found.items():
        apart = np.abs(rows - expected[name]).transpose(0, 2, 1, 3)
        apart = apart if real is None or not name.startswith("layer_") else apart[real]
        assert apart.max() < 5e-6, name


# --- looking ---------------------------------------------------------------------------------------------
def test_rows_are_those_of_eager_and_logits_those_without(family, model, eager, encoded):
    for inputs in batches(encoded):
        plain = logits(model, inputs)
        found, rows = watched(model, family, inputs)
        assert torch.equal(found, plain)
        real = inputs["attention_mask"].bool()
        of_eager, expected = watched(eager, family, inputs)
        check_same_rows(rows, expected, real.numpy())
        assert (found - of_eager)[real].abs().max() <= 5e-6 * of_eager.abs().max()


def test_rows_of_the_tower_are_those_of_eager(tiny, family, model, eager, encoded):
    depth = len(list(model.get_submodule(family.paths.vision_layers).children()))
    tiles = [one.tiles for one in encoded[2].images]
    inputs = padded([encoded[2]], CPU, left=False)
    for image in (0, 1):
        options = {"vision_layers": range(depth), "images": [image], "tiles": tiles, "connector": False}
        found, expected = (watched(one, family, inputs, **options)[1] for one in (model, eager))
        assert f"vision_layer_{depth - 1}" in found
        check_same_rows(found, expected)


def test_rows_of_a_packed_row_stay_in_their_samples(tiny, family, processor, model, eager, encoded):
    if tiny.unpackable:
        return
    row = [encoded[1], encoded[0], encoded[2]]
    inputs = collated(family, processor, model, [row], packing=True)
    inputs.pop("labels")
    plain = logits(model, inputs)
    found, rows = watched(model, family, inputs)
    assert torch.equal(found, plain)
    check_same_rows(rows, watched(eager, family, inputs)[1])
    bounds = [*itertools.accumulate(len(one.input_ids) for one in row)]
    name = f"layer_{attending_layers(model, family)[0]}"
    assert rows[name][0, :, bounds[0] : bounds[1], : bounds[0]].max() == 0


def test_samples_in_one_row_do_not_see_each_other(tiny, family, processor, model, encoded):
    if tiny.unpackable:
        return
    rows = [[encoded[1], encoded[0], encoded[2]]]
    together = logits(model, collated(family, processor, model, rows, packing=True))[0]
    start = 0
    for one in rows[0]:
        alone = logits(model, collated(family, processor, model, [[one]]))[0]
        found = together[start : start + len(alone)]
        assert (found - alone).abs().max() <= 5e-6 * alone.abs().max()
        start += len(alone)


def test_samples_in_two_rows_of_a_batch_do_not_see_each_other(tiny, family, processor, model, encoded):
    """Of unequal rows, the second with a picture first: no sample's logits change with what comes before it."""
    if tiny.unpackable:
        return
    rows = [[encoded[1], encoded[0]], [encoded[2], encoded[0], encoded[1]]]
    together = logits(model, collated(family, processor, model, rows, packing=True))
    assert together.shape[:2] == (1, sum(len(one.input_ids) for row in rows for one in row))
    start = 0
    for one in itertools.chain(*rows):
        alone = logits(model, collated(family, processor, model, [[one]]))[0]
        found = together[0, start : start + len(alone)]
        assert (found - alone).abs().max() <= 5e-6 * alone.abs().max()
        start += len(alone)


def test_keys_knocked_out_are_lost_as_under_eager(family, model, eager, encoded):
    layers = attending_layers(model, family)
    for inputs in batches(encoded):
        real = inputs["attention_mask"].bool()
        blocked = torch.zeros(len(real), real.shape[1], real.shape[1], dtype=torch.bool)
        blocked[:, -6:, -12:-8] = True
        lost = {f"layer_{layers[-1]}": blocked}
        found, rows = watched(model, family, inputs, lost)
        of_eager, expected = watched(eager, family, inputs, lost)
        check_same_rows(rows, expected, real.numpy())
        assert (found - of_eager)[real].abs().max() <= 5e-6 * of_eager.abs().max()
        assert not torch.equal(found, logits(model, inputs))


def test_steps_of_a_generation_have_eager_s_rows(family, model, eager, encoded):
    inputs = padded([_prompt_of(one) for one in encoded[1:]], CPU, left=True)

    def steps(one):
        with torch.no_grad(), AttentionExtractor(one, family=family) as seen:
            said = one.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0,
                                eos_token_id=-1)  # fmt: skip
            return said, seen.attention_weights, seen.decode_weights

    (said, rows, found), (of_eager, prompt, expected) = steps(model), steps(eager)
    assert torch.equal(said, of_eager)
    check_same_rows(rows, prompt, inputs["attention_mask"].bool().numpy())
    assert found.keys() == expected.keys() and all(len(one) == 2 for one in found.values())
    for name, one in found.items():
        for step, other in zip(one, expected[name], strict=True):
            assert np.abs(step - other).max() < 5e-6


def test_capture_proves_itself_and_gradients_and_head_means_are_eager_s(family, model, eager, encoded):
    inputs = padded([encoded[1]], CPU, left=False)
    with torch.no_grad():
        self_check(model, inputs, family=family)
    found, expected = (head_means(one, inputs, family) for one in (model, eager))
    assert np.abs(found - expected).max() < 5e-6
    layers = attending_layers(model, family)
    found, expected = (
        gradient_rows(one, inputs, lambda out: out[0, -1, 5], key_layers=layers, family=family).gradients
        for one in (model, eager)
    )
    for name, rows in found.items():
        assert np.abs(rows - expected[name]).max() <= 1e-4 * np.abs(expected[name]).max()


def test_a_training_step_while_watched_is_the_one_without(family, processor, model, encoded):
    def gradients(*, watch):
        model.zero_grad()
        inputs = collated(family, processor, model, [[one] for one in encoded])
        labels = inputs.pop("labels")
        seen = AttentionExtractor(model, query_tokens=[-1], family=family) if watch else None
        out = model(**inputs, use_cache=False).logits
        token_nats(out[:, :-1], labels[:, 1:]).mean().backward()
        if seen is not None:
            assert seen.attention_weights
            seen.remove()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, found = gradients(watch=False), gradients(watch=True)
    assert plain.keys() == found.keys()
    assert all(torch.equal(plain[name], grad) for name, grad in found.items())


def test_rows_under_flash_attention_3(tiny, family, eager, encoded):
    """Another package, whose functions return more than the output; and the configuration says what it said."""
    other = tiny.model()
    inputs = padded(encoded[1:], CPU, left=True)
    with standing_in(3), using(other, 3):
        plain = logits(other, inputs)
        with torch.no_grad(), AttentionExtractor(other, family=family) as seen:
            assert other.config._attn_implementation == "flash_attention_3"
            assert torch.equal(other(**inputs, use_cache=False).logits, plain)
    expected = watched(eager, family, inputs)[1]
    check_same_rows(seen.attention_weights, expected, inputs["attention_mask"].bool().numpy())


# --- where it is another model ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", UNABLE)
def test_a_family_whose_mask_flash_leaves_out_is_refused(name, tmp_path):
    tiny = FAMILIES[name]
    model, words = tiny.model(), f"{tiny.family.name}: .*see those after them.*which flash kernels cannot do"
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with standing_in(2):
        with using(model, 2):
            for attach in (
                lambda: AttentionExtractor(model, family=tiny.family),
                lambda: head_means(model, inputs, tiny.family),
                lambda: KernelTap(model, ["layer_0"], family=tiny.family).tapped(print).__enter__(),
            ):
                with pytest.raises(ValueError, match=words):
                    attach()
        with AttentionExtractor(model, family=tiny.family) as seen, using(model, 2):
            with pytest.raises(ValueError, match=words):
                model(**inputs)
            assert seen.attention_weights == {}
    with pytest.raises(ValueError, match=f"--attn_implementation flash_attention_2: {words}; give sdpa"):
        checkpoint.check_kernel_of(model.config, "flash_attention_2")


def test_nearly_every_family_can():
    assert {name for name, one in FAMILIES.items() if flash_fault(one.family)} == {*UNABLE}
