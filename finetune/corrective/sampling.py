"""Chooses the held-out pictures, and the questions that become samples and probes."""

import hashlib
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from tqdm import tqdm

from finetune.corrective.scenes import Question, Scene


class Asked(NamedTuple):
    """A question about a picture."""

    scene: Scene
    question: Question


Topics = frozenset[tuple[str, str]]
"""The (group, topic) pairs that a picture has probes for."""
Ask = Callable[[int], Sequence[Question]]
"""Index of a picture → every question about it, the same ones each time."""


LEAST_PROBES = 20
"""Groups with fewer probes get no verdict."""


def topics_of(questions: Iterable[Question]) -> Topics:
    return frozenset((question.group, question.topic) for question in questions if question.probed)


def draw(digest: str, seed: int) -> float:
    """A picture's number from 0 to 1, by its content and the seed alone: held out below the share."""
    return int(hashlib.sha256(f"hold out/{seed}/{digest}".encode()).hexdigest()[:13], 16) / 16**13


def hold_out(
    scenes: Sequence[Scene], topics: Mapping[int, Topics], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Pictures for training, and held-out pictures for probes: indices into ``scenes``, in order.

    A picture's side is its ``draw``, whatever is asked of it and of which others: two calls over the same pictures,
    with other templates, do not train on what the other one probes. Only where a topic would go without a probe, or a
    group without its verdict, are the next in the same order held out too (``beyond_draw``).
    """
    asked: dict[str, Topics] = defaultdict(frozenset)
    for place, found in topics.items():
        asked[scenes[place].digest] |= found
    order = sorted(asked, key=lambda digest: draw(digest, seed))
    held = {digest for digest in order if draw(digest, seed) < share}
    for wanted, least in _needs(asked.values(), share):
        among = [digest for digest in order if asked[digest] & wanted]
        lacking = least - len(held.intersection(among))
        held.update([digest for digest in among if digest not in held][: max(lacking, 0)])
    sides: tuple[list[int], list[int]] = ([], [])
    for place in sorted(topics):
        sides[scenes[place].digest in held].append(place)
    return sides


def _needs(asked: Collection[Topics], share: float) -> Iterator[tuple[Topics, int]]:
    """Topics, and how many pictures of any of them have to be held out: one of a topic, and what a verdict needs of a
    group; none where their share would not be as many."""
    counts = Counter(topic for topics in asked for topic in topics)
    for topic in sorted(counts):
        yield frozenset([topic]), min(1, int(counts[topic] * Fraction(str(share))))
    for group in sorted({group for group, _ in counts}):
        wanted = frozenset(topic for topic in counts if topic[0] == group)
        pictures = sum(bool(topics & wanted) for topics in asked)
        yield wanted, LEAST_PROBES if pictures * Fraction(str(share)) >= LEAST_PROBES else 0


def beyond_draw(scenes: Sequence[Scene], held_out: Sequence[int], share: float, seed: int) -> int:
    """The number of held-out pictures that another call over the same pictures may train on."""
    return len({scenes[place].digest for place in held_out if draw(scenes[place].digest, seed) >= share})


def for_training(
    scenes: Sequence[Scene], places: Sequence[int], ask: Ask, *, per_picture: int, most: int | None, seed: int
) -> list[Asked]:
    """At most ``per_picture`` questions of each picture, at most ``most`` in total, in random order.

    The rarest kinds of question come first. If answers contrast (yes and no, left and right), the surplus of the more
    frequent one is dropped, so that the form of a question does not reveal its answer.
    """
    asked = itertools.islice(_evenly(_shuffled(places, seed), ask, _is_trained, per_picture, seed), most)
    chosen = _balanced([Asked(scenes[place], question) for place, question in asked])
    random.Random(f"order/{seed}").shuffle(chosen)
    return chosen


def _is_trained(question: Question) -> bool:
    return question.trained


def _is_probe_of(group: str, question: Question) -> bool:
    return question.probed and question.group == group


def for_probes(
    scenes: Sequence[Scene],
    topics: Mapping[int, Topics],
    places: Sequence[int],
    ask: Ask,
    *,
    per_group: int,
    seed: int,
) -> list[Asked]:
    """At most ``per_group`` questions of each group, each picture at most once per group, group by group.

    Probes of one picture are correlated, so they would count for less than their number. With more pictures than
    needed, those that would make one answer more frequent than its opposite come last. If all are needed, those with
    the fewest kinds of question come first, and the others balance them.
    """
    chosen: list[Asked] = []
    for group in sorted({group for place in places for group, _ in topics[place]}):
        pool = _shuffled([place for place in places if any(group == one for one, _ in topics[place])], seed)
        wanted = partial(_is_probe_of, group)
        spare = len(pool) > per_group
        if not spare:
            pool = sorted(pool, key=partial(_freedom, ask, wanted))
        taken: set[str] = set()
        for place, question in _evenly(pool, ask, wanted, 1, seed, patient=spare):
            if scenes[place].digest not in taken:
                taken.add(scenes[place].digest)
                chosen.append(Asked(scenes[place], question))
            if len(taken) == per_group:
                break
    return chosen


def _freedom(ask: Ask, wanted: Callable[[Question], bool], place: int) -> int:
    """Number of kinds of question for a picture."""
    return len({question.kind for question in ask(place) if wanted(question)})


def _shuffled(places: Sequence[int], seed: int) -> list[int]:
    shuffled = list(places)
    random.Random(f"pictures/{seed}").shuffle(shuffled)
    return shuffled


def _evenly(
    places: Sequence[int],
    ask: Ask,
    wanted: Callable[[Question], bool],
    most: int,
    seed: int,
    *,
    patient: bool = False,
) -> Iterator[tuple[int, Question]]:
    """At most ``most`` questions of each picture, in this order, of the kinds chosen least so far.

    An answer chosen less often than its opposite comes first. The least chosen kind is determined from coarse to fine:
    by topic, then also by form, answer and language.

    patient   a picture whose answers are all more frequent than their opposites is deferred until after the others
    """
    waiting: list[int] = []
    counts: Counter[tuple[str, ...]] = Counter()

    def rank(question: Question) -> list[int]:
        contrast = _contrast(question)
        ahead = counts[(*contrast, question.label)] - counts[(*contrast, question.against or question.label)]
        return [ahead, *(counts[key] for key in _keys(question))]

    turns = itertools.chain(zip(places, itertools.repeat(patient)), zip(waiting, itertools.repeat(False)))
    for place, may_wait in tqdm(turns, desc="choosing", unit="picture", delay=2, total=len(places)):
        left = [question for question in ask(place) if wanted(question)]
        if may_wait and left and min(map(rank, left))[0] > 0:
            waiting.append(place)
            continue
        random.Random(f"questions/{seed}/{place}").shuffle(left)
        for _ in range(min(most, len(left))):
            best = min(left, key=rank)
            counts.update([*_keys(best), (*_contrast(best), best.label)])
            left.remove(best)
            yield place, best


def _keys(question: Question) -> tuple[tuple[str, ...], ...]:
    group, topic, form, label, language = question.kind
    return (
        ("topic", group, topic),
        ("form", group, topic, form),
        ("answer", group, topic, form, label),
        ("language", group, topic, form, label, language),
    )


def _balanced(asked: Sequence[Asked]) -> list[Asked]:
    """Drops the surplus of an answer over its opposite in the same language; keeps the order."""
    counts = Counter(_answer_key(question, question.label) for _, question in asked if question.against)
    used: Counter[tuple[str, ...]] = Counter()
    kept: list[Asked] = []
    for one in asked:
        question = one.question
        if question.against is not None:
            own = _answer_key(question, question.label)
            used[own] += 1
            if used[own] > counts[_answer_key(question, question.against)]:
                continue
        kept.append(one)
    return kept


def _answer_key(question: Question, label: str) -> tuple[str, ...]:
    return (*_contrast(question), question.language, label)


def _contrast(question: Question) -> tuple[str, ...]:
    """The set within which answers contrast: yes and no for each relation, left and right over both relations."""
    topic = question.topic if question.label in ("yes", "no") else ""
    return ("contrast", question.group, topic, question.form)


def count(asked: Iterable[Asked], key: Callable[[Asked], str]) -> dict[str, int]:
    """The count of each key, sorted by key."""
    return dict(sorted(Counter(map(key, asked)).items()))
