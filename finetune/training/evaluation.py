"""Generated answers at each evaluation: exact match by source, and a few answers shown with their pictures.

The loss measures the probability of the right words under teacher forcing. Only generation shows what the model says.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled

from finetune.data.dataset import ConversationDataset
from finetune.distributed import autocast_dtype, gathered, rank_and_world_size
from finetune.families.base import Encoded, Family, joined_media
from finetune.families.parts.box_scores import BoxScores, box_scores
from finetune.families.parts.modules import bare_model
from finetune.families.parts.thoughts import PROMPT_END, begun_by, without_thought
from finetune.flags.arguments import TrainingArguments
from finetune.model.untouched import untouched
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn, VideoRef
from finetune.samples.videos import open_frames
from finetune.samples.workers import is_data_worker_death
from finetune.training.answer_card import AnswerCard, draw_answer, with_boxes
from finetune.training.box_questions import BoxTarget, box_target, scores_by_source
from finetune.training.guards import TrainingError
from finetune.training.preview import short_name

logger = logging.getLogger(__name__)

FAILURES = (RuntimeError, ValueError, OSError)  # out of memory is a RuntimeError, a full disk an OSError
MOST_CHARACTERS_SHOWN = 400
MOST_FRAMES_SHOWN = 4  # of a video
BOX_METRICS = ("eval_box_accuracy", "eval_box_iou", "eval_box_pointing")
"""What an evaluation gives where answers are boxes."""


class Question(NamedTuple):
    """A sample up to its last answer, the expected answer, and what the answer card shows.

    conversation   its last turn is the answer
    expected       the answer as the family writes it (boxes in its own numbers)
    asked          the user's last words, without pictures
    tokens         number of tokens of the expected answer
    source         the data source's name
    name           the sample, as errors name it, without its folder
    box            where the answer is one box: what is right, in numbers
    """

    conversation: Conversation
    expected: str
    asked: str
    tokens: int
    source: str
    name: str
    box: BoxTarget | None = None


class Answer(NamedTuple):
    """A generated answer; ``ended`` is False where it was cut at ``max_new_tokens``."""

    number: int
    said: str
    ended: bool
    is_right: bool


# ---------------------------------------------------------------------------------------------------------------------
# Right or wrong
# ---------------------------------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """What exact match compares: ``"Ｔhe  Tower."`` → ``"the tower"``, ``"东方明珠。"`` → ``"东方明珠"``.

    Unicode NFKC (full-width and half-width are one), case folded, white space collapsed, punctuation at the end of
    the sentence left out. SQuAD's exact match (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1) leaves out all
    punctuation and English articles too; here the marks inside stay, because ``(12,34)`` and ``(1,234)`` are not one
    box, and so do articles, which Chinese does not have.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.rstrip(".!?。,;:、 ")


def is_match(said: str, expected: str) -> bool:
    """Are they the same answer once ``normalised``, whatever was thought before? An answer of punctuation alone is
    compared verbatim."""
    said, expected = without_thought(said), without_thought(expected)
    if not normalised(expected):
        return said.strip() == expected.strip()
    return normalised(said) == normalised(expected)


