"""Compares a server's answers with the checkpoint's own, one by one, and names the cause of differences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from diagnostics.measures.answers import says
from diagnostics.probing.local_replies import (
    LocalReply,
    local_replies,
    pixels_per_token,
    prompt_closes_thought,
    tokens_of_question,
)
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.probing.server_client import ServedAnswer, ServerClient, ServerError
from diagnostics.records.probes import Probe, groups_of, read_probes
from finetune.families import bare_model, family_of
from finetune.model.checkpoint import check, load
from finetune.samples.images import open_image

Json = dict[str, Any]

VERSION = 1
CONTROL_QUESTION = "Is this read?"
"""Asked without a picture: its token count separates the template from the pictures."""
REFUSES_QUESTIONS = (400, 422, 500)
"""HTTP statuses of a server whose model rejects a prompt without a picture."""
CLOSE_NATS = 0.1
"""A token with a smaller lead can lose it to rounding: in bfloat16 a logit near 20 has steps of 0.125."""
FAR_NATS = 0.1
"""A larger difference in mean log-probability of the same tokens is not rounding."""
MOST_NAMED = 3
_THOUGHT = re.compile(r"</?think>")
_CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|<eos>|<end_of_utterance>")


class ServedPair(NamedTuple):
    """One probe: the checkpoint's answer and the server's."""

    probe: Probe
    local: LocalReply
    served: ServedAnswer

    @property
    def same(self) -> bool:
        """Whether the answers are equal, except for undecodable bytes, which each server writes in its own way."""
        here, there = self.local.text, self.served.text.strip()
        return here == there or (bool(_readable(here)) and _readable(here) == _readable(there))

    @property
    def right_local(self) -> bool:
        return says(self.local.text, self.probe.spellings, self.probe.foil)

    @property
    def right_served(self) -> bool:
        return says(self.served.text, self.probe.spellings, self.probe.foil)

    @property
    def more_tokens(self) -> int | None:
        """How many more tokens the server's prompt has; None if the server does not report it."""
        return (
            None
            if self.served.prompt_tokens is None
            else self.served.prompt_tokens - self.local.prompt_tokens
        )

    @property
    def mean_nats(self) -> tuple[float, float] | None:
        """Mean log p of the common leading tokens: here, at the server; None without any."""
        common = 0
        for ours, theirs in zip(self.local.tokens, self.served.tokens, strict=False):
            if _bare(ours) != _bare(theirs.text):
                break
            common += 1
        if common == 0:
            return None
        theirs_nats = sum(token.nats for token in self.served.tokens[:common])
        return sum(self.local.nats[:common]) / common, theirs_nats / common

    @property
    def lead_where_parted(self) -> float | None:
        """Lead of the checkpoint's token, in nats, where the server's differs; None if the answers agree.

        Of a character of several tokens it is the token with the first byte that differs. Where the number of its
        tokens leaves that open, it is the largest lead in question, which excuses nothing.
        """
        if self.same or not self.local.tokens:
            return None
        texts, leads = self.local.tokens, self.local.leads
        there = self.served.text.strip()
        common = _common_length(self.local.text, there)
        # The tokens may begin with a space that the text does not have.
        parted = common + max("".join(texts).find(self.local.text), 0)
        read = 0
        for place, text in enumerate(texts):
            read += len(text)
            if read > parted:
                if parted > read - len(
                    text
                ):  # not at the first character of the token, which others may begin
                    return leads[place]
                first = place - sum(1 for _ in takewhile(lambda one: not one, reversed(texts[:place])))
                return _lead_of_character(leads[first : place + 1], self.local.text[common:], there[common:])
        return leads[-1]


class Prompt(NamedTuple):
    """Tokens of the control question's prompt; None if a side rejects it, or does not report its length."""

    local: int | None
    served: int | None

    @property
    def more_tokens(self) -> int | None:
        return None if self.local is None or self.served is None else self.served - self.local


