"""AttentionMonitor in trainers that are not ours: what docs/any-trainer.md says, run."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.models.qwen2_5_vl import processing_qwen2_5_vl

import diagnostics.compare  # noqa: F401  (first imported while something is replaced, it would keep the replacement)
from diagnostics.monitor import AttentionMonitor
from diagnostics.records.probes import Probe, write_probes
from diagnostics.records.record import AttentionRecord
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.families.tiny_families import GRIDS
from tests.flash_standin import standing_in, using
from tests.undrawn import RENDERER, Undrawn

PAGE = Path(__file__).parents[2] / "docs" / "any-trainer.md"
PLAIN, WITH_TRL, LOOP = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
TINY = GRIDS["qwen2.5-vl"]
STEPS = 4


class TheirProcessor(processing_qwen2_5_vl.Qwen2_5_VLProcessor):
    """What ``AutoProcessor`` gives where torchvision is installed, but for videos: its parts need torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@pytest.fixture
def processor(tmp_path):
    ours = TINY.processor(tmp_path)
    return TheirProcessor(ours.image_processor, ours.tokenizer, ours.chat_template)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a checkpoint, a picture to train on, and probes; no process that draws."""

    monkeypatch.setattr(RENDERER, Undrawn)
    TINY.model().save_pretrained(tmp_path / "tiny")
    TINY.processor(tmp_path).save_pretrained(tmp_path / "tiny")
    (tmp_path / "images").mkdir()
    noise(50, 31).save(tmp_path / "images" / "pearl.jpg")
    write_probes(probes(tmp_path), tmp_path / "probes.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def probes(folder):
    found = []
    for index, size in enumerate([(60, 33), (29, 70)]):
        path = folder / "images" / f"probe-{index}.png"
        noise(*size, seed=index + 1).save(path)
        box = (4.0, 4.0, 20.0, 24.0)
        found.append(
            Probe(
                id=f"probe-{index}", group="tower", images=(path,), question="what?", answer="pearl", foil="canton",
                regions={"disc": (box,)},
            )
        )  # fmt: skip
    return found


def run(code, model="tiny", **names):
    """The page's code, on the tiny checkpoint and for few steps."""
    changed = {
        '"Qwen/Qwen2.5-VL-3B-Instruct"': repr(model),
        "max_steps=200, save_steps=50": f"max_steps={STEPS}, save_steps=2, logging_steps=1, use_cpu=True, bf16=False, "
        "report_to='none', disable_tqdm=True, per_device_train_batch_size=1",
    }
    for said, small in changed.items():
        code = code.replace(said, small)
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_left(folder):
    """What a run leaves, and its checkpoint."""
    check_records(folder)
    assert (folder / f"checkpoint-{STEPS}").is_dir()


def check_records(folder):
    """The baseline, the checkpoint and the end are there, they differ, and they are compared."""
    records = {}
    for step in (0, 2, STEPS):
        for name in ("probe-0", "probe-1"):
            path = folder / "attention" / f"step-{step:06d}" / f"{name}.safetensors"
            records[name, step] = AttentionRecord.load(path)
    for name in ("probe-0", "probe-1"):
        assert records[name, 0].rows.sum(-1) == pytest.approx(1, abs=1e-4)
        assert not np.array_equal(records[name, 0].rows, records[name, 2].rows)
        assert records[name, 2].scores.answer_nats != records[name, STEPS].scores.answer_nats
    comparison = json.loads((folder / "comparison" / "comparison.json").read_text())
    assert comparison["groups"]["tower"]["probes"] == 2
    assert [*(folder / "runs").glob("events*")]


# --- transformers ----------------------------------------------------------------------------------------
def test_the_page_s_trainer_is_monitored_and_its_losses_are_those_without(place):
    watched = run(PLAIN)
    check_left(place / "out")
    plain = run(re.sub(r"\n    callbacks=.*# the line", "", PLAIN))
    assert losses(watched["trainer"]) == losses(plain["trainer"]) and len(losses(plain["trainer"])) == STEPS
    for name, value in plain["model"].state_dict().items():
        assert torch.equal(value, watched["model"].state_dict()[name])


def test_a_processor_of_transformers_serves_as_well(place, processor, monkeypatch):
    """Where torchvision is installed, AutoProcessor gives one."""
    monkeypatch.setattr("finetune.model.checkpoint.load_processor", lambda name: processor)
    run(PLAIN)
    check_left(place / "out")


def test_the_page_s_trainer_is_monitored_under_flash_attention(place):
    """A stand-in for the package, since there is no GPU."""
    flash = PLAIN.replace("processor = load", "stack.enter_context(using(model, 2))\nprocessor = load")
    with standing_in(2), ExitStack() as stack:
        watched = run(flash, stack=stack, using=using)
        check_left(place / "out")
        plain = run(re.sub(r"\n    callbacks=.*# the line", "", flash), stack=stack, using=using)
        assert watched["model"].config._attn_implementation == "flash_attention_2"
    assert losses(watched["trainer"]) == losses(plain["trainer"]) and len(losses(plain["trainer"])) == STEPS


# --- TRL -------------------------------------------------------------------------------------------------
@pytest.fixture
def trl():
    return pytest.importorskip("trl")


