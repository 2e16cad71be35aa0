"""Mixes several sources of training data in one deterministic order, with a share per source.

**Shares are of all samples of an epoch.** ``base.json`` with ``spheres.json:0.3`` and ``general.json:0.1`` trains on
30 % spheres and 10 % general samples; the base has what is left. A source by count, ``FILE`` or ``FILE:x2``, gives each
of its samples once, or twice, an epoch, however many they are.

**An epoch** is one pass over the base, and the shares are filled up around it. It is shorter where everything that is
mixed in has a share and the corrective data is small: it ends when every corrective sample was seen, and the base goes
on in the next epoch where it stopped. So nothing is repeated dozens of times only because the base is large. Replayed
data never decides how long an epoch is.

Worked example: a base of 1000 samples and ``spheres.json:0.3`` of 60. One pass over the base would be 1000 / 0.7 ≈ 1429
samples, 429 of them spheres, each seen 7 times. All spheres were seen after 60 / 0.3 = 200 samples: 60 spheres and 140
of the base. The shorter one is taken. With ``spheres.json:0.3`` of 900, one pass over the base comes first: 1429
samples, 429 of the 900 spheres, and the next 429 in the next epoch.

**Of a source that is there in part** (``Source.of_all``) each sample is seen as often an epoch as with all of them. The
part gives so much less than the share of its source, and the others what they give with all of it: a quarter of the 900
spheres is 107 of 1107 samples. Around a part of a source without a share, the others' shares are filled up as ever.

**Within a source** samples come without replacement: each pass is another permutation, and passes go on across epochs.
Every place of every pass is computed from the seed and the epoch alone, so a run that resumes at epoch 3 needs no
history, and processes and workers agree without talking.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from finetune.samples.conversation import Conversation, OnDemand

SourceRole = Literal["base", "corrective", "replay"]

MOST_TIMES = 4
"""Text seen up to four times teaches nearly as much as new text, and soon after nothing more (Muennighoff et al.,
"Scaling data-constrained language models", arXiv 2305.16264); a source above is pointed out."""
BLOCK = 65_536
"""Samples drawn at a time in passes over a small source: one generator per pass would take seconds."""

_SUFFIX = re.compile(
    r"(?:(?P<share>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)|x(?P<repeat>[+-]?\d+\.?\d*))", re.I
)
_SLOTS, _PASSES = 0, 1  # what a generator is for


class SourceSpec(NamedTuple):
    """A source as the flags name it.

    share    of the samples of an epoch, between 0 and 1; None: by count
    repeat   times that each sample is seen an epoch; 1 where there is a share
    """

    path: str
    share: float | None = None
    repeat: int = 1


def parse_source(text: str) -> SourceSpec:
    """``"a.json:0.3"``, ``"a.json:x2"`` or ``"a.json"`` → path, share and times.

    What stands behind the last colon counts only where it is a number, or x and a number: ``C:\\a.json`` and
    ``a:b.json`` are paths. A file whose own name ends so is written with one more: ``data:5:x1``.

    Raises ValueError for a share that is not between 0 and 1, and for times that are no whole number above 0.
    """
    path, colon, suffix = text.rpartition(":")
    match = _SUFFIX.fullmatch(suffix) if colon else None
    if match is None:
        return SourceSpec(text)
    if not path:
        raise ValueError(f"{text!r}: found no file before the colon, expected FILE:0.3 or FILE:x2")
    if match["share"] is not None:
        share = float(match["share"])
        if not 0 < share < 1:
            raise ValueError(
                f"{text!r}: found the share {match['share']}, expected one between 0 and 1, of the samples of an "
                f"epoch; to train each sample twice per epoch write {path}:x2"
            )
        return SourceSpec(path, share)
    if not match["repeat"].isdigit() or int(match["repeat"]) < 1:
        raise ValueError(f"{text!r}: found x{match['repeat']}, expected x and a whole number, at least x1")
    return SourceSpec(path, None, int(match["repeat"]))


def spec_faults(base: str | None, corrective: Sequence[str], replay: Sequence[str]) -> Iterator[str]:
    """What is wrong with the sources of a run, as the flags name them, before any is read."""
    specs: list[tuple[str, SourceSpec]] = [] if base is None else [("data_path", SourceSpec(base))]
    for flag, texts in (("corrective_data", corrective), ("replay_data", replay)):
        for text in texts:
            try:
                specs.append((flag, parse_source(text)))
            except ValueError as error:
                yield f"--{flag}: {error}"
    for flag, spec in specs:
        if flag != "data_path" and not os.path.exists(spec.path):
            yield (
                f"--{flag}: no such file or folder: {spec.path!r} (working directory {Path.cwd()}); FILE:0.3 sets a "
                "share, FILE:x2 trains each sample twice per epoch"
            )
    for (flag, one), (other_flag, other) in itertools.combinations(specs, 2):
        if Path(one.path).resolve() == Path(other.path).resolve():
            again = f"--{other_flag}" if flag != other_flag else "again"
            yield (
                f"--{flag}: {one.path!r} is given {again} as {other.path!r}; name each source once (FILE:x2 trains "
                "each of its samples twice per epoch)"
            )
    if replay and base is None and not corrective:
        yield "--replay_data: replay needs other training data; add --data_path or --corrective_data"
    yield from _share_faults([spec.share for _, spec in specs])


def _share_faults(shares: Sequence[float | None]) -> Iterator[str]:
    """Shares that leave nothing to who has the rest, or that leave a rest to nobody."""
    given = [share for share in shares if share is not None]
    total = sum(map(_exact, given), Fraction())
    written = " + ".join(f"{share:g}" for share in given)
    if not given or (len(given) == len(shares) and abs(total - 1) <= Fraction(1, 100)):
        return
    if len(given) == len(shares):
        yield (
            f"the shares {written} add up to {float(total):g}, and no source has the rest; expected 1, or a source "
            "without a share (--data_path, or a FILE alone)"
        )
    elif total >= 1:
        yield (
            f"the shares {written} add up to {float(total):g}, which leaves nothing to the other sources; expected "
            "less than 1"
        )


class Source(NamedTuple):
    """A source that was read. ``share`` and ``repeat`` are as in ``SourceSpec``; the base has neither.

    of_all   which part of the source ``conversations`` are, where each is seen as often an epoch as with all
    """

    name: str
    conversations: Sequence[Conversation]
    role: SourceRole
    share: float | None = None
    repeat: int = 1
    of_all: Fraction = Fraction(1)


def unique_names(paths: Sequence[str]) -> list[str]:
    """Short names of files: the stem, with the folder where stems are alike, with a number where those are too.

    ``["old/data.json", "new/data.json", "spheres.json"]`` → ``["old-data", "new-data", "spheres"]``.
    """
    stems = Counter(Path(path).stem for path in paths)
    names = [
        f"{Path(path).resolve().parent.name}-{Path(path).stem}"
        if stems[Path(path).stem] > 1
        else Path(path).stem
        for path in paths
    ]
    taken: set[str] = set()
    for index, name in enumerate(names):
        numbers = itertools.count(2)
        while names[index] in taken:
            names[index] = f"{name}-{next(numbers)}"
        taken.add(names[index])
    return names


class Part(NamedTuple):
    """What one source gives to an epoch.

    samples   that it has
    seen      samples of an epoch that are from it, repetitions counted
    """

    name: str
    role: SourceRole
    samples: int
    seen: int

    @property
    def times(self) -> float:
        """How often each of its samples is seen an epoch, on average."""
        return self.seen / self.samples


class Mixture:
    """All sources of a run, and the order in which their samples are trained.

    names           of the sources
    conversations   of all sources, one source after another
    parts           what each source gives to an epoch
    """

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        faults = [*_source_faults(sources)]
        if faults:
            raise ValueError("\n".join(faults))
        self.sources, self.seed = tuple(sources), seed
        self.names = tuple(source.name for source in sources)
        alone = len(sources) == 1
        self.conversations: Sequence[Conversation] = (
            sources[0].conversations if alone else Joined([source.conversations for source in sources])
        )
        self.parts = tuple(
            Part(source.name, source.role, len(source.conversations), seen)
            for source, seen in zip(sources, _seen(sources), strict=True)
        )

    @property
    def source_of(self) -> Int[np.ndarray, "samples"]:
        """Each conversation's place in ``names``."""
        return np.repeat(np.arange(len(self.parts), dtype=np.int32), [part.samples for part in self.parts])

    def order(self, epoch: int) -> Int[np.ndarray, "seen"]:
        """The samples of an epoch, counted from 0, as places in ``conversations``."""
        firsts = np.cumsum([0, *(part.samples for part in self.parts)])
        taken = [self._taken(index, epoch) + firsts[index] for index in range(len(self.parts))]
        if len(taken) == 1:
            return taken[0]
        slots = np.repeat(np.arange(len(taken), dtype=np.int32), [len(one) for one in taken])
        self._generator(_SLOTS, epoch).shuffle(slots)
        order = np.empty(len(slots), np.int64)
        for index, one in enumerate(taken):
            order[slots == index] = one
        return order

    def _taken(self, index: int, epoch: int) -> Int[np.ndarray, "seen"]:
        """The samples of one source in an epoch: the next ones in its endless sequence of passes."""
        samples, seen = self.parts[index].samples, self.parts[index].seen
        passes = max(1, BLOCK // samples)  # of a block
        start, block = epoch * seen, passes * samples
        blocks = range(start // block, (start + seen - 1) // block + 1)
        drawn = np.concatenate([self._block(index, number, passes, samples) for number in blocks])
        return drawn[start - blocks[0] * block :][:seen]

    def _block(self, index: int, number: int, passes: int, samples: int) -> Int[np.ndarray, "block"]:
        generator = self._generator(_PASSES, index, number)
        if passes == 1:
            return generator.permutation(samples)
        return generator.permuted(np.tile(np.arange(samples), (passes, 1)), axis=1).reshape(-1)

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *purpose]))

    def table_text(self) -> str:
        """What an epoch is made of, as a table, and a line for each source that is seen very often."""
        total = sum(part.seen for part in self.parts)
        head = ("source", "role", "samples", "seen an epoch", "times each", "share")
        rows = [
            (
                part.name,
                part.role,
                f"{part.samples:,}",
                f"{part.seen:,}",
                f"{part.times:.2f}",
                f"{part.seen / total:.1%}",
            )
            for part in self.parts
        ]
        lines = _table([head, *rows, ("", "", f"{len(self.conversations):,}", f"{total:,}", "", "")])
        lines += [
            f"{part.name}: each of its {part.samples:,} samples is seen {part.times:.0f} times per epoch; more than "
            f"{MOST_TIMES} times adds little and risks memorisation: use a smaller share or more samples"
            for part in self.parts
            if part.times > MOST_TIMES
        ]
        return "\n".join(lines)


