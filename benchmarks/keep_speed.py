"""What does dropping image tokens save? Whole replies with all of them, beside replies with a share.

python benchmarks/keep_speed.py                                      this machine, a small model, fp32
python benchmarks/keep_speed.py --shape published --device cuda --dtype bfloat16

Prints one JSON object: medians of one process, taken in turns, as ratios to the reply with all image tokens. Weights
are random: what is said means nothing here, and how fast it is said does not depend on it.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.circumstances import circumstances
from diagnostics.pruning import keep_image_tokens
from finetune.families import Encoded, ImageTokens
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

SMALL = {
    "vocab_size": 4000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "kv_channels": 64,
    "intermediate_size": 2752,
    "visual": {
        "heads": 4, "image_size": 112, "image_start_id": 3000, "layers": 1, "mlp_ratio": 4.0, "output_dim": 512,
        "patch_size": 14, "width": 128, "n_queries": 576,
    },
}  # fmt: skip


class Turn(NamedTuple):
    """One reply: seconds to its first token and in all, and what its cache holds."""

    first_seconds: float
    seconds: float
    cache_bytes: int
    peak_gib: float


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    config = QwenVLConfig() if args.shape == "published" else QwenVLConfig(**SMALL)
    torch.set_default_dtype(getattr(torch, args.dtype))
    with torch.device(args.device):
        model = QwenVLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    encoded, inputs = prompt(config, args)
    ways = {"all": None} | {
        f"{by} {share:g}": (share, by) for by in ("divprune", "fastv") for share in args.shares
    }
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for turn in range(args.repeats + 1):
        for name, way in ways.items():
            found = reply(model, encoded, inputs, way, args)
            if turn:  # the first turn warms up
                turns[name].append(found)
    print(json.dumps(report(args, config, len(encoded.input_ids), turns), indent=1))


def prompt(config: QwenVLConfig, args: argparse.Namespace) -> tuple[Encoded, dict[str, torch.Tensor]]:
    """A picture and words about it."""
    assert config.visual is not None
    queries, start = config.visual.get("n_queries", 256), config.visual["image_start_id"]
    generator = np.random.default_rng(0)
    words = generator.integers(0, 1000, args.words)
    ids = np.concatenate([words[:4], [start], np.full(queries, start + 2), [start + 1], words[4:]])
    positions = np.arange(5, 5 + queries)
    size = config.visual["image_size"]
    side = size // config.visual["patch_size"]
    image = ImageTokens(
        positions, (side, side), np.zeros((side * side, 4)), (size, size), through_connector=True
    )
    pixels = torch.from_numpy(generator.normal(size=(1, 3, size, size)).astype(np.float32))
    inputs = {
        "input_ids": torch.from_numpy(ids)[None].to(args.device),
        "pixel_values": pixels.to(args.device, getattr(torch, args.dtype)),
    }
    return Encoded(ids, np.full(len(ids), -100), ((0, len(ids)),), (image,)), inputs


@torch.no_grad()
def reply(
    model: Any,
    encoded: Encoded,
    inputs: dict[str, torch.Tensor],
    way: tuple[float, str] | None,
    args: argparse.Namespace,
) -> Turn:
    def wait() -> None:
        if args.device == "cuda":
            torch.cuda.synchronize()

    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
    with nullcontext() if way is None else keep_image_tokens(model, encoded, share=way[0], by=way[1]):
        wait()
        start = time.perf_counter()
        model.generate(**inputs, **greedy, max_new_tokens=1)
        wait()
        first = time.perf_counter() - start
        start = time.perf_counter()
        found = model.generate(**inputs, **greedy, max_new_tokens=args.new_tokens)
        wait()
        seconds = time.perf_counter() - start
    assert found.sequences.shape[1] == len(encoded.input_ids) + args.new_tokens, "the reply has ended early"
    held = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in found.past_key_values.layers)
    peak = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0.0
    return Turn(first, seconds, held, peak)


def report(
    args: argparse.Namespace, config: QwenVLConfig, tokens: int, turns: dict[str, list[Turn]]
) -> dict[str, object]:
    def ratio(name: str, field: str) -> float:
        pairs = zip(turns[name], turns["all"], strict=True)
        return round(statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs), 3)

    plain = turns["all"]
    seconds = statistics.median(one.seconds for one in plain)
    others = [name for name in turns if name != "all"]
    assert config.visual is not None
    return {
        **circumstances(args.device),
        "shape": args.shape,
        "dtype": args.dtype,
        "prompt_tokens": tokens,
        "image_tokens": config.visual.get("n_queries", 256),
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
        "all": {
            "first_token_seconds": round(statistics.median(one.first_seconds for one in plain), 4),
            "new_tokens_per_second": round(args.new_tokens / seconds, 2),
            "cache_MiB": round(plain[0].cache_bytes / 2**20, 2),
            "peak_memory_GiB": round(plain[0].peak_gib, 3),
        },
        "over_all": {
            name: {
                "first_token_seconds": ratio(name, "first_seconds"),
                "tokens_per_second": round(1 / ratio(name, "seconds"), 3),
                "cache_bytes": ratio(name, "cache_bytes"),
            }
            | ({"peak_memory": ratio(name, "peak_gib")} if args.device == "cuda" else {})
            for name in others
        },
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("small", "published"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.33, 0.11])
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
