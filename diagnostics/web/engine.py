"""One model that many people ask: replies that stream, and what each of them looked at."""

from __future__ import annotations

import atexit
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import isqrt
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

import finetune
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.capture.kernel_tap import KernelTap
from diagnostics.capture.watch import Watch
from diagnostics.measures.sinks import THRESHOLD, sink_dimensions, sink_tokens
from diagnostics.probing.prober import auto_key_layers
from diagnostics.probing.prompts import padded, token_texts
from diagnostics.web.memory_check import available_bytes, need, require
from diagnostics.web.texts import RefusedError
from diagnostics.web.trace import ANSWER, OTHER, QUESTION, SeenImage, Trace
from diagnostics.web.trace_recorder import CONNECTOR, TraceRecorder
from finetune.families import Encoded, ImageTokens, attention_modules, bare_model, copies_of, family_of
from finetune.families.base import TowerSequence
from finetune.families.parts.tower import joined, laid_out
from finetune.model.checkpoint import check, load, resolve
from finetune.samples.conversation import Conversation, ImageRef, Turn

Mode: TypeAlias = Literal["text", "full", "low"]
EMBEDDED = Path(finetune.__file__).parent / "demo" / "base"
CACHE_BYTES = 512 * 2**20
NO_BASES: Mapping[str, Any] = {}
MAX_NEW_TOKENS = 256
LOW_PIXELS = (
    512 * 28 * 28
)  # 512 tokens a picture where a token is 28 × 28 pixels; a resampler's count is fixed
THUMBNAIL_PIXELS = 768  # the longer side of a picture on the screen
POLL_SECONDS = 0.1
CLOSING_SECONDS = 5.0
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Partial(NamedTuple):
    """A reply so far.

    text      all of it so far
    done      nothing follows
    look      what it looked at, with the last partial; None in mode "text", and for a reply without tokens
    waiting   how many replies to others come first, while it waits for its turn (the text is "" then)
    """

    text: str
    done: bool
    trace: Trace | None
    waiting: int = 0


