"""What users do to a model while it is watched: lose the handle, copy it, save it, change its kernel, compile it."""

import copy
import gc
import io
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

from diagnostics import AttentionExtractor, remove_all
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.capture.kernel_tap import KernelTap
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama

NAMES = ["layer_0", "layer_1", "layer_2"]


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test torch and transformers are as they were."""
    yield
    gc.collect()
    assert {"__getitem__", "get_interface"} & vars(AttentionInterface).keys() == {"get_interface"}
    assert AttentionInterface.get_interface.__module__ == "transformers.modeling_utils"
    assert "__call__" not in vars(LlamaForCausalLM) and "__call__" not in vars(LlamaDecoderLayer)
    assert LlamaForCausalLM.forward.__module__.startswith("transformers.")
    assert torch._dynamo.eval_frame._stance.stance == "default"


def extractor(model, *args, **kwargs) -> AttentionExtractor:
    return AttentionExtractor(model, *args, family=FAMILY, **kwargs)


@torch.no_grad()
def eager_rows(model, ids=IDS):
    """Rows as transformers gives them, of a copy."""
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return [one.numpy() for one in other(input_ids=ids, output_attentions=True).attentions]


@torch.no_grad()
def check_watched(model, run=None):
    """An extractor attaches, changes no logit, and has eager's rows; afterwards the model is free."""
    run = model if run is None else run
    plain = run(input_ids=IDS).logits
    with extractor(model) as rows:
        assert torch.equal(run(input_ids=IDS).logits, plain)
        for name, expected in zip(NAMES, eager_rows(model), strict=True):
            np.testing.assert_allclose(rows.attention_weights[name], expected, atol=1e-5)
    assert torch.equal(run(input_ids=IDS).logits, plain)


# --- a lost handle ---------------------------------------------------------------------------------------
def test_an_extractor_that_is_dropped_leaves_the_model_free(model):
    extractor(model)
    check_watched(model)


def test_a_model_that_is_dropped_leaves_the_memory_while_its_extractor_lives():
    model = tiny_llama()
    held = [extractor(model, [1]), KernelTap(model, NAMES, family=FAMILY)]
    with torch.no_grad():
        model(input_ids=IDS)
    states = HiddenStates(model, family=FAMILY)
    gone = weakref.ref(model)
    own = tiny_llama()  # another of the class is not disturbed
    del model
    gc.collect()
    assert gone() is None
    assert held[0].attention_weights["layer_1"].shape == (2, 4, 7, 7) and held[0].names == (*NAMES,)
    with pytest.raises(ValueError, match="its model is gone"), held[1].tapped(lambda *_: None):
        pass
    held[0].remove()
    states.remove()
    check_watched(own)


def test_remove_all_takes_off_what_nobody_holds_any_more(model):
    lost = extractor(model), HiddenStates(model, family=FAMILY)
    with pytest.raises(ValueError, match=r"remove_all\(model\)"):
        extractor(model)
    remove_all(model)
    remove_all(model)
    check_watched(model)
    with torch.no_grad():
        model(input_ids=IDS)
    assert lost[0].attention_weights == {} and lost[1].hidden_states == {}
    lost[0].remove()


def test_remove_all_leaves_other_models_alone(model):
    other = tiny_llama()
    with extractor(other, [0]) as rows:
        extractor(model)
        remove_all(model)
        with torch.no_grad():
            other(input_ids=IDS)
    assert rows.attention_weights.keys() == {"layer_0"}


def test_remove_all_frees_the_model_below_a_wrapper(model):
    held = extractor(model)
    remove_all(torch.nn.DataParallel(model))
    check_watched(model)
    held.remove()


def test_an_extractor_that_could_not_attach_leaves_nothing(model):
    model.model.layers[2].self_attn.config = copy.copy(model.config)
    model.model.layers[2].self_attn.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ValueError, match="'flex_attention' cannot be observed"):
        extractor(model)
    model.model.layers[2].self_attn.config = model.config
    check_watched(model)


# --- copies and files ------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["deepcopy", "torch.save", "save_pretrained"])
def test_a_copy_of_a_watched_model_is_clean_and_can_be_watched(model, way, tmp_path):
    with extractor(model, [1]) as rows, HiddenStates(model, family=FAMILY) as states:
        if way == "deepcopy":
            other = copy.deepcopy(model)
        elif way == "torch.save":
            torch.save(model, file := io.BytesIO())
            assert b"diagnostics" not in file.getvalue()
            other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        else:
            model.save_pretrained(tmp_path)
            other = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
            other.model.tower = nn.ModuleList()
        assert other.config._attn_implementation == "sdpa"
        for module in other.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks
            assert "forward" not in vars(module)
        check_watched(other)  # while the first is watched
        assert rows.attention_weights == {} and states.hidden_states == {}
        with torch.no_grad():
            model(input_ids=IDS)
        assert rows.attention_weights.keys() == {"layer_1"}
    check_watched(other)


def test_a_model_that_shares_its_layers_with_a_watched_one_is_not_free(model):
    with extractor(model), pytest.raises(ValueError, match="another AttentionExtractor is attached"):
        extractor(copy.copy(model))