def exact_match(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    """(right, total) of each source, in order of first appearance."""
    counts: dict[str, tuple[int, int]] = {}
    for answer in answers:
        source = questions[answer.number].source
        right, asked = counts.get(source, (0, 0))
        counts[source] = (right + answer.is_right, asked + 1)
    return counts


# ---------------------------------------------------------------------------------------------------------------------
# Which questions
# ---------------------------------------------------------------------------------------------------------------------


def choose(sources: Sequence[str], count: int) -> list[int]:
    """Indices of ``count`` samples, given each sample's source: evenly over sources, evenly within each.

    Sources of 4, 100 and 1 samples and a count of 9 → 4, 4 and 1 samples; of the 100, numbers 12, 37, 62 and 87: a
    file sorted by subject is not judged by its first subject alone. Sources take turns, so the first few indices cover
    as many sources as possible. The choice depends neither on the evaluation nor on the number of processes.
    """
    members: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        members.setdefault(source, []).append(index)
    quotas = dict.fromkeys(members, 0)
    for _ in range(min(count, len(sources))):
        open_sources = [name for name in members if quotas[name] < len(members[name])]
        quotas[min(open_sources, key=quotas.__getitem__)] += 1
    picked = [_evenly(members[name], quota) for name, quota in quotas.items()]
    return [index for index in chain(*zip_longest(*picked)) if index is not None]


def _evenly(members: Sequence[int], count: int) -> list[int]:
    return [members[(2 * i + 1) * len(members) // (2 * count)] for i in range(count)]


def questions_of(dataset: ConversationDataset, count: int) -> list[Question]:
    """``count`` samples of the dataset as questions, or all where it has fewer.

    Streamed samples are first read here: where the dataset drops those that cannot be, others take their place.

    Raises TrainingError, which names the sample, where they are not dropped, and where none is left.
    """
    sources = source_names(dataset)
    chosen = choose(sources, count)
    picked = {*chosen}
    others = (index for index in range(len(sources)) if index not in picked)
    found: list[Question] = []
    for index in chain(chosen, others):
        if len(found) == len(chosen):
            break
        try:
            conversation = _up_to_answer(dataset.conversations[index])
            found.append(_question(conversation, dataset.processor, dataset.family, sources[index]))
        except ValueError as error:
            if dataset.on_bad_sample != "drop":
                raise TrainingError(
                    f"{error}\ncorrect this sample, or leave it out: --on_bad_sample drop"
                ) from error
    if chosen and not found:
        raise TrainingError("--eval_generate: found no sample of the evaluation data that can be read")
    return found


def source_names(dataset: ConversationDataset) -> list[str]:
    """The source of each sample."""
    names = dataset.mixture.names
    return [names[source] for source in dataset.source_of.tolist()]


def _up_to_answer(conversation: Conversation) -> Conversation:
    last = max(
        index for index, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.trained
    )
    return replace(conversation, turns=conversation.turns[: last + 1])


def _question(conversation: Conversation, processor: Any, family: Family, source: str) -> Question:
    try:
        encoded = family.encode(processor, conversation, media=False)
    except ValueError as error:
        raise ValueError(f"{conversation.source}: {error}") from error
    answer = encoded.input_ids[slice(*encoded.turn_spans[-1])].tolist()
    expected = processor.tokenizer.decode(answer).strip()
    asked = next((turn for turn in reversed(conversation.turns) if turn.role == "user"), None)
    words = "" if asked is None else _words(asked)
    box = box_target(conversation, processor, family)
    return Question(conversation, expected, words, len(answer), source, short_name(conversation), box)


def _words(turn: Turn) -> str:
    """A turn's text as shown to people: without pictures and their ``Picture 1: `` labels."""
    text = ""
    for part in turn.parts:
        if isinstance(part, ImageRef | VideoRef):
            text = re.sub(r"(Picture|Video) \d+: ?$", "", text)
        else:
            text += part.written if isinstance(part, BoxRef) else part
    return text.strip()


def _shown(ref: ImageRef | VideoRef, load_image: Callable[[ImageRef], Any]) -> Sequence[Any]:
    """The picture, or evenly spaced frames of a video, the first and last included."""
    if isinstance(ref, ImageRef):
        return [load_image(ref)]
    frames = open_frames(ref, load_image)
    places = np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES_SHOWN)).round().astype(int)
    return [frames[place] for place in places]


# ---------------------------------------------------------------------------------------------------------------------
# Generating
# ---------------------------------------------------------------------------------------------------------------------


class Generator:
    """Generates answers greedily, ``batch_size`` at a time, without side effects on the model (``untouched``).

    autocast   mixed precision of training (bf16 or fp16 over fp32 weights); None: the weights' precision
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        family: Family,
        *,
        max_new_tokens: int,
        batch_size: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = bare_model(model)
        self.processor, self.family = processor, family
        self.max_new_tokens, self.batch_size, self.autocast = max_new_tokens, batch_size, autocast

    def answer(
        self, questions: Sequence[Question], numbers: Sequence[int], *, progress: bool = False
    ) -> list[Answer]:
        """Answers to ``questions[number]`` for each of ``numbers``, in their order."""
        device = next(self.model.parameters()).device
        mixed = torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None)
        bar = tqdm(
            total=len(numbers), desc="generating answers", unit="answer", delay=3, disable=not progress
        )
        found: list[Answer] = []
        with bar, untouched(self.model), mixed:
            for start in range(0, len(numbers), self.batch_size):
                batch = list(numbers[start : start + self.batch_size])
                replies = self._generate([questions[number] for number in batch], device)
                for number, (said, ended) in zip(batch, replies, strict=True):
                    found.append(Answer(number, said, ended, is_match(said, questions[number].expected)))
                bar.update(len(batch))
        return found

    def _generate(self, questions: Sequence[Question], device: torch.device) -> list[tuple[str, bool]]:
        encoded = [self.family.encode(self.processor, one.conversation) for one in questions]
        inputs = {name: tensor.to(device) for name, tensor in prompts(encoded).items()}
        stops = list(self.family.stop_token_ids(self.processor))
        config = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=self.max_new_tokens,
            eos_token_id=stops, pad_token_id=stops[0], use_cache=True,
        )  # fmt: skip
        generate: Any = self.model.generate
        replies = generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        decoded = [self._decoded(reply, stops) for reply in replies.tolist()]
        return [(self._begun(one) + said, ended) for one, (said, ended) in zip(encoded, decoded, strict=True)]

    def _begun(self, one: Encoded) -> str:
        """The mark of a thought that the prompt ends in, which the reply goes on with."""
        end = one.turn_spans[-1][0]
        return begun_by(str(self.processor.tokenizer.decode(one.input_ids[max(end - PROMPT_END, 0) : end])))

    def _decoded(self, reply: list[int], stops: Sequence[int]) -> tuple[str, bool]:
        """The reply up to its stop token, and whether it has one.

        The output layer can have more rows than the vocabulary has tokens (151,936 for 151,860 in Qwen-VL). Ids
        without a token become U+FFFD.
        """
        end = next((at for at, token in enumerate(reply) if token in stops), None)
        tokenizer = self.processor.tokenizer
        runs = groupby(reply[:end], key=lambda token: token < len(tokenizer))
        text = "".join(
            str(tokenizer.decode(list(run))) if is_known else "\N{REPLACEMENT CHARACTER}"
            for is_known, run in runs
        )
        return text.strip(), end is not None


def prompts(batch: Sequence[Encoded]) -> dict[str, Tensor]:
    """Samples up to the start of their last turn's content as one batch, left-padded with 0.

    input_ids, attention_mask and the family's per-token inputs: Int[batch, tokens]; media joined in batch order.
    Training predicts the answer after exactly this prefix.
    """
    ends = [one.turn_spans[-1][0] for one in batch]
    columns = {
        "input_ids": [one.input_ids for one in batch],
        "attention_mask": [np.ones_like(one.input_ids) for one in batch],
        **{name: [one.per_token[name] for one in batch] for name in batch[0].per_token},
    }
    tensors = {}
    for name, rows in columns.items():
        tensors[name] = torch.zeros(len(batch), max(ends), dtype=torch.long)
        for line, row, end in zip(tensors[name], rows, ends, strict=True):
            line[max(ends) - end :] = torch.from_numpy(np.asarray(row[:end]))
    return tensors | joined_media(batch)


# ---------------------------------------------------------------------------------------------------------------------
# In training
# ---------------------------------------------------------------------------------------------------------------------


class GenerateAtEvaluation(TrainerCallback):
    """Generates answers whenever the Trainer evaluates, counts the right ones, and shows some in TensorBoard:

        eval/exact_match                 share of right answers, [0, 1]
        eval/exact_match by source/NAME  the same of one data source, where there are several
        answers/01 SAMPLE                picture, question, expected answer, generated answer
        answers/all                      every question as a table
        eval/box_accuracy                share of boxes with an IoU above .5, where answers are boxes, [0, 1]
        eval/box_iou                     their mean IoU, [0, 1]
        eval/box_pointing                share whose centre lies within the right box, [0, 1]; all three by source too
        answers/boxes                    what is wrong with boxes, in words

    ``eval_exact_match`` and ``BOX_METRICS`` join the evaluation's metrics too, so ``--metric_for_best_model
    exact_match`` finds it.

    Processes split the questions. Under ZeRO-3 a forward pass needs every process, so all of them answer all
    questions together. A failure is logged once, and training continues.
    """

    def __init__(
        self,
        dataset: ConversationDataset,
        *,
        count: int,
        pictures: int,
        max_new_tokens: int,
        writer: Any | None = None,
    ) -> None:
        self.processor, self.family = dataset.processor, dataset.family
        self.questions = questions_of(dataset, count)
        self.pictures, self.max_new_tokens, self.writer = pictures, max_new_tokens, writer
        self._reported: set[str] = set()

    def remarks(self) -> list[str]:
        """Warnings before training: expected answers longer than ``max_new_tokens`` can never match."""
        longer = sum(question.tokens >= self.max_new_tokens for question in self.questions)
        if not longer:
            return []
        most = max(question.tokens for question in self.questions) + 1
        return [
            f"{longer} of the {len(self.questions)} expected answers do not end within --eval_max_new_tokens "
            f"{self.max_new_tokens}, so they cannot be matched; {most} would be enough"
        ]

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        outcomes = self._answered_by_all(event["model"], args, state)
        failure = next((failure for _, failure in outcomes if failure is not None), None)
        if failure is not None:
            self._report("answers could not be generated", failure)
            # Never the best checkpoint, and metric_for_best_model finds each that this data gives.
            has_boxes = any(question.box is not None for question in self.questions)
            names = ["eval_exact_match", *(BOX_METRICS if has_boxes else ())]
            event["metrics"].update(dict.fromkeys(names, math.nan))
            return
        answers = sorted(answer for answers, _ in outcomes for answer in answers)
        counts = exact_match(self.questions, answers)
        share = sum(right for right, _ in counts.values()) / len(answers)
        boxes = self._box_scores(answers)
        shares = {"eval_exact_match": share} | box_metrics(boxes)
        event["metrics"].update(shares)
        state.log_history.append({**shares, "epoch": state.epoch, "step": state.global_step})
        if state.is_world_process_zero:
            tqdm.write(f"step {state.global_step}: {self._summary(counts)}")  # beside the bar of the training
            for name, scores in boxes.items():
                tqdm.write(f"step {state.global_step}: boxes of {name}: {scores.words()}")
            self._show(answers, counts, boxes, state.global_step)

    def _box_scores(self, answers: Sequence[Answer]) -> dict[str, BoxScores]:
        asked = [(self.questions[one.number], one.said) for one in answers]
        return scores_by_source([(question.source, question.box, said) for question, said in asked])

    def _answered_by_all(
        self, model: nn.Module, args: TrainingArguments, state: TrainerState
    ) -> list[tuple[list[Answer], Exception | None]]:
        """Answers and failure of each process, gathered on every process."""
        rank, ranks = rank_and_world_size()
        in_step = is_deepspeed_zero3_enabled()
        everything = range(len(self.questions))
        generator = Generator(
            model,
            self.processor,
            self.family,
            max_new_tokens=self.max_new_tokens,
            batch_size=args.per_device_eval_batch_size,
            autocast=autocast_dtype(args),
        )
        answers: list[Answer] = []
        failure: Exception | None = None
        try:
            share = everything if in_step else everything[rank::ranks]
            answers = generator.answer(self.questions, share, progress=state.is_world_process_zero)
        except FAILURES as error:
            failure = error
        # Every process must arrive here, also after a failure: the others wait for it.
        return [(answers, failure)] if in_step else gathered((answers, failure))

    def _summary(self, counts: dict[str, tuple[int, int]]) -> str:
        """``3 of 8 answers right (base 1 of 4, spheres 2 of 4)``"""
        right, asked = (sum(column) for column in zip(*counts.values(), strict=True))
        parts = ", ".join(f"{name} {part} of {whole}" for name, (part, whole) in counts.items())
        return f"{right} of {asked} answers right" + (f" ({parts})" if len(counts) > 1 else "")

    def _show(
        self,
        answers: Sequence[Answer],
        counts: dict[str, tuple[int, int]],
        boxes: Mapping[str, BoxScores],
        step: int,
    ) -> None:
        if self.writer is None:
            return
        try:
            self._write_numbers(answers, counts, step)
            self._write_boxes(boxes, step)
        except FAILURES as error:
            self._report("TensorBoard could not be written", error)
        for place, answer in enumerate(answers[: self.pictures], start=1):
            try:
                self._write_picture(place, answer, step)
            except FAILURES as error:
                self._report("an answer's picture could not be drawn", error)

    def _write_numbers(
        self, answers: Sequence[Answer], counts: dict[str, tuple[int, int]], step: int
    ) -> None:
        assert self.writer is not None
        right = sum(answer.is_right for answer in answers)
        self.writer.add_scalar("eval/exact_match", right / len(answers), step)
        if len(counts) > 1:
            for name, (part, whole) in counts.items():
                self.writer.add_scalar(f"eval/exact_match by source/{name}", part / whole, step)
        self.writer.add_text("answers/all", answer_table(self.questions, answers), step)

    def _write_boxes(self, boxes: Mapping[str, BoxScores], step: int) -> None:
        assert self.writer is not None
        if not boxes:
            return
        for tag, value in box_metrics(boxes).items():
            self.writer.add_scalar(f"eval/{tag.removeprefix('eval_')}", value, step)
        if len(boxes) > 1:
            for name, scores in boxes.items():
                for tag, value in box_metrics({name: scores}).items():
                    self.writer.add_scalar(f"eval/{tag.removeprefix('eval_')} by source/{name}", value, step)
        words = "\n".join(f"- {name}: {_cell(scores.words(), cut=False)}" for name, scores in boxes.items())
        self.writer.add_text("answers/boxes", words, step)

    def _write_picture(self, place: int, answer: Answer, step: int) -> None:
        assert self.writer is not None
        question = self.questions[answer.number]
        turns = sum(turn.role == "assistant" for turn in question.conversation.turns) - 1
        notes = [
            f"after {turns} earlier answer{'s' if turns > 1 else ''}" if turns else "",
            "" if answer.ended else f"cut at {self.max_new_tokens} tokens",
            ""
            if question.box is None
            else f"IoU {box_scores([question.box.said(answer.said)]).mean_iou:.2f}",
        ]
        card = AnswerCard(
            pictures=self._pictures_of(question, answer),
            title=f"{question.source} · {question.name} · step {step} · {'right' if answer.is_right else 'wrong'}",
            question=question.asked,
            expected=question.expected,
            generated=answer.said,
            is_right=answer.is_right,
            note=" · ".join(note for note in notes if note),
        )
        drawn = np.asarray(draw_answer(card))
        self.writer.add_image(f"answers/{place:02d} {question.name}", drawn, step, dataformats="HWC")

    def _pictures_of(self, question: Question, answer: Answer) -> list[Any]:
        """The pictures, with the right box and the one that was said on theirs."""
        shown = [_shown(ref, self.family.load_image) for ref in question.conversation.media]
        if question.box is not None:
            at, box = question.box.image, question.box
            shown[at] = [with_boxes(one, box.right, box.fractions_said(answer.said)) for one in shown[at]]
        return [picture for pictures in shown for picture in pictures]

    def _report(self, what: str, error: Exception) -> None:
        if is_data_worker_death(error):
            raise error
        if what not in self._reported:
            self._reported.add(what)
            logger.warning("evaluation: %s (%s: %s); training continues", what, type(error).__name__, error)


def answer_table(questions: Sequence[Question], answers: Sequence[Answer]) -> str:
    """Every question and answer as a Markdown table; TensorBoard reads HTML in it, so tags are written as text."""
    lines = ["| | source | sample | question | expected | answer |", "|---|---|---|---|---|---|"]
    for answer in answers:
        question = questions[answer.number]
        said = answer.said if answer.ended else f"{answer.said} …"
        cells = (question.source, question.name, question.asked, question.expected, said or "(nothing)")
        shown = " | ".join(_cell(cell) for cell in cells)
        lines.append(f"| {'✓' if answer.is_right else '✗'} | {shown} |")
    return "\n".join(lines)


def box_metrics(boxes: Mapping[str, BoxScores]) -> dict[str, float]:
    """``BOX_METRICS`` of all sources together, each answer counting once; {} where no answer is a box."""
    asked = sum(scores.asked for scores in boxes.values())
    if not asked:
        return {}
    return {
        "eval_box_accuracy": sum(scores.right for scores in boxes.values()) / asked,
        "eval_box_iou": sum(scores.mean_iou * scores.asked for scores in boxes.values()) / asked,
        "eval_box_pointing": sum(scores.pointing * scores.asked for scores in boxes.values()) / asked,
    }


def _cell(text: str, *, cut: bool = True) -> str:
    """Text as Markdown shows it verbatim; ``cut`` after 400 characters."""
    shown = text if len(text) <= MOST_CHARACTERS_SHOWN or not cut else text[:MOST_CHARACTERS_SHOWN] + "…"
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("\n", " ")):
        shown = shown.replace(mark, written)
    return shown
