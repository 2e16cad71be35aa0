"""LoRA on a Qwen-VL of the published shape with random weights: seconds per iteration, tokens per second, peak memory.

python benchmarks/lora_speed.py                                   one GPU, bf16, 1 × 8 samples of 2,048 tokens
python benchmarks/lora_speed.py --shape small --device cpu --tokens 256 --accumulation 2

Beside the published figures for LoRA (chat) at 2,048 tokens on an A100-80G: 27.3 GB and 5.9 s an iteration.
"""

import argparse
import datetime
import json
import platform
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.capture_cost import SMALL
from finetune.families import family_of
from finetune.model.adaptation import Plan, adapt
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration


def main() -> None:
    args = arguments()
    config = QwenVLConfig() if args.shape == "published" else QwenVLConfig(**SMALL)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = QwenVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    plan = Plan(language="lora", rank=64, alpha=16, dropout=0.05)
    model = adapt(model, family_of(config), plan, master_weights=False).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    batch = sample(config, args.tokens, args.device, dtype)

    def iteration() -> None:
        for _ in range(args.accumulation):
            (model(**batch).loss / args.accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()

    iteration()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(args.iterations):
        iteration()
    seconds = (time.perf_counter() - start) / args.iterations
    memory = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else None
    print(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "machine": torch.cuda.get_device_name()
                if args.device == "cuda"
                else f"{platform.machine()}, CPU",
                "torch": torch.__version__,
                "shape": args.shape,
                "dtype": str(dtype),
                "tokens": args.tokens,
                "accumulation": args.accumulation,
                "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "seconds_an_iteration": round(seconds, 3),
                "tokens_a_second": round(args.tokens * args.accumulation / seconds, 1),
                "peak_memory_GiB": None if memory is None else round(memory, 2),
            },
            indent=1,
        )
    )


def sample(config: QwenVLConfig, tokens: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One sample with one image, every token trained on but the image's."""
    start_id, slots = config.visual["image_start_id"], config.visual["n_queries"]
    ids = torch.randint(0, min(start_id, 6000), (1, tokens), device=device)
    ids[0, 4], ids[0, 5 + slots] = start_id, start_id + 1
    labels = ids.clone()
    labels[0, : 6 + slots] = -100
    size = config.visual["image_size"]
    pixels = torch.randn(1, 3, size, size, device=device, dtype=dtype)
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("small", "published"), default="published")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--accumulation", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
