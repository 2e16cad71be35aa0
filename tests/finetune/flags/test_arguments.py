from pathlib import Path

import pytest

from finetune.flags import arguments, flags_of_2023, parse
from finetune.training.trainer import log_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.json").write_text("[]")


BASE = ("--model_name_or_path", "m", "--data_path", "d.json")


def test_defaults_are_those_of_the_2023_program():
    args, lines = parse.parse(BASE)
    assert lines == []
    assert args.training.output_dir == "output_qwen"
    assert args.training.optim == "adamw_torch"
    assert args.training.report_to == ["tensorboard"]
    assert (args.data.model_max_length, args.adaptation.fix_vit) == (8192, True)
    lora = args.adaptation
    assert (lora.lora_r, lora.lora_alpha, lora.lora_dropout, lora.lora_bias) == (64, 16, 0.05, "none")
    assert not lora.use_lora and not lora.q_lora


def test_every_flag_of_the_2023_program_is_understood():
    flags = (
        "--cache_dir c --eval_data_path d.json --lazy_preprocess True --optim adamw_torch --model_max_length 512 "
        "--use_lora --fix_vit False --lora_r 8 --lora_alpha 4 --lora_dropout 0.1 --lora_weight_path w --lora_bias none "
        "--lora_target_modules c_attn attn.c_proj w1 w2 --q_lora False"
    )
    args, lines = parse.parse([*BASE, *flags.split()])
    assert args.adaptation.lora_target_modules == ["c_attn", "attn.c_proj", "w1", "w2"]
    assert args.lora and args.adaptation.fix_vit is False and args.data.model_max_length == 512
    assert [line.partition(":")[0] for line in lines] == [
        "--eval_data_path is given, but --eval_strategy is no"  # as in 2023 too, without a word
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--evaluation_strategy", "no"], ["--eval_strategy", "no"]),
        (["--warmup_ratio", "0.01"], ["--warmup_steps", "0.01"]),
        (["--warmup_ratio=0.01"], ["--warmup_steps", "0.01"]),
        (["--group_by_length", "True"], ["--train_sampling_strategy", "group_by_length"]),
        (["--group_by_length"], ["--train_sampling_strategy", "group_by_length"]),
        (["--group_by_length", "False"], ["--train_sampling_strategy", "random"]),
        (["--adafactor", "False"], ["--optim", "adamw_torch"]),
        (["--no_cuda"], ["--use_cpu"]),
        (["--per_gpu_train_batch_size", "3"], ["--per_device_train_batch_size", "3"]),
        (["--save_safetensors", "True"], []),
        (["--fp16_opt_level", "O1"], []),
        (["--adafactor", "True"], ["--optim", "adafactor"]),
    ],
)
def test_flags_of_2023_are_translated_with_one_line_each(old: list[str], new: list[str]):
    translated, lines = flags_of_2023.translate([*BASE, *old, "--seed", "3"])
    assert translated == [*BASE, *new, "--seed", "3"]
    assert len(lines) == 1
    assert lines[0].startswith(" ".join(old).replace("=", " "))


def test_gradient_checkpointing_reaches_the_installed_version():
    args, _ = parse.parse([*BASE, "--gradient_checkpointing", "True"])
    assert vars(args.training).get("activation_checkpointing", args.training.gradient_checkpointing) is True


def test_logging_dir_still_says_where_tensorboard_writes():
    assert log_folder(parse.parse(BASE)[0].training) == Path("output_qwen/runs")
    assert log_folder(parse.parse([*BASE, "--logging_dir", "elsewhere"])[0].training) == Path("elsewhere")


