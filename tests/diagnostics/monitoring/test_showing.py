"""What a monitored run shows: where to look at it, and what happens where one tracker cannot be opened."""

from pathlib import Path

import pytest

from diagnostics.drawing import trackers
from diagnostics.monitoring.failures import Failures
from diagnostics.monitoring.showing import Showing, ShownRun, log_dir


class Undrawn:
    """Draws nothing."""

    def __init__(self, attention_dir: Path) -> None: ...

    def submit_strips(self) -> None: ...

    def close(self) -> list[None]:
        return []


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Showing, Failures]:
    class Offline(trackers.Wandb):
        def _begin(self) -> str:
            raise ConnectionError("no network")

    monkeypatch.setattr("diagnostics.drawing.worker_client.Renderer", Undrawn)
    monkeypatch.setitem(trackers.KNOWN, "wandb", Offline)
    failures = Failures()
    run = ShownRun(
        tmp_path / "a run", ["towers", "retention"], [1, 3], None, ["wandb", "comet_ml"], {"seed": 4}
    )
    return Showing(run, failures, step=0), failures


def test_a_tracker_that_cannot_be_opened_does_not_keep_tensorboard_from_its_own(
    shown: tuple[Showing, Failures], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    showing, failures = shown
    showing.close()
    assert failures.missing == ["wandb (no network)"]
    assert "--report_to comet_ml gets the training curves; probes go elsewhere" in capsys.readouterr().out
    assert len(list((tmp_path / "a run" / "runs").glob("*.hparams.attention"))) == 1


def test_the_commands_that_show_a_run_are_those_of_its_folder(
    shown: tuple[Showing, Failures], tmp_path: Path
) -> None:
    own, stock = shown[0].where_to_look().splitlines()
    folder = f"'{tmp_path / 'a run'}'"
    assert own == (
        f"curves and maps: python -m diagnostics.board {folder}, at http://localhost:6006/data/plugin/drift/start"
    )
    assert f"tensorboard --logdir '{tmp_path / 'a run' / 'runs'}' --samples_per_plugin" in stock
    assert "http://localhost:6006/?smoothing=0&pinnedCards=" in stock


def test_the_folder_of_event_files_is_the_writer_s_or_the_environment_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert log_dir(tmp_path, None) == tmp_path / "runs"
    assert log_dir(tmp_path, type("Writer", (), {"log_dir": "elsewhere"})()) == Path("elsewhere")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "named"))
    assert log_dir(tmp_path, None) == tmp_path / "named"
