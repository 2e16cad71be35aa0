"""Families with SigLIP eyes: cells where pixels are, rows of tower and language layers, probes, processors on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from transformers import Gemma2PreTrainedModel

from attention_finetune.ending import RefusedError
from attention_finetune.train import parse, prepare
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import padded
from diagnostics.records.probes import Probe
from finetune.data.lengths import measure
from finetune.families.idefics3 import tiles_of
from finetune.families.parts.modules import attention_modules
from finetune.model import checkpoint
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from tests.finetune.families.tiny_siglip import GEMMA3_WINDOW, PALIGEMMA_WINDOW, SIGLIPS

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=[*SIGLIPS])
def tiny(request):
    return SIGLIPS[request.param]


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    return tiny.processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model(tiny) -> nn.Module:
    return tiny.model()


def noise(size, seed=0):
    numbers = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(numbers)


def about(*pictures, question="what?", answer="it"):
    refs = tuple(ImageRef(str(i), one) for i, one in enumerate(pictures))
    answer = answer if isinstance(answer, tuple) else (answer,)
    return Conversation((Turn("user", (*refs, question)), Turn("assistant", answer)))


def ids(processor, *pieces):
    """Token ids of names of control tokens and of letters, one by one: what is expected, written by hand."""
    found = processor.tokenizer.convert_tokens_to_ids([*pieces])
    assert None not in found and processor.tokenizer.unk_token_id not in found
    return found


# --- places ----------------------------------------------------------------------------------------------
def read_by_language(model, family, inputs):
    """What enters the first language layer: Float[tokens, width]. The tower's patches do not see each other."""
    taken = {}
    silent = [one for name, one in attention_modules(model, family).items() if name.startswith("vision")]
    hooks = [
        one.register_forward_hook(lambda *given: (torch.zeros_like(given[2][0]), None)) for one in silent
    ]
    first = model.get_submodule(family.paths.language_layers)[0]

    def take(module, arguments, options):
        taken["hidden"] = arguments[0] if arguments else options["hidden_states"]

    hooks.append(first.register_forward_pre_hook(take, with_kwargs=True))
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return taken["hidden"][0]


@pytest.mark.parametrize("corner", ["upper right", "lower left"])
@pytest.mark.parametrize("size", [(301, 203), (203, 301), (97, 251), (640, 113)])
def test_the_pixels_of_a_cell_move_its_token(tiny, processor, model, size, corner):
    """Most by far of the picture's cells (resizing spreads a little), and beside them the overview alone."""
    plain, family = Image.new("RGB", size, (90, 120, 150)), tiny.family
    found = family.encode(processor, about(plain))
    image = found.images[0]
    rows, columns = image.grid
    cell = columns - 1 if corner == "upper right" else columns * (rows - 1)
    x0, y0, x1, y1 = image.cell_boxes_pixels[cell]
    marked = plain.copy()
    spot = (0.6 * x0 + 0.4 * x1, 0.6 * y0 + 0.4 * y1, 0.4 * x0 + 0.6 * x1, 0.4 * y0 + 0.6 * y1)
    ImageDraw.Draw(marked).rectangle(spot, fill=(255, 0, 0))
    before, after = (
        read_by_language(model, family, padded([family.encode(processor, about(one))], CPU, left=False))
        for one in (plain, marked)
    )
    moved = (before - after).abs().sum(-1).numpy()
    cells = moved[image.positions]
    assert cells.argmax() == cell and cells[cell] > 3 * np.delete(cells, cell).max()
    others = np.setdiff1d(moved.nonzero()[0], image.positions)
    assert set(found.input_ids[others].tolist()) <= {model.config.image_token_id}


# --- rows ------------------------------------------------------------------------------------------------
def test_rows_of_the_tower_are_its_own(tiny, processor, model):
    """Against the product computed again from what enters the layer; of a picture that is read as one."""
    shown = ImageRef("x", noise((50, 31)), max_pixels=300)
    said = Conversation((Turn("user", (shown, "what?")), Turn("assistant", ("it",))))
    inputs = padded([tiny.family.encode(processor, said)], CPU, left=False)
    attention = attention_modules(model, tiny.family)["vision_layer_1"]
    taken = {}

    def take(module, arguments, options):
        taken["hidden"] = arguments[0] if arguments else options["hidden_states"]

    hook = attention.register_forward_pre_hook(take, with_kwargs=True)
    with torch.no_grad(), AttentionExtractor(model, [], vision_layers=[1], family=tiny.family) as seen:
        model(**inputs)
        hidden = taken["hidden"]
        shape = tiny.family.attention_shape(model.config, "vision_layer_1")
        parts = (*hidden.shape[:2], shape.heads, shape.head_width)
        query, key = (one(hidden).view(parts).transpose(1, 2) for one in (attention.q_proj, attention.k_proj))
        expected = (query @ key.transpose(2, 3) * shape.head_width**-0.5).softmax(-1).numpy()
    hook.remove()
    np.testing.assert_allclose(seen.attention_weights["vision_layer_1"], expected, atol=1e-6)