@pytest.mark.parametrize(
    ("file", "old", "flag", "found"),
    [
        (
            "train_sampling_strategy: group_by_length",
            "--group_by_length",
            "train_sampling_strategy",
            "random",
        ),
        ("train_sampling_strategy: sequential", "--group_by_length", "train_sampling_strategy", "sequential"),
        ("optim: adafactor", "--adafactor", "optim", "adamw_torch"),
        ("optim: sgd", "--adafactor", "optim", "sgd"),
    ],
)
def test_a_switch_that_is_off_takes_back_what_a_file_says_and_nothing_else(
    file: str, old: str, flag: str, found: str
):
    Path("run.yaml").write_text(file)
    args, lines = parse.parse([*BASE, "--config", "run.yaml", old, "False"])
    assert str(getattr(getattr(args.training, flag), "value", getattr(args.training, flag))) == found
    assert len(lines) == 1 and found in lines[0]


def test_a_switch_takes_only_true_or_false():
    with pytest.raises(ValueError, match=r"--group_by_length: found 'perhaps', expected True or False"):
        flags_of_2023.translate(["--group_by_length", "perhaps"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data_path", "d.json"), r"--model_name_or_path: missing"),
        (("--model_name_or_path", "m"), r"--data_path: missing"),
        (
            ("--model_name_or_path", "m", "--data_path", "no.json"),
            r"--data_path: no such file or folder: 'no.json'",
        ),
        ((*BASE, "--monitor", "True"), r"--monitor True: requires --probes"),
        ((*BASE, "--monitor", "True", "--probes", "no.json"), r"--probes: no such file: 'no.json'"),
        ((*BASE, "--eval_strategy", "steps"), r"--eval_strategy steps: requires --eval_data_path"),
        (
            (*BASE, "--lora_target_modules", "w1"),
            r"--lora_target_modules: has no effect without --use_lora",
        ),
        ((*BASE, "--key_layers", "1,x"), r"--key_layers: found '1,x', expected auto or layer numbers"),
        ((*BASE, "--use_lora", "True", "--lora_r", "0"), r"--lora_r: found 0, expected at least 1"),
        ((*BASE, "--bf16", "True", "--fp16", "True"), r"fp16 and bf16"),
    ],
)
def test_contradictions_are_named(flags: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        parse.parse(flags)


EVALUATED = (*BASE, "--eval_data_path", "d.json", "--eval_strategy", "steps")


@pytest.mark.parametrize("more", [(), ("--eval_strategy", "no")])
def test_evaluation_data_that_nothing_evaluates_has_a_line(more: tuple[str, ...]):
    _, lines = parse.parse([*BASE, "--eval_data_path", "d.json", *more])
    assert lines == [
        "--eval_data_path is given, but --eval_strategy is no: nothing is evaluated; give --eval_strategy steps (or "
        "epoch)"
    ]
    assert parse.parse(EVALUATED)[1] == []
    assert parse.parse([*BASE, "--eval_data_path", "d.json", "--eval_on_start", "True"])[1] == []


def test_settings_of_adapters_that_nothing_trains_have_a_line():
    """No error: run.yaml of a run of full training has them too."""
    given = ("--lora-r", "8", "--lora_dropout=0.1", "--lora_alpha", "16")
    _, lines = parse.parse([*BASE, *given])
    assert lines == [
        "--lora_r, --lora_dropout: no effect without adapters, and this run trains none; for adapters give "
        "--use_lora True"
    ]
    for adapters in (("--use_lora",), ("--q_lora", "True"), ("--vision", "lora")):
        assert parse.parse([*BASE, *given, *adapters])[1] == []
    Path("run.yaml").write_text("lora_alpha: 32\n")
    assert parse.parse([*BASE, "--config", "run.yaml"])[1][0].startswith("--lora_alpha: no effect")


def test_flags_of_a_monitor_that_is_not_there_have_a_line():
    given = ("--key_layers", "3", "--probe-depth=full", "--stop_patience", "5", "--diagnose", "False")
    more = (
        "--calibration_probes",
        "d.json",
        "--checkpoint_depth",
        "cause",
        "--baseline",
        "b",
        "--probe_steps",
        "4",
    )
    (line,) = parse.parse([*BASE, *given, *more, "--report_language", "zh"])[1]
    assert line == (
        "--key_layers, --calibration_probes, --probe_depth, --probe_steps, --checkpoint_depth, --baseline, --diagnose, "
        "--report_language, --stop_patience: no effect without the monitor; to monitor give --monitor True "
        "--probes FILE"
    )
    watched = (*BASE, "--monitor", "True", "--probes", "d.json")
    without_patience = (*given[:3], *given[5:], *more)
    assert parse.parse([*watched, *without_patience])[1] == []
    (line,) = parse.parse([*watched, *given])[1]
    assert line.startswith("--stop_patience: no effect without --stop_when")
    stopping = (*watched, "--stop_when", "corrected")
    assert parse.parse([*stopping, *given])[1] == []
    (line,) = parse.parse([*stopping, "--checkpoint_depth", "cause"])[1]
    assert line.startswith("--checkpoint_depth: no effect with --stop_when")


def test_settings_of_answers_that_are_not_generated_have_a_line():
    given = ("--eval_pictures", "3", "--eval_max_new_tokens", "9")
    (line,) = parse.parse([*EVALUATED, *given])[1]
    assert line == (
        "--eval_pictures, --eval_max_new_tokens: no effect without generated answers; for them give --eval_generate N"
    )
    assert parse.parse([*EVALUATED, *given, "--eval_generate", "8"])[1] == []


@pytest.mark.parametrize(
    ("usual", "given", "precision"),
    [
        ("--fp16 True", "--bf16 True", (True, False)),
        ("--bf16 True", "--fp16", (False, True)),
        ("--fp16 True", "--bf16 False", (False, True)),
        ("--fp16 True", "--fp16 False", (False, False)),
    ],
)
def test_a_given_precision_replaces_the_usual_one_of_a_script(
    usual: str, given: str, precision: tuple[bool, bool]
):
    args, lines = parse.parse([*usual.split(), "--given", *BASE, *given.split()])
    assert (args.training.bf16, args.training.fp16) == precision and lines == []


@pytest.mark.parametrize(
    "warmup", [("--warmup_steps", "0.1"), ("--warmup_ratio", "0.1"), ("--warmup_steps", "5")]
)
@pytest.mark.parametrize("kind", ["constant", "reduce_lr_on_plateau"])
def test_a_warm_up_that_the_schedule_does_not_have_has_one_line(warmup: tuple[str, str], kind: str):
    usual = ("--warmup_steps", "0.01", "--lr_scheduler_type", "cosine", "--given")
    _, lines = parse.parse([*usual, *EVALUATED, *warmup, "--lr_scheduler_type", kind])
    told = [line for line in lines if f"no effect with --lr_scheduler_type {kind}" in line]
    assert len(told) == 1 and told[0].startswith(f"--warmup_steps {warmup[1]}: ")
    assert ("constant_with_warmup" in told[0]) == (kind == "constant")


@pytest.mark.parametrize(
    "flags",
    [
        ("--warmup_steps", "5"),
        ("--warmup_steps", "5", "--lr_scheduler_type", "constant_with_warmup"),
        ("--lr_scheduler_type", "constant"),
    ],
)
def test_a_warm_up_that_the_schedule_has_and_none_at_all_have_no_line(flags: tuple[str, ...]):
    assert parse.parse([*BASE, *flags])[1] == []


BEST = (*EVALUATED, "--load_best_model_at_end", "True", "--eval_generate", "8")


@pytest.mark.parametrize(
    ("metric", "wrong"),
    [("loss", True), ("eval_loss", True), ("exact_match", False), ("eval_box_iou", False)],
)
def test_a_best_that_is_the_worst_has_one_line(metric: str, wrong: bool):
    flags = (*BEST, "--metric_for_best_model", metric)
    (line,) = parse.parse([*flags, "--greater_is_better", str(wrong)])[1]
    assert line.startswith(
        f"warning: --greater_is_better {wrong} with --metric_for_best_model {metric}: the worst"
    )
    for right in ((), ("--greater_is_better", str(not wrong))):
        args, lines = parse.parse([*flags, *right])
        assert args.training.greater_is_better is not wrong and lines == []


@pytest.mark.parametrize("metric", ["exact_match", "eval_exact_match", "box_iou"])
def test_the_best_by_answers_needs_answers(metric: str):
    best = (*EVALUATED, "--load_best_model_at_end", "True", "--metric_for_best_model", metric)
    with pytest.raises(
        ValueError, match=rf"--metric_for_best_model {metric}: .* give --eval_generate N as well"
    ):
        parse.parse(best)
    parse.parse([*best, "--eval_generate", "8"])


@pytest.mark.parametrize("more", [(), ("--eval_generate", "8")])
def test_a_metric_that_no_evaluation_has_is_refused_before_training(more: tuple[str, ...]):
    expected = "expected loss, or with --eval_generate exact_match, box_accuracy, box_iou or box_pointing"
    with pytest.raises(ValueError, match=f"--metric_for_best_model: found 'accuracy', {expected}"):
        parse.parse([*EVALUATED, *more, "--metric_for_best_model", "accuracy"])
    for metric in ("loss", "eval_loss"):
        parse.parse(
            [*EVALUATED, *more, "--load_best_model_at_end", "True", "--metric_for_best_model", metric]
        )


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--seed", "argument --seed: invalid int value"),
        ("--data_path", "--data_path: no such file or folder"),
        ("--corrective_data", "--corrective_data: no such file or folder"),
        ("--image_folder", "--image_folder: no such folder"),
        ("--probes", "--probes: no such file"),
        ("--deepspeed", "--deepspeed: no such file"),
    ],
)
@pytest.mark.parametrize("value", ["x" * 70_000, "a\x1b[2Jb"])
def test_a_value_that_no_file_can_have_is_cut_short_in_its_message(flag: str, words: str, value: str):
    with pytest.raises(ValueError) as refused:
        parse.parse([*BASE, *(("--monitor", "True") if flag == "--probes" else ()), flag, value])
    message = str(refused.value)
    assert words in message and len(message) < 2000 and "\x1b" not in message, message[:3000]


