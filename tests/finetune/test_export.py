"""Exported folders are the model that was trained: adapters of every kind, full checkpoints, and what is refused."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from finetune import export, folder_lock
from finetune.families.base import Family
from finetune.families.qwen_vl import QwenVLFamily
from finetune.model import adapters, checkpoint, look_file, seen_file
from finetune.model.adaptation import Plan, adapt
from finetune.model.look_file import Supervised, supervised_of
from finetune.model.run_data import RunData
from finetune.qwen_vl import QwenVLForConditionalGeneration
from finetune.training import lineage, run_folder
from finetune.training.saving import SavingTrainer
from tests.finetune.conftest import write_checkpoint
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.finetune.model.a_run import a_run
from tests.finetune.model.test_adaptation import LORA, batch, perturb
from tests.finetune.test_program import program  # noqa: F401  (a fixture)

KINDS = {
    "lora": LORA,
    "dora": replace(LORA, dora=True),
    "lora and a trained connector": replace(LORA, connector="full"),
    "lora everywhere": replace(LORA, vision="lora", connector="lora"),
    "lora, embeddings and biases": replace(LORA, embeddings=True, bias="lora_only"),
}


def write_adapter(
    base: Path,
    folder: Path,
    plan: Plan = LORA,
    family: Family = QwenVLFamily(),
) -> Path:
    model, processor = checkpoint.load(base, for_training=True)
    adapted = adapt(model, family, plan, master_weights=True)
    perturb(adapted)
    adapted.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_marks(folder: Path, **marks: object) -> None:
    run_folder.write_run(folder, marks, finished=True)


@pytest.fixture(scope="module")
def adapter(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(checkpoint_folder, tmp_path_factory.mktemp("adapter") / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_model_is_base_and_adapter(checkpoint_folder: Path, tmp_path: Path, kind: str):
    adapter = write_adapter(checkpoint_folder, tmp_path / "out", KINDS[kind])
    lines: list[str] = []
    done = export.export(adapter, tmp_path / "merged", say=lines.append)
    assert done.saved.share < 1e-5 < 0.01 < done.adapter.share and done.four_bit is None
    assert lines[-1].startswith(f"done: {tmp_path / 'merged'} (")
    # As anyone would: transformers for the merged folder, peft for the adapter.
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    plain = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(checkpoint_folder), str(adapter)
    ).eval()
    with torch.no_grad():
        ours, theirs = merged(**batch()).logits, plain(**batch()).logits
        base = AutoModelForImageTextToText.from_pretrained(checkpoint_folder).eval()(**batch()).logits
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, base, atol=1e-2)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name or "modules_to_save" in name]
    assert AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer("a").input_ids
    assert (tmp_path / "merged" / "generation_config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "out"]  # nothing else is left


def test_the_effect_of_trained_biases_is_counted(checkpoint_folder: Path, tmp_path: Path):
    """PEFT leaves them on where it switches an adapter off; here nothing else was trained."""
    adapter = write_adapter(checkpoint_folder, tmp_path / "out", replace(LORA, bias="all"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    only = {name: tensor * (".lora_B" not in name) for name, tensor in tensors.items()}
    save_file(only, adapter / "adapter_model.safetensors")
    lines: list[str] = []
    done = export.export(adapter, tmp_path / "merged", say=lines.append)
    assert done.adapter is not None and done.adapter.share > 0.01 > done.saved.share
    base, processor = checkpoint.load(checkpoint_folder)
    merged, _ = checkpoint.load(tmp_path / "merged")
    moved = export.difference(export.logits(merged, processor), export.logits(base, processor))
    assert done.adapter.largest == pytest.approx(moved.largest, rel=1e-3)
    assert lines[0].startswith("opening its base alone") and "biases" in lines[0]


def test_what_the_weights_were_trained_on_goes_with_the_export(adapter: Path, tmp_path: Path):
    """Whoever trains or judges the merged model looks it up: no run's folder is around it."""
    pictures = [tmp_path / f"{at}.png" for at in range(3)]
    for at, path in enumerate(pictures):
        path.write_bytes(b"picture %d" % at)
    seen = {hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures[:2]}
    marks = json.loads((a_run(tmp_path / "a", pictures[:2]) / "run.json").read_text())["marks"]
    run = shutil.copytree(adapter, tmp_path / "run")
    write_marks(run, **marks)
    lines: list[str] = []
    export.export(run, tmp_path / "merged", say=lines.append)
    assert export.NAMED.format("lineage.json") in lines
    (one,) = lineage.of_export(tmp_path / "merged") or ()
    assert (one.model, one.kind, one.stints and one.stints[0].marks) == (str(run), "adapter", marks)
    shutil.rmtree(run)
    assert RunData(pictures).trained_on([tmp_path / "merged"]) == seen
    export.export(tmp_path / "merged", tmp_path / "again")
    assert lineage.of_export(tmp_path / "again") == (one,)
    further = tmp_path / "further"
    write_marks(further, model_name_or_path=str(tmp_path / "again"))
    found = run_folder.lineage_of(further)
    assert found is not None and found.earlier == (one,)
    shutil.rmtree(tmp_path / "again")
    assert RunData(pictures).trained_on([further]) == seen  # its own record has it too


