"""Checkpoints of every kind of family as users have them: in shards, in half precision, in 4 bit, by a hub name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from diagnostics.probing.prompts import padded
from finetune.families import attention_modules, bare_model
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.model.checkpoint import load, load_config, load_processor
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.families.pictures import picture
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_siglip import SIGLIPS

CPU = torch.device("cpu")
KNOWN = {**GRIDS, **LLAVAS, **SIGLIPS}


@pytest.fixture(scope="module", params=["qwen2.5-vl", "qwen3-vl", "internvl", "gemma3"])
def tiny(request):
    return KNOWN[request.param]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("checkpoint"))


def logits(tiny, model, processor):
    turns = (Turn("user", (ImageRef("a.png", picture((50, 31))), "what?")), Turn("assistant", ("yes",)))
    inputs = padded([tiny.family.encode(processor, Conversation(turns))], CPU, left=False)
    dtype = next(model.parameters()).dtype
    inputs = {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}
    with torch.no_grad():
        return model(**inputs).logits


def test_shards(tiny, folder, tmp_path):
    model, processor = load(folder)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    processor.save_pretrained(tmp_path)
    assert (
        len(list(tmp_path.glob("model-*.safetensors"))) > 1 and not (tmp_path / "model.safetensors").exists()
    )
    again, processor_again = load(tmp_path)
    assert torch.equal(logits(tiny, again, processor_again), logits(tiny, model, processor))


def test_half_precision_as_it_is_saved(tiny, folder, tmp_path):
    model, processor = load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load(tmp_path)  # in the precision that its configuration names
    assert next(again.parameters()).dtype == torch.bfloat16
    assert torch.equal(logits(tiny, again, processor), logits(tiny, model, processor))


def test_four_bit_is_of_the_language_layers_alone(tiny, folder):
    model, processor = load(folder, quantize=True, dtype=torch.float32)
    inside = f"{tiny.family.paths.language_layers}."
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    four = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    assert four and all(name.startswith(inside) for name in four)
    assert not [name for name, kind in kinds.items() if kind == "Linear" and name.startswith(inside)]
    assert torch.isfinite(logits(tiny, model, processor)).all()


def test_a_hub_name_from_the_cache(tiny, folder, tmp_path, monkeypatch):
    """As the hub's client lays a download out; nothing else is reachable."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / "models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    model, processor = load("someone/tiny", cache_dir=str(tmp_path))
    expected, _ = load(folder)
    assert torch.equal(logits(tiny, model, processor), logits(tiny, expected, processor))
    assert len(attention_modules(model, tiny.family)) == len(attention_modules(expected, tiny.family))


def test_code_that_comes_with_a_checkpoint_never_runs(tiny, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.Trap", "AutoModelForImageTextToText": "trap.Trap"}
    (copy / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (copy / "trap.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Trap: pass\n")
    model, _ = load(copy)
    assert not ran.exists() and bare_model(model).config.model_type == config["model_type"]


@pytest.mark.parametrize("kind", ["brand_new_vl", None])
def test_a_model_of_an_unknown_type_is_refused_and_its_code_not_asked_about(tmp_path, kind, monkeypatch):
    """transformers asks on the terminal whether to run it, or advises a flag that there is not here."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ran = tmp_path / "ran"
    written = {"model_type": kind, "auto_map": {"AutoConfig": "trap.Trap"}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "trap.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Trap: pass\n")
    with pytest.raises(
        ValueError, match=f"no known model family for a configuration of type {kind!r}.*known: "
    ):
        load_config(tmp_path)
    assert not ran.exists()


def test_a_tokenizer_of_the_checkpoints_own_code_is_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    copy, ran = tmp_path / "copy", tmp_path / "ran"
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["trap.Trap", "trap.Trap"]}}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    (copy / "trap.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Trap: pass\n")
    load_processor(copy)  # transformers' own stands in
    (copy / "config.json").write_text('{"model_type": "brand_new_vl"}')
    with pytest.raises(
        ValueError, match="its tokenizer is code that comes with the checkpoint, which is never"
    ):
        load_tokenizer(str(copy))
    assert not ran.exists()


def test_a_name_that_is_no_folder_and_cannot_be_had_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=r"someone/nothing: there is no such folder \(working directory .*the hub has no such",
    ):
        load("someone/nothing", cache_dir=str(tmp_path))


def test_a_folder_without_weights_is_one_message(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match=f"{copy}: .*no file named model.safetensors"):
        load(copy)


def test_what_is_saved_is_safetensors(tiny, folder):
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors", ".model", ".txt"}
    assert load_file(folder / "model.safetensors")
