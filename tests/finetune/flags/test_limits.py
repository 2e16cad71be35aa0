"""Numbers of flags at their limits, surplus values, missing packages: reported before any work."""

from pathlib import Path

import pytest

from finetune.flags import packages, parse
from finetune.flags.checks import refuse
from finetune.flags.flags_of_2023 import translate

BASE = ("--model_name_or_path", "m", "--data_path", "d.json")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.json").write_text("[]")


def refused(*flags: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse.parse([*BASE, *flags])
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("num_train_epochs", ("-1", "nan", "inf")),
        ("max_steps", ("0", "-5")),
        ("per_device_train_batch_size", ("0", "-1")),
        ("per_device_eval_batch_size", ("0",)),
        ("gradient_accumulation_steps", ("0", "-2")),
        ("learning_rate", ("-1e-5", "nan", "inf", "-inf")),
        ("vision_learning_rate", ("0", "nan", "inf")),
        ("weight_decay", ("-0.1", "nan")),
        ("adam_beta1", ("1", "-0.1", "nan")),
        ("adam_beta2", ("1", "1.5")),
        ("adam_epsilon", ("-1", "nan")),
        ("max_grad_norm", ("-1", "nan")),
        ("warmup_steps", ("-1", "1.5", "nan", "inf")),
        ("save_steps", ("0", "-1", "1.5", "nan", "inf")),
        ("logging_steps", ("0", "-1", "2.5", "nan")),
        ("save_total_limit", ("0", "-1")),
        ("seed", ("-1", "4294967296")),
        ("data_seed", ("-1",)),
        ("dataloader_num_workers", ("-1", "99999")),
        ("kept_samples_gib", ("-1", "nan")),
        ("label_smoothing_factor", ("1", "-0.1", "nan")),
        ("model_max_length", ("0", "-1")),
        ("min_pixels", ("0",)),
        ("max_pixels", ("0", "-4")),
        ("video_fps", ("0", "nan", "inf")),
        ("video_max_frames", ("1",)),
        ("lora_r", ("0", "-1", "1000000000")),
        ("lora_alpha", ("0", "-16")),
        ("lora_dropout", ("1", "-0.1", "nan")),
        ("probe_steps", ("0", "-1")),
        ("stop_patience", ("0",)),
        ("eval_generate", ("-1",)),
        ("eval_max_new_tokens", ("0",)),
        ("neftune_noise_alpha", ("-1", "nan")),
        ("look_weight", ("-1", "nan")),
        ("look_target", ("0", "1.1", "nan")),
        ("look_warmup", ("-0.1", "1.5")),
        ("look_release", ("2", "nan")),
    ],
)
def test_a_number_that_means_nothing_is_refused_by_its_flag(flag: str, values: tuple[str, ...]):
    for value in values:
        assert f"--{flag}: found " in refused(f"--{flag}={value}"), value


def test_what_a_user_would_want_instead_is_said():
    assert "or -1 (then --num_train_epochs decides)" in refused("--max_steps", "0")
    assert "--save_strategy no" in refused("--save_steps", "0")
    assert "left out, all checkpoints stay" in refused("--save_total_limit", "0")
    assert "expected --min_pixels to be no larger" in refused("--min_pixels", "900", "--max_pixels", "800")


LOOKING = ("--look_weight", "0.2", "--look_layers")
MONITORING = ("--monitor", "True", "--probes", "d.json")
STOPPING = (*MONITORING, "--stop_when", "corrected")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--look_target", "0.5"), "--look_target: no effect without supervision; add --look_weight"),
        (LOOKING[:2], "the key layers are the monitor's, and there is no monitor"),
        ((*LOOKING, "4,x"), "--look_layers: found '4,x', expected key, all, or layer numbers"),
        ((*LOOKING, "all", "--look_warmup", "0.7", "--look_release", "0.5"), "expected at most 1 together"),
        (
            (*LOOKING, "all", "--gradient_checkpointing_kwargs", '{"use_reentrant": true}'),
            "its first forward has no gradient",
        ),
        ((*LOOKING, "all", "--torch_compile", "True"), "--look_weight with --torch_compile"),
        ((*LOOKING[:2], *STOPPING), "--look_layers key supervises every key layer; name layers with"),
        ((*LOOKING, "all", *STOPPING), "nothing is corrected, since --look_layers all supervises every"),
        (
            (*LOOKING, "8,12, 16", *STOPPING, "--key_layers", "16,8"),
            "--look_layers 8,12, 16 supervises every",
        ),
    ],
)
def test_supervision_that_cannot_be_is_refused(flags: tuple[str, ...], message: str):
    assert message in refused(*flags)


