"""What a model shows against its own full attention; the program end to end on tiny models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import diagnostics.fusion.views as views_module
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.comparison.maps import CellMap
from diagnostics.fusion.__main__ import main, run
from diagnostics.fusion.recipes import single_maps
from diagnostics.fusion.sheet import FusionSheet, Shown, draw_sheet
from diagnostics.fusion.views import Viewer
from diagnostics.measures.geometry import cells_from_row, resampled
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import ProbeEncoder, padded
from diagnostics.records.probes import Probe, write_probes
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS

GRID_MODEL = ALL["qwen2.5-vl"]


def write_picture(path: Path, size=(50, 31), seed=0) -> Path:
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))
    ImageDraw.Draw(picture).ellipse((20 + seed, 8, 32 + seed, 20), fill=(200, 20 * seed, 30))
    picture.save(path)
    return path


def some_probes(folder: Path, count=6, size=(50, 31), group="towers") -> list[Probe]:
    return [
        Probe(
            f"{group}-{i}",
            group,
            (write_picture(folder / f"{group}-{i}.png", size, seed=i),),
            "球在哪里? the disc",
            "东方" if i % 2 else "red",
            "东京" if i % 2 else "blue",
            regions={"corner": ((0.0, 0.0, 10.0, 10.0),), "disc": ((20.0 + i, 8.0, 32.0 + i, 20.0),)},
            phrases={"球": "disc"},
        )
        for i in (range(count) if group == "towers" else range(6, 6 + count))  # other pictures
    ]


def full_tower(model, family, inputs, layer) -> np.ndarray:
    """Float[patches, patches]: every row of a tower's layer, mean over heads."""
    with (
        torch.no_grad(),
        AttentionExtractor(model, [], vision_layers=[layer], images=[0], family=family) as extractor,
    ):
        model(**inputs, use_cache=False)
        return extractor.attention_weights[f"vision_layer_{layer}"][0].mean(0).astype(np.float64)


def shares(cells: np.ndarray) -> np.ndarray:
    return cells / cells.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("tiny", "size", "finer", "layers"),
    [
        (GRID_MODEL, (50, 31), 2, (0, 1, 2)),  # windows, the whole picture, windows
        (ALL["qwen3-vl"], (31, 70), 2, (0, 2)),
        (ALL["qwen-vl"], (50, 31), 1, (0,)),  # through a resampler: cells are patches
        (LLAVAS["llava-1.5"], (40, 40), 1, (0, 1)),  # a class token before the patches
    ],
    ids=["windows", "frames", "resampler", "class token"],
)
@pytest.mark.parametrize("chunk_bytes", [None, 1500])
def test_maps_are_those_of_the_whole_attention(tiny, size, finer, layers, chunk_bytes, tmp_path, monkeypatch):
    if chunk_bytes is not None:
        monkeypatch.setattr(views_module, "CHUNK_BYTES", chunk_bytes)
    model, processor = tiny.model(), tiny.processor(tmp_path)
    [probe] = some_probes(tmp_path, 1, size)
    viewer = Viewer(model, processor, vision_layers=layers, family=tiny.family)
    [[view]] = viewer.look_all([probe])
    reading = ProbeEncoder(tiny.family, processor).read(probe)
    inputs = padded([reading.answer], torch.device("cpu"), left=False)
    image = view.image
    # language: as the probe's own record has it
    record = Prober(model, processor, key_layers=[0, 1], probes=[probe], family=tiny.family).run(
        probe, 0, "m"
    )
    connector = record.connector[0] if record.connector else None
    cells = cells_from_row(record.rows[:, :, 0].mean(1), image, connector)
    np.testing.assert_allclose(np.stack([view.layers[0], view.layers[1]]), cells, atol=1e-6)
    assert (view.connector is None) == (connector is None)
    if connector is not None and view.connector is not None:
        np.testing.assert_allclose(view.connector, shares(connector.mean(0).astype(np.float64)), atol=1e-6)
    # tower: every patch's row, in the order of patches, and the blocks of patches summed into cells
    whole = {layer: full_tower(model, tiny.family, inputs, layer) for layer in layers}
    rows, columns = image.grid

    def merged(patches):
        return patches.reshape(-1, rows, finer, columns, finer).sum((2, 4)).reshape(-1, rows * columns)

    for layer in layers:
        np.testing.assert_allclose(view.tower[layer], shares(merged(whole[layer].mean(0)))[0], atol=1e-6)
    carried = cells.reshape(-1, rows, 1, columns, 1) / finer**2 * np.ones((1, 1, finer, 1, finer))
    carried = carried.reshape(len(cells), -1)
    for layer in reversed(layers):
        carried = (carried + shares(carried @ whole[layer])) / 2
    np.testing.assert_allclose(np.stack([*view.through_tower.values()]), merged(carried), atol=1e-6)


