"""The flags of ``finetune.py``, one dataclass per group.

``--help`` and unknown flags are answered without importing this module: :mod:`finetune.flags.help` reads its source.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import transformers

Mode = Literal["frozen", "lora", "full"]
"""How a component is trained."""


@dataclass
class ModelArguments:
    """Model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to train: a hub name, a model folder or an adapter folder. Without it and "
                          "without --data_path, the embedded demo runs."},
    )  # fmt: skip
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for downloads from the hub."})
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = field(
        default="sdpa",
        metadata={"help": "Attention implementation. flash_attention_2 requires the flash-attn package."},
    )


@dataclass
class DataArguments:
    """Data."""

    data_path: str | None = field(
        default=None,
        metadata={"help": "Training data: a file of conversations (.json, .jsonl, .parquet; see --data_format), or "
                          "a folder of parquet files or a saved Hugging Face dataset."},
    )  # fmt: skip
    corrective_data: list[str] | None = field(
        default=None,
        metadata={"help": "Corrective data to mix in. FILE:0.3 makes it 30 %% of the samples of an epoch, FILE:x2 "
                          "trains each of its samples twice per epoch, FILE alone once."},
    )  # fmt: skip
    replay_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Data from earlier training, replayed against forgetting; same syntax as --corrective_data."
        },
    )
    eval_data_path: str | None = field(
        default=None, metadata={"help": "Evaluation data, in any of the same formats."}
    )
    data_fraction: float | None = field(
        default=None,
        metadata={"help": "Train on this fraction of the corrective data (of --data_path, without --corrective_data): "
                          "the beginning of one order drawn from the seed, so that fractions are nested."},
    )  # fmt: skip
    data_fraction_of: list[str] | None = field(
        default=None,
        metadata={
            "help": "With --data_fraction: names of the sources it applies to, as the table of sources shows them."
        },
    )
    data_fraction_same: Literal["steps", "epochs"] = field(
        default="steps",
        metadata={"help": "With --data_fraction. steps: kept samples stand in for those left out, so that epochs, "
                          "shares and steps stay as they are. epochs: each kept sample is seen as often an epoch as "
                          "with all; a source with a share gives so much less than its share."},
    )  # fmt: skip
    data_format: Literal["auto", "qwen-vl", "llava", "sharegpt", "openai", "alpaca"] = field(
        default="auto",
        metadata={
            "help": "Format of the data. auto: detected from the records; an unknown format is an error."
        },
    )
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Folder that relative image paths are resolved against first; then the data file's "
                          "folder, then the working directory."},
    )  # fmt: skip
    box_units: Literal["pixels", "thousandths", "text"] | None = field(
        default=None,
        metadata={"help": "Units of bbox_2d, bbox, point_2d and objects.bbox in the data: pixels of the upright image, "
                          "thousandths of its width and height, or text (trained as written). <box> and "
                          "<|box_start|> markup is always in thousandths."},
    )  # fmt: skip
    video_fps: float = field(default=2.0, metadata={"help": "Frames per second sampled from a video file."})
    video_max_frames: int = field(
        default=32, metadata={"help": "Maximum frames per video; longer videos are sampled more sparsely."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read samples on demand: nothing is checked or counted before training."},
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Pack several short samples into one row of --model_max_length tokens; samples do not "
                          "attend to each other."},
    )  # fmt: skip
    min_pixels: int | None = field(
        default=None,
        metadata={"help": "Minimum pixels per image (model families with dynamic resolution only)."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Maximum pixels per image (model families with dynamic resolution only)."},
    )
    lazy_preprocess: bool = field(
        default=False,
        metadata={
            "help": "No effect; accepted for old scripts. The data loader always decodes images lazily."
        },
    )
    model_max_length: int = field(
        default=8192,
        metadata={
            "help": "Maximum tokens per sample. Longer samples are never truncated; see --on_bad_sample."
        },
    )
    on_bad_sample: Literal["error", "drop", "shrink"] = field(
        default="error",
        metadata={"help": "What to do with samples that are invalid or longer than --model_max_length. error: list "
                          "them and stop. drop: list them and train on the rest. shrink: downscale the images of "
                          "samples that are too long (dynamic resolution only), and stop if any are invalid."},
    )  # fmt: skip


@dataclass
class AdaptationArguments:
    """Trained parameters."""

    use_lora: bool = field(
        default=False, metadata={"help": "Train low-rank adapters on the language layers."}
    )
    q_lora: bool = field(
        default=False,
        metadata={"help": "LoRA on language layers that are quantised to 4 bits (NF4) on loading."},
    )
    use_dora: bool = field(
        default=False,
        metadata={"help": "With LoRA: train magnitudes as well as directions (DoRA, arXiv 2402.09353)."},
    )
    vision: Literal["frozen", "lora", "full"] | None = field(
        default=None,
        metadata={"help": "How to train the vision tower. Default: frozen, or full with --fix_vit False."},
    )
    connector: Literal["frozen", "lora", "full"] | None = field(
        default=None, metadata={"help": "How to train the connector. Default: set by --train_connector."}
    )
    language: Literal["frozen", "lora", "full"] | None = field(
        default=None,
        metadata={
            "help": "How to train the language model. Default: lora with --use_lora or --q_lora, otherwise full."
        },
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision tower. Default: --learning_rate."}
    )
    connector_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the connector. Default: --learning_rate."}
    )
    language_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the language model. Default: --learning_rate."}
    )
    fix_vit: bool = field(default=True, metadata={"help": "Freeze the vision tower."})
    train_connector: bool | None = field(
        default=None,
        metadata={"help": "Train the connector between vision tower and language model (in Qwen-VL, the resampler). "
                          "Default: True in full fine-tuning, False with LoRA."},
    )  # fmt: skip
    train_embeddings: bool = field(
        default=False,
        metadata={"help": "With LoRA: also train the token embeddings and the output layer. Recommended for a base "
                          "model that was not trained on the tokens of the chat format."},
    )  # fmt: skip
    lora_r: int = field(default=64, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Adapters are scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the input of the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers that get an adapter, given by the ends of their names inside the language "
                          "layers. Default: set by the model family (Qwen-VL: c_attn attn.c_proj w1 w2)."},
    )  # fmt: skip
    lora_weight_path: str = field(
        default="",
        metadata={
            "help": "Adapter folder to continue training from, instead of a new adapter. Rank, scale, targets and "
            "biases are those of the adapter."
        },
    )
    allow_other_base: bool = field(
        default=False,
        metadata={
            "help": "Allow continuing an adapter on other base weights than it was trained on, if the shapes match."
        },
    )
    lora_bias: Literal["none", "all", "lora_only"] = field(
        default="none", metadata={"help": "Which biases are trained with the adapters."}
    )


