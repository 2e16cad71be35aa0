"""Disks and folders as machines have them: full, closed, deleted, named oddly. Not a part of the tests: it takes long.

    bash scripts/endurance.sh disk [MINUTES] [--only EXPRESSION ...] [--work DIR] [--output FILE]

A *case* is a program in a place. Either it works, and what it leaves equals what it leaves in an ordinary place, or it
says in one message what is wrong; then nothing that was there is lost, nothing half-written is left, and once the place
is as it should be the same command works, with the same result.

A full disk is ``full_disk.c``, preloaded: from the N-th write below the output folder on (openings, folders and renames
count) nothing more is taken, or it takes all but that one, as where somebody frees space. N is every write that differs
from the one before it in what it does and to which kind of file; a file that is written in pieces is cut in its first
two and its last. Cases come in a random order, so that however many there is time for are a sample.

Results are lines in DIR/disk.jsonl, so that a second call goes on.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.circumstances import circumstances  # noqa: E402
from finetune import folder_lock  # noqa: E402
from finetune.demo.settings import BASE_MODEL  # noqa: E402
from finetune.files import NOT_WHOLE, write_atomically  # noqa: E402
from tests.endurance.comparing import board, files  # noqa: E402
from tests.endurance.kills import OF_LIBRARIES, World, _environment  # noqa: E402
from tests.endurance.processes import computed_seconds  # noqa: E402
from tests.endurance.warm import WarmParent  # noqa: E402

NOBODY = 65534
ODD = "-a 'b\" 终点 100%s {x} #1\nnew"
"""A folder's name with what shells, formats and markup take for something else."""
PATIENCE_SECONDS = 900
TRAINING, EXPORT, COMPARE, DIAGNOSE, RENDER, INSPECT, CORRECTIVE, CURVE = (
    "finetune.py", "export", "compare", "diagnose", "render", "inspect", "corrective", "curve",
)  # fmt: skip
WRITING = (TRAINING, CORRECTIVE, COMPARE, EXPORT, RENDER, DIAGNOSE)
"""Training first, whose output the others read."""
LOCKING = (CORRECTIVE, COMPARE, EXPORT, DIAGNOSE, CURVE, TRAINING)
"""What works in a folder alone."""
AGAIN = 6
"""Of so many full disks during a training, one is followed by the same command again, which takes as long as a run."""
SEED = 0
OF_MOMENTS = re.compile(r"events\.out\.tfevents.*|\.\d+-\d+\.tmp|\.tmp\w{6}|step-\d+|checkpoint-\d+|\.\d+\.")


class Ran(NamedTuple):
    """One run of a program: its status, what it wrote to its streams, and the seconds that it computed."""

    status: int
    text: str
    seconds: float

    @property
    def message(self) -> str:
        """Its last line, as a person sees it."""
        lines = [line.strip() for line in re.split(r"[\r\n]", self.text) if line.strip()]
        return lines[-1][:400] if lines else ""


class Case(NamedTuple):
    """``run`` returns the outcome and the faults found."""

    program: str
    place: str
    run: Callable[[], tuple[str, Ran, list[str]]]


