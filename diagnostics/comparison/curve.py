"""Runs on nested fractions of the corrective data → how many samples are needed, as far as that can be said."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diagnostics.comparison.legs.answers import difference_interval
from diagnostics.comparison.verdicts import (
    ANSWERS_ALONE,
    ATTENTION_ALONE,
    CORRECTED,
    KEPT,
    LEFT,
    LOST,
    NO_ANSWERS,
    NO_ATTENTION,
    NO_CAUSE,
    NO_PICTURE,
    NOT_HELD_OUT,
    NOT_MEDIATED,
    NOT_MOVED,
    OTHER_CAUSE,
    TOO_FEW,
    TOO_FEW_RIGHT,
    UNGUARDED,
    WORSE,
    requirement,
)
from diagnostics.measures.onset import Look, look_at_numbers, look_at_shares
from diagnostics.measures.statistics import bootstrap_mean, holm, relative_change
from finetune.fields import (
    NULL,
    OBJECT,
    TEXT,
    TRUTH,
    Shape,
    by_name,
    check,
    faults,
    items,
    part,
    refuse,
    shown,
    whole,
)
from finetune.fields import number as number_from

Json = dict[str, Any]
VERSION = 1
QUANTITIES = ("answers", "attention", "cause")
AS_GOOD = (CORRECTED, KEPT, UNGUARDED, NOT_MEDIATED)
"""Verdicts that hold: what a probe file cannot show (guards, mediation) is named, and asks for no more samples."""
OF_PROBES = (TOO_FEW, NOT_HELD_OUT, NO_ANSWERS, NO_ATTENTION, NO_CAUSE, NO_PICTURE)
"""Verdicts that say what the probes cannot show: samples to train on change nothing there."""
DECIDED_BY = {
    **dict.fromkeys((NOT_MOVED, ATTENTION_ALONE, WORSE, TOO_FEW_RIGHT, *LOST.values()), "answers"),
    **dict.fromkeys((ANSWERS_ALONE, LEFT), "attention"),
    OTHER_CAUSE: "cause",
}
"""Verdict → which quantity must change for it to hold. The others rest on what is not compared from number to number,
such as guards: whether that still rises is not known."""
BY_CHANCE = 0.05


_NUMBER = number_from(-1e300, 1e300)
_AFTER = part({"after": _NUMBER})
_CHANGE: Shape = {"before": _NUMBER, "after": _NUMBER, "ci95": items(_NUMBER, 2)}
_SHARES = part(
    {
        **dict.fromkeys(("before", "after"), number_from(0, 1) | NULL),
        **dict.fromkeys(("before_ci95", "after_ci95"), items(_NUMBER, 2) | NULL),
    }
)
_BY_PICTURE: Shape = {
    **dict.fromkeys(("probes", "images"), whole()),
    "pictures_right": part(dict.fromkeys(("before", "after"), number_from(0, 1))),
}
"""Of "accuracy" too; earlier versions lack it, and their runs need not be trained again for it."""
GROUP_SHAPE: Shape = {
    "accuracy": _SHARES | NULL, "occlusion_nats": part(_CHANGE) | NULL, "enrichment": part({"layer": whole()}) | NULL,
    "enrichment_by_layer": items(part({"layer": whole(), **_CHANGE})), "verdict": TEXT, "legs": by_name(OBJECT) | NULL,
}  # fmt: skip
PROBE_SHAPE: Shape = {
    "id": TEXT, "group": TEXT, "region": TEXT | NULL, "correct": part({"after": TRUTH | NULL}),
    "occlusion_nats": _AFTER | NULL,
    "layers": items(part({"layer": whole(), "regions": by_name(part({"enrichment": _AFTER}))})),
}  # fmt: skip
COMPARISON_SHAPE: Shape = {
    "after": {"step": whole()}, "groups": by_name(part(GROUP_SHAPE)), "probes": items(part(PROBE_SHAPE)),
    "onset": part({"groups": OBJECT}) | NULL,
}  # fmt: skip
"""What a curve reads of a run's comparison.json."""


def check_comparison(content: Any, where: str) -> None:
    """Raises ValueError, beginning with ``where``, for a comparison that lacks what a curve reads."""
    remedy = "delete the run's folder and call again: it is trained again"
    try:
        check(content, COMPARISON_SHAPE, where, required=("after", "groups", "probes"), remedy=remedy)
    except ValueError:
        refuse(list(_faults_inside(content)), where, remedy)
        raise
    for name, group in content["groups"].items():
        refuse(
            list(faults(group["accuracy"] or {}, _BY_PICTURE, required=(), at=f"groups.{name}.accuracy.")),
            where,
            remedy,
        )
    cited = {name: _of(group["enrichment"], "layer") for name, group in content["groups"].items()}
    refuse(
        [
            f"probes[{at}] ({shown(probe['id'])}): found no enrichment of its region in the cited layer"
            for at, probe in enumerate(content["probes"])
            if probe["region"] is not None
            and cited.get(probe["group"]) is not None
            and not any(
                one["layer"] == cited[probe["group"]] and probe["region"] in one["regions"]
                for one in probe["layers"]
            )
        ],
        where,
        remedy,
    )


