"""Pictures of a run's archive a second and core: one process draws each picture once, as the drawing process does.

    python benchmarks/picture_speed.py --attention_dir output_qwen/attention [--output FILE]

Seconds of CPU time, from a process that has drawn nothing: legends are kept from the second picture on, as in a run.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def measure(attention_dir: Path) -> dict[str, object]:
    """CPU seconds of all pictures of a run's archive."""
    from diagnostics.drawing.archive_pictures import ArchivePictures, probe_png
    from diagnostics.records.archive import recorded_steps

    archive = ArchivePictures.open(attention_dir)
    steps = [step for step in recorded_steps(attention_dir) if step > 0]
    if not steps:
        raise SystemExit(f"{attention_dir}: no step after the first to draw")
    began = time.process_time()
    for step in steps:
        for probe in archive.probes:
            probe_png(archive.pair(probe, step))
    seconds, pictures = time.process_time() - began, len(steps) * len(archive.probes)
    return {
        "pictures": pictures,
        "cpu seconds": round(seconds, 3),
        "pictures a second and core": round(pictures / seconds, 1),
    }


def main() -> None:
    """Measure, print, and write ``--output``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--attention_dir", type=Path, required=True, help="attention/ of a finished run")
    parser.add_argument("--output", type=Path, help="file for the result")
    options = parser.parse_args()
    found = measure(options.attention_dir)
    print(json.dumps(found))
    if options.output:
        from benchmarks.circumstances import circumstances

        options.output.write_text(json.dumps({**circumstances(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
