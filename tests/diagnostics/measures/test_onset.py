"""The first look beyond chance: by hand, and where nothing happens."""

import numpy as np
import pytest

from diagnostics.measures.onset import (
    FELL,
    NEITHER,
    ROSE,
    Look,
    Onset,
    look_at_numbers,
    look_at_shares,
    onsets,
)

PROBES, STEPS = 24, (10, 20, 30, 40, 50, 60, 70, 80)


def test_the_first_look_whose_adjusted_p_is_beyond_chance():
    # Holm over four looks: .001 · 4, .02 · 3, .03 · 2, .5
    looks = [Look(5, 1.0, 0.02), Look(10, 2.0, 0.001), Look(15, 1.0, 0.5), Look(20, 1.0, 0.03)]
    found = onsets({"a": looks})["a"]
    assert found == Onset(ROSE, 10, 5, False, 2.0, pytest.approx(0.004), 4)
    # alone it would have been the first look; of the looks of others, too, each is paid for
    assert onsets({"a": looks[:1]})["a"].step == 5
    assert onsets({"a": looks[:1], "b": looks[2:]})["a"].step is None


def test_it_began_after_the_look_before_or_after_the_base():
    looks = [Look(5, -1.0, 1e-9), Look(10, -1.0, 1e-9)]
    assert onsets({"a": looks})["a"] == Onset(FELL, 5, 0, True, -1.0, pytest.approx(2e-9), 2)
    assert onsets({"a": looks}, base=3)["a"].after == 3


def test_a_sure_and_small_change_is_none():
    looks = [Look(5, 0.04, 1e-9, least=0.05), Look(10, 0.06, 1e-9, least=0.05)]
    assert onsets({"a": looks})["a"].step == 10
    found = onsets({"a": looks[:1]})["a"]
    assert (found.state, found.step, found.change) == (NEITHER, None, 0.04)


def test_a_change_of_direction_does_not_stay():
    looks = [Look(5, 1.0, 1e-9), Look(10, -1.0, 1e-9)]
    found = onsets({"a": looks})["a"]
    assert (found.state, found.stays) == (ROSE, False)


def test_series_without_a_look_are_left_out():
    assert onsets({"a": [], "b": [Look(1, 0.0, 1.0)]}).keys() == {"b"}
    assert onsets({}) == {}


def test_answers_count_by_picture():
    # four pictures gained, none lost: 2 / 16; the two probes of the last picture cancel out
    change = np.array([1.0, 1, 1, 1, 0, 1, -1])
    look = look_at_shares(30, change, ["a", "b", "c", "d", "e", "f", "f"])
    assert look == Look(30, pytest.approx(4 / 7), 2 / 16, direction=1)
    # one look at two probes of one picture is a look at one picture
    assert look_at_shares(1, np.array([1.0, 1.0]), ["a", "a"]).p == 1.0


def test_numbers_are_judged_by_their_signed_ranks():
    look = look_at_numbers(30, np.array([0.1, 0.2, 0.3, 0.4]), list("abcd"), 0.05)
    assert look == Look(30, pytest.approx(0.25), 2 / 16, 0.05, direction=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_no_direction_is_claimed_where_mean_and_test_point_to_different_sides(sign):
    """80 of 100 fall a little and 20 rise much: p says that they fell, the mean that they rose."""
    change = sign * np.where(np.arange(100) < 80, -0.2, 5.0)
    look = look_at_numbers(30, change, list(range(100)), 0.0)
    assert look.p < 0.02 and look.change * sign > 0.5 and look.direction == -sign
    assert onsets({"a": [look]})["a"].state == NEITHER
    # eight pictures of one probe gained, one of twenty lost
    names = [*range(8), *[8] * 20]
    answers = look_at_shares(30, sign * np.where(np.arange(28) < 8, 1.0, -1.0), names)
    assert answers.p < 0.05 and answers.change * sign < 0 and answers.direction == sign
    assert onsets({"a": [answers]})["a"].state == NEITHER


def test_where_nothing_happens_an_onset_is_rare():
    """Two groups, three quantities, eight looks that hang together as those of a training do."""
    rng, names = np.random.default_rng(3), list(range(PROBES))
    false, trainings = 0, 400
    for _ in range(trainings):
        series = {}
        for group in range(2):
            walks = rng.standard_normal((2, len(STEPS), PROBES)).cumsum(1)
            steps = [*enumerate(STEPS)]
            series[group, "attention"] = [look_at_numbers(s, walks[0, at], names, 0.0) for at, s in steps]
            series[group, "cause"] = [look_at_numbers(s, walks[1, at], names, 0.0) for at, s in steps]
            probe = rng.standard_normal(PROBES)  # some are right more often than others
            right = (probe + rng.standard_normal((len(STEPS) + 1, PROBES)) > 0).astype(float)
            change = right[1:] - right[0]
            series[group, "answers"] = [look_at_shares(s, change[at], names) for at, s in steps]
        false += any(one.step is not None for one in onsets(series).values())
    # at most 5 %; 30 of 400 would be above that beyond chance
    assert 0 < false <= 29


def test_an_onset_is_found_at_the_look_after_the_change():
    rng, names = np.random.default_rng(4), list(range(PROBES))
    shift = np.where(np.array(STEPS) > 35, 2.0, 0.0)
    looks = [
        look_at_numbers(step, shift[at] + rng.standard_normal(PROBES), names, 0.5)
        for at, step in enumerate(STEPS)
    ]
    found = onsets({"a": looks})["a"]
    assert (found.state, found.step, found.after, found.stays) == (ROSE, 40, 30, True)
