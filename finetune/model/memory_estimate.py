"""Memory of a training step on one device, estimated from shapes before anything is loaded.

    weights       every parameter as stored: 4 bytes in fp32, 2 in bf16, about half a byte in 4 bit
    gradients     one for each trained parameter, in its precision
    optimizer     optimizer states of each trained parameter, and DeepSpeed's fp32 copies
    activations   tensors that layers keep for the backward pass
    logits        the loss's rows over the whole vocabulary

ZeRO shards gradients, optimizer and weights as in Rajbhandari et al. 2020 (arXiv 1910.02054, section 5):
stage 1 the optimizer, stage 2 the gradients too, stage 3 the weights too. Activations are counted as in Korthikanti
et al. 2022 (arXiv 2205.05198, section 4), but for kernels that never hold tokens × tokens (SDPA, flash), for gated
MLPs, grouped keys, frozen weights and adapters.

Not counted: the device's own context, fragmentation, communication buckets, and what lives for one operation alone.
``RESERVE_BYTES`` stands for them. Measured beside it: ``benchmarks/memory_estimate.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from finetune.families.parts.modules import bare_model
from finetune.sharding import whole_shape

GIB = 2**30
RESERVE_BYTES = 1.5 * GIB
FP32 = 4
MASK = 1  # bytes of an element of dropout's mask on a GPU

NF4_CONSTANT_BITS = 0.127
"""Bits a 4-bit weight needs for its block's scale, which is quantised too (QLoRA, arXiv 2305.14314, section 3)."""

ADAM_8BIT = 2 * (1 + 4 / 256)
"""Two moments of a byte, and a scale in fp32 for each block of 256 (Dettmers et al. 2022, arXiv 2110.02861)."""


class Parameters(NamedTuple):
    """A model's parameters.

    resting_bytes   all of them, as they lie in memory
    trained         how many of them train
    trained_width   bytes of one that trains
    """

    resting_bytes: float
    trained: int
    trained_width: int


class Layer(NamedTuple):
    """One transformer layer, in elements a token.

    hidden         width of the residual stream
    projected      widths of queries, keys and values together
    attended       width of the attention's output, before its projection
    inner          width inside the MLP (of one branch, where it is gated)
    is_gated       two branches are multiplied
    is_fused       queries, keys and values come from one projection, which stays while one of them is in use
    is_trained     its own weights train
    adapter_inputs widths of the inputs that its adapters keep
    has_dropout    the adapters' inputs are dropped out, each on its own
    norm_is_native its norms are ``nn.LayerNorm``, which keeps its input alone; others compute in fp32
    """

    hidden: int
    projected: int
    attended: int
    inner: int
    is_gated: bool
    is_fused: bool
    is_trained: bool
    adapter_inputs: int = 0
    has_dropout: bool = False
    norm_is_native: bool = False


@dataclass(frozen=True)
class Stack:
    """Layers of one kind: how many, and how many tokens (patches, for a tower) go through them at once."""

    layer: Layer
    depth: int
    tokens: int


@dataclass(frozen=True)
class Sharding:
    """DeepSpeed's sharding; stage 0 without DeepSpeed, which then keeps no fp32 copies."""

    stage: int = 0
    ranks: int = 1
    is_deepspeed: bool = False
    offloads_optimizer: bool = False
    offloads_weights: bool = False


@dataclass(frozen=True)
class Step:
    """One training step on one device.

    stacks          whose activations are kept for the backward pass
    vocabulary      width of a row of logits
    rows            positions that get logits
    trained_rows    those of them that are trained on
    width           bytes of an element in the precision that computes
    stream_width    bytes of an element of the residual stream
    is_mixed        torch's autocast: fp32 weights are copied into the computing precision
    """

    parameters: Parameters
    stacks: tuple[Stack, ...]
    vocabulary: int
    rows: int
    trained_rows: int
    width: int
    stream_width: int
    is_mixed: bool
    checkpointing: bool
    optimizer: str
    sharding: Sharding = Sharding()


