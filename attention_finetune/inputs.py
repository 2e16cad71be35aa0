"""The inputs of a run: the demo's flags, an adapter to continue, the output folder, the data."""

import filecmp
import os
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import families
from finetune.data import dataset, mixture, subset
from finetune.distributed import decided_by_first, gathered, is_distributed, say
from finetune.flags import parse
from finetune.flags.arguments import Arguments
from finetune.flags.argv import split_flags
from finetune.model import adapters, checkpoint, hub
from finetune.model.folders import is_adapter
from finetune.samples import cache, conversation, source, videos
from finetune.training import run_folder

NOT_OF_THE_DEMO = ("model_name_or_path", "data_path", "corrective_data", "replay_data")
"""Flags of a user's own run: any of them switches the demo off."""


def with_demo(argv: Sequence[str]) -> Sequence[str]:
    """Add the flags of the embedded demo where neither model nor data is given; given flags win."""
    given = {*NOT_OF_THE_DEMO, "help", "h"}
    if any(parse.has_value(argv, name) for name in given) or "-h" in argv:
        return argv
    from finetune.demo import prepare, settings

    # One process draws the pictures; the others of its machine wait for them.
    parts = prepare.DEFAULT_PARTS
    while os.environ.get("LOCAL_RANK", "0") != "0" and not all(
        prepare.is_complete(settings.DATA_DIR / part, part) for part in parts
    ):
        time.sleep(0.5)
    missing = [
        settings.DATA_DIR / part for part in parts if not prepare.is_complete(settings.DATA_DIR / part, part)
    ]
    flags = settings.prepared_flags(
        processes=int(os.environ.get("WORLD_SIZE", "1")), in_two=parse.has_value(argv, "data_fraction")
    )
    for part in missing:
        cache.note(part)
    merged = parse.merge(flags, argv)
    values = dict(split_flags(merged))
    if "dry_run" in values:
        say("no model and no data given: the embedded demo, with these flags:", "  " + " ".join(merged))
    else:
        (output_dir,) = values.get("output_dir", ["output_qwen"])
        say(f"no model and no data given: the embedded demo (docs/demo.md); its flags: {output_dir}/run.yaml")
    return merged


OF_THE_ADAPTER = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_bias": "bias",
    "use_dora": "use_dora",
}
"""Flag → the field of the adapter's configuration that replaces it where the flag is not given."""


