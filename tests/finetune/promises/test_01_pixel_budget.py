"""Trouble: out of memory, because ``max_pixels`` was set in a place that nobody reads.

Promise: one pixel budget, written into the processor that reads pictures and saved with it; what it gives is shown.
"""

# ruff: noqa: F811 (fixtures of another file)

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from finetune.model.checkpoint import load_processor
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.families.tiny_families import ALL, CELL, GRIDS, MOST_PIXELS
from tests.finetune.test_program import program  # noqa: F401  (fixture)

MOST = 6 * CELL * CELL


def picture(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


def about(*pictures: Image.Image) -> Conversation:
    refs = tuple(ImageRef(f"{i}.png", one) for i, one in enumerate(pictures))
    return Conversation((Turn("user", (*refs, "?")), Turn("assistant", ("yes",))))


@pytest.fixture(params=[*GRIDS])
def tiny(request):
    return GRIDS[request.param]


def test_two_places_that_disagree_become_one(tiny, tmp_path):
    """The trouble itself: an attribute overrules ``size`` in calls of transformers', while all else reads ``size``."""
    processor = tiny.processor(tmp_path)
    image = processor.image_processor
    image.max_pixels = MOST
    assert image.size["longest_edge"] == MOST_PIXELS
    assert image(picture(120, 90), return_tensors="pt")["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert image.get_number_of_image_patches(90, 120) == 5 * 4 * 4

    tiny.family.set_pixel_budget(processor, min_pixels=None, max_pixels=12 * CELL * CELL)
    assert image(picture(120, 90), return_tensors="pt")["image_grid_thw"].tolist() == [[1, 6, 8]]
    assert image.get_number_of_image_patches(90, 120) == 6 * 8
    assert "max_pixels" not in image.to_dict()


def test_the_budget_is_kept_by_pixels_tokens_and_the_saved_processor(tiny, tmp_path):
    processor = tiny.processor(tmp_path)
    tiny.family.set_pixel_budget(processor, min_pixels=None, max_pixels=MOST)
    processor.save_pretrained(tmp_path)
    for read in (processor, tiny.family.load_processor(str(tmp_path))):
        found = tiny.family.encode(read, about(picture(120, 90), picture(40, 95)))
        assert [image.grid for image in found.images] == [(2, 2), (3, 1)]
        assert (found.media["image_grid_thw"].prod(1) // 4).tolist() == [4, 3]
        assert len(found.media["pixel_values"]) == 4 * (4 + 3)
        # Transformers' own image processor, from the same folder: no second place that disagrees.
        own = read.image_processor(picture(120, 90), return_tensors="pt")["image_grid_thw"]
        assert own.tolist() == found.media["image_grid_thw"][:1].tolist()


def test_a_run_trains_and_saves_with_the_budget_of_its_flags(program: ModuleType, tmp_path: Path, capsys):
    tiny = GRIDS["qwen2.5-vl"]
    model = tiny.write(tmp_path / "model")
    records = []
    for i in range(4):
        picture(90, 60).save(tmp_path / f"{i}.png")
        turns = [{"from": "user", "value": f"<img>{i}.png</img>?"}, {"from": "assistant", "value": "yes"}]
        records.append({"id": str(i), "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(records))
    flags = [
        "--model_name_or_path", str(model), "--data_path", str(tmp_path / "data.json"), "--output_dir",
        str(tmp_path / "out"), "--use_lora", "True", "--lora_r", "2", "--max_steps", "1", "--save_steps", "1",
        "--disable_tqdm", "True", "--min_pixels", str(CELL * CELL), "--max_pixels", str(MOST),
    ]  # fmt: skip
    assert program.main(flags) == 0
    assert "tokens per picture: 6" in capsys.readouterr().out
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        size = load_processor(folder).image_processor.size
        assert (size["shortest_edge"], size["longest_edge"]) == (CELL * CELL, MOST)
    assert load_processor(model).image_processor.size["longest_edge"] == MOST_PIXELS


def test_a_budget_that_cannot_be_kept_ends_the_run_at_once(program: ModuleType, tmp_path: Path, capsys):
    """Qwen-VL's pictures all have one size: the flag is refused, not ignored."""
    model = ALL["qwen-vl"].write(tmp_path / "model")
    picture(20, 10).save(tmp_path / "a.png")
    turns = [{"from": "user", "value": "<img>a.png</img>?"}, {"from": "assistant", "value": "yes"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    flags = [
        "--model_name_or_path", str(model), "--data_path", str(tmp_path / "data.json"), "--output_dir",
        str(tmp_path / "out"), "--use_lora", "True", "--max_pixels", "1000",
    ]  # fmt: skip
    assert program.main(flags) != 0
    assert "--max_pixels: qwen-vl squeezes every picture to 12 × 12 pixels" in capsys.readouterr().err
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
