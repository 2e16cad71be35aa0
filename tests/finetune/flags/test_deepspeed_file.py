"""DeepSpeed's file: invalid and contradictory fields are reported by file and field before weights load."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.flags import deepspeed_file, parse
from tests.finetune.hostile import damaged

ROOT = Path(__file__).parents[3]
BASE = ("--model_name_or_path", "m", "--data_path", "d.json", "--deepspeed")
GOOD: dict[str, Any] = json.loads((ROOT / "ds_config_zero2.json").read_text())
ZERO: dict[str, Any] = GOOD["zero_optimization"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    Path("d.json").write_text("[]")


def write(content: Any) -> str:
    Path("ds.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return "ds.json"


def refused(content: Any, *flags: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse.parse([*BASE, write(content), *flags])
    message = str(caught.value)
    assert message.startswith("--deepspeed ds.json: ") and len(message) < 2000, message
    return message


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize("name", ["ds_config_zero2.json", "ds_config_zero3.json"])
def test_our_own_files_pass(name: str):
    parse.parse([*BASE, str(ROOT / name), "--bf16", "True"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"bf16": {"enabled": "auto"}, // half\n"zero_optimization": {}}', "JSON has no comments"),
        ("", "the file is empty"),
        ("[" * 50_000, "nested too deeply"),
        ([GOOD], "found a list of 1, expected an object"),
        (without("zero_optimization"), "zero_optimization: missing"),
        (GOOD | {"zero_optimization": "stage2"}, 'zero_optimization: found "stage2", expected an object'),
        (GOOD | {"zero_optimization": None}, "zero_optimization: found null, expected an object"),
        (GOOD | {"fp16": [None]}, "fp16: found a list of 1, expected an object"),
        (GOOD | {"bf16": {"enabled": 3}}, 'bf16.enabled: found 3, expected true or false, or "auto"'),
        (GOOD | {"bf16": {"enabled": "true"}}, 'bf16.enabled: found "true"'),
        (GOOD | {"zero_optimization": ZERO | {"stage": "2"}}, 'zero_optimization.stage: found "2"'),
        (GOOD | {"zero_optimization": ZERO | {"stage": 4}}, "zero_optimization.stage: found 4"),
        (
            GOOD | {"zero_optimization": ZERO | {"reduce_bucket_size": "2e8"}},
            'reduce_bucket_size: found "2e8"',
        ),
        (GOOD | {"zero_optimization": ZERO | {"overlap_coms": False}}, "zero_optimization.overlap_coms"),
        (
            GOOD | {"zero_optimisation": ZERO},
            "zero_optimisation: DeepSpeed would ignore it; did you mean zero_opti",
        ),
        (GOOD | {"train_micro_batch_size_per_gpu": "4"}, 'train_micro_batch_size_per_gpu: found "4"'),
        (GOOD | {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: found 0"),
        (GOOD | {"optimizer": {"type": "Adamm"}}, 'optimizer.type: found "Adamm"'),
        (
            GOOD | {"optimizer": {"type": "AdamW", "params": {"lr": "1e-5"}}},
            'optimizer.params.lr: found "1e-5"',
        ),
        (GOOD | {"scheduler": {"type": "Warmup"}}, 'scheduler.type: found "Warmup"'),
        (GOOD | {"zero_optimization": ZERO | {"offload_optimizer": "cpu"}}, 'offload_optimizer: found "cpu"'),
        (
            GOOD | {"zero_optimization": ZERO | {"offload_optimizer": {"device": "disk"}}},
            'device: found "disk"',
        ),
        (
            GOOD | {"zero_optimization": ZERO | {"offload_param": {"device": "cpu"}}},
            "offload_param: stage 2 does not offload this",
        ),
        (
            GOOD
            | {"zero_optimization": ZERO | {"offload_optimizer": {"device": "nvme", "nvme_path": "/none"}}},
            'nvme_path: found "/none", expected a folder',
        ),
    ],
)
def test_a_file_that_deepspeed_could_not_use_is_told_by_its_field(content: Any, words: str):
    assert words in refused(content)


def test_a_name_from_the_file_steers_no_terminal():
    message = refused(GOOD | {"zero_optimization": ZERO | {"contiguous_gradients\x1b[2J": True}})
    assert "contiguous_gradients\\x1b[2J: found true" in message


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, (), "per_gpu: found 4, but --per_device_train_batch_size says 8"),
        ({"gradient_accumulation_steps": 4}, (), "found 4, but --gradient_accumulation_steps says 1"),
        ({"train_batch_size": 7}, (), "found 7, but 8 per device × 1 accumulated × 1 processes says 8"),
        ({"gradient_clipping": 0.5}, (), "found 0.5, but --max_grad_norm says 1.0"),
        ({"bf16": {"enabled": True}}, (), "bf16.enabled: found true, but --bf16 says False"),
        ({"fp16": {"enabled": False}}, ("--fp16", "True"), "fp16.enabled: found false, but --fp16 says True"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, (), "found 0.0001, but --learning_rate says 5e-05"),
    ],
)  # fmt: skip
def test_a_file_that_says_otherwise_than_the_flags(
    changes: dict[str, Any], flags: tuple[str, ...], words: str
):
    assert words in refused(GOOD | changes, *flags)


def test_accumulation_that_the_file_leaves_out_would_be_one():
    assert "missing, which means 1, but the flag says 4" in refused(
        without("gradient_accumulation_steps"), "--gradient_accumulation_steps", "4"
    )


def test_overlapping_is_refused_where_it_would_happen():
    def zero(stage: int, overlap: Any) -> dict[str, Any]:
        return GOOD | {"zero_optimization": {"stage": stage, "overlap_comm": overlap}}

    assert '"overlap_comm" is true' in refused(zero(2, True))
    assert '"overlap_comm" is "auto", which with stage 3 means true' in refused(zero(3, "auto"))
    assert '"overlap_comm" is missing, which with stage 3 means true' in refused(zero(3, None))
    parse.parse([*BASE, write(zero(2, "auto"))])


def test_an_offloaded_optimizer_is_deepspeeds_adam_alone():
    config = GOOD | {"zero_optimization": ZERO | {"offload_optimizer": {"device": "cpu", "pin_memory": True}}}
    assert "would replace --optim adafactor by DeepSpeed's Adam" in refused(config, "--optim", "adafactor")
    parse.parse([*BASE, write(config)])


def test_gradients_that_will_not_be_clipped_are_said():
    _, lines = parse.parse([*BASE, write(without("gradient_clipping"))])
    assert "gradients are not clipped, though --max_grad_norm is 1" in lines[0]


ADAM = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}
WARM = {"type": "WarmupLR", "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto"}}


@pytest.mark.parametrize(
    ("section", "flags", "words"),
    [
        ({"scheduler": WARM}, ("--lr_scheduler_type", "cosine"),
         'its "scheduler" (WarmupLR) decides; without effect: --lr_scheduler_type cosine; remove "scheduler" from'),
        ({"scheduler": {"type": "WarmupLR"}}, (),
         '--lr_scheduler_type linear, --learning_rate (no "warmup_max_lr" in its params), --warmup_steps (no "w'),
        ({"optimizer": ADAM}, ("--optim", "adafactor"),
         'its "optimizer" (AdamW) decides; without effect: --optim adafactor; remove "optimizer" from the file'),
        ({"optimizer": ADAM}, ("--weight_decay", "0.1"),
         "without effect: --optim adamw_torch; biases and norms decay too, by 0.1; remove"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}}}, ("--weight_decay", "0.1"),
         'adamw_torch, --adam_epsilon (no "eps" in its params), --weight_decay (no "weight_decay" in its params); rem'),
    ],
)  # fmt: skip
def test_flags_that_a_section_of_the_file_replaces_have_one_line(
    section: dict[str, Any], flags: tuple[str, ...], words: str
):
    _, lines = parse.parse([*BASE, write(GOOD | section), "--warmup_steps", "2", *flags])
    assert len(lines) == 1 and words in lines[0] and lines[0].startswith("--deepspeed ds.json: its ")


def test_json_in_the_place_of_a_file():
    args, _ = parse.parse([*BASE, json.dumps(GOOD)])
    assert args.training.hf_deepspeed_config.is_zero2()
    with pytest.raises(ValueError, match=r'--deepspeed: zero_optimization: found "x", expected an object'):
        parse.parse([*BASE, json.dumps(GOOD | {"zero_optimization": "x"})])
    with pytest.raises(ValueError, match=r"--deepspeed: broken JSON at line 1"):
        parse.parse([*BASE, "{1}"])
    with pytest.raises(ValueError, match=r"--deepspeed: no such file: 'none\.json'"):
        parse.parse([*BASE, "none.json"])


@pytest.mark.parametrize("stage", [2, 3])
def test_a_damaged_file_is_one_message_or_read(stage: int):
    good = json.loads((ROOT / f"ds_config_zero{stage}.json").read_text())
    for seed in range(60):
        Path("ds.json").write_bytes(damaged(good, seed))
        try:
            parse.parse([*BASE, "ds.json"])
        except ValueError as error:
            assert len(str(error)) < 2000 and "ds.json" in str(error), error


def test_without_a_launcher_it_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch):
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    deepspeed_file.check_launch("zero2.json")
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setattr(deepspeed_file, "is_installed", lambda module: False)
    with pytest.raises(
        ValueError, match=r"zero2\.json: .* found no MASTER_PORT .* torchrun --nproc_per_node 1"
    ):
        deepspeed_file.check_launch("zero2.json")
