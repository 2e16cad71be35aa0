"""A chat completion server in a thread of the test: returns configured answers, and faults on demand."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Json = dict[str, Any]
Fault = tuple[int, bytes, dict[str, str]]
"""Status, body and headers of a faulty response."""


def message(words: str) -> bytes:
    return json.dumps({"error": {"message": words}}).encode()


def completion(
    text: str, *, finish: str = "stop", prompt_tokens: int | None = 20, tokens: Any = None
) -> Json:
    choice: Json = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if tokens is not None:
        choice["logprobs"] = {"content": [{"token": one, "logprob": nats} for one, nats in tokens]}
    usage = {} if prompt_tokens is None else {"usage": {"prompt_tokens": prompt_tokens}}
    return {"object": "chat.completion", "choices": [choice], **usage}


def parts_of(request: Json) -> list[Any]:
    """The text and pictures of the single user turn."""
    (turn,) = request["messages"]
    assert turn["role"] == "user"
    return [_part(one) for one in turn["content"]]


def _part(part: Json) -> Any:
    if part["type"] == "text":
        return part["text"]
    kind, data = part["image_url"]["url"].split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


class StandIn:
    """Received requests (``requests``, ``headers``), and configured answers.

    answer   request → completion
    faults   answers in place of the next requests, in turn
    models   names at /v1/models
    stall    seconds before an answer
    cut      bytes of the body that are sent before the connection is closed; None: all
    drop     close the connection without an answer
    """

    def __init__(self, answer: Callable[[Json], Json]) -> None:
        self.answer = answer
        self.faults: list[Fault] = []
        self.models: list[str] = ["tiny"]
        self.stall = 0.0
        self.cut: int | None = None
        self.drop = False
        self.requests: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.address = ""


@contextmanager
def served(stand_in: StandIn) -> Iterator[StandIn]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            listed = {"data": [{"id": name} for name in stand_in.models]}
            self._send(200, json.dumps(listed).encode(), {})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.requests.append(request)
            stand_in.headers.append(dict(self.headers))
            if stand_in.stall:
                time.sleep(stand_in.stall)
            if stand_in.drop:
                return
            if stand_in.faults:
                self._send(*stand_in.faults.pop(0))
            elif self.path != "/v1/chat/completions" or request["model"] not in stand_in.models:
                self._send(404, message(f"The model {request['model']} does not exist."), {})
            else:
                self._send(200, json.dumps(stand_in.answer(request)).encode(), {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError):  # who asked has left
                self.wfile.write(body[: stand_in.cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stand_in.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
