"""The model before beside the model after: an adapter switched off and on leaves no trace, and what cannot be had."""

import copy

import pytest
import torch
from peft import LoraConfig, LoraModel, get_peft_model
from torch import nn

from diagnostics.probing import before as before_module
from diagnostics.probing.before import (
    AdapterOff,
    NotAtHandError,
    OtherModel,
    adapter_fault,
    difference,
    has_trained_adapter,
    is_base_when_off,
    loaded_beside,
    require_room,
)
from diagnostics.probing.prober import Prober
from diagnostics.records.measurement_plan import WATCH
from finetune.model.checkpoint import load
from tests.diagnostics.probing.test_mediation import PATCHING
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.finetune.qwen_vl.test_citizen_peft import TUNERS

TARGETS = r"transformer\.h\.\d+\.attn\.c_attn"


@pytest.fixture(scope="module")
def probes(folder):
    return tiny_probes(folder, 2)


def adapted(**options) -> nn.Module:
    """A trained adapter, and the connector trained in full beside it."""
    settings = LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["attn_pool"], **options)
    model = get_peft_model(tiny_model(), settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def prober(model, processor, probes, depth=PATCHING, before=None) -> Prober:
    return Prober(model, processor, key_layers=[0, 1], probes=probes, depth=depth, before=before)


def state(model: nn.Module):
    """All that a run could leave behind: values, gradients, what trains, modes, and PEFT's own attributes."""
    own = ("training", "_disable_adapters", "_active_adapter", "merged_adapters", "_adapters_disabled")
    modules = [
        tuple((name, copy.copy(vars(one)[name])) for name in own if name in vars(one))
        for one in model.modules()
    ]
    tensors = {
        name: (one.detach().clone(), one.requires_grad, None if one.grad is None else one.grad.clone())
        for name, one in model.named_parameters()
    }
    return modules, tensors


def assert_as_it_was(model: nn.Module, before) -> None:
    modules, tensors = state(model)
    assert modules == before[0]
    for name, (values, trains, gradient) in tensors.items():
        was = before[1][name]
        assert torch.equal(values, was[0]) and trains == was[1], name
        assert (gradient is None and was[2] is None) or torch.equal(gradient, was[2]), name


def test_with_the_adapter_off_it_is_the_base_with_its_own_connector(processor, probes):
    model = adapted()
    quiet = prober(tiny_model(), processor, probes, WATCH).run_all(0, "base")
    for record, base in zip(
        prober(model, processor, probes, before=AdapterOff(model, "the base")).run_all(9, "after"),
        quiet,
        strict=True,
    ):
        assert record.patched_from.model == "the base"
        assert record.patched_from.margin_nats == pytest.approx(base.scores.margin_nats, abs=1e-4)
        assert abs(record.scores.margin_nats - base.scores.margin_nats) > 1e-3


def test_an_adapter_is_the_same_as_a_second_model(processor, probes):
    model = adapted()
    shared = prober(model, processor, probes, before=AdapterOff(model, "b")).run_all(9, "after")
    second = prober(model, processor, probes, before=OtherModel(tiny_model(), "b")).run_all(9, "after")
    for one, other in zip(shared, second, strict=True):
        assert len(one.patches) == 5
        assert [patch.margin_nats for patch in one.patches] == pytest.approx(
            [patch.margin_nats for patch in other.patches], abs=1e-4
        )


def test_trained_tokens_are_on_again_whose_layers_have_their_switch_from_their_class(processor, probes):
    model = adapted(trainable_token_indices={"wte": [3, 5]})
    was = state(model)
    ids = torch.tensor([[3, 5, 9]])
    with torch.no_grad():
        on = model(input_ids=ids).logits
        for _ in range(2):
            with AdapterOff(model, "base").running():
                assert not torch.equal(model(input_ids=ids).logits, on)
            assert torch.equal(model(input_ids=ids).logits, on)
    assert_as_it_was(model, was)


def test_the_adapters_of_transformers_are_switched_off_layer_by_layer(processor, probes):
    """``add_adapter`` makes no PeftModel and keeps no tuner."""
    model = tiny_model()
    settings = LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["attn_pool"], init_lora_weights=False)
    model.add_adapter(settings)
    model.train()
    was = state(model)
    [base, _] = prober(tiny_model(), processor, probes, WATCH).run_all(0, "base")
    [record, _] = prober(model, processor, probes, before=AdapterOff(model, "b")).run_all(9, "after")
    assert record.patched_from.margin_nats == pytest.approx(base.scores.margin_nats, abs=1e-4)
    assert abs(record.scores.margin_nats - base.scores.margin_nats) > 1e-3
    assert_as_it_was(model, was)


