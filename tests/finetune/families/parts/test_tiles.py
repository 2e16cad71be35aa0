"""What families with tiles have in common: overviews, and the tower's rows over whole pictures.

Each is asked with a tower whose layers add nothing for where tokens are, and with its own for what attends.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers.image_processing_utils import select_best_resolution

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.attention import random_regions
from diagnostics.measures.geometry import cells_from_row
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import ProbeEncoder, padded, scored_span, text_spans
from diagnostics.probing.regions import region_tokens
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import Probe
from finetune.families import attention_modules
from finetune.families.parts import tower
from finetune.families.parts.coverage import region_coverage
from finetune.families.parts.tiles import Tiling, tiles_of
from tests.finetune.families.pictures import about, local_model, picture
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_siglip import SIGLIPS

CPU = torch.device("cpu")
TILED = {
    **{name: LLAVAS[name] for name in ("llava-next", "llava-onevision", "internvl")},
    **{name: SIGLIPS[name] for name in ("idefics3", "smolvlm")},
}
OVERVIEW_FIRST = ("llava-next", "llava-onevision")
FITTED = OVERVIEW_FIRST  # with margins; the others stretch
SIZES = [(90, 33), (31, 70), (50, 31), (97, 61), (57, 90)]


def test_the_canvas_of_a_picture_is_the_processors():
    drawn = np.random.default_rng(0)
    for _ in range(500):
        canvases = [tuple(map(int, drawn.integers(1, 5, 2) * 16)) for _ in range(drawn.integers(1, 9))]
        size = tuple(map(int, drawn.integers(3, 200, 2)))
        expected = select_best_resolution(size[::-1], canvases)
        assert tiles_of(Tiling(16, 4, canvases), size) == (expected[0] // 16, expected[1] // 16)


@pytest.fixture(scope="module", params=[*TILED])
def tiny(request):
    return TILED[request.param]


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    return tiny.processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model()


@pytest.fixture(scope="module")
def local(tiny):
    return local_model(tiny)


def marked(plain, box):
    """The picture with a spot in a box's middle."""
    x0, y0, x1, y1 = box
    spotted = plain.copy()
    inset = ((x1 - x0) / 3, (y1 - y0) / 3)
    spot = (x0 + inset[0], y0 + inset[1], x1 - inset[0], y1 - inset[1])
    ImageDraw.Draw(spotted).rectangle(spot, fill=(255, 0, 0))
    return spotted


@torch.no_grad()
def seen_at(model, module, inputs):
    """What enters a module in a forward: the first of its arguments."""
    taken = []
    hook = module.register_forward_pre_hook(
        lambda _, arguments, options: taken.append(arguments[0] if arguments else options["hidden_states"]),
        with_kwargs=True,
    )
    model(**inputs)
    hook.remove()
    return taken[0]


def read_by_language(model, family, encoded):
    first = model.get_submodule(family.paths.language_layers)[0]
    return seen_at(model, first, padded([encoded], CPU, left=False))[0].numpy()


# --- overviews -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES)
def test_every_cell_of_an_overview_is_the_token_of_the_pixels_that_it_names(tiny, processor, local, size):
    plain = Image.new("RGB", size, (90, 120, 150))
    image = tiny.family.encode(processor, about(plain)).images[0]
    overview = image.overview
    before = read_by_language(local, tiny.family, tiny.family.encode(processor, about(plain)))
    rows, columns = overview.grid
    for cell in {0, 1, columns - 1, (rows - 1) * columns, rows * columns - 1}:
        spotted = marked(plain, overview.cell_boxes_pixels[cell])
        after = read_by_language(local, tiny.family, tiny.family.encode(processor, about(spotted)))
        moved = np.abs(after - before).sum(1)
        assert moved[overview.positions].argmax() == cell
        assert {*moved.nonzero()[0].tolist()} <= {*image.all_positions.tolist()}


