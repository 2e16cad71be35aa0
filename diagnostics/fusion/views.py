"""A model's maps of a probe's picture: every map that can be fused, at every requested resolution."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from diagnostics.capture.extractor import AttentionExtractor, Call
from diagnostics.capture.head_means import CHUNK_BYTES
from diagnostics.capture.self_check import self_check
from diagnostics.fusion.recipes import View, distributions, through_step
from diagnostics.measures.geometry import cells_from_row, patch_boxes_pixels, resampled
from diagnostics.probing.prober import auto_key_layers
from diagnostics.probing.prompts import EncodedProbe, ProbeEncoder, padded
from diagnostics.records.probes import Probe
from finetune.attention.rows import attention_logits, attention_rows
from finetune.attention.watch import Watch
from finetune.families import Family, ImageTokens, bare_model, family_of
from finetune.families.base import Tiles, TowerSequence
from finetune.families.parts.modules import check_measurable, tower_layers
from finetune.families.parts.processors import picture_settings
from finetune.families.parts.tower import joined, patches_a_side
from finetune.model.untouched import untouched

LEAST_SHRINK = (
    0.9  # of a budget that is still too large; a picture's cells are whole, so it may fall in steps
)


class Viewer:
    """Puts probes to one model and keeps the maps of the answer query.

    vision_layers   layers of the tower to look at and to carry maps through; None: the last that is read; (): none
    resolutions     shares of the pixels at which the first picture is read as it is; 1 must be among them

    The model's state is restored after each run. Raises ValueError for a tower layer or a resolution that cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        vision_layers: Sequence[int] | None = None,
        resolutions: Sequence[float] = (1.0,),
        family: Family | None = None,
    ) -> None:
        check_measurable(model)
        self.model = bare_model(model)
        self.family = family or family_of(self.model.config)
        self.reader = ProbeEncoder(self.family, processor)
        self.vision_layers = check_vision_layers(vision_layers, self.model, self.family)
        self.resolutions = check_resolutions(resolutions, self.family, processor)

    def look_all(self, probes: Sequence[Probe], *, progress: bool = False) -> list[tuple[View, ...]]:
        """Every probe's views, the one at full resolution first.

        Raises ValueError naming the probe where it cannot be read, or not at a resolution; the latter before the
        first forward pass.
        """
        quiet = {"unit": "probe", "disable": not progress, "leave": False}
        budgets = [self._budgets(probe) for probe in tqdm(probes, desc="reading", **quiet)]
        bar = tqdm(zip(probes, budgets, strict=True), total=len(probes), desc="looking", **quiet)
        with untouched(self.model), self._extractor() as extractor:
            return [tuple(self._views(extractor, probe, pixels)) for probe, pixels in bar]

    def self_check(self, probe: Probe) -> None:
        """Prove capture on one probe. Raises ValueError if it fails."""
        with untouched(self.model):
            inputs = padded([self.reader.encode(probe, probe.answer)], self._device, left=False)
            self_check(
                self.model, inputs, key_layers=auto_key_layers(self.model, self.family), family=self.family
            )

    def _extractor(self) -> AttentionExtractor:
        return AttentionExtractor(self.model, None, query_tokens=[0], images=[0], family=self.family)

    def _views(
        self, extractor: AttentionExtractor, probe: Probe, budgets: Sequence[int | None]
    ) -> Iterator[View]:
        for share, most_pixels in zip(self.resolutions, budgets, strict=True):
            reading = self.reader.read(probe, max_pixels=most_pixels)
            yield self._view(extractor, reading, "" if share == 1 else f"at {share:g}")

    def _budgets(self, probe: Probe) -> list[int | None]:
        """Most pixels of the first picture at each resolution; None: as it is read."""
        if len(self.resolutions) == 1:
            return [None]
        image = self.reader.encode(probe, probe.answer).images[0]
        return [None, *(self._budget(probe, share, image) for share in self.resolutions[1:])]

    def _budget(self, probe: Probe, share: float, image: ImageTokens) -> int:
        """The pixel budget at which the first picture has at most this share of its cells.

        The processor rounds to whole cells or tiles, so the budget is lowered until the number of cells fits.
        """
        most = share * len(image.cell_boxes_pixels)
        pixels = share * image.image_size_pixels[0] * image.image_size_pixels[1]
        while pixels >= 1:
            smaller = self.reader.encode(probe, probe.answer, max_pixels=int(pixels)).images[0]
            found = len(smaller.cell_boxes_pixels)
            if found <= most:
                return int(pixels)
            pixels *= min(most / found, LEAST_SHRINK)
        raise ValueError(
            f"probe {probe.id}: its picture is read in {len(image.cell_boxes_pixels)} cells and never in {most:.1f} or "
            f"fewer, so it cannot be read at resolution {share:g}; expected a share nearer to 1, or larger pictures"
        )

    def _view(self, extractor: AttentionExtractor, reading: EncodedProbe, name: str) -> View:
        image = reading.answer.images[0]
        extractor.query_tokens = [reading.queries[0].position]
        tiles = [one.tiles for one in reading.answer.images]
        tap = _TowerTap(self.model, self.family, self.vision_layers, tiles=tiles)
        with extractor.tapped(tap), tap.recording_inputs():
            self.model(
                **padded([reading.answer], self._device, left=False), use_cache=False, logits_to_keep=1
            )
        weights = extractor.attention_weights
        reads = weights["visual_attn"][0].mean(0) if "visual_attn" in weights else None
        rows = np.stack([weights[one][0, :, 0].mean(0) for one in extractor.language_names])
        cells = cells_from_row(rows, image, reads)
        layers = [int(one.removeprefix("layer_")) for one in extractor.language_names]
        tower, through = self._tower_maps(tap, cells, image, pictures=len(reading.answer.images))
        return View(
            name=name,
            image=image,
            layers=dict(zip(layers, cells, strict=True)),
            connector=None if reads is None else distributions([reads.mean(0)])[0],
            tower=tower,
            through_tower=dict(zip(layers, through, strict=False)),
        )

    def _tower_maps(
        self, tap: _TowerTap, cells: Float[np.ndarray, "layers cells"], image: ImageTokens, *, pictures: int
    ) -> tuple[dict[int, np.ndarray], Float[np.ndarray, "layers cells"]]:
        """Each tower layer's map over the cells, and the language layers' maps carried through all of them, last
        first; nothing where the tower's patches are not those of whole pictures (tiles, margins)."""
        nothing: dict[int, np.ndarray] = {}
        finer = patches_a_side(self.family, self.model.config, image, picture_settings(self.reader.processor))
        if (
            not self.vision_layers
            or finer is None
            or not tap.are_of(len(image.cell_boxes_pixels) * finer**2, pictures)
        ):
            return nothing, cells[:0]
        boxes = patch_boxes_pixels(image, finer)
        even = np.full((1, len(boxes)), 1 / len(boxes))
        tower = {layer: _onto_cells(tap.read(layer, even), boxes, image)[0] for layer in self.vision_layers}
        carried = resampled_onto_patches(cells, image, finer)
        for layer in reversed(self.vision_layers):
            carried = through_step(carried, tap.read(layer, carried))
        return tower, _onto_cells(carried, boxes, image)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def check_vision_layers(layers: Sequence[int] | None, model: nn.Module, family: Family) -> tuple[int, ...]:
    """Layers of the tower, in order; None: the last that the model reads.

    Raises ValueError for a layer that does not exist, and for one that the model does not read.
    """
    tower = tower_layers(model, family)
    for layer in layers or ():
        if layer not in tower:
            raise ValueError(
                f"no vision layer {layer}; expected 0 to {tower[-1]}, the last that the model reads"
            )
    return tuple(tower[-1:]) if layers is None else tuple(sorted(set(layers)))


