from pathlib import Path

import pytest
import torch

from finetune import checkpoint, run_folder
from finetune.adaptation import Plan, adapt
from finetune.arguments import TrainingArguments
from finetune.data import ConversationDataset, build_dataset
from finetune.families.qwen_vl import QwenVLFamily
from finetune.guards import TrainingError
from finetune.reading import read
from finetune.trainer import FinetuneTrainer, build_trainer

FAMILY = QwenVLFamily()


@pytest.fixture
def dataset(checkpoint_folder: Path, data_file: Path) -> ConversationDataset:
    processor = checkpoint.load_processor(checkpoint_folder)
    return build_dataset(read(data_file), processor, FAMILY, max_length=200, on_bad_sample="error")


def make(checkpoint_folder: Path, dataset: ConversationDataset, folder: Path, **changes) -> FinetuneTrainer:
    torch.manual_seed(3)
    model, processor = checkpoint.load(checkpoint_folder, for_training=True)
    model = adapt(model, FAMILY, Plan(connector="full", rank=4, dropout=0.0), master_weights=True)
    settings = {
        "output_dir": str(folder), "report_to": "none", "max_steps": 2, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 5,
    }  # fmt: skip
    return build_trainer(model, processor, TrainingArguments(**{**settings, **changes}), dataset, None)


def losses(trainer: FinetuneTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_does_not_depend_on_how_a_step_is_cut(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    results = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        trainer = make(
            checkpoint_folder,
            dataset,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
        )
        trainer.train()
        results.append(losses(trainer))
    assert results[1] == pytest.approx(results[0], abs=2e-5)
    assert results[2] == pytest.approx(results[0], abs=2e-5)
    assert results[0][2] < results[0][0]


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    trainer = make(checkpoint_folder, dataset, tmp_path)
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(
        TrainingError,
        match=r"the loss is nan in step 1; the batch held\n.*data\.json: record \d+ \(id 'sample",
    ):
        trainer.train()


def test_a_trainable_tensor_without_gradient_is_an_error(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    trainer = make(checkpoint_folder, dataset, tmp_path)
    trainer.model.base_model.model.register_parameter("idle", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(
        TrainingError, match=r"1 trainable tensors got no gradient in the first step:\n  .*idle"
    ):
        trainer.train()


def test_old_checkpoints_go_only_when_the_new_one_is_whole(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    marked: list[tuple[str, list[str]]] = []
    mark = run_folder.mark_complete

    def spy(folder: Path, **options) -> None:
        marked.append((folder.name, sorted(path.name for path in tmp_path.glob("checkpoint-*"))))
        mark(folder, **options)

    monkeypatch.setattr(run_folder, "mark_complete", spy)
    trainer = make(
        checkpoint_folder,
        dataset,
        tmp_path,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        save_total_limit=1,
    )
    trainer.train()
    assert marked[1] == ("checkpoint-2", ["checkpoint-1", "checkpoint-2"])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_resumed_run_has_the_same_losses_and_weights(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    def run(folder: Path, resume: str | None = None) -> FinetuneTrainer:
        trainer = make(checkpoint_folder, dataset, folder, save_strategy="steps", save_steps=2, max_steps=5)
        trainer.model.peft_config["default"].lora_dropout = 0.3
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.ModuleDict) and isinstance(
                dict(module.items()).get("default"), torch.nn.Identity
            ):
                module["default"] = torch.nn.Dropout(0.3)  # random numbers must come back too
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = run(tmp_path / "a")
    resumed = run(tmp_path / "b", str(tmp_path / "a" / "checkpoint-2"))
    assert losses(resumed) == losses(straight)
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    # One that was killed after its last step takes no further one.
    again = run(tmp_path / "c", str(tmp_path / "a" / "checkpoint-5"))
    assert again.state.global_step == 5
    assert torch.equal(
        again.model.state_dict()[name := next(iter(straight.model.state_dict()))],
        straight.model.state_dict()[name],
    )


def test_evaluation_is_the_loss_alone(checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path):
    trainer = make(checkpoint_folder, dataset, tmp_path, per_device_eval_batch_size=5)
    trainer.eval_dataset = dataset
    metrics = trainer.evaluate()
    assert 5 < metrics["eval_loss"] < 8
