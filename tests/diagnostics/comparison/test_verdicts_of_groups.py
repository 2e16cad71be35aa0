"""What a comparison claims of made-up groups, one fault at a time: "corrected" only where nothing is missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison import intervention_costs
from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import SIDES, ProbePair, pair_all
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import VERDICTS, shortfalls
from diagnostics.flags.compare import THRESHOLDS
from diagnostics.records.probes import Relation
from diagnostics.records.record import AttentionRecord
from tests.diagnostics.comparison.made_pairs import ANSWER, FOIL, GUARDS, Made, flat, pairs_of

CORRECTED = Made()


def _mixed(right: int, of: int = 24, before: int = 0) -> tuple[list[float], list[float]]:
    """Margins of which so many are right before and after."""
    return [6.0 if at < before else -3.0 for at in range(of)], [
        6.0 if at < right else -3.0 for at in range(of)
    ]


FAULTS = [
    ({}, "corrected"),
    ({"margins": _mixed(20), "said": ("", "")}, "corrected"),
    ({"margins": _mixed(19), "said": ("", "")}, "answers changed, too few right"),
    ({"margins": _mixed(4), "said": ("", "")}, "attention moved, answers did not"),  # exact McNemar p = .125
    ({"said": (FOIL, FOIL)}, "margin and answer disagree"),
    ({"said": (FOIL, "nonsense")}, "margin and answer disagree"),
    ({"said": (FOIL, "")}, "margin and answer disagree"),  # it ends its turn at once
    ({"said": ("", "")}, "corrected"),  # nothing was generated
    ({"margins": (3.0, -6.0)}, "answers got worse"),
    ({"pictures": {"blank": 6.0, "other": 5.5, "none": 6.0}}, "it answers from the words"),
    ({"pictures": {"blank": 5.5, "other": 5.5, "none": -3.0}}, "it answers from the words"),
    ({"pictures": {"blank": 5.5, "other": 0.5, "none": 6.0}}, "corrected"),
    ({"pictures": {"blank": 0.5, "none": 6.0}}, "corrected"),
    ({"pictures": {"none": -3.0}}, "answers changed, picture not measured"),
    ({"pictures": {}}, "answers changed, picture not measured"),
    ({"pictures": {"same answer": -5.0}}, "answers changed, picture not measured"),
    ({"region": ((3.0, 3.0), (3.0, 3.0))}, "answers changed, attention did not"),
    ({"region": ((3.0, 3.0), (3.0, 3.1))}, "answers changed, attention did not"),
    ({"region": ((9.0, 9.0), (0.5, 0.5))}, "answers changed, attention left the region"),
    ({"other": (1.0, 3.0), "region": ((1.0, 1.0), (1.0, 2.0))}, "answers changed, attention did not"),
    ({"salient": (1.0, 9.0)}, "answers changed, attention did not"),
    ({"cost": (0.5, 0.6)}, "answers and attention changed, cause does not agree"),
    ({"cost": (5.0, 5.0)}, "answers and attention changed, cause does not agree"),
    ({"cost": (0.5, 2.9)}, "answers and attention changed, cause does not agree"),  # below half of the margin
    ({"control": (0.1, 5.0)}, "answers and attention changed, cause does not agree"),
    ({"other_cost": (12.0, 3.2)}, "answers and attention changed, cause does not agree"),
    ({"other_cost": (12.0, -3.2)}, "answers and attention changed, cause does not agree"),
    (
        {"patches": {("language", (0, 1, 2, 3)): 1.0, ("key layers", (1, 3)): 5.5, ("connector", ()): 5.8}},
        "corrected, not by looking",
    ),
    ({"patches": {("key layers", (1, 3)): 5.9, ("connector", ()): 1.0}}, "corrected"),
    ({"patches": {}}, "corrected, mediation not measured"),
    ({"source": 0.0}, "corrected, mediation not measured"),
    ({"probes": 19}, "too few probes"),
    ({"same_picture": True}, "too few probes"),
]


@pytest.mark.parametrize(
    ("fault", "expected"), FAULTS, ids=lambda value: value if isinstance(value, str) else None
)
def test_a_correction_is_claimed_only_where_every_leg_holds(tmp_path: Path, fault, expected) -> None:
    pairs = flat(pairs_of(tmp_path, towers=replace(CORRECTED, **fault), others=GUARDS))
    group = comparison_of(pairs)["groups"]["towers"]
    assert group["verdict"] == expected and expected in VERDICTS, group["reasons"]
    assert all(reason.endswith(".") and ". " not in reason[:-1] for reason in group["reasons"])


def test_without_guards_it_is_unguarded_and_with_broken_ones_no_correction(tmp_path: Path) -> None:
    alone = comparison_of(flat(pairs_of(tmp_path, towers=CORRECTED)))["groups"]["towers"]
    assert alone["verdict"] == "corrected, unguarded" and alone["legs"]["guards"]["holds"] is None
    few = comparison_of(flat(pairs_of(tmp_path, towers=CORRECTED, others=replace(GUARDS, probes=19))))
    assert few["groups"]["towers"]["verdict"] == "corrected, unguarded"
    for after in (-1.0, [-1.0] * 5 + [4.0] * 19):
        broken = replace(GUARDS, margins=(4.0, after))
        group = comparison_of(flat(pairs_of(tmp_path, towers=CORRECTED, others=broken)))["groups"]["towers"]
        assert (
            group["verdict"] == "answers changed, a guard broke" and group["legs"]["guards"]["holds"] is False
        )
    for before, after in ((-1.0, -1.0), ([-1.0] * 10 + [4.0] * 14, [-1.0] * 9 + [4.0] * 15)):
        wrong = replace(GUARDS, margins=(before, after))  # wrong before and after: they prove nothing
        group = comparison_of(flat(pairs_of(tmp_path, towers=CORRECTED, others=wrong)))["groups"]["towers"]
        assert (
            group["verdict"] == "corrected, unguarded"
            and "say nothing about this group" in group["legs"]["guards"]["reason"]
        )
    fell = replace(GUARDS, margins=(4.0, [-1.0] * 2 + [4.0] * 22))  # 92 % of 100 %
    group = comparison_of(flat(pairs_of(tmp_path, towers=CORRECTED, others=fell)))["groups"]["towers"]
    assert group["verdict"] == "answers changed, a guard broke"
    neighbour = replace(GUARDS, margins=(4.0, -1.0), answer="a bridge", foil="a road")
    group = comparison_of(flat(pairs_of(tmp_path, towers=CORRECTED, others=GUARDS, neighbour=neighbour)))
    assert group["groups"]["towers"]["verdict"] == "answers changed, a guard broke"
    assert group["groups"]["neighbour"]["verdict"] == "broke a neighbour"


def _trained(pairs: list[ProbePair], group: str, many: int, side: str = "after") -> list[ProbePair]:
    """The pairs, the first ones of a group with a picture that was trained on."""
    ids = [pair.probe.id for pair in pairs if pair.probe.group == group][:many]
    return [
        replace(pair, **{side: replace(getattr(pair, side), trained_picture=True)})
        if pair.probe.id in ids
        else pair
        for pair in pairs
    ]


@pytest.mark.parametrize(("many", "side"), [(1, "after"), (1, "before"), (24, "after")])
def test_a_picture_that_was_trained_on_shows_no_correction(tmp_path: Path, many: int, side: str) -> None:
    pairs = _trained(flat(pairs_of(tmp_path, towers=CORRECTED, others=GUARDS)), "towers", many, side)
    groups = comparison_of(pairs)["groups"]
    assert groups["towers"]["verdict"] == "not held out"
    assert groups["towers"]["reasons"] == [
        f"In {many} of 24 probes a picture is in the training data, the first is towers-0: what was trained on says "
        "nothing of other pictures."
    ]
    assert shortfalls({"towers": "corrected"}, groups)[0].endswith(groups["towers"]["reasons"][0])


@pytest.mark.parametrize("group", ["others", "neighbour"])
def test_guards_that_were_trained_on_guard_nothing_unless_they_broke(tmp_path: Path, group: str) -> None:
    bridge = replace(GUARDS, answer="a bridge", foil="a road", said=("a bridge", "a bridge"))
    made = {"towers": CORRECTED, "others": GUARDS, "neighbour": bridge}
    assert comparison_of(flat(pairs_of(tmp_path, **made)))["groups"]["towers"]["verdict"] == "corrected"
    pairs = _trained(flat(pairs_of(tmp_path, **made)), group, 2)
    groups = comparison_of(pairs)["groups"]
    assert (
        groups["towers"]["verdict"] == "corrected, unguarded" and groups[group]["verdict"] == "not held out"
    )
    assert groups["towers"]["legs"]["guards"]["reason"] == (
        f"No guards held out: in 2 of 24 probes of '{group}' a picture is in the training data, the first is {group}-0."
    )
    made[group] = replace(made[group], margins=(4.0, -1.0))
    broken = comparison_of(_trained(flat(pairs_of(tmp_path, **made)), group, 2))["groups"]
    assert broken["towers"]["verdict"] == "answers changed, a guard broke"
    assert broken[group]["verdict"] == ("broke a neighbour" if group == "neighbour" else "answers got worse")


def test_a_group_guards_itself_where_both_answers_are_right_in_turn(tmp_path: Path) -> None:
    """A constant bias makes one of them wrong, however rare it is."""
    on = replace(CORRECTED, probes=20, answer="on", foil="under", said=("under", "on"))
    under = replace(on, answer="under", foil="on", said=("on", "under"))
    groups = pairs_of(tmp_path, on=on, under=under)
    both = [*groups["on"], *groups["under"]]
    for pair in both:
        object.__setattr__(pair.probe, "group", "relation")
    group = comparison_of(both)["groups"]["relation"]
    assert group["verdict"] == "corrected" and group["legs"]["guards"]["probes"] == 40
    biased = pairs_of(
        tmp_path, on=on, rare=replace(under, probes=5, margins=(3.0, -3.0), said=("under", "on"))
    )
    mostly = [*biased["on"], *biased["rare"]]
    for pair in mostly:
        object.__setattr__(pair.probe, "group", "relation")
    group = comparison_of(mostly)["groups"]["relation"]
    assert group["accuracy"]["after"] == pytest.approx(0.8)
    assert group["legs"]["guards"]["holds"] is False and group["verdict"] == "answers changed, a guard broke"


def test_both_ends_of_a_relation_may_decide(tmp_path: Path) -> None:
    related = replace(
        CORRECTED, relation=Relation("on", "spheres", "podium"), other_cost=(0.2, 5.0), other=(1.0, 3.0)
    )
    group = comparison_of(flat(pairs_of(tmp_path, towers=related, others=GUARDS)))["groups"]["towers"]
    assert group["verdict"] == "corrected"
    assert [one["over"] for one in group["enrichment"]["leads"]] == ["equally salient places"]


def test_of_regions_that_decide_as_often_the_first_name_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever order a set has: two runs write the same file."""
    pairs = flat(pairs_of(tmp_path, towers=replace(CORRECTED, probes=5)))
    said = iter(["rug", None, "podium", "rug", "podium"])
    monkeypatch.setattr(intervention_costs, "decisive_region", lambda *_: next(said))
    decides = intervention_costs.decides(pairs, "after")
    assert decides is not None and [*decides.items()] == [("podium", 0.4), ("rug", 0.4)]


