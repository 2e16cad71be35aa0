"""The data folder: whole or not there, and disjoint."""

import json
from pathlib import Path

import pytest
from PIL import Image

from finetune.demo import corpus, prepare, probe_sets


@pytest.fixture
def small(monkeypatch):
    """Four samples a corpus and one probe a group; drawn in this process, so that the sizes reach the drawing."""
    monkeypatch.setattr(corpus, "CORPUS_SIZES", {"base": 4, "corrective": 4})
    monkeypatch.setattr(probe_sets, "PROBES_PER_GROUP", 1)
    monkeypatch.setattr(prepare.os, "cpu_count", lambda: 1)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_draws_the_corrective_corpus_and_the_probes(small, tmp_path):
    files = prepare.prepare(tmp_path, progress=False)
    records = json.loads(files.corrective.read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == [f"corrective-{i:05d}" for i in range(4)]
    for record in records:
        image = record["conversations"][0]["value"].split("<img>")[1].split("</img>")[0]
        assert Image.open(files.corrective.parent / image).size == corpus.PICTURE_PIXELS
    content = json.loads(files.probes.read_text(encoding="utf-8"))
    assert content["version"] == 1 and [p["group"] for p in content["probes"]] == list(probe_sets.GROUPS)
    assert Image.open(files.probes.parent / content["probes"][0]["images"][0]).size == probe_sets.PROBE_PIXELS
    assert not files.base.exists()
    assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_what_is_finished_is_left_alone_and_a_half_made_folder_is_drawn_again(small, tmp_path):
    files = prepare.prepare(tmp_path, progress=False)
    kept = files.probes.stat().st_mtime_ns
    (files.corrective.parent / "recipe.json").unlink()
    (files.corrective.parent / "images" / "00002.jpg").unlink()
    files.corrective.write_text("[")
    again = prepare.prepare(tmp_path, progress=False)
    assert again.probes.stat().st_mtime_ns == kept
    assert len(json.loads(again.corrective.read_text(encoding="utf-8"))) == 4
    assert (again.corrective.parent / "images" / "00002.jpg").exists()
    leftovers = [name for name in _files(tmp_path) if name.startswith((".corrective", ".probes"))]
    assert leftovers == []


def test_another_recipe_is_drawn_again(small, tmp_path):
    files = prepare.prepare(tmp_path, ["probes"], progress=False)
    recipe = files.probes.parent / "recipe.json"
    content = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**content, "recipe": "probes-older"}))
    files.probes.write_text("{}")
    prepare.prepare(tmp_path, ["probes"], progress=False)
    assert json.loads(files.probes.read_text())["version"] == 1


def test_drawing_twice_gives_the_same_files(small, tmp_path):
    first, second = (prepare.prepare(tmp_path / name, ["corrective"], progress=False) for name in ("a", "b"))
    names = _files(first.corrective.parent)
    assert names == _files(second.corrective.parent)
    for name in names:
        assert (first.corrective.parent / name).read_bytes() == (second.corrective.parent / name).read_bytes()


def test_a_picture_in_two_parts_is_refused(small, tmp_path):
    prepare.prepare(tmp_path, progress=False)
    recipes = [tmp_path / part / "recipe.json" for part in ("corrective", "probes")]
    corrective, probe = (json.loads(path.read_text()) for path in recipes)
    probe["digests"][0] = corrective["digests"][0]
    recipes[1].write_text(json.dumps(probe))
    with pytest.raises(ValueError, match="1 pictures are in both corrective and probes; expected none"):
        prepare.prepare(tmp_path, progress=False)


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="unknown part 'probe'; choose from corrective, probes, base, development"
    ):
        prepare.prepare(tmp_path, ["probe"])


def test_the_command_says_where_the_files_are(small, tmp_path, capsys):
    prepare.main(["--output_dir", str(tmp_path), "--parts", "probes"])
    assert f"probes: {tmp_path / 'probes' / 'probes.json'}" in capsys.readouterr().out
