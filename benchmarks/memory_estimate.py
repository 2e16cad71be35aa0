"""Accuracy of the memory estimate: the estimated peak of training steps beside the measured one.

python benchmarks/memory_estimate.py                            one GPU, the published shape, bf16, 2,048 tokens
python benchmarks/memory_estimate.py --device cpu               this machine, a small model

Prints one JSON object. On a GPU the measured peak is that of torch's allocator, on a CPU the most bytes of tensors that
were alive at once: resident memory would count what the C library keeps for later. Cases: LoRA and full fine-tuning,
with and without activation checkpointing.
"""

import argparse
import datetime
import json
import platform
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.capture_cost import SMALL
from benchmarks.lora_speed import sample
from finetune.families import family_of
from finetune.families.base import Encoded
from finetune.model import memory_estimate
from finetune.model.adaptation import Plan, adapt
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration
from finetune.training import preview
from finetune.training.loss import step_loss, token_nats

PLANS = {"lora": Plan(rank=64), "full": Plan(language="full")}


def main() -> None:
    args = arguments()
    plans = ("lora", "full") if args.shape == "small" else ("lora",)
    cases = [f"{plan}+{kept}" for plan in plans for kept in ("everything", "checkpoints")]
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()}, CPU"
    print(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "machine": machine,
                "torch": torch.__version__,
                "shape": args.shape,
                "batch": args.batch,
                "tokens": args.tokens,
                "cases": {case: measured(args, *case.split("+")) for case in cases},
            },
            indent=1,
        )
    )


class LiveTensors(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still alive, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


@contextmanager
def peak_bytes(device: str, model: torch.nn.Module) -> Iterator[list[int]]:
    """Gives a list that holds the peak afterwards."""
    found: list[int] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append(torch.cuda.max_memory_allocated())
        return
    with LiveTensors() as live:
        for parameter in model.parameters():
            live.add(parameter.data)
        yield found
    found.append(live.peak)


def measured(args: argparse.Namespace, plan_name: str, kept: str) -> dict[str, Any]:
    """Two steps of training; the second has the optimizer's states too."""
    config = QwenVLConfig() if args.shape == "published" else QwenVLConfig(**SMALL)
    family, dtype = family_of(config), torch.bfloat16 if args.device == "cuda" else torch.float32
    checkpointing = kept == "checkpoints"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype if plan_name == "lora" else torch.float32)
    with torch.device(args.device):
        model = QwenVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model = adapt(model, family, PLANS[plan_name], master_weights=True).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    step = step_of(model, family, args, dtype, checkpointing)
    with peak_bytes(args.device, model) as found:
        train(model, config, args, dtype)
    [peak] = found
    estimated = memory_estimate.estimate(step)
    return {
        "estimated_GiB": {
            name: round(size / memory_estimate.GIB, 3) for name, size in estimated._asdict().items()
        },
        "estimated_peak_GiB": round(estimated.peak / memory_estimate.GIB, 3),
        "measured_peak_GiB": round(peak / memory_estimate.GIB, 3),
        "estimated_over_measured": round(estimated.peak / peak, 3),
    }


def train(model: Any, config: QwenVLConfig, args: argparse.Namespace, dtype: torch.dtype) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    batch = sample(config, args.tokens, args.device, dtype)
    labels = batch.pop("labels").repeat(args.batch, 1)
    inputs = {name: tensor.repeat(args.batch, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
    for _ in range(2):
        with torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32):
            logits = model(**inputs, use_cache=False).logits[:, :-1]
            step_loss(token_nats(logits, labels[:, 1:])).backward()
        optimizer.step()
        optimizer.zero_grad()


def step_of(
    model: Any, family: Any, args: argparse.Namespace, dtype: torch.dtype, checkpointing: bool
) -> memory_estimate.Step:
    labels = sample(model.config, args.tokens, "cpu", torch.float32)["labels"][0].numpy()
    flags: Any = SimpleNamespace(
        per_device_train_batch_size=args.batch,
        world_size=1,
        deepspeed=None,
        optim="adamw_torch",
        activation_checkpointing=checkpointing,
    )
    longest = Encoded(np.zeros(args.tokens, np.int64), labels, ((0, args.tokens),))
    step = preview.memory_step(model, family, flags, longest=longest, tokens=args.tokens, precision=dtype)
    assert step is not None
    return step


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("small", "published"))
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    args.shape = args.shape or ("published" if args.device == "cuda" else "small")
    args.tokens = args.tokens or (2048 if args.device == "cuda" else 256)
    return args


if __name__ == "__main__":
    main()