class Checkpoint(NamedTuple):
    """Facts about the checkpoint besides its answers.

    controls             texts of its control tokens
    repetition_penalty   of its generation_config.json, which servers apply and the prober does not
    pixels_per_token     of each probe's first picture, after the resize
    closes_thought       whether its prompts end in an empty thought, as the server is asked to end them
    thinking_refused     whether the server rejects requests that turn thinking off
    """

    controls: tuple[str, ...]
    repetition_penalty: float
    pixels_per_token: dict[str, float]
    closes_thought: bool = False
    thinking_refused: bool = False


class Difference(NamedTuple):
    """A difference in words, and the pairs whose other answers it accounts for; () if it is only a possibility."""

    words: str
    explains: Sequence[ServedPair] = ()


def compare_with_server(
    checkpoint: str,
    client: ServerClient,
    probes_file: Path,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
) -> Json:
    """Ask the checkpoint and the server all probes, and compare the answers.

    The control question goes to the server before the checkpoint is loaded, so that a wrong address, key or name fails
    at once.

    Returns:
        The content of served.json.

    Raises:
        ValueError: the checkpoint or the probes cannot be read, or the server fails (``ServerError``).
    """
    check(checkpoint, base=base, allow_other_base=allow_other_base)
    probes = read_probes(probes_file)
    control = _control_tokens(client)
    model, processor = load(checkpoint, base=base, allow_other_base=allow_other_base)
    family = family_of(bare_model(model).config)
    reader = ProbeEncoder(family, processor)
    reader.check(probes, str(probes_file))
    closes_thought = prompt_closes_thought(family, processor, CONTROL_QUESTION)
    if closes_thought:
        client.turn_thinking_off()
        control = _control_tokens(client)
    local = local_replies(model, processor, probes)
    asked = tqdm(probes, desc="asking the server", unit="probe", leave=False)
    served = [_ask(client, reader, probe, local.max_new_tokens) for probe in asked]
    pairs = [ServedPair(*each) for each in zip(probes, local.replies, served, strict=True)]
    known = _known(model, processor, probes)._replace(
        closes_thought=closes_thought, thinking_refused=client.thinking_refused
    )
    prompt = Prompt(tokens_of_question(family, processor, CONTROL_QUESTION), control)
    return {
        "checkpoint": checkpoint,
        "server": client.address,
        "served_model": client.model,
        "max_tokens": local.max_new_tokens,
    } | content_of(pairs, prompt, known)


def _control_tokens(client: ServerClient) -> int | None:
    """Tokens of the control question's prompt at the server; None if it rejects a prompt without a picture."""
    try:
        return client.ask([CONTROL_QUESTION], max_tokens=1).prompt_tokens
    except ServerError as error:
        if error.status in REFUSES_QUESTIONS:
            return None
        raise


def _ask(client: ServerClient, reader: ProbeEncoder, probe: Probe, max_tokens: int) -> ServedAnswer:
    """The server's answer. Raises ServerError naming the probe."""
    try:
        return client.ask(reader.parts_for_a_server(probe), max_tokens=max_tokens)
    except ServerError as error:
        raise ServerError(f"probe {probe.id}: {error}", error.status) from error


def _known(model: Any, processor: Any, probes: Sequence[Probe]) -> Checkpoint:
    config = getattr(bare_model(model), "generation_config", None)  # a model without a language head has none
    penalty = getattr(config, "repetition_penalty", None)
    sizes = {probe.id: open_image(probe.images[0]).size for probe in probes if probe.images}
    tokenizer = processor.tokenizer
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return Checkpoint(
        controls=tuple(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added])),
        repetition_penalty=1.0 if penalty is None else float(penalty),
        pixels_per_token={name: pixels_per_token(model, processor, size) for name, size in sizes.items()},
    )


def content_of(pairs: Sequence[ServedPair], prompt: Prompt, known: Checkpoint) -> Json:
    """The content of served.json: counts by group, each probe, and the differences in words."""
    by_id = {pair.probe.id: pair for pair in pairs}
    groups = {
        name: _counts([by_id[probe.id] for probe in members])
        for name, members in groups_of([pair.probe for pair in pairs]).items()
    }
    return {
        "version": VERSION,
        "all": _counts(pairs),
        "groups": groups,
        "control_prompt_tokens": {"here": prompt.local, "server": prompt.served},
        "differences": list(differences(pairs, prompt, known)),
        "not_compared": list(_not_compared(pairs, prompt)),
        "probes": [_entry(pair) for pair in pairs],
    }