def test_weights_that_no_run_trained_have_no_lineage(adapter: Path, checkpoint_folder: Path, tmp_path: Path):
    export.export(checkpoint_folder, tmp_path / "base")
    assert not (tmp_path / "base" / "lineage.json").exists()
    lines: list[str] = []
    export.export(adapter, tmp_path / "merged", say=lines.append)
    (one,) = lineage.of_export(tmp_path / "merged") or ()
    assert one.stints is None and not any("lineage.json" in line for line in lines)  # it is not recorded


def test_the_card_says_what_other_libraries_ignore(tmp_path: Path):
    tiny = LLAVAS["llava-next"]
    source = tiny.write(tmp_path / "source")
    processor = checkpoint.load_processor(source)
    tiny.family.set_pixel_budget(processor, min_pixels=None, max_pixels=20 * 14)
    processor.save_pretrained(source)
    export.export(source, tmp_path / "written")
    told = "--max_pixels 280 of llava-next holds in this project alone: transformers, vLLM and other libraries ignore"
    assert told in (tmp_path / "written" / "README.md").read_text()
    write_marks(tmp_path / "run")
    saving: Any = SimpleNamespace(
        run_file=tmp_path / "run" / "run.json", model=checkpoint.load(source)[0], processing_class=processor,
        state=SimpleNamespace(global_step=3),
    )  # fmt: skip
    SavingTrainer._write_card(saving, tmp_path / "run")
    assert told in (tmp_path / "run" / "README.md").read_text()