def test_several_pictures_and_tiles_and_margins(tmp_path):
    tiny = GRID_MODEL
    [one] = some_probes(tmp_path, 1)
    other = write_picture(tmp_path / "other.png", (31, 70), seed=3)
    two = Probe("two", "g", (*one.images, other), one.question, one.answer, one.foil, one.regions)
    [[alone], [first]] = Viewer(tiny.model(), tiny.processor(tmp_path)).look_all([one, two])
    assert first.image.grid == alone.image.grid and first.tower.keys() == alone.tower.keys() == {2}
    np.testing.assert_allclose(first.tower[2], alone.tower[2], atol=1e-6)  # the tower sees each for itself
    # patches in margins, or of tiles, are not those of the picture: no map of the tower rather than a wrong one
    for name in ("llava-1.5", "internvl"):
        model, processor = LLAVAS[name].model(), LLAVAS[name].processor(tmp_path / name)
        wide = Probe("wide", "g", (write_picture(tmp_path / "w.png", (80, 16)),), "?", "a", "b", one.regions)
        [[view]] = Viewer(model, processor, family=LLAVAS[name].family).look_all([wide])
        assert not view.tower and not view.through_tower and len(view.layers) == 2


def test_pictures_of_one_tile_are_looked_at_beside_each_other(tmp_path):
    """InternVL is not told which tiles make a picture: of two pictures of a tile each it gets two."""
    tiny = LLAVAS["internvl"]
    model, processor = tiny.model(), tiny.processor(tmp_path)
    one, two = (write_picture(tmp_path / f"{at}.png", (16, 16), seed=at) for at in range(2))
    regions = {"r": ((0, 0, 8, 8),)}
    alone, both = (Probe(str(len(of)), "g", of, "?", "a", "b", regions) for of in ((one,), (one, two)))
    [[first], [beside]] = Viewer(model, processor, family=tiny.family).look_all([alone, both])
    assert beside.image.tiles is None and beside.tower.keys() == first.tower.keys() != set()
    for layer, found in first.tower.items():
        np.testing.assert_allclose(beside.tower[layer], found, atol=1e-6)


def test_resolutions_are_shares_of_the_cells(tmp_path):
    tiny = GRID_MODEL
    model, processor = tiny.model(), tiny.processor(tmp_path)
    probes = some_probes(tmp_path, 2) + some_probes(tmp_path, 1, (200, 90), group="large")
    found = Viewer(model, processor, resolutions=(0.25, 1, 0.5)).look_all(probes)
    for views in found:
        assert [view.name for view in views] == ["", "at 0.5", "at 0.25"]
        counts = [view.image.grid[0] * view.image.grid[1] for view in views]
        assert counts[1] <= counts[0] / 2 and counts[2] <= counts[0] / 4
        assert len({view.image.image_size_pixels for view in views}) == 1
        for view in views:  # all cells together are the picture
            boxes = view.image.cell_boxes_pixels
            assert (boxes[:, 2:] - boxes[:, :2]).prod(1).sum() == pytest.approx(
                np.prod(view.image.image_size_pixels)
            )
    # of a picture above the processor's budget half is half of what is read, not of what is there
    assert [view.image.grid for view in found[2]][:2] == [(3, 7), (2, 5)]
    views = found[0]
    moved = single_maps(views)["layer_1 at 0.5"]
    np.testing.assert_allclose(
        moved, resampled(views[1].layers[1], views[1].image.cell_boxes_pixels, views[0].image), atol=1e-12
    )
    # the first reading is the probe's own, whatever else is asked
    [[plain]] = Viewer(model, processor).look_all(probes[:1])
    np.testing.assert_array_equal(plain.layers[1], views[0].layers[1])


