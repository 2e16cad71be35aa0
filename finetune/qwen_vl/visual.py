"""Qwen-VL's vision tower: a ViT over patches, and the resampler that reads them into a fixed number of tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune.qwen_vl.configuration import QwenVLConfig
from finetune.qwen_vl.fixed_sizes import N_POSITIONS, RESAMPLER_HEAD_WIDTH

LAYER_NORM_EPSILON = 1e-6


def eager_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads query head_width"],
    key: Float[Tensor, "batch heads key head_width"],
    value: Float[Tensor, "batch heads key head_width"],
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Float[Tensor, "batch query heads head_width"], Float[Tensor, "batch heads query key"]]:
    """Eager attention, which returns its weights; softmax in fp32."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attention_function(config: QwenVLConfig) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The kernel currently named in the configuration; capture replaces it there."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention)


def with_grad_for_checkpoints(x: Tensor, blocks: nn.ModuleList) -> Tensor:
    """``x``, requiring gradients if reentrant checkpoints need that: they give no gradients to a block's parameters if
    its input requires none, as in the first block after frozen layers."""
    needed = (
        torch.is_grad_enabled()
        and not x.requires_grad
        and any(getattr(block, "gradient_checkpointing", False) and block.training for block in blocks)
        and any(parameter.requires_grad for parameter in blocks.parameters())
    )
    return x.detach().requires_grad_() if needed else x


def resize_positions(table: Float[Tensor, "from width"], n_cells: int) -> Float[Tensor, "to width"]:
    """A square table of positions, bicubically resized to ``n_cells`` cells; unchanged if sizes agree."""
    source, target = int(table.shape[0] ** 0.5), int(n_cells**0.5)
    if source == target:
        return table
    grid = table.float().reshape(1, source, source, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


def sincos_table(width: int, side: int) -> Float[Tensor, "cells width"]:
    """The resampler's fixed 2-D position table: columns in the first half of the channels, rows in the second."""
    frequency = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float32) / (width / 4.0))
    column, row = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    angles = [axis.reshape(-1, 1) * frequency for axis in (column, row)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))


class VisionAttention(nn.Module):
    """Self-attention over patches. ``in_proj`` is interleaved per head: [q|k|v] of head 0, then of head 1, …"""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        assert config.visual is not None
        width = config.visual["width"]
        self.config = config
        self.n_heads = config.visual["heads"]
        self.scaling = (width // self.n_heads) ** -0.5
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "images patches width"]) -> Float[Tensor, "images patches width"]:
        images, patches, width = x.shape
        mixed = self.in_proj(x).view(images, patches, self.n_heads, 3 * width // self.n_heads)
        query, key, value = mixed.transpose(1, 2).chunk(3, dim=-1)
        out, _ = attention_function(self.config)(
            self, query, key, value, attention_mask=None, scaling=self.scaling, dropout=0.0
        )
        return self.out_proj(out.reshape(images, patches, width))


class VisionMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class VisionBlock(GradientCheckpointingLayer):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        assert config.visual is not None
        width = config.visual["width"]
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = VisionAttention(config)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = VisionMLP(width, int(width * config.visual["mlp_ratio"]))

    def forward(self, x: Float[Tensor, "images patches width"]) -> Float[Tensor, "images patches width"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisionStack(nn.Module):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        assert config.visual is not None
        self.resblocks = nn.ModuleList(VisionBlock(config) for _ in range(config.visual["layers"]))

    def forward(self, x: Tensor) -> Tensor:
        x = with_grad_for_checkpoints(x, self.resblocks)
        for block in self.resblocks:
            x = block(x)
        return x


class CrossAttention(nn.Module):
    """The resampler's attention; parameter names and layout ([Q; K; V]) are those of ``nn.MultiheadAttention``."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.n_heads = max(width // RESAMPLER_HEAD_WIDTH, 1)
        self.scaling = (width // self.n_heads) ** -0.5
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        query: Float[Tensor, "images queries width"],
        key: Float[Tensor, "images patches width"],
        value: Float[Tensor, "images patches width"],
    ) -> Float[Tensor, "images queries width"]:
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        out, _ = attention_function(self.config)(
            self, query, key, value, attention_mask=None, scaling=self.scaling, dropout=0.0
        )
        return self.out_proj(out.flatten(-2))


class Resampler(nn.Module):
    """One cross-attention: learned queries read the patches. Positions are added to q and k, never to v."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        assert config.visual is not None
        width, n_queries = config.hidden_size, config.visual["n_queries"]
        self.pos_embed = nn.Parameter(torch.empty(n_queries, width), requires_grad=False)
        self.query = nn.Parameter(torch.empty(n_queries, width))
        vision_width = config.visual["width"]
        self.kv_proj = nn.Identity() if vision_width == width else nn.Linear(vision_width, width, bias=False)
        self.attn = CrossAttention(config)
        self.ln_q = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.ln_kv = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    def forward(
        self, patches: Float[Tensor, "images patches vision_width"]
    ) -> Float[Tensor, "images queries width"]:
        value = self.ln_kv(self.kv_proj(patches))
        key = value + resize_positions(self.pos_embed, value.shape[1])
        query = (self.ln_q(self.query) + self.pos_embed).expand(value.shape[0], -1, -1)
        return self.attn(query, key, value)


class VisionTransformer(nn.Module):
    """Pixels → tokens of the language model: patches, ViT, resampler, norm and projection."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        assert config.visual is not None
        visual = config.visual
        self.image_size = visual["image_size"]
        self.conv1 = nn.Conv2d(3, visual["width"], visual["patch_size"], visual["patch_size"], bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(N_POSITIONS, visual["width"]))
        self.ln_pre = nn.LayerNorm(visual["width"], eps=LAYER_NORM_EPSILON)
        self.transformer = VisionStack(config)
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.proj = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))

    def forward(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images queries hidden"]:
        return self.tokens(self.patch_states(pixel_values))

    def patch_states(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images patches vision_width"]:
        """The tower alone. Raises ValueError for pictures of another size than the model's."""
        if pixel_values.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values: found shape {tuple(pixel_values.shape)}, "
                f"expected (images, 3, {self.image_size}, {self.image_size})"
            )
        x = self.conv1(pixel_values.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + resize_positions(self.positional_embedding, x.shape[1]))
        return self.transformer(x)

    def tokens(
        self, patch_states: Float[Tensor, "images patches vision_width"]
    ) -> Float[Tensor, "images queries hidden"]:
        """The connector alone: what the tower made of pictures → tokens of the language model."""
        return self.ln_post(self.attn_pool(patch_states)) @ self.proj