class Joined(OnDemand):
    """Several sequences of conversations as one."""

    def __init__(self, sequences: Sequence[Sequence[Conversation]]) -> None:
        self.sequences = tuple(sequences)
        self.ends = np.cumsum([len(one) for one in sequences])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def at(self, place: int) -> Conversation:
        which = int(np.searchsorted(self.ends, place, side="right"))
        return self.sequences[which][place - int(self.ends[which]) + len(self.sequences[which])]


def _source_faults(sources: Sequence[Source]) -> Iterator[str]:
    if not sources:
        yield "found no source, expected at least one to train on"
    for name, count in Counter(source.name for source in sources).items():
        if count > 1:
            yield f"source {name!r}: the name is given {count} times, expected each once"
    for source in sources:
        if not len(source.conversations):
            yield f"source {source.name!r}: found no sample; leave it out"
        if source.role == "base" and (source.share is not None or source.repeat != 1):
            yield f"source {source.name!r}: found a share of the base, which has what the others leave"
    if sum(source.role == "base" for source in sources) > 1:
        yield "found several bases, expected one at most"
    if sources and all(source.role == "replay" for source in sources):
        yield "found only replay sources, expected a base or a corrective source as well"
    yield from _share_faults([source.share for source in sources])


def _exact(share: float) -> Fraction:
    """The decimal that was written: 0.3 is 3/10, and 60 / 0.3 is 200."""
    return Fraction(str(share))


