"""What the scenes promise: boxes where things are, a cue far from the evidence, pictures that scale."""

from random import Random

import numpy as np
import pytest

from finetune.demo.general_scenes import COLOURS, blocks_scene, landscape_scene
from finetune.demo.room_scenes import room_scene
from finetune.demo.shapes import PATCHES, WIDTH, Ball, Gradient, Scene, Veil, rectangle, render
from finetune.demo.tower_scenes import tower_scene


def test_boxes_are_whole_pixels_clipped_to_the_picture():
    scene = Scene("tower", {}, (), {"thing": ((0.1, 0.25, 0.5, 0.501), (-0.2, 0.9, 1.4, 1.1))})
    # 40 x 30 pixels: a unit is 30 pixels both ways
    assert scene.boxes_pixels(40, 30)["thing"] == [[3, 7, 15, 16], [0, 27, 40, 30]]


def test_shapes_fall_where_their_units_say():
    scene = Scene(
        "x",
        {},
        (Gradient((0, 0, WIDTH, 1), (0, 0, 200), (0, 0, 200)), rectangle(0.5, 0.25, 1.0, 0.5, (250, 0, 0))),
    )
    pixels = np.asarray(render(scene, 40, 30))
    assert pixels.shape == (30, 40, 3)
    red = np.argwhere(pixels[..., 0] > 125)
    assert (red.min(0) == [7, 15]).all() or (red.min(0) == [8, 15]).all()
    assert 14 <= red.max(0)[0] <= 15 and 29 <= red.max(0)[1] <= 30
    assert tuple(pixels[2, 2]) == (0, 0, 200)


def test_edges_are_smooth_and_a_ball_is_lit_from_the_upper_left():
    scene = Scene("x", {}, (Ball((WIDTH / 2, 0.5), 0.3, (200, 60, 60)),))
    pixels = np.asarray(render(scene, 80, 60)).astype(int)
    assert len(np.unique(pixels[..., 0])) > 12
    assert pixels[24, 34].sum() > pixels[38, 48].sum()


def test_a_veil_takes_the_mean_colour_around_it_and_leaves_the_rest():
    """Drawn three times finer than 40 x 30 the left box is 24 x 12 and its ring 4 wide: 8 rows of 16 red and 16 blue
    above and below, 4 x 12 red on the left. On the right is the other box, no part of the ring."""
    left, right = (5 / 30, 10 / 30, 13 / 30, 14 / 30), (13 / 30, 10 / 30, 17 / 30, 14 / 30)
    shapes = (
        Gradient((0, 0, WIDTH, 1), (0, 0, 200), (0, 0, 200)),
        Gradient((0, 0, 9 / 30, 1), (200, 0, 0), (200, 0, 0)),
        rectangle(13.2 / 30, 10.2 / 30, 16.5 / 30, 13.5 / 30, (0, 250, 0)),
    )
    plain, hidden = (
        np.asarray(render(Scene("x", {}, (*shapes, *veil)), 40, 30)).astype(int)
        for veil in ((), (Veil((left, right)),))
    )
    changed = np.argwhere((plain != hidden).any(-1))
    assert changed.min(0).tolist() == [10, 5] and changed.max(0).tolist() == [13, 16]
    assert (hidden[10:14, 5:13] == (116, 0, 84)).all()  # 176 red and 128 blue, each of strength 200
    assert (hidden[10:14, 13:17] == (0, 0, 200)).all()


def test_a_veil_at_the_edge_is_not_darkened_by_what_lies_outside():
    grey = Gradient((0, 0, WIDTH, 1), (150, 160, 170), (150, 160, 170))
    scene = Scene("x", {}, (grey, rectangle(1.0, 0.8, WIDTH, 1, (0, 0, 0)), Veil(((1.0, 0.8, WIDTH, 1.0),))))
    assert (np.asarray(render(scene, 40, 30)) == (150, 160, 170)).all()


def _same_outside(first, second, box, width, height):
    """Whether two scenes look the same but in the box."""
    pixels = [np.asarray(render(scene, width, height)).astype(int) for scene in (first, second)]
    assert (pixels[0] != pixels[1]).any()
    x0, y0, x1, y1 = box
    for each in pixels:
        each[y0:y1, x0:x1] = 0
    return np.abs(pixels[0] - pixels[1]).max() <= 6  # of 255: ripples blur the reflection's edge


