"""The flags of the demo, used when `finetune.py` gets neither model nor data."""

import os
from pathlib import Path

from finetune.demo.correction import split_corrective
from finetune.demo.prepare import DEFAULT_PARTS, DemoData, prepare

BASE_MODEL = Path(__file__).parent / "base"
"""The small Qwen-VL that the demo corrects; its README.md documents how it was made."""


def _data_dir() -> Path:
    project = Path(__file__).parents[2]
    if (project / "finetune.py").is_file():
        return project / "data" / "demo"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-finetune" / "demo"


DATA_DIR = _data_dir()
"""Where the pictures are drawn: below the project, ignored by git; for an installed package, in the user's cache."""

GLOBAL_BATCH = 32
"""Samples per step for any number of processes, so that one process and several train alike."""


def training_flags(data: DemoData, *, processes: int) -> list[str]:
    """Flags of the corrective run.

    Trains adapters on the language layers and the connector: without the connector, answers change but attention does
    not move. Key layers are chosen with the base model on the development split.

    Raises:
        ValueError: the processes do not divide the global batch.
    """
    if processes < 1 or GLOBAL_BATCH % processes:
        raise ValueError(
            f"demo: found {processes} processes, expected a number that divides its batch of {GLOBAL_BATCH}; "
            "set GPUS_PER_NODE and NNODES accordingly, or give a model and data of your own"
        )
    flags = {
        "model_name_or_path": _shown(BASE_MODEL),
        "data_path": _shown(data.corrective),
        "use_lora": "True",
        "train_connector": "True",
        "lora_r": "16",
        "lora_alpha": "32",
        "lora_dropout": "0",
        "max_steps": "220",
        "per_device_train_batch_size": str(GLOBAL_BATCH // processes),
        "gradient_accumulation_steps": "1",
        "learning_rate": "2.5e-3",
        "warmup_steps": "15",
        "lr_scheduler_type": "cosine",
        "weight_decay": "0",
        "adam_beta2": "0.98",
        "max_grad_norm": "1",
        "logging_steps": "10",
        "save_strategy": "steps",
        "save_steps": "110",
        "model_max_length": "512",
        "monitor": "True",
        "probes": _shown(data.probes),
        "calibration_probes": _shown(data.development),
    }
    return [token for name, value in flags.items() for token in (f"--{name}", value)]


def prepared_flags(*, processes: int, in_two: bool = False) -> list[str]:
    """Draws the data if it is missing, and returns the flags.

    in_two   the corrective corpus as two sources, so that a fraction can be taken of what corrects alone
    """
    data = prepare(DATA_DIR, DEFAULT_PARTS)
    flags = training_flags(data, processes=processes)
    if not in_two:
        return flags
    parts, at = split_corrective(data.corrective), flags.index("--data_path")
    sources = ["--corrective_data", _shown(parts.correction), "--replay_data", _shown(parts.general)]
    return [*flags[:at], *sources, *flags[at + 2 :]]


def _shown(path: Path) -> str:
    """The path relative to the working directory, where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
