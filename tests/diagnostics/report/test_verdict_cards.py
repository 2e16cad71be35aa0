"""A card's words are of the numbers beside them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import pair_records
from diagnostics.records.probes import Relation
from diagnostics.report.languages import untranslated
from diagnostics.report.verdict_cards import verdict_card
from tests.diagnostics.comparison.legs.test_answers import FEW_PICTURES_WRONG, on_shared_pictures
from tests.diagnostics.comparison.legs.test_attention import two_ways
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of
from tests.diagnostics.comparison.test_enrichment import in_two_layers


def card_of(pairs) -> str:
    """The words of the card, all of which have their Chinese."""
    page = verdict_card("tower", comparison_of(pairs)["groups"]["tower"])
    assert untranslated(page) == []
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))


def test_an_interval_stands_beside_the_share_that_it_is_of(tmp_path):
    card = card_of(on_shared_pictures(tmp_path, *FEW_PICTURES_WRONG))
    assert "each picture counted once: 92.9 %, interval 76.5 to 99.1 %" in card
    assert "on 26 pictures more right, on 0 fewer" in card
    assert "24 became right, 0 wrong" in card_of(flat(pairs_of(tmp_path, tower=Made())))


@pytest.mark.parametrize("side", ["before", "after"])
def test_what_decides_is_left_out_where_one_side_was_not_measured(tmp_path, side):
    made = Made(other_cost=(12.0, 12.0))
    pairs = flat(pairs_of(tmp_path, tower=made))
    assert "which region decides the answer" in card_of(pairs)
    uneven = [replace(pair, **{side: replace(getattr(pair, side), interventions=())}) for pair in pairs]
    assert "which region decides the answer" not in card_of(uneven)


def test_both_layers_are_named_where_the_halves_chose_two(tmp_path):
    assert re.search(r"change \S+ to \S+, layers 1 and 3 ", card_of(in_two_layers(tmp_path)))
    assert re.search(r"change \S+ to \S+, layer 3 ", card_of(flat(pairs_of(tmp_path, tower=Made()))))


def test_the_lead_is_the_one_that_the_leg_cites(tmp_path):
    pairs = two_ways(tmp_path)
    value = comparison_of(pairs)["groups"]["tower"]["legs"]["attention"]["value"]
    assert f"lead +{100 * value:.1f} % over podium" in card_of(pairs)


def test_the_effect_is_of_the_probes_that_attention_is_judged_on(tmp_path):
    bare = {"region_mass": {}, "random_mass": {}, "salient_mass": {}, "interventions": ()}
    pairs = [
        pair
        if at < 24
        else pair_records(
            replace(pair.probe, regions={}), replace(pair.before, **bare), replace(pair.after, **bare)
        )
        for at, pair in enumerate(flat(pairs_of(tmp_path, tower=Made(probes=60))))
    ]
    assert re.search(r"Change of attention: effect size \S+ with 24 probes", card_of(pairs))


@pytest.mark.parametrize("has_random", [True, False])
def test_heads_are_said_to_be_tested_as_they_are(tmp_path, has_random):
    pairs = flat(pairs_of(tmp_path, tower=Made()))
    if not has_random:
        pairs = [
            pair_records(p.probe, *(replace(one, random_mass={}) for one in (p.before, p.after)))
            for p in pairs
        ]
    card = card_of(pairs)
    assert ("changed more or less than on random places, beyond chance" in card) == has_random
    assert ("on the region, 4.2 % → 4.2 % on random places" in card) == has_random


@pytest.mark.parametrize("has_random", [True, False])
def test_a_head_that_a_loss_told_where_to_look_is_marked(tmp_path, has_random):
    pairs = []
    for pair in flat(pairs_of(tmp_path, tower=Made())):
        sides = [pair.before, replace(pair.after, supervised_layers=(3,))]
        if not has_random:
            sides = [replace(one, random_mass={}) for one in sides]
        pairs.append(pair_records(pair.probe, *sides))
    card = card_of(pairs)
    assert "layer 3, head 0 (trained on): 12.5 % →" in card and "layer 1, head 0 (trained on)" not in card
    assert "“Trained on”: attention was trained on in this layer, so it looks where it was told to." in card
    assert "trained on" not in card_of(flat(pairs_of(tmp_path, tower=Made())))


@pytest.mark.parametrize("told", [(), (3,)])
def test_a_relation_read_where_a_loss_told_where_to_look_is_marked(tmp_path, told):
    names = ("phrase/subject", "phrase/object", "nouns", "nouns/swapped", "vision")
    looks = {name: np.full((4, 2), 0.5, np.float32) for name in names}
    made = Made(relation=Relation("on", "spheres", "podium"))
    pairs = [
        pair_records(
            p.probe,
            replace(p.before, relation=looks),
            replace(p.after, relation=looks, supervised_layers=told),
        )
        for p in flat(pairs_of(tmp_path, tower=made))
    ]
    group = comparison_of(pairs)["groups"]["tower"]
    marked = {name for name, one in group["relation"].items() if one["trained_on"]}
    assert marked == ({*names, "phrase/both"} - {"vision"} if told else set())
    for end in group["relation_enrichment"].values():
        assert {one["layer"]: one["trained_on"] for one in end} == {1: False, 3: bool(told)}
    card = card_of(pairs)
    table = card[card.index("the relation word") :]
    assert table.count("(trained on)") == len(marked)
    assert ("in one or more of them attention was trained on" in table) == bool(told)


def test_the_smaller_end_of_a_relation_is_of_each_head(tmp_path):
    """One head looks at the subject, the other at the object: both means are above the mean of what each does less."""
    looks = {
        "phrase/subject": np.tile(np.float32([8.0, 0.5]), (4, 1)),
        "phrase/object": np.tile(np.float32([0.5, 6.0]), (4, 1)),
    }
    made = Made(relation=Relation("on", "spheres", "podium"))
    pairs = [
        pair_records(p.probe, *(replace(one, relation=looks) for one in (p.before, p.after)))
        for p in flat(pairs_of(tmp_path, tower=made))
    ]
    assert "the smaller of these two, by layer and head 0.50× → 0.50×" in card_of(pairs)