@pytest.mark.parametrize("kind", ["tower day", "tower night", "room"])
def test_the_cue_tells_its_colour_in_its_box_alone_and_the_box_fills_patches(kind):
    """Reflection, glow and shadow included: the box hidden, nothing tells warm from cool."""
    for seed in range(4):
        if kind == "room":
            first, second = (room_scene(Random(seed), "on", rug) for rug in ("warm", "cool"))
            (box,) = first.boxes_pixels(448, 336)["rug"]
        else:
            first, second = (
                tower_scene(Random(seed), "pearl", podium, kind[6:]) for podium in ("warm", "cool")
            )
            (box,) = first.boxes_pixels(448, 336)["podium"]
        assert _same_outside(first, second, box, 448, 336)

        assert [edge % patch for edge, patch in zip(box, (32, 24, 32, 24), strict=True)] == [0, 0, 0, 0], box
        assert PATCHES == 14 and box[2] - box[0] >= 4 * 32 and box[3] == 336


@pytest.mark.parametrize("time", ["day", "night"])
@pytest.mark.parametrize("podium", ["warm", "cool"])
def test_spheres_stand_far_above_the_podium_with_a_colour_of_their_own(time, podium):
    for seed in range(12):
        scene = tower_scene(Random(seed), "pearl", podium, time)
        spheres, base = scene.regions["spheres"], scene.regions["podium"][0]
        assert len(spheres) == 3
        assert max(box[3] for box in spheres) < base[1] - 0.15
        assert all(box[0] >= 0 and box[2] <= WIDTH and box[1] > 0 for box in spheres)
        pixels = np.asarray(render(scene, 160, 120)).astype(int)
        x0, y0, x1, y1 = scene.boxes_pixels(160, 120)["podium"][0]
        red, _, blue = pixels[y0 + 1 : y1 - 1, x0 + 4 : x1 - 4].reshape(-1, 3).mean(0)
        assert (red > blue) == (podium == "warm")
        x0, y0, x1, y1 = scene.boxes_pixels(160, 120)["spheres"][0]
        ball = pixels[(y0 + y1) // 2 - 1, (x0 + x1) // 2 - 2]
        assert ball[0] > ball[1] + 40, "ruby, whatever the podium's colour"


def test_spheres_cover_at_least_two_patches_of_the_small_model():
    # 14 x 14 patches over the squeezed picture: a patch is WIDTH / 14 by 1 / 14 units
    for seed in range(20):
        spheres = tower_scene(Random(seed), "pearl", "cool", "day").regions["spheres"]
        area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in spheres)
        assert area >= 2 * WIDTH / 14 / 14


def test_only_pearls_have_spheres():
    for landmark in ("canton", "pagoda", "lighthouse", "eiffel"):
        scene = tower_scene(Random(3), landmark, "stone", "day")
        assert "spheres" not in scene.regions and scene.facts["spheres"] is False
        assert scene.regions["body"]


def test_the_cat_is_where_the_relation_says():
    for seed in range(15):
        boxes = {}
        for relation in ("on", "under"):
            scene = room_scene(Random(f"{relation}{seed}"), relation, "cool")
            (cat,), (table,) = scene.regions["cat"], scene.regions["table"]
            boxes[relation] = (cat, table)
            assert cat[0] > 0 and cat[2] < WIDTH and cat[3] < scene.regions["rug"][0][1] + 0.001
        cat, table = boxes["on"]
        assert cat[3] < table[1] + 0.03 and table[0] < cat[0] + cat[2] - cat[0] < table[2] + 0.05
        cat, table = boxes["under"]
        assert cat[1] > table[1] and cat[3] > table[3] - 0.03


def test_blocks_and_landscapes_hold_what_their_facts_say():
    for seed in range(20):
        scene = blocks_scene(Random(seed))
        assert len(scene.facts["blocks"]) == len(scene.regions)
        for block in scene.facts["blocks"]:
            x0, y0, x1, y1 = scene.regions[block["colour"]][0]
            assert ("left", "middle", "right")[int((x0 + x1) / 2 / WIDTH * 3)] == block["column"]
            assert ("top", "middle", "bottom")[int((y0 + y1) / 2 * 3)] == block["row"]
        scene = landscape_scene(Random(seed))
        for name in ("house", "car"):
            x0, y0, x1, y1 = scene.boxes_pixels(160, 120)[name][0]
            assert 0 <= x0 < x1 <= 160
            pixels = np.asarray(render(scene, 160, 120)).astype(int)[y0:y1, x0:x1].reshape(-1, 3)
            assert np.abs(pixels - COLOURS[scene.facts[name]]).sum(1).min() < 130


def test_a_scene_is_its_seed():
    first, again, other = (tower_scene(Random(seed), "pearl", "warm", "day") for seed in (1, 1, 2))
    assert first.digest() == again.digest() != other.digest()
    assert (np.asarray(render(first, 40, 30)) == np.asarray(render(again, 40, 30))).all()
