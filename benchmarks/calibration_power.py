"""Power: how large a rise of attention must be to be found, with effects planted in the noise of real corrections.

When a fault is corrected, attention changes by a factor that differs from probe to probe. What differs beside the
group's mean is the noise in which a rise has to be found, and it is larger than between two checkpoints that lie close
together. So the residuals of the demo's corrections (logarithm of the factor, minus its mean over the group, one for
each key layer and place) are drawn again, a rise of known size is added to the judged region, and the leg "attention"
is asked: did attention move to the region?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from diagnostics.comparison.enrichment import pooled_chances
from diagnostics.comparison.legs.attention import Reading, attention_leg, other_levels, read_attention
from diagnostics.comparison.maps import RegionChange
from diagnostics.comparison.pairs import LayerPair, ProbePair
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.statistics import relative_change
from diagnostics.records.probes import Probe
from finetune.families import ImageTokens
from finetune.files import in_place_of

Json = dict[str, Any]
GAINS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
COUNTS = (20, 40, 80, 160)
LEVEL = 0.95
CELLS = 10
"""Of a planted picture: each place is one of them, so that its enrichment is 10 times its mass."""
FLOOR = 1e-3  # enrichment below which logarithms mean nothing


@dataclass(frozen=True)
class Pool:
    """The noise of one group's probes under a correction.

    layers      the key layers
    places      the judged region first, then what it is held against
    before      Float[samples, layers, places]: enrichment before
    residual    Float[samples, layers, places]: log(after / before) minus its mean over the probes of one training
    """

    layers: tuple[int, ...]
    places: tuple[str, ...]
    before: Float[np.ndarray, "samples layers places"]
    residual: Float[np.ndarray, "samples layers places"]


# ---------------------------------------------------------------- noise


def pool_of(trainings: Sequence[Sequence[ProbePair]]) -> Pool | None:
    """The noise of one group, from its pairs in several trainings; None if it has no region. Places that not all
    probes have are left out."""
    members = [[pair for pair in pairs if pair.region is not None] for pairs in trainings]
    members = [pairs for pairs in members if pairs]
    if not members:
        return None
    levels = [[_levels(pair) for pair in pairs] for pairs in members]
    everywhere = set.intersection(*(set(one) for pairs in levels for one in pairs))
    places = tuple(name for name in levels[0][0] if name in everywhere)
    befores, residuals = [], []
    for pairs in levels:
        both = np.array([[one[name] for name in places] for one in pairs])  # [probes, places, layers, sides]
        both = np.maximum(both.transpose(0, 2, 1, 3), FLOOR)
        logs = np.log(both[..., 1] / both[..., 0])
        befores.append(both[..., 0])
        residuals.append(logs - logs.mean(0))
    layers = tuple(layer.layer for layer in members[0][0].layers)
    return Pool(layers, places, np.concatenate(befores), np.concatenate(residuals))


def _levels(pair: ProbePair) -> dict[str, list[tuple[float, float]]]:
    """Place → (before, after) in each key layer; the judged region comes first, under the name ""."""
    found: dict[str, list[tuple[float, float]]] = {"": []}
    for row, layer in enumerate(pair.layers):
        reading = pair.reading(layer)
        assert reading is not None
        found[""].append((reading.enrichment_before, reading.enrichment_after))
        for name, levels in other_levels(pair, row).items():
            found.setdefault(name, []).append(levels)
    return found


def spread(pool: Pool) -> Json:
    """Standard deviation over probes of the judged region's relative change, in each key layer."""
    before = pool.before[:, :, 0]
    deviations = relative_change(before, before * np.exp(pool.residual[:, :, 0])).std(0, ddof=1)
    return {
        "samples": len(pool.residual),
        "deviation_by_layer": {
            str(layer): round(float(one), 2) for layer, one in zip(pool.layers, deviations, strict=True)
        },
        "held_against": list(pool.places[1:]),
    }


# ---------------------------------------------------------------- planted pairs


def planted(
    pool: Pool, probes: int, gain: float, pictures: Sequence[Path], rng: np.random.Generator
) -> list[ProbePair]:
    """Probes drawn from the pool, with attention on the judged region raised by a share in every key layer.

    Each sample comes once where there are enough of them. ``pictures``: at least as many different ones as probes.
    """
    again = probes > len(pool.before)
    drawn = rng.choice(len(pool.before), probes, replace=again)
    before = pool.before[drawn]
    after = before * np.exp(pool.residual[drawn])
    after[:, :, 0] *= 1 + gain
    return [
        _pair(
            pool,
            before[at],
            after[at],
            Probe(f"planted-{at}", "planted", (pictures[at],), "?", "yes", "no", _regions(pool)),
        )
        for at in range(probes)
    ]


