"""The small models and the samples of benchmarks/train_speed.py."""

import base64
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

# torch and transformers are imported where a model is written: the process that hands out turns needs neither.

ROOT = Path(__file__).parent.parent
SEED = 42


def write_data(folder: Path, samples: int) -> Path:
    """``samples`` conversations as messages with an image list, which every way reads, and their pictures.

    One sample in eight has no picture. Pictures have 0.02 to 0.2 megapixels and are never square; answers have 8 to
    400 characters, most of them short (both log-uniform).
    """
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draw = random.Random(SEED)
    records = []
    for i in range(samples):
        images = []
        if i % 8:
            pixels, shape = 10 ** draw.uniform(4.3, 5.3), draw.uniform(0.5, 0.9)
            size = round((pixels * shape) ** 0.5), round((pixels / shape) ** 0.5)
            noise = np.random.default_rng(i).integers(
                0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8
            )
            Image.fromarray(noise).resize(size).save(folder / f"{i}.jpg", quality=90)
            images = [f"{i}.jpg"]
        length = round(10 ** draw.uniform(0.9, 2.6))
        answer = "".join(draw.choice("abcdefghij klmnop qrstu") for _ in range(length)).strip() or "a"
        question = f"{'<image>' if images else ''}What is number {i}?"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        records.append({"messages": turns, "images": images})
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def write_qwen_vl(folder: Path, processor: Path | None) -> None:
    import torch

    from finetune.qwen_vl import (
        QwenVLConfig,
        QwenVLForConditionalGeneration,
        QwenVLImageProcessor,
        QwenVLProcessor,
        QwenVLTokenizer,
    )

    if processor is None:
        lines = [b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)]
        (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    else:
        (folder / "qwen.tiktoken").write_bytes((processor / "qwen.tiktoken").read_bytes())
    tokenizer = QwenVLTokenizer(str(folder / "qwen.tiktoken"), image_tokens=16)
    config = QwenVLConfig(
        vocab_size=4096 if processor is None else 151936,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        kv_channels=32,
        intermediate_size=768,
        visual={
            "heads": 4, "image_size": 112, "image_start_id": tokenizer.img_start_id, "layers": 2, "mlp_ratio": 4.0,
            "output_dim": 128, "patch_size": 14, "width": 64, "n_queries": 16,
        },
    )  # fmt: skip
    torch.manual_seed(SEED)
    QwenVLForConditionalGeneration(config).save_pretrained(folder)
    pictures = QwenVLImageProcessor(image_size=112, patch_size=14)
    QwenVLProcessor(pictures, tokenizer).save_pretrained(folder)


QWEN2_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_qwen2_5_vl(folder: Path, processor: Path | None) -> None:
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    if processor is None:
        ids = write_byte_processor(folder)
        vocabulary = 4096
    else:
        for file in processor.iterdir():
            if file.name != "config.json":
                (folder / file.name).write_bytes(file.read_bytes())
        settings = json.loads((processor / "tokenizer_config.json").read_text(encoding="utf-8"))
        ids = {token["content"]: int(number) for number, token in settings["added_tokens_decoder"].items()}
        vocabulary = 152064
    text = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": vocabulary, "max_position_embeddings": 8192,
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 14,
        "out_hidden_size": 128, "window_size": 112, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(SEED)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)


def write_byte_processor(folder: Path) -> dict[str, int]:
    """A tokenizer whose words are bytes, and the picture settings of the family; returns the special tokens' ids."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    ids = {token: 256 + i for i, token in enumerate(QWEN2_SPECIAL)}
    added = {str(number): {"content": token, "special": True} for token, number in ids.items()}
    files = {
        "vocab.json": vocabulary,
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": {
                number: {**token, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
                for number, token in added.items()
            },
            "additional_special_tokens": list(QWEN2_SPECIAL[1:]),
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "chat_template": CHATML,
        },
        "chat_template.json": {"chat_template": CHATML},
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return ids


LLAVA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""LLaMA-Factory puts it before every conversation of this family, so the model's own template does too."""
LLAVA_CHAT = (
    "{% if messages[0].role != 'system' %}"
    + LLAVA_SYSTEM.replace("'", "\\'").join(("{{ '", " ' }}"))
    + "{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}USER: "
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %} "
    "{% else %}ASSISTANT: {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LLAVA_SIDE, LLAVA_PATCH = 112, 14


def write_llava(folder: Path, processor: Path | None) -> None:
    """LLaVA-1.5's parts, 8 × 8 image tokens a picture; its words are letters."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from tests.finetune.families.tiny_llava import llama_tokenizer

    if processor is not None:
        raise ValueError("--processor: the small LLaVA has a tokenizer of its own; leave it out")
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = LLAVA_CHAT
    tokenizer.save_pretrained(folder)
    square = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    pictures = {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "do_center_crop": True,
        "crop_size": square, "size": {"shortest_edge": LLAVA_SIDE}, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "do_convert_rgb": True, "do_normalize": True,
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures), encoding="utf-8")
    how = {
        "processor_class": "LlavaProcessor", "patch_size": LLAVA_PATCH, "image_token": "<image>",
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(how), encoding="utf-8")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA_CHAT}), encoding="utf-8")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            image_size=LLAVA_SIDE, patch_size=LLAVA_PATCH,
        ),
        text_config=LlamaConfig(
            hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=4096, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
            tie_word_embeddings=False,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(LLAVA_SIDE // LLAVA_PATCH) ** 2,
    )  # fmt: skip
    torch.manual_seed(SEED)
    LlavaForConditionalGeneration(config).save_pretrained(folder)


WRITERS: dict[str, Callable[[Path, Path | None], None]] = {
    "qwen-vl": write_qwen_vl,
    "qwen2.5-vl": write_qwen2_5_vl,
    "llava": write_llava,
}


def write_model(folder: Path, name: str, processor: Path | None) -> Path:
    """A small random model with its processor: some 2 million parameters, hidden width 128, 4 layers."""
    sys.path.insert(0, str(ROOT))
    folder.mkdir()
    WRITERS[name](folder, processor)
    return folder
