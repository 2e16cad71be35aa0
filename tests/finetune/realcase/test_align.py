"""The connector in closed form: a hand-computed ridge, an exact map through GELU, and things named that were unseen."""

import numpy as np
import pytest
import torch
from torch import nn

from finetune.realcase import align
from finetune.realcase.align import Example, Words
from tests.finetune.realcase.parts_in_small import PIXELS, drawn_pictures, language


def test_a_ridge_by_hand():
    """Two cells, at 1 and 3 (mean 2, deviation √2): standardised ∓1/√2, whose squares sum to 1. Targets 0 and 4:
    with a penalty of 1 half of the slope of 2 stays."""
    weight, bias = align.ridge(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]]), 1.0)
    assert weight.item() == pytest.approx(1.0, abs=1e-4) and bias.item() == pytest.approx(0.0, abs=1e-3)


class Projector(nn.Module):
    def __init__(self, wide, out):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(wide, out), nn.Linear(out, out)

    def forward(self, x):
        return self.linear_2(nn.functional.gelu(self.linear_1(x)))


def test_a_map_of_low_rank_passes_gelu_unchanged():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, generator=generator) @ torch.randn(4, 12, generator=generator)
    bias, inputs = torch.randn(8, generator=generator), torch.randn(5, 12, generator=generator)
    projector = Projector(12, 8)
    assert align.write_linear(projector, weight, bias) == pytest.approx(1)
    torch.testing.assert_close(projector(inputs), inputs @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_of_a_map_of_high_rank_the_strongest_part_stays():
    weight, projector = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), Projector(4, 4)
    assert align.write_linear(projector, weight, torch.zeros(4)) == pytest.approx((16 + 9) / 30)
    torch.testing.assert_close(projector(torch.eye(4)), torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0])))


def words(width=24):
    generator = torch.Generator().manual_seed(1)
    names = {name: torch.randn(width, generator=generator) for name in ("frog", "owl", "car")}
    return Words(names, torch.zeros(width), 0.5 * torch.randn(width, generator=generator))


def example(rng, hidden):
    """3 × 3 cells of 10 × 20 pixels; what a cell shows and where it is are directions of the features."""
    name, cell = rng.choice(list(hidden)), int(rng.integers(9))
    row, column = divmod(cell, 3)
    features = 0.05 * torch.from_numpy(rng.standard_normal((9, 20))).float()
    features[cell] += hidden[name]
    features[:, 0] += torch.tensor([-1.0] * 3 + [0] * 3 + [1] * 3)
    box = (10 * column, 20 * row, 10 * column + 10, 20 * row + 20)
    return Example(features, {str(name): [box]}, (30, 60))


def test_targets_name_the_cell_and_its_place():
    known = words()
    one = Example(torch.zeros(9, 20), {"owl": [(20, 20, 30, 40)]}, (30, 60))
    target, is_thing = align.token_targets(one, known)
    assert is_thing.tolist() == [False] * 5 + [True] + [False] * 3
    # Its middle is halfway down: neither above nor below.
    torch.testing.assert_close(target[5], known.names["owl"])
    torch.testing.assert_close(target[0], 2 / 3 * known.above)


def test_targets_of_a_wide_picture_are_those_of_its_tiles_and_of_its_overview():
    """Two tiles of 2 × 2 tokens, and an overview. The owl fills the right tile's third token, the seventh; of the
    overview's last it covers half, which is not enough."""
    known = words()
    one = Example(torch.zeros(12, 20), {"owl": [(20, 20, 30, 40)]}, (40, 40), (1, 2))
    target, is_thing = align.token_targets(one, known)
    assert is_thing.nonzero().ravel().tolist() == [6]
    torch.testing.assert_close(target[6], known.names["owl"] - 0.5 * known.above)
    torch.testing.assert_close(target[[8, 10]], torch.stack([0.5 * known.above, -0.5 * known.above]))
    wider = one._replace(boxes={"owl": [(20, 20, 40, 40)]})
    assert align.token_targets(wider, known)[1].nonzero().ravel().tolist() == [6, 7, 11]


def test_things_are_named_and_places_told_on_pictures_that_were_not_fitted():
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(2)
    hidden = {name: 2 * torch.randn(20, generator=generator) for name in ("frog", "owl", "car")}
    made = [example(rng, hidden) for _ in range(240)]
    fitted = align.fit(made[:200], made[200:], words())
    assert fitted.named > 0.9 and fitted.chance == pytest.approx(1 / 3) and fitted.above > 0.9
    shuffled = [
        one._replace(boxes={str(rng.choice(list(hidden))): boxes for boxes in one.boxes.values()})
        for one in made
    ]
    assert align.fit(shuffled[:200], made[200:], words()).named < 0.7


def test_names_of_all_languages_are_in_the_target():
    model, tokenizer = language()
    found = align.words_of(model, tokenizer, {"owl": ("owl", "猫头鹰"), "car": ("car",)})
    table = model.get_input_embeddings().weight.detach()
    mean = table[tokenizer("owl").input_ids].mean(0) + table[tokenizer("猫头鹰").input_ids].mean(0)
    assert found.above.shape == (32,)
    torch.testing.assert_close(found.names["owl"] / found.names["owl"].norm(), mean / mean.norm())
    assert found.names["car"].norm() == pytest.approx(table.norm(dim=1).mean().item(), rel=1e-4)


def test_features_are_those_that_enter_the_connector(tmp_path):
    from finetune.realcase import assemble
    from finetune.realcase.onnx_weights import read_onnx
    from tests.finetune.realcase.parts_in_small import HEAD_WIDTH, as_onnx, dinov2

    (tmp_path / "tower.onnx").write_bytes(as_onnx(dinov2()))
    tower = assemble.read_tower(read_onnx(tmp_path / "tower.onnx"), PIXELS, head_width=HEAD_WIDTH)
    model, processor = assemble.put_together(tower, language())
    seen = list(align.seen_things(drawn_pictures(), 9, "x"))
    assert [len(boxes) for _, boxes in seen] == [2] * 7 + [1, 2]
    found = align.examples(model.eval(), processor, seen[5:9])
    assert [(one.features.shape[0], one.size, one.tiles) for one in found] == [
        (27, (896, 448), (1, 2)), (27, (896, 448), (1, 2)), (9, (448, 448), (1, 1)), (27, (896, 448), (1, 2)),
    ]  # fmt: skip
    pixels = processor.image_processor([seen[6][0]], return_tensors="pt")["pixel_values"]
    projector = model.model.multi_modal_projector
    out = projector.linear_2(projector.act(projector.linear_1(found[1].features)))
    expected = model.model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(out, expected.flatten(0, 1))
