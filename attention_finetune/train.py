"""The stations of a training run, in order: parse, prepare, build, train, save, compare."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # Handle --help and unknown flags before the slow imports below.
    flags_module = Path(__file__).parents[1] / "finetune" / "flags" / "help.py"
    runpy.run_path(str(flags_module))["answer"](sys.argv[1:])
    from finetune import threads  # and what importing finetune silences in bitsandbytes

    threads.set_defaults()  # before torch is loaded

from transformers import TrainerCallback, set_seed

from attention_finetune.ending import IncompleteError, exit_status, interruptible, refusing
from attention_finetune.inputs import (
    OF_THE_ADAPTER,
    begin,
    build_dataset,
    read_data,
    read_mixture,
    with_adapter,
    with_demo,
)
from attention_finetune.looking import check_looking, settings_of
from attention_finetune.model import (
    build_model,
    describe,
    open_checkpoint,
    outline,
    plan_of,
    precision_of,
    rates_of,
)
from attention_finetune.ready import Ready
from attention_finetune.watch import (
    check_probes,
    monitor,
    prompt_note,
    read_probes,
    seen_pictures,
    what_is_missing,
)
from finetune.data import packing, subset
from finetune.distributed import is_main, say
from finetune.flags import deepspeed_file
from finetune.flags import parse as flags
from finetune.flags.arguments import Arguments
from finetune.model import adapters, checkpoint, look_file, seen_file
from finetune.samples import cache
from finetune.training import evaluation, extension_locks, library_log, run_folder, stopping, trainer


class Run(NamedTuple):
    """A run that is built: the trainer, and the callbacks that monitor it."""

    ready: Ready
    trainer: trainer.FinetuneTrainer
    writer: Any
    watchers: list[Any]

    @property
    def folder(self) -> Path:
        """The output folder of the run."""
        return Path(str(self.ready.args.training.output_dir))


def stations(argv: Sequence[str]) -> None:
    """From flags to a trained checkpoint and its before / after report; ``finetune.py`` shows the same."""
    args = parse(argv)
    ready = prepare(args)
    if ready is None:
        return
    run = build(ready)
    train(run)
    save(run)
    compare(run)


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status."""
    return exit_status(stations, argv)


@refusing()
def parse(argv: Sequence[str]) -> Arguments:
    """Flags → arguments; without a model and without data, those of the embedded demo.

    Raises RefusedError that lists everything wrong with the flags.
    """
    cache.taken_notes()  # of an earlier run in this process
    argv = with_demo(flags.expanded(argv))
    args, lines = flags.parse(argv)
    say(*lines)
    return with_adapter(args, given={name for name in OF_THE_ADAPTER if flags.has_value(argv, name)})


@refusing()
def prepare(args: Arguments) -> Ready | None:
    """Arguments → model and data; None for a dry run or a finished run.

    Raises RefusedError that lists everything found wrong.
    """
    checkpoint.check_kernel(args.model.attn_implementation, precision_of(args))
    if args.training.deepspeed and not args.training.dry_run:
        deepspeed_file.check_launch(args.training.deepspeed)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # each machine compiles for itself
            say(*extension_locks.mend(extension_locks.build_root()))
    probes = read_probes(args)
    mixed = read_mixture(args)
    held_out = read_data(args, args.data.eval_data_path) if args.data.eval_data_path else None
    marks = run_folder.fingerprint(args, args.training.world_size)
    start = begin(args, marks)
    say(*start.lines)
    if start.how == "finished":
        if start.missing:
            raise IncompleteError(start.missing)
        return None

    if not args.training.dry_run:
        library_log.begin(Path(str(args.training.output_dir)))
    plan = plan_of(args)
    processor, family = open_checkpoint(args, plan)
    check_probes(args, probes, processor, family)
    train_set = build_dataset(args, mixed, processor, family)
    say(*prompt_note(probes, train_set.conversations, family, processor))
    seen = seen_pictures(args, probes, train_set.conversations, marks)
    eval_set = build_dataset(args, held_out, processor, family, for_training=False) if held_out else None
    looked_at = None
    if args.look.supervises:
        looked_at = check_looking(args, outline(args, family, plan), family, train_set)
    if args.training.dry_run:
        describe(args, outline(args, family, plan), plan, train_set, whole=True)
        say(dry_run_text(cache.taken_notes()))
        return None
    set_seed(args.training.seed)
    model = build_model(args, family, plan)
    describe(args, model, plan, train_set)
    return Ready(args, marks, start, model, processor, train_set, eval_set, probes, looked_at, seen)


