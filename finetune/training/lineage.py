"""What a run's weights were trained on: its own data by steps, and that of the runs which it began with.

``run.json`` has it beside the marks, which are of the last start alone:

    {"earlier": [{"model": "/runs/cats", "kind": "adapter", "end": 12, "stints": [...]}],
     "stints": [{"after": 0, "marks": {...}, "whole": true}, {"after": 10, "marks": {...}, "whole": true}]}

Steps 1 to 10 had the data of the first marks; a start that went on from step 10 had other data.

``lineage.json`` beside exported weights has ``earlier`` alone, of the run and all that it began with: an export lies in
no run's folder, and whoever trains it further has to know. So has each checkpoint: it may be copied out of its run, or
left behind by it, when its stints are no longer in the run's record. A checkpoint's says in ``trained_with`` in which
precision it was trained as well: a run that goes on with the same data keeps the marks of its first start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from finetune import fields
from finetune.fields import NULL, OBJECT, TEXT, TRUTH, items, one_of, part, whole
from finetune.files import write_atomically
from finetune.model.folders import is_adapter
from finetune.model.run_data import LINEAGE_FILE, RUN_FILE, SUPERSEDED, run_of

STATE_FILE = "trainer_state.json"
VERSION = 1
OUTSIDE = "resume_from_checkpoint"
"""Mark of a run that went on from a checkpoint of another folder."""
_ADAPTER, _MODEL, _CHECKPOINT = "adapter", "model", "checkpoint"
_DECIDES_WHAT_IS_DROPPED = (
    "on_bad_sample", "data_format", "box_units", "model_max_length", "min_pixels", "max_pixels", "video_fps",
    "video_max_frames",
)  # fmt: skip
_STINT: fields.Shape = {"after": whole(0), "marks": OBJECT, "whole": TRUTH}
_EARLIER: fields.Shape = {
    "model": TEXT, "kind": one_of(_ADAPTER, _MODEL, _CHECKPOINT), "end": whole(0) | NULL,
    "stints": items(part(_STINT)) | NULL,
}  # fmt: skip
SHAPE: fields.Shape = {"earlier": items(part(_EARLIER)), "stints": items(part(_STINT))}
TRAINED_WITH = ("bf16", "fp16", "q_lora")
"""Marks of the start that saved a checkpoint, which its data does not depend on."""
EXPORT_SHAPE: fields.Shape = {
    "version": one_of(VERSION), "earlier": items(part(_EARLIER)),
    "trained_with": part(dict.fromkeys(TRAINED_WITH, TRUTH)),
}  # fmt: skip
_REQUIRED = ("version", "earlier")


class Stint(NamedTuple):
    """Steps of a run that were trained with the same data.

    after   the step before the first of them
    marks   what determined them (``run_folder.fingerprint``)
    whole   False: written by a release that kept the last marks alone, so other data may have been trained on too
    """

    after: int
    marks: Mapping[str, Any]
    whole: bool = True


class Earlier(NamedTuple):
    """A model that training began with, and what it was trained on.

    model    its folder, or its name on the hub
    kind     adapter, model or checkpoint (whose run went on in another folder)
    end      step that its weights were saved after; None: its run's last one
    stints   None: not recorded
    """

    model: str
    kind: str
    end: int | None
    stints: tuple[Stint, ...] | None


class Lineage(NamedTuple):
    """What weights were trained on: ``earlier`` models, oldest first, then the ``stints`` of their own run."""

    earlier: tuple[Earlier, ...]
    stints: tuple[Stint, ...]

    def to_json(self) -> dict[str, Any]:
        return {"earlier": _all_listed(self.earlier), "stints": _listed(self.stints)}


def _all_listed(earlier: Sequence[Earlier]) -> list[dict[str, Any]]:
    return [
        {**one._asdict(), "stints": None if one.stints is None else _listed(one.stints)} for one in earlier
    ]


def _listed(stints: Sequence[Stint]) -> list[dict[str, Any]]:
    return [{**one._asdict(), "marks": dict(one.marks)} for one in stints]


def of_content(run: Mapping[str, Any], where: str) -> Lineage:
    """The lineage in a ``run.json``'s content; what the marks alone say, where an earlier release wrote it.

    Raises ValueError for one of another shape.
    """
    found = run.get("lineage")
    if found is None:
        marks = run["marks"]
        adapter = marks.get("lora_weight_path")
        unknown = (Earlier(adapter, _ADAPTER, None, None),) if isinstance(adapter, str) and adapter else ()
        return Lineage(unknown, (Stint(0, marks, whole=False),))
    fields.check(found, SHAPE, f"{where}: lineage", required=tuple(SHAPE))
    for one in found["earlier"]:
        fields.check(one, _EARLIER, f"{where}: lineage.earlier", required=tuple(_EARLIER))
    stints = [*found["stints"], *(stint for one in found["earlier"] for stint in one["stints"] or ())]
    for stint in stints:
        fields.check(stint, _STINT, f"{where}: lineage.stints", required=tuple(_STINT))
    return Lineage(tuple(map(_earlier, found["earlier"])), _read(found["stints"]))


def _earlier(one: Mapping[str, Any]) -> Earlier:
    stints = None if one["stints"] is None else _read(one["stints"])
    return Earlier(one["model"], one["kind"], one["end"], stints)


def _read(stints: Sequence[dict[str, Any]]) -> tuple[Stint, ...]:
    return tuple(
        Stint(*(one[name] for name in Stint._fields)) for one in stints
    )  # later releases may say more


def begun(marks: Mapping[str, Any], before: Lineage | None, step: int) -> Lineage:
    """The lineage of a run that begins, or goes on from a step.

    before   of the run that the folder holds; None where it holds none
    step     of the checkpoint in that folder that training goes on from; 0: from none there
    """
    if before is None or step == 0:
        earlier = tuple(_origins(marks))
        after = earlier[-1].end if marks.get(OUTSIDE) else None
        return Lineage(earlier, (Stint(after or 0, marks),))
    kept = [one for one in before.stints if one.after < step]
    if kept and kept[-1].whole and _choice(kept[-1].marks) == _choice(marks):
        return before._replace(stints=tuple(kept))
    return before._replace(stints=(*kept, Stint(step, marks)))


def data_of(marks: Mapping[str, Any]) -> dict[str, Any]:
    """Those marks that say what was trained on."""
    flags = ("data_path", "data", "corrective_data", "replay_data", "data_fraction", "data_fraction_of")
    return {name: value for name, value in marks.items() if name.partition(" ")[0] in flags}


def _choice(marks: Mapping[str, Any]) -> dict[str, Any]:
    """What was trained on, and what decides which samples and pictures of it: others of the same files are other data.

    With --data_fraction, a subset is drawn by the seed and by a source's place among the others. With --on_bad_sample
    drop, what cannot be read as the flags say is left out, and what is too long as the model reads it.
    """
    found = {**data_of(marks), "image_folder": marks.get("image_folder")}
    if marks.get("data_fraction") is not None:
        seed, of_data = marks.get("seed"), marks.get("data_seed")
        places = [name for name in marks if name.partition(" ")[0] in ("corrective_data", "replay_data")]
        found |= {"seed": seed if of_data is None else of_data, "places": places}
    if marks.get("on_bad_sample") == "drop":
        found |= {name: marks.get(name) for name in _DECIDES_WHAT_IS_DROPPED}
    return found


def recorded_run_of(weights: Path) -> Path | None:
    """The folder of the run whose record tells what these weights were trained on.

    None where they come from no run (``run_of``), and for a checkpoint that its run left behind: the record is of the
    steps that were trained in its place.
    """
    is_left = weights.absolute().parent.name == SUPERSEDED
    return None if is_left else run_of(weights)


def carry(folder: Path, weights: str | Path, *, base: str | None) -> bool:
    """Write beside exported weights what they were trained on, if anything; returns whether it names data files.

    weights   what was exported: an adapter, a checkpoint or a model
    base      that an adapter was merged into

    Raises ValueError for a ``lineage.json`` of another shape.
    """
    earlier = [] if base is None or not _is_trained(base) else [*_of_weights(base, _MODEL)]
    if base is not None or _is_trained(str(weights)):
        kind = _MODEL if base is None else _ADAPTER
        earlier += [one for one in _of_weights(str(weights), kind) if one not in earlier]
    if earlier:
        _write(folder, earlier)
    return any(data_of(stint.marks) for one in earlier for stint in one.stints or ())


def note(checkpoint: Path) -> None:
    """Write beside a checkpoint that its run has just saved what it was trained on, and in which precision."""
    if earlier := left_behind(checkpoint):
        _write(checkpoint, earlier, _flags_of_the_last_start(checkpoint))


def _flags_of_the_last_start(checkpoint: Path) -> dict[str, bool] | None:
    """None where no run's record says them."""
    run = recorded_run_of(checkpoint)
    if run is None:
        return None
    try:
        marks = fields.load(run / RUN_FILE, {"marks": OBJECT}, required=("marks",))["marks"]
    except ValueError:  # a broken record says nothing, as of the data
        return None
    return {name: bool(marks.get(name)) for name in TRAINED_WITH}


