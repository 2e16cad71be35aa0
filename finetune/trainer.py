"""The Hugging Face Trainer we build: token-normalised loss, guards, checkpoints that say when they are whole."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from finetune import optimizer
from finetune.adaptation import Rates
from finetune.arguments import TrainingArguments
from finetune.data import IGNORED, Collator, ConversationDataset
from finetune.guards import GradientCheck, TrainingError
from finetune.saving import SavingTrainer


def token_loss(
    outputs: Any,
    labels: Int[Tensor, "batch tokens"],
    num_items_in_batch: Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy in nats, summed over trained tokens, divided by their number in the whole step.

    ``num_items_in_batch`` counts the tokens of all micro-batches of all processes. Averaging micro-batch means
    instead would weigh a token in a short answer more than one in a long answer, and the result would depend on
    how a step is cut into micro-batches. Families differ in whether their own loss does this, so none is asked.
    """
    targets = labels[:, 1:]
    trained = targets != IGNORED
    # Only rows that are trained on become fp32: a batch of 2,048 tokens has 1.2 GB of logits in fp32.
    predictions = outputs["logits"][:, :-1][trained].float()
    total = F.cross_entropy(predictions, targets[trained], reduction="sum", label_smoothing=label_smoothing)
    return total / (trained.sum() if num_items_in_batch is None else num_items_in_batch)


class FinetuneTrainer(SavingTrainer):
    """Trainer for :class:`ConversationDataset`. Beyond transformers' own:

    - the loss is normalised by tokens, the same for every family;
    - a loss that is not finite stops, with the batch's samples by name;
    - what should learn and gets no gradient stops;
    - each component has its learning rate;
    - training that was finished when it was killed is not trained further.
    """

    optimizer_cls_and_kwargs: Any

    def __init__(self, *, rates: Rates, gradients: GradientCheck, **kwargs: Any) -> None:
        args: TrainingArguments = kwargs["args"]
        self.rates, self.gradients = rates, gradients
        loss = functools.partial(token_loss, label_smoothing=args.label_smoothing_factor)
        super().__init__(**kwargs, compute_loss_func=loss)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        indices = inputs.pop("sample_indices")
        if model.training and self.gradients.watching:
            self.gradients.saw_batch(pictures=self._has_pictures(indices))
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if model.training and not torch.isfinite(loss):
            raise TrainingError(self._not_finite(loss, indices))
        return result

    def _has_pictures(self, indices: Tensor) -> bool:
        dataset = self.train_dataset
        assert isinstance(dataset, ConversationDataset)
        return any(dataset.conversations[i].images for i in indices.tolist())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            dataset, whole = self.train_dataset, self.model if model is None else model
            assert isinstance(dataset, ConversationDataset)
            choice = optimizer.Choice(*self.get_optimizer_cls_and_kwargs(self.args, whole))
            self.optimizer_cls_and_kwargs = optimizer.with_groups(choice, whole, dataset.family, self.rates)
        return super().create_optimizer(model)

    def _not_finite(self, loss: Tensor, indices: Tensor) -> str:
        dataset = self.train_dataset
        assert isinstance(dataset, ConversationDataset)
        names = "\n".join(f"  {dataset.conversations[i].source}" for i in indices.tolist())
        return (
            f"the loss is {loss.item()} in step {self.state.global_step + 1}; the batch held\n{names}\n"
            "a smaller --learning_rate, --bf16 instead of --fp16, or a look at these samples may help"
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and isinstance(
            dataset, ConversationDataset
        ):
            size = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return LengthGroupedSampler(size, lengths=dataset.lengths)
        return super()._get_train_sampler(train_dataset)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Transformers looks at max_steps after a step, so a run killed after its last one would take one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


def log_folder(args: TrainingArguments) -> Path:
    """Where TensorBoard's files go: ``OUTPUT_DIR/runs``, or ``--logging_dir``."""
    return Path(args.logging_dir or Path(str(args.output_dir)) / "runs")


def summary_writer(args: TrainingArguments, resumed_step: int | None) -> Any | None:
    """The run's one TensorBoard writer, on the first process; None where it is not wanted.

    After a resume, what was logged beyond the checkpoint is purged from view.
    """
    if "tensorboard" not in (args.report_to or []) or args.process_index != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter

    purge = None if resumed_step is None else resumed_step + 1
    return SummaryWriter(str(log_folder(args)), purge_step=purge)


def build_trainer(
    model: nn.Module,
    processor: Any,
    args: TrainingArguments,
    train: ConversationDataset,
    evaluation: ConversationDataset | None,
    *,
    rates: Rates | None = None,
    writer: Any | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FinetuneTrainer:
    """A Trainer over these parts. ``callbacks`` see the end of training before the writer is closed.

    rates   None: ``args.learning_rate`` and ``args.weight_decay`` for every component
    """
    gradients = GradientCheck(train.family)
    args.report_to = [name for name in args.report_to or [] if name != "tensorboard"]
    shown = [TensorBoardCallback(tb_writer=writer)] if writer is not None else []
    pad_id = processor.tokenizer.pad_token_id
    assert pad_id is not None
    return FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=Collator(pad_id),
        processing_class=processor,
        rates=rates or Rates(args.learning_rate, weight_decay=args.weight_decay),
        gradients=gradients,
        callbacks=[gradients, optimizer.ComponentRates(), *callbacks, *shown],
    )
