"""The drawings that the page offers are the demo's own, and their questions are those that it was taught."""

from random import Random

import numpy as np
import pytest

from diagnostics.web.example_questions import examples
from finetune.demo.general_scenes import landscape_scene
from finetune.demo.questions import TOPICS, plain
from finetune.demo.room_scenes import room_scene
from finetune.demo.shapes import render
from finetune.demo.tower_scenes import tower_scene

SCENES = (
    (tower_scene(Random("night"), "pearl", "cool", "night"), "tower"),
    (tower_scene(Random("day"), "pearl", "warm", "day"), "tower"),
    (room_scene(Random("cat"), "on", "warm"), "relation"),
    (landscape_scene(Random("weather")), "weather"),
)


@pytest.mark.parametrize("number", range(4))
def test_an_example_is_a_scene_of_the_demo(number):
    scene, topic = SCENES[number]
    example = examples()[number]
    picture = example.upload.open()
    difference = np.asarray(picture, float) - np.asarray(render(scene, *picture.size), float)
    assert picture.size == (480, 336) and np.abs(difference).mean() < 3  # it is stored as JPEG
    for language, question in example.questions.items():
        assert question in {plain(asked) for asked in TOPICS[topic].asked[language]}