def gemma3_sees(encoded, layer, config):
    """Before them and, inside one picture, after them; in the first layer no further back than the window."""
    place = np.arange(len(encoded.input_ids))
    picture = np.full(len(place), -1)
    for number, image in enumerate(encoded.images):
        picture[image.positions] = number
    back = place[:, None] - place
    together = (picture[:, None] == picture) & (picture >= 0)
    return ((back >= 0) | together) & (back < (GEMMA3_WINDOW if layer == 0 else len(place)))


def causal(encoded, layer, config):
    return np.tri(len(encoded.input_ids), dtype=bool)


def paligemma_sees(encoded, layer, config):
    """Pictures and question all of each other, the answer what is before it; Gemma 2's first layer has a window."""
    place = np.arange(len(encoded.input_ids))
    back = place[:, None] - place
    prefix = place < encoded.turn_spans[-1][0]
    window = PALIGEMMA_WINDOW if config.text_config.model_type == "gemma2" and layer == 0 else len(place)
    return (prefix[:, None] & prefix) | ((back >= 0) & (back < window))


SEES = {
    "gemma3": gemma3_sees,
    "idefics3": causal,
    "smolvlm": causal,
    "paligemma": paligemma_sees,
}


def test_a_row_has_weight_where_its_token_may_look_and_nowhere_else(tiny, processor, model):
    encoded = tiny.family.encode(processor, about(noise((50, 31)), noise((31, 50), 1)))
    with torch.no_grad(), AttentionExtractor(model, None, family=tiny.family) as seen:
        model(**padded([encoded], CPU, left=False))
    for layer in (0, 1):
        rows = seen.attention_weights[f"layer_{layer}"][0]
        assert ((rows > 0).any(0) == SEES[tiny.family.name](encoded, layer, model.config)).all()
        assert np.isfinite(seen.highest_logits[f"layer_{layer}"]).all()


