"""Fine-tune a vision-language model, and watch where its attention goes.

python finetune.py --model_name_or_path Qwen/Qwen-VL-Chat --data_path data.json --use_lora True --output_dir out
python finetune.py --help
"""

import os
import runpy
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # Before the imports below, which take seconds: the answer to --help, and to a flag that there is not.
    runpy.run_path(str(Path(__file__).parent / "finetune" / "help.py"))["answer"](sys.argv[1:])
    import finetune  # noqa: F401 - before transformers' trainer: it silences what bitsandbytes says on import

import torch
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from finetune import (
    adaptation,
    adapters,
    arguments,
    checkpoint,
    conversation,
    data,
    evaluation,
    families,
    kernels,
    mixture,
    packing,
    preview,
    reading,
    run_folder,
    stopping,
    trainer,
    videos,
)
from finetune.arguments import Arguments

UNSHOWN = 1
"""The exit status where the weights are saved and something of the monitor's is missing."""

SAMPLES_SHOWN_FROM = 2000
"""The report of a run shows a few training samples, out of this many first ones."""


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit code.

    What is wrong with flags, data, probes or the output folder is one message, before any training. So is what
    stops training on purpose; any other error in training shows where it happened. A signal to stop and Ctrl-C are
    a line that says how to go on.
    """
    quieten()
    try:
        ready = prepare(argv)
    except ValueError as error:
        return fail(error)
    except KeyboardInterrupt:
        return ended("interrupted; nothing had been trained", stopping.INTERRUPTED)
    if ready is None:
        return 0
    try:
        missing = train(ready)
    except trainer.TrainingError as error:
        return fail(error)
    except stopping.Stopped as stopped:
        return ended(str(stopped), stopped.status)
    except KeyboardInterrupt:
        folder = Path(str(ready.args.training.output_dir))
        return ended(stopping.interrupted(folder), stopping.INTERRUPTED)
    return ended(missing, UNSHOWN) if missing else 0


class Probes(NamedTuple):
    """What is watched, and what its key layers are chosen on; () where nothing is."""

    judged: Any = ()
    calibration: Any = ()


class Ready(NamedTuple):
    """A run that has passed every check."""

    args: Arguments
    marks: dict[str, Any]
    start: run_folder.Start
    model: Any
    processor: Any
    train_set: data.ConversationDataset
    eval_set: data.ConversationDataset | None
    probes: Probes


def prepare(argv: Sequence[str]) -> Ready | None:
    """Flags → model and data; None where nothing is left to train.

    Raises ValueError with everything that is found wrong.
    """
    argv = with_demo(arguments.expanded(argv))
    args, lines = arguments.parse(argv)
    say(*lines)
    args = with_adapter(args, given={name for name in OF_THE_ADAPTER if arguments.has_value(argv, name)})
    checkpoint.check_kernel(args.model.attn_implementation, precision_of(args))
    probes = read_probes(args)
    mixed = read_mixture(args)
    held_out = read_data(args, args.data.eval_data_path) if args.data.eval_data_path else None
    marks = run_folder.fingerprint(args, args.training.world_size)
    start = begin(args, marks)
    say(*start.lines)
    if start.how == "finished":
        return None

    plan = plan_of(args)
    processor, family = open_checkpoint(args, plan)
    check_probes(args, probes, processor, family)
    train_set = build_dataset(args, mixed, processor, family)
    say(*prompt_note(probes, train_set.conversations))
    eval_set = build_dataset(args, held_out, processor, family) if held_out else None
    if args.training.dry_run:
        describe(args, outline(args, family, plan), plan, train_set, whole=True)
        say("a dry run: nothing was trained, nothing was written")
        return None
    set_seed(args.training.seed)
    model = build_model(args, family, plan)
    describe(args, model, plan, train_set)
    return Ready(args, marks, start, model, processor, train_set, eval_set, probes)


def train(ready: Ready) -> str:
    """Train (and watch), save the result, and mark the run as finished.

    Returns a line about what the monitor could not show; "" where all is there.
    """
    args, training = ready.args, ready.args.training
    if args.data.packing:
        say(packing.kernel_note(args.model.attn_implementation, args.data.model_max_length))
    folder, resumed_from = Path(str(training.output_dir)), ready.start.checkpoint
    if is_main():
        run_folder.write_run(folder, ready.marks, finished=False)
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
        writer=writer,
        callbacks=[stopping.StopOnSignal(), *evaluators(ready, writer), *watchers],
    )
    try:
        built.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    finally:
        if writer is not None:
            writer.close()  # a run that is told to stop has logged too
    built.save_model(str(folder))
    built.accelerator.wait_for_everyone()
    if is_main():
        run_folder.write_run(folder, ready.marks, finished=True)
        what = "adapter" if args.lora else "model"
        said = (
            f"the trained {what}"
            if built.state.global_step
            else f"nothing was trained: the {what} as it began"
        )
        say(f"{said} and its processor are in {folder}")
    return "; ".join(what_is_missing(ready, watcher) for watcher in watchers if watcher.missing)


# ---------------------------------------------------------------------------------------------------------------------
# Stations
# ---------------------------------------------------------------------------------------------------------------------


def with_demo(argv: Sequence[str]) -> Sequence[str]:
    """Without a model and without data, the embedded demo's flags; flags that are given win."""
    given = {"model_name_or_path", "data_path", "corrective_data", "replay_data", "help", "h"}
    if any(arguments.has_value(argv, name) for name in given) or "-h" in argv:
        return argv
    from finetune.demo import prepare, settings

    # One process draws the pictures; the others of its machine wait for them.
    parts = prepare.DEFAULT_PARTS
    while os.environ.get("LOCAL_RANK", "0") != "0" and not all(
        prepare.is_complete(settings.DATA_DIR / part, part) for part in parts
    ):
        time.sleep(0.5)
    flags = settings.prepared_flags(processes=int(os.environ.get("WORLD_SIZE", "1")))
    merged = arguments.merge(flags, argv)
    say("no model and no data given: the embedded demo, as if called with", "  " + " ".join(merged))
    return merged


