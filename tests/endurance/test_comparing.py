"""What the endurance run judges by: a difference in a file, a tag or a step is found, and what may differ is not."""

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.endurance import comparing


def run_folder(folder: Path) -> Path:
    (folder / "attention").mkdir(parents=True)
    (folder / "attention" / "a.png").write_bytes(b"picture")
    (folder / "run.json").write_text("moment")
    with SummaryWriter(str(folder / "runs")) as writer:
        for step in (1, 2):
            writer.add_scalar("train/loss", 1 / step, step)
        writer.add_scalar("train/train_runtime", 3.0, 2)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    alone, found = run_folder(tmp_path / "alone"), run_folder(tmp_path / "found")
    (found / "run.json").write_text("another moment")
    return alone, found


def test_moments_may_differ(folders: tuple[Path, Path]) -> None:
    assert comparing.differences(*folders) == []


def test_pictures_temporary_files_and_tags_may_not(folders: tuple[Path, Path]) -> None:
    alone, found = folders
    (found / "attention" / "a.png").write_bytes(b"Picture")
    (found / ".trial.tmp").write_bytes(b"")
    with SummaryWriter(str(found / "runs"), filename_suffix="again") as writer:
        writer.add_scalar("train/loss", 0.5, 2)
        writer.add_scalar("train/other", 0.5, 2)
    assert comparing.differences(alone, found) == [
        ".trial.tmp is there besides",
        "attention/a.png differs",
        "TensorBoard has 'train/other' besides",
        "TensorBoard has 'train/loss' twice at steps [2]",
    ]
    assert comparing.differences(found, alone)[:2] == [".trial.tmp is missing", "attention/a.png differs"]
    assert "TensorBoard lacks 'train/other'" in comparing.differences(found, alone)


def test_the_last_epoch_is_logged_twice_or_once(folders: tuple[Path, Path]) -> None:
    for folder, steps in zip(folders, ((1, 2, 2), (1, 2)), strict=True):
        with SummaryWriter(str(folder / "runs"), filename_suffix="epoch") as writer:
            for step in steps:
                writer.add_scalar("train/epoch", step / 2, step)
    assert comparing.differences(*folders) == []
    assert comparing.differences(*reversed(folders)) == ["TensorBoard has 'train/epoch' twice at steps [2]"]