def check_resolutions(resolutions: Sequence[float], family: Family, processor: Any) -> tuple[float, ...]:
    """Shares of a picture's pixels, the largest (1) first.

    Raises ValueError for invalid shares, and for several shares where the family reads every picture at one size.
    """
    shares = tuple(sorted(set(resolutions), reverse=True))
    if not shares or shares[0] != 1 or shares[-1] <= 0 or len(shares) != len(resolutions):
        raise ValueError(
            f"resolutions: found {' '.join(f'{one:g}' for one in resolutions) or 'none'}; expected 1 (the picture as "
            "it is read) and smaller shares of its pixels above 0, each once, as in 1 0.5"
        )
    if len(shares) > 1:
        try:
            family.set_pixel_budget(deepcopy(processor), min_pixels=None, max_pixels=2**40)
        except ValueError as error:
            raise ValueError(
                f"resolutions: {family.name} reads every picture at one size, so there is one resolution; leave "
                f"--resolutions out ({error})"
            ) from error
    return shares


def resampled_onto_patches(
    cells: Float[np.ndarray, "maps cells"], image: ImageTokens, finer: int
) -> Float[np.ndarray, "maps patches"]:
    """A map over cells → over the patches they are made of: each gets an even part of its cell."""
    rows, columns = image.grid
    grid = cells.reshape(-1, rows, columns) / finer**2
    return grid.repeat(finer, 1).repeat(finer, 2).reshape(len(cells), -1)


