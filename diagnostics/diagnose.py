"""Where on the way from pixels to words is the right answer lost? One model, no checkpoint to compare with.

    python -m diagnostics.diagnose MODEL --probes P --output_dir O

MODEL is a model folder, a hub name or an adapter folder. The report is O/index.html, the numbers O/diagnosis.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.flags.diagnose import THRESHOLDS, parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

from diagnostics.diagnosis import Diagnosis, Thresholds, diagnose_model
from diagnostics.diagnosis.looking import filling
from diagnostics.diagnosis.stages import UNDETERMINED
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.probing.trained_on import trained_on, with_base
from diagnostics.records.probes import Probe, read_probes
from diagnostics.report.diagnosis_page import diagnosis_html
from diagnostics.report.languages import Language
from diagnostics.report.tables import columns
from finetune import folder_lock
from finetune.families import bare_model, family_of
from finetune.files import check_writable, fault_words, write_atomically
from finetune.model.checkpoint import check, load
from finetune.printable import printable


def main(arguments: Sequence[str] | None = None) -> None:
    """Diagnose the model that the command line names, print the table and say where the report is.

    Exit status: 0; 2 where something given is wrong, or the report could not be made.
    """
    options = parser().parse_args(arguments)
    try:
        with folder_lock.held(options.output_dir):
            diagnosis = diagnose(
                options.model,
                options.probes,
                options.output_dir,
                thresholds=_thresholds(vars(options)),
                seed=options.seed,
                base=options.base,
                allow_other_base=options.allow_other_base,
                language=options.language,
            )
    except (ValueError, OSError) as error:
        print(printable(f"error: {fault_words(error)}"), file=sys.stderr)
        sys.exit(2)
    print(table(diagnosis))
    print(f"\nreport: {options.output_dir / 'index.html'}")


def diagnose(
    name: str,
    probe_file: Path,
    output_dir: Path,
    *,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    base: str | None = None,
    allow_other_base: bool = False,
    language: Language = "en",
) -> Diagnosis:
    """Load a model, diagnose it and write index.html and diagnosis.json.

    base, allow_other_base   of an adapter: as in ``finetune.model.checkpoint.load``
    language   what the page shows first; it has a switch

    Raises:
        ValueError: the model, the probes or a threshold is wrong, or the folder cannot be written.
        OSError: the disk is full.
    """
    check_writable(output_dir)
    probes = read_probes(probe_file)
    check(name, base=base, allow_other_base=allow_other_base)
    supervised = trained_on(with_base(name, base=base)).supervised
    model, processor = load(name, base=base, allow_other_base=allow_other_base)
    for line in ProbeEncoder(family_of(bare_model(model).config), processor).check(probes, str(probe_file)):
        print(f"warning: {line}", flush=True)
    if (filled := filling(probes, str(probe_file))) is not None:
        print(f"warning: {filled}", flush=True)
    diagnosis = diagnose_model(
        model,
        processor,
        probes,
        seed=seed,
        thresholds=thresholds,
        progress=True,
        name=name,
        probe_file=str(probe_file),
        supervised=supervised,
    )
    write(diagnosis, probes, output_dir, language=language)
    return diagnosis


def write(
    diagnosis: Diagnosis, probes: Sequence[Probe], output_dir: Path, *, language: Language = "en"
) -> None:
    """index.html and diagnosis.json, each whole or not at all."""
    page = diagnosis_html(diagnosis, probes, language=language)
    write_atomically(output_dir / "diagnosis.json", diagnosis.to_bytes())
    write_atomically(output_dir / "index.html", page.encode())


def table(diagnosis: Diagnosis) -> str:
    """The diagnosis for a terminal: one line a group, then why, and what may mend it."""
    rows = [("group", "probes", "right", "stage", "decides")]
    content = diagnosis.as_json()["groups"]
    for name, group in content.items():
        right = diagnosis.groups[name].evidence.right_words()
        rows.append(
            (name, str(group["probes"]), right, group["stage"] or UNDETERMINED, group["decides"] or "–")
        )
    lines = [*columns(rows), *(["", diagnosis.trained] if diagnosis.trained else [])]
    for name, group in content.items():
        lines += ["", f"{name}: {group['stage'] or UNDETERMINED}", f"  {group['reason']}"]
        if group["trains"]:
            lines += [f"  samples: {group['samples']}", f"  guards: {group['guards']}"]
        lines += [f"  $ {group['remedy']}"] if group["remedy"] else []
    return "\n".join(line.rstrip() for line in lines)


def _thresholds(options: Mapping[str, Any]) -> Thresholds:
    return Thresholds(**{name.removeprefix("least_"): options[name] for name in THRESHOLDS})


if __name__ == "__main__":
    main()
