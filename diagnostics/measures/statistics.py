"""Statistics of paired, clustered differences: significance, size, and the probes needed to show them. Seeded;
pure functions of arrays. What may be claimed from it: ``diagnostics.comparison.verdicts``."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import bdtr, betaincinv

SAMPLES = 10_000
FAMILIES = 2  # of tests per comparison: key layers, and all heads
EXACT_TIES = 100  # clusters up to which tied ranks are exact: each pattern of ties has its table
EXACT_UP_TO = 12  # differences up to which all sign flips are tried: 4,096
ROUNDING = 1e-4  # smaller relative changes come from another batch or kernel, not from training
NO_EFFECT = 0.01  # standard deviations; below it no affordable number of probes would show anything


class Interval(NamedTuple):
    """A mean and the interval that holds it with 95 % confidence (or the level given), in the unit of the
    measurement."""

    mean: float
    low: float
    high: float

    @property
    def is_above_zero(self) -> bool:
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        return self.high < 0


@dataclass(frozen=True)
class Change:
    """A group's mean before and after, and the interval of the paired difference after − before."""

    before: float
    after: float
    difference: Interval

    def json(self) -> dict[str, Any]:
        """As written to comparison.json; ``ci95`` keeps its name at any level."""
        low, high = self.difference.low, self.difference.high
        return {
            "before": self.before,
            "after": self.after,
            "difference": self.difference.mean,
            "ci95": [low, high],
        }


# ---------------------------------------------------------------- intervals


