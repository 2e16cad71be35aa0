"""The flags of ``finetune.py``: groups, the translation of old flags, and the checks that need two groups.

Nothing here imports model code, so ``--help`` and a mistyped flag answer at once.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import transformers
from transformers import HfArgumentParser

from finetune import deepspeed_file, fields, help, limits, mixture, packages, run_file

DEFAULT_OUTPUT_DIR = "output_qwen"

Mode = Literal["frozen", "lora", "full"]
"""How a component trains."""


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint: a hub name, a model folder or an adapter folder. Without it and without "
                          "--data_path, the embedded demo."},
    )  # fmt: skip
    cache_dir: str | None = field(default=None, metadata={"help": "Where the hub's downloads are kept."})
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = field(
        default="sdpa",
        metadata={"help": "The attention kernel. flash_attention_2 needs flash-attn, imported only then."},
    )


@dataclass
class DataArguments:
    """What it learns from."""

    data_path: str | None = field(
        default=None,
        metadata={"help": "Training data: a file of Qwen-VL, LLaVA, ShareGPT or OpenAI conversations (.json, "
                          ".jsonl, .parquet), or a folder of parquet or of Hugging Face datasets."},
    )  # fmt: skip
    corrective_data: list[str] | None = field(
        default=None,
        metadata={"help": "Corrective data mixed in: FILE:0.3 is a share of 30 %% of the samples, FILE:x2 is "
                          "each sample twice an epoch, FILE alone each once."},
    )  # fmt: skip
    replay_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Data of earlier training, replayed against forgetting; written as corrective data is."
        },
    )
    eval_data_path: str | None = field(
        default=None, metadata={"help": "Evaluation data, in any of the same formats."}
    )
    data_format: Literal["auto", "qwen-vl", "llava", "sharegpt", "openai"] = field(
        default="auto",
        metadata={
            "help": "How the data is written. auto: recognised from what its records hold, or refused."
        },
    )
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Where image paths of the data begin, beside the data file's folder and the working "
                          "directory."},
    )  # fmt: skip
    box_units: Literal["pixels", "thousandths", "text"] | None = field(
        default=None,
        metadata={"help": "What the numbers of bbox_2d, bbox, point_2d and objects.bbox in the data are: pixels of the "
                          "upright picture, thousandths, or text (words, trained as they are written). <box> and "
                          "<|box_start|> markup is thousandths always."},
    )  # fmt: skip
    video_fps: float = field(
        default=2.0, metadata={"help": "Frames a second that are taken of a video file."}
    )
    video_max_frames: int = field(
        default=32, metadata={"help": "Most frames of a video; of a longer one they are further apart."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read samples when it is their turn: nothing is checked or counted ahead."},
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Put several short samples into one row of --model_max_length tokens; they do not see "
                          "each other."},
    )  # fmt: skip
    min_pixels: int | None = field(
        default=None, metadata={"help": "Least pixels of a picture (families of dynamic resolution)."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Most pixels of a picture (families of dynamic resolution)."}
    )
    lazy_preprocess: bool = field(
        default=False,
        metadata={"help": "Accepted as in 2023. Images are always decoded lazily, by the data loader."},
    )
    model_max_length: int = field(
        default=8192, metadata={"help": "Most tokens of a sample. Longer samples are never cut, see next."}
    )
    on_bad_sample: Literal["error", "drop", "shrink"] = field(
        default="error",
        metadata={"help": "What happens to samples with faults or over --model_max_length: stop with all of "
                          "them named, leave them out and say which, or shrink the pictures of too long ones "
                          "(families of dynamic resolution) and stop at other faults."},
    )  # fmt: skip


@dataclass
class AdaptationArguments:
    """Which parameters train, and how."""

    use_lora: bool = field(
        default=False, metadata={"help": "Train low-rank adapters of the language layers."}
    )
    q_lora: bool = field(
        default=False,
        metadata={"help": "LoRA over language layers that are quantised to 4 bit (NF4) on loading."},
    )
    use_dora: bool = field(
        default=False,
        metadata={"help": "With LoRA: train magnitudes beside directions (DoRA, arXiv 2402.09353)."},
    )
    vision: Literal["frozen", "lora", "full"] | None = field(
        default=None, metadata={"help": "How the vision tower trains. Default: as --fix_vit says."}
    )
    connector: Literal["frozen", "lora", "full"] | None = field(
        default=None, metadata={"help": "How the connector trains. Default: as --train_connector says."}
    )
    language: Literal["frozen", "lora", "full"] | None = field(
        default=None,
        metadata={"help": "How the language model trains. Default: lora with --use_lora, else full."},
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "The vision tower's own. Default: --learning_rate."}
    )
    connector_learning_rate: float | None = field(
        default=None, metadata={"help": "The connector's own. Default: --learning_rate."}
    )
    language_learning_rate: float | None = field(
        default=None, metadata={"help": "The language model's own. Default: --learning_rate."}
    )
    fix_vit: bool = field(default=True, metadata={"help": "Keep the vision tower as it is, in every mode."})
    train_connector: bool | None = field(
        default=None,
        metadata={"help": "Train what joins vision and language (the resampler). Default: yes in full "
                          "fine-tuning, no with LoRA."},
    )  # fmt: skip
    train_embeddings: bool = field(
        default=False,
        metadata={"help": "With LoRA: train the word embeddings and the output layer too, as is wise for a base "
                          "model that has not seen the chat format's tokens."},
    )  # fmt: skip
    lora_r: int = field(default=64, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Adapters are scaled by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the adapters' input."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers that get an adapter, as endings of names inside the language layers. "
                          "Default: the family's (Qwen-VL: c_attn attn.c_proj w1 w2)."},
    )  # fmt: skip
    lora_weight_path: str = field(
        default="",
        metadata={
            "help": "An adapter folder to go on from, instead of fresh adapters. Rank, scale, targets and biases are "
            "its own."
        },
    )
    allow_other_base: bool = field(
        default=False,
        metadata={
            "help": "Let an adapter be trained on over other weights than it was made on, as long as it fits."
        },
    )
    lora_bias: Literal["none", "all", "lora_only"] = field(
        default="none", metadata={"help": "Which biases train along."}
    )


@dataclass
class EvaluationArguments:
    """What is generated at each evaluation, beside the loss (--eval_strategy, --eval_data_path)."""

    eval_generate: int = field(
        default=0,
        metadata={
            "help": "Answers generated greedily for so many evaluation samples; exact match is counted."
        },
    )
    eval_pictures: int = field(
        default=4, metadata={"help": "How many of them TensorBoard shows, picture and answer together."}
    )
    eval_max_new_tokens: int = field(default=64, metadata={"help": "Most tokens of a generated answer."})


@dataclass
class MonitorArguments:
    """What is watched while it learns."""

    monitor: bool = field(
        default=False, metadata={"help": "Probe attention at each checkpoint and compare at the end."}
    )
    probes: str | None = field(default=None, metadata={"help": "The probe file."})
    key_layers: str = field(
        default="auto",
        metadata={"help": "Language layers to judge by: auto (chosen on the untrained model) or 8,16,24,31."},
    )
    calibration_probes: str | None = field(
        default=None,
        metadata={
            "help": "A probe file, of other pictures, to choose the key layers on. Default: a fifth of the probes."
        },
    )
    probe_depth: Literal["quick", "full"] = field(
        default="quick",
        metadata={
            "help": "How much is measured at both ends of the run: full adds windows, curves, more controls."
        },
    )
    probe_steps: int | None = field(
        default=None, metadata={"help": "Probe every N steps. Default: whenever a checkpoint is saved."}
    )
    stop_when: Literal["corrected"] | None = field(
        default=None, metadata={"help": "corrected: end training once every group of probes is."}
    )
    stop_patience: int = field(
        default=2, metadata={"help": "With --stop_when: at so many checkpoints in a row."}
    )

    def chosen_layers(self) -> tuple[int, ...]:
        """``"8,16,24,31"`` → ``(8, 16, 24, 31)``; () for ``"auto"``."""
        return () if self.key_layers == "auto" else tuple(int(part) for part in self.key_layers.split(","))


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Every flag of transformers' Trainer; only defaults differ, and what a run of ours does with its folder."""

    output_dir: str | None = field(default=DEFAULT_OUTPUT_DIR, metadata={"help": "Where the run's files go."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that HfArgumentParser reads)
        default="tensorboard",
        metadata={"help": "Where curves go: tensorboard, none, or another integration."},
    )
    optim: str = field(default="adamw_torch", metadata={"help": "The optimizer."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Hide NaN losses from the curves. Off: a loss that is not finite stops."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has no meaning for this data."})
    prediction_loss_only: bool = field(
        default=True,
        metadata={"help": "Evaluate the loss without keeping logits, which would fill the memory."},
    )
    dataloader_persistent_workers: bool = field(
        default=True,
        metadata={"help": "Keep the data loader's workers from one epoch to the next."},
    )
    logging_dir: str | None = field(
        default=None, metadata={"help": "Where TensorBoard's files go. Default: OUTPUT_DIR/runs."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete what an earlier run left in --output_dir, and start anew."}
    )
    config: str | None = field(
        default=None,
        metadata={"help": "A YAML file of flags (name: value, a line each). Flags beside it win."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Show what would be trained (a sample with its labels, the parameters) and stop."},
    )

    def __post_init__(self) -> None:
        # transformers refuses --bf16 on a machine without an accelerator unless told that this is meant.
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()


@dataclass(frozen=True)
class Arguments:
    """All groups of one run."""

    model: ModelArguments
    data: DataArguments
    adaptation: AdaptationArguments
    evaluation: EvaluationArguments
    monitor: MonitorArguments
    training: TrainingArguments

    @property
    def modes(self) -> dict[str, Mode]:
        """Component → frozen, lora or full: what is asked for by name, else what the flags of 2023 say.

        The connector trains in full unless the language layers have adapters.
        """
        chosen = self.adaptation
        language: Mode = chosen.language or ("lora" if chosen.use_lora or chosen.q_lora else "full")
        along = language != "lora" if chosen.train_connector is None else chosen.train_connector
        return {
            "vision": chosen.vision or ("frozen" if chosen.fix_vit else "full"),
            "connector": chosen.connector or ("full" if along else "frozen"),
            "language": language,
        }

    @property
    def lora(self) -> bool:
        """Are there adapters, in whichever component?"""
        return "lora" in self.modes.values()

    @property
    def train_connector(self) -> bool:
        return self.modes["connector"] != "frozen"

    @property
    def own_rates(self) -> dict[str, float]:
        """Component → its own learning rate, of those that are given one."""
        chosen = self.adaptation
        given = {
            "vision": chosen.vision_learning_rate,
            "connector": chosen.connector_learning_rate,
            "language": chosen.language_learning_rate,
        }
        return {component: rate for component, rate in given.items() if rate is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Flags of 2023
# ---------------------------------------------------------------------------------------------------------------------

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # below 1, warmup_steps is a ratio
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Old name → new name. Applied only where the installed transformers knows the new name alone, or both."""

BOOLEAN_VALUES = {
    "group_by_length": ("train_sampling_strategy", "group_by_length"),
    "adafactor": ("optim", "adafactor"),
}
"""A flag that was a switch → the flag and the value that it switched to."""

DROPPED = {
    "save_safetensors": "weights are always saved as safetensors",
    "fp16_opt_level": "apex is gone",
    "fp16_backend": "mixed precision is torch's own",
    "half_precision_backend": "mixed precision is torch's own",
    "sharded_ddp": "use --deepspeed or --fsdp",
    "fsdp_min_num_params": "say it in --fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "say it in --fsdp_config",
    "use_mps_device": "the device is found by itself",
    "use_ipex": "torch has it built in",
    "jit_mode_eval": "use --torch_compile",
    "torchdynamo": "use --torch_compile",
    "tpu_num_cores": "the device is found by itself",
    "tpu_metrics_debug": "use --debug",
    "past_index": "no model of today needs it",
    "mp_parameters": "SageMaker's launcher is gone",
    "ray_scope": "there is no search here",
    "use_legacy_prediction_loop": "there is only one loop",
    "dispatch_batches": "say it in --accelerator_config",
    "include_inputs_for_metrics": "evaluation keeps the loss alone",
    "push_to_hub_organization": "say it in --hub_model_id",
    "xpu_backend": "use --ddp_backend",
}
"""Flags that transformers dropped, and why nothing is lost."""


def translate(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of 2023 → flags of the installed transformers, and one line for each that changed.

    ``["--warmup_ratio", "0.01", "--save_safetensors", "False"]`` becomes ``["--warmup_steps", "0.01"]`` and two
    lines. ``--flag value``, ``--flag=value`` and a switch without a value are understood.
    """
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    translated: list[str] = []
    lines: list[str] = []
    for name, values in _flags(argv):
        new, said = _translate_one(name, values, known)
        translated += new
        lines += said
    return translated, lines


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Split into (flag name, its values); what stands before the first flag has the name ''."""
    name, values = "", list[str]()
    for token in argv:
        if not token.startswith("--"):
            values.append(token)
            continue
        if name or values:
            yield name, values
        head, equals, value = token[2:].partition("=")
        name, values = head.replace("-", "_"), [value] if equals else []
    if name or values:
        yield name, values


def _translate_one(name: str, values: list[str], known: set[str]) -> tuple[list[str], list[str]]:
    shown = " ".join([f"--{name}", *values])
    new_name = RENAMED.get(name)
    if new_name in known:
        new = [f"--{new_name}", *values]
        return new, [f"{shown}: is {' '.join(new)} today, and used as that"]
    if name in known:
        return _rejoin(name, values), []
    if name in BOOLEAN_VALUES:
        new_name, value = BOOLEAN_VALUES[name]
        new = [f"--{new_name}", value] if _truth(name, values) else []
        return new, [f"{shown}: is {' '.join(new) if new else 'the default'} today, and used as that"]
    if name in DROPPED:
        return [], [f"{shown}: gone from transformers, ignored; {DROPPED[name]}"]
    return _rejoin(name, values), []


def _rejoin(name: str, values: list[str]) -> list[str]:
    return [f"--{name}", *values] if name else values


def _truth(name: str, values: list[str]) -> bool:
    if not values:
        return True
    word = values[0].lower()
    if len(values) > 1 or word not in ("true", "false", "yes", "no", "1", "0"):
        raise ValueError(f"--{name}: found {' '.join(values)!r}, expected True or False")
    return word in ("true", "yes", "1")


# ---------------------------------------------------------------------------------------------------------------------
# Parsing and checking
# ---------------------------------------------------------------------------------------------------------------------

GROUPS = (
    ModelArguments,
    DataArguments,
    AdaptationArguments,
    EvaluationArguments,
    MonitorArguments,
    TrainingArguments,
)


def default_values() -> dict[str, Any]:
    """Flag → what it is where nobody gives it."""
    every = [one for group in GROUPS for one in dataclasses.fields(group)]
    return {one.name: one.default for one in every if one.default is not dataclasses.MISSING}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Not argparse's own, which repeats all flags in 20 kB."""
        raise ValueError(f"{message} (python finetune.py --help lists all)")


def parser() -> HfArgumentParser:
    return _Parser(
        GROUPS,
        description="Fine-tune a Qwen-VL and see where its attention goes. Without flags: the embedded demo.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def has_value(argv: Sequence[str], name: str) -> bool:
    """Is the flag given?"""
    return any(given == name for given, _ in _flags(argv))


def merge(defaults: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Default flags, with those the user gives in their place: ``argv`` wins, flag by flag."""
    given = {name for name, _ in _flags(argv)}
    kept = [
        token for name, values in _flags(defaults) if name not in given for token in _rejoin(name, values)
    ]
    return [*kept, *argv]


def expanded(argv: Sequence[str]) -> list[str]:
    """The command line with the flags of ``--config`` written out.

    Usual flags of a script, before ``--given``, give way to the file's, and those to the ones that are given.

    Raises ValueError for a file that holds no flags, as :mod:`finetune.run_file` says.
    """
    usual, given = _parted(argv)
    files = [value for name, values in _flags(given) if name == "config" for value in values]
    if not files:
        return merge(usual, given)
    if len(files) > 1:
        raise ValueError(f"--config: found {len(files)} files ({', '.join(files)}), expected one")
    rest = [token for name, values in _flags(given) if name != "config" for token in _rejoin(name, values)]
    return merge(usual, merge(run_file.flags_of(files[0]), rest))


def _parted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The usual flags of a script and the given ones; all are given where there is no mark between them."""
    if help.USUAL_END not in argv:
        return [], [*argv]
    at = [*argv].index(help.USUAL_END)
    return [*argv[:at]], [*argv[at + 1 :]]


def parse(argv: Sequence[str]) -> tuple[Arguments, list[str]]:
    """Read flags; returns the arguments and the lines that say what was translated, and what may surprise.

    Raises ValueError where a flag is unknown, a number is out of its limits, flags contradict each other, and where
    they name files or packages that are not there.
    """
    argv = expanded(argv)
    lines = _repeated(argv)
    translated, more = translate(argv)
    reader = parser()
    _check_values(reader, translated)
    namespace, _ = reader.parse_known_args(_joined(translated))
    given = vars(namespace)
    faults = [*limits.faults(given), *packages.faults(given), *_check_objects(given)]
    deepspeed = given["deepspeed"]
    faults += deepspeed_file.faults(deepspeed, given) if deepspeed and not faults else ()
    if faults:
        raise ValueError("\n".join(faults))
    arguments = Arguments(*reader.parse_dict(given))
    check(arguments)
    lines += [*more, *limits.remarks(given), *(deepspeed_file.remarks(deepspeed, given) if deepspeed else ())]
    return arguments, lines


def _joined(argv: Sequence[str]) -> list[str]:
    """Single values behind "=": argparse takes -1e-5 and -inf for flags of their own."""
    return [
        token
        for name, values in _flags(argv)
        for token in ([f"--{name}={values[0]}"] if len(values) == 1 else _rejoin(name, values))
    ]


def _repeated(argv: Sequence[str]) -> list[str]:
    """A line for each flag that is given with different values: the last one counts."""
    values: dict[str, list[list[str]]] = {}
    for name, found in _flags(argv):
        values.setdefault(name, []).append(found)
    return [
        f"--{name}: is given {len(found)} times; the last one counts: {' '.join(found[-1])}"
        for name, found in values.items()
        if name and any(one != found[-1] for one in found)
    ]


def _check_values(reader: HfArgumentParser, argv: Sequence[str]) -> None:
    """Raises ValueError for words that belong to no flag, for flags that there are not, and for a value too many."""
    several = {
        name for action in reader._actions if action.nargs in ("+", "*") for name in action.option_strings
    }
    known = {name for action in reader._actions for name in action.option_strings}
    faults = []
    for name, values in _flags(argv):
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
    "; more files go into --replay_data (or --corrective_data): "
    "FILE alone is each of its samples once an epoch"
)

# Of these, HfArgumentParser and transformers read what begins with "{", and take anything else for a file's name.
_FILES_TOO = ("deepspeed", "fsdp_config", "accelerator_config")


def _check_objects(given: dict[str, Any]) -> Iterator[str]:
    """The flags whose value is a JSON object."""
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
    """The checks that need two flags together, before anything takes time.

    Raises ValueError that lists every contradiction found, each with what was found, expected, and what to do.
    """
    faults = [
        *_check_sources(arguments),
        *_check_mixture(arguments),
        *_check_deepspeed(arguments),
        *_check_loop(arguments),
        *_check_modes(arguments),
        *_check_rates(arguments),
        *_check_evaluation(arguments),
    ]
    if faults:
        raise ValueError("\n".join(faults))


def _check_sources(arguments: Arguments) -> Iterator[str]:
    model, data, monitor, training = arguments.model, arguments.data, arguments.monitor, arguments.training
    if model.model_name_or_path is None:
        yield "--model_name_or_path: missing; give a checkpoint (with neither it nor --data_path the demo runs)"
    if data.data_path is None and not data.corrective_data:
        yield "--data_path: missing; give the file or folder with the training conversations"
    for name, path in (("data_path", data.data_path), ("eval_data_path", data.eval_data_path)):
        if path is not None and not Path(path).exists():
            yield f"--{name}: there is no file or folder {path!r} (working directory {os.getcwd()})"
    if data.image_folder is not None and not Path(data.image_folder).is_dir():
        yield f"--image_folder: there is no folder {data.image_folder!r} (working directory {os.getcwd()})"
    if monitor.monitor and monitor.probes is None:
        yield "--monitor True: needs --probes FILE, the images and questions to watch"
    for name, path in (("probes", monitor.probes), ("calibration_probes", monitor.calibration_probes)):
        if path is not None and not Path(path).is_file():
            yield f"--{name}: there is no file {path!r} (working directory {os.getcwd()})"
    if monitor.stop_when is not None and not monitor.monitor:
        yield f"--stop_when {monitor.stop_when}: needs --monitor True, nothing else knows when"
    if str(training.eval_strategy.value) != "no" and data.eval_data_path is None:
        yield f"--eval_strategy {training.eval_strategy.value}: needs --eval_data_path"
    if monitor.key_layers != "auto" and not all(
        part.strip().isdigit() for part in monitor.key_layers.split(",")
    ):
        yield f"--key_layers: found {monitor.key_layers!r}, expected auto or layer numbers such as 8,16,24,31"


def _check_mixture(arguments: Arguments) -> Iterator[str]:
    data = arguments.data
    if data.corrective_data or data.replay_data:
        yield from mixture.spec_faults(data.data_path, data.corrective_data or (), data.replay_data or ())


def _check_modes(arguments: Arguments) -> Iterator[str]:
    """Each component's mode against the flags of 2023, and what has a meaning with adapters alone."""
    chosen, modes = arguments.adaptation, arguments.modes
    short = "q_lora" if chosen.q_lora else "use_lora"
    if modes["language"] != "lora" and (chosen.use_lora or chosen.q_lora):
        reason = ", and 4-bit weights train in no other way" if chosen.q_lora else ""
        yield (
            f"--{short} True with --language {modes['language']}: it asks for adapters of the language layers{reason}; "
            "leave out one of the two (other components have adapters by --vision lora and --connector lora)"
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
        yield "every component is frozen: nothing would train; give --vision, --connector or --language lora or full"
    if chosen.lora_target_modules is not None and modes["language"] != "lora":
        yield (
            "--lora_target_modules: only has a meaning with --use_lora or --q_lora, because it names layers of the "
            f"language model, and --language is {modes['language']}; add one, or leave it out"
        )
    # bitsandbytes casts a 4-bit layer's bias, in place, to the precision that computes.
    if chosen.q_lora and chosen.lora_bias != "none" and (arguments.training.bf16 or arguments.training.fp16):
        yield (
            f"--lora_bias {chosen.lora_bias} with --q_lora in half precision: biases of 4-bit layers would be rounded "
            "to it at every step, and small updates lost; leave out --lora_bias, or --bf16 and --fp16"
        )
    if chosen.train_embeddings and modes["language"] == "full":
        yield "--train_embeddings: they are part of a language model that trains in full; leave it out"
    if not arguments.lora:
        for name, unwanted in (
            ("lora_weight_path", bool(chosen.lora_weight_path)),
            ("train_embeddings", chosen.train_embeddings and modes["language"] == "frozen"),
            ("use_dora", chosen.use_dora),
            ("lora_bias", chosen.lora_bias != "none"),
        ):
            if unwanted:
                yield f"--{name}: only has a meaning with adapters; add --use_lora True, or leave it out"


# They make their own groups of parameters.
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
        yield f"--optim {optim}: knows one learning rate alone; take adamw_torch, or leave out the others"
    config = deepspeed_file.read(training.deepspeed) if training.deepspeed else {}
    where = deepspeed_file.name_of(training.deepspeed or "")
    for section in ("optimizer", "scheduler"):
        if section in config:
            yield (
                f"{where}: its {section!r} knows one learning rate alone, and {', '.join(own)} has its own; take "
                f"{section!r} out of the file, so that the flags decide"
            )


def _check_evaluation(arguments: Arguments) -> Iterator[str]:
    chosen, training = arguments.evaluation, arguments.training
    evaluates = str(training.eval_strategy.value) != "no" or training.eval_on_start
    if training.eval_on_start and arguments.data.eval_data_path is None:
        yield "--eval_on_start: needs --eval_data_path"
    if chosen.eval_generate > 0 and not evaluates:
        yield (
            f"--eval_generate {chosen.eval_generate}: answers are generated when the run evaluates, and it never "
            "does; give --eval_strategy steps (or epoch) and --eval_data_path, or leave it out"
        )
    if chosen.eval_generate > 0 and training.fsdp:
        yield (
            f"--eval_generate {chosen.eval_generate} with --fsdp: its shards cannot generate; use --deepspeed, or "
            "leave --eval_generate out and evaluate the loss alone"
        )


def _check_loop(arguments: Arguments) -> Iterator[str]:
    data, training = arguments.data, arguments.training
    strategy = training.train_sampling_strategy
    if data.streaming and data.packing:
        yield "--packing with --streaming: rows are filled by token counts, and streaming counts none; leave out one"
    if data.streaming and strategy == "group_by_length":
        yield "--train_sampling_strategy group_by_length with --streaming: streaming counts no lengths; leave out one"
    if data.packing and strategy == "group_by_length":
        yield "--packing with --train_sampling_strategy group_by_length: packed rows are alike anyway; leave out one"
    if strategy == "batch_rebalance":
        yield (
            "--train_sampling_strategy batch_rebalance: would give each number of processes another order; found it, "
            "expected random, sequential or group_by_length, or --packing True, which fills every row"
        )
    if training.fsdp and training.use_cpu:
        yield "--fsdp: accelerate leaves it out on a CPU, and every process would hold the whole model; leave it out"
    if training.n_gpu > 1:
        yield (
            f"one process and {training.n_gpu} GPUs: pictures cannot be divided by torch's DataParallel; start one "
            f"process a GPU (torchrun --nproc_per_node {training.n_gpu} finetune.py ...), or set CUDA_VISIBLE_DEVICES=0"
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
            "or take 'scheduler' out of the file so that --lr_scheduler_type decides"
        )
