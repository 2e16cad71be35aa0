"""Attention supervision: the loss of rows that should look into boxes, its weight over a run, and its totals."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from finetune.attention.look_rows import CONNECTOR, KeptCalls, connector_rows, image_shares, over_cells
from finetune.attention.rows import rules
from finetune.attention.watch import Call
from finetune.data.look import NO_TOKEN, LookBatch, Rows
from finetune.distributed import reduced
from finetune.families.base import Family
from finetune.model.adaptation import component_of

LookLoss = Literal["mass", "kl"]
FLOOR = 1e-6
"""Of a mass before its logarithm: a row that looks nowhere near the boxes still has a finite gradient."""
SMOOTHING = 0.05
"""Share of the target of ``kl`` that is spread evenly over the pictures that the row sees."""


@dataclass(frozen=True)
class LookSettings:
    """What ``--look_…`` say.

    weight    of the loss beside the language loss, in its middle part
    layers    language layers by number, asked for when training begins: the monitor chooses key layers then
    target    the region mass at which ``mass`` is content, 0 to 1
    warmup    share of the steps over which the weight rises from 0
    release   share of the steps at the end over which it falls back to 0, so that the final weights stand at a
              stationary point of the language loss
    pictures  SHA-256 of the pictures' files, for those who judge the model later; None where they are not known
    """

    weight: float
    layers: Callable[[], Sequence[int]]
    loss: LookLoss = "mass"
    rows: Rows = "first"
    target: float = 0.8
    warmup: float = 0.1
    release: float = 0.2
    pictures: Collection[str] | None = None

    def weight_at(self, step: int, steps: int) -> float:
        """The weight in a step, counted from 0, of a run of ``steps``.

        Of 10 steps with a warm-up of .2 and a release of .4: ½ 1 1 1 1 1 ¾ ½ ¼ 0, times the weight.
        """
        rising = (step + 1) / (self.warmup * steps) if self.warmup else 1.0
        falling = (steps - 1 - step) / (self.release * steps) if self.release else 1.0
        return self.weight * max(0.0, min(1.0, rising, falling))


class LookResult(NamedTuple):
    """Supervision of one micro-batch.

    losses   of each supervised row, in nats: what is trained
    mass     of each supervised row: the share of its attention to all pictures before it that lies in the boxes, 0 to
             1; of a relation, of the end that it looks at less. Without gradient

    Both are means over the layers in which the row sees some of the boxes, of a relation of both ends: where a window
    ends before them, nothing can be asked. A row that sees them in none has 0.
    """

    losses: Float[Tensor, "rows"]
    mass: Float[Tensor, "rows"]


def mass_losses(
    shares: Float[Tensor, "rows places"],
    weights: Float[Tensor, "rows ends places"],
    ends: Int[Tensor, "rows"],
    target: float,
) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
    """max(0, log target − log(Σ w·p + 1e-6)) of each row, and Σ w·p, both of the end where Σ w·p is smaller.

    Bounded below: a row that looks into the boxes enough has no loss. Both ends of a relation share what there is, so
    each should get half of the target. A mass of .2 with a target of .8 costs log 4 nats.
    """
    masses = (weights.to(shares) * shares[:, None]).sum(-1)  # rows, ends
    least = masses.amin(-1)
    wanted = torch.log(target / ends.to(shares))
    return (wanted - torch.log(least + FLOOR)).clamp(min=0), least


def kl_losses(
    shares: Float[Tensor, "rows places"],
    weights: Float[Tensor, "rows ends places"],
    seen: Tensor,
) -> Float[Tensor, "rows"]:
    """Σ t (log t − log p) of each row, t the boxes' coverage made a distribution, ends in equal parts, and smoothed:
    5 % of it lie evenly on the pictures. What the row cannot see has no part in t.

    seen   Bool[rows, places]: the places that a row sees (``seen_places``)
    """
    covered = (weights * seen[:, None]).to(shares)
    covered = covered / covered.sum(-1, keepdim=True).clamp(min=FLOOR)
    even = seen.to(shares) / seen.sum(-1, keepdim=True).clamp(min=1)
    aim = (1 - SMOOTHING) * covered.mean(1) + SMOOTHING * even
    known = aim > 0
    logs = torch.log(aim.where(known, 1.0)) - torch.log(shares + FLOOR)
    return (aim * logs * known).sum(-1)


def trains_connector(model: nn.Module, family: Family) -> bool:
    """Does a loss on attention train the connector's own attention too? Where rows are composed with it, and something
    that moves it trains: its keys come from the tower.

    model   bare, with what trains unfrozen
    """
    return family.paths.connector_attention is not None and any(
        one.requires_grad and component_of(name, family.paths) in ("vision", "connector")
        for name, one in model.named_parameters()
    )


def seen_tokens(call: Call, batch: LookBatch) -> Bool[Tensor, "rows tokens"]:
    """Which image tokens may each row see in this layer, in any head? By the layer's mask: a share of attention may
    round to 0 where a token is seen."""
    _, most = batch.positions.shape
    allowed, bias = rules(call, batch.sequences, batch.positions)
    if bias is not None:  # masks that add forbid by their type's lowest number, or by −inf
        allowed = bias > torch.finfo(bias.dtype).min / 2
    if allowed is None:
        return batch.is_token
    by_row = allowed.any(1).expand(-1, most, -1)[batch.at[:, 0], batch.at[:, 1]]  # rows, keys
    return by_row.gather(-1, batch.tokens.clamp(min=0)) & batch.is_token


def seen_cells(
    seen: Bool[Tensor, "rows tokens"], images: Int[Tensor, "rows images"], cells: int
) -> Bool[Tensor, "rows places"]:
    """Through a resampler: the cells of each image of which a row sees any token, since each token reads all cells."""
    rows, count = images.shape
    by_image = seen.view(rows, count, -1).any(-1) & (images >= 0)
    return by_image.repeat_interleave(cells, dim=1)


class Supervision:
    """Computes the loss of a run's supervised rows. One for a Trainer; the model is watched only while it runs."""

    def __init__(self, settings: LookSettings, model: nn.Module, family: Family) -> None:
        self.settings, self.family = settings, family
        self._model = model
        self._kept: KeptCalls | None = None

    def kept(self) -> KeptCalls:
        """What keeps the calls of the supervised layers, and of the connector where it attends."""
        if self._kept is None:
            names = [f"layer_{layer}" for layer in self.settings.layers()]
            names += [CONNECTOR] * (self.family.paths.connector_attention is not None)
            self._kept = KeptCalls(self._model, names, self.family)
        return self._kept

    def result(self, calls: Mapping[str, Call], batch: LookBatch) -> LookResult:
        """Losses and masses of a batch's supervised rows, of the calls of its forward."""
        with torch.autocast(batch.sequences.device.type, enabled=False):
            return self._result(calls, batch)

    def _result(self, calls: Mapping[str, Call], batch: LookBatch) -> LookResult:
        layers, connector = [call for name, call in calls.items() if name != CONNECTOR], None
        if CONNECTOR in calls:
            images, places = batch.images.clamp(min=0).unique(return_inverse=True)
            connector = connector_rows(calls[CONNECTOR], images)
            batch = batch._replace(images=places.where(batch.images >= 0, NO_TOKEN))
        found = [self._of_layer(call, batch, connector) for call in layers]
        losses, masses, sees = (torch.stack(column) for column in zip(*found, strict=True))
        # Exactly 1 where every layer sees the boxes.
        of_seeing = len(layers) / sees.sum(0).clamp(min=1).to(losses)
        return LookResult(losses.mean(0) * of_seeing, (masses.mean(0) * of_seeing).detach())

    def _of_layer(
        self, call: Call, batch: LookBatch, connector: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and masses of the rows, 0 for those of which an end lies where this layer sees nothing; and which see
        some of every end."""
        shares = image_shares(call, batch.sequences, batch.positions, batch.at, batch.tokens, batch.is_token)
        seen = seen_tokens(call, batch)
        if connector is not None:
            shares = over_cells(shares, batch.images, connector)
            seen = seen_cells(seen, batch.images, connector.shape[2])
        losses, masses = mass_losses(shares, batch.weights, batch.ends, self.settings.target)
        if self.settings.loss == "kl":
            losses = kl_losses(shares, batch.weights, seen)
        sees = ((batch.weights > 0) & seen[:, None]).any(-1).all(-1)
        return losses * sees, masses * sees, sees


class LookTotals(NamedTuple):
    """Over all processes since the last log. Each is None without a supervised row.

    loss_nats     mean over supervised rows
    mass          mean over supervised rows of each source, NaN without one
    grad_share    see ``LookTally.add_norms``
    """

    loss_nats: float | None
    mass: list[float]
    grad_share: float | None


class LookTally:
    """Sums of losses, masses and gradient norms since the last log."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.rows = torch.zeros(sources, device=device)
        self.masses = torch.zeros(sources, device=device)
        self.losses = torch.zeros(1, device=device)
        self.norms = torch.zeros(3, device=device)  # of the look loss, of the language loss, how often

    def add(self, result: LookResult, sources: Int[Tensor, "rows"]) -> None:
        self.rows.index_add_(0, sources, torch.ones_like(result.mass).to(self.rows))
        self.masses.index_add_(0, sources, result.mass.to(self.masses))
        self.losses += result.losses.detach().sum().to(self.losses)

    def add_norms(self, look: Tensor, language: Tensor) -> None:
        """L2 norms of the gradients of the weighted look loss and of the language loss of one micro-batch, over the
        trained parameters of this process. Their share is look / (look + language), 0 to 1."""
        self.norms += torch.stack([look, language, torch.ones_like(look)]).to(self.norms)

    def taken(self) -> LookTotals:
        """The totals over all processes, then reset. Every process must call this."""
        for values in (self.rows, self.masses, self.losses, self.norms):
            reduced(values)
        rows, masses = self.rows.tolist(), self.masses.tolist()
        look, language, count = self.norms.tolist()
        totals = LookTotals(
            self.losses.item() / sum(rows) if sum(rows) else None,
            [mass / number if number else math.nan for mass, number in zip(masses, rows, strict=True)],
            look / (look + language) if count and look + language else None,
        )
        for values in (self.rows, self.masses, self.losses, self.norms):
            values.zero_()
        return totals
