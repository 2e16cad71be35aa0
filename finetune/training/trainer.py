"""Our Hugging Face Trainer: sample order, a loss per token, and errors that name the samples."""

import functools
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, seed_worker
from transformers.utils import logging

from finetune.data import kept_samples
from finetune.data.dataset import MOST_NAMES_SHOWN, Collator, ConversationDataset, Rows, blank_video
from finetune.data.look import LookBatch
from finetune.data.packing import needs_one_row
from finetune.data.schedule import Schedule, StepShape
from finetune.distributed import joined, local_processes, reduced, say
from finetune.families.base import Family
from finetune.families.parts.modules import bare_model
from finetune.flags.arguments import TrainingArguments
from finetune.model.adaptation import Rates, component_of
from finetune.model.free_memory import available_bytes
from finetune.model.untouched import untouched
from finetune.samples.listing import shown
from finetune.samples.workers import end_without_threads
from finetune.training import best_checkpoint, frozen_tower, library_log, loss, optimizer, pickles
from finetune.training.guards import GradientCheck, TrainingError
from finetune.training.look import LookSettings
from finetune.training.look_steps import LANGUAGE_LOSS, Judge, LookSteps
from finetune.training.progress import Progress
from finetune.training.run_schedule import schedule_of
from finetune.training.saving import SavingTrainer

logger = logging.get_logger(__name__)

NOT_FINITE_REMEDY = (
    "try a smaller --learning_rate, --bf16 instead of --fp16, or check these samples; with DeepSpeed, also try "
    '"overlap_comm": false'
)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""Parts of the RuntimeErrors that devices and the CPU raise."""


class BatchError(TrainingError):
    """Training cannot continue because of this process's batch."""


class Batch(NamedTuple):
    """A batch, described for errors.

    about     the collator's description
    dataset   the dataset of its samples
    rows, tokens   number of rows, and tokens per row
    """

    about: dict[str, Any]
    dataset: ConversationDataset
    rows: int
    tokens: int

    def listed(self) -> str:
        return _listed(self.dataset, self.about["samples"].tolist())

    def weighed(self) -> str:
        samples, pictures = len(self.about["samples"]), int(self.about["pictures"])
        rows = f"{self.rows} row{'' if self.rows == 1 else 's'}"
        return f"{samples} samples in {rows} of {self.tokens:,} tokens, {pictures} pictures"


def _listed(dataset: ConversationDataset, numbers: Sequence[int]) -> str:
    lines = [f"  {dataset.conversations[number].source}" for number in numbers[:MOST_NAMES_SHOWN]]
    if len(numbers) > len(lines):
        lines.append(f"  ... and {len(numbers) - len(lines)} more")
    return "\n".join(lines)


