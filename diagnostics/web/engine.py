"""Serves one model to many sessions: streams replies, each with a trace of its attention."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList

import finetune
from diagnostics.capture.kernel_tap import KernelTap
from diagnostics.measures.sinks import THRESHOLD
from diagnostics.probing.before import adapter_fault
from diagnostics.probing.prober import auto_key_layers
from diagnostics.probing.prompts import padded
from diagnostics.pruning import check_can_drop, keep_image_tokens
from diagnostics.web.memory_check import need, require
from diagnostics.web.reply_capture import ReplyCapture, image_slots
from diagnostics.web.reply_queue import Job, Partial, ReplyQueue
from diagnostics.web.texts import RefusedError
from diagnostics.web.trace import ANSWER, OTHER, QUESTION, SeenImage, Trace
from diagnostics.web.trace_recorder import CONNECTOR
from finetune.families import Encoded, attention_modules, bare_model, copies_of, family_of
from finetune.families.parts.modules import check_measurable, tower_layers
from finetune.families.parts.phrases import token_texts
from finetune.families.parts.processors import differing_settings
from finetune.model.checkpoint import check, load, load_processor, resolve, skeleton
from finetune.model.free_memory import available_bytes
from finetune.qwen_vl.tokenization import QwenVLTokenizer
from finetune.samples.conversation import Conversation, ImageRef, Turn

Mode: TypeAlias = Literal["text", "full", "low"]
EMBEDDED = Path(finetune.__file__).parent / "demo" / "base"
CACHE_BYTES = 512 * 2**20
NO_BASES: Mapping[str, Any] = {}
MAX_NEW_TOKENS = 256
# 512 tokens per picture for tokens of 28 × 28 pixels; a resampler's count is fixed
LOW_PIXELS = 512 * 28 * 28
THUMBNAIL_PIXELS = 768  # the longer side of a picture on the screen
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
CONTROL = "\N{WHITE DIAMOND}"
"""Shown for a control token of the chat format, whose own text (``<|im_start|>``) tells a reader nothing."""
_ANSWER_MARKUP = frozenset(f"<{slash}{name}>" for name in ("ref", "box", "quad") for slash in ("", "/"))


class Keep(NamedTuple):
    """Which image tokens replies are made from; as in ``keep_image_tokens``."""

    share: float
    by: str


class Engine:
    """Answers with one model, one reply at a time, first come, first served.

    mode          "text": replies only; "full": also attention of all language layers, the connector and the tower's
                  last layer; "low": attention of the key layers and the connector, pictures capped in size
    cache_bytes   memory for a session's traces: the rows of one trace take at most half of it, so that two can be
                  compared
    name          the checkpoint's display name; None: the model's own ``name_or_path``
    keep          share of the image tokens to keep; None: all. Only in mode "text", since maps cover whole pictures

    Stores nothing of a conversation: the trace is returned with the reply's last ``Partial``.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        mode: Mode,
        cache_bytes: int = CACHE_BYTES,
        name: str | None = None,
        keep: Keep | None = None,
    ) -> None:
        assert keep is None or mode == "text", "rows of dropped tokens would be shown"
        check_measurable(model)
        self.keep = keep
        self.model = model.eval()
        self.processor = processor
        self.mode = mode
        self.cache_bytes = cache_bytes
        self.name = name or str(bare_model(model).name_or_path)
        self.family = family_of(bare_model(model).config)
        config: Any = bare_model(model).config
        names = [
            name
            for name in attention_modules(model, self.family)
            if self.family.attention_shape(config, name) is not None
        ]
        language = [int(name[6:]) for name in names if name.startswith("layer_")]
        tower = tower_layers(model, self.family)
        key_layers = auto_key_layers(model, self.family)
        low = tuple(layer for layer in key_layers if layer in language)
        self.layers: tuple[int, ...] = {"text": (), "full": tuple(language), "low": low}[mode]
        self.vision_layers: tuple[int, ...] = tuple(tower[-1:]) if mode == "full" else ()
        # |RMSNorm(x)_d| is at most √width, so narrow models cannot have sinks.
        can_have_sinks = config.get_text_config().hidden_size >= THRESHOLD**2
        self.sink_layers = key_layers if can_have_sinks else ()
        self.watched = [f"layer_{layer}" for layer in self.layers]
        self.watched += [f"vision_layer_{layer}" for layer in self.vision_layers]
        self.towers = copies_of(bare_model(model), self.family.paths.vision_layers.rpartition(".")[0])
        self.kernels = KernelTap(self.model, [*self.watched, CONNECTOR], family=self.family)
        self._adapter_is_off = False
        self._bases = NO_BASES
        self._base_processor = processor
        self._queue = ReplyQueue()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        *,
        mode: Mode,
        cpu_only: bool = False,
        cache_bytes: int = CACHE_BYTES,
        bases: Mapping[str, Any] = NO_BASES,
        keep: Keep | None = None,
    ) -> Engine:
        """Load a checkpoint (hub name, model folder or adapter folder; None: the embedded demo), on the GPU if there is
        one and ``cpu_only`` is not set. Mode "low" loads 4-bit language layers on a GPU.

        bases   base of adapters: ``base`` and ``allow_other_base`` of ``finetune.model.checkpoint.load``

        Prints the memory it needs before loading. Raises ValueError, with advice, if it does not fit, and if the model
        cannot drop image tokens.
        """
        path = EMBEDDED if checkpoint is None else checkpoint
        on_gpu = torch.cuda.is_available() and not cpu_only
        device = torch.device("cuda" if on_gpu else "cpu")
        four_bit = mode == "low" and on_gpu
        config = check(path, **bases)
        if keep is not None:
            check_can_drop(skeleton(config), family_of(config), share=keep.share, by=keep.by)
        needed = need(
            config,
            four_bit=four_bit,
            traces_bytes=0 if mode == "text" else cache_bytes / 2,
            on_gpu=on_gpu,
            adapter=resolve(path, base=bases.get("base"))[1],
        )
        found = available_bytes(device)
        print(f"{path}, mode {mode}, {needed}", flush=True)
        require(needed, found, name=str(path), advice=_advice(mode, on_gpu=on_gpu))
        half = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float16
        model, processor = load(
            path,
            device=device,
            quantize=four_bit,
            dtype=half if four_bit else None,
            **bases,
        )
        made = cls(model, processor, mode=mode, cache_bytes=cache_bytes, name=str(path), keep=keep)
        made._bases = bases
        if made.has_adapter:  # which may have been trained with other pixels, or another chat template
            made._base_processor = _base_processor(path, resolve(path, base=bases.get("base"))[0], processor)
        return made

    @property
    def parameters(self) -> int:
        """Number of weights, as its configuration has them: 4-bit ones are stored packed."""
        return sum(one.numel() for one in skeleton(bare_model(self.model).config).parameters())

    @property
    def is_demo(self) -> bool:
        """Whether it is the embedded demo or was tuned from it; no other model has its size."""
        own: Any = bare_model(self.model).config
        demo = AutoConfig.from_pretrained(EMBEDDED)
        return all(
            getattr(own, one, None) == getattr(demo, one) for one in ("hidden_size", "vocab_size", "visual")
        )

    @property
    def has_adapter(self) -> bool:
        """Whether it has an adapter that ``adapter_off`` can turn off, so that what is left is the base: one that
        trains biases leaves them on."""
        is_adapted = not self._adapter_is_off and isinstance(self.model, PeftModel)
        return is_adapted and adapter_fault(self.model) is None

    def adapter_off(self) -> Engine:
        """The base, which reads pictures and questions as its own processor does: the same model with its adapter off,
        shares weights and queue. Raises ValueError without an adapter."""
        if not self.has_adapter:
            raise ValueError(
                f"{self.name}: no adapter to turn off; use an adapter folder as the checkpoint, or the base beside one "
                "that trains biases, which would stay on"
            )
        other = self._beside(self.model, self._base_processor, name=f"{self.name} (adapter off)")
        other._adapter_is_off = True
        return other

    def with_checkpoint(self, checkpoint: str | Path) -> Engine:
        """Another checkpoint beside this one, in the same mode and queue, which loads it between replies. Raises
        ValueError if memory is too small for both. Dropping the returned engine frees it."""
        loaded = self._queue.between(
            lambda: Engine.load(
                checkpoint,
                mode=self.mode,
                cpu_only=self._device.type == "cpu",
                cache_bytes=self.cache_bytes,
                bases=self._bases,
                keep=self.keep,
            )
        )
        other = self._beside(loaded.model, loaded.processor, name=loaded.name)
        other._base_processor = loaded._base_processor
        return other

    def reply(
        self, turns: Sequence[Turn], *, stop: threading.Event, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[Partial]:
        """Stream the answer to the last turn with greedy decoding; each partial has the whole text so far.

        Ends within one token after ``stop`` is set (the last partial has the text so far and its trace) or after the
        iterator is closed. The last partial is ``done``.

        Raises ValueError, with a message for the visitor, for a conversation that cannot be answered.
        """
        if not turns or turns[-1].role != "user":
            found = f"a turn of the {turns[-1].role}" if turns else "no turn"
            raise ValueError(f"conversation: found {found} at its end, expected the user's question")
        job = Job(tuple(turns), stop, max_new_tokens)
        self._queue.submit(job, self._answer)
        try:
            yield from self._queue.stream(job)
        finally:
            job.left.set()
            self._queue.leave(job)

    def rows_that_fit(self, tokens: int) -> int:
        """Number of rows over this many tokens that fit into half of the cache; at least one."""
        shape = self.family.attention_shape(bare_model(self.model).config, f"layer_{self.layers[-1]}")
        assert shape is not None, "a layer without attention has no rows"
        return max(int(self.cache_bytes / 2 / (len(self.layers) * shape.heads * tokens * 2)), 1)

    def _beside(self, model: nn.Module, processor: Any, *, name: str) -> Engine:
        other = Engine(
            model, processor, mode=self.mode, cache_bytes=self.cache_bytes, name=name, keep=self.keep
        )
        other._queue, other._bases = self._queue, self._bases
        return other

    def _answer(self, job: Job) -> None:
        """Run one job in the queue's thread: read, generate, emit the trace."""
        prompt = self._read(job.turns)
        with ExitStack() as stack:
            if self._adapter_is_off:
                adapted: Any = self.model
                stack.enter_context(adapted.disable_adapter())
            capture = stack.enter_context(ReplyCapture(self, prompt.encoded)) if self.layers else None
            reply, text, is_whole = self._generate(prompt.encoded, job)
        if not job.left.is_set():
            trace = self._trace(prompt, reply, capture) if capture is not None and reply else None
            job.emit(Partial(text, True, trace, cut=not is_whole))

    def _read(self, turns: Sequence[Turn]) -> _Prompt:
        """Opens every picture once, for both the model and the screen."""
        pictures: list[Image.Image] = []
        read = [Turn(turn.role, tuple(self._opened(part, pictures) for part in turn.parts)) for turn in turns]
        conversation = Conversation(tuple(read), source="the conversation")
        encoded = self.family.encode(self.processor, conversation, add_generation_prompt=True)
        return _Prompt(encoded, tuple(pictures))

    def _opened(self, part: Any, pictures: list[Image.Image]) -> Any:
        if not isinstance(part, ImageRef):
            return part
        picture: Any = self.family.load_image(part)
        pictures.append(picture)
        most = part.max_pixels
        if self.mode == "low":
            most = LOW_PIXELS if most is None else min(most, LOW_PIXELS)
        return ImageRef(part.written, picture, max_pixels=most)

    def _generate(self, encoded: Encoded, job: Job) -> tuple[list[int], str, bool]:
        """The reply's tokens without the end token, its text, and whether the end token came; emits a partial for each
        token."""
        stops = self.family.stop_token_ids(self.processor)
        length = len(encoded.input_ids)
        config = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True,
            max_new_tokens=self._token_budget(length, job),
            eos_token_id=list(stops), pad_token_id=stops[0],
        )  # fmt: skip
        stream = _Stream(job, self.processor.tokenizer, stops)
        generate: Any = bare_model(self.model).generate
        with torch.no_grad(), self._keeping(encoded):
            generate(
                **padded([encoded], self._device, left=True),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stream]),
            )
        text = reply_text(self.processor.tokenizer, stream.reply).strip()
        return stream.reply, text, stream.is_whole

    def _keeping(self, encoded: Encoded) -> AbstractContextManager[Any]:
        if self.keep is None or not encoded.images:
            return nullcontext()
        return keep_image_tokens(
            self.model, encoded, share=self.keep.share, by=self.keep.by, family=self.family
        )

    def _token_budget(self, length: int, job: Job) -> int:
        """Maximum tokens of the reply within the model's context."""
        config: Any = bare_model(self.model).config
        limit = config.get_text_config().max_position_embeddings
        if length >= limit:
            key = "prompt_long" if len(job.turns) == 1 else "conversation_long"
            raise RefusedError(key, found=f"{length:,}", most=f"{limit:,}")
        return min(job.max_new_tokens, limit - length)

    def _trace(self, prompt: _Prompt, reply: Sequence[int], capture: ReplyCapture) -> Trace:
        encoded = prompt.encoded
        tokens = self._texts(encoded, reply)
        positions, rows = capture.rows(len(tokens))
        return Trace(
            tokens=tokens,
            kinds=tuple(_kinds(encoded, len(reply))),
            layers=self.layers,
            positions=positions,
            rows=rows,
            connector=capture.connector(),
            vision=capture.vision(),
            sinks=capture.sinks(len(tokens)),
            images=tuple(
                SeenImage(where, _thumbnail(picture))
                for where, picture in zip(encoded.images, prompt.pictures, strict=True)
            ),
        )

    def _texts(self, encoded: Encoded, reply: Sequence[int]) -> tuple[str, ...]:
        ids = [*encoded.input_ids.tolist(), *reply]
        tokenizer, slots = self.processor.tokenizer, image_slots(encoded)
        control = control_tokens(tokenizer)
        shown = {at: UNKNOWN for at, token in enumerate(ids) if token >= len(tokenizer)}
        shown |= {at: CONTROL for at, token in enumerate(ids) if token in control}
        texts = token_texts(tokenizer, ids, slots | shown.keys())
        return tuple(text if at in slots else shown.get(at, text) for at, text in enumerate(texts))

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _base_processor(path: str | Path, base: str, own: Any) -> Any:
    """The processor to read with while an adapter is off: the base's, or the adapter's ``own`` where the base has none.
    Prints one line where that is seen."""
    try:
        found = load_processor(base)
    except ValueError as error:
        print(
            f"{path}: with the adapter off, pictures and questions are read as the adapter's processor does, for the "
            f"base has no processor of its own: {error}",
            flush=True,
        )
        return own
    differing = ", ".join(differing_settings(found, own))
    if differing:
        print(
            f"{path}: its processor has other settings than its base's ({differing}); with the adapter off, "
            "pictures and questions are read as the base's does",
            flush=True,
        )
    return found