def _seen(sources: Sequence[Source]) -> list[int]:
    """Samples of an epoch from each source, by the rule at the top of this module."""
    # with all of every source; an estimate where samples of a part were left out since
    counts = [len(source.conversations) * source.repeat / source.of_all for source in sources]
    shares = [Fraction() if source.share is None else _exact(source.share) for source in sources]
    total = sum(shares, Fraction())
    rest = sum((count for count, share in zip(counts, shares, strict=True) if not share), Fraction())
    every_corrective = [
        count / share
        for source, count, share in zip(sources, counts, shares, strict=True)
        if share and source.role == "corrective"
    ]
    if not rest:  # shares that make up the whole, but for what rounding left
        length = max(every_corrective) * total
        shares = [share / total for share in shares]
    else:
        length = rest / (1 - total)
        by_share = all(share or source.role == "base" for source, share in zip(sources, shares, strict=True))
        if by_share and every_corrective and max(every_corrective) < length:
            length = max(every_corrective)
            counts = [length * (1 - total)] * len(sources)  # of the base, the only one without share
    given = [count * source.of_all for source, count in zip(sources, counts, strict=True)]
    by_count = sum(count for count, share in zip(given, shares, strict=True) if not share)
    around = by_count / (1 - total) if rest else length  # the epoch that whole sources fill up to their share
    for place, (source, share) in enumerate(zip(sources, shares, strict=True)):
        if share:
            given[place] = share * (around if source.of_all == 1 else length * source.of_all)
    return [max(1, round(count)) for count in given]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal width; the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