def test_a_smaller_picture_is_smaller_for_answer_and_foil(tmp_path):
    [probe] = some_probes(tmp_path, 1)
    reader = ProbeEncoder(GRID_MODEL.family, GRID_MODEL.processor(tmp_path))
    whole, small = reader.read(probe), reader.read(probe, max_pixels=600)
    assert whole.foil is not None and small.foil is not None
    for one in (whole, small):
        pictured = [encoded.per_token["mm_token_type_ids"].sum() for encoded in (one.answer, one.foil)]
        assert pictured[0] == pictured[1] == np.prod(one.answer.images[0].grid)
    assert len(small.answer.input_ids) < len(whole.answer.input_ids)
    assert small.queries[0].text == whole.queries[0].text
    assert small.queries[0].position < whole.queries[0].position


def test_what_cannot_be_looked_at_says_so(tmp_path):
    tiny = GRID_MODEL
    model, processor = tiny.model(), tiny.processor(tmp_path)
    with pytest.raises(ValueError, match="no vision layer 3; expected 0 to 2, the last that the model reads"):
        Viewer(model, processor, vision_layers=[0, 3])
    for wrong in ((0.5,), (1, 0), (1, -0.5), (1, 1.5), (1, 0.5, 0.5), ()):
        with pytest.raises(ValueError, match="expected 1 .* and smaller shares"):
            Viewer(model, processor, resolutions=wrong)
    small = Probe(
        "small", "g", (write_picture(tmp_path / "s.png", (9, 9)),), "?", "a", "b", {"x": ((0, 0, 5, 5),)}
    )
    with pytest.raises(
        ValueError, match=r"probe small: its picture is read in 4 cells and never in 0.4 or fewer"
    ):
        Viewer(model, processor, resolutions=(1, 0.1)).look_all([small])
    fixed = ALL["qwen-vl"]
    with pytest.raises(
        ValueError, match="qwen-vl reads every picture at one size, so there is one resolution"
    ):
        Viewer(fixed.model(), fixed.processor(tmp_path / "fixed"), resolutions=(1, 0.5))
    blind = Viewer(model, processor, vision_layers=()).look_all(some_probes(tmp_path, 1))[0][0]
    assert not blind.tower and not blind.through_tower


def test_looking_leaves_no_trace(tmp_path):
    tiny = GRID_MODEL
    model = tiny.model().train()
    viewer = Viewer(model, tiny.processor(tmp_path), vision_layers=(0, 1, 2))
    state = torch.get_rng_state()
    viewer.look_all(some_probes(tmp_path, 1))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    tower = model.get_submodule(tiny.family.paths.vision_layers.rpartition(".")[0])
    assert not tower._forward_pre_hooks and not model._forward_pre_hooks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return GRID_MODEL.write(tmp_path_factory.mktemp("checkpoint") / "grid")


def test_the_program(checkpoint, tmp_path, capsys):
    probes = [*some_probes(tmp_path), Probe("plain", "towers", (tmp_path / "towers-0.png",), "?", "a", "b")]
    write_probes(probes, tmp_path / "probes.json")
    out = tmp_path / "out"
    command = [
        "--model",
        str(checkpoint),
        "--probes",
        str(tmp_path / "probes.json"),
        "--output_dir",
        str(out),
    ]
    main([*command, "--resolutions", "1", "0.5", "--vision_layers", "1", "2"])
    said = capsys.readouterr().out
    assert "1 probes name no region" in said and "all: 3 probes, 3 pictures judged, 3 others chose" in said
    assert "Too few probes to tell" in said and str(out / "fusion.json") in said
    content = json.loads((out / "fusion.json").read_text(encoding="utf-8"))
    maps = content["scopes"]["all"]["maps"]
    assert {"layer_0", "vision_layer_1", "layer_1 at 0.5", "layers_product", "resolutions_layer"} <= set(maps)
    assert content["resolutions"] == [1.0, 0.5] and content["vision_layers"] == [1, 2]
    assert not content["left_out"] and content["scopes"]["all"]["recommended"].startswith("layer_")
    assert len(content["probes"]) == 6 and content["probes"][0]["grids"] == [[4, 6], [2, 4]]
    assert {one["region"] for one in content["probes"]} == {"disc"}
    pictures = sorted((out / "fusion").iterdir())
    assert [path.name for path in pictures] == [f"towers-{i}.png" for i in range(6)]  # and no temporary file
    assert Image.open(pictures[0]).width == 1080
    assert sorted(path.name for path in out.iterdir()) == ["fusion", "fusion.json"]


