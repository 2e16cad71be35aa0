"""The gradient check: faults, legitimate zeros, and removal of its hooks."""

import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.data.dataset import ConversationDataset, build_dataset
from finetune.families.parts.modules import bare_model
from finetune.families.qwen_vl import QwenVLFamily
from finetune.flags.arguments import TrainingArguments
from finetune.model import checkpoint
from finetune.model.adaptation import Plan, adapt
from finetune.qwen_vl import QwenVLForConditionalGeneration
from finetune.samples.source import read
from finetune.training.guards import GradientCheck, TrainingError, _is_anything
from finetune.training.trainer import FinetuneTrainer, build_trainer
from tests.finetune.conftest import tiny_config
from tests.finetune.model.test_adaptation import batch

FAMILY = QwenVLFamily()
LORA_EVERYWHERE = Plan(vision="lora", connector="lora", rank=4, dropout=0.0)
ARGS = types.SimpleNamespace(device=torch.device("cpu"))


def adapted(plan: Plan = LORA_EVERYWHERE) -> nn.Module:
    torch.manual_seed(0)
    return adapt(QwenVLForConditionalGeneration(tiny_config()), FAMILY, plan, master_weights=True)


def text_batch() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[65, 66, 67, 68]])}


class Step:
    """One run's steps, without a Trainer: batches go through the model, then the step ends."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.check = model, GradientCheck(FAMILY)
        self.check.on_train_begin(ARGS, None, None, model=model)

    def __call__(self, *batches: dict[str, torch.Tensor], scale: float = 1.0) -> None:
        for one in batches:
            self.check.saw_batch(pictures="pixel_values" in one)
            (self.model(**one).logits.square().mean() * scale).backward()
        self.check.on_step_end(ARGS, None, None)


def hooks(model: nn.Module) -> int:
    return sum(len(p._backward_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize(
    "plan",
    [
        LORA_EVERYWHERE,
        Plan(vision="lora", connector="lora", dora=True, bias="all", rank=4),
        Plan(vision="full", connector="full", language="full"),
        Plan(vision="full", connector="full", embeddings=True, rank=4),
    ],
)
def test_a_healthy_step_passes_and_leaves_no_hook(plan: Plan):
    model = adapted(plan)
    step = Step(model)
    assert hooks(model) == sum(p.requires_grad for p in model.parameters())
    step(batch())
    assert hooks(model) == 0 and not step.check.watching


def cut(model: nn.Module, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change what the vision tower's blocks hand on."""
    tower = bare_model(model).transformer.visual.transformer
    tower.register_forward_hook(lambda module, inputs, output: how(output))


def test_a_tower_that_is_cut_off_stops_with_its_tensors_by_name():
    model = adapted()
    cut(model, torch.Tensor.detach)
    with pytest.raises(TrainingError) as error:
        Step(model)(batch())
    first, *names, remedy = str(error.value).splitlines()
    assert first == "8 trainable tensors got no gradient in the first step:"
    block = "transformer.visual.transformer.resblocks.0"
    assert len(names) == 8 and f"  absent  {block}.attn.in_proj.lora_A.default.weight" in names
    assert all(name.startswith(f"  absent  {block}.") for name in names)
    assert "leave out what cannot learn (--vision frozen)" in remedy
    assert hooks(model) == 0


def test_a_gradient_of_zero_stops_but_the_half_of_a_fresh_adapter_does_not():
    model = adapted()
    cut(model, lambda output: output * 0.0)
    with pytest.raises(TrainingError) as error:
        Step(model)(batch())
    names = str(error.value).splitlines()[1:-1]
    # The tower's B, and those that read what it hands on: no A, whose zero is that of its B.
    assert names and all(name.startswith("  zero    transformer.visual.") for name in names)
    assert any("resblocks.0.mlp.c_proj.lora_B" in name for name in names)
    assert not any("lora_A" in name for name in names)


def test_the_half_of_a_trained_adapter_is_not_excused():
    model = adapted()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    Step(model)(batch())
    with pytest.raises(TrainingError, match=r"(?s)zero .*h\.1\.attn\.c_attn\.lora_A\.default\.weight"):
        Step(model)(batch(), scale=0.0)


def test_a_tensor_that_no_loss_depends_on_stops():
    model = adapted(Plan(rank=4))
    bare_model(model).register_parameter("idle", nn.Parameter(torch.zeros(2)))
    with pytest.raises(
        TrainingError, match=r"1 trainable tensors got no gradient in the first step:\n  absent  idle"
    ):
        Step(model)(batch())


def test_an_embedding_that_uses_few_rows_passes():
    model = adapted(Plan(embeddings=True, rank=4))
    Step(model)(text_batch())


def test_dora_magnitudes_are_not_excused():
    model = adapted(Plan(dora=True, rank=4))
    with pytest.raises(TrainingError, match=r"zero    transformer\.h\.0\.\S*lora_magnitude_vector"):
        Step(model)(batch(), scale=0.0)


def test_a_step_counts_with_all_its_micro_batches():
    Step(adapted())(text_batch(), batch(), text_batch())