def _onto_cells(
    patches: Float[np.ndarray, "maps patches"], boxes: Float[np.ndarray, "patches 4"], image: ImageTokens
) -> Float[np.ndarray, "maps cells"]:
    return distributions(resampled(patches, boxes, image))


class _TowerTap:
    """Queries and keys of the tower's layers in one forward pass. Rows are computed and weighted afterwards, so
    patches × patches matrices are never kept. A tap for ``AttentionExtractor.tapped``."""

    def __init__(
        self, model: nn.Module, family: Family, layers: Sequence[int], *, tiles: Sequence[Tiles | None]
    ) -> None:
        """tiles   of each picture, which some models are not told (InternVL, Idefics3)"""
        self._model, self._family, self._tiles = model, family, tiles
        self._calls: dict[str, list[Call]] = {f"vision_layer_{layer}": [] for layer in layers}
        self._inputs: dict[str, Any] = {}

    def __call__(self, name: str, call: Call, output: Tensor) -> Tensor:
        if name in self._calls:
            self._calls[name].append(call._replace(value=call.key))  # values are not needed
        return output

    @contextmanager
    def recording_inputs(self) -> Iterator[None]:
        """Record the arguments of the tower's forward pass, which decide where each patch is."""
        tower = self._model.get_submodule(self._family.paths.vision_layers.rpartition(".")[0])
        watch = Watch(self, self._model)
        watch.forward(tower, before=self._keep)
        try:
            yield
        finally:
            watch.close()

    def _keep(self, module: nn.Module, arguments: Any, options: Mapping[str, Any]) -> None:
        given = inspect.signature(module.forward).bind_partial(*arguments, **options).arguments
        self._inputs = {**given, "tiles": self._tiles}

    def are_of(self, patches: int, pictures: int) -> bool:
        """Did every layer process ``patches`` patches of the first picture, and ``pictures`` pictures?"""
        for name in self._calls:
            every = joined([sequence for _, _, sequence in self._placed(name)])
            seen = every.patch[(every.image == 0) & (every.patch >= 0)]
            if len(seen) != patches or len(np.unique(every.image)) != pictures:
                return False
        return bool(self._calls)

    @torch.no_grad()
    def read(
        self, layer: int, weights: Float[np.ndarray, "maps patches"]
    ) -> Float[np.ndarray, "maps patches"]:
        """Weighted attention among the first picture's patches in a layer: Σ_q w_q A_q, mean over heads.

        Attention to a class token is left out; attention to another window is 0.
        """
        given = torch.from_numpy(np.asarray(weights, np.float32))
        found = torch.zeros_like(given)
        for call, at, sequence in self._placed(f"vision_layer_{layer}"):
            own = np.flatnonzero((sequence.image == 0) & (sequence.patch >= 0))
            if len(own):
                patch = torch.from_numpy(sequence.patch[own])
                found[:, patch] += _weighed(call, at, torch.from_numpy(own), given[:, patch])
        return found.double().numpy()

    def _placed(self, name: str) -> Iterator[tuple[Call, int, TowerSequence]]:
        """Each sequence of a layer's calls: the call, its place in the call's batch, which patch is where."""
        layer = int(name.removeprefix("vision_layer_"))
        calls = [(call, at) for call in self._calls[name] for at in range(call.query.shape[0])]
        sequences = self._family.tower_sequences(self._model.config, layer, self._inputs) if calls else []
        if sequences is None:  # a sequence is an image, its places are its patches
            lengths = [call.lengths[0] for call, _ in calls]
            sequences = [
                TowerSequence(np.full(count, image), np.arange(count)) for image, count in enumerate(lengths)
            ]
        elif (
            len(calls) == 1 and len(sequences) > 1
        ):  # a kernel that keeps several sequences apart in one call
            sequences = [joined(sequences)]
        for (call, at), sequence in zip(calls, sequences, strict=True):
            yield call, at, sequence


def _weighed(
    call: Call, at: int, places: Tensor, weights: Float[Tensor, "maps places"]
) -> Float[Tensor, "maps places"]:
    """Σ_q w_q A_q of the rows and keys at ``places`` of one sequence, mean over heads, a stretch of rows at a time."""
    device = call.query.device
    places, weights = places.to(device), weights.to(device)
    chunk = max(CHUNK_BYTES // (4 * call.query.shape[1] * call.key.shape[2]), 1)
    total = torch.zeros_like(weights)
    for start in range(0, len(places), chunk):
        rows = places[start : start + chunk]
        logits = attention_logits(call, torch.tensor([at], device=device), rows[None])
        read = attention_rows(logits)[0].mean(0)[:, places]
        total += weights[:, start : start + chunk] @ read
    return total.cpu()
