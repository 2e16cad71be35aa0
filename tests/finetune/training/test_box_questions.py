"""Which samples ask for a box, and how answers to them are counted, by source."""

from typing import Any

import pytest
from PIL import Image

from finetune.families.qwen2_5_vl import Qwen25VLFamily
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Part, Turn
from finetune.training.box_questions import BoxTarget, box_target, scores_by_source
from tests.finetune.families.tiny_families import ALL

FAMILY = Qwen25VLFamily()


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ALL["qwen2.5-vl"].processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> ImageRef:
    path = tmp_path_factory.mktemp("pictures") / "room.png"
    Image.new("RGB", (30, 41)).save(path)  # resized to whole cells of 8: 32 × 40
    return ImageRef("room.png", path)


def box(label: str | None, *boxes: tuple[float, float, float, float], **more: Any) -> BoxRef:
    return BoxRef("as written", boxes, label, style="json", **more)


def target(
    processor: Any, picture: ImageRef, *answer: Part, before: tuple[Part, ...] = ()
) -> BoxTarget | None:
    turns = (Turn("user", (picture, *before, "where?")), Turn("assistant", answer))
    return box_target(Conversation(turns), processor, FAMILY)


def test_a_single_box_is_a_target_in_the_family_s_numbers(processor: Any, picture: ImageRef):
    cat, dog = box("the cat", (0.5, 0.25, 1.0, 0.5)), box("the dog", (0.25, 0.0, 0.5, 0.75))
    found = target(processor, picture, "here: ", dog, before=(cat, dog, box("the rug")))
    assert found is not None
    asked = found.said("...")
    assert (asked.right, dict(asked.others)) == ((8, 0, 16, 30), {"the cat": (16, 10, 32, 20)})
    assert found.writing.frame.unit == "pixels of the resized picture"
    assert [(one.unit, one.extent) for one in found.units] == [
        ("thousandths of the picture", (1000, 1000)),
        ("pixels of the file", (30, 41)),
        ("fractions of the picture", (1, 1)),
        ("pixels of the resized picture", (32, 40)),
    ]
    assert found.fractions_said('{"bbox_2d": [16, 10, 32, 20]}') == (0.5, 0.25, 1.0, 0.5)
    assert found.fractions_said("<box>(16,10),(32,20)</box>") is None


@pytest.mark.parametrize(
    "answer",
    [
        ("no",),
        (box("the dogs", (0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5)),),
        (box("a", (0.0, 0.0, 0.5, 0.5)), box("b", (0.5, 0.0, 1.0, 0.5))),
        (box("the dog", (0.5, 0.5, 0.5, 0.5), key="point_2d"),),
        (box("the dog"),),
    ],
)
def test_words_points_and_several_boxes_are_no_target(
    processor: Any, picture: ImageRef, answer: tuple[Part, ...]
):
    assert target(processor, picture, *answer) is None


def test_boxes_are_counted_by_source(processor: Any, picture: ImageRef):
    dog = target(processor, picture, box("the dog", (0.25, 0.0, 0.5, 0.75)))
    scores = scores_by_source([
        ("spheres", dog, '{"bbox_2d": [8, 0, 16, 30]}'),
        ("base", None, "yes"),
        ("rooms", dog, "there"),
        ("spheres", dog, '{"bbox_2d": [20, 0, 28, 30]}'),
    ])  # fmt: skip
    assert {name: (one.right, one.asked) for name, one in scores.items()} == {
        "spheres": (1, 2),
        "rooms": (0, 1),
    }
