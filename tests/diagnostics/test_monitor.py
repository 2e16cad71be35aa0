"""AttentionMonitor under the Trainer of transformers: what it leaves, what it does not touch, what it survives."""

import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import diagnostics.compare  # noqa: F401  (first imported while something is replaced, it would keep the replacement)
from diagnostics import monitor as monitor_module
from diagnostics.capture import watcher
from diagnostics.monitor import AttentionMonitor
from diagnostics.monitoring import ranks
from diagnostics.probing.layer_choice import Calibration
from diagnostics.probing.prober import Prober, auto_key_layers
from diagnostics.probing.prompts import user_parts
from diagnostics.records.archive import RecordArchive
from diagnostics.records.probes import read_probes, write_probes
from diagnostics.records.record import AttentionRecord
from finetune.families import family_of
from finetune.files import WriteError
from finetune.samples.conversation import Conversation, Turn
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes, tiny_processor

PROBES = 3


class Samples(Dataset):
    """Each probe's own question and answer, padded to one length."""

    def __init__(self, model, processor, probes) -> None:
        family = family_of(model.config)
        self.encoded = [
            family.encode(
                processor, Conversation((Turn("user", user_parts(probe)), Turn("assistant", (probe.answer,))))
            )
            for probe in probes
        ]
        self.width = max(len(one.input_ids) for one in self.encoded)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        one = self.encoded[index % len(self.encoded)]
        ids = torch.zeros(self.width, dtype=torch.long)
        ids[: len(one.input_ids)] = torch.from_numpy(one.input_ids)
        labels = torch.full((self.width,), -100)
        labels[: len(one.labels)] = torch.from_numpy(one.labels)
        mask = torch.zeros(self.width, dtype=torch.long)
        mask[: len(one.input_ids)] = 1
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "pixel_values": one.media["pixel_values"][0],
        }


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        self.values += [logs["loss"]] if "loss" in logs else []


@pytest.fixture(scope="module")
def probe_file(folder):
    write_probes(tiny_probes(folder, PROBES), folder / "probes.json")
    return folder / "probes.json"


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """Pictures have tests of their own; the process that draws them takes seconds to start."""

    class Undrawn:
        asked: list[int] = []

        def __init__(self, attention_dir) -> None:
            Undrawn.asked = []

        def submit(self, step: int) -> None:
            Undrawn.asked.append(step)

        def submit_strips(self) -> None:
            pass

        def poll(self) -> list:
            return []

        def close(self) -> list:
            return []

    monkeypatch.setattr("diagnostics.drawing.worker_client.Renderer", Undrawn)
    return Undrawn


def train(output_dir, processor, probe_file, callbacks, *, resume=False, **changes):
    """Four steps with dropout; a checkpoint at each second."""
    settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3, **changes}
    args = TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    model = tiny_model(attn_dropout_prob=0.1)
    samples = Samples(model, processor, read_probes(probe_file))
    losses = Losses()
    trainer = Trainer(model, args, train_dataset=samples, callbacks=[losses, *callbacks])
    trainer.train(resume_from_checkpoint=resume)
    return losses.values, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, processor, probe_file):
    """One monitored run that the tests below look at."""
    output_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        asked: list[int] = []

        class Undrawn:
            def __init__(self, attention_dir) -> None: ...
            def submit(self, step: int) -> None:
                asked.append(step)

            def submit_strips(self) -> None: ...

            def poll(self) -> list:
                return []

            def close(self) -> list:
                return []

        patch.setattr("diagnostics.drawing.worker_client.Renderer", Undrawn)
        watcher = AttentionMonitor(processor, probe_file, language="zh")
        outcome = train(output_dir, processor, probe_file, [watcher])
    return output_dir, outcome, asked


def test_a_run_with_the_monitor_has_the_losses_and_weights_of_one_without(
    run, tmp_path, processor, probe_file
):
    losses, weights = run[1]
    plain_losses, plain_weights = train(tmp_path, processor, probe_file, [])
    assert losses == plain_losses and len(losses) == 4
    assert not (tmp_path / "runs").exists()
    assert all(torch.equal(weights[name], plain_weights[name]) for name in plain_weights)


