"""Chooses the held-out pictures, and the questions that become samples and probes."""

import hashlib
import itertools
import math
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
Subject = tuple[str, ...]
"""Questions with the same one are worded alike: of one group, form and language, about the same categories."""


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
    frequent one is dropped, so that the form of a question does not reveal its answer: first what is surplus among
    questions about the same things, so that their words reveal it as little as the pictures allow.
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
        chosen += _probes_of_group(scenes, pool, ask, wanted, per_group=per_group, spare=spare, seed=seed)
    return chosen


def _probes_of_group(
    scenes: Sequence[Scene],
    pool: Sequence[int],
    ask: Ask,
    wanted: Callable[[Question], bool],
    *,
    per_group: int,
    spare: bool,
    seed: int,
) -> list[Asked]:
    """One question of each picture. What is asked only in balance is asked in couples of pictures with different
    answers; where the choice ends between the two, it is made again without the question that is left alone."""
    couples = _couples(scenes, pool, ask, wanted)
    pool = _side_by_side(pool, couples)
    alone: set[tuple[int, Subject]] = set()

    def askable(place: int) -> list[Question]:
        return [
            question
            for question in ask(place)
            if wanted(question) and (not question.only_balanced or _is_coupled(place, question))
        ]

    def _is_coupled(place: int, question: Question) -> bool:
        return (place, subject_of(question)) in couples and (place, subject_of(question)) not in alone

    while True:
        taken: dict[str, tuple[int, Question]] = {}
        for place, question in _evenly(pool, askable, wanted, 1, seed, patient=spare):
            taken.setdefault(scenes[place].digest, (place, question))
            if len(taken) == per_group:
                break
        found = [*taken.values()]
        surplus = _surplus([question for _, question in found])
        if not surplus:
            return [Asked(scenes[place], question) for place, question in found]
        alone |= {(found[index][0], subject_of(found[index][1])) for index in surplus}


