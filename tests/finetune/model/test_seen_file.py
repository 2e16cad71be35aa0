"""``seen.json`` goes where the weights go, and names every picture of the probes that was trained on."""

import json
from pathlib import Path

import pytest

from finetune.model.seen_file import SEEN_FILE, carry, seen_of, write

A, B, C = "a" * 64, "b" * 64, "c" * 64


def of(folder: Path, *pictures: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, pictures)
    return folder


def test_a_checkpoint_is_its_runs_and_keeps_its_own_copy(tmp_path: Path):
    run = of(tmp_path / "run", B, A)
    (run / "checkpoint-4").mkdir()
    (run / "other").mkdir()
    assert seen_of(run / "checkpoint-4") == seen_of(run) == {A, B}
    assert seen_of(run / "other") == seen_of("Qwen/Qwen-VL-Chat") == frozenset()
    of(run / "checkpoint-4", C)
    assert seen_of(run / "checkpoint-4") == {C}
    assert json.loads((run / SEEN_FILE).read_text()) == {"version": 1, "pictures": [A, B]}


def test_what_was_seen_goes_on_with_the_weights_and_adds_up(tmp_path: Path):
    base, adapter, out = of(tmp_path / "base", A), of(tmp_path / "run", B), of(tmp_path / "out")
    for _ in range(2):  # the same again where the run is resumed
        carry(out, str(base), adapter, None, "Qwen/Qwen-VL-Chat")
        write(out, [C, A])
        assert seen_of(out) == {A, B, C}


def test_where_nothing_was_seen_no_file_is_made(tmp_path: Path):
    carry(of(tmp_path / "out"), of(tmp_path / "base"), None)
    assert not (tmp_path / "out" / SEEN_FILE).exists()


@pytest.mark.parametrize("pictures", ["", ', "pictures": [3]', ', "pictures": null'])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, pictures: str):
    base, out = of(tmp_path / "base", A), of(tmp_path / "out", B)
    (base / SEEN_FILE).write_text(f'{{"version": 1{pictures}}}')
    with pytest.raises(ValueError, match=r"base/seen\.json: pictures: [^\n]*\ntrain again, or delete it"):
        carry(out, base)
    assert seen_of(out) == {B}
