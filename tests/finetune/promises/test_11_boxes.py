"""Trouble: shifted boxes. One family reads pixels of the resized picture, others thousandths, and data has either.

Promise: boxes are converted in one place, after the resize, to what the family was trained on: absolute pixels of the
resized picture for Qwen2.5-VL, thousandths for Qwen-VL, Qwen2-VL and Qwen3-VL.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.samples.source import read
from tests.finetune.families.tiny_families import ALL, CELL

SIZES = [
    (90, 33),
    (33, 90),
    (131, 77),
    (301, 203),
    (50, 31),
]  # wide, tall, odd, over the budget, under a cell's border
BUDGETS = [(2 * CELL * CELL, 24 * CELL * CELL), (CELL * CELL, 6 * CELL * CELL)]


def boxes_of(width: int, height: int) -> list[list[int]]:
    """One in the middle, the whole picture, and one at the lower right border."""
    return [
        [width // 4, height // 5, width // 2, height - 7],
        [0, 0, width, height],
        [width - 9, height - 11, width, height],
    ]


def written(folder: Path, size: tuple[int, int], style: str) -> Path:
    """A data file with three boxes in pixels of the picture as a person sees it, or in thousandths of it."""
    width, height = size
    Image.new("RGB", size, (9, 90, 200)).save(folder / "a.png")
    boxes = boxes_of(width, height)
    if style == "json":
        said = json.dumps([{"bbox_2d": box, "label": "it"} for box in boxes])
    else:
        sides = (width, height, width, height)
        scaled = [[round(1000 * v / s) for v, s in zip(box, sides, strict=True)] for box in boxes]
        said = "".join(f"<ref>it</ref><box>({a},{b}),({c},{d})</box>" for a, b, c, d in scaled)
    turns = [{"from": "user", "value": "<img>a.png</img>where?"}, {"from": "assistant", "value": said}]
    path = folder / "data.json"
    path.write_text(json.dumps([{"id": "a", "conversations": turns}]))
    return path


def numbers(said: str) -> np.ndarray:
    pattern = r"\[(\d+), (\d+), (\d+), (\d+)\]|\((\d+),(\d+)\),\((\d+),(\d+)\)"
    found = [[int(one) for one in match if one] for match in re.findall(pattern, said)]
    return np.array(found, float)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("style", ["json", "markup"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*ALL])
def test_boxes_come_back_to_where_they_were_drawn(name, size, style, budget, tmp_path):
    """Pixels of the file → what is learned → pixels of the file, within one pixel of the picture the model gets (one
    thousandth, where that is more)."""
    tiny = ALL[name]
    processor = tiny.processor(tmp_path)
    if name != "qwen-vl":
        tiny.family.set_pixel_budget(processor, min_pixels=budget[0], max_pixels=budget[1])
    units = "pixels" if style == "json" else None
    (sample,) = read(written(tmp_path, size, style), box_units=units, say=lambda _: None)
    found = tiny.family.encode(processor, sample)
    learned = processor.tokenizer.decode([int(one) for one in found.labels if one != -100])
    corners = numbers(learned)
    assert corners.shape == (3, 4)

    rows, columns = found.images[0].grid
    resized = np.array([columns * CELL, rows * CELL] * 2, float)
    original = np.array([*size, *size], float)
    scale = resized if name == "qwen2.5-vl" else np.full(4, 1000.0)
    back = corners / scale * original
    step = original / np.minimum(resized, 1000) if name == "qwen2.5-vl" else original / 1000
    thousandth = original / 1000 if style == "markup" else 0
    assert (np.abs(back - np.array(boxes_of(*size))) <= step + thousandth + 1e-9).all()
    assert (corners <= scale).all()


def test_only_qwen2_5_vl_s_numbers_follow_the_resize(tmp_path):
    """The same box under two budgets: in other families the answer to learn stays as it is."""
    said = {}
    for name, tiny in ALL.items():
        (sample,) = read(written(tmp_path, (131, 77), "json"), box_units="pixels", say=lambda _: None)
        for budget in BUDGETS:
            processor = tiny.processor(tmp_path)
            if name != "qwen-vl":
                tiny.family.set_pixel_budget(processor, min_pixels=budget[0], max_pixels=budget[1])
            found = tiny.family.encode(processor, sample)
            answer = found.input_ids[slice(*found.turn_spans[-1])].tolist()
            said.setdefault(name, set()).add(processor.tokenizer.decode(answer))
    assert {name for name, answers in said.items() if len(answers) == 2} == {"qwen2.5-vl"}


def test_data_that_does_not_say_its_units_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--box_units pixels or --box_units thousandths"):
        read(written(tmp_path, (90, 33), "json"), say=lambda _: None)
