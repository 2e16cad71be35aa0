"""The cost of the legs of a verdict: CPU time of a quick probing with them, relative to one without.

OMP_NUM_THREADS=1 python benchmarks/legs_cost.py --after ADAPTER --probes data/demo/probes/probes.json [--output FILE]

Both plans run on the same model and probes, in turns: without (occlusion, one knock-out, relations: what "quick" was
before there were legs) and with (pictures replaced, attention put back, two knock-outs). The adapter's base is the
model before. CPU time, so that others may use the machine.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.circumstances import circumstances
from diagnostics.probing.before import AdapterOff
from diagnostics.probing.prober import Prober, auto_key_layers
from diagnostics.records.measurement_plan import OCCLUSION, QUICK, TOWER_KNOCKOUT, MeasurementPlan
from diagnostics.records.probes import read_probes
from finetune.files import write_atomically
from finetune.model.checkpoint import load

WITHOUT = replace(QUICK, name="without legs", kinds=(OCCLUSION, TOWER_KNOCKOUT), pictures=(), patching=False)


def main() -> None:
    args = arguments()
    model, processor = load(str(args.after))
    probes = read_probes(args.probes)
    layers = auto_key_layers(model)

    def seconds(plan: MeasurementPlan) -> float:
        before = AdapterOff(model, "base") if plan.patching else None
        prober = Prober(model, processor, key_layers=layers, probes=probes, depth=plan, before=before)
        start = time.process_time()
        prober.run_all(0, "after", progress=True)
        return time.process_time() - start

    pairs = [(seconds(WITHOUT), seconds(QUICK)) for _ in range(args.repeats)]
    result = {
        **circumstances(),
        "model": type(model).__name__,
        "probes": len(probes),
        "key_layers": len(layers),
        "repeats": args.repeats,
        "cpu_seconds_without_legs": [round(one, 1) for one, _ in pairs],
        "cpu_seconds_with_legs": [round(other, 1) for _, other in pairs],
        "ratio": round(statistics.median(other / one for one, other in pairs), 2),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output is not None:
        write_atomically(args.output, (text + "\n").encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--after", type=Path, required=True, help="an adapter folder")
    parser.add_argument("--probes", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