def test_a_question_begins_behind_the_picture_and_its_overview(tiny, processor):
    encoded = tiny.family.encode(processor, about(picture((90, 33))))
    image, (question, _) = encoded.images[0], text_spans(encoded)
    assert question[0] > image.all_positions.max()
    texts = ProbeEncoder(tiny.family, processor).texts(encoded)
    assert {texts[at] for at in image.all_positions} == {"<image>"}
    assert "what?" in "".join(texts[question[0] : question[1]])


def test_a_region_takes_its_overview_s_cells_along(tiny, processor):
    image = tiny.family.encode(processor, about(picture((90, 33)))).images[0]
    box = tuple(image.overview.cell_boxes_pixels[1].tolist())
    taken = {*region_tokens(image, [box], None).tolist()}
    assert taken & {*image.overview.positions.tolist()} == {int(image.overview.positions[1])}
    own = np.isin(image.positions, [*taken])
    assert own.sum() == max(1, round(region_coverage([box], image).sum()))
    assert region_coverage([box], image)[own].min() > 0


@torch.no_grad()
def margin(model, reader, probe, cut):
    """log p(answer) − log p(foil) where what follows the picture may not see ``cut``: each sequence read at once."""
    nats = []
    for reply in (probe.answer, probe.foil):
        one = reader.encode(probe, reply)
        after = int(one.images[0].all_positions.max()) + 1
        length = len(one.input_ids)
        sees = torch.ones(length, length, dtype=torch.bool).tril()
        sees[after:, torch.from_numpy(cut)] = False
        inputs = padded([one], CPU, left=False)
        added = torch.zeros(1, 1, length, length).masked_fill(~sees, torch.finfo(torch.float32).min)
        logits = model(**{**inputs, "attention_mask": added}).logits[0].log_softmax(-1)
        start, end = scored_span(one)
        nats.append(sum(float(logits[at - 1, one.input_ids[at]]) for at in range(start, end)))
    return nats[0] - nats[1]


def test_a_probe_counts_the_overview_in_map_share_and_knock_out(tiny, processor, model, tmp_path):
    size = (97, 61)
    picture(size).save(tmp_path / "a.png")
    first = tiny.family.encode(processor, about(picture(size))).images[0]
    columns = first.grid[1]
    x0, y0 = first.cell_boxes_pixels[columns + 1][:2]
    x1, y1 = first.cell_boxes_pixels[2 * columns + 2][2:]
    region = tuple(float(edge) for edge in (x0, y0, x1, y1))  # on edges of cells
    probe = Probe("p", "g", (tmp_path / "a.png",), "what?", "ab", "cd", {"r": (region,)}, {})
    depth = QUICK
    record = Prober(model, processor, key_layers=[0, 1], probes=[probe], depth=depth).run(probe, 0, "tiny")
    image, rows = record.image_tokens[0], record.rows[:, :, 0]
    assert image.overview is not None
    # The share: every token that is of the picture, and no other.
    everything = rows[..., image.positions].sum(-1) + rows[..., image.overview.positions].sum(-1)
    np.testing.assert_allclose(record.visual_share[:2], everything, atol=1e-6)
    # The map: the region's edges are cells' edges, so its mass is that of its own tokens and, of each of the
    # overview's, as much as the region has of the token's area.
    own = rows[..., image.positions] @ region_coverage([region], image)
    coarse = rows[..., image.overview.positions] @ region_coverage([region], image.overview)
    np.testing.assert_allclose(record.region_mass["r"][:2], (own + coarse) / everything, atol=1e-5)
    # The knock-out: region and controls, each with its cells of the overview.
    reader = ProbeEncoder(tiny.family, processor)
    [found] = [one for one in record.interventions if one.kind == "knockout"]
    controls = random_regions([region], size, count=depth.controls, name="p")
    expected = [
        margin(model, reader, probe, region_tokens(image, boxes, None)) for boxes in ([region], *controls)
    ]
    assert [found.margin_nats, *found.control_margins_nats] == pytest.approx(expected, abs=1e-4)
    own = np.intersect1d(region_tokens(image, [region], None), image.positions)
    assert abs(margin(model, reader, probe, own) - found.margin_nats) > 1e-3  # the overview alone would tell


