"""Ten thousand hostile files of each kind that the project reads: each is read, or refused in one short message.

    bash scripts/endurance.sh hostile [MINUTES] [--kinds NAME …] [--count N] [--seed N] [--work DIR] [--output FILE]

A kind (``tests/endurance/hostile_kinds.py``) makes a mutant from a seed and a number, and reads it in a child process.
An *escape* is whatever is neither success nor the project's own message:

    another exception, a crash of the interpreter, a hang of 10 s, 2 GB of memory
    a message of 2 kB or more, or with control characters that came from the file
    a flood of warnings or of output
    what is read as if it were sound, though the kind can tell that it is not

Counts lie in DIR/KIND.json, so that a second call goes on; each escape's files in DIR/escapes/. One mutant again:

    python tests/endurance/hostile.py --kinds KIND --only NUMBER
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from finetune.files import write_atomically  # noqa: E402
from tests.endurance.processes import computed_seconds  # noqa: E402

SLOWEST_SECONDS, MOST_BYTES = 10.0, 2 * 10**9
LONGEST_WAIT = 60.0
"""Seconds: computing for ten, or waiting for a minute (for a pipe that nobody writes to), is a hang."""
LONGEST_MESSAGE = 2048
MOST_WARNINGS, MOST_OUTPUT = 20, 20_000
KEPT_CASES = 3
"""Cases kept of one escape; more of them are counted."""
BATCH = 1000
PROGRESS = struct.Struct("qdqqqdq")
"""Number of the mutant at work, when it began, accepted, refused, escaped, slowest (seconds), peak (bytes)."""


def main() -> int:
    args = arguments()
    sys.path.insert(0, str(ROOT / "tests" / "endurance"))
    from tests.endurance.hostile_kinds import CHEAP
    from tests.endurance.hostile_models import kinds

    KINDS = {**CHEAP, **kinds()}

    args.work.mkdir(parents=True, exist_ok=True)
    names = args.kinds or list(KINDS)
    if args.child:
        return child(KINDS[names[0]], args)
    if args.only is not None:
        return one(KINDS[names[0]], args)
    args.deadline = time.time() + 60 * args.minutes
    while time.time() < args.deadline:
        left = [name for name in names if ledger(args.work, name)["done"] < args.count]
        if not left:
            break
        for name in left:
            if time.time() < args.deadline:
                batch(name, args)
    found = summary(names, args)
    print(json.dumps(found, indent=1, ensure_ascii=False))
    if args.output is not None:
        write_atomically(args.output, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    return 1 if any(one["escapes"] for one in found["kinds"].values()) else 0


# ---------------------------------------------------------------------------------------------------------------------
# The parent: watches
# ---------------------------------------------------------------------------------------------------------------------


def ledger(work: Path, name: str) -> dict[str, Any]:
    path = work / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    return {
        "done": 0,
        "accepted": 0,
        "refused": 0,
        "escapes": {},
        "slowest_s": 0.0,
        "peak_mb": 0,
        "seconds": 0.0,
    }


def batch(name: str, args: argparse.Namespace) -> None:
    """The next mutants of a kind. A child that dies or hangs is an escape; another goes on behind it."""
    found = ledger(args.work, name)
    until, before = min(found["done"] + BATCH, args.count), found["seconds"]
    first = found["done"]
    while found["done"] < until and time.time() < args.deadline:
        begun = time.monotonic()
        progress, ended, words = watched(name, found["done"], until, args)
        number, _, accepted, refused, escaped, slowest, peak = progress
        found["accepted"] += accepted
        found["refused"] += refused
        found["slowest_s"] = round(max(found["slowest_s"], slowest), 2)
        found["peak_mb"] = max(found["peak_mb"], peak // 10**6)
        found["seconds"] = round(found["seconds"] + time.monotonic() - begun, 1)
        for line in escapes_of(args.work, name):
            found["escapes"][line["what"]] = found["escapes"].get(line["what"], 0) + 1
        found["done"] = number if ended else number + 1
        if not ended:
            found["escapes"][words] = found["escapes"].get(words, 0) + 1
            keep_case(args.work, name, words, number, args.work / "worlds" / name)
            if number < 0:
                raise SystemExit(f"{name}: its child ended before the first mutant: {words}")
        write_atomically(args.work / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False).encode())
    rate = (found["done"] - first) / max(found["seconds"] - before, 1e-9)
    print(
        f"{name:14} {found['done']:6,} done, {found['accepted']:6,} accepted, {found['refused']:6,} refused, "
        f"{sum(found['escapes'].values()):5,} escapes of {len(found['escapes'])} kinds, {rate:.0f}/s",
        flush=True,
    )


def watched(name: str, start: int, end: int, args: argparse.Namespace) -> tuple[tuple[Any, ...], bool, str]:
    """(progress, whether the child came to its end, otherwise why not)."""
    place = args.work / f"{name}.progress"
    place.write_bytes(PROGRESS.pack(start - 1, time.time(), 0, 0, 0, 0.0, 0))
    command = [
        sys.executable,
        __file__,
        "--child",
        "--deadline",
        str(args.deadline),
        "--kinds",
        name,
        "--seed",
        str(args.seed),
        "--work",
        str(args.work),
        "--start",
        str(start),
        "--end",
        str(end),
    ]
    log = args.work / f"{name}.log"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ATTENTION_FINETUNE_CACHE": str(args.work / "cache"),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
    words, at, cpu = "", start - 1, 0.0
    while True:
        try:
            status = process.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            pass
        progress = PROGRESS.unpack(place.read_bytes())
        if progress[0] < start:  # still importing
            if time.time() - progress[1] > 600:
                words = "did not begin"
        elif progress[0] != at:
            at, cpu = progress[0], computed_seconds(process.pid)
        elif (
            computed_seconds(process.pid) - cpu > SLOWEST_SECONDS or time.time() - progress[1] > LONGEST_WAIT
        ):
            words = "hang"
        elif resident(process.pid) > MOST_BYTES * 1.3:
            words = "memory"
        if words:
            stack = stack_of(process, log) if words == "hang" else ""
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return PROGRESS.unpack(place.read_bytes()), False, f"{words}{stack}"
    progress = PROGRESS.unpack(place.read_bytes())
    if status == 0:
        return progress, True, ""
    tail = log.read_text(errors="replace")[-1500:]
    where = re.findall(r'File "([^"]+)", line (\d+) in (\w+)', tail)
    return progress, False, f"status {status} {' '.join(where[0]) if where else tail[-200:]}"


def stack_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where a hanging child is: it writes its stack on SIGUSR1."""
    os.kill(process.pid, signal.SIGUSR1)
    time.sleep(0.3)
    lines = re.findall(r'File "([^"]+)", line (\d+) in (\w+)', log.read_text(errors="replace"))
    ours = [
        line
        for line in lines
        if "/endurance/" not in line[0] and str(ROOT) in line[0] and ".venv" not in line[0]
    ]
    return "" if not ours else f" in {Path(ours[0][0]).relative_to(ROOT)}:{ours[0][2]}"


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def escapes_of(work: Path, name: str) -> list[dict[str, Any]]:
    """What a child wrote down, taken away."""
    place = work / f"{name}.escapes"
    if not place.is_file():
        return []
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    place.unlink()
    return lines


