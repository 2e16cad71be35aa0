"""The stories of the report: which are told, by rule, and that every part of them is there."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.records.probes import Probe
from diagnostics.report.case_studies import CaseStudy, TrainingSample, _said, case_html, choose_cases
from diagnostics.report.languages import translated, untranslated
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


def own(text: str, kind: str = "") -> str:
    """A text that no language changes."""
    named = f' class="{kind}"' if kind else ""
    return f'<b{named} translate="no">{text}</b>'


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
    text = case_html(case, comparison["groups"][GROUP])
    assert "No answer went from wrong to right. Of those still wrong, this is one of those nearest to" in text
    assert f"Now: {own('“广州塔”', 'wrong')}" in text


def test_guard_groups_and_groups_without_wrong_answers_have_no_case(of: list[Probe]) -> None:
    assert chosen(made(of, {})) == []
    assert chosen(made(of, {"retention-1": (-1.0, 2.0)})) == []


def test_questions_in_the_script_of_the_page_are_preferred(of: list[Probe]) -> None:
    english = [
        replace(probe, question="Which tower?", answer="pearl", foil="canton")
        if probe.id.endswith("3")
        else probe
        for probe in of
    ]
    pairs = made(english, {f"{GROUP}-{n}": (-1.0, float(n + 1)) for n in range(5)})
    (case,) = chosen(pairs)
    assert case.pair.probe.id == "sphere-building-3"
    (case,) = choose_cases(comparison_of(pairs), pairs, language="zh")
    assert case.pair.probe.id == "sphere-building-2"


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
    text = case_html(case, group)
    assert re.findall(r"<h4>([^<]+)</h4>", text) == [
        "Why believe it?",
        "The picture as asked",
        "A similar one, right before too",
        "What it was trained on",
    ]
    assert f"it said {own('“广州塔”')}. Right is {own('“东方明珠”')}.</h3>" in text
    assert f"Before: {own('“广州塔”', 'wrong')}" in text and f"Now: {own('“东方明珠”', 'right')}" in text
    assert text.count("data:image/webp;base64,") == 5
    assert f"2.2 % of its attention to the picture on the {own('spheres')}." in text
    assert f"50 % of its attention to the picture on the {own('spheres')}." in text
    assert f"It said {own('“东方明珠”', 'right')}. Brighter means more attention." in text
    assert "塔&lt;?&gt;<br><b>东方明珠 &amp; more</b>" in text and "<li>It &lt;moved&gt;.</li>" in text
    assert (
        f"What moves the answers most when hidden: before, the {own('body')} (75 % of the questions); now, the "
        f"{own('spheres')} (100 % of the questions)."
    ) in text


def test_the_deciding_region_may_stay_the_same(of: list[Probe]) -> None:
    pairs = made(of, {f"{GROUP}-0": (-1.0, 2.0)})
    comparison = comparison_of(pairs)
    (case,) = choose_cases(comparison, pairs)
    group = comparison["groups"][GROUP]

    def words(before: dict[str, float] | None, after: dict[str, float] | None) -> str:
        return case_html(case, {**group, "decides": {"before": before, "after": after}})

    same = f"hidden: the {own('body')}, before (50 % of the questions) and now (75 %)."
    assert same in words({"body": 0.5}, {"body": 0.75})
    assert "when hidden" not in words({}, {})
    came = f"before, no place stood out; now, the {own('body')} (75 % of the questions)."
    assert came in words({}, {"body": 0.75})
    went = f"before, the {own('body')} (50 % of the questions); now, no place stands out."
    assert went in words({"body": 0.5}, {})
    assert "when hidden" not in words({"body": 0.5}, None)  # hiding was not measured
    assert "when hidden" not in words(None, {"body": 0.5})


def test_a_case_says_each_leg_in_a_few_words(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=20)
    pairs = made(of, {f"{GROUP}-{n}": (-1.0, 2.0 + n) for n in range(20)})
    comparison = comparison_of(pairs)
    (case,) = choose_cases(comparison, pairs)
    text = case_html(case, comparison["groups"][GROUP]).split('<ul class="gist">')[1]
    items = re.findall(r'<li><span class="sign \w*"[^>]*>(.)</span><span>(.*?)</span></li>', text)
    assert len(items) == 6
    assert items[0] == ("✓", "100 % right, enough and more than before")
    assert items[-1] == ("–", "no questions with the opposite answer guard it")


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
    text = case_html(case, comparison["groups"][GROUP])
    assert f"Before: {own('“广州塔”', 'wrong')} likelier than {own('“东方明珠”')}" in text
    assert f"Now: {own('“东方明珠”', 'right')} likelier than {own('“广州塔”')}" in text
    assert f"it found {own('“广州塔”')} likelier. Right is {own('“东方明珠”')}.</h3>" in text


def test_a_tie_is_no_preference(of: list[Probe]) -> None:
    """Equal scores are wrong, and neither answer is likelier."""
    tied = [speaking(pair, "") for pair in made(of, {f"{GROUP}-0": (0.0, 2.0)})]
    group = comparison_of(tied)["groups"][GROUP]
    text = case_html(chosen(tied)[0], group)
    right, foil = own("“东方明珠”"), own("“广州塔”")
    assert f"it found {right} and {foil} equally likely. Right is {right}.</h3>" in text
    assert f"Before: {right} and {foil} equally likely</span>" in text and 'aria-label="wrong"' in text
    assert untranslated(text) == []


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
    text = case_html(case, comparison["groups"][GROUP])
    assert f"Before: {own('“tower &amp; tower”', 'wrong')}" in text
    assert (
        f"{own('“tower &amp; tower”', 'wrong')}, though it rates {own('“东方明珠”', 'right')} likelier"
        in text
    )


@pytest.mark.parametrize(
    ("said", "margin", "sign", "words"),
    [
        (
            "Pearl",
            -3.0,
            "good",
            f"{own('“Pearl”', 'right')}, though it rates {own('“Canton”', 'wrong')} likelier than",
        ),
        (
            "Canton",
            6.0,
            "bad",
            f"{own('“Canton”', 'wrong')}, though it rates {own('“Pearl”', 'right')} likelier than",
        ),
        ("Pearl", 0.0, "good", own("“Pearl”", "right")),
        ("", -3.0, "bad", f"{own('“Canton”', 'wrong')} likelier than {own('“Pearl”')}"),
    ],
)
def test_the_mark_is_that_of_what_was_said(
    tmp_path: Path, said: str, margin: float, sign: str, words: str
) -> None:
    pairs = flat(pairs_of(tmp_path, towers=Made(probes=6, margins=(-3.0, margin), said=("Canton", said))))
    comparison = comparison_of(pairs)
    (case,) = choose_cases(comparison, pairs)
    now = case_html(case, comparison["groups"]["towers"]).split('<section class="side">')[2]
    assert re.findall(r'class="sign (\w+)"', now)[0] == sign
    assert f"Now: {words}" in now and ("though" in now) == ("though" in words)


def test_a_right_answer_before_is_not_told_as_a_wrong_one(tmp_path: Path) -> None:
    pairs = flat(pairs_of(tmp_path, towers=Made(probes=6, said=("Pearl", "Pearl"))))
    comparison = comparison_of(pairs)
    (case,) = choose_cases(comparison, pairs)
    title = case_html(case, comparison["groups"]["towers"]).split("</h3>")[0]
    assert title.endswith(
        f"it said {own('“Pearl”')}, which is right, though it found {own('“Canton”')} likelier."
    )
    assert translated(title.partition("<h3>")[2]) is not None


@pytest.mark.parametrize(("region", "share"), [(0.0096, "under 0.1 %"), (0.12, "0.5 %"), (0.0, "0 %")])
def test_little_attention_is_not_none_and_the_scale_ends_where_it_ends(
    tmp_path: Path, region: float, share: str
) -> None:
    made = Made(probes=6, region=((region, region), (region, region)), noise=0.0, other=(2.5, 2.5))
    pairs = flat(pairs_of(tmp_path, towers=made))
    comparison = comparison_of(pairs)
    (case,) = choose_cases(comparison, pairs)
    text = case_html(case, comparison["groups"]["towers"])
    assert f"<p>{share} of its attention to the picture on the {own('spheres')}." in text
    assert "<span>2.5 times the even share</span>" in text
    for words in re.findall(r"<p>([^<]* of its attention to the picture on the .*?)</p>", text):
        assert translated(words) is not None


def test_an_answer_inside_another_word_is_not_said(of: list[Probe]) -> None:
    """ "no" in "know"."""
    pair = speaking(made(of, {f"{GROUP}-0": (-1.0, 2.0)})[0], "I do not know")
    denied = replace(pair, probe=replace(pair.probe, answer="no", foil="yes"))
    assert "though it rates" in _said(denied, "after")
    assert "though it rates" not in _said(speaking(denied, "No."), "after")


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
    page = case_html(case, comparison["groups"]["towers"])
    assert f"on the {own('podium')}." in page and '<i class="box other">' in page
    rows = re.findall(
        r'<div><span>(.*?)</span><div class="bar pair">.*?class="numbers">(.*?)</span></div>', page
    )
    assert rows[:2] == [(own("podium"), "+4 → <b>+0.20</b>"), (own("spheres"), "+0.5 → <b>+5</b>")]
    assert rows[2][0] == "random places"


def test_a_judged_region_that_decided_before_did_not_mislead(tmp_path: Path) -> None:
    pairs = flat(pairs_of(tmp_path, towers=Made(probes=6)))  # the spheres decide before and after
    (case,) = choose_cases(comparison_of(pairs), pairs)
    page = case_html(case, comparison_of(pairs)["groups"]["towers"])
    assert case.misleading is None and "box other" not in page
