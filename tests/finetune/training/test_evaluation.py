"""Answers at each evaluation: chosen questions, exact match, display, and no effect on training."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from finetune.families.base import Encoded
from finetune.families.qwen_vl import QwenVLFamily
from finetune.model.checkpoint import load
from finetune.model.memory_estimate import layer_of
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from finetune.training import evaluation
from finetune.training.answer_card import BAD, GOOD, WIDTH, AnswerCard, draw_answer
from finetune.training.evaluation import (
    Answer,
    GenerateAtEvaluation,
    Generator,
    Question,
    answer_table,
    choose,
    exact_match,
    is_match,
    normalised,
    prompts,
    questions_of,
)
from finetune.training.guards import TrainingError
from tests.finetune.families.tiny_families import ALL, Tiny
from tests.finetune.test_program import flags, program, scalars  # noqa: F401  (fixtures)

FAMILY = QwenVLFamily()


# --- right or wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("Ｔｈｅ  Tower.", "the tower"),
        ("东方明珠。", "东方明珠"),
        ("是的!?", "是的"),
        (" a\n b ", "a b"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("<box>(12,34),(56,78)</box>", "<box>(12,34),(56,78)</box>"),
        ("C#", "c#"),
        ("...", ""),
    ],
)
def test_what_exact_match_compares(written: str, compared: str):
    assert normalised(written) == compared


def test_marks_inside_an_answer_count():
    assert is_match("It is 3.5", "it is 3.5.")
    assert not is_match("it is 35", "it is 3.5")
    assert not is_match("(1,234)", "(12,34)")
    assert not is_match("tower", "the tower")
    # An answer of marks alone does not match every other one.
    assert is_match("?", " ?") and not is_match("!", "?") and not is_match("", "?")


def question(source: str, expected: str = "yes") -> Question:
    turns = (Turn("user", ("what?",)), Turn("assistant", (expected,)))
    return Question(Conversation(turns), expected, "what?", 3, source, "d.json: record 0")


def test_right_answers_are_counted_by_source():
    questions = [question("base"), question("spheres"), question("base")]
    answers = [Answer(0, "yes", True, True), Answer(1, "no", True, False), Answer(2, "no", True, False)]
    assert exact_match(questions, answers) == {"base": (1, 2), "spheres": (0, 1)}


# --- questions ---------------------------------------------------------------------------------------------------


def test_samples_are_chosen_evenly_over_sources_and_within_them():
    sources = ["a"] * 4 + ["b"] * 100 + ["c"]
    assert choose(sources, 9) == [0, 4 + 12, 104, 1, 4 + 37, 2, 4 + 62, 3, 4 + 87]
    assert choose(sources, 3) == [2, 4 + 50, 104]
    assert sorted(choose(sources, 1000)) == list(range(105))
    assert choose(["a"] * 4, 0) == []


def dataset(processor: Any, conversations: list[Conversation], names: tuple[str, ...] = ("all",)) -> Any:
    """What evaluation asks of a dataset; every sample is of a source of its own where several are named."""
    source_of = np.arange(len(names)) if len(names) > 1 else np.zeros(len(conversations), int)
    return SimpleNamespace(
        conversations=conversations,
        processor=processor,
        family=FAMILY,
        mixture=SimpleNamespace(names=names),
        source_of=source_of,
    )


@pytest.fixture(scope="module")
def loaded(checkpoint_folder: Path) -> tuple[nn.Module, Any]:
    return load(checkpoint_folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, size in enumerate([(20, 14), (9, 31)]):
        paths.append(folder / f"{number}.png")
        Image.new("RGB", size, (40 * number, 90, 200)).save(paths[-1])
    return paths


def several_turns(picture: Path) -> Conversation:
    return Conversation(
        (
            Turn("user", ("Picture 1: ", ImageRef(picture.name, picture), "\nwhat?")),
            Turn("assistant", ("blue",)),
            Turn("user", ("where is ", BoxRef("<ref>it</ref>", ((0.1, 0.2, 0.3, 0.4),)), "?")),
            Turn("assistant", ("<box>(1,2),(3,4)</box>",)),
            Turn("user", ("thanks",)),
        ),
        "/home/somebody/data.json: record 7 (id 'x')",
    )


def test_generates_the_last_answer_after_the_earlier_turns(loaded, pictures: list[Path]):
    [found] = questions_of(dataset(loaded[1], [several_turns(pictures[0])]), 5)
    assert found.asked == "where is <ref>it</ref>?"
    assert found.expected == "<box>(1,2),(3,4)</box>"
    assert (found.source, found.name) == ("all", "data.json: record 7 (id 'x')")
    assert [turn.role for turn in found.conversation.turns] == ["user", "assistant"] * 2
    prompt = prompts([FAMILY.encode(loaded[1], found.conversation)])["input_ids"][0].tolist()
    text = loaded[1].tokenizer.decode(prompt)
    assert text.endswith("where is <ref>it</ref>?<|im_end|>\n<|im_start|>assistant\n") and "blue" in text


def test_a_picture_is_no_part_of_the_words_that_are_shown(loaded, pictures: list[Path]):
    first = several_turns(pictures[0]).turns[:2]
    [found] = questions_of(dataset(loaded[1], [Conversation(first)]), 1)
    assert (found.asked, found.expected, found.tokens) == ("what?", "blue", 4)


class Streamed(list):
    """Conversations of which some cannot be read."""

    def __getitem__(self, place: Any) -> Any:
        if (found := super().__getitem__(place)) is None:
            raise ValueError(f"d.json: record {place}: no answer")
        return found


@pytest.mark.parametrize(
    ("bad", "count", "asked"), [((0,), 3, [1, 2, 3]), ((1,), 2, [0, 3]), ((0, 1, 2), 4, [3])]
)
def test_streamed_samples_that_cannot_be_read_are_left_out_of_the_questions(loaded, bad, count, asked):
    """Of four samples; others take their place while there are any."""
    turns = [(Turn("user", ("what?",)), Turn("assistant", (f"answer {i}",))) for i in range(4)]
    read = Streamed(None if i in bad else Conversation(one) for i, one in enumerate(turns))
    data = dataset(loaded[1], read)
    data.on_bad_sample = "drop"
    assert sorted(one.expected for one in questions_of(data, count)) == [f"answer {i}" for i in asked]
    data.on_bad_sample = "error"
    with pytest.raises(TrainingError, match=r"record \d: no answer\n.*--on_bad_sample drop"):
        questions_of(data, 4)
    data.on_bad_sample, data.conversations = "drop", Streamed([None] * 4)
    with pytest.raises(TrainingError, match="found no sample of the evaluation data that can be read"):
        questions_of(data, count)


def test_prompts_end_where_the_answer_begins_and_are_padded_on_the_left():
    pixels = torch.arange(2 * 3 * 2 * 5).reshape(2, 3, 2, 5)
    batch = prompts(
        [
            Encoded(
                np.array([5, 6, 7, 8]), np.zeros(4), ((0, 1), (2, 4)), (), {"pixel_values": pixels[:1]},
                {"kinds": np.array([1, 0, 9, 9])},
            ),
            Encoded(
                np.array([1, 2, 3, 4, 9]), np.zeros(5), ((0, 2), (3, 5)), (), {"pixel_values": pixels[1:]},
                {"kinds": np.array([0, 0, 1, 9, 9])},
            ),
            Encoded(np.array([3, 4]), np.zeros(2), ((1, 2),), (), {}, {"kinds": np.array([0, 9])}),
        ]
    )  # fmt: skip
    assert batch["input_ids"].tolist() == [[0, 5, 6], [1, 2, 3], [0, 0, 3]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert batch["kinds"].tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert torch.equal(batch["pixel_values"], pixels)


# --- what is answered ----------------------------------------------------------------------------------------------


def generator(loaded: Any, **changes: Any) -> Generator:
    return Generator(*loaded, FAMILY, **{"max_new_tokens": 6, "batch_size": 3, **changes})


def asked_of(processor: Any, pictures: list[Path]) -> list[Question]:
    conversations = [
        several_turns(pictures[0]),
        Conversation((Turn("user", ("say it",)), Turn("assistant", ("no",)))),
        Conversation(several_turns(pictures[1]).turns[:2]),
    ]
    return sorted(questions_of(dataset(processor, conversations), 3), key=lambda one: one.expected)


def test_answers_are_the_likeliest_tokens_one_after_another(loaded, pictures: list[Path]):
    """The judge: the whole sequence through the model for every token, without padding, batch or cache."""
    model, processor = loaded
    questions = asked_of(processor, pictures)
    answers = generator(loaded).answer(questions, [2, 0, 1])
    assert [answer.number for answer in answers] == [2, 0, 1]
    stops = FAMILY.stop_token_ids(processor)
    for answer in answers:
        inputs = prompts([FAMILY.encode(processor, questions[answer.number].conversation)])
        said: list[int] = []
        while len(said) < 6 and not (said and said[-1] in stops):
            with torch.no_grad():
                logits = model(**inputs, use_cache=False).logits
            said.append(int(logits[0, -1].argmax()))
            grown = torch.cat([inputs["input_ids"], torch.tensor([[said[-1]]])], dim=1)
            inputs |= {"input_ids": grown, "attention_mask": torch.ones_like(grown)}
        ended = said[-1] in stops
        known = [token for token in said if token not in stops]
        assert all(
            token < len(processor.tokenizer) for token in known
        )  # else the texts below are cut differently
        assert (answer.said, answer.ended) == (processor.tokenizer.decode(known).strip(), ended)


@pytest.mark.parametrize("tiny", ALL.values(), ids=ALL)
def test_every_family_answers_alike_alone_and_beside_a_longer_prompt(
    tiny: Tiny, pictures: list[Path], tmp_path: Path
):
    model, processor = tiny.model().eval(), tiny.processor(tmp_path)
    seen = several_turns(pictures[0]).turns[:2]
    heard = (Turn("user", ("say it, please",)), Turn("assistant", ("no",)))
    data = dataset(processor, [Conversation(seen), Conversation(heard)])
    data.family = tiny.family
    questions = questions_of(data, 2)
    assert [(one.asked, one.expected) for one in questions] == [("what?", "blue"), ("say it, please", "no")]
    together, alone = (
        Generator(model, processor, tiny.family, max_new_tokens=5, batch_size=size).answer(questions, [0, 1])
        for size in (2, 1)
    )
    assert together == alone
    layer = layer_of(model, tiny.family.paths.language_layers, tiny.family.paths.language_attention)
    assert (layer is None) == ("moe" in tiny.family.name)  # experts are no linear layers: said, not guessed


def test_an_answer_ends_at_a_stop_and_unknown_tokens_are_visible(loaded):
    stop = FAMILY.stop_token_ids(loaded[1])[0]
    decoded = generator(loaded)._decoded
    assert decoded([ord("a"), ord("b"), stop, ord("c")], [stop]) == ("ab", True)
    beyond = len(loaded[1].tokenizer)
    assert decoded([ord("a"), beyond, ord("b")], [stop]) == ("a�b", False)


# --- in training ---------------------------------------------------------------------------------------------------


class Board:
    """A SummaryWriter that keeps what it is given."""

    def __init__(self, *, broken: str = "") -> None:
        self.scalars: dict[str, float] = {}
        self.images: dict[str, np.ndarray] = {}
        self.texts: dict[str, str] = {}
        self.broken = broken

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if self.broken == "scalars":
            raise OSError("disk full")
        self.scalars[tag] = value

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC" and image.dtype == np.uint8
        self.images[tag] = image

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts[tag] = text


def evaluated(callback: GenerateAtEvaluation, model: nn.Module, *, first: bool = True) -> dict[str, float]:
    """One evaluation, as the Trainer announces it; returns its metrics."""
    args = SimpleNamespace(deepspeed=None, bf16=False, fp16=False, per_device_eval_batch_size=2)
    state = SimpleNamespace(global_step=50, epoch=1.0, is_world_process_zero=first, log_history=[])
    metrics: dict[str, float] = {"eval_loss": 1.0}
    callback.on_evaluate(args, state, None, model=model, metrics=metrics)  # type: ignore[arg-type]
    if not math.isnan(metrics["eval_exact_match"]):
        assert state.log_history == [
            {"eval_exact_match": metrics["eval_exact_match"], "epoch": 1.0, "step": 50}
        ]
    return metrics


def callback_of(loaded: Any, pictures: list[Path], board: Board, **changes: Any) -> GenerateAtEvaluation:
    """Three samples of two sources, of which the model's own words make the second one right."""
    model, processor = loaded
    questions = asked_of(processor, pictures)
    said = generator(loaded).answer(questions, [1])[0].said
    turns = questions[1].conversation.turns
    own = Conversation((*turns[:-1], Turn("assistant", (said,))), "d.json: record 1")
    sources = [questions[0].conversation, own, questions[2].conversation]
    data = dataset(processor, sources, ("base", "spheres", "general"))
    return GenerateAtEvaluation(
        data, **{"count": 3, "pictures": 2, "max_new_tokens": 6, "writer": board, **changes}
    )


