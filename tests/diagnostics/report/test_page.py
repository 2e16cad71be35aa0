"""The report's file: whole, self-contained, safe with any text, and with the data its script needs."""

import base64
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.maps import CellMap
from diagnostics.comparison.onset import onset_of
from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.comparison.trajectory import Evolution, evolution_of, read_series, series_of
from diagnostics.comparison.verdicts import VERDICTS
from diagnostics.records.probes import Probe
from diagnostics.report import page as report_page
from diagnostics.report.page import PICTURE_BOX, SLIDER_STEPS_MAX
from diagnostics.report.verdict_cards import pill
from tests.diagnostics.comparison.made_pairs import ANSWER, FOIL, Made, flat, pairs_of
from tests.diagnostics.show_samples import LAYERS, SIZE, image_tokens, probes, record, records


def report_html(*arguments: object, **named: object) -> str:
    """The report as its English reader has it."""
    return english(report_page.report_html(*arguments, **named))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    of = probes(tmp_path_factory.mktemp("page"), per_group=20, guards=20)
    pairs = pair_all(of, records(of, 0), records(of, 10))
    return report_html(comparison_of(pairs), pairs)


def english(page: str) -> str:
    """The page as its English reader has it, with plain spaces."""
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    page = re.sub(r'<(t?span) lang="zh-CN">.*?</\1>', "", page, flags=re.S)
    return re.sub(r'<(t?span) lang="en">(.*?)</\1>', r"\2", page, flags=re.S)


def data(page: str) -> dict:  # type: ignore[type-arg]
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found.group(1))  # type: ignore[no-any-return]


def test_it_needs_no_network_and_no_other_file(page: str) -> None:
    assert not re.search(r"https?://", page)
    assert not re.search(r'(src|href)="(?!data:)', page) and "@import" not in page and "url(" not in page
    assert "{{" not in page


@pytest.mark.parametrize(
    "name", ["{{CASES}}{{DATA}}<script>{{7*7}}", '<nav class="languages"></nav>{0}%s${7*7}']
)
def test_a_group_that_is_called_like_a_place_of_the_template_is_only_a_name(
    tmp_path: Path, name: str
) -> None:
    of = [
        replace(one, group=name) for one in probes(tmp_path, per_group=20) if one.group == "sphere-building"
    ]
    pairs = pair_all(of, records(of, 0), records(of, 10))
    made = report_html(comparison_of(pairs), pairs)
    assert data(made) and made.count('<nav class="languages" translate="no"') == 1
    assert made.count('<article class="verdict"') == 1 and '<nav class="languages"></nav>' not in made
    written = {html.escape(name), html.escape(name, quote=False), name.replace("<", "\\u003c")}
    assert "{{" not in re.sub("|".join(map(re.escape, written)), "", made)


def test_every_group_has_its_card_with_numbers_and_reasons(page: str) -> None:
    assert page.count('<article class="verdict">') == 3
    assert '<span class="pill good">corrected</span>' in page
    assert "<i>0 % →</i> 100 %" in page and "<i>0.52× →</i> 12.00×" in page and "<i>+0.00 →</i> +1.75" in page
    assert page.count("<details open><summary>why</summary><ul><li>") == 2  # of the two that must be kept
    assert page.count('<div class="legs">') == 1
    # one row for each key layer of the only group with a region
    assert page.split("Did the attention move?")[1].count('<span class="numbers"') == len(LAYERS)
    assert "20 right</text>" in page and "0 right</text>" in page


LEG = re.compile(r'<details class="leg (\w+)"( open)?><summary>(.*?)</summary><p>(.*?)</p></details>', re.S)


