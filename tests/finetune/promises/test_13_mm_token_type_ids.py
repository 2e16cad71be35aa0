"""Trouble: ``mm_token_type_ids`` is dropped on the way to the model, and Qwen2.5-VL then computes other positions in
silence.

Promise: the family always gives it, batches of training, evaluation and diagnosis carry it, and a batch in which it is
there for some samples alone is an error.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diagnostics.probing.prompts import padded
from finetune.data.dataset import Collator, Sample
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.training.evaluation import prompts
from tests.finetune.families.tiny_families import GRIDS, IDS

KINDS = "mm_token_type_ids"


@pytest.fixture(params=[*GRIDS])
def tiny(request):
    return GRIDS[request.param]


@pytest.fixture
def processor(tiny, tmp_path):
    return tiny.processor(tmp_path)


@pytest.fixture
def encoded(tiny, processor):
    """One with a picture, and one without."""
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (31, 70, 3), np.uint8))
    parts = [(ImageRef("a", noise), "what?"), ("say a long word",)]
    conversations = [Conversation((Turn("user", one), Turn("assistant", ("yes",)))) for one in parts]
    return [tiny.family.encode(processor, one) for one in conversations]


@pytest.fixture
def collate(tiny, processor):
    collator = Collator(processor.tokenizer.pad_token_id, tiny.family.blank(processor))
    return lambda encoded: collator([[Sample(i, one)] for i, one in enumerate(encoded)])


def test_the_trouble_qwen2_5_vl_reads_a_picture_as_a_line_and_says_nothing(tmp_path):
    tiny = GRIDS["qwen2.5-vl"]
    image = Image.effect_noise((70, 31), 90).convert("RGB")
    turns = (Turn("user", (ImageRef("a", image), "what?")), Turn("assistant", ("yes",)))
    inputs = padded(
        [tiny.family.encode(tiny.processor(tmp_path), Conversation(turns))], torch.device("cpu"), left=False
    )
    model = tiny.model()
    with torch.no_grad():
        whole = model(**inputs).logits
        del inputs[KINDS]
        model.model.rope_deltas = None
        try:
            without = model(**inputs).logits
        except ValueError:
            return  # then transformers has learned to tell
    assert (whole - without).abs().max() > 0.01


def test_it_is_there_for_every_sample_and_says_where_pictures_are(encoded):
    for one in encoded:
        assert one.per_token[KINDS].tolist() == (one.input_ids == IDS["<|image_pad|>"]).astype(int).tolist()
    assert encoded[0].per_token[KINDS].sum() == len(encoded[0].images[0].positions)


def test_batches_of_training_evaluation_and_diagnosis_carry_it(encoded, collate):
    batches = [collate(encoded), prompts(encoded), padded(encoded[:1], torch.device("cpu"), left=True)]
    for batch in batches:
        assert batch[KINDS].shape == batch["input_ids"].shape
        assert torch.equal(batch[KINDS] == 1, batch["input_ids"] == IDS["<|image_pad|>"])


def test_a_batch_that_has_it_for_some_samples_alone_is_an_error(encoded, collate):
    with pytest.raises(
        AssertionError, match=r"differ in what their tokens have: \[\[\], \['mm_token_type_ids'\]\]"
    ):
        collate([encoded[0], replace(encoded[1], per_token={})])
