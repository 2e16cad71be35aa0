"""One model, one probe: encode → capture → geometry → metrics → record. Used by monitor and comparison."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.gradients import gradient_rows
from diagnostics.capture.head_means import head_means, in_all_layers
from diagnostics.capture.self_check import self_check
from diagnostics.measures.attention import (
    gradient_weighted,
    random_regions,
    region_mass,
    relative_attention,
    rollout,
    row_entropy,
    visual_share,
)
from diagnostics.measures.geometry import cells_from_row
from diagnostics.measures.sinks import sink_dimensions, sink_tokens, without_sinks
from diagnostics.probing.before import BeforeModel
from diagnostics.probing.interventions import TrialRunner
from diagnostics.probing.lenders import loan_for
from diagnostics.probing.margins import reads_pictures_first
from diagnostics.probing.mediation import Mediator, parts_of
from diagnostics.probing.precision import precision_words
from diagnostics.probing.processes import in_processes, parted, worthwhile
from diagnostics.probing.prompts import EncodedProbe, ProbeEncoder, padded, scored_span
from diagnostics.probing.reading import PromptReader, Reading, alike, summed_nats
from diagnostics.probing.regions import place_coverage, salient_coverages
from diagnostics.probing.relations import read_relation
from diagnostics.records.measurement_plan import OTHER, QUICK, Allowed, MeasurementPlan
from diagnostics.records.probe_marks import probe_mark
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord, Scores
from finetune.families import Encoded, Family, ImageTokens, bare_model, family_of
from finetune.families.parts.coverage import region_coverage
from finetune.families.parts.modules import attending_layers, check_measurable, layer_words
from finetune.model.look_file import Supervised
from finetune.model.notes import any_of
from finetune.model.untouched import untouched

MAX_NEW_TOKENS = 16
ROOM = 8
"""Extra tokens of a generated answer beyond the longest spelling, for phrases such as "It is the …."."""
BATCH_SIZE = 16
WINDOW = 4
"""Batches of probes that are read from disk together, so that equally long prompts find each other."""
RANDOM_REGIONS = 16
"""Area-matched random regions whose mean mass is chance; they need no extra forward."""
GENERIC_QUESTION = "Write a general description of the image."  # relative attention: Zhang et al., ICLR 2025


def auto_key_layers(model: nn.Module, family: Family | None = None) -> tuple[int, ...]:
    """Four language layers, evenly spaced, including the last: 8, 16, 24, 31 of 32; 1, 2, 3 of 4. Where some layers
    have no attention map, four of those that do."""
    attending = attending_layers(model, family or family_of(bare_model(model).config))
    count = len(attending)
    places = {min(round(quarter * count / 4), count - 1) for quarter in (1, 2, 3, 4)}
    return tuple(attending[place] for place in sorted(places))


class Prober:
    """Runs probes through one model and measures attention, scores and the effect of interventions.

    key_layers   language layers whose rows are kept (region mass and visual share are measured in all), in any order
    depth        what to measure besides scores and attention (``diagnostics.records.measurement_plan``)
    max_new_tokens    minimum limit of a generated answer; raised to the longest spelling or foil plus ``ROOM``
    batch_size   sequences in one forward pass
    autocast     precision of mixed-precision training (bf16 or fp16 over fp32 weights); None: the weights' own
    before       the model whose attention is put back, if the plan has ``patching``; None: nothing is patched
    supervised   the attention that training supervised, which its records then state
    seen         SHA-256 of pictures that the model was trained on, which its records then state of their probes
    reader       encodes the probes, if one is shared by several checkpoints of a model; None: one of its own

    Each run restores the model (``untouched``). Raises ValueError for a model that cannot be measured
    (``check_measurable``: learned prompts, offloaded weights), for a key layer that does not exist, has no
    attention map or is named twice, and, naming the probe, for an answer or phrase that cannot be located in the
    tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        key_layers: Sequence[int],
        probes: Sequence[Probe],
        depth: MeasurementPlan = QUICK,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = BATCH_SIZE,
        autocast: torch.dtype | None = None,
        family: Family | None = None,
        before: BeforeModel | None = None,
        supervised: Supervised | None = None,
        seen: Collection[str] = (),
        reader: ProbeEncoder | None = None,
    ) -> None:
        check_measurable(model)
        self.model = bare_model(model)
        self.processor = processor
        self.family = family or family_of(self.model.config)
        self.reader = reader or ProbeEncoder(self.family, processor)
        self.attending = attending_layers(self.model, self.family)
        self.key_layers = _checked(key_layers, self.attending)
        self.probes = tuple(probes)
        self.depth = depth
        self.max_new_tokens = max(
            [max_new_tokens, *(self.reader.longest_reply(one) + ROOM for one in self.probes)]
        )
        self.batch_size = batch_size
        self.autocast = autocast
        self.before = before
        self.supervised, self.seen = supervised, seen
        self._precision = precision_words(self.model, autocast)
        self._sink_dimensions: dict[str, np.ndarray] | None = None

    @property
    def allowed(self) -> Allowed:
        """The measurements that model and probes allow, for the plan's cost."""
        asked = [probe for probe in self.probes if probe.foil is not None and self.depth.pictures]
        return Allowed(
            resampler=self.family.paths.connector_attention is not None,
            alone=bool(asked) and self.reader.encode_alone(asked[0], asked[0].answer) is not None,
            lent=frozenset(probe.id for probe in asked if loan_for(probe, self.probes) is not None),
            patched=0 if self.before is None else len(self.attending),
            pictures_first=all(
                reads_pictures_first(self.family, self.reader.read(one).answer) for one in asked[:1]
            ),
        )

    @property
    def looks_through_supervised(self) -> bool:
        """Does the model look at pictures through a resampler whose attention was trained on?"""
        attends = self.family.paths.connector_attention is not None
        return self.supervised is not None and self.supervised.connector and attends

    def run(self, probe: Probe, step: int, model_name: str) -> AttentionRecord:
        """One probe → its record."""
        [record] = self.run_all(step, model_name, probes=[probe])
        return record

    def run_all(
        self, step: int, model_name: str, *, probes: Sequence[Probe] | None = None, progress: bool = False
    ) -> list[AttentionRecord]:
        """Every probe (or those given) → records, in order; a batch holds several probes and their foils.

        A small model on a CPU is forked into processes that share the probes out (``diagnostics.probing.processes``).
        """
        chosen = self.probes if probes is None else tuple(probes)
        bar = tqdm(
            total=len(chosen), desc=f"probing step {step}", unit="probe", disable=not progress, leave=False
        )
        size = max(self.batch_size // 2, 1)
        processes = worthwhile(self.model, len(chosen))
        with bar, self._inference(), closing(self.reader.pictures):
            if processes == 1:
                return self._run(chosen, step, model_name, told=bar.update)
            self._find_sink_dimensions(chosen[: WINDOW * size])
            records: list[AttentionRecord] = []
            parts = parted(chosen, processes, most=WINDOW * size)
            run = partial(self._run, step=step, model_name=model_name)
            for found in in_processes(run, parts, processes=processes):
                records += found
                bar.update(len(found))
        return records

    def _run(
        self,
        probes: Sequence[Probe],
        step: int,
        model_name: str,
        *,
        told: Callable[[], Any] | None = None,
    ) -> list[AttentionRecord]:
        """Probes → records, in order. ``told``: called after each."""
        records: list[AttentionRecord] = []
        size = max(self.batch_size // 2, 1)
        for start in range(0, len(probes), WINDOW * size):
            asked = [self.reader.read(probe) for probe in probes[start : start + WINDOW * size]]
            found: dict[int, AttentionRecord] = {}
            for batch in alike(asked, size):
                together = [asked[at] for at in batch]
                for at, record in zip(batch, self._measure(together, step, model_name), strict=True):
                    found[at] = self._with_further(record, asked[at])
                    if told is not None:
                        told()
            records += [found[at] for at in range(len(asked))]
        return records

    def self_check(self) -> None:
        """Verify capture in the key layers and the connector on the first probe. Raises ValueError if it is wrong."""
        probe = self.probes[0]
        with self._inference():
            inputs = padded([self.reader.encode(probe, probe.answer)], self._device, left=False)
            self_check(self.model, inputs, key_layers=self.key_layers, family=self.family)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        is_mixed = self.autocast is not None
        mixed = torch.autocast(self._device.type, dtype=self.autocast, enabled=is_mixed)
        with untouched(self.model), mixed:
            yield

    def _measure(self, asked: Sequence[EncodedProbe], step: int, model_name: str) -> list[AttentionRecord]:
        """Scores, attention, the model's own answers, and the margins after interventions."""
        with AttentionExtractor(self.model, family=self.family) as extractor:
            seen = self._prompt_reader(generates=self.depth.generate).read(extractor, asked)
            with extractor.paused():
                runner = TrialRunner(self.model, self.reader, extractor, batch_size=self.batch_size)
                return [
                    self._mediated(self._record(one, what, sinks, runner, step, model_name), one, runner)
                    for one, what, sinks in zip(asked, seen, self._sinks(seen), strict=True)
                ]

    def _prompt_reader(self, *, generates: bool) -> PromptReader:
        return PromptReader(
            self.model,
            self.family,
            self.processor,
            key_layers=self.key_layers,
            max_new_tokens=self.max_new_tokens if generates else 0,
        )

    def _record(
        self,
        asked: EncodedProbe,
        seen: Reading,
        sinks: np.ndarray,
        runner: TrialRunner,
        step: int,
        model_name: str,
    ) -> AttentionRecord:
        probe, images = asked.probe, asked.answer.images
        depth = self.depth.of(probe)
        connector = seen.connector[0] if seen.connector else None
        answer_rows = seen.rows[:, :, 0]
        whole = partial(in_all_layers, self.model, self.family)
        loan = loan_for(probe, self.probes) if OTHER in depth.pictures else None
        interventions, controls = runner.taken_away(asked, depth, self.key_layers, connector, loan)
        record = AttentionRecord(
            probe_id=probe.id,
            group=probe.group,
            step=step,
            model=model_name,
            tokens=asked.tokens,
            queries=asked.queries,
            layers=self.key_layers,
            rows=seen.rows[[self.attending.index(layer) for layer in self.key_layers]],
            image_tokens=images,
            connector=seen.connector,
            region_mass=_each(whole, _masses(probe, answer_rows, seen, images)),
            visual_share=whole(visual_share(answer_rows, _image_positions(asked.answer))),
            scores=Scores(seen.answer_nats, seen.foil_nats, seen.reply),
            interventions=tuple(interventions),
            picture_controls=tuple(controls),
            random_mass=_each(whole, _masses(probe, answer_rows, seen, images, at_random=True)),
            salient_mass=_each(whole, self._salient_masses(probe, answer_rows, seen, images)),
            sinks=sinks,
            region_mass_without_sinks=_each(
                whole,
                _masses_without_sinks(
                    probe, answer_rows, seen, sinks, images, self.key_layers, self.attending
                ),
            ),
            head_entropy=whole(row_entropy(answer_rows, asked.queries[0].position + 1)),
            highest_logit=whole(seen.highest_logit),
            supervised_layers=() if self.supervised is None else self.supervised.layers,
            supervised_picture=self.supervised is not None and self.supervised.saw(probe.images),
            supervised_unknown=self.supervised is not None and self.supervised.some_unknown,
            supervised_connector=self.looks_through_supervised,
            trained_picture=any_of(probe.images, self.seen),
            precision=self._precision,
            probe_mark=probe_mark(probe),
        )
        margin = record.scores.margin_nats
        if not depth.curves or margin is None or not probe.regions:
            return record
        order = cells_from_row(record.rows[:, :, 0].mean((0, 1)), images[0], connector)
        return replace(record, curves=runner.curves(asked, order, margin))

    def _salient_masses(
        self,
        probe: Probe,
        rows: Float[np.ndarray, "layers heads keys"],
        seen: Reading,
        images: Sequence[ImageTokens],
    ) -> dict[str, np.ndarray]:
        """``_masses`` of equally salient places, their mean; without regions that have none."""
        if not probe.regions:
            return {}
        cells = cells_from_row(rows, images[0], seen.connector[0] if seen.connector else None)
        coverages = salient_coverages(probe, images[0], self.reader.pictures)
        return {name: region_mass(cells, coverage).astype(np.float32) for name, coverage in coverages.items()}

    def _mediated(self, record: AttentionRecord, asked: EncodedProbe, runner: TrialRunner) -> AttentionRecord:
        """Adds the margins with the attention of the model before put back."""
        depth = self.depth.of(asked.probe)
        if self.before is None or not depth.patching or asked.foil is None:
            return record
        parts = parts_of(runner.extractor.names, self.key_layers, every_layer=depth.windows)
        patches, source = Mediator(runner, self.before, parts).patches(asked)
        return replace(record, patches=patches, patched_from=source)

    def _with_further(self, record: AttentionRecord, asked: EncodedProbe) -> AttentionRecord:
        """Adds measurements that need an extractor of their own."""
        if self.depth.relations and asked.probe.relation is not None:
            record = replace(record, relation=read_relation(self.model, self.reader, asked.probe))
        if self.depth.maps and asked.answer.images:
            record = replace(record, maps=self._further_maps(record, asked))
        return record

    def _sinks(self, seen: Sequence[Reading]) -> list[np.ndarray]:
        """Bool[key layers, tokens] for each probe."""
        dimensions = self._sink_dimensions_of(seen)
        return [
            np.stack([sink_tokens(one.hidden[name], found) for name, found in dimensions.items()])
            for one in seen
        ]

    def _find_sink_dimensions(self, first: Sequence[Probe]) -> None:
        """On the batch that one process would read first, before several share the probes out."""
        asked = [self.reader.read(probe) for probe in first]
        batch = next(alike(asked, max(self.batch_size // 2, 1)))
        with AttentionExtractor(self.model, family=self.family) as extractor:
            reader = self._prompt_reader(generates=False)
            self._sink_dimensions_of(reader.read(extractor, [asked[at] for at in batch]))

    def _sink_dimensions_of(self, seen: Sequence[Reading]) -> dict[str, np.ndarray]:
        """The dimensions that mark a sink, by key layer: found on the first batch and kept, so that one rule holds for
        all probes of a model."""
        names = [f"layer_{layer}" for layer in self.key_layers]
        if self._sink_dimensions is None:
            self._sink_dimensions = {
                name: np.unique(np.concatenate([sink_dimensions(one.hidden[name]) for one in seen]))
                for name in names
            }
        return self._sink_dimensions

    def _further_maps(self, record: AttentionRecord, asked: EncodedProbe) -> dict[str, np.ndarray]:
        """The further maps of the plan: Float32[key layers, cells], rollout's Float32[1, cells]."""
        image = asked.answer.images[0]
        connector = record.connector[0] if record.connector else None
        inputs = padded([asked.answer], self._device, left=False)
        place = record.queries[0].position
        maps: dict[str, np.ndarray] = {}
        for name in self.depth.maps:
            if name == "relative":
                here = cells_from_row(record.rows[:, :, 0].mean(1), image, connector)
                maps[name] = relative_attention(here, self._generic_cells(asked.probe))
            elif name == "gradient":
                rows = self._gradient_weighted(asked, inputs, place)
                maps[name] = cells_from_row(rows, image, connector)
            else:
                means = head_means(self.model, inputs, family=self.family)
                maps[name] = cells_from_row(rollout(means, place), image, connector)[None]
        return {name: cells.astype(np.float32) for name, cells in maps.items()}

    def _gradient_weighted(
        self, asked: EncodedProbe, inputs: Mapping[str, Tensor], place: int
    ) -> Float[np.ndarray, "layers keys"]:
        """Rows weighted by the gradient of the answer's log probability, through its end."""
        start, end = scored_span(asked.answer)

        def objective(logits: Tensor) -> Tensor:
            return summed_nats(logits[0, start - 1 : end - 1], inputs["input_ids"][0, start:end])

        found = gradient_rows(
            self.model,
            inputs,
            objective,
            key_layers=self.key_layers,
            query_tokens=[place],
            family=self.family,
        )
        names = [f"layer_{layer}" for layer in self.key_layers]
        return np.stack(
            [gradient_weighted(found.rows[name][0, :, 0], found.gradients[name][0, :, 0]) for name in names]
        )

    def _generic_cells(self, probe: Probe) -> Float[np.ndarray, "layers cells"]:
        """The key layers' maps of the last prompt token for the generic question."""
        generic = replace(probe, question=GENERIC_QUESTION, phrases={}, relation=None)
        encoded = self.reader.encode(generic, probe.answer)
        place = encoded.turn_spans[-1][0] - 1
        with AttentionExtractor(
            self.model, self.key_layers, query_tokens=[place], images=[0], family=self.family
        ) as extractor:
            self.model(**padded([encoded], self._device, left=False), use_cache=False, logits_to_keep=1)
            weights = extractor.attention_weights
        rows = np.stack([weights[f"layer_{layer}"][0, :, 0].mean(0) for layer in self.key_layers])
        connector = weights["visual_attn"][0].mean(0) if "visual_attn" in weights else None
        return cells_from_row(rows, encoded.images[0], connector)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _checked(key_layers: Sequence[int], attending: Sequence[int]) -> tuple[int, ...]:
    for layer in key_layers:
        if layer not in attending:
            raise ValueError(f"no language layer {layer}; expected {layer_words(attending)}")
        if (times := list(key_layers).count(layer)) > 1:
            raise ValueError(f"key layers: found layer {layer} {times} times, expected each once")
    return tuple(key_layers)


def _masses(
    probe: Probe,
    rows: Float[np.ndarray, "layers heads keys"],
    seen: Reading,
    images: Sequence[ImageTokens],
    *,
    at_random: bool = False,
) -> dict[str, np.ndarray]:
    """Region name → Float32[layers, heads]: share of the attention to the image that lies on it, or on random regions
    of its shape."""
    if not probe.regions:
        return {}
    image = images[0]
    cells = cells_from_row(rows, image, seen.connector[0] if seen.connector else None)
    found: dict[str, np.ndarray] = {}
    for name, boxes in probe.regions.items():
        if at_random:
            moved = random_regions(boxes, image.image_size_pixels, count=RANDOM_REGIONS, name=probe.id)
            coverage = place_coverage(moved, boxes, image)
        else:
            coverage = region_coverage(boxes, image)
        found[name] = region_mass(cells, coverage).astype(np.float32)
    return found


def _masses_without_sinks(
    probe: Probe,
    rows: Float[np.ndarray, "layers heads keys"],
    seen: Reading,
    sinks: np.ndarray,
    images: Sequence[ImageTokens],
    key_layers: Sequence[int],
    attending: Sequence[int],
) -> dict[str, np.ndarray]:
    """``_masses`` of rows whose sinks are set to 0. Sinks are known in key layers; other layers use the nearest key
    layer below, since a sink stays one through later layers."""
    if not sinks.any():
        return {}
    rising = np.argsort(key_layers)  # they may be given in any order
    below = np.searchsorted(key_layers, attending, side="right", sorter=rising) - 1
    nearest = rising[np.maximum(below, 0)]
    return _masses(probe, without_sinks(rows, sinks[nearest][:, None]), seen, images)


def _each(
    change: Callable[[np.ndarray], np.ndarray], named: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {name: change(values) for name, values in named.items()}


def _image_positions(encoded: Encoded) -> np.ndarray:
    return np.concatenate([image.all_positions for image in encoded.images] or [np.zeros(0, np.int64)])
