"""The preview of a run: labels in colour, lengths by source, steps, memory; a dry run needs no weights."""

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune.data.dataset import build_dataset
from finetune.data.lengths import Lengths
from finetune.data.schedule import Schedule, StepShape
from finetune.families.base import Encoded, ImageTokens
from finetune.families.qwen_vl import QwenVLFamily
from finetune.flags.arguments import TrainingArguments
from finetune.model import adaptation, checkpoint
from finetune.model.adaptation import Plan, adapt
from finetune.model.memory_estimate import GIB, Sharding
from finetune.samples.conversation import Conversation, Turn
from finetune.training.preview import (
    Preview,
    Samples,
    histogram,
    memory_line,
    memory_step,
    memory_text,
    patches,
    picture_text,
    quantise_outline,
    sample_text,
    sharding_of,
    source_table,
    step_text,
    visible,
    wants_colour,
)
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)

FAMILY = QwenVLFamily()
GREEN, DIM, CYAN, PLAIN = "\033[1;32m", "\033[2m", "\033[36m", "\033[0m"


# --- a sample and its labels ---------------------------------------------------------------------------------------


class Letters:
    """A processor whose token n is the n-th letter; 0 is a line break."""

    class tokenizer:  # noqa: N801  (as processors have it)
        @staticmethod
        def decode(ids: list[int]) -> str:
            return "".join("\n" if one == 0 else chr(96 + one) for one in ids)


def sample(labels: list[int]) -> Encoded:
    """``ab(2 image tokens)c⏎de`` with these labels."""
    picture = ImageTokens(np.array([2, 3]), (1, 2), np.zeros((2, 4)), (20, 14), False)
    return Encoded(np.array([1, 2, 9, 9, 3, 0, 4, 5]), np.array(labels), ((0, 5), (5, 8)), (picture,))


def test_each_run_of_labels_is_a_line_of_its_own():
    text = sample_text(sample([-100] * 5 + [0, 4, -100]), Letters, name="d.json: record 3", colour=False)
    assert text.splitlines() == [
        "d.json: record 3: 8 tokens, 2 trained, 1 image",
        "        | ab(2 image tokens)c",
        "  train | ⏎d",
        "        | e",
    ]


def test_labels_in_colour():
    text = sample_text(sample([-100] * 5 + [0, 4, 5]), Letters, name="x", colour=True)
    assert text.splitlines()[1:] == [
        f"  {DIM}      | ab{PLAIN}{CYAN}(2 image tokens){PLAIN}{DIM}c{PLAIN}",
        f"  {GREEN}train | ⏎de{PLAIN}",
    ]


def test_answers_learned_after_another_prompt_are_told_wherever_in_a_source_they_are(tmp_path: Path):
    tiny = HYBRIDS["qwen3.5"]
    one = (Turn("user", ("what?",)), Turn("assistant", ("red",)))
    conversations = [Conversation(one, f"one {i}") for i in range(99)]
    dataset = build_dataset(
        [*conversations, Conversation(one * 2, "several")], tiny.processor(tmp_path), tiny.family,
        max_length=300, on_bad_sample="error", workers=1,
    )  # fmt: skip
    settings = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    shown = Preview(nn.Module(), dataset, settings, packing=False, precision=torch.float32)
    assert "several" in shown.samples().partition("note: ")[2]
    dataset.conversations = conversations
    dataset.source_of = dataset.source_of[:-1]
    assert "note: " not in shown.samples()


def test_the_first_token_is_not_trained_for_nothing_predicts_it():
    text = sample_text(sample([1, 2] + [-100] * 6), Letters, name="x", colour=False)
    assert "8 tokens, 1 trained" in text and text.splitlines()[1:3] == ["        | a", "  train | b"]


def test_the_labels_themselves_are_left_alone():
    encoded = sample([1, 2] + [-100] * 6)
    sample_text(encoded, Letters, name="x", colour=False)
    assert encoded.labels[0] == 1


def test_nothing_in_data_can_command_the_terminal():
    assert visible("a\n\t\x1b[2J\x9b1m\x7f\u202eb") == "a⏎␉␛[2J[U+009B]1m[U+007F][U+202E]b"
    assert visible("塔 é 👩\u200d🚀 <|im_end|>") == "塔 é 👩\u200d🚀 <|im_end|>"


@pytest.mark.parametrize(
    ("variables", "terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
    ],
)
def test_colour_is_for_terminals_and_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, expected: bool
):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    assert wants_colour(stream) is expected


# --- lengths -------------------------------------------------------------------------------------------------------


