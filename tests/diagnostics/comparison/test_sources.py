from pathlib import Path

import pytest
from PIL import Image

from diagnostics.compare import compare_sources
from diagnostics.comparison.sources import order_warnings, records_of
from diagnostics.probing.layer_choice import Calibration, held_out
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import Probe, write_probes
from tests.diagnostics.show_samples import probes, records


def test_checkpoints_out_of_order_are_told():
    """A shell sorts checkpoint-1000 before checkpoint-200."""
    [line] = order_warnings(
        ["base", "out/checkpoint-1000", "out/checkpoint-200", "out/checkpoint-900", "out"]
    )
    assert line.startswith("checkpoint-1000 is given before checkpoint-200: ")
    assert order_warnings(["base", "out/checkpoint-200", "out/checkpoint-1000", "out"]) == []
    assert order_warnings(["a/attention/step-000220", "b/attention/step-000110"]) == []  # of two runs
    [line] = order_warnings(["a/step-000000", "a/step-000220", "a/step-000110"])
    assert line.startswith("step-000220 is given before step-000110")


def records_of_run(folder: Path, of: tuple[Probe, ...]) -> tuple[str, str]:
    """The records of a run's two ends."""
    for step in (0, 10):
        for name, record in records(of, step).items():
            record.save(folder / f"step-{step:06d}" / f"{name}.safetensors")
    write_probes(of, folder / "probes.json")
    return str(folder / "step-000000"), str(folder / "step-000010")


def chosen(layers: tuple[int, ...], ids: tuple[str, ...]) -> Calibration:
    return Calibration(layers, (), True, ids, (1.0,) * 4, (1.0,) * 4, (0.01,) * 4, "chosen")


def judged(ends: tuple[str, str], output_dir: Path, calibration_file: Path | None = None) -> list[str]:
    options = {"calibration_file": calibration_file, "key_layers": "auto", "depth": QUICK}
    return [one.id for one in records_of(ends, output_dir, probes_file=None, **options).probes]


def test_probes_on_which_the_layers_of_records_were_chosen_are_not_judged(tmp_path, capsys):
    """As in the run itself."""
    of = tuple(probes(tmp_path, per_group=70, guards=30))
    attention = tmp_path / "run" / "attention"
    ends = records_of_run(attention, of)
    ids = tuple(one.id for one in held_out(of))
    assert ids
    chosen((1, 3), ids).save(attention / "calibration.json")
    assert judged(ends, tmp_path) == [one.id for one in of if one.id not in ids]
    assert f"{len(ids)} of {len(of)} probes are left out of the verdicts: the key" in capsys.readouterr().out
    # of other layers: it did not choose those of the records
    chosen((0, 3), ids).save(attention / "calibration.json")
    assert judged(ends, tmp_path) == [one.id for one in of]
    assert "left out" not in capsys.readouterr().out


def test_probes_of_the_records_that_the_file_lacks_are_counted(tmp_path, capsys):
    """Whoever knows the answers can leave out those that do not please; the page says it of every group, in Chinese
    too."""
    of = tuple(probes(tmp_path))
    ends = records_of_run(tmp_path / "attention", of)
    compare_sources(*ends, tmp_path / "all")
    assert "probe file" not in capsys.readouterr().out
    write_probes(of[:1] + of[3:], tmp_path / "picked.json")
    comparison = compare_sources(*ends, tmp_path / "out", probes_file=tmp_path / "picked.json")
    (line,) = {one for group in comparison["groups"].values() for one in group["warnings"] if "file" in one}
    assert line.startswith("2 of 6 probes of the records are not in the probe file: ")
    assert capsys.readouterr().out == f"warning: {line}\n"
    assert all(line in group["warnings"] for group in comparison["groups"].values())
    page = (tmp_path / "out" / "comparison" / "index.html").read_text()
    assert line in page and "记录中的 6 个探针有 2 个不在探针文件里" in page


def test_a_calibration_on_another_file_with_the_same_ids_needs_that_file(tmp_path):
    of = tuple(probes(tmp_path))
    attention = tmp_path / "run" / "attention"
    ends = records_of_run(attention, of)
    chosen((1, 3), tuple(one.id for one in of)).save(attention / "calibration.json")
    with pytest.raises(ValueError, match="were chosen on all 6 probes.*give it as --calibration_probes"):
        judged(ends, tmp_path)
    others = tuple(probes(tmp_path / "others"))
    for at, one in enumerate(others):
        Image.new("RGB", (240, 180), (9 * at, 0, 0)).save(one.images[0])
    write_probes(others, tmp_path / "others.json")
    assert judged(ends, tmp_path, tmp_path / "others.json") == [one.id for one in of]


def test_flags_that_records_cannot_follow_are_told(tmp_path, capsys):
    ends = records_of_run(tmp_path / "attention", tuple(probes(tmp_path)))
    with pytest.raises(ValueError, match="--key_layers: found 0,2, expected 1,3, the layers of the records"):
        compare_sources(*ends, tmp_path / "out", key_layers="0,2")
    capsys.readouterr()
    compare_sources(*ends, tmp_path / "out", key_layers="3,1", base="base")
    assert "warning: --base is not used: all that is compared are records" in capsys.readouterr().out
