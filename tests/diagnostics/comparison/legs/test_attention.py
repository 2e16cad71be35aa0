"""Attention that a loss asked for is no evidence: it is judged in other layers, on other pictures, or not at all. Nor
is a mean that a few probes turn against the rest: p is of ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.enrichment import (
    enrichment_by_layer,
    fallen_layers,
    head_chances,
    heads,
    layer_chances,
    pooled_chances,
)
from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.legs.attention import (
    AWAY,
    BLIND,
    TO,
    Lead,
    agreed_direction,
    attention_leg,
    read_attention,
    unseen,
    weakest_lead,
)
from diagnostics.comparison.legs.leg import percent
from diagnostics.comparison.legs.mediation import mediated_nats
from diagnostics.comparison.pairs import SIDES, ProbePair, images_of, pair_records
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.statistics import Interval
from diagnostics.records.record import AttentionRecord
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Attention moved in layer 3, from 3 to 9 times; in layer 1 it stayed at 3."""
    return flat(pairs_of(tmp_path_factory.mktemp("made"), pearl=Made()))


def supervised(pairs, layers, *, pictures=lambda at: False):
    return [
        replace(pair, after=replace(pair.after, supervised_layers=layers, supervised_picture=pictures(at)))
        for at, pair in enumerate(pairs)
    ]


def leg_of(pairs):
    reading = read_attention(pairs, mediated_nats, Thresholds(), 0.95)
    chance = None if reading is None else 0.001
    return attention_leg(reading, chance, [], Thresholds(), 0.95, why_not=unseen(pairs).sentence)[0]


def test_without_supervision_every_layer_is_judged(pairs):
    leg = leg_of(pairs)
    assert leg.holds is True and "trained on" not in leg.reason and unseen(pairs) == (tuple(pairs), "")


def test_a_layer_that_does_not_see_the_region_is_not_chosen(tmp_path):
    """Layer 1 sees no region, before or after; in layer 3 attention falls to a third."""
    blind = flat(pairs_of(tmp_path, pearl=Made(region=((0.0, 3.0), (0.0, 1.0)))))
    reading = read_attention(blind, mediated_nats, Thresholds(), 0.95)
    assert reading is not None and reading.layers == (3, 3)
    leg, moved = attention_leg(reading, 0.001, [3], Thresholds(), 0.95)
    assert moved == AWAY and leg.holds is False and "; it left the region (-100" in leg.reason


def half_blind(folder: Path) -> list[ProbePair]:
    """In layer 3 attention falls; in layer 1 it stays, but half of the pictures, the second, do not see the region."""
    blind, seeing = (
        flat(pairs_of(folder, pearl=Made(region=((times, 3.0), (times, 1.0))))) for times in (0.0, 3.0)
    )
    order = sorted(images_of(seeing))
    return [(blind if order.index(image) % 2 else seeing)[at] for at, image in enumerate(images_of(seeing))]


def test_pictures_that_do_not_see_the_region_do_not_choose_the_layer(tmp_path):
    reading = read_attention(half_blind(tmp_path), mediated_nats, Thresholds(), 0.95)
    assert reading is not None and reading.layers == (1, 3)


def test_where_no_layer_sees_the_region_attention_is_not_measured(tmp_path):
    blind = flat(pairs_of(tmp_path, pearl=Made(region=((0.0, 0.0), (0.0, 0.0)))))
    leg = leg_of(blind)
    assert (leg.holds, leg.value) == (None, None) and leg.reason == BLIND
    assert translated(leg.reason) != leg.reason
    one = flat(pairs_of(tmp_path, pearl=Made(region=((0.0, 3.0), (0.0, 3.0)))))
    leg = leg_of(supervised(one, (3,)))
    assert leg.holds is None and leg.reason == (
        f"Attention was trained on in layer 3; it is judged only where it was not. {BLIND}"
    )


def test_a_layer_that_was_supervised_is_not_judged(pairs):
    leg = leg_of(supervised(pairs, (3,)))
    assert leg.holds is False and abs(leg.value) < 0.1
    assert leg.reason.endswith(". Attention was trained on in layer 3; it is judged only where it was not.")
    assert leg_of(supervised(pairs, (1,))).holds is True


