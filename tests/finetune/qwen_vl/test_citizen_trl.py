"""TRL's trainers on Qwen-VL: what they train on, decoded, and that they go through."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import finetune  # noqa: F401  (registers)
from tests.finetune.qwen_vl.citizens import IMAGE_ID, small_model, small_processor

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

QUESTION = {"role": "user", "content": "what <|im_end|>?"}
RED, BLUE = ({"role": "assistant", "content": word} for word in ("red", "blue"))
PICTURES = [[Image.new("RGB", (20, 13), "red")], [Image.new("RGB", (9, 31), c) for c in ("blue", "red")]]
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return small_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, as a user has one."""
    folder = tmp_path_factory.mktemp("checkpoint")
    small_model().save_pretrained(folder)
    small_processor(folder / "vocabulary").save_pretrained(folder)
    return folder


def rows(*, pictures, **columns):
    return Dataset.from_list([{**columns, **({"images": one} if pictures else {})} for one in PICTURES])


def settings(kind, folder, **changes):
    return kind(
        output_dir=str(folder / "out"), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        bf16=False, disable_tqdm=True, save_strategy="no", logging_steps=1, **changes,
    )  # fmt: skip


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(trainer, processor, mask="labels"):
    """What is trained on, as text."""
    batch = next(iter(trainer.get_train_dataloader()))
    kept = batch["labels"] != -100 if mask == "labels" else batch[mask].bool()
    return [processor.decode(ids[row]) for ids, row in zip(batch["input_ids"], kept, strict=True)]


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
@pytest.mark.parametrize("owner", ["processor", "tokenizer"])
@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"messages": [QUESTION, RED]}, {"assistant_only_loss": True}, "red<|im_end|>"),
        ({"prompt": [QUESTION], "completion": [RED]}, {}, "red<|im_end|>\n"),
    ],
    ids=["messages", "prompt and completion"],
)
def test_sft_learns_the_answer_and_to_stop(processor, tmp_path, columns, options, expected, owner, pictures):
    if owner == "tokenizer" and pictures:
        pytest.skip("a tokenizer reads no pictures")
    trainer = trl.SFTTrainer(
        small_model(),
        args=settings(trl.SFTConfig, tmp_path, **options),
        train_dataset=rows(pictures=pictures, **columns),
        processing_class=processor if owner == "processor" else processor.tokenizer,
    )
    assert trained(trainer, processor) == [expected] * 2
    assert len(losses(trainer)) == 1


def test_sft_knows_that_the_template_trains_the_end_of_a_turn(processor):
    from trl.chat_template_utils import is_chat_template_stop_token_trained, supports_tool_calling

    for owner in (processor, processor.tokenizer):
        assert is_chat_template_stop_token_trained(owner)
        assert not supports_tool_calling(owner)


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
def test_dpo_of_a_checkpoint_compares_whole_answers(folder, tmp_path, pictures):
    processor = AutoProcessor.from_pretrained(folder)
    trainer = trl.DPOTrainer(
        str(folder),
        args=settings(trl.DPOConfig, tmp_path),
        train_dataset=rows(pictures=pictures, prompt=[QUESTION], chosen=[RED], rejected=[BLUE]),
        processing_class=processor,
    )
    answers = ["red<|im_end|>\n"] * 2 + ["blue<|im_end|>\n"] * 2
    assert trained(trainer, processor, "completion_mask") == answers
    assert losses(trainer) == [pytest.approx(0.6931, abs=1e-3)]


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
def test_grpo_prompts_are_not_padded_and_images_are_not_sampled(processor, tmp_path, pictures):
    prompts, asked = [], []

    def reward(prompts, completions, prompt_ids=None, completion_ids=None, **_):
        asked.extend(completion_ids)
        return [float(index % 2) for index in range(len(completions))]

    trainer = trl.GRPOTrainer(
        small_model(),
        reward_funcs=reward,
        args=settings(trl.GRPOConfig, tmp_path, num_generations=2, max_completion_length=4),
        train_dataset=rows(pictures=pictures, prompt=[QUESTION]),
        processing_class=processor,
    )
    generate = trainer._tokenize_prompts

    def watched(given):
        found = generate(given)
        prompts.extend(found[0])
        return found

    trainer._tokenize_prompts = watched
    assert len(losses(trainer)) == 1
    pad = processor.tokenizer.pad_token_id
    assert prompts and all(isinstance(row, list) and pad not in row for row in prompts)
    assert asked and not any(IMAGE_ID in row for row in asked)


def test_an_unknown_token_has_no_id(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") is None
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "nothing"]) == [tokenizer.im_end_id, None]


def test_labels_shifted_by_a_trainer_are_obeyed():
    model, ids = small_model(), torch.tensor([[3, 4, 5, 6]])
    plain = model(input_ids=ids, labels=ids).loss
    shifted = torch.tensor([[4, 5, 6, -100]])
    assert model(input_ids=ids, shift_labels=shifted).loss == plain
    assert model(input_ids=ids, labels=ids, shift_labels=torch.tensor([[-100, -100, 9, -100]])).loss != plain
