"""Intervals, p-values and effect sizes against known cases."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest, rankdata

from diagnostics.measures.statistics import (
    Interval,
    alpha_of_look,
    benjamini_hochberg,
    bootstrap_mean,
    clopper_pearson,
    effect_size,
    head_tests,
    holm,
    mcnemar_p,
    paired_change,
    probes_needed,
    ratio_of_means,
    relative_change,
    sign_flip_p,
    signed_rank_direction,
    signed_rank_p,
    significant_heads,
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
    repeated = bootstrap_mean(np.repeat(values, 10), clusters=np.repeat(["a", "b", "c", "d"], 10).tolist())
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


def test_intervals_at_another_level_are_nested():
    values = np.random.default_rng(2).normal(0.3, 1.0, 50)
    wide, usual, narrow = (bootstrap_mean(values, level=level) for level in (0.99, 0.95, 0.5))
    assert wide.low < usual.low < narrow.low < narrow.high < usual.high < wide.high
    half = 2.576 * values.std() / np.sqrt(50)
    assert wide.high == pytest.approx(values.mean() + half, abs=0.05)
    assert paired_change(np.zeros(50), values, level=0.99).difference == wide
    with pytest.raises(ValueError, match="found level 95, expected a share above 0 and below 1"):
        bootstrap_mean(values, level=95)


def test_sign_flips_turn_whole_images():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), ["a", "a", "b"]) == 2 / 4
    assert (
        sign_flip_p(np.array([1.0, -1.0, 3.0]), ["a", "a", "b"]) == 1.0 - 0.0
    )  # image a has nothing to flip
    ten_probes_an_image = np.repeat([1.0, 1.2, 0.9, -0.1], 10)
    assert sign_flip_p(ten_probes_an_image) < 0.001
    assert sign_flip_p(ten_probes_an_image, np.repeat([0, 1, 2, 3], 10).tolist()) == 4 / 16
    with pytest.raises(ValueError, match="found 1 clusters for 2 values"):
        sign_flip_p(np.array([1.0, 2.0]), ["a"])


def test_relative_change_by_hand_and_symmetric(shapes_unchecked):
    before, after = (
        np.array([[1.0, 3.0, 0.0], [2.0, 0.0, 1.0]]),
        np.array([[3.0, 1.0, 0.0], [2.0, 5.0, 1.00009]]),
    )
    np.testing.assert_allclose(relative_change(before, after), [[1, -1, 0], [0, 2, 0]])
    np.testing.assert_array_equal(relative_change(after, before), -relative_change(before, after))
    with pytest.raises(ValueError, match="negative or non-finite"):
        relative_change(np.array([-1.0]), np.array([1.0]))
    with pytest.raises(ValueError, match=r"shapes \(1,\) before and \(2,\) after"):
        relative_change(np.ones(1), np.ones(2))


def random_heads(probes: int, layers: int, heads: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Enrichment before and after of which neither is ahead: two draws around one level for each probe."""
    rng = np.random.default_rng(seed)
    level = rng.lognormal(0, 0.8, (probes, 1, 1))
    first, second = level * rng.lognormal(0, 0.3, (2, probes, layers, heads))
    return first, second


def test_heads_that_did_not_change_are_named_as_often_as_said():
    before, after = random_heads(40, 20, 30)
    p = head_tests(before, after)
    assert p.shape == (20, 30)
    for level in (0.5, 0.05):  # 600 heads: within four standard errors
        assert (p < level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 600))
    np.testing.assert_array_equal(head_tests(after, before), p)


def test_the_head_that_changed_is_found_where_it_is():
    before, after = random_heads(40, 5, 7)
    after[:, 3, 2] *= 2
    before[:, 1, 6] *= 1.8
    p = head_tests(before, after)
    assert p[3, 2] < 1e-5 and p[1, 6] < 1e-5
    adjusted = significant_heads({"tower": before}, {"tower": after}, {"tower": None})["tower"]
    assert set(zip(*np.nonzero(adjusted < 0.05), strict=True)) == {(3, 2), (1, 6)}


def test_signed_ranks_by_hand():
    """Relative changes +1, −.4 and +1/3 have ranks 3, −2 and 1: 4 of 6 rise, as extreme as 4 of the 8 flips and their
    mirrors: {4, 5, 6} and {0, 1, 2} of the sums 0 1 2 3 3 4 5 6."""
    before, after = np.array([1.0, 3.0, 2.5]), np.array([3.0, 2.0, 3.5])
    assert head_tests(before[:, None, None], after[:, None, None]).item() == 6 / 8
    up = head_tests(np.ones((4, 2, 3)), np.full((4, 2, 3), 2.0))
    np.testing.assert_array_equal(up, np.full((2, 3), 2 / 16))
    with_none = head_tests(np.ones((6, 1, 1)), np.array([2.0, 1, 2, 3, 1, 2])[:, None, None])
    assert with_none.item() == 2 / 16  # probes without a change are left out


