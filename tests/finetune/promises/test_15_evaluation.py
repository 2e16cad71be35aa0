"""Trouble: evaluation runs out of memory because it keeps logits, or says nothing but a loss.

Promise: only the loss leaves an evaluation's batches, and a few generated answers are seen beside their pictures.
"""

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.training.trainer import FinetuneTrainer
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)


def test_an_evaluation_keeps_no_logits_and_shows_answers(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    kept = []
    plain = FinetuneTrainer.prediction_step

    def watched(self, *args, **kwargs):
        loss, *rest = plain(self, *args, **kwargs)
        kept.append((loss.dim(), *rest))
        return loss, *rest

    monkeypatch.setattr(FinetuneTrainer, "prediction_step", watched)
    asked = ("--eval_data_path", str(data_file), "--eval_strategy", "steps", "--eval_steps", "2")
    more = ("--eval_generate", "6", "--eval_pictures", "3", "--eval_max_new_tokens", "8")
    assert program.main(flags("--use_lora", "True", *asked, *more)) == 0

    assert kept and all(one == (0, None, None) for one in kept)  # a loss; neither logits nor labels
    assert "step 4: 0 of 6 answers right" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "out" / "runs"), {"images": 0, "tensors": 0}).Reload()
    assert [event.step for event in events.Scalars("eval/exact_match")] == [2, 4]
    shown = [tag for tag in events.Tags()["images"] if tag.startswith("answers/")]
    assert len(shown) == 3
    for tag in shown:
        assert [event.step for event in events.Images(tag)] == [2, 4]
        picture = Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
        assert picture.width == 720
    assert "answers/all/text_summary" in events.Tags()["tensors"]
