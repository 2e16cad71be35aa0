import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from finetune.families.qwen_vl import QwenVLFamily
from finetune.model import checkpoint, checkpoint_files
from finetune.model.adaptation import adapt
from finetune.qwen_vl import QwenVLForConditionalGeneration, QwenVLProcessor
from tests.finetune.conftest import write_checkpoint
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.model.test_adaptation import LORA, batch, perturb


@pytest.fixture(scope="module")
def adapter(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter folder without a processor of its own, and its logits."""
    folder = tmp_path_factory.mktemp("adapter")
    base, _ = checkpoint.load(checkpoint_folder, for_training=True)
    adapted = adapt(base, QwenVLFamily(), replace(LORA, connector="full"), master_weights=True)
    perturb(adapted)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return folder, adapted.eval()(**batch()).logits


def test_a_model_folder(checkpoint_folder: Path):
    model, processor = checkpoint.load(checkpoint_folder, dtype=torch.bfloat16)
    assert isinstance(model, QwenVLForConditionalGeneration) and not model.training
    assert isinstance(processor, QwenVLProcessor)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_an_adapter_folder_brings_its_base_from_anywhere(
    adapter: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, logits = adapter
    monkeypatch.chdir(tmp_path)
    model, processor = checkpoint.load(folder)
    assert isinstance(model, PeftModel) and isinstance(processor, QwenVLProcessor)
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, logits)
    assert any(p.requires_grad for p in checkpoint.load(folder, for_training=True)[0].parameters())


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"nowhere: there is no such folder .*expected a model folder, an adapter folder"
    ):
        checkpoint.load(tmp_path / "nowhere")


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"found neither config\.json nor adapter_config\.json"):
        checkpoint.load(tmp_path)


def test_an_adapter_whose_base_is_gone(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/gone/base/model"}))
    with pytest.raises(
        ValueError, match=r"adapter_config\.json: its base model '/gone/base/model' is missing"
    ):
        checkpoint.load(tmp_path)


def test_weights_that_are_quantised_already_are_refused(checkpoint_folder: Path, tmp_path: Path):
    config = json.loads((checkpoint_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantised already \(gptq\).*--q_lora"):
        checkpoint.load(tmp_path)


def test_a_text_only_qwen_is_refused(checkpoint_folder: Path, tmp_path: Path):
    config = json.loads((checkpoint_folder / "config.json").read_text())
    del config["visual"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="text-only Qwen"):
        checkpoint.load(tmp_path)


def test_four_bit_is_for_the_language_layers_alone(checkpoint_folder: Path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, _ = checkpoint.load(checkpoint_folder, quantize=True, for_training=True)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            inside = name.startswith("transformer.h.")
            assert isinstance(module, bitsandbytes.nn.Linear4bit) == inside, name
    adapted = adapt(model, QwenVLFamily(), LORA, master_weights=True)
    inputs = batch()
    out = adapted(**inputs).logits
    out.square().mean().backward()
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert len(gradients) == 16 and all(g is not None for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


def test_an_adapter_of_another_base_is_recognised_by_its_shapes(
    adapter: tuple[Path, torch.Tensor], checkpoint_folder: Path, tmp_path: Path
):
    folder, logits = adapter
    wider = write_checkpoint(tmp_path / "wider", intermediate_size=96)
    with pytest.raises(
        ValueError,
        match=r"an adapter of another model than .*wider:\n  base_model\.model\.transformer\.h\.0\.mlp\.w1\.lora_B"
        r"\.weight: found \[32, 4\] in the adapter, expected \[48, 4\] for this base\n(.|\n)*\n"
        r".*adapter_config\.json there says which",
    ):
        checkpoint.load(folder, base=str(wider))
    shallow = write_checkpoint(tmp_path / "flat", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"h\.1\.attn.*expected no such tensor"):
        checkpoint.load(folder, base=str(shallow))
    # The same base in another place is as good.
    copy = write_checkpoint(tmp_path / "copy")
    with torch.no_grad():
        assert torch.equal(checkpoint.load(folder, base=str(copy))[0](**batch()).logits, logits)


def test_an_adapter_that_lost_a_tensor_is_refused(adapter: tuple[Path, torch.Tensor], tmp_path: Path):
    folder = shutil.copytree(adapter[0], tmp_path / "lost")
    saved = load_file(folder / "adapter_model.safetensors")
    del saved["base_model.model.transformer.h.1.mlp.w1.lora_B.weight"]
    save_file(saved, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.w1\.lora_B\.weight: found none in the adapter"):
        checkpoint.load(folder)


def test_an_adapter_that_was_cut_short_is_named(adapter: tuple[Path, torch.Tensor], tmp_path: Path):
    folder = shutil.copytree(adapter[0], tmp_path / "cut")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: cannot be read .*it was cut short"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_the_model_uses_the_requested_kernel(checkpoint_folder: Path, name: str):
    assert checkpoint.load(checkpoint_folder, attn_implementation=name)[0].config._attn_implementation == name


def test_a_flash_kernel_that_cannot_be_is_refused_before_weights_load(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checkpoint, "is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr(
        checkpoint.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail()
    )
    with pytest.raises(ValueError) as caught:
        checkpoint.load(checkpoint_folder, attn_implementation="flash_attention_2")
    message = str(caught.value)
    assert (
        "found no GPU" in message
        and "found no package flash-attn" in message
        and "sdpa, the default" in message
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checkpoint, "is_flash_attn_2_available", lambda: True)
    checkpoint.check_kernel("flash_attention_2", torch.bfloat16)
    with pytest.raises(ValueError, match="found training in float32, expected --bf16 True or --fp16 True"):
        checkpoint.check_kernel("flash_attention_2", torch.float32)


@pytest.mark.parametrize("number", [2**31, 100_000_000])
def test_a_tokenizer_whose_table_would_fill_the_memory_is_refused_unread(tmp_path: Path, number: int):
    GRIDS["qwen2.5-vl"].write(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    sound = content | {"truncation": {"max_length": 10**30}}  # no token's
    file.write_text(json.dumps(sound), encoding="utf-8")
    checkpoint_files.check_processor(tmp_path)
    content["model"]["vocab"]["cat"] = number
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"found a token with the number {number}, expected") as refused:
        checkpoint.load_processor(tmp_path)
    assert str(refused.value).startswith(f"{file}: ")


def test_a_skeleton_is_built_from_a_configuration_that_was_saved():
    """``save_pretrained`` leaves the name of the precision in the model's configuration."""
    for written in ("float32", "torch.bfloat16", torch.float16, None):
        config = GRIDS["qwen2-vl"].model().config
        config.dtype = written
        found = next(checkpoint.skeleton(config).parameters())
        assert found.is_meta and str(written or "float32").removeprefix("torch.") in str(found.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Weights that are not the model's
# ---------------------------------------------------------------------------------------------------------------------

PEFT = "base_model.model."
LOST = "transformer.h.1.mlp.w1.weight"
WEIGHTS = "model.safetensors"


def rewritten(folder: Path, to: Path, rewrite: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    copied = shutil.copytree(folder, to)
    saved = load_file(copied / WEIGHTS)
    rewrite(saved)
    save_file(saved, copied / WEIGHTS, {"format": "pt"})
    return copied


def under_a_prefix(saved: dict[str, torch.Tensor]) -> None:
    for name in list(saved):
        saved[f"module.{name}"] = saved.pop(name)


LACKING = {
    "one": (lambda saved: saved.pop(LOST), rf"lack 1 of the model's tensors.*:\n  {LOST}\nexpected each"),
    "all": (under_a_prefix, r"(.|\n)*and \d+ more\nfound \d+ that it does not have, such as module\.lm_head"),
}


@pytest.mark.parametrize("way", ["early", "loading", "four bit"])
@pytest.mark.parametrize("kind", LACKING)
def test_tensors_that_no_file_holds_are_not_made_up(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
):
    rewrite, message = LACKING[kind]
    folder = rewritten(checkpoint_folder, tmp_path / "lacking", rewrite)
    if way == "early":
        monkeypatch.setattr(
            checkpoint.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail()
        )
    else:  # as for a name of the hub, of which headers are not read
        monkeypatch.setattr(checkpoint, "_require_weights", lambda *_: None)
    calls = {"early": [checkpoint.check, checkpoint.require_weights]}.get(way, [checkpoint.load])
    for call in calls:
        with pytest.raises(ValueError, match=f"{folder}: its weights {message}"):
            call(folder, **({"quantize": True} if way == "four bit" else {}))


def to_names_of_transformers_4(saved: dict[str, torch.Tensor], old: dict[str, str]) -> None:
    for name in list(saved):
        prefix = next(one for one in old if name.startswith(one))
        saved[old[prefix] + name.removeprefix(prefix)] = saved.pop(name)


@pytest.mark.parametrize(
    ("tiny", "old"),
    [
        (
            GRIDS["qwen2.5-vl"],
            {"visual.": "model.visual.", "model.": "model.language_model.", "lm_head.": "lm_head."},
        ),
        (
            LLAVAS["llava-1.5"],
            {
                "language_model.model.": "model.language_model.",
                "language_model.lm_head.": "lm_head.",
                "vision_tower.": "model.vision_tower.",
                "multi_modal_projector.": "model.multi_modal_projector.",
            },
        ),
    ],
    ids=["qwen2.5-vl", "llava-1.5"],
)
def test_names_of_every_release_are_known(tmp_path: Path, tiny: Any, old: dict[str, str]):
    """They changed with transformers 4.52, and changed back."""
    folder = tiny.write(tmp_path / "base")
    other = rewritten(folder, tmp_path / "other", lambda saved: to_names_of_transformers_4(saved, old))
    assert not load_file(folder / WEIGHTS).keys() - {"lm_head.weight"} & load_file(other / WEIGHTS).keys()
    for one in (folder, other):
        checkpoint.check(one)


@pytest.mark.parametrize(
    ("tiny", "old"),
    [
        (GRIDS["qwen2.5-vl"], {"model.": "model.language_model.", "visual.": "model.visual."}),
        (
            LLAVAS["llava-1.5"],
            {"language_model.model.": "model.language_model.", "vision_tower.": "model.vision_tower."},
        ),
    ],
    ids=["qwen2.5-vl", "llava-1.5"],
)
def test_an_adapter_with_names_of_an_earlier_release_is_told_from_one_of_another_model(
    tmp_path: Path, tiny: Any, old: dict[str, str]
):
    model, _ = checkpoint.load(tiny.write(tmp_path / "base"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*(q_proj|qkv)"))
    perturb(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    now = load_file(file)
    then = {
        f"{PEFT}{before}{name.removeprefix(PEFT + after)}": tensor
        for name, tensor in now.items()
        for before, after in old.items()
        if name.startswith(PEFT + after)
    }
    assert len(then) == len(now)
    save_file(then, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"as transformers wrote them before 4\.52:\n") as caught:
        checkpoint.check(tmp_path / "adapter")
    beginnings = re.findall(r"^  (\S+) → (\S+)$", str(caught.value), re.MULTILINE)
    assert len(beginnings) == len(old)
    renamed = {
        now_begins + name.removeprefix(begins): tensor
        for name, tensor in then.items()
        for begins, now_begins in beginnings
        if name.startswith(begins)
    }
    assert renamed.keys() == now.keys()
    wider = {name: torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 8) for name, tensor in then.items()}
    for other in (wider, {name: then[name] for name in sorted(then)[1:]}):
        save_file(other, file, {"format": "pt"})
        with pytest.raises(ValueError, match="an adapter of another model than "):
            checkpoint.check(tmp_path / "adapter")
    save_file(renamed, file, {"format": "pt"})
    checkpoint.load(tmp_path / "adapter")


def test_tensors_that_the_model_does_not_have_are_said_once(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    known = {"transformer.rotary_emb.inv_freq": torch.ones(2)}
    checkpoint.load(rewritten(checkpoint_folder, tmp_path / "known", lambda saved: saved.update(known)))
    assert capsys.readouterr().out == ""
    more = {f"extra.{i}": torch.ones(1) for i in range(5)}
    folder = rewritten(checkpoint_folder, tmp_path / "more", lambda saved: saved.update(more))
    checkpoint.load(folder)
    said = f"{folder}: tensors in its files that the model does not have, left out: "
    assert capsys.readouterr().out == f"{said}extra.0, extra.1, extra.2 and 2 more\n"


# ---------------------------------------------------------------------------------------------------------------------
# A model and an adapter in one folder
# ---------------------------------------------------------------------------------------------------------------------

BOTH = r"found a model \(config\.json, model\.safetensors\) and an adapter \(adapter_config\.json\), expected one"


def test_an_adapter_in_the_folder_of_a_model_is_not_attached_unseen(
    adapter: tuple[Path, torch.Tensor], checkpoint_folder: Path, tmp_path: Path
):
    whole = shutil.copytree(checkpoint_folder, tmp_path / "whole")
    for path in adapter[0].glob("adapter_*"):
        shutil.copy(path, whole)
    other = shutil.copytree(adapter[0], tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(whole)}))
    opened = [
        lambda: checkpoint.load(whole),
        lambda: checkpoint.load(adapter[0], base=str(whole)),
        lambda: checkpoint.load(other),
        lambda: checkpoint.load_config(whole),
    ]
    for opening in opened:
        with pytest.raises(ValueError, match=f"^{whole}: {BOTH}"):
            opening()


def test_an_adapter_in_a_model_of_the_hub_is_not_attached_unseen(
    adapter: tuple[Path, torch.Tensor],
    checkpoint_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / "models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    snapshot = shutil.copytree(checkpoint_folder, place / "snapshots" / ("0" * 40))
    for path in adapter[0].glob("adapter_*"):
        shutil.copy(path, snapshot)
    with pytest.raises(ValueError, match=r"^someone/tiny: found a model .* and an adapter"):
        checkpoint.load("someone/tiny", cache_dir=str(tmp_path))


def test_the_configuration_of_its_base_beside_an_adapter_makes_it_no_model(
    adapter: tuple[Path, torch.Tensor], checkpoint_folder: Path, tmp_path: Path
):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    shutil.copy(checkpoint_folder / "config.json", folder)
    assert checkpoint.resolve(folder) == (str(checkpoint_folder), folder)
    model, _ = checkpoint.load(folder)
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, adapter[1])
