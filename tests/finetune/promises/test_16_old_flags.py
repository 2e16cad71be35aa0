"""Trouble: transformers 5 renamed and removed arguments, and the commands of years stop at the first of them.

Promise: the flags of Qwen-VL's 2023 scripts are accepted, translated where they have another name today, and each that
changed is said in a line.
"""

# ruff: noqa: F811 (fixtures of another file)

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.finetune.test_program import program, scalars  # noqa: F401

OLD_SCRIPT = """
    --fix_vit True --num_train_epochs 2 --per_device_train_batch_size 2 --per_device_eval_batch_size 1
    --gradient_accumulation_steps 3 --evaluation_strategy no --save_strategy steps --save_steps 1000
    --save_total_limit 10 --learning_rate 1e-2 --weight_decay 0.1 --adam_beta2 0.95 --warmup_ratio 0.5
    --lr_scheduler_type cosine --logging_steps 1 --report_to none --model_max_length 2048 --lazy_preprocess True
    --gradient_checkpointing --use_lora --save_safetensors False --ddp_find_unused_parameters False --no_cuda True
    --group_by_length True --disable_tqdm True --overwrite_output_dir True
"""


def test_the_command_of_2023_trains_as_it_did(
    program: ModuleType,
    checkpoint_folder: Path,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "out"
    places = [
        "--model_name_or_path",
        str(checkpoint_folder),
        "--data_path",
        str(data_file),
        "--output_dir",
        str(out),
    ]
    assert program.main([*places, *OLD_SCRIPT.split()]) == 0
    said = capsys.readouterr().out
    for old, new in (
        ("--evaluation_strategy no", "--eval_strategy no"),
        ("--warmup_ratio 0.5", "--warmup_steps 0.5"),
        ("--no_cuda True", "--use_cpu True"),
        ("--group_by_length True", "--train_sampling_strategy group_by_length"),
    ):
        assert f"{old}: is now {new}, and used as that" in said
    assert (
        "--save_safetensors False: ignored, transformers no longer has it; weights are always saved as safetensors"
        in said
    )
    # And they do what they did: half of the four steps warm up, and samples of a length go together.
    state = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    assert rates == pytest.approx([0, 5e-3, 1e-2, 5e-3])
    marks = json.loads((out / "run.json").read_text())["marks"]
    assert marks["train_sampling_strategy"] == "group_by_length" and marks["samples a step"] == 6
