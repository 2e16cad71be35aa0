"""What does attention supervision cost a training step? A ratio within one run, and the memory that it holds.

OMP_NUM_THREADS=1 python benchmarks/look_cost.py
OMP_NUM_THREADS=1 python benchmarks/look_cost.py --output benchmarks/results/look_cost_DATE_cpu.json

A Llama of ``WIDTH`` over 1,000 tokens, LoRA on q, k, v and o; 4 of its 8 layers are supervised, in 4 rows a sample.
Steps with and without take turns, so that whatever else the machine does falls on both; the ratio is that of medians
of CPU time.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.circumstances import circumstances
from finetune.data.look import LookRow, Supervised, look_batch
from finetune.files import write_atomically
from finetune.training.look import LookSettings, Supervision
from tests.diagnostics.tiny_llama import FAMILY

TOKENS, IMAGE_TOKENS, ROWS = 1000, 576, 4
WIDTH, LAYERS, HEADS, SUPERVISED = 512, 8, 8, (1, 3, 5, 7)


def main() -> None:
    args = arguments()
    result = {
        **circumstances(),
        "tokens": TOKENS,
        "layers": LAYERS,
        "supervised_layers": len(SUPERVISED),
        "supervised_rows": ROWS,
        "width": WIDTH,
        "steps": args.steps,
        **measured(args.steps),
    }
    text = json.dumps(result, indent=1)
    if args.output is None:
        print(text)
    else:
        write_atomically(args.output, (text + "\n").encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=12, help="steps of each kind")
    parser.add_argument("--output", type=Path, help="write JSON here instead of printing it")
    return parser.parse_args()


def model() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=2048,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    made.model.tower = nn.ModuleList()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return get_peft_model(made, LoraConfig(r=16, target_modules=targets))  # type: ignore[return-value]


def rows() -> Any:
    image, weights = torch.arange(10, 10 + IMAGE_TOKENS).numpy(), torch.zeros(1, IMAGE_TOKENS)
    weights[:, 40:80] = 1
    some = [LookRow(TOKENS - 20 + at, image, weights.numpy(), image[:0]) for at in range(ROWS)]
    return look_batch([Supervised(0, 0, 0, 0, some)])


def measured(steps: int) -> dict[str, Any]:
    made, batch = model(), rows()
    supervision = Supervision(LookSettings(0.2, lambda: SUPERVISED), made, FAMILY)
    ids = torch.randint(0, 1024, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for at in tqdm(range(2 * (steps + 1)), desc="steps", unit="step"):
        supervised = bool(at % 2)
        start = time.process_time()
        step(made, ids, supervision if supervised else None, batch)
        if at > 1:
            seconds[supervised].append(time.process_time() - start)
    plain, with_rows = (statistics.median(seconds[kind]) for kind in (False, True))
    return {
        "cpu_seconds_without": round(plain, 4),
        "cpu_seconds_with": round(with_rows, 4),
        "ratio": round(with_rows / plain, 4),
        "held_MiB": round(held_bytes(made, ids, supervision, batch) / 2**20, 2),
    }


def step(made: nn.Module, ids: torch.Tensor, supervision: Supervision | None, batch: Any) -> None:
    made.zero_grad()
    if supervision is None:
        loss = made(input_ids=ids, labels=ids, use_cache=False).loss
    else:
        with supervision.kept().keeping() as calls:
            loss = made(input_ids=ids, labels=ids, use_cache=False).loss
        loss = loss + 0.2 * supervision.result(calls, batch).losses.mean()
    loss.backward()


def held_bytes(made: nn.Module, ids: torch.Tensor, supervision: Supervision, batch: Any) -> int:
    """Of tensors that the rows' graph keeps for the backward pass and that the model's own does not."""
    sizes: dict[int, int] = {}
    with supervision.kept().keeping() as calls:
        made(input_ids=ids, use_cache=False)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        supervision.result(calls, batch)
    shared: Sequence[torch.Tensor] = [
        one for call in calls.values() for one in (call.query, call.key, call.value)
    ]
    for tensor in shared:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


if __name__ == "__main__":
    main()