class Engine:
    """Answers with one model, one reply at a time, in the order of asking.

    mode          "text": replies alone; "full": with the attention of all language layers, connector and the
                  tower's last layer; "low": of the key layers and the connector, from pictures capped in size
    cache_bytes   memory of a session's looks: the rows of one look take at most half of it (before and after fit
                  together)
    name          what people call the checkpoint; None: as the model says

    Nothing of a conversation stays here: what was seen goes out with the reply's last ``Partial``.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        mode: Mode,
        cache_bytes: int = CACHE_BYTES,
        name: str | None = None,
    ) -> None:
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
        tower = [int(name[13:]) for name in names if name.startswith("vision_layer_")]
        key_layers = auto_key_layers(model, self.family)
        low = tuple(layer for layer in key_layers if layer in language)
        self.layers: tuple[int, ...] = {"text": (), "full": tuple(language), "low": low}[mode]
        self.vision_layers: tuple[int, ...] = tuple(tower[-1:]) if mode == "full" else ()
        # |RMSNorm(x)_d| is at most √width, so narrow models have no sinks to look for.
        can_have_sinks = config.get_text_config().hidden_size >= THRESHOLD**2
        self.sink_layers = key_layers if can_have_sinks else ()
        self.watched = [f"layer_{layer}" for layer in self.layers]
        self.watched += [f"vision_layer_{layer}" for layer in self.vision_layers]
        self.towers = copies_of(bare_model(model), self.family.paths.vision_layers.rpartition(".")[0])
        self.kernels = KernelTap(self.model, [*self.watched, CONNECTOR], family=self.family)
        self._adapter_is_off = False
        self._bases = NO_BASES
        self._queue = _ReplyQueue()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        *,
        mode: Mode,
        cpu_only: bool = False,
        cache_bytes: int = CACHE_BYTES,
        bases: Mapping[str, Any] = NO_BASES,
    ) -> Engine:
        """Open a checkpoint (hub name, model folder or adapter folder; None: the embedded demo) on the GPU, if there
        is one and ``cpu_only`` does not forbid it. Mode "low" loads 4-bit language layers on a GPU.

        bases   where adapters find theirs: ``base`` and ``allow_other_base`` of ``finetune.model.checkpoint.load``

        Says what memory it needs before it loads. Raises ValueError, with advice, where that is not there.
        """
        path = EMBEDDED if checkpoint is None else checkpoint
        on_gpu = torch.cuda.is_available() and not cpu_only
        device = torch.device("cuda" if on_gpu else "cpu")
        four_bit = mode == "low" and on_gpu
        needed = need(
            check(path, **bases),
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
        made = cls(model, processor, mode=mode, cache_bytes=cache_bytes, name=str(path))
        made._bases = bases
        return made

    @property
    def has_adapter(self) -> bool:
        """Can its adapter be turned off (``adapter_off``)?"""
        return not self._adapter_is_off and isinstance(self.model, PeftModel)

    def adapter_off(self) -> Engine:
        """The same model without its adapter: same weights in memory, same queue. Raises ValueError without one."""
        if not self.has_adapter:
            raise ValueError(
                f"{self.name}: has no adapter to turn off; give an adapter folder as the checkpoint"
            )
        other = self._beside(self.model, self.processor, name=f"{self.name} (adapter off)")
        other._adapter_is_off = True
        return other

    def with_checkpoint(self, checkpoint: str | Path) -> Engine:
        """Another checkpoint beside this one, in the same mode and queue. Raises ValueError where there is no memory
        for both; drop the engine to free it."""
        loaded = Engine.load(
            checkpoint,
            mode=self.mode,
            cpu_only=self._device.type == "cpu",
            cache_bytes=self.cache_bytes,
            bases=self._bases,
        )
        return self._beside(loaded.model, loaded.processor, name=loaded.name)

    def reply(
        self, turns: Sequence[Turn], *, stop: threading.Event, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[Partial]:
        """The answer to the last turn, as it is written: greedy, each partial with all the text so far.

        Ends within one token of ``stop`` being set (the last partial has what was written until then, and its look)
        or of the iterator being closed. The last partial is ``done``.

        Raises ValueError, in words, for a conversation that cannot be answered.
        """
        if not turns or turns[-1].role != "user":
            found = f"a turn of the {turns[-1].role}" if turns else "no turn"
            raise ValueError(f"conversation: found {found} at its end, expected the user's question")
        job = _Job(tuple(turns), stop, max_new_tokens)
        self._queue.enter(job, self._answer)
        try:
            yield from self._queue.told(job)
        finally:
            job.left.set()
            self._queue.leave(job)

    def rows_that_fit(self, tokens: int) -> int:
        """How many rows, over so many tokens, half of the cache can take; at least one."""
        shape = self.family.attention_shape(bare_model(self.model).config, f"layer_{self.layers[-1]}")
        assert shape is not None, "a layer without attention has no rows"
        return max(int(self.cache_bytes / 2 / (len(self.layers) * shape.heads * tokens * 2)), 1)

    def _beside(self, model: nn.Module, processor: Any, *, name: str) -> Engine:
        other = Engine(model, processor, mode=self.mode, cache_bytes=self.cache_bytes, name=name)
        other._queue = self._queue
        return other

    def _answer(self, job: _Job) -> None:
        """In the thread of the line: read, generate, and tell what was seen."""
        prompt = self._read(job.turns)
        with ExitStack() as stack:
            if self._adapter_is_off:
                adapted: Any = self.model
                stack.enter_context(adapted.disable_adapter())
            watch = stack.enter_context(_Watch(self, prompt.encoded)) if self.layers else None
            said, text = self._generate(prompt.encoded, job)
        if not job.left.is_set():
            trace = self._trace(prompt, said, watch) if watch is not None and said else None
            job.tell(Partial(text, True, trace))

    def _read(self, turns: Sequence[Turn]) -> _Prompt:
        """Every picture is opened once, for the model and for the screen."""
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

    def _generate(self, encoded: Encoded, job: _Job) -> tuple[list[int], str]:
        """Greedy: the reply's tokens without the one that ends it, and its text. Tells each token."""
        stops = self.family.stop_token_ids(self.processor)
        length = len(encoded.input_ids)
        config = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True,
            max_new_tokens=self._token_budget(length, job),
            eos_token_id=list(stops), pad_token_id=stops[0],
        )  # fmt: skip
        stream = _Stream(job, self.processor.tokenizer, length, stops)
        generate: Any = bare_model(self.model).generate
        with torch.no_grad():
            generate(
                **padded([encoded], self._device, left=True),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stream]),
            )
        return stream.said, reply_text(self.processor.tokenizer, stream.said).strip()

    def _token_budget(self, length: int, job: _Job) -> int:
        """Tokens that the reply may have, so that the conversation stays within what the model can read."""
        config: Any = bare_model(self.model).config
        limit = config.get_text_config().max_position_embeddings
        if length >= limit:
            key = "prompt_long" if len(job.turns) == 1 else "conversation_long"
            raise RefusedError(key, found=f"{length:,}", most=f"{limit:,}")
        return min(job.max_new_tokens, limit - length)

    def _trace(self, prompt: _Prompt, said: Sequence[int], watch: _Watch) -> Trace:
        encoded = prompt.encoded
        tokens = self._texts(encoded, said)
        positions, rows = watch.rows(len(tokens))
        return Trace(
            tokens=tokens,
            kinds=tuple(_kinds(encoded, len(said))),
            layers=self.layers,
            positions=positions,
            rows=rows,
            connector=watch.connector(),
            vision=watch.vision(),
            sinks=watch.sinks(len(tokens)),
            images=tuple(
                SeenImage(where, _thumbnail(picture))
                for where, picture in zip(encoded.images, prompt.pictures, strict=True)
            ),
        )

    def _texts(self, encoded: Encoded, said: Sequence[int]) -> tuple[str, ...]:
        ids = [*encoded.input_ids.tolist(), *said]
        slots = _image_slots(encoded)
        unknown = {at for at, token in enumerate(ids) if token >= len(self.processor.tokenizer)} - slots
        texts = token_texts(self.processor.tokenizer, ids, slots | unknown)
        return tuple(UNKNOWN if at in unknown else text for at, text in enumerate(texts))

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class _Prompt(NamedTuple):
    encoded: Encoded
    pictures: tuple[Image.Image, ...]


