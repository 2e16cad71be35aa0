"""What a run says of the untrained model as it begins: stages of groups at fault, and parts that do not train."""

from dataclasses import replace

import pytest
from torch import nn

from diagnostics.comparison.legs.leg import Leg
from diagnostics.diagnosis.at_start import hindrance, lines, markdown, misplaced, trained_components
from diagnostics.diagnosis.diagnosing import Diagnosis, GroupDiagnosis
from diagnostics.diagnosis.evidence import Evidence
from diagnostics.diagnosis.remedies import Remedy
from diagnostics.diagnosis.stages import NOT_PASSED_ON, NOT_SEEN, RIGHT, Stage
from diagnostics.records.measurement_plan import OCCLUSION, PICTURES
from tests.finetune.families.tiny_families import GRIDS

REASON = "The tower does not tell | the answers."


def diagnosis(**stages: str | None) -> Diagnosis:
    leg = Leg(False, 20, 0.1, (0.0, 0.3), 0.8, "10 % of the answers are right.")
    groups = {
        name: GroupDiagnosis(
            Evidence(20, 20, 0.1, {"answers": leg}),
            Stage(stage, REASON),
            Remedy("python finetune.py --vision lora", ("vision",), "Samples.", "Guards."),
        )
        for name, stage in stages.items()
    }
    return Diagnosis("base", "qwen-vl", groups, {})


def test_a_line_for_each_group_at_fault_and_a_warning_where_its_part_does_not_train():
    found = list(lines(diagnosis(towers=NOT_SEEN, rooms=RIGHT, cats=None), {"language", "connector"}))
    assert found[0] == f"diagnosis of towers: not seen. {REASON}"
    assert found[1].startswith("warning: towers: the answer is lost in the vision (“not seen”)")
    assert "this run trains: connector, language" in found[1] and found[1].endswith("--vision lora")
    assert found[2] == f"diagnosis of cats: not determined. {REASON}"
    assert len(found) == 3


@pytest.mark.parametrize(
    ("stage", "trains", "warned"),
    [
        (NOT_SEEN, {"vision"}, False),
        (NOT_PASSED_ON, {"vision", "language"}, True),
        (NOT_PASSED_ON, {"connector"}, False),
        (RIGHT, set(), False),
        (None, {"language"}, False),
    ],
)
def test_a_run_is_warned_where_it_trains_none_of_the_parts_at_fault(stage, trains, warned):
    assert (misplaced(stage, trains) is not None) is warned


def test_the_table_of_tensorboard_has_a_row_for_each_group():
    rows = markdown(diagnosis(towers=NOT_SEEN, rooms=RIGHT), {"language"}).splitlines()
    assert rows[2] == (
        "| towers | 10 % | not seen | The tower does not tell \\| the answers. | `python finetune.py --vision lora` |"
    )
    assert rows[3].startswith("| towers | | **warning** | the answer is lost in the vision")
    assert rows[4].startswith("| rooms | 10 % | right |") and len(rows) == 5


def test_what_attention_was_trained_on_before_is_said_first():
    told = "Attention was trained on in layer 3; it is judged only where it was not."
    found = replace(diagnosis(towers=NOT_SEEN), trained=told)
    assert next(lines(found, {"vision"})) == f"diagnosis: {told}"
    assert markdown(found, {"vision"}).endswith(f" |\n\n{told}")


@pytest.mark.parametrize(
    ("share", "words"), [(0.004, "0.4 %"), (0.996, "99.6 %"), (0.9996, "over 99.9 %"), (1.0, "100 %")]
)
def test_the_table_says_all_only_of_all(share: float, words: str):
    found = diagnosis(rooms=RIGHT)
    one = found.groups["rooms"]
    groups = {"rooms": replace(one, evidence=replace(one.evidence, accuracy=share))}
    assert f"| rooms | {words} | right |" in markdown(replace(found, groups=groups), {"language"})


def test_what_trains_is_named_by_component():
    tiny = GRIDS["qwen2.5-vl"]
    model = tiny.model().requires_grad_(False)
    assert trained_components(model, tiny.family) == set()
    model.get_submodule(tiny.family.paths.connector[0]).requires_grad_(True)
    assert trained_components(model, tiny.family) == {"connector"}


def test_a_baseline_that_measures_too_little_is_not_diagnosed():
    model = nn.Linear(2, 3)
    assert hindrance(model, {OCCLUSION, *PICTURES}, {OCCLUSION, *PICTURES}) is None
    assert hindrance(model, PICTURES, {OCCLUSION, *PICTURES}) == "the baseline does not measure occlusion"
