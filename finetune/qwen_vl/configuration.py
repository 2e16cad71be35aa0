"""QwenVLConfig: reads the configuration of published Qwen-VL checkpoints unchanged."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from finetune import fields
from finetune.fields import OBJECT, TRUTH, number, whole

PUBLISHED_VISUAL: dict[str, Any] = {
    "heads": 16,
    "image_size": 448,
    "image_start_id": 151857,
    "layers": 48,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}
PUBLISHED_N_QUERIES = 256  # the default in published configurations, which omit n_queries

_SIZE = whole(1, 2**27)
SHAPE: fields.Shape = {
    **dict.fromkeys(("vocab_size", "hidden_size", "kv_channels"), _SIZE),
    **dict.fromkeys(("max_position_embeddings", "seq_length"), whole(1, 2**40)),
    **dict.fromkeys(("emb_dropout_prob", "attn_dropout_prob", "layer_norm_epsilon"), number(0, 1)),
    **dict.fromkeys(
        (
            "no_bias",
            "use_dynamic_ntk",
            "use_logn_attn",
            "use_cache",
            "scale_attn_weights",
            "tie_word_embeddings",
        ),
        TRUTH,
    ),
    "intermediate_size": whole(2, 2**27),
    "num_hidden_layers": whole(1, 2_000),
    "num_attention_heads": whole(1, 2**17),
    "initializer_range": number(0),
    "rotary_pct": number(0, 1),
    "rotary_emb_base": number(0, above=True),
    "visual": OBJECT,
}
VISUAL_SHAPE: fields.Shape = {
    **dict.fromkeys(("width", "output_dim", "n_queries"), _SIZE),
    **dict.fromkeys(("image_size", "patch_size"), whole(1, 2**15)),
    "heads": whole(1, 2**17),
    "layers": whole(1, 2_000),
    "mlp_ratio": number(0, 1_000, above=True),
    "image_start_id": whole(0, 2**40),
}
"""Valid ranges of the fields: far beyond the published model, but small enough to finish."""


class QwenVLConfig(PreTrainedConfig):
    """Qwen-VL (arXiv 2308.12966): a ViT, a one-layer resampler and the Qwen-7B language model.

    ``visual`` keeps the shape of the published dictionary: ``heads image_size image_start_id layers mlp_ratio
    output_dim patch_size width``, and ``n_queries`` (256 if omitted). ``image_start_id`` is the id
    of ``<img>``; ``</img>`` and ``<imgpad>`` follow it.

    ``intermediate_size`` counts both branches of the gated MLP: each is half of it.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]
    auto_map: ClassVar[Mapping[str, str]] = MappingProxyType(
        {}
    )  # no remote code, but what a checkpoint names

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    max_position_embeddings: int = 8192
    seq_length: int = 2048
    emb_dropout_prob: float = 0.0
    attn_dropout_prob: float = 0.0
    layer_norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    no_bias: bool = True
    rotary_pct: float = 1.0
    rotary_emb_base: float = 10000
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    use_cache: bool = True
    scale_attn_weights: bool = True
    tie_word_embeddings: bool = False
    visual: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.visual is None:
            self.visual = dict(PUBLISHED_VISUAL)
        self._check_fields()
        self.visual = {"n_queries": PUBLISHED_N_QUERIES, **self.visual}
        super().__post_init__(**kwargs)
        self._check()

    def _check_fields(self) -> None:
        own = {name: getattr(self, name) for name in SHAPE}
        found = [
            *fields.faults(own, SHAPE),
            *fields.faults(self.visual, VISUAL_SHAPE, required=sorted(PUBLISHED_VISUAL), at="visual."),
        ]
        fields.refuse(found, "QwenVLConfig")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration file's dictionary; rejects a text-only Qwen.

        Qwen-7B and Qwen-VL share ``model_type: "qwen"``; only Qwen-VL has the ``visual`` dictionary.
        """
        if not isinstance(config_dict.get("visual"), dict):
            where = config_dict.get("_name_or_path") or "this configuration"
            raise ValueError(
                f"{where}: found model_type 'qwen' without a 'visual' dictionary: a text-only Qwen, "
                "without a vision tower. Expected a Qwen-VL checkpoint such as Qwen/Qwen-VL-Chat."
            )
        return super().from_dict(config_dict, **kwargs)

    def _check(self) -> None:
        assert self.visual is not None
        if self.visual["output_dim"] != self.hidden_size:
            raise ValueError(
                f"QwenVLConfig.visual['output_dim'] is {self.visual['output_dim']}, expected hidden_size "
                f"{self.hidden_size}: the resampler's output is written into the word embeddings"
            )
        for name, count in (("n_queries", self.visual["n_queries"]), ("patches", self.n_patches)):
            if int(count**0.5) ** 2 != count:
                raise ValueError(f"QwenVLConfig.visual: {name} is {count}, expected a square number")
        for whole_name, size, part_name, part in (
            ("visual['width']", self.visual["width"], "visual['heads']", self.visual["heads"]),
            ("intermediate_size", self.intermediate_size, "the two branches of the MLP,", 2),
            ("kv_channels", self.kv_channels, "the two halves that rotate,", 2),
        ):
            if size % part:
                raise ValueError(
                    f"QwenVLConfig.{whole_name} is {size}, expected a multiple of {part_name} {part}"
                )
        if self.visual["patch_size"] > self.visual["image_size"]:
            raise ValueError(
                f"QwenVLConfig.visual: patch_size is {self.visual['patch_size']}, expected at most image_size "
                f"{self.visual['image_size']}"
            )
        if self.rotary_pct != 1.0:
            raise ValueError(
                f"QwenVLConfig.rotary_pct is {self.rotary_pct}; Qwen-VL rotates whole heads (1.0)"
            )

    @property
    def image_token_id(self) -> int:
        """``<img>``, which trainers must not sample: it would stand for a missing picture."""
        assert self.visual is not None
        return self.visual["image_start_id"]

    @property
    def n_patches(self) -> int:
        """Number of patches of one image in the ViT."""
        assert self.visual is not None
        return (self.visual["image_size"] // self.visual["patch_size"]) ** 2


AutoConfig.register("qwen", QwenVLConfig, exist_ok=True)
