"""Trackers: what each library is told, by stand-ins with the names and habits that the real ones were seen to have."""

import importlib.machinery
import io
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.drawing.board import AttentionBoard, scalars
from diagnostics.drawing.sink import NOT_YET, TaggedPicture
from diagnostics.drawing.trackers import (
    KNOWN,
    STEP,
    Mlflow,
    Swanlab,
    Trackio,
    Wandb,
    check_trackers,
    mlflow_name,
)
from tests.diagnostics.show_samples import probes, records

STRIP = "1 verdict/drift strip/sphere-building"
VERDICT = {"groups": {"sphere-building": {"verdict": "corrected", "reasons": ["Yes."]}}}


class Told:
    """Stands for a library: whatever is called of it is noted, with its arguments, and answered by another such."""

    def __init__(self, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]], name: str = "") -> None:
        self._calls, self._name = calls, name

    def __getattr__(self, name: str) -> Any:
        return Told(self._calls, f"{self._name}.{name}".lstrip("."))

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._calls.append((self._name, given, named))
        return SimpleNamespace(made=self._name, given=given, **named)


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def pairs(tmp_path: Path) -> list[ProbePair]:
    of = probes(tmp_path, per_group=2)
    return pair_all(of, records(of, 0), records(of, 10))


def installed(monkeypatch: pytest.MonkeyPatch, name: str, **parts: Any) -> ModuleType:
    """A module of this name with these parts, in the place of the library."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for part, value in parts.items():
        setattr(module, part, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def picture(tag: str = STRIP) -> TaggedPicture:
    buffer = io.BytesIO()
    Image.new("RGB", (7, 5), (200, 3, 3)).save(buffer, "png")
    return TaggedPicture(tag, buffer.getvalue(), (7, 5))


def show(sink: Any, pairs: list[ProbePair]) -> None:
    """A run of two steps, its pictures and its verdict."""
    board = AttentionBoard([sink], lambda _: nullcontext())
    board.begin(["sphere-building"])
    for step in (0, 10):
        board.write_step(pairs, step, per_group=1)
        board.write_pictures([picture()], step)
    board.write_verdicts(VERDICT, 10)
    board.close()


def named(calls: list[Any], name: str) -> Iterator[Any]:
    return ((given, more) for what, given, more in calls if what == name)


def test_wandb_gets_numbers_over_the_trainer_s_steps(
    tmp_path: Path, pairs: list[ProbePair], calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(calls)
    summary: dict[str, str] = {}
    run = SimpleNamespace(
        id="r1", log=told.log, summary=summary, finish=told.finish, define_metric=told.define
    )
    installed(monkeypatch, "wandb", run=run, Image=told.Image, Html=told.Html, Table=told.Table)
    show(Wandb(tmp_path / "sent.json"), pairs)
    logged = [given[0] for given, _ in named(calls, "log")]
    numbers = [one for one in logged if "2 answers/accuracy/sphere-building" in one]
    assert [one[STEP] for one in numbers] == [0, 10]
    assert numbers[1] == {**scalars(pairs), STEP: 10}
    strips = [one for one in logged if STRIP in one]
    assert [one[STEP] for one in strips] == [0, 10] and strips[0][STRIP].given[0].size == (7, 5)
    table = next(one for one in logged if "2 answers - sphere-building/sphere-building-0 (table)" in one)
    assert table["2 answers - sphere-building/sphere-building-0 (table)"].data[0][1:] == [
        "✗ 广州塔",
        "-1.50",
    ]
    card = next(one for one in logged if "1 verdict/sphere-building" in one)["1 verdict/sphere-building"]
    assert "<strong>corrected</strong>" in card.given[0]
    assert summary == {"verdict: sphere-building": "corrected"}
    # The run is the Trainer's: it is not ended, nor are its axes defined anew.
    assert not list(named(calls, "finish")) and not list(named(calls, "define"))


def test_what_a_tracker_was_sent_is_not_sent_again_to_the_same_run(
    tmp_path: Path, pairs: list[ProbePair], calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(calls)
    run = SimpleNamespace(id="r1", log=told.log, summary={})
    installed(monkeypatch, "wandb", run=run, Image=told.Image, Html=told.Html, Table=told.Table)
    show(Wandb(tmp_path / "sent.json"), pairs)
    sent = json.loads((tmp_path / "sent.json").read_text())
    assert sent["wandb/r1"]["2 answers/accuracy/sphere-building"] == [0, 10]
    calls.clear()
    show(Wandb(tmp_path / "sent.json"), pairs)
    assert not list(named(calls, "log"))
    run.id = "r2"  # another run has nothing yet
    show(Wandb(tmp_path / "sent.json"), pairs)
    assert len([one for one in named(calls, "log") if STRIP in one[0][0]]) == 2
    assert set(json.loads((tmp_path / "sent.json").read_text())) == {"wandb/r1", "wandb/r2"}


def test_swanlab_gets_them_too_and_its_run_is_begun_before_the_trainer_asks_for_it(
    tmp_path: Path, pairs: list[ProbePair], calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, begun = Told(calls), []

    def get_run() -> Any:  # swanlab 0.10 raises where transformers 5.23 expects None
        if not begun:
            raise RuntimeError("No active Run")
        return SimpleNamespace(id=begun[0])

    config: dict[str, str] = {}
    table = SimpleNamespace(add=told.add)
    installed(
        monkeypatch, "swanlab", has_run=lambda: bool(begun), get_run=get_run, log=told.log, config=config,
        init=lambda **more: begun.append(more.get("name") or "own"), finish=lambda: begun.clear(),
        Text=told.Text, Image=told.Image, echarts=SimpleNamespace(Table=lambda: table),
    )  # fmt: skip
    Swanlab.begin_for_trainer("first")
    show(Swanlab(tmp_path / "sent.json"), pairs)
    assert begun == ["first"] and config == {"verdict: sphere-building": "corrected"}
    assert [more["step"] for (given, more) in named(calls, "log") if STRIP in given[0]] == [0, 10]
    assert any(given[0] == ["", "answer", "margin, nats"] for given, _ in named(calls, "add"))
    begun.clear()
    show(Swanlab(tmp_path / "sent.json"), pairs)  # without a Trainer: a run of its own, which it ends
    assert begun == [] and "swanlab/own" in json.loads((tmp_path / "sent.json").read_text())


def test_trackio_takes_up_the_run_that_the_trainer_ended(
    tmp_path: Path, pairs: list[ProbePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[dict[str, Any], int]] = []
    runs: list[dict[str, Any]] = []
    current: list[Any] = [SimpleNamespace(project="p", name="n", config={"_Username": "me", "lora_r": 4})]

    def init(**more: Any) -> Any:
        assert not any(name.startswith("_") for name in more["config"])  # which Trackio refuses
        runs.append(more)
        current[0] = SimpleNamespace(project=more["project"], name=more["name"], config=more["config"])
        return current[0]

    def log(values: dict[str, Any], step: int) -> None:
        assert current[0] is not None, "Call trackio.init() before trackio.log()."
        logged.append((values, step))

    def finish() -> None:
        assert current[0] is not None
        current[0] = None

    made = SimpleNamespace(current_run=SimpleNamespace(get=lambda: current[0]))
    installed(
        monkeypatch, "trackio", context_vars=made, init=init, log=log, finish=finish, Image=lambda one: one.size,
        Markdown=str, Table=lambda columns, data: (columns, data),
        config=SimpleNamespace(update=lambda values, allow_val_change: current[0].config.update(values)),
    )  # fmt: skip
    sink = Trackio(tmp_path / "sent.json")
    board = AttentionBoard([sink], lambda _: nullcontext())
    board.begin(["sphere-building"])
    board.write_step(pairs, 0)
    assert not runs and current[0].config["verdict: sphere-building"] == NOT_YET
    finish()  # by the Trainer's callback, which comes first
    board.write_step(pairs, 10)
    board.write_pictures([picture()], 10)
    board.write_verdicts(VERDICT, 10)
    assert all((more["name"], more["resume"]) == ("n", "must") for more in runs)
    assert runs[-1]["config"] == {"lora_r": 4, "verdict: sphere-building": "corrected"}
    assert logged[-1] == ({STEP: 10}, 10)  # so that the configuration is sent
    board.close()
    assert current[0] is None
    assert ({STRIP: (7, 5), STEP: 10}, 10) in logged


def test_no_two_tags_share_a_name_in_mlflow() -> None:
    tags = ["a%2Fb", "a.25.2Fb", "a.2Fb", "a/b", "a-b", "a_b", "塔/楼", "a:b", ".", "%", ".2E."]
    for ascii_only in (False, True):
        assert len({mlflow_name(tag, ascii_only=ascii_only) for tag in tags}) == len(tags)
    assert mlflow_name("2 answers/margin_nats/a%2Fb 塔") == "2 answers/margin_nats/a.25.2Fb 塔"
    assert mlflow_name("塔", ascii_only=True) == ".5854."
    assert (
        mlflow_name("3 attention - towers/pro-01/layer_1", ascii_only=True)
        == "3 attention - towers/pro-01/layer_1"
    )


def test_mlflow_takes_what_comes_after_the_trainer_ended_the_run(
    tmp_path: Path, pairs: list[ProbePair], calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(calls)
    run = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    installed(monkeypatch, "mlflow", active_run=lambda: run, MlflowClient=lambda: told, end_run=told.end_run)
    show(Mlflow(tmp_path / "sent.json"), pairs)
    metrics = [(given, more) for given, more in named(calls, "log_metric") if "accuracy/sphere" in given[1]]
    assert metrics == [
        (("r1", "2 answers/accuracy/sphere-building", 1.0), {"step": step}) for step in (0, 10)
    ]
    (table,) = {
        more["artifact_file"]: more["data"] for _, more in named(calls, "log_table")
        if "sphere-building-0/step-000010" in more["artifact_file"]
    }.values()  # fmt: skip
    assert table["answer"] == ["✗ 广州塔", "✓ 东方明珠"]
    assert [more["step"] for _, more in named(calls, "log_image")] == [0, 10]
    assert list(named(calls, "set_tag"))[-1][0] == ("r1", "verdict sphere-building", "corrected")
    assert not list(named(calls, "end_run"))


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_tracker_that_is_not_installed_or_unknown_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=f"trackers: {name} is not installed; pip install {name}, or leave it out"
    ):
        check_trackers([name])
    with pytest.raises(
        ValueError, match="trackers: found 'wanb', expected one of wandb, swanlab, mlflow, trackio"
    ):
        check_trackers(["wanb"])