def keep_case(work: Path, name: str, what: str, number: int, world: Path) -> None:
    plain = re.sub(r"[^A-Za-z0-9_.]+", "_", what.partition("\n")[0])[:120]
    place = work / "escapes" / f"{name}-{plain}"
    if not world.is_dir() or (place.is_dir() and len(list(place.iterdir())) >= KEPT_CASES):
        return
    mutant = next((path for path in (world / "mutant",) if path.exists()), None)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{number}.txt").write_text(what + "\n")
    if (
        mutant is not None
        and sum(path.stat().st_size for path in mutant.rglob("*") if path.is_file()) < 2 * 10**6
    ):
        shutil.copytree(mutant, place / f"{number}", symlinks=True, ignore=_no_pipes, dirs_exist_ok=True)


def _no_pipes(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if not (Path(folder) / name).is_symlink()
        and not (Path(folder) / name).is_dir()
        and not (Path(folder) / name).is_file()
    ]


def summary(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.circumstances import circumstances

    every = {name: ledger(args.work, name) for name in names}
    return {
        **circumstances(),
        "seed": args.seed,
        "kinds": {
            name: {
                "mutants": one["done"],
                "accepted": one["accepted"],
                "refused": one["refused"],
                "escapes": dict(Counter(one["escapes"]).most_common(40)),
                "slowest_s": one["slowest_s"],
                "peak_mb": one["peak_mb"],
                "seconds": one["seconds"],
            }
            for name, one in every.items()
        },
    }


# ---------------------------------------------------------------------------------------------------------------------
# The child: reads
# ---------------------------------------------------------------------------------------------------------------------


def child(make: Any, args: argparse.Namespace) -> int:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with its parent
    stderr = os.fdopen(os.dup(2), "w")  # the other is captured
    faulthandler.enable(stderr)
    faulthandler.register(signal.SIGUSR1, stderr, all_threads=False)
    world = args.work / "worlds" / args.kinds[0]
    shutil.rmtree(world, ignore_errors=True)
    world.mkdir(parents=True)
    kind = make(world)
    place = os.open(args.work / f"{args.kinds[0]}.progress", os.O_WRONLY)
    escapes = (args.work / f"{args.kinds[0]}.escapes").open("a")
    said = Output()
    counts = Counter[str]()
    slowest, peak = 0.0, 0
    for number in range(args.start, args.end):
        if time.time() > args.deadline:
            args.end = number
            break
        os.pwrite(
            place,
            PROGRESS.pack(
                number, time.time(), counts["accepted"], counts["refused"], counts["escaped"], slowest, peak
            ),
            0,
        )
        outcome, what, seconds, most = judged(kind, number, args.seed, said)
        slowest, peak = max(slowest, seconds), max(peak, most)
        counts[outcome] += 1
        if outcome == "escaped":
            escapes.write(json.dumps({"number": number, "what": what.splitlines()[0]}) + "\n")
            escapes.flush()
            keep_case(args.work, args.kinds[0], what, number, world)
    os.pwrite(
        place,
        PROGRESS.pack(
            args.end, time.time(), counts["accepted"], counts["refused"], counts["escaped"], slowest, peak
        ),
        0,
    )
    return 0


def one(make: Any, args: argparse.Namespace) -> int:
    """One mutant again, with what happened to it."""
    world = args.work / "worlds" / f"{args.kinds[0]}-only"
    shutil.rmtree(world, ignore_errors=True)
    world.mkdir(parents=True)
    kind = make(world)
    faulthandler.enable()
    done = kind.mutate(random.Random(f"{args.seed}-{kind.name}-{args.only}"))
    print(f"{done}\nin {world / 'mutant'}")
    begun = time.monotonic()
    try:
        print("accepted:", kind.read())
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}"[:3000])
    print(f"{time.monotonic() - begun:.2f} s")
    return 0