@pytest.mark.parametrize("raises", [False, True])
def test_switching_off_leaves_no_trace_also_where_probing_raises(processor, probes, raises, monkeypatch):
    """One adapter of two is active, some of its parameters are frozen by hand, and gradients wait for a step."""
    model = adapted()
    model.add_adapter("idle", LoraConfig(r=2, target_modules=TARGETS))
    model.train()
    model.transformer.ln_f.eval()
    frozen = [name for name, one in model.named_parameters() if one.requires_grad][:3]
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    was = state(model)
    one = prober(model, processor, probes, before=AdapterOff(model, "base"))
    if raises:
        monkeypatch.setattr(
            "diagnostics.probing.mediation.PatchSource", lambda *_: (_ for _ in ()).throw(KeyError("boom"))
        )
        with pytest.raises(KeyError, match="boom"):
            one.run_all(1, "x")
        with pytest.raises(RuntimeError, match="in the block"), AdapterOff(model, "base").running():
            raise RuntimeError("in the block")
    else:
        one.run_all(1, "x")
    assert_as_it_was(model, was)


def test_modules_are_not_asked_for_a_status_at_each_probe(monkeypatch):
    model = adapted()
    monkeypatch.setattr(model, "get_model_status", lambda: pytest.fail("asked"))
    with AdapterOff(model, "base").running():
        assert not any(vars(one).get("_disable_adapters") is False for one in model.modules())


def test_a_tuner_that_switches_in_a_way_of_its_own_does_so(monkeypatch):
    switched: list[str] = []
    for name in ("disable_adapter_layers", "enable_adapter_layers"):
        monkeypatch.setattr(LoraModel, name, lambda _, name=name: switched.append(name), raising=False)
    with AdapterOff(adapted(), "base").running():
        assert switched == ["disable_adapter_layers"]
    assert switched == ["disable_adapter_layers", "enable_adapter_layers"]


@pytest.mark.parametrize(
    ("tuner", "is_base"), [("LoRA", True), ("DoRA", True), ("PiSSA", False), ("OLoRA", False)]
)
def test_the_margin_tells_where_the_adapter_off_is_not_what_training_began_with(
    processor, probes, tuner, is_base
):
    """PiSSA and OLoRA take a part out of the base's weights; step 0, with the adapter on, is the base all the same."""
    model = get_peft_model(tiny_model(), TUNERS[tuner]("qwen-vl"))
    [step_0, *_] = prober(model, processor, probes, WATCH).run_all(0, "base")
    [later, *_] = prober(model, processor, probes, before=AdapterOff(model, "base")).run_all(9, "after")
    apart = abs(later.patched_from.margin_nats - step_0.scores.margin_nats)
    assert (apart < 1e-4) if is_base else (apart > 0.01)


def test_an_adapter_that_is_continued_began_as_another_model_than_its_base(processor, probes):
    model = adapted()
    [step_0, *_] = prober(model, processor, probes, WATCH).run_all(0, "continued")
    [later, *_] = prober(model, processor, probes, before=AdapterOff(model, "base")).run_all(9, "after")
    assert abs(later.patched_from.margin_nats - step_0.scores.margin_nats) > 1e-3


def test_only_an_adapter_beside_the_base_leaves_it_when_switched_off():
    """Biases are trained in the base itself; PiSSA and its like take a part out of its weights."""
    plain = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
    assert is_base_when_off(plain) and is_base_when_off({"peft_type": "LOHA"})
    for other in (
        {"bias": "all"},
        {"bias": "lora_only"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"peft_type": "OSF"},
    ):
        assert not is_base_when_off(plain | other)