@dataclass(eq=False)
class _Job:
    """One reply that was asked for: ``stop`` ends it, ``left`` says that nobody listens any more."""

    turns: tuple[Turn, ...]
    stop: threading.Event
    max_new_tokens: int
    left: threading.Event = field(default_factory=threading.Event)
    news: SimpleQueue[Partial | BaseException] = field(default_factory=SimpleQueue)

    @property
    def is_over(self) -> bool:
        return self.stop.is_set() or self.left.is_set()

    def tell(self, news: Partial | BaseException) -> None:
        self.news.put(news)


class _ReplyQueue:
    """Jobs one after another, first come, first served, in a thread of their own.

    A listener who goes away without a word holds nobody up: the thread does not wait for listeners. At the end of the
    process it is told to end, within a token: a daemon that is cut off inside torch aborts the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[_Job] = []
        self._work: SimpleQueue[tuple[_Job, Callable[[_Job], None]]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def enter(self, job: _Job, work: Callable[[_Job], None]) -> None:
        with self._lock:
            self._jobs.append(job)
            self._work.put((job, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="reply", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self) -> None:
        """End the job at hand and the thread; those that wait are not served any more."""
        self._closed.set()
        with self._lock:
            for job in self._jobs:
                job.left.set()
                job.tell(Partial("", True, None))
        if self._thread is not None:
            nothing = _Job((), threading.Event(), 0)
            self._work.put((nothing, lambda _: None))  # wakes it where it waits
            self._thread.join(CLOSING_SECONDS)
        atexit.unregister(self.close)

    def _serve(self) -> None:
        while not self._closed.is_set():
            self._run(*self._work.get())  # in no variable here: nothing of a job stays while the thread waits

    def leave(self, job: _Job) -> None:
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)

    def ahead(self, job: _Job) -> int:
        """How many come before, the one that is being served included."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def told(self, job: _Job) -> Iterator[Partial]:
        """What is told of a job, until it is done; while it waits, its place whenever that changes."""
        waiting = 0
        while True:
            try:
                news = job.news.get(timeout=POLL_SECONDS)
            except Empty:
                ahead = self.ahead(job)
                if ahead and job.stop.is_set():
                    yield Partial("", True, None)
                    return
                if ahead not in (0, waiting):
                    waiting = ahead
                    yield Partial("", False, None, waiting)
                continue
            if isinstance(news, BaseException):
                raise news
            yield news
            if news.done:
                return

    def _run(self, job: _Job, work: Callable[[_Job], None]) -> None:
        try:
            if job.is_over:
                job.tell(Partial("", True, None))
            else:
                work(job)
        except BaseException as error:  # whatever it is, the one who asked is told, and the next is served
            job.tell(_in_words(error))
        finally:
            self.leave(job)


