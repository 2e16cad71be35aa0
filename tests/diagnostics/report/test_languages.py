"""The report in two languages: nothing is left in the other one, and the words are fit to be read."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.curve import _conclusion
from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import pair_all
from diagnostics.comparison.trajectory import evolution_of, series_of
from diagnostics.keep.judging import judge
from diagnostics.keep.page import keep_html
from diagnostics.report.chinese import CHINESE
from diagnostics.report.curve_page import curve_html, rows_of
from diagnostics.report.headline import ALL_KEPT, CLAIMS, EXCHANGED, ONE_LOST
from diagnostics.report.languages import SWITCH_PLACE, as_written, in_both_languages, translated, untranslated
from diagnostics.report.page import report_html, script_words
from tests.diagnostics.comparison.made_pairs import ANSWER, FOIL, GUARDS, Made, flat, pairs_of
from tests.diagnostics.keep.test_program import SHARES as KEPT_SHARES
from tests.diagnostics.keep.test_program import made_answers, study_of
from tests.diagnostics.show_samples import probes, record, records

PAGE = f'<html lang="en"><head><style></style><title>{{title}}</title></head><body>{SWITCH_PLACE}{{body}}</body></html>'


def made_page(body: str, opens: str = "en") -> str:
    return in_both_languages(PAGE.format(title="The verdicts", body=body), opens)  # type: ignore[arg-type]


def test_a_text_stands_in_both_languages_and_a_users_text_as_it_is() -> None:
    page = made_page(f'<p>40 probes</p><h3 translate="no">right</h3><p>Before: {as_written("now")}</p>')
    assert '<p><span lang="en">40 probes</span><span lang="zh-CN">40 个探针</span></p>' in page
    assert '<h3 translate="no">right</h3>' in page
    assert '<span lang="zh-CN">之前：<b translate="no">now</b></span>' in page


def test_a_percent_sign_stays_beside_its_number_and_a_users_spaces_as_they_are() -> None:
    body = f"<p>100 % of the answers right</p><small>1 to 5 %</small><p>Before: {as_written('at 5 %')}</p>"
    page = made_page(body)
    assert "100\N{NO-BREAK SPACE}% of the answers right" in page and "1 to 5\N{NO-BREAK SPACE}%" in page
    assert ">at 5 %<" in page


def test_what_is_no_text_is_said_in_both_languages_too() -> None:
    page = made_page('<img alt="the picture"><svg><text x="1">step</text></svg>', "zh")
    said = re.findall(r'data-said="(.*?)"', page)
    assert [json.loads(one.replace("&quot;", '"')) for one in said] == [
        {"text": {"en": "The verdicts", "zh": "结论"}},
        {"alt": {"en": "the picture", "zh": "图片"}},
    ]
    assert '<img alt="图片"' in page and ">结论</title>" in page and '<html lang="zh-CN">' in page
    assert '<text x="1"><tspan lang="en">step</tspan><tspan lang="zh-CN">步</tspan></text>' in page


def test_what_the_table_lacks_is_named_and_left_in_english() -> None:
    assert untranslated(PAGE.format(title="now", body="<p>No such words. 40 probes</p>")) == [
        "No such words. 40 probes",
    ]
    assert "<p>No such words.</p>" in made_page("<p>No such words.</p>")


def test_places_are_filled_and_lists_set_the_chinese_way() -> None:
    assert translated("layers 3, 5 and 7") == "第 3、5、7 层"
    assert translated("40 became right, 0 wrong (p = 1.8e-12)") == "40 个变对，0 个变错（p = 1.8e-12）"
    assert translated("interval 91.2 to 100 %") == "区间 91.2 至 100%"
    assert translated("interval of something") is None  # {i:n} is a number


def test_numbers_that_are_bounds_are_numbers() -> None:
    assert translated("<i>under 0.1 % →</i> over 99.9 %") == "<i>不到 0.1% →</i> 超过 99.9%"
    assert translated("under 0.1 % right, enough and more than before") == "不到 0.1% 答对：够多，且多于之前"
    assert (
        translated("layer 3, head 1: under 0.1 % → 40 % on the region")
        == "第 3 层第 1 头：对该区域 不到 0.1% → 40%"
    )
    assert translated("under the tower") is None


def test_each_place_of_the_table_is_used() -> None:
    for english, chinese in CHINESE.items():
        places = set(re.findall(r"\{(\w+)(?::\w)?\}", english))
        assert set(re.findall(r"\{(\w+)\}", chinese)) <= places, english
        assert re.search(r"[一-鿿]", chinese) or not re.search(
            r"[A-Za-z]{3}", re.sub(r"<[^>]*>|\{[^}]*\}|&\w+;|nats|the|DivPrune|FastV", "", english)
        ), english


def test_every_headline_has_its_chinese() -> None:
    for claim in (*CLAIMS.values(), ALL_KEPT, ONE_LOST, EXCHANGED):
        words = claim.format(
            question=as_written("q"), count="(0 → 3 of 4)", region=f"the {as_written('r')}",
            group=as_written("g"), lost=3,
        )  # fmt: skip
        said = translated(words)
        assert said is not None and not re.search("[A-Za-z]{3}", re.sub("<[^>]*>", "", said)), words
    assert set(script_words()) <= set(CHINESE)


def test_every_reason_of_what_is_kept_or_guarded_has_its_chinese(tmp_path: Path) -> None:
    """One answer of the guards worst; of a rare foil alone; lost by what it says, said before; nothing kept."""
    mute = replace(GUARDS, said=(FOIL, "nonsense"))
    worst = {
        "others": replace(GUARDS, probes=20),
        "bridges": replace(GUARDS, probes=5, answer=FOIL.upper(), margins=(4.0, -4.0)),
    }
    rare = replace(GUARDS, answer="Minor", said=("Minor", "Minor"))
    for groups in (
        {"towers": Made(), **worst},
        {"towers": Made(), "minor": Made(probes=1, foil="Minor"), "others": rare},
        {"towers": Made(said=(ANSWER, ANSWER)), "retention": mute},
        {"towers": Made(), "retention": replace(GUARDS, margins=(-4.0, -4.0))},
    ):
        pairs = flat(pairs_of(tmp_path, **groups))
        for pair in pairs:
            if pair.probe.group == "minor":
                object.__setattr__(pair.probe, "group", "towers")
        found = comparison_of(pairs)["groups"]
        for group in found.values():
            for words in (*group["reasons"], *group["warnings"]):
                assert translated(words) is not None, words


# ---------------------------------------------------------------- whole pages

NO_RUN = {
    "right": 0.9, "right_ci95": None, "enrichment": 2.5, "enrichment_ci95": [2.0, 3.0], "cost_nats": 0.5,
    "cost_nats_ci95": [0, 1], "guards": None, "guards_ci95": None, "onset": None, "seed": None,
}  # fmt: skip


def a_curve(verdicts: dict[str, list[str]], *, seeds: list[int | None]) -> str:
    """The page of a curve whose groups had these verdicts with 24, 47 and 1,127 samples."""
    numbers = [24, 47, 1127][: len(next(iter(verdicts.values())))]
    change = {"difference": 0.2, "ci95": [0.1, 0.3], "p_adjusted": 0.01}
    groups = {}
    for name, of_group in verdicts.items():
        points = [
            {**NO_RUN, "samples": number, "verdict": verdict, "holds": verdict == "corrected"}
            for number, verdict in zip(numbers, of_group, strict=True)
        ]
        rose = [] if name == "flat" else ["answers", "attention"]
        last = {"answers": change, "attention": change, "cause": change, "rose": rose, "fell": []}
        neighbours = [{"from": numbers[-2], "to": numbers[-1], **last}]
        base = {"right": 0.1, "enrichment": 1.0, "cost_nats": 0.0}
        groups[name] = {
            "base": base,
            "points": points,
            "neighbours": neighbours,
            **_conclusion(points, neighbours),
        }
    runs = [
        {"folder": f"fraction-{number}", "samples": number, "of": 2254, "steps": 330, "seed": seeds[0]}
        for number in numbers
    ]
    content = {
        "runs": runs,
        "seeds": seeds,
        "same": "steps",
        "sources": ["towers", "rooms"],
        "groups": groups,
    }
    return curve_html(content, {"en": b"", "zh": b""})


TILES = "the tower's patches are not those of whole cells (tiles)"


def test_an_interval_of_pictures_stands_beside_their_share() -> None:
    """Where probes share pictures the interval is not of the share of answers."""
    shared = {**NO_RUN, "right": 0.7, "pictures_right": 26 / 28, "right_ci95": [0.765, 0.991]}
    point = {**shared, "samples": 24, "verdict": "corrected"}
    base = {"right": 0.1, "enrichment": 1.0, "cost_nats": 0.0}
    assert rows_of({"base": base, "points": [point]})[1][1] == "70 %, 92.9 % by picture [76 %, 99 %]"
    assert (
        translated("70 %, 92.9 % by picture <i>[76 %, 99 %]</i>") == "70%，按图片计 92.9% <i>[76%, 99%]</i>"
    )


def studies(folder: Path) -> list[str]:
    """Pages of curves and of image tokens kept, with every conclusion."""
    moved, no = "it did not move", "answers changed, too few right"
    found = [
        a_curve({"spheres": ["corrected", "corrected", "corrected"]}, seeds=[None]),
        a_curve({"a": [no, "corrected", "corrected"], "b": ["corrected", moved, "corrected"]}, seeds=[1, 2]),
        a_curve({"flat": [no, moved, moved], "c": [moved, moved, no]}, seeds=[None]),
        a_curve({"few": [moved, "too few probes", "too few probes"]}, seeds=[None]),
    ]
    for right in ({"map": 0.9, "random": 0.4, "divprune": 0.5}, {"map": 0.5, "random": 0.4, "divprune": 0.4}):
        answers = made_answers(folder, {"fastv": 0.1, "least": 0.1, **right})
        for count in (30, 19):
            study = study_of(judge(answers[:count], KEPT_SHARES[1:]))
            words = {"drops": "image tokens (9 in the first probe)", "why_no_tower": TILES}
            found.append(keep_html(study._replace(**words)))
    return found


def test_the_pages_of_studies_are_in_both_languages(tmp_path: Path) -> None:
    for page in studies(tmp_path):
        chinese = seen(page, "zh")
        assert not re.findall(r"(?:\b[A-Za-z]{2,}\b[ ,]+){2,}[A-Za-z]{2,}", chinese)
        assert not re.findall(r"\b(?:and|samples|random|points|kept|layer|verdict)\b", chinese)
        assert not re.findall(r"[一-鿿]+", seen(page, "en"))
        assert '<html lang="en">' in page and 'value="zh"' in page


RUNS = {
    "corrected": Made(probes=20, other=(1.0, 0.2)),
    "worse": Made(probes=20, margins=(2.0, -2.0)),
    "few": Made(probes=4),
    "no spread": Made(probes=20, noise=0.0),
    "away": Made(probes=20, region=((8.0, 2.0), (8.0, 2.0))),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Reports of several ends, one over time, and one of a model against itself."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for at, (name, made) in enumerate(RUNS.items()):
        (folder / str(at)).mkdir()
        pairs = flat(pairs_of(folder / str(at), **{name: made}))
        found.append(report_html(comparison_of(pairs), pairs))
    (folder / "shown").mkdir()
    of = probes(folder / "shown", per_group=20, guards=20)
    pairs = pair_all(of, records(of, 0), records(of, 10))
    walk = {
        step: {one.id: record(one, step, cell=cell, strength=0.5, margin=step / 5 - 1, said="") for one in of}
        for step, cell in ((0, 20), (5, 14), (10, 8))
    }
    comparison, evolution = comparison_of(pairs), evolution_of(walk)
    comparison["series"] = series_of(of, evolution)
    found.append(report_html(comparison, pairs, evolution=evolution))
    same = [replace(pair, after=pair.before) for pair in pairs[:6]]
    found.append(report_html(comparison_of(same), same))
    return found


def seen(page: str, language: str) -> str:
    """The texts of the page as the reader of one language sees them, without those of users."""
    hidden = {"en": "zh-CN", "zh": "en"}[language]
    body = page.partition("<body>")[2].partition("<script")[0]
    body = re.sub(r'<(\w+)[^>]*translate="no"[^>]*>.*?</\1>', "§", body, flags=re.S)
    body = re.sub(rf'<(t?span|i) lang="{hidden}">.*?</\1>', "", body, flags=re.S)
    return re.sub(r"<[^>]*>", "\n", body)


def test_no_english_sentence_is_left_in_the_chinese_report(pages: list[str]) -> None:
    for page in pages:
        left = re.findall(r"(?:\b[A-Za-z]{2,}\b[ ,]+){2,}[A-Za-z]{2,}", seen(page, "zh"))
        assert not left


def test_no_chinese_is_left_in_the_english_report(pages: list[str]) -> None:
    for page in pages:
        assert not re.findall(r"[一-鿿]+", re.sub(r"“[^”]*”|\([^)]*\)", "", seen(page, "en")))


def test_no_number_and_no_word_is_empty(pages: list[str]) -> None:
    """No minus before zero, no interval without width, and none of the words that say nothing to a reader."""
    for page in pages:
        for language in ("en", "zh"):
            text = seen(page, language)
            assert not re.findall(r"(?<![\d.])[-−]0(?:\.0+)?(?![\d.])", text)
            assert not re.findall(r"([-+]?[\d.]+(?: ?%)?) (?:to|至) \1(?![\d.])", text)
            assert not re.findall(r"hung on|Latin|\bsurely\b|\bNone\b|\bnan\b|\{|\}", text)
            assert "after training" not in text


def test_a_report_is_small(pages: list[str]) -> None:
    assert max(map(len, pages)) < 1_000_000  # 20 probes; the demo has 160 and stays under 5 MB


def test_nothing_is_stored_and_nothing_is_fetched(pages: list[str]) -> None:
    for page in pages:
        assert "localStorage" not in page and "sessionStorage" not in page and "cookie" not in page
        assert not re.search(r"https?://", page)


def test_mark_and_name_of_a_piece_of_evidence_are_cells_of_their_own(pages: list[str]) -> None:
    """Two of them in one text would be one cell of the row, and the next ones stand under the wrong heads."""
    rows = re.findall(r'<details class="leg \w+"(?: open)?><summary>(.*?)</summary>', "".join(pages))
    assert len(rows) > 6
    for row in rows:
        assert re.match(r'<div><i role="img"[^>]*>.</i></div><div class="name"><span lang="en">\w', row), row
