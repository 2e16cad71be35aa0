"""The folder of a run, as far as its data goes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.training.run_folder import _content


def records_of(pictures: Sequence[Path]) -> list[dict[str, Any]]:
    """One question about each picture."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A tower."}]
    return [{"id": str(at), "image": str(path), "conversations": turns} for at, path in enumerate(pictures)]


def a_run(folder: Path, pictures: Sequence[Path], **marks: Any) -> Path:
    """``folder/run``, trained on ``folder/data.json``, which shows these pictures; ``marks``: more of its run.json."""
    run, data = folder / "run", folder / "data.json"
    run.mkdir(parents=True)
    data.write_text(json.dumps(records_of(pictures)))
    known = {
        "model_name_or_path": "Qwen/Qwen-VL-Chat",
        "data_path": str(data),
        "data sha256": _content(data, names_alone=False),
    }
    written = {"version": 1, "finished": True, "marks": known | marks, "missing": ""}
    (run / "run.json").write_text(json.dumps(written))
    return run