def test_an_evaluation_is_counted_and_shown(loaded, pictures: list[Path], capsys: pytest.CaptureFixture):
    board = Board()
    metrics = evaluated(callback_of(loaded, pictures, board), loaded[0])
    assert metrics == {"eval_loss": 1.0, "eval_exact_match": pytest.approx(1 / 3)}
    assert board.scalars == {
        "eval/exact_match": pytest.approx(1 / 3),
        "eval/exact_match by source/base": 0.0,
        "eval/exact_match by source/spheres": 1.0,
        "eval/exact_match by source/general": 0.0,
    }
    shown = "1 of 3 answers right (base 0 of 1, spheres 1 of 1, general 0 of 1)"
    assert f"step 50: {shown}" in capsys.readouterr().out
    assert [tag[:11] for tag in board.images] == ["answers/01 ", "answers/02 "]
    red, green = (tuple(image[30, 2]) for image in board.images.values())
    assert (red, green) == (BAD, GOOD)
    assert board.texts["answers/all"].count("\n") == 4 and "| ✓ | spheres |" in board.texts["answers/all"]


def box_callback(
    loaded: Any, pictures: list[Path], board: Board, said: dict[int, str]
) -> GenerateAtEvaluation:
    """Three samples whose answer is the box (2, 1) to (10, 7) of 20 × 14 pixels; ``said`` is what the model answers."""
    dog = BoxRef("<ref>it</ref>", ((0.1, 1 / 14, 0.5, 0.5),), "it", style="json")
    asked = (Turn("user", (ImageRef("0.png", pictures[0]), "where?")), Turn("assistant", (dog,)))
    words = several_turns(pictures[0]).turns[:2]
    conversations = [Conversation(turns, "d.json: record 0") for turns in (asked, words, asked)]
    data = dataset(loaded[1], conversations, ("base", "general", "spheres"))
    callback = GenerateAtEvaluation(data, count=3, pictures=3, max_new_tokens=6, writer=board)
    answers = [Answer(number, text, True, False) for number, text in said.items()]
    callback._answered_by_all = lambda *_: [(answers, None)]  # type: ignore[method-assign]
    return callback


