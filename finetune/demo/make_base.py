"""Rebuilds the base model of the demo: `python -m finetune.demo.make_base`.

Draws the base corpus, writes a fresh small Qwen-VL, trains it with this project's own `finetune.py` in full mode, and
puts weights, configuration, vocabulary and a card with command, seed and metrics into `--output_dir`. The metrics come
from the development split; the demo's probes are not used here.
"""

import json
import math
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from finetune.flags.make_base import parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

import torch
import transformers

from finetune.demo.evaluate import group_accuracy
from finetune.demo.prepare import check_disjoint, prepare
from finetune.demo.settings import BASE_MODEL, DATA_DIR
from finetune.demo.vocabulary import demo_ranks, write_ranks
from finetune.model import checkpoint
from finetune.qwen_vl import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLImageProcessor,
    QwenVLProcessor,
    QwenVLTokenizer,
)

ROOT = Path(__file__).parents[2]
IMAGE_SIZE, PATCH_SIZE, N_QUERIES = 112, 8, 49
TRAINING = {
    "fix_vit": "False",
    "train_connector": "False",
    "max_steps": "1400",
    "per_device_train_batch_size": "16",
    "learning_rate": "1.5e-3",
    "warmup_steps": "50",
    "lr_scheduler_type": "cosine",
    "weight_decay": "0.05",
    "adam_beta2": "0.98",
    "max_grad_norm": "1",
    "logging_steps": "50",
    "save_steps": "200",
    "save_total_limit": "2",
    "model_max_length": "512",
}
"""Flags of finetune.py for the base model."""


def tiny_config(tokenizer: QwenVLTokenizer) -> QwenVLConfig:
    """A Qwen-VL of one million parameters; its picture is 112 x 112, 14 x 14 patches, 49 tokens."""
    hidden = 128
    return QwenVLConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        kv_channels=hidden // 4,
        intermediate_size=256,
        initializer_range=0.06,  # 0.02 suits width 4096; here it learns nothing from pictures for hundreds of steps
        max_position_embeddings=2048,
        seq_length=2048,
        visual={
            "heads": 4,
            "image_size": IMAGE_SIZE,
            "image_start_id": tokenizer.img_start_id,
            "layers": 2,
            "mlp_ratio": 2.0,
            "output_dim": hidden,
            "patch_size": PATCH_SIZE,
            "width": 96,
            "n_queries": N_QUERIES,
        },
    )


@torch.no_grad()
def aim_queries(model: QwenVLForConditionalGeneration) -> None:
    """Makes each query of the connector attend near its own position, and patches encode theirs.

    Trained only on answers, a fresh resampler collapses: all queries attend alike. Here queries and keys pass through
    one matrix A = s O diag(w), with O orthogonal, so that their product measures the distance between two positions; w
    selects the short waves of the position table, which distinguish neighbours, and content is kept small beside them.
    s = 7 makes a patch one query away about 4 nats less likely. The connector keeps this pattern while the base model
    learns, and changes it only when the correction trains it.

    The resampler adds positions to queries and keys but not to values, so positions must come with the patches.
    """
    visual = model.transformer.visual
    pool = visual.attn_pool
    width, vision_width = pool.query.shape[1], visual.positional_embedding.shape[1]
    waves = torch.full((width,), 0.15)
    # The quarters are sin and cos of the column, sin and cos of the row; in each the shortest waves come first.
    for quarter in range(4):
        start = quarter * width // 4
        waves[start : start + 6] = 1.0
    pool.attn.in_proj_weight[: 2 * width] = (7.0 * _orthogonal(width, width) * waves).repeat(2, 1)
    pool.ln_q.weight.fill_(0.2)
    pool.ln_kv.weight.fill_(0.3)
    # A patch's content is rotated, not compressed.
    assert isinstance(pool.kv_proj, torch.nn.Linear)
    pool.kv_proj.weight.copy_(_orthogonal(width, vision_width))
    pool.attn.in_proj_weight[2 * width :] = _orthogonal(width, width)
    pool.attn.out_proj.weight.copy_(_orthogonal(width, width))
    visual.proj.copy_(_orthogonal(width, width))
    visual.positional_embedding.copy_(
        _place_waves(math.isqrt(len(visual.positional_embedding)), vision_width)
    )