def test_a_card_shows_each_leg_with_its_number_interval_threshold_and_sentence(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=20)
    pairs = pair_all(of, records(of, 0), records(of, 10))
    comparison = comparison_of(pairs)
    group = comparison["groups"]["sphere-building"]
    group["legs"]["cause"] |= {
        "holds": False,
        "value": 0.04,
        "ci95": [-0.01, 0.09],
        "reason": "It <barely> rose.",
    }
    group["reasons"][3] = "It <barely> rose."
    legs = LEG.findall(report_html(comparison, pairs))
    assert [kind for kind, *_ in legs] == ["good", "good", "good", "bad", "good", "unmeasured"]
    assert [bool(is_open) for _, is_open, *_ in legs] == [False, False, False, True, False, True]
    cause, guards = legs[3], legs[5]
    assert ">cause<" in cause[2] and ">✗</i>" in cause[2]
    assert "<b>4 %</b> of the margin’s rise" in cause[2]
    assert "<small>-1 to 9 %</small><small>20 %</small>" in cause[2]
    assert cause[3] == "It &lt;barely&gt; rose. <span>20 probes.</span>"
    assert "<span>not measured</span><small></small><small></small>" in guards[2]
    assert guards[3].startswith("No guards:") and "probes." not in guards[3]


def test_a_card_says_what_carries_the_change(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    group = comparison["groups"]["sphere-building"]
    parts = [("language", [0, 1], 1.25), ("key layers", [1, 3], 0.5), ("connector", [], -0.125)]
    parts += [("layer", [at], at / 100) for at in range(9)]
    group["mediation"] = [
        {"part": part, "layers": layers, "share": share, "ci95": [share - 0.01, share + 0.01]}
        for part, layers, share in parts
    ]
    page = report_html(comparison, pairs)
    carried = page.split('<div class="shares carried">')[1].split("</details>")[0]
    names = re.findall(r"<div><span>(.*?)</span>", carried)
    assert names == [
        *("all language layers", "key layers 1 and 3", "the connector"),
        *(f"layer {at} alone" for at in range(3, 9)),  # the six that carry most
    ]
    assert re.findall(r'style="width:(.*?)"', carried)[:3] == ["100.0%", "50.0%", "0.0%"]
    assert "<b>125 %</b> 124 to 126 %" in carried and "<b>-12.5 %</b> -13.5 to -11.5 %" in carried
    assert "… and 3 layers that carry less, in comparison.json" in carried


def test_each_way_of_taking_the_region_away_is_named_by_what_it_does(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    group = comparison["groups"]["sphere-building"]
    group["tower_knockout_nats"] = {"before": 1.5, "after": 2.25, "control": {"before": None, "after": None}}
    page = report_html(comparison, pairs)
    rows = dict(re.findall(r"<tr><td>([^<]*)</td><td class=\"numbers\">(.*?)</td>", page))
    assert rows["keeping question and answer from looking at it"] == "+0.00 → <b>+1.75</b>"
    assert rows["cutting it inside vision tower and resampler"] == "+1.50 → <b>+2.25</b>"
    assert '<td class="numbers">not measured</td>' in page


@pytest.mark.parametrize(
    ("verdict", "colour"),
    [
        *((one, "good") for one in ("corrected", "corrected, not by looking", "kept")),
        *((one, "bad") for one in ("forgot", "broke a neighbour", "answers got worse")),
        *((one, "bad") for one in ("answers changed, a guard broke", "it answers from the words")),
        *(
            (one, "")
            for one in ("corrected, unguarded", "corrected, mediation not measured", "it did not move")
        ),
    ],
)
def test_the_colour_of_a_verdict(verdict: str, colour: str) -> None:
    assert verdict in VERDICTS and pill(verdict) == f'<span class="pill {colour}">{verdict}</span>'


def test_a_bad_verdict_is_not_green(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=20)
    before, after = records(of, 0), records(of, 10)
    for name in [name for name in after if name.startswith("retention")][:10]:
        record = after[name]
        after[name] = replace(record, scores=replace(record.scores, foil_nats=0.0))
    pairs = pair_all(of, before, after)
    page = report_html(comparison_of(pairs), pairs)
    assert '<span class="pill bad">forgot</span>' in page


def test_text_of_a_probe_can_break_nothing(page: str) -> None:
    # the sample's answer holds tags, its question a control token; "</script>" would end the data
    assert "<b>bright</b>" not in page and "<|im_end|>" not in page
    probe = data(page)["probes"][20]
    assert probe["answer"] == "blue & <b>bright</b>" and probe["question"].endswith("<|im_end|>")


def cells_of(layer: dict, side: str = "after") -> np.ndarray:  # type: ignore[type-arg]
    """A map of the page's data, in times the even share."""
    return levels(layer[side]) * layer["peak"] / 65535


def levels(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2")


def test_maps_are_two_bytes_a_cell_on_a_shared_scale(page: str) -> None:
    content = data(page)
    probe = content["probes"][0]
    assert content["layers"] == list(LAYERS) and [layer["layer"] for layer in probe["layers"]] == list(LAYERS)
    assert probe["grid"] == [4, 6] and probe["extent"] == [0, 0, 1, 1]
    layer = probe["layers"][0]
    before, after = (cells_of(layer, side) for side in ("before", "after"))
    assert (before.argmax(), after.argmax()) == (20, 8)
    assert after.max() == pytest.approx(12.0, rel=0.01) and after.mean() == pytest.approx(1.0, rel=0.03)
    assert layer["reading"]["mass"] == pytest.approx([0.5 / 23, 0.5], abs=1e-5)
    assert probe["boxes"][0] == ["spheres", [[0.33333, 0.25, 0.5, 0.5]]]
    assert len(base64.b64decode(content["heat"])) == len(base64.b64decode(content["swing"])) == 256 * 4


@pytest.mark.parametrize("cells", [1024, 4096])
def test_a_sink_leaves_the_other_cells_their_colours(cells: int) -> None:
    """One cell holds half of the attention; the others stay apart by less than a level of colour is wide, of 255."""
    density = np.linspace(0.2, 2.2, cells)
    density[0] = cells / 2
    side = int(cells**0.5)
    text = report_page._levels(CellMap(density, (side, side), np.zeros((cells, 4))), density[0])
    shown = levels(text) * density[0] / 65535
    assert np.abs(shown - density).max() < 0.02


def test_what_was_said_is_marked_by_itself_and_not_by_the_margin(tmp_path: Path) -> None:
    """Before, the right answer is said and the wrong one rated likelier; now the other way round."""
    pairs = flat(pairs_of(tmp_path, towers=Made(probes=3, said=(ANSWER, FOIL))))
    silent = replace(pairs[2].after, scores=replace(pairs[2].after.scores, generated=""))
    pairs[2] = replace(pairs[2], after=silent)
    found = data(report_html(comparison_of(pairs), pairs))["probes"]
    assert [one["said_right"] for one in found] == [[True, False], [True, False], [True, None]]
    assert found[0]["margin"] == [-3.0, 6.0]


@pytest.mark.parametrize(("steps", "unit"), [((0, 1, 2), "checkpoint"), ((0, 5, 30), "step")])
def test_numbers_that_are_places_are_called_checkpoints(
    tmp_path: Path, steps: tuple[int, ...], unit: str
) -> None:
    of, comparison, pairs = small(tmp_path)
    evolution = walked(of, dict.fromkeys(steps, 8))
    read = read_series(of, evolution)
    comparison["series"] = series_of(of, evolution, read)
    comparison["onset"] = onset_of(pairs, evolution.steps, read)
    page = report_page.report_html(comparison, pairs, evolution=evolution)
    assert data(page)["unit"] == comparison["onset"]["unit"] == unit
    words = {"step": "步", "checkpoint": "检查点"}
    axes = re.findall(
        r'text-anchor="middle"><tspan lang="en">(\w+)</tspan><tspan lang="zh-CN">(.*?)</tspan>', page
    )
    assert set(axes) & {*words.items()} == {(unit, words[unit])}


def test_pictures_are_inside_and_small(page: str) -> None:
    picture = data(page)["probes"][0]["picture"]
    image = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/webp;base64,"))))
    assert image.size == (PICTURE_BOX[0], round(PICTURE_BOX[0] * SIZE[1] / SIZE[0]))
    assert len(page) < 400_000


def test_it_reads_on_phone_on_paper_and_in_the_dark(page: str) -> None:
    assert 'name="viewport"' in page and "@media print" in page
    assert "prefers-color-scheme: dark" in page and "max-width: 700px" in page and "<noscript>" in page


@pytest.mark.parametrize(
    ("size", "drawn"), [((5, 900), (16, 660)), ((900, 5), (440, 16)), ((50, 200), (165, 660))]
)
def test_a_picture_of_any_shape_fits_its_box(
    tmp_path: Path, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    """A column 440 wide of a picture of 1 : 40 was more than WebP can hold, and the report was lost."""
    of, comparison, pairs = small(tmp_path)
    Image.new("RGB", size, (90, 90, 90)).save(of[0].images[0])
    pairs[0] = of_size(pairs[0], size)
    content = data(report_html(comparison, pairs))
    assert content["box"] == [*PICTURE_BOX]
    picture = content["probes"][0]["picture"].removeprefix("data:image/webp;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == drawn


def of_size(pair: ProbePair, size: tuple[int, int]) -> ProbePair:
    """The pair as of a picture of another size."""
    image = replace(pair.after.image_tokens[0], image_size_pixels=size)
    sides = [replace(record, image_tokens=(image,)) for record in (pair.before, pair.after)]
    return replace(pair, before=sides[0], after=sides[1])


def test_a_picture_that_was_replaced_by_one_of_another_size_is_refused(tmp_path: Path) -> None:
    of, comparison, pairs = small(tmp_path)
    Image.new("RGB", (80, 120), (90, 90, 90)).save(of[0].images[0])
    with pytest.raises(ValueError, match="found 80 × 120 pixels, .* were made of 120 × 80"):
        report_html(comparison, pairs)


# --- what further fields of a comparison add ------------------------------------------------------------------


def small(tmp_path: Path) -> tuple[list[Probe], dict, list]:  # type: ignore[type-arg]
    of = probes(tmp_path, per_group=2)
    pairs = pair_all(of, records(of, 0), records(of, 10))
    return of, comparison_of(pairs), pairs


def test_older_comparisons_lack_the_newer_parts_and_are_drawn(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    newer = ("heads", "effect_size", "probes_needed", "decides", "relation", "curves", "images", "drift")
    newer += ("legs", "mediation", "knockout_nats", "tower_knockout_nats")
    for group in comparison["groups"].values():
        for name in newer:
            group.pop(name, None)
        for one in [group["enrichment"], *group["enrichment_by_layer"]]:
            for name in ("random", "effect_size", "without_sinks", "median_factor", "leads", "layers"):
                (one or {}).pop(name, None)
        for name in ("after_ci95", "before_ci95", "gained", "lost", "p_mcnemar"):
            group["accuracy"].pop(name)
    comparison.pop("collapse", None)
    for entry in comparison["probes"]:
        entry.pop("decides", None)
    page = report_html(comparison, pairs)
    for words in (
        "which region decides the answer",
        "heads moved",
        "effect size",
        "the relation<",
        "bit by bit",
        "collapsing",
        "what carries the change",
        "taking the region away",
        'class="leg ',
        "median probe",
        "became right",
    ):
        assert words not in page
    assert page.count('<article class="verdict">') == 2


def test_layers_that_a_loss_told_where_to_look_are_marked_wherever_they_stand(tmp_path: Path) -> None:
    """The last key layer was trained on: it is neither shown first nor told without a mark."""
    of, _, pairs = small(tmp_path)
    last = pairs[0].layers[-1].layer
    told = [replace(one, after=replace(one.after, supervised_layers=(last,))) for one in pairs]
    content = comparison_of(told)
    content["series"] = series_of(of, evolution_of({step: records(of, step) for step in (0, 5, 10)}))
    page = report_html(content, told)
    assert (
        f"<span>layer {last}, trained on</span>" in page and "“Trained on”: attention was trained on" in page
    )
    seen = [replace(one, after=replace(one.after, supervised_picture=True)) for one in told]
    assert data(report_html(comparison_of(seen), seen))["start_layer"] == pairs[0].layers[-2].layer
    chinese = report_page.report_html(content, told)
    assert f"第 {last} 层，受过训练" in chinese and "“受过训练”：训练直接约束了这一层" in chinese
    every = tuple(one.layer for one in pairs[0].layers)
    told = [replace(one, after=replace(one.after, supervised_layers=every)) for one in pairs]
    assert f"attention, layer {last}, trained on: 0" in report_html(comparison_of(told), told)
    assert f"注意力，第 {last} 层，受过训练：0" in report_page.report_html(comparison_of(told), told)


def test_a_card_shows_what_decides_which_heads_moved_and_how_many_probes_it_takes(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    group = comparison["groups"]["sphere-building"]
    group["decides"] = {"before": {"body": 0.75, "spheres": 0.25}, "after": {"spheres": 1.0}}
    group["heads"] = {
        "tested": 8,
        "count": 7,
        "significant": [
            {"layer": 1, "head": n, "before": 0.1, "after": 0.4, "p_adjusted": 0.01 - n / 1000}
            for n in range(7)
        ],
    }
    group["effect_size"], group["probes_needed"] = 1.234, 11
    group["enrichment"]["random"] = {"before": 0.97, "after": 1.03}
    group["enrichment"]["without_sinks"] = {"before": 0.5, "after": 9.0}
    page = report_html(comparison, pairs)
    # most decisive after training first; the base's share of spheres is the upper, grey bar
    shares = re.search(
        r'<p class="size">Share of the probes.*?<div class="shares">(.*?)</div></details>', page, re.S
    )
    assert shares is not None and shares.group(1).index("spheres") < shares.group(1).index("body")
    assert 'class="was" style="width:25.0%"' in shares.group(1) and "25 % → <b>100 %</b>" in shares.group(1)
    assert "75 % → <b>0 %</b>" in shares.group(1)
    assert "7 of 8 heads moved" in page and page.count(" % on the region</li>") == 6
    assert "… and 1 more in comparison.json" in page
    # the surest first
    assert page.index("layer 1, head 6: 10 % → 40 %") < page.index("layer 1, head 1: 10 % → 40 %")
    assert "layer 1, head 0:" not in page
    assert "effect size +1.23 with 2 probes; about 11 would detect an effect of this size." in page
    assert "random boxes 0.97× → 1.03×" in page and "without sinks 0.50× → 9.00×" in page
    assert "in the rest none stands out" in page


def test_a_figure_says_how_sure_it_is_and_what_it_is_compared_with(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    group = comparison["groups"]["sphere-building"]
    group["accuracy"] |= {"after_ci95": [0.868, 0.999], "gained": 38, "lost": 1, "p_mcnemar": 1.5e-10}
    group["enrichment"] |= {
        "median_factor": 3.925,
        "leads": [
            {"over": "'<podium>'", "probes": 40, "mean": 0.61, "ci95": [0.5, 0.72]},
            {"over": "equally salient places", "probes": 40, "mean": 0.0712, "ci95": [0.02, 0.1]},
        ],
    }
    page = report_html(comparison, pairs)
    assert (
        "<small>interval 86.8 to 99.9 %</small><small>38 became right, 1 wrong (p = 1.5e-10)</small>" in page
    )
    assert (
        "<small>median probe: 3.92 times</small>" in page or "<small>median probe: 3.93 times</small>" in page
    )
    group["enrichment"]["median_factor"] = 1e6
    assert "<small>median probe: over 100 times</small>" in report_html(comparison, pairs)
    assert "<small>lead +7.1 % over equally salient places</small>" in page
    assert '<td><b translate="no">&lt;podium&gt;</b></td><td class="numbers"><b>+61 %</b></td>' in page


def test_a_card_shows_relation_and_curves_beside_their_controls(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    group = comparison["groups"]["sphere-building"]
    group["relation"] = {
        "nouns": {"before": 0.021, "after": 0.054},
        "phrase/subject": {"before": 0.8, "after": 3.25},
    }
    group["curves"] = {
        "deletion": {"before": [1.0] * 7, "after": [4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0], "area": {}},
        "deletion/control": {"before": [1.0] * 7, "after": [4.0] * 7, "area": {}},
    }
    page = report_html(comparison, pairs)
    assert "0.80× → <b>3.25×</b>" in page and "2.1 % → <b>5.4 %</b>" in page
    assert page.index("looks at the subject") < page.index("the later noun looks at the earlier one")
    assert "hiding, most attended first" in page and "showing, same order" not in page
    assert page.count('class="line') == 4 and page.count(" faint") >= 2
    assert "before: +1 → +1, after: +4 → -2, random before: +1 → +1, random after: +4 → +4" in page


def test_what_must_be_known_first_stands_on_top(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    comparison["groups"]["sphere-building"]["reasons"] = ["2 probes are too few; 31 would do."]
    comparison["collapse"] = {
        "warn": True,
        "collapsed_heads": 3,
        "highest_logit": 180.4,
        "logit_before": 30.2,
    }
    comparison["groups"]["retention"]["warnings"] = ["It does not say the <foil>."]
    page = report_html(comparison, pairs)
    assert page.count('<p class="warning"') == 4  # both groups have two probes only
    assert (
        'role="alert"><b translate="no">retention</b>: <span>It does not say the &lt;foil&gt;.</span></p>'
        in page
    )
    assert (
        'role="alert"><b translate="no">sphere-building</b>: <span>2 probes are too few; 31 would do.</span></p>'
        in page
    )
    assert "3 heads now rest on single tokens, and the highest attention logit is 180 (30 before)" in page
    assert page.index('class="warning"') < page.index('class="cases"')
    comparison["collapse"]["warn"] = False
    assert report_html(comparison, pairs).count('<p class="warning"') == 3


def test_a_path_is_shown_by_its_end_with_all_of_it_to_point_at(tmp_path: Path) -> None:
    _, comparison, pairs = small(tmp_path)
    comparison["before"]["model"] = "/work/models/towers & co/base"
    comparison["after"]["model"] = "/a/b/output at step 250"
    page = report_html(comparison, pairs)
    assert (
        '<b translate="no" title="/work/models/towers &amp; co/base">towers &amp; co/base</b> before' in page
    )
    assert '<b translate="no" title="/a/b/output at step 250">b/output at step 250</b> now' in page


def test_limits_are_said_and_the_documents_named(page: str) -> None:
    assert "What this can and cannot show" in page and "docs/guide.md" in page


# --- time -----------------------------------------------------------------------------------------------------


def walked(of: list[Probe], cells: dict[int, int]) -> Evolution:
    """Every probe looks at ``cells[step]``; its margin is the step over 10, minus 1."""
    return evolution_of(
        {
            step: {
                probe.id: record(probe, step, cell=cell, strength=0.5, margin=step / 10 - 1, said="")
                for probe in of
            }
            for step, cell in cells.items()
        }
    )


def test_with_two_checkpoints_nothing_of_time_shows(tmp_path: Path) -> None:
    of, comparison, pairs = small(tmp_path)
    evolution = walked(of, {0: 20, 10: 8})
    comparison["series"] = series_of(of, evolution)
    page = report_html(comparison, pairs, evolution=evolution)
    content = data(page)
    assert content["steps"] == [] and "How it developed" not in page
    assert "path" not in content["probes"][0] and content["probes"][0]["layers"][0]["over"] == []


def test_each_probe_has_its_maps_over_steps_on_one_scale(tmp_path: Path) -> None:
    of, comparison, pairs = small(tmp_path)
    evolution = walked(of, {0: 20, 5: 14, 30: 8})
    comparison["series"] = series_of(of, evolution)
    page = report_html(comparison, pairs, evolution=evolution)
    content, probe = data(page), data(page)["probes"][0]
    assert content["steps"] == content["all_steps"] == [0, 5, 30]
    assert probe["margins"] == pytest.approx([-1.0, -0.5, 2.0])
    layer = probe["layers"][1]
    maps = [levels(one) for one in layer["over"]]
    assert [int(one.argmax()) for one in maps] == [20, 14, 8] and {int(one.max()) for one in maps} == {65535}
    # before and after come first among the readings, then a step each
    assert layer["reading"]["mass"] == pytest.approx([0.5 / 23, 0.5, 0.5 / 23, 0.5 / 23, 0.5], abs=1e-5)
    assert len(probe["path"]["points"]) == 3 and probe["path"]["explained"] == pytest.approx(1.0)
    assert "How it developed" in page and "layer 3" in page
    # two charts for all groups, and one for the only group with a region
    assert page.split("How it developed")[1].split("</section>")[0].count('<div class="chart">') == 3


def test_of_many_checkpoints_the_slider_has_some_and_the_charts_all(tmp_path: Path) -> None:
    of, comparison, pairs = small(tmp_path)
    evolution = walked(of, dict.fromkeys(range(0, 400, 10), 8))
    comparison["series"] = series_of(of, evolution)
    content = data(report_html(comparison, pairs, evolution=evolution))
    assert len(content["steps"]) == SLIDER_STEPS_MAX and len(content["all_steps"]) == 40
    assert (content["steps"][0], content["steps"][-1]) == (0, 390)
    assert len(content["probes"][0]["margins"]) == SLIDER_STEPS_MAX
    assert len(content["probes"][0]["path"]["points"]) == 40


# --- sinks ----------------------------------------------------------------------------------------------------


def test_without_sinks_there_is_no_switch(page: str) -> None:
    content = data(page)
    assert content["sinks"] is False and "bare" not in content["probes"][0]["layers"][0]


def test_maps_without_sinks_are_there_where_a_record_has_sinks(tmp_path: Path) -> None:
    of, comparison, pairs = small(tmp_path)
    # image tokens are keys 3 to 7; each reads a cell of its own, and key 4 (cell 1) is a sink in layer 3 alone
    own = np.zeros((5, 24), np.float32)
    own[np.arange(5), np.arange(5)] = 1.0
    rows = np.full((2, 2, 1, 12), 0.05, np.float32)
    rows[..., 4] = 0.6
    sinks = np.zeros((2, 12), bool)
    sinks[1, 4] = True
    assert list(image_tokens().positions) == [3, 4, 5, 6, 7]
    after = replace(pairs[0].after, rows=rows, connector=(own,), sinks=sinks)
    of_pairs = pair_all(
        of,
        {pair.probe.id: pair.before for pair in pairs},
        {pair.probe.id: after if pair is pairs[0] else pair.after for pair in pairs},
    )
    content = data(report_html(comparison, of_pairs))
    assert content["sinks"] is True and "bare" not in content["probes"][1]["layers"][0]

    def density(layer: dict) -> np.ndarray:  # type: ignore[type-arg]
        return cells_of(layer)[:5] / 24

    first, second = content["probes"][0]["layers"]
    assert density(second) == pytest.approx([0.0625, 0.75, 0.0625, 0.0625, 0.0625], abs=0.005)
    assert density(second["bare"]) == pytest.approx([0.25, 0, 0.25, 0.25, 0.25], abs=0.005)
    assert density(first["bare"]) == pytest.approx(density(first), abs=0.005)


def test_it_says_where_now_is_not_the_last_checkpoint(tmp_path: Path) -> None:
    """As of the best model, which a run loads at its end."""
    of, content, pairs = small(tmp_path)
    series = series_of(of, evolution_of({step: records(of, step) for step in (0, 5, 10)}))
    for model, is_told in (("run: the best, checkpoint-5", True), (series["names"][-1], False)):
        made = {**content, "series": series, "after": {"model": model, "step": 20}}
        assert ("“Now” is not the model of the last checkpoint" in report_html(made, pairs)) == is_told
        assert ("“现在”不是最后一个检查点的模型" in report_page.report_html(made, pairs)) == is_told
        assert data(report_html(made, pairs))["now_is_last"] != is_told


def test_no_page_says_that_its_probes_were_held_out(page: str) -> None:
    """Where they were not, the verdict says so; what stands on every page cannot know it."""
    assert "held out" not in page and page.count("is known to be in the training data") == 2
