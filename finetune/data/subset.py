"""Nested subsets of a source of training data: how a result depends on the number of samples.

All samples stand in one order, drawn from the seed alone, and a fraction is its beginning: what 25 % has, 50 % has too.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from finetune.data.dataset import Selected
from finetune.data.mixture import Mixture, Source
from finetune.samples.conversation import BoxRef, Conversation

Same = Literal["steps", "epochs"]
_ORDER = 2  # what a generator is for; the mixture has 0 and 1


class Subset(NamedTuple):
    """A part of a source.

    name      of the source
    samples   that the source has
    kept      samples of the part: the first so many of the source's order
    """

    name: str
    samples: int
    kept: int

    def words(self, same: Same) -> str:
        """A line for people."""
        how = {
            "steps": f"each stands in for {self.samples / self.kept:.3g}, so that an epoch is as long as with all",
            "epochs": "an epoch is shorter",
        }[same]
        return f"{self.name}: training on {self.kept:,} of {self.samples:,} samples; {how}"


def with_fraction(
    mixed: Mixture, fraction: float, of: Sequence[str] | None, same: Same
) -> tuple[Mixture, tuple[Subset, ...]]:
    """The mixture with a part of some sources, and what was kept of each.

    fraction   of the samples, above 0 and at most 1; with 1 the mixture is unchanged
    of         names of the sources; None: the corrective ones, or the base where there are none
    same       "steps": each sample that is left out has a kept one in its place, so that epochs, shares and steps stay
               as they are and only the number of different samples changes; "epochs": it is left out, so that each
               kept sample is seen as often as it would be with all

    Raises ValueError for a source that does not exist.
    """
    chosen = _chosen(mixed, of)
    sources, subsets = list[Source](), list[Subset]()
    for index, source in enumerate(mixed.sources):
        if source.name not in chosen:
            sources.append(source)
            continue
        count = len(source.conversations)
        kept = max(1, round(fraction * count))
        subsets.append(Subset(source.name, count, kept))
        if kept == count:
            sources.append(source)
            continue
        seed = np.random.SeedSequence([mixed.seed, _ORDER, index])
        order = nested_order([_answers(one) for one in source.conversations], np.random.default_rng(seed))
        places = places_of(order, kept, same)
        sources.append(source._replace(conversations=Selected(source.conversations, places, {})))
    return Mixture(sources, mixed.seed), tuple(subsets)


def nested_order(kinds: Sequence[str], generator: np.random.Generator) -> Int[np.ndarray, "samples"]:
    """Every sample once, at random, so that each beginning has about as much of each kind as the whole.

    The members of a kind of n lie one in each n-th part of the order. Kinds of one member fall anywhere.
    ``["a", "a", "b", "b"]``: one a and one b among the first two.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        members[kind].append(place)
    position = np.empty(len(kinds))
    for places in members.values():
        within = generator.permutation(len(places)) + generator.random(len(places))
        position[places] = within / len(places)
    return np.argsort(position, kind="stable")


def places_of(order: Int[np.ndarray, "samples"], kept: int, same: Same) -> Int[np.ndarray, "places"]:
    """Which sample stands at each place of the source.

    Order [2, 0, 3, 1], 2 kept: [0, 2] for the same epochs; for the same steps [0, 0, 2, 2]: the third of the order, 3,
    has the first in its place, and the fourth, 1, the second.
    """
    if same == "epochs":
        return np.sort(order[:kept])
    places = np.arange(len(order))
    places[order] = order[np.arange(len(order)) % kept]
    return places


def too_small(mixed: Mixture, subsets: Sequence[Subset], samples_a_step: int) -> str | None:
    """Why the parts are too small for one step of training; None where they are not.

    A step reads of each source in proportion to what it gives to an epoch.
    """
    total = sum(part.seen for part in mixed.parts)
    seen = {part.name: part.seen for part in mixed.parts}
    for one in subsets:
        needed = max(1, round(samples_a_step * seen[one.name] / total))
        if one.kept < needed:
            return (
                f"--data_fraction: keeps {one.kept:,} of the {one.samples:,} samples of {one.name}, and one step reads "
                f"{needed:,} of them; expected at least as many: give a larger fraction, or a smaller batch"
            )
    return None


def different_samples(mixed: Mixture) -> dict[str, dict[str, int]]:
    """Source → how many samples it has, and how many different ones of them are trained on."""
    found = {}
    for source in mixed.sources:
        places, samples = _places(source.conversations)
        found[source.name] = {"samples": samples, "trained": len(np.unique(places))}
    return found


def _places(conversations: Sequence[Conversation]) -> tuple[Int[np.ndarray, "places"], int]:
    """Which sample of the file stands at each place, and how many the file has."""
    if not isinstance(conversations, Selected):
        return np.arange(len(conversations)), len(conversations)
    places, samples = _places(conversations.conversations)
    return places[conversations.kept], samples


def _chosen(mixed: Mixture, of: Sequence[str] | None) -> set[str]:
    if of is None:
        corrective = {source.name for source in mixed.sources if source.role == "corrective"}
        return corrective or {source.name for source in mixed.sources if source.role == "base"}
    unknown = [name for name in of if name not in mixed.names]
    if unknown:
        raise ValueError(
            f"--data_fraction_of: found {unknown[0]!r}, which is no source; expected some of {', '.join(mixed.names)}"
        )
    return set(of)


def _answers(conversation: Conversation) -> str:
    """What a sample teaches to say: its kind. Samples with the same answers are of one kind."""
    turns = [turn for turn in conversation.turns if turn.role == "assistant" and turn.trained]
    parts = (part for turn in turns for part in (*turn.parts, "\n"))
    return "".join(part.written if isinstance(part, BoxRef) else str(part) for part in parts)
