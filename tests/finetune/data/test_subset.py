"""Nested subsets: which samples a fraction keeps, by hand, and what stays as it is."""

from collections import Counter

import numpy as np
import pytest

from finetune.data.mixture import Mixture, Source
from finetune.data.schedule import Schedule, StepShape
from finetune.data.subset import Subset, different_samples, nested_order, places_of, too_small, with_fraction
from finetune.samples.conversation import BoxRef, Conversation, Turn


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
    assert subsets == (Subset("towers", 30, 6, (30, 30), (40, 40)),)
    assert part.parts == whole.parts
    np.testing.assert_array_equal(part.order(3), whole.order(3))
    assert Counter(kept(part)).most_common(1)[0][1] == 5  # each stands for five
    assert kept(part, "general") == kept(whole, "general")
    assert different_samples(part, [part.order(0)]) == {
        "towers": {"samples": 30, "trained": 6},
        "general": {"samples": 10, "trained": 10},
    }
    # a sample that is kept stands where it stood
    both = zip(kept(part), kept(whole), strict=True)
    assert sum(now == before for now, before in both) == 6


@pytest.mark.parametrize("same", ["steps", "epochs"])
@pytest.mark.parametrize("steps", [0, 1, 3, 40])
def test_only_samples_that_steps_reach_count(same, steps):
    part, _ = with_fraction(mixture(), 0.5, None, same)
    schedule = Schedule(part.order, StepShape(rows=2))
    trained = [*schedule.trained(steps)]
    seen = {part.conversations[place].source for place in np.concatenate(trained).tolist()}
    found = different_samples(part, trained)
    for name, of_it in found.items():
        assert of_it["trained"] == sum(one.startswith(name) for one in seen)
    assert found["towers"]["samples"] == 30
    if steps == 3:
        assert sum(one["trained"] for one in found.values()) <= 6
    if steps == 40:
        assert [one["trained"] for one in found.values()] == [15, 10]


def test_for_the_same_epochs_an_epoch_is_shorter():
    part, _ = with_fraction(mixture(), 0.2, None, "epochs")
    assert [one.samples for one in part.parts] == [6, 10]
    assert len(set(kept(part))) == len(kept(part)) == 6


def plain(name: str, count: int, role="corrective", share=None, repeat=1) -> Source:
    return Source(name, talk(name, ["on"] * count), role, share, repeat)


BASE, LARGE, SMALL = plain("base", 100, "base"), plain("s", 900, share=0.3), plain("s", 20, share=0.2)
GENERAL = plain("g", 50, "replay", 0.1)


@pytest.mark.parametrize(
    ("sources", "of", "whole", "parts"),
    [
        # A quarter of the 43 of the corrective samples; the base stays.
        ([BASE, LARGE], None, [100, 43], [100, 11]),
        # All 20 end the epoch after 100 samples, 70 of the base; the part of 5 must not end it after 25.
        ([BASE, SMALL, GENERAL], None, [70, 20, 10], [70, 5, 10]),
        ([BASE, SMALL, GENERAL], ["s", "g"], [70, 20, 10], [70, 5, 2]),
        # Of the base 70 in 100 were seen, so 17.5 of the 25; a share that is whole is filled up around it.
        ([BASE, SMALL, GENERAL], ["base"], [70, 20, 10], [18, 5, 2]),
        ([BASE, SMALL, GENERAL], ["base", "s"], [70, 20, 10], [18, 5, 2]),
        # Shares that make up the whole.
        ([plain("s", 36, share=0.6), plain("g", 500, "replay", 0.4)], None, [36, 24], [9, 24]),
        # By count: as many as are kept, and a share around them, as without a fraction.
        ([BASE, plain("s", 40)], None, [100, 40], [100, 10]),
        ([BASE, plain("s", 40, repeat=2), GENERAL], None, [100, 80, 20], [100, 20, 13]),
        ([BASE, LARGE], ["base"], [100, 43], [25, 11]),
        ([BASE], None, [100], [25]),
    ],
)
def test_for_the_same_epochs_each_kept_sample_is_seen_as_often(sources, of, whole, parts):
    mixed = Mixture(sources, 0)
    part, subsets = with_fraction(mixed, 0.25, of, "epochs")
    assert [one.seen for one in mixed.parts] == whole
    assert [one.seen for one in part.parts] == parts
    for one in subsets:
        before, now = (every.parts[mixed.names.index(one.name)] for every in (mixed, part))
        assert now.samples == one.kept and abs(now.seen - before.times * now.samples) <= 0.5
        assert (one.seen, one.epoch) == ((before.seen, now.seen), (sum(whole), sum(parts)))


def test_a_part_stays_one_where_samples_of_it_are_left_out():
    """Of 225 kept ones every third is left out: then 600 of 900 were all, and 0.3 of an epoch are 43 of them."""
    part, _ = with_fraction(Mixture([BASE, LARGE], 0), 0.25, None, "epochs")
    base, towers = part.sources
    left = Mixture([base, towers._replace(conversations=list(towers.conversations)[:150])], part.seed)
    assert [one.seen for one in left.parts] == [100, 11]


@pytest.mark.parametrize(
    ("sources", "fraction", "words"),
    [
        (
            [BASE, LARGE],
            0.25,
            "s: training on 225 of 900 samples; each is seen 0.0489× an epoch, with all 0.0478×, and an epoch is "
            "shorter, 111 samples instead of 143",
        ),
        (
            [BASE, SMALL],
            0.25,
            "s: training on 5 of 20 samples; each is seen 1× an epoch, as with all, and an epoch is shorter, 85 "
            "samples instead of 100",
        ),
        (
            [BASE, SMALL],
            1,
            "s: training on 20 of 20 samples; each is seen 1× an epoch, as with all, and an epoch is as long as with "
            "all, 100 samples",
        ),
        # an epoch takes at least one sample of each source
        (
            [BASE, plain("s", 500, share=0.01)],
            0.1,
            "s: training on 50 of 500 samples; each is seen 0.02× an epoch, with all 0.002×, and an epoch is as long "
            "as with all, 101 samples",
        ),
    ],
)
def test_what_is_said_of_the_same_epochs_is_what_was_computed(sources, fraction, words):
    (found,) = with_fraction(Mixture(sources, 0), fraction, None, "epochs")[1]
    assert found.words("epochs") == words


def test_the_whole_is_the_plain_mixture():
    whole = mixture()
    part, subsets = with_fraction(whole, 1.0, None, "steps")
    assert part.sources == whole.sources and subsets == (Subset("towers", 30, 30, (30, 30), (40, 40)),)
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


def test_samples_whose_placeholders_stand_for_other_words_are_of_other_kinds():
    """Thirty answers that are written alike, a third of them about dogs: so it is in each part."""
    written = '{"bbox_2d": <bbox>, "label": "<ref-object>"}'
    said = [
        (BoxRef(written, ((0, 0, 0.5, 0.25),), label, 0, "json"),) for label in ["dog", "cat", "cat"] * 10
    ]
    towers = [
        Conversation((Turn("user", ("?",)), Turn("assistant", one)), one[0].label or "") for one in said
    ]
    mixed, _ = with_fraction(Mixture([Source("towers", towers, "corrective")], 5), 0.3, None, "epochs")
    assert Counter(kept(mixed)) == {"dog": 3, "cat": 6}