OF_THE_ADAPTER = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_bias": "bias",
    "use_dora": "use_dora",
}
"""Flag → the field of an adapter's configuration that says it, where the flag is not given."""


def with_adapter(args: Arguments, *, given: set[str]) -> Arguments:
    """The arguments where an adapter is trained on: whichever of the two flags names it, its base is the model, and
    what no flag says is as the adapter has it.

    given   the flags of ``OF_THE_ADAPTER`` that the user gave

    Raises ValueError, before anything is read, where the adapter cannot be trained on.
    """
    name, further = str(args.model.model_name_or_path), args.adaptation.lora_weight_path
    base, adapter = checkpoint.resolve(name)
    if adapter is None and not further:
        if not args.training.dry_run:  # a dry run needs no weights
            checkpoint.require_weights(base)
        return args
    if adapter is not None and further:
        raise ValueError(
            f"--model_name_or_path {name} and --lora_weight_path {further}: two adapters; give the model that the "
            f"second was trained on, or merge the first: python -m finetune.export {name} --output_dir MERGED"
        )
    if not args.lora:
        raise ValueError(
            f"--model_name_or_path {name}: is an adapter, and the flags ask for training in full; merge it first "
            f"(python -m finetune.export {name} --output_dir MERGED) and train that, or train the adapter itself "
            "further: --use_lora True"
        )
    folder = adapter if adapter is not None else checkpoint.adapter_folder(further, flag="--lora_weight_path")
    fields = adapters.check_fields(folder)
    cache, other = args.model.cache_dir, args.adaptation.allow_other_base
    checkpoint.check(
        folder,
        cache_dir=cache,
        base=None if adapter is not None else base,
        allow_other_base=other,
        named_for_it=False,
    )
    own = {
        flag: fields[field] for flag, field in OF_THE_ADAPTER.items() if flag not in given and field in fields
    }
    say(f"going on from the adapter {folder}, on {base}")
    return replace(
        args,
        model=replace(args.model, model_name_or_path=base),
        adaptation=replace(args.adaptation, lora_weight_path=str(folder), **own),
    )


