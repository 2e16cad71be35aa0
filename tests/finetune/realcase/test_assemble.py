"""The checkpoint: DINOv2's features are its own to rounding, the language model answers as before, and it loads."""

import pytest
import torch
from PIL import Image

from finetune import families
from finetune.model import checkpoint
from finetune.realcase import assemble
from finetune.realcase.onnx_weights import read_onnx
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.realcase.parts_in_small import HEAD_WIDTH, PATCH, PIXELS, as_onnx, dinov2, language


@pytest.fixture(scope="module")
def tower_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tower") / "tower.onnx"
    path.write_bytes(as_onnx(dinov2()))
    return path


@pytest.fixture(scope="module")
def tower(tower_file):
    return assemble.read_tower(read_onnx(tower_file), PIXELS, head_width=HEAD_WIDTH)


@pytest.fixture(scope="module")
def folder(tower, tmp_path_factory):
    made = tmp_path_factory.mktemp("assembled") / "model"
    assemble.save(*assemble.put_together(tower, language()), made)
    return made


@torch.no_grad()
def test_features_are_those_of_dinov2(tower):
    """At another size than it was trained on, so that positions are resampled."""
    from transformers import InternVLVisionModel

    assert tower.config.image_size == (PIXELS, PIXELS) and tower.config.num_attention_heads == 2
    ours = InternVLVisionModel(tower.config).eval()
    ours.load_state_dict(tower.weights)
    pixels = torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    found = ours(pixel_values=pixels).last_hidden_state
    assert found.shape == (2, 1 + (PIXELS // PATCH) ** 2, 16)
    torch.testing.assert_close(found, dinov2()(pixel_values=pixels).last_hidden_state, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_words_mean_what_they_meant(folder):
    model, processor = checkpoint.load(folder)
    alone = language()
    ids = alone.tokenizer("What is this?", return_tensors="pt").input_ids
    known = len(alone.tokenizer)
    assert processor.tokenizer("What is this?", return_tensors="pt").input_ids.tolist() == ids.tolist()
    torch.testing.assert_close(model(input_ids=ids).logits[..., :known], alone.model(input_ids=ids).logits)
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(table[-1], table[:known].mean(0))
    assert len(table) == len(processor.tokenizer) == known + 8


def test_a_picture_is_a_square_of_merged_patches(folder):
    model, processor = checkpoint.load(folder)
    family = families.family_of(model.config)
    picture = Image.new("RGB", (50, 41), (200, 30, 40))
    turns = (Turn("user", (ImageRef("x", folder, None), "What is this?")), Turn("assistant", ("frog",)))
    family_image = family.load_image
    try:
        family.load_image = lambda ref: picture
        encoded = family.encode(processor, Conversation(turns))
    finally:
        family.load_image = family_image
    text = processor.tokenizer.decode(encoded.input_ids.tolist())
    assert text == (
        f"<|im_start|>user\n<img>{'<IMG_CONTEXT>' * 9}</img>\nWhat is this?<|im_end|>\n<|im_start|>assistant\nfrog"
        "<|im_end|>\n"
    )
    assert encoded.images[0].grid == (3, 3) and encoded.images[0].image_size_pixels == (50, 41)
    logits = model(input_ids=torch.from_numpy(encoded.input_ids)[None], **encoded.media).logits
    assert logits.isfinite().all()


def test_a_wide_picture_is_read_half_by_half_and_as_a_whole(folder, tmp_path):
    """All tokens of the left half come before those of the right one."""
    model, processor = checkpoint.load(folder)
    picture = Image.new("RGB", (90, 44), (200, 30, 40))
    picture.paste((20, 60, 250), (45, 0, 90, 44))
    picture.save(tmp_path / "halves.png")
    turn = Turn("user", (ImageRef("halves", tmp_path / "halves.png"), "What is on the left?"))
    encoded = families.family_of(model.config).encode(processor, Conversation((turn,)))
    image = encoded.images[0]
    assert image.tiles == (1, 2) and image.grid == (3, 6) and len(image.all_positions) == 27
    columns = image.positions.reshape(image.grid)
    assert columns[:, :3].max() < columns[:, 3:].min() and columns.max() < image.overview.positions.min()
    left, right, whole = encoded.media["pixel_values"]
    red, blue = left[:, 0, 0], right[:, 0, -1]
    assert (red - blue).abs().min() > 0.1
    for half, colour in ((left, red), (right, blue)):  # resampling blurs the seam
        torch.testing.assert_close(half, colour[:, None, None].expand_as(half), atol=0.3, rtol=0)
    torch.testing.assert_close(whole[:, 0, [0, -1]], torch.stack([red, blue], 1))


def test_untied_output_layers_grow_too(tower):
    model, processor = assemble.put_together(tower, language(tied=False))
    assert model.lm_head.weight.shape == (len(processor.tokenizer), 32)
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_a_file_cut_short_is_refused(tower_file, tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(tower_file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.onnx: found no whole ONNX file .* fetch it again"):
        read_onnx(cut)


def test_another_model_is_refused(tower_file):
    onnx = read_onnx(tower_file)
    onnx.weights.pop("backbone.embeddings.cls_token")
    with pytest.raises(ValueError, match=r"has no 'backbone\.embeddings\.cls_token', expected a DINOv2"):
        assemble.read_tower(onnx, PIXELS, head_width=HEAD_WIDTH)
