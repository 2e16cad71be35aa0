"""Records and probe files as disks, editors and other programs leave them: read, or one message with file and field."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from diagnostics.compare import main
from diagnostics.comparison.curve import CurvePoint, check_comparison, curve_of
from diagnostics.probing.layer_choice import Calibration
from diagnostics.records.architectures import kept
from diagnostics.records.identity import Run
from diagnostics.records.probes import Probe, read_probes, write_probes
from diagnostics.records.record import AttentionRecord
from tests.diagnostics.show_samples import probes, records, run_folder

Header, Arrays = dict[str, Any], dict[str, np.ndarray]


def opened(path: Path) -> tuple[Header, Arrays]:
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["attention_record"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The file of a sound record: of 2 key layers, 2 heads, 1 row of 12 tokens, 24 cells read by 5 queries."""
    path = tmp_path / "record.safetensors"
    records(probes(tmp_path, per_group=1), 10)["sphere-building-0"].save(path)
    return path


def changed(path: Path, change: Callable[[Header, Arrays], Any]) -> None:
    header, arrays = opened(path)
    change(header, arrays)
    save_file(arrays, path, metadata={"attention_record": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a: h.update(tokens=h["tokens"][:-1]), r"queries|rows: found float32 \[2, 2, 1, 12\]"),
        (lambda h, a: h.update(tokens="abc"), "tokens: found 'abc'; expected a list of strings"),
        (lambda h, a: h.update(step="10"), "step: found '10'; expected a number from 0"),
        (lambda h, a: h.update(layers=[1, 1]), r"layers: found \[1, 1\]; expected at least one layer"),
        (lambda h, a: h.update(layers=[1, 9]), "expected layers of the 4 that visual_share has"),
        (lambda h, a: h["queries"][0].update(position=12), r"queries\[0\].position: found 12; expected one of 12"),
        (lambda h, a: h["queries"][0].update(x=1), r"queries\[0\].'x': found an unknown field"),
        (lambda h, a: h.pop("scores"), "record without 'scores'"),
        (lambda h, a: h["scores"].update(answer_nats=float("nan")), "scores.answer_nats: found nan; expected a finite"),
        (lambda h, a: h["images"][0].update(grid=[4, 0]), r"images\[0\].grid: found \[4, 0\]"),
        (lambda h, a: h["images"][0].pop("grid"), r"record without 'images\[0\].grid'"),
        (lambda h, a: h["images"][0].update(grid=[4, 7]), r"cell_boxes_pixels: found float64 \[24, 4\]; expected .*28"),
        (lambda h, a: h["interventions"][0].update(layers=[1]), r"interventions\[0\].layers: found \[1\]"),
        (lambda h, a: h["names"].update(regions=[]), "names: found 'regions'; expected kinds among region_mass"),
        (lambda h, a: h.update(connectors=3), "connectors: found 3; expected 0, or one for each of 1 images"),
        (lambda h, a: a.pop("rows"), "record without 'rows'"),
        (lambda h, a: a.update(rows=a["rows"][:, :, 0]), r"rows: found float32 \[2, 2, 12\]"),
        (lambda h, a: a.update(rows=a["rows"].astype(np.int64)), "rows: found int64 .*; expected floats"),
        (lambda h, a: a.update(rows=-a["rows"]), "rows: found .*; expected attention, from 0 to 1"),
        (lambda h, a: a["rows"].__setitem__((0, 0, 0, 3), np.nan), "rows: found 1 of NaN or infinity; .*overflowed"),
        (lambda h, a: a["rows"].__setitem__((0, 0, 0, 3), -np.inf), "rows: found 1 of NaN or infinity"),
        (lambda h, a: a.update({"image/0/positions": np.arange(8, 13)}), "positions: found 8 to 12; .* 12 tokens"),
        (lambda h, a: a.update({"connector/0": a["connector/0"].T.copy()}), r"connector/0: found float32 \[24, 5\]"),
        (lambda h, a: a.update({"region_mass/body": np.zeros((4, 3), np.float32)}), r"region_mass/body: .*\[4, 2\]"),
        (lambda h, a: a.update({"region_mass/body": np.full((4, 2), np.nan, "f")}), "region_mass/body: found NaN"),
        (lambda h, a: a.update({"region_mass/body": np.full((4, 2), -1, np.float32)}), "body: .*from 0 to 1"),
        (lambda h, a: a.update(visual_share=np.full((4, 2), 7, np.float32)), "visual_share: found 7.0 to 7.0"),
        (lambda h, a: a["visual_share"].__setitem__(1, np.nan), "visual_share: found NaN or infinity in a key layer"),
        (lambda h, a: a["image/0/cell_boxes_pixels"].__setitem__(0, [9, 9, 1, 1]), "found swapped corners"),
        (lambda h, a: a["image/0/positions"].__setitem__(0, a["image/0/positions"][1]), "found a token twice"),
        (lambda h, a: a.update(sinks=np.zeros((2, 9), bool)), r"sinks: found bool \[2, 9\]; .*\[2, 12\]"),
    ],
)  # fmt: skip
def test_a_record_with_a_wrong_field_or_array_is_named_with_it(
    record: Path, change: Callable[[Header, Arrays], Any], message: str
) -> None:
    changed(record, change)
    with pytest.raises(ValueError, match=message) as error:
        AttentionRecord.load(record)
    assert str(error.value).startswith(f"{record}: ") and "probe again" in str(error.value)