def _counts(pairs: Sequence[ServedPair]) -> Json:
    means = [pair.mean_nats for pair in pairs if pair.mean_nats is not None]
    return {
        "probes": len(pairs),
        "same": sum(pair.same for pair in pairs),
        "right": {
            "here": sum(pair.right_local for pair in pairs),
            "server": sum(pair.right_served for pair in pairs),
        },
        "mean_nats": None
        if not means
        else {
            "probes": len(means),
            "here": sum(here for here, _ in means) / len(means),
            "server": sum(there for _, there in means) / len(means),
        },
    }


def _entry(pair: ServedPair) -> Json:
    means = pair.mean_nats
    return {
        "id": pair.probe.id,
        "group": pair.probe.group,
        "same": pair.same,
        "said": {"here": pair.local.text, "server": pair.served.text},
        "right": {"here": pair.right_local, "server": pair.right_served},
        "prompt_tokens": {"here": pair.local.prompt_tokens, "server": pair.served.prompt_tokens},
        "image_tokens": pair.local.image_tokens,
        "finish_reason": pair.served.finish,
        "mean_nats": None if means is None else {"here": means[0], "server": means[1]},
        "lead_where_parted_nats": pair.lead_where_parted,
    }


def differences(pairs: Sequence[ServedPair], prompt: Prompt, known: Checkpoint) -> Iterator[str]:
    """The differences found, one line each: what, how much, in which probes, and what to do.

    The last names the other answers that no line accounts for.
    """
    seen = [
        *_of_template(pairs, prompt),
        *_of_thinking(pairs, prompt, known),
        *_of_pictures(pairs, prompt, known),
        *_of_endings(pairs, known),
        *_of_scores(pairs),
        *_of_settings(pairs, known),
    ]
    left_out = _left_out(pairs, known)
    seen += _of_controls(pairs, left_out, known)
    seen += _of_rounding(pairs, left_out)
    yield from (one.words for one in seen)
    explained = {pair.probe.id for one in seen for pair in one.explains}
    unexplained = [pair for pair in pairs if not pair.same and pair.probe.id not in explained]
    if unexplained:
        without = "and nothing above accounts for it" if seen else "without a visible cause"
        yield (
            f"unexplained: in {_of(unexplained, pairs)} the answers differ {without}; possible: "
            "other weights or a missing adapter, another prompt of the same length, or sampling: compare the server's "
            "log of the prompt and of its settings"
        )


def _of_controls(
    pairs: Sequence[ServedPair], left_out: Sequence[ServedPair], known: Checkpoint
) -> Iterator[Difference]:
    if left_out:
        tokens = sorted(_controls_in(left_out[0].local.text, known))
        yield Difference(
            f"control tokens: in {_of(left_out, pairs)} the server's answer is the checkpoint's without its control "
            f"tokens ({', '.join(tokens)}); if they are part of an answer, request it with skip_special_tokens off",
            left_out,
        )


def _of_rounding(pairs: Sequence[ServedPair], left_out: Sequence[ServedPair]) -> Iterator[Difference]:
    close = [pair for pair in _close(pairs) if pair not in left_out]
    if close:
        yield Difference(
            f"rounding: in {_of(close, pairs)} the answers diverge where the checkpoint's own token leads by less than "
            f"{CLOSE_NATS} nats; another precision or kernel can cause that",
            close,
        )


def _not_compared(pairs: Sequence[ServedPair], prompt: Prompt) -> Iterator[str]:
    if any(pair.more_tokens is None for pair in pairs):
        yield "template and picture size: the server does not report the tokens of a prompt (usage.prompt_tokens)"
    elif prompt.more_tokens is None:
        yield "the template apart from the pictures: one side rejects a question without a picture"
    if not any(pair.served.tokens for pair in pairs):
        yield "scores: the server returns no log-probabilities"
    elif all(pair.mean_nats is None for pair in pairs):
        yield "scores: no answer starts with the same token here and at the server"