@pytest.mark.parametrize("key_layers", ["auto", "8,20"])
def test_supervision_that_leaves_a_key_layer_may_stop_training(key_layers: str):
    arguments, _ = parse.parse([*BASE, *LOOKING, "8,12", *STOPPING, "--key_layers", key_layers])
    assert arguments.monitor.stop_when == "corrected"


def test_a_dry_run_says_that_attention_will_not_be_judged():
    for flags, said in ((LOOKING[:2], True), ((*LOOKING, "8"), False)):
        lines = parse.parse([*BASE, *flags, *MONITORING, "--dry_run", "True"])[1]
        assert any("attention will not be judged, since --look_layers key" in one for one in lines) is said


@pytest.mark.parametrize(
    "flags",
    [
        ("--max_steps", "1"), ("--num_train_epochs", "0.1"), ("--save_steps", "0.25"), ("--save_total_limit", "1"),
        ("--warmup_steps", "0.1"), ("--seed", "4294967295"), ("--max_grad_norm", "inf"), ("--max_grad_norm", "0"),
        ("--save_strategy", "no", "--save_steps", "0"), ("--model_max_length", "1"),
        ("--use_lora", "--lora_dropout", "0"),
        ("--dataloader_num_workers", "64"), ("--weight_decay", "0"),
    ],
)  # fmt: skip
def test_numbers_at_the_right_side_of_their_limits_pass(flags: tuple[str, ...]):
    assert parse.parse([*BASE, *flags])[1] == []


def test_numbers_that_train_nothing_are_said():
    assert "nothing is trained" in parse.parse([*BASE, "--num_train_epochs", "0"])[1][0]
    assert "not updated" in parse.parse([*BASE, "--learning_rate", "0"])[1][0]
    assert parse.parse([*BASE, "--num_train_epochs", "0", "--max_steps", "3"])[1] == []


def test_all_numbers_are_told_at_once():
    message = refused("--lora_r", "0", "--seed", "-1", "--report_to", "wandbb")
    assert [line.split(":")[0].split()[0] for line in message.splitlines()] == [
        "--seed",
        "--lora_r",
        "--report_to",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("run.yaml",), "found 'run.yaml', which belongs to no flag; did you mean --config run.yaml?"),
        (
            (*BASE, "e.json"),
            "--data_path: found 2 values (d.json e.json), expected one; give further files as --replay",
        ),
        ((*BASE, "--lora_r", "4", "8"), "--lora_r: found 2 values (4 8), expected one"),
        ((*BASE, "--max_steps", "x"), "argument --max_steps/--max-steps: invalid int value: 'x'"),
        ((*BASE, "--use_lora", "perhaps"), "perhaps"),
        ((*BASE, "--lora_bias", "some"), "invalid choice: 'some'"),
        (
            (*BASE, "--lora_rank", "4"),
            "--lora_rank: unknown flag; did you mean --local_rank or --lora_r?",
        ),
        ((*BASE, "--lr_scheduler_kwargs", "{bad"), "--lr_scheduler_kwargs: broken JSON"),
        (
            (*BASE, "--lr_scheduler_kwargs", "[1]"),
            "--lr_scheduler_kwargs: found a list of 1, expected an object",
        ),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_message(flags: tuple[str, ...], words: str):
    with pytest.raises(ValueError) as caught:
        parse.parse(flags)
    assert words in str(caught.value) and len(str(caught.value)) < 2000


