"""Interventions on a probe: regions occluded or knocked out, pictures replaced, and the margins that remain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.attention import random_regions
from diagnostics.measures.geometry import union_area_pixels
from diagnostics.probing.lenders import Loan
from diagnostics.probing.prompts import (
    EncodedProbe,
    ProbeEncoder,
    forget_positions,
    padded,
    parted,
    scored_span,
)
from diagnostics.probing.reading import summed_nats
from diagnostics.probing.regions import (
    blank,
    blocked_in_tower,
    blocked_patches,
    blocked_tokens,
    most_looked_at,
    occlude,
    region_cells,
    region_tokens,
    shifted_elsewhere,
    veil,
    window_of,
)
from diagnostics.records.measurement_plan import (
    BLANK,
    CURVE_SHARES,
    KNOCKOUT,
    NO_PICTURE,
    OCCLUSION,
    OTHER,
    TOWER_KNOCKOUT,
    MeasurementPlan,
)
from diagnostics.records.probes import Probe
from diagnostics.records.record import Intervention, PictureControl
from finetune.families import Encoded
from finetune.families.parts.coverage import Box
from finetune.families.parts.modules import language_layers
from finetune.samples.conversation import ImageRef

MOST_OF_THE_PICTURE = 0.9

Blocked = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One intervention on one region; a control uses a random region of the same shape and area."""

    kind: str
    region: str
    boxes: Sequence[Box]
    is_control: bool
    layers: tuple[int, int] | None = None


class ScoredInput(NamedTuple):
    """A sequence to score. At most one of ``cells`` (of the first image, hidden inside tower and resampler),
    ``tokens`` (hidden from the answer query in ``layers``, or from all tokens after the image in all layers) and
    ``dropped`` (hidden from every other token, in ``layers`` or in all) is set."""

    encoded: Encoded
    cells: np.ndarray | None = None
    tokens: np.ndarray | None = None
    layers: tuple[int, int] | None = None
    dropped: np.ndarray | None = None