def _of_template(pairs: Sequence[ServedPair], prompt: Prompt) -> Iterator[Difference]:
    if prompt.more_tokens:
        yield Difference(
            f"template: a question without a picture has {prompt.local} tokens here and {prompt.served} at the server; "
            "another chat template or system prompt: serve the checkpoint's own (vLLM, SGLang: --chat-template)",
            pairs,
        )


def _of_thinking(pairs: Sequence[ServedPair], prompt: Prompt, known: Checkpoint) -> Iterator[Difference]:
    """Whether the server may think before its answers, where the checkpoint does not."""
    thinks = [pair for pair in pairs if _THOUGHT.search(pair.served.text) and not pair.same]
    unequal = prompt.more_tokens != 0  # or not known
    if not known.closes_thought or not (thinks or (known.thinking_refused and unequal) or prompt.more_tokens):
        return
    asked = "refuses" if known.thinking_refused else "was sent"
    found = f"; in {_of(thinks, pairs)} its answer holds a thought" if thinks else ""
    yield Difference(
        "thinking: the checkpoint answers without thinking, after an empty thought; the server "
        f'{asked} chat_template_kwargs {{"enable_thinking": false}} and may think before it answers{found}: serve it '
        "with thinking off",
        thinks,
    )


def _of_pictures(pairs: Sequence[ServedPair], prompt: Prompt, known: Checkpoint) -> Iterator[Difference]:
    """Prompts whose length differs by more than the template without pictures."""
    shift = prompt.more_tokens or 0
    off = [(pair, pair.more_tokens - shift) for pair in pairs if pair.more_tokens is not None]
    off = [(pair, more) for pair, more in off if more != 0]
    unread = [pair for pair, more in off if 0 < pair.local.image_tokens <= -more]
    if unread:
        yield Difference(
            f"pictures: in {_of(unread, pairs)} the server's prompt is too short for the picture's tokens, so it "
            "drops the picture: serve the model as a vision-language model, with its own processor",
            unread,
        )
    off = [(pair, more) for pair, more in off if pair not in unread]
    if not off:
        return
    pair, more = off[0]
    constant = len(off) == len(pairs) and len({one for _, one in off}) == 1
    if constant and len({one.local.image_tokens for one in pairs}) > 1:
        yield Difference(
            f"template: every prompt with a picture has {more:+d} tokens at the server, whatever the picture's size, "
            "so it formats pictures differently: serve the checkpoint's own chat template",
            pairs,
        )
        return
    here = pair.local.image_tokens
    size = ""
    if pair.probe.id in known.pixels_per_token and len(pair.probe.images) == 1:
        each = known.pixels_per_token[pair.probe.id]
        size = f" (about {here * each:,.0f} and {(here + more) * each:,.0f} pixels after the resize)"
    is_sure = prompt.more_tokens is not None and not constant
    unsure = "" if is_sure else ", or another template around pictures (indistinguishable here)"
    others = [one for one, _ in off]
    yield Difference(
        f"picture size: in {_of(others, pairs)} the prompts differ; {pair.probe.id} has {here} tokens "
        f"for pictures here and {here + more} at the server{size}: another resize{unsure}; give the server the "
        "checkpoint's min_pixels and max_pixels (vLLM: --mm-processor-kwargs)",
        others,
    )


def _of_endings(pairs: Sequence[ServedPair], known: Checkpoint) -> Iterator[Difference]:
    """Answers that do not end where the checkpoint's do. What differs before that end has another cause."""
    seen = [
        pair for pair in pairs if _controls_in(pair.served.text, known) - _controls_in(pair.local.text, known)
    ]
    if seen:
        tokens = sorted(_controls_in(seen[0].served.text, known))
        yield Difference(
            f"end tokens: in {_of(seen, pairs)} the answer contains control tokens ({', '.join(tokens)}); the server "
            "does not end answers where the checkpoint does: give it generation_config.json and tokenizer of the "
            "checkpoint",
            [pair for pair in seen if _goes_on(pair)],
        )
    cut = [
        pair
        for pair in pairs
        if pair.served.finish == "length" and pair.local.ended and pair not in seen and _goes_on(pair)
    ]
    if cut:
        yield Difference(
            f"end tokens: in {_of(cut, pairs)} the server's answer is the checkpoint's and goes on to the token limit "
            f"({cut[0].probe.id}: {_short(cut[0].served.text)}); eos_token_id of the served generation_config.json is "
            "missing or wrong",
            cut,
        )


