"""From a stage to what may mend it: which part must train, which samples are missing, what guards them, and the
command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diagnostics.diagnosis.stages import (
    NOT_LOOKED_AT,
    NOT_PASSED_ON,
    NOT_SEEN,
    NOT_USED,
    PRIOR,
    RIGHT,
    SAID_OTHERWISE,
    TOO_FEW,
    Stage,
)
from diagnostics.records.probes import Probe

LANGUAGE, CONNECTOR, VISION = "language", "connector", "vision"
"""The components of ``finetune.model.adaptation``."""

_FAULTY: Mapping[str, tuple[str, ...]] = {
    PRIOR: (LANGUAGE,),
    SAID_OTHERWISE: (LANGUAGE,),
    NOT_USED: (LANGUAGE,),
    NOT_LOOKED_AT: (LANGUAGE,),
    NOT_PASSED_ON: (CONNECTOR,),
    NOT_SEEN: (VISION,),
}
DATA = "corrective.json"
"""What the command calls the samples that are still to be made."""

LOOK_WEIGHT = "0.2"
"""In the middle of what suits LoRA on a small set (docs/teach.md)."""


class Remedy(NamedTuple):
    """What may mend a group.

    command   to be pasted; "" where nothing is to be trained
    trains    the components that must train, those of ``faulty_part`` among them
    samples   what ``corrective.json`` should hold, as a sentence
    guards    what must stay right, as a sentence; "" where nothing is trained
    """

    command: str
    trains: tuple[str, ...]
    samples: str
    guards: str

    def as_json(self) -> dict[str, Any]:
        return {
            "remedy": self.command,
            "trains": list(self.trains),
            "samples": self.samples,
            "guards": self.guards,
        }


def faulty_part(stage: str | None) -> tuple[str, ...]:
    """The components that must train for the fault to be mended: "language", "connector", "vision". Empty for "right",
    "too few probes" and where no stage was found.

    A run whose flags train none of them trains a part where the fault does not lie.
    """
    return _FAULTY.get(stage or "", ())


def remedy_of(
    stage: Stage,
    probes: Sequence[Probe],
    *,
    decides: str | None,
    model: str,
    probe_file: str,
    resampler: bool,
    look_layers: Sequence[int] = (),
) -> Remedy:
    """The remedy of one group.

    look_layers   language layers to supervise where the model does not look: not the key layers, in which attention is
                  judged. () where it has no other
    resampler   the connector attends: then what an answer looks at is decided there too, so it trains beside the
                language layers
    """
    trains = faulty_part(stage.name)
    if not trains:
        return Remedy(_again(stage, model, probe_file), (), _SAMPLES_OTHERWISE[stage.name or ""], "")
    if resampler and stage.name in (NOT_LOOKED_AT, NOT_USED):
        trains = (*trains, CONNECTOR)
    flags = ["--use_lora", "True"]
    flags += ["--train_connector", "True"] if CONNECTOR in trains else []
    flags += ["--vision", "lora"] if VISION in trains else []
    if stage.name == NOT_LOOKED_AT:
        flags += ["--look_weight", LOOK_WEIGHT]
        flags += ["--look_layers", ",".join(map(str, look_layers))] if look_layers else []
    command = ["python", "finetune.py", "--model_name_or_path", model, "--data_path", DATA, *flags]
    command += ["--monitor", "True", "--probes", probe_file]
    return Remedy(shlex.join(command), trains, _samples(str(stage.name), probes, decides), _guards(probes))


_SAMPLES_OTHERWISE = {
    RIGHT: "None are missing.",
    TOO_FEW: "Add probes on other pictures before anything is trained.",
    "": "Add what the missing test needs before anything is trained.",
}


def _again(stage: Stage, model: str, probe_file: str) -> str:
    if stage.name == RIGHT:
        return ""
    command = [
        "python",
        "-m",
        "diagnostics.diagnose",
        model,
        "--probes",
        probe_file,
        "--output_dir",
        "diagnosis",
    ]
    return shlex.join(command)


def _samples(stage: str, probes: Sequence[Probe], decides: str | None) -> str:
    region = _region(probes)
    if stage == PRIOR:
        return "Samples that ask the same words of pictures with different right answers, as many of each."
    if stage == SAID_OTHERWISE:
        return "As many samples of each of the two answers: the model leans to one of them, and little else is wrong."
    if stage == NOT_SEEN:
        return (
            f"Samples in which nothing but {region} tells the two answers apart, large and small in the picture; try "
            "more --max_pixels first where the family has them."
        )
    if stage == NOT_PASSED_ON:
        return f"Samples in which nothing but {region} tells the two answers apart, at many places of the picture."
    look = f" Each answer names the boxes of {region} in look_at." if stage == NOT_LOOKED_AT else ""
    if decides is not None:
        return (
            f"Samples in which {decides} contradicts the answer as often as it agrees: the answers depend on "
            f"{decides}, and only {region} may tell them apart.{look}"
        )
    return (
        f"Samples whose answer follows from {region} alone, with everything else in the picture varied at "
        f"random.{look}"
    )


def _region(probes: Sequence[Probe]) -> str:
    """What must decide the answer, by its name where all probes that name a region name this one."""
    named = {probe.main_region for probe in probes if probe.main_region}
    if len(named) > 1:
        return "the region that each probe names"
    return next(iter(named), "what decides")


def _guards(probes: Sequence[Probe]) -> str:
    foils = [probe.foil for probe in probes if probe.foil]
    different = list(dict.fromkeys(foils))
    named = " or ".join(map(repr, different)) if len(different) <= 2 else "the foil of one of these probes"
    return (
        f"Keep as many samples, and at least 20 probes on as many pictures, whose right answer is {named}; and "
        "ordinary samples as --replay_data."
    )
