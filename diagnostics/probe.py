"""One model, one probe: encode → capture → geometry → metrics → record. Monitor, comparison and web page use
this."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig

from diagnostics.capture import AttentionExtractor, self_check
from diagnostics.causal import KNOCKOUT, OCCLUSION, blocked_patches, blocked_tokens, occlude, region_cells
from diagnostics.geometry import Box, cells_from_row, region_coverage
from diagnostics.metrics import random_regions, region_mass, visual_share
from diagnostics.probes import Probe
from diagnostics.records import AttentionRecord, Intervention, Query, Scores
from finetune.conversation import Conversation, ImageRef, Turn
from finetune.families import Encoded, Family, ImageTokens, bare_model, family_of

CONTROLS = 2  # random regions set against each region; averaged over a group's probes
MAX_NEW_TOKENS = 16
BATCH_SIZE = 16
IMAGE_TOKEN_TEXT = "<image>"
MAX_BYTES_OF_A_CHARACTER = 4  # UTF-8


def auto_key_layers(model: nn.Module, family: Family | None = None) -> tuple[int, ...]:
    """Four language layers, evenly spaced, the last among them: of 32 they are 8, 16, 24, 31; of 4, 1, 2, 3."""
    bare = bare_model(model)
    paths = (family or family_of(bare.config)).paths
    count = sum(1 for _ in bare.get_submodule(paths.language_layers).children())
    return tuple(sorted({min(round(quarter * count / 4), count - 1) for quarter in (1, 2, 3, 4)}))


def user_parts(probe: Probe, images: Sequence[Any] | None = None) -> tuple[str | ImageRef, ...]:
    """A probe's prompt as Qwen-VL's data writes it: ``Picture 1: `` image ``\\n`` question, images numbered
    from 1.

    ``images`` are pictures in place of the probe's files (occluded ones), in the same order.
    """
    parts: list[str | ImageRef] = []
    text = ""
    for number, path in enumerate(probe.images, start=1):
        source = path if images is None else images[number - 1]
        parts += [f"{text}Picture {number}: ", ImageRef(path.name, source)]
        text = "\n"
    return (*parts, text + probe.question)


class Prober:
    """Puts probes to one model and measures where it looks and what it needs.

    key_layers   language layers whose rows are kept (region mass and visual share are measured in all)
    generate     let the model answer in its own words too
    occlusion, knockout   take the probe's region away from the picture, or from attention, and measure the
                          margin again
    controls     the same with so many area-matched random regions
    batch_size   sequences in one forward
    autocast     the precision of a training that mixes them (bf16 or fp16 over fp32 weights); None: the weights'

    The model's state is restored after each run (``observing``). Raises ValueError naming the probe where an
    answer or a phrase cannot be placed in the tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        key_layers: Sequence[int],
        probes: Sequence[Probe],
        generate: bool = True,
        occlusion: bool = True,
        knockout: bool = True,
        controls: int = CONTROLS,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = BATCH_SIZE,
        autocast: torch.dtype | None = None,
        family: Family | None = None,
    ) -> None:
        self.model = bare_model(model)
        self.processor = processor
        self.family = family or family_of(self.model.config)
        self.key_layers = tuple(key_layers)
        self.probes = tuple(probes)
        self.generate = generate
        self.kinds = tuple(kind for kind, on in ((OCCLUSION, occlusion), (KNOCKOUT, knockout)) if on)
        self.controls = controls
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.autocast = autocast

    def run(self, probe: Probe, step: int, model_name: str) -> AttentionRecord:
        """One probe → its record."""
        [record] = self.run_all(step, model_name, probes=[probe])
        return record

    def run_all(
        self, step: int, model_name: str, *, probes: Sequence[Probe] | None = None, progress: bool = False
    ) -> list[AttentionRecord]:
        """Every probe (or those given) → records, in order; each with its foil in one batch with others."""
        chosen = self.probes if probes is None else tuple(probes)
        size = max(self.batch_size // 2, 1)
        records: list[AttentionRecord] = []
        bar = tqdm(
            total=len(chosen), desc=f"probing step {step}", unit="probe", disable=not progress, leave=False
        )
        with bar, self._looking(), AttentionExtractor(self.model, family=self.family) as extractor:
            for start in range(0, len(chosen), size):
                asked = [self._ask(probe) for probe in chosen[start : start + size]]
                with extractor.paused():
                    replies = self._generate([one.answer for one in asked])
                seen = self._observe(extractor, asked)
                for one, reply, what in zip(asked, replies, seen, strict=True):
                    with extractor.paused():
                        interventions = list(self._intervene(extractor, one))
                    records.append(self._record(one, what, reply, interventions, step, model_name))
                    bar.update()
        return records

    def self_check(self) -> None:
        """Prove capture on the first probe, in the key layers and the connector. Raises ValueError if it
        fails."""
        probe = self.probes[0]
        with self._looking():
            inputs = padded([self._encode(probe, probe.answer)], self._device, left=False)
            self_check(self.model, inputs, key_layers=self.key_layers, family=self.family)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        is_mixed = self.autocast is not None
        mixed = torch.autocast(self._device.type, dtype=self.autocast, enabled=is_mixed)
        with observing(self.model), mixed:
            yield

    def _ask(self, probe: Probe) -> _Asked:
        answer = self._encode(probe, probe.answer)
        foil = None if probe.foil is None else self._encode(probe, probe.foil, like=answer)
        slots = {int(position) for image in answer.images for position in image.positions}
        tokens = token_texts(self.processor.tokenizer, answer.input_ids.tolist(), slots)
        return _Asked(probe, answer, foil, tuple(tokens), tuple(_queries(probe, answer, foil, tokens)))

    def _record(
        self,
        asked: _Asked,
        seen: _Seen,
        reply: str,
        interventions: Iterable[Intervention],
        step: int,
        model_name: str,
    ) -> AttentionRecord:
        probe, images = asked.probe, asked.answer.images
        answer_rows = seen.rows[:, :, 0]
        return AttentionRecord(
            probe_id=probe.id,
            group=probe.group,
            step=step,
            model=model_name,
            tokens=asked.tokens,
            queries=asked.queries,
            layers=self.key_layers,
            rows=seen.rows[list(self.key_layers)],
            image_tokens=images,
            connector=seen.connector,
            region_mass=_region_masses(probe, answer_rows, images, seen.connector),
            visual_share=_visual_share(answer_rows, images),
            scores=Scores(seen.answer_nats, seen.foil_nats, reply),
            interventions=tuple(interventions),
        )

    def _encode(
        self, probe: Probe, reply: str, *, like: Encoded | None = None, images: Any = None
    ) -> Encoded:
        """Prompt and reply. ``like`` lends its pictures, so that no picture is opened twice."""
        turns = (Turn("user", user_parts(probe, images)), Turn("assistant", (reply,)))
        conversation = Conversation(turns, source=f"probe {probe.id}")
        encoded = self.family.encode(self.processor, conversation, media=like is None)
        start, end = encoded.turn_spans[-1]
        if start == end:
            raise ValueError(f"probe {probe.id}: {reply!r} has no tokens, expected at least one")
        return encoded if like is None else replace(encoded, images=like.images, media=like.media)

    def _observe(self, extractor: AttentionExtractor, asked: Sequence[_Asked]) -> list[_Seen]:
        """log p of answers and foils, summed over their tokens, nats, and the answers' rows, in one forward."""
        answers, foils = [one.answer for one in asked], [one.foil for one in asked if one.foil is not None]
        most = max(len(one.queries) for one in asked)
        positions = [[query.position for query in one.queries] for one in asked]
        extractor.query_tokens = torch.tensor([row + row[:1] * (most - len(row)) for row in positions])
        extractor.sequences = list(range(len(answers)))
        extractor.images = list(range(sum(len(answer.images) for answer in answers)))
        nats = iter(self._reply_nats([*answers, *foils]))
        answer_nats = [next(nats) for _ in answers]
        foil_nats = [None if one.foil is None else next(nats) for one in asked]
        weights = extractor.attention_weights
        rows = np.stack([weights[name] for name in extractor.language_names], axis=1)
        maps = iter(weights["visual_attn"].mean(1) if "visual_attn" in weights else ())
        return [
            _Seen(
                answer_nats[at],
                foil_nats[at],
                rows[at][:, :, : len(one.queries), : len(one.answer.input_ids)],
                tuple(islice(maps, len(one.answer.images))),
            )
            for at, one in enumerate(asked)
        ]

    def _reply_nats(self, batch: Sequence[Encoded]) -> list[float]:
        """log p of each reply given its prompt, summed over its tokens, nats."""
        inputs = padded(batch, self._device, left=False)
        first = min(one.turn_spans[-1][0] for one in batch) - 1
        kept = inputs["input_ids"].shape[1] - first
        logits = self.model(**inputs, use_cache=False, logits_to_keep=kept).logits[:, -kept:]
        nats = []
        for row, one in enumerate(batch):
            start, end = one.turn_spans[-1]
            wanted = inputs["input_ids"][row, start:end]
            nats.append(_summed_nats(logits[row, start - 1 - first : end - 1 - first], wanted))
        return torch.stack(nats).tolist()

    def _intervene(self, extractor: AttentionExtractor, asked: _Asked) -> Iterator[Intervention]:
        """The margin with the region taken away, in each kind; nothing without foil or region."""
        if asked.foil is None:
            return
        trials = _trials(asked.probe, self.kinds, self.controls, asked.answer.images[0])
        margins = self._margins(extractor, asked.probe, asked.answer, asked.foil, trials)
        yield from _interventions(trials, margins)

    def _margins(
        self,
        extractor: AttentionExtractor,
        probe: Probe,
        answer: Encoded,
        foil: Encoded,
        trials: Sequence[_Trial],
    ) -> list[float]:
        """log p(answer) − log p(foil) after each trial, nats.

        What answer and foil share cancels: the prompt up to the token where they part is read once for each
        trial, and both ends go on from its cache.
        """
        cases = list(self._tried(probe, trials, answer))
        shared = _parted(answer, foil)
        tails = [torch.from_numpy(one.input_ids[shared : one.turn_spans[-1][1]]) for one in (answer, foil)]
        margins: list[float] = []
        for start in range(0, len(cases), self.batch_size):
            batch = cases[start : start + self.batch_size]
            blocked = _blocked(batch, extractor.language_names)
            prompts = [replace(case.encoded, input_ids=case.encoded.input_ids[:shared]) for case in batch]
            margins += self._tail_margins(extractor, prompts, tails, blocked)
        return margins

    def _tail_margins(
        self,
        extractor: AttentionExtractor,
        prompts: Sequence[Encoded],
        tails: Sequence[Tensor],
        blocked: Mapping[str, Tensor],
    ) -> list[float]:
        """How much likelier the first tail is than the second after each prompt, nats."""
        with extractor.knocked_out(blocked):
            inputs = padded(prompts, self._device, left=False)
            read = self.model(**inputs, use_cache=True, logits_to_keep=1)
        logits = read.logits[:, -1:].repeat_interleave(2, dim=0)  # [trial, tail], tails within a trial
        if max(len(tail) for tail in tails) > 1:
            cache = read.past_key_values
            cache.batch_repeat_interleave(2)
            ends = nn.utils.rnn.pad_sequence([tail[:-1] for tail in tails], batch_first=True)
            ends = ends.repeat(len(prompts), 1).to(self._device)
            twice = {name: mask.repeat_interleave(2, dim=0) for name, mask in blocked.items()}
            with extractor.knocked_out(twice):
                rest = self.model(input_ids=ends, past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, rest], dim=1)
        nats = [
            _summed_nats(logits[row, : len(tails[row % 2])], tails[row % 2]) for row in range(len(logits))
        ]
        return (torch.stack(nats[::2]) - torch.stack(nats[1::2])).tolist()

    def _tried(self, probe: Probe, trials: Sequence[_Trial], answer: Encoded) -> Iterator[_Case]:
        """The answer's sequence again for each trial, its region taken away."""
        hides = any(trial.kind == OCCLUSION for trial in trials)
        refs = [ImageRef(path.name, path) for path in probe.images] if hides else []
        pictures = [self.family.load_image(ref) for ref in refs]
        for trial in trials:
            if trial.kind == KNOCKOUT:
                yield _Case(answer, region_cells(answer.images[0], trial.boxes))
            else:
                images = [occlude(pictures[0], trial.boxes), *pictures[1:]]
                yield _Case(self._encode(probe, probe.answer, images=images), None)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _generate(self, answers: Sequence[Encoded]) -> list[str]:
        """The model's own greedy replies to the same prompts; "" for each where it is not to be asked."""
        if not self.generate:
            return [""] * len(answers)
        stops = list(self.family.stop_token_ids(self.processor))
        config = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=self.max_new_tokens,
            eos_token_id=stops, pad_token_id=stops[0], use_cache=True,
        )  # fmt: skip
        prompts = [replace(one, input_ids=one.input_ids[: one.turn_spans[-1][0]]) for one in answers]
        inputs = padded(prompts, self._device, left=True)
        generate: Any = self.model.generate
        replies = generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        return [self._decoded(reply, stops) for reply in replies.tolist()]

    def _decoded(self, reply: list[int], stops: Sequence[int]) -> str:
        """The reply up to its end. Embeddings outnumber tokens (151,936 for 151,860 in Qwen-VL), so a model
        gone astray can say what no token spells: that reads as U+FFFD."""
        tokenizer = self.processor.tokenizer
        said = reply[: next((at for at, token in enumerate(reply) if token in stops), None)]
        runs = groupby(said, key=lambda token: token < len(tokenizer))
        return "".join(
            str(tokenizer.decode(list(run))) if is_known else "\N{REPLACEMENT CHARACTER}"
            for is_known, run in runs
        ).strip()


