"""The program around the runs: what is refused, what each run is given, and the result."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diagnostics import curve
from diagnostics.compare import compare
from diagnostics.records.probes import read_probes, write_probes
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of

SAMPLES = 200
TRAINING = ["--model_name_or_path", "m", "--data_path", "d.json", "--probes", "p.json"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """What a run leaves of its comparison and probes."""
    folder = tmp_path_factory.mktemp("run")
    pairs = flat(pairs_of(folder, spheres=Made(), neighbour=GUARDS))
    probes = [pair.probe for pair in pairs]
    sides = [{pair.probe.id: getattr(pair, side) for pair in pairs} for side in ("before", "after")]
    compare(*sides, folder / "out", probes=probes)
    write_probes(probes, folder / "out" / "attention" / "probes.json")
    return folder / "out"


class Trainings:
    """Stands in for finetune.py: leaves the files of a run, and notes what it was given."""

    def __init__(self, made: Path, fails_at: float | None = None, reached: Any = None) -> None:
        self.made, self.fails_at, self.reached = made, fails_at, reached
        self.given: list[dict[str, str]] = []

    def __call__(self, flags: list[str], launcher: str, log: Path) -> int:
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        self.given.append(given)
        fraction, folder = float(given["--data_fraction"]), Path(given["--output_dir"])
        if "--dry_run" in given:
            return 0
        if fraction == self.fails_at:
            return 143
        name = "comparison/comparison.json"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((self.made / name).read_bytes())
        # Paths of pictures are relative to the probe file.
        write_probes(
            read_probes(self.made / "attention" / "probes.json"), folder / "attention" / "probes.json"
        )
        kept, seed = round(fraction * SAMPLES), int(given.get("--seed", 0))
        counts = {
            "d": {"samples": SAMPLES, "trained": kept if self.reached is None else self.reached(kept, seed)},
            "replay": {"samples": 9, "trained": 5},
        }
        (folder / "data_fraction.json").write_text(
            json.dumps({"fraction": fraction, "of": ["d"], "sources": counts})
        )
        (folder / "run.json").write_text("{}")
        return 0


def trained(
    monkeypatch, made: Path, folder: Path, *flags: str, fails_at=None, training=TRAINING, reached=None
) -> Trainings:
    found = Trainings(made, fails_at, reached)
    monkeypatch.setattr(curve, "_run", found)
    curve.main([*flags, "--output_dir", str(folder), "--", *training])
    return found


def test_every_fraction_is_a_run_of_its_own_and_the_first_one_lends_its_baseline(
    monkeypatch, run_folder, tmp_path, capsys
):
    done = trained(monkeypatch, run_folder, tmp_path, "--fractions", "1", "0.25", "0.5")
    check, *runs = done.given
    assert check["--dry_run"] == "True" and check["--data_fraction"] == "0.25"
    assert [one["--data_fraction"] for one in runs] == ["0.25", "0.5", "1.0"]
    assert [Path(one["--output_dir"]).name for one in runs] == ["fraction-0.25", "fraction-0.5", "fraction-1"]
    assert [one.get("--baseline") for one in runs] == [None, *[str(tmp_path / "fraction-0.25")] * 2]
    assert all(one["--monitor"] == "True" and one["--data_fraction_same"] == "steps" for one in runs)
    assert all(one["--model_name_or_path"] == "m" for one in runs)
    content = json.loads((tmp_path / "curve.json").read_text())
    assert [(run["samples"], run["of"]) for run in content["runs"]] == [(50, 200), (100, 200), (200, 200)]
    assert content["sources"] == ["d"] and content["groups"]["spheres"]["enough_from"] == 50
    shown = capsys.readouterr().out
    assert "50 samples are enough for every group." in shown and "one seed" in shown.lower()
    with Image.open(tmp_path / "curve.png") as chart:
        assert chart.width > chart.height > 100
    page = (tmp_path / "index.html").read_text()
    assert page.count('href="fraction-0.5/comparison/index.html"') == 2 and "http" not in page.replace(
        "http-equiv", ""
    )


def test_a_stopped_curve_goes_on_and_another_is_refused(monkeypatch, run_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        trained(monkeypatch, run_folder, tmp_path, "--fractions", "0.5", "1", fails_at=1.0)
    assert stopped.value.code == 143 and "the same command goes on" in capsys.readouterr().err
    again = trained(monkeypatch, run_folder, tmp_path, "--fractions", "0.25", "0.5", "1")
    assert [one.get("--dry_run") for one in again.given] == [None] * 3  # a run has begun: it was checked
    for flags, training, what in (
        ((), [*TRAINING, "--learning_rate", "1"], "other flags"),
        (("--same", "epochs"), TRAINING, "other same"),
        (("--subset", "d"), TRAINING, "other subset"),
    ):
        with pytest.raises(SystemExit) as refused:
            trained(monkeypatch, run_folder, tmp_path, "--fractions", "0.5", "1", *flags, training=training)
        assert refused.value.code == 2 and what in capsys.readouterr().err


def test_seeds_and_subsets(monkeypatch, run_folder, tmp_path):
    flags = ("--fractions", "0.5", "1", "--seeds", "3", "4", "--subset", "d", "--same", "epochs")
    done = trained(monkeypatch, run_folder, tmp_path, *flags)
    runs = done.given[1:]
    assert [(one["--data_fraction"], one["--seed"]) for one in runs] == [
        ("0.5", "3"), ("0.5", "4"), ("1.0", "3"), ("1.0", "4"),
    ]  # fmt: skip
    assert Path(runs[3]["--baseline"]).name == "fraction-0.5-seed-4"
    assert {one["--data_fraction_of"] for one in runs} == {"d"}
    assert json.loads((tmp_path / "curve.json").read_text())["seeds"] == [3, 4]


def test_the_number_is_of_samples_that_were_trained_on(monkeypatch, run_folder, tmp_path, capsys):
    """40 steps reach 36 of 100 samples with one seed and 38 with the other: 38 are enough with both."""
    flags = ("--fractions", "0.1", "0.5", "1", "--seeds", "0", "1")
    trained(
        monkeypatch,
        run_folder,
        tmp_path / "some",
        *flags,
        reached=lambda kept, seed: min(kept, kept // 5 + 15 + seed),
    )
    content = json.loads((tmp_path / "some" / "curve.json").read_text())
    assert [run["samples"] for run in content["runs"]] == [20, 20, 36, 36, 56, 56]
    assert content["sources"] == ["d"] and content["groups"]["spheres"]["enough_from"] == 20
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        trained(monkeypatch, run_folder, tmp_path / "none", *flags, reached=lambda kept, seed: 0)
    shown = capsys.readouterr().err
    assert refused.value.code == 2 and "found no sample of d among those that it trained on" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", "0", "1"], "--fractions: found 0; expected fractions above 0 and at most 1"),
        (["--fractions", "0.5", "1.5"], "--fractions: found 1.5"),
        (["--fractions", "nan", "1"], "--fractions: found nan"),
        (["--fractions", "0.5", "0.5"], "--fractions: found 0.5 several times; expected each once"),
        (["--fractions", "0.5"], "--fractions: found 1; expected at least two"),
        (["--seeds", "1", "1"], "--seeds: found 1 several times"),
        (["--", "--output_dir", "x"], "--output_dir after the --: the curve decides it for each run"),
        (["--", "--resume-from-checkpoint=True"], "--resume_from_checkpoint after the --"),
        (["--", "--data_fraction", "0.5"], "expected --fractions"),
        (["--seeds", "1", "2", "--", "--data_seed", "3"], "--data_seed after the --, and --seeds before it"),
        (["--", "data.json"], "found 'data.json'; expected flags of finetune.py"),
        (["--", "--stop_when", "corrected"], "--stop_when after the --: the curve decides it for each run"),
        (
            ["--", "--load_best_model_at_end", "True"],
            "the best checkpoint, which would be judged, has not seen",
        ),
        (["--", "--load-best-model-at-end"], "--load_best_model_at_end after the --: the curve decides it"),
        (["--", "--monitor", "False"], "--monitor False after the --"),
    ],
)
def test_what_makes_no_curve_is_one_message_before_training(
    arguments, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curve, "_run", lambda *_: pytest.fail("something was trained"))
    with pytest.raises(SystemExit) as refused:
        curve.main(arguments)
    shown = capsys.readouterr().err
    assert refused.value.code == 2 and message in shown and len(shown.strip().splitlines()) == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"load_best_model_at_end": True}, "--config after the --: found load_best_model_at_end in it"),
        ({"stop_when": "corrected"}, "--config after the --: found stop_when in it"),
        ({"data_seed": 3}, "--data_seed after the -- (in its --config), and --seeds before it"),
    ],
)
def test_what_makes_no_curve_is_refused_in_a_file_of_flags_too(content, message, tmp_path):
    file = tmp_path / "flags.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in ({"output_dir": "x"} | content).items()))
    for given in (["--config", str(file)], [f"--config={file}"]):
        with pytest.raises(ValueError, match=re.escape(message)):
            curve.check([0.5, 1], [1, 2], given)
    for harmless in (
        "load_best_model_at_end: false\nstop_when: null\nseed: 42\n",
        "- no flags\n",
        "broken: [\n",
    ):
        file.write_text(harmless)
        curve.check([0.5, 1], [1, 2], ["--config", str(file)])
    file.write_text("load_best_model_at_end: true\n")
    curve.check([0.5, 1], [1, 2], ["--config", str(file), "--load_best_model_at_end", "False"])


def test_what_the_dry_run_refuses_is_not_trained(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(curve, "_run", lambda flags, *_: asked.append(flags) or 1)
    with pytest.raises(SystemExit) as refused:
        curve.main(["--output_dir", str(tmp_path), "--", *TRAINING])
    assert refused.value.code == 2 and len(asked) == 1 and "--dry_run" in asked[0]


def test_a_run_is_a_process_with_a_log(tmp_path):
    echo = tmp_path / "echo.py"
    echo.write_text("import sys\nprint(sys.argv[1:])\nsys.exit(7)\n")
    log = tmp_path / "logs" / "a.txt"
    assert curve._run(["--max_steps", "1"], f"{sys.executable} {echo}", log) == 7
    assert log.read_text() == f"{['-m', 'attention_finetune.train', '--max_steps', '1']}\n"


@pytest.mark.parametrize("number", curve.STOP_SIGNALS)
def test_a_stop_signal_reaches_the_run(number, tmp_path):
    stops = tmp_path / "stops.py"
    stops.write_text(
        "import os, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(143))\n"
        f"os.kill(os.getppid(), {int(number)})\n"
        "time.sleep(60)\n"
    )
    before = signal.getsignal(number)
    assert curve._run([], f"{sys.executable} {stops}", tmp_path / "a.txt") == 143
    assert signal.getsignal(number) == before
