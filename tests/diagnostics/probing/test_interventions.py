"""What is taken away, against the model asked by hand; and what a probing costs, against what it costs."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.attention import random_regions, region_mass
from diagnostics.measures.geometry import cells_from_row
from diagnostics.measures.salience import curve_area, salient_places
from diagnostics.probing.before import OtherModel
from diagnostics.probing.interventions import fills_the_picture
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import ProbeEncoder, scored_span
from diagnostics.probing.regions import (
    most_looked_at,
    region_tokens,
    shifted_elsewhere,
    veil,
    window_of,
)
from diagnostics.records.measurement_plan import (
    CAUSE,
    CURVE_SHARES,
    FULL,
    MAPS,
    PICTURES,
    QUICK,
    WATCH,
    Allowed,
    cost_words,
)
from diagnostics.records.probes import Probe, Relation
from finetune.families import family_of
from finetune.families.parts.coverage import region_coverage
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.diagnostics.tiny_qwen_vl import N_LAYERS, N_QUERIES, tiny_probes
from tests.finetune.families.tiny_families import ALL

ONE_CONTROL = replace(FULL, controls=1, generate=False)


@pytest.fixture(scope="module")
def probe(folder):
    relation = Relation("the", "disc", "corner")
    return replace(tiny_probes(folder, 1)[0], phrases={"球": "disc", "disc": "corner"}, relation=relation)


@pytest.fixture(scope="module")
def record(model, processor, probe):
    return Prober(model, processor, key_layers=[0, 2], probes=[probe], depth=ONE_CONTROL).run(
        probe, 0, "tiny"
    )


@torch.no_grad()
def margin(model, processor, probe, blocked=None, images=None):
    """log p(answer) − log p(foil), each through its end, each whole sequence read at once."""
    reader = ProbeEncoder(family_of(model.config), processor)
    nats = []
    for reply in (probe.answer, probe.foil):
        one = reader.encode(probe, reply, images=images)
        ids = torch.from_numpy(one.input_ids)[None]
        taken = {} if blocked is None else {name: mask(len(one.input_ids)) for name, mask in blocked.items()}
        with AttentionExtractor(model, []) as extractor, extractor.knocked_out(taken):
            logits = model(input_ids=ids, pixel_values=one.media["pixel_values"]).logits[0].log_softmax(-1)
        start, end = one.turn_spans[-1]
        nats.append(sum(float(logits[at - 1, ids[0, at]]) for at in range(start, end + 1)))
    return nats[0] - nats[1]


def test_a_window_cuts_the_answer_from_the_regions_tokens_in_its_layers_alone(
    model, processor, probe, record
):
    image, query = record.image_tokens[0], record.queries[0].position
    windows = {one.layers: one for one in record.interventions if one.layers is not None}
    assert list(windows) == [(0, 0), (2, 2)]
    boxes = [probe.regions["disc"], *random_regions(probe.regions["disc"], (60, 40), count=1, name=probe.id)]
    for layers, found in windows.items():
        expected = []
        for one in boxes:
            tokens = torch.from_numpy(region_tokens(image, one, record.connector[0]))

            def mask(length, tokens=tokens):
                blocked = torch.zeros(1, length, length, dtype=torch.bool)
                blocked[0, query:, tokens] = True
                return blocked

            expected.append(margin(model, processor, probe, {f"layer_{layers[0]}": mask}))
        assert [found.margin_nats, *found.control_margins_nats] == pytest.approx(expected, abs=1e-4)
    assert windows[0, 0].margin_nats != pytest.approx(windows[2, 2].margin_nats, abs=1e-4)


def test_region_tokens_are_those_that_read_the_region_most(record, probe):
    image, connector = record.image_tokens[0], record.connector[0]
    coverage = region_coverage(probe.regions["disc"], image)
    tokens = region_tokens(image, probe.regions["disc"], connector)
    assert len(tokens) == max(1, round(coverage.mean() * N_QUERIES))
    reads = connector @ coverage
    chosen = np.isin(image.positions, tokens)
    assert reads[chosen].min() >= reads[~chosen].max()
    plain = replace(image, through_connector=False, positions=np.arange(100, 136))
    cells = np.sort(np.argsort(-coverage, kind="stable")[: round(coverage.sum())])
    assert region_tokens(plain, probe.regions["disc"], None).tolist() == (100 + cells).tolist()


def test_curves_start_and_end_at_the_whole_and_the_hidden_picture(model, processor, probe, record):
    [picture] = [family_of(model.config).load_image(ImageRef("", path)) for path in probe.images]
    image = record.image_tokens[0]
    whole = record.scores.margin_nats
    everything = margin(model, processor, probe, images=[veil(picture, image, np.ones(36, bool))])
    curves = record.curves
    assert set(curves) == {"deletion", "insertion", "deletion/control", "insertion/control"}
    for name, curve in curves.items():
        ends = [whole, everything] if name.startswith("deletion") else [everything, whole]
        assert [curve[0], curve[-1]] == pytest.approx(ends, abs=1e-3) and len(curve) == len(CURVE_SHARES)
    order = (record.rows[:, :, 0].mean((0, 1))[image.positions] @ record.connector[0]).ravel()
    hidden = veil(picture, image, most_looked_at(order, 0.2))
    assert curves["deletion"][3] == pytest.approx(margin(model, processor, probe, images=[hidden]), abs=1e-3)
    shown = veil(picture, image, ~most_looked_at(order, 0.2))
    assert curves["insertion"][3] == pytest.approx(margin(model, processor, probe, images=[shown]), abs=1e-3)
    assert not np.allclose(curves["deletion"], curves["deletion/control"], atol=1e-3)


def test_a_veil_hides_its_cells_and_nothing_else(folder, record, probe, model):
    picture = family_of(model.config).load_image(ImageRef("", probe.images[0])).convert("RGB")
    hidden = np.zeros(36, bool)
    hidden[9] = True  # row 1, column 3 of 6 × 6: x 30–40, y 6.7–13.3 of 60 × 40
    before, after = np.asarray(picture), np.asarray(veil(picture, record.image_tokens[0], hidden))
    changed = (before != after).any(-1)
    assert changed[7:13, 30:40].any() and not changed[:, :30].any() and not changed[:, 40:].any()
    assert not changed[:7].any() and not changed[13:].any()


def test_small_pieces_by_hand():
    assert most_looked_at(np.array([0.1, 0.4, 0.3, 0.2]), 0.5).tolist() == [False, True, True, False]
    assert curve_area(np.array([2.0, 0.0, 0.0]), [0.0, 0.5, 1.0]) == pytest.approx(0.5)
    assert window_of(8, 32) == (6, 10) and window_of(31, 32) == (29, 31) and window_of(1, 4) == (1, 1)
    cells = np.arange(20.0)
    moved = shifted_elsewhere(cells, (4, 5), name="a")
    assert sorted(moved) == sorted(cells) and (moved != cells).all()
    assert (moved == shifted_elsewhere(cells, (4, 5), name="a")).all()
    assert moved[:5].tolist() == [11, 12, 13, 14, 10]  # grids from 4 × 4 on keep their places
    assert fills_the_picture([(0, 0, 60, 39)], (60, 40)) and not fills_the_picture([(0, 0, 60, 30)], (60, 40))


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (1, 3), (3, 2), (2, 3), (3, 5), (5, 3), (4, 5)])
def test_a_map_shifted_elsewhere_is_another_map_on_the_smallest_grids_too(grid):
    cells = np.arange(float(grid[0] * grid[1]))
    for name in map(str, range(50)):
        assert (shifted_elsewhere(cells, grid, name=name) != cells).all()


def small_picture(folder, size):
    """A model that reads a picture in one row of cells of 8 pixels, and a probe about most of the picture."""
    tiny = ALL["qwen2-vl"]
    processor = tiny.processor(folder)
    pixels = size[0] * size[1]
    processor.image_processor.size = {"shortest_edge": pixels, "longest_edge": pixels}
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(folder / "small.png")
    box = (0.0, 0.0, size[0], 0.89 * size[1])
    probe = Probe("small", "g", (folder / "small.png",), "What?", "cat", "dog", {"cat": (box,)})

    def run(probe):
        prober = Prober(tiny.model(), processor, key_layers=[0], probes=[probe], depth=ONE_CONTROL)
        return prober.run(probe, 0, "tiny")

    return probe, run


def test_a_picture_of_few_cells_loses_all_but_one_and_one_of_one_cell_none(tmp_path):
    probe, run = small_picture(tmp_path, (24, 8))
    found = run(probe)
    assert found.image_tokens[0].grid == (1, 3)
    assert {one.kind for one in found.interventions} == {"occlusion", "knockout"}
    probe, run = small_picture(tmp_path, (8, 8))
    assert {one.kind for one in run(probe).interventions} == {"occlusion"}


def test_a_region_beside_the_picture_is_an_error_that_names_its_probe(tmp_path):
    probe, run = small_picture(tmp_path, (24, 8))
    with pytest.raises(
        ValueError, match="probe small: region 'hat': knock-out: the region covers 0 of 3 cells"
    ):
        run(replace(probe, regions={"hat": ((30.0, 0.0, 40.0, 8.0),)}))


def test_a_region_that_fills_the_picture_is_not_taken_away(model, processor, probe):
    wide = replace(probe, regions={**probe.regions, "all": ((0.0, 0.0, 60.0, 40.0),)})
    depth = replace(QUICK, generate=False, relations=False)
    found = Prober(model, processor, key_layers=[1], probes=[wide], depth=depth).run(wide, 0, "tiny")
    assert {one.region for one in found.interventions} == {"disc", "corner"}


@pytest.mark.parametrize("lending", [False, True])
@pytest.mark.parametrize("group", ["", "neighbour"])
@pytest.mark.parametrize("depth", [WATCH, QUICK, replace(FULL, controls=2).with_maps(*MAPS)])
def test_a_probing_costs_what_was_said(model, processor, folder, probe, depth, group, lending):
    probe = replace(probe, group=group or probe.group)
    read, others = 0, tiny_probes(folder, 3)[1:] if lending else ()

    def count(_, arguments, options):
        nonlocal read
        cache = options.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            read += len(options["input_ids"])

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    prober = Prober(model, processor, key_layers=[0, 2], probes=[probe, *others], depth=depth)
    prober.run(probe, 0, "tiny")
    hook.remove()
    assert read == depth.passes(probe, key_layers=2, allowed=prober.allowed)


@pytest.mark.parametrize("group", ["retention", "neighbour"])
def test_of_groups_to_be_kept_regions_are_hidden_in_a_full_probing_alone(model, processor, probe, group):
    """They are judged by their answers; what is asked of the picture is measured, since a diagnosis compares it."""
    kept = replace(probe, group=group)

    def measured(depth, one):
        before = OtherModel(model, "before")
        prober = Prober(model, processor, key_layers=[1], probes=[one], depth=depth, before=before)
        found = prober.run(one, 0, "tiny")
        return (
            bool(found.interventions),
            bool(found.patches),
            bool(found.curves),
            bool(found.picture_controls),
        )

    quick = replace(QUICK, generate=False, relations=False)
    full = replace(FULL, generate=False, relations=False, controls=1)
    assert measured(quick, probe) == (True, True, False, True)
    assert measured(quick, kept) == (False, False, False, True)
    assert measured(full, kept) == (True, True, True, True)
    assert measured(CAUSE, kept) == (False, False, False, False)


def test_a_plan_that_was_written_before_groups_were_told_apart_measured_all(probe):
    old = asdict(FULL)
    del old["kept"]
    assert QUICK.is_part_of(old) and FULL.is_part_of(old)
    assert QUICK.is_part_of(asdict(FULL)) and not FULL.is_part_of(asdict(replace(FULL, kept=False)))


def test_pictures_are_replaced_by_a_blank_one_by_anothers_and_by_none(model, processor, folder):
    """Against each prompt read whole: other sizes and lengths too."""
    first, second, third = tiny_probes(folder, 3)
    first = replace(first, question="<image>球在哪里? the disc")
    second = replace(second, group=first.group, answer=first.foil, foil=first.answer)
    wide = folder / "wide.png"
    Image.new("RGB", (90, 20), (9, 200, 30)).save(wide)
    second = replace(second, images=(wide,), regions={})
    depth = replace(WATCH, generate=False, pictures=PICTURES)
    probes = [first, second, third]
    [found] = Prober(model, processor, key_layers=[1], probes=probes, depth=depth).run_all(
        0, "tiny", probes=[first]
    )
    assert [(one.kind, one.lender) for one in found.picture_controls] == [
        ("blank", ""), ("other", second.id), ("none", "")]  # fmt: skip
    shown = np.asarray(Image.open(first.images[0]).convert("RGB"))
    grey = Image.fromarray(np.broadcast_to(shown.mean((0, 1)).round().astype(np.uint8), shown.shape).copy())
    alone = replace(first, images=(), question="球在哪里? the disc", phrases={}, regions={})
    expected = [
        margin(model, processor, first, images=[grey]),
        margin(model, processor, first, images=[Image.open(wide)]),
        bare_margin(model, processor, alone),
    ]
    margins = [one.margin_nats for one in found.picture_controls]
    assert margins == pytest.approx(expected, abs=1e-4)
    assert len({round(one, 3) for one in [*margins, found.scores.margin_nats]}) == 4


@torch.no_grad()
def bare_margin(model, processor, probe):
    """log p(answer) − log p(foil) of the question alone, as a conversation without pictures."""
    nats = []
    for reply in (probe.answer, probe.foil):
        turns = (Turn("user", (probe.question,)), Turn("assistant", (reply,)))
        one = family_of(model.config).encode(processor, Conversation(turns))
        ids = torch.from_numpy(one.input_ids)[None]
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
        start, end = scored_span(one)
        nats.append(sum(float(logits[at - 1, ids[0, at]]) for at in range(start, end)))
    return nats[0] - nats[1]


def test_a_family_that_refuses_a_question_alone_is_not_measured_without_a_picture(
    model, processor, probe, monkeypatch
):
    family = family_of(model.config)
    encode = type(family).encode

    def refusing(self, processor, conversation, **options):
        if not conversation.images and options.get("media", True):  # words alone are counted all the same
            raise ValueError("no picture: expected one")
        return encode(self, processor, conversation, **options)

    monkeypatch.setattr(type(family), "encode", refusing)
    depth = replace(WATCH, generate=False, pictures=PICTURES)
    prober = Prober(model, processor, key_layers=[1], probes=[probe], depth=depth)
    assert not prober.allowed.alone and not prober.allowed.lent
    assert [one.kind for one in prober.run(probe, 0, "tiny").picture_controls] == ["blank"]


def test_the_cost_in_words(probe):
    allowed = Allowed(resampler=True, alone=True, lent=frozenset([probe.id]))
    words = cost_words(QUICK, (probe, probe), 2, allowed)
    # one prompt for answer, foil and reply; both ends of a relation; 3 pictures; 2 kinds on 2 regions, with controls;
    # the pictures once for all knock-outs
    assert words.startswith("quick probing of 2 probes: 30 sequences to read (15.0 a probe); full would be")
    without = Allowed(resampler=False, alone=False, lent=frozenset())
    assert QUICK.passes(probe, 2, without) == 1 + 2 + 1 + 2 * 2 + 1
    assert QUICK.passes(probe, 2, without._replace(pictures_first=False)) == 1 + 2 + 1 + 2 * 2 + 2 * 2
    assert QUICK.passes(probe, 2, allowed._replace(patched=True)) == 15 + 4 + 2
    two = replace(probe, images=probe.images * 2)  # the second would see what is hidden behind the first
    assert QUICK.passes(two, 2, without) == 1 + 2 + 1 + 2 * 2 + 2 * 2
    with pytest.raises(ValueError, match="found 'heat', expected some of relative, gradient, rollout"):
        QUICK.with_maps("heat")


def test_further_maps(model, processor, probe):
    depth = replace(WATCH, generate=False).with_maps(*MAPS)
    found = Prober(model, processor, key_layers=[0, 2], probes=[probe], depth=depth).run(probe, 0, "tiny")
    assert {name: cells.shape for name, cells in found.maps.items()} == {
        "relative": (2, 36), "gradient": (2, 36), "rollout": (1, 36)}  # fmt: skip
    np.testing.assert_allclose(found.maps["rollout"].sum(), 1, atol=1e-5)
    assert (found.maps["gradient"] >= 0).all() and found.maps["gradient"].sum(-1).max() <= 1 + 1e-5
    assert found.maps["relative"].min() < 0 < found.maps["relative"].max()


def test_chance_entropy_and_logits_are_of_every_layer(record):
    assert record.random_mass["disc"].shape == record.head_entropy.shape == record.highest_logit.shape
    assert record.head_entropy.shape[0] == N_LAYERS and (record.head_entropy > 0).all()
    assert (record.head_entropy <= 1).all() and np.isfinite(record.highest_logit).all()
    assert record.sinks.shape == (2, len(record.tokens)) and not record.sinks.any()  # a width of 32 has none
    assert record.region_mass_without_sinks == {}


def test_equally_salient_places_are_attended_to_as_their_cells_are(model, processor, folder):
    """Three discs, of which one is the region: the mean over the places on the others, in every layer and head."""
    path = folder / "discs.png"
    picture = Image.new("RGB", (120, 80), (60, 90, 60))
    for x, y in ((8, 10), (60, 8), (88, 50)):
        ImageDraw.Draw(picture).ellipse((x, y, x + 18, y + 18), fill=(220, 60, 40))
    picture.save(path)
    region = ((5.0, 7.0, 29.0, 31.0),)
    [one] = tiny_probes(folder, 1)
    one = replace(one, images=(path,), regions={"disc": region, "sky": ((40.0, 60.0, 50.0, 70.0),)})
    found = Prober(model, processor, key_layers=[0, 2], probes=[one], depth=WATCH).run(one, 0, "tiny")
    assert set(found.salient_mass) == {"disc"}  # nothing is as flat as the sky
    luminance = np.asarray(picture.convert("L"), np.float64)
    places = salient_places(luminance, one.regions, name=one.id)["disc"]
    image = found.image_tokens[0]
    cells = cells_from_row(found.rows[:, :, 0], image, found.connector[0])
    expected = np.mean([region_mass(cells, region_coverage(place, image)) for place in places], axis=0)
    assert found.salient_mass["disc"].shape == (N_LAYERS, found.rows.shape[1])
    np.testing.assert_allclose(found.salient_mass["disc"][[0, 2]], expected, atol=1e-5)
    assert np.abs(found.salient_mass["disc"] - found.random_mass["disc"]).max() > 1e-3