# --- the kernel is changed -------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("way", ["set_attn_implementation", "config"])
@pytest.mark.parametrize(("first", "then"), [("sdpa", "eager"), ("eager", "sdpa")])
def test_a_kernel_changed_while_watched_is_the_one_that_is_watched(way, first, then):
    model = tiny_llama(first)
    kernels = []
    with extractor(model) as rows:
        model(input_ids=IDS)
        if way == "config":
            model.config._attn_implementation = then
        else:
            model.set_attn_implementation(then)
        rows.clear()
        with rows.tapped(lambda name, call, output: kernels.append(call.kernel) or output):
            model(input_ids=IDS[:1])
        for name, expected in zip(NAMES, eager_rows(model, IDS[:1]), strict=True):
            np.testing.assert_allclose(rows.attention_weights[name], expected, atol=1e-5)
    assert kernels == [then] * 3 and model.config._attn_implementation == then


@torch.no_grad()
def test_a_kernel_that_cannot_be_watched_is_an_error_at_the_next_forward(model):
    with extractor(model):
        model.config._attn_implementation = "flex_attention"
        with pytest.raises(ValueError, match="attention kernel 'flex_attention' cannot be observed"):
            model(input_ids=IDS)
        model.config._attn_implementation = "sdpa"
    check_watched(model)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("when", ["before", "after", "layers"])
def test_a_compiled_model_is_watched(model, when):
    """Compiled before and run, so that its code is there; after; and layer by layer."""
    torch._dynamo.reset()
    run = model
    if when == "layers":
        for layer in model.model.layers:
            layer.compile(backend="eager")
        model(input_ids=IDS)
    elif when == "before":
        run = torch.compile(model, backend="eager")
        model.compile(backend="eager")
        run(input_ids=IDS), model(input_ids=IDS)
    with extractor(run) as rows:
        if when == "after":
            run = torch.compile(model, backend="eager")
        for one in (model, run):
            rows.clear()
            one(input_ids=IDS)
            for name, expected in zip(NAMES, eager_rows(tiny_llama()), strict=True):
                np.testing.assert_allclose(rows.attention_weights[name], expected, atol=1e-5)
    run(input_ids=IDS)
    assert (torch._dynamo.utils.counters["frames"]["ok"] > 0) == (when != "none")
    torch._dynamo.reset()


@torch.no_grad()
def test_a_watched_model_is_not_captured_in_a_cuda_graph(model, monkeypatch):
    with extractor(model), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(ValueError, match="being captured in a CUDA graph"):
            model(input_ids=IDS)
    check_watched(model)


# --- in company ------------------------------------------------------------------------------------------
@torch.no_grad()
def test_two_models_are_watched_at_once_and_a_third_is_not(model):
    other, third = tiny_llama("eager"), tiny_llama()
    plain = third(input_ids=IDS).logits
    with (
        extractor(model, [0]) as one,
        extractor(other, [1]) as two,
        HiddenStates(model, [2], family=FAMILY) as states,
    ):
        model(input_ids=IDS)
        other(input_ids=IDS[:, :4])
        assert torch.equal(third(input_ids=IDS).logits, plain)
    assert one.attention_weights["layer_0"].shape == (2, 4, 7, 7)
    assert two.attention_weights["layer_1"].shape == (2, 4, 4, 4)
    assert states.hidden_states["layer_2"].shape == (2, 7, 32)


def test_a_forward_that_fails_leaves_the_next_one_sound(model):
    with torch.no_grad(), extractor(model, query_tokens=[5]) as rows:
        with pytest.raises(ValueError, match="query token 5 does not exist"):
            model(input_ids=IDS[:, :4])
        with pytest.raises(IndexError):
            model(input_ids=IDS + 100)
        model(input_ids=IDS)
        assert rows.attention_weights["layer_2"].shape == (2, 4, 1, 7)


@torch.no_grad()
def test_a_forward_called_by_name_is_seen(model):
    with extractor(model, [0]) as rows:
        model.forward(input_ids=IDS)
    assert rows.attention_weights["layer_0"].shape == (2, 4, 7, 7)


def test_a_watched_model_in_two_threads_at_once_is_an_error_and_not_a_mixture(model):
    inside, go, found = threading.Event(), threading.Event(), []

    def wait(name, call, output):
        inside.set()
        assert go.wait(20)
        return output

    def first():
        with torch.no_grad(), rows.tapped(wait):
            found.append(model(input_ids=IDS).logits)

    with extractor(model, [0]) as rows:
        thread = threading.Thread(target=first)
        thread.start()
        assert inside.wait(20)
        with pytest.raises(ValueError, match="watched and runs in two threads at once"):
            model(input_ids=IDS)
        go.set()
        thread.join()
        assert len(found) == 1 and rows.attention_weights["layer_0"].shape == (2, 4, 7, 7)
        worker = threading.Thread(target=lambda: model(input_ids=IDS[:, :3]))  # one after the other
        worker.start()
        worker.join()
        assert rows.attention_weights["layer_0"].shape == (2, 4, 3, 3)