def test_an_adapter_that_was_trained_is_told_from_a_new_one():
    assert has_trained_adapter(adapted())
    assert not has_trained_adapter(tiny_model())
    for tuner in ("LoRA", "DoRA", "PiSSA", "embeddings", "IA3"):
        assert not has_trained_adapter(get_peft_model(tiny_model(), TUNERS[tuner]("qwen-vl"))), tuner
    model = tiny_model()
    model.add_adapter(LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    assert has_trained_adapter(model)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_train_are_not_switched_off(bias):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=TARGETS, bias=bias))
    with pytest.raises(NotAtHandError, match=f"trains biases of the base itself .default: bias {bias}."):
        AdapterOff(model, "base")


def test_what_cannot_be_switched_off_is_refused():
    with pytest.raises(NotAtHandError, match="found a QwenVLForConditionalGeneration without an adapter"):
        AdapterOff(tiny_model(), "base")
    model = adapted()
    assert adapter_fault(model) is None
    model.merge_adapter()
    with pytest.raises(NotAtHandError, match="merged into the weights of 3 modules.*unmerge it"):
        AdapterOff(model, "base")
    model.unmerge_adapter()
    next(model.parameters()).ds_id = 0
    with pytest.raises(NotAtHandError, match="sharded over processes"):
        AdapterOff(model, "base")


def test_models_that_are_built_differently_are_told_apart():
    assert difference(tiny_model(), tiny_model(seed=1)) is None
    assert difference(tiny_model(), adapted()) is None
    for changes, words in (
        ({"num_hidden_layers": 4}, "layer_3 is 2 heads over 2 of 16 before and missing after"),
        ({"vocab_size": 481}, "the vocabulary is 481 tokens before and 480 tokens after"),
        ({"num_attention_heads": 4}, "layer_0 is 4 heads over 4 of"),
    ):
        assert words in str(difference(tiny_model(**changes), tiny_model()))


@pytest.mark.parametrize("named", [None, "eager"])
def test_a_second_model_has_the_kernels_of_the_first(tmp_path, named):
    """Gemma 2's logits are capped, which SDPA cannot: where no kernel is named, the language model alone is eager."""
    tiny = SIGLIPS["paligemma2"]
    tiny.model().save_pretrained(tmp_path)
    tiny.processor(tmp_path).save_pretrained(tmp_path)
    model, _ = load(tmp_path, attn_implementation=named)
    other = loaded_beside(str(tmp_path), model).model
    for config in ("text_config", "vision_config"):
        kernels = [getattr(one.config, config)._attn_implementation for one in (model, other)]
        assert kernels[0] == kernels[1]


def test_a_second_model_is_loaded_only_where_there_is_room(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(before_module, "load", lambda name, **options: (tiny_model(seed=2), None))
    assert loaded_beside("base", model).name == "base"
    given = []
    monkeypatch.setattr(
        before_module, "load", lambda name, **options: (given.append(options), (tiny_model(), None))[1]
    )
    loaded_beside("base", model, cache_dir="/models")
    assert given[0]["cache_dir"] == "/models"
    monkeypatch.setattr(before_module, "load", lambda name, **options: (tiny_model(vocab_size=490), None))
    with pytest.raises(NotAtHandError, match="vocabulary is 490 tokens before"):
        loaded_beside("base", model)

    def missing(name, **options):
        raise ValueError("there is no such folder")

    monkeypatch.setattr(before_module, "load", missing)
    with pytest.raises(NotAtHandError, match="base could not be opened a second time: there is no such"):
        loaded_beside("base", model)
    size = sum(one.numel() * 4 for one in model.parameters()) + 2**28
    monkeypatch.setattr(before_module, "available_bytes", lambda place: size)
    require_room(model)
    monkeypatch.setattr(before_module, "available_bytes", lambda place: size - 1)
    with pytest.raises(NotAtHandError, match="a second model beside this one needs 0.3 GiB, found 0.3 GiB"):
        loaded_beside("base", model)
    with pytest.raises(NotAtHandError, match="sharded"):
        next(model.parameters()).ds_id = 0
        loaded_beside("base", model)
    quantised = tiny_model()
    quantised.is_loaded_in_4bit = True
    with pytest.raises(NotAtHandError, match="in 4 bit, and a second model beside it would be in full"):
        loaded_beside("base", quantised)
