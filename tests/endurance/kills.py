"""A run that is killed again and again leaves what a run left alone leaves. Not a part of the tests: it takes an hour.

    bash scripts/endurance.sh [MINUTES] [--seed N] [--work DIR]

A *chain* starts the same small corrective run (the demo's base, ten probes, seven steps) until it ends by itself. Each
start but the last is hit at a random moment: SIGKILL, SIGTERM, Ctrl-C, or SIGKILL of a process that it started; each
has another PYTHONHASHSEED. Then the folder is compared with the one of a run that nothing disturbed:

    weights, records, pictures, comparison.json and its tables     byte for byte
    TensorBoard                                                    the same tags and steps, none twice, the same losses
    temporary files, processes of the run                          none left

Results are lines in DIR/chains.jsonl, so that a second call goes on; the seed decides signals and moments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, TENSORS, EventAccumulator
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.circumstances import circumstances  # noqa: E402
from finetune.demo.prepare import DEFAULT_PARTS, prepare  # noqa: E402
from finetune.demo.settings import BASE_MODEL  # noqa: E402
from finetune.files import write_atomically  # noqa: E402

HITS = ("SIGKILL",) * 6 + ("SIGTERM", "SIGINT", "SIGINT", "a child")
MOST_STARTS = 12
PATIENCE_SECONDS = 600
NOT_COMPARED = {  # moments, durations, machines and the run's random name are in these
    "complete.json", "training_args.bin", "trainer_state.json", "run.json", "run.yaml", "optimizer.pt", "scheduler.pt",
    "rng_state.pth",
}  # fmt: skip
OF_TIME = ("train_runtime", "per_second", "waiting for data", "total_flos", "train_loss", "seconds", "memory")
"""Words of scalars that differ between two runs of the same arithmetic."""


class Hit(NamedTuple):
    """What happened to one start. ``line``: the last one that it had written."""

    what: str
    seconds: float
    line: str


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    world = World(args.work)
    seconds = world.reference()
    print(f"the run alone: {seconds:.0f} s", flush=True)
    until = time.monotonic() + 60 * args.minutes
    done = world.done()
    with tqdm(desc="hits", unit="hit", initial=sum(len(one["hits"]) for one in done)) as bar:
        while time.monotonic() < until:
            result = world.chain(args.seed, len(done), seconds)
            done.append(result)
            bar.update(len(result["hits"]))
            for fault in result["faults"]:
                tqdm.write(f"chain {result['chain']}: {fault}")
    summary = summed(done, args.seed)
    print(json.dumps(summary, indent=1, ensure_ascii=False))
    if args.output is not None:
        write_atomically(args.output, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    sys.exit(1 if summary["chains_with_faults"] else 0)


class World:
    """The folder of the work: data, the undisturbed run, and the chains."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.output = work / "it's 终点 {run}"
        self.alone = work / "alone"
        self.log = work / "log.txt"
        self.inputs = work / "inputs"

    def reference(self) -> float:
        """Make the undisturbed run unless it is there; its duration in seconds."""
        self._write_inputs()
        took = self.work / "alone.txt"
        if not took.is_file():
            shutil.rmtree(self.alone, ignore_errors=True)
            shutil.rmtree(self.output, ignore_errors=True)
            began = time.monotonic()
            status = self._start(0).wait(PATIENCE_SECONDS)
            if status:
                raise SystemExit(f"the undisturbed run ended with status {status}; see {self.log}")
            took.write_text(f"{time.monotonic() - began:.1f}")
            self.output.rename(self.alone)
        return float(took.read_text())

    def done(self) -> list[dict[str, Any]]:
        path = self.work / "chains.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def chain(self, seed: int, number: int, seconds: float) -> dict[str, Any]:
        chance = random.Random(f"{seed}/{number}")
        shutil.rmtree(self.output, ignore_errors=True)
        hits: list[Hit] = []
        status: int | None = None
        faults: list[str] = []
        for start in range(MOST_STARTS):
            process = self._start(chance.randrange(1, 2**32))
            what = chance.choice(HITS)
            # The last start is left alone, so that every chain ends.
            moment = chance.uniform(0, 1.1 * seconds) if start + 1 < MOST_STARTS else PATIENCE_SECONDS
            status = self._hit(process, what, moment)
            if status is None:
                hits.append(Hit(what, round(moment, 1), self._last_line()))
                continue
            break
        if status:
            faults.append(f"status {status} at last: {self._last_line()}")
        faults += self._strays()
        faults += differences(self.alone, self.output)
        result = {"chain": number, "seed": seed, "hits": [one._asdict() for one in hits], "faults": faults}
        with (self.work / "chains.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
        if faults:
            kept = self.work / f"faulty-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            self.output.rename(kept)
            shutil.copy(self.log, kept / "log.txt")
        return result

    def _start(self, hash_seed: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "finetune.py"), *self._flags()],
                cwd=self.work,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _flags(self) -> list[str]:
        given = {
            "model_name_or_path": BASE_MODEL, "data_path": self.inputs / "data.json",
            "probes": self.inputs / "probes.json", "output_dir": self.output, "monitor": True, "use_lora": True,
            "train_connector": True, "lora_r": 4, "max_steps": 7, "save_steps": 2, "logging_steps": 1,
            "per_device_train_batch_size": 4, "learning_rate": 2e-3, "model_max_length": 512, "key_layers": "0,2",
            "diagnose": False,
        }  # fmt: skip
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]

    def _hit(self, process: subprocess.Popen[bytes], what: str, moment: float) -> int | None:
        """The status of a run that ended by itself before its moment; None if it was hit and has ended."""
        try:
            return process.wait(moment)
        except subprocess.TimeoutExpired:
            pass
        if what == "a child":
            children = _children(process.pid)
            if not children:
                what = "SIGKILL"
            for child in children[:1]:
                _send(child, signal.SIGKILL)
        if what != "a child":
            _send(process.pid, getattr(signal, what))
        try:
            status = process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"{what}: still running after {PATIENCE_SECONDS} s; see {self.log}") from None
        # Without a child it may have gone on to its end, which is what it should do.
        return status if what == "a child" and status == 0 else None

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
        return next((line.strip()[:160] for line in reversed(lines) if line.strip()), "")

    def _strays(self) -> list[str]:
        """Processes of the run that have outlived it; they get ten seconds to notice."""
        for _ in range(20):
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]
            if not found:
                return []
            time.sleep(0.5)
        return [f"process {pid} has outlived the run" for pid in found]

    def _is_ours(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return False
        return str(self.output) in words and pid != os.getpid()

    def _write_inputs(self) -> None:
        if (self.inputs / "probes.json").is_file():
            return
        data = prepare(self.work / "demo", DEFAULT_PARTS)
        self.inputs.mkdir(parents=True, exist_ok=True)
        samples = json.loads(data.corrective.read_text(encoding="utf-8"))[:64]
        text = json.dumps(samples, ensure_ascii=False)
        # Pictures are named relative to the file that names them.
        (self.inputs / "data.json").write_text(
            text.replace("images/", f"{data.corrective.parent}/images/"), encoding="utf-8"
        )
        probes = json.loads(data.probes.read_text(encoding="utf-8"))
        probes["probes"] = probes["probes"][::16]
        for probe in probes["probes"]:
            probe["images"] = [str(data.probes.parent / one) for one in probe["images"]]
        (self.inputs / "probes.json").write_text(json.dumps(probes, ensure_ascii=False), encoding="utf-8")


def differences(alone: Path, found: Path) -> list[str]:
    """What a disturbed run's folder lacks or has besides, and what differs."""
    faults = []
    ours, theirs = files(alone), files(found)
    faults += [f"{name} is missing" for name in sorted(ours - theirs)]
    faults += [f"{name} is there besides" for name in sorted(theirs - ours)]
    for name in sorted(ours & theirs):
        if Path(name).name in NOT_COMPARED or name.endswith((".log", "index.html", "README.md")):
            continue
        if (alone / name).read_bytes() != (found / name).read_bytes():
            faults.append(f"{name} differs")
    return faults + board_differences(alone / "runs", found / "runs")


def files(folder: Path) -> set[str]:
    """Paths below a folder, without TensorBoard's, whose names hold moments."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("events.out")
    }


def board_differences(alone: Path, found: Path) -> list[str]:
    ours, theirs = board(alone), board(found)
    lacking = [tag for tag in sorted(ours.keys() - theirs.keys()) if not _is_of_time(tag)]
    faults = [f"TensorBoard lacks {tag!r}" for tag in lacking]
    faults += [f"TensorBoard has {tag!r} besides" for tag in sorted(theirs.keys() - ours.keys())]
    for tag in sorted(ours.keys() & theirs.keys()):
        steps = [step for step, _ in theirs[tag]]
        alone_steps = Counter(step for step, _ in ours[tag])  # transformers logs the last epoch twice
        if doubled := [step for step, times in Counter(steps).items() if times > max(alone_steps[step], 1)]:
            faults.append(f"TensorBoard has {tag!r} twice at steps {doubled}")
        elif steps != [step for step, _ in ours[tag]]:
            faults.append(
                f"TensorBoard has {tag!r} at steps {steps}, alone {[step for step, _ in ours[tag]]}"
            )
        elif theirs[tag] != ours[tag] and not _is_of_time(tag):
            faults.append(f"TensorBoard's {tag!r} differs")
    return faults


def _is_of_time(tag: str) -> bool:
    return any(word in tag for word in OF_TIME)


def board(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Tag → (step, value), as TensorBoard would show it; a picture's value is its bytes' hash."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for place in sorted({path.parent for path in folder.rglob("events.out*")}):
        events = EventAccumulator(str(place), size_guidance={IMAGES: 0, SCALARS: 0, TENSORS: 0}).Reload()
        below = "" if place == folder else f"{place.relative_to(folder)}:"
        tags = events.Tags()
        for tag in tags["scalars"]:
            found.setdefault(below + tag, []).extend((one.step, one.value) for one in events.Scalars(tag))
        for tag in tags["images"]:
            found.setdefault(below + tag, []).extend(
                (one.step, hash(one.encoded_image_string)) for one in events.Images(tag)
            )
    return found


def summed(done: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    hits = Counter(hit["what"] for one in done for hit in one["hits"])
    faulty = [one for one in done if one["faults"]]
    return {
        **circumstances(),
        "seed": seed,
        "chains": len(done),
        "hits": sum(hits.values()),
        "hits_by_kind": dict(hits.most_common()),
        "chains_with_faults": len(faulty),
        "faults": {f"chain {one['chain']}": one["faults"][:10] for one in faulty},
    }


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float, nargs="?", default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "output_endurance")
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    return parser.parse_args()


if __name__ == "__main__":
    main()
