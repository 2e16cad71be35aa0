"""Every number of comparison.json, recomputed from the record files by other code."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diagnostics.compare import compare, compare_sources
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import VERDICTS
from diagnostics.records.probes import read_probes, write_probes
from diagnostics.records.record import AttentionRecord
from tests.diagnostics.comparison.from_files import recomputed
from tests.diagnostics.comparison.legs.test_attention import FALL, RISE, against_the_rest, half_blind
from tests.diagnostics.comparison.made_pairs import GUARDS as KEPT
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of
from tests.diagnostics.comparison.random_runs import SIDES, Group, saved_run
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes, tiny_processor

GUARDS = Group(
    "guards", margins=(4.0, 4.0), spread=1.5, gain=(1, 1, 1), answer="Canton", foil="Pearl", said=(0.9, 0.9)
)
TOWERS = Group("towers", 30, 26, said=(0.1, 1.0))
FEWER = replace(TOWERS, probes=20, pictures=20)
RUNS: dict[str, tuple[int, Thresholds, tuple[Group, ...], dict[str, str]]] = {
    "a correction, tokens that are cells": (
        0,
        Thresholds(),
        (TOWERS, GUARDS, Group("plain", 6, 6, foil=None)),
        {"towers": "corrected", "guards": "it did not move", "plain": "answers not measured"},
    ),
    "a resampler, measurements missing, a neighbour and relations": (
        1,
        Thresholds(probes=10, cost=0.3, disagreement=0.3),
        (
            Group(
                "towers", 28, 23, missing=0.15, gain=(1, 4, 4), regions=("spheres", "podium", "sky", "tower")
            ),
            Group("neighbour", 24, 24, (3.0, 2.0), foil="Canton", regions=(), said=(0.8, 0.7)),
            Group("on", 22, 22, (-2.0, 1.0), answer="on", foil="under", related=True, carried=0.05),
            Group("under", 12, 11, (2.0, 2.0), answer="under", foil="on", missing=0.4, other_cost=(0.1, 0.9)),
        ),
        {},
    ),
    "an overview, faults one by one": (
        2,
        Thresholds(),
        (
            TOWERS,
            GUARDS,
            replace(TOWERS, name="misled", probes=20, pictures=20, other_cost=(0.9, 0.9), gain=(3, 3, 3)),
            replace(TOWERS, name="fled", probes=20, pictures=20, gain=(0.1, 0.1, 0.1)),
            replace(TOWERS, name="few", probes=9, pictures=9),
            Group("retention", 21, 21, (4.0, 2.0), regions=()),
        ),
        {
            "misled": "answers and attention changed, cause does not agree",
            "fled": "answers changed, attention left the region",
            "few": "too few probes",
        },
    ),
    "pictures that were trained on": (
        0,
        Thresholds(),
        (
            TOWERS,
            replace(GUARDS, trained=1),
            replace(TOWERS, name="learnt", probes=20, pictures=20, foil="Liberty", trained=20),
            replace(TOWERS, name="worse", probes=20, pictures=20, margins=(4.0, -4.0), trained=2),
            replace(TOWERS, name="few", probes=9, pictures=9, trained=9),
            Group("retention", 21, 21, (4.0, 4.0), regions=(), trained=3, said=(0.9, 0.9)),
        ),
        {
            "towers": "corrected, unguarded",
            "guards": "not held out",
            "learnt": "not held out",
            "worse": "answers got worse",
            "few": "too few probes",
            "retention": "not held out",
        },
    ),
    "attention that was trained on": (
        0,
        Thresholds(),
        (
            replace(TOWERS, told=((3,), 2, False), gain=(3, 1.1, 3)),
            GUARDS,
            replace(FEWER, name="there-alone", told=((3,), 0, False), gain=(1, 9, 1)),
            replace(FEWER, name="everywhere", told=((1, 3, 4), 0, False)),
            replace(FEWER, name="photographed", told=((1,), 20, False)),
            replace(FEWER, name="resampler", told=((1,), 0, True)),
        ),
        {
            "towers": "corrected",
            "there-alone": "answers changed, attention did not",
            "everywhere": "answers changed, attention not measured",
            "photographed": "answers changed, attention not measured",
            "resampler": "answers changed, attention not measured",
        },
    ),
}
EXACT, ROUNDED = 1e-9, 2e-6
"""Relative to the larger of 1 and the number; attention is kept in single precision, nats in double."""
OF_ATTENTION = (
    *(
        "enrichment",
        "enrichment_by_layer",
        "localisation",
        "further_maps",
        "heads",
        "relation_enrichment",
        "relation",
    ),
    *("visual_share", "sink_share", "drift", "drift_jsd_nats", "collapse", "curves", "effect_size", "layers"),
)
TOLD = {
    0: ("version", "before", "after", "thresholds"),  # who was compared
    2: ("reasons", "warnings", "group", "question", "answer", "foil", "said"),  # of a group, of a probe
    4: ("reason",),  # of a leg
}
"""Depth → words that no number stands in."""


def compared(found: Any, expected: Any, where: tuple[str, ...] = ()) -> int:
    """How many numbers, names and nulls were compared; all that was found must be expected, and the other way round."""
    at = ".".join(where)
    if isinstance(found, dict):
        keys = set(found) - set(TOLD.get(len(where), ()))
        assert isinstance(expected, dict) and keys == set(expected), f"{at}: {found} for {expected}"
        return sum(compared(found[key], expected[key], (*where, key)) for key in keys)
    if isinstance(found, list):
        assert isinstance(expected, list) and len(found) == len(expected), f"{at}: {found} for {expected}"
        pairs = zip(found, expected, strict=True)
        return sum(compared(*both, (*where, str(index))) for index, both in enumerate(pairs))
    if isinstance(found, float) and isinstance(expected, float | int):
        rounded = any(one in OF_ATTENTION for one in where) or where[-3:-1] == ("legs", "attention")
        tolerance = ROUNDED if rounded or "attention" in where else EXACT
        near = math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
        assert near, f"{at}: {found!r} for {expected!r}"
        return 1
    assert found == expected and type(found) is type(expected), f"{at}: {found!r} for {expected!r}"
    return 1


def both_ways(folder: Path, thresholds: Thresholds | None = None) -> tuple[dict[str, Any], int]:
    """The comparison as written to disk, and how many of its numbers were found again."""
    probes = read_probes(folder / "probes.json")
    sides = [{p.id: AttentionRecord.load(folder / s / f"{p.id}.safetensors") for p in probes} for s in SIDES]
    compare(*sides, folder, probes=probes, thresholds=thresholds)
    written = json.loads((folder / "comparison" / "comparison.json").read_text())
    return written, compared(written, recomputed(folder, written["thresholds"]))


@pytest.mark.parametrize("name", RUNS)
def test_every_number_is_found_again_by_other_code(name: str, tmp_path: Path) -> None:
    seed, thresholds, groups, verdicts = RUNS[name]
    written, numbers = both_ways(saved_run(tmp_path, groups, seed), thresholds)
    assert numbers > 4000
    assert all(group["verdict"] in VERDICTS for group in written["groups"].values())
    assert {name: written["groups"][name]["verdict"] for name in verdicts} == verdicts


@pytest.mark.parametrize("layers", [(RISE, RISE), (FALL, FALL)])
def test_what_a_few_probes_do_against_the_rest_is_found_again(layers: Any, tmp_path: Path) -> None:
    pairs = against_the_rest(tmp_path, *layers)
    write_probes([pair.probe for pair in pairs], tmp_path / "probes.json")
    for pair, side in itertools.product(pairs, SIDES):
        getattr(pair, side).save(tmp_path / side / f"{pair.probe.id}.safetensors")
    assert both_ways(tmp_path)[1] > 1000


@pytest.mark.parametrize("which", ["layer 1", "layer 1, half of the pictures", "every layer"])
def test_layers_that_do_not_see_the_region_are_found_again(which: str, tmp_path: Path) -> None:
    region = ((0.0, 0.0),) * 2 if which == "every layer" else ((0.0, 3.0), (0.0, 1.0))
    made = flat(pairs_of(tmp_path, pearl=Made(region=region)))
    pairs = [*(half_blind(tmp_path) if "half" in which else made), *flat(pairs_of(tmp_path, neighbour=KEPT))]
    write_probes([pair.probe for pair in pairs], tmp_path / "probes.json")
    for pair, side in itertools.product(pairs, SIDES):
        getattr(pair, side).save(tmp_path / side / f"{pair.probe.id}.safetensors")
    written, numbers = both_ways(tmp_path)
    assert numbers > 1000
    assert (written["groups"]["pearl"]["enrichment"] is None) == (which == "every layer")


def test_a_real_run_is_found_again(tmp_path: Path) -> None:
    """Two small models, probed here: what was measured, not made up."""
    for seed, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_processor(tmp_path / name).save_pretrained(tmp_path / name)
    write_probes(tiny_probes(tmp_path), tmp_path / "probes.json")
    out, probes = tmp_path / "out", tmp_path / "probes.json"
    ends = str(tmp_path / "base"), str(tmp_path / "tuned")
    written = compare_sources(
        *ends, out, probes_file=probes, key_layers="0,2", thresholds=Thresholds(probes=2)
    )
    assert any(group["legs"]["mediation"]["probes"] for group in written["groups"].values())
    assert compared(written, recomputed(out / "attention", written["thresholds"])) > 150
