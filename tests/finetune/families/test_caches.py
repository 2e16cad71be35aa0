"""Rows and knock-outs under every kind of cache are those of the whole sequence, read at once without one."""

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Cache,
    CompileConfig,
    DynamicCache,
    MistralConfig,
    MistralForCausalLM,
    QuantizedCache,
    StaticCache,
)

from diagnostics.capture.extractor import AttentionExtractor, Call
from diagnostics.capture.gradients import gradient_rows
from diagnostics.capture.head_means import head_means
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.capture.kernel_tap import KernelTap
from diagnostics.capture.self_check import self_check
from diagnostics.probing.prompts import padded
from diagnostics.web.trace_recorder import TraceRecorder
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from tests.finetune.families.test_contract import picture
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.flash_standin import standing_in, using

WINDOW, NEW, ROOM = 4, 5, 12  # tokens that a layer sees; that are generated; that a static cache has to spare
GREEDY = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}


def windowed_llama(kernel: str = "sdpa") -> nn.Module:
    """Two layers that see 4 tokens each."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=WINDOW, initializer_range=0.2,
        attn_implementation=kernel,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    model.model.tower = nn.ModuleList()
    return model


@dataclass(frozen=True)
class Subject:
    """A model, and what it is asked in one turn, or in two with a picture each."""

    model: Callable[[], nn.Module]
    family: Any
    inputs: Callable[[int], dict[str, torch.Tensor]]


def words(turns: int) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS[:1] if turns == 1 else torch.cat([IDS[:1], IDS[1:, :5]], 1)}


def subject_of(tiny: Any, folder: Any) -> Subject:
    processor = tiny.processor(folder)
    turns = [
        Turn("user", (ImageRef("a", picture(50, 31)), "what?")),
        Turn("assistant", ("noise",)),
        Turn("user", ("and ", ImageRef("b", picture(31, 70, 1)), "?")),
    ]

    def inputs(count: int) -> dict[str, torch.Tensor]:
        told = Conversation(tuple(turns[: 2 * count - 1]))
        encoded = tiny.family.encode(processor, told, add_generation_prompt=True)
        return padded([encoded], torch.device("cpu"), left=False)

    return Subject(tiny.model, tiny.family, inputs)


PLAIN = {"llama": Subject(tiny_llama, FAMILY, words), "windowed": Subject(windowed_llama, FAMILY, words)}
TINY = {name: one for name, one in {**ALL, **LLAVAS, **SIGLIPS}.items() if name in ("llava-1.5", "gemma3")}
TINY |= {name: ALL[name] for name in ("qwen-vl", "qwen2.5-vl", "qwen3-vl")}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return PLAIN | {name: subject_of(one, tmp_path_factory.mktemp(name)) for name, one in TINY.items()}


@pytest.fixture
def streams(monkeypatch):
    """Caches that are offloaded wait for streams of a GPU, which is not here."""

    class Stream(nullcontext):
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "default_stream", lambda *_: Stream())
    monkeypatch.setattr(torch, "Stream", lambda *_, **__: Stream())


def watched(model: nn.Module, subject: Subject, **wanted: Any) -> AttentionExtractor:
    return AttentionExtractor(model, family=subject.family, **wanted)


def longer(inputs: dict[str, torch.Tensor], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same with more words after it."""
    found = {**inputs, "input_ids": ids}
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            more = torch.full((1, ids.shape[1] - inputs[name].shape[1]), int(name == "attention_mask"))
            found[name] = torch.cat([inputs[name], more], 1)
    return found


