"""Every program that fills a folder is refused while another writes there."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from finetune import folder_lock
folder_lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
PROGRAMS = {
    "diagnostics.compare": ["--before=a", "--after=b"],
    "diagnostics.curve": [
        "--fractions",
        "0.5",
        "1",
        "--",
        "--data_path=d",
        "--model_name_or_path=m",
        "--probes=p",
    ],
    "diagnostics.diagnose": ["model", "--probes=p"],
    "diagnostics.fusion.__main__": ["--model=m", "--probes=p"],
    "diagnostics.keep.__main__": ["model", "--probes=p"],
    "finetune.corrective.__main__": ["--boxes=b.json", "--images=i"],
}
"""Program → flags; what they name does not exist: the folder is looked at first."""


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("taken")
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        yield folder
        other.kill()


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_at_a_time(taken: Path, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--output_dir={taken}", *PROGRAMS[program]]
    try:
        status = import_module(program).main(flags)
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err.splitlines()
    assert status in (1, 2) and len(said) == 1, said
    assert f"{taken}: another run is writing there (process " in said[0]
    assert [one.name for one in taken.iterdir()] == ["run.lock"]
