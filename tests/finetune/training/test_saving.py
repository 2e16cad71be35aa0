"""Checkpoints hold what was trained, and give it back; a disk that is full costs the newest alone."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Trainer

from finetune.families.qwen_vl import QwenVLFamily
from finetune.model import checkpoint, weights
from finetune.model.adaptation import Plan, adapt
from finetune.training import run_folder
from finetune.training.guards import TrainingError
from finetune.training.saving import SavingTrainer, is_write_failure
from tests.finetune.model.test_adaptation import FULL, LORA, perturb
from tests.finetune.test_program import program  # noqa: F401  (a fixture)
from tests.finetune.training.test_resume import LORA as LORA_FLAGS
from tests.finetune.training.test_resume import flags  # noqa: F401  (a fixture)

Run = Callable[..., list[str]]
PLANS = {
    "full": FULL,
    "lora": LORA,
    "dora everywhere": replace(LORA, dora=True, vision="lora", connector="lora"),
    "copies, embeddings, biases": replace(LORA, connector="full", vision="full", embeddings=True, bias="all"),
}


def adapted(base: Path, plan: Plan) -> nn.Module:
    torch.manual_seed(5)
    model, _ = checkpoint.load(base, for_training=True)
    return adapt(model, QwenVLFamily(), plan, master_weights=True)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_saved_checkpoint_restores_every_tensor(checkpoint_folder: Path, tmp_path: Path, plan: Plan):
    model = adapted(checkpoint_folder, plan)
    perturb(model)
    model.save_pretrained(tmp_path)
    assert weights.not_saved(model, tmp_path) == []
    other = adapted(checkpoint_folder, plan)
    trained = {name: p for name, p in other.named_parameters() if p.requires_grad}
    wanted = dict(model.named_parameters())
    assert not all(torch.equal(p, wanted[name]) for name, p in trained.items())
    weights.restore(other, tmp_path)
    assert all(torch.equal(p, wanted[name]) for name, p in trained.items())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_each_trained_tensor_that_is_not_in_the_files_is_named(
    checkpoint_folder: Path, tmp_path: Path, plan: Plan
):
    """One after the other, every tensor of the file is left out: each that trains is missed, by its name."""
    model = adapted(checkpoint_folder, plan)
    model.save_pretrained(tmp_path)
    (path,) = weights.weight_files(tmp_path)
    saved = load_file(path)
    homes = weights.places(model)
    for name in saved:
        save_file({other: tensor for other, tensor in saved.items() if other != name}, path)
        missing = weights.not_saved(model, tmp_path)
        if homes[name].requires_grad and ".modules_to_save" not in name:  # (PEFT writes some biases twice)
            assert missing == [f"{name}: found none in the files, expected {list(saved[name].shape)}"]
    save_file({name: tensor[..., :1].contiguous() for name, tensor in saved.items()}, path)
    assert len(weights.not_saved(model, tmp_path)) >= len([n for n in saved if homes[n].requires_grad])


def test_a_checkpoint_of_another_model_changes_nothing(checkpoint_folder: Path, tmp_path: Path):
    model = adapted(checkpoint_folder, LORA)
    model.save_pretrained(tmp_path)
    (path,) = weights.weight_files(tmp_path)
    saved = load_file(path)
    first, *_ = saved
    saved["base_model.model.nowhere.lora_A.weight"] = saved.pop(first)
    save_file(saved, path)
    perturb(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        weights.restore(model, tmp_path)
    message = str(caught.value)
    assert (
        f"  {first}: found none in the files" in message and "is no checkpoint of this run's model" in message
    )
    assert "nowhere.lora_A.weight: found [4, 32] in the files, expected no such tensor" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_names_of_earlier_releases_are_understood(tmp_path: Path, tied: bool):
    """transformers writes ``model.layers`` for Qwen2.5-VL's ``model.language_model.layers``."""
    text = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 40, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 24}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    model, other = (Qwen2_5_VLForConditionalGeneration(config) for _ in range(2))
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(weights.weight_files(tmp_path)) > 2
    names = weights.shapes(tmp_path)
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert ("lm_head.weight" in names) is not tied
    assert weights.not_saved(model, tmp_path) == []
    weights.restore(other, tmp_path)
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_folder_that_is_deleted_while_a_checkpoint_is_written_is_what_is_told(tmp_path: Path):
    trainer = SavingTrainer.__new__(SavingTrainer)
    trainer.args = SimpleNamespace(output_dir=str(tmp_path / "out"), should_save=True)  # type: ignore[assignment]
    trainer.run_file = tmp_path / "out" / "run.json"
    gone = FileNotFoundError(2, "No such file or directory", "out/checkpoint-3/adapter_model.safetensors")
    told = r"out: was deleted, moved or emptied during the run"
    with pytest.raises(TrainingError, match=told), trainer._writing(tmp_path / "out" / "checkpoint-3"):
        raise gone
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)  # written just after the folder was deleted
    with pytest.raises(TrainingError, match=told):
        trainer._require_folder(tmp_path / "out", made=tmp_path / "out" / "checkpoint-3")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["optimizer", "training_args"])
