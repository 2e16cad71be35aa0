"""What the preview notes of samples and modules that are read otherwise than one might think."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from finetune.data.dataset import build_dataset
from finetune.flags.arguments import TrainingArguments
from finetune.model.adaptation import Plan, adapt
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.training import preview
from finetune.training.preview import Preview
from tests.finetune.families.test_contract import FAMILIES

ONE, OTHER = (ImageRef(str(i), Image.new("RGB", (40, 24), (9 * i, 80, 200))) for i in range(2))
ANSWER = Turn("assistant", ("yes",))
WORDS = Conversation((Turn("user", ("no picture?",)), ANSWER), "d.json: record 0")
BEFORE = Conversation((Turn("user", (ONE, "what?")), ANSWER), "d.json: record 1")
BETWEEN = Conversation((Turn("user", ("Is ", ONE, " like ", OTHER, "?")), ANSWER), "/a/d.json: record 2")


def noted(
    name: str, conversations: list[Conversation], folder: Path, *, streaming: bool = False, model: nn.Module
) -> str:
    one = FAMILIES[name]
    dataset = build_dataset(
        conversations, one.processor(folder), one.family, max_length=600, on_bad_sample="error",
        streaming=streaming, workers=1,
    )  # fmt: skip
    settings = TrainingArguments(output_dir=str(folder), report_to="none")
    shown = Preview(model, dataset, settings, packing=False, precision=torch.float32)
    return shown.samples().partition("note: ")[2]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["llava-1.5", "paligemma"])
def test_pictures_between_words_that_come_first_are_counted(name: str, streaming: bool, tmp_path: Path):
    samples = [WORDS, BEFORE, BETWEEN, BETWEEN]
    note = noted(name, samples, tmp_path, streaming=streaming, model=nn.Module())
    assert note == (
        "pictures between words come first: 2 of 3 samples with pictures, the first d.json: record 2. This model reads "
        "the pictures of a turn before its words, in training as in use: words that mean one of several should call it "
        "by its number"
    )


def test_pictures_that_stay_where_they_are_get_no_note(tmp_path: Path):
    assert noted("llava-1.5", [WORDS, BEFORE], tmp_path, model=nn.Module()) == ""
    assert noted("internvl", [WORDS, BEFORE, BETWEEN], tmp_path, model=nn.Module()) == ""


def test_of_many_samples_some_are_looked_at_and_the_note_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(preview, "MOST_ORDERS_READ", 4)
    note = noted("llava-1.5", [WORDS, *[BETWEEN] * 7], tmp_path, model=nn.Module())
    assert "4 of 4 samples with pictures looked at, the first" in note


def test_what_the_model_does_not_read_is_named(tmp_path: Path):
    one = FAMILIES["llava-1.5"]
    model = adapt(one.model(), one.family, Plan(vision="lora", rank=4), master_weights=True)
    assert noted("llava-1.5", [BEFORE], tmp_path, model=model) == (
        "not trained, because the model does not read it: model.vision_tower.encoder.layers.2, "
        "model.vision_tower.post_layernorm"
    )
