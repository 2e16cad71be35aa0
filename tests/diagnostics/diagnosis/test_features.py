"""States of cells in every family: the rows that are said to be a cell's decide its image token and no other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.capture.stations import Stations
from diagnostics.diagnosis.features import Asked, cell_rows, features_of
from diagnostics.probing.prompts import ProbeEncoder, padded
from diagnostics.records.probes import Probe
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

FAMILIES = {**ALL, **HYBRIDS, **LLAVAS, **SIGLIPS}
WIDTH, HEIGHT = 60, 36


@pytest.fixture(scope="module", params=[*FAMILIES])
def tiny(request, tmp_path_factory):
    """Family, model, processor and a probe on a picture that is not square, whose right two thirds are the region."""
    one, folder = FAMILIES[request.param], tmp_path_factory.mktemp("tiny")
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    regions = {"right": ((20, 0, WIDTH, HEIGHT),)}
    probe = Probe("noise", "group", (folder / "noise.png",), "What?", "red", "blue", regions)
    return one.family, one.model(), one.processor(folder), probe


@pytest.fixture(scope="module")
def read(tiny):
    """The encoded probe, its forward's inputs, and the rows of its cells."""
    family, model, processor, probe = tiny
    encoded = ProbeEncoder(family, processor).read(probe).answer
    inputs = padded([encoded], torch.device("cpu"), left=False)
    with torch.no_grad(), Stations(model, family=family) as stations:
        model(**inputs, use_cache=False)
        return encoded, inputs, cell_rows(model, family, stations, encoded)


def tokens(model, family, inputs, change=None):
    """What enters the first language layer, Float[tokens, width]; ``change`` is applied to the connector's input."""

    def hook(module, arguments, options):
        given = arguments[0] if arguments else next(iter(options.values()))
        changed = given.contiguous().clone()
        rows = changed.view(-1, changed.shape[-1])
        rows[change] += torch.linspace(-1, 2, rows.shape[-1]) ** 2  # not a constant, which norms take away
        return (
            ((changed, *arguments[1:]), options)
            if arguments
            else ((), {**options, next(iter(options)): changed})
        )

    connector = model.get_submodule(family.paths.connector[0])
    handle = None if change is None else connector.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad(), HiddenStates(model, [0], family=family) as states:
        model(**inputs, use_cache=False)
    if handle is not None:
        handle.remove()
    return states.hidden_states["layer_0"][0]


def test_the_rows_of_a_cell_are_those_that_its_token_is_made_of(tiny, read):
    family, model, _, _ = tiny
    encoded, inputs, views = read
    assert views, "no cell of the picture has rows"
    plain = tokens(model, family, inputs)
    for of_cells, view in views:
        assert len(of_cells) == view.grid[0] * view.grid[1]
        assert len(np.unique(of_cells)) == of_cells.size, "two cells share a row"
        if view.through_connector:
            continue  # a resampler's tokens each read every patch
        for cell in {0, view.grid[1], len(of_cells) - 1}:
            moved = tokens(model, family, inputs, torch.from_numpy(of_cells[cell]))
            changed = np.flatnonzero(np.abs(moved - plain).max(1) > 1e-6)
            assert changed.tolist() == [view.positions[cell]]


def test_a_place_is_the_mean_of_its_cells_by_how_much_they_are_covered(tiny, read):
    """A region that is one whole cell gives that cell's own token."""
    family, model, processor, probe = tiny
    encoded, inputs, _ = read
    image = encoded.images[0]
    boxes = (tuple(image.cell_boxes_pixels[1]),)
    [found] = features_of(model, processor, [Asked(probe, boxes, boxes)], family=family)
    assert found.tower is not None and found.tokens is not None and found.tower.background is not None
    states = tokens(model, family, inputs)
    if not image.through_connector:
        np.testing.assert_allclose(found.tokens.region[0], states[image.positions[1]], atol=1e-5)
        free = np.delete(states[image.positions], 1, axis=0).mean(0)
        np.testing.assert_allclose(found.tokens.background[0], free, atol=1e-4)
    assert all(
        np.isfinite(block).all() for block in (*found.tower.region, *found.tokens.region, *found.answer)
    )


