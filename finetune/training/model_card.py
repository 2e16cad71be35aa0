"""``README.md`` of a trained folder: base, data, flags, verdict with its numbers, and how to load it.

PEFT and transformers write cards of their own, forms to be filled in; this one takes their place. It may be published,
so no path of the machine that trained is in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune import fields
from finetune.fields import NULL, OBJECT, TEXT, by_name, items, number, whole
from finetune.files import write_atomically
from finetune.flags.parse import default_values
from finetune.model.adapters import BASE_FILE
from finetune.model.folders import is_adapter, looks_like_a_path
from finetune.percent import percent_words
from finetune.training import run_folder

CARD_FILE, PICTURE_FILE = "README.md", "probe.png"
GUARDS = ("retention", "neighbour")
_FINITE = number(-1e300, 1e300)
COMPARISON_SHAPE = {"groups": by_name(OBJECT), "after": OBJECT, "probes": items(OBJECT)}
_NO_FLAGS = (
    "model_name_or_path",
    "data_path",
    "corrective_data",
    "replay_data",
    "lora_weight_path",
    "image_folder",
)


def write(
    folder: Path, *, run: Path, family: str, step: int | None, note: str = "", name: str | None = None
) -> None:
    """Write the card of a saved model or adapter, and the picture that it shows.

    run      the output folder of the run that trained it
    family   name of the model's family
    step     that the weights were saved after; the run's verdict is on its last one, or its best. None: not known
    note     a paragraph on what was done to them since
    name     the card's title; None: the folder's name
    """
    marks = run_folder.marks_of(run) or {}
    comparison = _comparison_of(run, step, is_end=folder.resolve() == run.resolve())
    picture = None if comparison is None else _picture_of(run, comparison)
    if picture is not None:
        shutil.copyfile(picture, folder / PICTURE_FILE)
    sections = [
        _header(folder, marks, family),
        *_title(name or folder.resolve().name, folder, marks, family, note),
        *_verdict(comparison),
        *([f"![One probe: before, now, and the difference]({PICTURE_FILE})"] if picture else []),
        *_loading(folder, marks, family),
        *_training(marks),
    ]
    write_atomically(folder / CARD_FILE, ("\n\n".join(sections) + "\n").encode())


def _comparison_of(run: Path, step: int | None, *, is_end: bool) -> dict[str, Any] | None:
    """The run's comparison, if it is of these weights.

    is_end   they are what the run ended with: of its best checkpoint, where --load_best_model_at_end chose one
    """
    path = run / "comparison" / "comparison.json"
    if not path.is_file():
        return None
    try:
        found = fields.load(path, COMPARISON_SHAPE, required=tuple(COMPARISON_SHAPE))
        fields.refuse(list(fields.faults(found["after"], {"step": whole(0) | NULL})), str(path))
    except ValueError:
        return None  # of another release, or broken: the card says that nothing was judged
    judged = None if is_end else _best_of(found["after"])
    return (
        found if step is None or step == (found["after"].get("step") if judged is None else judged) else None
    )


def _best_of(after: Mapping[str, Any]) -> int | None:
    """The step of the checkpoint that was judged in place of the last one, as the monitor words it."""
    named = re.search(r": the best, checkpoint-([0-9]{1,18})$", str(after.get("model")))
    return int(named[1]) if named else None


def _picture_of(run: Path, comparison: Mapping[str, Any]) -> Path | None:
    """The archive's picture of the first probe that was to be corrected, after training."""
    probes = sorted(
        comparison["probes"], key=lambda one: one.get("group") in GUARDS
    )  # sorting keeps their order
    for probe in probes:
        place = (
            run
            / "attention"
            / "images"
            / str(probe.get("id"))
            / f"step-{int(comparison['after'].get('step') or 0):06d}.png"
        )
        if place.is_file():
            return place
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def _header(folder: Path, marks: Mapping[str, Any], family: str) -> str:
    """What the hub reads. A base of a local folder is not named there: the hub would look for it."""
    base = marks.get("model_name_or_path")
    lines = ["---", "pipeline_tag: image-text-to-text"]
    lines += ["library_name: peft" if is_adapter(folder) else "library_name: transformers"]
    lines += [f"base_model: {json.dumps(base)}"] if _is_on_hub(base) else []
    lines += [
        "tags:",
        *(f"- {tag}" for tag in ("attention-finetune", family, *(["lora"] if marks.get("use_lora") else []))),
    ]
    return "\n".join([*lines, "---"])


def _title(name: str, folder: Path, marks: Mapping[str, Any], family: str, note: str) -> Iterator[str]:
    yield f"# {name}"
    what = f"An adapter of {family}" if is_adapter(folder) else f"A model of the family {family}"
    base = _public(marks.get("model_name_or_path"), "a base that is not known")
    yield f"{what}, trained on {base}.{_base_mark(folder)}"
    if note:
        yield note


def _base_mark(folder: Path) -> str:
    """Which weights that base has to have, where an adapter says so."""
    try:
        mark = fields.load(folder / BASE_FILE, {"fingerprint": TEXT}, required=("fingerprint",))[
            "fingerprint"
        ]
    except ValueError:
        return ""
    return f" The base's weights have the fingerprint `{mark[:16]}`."


