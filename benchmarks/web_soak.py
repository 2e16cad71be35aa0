"""Do memory and files of the web demo stay flat under many visitors? The real server, visitors of its own protocol.

python benchmarks/web_soak.py --users 20 --minutes 10

Each visitor loads the page, sends a picture of its own with a question, asks again, looks at the attention, compares,
sends a file that is no picture, and leaves; some reload or clear. Every five seconds the server's resident memory, its
files, threads and open descriptors are sampled. Prints one JSON object, with PASS or FAIL for each claim in ``claims``
and the reason. Writes nothing else; the server's files go with it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.circumstances import circumstances  # noqa: E402

SAMPLE_SECONDS = 5.0
PATIENCE_SECONDS = 120.0
START_SECONDS = 600.0
"""A busy machine takes minutes to import everything."""
FLAT = 1.1
"""Medians of the last third over those of the middle third, at most: the first fills caches."""
FILES_MAX = 500 + 64 * 16  # uploads that wait, and what 64 sessions of this kind draw


class Sample(NamedTuple):
    """The server at one moment; memory in MiB."""

    seconds: float
    resident: float
    files: int
    threads: int
    descriptors: int


@dataclass
class Tally:
    """What the visitors did, and what went wrong."""

    visits: int = 0
    answers: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)


class Visitor:
    """One open page: it sends events and reads what the server says of them."""

    def __init__(self, address: str, kept: str = "") -> None:
        self.client = httpx.Client(base_url=f"{address}/gradio_api", timeout=PATIENCE_SECONDS)
        self.session = secrets.token_hex(6)
        config = self.client.get(f"{address}/config").json()
        self.events = {event: one["id"] for one in config["dependencies"] for _, event in one["targets"]}
        self.functions = {one["api_name"]: one["id"] for one in config["dependencies"]}
        self.panes = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
        # A browser keeps this open for as long as the page is.
        self.alive = self.client.send(
            self.client.build_request("GET", f"/heartbeat/{self.session}"), stream=True
        )
        self.key = json.loads(self.tell(self.events["load"], kept)["data"][2])["room"]

    def tell(self, function: int, *data: Any) -> dict[str, Any]:
        asked = {"fn_index": function, "session_hash": self.session, "data": [*data]}
        event = self.client.post("/queue/join", json=asked).raise_for_status().json()["event_id"]
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if told.get("event_id") == event and told["msg"] == "process_completed":
                    return told["output"]
        raise RuntimeError("the server ended the event without an answer")

    def ask(self, question: str, *pictures: tuple[str, bytes]) -> dict[str, Any]:
        paths = [self.client.post("/upload", files={"files": one}).json()[0] for one in pictures]
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        return self.tell(self.events["submit"], None, {"text": question, "files": files}, "en")

    def call(self, function: str, *given: Any) -> dict[str, Any]:
        asked = {"data": [*given], "fn_name": function, "session_hash": self.session}
        asked["component_id"] = self.panes["attention-pane"]
        return self.client.post("/component_server", json=asked).raise_for_status().json()

    def leave(self) -> None:
        self.alive.close()
        self.client.close()


def main() -> None:
    args = arguments()
    print(json.dumps(measured(args), indent=1))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (address, process):
        end = time.monotonic() + 60 * args.minutes
        users = [
            threading.Thread(target=use, args=(address, user, end, tally), daemon=True)
            for user in range(args.users)
        ]
        for user in users:
            user.start()
        samples = list(sampled(process.pid, Path(folder), end))
        for user in users:
            user.join(PATIENCE_SECONDS)
        log = (Path(folder) / "log").read_text(encoding="utf-8")
    return {
        **circumstances("cpu"),
        "users": args.users,
        "minutes": args.minutes,
        "visits": tally.visits,
        "answers": tally.answers,
        "files that are no picture, refused in words": tally.refused,
        "claims": claims(samples, tally, log),
        "samples": [sample._asdict() for sample in samples[:: max(1, len(samples) // 24)]],
    }


def claims(samples: list[Sample], tally: Tally, log: str) -> dict[str, str]:
    """Claim → PASS or FAIL with its numbers."""
    third = len(samples) // 3
    found = {}
    for name in ("resident", "threads", "descriptors"):
        values = [getattr(sample, name) for sample in samples]
        middle, last = np.median(values[third : 2 * third]), np.median(values[2 * third :])
        found[f"{name} flat"] = verdict(
            last <= FLAT * middle + 2, f"median {middle:.0f}, then {last:.0f}, most {max(values):.0f}"
        )
    most = max(
        sample.files for sample in samples
    )  # uploads wait until their bound is reached, then the oldest go
    found["files bounded"] = verdict(most <= FILES_MAX, f"{most} of at most {FILES_MAX}")
    found["every visitor answered"] = verdict(
        bool(tally.answers) and not tally.errors, "; ".join(tally.errors[:3]) or f"{tally.answers} answers"
    )
    found["no traceback"] = verdict(
        "Traceback" not in log, log[log.find("Traceback") :][:3000] if "Traceback" in log else ""
    )
    return found


def verdict(holds: bool, words: str) -> str:
    return f"{'PASS' if holds else 'FAIL'} {words}".strip()


def use(address: str, user: int, end: float, tally: Tally) -> None:
    """Visits, one after another, until the time is over."""
    choice, kept = random.Random(user), ""
    while time.monotonic() < end and not tally.errors:
        try:
            kept = visit(address, choice, kept, tally)
        except Exception as error:  # told in the report, whatever it is
            tally.errors.append(f"user {user}: {type(error).__name__}: {error}"[:200])


def visit(address: str, choice: random.Random, kept: str, tally: Tally) -> str:
    """One visit; returns the key that the browser's tab keeps, "" if it was closed."""
    page = Visitor(address, kept)
    try:
        output = page.ask("Which tower is this?", ("a.png", picture(choice)))
        said = output["data"][2]
        tally.answers += isinstance(said, str)
        if isinstance(said, str):
            look = json.loads(said)["look"]
            facts = page.call("facts", page.key, look)
            request = {"part": "language", "layer": 0, "head": -1, "image": 0, "tokens": facts["answer"][:1]}
            for head in (-1, 0, 1):
                page.call("view", page.key, look, {**request, "head": head, "wanted": ["overview"]})
        output = page.ask("And now?")
        tally.answers += isinstance(output["data"][2], str)
        output = page.ask("This?", ("b.avif", choice.randbytes(5000)))
        tally.refused += "cannot be read as a picture" in json.dumps(output)
        if choice.random() < 0.3:
            page.tell(page.functions["clear"], None, "en")
        tally.visits += 1
        return page.key if choice.random() < 0.3 else ""
    finally:
        page.leave()