def test_a_flag_that_is_given_twice_is_said():
    lora = [*BASE, "--use_lora"]
    args, lines = parse.parse([*lora, "--lora_r", "4", "--lora_r", "8", "--seed", "1", "--seed", "1"])
    assert (args.adaptation.lora_r, lines) == (8, ["--lora_r: given 2 times; using the last value: 8"])
    # The usual flags of a script are no flags of its user's.
    assert parse.parse(["--lora_r", "4", "--given", *lora, "--lora_r", "8"])[1] == []


def test_dashes_in_names_are_understood_everywhere():
    args, _ = parse.parse([*BASE, "--lora-r", "4", "--warmup-ratio", "0.1"])
    assert (args.adaptation.lora_r, args.training.warmup_steps) == (4, 0.1)
    assert parse.has_value(["--data-path", "d"], "data_path")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--report_to", "wandb"), "--report_to wandb: wandb is not installed; pip install wandb"),
        (
            ("--report_to", "swanlab"),
            "--report_to swanlab: swanlab is not installed; pip install",
        ),
        (("--report_to", "azure_ml"), "pip install azureml-core"),
        (
            ("--report_to", "tensorbord"),
            "--report_to tensorbord: expected one of tensorboard, wandb, swanlab",
        ),
        (
            ("--optim", "galore_adamw"),
            "--optim galore_adamw: galore-torch is not installed; pip install galore-torch",
        ),
        (("--optim", "galore_adamw"), "requires --optim_target_modules"),
        (("--optim", "lomo"), "pip install lomo-optim"),
        (("--optim", "schedule_free_adamw"), "pip install schedulefree"),
        (("--optim", "paged_adamw_8bit"), "pip install bitsandbytes"),
        (("--optim", "adamw_torch_4bit"), "pip install torchao"),
        (("--q_lora", "True"), "--q_lora: bitsandbytes is not installed; pip install bitsandbytes"),
        (("--deepspeed", "none.json"), "--deepspeed: deepspeed is not installed; pip install deepspeed"),
    ],
)
def test_a_package_that_a_flag_needs_is_named(
    flags: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packages, "is_installed", lambda module: module == "tensorboard")
    assert words in refused(*flags)


def test_a_part_of_a_package_that_is_not_there_is_not_installed():
    assert packages.is_installed("torch.nn") and not packages.is_installed("there_is_none.of.it")


def test_every_integration_of_transformers_has_its_package():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(packages.REPORTERS) == set(INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize("share", ["1", "1.0", "3", "-0.1", "nan"])
def test_a_warm_up_of_the_whole_run_is_no_single_step(share: str):
    """Under the name of today, 1 and more are steps."""
    with pytest.raises(ValueError, match=f"--warmup_ratio: found {share}, expected a share of all steps"):
        translate(["--warmup_ratio", share])
    assert translate(["--warmup_ratio", "0"])[0] == ["--warmup_steps", "0"]


def test_pushing_to_the_hub_without_a_token_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("finetune.flags.checks.get_token", lambda: None)
    flags = (*BASE, "--push_to_hub", "True")
    with pytest.raises(ValueError, match="--push_to_hub: found no access token.*hf auth login"):
        parse.parse(flags)
    parse.parse([*flags, "--hub_token", "hf_x"])
    monkeypatch.setattr("finetune.flags.checks.get_token", lambda: "hf_y")
    parse.parse(flags)


def test_faults_are_told_once_and_no_more_than_people_read():
    same, others = "--data_path: given twice", [f"--flag_{at}: {'x' * 190}" for at in range(12)]
    with pytest.raises(ValueError, match="given twice") as raised:
        refuse([same] * 40)
    assert str(raised.value) == same
    with pytest.raises(ValueError, match="more$") as raised:
        refuse([same, *others])
    told = str(raised.value)
    assert told.startswith(f"{same}\n--flag_0: ") and told.endswith(f"… and {13 - told.count('--')} more")
    assert 1500 < len(told.encode()) < 1900
    refuse([])
