"""The folder of a run: new, unfinished or finished, and the checkpoint to resume from."""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError

from finetune import fields, folder_lock
from finetune.data.mixture import parse_source
from finetune.fields import NULL, OBJECT, TEXT, TRUTH, by_name, items, number, one_of, whole
from finetune.files import delete_left_behind, write_atomically
from finetune.flags import run_file
from finetune.flags.arguments import Arguments
from finetune.flags.parse import default_values
from finetune.model import adapters, run_data, weights
from finetune.model.run_data import SUPERSEDED, content_digest
from finetune.printable import one_line
from finetune.samples.listing import shown
from finetune.training import judged, lineage, pickles

RUN_FILE = run_data.RUN_FILE
CONFIGURATION_FILE = judged.CONFIGURATION_FILE
FRACTION_FILE = "data_fraction.json"
"""With --data_fraction: how many samples each source has, and how many different ones were trained on."""
COMPLETE_FILE = "complete.json"
STATE_FILE = lineage.STATE_FILE
OPTIMIZER_FILES = (
    "optimizer*",
    "global_step*",
    "rank*-optimizer.pt",
    "pytorch_model_fsdp*",
)  # torch, DeepSpeed, FSDP
VERSION = 1
RUN_SHAPE = {
    "version": one_of(VERSION), "finished": TRUTH, "marks": OBJECT, "missing": TEXT, "lineage": OBJECT,
}  # fmt: skip
_REQUIRED = ("version", "finished", "marks", "missing")
"""Of every release; ``lineage`` came later."""
MARKER_SHAPE = {"version": one_of(VERSION), "processes": whole(1), "files": by_name(whole(0))}
STATE_SHAPE = {
    "global_step": whole(0), "max_steps": whole(-1), "epoch": number(0) | NULL, "log_history": items(OBJECT),
    "best_model_checkpoint": TEXT | NULL, "stateful_callbacks": OBJECT | NULL,
}  # fmt: skip
OUR_FOLDERS = ("runs", "attention", judged.FOLDER, SUPERSEDED)
OUR_FILES = re.compile(
    r"run\.json|run\.yaml|probe\.png|libraries\.log|look\.json|seen\.json|data_fraction\.json|adapter_.*|model.*\.safetensors.*|pytorch_model.*|config\.json"
    r"|generation_config\.json"
    r"|.*\.tiktoken|tokenizer.*|special_tokens.*|preprocessor_config\.json|processor_config\.json"
    r"|chat_template.*|training_args\.bin|trainer_state\.json|all_results\.json|README\.md"
)


class Start(NamedTuple):
    """How a run begins.

    checkpoint   only where ``how`` is "resume"
    lines        messages to print
    missing      of a finished run: what it could not show at its end and is not there since; "" for nothing
    """

    how: Literal["new", "resume", "finished"]
    checkpoint: Path | None
    lines: tuple[str, ...]
    missing: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# What makes two runs the same
# ---------------------------------------------------------------------------------------------------------------------


def fingerprint(arguments: Arguments, world_size: int) -> dict[str, Any]:
    """Everything that determines a run's result: model, data (by content) and training flags."""
    model, data, training = arguments.model, arguments.data, arguments.training
    marks: dict[str, Any] = {
        "model_name_or_path": _place(model.model_name_or_path),
        "data_path": _place(data.data_path),
        "data sha256": data.data_path and _content(Path(data.data_path), names_alone=data.streaming),
        "samples a step": training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * world_size,
        "deepspeed": bool(training.deepspeed),
    }
    given = [
        (flag, text) for flag in ("corrective_data", "replay_data") for text in getattr(data, flag) or ()
    ]
    for flag, text in given:
        marks |= _source_marks(flag, text, names_alone=data.streaming)
    if len(given) > 1:
        marks["order of the sources"] = [_place(str(parse_source(text).path)) for _, text in given]
    marks |= {
        name: value
        for name, value in vars(arguments.adaptation).items()
        if name not in ("lora_weight_path", *_NO_MARKS)
    }
    marks |= vars(arguments.look)
    marks |= {"lora_weight_path": _place(arguments.adaptation.lora_weight_path)}
    marks |= {name: getattr(data, name) for name in _DATA_MARKS} | {"image_folder": _place(data.image_folder)}
    marks |= {name: _plain(getattr(training, name)) for name in _TRAINING_MARKS}
    marks |= {name: getattr(arguments.monitor, name) for name in ("stop_when", "stop_patience")}
    return marks | _evaluation_marks(arguments) | _weights_mark(arguments) | _outside_mark(arguments)


