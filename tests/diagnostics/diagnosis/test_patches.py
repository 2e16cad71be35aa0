"""Rows of what the connector is given → patches → cells, on grids small enough to write down."""

import numpy as np

from diagnostics.diagnosis.patches import patches_of_cells, rows_of_patches
from finetune.families import ImageTokens
from finetune.families.base import TowerSequence
from finetune.families.parts.tower import tiled, whole_images, windows


def image(rows, columns, *, tiles=None, positions=None) -> ImageTokens:
    count = rows * columns
    boxes = np.zeros((count, 4))
    positions = np.arange(count) if positions is None else np.array(positions)
    return ImageTokens(positions, (rows, columns), boxes, (columns, rows), False, tiles=tiles)


def test_a_class_token_is_no_row():
    sequences = whole_images([4, 4], class_tokens=1)
    assert rows_of_patches(sequences, 1, 8, 2).tolist() == [4, 5, 6, 7]
    assert rows_of_patches(None, 1, 8, 2).tolist() == [4, 5, 6, 7]


def test_tiles_are_joined_to_the_picture():
    """Two tiles of 2 × 2 side by side: patches 0 1 4 5 and 2 3 6 7; the overview is image 1, before them."""
    sequences = tiled([(1, 2)], (2, 2), overview_first=True, class_tokens=1)
    assert rows_of_patches(sequences, 1, 12, 3).tolist() == [0, 1, 2, 3]
    assert rows_of_patches(sequences, 0, 12, 3).tolist() == [4, 5, 8, 9, 6, 7, 10, 11]


def test_windows_are_put_back_in_order():
    """One row of three blocks of 1 × 1 in windows of 2: all in order; two rows go by window."""
    sequences = windows([(1, 2, 3)], 1, 2)
    assert rows_of_patches(sequences, 0, 6, 1).tolist() == [0, 1, 4, 2, 3, 5]


def test_merged_patches_count_as_squares():
    """InternVL: two tiles of 4 × 4 patches, merged 2 × 2 before the connector: 2 × 4 squares."""
    sequences = tiled([(1, 2)], (4, 4), overview_first=False)
    assert rows_of_patches(sequences, 0, 12, 3).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert rows_of_patches(sequences, 1, 12, 3).tolist() == [8, 9, 10, 11]
    assert rows_of_patches([TowerSequence(np.zeros(6, int), np.arange(6))], 0, 4, 1) is None


def test_a_cell_is_a_square_of_patches():
    """2 × 3 cells of 2 × 2 patches in a canvas of 4 × 6."""
    found = patches_of_cells(image(2, 3), 24)
    assert found[0].tolist() == [0, 1, 6, 7] and found[4].tolist() == [14, 15, 20, 21]


def test_margins_of_a_square_are_told_by_where_its_tokens_stand():
    """2 × 4 cells in the middle of 4 × 4 tokens from 10 on."""
    found = patches_of_cells(image(2, 4, positions=range(14, 22)), 16, run=10)
    assert found[:, 0].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_margins_of_a_canvas_of_tiles_lie_on_both_sides():
    """1 × 2 tiles of 4 × 4 patches, one row above and one below cut off; pooled cells are of no one patch."""
    found = patches_of_cells(image(2, 8, tiles=(1, 2)), 32)
    assert found[[0, 8], 0].tolist() == [8, 16]
    assert patches_of_cells(image(2, 6, tiles=(1, 2)), 32) is None
    assert patches_of_cells(image(3, 8, tiles=(1, 2)), 32) is None  # an odd margin


def test_tiles_that_are_merged_have_no_margins():
    assert patches_of_cells(image(2, 4, tiles=(1, 2)), 32)[0].tolist() == [0, 1, 8, 9]
    assert patches_of_cells(image(1, 5), 24) is None