def _goes_on(pair: ServedPair) -> bool:
    """Whether the server's answer begins with the checkpoint's whole answer, and has more than the end of its word."""
    here, there = _readable(pair.local.text), _readable(pair.served.text)
    after = there[len(here) :]
    return bool(here and after) and there.startswith(here) and not re.match("[A-Za-z0-9]", after)


def _of_scores(pairs: Sequence[ServedPair]) -> Iterator[Difference]:
    far = [
        (pair, means)
        for pair in pairs
        if (means := pair.mean_nats) is not None and abs(means[0] - means[1]) > FAR_NATS
    ]
    if far:
        pair, (here, there) = max(far, key=lambda one: abs(one[1][0] - one[1][1]))
        others = [one for one, _ in far]
        yield Difference(
            f"scores: in {_of(others, pairs)} the mean log-probabilities of the same tokens differ by "
            f"more than {FAR_NATS} nats, most in {pair.probe.id} ({here:.2f} here, {there:.2f} at the server): other "
            "or quantised weights, a missing adapter, or another prompt",
            others,
        )


def _of_settings(pairs: Sequence[ServedPair], known: Checkpoint) -> Iterator[Difference]:
    other = [pair for pair in pairs if not pair.same]
    if other and known.repetition_penalty != 1.0:
        yield Difference(
            f"generation settings: the checkpoint's generation_config.json has repetition_penalty "
            f"{known.repetition_penalty:g}, which servers apply and the answers here do not; it may be the cause of "
            "other answers: set it to 1 there"
        )


def _left_out(pairs: Sequence[ServedPair], known: Checkpoint) -> list[ServedPair]:
    """Those that differ only in the checkpoint's control tokens."""
    found = []
    for pair in pairs:
        text = pair.local.text
        for token in _controls_in(text, known):
            text = text.replace(token, "")
        if not pair.same and text != pair.local.text and _readable(text) == _readable(pair.served.text):
            found.append(pair)
    return found


def _readable(text: str) -> str:
    return text.replace("\N{REPLACEMENT CHARACTER}", "").strip()


def _close(pairs: Sequence[ServedPair]) -> list[ServedPair]:
    """Those whose first difference rounding can explain."""
    return [pair for pair in pairs if (lead := pair.lead_where_parted) is not None and lead < CLOSE_NATS]


def _controls_in(text: str, known: Checkpoint) -> set[str]:
    return {token for token in known.controls if token in text} | set(_CONTROL_TOKEN.findall(text))


def _of(some: Sequence[ServedPair], pairs: Sequence[ServedPair]) -> str:
    """ "2 of 12 probes (tower-1, tower-4)" """
    more = f" and {len(some) - MOST_NAMED} more" if len(some) > MOST_NAMED else ""
    names = ", ".join(pair.probe.id for pair in some[:MOST_NAMED])
    return f"{len(some)} of {len(pairs)} probes ({names}{more})"


def _short(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")


def _common_length(one: str, other: str) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _lead_of_character(leads: Sequence[float], here: str, there: str) -> float:
    """Lead of the token of the first byte in which two characters differ.

    leads   of the tokens of a character, or of the single token that holds it
    here    begins with the character; "" if the answer ends there
    """
    if len(leads) == 1 or not here:
        return leads[0]
    ours, theirs = here[0].encode(), there[:1].encode()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
    if same == 0 or len(leads) == len(ours):
        return leads[same]
    return max(leads)


def _bare(token: str) -> str:
    """A token's text without a leading space or ▁, which tokenizers write before words."""
    return token.replace("▁", " ").strip() or token
