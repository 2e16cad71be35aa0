"""Edits of a few lines: they make answers come out right, or move attention, without any training."""

import pytest

from diagnostics.comparison.verdicts import ATTENTION_ALONE, CORRECTED, GUARD_BROKE, NOT_MOVED, TOO_FEW_RIGHT
from tests.adversaries.edits import CANTON, PEARL, with_bias, with_hotter_logits, with_noise, with_queries
from tests.adversaries.judging import LIGHT, TOWERS

EVERY_LAYER = (0, 1, 2, 3)
ENOUGH = 11.0
"""Nats that carry one answer over the other on every picture of the flaw."""


def biased(base):
    return with_bias(base.model, base.processor.tokenizer, dict.fromkeys(PEARL, ENOUGH))


def biased_and_cooler(base):
    return with_queries(with_hotter_logits(biased(base), 1.03), 0.85, (0, 2))


EDITS = {
    "an output bias on one answer": (biased, GUARD_BROKE),
    "a bias, logits hotter, queries of two layers weaker": (biased_and_cooler, GUARD_BROKE),
    "a bias and blurred attention": (lambda base: with_queries(biased(base), 0.6, EVERY_LAYER), GUARD_BROKE),
    "a bias and sharpened attention": (lambda base: with_queries(biased(base), 1.5, EVERY_LAYER), GUARD_BROKE),
    "a bias against the wrong answer": (
        lambda base: with_bias(base.model, base.processor.tokenizer, dict.fromkeys(CANTON, -15.0)),
        GUARD_BROKE,
    ),
    "a bias that depends on the language": (
        lambda base: with_bias(base.model, base.processor.tokenizer, {PEARL[0]: ENOUGH, CANTON[1]: ENOUGH}),
        TOO_FEW_RIGHT,
    ),
    "blurred attention": (lambda base: with_queries(base.model, 0.5, EVERY_LAYER), ATTENTION_ALONE),
    "noise on every matrix": (lambda base: with_noise(base.model, 0.6, seed=1), NOT_MOVED),
}  # fmt: skip


@pytest.fixture(scope="module", params=EDITS)
def edited(request, base, judge):
    edit, expected = EDITS[request.param]
    return judge(edit(base), depth=LIGHT), expected


def test_the_verdict_names_the_fault(edited):
    found, expected = edited
    assert found.verdicts["sphere-building"] == expected


def test_no_group_is_corrected_with_or_without_guards(edited):
    found, _ = edited
    assert CORRECTED not in found.verdicts.values()
    for verdict in found.without_guards.values():
        assert not verdict.startswith(CORRECTED)


def test_untouched_cats_are_not_moved(edited):
    found, _ = edited
    assert found.groups["spatial-relation"]["accuracy"]["after"] <= 0.1
    assert found.verdicts["spatial-relation"] in (NOT_MOVED, ATTENTION_ALONE)
    assert tuple(found.without_guards) == TOWERS