def _verdict(comparison: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Did the correction take?"
    if comparison is None:
        yield "Not judged: there are no probes of these weights before and after training."
        return
    rows = [
        "| group | probes | right | margin, nats | attention on the region | hiding it costs, nats | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in comparison["groups"].items():
        cells = [
            _unmarked(name), str(group.get("probes", "–")), _change(group, "accuracy", percent_words),
            _change(group, "margin_nats", "{:+.2f}".format), _change(group, "enrichment", "{:.3g}×".format),
            _change(group, "occlusion_nats", "{:+.2f}".format), f"**{_unmarked(str(group.get('verdict', '–')))}**",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(_cell(one) for one in cells)} |")
    yield "\n".join(rows)
    legs = [
        f"- {_cell(_unmarked(name))}: {told}"
        for name, group in comparison["groups"].items()
        if (told := _legs(group))
    ]
    if legs:
        yield "\n".join(legs)
    yield (
        "Before → after training, on pictures that were not trained on. Attention is how many times its share by area "
        "the region gets. A verdict holds for pictures like these probes."
    )


def _legs(group: Mapping[str, Any]) -> str:
    """``answers ✓, picture ✓, …, guards –``: holds, does not, was not measured."""
    found = group.get("legs")
    if group.get("verdict") == "kept" or not isinstance(found, dict):
        return ""
    marks = {True: "✓", False: "✗", None: "–"}
    held = {name: leg.get("holds") for name, leg in found.items() if isinstance(leg, dict)}
    return ", ".join(
        f"{name} {marks[one]}" for name, one in held.items() if one is None or isinstance(one, bool)
    )


def _change(group: Mapping[str, Any], name: str, said: Callable[[float], str]) -> str:
    found = group.get(name)
    ends = [found.get(side) for side in ("before", "after")] if isinstance(found, dict) else []
    if len(ends) != 2 or not all(_FINITE.fits(one) for one in ends):
        return "–"
    return " → ".join(said(float(one)) for one in ends if one is not None)


def _loading(folder: Path, marks: Mapping[str, Any], family: str) -> Iterator[str]:
    base = marks.get("model_name_or_path")
    named = json.dumps(base) if _is_on_hub(base) else '"path/to/the/base"'
    lines = ["import finetune  # the Auto classes know Qwen-VL from here on"] if family == "qwen-vl" else []
    lines += ["from peft import PeftModel"] if is_adapter(folder) else []
    lines += ["from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    lines += ['folder = "path/to/this/folder"  # or its name on the hub']
    if is_adapter(folder):
        lines += [f"base = AutoModelForImageTextToText.from_pretrained({named})"]
        lines += ["model = PeftModel.from_pretrained(base, folder).eval()"]
    else:
        lines += ["model = AutoModelForImageTextToText.from_pretrained(folder).eval()"]
    lines += ["processor = AutoProcessor.from_pretrained(folder)"]
    yield "## Load it"
    yield "\n".join(["```python", *lines, "```"])


def _training(marks: Mapping[str, Any]) -> Iterator[str]:
    yield "## Trained on"
    yield "\n".join([*_data(marks)]) or "The run that trained it left no record."
    chosen = dict(_chosen(marks))
    if chosen:
        yield "Flags other than the defaults:"
        yield "\n".join(["```yaml", *(f"{name}: {_plain(value)}" for name, value in chosen.items()), "```"])


def _data(marks: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(marks.get("data_path"), str) and marks["data_path"]:
        yield _source(marks["data_path"], "", marks.get("data sha256"))
    for key, value in marks.items():
        flag, _, place = key.partition(" ")
        if flag in ("corrective_data", "replay_data") and isinstance(value, dict):
            share, repeat = (_number(value.get(one)) for one in ("share", "repeat"))
            much = (
                (share and f", {percent_words(share)} of an epoch")
                or (repeat and f", {repeat:g} times an epoch")
                or ""
            )
            role = flag.removesuffix("_data")
            yield _source(place, f", {role}{much}", marks.get(f"{key} sha256"))
    if "samples a step" in marks:
        yield f"- {marks['samples a step']} samples a step"


def _number(value: Any) -> float | None:
    """A number above 0 of a file that may hold anything."""
    return value if number(0, above=True).fits(value) else None


def _source(place: str, more: str, digest: Any) -> str:
    return f"- `{_public_name(place)}`{more}" + (f" (SHA-256 `{str(digest)[:16]}…`)" if digest else "")


def _chosen(marks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    defaults = default_values()
    for name, value in marks.items():
        if name in defaults and name not in _NO_FLAGS and value != defaults[name] and value is not None:
            yield name, value


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


def _is_on_hub(name: Any) -> bool:
    return isinstance(name, str) and "/" in name and not looks_like_a_path(name) and not os.path.exists(name)


def _public(name: Any, unknown: str) -> str:
    if not isinstance(name, str) or not name:
        return unknown
    return (
        f"[{name}](https://huggingface.co/{name})"
        if _is_on_hub(name)
        else f"`{_public_name(name)}` (a local folder)"
    )


def _public_name(place: str) -> str:
    """A file's or a folder's name without where it lies."""
    return place.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].replace("`", "")


def _plain(value: Any) -> str:
    return json.dumps(
        _public_name(value) if isinstance(value, str) and "/" in value else value, ensure_ascii=False
    )


def _unmarked(text: str) -> str:
    """A user's text as Markdown shows it unchanged: no link, no picture, no markup."""
    return re.sub(r"([\\`*_{}\[\]()#!<>~$&])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
