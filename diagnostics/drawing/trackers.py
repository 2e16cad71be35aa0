"""Trackers other than TensorBoard, each through its own library: W&B, SwanLab, MLflow, Trackio.

They are optional and are imported only when asked for. Where the Trainer's callback has begun a run, that run is used;
otherwise one is begun here, and ended. Written against wandb 0.31, swanlab 0.10, mlflow 3.17 and trackio 0.43.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diagnostics.drawing.cards import Card
from diagnostics.drawing.sink import NOT_YET, Sink, TaggedPicture
from diagnostics.records.json_files import parsed_file
from finetune import fields
from finetune.files import write_atomically

PROJECT = "attention-finetune"
"""Where a run goes that is begun here, unless the tracker's own environment variable names another project."""
STEP = "train/global_step"
"""The axis of the Trainer's curves in W&B, so that those of the probes lie over the same steps."""


class Tracker(Sink):
    """A sink that remembers in a file of the run's folder what it has sent: a tracker is not asked for it.

    A resumed training that begins a new run in the tracker sends everything again, to that one; one that goes on in the
    same run sends only what is missing.

    sent   the file: ``{"wandb/RUN": {TAG: [STEP, …]}}``
    """

    def __init__(self, sent: Path) -> None:
        self.sent = sent
        self.key = f"{self.name}/{self._begin()}"
        of_run = self._sent_before().get(self.key, {})
        super().__init__((tag, step) for tag, steps in of_run.items() for step in steps)

    @abstractmethod
    def _begin(self) -> str:
        """Take the run that is under way, or begin one; returns its id."""

    def _remember(self, tags: Iterable[str], step: int) -> None:
        super()._remember(tags, step)
        steps: dict[str, list[int]] = {}
        for tag, one in sorted(self.written):
            steps.setdefault(tag, []).append(one)
        content = json.dumps({**self._sent_before(), self.key: steps}, ensure_ascii=False, indent=1)
        write_atomically(self.sent, content.encode())

    def _sent_before(self) -> dict[str, Any]:
        if not self.sent.is_file():
            return {}
        found = parsed_file(self.sent, "what trackers were sent")
        steps = fields.by_name(fields.items(fields.whole()))
        fields.check(found, dict.fromkeys(found, steps) if isinstance(found, dict) else {}, str(self.sent))
        return dict(found)


class Wandb(Tracker):
    """Weights & Biases. A card is HTML, and a table where it has one."""

    name = "wandb"

    def _begin(self) -> str:
        import wandb

        self._wandb, self._own = wandb, wandb.run is None
        self._run = wandb.run or wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT))
        if self._own:
            self._run.define_metric(STEP)
            self._run.define_metric("*", step_metric=STEP, step_sync=True)
        return str(self._run.id)

    def verdicts(self, verdicts: Mapping[str, str]) -> None:
        self._run.summary.update({f"verdict: {group}": words for group, words in verdicts.items()})

    def close(self) -> None:
        if self._own:
            self._run.finish()

    def _numbers(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, STEP: step})

    def _cards(self, cards: Mapping[str, Card], step: int) -> None:
        from tensorboard.plugin_util import markdown_to_safe_html

        shown: dict[str, Any] = {}
        for tag, card in cards.items():
            shown[tag] = self._wandb.Html(markdown_to_safe_html(card.markdown()))
            if card.rows:
                columns = [name or str(number) for number, name in enumerate(card.columns)]
                shown[f"{tag} (table)"] = self._wandb.Table(
                    columns=columns, data=[list(row) for row in card.rows]
                )
        self._run.log({**shown, STEP: step})

    def _pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None:
        shown = {picture.tag: self._wandb.Image(_opened(picture)) for picture in pictures}
        self._run.log({**shown, STEP: step})


class Swanlab(Tracker):
    """SwanLab. A card is a text, and a table where it has one."""

    name = "swanlab"

    def _begin(self) -> str:
        import swanlab

        self._swanlab, self._own = swanlab, not swanlab.has_run()
        if self._own:
            swanlab.init(project=os.environ.get("SWANLAB_PROJECT", PROJECT))
        return str(swanlab.get_run().id)

    @staticmethod
    def begin_for_trainer(run_name: str | None) -> None:
        """Begin the run that the Trainer's callback will use. It cannot do so itself: it asks first for a run under way
        (transformers 5.23), and where there is none, swanlab 0.10 raises."""
        import swanlab

        if not swanlab.has_run():
            swanlab.init(project=os.environ.get("SWANLAB_PROJECT", PROJECT), name=run_name)

    def verdicts(self, verdicts: Mapping[str, str]) -> None:
        self._swanlab.config.update({f"verdict: {group}": words for group, words in verdicts.items()})

    def close(self) -> None:
        if self._own:
            self._swanlab.finish()

    def _numbers(self, values: Mapping[str, float], step: int) -> None:
        self._swanlab.log(dict(values), step=step)

    def _cards(self, cards: Mapping[str, Card], step: int) -> None:
        shown: dict[str, Any] = {}
        for tag, card in cards.items():
            shown[tag] = self._swanlab.Text(card.markdown())
            if card.rows:
                table = self._swanlab.echarts.Table()
                table.add(list(card.columns), [list(row) for row in card.rows])
                shown[f"{tag} (table)"] = table
        self._swanlab.log(shown, step=step)

    def _pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None:
        shown = {picture.tag: self._swanlab.Image(_opened(picture)) for picture in pictures}
        self._swanlab.log(shown, step=step)


