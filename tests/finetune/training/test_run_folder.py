import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune import folder_lock
from finetune.files import write_atomically
from finetune.flags.parse import parse
from finetune.training import run_folder
from finetune.training.run_folder import Start, begin

MARKS = {"learning_rate": 1e-3, "lora_target_modules": ["w1"], "seed": 42}


def start(folder: Path, marks: dict = MARKS, **changes) -> Start:
    options = {"resume": None, "overwrite": False, "world_size": 1, "deepspeed": False}
    return begin(folder, marks, **{**options, **changes})


def add_checkpoint(folder: Path, step: int, *, complete: bool = True, processes: int = 1) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    torch.save({"state": torch.zeros(7)}, checkpoint / "optimizer.pt")
    save_file({"w": torch.zeros(5, 3)}, checkpoint / "adapter_model.safetensors")
    if complete:
        run_folder.mark_complete(checkpoint, processes=processes)
    return checkpoint


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A run that was killed: three checkpoints, the newest half-written."""
    folder = tmp_path / "out"
    run_folder.write_run(folder, MARKS, finished=False)
    for step in (50, 100):
        add_checkpoint(folder, step)
    add_checkpoint(folder, 1000, complete=False)
    return folder


def test_a_new_folder_starts_from_the_beginning(tmp_path: Path):
    assert start(tmp_path / "out") == Start("new", None, ())
    (tmp_path / "notes.txt").write_text("mine")
    assert start(tmp_path).how == "new"


def test_the_same_command_resumes_from_the_last_complete_checkpoint(unfinished: Path):
    found = start(unfinished)
    assert (found.how, found.checkpoint) == ("resume", unfinished / "checkpoint-100")
    assert found.lines == (
        f"{unfinished / 'checkpoint-1000'}: was not written to its end; skipped",
        f"resuming from {unfinished / 'checkpoint-100'}",
    )


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path):
    run_folder.write_run(tmp_path, MARKS, finished=False)
    assert start(tmp_path).how == "new"


def test_a_finished_run_says_so(tmp_path: Path):
    run_folder.write_run(tmp_path, MARKS, finished=True)
    add_checkpoint(tmp_path, 50)
    found = start(tmp_path)
    assert found.how == "finished" and "this run is already finished" in found.lines[0]


def test_a_finished_run_that_lacks_something_makes_its_end_again_where_training_was_whole(tmp_path: Path):
    folder = tmp_path / "out"
    checkpoint = add_checkpoint(folder, 50)
    run_folder.write_run(folder, MARKS, finished=True, missing="pictures")
    state = checkpoint / "trainer_state.json"

    def begun(**steps) -> Start:
        state.write_text(json.dumps(steps))
        run_folder.mark_complete(checkpoint, processes=1)
        found = start(folder)
        folder_lock.release(folder)
        return found

    assert begun(global_step=50, max_steps=50)[:2] == ("resume", checkpoint)
    # It stopped earlier, or does not say how many: resuming would train on.
    for steps in ({"max_steps": 51}, {"max_steps": -1}, {"max_steps": 0}, {}):
        found = begun(global_step=50, **steps)
        assert (found.how, found.missing) == ("finished", "pictures")
    begun(global_step=50, max_steps=50)
    (folder / "comparison").mkdir()
    (folder / "comparison" / "index.html").write_text("made by hand since")
    os.utime(folder / "comparison" / "index.html", (2**33, 2**33))
    assert start(folder)[::3] == ("finished", "")


def test_what_a_finished_run_in_a_closed_folder_lacks_is_said(tmp_path: Path, monkeypatch):
    folder = tmp_path / "out"
    checkpoint = add_checkpoint(folder, 50)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 50, "max_steps": 50}))
    run_folder.mark_complete(checkpoint, processes=1)
    run_folder.write_run(folder, MARKS, finished=True, missing="pictures")

    def closed(folder) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_lock, "take", closed)
    assert start(folder)[::3] == ("finished", "pictures")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda c: cut(c / "adapter_model.safetensors"),
            "adapter_model.safetensors has 131 bytes, expected 132",
        ),
        (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda c: (c / "complete.json").write_text("{"), "was not written to its end"),
    ],
    ids=["cut short", "gone", "half a mark"],
)
def test_a_checkpoint_that_was_harmed_later_is_passed_over(unfinished: Path, harm, words: str):
    harm(unfinished / "checkpoint-100")
    found = start(unfinished)
    assert found.checkpoint == unfinished / "checkpoint-50"
    assert found.lines[1].startswith(f"{unfinished / 'checkpoint-100'}: {words}")
    assert found.lines[1].endswith("; skipped")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda c: None, None),
        (lambda c: cut(c / "adapter_model.safetensors"), "adapter_model.safetensors is truncated"),
        (
            lambda c: (c / "adapter_model.safetensors").write_bytes(b"\7\0\0"),
            "adapter_model.safetensors is truncated",
        ),
        (lambda c: cut(c / "optimizer.pt"), "optimizer.pt is truncated"),
        (
            lambda c: (c / "optimizer.pt").unlink(),
            "holds no optimizer state (was it saved with --save_only_model",
        ),
        (
            lambda c: (c / "trainer_state.json").unlink(),
            "holds no trainer_state.json, which transformers' Trainer",
        ),
    ],
    ids=["whole", "cut weights", "cut header", "cut optimizer", "weights alone", "of no Trainer"],
)
def test_a_checkpoint_of_another_trainer_is_checked_before_use(tmp_path: Path, harm, words: str | None):
    foreign = add_checkpoint(tmp_path / "theirs", 3, complete=False)
    harm(foreign)
    if words is None:
        assert start(tmp_path / "out", resume=str(foreign)).checkpoint == foreign
        return
    with pytest.raises(
        ValueError, match=f"--resume_from_checkpoint: .*{re.escape(words)}.*--lora_weight_path"
    ):
        start(tmp_path / "out", resume=str(foreign))


def test_marks_of_an_earlier_release_name_no_files(unfinished: Path):
    checkpoint = unfinished / "checkpoint-100"
    (checkpoint / "complete.json").write_text('{"version": 1, "processes": 1}')
    assert start(unfinished).checkpoint == checkpoint
    cut(checkpoint / "optimizer.pt")
    assert start(unfinished).checkpoint == unfinished / "checkpoint-50"


def test_another_run_is_not_touched(unfinished: Path):
    with pytest.raises(ValueError) as caught:
        start(unfinished, MARKS | {"seed": 1})
    message = str(caught.value)
    assert "holds another run:\n  seed: 42 there, 1 now" in message
    assert "learning_rate" not in message
    assert "--resume_from_checkpoint True" in message and "--overwrite_output_dir True" in message


def test_another_run_resumes_on_request(unfinished: Path):
    assert start(unfinished, MARKS | {"seed": 1}, resume="True").checkpoint == unfinished / "checkpoint-100"


def test_content_of_unknown_origin_is_refused(tmp_path: Path):
    add_checkpoint(tmp_path, 7)
    with pytest.raises(ValueError, match=r"holds another run \(checkpoint-7\) without a run\.json"):
        start(tmp_path)
    with pytest.raises(ValueError, match=r"without a run\.json"):
        start(tmp_path, overwrite=True)
    assert (tmp_path / "checkpoint-7").exists()


def test_overwriting_deletes_the_run_and_nothing_else(unfinished: Path):
    for name in ("runs", "attention", "comparison", "mine"):
        (unfinished / name).mkdir()
    for name in ("adapter_model.safetensors", "look.json", "seen.json", "notes.txt"):
        (unfinished / name).write_text("")
    assert start(unfinished, MARKS | {"seed": 1}, overwrite=True).how == "new"
    assert sorted(path.name for path in unfinished.iterdir()) == ["mine", "notes.txt", "run.lock"]


def test_a_named_checkpoint_must_be_one(unfinished: Path, tmp_path: Path):
    assert (
        start(unfinished, resume=str(unfinished / "checkpoint-50")).checkpoint == unfinished / "checkpoint-50"
    )
    with pytest.raises(ValueError, match=r"--resume_from_checkpoint: .*nothing holds no complete checkpoint"):
        start(unfinished, resume=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"checkpoint-1000 holds no complete checkpoint"):
        start(unfinished, resume=str(unfinished / "checkpoint-1000"))
    with pytest.raises(ValueError, match=r"--resume_from_checkpoint True: .*holds no complete checkpoint"):
        start(tmp_path / "empty", resume="True")


def test_deepspeed_needs_as_many_processes_as_before(tmp_path: Path):
    run_folder.write_run(tmp_path, MARKS, finished=False)
    add_checkpoint(tmp_path, 50, processes=2)
    assert start(tmp_path, world_size=1).how == "resume"
    with pytest.raises(
        ValueError, match=r"saved by 2 processes under DeepSpeed, and there are 1 now.*GPUS_PER_NODE=2"
    ):
        start(tmp_path, world_size=1, deepspeed=True)


def test_checkpoints_are_ordered_by_step(tmp_path: Path):
    for step in (1000, 50, 200):
        add_checkpoint(tmp_path, step)
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == [
        f"checkpoint-{n}" for n in (50, 200, 1000)
    ]


def test_the_fingerprint_knows_model_data_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "d.json"
    data.write_text("[1]")

    def marks(*flags: str, processes: int = 1) -> dict:
        args, _ = parse(["--model_name_or_path", "m", "--data_path", str(data), "--output_dir", "o", *flags])
        return run_folder.fingerprint(args, processes)

    before = marks()
    assert json.loads(json.dumps(before)) == before
    assert marks("--logging_steps", "3", "--save_steps", "7") == before
    assert marks("--learning_rate", "1") != before
    assert marks("--use_lora", "True", "--lora_r", "4") != before
    # The same samples a step, cut differently, are the same run.
    assert (
        marks("--per_device_train_batch_size", "4")
        == marks("--per_device_train_batch_size", "2", processes=2)
        == marks("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4")
    )
    more = tmp_path / "more.json"
    more.write_text("[3]")
    mixed = marks("--corrective_data", f"{more}:0.3")
    assert json.loads(json.dumps(mixed)) == mixed
    twice = marks("--corrective_data", f"{more}:x2")
    lines = run_folder._differences(mixed, twice)
    assert len(lines) == 1 and lines[0].startswith(f"  corrective_data {more}: ") and "0.3" in lines[0]
    assert len(run_folder._differences(before, mixed)) == 2  # where it is and how much of it, and its content
    assert marks("--replay_data", f"{more}:0.3") != mixed
    more.write_text("[4]")
    assert [
        line.split(":")[0]
        for line in run_folder._differences(mixed, marks("--corrective_data", f"{more}:0.3"))
    ] == [f"  corrective_data {more} sha256"]
    data.write_text("[2]")
    assert marks()["data sha256"] != before["data sha256"]
    for flags in (
        ("--packing", "True"), ("--box_units", "pixels"), ("--image_folder", str(tmp_path)), ("--max_pixels", "9000"),
        ("--use_lora", "True", "--use_dora", "True"), ("--vision", "lora"), ("--connector_learning_rate", "1e-4"),
        ("--streaming", "True"), ("--data_format", "qwen-vl"), ("--use_lora", "True", "--lora_weight_path", "a"),
    ):  # fmt: skip
        name = flags[-2].removeprefix("--")
        assert [
            line for line in run_folder._differences(marks(), marks(*flags)) if line.startswith(f"  {name}:")
        ]


def test_sources_in_another_order_are_another_run(tmp_path: Path):
    """Which sample stands where, and what --data_fraction keeps, goes by a source's place among the others."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.json").write_text(f'["{name}"]')

    def marks(*sources: str, flag: str = "--corrective_data") -> dict:
        given = [str(tmp_path / f"{name}.json:x2") for name in sources]
        flags = ["--model_name_or_path", "m", "--data_path", str(tmp_path / "a.json"), flag, *given]
        return run_folder.fingerprint(parse(flags)[0], 1)

    for flag in ("--corrective_data", "--replay_data"):
        before, now = marks("b", "c", flag=flag), marks("c", "b", flag=flag)
        run_folder.write_run(tmp_path / flag, before, finished=False)
        assert start(tmp_path / flag, before).how == "new"
        with pytest.raises(
            ValueError, match=r"order of the sources: \[.*b\.json.*c\.json.*there, .*c\.json.*b\.json"
        ):
            start(tmp_path / flag, now)
        del before["order of the sources"]  # of a release that did not write it down
        run_folder.write_run(tmp_path / flag, before, finished=False)
        assert start(tmp_path / flag, marks("b", "c", flag=flag)).how == "new"
    assert "order of the sources" not in marks("b")