def _regions(pool: Pool) -> dict[str, tuple[tuple[float, float, float, float], ...]]:
    """Each place is one column of the picture."""
    return {name or "judged": ((at, 0, at + 1, 1),) for at, name in enumerate(pool.places)}


_IMAGE = ImageTokens(
    positions=np.arange(CELLS),
    grid=(1, CELLS),
    cell_boxes_pixels=np.array([[at, 0, at + 1, 1] for at in range(CELLS)], float),
    image_size_pixels=(CELLS, 1),
    through_connector=False,
)


def _pair(pool: Pool, before: np.ndarray, after: np.ndarray, probe: Probe) -> ProbePair:
    """A pair whose maps have the given enrichment at each place: Float[layers, places]."""
    layers = []
    for row, layer in enumerate(pool.layers):
        cells = [np.zeros(CELLS), np.zeros(CELLS)]
        for side, levels in zip(cells, (before, after), strict=True):
            side[: len(pool.places)] = levels[row] / CELLS
        judged = RegionChange(
            "judged", before[row, 0] / CELLS, after[row, 0] / CELLS, before[row, 0], after[row, 0]
        )
        layers.append(LayerPair(layer, cells[0], cells[1], {"judged": judged}, 0.0))
    record: Any = SimpleNamespace(
        image_tokens=(_IMAGE,), salient_mass={}, patches=(), supervised_layers=(), layers=pool.layers
    )
    return ProbePair(probe, record, record, "judged", tuple(layers))


def different_pictures(folder: Path, count: int) -> list[Path]:
    """Small pictures, no two alike: planted probes are independent, and pictures tell whether probes are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:05d}.png"
        Image.new("RGB", (CELLS, 1), (number % 256, number // 256, 0)).save(path)
        paths.append(path)
    return paths


# ---------------------------------------------------------------- power


def power(
    pools: Mapping[str, Pool],
    probes: int,
    repeats: int,
    pictures: Sequence[Path],
    *,
    gains: Sequence[float] = GAINS,
) -> list[Json]:
    """For each group and gain: in what share of comparisons is a rise planted in this group alone found?

    "rose": beyond chance and by at least 5 %. "moved to the region": the leg holds, so that the region's lead over
    every other place is as clear; None if there is none. Chance is adjusted for all groups, as in a comparison.
    """
    rng = np.random.default_rng(probes)
    counts = {(name, gain): np.zeros(2) for name in pools for gain in gains}
    for _ in range(repeats):
        quiet = {name: _read(planted(pool, probes, 0.0, pictures, rng)) for name, pool in pools.items()}
        for name, pool in pools.items():
            for gain in gains:
                reading = _read(planted(pool, probes, gain, pictures, rng))
                chance = pooled_chances(quiet | {name: reading})[name]
                leg, _ = attention_leg(reading, chance, (), Thresholds(), LEVEL)
                significant = chance < 1 - LEVEL and reading.direction > 0
                rose = significant and reading.relative.mean >= Thresholds().move
                counts[name, gain] += (rose, bool(leg.holds))
    return [
        {
            "group": name,
            "probes": probes,
            "gain": gain,
            "comparisons": repeats,
            "rose": round(float(found[0]) / repeats, 3),
            "moved_to_the_region": round(float(found[1]) / repeats, 3) if pools[name].places[1:] else None,
        }
        for (name, gain), found in counts.items()
    ]


def _read(pairs: Sequence[ProbePair]) -> Reading:
    reading = read_attention(pairs, lambda pair, layer: None, Thresholds(), LEVEL)
    assert reading is not None
    return reading


def draw(results: Json, path: Path) -> None:
    """Power against gain: a panel for each group whose region is held against other places, a line for each number of
    probes, 40 of them in bold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = results["power"]["curves"]
    groups = list(dict.fromkeys(one["group"] for one in curves if one["moved_to_the_region"] is not None))
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(3.3 * len(groups) + 1.2, 3.7),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, name in zip(axes[0], groups, strict=True):
        for probes, colour in zip(COUNTS, ("#b9c6d3", "#0b4f8a", "#5b8f5b", "#b5894a"), strict=True):
            points = [one for one in curves if one["probes"] == probes and one["group"] == name]
            axis.plot(
                [100 * one["gain"] for one in points],
                [100 * one["moved_to_the_region"] for one in points],
                color=colour,
                marker="o",
                markersize=4 if probes == 40 else 3,
                linewidth=2.6 if probes == 40 else 1.4,
                label=f"{probes} probes",
            )
        axis.axhline(95, color="#888", linewidth=0.8, linestyle=":")
        axis.set(title=name, xlabel="attention on the region raised by, %", ylim=(-2, 103))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("found, % of comparisons")
    axes[0][0].text(2, 96.2, "95 %", color="#666", fontsize=8)
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    with in_place_of(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
