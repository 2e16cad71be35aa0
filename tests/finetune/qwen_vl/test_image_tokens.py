"""Which pixels each cell of a picture stands for: said by the family, proven by the patches that change."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from finetune.families import family_of
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_processor

SIDE = 6  # cells a row and a column: 24 pixels in patches of 4


def encoded(model, processor, picture):
    turns = (Turn("user", ("Picture 1: ", ImageRef("a.png", picture), "\nx")), Turn("assistant", ("y",)))
    return family_of(model.config).encode(processor, Conversation(turns))


@pytest.mark.parametrize("size", [(240, 96), (96, 240), (131, 77)])
def test_a_marked_cell_is_the_patch_that_changes(size, tmp_path):
    """Wide, tall and odd pictures: painting cell (1, 4) changes patch 1 · 6 + 4 of the tower and no other."""
    model, processor = tiny_model(), tiny_processor(tmp_path)
    plain = Image.new("RGB", size, (90, 120, 150))
    image = encoded(model, processor, plain).images[0]
    assert image.grid == (SIDE, SIDE) and image.image_size_pixels == size
    cell = SIDE + 4
    x0, y0, x1, y1 = image.cell_boxes_pixels[cell]
    assert (x0, y0) == pytest.approx((size[0] * 4 / SIDE, size[1] / SIDE))
    assert (x1, y1) == pytest.approx((size[0] * 5 / SIDE, size[1] * 2 / SIDE))
    marked = plain.copy()
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    reach = (x1 - x0) / 8, (y1 - y0) / 8
    spot = (middle[0] - reach[0], middle[1] - reach[1], middle[0] + reach[0], middle[1] + reach[1])
    ImageDraw.Draw(marked).rectangle(spot, fill=(255, 0, 0))
    conv = model.transformer.visual.conv1
    with torch.no_grad():
        patches = [conv(encoded(model, processor, one).media["pixel_values"])[0] for one in (plain, marked)]
    moved = (patches[0] - patches[1]).abs().sum(0).flatten().numpy()
    assert np.argmax(moved) == cell and moved[cell] > 5 * np.delete(moved, cell).max()
