"""Qwen-VL generates as every model of transformers does: any decoding, any cache, its own ``<img>`` among the words."""

import copy

import jaxtyping
import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StaticCache

from tests.finetune.qwen_vl.citizens import IMAGE_ID, image_run, prompts, small_model

NEW = 5


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def untyped():
    """Graphs can't be made through the checks of shapes that tests put around functions."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch._dynamo.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


def greedy(model, inputs, **options):
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)[:, -NEW:]


class Writes(LogitsProcessor):
    """The model writes one token, whatever it thinks."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([self.token]), 0.0)


@pytest.mark.parametrize("shapes", [[(1, 5), (2, 9)], [(0, 4)]], ids=["pictures", "text"])
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_a_model_may_write_an_image_token_itself(model, shapes, cache):
    writes = LogitsProcessorList([Writes(IMAGE_ID)])
    found = greedy(model, prompts(*shapes), use_cache=cache, logits_processor=writes)
    assert (found == IMAGE_ID).all()


def test_a_step_of_decoding_looks_for_no_images(model, monkeypatch):
    inputs = prompts((1, 5))
    cache = model(**inputs, use_cache=True).past_key_values
    monkeypatch.setattr(type(model.transformer), "image_marks", None)
    model(input_ids=torch.tensor([[IMAGE_ID]]), past_key_values=cache)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"assistant": True},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["no cache", "static cache", "assistant", "prompt lookup"],
)
def test_every_way_of_decoding_greedily_writes_the_same(model, options):
    inputs = prompts((2, 9))
    if options.pop("assistant", False):
        options = {"assistant_model": model}
    assert torch.equal(greedy(model, inputs, **options), greedy(model, inputs))


def test_a_padded_batch_writes_what_each_prompt_alone_does(model):
    shapes = [(1, 5), (2, 9), (0, 3)]
    together = prompts(*shapes)
    rows, pictures = greedy(model, together), list(together["pixel_values"].split([1, 2, 0]))
    for row, (ids, mask) in enumerate(zip(together["input_ids"], together["attention_mask"], strict=True)):
        own = {"input_ids": ids[mask.bool()][None]}
        if len(pictures[row]):
            own["pixel_values"] = pictures[row]
        assert torch.equal(greedy(model, own)[0], rows[row])


@pytest.mark.parametrize("kind", ["beams", "samples"])
def test_each_beam_and_sample_sees_all_pictures_of_its_row(model, kind):
    """Pictures repeated one by one, a a b b, would show the first beam its first picture twice."""
    inputs = prompts((2, 6), (1, 8))
    seen = []
    forward = model.transformer.visual.forward

    def watched(pixel_values):
        seen.append(pixel_values)
        return forward(pixel_values)

    model.transformer.visual.forward = watched
    try:
        options = {"num_beams": 2} if kind == "beams" else {"do_sample": True, "num_return_sequences": 2}
        model.generate(**inputs, max_new_tokens=2, **options)
    finally:
        del model.transformer.visual.forward
    a, b, c = inputs["pixel_values"]
    assert torch.equal(seen[0], torch.stack([a, b, a, b, c, c]))


