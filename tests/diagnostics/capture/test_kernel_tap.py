"""A tap that is prepared once: it hears what an extractor's hears, changes nothing, and gives the model back."""

import pytest
import torch

from diagnostics import AttentionExtractor
from diagnostics.capture.extractor import Call
from diagnostics.capture.kernel_tap import KernelTap
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama

NAMES = ["layer_0", "layer_2"]


@pytest.fixture
def model():
    return tiny_llama()


def heard(attached, model) -> tuple[list[tuple[str, Call]], torch.Tensor]:
    calls = []

    def tap(name, call, output):
        calls.append((name, call))
        return output

    with torch.no_grad(), attached.tapped(tap):
        return calls, model(input_ids=IDS).logits


def test_it_hears_the_calls_of_the_modules_named_and_changes_nothing(model):
    tap = KernelTap(model, NAMES, family=FAMILY)
    calls, logits = heard(tap, model)
    again, _ = heard(tap, model)
    with torch.no_grad():
        assert torch.equal(logits, model(input_ids=IDS).logits)
    with AttentionExtractor(model, [], family=FAMILY) as extractor:
        expected, _ = heard(extractor, model)
    expected = [(name, call) for name, call in expected if name in NAMES]
    assert [name for name, _ in calls] == NAMES
    for (name, one), (_, two), (same, judge) in zip(calls, again, expected, strict=True):
        assert name == same and one.kernel == judge.kernel == "sdpa" and one.module is judge.module
        for call in (one, two):
            assert torch.equal(call.query, judge.query) and torch.equal(call.key, judge.key)


def test_the_model_goes_on_with_what_the_tap_returns(model):
    def louder(name, call, output):
        return 2 * output if name == "layer_2" else output

    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        with KernelTap(model, NAMES, family=FAMILY).tapped(louder):
            assert not torch.equal(model(input_ids=IDS).logits, plain)
        assert torch.equal(model(input_ids=IDS).logits, plain)


def test_the_kernel_that_is_in_use_when_it_taps_is_the_one_that_runs(model):
    tap = KernelTap(model, NAMES, family=FAMILY)
    model.set_attn_implementation("eager")
    calls, _ = heard(tap, model)
    assert {call.kernel for _, call in calls} == {"eager"}


def test_the_model_is_given_back_whatever_happens(model):
    tap = KernelTap(model, NAMES, family=FAMILY)
    with pytest.raises(KeyError), tap.tapped(lambda name, call, output: output):
        assert model.config._attn_implementation == "sdpa"
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    calls, _ = heard(tap, model)
    assert len(calls) == 2


def test_one_at_a_time_with_extractors(model):
    tap = KernelTap(model, NAMES, family=FAMILY)
    with (
        AttentionExtractor(model, family=FAMILY),
        pytest.raises(ValueError, match="another AttentionExtractor is attached"),
    ):
        heard(tap, model)
    with (
        tap.tapped(lambda name, call, output: output),
        pytest.raises(ValueError, match="another AttentionExtractor is attached"),
    ):
        AttentionExtractor(model, family=FAMILY)
    assert model.config._attn_implementation == "sdpa"
