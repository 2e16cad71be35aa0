"""Every training script with every family, in one process: dry run, two steps, going on, export.

    python -m tests.finetune.script_table --output benchmarks/results/scripts_by_family_DATE_cpu.json

The flags are those that the scripts themselves give, over a Python that only writes them down; then ``finetune.py`` is
called with them as often as there are families. With DeepSpeed that works in one process, where transformers is told
before each export that ZeRO-3 is over: it goes by the last run's configuration, and would shard what is exported.
"""

import argparse
import contextlib
import functools
import gc
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune import export
from tests.finetune.conftest import write_data
from tests.finetune.families.tiny_families import ALL, QWEN3_TEXT, QWEN3_VISION, Tiny, built, token_ids
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.finetune.model.test_adaptation_families import tall
from tests.test_scripts import PYTHON

ROOT = Path(__file__).parents[2]
FAMILIES: dict[str, Tiny] = {**ALL, **HYBRIDS, **LLAVAS, **SIGLIPS}
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("finetune_*.sh"))
STAGES = ("dry run", "two steps", "going on", "export")
EAGER = ("--attn_implementation", "eager")
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Cell(NamedTuple):
    """The result of one script with one family.

    needed   flags that the first refusal asked for, and that were then given; "" for none
    refusal  what the plain command said; "" if it ran
    stages   stage → "ok" or what went wrong
    losses   of the two steps
    """

    needed: str
    refusal: str
    stages: dict[str, str]
    losses: list[float]


def write_models(folder: Path) -> None:
    """A tiny checkpoint of each family; Qwen3-VL with a layer above its mergers, which else learn nothing there."""
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text = {**QWEN3_TEXT, "num_hidden_layers": len(QWEN3_VISION["deepstack_visual_indexes"]) + 1, **moe}
    deep: dict[str, Callable[[], Any]] = {
        "qwen3-vl": lambda: tall(ALL["qwen3-vl"]),
        "qwen3-vl-moe": lambda: built(
            Qwen3VLMoeForConditionalGeneration,
            Qwen3VLMoeConfig(text_config=text, vision_config=QWEN3_VISION, **token_ids()),
        ),
    }
    for name, tiny in FAMILIES.items():
        (folder / name).mkdir(parents=True)
        deep.get(name, tiny.model)().save_pretrained(folder / name)
        tiny.processor(folder / name).save_pretrained(folder / name)


