"""Scenes: boxes are those of the pixels that changed, things stand where they should, and names belong together."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from PIL import Image

from finetune.realcase import catalogue, scenes
from finetune.realcase.tasks import BY_NAME
from tests.finetune.realcase.parts_in_small import drawn_pictures

PICTURES = drawn_pictures()
FROG, OWL, TOOLBOX = BY_NAME["frog"], BY_NAME["owl"], BY_NAME["toolbox"]


def test_names_and_files_are_there_once():
    for names in ([one.english for one in catalogue.THINGS], [one.chinese for one in catalogue.THINGS],
                  [one.english for one in catalogue.LANDMARKS], catalogue.CUTOUTS):  # fmt: skip
        assert len(set(names)) == len(names)
    photographs = [one.picture for one in catalogue.LANDMARKS]
    photographs += [*catalogue.BACKGROUNDS, *catalogue.HELD_OUT_BACKGROUNDS]
    assert len(set(photographs)) == len(photographs) == 48
    assert {*catalogue.RIDERS, *catalogue.CARRIERS} <= BY_NAME.keys()
    assert not {*catalogue.RIDERS} & {*catalogue.CARRIERS}
    for one in catalogue.LANDMARKS:
        x0, y0, x1, y1 = one.box
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
    alike = [one.english for one in scenes.names_alike(catalogue.LANDMARKS[0])]
    assert alike == ["Bent Pyramid", "Red Pyramid", "Meidum Pyramid"]
    assert scenes.names_alike(catalogue.LANDMARKS[6]) == []


def test_the_box_is_of_what_is_opaque():
    cutout = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    cutout.paste((10, 20, 30, 255), (7, 5, 21, 18))
    cutout.paste((10, 20, 30, 60), (0, 0, 7, 30))  # a shadow
    assert scenes.opaque_box(cutout) == (7, 5, 21, 18)
    assert scenes.opaque_part(cutout).size == (14, 13)
    with pytest.raises(ValueError, match="without any opaque pixel"):
        scenes.opaque_box(Image.new("RGBA", (4, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_boxes_hold_all_that_changed_and_touch_it(seed):
    rng = Random(seed)
    scene = scenes.side_by_side(PICTURES, FROG, OWL, rng)
    bare, name = scenes.background(PICTURES, Random(seed), held_out=False, halves=2)
    assert scene.picture.size == bare.size == (2 * scenes.SIDE, scenes.SIDE)
    assert name == scene.background
    changed = (np.asarray(scene.picture, int) != np.asarray(bare, int)).any(-1)
    inside = np.zeros_like(changed)
    for one in scene.placed:
        x0, y0, x1, y1 = one.box
        inside[y0:y1, x0:x1] = True
        part = changed[y0:y1, x0:x1]
        assert all(edge.any() for edge in (part[:2], part[-2:], part[:, :2], part[:, -2:]))
    # What is half transparent at a rim, resized, may lie a pixel outside.
    assert changed[~inside].sum() < 0.01 * changed.sum()
    left, right = scene.placed
    assert left.thing == FROG and left.box[2] <= scenes.SIDE <= right.box[0]


@pytest.mark.parametrize("seed", range(20))
def test_on_is_on_and_not_on_is_not(seed):
    for is_on in (True, False):
        scene = scenes.on_or_beside(PICTURES, FROG, TOOLBOX, Random(seed), is_on=is_on)
        rider, carrier = (one.box for one in scene.placed)
        assert scene.placed[0].thing == FROG
        for x0, y0, x1, y1 in (rider, carrier):
            assert 0 <= x0 < x1 <= scenes.SIDE and 0 <= y0 < y1 <= scenes.SIDE
        overlap = min(rider[2], carrier[2]) - max(rider[0], carrier[0])
        touches = abs(rider[3] - carrier[1]) <= 8 and overlap > 0
        assert touches == is_on


def test_a_cutout_is_seen_both_ways_round_turned_and_tinted():
    """Red on its left, blue on its right; its corners stay transparent when it is turned."""
    cutout = Image.new("RGBA", (50, 30), (200, 20, 20, 255))
    cutout.paste((20, 20, 200, 255), (25, 0, 50, 30))
    made = [scenes._varied(cutout, Random(seed)) for seed in range(12)]
    reds = [one.getpixel((one.width // 4, one.height // 2))[0] > 100 for one in made]
    assert 2 < sum(reds) < 10
    assert len({one.size for one in made}) > 6 and len({one.getpixel((9, 15))[:3] for one in made}) > 6
    assert all(one.width < 60 and one.height < 44 for one in made)
    turned = max(made, key=lambda one: one.height)
    assert min(turned.getpixel(at)[3] for at in ((0, 0), (0, turned.height - 1))) == 0


def test_what_is_held_out_is_never_trained():
    for seed in range(12):
        rng = Random(seed)
        old = scenes.one_thing(PICTURES, FROG, rng)
        new = scenes.one_thing(PICTURES, FROG, rng, new_background=True, new_cutout=True)
        assert old.background in catalogue.BACKGROUNDS and old.placed[0].cutout in FROG.trained
        assert new.background in catalogue.HELD_OUT_BACKGROUNDS and new.placed[0].cutout in FROG.held_out


def test_a_view_holds_the_whole_landmark():
    landmark = catalogue.LANDMARKS[5]
    boxes = [scenes.landmark_view(PICTURES, landmark, Random(seed))[1] for seed in range(6)]
    assert any(one != other for one, other in pairwise(boxes))
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= scenes.SIDE and 0 <= y0 < y1 <= scenes.SIDE
        assert x1 - x0 >= round(0.32 * scenes.SIDE) - 1 and y1 - y0 >= round(0.82 * scenes.SIDE) - 1
