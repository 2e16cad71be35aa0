from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data.dataset import Collator, ConversationDataset, build_dataset
from finetune.data.packing import kernel_note, needs_one_row, pack
from finetune.families.qwen_vl import QwenVLFamily
from finetune.model import checkpoint
from finetune.samples.source import read
from finetune.training.loss import step_loss, token_nats

FAMILY = QwenVLFamily()


def test_first_fit_by_hand():
    # 5 opens row 0, 4 does not fit beside it and opens row 1; 3 goes to the first row that has room.
    assert pack(np.array([5, 4, 3, 3, 1, 8]), 8).tolist() == [0, 1, 0, 1, 1, 2]
    assert pack(np.array([], np.int64), 8).tolist() == []
    # With one open row, a row that was left behind stays as it is.
    assert pack(np.array([5, 4, 3, 3]), 8, open_rows=1).tolist() == [0, 1, 1, 2]
    with pytest.raises(AssertionError, match="refused before"):
        pack(np.array([9]), 8)


def test_rows_are_full_near_their_place_in_the_order_and_never_over():
    tokens = np.random.default_rng(0).integers(20, 900, 5000)
    rows = pack(tokens, 2048)
    filled = np.bincount(rows, tokens)
    assert filled.max() <= 2048 and filled.sum() / (len(filled) * 2048) > 0.97
    assert (np.bincount(rows) > 0).all()
    begun = np.maximum.accumulate(rows)
    assert (begun - rows).max() < 64


def test_the_note_tells_what_a_mask_takes():
    assert "8,192 × 8,192 (64 MiB)" in kernel_note("sdpa", 8192)
    assert "without a mask; the rows of a batch are joined into one" in kernel_note("flash_attention_2", 8192)


def test_rows_are_joined_for_kernels_that_take_no_mask():
    flash = ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2")
    assert all(map(needs_one_row, flash)) and not any(map(needs_one_row, ("sdpa", "eager", "flex_attention")))


# ---------------------------------------------------------------------------------------------------------------------
# Packed rows train as their samples do
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(checkpoint_folder: Path, data_file: Path) -> tuple[Any, Any, ConversationDataset]:
    model, processor = checkpoint.load(checkpoint_folder, for_training=True)
    dataset = build_dataset(
        read(data_file, say=lambda _: None), processor, FAMILY, max_length=200, on_bad_sample="error"
    )
    return model, processor, dataset


def losses_and_gradients(
    parts: Any, rows: list[tuple[int, ...]], packed: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Nats of each trained token in the order of the samples, and the gradient of their mean."""
    model, processor, dataset = parts
    collator = Collator(processor.tokenizer.pad_token_id, FAMILY.blank(processor), packed=packed)
    batch = collator([[dataset[i] for i in row] for row in rows])
    kept, labels = batch.pop("about")["kept"], batch.pop("labels")
    model.zero_grad()
    model.train()
    logits = model(**batch, use_cache=False, logits_to_keep=kept).logits
    nats = token_nats(logits, labels[:, kept + 1])
    step_loss(nats).backward()
    return nats.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


ROWS = [(0, 1, 2), (3, 4)]  # text, picture, picture; text, picture: rows of unequal length


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_and_gradients_of_packed_rows_are_those_of_their_samples(parts, attention):
    model = parts[0]
    model.set_attn_implementation(attention)
    alone = losses_and_gradients(parts, [(i,) for row in ROWS for i in row], None)
    together = losses_and_gradients(parts, ROWS, lambda row: FAMILY.packed(model.config, row))
    model.set_attn_implementation("sdpa")
    assert torch.allclose(alone[0], together[0], atol=1e-6)
    assert difference(alone[1], together[1]) < 1e-6
    assert max(gradient.abs().max() for gradient in alone[1].values()) > 1e-3


def test_samples_that_saw_each_other_would_be_noticed(parts):
    """The mutant of the test above: positions that run on over the row's samples."""

    def leaking(row: Any) -> dict[str, Tensor]:
        return {"position_ids": torch.arange(sum(len(one.input_ids) for one in row))[None]}

    alone = losses_and_gradients(parts, [(i,) for row in ROWS for i in row], None)
    together = losses_and_gradients(parts, ROWS, leaking)
    assert not torch.allclose(alone[0], together[0], atol=1e-4)
    assert difference(alone[1], together[1]) > 1e-5


def test_only_logits_of_trained_tokens_are_computed_and_all_of_them_give_the_same(parts):
    model, processor, dataset = parts
    collator = Collator(processor.tokenizer.pad_token_id, FAMILY.blank(processor))
    batch = collator([[dataset[i]] for i in (1, 2, 3)])
    kept, labels = batch.pop("about")["kept"], batch.pop("labels")
    found = []
    for some in (True, False):
        model.zero_grad()
        if some:
            logits = model(**batch, use_cache=False, logits_to_keep=kept).logits
            assert logits.shape[1] == len(kept) < labels.shape[1] / 2
            nats = token_nats(logits, labels[:, kept + 1])
        else:
            nats = token_nats(model(**batch, use_cache=False).logits[:, :-1], labels[:, 1:])
        step_loss(nats).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((nats.detach(), gradients))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert difference(found[0][1], found[1][1]) < 1e-6
