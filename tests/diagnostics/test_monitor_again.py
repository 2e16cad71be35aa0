"""AttentionMonitor in a folder that is not empty: a second training, a run that goes on, a loop of one's own."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from diagnostics.drawing.archive_pictures import ArchivePictures
from diagnostics.drawing.board import picture_tags
from diagnostics.drawing.sink import TaggedPicture
from diagnostics.drawing.tensorboard import written_tags
from diagnostics.drawing.worker_client import Rendered
from diagnostics.monitor import AttentionMonitor
from diagnostics.monitoring.moments import best_checkpoint
from diagnostics.monitoring.training_data import LOOKED_THROUGH, UNKNOWN
from diagnostics.records.archive import record_path, recorded_steps
from diagnostics.records.identity import model_difference, model_marks
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import write_probes
from diagnostics.records.record import AttentionRecord
from tests.diagnostics.test_monitor import Samples
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes


class Drawn:
    """Draws one pixel for each picture, at once."""

    def __init__(self, attention_dir) -> None:
        self.attention_dir, self.drawn = attention_dir, []

    def submit(self, step: int) -> None:
        pairs, problems = ArchivePictures.open(self.attention_dir).whole_pairs(step)
        pictures = tuple(TaggedPicture(tag, b"\x89PNG", (1, 1)) for tag in picture_tags(pairs))
        self.drawn.append(Rendered(step, pictures, tuple(problems)))

    def submit_strips(self) -> None: ...

    def poll(self) -> list:
        drawn, self.drawn = self.drawn, []
        return drawn

    close = poll


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    monkeypatch.setattr("diagnostics.drawing.worker_client.Renderer", Drawn)


@pytest.fixture(scope="module")
def probes(folder):
    return tiny_probes(folder)


def swapped(probes):
    """Answer and foil changed for each other."""
    return [replace(one, answer=one.foil, foil=one.answer) for one in probes]


def train(
    output_dir, processor, probes, *, seed=0, resume=None, frozen=(), callbacks=(), monitor=True, watch=None,
    **changes,
):  # fmt: skip
    """Four steps, a checkpoint at each second; returns the monitor and the model."""
    settings = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-3, **changes}
    args = TrainingArguments(
        str(output_dir), per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True, **settings
    )  # fmt: skip
    model = tiny_model(seed=seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(part in name for part in frozen)
    watcher = AttentionMonitor(processor, probes, key_layers=[1], **(watch or {}))
    watched = [watcher] if monitor else []
    samples = Samples(model, processor, probes)
    Trainer(model, args, train_dataset=samples, callbacks=[*callbacks, *watched]).train(
        resume_from_checkpoint=resume
    )
    return watcher, model


def test_one_monitor_without_a_folder_leaves_each_training_in_its_own(tmp_path, processor, probes):
    watcher = AttentionMonitor(processor, probes, key_layers=[1], diagnose=False)
    model = tiny_model()
    samples = Samples(model, processor, probes)
    for name in ("one", "another"):
        args = TrainingArguments(
            str(tmp_path / name), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
        )  # fmt: skip
        Trainer(model, args, train_dataset=samples, callbacks=[watcher]).train()
        assert watcher.output_dir == tmp_path / name
    for name in ("one", "another"):
        assert recorded_steps(tmp_path / name / "attention") == [0, 1]
        assert comparison(tmp_path / name)["after"]["model"].startswith(str(tmp_path / name))
        assert not [*(tmp_path / name).glob("earlier-*")]


@pytest.mark.parametrize("data", ["pictures", "none", "unknown"])
def test_probes_whose_pictures_are_trained_on_are_not_held_out(tmp_path, processor, probes, data, capsys):
    """What is trained on is given by its pictures; where it is not, that is said."""
    pictures = [path for probe in probes for path in probe.images]
    copy = tmp_path / "copy.png"
    shutil.copy(pictures[0], copy)
    given = {"pictures": (path for path in [copy]), "none": LOOKED_THROUGH, "unknown": None}[data]
    out = tmp_path / "out"
    train(out, processor, probes, max_steps=1, watch={"data": given, "diagnose": False})
    said = capsys.readouterr().out
    assert (UNKNOWN in said) == (data == "unknown")
    shares = [probe.id for probe in probes if pictures[0] in probe.images]
    assert (f"in {len(shares)} of {len(probes)} probes a picture is in the training data" in said) == (
        data == "pictures"
    )
    for step in (0, 1):
        folder = out / "attention" / f"step-{step:06d}"
        records = [AttentionRecord.load(record_path(folder, one.id)) for one in probes]
        known = shares if data == "pictures" and step else []
        assert [one.probe_id for one in records if one.trained_picture] == known


def comparison(folder):
    return json.loads((folder / "comparison" / "comparison.json").read_text())


def margins(folder):
    groups = comparison(folder)["groups"].values()
    return [(group["margin_nats"]["before"], group["margin_nats"]["after"]) for group in groups]


@pytest.mark.parametrize(
    "without", [{"foil": None}, {"regions": {}, "phrases": {}}, {"foil": None, "regions": {}, "phrases": {}}]
)
def test_probes_that_allow_less_have_a_report_of_it(tmp_path, processor, probes, without):
    """Over three checkpoints, which have charts: of right answers only where there is a foil to be wrong with."""
    asked = [replace(one, **without) for one in probes]
    watcher, _ = train(tmp_path, processor, asked)
    assert watcher.missing == []
    page = (tmp_path / "comparison" / "index.html").read_text(encoding="utf-8")
    assert ('<h3><span lang="en">right answers</span>' in page) == ("foil" not in without)
    assert ("attention on its region, times the even share" in page) == ("regions" not in without)
    assert '<h3><span lang="en">drift of the maps, nats</span>' in page
    assert "differ from the base beyond chance.</span>" in page  # no look was tested, so none is adjusted


def test_a_diagnosis_that_cannot_be_shown_does_not_end_training(tmp_path, processor, probes, monkeypatch):
    def full(self, words) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diagnostics.monitoring.showing.Showing.diagnosis", full)
    watcher, _ = train(tmp_path, processor, probes)
    assert (tmp_path / "attention" / "diagnosis.json").is_file()
    assert any("the diagnosis in TensorBoard" in one for one in watcher.missing)


# --- a second training -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def first(tmp_path_factory, processor, probes):
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diagnostics.drawing.worker_client.Renderer", Drawn)
        train(folder, processor, probes)
    return folder


@pytest.mark.parametrize("what", ["longer", "another model", "answer and foil swapped"])
def test_a_second_training_into_the_folder_reports_its_own_numbers(
    first, tmp_path, processor, probes, what, capsys
):
    changes = {
        "longer": {"learning_rate": 5e-3},
        "another model": {"seed": 1},
        "answer and foil swapped": {},
    }[what]
    asked = swapped(probes) if "swapped" in what else probes
    shutil.copytree(first, tmp_path / "again")
    train(tmp_path / "again", processor, asked, **changes)
    said = [line for line in capsys.readouterr().out.splitlines() if "earlier training" in line]
    train(tmp_path / "alone", processor, asked, **changes)
    assert margins(tmp_path / "again") == margins(tmp_path / "alone") != margins(first)
    # What was there is kept, and it is said where.
    place = tmp_path / "again" / "earlier-1"
    assert len(said) == 1 and str(place) in said[0]
    assert margins(place) == margins(first) and recorded_steps(place / "attention") == [0, 2, 4]
    assert written_tags(place / "runs") == written_tags(first / "runs")
    assert written_tags(tmp_path / "again" / "runs") == written_tags(tmp_path / "alone" / "runs")


def test_a_start_that_was_killed_before_its_first_checkpoint_leaves_nothing_beside(
    tmp_path, processor, probes, capsys
):
    class Killed(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, processor, probes, callbacks=[Killed()])
    train(tmp_path, processor, probes)
    assert not (tmp_path / "earlier-1").exists() and "earlier training" not in capsys.readouterr().out


@pytest.mark.parametrize("cut", ["in its records", "before them"])
@pytest.mark.parametrize("asked", ["the same", "other probes"])
def test_a_start_that_was_killed_while_its_baseline_was_written_leaves_nothing_beside(
    tmp_path, processor, probes, monkeypatch, capsys, cut, asked
):
    """Neither records that are half a baseline, nor layers that were chosen for it."""
    written, save = [], AttentionRecord.save

    def killed(self, path) -> None:
        if written or cut == "before them":
            raise KeyboardInterrupt
        written.append(path)
        save(self, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AttentionRecord, "save", killed)
        train(tmp_path, processor, probes)
    (tmp_path / "attention" / "calibration.json").write_text("{}")
    again = probes if asked == "the same" else [replace(one, id=f"other-{one.id}") for one in probes]
    train(tmp_path, processor, again)
    assert not (tmp_path / "earlier-1").exists() and "earlier training" not in capsys.readouterr().out
    assert not (tmp_path / "attention" / "calibration.json").exists()
    stored = {path.stem for path in (tmp_path / "attention" / "step-000000").glob("*.safetensors")}
    assert stored == {one.id for one in again}


def test_records_behind_a_link_are_moved_aside_and_not_deleted(tmp_path, processor, probes):
    elsewhere, attention = tmp_path / "elsewhere", tmp_path / "out" / "attention"
    elsewhere.mkdir()
    (elsewhere / "disc-0.safetensors").write_bytes(b"half")
    attention.mkdir(parents=True)
    (attention / "step-000000").symlink_to(elsewhere)
    train(tmp_path / "out", processor, probes)
    assert (elsewhere / "disc-0.safetensors").read_bytes() == b"half"
    assert (tmp_path / "out" / "earlier-1" / "attention" / "step-000000").is_symlink()


def test_the_baseline_of_another_run_of_the_same_model_is_taken_over(
    first, tmp_path, processor, probes, capsys
):
    shutil.copytree(first / "attention", tmp_path / "of" / "attention")
    # A number that only the copy has shows where the baseline comes from.
    place = record_path(tmp_path / "of" / "attention" / "step-000000", probes[0].id)
    record = AttentionRecord.load(place)
    replace(record, scores=replace(record.scores, answer_nats=-77.0)).save(place)
    watch = {"baseline": tmp_path / "of", "checkpoint_depth": "cause"}
    train(tmp_path / "out", processor, probes, watch=watch, learning_rate=2e-3)
    assert "the untrained model's measurements are those of" in capsys.readouterr().out
    taken, at_2 = (
        record_path(tmp_path / "out" / "attention" / f"step-{step:06d}", probes[0].id) for step in (0, 2)
    )
    assert AttentionRecord.load(taken).scores.answer_nats == -77.0
    # what hiding a region costs was measured between as well
    assert {one.kind for one in AttentionRecord.load(at_2).interventions} == {"occlusion"}
    for changes, asked, why in (
        ({"seed": 1}, probes, "another"),
        ({}, swapped(probes), "different question, answer"),
    ):
        train(
            tmp_path / "other", processor, asked, watch={"baseline": tmp_path / "of"}, max_steps=1, **changes
        )
        shown = capsys.readouterr().out
        assert "its baseline is not taken over" in shown and why in shown
    train(tmp_path / "none", processor, probes, watch={"baseline": tmp_path / "nowhere"}, max_steps=1)
    assert "its baseline is not taken over" in capsys.readouterr().out


def test_one_monitor_in_two_trainings(tmp_path, processor, probes):
    watcher, model = train(tmp_path, processor, probes)
    args = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    end = margins(tmp_path)[0][1]
    Trainer(model, args, train_dataset=Samples(model, processor, probes), callbacks=[watcher]).train()
    assert margins(tmp_path)[0][0] == pytest.approx(end, abs=1e-4) and margins(tmp_path)[0][1] != end


# --- going on --------------------------------------------------------------------------------------------
def test_going_on_with_other_probes_layers_or_weights_is_refused(first, tmp_path, processor, probes):
    shutil.copytree(first, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    with pytest.raises(
        ValueError, match=r"probes with a different question, answer, foil, .*: disc-0, disc-1, disc-2\)"
    ):
        train(tmp_path / "run", processor, swapped(probes), resume=checkpoint)
    with pytest.raises(ValueError, match=r"probes removed: disc-2\)"):
        train(tmp_path / "run", processor, probes[:2], resume=checkpoint)
    train(tmp_path / "other", processor, probes, seed=1)
    with pytest.raises(ValueError, match="the checkpoint belongs to another run"):
        train(tmp_path / "run", processor, probes, resume=tmp_path / "other" / "checkpoint-2")
    assert recorded_steps(tmp_path / "run" / "attention") == [0, 2, 4]  # refused, nothing was touched


def test_going_on_over_another_base_is_refused(tmp_path, processor, probes):
    frozen = ("wte", "visual")
    train(tmp_path, processor, probes, frozen=frozen)
    checkpoint = tmp_path / "checkpoint-2"

    class AnotherBase(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **_) -> None:
            with torch.no_grad():
                next(p for name, p in model.named_parameters() if "wte" in name).mul_(1.01)

    with pytest.raises(ValueError, match="a different model: its frozen weights differ"):
        train(tmp_path, processor, probes, frozen=frozen, resume=checkpoint, callbacks=[AnotherBase()])
    train(tmp_path, processor, probes, frozen=frozen, resume=checkpoint)


def test_steps_beyond_the_checkpoint_are_another_training_s(first, tmp_path, processor, probes, capsys):
    shutil.copytree(first, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    checkpoint.rename(tmp_path / "run" / "the-good-one")  # which step it is stands in its state
    train(
        tmp_path / "run", processor, probes, resume=tmp_path / "run" / "the-good-one", ignore_data_skip=True
    )
    attention = tmp_path / "run" / "attention"
    assert "steps 4 lie beyond step 2" in capsys.readouterr().out
    assert recorded_steps(attention / "superseded") == [4] and recorded_steps(attention) == [0, 2, 4]
    assert margins(tmp_path / "run")[0][0] == margins(first)[0][0]
    assert margins(tmp_path / "run")[0][1] != margins(first)[0][1]


def test_a_longer_run_goes_on_from_the_end_of_a_shorter(first, tmp_path, processor, probes):
    shutil.copytree(first, tmp_path / "run")
    train(
        tmp_path / "run",
        processor,
        probes,
        resume=True,
        max_steps=6,
        ignore_data_skip=True,
        save_total_limit=1,
    )
    assert recorded_steps(tmp_path / "run" / "attention") == [0, 2, 4, 6]
    assert comparison(tmp_path / "run")["series"]["steps"] == [0, 2, 4, 6]


@pytest.mark.parametrize("at", ["before the numbers", "before the pictures"])
def test_tags_and_pictures_that_a_kill_cost_are_made_up_for(
    first, tmp_path, processor, probes, monkeypatch, at
):
    show = AttentionMonitor._show

    def killed(self, step, records, *more):
        if step == 2 and at == "before the numbers":
            raise KeyboardInterrupt
        if step == 2:
            monkeypatch.setattr(self._shown, "_pictures", lambda drawn: None)
        show(self, step, records, *more)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(AttentionMonitor, "_show", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, processor, probes)
    monkeypatch.setattr(AttentionMonitor, "_show", show)
    _, model = train(tmp_path, processor, probes, resume=True)
    assert written_tags(tmp_path / "runs") == written_tags(first / "runs")
    tags = [tag for path in (tmp_path / "runs").glob("*") for tag in written_once(path)]
    assert len(tags) == len(set(tags))  # none twice


def written_once(path):
    from diagnostics.drawing.tensorboard import _events

    return [(value.tag, event.step) for event in _events(path) for value in event.summary.value]


def test_a_broken_baseline_is_refused_at_the_start_and_a_broken_step_is_measured_anew(
    first, tmp_path, processor, probes
):
    shutil.copytree(first, tmp_path / "run")
    attention = tmp_path / "run" / "attention"
    cut(record_path(attention / "step-000002", "disc-1"))
    train(tmp_path / "run", processor, probes, resume=tmp_path / "run" / "checkpoint-2")
    record = AttentionRecord.load(record_path(attention / "step-000002", "disc-1"))
    assert (
        record.scores == AttentionRecord.load(record_path(first / "attention/step-000002", "disc-1")).scores
    )
    cut(record_path(attention / "step-000000", "disc-1"))
    with pytest.raises(ValueError, match=r"1 record is incomplete \(disc-1: broken"):
        train(tmp_path / "run", processor, probes, resume=tmp_path / "run" / "checkpoint-2")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


# --- what is missing -------------------------------------------------------------------------------------
def test_a_step_that_is_broken_is_left_out_of_the_comparison_and_named(tmp_path, processor, probes, caplog):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            if state.global_step == 3:
                cut(record_path(tmp_path / "attention" / "step-000002", "disc-0"))
                (tmp_path / "attention" / "step-000000" / "disc-1.safetensors").unlink()

    watcher, _ = train(tmp_path, processor, probes, callbacks=[Break()])
    assert comparison(tmp_path)["series"]["steps"] == [0, 4]
    [missing] = watcher.missing
    assert "step 2 (1 record is incomplete (disc-0: broken" in missing
    assert caplog.messages[-1] == f"attention monitor: {tmp_path} lacks: {missing}"


def test_any_failure_of_the_monitor_leaves_the_training(tmp_path, processor, probes, monkeypatch, caplog):
    def fail(*_, **__):
        raise KeyError("group")

    monkeypatch.setattr("diagnostics.compare.compare", fail)
    watcher, _ = train(tmp_path, processor, probes)
    assert (tmp_path / "checkpoint-4").is_dir()
    assert watcher.missing == ["comparison/: before and after cannot be seen side by side ('group')"]


@pytest.mark.parametrize("max_steps", [4, 8], ids=["at its end", "stopped early"])
def test_the_best_model_is_what_is_compared_where_it_is_loaded(
    tmp_path, processor, probes, max_steps, capsys
):
    class Metric(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **_) -> None:
            metrics["eval_loss"] = float(state.global_step)  # the first checkpoint is the best
            control.should_training_stop = state.global_step == 4

    settings = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "greater_is_better": False,
    }
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True,
        max_steps=max_steps, save_steps=2, learning_rate=1e-3, **settings,
    )  # fmt: skip
    model = tiny_model()
    samples = Samples(model, processor, probes)
    watcher = AttentionMonitor(processor, probes, key_layers=[1])
    Trainer(model, args, train_dataset=samples, eval_dataset=samples, callbacks=[Metric(), watcher]).train()
    second, end = (
        AttentionRecord.load(record_path(tmp_path / "attention" / f"step-00000{step}", "disc-0"))
        for step in (2, 4)
    )
    assert end.scores.answer_nats == pytest.approx(second.scores.answer_nats, abs=1e-4)
    assert "the best, checkpoint-2" in end.model
    shown = EventAccumulator(str(tmp_path / "runs"), {"scalars": 0}).Reload()
    # It is compared, and is no point of what is drawn over steps: it is of step 2.
    assert [one.step for one in shown.Scalars("2 answers/margin_nats/colours")] == [0, 2]
    assert [one.step for one in shown.Scalars("1 verdict/corrected/colours")] == [4]
    found = comparison(tmp_path)
    assert found["after"]["model"] == end.model and found["series"]["steps"] == [0, 2]
    assert "compared is checkpoint-2, the best" in capsys.readouterr().out


def test_the_best_model_is_the_last_steps_own_where_that_was_the_best(tmp_path, processor, probes):
    class Metric(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **_) -> None:
            metrics["eval_loss"] = float(-state.global_step)

    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True,
        max_steps=4, save_steps=2, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2,
        greater_is_better=False,
    )  # fmt: skip
    model, watcher = tiny_model(), AttentionMonitor(processor, probes, key_layers=[1])
    samples = Samples(model, processor, probes)
    Trainer(model, args, train_dataset=samples, eval_dataset=samples, callbacks=[Metric(), watcher]).train()
    found = comparison(tmp_path)
    assert found["after"] == {"model": f"{tmp_path} at step 4", "step": 4}
    assert found["series"]["steps"] == [0, 2, 4] and "onset" in found


@pytest.mark.parametrize("name", ["checkpoint-2", "mine"])
def test_the_best_model_is_of_the_folder_that_is_loaded(tmp_path, name):
    """transformers' own Trainer notes the step of the best evaluation, which may lie between two checkpoints."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "trainer_state.json").write_text('{"global_step": 2}')
    state = TrainerState(best_model_checkpoint=str(tmp_path / name), best_global_step=3)
    assert best_checkpoint(state) == "checkpoint-2"
    (tmp_path / name / "trainer_state.json").unlink()
    assert best_checkpoint(state) == name and best_checkpoint(TrainerState()) == ""