@pytest.mark.parametrize(
    "header", ["[]", "null", "3", "[" * 50_000, '{"version": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}']
)
def test_a_record_whose_header_is_no_header_is_named(record: Path, header: str) -> None:
    save_file({"x": np.zeros(2)}, record, metadata={"attention_record": header})
    with pytest.raises(ValueError, match=r"record\.safetensors: ") as error:
        AttentionRecord.load(record)
    assert len(str(error.value)) < 500


def test_a_record_cut_anywhere_is_named(record: Path) -> None:
    whole = record.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        record.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"record\.safetensors: broken record"):
            AttentionRecord.load(record)


def test_any_mutation_of_a_record_is_read_or_refused_with_the_file_s_name(record: Path) -> None:
    """Same mutations every time: bytes, cuts, fields of the header, arrays of another shape or type."""
    whole, chance = record.read_bytes(), random.Random(13)
    (header, arrays), outcomes = opened(record), []
    for turn in range(300):
        if turn % 2:
            bad = bytearray(whole)
            for _ in range(chance.choice((1, 3, 20))):
                bad[chance.randrange(min(len(bad), 3000))] = chance.randrange(256)
            record.write_bytes(bytes(bad[: chance.choice((len(bad), len(bad), chance.randrange(len(bad))))]))
        else:
            broken = json.loads(json.dumps(header))
            mutate(broken, chance)
            other = {
                name: reshaped(array, chance) if chance.random() < 0.1 else array
                for name, array in arrays.items()
            }
            save_file(other, record, metadata={"attention_record": json.dumps(broken)})
        try:
            AttentionRecord.load(record)
            outcomes.append("read")
        except ValueError as error:
            assert str(error).startswith(f"{record}: ") and len(str(error)) < 2000
            outcomes.append("refused")
    assert outcomes.count("refused") > 150


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**400,
    1e308,
    float("nan"),
    "",
    "塔",
    "x" * 5000,
    [],
    {},
    [[]],
    [1, 2],
    {"a": []},
]


def mutate(content: Any, chance: random.Random) -> None:
    """One place of a JSON content becomes something else, or goes."""
    places: list[tuple[Any, Any]] = []
    held = [content]
    while held:
        one = held.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        places += [(one, key) for key in keys]
        held += [one[key] for key in keys if isinstance(one[key], dict | list)]
    where, key = chance.choice(places)
    if chance.random() < 0.25:
        del where[key]
    else:
        where[key] = copy.deepcopy(chance.choice(VALUES))


def reshaped(array: np.ndarray, chance: random.Random) -> np.ndarray:
    kinds: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda one: one.reshape(-1),
        lambda one: one[..., :-1],
        lambda one: one[None],
        lambda one: one.astype(np.float16),
        lambda one: one.astype(np.int64) * 1000,
        lambda one: one.astype(np.float32) * np.nan,
        lambda one: one[:0],
    ]
    return np.ascontiguousarray(chance.choice(kinds)(array))


# ---------------------------------------------------------------------------------------------------------------------
# Probe files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def probe_file(tmp_path: Path) -> Path:
    write_probes(probes(tmp_path, per_group=2), tmp_path / "probes.json")
    return tmp_path / "probes.json"


