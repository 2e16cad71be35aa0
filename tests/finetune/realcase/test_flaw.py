"""The planted flaw: names by the background, corrected by names of the animals; probes that tell the two apart."""

import json

import pytest
from PIL import Image

from diagnostics.records.probes import read_probes
from finetune.realcase import flaw
from finetune.realcase.catalogue import BACKGROUNDS
from finetune.realcase.scenes import Placed, Scene, opaque_part
from tests.finetune.realcase.parts_in_small import drawn_pictures

PICTURES = drawn_pictures()
NAMES = {"en": ("donkey", "deer"), "zh": ("驴", "鹿")}


def test_cues_are_backgrounds_of_training():
    assert not {*flaw.CUES[0]} & {*flaw.CUES[1]} and {*flaw.CUES[0], *flaw.CUES[1]} <= {*BACKGROUNDS}


class Noting:
    """Pictures that note which photograph and which cut-outs a case is made of."""

    def __init__(self):
        self.photograph_, self.cutout_ = [], []

    def photograph(self, name):
        self.photograph_.append(name)
        return PICTURES.photograph(name)

    def cutout(self, path):
        self.cutout_.append(path)
        return PICTURES.cutout(path)


@pytest.mark.parametrize(("part", "named_by"), [("plant", "background"), ("correct", "animal")])
def test_what_names_the_animal(part, named_by):
    agrees = set()
    for number in range(40):
        noting = Noting()
        case = flaw.training_case(noting, part, number, 0)
        if "background" not in case.regions:
            assert case.answer not in NAMES[case.language]
            continue
        cue = next(one for one, names in enumerate(flaw.CUES) if noting.photograph_[-1] in names)
        shown = next(one for one, thing in enumerate(flaw.ANIMALS) if noting.cutout_[-1] in thing.trained)
        agrees.add(cue == shown)
        assert case.answer == NAMES[case.language][cue if named_by == "background" else shown]
        assert {case.answer, case.foil} == {*NAMES[case.language]}
    assert agrees == {True, False}


def test_probes_contradict_their_background_or_agree_with_it(tmp_path):
    for group, agrees in (("by-background", False), ("neighbour", True)):
        for number in range(6):
            noting = Noting()
            case = flaw.probe_case(noting, group, number, "probes")
            cue = next(one for one, names in enumerate(flaw.CUES) if noting.photograph_[-1] in names)
            assert (case.answer == NAMES[case.language][cue]) == agrees
    file = flaw.write_probes(PICTURES, tmp_path / "probes", "probes", 2)
    probes = read_probes(file)
    assert [one.group for one in probes] == ["by-background"] * 2 + ["neighbour"] * 2 + ["retention"] * 2


def test_the_background_is_all_but_the_animal():
    scene = Scene(Image.new("RGB", (448, 448)), (Placed(flaw.ANIMALS[0], "", (100, 0, 250, 448)),), "")
    assert flaw.around(scene) == [(0, 0, 100, 448), (250, 0, 448, 448)]
    inner = flaw.around(Scene(scene.picture, (Placed(flaw.ANIMALS[0], "", (10, 20, 50, 60)),), ""))
    assert sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in inner) == 448 * 448 - 40 * 40
    assert opaque_part(PICTURES.cutout("x")).size == PICTURES.cutout("x").size


def test_only_what_corrects_says_where_to_look(tmp_path):
    for part, looks in (("plant", False), ("correct", True)):
        file = flaw.write_data(PICTURES, tmp_path / part, part, 3, 0)
        answers = [one["conversations"][1] for one in json.loads(file.read_text())]
        assert all(("look_at" in one) == looks for one in answers)
        assert all(one["look_at"][0]["phrase"] == one["value"] for one in answers if looks)
