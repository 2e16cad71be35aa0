"""The page in a real browser, with the embedded model: chat, tokens, sliders, a box, before / after."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyio import open_file  # noqa: F401  # pytest rewrites this module: in the server's thread that fails at times
from safetensors.numpy import load_file, save_file
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from diagnostics.records.probes import read_probes
from diagnostics.web.checkpoints import Checkpoints
from diagnostics.web.engine import Engine
from diagnostics.web.handlers import Page
from diagnostics.web.page import build, serve
from tests.diagnostics.chromium import NEEDS_BROWSER, started
from tests.diagnostics.web.test_page import free_port

pytestmark = [
    NEEDS_BROWSER,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Gradio's queue, about its own use of pandas
]

ROOT = Path(__file__).parents[3]
TOWER = ROOT / "docs" / "images" / "tower.png"
ATTENTION, COMPARE = "#attention-pane .pane", "#compare-pane .pane"
"""What the page promises on a machine that has nothing else to do."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(folder / "served"))
        engine = Engine.load(None, mode="full", cpu_only=True)
        others = [moved_model(folder / "output" / f"checkpoint-{step}", step) for step in (20, 100)]
        page = Page(engine, checkpoints=others, probe_file=folder / "probes.json", folder=folder)
        blocks = build(page, attention=True)
        yield serve(blocks, server_port=free_port(), wait=False)
        blocks.close(verbose=False)


