"""How far and which way, by hand and against other ways to compute the same."""

import numpy as np
import pytest
from scipy.optimize import linprog

from diagnostics.measures.drift import cosine, drift, principal_plane, total_variation, wasserstein_cells

GRID = (2, 3)


def at(*shares):
    return np.array(shares, float)


def test_total_variation_and_cosine():
    assert total_variation(at(0.5, 0.5, 0), at(0.5, 0, 0.5)) == 0.5
    pairs = np.array([[0.75, 0.25, 0], [0, 0, 0]]), np.array([[0.25, 0.75, 0], [1, 0, 0]])
    np.testing.assert_allclose(cosine(*pairs), [0.6, 0])
    assert cosine(at(0.1, 0.2, 0.7), at(0.1, 0.2, 0.7)) == pytest.approx(1)


def test_wasserstein_counts_the_cells_walked():
    corner = at(1, 0, 0, 0, 0, 0)
    assert wasserstein_cells(corner, at(0.5, 0, 0, 0, 0, 0.5), GRID) == pytest.approx(1.5)
    assert wasserstein_cells(corner, at(0, 0, 0, 0, 0, 1), GRID) == pytest.approx(3)
    assert wasserstein_cells(corner, at(0, 0, 1, 0, 0, 0), GRID) == pytest.approx(2)  # along the row
    assert wasserstein_cells(corner, at(0, 0, 0, 1, 0, 0), GRID) == pytest.approx(1)  # below
    assert wasserstein_cells(corner, at(0, 0, 1, 0, 0, 0), (3, 2)) == pytest.approx(1)  # narrower: below
    assert wasserstein_cells(np.eye(12)[0], np.eye(12)[11], (3, 4)) == pytest.approx(5)  # corner to corner
    # The nearer of two ways to level out: .2 one step right, .2 one step left, no more.
    first, second = at(0.4, 0.1, 0, 0, 0.1, 0.4), at(0.2, 0.3, 0, 0, 0.3, 0.2)
    assert wasserstein_cells(first, second, GRID) == pytest.approx(0.4)


def test_wasserstein_keeps_leading_axes_and_is_zero_for_the_same():
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.ones(6), (2, 4))
    assert (wasserstein_cells(maps, maps.copy(), GRID) == 0).all()
    shifted = np.roll(maps, 1, axis=1)
    found = wasserstein_cells(maps, shifted, GRID)
    assert found.shape == (2, 4) and (found > 0).all()
    assert found[1, 2] == pytest.approx(wasserstein_cells(maps[1, 2], shifted[1, 2], GRID))
    np.testing.assert_allclose(found, wasserstein_cells(shifted, maps, GRID))
    assert wasserstein_cells(np.ones((2, 1)), np.ones((2, 1)), (1, 1)).tolist() == [0, 0]


@pytest.mark.parametrize("grid", [(3, 5), (1, 7), (6, 2)])
def test_wasserstein_is_the_transport_of_all_pairs(grid):
    count = grid[0] * grid[1]
    rng = np.random.default_rng(count)
    first, second = rng.dirichlet(np.full(count, 0.3), 2)
    places = np.stack(np.unravel_index(np.arange(count), grid), -1)
    costs = np.abs(places[:, None] - places).sum(-1)
    leave, arrive = np.kron(np.eye(count), np.ones(count)), np.kron(np.ones(count), np.eye(count))
    judge = linprog(costs.ravel(), A_eq=np.concatenate([leave, arrive]), b_eq=np.concatenate([first, second]))
    assert wasserstein_cells(first, second, grid) == pytest.approx(judge.fun, rel=1e-6)


def test_wasserstein_sees_a_small_move():
    first = np.full(6, 1 / 6)
    second = first + at(1e-6, 0, -1e-6, 0, 0, 0)
    assert wasserstein_cells(first, second, GRID) == pytest.approx(2e-6, rel=1e-6)


def test_wasserstein_takes_what_fp32_leaves_of_a_sum():
    first, second = at(1, 0, 0, 0, 0, 0).astype(np.float32), at(0, 1.00001, 0, 0, 0, 0).astype(np.float32)
    assert wasserstein_cells(first, second, GRID) == pytest.approx(1, abs=1e-4)


def test_wasserstein_says_what_is_wrong(shapes_unchecked):
    with pytest.raises(ValueError, match=r"shapes \(6,\) and \(6,\), expected the same, with 8 cells"):
        wasserstein_cells(np.ones(6), np.ones(6), (2, 4))
    with pytest.raises(ValueError, match="expected the same"):
        wasserstein_cells(np.ones((1, 6)), np.ones(6), GRID)
    with pytest.raises(ValueError, match="totals 1 apart.*without any attention"):
        wasserstein_cells(at(1, 0, 0, 0, 0, 0), np.zeros(6), GRID)