def test_other_pictures_can_choose(checkpoint, tmp_path):
    write_probes(some_probes(tmp_path), tmp_path / "probes.json")
    write_probes(some_probes(tmp_path, 3, group="rooms"), tmp_path / "choosing.json")
    found = run(
        str(checkpoint),
        tmp_path / "probes.json",
        tmp_path,
        calibration_file=tmp_path / "choosing.json",
        vision_layers=(),
    )
    assert list(found) == ["all"] and found["all"].judged_on == 6 and found["all"].chosen_on == 3
    with pytest.raises(ValueError, match="6 of their pictures are also among the probes"):
        run(str(checkpoint), tmp_path / "probes.json", tmp_path, calibration_file=tmp_path / "probes.json")


def test_probes_of_both_files_may_have_the_same_ids(checkpoint, tmp_path):
    judged = some_probes(tmp_path, 2)
    choosing = [
        replace(one, id=other.id)
        for one, other in zip(some_probes(tmp_path, 2, group="rooms"), judged, strict=True)
    ]
    write_probes(judged, tmp_path / "probes.json")
    write_probes(choosing, tmp_path / "choosing.json")
    out = tmp_path / "out"
    run(
        str(checkpoint),
        tmp_path / "probes.json",
        out,
        calibration_file=tmp_path / "choosing.json",
        vision_layers=(),
    )
    drawn = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert drawn == [
        f"fusion/{name}.png" for name in ("choosing/towers-0", "choosing/towers-1", "towers-0", "towers-1")
    ]
    content = json.loads((out / "fusion.json").read_text(encoding="utf-8"))
    assert [(one["id"], one["chose"]) for one in content["probes"]] == [
        ("towers-0", True), ("towers-1", True), ("towers-0", False), ("towers-1", False)]  # fmt: skip


def test_errors_come_before_any_weight_is_loaded(tmp_path, capsys, monkeypatch):
    def never(*_: object, **__: object):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("finetune.model.checkpoint.load", never)
    folder = ALL["qwen-vl"].write(tmp_path / "fixed")
    write_probes(some_probes(tmp_path), tmp_path / "probes.json")
    write_probes([Probe("p", "g", (tmp_path / "towers-0.png",), "?", "a", "b")], tmp_path / "without.json")
    write_probes(some_probes(tmp_path, 1), tmp_path / "one.json")
    for probes, more, words in (
        ("probes.json", ["--resolutions", "1", "0.5"], "qwen-vl reads every picture at one size"),
        ("probes.json", ["--resolutions", "0.5"], "expected 1 (the picture as it is read)"),
        ("probes.json", ["--vision_layers", "7"], "no vision layer 7; expected 0 to 0"),
        ("without.json", [], "found 0 pictures with a region to choose on and 0 to judge"),
        ("one.json", [], "found 1 pictures with a region to choose on and 0 to judge"),
        ("nowhere.json", [], "no probe file there"),
    ):
        command = [
            "--model",
            str(folder),
            "--probes",
            str(tmp_path / probes),
            "--output_dir",
            str(tmp_path / "out"),
        ]
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert ended.value.code == 2 and words in capsys.readouterr().err


def test_the_sheet_has_three_panels_on_one_scale():
    boxes = np.array([[0, 0, 30, 60], [30, 0, 60, 60], [60, 0, 90, 60]], float)
    cold, hot = (CellMap(np.array(one), (1, 3), boxes) for one in ([1.0, 1.0, 1.0], [0.0, 0.0, 3.0]))
    sheet = FusionSheet(
        probe_id="p",
        group="g",
        picture=Image.new("RGB", (90, 60), (120, 120, 120)),
        question="这座塔是什么?",
        answer="东方明珠",
        regions={"spheres": ((65, 10, 85, 50),), "body": ((5, 5, 20, 20),)},
        single=Shown("layer_1", "best single map", cold, 1.0, False),
        fused=Shown("layers_mean", "best fusion", hot, 3.0, True),
        scope="all",
        verdict="better",
        chose=False,
    )
    page = np.asarray(draw_sheet(sheet)).astype(int)
    assert page.shape[1] == 1080
    middle = 132 + 60  # a row of pixels through the panels, above the judged box's middle
    single, fusion = page[middle, 374:706], page[middle, 724:1056]
    # an even map is one tint everywhere; the hot cell of the other is brighter than any of it, its cold ones darker
    inside = fusion[280:300].sum(-1).mean()
    assert inside > single[280:300].sum(-1).mean() + 100
    assert fusion[60:70].sum(-1).mean() < single[60:70].sum(-1).mean()
    white = (page[132 : 132 + 221, 24:356] == 255).all(-1)
    assert white.any()  # the judged region's outline, on the picture itself too