def test_a_run_of_an_earlier_release_resumes(tmp_path: Path):
    """Its marks lack the flags that came later; those have their default now."""
    data = tmp_path / "d.json"
    data.write_text("[1]")
    flags = ["--model_name_or_path", "m", "--data_path", str(data), "--output_dir", "o"]
    now = run_folder.fingerprint(parse(flags)[0], 1)
    first_release = {
        "model_name_or_path", "data_path", "data sha256", "model_max_length", "on_bad_sample", "samples a step",
        "deepspeed", "use_lora", "q_lora", "fix_vit", "train_connector", "train_embeddings", "lora_r", "lora_alpha",
        "lora_dropout", "lora_target_modules", "lora_bias", "learning_rate", "num_train_epochs", "max_steps",
        "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "adam_beta1", "adam_beta2", "adam_epsilon",
        "max_grad_norm", "label_smoothing_factor", "seed", "data_seed", "bf16", "fp16", "train_sampling_strategy",
    }  # fmt: skip
    before = {name: value for name, value in now.items() if name in first_release}
    assert len(before) == len(first_release) < len(now)
    run_folder.write_run(tmp_path / "out", before, finished=False)
    assert start(tmp_path / "out", now).how == "new"
    other = run_folder.fingerprint(parse([*flags, "--packing", "True"])[0], 1)
    with pytest.raises(ValueError, match="packing: False there, True now"):
        start(tmp_path / "out", other)


