"""Models as trainers wrap, shard, quantise and compile them: watched through the wrapper, or refused in words."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from diagnostics import AttentionExtractor, remove_all
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.capture.kernel_tap import KernelTap
from finetune.families import bare_model
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama

CPU = torch.device("cpu")
NAMES = ["layer_0", "layer_1", "layer_2"]


@pytest.fixture(scope="module", autouse=True)
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@torch.no_grad()
def expected():
    """Rows and hidden states as transformers gives them, without a wrapper."""
    out = tiny_llama("eager")(input_ids=IDS, output_attentions=True, output_hidden_states=True)
    return [one.numpy() for one in out.attentions], [one.numpy() for one in out.hidden_states]


def sharded(model):
    policy = ModuleWrapPolicy({LlamaDecoderLayer, LlamaAttention})  # the attention modules themselves too
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=CPU, use_orig_params=True)


def sharded_in_place(model):
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def checkpointed(model):
    apply_activation_checkpointing(model, check_fn=lambda one: isinstance(one, LlamaDecoderLayer))
    return model


def layers_compiled(model):
    for at, layer in enumerate(model.model.layers):
        model.model.layers[at] = torch.compile(layer, backend="eager")
    return model


def adapted(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


WRAPPED = {
    "DataParallel": DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "FSDP": sharded,
    "FSDP 2": sharded_in_place,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "each layer compiled": layers_compiled,
    "checkpoint_wrapper": checkpointed,
    "DDP of PEFT": lambda model: DistributedDataParallel(adapted(model)),
    "FSDP of PEFT": lambda model: sharded(adapted(model)),
    "compiled PEFT": lambda model: torch.compile(adapted(model), backend="eager"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*WRAPPED])
def test_a_wrapped_model_is_watched(name):
    torch._dynamo.reset()
    model = WRAPPED[name](tiny_llama())
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
    assert isinstance(bare_model(model), LlamaForCausalLM)
    rows, states = expected()
    heard = []
    with AttentionExtractor(model, family=FAMILY) as seen, HiddenStates(model, family=FAMILY) as hidden:
        out = model(input_ids=IDS).logits
        assert torch.equal(out, plain)
        out.sum().backward()
        weights, entering = seen.attention_weights, hidden.hidden_states
    with torch.no_grad(), KernelTap(model, NAMES, family=FAMILY).tapped(
        lambda name, call, output: heard.append(name) or output
    ):  # fmt: skip
        model(input_ids=IDS)
    assert heard == NAMES == [*weights] == [*entering]
    for at, one in enumerate(NAMES):
        np.testing.assert_allclose(weights[one], rows[at], atol=1e-5)
        np.testing.assert_allclose(entering[one], states[at], atol=1e-4)
    lost = AttentionExtractor(model, family=FAMILY)
    remove_all(model)
    AttentionExtractor(model, family=FAMILY).remove()
    lost.remove()
    torch._dynamo.reset()


@torch.no_grad()
def test_data_parallel_over_several_devices_is_refused_at_the_next_forward():
    """What it runs there: copies whose parts share their original's configuration, made for each forward."""

    def replica(module):
        one = module._replicate_for_data_parallel()
        one._parameters.update(module._parameters)
        for name, child in module._modules.items():
            one._modules[name] = replica(child)
        return one

    model = tiny_llama()
    other = replica(model)
    plain = other(input_ids=IDS).logits
    with AttentionExtractor(model, family=FAMILY) as seen:
        with pytest.raises(ValueError, match=r"runs in torch.nn.DataParallel on several devices.*\.module"):
            other(input_ids=IDS)
        assert torch.equal(model(input_ids=IDS).logits, plain) and seen.attention_weights
        unwatched = replica(tiny_llama())
        assert torch.equal(unwatched(input_ids=IDS).logits, plain)
    assert torch.equal(other(input_ids=IDS).logits, plain)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_is_watched(bits, tmp_path):
    config = LlamaConfig(
        vocab_size=31, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantised, device_map=CPU)
    model.eval().model.tower = nn.ModuleList()
    assert "Linear" + ("4bit" if bits == 4 else "8bitLt") in {type(one).__name__ for one in model.modules()}
    plain = model(input_ids=IDS).logits
    with AttentionExtractor(model, family=FAMILY) as seen:
        assert torch.equal(model(input_ids=IDS).logits, plain)
    model.set_attn_implementation("eager")
    for name, rows in zip(NAMES, model(input_ids=IDS, output_attentions=True).attentions, strict=True):
        np.testing.assert_allclose(seen.attention_weights[name], rows.float().numpy(), atol=0.02)


DEEPSPEED = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
import deepspeed, numpy as np, torch, torch.distributed as dist
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from diagnostics import AttentionExtractor
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
adam = {{"type": "Adam", "params": {{"lr": 0.001, "torch_adam": True}}}}
with torch.no_grad():
    rows = tiny_llama("eager")(input_ids=IDS, output_attentions=True).attentions
options = {{"train_micro_batch_size_per_gpu": 2, "optimizer": adam, "zero_optimization": {{"stage": 3}}}}
engine = deepspeed.initialize(model=tiny_llama(), config=options | {{"zero_force_ds_cpu_optimizer": False}})[0]
with AttentionExtractor(engine, family=FAMILY) as seen:
    engine.backward(engine(input_ids=IDS, labels=IDS).loss)
    engine.step()
for at, expected in enumerate(rows):
    np.testing.assert_allclose(seen.attention_weights[f"layer_{{at}}"], expected.numpy(), atol=1e-5)
print("watched under ZeRO-3")
"""


def test_a_deepspeed_engine_is_watched():
    here = Path(__file__).parents[1]
    built = here.parent.parent / ".venv" / "torch_extensions"
    place = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    place |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(built)}
    code = DEEPSPEED.format(root=str(here.parent.parent), here=str(here))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **place}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "watched under ZeRO-3" in done.stdout


@torch.no_grad()
def test_a_copy_of_a_model_watched_through_a_wrapper_is_clean():
    model = DataParallel(tiny_llama())
    with AttentionExtractor(model, family=FAMILY):
        other = copy.deepcopy(model)
        with AttentionExtractor(other, family=FAMILY) as seen:
            other(input_ids=IDS)
    assert [*seen.attention_weights] == NAMES
