"""The whole demo as a process of its own, spoken to as by a browser: ten at once, and those who mean ill."""

from __future__ import annotations

import io
import json
import os
import secrets
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import web_demo_mm
from diagnostics.web.engine import Engine
from diagnostics.web.sessions import user_turn
from diagnostics.web.uploads import FILE_MAX_BYTES, Upload
from finetune.samples.conversation import Turn
from tests.diagnostics.web.test_page import free_port

ROOT = Path(web_demo_mm.__file__).parent
TOWER = ROOT / "docs" / "images" / "tower.png"
USERS = 10
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """(address, process, folder)."""
    folder = tmp_path_factory.mktemp("server")
    with started(folder, "--visualize-attention", "--probe-file", str(folder / "probes.json")) as found:
        yield *found, folder


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(address, process), until it is ended. The log goes to a file, for a full pipe would stop it."""
    port = free_port()
    command = [sys.executable, "web_demo_mm.py", "--cpu-only", "--server-port", str(port), *flags]
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "TMPDIR": str(folder)}
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while not answers(address):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


class Guest:
    """One browser: it loads the page, and then sends events and reads what the server tells of them."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=f"{address}/gradio_api", timeout=PATIENCE_SECONDS)
        self.session = secrets.token_hex(6)
        config = httpx.get(f"{address}/config").json()
        self.events = {event: one["id"] for one in config["dependencies"] for _, event in one["targets"]}
        self.panes = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
        self.key = json.loads(self.last("load", "")["data"][2])["room"]
        self.trace: str | None = None

    def upload(self, name: str, data: bytes) -> str:
        (path,) = self.client.post("/upload", files={"files": (name, data)}).json()
        return path

    def news(self, event: str, *data: Any) -> Iterator[dict[str, Any]]:
        asked = {"fn_index": self.events[event], "session_hash": self.session, "data": [*data]}
        joined = self.client.post("/queue/join", json=asked)
        if joined.status_code != 200:
            yield {"output": joined.json()}
            return
        event_id = joined.json()["event_id"]
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if told.get("event_id") == event_id:
                    yield told
                    if told["msg"] == "process_completed":
                        return

    def last(self, event: str, *data: Any) -> dict[str, Any]:
        *_, last = self.news(event, *data)
        return last["output"]

    def send(self, question: Any, *paths: str) -> dict[str, Any]:
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        output = self.last("submit", None, {"text": question, "files": files}, "en")
        if output.get("data") and isinstance(output["data"][2], str):
            self.trace = json.loads(output["data"][2])["look"]
        return output

    def says(self, output: dict[str, Any]) -> list[str]:
        """The assistant's words in the chat."""
        return [
            part["text"]
            for message in output["data"][0]
            if message["role"] == "assistant"
            for part in message["content"]
            if "text" in part
        ]

    def ask_pane(self, function: str, *given: Any) -> httpx.Response:
        asked = {"data": [*given], "fn_name": function, "session_hash": self.session}
        component = self.panes["compare-pane" if function.startswith("compare") else "attention-pane"]
        return self.client.post("/component_server", json={**asked, "component_id": component})

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def guest(server) -> Iterator[Guest]:
    made = Guest(server[0])
    yield made
    made.close()


def test_what_was_sent_goes_with_the_server(tmp_path):
    with started(tmp_path) as (address, process):
        sent = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", TOWER.read_bytes())})
        assert Path(sent.json()[0]).is_relative_to(tmp_path) and Path(sent.json()[0]).is_file()
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    log = (tmp_path / "log").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["log"] and "Traceback" not in log, log


# --- many at once -----------------------------------------------------------------------------------------------------