def test_going_on_after_the_best_was_loaded_measures_the_step_itself(tmp_path, processor, probes, capsys):
    """Its records were those of the best checkpoint, and stood for the last one when training went on from there."""

    class Metric(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **_) -> None:
            metrics["eval_loss"] = float(state.global_step)  # the first checkpoint is the best

    def run(folder, steps, *, best, resumed=None):
        more = {"load_best_model_at_end": True, "greater_is_better": False} if best else {}
        args = TrainingArguments(
            str(folder), per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True,
            max_steps=steps, save_steps=2, learning_rate=1e-3, lr_scheduler_type="constant",
            eval_strategy="steps", eval_steps=2, **more,
        )  # fmt: skip
        model, watcher = tiny_model(), AttentionMonitor(processor, probes, key_layers=[1])
        samples = Samples(model, processor, probes)
        trainer = Trainer(
            model, args, train_dataset=samples, eval_dataset=samples, callbacks=[Metric(), watcher]
        )
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))

    def margin(folder, step):
        record = AttentionRecord.load(record_path(folder / "attention" / f"step-00000{step}", "disc-0"))
        return record.scores.margin_nats

    whole, again = tmp_path / "whole", tmp_path / "again"
    run(whole, 6, best=False)
    run(again, 4, best=True)
    assert margin(again, 4) == pytest.approx(margin(whole, 2), abs=1e-4)
    run(again, 6, best=False, resumed=again / "checkpoint-4")
    assert "step 4 was measured on checkpoint-2, the best; their records" in capsys.readouterr().out
    assert [margin(again, step) for step in (2, 4, 6)] == pytest.approx(
        [margin(whole, step) for step in (2, 4, 6)], abs=1e-4
    )
    shown = EventAccumulator(str(again / "runs"), {"scalars": 0}).Reload()
    (*_, last) = [one for one in shown.Scalars("2 answers/margin_nats/colours") if one.step == 4]
    other = EventAccumulator(str(whole / "runs"), {"scalars": 0}).Reload()
    (true,) = [one for one in other.Scalars("2 answers/margin_nats/colours") if one.step == 4]
    assert last.value == pytest.approx(true.value, abs=1e-4)


