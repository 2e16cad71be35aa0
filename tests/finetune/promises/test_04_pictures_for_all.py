"""Trouble: under ZeRO-3 training hangs when one process has a picture in its batch and another has none: each waits for
weights, or for gradients, that the other never asks for.

Promise: where processes share weights or gradients of the eye, a batch without pictures gets a blank one at the end of
a row, which trains nothing and which nothing sees; training goes on as it does with one process.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.data.dataset import Collator
from finetune.families.qwen_vl import QwenVLFamily
from tests.finetune.data.test_packing import difference, parts  # noqa: F401  (a fixture)
from tests.finetune.side_by_side import assert_same, in_two_processes, run, two_processes_folder

SHARDED = ("zero-3", "fsdp", "zero-3 adapters")


@pytest.mark.parametrize(("sharding", "shards"), [("zero-3", 48), ("fsdp", 18)])
def test_sharded_weights_train_what_one_process_does(
    checkpoint_folder: Path, data_file: Path, tmp_path: Path, sharding: str, shards: int
):
    """Each process has one or two rows a batch, a third of the samples are texts, and the model's own help is off."""
    two = in_two_processes(checkpoint_folder, data_file, SHARDED)[sharding]
    assert two["shards"] >= shards and two["blank"]
    assert_same(run(checkpoint_folder, data_file, tmp_path, "plain"), two)


def test_what_zero_3_saves_of_adapters_and_a_trained_connector_is_whole(
    checkpoint_folder: Path, data_file: Path
):
    """The connector's copy is saved with its frozen table, which transformers does not gather by itself."""
    in_two_processes(checkpoint_folder, data_file, SHARDED)
    left = two_processes_folder(data_file, SHARDED) / "zero-3 adapters"
    saved = load_file(left / "adapter_model.safetensors")
    base = load_file(checkpoint_folder / "model.safetensors")
    connector = {
        name.removeprefix("base_model.model."): values
        for name, values in saved.items()
        if "attn_pool" in name
    }
    table = "transformer.visual.attn_pool.pos_embed"
    assert len(connector) > 5 and torch.equal(connector.pop(table), base[table])
    assert all(values.shape == base[name].shape for name, values in connector.items())
    assert sum(not torch.equal(values, base[name]) for name, values in connector.items()) > 5
    assert sum(".lora_" in name for name in saved) == 16


def test_the_blank_picture_changes_no_loss_and_no_gradient(parts):  # noqa: F811
    model, processor, dataset = parts
    family = QwenVLFamily()
    blank = family.blank(processor)
    assert len(blank.media["pixel_values"]) == 1 and (blank.labels == -100).all()
    texts = [[dataset[0]], [dataset[3]]]
    alone = Collator(0, blank)(texts)
    seeing = Collator(0, blank, blank_pictures=True)(texts)
    assert "pixel_values" not in alone and len(seeing["pixel_values"]) == 1
    found = []
    for batch in (alone, seeing):
        model.zero_grad()
        kept, labels = batch.pop("about")["kept"], batch.pop("labels")
        logits = model(**batch, logits_to_keep=kept).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, kept + 1].flatten())
        loss.backward()
        gradients = {
            name: p.grad.clone()
            for name, p in model.named_parameters()
            if p.grad is not None and ".visual." not in name
        }
        found.append((loss.item(), gradients))
        assert all(
            p.grad is None or not p.grad.any() for name, p in model.named_parameters() if ".visual." in name
        )
    assert abs(found[0][0] - found[1][0]) < 1e-6 and difference(found[0][1], found[1][1]) < 1e-6