def test_ten_at_once_get_what_each_would_get_alone_and_see_nothing_of_each_other(server):
    address, process, _ = server
    questions = [f"这座塔是什么?{'?' * user}" for user in range(USERS)]
    expected = [alone(question, "哪里?") for question in questions]
    before = resident_bytes(process.pid)
    found: dict[int, tuple[Guest, list[str]]] = {}
    failed: list[BaseException] = []

    def use(user: int) -> None:
        try:
            guest = Guest(address)
            path = guest.upload(f"tower-{user}.png", TOWER.read_bytes())
            if user == 5:  # leaves in the middle of the answer
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                for told in guest.news("submit", None, {"text": questions[user], "files": [file]}, "en"):
                    if told["msg"] == "process_generating":
                        break
                guest.close()
                return
            guest.send(questions[user], path)
            found[user] = guest, guest.says(guest.send("哪里?"))
        except BaseException as error:  # told below, in the thread of the test
            failed.append(error)

    users = [threading.Thread(target=use, args=(user,), daemon=True) for user in range(USERS)]
    for user in users:
        user.start()
    end = time.monotonic() + PATIENCE_SECONDS
    for user in users:
        user.join(timeout=max(end - time.monotonic(), 0))
    assert not failed and not any(user.is_alive() for user in users), failed
    assert sorted(found) == [user for user in range(USERS) if user != 5]
    for user, (guest, said) in found.items():
        assert said == expected[user], questions[user]
        seen = guest.ask_pane("facts", guest.key, guest.trace).json()
        assert seen["question"] == "哪里?" and seen["reply"] == expected[user][-1]
        other = found[(user + 1) % USERS if user + 1 != 5 else 6][0]
        for key, trace in ((guest.key, other.trace), (guest.trace, other.trace), ("", other.trace)):
            assert "ask again" in (words := error_of(guest.ask_pane("facts", key, trace))) or "ended" in words
    cache = (
        found[0][0].ask_pane("view", found[0][0].key, found[0][0].trace, request(found[0][0])).json()["cache"]
    )
    assert cache["looks"] == 2 and float(cache["used"]) < float(cache["limit"]) == 512
    assert resident_bytes(process.pid) - before < 2**29
    for guest, _ in found.values():
        guest.close()


@cache
def engine() -> Engine:
    return Engine.load(None, mode="text", cpu_only=True)


def alone(*questions: str) -> list[str]:
    """What the embedded model says to these, in turn, with nobody else there."""
    turns: list[Turn] = []
    said: list[str] = []
    for question in questions:
        turns.append(user_turn(question, [Upload.read(TOWER)] if not turns else [], 0))
        *_, last = engine().reply(turns, stop=threading.Event())
        said.append(last.text)
        turns.append(Turn("assistant", (last.text,)))
    return said


def request(guest: Guest) -> dict[str, Any]:
    (token, *_) = guest.ask_pane("facts", guest.key, guest.trace).json()["answer"]
    return {"part": "language", "layer": 0, "head": -1, "tokens": [token], "image": 0, "window": [0, 3]}


def error_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["error"]["en"]


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


# --- who means ill ----------------------------------------------------------------------------------------------------


def is_discreet(text: str) -> bool:
    """No place on this machine, no line of code."""
    return not any(sign in text for sign in (str(ROOT), "/tmp/", "site-packages", "Traceback", "root:x:0"))


def still_serves(address: str) -> bool:
    guest = Guest(address)
    said = guest.says(guest.send("这座塔是什么?", guest.upload("tower.png", TOWER.read_bytes())))
    guest.close()
    return said == ["广州塔"]


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../etc/passwd",
        "gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
        "gradio_api/file=file:///etc/passwd",
        f"gradio_api/file={ROOT}/README.md",
        "gradio_api/file=http://127.0.0.1:1/",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "gradio_api/custom_component/x/client/component/..%2f..%2f..%2fetc%2fpasswd",
        "static/..%2f..%2f..%2f..%2fetc/passwd",
        "assets/..%2f..%2f..%2f..%2fetc/passwd",
        "svelte/..%2f..%2f..%2f..%2fetc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "gradio_api/file=" + "a" * 20_000,
        "gradio_api/file=%00",
        "config%0d%0aX-Evil:1/../../etc/passwd",
    ],
)
def test_no_path_leads_out(server, path):
    address = server[0]
    answer = httpx.get(f"{address}/{path}")
    assert answer.status_code >= 400 or answer.headers["content-type"].startswith("text/html"), answer.text[
        :200
    ]
    assert "root:x:0" not in answer.text and is_discreet(answer.text.replace(path.rpartition("=")[2], "")), (
        answer.text[:300]
    )
    assert answers(address)