def test_embeddings_that_are_the_output_layer_too_stay_one_tensor(tmp_path: Path):
    tiny = SIGLIPS["paligemma"]
    base = tiny.write(tmp_path / "tied")
    adapter = write_adapter(base, tmp_path / "out", Plan(embeddings=True, rank=2), tiny.family)
    done = export.export(adapter, tmp_path / "merged")
    assert done.saved.share < 1e-5 < 0.01 < done.adapter.share
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    inputs, outputs = merged.get_input_embeddings().weight, merged.lm_head.weight
    trained = load_file(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    assert outputs is inputs and torch.equal(inputs, trained)


ENDS = {
    "word embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "output layer": {"target_modules": ["q_proj", "lm_head"]},
    "both, apart": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "both, as one": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "one, and a copy of the other": {
        "target_modules": ["q_proj", "embed_tokens"],
        "modules_to_save": ["lm_head"],
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # it says that merging may go wrong
@pytest.mark.parametrize("kind", ENDS)
def test_a_lora_on_one_end_of_a_tie_is_merged_into_that_end_alone(tmp_path: Path, kind: str):
    base = SIGLIPS["paligemma"].write(tmp_path / "tied")
    model, _ = checkpoint.load(base)
    adapted = get_peft_model(model, LoraConfig(r=2, **ENDS[kind]))
    perturb(adapted)
    adapted.save_pretrained(tmp_path / "out")
    done = export.export(tmp_path / "out", tmp_path / "merged")
    assert done.saved.share < 1e-5 < 0.01 < done.adapter.share


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_sixteen_bits_are_within_their_tolerance(checkpoint_folder: Path, tmp_path: Path, name: str):
    """Trained copies are fp32 in the adapter's file, and sixteen bits where all else is."""
    adapter = write_adapter(checkpoint_folder, tmp_path / "out", KINDS["lora and a trained connector"])
    done = export.export(adapter, tmp_path / "merged", dtype=export.DTYPES[name])
    assert 0 < done.saved.share < export.TOLERANCE[done.dtype] < done.adapter.share
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {export.DTYPES[name]}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == name


def test_the_precision_of_training_is_that_of_the_export(adapter: Path, tmp_path: Path):
    run = shutil.copytree(adapter, tmp_path / "run")
    write_marks(run, bf16=True)
    shutil.copytree(adapter, run / "checkpoint-4")
    for source in (run, run / "checkpoint-4"):
        assert export.history_of(source) == export.History(torch.bfloat16, False)
    assert export.export(run / "checkpoint-4", tmp_path / "a").dtype == torch.bfloat16
    assert export.export(run, tmp_path / "b", dtype=torch.float32).dtype == torch.float32


def test_a_checkpoint_that_was_copied_out_of_its_run_says_how_it_was_trained(adapter: Path, tmp_path: Path):
    (run := tmp_path / "run").mkdir()
    write_marks(run, bf16=True, q_lora=True)
    saved = shutil.copytree(adapter, run / "checkpoint-4")
    (saved / "trainer_state.json").write_text('{"global_step": 4}')
    lineage.note(saved)
    copied = shutil.copytree(saved, tmp_path / "copied")
    assert export.history_of(copied) == export.history_of(saved) == export.History(torch.bfloat16, True)
    done = export.export(copied, tmp_path / "merged", say=lambda line: None)
    assert done.dtype == torch.bfloat16 and done.four_bit is not None
    assert (
        export.history_of(done.folder) == export.History()
    )  # its lineage.json is of what was merged into it
    (copied / "lineage.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match=r"lineage\.json: .*earlier: missing"):
        export.history_of(copied)
    (copied / "lineage.json").unlink()
    assert export.history_of(copied) == export.History()


def test_a_run_that_went_on_in_another_precision_exports_each_checkpoint_in_its_own(
    adapter: Path, tmp_path: Path
):
    """In its folder, copied out of it, and left behind by it."""
    run, histories = tmp_path / "run", dict[int, export.History]()
    for step, bf16 in ((4, True), (8, False)):
        marks = {"data_path": "/cats.json", "bf16": bf16, "q_lora": not bf16}
        run_folder.write_run(run, marks, finished=False)
        saved = shutil.copytree(adapter, run / f"checkpoint-{step}")
        (saved / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (saved / "optimizer.pt").write_bytes(b"PK")
        lineage.note(saved)
        run_folder.mark_complete(saved, processes=1)
        histories[step] = export.History(torch.bfloat16 if bf16 else torch.float32, four_bit=not bf16)
    found = run_folder.lineage_of(run)
    assert found is not None and len(found.stints) == 1
    for step, expected in histories.items():
        saved = run / f"checkpoint-{step}"
        copied = shutil.copytree(saved, tmp_path / f"copied {step}")
        assert export.history_of(saved) == export.history_of(copied) == expected
    run_folder.set_beyond_aside(run, 4)
    run_folder.write_run(run, {"data_path": "/cats.json", "fp16": True}, finished=False)
    assert export.history_of(run / "superseded" / "checkpoint-8") == histories[8]


def test_what_was_trained_on_is_said_of_the_export_too(adapter: Path, tmp_path: Path):
    """Of a checkpoint that has no copy of its own, its run's file."""
    run = shutil.copytree(adapter, tmp_path / "run")
    look_file.write(run, (1,), ["ab" * 32], weight=0.3, loss="mass")
    seen_file.write(run, ["cd" * 32])
    shutil.copytree(adapter, run / "checkpoint-4")
    for name in (".", "checkpoint-4"):
        exported = tmp_path / f"merged {name}"
        export.export(run / name, exported)
        assert supervised_of(exported) == supervised_of(run) == Supervised((1,), frozenset({"ab" * 32}))
        assert seen_file.seen_of(exported) == {"cd" * 32}


def test_attention_that_the_base_was_trained_on_is_said_of_the_export(
    adapter: Path, checkpoint_folder: Path, tmp_path: Path
):
    base = shutil.copytree(checkpoint_folder, tmp_path / "base")
    look_file.write(base, (0,), None, weight=0.3, loss="mass")
    export.export(adapter, tmp_path / "merged", base=str(base))
    assert supervised_of(tmp_path / "merged") == Supervised((0,), None)
    for name in ("seen.json", "look.json"):
        (base / name).write_text("{}")
        with pytest.raises(ValueError, match=name):
            export.export(adapter, tmp_path / "again", base=str(base), say=pytest.fail)  # at once
        (base / name).unlink()


def test_an_adapter_of_a_four_bit_base_is_merged_into_the_base_itself(
    adapter: Path, checkpoint_folder: Path, tmp_path: Path
):
    run = shutil.copytree(adapter, tmp_path / "run")
    write_marks(run, q_lora=True)
    write_verdict(run, f"{run} at step 4", 4)
    lines: list[str] = []
    done = export.export(run, tmp_path / "merged", say=lines.append)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"over this base in 4 bit, by {done.four_bit}." in card and "**corrected**" in card
    assert "Measured on the 4-bit base that the adapter was trained on, not on the base" in card
    assert done.saved.share < 1e-5 < 1e-3 < done.four_bit.share
    assert "trained on a 4-bit base" in lines[-2]
    merged, base = (load_file(f / "model.safetensors") for f in (tmp_path / "merged", checkpoint_folder))
    name = "transformer.h.0.mlp.c_proj.weight"  # no target: as it was published, to the bit
    assert torch.equal(merged[name], base[name])


def test_without_a_four_bit_base_to_compare_with_the_card_says_so(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = shutil.copytree(adapter, tmp_path / "run")
    write_marks(run, q_lora=True)
    opened = checkpoint.load

    def load(*args, quantize: bool = False, **options):
        if quantize:
            raise ImportError("no bitsandbytes here")
        return opened(*args, **options)

    monkeypatch.setattr(export.checkpoint, "load", load)
    lines: list[str] = []
    assert export.export(run, tmp_path / "merged", say=lines.append).four_bit is None
    assert lines[-2] == (
        "not compared with the 4-bit base that the adapter was trained on: no bitsandbytes here"
    )
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "over this base in 4 bit, by how much was not measured." in card


def write_verdict(run: Path, model: str, step: int) -> None:
    (run / "comparison").mkdir(exist_ok=True)
    groups = {"towers": {"verdict": "corrected", "probes": 40}}
    content = {"groups": groups, "after": {"model": model, "step": step}, "probes": []}
    (run / "comparison" / "comparison.json").write_text(json.dumps(content))


def test_the_card_has_the_verdict_of_the_model_that_is_exported_alone(
    adapter: Path, checkpoint_folder: Path, tmp_path: Path
):
    run = shutil.copytree(adapter, tmp_path / "run")
    write_marks(run, model_name_or_path=str(checkpoint_folder), use_lora=True)
    moved = shutil.copytree(checkpoint_folder, tmp_path / "moved")
    other = write_checkpoint(tmp_path / "other", seed=7)
    adapters.write_base(run, str(checkpoint_folder))

    def card(**given: object) -> str:
        shutil.rmtree(tmp_path / "merged", ignore_errors=True)
        export.export(run, tmp_path / "merged", say=lambda _: None, **given)  # type: ignore[arg-type]
        return (tmp_path / "merged" / "README.md").read_text()

    write_verdict(run, "/elsewhere/quite-another-model", 1)
    assert "Not judged" in card()
    write_verdict(run, f"{run} at step 4", 4)
    for given in ({}, {"base": str(moved), "allow_other_base": True}):
        assert "**corrected**" in card(**given)
    text = card(base=str(other), allow_other_base=True)
    assert "Not judged" in text and "merged into `other` (a local folder), whose weights are others" in text


def test_an_adapter_of_a_base_that_is_stored_in_four_bits_is_refused_at_once(
    adapter: Path, checkpoint_folder: Path, tmp_path: Path
):
    pytest.importorskip("bitsandbytes")
    model, processor = checkpoint.load(checkpoint_folder, quantize=True)
    model.save_pretrained(tmp_path / "four")
    processor.save_pretrained(tmp_path / "four")
    given = {"base": str(tmp_path / "four"), "allow_other_base": True}
    with pytest.raises(
        ValueError, match=r"four: the adapter's base is quantised already, expected .* --base FOLDER"
    ):
        export.export(adapter, tmp_path / "merged", say=pytest.fail, **given)
    assert not (tmp_path / "merged").exists()


def test_a_full_checkpoint_becomes_a_clean_folder(
    program: ModuleType,  # noqa: F811
    checkpoint_folder: Path,
    data_file: Path,
    tmp_path: Path,
):
    flags = ["--model_name_or_path", str(checkpoint_folder), "--data_path", str(data_file)]
    more = [
        "--output_dir",
        str(tmp_path / "out"),
        "--max_steps",
        "2",
        "--save_steps",
        "1",
        "--disable_tqdm",
        "True",
    ]
    assert program.main([*flags, *more, "--per_device_train_batch_size", "4", "--learning_rate", "1e-2"]) == 0
    source = tmp_path / "out" / "checkpoint-1"
    done = export.export(source, tmp_path / "model", max_shard_size="20KB")
    assert done.saved.largest == 0 and done.adapter is None
    left = {path.name for path in (tmp_path / "model").iterdir()}
    assert "- `data.json` (SHA-256 `" in (tmp_path / "model" / "README.md").read_text()
    assert not left & {
        "optimizer.pt",
        "scheduler.pt",
        "trainer_state.json",
        "training_args.bin",
        "complete.json",
    }
    assert (
        "model.safetensors.index.json" in left
        and len([name for name in left if name.startswith("model-")]) > 2
    )
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").state_dict()
    trained = load_file(source / "model.safetensors")
    assert all(torch.equal(again[name], trained[name]) for name in trained)


@pytest.mark.parametrize(
    "harm",
    [
        lambda model: model.transformer.h[1].mlp.c_proj.weight.mul_(1.1),
        lambda model: model.transformer.visual.proj.fill_(float("nan")),
    ],
    ids=["another weight", "not a number"],
)
def test_a_model_that_differs_is_not_kept(
    adapter: Path, tmp_path: Path, harm: Callable, monkeypatch: pytest.MonkeyPatch
):
    original = QwenVLForConditionalGeneration.save_pretrained

    def harmed(self, *args, **kwargs):
        with torch.no_grad():
            harm(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(QwenVLForConditionalGeneration, "save_pretrained", harmed)
    with pytest.raises(
        ValueError, match=r"differ by .*; allowed in float32: 1e-04.*The export failed and was deleted"
    ):
        export.export(adapter, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "mine.txt").write_text("kept")
    assert export.main([str(adapter), "--output_dir", str(tmp_path)]) == 1
    assert "is not empty; give a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert export.main([str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "new")]) == 1
    assert "nowhere: there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_program_says_what_it_does(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert export.main([str(adapter), "--output_dir", str(tmp_path / "a" / "b"), "--dtype", "fp32"]) == 0
    opening, merging, comparing, compared, done = capsys.readouterr().out.splitlines()
    assert opening == f"opening {adapter} in float32" and merging == "merging in float32"
    assert comparing == "loading the exported model and comparing its logits"
    assert "allowed in float32: 1e-04; the adapter moved them by" in compared
    assert done.startswith(f"done: {tmp_path / 'a' / 'b'} (0.00 GiB)")
    card = (tmp_path / "a" / "b" / "README.md").read_text()
    assert card.startswith("---\n") and "\n# b\n" in card and "`--keep_image_tokens`" in card
    assert "AutoModelForImageTextToText.from_pretrained(folder)" in card and str(tmp_path) not in card


def test_shards_alone_come_with_the_command_that_joins_them(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found config\.json and no weights; copy it again"):
        export.export(tmp_path, tmp_path / "new")
    (tmp_path / "global_step7").mkdir()
    with pytest.raises(
        ValueError, match=r"shards in global_step7; put them together first:\n  python .*zero_to_fp32\.py"
    ):
        export.export(tmp_path, tmp_path / "new")


def test_a_full_disk_ends_in_one_message_and_keeps_nothing(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full(self, folder: Path, **_):
        Path(folder, "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(QwenVLForConditionalGeneration, "save_pretrained", full)
    assert export.main([str(adapter), "--output_dir", str(tmp_path / "a" / "b")]) == 1
    error = capsys.readouterr().err
    place = tmp_path / "a" / "b"
    assert (
        f"finetune.export: --output_dir {place}: cannot write {place.parent / '.b.partial'}: No space"
        in error
    )
    assert "no files were kept" in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_replaced_and_what_anybody_else_left_is_not(tmp_path: Path):
    said: list[str] = []
    partial = tmp_path / ".merged.partial"
    (partial / "sub").mkdir(parents=True)
    (partial / "sub" / "half").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.merged\.partial: found sub, which no export left there"):
        export._partial_folder(tmp_path / "merged", said.append)
    assert (partial / "sub" / "half").is_file()
    (partial / folder_lock.LOCK_FILE).write_bytes(b"")
    assert export._partial_folder(tmp_path / "merged", said.append) == partial
    assert [one.name for one in partial.iterdir()] == [folder_lock.LOCK_FILE] and said == []
    folder_lock.release(partial)