class Places:
    """The folder of the work, and every case."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.world = World(work / "kills")
        self.inputs = self.world.inputs
        self.finished = work / "ordinary" / TRAINING
        self.disk = work / "disk.bin"
        self.log = work / "log.txt"

    def __enter__(self) -> Places:
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "tmp").mkdir(exist_ok=True)
        self.world.work.mkdir(exist_ok=True)
        self.world._write_inputs()
        _write_coco(self.inputs)
        library = self.work / "full_disk.so"
        source = Path(__file__).with_name("full_disk.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.arm()
        modules = self.work / "modules.json"
        self.parent = WarmParent(modules, 3, {**_environment(self.work), "LD_PRELOAD": str(library)})
        if not modules.is_file():
            self._run(TRAINING, self.work / "first", environment={"ENDURANCE_MODULES": str(modules)})
        for program in WRITING:
            if not self.ordinary(program).exists():
                out = self.fresh(program)  # records name the folder that they were made in
                ran = self._run(program, out)
                if ran.status:
                    raise SystemExit(
                        f"{program} in an ordinary place: status {ran.status}: {ran.message}; see {self.log}"
                    )
                self.ordinary(program).parent.mkdir(exist_ok=True)
                out.rename(self.ordinary(program))
        return self

    def __exit__(self, *_: object) -> None:
        self.parent.close()

    def ordinary(self, program: str) -> Path:
        """What the program leaves in an ordinary place."""
        return self.work / "ordinary" / program

    # --- cases ------------------------------------------------------------------------------------------------
    def cases(self) -> Iterator[Case]:
        for program in (*WRITING[1:], TRAINING):
            yield Case(program, "a folder for reading only", lambda p=program: self.read_only(p))
            yield Case(program, "the output is a file", lambda p=program: self.is_a_file(p))
            yield Case(program, "odd names everywhere", lambda p=program: self.odd(p))
            yield Case(program, "a symbolic link to the folder", lambda p=program: self.link(p))
        for program in (*WRITING, INSPECT):
            for place, situation in SITUATIONS.items():
                yield Case(program, place, lambda p=program, s=situation: self.works(p, **s))
        for program in (*WRITING[1:], TRAINING):
            yield Case(program, "over a quota", lambda p=program: self.full(p, 5, errno.EDQUOT, again=True))
            yield from self.full_disks(program)
        for program in LOCKING:
            yield Case(program, "another writes into the folder", lambda p=program: self.second(p))
            for share in (0.2, 0.5, 0.8) if program not in (TRAINING, CURVE) else ():
                name = f"killed after {share:.0%} of its work"
                yield Case(program, name, lambda p=program, s=share: self.killed(p, s))
        yield Case(TRAINING, "the output deleted during the run", self.deleted)
        yield Case(TRAINING, "the clock set back between two starts", self.clock)
        yield Case(TRAINING, "2 MiB of /dev/shm", lambda: self.works(TRAINING, shm_kib=2048))

    def full_disks(self, program: str) -> Iterator[Case]:
        for at, (number, words) in enumerate(self.writes(program)):
            again = program != TRAINING or at % AGAIN == 0
            error = errno.EDQUOT if at % 4 == 3 else errno.ENOSPC
            for what, last in (("full from", 0), ("full at", number)) if at % 2 == 0 else (("full from", 0),):
                yield Case(
                    program,
                    f"disk {what} write {number}: {words}",
                    lambda n=number, e=error, a=again, z=last: self.full(program, n, e, again=a, last=z),
                )

    def writes(self, program: str) -> list[tuple[int, str]]:
        """The N of a full disk: number and words."""
        kept = self.work / f"writes-{program}.json"
        if not kept.is_file():
            out = self.fresh(program)
            self.arm(log=True)
            ran = self._run(program, out, below=written_below(program, out))
            found = re.findall(r"^DISK (\d+) (\S+) (.*)$", ran.text, re.MULTILINE)
            write_atomically(kept, json.dumps(found).encode())
        return chosen(json.loads(kept.read_text()))

    def full(
        self, program: str, number: int, error: int, *, again: bool, last: int = 0
    ) -> tuple[str, Ran, list[str]]:
        """``last``: the last write that fails, 0: all from ``number`` on."""
        out = self.fresh(program)
        before = content(out)
        self.arm(number, error, last)
        ran = self._run(program, out, below=written_below(program, out))
        faults = self._said(ran)
        if self.count() < number:
            return "never reached", ran, []
        if ran.status == 0 and last:  # it tried again, or did without
            return "works", ran, self._equal(program, ran, out)
        if ran.status == 0:
            faults.append("status 0, though the disk took no more")
        words = os.strerror(error)
        told = words in ran.text or NOT_WHOLE in ran.text
        faults += [] if told else [f"no word of {words!r}"]
        faults += half_written(written_below(program, out))
        faults += [
            f"{name} was there and is lost" for name in before if content(out).get(name) != before[name]
        ]
        return "stopped", ran, [*faults, *(self._again(program, out) if again else [])]

    def read_only(self, program: str) -> tuple[str, Ran, list[str]]:
        parent = self.fresh(program).parent
        out = self._given(program, parent / "closed")
        for path in (parent, *parent.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = content(parent)
        ran = self._run(program, out, user=NOBODY)
        return (
            "refused",
            ran,
            [*self._refused(ran), *([] if content(parent) == before else ["something was written"])],
        )

    def is_a_file(self, program: str) -> tuple[str, Ran, list[str]]:
        out = self.fresh(program)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("mine")
        ran = self._run(program, out)
        return (
            "refused",
            ran,
            [*self._refused(ran), *([] if out.read_text() == "mine" else ["the file is lost"])],
        )

    def odd(self, program: str) -> tuple[str, Ran, list[str]]:
        place = self.fresh(program).parent / ODD
        if (
            program == RENDER
        ):  # records name pictures relative to their own folder, which has to lie as deep as it did
            out = self._given(program, place)
            ran = self._run(program, out)
            return "works", ran, self._equal(program, ran, out)
        inputs = place / "in"
        shutil.copytree(self.inputs, inputs)
        for path in inputs.glob("*.json"):
            text = path.read_text(encoding="utf-8")
            named = re.findall(r'"(/[^"]*\.(?:png|jpg))"|<img>([^<]*)</img>', text)
            for picture in {Path(one) for pair in named for one in pair if one}:
                shutil.copy(picture, inputs / picture.name)
                text = text.replace(str(picture), picture.name)
            path.write_text(text, encoding="utf-8")
        shutil.copytree(BASE_MODEL, place / "base")
        ran = self._run(program, place / "out", inputs=inputs, base=place / "base")
        return "works", ran, self._equal(program, ran, place / "out")

    def link(self, program: str) -> tuple[str, Ran, list[str]]:
        out = self.fresh(program)
        real = out.with_name("real")
        out.rename(real) if out.exists() else real.mkdir(parents=True)
        if program == EXPORT:
            # Not "out": the moved run's records name that folder, where it was made, and there would be another.
            out = out.with_name("linked")
        out.symlink_to(real)
        if program == EXPORT:
            out = out / "below"
        ran = self._run(program, out)
        return "works", ran, self._equal(program, ran, out)

    def works(self, program: str, **situation: Any) -> tuple[str, Ran, list[str]]:
        out = self.fresh(program)
        ran = self._run(program, out, **situation)
        return "works", ran, self._equal(program, ran, out)

    def deleted(self) -> tuple[str, Ran, list[str]]:
        out = self.fresh(TRAINING)

        def delete(text: str) -> bool:
            if "step 1 of" not in text:
                return False
            shutil.rmtree(out)
            return True

        ran = self._run(TRAINING, out, during=delete)
        faults = [*self._said(ran), *([] if ran.status else ["status 0"])]
        faults += [
            f"{name} was made anew" for name in content(out) if "adapter" in name or name.endswith("run.json")
        ]
        return "stopped", ran, faults

    def second(self, program: str) -> tuple[str, Ran, list[str]]:
        out = self.fresh(program)
        locked = out.with_name(f".{out.name}.partial") if program == EXPORT else out
        folder_lock.take(locked)
        before = content(out)
        try:
            ran = self._run(program, out)
        finally:
            folder_lock.release(locked)
        faults = [*self._refused(ran), *([] if content(out) == before else ["something was written"])]
        faults += [] if "another run is writing there" in ran.message else ["no word of another run"]
        return "refused", ran, [*faults, *(self._again(program, out) if program != CURVE else [])]

    def killed(self, program: str, share: float) -> tuple[str, Ran, list[str]]:
        out = self.fresh(program)
        whole = self._run(program, out).seconds
        out = self.fresh(program)

        def kill(text: str) -> bool:
            if computed_seconds(self.pid) < share * whole:
                return False
            os.killpg(self.pid, signal.SIGKILL)
            return True

        ran = self._run(program, out, during=kill)
        # Hit behind its last step: it writes no second time over a whole export.
        if program == EXPORT and out.is_dir():
            return "killed", ran, unlike(self.ordinary(program), out)
        return "killed" if ran.status < 0 else "works", ran, self._again(program, out)

    def clock(self) -> tuple[str, Ran, list[str]]:
        out = self.fresh(TRAINING)

        def stop(text: str) -> bool:
            if "step 1 of" not in text:
                return False
            os.kill(self.pid, signal.SIGTERM)
            return True

        self._run(TRAINING, out, during=stop)
        ran = self._run(TRAINING, out, environment={"ENDURANCE_CLOCK": str(-3 * 86400)})
        return "works", ran, self._equal(TRAINING, ran, out)

    # --- judging ----------------------------------------------------------------------------------------------
    def _said(self, ran: Ran) -> list[str]:
        faults = ["a traceback"] if "Traceback" in ran.text else []
        return faults + (["ended by a signal"] if ran.status < 0 else [])

    def _refused(self, ran: Ran) -> list[str]:
        faults = self._said(ran)
        faults += [] if ran.status > 0 else [f"status {ran.status}"]
        return faults + (
            ["it was refused after long work"] if re.search(r"training:|probing step", ran.text) else []
        )

    def _again(self, program: str, out: Path) -> list[str]:
        self.arm()
        return [f"again: {fault}" for fault in self._equal(program, self._run(program, out), out)]

    def _equal(self, program: str, ran: Ran, out: Path) -> list[str]:
        if ran.status:
            return [f"status {ran.status}: {ran.message}", *self._said(ran)]
        return [] if program == INSPECT else unlike(self.ordinary(program), out)

    # --- running ----------------------------------------------------------------------------------------------
    def fresh(self, program: str) -> Path:
        """A new place for its output; for ``render``, with records that are not drawn."""
        place = self.work / "place"
        for path in place.rglob("*") if place.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o755)
        return self._given(program, place / "out")

    def _given(self, program: str, out: Path) -> Path:
        if program == RENDER:
            shutil.copytree(self.finished / "attention", out / "attention", dirs_exist_ok=True)
            shutil.rmtree(out / "attention" / "images")
        return out

    def command(self, program: str, out: Path, inputs: Path, base: Path) -> list[str]:
        data, probes = f"--data_path={inputs / 'data.json'}", inputs / "probes.json"
        run = self.finished
        given = {
            EXPORT: ["-m", "finetune.export", run, f"--output_dir={out}"],
            COMPARE: [
                "-m", "diagnostics.compare", f"--before={run / 'attention' / 'step-000000'}",
                f"--after={run / 'attention' / 'step-000002'}", f"--output_dir={out}",
            ],
            DIAGNOSE: ["-m", "diagnostics.diagnose", base, f"--probes={probes}", f"--output_dir={out}"],
            RENDER: ["-m", "diagnostics.render", f"--attention_dir={out / 'attention'}"],
            INSPECT: ["-m", "diagnostics.inspect", base],
            CURVE: [
                "-m", "diagnostics.curve", "--fractions", "0.5", "1", f"--output_dir={out}", "--", data,
                f"--model_name_or_path={base}", f"--probes={probes}",
            ],
            CORRECTIVE: [
                "-m", "finetune.corrective", f"--boxes={inputs / 'coco.json'}", f"--images={inputs}",
                f"--output_dir={out}",
            ],
        }  # fmt: skip
        if program in given:
            return [str(word) for word in given[program]]
        words = {
            "model_name_or_path": base, "probes": probes, "output_dir": out, "monitor": True, "use_lora": True,
            "train_connector": True, "lora_r": 4, "max_steps": 2, "save_steps": 1, "logging_steps": 1,
            "per_device_train_batch_size": 4, "learning_rate": 2e-3, "model_max_length": 512, "key_layers": "0,2",
            "diagnose": False, "dataloader_num_workers": 1, "save_total_limit": 1,
        }  # fmt: skip
        return [str(ROOT / "finetune.py"), data, *(f"--{name}={value}" for name, value in words.items())]

    def _run(
        self,
        program: str,
        out: Path,
        *,
        below: Path | None = None,
        inputs: Path | None = None,
        base: Path | None = None,
        environment: dict[str, str] | None = None,
        during: Callable[[str], bool] | None = None,
        **situation: Any,
    ) -> Ran:
        """Run it to its end. ``below``: where the disk is full; ``during`` is called with what was written until it
        returns True."""
        self.log.unlink(missing_ok=True)
        full = {"ENDURANCE_DISK": str(self.disk), "ENDURANCE_BELOW": str(below)} if below is not None else {}
        run = self.parent.start(
            self.command(program, out, inputs or self.inputs, base or BASE_MODEL),
            self.log,
            self.work,
            {**full, **(environment or {})},
            **situation,
        )
        self.pid, began = run.pid, time.monotonic()
        seconds = 0.0
        while True:
            try:
                status = run.wait(0.05)
                break
            except subprocess.TimeoutExpired:
                seconds = max(seconds, computed_seconds(run.pid))
            if during is not None and during(self._text()):
                during = None
            if time.monotonic() - began > PATIENCE_SECONDS:
                os.killpg(run.pid, signal.SIGKILL)
        return Ran(status, self._text(), seconds)

    def _text(self) -> str:
        return self.log.read_text(errors="replace").replace("\r", "\n") if self.log.is_file() else ""

    def arm(self, number: int = 0, error: int = 0, last: int = 0, *, log: bool = False) -> None:
        self.disk.write_bytes(struct.pack("qqqqq", 0, number, last, error, log))

    def count(self) -> int:
        return int(struct.unpack("qqqqq", self.disk.read_bytes())[0])

    def left_in_tmp(self) -> list[str]:
        """Deleted, and told, but for what libraries leave."""
        found = [one for one in (self.work / "tmp").iterdir() if not one.name.startswith(OF_LIBRARIES)]
        for one in found:
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        return [f"{one.name} is left in TMPDIR" for one in found]


SITUATIONS: dict[str, dict[str, Any]] = {
    "no HOME": {"unset": ["HOME"]},
    "a HOME that does not exist": {"environment": {"HOME": "/nonexistent"}},
    "no TMPDIR": {"unset": ["TMPDIR"]},
    "a TMPDIR that does not exist": {"environment": {"TMPDIR": "/nonexistent"}},
    "a user without a home, a folder of its own": {
        "environment": {"HOME": "/nonexistent"},
        "unset": ["USER", "LOGNAME"],
    },
}


def _write_coco(folder: Path) -> None:
    """Twelve pictures, no two alike, with a cat left of a dog in half of them."""
    images, boxes = [], []
    for number in range(12):
        left, right = ((8, 12, 18, 20), (40, 10, 16, 24))[:: 1 if number % 2 else -1]
        picture = Image.new("RGB", (70, 50), (20 * number, 90, 200 - 10 * number))
        for at, colour in ((left, "orange"), (right, "brown")):
            picture.paste(colour, (at[0], at[1], at[0] + at[2], at[1] + at[3]))
        picture.save(folder / f"coco-{number}.png")
        images.append({"id": number, "file_name": f"coco-{number}.png", "width": 70, "height": 50})
        boxes += [
            {"id": 2 * number + kind, "image_id": number, "category_id": kind, "bbox": at, "iscrowd": 0}
            for kind, at in enumerate((left, right))
        ]
    names = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": images, "annotations": boxes, "categories": names}
    (folder / "coco.json").write_text(json.dumps(content))


def chosen(writes: list[tuple[str, str, str]]) -> list[tuple[int, str]]:
    """One N for each kind of write in a row of like ones, two more where a file is written in pieces.

    >>> chosen([("1", "open", "/a/x.tmp"), ("2", "write", "/a/x.tmp"), ("3", "write", "/a/x.tmp"),
    ...         ("4", "write", "/a/x.tmp"), ("5", "write", "/a/x.tmp")])
    [(1, 'open /a/x.tmp'), (2, 'write /a/x.tmp'), (3, 'write /a/x.tmp'), (5, 'write /a/x.tmp')]
    """
    found: dict[str, list[int]] = {}
    for number, what, path in writes:
        found.setdefault(f"{what} {OF_MOMENTS.sub('*', path)}", []).append(int(number))
    numbers = {n: kind for kind, several in found.items() for n in {several[0], *several[1:2], several[-1]}}
    return sorted(numbers.items())


def written_below(program: str, out: Path) -> Path:
    """An export appears whole, from beside its place."""
    return out.parent if program == EXPORT else out


def content(folder: Path) -> dict[str, bytes]:
    """Path → bytes of every file, but of the lock: whoever holds it loses it by closing that file."""
    found = [one for one in folder.rglob("*") if one.is_file() and one.name != folder_lock.LOCK_FILE]
    return {str(one.relative_to(folder)): one.read_bytes() for one in found}


def half_written(folder: Path) -> list[str]:
    """Temporary files, JSON and safetensors files that do not open, checkpoints whose mark lies."""
    from safetensors import safe_open

    from finetune.training import run_folder

    faults = (
        [f"{one} is left" for one in files(folder) if re.search(r"\.tmp|\.partial", one)]
        if folder.is_dir()
        else []
    )
    for path in folder.rglob("*") if folder.is_dir() else ():
        inside = next((one for one in path.parents if one.name.startswith("checkpoint-")), None)
        if inside is not None and not (inside / "complete.json").is_file():
            faults.append(f"{path.relative_to(folder)} of a checkpoint that is not whole")
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            if path.suffix == ".safetensors":
                safe_open(path, "np").keys()
        except Exception as error:
            faults.append(f"{path.relative_to(folder)} is half-written: {error}")
    for checkpoint in run_folder.checkpoints(folder) if folder.is_dir() else ():
        fault = run_folder.damage(checkpoint, ours=True)
        faults += [f"{checkpoint.name}: {fault}"] if fault else []
    return faults


PATHS_WITHIN = ("comparison.json", "probes.json", "diagnosis.json", "corrective.json")
"""Files that name pictures and models by their paths: what else is in them is compared."""
NOT_WITHIN = {
    "images",
    "before",
    "after",
    "model",
    "probe_file",
    "remedy",
    "name",
    "value",
    "conversations",
    "evidence",
}
COMPARED = (".safetensors", ".png", ".tiktoken")


def unlike(ordinary: Path, found: Path) -> list[str]:
    """What differs from the output of an ordinary place, but for the paths that are written into it."""
    ours, theirs = files(ordinary), files(found)
    faults = [f"{name} is missing" for name in sorted(ours - theirs)]
    faults += [f"{name} is there besides" for name in sorted(theirs - ours)]
    for name in sorted(ours & theirs):
        a, b = ordinary / name, found / name
        if a.suffix in COMPARED and tensors(a) != tensors(b):
            faults.append(f"{name} differs")
        if a.name in PATHS_WITHIN and _without_paths(json.loads(a.read_text())) != _without_paths(
            json.loads(b.read_text())
        ):
            faults.append(f"{name} differs")
    if (ordinary / "runs").is_dir():
        # In the order of their steps: TensorBoard's files are in that of the clock, which may have been set back.
        losses = [sorted(dict(board(one / "runs")).get("train/loss", [])) for one in (ordinary, found)]
        faults += (
            [] if losses[0] == losses[1] else [f"train/loss {losses[1]}, in an ordinary place {losses[0]}"]
        )
    return faults


def tensors(path: Path) -> Any:
    """What a file holds, without the words beside its tensors, which name folders."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    from safetensors.numpy import load_file

    return {name: (one.dtype.str, one.shape, one.tobytes()) for name, one in load_file(path).items()}


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        value = value.get("groups", value)  # comparison.json names folders in its other parts
        return {name: _without_paths(one) for name, one in value.items() if name not in NOT_WITHIN}
    return [_without_paths(one) for one in value] if isinstance(value, list) else value


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    lines = args.work / "disk.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
    known = {(one["program"], one["place"]) for one in done}
    until = time.monotonic() + 60 * args.minutes
    with Places(args.work) as places:
        for case in tqdm(asked([*places.cases()], args.only), desc="cases", unit="case"):
            if (case.program, case.place) in known:
                continue
            if time.monotonic() > until:
                break
            outcome, ran, faults = case.run()
            faults += places.left_in_tmp()
            result = {
                "program": case.program, "place": case.place, "outcome": outcome, "status": ran.status,
                "seconds": round(ran.seconds, 1), "message": ran.message, "faults": faults,
            }  # fmt: skip
            done.append(result)
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
            for fault in faults:
                tqdm.write(f"{case.program}, {case.place}: {fault}")
            if faults:
                shutil.copy(places.log, args.work / f"faulty-{len(done)}.txt")
    summary = summed(done)
    if args.output is not None:
        write_atomically(args.output, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps({**summary, "cases": len(done)}, indent=1, ensure_ascii=False))
    sys.exit(1 if summary["cases_with_faults"] else 0)


def asked(cases: list[Case], expressions: list[str]) -> list[Case]:
    """The cases that each expression finds, in random order."""
    random.Random(SEED).shuffle(cases)
    found = [case for one in expressions for case in cases if re.search(one, f"{case.program}: {case.place}")]
    return list(dict.fromkeys(found))


def summed(done: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **circumstances(),
        "outcomes": dict(Counter(one["outcome"] for one in done).most_common()),
        "cases_with_faults": sum(bool(one["faults"]) for one in done),
        "cases": done,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float, nargs="?", default=60.0)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help='cases whose "PROGRAM: PLACE" these expressions find, in their order',
    )
    parser.add_argument("--work", type=Path, default=ROOT / "output_endurance_disk")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