class _Stream(StoppingCriteria):
    """Tells each token of a reply as it is chosen, and ends the reply when nobody wants more of it."""

    def __init__(self, job: _Job, tokenizer: Any, start: int, stops: Sequence[int]) -> None:
        self.said: list[int] = []
        self._job, self._tokenizer, self._start, self._stops = job, tokenizer, start, stops

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Bool[Tensor, " batch"]:
        token = int(input_ids[0, -1])
        if token not in self._stops:
            self.said.append(token)
            text = reply_text(self._tokenizer, self.said)
            self._job.tell(Partial(text.rstrip(UNKNOWN).lstrip(), False, None))
        return torch.tensor([self._job.is_over], device=input_ids.device)


class _Watch:
    """What one reply's generation looked at; attached to the model while the ``with`` block lasts."""

    def __init__(self, engine: Engine, encoded: Encoded) -> None:
        self._engine = engine
        self._encoded = encoded
        self._rows = TraceRecorder(engine.watched, partial(_text_positions, engine, encoded))
        self._tower_called: tuple[nn.Module, Any, dict[str, Any]] | None = None
        self._states: HiddenStates | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Watch:
        engine, enter = self._engine, self._stack.enter_context
        enter(engine.kernels.tapped(self._rows))
        if engine.sink_layers:  # being told of a layer costs something in every forward
            self._states = enter(HiddenStates(engine.model, engine.sink_layers, family=engine.family))
        if engine.vision_layers:
            watch = Watch(self, bare_model(engine.model))
            self._stack.callback(watch.close)
            for tower in engine.towers:
                watch.forward(tower, before=self._keep_tower_inputs)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keep_tower_inputs(self, tower: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        self._tower_called = tower, arguments, options  # read when the reply has been told

    def rows(self, tokens: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Int[queries] and layer → Float16[heads, queries, tokens]: as many of the last rows as fit the budget."""
        most = self._engine.rows_that_fit(tokens)
        found = {}
        for layer in self._engine.layers:
            rows = self._rows.rows(f"layer_{layer}", most).numpy()
            if (
                unread := tokens - rows.shape[2]
            ):  # the last token of a reply that was cut off: nothing looks at it
                rows = np.pad(rows, ((0, 0), (0, 0), (0, unread)))
            found[layer] = rows
        return self._rows.positions[-most:], found

    def connector(self) -> tuple[np.ndarray, ...]:
        """For each image Float16[heads, queries, patches]; none where the connector does not attend."""
        return tuple(rows.numpy() for rows in self._rows.connector())

    def vision(self) -> dict[int, tuple[np.ndarray, ...]]:
        """Layer of the tower → for each image Float16[heads, patches, patches]; without layers that did not run, and
        where patches are not whole parts of cells, or their rows take more than half of the cache."""
        if self._tower_called is None:
            return {}
        tower, arguments, options = self._tower_called
        engine, images = self._engine, self._encoded.images
        config = bare_model(engine.model).config
        inputs = dict(inspect.signature(tower.forward).bind_partial(*arguments, **options).arguments)
        inputs["tiles"] = [image.tiles for image in images]
        usual = [engine.family.image_arithmetic(config, one.image_size_pixels).patches for one in images]
        found = {}
        for layer in engine.vision_layers:
            name = f"vision_layer_{layer}"
            sequences = engine.family.tower_sequences(config, layer, inputs)
            if sequences is not None and self._bytes(name, sequences) > engine.cache_bytes / 2:
                continue
            rows = self._rows.tower(name, sequences)
            if len(rows) == len(images) and all(map(_divides, images, (one.shape[1] for one in rows), usual)):
                found[layer] = tuple(one.numpy() for one in rows)
        return found

    def _bytes(self, name: str, sequences: Sequence[TowerSequence]) -> int:
        """Memory that a layer's rows over all patches of each picture take: most of it zeros, of a picture in tiles."""
        engine = self._engine
        shape = engine.family.attention_shape(bare_model(engine.model).config, name)
        assert shape is not None, "a layer without attention has no rows"
        every = joined([one for one in sequences if not one.is_overview])
        patches = np.bincount(every.image[every.patch >= 0])
        return 2 * shape.heads * int((patches**2).sum())

    def sinks(self, tokens: int) -> Bool[np.ndarray, "layers tokens"]:
        """A layer's sinks are looked for in key layers; others go by the nearest below, since a sink, once there,
        stays."""
        found = np.zeros((len(self._engine.layers), tokens), bool)
        if self._states is None:
            return found
        states = [one[0] for one in self._states.hidden_states.values()]
        marked = np.stack([sink_tokens(one, sink_dimensions(one)) for one in states])
        nearest = np.searchsorted(self._engine.sink_layers, self._engine.layers, side="right") - 1
        found[:, : marked.shape[1]] = marked[np.maximum(nearest, 0)]
        return found


def reply_text(tokenizer: Any, said: Sequence[int]) -> str:
    """The text of a reply. Embeddings outnumber tokens (151,936 for 151,860 in Qwen-VL), so a model gone astray can
    say what no token spells: that reads as U+FFFD, as does a character that is not complete yet."""
    runs = groupby(said, key=lambda token: token < len(tokenizer))
    return "".join(str(tokenizer.decode(list(run))) if is_known else UNKNOWN for is_known, run in runs)


def _divides(image: ImageTokens, patches: int, usual: tuple[int, int]) -> bool:
    """Are a cell's patches a square of 1, 4, 9, …? Not where margins have patches, but no cells: 24 × 24 of a picture
    padded to a square, over 6 × 24 cells, would pass for 2 × 2 in each.

    usual   (rows, columns) of patches by the configuration: the tower's own, where they are as many
    """
    cells = image.grid[0] * image.grid[1]
    rows, columns = usual
    if image.tiles is not None:
        down, across = laid_out(image.tiles)
        side = isqrt(patches // (down * across))  # of a tile, in patches
        rows, columns = down * side, across * side
    if rows * columns == patches and rows * image.grid[1] != columns * image.grid[0]:
        return False
    return patches % cells == 0 and isqrt(patches // cells) ** 2 == patches // cells


def _kinds(encoded: Encoded, said: int) -> Iterator[str]:
    """Of each token of the prompt, then of the answer; the question is the last turn's text after its pictures."""
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
    yield from [ANSWER] * said


def _image_slots(encoded: Encoded) -> set[int]:
    return {int(position) for image in encoded.images for position in image.all_positions}


def _text_positions(engine: Engine, encoded: Encoded) -> list[int]:
    """The prompt's text, as much of its end as fits."""
    slots, tokens = _image_slots(encoded), len(encoded.input_ids)
    return [at for at in range(tokens) if at not in slots][-engine.rows_that_fit(tokens) :]


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return small


def _in_words(error: BaseException) -> BaseException:
    """Memory that ran out, in words; other errors are in words already, or faults that must be seen as they are."""
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return error
    told = RefusedError("no_memory")
    told.__cause__ = error
    return told


def _advice(mode: Mode, *, on_gpu: bool) -> list[str]:
    """What takes less memory, cheapest first."""
    advice = []
    if mode == "full":
        advice.append(
            "--low-memory" + (" (4-bit language layers)" if on_gpu else " (less attention is kept)")
        )
    if on_gpu:
        advice.append("--cpu-only, where the machine has more memory than its GPU (slow)")
    return [*advice, "a smaller checkpoint"]
