"""Supervised rows of every family: dense eager attention's, with finite differences as their gradient (fp64)."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.attention.look_rows import CONNECTOR
from finetune.attention.watch import Watch
from finetune.data.dataset import Collator, Sample
from finetune.data.look import LookBatch, look_rows
from finetune.families.base import flash_fault
from finetune.families.parts.modules import attending_layers, attention_modules
from finetune.samples.conversation import Conversation, ImageRef, LookAt, Turn
from finetune.training.look import LookSettings, Supervision
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.flash_standin import standing_in, using

FAMILIES = {**ALL, **HYBRIDS, **LLAVAS, **SIGLIPS}
TARGET = 0.8
LEFT, RIGHT = ((0.0, 0.1, 0.45, 0.9),), ((0.6, 0.0, 1.0, 0.5), (0.7, 0.4, 0.9, 1.0))


def picture(width, height, seed=0):
    generator = np.random.default_rng(seed)
    return ImageRef("a", Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)))


def conversations():
    """A noun in the second of two pictures; a noun and a relation in one picture, and more words."""
    asked = Turn("user", (picture(50, 31), picture(31, 70, 1), "what?"))
    one = Turn("assistant", ("a cat",), look_at=(LookAt("cat", (LEFT,), 1),))
    looks = (LookAt("cat", (RIGHT,)), LookAt("on", (LEFT, RIGHT)))
    two = Turn("assistant", ("the cat is on it, I say",), look_at=looks)
    return [Conversation((asked, one)), Conversation((Turn("user", (picture(50, 31, 2), "and?")), two))]


@pytest.fixture(scope="module", params=[*FAMILIES])
def case(request, tmp_path_factory):
    """A tiny model in fp64, all of it trained, and a batch."""
    tiny = FAMILIES[request.param]
    torch.manual_seed(0)
    model, family = tiny.model().double(), tiny.family
    if "moe" in request.param:
        model.set_experts_implementation("eager")  # the grouped product knows no fp64
    processor = tiny.processor(tmp_path_factory.mktemp("processor"))
    samples = []
    for number, conversation in enumerate(conversations()):
        encoded = family.encode(processor, conversation)
        samples.append(Sample(number, encoded, 0, look_rows(conversation, encoded, processor, "phrase")))
    batch = Collator(processor.tokenizer.pad_token_id, family.blank(processor))([[one] for one in samples])
    about = batch.pop("about")
    batch.pop("labels")
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    return model, family, inputs, LookBatch(**about["look"])


def supervised(model, family, inputs, rows, loss="mass"):
    layers = attending_layers(model, family)
    supervision = Supervision(LookSettings(1.0, lambda: layers, loss, target=TARGET), model, family)
    with supervision.kept().keeping() as calls:
        model(**inputs, use_cache=False)
    return supervision.result(calls, rows)


class Dense:
    """Keeps the whole matrix that an eager kernel returns."""

    def __init__(self, name, kept):
        self.name, self.kept = name, kept

    def run(self, call):
        output = call.run()
        self.kept[self.name] = output[1]
        return output


def dense(model, family, inputs):
    """Float[batch, heads, queries, keys] of every module that attends, from eager attention."""
    kept = {}
    watch = Watch(kept_owner := type("Owner", (), {})(), model)
    for name, module in attention_modules(model, family).items():
        if name.startswith("layer_") or name == CONNECTOR:
            watch.kernel(module, Dense(name, kept))
    model(**inputs, use_cache=False)
    watch.close()
    del kept_owner
    return kept


def by_hand(maps, rows, loss):
    """Losses of each row, one by one, over whole matrices."""
    connector = maps[CONNECTOR].mean(1) if CONNECTOR in maps else None
    found = []
    for i in range(len(rows.at)):
        kept, at = rows.at[i].tolist()
        sequence, position = int(rows.sequences[kept]), int(rows.positions[kept, at])
        tokens = rows.tokens[i][rows.tokens[i] >= 0]
        layers = []
        for name, matrix in maps.items():
            if name == CONNECTOR:
                continue
            heads = matrix[sequence, :, position, tokens]
            if not heads.sum():  # a window that ends behind the picture: this layer can be asked nothing
                continue
            shares = (heads / heads.sum(-1, keepdim=True)).mean(0)
            if connector is not None:
                images = rows.images[i][rows.images[i] >= 0].tolist()
                parts = shares.view(len(images), -1)
                shares = torch.cat([part @ connector[at] for part, at in zip(parts, images, strict=True)])
            weights = rows.weights[i, : int(rows.ends[i]), : len(shares)].double()
            layers.append(row_loss(shares, weights, loss))
        found.append(torch.stack(layers).mean())
    return torch.stack(found)


def row_loss(shares, weights, loss):
    if loss == "mass":
        least = min((weights @ shares).tolist(), default=0)
        mass = (weights @ shares).min()
        assert float(mass.detach()) == pytest.approx(least)
        return torch.clamp(math.log(TARGET / len(weights)) - torch.log(mass + 1e-6), min=0)
    aim = 0.95 * (weights / weights.sum(-1, keepdim=True)).mean(0) + 0.05 / len(shares)
    return (aim * (aim.log() - (shares + 1e-6).log())).sum()


def gradients(model, value):
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    found = torch.autograd.grad(value, [one for _, one in named], allow_unused=True)
    return {name: grad for (name, _), grad in zip(named, found, strict=True) if grad is not None}


@pytest.mark.parametrize("loss", ["mass", "kl"])
def test_losses_and_gradients_are_those_of_dense_eager_attention(case, loss):
    model, family, inputs, rows = case
    assert len(rows.at) == 3 + 3 + 2  # bytes of "cat", "cat" and "on"
    result = supervised(model, family, inputs, rows, loss)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    expected = by_hand(dense(eager, family, inputs), rows, loss)
    torch.testing.assert_close(result.losses, expected, rtol=1e-6, atol=1e-7)
    assert (result.mass > 0).all() and (result.mass < 1).all() and (result.losses > 0.01).any()
    ours, theirs = gradients(model, result.losses.sum()), gradients(eager, expected.sum())
    assert ours.keys() == theirs.keys() and any("layers" in name or ".h." in name for name in ours)
    scale = max(float(one.abs().max()) for one in theirs.values())
    assert scale > 1e-4
    for name, one in ours.items():
        torch.testing.assert_close(one, theirs[name], rtol=1e-5, atol=1e-6 * scale, msg=name)


def test_gradients_are_finite_differences(case):
    model, family, inputs, rows = case
    named = gradients(model, supervised(model, family, inputs, rows).losses.sum())
    generator = torch.Generator().manual_seed(3)
    step = 1e-4 if "Gemma" in type(model).__name__ else 1e-5  # norms of Gemma are fp32 in every model
    way = {
        name: torch.randn(one.shape, generator=generator, dtype=torch.double) for name, one in named.items()
    }
    slope = sum(float((one * way[name]).sum()) for name, one in named.items())

    def at(distance):
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, one in way.items():
                own[name].add_(one, alpha=distance)
            found = float(supervised(model, family, inputs, rows).losses.sum())
            for name, one in way.items():
                own[name].sub_(one, alpha=distance)
        return found

    assert (at(step) - at(-step)) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=1e-4)
    assert abs(slope) > 1e-3


def test_under_flash_rows_and_gradients_are_those_of_sdpa(case):
    model, family, inputs, rows = case
    if flash_fault(family):
        pytest.skip(flash_fault(family))
    expected = supervised(model, family, inputs, rows).losses
    theirs = gradients(model, expected.sum())
    with standing_in(2), using(model, 2):
        found = supervised(model, family, inputs, rows).losses
        ours = gradients(model, found.sum())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, one in ours.items():
        torch.testing.assert_close(one, theirs[name], rtol=1e-5, atol=1e-8, msg=name)
