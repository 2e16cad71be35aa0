"""The model of a run: checked without weights, then built; and what is printed about it before training."""

from pathlib import Path
from typing import Any

import torch

from finetune import families
from finetune.data import dataset
from finetune.distributed import is_distributed, say
from finetune.families.parts.modules import attending_layers, layer_words
from finetune.flags.arguments import Arguments
from finetune.model import adaptation, adapters, checkpoint, kernels
from finetune.training import library_log, preview


def open_checkpoint(args: Arguments, plan: adaptation.Plan) -> tuple[Any, families.Family]:
    """Processor and family of the model; its modules are checked against the flags without loading weights.

    Raises ValueError for a LoRA target that matches nothing, a key layer that does not exist, a pixel budget that
    the family cannot honour, an attention kernel that the language model does not support, and for packing where the
    family cannot put several samples into one row.
    """
    name, cache = str(args.model.model_name_or_path), args.model.cache_dir
    config = checkpoint.load_config(name, cache_dir=cache)
    family = families.family_of(config)
    checkpoint.check_kernel_of(config, args.model.attn_implementation)
    kernels.prepare(args.training, config.model_type)
    model = checkpoint.skeleton(config)
    check_key_layers(args, model, family)
    if plan.adapter:
        adaptation.adapt(model, family, plan, master_weights=False)
    elif plan.lora:
        adaptation.target_pattern(model, family, plan)
    processor = checkpoint.load_processor(
        plan.adapter or name, cache_dir=cache, base=name if plan.adapter else None
    )
    family.set_pixel_budget(processor, min_pixels=args.data.min_pixels, max_pixels=args.data.max_pixels)
    if args.data.packing:
        family.packed(config, [family.blank(processor)])  # here, not in the first batch
    return processor, family


def plan_of(args: Arguments) -> adaptation.Plan:
    chosen = args.adaptation
    return adaptation.Plan(
        **args.modes,
        embeddings=chosen.train_embeddings,
        targets=tuple(chosen.lora_target_modules) if chosen.lora_target_modules else None,
        rank=chosen.lora_r,
        alpha=chosen.lora_alpha,
        dropout=chosen.lora_dropout,
        bias=chosen.lora_bias,
        dora=chosen.use_dora,
        adapter=chosen.lora_weight_path,
    )


def rates_of(args: Arguments) -> adaptation.Rates:
    return adaptation.Rates(args.training.learning_rate, args.own_rates, args.training.weight_decay)


def precision_of(args: Arguments) -> torch.dtype:
    """The compute precision of training."""
    training = args.training
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32


def build_model(args: Arguments, family: families.Family, plan: adaptation.Plan) -> Any:
    """The model, with the trained parameters unfrozen.

    Frozen weights are stored in the compute precision. Trained ones are fp32 (so that mixed precision keeps small
    updates), unless DeepSpeed keeps fp32 copies of its own.
    """
    training = args.training
    if training.deepspeed and is_distributed():
        import deepspeed

        # ZeRO-3 shards while loading. On a CPU nothing has initialised DeepSpeed's process group by then, and
        # it would assume that it is the only one.
        with library_log.printed():
            deepspeed.init_distributed(auto_mpi_discovery=False)
    model, _ = checkpoint.load(
        str(args.model.model_name_or_path),
        dtype=resting_precision(args, plan),
        quantize=args.adaptation.q_lora,
        for_training=True,
        cache_dir=args.model.cache_dir,
        attn_implementation=args.model.attn_implementation,
    )
    if plan.adapter and not args.adaptation.allow_other_base:
        # Again, for a base of which a part was still on the hub when the flags were checked.
        name, cache = str(args.model.model_name_or_path), args.model.cache_dir
        adapters.check_base(Path(plan.adapter), name, cache_dir=cache)
    return adaptation.adapt(model, family, plan, master_weights=not training.deepspeed)


def resting_precision(args: Arguments, plan: adaptation.Plan) -> torch.dtype:
    """The precision of loaded weights: fp32 where the model itself is trained and nothing else keeps fp32 copies."""
    whole = plan.lora or plan.language == "frozen" or bool(args.training.deepspeed)
    return precision_of(args) if whole else torch.float32


def outline(args: Arguments, family: families.Family, plan: adaptation.Plan) -> Any:
    """The model that ``build_model`` would build, without weights: its modules, shapes and precisions."""
    config = checkpoint.load_config(str(args.model.model_name_or_path), cache_dir=args.model.cache_dir)
    model = checkpoint.skeleton(config).to(resting_precision(args, plan))
    model = adaptation.adapt(model, family, plan, master_weights=not args.training.deepspeed)
    if args.adaptation.q_lora:
        preview.quantise_outline(model, family)
    return model


def describe(
    args: Arguments,
    model: Any,
    plan: adaptation.Plan,
    train_set: dataset.ConversationDataset,
    *,
    whole: bool = False,
) -> None:
    """Print what is trained on what data: briefly before training, in full for a dry run."""
    family = train_set.family
    summary = preview.Preview(
        model, train_set, args.training, packing=args.data.packing, precision=precision_of(args)
    )
    say(summary.samples(most=preview.MOST_SAMPLES_SHOWN) if whole else summary.samples())
    say(summary.lengths() if whole else summary.lengths_line())
    say(adaptation.table_text(adaptation.table(model, family, rates_of(args))))
    still = adaptation.not_trained_further(model, family) if plan.adapter else []
    if still:
        say(f"in the adapter, but not trained because no flag selects it: {', '.join(still)}")
    frozen = adaptation.left_frozen(model, family, plan)
    if frozen:
        say(f"not trained, because an adapter cannot store it: {', '.join(frozen)}")
    say(summary.device_memory() if whole else summary.device_memory_line(), summary.steps())


def check_key_layers(args: Arguments, model: Any, family: families.Family) -> None:
    """Raises ValueError for a key layer that the model does not have, or that has no attention map."""
    attending = attending_layers(model, family)
    wrong = [layer for layer in args.monitor.chosen_layers() if layer not in attending]
    if wrong:
        expected = layer_words(attending)
        raise ValueError(f"--key_layers: found {wrong}, expected layers of this model, {expected}")
