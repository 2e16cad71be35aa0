"""Shapes of published models, as their configurations give them: only what decides modules and their sizes.

``PUBLISHED`` are totals that others report of the published weights: the sum of the tensors' sizes in the checkpoint's
own header, or of the parameters of the loaded model. ``COUNTED`` are ours alone, of the shapes below.
"""

from typing import Any, NamedTuple

PUBLISHED, COUNTED = "published", "counted"


class Shape(NamedTuple):
    """A configuration, the parameters of its model, and what attends.

    language   layers, heads, key heads, width of the first language layer that has an attention map
    vision     layers, heads, width
    """

    config: dict[str, Any]
    parameters: int
    told: str
    language: tuple[int, int, int, int]
    vision: tuple[int, int, int]


QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
IDEFICS_SO400M = {**SIGLIP_SO400M, "model_type": "idefics3_vision"}
QWEN3_TOWER = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
    "spatial_merge_size": 2, "num_position_embeddings": 2304,
}  # fmt: skip
DEEP_STACK = {"deepstack_visual_indexes": [8, 16, 24]}

SHAPES = {
    "LLaVA-1.5-7B": Shape(
        {
            "model_type": "llava",
            "text_config": {
                "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            },
        }, 7_063_427_072, PUBLISHED, (32, 32, 32, 128), (24, 16, 64)),
    "LLaVA-NeXT-Mistral-7B": Shape(
        {
            "model_type": "llava_next", "tie_word_embeddings": False,
            "text_config": {
                "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32064,
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            },
        }, 7_566_747_648, COUNTED, (32, 32, 8, 128), (24, 16, 64)),
    "LLaVA-OneVision-Qwen2-7B": Shape(
        {
            "model_type": "llava_onevision",
            "vision_aspect_ratio": "anyres_max_9",
            "image_grid_pinpoints": [[384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)],
            "text_config": {**QWEN2_7B, "vocab_size": 152064},
            "vision_config": {**SIGLIP_SO400M, "num_hidden_layers": 26, "image_size": 384},
        }, 8_030_348_832, COUNTED, (28, 28, 4, 128), (26, 16, 72)),
    "InternVL3-8B": Shape(
        {
            "model_type": "internvl", "tie_word_embeddings": False,
            "text_config": {**QWEN2_7B, "vocab_size": 151674},
            "vision_config": {
                "model_type": "internvl_vision", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14],
                "attention_bias": True,
            },
        }, 7_944_373_760, PUBLISHED, (28, 28, 4, 128), (24, 16, 64)),
    "Gemma-3-4B": Shape(
        {
            "model_type": "gemma3", "mm_tokens_per_image": 256,
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
                "sliding_window": 1024,
            },
            "vision_config": {**SIGLIP_SO400M, "image_size": 896},
        }, 4_300_079_472, PUBLISHED, (34, 8, 4, 256), (27, 16, 72)),
    "Idefics3-8B": Shape(
        {
            "model_type": "idefics3", "scale_factor": 2,
            "text_config": {**LLAMA_8B, "vocab_size": 128259},
            "vision_config": {**IDEFICS_SO400M, "image_size": 364},
        }, 8_462_086_384, COUNTED, (32, 32, 8, 128), (27, 16, 72)),
    "SmolVLM-Instruct": Shape(
        {
            "model_type": "idefics3", "scale_factor": 3,
            "text_config": {
                "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
                "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49155,
            },
            "vision_config": {**IDEFICS_SO400M, "image_size": 384},
        }, 2_246_272_880, PUBLISHED, (24, 32, 32, 64), (27, 16, 72)),
    "SmolVLM2-500M": Shape(
        {
            "model_type": "smolvlm", "scale_factor": 4,
            "text_config": {
                "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
                "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
            },
            "vision_config": {
                "model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072,
                "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
            },
        }, 507_482_304, PUBLISHED, (32, 15, 5, 64), (12, 12, 64)),
    "PaliGemma-3B-224": Shape(
        {
            "model_type": "paligemma", "projection_dim": 2048,
            "text_config": {
                "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
                "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216,
            },
            "vision_config": {**SIGLIP_SO400M, "image_size": 224, "projection_dim": 2048},
        }, 2_923_466_480, PUBLISHED, (18, 8, 1, 256), (27, 16, 72)),
    "PaliGemma2-3B-224": Shape(
        {
            "model_type": "paligemma", "projection_dim": 2304,
            "text_config": {
                "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
                "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 257216,
            },
            "vision_config": {**SIGLIP_SO400M, "image_size": 224, "projection_dim": 2304},
        }, 3_032_242_416, PUBLISHED, (26, 8, 4, 256), (27, 16, 72)),
    "Qwen2-VL-7B": Shape(
        {
            "model_type": "qwen2_vl",
            "text_config": {**QWEN2_7B, "model_type": "qwen2_vl_text", "vocab_size": 152064},
            "vision_config": {
                "depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584,
                "patch_size": 14, "spatial_merge_size": 2,
            },
        }, 8_291_375_616, PUBLISHED, (28, 28, 4, 128), (32, 16, 80)),
    "Qwen2.5-VL-7B": Shape(
        {
            "model_type": "qwen2_5_vl",
            "text_config": {**QWEN2_7B, "model_type": "qwen2_5_vl_text", "vocab_size": 152064},
            "vision_config": {
                "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
                "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        }, 8_292_166_656, PUBLISHED, (28, 28, 4, 128), (32, 16, 80)),
    "Qwen3-VL-8B": Shape(
        {
            "model_type": "qwen3_vl",
            "text_config": {
                "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288,
                "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                "vocab_size": 151936,
            },
            "vision_config": {**QWEN3_TOWER, **DEEP_STACK, "out_hidden_size": 4096},
        }, 8_767_123_696, PUBLISHED, (36, 32, 8, 128), (27, 16, 72)),
    "Qwen3-VL-30B-A3B": Shape(
        {
            "model_type": "qwen3_vl_moe",
            "text_config": {
                "model_type": "qwen3_vl_moe_text", "hidden_size": 2048, "intermediate_size": 6144,
                "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
                "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
            },
            "vision_config": {**QWEN3_TOWER, **DEEP_STACK, "out_hidden_size": 2048},
        }, 31_070_754_032, PUBLISHED, (48, 32, 4, 128), (27, 16, 72)),
    # As they are loaded: the checkpoint holds 243,290,624 more, and that of the mixture 844,640,768, in a layer that
    # predicts further tokens and is left out.
    "Qwen3.5-9B": Shape(
        {
            "model_type": "qwen3_5",
            "text_config": {
                "model_type": "qwen3_5_text", "hidden_size": 4096, "intermediate_size": 12288,
                "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
                "vocab_size": 248320, "full_attention_interval": 4, "linear_num_key_heads": 16,
                "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            },
            "vision_config": {**QWEN3_TOWER, "out_hidden_size": 4096},
        }, 9_409_813_744, PUBLISHED, (32, 16, 4, 256), (27, 16, 72)),
    "Qwen3.5-35B-A3B": Shape(
        {
            "model_type": "qwen3_5_moe",
            "text_config": {
                "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8,
                "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
                "vocab_size": 248320, "full_attention_interval": 4, "linear_num_key_heads": 16,
                "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            },
            "vision_config": {**QWEN3_TOWER, "out_hidden_size": 2048},
        }, 35_951_822_704 - 844_640_768, PUBLISHED, (40, 16, 2, 256), (27, 16, 72)),
}  # fmt: skip
