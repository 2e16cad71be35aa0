"""The files of a model whose output layer is its word embeddings: PEFT writes the trained copy under both names."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from finetune.model import checkpoint, weights
from finetune.model.adaptation import Plan, adapt
from finetune.training import run_folder
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.finetune.model.test_adaptation import perturb
from tests.finetune.test_program import SMALL, program  # noqa: F401  (a fixture)

PALIGEMMA = SIGLIPS["paligemma"]
FILE = "adapter_model.safetensors"
ENDS = {f"base_model.model.{name}.weight" for name in ("lm_head", "model.language_model.embed_tokens")}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PALIGEMMA.write(tmp_path_factory.mktemp("model") / "tied")


def adapted(tied: Path) -> PeftModel:
    model, _ = checkpoint.load(tied, for_training=True)
    made = adapt(model, PALIGEMMA.family, Plan(embeddings=True, rank=2), master_weights=True)
    assert isinstance(made, PeftModel)
    return made


@pytest.fixture
def saved(tied: Path, tmp_path: Path) -> Path:
    model = adapted(tied)
    perturb(model)
    model.save_pretrained(tmp_path / "out")
    return tmp_path / "out"


def test_trained_embeddings_are_restored(tied: Path, saved: Path):
    found = load_file(saved / FILE)
    assert found.keys() >= ENDS and torch.equal(*(found[name] for name in ENDS))
    model = adapted(tied)
    assert weights.not_saved(model, saved) == []
    weights.restore(model, saved)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert outputs is inputs and torch.equal(inputs, found["base_model.model.lm_head.weight"])


@pytest.mark.parametrize("name", sorted(ENDS))
def test_embeddings_of_another_size_are_named(tied: Path, saved: Path, name: str):
    found = load_file(saved / FILE)
    save_file({**found, name: found[name][1:].contiguous()}, saved / FILE, {"format": "pt"})
    base, _ = checkpoint.load(tied)
    rows, width = base.get_input_embeddings().weight.shape
    assert weights.unfit(base, saved) == [
        f"{name}: found [{rows - 1}, {width}] in the adapter, expected [{rows}, {width}] for this base"
    ]


def forget_the_end(out: Path) -> None:
    """As a run that was killed after its checkpoint of step 2."""
    shutil.rmtree(out / "checkpoint-4")
    path = out / run_folder.RUN_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))


def test_a_run_that_trains_them_goes_on_and_is_continued(
    program: ModuleType,  # noqa: F811
    tied: Path,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    best = ["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end", "True"]
    flags = [*SMALL, "--use_lora", "True", "--train_embeddings", "True", "--report_to", "none"]
    data = ["--data_path", str(data_file), "--eval_data_path", str(data_file)]

    def train(name: str, *more: str) -> dict[str, torch.Tensor]:
        assert program.main([*flags, *data, "--output_dir", str(tmp_path / name), *more]) == 0
        return load_file(tmp_path / name / FILE)

    whole = train("out", "--model_name_or_path", str(tied), *best)
    forget_the_end(tmp_path / "out")
    again = train("out", "--model_name_or_path", str(tied), *best)
    assert "resuming from" in capsys.readouterr().out and again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    still = ("--learning_rate", "0", "--max_steps", "1", "--warmup_steps", "0")
    continued = train("on", "--model_name_or_path", str(tmp_path / "out"), *still)
    assert continued.keys() == whole.keys()
    assert all(torch.equal(continued[name], whole[name]) for name in whole)