def left_behind(checkpoint: Path) -> tuple[Earlier, ...]:
    """What a checkpoint was trained on, before its run leaves it behind."""
    kind = _ADAPTER if is_adapter(checkpoint) else _MODEL
    return tuple(_of_weights(str(checkpoint.absolute()), kind))


def write_left_behind(place: Path, earlier: Sequence[Earlier]) -> None:
    """Write that where the checkpoint was moved to: under its old name, the run may save another."""
    if not earlier:
        return
    flags = None
    with suppress(ValueError):  # a broken one is written anew
        flags = trained_with(place)
    _write(place, [*earlier[:-1], earlier[-1]._replace(model=str(place.absolute()))], flags)


def _write(folder: Path, earlier: Sequence[Earlier], flags: Mapping[str, bool] | None = None) -> None:
    content: dict[str, Any] = {"version": VERSION, "earlier": _all_listed(earlier)}
    content |= {} if flags is None else {"trained_with": dict(flags)}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / LINEAGE_FILE, text.encode())


def of_export(folder: Path) -> tuple[Earlier, ...] | None:
    """What exported weights were trained on; None where their folder does not say.

    Raises ValueError for a file of another shape.
    """
    found = _written_beside(folder)
    return None if found is None else tuple(map(_earlier, found["earlier"]))


