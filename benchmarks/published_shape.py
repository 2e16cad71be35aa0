"""Training at the published shape of Qwen-VL (9.66 B parameters, random weights): speed, memory, share of the chip.

python benchmarks/published_shape.py --output benchmarks/results/published_shape_2026-01-31_h200.json
python benchmarks/published_shape.py --shape tiny --device cpu --tokens 48 64 --iterations 1

LoRA, QLoRA and full fine-tuning at 384 to 2,048 tokens a sample, one picture each, in bf16 with activation
checkpointing: 8 samples per step, one at a time, as in the published table of Qwen-VL (A100-SXM4-80G), which is printed
beside it. That table has no full fine-tuning. A setup that does not fit the device is reported as such.

tokens a second    places of a sample, picture included, over the time of whole steps, optimizer included
peak memory        most that torch had allocated for tensors, and most that it had reserved on the device
share of the peak  model FLOPs (what the mathematics needs: nothing computed twice) over the chip's peak in that time
                   in that time; "model FLOPs utilization" of Chowdhery et al. 2022 (arXiv 2204.02311, appendix B)
"""

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.lora_speed import sample
from finetune.families import family_of
from finetune.families.base import Family
from finetune.families.parts.modules import bare_model
from finetune.model.adaptation import Plan, adapt, component_of
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration
from finetune.training.loss import step_loss, token_nats

TINY = {
    "vocab_size": 1024, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2, "kv_channels": 128,
    "intermediate_size": 512,
    "visual": {
        "heads": 2, "image_size": 56, "image_start_id": 600, "layers": 2, "mlp_ratio": 4.0, "output_dim": 256,
        "patch_size": 14, "width": 64, "n_queries": 16,
    },
}  # fmt: skip
PEAK_FLOPS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}
"""Of dense bf16 matrix products, as NVIDIA's data sheets of the SXM boards give them."""
PUBLISHED = {
    "lora": {384: (23.3, 2.2), 512: (23.6, 2.3), 1024: (25.1, 3.5), 2048: (27.3, 5.9)},
    "qlora": {384: (17.0, 4.2), 512: (17.2, 4.5), 1024: (18.2, 5.5), 2048: (19.3, 7.9)},
}
"""GB and seconds an iteration by tokens: Qwen-VL-Chat's own table, Q-LoRA over its Int4 (GPTQ) weights."""


class Way(NamedTuple):
    plan: Plan
    in_four_bit: bool = False
    optimizer: str = "AdamW"


FULL = Plan(language="full", connector="full")
WAYS = {
    "lora": Way(Plan(rank=64, alpha=16, dropout=0.05)),
    "qlora": Way(Plan(rank=64, alpha=16, dropout=0.05), in_four_bit=True),
    "full": Way(FULL),
    "full, 8-bit AdamW": Way(FULL, optimizer="AdamW8bit"),
}