def test_drift_tells_more_at_the_image_from_elsewhere_in_it():
    before, after = np.array([[0.5, 0.5, 0, 0, 0, 0]] * 2), np.array([[0.5, 0, 0.5, 0, 0, 0]] * 2)
    after[1] = before[1]
    found = drift(before, after, at(0.2, 0.4), at(0.4, 0.1), GRID)
    np.testing.assert_allclose(found.more_at_image, [0.2, -0.3])
    np.testing.assert_allclose(found.elsewhere_in_image, [0.3 * 0.5, 0])
    np.testing.assert_allclose(found.jensen_shannon_nats, [0.5 * np.log(2), 0])
    np.testing.assert_allclose(found.wasserstein_cells, [0.5, 0], atol=1e-9)
    np.testing.assert_allclose(found.cosine, [0.5, 1])


def test_drift_of_a_map_without_any_attention_is_of_its_amount_alone():
    """Of three rows the first looks nowhere after, the second nowhere before; fp16 rounds what is small to 0."""
    before, after = np.array([[0.5, 0.5, 0, 0, 0, 0]] * 3), np.array([[0.5, 0, 0.5, 0, 0, 0]] * 3)
    after[0], before[1] = 0, 0
    found = drift(before, after, at(0.2, 0, 0.2), at(0, 0.4, 0.4), GRID)
    np.testing.assert_allclose(found.more_at_image, [-0.2, 0.4, 0.2])
    for numbers, expected in zip(found[1:], (0.15, 0.5 * np.log(2), 0.5, 0.5), strict=True):
        np.testing.assert_allclose(numbers, [np.nan, np.nan, expected], atol=1e-9)


def test_the_two_parts_of_drift_are_all_of_it():
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(6), 2)
    parts = (0.5 - 0.2) * (p + q) / 2 + (0.5 + 0.2) / 2 * (q - p)
    np.testing.assert_allclose(parts, 0.5 * q - 0.2 * p)
    found = drift(p, q, np.array(0.2), np.array(0.5), GRID)
    assert found.more_at_image == pytest.approx(parts.sum())
    assert found.elsewhere_in_image == pytest.approx(np.abs(parts - 0.3 * (p + q) / 2).sum() / 2)


def test_principal_plane_of_a_line_has_one_axis():
    points, share = principal_plane(np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]]))
    np.testing.assert_allclose(points, [[0.5**0.5, 0], [0, 0], [-(0.5**0.5), 0]], atol=1e-12)
    assert share == pytest.approx(1) and (points[:, 1] == 0).all()


def test_principal_plane_keeps_distances_and_says_what_it_leaves_out():
    # Moves of 3, 2 and 1 along three axes that have nothing to do with each other.
    moves = np.array([[3, 0, 0, 0], [-3, 0, 0, 0], [0, 2, 0, 0], [0, -2, 0, 0], [0, 0, 1, 0], [0, 0, -1, 0]])
    points, share = principal_plane(moves / 10 + [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(points, [[0.3, 0], [-0.3, 0], [0, 0.2], [0, -0.2], [0, 0], [0, 0]], atol=1e-12)
    assert share == pytest.approx((18 + 8) / (18 + 8 + 2))


def test_principal_plane_has_its_signs_fixed():
    rng = np.random.default_rng(3)
    series = rng.dirichlet(np.ones(7), 5)
    points, _ = principal_plane(series)
    directions = np.linalg.lstsq(points, series - series.mean(0), rcond=None)[0]
    for direction in directions:
        assert direction[np.abs(direction).argmax()] > 0
    np.testing.assert_allclose(principal_plane(series[::-1]).points, points[::-1], atol=1e-9)
    np.testing.assert_allclose(principal_plane(2 * series.mean(0) - series).points, -points, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_principal_plane_of_few_or_equal_steps(steps):
    still = np.full((steps, 10), 0.1)  # the mean of three is 0.10000000000000002
    points, share = principal_plane(still)
    assert np.array_equal(points, np.zeros((steps, 2))) and share == 1


def test_principal_plane_of_two_steps():
    points, share = principal_plane(np.array([[1.0, 0, 0], [0, 1, 0]], np.float32))
    np.testing.assert_allclose(points, [[0.5**0.5, 0], [-(0.5**0.5), 0]], atol=1e-7)
    assert share == pytest.approx(1)