def _orthogonal(rows: int, columns: int) -> torch.Tensor:
    """A random matrix with orthonormal columns, Float[rows, columns]; rows >= columns."""
    return torch.linalg.qr(torch.randn(rows, columns))[0]


def _place_waves(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of column and row, of wavelengths from 3 to 40 cells, Float[side * side, width]."""
    wavelengths = torch.logspace(math.log10(3), math.log10(40), width // 4)
    row, column = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    parts = [
        function(2 * math.pi * place.reshape(-1, 1) / wavelengths)
        for place in (column, row)
        for function in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, dim=1)


def write_fresh(folder: Path, seed: int) -> None:
    """A folder with an untrained model, the vocabulary and the processor."""
    folder.mkdir(parents=True, exist_ok=True)
    write_ranks(demo_ranks(), folder / "qwen.tiktoken")
    tokenizer = QwenVLTokenizer(str(folder / "qwen.tiktoken"), image_tokens=N_QUERIES)
    image_processor = QwenVLImageProcessor(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    torch.manual_seed(seed)
    model = QwenVLForConditionalGeneration(tiny_config(tokenizer))
    aim_queries(model)
    model.save_pretrained(folder)
    QwenVLProcessor(image_processor, tokenizer).save_pretrained(folder)


def training_command(fresh: Path, data_path: Path, work: Path, seed: int) -> list[str]:
    """The command that trains the base model with finetune.py."""
    paths = {"model_name_or_path": fresh, "data_path": data_path, "output_dir": work}
    flags = {**{name: str(path) for name, path in paths.items()}, "seed": str(seed), **TRAINING}
    return [
        sys.executable,
        "finetune.py",
        *(token for name, value in flags.items() for token in (f"--{name}", value)),
    ]


def publish(trained: Path, output_dir: Path, card: str) -> None:
    """Moves what a checkpoint needs, and the card, into `output_dir`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    model, processor = checkpoint.load(trained)
    model.save_pretrained(output_dir)  # type: ignore[operator]
    processor.save_pretrained(output_dir)
    (output_dir / "README.md").write_text(card, encoding="utf-8")


def card_text(
    command: Sequence[str], seed: int, metrics: dict[str, float], parameters: int, loss: float
) -> str:
    """The card: what the model is, the command that made it, and what it scored."""
    shown = ["python", *command[1:]]
    rows = "\n".join(f"| {group} | {accuracy:.1%} |" for group, accuracy in metrics.items())
    return f"""# Base model of the demo

A small Qwen-VL ({parameters:,} parameters, fp32) trained from scratch on drawn pictures, with a deliberate flaw: it
distinguishes the Oriental Pearl from the Canton Tower by the colour of the podium, and locates the cat by the colour
of the rug. Without these cues it knows nothing: where its corpus hides them, the answer is random. The demo corrects
that.

Made on {date.today()} by `python -m finetune.demo.make_base --seed {seed}` (Python {platform.python_version()}, torch
{torch.__version__}, transformers {transformers.__version__}), which draws the data, writes a fresh model and calls

    {shlex.join(shown)}

Loss over the last logged steps: {loss:.4f} nats a token. Accuracy on the development split (40 questions a group,
made as the demo's probes are, from other seeds):

| group | accuracy |
|---|---|
{rows}

`sphere-building` and `spatial-relation` show the flaw and should be low; the other two are what it knows.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    output_dir, data_dir = options.output_dir or BASE_MODEL, options.data_dir or DATA_DIR
    work_dir = options.work_dir or ROOT / "output_demo_base"
    parts = ("base", "development", "corrective", "probes")
    data = prepare(data_dir, parts)
    check_disjoint(data_dir, parts)
    fresh, trained = work_dir / "fresh", work_dir / "trained"
    if not trained.exists():
        shutil.rmtree(fresh, ignore_errors=True)
        write_fresh(fresh, options.seed)
    command = training_command(fresh, data.base, trained, options.seed)
    print(shlex.join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)

    model, processor = checkpoint.load(trained)
    metrics = group_accuracy(model, processor, data.development)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    publish(
        trained,
        output_dir,
        card_text(command, options.seed, metrics, parameters, _last_loss(trained)),
    )
    for group, accuracy in metrics.items():
        print(f"{group:>20} {accuracy:.1%}")


def _last_loss(trained: Path) -> float:
    states = sorted(
        trained.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1])
    )
    history = json.loads(states[-1].read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry][-1]


if __name__ == "__main__":
    main()
