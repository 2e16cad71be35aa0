"""From tests to a stage: each stage by evidence made up for it, and what is not claimed where a test is missing."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.legs.leg import Leg, not_measured
from diagnostics.diagnosis.evidence import TESTS, Evidence
from diagnostics.diagnosis.remedies import faulty_part, remedy_of
from diagnostics.diagnosis.stages import STAGES, Stage, stage_of
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.records.probes import Probe
from diagnostics.report.languages import translated
from finetune.flags.help import known

SOUND = dict.fromkeys(TESTS, True) | {"answers": False, "one shift": False, "answer state": False}
"""Wrong answers of a model in which all is well on the way, so that nothing explains them."""


def evidence(decides=None, pictures=40, accuracy=0.1, **changes) -> Evidence:
    held = SOUND | {name.replace("_", " "): value for name, value in changes.items()}
    tests = {
        name: not_measured(0.5, f"{name}: missing.")
        if holds is None
        else Leg(
            holds, 40, 0.5 if holds else 0.3, (0.4, 0.6) if holds else (0.2, 0.4), 0.5, f"{name}: {holds}."
        )
        for name, holds in held.items()
    }
    return Evidence(40, pictures, accuracy, tests, decides)


@pytest.mark.parametrize(
    ("found", "stage"),
    [
        (evidence(answers=True), "right"),
        (evidence(answers=True, pictures=19), "too few probes"),
        (evidence(accuracy=None), "too few probes"),
        (evidence(one_shift=True), "known, said otherwise"),
        # a strong leaning keeps the margin still too, and what a shift explains comes first
        (evidence(one_shift=True, picture=False), "known, said otherwise"),
        (evidence(one_shift=True, decides="podium", hiding=False), "looked at, not used"),
        (evidence(picture=False), "language prior"),
        # what the tower loses cannot move the margin either
        (evidence(picture=False, tower=False, tokens=False), "not seen"),
        (evidence(picture=False, tokens=False), "seen, not passed on"),
        (evidence(picture=False, attention=False, hiding=False), "language prior"),
        (evidence(tower=False, tokens=False, attention=False), "not seen"),
        (evidence(tokens=False, attention=False), "seen, not passed on"),
        # tokens that tell vouch for the tower
        (evidence(tower=False, attention=False), "passed on, not looked at"),
        (evidence(attention=False), "passed on, not looked at"),
        (evidence(attention=False, decides="podium"), "passed on, not looked at"),
        # what the answer's own state tells has arrived, if by other places
        (evidence(attention=False, answer_state=True), "looked at, not used"),
        (evidence(attention=False, answer_state=True, decides="podium"), "passed on, not looked at"),
        (evidence(attention=False, answer_state=None, decides="podium"), "passed on, not looked at"),
        (evidence(decides="podium"), "looked at, not used"),
        (evidence(hiding=False), "looked at, not used"),
        (evidence(answer_state=True), "looked at, not used"),
        (evidence(), None),
    ],
)
def test_the_first_test_that_points_somewhere_decides(found, stage):
    decided = stage_of(found, Thresholds())
    assert decided.name == stage and (stage is None or stage in STAGES)
    assert decided.reason.endswith(".")


@pytest.mark.parametrize(
    ("low", "high", "state", "stage"),
    [
        (0.7, 0.99, True, "passed on, not looked at"),
        (0.7, 1.3, True, "looked at, not used"),
        (0.7, 1.3, False, "passed on, not looked at"),
        (0.7, 1.3, None, None),
    ],
)
def test_where_attention_leaves_it_open_the_answers_state_says_whether_it_arrived(low, high, state, stage):
    found = evidence(attention=False, answer_state=state, decides="podium")
    looks = Leg(False, 40, 0.9, (low, high), 1.0, "attention: open.")
    decided = stage_of(replace(found, tests=found.tests | {"attention": looks}), Thresholds())
    assert decided.name == stage


@pytest.mark.parametrize(
    ("found", "stage", "missing"),
    [
        (evidence(tower=None, tokens=None), None, "tokens: missing"),
        (evidence(tower=None, tokens=False), None, "tower: missing"),
        (evidence(tokens=None), None, "tokens: missing"),
        (evidence(attention=None), None, "attention: missing"),
        # not asked of the way: what is measured still counts
        (evidence(tower=False, tokens=None), "not seen", "tower: False"),
        (evidence(tower=None, attention=False), "passed on, not looked at", "attention: False"),
        (evidence(one_shift=None, picture=False), "language prior", "picture: False"),
        (evidence(tower=None, tokens=None, picture=False), "language prior", "picture: False"),
        (evidence(picture=None, tower=False, tokens=False), "not seen", "tower: False"),
        (evidence(hiding=None, answer_state=None), None, "answer state: missing"),
        # it may have arrived by other places, which nothing says
        (evidence(attention=False, answer_state=None), None, "answer state: missing"),
    ],
)
def test_nothing_is_claimed_that_rests_on_a_test_that_is_missing(found, stage, missing):
    decided = stage_of(found, Thresholds())
    assert decided.name == stage and missing in decided.reason


def test_a_margin_that_may_move_as_much_as_it_must_is_no_language_prior():
    found = evidence(attention=False)
    still = Leg(False, 40, 0.15, (0.05, 0.35), 0.2, "picture: it may move.")
    assert stage_of(replace(found, tests={**found.tests, "picture": still}), Thresholds()).name == (
        "passed on, not looked at"
    )
    surely = still._replace(ci95=(0.05, 0.19))
    assert stage_of(replace(found, tests={**found.tests, "picture": surely}), Thresholds()).name == (
        "language prior"
    )


def test_too_few_says_how_many_are_missing():
    assert "12 pictures" in (reason := stage_of(evidence(pictures=12), Thresholds(probes=30)).reason)
    assert "30 are needed, 18 more" in reason


PROBES = [
    Probe(
        "a", "towers", (Path("a.png"),), "Which?", "Pearl Tower", "Canton Tower", {"spheres": ((0, 0, 9, 9),)}
    )
]


@pytest.mark.parametrize("stage", [*STAGES, None])
@pytest.mark.parametrize("resampler", [False, True])
def test_a_remedy_trains_the_faulty_part_with_flags_that_exist(stage, resampler):
    remedy = remedy_of(
        Stage(stage, "why."),
        PROBES,
        decides="podium",
        model="my model",
        probe_file="probes.json",
        resampler=resampler,
        look_layers=(1, 5),
    )
    assert set(faulty_part(stage)) <= set(remedy.trains)
    assert bool(remedy.trains) == (stage not in ("right", "too few probes", None)) == bool(remedy.guards)
    if remedy.trains:
        assert remedy.command.startswith("python finetune.py --model_name_or_path 'my model' ")
        assert ("--vision lora" in remedy.command) == ("vision" in remedy.trains)
        assert ("--train_connector True" in remedy.command) == ("connector" in remedy.trains)
        assert ("--look_weight 0.2 --look_layers 1,5 " in remedy.command) == (
            stage == "passed on, not looked at"
        )
        assert "'Canton Tower'" in remedy.guards
        given = {word for word in shlex.split(remedy.command) if word.startswith("--")}
        assert given <= known()


@pytest.mark.parametrize(
    "stage", ["not seen", "seen, not passed on", "passed on, not looked at", "looked at, not used"]
)
@pytest.mark.parametrize("decides", [None, "podium"])
def test_a_region_is_named_where_all_probes_share_it(stage, decides):
    def samples(*regions):
        probes = [replace(PROBES[0], id=one, regions={one: ((0, 0, 9, 9),)}) for one in regions]
        more = {"decides": decides, "model": "m", "probe_file": "p", "resampler": False}
        return remedy_of(Stage(stage, "."), probes, **more).samples

    assert "dog" in samples("dog", "dog") and "dog" in samples("dog")
    mixed = samples("dog", "cat", "dog")
    assert "the region that each probe names" in mixed and "dog" not in mixed and "cat" not in mixed
    assert not re.search("[a-z]{3,} [a-z]{3,}", (translated(mixed) or mixed).replace("max_pixels", ""))


def test_guards_of_many_answers_are_not_those_of_two():
    def guards(*foils):
        probes = [replace(PROBES[0], id=one, foil=one) for one in foils]
        more = {"decides": None, "model": "m", "probe_file": "p", "resampler": False}
        return remedy_of(Stage("not seen", "."), probes, **more).guards

    assert "whose right answer is 'on' or 'under'" in guards("on", "under")
    many = guards("on", "under", "behind")
    assert "whose right answer is the foil of one of these probes;" in many
    assert "foil" not in str(translated(many))


def test_a_cue_that_decides_is_what_samples_must_break():
    remedy = remedy_of(
        Stage("looked at, not used", "."),
        PROBES,
        decides="podium",
        model="m",
        probe_file="p",
        resampler=False,
    )
    assert "podium contradicts" in remedy.samples and "only spheres" in remedy.samples
    assert remedy.trains == ("language",)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"probes": 1}, "--least_probes: found 1"),
        ({"each_answer": 2.5}, "--least_each_answer: found 2.5"),
        ({"told": 1.2}, "--least_told: found 1.2"),
        ({"looked": 0.0}, "--least_looked: found 0.0"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(changes, fault):
    with pytest.raises(ValueError, match=fault):
        Thresholds(**changes)
