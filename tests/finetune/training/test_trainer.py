import copy
import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.data.dataset import ConversationDataset, build_dataset
from finetune.data.mixture import Mixture, Source
from finetune.families.qwen_vl import QwenVLFamily
from finetune.flags.arguments import TrainingArguments
from finetune.model import checkpoint
from finetune.model.adaptation import Plan, adapt
from finetune.qwen_vl import QwenVLForConditionalGeneration
from finetune.samples.source import read
from finetune.training import lineage, run_folder
from finetune.training import trainer as trainer_module
from finetune.training.guards import TrainingError
from finetune.training.preview import Preview
from finetune.training.trainer import BatchError, FinetuneTrainer, build_trainer
from tests.finetune.conftest import write_data
from tests.flash_standin import standing_in, using

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
    packing, evaluation = changes.pop("packing", False), changes.pop("evaluation", None)
    args = TrainingArguments(**{**settings, **changes})
    return build_trainer(model, processor, args, dataset, evaluation, packing=packing)


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


def test_steps_ask_for_logits_of_trained_tokens_alone_and_for_no_cache(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward, asked = QwenVLForConditionalGeneration.forward, []

    def seen(self, input_ids, logits_to_keep=0, use_cache=None, **rest):
        outputs = forward(self, input_ids, logits_to_keep=logits_to_keep, use_cache=use_cache, **rest)
        asked.append((use_cache, outputs.logits.shape[1], input_ids.shape[1]))
        return outputs

    monkeypatch.setattr(QwenVLForConditionalGeneration, "forward", seen)
    make(checkpoint_folder, dataset, tmp_path).train()
    assert len(asked) == 2
    assert all(cache is False and 0 < logits < tokens / 2 for cache, logits, tokens in asked)


def test_a_model_that_gives_all_logits_trains_the_same(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    some, every = (make(checkpoint_folder, dataset, tmp_path) for _ in range(2))
    every.keeps_logits = False
    some.train()
    every.train()
    assert losses(some) == pytest.approx(losses(every), abs=1e-6)


@pytest.fixture(scope="module")
def mixed(checkpoint_folder: Path, data_file: Path) -> ConversationDataset:
    """12 samples, and the 3 longest of them once more under another name."""
    processor = checkpoint.load_processor(checkpoint_folder)
    conversations = list(read(data_file, say=lambda _: None))
    sources = [
        Source("base", conversations, "base"), Source("spheres", conversations[9:], "corrective", None, 2)
    ]  # fmt: skip
    return build_dataset(Mixture(sources, 4), processor, FAMILY, max_length=200, on_bad_sample="error")


@pytest.mark.parametrize("kernel", [None, 2])
def test_rows_of_a_batch_train_as_rows_one_after_another_under_every_kernel(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path, kernel: int | None
):
    """Flash kernels do not learn where the samples of several rows begin, so these are joined into one."""
    steps, held = [], []
    for size, accumulation in ((2, 1), (1, 2)):
        trainer = make(
            checkpoint_folder, dataset, tmp_path, packing=True, max_steps=1, weight_decay=0.0,
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        with ExitStack() as flash:
            for stand_in in () if kernel is None else (standing_in(kernel), using(trainer.model, kernel)):
                flash.enter_context(stand_in)
            trainer.train()
        steps += [(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]
        held.append([(one.rows, len(one.about["samples"])) for one in trainer.batches])
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)
    rows, samples = zip(*held[1], strict=True)
    assert rows == (1, 1) and max(samples) > 1
    assert held[0] == [(2 if kernel is None else 1, sum(samples))]


def test_a_packed_run_resumes_exactly_in_its_second_epoch(
    checkpoint_folder: Path, mixed: ConversationDataset, tmp_path: Path
):
    """Steps of an epoch are those of its packed rows; order, counts and losses come back as they would have been."""

    def run(folder: Path, resume: str | None = None) -> FinetuneTrainer:
        trainer = make(
            checkpoint_folder, mixed, folder, packing=True, per_device_train_batch_size=1, save_strategy="steps",
            save_steps=1, max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2, learning_rate=1e-3,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = run(tmp_path / "a")
    first, second = (straight.schedule.steps(epoch) for epoch in range(2))
    assert straight.state.global_step == first + second and len(straight.schedule.rows(0)) < 18
    middle = tmp_path / "a" / f"checkpoint-{first + 1}"
    resumed = run(tmp_path / "b", str(middle))
    logs = [
        {step["step"]: step for step in trainer.state.log_history if "loss" in step}
        for trainer in (straight, resumed)
    ]
    assert logs[0].keys() == logs[1].keys() == {*range(1, first + second + 1)}
    for step, here in logs[0].items():
        there = logs[1][step]
        assert {k: v for k, v in here.items() if "waiting" not in k} == {
            k: v for k, v in there.items() if "waiting" not in k
        }
    last = logs[1][first + second]
    assert (last["samples by source/base"], last["samples by source/spheres"]) == (24, 12)


@pytest.mark.parametrize("epochs", [{}, {"num_train_epochs": 3.0, "max_steps": -1}])
def test_samples_a_second_are_samples_of_this_start(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path, epochs: dict[str, Any]
):
    """Not packed rows, and not those of steps before the checkpoint."""
    settings = {"packing": True, "per_device_train_batch_size": 1, "max_steps": 5, "save_strategy": "steps"}
    trainer = make(checkpoint_folder, dataset, tmp_path, save_steps=2, **{**settings, **epochs})
    for resumed_from, before in ((None, 0), (str(tmp_path / "checkpoint-2"), 2)):
        metrics = trainer.train(resume_from_checkpoint=resumed_from).metrics
        last = trainer.state.global_step
        trained = [sum(map(len, trainer.schedule.trained(step))) for step in (before, last)]
        assert trained[1] - trained[0] > last - before  # rows
        expected = (trained[1] - trained[0]) / metrics["train_runtime"]
        assert metrics["train_samples_per_second"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_the_steps_that_are_told_before_are_those_that_are_trained(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path, strategy: str
):
    dataset.max_length = 240  # rows of which the order decides how many there are
    trainer = make(
        checkpoint_folder, dataset, tmp_path, packing=True, per_device_train_batch_size=1, data_seed=9, max_steps=-1,
        train_sampling_strategy=strategy,
    )  # fmt: skip
    trainer.get_train_dataloader()
    told = Preview(trainer.model, dataset, trainer.args, True, torch.float32).steps()
    steps = {"random": 6, "sequential": 5}[strategy]
    assert trainer.schedule.steps(0) == steps and told.startswith(f"{steps} steps per epoch of 12 samples")


def test_losses_by_source_are_means_over_their_tokens(
    checkpoint_folder: Path, mixed: ConversationDataset, tmp_path: Path
):
    trainer = make(checkpoint_folder, mixed, tmp_path, per_device_eval_batch_size=4)
    trainer.eval_dataset = mixed
    metrics = trainer.evaluate()
    nats, tokens = torch.zeros(2), torch.zeros(2)
    model = trainer.model.eval()
    for number in range(len(mixed)):
        sample = mixed[number]
        ids, labels = (torch.tensor(x)[None] for x in (sample.encoded.input_ids, sample.encoded.labels))
        with torch.no_grad():
            logits = model(input_ids=ids, **sample.encoded.media).logits[:, :-1].flatten(0, 1)
        total = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        nats[sample.source] += total
        tokens[sample.source] += (labels[:, 1:] != -100).sum()
    assert metrics["eval_loss"] == pytest.approx((nats.sum() / tokens.sum()).item(), abs=1e-5)
    for index, name in enumerate(("base", "spheres")):
        expected = (nats[index] / tokens[index]).item()
        assert metrics[f"eval_loss by source/{name}"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "kept"), [({}, 12), ({"kept_samples_gib": 0.0}, 0), ({"max_steps": 3}, 0)]
)
def test_samples_that_stay_in_memory_change_no_loss(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path, settings: dict[str, Any], kept: int
):
    trainer = make(checkpoint_folder, dataset, tmp_path, **{"max_steps": 7, **settings})
    trainer.train()
    steps = trainer.state.max_steps
    assert (
        len(dataset.kept) == kept
    )  # of 12 samples; three steps are one epoch, which reads each of them once
    workers = make(checkpoint_folder, dataset, tmp_path, max_steps=steps, dataloader_num_workers=1)
    workers.train()
    assert len(dataset.kept) == 0 and losses(workers) == losses(trainer)


def test_workers_change_no_loss(checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path):
    found = []
    for workers in (0, 2):
        trainer = make(checkpoint_folder, dataset, tmp_path, max_steps=5, dataloader_num_workers=workers)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------------------------------
# Samples that turn out bad on the way
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(checkpoint_folder: Path, tmp_path: Path) -> Callable[[str], ConversationDataset]:
    """12 samples, two of whose pictures are cut in the middle: their headers are whole."""
    data = write_data(tmp_path / "data")
    for number in (1, 7):
        picture = tmp_path / "data" / f"{number}.png"
        picture.write_bytes(picture.read_bytes()[:-30])
    processor = checkpoint.load_processor(checkpoint_folder)

    def build(on_bad_sample: Any) -> ConversationDataset:
        conversations = read(data, streaming=True, say=lambda _: None)
        return build_dataset(
            conversations, processor, FAMILY, max_length=200, on_bad_sample=on_bad_sample, streaming=True
        )

    return build


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_on_the_way_ends_training_by_name(
    checkpoint_folder: Path, broken: Callable[[str], ConversationDataset], tmp_path: Path, workers: int
):
    trainer = make(checkpoint_folder, broken("error"), tmp_path, max_steps=3, dataloader_num_workers=workers)
    with pytest.raises(
        BatchError, match=r"(?s)\(id 'sample-[17]'\): image '.*png'.*--on_bad_sample drop"
    ) as caught:
        trainer.train()
    assert "Traceback" not in str(caught.value)


def test_bad_samples_are_left_out_and_reported_at_the_end(
    checkpoint_folder: Path,
    broken: Callable[[str], ConversationDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    said: list[str] = []
    monkeypatch.setattr(trainer_module.logger, "warning", said.append)
    # One row a batch: a batch of a bad sample alone is a step that trains nothing.
    trainer = make(
        checkpoint_folder, broken("drop"), tmp_path, max_steps=12, per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 12 and all(math.isfinite(loss) for loss in losses(trainer))
    (line,) = said
    assert line.startswith("2 samples could not be read, left out:")
    assert "(id 'sample-1')" in line and "(id 'sample-7')" in line
    assert trainer.samples_by_source.tolist() == [20]


def test_evaluation_data_of_which_nothing_can_be_read_ends_training_by_name(
    checkpoint_folder: Path, dataset: ConversationDataset, data_file: Path, tmp_path: Path
):
    streamed = read(data_file, streaming=True, say=lambda _: None)
    evaluation = build_dataset(
        streamed, dataset.processor, FAMILY, max_length=40, on_bad_sample="drop", streaming=True
    )
    trainer = make(checkpoint_folder, dataset, tmp_path, evaluation=evaluation)
    with pytest.raises(
        TrainingError,
        match=r"(?s)--eval_data_path: found none that can be evaluated among 12 samples.*\n  .*data\.json: record 0 "
        r"\(id 'sample-0'\): 69 tokens, .*over --model_max_length 40\n.*give others",
    ):
        trainer.evaluate()


def test_a_step_whose_samples_were_all_left_out_logs_no_loss(
    checkpoint_folder: Path, broken: Callable[[str], ConversationDataset], tmp_path: Path
):
    """Its loss would be 0, and pull the means of the steps beside it down."""
    one = {
        "per_device_train_batch_size": 1,
        "max_steps": 12,
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
    }
    every = make(checkpoint_folder, broken("drop"), tmp_path, logging_steps=1, **one)
    every.train()
    logged = {entry["step"]: entry["loss"] for entry in every.state.log_history if "loss" in entry}
    assert len(logged) == 10 and 0 not in logged.values()
    mean = make(checkpoint_folder, broken("drop"), tmp_path, logging_steps=12, **one)
    mean.train()
    (loss,) = [entry["loss"] for entry in mean.state.log_history if "loss" in entry]
    assert loss == pytest.approx(sum(logged.values()) / 10, rel=1e-3)
    whole = [entry["train_loss"] for entry in mean.state.log_history if "train_loss" in entry]
    assert whole == [pytest.approx(loss, rel=1e-3)]
    first = min(step for step in range(1, 13) if step not in logged) - 1
    saving = {"save_strategy": "steps", "save_steps": first}
    make(checkpoint_folder, broken("drop"), tmp_path / "again", **one, **saving).train()
    again = make(checkpoint_folder, broken("drop"), tmp_path / "again", **one, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "again" / f"checkpoint-{first}"))
    rest = [nats for step, nats in logged.items() if step > first]
    (whole,) = [entry["train_loss"] for entry in again.state.log_history if "train_loss" in entry][-1:]
    assert whole == pytest.approx(sum(rest) / len(rest), rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# A resumed run with other flags, and evaluation
# ---------------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_rates_and_intervals_of_its_own_flags(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    saving = {"save_strategy": "steps", "save_steps": 2, "warmup_steps": 4}
    make(checkpoint_folder, dataset, tmp_path / "a", **saving).train()
    checkpoint = str(tmp_path / "a" / "checkpoint-2")

    def resumed(**flags) -> FinetuneTrainer:
        trainer = make(checkpoint_folder, dataset, tmp_path / "b", **{**saving, "max_steps": 5, **flags})
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    def rates(trainer: FinetuneTrainer) -> dict[int, float]:
        return {one["step"]: one["learning_rate"] for one in trainer.state.log_history if "loss" in one}

    before, after = (
        resumed(),
        resumed(
            learning_rate=1e-4,
            weight_decay=0.3,
            adam_beta2=0.5,
            adam_epsilon=1e-3,
            save_steps=1,
            logging_steps=3,
        ),
    )
    assert rates(before)[3] == pytest.approx(1e-2 * 2 / 4)
    assert rates(after) == {1: 0.0, 2: 1e-2 / 4, 3: pytest.approx(1e-4 * 2 / 4)}
    for group in after.optimizer.param_groups:
        assert (group["initial_lr"], group["betas"], group["eps"]) == (1e-4, (0.9, 0.5), 1e-3)
    assert {group["weight_decay"] for group in after.optimizer.param_groups} <= {0.0, 0.3}
    assert max(group["weight_decay"] for group in after.optimizer.param_groups) == 0.3
    assert (tmp_path / "b" / "checkpoint-4").exists() and after.state.save_steps == 1


def test_a_batch_size_that_is_looked_for_is_found(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    meet, rows = FinetuneTrainer._meet, []

    def small(self, batch, *, training):
        rows.append(batch.rows)
        if batch.rows > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        meet(self, batch, training=training)

    monkeypatch.setattr(FinetuneTrainer, "_meet", small)
    trainer = make(checkpoint_folder, dataset, tmp_path, auto_find_batch_size=True)
    trainer.train()
    assert trainer.state.global_step == 2 and rows[0] == 4 and 0 < rows[-1] <= 3


def test_an_evaluation_changes_no_step_after_it(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    trainer = make(checkpoint_folder, dataset, tmp_path)
    trainer.eval_dataset = dataset
    before = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("is_held_out", "words"), [(True, ", held out: loss"), (False, ", on training data: loss")]
)
def test_only_what_is_not_trained_on_is_called_held_out(
    checkpoint_folder: Path,
    dataset: ConversationDataset,
    tmp_path: Path,
    capsys,
    is_held_out: bool,
    words: str,
):
    judged = copy.copy(dataset)
    judged.is_held_out = is_held_out
    trainer = make(checkpoint_folder, dataset, tmp_path, evaluation=judged)
    trainer.evaluate()
    said = capsys.readouterr().out
    assert words in said and ("held out" in said) is is_held_out


def test_each_checkpoint_says_itself_what_it_was_trained_on(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    for name in ("look.json", "seen.json"):
        (tmp_path / name).write_text(f'["{name}"]')
    make(checkpoint_folder, dataset, tmp_path, save_strategy="steps", save_steps=2).train()
    for name in ("look.json", "seen.json"):
        assert (tmp_path / "checkpoint-2" / name).read_text() == f'["{name}"]'
    assert run_folder.damage(tmp_path / "checkpoint-2", ours=True) is None
    assert not (tmp_path / "checkpoint-2" / "lineage.json").exists()  # no run of ours began there


def test_a_checkpoint_that_is_copied_out_of_its_run_knows_its_data(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    run = tmp_path / "run"
    run_folder.write_run(run, {"data_path": "/cats.json", "data sha256": "cats"}, finished=False)
    make(checkpoint_folder, dataset, run, save_strategy="steps", save_steps=2).train()
    copied = shutil.copytree(run / "checkpoint-2", tmp_path / "mine")
    (one,) = lineage.of_export(copied) or ()
    assert one.stints is not None and one.end == 2
    assert [stint.marks["data sha256"] for stint in one.stints] == ["cats"]
    (begun_with,) = lineage.begun({"lora_weight_path": str(copied)}, None, 0).earlier
    assert (begun_with.model, begun_with.kind) == (str(copied), "adapter")


def test_a_metric_that_the_data_does_not_give_is_named_with_those_that_it_does():
    asked = SimpleNamespace(args=SimpleNamespace(metric_for_best_model="box_accuracy"))
    found = {"eval_loss": 1.0, "eval_exact_match": 0.5, "epoch": 1.0}
    with pytest.raises(TrainingError, match="found box_accuracy, expected one .*: loss, exact_match$"):
        FinetuneTrainer._determine_best_metric(asked, found, None)
