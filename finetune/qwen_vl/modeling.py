"""Qwen-VL for current transformers: parameter names and outputs of the 2023 model, no remote code."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.import_utils import is_tracing

from finetune.qwen_vl.configuration import QwenVLConfig
from finetune.qwen_vl.visual import (
    CrossAttention,
    Resampler,
    VisionTransformer,
    attention_function,
    sincos_table,
    with_grad_for_checkpoints,
)
from finetune.sharding import is_zero3

BoolRows = Bool[Tensor, "batch tokens"]
_OF_THE_LOSS = ("num_items_in_batch", "shift_labels")


def ntk_alpha(length: int, seq_length: int) -> int:
    """The dynamic NTK factor of a call of ``length`` tokens: 1 up to seq_length, then 3, 7, 15, … per doubling."""
    alpha, reach = 1, seq_length
    while length > reach:  # integer arithmetic, so that graphs with a dynamic length can be exported
        alpha, reach = 2 * alpha + 1, 2 * reach
    return alpha


def rotary_angles(
    positions: Int[Tensor, "batch tokens"], config: QwenVLConfig, alpha: int
) -> tuple[Float[Tensor, "batch 1 tokens width"], Float[Tensor, "batch 1 tokens width"]]:
    """Cosine and sine of the rotary embedding, fp32.

    Computed in each call without a cache: in the original, the factor of the cached table leaked from evaluation into
    training.
    """
    width = config.kv_channels
    base = config.rotary_emb_base * alpha ** (width / (width - 2))
    exponents = torch.arange(0, width, 2, device=positions.device).float() / width
    angles = positions[..., None].float() * (1.0 / (base**exponents))
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "batch heads tokens width"], cosine: Tensor, sine: Tensor
) -> Float[Tensor, "batch heads tokens width"]:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * cosine + turned * sine).type_as(x)


def logn_scale(positions: Int[Tensor, "batch tokens"], seq_length: int) -> Float[Tensor, "batch 1 tokens 1"]:
    """log_seq_length(position + 1), at least 1: sharpens queries beyond the trained length."""
    return (torch.log(positions.float() + 1) / math.log(seq_length)).clamp(min=1.0)[:, None, :, None]


class QwenVLRMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.epsilon)).type_as(x) * self.weight


class QwenVLAttention(nn.Module):
    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: QwenVLConfig, layer_index: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_index
        self.head_dim = config.kv_channels
        self.scaling = config.kv_channels**-0.5 if config.scale_attn_weights else 1.0
        width = config.kv_channels * config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=not config.no_bias)

    def forward(
        self,
        x: Float[Tensor, "batch tokens hidden"],
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        logn: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        query, key, value = (
            part.unflatten(-1, (self.config.num_attention_heads, self.head_dim)).transpose(1, 2)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        if logn is not None:
            query = query * logn.to(query.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        out, weights = attention_function(self.config)(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attn_dropout_prob if self.training else 0.0,
            **kwargs,
        )
        return self.c_proj(out.flatten(-2)), weights


class QwenVLMLP(nn.Module):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        hidden, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, hidden, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, hidden, bias=bias)
        self.c_proj = nn.Linear(hidden, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))  # w2 is the gate


class QwenVLBlock(GradientCheckpointingLayer):
    def __init__(self, config: QwenVLConfig, layer_index: int) -> None:
        super().__init__()
        self.ln_1 = QwenVLRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QwenVLAttention(config, layer_index)
        self.ln_2 = QwenVLRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QwenVLMLP(config)

    def forward(self, x: Float[Tensor, "batch tokens hidden"], **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attn(self.ln_1(x), **kwargs)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), weights


class QwenVLPreTrainedModel(PreTrainedModel):
    config_class = QwenVLConfig
    base_model_prefix = "transformer"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["QwenVLBlock", "VisionBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers guesses from this file's source; our kernels are in visual.py

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, QwenVLRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, CrossAttention):
            init.normal_(module.in_proj_weight, std=std)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, Resampler):
            n_queries, width = module.pos_embed.shape
            init.copy_(module.pos_embed, sincos_table(width, int(n_queries**0.5)))
            init.normal_(module.query, std=std)
        elif isinstance(module, VisionTransformer):
            width = module.positional_embedding.shape[1]
            init.normal_(module.positional_embedding, std=width**-0.5)
            init.normal_(module.proj, std=module.proj.shape[0] ** -0.5)


class QwenVLModel(QwenVLPreTrainedModel):
    """Everything but the language head: word embeddings, vision tower, resampler and language layers."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QwenVLBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = QwenVLRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTransformer(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    def image_slots(self, image_starts: BoolRows, image_ends: BoolRows, n_images: int) -> BoolRows:
        """Positions of image features: the n_queries tokens between an ``<img>`` and its closing ``</img>``.

        An unclosed ``<img>`` is not an image: a model may generate one. But where there are more images than closed
        ones, one may end with its row: a prompt can be read up to there, and go on from the cache. No control flow
        depends on the tokens in a graph that is exported or compiled; there the checks are skipped.

        Raises ValueError if ``<img>`` tokens and images differ in number, or if a run of slots is cut.
        """
        assert self.config.visual is not None
        n_queries = self.config.visual["n_queries"]
        closed = torch.zeros_like(image_starts)
        closed[:, : -n_queries - 1] = image_starts[:, : -n_queries - 1] & image_ends[:, n_queries + 1 :]
        if not is_tracing():
            if int(closed.sum()) < n_images and closed.shape[1] > n_queries:
                closed[:, -n_queries - 1] |= image_starts[:, -n_queries - 1]
            self._check_images(image_starts, closed, n_images)
        length, images_before = closed.shape[1], closed.cumsum(-1)
        opened, passed = (F.pad(images_before, (by, 0))[:, :length] for by in (1, n_queries + 1))
        return opened > passed

    def _check_images(self, starts: BoolRows, closed: BoolRows, n_images: int) -> None:
        assert self.config.visual is not None
        start_id, n_queries = self.config.visual["image_start_id"], self.config.visual["n_queries"]
        if int(closed.sum()) == n_images:
            return
        if int(starts.sum()) == n_images:
            row, column = (starts & ~closed).nonzero()[0].tolist()
            raise ValueError(
                f"input_ids[{row}]: the image at token {column} is cut: expected </img> (id {start_id + 1}) "
                f"{n_queries + 1} tokens after <img>; a sequence must never be truncated inside an image"
            )
        raise ValueError(
            f"input_ids hold {int(starts.sum())} <img> tokens (id {start_id}) and pixel_values {n_images} images; "
            "expected one image for each <img>, in the order of the batch"
        )

    def image_marks(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None
    ) -> tuple[BoolRows, BoolRows]:
        """Positions of ``<img>`` and ``</img>``; in embeddings they are found by comparison with the two tokens'."""
        assert self.config.visual is not None
        start_id = self.config.visual["image_start_id"]
        if input_ids is not None:
            return input_ids == start_id, input_ids == start_id + 1
        assert inputs_embeds is not None
        ids = torch.tensor([start_id, start_id + 1], device=inputs_embeds.device)
        start, end = self.wte(ids).to(inputs_embeds.dtype)
        return (inputs_embeds == start).all(-1), (inputs_embeds == end).all(-1)

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        patch_states: Tensor | None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        embeddings = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        pictures = pixel_values if patch_states is None else patch_states
        n_images = 0 if pictures is None else pictures.shape[0]  # len() would make it a constant in a graph
        if pictures is not None and n_images:
            slots = self.image_slots(*self.image_marks(input_ids, inputs_embeds), n_images)
            features = self.visual(pictures) if patch_states is None else self.visual.tokens(pictures)
            features = features.to(embeddings.dtype)
            # Out of place: under LoRA the embeddings are a leaf that requires grad.
            return embeddings.masked_scatter(slots[..., None], features)
        if input_ids is not None and self._may_hold_images(input_ids):
            self.image_slots(*self.image_marks(input_ids, None), 0)
        if self._eye_must_run():
            size = self.visual.image_size
            blank = torch.zeros(1, 3, size, size, device=embeddings.device, dtype=embeddings.dtype)
            return embeddings + 0.0 * self.visual(blank).sum().to(embeddings.dtype)
        return embeddings

    def _may_hold_images(self, input_ids: Tensor) -> bool:
        """False for a decoding step, too short for a whole image: searching would synchronise the GPU at each token."""
        assert self.config.visual is not None
        return not is_tracing() and input_ids.shape[1] > self.config.visual["n_queries"] + 1

    def _eye_must_run(self) -> bool:
        """Whether a batch without images must still run the vision tower, so that all its trained parameters take part.

        Otherwise ranks with and without images wait for different gradients (ZeRO, DDP) and, under ZeRO-3, which
        gathers weights on use, for different weights.
        """
        parameters = self.visual.parameters()
        return self.training and any(p.requires_grad or is_zero3(p) for p in parameters)

    def _ntk_alpha(self, length: int, past: int | Tensor, cache: Cache | None) -> int:
        """The NTK factor: 1 in training; without a past, from the length of the call (of its longest sample in a packed
        row); decoding keeps the prompt's factor.

        The factor is stored in the cache, not in the model, so that earlier generations cannot affect later ones.
        """
        if self.training or not self.config.use_dynamic_ntk:
            return 1
        kept: int | None = getattr(cache, "qwen_vl_ntk_alpha", None)
        if isinstance(past, Tensor):
            # A static cache counts its length on the device. A single token is a decoding step, not worth a
            # synchronisation; more are a prompt, a new turn, or an assistant model's guesses.
            empty = length > 1 and (kept is None if is_tracing() else int(past) == 0)
        else:
            empty = past == 0
        if empty:
            kept = ntk_alpha(length, self.config.seq_length)
            if cache is not None:
                cache.qwen_vl_ntk_alpha = kept  # type: ignore[attr-defined]
        return 1 if kept is None else kept  # a cache from elsewhere: 1, as in the original

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch tokens"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch tokens hidden"] | None = None,
        pixel_values: Float[Tensor, "images 3 height width"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        patch_states: Float[Tensor, "images patches vision_width"] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        if pixel_values is not None and patch_states is not None:
            raise ValueError("expected at most one of pixel_values and patch_states")
        inputs_embeds = self._embed(input_ids, inputs_embeds, pixel_values, patch_states)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past: int | Tensor = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = inputs_embeds.shape[1]
        reach = length
        if (
            position_ids is not None
            and attention_mask is None
            and not self.training
            and self._stretches(length)
        ):
            reach = int(position_ids.max()) + 1  # packed samples: the longest counts
        # Flash kernels get no mask and separate packed samples by their positions.
        kwargs["position_ids"] = position_ids
        if position_ids is None:
            position_ids = (torch.arange(length, device=inputs_embeds.device) + past)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = rotary_angles(position_ids, self.config, self._ntk_alpha(reach, past, past_key_values))
        logn = None
        if self.config.use_logn_attn and not self.training:
            logn = logn_scale(position_ids, self.config.seq_length)

        output_hidden_states = self._option("output_hidden_states", output_hidden_states)
        output_attentions = self._option("output_attentions", output_attentions)
        x = with_grad_for_checkpoints(self.drop(inputs_embeds), self.h)
        states, attentions = [x], []
        for block in self.h:
            x, weights = block(
                x, attention_mask=mask, rotary=rotary, logn=logn, past_key_values=past_key_values, **kwargs
            )
            if output_hidden_states:
                states.append(x)
            if output_attentions:
                attentions.append(self._weights_or_explain(weights))
        x = self.ln_f(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _stretches(self, length: int) -> bool:
        """Whether a row is long enough for its rotary angles to depend on the lengths of its samples."""
        return self.config.use_dynamic_ntk and length > self.config.seq_length

    def _option(self, name: str, value: bool | None) -> bool:
        return bool(getattr(self.config, name, False) if value is None else value)

    def _weights_or_explain(self, weights: Tensor | None) -> Tensor:
        if weights is None:
            raise ValueError(
                f"output_attentions=True: found attention implementation {self.config._attn_implementation!r}, "
                "which never forms the weights; use diagnostics.AttentionExtractor (exact rows, any kernel) "
                "or attn_implementation='eager'"
            )
        return weights


class QwenVLForConditionalGeneration(QwenVLPreTrainedModel, GenerationMixin):
    """Qwen-VL with its language head. Loads published checkpoints (853 tensors) unchanged."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # with tie_word_embeddings

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.transformer = QwenVLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch tokens"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch tokens hidden"] | None = None,
        pixel_values: Float[Tensor, "images 3 height width"] | None = None,
        labels: Int[Tensor, "batch tokens"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        patch_states: Float[Tensor, "images patches vision_width"] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, tokens, vocabulary], and with ``labels`` (-100 = not trained on) the loss in nats a token.

        ``shift_labels`` (each token's successor) take precedence over ``labels``.

        An image in ``input_ids`` is ``<img>`` + n_queries slots + ``</img>``; the vision tower's features of
        ``pixel_values`` replace the slots, whatever their ids, in the order of the images in the batch. What the tower
        has made of them (``patch_states``) may be given in their place.

        Raises ValueError if an image is cut, or if ``<img>`` tokens and images differ in number.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            patch_states=patch_states,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **{key: value for key, value in kwargs.items() if key not in _OF_THE_LOSS},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(
                logits=logits,
                labels=None if labels is None else labels.long(),
                vocab_size=self.config.vocab_size,
                **{key: kwargs[key] for key in _OF_THE_LOSS if key in kwargs},
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Passes images with the prompt; a prompt that continues from a cache passes only its new ones."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            **kwargs,
        )
        new = inputs.get("input_ids")
        if pixel_values is None or new is None:
            return inputs
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if isinstance(past, int) and past == 0 and inputs_embeds is None:
            return {
                **inputs,
                "pixel_values": pixel_values,
            }  # also the prompt of an assistant model, which looks like decoding
        counts = self._images_by_row(input_ids, None) if kwargs.get("is_first_iteration") else []
        if sum(counts) == len(pixel_values):
            added = self._images_by_row(new, None)
            rows = zip(pixel_values.split(counts), added, strict=True)
            kept = torch.cat([pictures[len(pictures) - count :] for pictures, count in rows])
            inputs["pixel_values"] = kept if len(kept) else None
        return inputs

    def _images_by_row(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> list[int]:
        assert self.config.visual is not None
        starts, ends = self.transformer.image_marks(input_ids, inputs_embeds)
        run = self.config.visual["n_queries"] + 1
        return (starts[:, :-run] & ends[:, run:]).sum(-1).tolist()

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """For beams and several answers to a prompt: repeats each row's images, in order."""
        pixel_values, embeds = kwargs.pop("pixel_values", None), kwargs.get("inputs_embeds")
        if pixel_values is not None and expand_size > 1:
            counts = self._images_by_row(input_ids if embeds is None else None, embeds)
            if sum(counts) == len(pixel_values):  # otherwise forward raises the error
                rows = [row for row in pixel_values.split(counts) for _ in range(expand_size)]
                pixel_values = torch.cat(rows)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs if pixel_values is None else {**kwargs, "pixel_values": pixel_values}


AutoModel.register(QwenVLConfig, QwenVLModel, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
