"""Is it enough to keep what the model looks at? The probes asked again with fewer image tokens.

python -m diagnostics.keep MODEL --probes P --output_dir O
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diagnostics.flags.keep import parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

import torch

from diagnostics.comparison.probed_sources import calibrated
from diagnostics.keep.asking import Asker, check_can_ask
from diagnostics.keep.chart import chart_png
from diagnostics.keep.judging import ALL, judge
from diagnostics.keep.page import keep_html
from diagnostics.keep.summary import Study, json_of, table
from diagnostics.measures.token_orders import count_kept
from diagnostics.probing.layer_choice import Calibration, check_apart, held_out
from diagnostics.probing.prober import auto_key_layers
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.records.probes import Probe, check_no_group_is, read_probes
from diagnostics.report.languages import Language
from finetune import folder_lock
from finetune.families import bare_model, family_of
from finetune.files import check_writable, fault_words, write_atomically
from finetune.model.checkpoint import check, load, skeleton
from finetune.printable import printable


class Settings(NamedTuple):
    """What is asked; as the flags of the same names."""

    shares: tuple[float, ...] = (0.5, 0.33, 0.22, 0.11)
    key_layer: str = "auto"
    fastv_layer: int = 2
    draws: int = 10
    batch_size: int = 16
    base: str | None = None
    allow_other_base: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, judge, print the table, write keep.json, keep.png and index.html. Exit status: 0, or 2 on an error."""
    options = parser().parse_args(arguments)
    named = {name: getattr(options, name) for name in Settings._fields}
    try:
        with folder_lock.held(options.output_dir):
            study = run(
                options.model,
                options.probes,
                options.output_dir,
                Settings(**{**named, "shares": tuple(options.shares)}),
                calibration_file=options.calibration_probes,
                language=options.language,
            )
    except (ValueError, OSError) as error:
        print(printable(f"error: {fault_words(error)}"), file=sys.stderr)
        sys.exit(2)
    print(table(study))
    print(f"\nreport: {options.output_dir / 'index.html'}")


def run(
    model_name: str,
    probes_file: Path,
    output_dir: Path,
    settings: Settings = Settings(),  # noqa: B008 - it cannot change
    *,
    calibration_file: Path | None = None,
    language: Language = "en",
) -> Study:
    """Ask the probes with fewer and fewer image tokens and write the three files; returns what ``main`` prints.

    calibration_file   probes of other pictures to choose the key layer on
    language           that the page shows first

    Raises ValueError and FileNotFoundError, before any weight is loaded where they can be known by then.
    """
    settings = _checked(settings)
    every = read_probes(probes_file)
    check_no_group_is(ALL, every, probes_file)
    asked = _with_foil_and_picture(every, probes_file)
    chooses = settings.key_layer == "auto" and calibration_file is not None
    calibration = read_probes(calibration_file) if chooses and calibration_file else ()
    check_apart(calibration, asked)
    check_writable(output_dir)
    model, processor = _opened(model_name, settings)
    reader = ProbeEncoder(family_of(bare_model(model).config), processor)
    for line in reader.check((*calibration, *asked), "probes"):
        print(f"warning: {line}", flush=True)
    layer, why, judged = _key_layer(settings, model, processor, asked, calibration)
    asker = Asker(
        model,
        processor,
        shares=settings.shares,
        key_layer=layer,
        fastv_layer=settings.fastv_layer,
        draws=settings.draws,
        batch_size=settings.batch_size,
    )
    answers = asker.ask_all(judged, progress=True)
    study = Study(
        model=model_name,
        probes_file=str(probes_file),
        key_layer=layer,
        why_layer=why,
        fastv_layer=settings.fastv_layer,
        draws=settings.draws,
        shares=settings.shares,
        left_out=len(every) - len(asked),
        drops=_dropped_words(answers[0].image_tokens, asker),
        why_no_tower=asker.why_no_tower,
        judgements=tuple(judge(answers, settings.shares)),
    )
    _write(output_dir, study, answers, language)
    return study


def _with_foil_and_picture(probes: Sequence[Probe], file: Path) -> list[Probe]:
    """Raises ValueError where there is none."""
    found = [probe for probe in probes if probe.foil is not None and probe.images]
    if not found:
        raise ValueError(
            f"{file}: none of {len(probes)} probes has both a picture and a foil; expected some: without a picture "
            "nothing can be dropped, and without a foil no answer can be judged"
        )
    return found


def _opened(name: str, settings: Settings) -> tuple[Any, Any]:
    """Model and processor. Raises ValueError, before weights are loaded, for layers that do not exist and models that
    masks do not reach."""
    config = check(name, base=settings.base, allow_other_base=settings.allow_other_base)
    key_layer = None if settings.key_layer == "auto" else int(settings.key_layer)
    check_can_ask(skeleton(config), family_of(config), key_layer=key_layer, fastv_layer=settings.fastv_layer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load(name, device=device, base=settings.base, allow_other_base=settings.allow_other_base)


def _checked(settings: Settings) -> Settings:
    """Shares in falling order. Raises ValueError naming the flag."""
    for share in settings.shares:
        try:
            count_kept(1, share)
        except ValueError as error:
            raise ValueError(f"--shares: {error}") from error
    for name, least in (("draws", 1), ("batch_size", 1)):
        if getattr(settings, name) < least:
            raise ValueError(f"--{name}: found {getattr(settings, name)}, expected at least {least}")
    if settings.key_layer != "auto" and not settings.key_layer.isdigit():
        raise ValueError(
            f"--key_layer: found {settings.key_layer!r}; expected auto, or a layer's number as in 16"
        )
    return settings._replace(shares=tuple(sorted(set(settings.shares), reverse=True)))


def _key_layer(
    settings: Settings, model: Any, processor: Any, probes: Sequence[Probe], calibration: Sequence[Probe]
) -> tuple[int, str, tuple[Probe, ...]]:
    """The layer, why it, and the probes that did not choose it."""
    if settings.key_layer != "auto":
        return int(settings.key_layer), "it was given", tuple(probes)
    evenly = auto_key_layers(model)
    if not calibration and not held_out(probes):
        return (
            evenly[(len(evenly) - 1) // 2],
            "no probes are left to choose it on: a layer in the middle",
            tuple(probes),
        )
    found = calibrated(model, processor, probes, calibration)
    own = set() if calibration else set(found.probes)
    judged = tuple(probe for probe in probes if probe.id not in own)
    return _best(found, evenly), found.why, judged


def _best(found: Calibration, evenly: Sequence[int]) -> int:
    """Of the chosen layers the one that leads random regions by most; else the one in the middle of the model."""
    if not found.chosen:
        return evenly[(len(evenly) - 1) // 2]
    return max(
        found.layers, key=lambda layer: (found.enrichment[layer] or 0.0) - (found.by_chance[layer] or 0.0)
    )


def _dropped_words(tokens: int, asker: Asker) -> str:
    """What is dropped, in words: of a resampler its queries."""
    resampled = asker.family.paths.connector_attention is not None
    what = (
        "the resampler's queries, each of which has read the whole picture" if resampled else "image tokens"
    )
    return f"{what} ({tokens:,} in the first probe)"


def _write(output_dir: Path, study: Study, answers: Sequence[Any], language: Language) -> None:
    text = json.dumps(json_of(study, answers), ensure_ascii=False, indent=1, allow_nan=False)
    write_atomically(output_dir / "keep.json", (text + "\n").encode())
    write_atomically(output_dir / "keep.png", chart_png(study))
    write_atomically(output_dir / "index.html", keep_html(study, opens=language).encode())


if __name__ == "__main__":
    main()
