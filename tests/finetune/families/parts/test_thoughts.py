"""Thoughts: a trained answer follows the prompt that it is generated from, and holds its thought once."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune.families.base import encode_for_training, learned_elsewhere
from finetune.families.parts.box_answers import first_box, writing_of
from finetune.families.parts.thoughts import begun_by, habit_of
from finetune.families.qwen3_5 import Qwen35Family
from finetune.families.qwen3_vl import Qwen3VLFamily
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.training.evaluation import Generator, Question, is_match
from finetune.training.preview import Preview
from tests.finetune.families.pictures import picture
from tests.finetune.families.tiny_families import ALL, PICTURES_AND_WORDS, grid_processor
from tests.finetune.families.tiny_families import TEMPLATE as PLAIN

# What the published templates of Qwen3-VL-Thinking and Qwen3.5 do with thoughts.
TEMPLATE = (
    "{% set last = namespace(asked=-1) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set last.asked = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
    f"{{% set words %}}{PICTURES_AND_WORDS}{{% endset %}}{{% set thought = '' %}}"
    "{% if message.role == 'assistant' and '</think>' in words %}"
    "{% set thought = words.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.index0 > last.asked %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ words }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
FREE = TEMPLATE.replace("<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n")
NONE = TEMPLATE.replace("think>", "muse>")
OPEN, CLOSED = Qwen3VLFamily(), Qwen35Family()
SPHERES = "spheres\n</think>\n\na tower"
THOUGHT = f"<think>\n{SPHERES}"


def asked(*answers: str, trained: bool = True) -> Conversation:
    """A question before each answer; ``trained``: those before the last one."""
    turns = []
    for number, words in enumerate(answers, start=1):
        is_trained = trained or number == len(answers)
        turns += [Turn("user", ("what?",)), Turn("assistant", (words,), trained=is_trained)]
    return Conversation(tuple(turns))


def prompt(family: Any, processor: Any, conversation: Conversation, index: int) -> str:
    before = Conversation(conversation.turns[:index])
    return processor.tokenizer.decode(family.encode(processor, before, add_generation_prompt=True).input_ids)


@pytest.mark.parametrize(
    ("family", "template", "answer", "learned"),
    [
        (OPEN, TEMPLATE, THOUGHT, SPHERES),
        (OPEN, TEMPLATE, SPHERES, SPHERES),
        (OPEN, TEMPLATE, "<think>spheres</think>a tower", SPHERES),
        (OPEN, TEMPLATE, "\n<think>\nspheres</think>\na tower", SPHERES),
        (OPEN, TEMPLATE, "<think>\n\n</think>\n\na tower", "\n</think>\n\na tower"),
        (OPEN, TEMPLATE, "", ""),
        (CLOSED, TEMPLATE, "a tower", "a tower"),
        (CLOSED, TEMPLATE, "<think>\n\n</think>\n\na tower", "a tower"),
        (OPEN, FREE, THOUGHT, THOUGHT),
        (OPEN, FREE, "a tower", "a tower"),
        (OPEN, NONE, THOUGHT, THOUGHT),
    ],
)  # fmt: skip
def test_an_answer_follows_its_prompt_and_holds_its_thought_once(family, template, answer, learned):
    processor, conversation = grid_processor(family, template), asked(answer)
    found = encode_for_training(family, processor, conversation)
    decode = processor.tokenizer.decode
    if template is not NONE:
        assert decode(found.input_ids[: found.turn_spans[1][0]]) == prompt(family, processor, conversation, 1)
        assert not [*learned_elsewhere(family, processor, conversation)]
    assert decode(found.labels[found.labels >= 0]) == learned + "<|im_end|>"
    if template is TEMPLATE:  # as transformers writes it, whose template sees the words
        messages = [
            {"role": turn.role, "content": [{"type": "text", "text": turn.parts[0]}]}
            for turn in conversation.turns
        ]
        theirs = family.chat_template(processor).apply_chat_template(messages, tokenize=False)
        assert answer == "" or decode(found.input_ids) == theirs


@pytest.mark.parametrize(
    ("family", "template", "answers", "words"),
    [
        (
            OPEN,
            TEMPLATE,
            ("a tower",),
            r"turn 1 .* without a thought.*prompts end in '<think>.n'.*Instruct checkpoint",
        ),
        (
            OPEN,
            TEMPLATE,
            (THOUGHT, THOUGHT),
            r"turn 1 .*before the last one.*without its thought.*\"weight\": 0",
        ),
        (OPEN, FREE, (THOUGHT, "a"), r"turn 1 .*before the last one"),
        (CLOSED, TEMPLATE, (THOUGHT,), r"turn 1 .*found a thought.*leave the thought out"),
        (CLOSED, TEMPLATE, ("a", THOUGHT), r"turn 3 .*found a thought"),
    ],
)
def test_an_answer_that_is_never_generated_where_it_would_be_learned_is_refused(
    family, template, answers, words
):
    with pytest.raises(ValueError, match=words):
        family.encode(grid_processor(family, template), asked(*answers), media=False)


def test_what_is_only_read_keeps_no_thought_where_the_template_drops_it():
    """As in a chat that goes on: answers before the last question were generated, with their thoughts."""
    processor = grid_processor(OPEN, TEMPLATE)
    conversation = asked("<think>towers</think>a tower", THOUGHT, trained=False)
    found = encode_for_training(OPEN, processor, conversation)
    text = processor.tokenizer.decode(found.input_ids)
    assert text.startswith(prompt(OPEN, processor, conversation, 3)) and "towers" not in text
    assert text.startswith("<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\na tower<|im_end|>\n")
    assert processor.tokenizer.decode(found.labels[found.labels >= 0]) == f"{SPHERES}<|im_end|>"
    assert prompt(OPEN, processor, asked("a", "b"), 3).endswith(
        "assistant\n<think>\n"
    )  # plain ones are read too


def test_a_family_s_boxes_are_found_whatever_its_answers_must_hold():
    ref = ImageRef("x", picture((50, 31)))
    assert writing_of(OPEN, grid_processor(OPEN, TEMPLATE), [ref], 0, (50, 31)) is not None


def test_a_template_without_thoughts_is_written_once_for_each_chat():
    processor, written = grid_processor(OPEN, NONE), []
    assert habit_of(processor, lambda *given: written.append(given) or "") is None and not written


# --- the preview says so -------------------------------------------------------------------------------------------
def previewed(family: Any, *conversations: Conversation) -> str:
    processor = grid_processor(family, TEMPLATE if family is CLOSED else PLAIN.replace("SYSTEM", ""))

    class Dataset:
        lengths, on_bad_sample = None, "error"
        source_of = np.zeros(len(conversations), np.int64)
        mixture = SimpleNamespace(names=("data",))

        def __getitem__(self, index: int) -> Any:
            encoded = encode_for_training(family, processor, conversations[index])
            return SimpleNamespace(number=index, encoded=encoded)

    dataset: Any = Dataset()
    dataset.family, dataset.processor, dataset.conversations = family, processor, conversations
    nothing: Any = None
    return Preview(nn.Module(), dataset, nothing, False, torch.float32).samples()


def test_answers_that_are_learned_in_another_context_than_generated_are_told():
    """Qwen3.5's template leaves the empty thought out before answers that are not the last."""
    note = previewed(CLOSED, asked("a"), asked("a", "b", trained=False), asked("a", "b")).split("note: ")[1]
    assert note.startswith("conversation, turn 1 (assistant): this answer and others before the last one")
    assert "are learned after …nt⏎, where prompts end in …nt⏎<think>⏎⏎</think>⏎⏎:" in note
    assert "note: " not in previewed(CLOSED, asked("a"), asked("a", "b", trained=False))
    assert "note: " not in previewed(OPEN, asked("a", "b"))


