"""A configuration as its file says it, read without transformers, whose classes need torch and seconds to import.

That is enough where the file says every value that shapes follow from, as transformers 5 saves it, and nothing that is
not known here. Any other file is transformers' to read: it knows what is left out, and what is wrong.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from finetune import fields
from finetune.fields import NULL, TEXT, TRUTH, Kind, items, number, one_of, whole

_SECTIONS = ("text_config", "vision_config")


def _integer(least: int, most: int) -> Kind:
    """Written without a point: transformers refuses 2.0."""
    kind = whole(least, most)
    return kind._replace(fits=lambda value: isinstance(value, int) and kind.fits(value))


def _fraction(most: float, *, above: bool = False) -> Kind:
    """From 0, or above it, and written with a point: transformers refuses 1."""
    kind = number(0, most, above=above)
    return kind._replace(fits=lambda value: isinstance(value, float) and kind.fits(value))


def _only(shape: fields.Shape, *, always: tuple[str, ...] = ()) -> Kind:
    """An object without other fields than these."""
    return Kind("", lambda value: _is_known(value, shape) and all(name in value for name in always))


def _is_known(section: Any, shape: fields.Shape) -> bool:
    return not any(fields.faults(section, shape)) and section.keys() <= shape.keys()


_SIZE, _FEW = _integer(1, 2**27), _integer(1, 2_000)
_ID = _integer(0, 2**40) | NULL
_POSITIVE = _fraction(2**40, above=True)
_ROPE = _only({
    "rope_type": one_of("default"), "rope_theta": _POSITIVE, "partial_rotary_factor": _fraction(1, above=True),
    "mrope_section": items(_FEW, 3), "mrope_interleaved": TRUTH,
}, always=("rope_type", "rope_theta"))  # fmt: skip
_AXIAL = _only({"rope_type": one_of("axial"), "rope_theta": _POSITIVE}, always=("rope_type", "rope_theta"))
_ROPE_BY_KIND = {"full_attention": _ROPE, "sliding_attention": _ROPE}

_COMMON: fields.Shape = {
    **dict.fromkeys(("model_type", "transformers_version", "_name_or_path"), TEXT),
    **dict.fromkeys(("dtype", "torch_dtype"), one_of("float32", "bfloat16", "float16", None)),
    "architectures": items(TEXT) | NULL,
    "eos_token_id": _ID | items(_integer(0, 2**40)),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), _ID),
    **dict.fromkeys(("hidden_act", "hidden_activation"), one_of("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu")),
    **dict.fromkeys(("initializer_range", "initializer_factor", "rms_norm_eps", "layer_norm_eps"), _fraction(1)),
    **dict.fromkeys(("attention_dropout", "hidden_dropout_prob", "projection_dropout"), _fraction(1)),
    **dict.fromkeys(("use_cache", "tie_word_embeddings", "attention_bias"), TRUTH),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "projection_dim"), _SIZE),
    **dict.fromkeys(("num_hidden_layers", "depth"), _FEW),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads"), _integer(1, 2**17)),
}  # fmt: skip
"""What any section may hold. A value that is rarely another (``one_of``) is another model's if it is."""