def test_where_every_layer_was_supervised_attention_is_not_measured(pairs):
    leg = leg_of(supervised(pairs, (1, 2, 3)))
    assert (leg.holds, leg.value) == (None, None)
    assert leg.reason == (
        "Attention was trained on in layers 1, 2 and 3, every layer that could be judged: where it looks there is what "
        "it was told to."
    )


def test_pictures_that_were_supervised_are_left_out(pairs):
    leg = leg_of(supervised(pairs, (1,), pictures=lambda at: at < 2))
    assert leg.probes == 22 and "in layer 1 and on 2 of these probes' pictures;" in leg.reason
    leg = leg_of(supervised(pairs, (1,), pictures=lambda at: True))
    assert leg.holds is None and "every picture that could be judged" in leg.reason


@pytest.mark.parametrize("side", SIDES)
def test_through_a_resampler_that_was_supervised_no_layer_is_judged(pairs, side):
    """Layer 1 alone was supervised; the map of layer 3, which moved, goes through what the loss has moved."""
    told = [
        replace(
            pair,
            **{side: replace(getattr(pair, side), supervised_layers=(1,), supervised_connector=True)},
        )
        for pair in pairs
    ]
    leg = leg_of(told)
    assert (leg.holds, leg.value) == (None, None)
    assert leg.reason == (
        "Attention was trained on in layer 1 and in the resampler, through which every layer looks at the picture: "
        "where it looks is what it was told to."
    )
    assert "重采样器" in str(translated(leg.reason))


def test_pictures_of_streamed_data_are_said_not_to_be_known(pairs):
    def streamed(pairs):
        return [replace(pair, after=replace(pair.after, supervised_unknown=True)) for pair in pairs]

    more = "where it was not, as far as that is known: not for the supervised pictures of streamed data."
    for told in (supervised(pairs, (1,)), supervised(pairs, (1,), pictures=lambda at: at < 2)):
        assert "as far as" not in leg_of(told).reason
        leg = leg_of(streamed(told))
        assert leg.holds and leg.reason.endswith(more) and "流式数据" in str(translated(leg.reason))
    assert "streamed" not in leg_of(streamed(pairs)).reason  # nothing was supervised
    assert leg_of(streamed(supervised(pairs, (1, 3)))).holds is None


@pytest.mark.parametrize("connector", [True, False])
def test_records_say_so_on_disk(pairs, tmp_path, connector):
    record = replace(
        pairs[0].after,
        supervised_layers=(1, 3),
        supervised_picture=True,
        supervised_unknown=True,
        supervised_connector=connector,
    )
    record.save(tmp_path / "one.safetensors")
    found = AttentionRecord.load(tmp_path / "one.safetensors")
    assert (found.supervised_layers, found.supervised_picture) == ((1, 3), True)
    assert found.supervised_connector is connector and found.supervised_unknown


# ---------------------------------------------------------------- a few probes against the rest

RISE, FALL = (1.2, 1.32, 0.012), (1.2, 1.08, 16.0)
"""Before, after in most probes, after in one of eight: the mean goes with the few, the ranks with the others."""


def against_the_rest(
    folder: Path, *layers: tuple[float, float, float], probes: int = 40, **made
) -> list[ProbePair]:
    """A group whose region gets in layers 1 and 3 these times of attention: before, after in most, after in few."""
    few = probes // 8
    before, most, some = zip(*layers, strict=True)
    groups = pairs_of(
        folder,
        most=Made(probes=probes - few, region=(before, most), **made),
        few=Made(probes=few, region=(before, some), **made),
    )
    for pair in (*groups["most"], *groups["few"]):
        for one in (pair.probe, *(getattr(pair, side) for side in SIDES)):
            object.__setattr__(one, "group", "towers")
    return flat(groups)


@pytest.mark.parametrize(
    ("changes", "clusters", "expected"),
    [
        ([1, 2, 3], "abc", 1),
        ([-1, -2, -3], "abc", -1),
        ([1] * 8 + [-9] * 2, "abcdefghij", 0),
        ([-1] * 8 + [9] * 2, "abcdefghij", 0),
        ([1] * 8 + [-9] * 2, "aaaaaaaabb", -1),  # the ranks are of pictures
        ([1, -1, 2, -2], "abcd", 0),
        ([1, -1, 2, 0], "abcd", 1),
    ],
)
def test_a_direction_is_one_that_mean_and_ranks_agree_on(changes, clusters, expected):
    assert agreed_direction(np.array(changes, float), clusters) == expected
    both = np.stack([np.array(changes, float), -np.array(changes, float)], axis=1)[:, None]
    assert agreed_direction(both, clusters).tolist() == [[expected, -expected]]


