"""docs/corrective-data.md tells the truth: its commands run as they stand, and its figures are what comes out."""

import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from finetune.corrective.__main__ import main, parser
from finetune.corrective.box_relations import RELATIONS
from finetune.data.mixture import Mixture, Source
from finetune.samples.conversation import Conversation
from tests.finetune.conftest import write_data
from tests.finetune.corrective_data import write_towers
from tests.finetune.test_program import program  # noqa: F401  (fixture)

PAGE = (Path(__file__).parents[3] / "docs" / "corrective-data.md").read_text(encoding="utf-8")
COMMANDS = [text.replace("\\\n", " ") for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that the page names."""
    write_towers(tmp_path, 40)
    (tmp_path / "pictures").rename(tmp_path / "photos")
    for name, text in re.findall(r"```json (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("base", "general"):
        write_data(tmp_path / name).rename(tmp_path / name / "data.json")
        (tmp_path / f"{name}.json").symlink_to(tmp_path / name / "data.json")
        for picture in (tmp_path / name).glob("*.png"):
            (tmp_path / picture.name).write_bytes(picture.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_run(place: Path, program: ModuleType, checkpoint_folder: Path, capsys):  # noqa: F811
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        words = shlex.split(command)
        if words[:3] == ["python", "-m", "finetune.corrective"]:
            assert main(words[3:]) == 0, capsys.readouterr().err
            continue
        assert words[:2] == ["python", "finetune.py"]
        given = [str(checkpoint_folder) if word == "MODEL" else word for word in words[2:]]
        assert program.main(given) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert re.search(r"^general +replay ", shown, re.MULTILINE) and not (place / "output_rooms").exists()


def test_its_flags_and_relations_are_there():
    known = {option for action in parser()._actions for option in action.option_strings}
    assert set(re.findall(r"^\| `(--\w+)", PAGE, re.MULTILINE)) <= known
    rows = re.findall(r"^\| ([a-z ,]+) \| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert {one for row in rows if row != "relation" for one in row.split(", ")} == set(RELATIONS)


def test_its_table_is_what_comes_out():
    (shown,) = re.findall(r"```\n(source .*?)\n```", PAGE, re.DOTALL)
    talks = [Conversation(())] * 1000
    sources = [Source("base", talks, "base"), Source("corrective", talks[:60], "corrective", 0.3)]
    assert Mixture(sources, seed=0).table_text() == shown


def test_its_json_is_json():
    assert [json.loads(text) for text in re.findall(r"```json \S+\n(.*?)```", PAGE, re.DOTALL)]