def _faults_inside(content: Any) -> Iterator[str]:
    """The faults of each group and probe, by field; none where the content has no groups and probes."""
    if not isinstance(content, dict):
        return
    groups, probes = content.get("groups"), content.get("probes")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        yield from faults(group, GROUP_SHAPE, required=tuple(GROUP_SHAPE), at=f"groups.{name}.")
    for at, probe in enumerate(probes) if isinstance(probes, list) else ():
        yield from faults(probe, PROBE_SHAPE, required=tuple(PROBE_SHAPE), at=f"probes[{at}].")


class CurvePoint(NamedTuple):
    """One finished run.

    fraction     of the corrective data
    samples      different corrective samples that it trained on, and ``of`` how many there are
    steps        of training
    comparison   content of its comparison.json
    folder       of the run, relative to the result
    """

    fraction: float
    seed: int | None
    samples: int
    of: int
    steps: int
    comparison: Mapping[str, Any]
    folder: str


def curve_of(points: Sequence[CurvePoint], images: Mapping[str, str]) -> Json:
    """ "groups" of curve.json, from the fewest samples to the most.

    ::

        {group: {"base": {"right", "pictures_right", "right_ci95", "enrichment", "cost_nats"},
                 "points": [{"fraction", "seed", "samples", "right", "pictures_right", "right_ci95", "enrichment",
                             "enrichment_ci95", "cost_nats", "cost_nats_ci95", "guards", "guards_ci95", "verdict",
                             "holds", "onset"}],
                 "layer": of the enrichment, or null,
                 "neighbours": [{"from", "to", "answers", "attention", "cause": {"difference", "ci95", "p_adjusted"},
                                 "rose", "fell": [names of those beyond chance]}],
                 "enough_from": samples or null,
                 "conclusion": "enough", "more does not help", "not enough yet" or "not known", "words"}}

    ``right`` is the share of answers. Where probes share pictures, ``right_ci95`` is of ``pictures_right``, the share
    with each picture counted once, which is null elsewhere; it is null where runs of earlier versions lack that share.
    Enrichment is that of one key layer in all runs, the one
    that the run with most samples cites; ``ci95`` of enrichment and cost is the interval of the change from the base,
    put onto the base's mean. "enough": the verdict holds with this number and with every larger one, in all seeds.
    "more does not help": it does not hold, and from the last number but one to the last no quantity rose beyond
    chance, over the same probes, nor did a verdict change, and the quantity that decides this verdict was measured;
    the intervals say how much could have been missed. "not known": the last verdict is that the probes are too few or
    were trained on, or that something was not measured.

    points   all of the same probes
    images   probe id → its picture, so that probes of one picture count once
    """
    points = sorted(points, key=lambda point: (point.samples, point.seed or 0))
    groups: Mapping[str, Any] = points[0].comparison["groups"]
    for point in points:
        unknown = [probe["id"] for probe in point.comparison["probes"] if probe["id"] not in images]
        if point.comparison["groups"].keys() != groups.keys() or unknown:
            raise ValueError(
                f"{point.folder}: found a comparison of other probes than {points[0].folder} has; expected one probe "
                "file for all runs: delete the runs of the other one and call again"
            )
    return {name: _group(name, points, images) for name in groups}


def _group(name: str, points: Sequence[CurvePoint], images: Mapping[str, str]) -> Json:
    cited = points[-1].comparison["groups"][name]["enrichment"]
    layer = None if cited is None else cited["layer"]
    shown = [_point(point, point.comparison["groups"][name], name, layer) for point in points]
    neighbours = _neighbours(name, points, layer, images)
    base = points[0].comparison["groups"][name]
    found = {
        "base": {
            "right": _of(base["accuracy"], "before"),
            "pictures_right": _pictures_right(base["accuracy"], "before"),
            "right_ci95": _right_ci95(base["accuracy"], "before"),
            "enrichment": _of(_in_layer(base, layer), "before"),
            "cost_nats": _of(base["occlusion_nats"], "before"),
        },
        "layer": layer,
        "points": shown,
        "neighbours": neighbours,
        **_conclusion(shown, neighbours),
    }
    return found


