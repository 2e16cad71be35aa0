"""The range of each numeric flag; nothing is rounded or replaced silently."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from finetune import fields
from finetune.fields import Kind, number, one_of, whole

MOST_WORKERS = 1024
SEED = whole(0, 2**32 - 1)
BELOW_ONE = Kind("a number from 0 to below 1", lambda value: number(0, 1).fits(value) and value < 1)
RATE = number(0)
AT_LEAST_ONE = whole(1)._replace(words="at least 1")
NONE_OR_SOME = whole(0)._replace(words="at least 0")

LIMITS: dict[str, Kind] = {
    # how long
    "num_train_epochs": number(0, 10**6),
    "max_steps": (AT_LEAST_ONE | one_of(-1))._replace(
        words="a whole number of at least 1, or -1 (then --num_train_epochs decides)"
    ),
    # how much at once
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        whole(1, 10**6),
    ),
    "eval_accumulation_steps": AT_LEAST_ONE,
    "dataloader_num_workers": whole(0, MOST_WORKERS),
    "dataloader_prefetch_factor": whole(1, 10**6),
    "kept_samples_gib": RATE,
    "torch_empty_cache_steps": AT_LEAST_ONE,
    # how fast
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "adam_epsilon", "neftune_noise_alpha", "eval_delay"), RATE
    ),
    **dict.fromkeys(
        ("vision_learning_rate", "connector_learning_rate", "language_learning_rate"), number(0, above=True)
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout", "label_smoothing_factor"), BELOW_ONE),
    "max_grad_norm": Kind("a number of at least 0", lambda value: RATE.fits(value) or value == math.inf),
    "warmup_steps": Kind(
        "a whole number of steps, or a share of all steps below 1",
        lambda value: BELOW_ONE.fits(value) or AT_LEAST_ONE.fits(value),
    ),
    # how often kept
    "save_total_limit": AT_LEAST_ONE._replace(words="at least 1 (left out, all checkpoints stay)"),
    # randomness
    **dict.fromkeys(("seed", "data_seed"), SEED),
    # data
    "model_max_length": AT_LEAST_ONE,
    "data_fraction": number(0, 1, above=True),
    "min_pixels": whole(1, 10**9),
    "max_pixels": whole(1, 10**9),
    "video_fps": number(0, 1000, above=True),
    "video_max_frames": whole(2, 10**6)._replace(words="at least 2"),
    # adapters
    "lora_r": whole(1, 2**16)._replace(words="at least 1, and at most 65,536"),
    "lora_alpha": whole(1, 10**9),
    # attention supervision
    "look_weight": RATE,
    "look_target": number(0, 1, above=True),
    **dict.fromkeys(
        ("look_warmup", "look_release"), number(0, 1)._replace(words="a share of the steps, 0 to 1")
    ),
    # evaluation and monitor
    "eval_generate": NONE_OR_SOME,
    "eval_pictures": NONE_OR_SOME,
    "eval_max_new_tokens": AT_LEAST_ONE,
    "probe_steps": AT_LEAST_ONE,
    "stop_patience": AT_LEAST_ONE._replace(words="at least 1 checkpoint"),
}

EVERY = Kind(
    "a whole number of steps, or a share of all steps between 0 and 1",
    lambda value: AT_LEAST_ONE.fits(value) or (BELOW_ONE.fits(value) and value > 0),
)
_EVERY = {
    "logging_steps": ("logging_strategy", "to never log: --logging_strategy no"),
    "save_steps": ("save_strategy", "to save no checkpoints: --save_strategy no"),
    "eval_steps": ("eval_strategy", "to never evaluate: --eval_strategy no"),
}
"""Interval flag → the flag that must be ``steps`` for it to apply, and how to turn it off."""


def faults(given: Mapping[str, Any]) -> Iterator[str]:
    """One for each flag whose number is out of range.

    given   flag → value of all groups; None if a flag is not given
    """
    for name, kind in LIMITS.items():
        value = given.get(name)
        if value is not None and not kind.fits(value):
            yield f"--{name}: found {fields.shown(value)}, expected {kind.words}"
    for name, (strategy, remedy) in _EVERY.items():
        value = given.get(name)
        by_steps = str(getattr(given.get(strategy), "value", given.get(strategy))) == "steps"
        if value is not None and by_steps and not EVERY.fits(value):
            yield f"--{name}: found {fields.shown(value)}, expected {EVERY.words}; {remedy}"
    least, most = given.get("min_pixels"), given.get("max_pixels")
    if least is not None and most is not None and least > most:
        yield (
            f"--min_pixels {least:,} with --max_pixels {most:,}: expected --min_pixels to be no larger than "
            "--max_pixels"
        )


def remarks(given: Mapping[str, Any]) -> Iterator[str]:
    """A line for each number that is valid but trains nothing."""
    if given.get("num_train_epochs") == 0 and given.get("max_steps") == -1:
        yield "--num_train_epochs 0: nothing is trained; the unchanged model is saved"
    if given.get("learning_rate") == 0:
        yield "--learning_rate 0: components without a learning rate of their own are not updated"
