"""A tiny LLaMA, for tests independent of a family's code: grouped keys, and a model from transformers itself."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.families.base import ModulePaths

PATHS = ModulePaths(
    language=("model",),
    language_layers="model.layers",
    language_attention="self_attn",
    vision=(),
    vision_layers="model.tower",
    vision_attention="self_attn",
    connector=(),
    connector_attention=None,
)
FAMILY = SimpleNamespace(
    name="llama", paths=PATHS, attention_shape=lambda config, name: "any: all layers attend"
)
IDS = torch.tensor([[5, 6, 7, 8, 9, 3, 2], [1, 4, 4, 8, 1, 2, 6]])


def tiny_llama(kernel: str = "sdpa") -> LlamaForCausalLM:
    """Three layers, 4 heads over 2 key heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation=kernel, initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.model.tower = nn.ModuleList()
    return model
