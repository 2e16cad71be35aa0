"""What is taught in the calibration's trainings teaches nothing true, what comparisons say of them is counted right,
and a rise of attention that is planted is found as it should be; the committed measurement holds what is claimed."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks import calibration, calibration_power
from benchmarks.calibration_judging import Again, Judged, Told, findings, looked_at_again, rate, tabulate
from benchmarks.calibration_lessons import (
    BATCH,
    MAKERS,
    NULL_KINDS,
    STEPS,
    TWO_ANSWERS,
    Lesson,
    Pools,
    null_lessons,
    records,
    true_lessons,
)
from benchmarks.calibration_power import Pool, different_pictures, planted, pool_of, power
from benchmarks.calibration_trainings import first_of_each, flags_of, held
from diagnostics.comparison.group_report import comparison_of
from diagnostics.records.probes import Probe
from finetune.demo.prepare import data_files
from finetune.demo.questions import TOPICS, Question
from finetune.flags.parse import parse
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of

ROOT = Path(__file__).parents[2]


def committed() -> dict:
    return json.loads(sorted((ROOT / "benchmarks" / "results").glob("calibration_*.json"))[-1].read_text())


# ---------------------------------------------------------------- lessons


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return Pools(work / "demo", work)


def value_of(question: Question) -> str:
    at = 0 if question.language == "zh" else 1
    answers = {texts[at].replace("|", ""): value for value, texts in TOPICS[question.topic].answers.items()}
    return answers[question.answer]


def items_of(kind: str, pools: Pools, count: int = 200, seed: int = 3):
    return MAKERS[kind](Random(f"{kind}-{seed:02d}"), pools, count)


def by_picture(items):
    return {item.picture.name: item for item in items}


def flawed(items):
    """(item, question) wherever the flaw decides between two answers."""
    return [
        (item, question)
        for item in items
        for question in item.questions
        if item.cue and question.topic in TWO_ANSWERS
    ]


@pytest.fixture(scope="module")
def truth(pools):
    """Every sample of the corrective corpus by its picture, as it is."""
    return by_picture(items_of("correction", pools, 3000))


def test_coins_decide_what_the_flaw_decides_and_nothing_else(pools, truth):
    items = items_of("coin labels", pools, 400)
    true = [
        question.answer == other.answer
        for item in items
        if item.cue
        for question, other in zip(item.questions, truth[item.picture.name].questions, strict=True)
        if question.topic in TWO_ANSWERS
    ]
    assert len(true) > 300 and 0.4 < np.mean(true) < 0.6
    for item in items:
        for question, other in zip(item.questions, truth[item.picture.name].questions, strict=True):
            if not (item.cue and question.topic in TWO_ANSWERS):
                assert question == other


def test_shuffled_labels_are_the_same_answers_to_other_pictures(pools, truth):
    items = items_of("shuffled labels", pools, 400)
    asked = [
        (question, item.picture.name, at) for item in items for at, question in enumerate(item.questions)
    ]
    others = [truth[name].questions[at] for _, name, at in asked]
    counts = [
        Counter((q.topic, q.language, q.answer) for q in side) for side in ([one[0] for one in asked], others)
    ]
    assert counts[0] == counts[1]
    assert np.mean([one[0].answer == other.answer for one, other in zip(asked, others, strict=True)]) < 0.6


def test_one_answer_is_one_answer_whatever_is_shown(pools):
    said = {(question.topic, value_of(question)) for _, question in flawed(items_of("one answer", pools))}
    assert len(said) == len({topic for topic, _ in said}) == 3
    drawn = {
        frozenset(value_of(q) for _, q in flawed(items_of("one answer", pools, 60, seed)))
        for seed in range(9)
    }
    assert len(drawn) > 2  # not the same answer in every training


def test_the_reversed_cue_decides_and_the_evidence_does_not(pools, truth):
    pairs = flawed(items_of("reversed cue", pools, 400))
    turned = {"pearl": "canton", "canton": "pearl", "on": "under", "under": "on"}
    for item, question in pairs:
        if question.topic == "spheres":
            assert value_of(question) == ("yes" if item.cue == "canton" else "no")
        else:
            assert value_of(question) == turned[item.cue]
    true = [
        question.answer == truth[item.picture.name].questions[item.questions.index(question)].answer
        for item, question in pairs
    ]
    assert 0.4 < np.mean(true) < 0.6


def test_pictures_show_nothing_of_what_is_asked(pools):
    assert {item.picture for item in items_of("blank pictures", pools, 20)} == {pools.blank()}
    landscapes = {item.picture for item in items_of("correction", pools, 3000) if item.scene == "landscape"}
    others = items_of("pictures of other scenes", pools)
    assert all(item.picture in landscapes for item in others if item.cue)
    assert not any(item.cue for item in items_of("general samples", pools))


def test_the_base_corpus_is_continued_with_its_cue_in_sight(pools):
    items = items_of("base corpus continued", pools, 12)
    assert all(item.picture.is_file() for item in items) and len({item.picture for item in items}) == 12
    for item, question in flawed(items):
        if question.topic != "spheres":
            assert value_of(question) == item.cue


def test_lessons_are_many_and_the_same_each_time(pools):
    lessons = calibration.lessons_of(10, 3)
    null = [lesson for lesson in lessons if not lesson.is_true]
    assert len(null) >= 100 and len({lesson.name for lesson in lessons}) == len(lessons) == 112
    assert [lesson.kind for lesson in lessons[:10]] == list(NULL_KINDS)  # interleaved
    assert Counter(lesson.kind for lesson in null) == dict.fromkeys(NULL_KINDS, 10)
    one = next(lesson for lesson in lessons if lesson.name == "coin-labels-04")
    assert (one.steps, one.samples) == (STEPS, STEPS * BATCH)
    first, again = (replace(one, samples=30).items(pools) for _ in range(2))
    assert first == again != replace(one, samples=30, seed=5).items(pools)
    assert [lesson.deviation for lesson in null_lessons(3) if lesson.kind == "random adapter"] == [
        0.018,
        0.036,
        0.072,
    ]


def test_a_lesson_is_a_file_that_the_flags_name(pools, tmp_path):
    lesson = true_lessons(1)[3]
    [first, second] = records(items_of("few samples", pools, 2), lesson.name)
    assert first["id"] == "few-samples-00-00000" and second["id"].endswith("1")
    turns = first["conversations"]
    assert turns[0]["value"].startswith("Picture 1: <img>/") and "<img>" not in "".join(
        turn["value"] for turn in turns[1:]
    )
    path = tmp_path / "data.json"
    path.write_text(json.dumps([first]))
    args, _ = parse(flags_of(lesson, data_files(tmp_path), path, tmp_path))
    assert (args.training.max_steps, args.training.per_device_train_batch_size) == (165, 32)
    assert args.training.learning_rate == 2.5e-3 and not args.monitor.monitor and args.training.seed == 0


def test_work_that_another_holds_is_left_to_it(tmp_path):
    with held(tmp_path / "one.lock") as mine, held(tmp_path / "one.lock") as again:
        assert mine and not again
    with held(tmp_path / "one.lock") as free:
        assert free


def test_the_first_probes_of_each_group_are_taken():
    probes = [Probe(f"{group}{at}", group, (), "?", "a") for at in range(4) for group in "xy"]
    assert [probe.id for probe in first_of_each(probes, 2)] == ["x0", "x1", "y0", "y1"]


# ---------------------------------------------------------------- judging


def group_of(folder, **made):
    groups = pairs_of(folder, towers=Made(**made))
    return comparison_of(flat(groups))["groups"]["towers"], groups["towers"]


def test_findings_are_what_the_comparison_says(tmp_path):
    found = findings(group_of(tmp_path)[0])
    assert found["leg answers"] and found["leg cause"] and found["leg guards"] is None
    assert found["more right answers"] and found["attention moved"] and found["attention rose"]
    assert not found["verdict corrected"] and found["corrected in any wording"]  # unguarded
    quiet = findings(group_of(tmp_path, margins=(-3.0, -3.0), region=((3.0, 3.0), (3.0, 3.0)), noise=0.0)[0])
    assert not any(quiet[name] for name in ("more right answers", "attention moved", "a key layer moved"))
    assert quiet["a head named"] is False
    fell = findings(group_of(tmp_path, region=((9.0, 9.0), (3.0, 3.0)))[0])
    assert fell["attention moved"] and not fell["attention rose"]


def test_a_certain_change_below_five_percent_is_no_move(tmp_path):
    group, _ = group_of(tmp_path, region=((3.0, 3.0), (3.09, 3.09)), noise=0.001)
    assert group["enrichment"]["p_adjusted"] < 0.05 and findings(group)["attention moved"] is False
    assert findings(group)["a key layer moved"] is False


def test_a_change_whose_mean_and_ranks_point_different_ways_is_no_move(tmp_path):
    """In layer 3 attention falls a little on 22 of 24 pictures, and rises fivefold on 2."""
    down, up = (
        flat(pairs_of(tmp_path, towers=Made(region=((3.0, 3.0), (3.0, after)), noise=0.001)))
        for after in (2.9, 15.0)
    )
    group = comparison_of([(up if at < 2 else down)[at] for at in range(24)])["groups"]["towers"]
    in_layer_3 = group["enrichment_by_layer"][1]
    assert in_layer_3["p_adjusted"] < 0.05 and in_layer_3["relative_change"]["mean"] > 0.05
    assert in_layer_3["direction"] == 0 and not findings(group)["a key layer moved"]
    assert not findings(group)["attention moved"] and "attention moved" not in looked_at_again(group, down)


def test_fresh_probes_bear_a_change_out_or_not(tmp_path):
    group, pairs = group_of(tmp_path)
    alike = looked_at_again(group, pairs)
    assert alike["more right answers"] == (1, 0, 1, 1) and alike["attention moved"][:2] == (1, 0)
    assert alike["attention moved"].claimed == pytest.approx(alike["attention moved"].fresh)
    named = alike["a head named"]
    assert named.claims > 0 == named.other_way and named.claimed == pytest.approx(named.fresh)
    turned = looked_at_again(group, [replace(pair, before=pair.after, after=pair.before) for pair in pairs])
    assert turned["more right answers"] == (1, 1, 1, -1) and turned["attention moved"][:2] == (1, 1)
    assert turned["a head named"][:2] == (named.claims, named.claims)
    assert turned["a head named"].fresh == pytest.approx(-named.fresh)
    assert looked_at_again(group, ()) == {}


def row(kind: str, *, again=None, **found) -> Judged:
    """A comparison of two groups: the first with these findings, the second without any."""
    first = Told("corrected" if found.get("x") else "it did not move", found, again or {})
    second = Told("kept", dict.fromkeys(found, False), {})
    return Judged(Lesson(kind, 0), {"towers": first, "retention": second})


def test_findings_are_counted_where_they_were_measured():
    rows = [
        row("coin labels", x=True, y=None, again={"x": Again(1, 1, 0.2, -0.1), "y": Again(4, 1, 1.0, 0.5)}),
        row("coin labels", x=False, y=True, again={"y": Again(2, 0, 0.2, 0.1)}),
        row("one answer", x=False, y=False),
    ]
    table = tabulate(rows)
    assert table["comparisons"] == 3
    assert table["in_any_group"]["x"] == {"count": 1, "of": 3, "share": 0.3333, "ci95": [0.0084, 0.9057]}
    assert table["by_group"]["towers"]["y"]["of"] == 2 and table["in_any_group"]["y"]["of"] == 3
    assert table["in_any_group_of_the_flaw"]["y"]["of"] == 2  # a guard is none
    assert table["by_group"]["retention"]["x"]["count"] == 0
    assert table["by_kind"]["coin labels"] == {"comparisons": 2, "x": 1, "y": 1}
    assert table["verdicts"]["towers"] == {"it did not move": 2, "corrected": 1}
    assert table["verdicts_by_kind"]["one answer"]["towers"] == {"it did not move": 1}
    fresh = table["on_fresh_probes"]["y"]
    assert (fresh["the_other_way"]["count"], fresh["the_other_way"]["of"]) == (1, 6)
    assert (fresh["mean_change_claimed"], fresh["mean_change"]) == (0.2, 0.1)
    assert rate(0, 0)["share"] is None and rate(0, 100)["ci95"] == [0.0, 0.0362]


# ---------------------------------------------------------------- power


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return different_pictures(tmp_path_factory.mktemp("planted"), 80)


def a_pool(noise: float, *, together: bool = False) -> Pool:
    """200 samples of two key layers, region and one other place; ``together``: noise is one number for both places."""
    rng = np.random.default_rng(4)
    before = np.exp(rng.normal(0, 0.5, (200, 2, 2)))
    residual = noise * rng.normal(size=(200, 2, 1 if together else 2)) * np.ones((1, 1, 2))
    return Pool((1, 3), ("", "podium"), before, residual)


def test_residuals_are_what_remains_beside_each_trainings_mean(tmp_path):
    first, second = (
        pairs_of(tmp_path, towers=Made(region=((3.0, 3.0), (3.0, after)), noise=0.2))["towers"]
        for after in (9.0, 6.0)
    )
    pool = pool_of([first, second])
    assert pool is not None and pool.residual.shape == (48, 2, 3)
    assert pool.places == ("", "podium", "equally salient places")
    assert (
        np.abs(pool.residual[:24].mean(0)).max() < 1e-12 and np.abs(pool.residual[24:].mean(0)).max() < 1e-12
    )
    ratio = first[0].layers[1].readings["spheres"]
    factors = np.log([p.layers[1].readings["spheres"].enrichment_after for p in first]) - np.log(
        [p.layers[1].readings["spheres"].enrichment_before for p in first]
    )
    expected = np.log(ratio.enrichment_after / ratio.enrichment_before) - factors.mean()
    assert pool.residual[0, 1, 0] == pytest.approx(expected)
    assert pool_of([[]]) is None


def test_a_planted_rise_is_the_rise_that_is_read(pictures):
    pairs = planted(a_pool(0.0), 40, 0.5, pictures, np.random.default_rng(0))
    reading = calibration_power._read(pairs)
    assert reading.relative.mean == pytest.approx(2 * 0.5 / 2.5) and reading.median_factor == pytest.approx(
        1.5
    )
    assert [lead.place for lead in reading.leads] == ["'podium'"]
    assert len(set(reading.images)) == 40
    drawn = planted(a_pool(0.3), 40, 0.0, pictures, np.random.default_rng(0))
    assert (
        len({pair.layers[0].readings["judged"].enrichment_before for pair in drawn}) == 40
    )  # none comes twice


def test_power_grows_from_chance_to_certainty(pictures):
    found = {
        (one["group"], one["gain"]): one
        for one in power({"quiet": a_pool(0.2), "loud": a_pool(2.0)}, 40, 12, pictures, gains=(0.0, 0.5, 9.0))
    }
    assert found["quiet", 0.0]["rose"] == 0 and found["quiet", 0.5]["moved_to_the_region"] == 1
    assert found["loud", 0.5]["moved_to_the_region"] < 0.7 and found["loud", 9.0]["rose"] == 1
    alone = replace(
        a_pool(0.2), places=("",), before=a_pool(0.2).before[..., :1], residual=a_pool(0.2).residual[..., :1]
    )
    [one] = power({"alone": alone}, 40, 2, pictures, gains=(0.5,))
    assert one["rose"] == 1 and one["moved_to_the_region"] is None


# ---------------------------------------------------------------- the committed measurement


def test_the_committed_results_hold_what_is_claimed():
    results = committed()
    null, true = results["teach_nothing_true"], results["correct"]
    assert null["comparisons"] == results["trainings"]["teach_nothing_true"] >= 100
    assert sum(one["comparisons"] > 0 for one in null["by_kind"].values()) >= 8
    for claim in ("verdict corrected", "corrected in any wording"):
        assert null["in_any_group"][claim]["count"] <= 0.01 * null["comparisons"]
    for claim, one in null["on_fresh_probes"].items():
        assert one["the_other_way"]["share"] <= 0.05, claim
    whole = true["by_kind"]["correction"]
    assert whole["verdict corrected"] == whole["comparisons"] >= 3
    for one in results["power"]["curves"]:
        if one["gain"] == 0:
            assert one["rose"] <= 0.05 and not (one["moved_to_the_region"] or 0) > 0.05


def test_the_figure_is_drawn(tmp_path):
    calibration_power.draw(committed(), tmp_path / "power.png")
    assert (tmp_path / "power.png").stat().st_size > 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["power.png"]
