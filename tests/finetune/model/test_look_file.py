"""``look.json`` goes where the weights go, and says all that was trained on."""

import json
from pathlib import Path

import pytest

from finetune.model.look_file import LOOK_FILE, Supervised, carry, supervised_of, write

A, B = "a" * 64, "b" * 64


def of(folder: Path, layers: tuple[int, ...], pictures: list[str] | None, *, connector: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, layers, pictures, weight=0.5, loss="kl", connector=connector)
    return folder


def test_a_checkpoint_is_its_runs_and_keeps_its_own_copy(tmp_path: Path):
    run = of(tmp_path / "run", (2, 1), [B, A])
    (run / "checkpoint-4").mkdir()
    (run / "other").mkdir()
    assert supervised_of(run / "checkpoint-4") == Supervised((1, 2), frozenset({A, B}))
    assert supervised_of(run / "other") is None and supervised_of("Qwen/Qwen-VL-Chat") is None
    of(run / "checkpoint-4", (7,), None)
    assert supervised_of(run / "checkpoint-4") == Supervised((7,), None)


def test_what_a_run_starts_from_is_united_with_what_it_trains_on(tmp_path: Path):
    base, adapter = of(tmp_path / "base", (0,), None), of(tmp_path / "run", (3,), [A])
    (adapter / "checkpoint-2").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(2):  # the same again where the run is resumed
        carry(out, str(base), adapter / "checkpoint-2", None, "Qwen/Qwen-VL-Chat")
        assert supervised_of(out) == Supervised((0, 3), frozenset({A}), more=True)  # the base's were streamed
    for _ in range(2):
        write(out, (1, 3), [B], weight=0.25, loss="mass")
        assert supervised_of(out) == Supervised((0, 1, 3), frozenset({A, B}), more=True)
    content = json.loads((out / LOOK_FILE).read_text())
    assert (content["weight"], content["loss"]) == (0.25, "mass")  # those of the newest


@pytest.mark.parametrize(
    ("base", "run", "both"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_a_resampler_that_was_trained_on_once_stays_so(tmp_path: Path, base: bool, run: bool, both: bool):
    origin = of(tmp_path / "base", (0,), None, connector=base)
    out = of(tmp_path / "out", (1,), None, connector=run)
    carry(out, origin)
    found = supervised_of(out)
    assert found is not None and found == Supervised((0, 1), None, both)
    carry(tmp_path / "base", out)
    assert supervised_of(origin) == found


def test_a_note_that_does_not_say_counts_as_if_the_resampler_was_trained_on(tmp_path: Path):
    """Those of earlier releases."""
    path = of(tmp_path / "run", (1,), [A], connector=False) / LOOK_FILE
    content = json.loads(path.read_text())
    del content["connector"]
    path.write_text(json.dumps(content))
    assert supervised_of(tmp_path / "run") == Supervised((1,), frozenset({A}), True)
    carry(of(tmp_path / "out", (2,), None, connector=False), tmp_path / "run")
    assert json.loads((tmp_path / "out" / LOOK_FILE).read_text())["connector"] is True
    path.write_text(json.dumps(content | {"connector": "yes"}))
    with pytest.raises(ValueError, match=r"connector: found .yes., expected true or false"):
        supervised_of(tmp_path / "run")


@pytest.mark.parametrize("streamed_first", [True, False])
def test_that_some_pictures_are_not_known_stays_so(tmp_path: Path, streamed_first: bool):
    """Of a run with streamed data and one that goes on from it with known pictures; and on from that."""
    given = [None, [A]] if streamed_first else [[A], None]
    for name, pictures in zip(("one", "two"), given, strict=True):
        found = supervised_of(of(tmp_path / name, (1,), pictures))
        assert found is not None and found.some_unknown is (pictures is None)
    carry(tmp_path / "two", tmp_path / "one")
    carry(of(tmp_path / "three", (2,), [B]), tmp_path / "two")
    for name, known in (("two", {A}), ("three", {A, B})):
        found = supervised_of(tmp_path / name)
        assert found is not None and found.some_unknown and found.pictures == known, name


def test_an_older_note_with_pictures_knows_them_all(tmp_path: Path):
    path = of(tmp_path / "run", (1,), [A]) / LOOK_FILE
    for pictures in ([A], None):
        content = json.loads(path.read_text()) | {"pictures": pictures}
        content.pop("unknown_pictures", None)
        path.write_text(json.dumps(content))
        found = supervised_of(tmp_path / "run")
        assert found is not None and found.some_unknown is (pictures is None)


def test_where_no_attention_was_trained_on_no_file_is_made(tmp_path: Path):
    (tmp_path / "base").mkdir()
    carry(tmp_path, tmp_path / "base", None)
    assert not (tmp_path / LOOK_FILE).exists()


@pytest.mark.parametrize("where", ["base", "out"])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, where: str):
    for name in ("base", "out"):
        of(tmp_path / name, (1,), None)
    path = tmp_path / where / LOOK_FILE
    path.write_text(path.read_text().replace('"kl"', '"other"'))
    before = (tmp_path / "out" / LOOK_FILE).read_text()
    with pytest.raises(
        ValueError, match=rf"{where}/look\.json: loss: found .other.[^\n]*\ntrain again, or delete it"
    ):
        carry(tmp_path / "out", tmp_path / "base")
    assert (tmp_path / "out" / LOOK_FILE).read_text() == before
