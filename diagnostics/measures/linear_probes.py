"""Can a linear rule read an answer off hidden states? Ridge regression, cross-validated by picture, beside shuffled
labels; pure functions of arrays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diagnostics.measures.statistics import clopper_pearson

FOLDS = 8
SHUFFLES = 200
PENALTIES = 10.0 ** np.arange(-3, 3)
"""Ridge penalties beside a kernel whose mean diagonal is about 1; one is chosen in each fold by leaving one out."""
FLAT = 1e-6  # spread, beside the largest of its block, below which a number is rounding


class LinearProbe(NamedTuple):
    """How well two classes are told apart on pictures that the rule was not fitted to.

    accuracy     mean of both classes' shares of right answers, [0, 1]; chance is .5
    low, high    its Clopper-Pearson interval, over pictures
    shuffled     what 95 % of shuffles of the labels stay at or below, by the same procedure
    p            share of shuffles that do as well, the true labels counted among them
    pictures     of each class (0, 1)
    """

    accuracy: float
    low: float
    high: float
    shuffled: float
    p: float
    pictures: tuple[int, int]


def linear_probe(
    blocks: Sequence[Float[np.ndarray, "samples _"]],
    labels: Int[np.ndarray, " samples"],
    pictures: Sequence[Hashable],
    *,
    tasks: Sequence[Hashable] | None = None,
    aligned: bool = True,
    folds: int = FOLDS,
    shuffles: int = SHUFFLES,
    level: float = 0.95,
    seed: int = 0,
) -> LinearProbe:
    """Tell class 1 from class 0 by hidden states, each picture by a rule fitted to the others.

    blocks     hidden states of several places, each standardised on its own and of equal weight
    labels     0 or 1
    pictures   the picture of each sample: all samples of one are in one fold
    tasks      samples of one pair of answers ("on" / "under", "上面" / "下面"); each task is centred on its own, and
               half of the rule is its own (Daumé 2007, "Frustratingly easy domain adaptation": shared and own
               weights). None: one task
    aligned    does label 1 mean the same in all tasks? Where not, tasks are turned so that their differences of means
               agree on the training folds

    Why ridge in its dual form and not logistic regression after PCA: states are wider than there are samples, and the
    penalty does what cutting dimensions does without a second choice; one decomposition of the kernel serves every
    penalty and every shuffle. Centre, scale and penalty come from the training folds alone.

    Two numbers that are the label and its negative give accuracy 1, and p = 1 / (shuffles + 1).

    Raises ValueError for states that are not finite, for a class without two pictures, and for unequal lengths.
    Source: Alain & Bengio 2016, arXiv 1610.01644; shuffled labels as in Hewitt & Liang 2019, arXiv 1909.03368.
    """
    states = [np.asarray(block, np.float64).reshape(len(block), -1) for block in blocks]
    labels = np.asarray(labels, int)
    names = [0] * len(labels) if tasks is None else list(tasks)
    _check(states, labels, pictures, names)
    task = _numbered(names)
    picture = _numbered(pictures)
    rng = np.random.default_rng(seed)
    fold = _folds(labels, task, picture, folds, rng)
    strata = _strata(labels, task, picture, fold)
    targets = np.stack([labels, *(_shuffled(labels, strata, rng) for _ in range(shuffles))], axis=1)
    signs = 2.0 * targets - 1
    right = np.zeros(targets.shape, bool)
    for at in range(fold.max() + 1):
        held = fold == at
        guesses = _guesses(states, signs, task, held, aligned=aligned)
        right[held] = (guesses > 0) == (signs[held] > 0)
    scores = np.array(
        [_balanced(right[:, column], targets[:, column], picture) for column in range(targets.shape[1])]
    )
    accuracy, others = float(scores[0]), scores[1:]
    sizes = tuple(len(set(picture[labels == label].tolist())) for label in (0, 1))
    low, high = _interval(accuracy, sizes, level)
    return LinearProbe(
        accuracy,
        low,
        high,
        float(np.quantile(others, 0.95)) if shuffles else 0.5,
        float((others >= accuracy - 1e-12).sum() + 1) / (shuffles + 1),
        (sizes[0], sizes[1]),
    )


def _check(
    states: Sequence[np.ndarray], labels: np.ndarray, pictures: Sequence[Hashable], tasks: Sequence[Hashable]
) -> None:
    lengths = {len(labels), len(pictures), len(tasks), *(len(one) for one in states)}
    if len(lengths) > 1 or not states:
        raise ValueError(
            f"linear probe: found lengths {sorted(lengths)}, expected one state, label and picture each"
        )
    if not all(np.isfinite(one).all() for one in states):
        raise ValueError("linear probe: found hidden states that are not finite; does the model overflow?")
    for label in (0, 1):
        found = len({name for name, own in zip(pictures, labels, strict=True) if own == label})
        if found < 2:
            raise ValueError(f"linear probe: found {found} picture(s) of class {label}, expected at least 2")


def _numbered(names: Sequence[Hashable]) -> Int[np.ndarray, " samples"]:
    index = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names])


def _folds(
    labels: np.ndarray, task: np.ndarray, picture: np.ndarray, count: int, rng: np.random.Generator
) -> Int[np.ndarray, " samples"]:
    """Pictures dealt out so that each fold has about the same mixture of tasks and classes."""
    first = {one: int(np.flatnonzero(picture == one)[0]) for one in np.unique(picture)}
    order = sorted(first, key=lambda one: (task[first[one]], labels[first[one]], rng.random()))
    count = min(count, len(order))
    of_picture = {one: at % count for at, one in enumerate(order)}
    return np.array([of_picture[one] for one in picture])


class _Stratum(NamedTuple):
    """The samples of one task and fold: their places, the labels of its pictures, and which of these each sample has;
    samples of one picture and label have one."""

    samples: Int[np.ndarray, " samples"]
    labels: Int[np.ndarray, " units"]
    unit: Int[np.ndarray, " samples"]


def _strata(labels: np.ndarray, task: np.ndarray, picture: np.ndarray, fold: np.ndarray) -> list[_Stratum]:
    found = []
    for stratum in np.unique(np.stack([task, fold]), axis=1).T:
        own = np.flatnonzero((task == stratum[0]) & (fold == stratum[1]))
        units, unit = np.unique(np.stack([picture[own], labels[own]]), axis=1, return_inverse=True)
        found.append(_Stratum(own, units[1], unit.reshape(-1)))
    return found


def _shuffled(
    labels: np.ndarray, strata: Sequence[_Stratum], rng: np.random.Generator
) -> Int[np.ndarray, " samples"]:
    """Labels handed out anew among the pictures of each task and fold.

    Within folds, since these hold as many of each class: labels shuffled across them would leave a class rarer where it
    is asked for than where it was learned, which pushes guesses below chance and makes the true labels look good.
    """
    found = labels.copy()
    for one in strata:
        found[one.samples] = rng.permutation(one.labels)[one.unit]
    return found


def _guesses(
    states: Sequence[np.ndarray],
    signs: Float[np.ndarray, "samples shuffles"],
    task: np.ndarray,
    held: Bool[np.ndarray, " samples"],
    *,
    aligned: bool,
) -> Float[np.ndarray, "held shuffles"]:
    """The rule's value for the samples held out, by the labels of the others: above 0 is class 1."""
    kernel = _kernel(states, task, ~held)
    fitted, given = kernel[np.ix_(~held, ~held)], kernel[np.ix_(held, ~held)]
    own, other, wanted = task[~held], task[held], signs[~held]
    turns = np.ones((task.max() + 1, signs.shape[1])) if aligned else _turns(fitted, wanted, own)
    wanted = wanted * turns[own]
    values, vectors = np.linalg.eigh(fitted)
    values = np.maximum(values, 0)
    rotated = vectors.T @ wanted
    best = np.full(wanted.shape[1], np.inf)
    found = np.zeros((int(held.sum()), wanted.shape[1]))
    for penalty in PENALTIES:
        shrink = values / (values + penalty)
        leverage = (vectors**2 @ shrink)[:, None]
        left_out = (vectors @ (shrink[:, None] * rotated) - leverage * wanted) / np.maximum(
            1 - leverage, 1e-9
        )
        error = ((left_out - wanted) ** 2 * _weights(wanted)).sum(0)
        chosen = error < best
        best = np.where(chosen, error, best)
        solved = vectors @ (rotated / (values + penalty)[:, None])
        values_held = given @ solved - _middles(left_out, wanted, own)[other]
        found = np.where(chosen, values_held, found)
    return found * turns[other]


