"""Which layers and heads are chosen: planted ones are found, noise chooses none, and no probe is used twice."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diagnostics.probing.layer_choice import Calibration, _heads, calibrate, check_apart, elbow, held_out
from tests.diagnostics.show_samples import probes, records

N_LAYERS, N_HEADS = 6, 3


def planted(folder, *, gain: float, per_group: int = 20, share: float = 0.5):
    """Probes and records in which layers 2 and 5, and of them heads 1 and 2, look at the region `gain` times more."""
    of = probes(folder, per_group=per_group)
    rng = np.random.default_rng(5)
    found = {}
    for name, record in records(of, 0).items():
        probe = next(one for one in of if one.id == name)
        chance = rng.uniform(0.05, 0.15, (N_LAYERS, N_HEADS)).astype(np.float32)
        mass = chance * (1 + rng.uniform(-0.3, 0.3, chance.shape)).astype(np.float32)
        for layer in (2, 5):
            mass[layer, 1:] *= gain
        found[name] = replace(
            record,
            region_mass=dict.fromkeys(probe.regions, mass),
            random_mass=dict.fromkeys(probe.regions, chance),
            visual_share=np.full((N_LAYERS, N_HEADS), share, np.float32),
        )
    return of, found


def test_planted_layers_and_heads_are_chosen(tmp_path):
    of, found = planted(tmp_path, gain=2.0)
    chosen = calibrate(of, found, evenly=(1, 3))
    assert chosen.chosen and chosen.layers == (2, 5)
    assert set(chosen.heads) == {(2, 1), (2, 2), (5, 1), (5, 2)}
    assert "Layers 2, 5 look at the named regions more" in chosen.why
    assert chosen.enrichment[2] > 1.4 * chosen.by_chance[2] and len(chosen.p_adjusted) == N_LAYERS


def test_noise_chooses_nothing_and_says_so(tmp_path):
    of, found = planted(tmp_path, gain=1.0)
    chosen = calibrate(of, found, evenly=(1, 3))
    assert not chosen.chosen and chosen.layers == (1, 3) and chosen.heads == ()
    assert "evenly spaced" in chosen.why


def test_heads_that_do_not_look_at_the_picture_are_not_chosen(tmp_path):
    of, found = planted(tmp_path, gain=2.0)
    share = np.full((N_LAYERS, N_HEADS), 0.5, np.float32)
    share[5] = 0.0
    dim = {name: replace(record, visual_share=share) for name, record in found.items()}
    assert {layer for layer, _ in calibrate(of, dim, evenly=(1,)).heads} == {2}


def test_heads_that_look_there_in_few_pictures_and_away_in_most_are_not_chosen():
    random = np.ones((100, 1, 2))
    region = np.stack([np.where(np.arange(100) < 80, 0.8, 6.0), np.full(100, 1.5)], 1)[:, None]
    region[:, :, 1] += 0.01 * np.arange(100)[:, None]
    assert _heads(region, random, [str(at) for at in range(100)], np.ones((1, 2))) == ((0, 1),)


def test_layers_that_look_there_on_most_pictures_and_away_on_most_probes_are_not_chosen(tmp_path):
    """10 pictures of 10 probes look away, 11 of one probe do not: the test is of probes, the effect of pictures."""
    of, found = planted(tmp_path, gain=1.0, per_group=21)
    pictures = of[:21]
    asked, seen = [], {}
    for at, probe in enumerate(pictures):
        for again in range(10 if at < 10 else 1):
            one = replace(probe, id=f"{at}-{again}", group="a", images=probe.images)
            chance = np.full((N_LAYERS, N_HEADS), 0.1, np.float32)
            mass = chance * np.float32((0.5 if at < 10 else 1.6) + 0.001 * again)
            record = replace(
                found[probe.id],
                region_mass=dict.fromkeys(probe.regions, mass),
                random_mass=dict.fromkeys(probe.regions, chance),
            )
            asked, seen = [*asked, one], {**seen, one.id: record}
    assert not calibrate(asked, seen, evenly=(1, 3)).chosen


def test_too_few_probes_choose_nothing(tmp_path):
    of, found = planted(tmp_path, gain=3.0, per_group=2)
    chosen = calibrate(of, found, evenly=(1, 3))
    assert not chosen.chosen and "are too few to choose layers" in chosen.why
    none = calibrate((), {}, evenly=(1, 3))
    assert not none.chosen and none.layers == (1, 3)
    assert none.why.startswith(
        "no probe was set aside to choose layers on, since 20 pictures a group must be left"
    )


def test_a_calibration_comes_back(tmp_path):
    of, found = planted(tmp_path, gain=2.0)
    chosen = calibrate(of, found, evenly=(1, 3))
    chosen.save(tmp_path / "attention" / "calibration.json")
    assert Calibration.load(tmp_path / "attention" / "calibration.json") == chosen
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json:(.*\n)+.*not a calibration of version 1"):
        Calibration.load(tmp_path / "x.json")


def test_a_fifth_of_the_pictures_is_held_out_where_enough_are_left(tmp_path):
    of = probes(tmp_path, per_group=70)
    taken = held_out(of)
    pictures = {probe.images[0] for probe in taken}
    assert 0.15 < len(pictures) / len({probe.images[0] for probe in of}) < 0.3
    assert {probe.id for probe in of if probe.images[0] in pictures} == {probe.id for probe in taken}
    assert held_out(tuple(reversed(of))) == tuple(reversed(taken))
    assert held_out(probes(tmp_path, per_group=20)) == ()


def test_pictures_on_both_sides_are_an_error(tmp_path):
    of = probes(tmp_path, per_group=2)
    check_apart(of[:1], of[1:]) if of[0].images != of[1].images else None
    with pytest.raises(ValueError, match="calibration probes: 1 of their pictures are also among the probes"):
        check_apart(of[:1], of)
    copy = tmp_path / "copy.png"
    Image.open(of[0].images[0]).save(copy, compress_level=0)
    with pytest.raises(
        ValueError, match=r"1 of their pictures .* \(such as .*copy\.png, the same picture as .*-0\.png\)"
    ):
        check_apart([replace(of[0], images=(copy,))], of)


def test_copies_of_a_picture_are_held_out_together_and_are_no_further_evidence(tmp_path):
    of = probes(tmp_path, per_group=70)
    copies = []
    for index, probe in enumerate(of):
        path = tmp_path / f"copy-{index}.png"
        Image.open(probe.images[0]).save(path, compress_level=0)
        copies.append(replace(probe, id=f"copy-{probe.id}", images=(path,)))
    taken = {probe.id for probe in held_out([*of, *copies])}
    assert taken and {f"copy-{probe.id}" in taken for probe in of if probe.id in taken} == {True}
    few, found = planted(tmp_path, gain=3.0, per_group=6)
    again = [replace(few[0], id=f"again-{index}", images=copies[0].images) for index in range(20)]
    found |= {probe.id: found[few[0].id] for probe in again}
    alone = [few[0], *again]
    assert not calibrate(alone, found, evenly=(1, 3)).chosen  # 21 probes, one picture


def test_the_elbow():
    assert elbow(np.array([0.0, 0.0, 0.0, 0.1, 0.9, 1.0])) == pytest.approx(0.1)


def test_of_many_layers_the_surest_are_chosen(tmp_path):
    of, found = planted(tmp_path, gain=1.0)
    gains = np.array([1.15, 3.0, 1.15, 2.5, 1.15, 2.0], np.float32)[:, None]
    raised = {
        name: replace(
            record, region_mass={region: mass * gains for region, mass in record.region_mass.items()}
        )
        for name, record in found.items()
    }
    assert calibrate(of, raised, evenly=(0,)).layers == (1, 3, 5)