def test_what_a_run_leaves(run):
    output_dir, _, asked = run
    attention = output_dir / "attention"
    assert sorted(path.name for path in attention.iterdir()) == [
        "calibration.json", "diagnosis.json", "not_patched.txt",
        "probes.json", "step-000000", "step-000002", "step-000004"]  # fmt: skip
    assert [probe.id for probe in read_probes(attention / "probes.json")] == ["disc-0", "disc-1", "disc-2"]
    for step, kinds in ((0, 6), (2, 0), (4, 6)):  # two regions in three ways
        folder = attention / f"step-{step:06d}"
        assert sorted(path.name for path in folder.iterdir()) == [
            "complete.json", "disc-0.safetensors", "disc-1.safetensors", "disc-2.safetensors"]  # fmt: skip
        record = AttentionRecord.load(folder / "disc-1.safetensors")
        assert (record.step, record.layers, len(record.interventions)) == (step, (1, 2), kinds)
        assert json.loads((folder / "complete.json").read_text())["depth"] == ("quick" if kinds else "watch")
    assert asked == [0, 2, 4]
    comparison = json.loads((output_dir / "comparison" / "comparison.json").read_text())
    assert comparison["groups"]["sphere-building"]["probes"] == 2
    assert '<html lang="zh-CN">' in (output_dir / "comparison" / "index.html").read_text()
    assert any((output_dir / "runs").iterdir())


def architecture_cards(folder):
    """(step, text) of every card, over all event files of a folder."""
    events = [EventAccumulator(str(path)).Reload() for path in sorted(folder.glob("events.*"))]
    tag = "6 model/architecture/text_summary"
    found = [event for one in events if tag in one.Tags()["tensors"] for event in one.Tensors(tag)]
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def test_the_architecture_is_a_card_at_the_start(run, tmp_path, processor, probe_file):
    [(step, card)] = architecture_cards(run[0] / "runs")
    model = tiny_model()
    assert step == 0 and f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    lines = card.splitlines()
    assert "| component | layers | parameters | share | modules |" in lines
    assert any(line.startswith("| language | 3 | ") and "transformer.h, " in line for line in lines)
    assert any(line.startswith("| `layer_0 … layer_2` | 2 × 16 | tokens at tokens") for line in lines)
    # A run that goes on has it already.
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    train(tmp_path / "run", processor, probe_file, [AttentionMonitor(processor, probe_file)], resume=True)
    assert len(architecture_cards(tmp_path / "run" / "runs")) == 1


def test_the_card_is_of_the_processor_that_the_run_has(tmp_path, processor, probe_file, monkeypatch):
    """A folder or the published bounds may say otherwise."""
    asked = []
    monkeypatch.setattr("diagnostics.inspect.architecture", lambda *_, **options: asked.append(options))
    monkeypatch.setattr("diagnostics.inspect.markdown", lambda found: "a card")
    watcher = AttentionMonitor(processor, probe_file)
    watcher._shown = SimpleNamespace(architecture=lambda words: None)
    watcher._write_architecture(tiny_model())
    assert asked[0]["settings"] == processor.image_processor.to_dict()


def test_an_architecture_that_cannot_be_read_does_not_end_training(
    tmp_path, processor, probe_file, monkeypatch, caplog
):
    def fail(*_, **__):
        raise AttributeError("no attribute 'patch_size'")

    monkeypatch.setattr("diagnostics.inspect.architecture", fail)
    losses, _ = train(tmp_path, processor, probe_file, [AttentionMonitor(processor, probe_file)])
    assert len(losses) == 4 and architecture_cards(tmp_path / "runs") == []
    told = [
        one.getMessage() for one in caplog.records if "architecture could not be written" in one.getMessage()
    ]
    assert len(told) == 1 and "patch_size" in told[0] and "training continues" in told[0]


def test_records_are_of_the_model_as_it_was(run, processor, probe_file):
    probes = read_probes(probe_file)
    [record] = Prober(tiny_model(), processor, key_layers=(1, 2), probes=probes).run_all(
        0, "", probes=probes[:1]
    )
    baseline = AttentionRecord.load(run[0] / "attention" / "step-000000" / "disc-0.safetensors")
    assert baseline.scores == record.scores
    last = AttentionRecord.load(run[0] / "attention" / "step-000004" / "disc-0.safetensors")
    assert last.scores.answer_nats > baseline.scores.answer_nats  # it was trained on this very answer