class Mlflow(Tracker):
    """MLflow. A card is a Markdown file among the run's artifacts, and a table where it has one.

    The client also takes what belongs to a run that has ended: the Trainer's callback ends its own before the last
    numbers are here.
    """

    name = "mlflow"

    def _begin(self) -> str:
        import mlflow

        active = mlflow.active_run()
        self._own = active is None
        if self._own:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            active = mlflow.start_run()
        self._mlflow, self._client = mlflow, mlflow.MlflowClient()
        self._run_id = str(active.info.run_id)
        return self._run_id

    def verdicts(self, verdicts: Mapping[str, str]) -> None:
        for group, words in verdicts.items():
            self._client.set_tag(self._run_id, f"verdict {mlflow_name(group)}", words)

    def close(self) -> None:
        if self._own:
            self._mlflow.end_run()

    def _numbers(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._client.log_metric(self._run_id, mlflow_name(tag), value, step=step)

    def _cards(self, cards: Mapping[str, Card], step: int) -> None:
        for tag, card in cards.items():
            place = f"{mlflow_name(tag)}/step-{step:06d}"
            self._client.log_text(self._run_id, card.markdown(), f"{place}.md")
            if card.rows:
                columns = [name or str(number) for number, name in enumerate(card.columns)]
                data = dict(zip(columns, map(list, zip(*card.rows, strict=True)), strict=True))
                self._client.log_table(self._run_id, data=data, artifact_file=f"{place}.json")

    def _pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None:
        for picture in pictures:
            key = mlflow_name(picture.tag, ascii_only=True)
            self._client.log_image(self._run_id, _opened(picture), key=key, step=step, synchronous=True)


class Trackio(Tracker):
    """Trackio. A card is Markdown, and a table where it has one.

    The Trainer's callback ends its run before the last numbers are here: the run is then taken up again.
    """

    name = "trackio"

    def _begin(self) -> str:
        import trackio

        self._trackio = trackio
        run = self._current()
        self._own = run is None
        run = run or trackio.init(project=PROJECT, resume="allow", embed=False)
        self._project, self._name = str(run.project), str(run.name)
        # Names that begin with "_" are its own, and it refuses them.
        self._config = {name: value for name, value in dict(run.config).items() if not name.startswith("_")}
        return f"{self._project}/{self._name}"

    def verdicts(self, verdicts: Mapping[str, str]) -> None:
        """A run's configuration is sent with its first numbers alone: to change it later, the run is ended and taken up
        again."""
        self._config.update({f"verdict: {group}": words for group, words in verdicts.items()})
        if set(verdicts.values()) == {NOT_YET}:
            self._trackio.config.update(self._config, allow_val_change=True)
            return
        if self._current() is None:
            self._own = True
        else:
            self._trackio.finish()
        self._take_up()
        last = max((step for _, step in self.written), default=0)
        self._trackio.log({STEP: last}, step=last)

    def close(self) -> None:
        if self._own and self._current() is not None:
            self._trackio.finish()

    def _numbers(self, values: Mapping[str, float], step: int) -> None:
        self._log(dict(values), step)

    def _cards(self, cards: Mapping[str, Card], step: int) -> None:
        shown: dict[str, Any] = {}
        for tag, card in cards.items():
            shown[tag] = self._trackio.Markdown(card.markdown())
            if card.rows:
                columns = [name or str(number) for number, name in enumerate(card.columns)]
                rows = [list(row) for row in card.rows]
                shown[f"{tag} (table)"] = self._trackio.Table(columns=columns, data=rows)
        self._log(shown, step)

    def _pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None:
        self._require_run()  # a picture is saved for the run that is under way
        self._log({picture.tag: self._trackio.Image(_opened(picture)) for picture in pictures}, step)

    def _log(self, shown: dict[str, Any], step: int) -> None:
        self._require_run()
        self._trackio.log({**shown, STEP: step}, step=step)

    def _require_run(self) -> None:
        if self._current() is None:
            self._own = True
            self._take_up()

    def _take_up(self) -> None:
        self._trackio.init(
            project=self._project, name=self._name, resume="must", embed=False, config=self._config
        )

    def _current(self) -> Any:
        return self._trackio.context_vars.current_run.get()


KNOWN: dict[str, type[Tracker]] = {one.name: one for one in (Wandb, Swanlab, Mlflow, Trackio)}


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in KNOWN:
            raise ValueError(f"trackers: found {name!r}, expected one of {', '.join(KNOWN)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"trackers: {name} is not installed; pip install {name}, or leave it out")


def mlflow_name(tag: str, *, ascii_only: bool = False) -> str:
    """A tag in the characters that MLflow takes: ``a%2Fb`` → ``a.25.2Fb``. No two tags share a name.

    ascii_only   for pictures, which take fewer characters
    """
    taken = r"[^A-Za-z0-9_\-/ ]" if ascii_only else r"[^\w\-/ ]"
    return re.sub(taken, lambda found: f".{ord(found.group()):X}.", tag)


def _opened(picture: TaggedPicture) -> Image.Image:
    return Image.open(io.BytesIO(picture.png)).convert("RGB")