def eager_rows(model: nn.Module, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """transformers' own rows of the whole sequence, read at once."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    rows = eager(**inputs, output_attentions=True, use_cache=False).attentions
    return {f"layer_{layer}": one.numpy() for layer, one in enumerate(rows)}


def assert_rows_are(
    found: AttentionExtractor, expected: dict[str, np.ndarray], queries: list[int], prompt: int
) -> None:
    """The kept queries of the prompt, then a row for each token after it."""
    rows, steps = found.attention_weights, found.decode_weights
    for name, whole in expected.items():
        assert rows[name].shape == (*whole.shape[:2], len(queries), prompt)
        np.testing.assert_allclose(rows[name], whole[:, :, queries, :prompt], atol=1e-5)
        assert [step.shape[2:] for step in steps[name]] == [
            (1, at + 1) for at in range(prompt, whole.shape[2])
        ]
        for at, step in enumerate(steps[name], start=prompt):
            np.testing.assert_allclose(step[:, :, 0], whole[:, :, at, : at + 1], atol=1e-5)


def cache_of(kind: str, model: nn.Module, places: int) -> Cache:
    config = model.config.get_text_config()
    return StaticCache(config, max_cache_len=places) if kind == "static" else DynamicCache(config=config)


# --- generation ------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "static", "offloaded", "offloaded_static"])
@pytest.mark.parametrize("name", [*PLAIN, *TINY])
def test_a_prompt_and_its_answer_under_each_cache(subjects, streams, name, kind):
    if (name, kind) == ("windowed", "offloaded_static"):
        pytest.skip("transformers cannot offload a static cache of windows alone")
    subject = subjects[name]
    model, inputs = subject.model(), subject.inputs(1)
    prompt = inputs["input_ids"].shape[1]
    options = {**GREEDY, "max_new_tokens": NEW, "cache_implementation": kind}
    plain = model.generate(**inputs, **options)
    with watched(model, subject, query_tokens=[2, -1]) as seen:
        said = model.generate(**inputs, **options)
    assert torch.equal(said, plain)
    expected = eager_rows(model, longer(inputs, said[:, :-1]))
    assert_rows_are(seen, expected, [2, prompt - 1], prompt)
    assert {found.shape[-1] for found in seen.highest_logits.values()} == {2}


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "static"])
@pytest.mark.parametrize("name", [*PLAIN, *TINY])
def test_keys_taken_away_in_prompt_and_answer_under_each_cache(subjects, name, kind):
    """As where the whole sequence is read at once: the logits of each token."""
    subject = subjects[name]
    model, inputs = subject.model(), subject.inputs(1)
    prompt = inputs["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(1)
    blocked = torch.rand(1, prompt + NEW, prompt + NEW, generator=generator) < 0.3
    blocked |= torch.ones(prompt + NEW, prompt + NEW, dtype=torch.bool).tril(-1).triu(-2)  # in any window
    blocked &= ~torch.eye(prompt + NEW, dtype=torch.bool)
    with (
        watched(model, subject, key_layers=[], connector=False) as out,
        out.knocked_out({"layer_1": blocked}),
    ):
        torch.manual_seed(0)
        said = model.generate(
            **inputs, **{**GREEDY, "do_sample": True}, max_new_tokens=NEW, cache_implementation=kind,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        logits = model(**longer(inputs, said.sequences[:, :-1]), use_cache=False).logits
    found = torch.stack(said.logits, dim=1)
    torch.testing.assert_close(found, logits[:, prompt - 1 :].float(), atol=1e-4, rtol=1e-4)
    untouched = model(**longer(inputs, said.sequences[:, :-1]), use_cache=False).logits
    assert (found - untouched[:, prompt - 1 :]).abs().amax(-1).min() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "static"])
@pytest.mark.parametrize("model", [tiny_llama, windowed_llama])
def test_prompts_of_unequal_length_padded_on_the_left(model, kind):
    model, mask = model(), torch.ones_like(IDS)
    mask[1, :3] = 0
    with AttentionExtractor(model, family=FAMILY, query_tokens=[-1]) as seen:
        said = model.generate(
            IDS, attention_mask=mask, **GREEDY, max_new_tokens=NEW, cache_implementation=kind
        )
    ids = said[:, :-1]
    whole = torch.cat([mask, torch.ones(2, NEW - 1, dtype=torch.long)], 1)
    places = (whole.cumsum(1) - 1).clamp(min=0)
    expected = eager_rows(model, {"input_ids": ids, "attention_mask": whole, "position_ids": places})
    assert_rows_are(seen, expected, [6], 7)


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "static"])
@pytest.mark.parametrize("name", ["windowed", "qwen-vl"])
def test_an_answer_of_flash_attention_under_each_cache(subjects, name, kind):
    subject = subjects[name]
    model, inputs = subject.model(), subject.inputs(1)
    prompt = inputs["input_ids"].shape[1]
    with standing_in(2), using(model, 2), watched(model, subject, query_tokens=[2, -1]) as seen:
        said = model.generate(**inputs, **GREEDY, max_new_tokens=NEW, cache_implementation=kind)
    assert_rows_are(seen, eager_rows(model, longer(inputs, said[:, :-1])), [2, prompt - 1], prompt)


@torch.no_grad()
def test_flash_attention_over_places_that_nothing_fills_is_refused():
    """transformers hands them to the kernel where a static cache comes without a mask."""
    model = windowed_llama()
    cache = StaticCache(model.config, max_cache_len=WINDOW)
    with (
        standing_in(2),
        using(model, 2),
        AttentionExtractor(model, family=FAMILY),
        pytest.raises(
            ValueError, match="cache of 4 places, 3 of them filled.*give the forward an attention_mask"
        ),
    ):
        model(input_ids=IDS[:1, :3], past_key_values=cache)


@torch.no_grad()
def test_a_static_cache_s_steps_that_transformers_compiles():
    model = tiny_llama()
    compiled = CompileConfig(backend="eager", mode=None)
    compiled._compile_all_devices = True
    options = {**GREEDY, "max_new_tokens": 3, "cache_implementation": "static", "compile_config": compiled}
    for _ in range(2):
        with AttentionExtractor(model, family=FAMILY, query_tokens=[-1]) as seen:
            said = model.generate(IDS[:1], **options)
        assert_rows_are(seen, eager_rows(model, {"input_ids": said[:, :-1]}), [6], 7)


@torch.no_grad()
def test_a_quantised_cache_s_rows_are_those_that_its_own_keys_make():
    """They differ from the exact ones, as the answer does: rows × values are what the kernel gave."""
    model, names = tiny_llama(), [f"layer_{layer}" for layer in range(3)]
    options = {**GREEDY, "max_new_tokens": NEW, "return_dict_in_generate": True}
    taken = TraceRecorder(names, lambda: [6])
    with AttentionExtractor(model, family=FAMILY, query_tokens=[-1]) as seen, seen.tapped(taken):
        said = model.generate(IDS[:1], past_key_values=QuantizedCache("fp8", config=model.config), **options)
    eager, cache = tiny_llama("eager"), QuantizedCache("fp8", config=model.config)
    told = eager.generate(IDS[:1], past_key_values=cache, output_attentions=True, **options)
    assert torch.equal(told.sequences, said.sequences)
    for layer, name in enumerate(names):
        prompt, *steps = [one[layer].numpy() for one in told.attentions]
        np.testing.assert_allclose(seen.attention_weights[name], prompt[:, :, [6]], atol=1e-5)
        for step, expected in zip(seen.decode_weights[name], steps, strict=True):
            np.testing.assert_allclose(step, expected, atol=1e-5)
        of_page = taken.rows(name, NEW)
        for at, expected in enumerate([prompt[:, :, 6:], *steps]):
            np.testing.assert_allclose(of_page[:, at, : 7 + at], expected[0, :, 0], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "static"])
@pytest.mark.parametrize("name", ["llama", "windowed", "qwen-vl", "gemma3"])
def test_the_pages_rows_of_a_reply_under_each_cache(subjects, name, kind):
    subject = subjects[name]
    model, inputs = subject.model(), subject.inputs(1)
    prompt = inputs["input_ids"].shape[1]
    layers = [f"layer_{layer}" for layer in range(2)]
    rows = TraceRecorder(layers, lambda: [1, prompt - 1])
    with KernelTap(model, layers, family=subject.family).tapped(rows):
        said = model.generate(**inputs, **GREEDY, max_new_tokens=NEW, cache_implementation=kind)
    expected = eager_rows(model, longer(inputs, said[:, :-1]))
    assert rows.positions.tolist() == [1, *range(prompt - 1, prompt + NEW - 1)]
    for layer in layers:
        found = rows.rows(layer, NEW + 1)
        np.testing.assert_allclose(found, expected[layer][0][:, rows.positions], atol=1e-3)


# --- a kept prefix ---------------------------------------------------------------------------------------
def continued(subject: Subject) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What is read of two turns: the first, what is new in the second, and both at once."""
    first, both = subject.inputs(1), subject.inputs(2)
    kept = first["input_ids"].shape[1]
    assert torch.equal(both["input_ids"][:, :kept], first["input_ids"])
    new = {**both, "input_ids": both["input_ids"][:, kept:]}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in both:
            new[name] = both[name][:, kept:]
    if "image_grid_thw" in both:
        patches = int(both["image_grid_thw"][0].prod())
        new |= {
            "pixel_values": both["pixel_values"][patches:],
            "image_grid_thw": both["image_grid_thw"][1:],
        }
    elif "pixel_values" in both:
        new["pixel_values"] = both["pixel_values"][1:]
    return first, new, both


def with_places(model: nn.Module, first: Any, new: Any, both: Any) -> tuple[Any, Any, Any]:
    """M-RoPE's positions are counted over both turns, which a model that sees the second alone cannot."""
    if "image_grid_thw" not in both:
        return first, new, both
    kept = first["input_ids"].shape[1]
    told = {name: both[name] for name in ("input_ids", "image_grid_thw", "mm_token_type_ids")}
    places, _ = model.model.get_rope_index(**told, attention_mask=both["attention_mask"])
    return (
        {**first, "position_ids": places[..., :kept]},
        {**new, "position_ids": places[..., kept:]},
        {**both, "position_ids": places},
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(
    "name", [name for name in TINY if name != "gemma3"]
)  # it reads its block causally there
def test_a_new_picture_over_a_kept_prefix(subjects, name, kind):
    """Its rows, and nothing of the picture before it."""
    subject = subjects[name]
    model = subject.model()
    first, new, both = with_places(model, *continued(subject))
    kept, length = first["input_ids"].shape[1], both["input_ids"].shape[1]
    cache = cache_of(kind, model, length + ROOM)
    with watched(model, subject, query_tokens=[-1, kept + 2]) as seen:
        seen.query_tokens = [-1]
        model(**first, past_key_values=cache, use_cache=True)
        before = seen.attention_weights
        seen.query_tokens = [-1, kept + 2]
        model(**new, past_key_values=cache, use_cache=True)
        after = seen.attention_weights
        assert set(after) == set(before)
        assert not any(seen.decode_weights.values())
    for layer, whole in eager_rows(model, both).items():
        np.testing.assert_allclose(after[layer], whole[:, :, [length - 1, kept + 2]], atol=1e-5)
    with watched(model, subject, key_layers=[]) as alone:
        model(**both)
    for connector, rows in alone.attention_weights.items():
        np.testing.assert_allclose(after[connector], rows[1:], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "windowed", "llava-1.5", "gemma3"])
def test_a_second_turn_of_generate_over_the_first_one_s_cache(subjects, name, kind):
    if (name, kind) == ("gemma3", "static"):
        pytest.skip("transformers reads the new picture's block causally there: another answer, and its rows")
    subject = subjects[name]
    model = subject.model()
    first, new, both = continued(subject)
    new |= {key: both[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in both}
    length = both["input_ids"].shape[1]
    cache = cache_of(kind, model, length + ROOM)
    with watched(model, subject, query_tokens=[-3, -1]) as seen:
        model.generate(**first, past_key_values=cache, **GREEDY, max_new_tokens=1)
        said = model.generate(**new, past_key_values=cache, **GREEDY, max_new_tokens=NEW)
    expected = eager_rows(model, longer(both, said[:, :-1]))
    assert_rows_are(seen, expected, [length - 3, length - 1], length)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["windowed", "qwen-vl", "qwen2.5-vl", "llava-1.5"])
def test_keys_taken_from_a_new_picture_s_queries_over_a_kept_prefix(subjects, name, kind):
    subject = subjects[name]
    model = subject.model()
    first, new, both = with_places(model, *continued(subject))
    kept, length = first["input_ids"].shape[1], both["input_ids"].shape[1]
    blocked = torch.zeros(1, length, length, dtype=torch.bool)
    blocked[:, kept + 3 : length, 2 : kept + 1] = True
    cache = cache_of(kind, model, length + ROOM)
    with watched(model, subject) as seen, seen.knocked_out({"layer_1": blocked}):
        whole = model(**both, use_cache=False).logits
        expected = seen.attention_weights["layer_1"]
        model(**first, past_key_values=cache, use_cache=True)
        found = model(**new, past_key_values=cache, use_cache=True).logits
        rows = (
            seen.attention_weights
            if "pixel_values" in new
            else {"layer_1": seen.decode_weights["layer_1"][0]}
        )
        np.testing.assert_allclose(rows["layer_1"], expected[:, :, kept:], atol=1e-5)
    torch.testing.assert_close(found, whole[:, kept:], atol=1e-4, rtol=1e-4)
    assert not expected[:, :, kept + 3 :, 2 : kept + 1].any() and expected[:, :, kept, 2:kept].any()


@torch.no_grad()
def test_a_row_that_a_pass_does_not_read_is_an_error_that_names_the_tokens(subjects):
    subject = subjects["qwen-vl"]
    model = subject.model()
    first, new, both = continued(subject)
    kept, length = first["input_ids"].shape[1], both["input_ids"].shape[1]
    with watched(model, subject, query_tokens=[3]) as seen:
        cache = model(**first, use_cache=True).past_key_values
        with pytest.raises(
            ValueError, match=rf"query token 3 was read.*in the cache.*tokens {kept} to {length - 1} alone"
        ):
            model(**new, past_key_values=cache)
        assert seen.attention_weights == {}  # neither the first picture's nor half of the second's


@torch.no_grad()
@pytest.mark.parametrize("copied", [True, False])
def test_one_prefix_and_several_questions(copied):
    """Copies of its cache, or the cache cropped to the prefix each time."""
    model = tiny_llama()
    kept = model(input_ids=IDS[:1, :4], use_cache=True).past_key_values
    with AttentionExtractor(model, family=FAMILY, query_tokens=[-1]) as seen:
        for question in (IDS[1:, :3], IDS[1:, 2:6]):
            cache = copy.deepcopy(kept) if copied else kept
            cache.crop(min(4 - cache.get_seq_length(), 0))
            ids = torch.cat([IDS[:1, :4], question], 1)
            said = model.generate(ids, past_key_values=cache, **GREEDY, max_new_tokens=3)
            assert_rows_are(
                seen, eager_rows(model, {"input_ids": said[:, :-1]}), [ids.shape[1] - 1], ids.shape[1]
            )


# --- one pass after another ------------------------------------------------------------------------------
@torch.no_grad()
def test_steps_that_were_taken_back_are_forgotten():
    model = tiny_llama()
    ids = torch.cat([IDS[:1], IDS[1:]], 1)
    with AttentionExtractor(model, family=FAMILY, query_tokens=[-1]) as seen:
        cache = model(input_ids=ids[:, :6], use_cache=True).past_key_values
        for wrong in (ids[:, 1:2], ids[:, 2:5]):  # one token, then three at once
            model(input_ids=wrong, past_key_values=cache)
        cache.crop(-2)  # two of the three
        model(input_ids=ids[:, 3:4], past_key_values=cache)
        read = torch.cat([ids[:, :6], ids[:, 1:2], ids[:, 2:3], ids[:, 3:4]], 1)
        assert_rows_are(seen, eager_rows(model, {"input_ids": read}), [5], 6)


@torch.no_grad()
def test_a_step_of_another_sequence_is_not_put_beside_the_pass_before():
    model = tiny_llama()
    with AttentionExtractor(model, family=FAMILY) as seen:
        one = model(input_ids=IDS[:1, :6], use_cache=True).past_key_values
        model(input_ids=IDS[1:, :6], use_cache=True)  # as long, and another
        model(input_ids=IDS[:1, 6:], past_key_values=one)
        assert seen.attention_weights == {} == seen.highest_logits
        expected = eager_rows(model, {"input_ids": IDS[:1]})
        for name, steps in seen.decode_weights.items():
            assert len(steps) == 1
            np.testing.assert_allclose(steps[0], expected[name][:, :, 6:], atol=1e-5)


@torch.no_grad()
def test_a_cache_cut_into_its_prompt_leaves_no_row_of_what_is_gone():
    model = tiny_llama()
    with AttentionExtractor(model, family=FAMILY) as seen:
        cache = model(input_ids=IDS[:1], use_cache=True).past_key_values
        cache.crop(-3)
        model(input_ids=IDS[1:, :1], past_key_values=cache)
        assert seen.attention_weights == {}
        assert [steps[0].shape for steps in seen.decode_weights.values()] == [(1, 4, 1, 5)] * 3


@torch.no_grad()
def test_a_forward_that_fails_leaves_nothing_of_the_one_before(subjects):
    subject = subjects["qwen-vl"]
    model, inputs = subject.model(), subject.inputs(1)
    with watched(model, subject) as seen:
        model(**inputs)
        assert seen.attention_weights
        with pytest.raises(ValueError, match="images? for each"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
        assert seen.attention_weights == {} == seen.decode_weights


@torch.no_grad()
def test_a_question_without_a_picture_has_no_rows_of_the_picture_before(subjects):
    subject = subjects["qwen-vl"]
    model, inputs = subject.model(), subject.inputs(1)
    with watched(model, subject) as seen:
        model(**inputs)
        assert "visual_attn" in seen.attention_weights
        model.generate(torch.arange(5)[None], **GREEDY, max_new_tokens=2)
        assert set(seen.attention_weights) == {"layer_0", "layer_1"}


@torch.no_grad()
def test_a_tower_run_by_hand_is_not_put_beside_another_forward(subjects):
    subject = subjects["llava-1.5"]
    model, inputs = subject.model(), subject.inputs(1)
    text = {name: inputs[name][:, :3] for name in ("input_ids", "attention_mask")}
    with watched(model, subject, vision_layers=[0], images=[0]) as seen:
        model(**inputs)
        whole = seen.attention_weights
        model.get_image_features(pixel_values=inputs["pixel_values"] + 1)
        assert all(np.array_equal(rows, whole[name]) for name, rows in seen.attention_weights.items())
        model(**text)
        assert "vision_layer_0" not in seen.attention_weights
        model.get_image_features(pixel_values=inputs["pixel_values"] + 1)
        model.generate(**inputs, **GREEDY, max_new_tokens=2)
        np.testing.assert_allclose(
            seen.attention_weights["vision_layer_0"], whole["vision_layer_0"], atol=1e-6
        )


@torch.no_grad()
def test_generation_without_a_cache_reads_the_sequence_anew_each_time():
    model = tiny_llama()
    with AttentionExtractor(model, family=FAMILY) as seen:
        said = model.generate(IDS[:1], **GREEDY, max_new_tokens=3, use_cache=False)
        assert_rows_are(seen, eager_rows(model, {"input_ids": said[:, :-1]}), [*range(9)], 9)


@torch.no_grad()
def test_a_static_cache_that_is_reset_begins_a_new_sequence():
    model = tiny_llama()
    cache = StaticCache(model.config, max_cache_len=20)
    with AttentionExtractor(model, family=FAMILY, query_tokens=[-1]) as seen:
        for ids in (IDS[:1], IDS[1:, :5]):
            said = model.generate(ids, past_key_values=cache, **GREEDY, max_new_tokens=3)
            assert_rows_are(
                seen, eager_rows(model, {"input_ids": said[:, :-1]}), [ids.shape[1] - 1], ids.shape[1]
            )
            cache.reset()


@torch.no_grad()
def test_a_cache_is_let_go_when_the_answer_is_told():
    model = tiny_llama()
    with AttentionExtractor(model, [0], family=FAMILY) as seen, HiddenStates(model, [0], family=FAMILY):
        cache = DynamicCache(config=model.config)
        alive = weakref.ref(cache)
        model.generate(IDS[:1], past_key_values=cache, **GREEDY, max_new_tokens=3)
        del cache
        gc.collect()
        assert alive() is None and len(seen.decode_weights["layer_0"]) == 2


# --- what cannot be shown --------------------------------------------------------------------------------
@torch.no_grad()
def test_beams_have_the_prompt_s_rows_and_no_steps():
    model = tiny_llama()
    with AttentionExtractor(model, family=FAMILY, query_tokens=[-1]) as seen:
        model.generate(IDS[:1], **GREEDY, max_new_tokens=4, num_beams=3)
        for name, whole in eager_rows(model, {"input_ids": IDS[:1]}).items():
            np.testing.assert_allclose(seen.attention_weights[name], whole[:, :, [6]].repeat(3, 0), atol=1e-5)
        with pytest.raises(ValueError, match="beam search puts the sequences in another order.*num_beams=1"):
            _ = seen.decode_weights
        model.generate(IDS[:1], **GREEDY, max_new_tokens=2)
        assert len(seen.decode_weights["layer_0"]) == 1


@torch.no_grad()
@pytest.mark.parametrize("how", ["reordered", "repeated"])
def test_steps_over_sequences_that_were_put_in_another_order_are_refused(how):
    model = tiny_llama()
    with AttentionExtractor(model, family=FAMILY) as seen:
        cache = model(input_ids=IDS[:, :5], use_cache=True).past_key_values
        model(input_ids=IDS[:, 5:6], past_key_values=cache)
        if how == "reordered":
            cache.reorder_cache(torch.tensor([1, 0]))
            model(input_ids=IDS.flip(0)[:, 6:], past_key_values=cache)
        else:
            cache.batch_repeat_interleave(2)
            model(input_ids=IDS.repeat_interleave(2, 0)[:, 6:], past_key_values=cache)
        assert seen.attention_weights["layer_0"].shape == (2, 4, 5, 5)
        with pytest.raises(ValueError, match="repeated, chosen or put in another order"):
            _ = seen.decode_weights


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ({"assistant_model": tiny_llama()}, "assisted decoding"),
        ({"prefill_chunk_size": 3}, "reads the prompt in 3 forwards"),
        (
            {"guidance_scale": 1.0001, "negative_prompt_ids": IDS[1:, :3]},
            "guidance_scale reads a second prompt",
        ),
    ],
)
def test_generation_that_leaves_no_pass_with_the_prompt_is_refused_in_words_but_may_be_knocked_out(
    options, words
):
    model = tiny_llama()
    whole = {"max_new_tokens": 4, **GREEDY}
    for watching in (AttentionExtractor(model, [1], family=FAMILY), HiddenStates(model, family=FAMILY)):
        with watching, pytest.raises(ValueError, match=words):
            model.generate(IDS[:1], **whole, **options)
    blocked = torch.zeros(1, 11, 11, dtype=torch.bool)
    blocked[:, 5:, [1, 2]] = True
    with (
        AttentionExtractor(model, [], family=FAMILY) as out,
        out.knocked_out(dict.fromkeys(out.names, blocked)),
    ):
        plain = model.generate(IDS[:1], **whole)
        assert torch.equal(model.generate(IDS[:1], **whole, **options), plain)
    assert not torch.equal(plain, model.generate(IDS[:1], **whole))


