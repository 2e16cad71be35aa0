"""The report's first sentences: in the user's words, and no more than the verdict carries."""

from typing import Any

import pytest

from diagnostics.comparison.verdicts import CORRECTED, OF_KEPT_GROUPS, VERDICTS
from diagnostics.report.headline import CLAIMS, SAME_MODEL, headline, headline_html
from diagnostics.report.languages import in_both_languages, untranslated

ENGLISH, CHINESE = "Which tower?", "这是哪座塔？"


def comparison(**groups: dict[str, Any]) -> dict[str, Any]:
    """Three probes a group: two English questions and a Chinese one, all about the spheres."""
    whole = {"probes": 3, "images": 3, "accuracy": {"before": 0.0, "after": 1.0}}
    return {
        "before": {"model": "base", "step": 0},
        "after": {"model": "tuned", "step": 9},
        "groups": {name: {**whole, **group} for name, group in groups.items()},
        "probes": [
            {"group": name, "question": question, "region": "spheres"}
            for name in groups
            for question in (CHINESE, ENGLISH, ENGLISH)
        ],
    }


def test_every_verdict_has_words_and_only_corrected_says_because() -> None:
    assert set(CLAIMS) == set(VERDICTS) - set(OF_KEPT_GROUPS)
    for verdict in CLAIMS:
        (claim,) = headline(comparison(towers={"verdict": verdict}))
        assert ("because" in claim.words) == (verdict == CORRECTED)
        assert "towers" not in claim.words and "{" not in claim.words


def test_a_corrected_group_is_said_in_the_words_of_its_questions() -> None:
    (claim,) = headline(comparison(towers={"verdict": CORRECTED}))
    assert claim.kind == "good"
    assert claim.words == (
        f'It now answers <b class="asked" translate="no"><i lang="en">“{ENGLISH}”</i>'
        f'<i lang="zh-CN">“{CHINESE}”</i></b> '
        'correctly (0 → 3 of 3), because it looks at the <b translate="no">spheres</b>.'
    )
    assert ">✓</span>" in headline_html([claim])


def test_what_must_be_kept_is_one_sentence_or_named_where_it_is_lost() -> None:
    kept = {"verdict": "kept", "accuracy": {"before": 1.0, "after": 1.0}}
    (claim,) = headline(comparison(retention=kept, neighbour=kept))
    assert claim == ("good", "What had to stay right stayed right (6 → 6 of 6).")
    lost = {"verdict": "forgot", "accuracy": {"before": 1.0, "after": 1 / 3}}
    (claim,) = headline(comparison(retention=lost, neighbour=kept))
    assert claim == (
        "bad",
        'It lost answers that had to stay right, in <b translate="no">retention</b> (3 → 1 of 3).',
    )


def test_what_was_lost_is_not_hidden_by_as_much_that_was_gained() -> None:
    accuracy = {"before": 0.5, "after": 0.5, "gained": 12, "lost": 12, "probes": 24, "images": 24}
    swapped = {"verdict": "kept", "probes": 24, "images": 24, "accuracy": accuracy}
    (claim,) = headline(comparison(retention=swapped))
    assert claim == (
        "",
        "Of what had to stay right as much is right as before (12 → 12 of 24), but not the same: 12 answers were lost.",
    )
    (claim,) = headline(comparison(retention={**swapped, "accuracy": {**accuracy, "gained": 1, "lost": 1}}))
    assert claim.kind == "good"
    said = {"before": 1.0, "after": 0.0}
    (claim,) = headline(comparison(retention={**swapped, "verdict": "forgot", "said_the_answer": said}))
    assert claim.words.endswith("(24 → 0 of 24).")


@pytest.mark.parametrize(("lost", "is_named"), [(10, True), (3, False)])
def test_what_was_lost_is_a_share_of_the_pictures_that_were_right(lost: int, is_named: bool) -> None:
    """200 probes on 40 pictures: 10 lost pictures are a quarter of them, and a twentieth of the probes."""
    both = {"before": 0.95, "after": 0.95}
    accuracy = {**both, "pictures_right": both, "gained": lost, "lost": lost, "probes": 200, "images": 40}
    (claim,) = headline(
        comparison(retention={"verdict": "kept", "probes": 200, "images": 40, "accuracy": accuracy})
    )
    named = f"before (95 % → 95 %), but not the same: on {lost} pictures answers were lost."
    assert claim.words.endswith(named) == is_named
    assert untranslated(headline_html([claim])) == []


def test_probes_without_a_foil_are_not_counted_as_answers() -> None:
    accuracy = {"before": 0.0, "after": 1.0, "probes": 24, "images": 24}
    (claim,) = headline(
        comparison(towers={"verdict": CORRECTED, "probes": 54, "images": 54, "accuracy": accuracy})
    )
    assert "(0 → 24 of 24)" in claim.words


