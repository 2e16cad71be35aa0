"""The part of a run that uses diagnostics: reads and checks probes, and builds the monitor.

Diagnostics is imported inside functions, so that a run without --monitor loads none of it.
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_finetune.ready import SAMPLES_SHOWN_FROM, Probes, Ready
from finetune import families
from finetune.distributed import is_main, say
from finetune.families.base import Family
from finetune.families.parts.picture_order import puts_pictures_first
from finetune.flags import run_file
from finetune.flags.arguments import Arguments
from finetune.model.notes import any_of
from finetune.model.run_data import RunData
from finetune.samples import conversation, same_pictures
from finetune.training import run_folder, stopping, trainer


def read_probes(args: Arguments) -> Probes:
    """Read the probe files, before anything slow, so that their faults are reported at once."""
    if not args.monitor.monitor:
        if args.monitor.probes:
            say("--probes is given, but --monitor is not True: nothing is monitored")
        return Probes()
    from diagnostics.probing.layer_choice import check_apart
    from diagnostics.records.probes import read_probes as read

    calibration = args.monitor.calibration_probes
    found = Probes(read(str(args.monitor.probes)), read(calibration) if calibration is not None else ())
    check_apart(found.calibration, found.judged)
    return found


def check_probes(args: Arguments, probes: Probes, processor: Any, family: families.Family) -> None:
    """Raises ValueError for probes that this model cannot encode."""
    if not probes.judged:
        return
    from diagnostics.probing.prompts import ProbeEncoder

    reader = ProbeEncoder(family, processor)
    for file, some in (
        (args.monitor.probes, probes.judged),
        (args.monitor.calibration_probes, probes.calibration),
    ):
        warnings = reader.check(some, str(file))
        if args.training.dry_run:  # in a run, the monitor prints them
            for line in warnings:
                print(f"warning: {line}")


def prompt_note(
    probes: Probes, trained: Sequence[conversation.Conversation], family: Family, processor: Any
) -> list[str]:
    """A warning if probes and training data use different prompt formats: probes would test another prompt. None where
    the model reads pictures first, and so no label of theirs."""
    if not probes.judged:
        return []
    from diagnostics.probing.prompts import user_parts

    first = trained[:SAMPLES_SHOWN_FROM]
    turns = [turn for one in first for turn in one.turns if turn.role == "user"]
    data = {one for turn in turns if (one := conversation.numbers_pictures(turn)) is not None}
    asked = {
        conversation.numbers_pictures(conversation.Turn("user", user_parts(probe))) for probe in probes.judged
    }
    if not data or asked & data or puts_pictures_first(family, processor):
        return []
    wanted = '"Picture 1: <image>\\n…"' if True in data else '"<image>\\n…"'
    return [
        f'probes write {"" if True in asked else "no "}"Picture 1: " before a picture, but the training data '
        f"{'does' if True in data else 'does not'}: write {wanted} in the probes to use one prompt format"
    ]


def seen_pictures(
    args: Arguments,
    probes: Probes,
    trained: Sequence[conversation.Conversation],
    marks: Mapping[str, Any] | None = None,
) -> Collection[str]:
    """SHA-256 of the judged probes' pictures that are in the training data, or in that of runs that this one goes on
    from, found by the first process alone, which says what that means; those of streamed data are not known.

    marks   of the run: an earlier start of it with the same data is not looked through again
    """
    if not probes.judged or not is_main():
        return ()
    files = [path for probe in probes.judged for path in probe.images]
    found = dict[Path, str]()
    if args.data.streaming:
        say(
            "warning: streaming: whether the probes' pictures are in the training data is not looked up; what was "
            "trained on shows no correction"
        )
    else:
        found = same_pictures.files_among(files, trained)
        say(*seen_note(args, probes.judged, found))
    looked_through = None if args.data.streaming else marks
    earlier = RunData(files, looked_through=looked_through).trained_on(_began_with(args))
    more = [path for path in files if path not in found and any_of([path], earlier)]
    say(*seen_note(args, probes.judged, more, earlier=True))
    return {*found.values(), *earlier}


def _began_with(args: Arguments) -> list[str]:
    """What a run goes on from, itself too: it may be resumed with other data. A folder without a ``run.json`` of its
    own is new, and below another run's folder it would pass for a part of that run."""
    training = args.training
    given = args.model.model_name_or_path, args.adaptation.lora_weight_path
    checkpoint = run_folder.named_checkpoint(training.resume_from_checkpoint)
    own = Path(str(training.output_dir))
    if checkpoint is None and not training.overwrite_output_dir and (own / run_folder.RUN_FILE).is_file():
        checkpoint = run_folder.last_complete(own)[0] or own  # later steps, of other data, are not in it
    return [str(one) for one in (*given, checkpoint) if one]


