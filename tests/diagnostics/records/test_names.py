"""Ids and groups where they become names: no two are one file or one tag, and one that cannot be a file is refused."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import diagnostics.fusion.__main__ as fusion
import diagnostics.keep.__main__ as keep
from diagnostics.comparison.pairs import pair_all
from diagnostics.drawing import tags
from diagnostics.drawing.board import picture_tags, scalars
from diagnostics.records.archive import RecordArchive
from diagnostics.records.names import BYTES_MAX, check_ids, file_name, record_name, tag_part
from diagnostics.records.probes import read_probes, write_probes
from tests.diagnostics.show_samples import probes, records


def written(folder: Path, *ids: str) -> Path:
    """A probe file with these ids."""
    one = probes(folder, per_group=1)[0]
    write_probes([replace(one, id=name) for name in ids], folder / "probes.json")
    return folder / "probes.json"


LONGEST = "塔" * (BYTES_MAX // 3)


@pytest.mark.parametrize(
    "name", ["pearl-night-03", "-x", "v1.2_b", "猫-2", LONGEST, "ตึก", "भवन", "Café", "a" * 120]
)
def test_an_id_is_the_name_of_its_record(tmp_path: Path, name: str) -> None:
    (probe,) = read_probes(written(tmp_path, name))
    record = records([probe], 0)[name]
    archive = RecordArchive(tmp_path / "attention", [name], (1, 3))
    record.save(archive.folder(0) / record_name(name))
    assert [path.name for path in archive.folder(0).iterdir()] == [f"{name}.safetensors"]
    assert archive.stored(0, [name])[name].probe_id == name


@pytest.mark.parametrize(
    "name",
    [
        "塔" * 84,
        "塔" * 200,
        "a" * 121,
        "a/b",
        "..",
        ".a",
        "a b",
        "a\\b",
        "a\nb",
        "CON",
        "nul.1",
        "Lpt1",
        "a.",
        "a:b",
    ],
)
def test_an_id_that_cannot_be_a_file_is_refused_before_anything_is_asked(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"1 fault\(s\).*\n.*id: found .*expected a file name"):
        read_probes(written(tmp_path, name))
    with pytest.raises(ValueError, match="probe id: found .*; expected a file name"):
        file_name(name)
    with pytest.raises(ValueError, match="probe id: found"):  # probes that no file had
        RecordArchive(tmp_path, [name], (1,))


@pytest.mark.parametrize(
    "ids", [("Pearl", "pearl"), ("café", unicodedata.normalize("NFD", "café")), ("STRASSE", "straße")]
)
def test_ids_that_one_disk_takes_for_another_are_refused(tmp_path: Path, ids: tuple[str, str]) -> None:
    with pytest.raises(
        ValueError, match="probes 0, 1: id: found .* one file on macOS or Windows; expected ids"
    ) as error:
        read_probes(written(tmp_path, *ids))
    if ids[0] == "café":  # which look alike in print
        assert r"'caf\xe9', 'cafe\u0301'" in str(error.value)
    with pytest.raises(ValueError, match="one file on macOS or Windows"):
        check_ids(ids)


GROUPS = ["a/b", "a-b", "a%2Fb", "a%b", "a b", "a_b", "/", "A/b", "塔/楼"]


def test_no_two_groups_share_a_tag_of_tensorboard(tmp_path: Path) -> None:
    assert len({tag_part(group) for group in GROUPS}) == len(GROUPS)
    assert not any("/" in tag_part(group) for group in GROUPS)
    assert tag_part("sphere-building") == "sphere-building" and tag_part("a/b") == "a%2Fb"
    of = probes(tmp_path, per_group=2)
    of = [replace(probe, group="a/b" if probe.regions else "a-b") for probe in of]
    pairs = pair_all(of, records(of, 0), records(of, 10))
    assert {"2 answers/accuracy/a%2Fb", "2 answers/accuracy/a-b"} <= set(scalars(pairs))
    assert len(set(picture_tags(pairs))) == 2 + 4 * 2 + 1


def test_no_two_things_share_a_tag_whatever_groups_and_probes_are_called() -> None:
    names = [
        *GROUPS,
        "accuracy",
        "margin_nats",
        "enrichment",
        "corrected",
        "drift strip",
        "onset",
        "retention",
    ]
    named = [f(name) for name in names for f in (
        tags.verdict_tag, tags.holds_tag, tags.strip_tag, tags.overview_tag, tags.onset_tag)]  # fmt: skip
    named += [tags.answers_tag(what, name) for name in names for what in ("accuracy", "margin_nats")]
    named += [tags.attention_tag(what, name, 1) for name in names for what in ("enrichment", "region_mass")]
    named += [f(name, *more) for name in names for probe in ("accuracy", "retention", "layer_1")
              for f, more in ((tags.probe_tag, (probe,)), (tags.map_tag, (probe, 1)))]  # fmt: skip
    named += [tags.drift_tag("visual_share", 1), tags.ARCHITECTURE, tags.DIAGNOSIS]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize(("name", "study"), [("all", fusion), ("all probes", keep)])
def test_a_group_called_like_all_of_them_does_not_take_their_place(
    tmp_path: Path, name: str, study: ModuleType
) -> None:
    of = [replace(probe, group=name) for probe in probes(tmp_path, per_group=2)]
    write_probes(of, tmp_path / "probes.json")
    with pytest.raises(ValueError, match=f"found group '{name}', a name reserved for all groups together"):
        study.run("no-model", tmp_path / "probes.json", tmp_path / "out")
    assert json.loads((tmp_path / "probes.json").read_text())["version"] == 1
