"""Training speed: this trainer compared with the plain Hugging Face loop, TRL and LLaMA-Factory.

python benchmarks/train_speed.py                                     a small Qwen-VL: under 5 minutes on 2 cores
python benchmarks/train_speed.py --model qwen2.5-vl --llamafactory /PATH/TO/ITS/VENV/bin/python
python benchmarks/train_speed.py --model MODEL_FOLDER --samples 512 --modes lora --workers 8        a GPU

Every way trains one epoch of the same samples (pictures of mixed sizes, text of mixed lengths) with the same model,
batch, precision and workers, in a process of its own that waits while the others train. A round trains each way
once; the first warms up. The ratios are medians over rounds, so that a busy moment of the machine hits all alike.

plain         transformers' Trainer with a collator as its documentation shows: the processor pads to the longest
trl           its SFTTrainer with its own collator
llamafactory  its own command line's ``run_exp``, in the environment that --llamafactory names
ours          finetune.py as it is; ``grouped`` with --group_by_length, ``packed`` with --packing

seconds are those between the Trainer's first and last step; time before that (weights, reading, counting tokens) is
listed separately. CPU seconds are of the process and its data workers. Peak memory is the process's (resident set).
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # LLaMA-Factory's environment has no benchmarks package

from train_speed_models import WRITERS, write_data, write_model
from train_speed_ways import ORDER, OTHERS, OURS, WAYS, Job

TEMPLATES = {"llava": "llava"}
"""LLaMA-Factory's names of chats, where it is not ``qwen2_vl``."""
FIXED_SIZE = ("qwen-vl", "llava")
"""Models that resize every picture to one size."""