class _Prompt(NamedTuple):
    encoded: Encoded
    pictures: tuple[Image.Image, ...]


class _Stream(StoppingCriteria):
    """Emits a growing reply, and ends it when its job is over."""

    def __init__(self, job: Job, tokenizer: Any, stops: Sequence[int]) -> None:
        self.reply: list[int] = []
        self.is_whole = False
        self._job, self._tokenizer, self._stops = job, tokenizer, stops

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Bool[Tensor, " batch"]:
        token = int(input_ids[0, -1])
        self.is_whole = token in self._stops
        if not self.is_whole:
            self.reply.append(token)
            text = reply_text(self._tokenizer, self.reply)
            self._job.emit(Partial(text.rstrip(UNKNOWN).lstrip(), False, None))
        return torch.tensor([self._job.is_over], device=input_ids.device)


def control_tokens(tokenizer: Any) -> Mapping[int, str]:
    """Id → text of the tokens that steer the model and are no text: ``<|im_start|>``, ``</s>``, ``<image>``, …"""
    return _control_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any, size: int) -> Mapping[int, str]:
    """size   of the vocabulary: tokens may be added later"""
    found = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in tokenizer.all_special_ids}
    found |= {
        token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    if isinstance(tokenizer, QwenVLTokenizer):  # its control tokens are part of its vocabulary
        found |= {token: text for text, token in tokenizer.special_tokens.items()}
    return found


def reply_text(tokenizer: Any, reply: Sequence[int]) -> str:
    """The text of a reply without control tokens, apart from the markup of boxes, which the chat draws.

    Qwen-VL has more embeddings (151,936) than tokens (151,860), so a broken model can choose an id without text: it
    becomes U+FFFD, as does a character that is still incomplete.
    """
    hidden = {token for token, text in control_tokens(tokenizer).items() if text not in _ANSWER_MARKUP}
    runs = groupby(
        (token for token in reply if token not in hidden), key=lambda token: token < len(tokenizer)
    )
    return "".join(str(tokenizer.decode(list(run))) if is_known else UNKNOWN for is_known, run in runs)


def _kinds(encoded: Encoded, reply_tokens: int) -> Iterator[str]:
    """The kind of each token of prompt and answer; the question is the last turn's text after its pictures."""
    slots = {
        int(position): image for image, where in enumerate(encoded.images) for position in where.all_positions
    }
    start, end = encoded.turn_spans[-1]
    after_images = max([start, *(at + 1 for at in slots if start <= at < end)])
    for at in range(len(encoded.input_ids)):
        if at in slots:
            yield f"image {slots[at]}"
        else:
            yield QUESTION if after_images <= at < end else OTHER
    yield from [ANSWER] * reply_tokens


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return small


def _advice(mode: Mode, *, on_gpu: bool) -> list[str]:
    """Ways to save memory, the least costly first."""
    advice = []
    if mode == "full":
        advice.append("--low-memory" + (" (4-bit language layers)" if on_gpu else " (keeps less attention)"))
    if on_gpu:
        advice.append("--cpu-only, if the machine has more memory than its GPU (slow)")
    return [*advice, "a smaller checkpoint"]
