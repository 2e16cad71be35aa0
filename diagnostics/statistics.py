"""Is a difference more than chance, and what may be claimed? Paired, clustered, seeded; pure functions of
arrays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SAMPLES = 10_000
EXACT_UP_TO = 12  # sign flips of so few differences are all tried: 4,096
ENOUGH_PROBES = 20  # five pairs cannot go below p = 1/16
KEPT_SHARE = {"retention": 0.97, "neighbour": 0.95}  # of the accuracy before; less is a loss
RETENTION, NEIGHBOUR = "retention", "neighbour"


class Interval(NamedTuple):
    """A mean and the interval that holds it with 95 % confidence, in the unit of what was measured."""

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


@dataclass(frozen=True)
class GroupNumbers:
    """What a verdict on one group rests on.

    accuracy             share of probes with a positive margin
    enrichment           of the region, in the key layer fixed beforehand, times; None: no regions
    occlusion_cost_nats  margin lost by hiding the region; None: not measured
    control_cost_nats    margin lost by hiding area-matched random boxes, (before, after); None: not measured
    """

    group: str
    probes: int
    accuracy: Change
    enrichment: Change | None = None
    occlusion_cost_nats: Change | None = None
    control_cost_nats: tuple[float, float] | None = None


class Verdict(NamedTuple):
    """A claim in a few words, and one plain sentence for each thing that it rests on."""

    verdict: str
    reasons: tuple[str, ...]


def bootstrap_mean(
    values: Float[np.ndarray, " probes"], clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """Mean of values with its 95 % percentile bootstrap interval, clusters drawn whole. In the unit of the
    values.

    Probes that share an image are not independent: whole images are drawn with replacement (cluster
    bootstrap, Davison & Hinkley 1997, section 3.8). Give paired differences for a paired interval. Non-finite
    values are an error.

    Raises ValueError for no values, and where values and clusters differ in number.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"bootstrap: found {len(values)} values, expected at least one, all finite")
    names = list(range(len(values))) if clusters is None else list(clusters)
    if len(names) != len(values):
        raise ValueError(
            f"bootstrap: found {len(names)} clusters for {len(values)} values, expected one for each"
        )
    index = {name: at for at, name in enumerate(dict.fromkeys(names))}
    member = np.array([index[name] for name in names])
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (SAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def paired_change(
    before: Float[np.ndarray, " probes"],
    after: Float[np.ndarray, " probes"],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Change:
    """Means before and after, and the bootstrap interval of the difference of the same probes."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return Change(
        float(before.mean()), float(after.mean()), bootstrap_mean(after - before, clusters, seed=seed)
    )


def sign_flip_p(differences: Float[np.ndarray, " probes"], *, seed: int = 0) -> float:
    """Two-sided p that the paired differences have mean 0. Range [1 / flips, 1].

    Under no effect each difference is as likely with the other sign (Fisher 1935); all flips are tried up to
    12 differences, else 10,000 random ones, with the observed one counted among them. [1, 2, 3] gives 2 / 8.
    """
    differences = np.asarray(differences, np.float64)
    count = len(differences)
    if count <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], (SAMPLES, count))
    flipped = np.abs(signs @ differences)
    as_large = int((flipped >= abs(differences.sum()) - 1e-12).sum())
    return as_large / len(signs) if count <= EXACT_UP_TO else (as_large + 1) / (len(signs) + 1)


def benjamini_hochberg(p_values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """p-values adjusted for how many were asked: below q, at most a share q of the hits is false. Range [0,
    1].

    784 heads give 39 hits at .05 by chance alone. [.01, .02, .04] become [.03, .03, .04].
    Source: Benjamini & Hochberg 1995; adjusted values after Yekutieli & Benjamini 1999.
    """
    flat = np.asarray(p_values, np.float64).ravel()
    order = np.argsort(flat)
    ranked = flat[order] * len(flat) / np.arange(1, len(flat) + 1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return adjusted.reshape(np.shape(p_values))


def verdict(numbers: GroupNumbers) -> Verdict:
    """What may be said of a group. "corrected" only where answers, attention and cause all agree.

    Groups named ``retention`` and ``neighbour`` are asked whether they were kept: their accuracy after is at
    least 97 % or 95 % of that before. Fewer than 20 probes decide nothing.
    """
    if numbers.probes < ENOUGH_PROBES:
        reason = f"{numbers.probes} probes cannot tell a change from chance; at least {ENOUGH_PROBES} can."
        return Verdict("too few probes", (reason,))
    if numbers.group in (RETENTION, NEIGHBOUR):
        return _kept(numbers)
    answers, attention = numbers.accuracy.difference, numbers.enrichment
    cause = _cause_agrees(numbers)
    reasons = tuple(
        filter(None, (_accuracy_reason(numbers), _attention_reason(numbers), _cause_reason(numbers)))
    )
    moved = attention is not None and attention.difference.is_above_zero
    if answers.is_below_zero:
        return Verdict("answers got worse", reasons)
    if not answers.is_above_zero:
        return Verdict("attention moved, answers did not" if moved else "it did not move", reasons)
    if attention is None:
        return Verdict("answers changed, attention not measured", reasons)
    if not moved:
        return Verdict("answers changed, attention did not", reasons)
    if cause is None:
        return Verdict("answers and attention changed, cause not measured", reasons)
    return Verdict("corrected" if cause else "answers and attention changed, cause does not agree", reasons)


def _kept(numbers: GroupNumbers) -> Verdict:
    before, after = numbers.accuracy.before, numbers.accuracy.after
    share = KEPT_SHARE[numbers.group]
    kept = after >= share * before
    lost = "forgot" if numbers.group == RETENTION else "broke a neighbour"
    reason = (
        f"{after:.1%} of the probes are right, {before:.1%} were: "
        f"{'at least' if kept else 'less than'} {share:.0%} of what it was."
    )
    return Verdict("kept" if kept else lost, (reason,))


def _cause_agrees(numbers: GroupNumbers) -> bool | None:
    """Hiding the region costs more margin after than before, and more than hiding random boxes does."""
    cost, control = numbers.occlusion_cost_nats, numbers.control_cost_nats
    if cost is None or control is None:
        return None
    return cost.difference.is_above_zero and cost.after > control[1]


def _accuracy_reason(numbers: GroupNumbers) -> str:
    change = numbers.accuracy
    return (
        f"The right answer is likelier than the wrong one in {change.after:.1%} of the probes, {change.before:.1%} "
        f"before ({_ci(change.difference, percent=True)})."
    )


def _attention_reason(numbers: GroupNumbers) -> str:
    change = numbers.enrichment
    if change is None:
        return "These probes name no region, so nothing is said of attention."
    verb = (
        "rose"
        if change.difference.is_above_zero
        else "fell"
        if change.difference.is_below_zero
        else "did not move"
    )
    return (
        f"Attention on the region {verb}: {change.before:.2f} times its area's share before, {change.after:.2f} after "
        f"({_ci(change.difference)})."
    )


def _cause_reason(numbers: GroupNumbers) -> str:
    cost, control = numbers.occlusion_cost_nats, numbers.control_cost_nats
    if cost is None or control is None:
        return "What hiding the region costs was not measured."
    return (
        f"Hiding the region costs {cost.after:+.2f} nats of margin after, {cost.before:+.2f} before "
        f"({_ci(cost.difference)}); hiding random boxes of its shape costs {control[1]:+.2f} after, "
        f"{control[0]:+.2f} before."
    )


def _ci(interval: Interval, *, percent: bool = False) -> str:
    low, high = (f"{value:+.1%}" if percent else f"{value:+.2f}" for value in interval[1:])
    return f"95 % interval of the difference {low} to {high}"
