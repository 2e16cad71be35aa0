"""Every way in which a server can fail is one message, and only the address given is spoken to."""

import json
import socket

import pytest
from PIL import Image

import diagnostics.probing.server_client as module
from diagnostics.probing.server_client import ServedToken, ServerClient, ServerError, checked_address
from finetune.samples.conversation import ImageRef
from tests.diagnostics.stand_in_server import StandIn, completion, message, parts_of, served
from tests.diagnostics.tiny_qwen_vl import write_picture


@pytest.fixture
def server():
    with served(StandIn(lambda request: completion("red", tokens=[("red", -0.25), ("", -0.5)]))) as one:
        yield one


@pytest.fixture
def waits(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def asked(server, *parts, **options):
    return ServerClient(server.address, options.pop("model", "tiny"), timeout_seconds=5.0, **options).ask(
        parts or ("?",), max_tokens=7
    )


def refused(server, *parts, **options) -> str:
    with pytest.raises(ServerError) as caught:
        asked(server, *parts, **options)
    assert str(caught.value).startswith((server.address, "--after")) and "\n" not in str(caught.value)
    return str(caught.value)


def test_an_answer_with_its_tokens(server, tmp_path):
    picture = write_picture(tmp_path / "disc.png")
    found = asked(server, "Picture 1: ", ImageRef("disc", picture), "\nwhere?", key="s3cret")
    assert found == ("red", "stop", 20, (ServedToken("red", -0.25), ServedToken("", -0.5)))
    (request,) = server.requests
    assert (request["temperature"], request["max_tokens"], request["stream"]) == (0, 7, False)
    first, shown, last = parts_of(request)
    assert (first, last) == ("Picture 1: ", "\nwhere?")
    assert shown.size == (60, 40) and shown.tobytes() == Image.open(picture).tobytes()
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


def test_a_picture_is_sent_upright(server, tmp_path):
    lying = Image.new("RGB", (30, 20))
    lying.putpixel((0, 0), (255, 0, 0))
    exif = lying.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    lying.save(tmp_path / "lying.png", exif=exif)
    asked(server, ImageRef("lying", tmp_path / "lying.png"))
    (shown,) = parts_of(server.requests[0])
    assert shown.size == (20, 30) and shown.getpixel((19, 0)) == (255, 0, 0)


def test_the_only_model_is_found_and_several_are_named(server):
    assert ServerClient(server.address).model == "tiny"
    server.models = ["one", "two"]
    with pytest.raises(ServerError, match=r"found 2 models \(one, two\); say which with --served_model"):
        ServerClient(server.address)
    server.models = []
    with pytest.raises(ServerError, match="without a model; give --served_model NAME"):
        ServerClient(server.address)


def test_a_server_without_log_probabilities_is_asked_without_them(server):
    server.faults = [(422, message("Unsupported fields in the request: {'logprobs'}"), {})]
    client = ServerClient(server.address, "tiny", timeout_seconds=5.0)
    assert client.ask(["?"], max_tokens=1).text == client.ask(["?"], max_tokens=1).text == "red"
    assert ["logprobs" in one for one in server.requests] == [True, False, False]


@pytest.mark.parametrize("names", [("chat_template_kwargs",), ("logprobs", "chat_template_kwargs")])
def test_a_server_that_cannot_turn_thinking_off_is_asked_without_that(server, names):
    server.faults = [(422, message(f"Unsupported fields in the request: {set(names)}"), {})]
    client = ServerClient(server.address, "tiny", timeout_seconds=5.0)
    client.turn_thinking_off()
    assert client.ask(["?"], max_tokens=1).text == client.ask(["?"], max_tokens=1).text == "red"
    first, *others = server.requests
    assert first["chat_template_kwargs"] == {"enable_thinking": False} and client.thinking_refused
    assert all(not set(names) & set(one) for one in others) and len(others) == 2


def test_nothing_listens_there(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert "connection refused; expected a server that listens there" in refused(server)


def test_too_late(server):
    server.stall = 1.0
    with pytest.raises(ServerError, match=r"no whole answer within 0\.2 s; .*--timeout"):
        ServerClient(server.address, "tiny", timeout_seconds=0.2).ask(["?"], max_tokens=1)


@pytest.mark.parametrize(("status", "key", "words"), [(401, None, "no key"), (403, "s3cret", "not accepted")])
def test_a_key_is_asked_for_and_never_shown(server, status, key, words):
    server.faults = [(status, message("Unauthorized"), {})]
    said = refused(server, key=key)
    assert f"found {status} (Unauthorized)" in said and words in said and "--key_variable NAME" in said
    assert "s3cret" not in said


def test_a_model_that_it_does_not_serve(server):
    server.models = ["tiny-lora", "base"]
    said = refused(server)
    assert "found no model 'tiny'" in said and "it serves tiny-lora, base: --served_model" in said


def test_an_address_without_v1(server):
    server.models, server.address = [], server.address.removesuffix("/v1")
    assert "expected the address that ends in /v1" in refused(server)


def test_too_many_requests_are_waited_for(server, waits):
    server.faults = [(429, b"", {"Retry-After": "3"}), (429, b"", {})]
    assert asked(server).text == "red"
    assert waits == [3.0, 2.0] and len(server.requests) == 3


def test_too_many_requests_for_too_long(server, waits):
    server.faults = [(429, b"", {})] * 5
    assert "429 (too many requests) 5 times, with waits between" in refused(server)
    server.faults = [(429, b"", {"Retry-After": "3600"})]
    assert "Retry-After 3600 s; expected at most 60 s" in refused(server)


@pytest.mark.parametrize("status", [500, 503])
def test_the_server_fails(server, status):
    server.faults = [(status, message("CUDA out of memory"), {})]
    assert f"the server failed ({status}: CUDA out of memory); check its log" in refused(server)


def test_a_redirect_is_not_followed(server):
    with served(StandIn(lambda request: completion("stolen"))) as other:
        for status in (302, 307):
            server.faults = [(status, b"", {"Location": f"{other.address}/chat/completions"})]
            assert f"found a redirect ({status}), which is not followed" in refused(server)
        assert other.requests == []


def test_no_proxy_of_the_environment_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert asked(server).text == "red"


def test_half_an_answer(server):
    server.cut = 30
    assert "found half an answer (30 bytes" in refused(server)


def test_no_answer_at_all(server):
    server.drop = True
    assert "closed the connection without an answer" in refused(server)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"choices": [{"mess', "not valid JSON ({"),
        (b"<html>\n<b>Welcome</b>", "not valid JSON (<html> <b>Welcome</b>)"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "has no choices[0].message.content"),
        (json.dumps({"choices": []}).encode(), "has no choices[0].message.content"),
        (json.dumps({"choices": [{"message": {"content": None}}]}).encode(), "parsing of reasoning or tools"),
    ],
)
def test_broken_answers(server, body, words):
    server.faults = [(200, body, {})]
    assert words in refused(server)


def test_an_endless_answer_is_left(server, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    server.faults = [(200, b" " * 1001, {})]
    assert "more than 1,000 bytes" in refused(server)


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_takes_no_pictures(server, tmp_path, status):
    said = message("tiny is not a multimodal model")
    server.faults = [(status, said, {})] * 2
    picture = ImageRef("disc", write_picture(tmp_path / "disc.png"))
    assert f"accepts no pictures for tiny ({status}: tiny is not a multimodal model)" in refused(
        server, picture
    )
    assert "accepts no pictures" not in refused(server)  # words alone


@pytest.mark.parametrize(
    "tokens",
    [[("red", float("nan"))], [("red", 0.5)], [("red", None)], [(None, -1.0)], [("red", -1.0), (3, -1.0)]],
)
def test_log_probabilities_that_are_none_are_left_out(server, tokens):
    server.answer = lambda request: completion("red", tokens=tokens)
    assert asked(server).tokens == ()


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/v1",
        "http://",
        "http://host:99999/v1",
        "http://me:word@host/v1",
        "http://host/v1?key=1",
        "http://a b",
    ],
)
def test_what_is_no_address(address):
    with pytest.raises(ServerError, match="expected http"):
        checked_address(address)


def test_the_slash_at_the_end_does_not_matter():
    assert checked_address("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000/v1"