def main() -> None:
    args = arguments()
    results = {}
    for name in args.ways:
        results[name] = dict(measure(args, name))
        release(args.device)
    report = {**circumstances(args), "ways": results}
    print(json.dumps(report, indent=1))
    print(table(results), file=sys.stderr)
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(tokens, what was measured) of one way, at each length; the first that does not fit is the last."""
    way = WAYS[name]
    try:
        step, flops = prepare(args, way)
    except torch.OutOfMemoryError:
        yield min(args.tokens), {"out_of_memory": "while the model was built"}
        return
    for tokens in sorted(args.tokens):
        try:
            figures = measure_steps(args, step, flops, tokens)
        except torch.OutOfMemoryError:
            yield tokens, {"out_of_memory": "in a step"}
            return
        print(f"{name}, {tokens} tokens: {figures}", file=sys.stderr, flush=True)
        yield tokens, figures | beside(name, tokens, figures)


def prepare(args: argparse.Namespace, way: Way) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """A function of the tokens of a sample that trains one step and gives its loss; and one that gives its FLOPs."""
    config = QwenVLConfig() if args.shape == "published" else QwenVLConfig(**TINY)
    family = family_of(config)
    model = build(config, family, way, args)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(way.optimizer, trained)
    flops = counted(model, config, family)

    def step(tokens: int) -> float:
        total = 0.0
        for _ in range(args.accumulation):
            batch = {
                key: value.expand(args.batch, *value.shape[1:])
                for key, value in sample(config, tokens, args.device, torch.bfloat16).items()
            }
            targets = batch.pop("labels")[:, 1:]
            kept = (
                (targets != -100).any(0).nonzero().flatten()
            )  # as the trainer: no logits but of trained tokens
            in_step = args.accumulation * int((targets != -100).sum())
            with torch.autocast(torch.device(args.device).type, torch.bfloat16):
                logits = model(**batch, use_cache=False, logits_to_keep=kept).logits
                loss = step_loss(token_nats(logits, targets[:, kept]), in_step)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step, flops


def measure_steps(
    args: argparse.Namespace, step: Callable[[int], float], flops: Callable[[int], float], tokens: int
) -> dict[str, Any]:
    on_gpu = args.device.startswith("cuda")
    step(tokens)  # the optimizer makes its states, kernels are chosen
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(args.iterations):
        loss = step(tokens)  # reads the loss, so it waits for the device
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / args.iterations
    samples = args.batch * args.accumulation
    peak = next((value for chip, value in PEAK_FLOPS.items() if chip in machine(args)), None)
    return {
        "seconds_an_iteration": round(seconds, 3),
        "tokens_a_second": round(samples * tokens / seconds, 1),
        "peak_allocated_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "peak_reserved_GiB": round(torch.cuda.max_memory_reserved() / 2**30, 2) if on_gpu else None,
        "model_TFLOP_an_iteration": round(samples * flops(tokens) / 1e12, 3),
        "share_of_peak": round(samples * flops(tokens) / seconds / peak, 4) if peak else None,
        "loss": round(loss, 4),
    }


def beside(name: str, tokens: int, figures: dict[str, Any]) -> dict[str, Any]:
    """The published figures, where there are any for this length."""
    if tokens not in PUBLISHED.get(name, {}):
        return {}
    gigabytes, seconds = PUBLISHED[name][tokens]
    return {
        "published_GB": gigabytes,
        "published_seconds_an_iteration": seconds,
        "times_as_fast_as_published": round(seconds / figures["seconds_an_iteration"], 2),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


def build(config: Any, family: Family, way: Way, args: argparse.Namespace) -> nn.Module:
    """Random weights in bf16, made on the device; then as ``finetune.py`` has them: what trains is fp32."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(args.device):
        model = QwenVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if way.in_four_bit:
        to_four_bit(model, family)
    return adapt(model, family, way.plan, master_weights=True).train()