def seen_note(
    args: Arguments, judged: Sequence[Any], found: Collection[Path], *, earlier: bool = False
) -> list[str]:
    """A warning that names the groups with pictures in the training data. ``found``: these pictures.

    earlier   the data of runs that this one goes on from
    """
    from diagnostics.monitoring.training_data import seen_words

    where = "was trained on by a run that this one goes on from" if earlier else "is in the training data"
    remedy = "draw other probes" + ("" if earlier else ", or take these pictures out of the data")
    of, stop = str(args.monitor.probes), args.monitor.stop_when
    return seen_words(judged, found, where=where, remedy=remedy, of=of, stop_when=stop)


def monitor(ready: Ready, writer: Any) -> Any:
    """The AttentionMonitor of this run; an error at its start becomes one message."""
    from diagnostics import AttentionMonitor
    from diagnostics.monitoring.training_data import LOOKED_THROUGH
    from diagnostics.report.case_studies import TrainingSample

    class Watcher(AttentionMonitor):
        def on_train_begin(self, *event: Any, **more: Any) -> None:
            try:
                super().on_train_begin(*event, **more)
            except ValueError as error:
                raise trainer.TrainingError(f"--monitor: {error}") from error

    args = ready.args
    shown = conversation.questions(ready.train_set.conversations[:SAMPLES_SHOWN_FROM])
    return Watcher(
        processor=ready.processor,
        probes=ready.probes.judged,
        output_dir=args.training.output_dir,
        key_layers=args.monitor.chosen_layers() or "auto",
        calibration_probes=ready.probes.calibration or None,
        depth=args.monitor.probe_depth,
        probe_steps=args.monitor.probe_steps,
        checkpoint_depth=args.monitor.checkpoint_depth,
        baseline=args.monitor.baseline,
        diagnose=args.monitor.diagnose,
        stop_when=args.monitor.stop_when,
        stop_patience=args.monitor.stop_patience,
        language=args.monitor.report_language,
        samples=[TrainingSample(*one) for one in shown],
        tb_writer=writer,
        reference=args.adaptation.lora_weight_path or args.model.model_name_or_path,
        cache_dir=args.model.cache_dir,
        data=LOOKED_THROUGH,  # by seen_pictures
        flags=run_file.values_of(args),
    )


def what_is_missing(ready: Ready, watcher: Any) -> str:
    """One line: which output of the monitor is missing, and how to make it."""
    args, folder = ready.args, str(ready.args.training.output_dir)
    draw = ["python", "-m", "diagnostics.render", "--attention_dir", f"{folder}/attention"]
    changes = stopping.changes_to_resume(args.training) or " again"
    return (
        f"the weights are saved, but {watcher.missing_words}. The same command{changes} makes the end once more, from "
        f"the last checkpoint if there is one; by hand, to draw the pictures: {shlex.join(draw)}; to compare: "
        f"{_compare_by_hand(args)}"
    )


def _compare_by_hand(args: Arguments) -> str:
    """The command that compares the run with the model that it began with, or why there is none."""
    folder, name = str(args.training.output_dir), str(args.model.model_name_or_path)
    further = args.adaptation.lora_weight_path
    if further and Path(further).resolve() == Path(folder).resolve():
        return "not possible, since the run has overwritten the adapter that it began with"
    compare = ["python", "-m", "diagnostics.compare", "--before", further or name, "--after", folder]
    if further:  # both adapters run on this base, whatever they name
        compare += ["--base", name, *["--allow_other_base"] * args.adaptation.allow_other_base]
    compare += ["--probes", str(args.monitor.probes), "--output_dir", folder]
    language = args.monitor.report_language
    return shlex.join(compare + ([] if language == "en" else ["--language", language]))
