"""Any number of checkpoints: numbers over steps from made-up records, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.trajectory import (
    Evolution,
    Records,
    evenly_chosen,
    evolution_of,
    series_of,
    strip_maps,
)
from diagnostics.drawing.colours import series_scale
from diagnostics.records.probes import Probe
from tests.diagnostics.show_samples import LAYERS, image_tokens, probes, record, records

STEPS = (0, 10, 30)
CELLS = {0: 20, 10: 14, 30: 8}  # where the spheres' probes look; the sphere is cell 8 (row 1, column 2)


def checkpoints(of: list[Probe]) -> dict[int, Records]:
    """Attention walks up column 2; the spheres' margin goes -2, 0, 4, that of the others stays 1."""
    margins = {0: -2.0, 10: 0.0, 30: 4.0}
    return {
        step: {
            probe.id: record(
                probe,
                step,
                cell=CELLS[step] if probe.foil == "广州塔" else 20,
                strength=0.5,
                margin=margins[step] if probe.foil == "广州塔" else 1.0,
                said=f"at {step}",
            )
            for probe in of
        }
        for step in STEPS
    }


@pytest.fixture
def of(tmp_path: Path) -> list[Probe]:
    return probes(tmp_path, per_group=2)


@pytest.fixture
def evolution(of: list[Probe]) -> Evolution:
    # in any order: a mapping of steps is put into the order of training
    found = checkpoints(of)
    return evolution_of({step: found[step] for step in (30, 0, 10)})


def test_checkpoints_stand_in_the_order_of_training(evolution: Evolution) -> None:
    assert evolution.steps == STEPS and evolution.layers == LAYERS
    assert evolution.names == ("base", "checkpoint-10", "checkpoint-30")
    assert [one.step for one in evolution.of("retention-1")] == [0, 10, 30]


def test_answers_over_steps(of: list[Probe], evolution: Evolution) -> None:
    series = series_of(of, evolution)
    assert series["steps"] == [0, 10, 30] and series["names"][2] == "checkpoint-30"
    # a margin of 0 is no right answer
    assert series["accuracy"] == {"sphere-building": [0.0, 0.0, 1.0], "retention": [1.0, 1.0, 1.0]}
    assert series["margin_nats"]["sphere-building"] == pytest.approx([-2.0, 0.0, 4.0])


def test_attention_over_steps(of: list[Probe], evolution: Evolution) -> None:
    series = series_of(of, evolution)
    elsewhere, there = 0.5 / 23 * 24, 0.5 * 24
    # the other group has no region
    assert set(series["enrichment"]) == {"sphere-building"}
    assert set(series["enrichment"]["sphere-building"]) == {"1", "3"}
    assert series["enrichment"]["sphere-building"]["3"] == pytest.approx([elsewhere, elsewhere, there])
    assert series["visual_share"]["1"] == pytest.approx([5 / 12] * 3)


def test_key_layers_have_their_own_numbers(of: list[Probe]) -> None:
    found = checkpoints(of)
    share = np.zeros((4, 2), np.float32)
    share[1], share[3] = [0.2, 0.4], [0.6, 0.8]
    found[10] = {name: replace(one, visual_share=share) for name, one in found[10].items()}
    shares = series_of(of, evolution_of(found))["visual_share"]
    assert shares["1"][1] == pytest.approx(0.3) and shares["3"][1] == pytest.approx(0.7)


def test_drift_is_measured_from_the_first_step(of: list[Probe], evolution: Evolution) -> None:
    drift = series_of(of, evolution)["drift_jsd_nats"]["1"]
    # two cells of p and q swap .5 and .5/23, half of the probes do not move at all
    p, q = 0.5, 0.5 / 23
    middle = (p + q) / 2
    distance = p * np.log(p / middle) + q * np.log(q / middle)
    assert drift == pytest.approx([0.0, distance / 2, distance / 2])


def test_a_probe_walks_in_its_principal_plane(of: list[Probe], evolution: Evolution) -> None:
    series = series_of(of, evolution)
    assert set(series["trajectories"]) == {probe.id for probe in of}
    path = series["trajectories"]["sphere-building-0"]
    points = np.array(path["points"])
    assert points.shape == (3, 2) and path["explained"] == pytest.approx(1.0)
    # three maps that differ in the same way from each other: an equilateral triangle, both key layers side by side
    sides = [np.linalg.norm(points[i] - points[j]) for i, j in ((0, 1), (1, 2), (0, 2))]
    assert sides == pytest.approx([np.sqrt(2 * 2) * (0.5 - 0.5 / 23)] * 3)
    assert np.allclose(series["trajectories"]["retention-0"]["points"], 0.0)


def test_a_strip_has_every_step_on_one_scale(of: list[Probe], evolution: Evolution) -> None:
    strip = strip_maps(of[0], evolution, layer=3)
    assert strip.layer == 3 and [panel.step for panel in strip.panels] == [0, 10, 30]
    assert [int(panel.map.density.argmax()) for panel in strip.panels] == [20, 14, 8]
    assert strip.panels[2].map.density.max() == pytest.approx(12.0)
    assert [panel.mass for panel in strip.panels] == pytest.approx([0.5 / 23, 0.5 / 23, 0.5])
    assert strip.panels[2].enrichment == pytest.approx(12.0)
    assert [panel.outcome.margin_nats for panel in strip.panels] == pytest.approx([-2.0, 0.0, 4.0])
    assert strip.panels[1].outcome.said == "at 10"
    scale = series_scale([panel.map for panel in strip.panels])
    assert scale.peak == pytest.approx(12.0) and scale.swing == pytest.approx(
        max(np.percentile(np.abs(p.map.density - strip.panels[0].map.density), 99) for p in strip.panels)
    )