def read_probes(args: Arguments) -> Probes:
    """The probe files, read before anything that takes time, so that their faults are known at once."""
    if not args.monitor.monitor:
        if args.monitor.probes:
            say("--probes is given, but --monitor is not True: nothing is watched")
        return Probes()
    from diagnostics.calibration import check_apart
    from diagnostics.probes import read_probes as read

    calibration = args.monitor.calibration_probes
    found = Probes(read(str(args.monitor.probes)), read(calibration) if calibration is not None else ())
    check_apart(found.calibration, found.judged)
    return found


def check_probes(args: Arguments, probes: Probes, processor: Any, family: families.Family) -> None:
    """Raises ValueError for probes that this model cannot read."""
    if not probes.judged:
        return
    from diagnostics.reading import Reader

    reader = Reader(family, processor)
    for file, some in (
        (args.monitor.probes, probes.judged),
        (args.monitor.calibration_probes, probes.calibration),
    ):
        reader.check(some, str(file))


def prompt_note(probes: Probes, trained: Sequence[conversation.Conversation]) -> list[str]:
    """A line where probes ask otherwise than training does: what is judged is then not what was trained."""
    if not probes.judged:
        return []
    from diagnostics.reading import user_parts

    first = trained[:SAMPLES_SHOWN_FROM]
    turns = [turn for one in first for turn in one.turns if turn.role == "user"]
    data = {one for turn in turns if (one := conversation.numbers_pictures(turn)) is not None}
    asked = {
        conversation.numbers_pictures(conversation.Turn("user", user_parts(probe))) for probe in probes.judged
    }
    if not data or asked & data:
        return []
    wanted = '"Picture 1: <image>\\n…"' if True in data else '"<image>\\n…"'
    return [
        f'probes write {"" if True in asked else "no "}"Picture 1: " before a picture, the training data '
        f"{'does' if True in data else 'does not'}: write {wanted} into their questions, and both are asked alike"
    ]


def begin(args: Arguments, marks: dict[str, Any]) -> run_folder.Start:
    """New run, resumed run or finished run: decided by the first process, for all."""
    training = args.training

    def decide() -> run_folder.Start:
        return run_folder.begin(
            Path(str(training.output_dir)),
            marks,
            resume=training.resume_from_checkpoint,
            overwrite=training.overwrite_output_dir and not training.dry_run,
            world_size=training.world_size,
            deepspeed=bool(training.deepspeed),
        )

    if training.dry_run:
        return run_folder.Start("new", None, ())
    start = decided_by_first(decide)
    require_everywhere(start.checkpoint)
    return start


def open_checkpoint(args: Arguments, plan: adaptation.Plan) -> tuple[Any, families.Family]:
    """Processor and family of the model, whose modules are checked against the flags: no weights yet.

    Raises ValueError for a LoRA target that matches nothing, for a key layer that there is not, for a pixel budget that
    the family cannot keep, for a kernel that the language model cannot run on, and for packing where samples of the
    family cannot share a row.
    """
    name, cache = str(args.model.model_name_or_path), args.model.cache_dir
    config = checkpoint.load_config(name, cache_dir=cache)
    family = families.family_of(config)
    checkpoint.check_kernel_of(config, args.model.attn_implementation)
    kernels.prepare(args.training, config.model_type)
    model = checkpoint.skeleton(config)
    check_key_layers(args, model, family)
    if plan.adapter:
        adaptation.adapt(model, family, plan, master_weights=False)
    elif plan.lora:
        adaptation.target_pattern(model, family, plan)
    processor = checkpoint.load_processor(
        plan.adapter or name, cache_dir=cache, base=name if plan.adapter else None
    )
    family.set_pixel_budget(processor, min_pixels=args.data.min_pixels, max_pixels=args.data.max_pixels)
    if args.data.packing:
        family.packed(config, [family.blank(processor)])  # here, not in the first batch
    return processor, family


def read_data(args: Arguments, path: str) -> Sequence[conversation.Conversation]:
    """The conversations of one source, as the data flags say; raises ValueError with every fault found in it."""
    chosen = args.data
    return reading.read(
        path,
        data_format=chosen.data_format,
        image_folder=chosen.image_folder,
        box_units=chosen.box_units,
        sampling=videos.Sampling(chosen.video_fps, chosen.video_max_frames),
        on_bad_sample=chosen.on_bad_sample,
        streaming=chosen.streaming,
        say=say,
    )


