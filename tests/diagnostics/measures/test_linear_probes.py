"""Linear probes on states whose classes are known by construction."""

import numpy as np
import pytest

from diagnostics.measures.linear_probes import balanced_accuracy, linear_probe

PICTURES = [f"picture {at}" for at in range(24)]
LABELS = np.array([0, 1] * 12)


def noise(width: int, *, seed: int = 0, samples: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(samples, width))


def test_a_number_that_is_the_label_tells_all_and_no_shuffle_does_as_well():
    found = linear_probe([2.0 * LABELS[:, None] - 1], LABELS, PICTURES, shuffles=99)
    assert found.accuracy == 1 and found.p == pytest.approx(1 / 100)
    assert found.pictures == (12, 12)
    # 24 of 24: Clopper-Pearson's lower end is .025 ** (1 / 24)
    assert found.low == pytest.approx(0.025 ** (1 / 24)) and found.high == 1
    assert found.shuffled < 0.9


def test_states_without_the_label_are_chance_however_wide():
    found = [
        linear_probe([noise(200, seed=seed)], LABELS, PICTURES, shuffles=99, seed=seed) for seed in range(8)
    ]
    assert 0.4 < np.mean([one.accuracy for one in found]) < 0.6
    assert sum(one.p <= 0.05 for one in found) <= 2


def test_a_rule_is_never_tried_on_a_picture_that_it_was_fitted_to():
    """Each picture twice, with states that name the picture alone: known by heart, they would tell all."""
    states = np.tile(np.eye(12), (2, 1))
    labels = np.tile(np.array([0, 1] * 6), 2)
    found = linear_probe([states], labels, [f"picture {at}" for at in range(12)] * 2, shuffles=0)
    assert found.accuracy <= 0.6
    assert linear_probe([states], labels, [str(at) for at in range(24)], shuffles=0).accuracy > 0.7


def test_a_wide_block_does_not_drown_a_narrow_one():
    label = (2.0 * LABELS - 1)[:, None]
    assert linear_probe([noise(400), label], LABELS, PICTURES, shuffles=0).accuracy == 1


def test_classes_of_unlike_size_count_alike():
    """20 of one and 4 of the other: always guessing the larger gets half, not 83 %."""
    labels = np.array([0] * 20 + [1] * 4)
    constant = linear_probe([np.ones((24, 3))], labels, PICTURES, shuffles=0)
    assert constant.accuracy == 0.5
    assert linear_probe([labels[:, None] + 0.0], labels, PICTURES, shuffles=0).accuracy == 1


def test_tasks_are_centred_on_their_own():
    """A language moves all states by far more than the answer does, and every answer of it is rarer."""
    task = np.array([0, 0, 1] * 8)
    states = np.stack([LABELS + 50.0 * task, 3.0 * task], axis=1)
    assert linear_probe([states], LABELS, PICTURES, tasks=list(task), shuffles=0).accuracy == 1


def test_tasks_whose_labels_mean_the_opposite_are_turned():
    task = np.array([0] * 12 + [1] * 12)
    states = (2.0 * LABELS - 1)[:, None] * np.where(task == 0, 1, -1)[:, None] + 0.1 * noise(1)
    turned = linear_probe([states, noise(3)], LABELS, PICTURES, tasks=list(task), aligned=False, shuffles=0)
    assert turned.accuracy == 1


def test_the_interval_of_both_classes_is_that_of_the_smaller_ones_weight():
    right = np.array([True, True, True, False, True, False])
    labels = np.array([0, 0, 0, 0, 1, 1])
    value, low, high = balanced_accuracy(right, labels, list("abcdef"))
    assert value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert 0 < low < value < high <= 1
    # two samples of one picture count once: 1, 1, 1/2 of three pictures
    again, _, _ = balanced_accuracy(right, labels, list("abccef"))
    assert again == pytest.approx(((1 + 1 + 0.5) / 3 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("states", "labels", "fault"),
    [
        (np.full((24, 2), np.nan), LABELS, "not finite"),
        (np.ones((24, 2)), np.array([1] + [0] * 23), r"1 picture\(s\) of class 1"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(states, labels, fault):
    with pytest.raises(ValueError, match=fault):
        linear_probe([states], labels, PICTURES)
