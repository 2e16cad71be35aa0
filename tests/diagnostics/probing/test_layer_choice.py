"""A comparison finds nothing where nothing changed, and what was planted where it was; the committed measurement of
how often says so too. The real tests and verdicts on made-up groups, fewer than ``benchmarks/calibration.py``."""

import importlib.util
import json
import sys
from dataclasses import asdict
from math import comb
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmark_calibration", ROOT / "benchmarks" / "calibration.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


calibration = load_benchmark()


def committed() -> dict:
    return json.loads(sorted((ROOT / "benchmarks" / "results").glob("calibration_*.json"))[-1].read_text())


def most_by_chance(repeats: int, rate: float = 0.05) -> int:
    """What a true rate exceeds in fewer than one of a thousand tests."""
    below = 0.0
    for found in range(repeats):
        below += comb(repeats, found) * rate**found * (1 - rate) ** (repeats - found)
        if below > 0.999:
            return found
    return repeats


def test_a_checkpoint_against_itself_has_no_findings():
    rng = np.random.default_rng(7)
    groups = {
        name: calibration.same(calibration.unchanged(rng, 40, 4, 6, noise))
        for name, noise in calibration.MEASURED.items()
    }
    for name, found in calibration.compare_groups(groups).items():
        assert found.verdict == ("kept" if name in ("neighbour", "retention") else "it did not move")
        assert found.risen_layer is None and (found.heads == 1).all() and found.heads.shape == (4, 6)


@pytest.mark.parametrize("kind", calibration.NULLS)
def test_where_nothing_changed_little_is_found(kind):
    repeats = 24
    rates = calibration.null_rates(kind, (4, 6), repeats, seed=11)
    assert rates["any_corrected"] == 0
    assert rates["either"] * repeats <= most_by_chance(repeats)
    assert rates["any_group_whose_attention_rose"] * repeats <= most_by_chance(repeats)


def test_many_heads_find_no_more():
    repeats = 8
    rates = calibration.null_rates("same noise", (12, 24), repeats, seed=3)
    assert rates["any_significant_head"] * repeats <= most_by_chance(repeats)


def test_a_planted_gain_is_found():
    noise = calibration.MEASURED["retention"]
    found = calibration.power((4, 6), noise, 40, 0.3, 24)
    assert found["attention_rose"] >= 0.9 and found["heads_named"] >= 0.85
    one_layer = calibration.power((4, 6), noise, 40, 0.3, 24, planted_layers=1)
    assert one_layer["attention_rose"] >= 0.85
    nothing = calibration.power((4, 6), noise, 40, 0.0, 40)
    assert nothing["attention_rose"] * 40 <= most_by_chance(40) and nothing["heads_named"] < 0.02
    falling = calibration.power((4, 6), noise, 40, -0.3, 20)
    assert falling["attention_rose"] == 0 and falling["heads_named"] > 0.85


def test_a_real_correction_is_called_one():
    """The permuted correction before its coins: wrong to right, three times the attention, a cost that appears."""
    rng = np.random.default_rng(5)
    groups = {
        name: calibration.unchanged(rng, 40, 4, 6, noise) for name, noise in calibration.MEASURED.items()
    }
    corrected = calibration.correction(rng, 40, 4, 6, calibration.MEASURED["sphere-building"])
    groups["sphere-building"] = corrected
    found = calibration.compare_groups(groups)
    assert (
        found["sphere-building"].verdict == "corrected" and found["sphere-building"].risen_layer is not None
    )
    assert found["spatial-relation"].verdict == "it did not move"


def test_the_noise_of_a_run_is_taken_apart():
    rng = np.random.default_rng(1)
    level = rng.normal(0, 1.5, (4000, 1, 1))
    change = (
        0.6 * rng.normal(size=(4000, 1, 1))
        + 0.3 * rng.normal(size=(4000, 3, 1))
        + 0.2 * rng.normal(size=(4000, 3, 5))
    )
    logs = np.stack([level + np.zeros((1, 3, 5)), level + 7 + change])
    parts = calibration._components(logs)
    expected = {"level": 1.5, "probe": 0.6, "layer": 0.3, "head": 0.2, "kurtosis": 3.0}
    assert parts == pytest.approx(expected, abs=0.15) and parts["head"] == pytest.approx(0.18, abs=0.03)
    with pytest.raises(ValueError, match="found 0 folders attention/step-\\*, expected at least 2"):
        calibration.measure_noise(ROOT / "tests")


def test_the_committed_results_hold_what_is_claimed():
    results = committed()
    assert results["noise"] == {name: asdict(noise) for name, noise in calibration.MEASURED.items()}
    itself, *nulls = results["null"]
    assert itself["what"] == "itself" and itself["either"] == itself["any_group_whose_attention_rose"] == 0
    assert sum(one["comparisons"] for one in nulls) >= 200
    for one in nulls:
        assert one["comparisons"] >= 200 and one["any_corrected"] <= 0.01
        assert one["either"] <= 0.05
    everywhere = {
        one["noise"]: one["attention_rose"]
        for one in results["power_40_probes_gain_30_percent"]
        if one["key_layers_that_rise"] == calibration.KEY_LAYERS
    }
    assert set(everywhere) == set(calibration.MEASURED) and min(everywhere.values()) >= 0.95


def test_the_figure_is_drawn(tmp_path):
    calibration.draw(committed(), tmp_path / "power.png")
    assert (tmp_path / "power.png").stat().st_size > 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["power.png"]