def read_mixture(args: Arguments) -> mixture.Mixture:
    """All training sources that the flags name, read, and what each epoch takes of them."""
    chosen, training = args.data, args.training
    specs: list[tuple[mixture.SourceRole, mixture.SourceSpec]] = []
    if chosen.data_path is not None:
        specs.append(("base", mixture.SourceSpec(chosen.data_path)))
    specs += [("corrective", mixture.parse_source(text)) for text in chosen.corrective_data or ()]
    specs += [("replay", mixture.parse_source(text)) for text in chosen.replay_data or ()]
    names = mixture.unique_names([spec.path for _, spec in specs])
    sources = [
        mixture.Source(name, read_data(args, spec.path), role, spec.share, spec.repeat)
        for name, (role, spec) in zip(names, specs, strict=True)
    ]
    mixed = mixture.Mixture(sources, training.seed if training.data_seed is None else training.data_seed)
    if len(sources) > 1:
        say(mixed.table_text())
    return mixed


def build_dataset(
    args: Arguments,
    source: mixture.Mixture | Sequence[conversation.Conversation],
    processor: Any,
    family: families.Family,
) -> data.ConversationDataset:
    return data.build_dataset(
        source,
        processor,
        family,
        max_length=args.data.model_max_length,
        on_bad_sample=args.data.on_bad_sample,
        streaming=args.data.streaming,
        say=say,
    )


def plan_of(args: Arguments) -> adaptation.Plan:
    chosen = args.adaptation
    return adaptation.Plan(
        **args.modes,
        embeddings=chosen.train_embeddings,
        targets=tuple(chosen.lora_target_modules) if chosen.lora_target_modules else None,
        rank=chosen.lora_r,
        alpha=chosen.lora_alpha,
        dropout=chosen.lora_dropout,
        bias=chosen.lora_bias,
        dora=chosen.use_dora,
        adapter=chosen.lora_weight_path,
    )


def rates_of(args: Arguments) -> adaptation.Rates:
    return adaptation.Rates(args.training.learning_rate, args.own_rates, args.training.weight_decay)


def precision_of(args: Arguments) -> torch.dtype:
    """What training computes in."""
    training = args.training
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32


def build_model(args: Arguments, family: families.Family, plan: adaptation.Plan) -> Any:
    """The model with what trains unfrozen.

    Frozen weights rest in the precision that computes. Trained ones are fp32 (torch's mixed precision adds small
    updates to them), unless DeepSpeed keeps fp32 copies of its own.
    """
    training = args.training
    if training.deepspeed and torch.distributed.is_initialized():
        import deepspeed

        # ZeRO-3 shards while loading. On a CPU nobody else has told DeepSpeed of the processes by then, and it
        # would take itself for the only one.
        deepspeed.init_distributed(auto_mpi_discovery=False)
    model, _ = checkpoint.load(
        str(args.model.model_name_or_path),
        dtype=resting_precision(args, plan),
        quantize=args.adaptation.q_lora,
        for_training=True,
        cache_dir=args.model.cache_dir,
        attn_implementation=args.model.attn_implementation,
    )
    return adaptation.adapt(model, family, plan, master_weights=not training.deepspeed)


def resting_precision(args: Arguments, plan: adaptation.Plan) -> torch.dtype:
    """What weights are loaded in: fp32 where the model itself trains and nobody else keeps fp32 copies."""
    whole = plan.lora or plan.language == "frozen" or bool(args.training.deepspeed)
    return precision_of(args) if whole else torch.float32


def outline(args: Arguments, family: families.Family, plan: adaptation.Plan) -> Any:
    """The model that ``build_model`` would build, without weights: its modules, shapes and precisions."""
    config = checkpoint.load_config(str(args.model.model_name_or_path), cache_dir=args.model.cache_dir)
    model = checkpoint.skeleton(config).to(resting_precision(args, plan))
    model = adaptation.adapt(model, family, plan, master_weights=not args.training.deepspeed)
    if args.adaptation.q_lora:
        preview.quantise_outline(model, family)
    return model