class Clock:
    """Measures the share of step time spent waiting for data.

    computed   seconds so far of what is computed while a batch is fetched: that is no waiting
    """

    def __init__(self, computed: Callable[[], float] = lambda: 0.0) -> None:
        self.computed = computed
        self.waited_seconds = self.busy_seconds = 0.0
        self.begun: float | None = None

    def begin(self) -> None:
        self.begun = time.perf_counter()

    def end(self) -> None:
        """End of the step: logging, evaluation and saving do not count as step time."""
        if self.begun is not None:
            self.busy_seconds += time.perf_counter() - self.begun
            self.begun = None

    def watching(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.perf_counter() - self.computed()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited_seconds += time.perf_counter() - self.computed() - start
            yield batch

    def taken(self) -> float:
        """The share spent waiting since the last call, 0 to 1."""
        share = self.waited_seconds / self.busy_seconds if self.busy_seconds else 0.0
        self.waited_seconds = self.busy_seconds = 0.0
        return share


def _begin_worker(number: int, *, num_workers: int, rank: int) -> None:
    """In a process of the data loader."""
    end_without_threads()
    seed_worker(number, num_workers, rank)


class FinetuneTrainer(SavingTrainer):
    """Trainer for :class:`ConversationDataset`. Beyond transformers' own:

    - a step has the same samples for any number of processes, at the end of an epoch too, and none twice
    - several samples may share a row, and only the logits of trained tokens are computed
    - the loss is normalised by tokens, the same for every family, and shown by source of the data
    - a loss or a gradient that is not finite stops, with the batch's samples by name, and so does memory that runs out
    - what should learn and gets no gradient stops
    - each component has its learning rate
    - the share of time spent waiting for data is shown
    - rows of attention may be supervised beside the words (``look_steps.LookSteps``)
    - samples stay in memory from one epoch to the next, where there is room
    - training that was finished when it was killed is not trained further
    - a run that resumes has the rates, decay and intervals of its own flags, and makes up an evaluation that was due
    - an evaluation changes no step after it
    """

    optimizer_cls_and_kwargs: Any

    def __init__(
        self,
        *,
        rates: Rates,
        gradients: GradientCheck,
        packing: bool,
        looking: LookSettings | None,
        **kwargs: Any,
    ) -> None:
        self.rates, self.gradients, self.packing = rates, gradients, packing
        super().__init__(**kwargs, compute_loss_func=loss.step_loss)
        bare = bare_model(self.model)
        self.packed = functools.partial(self._family.packed, bare.config) if packing else None
        self.keeps_logits = "logits_to_keep" in inspect.signature(bare.forward).parameters
        self.trained = self.evaluated = self._tally(self._dataset)
        self.judged = self._dataset
        self.samples_by_source = np.zeros(len(self.names), np.int64)
        self.samples_before = 0  # trained before this start
        self.clock = Clock(lambda: self._dataset.seconds_ahead)
        self.batches: list[Batch] = []
        self.left_out: set[str] = set()
        self.not_evaluated: set[str] = set()
        self.said_zero = False
        self.step_tokens: list[int] = []  # trained in this process by each step since the last log
        self.empty_steps = 0
        self.has_trained = False
        self.begun_after = 0  # step
        self.lacks_evaluation_of: str | None = None
        self.looking: LookSteps | None = None
        if looking is not None:
            self.looking = LookSteps(looking, bare, self._family, self.names, self.args)
            for judge in [one for one in self.callback_handler.callbacks if isinstance(one, Judge)]:
                judge.will_be_supervised(looking.layers, connector=self.looking.trains_connector)

    @property
    def names(self) -> Sequence[str]:
        """Of the sources that are trained on."""
        return self._dataset.mixture.names

    def _tally(self, dataset: ConversationDataset) -> loss.Tally:
        return loss.Tally(len(dataset.mixture.names), self.args.device)

    @property
    def _dataset(self) -> ConversationDataset:
        assert isinstance(self.train_dataset, ConversationDataset)
        return self.train_dataset

    @property
    def _family(self) -> Family:
        return self._dataset.family

    @property
    def _attention(self) -> str:
        """The attention kernel of the language model."""
        config: Any = bare_model(self.model).config
        return str(config.get_text_config()._attn_implementation)

    # --- data ------------------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> DataLoader:
        dataset, args = self._dataset, self.args
        shape = self._shape(self._train_batch_size, args.gradient_accumulation_steps)
        self.schedule = schedule_of(dataset, args, shape, packing=self.packing)
        return self._loader(dataset, self.schedule, self.packed, args.dataloader_persistent_workers)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Every sample once, in the order of the data, one to a row."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(dataset, ConversationDataset)
        self.judged = dataset
        order = np.arange(len(dataset))
        schedule = Schedule(lambda _: order, self._shape(self.args.eval_batch_size), longest_first=False)
        return self._loader(dataset, schedule, None, persistent=False)

    def _shape(self, rows: int, accumulation: int = 1) -> StepShape:
        # Not args.train_batch_size: with --auto_find_batch_size the one that is tried is smaller.
        together = self._train_batch_size * self.args.gradient_accumulation_steps
        return StepShape(rows, self.get_total_train_batch_size(self.args) // together, accumulation)

    def _loader(
        self, dataset: ConversationDataset, schedule: Schedule, packed: Any, persistent: bool
    ) -> DataLoader:
        args, workers = self.args, self.args.dataloader_num_workers
        must_see = self._all_must_see()
        may_have_videos = dataset.lengths is None or dataset.lengths.videos.any()
        collator = Collator(
            self.processing_class.tokenizer.pad_token_id,
            dataset.family.blank(self.processing_class),
            blank_pictures=must_see,
            blank_video=blank_video(dataset.family, self.processing_class)
            if must_see and may_have_videos
            else None,
            packed=packed,
            one_row=packed is not None and needs_one_row(self._attention),
        )
        loader = DataLoader(
            Rows(dataset),
            batch_sampler=schedule,
            collate_fn=collator,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=persistent and workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
            in_order=args.dataloader_in_order,
            worker_init_fn=functools.partial(_begin_worker, num_workers=workers, rank=args.process_index),
        )
        return self.accelerator.prepare(loader)

    def _all_must_see(self) -> bool:
        """Must every process run vision and connector in every micro-batch?

        Where they are sharded (ZeRO-3, FSDP), their weights are gathered as they are used, and where they train, their
        gradients are reduced: a process that has no picture would let the others wait for ever.
        """
        if self.args.world_size == 1:
            return False
        if self.is_fsdp_enabled or (
            self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        ):
            return True
        return any(
            parameter.requires_grad and component_of(name, self._family.paths) in ("vision", "connector")
            for name, parameter in bare_model(self.model).named_parameters()
        )

    # --- steps -----------------------------------------------------------------------------------------------
    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Epochs and steps of the run, where epochs may have different numbers of packed rows."""
        _, _, examples, samples, batch_size, _, _ = super().set_initial_training_values(args, dataloader)
        schedule = self.schedule
        if args.max_steps > 0:
            steps = args.max_steps
            epochs = schedule.place(steps - 1)[0] + 1
        else:
            steps, epochs = schedule.steps_of(args.num_train_epochs), math.ceil(args.num_train_epochs)
        schedule.set_epoch(0)
        room = self._room_for_samples() if epochs > 1 else 0
        self._dataset.keep(room, ahead=self._tower_ahead() if room else None)
        return epochs, schedule.steps(0), examples, samples, batch_size, schedule.micro_batches(0), steps

    def _room_for_samples(self) -> float:
        """Bytes. Nothing in workers, whose samples are not the same from one epoch to the next."""
        if self.args.dataloader_num_workers:
            return 0
        free, processes = available_bytes(torch.device("cpu")), local_processes()
        return kept_samples.room_bytes(self.args.kept_samples_gib, free, processes)

    def _tower_ahead(self) -> frozen_tower.FrozenTower | None:
        """For kept samples: a frozen tower sees each picture once. None where its output could differ from step to
        step, and on GPUs, whose memory is not that of samples."""
        args, mixed = self.args, self.accelerator.mixed_precision != "no"
        if args.device.type != "cpu" or args.world_size > 1 or mixed or self.is_fsdp_enabled:
            return None
        return frozen_tower.ahead(bare_model(self.model), self._family)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        # A checkpoint's state brings its own intervals of logging, evaluating and saving along.
        self.state.compute_steps(self.args, max_steps)
        self.lacks_evaluation_of = resume_from_checkpoint if self._lacks_evaluation() else None
        self._check_best(resume_from_checkpoint)
        step, source_of = self.state.global_step, self._dataset.source_of
        self.samples_by_source[:] = 0
        for samples in self.schedule.trained(step):
            self.samples_by_source += np.bincount(source_of[samples], minlength=len(self.names))
        self.samples_before = int(self.samples_by_source.sum())
        self.trained = self._tally(self._dataset)
        self.step_tokens.clear()
        if self.looking is not None:
            self.looking.language_nats = 0.0
        self.empty_steps = 0
        self.begun_after = step
        epoch, steps_done = self.schedule.place(step)
        skipped = 0 if self.args.ignore_data_skip else steps_done * self.args.gradient_accumulation_steps
        return epoch, skipped

    def _check_best(self, resumed_from: str | None) -> None:
        """Say which evaluations choose the best model, and of a run that goes on, put right which one is the best."""
        args, state, metric = self.args, self.state, self.args.metric_for_best_model
        by_steps = args.save_strategy == SaveStrategy.STEPS and args.eval_strategy == IntervalStrategy.STEPS
        if args.load_best_model_at_end and by_steps and state.eval_steps != state.save_steps:
            say(
                "--load_best_model_at_end True: the best is chosen among checkpoints (--save_steps "
                f"{state.save_steps}); evaluations between them (--eval_steps {state.eval_steps}) choose nothing, "
                "because no weights are kept there"
            )
        if resumed_from is not None and metric is not None:
            name, greater = f"eval_{metric.removeprefix('eval_')}", bool(args.greater_is_better)
            words = best_checkpoint.put_right(state, Path(resumed_from), name, greater=greater)
            if words and args.load_best_model_at_end:
                say(words)

    def _lacks_evaluation(self) -> bool:
        """Was an evaluation due at the step that is resumed from, and none made, because the run was stopped there?"""
        args, state = self.args, self.state
        step = state.global_step
        if args.eval_strategy == IntervalStrategy.STEPS:
            due, since = step % state.eval_steps == 0, step
        elif args.eval_strategy == IntervalStrategy.EPOCH:
            due, since = self.schedule.place(step)[1] == 0, state.epoch
        else:
            return False
        if step == 0 or since < args.eval_delay or not (due or step >= state.max_steps):
            return False
        return not any(one.get("step") == step and "eval_loss" in one for one in state.log_history)

    def _make_up_evaluation(self) -> None:
        """The evaluation that was due where the run resumes, as if it had been made there."""
        checkpoint, self.lacks_evaluation_of = self.lacks_evaluation_of, None
        if checkpoint is None:
            return
        with self._memory_named():
            metrics = self._evaluate(None, None)
        will_save, self.control.should_save = self.control.should_save, self._was_due_to_save()
        if self._determine_best_metric(metrics, None):
            self.state.best_model_checkpoint = os.path.abspath(checkpoint)
        self.control.should_save = will_save

    def _was_due_to_save(self) -> bool:
        """Would the run have saved the checkpoint that it resumes from, had no signal stopped it there? One that would
        not must not become the best: the run would end with other weights than one that was left alone."""
        step, strategy = self.state.global_step, self.args.save_strategy
        if strategy == SaveStrategy.STEPS and step % self.state.save_steps == 0:
            return True
        at_end_of_epoch = strategy == SaveStrategy.EPOCH and self.schedule.place(step)[1] == 0
        return at_end_of_epoch or step >= self.state.max_steps

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Is this the best evaluation of a checkpoint? One between checkpoints is none, however good: its weights are
        not kept, and a worse checkpoint would have to beat it.

        Raises TrainingError for a metric that this evaluation does not have: boxes where no answer is one, say.
        """
        name = self.args.metric_for_best_model
        if name is not None and f"eval_{name.removeprefix('eval_')}" not in metrics:
            there = ", ".join(one.removeprefix("eval_") for one in metrics if one.startswith("eval_"))
            raise TrainingError(
                f"--metric_for_best_model: found {name}, expected one that the evaluation of this data gives: {there}"
            )
        if not self.control.should_save and self.args.save_strategy != SaveStrategy.BEST:
            return False
        return super()._determine_best_metric(metrics, trial)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._make_up_evaluation()  # where no step was left
        return super()._finalize_training(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._make_up_evaluation()
        # Transformers looks at max_steps after a step, so a run killed after its last one would take one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        epoch = kwargs["epoch"]
        # Transformers and accelerate reach the sampler through one or two wrappers, and after a resume there are
        # three: the order of a later epoch would be that of the first.
        self.schedule.set_epoch(epoch)
        kwargs["steps_in_epoch"] = self.schedule.micro_batches(epoch)
        kwargs["num_update_steps_per_epoch"] = self.schedule.steps(epoch)
        with self._memory_named():
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        self.clock.begin()
        self.batches.clear()
        self.has_trained = True
        found = super().get_batch_samples(self.clock.watching(epoch_iterator), num_batches, device)
        if self.looking is not None:
            self.looking.begin(found[0], self.state)
        return found

    # --- loss ------------------------------------------------------------------------------------------------
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share in the step's mean nats per trained token (see ``loss.step_loss``)."""
        about, labels = inputs.pop("about"), inputs.pop("labels")
        inputs.pop("skip_logits", None)  # an option of Liger's loss, which is not used
        dataset = self._dataset if model.training else self.judged
        self._meet(Batch(about, dataset, *labels.shape), training=model.training)
        kept = about["kept"]
        rows = LookBatch(**about["look"]) if "look" in about else None
        looking = self.looking if model.training else None
        targets = labels[:, kept + 1]
        if looking and rows and self._is_last_micro_batch and looking.share_is_due:
            self._measure_look_share(looking, inputs, kept, targets, rows, num_items_in_batch)
        with looking.watching(rows) if looking else nullcontext() as calls:
            outputs = self._outputs(model, inputs, kept)
        nats = self._nats(outputs, kept, targets)
        tally = self.trained if model.training else self.evaluated
        token_sources = about["sources"][:, kept + 1][targets != loss.IGNORED]
        tally.add(nats, token_sources, about["sample_sources"])
        value = loss.step_loss(nats, num_items_in_batch)
        if model.training:
            if len(self.batches) == 1:
                self.step_tokens.append(0)
            self.step_tokens[-1] += len(nats)
            self._check_loss(value.item(), len(nats))
            if looking:
                looking.add_language(value.item())
        if calls:
            assert looking is not None and rows is not None
            value = looking.added(value, calls, rows)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The gradients of these processes will be averaged.
            value = value * (self.accelerator.num_processes // self.get_tp_size())
        return (value, outputs) if return_outputs else value

    def _outputs(self, model: nn.Module, inputs: Mapping[str, Any], kept: Tensor) -> Any:
        # A cache is of no use here, and with one some families let the samples of a packed row see each other.
        some = {"logits_to_keep": kept} if self.keeps_logits else {}
        return model(**inputs, use_cache=False, **some)

    def _nats(self, outputs: Any, kept: Tensor, targets: Tensor) -> Tensor:
        logits = outputs["logits"] if self.keeps_logits else outputs["logits"][:, kept]
        return loss.token_nats(logits, targets, label_smoothing=self.args.label_smoothing_factor)

    def _measure_look_share(
        self,
        looking: LookSteps,
        inputs: Mapping[str, Any],
        kept: Tensor,
        targets: Tensor,
        rows: LookBatch,
        items: Tensor | int | None,
    ) -> None:
        """The look loss's share of the gradient, in a forward of its own before that of the step.

        Not in the step's own graph: DeepSpeed's engine reduces gradients at the end of every backward pass through its
        outputs, this one too, and a forward before the step's holds no second set of activations. The bare model is
        without the mixed precision that accelerate puts around the trained one.
        """
        bare = looking.model
        if self.is_deepspeed_enabled:  # its engine, which is gone round here, casts what it is given
            kind = next(bare.parameters()).dtype
            inputs = {
                name: one.to(kind) if isinstance(one, Tensor) and one.is_floating_point() else one
                for name, one in inputs.items()
            }
        device = self.args.device
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            looking.watching(rows) as calls,
            self.accelerator.autocast(),
        ):
            nats = self._nats(self._outputs(bare, inputs, kept), kept, targets)
        assert calls is not None
        looking.measure_share(loss.step_loss(nats, items), calls, rows)

    @property
    def _is_last_micro_batch(self) -> bool:
        return len(self.batches) == self.current_gradient_accumulation_steps

    def _meet(self, batch: Batch, *, training: bool) -> None:
        """Take note of a batch: its faults, pictures and samples."""
        self.batches = [*self.batches, batch] if training else [batch]
        faults = batch.about["faults"].values()
        if faults and batch.dataset.on_bad_sample != "drop":
            listed = [line.removeprefix("  ") for line in shown([*faults], MOST_NAMES_SHOWN)]
            raise BatchError(
                "\n".join([*listed, "correct these samples, or leave them out: --on_bad_sample drop"])
            )
        self.left_out.update(faults)
        if not training:
            self.not_evaluated.update(faults)
        if training and self.gradients.watching:
            has_samples = bool(len(batch.about["samples"]))
            self.gradients.saw_batch(pictures=bool(batch.about["pictures"]), samples=has_samples)

    def _check_loss(self, value: float, tokens: int) -> None:
        step, batch = self.state.global_step + 1, self.batches[-1]
        if not math.isfinite(value):
            raise BatchError(
                f"the loss is {value} in step {step}; the batch held\n{batch.listed()}\n{NOT_FINITE_REMEDY}"
            )
        if value == 0 and tokens and not self.said_zero:
            self.said_zero = True
            logger.warning(
                f"the loss of {tokens} trained tokens is exactly 0 in step {step}: either the model is certain of each "
                f"of them, or it computes nothing; the batch held\n{batch.listed()}"
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient norm over all processes. With fp16 it may be infinite: the step is skipped and the loss scale
        lowered."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None or self.args.fp16 or math.isfinite(norm):
            return norm
        numbers = joined([one for batch in self.batches for one in batch.about["samples"].tolist()])
        raise TrainingError(
            f"the gradient of step {self.state.global_step + 1} is not finite (norm {float(norm)}), though its loss "
            f"is; the step held\n{_listed(self._dataset, numbers)}\n{NOT_FINITE_REMEDY}"
        )

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        """Turn out-of-memory errors into one message: the batch, and remedies."""
        try:
            yield
        except RuntimeError as error:
            # With --auto_find_batch_size the Trainer itself waits for this error, and tries a smaller batch.
            words = str(error)
            if self.args.auto_find_batch_size or not any(word in words for word in OUT_OF_MEMORY):
                raise
            raise BatchError(self._out_of_memory(words)) from error

    def _out_of_memory(self, words: str) -> str:
        args = self.args
        batch = self.batches[-1] if self.batches else None
        size = args.per_device_train_batch_size
        remedies = [
            f"--per_device_train_batch_size {max(1, size // 2)} with twice the --gradient_accumulation_steps"
            if size > 1
            else "",
            "" if args.gradient_checkpointing else "--gradient_checkpointing True",
            "a smaller --max_pixels (families of dynamic resolution)",
            "a smaller --model_max_length (with --packing it is the length of every row)",
            "--use_lora or --q_lora instead of training in full",
            "" if self.is_deepspeed_enabled else "--deepspeed ds_config_zero3.json on several devices",
        ]
        held = f"; the batch held {batch.weighed()}:\n{batch.listed()}" if batch else ""
        return "\n".join(
            [
                f"memory ran out in step {self.state.global_step + 1}{held}",
                "remedies, cheapest first:",
                *(f"  {remedy}" for remedy in remedies if remedy),
                f"({words.splitlines()[0]})",
            ]
        )

    # --- logging ---------------------------------------------------------------------------------------------
    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.clock.end()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and "learning_rate" in logs:  # of training steps, on every process
            logs |= self._of_training()
            steps, empty = len(self.step_tokens), self._empty_steps_taken()
            for name in [one for one in ("loss", LANGUAGE_LOSS) if one in logs]:
                _spread(logs, name, steps, empty)
        elif "train_loss" in logs and not self.has_trained:
            return  # resumed at its last step: duration and mean loss would be those of nothing
        elif "train_loss" in logs:
            steps = self.state.global_step - self.begun_after
            if not hasattr(
                self, "_initial_global_step"
            ):  # transformers 5.17 divides by the steps of all starts
                logs["train_loss"] *= self.state.global_step / max(steps, 1)
            self._count_samples(logs)
            _spread(logs, "train_loss", steps, self.empty_steps + self._empty_steps_taken())
        super().log(logs, start_time)

    def _count_samples(self, logs: dict[str, float]) -> None:
        """The samples a second that were trained since this start: transformers counts packed rows where it knows the
        steps of a run, and an epoch's samples by those of the data."""
        self.samples_by_source += self.trained.taken().samples
        trained, seconds = int(self.samples_by_source.sum()) - self.samples_before, logs["train_runtime"]
        if seconds:
            logs["train_samples_per_second"] = round(trained / seconds, 3)

    def _empty_steps_taken(self) -> int:
        """Steps since the last log whose samples were all left out; their loss of 0 must not enter the mean."""
        tokens = reduced(torch.tensor(self.step_tokens, device=self.args.device))
        found = int((tokens == 0).sum())
        self.step_tokens.clear()
        self.empty_steps += found
        return found

    def _of_training(self) -> dict[str, float]:
        totals, names = self.trained.taken(), self.names
        # The slowest process makes all others wait.
        waited = reduced(torch.tensor(self.clock.taken(), device=self.args.device), distributed.ReduceOp.MAX)
        shown = {
            "waiting for data (share)": waited.item(),
            **(self.looking.taken(len(self.step_tokens)) if self.looking is not None else {}),
        }
        self.samples_by_source += totals.samples
        if len(names) == 1:
            return shown
        seen = zip(names, self.samples_by_source.tolist(), strict=True)
        return {
            **shown,
            **totals.by_source(names),
            **{f"samples by source/{name}": count for name, count in seen},
        }

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """transformers' evaluation. Its loader draws a seed, so without care the steps after it would draw others than
        those of a run that evaluates elsewhere, or not at all."""
        with untouched(self.model):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader: DataLoader, description: str, *args: Any, **kwargs: Any) -> Any:
        """transformers' evaluation, with the loss averaged over tokens instead of batches, and by source."""
        prefix, names = kwargs.get("metric_key_prefix", "eval"), self.judged.mixture.names
        self.evaluated = self._tally(self.judged)
        self.not_evaluated.clear()
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        totals = self.evaluated.taken()
        if not sum(totals.tokens):
            raise TrainingError(self._nothing_evaluated())
        output.metrics[f"{prefix}_loss"] = totals.mean_nats
        if len(names) > 1:
            output.metrics.update(totals.by_source(names, f"{prefix}_"))
        return output

    def _nothing_evaluated(self) -> str:
        faults = sorted({*joined([*self.not_evaluated])})
        return "\n".join(
            [
                f"--eval_data_path: found none that can be evaluated among {len(self.judged):,} samples, expected at "
                "least one:",
                *shown(faults, MOST_NAMES_SHOWN),
                "correct these samples, give others, or evaluate nothing (--eval_strategy no)",
            ]
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; what a checkpoint holds is read without running code in it."""
        read = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else self.args.output_dir
        with pickles.no_code_run(Path(str(read)), deepspeed=self.is_deepspeed_enabled):
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self._dataset.on_bad_sample == "drop":
            self._say_left_out()
        return result

    def _say_left_out(self) -> None:
        faults = sorted({*joined([*self.left_out])})
        if not faults:
            return
        heading = f"{len(faults):,} sample{'s' if len(faults) > 1 else ''} could not be read, left out:"
        more = [f"... and {len(faults) - MOST_NAMES_SHOWN:,} more"] if len(faults) > MOST_NAMES_SHOWN else []
        logger.warning("\n  ".join([heading, *faults[:MOST_NAMES_SHOWN], *more]))

    # --- optimizer -----------------------------------------------------------------------------------------------
    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        with library_log.printed():  # DeepSpeed starts here
            return super()._prepare_for_training(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if (
            checkpoint is None or self.is_deepspeed_enabled
        ):  # which loads groups itself; other flags are refused
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        groups = self.optimizer.param_groups
        own = [{name: group[name] for name in GROUP_OPTIONS if name in group} for group in groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        put_back(self.optimizer, self.lr_scheduler, own)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            whole = self.model if model is None else model
            choice = optimizer.Choice(*self.get_optimizer_cls_and_kwargs(self.args, whole))
            self.optimizer_cls_and_kwargs = optimizer.with_groups(choice, whole, self._family, self.rates)
        return super().create_optimizer(model)


GROUP_OPTIONS = ("initial_lr", "weight_decay", "betas", "eps")
"""What flags say of a group of parameters. Some optimizers keep their state beside these."""


def put_back(optimizer: torch.optim.Optimizer, scheduler: Any, own: Sequence[Mapping[str, Any]]) -> None:
    """After a checkpoint was loaded, which brings its own along: each group's options as the flags of this run say, and
    the rate of the next step by them. Where the flags are the same, no bit changes.

    own   ``GROUP_OPTIONS`` of each group
    """
    groups = optimizer.param_groups
    for group, options in zip(groups, own, strict=True):
        group.update(options)
    if isinstance(scheduler, LambdaLR):
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, base, factor in zip(groups, scheduler.base_lrs, factors, strict=True):
            group["lr"] = base * factor
        scheduler._last_lr = [group["lr"] for group in groups]


def _spread(logs: dict[str, float], name: str, steps: int, empty: int) -> None:
    """Turn a mean over all steps into a mean over steps with trained tokens; drop it without any."""
    if empty and empty >= steps:
        logs.pop(name)
        logs.pop("grad_norm", None)
    elif empty:
        logs[name] *= steps / (steps - empty)


def log_folder(args: TrainingArguments) -> Path:
    """Where TensorBoard's files go: ``OUTPUT_DIR/runs``, or ``--logging_dir``."""
    return Path(args.logging_dir or Path(str(args.output_dir)) / "runs")


def summary_writer(args: TrainingArguments, resumed_step: int | None) -> Any | None:
    """The run's one TensorBoard writer, on the first process; None if it is not wanted.

    After a resume, what was logged beyond the checkpoint is purged from view; of a run that begins anew, all that a
    start before its first checkpoint has logged.
    """
    if "tensorboard" not in (args.report_to or []) or args.process_index != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter

    purge = None if resumed_step is None else resumed_step + 1
    if purge is None and any(log_folder(args).glob("*tfevents*")):
        purge = 0
    return SummaryWriter(str(log_folder(args)), purge_step=purge)


def build_trainer(
    model: nn.Module,
    processor: Any,
    args: TrainingArguments,
    train: ConversationDataset,
    evaluation: ConversationDataset | None,
    *,
    rates: Rates | None = None,
    packing: bool = False,
    looking: LookSettings | None = None,
    writer: Any | None = None,
    probe_steps: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FinetuneTrainer:
    """A Trainer over these parts. ``callbacks`` see the end of training before the writer is closed.

    rates     None: ``args.learning_rate`` and ``args.weight_decay`` for every component
    packing   several samples in a row of training, up to the dataset's longest length
    looking   supervision of attention; None: there is none
    probe_steps   of a monitor among the callbacks, whose bar takes the place of the training's
    """
    gradients = GradientCheck(train.family)
    args.report_to = [name for name in args.report_to or [] if name != "tensorboard"]
    shown = [TensorBoardCallback(tb_writer=writer)] if writer is not None else []
    assert processor.tokenizer.pad_token_id is not None
    progress = Progress(
        is_shown=not args.disable_tqdm,
        probe_steps=probe_steps,
        is_held_out=evaluation is None or evaluation.is_held_out,
    )
    built = FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        rates=rates or Rates(args.learning_rate, weight_decay=args.weight_decay),
        gradients=gradients,
        packing=packing,
        looking=looking,
        callbacks=[gradients, optimizer.ComponentRates(), progress, *callbacks, *shown],
    )
    built.remove_callback(PrinterCallback if args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
    return built