def main() -> None:
    args = arguments()
    if args.job is not None:
        serve(Job(**json.loads(args.job)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the ways' processes too
    with tempfile.TemporaryDirectory(prefix="train_speed_") as folder:
        data = write_data(Path(folder) / "data", args.samples)
        model = (
            args.model
            if Path(args.model).is_dir()
            else str(write_model(Path(folder) / "model", args.model, args.processor))
        )
        results = {mode: compare(args, mode, Path(folder), model, data) for mode in args.modes}
        report = {**circumstances(args, model), **results}
    print(json.dumps(report, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Turns
# ---------------------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace, mode: str, folder: Path, model: str, data: Path) -> dict[str, Any]:
    """All ways in turns, ``args.rounds`` measured rounds after one that warms up."""
    ways = [way for way in ORDER if way in args.ways]
    started = {way: start(args, job_of(args, way, mode, folder, model, data)) for way in ways}
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    try:
        for turn in range(args.rounds + 1):
            for way in ways:
                result = take_turn(started[way], folder / f"{mode}-{way}", turn, args.processes)
                if turn:
                    measured[way].append(result)
                print(f"{mode} {way} {turn}: {result['seconds']:.2f} s", file=sys.stderr, flush=True)
    finally:
        for process in started.values():
            process.terminate()
            process.wait()
    return summary(measured, args.samples)


def job_of(args: argparse.Namespace, way: str, mode: str, folder: Path, model: str, data: Path) -> Job:
    own = folder / f"{mode}-{way}"
    own.mkdir()
    return Job(
        way=way,
        mode=mode,
        folder=str(own),
        model=model,
        data=str(data),
        rounds=args.rounds,
        samples=args.samples,
        batch=args.batch // (args.processes * args.accumulation),
        accumulation=args.accumulation,
        workers=args.workers,
        max_length=args.max_length,
        max_pixels=None if args.model in FIXED_SIZE else args.max_pixels,
        template=TEMPLATES.get(args.model, "qwen2_vl"),
        bf16=args.bf16,
    )


def start(args: argparse.Namespace, job: Job) -> subprocess.Popen[bytes]:
    """The way's process (with --processes, all of them), which waits for its first turn."""
    python = args.llamafactory if job.way == "llamafactory" else sys.executable
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.processes)]
    command = [python, *(launcher if args.processes > 1 else []), __file__, "--job", json.dumps(asdict(job))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads(args)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of packages that this comparison does not use
    }
    log = Path(job.folder) / "log"
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, cwd=job.folder, stdout=out, stderr=out)


def take_turn(process: subprocess.Popen[bytes], folder: Path, turn: int, processes: int) -> dict[str, float]:
    """Let one way train; returns what its processes measured: the slowest one's times, everybody's memory and CPU."""
    (folder / f"go-{turn}").touch()
    files = [folder / f"result-{turn}-{rank}.json" for rank in range(processes)]
    while not all(file.exists() for file in files):
        if process.poll() is not None:
            log = (folder / "log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{folder.name} ended with status {process.returncode}:\n{log[-4000:]}")
        time.sleep(0.05)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    summed = ("cpu_seconds", "peak_MiB", "tokens", "places")
    return {name: (sum if name in summed else max)(one[name] for one in found) for name in found[0]}


def serve(job: Job) -> None:
    """In a way's process: train whenever it is this way's turn."""
    run = WAYS[job.way](job)  # imports, outside of every turn
    rank = os.environ.get("RANK", "0")
    for turn in range(job.rounds + 1):
        while not (Path(job.folder) / f"go-{turn}").exists():
            time.sleep(0.02)
        with tempfile.TemporaryDirectory() as output:
            os.environ["ATTENTION_FINETUNE_CACHE"] = output  # tokens are counted again in every turn
            meter = measuring(output, run)
        result = Path(job.folder) / f"result-{turn}-{rank}.json"
        result.with_suffix(".partial").write_text(json.dumps(meter), encoding="utf-8")
        result.with_suffix(".partial").rename(result)
    while True:  # all ways keep their memory until the last one is done
        time.sleep(1)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def measuring(output: str, run: Callable[[str, Any], None]) -> dict[str, float]:
    """Run and measure one training, from inside transformers' Trainer, which every way is built on."""
    import torch
    from transformers import Trainer, TrainerCallback

    seen = {"tokens": 0.0, "places": 0.0, "waiting_seconds": 0.0, "steps": 0.0}
    began = time.perf_counter()

    class Meter(TrainerCallback):
        def __init__(self) -> None:
            self.seen = seen

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            seen["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
            seen["before_seconds"] = time.perf_counter() - began
            self.start, self.cpu = time.perf_counter(), cpu_seconds()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seen["seconds"] = time.perf_counter() - self.start
            seen["cpu_seconds"] = cpu_seconds() - self.cpu
            seen["steps"] = state.global_step
            assert abs(state.epoch - 1) < 1e-6, f"trained {state.epoch} epochs, not 1"

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen["loss"] = logs.get("loss", seen.get("loss"))

    with watching_batches(Trainer, seen):
        run(output, Meter())
    seen["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        seen["peak_MiB"] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.empty_cache()
    return seen


@contextlib.contextmanager
def watching_batches(trainer: Any, seen: dict[str, float]) -> Iterator[None]:
    """Every batch that any Trainer takes is counted: its tokens, its places with padding, and the wait for it."""
    original = trainer.get_batch_samples

    @functools.wraps(original)
    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        batches, items = original(self, *args, **kwargs)
        seen["waiting_seconds"] += time.perf_counter() - start
        for batch in batches:
            mask = batch.get("attention_mask")
            seen["places"] += batch["input_ids"].numel()
            seen["tokens"] += batch["input_ids"].numel() if mask is None else (mask > 0).sum().item()
        return batches, items

    trainer.get_batch_samples = get_batch_samples
    try:
        yield
    finally:
        trainer.get_batch_samples = original


def cpu_seconds() -> float:
    """Of this process, and of its data workers as far as they have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def summary(measured: Mapping[str, Sequence[dict[str, float]]], samples: int) -> dict[str, Any]:
    """Medians of each way, and ratios of each of ours over each of the others, as medians of pairs of one round."""
    tokens = {way: turns[0]["tokens"] for way, turns in measured.items()}
    ways = {way: describe(turns, samples) for way, turns in measured.items()}
    ratios: dict[str, Any] = {
        f"{way} over {other}": against(measured[way], measured[other])
        for other in OTHERS
        for way in (*OURS,)
        if way in measured and other in measured
    }
    return {"ways": ways, "ratios": ratios, "same_tokens": len(set(tokens.values())) == 1}


def describe(turns: Sequence[dict[str, float]], samples: int) -> dict[str, Any]:
    def median(value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(value(turn) for turn in turns)

    return {
        "samples_a_second": round(median(lambda turn: samples / turn["seconds"]), 3),
        "tokens_a_second": round(median(lambda turn: turn["tokens"] / turn["seconds"]), 1),
        "cpu_seconds_a_sample": round(median(lambda turn: turn["cpu_seconds"] / samples), 4),
        "peak_MiB": round(max(turn["peak_MiB"] for turn in turns), 1),
        "share_waiting_for_data": round(median(lambda turn: turn["waiting_seconds"] / turn["seconds"]), 4),
        "share_padding": round(median(lambda turn: 1 - turn["tokens"] / turn["places"]), 4),
        "seconds_before_training": round(median(lambda turn: turn["before_seconds"]), 2),
        "steps": round(turns[0]["steps"]),
        "tokens": round(turns[0]["tokens"]),
        "trainable_parameters": round(turns[0]["trainable_parameters"]),
        "last_loss": round(turns[0]["loss"], 4),
        "seconds_of_rounds": [round(turn["seconds"], 3) for turn in turns],
    }


def against(ours: Sequence[dict[str, float]], others: Sequence[dict[str, float]]) -> dict[str, float]:
    """Above 1: ours trains faster. Memory below 1: ours needs less."""
    pairs = [*zip(ours, others, strict=True)]
    return {
        "samples_a_second": round(statistics.median(b["seconds"] / a["seconds"] for a, b in pairs), 4),
        "samples_a_CPU_second": round(
            statistics.median(b["cpu_seconds"] / a["cpu_seconds"] for a, b in pairs), 4
        ),
        "peak_memory": round(max(a["peak_MiB"] for a in ours) / max(b["peak_MiB"] for b in others), 4),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The report's head, and the command line
# ---------------------------------------------------------------------------------------------------------------------


def circumstances(args: argparse.Namespace, model: str) -> dict[str, Any]:
    import torch
    from safetensors import safe_open

    sizes = []
    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            sizes += [torch.Size(weights.get_slice(name).get_shape()).numel() for name in weights.keys()]  # noqa: SIM118
    gpu = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if gpu else f"{platform.machine()}, CPU, {cores()} cores",
        "processes": args.processes,
        "threads": threads(args),
        "workers": args.workers,
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "trl")
        },
        "llamafactory_versions": llamafactory_versions(args) if "llamafactory" in args.ways else None,
        "model": args.model,
        "parameters": sum(sizes),
        "precision": "bfloat16" if args.bf16 else "float32",
        "samples": args.samples,
        "batch": args.batch,
        "accumulation": args.accumulation,
        "rounds": args.rounds,
        "memory": "torch's peak on the GPU" if gpu else "peak resident set",
    }


def llamafactory_versions(args: argparse.Namespace) -> dict[str, str]:
    names = ("llamafactory", "torch", "transformers", "peft")
    asked = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return json.loads(subprocess.check_output([args.llamafactory, "-c", asked]))


def cores() -> int:
    return len(os.sched_getaffinity(0))


def threads(args: argparse.Namespace) -> int:
    """Of torch, in each process. Data workers keep cores of their own: OpenMP's threads spin while they wait."""
    return args.threads or max(1, cores() // args.processes - args.workers)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="qwen-vl", help=f"{', '.join(WRITERS)} (small, random), or a folder"
    )
    parser.add_argument(
        "--processor", type=Path, help="a folder with a published tokenizer for the small model"
    )
    parser.add_argument("--llamafactory", help="the Python of an environment that has it")
    parser.add_argument("--ways", nargs="+", choices=ORDER, default=None, help="default: all that there are")
    parser.add_argument("--modes", nargs="+", choices=("lora", "full"), default=("lora", "full"))
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument(
        "--batch", type=int, default=8, help="samples of an optimiser step, over all processes"
    )
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="data workers of a process")
    parser.add_argument(
        "--threads", type=int, help="of torch in a process; default: the cores that no worker needs"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max_length", type=int, default=768, help="of a sample, and of a packed row")
    parser.add_argument(
        "--max_pixels", type=int, default=250_880, help="of a picture, where they differ in size"
    )
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, help="a JSON file; it is printed in any case")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ways is None:
        args.ways = [way for way in ORDER if way != "llamafactory" or args.llamafactory]
    if "llamafactory" in args.ways and not args.llamafactory and args.job is None:
        parser.error("--ways llamafactory: needs --llamafactory PYTHON")
    if "llamafactory" in args.ways and args.processes > 1 and args.job is None:
        parser.error(
            "--processes above 1: LLaMA-Factory takes down the process group after one turn; leave it out"
        )
    if args.batch % (args.processes * args.accumulation):
        parser.error(f"--batch {args.batch}: expected a multiple of processes × accumulation")
    return args


if __name__ == "__main__":
    main()
