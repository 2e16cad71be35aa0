"""Corrective training data and probes, made from pictures with boxes.

Usage and flags: ``finetune/flags/corrective.py``.
"""

import argparse
import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from finetune.flags.corrective import GOOD_PROBES, parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

from tqdm import tqdm

from finetune import folder_lock
from finetune.corrective import building_questions, general_questions, relation_questions, user_templates
from finetune.corrective.annotations import read_scenes
from finetune.corrective.category_names import Names, named_categories, read_names
from finetune.corrective.sampling import (
    LEAST_PROBES,
    Asked,
    Subject,
    Topics,
    beyond_draw,
    count,
    for_probes,
    for_training,
    guessed_from_words,
    hold_out,
    subject_of,
    topics_of,
)
from finetune.corrective.scenes import Language, Question, Scene
from finetune.corrective.writing import DATA_FILE, PROBE_FILE, write
from finetune.files import check_writable, fault_words
from finetune.printable import printable

BUILT_IN = ("relations", "spheres")

Ask = Callable[[Scene, Random], Iterator[Question]]


class Made(NamedTuple):
    """The result of ``make``."""

    scenes: list[Scene]
    training: list[Asked]
    probes: list[Asked]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code. Faults of the input are printed as one message."""
    options = parser().parse_args(arguments)
    try:
        with folder_lock.held(options.output_dir):
            made = make(options)
    except (ValueError, OSError) as error:
        print(printable(f"error: {fault_words(error)}"), file=sys.stderr)
        return 1
    print("\n".join(summary(made, options.output_dir)))
    return 0


def make(options: argparse.Namespace) -> Made:
    """Pictures → questions → the two files.

    Raises ValueError listing every fault of the flags, or of the annotations, the names or a template file.
    """
    _check(options)
    check_writable(options.output_dir)
    scenes = read_scenes(
        options.boxes,
        options.images,
        named=() if options.names is None else named_categories(options.names),
        box_units=options.box_units,
        on_bad_picture=options.on_bad_picture,
    )
    categories = {thing.category for scene in scenes for thing in scene.things}
    names = Names() if options.names is None else read_names(options.names, categories)
    language = None if options.language == "both" else options.language
    own = [
        template
        for path in options.templates
        if path not in BUILT_IN
        for template in user_templates.read_templates(Path(path), categories, language)
    ]
    asking = _asking(options, names, categories, language, own)

    def everything(place: int) -> list[Question]:
        rng = Random(f"ask/{options.seed}/{scenes[place].digest}")
        return [question for one in asking for question in one(scenes[place], rng)]

    # Keeps only the topics of each picture: all questions would not fit into memory.
    topics, trained, one_way = _topics(len(scenes), everything)

    def ask(place: int) -> list[Question]:
        return [question for question in everything(place) if subject_of(question) not in one_way]

    for said in filter(None, (*(template.said() for template in own), _said(one_way))):
        print(said)
    if not trained:
        raise ValueError(_nothing(options, categories))
    train_on, held_out = hold_out(scenes, topics, options.held_out, options.seed)
    if beyond := beyond_draw(scenes, held_out, options.held_out, options.seed):
        print(
            f"{beyond:,} of the held-out pictures are held out only for what is asked here: a call with other "
            "--templates may train on them; make in one call what is trained or probed together"
        )
    bounds = {"per_picture": options.per_picture, "most": options.most_samples, "seed": options.seed}
    training = for_training(scenes, train_on, ask, **bounds)
    probes = for_probes(scenes, topics, held_out, ask, per_group=options.probes_per_group, seed=options.seed)
    for what, found in (("training sample", training), ("probe", probes)):
        if not found:
            raise ValueError(
                f"{len(train_on)} training pictures and {len(held_out)} held-out pictures give no {what}; give more "
                "pictures, or another --held_out"
            )
    write(options.output_dir, training, probes, overwrite=options.overwrite)
    if names.without_chinese:
        print(
            f"no Chinese name, so written as annotated: {', '.join(sorted(names.without_chinese))}; see --names"
        )
    return Made(scenes, training, probes)


# ---------------------------------------------------------------------------------------------------------------------
# Stations
# ---------------------------------------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> None:
    faults = []
    if not options.images.is_dir():
        faults.append(f"--images: no such folder {str(options.images)!r}")
    for flag, path in (("boxes", options.boxes), ("names", options.names)):
        if path is not None and not path.exists():
            faults.append(f"--{flag}: no such file {str(path)!r}")
    for template in options.templates:
        if template not in BUILT_IN and not Path(template).is_file():
            faults.append(
                f"--templates: found {template!r}, expected {', '.join(BUILT_IN)} or a file of your own"
            )
    if "spheres" in options.templates and options.names is None:
        faults.append(
            "--templates spheres: needs --names, with the buildings and the building each is mistaken for"
        )
    if not 0 < options.held_out < 1:
        faults.append(
            f"--held_out: found {options.held_out:g}, expected a share between 0 and 1, such as 0.2"
        )
    for flag in ("per_picture", "most_samples", "probes_per_group"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            faults.append(f"--{flag}: found {value}, expected at least 1")
    if faults:
        raise ValueError("\n".join(faults))


def _asking(
    options: argparse.Namespace,
    names: Names,
    categories: set[str],
    language: Language | None,
    own: Sequence[user_templates.Template],
) -> list[Ask]:
    """A function for each kind of question, always including the general ones that test retention."""
    asking: list[Ask] = [functools.partial(_ask_own, one, names, language) for one in own]
    for template in options.templates:
        if template == "relations":
            asking.append(
                lambda scene, rng: relation_questions.ask(scene, names, set(options.relations), language, rng)
            )
        elif template == "spheres":
            if not names.buildings:
                raise ValueError(
                    f"{options.names}: found no building; give one a foil, the name it is mistaken for"
                )
            asking.append(lambda scene, rng: building_questions.ask(scene, names, language, rng))
    corrected = names.buildings.keys() | building_questions.evidence_names(names).keys()
    return [
        *asking,
        lambda scene, rng: general_questions.ask(scene, names, categories - corrected, language, rng),
    ]


def _ask_own(
    template: user_templates.Template, names: Names, language: Language | None, scene: Scene, rng: Random
) -> Iterator[Question]:
    return template.ask(scene, names, language, rng)


class _OneWay(NamedTuple):
    """What all pictures answer alike, though it is asked only in balance.

    pictures   in which it was found
    text       of one such question
    """

    pictures: tuple[int, ...]
    text: str


def _topics(
    count: int, ask: Callable[[int], Sequence[Question]]
) -> tuple[dict[int, Topics], bool, dict[Subject, _OneWay]]:
    """The topics of each picture with questions, whether any question may be trained, and what is left out of both."""
    found: dict[int, Topics] = {}
    trained = False
    labels: dict[Subject, set[str]] = defaultdict(set)
    waiting: dict[Subject, list[tuple[int, Question]]] = defaultdict(list)
    for place in tqdm(range(count), desc="asking", unit="picture", delay=2):
        questions = ask(place)
        for question in questions:
            if question.only_balanced:
                labels[subject_of(question)].add(question.label)
                waiting[subject_of(question)].append((place, _bare(question)))
        others = [one for one in questions if not one.only_balanced]
        if others:
            found[place] = topics_of(others)
            trained |= any(one.trained for one in others)
    for subject, answers in labels.items():
        for place, question in waiting.pop(subject) if len(answers) > 1 else ():
            found[place] = found.get(place, frozenset()) | topics_of([question])
            trained |= question.trained
    left_out = {
        subject: _OneWay(tuple(place for place, _ in those), those[0][1].text)
        for subject, those in waiting.items()
    }
    return found, trained, left_out


def _bare(question: Question) -> Question:
    """Without its boxes, of which there may be many."""
    return replace(question, regions={}, phrases={}, relation=None)


def _said(one_way: Mapping[Subject, _OneWay]) -> str | None:
    """How many questions were left out as their answer was known before; None if none was."""
    if not one_way:
        return None
    places = [place for one in one_way.values() for place in one.pictures]
    example = max(one_way.values(), key=lambda one: (len(one.pictures), one.text)).text
    return (
        f"left out {len(places):,} questions of {len(set(places)):,} pictures to which all pictures give one answer, "
        f"such as {example!r}: it could be given without looking; give pictures with another answer too (the same "
        "things elsewhere, or other things there)"
    )


def _nothing(options: argparse.Namespace, categories: set[str]) -> str:
    shown = sorted(categories)[:20]
    return (
        f"{options.boxes}: found no question for --templates {' '.join(options.templates)} in any picture. The "
        f"categories are {', '.join(shown)}. relations needs two categories with one box each in a picture, in an "
        "unambiguous position; spheres needs exactly one building of --names in a picture; a file of your own needs "
        "things that fit, and a question with one right answer"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The summary
# ---------------------------------------------------------------------------------------------------------------------


def summary(made: Made, folder: Path) -> list[str]:
    """The two files by kind, the groups with too few probes, and two samples."""
    pictures = {one.scene.digest for one in made.training}, {one.scene.digest for one in made.probes}
    lines = [
        f"{folder / DATA_FILE}: {len(made.training):,} samples of {len(pictures[0]):,} pictures",
        *_counts(made.training, lambda one: f"{one.question.topic}, {one.question.form}"),
        *_known_before(made.training),
        f"{folder / PROBE_FILE}: {len(made.probes):,} probes of {len(pictures[1]):,} other pictures",
        *_counts(made.probes, lambda one: one.question.group),
        *_known_before(made.probes, made.training),
    ]
    groups = count(made.probes, lambda one: one.question.group)
    for group, probes in groups.items():
        if probes < LEAST_PROBES:
            lines.append(
                f"{group}: {probes} probes, expected at least {LEAST_PROBES} (recommended: {GOOD_PROBES}); with fewer "
                "there is no verdict; give more pictures, or a larger --held_out"
            )
    if general_questions.GROUP not in groups:
        lines.append(
            f"{general_questions.GROUP}: no probes, because every annotated category is being corrected; annotate "
            "other categories too, or write retention probes by hand"
        )
    for name, asked in (("a sample", made.training[0]), ("a probe", made.probes[0])):
        lines.append(f"{name} ({asked.scene.image.name}):")
        lines += [f"  {asked.question.text}", f"    {asked.question.answer}"]
    return lines


def _known_before(asked: Sequence[Asked], trained: Sequence[Asked] | None = None) -> Iterator[str]:
    """How many answers could be guessed from the words, as the pictures show these things one way more often than the
    other; those of the user's templates apart.

    trained   of probes: the samples by which their answers would be guessed
    """
    among = "" if trained is None else " of the samples"
    for is_own, whose, why, remedy in (
        (
            False,
            "",
            ", as the pictures show the same things more often one way",
            "give pictures of the other way too",
        ),
        (
            True,
            ", of your own templates,",
            "",
            "give pictures with other answers too, or name less in the question",
        ),
    ):
        some, others = (
            None if every is None else [one for one in every if one.question.own == is_own]
            for every in (asked, trained)
        )
        assert some is not None
        if (found := guessed_from_words(some, others)) is not None:
            yield (
                f"  {found.right:,} of these{whose} could be answered from their words, where chance gives "
                f"{found.chance:,.0f} of {found.of:,}{why}: {found.example.text!r} is answered "
                f"{found.example.answer!r} in {found.times:,} of {found.among:,}{among}; {remedy}"
            )


def _counts(asked: Sequence[Asked], key: Callable[[Asked], str]) -> Iterator[str]:
    """A line for each kind: its count, and how often each answer is correct."""
    kinds = count(asked, key)
    width = max(map(len, kinds))
    for kind, number in kinds.items():
        labels = count([one for one in asked if key(one) == kind], lambda one: one.question.label)
        shown = ", ".join(f"{label} {times}" for label, times in list(labels.items())[:6]) + (
            ", ..." if len(labels) > 6 else ""
        )
        yield f"  {kind.ljust(width)}  {number:6,}  {shown}"


if __name__ == "__main__":
    sys.exit(main())
