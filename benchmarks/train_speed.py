"""Training speed: this trainer compared with the plain Hugging Face loop and with LLaMA-Factory.

python benchmarks/train_speed.py                                     a small Qwen-VL: under 5 minutes on 2 cores
python benchmarks/train_speed.py --model qwen2.5-vl --llamafactory /PATH/TO/ITS/VENV/bin/python
python benchmarks/train_speed.py --model MODEL_FOLDER --samples 512 --modes lora --workers 8        a GPU

Every way trains one epoch of the same samples (pictures of mixed sizes, text of mixed lengths) with the same model,
batch, precision and workers, in a process of its own that waits while the others train. A round trains each way
once; the first warms up. The ratios are medians over rounds, so that a busy moment of the machine hits all alike.

plain         transformers' Trainer with a collator as its documentation shows: the processor pads to the longest
llamafactory  its own command line's ``run_exp``, in the environment that --llamafactory names
ours          finetune.py as it is; ``grouped`` with --group_by_length, ``packed`` with --packing

seconds are those between the Trainer's first and last step; time before that (weights, reading, counting tokens) is
listed separately. CPU seconds are of the process and its data workers. Peak memory is the process's (resident set).
"""

import argparse
import base64
import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# torch, transformers and this project are imported where a way needs them: LLaMA-Factory's environment has no
# finetune/, and the process that only hands out turns needs none of them.

ROOT = Path(__file__).parent.parent
SEED = 42
RATE = 1e-4
LORA = {"r": 16, "alpha": 16, "dropout": 0.05}
OURS = {
    "ours": (),
    "grouped": ("--train_sampling_strategy", "group_by_length"),
    "packed": ("--packing", "True"),
}
ORDER = ("plain", "llamafactory", *OURS)


@dataclass(frozen=True)
class Job:
    """The job of one way, sent to its process as JSON."""

    way: str
    mode: str  # lora, or full: the language model in full, vision and connector frozen
    folder: str  # turns are handed out and results left here
    model: str
    data: str
    rounds: int
    samples: int
    batch: int  # of one process
    accumulation: int
    workers: int
    max_length: int
    max_pixels: int | None
    bf16: bool


