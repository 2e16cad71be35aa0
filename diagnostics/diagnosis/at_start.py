"""The diagnosis of the untrained model as a run begins: where it loses answers, and whether that part trains."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from diagnostics.diagnosis.diagnosing import Diagnosis
from diagnostics.diagnosis.remedies import VISION, faulty_part
from diagnostics.diagnosis.stages import RIGHT, TOO_FEW, UNDETERMINED
from diagnostics.probing.before import is_sharded
from finetune.families import Family
from finetune.model.adaptation import component_of

TRAINED_BY = {
    "language": "--use_lora True, or full fine-tuning",
    "connector": "--train_connector True",
    VISION: "--vision lora",
}
"""Component → the flags of finetune.py that train it."""


def trained_components(model: nn.Module, family: Family) -> set[str]:
    """The components with parameters that train: "language", "connector", "vision". ``model`` without its wrappers."""
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {component_of(name, family.paths) for name in names}


def lines(diagnosis: Diagnosis, trains: Collection[str]) -> Iterator[str]:
    """What of its attention was trained on before, if any was; a line for each group at fault, with a warning behind it
    where nothing that trains is where its fault lies."""
    if diagnosis.trained:
        yield f"diagnosis: {diagnosis.trained}"
    for name, one in diagnosis.groups.items():
        if one.stage.name in (RIGHT, TOO_FEW):
            continue
        yield f"diagnosis of {name}: {one.stage.name or UNDETERMINED}. {one.stage.reason}"
        if warning := misplaced(one.stage.name, trains):
            yield f"warning: {name}: {warning}"


def misplaced(stage: str | None, trains: Collection[str]) -> str | None:
    """Why this run cannot be expected to mend a stage; None where it trains a part in which the fault lies."""
    faulty = faulty_part(stage)
    if not faulty or set(faulty) & set(trains):
        return None
    where, flags = " and the ".join(faulty), "; ".join(TRAINED_BY[part] for part in faulty)
    training = ", ".join(sorted(trains)) or "nothing"
    return (
        f"the answer is lost in the {where} (“{stage}”), and this run trains: {training}. A correction can at best "
        f"work around it; to train the {where}: {flags}"
    )


def markdown(diagnosis: Diagnosis, trains: Collection[str]) -> str:
    """The table that TensorBoard shows: group, stage, reason, remedy."""
    rows = ["| group | right | the answer is lost at | why | what may mend it |", "|---|---|---|---|---|"]
    for name, one in diagnosis.groups.items():
        warning = misplaced(one.stage.name, trains)
        remedy = f"`{one.remedy.command}`" if one.remedy.command else "–"
        cells = (name, one.evidence.right_words(), one.stage.name or UNDETERMINED, one.stage.reason, remedy)
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        if warning:
            rows.append(f"| {name} | | **warning** | {warning} | |")
    return "\n".join([*rows, "", diagnosis.trained]).rstrip()


def hindrance(model: nn.Module, measured: Collection[str], wanted: Collection[str]) -> str | None:
    """Why the untrained model cannot be diagnosed as a run begins; None where it can.

    measured, wanted   kinds of interventions and pictures: those of the records at hand, and those that it rests on
    """
    missing = sorted(set(wanted) - set(measured))
    if missing:
        return f"the baseline does not measure {', '.join(missing)}"
    if is_sharded(model):
        return "its weights are sharded over processes"
    return None
