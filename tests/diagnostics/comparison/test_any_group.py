"""Whatever a group holds or lacks, a comparison is made of it: no crash, no NaN, a known verdict, whole sentences."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diagnostics.compare import compare, table
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import VERDICTS
from diagnostics.records.probes import Probe, read_probes
from diagnostics.records.record import AttentionRecord, PatchSource, Scores
from tests.diagnostics.comparison.random_runs import SIDES, Group, saved_run

Both = tuple[AttentionRecord, AttentionRecord]
Random = np.random.Generator


def _without_controls(both: Both, rng: Random) -> Both:
    """Random regions were intervened on in some probes only."""
    if rng.random() < 0.5:
        return both
    first, second = (
        replace(
            one, interventions=tuple(each._replace(control_margins_nats=()) for each in one.interventions)
        )
        for one in both
    )
    return first, second


def _watched(both: Both, rng: Random) -> Both:
    """Before was only watched: no interventions, other pictures, random places."""
    return _bare(both[0]), both[1]


def _some_bare(both: Both, rng: Random) -> Both:
    return both if rng.random() < 0.5 else (_bare(both[0]), _bare(both[1]))


def _bare(record: AttentionRecord) -> AttentionRecord:
    empty = np.zeros((0, 0), np.float32)
    return replace(
        record,
        interventions=(),
        picture_controls=(),
        patches=(),
        patched_from=None,
        sinks=empty,
        head_entropy=empty,
        highest_logit=empty,
        random_mass={},
        salient_mass={},
        region_mass_without_sinks={},
        maps={},
        curves={},
    )


def _other_maps(both: Both, rng: Random) -> Both:
    """Some records lack a map, a curve or a patched part."""
    found = []
    for one in both:
        maps = {name: value for name, value in one.maps.items() if rng.random() < 0.5}
        curves = {name: value for name, value in one.curves.items() if rng.random() < 0.5}
        patches = tuple(each for each in one.patches if rng.random() < 0.7)
        found.append(replace(one, maps=maps, curves=curves, patches=patches))
    return found[0], found[1]


def _margins(both: Both, rng: Random, values: Callable[[Random], tuple[float, float]]) -> Both:
    first, second = (
        replace(one, scores=Scores(-1.0, -1.0 - value, one.scores.generated))
        for one, value in zip(both, values(rng), strict=True)
    )
    return first, second


def _all_negative(both: Both, rng: Random) -> Both:
    return _margins(both, rng, lambda rng: (-9.0, float(rng.uniform(-9, -1))))


def _all_equal(both: Both, rng: Random) -> Both:
    return _margins(both, rng, lambda _: (1.5, 1.5))


def _no_margin(both: Both, rng: Random) -> Both:
    return _margins(both, rng, lambda _: (0.0, 0.0))


def _outliers(both: Both, rng: Random) -> Both:
    return _margins(both, rng, lambda rng: (-1e4 if rng.random() < 0.1 else -1.0, float(rng.normal(0, 50))))


def _same_record(both: Both, rng: Random) -> Both:
    return both[0], replace(both[0], step=10)


def _masses_tie(both: Both, rng: Random) -> Both:
    """Half of the heads look at nothing before, the others at nothing after: each change is ±2."""
    found = []
    for side, one in enumerate(both):
        masses = {}
        for name, value in one.region_mass.items():
            masses[name] = value.copy()
            masses[name][:, side::2] *= 0
        found.append(replace(one, region_mass=masses, random_mass={}))
    return found[0], found[1]


def _on_one_cell(both: Both, rng: Random) -> Both:
    """All attention on one token, each side another."""
    found = []
    for one in both:
        rows = np.zeros_like(one.rows)
        rows[..., rng.choice(one.image_tokens[0].positions)] = 1
        found.append(replace(one, rows=rows))
    return found[0], found[1]


def _silent(both: Both, rng: Random) -> Both:
    first, second = (replace(one, scores=one.scores.__class__(*_nats(one), "")) for one in both)
    return first, second


def _nats(one: AttentionRecord) -> tuple[float, float | None]:
    return one.scores.answer_nats, one.scores.foil_nats


def _another_lender(both: Both, rng: Random) -> Both:
    return (both[0], replace(both[1], patched_from=PatchSource("other", 99.0))) if both[1].patches else both


def _some_without_foil(both: Both, rng: Random) -> Both:
    if rng.random() < 0.6:
        return both
    first, second = (
        replace(
            _bare(one),
            sinks=one.sinks,
            scores=Scores(-1.0, None, one.scores.generated),
            random_mass=one.random_mass,
        )
        for one in both
    )
    return first, second


def _two_pictures(both: Both, rng: Random) -> Both:
    first, second = (
        replace(one, image_tokens=one.image_tokens * 2, connector=one.connector * 2) for one in both
    )
    return first, second


def _a_video(both: Both, rng: Random) -> Both:
    def video(one: AttentionRecord) -> AttentionRecord:
        image = one.image_tokens[0]
        seconds = tuple(float(at) for at in range(image.grid[0]))
        return replace(one, image_tokens=(replace(image, seconds=seconds),))

    return video(both[0]), video(both[1])


def _unchanged(both: Both, rng: Random) -> Both:
    return both


FAULTS = (
    *(
        _unchanged,
        _without_controls,
        _watched,
        _some_bare,
        _other_maps,
        _all_negative,
        _all_equal,
        _no_margin,
    ),
    *(_outliers, _same_record, _masses_tie, _on_one_cell, _silent, _another_lender, _some_without_foil),
    *(_two_pictures, _a_video),
)


def _groups(rng: Random) -> tuple[Group, ...]:
    """One to four groups of one to 30 probes, some without regions or foils."""
    found = []
    for name in rng.permutation(["towers", "guards", "neighbour", "retention", "plain"])[
        : rng.integers(1, 5)
    ]:
        probes = int(rng.choice([1, 2, 5, 19, 20, 23]))
        regions = ("spheres", "podium", "sky", "tower")[: rng.choice([0, 1, 2, 4])]
        answers = ("Canton", "Pearl") if name == "guards" else ("Pearl", "Canton")
        found.append(
            Group(
                str(name),
                probes,
                int(rng.integers(max(probes - 3, 1), probes + 1)),
                margins=(float(rng.normal(-1, 3)), float(rng.normal(3, 3))),
                cost=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 1.2))),
                other_cost=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
                gain=tuple(rng.uniform(0.2, 5, 3)),
                carried=float(rng.choice([0, 0.05, 0.5])),
                missing=float(rng.choice([0, 0.1, 0.5])),
                answer=answers[0],
                foil=None if name == "plain" else answers[1],
                regions=regions,
                related=len(regions) > 1 and bool(rng.random() < 0.3),
            )
        )
    return tuple(found)


def _numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _numbers(one)
    elif isinstance(content, float):
        yield content


def _faulty(
    folder: Path, fault: Callable[[Both, Random], Both], rng: Random
) -> tuple[tuple[Probe, ...], Any]:
    probes = read_probes(folder / "probes.json")
    sides: tuple[dict[str, AttentionRecord], dict[str, AttentionRecord]] = ({}, {})
    for probe in probes:
        before, after = (AttentionRecord.load(folder / side / f"{probe.id}.safetensors") for side in SIDES)
        if before.scores.foil_nats is None:
            sides[0][probe.id], sides[1][probe.id] = before, after
        else:
            sides[0][probe.id], sides[1][probe.id] = fault((before, after), rng)
    return probes, sides


@pytest.mark.parametrize("seed", range(len(FAULTS)))
def test_a_comparison_is_made_of_any_groups(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    groups = _groups(rng)
    fault = FAULTS[seed % len(FAULTS)]
    probes, sides = _faulty(saved_run(tmp_path, groups, seed), fault, rng)
    asked = Thresholds(probes=int(rng.choice([2, 5, 20])))
    comparison = compare(*sides, tmp_path, probes=probes, thresholds=asked)
    written = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert all(math.isfinite(one) for one in _numbers(written))
    assert set(written["groups"]) == {group.name for group in groups}
    for group in written["groups"].values():
        assert group["verdict"] in VERDICTS
        for leg in group["legs"].values():
            assert leg["holds"] in (True, False, None) and leg["probes"] <= len(probes)
            assert leg["holds"] is not True or leg["ci95"][0] <= leg["value"] <= leg["ci95"][1]
            for reason in (leg["reason"], *group["reasons"]):
                assert reason.endswith(".") and ". " not in reason[:-1] and "  " not in reason, reason
                assert not {"nan", "inf", "None", "()"} & set(reason.replace(",", " ").split()), reason
    assert table(comparison)
