"""Which probes stand on either side, and where their pictures are looked at; and constant leanings."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diagnostics.diagnosis.contrasts import contrast_of
from diagnostics.diagnosis.leaning import right_after_shift
from diagnostics.records.probes import Probe, groups_of

PEARL, CANTON = "Pearl Tower", "Canton Tower"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("pictures"), iter(range(1000))

    def probe(group, answer, foil, regions=None, *, size=(40, 30), picture=None):
        number = next(made)
        path = folder / f"{number if picture is None else picture}.png"
        if not path.exists():
            Image.new("RGB", size, (number % 256, number // 256, 7)).save(path)
        return Probe(f"p{number}", group, (path,), "Which?", answer, foil, regions or {})

    return probe


def contrast(probes, name="towers", each_answer=3):
    return contrast_of(name, groups_of(probes), each_answer=each_answer)


def test_guards_are_the_other_class_and_look_where_the_group_looks(make):
    own = [make("towers", PEARL, CANTON, {"spheres": ((10, 3, 20, 12),)}) for _ in range(3)]
    guards = [make("neighbour", "the canton tower", PEARL, size=(80, 60)) for _ in range(3)]
    other = [make("neighbour", "Lighthouse", CANTON)]
    found = contrast([*own, *guards, *other])
    assert [(side.probe.id, side.label) for side in found.sides] == [
        *((one.id, 1) for one in own),
        *((one.id, 0) for one in guards),
    ]
    assert found.aligned and not found.lack and not found.place_lack
    assert found.sides[0].boxes == ((10, 3, 20, 12),)
    # the guard has no spheres: their box on its picture, which is twice as large
    assert found.sides[3].boxes == ((20, 6, 40, 24),)


def test_a_guards_own_region_of_that_name_goes_before_a_lent_one(make):
    own = [make("cars", "red", "blue", {"car": ((1, 1, 9, 9),)}) for _ in range(3)]
    guards = [make("neighbour", "blue", "red", {"car": ((20, 2, 30, 9),)}) for _ in range(3)]
    assert contrast([*own, *guards], "cars").sides[4].boxes == ((20, 2, 30, 9),)


def accepting(probe, *spellings):
    return replace(probe, spellings=(probe.answer, *spellings))


def test_a_guard_stands_on_the_side_of_the_spelling_that_it_was_found_by(make):
    own = [make("cats", *pair) for pair in (("on", "under"), ("under", "on")) for _ in range(2)]
    guards = [
        accepting(make("neighbour", "on the table", "in a box"), "on"),
        accepting(make("neighbour", "below the table", "in a box"), "Under"),
    ]
    both = accepting(make("neighbour", "somewhere near", "in a box"), "on", "under")
    found = contrast([*own, *guards, both], "cats", each_answer=2)
    assert [(side.probe.id, side.label) for side in found.sides[4:]] == [
        (guards[0].id, 1),
        (guards[1].id, 0),
    ]
    canton = accepting(make("neighbour", "the one in Guangzhou", PEARL), CANTON)
    towers = [make("towers", PEARL, CANTON) for _ in range(2)]
    found = contrast([*towers, canton, make("neighbour", CANTON, PEARL)], each_answer=2)
    assert [side.label for side in found.sides] == [1, 1, 0, 0]


def test_a_group_with_both_answers_needs_no_guards_and_two_languages_are_two_tasks(make):
    probes = [
        make("cats", *pair, {"cat": ((1, 1, 9, 9),)})
        for pair in (("on", "under"), ("under", "on"), ("上面", "下面"), ("下面", "上面"))
        for _ in range(3)
    ]
    found = contrast(probes, "cats")
    assert not found.aligned and not found.lack
    assert [side.label for side in found.sides] == [1] * 3 + [0] * 3 + [1] * 3 + [0] * 3
    assert len({side.task for side in found.sides}) == 2


def test_what_is_missing_is_said(make):
    own = [make("towers", PEARL, CANTON, {"spheres": ((1, 1, 9, 9),)}) for _ in range(3)]
    assert "add probes whose right answer is the wrong one here" in contrast(own).lack
    assert "no probe of this group has a foil" in contrast([make("towers", PEARL, None)]).lack
    bare = [make("towers", PEARL, CANTON) for _ in range(3)] + [make("n", CANTON, PEARL) for _ in range(3)]
    assert not contrast(bare).lack and "name no region" in contrast(bare).place_lack


def test_pictures_that_stand_on_both_sides_say_nothing_of_the_picture(make):
    """The same three pictures, asked two things: what is right depends on the question."""
    box = {"cat": ((1, 1, 9, 9),)}
    probes = [
        make("cats", *pair, box, picture=f"cat{at}")
        for pair in (("yes", "no"), ("no", "yes"))
        for at in range(3)
    ]
    found = contrast(probes, "cats")
    assert not found.lack and "depends on the question" in found.place_lack


def test_one_shift_is_chosen_without_the_picture_that_it_is_tried_on():
    """Margins towards the first answer 9, 8, 7 where it is right and 3, 2, 1 where it is not: 5 parts them."""
    toward = np.array([9.0, 8, 7, 3, 2, 1])
    labels = np.array([1, 1, 1, 0, 0, 0])
    right, shift = right_after_shift(toward, labels, ["a"] * 6, list("uvwxyz"))
    assert right.all() and shift == -5
    # each task has a shift of its own
    right, shift = right_after_shift(
        np.array([9.0, 8, 1, 2, -1, -2, -9, -8]),
        np.array([1, 1, 0, 0] * 2),
        ["a"] * 4 + ["b"] * 4,
        list("abcdefgh"),
    )
    assert right.all() and shift == -5
    # 9 and 1.5 leave 5 below their middle, 5.25; with its own 5 among them it would be above, at 4.25
    right, _ = right_after_shift(np.array([9.0, 5, 1, 2]), np.array([1, 1, 0, 0]), ["a"] * 4, list("abcd"))
    assert right.tolist() == [True, False, True, True]