def judged(kind: Any, number: int, seed: int, said: Output) -> tuple[str, str, float, int]:
    """(accepted, refused or escaped; words of an escape; seconds; bytes)."""
    done = kind.mutate(random.Random(f"{seed}-{kind.name}-{number}"))
    reset_peak()
    begun = time.process_time()
    outcome, what = "accepted", ""
    with said.taken(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            unsound = kind.read()
            if unsound:
                outcome, what = "escaped", f"unsound: {unsound}"
        except kind.refusals as error:
            outcome = "refused"
            if fault := message_fault(str(error)):
                outcome, what = "escaped", f"{fault}{place_of(error)}\n{str(error)[:3000]!r}"
        except BaseException as error:
            outcome, what = (
                "escaped",
                f"{type(error).__name__}{place_of(error)}\n{traceback.format_exc()[-3000:]}",
            )
    seconds, peak = time.process_time() - begun, peak_bytes()
    texts = {str(one.message) for one in warned}
    if not what and len(texts) > MOST_WARNINGS:
        what = f"{len(texts)} warnings"
    if not what and said.size > MOST_OUTPUT:
        what = "output of more than 20 kB"
    if seconds > SLOWEST_SECONDS:
        what = what or "slow"
    if peak > MOST_BYTES:
        what = what or "memory"
    if what:
        head, _, rest = what.partition("\n")
        return "escaped", f"{head}\n{done}\n{rest}", seconds, peak
    return outcome, "", seconds, peak


ODD = ("Cc", "Cs")
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make a terminal or an editor show a line in another order."""


def message_fault(text: str) -> str:
    """What is wrong with a message, in words; "" for nothing."""
    if len(text.encode("utf-8", "surrogatepass")) >= LONGEST_MESSAGE:
        return "long message"
    if not text.strip():
        return "empty message"
    if re.search(r"cannot allocate|allocate memory|MemoryError|out of memory", text, re.IGNORECASE):
        return "message of memory"
    odd = [one for one in text if (unicodedata.category(one) in ODD and one != "\n") or one in TURNING]
    return "control characters in the message" if odd else ""


def place_of(error: BaseException) -> str:
    """The innermost line of this project that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        one
        for one in frames
        if one.filename.startswith(str(ROOT))
        and ".venv" not in one.filename
        and "/endurance/" not in one.filename
    ]
    return "" if not ours else f" in {Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].name}"


class Output:
    """What is written to the standard streams, by libraries of any language, while a mutant is read."""

    def __init__(self) -> None:
        self.file = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
        self.size = 0

    def taken(self) -> Output:
        return self

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.own = [os.dup(1), os.dup(2)]
        for stream in (1, 2):
            os.dup2(self.file, stream)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, own in zip((1, 2), self.own, strict=True):
            os.dup2(own, stream)
            os.close(own)
        self.size = os.fstat(self.file).st_size
        os.ftruncate(self.file, 0)
        os.lseek(self.file, 0, os.SEEK_SET)


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float, nargs="?", default=60.0)
    parser.add_argument("--kinds", nargs="+", default=[])
    parser.add_argument("--count", type=int, default=10_000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "output_endurance" / "hostile")
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    parser.add_argument("--only", type=int, help="number of one mutant, to see what happens to it")
    parser.add_argument("--deadline", type=float, default=float("inf"), help=argparse.SUPPRESS)
    for name in ("--start", "--end"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
