"""Nested subsets: which samples a fraction keeps, by hand, and what stays as it is."""

from collections import Counter

import numpy as np
import pytest

from finetune.data.mixture import Mixture, Source
from finetune.data.subset import Subset, different_samples, nested_order, places_of, too_small, with_fraction
from finetune.samples.conversation import Conversation, Turn


def talk(name: str, answers: list[str]) -> list[Conversation]:
    return [
        Conversation((Turn("user", ("what?",)), Turn("assistant", (answer,))), f"{name} {i}")
        for i, answer in enumerate(answers)
    ]


def mixture(seed: int = 5) -> Mixture:
    """30 corrective samples, a third of them on, and 10 general ones."""
    towers = Source("towers", talk("towers", ["on", "under", "under"] * 10), "corrective")
    return Mixture([towers, Source("general", talk("general", ["red"] * 10), "replay")], seed)


def kept(mixed: Mixture, name: str = "towers") -> list[str]:
    return [one.source for one in mixed.sources[mixed.names.index(name)].conversations]


def test_every_beginning_has_its_share_of_each_kind():
    kinds = ["a"] * 40 + ["b"] * 20
    order = nested_order(kinds, np.random.default_rng(0))
    assert sorted(order.tolist()) == [*range(60)]
    for count in (6, 15, 30, 45):
        found = Counter(kinds[place] for place in order[:count])
        assert abs(found["a"] - count * 2 / 3) <= 1.5
    # at random within a kind, and kinds of one sample anywhere
    assert order.tolist() != nested_order(kinds, np.random.default_rng(1)).tolist()
    alone = nested_order([str(place) for place in range(60)], np.random.default_rng(0))
    assert np.abs(np.corrcoef(alone, np.arange(60))[0, 1]) < 0.4


def test_places_by_hand():
    order = np.array([2, 0, 3, 1])
    assert places_of(order, 2, "epochs").tolist() == [0, 2]
    assert places_of(order, 2, "steps").tolist() == [0, 0, 2, 2]
    assert places_of(order, 3, "steps").tolist() == [0, 2, 2, 3]
    assert places_of(order, 4, "steps").tolist() == [0, 1, 2, 3]


def test_fractions_are_nested_and_do_not_depend_on_each_other():
    sets = [set(kept(with_fraction(mixture(), part, None, "steps")[0])) for part in (0.1, 0.5, 0.9, 1)]
    assert [len(one) for one in sets] == [3, 15, 27, 30]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert sets[1] == set(kept(with_fraction(mixture(), 0.5, None, "epochs")[0]))
    assert sets[1] != set(kept(with_fraction(mixture(seed=6), 0.5, None, "steps")[0]))


def test_for_the_same_steps_everything_but_the_samples_stays():
    whole, (part, subsets) = mixture(), with_fraction(mixture(), 0.2, None, "steps")
    assert subsets == (Subset("towers", 30, 6),)
    assert part.parts == whole.parts
    np.testing.assert_array_equal(part.order(3), whole.order(3))
    assert Counter(kept(part)).most_common(1)[0][1] == 5  # each stands for five
    assert kept(part, "general") == kept(whole, "general")
    assert different_samples(part) == {
        "towers": {"samples": 30, "trained": 6},
        "general": {"samples": 10, "trained": 10},
    }
    # a sample that is kept stands where it stood
    both = zip(kept(part), kept(whole), strict=True)
    assert sum(now == before for now, before in both) == 6


def test_for_the_same_epochs_an_epoch_is_shorter():
    part, _ = with_fraction(mixture(), 0.2, None, "epochs")
    assert [one.samples for one in part.parts] == [6, 10]
    assert len(set(kept(part))) == len(kept(part)) == 6


def test_the_whole_is_the_plain_mixture():
    whole = mixture()
    part, subsets = with_fraction(whole, 1.0, None, "steps")
    assert part.sources == whole.sources and subsets == (Subset("towers", 30, 30),)
    np.testing.assert_array_equal(part.order(1), whole.order(1))


def test_which_sources_a_fraction_is_taken_of():
    _, subsets = with_fraction(mixture(), 0.5, ["general"], "steps")
    assert [one.name for one in subsets] == ["general"]
    alone = Mixture([Source("all", talk("all", ["on"] * 4), "base")], 0)
    assert [one.name for one in with_fraction(alone, 0.5, None, "steps")[1]] == ["all"]
    with pytest.raises(
        ValueError, match=r"found 'rooms', which is no source; expected some of towers, general"
    ):
        with_fraction(mixture(), 0.5, ["rooms"], "steps")


def test_a_part_that_is_smaller_than_one_step():
    # 30 of 40 samples are towers: of a step of 8 they are 6
    part, subsets = with_fraction(mixture(), 0.2, None, "steps")
    assert too_small(part, subsets, 8) is None
    part, subsets = with_fraction(mixture(), 0.1, None, "steps")
    fault = too_small(part, subsets, 8)
    assert fault is not None and "keeps 3 of the 30 samples of towers, and one step reads 6 of them" in fault