def test_a_killed_run_skips_its_baseline_and_makes_up_for_its_checkpoint(
    tmp_path, processor, probe_file, run
):
    class Killed(TrainerCallback):
        def on_save(self, args, state, control, **_) -> None:
            raise KeyboardInterrupt  # before the monitor has probed this checkpoint

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, processor, probe_file, [Killed(), AttentionMonitor(processor, probe_file)])
    base = tmp_path / "attention" / "step-000000" / "complete.json"
    written = base.stat().st_mtime_ns
    assert not (tmp_path / "attention" / "step-000002").exists()
    _, weights = train(
        tmp_path, processor, probe_file, [AttentionMonitor(processor, probe_file)], resume=True
    )
    assert base.stat().st_mtime_ns == written
    assert all(torch.equal(weights[name], run[1][1][name]) for name in weights)
    for path in sorted((run[0] / "attention").rglob("*.safetensors")):
        again = AttentionRecord.load(tmp_path / "attention" / path.parent.name / path.name)
        assert again.scores == AttentionRecord.load(path).scores


def test_resuming_without_a_baseline_says_what_is_missing(tmp_path, processor, probe_file):
    train(tmp_path, processor, probe_file, [], max_steps=2)
    with pytest.raises(ValueError, match=r"calibration.json: found no key layers .* resumes from step 2"):
        train(tmp_path, processor, probe_file, [AttentionMonitor(processor, probe_file)], resume=True)
    with pytest.raises(ValueError, match=r"step-000000: found no complete baseline .* resumes from step 2"):
        watcher = AttentionMonitor(processor, probe_file, key_layers=[1])
        train(tmp_path, processor, probe_file, [watcher], resume=True)


def test_probe_steps_probes_at_its_multiples_alone(tmp_path, processor, probe_file):
    watcher = AttentionMonitor(processor, probe_file, probe_steps=3, key_layers=[0])
    train(tmp_path, processor, probe_file, [watcher])
    assert sorted(path.name for path in (tmp_path / "attention").glob("step-*")) == [
        "step-000000", "step-000003", "step-000004"]  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "told"), [("save", "records could not be written"), ("probe", "could not be probed")]
)
def test_later_failures_are_told_once_and_training_goes_on(
    tmp_path, processor, probe_file, monkeypatch, caplog, broken, told
):
    def fail(*_, **__):
        raise OSError("No space left on device")

    class BreakAtFirstStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            target = (RecordArchive, "save") if broken == "save" else (Prober, "_measure")
            monkeypatch.setattr(*target, fail)

    with caplog.at_level(logging.WARNING, logger=monitor_module.__name__):
        losses, _ = train(
            tmp_path,
            processor,
            probe_file,
            [BreakAtFirstStep(), AttentionMonitor(processor, probe_file, probe_steps=1)],
        )
    assert len(losses) == 4
    messages = [record.getMessage() for record in caplog.records if told in record.getMessage()]
    assert (
        len(messages) == 1
        and "No space left on device" in messages[0]
        and "training continues" in messages[0]
    )


@pytest.mark.parametrize("step", [2, 4])
def test_records_that_a_disk_refused_once_are_written_later(
    tmp_path, processor, probe_file, run, monkeypatch, step
):
    """Their model is gone by then, and the same command again could not measure it."""
    save, refused = RecordArchive.save, []

    def full_once(self, at, *given, **more):
        if at == step and not refused:
            refused.append(at)
            raise WriteError(
                self.folder(at) / "complete.json", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            )
        save(self, at, *given, **more)

    monkeypatch.setattr(RecordArchive, "save", full_once)
    watcher = AttentionMonitor(processor, probe_file)
    train(tmp_path, processor, probe_file, [watcher])
    assert refused == [step] and watcher.missing == []
    for path in sorted((run[0] / "attention").rglob("*.safetensors")):
        again = AttentionRecord.load(tmp_path / "attention" / path.parent.name / path.name)
        assert again.scores == AttentionRecord.load(path).scores
    found, whole = (
        json.loads((one / "comparison" / "comparison.json").read_text()) for one in (tmp_path, run[0])
    )
    assert found["groups"] == whole["groups"]