def test_a_folder_of_data_is_known_by_its_files(tmp_path: Path):
    folder = tmp_path / "data"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "a.parquet").write_text("one")
    (folder / "b.parquet").write_text("two")

    def content(*, names_alone: bool = False) -> str:
        return run_folder._content(folder, names_alone=names_alone)

    before, sizes = content(), content(names_alone=True)
    (folder / "b.parquet").write_text("owt")
    assert content() != before and content(names_alone=True) == sizes
    (folder / "b.parquet").write_text("two")
    assert content() == before
    (folder / "b.parquet").rename(folder / "c.parquet")
    assert content() != before and content(names_alone=True) != sizes


def test_without_a_base_the_working_directory_is_not_taken_for_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "towers.json").write_text("[]")
    flags = ["--model_name_or_path", str(tmp_path), "--corrective_data", "towers.json"]
    before = run_folder.fingerprint(parse(flags)[0], 1)
    (tmp_path / "notes.txt").write_text("written meanwhile")
    assert run_folder.fingerprint(parse(flags)[0], 1) == before
    (tmp_path / "towers.json").write_text("[1]")
    assert run_folder.fingerprint(parse(flags)[0], 1) != before


def test_a_resumed_run_lists_changed_flags(unfinished: Path):
    for resume in ("True", str(unfinished / "checkpoint-100")):
        lines = start(unfinished, MARKS | {"seed": 1}, resume=resume).lines
        assert "going on with other flags than it began with:" in lines and "  seed: 42 there, 1 now" in lines


