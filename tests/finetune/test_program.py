"""finetune.py as a whole: what a run leaves, what it refuses, and what happens when it is killed."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from diagnostics.records.archive import load_records
from finetune.model.checkpoint import load
from finetune.model.look_file import supervised_of
from finetune.model.seen_file import seen_of
from finetune.training import run_folder
from tests.finetune.conftest import with_boxes
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.finetune.model.test_adaptation import batch
from tests.undrawn import RENDERER, Undrawn

ROOT = Path(__file__).parents[2]
SMALL = [
    "--per_device_train_batch_size", "4", "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1",
    "--learning_rate", "1e-2", "--lora_r", "4", "--disable_tqdm", "True",
]  # fmt: skip


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """finetune.py; the package has the same name, so it is loaded from its file."""
    spec = importlib.util.spec_from_file_location("finetune_program", ROOT / "finetune.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def flags(checkpoint_folder: Path, data_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def make(*more: str) -> list[str]:
        sources = ["--model_name_or_path", str(checkpoint_folder), "--data_path", str(data_file)]
        return [*sources, "--output_dir", str(tmp_path / "out"), *SMALL, *more]

    return make


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    found = events(folder)
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_a_lora_run_leaves_what_was_agreed(
    program: ModuleType, flags, tmp_path: Path, checkpoint_folder: Path, capsys
):
    assert program.main(flags("--use_lora", "True", "--train_connector", "True")) == 0
    out = tmp_path / "out"
    shown = capsys.readouterr().out
    assert "language: adapters" in shown and "connector: trained copy" in shown
    assert "an adapter cannot store it: transformer.visual.proj" in shown
    for folder in (out, out / "checkpoint-2", out / "checkpoint-4"):
        assert {
            "adapter_model.safetensors",
            "adapter_config.json",
            "qwen.tiktoken",
            "preprocessor_config.json",
        } <= {path.name for path in folder.iterdir()}
        card = (folder / "README.md").read_text()
        assert "## Did the correction take?" in card and "Model Card for" not in card  # PEFT's form
        assert "lora_r: 4" in card and str(tmp_path) not in card
    curves = scalars(out / "runs")
    assert sorted(curves["train/loss"]) == [1, 2, 3, 4]
    assert curves["train/loss"][4] < curves["train/loss"][1]
    assert "train/learning_rate" in curves
    plain = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(checkpoint_folder), str(out)
    ).eval()
    ours, _ = load(out)
    with torch.no_grad():
        assert torch.equal(plain(**batch()).logits, ours(**batch()).logits)

    # The same command again has nothing to do; another one is refused before any work.
    assert program.main(flags("--use_lora", "True", "--train_connector", "True")) == 0
    assert "this run is already finished" in capsys.readouterr().out
    assert program.main(flags("--use_lora", "True", "--seed", "7")) == 1
    assert "seed: 42 there, 7 now" in capsys.readouterr().err


def test_full_fine_tuning_without_the_vision_tower(
    program: ModuleType, flags, tmp_path: Path, checkpoint_folder: Path
):
    assert program.main(flags("--max_steps", "1", "--save_strategy", "no")) == 0
    before = load_file(checkpoint_folder / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    tower = {name for name in before if name.startswith("transformer.visual.") and "attn_pool" not in name}
    tower -= {
        "transformer.visual.proj",
        "transformer.visual.ln_post.weight",
        "transformer.visual.ln_post.bias",
    }
    assert same == tower | {"transformer.visual.attn_pool.pos_embed"}


def test_fix_vit_false_moves_the_tower_in_both_modes(
    program: ModuleType, flags, tmp_path: Path, checkpoint_folder: Path
):
    name = "transformer.visual.transformer.resblocks.0.mlp.c_fc.weight"
    before = load_file(checkpoint_folder / "model.safetensors")[name]
    assert program.main(flags("--fix_vit", "False", "--max_steps", "1", "--save_strategy", "no")) == 0
    assert not torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], before)
    lora = ("--use_lora", "True", "--fix_vit", "False", "--output_dir", str(tmp_path / "lora"))
    assert program.main(flags(*lora, "--max_steps", "1", "--save_strategy", "no")) == 0
    saved = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert not torch.equal(saved[f"base_model.model.{name}"], before)


def test_qlora_and_bf16_and_checkpointing_run_on_a_cpu_and_supervise_attention(
    program: ModuleType, flags, data_file: Path, tmp_path: Path
):
    shutil.copytree(data_file.parent, tmp_path / "data")
    more = ("--q_lora", "True", "--bf16", "True", "--gradient_checkpointing", "True", "--max_steps", "2")
    more += ("--data_path", str(with_boxes(tmp_path / "data" / data_file.name)), "--logging_steps", "1")
    more += ("--look_weight", "0.5", "--look_layers", "all", "--look_release", "0")
    assert program.main(flags(*more, "--save_strategy", "no")) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    seen = scalars(tmp_path / "out" / "runs")
    assert [*seen["train/look loss"]] == [1, 2] and all(loss > 0 for loss in seen["train/look loss"].values())
    assert 0 < seen["train/look gradient norm (share)"][1] < 1


def test_evaluation_and_workers(program: ModuleType, flags, tmp_path: Path, data_file: Path):
    more = ("--eval_data_path", str(data_file), "--evaluation_strategy", "steps", "--eval_steps", "2")
    assert program.main(flags("--use_lora", "True", *more, "--dataloader_num_workers", "1")) == 0
    assert sorted(scalars(tmp_path / "out" / "runs")["eval/loss"]) == [2, 4]


def test_a_dry_run_shows_and_writes_nothing(program: ModuleType, flags, tmp_path: Path, capsys):
    assert program.main(flags("--use_lora", "True", "--dry_run", "True")) == 0
    shown = capsys.readouterr().out
    assert (
        "  train | yes yes <|im_end|>⏎" in shown
        and "language: adapters" in shown
        and "dry run: nothing" in shown
    )
    assert not (tmp_path / "out").exists()


def test_a_kernel_that_the_language_model_cannot_run_on_is_told_before_weights(
    program: ModuleType, flags, tmp_path: Path, capsys
):
    tiny = SIGLIPS["paligemma2"]
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.processor(tmp_path).save_pretrained(tmp_path / "model")
    model = ("--model_name_or_path", str(tmp_path / "model"), "--use_lora", "True", "--dry_run", "True")
    assert program.main(flags(*model)) == 1
    assert "the language model is a Gemma2Model" in capsys.readouterr().err
    assert program.main(flags(*model, "--attn_implementation", "eager")) == 0
    assert "dry run: nothing" in capsys.readouterr().out


def probe_file(folder: Path, question: str = "what?", size: tuple[int, int] = (30, 20)) -> tuple[str, ...]:
    Image.new("RGB", size, (9, 90, 200)).save(folder / "probe.png")
    probes = [
        {"id": f"p-{i}", "group": "g", "images": ["probe.png"], "question": question, "answer": "yes"}
        for i in (0, 1)
    ]
    return "--monitor", "True", "--probes", write(folder / "probes.json", {"version": 1, "probes": probes})


def test_probes_that_the_model_cannot_read_are_told_before_weights(
    program: ModuleType, flags, tmp_path: Path, capsys
):
    folder = GRIDS["qwen2.5-vl"].write(tmp_path)
    model = ("--model_name_or_path", str(folder), "--use_lora", "True", *probe_file(tmp_path, size=(1, 300)))
    assert program.main(flags(*model)) == 1
    shown = capsys.readouterr().err
    assert f"{tmp_path / 'probes.json'}: 2 probe(s) that this model cannot read:" in shown
    assert (
        "  probe p-1: image 'probe.png': found 1 × 300 pixels, expected no side more than 200 times" in shown
    )
    assert not (tmp_path / "out").exists()


def test_a_run_whose_comparison_could_not_be_made_is_saved_and_ends_with_a_status(
    program: ModuleType, flags, tmp_path: Path, capsys, monkeypatch
):
    asked = []

    def full(*_, language, **__):
        asked.append(language)
        raise OSError("No space left on device")

    monkeypatch.setattr(RENDERER, Undrawn)
    out = tmp_path / "out"
    given = ("--use_lora", "True", *probe_file(tmp_path), "--report_language", "zh")
    with monkeypatch.context() as disk:
        disk.setattr("diagnostics.compare.compare", full)
        assert program.main(flags(*given)) == 1 and asked == ["zh"]
        error = capsys.readouterr().err.splitlines()[-1]
        assert program.main(flags(*given)) == 1 and asked == ["zh", "zh"]
        again = capsys.readouterr()
    assert f"{out}: trained to its last step, but not all was written; the rest is made from" in again.out
    assert again.err.splitlines()[-1] == error
    assert error.startswith(f"finetune.py: the weights are saved, but {out} lacks: comparison/: ")
    assert "No space left on device" in error and "python -m diagnostics.compare --before" in error
    assert error.endswith(f"--output_dir {out} --language zh")
    assert (out / "adapter_model.safetensors").is_file()
    assert json.loads((out / "run.json").read_text())["finished"] is True

    trained = (out / "adapter_model.safetensors").read_bytes()
    assert program.main(flags(*given)) == 0
    assert (out / "comparison" / "index.html").is_file()
    assert (out / "adapter_model.safetensors").read_bytes() == trained
    capsys.readouterr()
    assert program.main(flags(*given)) == 0 and "this run is already finished" in capsys.readouterr().out


def test_going_on_without_the_baseline_is_one_line(
    program: ModuleType, flags, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(RENDERER, Undrawn)
    assert program.main(flags("--use_lora", "True", "--save_steps", "1")) == 0
    [*_, checkpoint] = sorted((tmp_path / "out").glob("checkpoint-*"))
    resumed = ("--resume_from_checkpoint", str(checkpoint), *probe_file(tmp_path))
    capsys.readouterr()
    assert program.main(flags("--use_lora", "True", *resumed)) == 1
    error = capsys.readouterr().err
    assert "finetune.py: --monitor: " in error and "where the untrained model can no longer" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("value", "question", "note"),
    [
        ("Picture 1: <img>{}</img>\nwhat?", "what?", None),
        ("Picture 1: <img>{}</img>\nwhat?", "<image>\nwhat?", '"Picture 1: <image>\\n…"'),
        ("<img>{}</img>\nwhat?", "what?", 'write "<image>\\n…"'),
        ("<img>{}</img>\nwhat?", "<image>\nwhat?", None),
    ],
)
def test_probes_that_ask_otherwise_than_the_training_data_are_noticed(
    program: ModuleType, flags, tmp_path: Path, capsys, value, question, note
):
    probes = probe_file(tmp_path, question)
    asked = {"from": "user", "value": value.format("probe.png")}
    sample = {"id": "a", "conversations": [asked, {"from": "assistant", "value": "yes"}]}
    data = ("--data_path", write(tmp_path / "own.json", [sample] * 4))
    assert program.main(flags(*data, "--use_lora", "True", "--dry_run", "True", *probes)) == 0
    shown = capsys.readouterr().out
    assert note in shown if note else "before a picture, but the training data" not in shown


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, ("--model_max_length", "80"), "of 12 samples are over --model_max_length 80"),
        (
            None,
            ("--use_lora", "True", "--lora_target_modules", "c_attn", "q_proj"),
            "q_proj matches no linear layer",
        ),
        (None, ("--key_layers", "0,2"), "--key_layers: found [2], expected layers of this model, 0 to 1"),
        ("", (), "the file is empty"),
        ("[{]", (), "broken JSON at line 1, column 3"),
        ([{"conversations": [{"from": "bot", "value": "x"}]}], (), "unknown role 'bot'"),
        (
            [
                {
                    "conversations": [
                        {"from": "user", "value": "<img>gone.png</img>"},
                        {"from": "assistant", "value": "x"},
                    ]
                }
            ],
            (),
            "image 'gone.png': no such file",
        ),
    ],
)
def test_wrong_inputs_are_told_in_one_message_before_training(
    program: ModuleType, flags, tmp_path: Path, capsys, content, more: tuple[str, ...], message: str
):
    data = () if content is None else ("--data_path", write(tmp_path / "bad.json", content))
    assert program.main(flags(*more, *data)) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("finetune.py: ") and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def environment(**changes: str) -> dict[str, str]:
    quiet = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    extensions = {"TORCH_EXTENSIONS_DIR": str(ROOT / ".venv" / "torch_extensions")}
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **extensions, **quiet, **path, **changes}


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"the run ended with {process.returncode} before {path}"
        assert time.monotonic() < end, f"no {path} after {seconds} s"
        time.sleep(0.02)


def test_a_run_killed_half_way_ends_with_the_same_files(program: ModuleType, flags, tmp_path: Path, capsys):
    more = ("--use_lora", "True", "--max_steps", "30", "--save_steps", "3", "--save_total_limit", "3")
    straight = (*more, "--output_dir", str(tmp_path / "straight"))
    assert program.main(flags(*straight)) == 0
    command = [sys.executable, str(ROOT / "finetune.py"), *flags(*more)]
    out = tmp_path / "out"
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as killed:
        wait_for(out / "checkpoint-6" / run_folder.COMPLETE_FILE, killed)
        with contextlib.suppress(ProcessLookupError):
            killed.send_signal(signal.SIGKILL)
    assert not (out / "adapter_model.safetensors").exists()
    # A checkpoint whose writing was cut short is passed over.
    newest = run_folder.checkpoints(out)[-1]
    half = out / "checkpoint-29"
    half.mkdir()
    (half / "adapter_config.json").write_text("{")
    capsys.readouterr()
    assert program.main(flags(*more)) == 0
    shown = capsys.readouterr().out
    assert f"{half}: was not written to its end; skipped" in shown
    assert f"resuming from {newest}" in shown or "skipped" in shown
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "straight", out))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert scalars(tmp_path / "straight" / "runs")["train/loss"] == scalars(out / "runs")["train/loss"]
    # Killed after its last step: what the end logs is not logged again, since nothing is trained.
    run = out / run_folder.RUN_FILE
    run.write_text(json.dumps({**json.loads(run.read_text()), "finished": False}))
    assert program.main(flags(*more)) == 0
    assert [event.step for event in events(out / "runs").Scalars("train/train_runtime")] == [30]


def test_two_processes_under_deepspeed_train_the_same(
    program: ModuleType, flags, data_file: Path, tmp_path: Path
):
    """ZeRO-2, 2 x 2 samples, against one process without DeepSpeed, 4 samples; attention is supervised in both."""
    shutil.copytree(data_file.parent, tmp_path / "data")
    data = with_boxes(tmp_path / "data" / data_file.name)
    more = ("--use_lora", "True", "--lora_dropout", "0", "--data_path", str(data))
    more += ("--look_weight", "0.5", "--look_layers", "all")
    assert program.main(flags(*more, "--output_dir", str(tmp_path / "one"))) == 0
    two = (*more, "--per_device_train_batch_size", "2", "--deepspeed", str(ROOT / "ds_config_zero2.json"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(ROOT / "finetune.py"), *flags(*two),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("language: adapters") == 1  # the first process speaks alone
    alone, shared = (scalars(tmp_path / name / "runs") for name in ("one", "out"))
    assert list(shared["train/loss"]) == [1, 2, 3, 4]
    for name in ("train/loss", "train/language loss", "train/look loss"):
        assert list(shared[name].values()) == pytest.approx(list(alone[name].values()), abs=1e-4), name
    shares = [one["train/look gradient norm (share)"] for one in (alone, shared)]
    assert all([*one] == [1] and 0 < one[1] < 1 for one in shares), shares
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1  # and writes alone
    marker = json.loads((tmp_path / "out" / "checkpoint-4" / run_folder.COMPLETE_FILE).read_text())
    assert marker["processes"] == 2
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "out"))
    assert all(torch.allclose(a[name], b[name], atol=2e-3) for name in a)


def test_what_attention_was_told_goes_on_with_the_adapter(
    program: ModuleType, flags, data_file: Path, tmp_path: Path
):
    """Layer 1 was supervised in the first run, layer 0 in the second, which continues it; the third names none, and so
    does one that goes on from the first in another folder."""
    shutil.copytree(data_file.parent, tmp_path / "data")
    data = with_boxes(tmp_path / "data" / data_file.name)
    more = ("--use_lora", "True", "--data_path", str(data), "--max_steps", "2")
    before: tuple[str, ...] = ()
    for name, layers, known in (("one", "1", (1,)), ("two", "0", (0, 1)), ("three", "", (0, 1))):
        looking = ("--look_weight", "0.5", "--look_layers", layers) if layers else ()
        assert program.main(flags(*more, *before, *looking, "--output_dir", str(tmp_path / name))) == 0
        for folder in (tmp_path / name, tmp_path / name / "checkpoint-2"):
            supervised = supervised_of(folder)
            assert supervised is not None and supervised.layers == known and supervised.pictures
        before = ("--lora_weight_path", str(tmp_path / name))
    resumed = ("--resume_from_checkpoint", str(tmp_path / "one" / "checkpoint-2"), "--max_steps", "3")
    assert program.main(flags(*more, *resumed)) == 0
    known_there = supervised_of(tmp_path / "out")
    assert known_there is not None and known_there.layers == (1,)


def test_probes_whose_pictures_are_trained_on_are_told_and_never_held_out(
    program: ModuleType, flags, data_file: Path, tmp_path: Path, capsys, monkeypatch
):
    """Of a copy of a training picture: a warning, a note that goes with the weights, and records that say so."""
    monkeypatch.setattr(RENDERER, Undrawn)
    watched = (*probe_file(tmp_path), "--key_layers", "0,1")
    words = "in 2 of 2 probes a picture is in the training data (g: 2 of 2), the first is p-0"
    assert program.main(flags("--use_lora", "True", *watched, "--dry_run", "True")) == 0
    assert words not in capsys.readouterr().out
    shutil.copy(data_file.parent / "1.png", tmp_path / "probe.png")
    assert program.main(flags("--use_lora", "True", *watched, "--dry_run", "True")) == 0
    assert words in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert program.main(flags("--use_lora", "True", *watched, "--max_steps", "2")) == 0
    assert words in capsys.readouterr().out
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        assert len(seen_of(folder)) == 1
    for step in (0, 2):
        records = load_records(tmp_path / "out" / "attention" / f"step-{step:06d}")
        assert {one.trained_picture for one in records.values()} == {step > 0}
    more = (
        "--lora_weight_path",
        str(tmp_path / "out"),
        "--output_dir",
        str(tmp_path / "more"),
        "--max_steps",
        "1",
    )
    assert program.main(flags("--use_lora", "True", *more)) == 0
    assert seen_of(tmp_path / "more") == seen_of(tmp_path / "out")


def test_epochs_of_0_train_nothing_and_say_so(program: ModuleType, flags, tmp_path: Path, capsys):
    assert program.main(flags("--use_lora", "True", "--max_steps", "-1", "--num_train_epochs", "0")) == 0
    shown = capsys.readouterr()
    assert "--num_train_epochs 0: nothing is trained" in shown.out
    assert (
        f"nothing was trained: the unchanged adapter and its processor are in {tmp_path / 'out'}" in shown.out
    )
    assert "no step had a picture" not in shown.out + shown.err


def test_a_warm_up_longer_than_the_run_is_said(program: ModuleType, flags, capsys):
    assert program.main(flags("--use_lora", "True", "--warmup_steps", "100", "--dry_run", "True")) == 0
    assert (
        "--warmup_steps 100 is not below the number of steps: the learning rate never"
        in capsys.readouterr().out
    )


def test_a_run_goes_on_from_a_checkpoint_of_any_name(program: ModuleType, flags, tmp_path: Path, capsys):
    assert program.main(flags("--use_lora", "True", "--max_steps", "2")) == 0
    best = (tmp_path / "out" / "checkpoint-2").rename(tmp_path / "best so far")
    more = ("--resume_from_checkpoint", str(best), "--output_dir", str(tmp_path / "on"))
    assert program.main(flags("--use_lora", "True", *more)) == 0
    assert f"resuming from {best}" in capsys.readouterr().out
    assert sorted(scalars(tmp_path / "on" / "runs")["train/loss"]) == [3, 4]


def test_the_whole_data_as_a_fraction_trains_the_same_bit_for_bit(program: ModuleType, flags, tmp_path: Path):
    whole, fraction = tmp_path / "whole", tmp_path / "fraction"
    for folder, more in ((whole, ()), (fraction, ("--data_fraction", "1"))):
        assert program.main(flags("--use_lora", "True", "--output_dir", str(folder), *more)) == 0
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (fraction / name).read_bytes()
    kept = json.loads((fraction / run_folder.FRACTION_FILE).read_text())
    ((name, counts),) = kept["sources"].items()
    # 4 steps of 4 samples: of the samples it has, no more than they reach are said to be trained on
    assert kept["fraction"] == 1 and kept["of"] == [name]
    assert counts["trained"] == min(16, counts["samples"])
    assert not (whole / run_folder.FRACTION_FILE).exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data_fraction", "0"], "--data_fraction: found 0.0, expected a number above 0 and at most 1"),
        (["--data_fraction", "1.5"], "--data_fraction: found 1.5"),
        (["--data_fraction", "0.01"], "one step reads 4 of them"),
        (["--data_fraction_of", "towers"], "have no effect without --data_fraction"),
        (["--data_fraction", "0.5", "--streaming", "True"], "--data_fraction with --streaming"),
        (["--data_fraction", "0.5", "--data_fraction_same", "epochs"], "with --max_steps 4"),
        (["--data_fraction", "0.5", "--data_fraction_of", "towers"], "found 'towers', which is no source"),
    ],
)
def test_fractions_that_cannot_be_trained_on(program: ModuleType, flags, more, message, capsys):
    assert program.main(flags(*more)) == 1
    assert message in capsys.readouterr().err
