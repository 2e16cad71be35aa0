"""``README.md`` of a trained folder: base, data, flags, verdict with its numbers, and how to load it.

PEFT and transformers write cards of their own, forms to be filled in; this one takes their place. It may be published,
so no path of the machine that trained is in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import finetune.families as families
from finetune import fields
from finetune.fields import TEXT, number
from finetune.files import write_atomically
from finetune.flags.parse import default_values
from finetune.model import weights
from finetune.model.adaptation import component_of
from finetune.model.adapters import BASE_FILE
from finetune.model.folders import is_adapter, looks_like_a_path
from finetune.percent import percent_words
from finetune.training import judged, run_folder
from finetune.training.lineage import Earlier, Lineage, Stint

CARD_FILE, PICTURE_FILE = "README.md", "probe.png"
GUARDS = ("retention", "neighbour")
NOT_HELD_OUT = "not held out"
WITH_ADAPTER = " with the adapter "
"""In the name of a model: it is a base with an adapter that was trained before."""
_FINITE = number(-1e300, 1e300)
_SHARE = number(0, 1)
_NO_FLAGS = (
    "model_name_or_path",
    "data_path",
    "corrective_data",
    "replay_data",
    "lora_weight_path",
    "image_folder",
    "resume_from_checkpoint",
    "greater_is_better",  # follows from the metric
)
_PARTS = {
    "vision": "the vision tower", "connector": "the connector", "language": "the language layers",
    "embeddings": "the word embeddings and the output layer",
}  # fmt: skip


class Exported(NamedTuple):
    """What was made of a run's weights.

    weights      folder of the run or of its checkpoint that they are from
    note         a paragraph on what was done to them
    name         the card's title
    other_base   the model that an adapter was merged into, where it is another than the adapter was trained on
    """

    weights: Path
    note: str
    name: str
    other_base: str | None = None


def write(
    folder: Path,
    *,
    run: Path,
    family: str,
    step: int | None,
    exported: Exported | None = None,
    elsewhere: str = "",
) -> None:
    """Write the card of a saved model or adapter, and the picture that it shows.

    run        the output folder of the run that trained it
    family     name of the model's family
    step       that the weights were saved after; the run's verdict is on its last one, or its best. None: not known
    exported   where the folder holds what was made of the run's weights; None: it holds these themselves
    elsewhere  what other libraries ignore of the processor's settings (``families.base.ignored_elsewhere``)
    """
    marks, lineage = run_folder.marks_of(run) or {}, run_folder.lineage_of(run) or Lineage((), ())
    found = judged.read(run)
    of_these = found is not None and judged.is_of(
        found, folder if exported is None else exported.weights, run=run, step=step
    )
    on_other = exported is not None and exported.other_base is not None
    verdict = found if of_these and not on_other else None
    picture = None if verdict is None else _picture_of(run, verdict)
    if picture is not None:
        shutil.copyfile(picture, folder / PICTURE_FILE)
    else:  # of an earlier verdict, which may be of other weights
        (folder / PICTURE_FILE).unlink(missing_ok=True)
    sections = [
        _header(folder, marks, family, exported),
        *_title(folder, marks, family, exported),
        *_origin(lineage),
        *_parts(folder if exported is None else exported.weights, family),
        *_verdict(verdict, marks, exported),
        *([f"![One probe: before, now, and the difference]({PICTURE_FILE})"] if picture else []),
        *_loading(folder, marks, family),
        *([f"{elsewhere}."] if elsewhere else []),
        *_training(marks, lineage, step),
        *_best(marks, folder if exported is None else exported.weights, run),
    ]
    write_atomically(folder / CARD_FILE, ("\n\n".join(sections) + "\n").encode())


def _picture_of(run: Path, verdict: judged.Judged) -> Path | None:
    """The archive's picture of the first probe that was to be corrected, after training; it has none of what was
    compared by hand."""
    if verdict.end is None:
        return None
    probes = sorted(
        verdict.content["probes"], key=lambda one: one.get("group") in GUARDS
    )  # sorting keeps their order
    for probe in probes:
        place = run / "attention" / "images" / str(probe.get("id")) / f"step-{verdict.end:06d}.png"
        if place.is_file():
            return place
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def _header(folder: Path, marks: Mapping[str, Any], family: str, exported: Exported | None) -> str:
    """What the hub reads. A base of a local folder is not named there: the hub would look for it."""
    other = None if exported is None else exported.other_base
    base = marks.get("model_name_or_path") if other is None else other
    lines = ["---", "pipeline_tag: image-text-to-text"]
    lines += ["library_name: peft" if is_adapter(folder) else "library_name: transformers"]
    lines += [f"base_model: {json.dumps(base)}"] if _is_on_hub(base) else []
    lines += [
        "tags:",
        *(f"- {tag}" for tag in ("attention-finetune", family, *(["lora"] if marks.get("use_lora") else []))),
    ]
    return "\n".join([*lines, "---"])


def _title(folder: Path, marks: Mapping[str, Any], family: str, exported: Exported | None) -> Iterator[str]:
    yield f"# {folder.resolve().name if exported is None else exported.name}"
    what = f"An adapter of {family}" if is_adapter(folder) else f"A model of the family {family}"
    base = _public(marks.get("model_name_or_path"), "a base that is not known")
    yield f"{what}, trained on {base}.{_base_mark(folder)}"
    if exported is None:
        return
    yield exported.note
    if exported.other_base is not None:
        yield (
            f"It was merged into {_public(exported.other_base, 'a base that is not known')}, whose weights are others "
            "than those that the adapter was trained on: the run's verdict is not of this model."
        )


def _origin(lineage: Lineage) -> Iterator[str]:
    if lineage.earlier:
        yield f"Its training continued from {_model_words(lineage.earlier[-1])}: see below what that was trained on."


def _model_words(one: Earlier) -> str:
    """``the adapter `cats` ``, ``checkpoint-10 of `cats` ``."""
    if _is_on_hub(one.model):
        return f"the {one.kind} {_public(one.model, '')}"
    place = Path(one.model)
    if one.end is not None and place.name.startswith("checkpoint-"):
        return f"`{_public_name(place.name)}` of `{_public_name(str(place.parent))}`"
    return f"the {one.kind} `{_public_name(one.model)}`"


def _parts(folder: Path, family: str) -> Iterator[str]:
    """What an adapter holds, by its tensors' names: it may have more than the last run trained."""
    paths = next((one.paths for one in families.FAMILIES if one.name == family), None)
    if paths is None or not is_adapter(folder):
        return
    try:
        names = [name.removeprefix("base_model.model.") for name in weights.shapes(folder)]
    except ValueError:  # who opens it is told
        return
    adapted = {component_of(name.partition(".lora_")[0], paths) for name in names if ".lora_" in name}
    full = set()
    for name in names:
        if ".lora_" not in name and not name.endswith(".bias"):
            component = component_of(name, paths)
            inside = component != "language" or name.startswith(f"{paths.language_layers}.")
            full.add(component if inside else "embeddings")
    held = [
        f"{how} {' and '.join(words)}"
        for how, found in (("adapters in", adapted), ("in full,", full))
        if (words := [word for part, word in _PARTS.items() if part in found])
    ]
    if held:
        yield f"Trained parts: {'; '.join(held)}."