_TEXT: fields.Shape = {
    **_COMMON,
    **dict.fromkeys(("head_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), _SIZE),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), _integer(1, 2**17)),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), _integer(1, 2**17)),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), _SIZE),
    "linear_conv_kernel_dim": _FEW,
    **dict.fromkeys(("max_position_embeddings", "max_window_layers", "_sliding_window_pattern"), _integer(1, 2**40)),
    "sliding_window": _integer(1, 2**40) | NULL,
    "layer_types": items(one_of("full_attention", "sliding_attention", "linear_attention")),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), _fraction(2**20, above=True) | NULL),
    "query_pre_attn_scalar": _integer(1, 2**20),
    **dict.fromkeys(("mlp_bias", "use_bidirectional_attention"), TRUTH),
    **dict.fromkeys(("use_sliding_window", "output_router_logits"), one_of(False)),
    **dict.fromkeys(("decoder_sparse_step", "pretraining_tp"), one_of(1)),
    "mlp_only_layers": one_of([]),
    "router_aux_loss_coef": _fraction(1),
    "num_image_tokens": _SIZE,
    "rope_parameters": _ROPE | _only(_ROPE_BY_KIND, always=tuple(_ROPE_BY_KIND)),
}  # fmt: skip
_VISION: fields.Shape = {
    **_COMMON,
    **dict.fromkeys(("embed_dim", "out_hidden_size", "num_position_embeddings", "window_size"), _SIZE),
    **dict.fromkeys(("num_channels", "in_channels", "spatial_merge_size", "temporal_patch_size"), _integer(1, 64)),
    **dict.fromkeys(("image_size", "patch_size"), _integer(1, 2**15) | items(_integer(1, 2**15), 2)),
    "mlp_ratio": _integer(1, 1_000),
    **dict.fromkeys(("fullatt_block_indexes", "deepstack_visual_indexes"), items(_integer(0, 2_000))),
    "tokens_per_second": _integer(1, 1_000),
    **dict.fromkeys(("in_chans", "spatial_patch_size"), _FEW),  # published files have them, and no model reads them
    **dict.fromkeys(("use_mean_pooling", "use_qk_norm"), TRUTH),
    **dict.fromkeys(("vision_use_head", "use_mask_token"), one_of(False)),
    "use_absolute_position_embeddings": one_of(True),
    "norm_type": one_of("layer_norm"),
    "layer_scale_init_value": _fraction(2**20),
    "rope_parameters": _AXIAL,
}  # fmt: skip
_TOP_LEVEL: fields.Shape = {
    **_COMMON,
    **dict.fromkeys(
        (
            "image_token_id", "image_token_index", "video_token_id", "video_token_index", "vision_token_id",
            "vision_start_token_id", "vision_end_token_id", "boi_token_index", "eoi_token_index", "_pad_token_id",
        ), _integer(0, 2**40)),
    "multimodal_projector_bias": TRUTH,
    "projector_hidden_act": one_of("gelu"),
    "vision_feature_layer": _integer(-2_000, 2_000),
    "vision_feature_select_strategy": one_of("default", "full"),
    "vision_aspect_ratio": TEXT,
    "image_grid_pinpoints": items(items(_integer(1, 2**15), 2)),
    "downsample_ratio": _fraction(1, above=True),
    **dict.fromkeys(("image_seq_length", "mm_tokens_per_image", "scale_factor"), _SIZE),
}  # fmt: skip
_QWEN_VL_VISUAL: fields.Shape = {
    **dict.fromkeys(("width", "output_dim", "n_queries"), _SIZE),
    **dict.fromkeys(("image_size", "patch_size"), _integer(1, 2**15)),
    **dict.fromkeys(("heads", "layers"), _FEW),
    "mlp_ratio": number(0, 1_000, above=True),
    "image_start_id": _integer(0, 2**40),
}  # fmt: skip
_QWEN_VL: fields.Shape = {
    **{name: kind for name, kind in _COMMON.items() if name != "attention_bias"},
    **dict.fromkeys(("kv_channels", "max_position_embeddings", "seq_length"), _SIZE),
    **dict.fromkeys(("emb_dropout_prob", "attn_dropout_prob", "layer_norm_epsilon"), number(0, 1)),
    **dict.fromkeys(("no_bias", "use_dynamic_ntk", "use_logn_attn", "scale_attn_weights"), TRUTH),
    "rotary_emb_base": number(0, above=True),
    "rotary_pct": one_of(1.0),
    "visual": _only(_QWEN_VL_VISUAL, always=tuple(_QWEN_VL_VISUAL)),
}  # fmt: skip


class SavedConfig(SimpleNamespace):
    """A configuration with the attributes that transformers' class would have, as far as its file says them."""


def saved_config(content: Any) -> SavedConfig | None:
    """Of what a config.json holds; None where transformers has to read it.

    What shapes follow from may still be missing: then AttributeError tells it, where it is asked for.
    """
    if not isinstance(content, dict):
        return None
    if "visual" in content:
        return SavedConfig(**content) if _is_known(content, _QWEN_VL) else None
    text, vision = (content.get(name, {}) for name in _SECTIONS)
    whole_model = {name: value for name, value in content.items() if name not in _SECTIONS}
    shapes = ((whole_model, _TOP_LEVEL), (text, _TEXT), (vision, _VISION))
    if not all(_is_known(section, shape) for section, shape in shapes):
        return None
    return SavedConfig(**whole_model, text_config=SavedConfig(**text), vision_config=SavedConfig(**vision))