class Estimate(NamedTuple):
    """Peak bytes of each kind."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        """All of them together: they meet at the end of a forward pass, from the second step on, where a step has
        several micro-batches. With one, gradients come as activations go, and this is more than is needed."""
        return sum(self)


def estimate(step: Step) -> Estimate:
    """Bytes that a training step needs on one device, kind by kind."""
    copies = 2 * step.parameters.trained if step.is_mixed and step.parameters.trained_width == FP32 else 0
    gradients, optimizer = states(step.parameters, step.optimizer, step.sharding, step.width)
    weights = 0.0 if step.sharding.offloads_weights else step.parameters.resting_bytes
    if step.sharding.stage == 3:
        weights /= step.sharding.ranks
    activations, logits = activation_bytes(step), logit_bytes(step)
    if step.checkpointing:
        # A layer is recomputed in the backward pass, after the logits are freed: only the larger counts.
        again = max((recomputed_bytes(stack, step) for stack in step.stacks), default=0.0)
        activations += max(0.0, again - logits)
    return Estimate(weights + copies, gradients, optimizer, activations, logits)


# ---------------------------------------------------------------------------------------------------------------------
# What belongs to parameters
# ---------------------------------------------------------------------------------------------------------------------


def states(parameters: Parameters, optimizer: str, sharding: Sharding, width: int) -> tuple[float, float]:
    """(gradients, optimizer) in bytes.

    7.5 billion parameters in bf16 with Adam on 64 devices need, weights included, 120 GB without ZeRO, then 31.4,
    16.6 and 1.9 GB with its three stages (figure 1 of the paper).
    """
    kept = optimizer_bytes(optimizer, FP32 if sharding.is_deepspeed else parameters.trained_width)
    if not sharding.is_deepspeed:
        return parameters.trained * parameters.trained_width, parameters.trained * kept
    gradients = parameters.trained * width / (sharding.ranks if sharding.stage >= 2 else 1)
    copies = parameters.trained * (FP32 + kept) / (sharding.ranks if sharding.stage >= 1 else 1)
    return gradients, 0.0 if sharding.offloads_optimizer else copies


def optimizer_bytes(name: str, width: int) -> float:
    """Bytes that an optimizer of transformers keeps for a parameter of ``width`` bytes.

    Adam's two moments are counted for every name that is not known to keep less.
    """
    if "8bit" in name:
        return ADAM_8BIT / 2 if "lion" in name else ADAM_8BIT
    if name == "adafactor":
        return 0.0  # a row and a column for each matrix
    if name == "sgd":
        return 0.0
    if "lion" in name or name in ("adagrad", "rmsprop"):
        return float(width)
    return 2.0 * width


def parameters_of(model: nn.Module) -> Parameters:
    """Size of a model's parameters; also for a model on the meta device."""
    resting = 0.0
    trained = 0
    widths = [0]
    for parameter in bare_model(model).parameters():
        count = math.prod(whole_shape(parameter))
        resting += count * parameter.element_size()
        if parameter.dtype == torch.uint8:  # two 4-bit weights in each byte
            resting += 2 * count * NF4_CONSTANT_BITS / 8
        if parameter.requires_grad:
            trained += count
            widths.append(parameter.element_size())
    return Parameters(resting, trained, max(widths))


# ---------------------------------------------------------------------------------------------------------------------
# What belongs to a batch
# ---------------------------------------------------------------------------------------------------------------------


def activation_bytes(step: Step) -> float:
    """What all layers keep until their backward pass: with checkpointing, no more than their inputs."""
    if step.checkpointing:
        return sum(
            stack.depth * stack.tokens * stack.layer.hidden * step.stream_width for stack in step.stacks
        )
    return sum(
        stack.depth * stack.tokens * bytes_per_token(stack.layer, step.width, step.stream_width)
        for stack in step.stacks
    )