def to_four_bit(model: nn.Module, family: Family) -> None:
    """Linear layers of the language layers → NF4 with double quantisation, as ``--q_lora`` loads them."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layers = model.get_submodule(family.paths.language_layers)
    for name, linear in [*layers.named_modules()]:
        if not isinstance(linear, nn.Linear):
            continue
        weight = linear.weight.data
        new = Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=torch.bfloat16,
            compress_statistics=True, quant_type="nf4", device="meta",
        )  # fmt: skip
        new.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
        new.bias = linear.bias
        new.support_avx512bf16_for_cpu = False
        parent, _, own = name.rpartition(".")
        setattr(layers.get_submodule(parent), own, new.to(weight.device))  # moving it quantises
        linear.weight = None
    model.is_loaded_in_4bit = True  # what PEFT asks


def make_optimizer(name: str, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    if name == "AdamW8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trained, lr=1e-5)
    # One kernel for all: without it AdamW keeps two more copies of everything that trains while it steps.
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs
# ---------------------------------------------------------------------------------------------------------------------


def counted(model: nn.Module, config: Any, family: Family) -> Callable[[int], float]:
    """Model FLOPs of one sample of ``tokens`` tokens with one picture, forward and backward.

    A weight matrix costs 2 FLOPs a token in the forward pass, 2 for the gradient of its input, and 2 for its own
    where it trains: 6 N of appendix B, and 4 N for weights that rest under adapters. The output layer has the trained
    tokens alone, all but the picture's. Attention costs 12 · layers · heads · width · tokens a token (4 of them
    forward), counted over all pairs as there, though half of them are masked. Eyes and connector come before
    everything that has a gradient, so they count forward alone, unless they train.
    """
    bare = bare_model(model)
    frozen, trained = matrices(bare.get_submodule(family.paths.language_layers))
    head = matrices(bare.get_output_embeddings())
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.kv_channels
    tower, connector = picture_flops(config)
    if any(
        p.requires_grad for n, p in bare.named_parameters() if component_of(n, family.paths) == "connector"
    ):
        connector *= 3

    def flops(tokens: int) -> float:
        ids = sample(config, tokens, "cpu", torch.float32)["labels"][:, 1:]
        shown = int((ids != -100).sum())
        layers = tokens * (4 * frozen + 6 * trained + attention * tokens)
        return layers + shown * (4 * head[0] + 6 * head[1]) + tower + connector

    return flops


def matrices(module: nn.Module) -> tuple[int, int]:
    """Elements of the weight matrices inside a module: (frozen, trained)."""
    sizes = {False: 0, True: 0}
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            sizes[bool(linear.weight.requires_grad)] += linear.in_features * linear.out_features
    return sizes[False], sizes[True]


def picture_flops(config: Any) -> tuple[float, float]:
    """Forward FLOPs of one picture: (vision tower, connector)."""
    visual, patches, hidden = config.visual, config.n_patches, config.hidden_size
    width, queries = visual["width"], visual["n_queries"]
    layer = 4 * width * width + 2 * width * int(width * visual["mlp_ratio"])
    matrices = visual["layers"] * layer + 3 * visual["patch_size"] ** 2 * width
    tower = 2 * patches * matrices + visual["layers"] * 4 * patches * patches * width
    keys_and_values = width * hidden + 2 * hidden * hidden
    resampler = (
        2 * patches * keys_and_values + 2 * queries * 2 * hidden * hidden + 4 * queries * patches * hidden
    )
    return tower, resampler + 2 * queries * hidden * hidden


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------


def table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Readable report: one line per setup and length, published figures in brackets."""
    head = f"{'':<18}{'tokens':>7}{'s/it':>16}{'tokens/s':>10}{'GiB':>16}{'of peak':>9}"
    lines = [head]
    for name, lengths in results.items():
        for tokens, row in lengths.items():
            if "out_of_memory" in row:
                lines.append(f"{name:<18}{tokens:>7}  out of memory {row['out_of_memory']}")
                continue
            seconds = f"{row['seconds_an_iteration']:.2f}" + bracket(
                row.get("published_seconds_an_iteration")
            )
            memory = f"{row['peak_allocated_GiB'] or '-'}" + bracket(row.get("published_GB"))
            share = f"{row['share_of_peak']:.1%}" if row["share_of_peak"] else "-"
            lines.append(
                f"{name:<18}{tokens:>7}{seconds:>16}{row['tokens_a_second']:>10,.0f}{memory:>16}{share:>9}"
            )
    return "\n".join(lines)


def bracket(value: float | None) -> str:
    return "" if value is None else f" ({value})"


def circumstances(args: argparse.Namespace) -> dict[str, Any]:
    import transformers

    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(args),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": args.shape,
        "batch": args.batch,
        "accumulation": args.accumulation,
        "activation_checkpointing": args.checkpointing,
        "iterations": args.iterations,
        "published": "A100-SXM4-80G, batch 1, accumulation 8, Qwen-VL-Chat; none for full fine-tuning",
    }


def machine(args: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{platform.machine()}, CPU"


def release(device: str) -> None:
    """Free a setup's memory before the next one."""
    import gc

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("tiny", "published"), default="published")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--tokens", type=int, nargs="+", default=(384, 512, 1024, 2048), help="of a sample")
    parser.add_argument("--batch", type=int, default=1, help="samples at a time")
    parser.add_argument("--accumulation", type=int, default=8, help="micro-batches a step")
    parser.add_argument("--iterations", type=int, default=3, help="measured steps, after one that warms up")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, help="a JSON file; it is printed in any case")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