def test_boxes_are_counted_said_and_drawn(loaded, pictures: list[Path], capsys: pytest.CaptureFixture):
    board = Board()
    said = {0: "<box>(100,71),(500,500)</box>", 1: "blue", 2: "<box>(100,500),(500,929)</box>"}
    metrics: dict[str, float] = {}
    args, state = SimpleNamespace(), SimpleNamespace(global_step=50, epoch=1.0, is_world_process_zero=True)
    state.log_history = []
    callback = box_callback(loaded, pictures, board, said)
    assert callback.questions[0].expected == "<ref>it</ref><box>(100,71),(500,500)</box>"
    callback.on_evaluate(args, state, None, model=loaded[0], metrics=metrics)  # type: ignore[arg-type]
    overlap = pytest.approx(0.5, abs=0.001)  # one of 1, one of 0
    shares = {"eval_box_accuracy": 0.5, "eval_box_iou": overlap, "eval_box_pointing": 0.5}
    assert metrics == {"eval_exact_match": 0.0, **shares}
    assert state.log_history == [{**metrics, "epoch": 1.0, "step": 50}]
    assert board.scalars["eval/box_accuracy"] == 0.5
    assert board.scalars["eval/box_accuracy by source/base"] == 1.0
    assert board.scalars["eval/box_pointing by source/spheres"] == 0.0
    assert "eval/box_accuracy by source/general" not in board.scalars
    out = capsys.readouterr().out
    assert "step 50: boxes of base: 1 of 1 boxes right at IoU .5 (mean IoU 1.00, centre inside 100%)" in out
    assert "- spheres: 0 of 1 boxes right" in board.texts["answers/boxes"]
    colours = [{tuple(pixel) for pixel in image[40:-250].reshape(-1, 3)} for image in board.images.values()]
    assert GOOD in colours[2] and BAD in colours[2]