def test_two_probes(tiny, processor, model, tmp_path):
    probes = []
    for i, size in enumerate([(90, 47), (47, 90)]):
        noise(size, i).save(tmp_path / f"{i}.png")
        box = (3, 3, 30, 40)
        probes.append(
            Probe(
                f"p{i}",
                "g",
                (tmp_path / f"{i}.png",),
                "what now?",
                "a cow",
                "a cat",
                {"it": (box,)},
                {"cow": "it"},
            )
        )
    prober = Prober(model, processor, key_layers=[0, 1], probes=probes, family=tiny.family)
    prober.self_check()
    for record in prober.run_all(0, "tiny"):
        assert np.isfinite(record.scores.answer_nats) and np.isfinite(record.scores.foil_nats)
        assert "a cow" in "".join(record.tokens) and record.rows.shape[:2] == (2, 4)
        np.testing.assert_allclose(record.rows.sum(-1), 1, atol=1e-5)
        assert {one.kind for one in record.interventions} == {"occlusion", "knockout"}


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_packing_is_refused_before_training(name, tmp_path):
    SIGLIPS[name].write(tmp_path / "model")
    turns = [{"from": "user", "value": "a?"}, {"from": "assistant", "value": "b"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    flags = ["--model_name_or_path", f"{tmp_path}/model", "--data_path", f"{tmp_path}/data.json", "--dry_run"]
    with pytest.raises(RefusedError, match=f"{name}: samples cannot share a row.*train without --packing"):
        prepare(parse([*flags, "--output_dir", f"{tmp_path}/out", "--packing", "True"]))
    assert prepare(parse([*flags, "--output_dir", f"{tmp_path}/out"])) is None


# --- Gemma 3 ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return SIGLIPS["gemma3"].family, SIGLIPS["gemma3"].processor(tmp_path_factory.mktemp("gemma3"))


def test_gemma3_tokens_by_hand(gemma3):
    family, processor = gemma3
    said = Conversation(
        (
            Turn("system", ("be", "g")),
            Turn("user", ("a", ImageRef("x", noise((50, 31))), "b?")),
            Turn("assistant", ("now",)),
        )
    )
    found = family.encode(processor, said)
    block = ["<start_of_image>", *["<image_soft_token>"] * 9, "<end_of_image>"]
    expected = [
        "<bos>", "<start_of_turn>", *"user", "\n", *"beg", "\n\n", "a", "\n\n", *block, "\n\n", *"b?",
        "<end_of_turn>", "\n", "<start_of_turn>", *"model", "\n", "n", "ow", "<end_of_turn>", "\n",
    ]  # fmt: skip
    assert found.input_ids.tolist() == ids(processor, *expected)
    learned = [one for one in found.labels.tolist() if one != -100]
    assert learned == ids(processor, "n", "ow", "<end_of_turn>")
    assert found.per_token["token_type_ids"].tolist() == [int(one == block[1]) for one in expected]
    assert found.images[0].positions.tolist() == [*range(14, 23)]


@pytest.mark.parametrize("question", ["what?", "  two\n\nlines, 塔 "])
def test_gemma3_reads_as_its_own_processor_does(gemma3, question):
    _, processor = gemma3
    family, pictures = gemma3[0], [noise((50, 31)), noise((31, 50), 1)]
    found = family.encode(processor, about(*pictures, question=question.strip()), add_generation_prompt=False)
    content = [*({"type": "image", "image": one} for one in pictures), {"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "it"}]},
    ]
    expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert found.input_ids.tolist() == expected["input_ids"][0].tolist()
    assert found.per_token["token_type_ids"].tolist() == expected["token_type_ids"][0].tolist()
    assert torch.equal(found.media["pixel_values"], expected["pixel_values"])


def test_gemma3_crops_are_refused(gemma3, tmp_path):
    family, processor = gemma3
    processor.save_pretrained(tmp_path / "plain")
    assert family.load_processor(tmp_path / "plain").image_seq_length == 9
    processor.image_processor.do_pan_and_scan = True
    processor.save_pretrained(tmp_path / "crops")
    with pytest.raises(ValueError, match="found do_pan_and_scan true.*set it to false"):
        family.encode(processor, about(noise((50, 31))))
    processor.image_processor.do_pan_and_scan = None
    with pytest.raises(ValueError, match="found do_pan_and_scan true.*set it to false"):
        family.load_processor(tmp_path / "crops")


def test_gemma3_writes_boxes_in_thousandths(gemma3):
    family, processor = gemma3
    ref = BoxRef("as written", ((0.25, 0.0, 0.5, 1.0),), "the dog")
    found = family.encode(processor, about(noise((50, 31)), answer=("see ", ref)))
    said = processor.tokenizer.decode(found.input_ids[slice(*found.turn_spans[-1])].tolist())
    assert said == 'see {"bbox_2d": [250, 0, 500, 1000], "label": "the dog"}'


def test_gemma3_numbers_of_the_published_model():
    from transformers import Gemma3Config

    vision = {"image_size": 896, "patch_size": 14, "hidden_size": 1152, "num_attention_heads": 16}
    config, family = Gemma3Config(vision_config=vision), SIGLIPS["gemma3"].family
    found = family.image_arithmetic(config, (1600, 900))
    assert (found.resized_pixels, found.patches, found.tokens) == ((896, 896), (64, 64), 256)
    assert found.words.endswith("64 × 64 patches of 14 → mean of 4 × 4 → 16 × 16 = 256 tokens")
    assert "none further back than 4,095" in family.attention_shape(config, "layer_0").looks
    assert "further" not in family.attention_shape(config, "layer_5").looks


def test_gemma3_pictures_have_one_size(gemma3):
    family, processor = gemma3
    with pytest.raises(ValueError, match="all become 24 × 24 pixels"):
        family.set_pixel_budget(processor, min_pixels=None, max_pixels=9)
    family.set_pixel_budget(processor, min_pixels=None, max_pixels=None)


# --- Idefics3 and SmolVLM --------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["idefics3", "smolvlm"])
def tiled(request, tmp_path_factory):
    one = SIGLIPS[request.param]
    return one.family, one.processor(tmp_path_factory.mktemp("tiled"))


def test_tiles_tokens_by_hand(tiled):
    """Two rows, three columns of tiles, then the overview; a small picture's budget leaves one view."""
    family, processor = tiled
    wide, small = ImageRef("x", noise((90, 50))), ImageRef("y", noise((31, 50), 1), max_pixels=300)
    said = Conversation((Turn("user", (wide, small, "b?")), Turn("assistant", ("red",))))
    found = family.encode(processor, said)
    around, view = "<fake_token_around_image>", ["<image>"] * 4
    upper, lower = ([one for c in (1, 2, 3) for one in (around, f"<row_{r}_col_{c}>", *view)] for r in (1, 2))
    overview = [around, "<global-img>", *view, around]
    expected = [
        "<|im_start|>", *"User:", *upper, "Ċ", *lower, "ĊĊ", *overview, *overview, *"b?",
        "<end_of_utterance>", "Ċ", *"Assistant:", "Ġr", *"ed", "<end_of_utterance>", "Ċ",
    ]  # fmt: skip
    assert found.input_ids.tolist() == ids(processor, *expected)
    assert [one for one in found.labels.tolist() if one != -100] == ids(
        processor, "Ġr", *"ed", "<end_of_utterance>"
    )
    assert [one.grid for one in found.images] == [(4, 6), (2, 2)]
    starts = [at for at, one in enumerate(expected) if one == "<image>"][::4]
    first, second = (starts[i] + np.arange(4) for i in (0, 1))
    assert found.images[0].positions[:4].tolist() == [*first[:2], *second[:2]]
    assert found.images[0].positions[6:10].tolist() == [*first[2:], *second[2:]]
    assert found.images[1].positions.tolist() == [*range(starts[7], starts[7] + 4)]
    assert found.images[0].overview.positions.tolist() == [*range(starts[6], starts[6] + 4)]
    assert found.images[0].tiles == (2, 3)
    assert found.images[1].overview is None and found.images[1].tiles is None
    assert found.media["pixel_values"].shape == (8, 1, 3, 16, 16)


def test_tiles_are_read_as_transformers_own_processor_reads_them(tiled):
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    family, processor = tiled
    own = Idefics3Processor(
        processor.image_processor, processor.tokenizer, processor.image_seq_len, processor.chat_template
    )
    pictures = [noise((90, 50)), noise((31, 50), 1)]
    for question, before in (("what?", False), ("where now?", True)):
        shown = [{"type": "image"}] * 2
        words = [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": words + shown if before else shown + words}]
        refs = [ImageRef("x", one) for one in pictures]
        parts = (question, *refs) if before else (*refs, question)
        found = family.encode(processor, Conversation((Turn("user", parts),)), add_generation_prompt=True)
        text = own.apply_chat_template(messages, add_generation_prompt=True)
        expected = own(text=text, images=[pictures], return_tensors="pt", add_special_tokens=False)
        assert found.input_ids.tolist() == expected["input_ids"][0].tolist()
        views = expected["pixel_values"][0]
        assert torch.equal(found.media["pixel_values"][:, 0], views)
        assert expected["pixel_attention_mask"].all()


SHAPES = [(w, h) for w in (1, 7, 16, 33, 48, 97, 640) for h in (1, 15, 32, 47, 301)]


@pytest.mark.parametrize("longest", [16, 32, 48, 80])
def test_tiles_are_counted_as_the_image_processor_cuts_them(longest):
    pictures = SIGLIPS["idefics3"].family.image_processor_class()(
        size={"longest_edge": longest}, max_image_size={"longest_edge": 16}, return_row_col_info=True
    )
    for size in SHAPES:
        made = pictures([[noise(size)]], return_tensors="pt")
        assert tiles_of(size, longest, 16) == (made["rows"][0][0] or 1, made["cols"][0][0] or 1), size


def test_a_budget_of_pixels_is_whole_tiles(tiled):
    family, processor = tiled
    try:
        family.set_pixel_budget(processor, min_pixels=None, max_pixels=5 * 16 * 16)
        assert processor.image_processor.size["longest_edge"] == 32
        grid = family.encode(processor, about(noise((90, 50)))).images[0].grid
        assert grid == (4, 4)
        with pytest.raises(ValueError, match=r"--max_pixels 255: expected at least 256, one tile"):
            family.set_pixel_budget(processor, min_pixels=None, max_pixels=255)
        with pytest.raises(ValueError, match="leave it out, and give --max_pixels alone"):
            family.set_pixel_budget(processor, min_pixels=9, max_pixels=None)
    finally:
        processor.image_processor.size = {"longest_edge": 48}


def test_a_picture_s_own_budget_is_kept(tiled):
    family, processor = tiled
    views = []
    for budget in (10**6, 9 * 256, 6 * 256, 6 * 256 - 1, 2 * 256, 1):
        ref = ImageRef("x", noise((90, 50)), max_pixels=budget)
        found = family.encode(processor, Conversation((Turn("user", (ref,)),)))
        views.append(len(found.media["pixel_values"]))
    assert views == [7, 7, 7, 5, 1, 1]


def test_a_blank_tile_is_not_taken_for_padding(tiled):
    family, processor = tiled
    assert (family.blank(processor).media["pixel_values"] != 0).all()
    assert family.blank(processor).input_ids.tolist() == ids(
        processor, "<fake_token_around_image>", "<global-img>", *["<image>"] * 4, "<fake_token_around_image>"
    )


def test_settings_of_videos_are_kept(tmp_path):
    one = SIGLIPS["smolvlm"]
    processor = one.processor(tmp_path)
    processor.videos = {"num_frames": 64, "video_processor_type": "SmolVLMVideoProcessor"}
    processor.save_pretrained(tmp_path)
    again = one.family.load_processor(tmp_path)
    assert type(again).__name__ == "SmolVLMProcessor" and again.videos["num_frames"] == 64
    assert again.image_seq_len == 4 and again.chat_template == processor.chat_template


def test_tiles_of_the_published_models():
    from transformers import Idefics3Config, SmolVLMConfig

    family = SIGLIPS["smolvlm"].family
    vision = {"image_size": 512, "patch_size": 16, "hidden_size": 768, "num_attention_heads": 12}
    found = family.image_arithmetic(SmolVLMConfig(vision_config=vision, scale_factor=4), (1600, 900))
    assert (found.resized_pixels, found.patches, found.tokens) == ((2048, 1536), (96, 128), 13 * 64)
    assert "4 × 3 tiles of 512 and an overview" in found.words and found.words.endswith(
        "13 × 64 = 832 tokens"
    )
    vision = {"image_size": 364, "patch_size": 14, "hidden_size": 1152, "num_attention_heads": 16}
    config = Idefics3Config(vision_config=vision, scale_factor=2)
    assert SIGLIPS["idefics3"].family.image_arithmetic(config, (364, 364)).tokens == 17 * 169


def test_tokens_of_pictures_are_counted_with_every_view(tiled, tmp_path):
    """Two pictures of 7 views and one, 4 tokens each, without opening them."""
    family, processor = tiled
    refs = (ImageRef("x", noise((90, 50))), ImageRef("y", noise((31, 50), 1), max_pixels=300))
    said = Conversation((Turn("user", (*refs, "?")), Turn("assistant", ("red",))))
    counted = measure([said], processor, family, workers=1, cache_dir=tmp_path, say=pytest.fail)
    assert counted.image_tokens.tolist() == [8 * 4]


# --- PaliGemma -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    return SIGLIPS["paligemma"].family, SIGLIPS["paligemma"].processor(tmp_path_factory.mktemp("paligemma"))


def test_paligemma_tokens_by_hand(paligemma):
    """Pictures of the first question go before everything, later ones before their question, which is read causally."""
    family, processor = paligemma
    said = Conversation(
        (
            Turn("system", ("be",)),
            Turn("user", ("a", ImageRef("x", noise((50, 31))), "b?")),
            Turn("assistant", ("now",)),
            Turn("user", ("c", ImageRef("y", noise((31, 50))), "d?")),
            Turn("assistant", ("e",)),
        )
    )
    found = family.encode(processor, said)
    picture = ["<image>"] * 25
    prefix = [*picture, "<bos>", *"be", "▁", *"ab?", "\n"]
    suffix = ["n", "ow", "<eos>", *picture, *"cd?", "\n", "e", "<eos>"]
    assert found.input_ids.tolist() == ids(processor, *prefix, *suffix)
    assert found.per_token["token_type_ids"].tolist() == [0] * len(prefix) + [1] * len(suffix)
    learned = [one for one in found.labels.tolist() if one != -100]
    assert learned == ids(processor, "n", "ow", "<eos>", "e", "<eos>")
    assert [one.positions[0] for one in found.images] == [0, len(prefix) + 3]


def test_paligemma_reads_as_its_own_processor_does(paligemma):
    family, processor = paligemma
    pictures = [noise((50, 31)), noise((31, 50), 1)]
    found = family.encode(processor, about(*pictures, question="what 塔?", answer="now it"))
    text = "<image><image>what 塔?"
    expected = processor(images=pictures, text=text, suffix="now it")
    assert found.input_ids.tolist() == expected["input_ids"][0]
    assert found.per_token["token_type_ids"].tolist() == expected["token_type_ids"][0]
    assert found.labels.tolist() == expected["labels"][0].tolist()
    assert np.array_equal(found.media["pixel_values"], np.stack(expected["pixel_values"]))


def test_paligemma_writes_boxes_as_locations(paligemma):
    family, processor = paligemma
    boxes = ((0.25, 0.0, 0.5, 1.0), (0.1, 0.2, 0.3, 0.4))
    ref = BoxRef("as written", boxes, "the dog")
    found = family.encode(processor, about(noise((50, 31)), answer=("see ", ref)))
    start, end = found.turn_spans[-1]
    said = processor.tokenizer.decode(found.input_ids[start:end].tolist())
    assert (
        said
        == "see <loc0000><loc0256><loc1023><loc0512> the dog ; <loc0204><loc0102><loc0409><loc0307> the dog"
    )
    assert processor.tokenizer.convert_tokens_to_ids("<loc1023>") in found.input_ids[start:end]


def test_paligemma_s_processor_comes_back(paligemma, tmp_path):
    family, processor = paligemma
    processor.save_pretrained(tmp_path)
    again = family.load_processor(tmp_path)
    assert again.image_seq_length == 25 and len(again.tokenizer) == len(processor.tokenizer)
    assert again.tokenizer.convert_tokens_to_ids("<image>") == processor.image_token_id


def test_paligemma_s_answers_do_not_see_ahead():
    """Gemma 2's soft-capped kernel included: what comes after an answer's token does not change it."""
    for name in ("paligemma", "paligemma2"):
        tiny = SIGLIPS[name]
        model, processor = tiny.model(), tiny.processor(None)
        first, second = (
            padded([tiny.family.encode(processor, about(noise((50, 31)), answer=answer))], CPU, left=False)
            for answer in ("abcd", "abxy")
        )
        with torch.no_grad():
            one, other = model(**first).logits[0], model(**second).logits[0]
        changed = (one != other).any(-1).nonzero()[:, 0]
        assert changed.min() == len(one) - 3  # the third letter; the fourth and the end follow


@pytest.mark.parametrize("named", [True, False])
def test_paligemma2_needs_a_kernel_that_caps_logits(tmp_path, monkeypatch, named):
    if not named:  # as in transformers 5.17, which leaves the cap out
        monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    tiny = SIGLIPS["paligemma2"]
    tiny.model().save_pretrained(tmp_path)
    tiny.processor(tmp_path).save_pretrained(tmp_path)
    told = "sdpa: the language model is a Gemma2Model, whose attention logits are capped or .* eager"
    with pytest.raises(ValueError, match=told):
        checkpoint.load(tmp_path, attn_implementation="sdpa")
    for kernel in (None, "eager"):  # where none is named, the language model alone is eager
        model, _ = checkpoint.load(tmp_path, attn_implementation=kernel)
        assert model.config.text_config._attn_implementation == "eager"
        assert model.config.vision_config._attn_implementation == ("sdpa" if kernel is None else "eager")
    checkpoint.check_kernel_of(SIGLIPS["paligemma"].model().config, "sdpa")


def test_paligemma_numbers_of_the_published_model():
    from transformers import PaliGemmaConfig

    vision = {"image_size": 448, "patch_size": 14, "hidden_size": 1152, "num_attention_heads": 16}
    config, family = PaliGemmaConfig(vision_config=vision), SIGLIPS["paligemma"].family
    found = family.image_arithmetic(config, (1600, 900))
    assert (found.resized_pixels, found.patches, found.tokens) == ((448, 448), (32, 32), 1024)
    shape = family.attention_shape(config, "layer_0")
    assert (shape.heads, shape.key_heads, shape.head_width) == (8, 1, 256) and "further" not in shape.looks
    two = SIGLIPS["paligemma2"].model().config
    assert "none further back than 6" in family.attention_shape(two, "layer_0").looks
    assert "further" not in family.attention_shape(two, "layer_1").looks


@pytest.mark.parametrize("said", [{}, {"do_image_splitting": None}, {"do_image_splitting": False}])
def test_a_setting_that_is_null_is_not_one_that_is_left_out(said):
    """transformers' processor has it as it stands, and null cuts nothing."""
    family, config = SIGLIPS["idefics3"].family, SIGLIPS["idefics3"].model().config
    splits = family.image_processor_class()(**said).do_image_splitting
    words = family.image_arithmetic(config, (300, 200), said).words
    assert ("and an overview" in words) is bool(splits)
