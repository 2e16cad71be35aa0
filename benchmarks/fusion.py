"""Fusion on the demo: the results of ``python -m diagnostics.fusion``, without single probes, as one file.

python -m finetune.demo.prepare --output_dir data/demo
python -m diagnostics.fusion --model finetune/demo/base --probes data/demo/probes/probes.json \\
    --calibration_probes data/demo/development/probes.json --vision_layers 0 1 --output_dir fusion_base
python -m diagnostics.fusion --model CORRECTED … --output_dir fusion_corrected     the base after finetune.py with the
                                                           flags of finetune/demo/settings.py, without the monitor
python benchmarks/fusion.py --runs base=fusion_base corrected=fusion_corrected
                                                           writes benchmarks/results/fusion_DATE_cpu.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
LEFT_OUT = ("probes", "probes_file", "calibration_file", "model")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", required=True, help="NAME=folder with fusion.json")
    runs = dict(one.split("=", 1) for one in parser.parse_args().runs)
    today = datetime.date.today().isoformat()
    content = {
        "date": today,
        "machine": f"{platform.machine()}, CPU",
        "torch": torch.__version__,
        "commands": (__doc__ or "").splitlines()[2:],
        "runs": {name: summary(Path(folder) / "fusion.json") for name, folder in runs.items()},
    }
    path = RESULTS / f"fusion_{today}_cpu.json"
    path.write_text(json.dumps(rounded(content), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(path)


def summary(path: Path) -> dict[str, Any]:
    """A run without what is of one probe or of one machine."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name not in LEFT_OUT}


def rounded(value: Any) -> Any:
    """Four digits behind the point are more than the intervals allow."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
