"""What every model of transformers can do: saved, resized, tied, padded, checkpointed, in each kernel and dtype."""

import copy
import pickle

import pytest
import torch
from transformers import AutoConfig

import finetune  # noqa: F401  (registers)
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration, QwenVLModel
from finetune.qwen_vl.visual import sincos_table
from tests.finetune.qwen_vl.citizens import IMAGE_ID, prompts, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


def logits(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options).logits


def labels_of(inputs):
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs, labels=labels_of(inputs), use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- saved and copied ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saved_and_loaded_it_is_the_same(tmp_path, tied):
    model, inputs = small_model(tie_word_embeddings=tied), prompts((1, 5), (2, 9))
    model.save_pretrained(tmp_path)
    again, report = QwenVLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))
    assert (again.lm_head.weight is again.transformer.wte.weight) is tied


def test_tied_embeddings_are_one_matrix_that_is_trained_and_counted_once():
    model = small_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.all_tied_weights_keys == {"lm_head.weight": "transformer.wte.weight"}
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    model.resize_token_embeddings(500)
    assert model.lm_head.weight is model.transformer.wte.weight and model.lm_head.out_features == 500


def test_a_copy_and_a_pickle_are_the_same_and_apart(model):
    inputs = prompts((1, 5))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(again, inputs), logits(model, inputs))
        with torch.no_grad():
            again.transformer.wte.weight.zero_()
        assert model.transformer.wte.weight.any()


@pytest.mark.parametrize("size", [470, 512])
def test_embeddings_are_resized_and_the_old_tokens_stay(size):
    model, inputs = small_model(), prompts((0, 7))
    before = logits(model, inputs)
    model.resize_token_embeddings(size)
    after = logits(model, inputs)
    kept = min(size, 480)
    assert after.shape[-1] == model.config.vocab_size == size
    assert torch.equal(after[..., :kept], before[..., :kept])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()


def test_a_configuration_goes_through_a_file(tmp_path):
    config = small_model(rotary_emb_base=5000, use_logn_attn=False).config
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    own = {**config.to_dict(), "_name_or_path": str(tmp_path)}
    assert type(again) is QwenVLConfig and again.to_dict() == own
    assert again.image_token_id == IMAGE_ID and not again.auto_map


def test_fresh_weights_are_drawn_as_the_configuration_says():
    torch.manual_seed(0)
    model = QwenVLForConditionalGeneration(small_model(initializer_range=0.03, hidden_size=32).config)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name.endswith("c_attn.weight"):
            assert abs(float(parameter.detach().std()) - 0.03) < 0.005, name
        if name.endswith("bias"):
            assert not parameter.any(), name
    assert torch.equal(model.transformer.visual.attn_pool.pos_embed, sincos_table(32, 2))


# --- the same numbers, whichever way ---------------------------------------------------------------------------------
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_has_the_logits_of_each_row_alone(model, side):
    inputs = prompts((1, 5), (2, 9), (0, 3))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if side == "right":
        shift = [int((row == 0).sum()) for row in mask]
        ids, mask = (torch.stack([x.roll(-n) for x, n in zip(y, shift, strict=True)]) for y in (ids, mask))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    together = logits(model, {**inputs, "input_ids": ids, "attention_mask": mask, "position_ids": positions})
    pictures = inputs["pixel_values"].split([1, 2, 0])
    for row in range(3):
        own = {"input_ids": ids[row][mask[row].bool()][None]}
        alone = logits(model, {**own, "pixel_values": pictures[row]} if len(pictures[row]) else own)
        assert (together[row][mask[row].bool()] - alone[0]).abs().max() < 1e-4


def test_kernels_agree_and_report_their_name():
    inputs = prompts((1, 5), (2, 9))
    found = {}
    for kernel in ("eager", "sdpa"):
        model = small_model(kernel)
        found[kernel] = logits(model, inputs)[inputs["attention_mask"].bool()]
    assert (found["eager"] - found["sdpa"]).abs().max() < 1e-4
    with torch.no_grad():
        out = small_model("eager")(**inputs, output_attentions=True, output_hidden_states=True)
    rows, length = inputs["input_ids"].shape
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    assert all(state.shape == (rows, length, 32) for state in out.hidden_states)
    assert all(weights.shape == (rows, 2, length, length) for weights in out.attentions)
    assert torch.allclose(
        out.attentions[0][inputs["attention_mask"].bool()[:, None].expand(-1, 2, -1)].sum(-1), torch.ones(1)
    )


