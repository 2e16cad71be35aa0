"""What differs between a checkpoint and its server is named where it can be seen, and nothing where nothing does."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import diagnostics.comparison.served as module
from diagnostics.compare import main
from diagnostics.comparison.served import Checkpoint, Prompt, ServedPair, content_of
from diagnostics.probing.local_replies import (
    LocalReply,
    local_replies,
    pixels_per_token,
    prompt_closes_thought,
    tokens_of_question,
)
from diagnostics.probing.server_client import ServedAnswer, ServedToken
from diagnostics.records.probes import Probe, write_probes
from finetune.families import family_of
from tests.diagnostics.stand_in_server import StandIn, completion, message, parts_of, served
from tests.diagnostics.tiny_qwen_vl import tiny_probes
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS

KNOWN = Checkpoint(("<|im_end|>",), 1.0, {f"p{index}": 784.0 for index in range(4)})
HERE = LocalReply(
    "a red disc",
    ("a", " red", " disc", "<|im_end|>"),
    (-0.1, -0.3, -0.2, -0.4),
    (4.0, 0.05, 3.0, 2.0),
    30,
    12,
    True,
)
THERE = ServedAnswer(
    "a red disc", "stop", 30, (ServedToken("a", -0.1), ServedToken(" red", -0.3), ServedToken(" disc", -0.2))
)
ALONE = Prompt(14, 14)


def pairs(*answers: ServedAnswer, here: LocalReply = HERE) -> list[ServedPair]:
    return [
        ServedPair(
            Probe(f"p{index}", "discs", (Path("disc.png"),), "what?", "red disc", "blue disc"), here, one
        )
        for index, one in enumerate(answers)
    ]


def found(*answers: ServedAnswer, prompt: Prompt = ALONE, known: Checkpoint = KNOWN) -> list[str]:
    return content_of(pairs(*answers), prompt, known)["differences"]


def test_the_same_answers_differ_in_nothing():
    content = content_of(pairs(THERE, THERE._replace(text=" a red disc\n")), ALONE, KNOWN)
    assert content["differences"] == content["not_compared"] == []
    assert content["all"] == content["groups"]["discs"]
    assert (content["all"]["probes"], content["all"]["same"]) == (2, 2)
    assert content["all"]["right"] == {"here": 2, "server": 2}
    # the means over the three tokens that both have: -(0.1 + 0.3 + 0.2) / 3
    assert content["all"]["mean_nats"] == pytest.approx({"probes": 2, "here": -0.2, "server": -0.2})


def test_counts_of_other_answers():
    content = content_of(pairs(THERE, THERE._replace(text="a blue disc")), ALONE, KNOWN)
    assert content["all"]["same"] == 1 and content["all"]["right"] == {"here": 2, "server": 1}
    first, second = content["probes"]
    assert (first["same"], second["same"]) == (True, False)
    assert second["said"] == {"here": "a red disc", "server": "a blue disc"}


def test_where_answers_part_the_lead_says_whether_rounding_is_enough():
    other = THERE._replace(text="a rod disc")  # parts at the "e" of " red", which leads by 0.05 nats
    assert pairs(other)[0].lead_where_parted == 0.05
    (line,) = found(other)
    assert line.startswith("rounding: in 1 of 1 probes (p0)")
    (line,) = found(THERE, THERE._replace(text="b"))  # parts at "a", which leads by 4
    assert line.startswith("unexplained: in 1 of 2 probes (p1)")
    assert pairs(THERE._replace(text="a red disc and more"))[0].lead_where_parted == 2.0  # at the end


def test_another_template():
    (line,) = found(THERE._replace(prompt_tokens=41), prompt=Prompt(14, 25))
    assert line.startswith("template: a question without a picture has 14 tokens here and 25 at the server")


def test_another_resize():
    (line,) = found(THERE, THERE._replace(prompt_tokens=66))
    assert line.startswith("picture size: in 1 of 2 probes (p1)")
    # 12 tokens of 784 pixels here, 12 + 36 at the server
    assert "p1 has 12 tokens for pictures here and 48 at the server (about 9,408 and 37,632 pixels" in line
    assert "another template" not in line
    (unsure,) = found(THERE, THERE._replace(prompt_tokens=66), prompt=Prompt(14, None))
    assert "or another template around pictures (indistinguishable here)" in unsure
    (constant,) = found(
        THERE._replace(prompt_tokens=29), THERE._replace(prompt_tokens=29)
    )  # pictures of one size
    assert "11 at the server" in constant and "or another template around pictures" in constant


def test_what_a_template_writes_around_pictures_is_no_resize():
    larger = HERE._replace(prompt_tokens=48, image_tokens=30)
    both = [*pairs(THERE._replace(prompt_tokens=32)), *pairs(THERE._replace(prompt_tokens=50), here=larger)]
    both[1] = both[1]._replace(probe=Probe("p1", "discs", (Path("disc.png"),), "what?", "red disc"))
    (line,) = content_of(both, ALONE, KNOWN)["differences"]
    assert line.startswith("template: every prompt with a picture has +2 tokens at the server")


def test_a_picture_that_is_left_out():
    (line,) = found(THERE, THERE._replace(prompt_tokens=16))  # 14 fewer: 12 of the picture, 2 around it
    assert line.startswith("pictures: in 1 of 2 probes (p1)") and "drops the picture" in line


def test_end_tokens():
    seen, cut = (
        THERE._replace(text="a red disc<|im_end|>\n"),
        THERE._replace(text="a red disc a red", finish="length"),
    )
    first, second = found(seen, cut)
    assert "the answer contains control tokens (<|im_end|>)" in first and "(p0)" in first
    assert "goes on to the token limit" in second and "(p1: 'a red disc a red')" in second
    content = content_of(pairs(cut, here=HERE._replace(ended=False)), ALONE, KNOWN)
    (line,) = content["differences"]
    assert line.startswith("unexplained")  # the checkpoint goes on as well


@pytest.mark.parametrize(
    ("text", "finish"),
    [
        ("The building in the picture is the Oriental", "length"),
        ("the tower<|im_end|>", "stop"),
        ("a red discotheque", "length"),
    ],
)
def test_another_answer_is_not_taken_for_one_that_does_not_end(text, finish):
    """A base model without its adapter says more than the checkpoint does, and is cut at the limit."""
    *others, last = found(*[THERE._replace(text=text, finish=finish, tokens=())] * 4)
    assert last.startswith("unexplained: in 4 of 4 probes") and "other weights or a missing adapter" in last
    assert not any("eos_token_id" in line for line in others)


def test_each_other_answer_is_accounted_for_by_itself():
    resized = THERE._replace(text="b", prompt_tokens=66)
    size, unexplained = found(THERE, resized, THERE._replace(text="b"))
    assert size.startswith("picture size: in 1 of 3 probes (p1)")
    assert unexplained.startswith("unexplained: in 1 of 3 probes (p2)")


@pytest.mark.parametrize(
    ("here", "there", "tokens", "leads", "lead"),
    [
        # a tokenizer that keeps the space before the first word
        ("Canton", "Canton Tower", (" C", "an", "ton", "</s>"), (4.0, 3.0, 0.05, 5.0), 5.0),
        ("Canton Tower", "Canton", (" Can", "ton", " Tower", "</s>"), (4.0, 0.05, 3.0, 5.0), 3.0),
        # 塔 is E5 A1 94, 楼 E6 A5 BC and 塕 E5 A1 95: the first byte, and the third
        ("广塔", "广楼", ("广", "", "", "塔", "</s>"), (4.0, 0.02, 6.0, 7.0, 3.0), 0.02),
        ("广塔", "广塕", ("广", "", "", "塔", "</s>"), (4.0, 0.02, 6.0, 7.0, 3.0), 7.0),
        ("广塔", "广楼", ("广", "", "塔", "</s>"), (4.0, 0.02, 6.0, 3.0), 0.02),
        ("广塔", "广塕", ("广", "", "塔", "</s>"), (4.0, 0.02, 6.0, 3.0), 6.0),  # either: the larger
        ("广塔", "广", ("广", "", "", "塔", "</s>"), (4.0, 0.02, 6.0, 7.0, 3.0), 0.02),
    ],
)
def test_the_lead_is_that_of_the_token_in_which_the_answers_part(here, there, tokens, leads, lead):
    local = LocalReply(here, tokens, (-0.1,) * len(tokens), leads, 30, 12, True)
    (pair,) = pairs(THERE._replace(text=there, tokens=()), here=local)
    assert pair.lead_where_parted == lead


def test_thinking_is_named_where_the_checkpoint_answers_without_it():
    closed = KNOWN._replace(closes_thought=True)
    other = THERE._replace(text="The user asks", prompt_tokens=21)
    template, thinking = found(other, prompt=Prompt(49, 40), known=closed)
    assert template.startswith("template: ") and "was sent chat_template_kwargs" in thinking
    assert found(THERE, known=closed) == []
    refused = closed._replace(thinking_refused=True)
    assert "refuses chat_template_kwargs" in found(other, prompt=Prompt(49, 40), known=refused)[1]
    assert found(THERE, known=refused) == []  # its template is closed as it is
    thinks = THERE._replace(text="<think>\nA disc.\n</think>\n\na red disc")
    (line,) = found(THERE, thinks, known=closed)
    assert line.startswith("thinking: ") and "in 1 of 2 probes (p1) its answer holds a thought" in line


def test_what_a_server_thinks_is_neither_right_nor_wrong():
    """Right is what follows; ``said`` keeps all of it."""
    thinks = THERE._replace(text="<think>\nA blue disc? No.\n</think>\n\na red disc")
    cut = THERE._replace(text="<think>\nA red disc, or")
    content = content_of(pairs(THERE, thinks, cut), ALONE, KNOWN)
    assert content["all"]["right"] == {"here": 3, "server": 2}
    assert [one["right"]["server"] for one in content["probes"]] == [True, True, False]
    assert content["probes"][1]["said"]["server"] == thinks.text


def test_control_tokens_that_the_server_leaves_out():
    here = HERE._replace(text="<ref>a red disc</ref><|im_end|>")
    (line,) = content_of(pairs(THERE, here=here), ALONE, KNOWN._replace(controls=("<ref>", "</ref>")))[
        "differences"
    ]
    assert line.startswith("control tokens: in 1 of 1 probes (p0)") and "(</ref>, <ref>, <|im_end|>)" in line


def test_characters_that_are_no_text_are_not_compared():
    here = HERE._replace(text="a\ufffd red\ufffd\ufffd disc")
    assert pairs(THERE, here=here)[0].same
    assert not pairs(THERE._replace(text="\ufffd"), here=HERE._replace(text="\ufffd\ufffd"))[0].same


def test_scores_apart():
    tokens = (ServedToken("a", -0.5), ServedToken(" red", -0.9), ServedToken(" disc", -0.4))
    (line,) = found(THERE, THERE._replace(tokens=tokens))
    assert line.startswith("scores: in 1 of 2 probes (p1)") and "(-0.20 here, -0.60 at the server)" in line


def test_scores_are_of_the_tokens_before_the_answers_part():
    tokens = (ServedToken("▁a", -0.2), ServedToken(" blue", -3.0))
    assert pairs(THERE._replace(tokens=tokens))[0].mean_nats == pytest.approx((-0.1, -0.2))
    assert pairs(THERE._replace(tokens=(ServedToken("the", -1.0),)))[0].mean_nats is None


def test_the_penalty_of_servers_is_named_where_answers_differ():
    penalised = KNOWN._replace(repetition_penalty=1.05)
    penalty, unexplained = found(THERE._replace(text="b"), known=penalised)
    assert "repetition_penalty 1.05" in penalty and "may be the cause" in penalty
    assert unexplained.startswith("unexplained: in 1 of 1 probes (p0)")  # a possibility accounts for nothing
    assert found(THERE, known=penalised) == []


def test_what_a_server_does_not_say_is_not_compared():
    silent = THERE._replace(prompt_tokens=None, tokens=())
    tokens, scores = content_of(pairs(silent), ALONE, KNOWN)["not_compared"]
    assert "usage.prompt_tokens" in tokens and "no log-probabilities" in scores


# ---------------------------------------------------------------- a checkpoint and a server that has the same model


@pytest.fixture(scope="module")
def probes(folder):
    written = tiny_probes(folder, 3)
    write_probes(written, folder / "probes.json")
    return written


@pytest.fixture(scope="module")
def replies(model, processor, probes):
    return local_replies(model, processor, probes)


@pytest.fixture
def opened(model, processor, monkeypatch):
    """The checkpoint "tiny" is the tiny model."""
    monkeypatch.setattr(module, "check", lambda *_, **__: None)
    monkeypatch.setattr(module, "load", lambda *_, **__: (model, processor))


@pytest.fixture
def honest(model, processor, probes, replies):
    """A server that answers as the tiny model does."""
    by_picture = {
        parts_of({"messages": [{"role": "user", "content": [picture_part(probe)]}]})[0].tobytes(): reply
        for probe, reply in zip(probes, replies.replies, strict=True)
    }
    family = family_of(model.config)

    def answer(request):
        shown = [part for part in parts_of(request) if not isinstance(part, str)]
        if not shown:
            (question,) = parts_of(request)
            return completion("?", prompt_tokens=tokens_of_question(family, processor, question))
        assert request["max_tokens"] == replies.max_new_tokens
        reply = by_picture[shown[0].tobytes()]
        tokens = list(zip(reply.tokens, reply.nats, strict=True))
        finish = "stop" if reply.ended else "length"
        return completion(reply.text, finish=finish, prompt_tokens=reply.prompt_tokens, tokens=tokens)

    with served(StandIn(answer)) as server:
        yield server


def picture_part(probe):
    from diagnostics.probing.server_client import data_url
    from finetune.samples.conversation import ImageRef

    return {"type": "image_url", "image_url": {"url": data_url(ImageRef("", probe.images[0]))}}


def arguments(server, folder, output, *more):
    return [
        "--before", "tiny", "--after", server.address, "--probes", str(folder / "probes.json"),
        "--output_dir", str(output), *more,
    ]  # fmt: skip


def test_a_server_of_the_same_model(honest, opened, folder, tmp_path, capsys, replies):
    main(arguments(honest, folder, tmp_path, "--require", "same"))
    content = json.loads((tmp_path / "served" / "served.json").read_text())
    assert content["all"]["same"] == content["all"]["probes"] == 3 and content["differences"] == []
    assert (content["server"], content["served_model"]) == (honest.address, "tiny")
    assert content["control_prompt_tokens"]["here"] == content["control_prompt_tokens"]["server"] > 5
    out = capsys.readouterr().out
    assert "nothing was found" in out and "required: same; met" in out
    assert any(reply.text for reply in replies.replies)
    page = (tmp_path / "served" / "index.html").read_text()
    assert "3 of 3 answers are the same" in page and "http://" not in page.replace(honest.address, "")


def test_a_server_of_another_model(honest, opened, folder, tmp_path, capsys, replies):
    true = honest.answer

    def answer(request):
        said = true(request)
        if len(honest.requests) == 3:  # the second probe, after the control question
            said["choices"][0]["message"]["content"] = "<b>red</b>"
        return said

    honest.answer = answer
    with pytest.raises(SystemExit) as caught:
        main(arguments(honest, folder, tmp_path, "--require", "same"))
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert "not met: 1 answers differ" in said.err
    assert f"disc-1: {replies.replies[1].text!r} | '<b>red</b>'" in said.out
    content = json.loads((tmp_path / "served" / "served.json").read_text())
    assert content["all"]["right"]["server"] == content["all"]["right"]["here"] + 1
    assert "&lt;b&gt;red&lt;/b&gt; (right)" in (tmp_path / "served" / "index.html").read_text()


def test_a_fault_names_the_probe_and_ends_with_2(honest, opened, folder, tmp_path, capsys):
    true = honest.answer
    honest.faults = []

    def answer(request):
        if len(honest.requests) == 2:
            honest.faults = [(500, message("out of memory"), {})]
        return true(request)

    honest.answer = answer
    with pytest.raises(SystemExit) as caught:
        main(arguments(honest, folder, tmp_path))
    assert caught.value.code == 2
    assert "error: probe disc-1: http://127.0.0.1" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--require", "corrected"], "expected 'same'"),
        (["--depth", "full"], "--depth: found --after http"),
        (["--timeout", "0"], "expected seconds above 0"),
        (
            ["--key_variable", "NO_SUCH_VARIABLE"],
            "found no key in the environment variable 'NO_SUCH_VARIABLE'",
        ),
    ],
)
def test_flags_that_a_server_cannot_obey(honest, folder, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments(honest, folder, tmp_path, *more))
    assert caught.value.code == 2 and words in capsys.readouterr().err
    assert honest.requests == []


def test_server_flags_without_a_server(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--before", "x", "--after", "y", "--output_dir", str(tmp_path), "--served_model", "z"])
    assert "expected a server's address" in capsys.readouterr().err


# ---------------------------------------------------------------- the checkpoint's own side


def test_the_nats_of_a_reply_are_those_of_the_prober(model, processor, probes, replies):
    from dataclasses import replace

    from diagnostics.probing.prober import Prober, auto_key_layers
    from diagnostics.records.measurement_plan import WATCH

    at = next(at for at, reply in enumerate(replies.replies) if reply.text)
    reply = replies.replies[at]
    asked = replace(probes[at], answer=reply.text, foil=None, phrases={})
    prober = Prober(model, processor, key_layers=auto_key_layers(model), probes=[asked], depth=WATCH)
    record = prober.run(asked, 0, "tiny")
    assert sum(reply.nats) == pytest.approx(record.scores.answer_nats, abs=1e-3)
    assert len(reply.tokens) == len(reply.nats) == len(reply.leads) and min(reply.leads) >= 0
    assert "".join(reply.tokens).startswith(reply.text) and reply.image_tokens == 9


def test_pixels_of_a_token(model, processor, tmp_path):
    # 24 × 24 pixels after the resize, in 9 queries
    assert pixels_per_token(model, processor, (60, 40)) == 64.0
    tiny = LLAVAS["internvl"]
    own, model = tiny.processor(tmp_path), tiny.model()
    own.image_processor.max_patches = 1  # no tiles: a wide picture is one square
    side = own.image_processor.size["height"]
    tokens = own.image_seq_length
    assert pixels_per_token(model, own, (9 * side, side)) == side * side / tokens


@pytest.mark.parametrize(
    ("families", "name", "closed"), [(HYBRIDS, "qwen3.5", True), (GRIDS, "qwen3-vl", False)]
)
def test_prompts_that_end_in_an_empty_thought(families, name, closed, tmp_path):
    one = families[name]
    assert prompt_closes_thought(one.family, one.processor(tmp_path), "Is this read?") is closed


def test_a_checkpoint_that_answers_without_thinking_asks_the_server_for_that(
    honest, opened, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "prompt_closes_thought", lambda *_: True)
    main(arguments(honest, folder, tmp_path))
    first, *others = honest.requests  # the first goes out before the checkpoint is loaded
    assert "chat_template_kwargs" not in first and len(others) == 4
    assert all(one["chat_template_kwargs"] == {"enable_thinking": False} for one in others)


def test_a_family_that_reads_no_question_alone():
    def encode(*_, **__):
        raise ValueError("expected a picture")

    assert tokens_of_question(SimpleNamespace(encode=encode), None, "?") is None
    assert not prompt_closes_thought(SimpleNamespace(encode=encode), None, "?")


def test_the_random_state_is_left_alone(model, processor, probes):
    state = torch.get_rng_state()
    local_replies(model, processor, probes[:1])
    assert torch.equal(torch.get_rng_state(), state)
