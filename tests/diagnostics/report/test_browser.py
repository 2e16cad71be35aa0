"""The report in a real browser: on paper, and by keyboard alone."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import pair_all
from diagnostics.comparison.trajectory import evolution_of, series_of
from diagnostics.report.page import report_html
from tests.diagnostics.chromium import NEEDS_BROWSER, started
from tests.diagnostics.show_samples import probes, records

pytestmark = NEEDS_BROWSER

A4_INCHES = {"paperWidth": 8.27, "paperHeight": 11.69}
STOPS = "button, summary, canvas, select, input, a[href]"
"""What a person can act on."""


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    yield from started()


@pytest.fixture(scope="module")
def report(driver: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As long as the demo's: two groups of 40 probes, 40 guards, and three checkpoints."""
    folder = tmp_path_factory.mktemp("report")
    of = probes(folder, per_group=40, guards=40)
    walk = {step: records(of, step) for step in (0, 5, 10)}
    pairs, evolution = pair_all(of, walk[0], walk[10]), evolution_of(walk)
    comparison = {**comparison_of(pairs), "series": series_of(of, evolution)}
    page = report_html(comparison, pairs, evolution=evolution)
    (folder / "index.html").write_text(page, encoding="utf-8")
    resize(driver, 1280)
    driver.get((folder / "index.html").as_uri())
    return folder / "index.html"


def resize(driver: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def pages_of(pdf: bytes) -> int:
    """From the page tree of an uncompressed PDF."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_the_report_is_a_few_pages_and_a_small_file(report: Path, driver: webdriver.Chrome):
    printed = driver.execute_cdp_cmd("Page.printToPDF", {**A4_INCHES, "printBackground": True})
    pages = pages_of(base64.b64decode(printed["data"]))
    assert 1 <= pages <= 6
    assert report.stat().st_size < 5_000_000


def focused(driver: webdriver.Chrome) -> dict[str, Any]:
    """The control that has the focus: its place among all of the page, and the outline around it."""
    return driver.execute_script(
        "const one = document.activeElement, style = getComputedStyle(one);"
        "return {at: [...document.querySelectorAll(arguments[0])].indexOf(one),"
        "        outline: style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth)}",
        STOPS,
    )


def test_tab_reaches_every_control_and_enter_switches_the_language(
    report: Path,
    driver: webdriver.Chrome,
):
    stops = driver.execute_script(
        "const shown = (one) => one.checkVisibility();"
        "return [...document.querySelectorAll(arguments[0])].map((one, at) => [at, shown(one), one.tagName])"
        ".filter(([at, seen]) => seen)",
        STOPS,
    )
    assert {kind for _, _, kind in stops} == {"BUTTON", "SUMMARY", "CANVAS", "SELECT", "INPUT"}
    reached = []
    for _ in stops:
        ActionChains(driver, duration=0).send_keys(Keys.TAB).perform()
        found = focused(driver)
        assert found["outline"] >= 2, found
        reached.append(found["at"])
    assert reached == [at for at, _, _ in stops]  # each once, in the order of the page

    chinese = driver.find_element("css selector", ".languages button[value=zh]")
    headline = driver.find_element("tag name", "h1").text
    driver.execute_script("arguments[0].focus()", chinese)
    ActionChains(driver, duration=0).send_keys(Keys.ENTER).perform()
    assert driver.execute_script("return document.documentElement.lang") == "zh-CN"
    assert chinese.get_attribute("aria-pressed") == "true"
    assert driver.find_element("tag name", "h1").text != headline


def test_a_phone_scrolls_one_way_only(report: Path, driver: webdriver.Chrome):
    resize(driver, 390)
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390


@pytest.fixture
def best(driver: webdriver.Chrome, tmp_path: Path) -> None:
    """Of a run whose best model, of step 5, was loaded at its end; one probe of each group was judged nowhere."""
    of = probes(tmp_path, per_group=2)
    of = [replace(one, foil=None) if one.id.endswith("-1") else one for one in of]
    walk = {step: records(of, step) for step in (0, 5, 10)}
    now = {name: replace(one, step=20, model="run: the best, checkpoint-5") for name, one in walk[5].items()}
    for made in (*walk.values(), now):
        for one in of:
            if one.foil is None:
                scores = replace(made[one.id].scores, foil_nats=None)
                made[one.id] = replace(made[one.id], scores=scores)
    pairs, evolution = pair_all(of, walk[0], now), evolution_of(walk)
    comparison = {**comparison_of(pairs), "series": series_of(of, evolution)}
    (tmp_path / "index.html").write_text(
        report_html(comparison, pairs, evolution=evolution), encoding="utf-8"
    )
    driver.get((tmp_path / "index.html").as_uri())
    # A card is drawn once its picture is loaded, which takes longer than the page on a busy machine.
    loaded = "const one = document.querySelector('.probe').picture; return Boolean(one && one.complete)"
    WebDriverWait(driver, 30).until(lambda page: page.execute_script(loaded))


def listed(driver: webdriver.Chrome, outcome: str) -> list[str]:
    return driver.execute_script(
        "const one = document.getElementById('outcome'); one.value = arguments[0]; one.onchange({target: one});"
        "return [...document.querySelectorAll('#probes .probe')].map((node) => node.probe.id)",
        outcome,
    )


def test_a_probe_that_was_not_judged_is_neither_right_nor_wrong(best: None, driver: webdriver.Chrome):
    every = listed(driver, "")
    found = {outcome: listed(driver, outcome) for outcome in ("right", "wrong", "gained", "lost")}
    assert len(every) == 4 and not [one for ids in found.values() for one in ids if one.endswith("-1")]
    assert sorted(found["right"] + found["wrong"]) == sorted(one for one in every if one.endswith("-0"))


def test_a_best_model_stands_behind_the_last_step_of_the_slider(best: None, driver: webdriver.Chrome):
    seen = driver.execute_script(
        "const card = document.querySelector('.probe'), range = card.querySelector('input[type=range]');"
        "const look = () => [Number(range.value), card.querySelector('.reel output').innerText,"
        "                    card.querySelectorAll('figcaption')[2].firstChild.innerText,"
        "                    getComputedStyle(card.querySelector('.here')).visibility];"
        "const at = (value) => { range.value = value; range.oninput(); return look(); };"
        "return [look(), at(2), at(0), at(3)]"
    )
    assert [[value, said.split(" ·")[0], panel, ring] for value, said, panel, ring in seen] == [
        [3, "steps 0 to 10", "now", "hidden"],
        [2, "step 10", "step 10", "visible"],
        [0, "step 0", "step 0", "visible"],
        [3, "now", "now", "hidden"],
    ]


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (0.0004, "<0.1 %"), (0.025, "2.5 %"), (0.41, "41 %"), (0.9996, ">99.9 %"), (1, "100 %")],
)
def test_few_are_not_none_and_almost_all_are_not_all(
    best: None, driver: webdriver.Chrome, share: float, words: str
):
    assert driver.execute_script("return percent(arguments[0])", share) == words