class TrialRunner:
    """Runs trials through one model: the margin log p(answer) − log p(foil) after each, nats."""

    def __init__(
        self, model: nn.Module, reader: ProbeEncoder, extractor: AttentionExtractor, *, batch_size: int
    ) -> None:
        self.model = model
        self.reader = reader
        self.extractor = extractor
        self.batch_size = batch_size

    def taken_away(
        self,
        asked: EncodedProbe,
        depth: MeasurementPlan,
        key_layers: Sequence[int],
        connector: np.ndarray | None,
        loan: Loan | None,
    ) -> tuple[list[Intervention], list[PictureControl]]:
        """Every kind of intervention on every region, with its controls: none without foil or region; and the margin of
        the same answer and foil with other pictures, or none. Of these are left out "other" without a ``loan``, and
        "none" where the family reads no question alone.

        Measured together: with another picture of its size a probe is as long as with a region hidden.
        """
        trials = self._trials(asked, depth, key_layers)
        replaced = self._controls(asked, depth.pictures, loan)
        cases = [*self._cases(asked, trials, connector), *(ScoredInput(one) for _, _, one in replaced)]
        if not cases:
            return [], []
        margins = self._margins(asked, cases)
        controls = [
            PictureControl(kind, margin, lender)
            for (kind, lender, _), margin in zip(replaced, margins[len(trials) :], strict=True)
        ]
        return _grouped(trials, margins[: len(trials)]), controls

    def _controls(
        self, asked: EncodedProbe, kinds: Sequence[str], loan: Loan | None
    ) -> list[tuple[str, str, Encoded]]:
        if asked.foil is None or not asked.answer.images:
            return []
        found = self._replaced(asked, kinds, loan)
        return [(kind, lender, one) for kind, lender, one in found if one is not None]

    def _replaced(
        self, asked: EncodedProbe, kinds: Sequence[str], loan: Loan | None
    ) -> Iterator[tuple[str, str, Encoded | None]]:
        """Kind, lender's id and sequence."""
        for kind in kinds:
            if kind == BLANK:
                yield (
                    kind,
                    "",
                    self._with_pictures(asked, [blank(one) for one in self._pictures(asked.probe)]),
                )
            elif kind == OTHER and loan is not None:
                lent = self._with_pictures(asked, self._pictures(loan.lender))
                yield loan.kind, loan.lender.id, lent
            elif kind == NO_PICTURE:
                yield kind, "", self.reader.encode_alone(asked.probe, asked.probe.answer)

    def curves(
        self, asked: EncodedProbe, cells: Float[np.ndarray, " cells"], margin_nats: float
    ) -> dict[str, Float[np.ndarray, " points"]]:
        """Margins with ``CURVE_SHARES`` of the picture hidden (deletion) or shown (insertion), in the order of a map
        and, as control, of the same map shifted elsewhere."""
        image = asked.answer.images[0]
        maps = {"": cells, "/control": shifted_elsewhere(cells, image.grid, name=asked.probe.id)}
        [picture, *others] = self._pictures(asked.probe)
        inner = CURVE_SHARES[1:-1]
        hidden = [np.ones(len(cells), bool)]
        for one in maps.values():
            hidden += [most_looked_at(one, share) for share in inner]
            hidden += [~most_looked_at(one, share) for share in inner]
        cases = [
            ScoredInput(self._with_pictures(asked, [veil(picture, image, cut), *others])) for cut in hidden
        ]
        nothing, *rest = self._margins(asked, cases)
        found: dict[str, np.ndarray] = {}
        for number, end in enumerate(maps):
            part = rest[number * 2 * len(inner) : (number + 1) * 2 * len(inner)]
            deletion, insertion = part[: len(inner)], part[len(inner) :]
            found["deletion" + end] = np.array([margin_nats, *deletion, nothing], np.float32)
            found["insertion" + end] = np.array([nothing, *insertion, margin_nats], np.float32)
        return found

    def _trials(self, asked: EncodedProbe, depth: MeasurementPlan, key_layers: Sequence[int]) -> list[Trial]:
        probe = asked.probe
        if asked.foil is None or not asked.answer.images:
            return []
        resampled = asked.answer.images[0].through_connector
        kinds = [kind for kind in depth.kinds if resampled or kind != TOWER_KNOCKOUT]
        trials: list[Trial] = []
        for region, boxes in probe.regions.items():
            if fills_the_picture(boxes, asked.answer.images[0].image_size_pixels):
                continue
            ways: list[tuple[str, tuple[int, int] | None]] = [(kind, None) for kind in kinds]
            if depth.windows and region == probe.main_region:
                count = len(language_layers(self.model, self.extractor.family))
                ways += [(KNOCKOUT, window_of(layer, count)) for layer in key_layers]
            others = random_regions(
                boxes, asked.answer.images[0].image_size_pixels, count=depth.controls, name=probe.id
            )
            trials += [
                Trial(kind, region, one, is_control=index > 0, layers=layers)
                for kind, layers in ways
                for index, one in enumerate([boxes, *others])
            ]
        return trials

    def _cases(
        self, asked: EncodedProbe, trials: Sequence[Trial], connector: np.ndarray | None
    ) -> Iterator[ScoredInput]:
        """The answer's sequence for each trial, with its region occluded or knocked out."""
        if not trials:
            return
        image = asked.answer.images[0]
        pictures = self._pictures(asked.probe) if any(trial.kind == OCCLUSION for trial in trials) else []
        for trial in trials:
            if trial.kind == OCCLUSION:
                hidden = [occlude(pictures[0], trial.boxes), *pictures[1:]]
                yield ScoredInput(self._with_pictures(asked, hidden))
            elif trial.kind == TOWER_KNOCKOUT:
                yield ScoredInput(asked.answer, cells=region_cells(image, trial.boxes))
            else:
                tokens = region_tokens(image, trial.boxes, connector)
                yield ScoredInput(asked.answer, tokens=tokens, layers=trial.layers)

    def _pictures(self, probe: Probe) -> list[Image.Image]:
        refs = [ImageRef(path.name, path) for path in probe.images]
        return [self.reader.family.load_image(ref) for ref in refs]

    def _with_pictures(self, asked: EncodedProbe, pictures: Sequence[Image.Image]) -> Encoded:
        return self.reader.encode(asked.probe, asked.probe.answer, images=pictures)

    def margins_as_asked(self, asked: EncodedProbe, count: int) -> list[float]:
        """The margin without an intervention, ``count`` times in the same forwards, up to ``batch_size``."""
        return self._margins(asked, [ScoredInput(asked.answer)] * count)

    def margins_without(
        self, asked: EncodedProbe, dropped: Sequence[tuple[Int[np.ndarray, " tokens"], int]]
    ) -> list[float]:
        """The margin with tokens out of every other token's sight: for each case, their places in the sequence and the
        first language layer that does without them. Later layers do too. With no place it is the margin as asked, bit
        for bit, since no mask is changed."""
        last = len(language_layers(self.model, self.extractor.family)) - 1
        cases = [
            ScoredInput(asked.answer, dropped=places, layers=(first, last))
            for places, first in dropped
            if len(places)
        ]
        masked = iter(self._margins(asked, cases))
        whole = self.margins_as_asked(asked, 1)[0] if len(cases) < len(dropped) else 0.0
        return [next(masked) if len(places) else whole for places, _ in dropped]

    def with_model(self, model: nn.Module, extractor: AttentionExtractor) -> TrialRunner:
        """The same for another model that reads the same tokens."""
        return TrialRunner(model, self.reader, extractor, batch_size=self.batch_size)

    def _margins(self, asked: EncodedProbe, cases: Sequence[ScoredInput]) -> list[float]:
        """The margin of each case. The tokens that answer and foil share are read once for each case, and both replies
        continue from that cache."""
        assert asked.foil is not None
        both = (asked.answer, asked.foil)
        shared = parted(*both)
        tails = [torch.from_numpy(one.input_ids[shared : scored_span(one)[1]]) for one in both]
        length = shared + max(map(len, tails))
        said = shared - asked.answer.turn_spans[-1][0]  # shared tokens of the reply
        margins: dict[int, float] = {}
        for batch in self._batches(cases):
            part = [cases[at] for at in batch]
            blocked = _blocked(part, self.extractor.names, answer_query=asked.parted - 1, length=length)
            prompts = [_cut(case.encoded, said) for case in part]
            margins |= zip(batch, self._tail_margins(prompts, tails, blocked), strict=True)
        return [margins[at] for at in range(len(cases))]

    def _batches(self, cases: Sequence[ScoredInput]) -> Iterator[list[int]]:
        """Indices of cases whose sequences are equally long: the next token is read behind the last of each."""
        lengths = [len(case.encoded.input_ids) for case in cases]
        for length in dict.fromkeys(lengths):
            alike = [at for at, one in enumerate(lengths) if one == length]
            for start in range(0, len(alike), self.batch_size):
                yield alike[start : start + self.batch_size]

    def _tail_margins(
        self, prompts: Sequence[Encoded], tails: Sequence[Tensor], blocked: Blocked
    ) -> list[float]:
        """log p(first tail) − log p(second tail) after each prompt, nats."""
        device = next(self.model.parameters()).device
        with self.extractor.knocked_out(blocked):
            inputs = padded(prompts, device, left=False)
            forget_positions(self.model)
            read = self.model(**inputs, use_cache=True, logits_to_keep=1)
        logits = read.logits[:, -1:].repeat_interleave(2, dim=0)  # [case, tail], tails within a case
        if max(len(tail) for tail in tails) > 1:
            cache = read.past_key_values
            # Not ``batch_repeat_interleave``: caches of linear attention have none.
            cache.reorder_cache(torch.arange(len(prompts), device=device).repeat_interleave(2))
            ends = nn.utils.rnn.pad_sequence([tail[:-1] for tail in tails], batch_first=True)
            ends = ends.repeat(len(prompts), 1).to(device)
            twice = {name: mask.repeat_interleave(2, dim=0) for name, mask in blocked.items()}
            with self.extractor.knocked_out(twice):
                rest = self.model(input_ids=ends, past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, rest], dim=1)
        nats = [summed_nats(logits[row, : len(tails[row % 2])], tails[row % 2]) for row in range(len(logits))]
        return (torch.stack(nats[::2]) - torch.stack(nats[1::2])).tolist()


