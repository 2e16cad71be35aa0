"""The loss: nats of each trained token, normalised over the whole step, and its mean by source of the data."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from finetune.data.lengths import IGNORED
from finetune.distributed import gathered, reduced


def token_nats(
    logits: Float[Tensor, "batch positions words"],
    targets: Int[Tensor, "batch positions"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "trained"]:
    """Cross-entropy of each trained token in nats, row after row.

    targets   the token that each position predicts, -100 where it is not trained
    """
    trained = targets != IGNORED
    # Only rows that are trained on become fp32: a batch of 2,048 tokens has 1.2 GB of logits in fp32.
    predictions = logits[trained].float()
    return F.cross_entropy(predictions, targets[trained], reduction="none", label_smoothing=label_smoothing)


def step_loss(
    nats: Float[Tensor, "trained"], tokens_in_step: Tensor | int | None = None
) -> Float[Tensor, ""]:
    """The share of one micro-batch in the mean over all trained tokens of a step.

    ``tokens_in_step`` counts those of all micro-batches of all processes (None: this one is the step). Averaging
    micro-batch means instead would weigh a token in a short answer more than one in a long answer, and the result
    would depend on how a step is cut into micro-batches. Families differ in whether their own loss does this, so it is
    not used. A micro-batch with nothing to train has a loss of 0, whose gradient is 0.
    """
    tokens = len(nats) if tokens_in_step is None else tokens_in_step
    return nats.sum() / max(tokens, 1) if isinstance(tokens, int) else nats.sum() / tokens.clamp(min=1)


class Totals(NamedTuple):
    """Samples, trained tokens and their nats of each source, over all processes."""

    samples: list[int]
    tokens: list[int]
    nats: list[float]

    @property
    def mean_nats(self) -> float:
        """Mean over trained tokens of all sources. Raises ZeroDivisionError without any."""
        return sum(self.nats) / sum(self.tokens)

    def by_source(self, names: Sequence[str], prefix: str = "") -> dict[str, float]:
        """``loss by source/NAME`` → mean nats of a trained token, for sources that had any."""
        columns = zip(names, self.nats, self.tokens, strict=True)
        return {f"{prefix}loss by source/{name}": nats / tokens for name, nats, tokens in columns if tokens}


class Tally:
    """Accumulates samples, trained tokens and nats of each source.

    Means are over tokens, not batches: 2 tokens of 1 nat in one batch and 1 token of 4 nats in
    another have a mean of 2 nats, not of 2.5.

    Nats add up in fp64: in fp32, a sum of 65,536 nats takes in a token of .001 as nothing. Where the device has no
    fp64, the sum is on the CPU, and a batch comes there as its sums by source.
    """

    def __init__(self, sources: int, device: torch.device) -> None:
        on_device = _has_fp64(device)
        self.batch_dtype = torch.float64 if on_device else torch.float32
        self.samples = torch.zeros(sources, dtype=torch.long, device=device)
        self.tokens = torch.zeros(sources, dtype=torch.long, device=device)
        self.nats = torch.zeros(sources, dtype=torch.float64, device=device if on_device else "cpu")

    def add(
        self,
        nats: Float[Tensor, "trained"],
        token_sources: Int[Tensor, "trained"],
        sample_sources: Int[Tensor, "samples"],
    ) -> None:
        of_batch = torch.zeros(len(self.nats), dtype=self.batch_dtype, device=nats.device)
        of_batch.index_add_(0, token_sources, nats.detach().to(of_batch))
        self.nats += of_batch.to(self.nats)
        self.tokens.index_add_(0, token_sources, torch.ones_like(token_sources))
        self.samples.index_add_(0, sample_sources, torch.ones_like(sample_sources))

    def taken(self) -> Totals:
        """The totals over all processes, then reset. Every process must call this."""
        for values in (self.samples, self.tokens):
            reduced(values)
        every = gathered(self.nats.tolist())  # on the CPU they may be where processes exchange no tensors
        nats = [sum(column) for column in zip(*every, strict=True)]
        totals = Totals(self.samples.tolist(), self.tokens.tolist(), nats)
        for values in (self.samples, self.tokens, self.nats):
            values.zero_()
        return totals


def _has_fp64(device: torch.device) -> bool:
    """Apple's devices have none (TypeError), nor do some of Intel's (RuntimeError)."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True
