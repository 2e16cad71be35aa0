"""What several notes say together."""

from pathlib import Path

import pytest

from diagnostics.probing.trained_on import trained_on
from finetune.model import look_file
from finetune.model.look_file import Supervised


@pytest.mark.parametrize(("base", "adapter"), [(True, False), (False, True), (False, False)])
def test_what_base_and_adapter_were_trained_on_is_united(tmp_path: Path, base: bool, adapter: bool):
    for name, layer, connector in (("base", 2, base), ("adapter", 0, adapter)):
        (tmp_path / name).mkdir()
        look_file.write(tmp_path / name, [layer], None, weight=0.2, loss="mass", connector=connector)
    (tmp_path / "other").mkdir()
    places = [tmp_path / name for name in ("base", "adapter", "other")]
    assert trained_on(places).supervised == Supervised((0, 2), None, base or adapter)
    assert trained_on(places[2:]).supervised is None


@pytest.mark.parametrize("streamed", ["base", "adapter", ""])
def test_pictures_that_one_note_does_not_know_are_not_known(tmp_path: Path, streamed: str):
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
        look_file.write(tmp_path / name, [1], None if name == streamed else ["a"], weight=0.2, loss="mass")
    found = trained_on([tmp_path / "base", tmp_path / "adapter"]).supervised
    assert found is not None and found.pictures == {"a"} and found.some_unknown is bool(streamed)