@pytest.mark.parametrize("probes", [9, 12])
def test_signed_ranks_are_sign_flips_of_ranks(probes):
    before, after = random_heads(probes, 2, 3, seed=probes)
    change = relative_change(before, after)
    ranks = np.sign(change) * (np.abs(change).argsort(0).argsort(0) + 1)
    for layer, head in np.ndindex(2, 3):
        expected = sign_flip_p(ranks[:, layer, head])
        assert head_tests(before, after)[layer, head] == pytest.approx(expected)


def test_p_goes_as_low_as_thousands_of_heads_need():
    before, after = random_heads(40, 16, 24)
    after[:, 5, 7] *= 3
    assert 2.0**-39 <= head_tests(before, after)[5, 7] < 1e-9 < sign_flip_p((after - before)[:, 5, 7])


def test_an_outlier_does_not_hide_what_the_others_share():
    before, after = random_heads(40, 1, 2)
    after *= 1.6
    before[0], after[0] = 200.0, 100.0
    assert head_tests(before, after).max() < 1e-3 < 0.5 < sign_flip_p((after - before)[:, 0, 0])


def test_thousands_of_heads():
    before, after = random_heads(40, 32, 32)
    found = head_tests(before, after)
    assert found.shape == (32, 32) and ((found > 0) & (found <= 1)).all()


def test_few_images_cannot_be_significant():
    """Six images of ten probes each: every head rises in all of them, and 2 / 2^6 is the least that flips show."""
    before = np.ones((60, 4, 3))
    after = 2 + np.random.default_rng(0).uniform(0, 0.1, (60, 4, 3))
    images = np.repeat(np.arange(6), 10).tolist()
    assert head_tests(before, after, images).min() == 2 / 64
    assert head_tests(before, after).max() < 1e-5


def test_nothing_changed_gives_one():
    before, _ = random_heads(30, 2, 3)
    after = before.copy()
    after[:, 0, 1] *= 2
    after[:, 1, 1] *= 1.00005  # another batch: rounding
    p = head_tests(before, after)
    assert p[0, 1] < 1e-4 and (np.delete(p.ravel(), 1) == 1).all()
    assert (head_tests(before, before) == 1).all()


def test_all_groups_are_one_family():
    calm = random_heads(40, 10, 20, seed=1)
    marked = random_heads(40, 2, 3, seed=2)
    marked[1][:, 1, 2] *= 1.27
    alone = significant_heads({"tower": marked[0]}, {"tower": marked[1]}, {"tower": None})["tower"]
    both = significant_heads(
        {"tower": marked[0], "cat": calm[0]},
        {"tower": marked[1], "cat": calm[1]},
        {"tower": None, "cat": None},
    )
    assert both["tower"].shape == (2, 3) and both["cat"].shape == (10, 20)
    raw = {name: head_tests(*pair) for name, pair in (("tower", marked), ("cat", calm))}
    joined = benjamini_hochberg(np.concatenate([raw["tower"].ravel(), raw["cat"].ravel()]))
    expected = np.minimum(2 * joined, 1)  # key layers are asked too
    np.testing.assert_array_equal(np.concatenate([both["tower"].ravel(), both["cat"].ravel()]), expected)
    assert both["tower"][1, 2] > alone[1, 2]
    assert significant_heads({}, {}, {}) == {}
    with pytest.raises(ValueError, match=r"found groups \['cat'\] in clusters, expected \['tower'\]"):
        significant_heads({"tower": marked[0]}, {"tower": marked[1]}, {"cat": None})


def test_effect_size_by_hand():
    assert effect_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 * (1 - 3 / 7))
    assert effect_size(np.array([-1.0, -2.0, -3.0])) == pytest.approx(-2 * (1 - 3 / 7))
    by_image = effect_size(np.array([0.5, 1.5, 2.0, 2.0, 3.0]), ["a", "a", "b", "b", "c"])
    assert by_image == pytest.approx(2 * (1 - 3 / 7))
    assert effect_size(np.zeros(4)) == 0
    assert effect_size(np.full(4, 0.3)) is None and effect_size(np.array([1.0])) is None


def test_probes_needed_against_the_exact_numbers():
    """Of the noncentral t, two-sided .05: power .95 takes 327, 54 and 23 pairs; power .8 takes 34 for .5."""
    assert [probes_needed(size) for size in (0.2, 0.5, -0.8)] == [327, 54, 23]
    assert probes_needed(0.5, power=0.8) == pytest.approx(34, abs=1)
    assert probes_needed(0.5, alpha=0.01) > 54  # type: ignore[operator]
    assert probes_needed(0.001) is None and probes_needed(None) is None


def test_all_looks_together_spend_alpha():
    spent = [alpha_of_look(look) for look in range(1, 100_001)]
    assert sum(spent) == pytest.approx(0.05, abs=1e-6) and sum(spent) < 0.05
    assert spent[1] == pytest.approx(spent[0] / 4) and alpha_of_look(3, 0.1) == pytest.approx(2 * spent[2])
    with pytest.raises(ValueError, match="found look 0, expected 1 for the first"):
        alpha_of_look(0)


