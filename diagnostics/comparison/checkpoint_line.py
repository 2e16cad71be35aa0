"""What a checkpoint's probes say, in one line for the terminal: before training → now, group by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagnostics.comparison.legs.answers import Answers, answers_of, keeps
from diagnostics.comparison.legs.attention import read_attention
from diagnostics.comparison.legs.leg import percent
from diagnostics.comparison.pairs import ProbePair, pairs_by_group, trained_words
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import NOT_HELD_OUT
from diagnostics.records.probes import KEPT_SHARE

LEVEL = 0.95


def checkpoint_line(pairs: Sequence[ProbePair], step: int) -> str:
    """``step 110: towers 0 → 38 of 40 right, attention on spheres 15.7× → 26× (layer 2); retention kept (40 of 40)``.

    Answers are judged by margin, attention by its enrichment in cross-fitted layers, as the verdicts judge them; the
    layer is named, since the last comparison may cite another, by what carries the change. What
    hiding a region costs is not measured at checkpoints, so no verdict is claimed; only a guard that was lost is named.
    A group with pictures that were trained on is "not held out", whatever rose.

    pairs   of the probes that verdicts rest on: the untrained model and this checkpoint
    """
    groups = [_group(name, members) for name, members in pairs_by_group(pairs).items()]
    return f"step {step}: {'; '.join(groups)}"


def _group(name: str, pairs: Sequence[ProbePair]) -> str:
    answers = answers_of(pairs, Thresholds(), LEVEL)
    trained = f" ({NOT_HELD_OUT})" if trained_words(pairs) else ""
    if name in KEPT_SHARE and answers is not None:
        return f"{name}{trained} {_kept(name, answers)}"
    right = (
        "no answers to judge"
        if answers is None
        else f"{_right(answers.before, answers.after, answers.probes)} right"
    )
    reading = read_attention(pairs, lambda *_: None, Thresholds(), LEVEL)
    if reading is None:
        return f"{name}{trained} {right}"
    before, after = float(np.mean(reading.before)), float(np.mean(reading.after))
    layers = " and ".join(str(layer) for layer in sorted(set(reading.layers)))
    return f"{name}{trained} {right}, attention on {reading.region} {before:.3g}× → {after:.3g}× (layer {layers})"


def _kept(name: str, answers: Answers) -> str:
    if answers.keeps(name):
        if not answers.before and not (answers.said and answers.said[0]):
            right = _right(0, answers.after, answers.probes) if answers.after else f"0 of {answers.probes}"
            return f"{right} right, nothing to keep"
        return f"kept ({round(answers.after * answers.probes)} of {answers.probes})"
    if (said := answers.speech_lost) is not None:
        if said.by_picture:
            return f"LOST ({percent(said.before)} → {percent(said.after)} generated, by picture)"
        return f"LOST ({_right(said.before, said.after, answers.probes)} generated)"
    if keeps(name, answers.before, answers.after):  # probes share pictures, and most of these were lost
        shares = f"{percent(answers.pictures_before)} → {percent(answers.pictures_after)}"
        return f"LOST ({shares} by picture)"
    return f"LOST ({_right(answers.before, answers.after, answers.probes)})"


def _right(before: float, after: float, probes: int) -> str:
    return f"{round(before * probes)} → {round(after * probes)} of {probes}"
