"""Trouble: fine-tuning on a correction makes the model forget what it knew, and nobody notices until later.

Promise: earlier data is replayed at the share that was asked for, evenly through every epoch; probes of held-out
pictures ask for what must not be forgotten and for neighbours; and a run says what it replays before it starts.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from diagnostics.records.probes import groups_of, read_probes
from finetune.corrective.__main__ import main as make_corrective
from finetune.data.mixture import Mixture, Source
from finetune.samples.conversation import Conversation
from tests.finetune.conftest import write_data
from tests.finetune.corrective_data import write_rooms
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)


def test_replay_keeps_its_share_from_the_first_step_to_the_last():
    """Every stretch of 200 samples of every epoch replays, whatever the seed; no replayed sample comes twice early."""
    talks = [Conversation(())] * 5000
    for seed in range(3):
        sources = [
            Source("towers", talks[:900], "corrective"),
            Source("earlier", talks, "replay", share=0.25),
        ]
        mixture = Mixture(sources, seed)
        epochs = [mixture.order(epoch) for epoch in range(4)]
        for order in epochs:
            replayed = mixture.source_of[order] == 1
            assert replayed.sum() == 300 and len(order) == 1200
            assert replayed.reshape(6, 200).sum(1).min() > 25
        early = np.concatenate([order[mixture.source_of[order] == 1] for order in epochs])
        assert len(set(early.tolist())) == 1200  # four epochs, and no earlier sample was seen twice


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tool makes of pictures with boxes, where only "on" is corrected."""
    folder = tmp_path_factory.mktemp("rooms")
    boxes = write_rooms(folder, 60)
    options = [
        "--images",
        str(folder / "pictures"),
        "--boxes",
        str(boxes),
        "--relations",
        "on",
        "--held_out",
        "0.5",
    ]
    assert make_corrective([*options, "--output_dir", str(folder / "made")]) == 0
    return folder / "made"


def test_the_tool_probes_what_must_stay(made: Path):
    groups = groups_of(read_probes(made / "probes.json"))
    assert set(groups) == {"neighbour", "retention", "spatial-relation"}
    assert all(
        20 <= len(probes) <= 40 for probes in groups.values()
    )  # about half of 60 pictures, by their content
    answers = Counter(probe.answer for probe in groups["retention"])
    assert answers["no"] + answers["没有"] >= 10  # wherever something is missing: who always says yes is seen
    answers = Counter(probe.answer for probe in groups["spatial-relation"])
    assert abs(answers["yes"] + answers["在"] - answers["no"] - answers["不在"]) <= 1
    assert all(probe.foil is not None for probes in groups.values() for probe in probes)
    trained = (made / "corrective.json").read_text(encoding="utf-8")
    assert not re.search(
        "left|右边|above|下方|Is there|有没有", trained
    )  # neither group's questions are trained


def test_a_run_says_what_it_replays_and_watches_what_must_stay(
    program: ModuleType,  # noqa: F811
    flags: Callable[..., list[str]],  # noqa: F811
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    write_data(tmp_path / "earlier", count=30)
    given = flags("--use_lora", "True", "--model_max_length", "512", "--dry_run", "True", "--monitor", "True")
    mixed = ["--replay_data", f"{tmp_path / 'earlier' / 'data.json'}:0.2"]
    mixed += ["--corrective_data", f"{made / 'corrective.json'}:0.5"]
    assert program.main([*given, *mixed, "--probes", str(made / "probes.json")]) == 0
    shown = capsys.readouterr().out
    (line,) = re.findall(r"^earlier-data +replay.*$", shown, re.MULTILINE)
    assert re.fullmatch(r"earlier-data +replay +30 +\d+ +[\d.]+ +(19|20|21)\.\d%", line)
    with_demand = [*given, *mixed, "--corrective_data", f"{made / 'corrective.json'}:0.8"]
    assert program.main([*with_demand, "--probes", str(made / "probes.json")]) == 1
    assert "which leaves nothing to the other sources" in capsys.readouterr().err
