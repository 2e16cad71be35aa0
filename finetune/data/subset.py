"""Nested subsets of a source of training data: how a result depends on the number of samples.

All samples stand in one order, drawn from the seed alone, and a fraction is its beginning: what 25 % has, 50 % has too.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
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
    seen      samples of an epoch that are from it, with all and with the part, repetitions counted
    epoch     samples of an epoch from all sources, with all and with the part
    """

    name: str
    samples: int
    kept: int
    seen: tuple[int, int]
    epoch: tuple[int, int]

    def words(self, same: Same) -> str:
        """A line for people."""
        how = {
            "steps": f"each stands in for {self.samples / self.kept:.3g}, so that an epoch is as long as with all",
            "epochs": f"each is seen {self._how_often()}, and an epoch {self._how_long()}",
        }[same]
        return f"{self.name}: training on {self.kept:,} of {self.samples:,} samples; {how}"

    def _how_often(self) -> str:
        """Both numbers where they differ: an epoch takes whole samples."""
        before, now = (
            f"{seen / count:.3g}" for seen, count in zip(self.seen, (self.samples, self.kept), strict=True)
        )
        return f"{now}× an epoch, {'as with all' if now == before else f'with all {before}×'}"

    def _how_long(self) -> str:
        before, now = self.epoch
        if now == before:
            return f"is as long as with all, {now:,} samples"
        return f"is shorter, {now:,} samples instead of {before:,}"


def with_fraction(
    mixed: Mixture, fraction: float, of: Sequence[str] | None, same: Same
) -> tuple[Mixture, tuple[Subset, ...]]:
    """The mixture with a part of some sources, and what was kept of each.

    fraction   of the samples, above 0 and at most 1; with 1 the mixture is unchanged
    of         names of the sources; None: the corrective ones, or the base where there are none
    same       "steps": each sample that is left out has a kept one in its place, so that epochs, shares and steps stay
               as they are and only the number of different samples changes; "epochs": it is left out, and each kept
               sample is seen as often an epoch as with all (``Source.of_all``)

    Raises ValueError for a source that does not exist.
    """
    chosen = chosen_sources(mixed, of)
    sources, counts = list[Source](), dict[int, tuple[int, int]]()
    for index, source in enumerate(mixed.sources):
        if source.name not in chosen:
            sources.append(source)
            continue
        count = len(source.conversations)
        kept = max(1, round(fraction * count))
        counts[index] = count, kept
        if kept == count:
            sources.append(source)
            continue
        seed = np.random.SeedSequence([mixed.seed, _ORDER, index])
        order = nested_order([_answers(one) for one in source.conversations], np.random.default_rng(seed))
        places = places_of(order, kept, same)
        of_all = Fraction(kept, count) if same == "epochs" else Fraction(1)
        selected = Selected(source.conversations, places, {})
        sources.append(source._replace(conversations=selected, of_all=of_all))
    part = Mixture(sources, mixed.seed)
    epoch = sum(one.seen for one in mixed.parts), sum(one.seen for one in part.parts)
    return part, tuple(
        Subset(mixed.names[index], *both, (mixed.parts[index].seen, part.parts[index].seen), epoch)
        for index, both in counts.items()
    )


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


def different_samples(
    mixed: Mixture, trained: Iterable[Int[np.ndarray, "samples"]]
) -> dict[str, dict[str, int]]:
    """Source → how many samples it has, and how many different ones of them were trained on.

    trained   the samples of the steps that were made, as places in the mixture's conversations (``Schedule.trained``):
              a run of few steps does not reach all that a fraction keeps
    """
    reached = np.zeros(len(mixed.conversations), bool)
    for some in trained:
        reached[some] = True
    found, first = dict[str, dict[str, int]](), 0
    for source in mixed.sources:
        places, samples = _places(source.conversations)
        seen = places[reached[first : first + len(places)]]
        found[source.name] = {"samples": samples, "trained": len(np.unique(seen))}
        first += len(places)
    return found


def _places(conversations: Sequence[Conversation]) -> tuple[Int[np.ndarray, "places"], int]:
    """Which sample of the file stands at each place, and how many the file has."""
    if not isinstance(conversations, Selected):
        return np.arange(len(conversations)), len(conversations)
    places, samples = _places(conversations.conversations)
    return places[conversations.kept], samples


def chosen_sources(mixed: Mixture, of: Sequence[str] | None) -> list[str]:
    """The sources that a fraction is of, as ``with_fraction`` takes them."""
    if of is None:
        corrective = [source.name for source in mixed.sources if source.role == "corrective"]
        return corrective or [source.name for source in mixed.sources if source.role == "base"]
    unknown = [name for name in of if name not in mixed.names]
    if unknown:
        raise ValueError(
            f"--data_fraction_of: found {unknown[0]!r}, which is no source; expected some of {', '.join(mixed.names)}"
        )
    return [name for name in mixed.names if name in of]


def _answers(conversation: Conversation) -> str:
    """What a sample teaches to say: its kind. Samples with the same answers are of one kind."""
    turns = [turn for turn in conversation.turns if turn.role == "assistant" and turn.trained]
    parts = (part for turn in turns for part in (*turn.parts, "\n"))
    # The label too: where phrases are placeholders, all are written alike.
    return "".join(
        f"{part.written} {part.label}" if isinstance(part, BoxRef) else str(part) for part in parts
    )