def describe(
    args: Arguments,
    model: Any,
    plan: adaptation.Plan,
    train_set: data.ConversationDataset,
    *,
    whole: bool = False,
) -> None:
    """Say what trains on what: briefly before training, wholly for a dry run."""
    family = train_set.family
    told = preview.Preview(
        model, train_set, args.training, packing=args.data.packing, precision=precision_of(args)
    )
    say(told.samples(most=preview.MOST_SAMPLES_SHOWN) if whole else told.samples())
    say(told.lengths() if whole else told.lengths_line())
    say(adaptation.table_text(adaptation.table(model, family, rates_of(args))))
    still = adaptation.not_trained_further(model, family) if plan.adapter else []
    if still:
        say(f"stays as the adapter has it, because no flag trains it: {', '.join(still)}")
    frozen = adaptation.left_frozen(model, family, plan)
    if frozen:
        say(f"stays as it is, because an adapter cannot hold it: {', '.join(frozen)}")
    say(told.device_memory() if whole else told.device_memory_line(), told.steps())


def check_key_layers(args: Arguments, model: Any, family: families.Family) -> None:
    """Raises ValueError for a key layer that the model does not have, or that has no attention map."""
    attending = families.base.attending_layers(model, family)
    wrong = [layer for layer in args.monitor.chosen_layers() if layer not in attending]
    if wrong:
        expected = families.base.layer_words(attending)
        raise ValueError(f"--key_layers: found {wrong}, expected layers of this model, {expected}")


def evaluators(ready: Ready, writer: Any) -> list[TrainerCallback]:
    """What generates answers at each evaluation, where that is asked for."""
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


def monitor(ready: Ready, writer: Any) -> Any:
    """The AttentionMonitor of this run. What is wrong at its start is one message, as whatever else is."""
    from diagnostics import AttentionMonitor
    from diagnostics.cases import TrainingSample

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
        stop_when=args.monitor.stop_when,
        stop_patience=args.monitor.stop_patience,
        samples=[TrainingSample(*one) for one in shown],
        tb_writer=writer,
    )


def what_is_missing(ready: Ready, watcher: Any) -> str:
    """One line: what training should have shown and has not, and how to see it all the same."""
    folder, name = ready.args.training.output_dir, ready.args.model.model_name_or_path
    return (
        f"the weights are saved, but {watcher.missing_words}. Pictures again: python -m diagnostics.render "
        f"--attention_dir {folder}/attention; the comparison: python -m diagnostics.compare --before {name} --after "
        f"{folder} --probes {ready.args.monitor.probes} --output_dir {folder}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


def is_main() -> bool:
    """Is this the first process of the run?"""
    return os.environ.get("RANK", "0") == "0"


def quieten() -> None:
    """Leave out other people's deprecations, and what every process but the first would repeat."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|torch|peft|accelerate|deepspeed)\."
    )
    if not is_main():
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def fail(error: Exception) -> int:
    """Say what is wrong, on the first process alone or on the one that alone knows; returns the exit code."""
    if is_main() or isinstance(error, trainer.BatchError):
        print(f"finetune.py: {error}", file=sys.stderr)
    else:
        time.sleep(5)  # the launcher ends all processes when one has ended: the first must have spoken
    return 1


def ended(line: str, status: int) -> int:
    """Say how it ended before its end, on the first process alone; returns the exit code."""
    if is_main():
        print(f"\nfinetune.py: {line}", file=sys.stderr, flush=True)
    return status


def say(*lines: str) -> None:
    """Print on the first process alone."""
    if is_main():
        for line in lines:
            print(line, flush=True)


def decided_by_first(decide: Any) -> Any:
    """What ``decide()`` gives on the first process, on every process; its ValueError is raised on each."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [decide()]
        except ValueError as error:
            outcome = [error]
    if distributed:
        torch.distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def require_everywhere(folder: Path | None) -> None:
    """Raises ValueError where a machine of the run does not have the checkpoint that the first goes on from."""
    if folder is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    seen: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(
        seen, (socket.gethostname(), (folder / run_folder.STATE_FILE).is_file())
    )
    without = sorted({host for host, there in seen if not there})
    if without:
        raise ValueError(
            f"{folder}: is not there on {', '.join(without)}; copy it there, or share --output_dir between the "
            "machines. A run on disks of their own saves everywhere with --save_on_each_node True"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