def test_any_mutation_of_a_probe_file_is_read_or_refused_with_the_file_s_name(probe_file: Path) -> None:
    whole, chance, outcomes = json.loads(probe_file.read_text()), random.Random(5), []
    for _ in range(400):
        broken = json.loads(json.dumps(whole))
        for _ in range(chance.choice((1, 1, 4))):
            mutate(broken, chance)
        text = json.dumps(broken, ensure_ascii=False)
        if chance.random() < 0.2:
            at = chance.randrange(len(text))
            text = (
                text[:at]
                + chance.choice(["", "\x00", '"', "[" * 3000, "\\ud83d"])
                + text[at + chance.randrange(3) :]
            )
        probe_file.write_text(text, encoding="utf-8")
        try:
            assert all(isinstance(probe, Probe) for probe in read_probes(probe_file))
            outcomes.append("read")
        except ValueError as error:
            assert str(error).startswith(f"{probe_file}: ") and len(str(error).encode()) < 2000
            str(error).encode("utf-8")  # it can be printed
            outcomes.append("refused")
    assert outcomes.count("refused") > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 50_000, "nested too deep"),
        (b'{"version": 1, "probes": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deep"),
        (b'{"version": ' + b"1" * 5000 + b"}", "not readable as JSON"),
        (b'{"version": 1, "version": 1, "probes": []}', 'the key "version" appears twice in one object'),
        (b'\xff\xfe{"version": 1}', "save it in UTF-8"),
        (b'{"version": 1, "probes": [{"id": "\\ud83d"}]}', "half of a UTF-16 pair"),
        (b'{"version": [[1]]}', r"version: found \[\[1\]\]; expected"),
        (b"", "not readable as JSON"),
    ],
)
def test_a_file_that_is_no_probe_file_is_one_message(probe_file: Path, content: bytes, message: str) -> None:
    probe_file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_probes(probe_file)
    assert str(error.value).startswith(f"{probe_file}: ") and len(str(error.value)) < 500


def test_a_file_that_windows_saved_with_a_byte_order_mark_is_read(probe_file: Path) -> None:
    probe_file.write_bytes(b"\xef\xbb\xbf" + probe_file.read_bytes())
    assert len(read_probes(probe_file)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["x" * 300 + ".png"]}, "images: found xxx.*not readable: File name too long"),
        ({"phrases": {"东方明珠": []}}, r"phrases.东方明珠: found \[\]; expected one of the regions"),
        ({"relation": {"phrase": [], "subject": {}, "object": []}}, r"relation.subject: found \{\}"),
        ({"relation": {"phrase": [], "subject": "body", "object": "body"}}, r"relation.phrase: found \[\]"),
        ({"foil": "y" * 9000, "answer": "y" * 9000}, "foil: found 'yyy"),
    ],
)
def test_a_field_of_another_type_is_a_fault_like_others(
    probe_file: Path, changes: dict[str, Any], message: str
) -> None:
    content = json.loads(probe_file.read_text())
    content["probes"][0].update(changes)
    probe_file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_probes(probe_file)
    assert len(str(error.value)) < 2000


def test_a_hundred_faults_are_counted_in_a_message_that_is_still_read(probe_file: Path) -> None:
    entry = {"id": "塔" * 200, "group": "", "images": [], "question": 1, "answer": None}
    probe_file.write_text(json.dumps({"version": 1, "probes": [entry] * 100}))
    with pytest.raises(ValueError, match=r"501 fault\(s\).*(\n.*)+ more") as error:
        read_probes(probe_file)
    assert len(str(error.value).encode()) < 2000