@pytest.mark.parametrize(
    "host", ["other.invalid", "other.invalid:8000", "a" * 3000, "<script>alert(1)</script>"]
)
def test_only_the_machine_s_own_names_are_answered(server, host):
    """Or a page from elsewhere, whose name is made to lead here, could read what visitors asked."""
    answer = httpx.get(server[0], headers={"Host": host})
    assert answer.status_code == 400 and answer.text == "Invalid host header"
    assert httpx.get(server[0], headers={"Host": "localhost:1"}).status_code == 200
    assert answers(server[0])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://other.invalid"}, 403),
        ({"Origin": "null"}, 403),  # of a sandboxed page
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another program of this machine
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({}, 200),  # no browser
    ],
)
def test_other_sites_can_neither_send_nor_read(server, guest, headers, status):
    sent = guest.client.post("/upload", files={"files": ("a.png", png(3, 2))}, headers=headers)
    asked = {"fn_index": guest.events["submit"], "session_hash": guest.session, "data": [None, None, "en"]}
    assert [sent.status_code, guest.client.post("/queue/join", json=asked, headers=headers).status_code] == [
        status,
        status,
    ]
    assert httpx.get(f"{server[0]}/config", headers=headers).status_code == status
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(server[0], headers=linked).status_code == 200
    own = {"Origin": server[0]}
    assert guest.client.post("/upload", files={"files": ("a.png", png(3, 2))}, headers=own).status_code == 200


def test_files_that_were_not_sent_cannot_be_named(server, guest):
    for path in (
        "/etc/passwd",
        "../../../../../etc/passwd",
        str(ROOT / "README.md"),
        str(TOWER),
        str(server[2] / "log"),
        f"{server[0]}/config",
        "http://127.0.0.1:1/a.png",
        "http://other.invalid/a.png",
        "",
        "\0",
        "a" * 5000,
    ):
        output = guest.send("这是什么?", path)
        assert "data" not in output and is_discreet(json.dumps(output)), (path, output)
    assert still_serves(server[0])


def test_before_and_after_refuse_a_picture_in_the_chats_words(server, guest):
    config = httpx.get(f"{server[0]}/config").json()
    button = guest.panes["compare_go"]
    guest.events["compare"] = next(
        one["id"] for one in config["dependencies"] if [button, "click"] in one["targets"]
    )

    def said(path: str) -> str:
        sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
        return str(guest.last("compare", None, "en", "own", "own", "what is it?", sent))

    for data in (b"<html>not found</html>", b"", TOWER.read_bytes()[:2000]):
        assert "cat.png: cannot be read as a picture; use PNG or JPEG." in said(guest.upload("cat.png", data))
    assert "found too many pixels" in said(guest.upload("bomb.png", bomb(50_000, 40_000)))
    assert "Answers compared: 2." in said(guest.upload("tower.png", TOWER.read_bytes()))
    for path in ("/etc/passwd", str(TOWER), str(server[2] / "log"), ""):
        refused = said(path)
        assert "compared" not in refused and is_discreet(refused), (path, refused)
    assert "UnidentifiedImageError" not in (server[2] / "log").read_text()