def test_vision_tensors_are_checked_in_the_first_step_with_a_picture():
    model = adapted()
    step = Step(model)
    step(text_batch())
    # The language layers are through, the others are waited for.
    watched = set(step.check.handles)
    assert watched and all(name.startswith("transformer.visual.") for name in watched)
    assert hooks(model) == len(watched)
    step(text_batch())
    step(batch())
    assert hooks(model) == 0

    cut(model, torch.Tensor.detach)
    step = Step(model)
    step(text_batch())
    with pytest.raises(TrainingError, match="8 trainable tensors"):
        step(batch())


def test_language_layers_are_judged_without_a_picture():
    model = adapted()
    with pytest.raises(TrainingError, match=r"(?s)zero    transformer\.h\.0"):
        Step(model)(text_batch(), scale=0.0)


def test_a_run_without_any_picture_says_so_at_its_end(caplog: pytest.LogCaptureFixture):
    from transformers.utils import logging

    logging.enable_propagation()
    model = adapted()
    step = Step(model)
    step(text_batch())
    step.check.on_train_end(ARGS, None, None)
    logging.disable_propagation()
    assert "6 trainable tensors of vision and connector did not learn: no step had a picture" in caplog.text
    assert hooks(model) == 0


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the other process has seen, in the place of a real one."""
    others: list[torch.Tensor] = []

    def all_reduce(tensor: torch.Tensor, op: Any) -> None:
        assert op == torch.distributed.ReduceOp.MAX
        if others:
            tensor.copy_(torch.maximum(tensor, others[0]))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return others


def test_a_process_without_a_picture_believes_the_other(two_processes: list[torch.Tensor]):
    def state(check: GradientCheck) -> torch.Tensor:
        return torch.cat(
            [check.levels, check.partners, torch.tensor([int(check.pictures), int(check.samples)])]
        )

    with_picture, without = Step(adapted()), Step(adapted())
    with_picture(batch())
    two_processes.append(state(with_picture.check))
    without(text_batch())
    assert not without.check.watching

    model = adapted()
    cut(model, torch.Tensor.detach)
    broken = Step(model)
    with pytest.raises(TrainingError):
        two_processes.clear()
        broken(batch())
    two_processes.append(state(broken.check))
    # Without a picture the tower sees a blank one: zero here, absent there.
    with pytest.raises(TrainingError, match=r"4 trainable tensors .*:\n  zero "):
        Step(adapted())(text_batch())


def test_under_zero_3_the_other_half_may_lie_elsewhere(two_processes: list[torch.Tensor]):
    def step() -> Step:
        model = adapted(Plan(rank=4))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter)
                parameter.ds_tensor = torch.zeros(0)  # this process's shard is all that it may look at
        return Step(model)

    with pytest.raises(TrainingError, match="8 trainable tensors"):  # B alone: as far as is known it is zero
        step()(batch(), scale=0.0)
    one = step()
    two_processes.append(torch.ones(2 * len(one.check.names) + 2, dtype=torch.long))
    with pytest.raises(TrainingError, match="16 trainable tensors"):
        one(batch(), scale=0.0)


@pytest.mark.parametrize(
    ("values", "anything"),
    [([0.0, 0.0], False), ([0.0, -2.0], True), ([3.0, 0.0], True), ([0.0, math.nan], True), ([], False)],
)
def test_zero_is_zero_alone(values: list[float], anything: bool):
    assert bool(_is_anything(torch.tensor(values))) is anything


# ---------------------------------------------------------------------------------------------------------------------
# In a Trainer
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(checkpoint_folder: Path, data_file: Path, tmp_path: Path) -> FinetuneTrainer:
    model, processor = checkpoint.load(checkpoint_folder, for_training=True)
    dataset: ConversationDataset = build_dataset(
        read(data_file), processor, FAMILY, max_length=200, on_bad_sample="error"
    )
    args = TrainingArguments(
        output_dir=str(tmp_path), report_to="none", max_steps=3, per_device_train_batch_size=1, save_strategy="no",
        gradient_accumulation_steps=2, disable_tqdm=True, seed=5, learning_rate=1e-2, gradient_checkpointing=True,
    )  # fmt: skip
    return build_trainer(
        adapt(model, FAMILY, LORA_EVERYWHERE, master_weights=True), processor, args, dataset, None
    )


def test_a_step_whose_samples_were_all_left_out_is_not_judged():
    step = Step(adapted())
    step.check.saw_batch(pictures=False, samples=False)
    step.check.on_step_end(ARGS, None, None)
    assert step.check.watching
    step(batch())
    assert not step.check.watching


def test_the_trainer_tells_which_steps_have_pictures(
    trainer: FinetuneTrainer, monkeypatch: pytest.MonkeyPatch
):
    told: list[bool] = []
    saw = GradientCheck.saw_batch

    def spy(self: GradientCheck, *, pictures: bool, samples: bool) -> None:
        told.append(pictures)
        saw(self, pictures=pictures, samples=samples)

    monkeypatch.setattr(GradientCheck, "saw_batch", spy)
    trainer.train()
    assert True in told and len(told) <= 4
    assert not trainer.gradients.watching and hooks(trainer.model) == 0


def test_the_trainer_stops_in_the_first_step(trainer: FinetuneTrainer):
    cut(trainer.model, torch.Tensor.detach)
    with pytest.raises(TrainingError, match="8 trainable tensors got no gradient in the first step"):
        trainer.train()
    assert trainer.state.global_step <= 2
