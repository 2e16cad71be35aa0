"""TensorBoard with the settings that a run of few checkpoints needs: ``python -m diagnostics.board FOLDER``.

TensorBoard's address can switch smoothing off, but not "Ignore outliers", which the browser keeps: with four values it
leaves the least and the greatest off the axis, the base among them. A page of the same server sets it and goes on to
the curves.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostics.flags.board import START, parser

if __name__ == "__main__":
    parser().parse_args()  # handle --help and wrong flags before the slow imports below

from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBPlugin

from diagnostics.drawing.tensorboard import PICTURES_KEPT, address, groups_and_layers
from finetune.printable import printable

if TYPE_CHECKING:
    from werkzeug import Response


class DriftStart(TBPlugin):
    """A plugin of TensorBoard without a tab: one page that sets the browser up."""

    plugin_name = "drift"

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._data = context.data_provider

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Path below ``/data/plugin/drift`` → what answers it."""
        from werkzeug import Request

        return {"/start": Request.application(self._start)}

    def is_active(self) -> bool:
        """Has it a tab?"""
        return False

    def _start(self, request: Any) -> Response:
        from tensorboard.backend.http_util import Respond

        runs = self._data.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
        script = start_script({tag for tags in runs.values() for tag in tags})
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = f"<!doctype html><title>TensorBoard</title><script>{script}</script>"
        answer: Response = Respond(request, page, "text/html", csp_scripts_sha256s=[allowed])
        return answer


def start_script(tags: Iterable[str]) -> str:
    """What the page does: no smoothing and no outliers left out, in both kinds of TensorBoard's pages; then the curves.

    The names are those under which TensorBoard 2.21 keeps its settings in the browser.
    """
    place = address(*groups_and_layers(tags), host="")
    return f"""
const kept = JSON.parse(localStorage.getItem("_tb_global_settings") || "{{}}");
localStorage.setItem("_tb_global_settings", JSON.stringify({{...kept, ignoreOutliers: false, scalarSmoothing: 0}}));
localStorage.setItem("_ignoreYOutliers", "false");
location.replace({json.dumps(place)});
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted. Returns the exit status: 2 where there is nothing to show or the port is taken."""
    options = parser().parse_args(arguments)
    try:
        logs = log_folder(options.folder)
        where = _launch(logs, options.host, options.port)
    except ValueError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    print(f"{logs}: open {where.rstrip('/')}{START} (Ctrl-C ends it)", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0


def log_folder(folder: Path) -> Path:
    """The event files of an output folder: those in its ``runs``, or below the folder itself.

    Raises ValueError where there are none.
    """
    for place in (folder / "runs", folder):
        if place.is_dir() and next(place.rglob("*tfevents*"), None) is not None:
            return place
    raise ValueError(
        f"{folder}: found no event files there or below; expected the output folder of a run that has begun"
    )


def _launch(logs: Path, host: str, port: int) -> str:
    """Start serving; returns TensorBoard's address. Raises ValueError where it cannot listen there."""
    from tensorboard import default
    from tensorboard.program import TensorBoard, TensorBoardServerException

    made = TensorBoard(plugins=[*default.get_plugins(), DriftStart])
    flags = [
        "--logdir",
        str(logs),
        "--host",
        host,
        "--port",
        str(port),
        "--samples_per_plugin",
        PICTURES_KEPT,
    ]
    made.configure(argv=["tensorboard", *flags])
    try:
        return str(made.launch())
    except TensorBoardServerException as error:
        raise ValueError(f"--port {port}: {error}; give another") from error


if __name__ == "__main__":
    sys.exit(main())
