"""How long until a change is on screen? The web demo in a real browser, changes made as a visitor makes them.

python benchmarks/web_latency.py

Needs Debian's ``chromium`` and ``chromium-driver``, and ``selenium`` of requirements-dev.txt. Prints one JSON object:
milliseconds from a change (the event of a slider or a click) to the frame in which it is drawn, as the page measures
them, for layers, heads and tokens of one answer of the embedded model. Median, 95th percentile and worst.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
TOWER = ROOT / "docs" / "images" / "tower.png"
PANE = "#attention-pane .pane"
SLIDE = (
    "const range = document.querySelectorAll(arguments[0])[arguments[1]]; range.value = arguments[2];"
    "range.dispatchEvent(new Event('input', {bubbles: true}))"
)


def main() -> None:
    args = arguments()
    with redirect_stdout(sys.stderr):  # what loading says
        report = measured(args)
    print(json.dumps(report, indent=1))


def measured(args: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        address = served(Path(folder))
        browser = a_browser(args.width)
        try:
            ask(browser, address, args.question)
            report = {
                "layer": changes(browser, args.changes, lambda at: slide(browser, 0, at % 4)),
                "head": changes(browser, args.changes, lambda at: slide(browser, 1, at % 5 - 1)),
                "token": changes(browser, args.changes, lambda at: click_token(browser, at)),
            }
        finally:
            browser.quit()
    every = [one for times in report.values() for one in times]
    told = {name: summary(times) for name, times in {**report, "all": every}.items()}
    return header(args, browser.capabilities["browserVersion"]) | {"milliseconds": told}


def served(folder: Path) -> str:
    from diagnostics.web.engine import Engine
    from diagnostics.web.handlers import Page
    from diagnostics.web.page import build, serve

    page = Page(
        Engine.load(None, mode="full", cpu_only=True), probe_file=folder / "probes.json", folder=folder
    )
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    return serve(build(page, attention=True), server_port=port, wait=False)


def a_browser(width: int) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return browser


def ask(browser: Any, address: str, question: str) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    (box,) = until(lambda: browser.find_elements("css selector", "#message textarea"))
    time.sleep(0.5)  # the room's key comes with the page's first event
    browser.find_element("css selector", "#message input[type=file]").send_keys(str(TOWER))
    until(lambda: browser.find_elements("css selector", "#message img"))
    box.send_keys(question, Keys.ENTER)
    until(lambda: answered(browser))
    browser.find_elements("css selector", "button[role=tab]")[1].click()
    until(lambda: drawn(browser))


def answered(browser: Any) -> bool:
    said = browser.find_elements("css selector", "#chat .bot")
    return bool(said) and "…" not in said[-1].text


def until(met: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < end, "the page does not answer"
        time.sleep(0.02)
    return found


def drawn(browser: Any) -> int:
    code = "return Number(document.querySelector(arguments[0])?.dataset.drawn || 0)"
    return browser.execute_script(code, PANE)


def changes(browser: Any, count: int, change: Callable[[int], None]) -> list[float]:
    """Milliseconds of each change, one after another: the first three warm up."""
    before = drawn(browser)
    for at in range(count + 3):
        told = drawn(browser)
        change(at)
        until(lambda told=told: drawn(browser) > told)
    found = browser.execute_script("return document.querySelector(arguments[0]).latencies", PANE)
    return found[before + 3 :]


def slide(browser: Any, number: int, value: int) -> None:
    browser.execute_script(SLIDE, f"{PANE} .controls input[type=range]", number, value)


def click_token(browser: Any, at: int) -> None:
    code = "const all = document.querySelectorAll(arguments[0]); all[arguments[1] % all.length].click()"
    browser.execute_script(code, f"{PANE} .chip", at)


def summary(times: list[float]) -> dict[str, float]:
    median, high = np.percentile(times, [50, 95])
    return {
        "changes": len(times),
        "median": round(float(median), 1),
        "p95": round(float(high), 1),
        "worst": round(max(times), 1),
    }


def header(args: argparse.Namespace, version: str) -> dict[str, object]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
        "browser": f"Chromium {version}, headless, {args.width} pixels wide",
        "checkpoint": "the embedded demo",
        "question": args.question,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--question", default="Which tower is this?")
    parser.add_argument("--changes", type=int, default=100, help="of each kind")
    parser.add_argument("--width", type=int, default=1280)
    return parser.parse_args()


if __name__ == "__main__":
    main()