def looked(pairs):
    """The reading of a group alone, its p, its key layers, those that fell, and its heads."""
    reading = read_attention(pairs, mediated_nats, Thresholds(), 0.95)
    by_layer = enrichment_by_layer(pairs, layer_chances({"towers": pairs})["towers"], 0.95)
    named = heads(pairs, head_chances({"towers": pairs})["towers"], 0.1)
    return (
        reading,
        pooled_chances({"towers": reading})["towers"],
        by_layer,
        fallen_layers(by_layer, 0.1, 0.95),
        named,
    )


@pytest.mark.parametrize(("change", "shown"), [(RISE, "-"), (FALL, "+")])
def test_no_move_is_claimed_where_a_few_probes_turn_the_mean(tmp_path, change, shown):
    reading, chance, _, fallen, named = looked(against_the_rest(tmp_path, change, change))
    assert chance < 0.05 and abs(reading.relative.mean) > 0.1  # one by one, a move
    leg, moved = attention_leg(reading, chance, fallen, Thresholds(), 0.95)
    assert (leg.holds, moved, fallen, named["count"]) == (False, None, [], 0)
    assert f"chance does not explain the change ({shown}" in leg.reason
    assert leg.reason.endswith(
        "no move is claimed: a few probes carry the mean, and the ranks that p judges point the other way."
    )
    assert "judges" not in (translated(leg.reason) or leg.reason)


def test_a_layer_that_only_a_few_probes_left_did_not_fall(tmp_path):
    reading, chance, (first, _), fallen, named = looked(against_the_rest(tmp_path, RISE, (3.0, 9.0, 9.0)))
    assert first.chance < 0.05 and first.relative.mean < -0.1 and fallen == []
    assert attention_leg(reading, chance, fallen, Thresholds(), 0.95)[1] == TO
    assert {one["layer"] for one in named["significant"]} == {3}


def test_layers_and_heads_that_a_loss_told_where_to_look_are_marked(tmp_path):
    """Attention falls in both key layers; layer 3 was trained on."""
    fell = flat(pairs_of(tmp_path, towers=Made(region=((9.0, 9.0), (3.0, 3.0)))))
    told = supervised(fell, (3,))
    group = comparison_of(told)["groups"]["towers"]
    marked = {one["layer"]: one["trained_on"] for one in group["enrichment_by_layer"]}
    assert marked == {1: False, 3: True}
    assert {one["layer"]: one["trained_on"] for one in group["heads"]["significant"]}[3] is True
    assert not any(one["trained_on"] for one in group["heads"]["significant"] if one["layer"] != 3)
    assert looked(fell)[3] == [1, 3] and looked(told)[3] == [1]
    through = [replace(one, after=replace(one.after, supervised_connector=True)) for one in told]
    group = comparison_of(through)["groups"]["towers"]
    assert all(one["trained_on"] for one in (*group["enrichment_by_layer"], *group["heads"]["significant"]))


def test_a_layer_that_only_a_few_probes_turned_to_is_not_chosen(tmp_path):
    """Though more of the margin goes with it."""
    carried = {("layer", (1,)): 1.0, ("layer", (3,)): 2.4}
    pairs = against_the_rest(tmp_path, FALL, (3.0, 9.0, 9.0), probes=80, patches=carried)
    assert read_attention(pairs, mediated_nats, Thresholds(), 0.95).layers == (3, 3)


# ---------------------------------------------------------------- which lead is cited


def two_ways(folder: Path) -> list[ProbePair]:
    """Attention on the region rises by half. Over the other region its lead is the larger one, and not clear: it fell
    there in every second probe and rose in the others. Over salient places it is smaller, and clear."""
    made = Made(probes=48, region=((1.0, 1.0), (1.0, 1.5)), salient=(1.0, 1.2))
    fell, rose = (
        flat(pairs_of(folder, tower=replace(made, other=other))) for other in ((5.0, 0.4), (0.4, 3.0))
    )
    return [(fell if at % 2 else rose)[at] for at in range(32)]


