"""The stories of the report: which are told, by rule, and that every part of them is there."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.records.probes import Probe
from diagnostics.report.case_studies import CaseStudy, TrainingSample, case_html, choose_cases, summary
from diagnostics.report.verdict_cards import pill
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of
from tests.diagnostics.show_samples import probes, record

GROUP = "sphere-building"


def made(of: list[Probe], margins: dict[str, tuple[float, float]]) -> list[ProbePair]:
    """Pairs with margins before and after by probe; others are right both times. They look at cell 20, then 8."""
    before, after = (
        {
            probe.id: record(
                probe,
                step,
                cell=8 if step else 20,
                strength=0.5,
                margin=margins.get(probe.id, (3.0, 3.0))[side],
                said=probe.answer if margins.get(probe.id, (3.0, 3.0))[side] > 0 else probe.foil or "",
            )
            for probe in of
        }
        for side, step in enumerate((0, 10))
    )
    return pair_all(of, before, after)


@pytest.fixture
def of(tmp_path: Path) -> list[Probe]:
    return probes(tmp_path, per_group=5)


def chosen(pairs: list[ProbePair], samples: tuple[TrainingSample, ...] = ()) -> list[CaseStudy]:
    return choose_cases(comparison_of(pairs), pairs, samples)


def test_the_middle_one_of_the_corrected_is_told(of: list[Probe]) -> None:
    margins = {0: (-1.0, 9.0), 1: (-1.0, 2.0), 2: (-1.0, 5.0), 3: (-1.0, -4.0), 4: (2.0, 3.0)}
    (case,) = chosen(made(of, {f"{GROUP}-{n}": both for n, both in margins.items()}))
    assert (case.group, case.pair.probe.id, case.went_right) == (GROUP, "sphere-building-2", True)
    # a margin of 0 is wrong
    margins[4] = (0.0, 5.0)
    (case,) = chosen(made(of, {f"{GROUP}-{n}": both for n, both in margins.items()}))
    assert case.pair.probe.id == "sphere-building-2"
    assert case.layer in (1, 3)


def test_a_group_without_corrections_shows_a_probe_that_is_still_wrong(of: list[Probe]) -> None:
    pairs = made(of, {f"{GROUP}-{n}": (-1.0, -1.5 - n) for n in range(3)})
    comparison = comparison_of(pairs)
    (case,) = choose_cases(comparison, pairs)
    assert (case.pair.probe.id, case.went_right) == ("sphere-building-1", False)  # -2.5 is their median
    group = comparison["groups"][GROUP]
    words = summary(case, group)
    assert words.startswith(
        "No probe of this group went from wrong to right. Shown: of those still wrong, one of those nearest to their"
    )
    assert "the model got 2 right before training and 2 after" in words
    assert "After training: still wrong" in case_html(case, group, pill("it did not move"))


def test_guard_groups_and_groups_without_wrong_answers_have_no_case(of: list[Probe]) -> None:
    assert chosen(made(of, {})) == []
    assert chosen(made(of, {"retention-1": (-1.0, 2.0)})) == []


def test_questions_in_latin_script_are_preferred(of: list[Probe]) -> None:
    english = [
        replace(probe, question="Which tower?", answer="pearl", foil="canton")
        if probe.id.endswith("3")
        else probe
        for probe in of
    ]
    (case,) = chosen(made(english, {f"{GROUP}-{n}": (-1.0, float(n + 1)) for n in range(5)}))
    assert case.pair.probe.id == "sphere-building-3"


def test_at_most_three_cases_in_file_order(tmp_path: Path) -> None:
    of = [
        replace(probe, group=f"group {4 - n}", phrases={}, regions={})
        for n, probe in enumerate(probes(tmp_path, per_group=5)[:5])
    ]
    cases = chosen(made(of, {probe.id: (-1.0, 1.0) for probe in of}))
    assert [case.group for case in cases] == ["group 4", "group 3", "group 2"]


def test_a_similar_probe_that_was_right_before_stands_beside_the_case(of: list[Probe]) -> None:
    wrong = {f"{GROUP}-{n}": (-1.0, 2.0) for n in range(5)}
    (case,) = chosen(made(of, wrong))
    assert case.beside is None  # the other group asks of other things
    neighbours = [
        replace(of[5], id="swapped", group="neighbour", answer="广州塔", foil="东方明珠"),
        replace(of[6], id="same", group="neighbour", question="塔?", answer="东方明珠", foil="广州塔"),
        replace(
            of[7],
            id="same-question",
            group="neighbour",
            question="这座塔是什么?",
            answer="东方明珠",
            foil="x",
        ),
    ]
    for count, expected in ((1, "swapped"), (2, "same"), (3, "same-question")):
        (case,) = chosen(made([*of[:5], *neighbours[:count]], wrong))
        assert case.beside is not None and case.beside.probe.id == expected
    # one of its own group will do; one that was wrong before will not
    (case,) = chosen(made(of[:5], {**wrong, f"{GROUP}-4": (1.0, 2.0)}))
    assert case.beside is not None and case.beside.probe.id == "sphere-building-4"
    (case,) = chosen(made([*of[:5], neighbours[0]], {**wrong, "swapped": (-1.0, 2.0)}))
    assert case.beside is None


def test_samples_shown_are_those_with_the_answer_of_the_case(of: list[Probe], tmp_path: Path) -> None:
    def sample(number: int, answer: str, question: str = "塔?") -> TrainingSample:
        return TrainingSample(tmp_path / f"{number}.png", question, answer)

    pairs = made(of, {f"{GROUP}-0": (-1.0, 2.0)})
    unrelated = [sample(n, "blue") for n in range(3)]
    assert chosen(pairs, tuple(unrelated))[0].samples == ()
    right = [sample(10 + n, "这是东方明珠。") for n in range(4)]
    wrong = [sample(20 + n, "广州塔") for n in range(2)]
    assert chosen(pairs, (*unrelated, *wrong))[0].samples == ()
    assert chosen(pairs, tuple(right))[0].samples == (right[0], right[2], right[3])
    # with the other answer beside it: two of its own, evenly, and one of that
    assert chosen(pairs, (*unrelated, *wrong, *right))[0].samples == (right[0], right[3], wrong[0])
    asked = sample(30, "东方明珠", "这座塔是什么?")
    assert chosen(pairs, (*right, asked))[0].samples == (asked,)


def test_a_case_has_all_its_steps_in_order(of: list[Probe], tmp_path: Path) -> None:
    neighbour = replace(of[5], id="right", group="neighbour", answer="东方明珠", foil="广州塔")
    pairs = made([*of[:5], neighbour], {f"{GROUP}-{n}": (-1.0, 2.0 + n) for n in range(5)})
    comparison = comparison_of(pairs)
    Image.new("RGB", (90, 60)).save(tmp_path / "sample.png")
    (case,) = choose_cases(
        comparison, pairs, [TrainingSample(tmp_path / "sample.png", "塔<?>", "东方明珠 & more")]
    )
    group = comparison["groups"][GROUP]
    group["decides"] = {"before": {"body": 0.75, "spheres": 0.25}, "after": {"spheres": 1.0}}
    group["reasons"] = ["It <moved>."]
    text = case_html(case, group, pill("corrected"))
    assert re.findall(r"<h4>(.*?)</h4>", text) == [
        "The wrong answer",
        f"Where it looked, layer {case.layer}",
        "A similar one it got right",
        "What it was trained on",
        "After training: right",
        "The verdict",
    ]
    assert "<h3>It said “广州塔”. The right answer is “东方明珠”.</h3>" in text
    assert text.count("data:image/webp;base64,") == 5
    assert "2% of its attention to the picture is on <b>spheres</b> (white box), 0.5 times" in text
    assert "50% of its attention to the picture is on <b>spheres</b> (white box), 12.0 times" in text
    assert (
        'the model was right even before training: <b class="right">“东方明珠”</b>. Brighter means more attention.'
        in text
    )
    assert "塔&lt;?&gt;<br><b>东方明珠 &amp; more</b>" in text and "<li>It &lt;moved&gt;.</li>" in text
    assert '<span class="pill good">corrected</span>' in text
    assert (
        "The region whose hiding shifts the margin most: before, it was <b>body</b> (in 75% of the probes); now it is "
        "<b>spheres</b> (in 100% of the probes)."
    ) in text
    assert "Of 5 such questions, the model got 0 right before training and 5 after." in text


def test_the_deciding_region_may_stay_the_same(of: list[Probe]) -> None:
    (case,) = chosen(made(of, {f"{GROUP}-0": (-1.0, 2.0)}))
    group = {"accuracy": None, "probes": 5, "decides": {"before": {"body": 0.5}, "after": {"body": 0.75}}}
    words = "Hiding <b>body</b> shifted the margin most before (50% of the probes), and does after (75%)."
    assert words in summary(case, group)
    assert "Hiding" not in summary(case, {**group, "decides": {"before": {}, "after": {}}})
    came = summary(case, {**group, "decides": {"before": {}, "after": {"body": 0.75}}})
    assert "before, no region stood out; now it is <b>body</b> (in 75% of the probes)." in came
    went = summary(case, {**group, "decides": {"before": {"body": 0.5}, "after": {}}})
    assert "before, it was <b>body</b> (in 50% of the probes); now no region stands out." in went


def test_right_answers_are_counted_only_where_each_probe_has_its_own_picture(of: list[Probe]) -> None:
    (case,) = chosen(made(of, {f"{GROUP}-0": (-1.0, 2.0)}))
    group = {"accuracy": {"before": 0.2, "after": 0.8}, "probes": 5, "images": 5}
    assert "Of 5 such questions, the model got 1 right before training and 4 after." in summary(case, group)
    shared = {**group, "images": 4}
    assert "the model got 20% right before training and 80% after." in summary(case, shared)
    assert "got 1 right" in summary(case, {name: group[name] for name in ("accuracy", "probes")})


def test_the_verdict_of_a_case_lists_its_legs(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=20)
    pairs = made(of, {f"{GROUP}-{n}": (-1.0, 2.0 + n) for n in range(20)})
    comparison = comparison_of(pairs)
    group = comparison["groups"][GROUP]
    (case,) = choose_cases(comparison, pairs)
    text = case_html(case, group, "")
    items = re.findall(r"<li><b>(.) (\w+):</b> (.*?)</li>", text.split('<ul class="marked">')[1])
    assert [name for _, name, _ in items] == list(group["legs"])
    assert items[0][0] == "✓" and items[-1][0] == "–" and items[-1][2].startswith("No guards:")


def test_without_a_generated_answer_the_likelier_one_is_quoted(of: list[Probe]) -> None:
    pairs = made(of, {f"{GROUP}-0": (-1.0, 2.0)})
    silent = [
        replace(
            pair,
            before=replace(pair.before, scores=replace(pair.before.scores, generated="")),
            after=replace(pair.after, scores=replace(pair.after.scores, generated="")),
        )
        for pair in pairs
    ]
    comparison = comparison_of(silent)
    (case,) = choose_cases(comparison, silent)
    text = case_html(case, comparison["groups"][GROUP], "")
    assert 'It rated <b class="wrong">“广州塔”</b> likelier than “东方明珠”.' in text
    assert 'It rated <b class="right">“东方明珠”</b> likelier than “广州塔”.' in text
    assert "<h3>“广州塔” was likelier. The right answer is “东方明珠”.</h3>" in text


def speaking(pair: ProbePair, said: str) -> ProbePair:
    """The pair whose model says ``said``, before and after."""
    return replace(
        pair,
        before=replace(pair.before, scores=replace(pair.before.scores, generated=said)),
        after=replace(pair.after, scores=replace(pair.after.scores, generated=said)),
    )


def test_a_likelier_right_answer_is_not_enough_if_the_generated_one_is_wrong(of: list[Probe]) -> None:
    pairs = made(of, {f"{GROUP}-0": (-1.0, 2.0)})
    assert chosen(pairs)[0].beside is pairs[1]
    mumbling = [pairs[0], speaking(pairs[1], "tower tower"), *pairs[2:]]
    assert chosen(mumbling)[0].beside is pairs[2]
    mumbling = [speaking(pairs[0], "tower & tower"), *pairs[1:]]
    comparison = comparison_of(mumbling)
    (case,) = choose_cases(comparison, mumbling)
    text = case_html(case, comparison["groups"][GROUP], "")
    assert 'It answered <b class="wrong">“tower &amp; tower”</b>.' in text
    assert 'It answered “tower &amp; tower”. It rated <b class="right">“东方明珠”</b> likelier' in text


def test_the_region_that_misled_is_shown_with_its_attention_and_cost(tmp_path: Path) -> None:
    """Before, hiding the podium costs 4 nats and the spheres .5; after, .2 and 5."""
    pairs = flat(pairs_of(tmp_path, towers=Made(probes=6, other=(2.0, 1.0))))
    moved = [
        replace(
            pair,
            before=replace(
                pair.before,
                interventions=tuple(
                    one._replace(margin_nats=-7.0) if one.region == "podium" else one
                    for one in pair.before.interventions
                ),
            ),
        )
        for pair in pairs
    ]
    comparison = comparison_of(moved)
    (case,) = choose_cases(comparison, moved)
    assert case.misleading == "podium"
    page = case_html(case, comparison["groups"]["towers"], "")
    assert "on <b>podium</b> (orange box)" in page
    assert re.search(r"podium.{,200}\+4 → <b>\+0\.20</b>", page) and re.search(
        r"spheres<.{,200}\+0\.5 → <b>\+5</b>", page
    )


def test_a_judged_region_that_decided_before_did_not_mislead(tmp_path: Path) -> None:
    pairs = flat(pairs_of(tmp_path, towers=Made(probes=6)))  # the spheres decide before and after
    (case,) = choose_cases(comparison_of(pairs), pairs)
    assert case.misleading is None and "orange" not in case_html(
        case, comparison_of(pairs)["groups"]["towers"], ""
    )
