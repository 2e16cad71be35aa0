"""Mediation: how much of an answer's change goes through attention, by putting the model before's attention back.

Causal mediation by patching (Vig et al., NeurIPS 2020; Meng et al., NeurIPS 2022), of attention patterns only: the
chosen layers of the model after use the attention weights of the model before with their own values
(``diagnostics.capture.patterns``). If the margin falls back, the change went through where the model looks; if it
stays, through what it reads or says. For a probe of −5 nats before and +4 after, whose margin is +1 with the attention
of all language layers put back, (4 − 1) / (4 − (−5)) = 33 % of the change went through attention.

Memory: the queries and keys of one probe at a time, not its patterns. For a 7B model with one key head per head, 1,000
tokens, bf16 (Qwen-VL, LLaVA-1.5: 32 layers, width 4,096): queries 0.26 GB, keys of the prompt 0.26 GB, keys for the two
replies 0.52 GB, together 1.05 GB; with grouped keys (Qwen2-VL: 28 layers, width 3,584 over 512) 0.29 GB. In addition,
the cache of one batch, as in every intervention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.patterns import KeptCall
from diagnostics.probing.before import BeforeModel
from diagnostics.probing.interventions import TrialRunner
from diagnostics.probing.prompts import EncodedProbe
from diagnostics.records.measurement_plan import CONNECTOR, KEY_LAYERS, LANGUAGE, LAYER
from diagnostics.records.record import PatchSource, PatternPatch
from finetune.families import bare_model

CONNECTOR_NAME = "visual_attn"


class Part(NamedTuple):
    """Modules patched together: their kind, and their language layers, () for the connector."""

    kind: str
    layers: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The modules, by the names of ``attention_weights``."""
        return (CONNECTOR_NAME,) if self.kind == CONNECTOR else tuple(f"layer_{at}" for at in self.layers)


def parts_of(names: Sequence[str], key_layers: Sequence[int], *, every_layer: bool) -> tuple[Part, ...]:
    """All language layers with attention; the key layers together; each key layer (with ``every_layer`` each layer with
    attention) by itself; the connector, if it has attention. ``names``: all modules with attention, as in
    ``attention_weights``."""
    attending = [int(name.removeprefix("layer_")) for name in names if name.startswith("layer_")]
    alone = attending if every_layer else key_layers
    return (
        Part(LANGUAGE, tuple(attending)),
        Part(KEY_LAYERS, tuple(key_layers)),
        *(Part(LAYER, (layer,)) for layer in alone),
        *((Part(CONNECTOR),) if CONNECTOR_NAME in names else ()),
    )


class Mediator:
    """Puts the attention of the model before into the model after, and measures the remaining margins.

    runner   runs the model after
    """

    def __init__(self, runner: TrialRunner, before: BeforeModel, parts: Sequence[Part]) -> None:
        self._runner, self._before, self._parts = runner, before, tuple(parts)

    def patches(self, asked: EncodedProbe) -> tuple[tuple[PatternPatch, ...], PatchSource]:
        """The margin with each part patched, and the source of the patterns with its own margin.

        Raises ValueError if the two models process the probe in different calls.
        """
        kept, margin_nats = self._kept(asked)
        margins: list[float] = []
        for start in range(0, len(self._parts), self._runner.batch_size):
            batch = self._parts[start : start + self._runner.batch_size]
            names = dict.fromkeys(name for part in batch for name in part.names)
            chosen = {name: torch.tensor([name in part.names for part in batch]) for name in names}
            with self._runner.extractor.with_patterns(kept, chosen):
                margins += self._runner.margins_as_asked(asked, len(batch))
        patches = (
            PatternPatch(part.kind, margin, part.layers)
            for part, margin in zip(self._parts, margins, strict=True)
        )
        return tuple(patches), PatchSource(self._before.name, margin_nats)

    def _kept(self, asked: EncodedProbe) -> tuple[list[KeptCall], float]:
        """Queries and keys of the model before, and its margin."""
        with self._before.running() as model:
            if bare_model(model) is self._runner.model:
                return self._keep(asked, self._runner)
            family = self._runner.extractor.family
            with AttentionExtractor(bare_model(model), [], connector=False, family=family) as extractor:
                return self._keep(asked, self._runner.with_model(bare_model(model), extractor))

    def _keep(self, asked: EncodedProbe, runner: TrialRunner) -> tuple[list[KeptCall], float]:
        with runner.extractor.keeping_patterns() as kept:
            [margin_nats] = runner.margins_as_asked(asked, 1)
        return kept, margin_nats
