"""Writes training data in Qwen-VL's format, and probes; checks both files before putting them in place."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.corrective import probe_file
from finetune.corrective.category_names import listed
from finetune.corrective.relation_questions import NEIGHBOUR
from finetune.corrective.sampling import Asked
from finetune.corrective.scenes import Box, Question, Scene
from finetune.files import delete_left_behind, in_place_of, writing
from finetune.samples import source
from finetune.samples.formats.look_at import whole_words

DATA_FILE, PROBE_FILE = "corrective.json", "probes.json"


def write(folder: Path, training: Sequence[Asked], probes: Sequence[Asked], *, overwrite: bool) -> None:
    """Write both files, after reading each back by the rules of the program that uses it.

    Raises ValueError if a picture is in both files, or if the folder already has these files with other content, and
    WriteError where they cannot be written.
    """
    check_apart(training, probes)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    names = _probe_names(probes)
    contents: dict[str, Any] = {
        DATA_FILE: [_sample(f"corrective-{i:06d}", one, folder) for i, one in enumerate(training)],
        PROBE_FILE: {
            "version": probe_file.VERSION,
            "probes": [_probe(name, one, folder) for name, one in zip(names, probes, strict=True)],
        },
    }
    texts = {
        name: json.dumps(content, ensure_ascii=False, indent=1) + "\n" for name, content in contents.items()
    }
    for name, text in texts.items():
        _check_free(folder / name, text, overwrite)
    delete_left_behind([folder], of_safetensors=False)
    with in_place_of(folder / DATA_FILE, suffix=".json") as data:
        data.write_text(texts[DATA_FILE], encoding="utf-8")
        with in_place_of(folder / PROBE_FILE, suffix=".json") as written:
            written.write_text(texts[PROBE_FILE], encoding="utf-8")
            _check(data, written)


def check_apart(training: Sequence[Asked], probes: Sequence[Asked]) -> None:
    """Raises ValueError if a picture, by content, is both trained on and probed."""
    both = {one.scene.digest for one in training} & {one.scene.digest for one in probes}
    if both:
        names = sorted(str(one.scene.image) for one in probes if one.scene.digest in both)
        raise ValueError(
            f"{len(both)} pictures are in both the training data and the probes: {', '.join(names[:5])}"
        )


def _check_free(path: Path, text: str, overwrite: bool) -> None:
    if path.is_file() and not overwrite and path.read_text(encoding="utf-8", errors="replace") != text:
        raise ValueError(
            f"{path}: already exists with other content; give another --output_dir, or --overwrite True"
        )


def _check(data: Path, probes: Path) -> None:
    """Read both files back by the rules of the programs that use them."""
    source.read(data, data_format="qwen-vl", say=lambda _: None)
    faults = probe_file.faults(json.loads(probes.read_text(encoding="utf-8")), probes.parent)
    if faults:
        raise ValueError(listed(probes, faults))


def _sample(identity: str, asked: Asked, folder: Path) -> dict[str, Any]:
    value = f"Picture 1: <img>{_relative(asked.scene, folder)}</img>\n{asked.question.text}"
    answer: dict[str, Any] = {"from": "assistant", "value": asked.question.answer}
    if look_at := _look_at(asked.question):
        answer["look_at"] = look_at
    turns = [{"from": "user", "value": value}, answer]
    return {"id": identity, "conversations": turns}


def _look_at(question: Question) -> list[dict[str, Any]]:
    """Where the answer should look as it is written (``--look_weight``): at both ends of a relation, by the word for
    the relation where the answer has it ("on the bench") and else by all of it ("yes"); at what a phrase names
    otherwise, as at the spheres of a tower. A box in the answer says so itself, and so does a neighbour's ordinary
    training."""
    if question.group == NEIGHBOUR or "<box>" in question.answer:
        return []
    if question.relation is not None:
        ends = [question.regions[question.relation[end]] for end in ("subject", "object")]
        word = question.relation["phrase"]
        phrase = word if _times(question.answer, word) == 1 else question.answer
        return [{"phrase": phrase, "ends": [[_plain(box) for box in boxes] for boxes in ends]}]
    return [
        {"phrase": phrase, "boxes": [_plain(box) for box in question.regions[region]]}
        for phrase, region in question.phrases.items()
        for _ in range(_times(question.answer, phrase))  # an entry for each, as its reader asks
    ]


def _times(answer: str, words: str) -> int:
    """How often these words are in an answer, and not a part of a longer one ("on" in "person")."""
    return len(whole_words(words).findall(answer))


def _probe(identity: str, asked: Asked, folder: Path) -> dict[str, Any]:
    question = asked.question
    return {
        "id": identity,
        "group": question.group,
        "images": [_relative(asked.scene, folder)],
        "question": question.text,
        "answer": question.answer,
        "foil": question.foil,
        "regions": {name: [_plain(box) for box in boxes] for name, boxes in question.regions.items()},
        "phrases": dict(question.phrases),
        "relation": None if question.relation is None else dict(question.relation),
    }


def _probe_names(probes: Sequence[Asked]) -> list[str]:
    """``spatial-relation-007``; replaces characters that are invalid in file names."""
    numbers: Counter[str] = Counter()
    names = []
    for one in probes:
        stem = re.sub(r"[^\w\-]+", "-", one.question.group).strip("-")[:100] or "group"
        names.append(f"{stem}-{numbers[stem]:03d}")
        numbers[stem] += 1
    return names


def _relative(scene: Scene, folder: Path) -> str:
    """The picture from where the folder really lies: ".." of a link to a folder is that folder's parent."""
    image = Path(os.path.realpath(scene.image.parent), scene.image.name)
    return Path(os.path.relpath(image, os.path.realpath(folder))).as_posix()


def _plain(box: Box) -> list[float]:
    """Rounds to hundredths of a pixel; whole numbers stay integers."""
    return [int(value) if value == int(value) else round(value, 2) for value in box]
