"""``--config run.yaml``: the flags of a run in a YAML (or JSON) file.

    model_name_or_path: Qwen/Qwen-VL-Chat
    data_path: data.json
    use_lora: true
    corrective_data: [towers.json:0.3]

A name is a flag without the dashes; a list is several values. Flags on the command line win. A run leaves such a file
in its output folder, with the value of every flag.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from finetune import fields
from finetune.data.mixture import parse_source
from finetune.flags import help
from finetune.flags.arguments import Arguments
from finetune.flags.argv import split_flags
from finetune.flags.flags_of_2023 import RENAMED

OF_A_RUN = "run.json"
"""``finetune.model.run_data.RUN_FILE``, from where nothing comes here."""
# YAML 1.1 reads a bare "no" as false.
_WITH_NO = ("eval_strategy", "evaluation_strategy", "save_strategy", "logging_strategy")


class _Loader(yaml.SafeLoader):
    """Rejects duplicate names, and aliases, since a few lines of them can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("found an alias (*name), expected the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise yaml.YAMLError(f"{twice[0][:80]}: given twice")
        return super().construct_mapping(node, deep)


def flags_of(path: str) -> list[str]:
    """The flags of the file as a command line.

    Raises ValueError if it cannot be read; otherwise the error lists every unknown flag and every invalid value.
    """
    content = _read(Path(path))
    known = help.known()
    faults: list[str] = []
    flags: list[str] = []
    for name, value in content.items():
        flag = f"--{name}"
        if flag == "--config" or flag not in known:
            faults.append(
                help.no_such_flag(flag) if flag != "--config" else "--config: a file cannot name another"
            )
            continue
        try:
            flags.extend(_flag(flag, value))
        except TypeError:
            faults.append(f"{name}: found {fields.shown(value)}, expected a value or a list of values")
    fields.refuse(faults, f"--config {path}")
    return flags


def check_moved(path: Path, flags: Sequence[str]) -> None:
    """Raises ValueError for the file of a run whose folder has been moved since: it names the folder in full where it
    was, and training would begin there anew instead of going on here."""
    own = path.absolute().parent
    if not (own / OF_A_RUN).is_file():
        return  # a file of flags, or a copy of one
    named = [values[0] for name, values in split_flags(flags) if name == "output_dir" and len(values) == 1]
    if named and os.path.realpath(named[0]) != os.path.realpath(own):
        raise ValueError(
            f"--config {path}: names the output folder {named[0]}, but its run lies in {own}, moved or copied; give "
            f"--output_dir: {own} to go on, another folder to begin anew"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ValueError(f"--config {path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {path}: found bytes that are not UTF-8, expected YAML") from error
    except RecursionError as error:
        raise ValueError(f"--config {path}: nested too deeply to be read; is it the right file?") from error
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise ValueError(f"--config {path}: broken YAML: {' '.join(str(error).split())[:400]}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(
            f"--config {path}: found {fields.shown(content)}, expected one flag with its value per line, such as "
            "use_lora: true"
        )
    return content


def _flag(flag: str, value: Any) -> Iterator[str]:
    """One flag and its values; nothing for null, which keeps the default."""
    if value is None:
        return
    yield flag
    if isinstance(value, dict):
        yield json.dumps(value)
        return
    for one in value if isinstance(value, list) else [value]:
        yield _word(flag, one)


def _word(flag: str, value: Any) -> str:
    if value is False and flag.removeprefix("--") in _WITH_NO:
        return "no"
    if not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Written
# ---------------------------------------------------------------------------------------------------------------------

HEADER = """\
# The flags of this run, with those that nobody gave. The same run again: finetune.py --config run.yaml --output_dir NEW
# Files and folders are named in full, so it may be called from any folder, but for pictures that the data names by a
# path from the working directory: give --image_folder for these.
# Not here: the hub's tokens, and flags of one start alone (--overwrite_output_dir, --resume_from_checkpoint).
"""
_NOT_WRITTEN = {
    "config", "overwrite_output_dir", "resume_from_checkpoint", "dry_run",
    "local_rank", "deepspeed_plugin",  # of one process
    "greater_is_better",  # follows from the metric, which a flag beside the file may change
}  # fmt: skip
_USUAL_BACKEND = "inductor"
"""transformers names it once --torch_compile is given; named by a flag it would switch compiling on."""


_FILES = (
    "data_path", "eval_data_path", "image_folder", "probes", "calibration_probes", "baseline", "lora_weight_path",
    "cache_dir", "logging_dir", "output_dir",
)  # fmt: skip
_PERHAPS_FILES = ("model_name_or_path", "deepspeed")  # names of the hub, a configuration as JSON
_MIXED = ("corrective_data", "replay_data")


def text_of(arguments: Arguments) -> str:
    """The whole configuration as a file that ``--config`` takes, from whichever folder."""
    values = {name: _anywhere(name, value) for name, value in values_of(arguments).items()}
    return HEADER + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _anywhere(name: str, value: Any) -> Any:
    """A flag's value with the files and folders that it names in full: another working directory may have others of
    these names, which would be trained on or written to instead."""
    if name in _MIXED:
        return [_mixed_anywhere(one) for one in value]
    if not isinstance(value, str) or not value:
        return value
    if name in _FILES or (name in _PERHAPS_FILES and os.path.exists(value)):
        return _in_full(value)
    return value


def _mixed_anywhere(source: str) -> str:
    """``towers.json:0.3`` → ``/data/towers.json:0.3``."""
    path = parse_source(source).path
    return f"{_in_full(path)}{source[len(path) :]}"


def _in_full(path: str) -> str:
    # "~/cats" is in no working directory, unless there is a folder of that name.
    return path if path.startswith("~") and not os.path.exists(path) else os.path.abspath(path)


def values_of(arguments: Arguments) -> dict[str, Any]:
    """Flag → value of the whole configuration, as JSON has them; secrets are left out.

    On a machine without an accelerator ``use_cpu`` is always true, so it says nothing there, and is left out.
    """
    values: dict[str, Any] = {}
    for group in (one.name for one in dataclasses.fields(arguments)):
        chosen = getattr(arguments, group)
        values |= chosen.to_dict() if group == "training" else dataclasses.asdict(chosen)
    values["report_to"] = values["report_to"] or "none"
    # transformers makes words of it, and its flag takes only the booleans.
    values["include_num_input_tokens_seen"] = values["include_num_input_tokens_seen"] != "no"
    left_out = _NOT_WRITTEN | {name for name in values if name.endswith("_token")}
    # Old names, kept equal to the new ones where the installed transformers has these.
    left_out |= {old for old, new in RENAMED.items() if new in values}
    if not torch.accelerator.is_available():
        left_out |= {"use_cpu"}
    if values["use_cpu"]:
        left_out |= {"dataloader_pin_memory"}  # never pinned there
    if values["torch_compile_backend"] == _USUAL_BACKEND:
        left_out |= {"torch_compile_backend"}
    known = help.known()
    kept = {
        name: value
        for name, value in values.items()
        if name not in left_out and f"--{name}" in known and value not in (None, [])
    }
    # Through JSON: what two flags share would be written as an alias.
    found: dict[str, Any] = json.loads(json.dumps(kept))
    return found
