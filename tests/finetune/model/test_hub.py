"""What is asked of the hub: once, and nothing where the answer is at hand."""

import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from finetune.model import hub
from finetune.model.checkpoint import load_config


class Answers(BaseHTTPRequestHandler):
    """A hub that answers as ``server.kind`` says, and writes down what it was asked."""

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status, code = self.server.kind  # type: ignore[attr-defined]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as one:
        one.asked, one.kind = [], (404, "RepoNotFound")  # type: ignore[attr-defined]
        Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{one.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        hub._asked.cache_clear()
        yield one
        one.shutdown()
    hub._asked.cache_clear()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ((404, "RepoNotFound"), "the hub has no such checkpoint"),
        ((403, "GatedRepo"), "it is gated: accept its terms at https://huggingface.co/out/checkpoint-80"),
        ((404, "EntryNotFound"), "the hub's out/checkpoint-80 holds no config.json"),
        ((503, None), "the hub cannot be reached"),
    ],
)
def test_a_name_that_is_no_folder_is_asked_about_once(
    server, kind, words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Also where another station asks again; without a line for every attempt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "checkpoint-330").mkdir(parents=True)
    (tmp_path / "out" / "runs").mkdir()
    server.kind = kind
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(ValueError) as refused:
                load_config("out/checkpoint-80")
    said = str(refused.value)
    assert said.startswith(f"out/checkpoint-80: there is no such folder (working directory {tmp_path}), and ")
    assert words in said and said.endswith("; did you mean out/checkpoint-330?")
    assert server.asked == ["/out/checkpoint-80/resolve/main/config.json"] and not caplog.records


def test_without_a_network_it_is_tried_once_too(server, monkeypatch: pytest.MonkeyPatch):
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match=r"some/thing: there is no such folder .* cannot be reached \(.+\)$"):
        hub.require("some/thing")


def test_nothing_is_asked_about_what_is_here(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    hub.require(str(tmp_path / "model"))
    place = tmp_path / "models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (place / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    hub.require("someone/tiny", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="it is no name of a checkpoint on the hub either"):
        hub.require("no name at all")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.require("someone/nothing")  # what opens it says so
    assert server.asked == []
