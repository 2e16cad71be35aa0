"""The order of a run's samples in its steps, from its flags: for the Trainer, and for what is told before it begins."""

from __future__ import annotations

from finetune.data.dataset import ConversationDataset
from finetune.data.schedule import Schedule, StepShape
from finetune.flags.arguments import TrainingArguments


def schedule_of(
    dataset: ConversationDataset, args: TrainingArguments, shape: StepShape, *, packing: bool
) -> Schedule:
    """The micro-batches of a run with these flags: those that are trained, and those that are told before."""
    return Schedule(
        dataset.mixture.order,
        shape,
        tokens=None if dataset.lengths is None else dataset.lengths.tokens,
        capacity=dataset.max_length if packing else None,
        strategy=args.train_sampling_strategy,
        seed=args.seed if args.data_seed is None else args.data_seed,
        drop_last=args.dataloader_drop_last,
    )
