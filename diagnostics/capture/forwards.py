"""Classifies forward passes: which tokens a pass reads, and whether it begins or continues a sequence.

Positions of tokens come from the cache, before the forward writes to it. The numbers of queries and keys do not give
them: a static cache has keys that no token has filled yet, a sliding one has dropped some, and a prompt that follows a
kept prefix has fewer queries than keys, as a step has.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

MEDIA = ("pixel_values", "mm_encoder_outputs")  # what their names begin with: pixel_values_videos, …
EMBEDDED = ("mm_encoder_outputs", "inputs_embeds")
# Stages of ``generate``, by private names: nothing else distinguishes a prompt after a kept prefix from a step.
_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__
_PROMPT = GenerationMixin._prefill.__code__
_BEAMS = GenerationMixin._beam_search.__code__
_ASSISTED = GenerationMixin._assisted_decoding.__code__
_GUIDED = Guidance.get_unconditional_logits.__code__


class Forwards:
    """Follows the forwards of one model: ``begin`` before each, ``end`` after it.

    A forward is a pass over a sequence where its cache is empty, where it brings pictures, where it reads a prompt in
    ``generate``, and where it reads several tokens from another cache than the forward before (a copy is another).
    All else are steps, which go on from the pass, or from the steps before them.

    start       tokens in the cache as the forward began: the place of its first token in the whole sequence
    is_step     the forward that runs, or ran last, is one
    is_alone    a step, but not of the pass before, which was over another sequence
    takes_embeddings  the forward is given embeddings, maybe of pictures that a tower has read before it
    keeps_keys  keys passed to a kernel stay unchanged: not those of static, quantised and offloaded caches
    refused     why this call of ``generate`` leaves no pass that could be shown; "" if it does
    regrouped   why the sequences of the batch are in another order than in the pass; "" if they are not
    """

    def __init__(self) -> None:
        self.start = 0
        self.is_step = self.is_alone = False
        self.keeps_keys, self.takes_embeddings = True, False
        self.refused = self.regrouped = ""
        self._batch = self._tokens = 0
        self._pass_end = self._end = 0
        self._cache: Cache | None = None  # of the forward that runs
        self._followed: ref[Cache] | None = None
        self._keys: ref[Tensor] | None = None

    def begin(self, model: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """``arguments`` and ``options`` as the model's forward is given them.

        Raises ValueError for a cache that does not say how many tokens it holds.
        """
        given = by_name(model, arguments, options) if arguments else options
        batch, self._tokens = _shape(given)
        self._cache = given.get("past_key_values")
        if not isinstance(self._cache, Cache | None):
            raise ValueError(
                f"past_key_values: found {type(self._cache).__name__}, expected a Cache of transformers: the positions "
                "of tokens would be a guess"
            )
        self.start = 0 if self._cache is None else int(self._cache.get_seq_length())
        self.keeps_keys = self._cache is None or (
            isinstance(self._cache, DynamicCache) and not self._cache.offloading
        )
        stage = stage_of_generate()
        self.refused = stage.refusal
        goes_on = self._goes_on()
        self.is_step = (
            self.start > 0
            and not any(value is not None and name.startswith(MEDIA) for name, value in given.items())
            and not stage.is_prompt
            and (goes_on or self._tokens == 1)
        )
        self.is_alone = self.is_step and not goes_on
        self.takes_embeddings = any(given.get(name) is not None for name in EMBEDDED)
        if not self.is_step or self.is_alone:
            self.regrouped = ""
        elif stage.is_beam:
            self.regrouped = "beam search puts the sequences in another order after each step"
        elif batch != self._batch or not self._has_same_keys():
            self.regrouped = "the cache's sequences were repeated, chosen or put in another order"
        self._batch = batch

    def is_pass(self) -> None:
        """Called when the running forward turns out to bring pictures: it is a pass."""
        self.is_step = self.is_alone = False
        self.regrouped = ""

    def end(self, output: Any) -> None:
        """``output`` of the forward; None if it raised."""
        cache = self._cache if output is None else _cache_of(output, self._cache)
        self._followed = None if cache is None or output is None else ref(cache)
        self._keys = _keys(cache)
        self._end = self.start + self._tokens
        if not self.is_step:
            self._pass_end = self._end
        elif self.is_alone:
            self._pass_end = self.start
        self._cache = None  # must not be kept alive

    def after(self, _: nn.Module, output: Any) -> None:
        """``end`` for ``Watch.forward``."""
        self.end(output)

    def _goes_on(self) -> bool:
        """Is this the cache of the previous forward, unchanged or with steps cropped?"""
        if self._cache is None or self._followed is None or self._followed() is not self._cache:
            return False
        return self._pass_end <= self.start <= self._end

    def _has_same_keys(self) -> bool:
        """Re-ordering creates new tensors, and so does cropping."""
        if self.start < self._end or self._keys is None:
            return True
        return _same(_keys(self._cache), self._keys)


def check_is_whole(inputs: Mapping[str, Any], asker: str) -> None:
    """Raises ValueError for inputs that go on from a cache, where one forward must read a whole sequence."""
    if inputs.get("past_key_values") is not None:
        raise ValueError(
            f"{asker}: found past_key_values among the inputs, expected a whole sequence; give all of its tokens, "
            "without a cache"
        )


def by_name(module: nn.Module, arguments: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by parameter name."""
    return dict(inspect.signature(module.forward).bind_partial(*arguments, **options).arguments)


def _shape(given: Mapping[str, Any]) -> tuple[int, int]:
    """(batch, tokens) of a forward; zeros without ids and embeddings, which the forward itself will refuse."""
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    return (0, 0) if tokens is None else (int(tokens.shape[0]), int(tokens.shape[1]))


def _cache_of(output: Any, given: Cache | None) -> Cache | None:
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    return next((value for value in values if isinstance(value, Cache)), given)


def _keys(cache: Cache | None) -> ref[Tensor] | None:
    """The first tensor of keys that a cache holds; None if it stores them in another form."""
    for layer in () if cache is None else cache.layers:
        keys = vars(layer).get("keys")
        if keys is not None and keys.numel():
            return ref(keys)
    return None


def _same(one: ref[Tensor] | None, other: ref[Tensor]) -> bool:
    return one is not None and one() is other()


class Stage(NamedTuple):
    """Where in ``generate`` a forward is called from; all False outside it."""

    is_generate: bool
    is_prompt: bool
    is_beam: bool
    refusal: str


def stage_of_generate() -> Stage:
    codes, chunks = set(), 0
    # Trap: a frame that is kept keeps alive all that its function and its callers hold.
    frame = sys._getframe(1)
    while frame is not None:
        codes.add(frame.f_code)
        if frame.f_code is _PROMPT:
            chunks = len(frame.f_locals.get("input_chunks", ()))
        frame = frame.f_back  # type: ignore[assignment]
    refusal = ""
    if _ASSISTED in codes:
        refusal = (
            "assisted decoding (assistant_model, prompt_lookup_num_tokens) reads drafts together with the prompt and "
            "takes some back"
        )
    elif _GUIDED in codes:
        refusal = "guidance_scale reads a second prompt between the steps of the first"
    elif chunks > 1:
        refusal = f"generate reads the prompt in {chunks} forwards (prefill_chunk_size)"
    return Stage(_GENERATE in codes, _PROMPT in codes, _BEAMS in codes, refusal)
