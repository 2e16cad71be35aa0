"""An adapter or a checkpoint → a model folder that any library can load.

Adapters are merged into the published base, never into its 4-bit copy: rounding the sum to 4 bits again would lose most
of what was learned (QwenLM/Qwen-VL#281). The folder is written under a temporary name, loaded again, compared with its
source, and only then renamed.

Usage and flags: ``finetune/flags/export.py``.
"""

import os
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from finetune.flags.export import parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging

import finetune.families as families
from finetune import fields, folder_lock
from finetune.families.base import ignored_elsewhere
from finetune.families.parts.modules import bare_model
from finetune.files import (
    WriteError,
    check_writable,
    fault_words,
    give_usual_mode,
    is_refused_write,
    refusal_words,
    writing,
)
from finetune.model import adapters, checkpoint, look_file, seen_file, weights
from finetune.model.run_data import LINEAGE_FILE, RUN_FILE, run_of
from finetune.printable import printable
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.training import lineage, model_card, run_folder

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of a logit, as a share of the largest logit. Base and adapter round differently than the
merged weight: by 1e-6, 1.2e-3 and 1.1e-2 at most, over three adapters of the demo's base that moved logits by
5e-2 to 5e-1."""

KEEPING = (
    "Verdicts are of whole pictures. With fewer image tokens (`--keep_image_tokens` of the web demo) answers may be "
    "others: `python -m diagnostics.keep` measures it."
)
NAMED = "what the weights were trained on is in {}, which names data files of this machine"
QUESTION = "What is in the picture, and where is it?"
PICTURE_PIXELS = (93, 61)  # width and height, not square


class Difference(NamedTuple):
    """Difference of two models' logits on the built-in prompt.

    largest   the largest difference over tokens and vocabulary
    scale     the largest logit
    """

    largest: float
    scale: float

    @property
    def share(self) -> float:
        return self.largest / max(self.scale, 1e-30)

    def __str__(self) -> str:
        return f"{self.largest:.2g} ({self.share:.1e} of the largest logit)"


class History(NamedTuple):
    """Settings of the run that trained a checkpoint; None if unknown."""

    dtype: torch.dtype | None = None
    four_bit: bool = False


class Exported(NamedTuple):
    """An exported folder and its logit differences.

    saved      exported model against base and adapter, in the precision of the export
    adapter    base with the adapter against base alone; None for a full model
    four_bit   exported model against the 4-bit base with the adapter, as trained; None without QLoRA, and where a 4-bit
               base cannot be opened
    """

    folder: Path
    dtype: torch.dtype
    saved: Difference
    adapter: Difference | None
    four_bit: Difference | None


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit code."""
    flags = parser().parse_args(argv)
    try:
        export(
            flags.checkpoint,
            flags.output_dir,
            dtype=DTYPES[flags.dtype] if flags.dtype else None,
            base=flags.base,
            allow_other_base=flags.allow_other_base,
            device=flags.device,
            max_shard_size=flags.max_shard_size,
            cache_dir=flags.cache_dir,
        )
    except (ValueError, WriteError) as error:
        print(printable(f"finetune.export: {fault_words(error)}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfinetune.export: interrupted; no files were kept", file=sys.stderr)
        return 130
    return 0


def export(
    source: str | Path,
    output_dir: str | Path,
    *,
    dtype: torch.dtype | None = None,
    base: str | None = None,
    allow_other_base: bool = False,
    device: str = "cpu",
    max_shard_size: str = "5GB",
    cache_dir: str | None = None,
    say: Callable[[str], None] = print,
) -> Exported:
    """Write a model folder with processor and generation configuration, and check that it is the same model.

    source          an adapter folder, a checkpoint of a run, a model folder or a hub name
    output_dir      a new or empty folder; it appears once the export is complete
    dtype           precision of the weights; None: the run's training precision if known, else the base's
    base            the base's folder, instead of the one that the adapter names
    allow_other_base   allow merging into other weights than the adapter was trained on
    max_shard_size  largest size of one weight file

    Raises ValueError for an invalid source or output folder, and where the exported logits differ from those of base
    and adapter by more than ``TOLERANCE``; no files are kept then.
    """
    opening: dict[str, Any] = {"base": base, "allow_other_base": allow_other_base, "cache_dir": cache_dir}
    opened, adapter = _checked(source, opening)
    origins = source, base or checkpoint.resolve(source)[0]
    folder = _new_folder(Path(output_dir))
    history = history_of(Path(source))
    options = {**opening, "device": device}

    wanted = dtype or history.dtype
    alone = None
    if adapter is not None and _trains_biases(adapter):
        say(f"opening its base alone in {_name(wanted)}: the adapter trains biases of the base itself")
        alone = _base_logits(source, opened, options, wanted)
    say(f"opening {source} in {_name(wanted)}")
    model, processor = checkpoint.load(source, dtype=wanted, **options)
    is_other = (
        adapter is not None and allow_other_base and _is_other_base(adapter, opened, cache_dir=cache_dir)
    )
    bare: Any = bare_model(model)
    stored: torch.dtype = bare.config.dtype
    before = logits(model, processor)
    effect = _effect(model, processor, before, alone)

    with _appearing_whole(folder, say) as partial:
        say(f"{'merging' if effect else 'writing'} in {_name(stored)}")
        _write(model, processor, partial, max_shard_size)
        del model, bare
        say("loading the exported model and comparing its logits")
        fresh, its_processor = checkpoint.load(partial, device=device)
        after = logits(fresh, its_processor)
        del fresh
        saved = difference(before, after)
        _require_same(saved, effect, stored, say)
        four_bit = _against_four_bit(source, after, options, stored, say) if history.four_bit else None
        note = _note(effect, four_bit, trained_in_four_bit=history.four_bit, is_other=is_other)
        card = model_card.Exported(Path(source), note, folder.resolve().name, opened if is_other else None)
        _write_card(partial, card, processor)
        look_file.carry(partial, *origins)
        seen_file.carry(partial, *origins)
        if lineage.carry(partial, source, base=None if adapter is None else opened):
            say(NAMED.format(LINEAGE_FILE))
    say(f"done: {folder} ({_gib(folder):.2f} GiB)")
    return Exported(folder, stored, saved, effect, four_bit)


# ---------------------------------------------------------------------------------------------------------------------
# Stations
# ---------------------------------------------------------------------------------------------------------------------


def _checked(source: str | Path, opening: Mapping[str, Any]) -> tuple[str, Path | None]:
    """The folder or hub name of the weights, and the adapter's folder, None without one.

    Raises ValueError for whatever is wrong with them, before weights are loaded.
    """
    if (Path(source) / checkpoint.MODEL_CONFIG).is_file():
        weights.require_all(Path(source))
    config = checkpoint.check(source, **opening)
    opened, adapter = checkpoint.resolve(source, base=opening["base"])
    if adapter is not None:
        _refuse_four_bit_base(config, opened)
    for one in (source, opening["base"] or checkpoint.resolve(source)[0]):
        look_file.supervised_of(one)
        seen_file.seen_of(one)
    return opened, adapter


@contextmanager
def _appearing_whole(folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder to write to, which takes this one's place at the end; where anything fails before, no files are kept.

    Raises ValueError where a disk refuses a file.
    """
    partial = _partial_folder(folder, say)
    try:
        yield partial
        folder_lock.release(partial)
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except Exception as error:
        if not is_refused_write(error):
            raise
        raise ValueError(
            f"--output_dir {folder}: {refusal_words(error)}; no files were kept: free some space, or give another"
        ) from error
    finally:
        _empty(partial)
        folder_lock.release(partial)
        with suppress(OSError):  # it has become the folder that was wanted
            partial.rmdir()


def history_of(source: Path) -> History:
    """Precision and quantisation of the run that wrote ``source``, or that it was copied out of.

    Raises ValueError for a ``run.json`` or ``lineage.json`` of another shape.
    """
    marks = _marks_of(source)
    if marks is None:
        return History()
    dtype = torch.bfloat16 if marks.get("bf16") else torch.float16 if marks.get("fp16") else torch.float32
    return History(dtype, bool(marks.get("q_lora")))


def _marks_of(source: Path) -> Mapping[str, Any] | None:
    """The flags of training; None where no file says them. Of a checkpoint they are those of the start that saved it:
    its run may have gone on in another precision."""
    own = lineage.trained_with(source)
    if own is not None:
        return own
    run = run_of(source)
    if run is not None:
        path = run / RUN_FILE
        content = fields.load(path, run_folder.RUN_SHAPE, required=("marks",), remedy="copy it again")
        return dict(content["marks"])
    if not (source / run_folder.STATE_FILE).is_file():
        return None  # an export's lineage.json is of what was merged into it
    earlier = lineage.of_export(source) or ()
    stints = earlier[-1].stints if earlier else None
    return stints[-1].marks if stints else None


def _refuse_four_bit_base(config: Any, base: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{base}: the adapter's base is quantised already, expected the checkpoint that it was made from: rounding "
            "the merged weights once more would lose most of what was learned; give that one: --base FOLDER "
            "--allow_other_base"
        )


def _new_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder}: is not empty; give a new folder, or empty this one")
    check_writable(folder.parent)
    return folder


def _partial_folder(folder: Path, say: Callable[[str], None]) -> Path:
    """A hidden folder to write to, locked, beside the one that is wanted; of an export that was killed it is emptied.

    Raises ValueError where another export writes there, or where it is not known whose it is.
    """
    partial = folder.with_name(f".{folder.name[:80]}.partial")
    left = [one.name for one in partial.iterdir()] if partial.is_dir() else []
    if left and folder_lock.LOCK_FILE not in left:
        raise ValueError(
            f"{partial}: found {left[0]}, which no export left there; expected an empty place to write to: move it away"
        )
    with writing(partial):
        for line in folder_lock.take(partial):
            say(line)
    _empty(partial)
    return partial


def _empty(partial: Path) -> None:
    """Delete all but the lock."""
    for path in partial.iterdir() if partial.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != folder_lock.LOCK_FILE:
            path.unlink()


def _is_other_base(adapter: Path, opened: str, *, cache_dir: str | None) -> bool:
    """Are the base's weights others than those that the adapter was trained on? Opening it refuses that unless it is
    allowed. Asked once the base is loaded: only then is all of a base of the hub on this machine."""
    try:
        adapters.check_base(adapter, opened, cache_dir=cache_dir)
    except ValueError:
        return True
    return False


def _note(
    effect: Difference | None, four_bit: Difference | None, *, trained_in_four_bit: bool, is_other: bool
) -> str:
    """What was done to the weights. ``is_other``: merged into another base than the adapter was trained on."""
    merged = f"An adapter was merged into {'another base' if is_other else 'its base'}"
    what = merged if effect else "The weights of a checkpoint"
    note = f"{what}; its logits were compared with those of what it was made from."
    if trained_in_four_bit:
        differ = "by how much was not measured" if four_bit is None else f"by {four_bit}"
        note += (
            " The adapter was trained on a base in 4 bit, and merged into one that is not: logits differ from those "
            f"over this base in 4 bit, {differ}."
        )
    return f"{note} {KEEPING}"


def _write_card(folder: Path, exported: model_card.Exported, processor: Any) -> None:
    """As of the run that trained the weights, with what they were trained on before. A verdict is carried over: the
    logits are the same."""
    source = exported.weights
    run = lineage.recorded_run_of(source) or source
    step = run_folder.step_of(source) if (source / run_folder.STATE_FILE).is_file() else None
    family = families.family_of(checkpoint.load_config(folder))
    model_card.write(
        folder,
        run=run,
        family=family.name,
        step=step,
        exported=exported,
        elsewhere=ignored_elsewhere(family, processor),
    )


def _trains_biases(adapter: Path) -> bool:
    """Does it hold biases of the base itself, which stay as trained when PEFT switches an adapter off?"""
    return adapters.check_fields(adapter).get("bias", "none") != "none"


def _base_logits(
    source: str | Path, base: str, options: dict[str, Any], dtype: torch.dtype | None
) -> Float[Tensor, "tokens words"]:
    """Of the base alone, as the adapter's processor reads the prompt."""
    cache_dir, device = options["cache_dir"], options["device"]
    model, _ = checkpoint.load(base, dtype=dtype, device=device, cache_dir=cache_dir)
    return logits(model, checkpoint.load_processor(source, cache_dir=cache_dir, base=base))


def _effect(
    model: nn.Module,
    processor: Any,
    adapted: Float[Tensor, "tokens words"],
    alone: Float[Tensor, "tokens words"] | None,
) -> Difference | None:
    """What the adapter does to the base; None for a full model.

    alone   logits of the base, where switching the adapter off does not give it back; None: it does
    """
    if not isinstance(model, PeftModel):
        return None
    if alone is not None:
        return difference(adapted, alone)
    with model.disable_adapter():
        return difference(adapted, logits(model, processor))


def _write(model: nn.Module, processor: Any, folder: Path, max_shard_size: str) -> None:
    merged: Any = model
    if isinstance(model, PeftModel):
        _part_shared(model)
        merged = model.merge_and_unload()  # type: ignore[operator]
    _untie(merged)
    needed = sum(p.numel() * p.element_size() for p in merged.parameters())
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ValueError(
            f"{folder.parent}: found {free / 2**30:.1f} GiB free, expected {needed / 2**30:.1f} for the weights"
        )
    merged.save_pretrained(folder, max_shard_size=max_shard_size)
    give_usual_mode(folder.glob("*.safetensors"))
    processor.save_pretrained(folder)


def _part_shared(model: nn.Module) -> None:
    """Give each module with a LoRA weights of its own, where another has them too: word embeddings and output layer.

    Trap: PEFT merges a LoRA into the weight that it finds, and so into both ends of a tie; with the adapter beside the
    base, it acts on one alone.
    """
    holders = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        base = module.get_base_layer()
        weight = dict(base.named_parameters(recurse=False)).get("weight")
        if weight is not None and holders[id(weight)] > 1:
            base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _untie(model: Any) -> None:
    """Untie word embeddings and output layer in the configuration, if training made them differ."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if None in ends or torch.equal(ends[0].weight, ends[1].weight):
        return
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _require_same(
    saved: Difference, effect: Difference | None, dtype: torch.dtype, say: Callable[[str], None]
) -> None:
    allowed = TOLERANCE[dtype]
    message = f"logits of the exported model differ by {saved}; allowed in {_name(dtype)}: {allowed:.0e}"
    if effect is not None:
        message += f"; the adapter moved them by {effect}"
    if not saved.share <= allowed:  # true for NaN
        raise ValueError(f"{message}. The export failed and was deleted; --dtype float32 rounds least")
    say(message)
    if effect is not None and effect.share <= allowed:
        say(
            f"the adapter's effect is below the resolution of {_name(dtype)}; --dtype float32 compares more precisely"
        )


def _against_four_bit(
    source: str | Path,
    merged: Float[Tensor, "tokens words"],
    options: dict[str, Any],
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> Difference | None:
    """Difference between the 4-bit base with the adapter, as trained, and the merged model; None where this machine
    cannot open a 4-bit base, which is said."""
    try:
        model, processor = checkpoint.load(source, dtype=dtype, quantize=True, **options)
        found = difference(logits(model, processor), merged)
    except (ImportError, RuntimeError) as error:  # no bitsandbytes; too little memory
        say(f"not compared with the 4-bit base that the adapter was trained on: {str(error)[:300]}")
        return None
    say(
        f"the adapter was trained on a 4-bit base and is merged into the unquantised base; logits differ by {found}. "
        "This is the quantisation error of the 4-bit base, not an error of the merge"
    )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------------------


def logits(model: nn.Module, processor: Any) -> Float[Tensor, "tokens words"]:
    """Logits, fp32 on the CPU, at every token of a built-in prompt with a built-in image."""
    bare: Any = bare_model(model)
    prompt = Conversation(
        (Turn("user", (_picture(), QUESTION)), Turn("assistant", ("",))), "the built-in prompt"
    )
    encoded = families.family_of(bare.config).encode(processor, prompt)
    inputs = {
        "input_ids": torch.from_numpy(encoded.input_ids)[None],
        "attention_mask": torch.ones(1, len(encoded.input_ids), dtype=torch.long),
        **{name: torch.from_numpy(np.asarray(values))[None] for name, values in encoded.per_token.items()},
        **encoded.media,
    }
    with torch.no_grad():
        output = model.eval()(**{name: tensor.to(bare.device) for name, tensor in inputs.items()}).logits
    return output[0].float().cpu()


def _picture() -> ImageRef:
    """An image whose colours vary along both axes, so that no two patches are alike."""
    width, height = PICTURE_PIXELS
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    content = BytesIO()
    Image.fromarray(
        np.stack([x, y, (x * y / 255 + 40 * np.sin(x / 9)) % 256], axis=-1).astype(np.uint8)
    ).save(content, "PNG")
    return ImageRef("the built-in picture", Path("built-in.png"), data=content.getvalue())


def difference(a: Float[Tensor, "tokens words"], b: Float[Tensor, "tokens words"]) -> Difference:
    """Largest difference of two logit arrays; NaN where either holds NaN."""
    if a.shape != b.shape:
        raise ValueError(
            f"the prompt has {list(b.shape)} logits (tokens, words) as written, expected {list(a.shape)}: "
            "another processor or vocabulary was saved"
        )
    return Difference((a - b).abs().max().item(), a.abs().max().item())


def _name(dtype: torch.dtype | None) -> str:
    return "the precision in which it is stored" if dtype is None else str(dtype).removeprefix("torch.")


def _gib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*")) / 2**30


if __name__ == "__main__":
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\.")
    sys.exit(main(sys.argv[1:]))