def recomputed_bytes(stack: Stack, step: Step) -> float:
    """One recomputed layer, and the gradients inside its MLP, its widest part."""
    branches = 3 if stack.layer.is_gated else 1
    kept = bytes_per_token(stack.layer, step.width, step.stream_width)
    return stack.tokens * (kept + branches * stack.layer.inner * step.width)


def bytes_per_token(layer: Layer, width: int, stream_width: int) -> float:
    """What one layer keeps of one token for its backward pass.

    A layer of GPT (LayerNorm, 4 × hidden inside, all weights trained, 2 bytes) keeps 32 bytes for each element of
    its hidden state: the 34 of Korthikanti et al., equation 1, without the two masks of a dropout that today's models
    do not have, and without attention's tokens × tokens.
    """
    h, f = layer.hidden, layer.inner
    if layer.norm_is_native:
        norms = 2 * h * stream_width
    else:
        norms = 2 * h * FP32 + (2 * h * stream_width if layer.is_trained else 0)
    attention = layer.projected + layer.attended + (2 * layer.projected // 3 if layer.is_fused else 0)
    mlp = 3 * f if layer.is_gated else f
    inputs = 2 * h + f if layer.is_trained else 0  # of its linear layers: a frozen one needs none
    adapters = layer.adapter_inputs * (width + (MASK if layer.has_dropout else 0))
    return norms + (attention + mlp + inputs) * width + adapters


def logit_bytes(step: Step) -> float:
    """The logits, and three fp32 copies of the trained rows: log-probabilities, and two gradients on their way back."""
    return step.vocabulary * (step.width * step.rows + 3 * FP32 * step.trained_rows)


def layer_of(model: nn.Module, layers: str, attention: str) -> tuple[Layer, int] | None:
    """The shape of the layers at a dotted path, and how many there are; None for an unknown layout.

    The known layout: linear layers inside the attention, the output projection last, and two or more beside it, the
    down projection last. Works on the meta device and with adapters.
    """
    stack = list(bare_model(model).get_submodule(layers).children())
    first = stack[0]
    if not all(hasattr(layer, attention) for layer in stack):  # layers of several kinds (linear attention)
        return None
    linears = [
        module
        for name, module in first.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    inside = {id(module) for module in first.get_submodule(attention).modules()}
    attending = [one for one in linears if id(one) in inside]
    others = [one for one in linears if id(one) not in inside]
    if len(attending) < 2 or len(others) < 2:
        return None
    *projections, output = attending
    *ups, down = others
    roles = {id(one): "into attention" for one in projections} | {id(one): "into the MLP" for one in ups}
    kept, has_dropout = _adapter_inputs(first, {**roles, id(output): "out of attention", id(down): "down"})
    layer = Layer(
        hidden=output.out_features,
        projected=sum(one.out_features for one in projections),
        attended=output.in_features,
        inner=down.in_features,
        is_gated=sum(one.out_features for one in ups) == 2 * down.in_features,
        is_fused=len(projections) == 1,
        is_trained=output.weight.requires_grad,
        adapter_inputs=kept,
        has_dropout=has_dropout,
        norm_is_native=any(isinstance(module, nn.LayerNorm) for module in first.modules()),
    )
    return layer, len(stack)


def _adapter_inputs(layer: nn.Module, roles: Mapping[int, str]) -> tuple[int, bool]:
    """Widths of what the adapters of a layer keep, and whether they drop some of it out.

    With dropout each adapter has an input of its own. Without it those of one place share theirs, and the attention's
    output is kept anyway.
    """
    modules = dict(layer.named_modules())
    widths: dict[str, int] = {}
    dropped = 0
    for name, module in modules.items():
        if ".lora_A." not in name or not isinstance(module, nn.Linear):
            continue
        place, adapter = name.split(".lora_A.")
        if isinstance(modules[f"{place}.lora_dropout.{adapter}"], nn.Dropout):
            dropped += module.in_features
        elif roles[id(modules[f"{place}.base_layer"])] != "out of attention":
            widths[roles[id(modules[f"{place}.base_layer"])]] = module.in_features
    return (dropped, True) if dropped else (sum(widths.values()), False)


# ---------------------------------------------------------------------------------------------------------------------
# For people
# ---------------------------------------------------------------------------------------------------------------------


def device_bytes() -> tuple[str, int] | None:
    """Name and memory of the device that would train; None if that is a CPU."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.name, properties.total_memory


def estimate_text(step: Step, device: tuple[str, int] | None) -> str:
    """The estimate as a table, and whether it fits the device."""
    found = estimate(step)
    notes = {
        "weights": "and their copies in the precision that computes" if step.is_mixed else "",
        "optimizer": step.optimizer + (" and fp32 copies" if step.sharding.is_deepspeed else ""),
        "activations": "activation checkpointing" if step.checkpointing else "no activation checkpointing",
        "logits": f"{step.rows:,} rows of {step.vocabulary:,} words",
    }
    lines = [
        f"  {name:<12}{gibibytes(size):>10}  {notes.get(name, '')}".rstrip()
        for name, size in found._asdict().items()
    ]
    return "\n".join([*lines, f"  {'peak':<12}{gibibytes(found.peak):>10}  {verdict(found.peak, device)}"])


def verdict(peak: float, device: tuple[str, int] | None) -> str:
    """``+ 1.5 GiB that the device keeps for itself; NVIDIA H100 has 80.0 GiB: fits``"""
    reserve = f"+ {gibibytes(RESERVE_BYTES)} that a device keeps for itself"
    if device is None:
        return reserve
    name, memory = device
    return f"{reserve}; {name} has {gibibytes(memory)}: {'fits' if fits(peak, memory) else 'DOES NOT FIT'}"


def fits(peak: float, memory: float) -> bool:
    return peak + RESERVE_BYTES <= memory


def advice(step: Step, batch: int, memory: float) -> list[str]:
    """What would make a step of ``batch`` samples fit, cheapest first, each with the peak that it leads to.

    Each line is one more change on top of those before it; they end where the step fits. What needs other weights
    (LoRA, 4 bit, smaller pictures) has no figure, and comes last.
    """
    lines = []
    for words, changed in _changes(step, batch):
        lines.append(f"{words}: {gibibytes(estimate(changed).peak)}")
        if fits(estimate(changed).peak, memory):
            return lines
    return [
        *lines,
        "--use_lora True or --q_lora True, shorter samples, or fewer tokens per picture (--max_pixels)",
    ]


def _changes(step: Step, batch: int) -> Iterator[tuple[str, Step]]:
    if not step.checkpointing:
        step = replace(step, checkpointing=True)
        yield "--gradient_checkpointing True", step
    if batch > 1:
        stacks = tuple(replace(stack, tokens=stack.tokens // batch) for stack in step.stacks)
        rows, trained = step.rows // batch, step.trained_rows // batch
        step = replace(step, stacks=stacks, rows=rows, trained_rows=trained)
        yield (
            f"--per_device_train_batch_size 1 (and --gradient_accumulation_steps {batch} times as many)",
            step,
        )
    if step.sharding.ranks > 1:
        for stage in range(max(2, step.sharding.stage + 1), 4):
            step = _under_deepspeed(step, stage)
            yield f"--deepspeed ds_config_zero{stage}.json", step
    if "8bit" not in step.optimizer and not step.sharding.is_deepspeed:
        step = replace(step, optimizer="adamw_bnb_8bit")
        yield "--optim adamw_bnb_8bit", step


def _under_deepspeed(step: Step, stage: int) -> Step:
    """The same step with ZeRO: trained weights in the precision that computes, beside DeepSpeed's fp32 copies."""
    resting, trained, trained_width = step.parameters
    lighter = Parameters(resting - trained * (trained_width - step.width), trained, step.width)
    sharding = replace(step.sharding, stage=stage, is_deepspeed=True)
    return replace(step, parameters=lighter, sharding=sharding, is_mixed=False)


def gibibytes(size: float) -> str:
    """``12.3 GiB``, or MiB below a tenth of one."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"