def trained_with(checkpoint: Path) -> Mapping[str, bool] | None:
    """``TRAINED_WITH`` of the start that saved a checkpoint; None where no ``lineage.json`` says it, as of an earlier
    release.

    Raises ValueError for a file of another shape.
    """
    found = _written_beside(checkpoint)
    return None if found is None else found.get("trained_with")


def _written_beside(weights: Path) -> dict[str, Any] | None:
    path = weights / LINEAGE_FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = fields.load(
        path, EXPORT_SHAPE, required=_REQUIRED, remedy="copy it or export it again"
    )
    return found


def _is_trained(model: str) -> bool:
    """Was this model trained here? Its folder says so, or that it is one of a run's checkpoints."""
    return any((Path(model) / name).is_file() for name in (RUN_FILE, STATE_FILE, LINEAGE_FILE))


def _origins(marks: Mapping[str, Any]) -> Iterator[Earlier]:
    """What a run begins with, and what that began with; a model that was not trained here is a base, and none."""
    if marks.get(OUTSIDE):
        yield from _of_weights(marks[OUTSIDE], _CHECKPOINT)
        return
    base, adapter = marks.get("model_name_or_path"), marks.get("lora_weight_path")
    if base and _is_trained(base):
        yield from _of_weights(base, _MODEL)
    if adapter:
        yield from _of_weights(adapter, _ADAPTER)


def _of_weights(name: str, kind: str) -> Iterator[Earlier]:
    """A record that is broken or gone says nothing: training does not need it."""
    weights = Path(name)
    try:
        written = of_export(weights)
        if written is not None:
            yield from written[:-1]
            # A checkpoint, which may have been copied, is called as it is now; of an export it is what was exported.
            is_checkpoint = (weights / STATE_FILE).is_file()
            yield from (one._replace(model=name, kind=kind) if is_checkpoint else one for one in written[-1:])
            return
        end, run = _end(weights), recorded_run_of(weights)
        if run is None or (run != weights.absolute() and end is None):  # none of the run's checkpoints
            yield Earlier(name, kind, end, None)
            return
        path = run / RUN_FILE
        content = fields.load(path, {"marks": OBJECT}, required=("marks",))
        found = of_content(content, str(path))
    except ValueError:
        yield Earlier(name, kind, None, None)
        return
    yield from found.earlier
    yield Earlier(name, kind, end, found.stints)


def _end(weights: Path) -> int | None:
    """The step that a checkpoint was saved after; None for a folder that says none."""
    path = weights / STATE_FILE
    if not path.is_file():
        return None
    return int(fields.load(path, {"global_step": whole(0)}, required=("global_step",))["global_step"])
