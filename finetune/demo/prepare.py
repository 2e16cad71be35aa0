"""Draws the demo's data into a folder: `python -m finetune.demo.prepare --output_dir DIR`.

    DIR/corrective/data.json   the corrective corpus, Qwen-VL's format     DIR/corrective/images/
    DIR/probes/probes.json     the probes, version 1                       DIR/probes/images/
    DIR/base/…                 the corpus of the base model                only with --parts base
    DIR/development/…          probes to tune on, never the real ones      only with --parts development

Each part is drawn into a temporary folder and then moved into place, with a recipe that identifies the code that drew
it: a part from an interrupted run, or from another version of the code, is drawn again; a finished one is kept.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, get_args

from tqdm import tqdm

from finetune.demo import corpus, probe_sets
from finetune.demo.shapes import render
from finetune.files import fault_words, folder_in_place_of, write_atomically, writing
from finetune.printable import printable

PARTS = ("corrective", "probes", "base", "development")
DEFAULT_PARTS = ("corrective", "probes", "development")
RECIPE_FILE = "recipe.json"
_SOURCES = ("shapes", "tower_scenes", "room_scenes", "general_scenes", "questions", "corpus", "probe_sets")


class Drawn(NamedTuple):
    """One picture on disk."""

    record: dict[str, object]
    """Its element of the data or probe file."""
    digest: str
    """Identity of its scene."""


class DemoData(NamedTuple):
    """Where the parts are."""

    corrective: Path
    """data.json of the corrective corpus."""
    probes: Path
    """probes.json."""
    base: Path
    """data.json of the base corpus."""
    development: Path
    """probes.json of the development split."""


def data_files(output_dir: Path) -> DemoData:
    """The files that `prepare` makes below a folder; they need not exist."""
    return DemoData(
        corrective=output_dir / "corrective" / "data.json",
        probes=output_dir / "probes" / "probes.json",
        base=output_dir / "base" / "data.json",
        development=output_dir / "development" / "probes.json",
    )


def prepare(output_dir: Path, parts: Sequence[str] = DEFAULT_PARTS, *, progress: bool = True) -> DemoData:
    """Draws the parts that are missing and returns the paths of all files.

    Raises:
        ValueError: a part is unknown, or two parts share a picture.
        WriteError: the folder cannot be written, or its disk is full.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"demo data: unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    ignore = output_dir / ".gitignore"
    if not ignore.exists():
        write_atomically(ignore, b"*\n")
    with writing(output_dir / ".lock"):
        lock = (output_dir / ".lock").open("w")
    with lock:
        # Every process of a run calls this: the first draws, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for part in parts:
            if not is_complete(output_dir / part, part):
                _draw_part(output_dir, part, progress=progress)
    check_disjoint(output_dir, parts)
    return data_files(output_dir)


def is_complete(folder: Path, part: str) -> bool:
    """Whether the folder holds this part, drawn by this version of the recipe."""
    recipe = folder / RECIPE_FILE
    return recipe.is_file() and json.loads(recipe.read_text())["recipe"] == _recipe(part)


def check_disjoint(output_dir: Path, parts: Iterable[str]) -> None:
    """Raises ValueError if two parts share a picture, by the digests of their scenes."""
    seen: dict[str, str] = {}
    for part in parts:
        digests = json.loads((output_dir / part / RECIPE_FILE).read_text())["digests"]
        clashes = [digest for digest in digests if seen.get(digest, part) != part]
        if clashes:
            raise ValueError(
                f"demo data in {output_dir}: {len(clashes)} pictures are in both {seen[clashes[0]]} and {part}; "
                "expected none. The two parts use the same seeds: change one in finetune/demo"
            )
        seen.update(dict.fromkeys(digests, part))


def _recipe(part: str) -> str:
    """Changes whenever the code that draws a part does."""
    here = Path(__file__).parent
    sources = hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in _SOURCES))
    return f"{part}-{sources.hexdigest()[:16]}"


def _draw_part(output_dir: Path, part: str, *, progress: bool) -> None:
    draw, count = _drawing_of(part)
    with folder_in_place_of(output_dir / part) as temporary:
        (temporary / "images").mkdir()
        workers = min(os.cpu_count() or 1, 8)
        with ProcessPoolExecutor(workers) as pool:
            results = pool.map(functools.partial(draw, temporary), range(count), chunksize=16)
            bar = tqdm(
                results,
                total=count,
                desc=f"drawing the {part} pictures",
                unit="picture",
                disable=not progress,
            )
            drawn = list(bar)
        records = [item.record for item in drawn]
        is_probes = part in get_args(probe_sets.ProbeSplit)
        content = {"version": 1, "probes": records} if is_probes else records
        name = "probes.json" if is_probes else "data.json"
        (temporary / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        recipe = {"recipe": _recipe(part), "digests": [item.digest for item in drawn]}
        (temporary / RECIPE_FILE).write_text(json.dumps(recipe))


def _drawing_of(part: str) -> tuple[Callable[[Path, int], Drawn], int]:
    if part in get_args(corpus.CorpusName):
        return functools.partial(_draw_sample, part), corpus.CORPUS_SIZES[part]  # type: ignore[index]
    return functools.partial(_draw_probe, part), probe_sets.PROBES_PER_GROUP * len(probe_sets.GROUPS)


def _draw_sample(name: str, folder: Path, index: int) -> Drawn:
    sample = corpus.SAMPLERS[name](index)
    image = f"images/{index:05d}.jpg"
    render(sample.scene, *corpus.PICTURE_PIXELS).save(folder / image, quality=95, subsampling=0)
    return Drawn(corpus.record(sample, f"{name}-{index:05d}", image), sample.scene.digest())


def _draw_probe(split: str, folder: Path, index: int) -> Drawn:
    group = probe_sets.GROUPS[index // probe_sets.PROBES_PER_GROUP]
    probe = probe_sets.demo_probe(split, group, index % probe_sets.PROBES_PER_GROUP)  # type: ignore[arg-type]
    image = f"images/{probe.identity}.png"
    render(probe.scene, *probe_sets.PROBE_PIXELS).save(folder / image)
    return Drawn(probe_sets.record(probe, image), probe.scene.digest())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.demo.prepare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for the pictures and their files"
    )
    parser.add_argument(
        "--parts", nargs="+", default=list(DEFAULT_PARTS), choices=PARTS, help="parts to draw"
    )
    options = parser.parse_args(arguments)
    try:
        files = prepare(options.output_dir, options.parts)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"error: {fault_words(error)}"))
    for part in options.parts:
        print(f"{part}: {getattr(files, part)}")


if __name__ == "__main__":
    main()
