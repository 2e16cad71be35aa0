"""The cost of knock-outs that go on from one reading of the picture, relative to reading every prompt whole.

OMP_NUM_THREADS=1 python benchmarks/knockout_cost.py [--probes data/demo/probes/probes.json] [--output FILE]

Two models: the demo's with some of its probes (49 image tokens of 87), and a Qwen2.5-VL shape with random weights and
one picture of a thousand tokens. Both ways hide the same tokens, as a full probing's knock-outs of a region and its
controls do, everywhere and in windows, in turns. Margins must agree to 1e-4. CPU time, so that others may use the
machine.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.circumstances import circumstances
from benchmarks.train_speed_models import write_model
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.margins import Margins, ScoredInput
from diagnostics.probing.prober import BATCH_SIZE, auto_key_layers
from diagnostics.probing.prompts import EncodedProbe, ProbeEncoder
from diagnostics.records.probes import Probe, read_probes
from finetune.families import family_of
from finetune.files import write_atomically
from finetune.model.checkpoint import load

CONTROLS = 4
SIDE_PIXELS = 896  # 32 × 32 tokens of 28 pixels


def main() -> None:
    args = arguments()
    found: dict[str, Any] = {**circumstances(), "repeats": args.repeats}
    if args.probes is not None:
        found["demo"] = measured(
            Path("finetune/demo/base"), read_probes(args.probes)[:: args.every], args.repeats
        )
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        noise = np.random.default_rng(0).integers(0, 255, (SIDE_PIXELS, SIDE_PIXELS, 3), dtype=np.uint8)
        Image.fromarray(noise).save(picture)
        probe = Probe("p", "g", (picture,), "What is on the table?", "a cat", "a dog")
        shape = write_model(Path(folder) / "model", "qwen2.5-vl", None)
        found["qwen2.5-vl shape"] = measured(shape, [probe], args.repeats)
    text = json.dumps(found, indent=1)
    print(text)
    if args.output is not None:
        write_atomically(args.output, (text + "\n").encode())


@torch.no_grad()
def measured(folder: Path, probes: list[Probe], repeats: int) -> dict[str, Any]:
    model, processor = load(str(folder))
    model.eval()
    family = family_of(model.config)
    encoder = ProbeEncoder(family, processor)
    asked = [encoder.read(one) for one in probes]
    cases = [hidden(one, auto_key_layers(model)) for one in asked]
    with AttentionExtractor(model, [], connector=False, family=family) as extractor:
        margins = Margins(model, extractor, batch_size=BATCH_SIZE)

        def run() -> list[float]:
            return [one for at, probe in enumerate(asked) for one in margins.read(probe, cases[at])]

        pairs = []
        for turn in range(repeats + 1):  # the first warms up
            with mock.patch.object(Margins, "_behind_pictures", lambda *_: []):
                whole, whole_seconds = timed(run)
            behind, behind_seconds = timed(run)
            np.testing.assert_allclose(behind, whole, atol=1e-4)
            pairs += [(whole_seconds, behind_seconds)] if turn else []
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "tokens": len(asked[0].answer.input_ids),
        "image_tokens": len(asked[0].answer.images[0].all_positions),
        "probes": len(asked),
        "cases_a_probe": len(cases[0]),
        "cpu_seconds_whole": [round(one, 3) for one, _ in pairs],
        "cpu_seconds_behind_the_picture": [round(other, 3) for _, other in pairs],
        "ratio": round(statistics.median(other / one for one, other in pairs), 3),
    }


def hidden(asked: EncodedProbe, layers: tuple[int, ...]) -> list[ScoredInput]:
    """A region's tokens and its controls', everywhere and in a window at each key layer."""
    places = asked.answer.images[0].positions
    parts = np.array_split(places, 1 + CONTROLS)
    windows = [None, *((layer, layer) for layer in layers)]
    return [ScoredInput(asked.answer, tokens=part, layers=window) for window in windows for part in parts]


def timed(work: Any) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", type=Path, help="of the demo; without: the larger shape alone")
    parser.add_argument("--every", type=int, default=10, help="of the demo's probes, one of so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
