"""Is what a comparison finds true, and what does it miss? Made-up groups of probes, the real statistics and verdicts.

python benchmarks/calibration.py                       writes benchmarks/results/calibration_DATE_cpu.json and
                                                       docs/images/power.png (minutes on one core)
python benchmarks/calibration.py --noise output_qwen   measures the noise below between a run's last two checkpoints

Null comparisons: nothing changed, so whatever is found is false. Which of a probe's two readings is called "before" is
decided by a coin, one for each picture, so that the noise is as in a real comparison and no direction is true. Planted
ones: enrichment of one group rises by a known share in the key layers, and how often that is found is the power.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from diagnostics.comparison.verdicts import CORRECTED, GroupNumbers, judged_layer, verdict
from diagnostics.measures.geometry import region_coverage
from diagnostics.measures.statistics import (
    SIGNIFICANT,
    bootstrap_mean,
    paired_change,
    relative_change,
    significant_heads,
)
from diagnostics.records.archive import load_records
from diagnostics.records.probes import Probe, read_probes
from finetune.files import in_place_of, write_atomically

ROOT = Path(__file__).parent.parent
PLANTED_GROUP = "sphere-building"
GAINS = (0.0, 0.05, 0.10, 0.15, 0.20, 0.30, 0.40)
COUNTS = (10, 20, 40, 80)
KEY_LAYERS = 4
NULLS = ("same noise", "two probes an image", "permuted correction")


@dataclass(frozen=True)
class Noise:
    """How much the enrichment of a probe differs between two checkpoints where nothing is to change.

    level   between probes, before: standard deviation of the logarithm, head by head
    probe   of the change (in logarithms, the group's mean taken out): what all layers and heads of a probe share
    layer   … what the heads of a layer share beyond that
    head    … each head's own
    """

    level: float
    probe: float
    layer: float
    head: float


# Between the demo's last two checkpoints (steps 220 and 330, 40 probes a group, 2026-11-22), by --noise. Training is
# not to change "neighbour" and "retention"; some of what "spatial-relation" shows is still learning.
MEASURED = {
    "sphere-building": Noise(level=0.62, probe=0.05, layer=0.06, head=0.15),
    "spatial-relation": Noise(level=1.07, probe=0.16, layer=0.05, head=0.26),
    "neighbour": Noise(level=1.69, probe=0.19, layer=0.09, head=0.34),
    "retention": Noise(level=1.69, probe=0.13, layer=0.14, head=0.30),
}
TAILS = 5  # degrees of freedom of Student's t: kurtosis 9; measured 3.2 to 7.9


class Group(NamedTuple):
    """What a comparison reads of one group's probes, as [before, after]."""

    enrichment: Float[np.ndarray, "2 probes layers heads"]
    margin_nats: Float[np.ndarray, "2 probes"]
    cost_nats: Float[np.ndarray, "2 probes"]
    control_nats: Float[np.ndarray, "2 probes"]
    images: list[int]


class Found(NamedTuple):
    """What a comparison says: the verdict, the judged key layer and its adjusted chance where attention rose, else
    None; and the adjusted p of each head."""

    verdict: str
    risen_layer: int | None
    heads: Float[np.ndarray, "layers heads"]


# ---------------------------------------------------------------- the comparison


def compare_groups(groups: Mapping[str, Group]) -> dict[str, Found]:
    """A comparison as ``diagnostics.compare`` makes it: one family of key layers, one of heads, a verdict a group."""
    layers, chances, heads = _tests(groups)
    return {
        name: _judge(name, group, layers[name][..., 0], chances[name][:, 0], heads[name])
        for name, group in groups.items()
    }


def _tests(groups: Mapping[str, Group]) -> tuple[dict[str, np.ndarray], ...]:
    """Enrichment in the key layers (mean over heads, Float[2, probes, key layers, 1]), and adjusted p of key layers
    and heads."""
    images = {name: group.images for name, group in groups.items()}
    layers = {
        name: group.enrichment[:, :, _key_layers(group)].mean(-1, keepdims=True)
        for name, group in groups.items()
    }
    heads = significant_heads(*_sides({name: group.enrichment for name, group in groups.items()}), images)
    return layers, significant_heads(*_sides(layers), images), heads


def _judge(name: str, group: Group, layers: np.ndarray, chances: np.ndarray, heads: np.ndarray) -> Found:
    relative = [bootstrap_mean(change, group.images) for change in relative_change(*layers).T]
    at = judged_layer(relative, list(chances))
    claim = verdict(
        GroupNumbers(
            group=name,
            probes=len(group.images),
            images=len(set(group.images)),
            accuracy=paired_change(*(group.margin_nats > 0).astype(float), group.images),
            enrichment=paired_change(*layers[:, :, at], group.images),
            enrichment_relative=relative[at],
            enrichment_chance=float(chances[at]),
            occlusion_cost_nats=paired_change(*group.cost_nats, group.images),
            control_cost_nats=(float(group.control_nats[0].mean()), float(group.control_nats[1].mean())),
            occlusion_over_control=bootstrap_mean(group.cost_nats[1] - group.control_nats[1], group.images),
        )
    )
    rose = chances[at] < SIGNIFICANT and relative[at].mean > 0
    return Found(claim.verdict, at if rose else None, heads)


def _sides(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return {name: one[0] for name, one in arrays.items()}, {name: one[1] for name, one in arrays.items()}


def _key_layers(group: Group) -> list[int]:
    """Four layers, evenly spaced: all of four, every eighth of 32."""
    layers = group.enrichment.shape[2]
    return [(at + 1) * layers // KEY_LAYERS - 1 for at in range(KEY_LAYERS)]


# ---------------------------------------------------------------- made-up groups


def unchanged(
    rng: np.random.Generator, probes: int, layers: int, heads: int, noise: Noise, *, probes_an_image: int = 1
) -> Group:
    """Two readings of each probe, noise apart; a coin for each image says which is "before"."""
    images = [probe // probes_an_image for probe in range(probes)]
    enrichment = _readings(rng, images, layers, heads, noise)
    shared = rng.normal(0, 0.9, (2, images[-1] + 1))[
        :, images
    ]  # the demo's margins move by this between checkpoints
    margin = rng.normal(0.5, 2, probes) + shared + rng.normal(0, 0.2, (2, probes))
    cost = rng.normal(2, 2, probes) + shared + rng.normal(0, 0.2, (2, probes))
    control = rng.normal(0, 0.1, (2, probes))
    return _coins(rng, Group(enrichment, margin, cost, control, images))


def correction(rng: np.random.Generator, probes: int, layers: int, heads: int, noise: Noise) -> Group:
    """A thorough correction: wrong → right, three times the attention, a cost that appears."""
    images = list(range(probes))
    enrichment = _readings(rng, images, layers, heads, noise) * np.array([1.0, 3.0])[:, None, None, None]
    margin = rng.normal(np.array([[-3.0], [3.0]]), 1.5, (2, probes))
    cost = rng.normal(np.array([[0.2], [4.0]]), 1.0, (2, probes))
    return Group(enrichment, margin, cost, rng.normal(0, 0.1, (2, probes)), images)


def permuted(rng: np.random.Generator, probes: int, layers: int, heads: int, noise: Noise) -> Group:
    """A correction whose "before" and "after" are exchanged in half of the probes at random: large changes without
    direction."""
    return _coins(rng, correction(rng, probes, layers, heads, noise))


def planted(group: Group, gain: float, layers: Sequence[int]) -> Group:
    """The group with its attention to the region raised by a share in all heads of some layers, after."""
    enrichment = group.enrichment.copy()
    enrichment[1][:, list(layers)] *= 1 + gain
    return group._replace(enrichment=enrichment)


def same(group: Group) -> Group:
    """A checkpoint against itself."""
    return Group(*(np.stack([one[0], one[0]]) for one in group[:4]), group.images)


def _readings(
    rng: np.random.Generator, images: Sequence[int], layers: int, heads: int, noise: Noise
) -> Float[np.ndarray, "2 probes layers heads"]:
    """Enrichment before and after; probes of one image share level and noise but for a tenth of each head's own."""
    count = images[-1] + 1
    level = rng.normal(0, noise.level, (count, 1, 1)) + rng.normal(0, 0.5, (layers, heads))
    change = (
        noise.probe * _heavy(rng, (count, 1, 1))
        + noise.layer * _heavy(rng, (count, layers, 1))
        + noise.head * _heavy(rng, (count, layers, heads))
    )[list(images)]
    if count < len(images):
        change += 0.1 * noise.head * _heavy(rng, change.shape)
    halves = np.stack([-change / 2, change / 2])
    return np.exp(level[list(images)] + halves)


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with standard deviation 1."""
    return rng.standard_t(TAILS, shape) * math.sqrt((TAILS - 2) / TAILS)


def _coins(rng: np.random.Generator, group: Group) -> Group:
    turned = rng.integers(0, 2, group.images[-1] + 1)[group.images].astype(bool)
    parts = [one.copy() for one in group[:4]]
    for one in parts:
        one[:, turned] = one[::-1, turned]
    return Group(*parts, group.images)


# ---------------------------------------------------------------- rates


def null_rates(
    kind: str, size: tuple[int, int], repeats: int, *, probes: int = 40, seed: int = 0
) -> dict[str, Any]:
    """How often does a comparison in which nothing changed find something? ``kind``: "same noise", "two probes an
    image", "permuted correction" or "itself"."""
    rng = np.random.default_rng(seed)
    corrected = head = layer = either = 0
    for _ in tqdm(range(repeats), desc=f"{kind}, {size[0]} × {size[1]}", disable=None, leave=False):
        found = compare_groups(_null_groups(rng, kind, probes, size)).values()
        has_corrected = any(one.verdict == CORRECTED for one in found)
        has_head = any((one.heads < SIGNIFICANT).any() for one in found)
        corrected, head, either = (
            corrected + has_corrected,
            head + has_head,
            either + (has_corrected or has_head),
        )
        layer += any(one.risen_layer is not None for one in found)
    return {
        "what": kind,
        "layers_heads": list(size),
        "comparisons": repeats,
        "probes_a_group": probes,
        "any_corrected": corrected / repeats,
        "any_significant_head": head / repeats,
        "either": either / repeats,
        "either_standard_error": round(math.sqrt(max(either, 1) * max(repeats - either, 1) / repeats**3), 4),
        "any_group_whose_attention_rose": layer / repeats,
    }


def _null_groups(rng: np.random.Generator, kind: str, probes: int, size: tuple[int, int]) -> dict[str, Group]:
    if kind == "permuted correction":
        return {name: permuted(rng, probes, *size, noise) for name, noise in MEASURED.items()}
    an_image = 2 if kind == "two probes an image" else 1
    groups = {
        name: unchanged(rng, probes, *size, noise, probes_an_image=an_image)
        for name, noise in MEASURED.items()
    }
    return {name: same(group) for name, group in groups.items()} if kind == "itself" else groups


def power(
    size: tuple[int, int],
    noise: Noise,
    probes: int,
    gain: float,
    repeats: int,
    *,
    planted_layers: int = KEY_LAYERS,
    seed: int = 0,
) -> dict[str, float]:
    """How often is a planted gain found: in a key layer that has it, and in what share of the heads that have it?

    The group has the given noise, the other three groups of the comparison theirs and no gain.
    """
    rng = np.random.default_rng(seed)
    layer = head = 0.0
    for _ in range(repeats):
        groups = {name: unchanged(rng, probes, *size, one) for name, one in MEASURED.items()}
        group = unchanged(rng, probes, *size, noise)
        at = _key_layers(group)[:planted_layers]
        groups[PLANTED_GROUP] = group = planted(group, gain, at)
        layers, chances, heads = _tests(groups)
        rises = relative_change(*layers[PLANTED_GROUP][..., 0]).mean(0) > 0
        layer += bool((rises & (chances[PLANTED_GROUP][:, 0] < SIGNIFICANT))[:planted_layers].any())
        head += float((heads[PLANTED_GROUP][at] < SIGNIFICANT).mean())
    found = {"attention_rose": round(layer / repeats, 4), "heads_named": round(head / repeats, 4)}
    return {"probes": probes, "gain": gain, "comparisons": repeats, **found}


def power_curves(size: tuple[int, int], noise: Noise, repeats: int, label: str) -> list[dict[str, float]]:
    cells = [(probes, gain) for probes in COUNTS for gain in GAINS]
    return [
        power(size, noise, probes, gain, repeats, seed=1000 * probes + round(100 * gain))
        for probes, gain in tqdm(cells, desc=f"power, {label}", disable=None)
    ]


# ---------------------------------------------------------------- noise of a run


def measure_noise(output_dir: Path) -> dict[str, Any]:
    """Group → ``Noise`` and kurtosis between the last two checkpoints of a run.

    Raises ValueError where fewer than two checkpoints have records.
    """
    steps = sorted((output_dir / "attention").glob("step-*"))
    if len(steps) < 2:
        raise ValueError(f"{output_dir}: found {len(steps)} folders attention/step-*, expected at least 2")
    probes = read_probes(output_dir / "attention" / "probes.json")
    records = [load_records(folder) for folder in steps[-2:]]
    groups: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.main_region is not None:
            groups.setdefault(probe.group, []).append(probe)
    measured: dict[str, Any] = {"checkpoints": [folder.name for folder in steps[-2:]]}
    for name, members in groups.items():
        logs = np.log([[_enrichment(probe, side[probe.id]) for probe in members] for side in records])
        measured[name] = {"probes": len(members), **_components(logs)}
    return measured


def _enrichment(probe: Probe, record: Any) -> Float[np.ndarray, "layers heads"]:
    """Of the region that claims are about, in the key layers."""
    share = region_coverage(probe.regions[probe.main_region or ""], record.image_tokens[0]).mean()
    return record.region_mass[probe.main_region][list(record.layers)].astype(float) / share


def _components(logs: Float[np.ndarray, "2 probes layers heads"]) -> dict[str, float]:
    change = logs[1] - logs[0]
    change -= change.mean(0)
    of_layers = change.mean(2)
    covariance = np.cov(of_layers.T)
    shared = covariance[np.triu_indices(len(covariance), 1)].mean()
    head = (change - of_layers[:, :, None]).std(ddof=1)
    layer = max(np.diag(covariance).mean() - shared - head**2 / change.shape[2], 0.0)
    kurtosis = ((of_layers / of_layers.std(0)) ** 4).mean()
    parts = {"level": logs[0].std(0, ddof=1).mean(), "probe": math.sqrt(shared), "layer": math.sqrt(layer)}
    return {
        name: round(float(value), 2) for name, value in {**parts, "head": head, "kurtosis": kurtosis}.items()
    }


# ---------------------------------------------------------------- results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noise", type=Path, metavar="RUN", help="measure the noise of this run and stop")
    parser.add_argument("--repeats", type=int, default=300, help="null comparisons of 4 × 4 heads")
    args = parser.parse_args()
    if args.noise:
        print(json.dumps(measure_noise(args.noise), indent=1))
        return
    results = calibrate(args.repeats)
    date = datetime.date.today().isoformat()
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_atomically(ROOT / "benchmarks" / "results" / f"calibration_{date}_cpu.json", text.encode())
    draw(results, ROOT / "docs" / "images" / "power.png")
    print(text)


def calibrate(repeats: int) -> dict[str, Any]:
    start = time.perf_counter()
    large = max(200, repeats // 3)
    null = [
        null_rates("itself", (4, 4), 20),
        *(null_rates(kind, (4, 4), repeats) for kind in NULLS),
        *(null_rates(kind, (32, 32), large) for kind in ("same noise", "permuted correction")),
    ]
    at_40 = [
        {
            "noise": name,
            "key_layers_that_rise": risen,
            **power((4, 4), noise, 40, 0.3, 3 * repeats, planted_layers=risen),
        }
        for name, noise in tqdm(MEASURED.items(), desc="power of 40 probes", disable=None)
        for risen in (KEY_LAYERS, 1)
    ]
    curves = {name: power_curves((4, 4), noise, repeats // 3, name) for name, noise in MEASURED.items()}
    heads = power_curves((32, 32), MEASURED["retention"], max(1, repeats // 30), "32 × 32 heads")
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "numpy": np.__version__,
        "seconds": round(time.perf_counter() - start),
        "noise": {name: asdict(noise) for name, noise in MEASURED.items()},
        "tails": f"Student's t, {TAILS} degrees of freedom",
        "groups": len(MEASURED),
        "key_layers": KEY_LAYERS,
        "null": null,
        "power_40_probes_gain_30_percent": at_40,
        "power": curves,
        "power_of_1024_heads_noise_of_retention": heads,
    }


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Power against gain, a line for each number of probes, 40 of them in bold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = (
        (results["power"]["retention"], "attention_rose", "A key layer, noise of retention"),
        (results["power"]["neighbour"], "attention_rose", "A key layer, noise of neighbours"),
        (
            results["power_of_1024_heads_noise_of_retention"],
            "heads_named",
            "One of 1,024 heads, noise of retention",
        ),
    )
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), sharey=True, layout="constrained")
    for axis, (curve, reading, title) in zip(axes, panels, strict=True):
        for probes, colour in zip(COUNTS, ("#b9c6d3", "#7fa3c4", "#0b4f8a", "#5b8f5b"), strict=True):
            points = [one for one in curve if one["probes"] == probes]
            axis.plot(
                [100 * one["gain"] for one in points],
                [100 * one[reading] for one in points],
                color=colour,
                marker="o",
                markersize=4 if probes == 40 else 3,
                linewidth=2.6 if probes == 40 else 1.4,
                label=f"{probes} probes",
            )
        axis.axhline(95, color="#888", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="attention on the region raised by, %", ylim=(-2, 103), xlim=(-1, 41))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("found, % of comparisons")
    axes[0].text(0.2, 96.2, "95 %", color="#666", fontsize=8)
    axes[2].legend(frameon=False, loc="upper left")
    with in_place_of(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