@pytest.mark.parametrize("word", ["True", "true", "TRUE", "yes"])
def test_true_is_no_folder(unfinished: Path, word: str):
    assert start(unfinished, resume=word).checkpoint == unfinished / "checkpoint-100"


@pytest.mark.parametrize("word", ["False", "FALSE", "no", "none", ""])
def test_nor_is_false(unfinished: Path, word: str):
    with pytest.raises(ValueError, match="holds another run"):
        start(unfinished, MARKS | {"seed": 1}, resume=word)


def test_a_runs_folder_in_the_place_of_a_checkpoint(unfinished: Path):
    with pytest.raises(ValueError, match=r"its newest checkpoint is .*checkpoint-100\)"):
        start(unfinished, resume=str(unfinished))
    with pytest.raises(
        ValueError, match=r"gone holds no complete checkpoint of a run: there is no such folder"
    ):
        start(unfinished, resume=str(unfinished / "gone"))


def test_another_run_in_the_folder_is_not_written_over_by_going_on(unfinished: Path, tmp_path: Path):
    best = shutil.copytree(unfinished / "checkpoint-50", tmp_path / "best")
    with pytest.raises(ValueError, match="seed: 42 there, 1 now"):
        start(unfinished, MARKS | {"seed": 1}, resume=str(best))
    assert start(tmp_path / "new", resume=str(best)).checkpoint == best