def moved_model(folder: Path, step: int) -> Path:
    """The embedded model with its language attention moved a little: another checkpoint."""
    shutil.copytree(ROOT / "finetune" / "demo" / "base", folder)
    weights = load_file(folder / "model.safetensors")
    random = np.random.default_rng(step)
    for name, values in weights.items():
        if "c_attn.weight" in name:
            weights[name] = values + random.normal(0, step / 2000, values.shape).astype(values.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    yield from started()


class Visit:
    """A visitor's hands and eyes."""

    def __init__(
        self,
        driver: webdriver.Chrome,
        address: str,
        *,
        width: int,
        theme: str,
        language: str,
        height: int = 900,
    ) -> None:
        self.driver = driver
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        if driver.current_url.startswith(address):
            self.js("sessionStorage.clear()")  # another visitor, who has no chat to resume
        driver.get(f"{address}?__theme={theme}")
        self.until(lambda: self.all("#message textarea"))
        time.sleep(0.5)  # the room's key comes with the page's first event
        label = {"en": "English", "zh": "中文"}[language]
        next(one for one in self.all("#language label") if one.text == label).click()

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.until(lambda: next((found for found in self.all(selector) if found.is_displayed()), None))

    def js(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def until(self, met: Callable[[], Any], seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := met():
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; the browser says {self.driver.get_log('browser')}")

    def tab(self, number: int) -> None:
        self.all("button[role=tab]")[number].click()

    def ask(self, question: str, *pictures: Path) -> None:
        before = len(self.all("#chat .bot"))
        for picture in pictures:
            self.all("#message input[type=file]")[0].send_keys(str(picture))
            self.until(lambda: self.all("#message img"))
        box = self.one("#message textarea")
        box.send_keys(question, Keys.ENTER)
        self.until(
            lambda: len(self.all("#chat .bot")) > before and "…" not in self.all("#chat .bot")[-1].text
        )

    def drawn(self, pane: str = ATTENTION) -> int:
        return int(self.js("return document.querySelector(arguments[0])?.dataset.drawn || 0", pane))

    def changes(self, act: Callable[[], Any], pane: str = ATTENTION) -> None:
        """Do something, and wait until the pane has been drawn anew."""
        before = self.drawn(pane)
        act()
        self.until(lambda: self.drawn(pane) > before)

    def slide(self, name: int, value: int, pane: str = ATTENTION) -> None:
        code = (
            "const r = document.querySelectorAll(arguments[0])[arguments[1]]; r.value = arguments[2];"
            "r.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        self.changes(lambda: self.js(code, f"{pane} .controls input[type=range]", name, value), pane)

    def pixels(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).toDataURL()", selector)

    def words(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def drag(self, selector: str, start: tuple[int, int], way: tuple[int, int]) -> None:
        canvas = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
        chain = ActionChains(self.driver).move_to_element_with_offset(canvas, *start).click_and_hold()
        chain.move_by_offset(*way).release().perform()


@pytest.mark.parametrize(("width", "theme", "language"), [(1280, "light", "en"), (390, "dark", "zh")])
def test_chat_and_attention(address, driver, width, theme, language):
    visit = Visit(driver, address, width=width, theme=theme, language=language)
    visit.ask("Which tower is this?", TOWER)
    visit.until(lambda: "Tower" in visit.all("#chat .bot")[-1].text)

    visit.tab(1)  # filled already: nothing is pressed
    visit.until(visit.drawn)
    heading = visit.words(f"{ATTENTION} .image-plot h3")
    assert heading == {"en": "Attention in the picture", "zh": "图片上的注意力"}[language]
    image, words = f"{ATTENTION} canvas.image", f"{ATTENTION} .image-plot .words"
    assert "%" in visit.words(words) and "MB" in visit.words(f"{ATTENTION} .cache")

    shown = visit.pixels(image)
    visit.slide(0, 1)
    assert visit.pixels(image) != shown
    shown = visit.pixels(image)
    visit.slide(1, 2)
    assert visit.pixels(image) != shown

    chips = visit.all(f"{ATTENTION} .chip")
    visit.changes(chips[1].click)
    assert [chip.get_attribute("aria-pressed") for chip in chips[:2]] == ["true", "true"]
    assert len(visit.all(f"{ATTENTION} .cross canvas")) == 2

    for name in ("vision", "connector", "language"):
        shown = visit.pixels(image)
        visit.changes(visit.one(f'{ATTENTION} [data-value="{name}"]').click)
        assert visit.pixels(image) != shown

    visit.drag(image, (-30, -40), (60, 60))
    visit.until(lambda: visit.all(f"{ATTENTION} .box-part tbody tr"))
    assert len(visit.all(f"{ATTENTION} .box-part tbody tr")) == 4
    visit.drag(image, (20, 20), (0, 0))
    visit.until(lambda: visit.all(f"{ATTENTION} .who-part .token"))

    assert visit.js("return document.documentElement.scrollWidth <= innerWidth"), (
        "the page is wider than the screen"
    )
    assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def test_a_refusal_hides_nothing_and_gives_the_question_back(address, driver):
    visit = Visit(driver, address, width=390, theme="light", language="zh")
    visit.one("#again").click()  # nothing was asked yet
    visit.ask("这座塔是什么?", TOWER)
    box = visit.one("#message textarea")
    visit.js(  # as if pasted
        "const {set} = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value');"
        "set.call(arguments[0], '长'.repeat(3000));"
        "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        box,
    )
    box.send_keys(Keys.ENTER)
    visit.until(lambda: "超过模型上限 2,048" in visit.words("#chat_status"))
    visit.until(lambda: visit.one("#message textarea").get_attribute("value") == "长" * 3000)
    answer = visit.all("#chat .bot")[-1]
    visit.js("arguments[0].scrollIntoView({block: 'center'})", answer)
    code = (
        "const {x, y, width, height} = arguments[0].getBoundingClientRect();"
        "return arguments[0].contains(document.elementFromPoint(x + width / 2, y + height / 2))"
    )
    assert visit.js(code, answer)
    next(one for one in visit.all("#language label") if one.text == "English").click()
    visit.until(lambda: "the model reads at most 2,048" in visit.words("#chat_status"))
    assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def test_the_overview_chooses(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(1)
    visit.until(visit.drawn)
    overview = visit.one(f"{ATTENTION} canvas.overview")
    visit.js("arguments[0].scrollIntoView({block: 'center'})", overview)
    place = visit.js(  # of layer 1, head 2, from the canvas' middle
        "const {left, above} = arguments[0].squares, {width, height} = arguments[0].getBoundingClientRect();"
        "return [(left + (1 - left) * 2.5 / 4 - 0.5) * width, (above + (1 - above) * 1.5 / 4 - 0.5) * height]",
        overview,
    )
    click = ActionChains(driver).move_to_element_with_offset(overview, *map(round, place)).click()
    visit.changes(click.perform)
    code = "return [...document.querySelectorAll(arguments[0])].map(one => one.value)"
    assert visit.js(code, f"{ATTENTION} .controls input[type=range]") == ["1", "2"]


def test_each_part_says_what_it_shows_and_no_more(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(1)
    visit.until(visit.drawn)
    image, words = f"{ATTENTION} canvas.image", f"{ATTENTION} .image-plot .words"
    overview, who = f"{ATTENTION} .overview-plot .words", f"{ATTENTION} .who-part"
    assert "here" in visit.words(overview)
    visit.changes(visit.one(f"{ATTENTION} .sinks").click)
    assert visit.words(f"{ATTENTION} .why") == "No sinks were found in this layer."
    code = "const r = document.querySelector(arguments[0]); r.value = 0; r.dispatchEvent(new Event('input'))"
    visit.changes(lambda: visit.js(code, f"{ATTENTION} .matrix-plot input"))
    squares = visit.js("return document.querySelector(arguments[0]).squares", f"{ATTENTION} canvas.matrix")
    assert (
        squares["columns"] == 64 and squares["left"] > 0 and squares["above"] > 0
    )  # there is room for names
    visit.changes(lambda: visit.drag(image, (20, 20), (0, 0)))
    (picture,) = visit.all(f"{who} .token.picture")
    assert picture.text == "Picture 1" and "max" in visit.words(f"{who} .words")  # it has no rows: not 0 %

    visit.changes(visit.one(f'{ATTENTION} [data-value="vision"]').click)
    visit.slide(1, 3)  # a head that the overview may not have
    assert "here" not in visit.words(overview) and "NaN" not in visit.words(overview)
    assert visit.words(f"{ATTENTION} .why") == "Only the last layer of the vision tower was kept."
    assert "this part attends to nothing else" in visit.words(words)
    visit.changes(lambda: visit.drag(image, (20, 20), (0, 0)))
    assert "Attention of the patch you clicked" in visit.words(words)
    assert "select Language" in visit.words(who)


def test_a_box_and_a_patch_live_together_and_what_was_typed_stays(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(1)
    visit.until(visit.drawn)
    image, rows = f"{ATTENTION} canvas.image", f"{ATTENTION} .box-part tbody tr"
    visit.changes(lambda: visit.drag(image, (-100, 0), (200, 2)))  # thin, but no click
    assert len(visit.all(rows)) == 4
    visit.changes(lambda: visit.drag(image, (20, 20), (1, 1)))
    assert len(visit.all(rows)) == 4 and visit.all(f"{ATTENTION} .who-part .token")
    for name in ("id", "answer"):
        visit.one(f'{ATTENTION} input[name="{name}"]').send_keys(f"my {name}")
    visit.changes(next(one for one in visit.all("#language label") if one.text == "中文").click)
    typed = [
        visit.one(f'{ATTENTION} input[name="{name}"]').get_attribute("value") for name in ("id", "answer")
    ]
    assert typed == ["my id", "my answer"]
    visit.changes(visit.one(f"{ATTENTION} .remove").click)
    assert not visit.all(rows) and visit.all(f"{ATTENTION} .who-part .token")


def test_the_first_screen_says_what_it_is_and_an_example_answers(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="zh", height=720)
    visit.until(lambda: "约 100 万参数" in visit.words("#welcome"))
    cards = visit.all("#welcome .card")
    assert [card.text for card in cards] == [
        "这座塔是什么?",
        "这座塔是什么?",
        "猫在桌子的哪里?",
        "天气怎么样?",
    ]
    bottom = "return document.querySelector('#message').getBoundingClientRect().bottom <= innerHeight"
    assert visit.js(bottom)
    cards[2].click()
    visit.until(lambda: visit.all("#chat .bot") and "桌子上面" in visit.all("#chat .bot")[-1].text)
    assert not cards[2].is_displayed() and visit.js(bottom)
    visit.one("#clear").click()
    visit.until(lambda: visit.all("#welcome .card")[0].is_displayed())


def test_a_reload_keeps_chat_attention_and_comparison(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(2)
    visit.one("#compare_go").click()
    visit.until(lambda: visit.drawn(COMPARE), 60)
    said = visit.all("#chat .bot")[-1].get_property("textContent")
    driver.refresh()
    visit.until(lambda: visit.all("#chat .bot"))
    assert visit.all("#chat .bot")[-1].get_property("textContent") == said
    visit.until(lambda: visit.all("#chat .user img"))
    visit.tab(1)
    visit.until(visit.drawn)
    visit.tab(2)
    visit.until(lambda: visit.drawn(COMPARE))
    assert visit.one("#question textarea, #question input").get_attribute("value") == "Which tower is this?"
    visit.tab(0)
    visit.ask("And now?")  # the conversation goes on
    assert len(visit.all("#chat .user")) == 2


def test_patches_and_boxes_by_keyboard(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(1)
    visit.until(visit.drawn)
    image, rows = visit.one(f"{ATTENTION} canvas.image"), f"{ATTENTION} .box-part tbody tr"
    visit.js("arguments[0].focus()", image)
    keys = ActionChains(driver)
    keys.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    visit.until(lambda: "row 2, column 3" in visit.words(f"{ATTENTION} .cursor"))
    visit.changes(lambda: ActionChains(driver).send_keys(Keys.ENTER).perform())
    assert visit.all(f"{ATTENTION} .who-part .token")
    shifted = ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    visit.changes(lambda: shifted.key_up(Keys.SHIFT).perform())
    assert len(visit.all(rows)) == 4 and "covers 2.0 %" in visit.words(f"{ATTENTION} .box-part .words")
    visit.changes(lambda: ActionChains(driver).send_keys(Keys.ESCAPE).perform())
    assert not visit.all(rows) and not visit.all(f"{ATTENTION} .who-part .token")
    visit.js("arguments[0].focus()", visit.one(f"{ATTENTION} canvas.overview"))
    visit.changes(lambda: ActionChains(driver).send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT).perform())
    code = "return [...document.querySelectorAll(arguments[0])].map(one => one.value)"
    visit.until(lambda: visit.js(code, f"{ATTENTION} .controls input[type=range]") == ["2", "0"])


def test_the_attention_of_the_last_turn_s_picture_comes_first(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.ask("And this?", TOWER)
    visit.tab(1)
    visit.until(visit.drawn)
    pictures = visit.all(f"{ATTENTION} .controls .choice:last-of-type button")
    assert [one.get_attribute("aria-pressed") for one in pictures] == ["false"] * (len(pictures) - 1) + [
        "true"
    ]
    assert len(pictures) > 1


def test_a_conversation_without_a_picture(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?")
    visit.tab(1)
    visit.until(visit.drawn)
    for plot in ("image-plot", "cross-plot", "overview-plot"):
        assert visit.words(f"{ATTENTION} .{plot} .words") == "There is no picture in this conversation.", plot
    assert "without the first token" not in visit.words(f"{ATTENTION} .matrix-plot .words")
    code = "const r = document.querySelector(arguments[0]); r.value = 0; r.dispatchEvent(new Event('input'))"
    visit.changes(lambda: visit.js(code, f"{ATTENTION} .matrix-plot input"))
    assert "without the first token" in visit.words(f"{ATTENTION} .matrix-plot .words")
    visit.tab(2)
    visit.one("#compare_go").click()
    visit.until(lambda: visit.drawn(COMPARE), 60)
    assert not [one for one in visit.all(f"{COMPARE} canvas") if one.is_displayed()]


def test_every_change_reaches_the_screen_and_is_timed(address, driver):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(1)
    visit.until(visit.drawn)
    for turn in range(20):
        visit.slide(turn % 2, turn // 2 % 4)
    took = visit.js("return document.querySelector(arguments[0]).latencies", ATTENTION)[1:]
    assert len(took) >= 19 and min(took) > 0, (
        took
    )  # docs/web-demo.md says how long; a busy machine's tests cannot


def test_a_box_is_saved_as_a_probe(address, driver, folder):
    visit = Visit(driver, address, width=1280, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(1)
    visit.until(visit.drawn)
    visit.drag(f"{ATTENTION} canvas.image", (-60, -60), (80, 100))
    visit.until(lambda: visit.all(f"{ATTENTION} .box-part tbody tr"))
    said = visit.one(f'{ATTENTION} input[name="foil"]').get_property("value")
    right = visit.one(f'{ATTENTION} input[name="answer"]')
    assert said and right.get_property("value") == ""
    visit.one(f"{ATTENTION} .probe button").click()  # no right answer yet: the browser asks for it
    assert not (folder / "probes.json").exists() and right.get_property("validity")["valueMissing"]
    right.send_keys("Tokyo Tower")
    visit.one(f"{ATTENTION} .probe button").click()
    visit.until(lambda: "sphere-building-01" in visit.words(f"{ATTENTION} .saved"))
    (probe,) = read_probes(folder / "probes.json")
    group = visit.one(f'{ATTENTION} input[name="group"]')
    group.clear()
    group.send_keys("<img src=x>{{7}}${7*7}$$x$$")
    visit.one(f'{ATTENTION} input[name="id"]').send_keys("{{7}}<b>")
    visit.one(f"{ATTENTION} .probe button").click()
    visit.until(lambda: "'{{7}}<b>'" in visit.words(f"{ATTENTION} .saved"))  # refused, as text
    visit.one(f'{ATTENTION} input[name="id"]').clear()
    visit.one(f"{ATTENTION} .probe button").click()
    visit.until(lambda: "probe 2" in visit.words(f"{ATTENTION} .saved"))
    assert read_probes(folder / "probes.json")[1].group == "<img src=x>{{7}}${7*7}$$x$$"
    assert not visit.all(f"{ATTENTION} .saved *")
    ((x0, y0, x1, y1),) = probe.regions["region"]
    assert 0 < x0 < x1 and 0 < y0 < y1 and (probe.answer, probe.foil) == ("Tokyo Tower", said)


def test_before_and_after(address, driver):
    visit = Visit(driver, address, width=1280, theme="dark", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(2)  # question and picture are those of the chat
    assert visit.one("#question textarea, #question input").get_attribute("value") == "Which tower is this?"
    visit.one("#play_all").click()
    visit.until(lambda: visit.drawn(COMPARE), 60)
    for side, ends in (
        ("before", "× the even share"),
        ("after", "× the even share"),
        ("difference", "more +"),
    ):
        assert len(visit.all(f"{COMPARE} .{side} canvas:not(.bar)")) == 1
        assert ends in visit.words(f"{COMPARE} .{side} .legend")
    assert visit.words(f"{COMPARE} .before .legend") == visit.words(f"{COMPARE} .after .legend")
    assert "percentage points" in visit.words(f"{COMPARE} .difference .words")
    answers = {visit.words(f"{COMPARE} .{side} .said") for side in ("before", "after")}
    told = "Both answers are the same." if len(answers) == 1 else "The answers differ."
    assert visit.words(f"{COMPARE} .difference .said") == told
    before, after = (visit.pixels(f"{COMPARE} .{side} canvas") for side in ("before", "after"))
    assert before != after
    visit.one(f"{COMPARE} .play").click()
    visit.until(lambda: visit.pixels(f"{COMPARE} .after canvas") != after)
    assert visit.pixels(f"{COMPARE} .before canvas") == before
    visit.one(f"{COMPARE} .play").click()
    visit.slide(0, 0, COMPARE)
    assert visit.pixels(f"{COMPARE} .before canvas") != before


def test_none_and_all_are_said_of_nothing_else(driver):
    script = (ROOT / "diagnostics" / "web" / "heat.js").read_text(encoding="utf-8")
    shares = {
        0: "0 %",
        0.00001: "< 0.01 %",
        0.0004: "0.04 %",
        0.0413: "4.1 %",
        0.413: "41 %",
        0.996: "99.6 %",
        0.9999: "> 99.9 %",
        1 - 1e-7: "100 %",  # single precision's sum
    }
    said = driver.execute_script(f"{script}\nreturn arguments[0].map(percent)", [*shares])
    assert dict(zip(shares, said, strict=True)) == shares
    assert driver.execute_script(
        f"{script}\nreturn [0, .0001, -.0001, -.18].map(points).concat(times(.001))"
    ) == ["+0.0", "< +0.1", "> −0.1", "−18.0", "< 0.01 ×"]


def test_an_answer_that_is_alone_is_not_compared_with_itself(address, driver, monkeypatch):
    visit = Visit(driver, address, width=390, theme="light", language="en")
    visit.ask("Which tower is this?", TOWER)
    visit.tab(2)

    engine = Checkpoints.engine

    def own_alone(self, key):
        if key != "own":
            raise ValueError("no memory for another model")
        return engine(self, key)

    monkeypatch.setattr(Checkpoints, "engine", own_alone)
    visit.one("#compare_go").click()
    visit.until(lambda: visit.drawn(COMPARE), 60)
    assert "no memory for another model" in visit.words("#compare_status")
    assert [one.is_displayed() for one in visit.all(f"{COMPARE} .three > section")] == [True, False, False]


def test_the_page_contacts_no_other_host(address, driver):
    driver.get_log("performance")
    visit = Visit(driver, address, width=1280, theme="light", language="zh")
    hostile = '![a](http://other.invalid/a.png) <img src="http://other.invalid/b.png"> $$x^2$$ {{7}} ${7*7} &lt;b&gt;'
    visit.ask(f"{hostile} 这座塔是什么?", TOWER)
    assert hostile in visit.all("#chat .user")[-1].text and not visit.all("#chat .katex")
    visit.tab(1)
    visit.until(visit.drawn)
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = {
        one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"
    }
    assert asked and not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