def bootstrap_mean(
    values: Float[np.ndarray, " probes"],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of values with its percentile bootstrap interval, clusters drawn whole. In the unit of the values.

    Probes that share an image are not independent: whole images are drawn with replacement (cluster
    bootstrap, Davison & Hinkley 1997, section 3.8). Give paired differences for a paired interval.

    Raises ValueError for no values, for values that are not finite, where values and clusters differ in number, and
    for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(
            f"bootstrap: found level {level}, expected a share above 0 and below 1, such as 0.95"
        )
    values, member = _clustered(values, clusters, "bootstrap")
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = _draws(len(sums), seed)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.percentile(means, [50 - 50 * level, 50 + 50 * level])
    return Interval(float(values.mean()), float(low), float(high))


def paired_change(
    before: Float[np.ndarray, " probes"],
    after: Float[np.ndarray, " probes"],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Change:
    """Means before and after, and the bootstrap interval of the difference of the same probes."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    interval = bootstrap_mean(after - before, clusters, seed=seed, level=level)
    return Change(float(before.mean()), float(after.mean()), interval)


def ratio_of_means(
    numerator: Float[np.ndarray, " probes"],
    denominator: Float[np.ndarray, " probes"],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Mean numerator over mean denominator, with the percentile bootstrap interval of paired draws. A share.

    The ratio of means, not the mean of ratios: a probe whose denominator is nearly 0 would decide the latter alone.
    [1, 2] over [2, 4] gives .5. None if the mean denominator is not above 0, in the sample or in one draw of 40:
    then it is no share of anything.

    Raises ValueError as ``bootstrap_mean`` does.
    """
    top, member = _clustered(numerator, clusters, "ratio of means")
    bottom, _ = _clustered(denominator, clusters, "ratio of means")
    drawn = _draws(int(member.max()) + 1, seed)
    tops, bottoms = drawn @ np.bincount(member, top), drawn @ np.bincount(member, bottom)
    if bottom.mean() <= 0 or np.percentile(bottoms, 50 - 50 * level) <= 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = tops / bottoms
    low, high = np.percentile(ratios[bottoms > 0], [50 - 50 * level, 50 + 50 * level])
    return Interval(float(top.mean() / bottom.mean()), float(low), float(high))


def clopper_pearson(hits: int, of: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: it holds the true one with at least the given confidence. Range [0, 1].

    A bootstrap of 40 right answers of 40 gives 100 % to 100 %; this gives 91.2 % to 100 %.

    Raises ValueError for more hits than trials, and for none of either.
    Source: Clopper & Pearson 1934, Biometrika 26:404.
    """
    if not 0 <= hits <= of or of < 1:
        raise ValueError(f"share: found {hits} of {of}, expected at most all of at least one")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, of - hits + 1, tail))
    high = 1.0 if hits == of else float(betaincinv(hits + 1, of - hits, 1 - tail))
    return low, high


# ---------------------------------------------------------------- chance


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided exact p that as many answers became right as became wrong. Range (0, 1].

    Those that stayed say nothing of a change, so the test is a coin for each that did not: 4 gained and 0 lost give
    2 / 16 = .125, however many stayed.

    Source: McNemar 1947, Psychometrika 12:153; exact form in Fagerland et al. 2013, BMC Med. Res. Methodol. 13:91.
    """
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def sign_flip_p(
    differences: Float[np.ndarray, " probes"],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> float:
    """Two-sided p that the paired differences have mean 0. Range [1 / flips, 1].

    Under no effect each difference is as likely with the other sign (Fisher 1935); the differences of one cluster
    (image) change their sign together. All flips are tried up to 12 clusters, else 10,000 random ones, with the
    observed one counted among them. [1, 2, 3] gives 2 / 8; with the first two in one cluster, 2 / 4.

    Raises ValueError as ``bootstrap_mean`` does.
    """
    differences, member = _clustered(differences, clusters, "sign flips")
    sums = np.bincount(member, differences)
    signs, exact = _signs(len(sums), seed)
    flipped = np.abs(signs @ sums)
    as_large = int((flipped >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()).sum())
    return as_large / len(signs) if exact else (as_large + 1) / (len(signs) + 1)


def relative_change(
    before: Float[np.ndarray, "*shape"], after: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """By what share of their mean did numbers change? 2 (after − before) / (after + before). Range [−2, 2].

    Attention changes by factors: one probe's region starts at .2 times its share and another's at 20, and plain
    differences would show only the second. This is the logarithm of the ratio for small changes, needs no
    constant where attention is 0, and only changes its sign when before and after are exchanged, which is what sign
    flips rest on. 1 → 3 gives 1; 3 → 1 gives −1; 0 → 0 gives 0. Mass and
    enrichment give the same number. Changes below 1/10,000 count as 0: they are rounding.

    Raises ValueError for negative or non-finite numbers, and where the shapes differ.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(
            f"relative change: found shapes {before.shape} before and {after.shape} after, expected the same probes"
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all() and min(before.min(), after.min()) >= 0):
        raise ValueError("relative change: found negative or non-finite numbers, expected shares or times")
    total = before + after
    change = np.divide(2 * (after - before), total, out=np.zeros_like(total), where=total > 0)
    return np.where(np.abs(change) < ROUNDING, 0.0, change)


def head_tests(
    before: Float[np.ndarray, "probes layers heads"],
    after: Float[np.ndarray, "probes layers heads"],
    clusters: Sequence[Hashable] | None = None,
) -> Float[np.ndarray, "layers heads"]:
    """Two-sided p for each head that its attention (mass or enrichment, ≥ 0) did not change. Range [2 / 2^clusters,
    1].

    Sign flips of the ranks of ``relative_change`` (Wilcoxon's signed ranks; whole clusters, by the sum of their
    changes). Ranks for two reasons. How much attention changes by differs by magnitudes between probes, and ranks
    find a gain that all share where sums are drowned by a few. And the null distribution is then the same for every
    head and known: all 2^clusters flips are counted, none drawn, so that p goes as far below 1 / 10,000 as correcting
    for 784 to 3,136 heads needs. Four clusters that all rise: 2 / 16. False findings and power are measured in
    ``benchmarks/calibration.py``.

    Clusters without a change are left out; a head that changed in no probe has p = 1. Which way a head changed says
    ``signed_rank_direction(relative_change(…))``: means can say the reverse where a few probes weigh most.

    Raises ValueError as ``relative_change`` does, and where probes and clusters differ in number.
    Source: Wilcoxon 1945, Biometrics Bulletin 1:80.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    change = relative_change(before, after).reshape(len(before), -1)
    return signed_rank_p(change, clusters).reshape(before.shape[1:])


def signed_rank_p(
    differences: Float[np.ndarray, "probes tests"], clusters: Sequence[Hashable] | None = None
) -> Float[np.ndarray, " tests"]:
    """Two-sided p for each column that its paired differences lie around 0. Range [2 / 2^clusters, 1].

    Exact signed ranks of whole clusters, by the sum of their differences; clusters without a difference are left out,
    and equal ones share the mean of their ranks. [1, 2, -3] has rising ranks 1 + 2 of 6, as even as can be: p = 1. Four
    clusters that all rise: 2 / 16. [2, 2, -2] has rising ranks 2 + 2 of 6: p = 1. With ties among more than
    ``EXACT_TIES`` clusters, the normal approximation with the ties' own variance.

    Raises ValueError where probes and clusters differ in number.
    Source: Wilcoxon 1945, Biometrics Bulletin 1:80.
    """
    sums, doubled, rising, total = _signed_ranks(np.asarray(differences, np.float64), clusters)
    counted = np.count_nonzero(sums, axis=0)
    p_values = np.ones(sums.shape[1])
    for test in np.flatnonzero(counted):
        larger = int(max(rising[test], total[test] - rising[test]))
        ranks = np.sort(doubled[sums[:, test] != 0, test])
        if counted[test] <= EXACT_TIES or (np.diff(ranks) > 0).all():
            p_values[test] = _signed_rank_tails(tuple(ranks.tolist()))[larger]
        else:
            beyond = (larger - total[test] / 2) / math.sqrt(float((ranks**2.0).sum()) / 4)
            p_values[test] = 2 * NormalDist().cdf(-beyond)
    return np.minimum(p_values, 1.0)


def signed_rank_direction(
    differences: Float[np.ndarray, "probes ..."], clusters: Sequence[Hashable] | None = None
) -> Int[np.ndarray, "*tests"]:
    """Which way do the ranks of ``signed_rank_p`` lie? 1 up, −1 down, 0 even.

    Where 80 of 100 fall by a fifth and 20 grow sixfold, ranks fall and the mean rises: only where both agree is there a
    direction to claim.
    """
    differences = np.asarray(differences, np.float64)
    _, _, rising, total = _signed_ranks(differences.reshape(len(differences), -1), clusters)
    return np.sign(2 * rising - total).reshape(differences.shape[1:])


def _signed_ranks(
    differences: Float[np.ndarray, "probes tests"], clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sums of clusters, their ranks (doubled: mean ranks are then whole), and the sums of rising and of all ranks."""
    from scipy.stats import rankdata  # .8 s, and drawing never needs it

    _, member = _clustered(np.zeros(len(differences)), clusters, "signed ranks")
    sums = _cluster_sums(differences, member)
    counted = np.count_nonzero(sums, axis=0)
    # Those without a difference come first.
    doubled = np.rint(2 * (rankdata(np.abs(sums), axis=0) - (len(sums) - counted))).astype(int)
    return sums, doubled, np.where(sums > 0, doubled, 0).sum(0), counted * (counted + 1)


def significant_heads(
    before_by_group: Mapping[str, Float[np.ndarray, "probes layers heads"]],
    after_by_group: Mapping[str, Float[np.ndarray, "probes layers heads"]],
    clusters_by_group: Mapping[str, Sequence[Hashable] | None],
) -> dict[str, Float[np.ndarray, "layers heads"]]:
    """p of ``head_tests`` adjusted for every group, layer and head looked at: group → p. Range (0, 1].

    All groups of one comparison are one family (``benjamini_hochberg`` over all of it): below .05, at most 5 % of the
    heads named, in whatever group, are expected to be named by chance. Key layers are the other family of a comparison:
    one "head" each, its mean over heads. So each p is doubled, and where nothing changed at all, 5 %
    bounds the comparisons that find anything in either.

    Raises ValueError as ``head_tests`` does, and where the three do not name the same groups.
    """
    for what, given in (("after", after_by_group), ("clusters", clusters_by_group)):
        if set(given) != set(before_by_group):
            raise ValueError(
                f"significant heads: found groups {sorted(given)} in {what}, expected {sorted(before_by_group)}"
            )
    chances = {
        name: head_tests(before, after_by_group[name], clusters_by_group[name])
        for name, before in before_by_group.items()
    }
    if not chances:
        return {}
    joined = np.concatenate([p.ravel() for p in chances.values()])
    adjusted = np.minimum(FAMILIES * benjamini_hochberg(joined), 1.0)
    parts = np.split(adjusted, np.cumsum([p.size for p in chances.values()])[:-1])
    return {name: part.reshape(p.shape) for (name, p), part in zip(chances.items(), parts, strict=True)}


def benjamini_hochberg(p_values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """p-values adjusted for the number of tests: of the hits below q, at most a share q is false. Range [0, 1].

    784 heads give 39 hits at .05 by chance alone. [.01, .02, .04] become [.03, .03, .04].
    Source: Benjamini & Hochberg 1995; adjusted values after Yekutieli & Benjamini 1999.
    """
    flat = np.asarray(p_values, np.float64).ravel()
    order = np.argsort(flat)
    ranked = flat[order] * len(flat) / np.arange(1, len(flat) + 1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return adjusted.reshape(np.shape(p_values))


def holm(p_values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """p-values adjusted so that with 95 % none of those below .05 is there by chance. Range [0, 1].

    Stricter than ``benjamini_hochberg``, for few tests of which a single hit is acted on. [.01, .02, .04] become
    [.03, .04, .04]. Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    flat = np.asarray(p_values, np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    stepped = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.reshape(np.shape(p_values))


def alpha_of_look(look: int, alpha: float = 0.05) -> float:
    """The error that the look-th look (1, 2, …) at a running training may spend: alpha · 6 / (π² look²).

    Who looks at every checkpoint and stops at the first significant one is fooled far more often than alpha. These
    shares sum to alpha over any number of looks, however many come (Σ 1 / k² = π² / 6, a Bonferroni bound with
    unequal weights). Range (0, alpha): .030, .0076, .0034, … for .05.

    Raises ValueError for a look before the first.
    """
    if look < 1:
        raise ValueError(f"looks: found look {look}, expected 1 for the first")
    return alpha * 6 / (math.pi * look) ** 2


# ---------------------------------------------------------------- size


def effect_size(
    differences: Float[np.ndarray, " probes"], clusters: Sequence[Hashable] | None = None
) -> float | None:
    """How large is a change beside how much it varies? Cohen's d of paired differences (d_z) with Hedges' correction
    for few. Unit: standard deviations of the difference; .2 small, .5 medium, .8 large.

    p and the interval's width depend on how many probes there are; this does not. Each cluster's mean counts as one
    difference. [1, 2, 3] gives 2 / 1 · (1 − 3 / (4 · 2 − 1)) = 1.143. All zeros give 0; None if the differences do
    not vary, or one cluster alone is there: d has no meaning then.

    Raises ValueError as ``bootstrap_mean`` does.
    Source: d_z in Lakens 2013, Frontiers in Psychology 4:863; correction after Hedges 1981.
    """
    differences, member = _clustered(differences, clusters, "effect size")
    means = np.bincount(member, differences) / np.bincount(member)
    if not means.any():
        return 0.0
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    if spread <= 1e-9 * float(np.abs(means).max()):
        return None
    return float(means.mean()) / spread * (1 - 3 / (4 * (len(means) - 1) - 1))


def probes_needed(effect: float | None, *, power: float = 0.95, alpha: float = 0.05) -> int | None:
    """How many probes (each with an image of its own) find a paired change of this size, at the given power, in a
    two-sided t-test at level alpha? None if the effect is nearly 0 (below .01) or unknown.

    ((z(1 − α/2) + z(power)) / d)² + z(1 − α/2)² / 2, rounded up: the normal approximation with the correction for
    Student's t (Guenther 1981, The American Statistician 35:243), within one of the exact number. d = .5 needs 54,
    d = .8 needs 23.
    """
    if effect is None or abs(effect) < NO_EFFECT:
        return None
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    return math.ceil(((z_alpha + z_power) / effect) ** 2 + z_alpha**2 / 2)


# ---------------------------------------------------------------- clusters, draws, flips


def _clustered(
    values: Float[np.ndarray, " probes"], clusters: Sequence[Hashable] | None, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values as float64, and the index of each one's cluster."""
    values = np.asarray(values, np.float64)
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"{what}: found {len(values)} values, expected at least one, all finite")
    names = list(range(len(values))) if clusters is None else list(clusters)
    if len(names) != len(values):
        raise ValueError(
            f"{what}: found {len(names)} clusters for {len(values)} values, expected one for each"
        )
    index = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return values, np.array([index[name] for name in names])


def _cluster_sums(
    values: Float[np.ndarray, "probes heads"], member: np.ndarray
) -> Float[np.ndarray, "clusters heads"]:
    sums = np.zeros((int(member.max()) + 1, values.shape[1]))
    np.add.at(sums, member, values)
    return sums


@lru_cache(maxsize=8)
def _draws(clusters: int, seed: int) -> Float[np.ndarray, "samples clusters"]:
    """How often each cluster is drawn in each bootstrap sample. Cached: a comparison needs the same ones often."""
    drawn = np.random.default_rng(seed).integers(0, clusters, (SAMPLES, clusters))
    drawn += np.arange(SAMPLES)[:, None] * clusters
    counts = np.bincount(drawn.ravel(), minlength=SAMPLES * clusters)
    return counts.reshape(SAMPLES, clusters).astype(np.float64)


@lru_cache(maxsize=8)
def _signs(clusters: int, seed: int) -> tuple[Float[np.ndarray, "flips clusters"], bool]:
    """Signs for each cluster, and whether these are all possible ones."""
    if clusters <= EXACT_UP_TO:
        bits = (np.arange(2**clusters)[:, None] >> np.arange(clusters)) & 1
        return 1.0 - 2.0 * bits, True
    return np.random.default_rng(seed).choice([-1.0, 1.0], (SAMPLES, clusters)), False


@lru_cache(maxsize=256)
def _signed_rank_tails(doubled: tuple[int, ...]) -> Float[np.ndarray, " sums"]:
    """2 P(sum of the rising ranks ≥ w), each rank rising with probability ½; exact. Ranks are doubled, which makes mean
    ranks of ties whole, and so is w, the index from 0 to the sum of all."""
    chance = np.zeros(sum(doubled) + 1)
    chance[0], reached = 1.0, 0
    for rank in doubled:
        rises = chance[: reached + 1] / 2
        chance[: reached + 1] /= 2
        chance[rank : rank + reached + 1] += rises
        reached += rank
    return 2 * chance[::-1].cumsum()[::-1]


SIGNIFICANT = 0.05