def with_adapter(args: Arguments, *, given: set[str]) -> Arguments:
    """The arguments for continuing an adapter, whichever of the two flags names it: the model is the adapter's base,
    and settings that no flag gives are those of the adapter. Without an adapter they are unchanged.

    given   the flags of ``OF_THE_ADAPTER`` that the user gave

    Raises ValueError, before any data is read, where training cannot continue from the adapter.
    """
    name, further = str(args.model.model_name_or_path), args.adaptation.lora_weight_path
    base, adapter = checkpoint.resolve(name)
    hub.require(base, cache_dir=args.model.cache_dir)
    if adapter is None and not further:
        if not args.training.dry_run:  # a dry run needs no weights
            checkpoint.require_weights(base)
        return args
    if adapter is not None and further:
        raise ValueError(
            f"--model_name_or_path {name} and --lora_weight_path {further}: two adapters; give the model that the "
            f"second was trained on, or merge the first: {_merge(name)}"
        )
    if not args.lora:
        raise ValueError(
            f"--model_name_or_path {name}: is an adapter, but the flags select full training; merge it first "
            f"({_merge(name)}) and train the result, or continue training the adapter: --use_lora True"
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
    say(f"continuing from the adapter {folder}, on {base}")
    return replace(
        args,
        model=replace(args.model, model_name_or_path=base),
        adaptation=replace(args.adaptation, lora_weight_path=str(folder), **own),
    )


def begin(args: Arguments, marks: dict[str, Any]) -> run_folder.Start:
    """Whether this is a new, a resumed or a finished run. The first process decides for all."""
    training = args.training

    def decide() -> run_folder.Start:
        start = run_folder.begin(
            Path(str(training.output_dir)),
            marks,
            resume=training.resume_from_checkpoint,
            overwrite=training.overwrite_output_dir and not training.dry_run,
            world_size=training.world_size,
            deepspeed=bool(training.deepspeed),
        )
        if start.checkpoint is not None:
            require_base(start.checkpoint, args)
        return start

    if training.dry_run:
        return run_folder.Start("new", None, ())
    start = decided_by_first(decide)
    require_everywhere(start.checkpoint)
    return start


def require_base(checkpoint: Path, args: Arguments) -> None:
    """Raises ValueError where an adapter would go on over other weights than it began with: another model at the same
    path, say. --allow_other_base True says that they are meant."""
    if is_adapter(checkpoint) and not args.adaptation.allow_other_base:
        adapters.check_base(checkpoint, str(args.model.model_name_or_path), cache_dir=args.model.cache_dir)


def read_data(args: Arguments, path: str) -> Sequence[conversation.Conversation]:
    """The conversations of one source, read by the data flags; raises ValueError with every fault found in it."""
    chosen = args.data
    return source.read(
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
    """All training sources that the flags name, and how they are mixed in each epoch."""
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
    if chosen.data_fraction is not None:
        mixed = _with_fraction(args, mixed)
    if len(sources) > 1:
        say(mixed.table_text())
    return mixed


def _with_fraction(args: Arguments, mixed: mixture.Mixture) -> mixture.Mixture:
    """The part of the data that --data_fraction asks for. Raises ValueError where it is too small for one step."""
    chosen, training = args.data, args.training
    assert chosen.data_fraction is not None
    part, subsets = subset.with_fraction(
        mixed, chosen.data_fraction, chosen.data_fraction_of, chosen.data_fraction_same
    )
    samples_a_step = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    fault = subset.too_small(part, subsets, samples_a_step)
    if fault is not None:
        raise ValueError(fault)
    say(*(one.words(chosen.data_fraction_same) for one in subsets))
    return part


def build_dataset(
    args: Arguments,
    conversations: mixture.Mixture | Sequence[conversation.Conversation],
    processor: Any,
    family: families.Family,
    *,
    for_training: bool = True,
) -> dataset.ConversationDataset:
    """The samples that fit, with what is said of them.

    for_training   False: to evaluate on
    """
    built = dataset.build_dataset(
        conversations,
        processor,
        family,
        max_length=args.data.model_max_length,
        on_bad_sample=args.data.on_bad_sample,
        streaming=args.data.streaming,
        look=args.look.look_rows if args.look.supervises and for_training else None,
        say=say,
    )
    if for_training:
        say(*_mixed_anew(conversations, built.mixture))
    else:
        lines = [*evaluated_and_trained(args)]
        built.is_held_out = not lines
        say(*lines)
    return built


def _mixed_anew(
    before: mixture.Mixture | Sequence[conversation.Conversation], after: mixture.Mixture
) -> Iterator[str]:
    """The table of sources once more, where samples that were left out have changed it."""
    if isinstance(before, mixture.Mixture) and len(after.parts) > 1 and after.parts != before.parts:
        yield f"samples were left out, so an epoch is no longer that of the table above, but:\n{after.table_text()}"


def evaluated_and_trained(args: Arguments) -> Iterator[str]:
    """A line for each training source that holds the file of --eval_data_path, or a copy of it."""
    data = args.data
    sources = [("data_path", data.data_path)] if data.data_path else []
    for flag, texts in (("corrective_data", data.corrective_data), ("replay_data", data.replay_data)):
        sources += [(flag, mixture.parse_source(text).path) for text in texts or ()]
    evaluated = _files(data.eval_data_path) if data.eval_data_path else []
    best = ", and the checkpoint that is kept as the best is the one that fits it best"
    for flag, path in sources:
        if any(_is_copy(one, other) for one in evaluated for other in _files(path)):
            yield (
                f"warning: --eval_data_path {data.eval_data_path} is trained on: --{flag} {path} holds the same data; "
                f"its loss and answers say nothing about other data{best * args.training.load_best_model_at_end}; give "
                "data that is not trained on, unless this is meant"
            )


def _files(path: str) -> list[Path]:
    """The files of a source that hold its samples."""
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    return sorted(one for one in folder.iterdir() if one.suffix in (".parquet", ".arrow"))


def _is_copy(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def require_everywhere(folder: Path | None) -> None:
    """Raises ValueError if a machine of the run lacks the checkpoint from which the first one resumes."""
    if folder is None or not is_distributed():
        return
    seen = gathered((socket.gethostname(), (folder / run_folder.STATE_FILE).is_file()))
    without = sorted({host for host, there in seen if not there})
    if without:
        raise ValueError(
            f"{folder}: missing on {', '.join(without)}; copy it there, or share --output_dir between the "
            "machines. A run on disks of their own saves everywhere with --save_on_each_node True"
        )


def _merge(adapter: str) -> str:
    return f"python -m finetune.export {shlex.quote(adapter)} --output_dir MERGED"