def test_the_answers_state_is_what_its_words_are_read_from(tiny):
    """Through the head it gives the logits of the token where answer and foil part."""
    family, model, processor, probe = tiny
    [found] = features_of(model, processor, [Asked(probe, None, ())], family=family)
    assert found.tower is None and found.tokens is None and len(found.answer) == 3
    asked = ProbeEncoder(family, processor).read(probe)
    with torch.no_grad():
        logits = model(**padded([asked.answer], torch.device("cpu"), left=False), use_cache=False).logits
        head = model.get_submodule(family.paths.language[-1])
        again = head(torch.from_numpy(found.answer[-1]))
    expected = logits[0, asked.queries[0].position].float()
    assert torch.corrcoef(torch.stack([again, expected]))[0, 1] > 0.99  # some cap or scale their logits
    assert again.argsort()[-5:].tolist() == expected.argsort()[-5:].tolist()


def test_a_region_beyond_every_cell_is_refused(tiny):
    family, model, processor, probe = tiny
    outside = replace(probe, regions={"right": ((WIDTH + 50, 0, WIDTH + 60, 9),)})
    with pytest.raises(ValueError, match="probe noise: its region covers no cell"):
        features_of(model, processor, [Asked(outside, outside.regions["right"], ())], family=family)


def test_tokens_that_are_the_same_for_every_picture_tell_no_picture_from_another(tmp_path):
    """A resampler whose tokens differ from each other, and not from picture to picture, though its attention does."""
    tiny = ALL["qwen-vl"]
    model, processor, asked = tiny.model(), tiny.processor(tmp_path), []
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
        boxes = ((0, 0, 20, 12),)
        probe = Probe(
            str(seed), "group", (tmp_path / f"{seed}.png",), "What?", "red", "blue", {"corner": boxes}
        )
        asked.append(Asked(probe, boxes, boxes))
    visual = model.get_submodule("transformer.visual")
    same = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    visual.register_forward_hook(lambda _, __, output: same.expand_as(output))
    found = features_of(model, processor, asked, family=tiny.family)
    for one in found[1:]:
        np.testing.assert_array_equal(one.tokens.region[0], found[0].tokens.region[0])


def test_blank_pictures_leave_what_the_words_alone_do(tiny, tmp_path):
    """Two pictures of one size: their states differ, and with grey in their place they are the same."""
    family, model, processor, probe = tiny
    pixels = np.full((HEIGHT, WIDTH, 3), (240, 20, 30), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    other = replace(probe, id="red", images=(tmp_path / "red.png",))
    asked = [Asked(one, None, (), blank=blank) for blank in (False, True) for one in (probe, other)]
    first, second, *blank = features_of(model, processor, asked, family=family)
    assert not all(np.allclose(*both) for both in zip(first.answer, second.answer, strict=True))
    for one, two in zip(blank[0].answer, blank[1].answer, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first.words == second.words == blank[0].words


def test_the_words_up_to_the_answer_are_the_question_and_what_both_replies_begin_with(tiny, tmp_path):
    family, model, processor, probe = tiny
    Image.new("RGB", (WIDTH + 20, HEIGHT), (9, 9, 9)).save(tmp_path / "wide.png")
    asked = [
        probe,
        replace(probe, images=(tmp_path / "wide.png",), answer="blue", foil="red"),
        replace(probe, question="Which hue?"),
        replace(probe, answer="red tower", foil="red lamp"),
    ]
    plain, wide, hue, longer = (
        one.words
        for one in features_of(model, processor, [Asked(one, None, ()) for one in asked], family=family)
    )
    assert plain == wide != hue
    assert longer[: len(plain)] == plain and len(longer) > len(plain)