@dataclass
class EvaluationArguments:
    """Generation at each evaluation, in addition to the loss (see --eval_strategy and --eval_data_path)."""

    eval_generate: int = field(
        default=0,
        metadata={
            "help": "Number of evaluation samples to answer by greedy decoding; the exact-match rate is logged."
        },
    )
    eval_pictures: int = field(
        default=4, metadata={"help": "Number of these answers shown in TensorBoard with their images."}
    )
    eval_max_new_tokens: int = field(default=64, metadata={"help": "Maximum tokens per generated answer."})


@dataclass
class MonitorArguments:
    """Attention monitor."""

    monitor: bool = field(
        default=False,
        metadata={
            "help": "Probe attention at each checkpoint, and compare before and after training at the end."
        },
    )
    probes: str | None = field(default=None, metadata={"help": "Probe file; required with --monitor."})
    key_layers: str = field(
        default="auto",
        metadata={
            "help": "Language layers used for the verdicts: auto (chosen on the untrained model), or e.g. 8,16,24,31."
        },
    )
    calibration_probes: str | None = field(
        default=None,
        metadata={
            "help": "Probe file with other images, used only to choose the key layers. Default: a fifth of --probes."
        },
    )
    probe_depth: Literal["quick", "full"] = field(
        default="quick",
        metadata={
            "help": "What is measured before and after training. full adds layer windows, curves and more controls, "
            "and hides regions in groups to be kept too."
        },
    )
    probe_steps: int | None = field(
        default=None, metadata={"help": "Probe every N steps. Default: whenever a checkpoint is saved."}
    )
    checkpoint_depth: Literal["watch", "cause"] = field(
        default="watch",
        metadata={"help": "What is measured at checkpoints. watch: answers and attention. cause: what hiding each "
                          "region costs as well, about three times as many sequences."},
    )  # fmt: skip
    baseline: str | None = field(
        default=None,
        metadata={"help": "Output folder of another run that started from the same model and probes: its measurements "
                          "of the untrained model are used instead of measuring it again."},
    )  # fmt: skip
    diagnose: bool = field(
        default=True,
        metadata={"help": "Say before training where the model loses the right answers, and whether this run trains "
                          "that part."},
    )  # fmt: skip
    report_language: Literal["en", "zh"] = field(
        default="en",
        metadata={"help": "Language that the report at the end shows first; it has a switch."},
    )
    stop_when: Literal["corrected"] | None = field(
        default=None,
        metadata={"help": "corrected: stop training once every probe group has the verdict corrected."},
    )
    stop_patience: int = field(
        default=2, metadata={"help": "With --stop_when: required number of consecutive checkpoints."}
    )

    def chosen_layers(self) -> tuple[int, ...]:
        """``"8,16,24,31"`` → ``(8, 16, 24, 31)``; () for ``"auto"``."""
        return () if self.key_layers == "auto" else tuple(int(part) for part in self.key_layers.split(","))


