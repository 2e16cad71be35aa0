"""Intervals and p-values against known cases, and verdicts that claim no more than they may."""

import numpy as np
import pytest

from diagnostics.statistics import (
    Change,
    GroupNumbers,
    Interval,
    benjamini_hochberg,
    bootstrap_mean,
    paired_change,
    sign_flip_p,
    verdict,
)


def test_bootstrap_agrees_with_the_normal_interval_and_is_seeded():
    values = np.random.default_rng(1).normal(0.3, 1.0, 200)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(200)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.02
    )
    assert bootstrap_mean(values) == interval != bootstrap_mean(values, seed=1)


def test_probes_of_one_image_count_as_one():
    values = np.array([0.0, 1.0, 2.0, 3.0])
    repeated = bootstrap_mean(np.repeat(values, 10), clusters=np.repeat(["a", "b", "c", "d"], 10))
    assert repeated == bootstrap_mean(values)
    assert bootstrap_mean(np.repeat(values, 10)).low > repeated.low


def test_paired_change_is_of_the_differences():
    before, after = np.array([0.0, 10.0, 20.0]), np.array([1.0, 11.0, 21.0])
    change = paired_change(before, after)
    assert (change.before, change.after, change.difference) == (10, 11, Interval(1, 1, 1))
    assert change.difference.is_above_zero and not change.difference.is_below_zero


def test_bad_values_are_errors():
    with pytest.raises(ValueError, match="found 0 values, expected at least one"):
        bootstrap_mean(np.array([]))
    with pytest.raises(ValueError, match="all finite"):
        bootstrap_mean(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="found 1 clusters for 2 values"):
        bootstrap_mean(np.array([1.0, 2.0]), ["a"])


def test_sign_flips_by_hand_and_at_random():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip_p(np.array([1.0, -1.0])) == 1
    assert sign_flip_p(np.full(5, 0.1)) == 1 / 16
    assert sign_flip_p(np.full(40, 0.1)) == pytest.approx(1 / 10_001)
    assert sign_flip_p(np.random.default_rng(0).normal(0, 1, 60)) > 0.05


def test_benjamini_hochberg_by_hand_keeps_shape_and_order():
    np.testing.assert_allclose(
        benjamini_hochberg(np.array([[0.04], [0.01], [0.02]])), [[0.04], [0.03], [0.03]]
    )
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.9, 0.01, 0.8])), [0.9, 0.03, 0.9])


UP, NOT, DOWN = Interval(1, 0.5, 1.5), Interval(0, -0.5, 0.5), Interval(-1, -1.5, -0.5)


def numbers(
    group="sphere-building", probes=40, accuracy=UP, attention=UP, cause=UP, control=(0.1, 0.2)
) -> GroupNumbers:
    return GroupNumbers(
        group,
        probes,
        Change(0.1, 0.95, accuracy),
        None if attention is None else Change(6.4, 7.6, attention),
        None if cause is None else Change(0.2, 3.8, cause),
        control,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (numbers(), "corrected"),
        (numbers(cause=NOT), "answers and attention changed, cause does not agree"),
        (numbers(control=(0.1, 4.0)), "answers and attention changed, cause does not agree"),
        (numbers(cause=None), "answers and attention changed, cause not measured"),
        (numbers(attention=NOT), "answers changed, attention did not"),
        (numbers(attention=DOWN), "answers changed, attention did not"),
        (numbers(attention=None), "answers changed, attention not measured"),
        (numbers(accuracy=NOT), "attention moved, answers did not"),
        (numbers(accuracy=NOT, attention=NOT), "it did not move"),
        (numbers(accuracy=DOWN), "answers got worse"),
        (numbers(probes=19), "too few probes"),
    ],
)
def test_a_correction_is_claimed_only_where_all_three_agree(given, expected):
    assert verdict(given).verdict == expected
    assert all(reason.endswith(".") for reason in verdict(given).reasons)


def test_reasons_give_the_numbers():
    accuracy, attention, cause = verdict(numbers()).reasons
    assert "95.0% of the probes, 10.0% before" in accuracy and "+50.0% to +150.0%" in accuracy
    assert "rose: 6.40 times its area's share before, 7.60 after" in attention
    assert "costs +3.80 nats of margin after, +0.20 before" in cause and "+0.20 after, +0.10 before" in cause


@pytest.mark.parametrize(
    ("group", "after", "expected"),
    [
        ("retention", 0.97, "kept"),
        ("retention", 0.96, "forgot"),
        ("neighbour", 1.0, "kept"),
        ("neighbour", 0.5, "broke a neighbour"),
    ],
)
def test_what_was_known_must_be_kept(group, after, expected):
    result = verdict(GroupNumbers(group, 40, Change(1.0, after, NOT)))
    assert (
        result.verdict == expected
        and f"{after:.1%} of the probes are right, 100.0% were" in result.reasons[0]
    )