def test_the_last_logits_alone_are_the_last_logits(model):
    inputs = prompts((1, 5))
    whole, some = logits(model, inputs), torch.tensor([0, 3])
    assert torch.allclose(logits(model, inputs, logits_to_keep=2), whole[:, -2:], atol=1e-5)
    assert torch.allclose(logits(model, inputs, logits_to_keep=some), whole[:, some], atol=1e-5)


@pytest.mark.parametrize("where", ["call", "configuration"])
def test_a_tuple_holds_what_the_dictionary_does(where):
    changes = {"return_dict": False} if where == "configuration" else {}
    model, inputs = small_model(**changes), prompts((1, 5))
    asked = {} if changes else {"return_dict": False}
    with torch.no_grad():
        loss, scores, *_ = model(**inputs, labels=inputs["input_ids"], **asked)
        same = model(**inputs, labels=inputs["input_ids"], return_dict=True)
        bare = model.transformer(**inputs, **asked)
    assert torch.equal(loss, same.loss) and torch.equal(scores, same.logits)
    assert isinstance(bare, tuple) and bare[0].shape[-1] == 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_run_and_agree(model, dtype):
    inputs = prompts((1, 5))
    other = copy.deepcopy(model).to(dtype)
    found = logits(other, inputs)
    assert (
        found.dtype == dtype
        and other.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    )
    assert (found.float() - logits(model, inputs)).abs().mean() < (0.1 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("shapes", [[(0, 9)], [(1, 5), (2, 9)]], ids=["text", "pictures"])
def test_embeddings_in_place_of_ids_give_the_same(model, shapes):
    inputs = prompts(*shapes)
    embedded = {key: value for key, value in inputs.items() if key != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"]).detach()
    assert torch.equal(logits(model, embedded), logits(model, inputs))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**inputs, inputs_embeds=embedded["inputs_embeds"])


def test_pictures_without_their_places_among_embeddings_are_named(model):
    embedded = torch.zeros(1, 9, 32)
    with pytest.raises(ValueError, match="hold 0 <img> tokens .* and pixel_values 1 images"):
        model(inputs_embeds=embedded, pixel_values=torch.zeros(1, 3, 12, 12))


def test_an_image_token_that_nothing_closes_is_a_token(model):
    ids = torch.tensor([[3, IMAGE_ID, 4, 5, 6, 7, 8, 9, 10]])
    assert torch.isfinite(logits(model, {"input_ids": ids})).all()
    inputs = prompts((1, 5))
    more = torch.cat([inputs["input_ids"], ids], dim=1)
    found = logits(model, {"input_ids": more, "pixel_values": inputs["pixel_values"]})
    expected = logits(model, inputs)
    assert torch.allclose(found[:, : expected.shape[1]], expected, atol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpointed_gradients_are_the_gradients(reentrant):
    model, inputs = small_model().train(), prompts((1, 5), (2, 9))
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model, inputs)
    assert found.keys() == expected.keys() and len(found) > 50
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad"
)  # blocks that are frozen throughout
@pytest.mark.parametrize("trained", ["eye", "language", "both"])
@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
def test_what_is_trained_behind_frozen_layers_learns_under_reentrant_checkpoints(trained, pictures):
    """Reentrant checkpoints give no gradients to a block whose input needs none, as the first one's here."""
    model = small_model().train()
    eye, language = "visual.transformer.resblocks", "transformer.h."
    wanted = {"eye": (eye,), "language": (language,), "both": (eye, language)}[trained]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in wanted))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    found = gradients(model, prompts((1, 5), (2, 9)) if pictures else prompts((0, 5)))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(found)
    assert all(gradient.any() for name, gradient in found.items() if pictures or eye not in name)


def test_the_bare_model_is_the_body_of_the_whole(model):
    inputs = prompts((1, 5))
    bare = QwenVLModel(model.config).eval()
    bare.load_state_dict(model.transformer.state_dict())
    with torch.no_grad():
        states = bare(**inputs).last_hidden_state
        assert torch.equal(model.lm_head(states), model(**inputs).logits)