# --- a loop of one's own ---------------------------------------------------------------------------------
def loop(folder, processor, probes, *, steps, start=0, model=None):
    accelerator = Accelerator(cpu=True)
    model = model or tiny_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05))
    samples = Samples(accelerator.unwrap_model(model), processor, probes)
    watcher = AttentionMonitor(processor, probes, folder, key_layers=[1])
    if start == 0:
        watcher.probe(0, model)
    for step in range(start + 1, steps + 1):
        one = {name: value[None] for name, value in samples[step].items()}
        accelerator.backward(model(**one).loss)
        optimizer.step()
        optimizer.zero_grad()
        if step % 2 == 0:
            assert sorted(watcher.probe(step, model)) == ["disc-0", "disc-1", "disc-2"]
    watcher.finish()
    return watcher, model


def test_an_accelerate_loop_probes_by_hand(tmp_path, processor, probes):
    watcher, model = loop(tmp_path, processor, probes, steps=4)
    assert watcher.missing == [] and model.training is False
    assert comparison(tmp_path)["series"]["steps"] == [0, 2, 4]
    before, after = (
        AttentionRecord.load(record_path(tmp_path / "attention" / f"step-00000{step}", "disc-0"))
        for step in (0, 4)
    )
    assert after.scores.answer_nats != before.scores.answer_nats and len(after.interventions) == 6
    tags = written_tags(tmp_path / "runs")
    assert {step for tag, step in tags if tag == "2 answers/margin_nats/colours"} == {0, 2, 4}
    assert ("3 attention - colours/disc-1/layer_1", 4) in tags
    # It goes on in another process, and refuses what it was not.
    loop(tmp_path, processor, probes, steps=6, start=4, model=model)
    assert comparison(tmp_path)["series"]["steps"] == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="a different question, answer, foil"):
        AttentionMonitor(processor, swapped(probes), tmp_path, key_layers=[1]).probe(8, model)
    with pytest.raises(ValueError, match=r"layers \[1\] there, \[2\] now"):
        AttentionMonitor(processor, probes, tmp_path, key_layers=[2]).probe(8, model)
    with pytest.raises(ValueError, match="names or shapes"):
        wider = tiny_model(intermediate_size=96)
        AttentionMonitor(processor, probes, tmp_path, key_layers=[1]).probe(8, wider)


