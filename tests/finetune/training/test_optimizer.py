"""Groups of parameters: who decays, who has which rate, and that a run follows them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from finetune.data.dataset import ConversationDataset, build_dataset
from finetune.families.parts.modules import bare_model
from finetune.families.qwen_vl import QwenVLFamily
from finetune.flags import checks, parse
from finetune.flags.arguments import TrainingArguments
from finetune.model import checkpoint
from finetune.model.adaptation import Plan, Rates, adapt, decaying, plain_name
from finetune.qwen_vl import QwenVLForConditionalGeneration
from finetune.samples.source import read
from finetune.training.optimizer import Choice, parameter_groups, with_groups
from finetune.training.trainer import FinetuneTrainer, build_trainer
from tests.finetune.conftest import tiny_config

FAMILY = QwenVLFamily()
ALL_FULL = Plan(vision="full", connector="full", language="full")
MIXED = Plan(vision="lora", connector="full", language="lora", rank=4, dropout=0.0)
RATES = Rates(1e-3, {"vision": 1e-4, "connector": 2e-3}, 0.1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return QwenVLForConditionalGeneration(tiny_config())


def names_of(model: nn.Module, group: dict[str, Any]) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {plain_name(n) for n, p in bare_model(model).named_parameters() if id(p) in members}


def test_groups_by_hand(model: nn.Module):
    adapted = adapt(model, FAMILY, MIXED, master_weights=True)
    groups = parameter_groups(adapted, FAMILY, RATES)
    assert [(g["component"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("vision", 1e-4, 0.1, 8),
        ("connector", 2e-3, 0.1, 4),
        ("connector", 2e-3, 0.0, 8),
        ("language", 1e-3, 0.1, 16),
    ]
    pool = "transformer.visual.attn_pool"
    assert names_of(adapted, groups[1]) == {
        f"{pool}.query", f"{pool}.kv_proj.weight", f"{pool}.attn.in_proj_weight", f"{pool}.attn.out_proj.weight"
    }  # fmt: skip


@pytest.mark.parametrize("plan", [ALL_FULL, MIXED, Plan(bias="all", dora=True)])
def test_each_trained_tensor_is_in_one_group(plan: Plan, model: nn.Module):
    adapted = adapt(model, FAMILY, plan, master_weights=True)
    members = [id(p) for group in parameter_groups(adapted, FAMILY, RATES) for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in adapted.parameters() if p.requires_grad)


def test_biases_norms_and_magnitudes_do_not_decay(model: nn.Module):
    adapted = adapt(model, FAMILY, Plan(bias="all", dora=True), master_weights=True)
    adapted.requires_grad_(True)
    kept = {plain_name(name) for name, _ in bare_model(adapted).named_parameters()} - {
        plain_name(name) for name in decaying(bare_model(adapted))
    }
    assert {
        "transformer.h.0.ln_1.weight",
        "transformer.ln_f.weight",
        "transformer.visual.ln_pre.weight",
    } <= kept
    assert "transformer.h.0.attn.c_attn.bias" in kept
    assert "transformer.h.1.mlp.w1.lora_magnitude_vector.default.weight" in kept
    assert not {"transformer.wte.weight", "transformer.h.0.mlp.w1.lora_A.default.weight"} & kept


def test_whatever_transformers_spares_is_spared(model: nn.Module):
    theirs = get_parameter_names(model, [nn.LayerNorm], [r"bias", r"layernorm", r"rmsnorm", r"_norm(?:$|\.)"])
    assert decaying(model) < set(theirs)
    assert set(theirs) - decaying(model) == {
        f"transformer.{name}.weight" for name in ("h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f")
    }


@pytest.fixture(scope="module")
def dataset(checkpoint_folder: Path, data_file: Path) -> ConversationDataset:
    processor = checkpoint.load_processor(checkpoint_folder)
    return build_dataset(read(data_file), processor, FAMILY, max_length=200, on_bad_sample="error")


def make(
    checkpoint_folder: Path, dataset: ConversationDataset, folder: Path, plan: Plan, rates: Rates, **more: Any
) -> FinetuneTrainer:
    torch.manual_seed(3)
    model, processor = checkpoint.load(checkpoint_folder, for_training=True)
    settings: dict[str, Any] = {
        "output_dir": str(folder), "report_to": "none", "max_steps": 4, "per_device_train_batch_size": 4,
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 5, "learning_rate": 1e-3,
    }  # fmt: skip
    args = TrainingArguments(**{**settings, **more})
    return build_trainer(
        adapt(model, FAMILY, plan, master_weights=True), processor, args, dataset, None, rates=rates
    )


@pytest.mark.parametrize(
    "optim", ["adamw_torch", "sgd", "adafactor", "adagrad", "rmsprop", "adamw_bnb_8bit", "lion_32bit"]
)
def test_the_optimizers_of_transformers_follow_the_groups(
    optim: str, checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    trainer = make(
        checkpoint_folder, dataset, tmp_path, MIXED, RATES, optim=optim, weight_decay=0.1, max_steps=1
    )
    created = trainer.create_optimizer()
    found = [(g["component"], g["lr"], g["weight_decay"]) for g in created.param_groups]
    assert found == [
        ("vision", 1e-4, 0.1),
        ("connector", 2e-3, 0.1),
        ("connector", 2e-3, 0.0),
        ("language", 1e-3, 0.1),
    ]
    assert trainer.create_optimizer() is created


def test_a_step_is_as_long_as_its_components_rate(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    """Plain gradient descent, one step: the update is rate x gradient."""

    def updates(rates: Rates) -> dict[str, torch.Tensor]:
        trainer = make(
            checkpoint_folder, dataset, tmp_path, ALL_FULL, rates, optim="sgd", max_steps=1, max_grad_norm=0,
            lr_scheduler_type="constant",
        )  # fmt: skip
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        return {n: p.detach() - before[n] for n, p in trainer.model.named_parameters() if n in before}

    one = updates(Rates(1.0))
    own = updates(Rates(1.0, {"vision": 3.0, "connector": 0.5}))
    expected = {"vision": 3.0, "connector": 0.5, "language": 1.0}
    for name, update in own.items():
        inside = [c for c in expected if name.startswith(getattr(FAMILY.paths, c))]
        assert len(inside) == 1
        assert torch.allclose(update, expected[inside[0]] * one[name], atol=2e-6), name


def test_the_schedule_scales_every_rate_and_they_are_logged(
    checkpoint_folder: Path, dataset: ConversationDataset, tmp_path: Path
):
    class Writer:
        """Stands in for TensorBoard's."""

        def __init__(self) -> None:
            self.scalars: dict[str, dict[int, float]] = {}

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.scalars.setdefault(tag, {})[step] = value

        def add_text(self, *_: Any) -> None: ...
        def flush(self) -> None: ...
        def close(self) -> None: ...

    from transformers.integrations import TensorBoardCallback

    trainer = make(
        checkpoint_folder, dataset, tmp_path, MIXED, RATES, lr_scheduler_type="linear", warmup_steps=1
    )
    writer = Writer()
    trainer.add_callback(TensorBoardCallback(tb_writer=writer))
    trainer.train()
    # Step 1 warms up from zero, steps 2 to 4 fall from the whole to a third.
    shape = {1: 0.0, 2: 1.0, 3: 2 / 3, 4: 1 / 3}
    for component, rate in (("vision", 1e-4), ("connector", 2e-3), ("language", 1e-3)):
        logged = writer.scalars[f"train/learning_rate_{component}"]
        assert logged == pytest.approx({step: rate * share for step, share in shape.items()})
    assert writer.scalars["train/learning_rate"] == pytest.approx(
        writer.scalars["train/learning_rate_vision"]
    )


