"""Fine-tune a vision-language model and monitor its attention.

    python finetune.py --model_name_or_path Qwen/Qwen-VL-Chat --data_path data.json --use_lora True --output_dir out
    python finetune.py --help

The stations of a run are listed below, in order; each is a function of attention_finetune/train.py.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Handle --help and unknown flags before the slow imports below.
    runpy.run_path(str(Path(__file__).parent / "finetune" / "flags" / "help.py"))["answer"](sys.argv[1:])
    from finetune import threads  # and what importing finetune silences in bitsandbytes

    threads.set_defaults()  # before torch is loaded

from attention_finetune.ending import exit_status
from attention_finetune.train import build, compare, parse, prepare, save, train


def stations(argv: Sequence[str]) -> None:
    """From flags to a trained checkpoint and its before / after report."""
    args = parse(argv)  # flags, also those of 2023 and those in a file; without model and data, the demo's
    ready = prepare(args)  # probes, data and model, checked before training
    if ready is None:  # a dry run, or a run that had finished before
        return
    run = build(ready)  # the Trainer, with the attention monitor attached if --monitor is set
    train(run)  # from the start, or from where an interrupted run stopped
    save(run)  # the adapter or model, with its processor
    compare(run)  # fails unless the monitor has written its pictures and its before / after report


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status."""
    return exit_status(stations, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
