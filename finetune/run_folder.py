"""The folder of a run: is it new, half done or finished, and from which checkpoint does it go on?"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from finetune.arguments import Arguments

RUN_FILE = "run.json"
COMPLETE_FILE = "complete.json"
VERSION = 1
OUR_FOLDERS = ("runs", "attention", "comparison")
OUR_FILES = re.compile(
    r"run\.json|adapter_.*|model.*\.safetensors.*|pytorch_model.*|config\.json|generation_config\.json"
    r"|.*\.tiktoken|tokenizer.*|special_tokens.*|preprocessor_config\.json|processor_config\.json"
    r"|chat_template.*|training_args\.bin|trainer_state\.json|all_results\.json|README\.md"
)


class Start(NamedTuple):
    """How a run begins. ``checkpoint`` only where ``how`` is "resume"; ``lines`` are for people."""

    how: Literal["new", "resume", "finished"]
    checkpoint: Path | None
    lines: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# What makes two runs the same
# ---------------------------------------------------------------------------------------------------------------------


def fingerprint(arguments: Arguments, world_size: int) -> dict[str, Any]:
    """What decides the outcome of a run: model, data (by content) and the flags of training."""
    model, data, training = arguments.model, arguments.data, arguments.training
    marks: dict[str, Any] = {
        "model_name_or_path": _place(model.model_name_or_path),
        "data_path": _place(data.data_path),
        "data sha256": _sha256(Path(data.data_path or "")),
        "model_max_length": data.model_max_length,
        "on_bad_sample": data.on_bad_sample,
        "samples a step": training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * world_size,
        "deepspeed": bool(training.deepspeed),
    }
    marks |= {name: value for name, value in vars(arguments.adaptation).items() if name != "lora_weight_path"}
    marks |= {name: _plain(getattr(training, name)) for name in _TRAINING_MARKS}
    return marks


_TRAINING_MARKS = (
    "learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "seed", "data_seed", "bf16",
    "fp16", "train_sampling_strategy",
)  # fmt: skip


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _place(name: str | None) -> str | None:
    """A folder or file, wherever it is called from; a hub name stays."""
    return os.path.abspath(name) if name is not None and Path(name).exists() else name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------------------


def begin(
    folder: Path,
    marks: dict[str, Any],
    *,
    resume: str | None,
    overwrite: bool,
    world_size: int,
    deepspeed: bool,
) -> Start:
    """Decide how a run in ``folder`` begins. Nothing is written, but ``overwrite`` deletes the earlier run.

    resume      ``--resume_from_checkpoint``: a folder, "True", or None (then the same command goes on by itself)

    Raises ValueError where the folder holds another run and nobody asked to go on with it.
    """
    if overwrite:
        clear(folder)
    if resume not in (None, "", "False", "false") and resume not in ("True", "true"):
        given = Path(str(resume))
        # A checkpoint of ours says when it is whole; one of another program can only be believed.
        needed = COMPLETE_FILE if (given.parent / RUN_FILE).is_file() else "trainer_state.json"
        if not (given / needed).is_file():
            raise ValueError(f"--resume_from_checkpoint: {given} holds no complete checkpoint of a run")
        return _resume(given, world_size, deepspeed, ())
    asked = resume in ("True", "true")
    before = _read_run(folder)
    if before is None:
        _refuse_foreign(folder)
    elif not asked:
        _refuse_other(folder, before["marks"], marks)
        if before["finished"]:
            return Start("finished", None, _farewell(folder))
    checkpoint, lines = last_complete(folder)
    if checkpoint is None:
        if asked:
            raise ValueError(f"--resume_from_checkpoint True: {folder} holds no complete checkpoint")
        return Start("new", None, tuple(lines))
    return _resume(checkpoint, world_size, deepspeed, lines)


def _farewell(folder: Path) -> tuple[str, ...]:
    report = folder / "comparison" / "index.html"
    return (
        f"{folder}: this very run is finished; nothing is left to do",
        *([f"before and after, side by side: {report}"] if report.is_file() else []),
        "to train it again: another --output_dir, or --overwrite_output_dir True",
    )


def _resume(checkpoint: Path, world_size: int, deepspeed: bool, lines: Any) -> Start:
    marker = checkpoint / COMPLETE_FILE
    saved_by = json.loads(marker.read_text())["processes"] if marker.is_file() else world_size
    if deepspeed and saved_by != world_size:
        raise ValueError(
            f"{checkpoint}: saved by {saved_by} processes under DeepSpeed, and there are {world_size} now; "
            f"go on with as many (GPUS_PER_NODE={saved_by}), or start anew in another --output_dir"
        )
    return Start("resume", checkpoint, (*lines, f"going on from {checkpoint}"))


def last_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that was written to its end, and a line for each newer one that was not."""
    lines: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        if (checkpoint / COMPLETE_FILE).is_file():
            return checkpoint, lines
        lines.append(f"{checkpoint}: was not written to its end; skipped")
    return None, lines


def checkpoints(folder: Path) -> list[Path]:
    """The ``checkpoint-N`` folders, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """``checkpoint-50`` → 50."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def mark_complete(checkpoint: Path, *, processes: int) -> None:
    """Say that a checkpoint is whole. To be called when every process has written its part."""
    write_json(checkpoint / COMPLETE_FILE, {"version": VERSION, "processes": processes})


def write_run(folder: Path, marks: dict[str, Any], *, finished: bool) -> None:
    """Leave the run's fingerprint in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_FILE, {"version": VERSION, "finished": finished, "marks": marks})


def write_json(path: Path, content: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def clear(folder: Path) -> None:
    """Delete what a run of ours left in its folder, and nothing else.

    Raises ValueError for a folder without a ``run.json``: it is not known whose content that is.
    """
    if _read_run(folder) is None:
        _refuse_foreign(folder)
        return
    for path in [*checkpoints(folder), *(folder / name for name in OUR_FOLDERS)]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.iterdir():
        if path.is_file() and OUR_FILES.fullmatch(path.name):
            path.unlink()


def _read_run(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: broken JSON ({error}); choose another --output_dir") from error
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: found version {content.get('version')}, expected {VERSION}; choose another --output_dir"
        )
    return content


def _refuse_foreign(folder: Path) -> None:
    left = [*checkpoints(folder), *(folder / name for name in OUR_FOLDERS), *folder.glob("*.safetensors")]
    found = [path.name for path in left if path.exists()]
    if found:
        raise ValueError(
            f"--output_dir {folder}: holds another run ({', '.join(found[:5])}) without a {RUN_FILE}; choose another "
            "folder, or go on with that run: --resume_from_checkpoint True"
        )


def _refuse_other(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    # Through JSON, as the marks of before went: tuples become lists.
    now = json.loads(json.dumps(now))
    different = [
        f"  {name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if different:
        raise ValueError(
            f"--output_dir {folder}: holds another run:\n" + "\n".join(different) + "\n"
            "choose another folder, go on with that run all the same (--resume_from_checkpoint True), or delete "
            "it (--overwrite_output_dir True)"
        )
