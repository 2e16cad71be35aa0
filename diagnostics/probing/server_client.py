"""A client for OpenAI-compatible servers (vLLM, SGLang, ``transformers serve``), on the standard library alone.

It connects only to the given address: no proxy, no redirect. Every fault is one ``ServerError``: found, expected, what
to do.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from diagnostics.records.json_files import parsed, shown
from finetune.samples.conversation import ImageRef
from finetune.samples.images import open_image

TIMEOUT_SECONDS = 120.0
MOST_BYTES = 2**24
"""Limit of a response; an answer of a few words with log-probabilities has some kilobytes."""
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Waits before each retry after 429 without Retry-After."""
LONGEST_WAIT_SECONDS = 60.0
MOST_NAMED = 5  # models in a message
SHOWN = 200  # characters of a server's error in a message
OK, BAD, UNAUTHORISED, FORBIDDEN, MISSING, UNPROCESSABLE, LIMITED, INTERNAL = (
    200, 400, 401, 403, 404, 422, 429, 500,
)  # fmt: skip
REDIRECTS = range(300, 400)
_EXTRA_NAMES = {
    "logprobs": re.compile("logprob", re.IGNORECASE),
    "chat_template_kwargs": re.compile("chat_template_kwargs|enable_thinking", re.IGNORECASE),
}
"""How a server's refusal names the fields that not every server knows."""
_ABOUT_PICTURES = re.compile(r"image|multi-?modal|vision|picture", re.IGNORECASE)