@pytest.mark.parametrize(
    ("images", "accuracy", "words"),
    [
        (3, {"before": 1 / 3, "after": 1.0}, "(1 → 3 of 3)"),
        (2, {"before": 0.5, "after": 1.0}, "(50 % → 100 %)"),  # pictures count, not probes
    ],
)
def test_right_answers_are_counted_only_where_each_probe_has_its_own_picture(
    images: int, accuracy: dict[str, float], words: str
) -> None:
    (claim,) = headline(comparison(towers={"verdict": CORRECTED, "images": images, "accuracy": accuracy}))
    assert words in claim.words


def shared(verdict: str, said: float, *, before: float = 0.0) -> dict[str, Any]:
    """A group of 124 probes on 25 pictures, of whose generated answers all were right before and ``said`` are after."""
    accuracy = {
        "before": before,
        "after": 0.927,
        "pictures_right": {"before": before, "after": 0.64},
        "probes": 124,
        "images": 25,
    }
    generated = {"before": 1.0, "after": said}
    return {"verdict": verdict, "accuracy": accuracy, "said_the_answer": generated}


def test_both_shares_stand_where_probes_share_pictures() -> None:
    """92.7 % of the probes are enough; 64 % of the pictures are too few, and decide."""
    (claim,) = headline(comparison(towers=shared("answers changed, too few right", 1.0)))
    assert claim.words.endswith(
        "correctly more often (0 % → 92.7 %, by picture 0 % → 64 %), and still too seldom."
    )
    page = headline_html([claim])
    assert untranslated(page) == [] and "按图片计 0% → 64%" in in_both_languages(page)


@pytest.mark.parametrize(
    ("said", "count"),
    [(0.9, "(100 % → 92.7 %, by picture 100 % → 64 %)"), (0.5, "(100 % → 50 %)")],
)
def test_what_fell_most_is_said_of_what_was_lost(said: float, count: str) -> None:
    (claim,) = headline(comparison(retention=shared("forgot", said, before=1.0)))
    assert claim.words.endswith(f"</b> {count}.")


@pytest.mark.parametrize(
    ("lost", "count", "chinese"),
    [
        (
            {"before": 1.0, "after": 0.5, "by_picture": False},
            "(100 % → 50 % of what it says)",
            "所说回答 100% → 50%",
        ),
        (
            {"before": 0.98, "after": 0.6, "by_picture": True},
            "(98 % → 60 % of what it says, by picture)",
            "所说回答 98% → 60%，按图片计",
        ),
        (None, "(100 % → 92.7 %, by picture 100 % → 64 %)", "按图片计 100% → 64%"),
    ],
)
def test_what_was_lost_by_what_it_says_is_called_so(lost: Any, count: str, chinese: str) -> None:
    """Of probes as much may be right as before."""
    group = shared("forgot", 1.0, before=1.0) | {"speech_lost": lost}
    (claim,) = headline(comparison(retention=group))
    assert claim.words.endswith(f"</b> {count}.")
    page = headline_html([claim])
    assert untranslated(page) == [] and chinese in in_both_languages(page).replace("\N{NO-BREAK SPACE}", " ")


def test_kept_groups_are_counted_together_by_probe_and_by_picture() -> None:
    """92.7 % of 124 and 100 % of 3 are 92.9 %; 64 % of 25 and 100 % of 3 are 67.9 %."""
    three = {"before": 1.0, "after": 1.0, "pictures_right": {"before": 1.0, "after": 1.0}}
    kept = {"verdict": "kept", "accuracy": three}
    (claim,) = headline(comparison(retention=shared("kept", 1.0, before=1.0), neighbour=kept))
    assert "(100 % → 92.9 %, by picture 100 % → 67.9 %)" in claim.words


def test_a_model_against_itself_is_said_to_be_one() -> None:
    one = comparison(towers={"verdict": "it did not move"})
    one["after"] = one["before"]
    assert headline(one) == [("", SAME_MODEL)]


@pytest.mark.parametrize(
    ("after", "said", "margin", "is_same"),
    [
        ("towers/base", "Canton", -3.0, True),  # compare numbers its models by their places
        ("./towers/base/", "Canton", -2.99, True),
        ("towers/tuned", "Canton", -3.0, False),
        ("towers/base", "Pearl", -3.0, False),  # the folder has other weights by now
        ("towers/base", "Canton", 2.0, False),
    ],
)
def test_a_model_is_known_by_its_name_and_its_answers(
    after: str, said: str, margin: float, is_same: bool
) -> None:
    one = comparison(towers={"verdict": "it did not move"})
    one["before"], one["after"] = {"model": "towers/base", "step": 0}, {"model": after, "step": 1}
    for probe in one["probes"]:
        probe["said"] = {"before": "Canton", "after": said}
        probe["margin_nats"] = {"before": -3.0, "after": margin}
    one["probes"][0]["margin_nats"] = {"before": None, "after": None}
    assert (headline(one) == [("", SAME_MODEL)]) is is_same