class _Asked(NamedTuple):
    """A probe as the model reads it."""

    probe: Probe
    answer: Encoded
    foil: Encoded | None
    tokens: tuple[str, ...]
    queries: tuple[Query, ...]


class _Seen(NamedTuple):
    """What one forward showed of a probe: Float32[all layers, heads, queries, keys], and the connector's maps."""

    answer_nats: float
    foil_nats: float | None
    rows: np.ndarray
    connector: tuple[np.ndarray, ...]


class _Case(NamedTuple):
    """A sequence to score, and the cells of its first image that attention may not read."""

    encoded: Encoded
    knocked_out: np.ndarray | None


class _Trial(NamedTuple):
    """One region to take away; a control is a random one of the same shape."""

    kind: str
    region: str
    boxes: Sequence[Box]
    is_control: bool


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Look at a model without leaving a trace: eval mode and no gradients inside; train flags of every
    module, caching and all random states (Python, NumPy, torch, each GPU) afterwards as before, also after an
    exception.

    So a training run with probes has the losses and weights of one without, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    caches = [(config, config.use_cache) for config in _configs(model) if "use_cache" in vars(config)]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for config, use_cache in caches:
            config.use_cache = use_cache
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)


def padded(batch: Sequence[Encoded], device: torch.device, *, left: bool) -> dict[str, Tensor]:
    """Encoded conversations as one batch: input_ids, attention_mask [batch, tokens], media joined in
    order."""
    width = max(len(one.input_ids) for one in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, one in enumerate(batch):
        count = len(one.input_ids)
        place = slice(width - count, None) if left else slice(0, count)
        ids[row, place] = torch.from_numpy(np.asarray(one.input_ids))
        mask[row, place] = 1
    media = {name: torch.cat([one.media[name] for one in batch]) for name in batch[0].media}
    inputs = {"input_ids": ids, "attention_mask": mask, **media}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def token_texts(tokenizer: Any, ids: Sequence[int], image_positions: Collection[int] = ()) -> list[str]:
    """The text of each token, so that joined they are the whole; an image's token reads ``<image>``.

    A character cut by a token border (a byte-level vocabulary does it to rare Chinese) belongs to the token
    that completes it; the ones before have "".
    """
    texts: list[str] = []
    pending: list[int] = []
    for position, token in enumerate(ids):
        if position in image_positions:
            texts.append(IMAGE_TOKEN_TEXT)
            pending = []
            continue
        pending.append(token)
        text = str(tokenizer.decode(pending))
        is_cut = text.endswith("\N{REPLACEMENT CHARACTER}") and len(pending) < MAX_BYTES_OF_A_CHARACTER
        texts.append("" if is_cut else text)
        pending = pending if is_cut else []
    return texts


def find_phrase(phrase: str, texts: Sequence[str], start: int, end: int) -> int | None:
    """Index of the token, within start..end, that completes the phrase's first appearance; None where there
    is none."""
    read = ""
    wanted = unicodedata.normalize("NFC", phrase)
    for index in range(start, end):
        read += texts[index]
        if wanted in unicodedata.normalize("NFC", read):
            return index
    return None


def _parted(answer: Encoded, foil: Encoded) -> int:
    """Index of the first token where the two replies differ, or where the shorter ends."""
    start, end = answer.turn_spans[-1]
    pairs = zip(answer.input_ids[start:end], foil.input_ids[slice(*foil.turn_spans[-1])], strict=False)
    common = list(pairs)
    return start + next((at for at, (one, other) in enumerate(common) if one != other), len(common))


def _summed_nats(
    logits: Float[Tensor, "tokens vocabulary"], tokens: Int[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Σ log p of the tokens, softmax in fp32."""
    return logits.float().log_softmax(-1).gather(1, tokens.to(logits.device)[:, None]).sum()


def _queries(probe: Probe, answer: Encoded, foil: Encoded | None, texts: Sequence[str]) -> list[Query]:
    """The answer query first: the token before the first at which answer and foil part; then one for each
    phrase, the token that completes it, in the question if it stands there, else in the answer."""
    start, end = answer.turn_spans[-1]
    told = start if foil is None else min(_parted(answer, foil), end - 1)
    queries = [Query(told - 1, "answer", texts[told])]
    user_start, user_end = answer.turn_spans[-2]
    after_images = max([user_start, *(int(image.positions.max()) + 1 for image in answer.images)])
    for phrase in probe.phrases:
        place = find_phrase(phrase, texts, after_images, user_end)
        place = find_phrase(phrase, texts, start, end) if place is None else place
        if place is None:
            raise ValueError(
                f"probe {probe.id}: phrase {phrase!r} not found in the tokens of question or answer, "
                f"{texts[after_images:end]}"
            )
        queries.append(Query(place, f"phrase:{phrase}", phrase))
    return queries


def _trials(probe: Probe, kinds: Sequence[str], controls: int, image: ImageTokens) -> list[_Trial]:
    """What is taken away: the main region, and random ones of its shape, in each of the kinds."""
    region = probe.main_region
    if region is None or not kinds:
        return []
    boxes = probe.regions[region]
    others = random_regions(boxes, image.image_size_pixels, count=controls, name=probe.id)
    return [
        _Trial(kind, region, one, is_control=index > 0)
        for kind in kinds
        for index, one in enumerate([boxes, *others])
    ]


def _interventions(trials: Sequence[_Trial], margins: Sequence[float]) -> Iterator[Intervention]:
    """Each kind's region and controls together."""
    for kind in dict.fromkeys(trial.kind for trial in trials):
        of_kind = [
            (trial, margin) for trial, margin in zip(trials, margins, strict=True) if trial.kind == kind
        ]
        [(region, margin)] = [(trial.region, margin) for trial, margin in of_kind if not trial.is_control]
        yield Intervention(
            kind, region, margin, tuple(margin for trial, margin in of_kind if trial.is_control)
        )


def _blocked(batch: Sequence[_Case], language: Sequence[str]) -> dict[str, Tensor]:
    """What attention may not read in this batch: patches at the resampler, or tokens in every language
    layer."""
    if all(case.knocked_out is None for case in batch):
        return {}
    if batch[0].encoded.images[0].through_connector:
        others = [None] * (len(batch[0].encoded.images) - 1)  # regions are in the first image
        return {
            "visual_attn": blocked_patches([one for case in batch for one in (case.knocked_out, *others)])
        }
    cells = [
        None if case.knocked_out is None else (case.encoded.images[0], case.knocked_out) for case in batch
    ]
    blocked = blocked_tokens(cells, max(len(case.encoded.input_ids) for case in batch))
    return dict.fromkeys(language, blocked)


def _region_masses(
    probe: Probe,
    rows: Float[np.ndarray, "layers heads keys"],
    images: Sequence[ImageTokens],
    connector: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    if not probe.regions:
        return {}
    cells = cells_from_row(rows, images[0], connector[0] if connector else None)
    coverage = {name: region_coverage(boxes, images[0]) for name, boxes in probe.regions.items()}
    return {name: region_mass(cells, weights).astype(np.float32) for name, weights in coverage.items()}


def _visual_share(
    rows: Float[np.ndarray, "layers heads keys"], images: Sequence[ImageTokens]
) -> Float[np.ndarray, "layers heads"]:
    positions = np.concatenate([image.positions for image in images])
    return visual_share(rows, positions).astype(np.float32)


def _configs(model: nn.Module) -> list[Any]:
    found = [vars(module)["config"] for module in model.modules() if "config" in vars(module)]
    return list({id(config): config for config in found}.values())
