"""Interventions on a probe: regions occluded or knocked out, pictures replaced, and the margins that remain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from torch import nn

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.attention import random_regions
from diagnostics.measures.geometry import union_area_pixels
from diagnostics.probing.lenders import Loan
from diagnostics.probing.margins import Margins, ScoredInput
from diagnostics.probing.prompts import EncodedProbe, ProbeEncoder
from diagnostics.probing.regions import (
    blank,
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
from diagnostics.records.record import Intervention, PictureControl
from finetune.families import Encoded
from finetune.families.parts.coverage import Box
from finetune.families.parts.modules import language_layers

MOST_OF_THE_PICTURE = 0.9


@dataclass(frozen=True)
class Trial:
    """One intervention on one region; a control uses a random region of the same shape and area."""

    kind: str
    region: str
    boxes: Sequence[Box]
    is_control: bool
    layers: tuple[int, int] | None = None


class TrialRunner:
    """Runs trials through one model: the margin log p(answer) − log p(foil) after each, nats."""

    def __init__(
        self, model: nn.Module, reader: ProbeEncoder, extractor: AttentionExtractor, *, batch_size: int
    ) -> None:
        self.model = model
        self.reader = reader
        self.extractor = extractor
        self.batch_size = batch_size
        self._margins = Margins(model, extractor, batch_size=batch_size)

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
        margins = self._margins.read(asked, cases)
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
                    self._with_pictures(asked, [blank(one) for one in self.reader.opened(asked.probe)]),
                )
            elif kind == OTHER and loan is not None:
                lent = self._with_pictures(asked, self.reader.opened(loan.lender))
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
        [picture, *others] = self.reader.opened(asked.probe)
        inner = CURVE_SHARES[1:-1]
        hidden = [np.ones(len(cells), bool)]
        for one in maps.values():
            hidden += [most_looked_at(one, share) for share in inner]
            hidden += [~most_looked_at(one, share) for share in inner]
        cases = [
            ScoredInput(self._with_pictures(asked, [veil(picture, image, cut), *others])) for cut in hidden
        ]
        nothing, *rest = self._margins.read(asked, cases)
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
        image = asked.answer.images[0]
        kinds = [kind for kind in depth.kinds if image.through_connector or kind != TOWER_KNOCKOUT]
        has_cells = len(image.cell_boxes_pixels) > 1  # of one cell nothing would be left
        if not has_cells:
            kinds = [kind for kind in kinds if kind == OCCLUSION]
        trials: list[Trial] = []
        for region, boxes in probe.regions.items():
            if fills_the_picture(boxes, image.image_size_pixels):
                continue
            ways: list[tuple[str, tuple[int, int] | None]] = [(kind, None) for kind in kinds]
            if depth.windows and has_cells and region == probe.main_region:
                count = len(language_layers(self.model, self.extractor.family))
                ways += [(KNOCKOUT, window_of(layer, count)) for layer in key_layers]
            others = random_regions(boxes, image.image_size_pixels, count=depth.controls, name=probe.id)
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
        pictures = self.reader.opened(asked.probe) if any(trial.kind == OCCLUSION for trial in trials) else []
        for trial in trials:
            if trial.kind == OCCLUSION:
                hidden = [occlude(pictures[0], trial.boxes), *pictures[1:]]
                yield ScoredInput(self._with_pictures(asked, hidden))
                continue
            try:
                if trial.kind == TOWER_KNOCKOUT:
                    cut = ScoredInput(asked.answer, cells=region_cells(image, trial.boxes))
                else:
                    tokens = region_tokens(image, trial.boxes, connector)
                    cut = ScoredInput(asked.answer, tokens=tokens, layers=trial.layers)
            except ValueError as error:
                raise ValueError(f"probe {asked.probe.id}: region {trial.region!r}: {error}") from error
            yield cut

    def _with_pictures(self, asked: EncodedProbe, pictures: Sequence[Image.Image]) -> Encoded:
        return self.reader.encode(asked.probe, asked.probe.answer, images=pictures)

    def margins_as_asked(self, asked: EncodedProbe, count: int) -> list[float]:
        """The margin without an intervention, ``count`` times in the same forwards, up to ``batch_size``."""
        return self._margins.read(asked, [ScoredInput(asked.answer)] * count)

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
        masked = iter(self._margins.read(asked, cases))
        whole = self.margins_as_asked(asked, 1)[0] if len(cases) < len(dropped) else 0.0
        return [next(masked) if len(places) else whole for places, _ in dropped]

    def with_model(self, model: nn.Module, extractor: AttentionExtractor) -> TrialRunner:
        """The same for another model that reads the same tokens."""
        return TrialRunner(model, self.reader, extractor, batch_size=self.batch_size)


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
