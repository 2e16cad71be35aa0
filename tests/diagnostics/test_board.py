"""TensorBoard as a run of few checkpoints needs it: the page that sets the browser up, and what the command refuses."""

import base64
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorboard
from werkzeug.test import Client

from diagnostics.board import DriftStart, log_folder, main, start_script
from diagnostics.drawing.tensorboard import address
from diagnostics.flags.board import START

TAGS = (
    "2 answers/accuracy/towers",
    "5 guards/accuracy/retention",
    "4 drift/drift_jsd_nats/layer_3",
    "train/loss",
)


class Data:
    """Stands for what TensorBoard has read."""

    def list_scalars(
        self, ctx: Any, *, experiment_id: str, plugin_name: str
    ) -> Mapping[str, Mapping[str, None]]:
        assert (experiment_id, plugin_name) == ("", "scalars")
        return {".": dict.fromkeys(TAGS)}


def test_the_page_leaves_no_value_out_and_goes_on_to_the_curves() -> None:
    plugin = DriftStart(SimpleNamespace(data_provider=Data()))
    (path,) = plugin.get_plugin_apps()
    assert f"/data/plugin/{plugin.plugin_name}{path}" == START and not plugin.is_active()
    answer = Client(plugin.get_plugin_apps()[path]).get(path)
    script = re.search("<script>(.*)</script>", answer.text, re.DOTALL)
    assert answer.status_code == 200 and script is not None and script[1] == start_script(TAGS)
    assert "ignoreOutliers: false" in script[1] and 'setItem("_ignoreYOutliers", "false")' in script[1]
    assert f'location.replace("{address(["towers", "retention"], [3], host="")}")' in script[1]
    # TensorBoard's own rule lets no script run but those that it knows.
    mark = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{mark}'" in answer.headers["Content-Security-Policy"]


def test_the_installed_tensorboard_knows_the_names_of_these_settings() -> None:
    with zipfile.ZipFile(Path(tensorboard.__file__).parent / "webfiles.zip") as files:
        code = files.read("index.js").decode()
    for name in ("_tb_global_settings", "ignoreOutliers", "scalarSmoothing", "_ignoreYOutliers", "_smoothingWeight",
                 "pinnedCards"):  # fmt: skip
        assert name in code, name
    assert re.search(r'="smoothing"', code)


def test_a_folder_is_a_run_s_or_one_of_several_and_one_without_events_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "one" / "runs" / "events.out.tfevents.1"
    events.parent.mkdir(parents=True)
    assert main([str(tmp_path)]) == 2
    assert f"error: {tmp_path}: found no event files there or below; expected" in capsys.readouterr().err
    events.touch()
    assert log_folder(tmp_path / "one") == tmp_path / "one" / "runs" and log_folder(tmp_path) == tmp_path
