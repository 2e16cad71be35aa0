"""What a run says of its sources: the table without what was left out, and evaluation data that is trained on."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from attention_finetune import inputs
from finetune.data.dataset import ConversationDataset
from finetune.flags import parse
from finetune.flags.arguments import Arguments
from tests.finetune.families.tiny_families import GRIDS


def write(path: Path, *answers: str) -> str:
    turns = [[{"from": "user", "value": "what?"}, {"from": "assistant", "value": one}] for one in answers]
    path.write_text(json.dumps([{"id": str(i), "conversations": one} for i, one in enumerate(turns)]))
    return str(path)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write(tmp_path / "base.json", *["base"] * 14)


def arguments(base: str, *more: str) -> Arguments:
    flags = (
        "--model_name_or_path",
        "m",
        "--data_path",
        base,
        "--model_max_length",
        "80",
        "--on_bad_sample",
        "drop",
    )
    return parse.parse([*flags, *more])[0]


def built(args: Arguments, folder: Path, data, **kind: bool) -> ConversationDataset:
    tiny = GRIDS["qwen2-vl"]
    return inputs.build_dataset(args, data, tiny.processor(folder), tiny.family, **kind)


@pytest.mark.parametrize(("long", "seen"), [(5, [2, 1]), (0, [12, 6])])
def test_the_table_is_printed_anew_where_samples_were_left_out(base, long, seen, tmp_path, capsys):
    """Of 6 corrective samples with a share of a third 5 are too long: the other ends an epoch after 2 of the base."""
    answers = ["x" * 200] * long + ["short"] * (6 - long)
    args = arguments(base, "--corrective_data", f"{write(tmp_path / 'more.json', *answers)}:0.34")
    mixed = inputs.read_mixture(args)
    capsys.readouterr()
    made = built(args, tmp_path, mixed)
    said = capsys.readouterr().out
    assert [part.seen for part in made.mixture.parts] == seen
    line = "samples were left out, so an epoch is no longer that of the table above, but:\n"
    assert said.count(line + made.mixture.table_text()) == said.count("seen an epoch") == bool(long)


@pytest.mark.parametrize(
    ("evaluated", "flag"),
    [("base", "data_path"), ("copy", "data_path"), ("more", "corrective_data"), ("other", "")],
)
@pytest.mark.parametrize("best", [True, False])
def test_evaluation_data_that_is_trained_on_is_said_and_not_called_held_out(
    base, evaluated, flag, best, tmp_path, capsys
):
    more = write(tmp_path / "more.json", *["more"] * 14)
    paths = {"base": base, "copy": str(shutil.copy(base, tmp_path / "copy.json")), "more": more}
    path = paths.get(evaluated) or write(tmp_path / "other.json", *["else"] * 14)
    args = arguments(
        base, "--corrective_data", f"{more}:x2", "--eval_data_path", path, "--eval_strategy", "steps"
    )
    args = dataclasses.replace(args, training=dataclasses.replace(args.training, load_best_model_at_end=best))
    data = inputs.read_data(args, path)
    capsys.readouterr()
    made = built(args, tmp_path, data, for_training=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert made.is_held_out is not bool(flag) and len(lines) == bool(flag)
    for line in lines:
        assert line.startswith(
            f"warning: --eval_data_path {path} is trained on: --{flag} {paths.get(evaluated, '')[:5]}"
        )
        assert ("kept as the best" in line) == best


def test_a_folder_of_parquet_that_holds_the_evaluation_data_is_found(base, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("a.parquet", "b.parquet"):
        (folder / name).write_bytes(name.encode())
    found = [
        [*inputs.evaluated_and_trained(arguments(str(folder), "--eval_data_path", str(path)))]
        for path in (folder, folder / "b.parquet", base)
    ]
    assert [len(lines) for lines in found] == [1, 1, 0]
