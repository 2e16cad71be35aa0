"""Files of a checkpoint and of a run's folder that are damaged, cut or of somebody else: one message, at once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import fields
from finetune.model import checkpoint, checkpoint_files, weights
from finetune.qwen_vl import QwenVLConfig, QwenVLTokenizer
from finetune.samples import source
from finetune.training import run_folder
from tests.diagnostics.published_shapes import SHAPES
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.hostile import damaged

SEEDS = range(60)


@pytest.fixture
def copy(checkpoint_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "copy"))


def change(path: Path, **fields_: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields_))


def refused(work: Callable[[], Any], *words: str) -> None:
    """One message of at most 2 kB, with these words."""
    with pytest.raises(ValueError) as caught:
        work()
    message = str(caught.value)
    assert len(message) < 2000 and all(word in message for word in words), message


# ---------------------------------------------------------------------------------------------------------------------
# A checkpoint
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 10**30, ("num_hidden_layers: found a number of 31 digits", "to 2,000")),
        ("num_hidden_layers", 10**9, ("num_hidden_layers: found 1000000000", "to 2,000")),
        ("num_attention_heads", {}, ("num_attention_heads: found an object of 0", "a whole number")),
        ("hidden_size", 0, ("hidden_size: found 0",)),
        ("intermediate_size", 0, ("intermediate_size: found 0",)),
        ("intermediate_size", 65, ("intermediate_size is 65", "2")),
        ("kv_channels", -1, ("kv_channels: found -1",)),
        ("layer_norm_epsilon", float("nan"), ("layer_norm_epsilon: found NaN",)),
        ("emb_dropout_prob", [None], ("emb_dropout_prob: found a list of 1",)),
        ("dtype", "x", ('dtype: found "x"', "bfloat16")),
        ("vocab_size", "480", ('vocab_size: found "480"',)),
        ("model_type", {}, ("model_type: found an object",)),
        ("pad_token_id", "x", ('pad_token_id: found "x"',)),
        ("hidden_size", 64, ("output_dim",)),
    ],
)
def test_a_field_of_a_configuration_that_cannot_be_is_named(
    copy: Path, field: str, value: Any, words: tuple[str, ...]
):
    change(copy / "config.json", **{field: value})
    refused(lambda: checkpoint.load_config(copy), str(copy / "config.json"), *words)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("layers", 10**30, "visual.layers: found a number of 31 digits"),
        ("patch_size", 0, "visual.patch_size: found 0"),
        ("patch_size", 0.5, "visual.patch_size: found 0.5"),
        ("patch_size", 13, "patch_size is 13, expected at most image_size 12"),
        ("image_size", 1e308, "visual.image_size: found 1e+308"),
        ("heads", 3, "visual['width'] is 16, expected a multiple of visual['heads'] 3"),
        ("n_queries", 5, "n_queries is 5, expected a square number"),
        ("mlp_ratio", [[]], "visual.mlp_ratio: found a list of 1"),
    ],
)
def test_so_is_one_of_the_eye(copy: Path, field: str, value: Any, words: str):
    visual = json.loads((copy / "config.json").read_text())["visual"]
    change(copy / "config.json", visual=visual | {field: value})
    refused(lambda: checkpoint.load_config(copy), str(copy / "config.json"), words)


def test_the_parts_of_every_family_have_limits(tmp_path: Path):
    folder = GRIDS["qwen2.5-vl"].write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["depth"] = config["text_config"]["num_hidden_layers"] = 10**12
    (folder / "config.json").write_text(json.dumps(config))
    refused(
        lambda: checkpoint.load(folder), "vision_config.depth: found", "text_config.num_hidden_layers: found"
    )


GRID = {"merge_size": 2, "size": {"shortest_edge": 128, "longest_edge": 1536}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            GRID | {"size": {"shortest_edge": 10**9, "longest_edge": 10**9}},
            "size.shortest_edge: found 1000000000",
        ),
        (GRID | {"min_pixels": 10**9}, "min_pixels: found 1000000000"),
        (GRID | {"temporal_patch_size": 65536}, "temporal_patch_size: found 65536"),
        (GRID | {"patch_size": 4000}, "patch_size: found 4000"),
        (GRID | {"merge_size": 1000}, "merge_size: found 1000"),
        ({"size": {"shortest_edge": 10**5}}, "size.shortest_edge: found 100000"),
        ({"size": {"longest_edge": 10**5}}, "size.longest_edge: found 100000"),
        ({"size": {"height": 10**9, "width": 10}}, "size.height: found 1000000000"),
        ({"size": 10**9}, "size: found 1000000000"),
        ({"crop_size": {"height": 10**5, "width": 20}}, "crop_size: found"),
        ({"max_image_size": {"longest_edge": 10**5}}, "max_image_size: found"),
        ({"max_patches": 10**9}, "max_patches: found 1000000000"),
        ({"image_grid_pinpoints": [[10**9, 10**9]]}, "image_grid_pinpoints: found a list"),
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pictures_that_would_become_too_large_are_refused(
    tmp_path: Path, file: str, settings: dict[str, Any], words: str
):
    nested = file == "processor_config.json"
    (tmp_path / file).write_text(json.dumps({"image_processor": settings} if nested else settings))
    words = f"image_processor.{words}" if nested else words
    refused(lambda: checkpoint_files.check_processor(tmp_path), f"{tmp_path / file}: ", words)


def test_processors_as_published_and_larger_pass(tmp_path: Path):
    grid = {"merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 2**34}, "crop_size": None}
    for settings in (
        grid | {"min_pixels": 10**6, "max_pixels": 10**9, "temporal_patch_size": 2},
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        {"size": {"height": 896, "width": 896}, "max_patches": 40},
        {
            "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 37) for j in range(1, 37)],
            "size": 384,
        },
    ):
        for name, content in (
            ("preprocessor_config.json", settings),
            ("processor_config.json", {"image_processor": settings}),
        ):
            (tmp_path / name).write_text(json.dumps(content))
        checkpoint_files.check_processor(tmp_path)


def test_what_no_model_can_be_built_from_is_one_message_too(tmp_path: Path):
    folder = GRIDS["qwen2.5-vl"].write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    refused(lambda: checkpoint.load(folder), str(folder / "config.json"), "ZeroDivisionError")


def test_a_word_without_end_is_refused_and_not_repeated(tmp_path: Path):
    """transformers prints an unknown kind of position whole, several times."""
    config = {"text_config": {"rope_parameters": {"rope_type": "x" * 70_000}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(
        lambda: checkpoint_files.check_config(tmp_path),
        str(tmp_path / "config.json"),
        "text_config.rope_parameters.rope_type: found text of 70,000 characters",
    )


@pytest.mark.parametrize("name", SHAPES)
def test_published_configurations_pass(tmp_path: Path, name: str):
    from finetune.model.checkpoint_files import check_config

    (tmp_path / "config.json").write_text(json.dumps(SHAPES[name].config))
    check_config(tmp_path)


def test_qwen_vl_as_published_and_ten_times_as_large():
    QwenVLConfig()
    QwenVLConfig(
        hidden_size=16384, num_hidden_layers=160, num_attention_heads=128, intermediate_size=98304,
        visual={
            "heads": 64, "image_size": 1792, "image_start_id": 151857, "layers": 96, "mlp_ratio": 4.9231,
            "output_dim": 16384, "patch_size": 14, "width": 8192, "n_queries": 1024,
        },
    )  # fmt: skip


def test_weights_of_another_shape_than_the_configuration_says(copy: Path):
    change(copy / "config.json", intermediate_size=32)
    refused(lambda: checkpoint.load(copy), str(copy), "other shapes than config.json says")


def test_weights_that_were_cut_short(copy: Path):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(lambda: checkpoint.load(copy), str(path), "was cut short")
    path.write_bytes(b"")
    refused(lambda: checkpoint.load(copy), str(path), "was cut short")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"data_offsets": 3}}',
        b'{"a": {"data_offsets": [0, "x"]}}',
        b"[" * 50_000,
    ],
)
def test_a_header_of_weights_that_is_none(tmp_path: Path, header: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert weights.is_cut_short(path)


def test_an_index_of_weights_that_is_none(copy: Path):
    (copy / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    refused(lambda: checkpoint.load(copy), "model.safetensors.index.json: weight_map: found a list of 1")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (lambda lines: [*lines[:7], b"IQ== 6", *lines[8:]], "256 lines with 255 tokens"),
        (lambda lines: [*lines[:-1], lines[-1].split()[0] + b" 254"], "255 ranks up to 254"),
        (lambda lines: lines[:200], "no token for 56 single bytes (the first is 200)"),
        (lambda lines: [*lines[:-1], lines[-1].split()[0] + b" 9999"], "ranks up to 9,999"),
    ],
    ids=["a token twice", "a rank twice", "cut at a line", "a gap"],
)
def test_a_vocabulary_that_tiktoken_would_panic_of(
    checkpoint_folder: Path, tmp_path: Path, lines: Callable[[list[bytes]], list[bytes]], words: str
):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"\n".join(lines((checkpoint_folder / path.name).read_bytes().splitlines())))
    refused(lambda: QwenVLTokenizer(str(path)), str(path), words)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_checkpoint_with_a_damaged_file_is_one_message_or_opens(copy: Path, name: str):
    content = json.loads((copy / name).read_text())
    open_ = checkpoint.load_config if name == "config.json" else checkpoint.load_processor
    opened = sum(survives(copy, copy / name, damaged(content, seed), open_) for seed in SEEDS)
    assert opened < len(SEEDS) / 2


def survives(folder: Path, path: Path, content: bytes, work: Callable[[Path], Any]) -> bool:
    """Does ``work`` come to its end? Else its ValueError names the folder, and says it in 2 kB."""
    path.write_bytes(content)
    try:
        work(folder)
    except ValueError as error:
        assert len(str(error)) < 2000 and str(folder) in str(error), (content[:300], error)
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# A run's folder
# ---------------------------------------------------------------------------------------------------------------------

MARKS = {"learning_rate": 1e-3, "lora_target_modules": ["w1"]}


def write_run(folder: Path) -> Path:
    checkpoint_ = folder / "checkpoint-5"
    checkpoint_.mkdir(parents=True)
    (checkpoint_ / "trainer_state.json").write_text('{"global_step": 5, "epoch": 1.0, "log_history": []}')
    torch.save({}, checkpoint_ / "optimizer.pt")
    save_file({"w": torch.zeros(5, 3)}, checkpoint_ / "adapter_model.safetensors")
    run_folder.write_run(folder, MARKS, finished=False)
    run_folder.mark_complete(checkpoint_, processes=1)
    return checkpoint_


def begin(folder: Path) -> run_folder.Start:
    return run_folder.begin(folder, MARKS, resume=None, overwrite=False, world_size=1, deepspeed=False)


@pytest.mark.parametrize(
    "name", ["run.json", "checkpoint-5/complete.json", "checkpoint-5/trainer_state.json"]
)
def test_a_run_with_a_damaged_file_is_one_message_or_goes_on(tmp_path: Path, name: str):
    write_run(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    for seed in SEEDS:
        survives(tmp_path, tmp_path / name, damaged(content, seed), begin)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('"x"', 'found "x", expected an object'),
        ('{"version": 1, "finished": true, "marks": -1}', "marks: found -1, expected an object"),
        ('{"version": 1, "finished": 1, "marks": {}}', "finished: found 1, expected true or false"),
        ('{"version": 2, "finished": true, "marks": {}}', "version: found 2, expected 1"),
        ('{"version": 1, "finished": true}', "marks: missing"),
        ("[" * 50_000, "nested too deep"),
        ("9" * 5000, "thousands of digits"),
        ("", "is empty"),
    ],
)
def test_a_run_file_that_is_none_is_named(tmp_path: Path, content: str, words: str):
    (tmp_path / "run.json").write_text(content)
    refused(lambda: begin(tmp_path), str(tmp_path / "run.json"), words, "--output_dir")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("1", "was not written to its end"),
        ("[]", "was not written to its end"),
        ('{"version": 1, "files": {}}', "was not written to its end"),
        ('{"version": 1, "processes": "x", "files": {}}', "was not written to its end"),
        ('{"version": 1, "processes": 1, "files": {"optimizer.pt": [1, 2]}}', "was not written to its end"),
        (
            json.dumps({"version": 1, "processes": 1, "files": {"x" * 9999: 1}}),
            "is missing",
        ),
        ('{"version": 1, "processes": 1, "files": {"a\\u0000b": 1}}', "is missing"),
        ("[" * 50_000, "was not written to its end"),
    ],
)
def test_a_mark_that_is_none_is_no_mark(tmp_path: Path, content: str, fault: str):
    (write_run(tmp_path) / "complete.json").write_text(content)
    found = begin(tmp_path)
    assert found.how == "new" and fault in found.lines[0] and len(found.lines[0]) < 400


@pytest.mark.parametrize(
    "state", ["{}", "[]", '{"global_step": -1}', '{"global_step": "5"}', "{", "[" * 50_000]
)
def test_a_state_without_a_step_is_no_checkpoint(tmp_path: Path, state: str):
    checkpoint_ = write_run(tmp_path)
    (checkpoint_ / "trainer_state.json").write_text(state)
    run_folder.mark_complete(checkpoint_, processes=1)
    found = begin(tmp_path)
    assert found.how == "new" and "trainer_state.json" in found.lines[0]


# ---------------------------------------------------------------------------------------------------------------------
# The mechanism
# ---------------------------------------------------------------------------------------------------------------------


def test_a_field_is_found_by_its_path_and_all_faults_are_told_at_once():
    shape = {"version": fields.one_of(1), "part": {"size": fields.whole(1, 9), "name": fields.TEXT}}
    content = {"version": True, "part": {"size": 2.5, "name": None}}
    assert list(fields.faults(content, shape, required=("version", "other"))) == [
        "other: missing",
        "version: found true, expected 1",
        "part.size: found 2.5, expected a whole number from 1 to 9",
        "part.name: found null, expected text",
    ]
    assert list(fields.faults({"version": 1, "part": {"size": 2.0}}, shape)) == []
    assert list(fields.faults({"part": []}, shape)) == ["part: found a list of 0, expected an object"]


def test_many_faults_are_cut():
    shape = {str(n): fields.TRUTH for n in range(1000)}
    refused(
        lambda: fields.check(dict.fromkeys(shape, "x" * 9999), shape, "f.json"),
        "f.json:\n  0: found",
        "\n  …",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {"b": 1, "b": 2}}', 'the key "b" appears twice in one object; keep one'),
        ('{"a": "\\ud83d"}', "half of a UTF-16 pair"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
    ],
)
def test_what_python_would_read_in_silence_is_an_error(text: str, words: str):
    refused(lambda: fields.parse(text, "f.json"), "f.json: ", words)
    fields.parse("[" * 100 + "]" * 100, "f.json")


@pytest.mark.parametrize("text", ['[{RECORD, "output": "no"}]', '{RECORD, "output": "no"}\n{RECORD}\n'])
def test_a_key_that_stands_twice_in_a_sample_is_a_fault(tmp_path: Path, text: str):
    path = tmp_path / ("data.json" if text.startswith("[") else "data.jsonl")
    path.write_text(text.replace("RECORD", '"instruction": "say", "output": "yes"'))
    refused(
        lambda: source.read(path, say=lambda _: None),
        "record 0",
        'the key "output" appears twice in one object',
    )


def test_a_list_of_samples_that_stands_twice_is_an_error(tmp_path: Path):
    (tmp_path / "data.json").write_text('{"data": [{"a": 1}], "data": [{"a": 2}]}')
    refused(lambda: source.read(tmp_path / "data.json", say=lambda _: None), "found the list 'data' twice")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_file_that_never_ends_is_not_opened(tmp_path: Path, make: Callable[[str], None]):
    make(str(tmp_path / "run.json"))
    refused(lambda: fields.read(tmp_path / "run.json"), "run.json: found a folder, a pipe or a device")


def test_names_of_a_file_neither_steer_a_terminal_nor_fill_a_message():
    content = {f"\x1b[2J{n}\n": "x" for n in range(5)} | {"y" * 5_000: "x"}
    refused(
        lambda: fields.check(content, dict.fromkeys(content, fields.TRUTH), "f.json"),
        r"\x1b[2J0\n: found",
        "yyy…",
    )


@pytest.mark.parametrize("marks", [None, [], "bf16"])
def test_a_run_of_no_marks_is_not_exported(tmp_path: Path, marks: Any):
    from finetune.export import history_of

    (tmp_path / "run.json").write_text(
        json.dumps({"version": 1, "finished": True, "marks": marks, "missing": ""})
    )
    refused(lambda: history_of(tmp_path), "run.json: marks: found", "expected an object")


@pytest.mark.parametrize(
    "change",
    [
        lambda processor: processor["image_processor"]["size"].update(shortest_edge=None),
        lambda processor: processor["image_processor"].update(patch_size="4"),
    ],
    ids=["size", "patch"],
)
def test_a_processor_that_cannot_read_a_picture_is_refused_when_it_is_opened(
    tmp_path: Path, change: Callable[[Any], None]
):
    folder = GRIDS["qwen2.5-vl"].write(tmp_path)
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refused(lambda: checkpoint.load_processor(folder), str(folder))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a tiny Qwen2.5-VL, saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    base = GRIDS["qwen2.5-vl"].write(tmp_path_factory.mktemp("base"))
    model, _ = checkpoint.load(base)
    folder = base / "adapter"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return folder


def test_an_adapter_with_a_tensor_under_another_name_is_not_taken_for_an_earlier_release_s(
    adapter: Path, tmp_path: Path
):
    copied = Path(shutil.copytree(adapter, tmp_path / "copy"))
    checkpoint.check(copied)
    tensors = load_file(copied / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file({**tensors, f"{name}x": tensors[name].clone()}, copied / "adapter_model.safetensors")
    refused(lambda: checkpoint.check(copied), f"{name}x")
    del tensors[name]
    renamed = {**tensors, name.replace("layers", "layer"): torch.zeros(2, 3)}
    save_file(renamed, copied / "adapter_model.safetensors")
    refused(lambda: checkpoint.check(copied), f"{name}: found none in the adapter")


def test_an_adapter_of_nan_is_refused(adapter: Path, tmp_path: Path):
    copied = Path(shutil.copytree(adapter, tmp_path / "copy"))
    tensors = load_file(copied / "adapter_model.safetensors")
    tensors[sorted(tensors)[0]] *= float("nan")
    save_file(tensors, copied / "adapter_model.safetensors")
    refused(lambda: checkpoint.load(copied), str(copied), "found NaN or infinity")


@pytest.mark.parametrize("comment", ["// why", "# why", "/* why */"])
def test_a_comment_in_json_is_named(comment: str):
    refused(
        lambda: fields.parse(f'{{"a": 1,\n{comment}\n"b": 2}}', "f.json"),
        "f.json: broken JSON at line 2",
        "comments",
    )
    refused(lambda: fields.parse(f"{comment}\n{{}}", "f"), "f: broken JSON at line 1", "comments")