class ServerError(ValueError):
    """A failed request, as one message.

    status   HTTP status; None without a response, or if it was 200
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ServedToken(NamedTuple):
    """A generated token: its text, and its log-probability in nats."""

    text: str
    nats: float


class ServedAnswer(NamedTuple):
    """A server's answer.

    text            as sent
    finish          finish reason: "stop", "length" or another of the server's; "" if missing
    prompt_tokens   from ``usage``; None if missing
    tokens          with their log-probabilities; () if the server returns none
    """

    text: str
    finish: str
    prompt_tokens: int | None
    tokens: tuple[ServedToken, ...]


class ServerClient:
    """One model of one server.

    address           http(s)://HOST[:PORT]/v1
    model             its name at the server; None: the only one listed
    timeout_seconds   per answer, from the first byte sent to the last one read
    key               sent to this address as a bearer token, never shown
    thinking_refused  whether the server has rejected a request to turn thinking off

    Raises ServerError for an invalid address, or if the list of models is needed and the request fails.
    """

    def __init__(
        self,
        address: str,
        model: str | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        key: str | None = None,
    ) -> None:
        self.address = checked_address(address)
        self.timeout_seconds = timeout_seconds
        self._key = key
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self._extras: dict[str, Any] = {"logprobs": True}
        self.thinking_refused = False
        self.model = model if model is not None else self._only_model()

    def ask(self, parts: Sequence[str | ImageRef], *, max_tokens: int) -> ServedAnswer:
        """The server's greedy answer to one user turn of text and pictures.

        Pictures are sent as PNG, upright and in RGB, as the local model sees them.

        Raises ServerError.
        """
        content = [_content(part) for part in parts]
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": False,
        }
        status, body = self._chat(request)
        if status != OK:
            with_picture = any(isinstance(part, ImageRef) for part in parts)
            raise ServerError(self._refusal(status, body, with_picture=with_picture), status)
        return self._answer(body)

    def turn_thinking_off(self) -> None:
        """Ask from here on for answers after an empty thought, as a Qwen3.5 checkpoint gives them.

        ``thinking_refused`` says whether the server has rejected that.
        """
        self._extras["chat_template_kwargs"] = {"enable_thinking": False}

    def models(self) -> tuple[str, ...]:
        """The names of the models that the server lists. Raises ServerError if there are none."""
        status, body = self._exchange("models", None)
        if status != OK:
            raise ServerError(self._refusal(status, body), status)
        content = self._parsed(body)
        listed = content.get("data") if isinstance(content, Mapping) else None
        names = [
            one["id"]
            for one in (listed if isinstance(listed, list) else ())
            if isinstance(one, Mapping) and isinstance(one.get("id"), str)
        ]
        if not names:
            raise ServerError(
                f"{self.address}/models: found {shown(content)}, without a model; give --served_model NAME"
            )
        return tuple(names)

    def _only_model(self) -> str:
        try:
            names = self.models()
        except ServerError as error:
            if error.status is None or error.status < INTERNAL:
                raise
            # Some servers work but cannot list their models: ``transformers serve`` without a hub cache.
            raise ServerError(
                f"{error}; or give --served_model NAME, which needs no list of models"
            ) from error
        if len(names) > 1:
            raise ServerError(
                f"{self.address}: found {len(names)} models ({_named(names)}); say which with --served_model"
            )
        return names[0]

    def _chat(self, request: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body of a chat completion, with as many of the extra fields as the server supports."""
        while True:
            status, body = self._exchange("chat/completions", {**request, **self._extras})
            refused = [
                name for name in self._extras if _EXTRA_NAMES[name].search(body.decode(errors="replace"))
            ]
            if status not in (BAD, UNPROCESSABLE) or not refused:
                return status, body
            for name in refused:
                del self._extras[name]
            self.thinking_refused |= "chat_template_kwargs" in refused

    def _exchange(self, path: str, content: Mapping[str, Any] | None) -> tuple[int, bytes]:
        """Status and body; retries after 429, with the waits of the server or of ``WAITS_SECONDS``."""
        for wait in (*WAITS_SECONDS, None):
            status, body, headers = self._once(path, content)
            if status != LIMITED or wait is None:
                break
            asked = _seconds(headers.get("Retry-After"))
            if asked is not None and asked > LONGEST_WAIT_SECONDS:
                raise ServerError(
                    f"{self.address}: found 429 (too many requests) and Retry-After {asked:g} s; expected at most "
                    f"{LONGEST_WAIT_SECONDS:g} s; run this again later, or raise the server's limit"
                )
            time.sleep(wait if asked is None else asked)
        return status, body

    def _once(self, path: str, content: Mapping[str, Any] | None) -> tuple[int, bytes, Mapping[str, str]]:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.address}/{path}", data=data, headers=headers)
        until = time.monotonic() + self.timeout_seconds
        try:
            try:
                response = self._opener.open(request, timeout=self.timeout_seconds)
            except urllib.error.HTTPError as error:
                response = error  # a response like any other; its status decides
            with response:
                return response.status, self._read(response, until), response.headers
        except TimeoutError as error:
            raise ServerError(self._late()) from error
        except http.client.IncompleteRead as error:
            raise ServerError(
                f"{self.address}: found half an answer ({len(error.partial):,} bytes, then the connection was "
                "closed); check the server's log, and any proxy in between"
            ) from error
        except urllib.error.URLError as error:
            raise ServerError(self._unreachable(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(self._unreachable(error)) from error

    def _read(self, response: Any, until: float) -> bytes:
        """The whole body. Also checks the time, since a server that sends a byte now and then never stalls."""
        read = io.BytesIO()
        while chunk := response.read1(2**16):
            read.write(chunk)
            if read.tell() > MOST_BYTES:
                raise ServerError(
                    f"{self.address}: found an answer of more than {MOST_BYTES:,} bytes; expected a few kilobytes: is "
                    "this the address of a chat server?"
                )
            if time.monotonic() > until:
                raise TimeoutError
        if response.length:  # read1 does not report a connection that was closed early
            raise http.client.IncompleteRead(read.getvalue(), response.length)
        return read.getvalue()

    def _late(self) -> str:
        return (
            f"{self.address}: found no whole answer within {self.timeout_seconds:g} s; a server that is still loading "
            "its model needs longer: give --timeout SECONDS"
        )

    def _unreachable(self, reason: Any) -> str:
        if isinstance(reason, TimeoutError):
            return self._late()
        if isinstance(reason, ConnectionRefusedError):
            return (
                f"{self.address}: connection refused; expected a server that listens there: start it, wait until it "
                "is ready, and check host and port"
            )
        if isinstance(reason, ConnectionError | http.client.BadStatusLine):
            return (
                f"{self.address}: the server closed the connection without an answer; check its log (out of memory, or "
                "https instead of http)"
            )
        return f"{self.address}: cannot be reached ({reason}); check host, port and http or https"

    def _refusal(self, status: int, body: bytes, *, with_picture: bool = False) -> str:
        """The error message for a status other than 200."""
        said = _error_text(body)
        if status in REDIRECTS:
            return f"{self.address}: found a redirect ({status}), which is not followed; give the address it leads to"
        if status in (UNAUTHORISED, FORBIDDEN):
            had = "the key that was sent is not accepted" if self._key else "no key was sent"
            return (
                f"{self.address}: found {status} ({said}); {had}: put the server's key into an environment variable "
                "and name it with --key_variable NAME"
            )
        if status == MISSING:
            return self._missing(said)
        if status == LIMITED:
            return (
                f"{self.address}: found 429 (too many requests) {len(WAITS_SECONDS) + 1} times, with waits between; "
                "run this again later, or raise the server's limit"
            )
        if with_picture and _ABOUT_PICTURES.search(said):
            return (
                f"{self.address}: the server accepts no pictures for {self.model} ({status}: {said}); serve it as a "
                "vision-language model (not only its language model), allowing as many pictures per prompt as the "
                "probes have"
            )
        if status >= INTERNAL:
            return f"{self.address}: the server failed ({status}: {said}); check its log"
        return f"{self.address}: found {status} ({said}); expected 200: is this an OpenAI-compatible server?"

    def _missing(self, said: str) -> str:
        try:
            status, body = self._exchange("models", None)
            content = self._parsed(body) if status == OK else {}
            names = [str(one["id"]) for one in content["data"]]
        except (ServerError, KeyError, TypeError):  # the address itself may be wrong
            names = []
        if names:
            asked = getattr(self, "model", None)
            return f"{self.address}: found no model {asked!r} ({said}); it serves {_named(names)}: --served_model"
        return f"{self.address}: found 404 ({said}); expected the address that ends in /v1, as http://HOST:PORT/v1"

    def _parsed(self, body: bytes) -> Any:
        try:
            return parsed(body.decode())
        except ValueError as error:  # UnicodeDecodeError is one
            raise ServerError(
                f"{self.address}: the response is not valid JSON ({_error_text(body)}); check the server's log, and "
                "that the address is that of an OpenAI-compatible server"
            ) from error

    def _answer(self, body: bytes) -> ServedAnswer:
        content = self._parsed(body)
        try:
            choice = content["choices"][0]
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            choice, text = {}, None
        if not isinstance(text, str):
            raise ServerError(
                f"{self.address}: the response has no choices[0].message.content ({_error_text(body)}); expected a "
                "chat completion with text: turn off parsing of reasoning or tools at the server"
            )
        usage = content.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        return ServedAnswer(
            text,
            str(choice.get("finish_reason") or ""),
            count if isinstance(count, int) and count > 0 else None,
            _tokens(choice),
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Does not follow redirects: pictures and key go only to the given address."""

    def redirect_request(self, *_: Any) -> None:
        return None


def is_address(source: str) -> bool:
    """Whether a source is a server's address, not a folder or a hub name."""
    return source.lower().startswith(("http://", "https://"))


def checked_address(address: str) -> str:
    """The address without a trailing slash.

    Raises ServerError unless it is http(s)://HOST[:PORT][/PATH].
    """
    try:
        parts = urlsplit(address)
        valid = is_address(address) and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or parts.username is not None or re.search(r"\s", address):
        raise ServerError(
            "--after: found no valid address; expected http(s)://HOST:PORT/v1 and nothing after it"
        )
    return address.rstrip("/")


def data_url(source: ImageRef) -> str:
    """The picture as the local model sees it (upright, RGB), as a PNG in a data: URL."""
    stream = io.BytesIO()
    open_image(source.path if source.data is None else source).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _content(part: str | ImageRef) -> dict[str, Any]:
    if isinstance(part, ImageRef):
        return {"type": "image_url", "image_url": {"url": data_url(part)}}
    return {"type": "text", "text": part}


def _tokens(choice: Mapping[str, Any]) -> tuple[ServedToken, ...]:
    """The tokens of a choice; () without log-probabilities for every token."""
    logprobs = choice.get("logprobs")
    listed = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    found = []
    for one in listed if isinstance(listed, list) else ():
        if not isinstance(one, Mapping) or not isinstance(one.get("token"), str):
            return ()
        nats = one.get("logprob")
        if not isinstance(nats, int | float) or not -1e6 < nats <= 1e-3:
            return ()
        found.append(ServedToken(one["token"], float(nats)))
    return tuple(found)


def _seconds(header: str | None) -> float | None:
    """The seconds of Retry-After; None for a date or a missing header."""
    return float(header) if header is not None and re.fullmatch(r"\d{1,6}(\.\d+)?", header.strip()) else None


def _error_text(body: bytes) -> str:
    """A server's error message, on one line."""
    text = body.decode(errors="replace")
    try:
        content = json.loads(text)
        error = content.get("error", content) if isinstance(content, dict) else content
        words = error.get("message", error.get("detail", text)) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        words = text
    line = " ".join(str(words).split())
    line = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line)
    return (line if len(line) <= SHOWN else f"{line[:SHOWN]}…") or "no message"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