def samples(
    names: tuple[str, ...] = ("base", "spheres"), source_of: tuple[int, ...] = (0, 1, 0, 1)
) -> Samples:
    turns = (Turn("user", ("a",)), Turn("assistant", ("b",)))
    conversations = [Conversation(turns, f"/home/x/d.json: record {i} (id 'a/b')") for i in range(4)]
    lengths = Lengths(
        np.array([10, 40, 30, 1000]),
        np.array([5, 10, 15, 200]),
        np.array([0, 8, 24, 900]),
        np.array([0, 1, 2, 3]),
        np.zeros(4, int),
    )
    return Samples(conversations, lengths, names, np.array(source_of))


def test_the_table_of_sources_by_hand():
    assert [line.split() for line in source_table(samples()).splitlines()] == [
        ["source", "samples", "tokens", "trained", "pictures", "longest"],
        ["base", "2", "40", "20", "(50%)", "2", "30", "d.json:", "record", "2", "(id", "'a/b')"],
        ["spheres", "2", "1,040", "210", "(20%)", "4", "1,000", "d.json:", "record", "3", "(id", "'a/b')"],
        ["all", "4", "1,080", "230", "(21%)", "6", "1,000", "d.json:", "record", "3", "(id", "'a/b')"],
    ]
    assert source_table(samples(("data",), (0, 0, 0, 0))).splitlines()[1:][0].split()[0] == "data"
    assert len(source_table(samples(("data",), (0, 0, 0, 0))).splitlines()) == 2
    filmed = samples(("base", "films"), (0, 0, 1, 1))
    filmed = filmed._replace(lengths=filmed.lengths._replace(videos=np.array([0, 0, 1, 2])))
    table = [line.split() for line in source_table(filmed).splitlines()]
    assert table[0][5:7] == ["videos", "longest"] and [row[6] for row in table[1:]] == ["0", "3", "3"]
    empty = source_table(samples(("base", "empty"), (0, 0, 0, 0))).splitlines()[2]
    assert empty.split() == ["empty", "0", "0", "0", "0"]


def test_tokens_a_picture_by_hand():
    """12 and 12 of one sample, 8 of another, three times 300 of a third."""
    assert picture_text(samples()).splitlines() == [
        "tokens per picture, base: 12 in each",
        "tokens per picture, spheres: 8 to 300, median 300 (a sample's mean where it has several)",
    ]
    assert picture_text(samples(("data",), (0, 0, 0, 0))) == (
        "tokens per picture: 8 to 300, median 156 (a sample's mean where it has several)"
    )
    none = samples(("data",), (0, 0, 0, 0))
    assert (
        picture_text(none._replace(lengths=none.lengths._replace(images=np.zeros(4, int)))) == "no pictures"
    )  # type: ignore[union-attr]


def test_a_coarse_histogram_by_hand():
    lines = histogram(np.array([1] * 3 + [9] + [16] * 40)).splitlines()
    assert [line.split()[:4] for line in lines][:2] == [["1", "-", "2", "3"], ["3", "-", "4", "0"]]
    assert lines[-1].split() == ["15", "-", "16", "40", "█" * 40]
    assert lines[0].count("█") == 3 and lines[4].count("█") == 1 and lines[1].count("█") == 0
    assert histogram(np.array([7, 7])).split() == ["7", "-", "7", "2", "█" * 40]


# --- steps ---------------------------------------------------------------------------------------------------------


def arguments(**changes: Any) -> Any:
    settings = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "world_size": 1, "max_steps": -1,
        "num_train_epochs": 3.0, "deepspeed": None, "optim": "adamw_torch", "activation_checkpointing": False,
        "warmup_steps": 0, "learning_rate": 1e-4,
    }  # fmt: skip
    return SimpleNamespace(**{**settings, **changes})


def steps_of(rows: int, *, capacity: int | None = None, **changes: Any) -> str:
    args = arguments(**changes)
    shape = StepShape(args.per_device_train_batch_size, args.world_size, args.gradient_accumulation_steps)
    tokens = np.full(rows, 40)
    return step_text(Schedule(lambda _: np.arange(rows), shape, tokens=tokens, capacity=capacity), args, rows)


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (12, {}, "3 steps per epoch of 12 samples, 9 in total (3 epochs); 4 samples per step"),
        (13, {}, "4 steps per epoch of 13 samples, 12 in total (3 epochs); 4 samples per step"),
        (
            13,
            {"world_size": 3},
            "2 steps per epoch of 13 samples, 6 in total (3 epochs); 12 samples per step",
        ),
        (1, {"world_size": 4}, "1 step per epoch of 1 samples, 3 in total (3 epochs); 16 samples per step"),
        (
            13,
            {"max_steps": 10},
            "4 steps per epoch of 13 samples, 10 in total (2.5 epochs); 4 samples per step",
        ),
        (
            13,
            {"capacity": 90},
            "2 steps per epoch of 13 samples in 7 packed rows, 6 in total (3 epochs); 4 packed rows",
        ),
    ],
)
def test_steps_in_words(rows: int, changes: dict[str, Any], expected: str):
    assert steps_of(rows, **changes).startswith(expected)
    processes = changes.get("world_size", 1)
    product = "(2 per device × 2 accumulated)" if processes == 1 else f"accumulated × {processes} processes)"
    assert steps_of(rows, **changes).endswith(product)


