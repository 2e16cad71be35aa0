"""``--config run.yaml``: its values apply, flags override them, and errors name the key."""

from pathlib import Path

import pytest

from finetune.flags import parse, run_file
from finetune.training import run_folder
from tests.finetune.hostile import damaged

RUN = {
    "model_name_or_path": "m", "data_path": "d.json", "use_lora": True, "lora_r": 4, "learning_rate": 1e-5,
    "lora_target_modules": ["c_attn", "w1"], "eval_data_path": None,
}  # fmt: skip
TEXT = """
# what was found to be best
model_name_or_path: m
data_path: d.json
use_lora: true
lora_r: 4
learning_rate: 1e-5
lora_target_modules: [c_attn, w1]
eval_strategy: no
warmup_ratio: 0.1
lr_scheduler_kwargs: {num_cycles: 2}
eval_data_path:
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d.json", "e.json", "f.json"):
        Path(name).write_text("[]")
    Path("run.yaml").write_text(TEXT)


def test_a_file_of_flags_counts_and_flags_beside_it_win():
    args, lines = parse.parse(["--config", "run.yaml", "--lora_r", "8", "--seed=3"])
    chosen = args.adaptation
    assert (chosen.use_lora, chosen.lora_r, chosen.lora_target_modules) == (True, 8, ["c_attn", "w1"])
    assert (args.training.learning_rate, args.training.seed) == (1e-5, 3)
    assert (args.training.eval_strategy, args.training.lr_scheduler_kwargs) == ("no", {"num_cycles": 2})
    assert args.training.warmup_steps == 0.1 and lines[0].startswith(
        "--warmup_ratio 0.1: is now --warmup_steps"
    )
    first, _ = parse.parse(["--lora_r", "8", "--config", "run.yaml"])
    assert first.adaptation.lora_r == 8


def test_the_usual_flags_of_a_script_give_way_to_the_file():
    usual = ["--lora_r", "64", "--weight_decay", "0.1", "--model_name_or_path", "other"]
    args, _ = parse.parse([*usual, "--given", "--config", "run.yaml", "--seed", "3"])
    assert (args.adaptation.lora_r, args.model.model_name_or_path, args.training.weight_decay) == (
        4,
        "m",
        0.1,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lora_rank: 4", "--lora_rank: unknown flag; did you mean --local_rank or --lora_r?"),
        ("lora_r: [[1]]", "lora_r: found a list of 1, expected a value"),
        ("lora_r: 4\nlora_r: 5", "lora_r: given twice"),
        ("a: &a [1]\nb: *a", "found an alias"),
        ("- lora_r", "found a list of 1, expected one flag with its value"),
        ("lora_r", 'found "lora_r", expected one flag'),
        ("lora_r: [", "broken YAML"),
        ("4: 5", "found an object of 1, expected one flag"),
        ("config: other.yaml", "a file cannot name another"),
        ("data_path: [d.json, e.json]", "--data_path: found 2 values (d.json e.json), expected one"),
        ("x: " + "[" * 50_000, "--config run.yaml: "),
        ("lora_r: 0", "--lora_r: found 0"),
    ],
)
def test_what_is_wrong_in_the_file_is_told(text: str, words: str):
    Path("run.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        parse.parse(["--config", "run.yaml"])
    assert words in str(caught.value) and len(str(caught.value)) < 2000


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match="--config none.yaml: cannot be read"):
        parse.parse(["--config", "none.yaml"])


def test_a_damaged_file_is_one_message_or_read():
    for seed in range(30):
        Path("run.yaml").write_bytes(damaged(RUN, seed))
        try:
            parse.parse(["--config", "run.yaml"])
        except ValueError as error:
            assert len(str(error)) < 2000


GIVEN = {
    "lora": ["--use_lora", "True", "--lora_target_modules", "c_attn", "w1", "--learning_rate", "1e-5"],
    "strategies": [
        "--eval_strategy", "steps", "--eval_data_path", "d.json", "--save_strategy", "no", "--report_to", "none",
        "--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": 2}', "--warmup_steps", "0.1",
    ],
    "sources": [
        "--corrective_data", "e.json:x2", "--replay_data", "f.json:0.3", "--gradient_checkpointing", "True",
        "--gradient_checkpointing_kwargs", '{"use_reentrant": false}', "--optim", "adafactor",
        "--monitor", "True", "--probes", "d.json", "--key_layers", "0,1",
        "--box_units", "text", "--output_dir", "a folder: 东方明珠 # 1",
    ],
    "bare": ["--no_fix_vit", "--seed", "0", "--include_num_input_tokens_seen", "True", "--fp16", "False"],
}  # fmt: skip


@pytest.mark.parametrize("name", list(GIVEN))
def test_what_is_written_gives_the_same_arguments(name: str):
    flags = ["--model_name_or_path", "m", "--data_path", "d.json", *GIVEN[name]]
    args, _ = parse.parse(flags)
    Path("written.yaml").write_text(run_file.text_of(args), encoding="utf-8")
    again, lines = parse.parse(["--config", "written.yaml"])
    assert lines == []
    here = {"data_path", "eval_data_path", "corrective_data", "replay_data", "probes"}  # named in full
    for group in ("model", "data", "adaptation", "evaluation", "monitor"):
        kept, given = vars(getattr(again, group)), vars(getattr(args, group))
        assert {key: kept[key] for key in kept if key not in here} == {
            key: given[key] for key in given if key not in here
        }
        for key in here & set(given):
            assert str(kept[key]).replace(f"{Path.cwd()}/", "") == str(given[key])
    before, after = args.training.to_dict(), again.training.to_dict()
    assert after["output_dir"] == str(Path.cwd() / before.pop("output_dir"))
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {}


@pytest.mark.parametrize(
    ("flags", "beside", "name", "found"),
    [
        (("--load_best_model_at_end", "True"), ("--metric_for_best_model", "exact_match", "--eval_generate", "8"),
         "greater_is_better", True),
        (("--load_best_model_at_end", "True", "--metric_for_best_model", "exact_match", "--eval_generate", "8"),
         ("--metric_for_best_model", "loss"), "greater_is_better", False),
        (("--torch_compile", "True"), ("--torch_compile", "False"), "torch_compile", False),
    ],
    ids=["answers", "loss", "not compiled"],
)  # fmt: skip
def test_what_follows_from_another_flag_follows_from_the_one_beside_the_file(flags, beside, name, found):
    evaluated = ("--eval_data_path", "e.json", "--eval_strategy", "steps")
    args, _ = parse.parse(["--model_name_or_path", "m", "--data_path", "d.json", *evaluated, *flags])
    Path("written.yaml").write_text(run_file.text_of(args), encoding="utf-8")
    again, _ = parse.parse(["--config", "written.yaml", *beside])
    assert getattr(again.training, name) is found


def test_the_file_of_a_run_that_was_moved_says_where_it_lies(tmp_path: Path):
    """It names the old folder in full, in which training would begin anew."""
    args, _ = parse.parse(["--model_name_or_path", "m", "--data_path", "d.json", "--output_dir", "runs/out"])
    out = tmp_path / "runs" / "out"
    out.mkdir(parents=True)
    (out / "run.yaml").write_text(run_file.text_of(args), encoding="utf-8")
    (out / "run.json").write_text("{}")
    given = ["--config", str(out / "run.yaml")]
    assert parse.parse(given)[0].training.output_dir == str(out)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    parse.parse(["--config", str(tmp_path / "link" / "out" / "run.yaml")])

    moved = tmp_path / "moved"
    out.rename(moved)
    given = ["--config", str(moved / "run.yaml")]
    with pytest.raises(
        ValueError, match=f"names the output folder {out}, but its run lies in {moved}.*--output_dir"
    ):
        parse.parse(given)
    for place in (moved, tmp_path / "new"):
        assert parse.parse([*given, "--output_dir", str(place)])[0].training.output_dir == str(place)
    (moved / "run.json").unlink()  # a copy of the flags alone
    assert parse.parse(given)[0].training.output_dir == str(out)


def test_from_another_folder_it_names_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There may be others of the same names, which would be trained on in silence."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    names = ["d.json", "e.json", "f.json", "a:0.5.json"]
    for name in names:
        (tmp_path / name).write_text("[]")
    flags = [
        "--model_name_or_path", "mine", "--data_path", "d.json", "--corrective_data", "e.json:0.3", "./a:0.5.json:x2",
        "--replay_data", "f.json", "--eval_data_path", "e.json", "--image_folder", ".", "--cache_dir", "fetched",
        "--monitor", "True", "--probes", "d.json", "--calibration_probes", "f.json", "--baseline", "mine",
        "--logging_dir", "logs", "--output_dir", "out",
    ]  # fmt: skip
    args, _ = parse.parse(flags)
    (tmp_path / "written.yaml").write_text(run_file.text_of(args), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in names:
        Path(name).write_text("[1]")
    again, _ = parse.parse(["--config", "../written.yaml"])
    data, monitor = again.data, again.monitor
    assert again.model.model_name_or_path == str(tmp_path / "mine")
    assert again.model.cache_dir == str(tmp_path / "fetched")
    assert (data.data_path, data.eval_data_path) == (str(tmp_path / "d.json"), str(tmp_path / "e.json"))
    assert data.corrective_data == [f"{tmp_path}/e.json:0.3", f"{tmp_path}/a:0.5.json:x2"]
    assert (data.replay_data, data.image_folder) == ([f"{tmp_path}/f.json"], str(tmp_path))
    assert (monitor.probes, monitor.baseline) == (str(tmp_path / "d.json"), str(tmp_path / "mine"))
    assert monitor.calibration_probes == str(tmp_path / "f.json")
    assert again.training.logging_dir == str(tmp_path / "logs")


@pytest.mark.parametrize("name", ["Qwen/Qwen-VL-Chat", "m"])
def test_names_of_the_hub_stay(name: str):
    args, _ = parse.parse(["--model_name_or_path", name, "--data_path", "d.json"])
    assert f"\nmodel_name_or_path: {name}\n" in run_file.text_of(args)


def test_what_is_written_holds_no_secret_and_nothing_of_one_start():
    flags = ["--model_name_or_path", "m", "--data_path", "d.json", "--hub_token", "hf_secret"]
    args, _ = parse.parse([*flags, "--overwrite_output_dir", "True", "--resume_from_checkpoint", "there"])
    text = run_file.text_of(args)
    assert "hf_secret" not in text and "token:" not in text.lower()
    assert "\noverwrite_output_dir" not in text and "\nresume_from_checkpoint" not in text


def test_a_run_leaves_the_file_in_its_folder_whole():
    args, _ = parse.parse(["--model_name_or_path", "m", "--data_path", "d.json"])
    run_folder.write_configuration(Path("out"), args)
    assert [path.name for path in Path("out").iterdir()] == ["run.yaml"]
    assert parse.parse(["--config", "out/run.yaml"])[0].model == args.model
    run_folder.write_run(Path("out"), {}, finished=True)
    run_folder.clear(Path("out"))
    assert list(Path("out").iterdir()) == []