@dataclass
class LookArguments:
    """Attention supervision: teach where to look, from look_at or <ref> and <box> in answers."""

    look_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the attention loss beside the language loss. 0: off. 0.1 to 0.3 suits LoRA on a "
                          "small data set."},
    )  # fmt: skip
    look_loss: Literal["mass", "kl"] = field(
        default="mass",
        metadata={"help": "mass: of attention to all pictures before the row, a share of --look_target lies in the "
                          "boxes. kl: it is spread over them as they cover the picture's cells."},
    )  # fmt: skip
    look_layers: str = field(
        default="key",
        metadata={"help": "Language layers that are supervised: key (those of --key_layers), all, or e.g. 8,12,16. "
                          "Verdicts judge attention in the other key layers alone, so key and all leave nothing to be "
                          "judged."},
    )  # fmt: skip
    look_rows: Literal["first", "phrase"] = field(
        default="first",
        metadata={
            "help": "Rows of a phrase that are supervised: the one that writes its first token, or all that write it."
        },
    )
    look_target: float = field(
        default=0.8,
        metadata={
            "help": "Share of the attention to all pictures before the row that should lie inside the boxes, for mass."
        },
    )
    look_warmup: float = field(
        default=0.1, metadata={"help": "Share of the steps over which the weight rises from 0."}
    )
    look_release: float = field(
        default=0.2,
        metadata={"help": "Share of the steps at the end over which the weight falls to 0, so that the final weights "
                          "are those of the language loss."},
    )  # fmt: skip

    @property
    def supervises(self) -> bool:
        return self.look_weight > 0

    def listed_layers(self) -> tuple[int, ...]:
        """``"8,12,16"`` → ``(8, 12, 16)``; () for ``"key"`` and ``"all"``."""
        if self.look_layers in ("key", "all"):
            return ()
        return tuple(int(part) for part in self.look_layers.split(","))


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Training: flags of transformers' Trainer with other defaults or other behaviour, and flags of the run."""

    output_dir: str | None = field(default="output_qwen", metadata={"help": "Output folder of the run."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that HfArgumentParser reads)
        default="tensorboard",
        metadata={"help": "Where metrics are logged: tensorboard, none, or another integration."},
    )
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "No effect: a loss that is not finite stops training, and the samples of its batch are named."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "No effect on this data."})
    prediction_loss_only: bool = field(
        default=True,
        metadata={"help": "Evaluate the loss without keeping the logits, which would exhaust memory."},
    )
    dataloader_persistent_workers: bool = field(
        default=True,
        metadata={"help": "Keep the data loader's worker processes between epochs."},
    )
    kept_samples_gib: float = field(
        default=1.0,
        metadata={"help": "Memory (GiB) of each process for samples that stay, decoded and as tokens, from one epoch "
                          "to the next; never more than a quarter of what is free. 0: none. Without "
                          "--dataloader_num_workers."},
    )  # fmt: skip
    logging_dir: str | None = field(
        default=None, metadata={"help": "Folder for TensorBoard logs. Default: OUTPUT_DIR/runs."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Delete the files of an earlier run in --output_dir and start from scratch."},
    )
    config: str | None = field(
        default=None,
        metadata={"help": "YAML file of flags, one 'name: value' per line. Flags on the command line win."},
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Show what would be trained (a sample with its labels, the trained parameters, memory) and stop."
        },
    )

    def __post_init__(self) -> None:
        # Without use_cpu, transformers rejects --bf16 on a machine that has no accelerator.
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
    look: LookArguments
    training: TrainingArguments

    @property
    def modes(self) -> dict[str, Mode]:
        """Component → frozen, lora or full: from its own flag, otherwise from the flags of 2023.

        By default the connector is trained in full, unless the language layers have adapters.
        """
        chosen = self.adaptation
        language: Mode = chosen.language or ("lora" if chosen.use_lora or chosen.q_lora else "full")
        default = language != "lora" if chosen.train_connector is None else chosen.train_connector
        return {
            "vision": chosen.vision or ("frozen" if chosen.fix_vit else "full"),
            "connector": chosen.connector or ("full" if default else "frozen"),
            "language": language,
        }

    @property
    def lora(self) -> bool:
        """Does any component have adapters?"""
        return "lora" in self.modes.values()

    @property
    def train_connector(self) -> bool:
        return self.modes["connector"] != "frozen"

    @property
    def own_rates(self) -> dict[str, float]:
        """Component → its own learning rate, where one is given."""
        chosen = self.adaptation
        given = {
            "vision": chosen.vision_learning_rate,
            "connector": chosen.connector_learning_rate,
            "language": chosen.language_learning_rate,
        }
        return {component: rate for component, rate in given.items() if rate is not None}