# --- the tower -------------------------------------------------------------------------------------------
def geometry(tiny, model):
    """(pixels, patches) a side of a tile."""
    vision = model.config.vision_config
    pixels, patch = (np.max(one) for one in (vision.image_size, vision.patch_size))
    return int(pixels), int(pixels // patch)


def boxes_of_patches(tiny, model, image):
    """Where each patch of the joined tiles lies, in pixels of the picture; worked out from sizes alone."""
    pixels, side = geometry(tiny, model)
    rows, columns = image.tiles
    patch = model.config.vision_config.patch_size
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    width, height = image.image_size_pixels
    if tiny.family.name in FITTED:
        scale = min(rows * pixels / height, columns * pixels / width)
        new = [min(math.ceil(height * scale), rows * pixels), min(math.ceil(width * scale), columns * pixels)]
        y0, x0 = (rows * pixels - new[0]) // 2, (columns * pixels - new[1]) // 2
        per = (height / new[0], width / new[1])
    else:
        y0 = x0 = 0
        per = (height / (rows * pixels), width / (columns * pixels))
    boxes = np.zeros((rows * side, columns * side, 4))
    for row in range(rows * side):
        for column in range(columns * side):
            top = (row // side * pixels + row % side * patch - y0) * per[0]
            left = (column // side * pixels + column % side * patch - x0) * per[1]
            boxes[row, column] = (left, top, left + patch * per[1], top + patch * per[0])
    return boxes.reshape(-1, 4)


@pytest.mark.parametrize("size", SIZES)
def test_a_marked_patch_is_where_the_tower_s_sequences_say(tiny, processor, model, size):
    """Among the tiles' places: what enters the first layer changes most at the marked patch's."""
    plain = Image.new("RGB", size, (90, 120, 150))
    encoded = tiny.family.encode(processor, about(plain))
    image = encoded.images[0]
    layers = model.get_submodule(tiny.family.paths.vision_layers)
    before = seen_at(model, layers[0], padded([encoded], CPU, left=False)).numpy()
    parameter = "hidden_states" if tiny.family.name == "internvl" else "inputs_embeds"
    sequences = tiny.family.tower_sequences(model.config, 0, {parameter: before, "tiles": [image.tiles]})
    assert [len(one) for one in sequences] == [before.shape[1]] * before.shape[0]
    assert sum(one.is_overview for one in sequences) == 1
    assert sequences[0 if tiny.family.name in OVERVIEW_FIRST else -1].is_overview
    boxes = boxes_of_patches(tiny, model, image)
    _, side = geometry(tiny, model)
    assert sorted(p for one in sequences if not one.is_overview for p in one.patch if p >= 0) == [
        *range(len(boxes))
    ]
    inside = [
        number
        for number, (x0, y0, x1, y1) in enumerate(boxes)
        if x0 >= 0 and y0 >= 0 and x1 <= size[0] and y1 <= size[1]
    ]
    columns = image.tiles[1] * side
    some = {inside[0], inside[side], inside[len(inside) // 2], inside[-1], inside[-columns]}
    for number in some:
        spotted = marked(plain, boxes[number])
        given = padded([tiny.family.encode(processor, about(spotted))], CPU, left=False)
        moved = np.abs(seen_at(model, layers[0], given).numpy() - before).sum(-1)
        for view, sequence in enumerate(sequences):
            if sequence.is_overview:
                moved[view] = 0
        view, place = np.unravel_index(moved.argmax(), moved.shape)
        assert sequences[view].patch[place] == number and sequences[view].image[place] == 0


@pytest.mark.parametrize("size", SIZES)
def test_features_of_one_patch_move_its_cell_alone(tiny, processor, local, size):
    """One patch is made louder before the tower's layers. What moves at the language model is the cell that has the
    patch in its box; of the overview's patches, the overview's cell; nothing else. (Pooled tokens mix neighbours.)"""
    encoded = tiny.family.encode(processor, about(picture(size)))
    image = encoded.images[0]
    inputs = padded([encoded], CPU, left=False)
    layer = local.get_submodule(tiny.family.paths.vision_layers)[0]
    given = seen_at(local, layer, inputs)
    parameter = "hidden_states" if tiny.family.name == "internvl" else "inputs_embeds"
    sequences = tiny.family.tower_sequences(local.config, 0, {parameter: given, "tiles": [image.tiles]})
    before = read_by_language(local, tiny.family, encoded)
    is_pooled = tiny.family.name == "llava-onevision" and image.tiles[0] * image.tiles[1] > 3
    boxes = boxes_of_patches(tiny, local, image)
    side = geometry(tiny, local)[1]
    rng = np.random.default_rng(0)
    for view in range(len(sequences)):
        place = int(rng.integers(sequences[view].patch.argmin() + 1, given.shape[1]))
        patch = int(sequences[view].patch[place])
        if sequences[view].is_overview:
            of, (row, column) = image.overview, np.divmod(patch, side)
            width, height = size
            box = (
                column / side * width,
                row / side * height,
                (column + 1) / side * width,
                (row + 1) / side * height,
            )
        else:
            of, box = image, boxes[patch]
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        x0, y0, x1, y1 = of.cell_boxes_pixels.T
        has_it = (x0 <= middle[0]) & (middle[0] < x1) & (y0 <= middle[1]) & (middle[1] < y1)
        hook = layer.register_forward_pre_hook(louder(view, place), with_kwargs=True)
        moved = {*np.abs(read_by_language(local, tiny.family, encoded) - before).sum(1).nonzero()[0].tolist()}
        hook.remove()
        named = {*of.positions[has_it].tolist()}
        is_whole = box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
        if is_pooled and not sequences[view].is_overview:
            assert named <= moved or not is_whole
        elif is_whole:
            assert moved == named and len(named) == 1
        else:
            assert len(moved) <= 1 and moved <= {*of.positions.tolist()}


def louder(view, place):
    """A hook that changes one place of what enters a layer."""

    def change(_, arguments, options):
        hidden = arguments[0] if arguments else options["hidden_states"]
        changed = hidden.clone()
        changed[view, place] += torch.linspace(-1, 2, hidden.shape[-1])
        return (
            ((changed, *arguments[1:]), options)
            if arguments
            else (arguments, {**options, "hidden_states": changed})
        )

    return change


def direct(model, family, layer, inputs):
    """Float[views, heads, patches, patches]: each view's attention in a layer of the tower, computed again."""
    module = attention_modules(model, family)[f"vision_layer_{layer}"]
    hidden = seen_at(model, module, inputs)
    shape = family.attention_shape(model.config, f"vision_layer_{layer}")
    parts = (*hidden.shape[:2], shape.heads, shape.head_width)
    with torch.no_grad():
        q, k = module.q_proj(hidden), module.k_proj(hidden)
        if hasattr(module, "q_norm"):
            q, k = module.q_norm(q), module.k_norm(k)
        q, k = (one.view(parts).transpose(1, 2) for one in (q, k))
        rows = (q @ k.transpose(2, 3) * shape.head_width**-0.5).softmax(-1).numpy()
    classes = rows.shape[-1] - math.isqrt(rows.shape[-1]) ** 2
    return rows[:, :, classes:, classes:]


def joined(views, tiles):
    """Float[heads, patches, patches] over a picture's patches, from its tiles' in their order."""
    side = math.isqrt(views.shape[-1])
    rows, columns = tiles
    out = np.zeros((views.shape[1], *[rows * side, columns * side] * 2), np.float32)
    for number, view in enumerate(views):
        y, x = number // columns * side, number % columns * side
        out[:, y : y + side, x : x + side, y : y + side, x : x + side] = view.reshape(
            -1, side, side, side, side
        )
    return out.reshape(views.shape[1], *[rows * columns * side**2] * 2)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_of_the_tower_are_joined_over_each_picture(tiny, processor, model, kernel):
    """Two pictures, wide and tall, in two sequences of one pass; their overviews are images 2 and 3."""
    encoded = [
        tiny.family.encode(processor, about(picture(size, seed))) for seed, size in enumerate(SIZES[:2])
    ]
    inputs = padded(encoded, CPU, left=False)
    tiles = [one.images[0].tiles for one in encoded]
    model.set_attn_implementation(kernel)
    views = direct(model, tiny.family, 1, inputs)
    found = {}
    for image in range(4):
        with (
            torch.no_grad(),
            AttentionExtractor(
                model, [0], images=[image], vision_layers=[1], tiles=tiles, family=tiny.family
            ) as seen,
        ):
            model(**inputs)
        found[image] = seen.attention_weights["vision_layer_1"]
    model.set_attn_implementation("sdpa")
    start = 0
    for image, grid in enumerate(tiles):
        count = grid[0] * grid[1]
        own = views[start : start + count + 1]
        overview, own = (own[0], own[1:]) if tiny.family.name in OVERVIEW_FIRST else (own[-1], own[:-1])
        assert found[image].shape[0] == 1
        assert np.abs(found[image][0] - joined(own, grid)).max() < 1e-6
        assert np.abs(found[2 + image][0] - overview).max() < 1e-6
        start += count + 1
    assert start == len(views)


def test_chosen_patches_and_what_is_kept_where_nothing_is_named(tiny, processor, model):
    encoded = tiny.family.encode(processor, about(picture((90, 33))))
    inputs = padded([encoded], CPU, left=False)
    options = {"vision_layers": [0], "tiles": [encoded.images[0].tiles], "family": tiny.family}
    with torch.no_grad():
        with AttentionExtractor(model, [0], **options) as seen:
            model(**inputs)
        whole = seen.attention_weights["vision_layer_0"]
        with AttentionExtractor(model, [0], images=[0], vision_tokens=[7, -1, 0], **options) as seen:
            model(**inputs)
        some = seen.attention_weights["vision_layer_0"]
        with AttentionExtractor(model, [0], images=[0, 1], **options) as seen:
            model(**inputs)
        sizes = " patches, expected one size for one array; ask for one at a time"
        with pytest.raises(ValueError, match=sizes):
            _ = seen.attention_weights
        with AttentionExtractor(model, [0], images=[5], **options) as seen:
            words = r"vision_layer_0: image 5 does not exist; expected one of \[0, 1\]"
            with pytest.raises(ValueError, match=words):
                model(**inputs)
            seen.images = [0]
            model(**inputs)
        np.testing.assert_allclose(seen.attention_weights["vision_layer_0"], whole, atol=1e-6)
    assert whole.shape[0] == 1  # the picture, without its overview
    np.testing.assert_allclose(some[0], whole[0][:, [7, whole.shape[-1] - 1, 0]], atol=1e-6)


def test_a_picture_s_tiles_come_from_the_model_s_inputs_or_are_required(tiny, processor, model):
    encoded = tiny.family.encode(processor, about(picture((90, 33))))
    inputs = padded([encoded], CPU, left=False)
    options = {"images": [0], "vision_layers": [0], "family": tiny.family}
    tapped = AttentionExtractor(model, [0], tiles=[encoded.images[0].tiles], **options)
    with torch.no_grad(), tapped:
        model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    expected = tapped.attention_weights["vision_layer_0"]
    with torch.no_grad(), AttentionExtractor(model, [0], **options) as seen:
        words = r"no tiles that group them by picture; give tiles=\["
        if tiny.family.name in OVERVIEW_FIRST:  # by image_sizes; but not before the model's own forward
            model(**inputs)
            assert np.array_equal(seen.attention_weights["vision_layer_0"], expected)
            with pytest.raises(ValueError, match=words):
                model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)
        else:
            with pytest.raises(ValueError, match=words):
                model(**inputs)
    with torch.no_grad(), AttentionExtractor(model, [0], family=tiny.family) as seen:
        model(**inputs)  # without the tower's rows no tiles are needed
        assert "layer_0" in seen.attention_weights


def test_knocked_out_patches_of_a_picture_are_seen_by_none_and_overviews_are_left_alone(
    tiny, processor, model
):
    encoded = tiny.family.encode(processor, about(picture((90, 33))))
    inputs, tiles = padded([encoded], CPU, left=False), encoded.images[0].tiles
    count = geometry(tiny, model)[1] ** 2 * tiles[0] * tiles[1]
    hidden = [0, 5, count - 1]
    blocked = torch.zeros(2, 1, count, dtype=torch.bool)
    blocked[0, 0, hidden] = True
    blocked[1, 0, 3] = True
    for given, of_overview in ((blocked[:1], []), (blocked, [3])):
        for image, gone in ((0, hidden), (1, of_overview)):
            with (
                torch.no_grad(),
                AttentionExtractor(
                    model, [0], images=[image], vision_layers=[0], tiles=[tiles], family=tiny.family
                ) as seen,
                seen.knocked_out({"vision_layer_0": given}),
            ):
                model(**inputs)
            found = seen.attention_weights["vision_layer_0"][0]
            empty = np.flatnonzero((found == 0).all((0, 1)))
            assert empty.tolist() == gone
    # Images are chosen for rows; where none of the tower are kept, a choice from another pass does no harm.
    with (
        torch.no_grad(),
        AttentionExtractor(model, [0], images=[9], tiles=[tiles], family=tiny.family) as seen,
        seen.knocked_out({"vision_layer_0": blocked}),
    ):
        model(**inputs)


def test_tiles_of_another_picture_are_refused(tiny, processor, model):
    """Fewer views than expected: rows would stand at other places, and the rest of the picture get none."""
    encoded = tiny.family.encode(processor, about(picture((90, 33))))
    rows, columns = encoded.images[0].tiles
    options = {"images": [0], "vision_layers": [0], "tiles": [(rows + 1, columns)], "family": tiny.family}
    views = rows * columns + 1
    words = (
        rf"called with {views} sequences, expected {views + columns}, as .* tiles=… says; give the tiles of"
    )
    with (
        torch.no_grad(),
        AttentionExtractor(model, [], **options),
        pytest.raises(ValueError, match=words),
    ):
        model(**padded([encoded], CPU, left=False))


def test_tiles_by_hand():
    """1 × 2 tiles of 2 × 2 patches, then a picture that is read as one."""
    found = tower.tiled([(1, 2), None], (2, 2), overview_first=True, class_tokens=1)
    assert [one.patch.tolist() for one in found] == [
        [-1, 0, 1, 2, 3], [-1, 0, 1, 4, 5], [-1, 2, 3, 6, 7], [-1, 0, 1, 2, 3]]  # fmt: skip
    assert [(one.image[0], one.is_overview) for one in found] == [
        (2, True),
        (0, False),
        (0, False),
        (1, False),
    ]
    [*_, last] = tower.tiled([(2, 1)], (1, 3), overview_first=False)
    assert (last.image.tolist(), last.is_overview) == ([1, 1, 1], True)
    assert tower.tiled([(2, 1)], (1, 3), overview_first=False)[1].patch.tolist() == [3, 4, 5]


@pytest.mark.parametrize("canvas", [(20, 42), (42, 20), (43, 42), (0, 21)])
def test_canvases_of_less_than_whole_tiles_are_refused(canvas):
    with pytest.raises(ValueError, match=r"image_grid_pinpoints: found .*, expected whole tiles of 21 × 21"):
        Tiling(21, 5, [(42, 21), canvas])


def test_a_map_has_all_of_the_attention_on_the_picture(tiny, processor):
    """A row that looks at one of the overview's tokens alone: its place, and what is under it."""
    image = tiny.family.encode(processor, about(picture((57, 90)))).images[0]
    length = int(image.all_positions.max()) + 1
    for number in (0, 1, len(image.overview.positions) - 1):
        row = np.zeros(length)
        row[image.overview.positions[number]] = 0.25
        cells = cells_from_row(row, image)
        assert cells.sum() == pytest.approx(1)
        box = tuple(image.overview.cell_boxes_pixels[number].tolist())
        under = region_coverage([box], image)
        assert ((cells > 1e-12) == (under > 1e-9)).all()
        boxes = image.cell_boxes_pixels
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        np.testing.assert_allclose(cells, under * areas / ((box[2] - box[0]) * (box[3] - box[1])), atol=1e-9)