def test_the_page_s_trainer_of_trl_is_monitored(place, trl):
    short = PLAIN.split("\n\ndef conversation")[0]
    adapters = "processing_class=processor, peft_config=LoraConfig(target_modules=['q_proj']),"
    code = "from peft import LoraConfig\n" + WITH_TRL.replace("processing_class=processor,", adapters)
    found = run(short + code)
    assert isinstance(found["trainer"], trl.SFTTrainer) and len(losses(found["trainer"])) == STEPS
    check_left(place / "out-trl")


def rows(**columns):
    from datasets import Dataset

    picture = Image.open("images/pearl.jpg")
    return Dataset.from_list([{"images": [picture], **columns} for _ in range(4)])


def said(role, text):
    return [{"role": role, "content": text}]


def settings(trl_config, folder, **more):
    return trl_config(
        str(folder), max_steps=STEPS, save_steps=2, logging_steps=1, use_cpu=True, bf16=False, report_to="none",
        disable_tqdm=True, learning_rate=1e-2, **more,
    )  # fmt: skip


def check_trained(trainer, folder):
    """The trainer ran to its end with the monitor, and what trains without it is the same."""
    assert trainer.state.global_step == STEPS
    check_left(folder)


def adapters():
    from peft import LoraConfig

    return LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian")


def load(name):
    from transformers import AutoModelForImageTextToText

    from finetune.model.checkpoint import load_processor

    return AutoModelForImageTextToText.from_pretrained(name), load_processor(name)


def monitored(processor, folder):
    return AttentionMonitor(processor=processor, probes="probes.json", output_dir=folder)


@pytest.mark.parametrize("with_adapters", [False, True])
def test_trl_s_dpo_is_monitored(place, trl, with_adapters):
    model, processor = load("tiny")
    config = settings(trl.DPOConfig, "out", max_length=None, per_device_train_batch_size=1)
    data = rows(
        prompt=said("user", "what?"), chosen=said("assistant", "pearl"), rejected=said("assistant", "canton")
    )
    watcher = monitored(processor, "out")
    trainer = trl.DPOTrainer(
        model, args=config, train_dataset=data, processing_class=processor, callbacks=[watcher],
        peft_config=adapters() if with_adapters else None,
    )  # fmt: skip
    trainer.train()
    check_trained(trainer, place / "out")
    assert watcher.missing == []


@pytest.mark.parametrize("with_adapters", [False, True])
def test_trl_s_grpo_is_monitored(place, trl, with_adapters):
    model, processor = load("tiny")
    config = settings(
        trl.GRPOConfig, "out", per_device_train_batch_size=2, num_generations=2, max_completion_length=4, beta=0.04,
    )  # fmt: skip

    def by_length(completions, **_):
        return [float(len(one[0]["content"])) for one in completions]

    watcher = monitored(processor, "out")
    trainer = trl.GRPOTrainer(
        model, reward_funcs=by_length, args=config, train_dataset=rows(prompt=said("user", "what?")),
        processing_class=processor, callbacks=[watcher], peft_config=adapters() if with_adapters else None,
    )  # fmt: skip
    trainer.train()
    check_trained(trainer, place / "out")
    assert watcher.missing == []


# --- a loop of one's own ---------------------------------------------------------------------------------
def test_the_page_s_loop_is_monitored(place):
    from accelerate import Accelerator

    short = PLAIN.split("\n\ntrainer = Trainer")[0]
    names = run(short)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(names["model"].parameters(), lr=0.1)
    names["model"], names["optimizer"] = accelerator.prepare(names["model"], optimizer)
    batch = names["collate"](names["samples"])
    names |= {"accelerator": accelerator, "loader": [batch] * STEPS}
    exec(compile(LOOP.replace("% 50", "% 2"), str(PAGE), "exec"), names)
    check_records(place / "out-loop")
    assert names["monitor"].missing == []


# --- processors ------------------------------------------------------------------------------------------
def test_a_processor_of_transformers_is_read_as_ours_and_as_itself(processor, tmp_path):
    ours = TINY.processor(tmp_path)
    turns = (Turn("user", (ImageRef("a", noise(50, 31)), "what?")),)
    mine, theirs = (
        TINY.family.encode(one, Conversation(turns), add_generation_prompt=True) for one in (ours, processor)
    )
    content = [{"type": "image", "image": noise(50, 31)}, {"type": "text", "text": "what?"}]
    itself = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert mine.input_ids.tolist() == theirs.input_ids.tolist() == itself["input_ids"][0].tolist()
    kinds = itself["mm_token_type_ids"][0].tolist()
    assert theirs.per_token["mm_token_type_ids"].tolist() == kinds
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(theirs.media[name], itself[name])


def test_a_tokenizer_is_not_enough(processor, tmp_path):
    message = (
        "processor: found Qwen2Tokenizer, without .tokenizer and .image_processor; expected the model's whole"
    )
    with pytest.raises(ValueError, match=message):
        AttentionMonitor(processor.tokenizer, probes(_images(tmp_path)))


def test_a_pixel_budget_that_only_calls_would_see_is_an_error(processor):
    processor.image_processor.max_pixels = 300
    turns = (Turn("user", (ImageRef("a", noise(50, 31)), "what?")),)
    with pytest.raises(
        ValueError, match=r"image_processor.max_pixels = 300 .*from_pretrained\(…, max_pixels=300\)"
    ):
        TINY.family.encode(processor, Conversation(turns))


def _images(folder):
    (folder / "images").mkdir()
    return folder
