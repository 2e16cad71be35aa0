"""The monitor's cost between checkpoints: step times with and without it, in turns, in one process.

python benchmarks/monitor_cost.py            the demo's base model and data on this machine

Prints one JSON object: median step seconds, their ratio, and whether losses were the same bit for bit.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))

from diagnostics import AttentionMonitor
from diagnostics.records.probes import read_probes
from finetune.data.dataset import Collator, Sample, build_dataset
from finetune.demo.prepare import DEFAULT_PARTS, prepare
from finetune.demo.settings import BASE_MODEL, DATA_DIR
from finetune.families import family_of
from finetune.model import checkpoint
from finetune.samples.source import read


class Clock(TrainerCallback):
    """Seconds of each optimiser step, and the losses."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    made = prepare(DATA_DIR, DEFAULT_PARTS)
    conversations = read(made.corrective)
    probes = read_probes(str(made.probes))[::20]
    plain, watched = [], []
    losses = set()
    for _ in range(args.rounds):
        for monitored, times in ((False, plain), (True, watched)):
            clock = run(args, conversations, probes, monitored=monitored)
            times.append(clock.seconds)
            losses.add(tuple(clock.losses))
    # Pairs at the same step of the run, so that long batches are compared with long ones.
    ratios = [
        w / p for ps, ws in zip(plain, watched, strict=True) for p, w in zip(ps[3:], ws[3:], strict=True)
    ]
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "steps": args.steps,
        "rounds": args.rounds,
        "median_step_seconds_plain": round(statistics.median([s for p in plain for s in p[3:]]), 5),
        "median_step_seconds_watched": round(statistics.median([s for w in watched for s in w[3:]]), 5),
        "watched_over_plain_median_of_pairs": round(statistics.median(ratios), 4),
        "losses_bit_identical": len(losses) == 1,
    }
    print(json.dumps(report, indent=1))


class Plain:
    """Batches for transformers' own Trainer: a sample a row, and what the model takes alone."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        batch = self.collator([[sample] for sample in samples])
        return {name: values for name, values in batch.items() if name != "about"}


def run(args: argparse.Namespace, conversations: Any, probes: Any, *, monitored: bool) -> Clock:
    model, processor = checkpoint.load(BASE_MODEL, for_training=True)
    dataset = build_dataset(
        conversations,
        processor,
        family_of(model.config),
        max_length=512,
        on_bad_sample="error",
        say=lambda _: None,
    )
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=1e-4,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        clock = Clock()
        callbacks: list[TrainerCallback] = [clock]
        if monitored:
            callbacks.append(AttentionMonitor(processor=processor, probes=probes, output_dir=folder))
        trainer = Trainer(
            model=model,
            args=training,
            train_dataset=dataset,
            data_collator=Plain(Collator(processor.tokenizer.pad_token_id, dataset.family.blank(processor))),
            callbacks=callbacks,
        )
        trainer.train()
    return clock


if __name__ == "__main__":
    main()