def test_an_invalid_or_too_large_picture_is_refused_with_a_message(server, guest):
    address = server[0]
    big = guest.client.post("/upload", files={"files": ("big.png", b"x" * (FILE_MAX_BYTES + 1))})
    assert big.status_code == 413
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    html = b"<html><script>alert(1)</script></html>"
    for name, data, words in (
        ("bomb.png", bomb(50_000, 40_000), "found too many pixels, expected at most 25 million"),
        ("large.png", bomb(6_000, 5_000), "found 6000 × 5000 pixels, expected at most 25 million"),
        ("a.svg", svg, "cannot be read as a picture"),
        ("a.html", html, "Please upload a file that is one of these formats: ['image']"),
        ("a.png", html, "cannot be read as a picture"),
        ("a.png", b"", "cannot be read as a picture"),
        ("cut.png", TOWER.read_bytes()[:2000], "cannot be read as a picture"),
        *(
            (f"broken.{kind}", broken(kind), "cannot be read as a picture")
            for kind in ("avif", "webp", "tiff", "gif")
        ),
        ("eps.png", written("EPS"), "cannot be read as a picture"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "cannot be read as a picture"),
    ):
        path = guest.upload(name, data)
        output = guest.send("这是什么?", path)
        assert words in str(output) and is_discreet(json.dumps(output)), (name, output)
        served = guest.client.get(f"/file={path}")
        if name.endswith((".svg", ".html")) and served.status_code == 200:  # kept, and never run
            assert served.headers["content-disposition"].startswith("attachment")
    path = guest.upload("small.png", png(3, 2))
    assert "found 7, expected at most 6" in str(guest.send("这是什么?", *[path] * 7))
    assert "expected at most 4000" in str(guest.send("x" * 5000))
    assert "diagnostics/web/" not in (server[2] / "log").read_text()  # no traceback of what was foreseen
    assert still_serves(address)


def written(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((61, 40), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def broken(kind: str) -> bytes:
    """A picture whose header is right and whose pixels are not."""
    data = written(kind)
    return data[: len(data) * 2 // 3]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose header promises so many pixels."""
    return _png(width, height, zlib.compress(bytes(10**6)))


def png(width: int, height: int) -> bytes:
    return _png(width, height, zlib.compress((b"\0" + bytes(3 * width)) * height))


def _png(width: int, height: int, packed: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


JUNK: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**40,
    "",
    "x" * 100_000,
    [],
    [[]] * 5,
    {},
    {"a": {"b": []}},
    "../../etc",
]


@pytest.mark.parametrize("function", ["facts", "view", "save_probe", "compare_facts", "compare_view"])
def test_functions_of_the_panes_answer_junk_in_words(server, guest, function):
    guest.send("这座塔是什么?", guest.upload("tower.png", TOWER.read_bytes()))
    fields = {**request(guest), "box": [0, 0, 1, 1], "wanted": ["overview", "box"], "id": "a", "group": "b"}
    fields |= {"region": "c", "question": "d", "answer": "e", "patch": 0}
    traces = [guest.trace] if function.startswith("compare") else guest.trace
    attempts = [(junk,) for junk in JUNK] + [(guest.key, junk) for junk in JUNK] + [(), (1, 2, 3, 4, 5)]
    if function not in ("facts", "compare_facts"):
        attempts += [(guest.key, traces, junk) for junk in JUNK]
        attempts += [(guest.key, traces, {**fields, name: junk}) for name in fields for junk in JUNK]
    for attempt in attempts:
        answer = guest.ask_pane(function, *attempt)
        assert answer.status_code < 500 and is_discreet(answer.text), (attempt, answer.text[:300])
        assert answer.json() is not None
    log = (server[2] / "log").read_text()
    assert f"{function} failed" not in log, log[-3000:]  # every one of them was foreseen


def test_events_with_junk_are_survived(server, guest):
    for event in ("submit", "load"):
        for data in (
            [],
            [None],
            [None, "x", "en"],
            [None, {"text": 5, "files": 3}, "en"],
            [None, None, "xx"],
            ["a"] * 9,
        ):
            output = guest.last(event, *data)
            assert is_discreet(json.dumps(output.get("error"))), (event, data, output)
    for body in (
        b"",
        b"{",
        b"[]",
        b'{"data": 1}',
        b'{"fn_index": 999, "data": [], "session_hash": "x"}',
        b"\xff" * 999,
    ):
        headers = {"Content-Type": "application/json"}
        for route in ("/queue/join", "/component_server", "/run/send", "/call/send", "/cancel"):
            try:
                answer = httpx.post(f"{server[0]}/gradio_api{route}", content=body, headers=headers)
            except httpx.TransportError as error:
                raise AssertionError((route, body)) from error
            assert is_discreet(answer.text), (route, body, answer.text[:300])
    assert still_serves(server[0])