@functools.cache
def words_of(script: str, project: Path) -> tuple[list[str], dict[str, str]]:
    """The flags that a script gives to ``finetune.py``, and the variables that it sets."""
    if not project.exists():
        shutil.copytree(ROOT / "scripts", project / "scripts")
        for name in ("requirements.txt", "requirements-dev.txt"):
            (project / name).write_text("nothing\n")
        for path in ROOT.glob("ds_config_*.json"):
            shutil.copy(path, project)
        (project / "python").write_text(PYTHON)
        (project / "python").chmod(0o755)
    variables = {"PYTHON": str(project / "python"), "LOG": str(project / "log"), "MODEL": "M", "DATA": "D"}
    prelude = "source scripts/setup.sh; build_operators() { :; }; set_up >/dev/null 2>&1; exec bash scripts/"
    done = subprocess.run(
        ["bash", "-c", f"{prelude}{script}"],
        cwd=project, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, *rest = done.stdout.splitlines()
    return first.split()[2:], dict(line.split("=", 1) for line in rest)


def with_values(words: Sequence[str], **values: str) -> list[str]:
    """The script's flags with a user's after them, which win."""
    return [*words, *(one for name, value in values.items() for one in (f"--{name}", value))]


class Runner:
    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("finetune_program", ROOT / "finetune.py")
        assert spec is not None and spec.loader is not None
        self.program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.program)
        self.folder = folder
        write_models(folder / "models")
        self.data = write_data(folder / "data")

    def cell(self, script: str, family: str, stages: Sequence[str]) -> Cell:
        words, variables = words_of(script, self.folder / "project")
        for name in LAUNCHED:
            os.environ.pop(name, None)
        launched = {name: value for name, value in variables.items() if name in LAUNCHED}
        os.environ.update(launched | ({"MASTER_PORT": _free_port()} if launched else {}))
        if "RANK" in launched:  # what the stub does not print
            os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "1"})
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        out = self.folder / "out" / script / family
        flags = with_values(
            words, model_name_or_path=str(self.folder / "models" / family), data_path=str(self.data),
            output_dir=str(out), max_steps="2", save_steps="1", learning_rate="1e-2", report_to="none",
            gradient_accumulation_steps="2", per_device_train_batch_size="2", lora_r="4", disable_tqdm="True",
        )  # fmt: skip
        refusal = self._called([*flags, "--dry_run", "True"])
        needed: tuple[str, ...] = ()
        if refusal != "ok" and " ".join(EAGER) in refusal:
            needed = EAGER
            flags += EAGER
        found = {}
        for stage in stages:
            found[stage] = self._stage(stage, flags, out)
            if found[stage] != "ok":
                break
        return Cell(" ".join(needed), "" if refusal == "ok" else refusal, found, _losses(out))

    def _stage(self, stage: str, flags: list[str], out: Path) -> str:
        if stage == "dry run":
            return self._called([*flags, "--dry_run", "True"])
        if stage == "two steps":
            return self._called(flags)
        if stage == "going on":
            before = _weights(out)
            shutil.rmtree(out / "checkpoint-2")
            done = self._called([*flags, "--resume_from_checkpoint", str(out / "checkpoint-1")])
            return done if done != "ok" or _same(before, _weights(out)) else "ends with other weights"
        try:
            unset_hf_deepspeed_config()
            export.export(out, out.with_name(f"{out.name}-merged"), say=lambda _: None)
        except Exception as error:  # whatever it is, it is the cell's
            return _told(error)
        return "ok" if _names_kept(flags, out) else "the exported model has other names than its base"

    def _called(self, flags: list[str]) -> str:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = self.program.main(flags)
        except Exception as error:  # whatever it is, it is the cell's
            return _told(error)
        return "ok" if status == 0 else said.getvalue().strip().splitlines()[-1][:400]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def _free_port() -> str:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next(out.glob("*model.safetensors")))


def _same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def _names_kept(flags: list[str], out: Path) -> bool:
    """Is every tensor under the name that it has in the base's files, in the export and in what training left?"""
    base = Path(flags[len(flags) - 1 - flags[::-1].index("--model_name_or_path") + 1])
    folders = [base, out.with_name(f"{out.name}-merged")]
    if (out / "model.safetensors").is_file():
        folders.append(out)
    names = []
    for folder in folders:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names.append(set(file.keys()))
    return all(one == names[0] for one in names)


def _losses(out: Path) -> list[float]:
    state = out / "checkpoint-2" / "trainer_state.json"
    if not state.is_file():
        return []
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--quick", action="store_true", help="dry runs, and two steps and export under ZeRO-3 alone"
    )
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    gc.freeze()  # a training collects garbage twice at its start, .3 s over all that was imported
    # Scripts without DeepSpeed first: they must not find a process group.
    scripts = sorted(SCRIPTS, key=lambda name: name.endswith("_ds.sh"))
    cells: dict[str, dict[str, Any]] = {}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        for script in scripts:
            stages = STAGES
            if chosen.quick:
                stages = ("two steps", "export") if script == "finetune_ds.sh" else ()
            for family in FAMILIES:
                cell = runner.cell(script, family, stages)
                cells.setdefault(script, {})[family] = cell._asdict()
                print(script, family, cell, flush=True)
    content = {"seconds": round(time.perf_counter() - begun), "torch": torch.__version__, "scripts": cells}
    chosen.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