def _couples(
    scenes: Sequence[Scene], pool: Sequence[int], ask: Ask, wanted: Callable[[Question], bool]
) -> dict[tuple[int, Subject], int]:
    """(Picture, what is asked only in balance) → the picture where the same question has another answer; as many
    couples as there can be, of different pictures."""
    answers: dict[Subject, list[tuple[str, int]]] = defaultdict(list)
    met: set[str] = set()
    for place in pool:
        if scenes[place].digest in met:
            continue
        met.add(scenes[place].digest)
        for question in ask(place):
            if wanted(question) and question.only_balanced:
                answers[subject_of(question)].append((question.label, place))
    found: dict[tuple[int, Subject], int] = {}
    for subject, those in answers.items():
        sizes = Counter(label for label, _ in those)
        those.sort(key=lambda one: (-sizes[one[0]], one[0]))  # the places of an answer stay in order
        apart = max(*sizes.values(), (len(those) + 1) // 2)  # so far behind stands no answer like the first
        for (_, one), (_, other) in zip(those, those[apart:], strict=False):
            found |= {(one, subject): other, (other, subject): one}
    return found


def _side_by_side(pool: Sequence[int], couples: Mapping[tuple[int, Subject], int]) -> list[int]:
    """The pictures in this order, but each with those that it is coupled to right behind it."""
    partners: dict[int, list[int]] = defaultdict(list)
    for (place, _), other in couples.items():
        partners[place].append(other)
    return [*dict.fromkeys(one for place in pool for one in (place, *partners[place]))]


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

    An answer chosen less often than its opposite comes first, and one chosen more often about the same things last; of
    a template of the user's, last among its own questions alone, of which all may have one answer. The least chosen
    kind is determined from coarse to fine: by topic, then also by form, answer and language.

    patient   a picture whose answers are all more frequent than their opposites is deferred until after the others
    """
    waiting: list[int] = []
    counts: Counter[tuple[str, ...]] = Counter()

    def rank(question: Question) -> list[int]:
        contrast, subject = _contrast(question), subject_of(question)
        ahead_here = 2 * counts[(*subject, question.label)] - counts[subject]
        topic, form, *finer = (counts[key] for key in _keys(question))
        if question.only_balanced:
            return [ahead_here, 0, topic, form, 0, *finer]
        ahead = counts[(*contrast, question.label)] - counts[(*contrast, question.against or question.label)]
        # Being behind there is no reason: one text would come again and again, and other forms never.
        more = max(ahead_here, 0) if question.against else 0
        return [ahead, more, topic, form, max(ahead_here, 0) if question.own else 0, *finer]

    def is_surplus(question: Question) -> bool:
        ahead, more, _, _, of_own, *_ = rank(question)
        return [ahead, more] > [0, 0] or of_own > 0

    turns = itertools.chain(zip(places, itertools.repeat(patient)), zip(waiting, itertools.repeat(False)))
    for place, may_wait in tqdm(turns, desc="choosing", unit="picture", delay=2, total=len(places)):
        left = [question for question in ask(place) if wanted(question)]
        if may_wait and left and all(map(is_surplus, left)):
            waiting.append(place)
            continue
        random.Random(f"questions/{seed}/{place}").shuffle(left)
        for _ in range(min(most, len(left))):
            best = min(left, key=rank)
            subject = subject_of(best)
            counts.update([*_keys(best), (*_contrast(best), best.label), subject, (*subject, best.label)])
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
    """Drops the surplus of an answer over its opposite in the same language; keeps the order.

    Of questions that are asked only in balance, all that is surplus about the same things; of others, that is what goes
    first.
    """
    dropped = _surplus([question for _, question in asked])
    asked = [one for index, one in enumerate(asked) if index not in dropped]
    counts = Counter(_answer_key(question, question.label) for _, question in asked if question.against)
    one_way = _surplus([question for _, question in asked], of_all=True)
    used: Counter[tuple[str, ...]] = Counter()
    kept: list[int] = []
    for index in sorted(range(len(asked)), key=lambda index: index in one_way):
        question = asked[index].question
        if question.against is not None:
            own = _answer_key(question, question.label)
            used[own] += 1
            if used[own] > counts[_answer_key(question, question.against)]:
                continue
        kept.append(index)
    return [asked[index] for index in sorted(kept)]


def _surplus(questions: Sequence[Question], *, of_all: bool = False) -> set[int]:
    """Places of those questions about the same things, worded alike, whose answer is given more often than all others
    together: as many as it is ahead. Only of what is asked in balance alone, or of all that contrasts (``of_all``)."""
    counted = [
        (index, subject_of(question), question.label)
        for index, question in enumerate(questions)
        if question.only_balanced or (of_all and question.against is not None)
    ]
    totals = Counter(subject for _, subject, _ in counted)
    answers = Counter((subject, label) for _, subject, label in counted)
    used: Counter[tuple[Subject, str]] = Counter()
    found: set[int] = set()
    for index, subject, label in counted:
        used[subject, label] += 1
        if used[subject, label] > totals[subject] - answers[subject, label]:
            found.add(index)
    return found


class Guessed(NamedTuple):
    """Answers that are guessed from the words of a question: the one that most others with the same words have.

    right    guesses that are right
    of       guesses; where two answers are equally frequent, there is none
    chance   how many of them chance would get right
    example  whose words tell most: of the question with the most frequent answer to them
    times    how many questions with its words have its answer
    among    questions with its words
    """

    right: int
    of: int
    chance: float
    example: Question
    times: int
    among: int


def guessed_from_words(asked: Sequence[Asked], trained: Sequence[Asked] | None = None) -> Guessed | None:
    """What the words of these questions tell of their answers, of those that contrast, are asked in balance or of a
    template of the user's; None where it is no more than chance gives.

    Each question is guessed by the others with the same words, without itself: that the one question about a frog and
    a kite is answered yes says nothing about the next. Words that occur less than ``LEAST_ALIKE`` times are left out;
    so are those that tell nothing by themselves, where all together tell no more than chance.

    Cat and bench 30 times left and 10 times right: 30 of 40 guesses are right, and chance gives 20.

    trained   guess by these instead
    """
    answers = _answers(asked)
    given = answers if trained is None else _answers(trained)
    guesses = {
        subject: _guesses_among(own) if trained is None else _guesses_by(given[subject], own)
        for subject, own in answers.items()
        if subject in given and given[subject].total() >= LEAST_ALIKE
    }
    least = LEAST_DEVIATIONS_AMONG_THEMSELVES if trained is None else LEAST_DEVIATIONS
    total = _total(guesses.values())
    if total.beyond < least * math.sqrt(total.variance) or total.right <= total.chance:
        guesses = {one: of for one, of in guesses.items() if of.luck * len(guesses) < MOST_LUCK}
        total = _total(guesses.values())
    if total.right <= total.chance:
        return None
    subject = max(guesses, key=lambda one: (2 * max(given[one].values()) - given[one].total(), one))
    label, times = given[subject].most_common(1)[0]
    alike = [one for _, one in (asked if trained is None else trained) if subject_of(one) == subject]
    example = next(one for one in alike if one.label == label)
    return Guessed(total.right, total.of, total.chance, example, times, len(alike))


class _Guesses(NamedTuple):
    """Of questions with the same words.

    right, of, chance   as in ``Guessed``
    beyond     how much more the words tell than chance, in questions
    variance   of that, if answers were drawn evenly
    luck       chance of so much, at most (Hoeffding 1963, Journal of the American Statistical Association 58:13)
    """

    right: int
    of: int
    chance: float
    beyond: float
    variance: float
    luck: float


def _total(guesses: Collection[_Guesses]) -> _Guesses:
    """Of all words; the luck is that of none."""
    none = _Guesses(0, 0, 0.0, 0.0, 0.0, 1.0)
    return none._replace(**{name: sum(getattr(one, name) for one in guesses) for name in none._fields[:-1]})


def _guesses_among(answers: Counter[str]) -> _Guesses:
    """Each guessed by the others.

    Such guesses hang together: of 5 to 5, every one is wrong. The share of the others that have the same answer does
    not: two agree whatever other two do, so its mean and variance are known.
    """
    count, lucky = answers.total(), 1 / max(2, len(answers))
    guesses = {label: _most_frequent(answers - Counter([label])) for label in answers}
    of = sum(times for label, times in answers.items() if guesses[label] is not None)
    agreeing = sum(times * (times - 1) for times in answers.values()) / (count - 1)
    return _Guesses(
        sum(times for label, times in answers.items() if guesses[label] == label),
        of,
        of * lucky,
        agreeing - count * lucky,
        2 * count / (count - 1) * lucky * (1 - lucky),
        _luck(max(answers.values()), count, lucky) / lucky,  # whichever answer it is
    )


def _guesses_by(known: Counter[str], answers: Counter[str]) -> _Guesses:
    """Each guessed by the most frequent of the known answers."""
    guess, lucky = _most_frequent(known), 1 / max(2, len(known | answers))
    of = 0 if guess is None else answers.total()
    right = 0 if guess is None else answers[guess]
    beyond = right - of * lucky
    return _Guesses(right, of, of * lucky, beyond, of * lucky * (1 - lucky), _luck(right, of, lucky))


def _luck(right: int, of: int, lucky: float) -> float:
    """A bound on the chance that so many of so many lots are drawn, each with the chance ``lucky``: of 10 coins that 10
    show heads, 1/1024."""
    if right <= of * lucky:
        return 1.0
    share = right / of
    missed = 0.0 if right == of else (1 - share) * math.log((1 - share) / (1 - lucky))
    return math.exp(-of * (share * math.log(share / lucky) + missed))


LEAST_ALIKE = 3
"""Questions with the same words: of two, one that is guessed by the other, a coin would make half of them agree."""
MOST_LUCK = 0.01
"""Of all words: some that tell their answer stand beside many that are balanced."""
LEAST_DEVIATIONS = 3
"""Standard deviations from chance: one in 700 sets of answers that are drawn evenly gets there."""
LEAST_DEVIATIONS_AMONG_THEMSELVES = 4
"""Agreement has a long tail upwards: 4 are reached by one set in 50 where 10 questions have the same words and all
others have their own, by one in 400 with six such words, and by none of 20,000 with 200."""


def _answers(asked: Sequence[Asked]) -> dict[Subject, Counter[str]]:
    found: dict[Subject, Counter[str]] = defaultdict(Counter)
    for _, question in asked:
        if question.own or question.only_balanced or question.against is not None:
            found[subject_of(question)][question.label] += 1
    return found


def _most_frequent(answers: Counter[str]) -> str | None:
    """None where there is none, or two are equally frequent."""
    first = answers.most_common(2)
    return None if not first or (len(first) == 2 and first[0][1] == first[1][1]) else first[0][0]


def _answer_key(question: Question, label: str) -> tuple[str, ...]:
    return (*_contrast(question), question.language, label)


def _contrast(question: Question) -> tuple[str, ...]:
    """The set within which answers contrast: yes and no for each relation, left and right over both relations."""
    topic = question.topic if question.label in ("yes", "no") else ""
    return ("contrast", question.group, topic, question.form)


def subject_of(question: Question) -> Subject:
    """What a question is about. Within it answers contrast once more: of all such, the words are the same."""
    topic = question.topic if question.label in ("yes", "no") or question.only_balanced else ""
    return ("about", question.language, question.group, topic, question.form, *question.about)


def count(asked: Iterable[Asked], key: Callable[[Asked], str]) -> dict[str, int]:
    """The count of each key, sorted by key."""
    return dict(sorted(Counter(map(key, asked)).items()))
