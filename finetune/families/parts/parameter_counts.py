"""How many parameters parts of models have, by their configuration: decoders, towers and what lies between them.

Sums of what transformers' classes build, so that nothing needs to be built, nor torch be imported; tests compare them
with built models. What a configuration (``saved_config``) leaves out raises AttributeError, what is of no known kind
LookupError: then the model has to be built to be known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from finetune.families.base import ParameterCounts

LINEAR_ATTENTION = "linear_attention"


def linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """Of a linear layer, or a convolution that reads each of its inputs once."""
    return outputs * (inputs + bias)


def layer_norm(width: int) -> int:
    return 2 * width


def gated(width: int, inner: int, *, bias: bool) -> int:
    """Of a feed-forward with a gate (Shazeer 2020, arXiv 2002.05202)."""
    return linear(width, 2 * inner, bias=bias) + linear(inner, width, bias=bias)


def require(found: object, expected: object) -> None:
    """Raises LookupError where a setting is not the one that is counted here, or one that transformers refuses."""
    if found != expected:
        raise LookupError(f"found {found}, expected {expected}")


# ---------------------------------------------------------------------------------------------------------------------
# Decoders
# ---------------------------------------------------------------------------------------------------------------------


class _Decoder(NamedTuple):
    """What a kind of decoder has in each layer beside Llama's projections.

    qkv_bias      biases of queries, keys and values; None: as the configuration's ``attention_bias`` says of these
                  and the projection of the output
    head_dim      the configuration gives heads a width of their own: always (True), never (False) or perhaps (None)
    layer_types   it gives every layer a kind of attention
    norms         of the layer's width
    head_norms    of queries and keys, of a head's width
    gated         queries carry a gate of their own size
    """

    qkv_bias: bool | None = None
    head_dim: bool | None = True
    layer_types: bool = False
    norms: int = 2
    head_norms: bool = False
    gated: bool = False


_DECODERS = {
    "llama": _Decoder(head_dim=None),
    "mistral": _Decoder(qkv_bias=False, head_dim=None),
    **dict.fromkeys(("qwen2", "qwen2_vl_text", "qwen2_5_vl_text"), _Decoder(qkv_bias=True, head_dim=False)),
    **dict.fromkeys(("qwen3", "qwen3_vl_text", "qwen3_vl_moe_text"), _Decoder(head_norms=True)),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), _Decoder(head_norms=True, gated=True, layer_types=True)),
    "gemma": _Decoder(),
    "gemma2": _Decoder(norms=4, layer_types=True),
    "gemma3_text": _Decoder(norms=4, head_norms=True, layer_types=True),
}  # fmt: skip


def decoder(text: Any) -> int:
    """Of a language model without its output layer; ``text``: its configuration."""
    kind, width, layers = _DECODERS[text.model_type], text.hidden_size, text.num_hidden_layers
    require(width % text.num_attention_heads, 0)
    require(text.num_attention_heads % text.num_key_value_heads, 0)
    require(text.pad_token_id is None or text.pad_token_id < text.vocab_size, True)
    if kind.layer_types or "layer_types" in vars(text):
        require(len(text.layer_types), layers)
    linear_layers = _linear_layers(text)
    attention = linear_layers * _linear_attention(text) if linear_layers else 0
    attention += (layers - linear_layers) * _attention(text, kind)
    embedding, last_norm = text.vocab_size * width, width
    return embedding + attention + layers * (_feed_forward(text) + kind.norms * width) + last_norm


def _attention(text: Any, kind: _Decoder) -> int:
    if kind.head_dim is not None:
        require("head_dim" in vars(text), kind.head_dim)
    said = getattr(text, "head_dim", None)
    width, head = text.hidden_size, said or text.hidden_size // text.num_attention_heads
    require(int(head * text.rope_parameters.get("partial_rotary_factor", 1)) % 2, 0)  # halves rotate
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    bias = text.attention_bias if kind.qkv_bias is None else kind.qkv_bias
    output_bias = bias if kind.qkv_bias is None else False
    return (
        linear(width, queries * (2 if kind.gated else 1) + 2 * keys, bias=bias)
        + linear(queries, width, bias=output_bias)
        + (2 * head if kind.head_norms else 0)
    )


def _linear_layers(text: Any) -> int:
    if text.model_type not in ("qwen3_5_text", "qwen3_5_moe_text"):
        return 0
    return sum(kind == LINEAR_ATTENTION for kind in text.layer_types)


def _linear_attention(text: Any) -> int:
    """Gated delta rule (Yang et al. 2024, arXiv 2412.06464) as Qwen3.5 has it."""
    width, heads = text.hidden_size, text.linear_num_value_heads
    keys, values = text.linear_num_key_heads * text.linear_key_head_dim, heads * text.linear_value_head_dim
    mixed = 2 * keys + values
    return (
        linear(width, mixed + values + 2 * heads, bias=False)
        + mixed * text.linear_conv_kernel_dim
        + 2 * heads
        + text.linear_value_head_dim
        + linear(values, width, bias=False)
    )


def _feed_forward(text: Any) -> int:
    width = text.hidden_size
    if text.model_type not in ("qwen3_vl_moe_text", "qwen3_5_moe_text"):
        bias = text.mlp_bias if text.model_type == "llama" else False
        return gated(width, text.intermediate_size, bias=bias)
    # Published files call them num_experts, those that transformers 5 saves of Qwen3-VL num_local_experts.
    says = [name for name in ("num_experts", "num_local_experts") if name in vars(text)]
    require(len(says), 1)
    experts = getattr(text, says[0])
    router = linear(width, experts, bias=False)
    routed = experts * gated(width, text.moe_intermediate_size, bias=False) + router
    if text.model_type == "qwen3_vl_moe_text":
        require((text.decoder_sparse_step, text.mlp_only_layers), (1, []))
        return routed
    shared = gated(width, text.shared_expert_intermediate_size, bias=False) + linear(width, 1, bias=False)
    return routed + shared


# ---------------------------------------------------------------------------------------------------------------------
# Towers
# ---------------------------------------------------------------------------------------------------------------------


def clip_tower(vision: Any) -> int:
    """CLIP's (Radford et al. 2021, arXiv 2103.00020): a class token before the patches, a norm before the layers."""
    require(vision.model_type, "clip_vision_model")
    width, patches = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2
    stem = linear(_pixels(vision), width, bias=False) + width + (patches + 1) * width + layer_norm(width)
    return stem + vision.num_hidden_layers * _vit_layer(vision) + layer_norm(width)


