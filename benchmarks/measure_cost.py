"""The cost of each measure for one probe, in milliseconds, at the demo's shape and at a large model's.

OMP_NUM_THREADS=1 python benchmarks/measure_cost.py
OMP_NUM_THREADS=1 python benchmarks/measure_cost.py --output benchmarks/results/measure_cost_2026-11-22_cpu.json

Made-up attention: what it looks like changes the time of the Wasserstein distance only, which is given for maps
that have little in common, its slow case. Writes one JSON object: medians, every head of every layer measured,
but for the Wasserstein distance and drift, which get the mean over heads of each layer. The demo's pictures are
small for the region, so that random regions are hard to place; the large model's are not.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from diagnostics.measures import attention, drift, sinks
from finetune.families.base import ImageTokens
from finetune.families.parts.coverage import region_coverage
from finetune.files import write_atomically


class Shape(NamedTuple):
    """A probe of a model. ``text`` tokens follow the image's, one for each cell."""

    layers: int
    heads: int
    grid: tuple[int, int]
    text: int
    width: int


SHAPES = {
    "demo": Shape(layers=4, heads=4, grid=(14, 14), text=60, width=128),
    "large": Shape(layers=32, heads=32, grid=(32, 32), text=60, width=4096),
}
REGION = [(60.0, 40.0, 140.0, 150.0), (150.0, 60.0, 180.0, 90.0)]  # pixels
CELL_PIXELS = 14
STEPS = 20  # checkpoints on the path that the plane shows


def main() -> None:
    args = arguments()
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "repeats": args.repeats,
        "unit": "milliseconds of CPU time a probe, median",
        "shapes": {
            name: shape._asdict() | milliseconds(shape, args.repeats) for name, shape in SHAPES.items()
        },
    }
    text = json.dumps(result, indent=1)
    if args.output is None:
        print(text)
        return
    write_atomically(args.output, (text + "\n").encode())


def milliseconds(shape: Shape, repeats: int) -> dict[str, dict[str, float]]:
    """Median of each measure; a first run of each, not counted, warms up. CPU time: others may use the machine."""
    medians = {}
    for name, measure in tqdm(measures(shape).items(), desc=f"{shape.layers} layers", file=sys.stderr):
        seconds = []
        for turn in range(repeats + 1):
            start = time.process_time()
            measure()
            if turn:
                seconds.append(time.process_time() - start)
        medians[name] = round(statistics.median(seconds) * 1000, 4)
    return {"milliseconds": medians}


def measures(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Each measure, ready to run on every layer and head of one probe."""
    rng = np.random.default_rng(0)
    image = square_cells(shape.grid)
    count = len(image.positions)
    tokens = count + shape.text
    rows = shares(rng, shape.layers, shape.heads, tokens)
    cells, generic = (shares(rng, shape.layers, shape.heads, count) for _ in range(2))
    before, after = cells.mean(1), generic.mean(1)
    share = rows[..., :count].sum(-1).mean(-1)
    coverage = region_coverage(REGION, image)
    random = attention.random_coverages(REGION, image, count=16, name="benchmark")
    entropies, logits = attention.row_entropy(rows, tokens), rng.random((shape.layers, shape.heads))
    head_means = np.tril(rng.random((shape.layers, tokens, tokens))).astype(np.float32)
    head_means /= head_means.sum(-1, keepdims=True)
    gradients = rng.normal(size=rows.shape)
    hidden = rng.normal(size=(tokens, shape.width)).astype(np.float32)
    hidden[0, 3] = 1000
    dimensions = sinks.sink_dimensions(hidden)
    found = sinks.sink_tokens(hidden, dimensions)
    path = shares(rng, STEPS, count)
    return {
        "visual_share": lambda: attention.visual_share(rows, image.positions),
        "region_mass": lambda: attention.region_mass(cells, coverage),
        "enrichment": lambda: attention.enrichment(cells, coverage),
        "random_coverages, 16": lambda: attention.random_coverages(REGION, image, count=16, name="benchmark"),
        "region_mass of 16 random regions": lambda: attention.region_mass(cells, random.mean(0)),
        "pointing_game": lambda: attention.pointing_game(cells, coverage),
        "iou": lambda: attention.iou(cells, coverage, shape.grid),
        "auc": lambda: attention.auc(cells, coverage),
        "nss": lambda: attention.nss(cells, coverage),
        "relative_attention": lambda: attention.relative_attention(cells, generic),
        "entropy": lambda: attention.entropy(cells),
        "row_entropy": lambda: attention.row_entropy(rows, tokens),
        "collapse": lambda: attention.collapse(entropies, entropies, logits, logits),
        "rollout": lambda: attention.rollout(head_means, tokens - 1),
        "gradient_weighted": lambda: attention.gradient_weighted(rows, gradients),
        "jensen_shannon_nats": lambda: attention.jensen_shannon_nats(cells, generic),
        "total_variation": lambda: drift.total_variation(cells, generic),
        "cosine": lambda: drift.cosine(cells, generic),
        "wasserstein_cells, head means": lambda: drift.wasserstein_cells(before, after, shape.grid),
        "drift, head means": lambda: drift.drift(before, after, share, share, shape.grid),
        f"principal_plane, {STEPS} steps": lambda: drift.principal_plane(path),
        "sink_dimensions, one layer": lambda: sinks.sink_dimensions(hidden),
        "sink_tokens, one layer": lambda: sinks.sink_tokens(hidden, dimensions),
        "sink_share": lambda: sinks.sink_share(rows, found),
        "without_sinks": lambda: sinks.without_sinks(rows, found),
    }


def shares(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Uneven rows that sum to 1, as attention is."""
    raw = rng.gamma(0.3, size=shape) + 1e-12
    return raw / raw.sum(-1, keepdims=True)


def square_cells(grid: tuple[int, int]) -> ImageTokens:
    """An image whose cells are squares, the first tokens of the sequence."""
    columns, rows = np.meshgrid(np.arange(grid[1]), np.arange(grid[0]))
    corners = np.stack([columns, rows, columns + 1, rows + 1], -1).reshape(-1, 4)
    return ImageTokens(
        positions=np.arange(len(corners)),
        grid=grid,
        cell_boxes_pixels=corners * float(CELL_PIXELS),
        image_size_pixels=(grid[1] * CELL_PIXELS, grid[0] * CELL_PIXELS),
        through_connector=False,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