def test_shares_have_exact_intervals() -> None:
    """Against SciPy's own: 40 of 40 is not 100 % to 100 %."""
    for hits, of, level in ((40, 40, 0.95), (0, 40, 0.95), (4, 24, 0.95), (7, 11, 0.99)):
        exact = binomtest(hits, of).proportion_ci(level, method="exact")
        assert clopper_pearson(hits, of, level=level) == pytest.approx((exact.low, exact.high))
    assert clopper_pearson(40, 40)[0] == pytest.approx(0.025 ** (1 / 40))
    with pytest.raises(ValueError, match="found 5 of 4"):
        clopper_pearson(5, 4)
    with pytest.raises(ValueError, match="found 0 of 0"):
        clopper_pearson(0, 0)


def test_answers_that_changed_are_coins() -> None:
    assert mcnemar_p(4, 0) == pytest.approx(2 / 16) == mcnemar_p(0, 4)
    assert mcnemar_p(0, 0) == 1.0 and mcnemar_p(3, 3) == 1.0
    for gained, lost in ((9, 2), (1, 12), (30, 10)):
        assert mcnemar_p(gained, lost) == pytest.approx(binomtest(gained, gained + lost).pvalue)


def test_a_share_is_a_ratio_of_means() -> None:
    share = ratio_of_means(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    assert share is not None and share == pytest.approx((0.5, 0.5, 0.5))
    rng = np.random.default_rng(3)
    whole = rng.normal(4, 1, 60)
    part = 0.3 * whole + rng.normal(0, 0.5, 60)
    share = ratio_of_means(part, whole)
    assert share is not None and share.low < 0.3 < share.high and share.high - share.low < 0.1
    assert ratio_of_means(part, -whole) is None  # the margin fell
    assert ratio_of_means(part, rng.normal(0.1, 2, 60)) is None  # it did not rise beyond chance
    twice = ratio_of_means(np.repeat(part, 2), np.repeat(whole, 2), [at // 2 for at in range(120)])
    assert twice == pytest.approx(share)


def test_signed_ranks_do_not_depend_on_the_order_of_ties():
    """Every sum of ranks, counted one by one; equal differences share the mean of their ranks."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        changes = rng.integers(-3, 4, rng.integers(1, 10)).astype(float)
        ranks = rankdata(np.abs(changes[changes != 0]))
        rising = ranks[changes[changes != 0] > 0].sum()
        larger = max(rising, ranks.sum() - rising)
        ways = [
            ranks[list(chosen)].sum()
            for n in range(len(ranks) + 1)
            for chosen in combinations(range(len(ranks)), n)
        ]
        expected = min(1.0, 2 * float(np.mean([way >= larger - 1e-9 for way in ways])))
        for order in (changes, changes[::-1], np.sort(changes)):
            assert signed_rank_p(order[:, None]).item() == pytest.approx(expected, abs=1e-12)
    many = np.where(np.arange(140) < 80, 2.0, -2.0)[:, None]
    assert signed_rank_p(many).item() == pytest.approx(float(binomtest(80, 140).pvalue), abs=0.02)


def test_signed_ranks_of_differences_by_hand():
    # ranks 1, 2, 3; rising 1 + 2 of 6: as even as can be
    assert signed_rank_p(np.array([[1.0], [2.0], [-3.0]])).item() == 1.0
    # four clusters that all rise, one of them of two probes; a fifth without a difference is left out
    rises = np.array([[1.0], [2.0], [3.0], [2.0], [2.0], [0.0]])
    assert signed_rank_p(rises, ["a", "b", "c", "d", "d", "e"]).item() == 2 / 16


@pytest.mark.parametrize(
    ("differences", "clusters", "expected"),
    [
        ([1.0, 2.0, -3.0], None, 0),  # ranks 1 + 2 against 3
        ([1.0, 2.0, -4.0, 3.0], None, 1),
        ([2.0, 2.0, -2.0], None, 1),  # ties share their rank
        ([3.0, -4.0, 2.0, 2.0], ["a", "a", "b", "c"], 1),  # -1 has the smallest rank, 2 and 2 the others
        ([3.0, -4.0, 2.0, 2.0], ["a", "a", "a", "b"], 1),
        ([9.0, -1.0, -1.0, -1.0, -1.0], None, -1),  # a mean that one carries
        ([0.0, 0.0], None, 0),
    ],
)
def test_which_way_ranks_lie(differences, clusters, expected):
    found = signed_rank_direction(np.array(differences), clusters)
    assert found.shape == () and found == expected
    both = np.stack([differences, np.negative(differences)], 1)[:, None]
    assert signed_rank_direction(both, clusters).tolist() == [[expected, -expected]]


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])
    assert holm(np.array([])).shape == (0,)
