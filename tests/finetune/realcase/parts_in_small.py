"""The parts of the real case in small: drawn cut-outs and photographs, a tiny DINOv2 as ONNX, a tiny language model."""

import zlib
from random import Random

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.realcase.assemble import Language
from finetune.realcase.scenes import Pictures

EXPORTED = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
            "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}  # fmt: skip
"""Names of transformers 5 → of the version that exported the published file."""
PATCH, TRAINED_SIDE, PIXELS, HEAD_WIDTH = 4, 5, 24, 8


def drawn_pictures() -> Pictures:
    """Ellipses in a colour of their own, of different shapes; photographs of noise, none of them square."""

    def cutout(path: str) -> Image.Image:
        rng = Random(path)
        picture = Image.new("RGBA", (rng.randint(30, 60), rng.randint(25, 50)), (0, 0, 0, 0))
        colour = tuple(rng.randint(0, 255) for _ in range(3))
        ImageDraw.Draw(picture).ellipse((0, 0, picture.width - 1, picture.height - 1), fill=(*colour, 255))
        return picture

    def photograph(name: str) -> Image.Image:
        noise = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((640, 480))

    return Pictures(cutout, photograph)


def dinov2() -> Dinov2Model:
    torch.manual_seed(3)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=3, patch_size=PATCH,
        image_size=PATCH * TRAINED_SIDE, layerscale_value=0.7,
    )  # fmt: skip
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def as_onnx(model: Dinov2Model) -> bytes:
    """As torch exports it, as far as names and weights go: matrices transposed and nameless, positions in two parts."""
    weights, nodes = {}, []
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for now, exported in EXPORTED.items():
            name = name.replace(now, exported)
        if name == "embeddings.position_embeddings":
            weights |= {"onnx::Concat_1": array[:, :1], "onnx::Reshape_2": array[:, 1:]}
            nodes += [
                _node("/backbone/embeddings/Concat_1", "Concat", ["x", "y"]),
                _node("/backbone/embeddings/Reshape_1", "Reshape", ["onnx::Reshape_2", "x"]),
                _node("/backbone/embeddings/Concat_7", "Concat", ["onnx::Concat_1", "x"]),
            ]
        elif name.endswith("weight") and array.ndim == 2:
            nameless = f"onnx::MatMul_{len(weights) + 100}"
            weights[nameless] = array.T
            nodes.append(_node(f"/backbone/{name.removesuffix('.weight').replace('.', '/')}/MatMul", "MatMul",
                               ["x", nameless]))  # fmt: skip
        elif "mask_token" not in name:
            weights[f"backbone.{name}"] = array
    # The exporter writes "layer.0" with its dot.
    nodes = [node.replace(b"layer/", b"layer.") for node in nodes]
    graph = b"".join(_field(1, node) for node in nodes)
    graph += b"".join(_field(5, _tensor(name, array)) for name, array in weights.items())
    return _number(1, 8) + _field(7, graph)


def _varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_number(1, length) for length in array.shape)
    raw = np.ascontiguousarray(array, dtype="<f4").tobytes()
    return dims + _number(2, 1) + _field(8, name.encode()) + _field(9, raw)


def _node(name: str, operation: str, inputs: list[str]) -> bytes:
    given = b"".join(_field(1, one.encode()) for one in inputs)
    return given + _field(2, b"out") + _field(3, name.encode()) + _field(4, operation.encode())


def language(*, tied: bool = True) -> Language:
    """A Llama whose tokens are bytes."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=letters, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Language(LlamaForCausalLM(config).eval(), tokenizer)
