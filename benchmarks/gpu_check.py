"""What only a GPU can show, in one command and within ten minutes: a PASS, FAIL or SKIP a line, in one dated file.

python benchmarks/gpu_check.py                                 → benchmarks/results/gpu_check_DATE_CHIP.txt
python benchmarks/gpu_check.py --shape tiny --device cpu --output FILE       all of it that a CPU can do

Weights are random, at the published shape of Qwen-VL (9.66 B parameters) or at a tiny one.

precision          a LoRA step in bf16, and in fp16 with a scaled loss: loss and gradients are finite
kernels            SDPA, FlashAttention 2 and 3 with the monitor's extractor attached: the output is bit for bit that of
                   the model alone, and rows are SDPA's within .02
Liger              its kernels for Qwen2.5-VL give the loss of the model's own within 2 %
NCCL               one process: a sum over all, and gradients through DistributedDataParallel
low memory         the page's --low-memory: four-bit language layers answer, with attention
tokens             LoRA at 2,048 and 8,192 tokens: seconds an iteration, peak memory, tokens a second, share of the
                   chip's peak; a PASS at 2,048 is within Qwen-VL's published 27.3 GB and 5.9 s (A100)
capture            a forward with four key layers and eight rows captured: at most 1.2 times the time of one without

A check that needs what is not there (a GPU, a package) is skipped and says so; what raises is a FAIL with its message.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(ROOT := Path(__file__).parent.parent))

from benchmarks import published_shape
from benchmarks.lora_speed import sample
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prober import auto_key_layers
from finetune.demo.settings import BASE_MODEL
from finetune.families import family_of
from finetune.files import write_atomically
from finetune.model.adaptation import Plan, adapt
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

MINUTES = 10
MOST_CAPTURE_COST, MOST_ROW_DIFFERENCE, MOST_LIGER_DIFFERENCE = 1.2, 0.02, 0.02
PUBLISHED_GB, PUBLISHED_SECONDS = 27.3, 5.9
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


class Here(NamedTuple):
    """Where and what is checked."""

    device: str
    shape: str
    lengths: tuple[int, int]

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


class SkippedError(Exception):
    """A check needs what is not there; the message says what."""


Check = Callable[[Here], tuple[bool, str]]


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    here = Here(args.device, args.shape, (2048, 8192) if args.shape == "published" else (48, 96))
    until = time.monotonic() + 60 * MINUTES
    lines = [head(here)]
    for name, check in CHECKS.items():
        line = verdict(name, check, here, until)
        print(line, flush=True)
        lines.append(line)
        published_shape.release(here.device)
    write_atomically(args.output or default_output(here), ("\n".join(lines) + "\n").encode())
    return int(any(line.startswith("FAIL") for line in lines))


def verdict(name: str, check: Check, here: Here, until: float) -> str:
    if time.monotonic() > until:
        return f"SKIP {name}: the {MINUTES} minutes are over"
    try:
        passed, words = check(here)
    except SkippedError as reason:
        return f"SKIP {name}: {reason}"
    except Exception as error:  # whatever a kernel or driver raises is what is asked for
        [words] = (str(error).strip().splitlines() or [type(error).__name__])[:1]
        return f"FAIL {name}: {type(error).__name__}: {words[:200]}"
    return f"{'PASS' if passed else 'FAIL'} {name}: {words}"


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------
def precision(dtype: torch.dtype) -> Check:
    def check(here: Here) -> tuple[bool, str]:
        config, model = built(here, "sdpa")
        model = adapt(model, family_of(config), Plan(rank=8, alpha=16), master_weights=True).train()
        batch = batch_of(here, config, here.lengths[0] // 4)
        with torch.autocast(kind(here), dtype):
            loss = model(**batch).loss
        scale = 2.0**10 if dtype == torch.float16 else 1.0
        (loss * scale).backward()
        found = [one.grad for one in model.parameters() if one.grad is not None]
        finite = all(bool(one.isfinite().all()) for one in found) and bool(loss.isfinite())
        return finite and bool(found), f"loss {loss.item():.3f}, {len(found)} gradients"

    return check


def kernel(name: str) -> Check:
    def check(here: Here) -> tuple[bool, str]:
        if (package := PACKAGES.get(name)) is not None:
            need_gpu(here)
            need(package)
        config, model = built(here, name)
        inputs = batch_of(here, config, here.lengths[0])
        inputs.pop("labels")
        plain, rows = forward(model, inputs), {}
        captured, rows[name] = captured_forward(model, inputs, here)
        if name == "sdpa":
            return torch.equal(plain, captured), "the output is the model's own, bit for bit"
        model.set_attn_implementation("sdpa")
        _, rows["sdpa"] = captured_forward(model, inputs, here)
        apart = max(float(abs(rows[name][layer] - one).max()) for layer, one in rows["sdpa"].items())
        same = torch.equal(plain, captured)
        words = f"the output is {'' if same else 'not '}the model's own bit for bit; rows are {apart:.4f} from SDPA's"
        return same and apart <= MOST_ROW_DIFFERENCE, words

    return check


def liger(here: Here) -> tuple[bool, str]:
    need_gpu(here)
    need("liger_kernel")
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2_5_vl

    from tests.finetune.families.tiny_families import ALL

    torch.manual_seed(0)
    model = ALL["qwen2.5-vl"].model().to(here.device)
    ids = torch.randint(0, 200, (2, 48), device=here.device)
    own = model(input_ids=ids, labels=ids).loss.item()
    apply_liger_kernel_to_qwen2_5_vl(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
    fused = model(input_ids=ids, labels=ids).loss.item()
    return abs(fused / own - 1) <= MOST_LIGER_DIFFERENCE, f"loss {fused:.4f}, {own:.4f} without"


def nccl(here: Here) -> tuple[bool, str]:
    backend = "nccl" if here.on_gpu else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(f"{folder}/store", 1)
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            total = torch.ones(3, device=here.device)
            torch.distributed.all_reduce(total)
            linear = nn.parallel.DistributedDataParallel(nn.Linear(3, 2).to(here.device))
            linear(total).sum().backward()
            gradient = next(linear.parameters()).grad
        finally:
            torch.distributed.destroy_process_group()
    passed = bool((total == 1).all()) and gradient is not None and bool((gradient == 1).all())
    return passed, f"a sum and gradients through {backend}, one process"


def low_memory(here: Here) -> tuple[bool, str]:
    from diagnostics.web.engine import Engine

    if here.on_gpu:
        need("bitsandbytes")
    engine = Engine.load(str(BASE_MODEL), mode="low", cpu_only=not here.on_gpu)
    four_bit = any(type(one).__name__ == "Linear4bit" for one in engine.model.modules())
    return (
        four_bit == here.on_gpu,
        f"four-bit layers: {four_bit}; {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB",
    )


def tokens(at: int) -> Check:
    def check(here: Here) -> tuple[bool, str]:
        length = here.lengths[at]
        args = published_shape.arguments(
            ["--shape", here.shape, "--device", here.device, "--tokens", str(length), "--iterations", "2",
             *([] if here.on_gpu else ["--accumulation", "1"])]
        )  # fmt: skip
        [(_, row)] = published_shape.measure(args, "lora")
        if "out_of_memory" in row:
            return False, f"{length} tokens: out of memory {row['out_of_memory']}"
        seconds, memory = row["seconds_an_iteration"], row["peak_allocated_GiB"]
        share = row["share_of_peak"]
        words = (
            f"{length} tokens: {seconds} s an iteration, {row['tokens_a_second']:,} tokens a second, "
            f"{'memory not measured' if memory is None else f'{memory} GiB at most'}, "
            f"{'share of the peak not known' if share is None else f'{share:.1%} of the peak'}"
        )
        if not here.on_gpu or at > 0:
            return True, words
        gigabytes = memory * 2**30 / 1e9
        passed = gigabytes <= PUBLISHED_GB and seconds <= PUBLISHED_SECONDS
        return passed, f"{words}; published {PUBLISHED_GB} GB, {PUBLISHED_SECONDS} s"

    return check


def capture(here: Here) -> tuple[bool, str]:
    config, model = built(here, "sdpa")
    inputs = batch_of(here, config, here.lengths[0])
    inputs.pop("labels")
    forward(model, inputs), captured_forward(model, inputs, here)
    pairs = [
        (
            seconds(here, lambda: forward(model, inputs)),
            seconds(here, lambda: captured_forward(model, inputs, here)),
        )
        for _ in range(5)
    ]
    ratio = statistics.median(other / one for one, other in pairs)
    # A tiny model's forward takes less time than Python does: its ratio says nothing.
    return ratio <= MOST_CAPTURE_COST or here.shape == "tiny", f"{ratio:.2f} times a forward without"


CHECKS: dict[str, Check] = {
    "bf16": precision(torch.bfloat16),
    "fp16": precision(torch.float16),
    "SDPA with the monitor": kernel("sdpa"),
    "FlashAttention 2 with the monitor": kernel("flash_attention_2"),
    "FlashAttention 3 with the monitor": kernel("flash_attention_3"),
    "Liger": liger,
    "NCCL": nccl,
    "low memory": low_memory,
    "training, short": tokens(0),
    "training, long": tokens(1),
    "capture": capture,
}


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------
def built(here: Here, attention: str) -> tuple[Any, nn.Module]:
    """Configuration and a model with random weights, bf16 on a GPU."""
    config = QwenVLConfig() if here.shape == "published" else QwenVLConfig(**published_shape.TINY)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if here.on_gpu else torch.float32)
    try:
        with torch.device(here.device):
            model = QwenVLForConditionalGeneration._from_config(config, attn_implementation=attention)
    finally:
        torch.set_default_dtype(torch.float32)
    return config, model.eval()


def batch_of(here: Here, config: Any, length: int) -> dict[str, torch.Tensor]:
    dtype = torch.bfloat16 if here.on_gpu else torch.float32
    return sample(config, max(length, config.visual["n_queries"] + 16), here.device, dtype)


@torch.no_grad()
def forward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, use_cache=False, logits_to_keep=8).logits


def captured_forward(
    model: nn.Module, inputs: dict[str, torch.Tensor], here: Here
) -> tuple[torch.Tensor, dict[str, Any]]:
    with AttentionExtractor(
        model, auto_key_layers(model), query_tokens=list(range(-8, 0)), connector=False
    ) as extractor:
        return forward(model, inputs), extractor.attention_weights


def seconds(here: Here, work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if here.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def need_gpu(here: Here) -> None:
    if not here.on_gpu:
        raise SkippedError("needs a GPU")


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise SkippedError(f"{package} is not installed")


def kind(here: Here) -> str:
    return torch.device(here.device).type


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------
def head(here: Here) -> str:
    import transformers

    chip = torch.cuda.get_device_name() if here.on_gpu else "CPU"
    return (
        f"{datetime.date.today().isoformat()}, {chip}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {here.shape} shape of Qwen-VL, random weights"
    )


def default_output(here: Here) -> Path:
    chip = torch.cuda.get_device_name().split()[-1].lower() if here.on_gpu else "cpu"
    return ROOT / "benchmarks" / "results" / f"gpu_check_{datetime.date.today().isoformat()}_{chip}.txt"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("tiny", "published"), default="published")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="a text file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