def picture(choice: random.Random) -> bytes:
    """A picture that nobody else sends."""
    noise = np.frombuffer(choice.randbytes(96 * 64 * 3), np.uint8).reshape(64, 96, 3)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((384, 256)).save(buffer, "PNG")
    return buffer.getvalue()


def sampled(pid: int, folder: Path, end: float) -> Iterator[Sample]:
    begun = time.monotonic()
    while time.monotonic() < end:
        time.sleep(SAMPLE_SECONDS)
        lines = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        )
        files = sum(len(names) for _, _, names in os.walk(folder))
        sample = Sample(
            round(time.monotonic() - begun, 1),
            round(int(lines["VmRSS"].split()[0]) / 1024, 1),
            files,
            int(lines["Threads"]),
            len(os.listdir(f"/proc/{pid}/fd")),
        )
        print(sample, file=sys.stderr)
        yield sample


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(address, process) of the demo with attention, until it is ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "web_demo_mm.py", "--cpu-only", "--visualize-attention"]
    command += ["--server-port", str(port), "--probe-file", str(folder / "probes.json")]
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "TMPDIR": str(folder)}
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(address):
            if process.poll() is not None or time.monotonic() > end:
                log_text = (folder / "log").read_text(encoding="utf-8")
                raise RuntimeError(f"the server did not answer within {START_SECONDS:g} s: {log_text}")
            time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        try:
            process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:  # what was measured is not lost with it
            print(f"the server had not ended {PATIENCE_SECONDS:g} s after SIGTERM; killed", file=sys.stderr)
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