def dry_run_text(written: Sequence[Path]) -> str:
    """The last line of a dry run, which makes no output folder: what later runs reuse is all that it writes."""
    if not written:
        return "dry run: nothing was trained or written"
    return f"dry run: nothing was trained; written, for later runs: {', '.join(map(str, written))}"


def build(ready: Ready) -> Run:
    """Build the Trainer with its evaluation and monitoring callbacks, and mark the output folder as begun."""
    args, training = ready.args, ready.args.training
    if args.data.packing:
        say(packing.kernel_note(args.model.attn_implementation, args.data.model_max_length))
    folder, resumed_from = Path(str(training.output_dir)), ready.start.checkpoint
    with interruptible(training):
        if is_main():
            if resumed_from is not None:
                say(*run_folder.set_beyond_aside(folder, run_folder.step_of(resumed_from)))
            with refusing():  # what it continues from may have been told where to look, or seen the probes
                origins = args.model.model_name_or_path, args.adaptation.lora_weight_path, resumed_from
                look_file.carry(folder, *origins)
                seen_file.carry(folder, *origins)
                seen_file.write(folder, ready.seen)
            run_folder.write_run(folder, ready.marks, finished=False)
            run_folder.write_configuration(folder, args)
        writer = trainer.summary_writer(training, run_folder.step_of(resumed_from) if resumed_from else None)
        watchers = [monitor(ready, writer)] if args.monitor.monitor else []
        built = trainer.build_trainer(
            ready.model,
            ready.processor,
            training,
            ready.train_set,
            ready.eval_set,
            rates=rates_of(args),
            packing=args.data.packing,
            looking=settings_of(args, ready.model, ready.train_set.family, watchers, ready.looked_at),
            writer=writer,
            probe_steps=args.monitor.probe_steps if args.monitor.monitor else None,
            callbacks=[stopping.StopOnSignal(), *evaluators(ready, writer), *watchers],
        )
        if args.lora and training.should_save:
            built.base_fingerprint = adapters.fingerprint_of(
                str(args.model.model_name_or_path), args.model.cache_dir
            )
    return Run(ready, built, writer, watchers)


def train(run: Run) -> None:
    """Train from the start, or resume from a checkpoint."""
    resumed_from = run.ready.start.checkpoint
    with interruptible(run.ready.args.training):
        try:
            run.trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
        finally:
            if run.writer is not None:
                run.writer.close()  # also where the run is interrupted


def save(run: Run) -> None:
    """Save the trained adapter or model with its processor, and mark the run as finished."""
    ready, built = run.ready, run.trainer
    with interruptible(run.ready.args.training):
        built.save_model(str(run.folder))
        built.accelerator.wait_for_everyone()
        if not is_main():
            return
        if ready.args.data.data_fraction is not None:
            _write_counts(run)
        run_folder.write_run(run.folder, ready.marks, finished=True)
    what = "adapter" if ready.args.lora else "model"
    trained = (
        f"the trained {what}" if built.state.global_step else f"nothing was trained: the unchanged {what}"
    )
    log = library_log.written()
    say(
        f"{trained} and its processor are in {run.folder}{f'; {log.name} has what libraries said' if log else ''}"
    )


def _write_counts(run: Run) -> None:
    """How many different samples of each source were trained on, by the steps that were made."""
    data, mixed, step = run.ready.args.data, run.ready.train_set.mixture, run.trainer.state.global_step
    counts = subset.different_samples(mixed, run.trainer.schedule.trained(step) if step else ())
    of = subset.chosen_sources(mixed, data.data_fraction_of)
    content = {"fraction": data.data_fraction, "of": of, "sources": counts}
    run_folder.write_json(run.folder / run_folder.FRACTION_FILE, content)


def compare(run: Run) -> None:
    """Raises IncompleteError if the monitor could not write its pictures or its before / after report.

    The monitor itself makes the comparison at the end of training, while the model is still loaded.
    """
    missing = "; ".join(what_is_missing(run.ready, watcher) for watcher in run.watchers if watcher.missing)
    if missing:
        if is_main():
            run_folder.write_run(run.folder, run.ready.marks, finished=True, missing=missing)
        raise IncompleteError(missing)


def evaluators(ready: Ready, writer: Any) -> list[TrainerCallback]:
    """The callback that generates answers at each evaluation, if --eval_generate is given."""
    chosen = ready.args.evaluation
    if ready.eval_set is None or not chosen.eval_generate:
        return []
    callback = evaluation.GenerateAtEvaluation(
        ready.eval_set,
        count=chosen.eval_generate,
        pictures=chosen.eval_pictures,
        max_new_tokens=chosen.eval_max_new_tokens,
        writer=writer,
    )
    say(*callback.remarks())
    return [callback]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