_DATA_MARKS = (
    "model_max_length", "on_bad_sample", "data_format", "box_units", "streaming", "packing", "min_pixels", "max_pixels",
    "video_fps", "video_max_frames", "data_fraction", "data_fraction_of", "data_fraction_same",
)  # fmt: skip

_TRAINING_MARKS = (
    "learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "label_smoothing_factor", "neftune_noise_alpha", "seed", "data_seed", "bf16", "fp16", "train_sampling_strategy",
    "dataloader_drop_last", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
)  # fmt: skip


_NO_MARKS = ("allow_other_base", lineage.OUTSIDE)
"""Where nothing differs: permissions, which decide nothing about the result (earlier releases wrote them down), and the
checkpoint of another folder that a run began with, which it need not name again to go on."""

_LATER_MARKS = (
    "stop_when", "stop_patience", "evaluation data", "evaluation data sha256", "model weights", "eval_strategy",
    "eval_steps", "eval_delay", "save_strategy", "save_steps", "eval_generate", "eval_max_new_tokens",
    "order of the sources",
)  # fmt: skip
"""They came later, or are there in some runs alone: where either side lacks one, that is no difference."""

UNREADABLE = (
    ValueError, OSError, RuntimeError, AttributeError, TypeError, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
"""What files raise that hold no weights, or others than tensors by name."""

_RATE_FLAGS = (
    "learning_rate", "vision_learning_rate", "connector_learning_rate", "language_learning_rate", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
_SCHEDULES_WITH_RATES = ("reduce_lr_on_plateau", "greedy")
"""Their state is the rate itself: it cannot be worked out from another one."""


def _evaluation_marks(arguments: Arguments) -> dict[str, Any]:
    """What is evaluated and when, where that chooses the weights (the best checkpoint) or the learning rate."""
    data, training, evaluation = arguments.data, arguments.training, arguments.evaluation
    by_evaluation = _plain(training.lr_scheduler_type) in _SCHEDULES_WITH_RATES
    if not (training.load_best_model_at_end or by_evaluation) or data.eval_data_path is None:
        return {}
    marks: dict[str, Any] = {
        "evaluation data": _place(data.eval_data_path),
        "evaluation data sha256": _content(Path(data.eval_data_path), names_alone=data.streaming),
    }
    names = ["eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"]
    marks |= {name: _plain(getattr(training, name)) for name in names}
    if training.metric_for_best_model not in (None, "loss", "eval_loss"):
        marks |= {name: getattr(evaluation, name) for name in ("eval_generate", "eval_max_new_tokens")}
    return marks


def _weights_mark(arguments: Arguments) -> dict[str, Any]:
    """The fingerprint of the model's weights, which another model at the same path has not; {} where they are not
    whole on this machine (loading them says so, or fetches them)."""
    name, cache_dir = arguments.model.model_name_or_path, arguments.model.cache_dir
    folder = None if name is None or arguments.training.dry_run else weights.local_folder(name, cache_dir)
    if folder is None:
        return {}
    try:
        weights.require_all(folder)
        whole = not any(weights.is_cut_short(path) for path in weights.weight_files(folder))
        found = adapters.fingerprint(folder) if whole else None
    except UNREADABLE:
        return {}
    return {} if found is None else {"model weights": found}


def _outside_mark(arguments: Arguments) -> dict[str, Any]:
    """The checkpoint of another folder that a run goes on from."""
    training = arguments.training
    given = named_checkpoint(training.resume_from_checkpoint)
    if given is None or given.resolve().parent == Path(str(training.output_dir)).resolve():
        return {}
    return {lineage.OUTSIDE: os.path.abspath(given)}


def _source_marks(flag: str, text: str, *, names_alone: bool) -> dict[str, Any]:
    """``("corrective_data", "towers.json:x2")`` → its place, how much of it, and its content."""
    spec = parse_source(text)
    place = _place(str(spec.path))
    return {
        f"{flag} {place}": {"share": spec.share, "repeat": spec.repeat},
        f"{flag} {place} sha256": _content(Path(spec.path), names_alone=names_alone),
    }


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _place(name: str | None) -> str | None:
    """A folder or file, wherever it is called from; a hub name stays."""
    return os.path.abspath(name) if name and os.path.exists(name) else name


def _content(path: Path, *, names_alone: bool) -> str:
    """SHA-256 of a file, or of all files of a folder with their names.

    names_alone   of names and sizes, for data that is too much to be read ahead (``--streaming``)
    """
    if not names_alone:
        return content_digest(path)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(path) if path.is_dir() else file.name
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
    return digest.hexdigest()


def _written(marks: dict[str, Any]) -> dict[str, Any]:
    """Through JSON, as the marks of before went: tuples become lists."""
    return json.loads(json.dumps(marks))


def _brief(value: Any) -> str:
    return one_line(repr(value), 300)


def _differing(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Mark → what it was and what it is, where the two differ; flags missing from an earlier release's file had their
    defaults."""
    defaults = default_values()
    names = [
        name
        for name in sorted({*before, *now})
        if name not in _NO_MARKS and (name not in _LATER_MARKS or (name in before and name in now))
    ]
    both = {name: (before.get(name, defaults.get(name)), now.get(name, defaults.get(name))) for name in names}
    return {name: (there, here) for name, (there, here) in both.items() if there != here}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each differing mark."""
    return [
        f"  {one_line(name, 120)}: {_brief(there)} there, {_brief(here)} now"
        for name, (there, here) in _differing(before, now).items()
    ]


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
    """Decide how a run in ``folder`` begins, and lock the folder unless it holds the finished run.

    Nothing else is written, but ``overwrite`` deletes the earlier run, and temporary files of a killed one go.

    resume      ``--resume_from_checkpoint``: a folder, "True", or None (then the same command resumes by itself)

    Raises ValueError where the folder holds another run and nobody asked to go on with it, where another process is
    writing there, and where it cannot be written to.
    """
    notes, fault = _locked(folder)
    try:
        if fault is None and _read_run(folder) is not None:
            delete_left_behind(_own_folders(folder))
        if overwrite and fault is None:
            clear(folder)
        start = _start(
            folder,
            marks,
            resume=resume,
            world_size=world_size,
            deepspeed=deepspeed,
            writable=fault is None,
        )
        if start.how != "finished" and fault is not None:
            raise ValueError(fault)
    except ValueError:
        folder_lock.release(folder)
        raise
    if start.how == "finished":
        folder_lock.release(folder)
        return start
    return start._replace(lines=(*notes, *start.lines))


def _own_folders(folder: Path) -> list[Path]:
    """The run's folder and those below it, but the checkpoints: what is half-written there is passed over whole."""
    below = [one for name in OUR_FOLDERS for one in (folder / name).rglob("*") if one.is_dir()]
    return [folder, *(folder / name for name in OUR_FOLDERS), *below]


def _locked(folder: Path) -> tuple[tuple[str, ...], str | None]:
    """Lock the folder: lines for people, and why it cannot be written to (a finished run need not be).

    Raises ValueError where another run is writing there.
    """
    try:
        return folder_lock.take(folder), None
    except OSError as error:
        reason = (
            "is a file, expected a folder" if folder.is_file() else f"cannot be written to ({error.strerror})"
        )
        return (), f"--output_dir {folder}: {reason}; choose another folder"


def _start(
    folder: Path,
    marks: dict[str, Any],
    *,
    resume: str | None,
    world_size: int,
    deepspeed: bool,
    writable: bool,
) -> Start:
    asked = _truth(resume)
    if asked is None:
        return _begin_from(Path(str(resume)), folder, marks, world_size, deepspeed)
    before = _read_run(folder)
    if before is None:
        _refuse_foreign(folder)
    elif not asked:
        _refuse_other(folder, before["marks"], marks)
        if before["finished"]:
            missing = "" if _is_made_since(folder) else before.get("missing", "")
            last = _checkpoint_of_last_step(folder) if missing and writable else None
            if last is None:
                return Start("finished", None, _farewell(folder), missing)
            said = f"{folder}: trained to its last step, but not all was written; the rest is made from {last.name}"
            return _resume(last, world_size, deepspeed, [said])
    checkpoint, lines = last_complete(folder)
    if checkpoint is None:
        if asked:
            raise ValueError(
                "\n  ".join([f"--resume_from_checkpoint True: {folder} holds no complete checkpoint", *lines])
            )
        return Start("new", None, tuple(lines))
    return _resume(checkpoint, world_size, deepspeed, [*lines, *_other_flags(before, marks)])


def _truth(resume: str | None) -> bool | None:
    """Resume (True) or not (False)? None if a checkpoint is named."""
    word = (resume or "").lower()
    if word in ("true", "yes", "1"):
        return True
    return False if word in ("", "false", "no", "0", "none") else None


def named_checkpoint(resume: str | None) -> Path | None:
    """The checkpoint that ``--resume_from_checkpoint`` names; None where it says True, False or nothing."""
    return Path(str(resume)) if _truth(resume) is None else None


def _begin_from(given: Path, folder: Path, marks: dict[str, Any], world_size: int, deepspeed: bool) -> Start:
    """From a checkpoint that is named, whatever its folder's name."""
    fault = damage(given, ours=(given.parent / RUN_FILE).is_file())
    if fault is not None:
        newest, _ = last_complete(given)
        meant = f" (it is a run's folder: its newest checkpoint is {newest})" if newest else ""
        raise ValueError(
            f"--resume_from_checkpoint: {given} holds no complete checkpoint of a run: {fault}{meant}; take another, "
            "or start from its weights alone (--model_name_or_path, or --lora_weight_path for adapters)"
        )
    if folder.resolve() != given.resolve().parent:
        before = _read_run(folder)
        if before is None:
            _refuse_foreign(folder)
        else:
            _refuse_other(folder, before["marks"], marks)
    return _resume(given, world_size, deepspeed, _other_flags(_read_run(given.parent), marks))


def _other_flags(before: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    """A line for each flag that was another when the checkpoint was written.

    Raises ValueError for flags that cannot change there.
    """
    if before is None:
        return []
    _refuse_other_rates(before["marks"], _written(now))
    different = _differences(before["marks"], _written(now))
    return ["going on with other flags than it began with:", *different] if different else []


def _refuse_other_rates(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ValueError where rates and the like come back with the checkpoint, whatever the flags say: DeepSpeed loads
    the optimizer's groups itself, and a schedule by evaluation keeps the rate that it has come to."""
    schedule = now.get("lr_scheduler_type")
    cause = (
        "under DeepSpeed"
        if now.get("deepspeed")
        else f"with --lr_scheduler_type {schedule}"
        if schedule in _SCHEDULES_WITH_RATES
        else None
    )
    changed = {name: both for name, both in _differing(before, now).items() if name in _RATE_FLAGS}
    if cause and changed:
        listed = ", ".join(
            f"--{name}: found {_brief(here)}, expected {_brief(there)}"
            for name, (there, here) in changed.items()
        )
        raise ValueError(
            f"{listed}: the checkpoint was saved with it, and {cause} a run that resumes cannot change it; give it as "
            "before, or start from the checkpoint's weights in another --output_dir"
        )


def _checkpoint_of_last_step(folder: Path) -> Path | None:
    """The newest checkpoint if no step is left behind it: a run that resumes from it only makes its end."""
    checkpoint, _ = last_complete(folder)
    if checkpoint is None:
        return None
    state = fields.load(checkpoint / STATE_FILE, STATE_SHAPE)
    return checkpoint if 0 < state.get("max_steps", math.inf) <= state["global_step"] else None


def _report(folder: Path) -> Path:
    return folder / "comparison" / "index.html"


def _is_made_since(folder: Path) -> bool:
    """Was the report written after the run had ended, by hand?"""
    report = _report(folder)
    return report.is_file() and report.stat().st_mtime > (folder / RUN_FILE).stat().st_mtime


def _farewell(folder: Path) -> tuple[str, ...]:
    report = _report(folder)
    return (
        f"{folder}: this run is already finished; nothing to do",
        *([f"before and after, side by side: {report}"] if report.is_file() else []),
        "to train again, give another --output_dir, or --overwrite_output_dir True",
    )


def _resume(checkpoint: Path, world_size: int, deepspeed: bool, lines: Any) -> Start:
    marker = _read_marker(checkpoint)
    saved_by = marker["processes"] if marker is not None else world_size
    if deepspeed and saved_by != world_size:
        raise ValueError(
            f"{checkpoint}: saved by {saved_by} processes under DeepSpeed, and there are {world_size} now; "
            f"resume with as many (GPUS_PER_NODE={saved_by}), or start over in another --output_dir"
        )
    theirs = "global_step*" if deepspeed else "optimizer*"
    with_deepspeed = any(checkpoint.glob("global_step*"))
    if with_deepspeed != deepspeed:
        there, here = ("with", "without") if with_deepspeed else ("without", "with")
        raise ValueError(
            f"{checkpoint}: saved {there} DeepSpeed, and this run is {here} it: its optimizer state cannot be read "
            f"(expected {theirs}); {'give --deepspeed' if with_deepspeed else 'leave out --deepspeed'}, or start over "
            "in another --output_dir"
        )
    pickles.refuse_code(checkpoint)
    return Start("resume", checkpoint, (*lines, f"resuming from {checkpoint}"))


def last_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a line for each newer incomplete one."""
    lines: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        fault = damage(checkpoint, ours=True)
        if fault is None:
            return checkpoint, lines
        lines.append(f"{checkpoint}: {fault}; skipped")
    return None, lines


def damage(checkpoint: Path, *, ours: bool) -> str | None:
    """Why a run cannot go on from a checkpoint; None if it can.

    A checkpoint of ours (``ours``) says itself when it is whole and which files it has, of how many bytes. Of another
    program's, and of one that an earlier release marked, the files are looked at: is each a whole file of its format?
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    marker = _read_marker(checkpoint)
    if marker is None and ours:
        return "was not written to its end"
    if not (checkpoint / STATE_FILE).is_file():
        return f"holds no {STATE_FILE}, which transformers' Trainer leaves in each checkpoint"
    try:
        step_of(checkpoint)
    except ValueError as error:
        return str(error)
    there = _sizes(checkpoint)
    for name, size in (marker or {}).get("files", {}).items():
        if name not in there:
            return f"{name[:80]} is missing"
        if there[name] != size:
            return f"{name} has {there[name]:,} bytes, expected {size:,}"
    cut = next((path.name for path in sorted(checkpoint.glob("*")) if weights.is_cut_short(path)), None)
    if cut is not None:
        return f"{cut} is truncated"
    if not [path for pattern in OPTIMIZER_FILES for path in checkpoint.glob(pattern)]:
        return "holds no optimizer state (was it saved with --save_only_model True?)"
    return None


def is_marked(checkpoint: Path) -> bool:
    """Was this checkpoint written to its end?"""
    return _read_marker(checkpoint) is not None


def _read_marker(checkpoint: Path) -> dict[str, Any] | None:
    """What the mark of a checkpoint says; None if there is none, or half of one."""
    try:
        return fields.load(checkpoint / COMPLETE_FILE, MARKER_SHAPE, required=("processes",))
    except ValueError:
        return None


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its path there; of all but the mark, and the lineage, which is written anew
    where a checkpoint is moved."""
    unmarked = (COMPLETE_FILE, run_data.LINEAGE_FILE)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in unmarked)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def checkpoints(folder: Path) -> list[Path]:
    """The ``checkpoint-N`` folders, oldest first."""
    # Digits alone: there are others ("²") that are no numbers to Python.
    found = [
        path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)
    ]
    return sorted(found, key=number_of)


def set_beyond_aside(folder: Path, step: int) -> list[str]:
    """Move checkpoints and a verdict of later steps into ``superseded/``; returns a line that names each kind found. A
    checkpoint gets a ``lineage.json``: the run's own is of this branch alone, once it has begun.

    A run that goes on from ``step`` writes its own: the next start would take a checkpoint of another branch for its
    newest, and the cards of this branch would show the other's verdict. What was not written to its end is passed over
    anyway.
    """
    later = [one for one in checkpoints(folder) if number_of(one) > step and _read_marker(one) is not None]
    for checkpoint in later:
        trained_on = lineage.left_behind(checkpoint)
        lineage.write_left_behind(_supersede(checkpoint), trained_on)
    lines = []
    if later:
        names = ", ".join(checkpoint.name for checkpoint in later)
        lines.append(
            f"{folder}: going on from step {step}; later checkpoints ({names}) are in {SUPERSEDED}/ now"
        )
    found = judged.read(folder)
    if found is not None and judged.lies_beyond(found, folder, step):
        place = _supersede(folder / judged.FOLDER)
        of = "the run's end" if found.end is None else f"step {found.end}"
        lines.append(
            f"{folder}: going on from step {step}; the comparison of {of} is in "
            f"{place.relative_to(folder)}/ now"
        )
    return lines


def _supersede(path: Path) -> Path:
    place = path.parent / SUPERSEDED / path.name
    place.parent.mkdir(exist_ok=True)
    copies = 1
    while place.exists():  # from one checkpoint a run may go on many times
        copies += 1
        place = place.with_name(f"{path.name}-{copies}")
    path.rename(place)
    return place


def number_of(checkpoint: Path) -> int:
    """The step in the name of a folder that :func:`checkpoints` found."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was saved after, as its Trainer wrote it down; the folder may have any name.

    Raises ValueError for a state that is broken or of no Trainer.
    """
    state = fields.load(checkpoint / STATE_FILE, STATE_SHAPE, required=("global_step",))
    return int(state["global_step"])


def mark_complete(checkpoint: Path, *, processes: int) -> None:
    """Mark a checkpoint complete. Call once every process has written its part."""
    mark = {"version": VERSION, "processes": processes, "files": _sizes(checkpoint)}
    write_json(checkpoint / COMPLETE_FILE, mark)


def write_run(folder: Path, marks: dict[str, Any], *, finished: bool, missing: str = "") -> None:
    """Write the run's fingerprint to its folder, what its weights were trained on before, and what a finished run could
    not show.

    Call it with ``finished=False`` at each start, after ``set_beyond_aside``: the newest checkpoint that is left is the
    one that training goes on from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = lineage_of(folder)
    if written is None or not finished:
        from_here = written is not None and not marks.get(lineage.OUTSIDE)
        newest = last_complete(folder)[0] if from_here else None
        written = lineage.begun(marks, written, 0 if newest is None else step_of(newest))
    content = {"version": VERSION, "finished": finished, "marks": marks, "missing": missing}
    write_json(folder / RUN_FILE, {**content, "lineage": written.to_json()})


def write_configuration(folder: Path, arguments: Arguments) -> None:
    """Write every flag's value to the run's folder, in the format of ``--config``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIGURATION_FILE, run_file.text_of(arguments).encode())


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def clear(folder: Path) -> None:
    """Delete the files of our run in its folder, and nothing else.

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


def marks_of(folder: Path) -> dict[str, Any] | None:
    """What determined the result of the run in this folder; None if no run of ours is there."""
    found = _read_run(folder)
    return None if found is None else found["marks"]


def lineage_of(folder: Path) -> lineage.Lineage | None:
    """What the weights of the run in this folder were trained on; None if no run of ours is there."""
    found = _read_run(folder)
    return None if found is None else lineage.of_content(found, str(folder / RUN_FILE))


def _read_run(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = fields.load(
        path, RUN_SHAPE, required=_REQUIRED, remedy="choose another --output_dir"
    )
    lineage.of_content(found, str(path))
    return found


def _refuse_foreign(folder: Path) -> None:
    left = [*checkpoints(folder), *(folder / name for name in OUR_FOLDERS), *folder.glob("*.safetensors")]
    found = [path.name for path in left if path.exists()]
    if found:
        raise ValueError(
            f"--output_dir {folder}: holds another run ({', '.join(found[:5])}) without a {RUN_FILE}; choose another "
            "folder, or resume that run: --resume_from_checkpoint True"
        )


def _refuse_other(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    different = _differences(before, _written(now))
    if different:
        raise ValueError(
            f"--output_dir {folder}: holds another run:\n"
            + "\n".join(shown([one.strip() for one in different], 20))
            + "\n"
            "choose another folder, resume it anyway (--resume_from_checkpoint True), or delete "
            "it (--overwrite_output_dir True)"
        )
