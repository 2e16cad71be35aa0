"""Steps a second of a small training alone and beside one busy process, by number of threads and how they wait.

    python benchmarks/busy_machine.py [--output FILE]

Each setting has a process of its own, since OpenMP reads its variables once. Within it, turns alone and turns beside a
busy process alternate, so a machine that drifts drifts for both.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

BASE = ROOT / "finetune" / "demo" / "base"
ROUNDS, STEPS, ROWS, TOKENS = 3, 5, 4, 80
BUSY = "while True: pass"


def settings() -> dict[str, dict[str, str]]:
    """Name → the variables of OpenMP."""
    from finetune.threads import set_defaults

    chosen: dict[str, str] = {}
    set_defaults(chosen)
    cpus = str(len(os.sched_getaffinity(0)))
    return {
        "a thread for each CPU, which spins": {"OMP_NUM_THREADS": cpus, "OMP_WAIT_POLICY": "active"},
        "OpenMP's own": {"OMP_NUM_THREADS": cpus},
        "this project's": chosen,
        "one thread": {"OMP_NUM_THREADS": "1"},
    }


def measure() -> dict[str, object]:
    """Steps a second of this process, in alternating turns, and the last loss."""
    import torch

    from finetune.model import checkpoint

    torch.manual_seed(7)
    model, _ = checkpoint.load(BASE, for_training=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 250, (ROWS, TOKENS))

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        return count / (time.perf_counter() - began)

    losses: list[float] = []
    steps(3)
    alone, beside = [], []
    for _ in range(ROUNDS):
        alone.append(steps(STEPS))
        busy = subprocess.Popen([sys.executable, "-c", BUSY])
        try:
            beside.append(steps(STEPS))
        finally:
            busy.kill()
            busy.wait()
    return {"alone": statistics.median(alone), "beside": statistics.median(beside), "loss": losses[-1]}


def main() -> None:
    """Measure every setting, print a table, and write ``--output``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="file for the result")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure()))
        return
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    load, found = os.getloadavg()[0], {}
    for name, variables in settings().items():
        ran = subprocess.run(
            [sys.executable, __file__, "--child"],
            env={**inherited, **variables}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        turn = json.loads(ran.stdout.splitlines()[-1])
        found[name] = {**variables, **turn, "times as long": turn["alone"] / turn["beside"]}
        print(
            f"{name:>36}  alone {turn['alone']:6.2f}  beside {turn['beside']:6.2f} steps a second", flush=True
        )
    if options.output:
        result = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, CPU, {len(os.sched_getaffinity(0))} CPUs",
            "load average at the start": round(load, 1),
            "unit": f"steps a second, median of {ROUNDS} turns of {STEPS} steps; {ROWS} rows of {TOKENS} tokens",
            "settings": found,
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
