"""What is said before training about probes whose pictures are trained on."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from attention_finetune import watch
from attention_finetune.ready import Probes
from attention_finetune.watch import seen_pictures, what_is_missing
from diagnostics.monitoring.training_data import LOOKED_THROUGH
from diagnostics.records.probes import Probe
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.families.test_contract import FAMILIES
from tests.finetune.model.a_run import a_run
from tests.finetune.training.test_run_folder import add_checkpoint


def arguments(
    *,
    streaming: bool = False,
    stop_when: str | None = None,
    adapter: str = "",
    output_dir: str = "out",
    resume: str | None = None,
) -> SimpleNamespace:
    return SimpleNamespace(
        model=SimpleNamespace(model_name_or_path="Qwen/Qwen-VL-Chat"),
        adaptation=SimpleNamespace(lora_weight_path=adapter),
        training=SimpleNamespace(
            output_dir=output_dir, overwrite_output_dir=False, resume_from_checkpoint=resume
        ),
        monitor=SimpleNamespace(probes="probes.json", stop_when=stop_when),
        data=SimpleNamespace(streaming=streaming),
    )


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Probe, ...]:
    """Two of towers, three of retention; the last one shows two pictures."""
    found = []
    for at, group in enumerate(("towers", "towers", "retention", "retention", "retention")):
        path = tmp_path / f"{at}.png"
        path.write_bytes(b"picture %d" % at)
        images = (path,) if at < 4 else (path, tmp_path / "0.png")
        found.append(Probe(f"p-{at}", group, images, "What?", "a", "b", {}, {}, None))
    return tuple(found)


def trained(*contents: bytes) -> list[Conversation]:
    return [Conversation((Turn("user", (ImageRef("x", Path(), data=one),)),)) for one in contents]


def test_groups_are_named_with_counts_what_it_means_and_what_to_do(judged, tmp_path, capsys):
    seen = seen_pictures(arguments(), Probes(judged), trained(b"picture 3", b"picture 0", b"else"))
    assert seen == {hashlib.sha256(b"picture %d" % at).hexdigest() for at in (0, 3)}
    assert capsys.readouterr().out == (
        "warning: probes.json: in 3 of 5 probes a picture is in the training data (towers: 1 of 2, retention: 2 of 3), "
        f"the first is p-0: {tmp_path / '0.png'}. What was trained on shows no correction, so these groups get no "
        'verdict but "not held out": draw other probes, or take these pictures out of the data\n'
    )


def test_stopping_early_cannot_be_met_then(judged, capsys):
    seen_pictures(arguments(stop_when="corrected"), Probes(judged), trained(b"picture 1"))
    assert capsys.readouterr().out.endswith("; until then, --stop_when corrected cannot be met\n")


def test_many_groups_are_named_up_to_a_line(tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(b"0")
    many = [
        Probe(f"p-{at}", f"g{at}", (tmp_path / "0.png",), "?", "a", "b", {}, {}, None) for at in range(15)
    ]
    seen_pictures(arguments(), Probes(tuple(many)), trained(b"0"))
    assert "g11: 1 of 1 and 3 more groups), the first" in capsys.readouterr().out


def test_without_any_nothing_is_said_and_streamed_data_is_not_looked_up(judged, capsys):
    assert not seen_pictures(arguments(), Probes(judged), trained(b"else"))
    assert not seen_pictures(arguments(), Probes(), trained(b"picture 0"))
    assert capsys.readouterr().out == ""
    assert not seen_pictures(arguments(streaming=True), Probes(judged), trained(b"picture 0"))
    assert "streaming: whether the probes' pictures are in the training data" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["adapter", "output_dir"])
def test_what_an_earlier_run_was_trained_on_counts(judged, tmp_path, capsys, how: str):
    """An adapter that is trained further, or a folder that is resumed with other data."""
    run = a_run(tmp_path, [tmp_path / "1.png", tmp_path / "3.png"])
    asked = arguments(streaming=how == "adapter", **{how: str(run)})
    seen = seen_pictures(asked, Probes(judged), trained(b"picture 3"))
    assert seen == {hashlib.sha256(b"picture %d" % at).hexdigest() for at in (1, 3)}
    said = capsys.readouterr().out.splitlines()[-1]
    both = "2 of 5" if how == "adapter" else "1 of 5"
    assert (
        f"in {both} probes a picture was trained on by a run that this one goes on from (towers: 1 of 2"
        in said
    )
    assert said.endswith("draw other probes")


def test_a_new_folder_below_that_of_another_run_does_not_go_on_from_it(judged, tmp_path, capsys):
    run = a_run(tmp_path, [tmp_path / "1.png", tmp_path / "3.png"])
    (own := run / "without_them").mkdir()  # as the folder's lock makes it
    assert not seen_pictures(arguments(output_dir=str(own)), Probes(judged), trained(b"else"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("named", [True, False])
def test_a_run_that_is_resumed_goes_on_from_its_checkpoint_alone(judged, tmp_path, named: bool):
    """Steps after it, which had picture 1, are made anew with other data."""
    run = a_run(tmp_path / "a", [tmp_path / "3.png"])
    later = a_run(tmp_path / "b", [tmp_path / "1.png"])
    contents = [json.loads((one / "run.json").read_text()) for one in (run, later)]
    marks = [one["marks"] for one in contents]
    stints = [{"after": after, "marks": one, "whole": True} for after, one in zip((0, 5), marks, strict=True)]
    content = contents[1] | {"lineage": {"earlier": [], "stints": stints}}
    (run / "run.json").write_text(json.dumps(content))
    checkpoint = add_checkpoint(run, 5)
    asked = arguments(output_dir=str(run), resume=str(checkpoint) if named else None)
    seen = seen_pictures(asked, Probes(judged), trained(b"picture 0"))
    assert seen == {hashlib.sha256(b"picture %d" % at).hexdigest() for at in (0, 3)}
    assert seen_pictures(asked, Probes(judged), trained(b"else"), marks[0]) == set()  # looked through anyway


def test_the_comparison_by_hand_is_with_the_model_that_training_began_with():
    def command(adapter: str, *, other: bool = False) -> str:
        args = SimpleNamespace(
            training=SimpleNamespace(output_dir="out"),
            model=SimpleNamespace(model_name_or_path="base"),
            adaptation=SimpleNamespace(lora_weight_path=adapter, allow_other_base=other),
            monitor=SimpleNamespace(probes="p.json", report_language="en"),
        )
        ready, watcher = SimpleNamespace(args=args), SimpleNamespace(missing_words="lacks")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("finetune.training.stopping.changes_to_resume", lambda _: "")
            return what_is_missing(ready, watcher).partition("; to compare: ")[2]

    start, end = "python -m diagnostics.compare --before ", "--probes p.json --output_dir out"
    assert command("") == f"{start}base --after out {end}"
    assert command("one") == f"{start}one --after out --base base {end}"
    assert command("one", other=True) == f"{start}one --after out --base base --allow_other_base {end}"
    assert "has overwritten the adapter that it began with" in command("./out")


def test_the_monitor_of_a_run_is_told_that_its_data_was_looked_through(monkeypatch):
    """Else it would say that nobody has."""
    monkeypatch.setattr("diagnostics.AttentionMonitor", SimpleNamespace)
    monkeypatch.setattr(watch.run_file, "values_of", lambda args: {})
    watched = [
        "chosen_layers", "probe_depth", "probe_steps", "checkpoint_depth", "baseline", "diagnose", "stop_when",
        "stop_patience", "report_language",
    ]  # fmt: skip
    args = SimpleNamespace(
        monitor=SimpleNamespace(**dict.fromkeys(watched, list)),
        model=SimpleNamespace(model_name_or_path="m", cache_dir=None),
        adaptation=SimpleNamespace(lora_weight_path=None),
        training=SimpleNamespace(output_dir="out"),
    )
    ready = SimpleNamespace(
        args=args, processor=None, probes=Probes(), train_set=SimpleNamespace(conversations=[])
    )
    assert watch.monitor(ready, None).data is LOOKED_THROUGH


@pytest.mark.parametrize(("name", "notes"), [("qwen2.5-vl", 1), ("llava-1.5", 0)])
def test_prompts_with_and_without_labels_are_one_where_pictures_are_read_first(name, notes, tmp_path):
    tiny = FAMILIES[name]
    probe = Probe("a", "g", (tmp_path / "a.png",), "What?", "yes", None)
    trained = Conversation((Turn("user", (ImageRef("b", tmp_path / "b.png"), "\nWhat?")),))
    processor = tiny.processor(tmp_path)
    assert len(watch.prompt_note(Probes((probe,)), [trained], tiny.family, processor)) == notes