def test_a_strip_without_a_region_has_no_readings(of: list[Probe], evolution: Evolution) -> None:
    panel = strip_maps(of[2], evolution, layer=1).panels[0]
    assert panel.mass is None and panel.enrichment is None


def test_a_strip_of_a_layer_without_maps_is_refused(of: list[Probe], evolution: Evolution) -> None:
    with pytest.raises(ValueError, match=r"layer 2: found key layers \[1, 3\]; expected one of them"):
        strip_maps(of[0], evolution, layer=2)


def test_unequal_probes_name_step_and_probe(of: list[Probe]) -> None:
    found = checkpoints(of)
    lacking = {**found, 10: {name: one for name, one in found[10].items() if name != "retention-1"}}
    with pytest.raises(
        ValueError, match=r"step 10: found no record of probe retention-1, which step 0 has \(1 such"
    ):
        evolution_of(lacking)
    lacking = {**found, 0: {name: one for name, one in found[0].items() if name != "retention-0"}}
    with pytest.raises(ValueError, match="step 0: found no record of probe retention-0, which step 10 has"):
        evolution_of(lacking)
    with pytest.raises(ValueError, match="step 10: found no records"):
        evolution_of({**found, 10: {}})


def test_layers_that_are_not_shared_are_refused(of: list[Probe]) -> None:
    found = checkpoints(of)
    odd = replace(found[30]["retention-0"], layers=(1, 2))
    with pytest.raises(
        ValueError,
        match=r"step 30, probe retention-0: found key layers \[1, 2\], others have \[1, 3\]; .* --key_layers",
    ):
        evolution_of({**found, 30: {**found[30], "retention-0": odd}})
    # also where one probe differs at every step, so that steps agree with each other
    shifted = {
        step: {**one, "retention-0": replace(one["retention-0"], layers=(1, 2))}
        for step, one in found.items()
    }
    with pytest.raises(ValueError, match="step 0, probe retention-0: found key layers"):
        evolution_of(shifted)


def test_another_layout_is_refused(of: list[Probe]) -> None:
    found = checkpoints(of)
    turned = replace(found[10]["retention-0"], image_tokens=(replace(image_tokens(), grid=(6, 4)),))
    with pytest.raises(
        ValueError, match=r"step 10, probe retention-0: found a grid of \(6, 4\), step 0 has \(4, 6\)"
    ):
        evolution_of({**found, 10: {**found[10], "retention-0": turned}})


def test_steps_ascend_and_there_is_one(of: list[Probe]) -> None:
    one = records(of, 0)
    with pytest.raises(ValueError, match=r"found steps \[10, 0\]; expected each once, ascending"):
        Evolution((10, 0), ("a", "b"), (one, one))
    with pytest.raises(ValueError, match=r"found steps \[0, 0\]"):
        Evolution((0, 0), ("a", "b"), (one, one))
    with pytest.raises(ValueError, match="found 0 steps, 0 names and 0 sets of records"):
        Evolution((), (), ())
    with pytest.raises(ValueError, match="found 2 steps, 1 names and 2 sets"):
        Evolution((0, 10), ("a",), (one, one))


def test_a_probe_without_records_or_foil_score_is_named(of: list[Probe], evolution: Evolution) -> None:
    stranger = replace(of[0], id="stranger")
    with pytest.raises(ValueError, match="probe stranger: found no record at step 0"):
        series_of([stranger], evolution)
    found = checkpoints(of)
    unscored = found[30]["retention-0"]
    unscored = replace(unscored, scores=replace(unscored.scores, foil_nats=None))
    with pytest.raises(ValueError, match="probe retention-0: found no score of the foil at step 30"):
        series_of(of, evolution_of({**found, 30: {**found[30], "retention-0": unscored}}))


def test_one_checkpoint_is_an_evolution_too(of: list[Probe]) -> None:
    series = series_of(of, evolution_of({5: records(of, 5)}))
    assert series["steps"] == [5] and series["drift_jsd_nats"] == {"1": [0.0], "3": [0.0]}


def test_of_many_steps_some_are_taken_with_both_ends() -> None:
    assert evenly_chosen(10, 4) == [0, 3, 6, 9]
    assert evenly_chosen(3, 8) == [0, 1, 2] and evenly_chosen(8, 8) == list(range(8))
    assert evenly_chosen(9, 8)[0] == 0 and evenly_chosen(9, 8)[-1] == 8
    assert len(set(evenly_chosen(50, 12))) == 12
    assert evenly_chosen(0, 2) == []
    with pytest.raises(ValueError, match="most: found 1; expected at least 2"):
        evenly_chosen(5, 1)


def test_a_row_that_does_not_look_at_the_picture_has_no_drift(of: list[Probe]) -> None:
    """A distance from no map would be one: half of ln 2."""
    found = checkpoints(of)
    blind = found[10]["sphere-building-0"]
    rows = blind.rows.copy()
    rows[0][..., blind.image_tokens[0].positions] = 0.0  # of layer 1
    found[10]["sphere-building-0"] = replace(blind, rows=rows)
    drift = series_of(of, evolution_of(found))["drift_jsd_nats"]
    whole = series_of(of, evolution_of(checkpoints(of)))["drift_jsd_nats"]
    assert drift["3"] == whole["3"] and drift["1"][::2] == whole["1"][::2]
    assert drift["1"][1] == pytest.approx(whole["1"][1] * 2 / 3)  # one of two moves, and two of three before
    found[10] = {name: replace(one, rows=np.zeros_like(one.rows)) for name, one in found[10].items()}
    drift = series_of(of, evolution_of(found))["drift_jsd_nats"]
    assert drift == {str(layer): [0.0, None, whole[str(layer)][2]] for layer in LAYERS}