def test_beams_find_the_likeliest_of_what_they_search(model):
    inputs = prompts((2, 6))
    wide = model.generate(
        **inputs, num_beams=4, num_return_sequences=4, max_new_tokens=3, return_dict_in_generate=True,
        output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    for sequence, score in zip(wide.sequences, wide.sequences_scores.tolist(), strict=True):
        logits = model(input_ids=sequence[None], pixel_values=inputs["pixel_values"]).logits[0]
        chosen = logits.log_softmax(-1)[length - 1 : -1].gather(-1, sequence[length:, None])
        assert score == pytest.approx(float(chosen.sum()), abs=1e-4)


@pytest.mark.parametrize("shapes", [[(0, 9), (0, 4)], [(1, 5), (2, 9)]], ids=["text", "pictures"])
def test_generating_from_embeddings_is_generating_from_ids(model, shapes):
    inputs = prompts(*shapes)
    embedded = {key: value for key, value in inputs.items() if key != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(greedy(model, embedded), greedy(model, inputs))


@pytest.mark.parametrize("given", ["all pictures", "the new picture"])
def test_a_new_turn_with_a_picture_continues_from_a_cache(model, given):
    first = prompts((1, 6))
    cache = DynamicCache(config=model.config)
    said = model.generate(**first, past_key_values=cache, max_new_tokens=3, do_sample=False)
    more = torch.cat([said, torch.tensor([[7, *image_run(), 9, 11]])], dim=1)
    picture = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    both = torch.cat([first["pixel_values"], picture])
    expected = greedy(model, {"input_ids": more, "pixel_values": both})
    pixels = both if given == "all pictures" else picture
    found = greedy(model, {"input_ids": more, "pixel_values": pixels}, past_key_values=cache)
    assert torch.equal(found, expected)


def test_one_call_is_the_calls_of_its_pieces(model):
    inputs = prompts((1, 8))
    ids = inputs["input_ids"]
    whole = model(**inputs).logits
    cut = 2 + 6 + 3  # behind the image
    cache = model(input_ids=ids[:, :cut], pixel_values=inputs["pixel_values"], use_cache=True).past_key_values
    rest = model(input_ids=ids[:, cut:], past_key_values=cache).logits
    assert (rest - whole[:, cut:]).abs().max() < 1e-5


def decoding(model, inputs, cache, width=None):
    """One step behind the prompt: what ``forward`` is given."""
    model(**inputs, past_key_values=cache, use_cache=True)
    rows, length = inputs["input_ids"].shape
    mask = torch.cat([inputs["attention_mask"], torch.ones(rows, 1, dtype=torch.long)], 1)
    places = (mask.cumsum(-1) - 1)[:, length : length + 1]
    if width:
        mask = torch.cat([mask, torch.zeros(rows, width - length - 1, dtype=torch.long)], 1)
    ids = torch.tensor([[IMAGE_ID], [6]])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places, "use_cache": True}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_step_of_decoding_compiles_as_one_graph(model, untyped, cache):
    width = 40 if cache == "static" else None
    kept = StaticCache(config=model.config, max_cache_len=40) if width else DynamicCache(config=model.config)
    step = decoding(model, prompts((1, 5), (2, 9)), kept, width)
    expected = model(**step, past_key_values=copy.deepcopy(kept)).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(**step, past_key_values=kept).logits, expected)


def test_a_prompt_with_pictures_compiles_as_one_graph(model, untyped):
    inputs = prompts((1, 5), (2, 9))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(**inputs, use_cache=False).logits, model(**inputs, use_cache=False).logits)


def test_a_step_of_decoding_exports(model, untyped):
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    kept = DynamicCache(config=model.config)
    step = {**decoding(model, prompts((1, 5), (2, 9)), kept), "past_key_values": kept}
    step.pop("use_cache")
    expected = model(**copy.deepcopy(step)).logits
    exported = DynamoExporter().export(model, copy.deepcopy(step), config=DynamoConfig())
    assert torch.equal(exported(**step)["logits"], expected)


def test_a_prompt_of_any_length_exports(model, untyped):
    inputs, batch, images = prompts((1, 5), (2, 9)), torch.export.Dim("batch"), torch.export.Dim("images")
    tokens = torch.export.Dim.AUTO  # from one image up to seq_length, beyond which angles stretch
    shapes = {
        "input_ids": {0: batch, 1: tokens},
        "attention_mask": {0: batch, 1: tokens},
        "pixel_values": {0: images},
    }
    uncached = small_model(use_cache=False)
    program = torch.export.export(uncached, (), inputs, dynamic_shapes=shapes, strict=False)
    other = prompts((2, 20), (0, 3), (1, 12), seed=1)
    assert (program.module()(**other).logits - model(**other).logits).abs().max() < 1e-5


def test_a_static_cache_used_again_chooses_its_angles_again():
    """The factor of a long prompt must not stay behind for a short one, nor the other way round."""
    model = small_model(seq_length=16)
    cache = StaticCache(config=model.config, max_cache_len=64)
    for words in (30, 8, 50):
        inputs = prompts((0, words), seed=words)
        found = model(**inputs, past_key_values=cache, use_cache=True).logits
        assert (found - model(**inputs).logits).abs().max() < 1e-5, words
        cache.reset()