def test_a_full_disk_loses_only_the_newest_checkpoint(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    file: str,
):
    save = torch.save

    def onto_a_full_disk(content, path, *args, **kwargs):
        full = "checkpoint-6" in str(path) and file in str(path)
        return save(content, "/dev/full" if full else path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", onto_a_full_disk)
    again = flags("out", *LORA_FLAGS, "--save_total_limit", "1")
    assert program.main(again) == 1
    error = capsys.readouterr().err
    out = tmp_path / "out"
    assert f"{out / 'checkpoint-6'} could not be written: " in error and "GiB free" in error
    assert f"Older checkpoints are unchanged; the newest is {out / 'checkpoint-3'}" in error
    assert run_folder.last_complete(out) == (out / "checkpoint-3", [])
    assert not (out / "checkpoint-6").exists()
    monkeypatch.undo()
    assert program.main(again) == 0
    assert f"resuming from {out / 'checkpoint-3'}" in capsys.readouterr().out


def test_a_checkpoint_without_the_projector_ends_training(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    from peft import PeftModel

    save = PeftModel.save_pretrained

    def forgetful(self: PeftModel, folder: str, *args, **kwargs):
        save(self, folder, *args, **kwargs)
        path = Path(folder) / "adapter_model.safetensors"
        save_file({name: t for name, t in load_file(path).items() if "attn_pool" not in name}, path)

    monkeypatch.setattr(PeftModel, "save_pretrained", forgetful)
    assert program.main(flags("out", *LORA_FLAGS)) == 1
    error = capsys.readouterr().err
    assert "checkpoint-3: lacks trained tensors" in error
    assert (
        "base_model.model.transformer.visual.attn_pool.query: found none in the files, expected [4, 32]"
        in error
    )
    assert run_folder.last_complete(tmp_path / "out")[0] is None


def test_rewriting_a_checkpoint_removes_its_older_mark(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A run that goes on from an earlier checkpoint meets later ones, which were whole."""
    again = flags("out", *LORA_FLAGS)
    assert program.main(again) == 0
    out = tmp_path / "out"
    save = torch.save

    def killed(content, path, *args, **kwargs):
        if "checkpoint-6" in str(path):
            raise KeyboardInterrupt
        return save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", killed)
    assert program.main([*again, "--resume_from_checkpoint", str(out / "checkpoint-3")]) == 130
    assert not (out / "checkpoint-6" / run_folder.COMPLETE_FILE).exists()
    whole = json.loads((out / "checkpoint-3" / run_folder.COMPLETE_FILE).read_text())
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= whole[
        "files"
    ].keys()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (RuntimeError("open file failed with strerror: Permission denied"), True),
        (RuntimeError("CUDA out of memory"), False),
        (OSError("no number"), False),
    ],
)
def test_only_writing_is_taken_for_writing(error: Exception, expected: bool):
    assert is_write_failure(error) is expected
    assert issubclass(TrainingError, ValueError)


@pytest.mark.parametrize("broken", ["training_args.bin", "tokenizer_config.json"])
def test_a_full_disk_at_the_end_leaves_each_file_of_the_output_whole_or_as_it_was(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    broken: str,
):
    out = tmp_path / "out"
    saved = Trainer._save

    def onto_a_full_disk(self, output_dir=None, state_dict=None):
        saved(self, output_dir, state_dict)
        if Path(output_dir).parent == out:  # of the output itself, not of a checkpoint
            (Path(output_dir) / broken).write_bytes(b"")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    again = flags("out", *LORA_FLAGS)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", onto_a_full_disk)
        assert program.main(again) == 1
    assert f"{out} could not be written: " in capsys.readouterr().err
    assert not (out / broken).exists() and not list(out.glob(".*.tmp"))
    assert program.main(again) == 0
    assert (out / broken).read_bytes() and (out / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("later", [[], [9]])
@pytest.mark.parametrize(
    ("limit", "best", "kept"), [(2, 1, [1, 5]), (3, 1, [1, 4, 5]), (1, 1, [1, 5]), (2, 5, [4, 5])]
)
def test_the_best_checkpoint_is_one_of_those_that_are_kept(
    tmp_path: Path, limit: int, best: int, kept: list[int], later: list[int]
):
    for step in (1, 2, 3, 4, 5, *later):  # a later one is of an earlier start: no older than 5
        (tmp_path / f"checkpoint-{step}").mkdir()
    trainer = SavingTrainer.__new__(SavingTrainer)
    trainer.keep_checkpoints = limit
    trainer.state = SimpleNamespace(best_model_checkpoint=str(tmp_path / f"checkpoint-{best}"))  # type: ignore[assignment]
    trainer._delete_old(tmp_path / "checkpoint-5")
    assert [run_folder.number_of(path) for path in run_folder.checkpoints(tmp_path)] == [*kept, *later]