def main() -> None:
    args = arguments()
    if args.job is not None:
        serve(Job(**json.loads(args.job)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the ways' processes too
    with tempfile.TemporaryDirectory(prefix="train_speed_") as folder:
        data = write_data(Path(folder) / "data", args.samples)
        model = args.model if Path(args.model).is_dir() else str(write_model(Path(folder) / "model", args))
        results = {mode: compare(args, mode, Path(folder), model, data) for mode in args.modes}
        report = {**circumstances(args, model), **results}
    print(json.dumps(report, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Turns
# ---------------------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace, mode: str, folder: Path, model: str, data: Path) -> dict[str, Any]:
    """All ways in turns, ``args.rounds`` measured rounds after one that warms up."""
    ways = [way for way in ORDER if way in args.ways]
    started = {way: start(args, job_of(args, way, mode, folder, model, data)) for way in ways}
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    try:
        for turn in range(args.rounds + 1):
            for way in ways:
                result = take_turn(started[way], folder / f"{mode}-{way}", turn, args.processes)
                if turn:
                    measured[way].append(result)
                print(f"{mode} {way} {turn}: {result['seconds']:.2f} s", file=sys.stderr, flush=True)
    finally:
        for process in started.values():
            process.terminate()
            process.wait()
    return summary(measured, args.samples)


def job_of(args: argparse.Namespace, way: str, mode: str, folder: Path, model: str, data: Path) -> Job:
    own = folder / f"{mode}-{way}"
    own.mkdir()
    return Job(
        way=way,
        mode=mode,
        folder=str(own),
        model=model,
        data=str(data),
        rounds=args.rounds,
        samples=args.samples,
        batch=args.batch // (args.processes * args.accumulation),
        accumulation=args.accumulation,
        workers=args.workers,
        max_length=args.max_length,
        max_pixels=None if args.model == "qwen-vl" else args.max_pixels,
        bf16=args.bf16,
    )


def start(args: argparse.Namespace, job: Job) -> subprocess.Popen[bytes]:
    """The way's process (with --processes, all of them), which waits for its first turn."""
    python = args.llamafactory if job.way == "llamafactory" else sys.executable
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.processes)]
    command = [python, *(launcher if args.processes > 1 else []), __file__, "--job", json.dumps(asdict(job))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads(args)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of packages that this comparison does not use
    }
    log = Path(job.folder) / "log"
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, cwd=job.folder, stdout=out, stderr=out)


def take_turn(process: subprocess.Popen[bytes], folder: Path, turn: int, processes: int) -> dict[str, float]:
    """Let one way train; returns what its processes measured: the slowest one's times, everybody's memory and CPU."""
    (folder / f"go-{turn}").touch()
    files = [folder / f"result-{turn}-{rank}.json" for rank in range(processes)]
    while not all(file.exists() for file in files):
        if process.poll() is not None:
            log = (folder / "log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{folder.name} ended with status {process.returncode}:\n{log[-4000:]}")
        time.sleep(0.05)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    summed = ("cpu_seconds", "peak_MiB", "tokens", "places")
    return {name: (sum if name in summed else max)(one[name] for one in found) for name in found[0]}


def serve(job: Job) -> None:
    """In a way's process: train whenever it is this way's turn."""
    train = {"plain": plain, "llamafactory": llamafactory}.get(job.way, ours)
    run = train(job)  # imports, outside of every turn
    rank = os.environ.get("RANK", "0")
    for turn in range(job.rounds + 1):
        while not (Path(job.folder) / f"go-{turn}").exists():
            time.sleep(0.02)
        with tempfile.TemporaryDirectory() as output:
            os.environ["ATTENTION_FINETUNE_CACHE"] = output  # tokens are counted again in every turn
            meter = measuring(output, run)
        result = Path(job.folder) / f"result-{turn}-{rank}.json"
        result.with_suffix(".partial").write_text(json.dumps(meter), encoding="utf-8")
        result.with_suffix(".partial").rename(result)
    while True:  # all ways keep their memory until the last one is done
        time.sleep(1)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def measuring(output: str, run: Callable[[str, Any], None]) -> dict[str, float]:
    """Run and measure one training, from inside transformers' Trainer, which every way is built on."""
    import torch
    from transformers import Trainer, TrainerCallback

    seen = {"tokens": 0.0, "places": 0.0, "waiting_seconds": 0.0, "steps": 0.0}
    began = time.perf_counter()

    class Meter(TrainerCallback):
        def __init__(self) -> None:
            self.seen = seen

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            seen["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
            seen["before_seconds"] = time.perf_counter() - began
            self.start, self.cpu = time.perf_counter(), cpu_seconds()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seen["seconds"] = time.perf_counter() - self.start
            seen["cpu_seconds"] = cpu_seconds() - self.cpu
            seen["steps"] = state.global_step
            assert abs(state.epoch - 1) < 1e-6, f"trained {state.epoch} epochs, not 1"

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen["loss"] = logs.get("loss", seen.get("loss"))

    with watching_batches(Trainer, seen):
        run(output, Meter())
    seen["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        seen["peak_MiB"] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.empty_cache()
    return seen


@contextlib.contextmanager
def watching_batches(trainer: Any, seen: dict[str, float]) -> Iterator[None]:
    """Every batch that any Trainer takes is counted: its tokens, its places with padding, and the wait for it."""
    original = trainer.get_batch_samples

    @functools.wraps(original)
    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        batches, items = original(self, *args, **kwargs)
        seen["waiting_seconds"] += time.perf_counter() - start
        for batch in batches:
            mask = batch.get("attention_mask")
            seen["places"] += batch["input_ids"].numel()
            seen["tokens"] += batch["input_ids"].numel() if mask is None else (mask > 0).sum().item()
        return batches, items

    trainer.get_batch_samples = get_batch_samples
    try:
        yield
    finally:
        trainer.get_batch_samples = original


def cpu_seconds() -> float:
    """Of this process, and of its data workers as far as they have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def summary(measured: Mapping[str, Sequence[dict[str, float]]], samples: int) -> dict[str, Any]:
    """Medians of each way, and ratios of each of ours over each of the others, as medians of pairs of one round."""
    tokens = {way: turns[0]["tokens"] for way, turns in measured.items()}
    ways = {way: describe(turns, samples) for way, turns in measured.items()}
    ratios: dict[str, Any] = {
        f"{way} over {other}": against(measured[way], measured[other])
        for other in ("plain", "llamafactory")
        for way in (*OURS,)
        if way in measured and other in measured
    }
    return {"ways": ways, "ratios": ratios, "same_tokens": len(set(tokens.values())) == 1}


def describe(turns: Sequence[dict[str, float]], samples: int) -> dict[str, Any]:
    def median(value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(value(turn) for turn in turns)

    return {
        "samples_a_second": round(median(lambda turn: samples / turn["seconds"]), 3),
        "tokens_a_second": round(median(lambda turn: turn["tokens"] / turn["seconds"]), 1),
        "cpu_seconds_a_sample": round(median(lambda turn: turn["cpu_seconds"] / samples), 4),
        "peak_MiB": round(max(turn["peak_MiB"] for turn in turns), 1),
        "share_waiting_for_data": round(median(lambda turn: turn["waiting_seconds"] / turn["seconds"]), 4),
        "share_padding": round(median(lambda turn: 1 - turn["tokens"] / turn["places"]), 4),
        "seconds_before_training": round(median(lambda turn: turn["before_seconds"]), 2),
        "steps": round(turns[0]["steps"]),
        "tokens": round(turns[0]["tokens"]),
        "trainable_parameters": round(turns[0]["trainable_parameters"]),
        "last_loss": round(turns[0]["loss"], 4),
        "seconds_of_rounds": [round(turn["seconds"], 3) for turn in turns],
    }


def against(ours: Sequence[dict[str, float]], others: Sequence[dict[str, float]]) -> dict[str, float]:
    """Above 1: ours trains faster. Memory below 1: ours needs less."""
    pairs = [*zip(ours, others, strict=True)]
    return {
        "samples_a_second": round(statistics.median(b["seconds"] / a["seconds"] for a, b in pairs), 4),
        "samples_a_CPU_second": round(
            statistics.median(b["cpu_seconds"] / a["cpu_seconds"] for a, b in pairs), 4
        ),
        "peak_memory": round(max(a["peak_MiB"] for a in ours) / max(b["peak_MiB"] for b in others), 4),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Ways
# ---------------------------------------------------------------------------------------------------------------------


def ours(job: Job) -> Callable[[str, Any], None]:
    """finetune.py, with the meter among its callbacks."""
    sys.path.insert(0, str(ROOT))
    from attention_finetune import train as program
    from finetune.training import trainer

    build = trainer.build_trainer

    def run(output: str, meter: Any) -> None:
        def build_trainer(*args: Any, callbacks: Sequence[Any] = (), **kwargs: Any) -> Any:
            return build(*args, callbacks=[*callbacks, meter], **kwargs)

        trainer.build_trainer = build_trainer
        ready = program.prepare(program.parse([*common_flags(job, output), *our_flags(job), *OURS[job.way]]))
        assert ready is not None
        tokens = ready.train_set.lengths.tokens
        if job.way == "packed":  # as many rows as hold the samples of a batch of the others
            rows = round(job.batch * float(tokens.mean()) / job.max_length)
            ready.args.training.per_device_train_batch_size = max(1, rows)
        run = program.build(ready)
        program.train(run)
        program.save(run)
        # Packed rows have no mask that tells padding apart. Each process counts its share.
        meter.seen["tokens"] = float(tokens.sum()) / int(os.environ.get("WORLD_SIZE", "1"))

    return run


def common(job: Job, output: str) -> dict[str, Any]:
    """Training arguments that every way is given."""
    return {
        "output_dir": str(Path(output) / "run"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulation,
        "learning_rate": RATE,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": job.workers,
        "disable_tqdm": True,
        "bf16": job.bf16,
        "seed": SEED,
    }


def common_flags(job: Job, output: str) -> list[str]:
    return [str(word) for name, value in common(job, output).items() for word in (f"--{name}", value)]


def our_flags(job: Job) -> list[str]:
    flags = {"model_name_or_path": job.model, "data_path": job.data, "model_max_length": job.max_length}
    if job.max_pixels is not None:
        flags["max_pixels"] = job.max_pixels
    if job.mode == "lora":
        flags |= {"use_lora": True, **{f"lora_{name}": value for name, value in LORA.items()}}
    else:
        flags |= {"language": "full", "connector": "frozen"}
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def plain(job: Job) -> Callable[[str, Any], None]:
    """What one writes with transformers and peft alone: a list of records, a collator, a Trainer."""
    sys.path.insert(0, str(ROOT))
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments, set_seed

    from finetune.families import family_of
    from finetune.model.adaptation import Plan, component_of, target_pattern
    from finetune.model.checkpoint import load_processor

    def run(output: str, meter: Any) -> None:
        set_seed(SEED)
        processor = load_processor(job.model)
        dtype = torch.bfloat16 if job.bf16 and job.mode == "lora" else torch.float32
        model = AutoModelForImageTextToText.from_pretrained(job.model, dtype=dtype)
        family = family_of(model.config)
        if job.max_pixels is not None:
            family.set_pixel_budget(processor, min_pixels=None, max_pixels=job.max_pixels)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = component_of(name, family.paths) == "language"
        if job.mode == "lora":
            model = get_peft_model(
                model,
                LoraConfig(
                    r=LORA["r"],
                    lora_alpha=LORA["alpha"],
                    lora_dropout=LORA["dropout"],
                    target_modules=target_pattern(model, family, Plan(language="lora")),
                ),
            )
        arguments = TrainingArguments(
            **common(job, output),
            remove_unused_columns=False,
            use_cpu=not torch.accelerator.is_available(),
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=json.loads(Path(job.data).read_text(encoding="utf-8")),
            data_collator=PlainCollator(processor, Path(job.data).parent),
            callbacks=[meter],
        ).train()

    return run


class PlainCollator:
    """Records → a batch, by the processor; labels are -100 outside the answers."""

    def __init__(self, processor: Any, folder: Path) -> None:
        self.processor, self.folder = processor, folder
        question = [{"role": "user", "content": "?"}]
        without, asked = (
            processor.apply_chat_template(
                question, add_generation_prompt=more, tokenize=True, return_dict=True
            )
            for more in (False, True)
        )
        self.header = asked["input_ids"][0][len(without["input_ids"][0]) :]
        self.stop = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def __call__(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        texts = [
            self.processor.apply_chat_template(self.messages(record), tokenize=False) for record in records
        ]
        pictures = [self.picture(name) for record in records for name in record["images"]]
        batch = dict(self.processor(text=texts, images=pictures or None, padding=True, return_tensors="pt"))
        batch["labels"] = self.labels(batch["input_ids"])
        return batch

    def messages(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"role": message["role"], "content": self.content(message["content"], record["images"])}
            for message in record["messages"]
        ]

    def content(self, text: str, images: Sequence[str]) -> Any:
        """Text with a marker → what the processor takes: Qwen-VL its own markup, others a list of parts."""
        if "<img>" in self.processor.chat_template:
            return text.replace("<image>", f"<img>{''.join(images)}</img>")
        words = text.replace("<image>", "")
        pictures = [{"type": "image"}] * text.count("<image>")
        return [*pictures, {"type": "text", "text": words}]

    def picture(self, name: str) -> Any:
        from PIL import Image

        with Image.open(self.folder / name) as opened:
            return opened.convert("RGB")

    def labels(self, input_ids: Any) -> Any:
        import torch

        labels = torch.full_like(input_ids, -100)
        header = torch.as_tensor(self.header)
        for row, ids in enumerate(input_ids):
            windows = ids.unfold(0, len(header), 1)
            for place in (windows == header).all(dim=1).nonzero().flatten().tolist():
                first = place + len(header)
                last = first + (ids[first:] == self.stop).nonzero()[0].item()
                labels[row, first : last + 1] = ids[first : last + 1]
        return labels


def llamafactory(job: Job) -> Callable[[str, Any], None]:
    """LLaMA-Factory, with its defaults but for what all ways have in common."""
    import torch
    from llamafactory.train.tuner import run_exp

    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    described = {
        "file_name": job.data,
        "formatting": "sharegpt",
        "columns": columns,
        "tags": tags,
    }
    information = Path(job.folder) / "dataset_info.json"
    information.write_text(json.dumps({"speed": described}), encoding="utf-8")
    how = (
        {
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": LORA["r"],
            "lora_alpha": LORA["alpha"],
            "lora_dropout": LORA["dropout"],
        }
        if job.mode == "lora"
        else {"finetuning_type": "full"}
    )

    def run(output: str, meter: Any) -> None:
        run_exp(
            {
                **common(job, output),
                **how,
                "stage": "sft",
                "do_train": True,
                "model_name_or_path": job.model,
                "dataset": "speed",
                "dataset_dir": job.folder,
                "media_dir": str(Path(job.data).parent),
                "template": "qwen2_vl",
                "cutoff_len": 100 * job.max_length,  # it would cut
                "overwrite_cache": True,
                "image_max_pixels": job.max_pixels,
                "disable_gradient_checkpointing": True,
                "flash_attn": "sdpa",
                "use_cpu": not torch.cuda.is_available(),
            },
            callbacks=[meter],
        )

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Model and data
# ---------------------------------------------------------------------------------------------------------------------


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


def write_model(folder: Path, args: argparse.Namespace) -> Path:
    """A small random model with its processor: some 2 million parameters, hidden width 128, 4 layers."""
    sys.path.insert(0, str(ROOT))
    folder.mkdir()
    {"qwen-vl": write_qwen_vl, "qwen2.5-vl": write_qwen2_5_vl}[args.model](folder, args.processor)
    return folder


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


# ---------------------------------------------------------------------------------------------------------------------
# The report's head, and the command line
# ---------------------------------------------------------------------------------------------------------------------


def circumstances(args: argparse.Namespace, model: str) -> dict[str, Any]:
    import torch
    from safetensors import safe_open

    sizes = []
    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            sizes += [torch.Size(weights.get_slice(name).get_shape()).numel() for name in weights.keys()]  # noqa: SIM118
    gpu = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if gpu else f"{platform.machine()}, CPU, {cores()} cores",
        "processes": args.processes,
        "threads": threads(args),
        "workers": args.workers,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
        "llamafactory_versions": llamafactory_versions(args) if "llamafactory" in args.ways else None,
        "model": args.model,
        "parameters": sum(sizes),
        "precision": "bfloat16" if args.bf16 else "float32",
        "samples": args.samples,
        "batch": args.batch,
        "accumulation": args.accumulation,
        "rounds": args.rounds,
        "memory": "torch's peak on the GPU" if gpu else "peak resident set",
    }


def llamafactory_versions(args: argparse.Namespace) -> dict[str, str]:
    names = ("llamafactory", "torch", "transformers", "peft")
    asked = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return json.loads(subprocess.check_output([args.llamafactory, "-c", asked]))


def cores() -> int:
    return len(os.sched_getaffinity(0))


def threads(args: argparse.Namespace) -> int:
    """Of torch, in each process. Data workers keep cores of their own: OpenMP's threads spin while they wait."""
    return args.threads or max(1, cores() // args.processes - args.workers)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="qwen-vl", help="qwen-vl or qwen2.5-vl (small, random), or a folder"
    )
    parser.add_argument(
        "--processor", type=Path, help="a folder with a published tokenizer for the small model"
    )
    parser.add_argument("--llamafactory", help="the Python of an environment that has it")
    parser.add_argument("--ways", nargs="+", choices=ORDER, default=None, help="default: all that there are")
    parser.add_argument("--modes", nargs="+", choices=("lora", "full"), default=("lora", "full"))
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument(
        "--batch", type=int, default=8, help="samples of an optimiser step, over all processes"
    )
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="data workers of a process")
    parser.add_argument(
        "--threads", type=int, help="of torch in a process; default: the cores that no worker needs"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max_length", type=int, default=768, help="of a sample, and of a packed row")
    parser.add_argument(
        "--max_pixels", type=int, default=250_880, help="of a picture, where they differ in size"
    )
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, help="a JSON file; it is printed in any case")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ways is None:
        args.ways = [way for way in ORDER if way != "llamafactory" or args.llamafactory]
    if "llamafactory" in args.ways and not args.llamafactory and args.job is None:
        parser.error("--ways llamafactory: needs --llamafactory PYTHON")
    if "llamafactory" in args.ways and args.processes > 1 and args.job is None:
        parser.error(
            "--processes above 1: LLaMA-Factory takes down the process group after one turn; leave it out"
        )
    if args.batch % (args.processes * args.accumulation):
        parser.error(f"--batch {args.batch}: expected a multiple of processes × accumulation")
    return args


if __name__ == "__main__":
    main()