def test_all_contradictions_are_listed_at_once():
    with pytest.raises(ValueError, match=r"(?s)--data_path.*--key_layers"):
        parse.parse(["--model_name_or_path", "m", "--key_layers", "x"])


def test_given_flags_win_over_defaults():
    merged = parse.merge(
        ["--seed", "1", "--targets", "a", "b", "--lr", "2"], ["--seed=5", "--monitor", "False"]
    )
    assert merged == ["--targets", "a", "b", "--lr", "2", "--seed=5", "--monitor", "False"]


def test_the_connector_trains_in_full_mode_and_not_under_lora_unless_told():
    def train_connector(*flags: str) -> bool:
        return parse.parse([*BASE, *flags])[0].train_connector

    assert train_connector() is True
    assert train_connector("--use_lora", "True") is False
    assert train_connector("--use_lora", "True", "--train_connector", "True") is True
    assert train_connector("--train_connector", "False") is False


def test_key_layers():
    assert arguments.MonitorArguments().chosen_layers() == ()
    assert arguments.MonitorArguments(key_layers="8,16, 24").chosen_layers() == (8, 16, 24)


def test_several_reporters_are_read():
    args, _ = parse.parse([*BASE, "--report_to", "tensorboard", "kubeflow"])
    assert args.training.report_to == ["tensorboard", "kubeflow"]
    args, _ = parse.parse([*BASE, "--report_to=tensorboard"])
    assert args.training.report_to == ["tensorboard"]
    with pytest.raises(ValueError, match="--report_to wanb: expected one of"):
        parse.parse([*BASE, "--report_to", "tensorboard", "wanb"])
