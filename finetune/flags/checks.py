"""Invalid and contradictory flags, found before anything is loaded."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import transformers
from huggingface_hub import get_token
from transformers import HfArgumentParser

from finetune import fields
from finetune.data import mixture
from finetune.flags import deepspeed_file, help
from finetune.flags.arguments import Arguments
from finetune.flags.argv import split_flags
from finetune.samples.listing import shortened


def check_values(reader: HfArgumentParser, argv: Sequence[str]) -> None:
    """Raises ValueError for words that belong to no flag, for unknown flags, and for surplus values."""
    several = {
        name for action in reader._actions if action.nargs in ("+", "*") for name in action.option_strings
    }
    known = {name for action in reader._actions for name in action.option_strings}
    faults = []
    for name, values in split_flags(argv):
        flag = f"--{name}"
        if not name:
            faults.append(help.no_flag(values[0]))
        elif flag not in known:
            faults.append(help.no_such_flag(flag))
        elif len(values) > 1 and flag not in several:
            hint = _SEVERAL_FILES if name == "data_path" else ""
            shown = " ".join(values)
            faults.append(f"{flag}: found {len(values)} values ({shown[:120]}), expected one{hint}")
    if faults:
        raise ValueError("\n".join(faults))


_SEVERAL_FILES = (
    "; give further files as --replay_data or --corrective_data (FILE alone: each sample once per epoch)"
)

MOST_BYTES = 1800
"""Of a message of faults."""
# HfArgumentParser and transformers parse a value of these as JSON where it begins with "{", otherwise as a path.
_FILES_TOO = ("deepspeed", "fsdp_config", "accelerator_config")


def object_faults(given: dict[str, Any]) -> Iterator[str]:
    """Faults of the flags whose value is a JSON object."""
    for name in transformers.TrainingArguments._VALID_DICT_FIELDS:
        value = given.get(name)
        if not isinstance(value, str) or (name in _FILES_TOO and not value.startswith("{")):
            continue
        try:
            found = fields.parse(value, f"--{name}")
        except ValueError as error:
            yield f"{error}; expected an object such as '{{\"key\": 1}}'"
            continue
        if not isinstance(found, dict):
            yield f"--{name}: found {fields.shown(found)}, expected an object such as '{{\"key\": 1}}'"


def check(arguments: Arguments) -> None:
    """Check flags against each other, before anything takes time.

    Raises ValueError that lists every contradiction: what was found, what was expected, and what to do.
    """
    faults = [
        *_check_sources(arguments),
        *_check_mixture(arguments),
        *_check_deepspeed(arguments),
        *_check_loop(arguments),
        *_check_modes(arguments),
        *_check_look(arguments),
        *_check_rates(arguments),
        *_check_evaluation(arguments),
        *_check_hub(arguments),
    ]
    refuse(faults)


def remarks(arguments: Arguments) -> Iterator[str]:
    """A line for each flag that is valid, and does nothing beside the others."""
    data, chosen, training = arguments.data, arguments.adaptation, arguments.training
    if (
        data.eval_data_path is not None
        and str(training.eval_strategy.value) == "no"
        and not training.eval_on_start
    ):
        yield (
            "--eval_data_path is given, but --eval_strategy is no: nothing is evaluated; give --eval_strategy steps "
            "(or epoch)"
        )
    yield from _idle_warmup(arguments)
    yield from _worst_as_best(training)
    idle = _changed(chosen, ("lora_r", "lora_alpha", "lora_dropout"))
    if idle and not arguments.lora:
        yield (
            f"{', '.join(idle)}: no effect without adapters, and this run trains none; for adapters give "
            "--use_lora True"
        )
    yield from _idle_monitoring(arguments.monitor)
    if arguments.training.dry_run and (why := _why_unjudged(arguments)):  # in a run, the monitor says it
        yield f"attention will not be judged, since {why}"
    idle = _changed(arguments.evaluation, ("eval_pictures", "eval_max_new_tokens"))
    if idle and not arguments.evaluation.eval_generate:
        yield f"{', '.join(idle)}: no effect without generated answers; for them give --eval_generate N"


def _idle_monitoring(chosen: Any) -> Iterator[str]:
    if not chosen.monitor:
        # --stop_when is refused, and of --probes the run says that nothing is monitored.
        names = [one.name for one in dataclasses.fields(chosen) if one.name not in ("probes", "stop_when")]
        if idle := _changed(chosen, names):
            yield (
                f"{', '.join(idle)}: no effect without the monitor; to monitor give --monitor True --probes FILE"
            )
        return
    if chosen.stop_when is None and (idle := _changed(chosen, ("stop_patience",))):
        yield f"{idle[0]}: no effect without --stop_when; give --stop_when corrected, or leave it out"
    if chosen.stop_when is not None and (idle := _changed(chosen, ("checkpoint_depth",))):
        yield f"{idle[0]}: no effect with --stop_when, for which checkpoints are measured at --probe_depth"


def _changed(group: Any, names: Sequence[str]) -> list[str]:
    """Those of a group's flags that have another value than the default. Where they do nothing that is no error: with
    their defaults they stand in every file of flags that a run has written."""
    defaults = {one.name: one.default for one in dataclasses.fields(group)}
    return [f"--{name}" for name in names if getattr(group, name) != defaults[name]]


def _worst_as_best(training: Any) -> Iterator[str]:
    """transformers takes the direction from the metric, unless it is given."""
    metric, greater = training.metric_for_best_model, training.greater_is_better
    if not training.load_best_model_at_end or metric is None or greater is None:
        return
    is_loss = metric.removeprefix("eval_") == "loss"
    if greater == is_loss:
        more = "less loss is better" if is_loss else "more right answers are better"
        yield (
            f"warning: --greater_is_better {greater} with --metric_for_best_model {metric}: the worst checkpoint is "
            f"kept as the best, since {more}; leave out --greater_is_better (an older run.yaml may hold it)"
        )


_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")


def _idle_warmup(arguments: Arguments) -> Iterator[str]:
    """One line for all ways to give it: the flag of today, that of 2023, and the default of a script."""
    training = arguments.training
    kind = str(training.lr_scheduler_type.value)
    if not training.warmup_steps or kind not in _WITHOUT_WARMUP:
        return
    if training.deepspeed and "scheduler" in deepspeed_file.read(training.deepspeed):
        return  # which warms up, and --lr_scheduler_type has no effect
    remedy = "give --lr_scheduler_type constant_with_warmup, or " if kind == "constant" else ""
    yield (
        f"--warmup_steps {training.warmup_steps:g}: no effect with --lr_scheduler_type {kind}, which starts at the "
        f"full rate; {remedy}leave it out (where a script gives it: --warmup_steps 0)"
    )


def refuse(faults: Sequence[str]) -> None:
    """Raises ValueError of all of them, if there are any, each once; no line of it is longer than people read, and no
    more of them are shown."""
    different = [*dict.fromkeys(faults)]
    shown: list[str] = []
    for number, fault in enumerate(different):
        text = "\n".join(map(shortened, fault.split("\n")))
        if shown and len("\n".join([*shown, text]).encode()) > MOST_BYTES:
            shown.append(f"… and {len(different) - number} more")
            break
        shown.append(text)
    if shown:
        raise ValueError("\n".join(shown))


def _check_sources(arguments: Arguments) -> Iterator[str]:
    model, data, monitor, training = arguments.model, arguments.data, arguments.monitor, arguments.training
    if model.model_name_or_path is None:
        yield "--model_name_or_path: missing; give a checkpoint (without it and without --data_path, the demo runs)"
    if data.data_path is None and not data.corrective_data:
        yield "--data_path: missing; give the file or folder with the training conversations"
    for name, path in (("data_path", data.data_path), ("eval_data_path", data.eval_data_path)):
        if path is not None and not os.path.exists(path):
            yield f"--{name}: no such file or folder: {path!r} (working directory {os.getcwd()})"
    if data.image_folder is not None and not os.path.isdir(data.image_folder):
        yield f"--image_folder: no such folder: {data.image_folder!r} (working directory {os.getcwd()})"
    if monitor.monitor and monitor.probes is None:
        yield "--monitor True: requires --probes FILE, the images and questions to monitor"
    for name, path in (("probes", monitor.probes), ("calibration_probes", monitor.calibration_probes)):
        if path is not None and not os.path.isfile(path):
            yield f"--{name}: no such file: {path!r} (working directory {os.getcwd()})"
    if monitor.stop_when is not None and not monitor.monitor:
        yield f"--stop_when {monitor.stop_when}: requires --monitor True, which decides when to stop"
    if str(training.eval_strategy.value) != "no" and data.eval_data_path is None:
        yield f"--eval_strategy {training.eval_strategy.value}: requires --eval_data_path"
    if monitor.key_layers != "auto" and not _are_numbers(monitor.key_layers):
        yield f"--key_layers: found {monitor.key_layers!r}, expected auto or layer numbers such as 8,16,24,31"


def _check_mixture(arguments: Arguments) -> Iterator[str]:
    data = arguments.data
    if data.corrective_data or data.replay_data:
        yield from mixture.spec_faults(data.data_path, data.corrective_data or (), data.replay_data or ())
    if data.data_fraction is None and (data.data_fraction_of or data.data_fraction_same != "steps"):
        yield (
            "--data_fraction_of, --data_fraction_same: have no effect without --data_fraction; give it, or leave them "
            "out"
        )
    if data.data_fraction is not None and data.streaming:
        yield (
            "--data_fraction with --streaming: the order of the samples needs all of them, which streaming does not "
            "read ahead; leave out one"
        )
    if (
        data.data_fraction is not None
        and data.data_fraction_same == "epochs"
        and arguments.training.max_steps > 0
    ):
        yield (
            f"--data_fraction_same epochs with --max_steps {arguments.training.max_steps}: the number of steps would "
            "be the same, and not that of the epochs; give --num_train_epochs instead of --max_steps"
        )


def _check_modes(arguments: Arguments) -> Iterator[str]:
    """The mode of each component against the flags of 2023, and flags that have no effect without adapters."""
    chosen, modes = arguments.adaptation, arguments.modes
    short = "q_lora" if chosen.q_lora else "use_lora"
    if modes["language"] != "lora" and (chosen.use_lora or chosen.q_lora):
        reason = ", and 4-bit weights cannot be trained in full" if chosen.q_lora else ""
        yield (
            f"--{short} True with --language {modes['language']}: --{short} puts adapters on the language "
            f"layers{reason}; leave out one of the two (for adapters elsewhere: --vision lora, --connector lora)"
        )
    if not chosen.fix_vit and modes["vision"] == "frozen":
        yield "--fix_vit False with --vision frozen: they contradict each other; leave out --fix_vit"
    along = chosen.train_connector
    if along is not None and along != (modes["connector"] != "frozen"):
        yield (
            f"--train_connector {along} with --connector {modes['connector']}: they contradict each other; "
            "leave out --train_connector"
        )
    if all(mode == "frozen" for mode in modes.values()):
        yield (
            "every component is frozen, so nothing would be trained; give --vision, --connector or --language lora "
            "or full"
        )
    if chosen.lora_target_modules is not None and modes["language"] != "lora":
        yield (
            "--lora_target_modules: has no effect without --use_lora or --q_lora, because it names layers of the "
            f"language model, and --language is {modes['language']}; add one of them, or leave it out"
        )
    # bitsandbytes casts the bias of a 4-bit layer in place to the compute precision.
    if chosen.q_lora and chosen.lora_bias != "none" and (arguments.training.bf16 or arguments.training.fp16):
        yield (
            f"--lora_bias {chosen.lora_bias} with --q_lora in half precision: biases of 4-bit layers would be rounded "
            "to half precision at every step, which loses small updates; leave out --lora_bias, or --bf16 and --fp16"
        )
    if chosen.train_embeddings and modes["language"] == "full":
        yield "--train_embeddings: has no effect with --language full, which trains the embeddings too; leave it out"
    if not arguments.lora:
        for name, unwanted in (
            ("lora_weight_path", bool(chosen.lora_weight_path)),
            ("train_embeddings", chosen.train_embeddings and modes["language"] == "frozen"),
            ("use_dora", chosen.use_dora),
            ("lora_bias", chosen.lora_bias != "none"),
        ):
            if unwanted:
                yield f"--{name}: has no effect without adapters; add --use_lora True, or leave it out"


def _check_look(arguments: Arguments) -> Iterator[str]:
    chosen, monitor, training = arguments.look, arguments.monitor, arguments.training
    defaults = {one.name: one.default for one in dataclasses.fields(chosen)}
    if not chosen.supervises:
        changed = [name for name, value in vars(chosen).items() if value != defaults[name]]
        if changed:
            listed = ", ".join(f"--{name}" for name in changed)
            yield f"{listed}: no effect without supervision; add --look_weight 0.2, or leave it out"
        return
    if chosen.look_layers == "key" and not monitor.monitor:
        yield (
            "--look_layers key: the key layers are the monitor's, and there is no monitor; give --monitor True, or "
            "name layers: --look_layers all, or 8,12,16"
        )
    elif chosen.look_layers not in ("key", "all") and not _are_numbers(chosen.look_layers):
        yield f"--look_layers: found {chosen.look_layers!r}, expected key, all, or layer numbers such as 8,12,16"
    if monitor.stop_when is not None and (why := _why_unjudged(arguments)):
        yield (
            f"--stop_when {monitor.stop_when}: attention would not be judged, and without it nothing is "
            f"{monitor.stop_when}, since {why}; or leave out --stop_when"
        )
    if chosen.look_warmup + chosen.look_release > 1:
        yield (
            f"--look_warmup {chosen.look_warmup} with --look_release {chosen.look_release}: expected at most 1 "
            "together: the weight would fall before it has risen"
        )
    if (training.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        yield (
            "--look_weight with reentrant activation checkpointing: its first forward has no gradient, so rows have "
            'none; leave out "use_reentrant" of --gradient_checkpointing_kwargs'
        )
    if training.torch_compile:
        yield "--look_weight with --torch_compile: kernels are watched, and compiled ones cannot be; leave out one"


def _why_unjudged(arguments: Arguments) -> str:
    """Why no key layer is left in which a monitor could judge attention, and what to do; "" where one may be: which key
    layers are chosen, and whether the model looks through a resampler, the monitor learns as it begins."""
    chosen, monitor = arguments.look, arguments.monitor
    if not (chosen.supervises and monitor.monitor):
        return ""
    covers = chosen.look_layers in ("key", "all")
    if not covers and _are_numbers(chosen.look_layers) and _are_numbers(monitor.key_layers):
        covers = {*monitor.chosen_layers()} <= {*chosen.listed_layers()}
    if not covers:
        return ""
    return (
        f"--look_layers {chosen.look_layers} supervises every key layer; name layers with --look_layers that leave "
        "some of --key_layers to be judged"
    )


def _are_numbers(layers: str) -> bool:
    return all(part.strip().isdigit() for part in layers.split(","))


# These optimizers build their own parameter groups.
_WITHOUT_GROUPS = ("galore", "apollo", "lomo", "adalomo")


def _check_rates(arguments: Arguments) -> Iterator[str]:
    own, training = arguments.own_rates, arguments.training
    for component, rate in own.items():
        if arguments.modes[component] == "frozen":
            yield (
                f"--{component}_learning_rate {rate}: --{component} is frozen; give --{component} lora or full, "
                "or leave the rate out"
            )
    if not own:
        return
    optim = str(getattr(training.optim, "value", training.optim))
    if optim.startswith(_WITHOUT_GROUPS):
        yield (
            f"--optim {optim}: supports only one learning rate; use adamw_torch, or leave out the component "
            "learning rates"
        )
    config = deepspeed_file.read(training.deepspeed) if training.deepspeed else {}
    where = deepspeed_file.name_of(training.deepspeed or "")
    for section in ("optimizer", "scheduler"):
        if section in config:
            yield (
                f"{where}: its {section!r} supports only one learning rate, but one is given for {', '.join(own)}; "
                f"remove {section!r} from the file, so that the flags decide"
            )


def _check_evaluation(arguments: Arguments) -> Iterator[str]:
    chosen, training = arguments.evaluation, arguments.training
    evaluates = str(training.eval_strategy.value) != "no" or training.eval_on_start
    if training.eval_on_start and arguments.data.eval_data_path is None:
        yield "--eval_on_start: requires --eval_data_path"
    if chosen.eval_generate > 0 and not evaluates:
        yield (
            f"--eval_generate {chosen.eval_generate}: answers are generated at evaluations, and this run has none; "
            "give --eval_strategy steps (or epoch) and --eval_data_path, or leave it out"
        )
    if chosen.eval_generate > 0 and training.fsdp:
        yield (
            f"--eval_generate {chosen.eval_generate} with --fsdp: a model sharded by FSDP cannot generate; use "
            "--deepspeed, or leave out --eval_generate to evaluate the loss alone"
        )
    if evaluates and training.metric_for_best_model is not None:
        generates = chosen.eval_generate > 0
        yield from _check_metric(training.metric_for_best_model, generates=generates)


_METRICS_OF_ANSWERS = ("exact_match", "box_accuracy", "box_iou", "box_pointing")


def _check_metric(metric: str, *, generates: bool) -> Iterator[str]:
    """The Trainer looks for the metric after the first evaluation, when steps are trained."""
    name = metric.removeprefix("eval_")
    if name in _METRICS_OF_ANSWERS and not generates:
        yield (
            f"--metric_for_best_model {metric}: is of generated answers, and none are generated; give --eval_generate "
            "N as well, or --metric_for_best_model loss"
        )
    elif name not in ("loss", *_METRICS_OF_ANSWERS):
        yield (
            f"--metric_for_best_model: found {metric!r}, expected loss, or with --eval_generate "
            f"{', '.join(_METRICS_OF_ANSWERS[:-1])} or {_METRICS_OF_ANSWERS[-1]}"
        )


def _check_loop(arguments: Arguments) -> Iterator[str]:
    data, training = arguments.data, arguments.training
    strategy = training.train_sampling_strategy
    if data.streaming and data.packing:
        yield "--packing with --streaming: packing needs token counts, which streaming does not have; leave out one"
    if data.streaming and strategy == "group_by_length":
        yield (
            "--train_sampling_strategy group_by_length with --streaming: grouping needs token counts, which "
            "streaming does not have; leave out one"
        )
    if data.packing and strategy == "group_by_length":
        yield (
            "--packing with --train_sampling_strategy group_by_length: packed rows have about equal lengths "
            "already; leave out one"
        )
    if strategy == "batch_rebalance":
        yield (
            "--train_sampling_strategy batch_rebalance: not supported, because the order of the samples would "
            "depend on the number of processes; expected random, sequential or group_by_length, or --packing True, "
            "which fills every row"
        )
    if training.fsdp and training.use_cpu:
        yield "--fsdp: accelerate ignores it on a CPU, so every process would hold the whole model; leave it out"
    if training.n_gpu > 1:
        yield (
            f"one process and {training.n_gpu} GPUs: torch's DataParallel cannot split the images of a batch; start "
            f"one process per GPU (torchrun --nproc_per_node {training.n_gpu} finetune.py ...), or set "
            "CUDA_VISIBLE_DEVICES=0"
        )


def _check_hub(arguments: Arguments) -> Iterator[str]:
    """The Trainer creates the hub's repository when it is built: after the weights have loaded."""
    training = arguments.training
    if training.push_to_hub and not (training.hub_token or get_token()):
        yield (
            "--push_to_hub: found no access token for the hub; log in (hf auth login), set HF_TOKEN, give "
            "--hub_token, or leave the flag out and upload the folder later"
        )


def _check_deepspeed(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if not training.deepspeed:
        return
    config = deepspeed_file.read(training.deepspeed)
    stage, where = config["zero_optimization"].get("stage", 0), deepspeed_file.name_of(training.deepspeed)
    if arguments.adaptation.q_lora and stage == 3:
        yield "--q_lora with ZeRO-3: 4-bit weights cannot be sharded; use ds_config_zero2.json"
    if config.get("scheduler", {}).get("type") and not training.warmup_steps:
        yield (
            f"{where}: its scheduler {config['scheduler']['type']} rejects a warm-up of 0; give --warmup_steps, "
            "or remove 'scheduler' from the file so that --lr_scheduler_type decides"
        )
