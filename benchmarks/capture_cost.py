"""The cost of capture: a probe forward with capture, compared with a plain one and with eager attention with weights.

python benchmarks/capture_cost.py                                    this machine, a small model, fp32
python benchmarks/capture_cost.py --shape published --device cuda --dtype bfloat16

Prints one JSON object: medians in seconds and their ratios, measured side by side in one process, in turns.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.circumstances import circumstances
from diagnostics import AttentionExtractor
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

SMALL = {
    "vocab_size": 8000,
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "kv_channels": 128,
    "intermediate_size": 5504,
    "visual": {
        "heads": 4, "image_size": 112, "image_start_id": 7000, "layers": 1, "mlp_ratio": 4.0,
        "output_dim": 1024, "patch_size": 14, "width": 128, "n_queries": 16,
    },
}  # fmt: skip


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    config = QwenVLConfig() if args.shape == "published" else QwenVLConfig(**SMALL)
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = QwenVLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(0, 6000, (1, args.tokens), device=args.device)
    n_layers = config.num_hidden_layers
    layers = sorted({min(round((i + 1) * n_layers / 4), n_layers - 1) for i in range(4)})
    queries = [args.tokens * (i + 1) // 8 - 1 for i in range(8)]

    @torch.no_grad()
    def forward(**flags: bool) -> torch.Tensor:
        return model(input_ids=ids, use_cache=False, **flags).logits

    def captured() -> torch.Tensor:
        with AttentionExtractor(model, layers, query_tokens=queries, connector=False):
            return forward()

    def eager() -> torch.Tensor:
        model.set_attn_implementation("eager")
        logits = forward(output_attentions=True)
        model.set_attn_implementation("sdpa")
        return logits

    ways = {"plain": forward, "capture": captured, "eager": eager}
    assert torch.equal(forward(), captured()), "capture changed the logits"
    seconds, memory = in_turns(ways, args.repeats, args.device)
    print(json.dumps(report(args, seconds, memory, layers), indent=1))


def in_turns(
    ways: dict[str, Callable[[], torch.Tensor]], repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each way, taken in turns so that a busy moment hits all alike; peak GPU GiB of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds, memory


def report(
    args: argparse.Namespace, seconds: dict[str, list[float]], memory: dict[str, float], layers: list[int]
) -> dict[str, object]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    paired = [c / p for c, p in zip(seconds["capture"], seconds["plain"], strict=True)]
    return {
        **circumstances(args.device),
        "shape": args.shape,
        "dtype": args.dtype,
        "tokens": args.tokens,
        "layers_captured": layers,
        "rows_a_layer": 8,
        "repeats": args.repeats,
        "median_seconds": {name: round(value, 5) for name, value in medians.items()},
        "peak_memory_GiB": {name: round(value, 3) for name, value in memory.items()},
        "capture_over_plain": round(medians["capture"] / medians["plain"], 4),
        "capture_over_plain_median_of_pairs": round(statistics.median(paired), 4),
        "eager_over_plain": round(medians["eager"] / medians["plain"], 4),
        "logits_bit_identical": True,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("small", "published"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


if __name__ == "__main__":
    main()