def test_a_failed_evaluation_of_boxes_is_never_the_best(loaded, pictures: list[Path]):
    callback = box_callback(loaded, pictures, Board(), {})
    callback._answered_by_all = lambda *_: [([], RuntimeError("out of memory"))]  # type: ignore[method-assign]
    metrics: dict[str, float] = {}
    callback.on_evaluate(None, SimpleNamespace(), None, model=loaded[0], metrics=metrics)  # type: ignore[arg-type]
    assert metrics.keys() == {"eval_exact_match", "eval_box_accuracy", "eval_box_iou", "eval_box_pointing"}
    assert all(math.isnan(value) for value in metrics.values())


def test_a_killed_data_worker_ends_the_run_and_not_the_evaluation_alone(loaded, pictures: list[Path]):
    callback = callback_of(loaded, pictures, Board())
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    callback._answered_by_all = lambda *_: [([], died)]  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        callback.on_evaluate(None, SimpleNamespace(), None, model=loaded[0], metrics={})  # type: ignore[arg-type]


def test_every_process_answers_its_share_and_knows_the_whole(
    loaded, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
):
    whole = evaluated(callback_of(loaded, pictures, Board()), loaded[0])
    callback = callback_of(loaded, pictures, Board())
    shares = {}
    for rank in (0, 1):
        monkeypatch.setattr(evaluation, "rank_and_world_size", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(evaluation, "gathered", lambda mine, rank=rank: shares.setdefault(rank, [mine]))
        evaluated(callback, loaded[0], first=False)
    assert [[answer.number for answer in shares[rank][0][0]] for rank in (0, 1)] == [[0, 2], [1]]
    monkeypatch.setattr(evaluation, "gathered", lambda mine: [shares[0][0], shares[1][0]])
    board = Board()
    callback.writer = board
    assert evaluated(callback, loaded[0], first=False) == whole
    assert not board.scalars and not board.images  # the first process writes alone
    assert evaluated(callback, loaded[0]) == whole
    assert len(board.images) == 2


def test_a_display_failure_is_logged_once_and_training_continues(
    loaded, pictures: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    board = Board(broken="scalars")
    callback = callback_of(loaded, pictures, board)
    monkeypatch.setattr(QwenVLFamily, "load_image", refuse)
    answers = [Answer(0, "a", True, False), Answer(2, "b", True, True)]  # one with a picture, one without
    monkeypatch.setattr(Generator, "answer", lambda *_, **__: answers)
    for _ in range(2):
        assert evaluated(callback, loaded[0])["eval_exact_match"] == 0.5
    assert [record.message for record in caplog.records] == [
        "evaluation: TensorBoard could not be written (OSError: disk full); training continues",
        "evaluation: an answer's picture could not be drawn (ValueError: no such picture); training continues",
    ]
    assert len(board.images) == 1  # the other one is there


def refuse(*_: Any) -> None:
    raise ValueError("no such picture")


def test_a_generation_failure_leaves_nan_and_training_continues(
    loaded, pictures: list[Path], caplog: pytest.LogCaptureFixture
):
    board = Board()
    callback = callback_of(loaded, pictures, board)

    class Full(nn.Linear):
        def generate(self, **_: Any) -> None:
            raise torch.OutOfMemoryError("out of memory")

    assert math.isnan(evaluated(callback, Full(2, 2))["eval_exact_match"])
    assert "answers could not be generated (OutOfMemoryError: out of memory)" in caplog.text
    assert not board.scalars


def test_answers_too_long_to_match_are_reported_before_training(loaded, pictures: list[Path]):
    conversations = [one.conversation for one in asked_of(loaded[1], pictures)]
    longest = 2 + len("(1,2),(3,4)")  # one token a byte, and one each for <box> and </box>; then its end
    settings = {"count": 3, "pictures": 0}
    data = dataset(loaded[1], conversations)
    assert GenerateAtEvaluation(data, **settings, max_new_tokens=longest + 1).remarks() == []
    assert GenerateAtEvaluation(data, **settings, max_new_tokens=longest).remarks() == [
        f"1 of the 3 expected answers do not end within --eval_max_new_tokens {longest}, so they cannot be matched; "
        f"{longest + 1} would be enough"
    ]


def test_the_table_shows_markup_as_text():
    one = question("base", "<box>(1,2)</box>|x")
    table = answer_table([one], [Answer(0, "", False, False)])
    assert table.splitlines()[-1] == (
        "| ✗ | base | d.json: record 0 | what? | &lt;box&gt;(1,2)&lt;/box&gt;&#124;x |  … |"
    )


def test_a_card_holds_its_pictures_side_by_side_and_its_words():
    wide, tall = Image.new("RGB", (200, 50), (0, 0, 250)), Image.new("RGB", (40, 200), (250, 0, 0))
    words = {"title": "base · record 1", "question": "what?", "expected": "东方明珠", "generated": "no"}
    card = AnswerCard([wide, tall], **words, is_right=False)
    page = np.asarray(draw_answer(card))
    blue, red = (np.argwhere((page == colour).all(-1)) for colour in ((0, 0, 250), (250, 0, 0)))
    assert blue[:, 1].max() < red[:, 1].min()
    extents = [np.ptp(found, axis=0) + 1 for found in (blue, red)]
    assert extents[0][1] / extents[0][0] == pytest.approx(4, rel=0.05)  # each in its own shape
    assert extents[1][1] / extents[1][0] == pytest.approx(1 / 5, rel=0.05)
    assert page.shape[1] == WIDTH and (page == BAD).all(-1).any() and not (page == GOOD).all(-1).any()
    without = draw_answer(AnswerCard([], **words, is_right=True, note="cut at 4 tokens"))
    assert without.height < page.shape[0] and (np.asarray(without) == GOOD).all(-1).any()


def test_a_run_that_generates_has_the_losses_and_weights_of_one_that_does_not(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    data_file: Path,
    tmp_path: Path,
):
    """Bit for bit, with dropout and activation checkpointing, which random and train states would show."""
    common = (
        "--use_lora", "True", "--lora_dropout", "0.3", "--gradient_checkpointing", "True",
        "--eval_strategy", "steps", "--eval_steps", "1", "--eval_data_path", str(data_file),
        "--eval_on_start", "True",
    )  # fmt: skip
    generating = ("--eval_generate", "5", "--eval_max_new_tokens", "4")
    folders = tmp_path / "plain", tmp_path / "generating"
    for folder, more in zip(folders, ((), generating), strict=True):
        assert program.main(flags(*common, *more, "--output_dir", str(folder))) == 0
    plain, generated = (scalars(folder / "runs") for folder in folders)
    assert sorted(generated["eval/exact_match"]) == [0, 1, 2, 3, 4] and "eval/exact_match" not in plain
    assert plain["train/loss"] == generated["train/loss"]
    assert plain["eval/loss"] == generated["eval/loss"]
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--eval_generate", "4"),
            "--eval_generate 4: answers are generated at evaluations, and this run has none",
        ),
        (("--eval_generate", "-1"), "--eval_generate: found -1, expected at least 0"),
        (("--eval_max_new_tokens", "0"), "--eval_max_new_tokens: found 0, expected at least 1"),
        (("--eval_on_start", "True"), "--eval_on_start: requires --eval_data_path"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    capsys: pytest.CaptureFixture,
    more: tuple[str, ...],
    message: str,
):
    assert program.main(flags(*more)) == 1
    assert message in capsys.readouterr().err
