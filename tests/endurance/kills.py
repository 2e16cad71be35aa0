"""A run that is killed again and again leaves what a run left alone leaves. Not a part of the tests: it takes an hour.

    bash scripts/endurance.sh [MINUTES] [--hits N] [--seed N] [--work DIR] [--output FILE]

A *chain* starts the same small corrective run (the demo's base, two probes, two steps, each with a checkpoint) and
its export until both end by themselves. Starts are hit on the way, by what ``HITS`` lists, at a moment drawn over the
whole run or shortly after something that is rare: a checkpoint being written, a probe, a drawing process, the
comparison. The kind of chain is drawn too: one process, two ranks without a launcher, torchrun. Each start has another
hash seed. Then the folder is compared with the one of a run that nothing disturbed (``comparing.py``):

    weights, records, pictures, comparison.json and its tables, the exported model    byte for byte
    TensorBoard                                                    the same tags and steps, none twice, the same losses
    temporary files, processes of the run                          none left

Most starts are forked from a parent that has loaded all modules (``warm.py``); one in twelve is a fresh process, hit
while it imports. Results are lines in DIR/chains.jsonl, so that a second call goes on; the seed decides hits and
moments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.circumstances import circumstances  # noqa: E402
from finetune.demo.prepare import DEFAULT_PARTS, prepare  # noqa: E402
from finetune.demo.settings import BASE_MODEL  # noqa: E402
from finetune.files import write_atomically  # noqa: E402
from tests.endurance.comparing import differences  # noqa: E402
from tests.endurance.processes import children, computed_seconds, words_of  # noqa: E402
from tests.endurance.warm import DRAWING, WarmParent, WarmRun  # noqa: E402

RUN, EXPORT, RANKS, TORCHRUN = "run", "export", "two ranks", "torchrun"
HITS = {
    RUN: ("SIGKILL",) * 5 + ("SIGTERM",) * 2 + ("SIGINT",) * 3 + ("loader SIGKILL", "loader out of memory"),
    EXPORT: ("SIGKILL",) * 3 + ("SIGTERM", "SIGINT"),
    RANKS: ("one rank SIGKILL", "one rank SIGKILL", "one rank SIGTERM"),
    TORCHRUN: ("launcher SIGKILL", "launcher SIGTERM", "launcher SIGINT", "one rank SIGKILL"),
}
HITS_BESIDE = ("drawing SIGKILL", "drawing out of memory")
"""What a run outlives: its drawing process is replaced, so that the start may be hit again."""
MOST_HITS = {RUN: 12, EXPORT: 4, RANKS: 6, TORCHRUN: 3}
CHAINS = (RUN,) * 12 + (RANKS,) * 3 + (TORCHRUN,)
COLD = 1 / 12
"""Share of starts that are fresh processes, hit within their imports."""
PATIENCE_SECONDS = 900
OF_LIBRARIES = ("pymp-", "torchinductor_")
"""Left in TMPDIR by others: sockets of a killed process's multiprocessing, and torch's cache."""
BEGAN = "began"
"""A file that each start touches."""


class Aim(NamedTuple):
    """Something to wait for before a hit, and the longest delay after it, in seconds that the run computes: beside
    other work they may take minutes. ``asleep``: seconds of the clock, where the run only waits."""

    seen: Callable[[str, Path], bool]
    seconds: float
    asleep: bool = False


def _half_a_checkpoint(log: str, folder: Path) -> bool:
    """One that this start is writing, not one that an earlier start left."""
    began = (folder.parent / BEGAN).stat().st_mtime
    checkpoints = folder.glob("checkpoint-*")
    return any(not (one / "complete.json").is_file() and _written(one) > began for one in checkpoints)


def _written(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # it was deleted since
        return 0.0


AIMS = {
    "set-up": Aim(lambda log, folder: True, 1.0),
    "reading": Aim(lambda log, folder: "samples, " in log, 0.2),
    "probing": Aim(lambda log, folder: "probing step" in log, 1.5),
    "training": Aim(lambda log, folder: "training:" in log, 1.0),
    "saving": Aim(_half_a_checkpoint, 0.05),
    "comparing": Aim(lambda log, folder: "trained to step" in log, 2.0),
    "saving the end": Aim(lambda log, folder: (folder / "adapter_config.json").is_file(), 0.2),
    "drawing": Aim(lambda log, folder: (folder / "comparison" / "index.html").is_file(), 8.0, asleep=True),
}
WHOLE_SECONDS = {RUN: 6.0, RANKS: 6.0, EXPORT: 3.0, TORCHRUN: 90.0}
"""How long each computes from its start to its end; of torchrun, whose work its children do, seconds of the clock."""
IMPORT_SECONDS = 14.0
PHASES = (  # the last line that matches says where a start was
    ("exporting", r"opening .* in |merging in|loading the exported|logits of the exported"),
    ("end", r"the trained adapter and its processor|before and after, side by side|drawing attention"),
    ("comparing", r"^group +probes|cannot distinguish"),
    ("probing", r"probing step|key layers:|quick probing|at the end, with the attention"),
    ("training", r"step \d+ of|training: +\d|resuming from|trained to step"),
    ("set-up", r"what +tensors|: frozen|memory: about|steps per epoch|curves and maps|or tensorboard"),
    ("reading", r"samples, .* pictures|record 0|Loading weights|tokens +trained|tokens per picture|source "),
)


class Hit(NamedTuple):
    """What happened to one start: ``job`` (run, export, …), ``start`` warm or cold, ``phase`` from the last line that
    it had written and from its folder."""

    what: str
    job: str
    start: str
    phase: str
    seconds: float
    line: str


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    done = World.done(args.work)
    until = time.monotonic() + 60 * args.minutes
    with (
        World(args.work) as world,
        tqdm(desc="hits", unit="hit", total=args.hits, initial=_count(done)) as bar,
    ):
        while time.monotonic() < until and _count(done) < args.hits:
            result = world.chain(args.seed, len(done))
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
    """The folder of the work: data, the undisturbed runs, and the chains."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.output = work / "it's 终点 {run}"
        self.exported = work / "merged 出"
        self.log = work / "log.txt"
        self.inputs = work / "inputs"
        self.started: set[int] = set()  # leaders of the sessions of a chain
        self.parents: list[WarmParent] = []

    def __enter__(self) -> World:
        self._write_inputs()
        (self.work / "tmp").mkdir(exist_ok=True)  # parents look for it once
        modules = self.work / "modules.json"
        if not modules.is_file():
            self._note_modules(modules)
        seeds = (1, 20261129)
        self.parents = [WarmParent(modules, seed, _environment(self.work)) for seed in seeds]
        for job in (RUN, RANKS):
            self._leave_alone(job)
        return self

    def __exit__(self, *_: object) -> None:
        for parent in self.parents:
            parent.close()

    def alone(self, job: str) -> Path:
        return self.work / f"alone-{job.replace(' ', '-')}"

    def _note_modules(self, modules: Path) -> None:
        """Which modules a run loads, from one that goes to its end."""
        parent = WarmParent(modules, 0, _environment(self.work))
        self._clear()
        status = parent.start(
            self._program(RUN), self.log, self.work, {"ENDURANCE_MODULES": str(modules)}
        ).wait(PATIENCE_SECONDS)
        parent.close()
        if status:
            raise SystemExit(f"the first run ended with status {status}; see {self.log}")

    def _leave_alone(self, job: str) -> None:
        """The undisturbed run, in fresh processes, unless it is there."""
        if self.alone(job).is_dir():
            return
        self._clear()
        for program in [TORCHRUN if job == RANKS else RUN, *([EXPORT] if job == RUN else [])]:
            status = self._cold(program, 0).wait(PATIENCE_SECONDS)
            if status:
                raise SystemExit(f"the undisturbed {program} ended with status {status}; see {self.log}")
        if self.exported.exists():
            self.exported.rename(self.output / "exported")
        self.output.rename(self.alone(job))

    @staticmethod
    def done(work: Path) -> list[dict[str, Any]]:
        path = work / "chains.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def chain(self, seed: int, number: int) -> dict[str, Any]:
        chance = random.Random(f"{seed}/{number}")
        self._clear()
        job = chance.choice(CHAINS)
        began = time.monotonic()
        hits: list[Hit] = []
        faults = self._until_it_ends(job, chance, hits)
        faults += [f"{job}: {line}" for line in (*self.outlived, *self._strays())]
        faults += [f"{name} is left in TMPDIR" for name in self._left_in_tmp()]
        if job == RUN and not faults:
            faults += self._until_it_ends(EXPORT, chance, hits)
            faults += self._left_beside()
            if self.exported.exists():
                self.exported.rename(self.output / "exported")
        faults += differences(self.alone(RUN if job == RUN else RANKS), self.output)
        result = {
            "chain": number,
            "job": job,
            "seed": seed,
            "seconds": round(time.monotonic() - began),
            "hits": [one._asdict() for one in hits],
            "faults": faults,
        }
        with (self.work / "chains.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
        if faults:
            kept = self.work / f"faulty-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            self.output.rename(kept)
            shutil.copy(self.log, kept / "log.txt")
        return result

    def _until_it_ends(self, job: str, chance: random.Random, hits: list[Hit]) -> list[str]:
        """Start ``job`` until it ends by itself; hits are added to the list. Returns faults."""
        for one in range(MOST_HITS[job] + 1):
            hit = None if one == MOST_HITS[job] else Blow(self, job, chance)
            ended = self._one_start(job, chance, hit, hits)
            if ended == 0 or (job == EXPORT and self.exported.is_dir()):  # it was hit behind its last step
                return []
            if ended is not None:
                return [f"{job}: status {ended} by itself: {self._last_line()}"]
        return [f"{job}: was not left alone"]

    def _one_start(self, job: str, chance: random.Random, blow: Blow | None, hits: list[Hit]) -> int | None:
        """The status of a start that ended by itself; None if it was hit and has ended."""
        is_cold = job == TORCHRUN or (blow is not None and chance.random() < COLD)
        (self.work / BEGAN).touch()
        self.from_byte = self.log.stat().st_size if self.log.is_file() else 0
        began = time.monotonic()
        if job == RANKS:
            ranks = self._ranks(chance)
        else:
            ranks = [self._cold(job, chance.randrange(1, 2**32)) if is_cold else self._warm(job, chance)]
        if is_cold and job != TORCHRUN and blow is not None:
            blow.at_once(chance.uniform(0, IMPORT_SECONDS))
        start = "cold" if is_cold else "warm"
        beside = chance.choice(HITS_BESIDE) if job in (RUN, RANKS) and chance.random() < 0.5 else None
        struck = False
        while any(_is_alive(one.pid) for one in ranks):
            if beside is not None and (found := drawing(ranks[0].pid)):
                time.sleep(chance.uniform(0, 3))
                hits.append(self._told(beside, job, start, began))
                (_starve if "memory" in beside else _kill)(chance.choice(found))
                beside = None
            if blow is not None and not struck and (what := blow.is_due(ranks[0].pid)) is not None:
                phase = self._told(what, job, start, began)
                if blow.strike(what, [one.pid for one in ranks]):
                    struck = True
                    hits.append(phase)
                    if job == RANKS:  # as a launcher does
                        time.sleep(chance.uniform(0, 1))
                        for other in ranks:
                            _send(other.pid, signal.SIGTERM)
            if time.monotonic() - began > PATIENCE_SECONDS:
                for other in ranks:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(other.pid, signal.SIGKILL)
                for other in ranks:
                    other.wait(30)
                return 999
            time.sleep(0.01)
        statuses = [one.wait(60) for one in ranks]
        if job == TORCHRUN:  # ranks that have lost their launcher end after their step
            self.outlived += self._strays()
        worst = next((one for one in statuses if one), 0)
        # What was hit late, or outlived it, may have gone on to its end, which is what it should do.
        return worst if worst == 0 or not struck else None

    def _told(self, what: str, job: str, start: str, began: float) -> Hit:
        return Hit(
            what, job, start, self._phase(job, start), round(time.monotonic() - began, 1), self._last_line()
        )

    def text(self) -> str:
        """What this start has written."""
        with self.log.open("rb") as file:
            file.seek(self.from_byte)
            return file.read().decode(errors="replace").replace("\r", "\n")

    def _last_line(self) -> str:
        lines = self.text().split("\n") if self.log.is_file() else []
        return next((line.strip()[:160] for line in reversed(lines) if line.strip()), "")

    def _phase(self, job: str, start: str) -> str:
        if job != EXPORT and _half_a_checkpoint("", self.output):
            return "saving"
        text = self.text()
        for line in reversed(text.split("\n")):
            if "trained to step" in text and re.search(r"probing step \d+: 100%|trained to step", line):
                return "comparing"
            for phase, pattern in PHASES:
                if re.search(pattern, line):
                    return phase
        return "imports" if start == "cold" else "first second"

    # --- starting ---------------------------------------------------------------------------------------------
    def _cold(self, job: str, hash_seed: int) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *self._program(job)],
                cwd=self.work,
                env={**_environment(self.work), "PYTHONHASHSEED": str(hash_seed)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.add(process.pid)
        return process

    def _warm(self, job: str, chance: random.Random, **environment: str) -> WarmRun:
        self.log.touch()
        run = chance.choice(self.parents).start(self._program(job), self.log, self.work, environment)
        self.started.add(run.pid)
        return run

    def _ranks(self, chance: random.Random) -> list[WarmRun]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [self._warm(RANKS, chance, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]

    def _program(self, job: str) -> list[str]:
        if job == EXPORT:
            return ["-m", "finetune.export", str(self.output), "--output_dir", str(self.exported)]
        batch = 4 if job == RUN else 2
        given = {
            "model_name_or_path": BASE_MODEL, "data_path": self.inputs / "data.json",
            "probes": self.inputs / "probes.json", "output_dir": self.output, "monitor": True, "use_lora": True,
            "train_connector": True, "lora_r": 4, "max_steps": 2, "save_steps": 1, "logging_steps": 1,
            "per_device_train_batch_size": batch, "learning_rate": 2e-3, "model_max_length": 512, "key_layers": "0,2",
            "diagnose": False, "dataloader_num_workers": 1, "save_total_limit": 1,
        }  # fmt: skip
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        script = [str(ROOT / "finetune.py"), *flags]
        if job == TORCHRUN:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--log-dir", "/dev/null"]
            return [*launcher, "--nproc_per_node", "2", "--", *script]
        return script

    # --- what is left -----------------------------------------------------------------------------------------
    def _clear(self) -> None:
        for folder in (
            self.output,
            self.exported,
            *self.work.glob("*.partial"),
            *self.work.glob(".*.partial"),
        ):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.work / "tmp", ignore_errors=True)
        (self.work / "tmp").mkdir()
        self.log.unlink(missing_ok=True)
        self.started.clear()
        self.outlived: list[str] = []

    def _left_in_tmp(self) -> list[str]:
        found = sorted((self.work / "tmp").iterdir())
        return [one.name for one in found if not one.name.startswith(OF_LIBRARIES)]

    def _left_beside(self) -> list[str]:
        """Files that an export left beside its folder."""
        known = {
            "alone-run",
            "alone-two-ranks",
            "inputs",
            "demo",
            "log.txt",
            BEGAN,
            "tmp",
            "modules.json",
            "chains.jsonl",
        }
        known |= {self.output.name, self.exported.name}
        found = [one.name for one in self.work.iterdir() if one.name not in known]
        return [f"{name} is left beside the export" for name in found if not name.startswith("faulty-")]

    def _strays(self) -> list[str]:
        """Processes of the run that have outlived it; they get a minute to notice."""
        for _ in range(120):
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]
            if not found:
                return []
            time.sleep(0.5)
        for pid in found:
            _kill(pid)
        return [f"process {pid} has outlived the run" for pid in found]

    def _is_ours(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            return words != "" and (os.getsid(pid) in self.started or str(self.output) in words)
        except OSError:
            return False

    def _write_inputs(self) -> None:
        if (self.inputs / "probes.json").is_file():
            return
        data = prepare(self.work / "demo", DEFAULT_PARTS)
        self.inputs.mkdir(parents=True, exist_ok=True)
        samples = json.loads(data.corrective.read_text(encoding="utf-8"))[:24]
        text = json.dumps(samples, ensure_ascii=False)
        # Pictures are named relative to the file that names them.
        (self.inputs / "data.json").write_text(
            text.replace("images/", f"{data.corrective.parent}/images/"), encoding="utf-8"
        )
        probes = json.loads(data.probes.read_text(encoding="utf-8"))
        chosen = {one["group"]: one for one in probes["probes"]}  # the last of each group
        probes["probes"] = [chosen["sphere-building"], chosen["retention"]]
        for probe in probes["probes"]:
            probe["images"] = [str(data.probes.parent / one) for one in probe["images"]]
        (self.inputs / "probes.json").write_text(json.dumps(probes, ensure_ascii=False), encoding="utf-8")


class Blow:
    """One hit to come: what it is, and when it is due."""

    def __init__(self, world: World, job: str, chance: random.Random) -> None:
        self.world = world
        self.what = chance.choice(HITS[job])
        self.chance = chance
        self.until: float | None = None
        self.asleep = job == TORCHRUN
        if job in (EXPORT, TORCHRUN) or chance.random() < 0.3:
            self.at_once(chance.uniform(0, WHOLE_SECONDS[job]))
        else:
            self.aim = AIMS[chance.choice([*AIMS, "saving", "saving"])]

    def at_once(self, seconds: float) -> None:
        """Due after so many seconds of the start, whatever has happened."""
        self.until = seconds + (time.monotonic() if self.asleep else 0)

    def is_due(self, pid: int) -> str | None:
        """What hits now; None: not yet."""
        if self.until is None and self.aim.seen(self.world.text(), self.world.output):
            self.asleep = self.aim.asleep
            self.until = self._now(pid) + self.chance.uniform(0, self.aim.seconds)
        return self.what if self.until is not None and self._now(pid) >= self.until else None

    def _now(self, pid: int) -> float:
        return time.monotonic() if self.asleep else computed_seconds(pid)

    def strike(self, what: str, ranks: list[int]) -> bool:
        """False where that which it hits is not there yet."""
        target, _, how = what.rpartition(" ")
        if what.startswith("loader"):
            found = loaders(ranks[0])
            if not found:
                return False
            (_starve if "memory" in what else _kill)(found[0])
        elif what.startswith("one rank"):
            everyone = (
                ranks
                if len(ranks) > 1
                else [pid for pid in children(ranks[0]) if "finetune.py" in words_of(pid)]
            )
            if len(everyone) < 2:
                return False
            _send(self.chance.choice(everyone), getattr(signal, how))
        else:
            assert target in ("", "launcher")
            _send(ranks[0], getattr(signal, how))
        return True


def summed(done: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    hits = [hit for one in done for hit in one["hits"]]
    faulty = [one for one in done if one["faults"]]

    def counted(field: str) -> dict[str, int]:
        return dict(Counter(hit[field] for hit in hits).most_common())

    return {
        **circumstances(),
        "seed": seed,
        "chains": len(done),
        "chains_by_job": dict(Counter(one["job"] for one in done).most_common()),
        "minutes": round(sum(one["seconds"] for one in done) / 60, 1),
        "hits": len(hits),
        "hits_by_kind": counted("what"),
        "hits_by_phase": counted("phase"),
        "hits_by_job": counted("job"),
        "hits_by_start": counted("start"),
        "chains_with_faults": len(faulty),
        "faults": {f"chain {one['chain']}": one["faults"][:10] for one in faulty},
    }


def _count(done: list[dict[str, Any]]) -> int:
    return sum(len(one["hits"]) for one in done)


def _environment(work: Path) -> dict[str, str]:
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "TMPDIR": str(work / "tmp"),
    }  # fmt: skip


def drawing(pid: int) -> list[int]:
    """The drawing process of a run, and the processes that draw for it; no spare that still waits to become one."""
    leaders = [
        one
        for one in children(pid)
        if "diagnostics.render" in words_of(one) or (_name_of(one) == DRAWING and _leads_session(one))
    ]
    return [*leaders, *(below for one in leaders for below in children(one))]


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def loaders(pid: int) -> list[int]:
    """Processes that a run has forked: they have its own command line."""
    return [one for one in children(pid) if words_of(one) == words_of(pid) and _name_of(one) != DRAWING]


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pid: int) -> None:
    _send(pid, signal.SIGKILL)


def _starve(pid: int) -> None:
    """Whatever the process asks for from now on, there is no memory."""
    with contextlib.suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_AS, (2**20, 2**20))


def _send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float, nargs="?", default=60.0)
    parser.add_argument("--hits", type=int, default=200, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "output_endurance")
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    return parser.parse_args()


if __name__ == "__main__":
    main()
