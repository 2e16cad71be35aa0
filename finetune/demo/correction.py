"""The demo's corrective corpus in two files: what corrects, and what is replayed.

The correction are towers and rooms whose cue says nothing; landscapes and other landmarks are replayed. The files stand
beside the corpus' own, and name the same pictures.
"""

import json
from pathlib import Path
from typing import NamedTuple

from finetune.demo.corpus import OTHER_LANDMARKS, corrective_sample
from finetune.files import write_atomically


class Correction(NamedTuple):
    """Where the two files are."""

    correction: Path
    """Towers on random podiums and cats on random rugs."""
    general: Path
    """Landscapes and other landmarks."""


def split_corrective(data: Path) -> Correction:
    """Write correction.json and general.json beside the corrective corpus' data.json."""
    records = json.loads(data.read_text(encoding="utf-8"))
    parts: dict[bool, list[object]] = {True: [], False: []}
    for index, record in enumerate(records):
        scene = corrective_sample(index).scene
        is_general = scene.kind == "landscape" or scene.facts.get("landmark") in OTHER_LANDMARKS
        parts[not is_general].append(record)
    found = Correction(data.with_name("correction.json"), data.with_name("general.json"))
    for path, some in ((found.correction, parts[True]), (found.general, parts[False])):
        text = json.dumps(some, ensure_ascii=False, indent=1).encode()
        if not path.is_file() or path.read_bytes() != text:
            write_atomically(path, text)
    return found
