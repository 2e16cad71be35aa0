"""Resuming from a stranger's checkpoint runs no code of the stranger's: refused before anything is loaded, and again
where a library reads it."""

import os
import pickle
import re

import pytest
import torch
import torch.distributed.checkpoint as sharded
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import nn

from finetune.training import pickles
from finetune.training.guards import TrainingError


class Stranger:
    """Makes a file when it is read."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def deepspeed_file(checkpoint, **more):
    file = checkpoint / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    scaler = DynamicLossScaler(2.0**16, 2.0, 1000, 1.0, 2, False, False)
    state = {
        "loss_scaler": scaler,
        "zero_stage": ZeroStageEnum(2),
        "at": fragment_address(3, 5),
        "rows": torch.ones(2, 3),
    }
    torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8", **more}, file)
    return file


def sharded_file(checkpoint):
    layer = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    sharded.save(content, checkpoint_id=checkpoint / "pytorch_model_fsdp_0", no_dist=True)
    return checkpoint / "pytorch_model_fsdp_0" / ".metadata"


def test_what_deepspeed_writes_is_read_as_it_was(tmp_path):
    file = deepspeed_file(tmp_path)
    pickles.refuse_code(tmp_path)
    with pickles.no_code_run(tmp_path, deepspeed=True):
        read = torch.load(file, weights_only=False)["optimizer_state_dict"]
    assert (read["zero_stage"], read["at"]) == (ZeroStageEnum(2), fragment_address(3, 5))
    assert read["loss_scaler"].cur_scale == 2.0**16 and read["rows"].shape == (2, 3)


def test_code_in_deepspeeds_files_is_refused_and_never_run(tmp_path):
    file = deepspeed_file(tmp_path, more=Stranger(tmp_path / "made"))
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(file))}: found \w+\.mkdir, which would run code.*weights alone"
    ):
        pickles.refuse_code(tmp_path)
    # A file that was changed after it was looked at, or that only the library knows of.
    with (
        pytest.raises(TrainingError, match=rf"{re.escape(str(tmp_path))}: found \w+\.mkdir, which would run"),
        pickles.no_code_run(tmp_path, deepspeed=True),
    ):
        torch.load(file, weights_only=False)
    assert not (tmp_path / "made").exists()
    # Afterwards torch reads as it did: this is what the refusal is about.
    torch.load(file, weights_only=False)
    assert (tmp_path / "made").exists() and pickles.WEIGHTS_ONLY not in os.environ


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_a_sharded_checkpoint_holds_is_known_and_code_in_it_refused(tmp_path):
    file = sharded_file(tmp_path)
    pickles.refuse_code(tmp_path)
    for harm, words in (
        (pickle.dumps(Stranger(tmp_path / "made")), r"\w+\.mkdir"),
        (b"ctorch\nsave\n.", r"torch\.save"),
        (b"", "EOFError|Ran out of input"),
    ):
        file.write_bytes(harm)
        with pytest.raises(
            ValueError, match=rf"{re.escape(str(file))}: found ({words}), which would run code"
        ):
            pickles.refuse_code(tmp_path)
    assert not (tmp_path / "made").exists()


def test_a_users_own_setting_of_torch_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv(pickles.NOT_WEIGHTS_ONLY, "1")
    torch.save(Stranger(tmp_path / "made"), tmp_path / "file")
    with pytest.raises(TrainingError, match="mkdir"), pickles.no_code_run(tmp_path, deepspeed=False):
        torch.load(tmp_path / "file")
    assert os.environ[pickles.NOT_WEIGHTS_ONLY] == "1" and pickles.WEIGHTS_ONLY not in os.environ