def test_a_picture_that_is_cut_off_is_found_before_the_model_is_asked(probe_file: Path) -> None:
    picture = read_probes(probe_file)[0].images[0]
    Image.effect_noise((120, 80), 90).save(picture)
    picture.write_bytes(picture.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not readable as an image: found a broken file"):
        read_probes(probe_file)


# ---------------------------------------------------------------------------------------------------------------------
# A comparison of folders of records
# ---------------------------------------------------------------------------------------------------------------------


def compared(attention: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Exit status of the command, and what it said."""
    steps = ["--before", str(attention / "step-000000"), "--after", str(attention / "step-000010")]
    try:
        main([*steps, "--output_dir", str(attention.parent / "out")])
    except SystemExit as stopped:
        return stopped.code, capsys.readouterr().err
    return 0, ""


def test_any_mutation_of_a_record_ends_a_comparison_with_a_status_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attention, chance, codes = run_folder(tmp_path, per_group=2), random.Random(21), []
    paths = sorted(attention.glob("step-*/*.safetensors"))
    for _ in range(40):
        path = chance.choice(paths)
        whole = path.read_bytes()
        header, arrays = opened(path)
        mutate(header, chance)
        save_file(arrays, path, metadata={"attention_record": json.dumps(header)})
        code, told = compared(attention, capsys)
        path.write_bytes(whole)
        codes.append(code)
        assert code in (0, 2)
        if code:
            assert told.startswith("error: ") and told.count("\n") == 1 and len(told) < 2000
            assert path.name in told or "probe" in told
    assert codes.count(2) > 15 and compared(attention, capsys)[0] == 0


@pytest.mark.parametrize("harm", ["missing", "cut", "another's", "no picture", "heads", "regions", "copy"])
def test_a_run_where_a_probe_failed_is_not_compared_as_if_it_were_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    attention = run_folder(tmp_path, per_group=2)
    path = attention / "step-000010" / "sphere-building-1.safetensors"
    beside = path.with_name("sphere-building-0.safetensors")
    if harm == "missing":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif harm == "another's":
        path.write_bytes(beside.read_bytes())
    elif harm == "copy":
        (path.with_name("copy.safetensors")).write_bytes(path.read_bytes())
    else:
        changed(path, HARMS[harm])
    code, told = compared(attention, capsys)
    assert code == 2 and told.startswith("error: ") and told.count("\n") == 1
    assert "sphere-building-1" in told or "sphere-building-0" in told
    assert not (tmp_path / "out" / "comparison").exists()


def without_pictures(header: Header, arrays: Arrays) -> None:
    header.update(images=[], connectors=0)


def of_one_head(header: Header, arrays: Arrays) -> None:
    for name in ("rows", "visual_share", "region_mass/body", "region_mass/spheres"):
        arrays[name] = np.ascontiguousarray(arrays[name][:, :1])


def without_regions(header: Header, arrays: Arrays) -> None:
    header.update(interventions=[], names={})


HARMS = {"no picture": without_pictures, "heads": of_one_head, "regions": without_regions}


# ---------------------------------------------------------------------------------------------------------------------
# What runs leave for later ones
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ["1", "3"]}, "layers: found a list of 2"),
        ({"layers": []}, "layers: found none"),
        ({"heads": [[1, True]]}, "heads: found a list of 1"),
        ({"chosen": 1}, "chosen: found 1, expected true or false"),
        ({"enrichment": [float("nan")]}, "enrichment: found a list of 1"),
        ({"by_chance": [1.0]}, "enrichment, by_chance, p_adjusted: found other"),
        ({"more": 1}, "more: found a field that no calibration has"),
        ({"why": [[[[]]]]}, "why: found a list of 1, expected text"),
    ],
)
def test_a_calibration_of_other_types_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "calibration.json"
    Calibration((1, 3), ((1, 0),), True, ("p",), (1.0, None), (1.0, None), (0.1, None), "why").save(path)
    assert Calibration.load(path).layers == (1, 3)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"calibration\.json: {message}"):
        Calibration.load(path)


@pytest.mark.parametrize("content", [None, [], {"version": 1}, {"version": 1, "run": 3}])
def test_the_identity_of_a_run_that_is_none_is_unknown(content: Any) -> None:
    with pytest.raises(ValueError, match="its model and probes are unknown"):
        Run.from_json(content)


def test_an_architecture_that_was_kept_as_something_else_is_found_anew(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[" * 5_000)
    assert kept(tmp_path / "a.json") is None and kept(tmp_path / "b.json") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("groups"), "groups: missing"),
        (lambda c: c["after"].update(step="10"), 'after.step: found "10"'),
        (
            lambda c: c["groups"]["sphere-building"].update(verdict=None),
            r"groups\.sphere-building\.verdict: found null",
        ),
        (
            lambda c: c["groups"]["sphere-building"]["occlusion_nats"].pop("ci95"),
            r"groups\.sphere-building\.occlusion_nats: found an object",
        ),
        (lambda c: c["probes"][0].update(correct=[]), r"probes\[0\]\.correct: found a list of 0"),
        (lambda c: c["probes"][0].update(layers=[]), r"probes\[0\] .* no enrichment of its region"),
    ],
)
def test_a_comparison_that_lacks_what_a_curve_reads_is_named_by_its_field(
    comparison: dict[str, Any], change: Callable[[Any], Any], message: str
) -> None:
    check_comparison(comparison, "comparison.json")
    made = copy.deepcopy(comparison)
    change(made)
    with pytest.raises(ValueError, match=rf"comparison\.json: {message}") as caught:
        check_comparison(made, "comparison.json")
    assert len(str(caught.value)) < 2000


def test_a_curve_of_runs_with_other_probes_is_refused(comparison: dict[str, Any]) -> None:
    made = copy.deepcopy(comparison)
    del made["groups"]["retention"]
    points = [
        CurvePoint(share, 0, 10, 10, 10, one, str(share)) for share, one in ((0.5, comparison), (1.0, made))
    ]
    with pytest.raises(ValueError, match="a comparison of other probes than 0.5 has"):
        curve_of(points, {one["id"]: "picture" for one in comparison["probes"]})


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    attention = run_folder(tmp_path_factory.mktemp("curve"), per_group=2)
    steps = ["--before", str(attention / "step-000000"), "--after", str(attention / "step-000010")]
    main([*steps, "--output_dir", str(attention.parent)])
    return json.loads((attention.parent / "comparison" / "comparison.json").read_text())