@pytest.mark.parametrize(
    ("target", "file"),
    [((monitor_module, "write_probes"), "probes.json"), ((Calibration, "save"), "calibration.json")],
)
def test_a_disk_that_refuses_a_file_of_the_start_ends_the_run_before_its_first_step(
    tmp_path, processor, probe_file, monkeypatch, target, file
):
    """It was told after training, and the same command again could not mend it."""

    def full(_, path):
        raise WriteError(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(*target, full)
    with pytest.raises(WriteError, match=rf"cannot write .*{file}: No space left"):
        train(tmp_path, processor, probe_file, [AttentionMonitor(processor, probe_file)])
    assert not list((tmp_path / "attention").glob("step-*"))


def test_wrong_wiring_ends_the_run_at_its_start(tmp_path, processor, probe_file, monkeypatch):
    with pytest.raises(ValueError, match="no language layer 7; expected 0 to 2"):
        train(tmp_path, processor, probe_file, [AttentionMonitor(processor, probe_file, key_layers=[7])])
    true = watcher.attention_rows
    monkeypatch.setattr(watcher, "attention_rows", lambda *a, **k: true(*a, **k).flip(1))
    with pytest.raises(ValueError, match="rows × values differ from the kernel's output"):
        train(tmp_path, processor, probe_file, [AttentionMonitor(processor, probe_file)])


def test_probes_that_the_model_cannot_read_end_the_run_before_its_first(
    tmp_path, processor, probe_file, monkeypatch
):
    def cannot(self, probe):
        raise ValueError("found 1 × 300 pixels")

    monkeypatch.setattr("diagnostics.probing.prompts.ProbeEncoder._check", cannot)
    callback = AttentionMonitor(processor=processor, probes=probe_file, output_dir=tmp_path, key_layers=[1])
    with pytest.raises(ValueError, match=r"cannot read:\n  probe disc-0: found 1 × 300 pixels"):
        train(tmp_path, processor, probe_file, [callback])
    assert not (tmp_path / "attention").exists()


def test_wrong_arguments_are_errors(processor, probe_file):
    with pytest.raises(ValueError, match="probe_steps: found 0, expected at least 1"):
        AttentionMonitor(processor, probe_file, probe_steps=0)
    with pytest.raises(ValueError, match="stop_when: found 'better', expected \"corrected\""):
        AttentionMonitor(processor, probe_file, stop_when="better")
    with pytest.raises(ValueError, match="depth: found 'deep', expected quick or full"):
        AttentionMonitor(processor, probe_file, depth="deep")
    with pytest.raises(ValueError, match="language: found 'fr', expected en or zh"):
        AttentionMonitor(processor, probe_file, language="fr")
    with pytest.raises(ValueError, match="probes: found none"):
        AttentionMonitor(processor, [])
    with pytest.raises(ValueError, match="batch_size: found 0, expected at least 1"):
        AttentionMonitor(processor, probe_file, batch_size=0)
    for layers in (1, "1", [], [1.5]):
        with pytest.raises(ValueError, match=r'key_layers: found .*, expected "auto", or numbers of layers'):
            AttentionMonitor(processor, probe_file, key_layers=layers)
    [probe, *_] = read_probes(probe_file)
    with pytest.raises(ValueError, match="probes: found Probe, expected a probe file, or Probes in a list"):
        AttentionMonitor(processor, probe)
    with pytest.raises(ValueError, match=f"probe {probe.id}: images: found none"):
        AttentionMonitor(processor, [replace(probe, images=())])


def test_key_layers_are_spread_evenly():
    assert auto_key_layers(tiny_model()) == (1, 2)
    assert auto_key_layers(tiny_model(num_hidden_layers=8)) == (2, 4, 6, 7)


def _one_rank(rank: int, port: int, output_dir: Path, probe_file: Path) -> None:
    ranks = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in ranks.items()})
    PartialState._reset_state()
    processor = tiny_processor(output_dir.parent / f"rank-{rank}")
    train(
        output_dir,
        processor,
        probe_file,
        [AttentionMonitor(processor, probe_file)],
        max_steps=1,
        ddp_backend="gloo",
    )


