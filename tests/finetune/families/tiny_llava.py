"""Tiny models and processors of the LLaVA family, from configurations: random weights, small vocabularies.

Templates are those that the checkpoints for transformers are published with; of their video parts only what is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from finetune.families import internvl, llava_onevision
from finetune.families.internvl import InternVLFamily
from finetune.families.llava import LlavaFamily
from finetune.families.llava_next import LlavaNextFamily
from finetune.families.llava_onevision import LlavaOnevisionFamily
from tests.finetune.families.tiny_families import LINE_BREAKS, Tiny, built

IMAGE, PAD = "<image>", "<pad>"
LLAVA_SIDE, LLAVA_PATCH = 20, 4
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llama_tokenizer() -> LlamaTokenizer:
    """Letters with and without the space before them, bytes for the rest: a sentence-piece vocabulary in small."""
    letters = [chr(code) for code in range(33, 127)]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    names += [f"▁{letter}" for letter in letters]
    tokenizer = LlamaTokenizer(
        vocab={name: at for at, name in enumerate(names)},
        merges=[("▁", letter) for letter in letters],
        add_bos_token=True,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE], "pad_token": PAD})
    return tokenizer


def clip_and_llama() -> tuple[CLIPVisionConfig, LlamaConfig]:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=LLAVA_SIDE,
        patch_size=LLAVA_PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(llama_tokenizer()), max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return vision, text


def llava() -> nn.Module:
    vision, text = clip_and_llama()
    image_token_id = llama_tokenizer().convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image_token_id, image_seq_length=25
    )
    return built(LlavaForConditionalGeneration, config)


def llava_processor(folder: Path) -> Any:
    size = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    pictures = LlavaImageProcessorPil(
        size={"shortest_edge": LLAVA_SIDE}, crop_size=size, do_pad=True, do_center_crop=False
    )
    return LlavaProcessor(
        pictures, llama_tokenizer(), patch_size=LLAVA_PATCH, vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip


# Tiles of 20 pixels, 5 × 5 patches of 4.
NEXT_SIDE = LLAVA_SIDE // LLAVA_PATCH
NEXT_PINPOINTS = [[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]]


def tiny_next() -> nn.Module:
    vision, text = clip_and_llama()
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_grid_pinpoints=NEXT_PINPOINTS, image_seq_length=25,
        image_token_index=llama_tokenizer().convert_tokens_to_ids(IMAGE),
    )  # fmt: skip
    return built(LlavaNextForConditionalGeneration, config)


def next_processor(folder: Path, tokenizer: Any = None, template: str = LLAVA_TEMPLATE) -> Any:
    size = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": LLAVA_SIDE}, crop_size=size, image_grid_pinpoints=NEXT_PINPOINTS
    )
    return LlavaNextProcessor(
        pictures, tokenizer or llama_tokenizer(), patch_size=LLAVA_PATCH, vision_feature_select_strategy="default",
        chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip


# Tiles of 18 pixels, 4 × 4 patches of 4: the last 2 pixels of a tile are in no patch.
TILE, TILE_PATCH, TILE_SIDE = 18, 4, 4
PINPOINTS = [[18, 18], [18, 36], [18, 54], [36, 18], [36, 36], [36, 54], [54, 18], [54, 36], [54, 54]]
MOST_TILES = 3
ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen_tokenizer(*control: str, named: dict[str, str] | None = None) -> Qwen2Tokenizer:
    """Every byte a token, then two line breaks in one, then the control tokens; ``named`` are attributes too."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab={**letters, LINE_BREAKS: len(letters)},
        merges=[("Ċ", "Ċ")],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        **({} if named is None else {"extra_special_tokens": named}),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *control]})
    return tokenizer


def qwen_text(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def pinpoints(tile: int) -> list[list[int]]:
    return [[side // TILE * tile for side in canvas] for canvas in PINPOINTS]


def tiny_onevision(tile: int = TILE) -> nn.Module:
    tokenizer = qwen_tokenizer(IMAGE, "<video>")
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=tile,
        patch_size=TILE_PATCH, vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=qwen_text(tokenizer), image_grid_pinpoints=pinpoints(tile),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"), vision_aspect_ratio=f"anyres_max_{MOST_TILES}",
    )  # fmt: skip
    return built(LlavaOnevisionForConditionalGeneration, config)


def onevision_processor(folder: Path, tile: int = TILE) -> Any:
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": tile, "width": tile}, image_grid_pinpoints=pinpoints(tile)
    )
    return llava_onevision.processor_class()(
        pictures, qwen_tokenizer(IMAGE, "<video>"), num_image_tokens=(tile // TILE_PATCH) ** 2,
        vision_feature_select_strategy="full", chat_template=ONEVISION_TEMPLATE,
        vision_aspect_ratio=f"anyres_max_{MOST_TILES}",
    )  # fmt: skip


# Tiles of 16 pixels, 4 × 4 patches of 4, 2 × 2 tokens.
INTERN_TILE, INTERN_SIDE, INTERN_MOST = 16, 2, 6
INTERN_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
INTERN_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def intern_tokenizer() -> Qwen2Tokenizer:
    return qwen_tokenizer("<ref>", "</ref>", "<box>", "</box>", named=INTERN_NAMED)


def tiny_internvl() -> nn.Module:
    """Norms of queries and keys in the tower and in the language model."""
    tokenizer = intern_tokenizer()
    vision = InternVLVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=INTERN_TILE,
        patch_size=4, use_qk_norm=True, layer_scale_init_value=1.0,
    )  # fmt: skip
    text = Qwen3Config(**{**qwen_text(tokenizer).to_diff_dict(), "model_type": "qwen3"}, head_dim=16)
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=INTERN_SIDE**2, tie_word_embeddings=False,
    )  # fmt: skip
    return built(InternVLForConditionalGeneration, config)


def internvl_processor(folder: Path) -> Any:
    pictures = GotOcr2ImageProcessorPil(
        size={"height": INTERN_TILE, "width": INTERN_TILE}, min_patches=1, max_patches=INTERN_MOST
    )
    return internvl.processor_class()(
        pictures, intern_tokenizer(), image_seq_length=INTERN_SIDE**2, chat_template=INTERN_TEMPLATE
    )


# 5 × 5 patches a tile, which pooling does not divide: 3 × 3 tokens of a frame. The last 2 pixels are in no patch.
ODD_TILE = 22

LLAVAS = {
    "llava-1.5": Tiny(LlavaFamily(), llava, llava_processor, tower_patches=25),
    "llava-next": Tiny(LlavaNextFamily(), tiny_next, next_processor, tower_patches=NEXT_SIDE**2),
    "llava-onevision": Tiny(
        LlavaOnevisionFamily(), tiny_onevision, onevision_processor, tower_patches=TILE_SIDE**2
    ),
    "internvl": Tiny(InternVLFamily(), tiny_internvl, internvl_processor, tower_patches=16),
}
ODD_ONEVISION = Tiny(
    LlavaOnevisionFamily(),
    lambda: tiny_onevision(ODD_TILE),
    lambda folder: onevision_processor(folder, ODD_TILE),
    tower_patches=(ODD_TILE // TILE_PATCH) ** 2,
)
