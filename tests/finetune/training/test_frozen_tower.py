from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.data.dataset import ConversationDataset, build_dataset
from finetune.families.base import Encoded, joined_media
from finetune.families.parts.modules import bare_model
from finetune.families.qwen_vl import QwenVLFamily
from finetune.model import checkpoint
from finetune.qwen_vl import QwenVLForConditionalGeneration
from finetune.samples.source import read
from finetune.training import frozen_tower
from tests.finetune.training.test_trainer import losses, make


class Counting(QwenVLFamily):
    """Counts the pictures that go through the tower before the model."""

    pictures = 0

    def tower_states(self, model: Any, media: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.pictures += len(media["pixel_values"])
        return super().tower_states(model, media)


@pytest.fixture(scope="module")
def processor(checkpoint_folder: Path) -> Any:
    return checkpoint.load_processor(checkpoint_folder)


@pytest.fixture
def dataset(processor: Any, data_file: Path) -> ConversationDataset:
    return build_dataset(read(data_file), processor, Counting(), max_length=200, on_bad_sample="error")


@pytest.fixture
def model(checkpoint_folder: Path) -> QwenVLForConditionalGeneration:
    torch.manual_seed(3)
    model, _ = checkpoint.load(checkpoint_folder, for_training=True)
    return model.requires_grad_(False)


def with_pictures(dataset: ConversationDataset) -> list[Encoded]:
    return [one.encoded for one in map(dataset.__getitem__, range(len(dataset))) if one.encoded.media]


def test_the_towers_output_in_place_of_pixels_gives_the_same_tokens_bit_for_bit(
    model: QwenVLForConditionalGeneration, dataset: ConversationDataset
):
    samples, ahead = with_pictures(dataset), frozen_tower.ahead(model, dataset.family)
    assert ahead is not None
    before = ahead(samples)
    assert all(one.media.keys() == {"patch_states"} for one in before)
    visual, states = model.transformer.visual, joined_media(before)["patch_states"]
    assert not states.requires_grad
    assert torch.equal(visual.tokens(states), visual(joined_media(samples)["pixel_values"]))
    ids = torch.from_numpy(samples[0].input_ids)[None]
    whole = model(input_ids=ids, **samples[0].media).logits
    assert torch.equal(model(input_ids=ids, **before[0].media).logits, whole)
    other = model(input_ids=ids, patch_states=before[0].media["patch_states"] + 1).logits
    assert not torch.equal(other, whole)
    with pytest.raises(ValueError, match="at most one of pixel_values and patch_states"):
        model(input_ids=ids, **samples[0].media, **before[0].media)


def test_samples_keep_their_order_and_those_without_pictures_stay(
    model: QwenVLForConditionalGeneration, dataset: ConversationDataset
):
    ahead, (one, other) = frozen_tower.ahead(model, dataset.family), with_pictures(dataset)[:2]
    both = replace(one, media=joined_media([one, other]))
    text = replace(one, media={}, images=())
    assert ahead is not None
    for _ in range(2):  # the first tries whether company changes bits
        found = ahead([both, text, other])
        assert found[1] is text and [len(found[i].media["patch_states"]) for i in (0, 2)] == [2, 1]
        assert torch.equal(found[0].media["patch_states"][1:], found[2].media["patch_states"])
        assert not torch.equal(found[0].media["patch_states"][:1], found[2].media["patch_states"])
        assert (
            found[2].media["patch_states"].untyped_storage().nbytes()
            < 2 * found[2].media["patch_states"].nbytes
        )
    assert ahead.together == {3: True} and dataset.family.pictures == 3 + 3 + 3


def test_company_that_changes_a_bit_is_left_out(
    model: QwenVLForConditionalGeneration, dataset: ConversationDataset
):
    class Sensitive(QwenVLFamily):
        def tower_states(self, model: Any, media: Mapping[str, Tensor]) -> dict[str, Tensor]:
            states = super().tower_states(model, media)["patch_states"]
            states[-1] *= 1 + 1e-6 * (len(states) - 1)
            return {"patch_states": states}

    samples = with_pictures(dataset)[:3]
    alone = frozen_tower.ahead(model, QwenVLFamily())
    ahead = frozen_tower.ahead(model, Sensitive())
    assert alone is not None and ahead is not None
    expected = [alone([one])[0].media["patch_states"] for one in samples]
    for _ in range(2):
        found = [one.media["patch_states"] for one in ahead(samples)]
        assert all(map(torch.equal, found, expected))
    assert ahead.together == {3: False}


def test_only_a_tower_that_always_says_the_same_runs_ahead(model: QwenVLForConditionalGeneration):
    family = QwenVLFamily()

    def possible(family: Any = family) -> bool:
        return frozen_tower.ahead(model, family) is not None

    class WithoutTower:
        paths = QwenVLFamily.paths

    tower = model.transformer.visual.transformer
    assert possible() and not possible(WithoutTower())
    model.transformer.visual.attn_pool.requires_grad_(True)
    model.lm_head.requires_grad_(True)
    assert possible()  # what comes after the tower may train
    tower.resblocks[0].mlp.c_fc.weight.requires_grad_(True)
    assert not possible()
    tower.requires_grad_(False)
    tower.resblocks[0].mlp.drop = nn.Dropout(0.1)
    assert not possible()
    tower.resblocks[0].mlp.drop = nn.Dropout(0.0)
    assert possible()
    watching = tower.resblocks[0].register_forward_hook(lambda *_: None)
    assert not possible()
    watching.remove()
    assert possible()


def test_each_picture_goes_through_a_frozen_tower_once(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    family, pictures = dataset.family, sum(len(one.images) for one in with_pictures(dataset))
    trainer = make(checkpoint_folder, dataset, tmp_path, max_steps=7)
    calls: list[int] = []
    tower = bare_model(trainer.model).transformer.visual.transformer
    whole = tower.forward
    tower.forward = lambda x: (calls.append(len(x)), whole(x))[1]
    trainer.train()
    assert isinstance(family, Counting) and family.pictures == sum(calls)
    # Once, and once more for each number of pictures in a batch that was new.
    numbers = trainer.train_dataset.ahead.together
    assert all(numbers.values()) and pictures < family.pictures <= pictures + sum(numbers)
    read = family.pictures
    anew = make(checkpoint_folder, dataset, tmp_path, max_steps=7, kept_samples_gib=0.0)
    anew.train()
    assert family.pictures == read  # the tower runs in the steps, over the batches
    assert losses(anew) == losses(trainer)
    ours, theirs = trainer.model.state_dict(), anew.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