def _point(point: CurvePoint, group: Mapping[str, Any], name: str, layer: int | None) -> Json:
    guards = (group.get("legs") or {}).get("guards") or {}
    must_be = requirement(CORRECTED, [name])[name]
    onset = (point.comparison.get("onset") or {"groups": {}})["groups"].get(name)
    return {
        "fraction": point.fraction,
        "seed": point.seed,
        "samples": point.samples,
        "right": _of(group["accuracy"], "after"),
        "pictures_right": _pictures_right(group["accuracy"], "after"),
        "right_ci95": _right_ci95(group["accuracy"], "after"),
        "enrichment": _of(_in_layer(group, layer), "after"),
        "enrichment_ci95": _around_base(_in_layer(group, layer)),
        "cost_nats": _of(group["occlusion_nats"], "after"),
        "cost_nats_ci95": _around_base(group["occlusion_nats"]),
        "guards": None if must_be == KEPT else guards.get("value"),
        "guards_ci95": None if must_be == KEPT else guards.get("ci95"),
        "verdict": group["verdict"],
        "holds": group["verdict"] in AS_GOOD,
        "onset": onset,
    }


def _pictures_right(accuracy: Mapping[str, Any] | None, side: str) -> float | None:
    """The share right with each picture counted once; None where no probes share a picture, and in files of earlier
    versions."""
    if accuracy is None or not _shares_pictures(accuracy):
        return None
    found: float | None = accuracy.get("pictures_right", {}).get(side)
    return found


def _right_ci95(accuracy: Mapping[str, Any] | None, side: str) -> list[float] | None:
    """The interval of ``_pictures_right``; of the share of answers where no probes share a picture. None in files of
    earlier versions that keep the interval of pictures without their share."""
    if accuracy is None or (_shares_pictures(accuracy) and _pictures_right(accuracy, side) is None):
        return None
    found: list[float] | None = accuracy[f"{side}_ci95"]
    return found


def _shares_pictures(accuracy: Mapping[str, Any]) -> bool:
    """Files of the earliest versions say of neither how many there are."""
    return bool(accuracy.get("images") != accuracy.get("probes"))


def _in_layer(group: Mapping[str, Any], layer: int | None) -> Mapping[str, Any] | None:
    """The group's enrichment in one key layer; None where no probe names a region."""
    return next((one for one in group["enrichment_by_layer"] if one["layer"] == layer), None)


def _of(numbers: Mapping[str, Any] | None, name: str) -> Any:
    return None if numbers is None else numbers[name]


def _around_base(change: Mapping[str, Any] | None) -> list[float] | None:
    return None if change is None else [change["before"] + end for end in change["ci95"]]


# ---------------------------------------------------------------- neighbouring numbers


def _neighbours(
    name: str, points: Sequence[CurvePoint], layer: int | None, images: Mapping[str, str]
) -> list[Json]:
    """Each number of samples beside the next larger one: paired differences over the same probes, mean over seeds."""
    numbers = sorted({point.samples for point in points})
    values = {
        number: _values(name, [one for one in points if one.samples == number], layer) for number in numbers
    }
    pairs = [*itertools.pairwise(numbers)]
    looks = {
        (pair, what): _look(what, values[pair[0]][what], values[pair[1]][what], images)
        for pair in pairs
        for what in QUANTITIES
    }
    measured = {key: look for key, look in looks.items() if look is not None}
    adjusted = holm(np.array([look.p for look, _ in measured.values()]))
    by_key = dict(zip(measured, adjusted.tolist(), strict=True))
    found = []
    for pair in pairs:
        shown = {
            what: {"difference": look.change, "ci95": list(interval), "p_adjusted": by_key[pair, what]}
            for (of, what), (look, interval) in measured.items()
            if of == pair
        }
        sure = {
            what: one["difference"]
            for what, one in shown.items()
            if _is_sure(one, measured[pair, what][0].sign)
        }
        found.append(
            {
                "from": pair[0],
                "to": pair[1],
                **{what: shown.get(what) for what in QUANTITIES},
                "rose": [what for what, change in sure.items() if change > 0],
                "fell": [what for what, change in sure.items() if change < 0],
            }
        )
    return found


def _is_sure(difference: Mapping[str, Any], sign: int) -> bool:
    """By ranks and by the mean, to the same side: a few probes that change much, or many that change little, are not
    enough alone."""
    low, high = difference["ci95"]
    return difference["p_adjusted"] < BY_CHANCE and sign != 0 and not low <= 0 <= high


def _values(name: str, points: Sequence[CurvePoint], layer: int | None) -> dict[str, dict[str, float]]:
    """Quantity → probe → its value after training, mean over seeds."""
    by_quantity: dict[str, dict[str, list[float]]] = {what: {} for what in QUANTITIES}
    for probe in (probe for point in points for probe in point.comparison["probes"]):
        if probe["group"] != name:
            continue
        right = probe["correct"]["after"]
        of_probe = {
            "answers": None if right is None else float(right),
            "attention": _enrichment(probe, layer),
            "cause": _of(probe["occlusion_nats"], "after"),
        }
        for what, value in of_probe.items():
            if value is not None:
                by_quantity[what].setdefault(probe["id"], []).append(value)
    return {
        what: {probe: float(np.mean(found)) for probe, found in by_probe.items()}
        for what, by_probe in by_quantity.items()
    }