@torch.no_grad()
def test_a_mask_for_each_prompt_is_not_one_for_each_beam():
    model = tiny_llama()
    blocked = {"layer_1": torch.zeros(2, 9, 9, dtype=torch.bool)}
    with (
        AttentionExtractor(model, [], family=FAMILY) as out,
        out.knocked_out(blocked),
        pytest.raises(ValueError, match="found a mask of 2, the attention is of 6 sequences.*beams"),
    ):
        model.generate(IDS, **GREEDY, max_new_tokens=2, num_beams=3)


@torch.no_grad()
def test_a_cache_of_another_kind_is_refused_by_its_type():
    model = tiny_llama()
    with (
        AttentionExtractor(model, family=FAMILY),
        pytest.raises(ValueError, match="past_key_values: found tuple, expected a Cache of transformers"),
    ):
        model(input_ids=IDS, past_key_values=((torch.zeros(1),),))


@torch.no_grad()
def test_states_of_a_new_turn_over_a_kept_prefix(subjects):
    subject = subjects["qwen-vl"]
    model = subject.model()
    first, new, both = continued(subject)
    kept = first["input_ids"].shape[1]
    whole = model(**both, output_hidden_states=True).hidden_states[1].numpy()
    with HiddenStates(model, [1], family=subject.family) as states:
        cache = model(**first, use_cache=True).past_key_values
        model(**new, past_key_values=cache)
        np.testing.assert_allclose(states.hidden_states["layer_1"], whole[:, kept:], atol=1e-4)
        model(input_ids=both["input_ids"][:, :1], past_key_values=DynamicCache(config=model.config))
        assert states.hidden_states["layer_1"].shape[1] == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, inputs: head_means(model, inputs, FAMILY),
        lambda model, inputs: self_check(model, inputs, family=FAMILY),
        lambda model, inputs: gradient_rows(model, inputs, lambda logits: logits.sum(), family=FAMILY),
    ],
    ids=["head means", "self-check", "gradients"],
)
def test_what_needs_the_whole_sequence_refuses_a_cache(ask):
    model = tiny_llama()
    cache = model(input_ids=IDS[:1, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="found past_key_values.*expected a whole sequence"):
        ask(model, {"input_ids": IDS[:1, 4:], "past_key_values": cache})


def test_a_reply_that_goes_on_from_another_is_refused_by_the_page_s_rows():
    rows = TraceRecorder(["layer_0"], lambda: [0])
    query, key = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 7, 8)
    call = Call("sdpa", nn.Identity(), query, key, key, None, {}, past=4)
    with pytest.raises(
        ValueError, match="layer_0: found 3 tokens after 4 others, expected the whole prompt first"
    ):
        rows("layer_0", call, query)