def test_an_optimizer_with_groups_of_its_own_keeps_them_or_says_so(model: nn.Module):
    adapt(model, FAMILY, ALL_FULL, master_weights=True)
    theirs = Choice(torch.optim.SGD, {"lr": 1.0, "params": [{"params": list(model.parameters())}]})
    assert with_groups(theirs, model, FAMILY, Rates(1.0)) == theirs
    with pytest.raises(
        ValueError, match=r"SGD makes its own groups .*vision, connector has .*--optim adamw_torch"
    ):
        with_groups(theirs, model, FAMILY, RATES)


BASE = ("--model_name_or_path", "m", "--data_path", "d.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("d.json").write_text("[]")
    for name, content in (("optimizer", {"type": "Adam"}), ("scheduler", {"type": "WarmupLR"})):
        Path(f"{name}.json").write_text(json.dumps({name: content, "zero_optimization": {"stage": 2}}))
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--vision_learning_rate 1e-5",
            "--vision is frozen; give --vision lora or full, or leave the rate out",
        ),
        ("--use_lora True --connector_learning_rate 1e-5", "--connector is frozen"),
        ("--language_learning_rate 0", "--language_learning_rate: found 0.0, expected a number above 0"),
        ("--language_learning_rate 1e-5 --optim lomo", "--optim lomo: supports only one learning rate"),
    ],
)
def test_a_rate_that_nothing_would_follow_is_an_error(
    flags: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("finetune.flags.packages.is_installed", lambda module: True)
    with pytest.raises(ValueError, match=message):
        parse.parse([*BASE, *flags.split()])


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_a_deepspeed_file_that_decides_the_rate_is_an_error(section: str, folder: Path):
    args, _ = parse.parse([*BASE, "--language_learning_rate", "1e-5", "--warmup_steps", "1"])
    args.training.deepspeed = f"{section}.json"  # not by its flag, which would change this process for good
    expected = (
        f"its '{section}' supports only one learning rate, but one is given for language; "
        f"remove '{section}' from the file"
    )
    with pytest.raises(ValueError, match=expected):
        checks.check(args)


@pytest.mark.parametrize(
    ("flags", "modes"),
    [
        ("", ("frozen", "full", "full")),
        ("--fix_vit False", ("full", "full", "full")),
        ("--train_connector False", ("frozen", "frozen", "full")),
        ("--use_lora True", ("frozen", "frozen", "lora")),
        ("--q_lora True --train_connector True", ("frozen", "full", "lora")),
        ("--use_lora True --fix_vit False", ("full", "frozen", "lora")),
        ("--use_lora True --vision lora --connector lora", ("lora", "lora", "lora")),
        ("--language lora", ("frozen", "frozen", "lora")),
        ("--language frozen", ("frozen", "full", "frozen")),
        ("--vision full --fix_vit True", ("full", "full", "full")),
    ],
)
def test_flags_of_2023_give_the_defaults(flags: str, modes: tuple[str, ...], folder: Path):
    args, _ = parse.parse([*BASE, *flags.split()])
    assert tuple(args.modes.values()) == modes
    assert args.lora == ("lora" in modes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--use_lora True --language full",
            "--use_lora True with --language full: .*leave out one of the two",
        ),
        ("--q_lora True --language full", "4-bit weights cannot be trained in full"),
        ("--fix_vit False --vision frozen", "--fix_vit False with --vision frozen"),
        ("--train_connector True --connector frozen", "--train_connector True with --connector frozen"),
        ("--train_connector False --connector lora", "--train_connector False with --connector lora"),
        ("--language frozen --connector frozen", "every component is frozen"),
        (
            "--vision lora --lora_target_modules w1",
            "--lora_target_modules: has no effect .*--language is full",
        ),
        ("--vision lora --train_embeddings True", "--train_embeddings: has no effect with --language full"),
        ("--language frozen --train_embeddings True", "--train_embeddings: has no effect without adapters"),
        ("--use_dora True", "--use_dora: has no effect without adapters; add --use_lora True"),
        (
            "--q_lora True --lora_bias all --bf16 True",
            "biases of 4-bit layers would be rounded to half precision at every step",
        ),
        ("--lora_bias all", "--lora_bias: has no effect without adapters"),
        ("--lora_weight_path w", "--lora_weight_path: has no effect without adapters"),
    ],
)
def test_modes_that_contradict_each_other(flags: str, message: str, folder: Path):
    with pytest.raises(ValueError, match=message):
        parse.parse([*BASE, *flags.split()])