# --- memory, without weights ---------------------------------------------------------------------------------------


PLANS = [
    Plan(language="full", connector="full"), Plan(rank=4, connector="full"), Plan(rank=4, dora=True, embeddings=True),
    Plan(rank=4, vision="lora", connector="lora"),
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_outline_without_weights_has_the_table_and_the_memory_of_the_model(
    checkpoint_folder: Path, plan: Plan, dtype: torch.dtype
):
    real, processor = checkpoint.load(checkpoint_folder, dtype=dtype, for_training=True)
    outline = checkpoint.skeleton(checkpoint.load_config(checkpoint_folder)).to(dtype)
    models = [adapt(model, FAMILY, plan, master_weights=True) for model in (real, outline)]
    assert all(parameter.is_meta for parameter in models[1].parameters())
    tables = [adaptation.table(model, FAMILY) for model in models]
    assert tables[0] == tables[1]
    longest = encoded(processor)
    steps = [
        memory_step(model, FAMILY, arguments(), longest=longest, tokens=70, precision=dtype)
        for model in models
    ]
    assert steps[0] == steps[1] and steps[0] is not None


def test_an_outline_in_four_bit_is_what_loading_makes(checkpoint_folder: Path):
    real, processor = checkpoint.load(
        checkpoint_folder, dtype=torch.bfloat16, quantize=True, for_training=True
    )
    outline = checkpoint.skeleton(checkpoint.load_config(checkpoint_folder)).to(torch.bfloat16)
    models = [adapt(model, FAMILY, Plan(rank=4), master_weights=True) for model in (real, outline)]
    quantise_outline(models[1], FAMILY)
    tables = [adaptation.table(model, FAMILY) for model in models]
    assert tables[0] == tables[1] and any("uint8" in row.precision for row in tables[0])
    longest = encoded(processor)
    steps = [
        memory_step(model, FAMILY, arguments(), longest=longest, tokens=70, precision=torch.bfloat16)
        for model in models
    ]
    assert steps[0] == steps[1] and steps[0] is not None


def encoded(processor: Any) -> Encoded:
    turns = (Turn("user", ("what is it?",)), Turn("assistant", ("yes yes",)))
    return FAMILY.encode(processor, Conversation(turns))


def test_a_step_is_of_a_batch_of_the_longest(checkpoint_folder: Path):
    model, processor = checkpoint.load(checkpoint_folder, dtype=torch.bfloat16, for_training=True)
    model = adapt(model, FAMILY, Plan(rank=4, vision="full"), master_weights=True)
    turns = (Turn("user", ("what?",)), Turn("assistant", ("yes",)))
    longest = FAMILY.encode(processor, Conversation(turns))
    cells = ImageTokens(np.arange(4), (3, 5), np.zeros((15, 4)), (20, 14), True)
    longest = Encoded(longest.input_ids, longest.labels, longest.turn_spans, (cells, cells))
    tokens = 2 * len(longest.input_ids)  # packed into a row of twice its length
    step = memory_step(
        model, FAMILY, arguments(activation_checkpointing=True), longest=longest, tokens=tokens,
        precision=torch.bfloat16,
    )  # fmt: skip
    assert step is not None
    assert [(stack.depth, stack.tokens) for stack in step.stacks] == [(2, 2 * tokens), (1, 2 * 2 * 15)]
    trained = 2 * int((longest.labels[1:] != -100).sum())
    assert (
        step.rows == 2 * 2 * trained and step.trained_rows == 2 * trained
    )  # rows with none in common, at worst
    assert (step.width, step.stream_width, step.is_mixed, step.checkpointing) == (2, 2, True, True)
    assert step.vocabulary == 480
    merging = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    assert patches(longest, merging) == 2 * 15 * 4
    assert "MiB at the longest samples" in memory_line(step, None)
    assert "to reduce it" in memory_text(step, tokens, 2, ("a GPU", GIB))
    assert "to reduce it" not in memory_text(step, tokens, 2, None)
    assert "not known" in memory_text(None, 9, 2, None) and memory_line(None, None) == "memory: not estimated"


def test_what_deepspeed_shares_out(tmp_path: Path):
    assert sharding_of(arguments(world_size=2)) == Sharding(ranks=2)
    config = {
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "offload_param": {"device": "none"},
        }
    }
    expected = Sharding(3, 4, is_deepspeed=True, offloads_optimizer=True, offloads_weights=False)
    assert sharding_of(arguments(deepspeed=config, world_size=4)) == expected
    root = Path(__file__).parents[3]
    for stage in (2, 3):
        found = sharding_of(arguments(deepspeed=str(root / f"ds_config_zero{stage}.json")))
        assert (found.stage, found.offloads_optimizer) == (stage, False)


