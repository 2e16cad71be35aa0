"""What the cases of full disks judge by: which writes are cut, and what counts as half-written."""

from pathlib import Path

from tests.endurance import disk


def test_which_writes_are_cut() -> None:
    writes = [("1", "open", "/a/.7-1.tmp"), *((str(n), "write", "/a/.7-1.tmp") for n in range(2, 6))]
    writes += [("6", "rename", "/a/x.json"), ("7", "open", "/b/.7-1.tmp"), ("8", "open", "/a/.7-1.tmp")]
    assert [number for number, _ in disk.chosen(writes)] == [1, 2, 3, 5, 6, 7, 8]


def test_what_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text("{}")
    assert disk.half_written(tmp_path) == [] and disk.half_written(tmp_path / "missing") == []
    (tmp_path / "half.json").write_text("{")
    (tmp_path / ".7-1.tmp").write_bytes(b"")
    (tmp_path / "half.safetensors").write_bytes(b"1234")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "optimizer.pt").write_bytes(b"")
    found = sorted(line.split(" ")[0] for line in disk.half_written(tmp_path))
    assert found == [
        ".7-1.tmp",
        "checkpoint-1/optimizer.pt",
        "checkpoint-1:",
        "half.json",
        "half.safetensors",
    ]


def test_paths_within_files_may_differ_and_numbers_may_not(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / name).mkdir()
        text = f'{{"before": {{"name": "/{name}"}}, "groups": {{"g": {{"accuracy": {value}}}}}}}'
        (tmp_path / name / "comparison.json").write_text(text)
    assert disk.unlike(tmp_path / "a", tmp_path / "b") == []
    assert disk.unlike(tmp_path / "a", tmp_path / "c") == ["comparison.json differs"]
    (tmp_path / "c" / "more").touch()
    assert disk.unlike(tmp_path / "a", tmp_path / "c")[0] == "more is there besides"
