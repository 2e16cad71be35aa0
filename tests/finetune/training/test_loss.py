import math

import pytest
import torch
import torch.nn.functional as F

from finetune.training import loss as loss_module
from finetune.training.loss import Tally, step_loss, token_nats


def test_nats_by_hand():
    # Two positions over two words: the first is trained on word 1, the second on nothing.
    logits = torch.tensor([[[0.0, math.log(3.0)], [9.0, -9.0]]])
    targets = torch.tensor([[1, -100]])
    nats = token_nats(logits, targets)
    assert nats.tolist() == pytest.approx([-math.log(3 / 4)])
    assert step_loss(nats).item() == pytest.approx(-math.log(3 / 4))
    assert step_loss(nats, 5).item() == pytest.approx(-math.log(3 / 4) / 5)
    assert step_loss(nats, torch.tensor(5)).item() == pytest.approx(-math.log(3 / 4) / 5)
    smoothed = token_nats(logits, targets, label_smoothing=0.2).item()
    assert smoothed == pytest.approx(0.9 * -math.log(3 / 4) + 0.1 * -math.log(1 / 4))


def test_nothing_to_train_is_a_loss_of_0_whose_gradient_is_0():
    logits = torch.ones(1, 2, 3, requires_grad=True)
    for tokens in (None, 0, torch.tensor(0), torch.tensor(7)):
        loss = step_loss(token_nats(logits, torch.full((1, 2), -100)), tokens)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert (gradient == 0).all()


def test_micro_batches_add_up_to_the_batch():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 5, 9), torch.randint(9, (4, 5))
    targets[0, 2:] = -100
    targets[2] = -100
    count = (targets != -100).sum()
    whole = step_loss(token_nats(logits, targets))
    parts = [step_loss(token_nats(logits[i : i + 2], targets[i : i + 2]), count) for i in (0, 2)]
    assert torch.allclose(whole, sum(parts))
    assert torch.allclose(whole, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def test_a_tally_is_a_mean_over_tokens_by_source_and_resets():
    tally = Tally(3, torch.device("cpu"))
    tally.add(torch.tensor([1.0, 1.0]), torch.tensor([0, 2]), torch.tensor([0, 2]))
    tally.add(torch.tensor([4.0, 3.0]), torch.tensor([0, 0]), torch.tensor([0]))
    totals = tally.taken()
    assert (totals.samples, totals.tokens, totals.nats) == ([2, 0, 1], [3, 0, 1], [8.0, 0.0, 1.0])
    assert totals.mean_nats == pytest.approx(9 / 4)
    # A source of which nothing came has no mean.
    named = totals.by_source(["base", "replay", "spheres"], "eval_")
    assert named == {"eval_loss by source/base": pytest.approx(8 / 3), "eval_loss by source/spheres": 1.0}
    assert tally.taken() == ([0, 0, 0], [0, 0, 0], [0.0, 0.0, 0.0])


@pytest.mark.parametrize("has_fp64", [True, False])
def test_small_losses_count_beside_a_large_sum(monkeypatch: pytest.MonkeyPatch, has_fp64: bool):
    """In fp32, 65,536 nats and 0.001 are 65,536: a thousand tokens of a well-learned answer would weigh nothing."""
    monkeypatch.setattr(loss_module, "_has_fp64", lambda device: has_fp64)
    tally = Tally(2, torch.device("cpu"))
    tally.add(torch.tensor([65_536.0]), torch.tensor([1]), torch.tensor([1]))
    for _ in range(10):
        tally.add(torch.full((100,), 0.001), torch.ones(100, dtype=torch.long), torch.tensor([1]))
    totals = tally.taken()
    assert totals.nats == [0.0, pytest.approx(65_537, abs=1e-4)] and totals.tokens == [0, 1001]