def _cut(encoded: Encoded, said: int) -> Encoded:
    """A sequence up to the token, of its reply, that the next one is predicted from."""
    return replace(encoded, input_ids=encoded.input_ids[: encoded.turn_spans[-1][0] + said])


def fills_the_picture(boxes: Sequence[Box], size: tuple[int, int]) -> bool:
    """Whether a region leaves no room for controls; such a region gets no interventions."""
    return union_area_pixels(boxes) > MOST_OF_THE_PICTURE * size[0] * size[1]


def _grouped(trials: Sequence[Trial], margins: Sequence[float]) -> list[Intervention]:
    """Each region's margin and its controls' together."""
    found: dict[tuple[str, str, tuple[int, int] | None], list[tuple[Trial, float]]] = {}
    for trial, margin in zip(trials, margins, strict=True):
        found.setdefault((trial.kind, trial.region, trial.layers), []).append((trial, margin))
    return [
        Intervention(
            kind,
            region,
            next(margin for trial, margin in members if not trial.is_control),
            tuple(margin for trial, margin in members if trial.is_control),
            layers,
        )
        for (kind, region, layers), members in found.items()
    ]


def _blocked(
    batch: Sequence[ScoredInput], names: Sequence[str], *, answer_query: int, length: int
) -> dict[str, Tensor]:
    """The blocked positions in this batch, by module name; ``length`` is that of the longer reply's sequence, since a
    position beyond the mask is not knocked out.

    Cells: patches in the vision tower and at the resampler. Tokens: from the answer query on in the case's window, or,
    without one, after the image in every language layer. Dropped: from all tokens but themselves in the case's window.
    """
    language = [name for name in names if name.startswith("layer_")]
    blocked: dict[str, Tensor] = {}
    if any(case.cells is not None for case in batch):
        others = [None] * (len(batch[0].encoded.images) - 1)  # regions are in the first image
        patches = blocked_patches([one for case in batch for one in (case.cells, *others)])
        tower = [name for name in names if name.startswith("vision_layer_")]
        blocked |= {"visual_attn": patches, **dict.fromkeys(tower, blocked_in_tower(patches))}
    if any(case.tokens is not None and case.layers is None for case in batch):
        chosen = [
            None if case.tokens is None or case.layers is not None else (case.encoded.images[0], case.tokens)
            for case in batch
        ]
        blocked |= dict.fromkeys(language, blocked_tokens(chosen, length))
    windows = [_window(case, language) for case in batch]
    made: dict[tuple[bool, ...], torch.Tensor] = {}  # layers that hide the same share one mask
    for name in dict.fromkeys(name for window in windows for name in window):
        hides = tuple(name in window for window in windows)
        if hides not in made or name in blocked:
            mask = blocked.get(name, torch.zeros(len(batch), length, length, dtype=torch.bool)).clone()
            for row, case in enumerate(batch):
                if hides[row]:
                    _hide(mask[row], case, answer_query)
            made[hides] = mask
        blocked[name] = made[hides]
    return blocked


def _hide(mask: Bool[Tensor, "queries keys"], case: ScoredInput, answer_query: int) -> None:
    """Marks, in one sequence's mask, what its case hides in one layer of its window."""
    if case.dropped is None:
        mask[answer_query:, torch.from_numpy(case.tokens)] = True
        return
    places = torch.from_numpy(case.dropped)
    mask[:, places] = True
    mask[places, places] = False  # a row that sees nothing would be no number


def _window(case: ScoredInput, language: Sequence[str]) -> Sequence[str]:
    """Of the layers that attend, those in the window."""
    if case.layers is None:
        return []
    first, last = case.layers
    return [name for name in language if first <= int(name.removeprefix("layer_")) <= last]
