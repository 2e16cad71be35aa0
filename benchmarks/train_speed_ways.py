"""The ways that benchmarks/train_speed.py compares: each trains one epoch of the same samples.

torch, transformers and this project are imported where a way needs them: LLaMA-Factory's environment has no
``finetune/``.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SEED = 42
RATE = 1e-4
LORA = {"r": 16, "alpha": 16, "dropout": 0.05}
OURS = {
    "ours": (),
    "grouped": ("--train_sampling_strategy", "group_by_length"),
    "packed": ("--packing", "True"),
}
OTHERS = ("plain", "trl", "llamafactory")
ORDER = (*OTHERS, *OURS)


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
    max_pixels: int | None  # None: pictures of this model have one size
    template: str  # LLaMA-Factory's name of the chat
    bf16: bool


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
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments, set_seed

    def run(output: str, meter: Any) -> None:
        set_seed(SEED)
        model, processor, adapters = parts_of(job)
        if adapters is not None:
            model = get_peft_model(model, adapters)
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


def parts_of(job: Job) -> tuple[Any, Any, Any]:
    """Model with only its language part trainable, processor, and LoRA's configuration (None in mode full)."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText

    from finetune.families import family_of
    from finetune.model.adaptation import Plan, component_of, target_pattern
    from finetune.model.checkpoint import load_processor

    processor = load_processor(job.model)
    dtype = torch.bfloat16 if job.bf16 and job.mode == "lora" else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(job.model, dtype=dtype)
    family = family_of(model.config)
    if job.max_pixels is not None:
        family.set_pixel_budget(processor, min_pixels=None, max_pixels=job.max_pixels)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = component_of(name, family.paths) == "language"
    adapters = LoraConfig(
        r=LORA["r"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        target_modules=target_pattern(model, family, Plan(language="lora")),
    )
    return model, processor, adapters if job.mode == "lora" else None


class PlainCollator:
    """Records → a batch, by the processor; labels are -100 outside the answers."""

    def __init__(self, processor: Any, folder: Path) -> None:
        self.processor, self.folder = processor, folder
        question = [{"role": "user", "content": self.content("?", ())}]
        without, asked = (
            processor.apply_chat_template(
                question, add_generation_prompt=more, tokenize=True, return_dict=True
            )
            for more in (False, True)
        )
        self.header = asked["input_ids"][0][len(without["input_ids"][0]) :]
        self.stop = processor.tokenizer.eos_token_id

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


def trl(job: Job) -> Callable[[str, Any], None]:
    """TRL's SFTTrainer with its own collator and defaults; of the answer alone, as all ways train."""
    sys.path.insert(0, str(ROOT))
    import torch
    from datasets import Dataset, Features, Image, List, Value
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    folder = Path(job.data).parent
    message = {"role": Value("string"), "content": Value("string")}
    columns = Features({"images": List(Image()), "prompt": List(message), "completion": List(message)})

    def samples() -> Any:
        records = json.loads(Path(job.data).read_text(encoding="utf-8"))
        return Dataset.from_list(
            [
                {
                    "images": [str(folder / name) for name in record["images"]],
                    "prompt": [
                        {"role": "user", "content": one["content"].replace("<image>", "")}
                        for one in record["messages"][:1]
                    ],
                    "completion": record["messages"][1:],
                }
                for record in records
            ],
            features=columns,
        )

    def run(output: str, meter: Any) -> None:
        set_seed(SEED)
        model, processor, adapters = parts_of(job)
        arguments = SFTConfig(
            **common(job, output),
            max_length=None,  # it would cut
            gradient_checkpointing=False,
            use_cpu=not torch.accelerator.is_available(),
        )
        SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=samples(),
            processing_class=processor,
            peft_config=adapters,
            callbacks=[meter],
        ).train()

    return run


def llamafactory(job: Job) -> Callable[[str, Any], None]:
    """LLaMA-Factory with its defaults, but for what all ways have in common."""
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
                "template": job.template,
                "cutoff_len": 100 * job.max_length,  # it would cut
                "overwrite_cache": True,
                **({} if job.max_pixels is None else {"image_max_pixels": job.max_pixels}),
                "disable_gradient_checkpointing": True,
                "flash_attn": "sdpa",
                "use_cpu": not torch.cuda.is_available(),
            },
            callbacks=[meter],
        )

    return run


WAYS: dict[str, Callable[[Job], Callable[[str, Any], None]]] = {
    "plain": plain,
    "trl": trl,
    "llamafactory": llamafactory,
    **dict.fromkeys(OURS, ours),
}