def test_the_lead_that_is_not_clear_is_cited(tmp_path):
    pairs = two_ways(tmp_path)
    group = comparison_of(pairs)["groups"]["tower"]
    podium, salient = group["enrichment"]["leads"]
    assert podium["mean"] > salient["mean"] > 0.05
    assert podium["ci95"][0] < 0 < salient["ci95"][0]
    leg = group["legs"]["attention"]
    assert leg["holds"] is False
    assert (leg["value"], leg["ci95"]) == (podium["mean"], podium["ci95"])
    assert "but its lead over 'podium' is" in leg["reason"]


def test_the_smallest_is_cited_where_all_are_clear():
    def lead(place, mean, low):
        return Lead(place, 24, Interval(mean, low, mean + 0.1))

    clear = [lead("a", 0.2, 0.01), lead("b", 0.1, 0.05)]
    assert weakest_lead(clear, Thresholds()).place == "b"
    small = [*clear, lead("c", 0.04, 0.03), lead("d", 0.3, -0.2)]
    assert weakest_lead(small, Thresholds()).place == "d"


def test_the_change_itself_is_cited_where_it_did_not_rise(tmp_path):
    pairs = flat(pairs_of(tmp_path, pearl=Made(region=((3.0, 3.0), (3.0, 3.0)), other=(0.5, 2.5))))
    leg = leg_of(pairs)
    reading = read_attention(pairs, mediated_nats, Thresholds(), 0.95)
    assert leg.holds is False and leg.value == reading.relative.mean
    assert min(one.interval.mean for one in reading.leads) < leg.value


def test_a_percentage_says_what_it_is_of(pairs):
    """About 3 times as much."""
    size = read_attention(pairs, mediated_nats, Thresholds(), 0.95).relative.mean
    assert size == pytest.approx(1.0, abs=0.01)
    reason = leg_of(pairs).reason
    assert f"({percent(size, signed=True)} of the mean of before and after, p = 0.001)" in reason
    assert "相当于前后均值的 +" in str(translated(reason))


def without_attention(record: AttentionRecord, row: int) -> AttentionRecord:
    """Nothing of a key layer's answer row lies on the picture, as where half precision rounds it to 0."""
    rows, layer = record.rows.copy(), record.layers[row]
    rows[row, :, 0, record.image_tokens[0].all_positions] = 0
    masses = {}
    for kind in ("region_mass", "random_mass", "salient_mass"):
        masses[kind] = {name: values.copy() for name, values in getattr(record, kind).items()}
        for values in masses[kind].values():
            values[layer] = 0
    return replace(record, rows=rows, **masses)


@pytest.mark.parametrize("every", [1, 2, 12])
def test_a_layer_whose_map_is_empty_on_one_side_is_not_judged(tmp_path: Path, every: int) -> None:
    """From nothing to what it always was is no move; the other layer stands still."""
    groups = pairs_of(tmp_path, towers=Made(region=((3.0, 3.0), (3.0, 3.0)), noise=0.02), guards=GUARDS)
    groups["towers"] = [
        pair_records(pair.probe, without_attention(pair.before, 1), pair.after) if at % every == 0 else pair
        for at, pair in enumerate(groups["towers"])
    ]
    found = comparison_of(flat(groups))
    group, layer = found["groups"]["towers"], groups["towers"][0].layers[1].layer
    assert group["verdict"] == "answers changed, attention did not"
    reason = group["legs"]["attention"]["reason"]
    assert reason.endswith(
        f" In layer {layer} a map has no attention at all before or after, but not both: it is not judged there."
    )
    assert group["enrichment"]["layer"] != layer and "不作判断" in translated(reason)


def test_a_layer_whose_map_is_empty_after_did_not_fall(tmp_path: Path) -> None:
    groups = pairs_of(tmp_path, towers=Made(region=((3.0, 3.0), (9.0, 3.0))), guards=GUARDS)
    groups["towers"] = [
        pair_records(pair.probe, pair.before, without_attention(pair.after, 1)) for pair in groups["towers"]
    ]
    group = comparison_of(flat(groups))["groups"]["towers"]
    reason = group["legs"]["attention"]["reason"]
    assert "left the region" not in reason and "it is not judged there." in reason
    assert [one["direction"] for one in group["enrichment_by_layer"]] == [1, 0]
