"""Attention supervision in the steps of a run: weight, rows of the whole step, and what is logged."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import TrainerState

from finetune.attention.look_rows import CONNECTOR
from finetune.attention.watch import Call
from finetune.data.look import LookBatch
from finetune.distributed import is_main, reduced
from finetune.families.base import Family
from finetune.flags.arguments import TrainingArguments
from finetune.model import look_file
from finetune.training import loss
from finetune.training.guards import TrainingError
from finetune.training.look import LookSettings, LookTally, Supervision, trains_connector

SHARE_EVERY, SHARE_NUMBERS = 50, 10**8
"""The look loss's share of the gradient norm is measured once in so many steps, over at most so many numbers."""
LANGUAGE_LOSS = "language loss"


@runtime_checkable
class Judge(Protocol):
    """Who judges the model's attention while it trains: a monitor among the Trainer's callbacks."""

    def will_be_supervised(self, layers: Callable[[], Sequence[int]], *, connector: bool) -> None:
        """Where attention is trained on in the run that begins: in language layers, which are known once the key layers
        are, and in the connector."""


class LookSteps:
    """Supervision over the steps of a Trainer, which calls in turn: ``begin`` for a step; for each of its micro-batches
    ``watching`` around the forward, and ``added`` where rows were supervised; ``taken`` for a log."""

    def __init__(
        self,
        settings: LookSettings,
        model: nn.Module,
        family: Family,
        names: Sequence[str],
        args: TrainingArguments,
    ) -> None:
        self.settings, self.model, self.names, self.args = settings, model, names, args
        self.supervision = Supervision(settings, model, family)
        self.trains_connector = trains_connector(model, family)
        self.tally = LookTally(len(names), args.device)
        self.weight = self.language_nats = 0.0
        self.rows_in_step = self.step = self.share_measured_at = 0
        self.is_logged = self.is_begun = False

    def begin(self, micro_batches: Sequence[Mapping[str, Any]], state: TrainerState) -> None:
        """Take note of a step: its weight, and how many supervised rows all its micro-batches have, in all processes
        where the language loss counts tokens so."""
        if not self.is_begun:
            self.is_begun = True
            self._write_down()
        self.step = state.global_step
        self.weight = self.settings.weight_at(state.global_step, state.max_steps)
        self.is_logged = (self.step + 1) % max(int(state.logging_steps), 1) == 0
        found = [batch["about"]["look"] for batch in micro_batches if "look" in batch["about"]]
        rows = torch.tensor(sum(len(one["sources"]) for one in found), device=self.args.device)
        self.rows_in_step = int(reduced(rows) if self.args.average_tokens_across_devices else rows)

    def _write_down(self) -> None:
        """Those who judge the model have to know that its attention was trained on.

        Raises TrainingError for a file that is none of ours where it is written down.
        """
        if is_main():
            settings = self.settings
            folder, layers = Path(str(self.args.output_dir)), settings.layers()
            try:
                look_file.write(
                    folder,
                    layers,
                    settings.pictures,
                    weight=settings.weight,
                    loss=settings.loss,
                    connector=self.trains_connector,
                )
            except ValueError as error:
                raise TrainingError(str(error)) from error

    @contextmanager
    def watching(self, rows: LookBatch | None) -> Iterator[dict[str, Call] | None]:
        """Keeps the calls of the supervised layers in a forward that has supervised rows; without any, or with a weight
        of 0, the forward is as without supervision."""
        if rows is None or not self.weight:
            yield None
            return
        with self.supervision.kept().keeping() as calls:
            yield calls

    def added(self, language: Tensor, calls: Mapping[str, Call], rows: LookBatch) -> Tensor:
        """The language loss and the weighted look loss of a micro-batch, each its share of the step's mean.

        Raises TrainingError where no gradient reaches the rows.
        """
        _check_gradient(calls)
        result = self.supervision.result(calls, rows)
        self.tally.add(result, rows.sources)
        return language + self._weighted(result.losses)

    def _weighted(self, losses: Tensor) -> Tensor:
        return self.weight * loss.step_loss(losses, self.rows_in_step)

    # --- its share of the gradient -------------------------------------------------------------------------------
    @property
    def share_is_due(self) -> bool:
        """Is the look loss's share of the gradient norm to be measured in this step?"""
        is_due = not self.share_measured_at or self.step + 1 - self.share_measured_at >= SHARE_EVERY
        return bool(self.weight) and self.is_logged and is_due and self._share_is_measurable

    @functools.cached_property
    def _share_is_measurable(self) -> bool:
        """Not where gradients are sharded or scaled, nor where a second copy of them may not fit beside the first."""
        plugin = self.args.deepspeed_plugin
        is_sharded = bool(self.args.fsdp) or (plugin is not None and plugin.zero_stage == 3)
        return (
            not is_sharded
            and not self.args.fp16
            and sum(one.numel() for one in self._trained()) <= SHARE_NUMBERS
        )

    def _trained(self) -> list[nn.Parameter]:
        return [one for one in self.model.parameters() if one.requires_grad]

    def measure_share(self, language: Tensor, calls: Mapping[str, Call], rows: LookBatch) -> None:
        """Two backward passes of one micro-batch, whose graph and gradients are then thrown away."""
        _check_gradient(calls)
        self.share_measured_at = self.step + 1
        look = self._weighted(self.supervision.result(calls, rows).losses)
        norms = []
        for part in (look, language):
            found = torch.autograd.grad(part, self._trained(), retain_graph=part is look, allow_unused=True)
            squares = [one.float().square().sum() for one in found if one is not None]
            norms.append(torch.stack(squares).sum().sqrt())
        self.tally.add_norms(*norms)

    # --- logging -------------------------------------------------------------------------------------------------
    def add_language(self, nats: float) -> None:
        """The language loss of a micro-batch, its share of the step's mean (``loss.step_loss``)."""
        self.language_nats += nats

    def taken(self, steps: int) -> dict[str, float]:
        """What is logged, over all processes since the last log: the language loss in nats, its mean over these
        ``steps``, as the Trainer's ``loss`` is; and where a row was supervised the look loss in nats, the weight, the
        mass in the boxes by source, and the share of the gradient norm where it was measured.

        Every process must call this.
        """
        language = reduced(torch.tensor(self.language_nats, device=self.args.device)).item()
        if not self.args.average_tokens_across_devices:  # each process has a mean of its own tokens
            language /= self.args.world_size
        self.language_nats = 0.0
        shown = {LANGUAGE_LOSS: language / max(steps, 1)}
        totals = self.tally.taken()
        if totals.loss_nats is None:
            return shown
        shown |= {"look loss": totals.loss_nats, "look weight": self.weight}
        by_source = zip(self.names, totals.mass, strict=True)
        shown |= {f"look mass by source/{name}": mass for name, mass in by_source if not math.isnan(mass)}
        if totals.grad_share is not None:
            shown["look gradient norm (share)"] = totals.grad_share
        return shown


def _check_gradient(calls: Mapping[str, Call]) -> None:
    """Raises TrainingError for a layer whose queries and keys have no graph: its rows would learn nothing."""
    without = [
        name
        for name, call in calls.items()
        if name != CONNECTOR and not call.query.requires_grad and not call.key.requires_grad
    ]
    if without:
        raise TrainingError(
            f"--look_weight: no gradient reaches the attention of {', '.join(without)}, so nothing learns where to "
            'look; leave out "use_reentrant" of --gradient_checkpointing_kwargs, or train what makes queries and keys '
            "(--use_lora True with q and k among --lora_target_modules, --connector, --language full)"
        )