def test_two_ranks_share_the_probes_and_the_first_writes(tmp_path, probe_file, run, monkeypatch):
    monkeypatch.setattr(monitor_module.Prober, "run_all", _counting(Prober.run_all, tmp_path))
    for of, name in (
        (RecordArchive, "save"), (AttentionMonitor, "_open_board"), (AttentionMonitor, "_show"),
        (AttentionMonitor, "_finish")):  # fmt: skip
        monkeypatch.setattr(of, name, _signed(getattr(of, name), name, tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # a fresh interpreter would spend ten seconds on imports
    for rank in (0, 1):
        (tmp_path / f"rank-{rank}").mkdir()
    arguments = [(rank, port, tmp_path / "out", probe_file) for rank in (0, 1)]
    ranks = [context.Process(target=_one_rank, args=one) for one in arguments]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    probed = sorted(path.name for path in tmp_path.glob("probed-*"))
    assert probed == ["probed-step-0-disc-0-disc-2", "probed-step-0-disc-1",
                      "probed-step-1-disc-0-disc-2", "probed-step-1-disc-1"]  # fmt: skip
    writers = sorted(path.name for path in tmp_path.glob("*-by-*"))
    assert writers == ["_finish-by-0", "_open_board-by-0", "_show-by-0", "save-by-0"]
    for probe in ("disc-0", "disc-1", "disc-2"):
        two = AttentionRecord.load(tmp_path / "out" / "attention" / "step-000000" / f"{probe}.safetensors")
        one = AttentionRecord.load(run[0] / "attention" / "step-000000" / f"{probe}.safetensors")
        assert two.scores.answer_nats == pytest.approx(one.scores.answer_nats, abs=1e-5)
        assert two.interventions[0].margin_nats == pytest.approx(one.interventions[0].margin_nats, abs=1e-4)
    assert (tmp_path / "out" / "comparison" / "comparison.json").is_file()


def _signed(method, name: str, folder: Path):
    """``method`` that leaves a file naming the rank that called it."""

    def signed(self, *args, **kwargs):
        (folder / f"{name}-by-{os.environ['RANK']}").touch()
        return method(self, *args, **kwargs)

    return signed


def _counting(run_all, folder: Path):
    """``run_all`` that leaves a file naming the probes of each call."""

    def counted(self, step, words, *, probes, progress):
        (folder / "-".join(["probed", f"step-{step}", *(probe.id for probe in probes)])).touch()
        return run_all(self, step, words, probes=probes, progress=progress)

    return counted


@pytest.mark.parametrize(
    ("claims", "steps"), [(["corrected"] * 4, 2), (["it did not move", "corrected"] * 2, 4)]
)
def test_training_ends_when_corrected_so_many_times_in_a_row(
    tmp_path, processor, probe_file, monkeypatch, capsys, claims, steps
):
    levels = []

    def judged(pairs, *, level):
        levels.append(level)
        verdict = claims[len(levels) - 1]
        return {"groups": {"sphere-building": {"verdict": verdict, "reasons": []}}}

    monkeypatch.setattr("diagnostics.monitoring.stopping.comparison_of", judged)
    losses, _ = train(
        tmp_path,
        processor,
        probe_file,
        [AttentionMonitor(processor, probe_file, key_layers=[1], stop_when="corrected", stop_patience=2)],
        save_steps=1,
    )
    assert len(losses) == steps
    assert "warning: --stop_when corrected cannot be met: sphere-building: " in capsys.readouterr().out
    assert 1 - levels[0] == pytest.approx(0.0304, abs=1e-4) and levels[1] > levels[0]  # each look is paid for
    mark = json.loads((tmp_path / "attention" / "step-000001" / "complete.json").read_text())
    assert mark["depth"] == "quick"


def test_what_is_being_forgotten_is_said_at_the_checkpoint(
    tmp_path, processor, probe_file, monkeypatch, caplog
):
    monkeypatch.setattr(
        "diagnostics.comparison.group_report.lost_groups",
        lambda pairs: [f"retention: forgot ({len(pairs)} probes)."],
    )
    with caplog.at_level(logging.WARNING, logger=monitor_module.__name__):
        train(tmp_path, processor, probe_file, [AttentionMonitor(processor, probe_file, key_layers=[1])])
    said = [record.getMessage() for record in caplog.records]
    assert "attention monitor: step 2: retention: forgot (3 probes)." in said


def test_key_layers_are_chosen_on_other_pictures_and_never_again(tmp_path, processor, probe_file, folder):
    other = tmp_path / "other"
    other.mkdir()
    chosen_on = [replace(probe, id=f"other-{probe.id}") for probe in tiny_probes(other, 17)[3:]]
    watcher = AttentionMonitor(processor, probe_file, calibration_probes=chosen_on)
    train(tmp_path / "out", processor, probe_file, [watcher], max_steps=2)
    path = tmp_path / "out" / "attention" / "calibration.json"
    found = json.loads(path.read_text())
    assert found["probes"] == [probe.id for probe in chosen_on] and len(found["enrichment"]) == 3
    record = AttentionRecord.load(tmp_path / "out" / "attention" / "step-000000" / "disc-0.safetensors")
    assert list(record.layers) == found["layers"]
    comparison = json.loads((tmp_path / "out" / "comparison" / "comparison.json").read_text())
    assert sum(group["probes"] for group in comparison["groups"].values()) == PROBES  # all are judged
    path.write_text(json.dumps({**found, "layers": [0], "chosen": True}))
    again = AttentionMonitor(processor, probe_file, calibration_probes=chosen_on)
    with pytest.raises(ValueError, match="found no complete baseline of these probes and layers"):
        train(tmp_path / "out", processor, probe_file, [again], resume=True)  # what was chosen stands
    with pytest.raises(ValueError, match="calibration probes: 3 of their pictures are also among the probes"):
        AttentionMonitor(processor, probe_file, calibration_probes=probe_file)


def test_a_baseline_that_cannot_be_compared_with_does_not_end_training(
    tmp_path, processor, probe_file, monkeypatch, caplog
):
    """The one of a run that went on may be unreadable; the other ranks wait for the first one's answer, too."""

    class Forgetting(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            watcher._baseline = {}

    watcher = AttentionMonitor(processor, probe_file, key_layers=[1], stop_when="corrected")
    with caplog.at_level(logging.WARNING, logger=monitor_module.__name__):
        losses, _ = train(tmp_path, processor, probe_file, [Forgetting(), watcher])
    assert len(losses) == 4
    told = [r.getMessage() for r in caplog.records if "could not be compared with the base" in r.getMessage()]
    assert len(told) == 1 and "3 of 3 probes lack a record" in told[0]


def test_looks_before_a_restart_are_paid_for(tmp_path, processor, probe_file, capsys):
    def watcher() -> AttentionMonitor:
        return AttentionMonitor(processor, probe_file, key_layers=[1], stop_when="corrected")

    train(tmp_path, processor, probe_file, [watcher()], save_steps=1)
    assert re.findall(r"^look (\d+):", capsys.readouterr().out, re.MULTILINE) == ["1", "2", "3"]
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    train(tmp_path, processor, probe_file, [watcher()], save_steps=1, resume=True)
    assert re.findall(r"^look (\d+):", capsys.readouterr().out, re.MULTILINE) == ["3"]


def test_ranks_share_probes_out_unless_a_forward_needs_all_of_them(processor, probe_file, monkeypatch):
    probes = AttentionMonitor(processor, probe_file).probes
    monkeypatch.setattr(ranks, "rank_and_world_size", lambda: (1, 2))
    monkeypatch.setattr(ranks, "gathered", lambda one: [one])
    asked: list[list[str]] = []

    def run(share):
        asked.append([probe.id for probe in share])
        return []

    model = torch.nn.Linear(2, 3)
    ranks.shared_out(model, probes, run)
    model.bias._fsdp_flattened = True  # as FSDP marks what it shards
    ranks.shared_out(model, probes, run)
    ids = [probe.id for probe in probes]
    assert asked == [ids[1::2], ids] and len(ids) > 1
