"""The cost of probing a checkpoint: CPU time of scores, attention and greedy replies, relative to a plain forward of
each probe with its answer.

OMP_NUM_THREADS=1 python benchmarks/probing_cost.py --probes data/demo/probes/probes.json [--output FILE]

Both sides read eight probes at a time and take turns. The plain side reads its pictures each time, as it has nothing to
keep them in; probing is that of every checkpoint but the first. CPU time, so that others may use the machine.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.circumstances import circumstances
from diagnostics.monitor import KEPT_PIXELS_BYTES
from diagnostics.probing.prober import BATCH_SIZE, Prober, auto_key_layers
from diagnostics.probing.prompts import ProbeEncoder, padded
from diagnostics.records.measurement_plan import WATCH
from diagnostics.records.probes import Probe, read_probes
from finetune.families import family_of
from finetune.files import write_atomically
from finetune.model.checkpoint import load

TOGETHER = BATCH_SIZE // 2


def main() -> None:
    args = arguments()
    model, processor = load(str(args.model))
    result = {
        **circumstances(),
        "model": args.model.name,
        "repeats": args.repeats,
        **measured(model, processor, read_probes(args.probes), args.repeats),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output is not None:
        write_atomically(args.output, (text + "\n").encode())


def measured(model: Any, processor: Any, probes: Sequence[Probe], repeats: int) -> dict[str, Any]:
    encoder = ProbeEncoder(family_of(model.config), processor)
    reader = ProbeEncoder(family_of(model.config), processor, keep_bytes=KEPT_PIXELS_BYTES)
    layers = auto_key_layers(model)
    prober = Prober(model, processor, key_layers=layers, probes=probes, depth=WATCH, reader=reader)

    def plain() -> None:
        with torch.no_grad():
            for start in range(0, len(probes), TOGETHER):
                batch = [encoder.encode(one, one.answer) for one in probes[start : start + TOGETHER]]
                model(**padded(batch, torch.device("cpu"), left=False), use_cache=False, logits_to_keep=1)

    model.eval()
    prober.run_all(0, "base")  # the first checkpoint: pictures are read, chance regions found
    pairs = [(seconds(plain), seconds(lambda: prober.run_all(0, "base"))) for _ in range(repeats)]
    tokens = int(np.median([len(encoder.encode(one, one.answer).input_ids) for one in probes[:TOGETHER]]))
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "probes": len(probes),
        "tokens": tokens,
        "cpu_seconds_plain": [round(one, 2) for one, _ in pairs],
        "cpu_seconds_probing": [round(other, 2) for _, other in pairs],
        "ratio": round(statistics.median(other / one for one, other in pairs), 2),
    }


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("finetune/demo/base"))
    parser.add_argument("--probes", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
