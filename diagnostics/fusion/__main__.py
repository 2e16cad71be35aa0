"""Fuses several maps of one picture and tests the result against the best single map, on held-out pictures.

Usage and flags: ``diagnostics/flags/fusion.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.flags.fusion import parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

import numpy as np
from tqdm import tqdm

from diagnostics.comparison.maps import CellMap
from diagnostics.drawing.archive_pictures import open_picture
from diagnostics.drawing.probe_picture import encode_png
from diagnostics.fusion.judging import (
    ALL,
    TOO_FEW,
    FusionExample,
    Judgement,
    case_of,
    choosing_half,
    judge,
    picture_of,
    score,
)
from diagnostics.fusion.recipes import Map, fused, single_maps
from diagnostics.fusion.sheet import FusionSheet, Shown, draw_sheet
from diagnostics.fusion.summary import json_of, table
from diagnostics.probing.layer_choice import check_apart
from diagnostics.records.names import file_name
from diagnostics.records.probes import Probe, check_no_group_is, read_probes
from finetune import folder_lock
from finetune.files import check_writable, fault_words, write_atomically
from finetune.printable import printable


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe, judge, print the tables, write fusion.json and the pictures. Exit status: 0, or 2 on an error."""
    options = parser().parse_args(arguments)
    try:
        with folder_lock.held(options.output_dir):
            judgements = run(
                options.model,
                options.probes,
                options.output_dir,
                calibration_file=options.calibration_probes,
                resolutions=options.resolutions,
                vision_layers=options.vision_layers,
            )
    except (ValueError, OSError) as error:
        print(printable(f"error: {fault_words(error)}"), file=sys.stderr)
        sys.exit(2)
    print("\n\n".join(table(one) for one in judgements.values()))
    print(f"\nnumbers: {options.output_dir / 'fusion.json'}\npictures: {options.output_dir / 'fusion'}")


def run(
    model: str,
    probes_file: Path,
    output_dir: Path,
    *,
    calibration_file: Path | None = None,
    resolutions: Sequence[float] = (1.0,),
    vision_layers: Sequence[int] | None = None,
) -> dict[str, Judgement]:
    """Measure and judge, and write fusion.json and the pictures; returns what ``main`` prints.

    calibration_file   probes of other pictures to choose on, drawn in fusion/choosing; None: one picture in two of the
                       probes
    vision_layers      as in ``Viewer``

    Raises ValueError and FileNotFoundError, before any weight is loaded, for invalid input.
    """
    probes, chooses = _sides(probes_file, calibration_file)
    left_out = sum(not probe.regions for probe in probes)
    kept = [(probe, is_chosen) for probe, is_chosen in zip(probes, chooses, strict=True) if probe.regions]
    probes, chooses = [probe for probe, _ in kept], [is_chosen for _, is_chosen in kept]
    check_writable(output_dir)
    if left_out:
        print(f"{left_out} probes name no region and are left out: fusion needs to know where to look")
    viewer, cases = _measured(model, probes, resolutions, vision_layers)
    judgements = judge(cases, chooses)
    about = {
        "model": model,
        "probes_file": str(probes_file),
        "calibration_file": None if calibration_file is None else str(calibration_file),
        "probes_without_region": left_out,
        "resolutions": list(viewer.resolutions),
        "vision_layers": list(viewer.vision_layers),
    }
    content = json_of(judgements, cases, chooses, about)
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    write_atomically(output_dir / "fusion.json", text.encode())
    for case, chose in tqdm([*zip(cases, chooses, strict=True)], desc="drawing", unit="picture", leave=False):
        picture = draw_sheet(_sheet(case, judgements, chose=chose))
        # Ids are unique in a file, and may recur in the other one.
        folder = output_dir / "fusion" / ("choosing" if chose and calibration_file is not None else "")
        write_atomically(folder / file_name(case.probe.id, ".png"), encode_png(picture))
    return judgements