def siglip_tower(vision: Any, model_type: str = "siglip_vision_model") -> int:
    """SigLIP's (Zhai et al. 2023, arXiv 2303.15343), and Idefics3's after it, without a pooling head."""
    require(vision.model_type, model_type)
    if model_type == "siglip_vision_model":
        require(vision.vision_use_head, False)
    width, patches = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2
    stem = linear(_pixels(vision), width) + patches * width
    return stem + vision.num_hidden_layers * _vit_layer(vision) + layer_norm(width)


def _vit_layer(vision: Any) -> int:
    width, inner = vision.hidden_size, vision.intermediate_size
    require(width % vision.num_attention_heads, 0)
    return 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 2 * layer_norm(width)


def _pixels(vision: Any) -> int:
    return vision.num_channels * vision.patch_size**2


def qwen_layer(vision: Any, width: int, feed_forward: int, norm: int) -> int:
    """Of one layer of Qwen's towers since Qwen2-VL; ``norm``: of one of its two norms."""
    require(width % vision.num_heads, 0)
    return linear(width, 3 * width) + linear(width, width) + feed_forward + 2 * norm


def qwen_merger(vision: Any, width: int, outputs: int) -> int:
    """Two linear layers that make one token of a square of patches, without their norm."""
    merged = width * vision.spatial_merge_size**2
    return linear(merged, merged) + linear(merged, outputs)


def qwen_pixels(vision: Any) -> int:
    """Numbers that a patch embedding of Qwen's towers reads: frames with their channels."""
    return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


# ---------------------------------------------------------------------------------------------------------------------
# Whole models
# ---------------------------------------------------------------------------------------------------------------------


def output_layer(config: Any) -> dict[str, int]:
    """By name, for the whole model's configuration: nothing where it is the embedding once more.

    The language model's own configuration must say the same, or nothing where its class has no such setting. That of
    Qwen3-VL-MoE is not asked.
    """
    text, tied = config.text_config, config.tie_word_embeddings
    if text.model_type in ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"):
        require(getattr(text, "tie_word_embeddings", tied), tied)
    elif text.model_type != "qwen3_vl_moe_text":
        require(text.tie_word_embeddings, tied)
    return {} if tied else {"lm_head": text.vocab_size * text.hidden_size}


def with_projector(config: Any, tower: int, projector: int) -> ParameterCounts:
    """Of a model in LLaVA's layout."""
    text, vision = config.text_config, config.vision_config
    parts = {
        "model.vision_tower": tower,
        "model.multi_modal_projector": projector,
        "model.language_model": decoder(text),
    }
    return ParameterCounts(parts | output_layer(config), text.num_hidden_layers, vision.num_hidden_layers)


def llava(config: Any, tower: int, *, newline: bool) -> ParameterCounts:
    """Of LLaVA and what follows it: a projector of two layers; ``newline``: a learned token that ends each row."""
    width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
    projector = linear(config.vision_config.hidden_size, width, bias=bias) + linear(width, width, bias=bias)
    found = with_projector(config, tower, projector)
    return found._replace(by_module={**found.by_module, "model.image_newline": width}) if newline else found