@pytest.mark.parametrize(
    ("prompt_ends", "begun"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("what is <think> here?<|im_end|>\n<|im_start|>assistant\n", ""),
    ],
)
def test_a_prompt_that_ends_inside_a_thought_has_begun_it(prompt_ends: str, begun: str):
    assert begun_by(prompt_ends) == begun


@pytest.mark.parametrize(("template", "begun"), [(TEMPLATE, "<think>"), (FREE, ""), (NONE, "")])
def test_a_generated_answer_has_the_mark_of_the_thought_that_its_prompt_began(template, begun):
    torch.manual_seed(0)
    processor, model = grid_processor(OPEN, template), ALL[OPEN.name].model().eval()
    turns = (Turn("user", (ImageRef("a", picture((60, 33))), "what?")), Turn("assistant", (THOUGHT,)))
    question = Question(Conversation(turns), SPHERES, "what?", 3, "s", "d.json: record 0")
    [answer] = Generator(model, processor, OPEN, max_new_tokens=3, batch_size=2).answer([question], [0])
    assert answer.said.startswith("<think>") == bool(begun)


def test_answers_are_compared_without_their_thoughts():
    assert is_match("<think>one</think>\n\nA tower.", "spheres</think>a tower")
    assert not is_match("<think>a tower", "a tower")
    box = '[{"bbox_2d": [1, 2, 3, 4]}]'
    assert first_box(f"<think>[[5, 6, 7, 8]] or {box.replace('1', '9')}</think>{box}")[1] == (1, 2, 3, 4)
