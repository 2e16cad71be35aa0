"""Two folders of one run, compared: what a disturbed one lacks, has besides, or has otherwise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, TENSORS, EventAccumulator

NOT_COMPARED = {  # moments, durations, machines and the run's random name are in these
    "complete.json", "training_args.bin", "trainer_state.json", "run.json", "run.yaml", "optimizer.pt", "scheduler.pt",
    "rng_state.pth", "rng_state_0.pth", "rng_state_1.pth",
}  # fmt: skip
LOG = "libraries.log"
"""What libraries said, in whichever start: a start whose modules were loaded before hears less."""
OF_TIME = ("train_runtime", "per_second", "waiting for data", "total_flos", "train_loss", "seconds", "memory")
"""Words of scalars that differ between two runs of the same arithmetic."""


def differences(alone: Path, found: Path) -> list[str]:
    """What a disturbed run's folder lacks or has besides, and what differs."""
    faults = []
    ours, theirs = files(alone), files(found)
    faults += [f"{name} is missing" for name in sorted(ours - theirs)]
    faults += [f"{name} is there besides" for name in sorted(theirs - ours)]
    for name in sorted(ours & theirs):
        if Path(name).name in NOT_COMPARED or name.endswith(("index.html", "README.md")):
            continue
        if (alone / name).read_bytes() != (found / name).read_bytes():
            faults.append(f"{name} differs")
    return faults + board_differences(alone / "runs", found / "runs")


def files(folder: Path) -> set[str]:
    """Paths below a folder, without TensorBoard's, whose names hold moments, and the log."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("events.out") and path.name != LOG
    }


def board_differences(alone: Path, found: Path) -> list[str]:
    ours, theirs = board(alone), board(found)
    lacking = [tag for tag in sorted(ours.keys() - theirs.keys()) if not _is_of_time(tag)]
    faults = [f"TensorBoard lacks {tag!r}" for tag in lacking]
    faults += [f"TensorBoard has {tag!r} besides" for tag in sorted(theirs.keys() - ours.keys())]
    for tag in sorted(ours.keys() & theirs.keys()):
        steps = [step for step, _ in theirs[tag]]
        # transformers logs the last epoch twice, but once where the last start had nothing left to train
        alone_steps = Counter(step for step, _ in ours[tag])
        if doubled := [step for step, times in Counter(steps).items() if times > max(alone_steps[step], 1)]:
            faults.append(f"TensorBoard has {tag!r} twice at steps {doubled}")
        elif [*dict.fromkeys(steps)] != [*alone_steps]:
            faults.append(
                f"TensorBoard has {tag!r} at steps {steps}, alone {[step for step, _ in ours[tag]]}"
            )
        elif dict(theirs[tag]) != dict(ours[tag]) and not _is_of_time(tag):
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