def test_checkpointing_goes_by_both_names(tmp_path: Path, checkpoint_folder: Path):
    model, processor = checkpoint.load(checkpoint_folder, for_training=True)
    model = adapt(model, FAMILY, Plan(rank=4), master_weights=True)
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        args = TrainingArguments(output_dir=str(tmp_path), report_to="none", **{name: True})
        step = memory_step(
            model, FAMILY, args, longest=encoded(processor), tokens=70, precision=torch.float32
        )
        assert step is not None and step.checkpointing
        assert step.optimizer == "adamw_torch"


# --- the program ---------------------------------------------------------------------------------------------------


def dry(program: ModuleType, flags: Callable[..., list[str]], *more: str) -> int:  # noqa: F811
    return program.main(flags("--use_lora", "True", "--dry_run", "True", *more))


def test_a_dry_run_loads_no_weight_and_tells_everything(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path / "cache"))
    second = tmp_path / "second"
    second.mkdir()
    (second / "spheres.json").write_text(data_file.read_text().replace("<img>", f"<img>{data_file.parent}/"))
    assert dry(program, flags, "--corrective_data", f"{second / 'spheres.json'}:0.25") == 0
    shown = capsys.readouterr().out
    assert shown.count("  train | yes yes <|im_end|>⏎") == 2  # a sample of each source, one with a picture
    assert "<img>(4 image tokens)</img>⏎what?" in shown
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines() if "json: record 7" in line}
    assert rows == {"data": "12", "spheres": "12", "all": "24"}
    assert "tokens per picture, data: 4 in each\ntokens per picture, spheres: 4 in each" in shown
    assert "sample lengths in tokens:" in shown and "language: adapters" in shown
    assert "estimated memory of a step with a batch of 4 × 98 tokens" in shown and "\n  peak " in shown
    assert "16 samples, 4 in total (1 epochs); 4 samples per step\n" in shown
    last = shown.splitlines()[-1].removeprefix("dry run: nothing was trained; written, for later runs: ")
    assert [Path(one) for one in last.split(", ")] == [*(tmp_path / "cache" / "lengths").iterdir()]
    assert not (tmp_path / "out").exists()
    assert dry(program, flags, "--corrective_data", f"{second / 'spheres.json'}:0.25") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "dry run: nothing was trained or written"


def test_a_run_begins_with_the_short_form_of_the_same(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    capsys: pytest.CaptureFixture,
):
    more = ("--max_steps", "1", "--save_strategy", "no")
    assert dry(program, flags, *more) == 0
    whole = capsys.readouterr().out.splitlines()
    assert program.main(flags("--use_lora", "True", *more)) == 0
    brief = capsys.readouterr().out.splitlines()
    table = [line for line in whole if line.startswith(("vision", "connector", "language", "all"))]
    assert table == [line for line in brief if line.startswith(("vision", "connector", "language", "all"))]
    assert [line for line in brief if line.startswith("memory: about ")]
    [steps] = [line for line in whole if " samples per step" in line]
    assert steps in brief and "tokens per picture: 4 in each" in brief
    assert "sample lengths in tokens:" not in brief


def test_a_dry_run_of_an_adapter_to_go_on_from_of_packed_rows_and_of_a_stream(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    assert program.main(flags("--use_lora", "True", "--max_steps", "1", "--save_strategy", "no")) == 0
    elsewhere = ("--output_dir", str(tmp_path / "other"))
    assert dry(program, flags, "--lora_weight_path", str(tmp_path / "out"), *elsewhere) == 0
    assert "language: adapters" in capsys.readouterr().out
    assert dry(program, flags, "--packing", "True", "--model_max_length", "200", *elsewhere) == 0
    shown = capsys.readouterr().out
    assert "12 samples in 6 packed rows" in shown and "with a batch of 4 × 200 tokens" in shown
    assert dry(program, flags, "--streaming", "True", "--model_max_length", "300", *elsewhere) == 0
    shown = capsys.readouterr().out
    assert (
        "12 samples, streamed: lengths are not counted in advance" in shown
        and "with a batch of 4 × 300 tokens" in shown
    )
    assert not (tmp_path / "other").exists()