def test_by_hand_it_needs_a_folder_and_a_step(tmp_path, processor, probes):
    with pytest.raises(ValueError, match="output_dir: found none"):
        AttentionMonitor(processor, probes).probe(0, tiny_model())
    with pytest.raises(ValueError, match="step: found -1"):
        AttentionMonitor(processor, probes, tmp_path).probe(-1, tiny_model())


# --- the model's identity --------------------------------------------------------------------------------
def test_a_model_is_known_by_its_values_not_by_how_they_rest():
    model = tiny_model().bfloat16()
    model.requires_grad_(False)
    marks = model_marks(model)
    assert model_marks(tiny_model().bfloat16().float().requires_grad_(False)) == marks
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1
    assert model_difference(marks, model_marks(model)) == "a different model: its frozen weights differ"
    # What trains moves, and is no sign of another model.
    model = tiny_model()
    marks = model_marks(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert model_difference(marks, model_marks(model)) is None and marks != model_marks(model)


def test_a_group_that_was_to_be_kept_is_not_corrected_on_what_was_measured_of_it(
    tmp_path, processor, probes, capsys
):
    """Of groups to be kept a quick probing hides no region: under another name the cause would never be known."""
    kept = [replace(one, group="neighbour") for one in probes]
    train(tmp_path / "run", processor, kept)
    with pytest.raises(
        ValueError, match="probe disc-0 was measured as one of neighbour, .* call its group neighbour"
    ):
        train(tmp_path / "run", processor, probes, resume=tmp_path / "run" / "checkpoint-2")
    capsys.readouterr()
    train(tmp_path / "out", processor, probes, watch={"baseline": tmp_path / "run"}, max_steps=1)
    said = capsys.readouterr().out
    assert "its baseline is not taken over" in said and "disc-0 was measured as one of neighbour" in said
    train(tmp_path / "run", processor, kept, resume=tmp_path / "run" / "checkpoint-2")


def test_a_group_that_was_to_be_kept_may_be_renamed_where_all_was_measured_of_it(tmp_path, processor, probes):
    """Of a region that fills the picture nothing is ever hidden, and nothing is lacking."""
    filling = {"disc": ((0.0, 0.0, 60.0, 40.0),)}
    kept = [replace(one, group="retention", regions=filling) for one in probes]
    watch = {"depth": replace(QUICK, kept=True)}
    train(tmp_path / "run", processor, kept, watch=watch)
    renamed = [replace(one, group="towers") for one in kept]
    train(tmp_path / "run", processor, renamed, watch=watch, resume=tmp_path / "run" / "checkpoint-2")


def test_tags_are_read_from_files_that_a_kill_has_cut(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(5):
            writer.add_scalar("a", 0.5, step)
    [path] = tmp_path.glob("*")
    path.rename(tmp_path / "events.out.tfevents.1.x")
    assert written_tags(tmp_path) == {("a", step) for step in range(5)}
    with SummaryWriter(str(tmp_path), purge_step=2) as writer:
        writer.add_scalar("b", 0.5, 2)
    assert written_tags(tmp_path) == {("a", 0), ("a", 1), ("b", 2)}
    for path in tmp_path.glob("*"):
        path.write_bytes(path.read_bytes()[:-3])
    assert written_tags(tmp_path) == {("a", 0), ("a", 1)}


def test_probes_may_move_and_change_their_group(first, tmp_path, processor, probes):
    shutil.copytree(first, tmp_path / "run")
    moved = [replace(one, group=f"new {one.group}") for one in probes]
    write_probes(moved, tmp_path / "probes.json")
    watcher, _ = train(tmp_path / "run", processor, moved, resume=tmp_path / "run" / "checkpoint-2")
    assert watcher.missing == [] and list(comparison(tmp_path / "run")["groups"]) == [
        "new sphere-building",
        "new colours",
    ]