def _enrichment(probe: Mapping[str, Any], layer: int | None) -> float | None:
    if layer is None or probe["region"] is None:
        return None
    found = next(one for one in probe["layers"] if one["layer"] == layer)
    return float(found["regions"][probe["region"]]["enrichment"]["after"])


def _look(
    what: str, few: Mapping[str, float], many: Mapping[str, float], images: Mapping[str, str]
) -> tuple[Look, tuple[float, float]] | None:
    """The paired difference of one quantity, and its interval; of attention the relative one."""
    probes = [probe for probe in few if probe in many]
    if not probes:
        return None
    before, after = (np.array([side[probe] for probe in probes]) for side in (few, many))
    change = relative_change(before, after) if what == "attention" else after - before
    pictures = [images[probe] for probe in probes]
    interval = bootstrap_mean(change, pictures)
    if what != "answers":
        return look_at_numbers(0, change, pictures, 0.0), interval[1:]
    look = look_at_shares(0, change, pictures)
    if set(np.abs(change)) <= {0.0, 1.0} and len(set(pictures)) == len(pictures):
        # A bootstrap of answers that all stay is no interval at all.
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        return look, difference_interval(gained, lost, len(change), 0.95)
    return look, interval[1:]


# ---------------------------------------------------------------- what follows


def _conclusion(shown: Sequence[Mapping[str, Any]], neighbours: Sequence[Mapping[str, Any]]) -> Json:
    numbers = sorted({point["samples"] for point in shown})
    holds = {n: all(point["holds"] for point in shown if point["samples"] == n) for n in numbers}
    verdicts = {
        n: list(dict.fromkeys(point["verdict"] for point in shown if point["samples"] == n)) for n in numbers
    }
    enough_from = None
    for number in reversed(numbers):
        if not holds[number]:
            break
        enough_from = number
    earlier = [n for n in numbers if holds[n] and (enough_from is None or n < enough_from)]
    not_monotone = (
        f" Not monotone: it also held with {_listed(earlier)}, and not with every larger number."
        if earlier
        else ""
    )
    if enough_from is not None:
        fewer = [number for number in numbers if number < enough_from]
        below = "the smallest number tried"
        if fewer:
            below = f"and with every larger number tried; with {fewer[-1]:,}: {_quoted(verdicts[fewer[-1]])}"
        words = f"{_samples(enough_from)} are enough: {_quoted(verdicts[enough_from])}, {below}."
        return {"enough_from": enough_from, "conclusion": "enough", "words": words + not_monotone}
    conclusion, words = _falls_short(numbers, verdicts, neighbours)
    return {"enough_from": None, "conclusion": conclusion, "words": words + not_monotone}


def _falls_short(
    numbers: Sequence[int], verdicts: Mapping[int, Sequence[str]], neighbours: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    """The conclusion, in its name and in a sentence, where the verdicts with the largest number do not hold."""
    found = verdicts[numbers[-1]]
    last, samples = _quoted(found), _samples(numbers[-1])
    if set(found) <= {*OF_PROBES}:
        words = f"{last} with {samples}; training on more does not change that, more or other probes may"
        return "not known", f"Not known: {words}."
    if neighbours and found == verdicts[numbers[-2]] and _is_flat(neighbours[-1], found):
        words = f"from {_samples(numbers[-2])} to {numbers[-1]:,} nothing rises beyond chance"
        return "more does not help", f"More does not help: {words}, and the verdict stays {last}."
    return "not enough yet", f"Not enough yet: {last} with {samples}, the largest number tried."


def _is_flat(step: Mapping[str, Any], verdicts: Sequence[str]) -> bool:
    """Did nothing rise in this step up, and was what decides these verdicts measured in it?"""
    decides = [DECIDED_BY.get(one) for one in verdicts]
    return not step["rose"] and all(what is not None and step[what] is not None for what in decides)


def headline(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """The result in a line: the number from which every group's verdict holds, or the groups that need more."""
    short = [name for name, group in groups.items() if group["enough_from"] is None]
    if short:
        enough = len(groups) - len(short)
        return f"Not settled for {_names(short)}; {enough} of {len(groups)} groups have enough samples."
    most = max(group["enough_from"] for group in groups.values())
    return f"{_samples(most)} are enough for every group."


def _names(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _samples(number: int) -> str:
    return f"{number:,} samples" if number != 1 else "1 sample"


def _listed(numbers: Sequence[int]) -> str:
    return _names([f"{number:,}" for number in numbers])


def _quoted(verdicts: Sequence[str]) -> str:
    return " or ".join(f'"{one}"' for one in verdicts)