def _kernel(states: Sequence[np.ndarray], task: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Inner products of states: centred by task, scaled, all blocks alike, shared and own weights of a task alike."""
    total = np.zeros((len(task), len(task)))
    for block in states:
        centred = block.copy()
        for one in np.unique(task):
            members = (task == one) & fitted
            centred[task == one] -= block[members if members.any() else fitted].mean(0)
        spread = centred[fitted].std(0)
        kept = spread > FLAT * max(float(spread.max()), 1e-30)
        if not kept.any():
            continue
        scaled = centred[:, kept] / spread[kept]
        total += scaled @ scaled.T / scaled.shape[1]
    return total / len(states) * (1 + (task[:, None] == task[None, :])) / 2


def _turns(kernel: np.ndarray, wanted: np.ndarray, task: np.ndarray) -> Float[np.ndarray, "tasks shuffles"]:
    """1 or −1 for each task: does its difference of class means agree with the largest task's?"""
    count = np.bincount(task)
    reference = int(count.argmax())
    differences = [_difference(wanted, task == one) for one in range(len(count))]
    agreed = [(differences[reference] * (kernel @ one)).sum(0) for one in differences]
    return np.where(np.stack(agreed) < 0, -1.0, 1.0)


def _difference(wanted: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Weights of samples whose sum is the difference of the class means."""
    first, second = (wanted > 0) & members[:, None], (wanted < 0) & members[:, None]
    return first / np.maximum(first.sum(0), 1) - second / np.maximum(second.sum(0), 1)


def _weights(wanted: np.ndarray) -> np.ndarray:
    """Both classes weigh alike, however many samples each has."""
    return np.where(
        wanted > 0, 1 / np.maximum((wanted > 0).sum(0), 1), 1 / np.maximum((wanted < 0).sum(0), 1)
    )


def _middles(
    left_out: np.ndarray, wanted: np.ndarray, task: np.ndarray
) -> Float[np.ndarray, "tasks shuffles"]:
    """Half way between the class means of each task; of all tasks where one lacks a class."""
    found = []
    everywhere = _middle(left_out, wanted, np.ones(len(task), bool))[0]
    for one in range(int(task.max()) + 1):
        middle, has_both = _middle(left_out, wanted, task == one)
        found.append(np.where(has_both, middle, everywhere))
    return np.stack(found)


def _middle(left_out: np.ndarray, wanted: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = (wanted > 0) & members[:, None], (wanted < 0) & members[:, None]
    counts = first.sum(0), second.sum(0)
    means = [
        (left_out * own).sum(0) / np.maximum(count, 1)
        for own, count in zip((first, second), counts, strict=True)
    ]
    return (means[0] + means[1]) / 2, (counts[0] > 0) & (counts[1] > 0)


def balanced_accuracy(
    right: Bool[np.ndarray, " samples"],
    labels: Int[np.ndarray, " samples"],
    pictures: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean of both classes' shares of right answers, each picture counted once in a class, and its interval.

    3 of 4 and 1 of 2 right give .625. The interval is Clopper and Pearson's for as many pictures of one class as vary
    as much: 4 / (1 / n₀ + 1 / n₁). Range [0, 1].
    """
    picture = _numbered(pictures)
    value = _balanced(right, labels, picture)
    sizes = [len(set(picture[labels == label].tolist())) for label in (0, 1)]
    return (value, *_interval(value, sizes, level))


def _balanced(right: np.ndarray, labels: np.ndarray, picture: np.ndarray) -> float:
    shares = []
    for label in (0, 1):
        own = labels == label
        if own.any():
            sums, counts = np.bincount(picture[own], right[own]), np.bincount(picture[own])
            shares.append(float((sums[counts > 0] / counts[counts > 0]).mean()))
    return float(np.mean(shares))


def _interval(value: float, sizes: Sequence[int], level: float) -> tuple[float, float]:
    # floor of both: an interval that is too wide rather than too narrow
    count = max(int(4 / (1 / max(sizes[0], 1) + 1 / max(sizes[1], 1))), 1)
    low, high = clopper_pearson(int(value * count + 1e-9), count, level=level)
    return min(low, value), max(high, value)