def _not_hidden(pair: ProbePair, side: str) -> ProbePair:
    return replace(pair, **{side: replace(getattr(pair, side), interventions=())})


@pytest.mark.parametrize("side", SIDES)
def test_what_decides_is_not_measured_where_nothing_was_hidden(tmp_path: Path, side: str) -> None:
    """The other side is: it is not compared with none."""
    towers = replace(CORRECTED, probes=5, other_cost=(12.0, 12.0))
    pairs = [_not_hidden(pair, side) for pair in flat(pairs_of(tmp_path, towers=towers))]
    other = next(one for one in SIDES if one != side)
    assert comparison_of(pairs)["groups"]["towers"]["decides"] == {side: None, other: {"podium": 1.0}}
    neither = [_not_hidden(pair, other) for pair in pairs]
    assert comparison_of(neither)["groups"]["towers"]["decides"] == {"before": None, "after": None}


def test_what_decides_is_of_probes_that_were_hidden_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of five probes the first is hidden before alone, the last after alone; each has a region of its own."""
    pairs = flat(pairs_of(tmp_path, towers=replace(CORRECTED, probes=5)))
    uneven = [_not_hidden(pairs[0], "after"), *pairs[1:4], _not_hidden(pairs[4], "before")]
    monkeypatch.setattr(intervention_costs, "decisive_region", lambda probe, *_: probe.id)
    for side in SIDES:
        decides = intervention_costs.decides(uneven, side)
        assert decides == {f"towers-{at}": pytest.approx(1 / 3) for at in (1, 2, 3)}
    assert [intervention_costs.decides([uneven[0], uneven[4]], side) for side in SIDES] == [None, None]


def test_attention_without_anything_to_compare_with_is_not_measured(tmp_path: Path) -> None:
    related = replace(CORRECTED, relation=Relation("on", "spheres", "podium"), salient=None)
    group = comparison_of(flat(pairs_of(tmp_path, towers=related, others=GUARDS)))["groups"]["towers"]
    assert group["verdict"] == "answers changed, attention not measured"


def test_the_cited_layer_carries_the_change_and_a_falling_one_is_named(tmp_path: Path) -> None:
    both = replace(CORRECTED, region=((3.0, 3.0), (9.0, 7.0)))  # layer 1 rises more; layer 3 carries more
    group = comparison_of(flat(pairs_of(tmp_path, towers=both, others=GUARDS)))["groups"]["towers"]
    assert group["enrichment"]["layer"] == 3 and group["enrichment"]["layers"] == [3]
    falling = replace(CORRECTED, region=((6.0, 3.0), (1.0, 9.0)))
    group = comparison_of(flat(pairs_of(tmp_path, towers=falling, others=GUARDS)))["groups"]["towers"]
    assert group["verdict"] == "corrected"
    assert "in layer 1 attention left the region" in group["legs"]["attention"]["reason"]


def test_every_threshold_can_be_changed(tmp_path: Path) -> None:
    pairs = flat(
        pairs_of(tmp_path, towers=replace(CORRECTED, margins=_mixed(20), said=("", "")), others=GUARDS)
    )
    for asked, expected in (
        (Thresholds(right=0.9), "answers changed, too few right"),
        (Thresholds(picture=1.0), "corrected"),
        (Thresholds(move=0.97), "answers changed, attention did not"),
        (Thresholds(cause=1.0), "answers and attention changed, cause does not agree"),
        (Thresholds(mediated=0.6), "corrected, not by looking"),
        (Thresholds(probes=25), "too few probes"),
    ):
        assert comparison_of(pairs, thresholds=asked)["groups"]["towers"]["verdict"] == expected
    with pytest.raises(ValueError, match=r"--least_right: found 80; expected a share from 0 to 1"):
        Thresholds(right=80)
    with pytest.raises(ValueError, match=r"--least_probes: found 1; expected a whole number from 2"):
        Thresholds(probes=1)


def test_legs_give_number_interval_threshold_and_reason(tmp_path: Path) -> None:
    group = comparison_of(flat(pairs_of(tmp_path, towers=CORRECTED, others=GUARDS)))["groups"]["towers"]
    legs = group["legs"]
    assert list(legs) == ["answers", "picture", "attention", "cause", "mediation", "guards"]
    for leg in legs.values():
        assert set(leg) == {"holds", "probes", "value", "ci95", "threshold", "reason"}
        assert leg["holds"] is True and leg["probes"] == 24
        assert leg["ci95"][0] <= leg["value"] <= leg["ci95"][1]
    assert legs["answers"]["value"] == 1.0 and legs["answers"]["ci95"][0] == pytest.approx(0.8575, abs=1e-4)
    assert legs["picture"]["value"] == pytest.approx(
        11 / 6
    )  # 6 → −5 of 6 nats, with another answer's picture
    assert legs["cause"]["value"] == pytest.approx(4.5 / 9)
    assert legs["mediation"]["value"] == pytest.approx(4 / 9)  # 6 → 2 of 9 nats, in the key layers
    assert group["accuracy"]["p_mcnemar"] == pytest.approx(2 / 2**24)
    carried = {(one["part"], *one["layers"]): one["share"] for one in group["mediation"]}
    assert carried[("layer", 3)] == pytest.approx(3.6 / 9) and carried[("connector",)] == pytest.approx(
        0.5 / 9
    )
    assert ANSWER not in legs["guards"]["reason"] or FOIL in legs["guards"]["reason"]


def test_the_flags_have_the_defaults_of_the_thresholds() -> None:
    """They are written twice, since reading flags must not import what takes seconds."""
    given = {name.split("_", 1)[1]: least for name, (least, _) in THRESHOLDS.items()}
    assert Thresholds(**given) == Thresholds() and set(given) == set(vars(Thresholds()))


def group_of(tmp_path: Path, name: str = "towers", **groups: Made) -> dict:
    return comparison_of(flat(pairs_of(tmp_path, **groups)))["groups"][name]


@pytest.mark.parametrize("foil", ["Eiffel", ANSWER])
def test_a_guard_that_says_the_group_s_answer_is_broken_whatever_its_margin(
    tmp_path: Path, foil: str
) -> None:
    """With a third answer for its foil, its margin cannot show that everything is Pearl now; what it says can."""
    biased = replace(GUARDS, foil=foil, said=(FOIL, ANSWER))
    group = group_of(tmp_path, towers=CORRECTED, others=biased)
    assert group["verdict"] == "answers changed, a guard broke" and group["legs"]["guards"]["value"] == 0.0
    silent = replace(biased, said=("", ""))
    group = group_of(tmp_path, towers=replace(CORRECTED, said=("", "")), others=silent)
    told = foil == ANSWER
    assert group["verdict"] == ("corrected" if told else "corrected, unguarded")
    assert group["legs"]["guards"]["holds"] is (True if told else None)
    kept = group_of(tmp_path, towers=CORRECTED, others=replace(biased, said=(FOIL, f"The {FOIL} Tower.")))
    assert kept["verdict"] == "corrected"


def test_guards_of_a_rare_foil_alone_guard_nothing(tmp_path: Path) -> None:
    towers = pairs_of(tmp_path, towers=CORRECTED, rare=replace(CORRECTED, probes=1, foil="Minor"))
    members = [*towers["towers"], *towers["rare"]]
    for pair in members:
        object.__setattr__(pair.probe, "group", "towers")
    minor = pairs_of(tmp_path, minor=replace(GUARDS, answer="Minor", said=("Minor", "Minor")))
    group = comparison_of([*members, *flat(minor)])["groups"]["towers"]
    assert group["verdict"] == "corrected, unguarded"
    assert group["legs"]["guards"]["reason"] == (
        "No guards: 'Canton' is the wrong answer of 24 of the 25 probes here, and the right answer of guards on 0 "
        "pictures."
    )


def test_what_must_be_kept_must_be_said_too_and_have_been_right(tmp_path: Path) -> None:
    mute = replace(GUARDS, said=(FOIL, "nonsense"))
    group = group_of(tmp_path, "retention", towers=CORRECTED, retention=mute)
    assert group["verdict"] == "forgot"
    assert group["reasons"][0].endswith("; but 0 % of the generated answers are right, 100 % before.")
    bridge = replace(mute, answer="a bridge", foil="a road", said=("a bridge", "nonsense"))
    towers = group_of(tmp_path, towers=CORRECTED, others=GUARDS, neighbour=bridge)
    assert towers["verdict"] == "answers changed, a guard broke"
    never = replace(GUARDS, margins=(-4.0, -4.0), said=(ANSWER, ANSWER))
    group = group_of(tmp_path, "retention", towers=CORRECTED, retention=never)
    assert group["verdict"] == "too few probes" and "nothing to keep" in group["reasons"][0]


def test_what_it_said_before_already_was_not_corrected(tmp_path: Path) -> None:
    group = group_of(tmp_path, towers=replace(CORRECTED, said=(ANSWER, ANSWER)), others=GUARDS)
    assert group["verdict"] == "margin and answer disagree"
    assert "it generates the right answer" in group["warnings"][0]


def _without_podium(record: AttentionRecord) -> AttentionRecord:
    return replace(
        record,
        region_mass={"spheres": record.region_mass["spheres"]},
        random_mass={"spheres": record.random_mass["spheres"]},
        interventions=tuple(one for one in record.interventions if one.region == "spheres"),
    )


@pytest.mark.parametrize("salient", [(1.0, 8.0), None])
def test_attention_that_rose_elsewhere_too_moved(tmp_path: Path, salient: tuple[float, float] | None) -> None:
    same = replace(CORRECTED, margins=(-3.0, -3.0), said=(FOIL, FOIL), salient=salient)
    pairs = flat(pairs_of(tmp_path, towers=same, others=GUARDS))
    if salient is None:  # no other place at all
        sides = ({pair.probe.id: _without_podium(getattr(pair, side)) for pair in pairs} for side in SIDES)
        probes = [replace(pair.probe, regions={"spheres": pair.probe.regions["spheres"]}) for pair in pairs]
        pairs = pair_all(probes, *sides)
    group = comparison_of(pairs)["groups"]["towers"]
    assert group["verdict"] == "attention moved, answers did not"
    assert group["legs"]["attention"]["holds"] is (None if salient is None else False)


def test_the_interval_of_a_change_holds_it_where_probes_share_pictures(tmp_path: Path) -> None:
    """On each of 20 pictures one of four probes becomes right: a quarter, which no formula of whole pictures knows."""
    margins = [6.0 if at % 4 == 0 else -3.0 for at in range(80)]
    pairs = flat(pairs_of(tmp_path, towers=replace(CORRECTED, probes=80, margins=(-3.0, margins))))
    shared = [
        replace(pair, probe=replace(pair.probe, images=(pairs[at // 4].probe.images[0],)))
        for at, pair in enumerate(pairs)
    ]
    accuracy = comparison_of(shared)["groups"]["towers"]["accuracy"]
    assert (accuracy["probes"], accuracy["images"], accuracy["difference"]) == (80, 20, 0.25)
    assert accuracy["ci95"][0] <= 0.25 <= accuracy["ci95"][1] < 0.5


def test_a_rival_is_one_even_where_any_cost_is_enough(tmp_path: Path) -> None:
    pairs = flat(pairs_of(tmp_path, towers=replace(CORRECTED, other_cost=(0.2, 12.0)), others=GUARDS))
    group = comparison_of(pairs, thresholds=Thresholds(cost=0.0))["groups"]["towers"]
    assert group["verdict"] == "answers and attention changed, cause does not agree"