def _sides(probes_file: Path, calibration_file: Path | None) -> tuple[list[Probe], list[bool]]:
    """All probes (also those without regions), and which of them choose the recipe.

    Raises ValueError if no picture is left to choose on, or none to judge.
    """
    judged = read_probes(probes_file)
    check_no_group_is(ALL, judged, probes_file)
    if calibration_file is None:
        with_region = [probe for probe in judged if probe.regions]
        half = dict(zip((probe.id for probe in with_region), choosing_half(with_region), strict=True))
        probes, chooses = list(judged), [bool(half.get(probe.id, False)) for probe in judged]
    else:
        choosing = read_probes(calibration_file)
        check_apart(choosing, judged)
        probes, chooses = [*choosing, *judged], [True] * len(choosing) + [False] * len(judged)
    sides = [
        {
            picture_of(probe)
            for probe, is_chosen in zip(probes, chooses, strict=True)
            if is_chosen == side and probe.regions
        }
        for side in (True, False)
    ]
    if not all(sides):
        raise ValueError(
            f"{probes_file}: found {len(sides[0])} pictures with a region to choose on and {len(sides[1])} to judge, "
            "expected at least one of each; a verdict needs 20 to judge"
        )
    return probes, chooses


def _measured(
    model_name: str,
    probes: Sequence[Probe],
    resolutions: Sequence[float],
    vision_layers: Sequence[int] | None,
) -> tuple[Any, list[FusionExample]]:
    """Load the model and view every probe; returns the viewer and the examples. Flags are checked before weights are
    loaded."""
    import torch  # only when needed: --help stays fast

    from diagnostics.fusion.views import Viewer, check_resolutions, check_vision_layers
    from finetune.families import family_of
    from finetune.model.checkpoint import load, load_config, load_processor, skeleton

    config = load_config(model_name)
    family = family_of(config)
    check_resolutions(resolutions, family, load_processor(model_name))
    check_vision_layers(vision_layers, skeleton(config), family)
    model, processor = load(model_name, device="cuda" if torch.cuda.is_available() else "cpu")
    viewer = Viewer(model, processor, vision_layers=vision_layers, resolutions=resolutions)
    viewer.self_check(probes[0])
    views = viewer.look_all(probes, progress=True)
    return viewer, [case_of(probe, one) for probe, one in zip(probes, views, strict=True)]


def _sheet(case: FusionExample, judgements: Mapping[str, Judgement], *, chose: bool) -> FusionSheet:
    """The sheet of a probe by its group's judgement, or by that of all groups where its group has too few probes."""
    probe, own = case.probe, judgements.get(case.probe.group)
    judgement = judgements[ALL] if own is None or own.recipes[0].verdict == TOO_FEW else own
    single = single_maps(case.views)[judgement.single]
    main = probe.main_region
    role = "best single map" if judgement.single == judgement.layer else "best single map, question-blind"
    return FusionSheet(
        probe_id=probe.id,
        group=probe.group,
        picture=open_picture(probe.images[0]),
        question=probe.question,
        answer=probe.answer,
        regions={name: probe.regions[name] for name in sorted(probe.regions, key=lambda name: name != main)},
        single=_shown(judgement.single, role, single, case),
        fused=_shown(
            judgement.recipe, "best fusion", fused(judgement.recipe, case.views, judgement.lessons), case
        ),
        scope=judgement.scope,
        verdict=judgement.line(judgement.recipe).verdict,
        chose=chose,
    )


def _shown(name: str, role: str, cells: Map, case: FusionExample) -> Shown:
    image, own = case.views[0].image, score([cells], [case])
    density = np.asarray(cells, np.float64) * len(cells)
    cell_map = CellMap(density, image.grid, image.cell_boxes_pixels)
    return Shown(name, role, cell_map, float(own.enrichment[0]), bool(own.pointed[0]))


if __name__ == "__main__":
    main()