def test_a_checkpoint_with_deepspeed_is_none_without(unfinished: Path):
    with pytest.raises(
        ValueError, match=r"saved without DeepSpeed, and this run is with it.*leave out --deepspeed"
    ):
        start(unfinished, deepspeed=True)
    for step in (50, 100):
        (unfinished / f"checkpoint-{step}" / "global_step5").mkdir()
    assert start(unfinished, deepspeed=True).how == "resume"
    with pytest.raises(
        ValueError, match=r"saved with DeepSpeed, and this run is without it.*give --deepspeed"
    ):
        start(unfinished)


def test_a_folder_that_cannot_be_written_to_is_refused_and_nothing_is_left_of_the_attempt(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/none/out")):
        with pytest.raises(ValueError, match=f"--output_dir {folder}: (cannot be written to|is a file)"):
            start(folder)
    start(tmp_path / "one" / "two")
    folder_lock.release_all()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_temporary_files_of_a_killed_run_go_when_it_goes_on(unfinished: Path):
    left = [unfinished / ".tmpKR5cyl", unfinished / "attention" / "step-000050" / ".tmpKR5cyl"]
    kept = [unfinished / "attention" / "step-000050" / "a.safetensors", unfinished / "notes.txt"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    start(unfinished)
    assert [path.exists() for path in left] == [False, False] and all(path.exists() for path in kept)


def test_temporary_files_where_no_run_of_ours_is_stay(tmp_path: Path):
    (tmp_path / ".tmpKR5cyl").write_bytes(b"")
    start(tmp_path)
    assert (tmp_path / ".tmpKR5cyl").exists()


def test_later_checkpoints_of_a_branch_that_is_left_are_set_aside(unfinished: Path):
    """The next start would take one of them for its newest."""
    (line,) = run_folder.set_beyond_aside(unfinished, 50)
    assert (
        line
        == f"{unfinished}: going on from step 50; later checkpoints (checkpoint-100) are in superseded/ now"
    )
    assert run_folder.last_complete(unfinished)[0] == unfinished / "checkpoint-50"
    assert (unfinished / "checkpoint-1000").exists()  # half-written: passed over anyway
    add_checkpoint(unfinished, 100)
    run_folder.set_beyond_aside(unfinished, 50)
    kept = ["checkpoint-100", "checkpoint-100-2"]
    assert sorted(path.name for path in (unfinished / "superseded").iterdir()) == kept
    assert run_folder.set_beyond_aside(unfinished, 50) == []
    run_folder.clear(unfinished)
    assert not (unfinished / "superseded").exists()


def test_the_verdict_of_a_branch_that_is_left_is_set_aside(unfinished: Path):
    """It would stand in the cards of the branch that goes on."""
    judged = {"model": f"{unfinished} at step 100", "step": 100}
    text = json.dumps({"groups": {}, "probes": [], "after": judged})
    for name in ("comparison", "comparison-2"):
        write_atomically(unfinished / "comparison" / "comparison.json", text.encode())
        assert run_folder.set_beyond_aside(unfinished, 100) == []  # only its end is made up
        line = run_folder.set_beyond_aside(unfinished, 50)[-1]
        assert line == (
            f"{unfinished}: going on from step 50; the comparison of step 100 is in superseded/{name}/ now"
        )
        assert not (unfinished / "comparison").exists()
        assert (unfinished / "superseded" / name / "comparison.json").read_text() == text


def test_what_chooses_the_final_weights_is_a_mark(tmp_path: Path):
    data = tmp_path / "d.json"
    data.write_text("[1]")
    base = ["--model_name_or_path", "m", "--data_path", str(data), "--use_lora", "True"]

    def marks(*flags: str) -> dict:
        return run_folder.fingerprint(parse([*base, *flags])[0], 1)

    def different(before: dict, now: dict) -> list[str]:
        return [*run_folder._differing(before, now)]

    watched = ("--monitor", "True", "--probes", str(data))
    stopped = marks(*watched, "--stop_when", "corrected", "--stop_patience", "1")
    assert different(marks(*watched), stopped) == ["stop_patience", "stop_when"]
    evaluation = tmp_path / "e.json"
    evaluation.write_text("[2]")
    at = (
        "--eval_data_path",
        str(evaluation),
        "--eval_strategy",
        "steps",
        "--save_steps",
        "4",
        "--eval_steps",
    )
    best = ("--load_best_model_at_end", "True")
    one, other = marks(*at, "2", *best), marks(*at, "4", *best)
    assert different(one, other) == ["eval_steps"]
    assert different(marks(*at, "2"), marks(*at, "4")) == []  # evaluation alone changes nothing
    evaluation.write_text("[3]")
    assert different(one, marks(*at, "2", *best)) == ["evaluation data sha256"]
    # A run that was written before these were marks still resumes.
    earlier = {name: value for name, value in one.items() if name not in run_folder._LATER_MARKS}
    assert different(earlier | {"allow_other_base": True}, one) == []


def test_weights_that_were_replaced_at_the_same_path_are_another_model(tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    args, _ = parse(["--model_name_or_path", str(base), "--data_path", str(tmp_path)])

    def weights(value: float) -> str | None:
        save_file({"w": torch.full((5, 3), value)}, base / "model.safetensors")
        return run_folder.fingerprint(args, 1)["model weights"]

    assert weights(1.0) == weights(1.0) != weights(2.0)
    cut(base / "model.safetensors")
    assert "model weights" not in run_folder.fingerprint(args, 1)  # loading says what is wrong


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"deepspeed": True}, "under DeepSpeed"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "with --lr_scheduler_type reduce_lr_on_plateau"),
    ],
)
def test_rates_that_come_back_with_the_checkpoint_cannot_be_given_anew(tmp_path: Path, now: dict, words: str):
    run_folder.write_run(tmp_path, MARKS | now, finished=False)
    (add_checkpoint(tmp_path, 50) / "global_step50").mkdir()
    deepspeed = "deepspeed" in now
    options = {"resume": "True", "deepspeed": deepspeed}
    if not deepspeed:
        (tmp_path / "checkpoint-50" / "global_step50").rmdir()
    with pytest.raises(
        ValueError, match=rf"--learning_rate: found 1.0, expected 0.001: .*{words} a run that resumes cannot"
    ):
        start(tmp_path, MARKS | now | {"learning_rate": 1.0}, **options)
    assert start(tmp_path, MARKS | now | {"seed": 1}, **options).how == "resume"
