"""A model whose answer hangs on one head that looks at the marked patch: the comparison and the choice of layers find
that head and its layer first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import pair_all
from diagnostics.probing.before import OtherModel
from diagnostics.probing.layer_choice import Calibration, calibrate
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import padded
from diagnostics.records.measurement_plan import LAYER, WATCH
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord
from tests.finetune.families import tiny_families

SEEDS, LEAST_FOUND = 20, 19
PROBES, LAYERS, HEADS, HEAD_WIDTH, CELL = 20, 3, 4, 8, 8
COLUMNS, ROWS = 6, 4
SLOWEST = HEAD_WIDTH // 2 - 1
"""Of a head's rotating pairs the one that turns least: over a prompt of this length, by a few degrees."""
MARK = (250, 20, 30)


def small_model(seed: int) -> Any:
    """A Qwen2-VL of random weights: a token for each cell of the picture."""
    text = {**tiny_families.TEXT, "num_hidden_layers": LAYERS, "num_key_value_heads": HEADS}
    vision = {**tiny_families.VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **tiny_families.token_ids())
    return tiny_families.built(Qwen2VLForConditionalGeneration, config, seed=seed)


def marked_probes(folder: Path, seed: int) -> tuple[Probe, ...]:
    """Noise with one red cell, never in the same place for all."""
    rng = np.random.default_rng(seed)
    probes = []
    for index in range(PROBES):
        pixels = rng.integers(60, 200, (ROWS * CELL, COLUMNS * CELL, 3), dtype=np.uint8)
        row, column = rng.integers(ROWS), rng.integers(COLUMNS)
        x, y = int(column) * CELL, int(row) * CELL
        pixels[y : y + CELL, x : x + CELL] = MARK
        path = folder / f"{seed}-{index}.png"
        Image.fromarray(pixels).save(path)
        box = (float(x), float(y), float(x + CELL), float(y + CELL))
        probes.append(Probe(f"mark-{index}", "marks", (path,), "what?", "A", "B", {"mark": (box,)}))
    return tuple(probes)


class Wired:
    """A small model, and how one of its heads is wired to the marked cell."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.probes = marked_probes(folder, seed)
        tiny = tiny_families.GRIDS["qwen2-vl"]
        self.before, self.model = small_model(seed), small_model(seed)
        self.processor = tiny.processor(folder)
        rng = np.random.default_rng(seed)
        self.layer, self.head = int(rng.integers(LAYERS)), int(rng.integers(HEADS))
        self._wire()

    @torch.no_grad()
    def _wire(self) -> None:
        """Queries are one constant, keys tell the mark, and the value of the mark speaks for the answer."""
        layer = self.model.model.language_model.layers[self.layer]
        attention, rows = layer.self_attn, slice(self.head * HEAD_WIDTH, (self.head + 1) * HEAD_WIDTH)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows] = 0
            projection.bias[rows] = 0
        attention.o_proj.weight[:, rows] = 0
        seen, is_mark = self._inputs_of(layer.input_layernorm)
        tells = self._direction(seen, is_mark)
        first = rows.start
        attention.q_proj.bias[first + SLOWEST] = 8.0 * HEAD_WIDTH**0.5
        attention.k_proj.weight[first + SLOWEST] = tells
        attention.v_proj.weight[first] = tells
        answer, foil = (self.processor.tokenizer(text).input_ids[0] for text in ("A", "B"))
        head = self.model.lm_head.weight
        attention.o_proj.weight[:, first] = 4.0 * torch.nn.functional.normalize(
            head[answer] - head[foil], dim=0
        )

    def _inputs_of(self, norm: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """What the layer reads at the tokens of all probes, Float[tokens, hidden], and which are marked cells."""
        kept: list[torch.Tensor] = []
        marked: list[torch.Tensor] = []
        prober = Prober(self.model, self.processor, key_layers=(0,), probes=self.probes)
        handle = norm.register_forward_hook(lambda _m, _i, out: kept.append(out[0]))
        seen = []
        try:
            for probe in self.probes:
                encoded = prober.reader.encode(probe, probe.answer)
                kept.clear()
                self.model(**padded([encoded], torch.device("cpu"), left=False))
                seen.append(kept[0])
                (x, y, _, _) = probe.regions["mark"][0]
                flags = torch.zeros(len(kept[0]), dtype=torch.bool)
                flags[encoded.images[0].positions[int(y) // CELL * COLUMNS + int(x) // CELL]] = True
                marked.append(flags)
        finally:
            handle.remove()
        return torch.cat(seen), torch.cat(marked)

    @staticmethod
    def _direction(seen: torch.Tensor, is_mark: torch.Tensor) -> torch.Tensor:
        """Of all directions the one that tells marked from unmarked tokens best (Fisher), 1 for the mark against the
        mean of the others."""
        marked, others = seen[is_mark], seen[~is_mark]
        difference = marked.mean(0) - others.mean(0)
        spread = torch.cov(others.T) + 1e-2 * torch.eye(seen.shape[1])
        direction = torch.linalg.solve(spread, difference)
        return direction / (direction @ difference)

    def records(self, *, after: bool) -> dict[str, AttentionRecord]:
        """Of the wired model with the attention of the other put back, or of the model before."""
        prober = Prober(
            self.model if after else self.before,
            self.processor,
            key_layers=range(LAYERS),
            probes=self.probes,
            depth=replace(WATCH, generate=False, patching=after),
            before=OtherModel(self.before, "before") if after else None,
        )
        return {one.probe_id: one for one in prober.run_all(int(after), "after" if after else "before")}


class Found(NamedTuple):
    """What a comparison and a choice of layers say of one seed's model."""

    wired: Wired
    group: dict[str, Any]
    choice: Calibration


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("wired")
    all_found = []
    for seed in range(SEEDS):
        wired = Wired(folder, seed)
        after = wired.records(after=True)
        comparison = comparison_of(pair_all(wired.probes, wired.records(after=False), after))
        choice = calibrate(wired.probes, after, evenly=range(LAYERS))
        all_found.append(Found(wired, comparison["groups"]["marks"], choice))
    return all_found


def test_the_wired_head_comes_first_in_the_comparison(found: list[Found]) -> None:
    first = [one.group["heads"]["significant"][0] for one in found]
    hits = [
        (head["layer"], head["head"]) == (one.wired.layer, one.wired.head)
        for head, one in zip(first, found, strict=True)
    ]
    assert sum(hits) >= LEAST_FOUND


def test_attention_is_judged_in_the_wired_layer(found: list[Found]) -> None:
    hits = [one.group["enrichment"]["layer"] == one.wired.layer for one in found]
    assert sum(hits) >= LEAST_FOUND


def test_the_wired_layer_carries_the_change_and_no_other_does(found: list[Found]) -> None:
    """Read off the margins: whatever the answer is, its change goes with the attention of one layer."""
    hits = []
    for one in found:
        share = {part["layers"][0]: part["share"] for part in one.group["mediation"] if part["part"] == LAYER}
        hits.append(bool(share) and max(share, key=share.__getitem__) == one.wired.layer)
    assert sum(hits) >= LEAST_FOUND


def test_the_wired_head_and_layer_come_first_when_layers_are_chosen(found: list[Found]) -> None:
    hits = [
        one.choice.heads[:1] == ((one.wired.layer, one.wired.head),) and one.wired.layer in one.choice.layers
        for one in found
    ]
    assert sum(hits) >= LEAST_FOUND
