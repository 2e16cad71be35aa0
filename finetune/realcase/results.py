"""What was chosen → the table of the real case: right answers of all, by what was held out, language and step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from finetune.realcase.choices import Chosen


class Score(NamedTuple):
    """Of one group of questions in one language."""

    right: int
    questions: int
    foils: int
    """How often the foil was chosen."""
    chance: float
    """Share of right answers by guessing among the choices."""
    mass: float | None
    """Mean share of attention to the picture in the boxes, in ``layers``; None without boxes."""

    @property
    def accuracy(self) -> float:
        return self.right / self.questions


def scores(chosen: Sequence[Chosen], layers: Sequence[int]) -> dict[str, Score]:
    """ "side-both/en" → its score. ``layers``: language layers whose attention is averaged."""
    groups: dict[str, list[Chosen]] = {}
    for one in chosen:
        groups.setdefault(f"{one.group}/{one.language}", []).append(one)
    return {name: _score(group, layers) for name, group in groups.items()}


def _score(group: Sequence[Chosen], layers: Sequence[int]) -> Score:
    masses = [np.mean([one.mass[layer] for layer in layers]) for one in group if one.mass]
    return Score(
        right=sum(one.choice == 0 for one in group),
        questions=len(group),
        foils=sum(one.choice == 1 for one in group),
        chance=float(np.mean([1 / one.choices for one in group])),
        mass=float(np.mean(masses)) if masses else None,
    )


def as_json(
    runs: Mapping[str, Mapping[int, Mapping[str, Score]]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """runs   name → step → group → score"""
    return {
        "version": 1,
        **facts,
        "runs": {
            name: {
                str(step): {
                    group: {**score._asdict(), "accuracy": score.accuracy} for group, score in groups.items()
                }
                for step, groups in steps.items()
            }
            for name, steps in runs.items()
        },
    }


def as_markdown(runs: Mapping[str, Mapping[int, Mapping[str, Score]]], facts: Mapping[str, Any]) -> str:
    """A table for each task, a row for each step of each run."""
    lines = ["# The real case", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    tasks = dict.fromkeys(
        group.split("-")[0] for steps in runs.values() for one in steps.values() for group in one
    )
    for task in tasks:
        groups = list(
            dict.fromkeys(
                group for steps in runs.values() for one in steps.values() for group in one
                if group.split("-")[0] == task
            )
        )  # fmt: skip
        chance = next(
            score.chance for steps in runs.values() for one in steps.values() for group, score in one.items()
            if group in groups
        )  # fmt: skip
        heads = [group.split("-", 1)[1].replace("/", ", ") for group in groups]
        lines += [f"## {task} (chance {chance:.1%})", "", _row(["run", "step", *heads, "mass in boxes"])]
        lines.append(_row(["---"] * (len(heads) + 3)))
        for name, steps in runs.items():
            for step, found in steps.items():
                lines.append(_row([name, str(step), *_cells(found, groups)]))
        lines.append("")
    return "\n".join(lines)


def _cells(found: Mapping[str, Score], groups: Iterable[str]) -> list[str]:
    groups = list(groups)
    cells = [
        f"{found[one].right} of {found[one].questions} ({found[one].accuracy:.0%})"
        if one in found
        else "not measured"
        for one in groups
    ]
    masses = [found[one].mass for one in groups if one in found]
    known = [mass for mass in masses if mass is not None]
    return [*cells, f"{np.mean(known):.2f}" if known else "not measured"]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
