"""Two records of one probe: what cannot be compared is an error that names the probe."""

from dataclasses import replace

import pytest
from PIL import Image

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import images_of, pair_records
from diagnostics.records.record import PatchSource, PatternPatch, PictureControl
from tests.diagnostics.show_samples import probes, records


@pytest.fixture
def sides(tmp_path):
    """The first probe with its records before and after."""
    probe, *_ = of = probes(tmp_path, per_group=1)
    return probe, *(records(of, step)[probe.id] for step in (0, 10))


def test_a_score_that_is_no_number_names_the_probe(sides):
    probe, before, after = sides
    broken = replace(after, scores=replace(after.scores, foil_nats=float("nan")))
    with pytest.raises(
        ValueError, match=r"probe sphere-building-0, record of step 10: found nan as scores\.foil"
    ):
        pair_records(probe, before, broken)
    one = after.interventions[0]
    for changed in (
        one._replace(margin_nats=float("inf")),
        one._replace(control_margins_nats=(0.5, float("inf"))),
    ):
        with pytest.raises(ValueError, match="found inf as a margin after occlusion of 'spheres'"):
            pair_records(probe, before, replace(after, interventions=(changed, *after.interventions[1:])))


def test_a_region_of_one_side_alone_names_the_probe(sides):
    probe, before, after = sides
    moved = tuple(one._replace(region="body") for one in after.interventions)
    with pytest.raises(ValueError, match="probe sphere-building-0: occlusion is measured on the regions"):
        pair_records(probe, before, replace(after, interventions=moved))
    assert pair_records(probe, before, replace(after, interventions=())).region == "spheres"
    fewer = {name: mass for name, mass in after.region_mass.items() if name != "body"}
    with pytest.raises(ValueError, match="record of step 10: found no measurements of the region: 'body'"):
        pair_records(probe, before, replace(after, region_mass=fewer))
    random = replace(after, random_mass=fewer), replace(before, random_mass=before.region_mass)
    with pytest.raises(ValueError, match="probe sphere-building-0: random regions is measured"):
        pair_records(probe, random[1], random[0])


def test_a_copy_of_a_picture_is_the_same_picture(sides, tmp_path):
    probe, before, after = sides
    copy = tmp_path / "copy.png"
    Image.open(probe.images[0]).save(copy, compress_level=0)
    pairs = [pair_records(one, before, after) for one in (probe, replace(probe, images=(copy,)))]
    assert len({*images_of(pairs)}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"picture_controls": (PictureControl("blank", float("nan")),)},
            "the margin with the picture 'blank'",
        ),
        (
            {"patches": (PatternPatch("layer", float("inf"), (3,)),)},
            r"the margin with the attention of layer \[3\] put back",
        ),
        ({"patched_from": PatchSource("base", float("nan"))}, "the margin of the model whose attention"),
    ],
)
def test_every_margin_that_is_no_number_names_the_probe(sides, change, words):
    probe, before, after = sides
    with pytest.raises(ValueError, match=f"probe {probe.id}, record of step 10: found (nan|inf) as {words}"):
        pair_records(probe, before, replace(after, **change))


def test_a_row_that_does_not_look_at_the_picture_has_no_drift(sides):
    probe, before, after = sides
    rows = after.rows.copy()
    rows[0] = 0.0  # the first key layer: its whole window lies behind the picture
    [blind, other] = pair_records(probe, before, replace(after, rows=rows)).layers
    [_, whole] = pair_records(probe, before, after).layers
    assert blind.drift_jsd_nats is None and other.drift_jsd_nats == whole.drift_jsd_nats
    assert comparison_of([pair_records(probe, before, replace(after, rows=rows))])["groups"][probe.group][
        "drift_jsd_nats"
    ] == {str(blind.layer): None, str(other.layer): whole.drift_jsd_nats}
