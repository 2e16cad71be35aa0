"""The flags of ``finetune.py``: groups, the translation of old flags, and the checks that need two groups.

Nothing here imports model code, so ``--help`` and a mistyped flag answer at once.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import transformers

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


# ---------------------------------------------------------------------------------------------------------------------
# Parsing and checking
# ---------------------------------------------------------------------------------------------------------------------