def _base_mark(folder: Path) -> str:
    """Which weights that base has to have, where an adapter says so."""
    try:
        mark = fields.load(folder / BASE_FILE, {"fingerprint": TEXT}, required=("fingerprint",))[
            "fingerprint"
        ]
    except ValueError:
        return ""
    return f" The base's weights have the fingerprint `{mark[:16]}`."


def _verdict(
    verdict: judged.Judged | None, marks: Mapping[str, Any], exported: Exported | None
) -> Iterator[str]:
    yield "## Did the correction take?"
    if verdict is None:
        yield "Not judged: there are no probes of these weights before and after training."
        return
    comparison = verdict.content
    rows = [
        "| group | probes | right | margin, nats | attention on the region | hiding it costs, nats | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in comparison["groups"].items():
        cells = [
            _unmarked(name), str(group.get("probes", "–")), _right(group),
            _change(group, "margin_nats", "{:+.2f}".format), _change(group, "enrichment", "{:.3g}×".format),
            _change(group, "occlusion_nats", "{:+.2f}".format), f"**{_unmarked(str(group.get('verdict', '–')))}**",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(_cell(one) for one in cells)} |")
    yield "\n".join(rows)
    if marks.get("q_lora") and verdict.end is not None:
        merged = ", not on the base that it is merged into here: their logits differ, as said above"
        yield f"Measured on the 4-bit base that the adapter was trained on{merged if exported else ''}."
    legs = [
        f"- {_cell(_unmarked(name))}: {told}"
        for name, group in comparison["groups"].items()
        if (told := _told(group))
    ]
    if legs:
        yield "\n".join(legs)
    yield (
        f"Before is {_before(comparison)}, after are these weights. Attention is how many times its share by area the "
        "region gets. A verdict holds for pictures like those of these probes; no correction is claimed where one of "
        "them is known to be in the training data."
    )


def _before(comparison: Mapping[str, Any]) -> str:
    """What the weights were compared with, without where it lies: a model, a checkpoint, or a step of a run.

    /work/towers/checkpoint-110 → `checkpoint-110` of `towers`; /work/towers at step 110 → `towers` at step 110
    """
    before = comparison.get("before")
    model = before.get("model") if isinstance(before, dict) else None
    if not isinstance(model, str) or not model:
        return "a model that is not recorded"
    base, joint, adapter = model.partition(WITH_ADAPTER)
    if joint:
        return f"{_weights_words(base)}{joint}{_weights_words(adapter)}"
    named = judged.BY_THE_MONITOR.fullmatch(model)
    if named is None:
        return _weights_words(model)
    run = _weights_words(named["run"])
    return f"`checkpoint-{named['best']}` of {run}" if named["best"] else f"{run} at step {named['step']}"


def _weights_words(model: str) -> str:
    """`` `org/name` ``, `` `cats` ``, `` `checkpoint-10` of `cats` ``."""
    place = PurePath(" ".join(model.split()))
    if place.name.startswith("checkpoint-") and place.parent.name:
        return f"`{_public_name(place.name)}` of `{_public_name(place.parent.name)}`"
    return f"`{str(place).replace('`', '') if _is_on_hub(str(place)) else _public_name(str(place)) or '/'}`"


def _told(group: Mapping[str, Any]) -> str:
    """What stands behind a verdict: its legs, or that pictures of its probes were trained on."""
    if group.get("verdict") != NOT_HELD_OUT:
        return _legs(group)
    reasons = group.get("reasons")
    return (
        " ".join(_unmarked(one) for one in reasons if isinstance(one, str))
        if isinstance(reasons, list)
        else ""
    )


def _legs(group: Mapping[str, Any]) -> str:
    """``answers ✓, picture ✓, …, guards –``: holds, does not, was not measured. "" where the verdict rests on none, as
    of probes that are too few or were trained on: its reasons are then not those of legs."""
    found = group.get("legs")
    if not isinstance(found, dict) or not all(isinstance(leg, dict) for leg in found.values()):
        return ""
    if group.get("reasons") != [leg.get("reason") for leg in found.values()]:
        return ""
    marks = {True: "✓", False: "✗", None: "–"}
    held = {name: leg.get("holds") for name, leg in found.items()}
    return ", ".join(
        f"{name} {marks[one]}" for name, one in held.items() if one is None or isinstance(one, bool)
    )


def _right(group: Mapping[str, Any]) -> str:
    """``0 % → 70 %, 40 % by picture``: where probes share pictures both shares, of which the smaller one is judged."""
    words, accuracy = _change(group, "accuracy", percent_words), group.get("accuracy")
    if not isinstance(accuracy, dict) or accuracy.get("images") == accuracy.get("probes"):
        return words
    by_picture = accuracy.get("pictures_right")
    after = by_picture.get("after") if isinstance(by_picture, dict) else None
    return (
        f"{words}, {percent_words(float(after))} by picture"
        if after is not None and _SHARE.fits(after)
        else words
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


def _training(marks: Mapping[str, Any], lineage: Lineage, step: int | None) -> Iterator[str]:
    """``step``: that the weights were saved after."""
    yield "## Trained on"
    for one in lineage.earlier:
        if one.stints is None:
            yield f"Continued from {_model_words(one)}; what that was trained on is not recorded."
        else:
            yield f"Continued from {_model_words(one)}, which was trained on:"
            yield "\n".join(_by_steps(one.stints, one.end)) or "no step"
    if lineage.earlier:
        yield "Then it was trained on:"
    batch = [f"- {marks['samples a step']} samples a step"] if "samples a step" in marks else []
    yield "\n".join([*_by_steps(lineage.stints, step), *batch]) or "The run that trained it left no record."
    chosen = dict(_chosen(marks))
    if chosen:
        yield "Flags other than the defaults:"
        yield "\n".join(["```yaml", *(f"{name}: {_plain(value)}" for name, value in chosen.items()), "```"])


def _best(marks: Mapping[str, Any], weights_of: Path, run: Path) -> Iterator[str]:
    if marks.get("load_best_model_at_end") and weights_of.resolve() == run.resolve():
        yield "Its weights are those of the run's best checkpoint: steps after that one are not in them."


def _by_steps(stints: Sequence[Stint], end: int | None) -> Iterator[str]:
    """A line for each data file, with the steps in which it was trained on; ``end``: the last one, if known."""
    there = [one for one in stints if end is None or one.after < end] or [*stints[:1]]
    if not there:
        return
    for stint, after in zip(there, [*(one.after for one in there), end][1:], strict=True):
        steps = f"steps {stint.after + 1}–{after}" if after else f"from step {stint.after + 1} on"
        yield from (f"{line}, {steps}" for line in _data(stint.marks))
        if not stint.whole:
            yield f"- {steps}: whether other data was trained on before is not recorded"


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


def _number(value: Any) -> float | None:
    """A number above 0 of a file that may hold anything."""
    return value if number(0, above=True).fits(value) else None


def _source(place: str, more: str, digest: Any) -> str:
    return f"- `{_public_name(place)}`{more}" + (f" (SHA-256 `{str(digest)[:16]}…`)" if digest else "")


def _chosen(marks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    defaults = default_values()
    derived = [*_NO_FLAGS]
    derived += ["deepspeed"] if not marks.get("deepspeed") else []
    derived += ["metric_for_best_model"] if marks.get("metric_for_best_model") == "loss" else []
    for name, value in marks.items():
        if name in defaults and name not in derived and value != defaults[name] and value is not None:
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
