"""The card of a trained folder: what is known of it, and nothing of the machine that trained it."""

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import Trainer

from finetune.training import model_card, run_folder
from finetune.training.saving import SavingTrainer
from tests.finetune.training.test_run_folder import add_checkpoint

MARKS = {
    "model_name_or_path": "/home/alice/secret/my-base", "data_path": "/home/alice/towers/data.json",
    "data sha256": "9edf" * 16, "corrective_data /home/alice/pearls.json": {"share": 0.3, "repeat": None},
    "corrective_data /home/alice/pearls.json sha256": "abcd" * 16, "samples a step": 32, "use_lora": True,
    "lora_r": 16, "max_steps": 330, "seed": 42, "image_folder": "/home/alice/pictures",
}  # fmt: skip
LEGS = {"answers": True, "picture": True, "attention": True, "cause": False, "mediation": None}


def group(verdict: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"probes": 40, "verdict": verdict, "accuracy": {"before": 0.0, "after": 0.975}}
    return made | {"margin_nats": {"before": -5.28, "after": 4.5}} | more


def judged_by(legs: dict[str, Any]) -> dict[str, Any]:
    """Legs, and the reasons of a verdict that rests on them."""
    made = {name: {"holds": holds, "reason": f"{name} {holds}."} for name, holds in legs.items()}
    return {"legs": made, "reasons": [leg["reason"] for leg in made.values()]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a comparison of step 330, and pictures of a guard and of a target."""
    out = tmp_path / "home-of-alice" / "towers"
    groups = {
        "retention": group("kept", **judged_by(dict.fromkeys(LEGS, True)) | {"reasons": ["40 of 40."]}),
        "sphere|building": group(
            "corrected, not by looking",
            enrichment={"before": 15.74, "after": 25.99},
            occlusion_nats=None,
            **judged_by(LEGS),
        ),
    }
    probes = [{"id": "r-0", "group": "retention"}, {"id": "s-0", "group": "sphere|building"}]
    after = {"model": f"{out} at step 330", "step": 330}
    before = {"model": MARKS["model_name_or_path"], "step": 0}
    comparison = {"version": 1, "before": before, "after": after, "groups": groups, "probes": probes}
    (out / "comparison").mkdir(parents=True)
    (out / "comparison" / "comparison.json").write_text(json.dumps(comparison))
    for probe in probes:
        place = out / "attention" / "images" / probe["id"] / "step-000330.png"
        place.parent.mkdir(parents=True)
        place.write_bytes(probe["id"].encode())
    run_folder.write_run(out, MARKS, finished=True)
    (out / "adapter_config.json").write_text("{}")
    return out


def written(folder: Path) -> tuple[dict[str, Any], str]:
    """The card's header, and its text."""
    header, text = re.fullmatch(
        r"---\n(.*?)\n---\n(.*)", (folder / "README.md").read_text(), re.DOTALL
    ).groups()  # type: ignore[union-attr]
    return yaml.safe_load(header), text


def test_it_has_verdict_base_data_flags_and_how_to_load(run: Path):
    model_card.write(run, run=run, family="qwen-vl", step=330)
    header, text = written(run)
    assert header["library_name"] == "peft" and header["tags"] == ["attention-finetune", "qwen-vl", "lora"]
    assert "base_model" not in header  # the hub would look for a folder of ours
    assert (
        "| sphere\\|building | 40 | 0 % → 97.5 % | -5.28 → +4.50 | 15.7× → 26× | – | **corrected, not by looking** |"
        in text
    )
    assert "- sphere\\|building: answers ✓, picture ✓, attention ✓, cause ✗, mediation –\n" in text
    assert "- retention:" not in text  # kept rests on answers alone
    assert "`my-base` (a local folder)" in text and "- `data.json` (SHA-256 `9edf9edf9edf9edf…`)" in text
    assert "- `pearls.json`, corrective, 30 % of an epoch (SHA-256" in text and "- 32 samples a step" in text
    assert "use_lora: true\nlora_r: 16\nmax_steps: 330\n" in text and "seed" not in text
    assert "import finetune" in text and "PeftModel.from_pretrained(base, folder)" in text
    assert (run / "probe.png").read_bytes() == b"s-0" and "](probe.png)" in text


def test_a_group_called_like_markup_is_only_a_name(run: Path):
    path = run / "comparison" / "comparison.json"
    name = "![x](http://other.invalid/a.png) <img src=x> `{{7*7}}` | $x$ **b**"
    path.write_text(path.read_text().replace("sphere|building", name))
    model_card.write(run, run=run, family="qwen-vl", step=330)
    _, text = written(run)
    assert "![x](" not in text and "{{7" not in text and " **b**" not in text
    assert (
        "| \\!\\[x\\]\\(http://other.invalid/a.png\\) \\<img src=x\\> \\`\\{\\{7\\*7\\}\\}\\` \\| \\$x\\$ "
        in text
    )


def test_nothing_says_where_it_was_trained(run: Path):
    model_card.write(run, run=run, family="llava-1.5", step=330)
    content = (run / "README.md").read_text()
    assert not [word for word in ("alice", "secret", "/home", str(run.parent)) if word in content]
    assert "import finetune" not in content


def test_a_base_of_the_hub_is_linked(run: Path):
    run_folder.write_run(run, MARKS | {"model_name_or_path": "Qwen/Qwen-VL-Chat"}, finished=True)
    model_card.write(run, run=run, family="qwen-vl", step=330)
    header, text = written(run)
    assert header["base_model"] == "Qwen/Qwen-VL-Chat"
    assert (
        "](https://huggingface.co/Qwen/Qwen-VL-Chat)" in text
        and 'from_pretrained("Qwen/Qwen-VL-Chat")' in text
    )


@pytest.mark.parametrize(
    ("probes", "words"), [(250, "0.4 % → 99.6 %"), (4000, "under 0.1 % → over 99.9 %"), (1, "100 % → 0 %")]
)
def test_few_are_not_none_and_all_but_one_are_not_all(run: Path, probes: int, words: str):
    path = run / "comparison" / "comparison.json"
    found = json.loads(path.read_text())
    found["groups"]["retention"]["accuracy"] = {"before": 1 / probes, "after": 1 - 1 / probes}
    path.write_text(json.dumps(found))
    model_card.write(run, run=run, family="qwen-vl", step=330)
    assert f"| retention | 40 | {words} |" in written(run)[1]


def judged_after(path: Path, model: str, step: int | None) -> None:
    """Write another model after training into a comparison."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"after": {"model": model, "step": step}}))


@pytest.mark.parametrize(
    "how", ["another step", "another model", "another run", "a step that is not its own", "broken", "none"]
)
def test_a_verdict_of_other_weights_is_not_theirs(run: Path, how: str):
    path = run / "comparison" / "comparison.json"
    (run / "probe.png").write_bytes(b"of an earlier verdict")
    if how == "another model":  # as compared by hand, where steps are counted from 0
        judged_after(path, "/elsewhere/quite-another", 330)
    elif how == "another run":
        judged_after(path, "/elsewhere/towers at step 330", 330)
    elif how == "a step that is not its own":
        judged_after(path, f"{run} at step 220", 330)
    elif how == "broken":
        path.write_text('{"groups": [1]}')
    elif how == "none":
        path.unlink()
    model_card.write(run, run=run, family="qwen-vl", step=110 if how == "another step" else 330)
    _, text = written(run)
    assert "Not judged" in text and "corrected" not in text and not (run / "probe.png").exists()


def test_the_verdict_is_the_best_checkpoints_where_that_one_was_loaded(run: Path):
    """The run's own weights are then those of the best checkpoint too, though the run ended at another step."""
    path = run / "comparison" / "comparison.json"
    judged_after(path, f"{run}: the best, checkpoint-220", 330)
    judged = {}
    for name, step in (("checkpoint-220", 220), ("checkpoint-330", 330), (".", 330), ("exported", None)):
        folder = run / name
        folder.mkdir(exist_ok=True)
        exported = model_card.Exported(run, "Merged.", "m") if name == "exported" else None
        model_card.write(folder, run=run, family="qwen-vl", step=step, exported=exported)
        judged[name] = "**corrected, not by looking**" in (folder / "README.md").read_text()
    assert judged == {"checkpoint-220": True, "checkpoint-330": False, ".": True, "exported": True}
    assert (run / "checkpoint-220" / "probe.png").read_bytes() == b"s-0"


def test_a_verdict_by_hand_is_of_the_folder_that_was_compared(run: Path):
    path = run / "comparison" / "comparison.json"
    checkpoint = run / "checkpoint-110"
    checkpoint.mkdir()
    for place, of_run, of_checkpoint in ((run, True, False), (checkpoint, False, True)):
        judged_after(path, str(place), 1)
        for folder, step, expected in ((run, 330, of_run), (checkpoint, 110, of_checkpoint)):
            model_card.write(folder, run=run, family="qwen-vl", step=step)
            assert ("Not judged" not in written(folder)[1]) is expected
            assert not (folder / "probe.png").exists()  # the archive's pictures are the monitor's


def test_what_was_measured_over_four_bits_says_so(run: Path):
    run_folder.write_run(run, MARKS | {"q_lora": True}, finished=True)
    words = "Measured on the 4-bit base that the adapter was trained on"
    model_card.write(run, run=run, family="qwen-vl", step=330)
    assert f"{words}." in written(run)[1]
    merged = run.parent / "merged"
    merged.mkdir()
    exported = model_card.Exported(run, "Merged.", "merged")
    model_card.write(merged, run=run, family="qwen-vl", step=None, exported=exported)
    assert f"{words}, not on the base that it is merged into here" in written(merged)[1]
    judged_after(
        run / "comparison" / "comparison.json", str(run), 1
    )  # which opens the base as it is published
    model_card.write(run, run=run, family="qwen-vl", step=330)
    assert "4-bit" not in written(run)[1] and "**corrected" in written(run)[1]


def test_merged_into_another_base_it_has_that_one_and_no_verdict(run: Path):
    exported = model_card.Exported(run, "Merged.", "merged", other_base="Qwen/Other-Base")
    merged = run.parent / "merged"
    merged.mkdir()
    model_card.write(merged, run=run, family="qwen-vl", step=None, exported=exported)
    header, text = written(merged)
    assert header["base_model"] == "Qwen/Other-Base" and "Not judged" in text and "**corrected" not in text
    assert "merged into [Qwen/Other-Base](https://huggingface.co/Qwen/Other-Base), whose weights are" in text
    assert not (merged / "probe.png").exists()


def test_what_is_pushed_to_the_hub_carries_it(run: Path):
    """The Trainer asks for a card before it uploads the folder; of a run that is none of ours it writes its own."""
    told: list[Path] = []
    pushing = SimpleNamespace(
        run_file=run / "run.json", is_world_process_zero=lambda: True, args=SimpleNamespace(output_dir=str(run)),
        _write_card=told.append,
    )  # fmt: skip
    SavingTrainer.create_model_card(pushing, model_name="towers", tags=["x"])  # type: ignore[arg-type]
    assert told == [run] and inspect.signature(Trainer.create_model_card)


def test_a_model_that_nothing_is_known_of(tmp_path: Path):
    """An export of somebody's checkpoint."""
    exported = model_card.Exported(tmp_path, "Its weights were copied.", "a copy")
    model_card.write(tmp_path, run=tmp_path, family="qwen2-vl", step=None, exported=exported)
    header, text = written(tmp_path)
    assert text.startswith("\n# a copy\n")
    assert header["library_name"] == "transformers" and "Its weights were copied." in text
    assert "a base that is not known" in text and "left no record" in text and "```yaml" not in text


@pytest.mark.parametrize("share", ["0.3", [0.3], True, float("nan"), -1])
def test_a_share_that_is_no_number_is_left_out_of_the_card(share: Any) -> None:
    marks = {"data_path": ["x"], "corrective_data /a/pearls.json": {"share": share, "repeat": None}}
    assert [*model_card._data(marks)] == ["- `pearls.json`, corrective"]


def test_a_leg_that_neither_holds_nor_fails_is_left_out() -> None:
    assert model_card._legs(judged_by({"answers": [], "cause": 1, "picture": None})) == "picture –"


def rewritten(run: Path, group: str, **changed: Any) -> str:
    """The card after a group of the comparison was changed."""
    path = run / "comparison" / "comparison.json"
    content = json.loads(path.read_text())
    content["groups"][group].update(changed)
    path.write_text(json.dumps(content))
    model_card.write(run, run=run, family="qwen-vl", step=330)
    return written(run)[1]


@pytest.mark.parametrize("verdict", ["not held out", "too few probes"])
def test_legs_that_no_verdict_rests_on_are_not_shown(run: Path, verdict: str):
    """As of probes that were trained on: what their legs say shows nothing, however many hold."""
    held = judged_by(dict.fromkeys(LEGS, True))
    reason = "In 12 of 40 probes a picture is in the training data, the first is s_0: what was trained on says nothing."
    text = rewritten(run, "sphere|building", **held | {"verdict": verdict, "reasons": [reason]})
    assert "✓" not in text and f"| **{verdict}** |" in text
    told = (
        "- sphere\\|building: In 12 of 40 probes a picture is in the training data, the first is s\\_0: what"
    )
    assert (told in text) == (verdict == "not held out")


def test_no_card_says_that_its_probes_were_not_trained_on(run: Path):
    """A comparison does not know it of every group: where answers were lost, the verdict says that."""
    text = rewritten(run, "retention", verdict="forgot", reasons=["Right answers fell."])
    assert (
        "not trained on" not in text
        and "no correction is claimed where one of them is known to be in" in text
    )


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ({"images": 40, "probes": 40}, "0 % → 92.7 % |"),
        ({"images": 25, "probes": 124}, "0 % → 92.7 %, 64 % by picture |"),
        ({"images": 25, "probes": 124, "pictures_right": {"after": "64"}}, "0 % → 92.7 % |"),
    ],
    ids=["a picture each", "shared pictures", "a share that is no number"],
)
def test_where_probes_share_pictures_both_shares_are_told(run: Path, accuracy: dict[str, Any], words: str):
    found = {"before": 0.0, "after": 0.9274, "pictures_right": {"before": 0.0, "after": 0.64}} | accuracy
    assert f"| sphere\\|building | 40 | {words}" in rewritten(run, "sphere|building", accuracy=found)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/home/alice/towers/checkpoint-110", "`checkpoint-110` of `towers`"),
        ("/home/alice/towers at step 110", "`towers` at step 110"),
        ("/home/alice/towers: the best, checkpoint-220", "`checkpoint-220` of `towers`"),
        ("/home/alice/base with the adapter /home/alice/cats", "`base` with the adapter `cats`"),
        ("Qwen/Qwen-VL-Chat", "`Qwen/Qwen-VL-Chat`"),
        ("/home/a`li\nce/![x](http://other.invalid)", "`other.invalid)`"),
        (None, "a model that is not recorded"),
    ],
)
def test_what_the_weights_were_compared_with_is_named(run: Path, model: Any, words: str):
    path = run / "comparison" / "comparison.json"
    content = json.loads(path.read_text()) | {"before": {"model": model, "step": 0}}
    path.write_text(json.dumps(content))
    judged_after(path, str(run), 1)
    model_card.write(run, run=run, family="qwen-vl", step=330)
    text = written(run)[1]
    assert f"Before is {words}, after are these weights." in text and "alice/" not in text


def trained_on(folder: Path) -> str:
    text = written(folder)[1]
    return text[text.index("## Trained on") :].partition("Flags other")[0]


def test_all_data_of_a_run_is_named_with_its_steps(run: Path):
    add_checkpoint(run, 200)
    other = {**MARKS, "data_path": "/home/alice/cats.json"}
    run_folder.write_run(run, other, finished=False)
    for step, cats in ((330, True), (200, False), (None, True)):
        model_card.write(run, run=run, family="qwen-vl", step=step)
        told = trained_on(run)
        assert "- `data.json` (SHA-256 `9edf9edf9edf9edf…`), steps 1–200\n" in told
        end = "steps 201–330" if step else "from step 201 on"
        assert (
            ("cats.json" in told) is (f"- `cats.json` (SHA-256 `9edf9edf9edf9edf…`), {end}\n" in told) is cats
        )
        assert "not recorded" not in told


@pytest.mark.parametrize("how", ["run", "exported"])
def test_what_it_continued_from_is_named_with_its_data(run: Path, how: str):
    add_checkpoint(run, 200)
    adapter = run / "checkpoint-200"
    marks = {**MARKS, "data_path": "/home/alice/cats.json", "lora_weight_path": str(adapter)}
    second = run.parent / "second"
    run_folder.write_run(second, marks, finished=True)
    folder, exported = second, None
    if how == "exported":
        folder, exported = run.parent / "merged", model_card.Exported(second, "Merged.", "merged")
        folder.mkdir()
    model_card.write(folder, run=second, family="qwen-vl", step=7, exported=exported)
    told = trained_on(folder)
    assert "Continued from `checkpoint-200` of `towers`, which was trained on:\n\n- `data.json`" in told
    assert "Then it was trained on:\n\n- `cats.json` (SHA-256 `9edf9edf9edf9edf…`), steps 1–7\n" in told
    content = (folder / "README.md").read_text()
    assert "Its training continued from `checkpoint-200` of `towers`" in content and "alice" not in content


def test_what_is_not_recorded_is_said(run: Path):
    run_folder.write_run(run, MARKS | {"lora_weight_path": "somebody/cats-lora"}, finished=False)
    model_card.write(run, run=run, family="qwen-vl", step=330)
    assert (
        "from the adapter [somebody/cats-lora](https://huggingface.co/somebody/cats-lora); what that was trained on is "
        "not recorded." in trained_on(run)
    )
    content = json.loads((run / "run.json").read_text())
    del content["lineage"], content["marks"]["lora_weight_path"]
    (run / "run.json").write_text(json.dumps(content))  # as earlier releases wrote it
    model_card.write(run, run=run, family="qwen-vl", step=330)
    assert "- steps 1–330: whether other data was trained on before is not recorded" in trained_on(run)


def test_an_adapter_says_which_parts_it_has(run: Path):
    """Whichever run trained them: the last one may have left the connector as it was."""
    stem = "base_model.model.model"
    names = (
        f"{stem}.visual.blocks.0.attn.qkv.lora_A.weight", f"{stem}.language_model.layers.0.mlp.up_proj.lora_A.weight",
        f"{stem}.visual.merger.linear_fc1.weight", f"{stem}.visual.merger.linear_fc1.bias",
        "base_model.model.lm_head.weight",
    )  # fmt: skip
    save_file({name: torch.zeros(5, 3) for name in names}, run / "adapter_model.safetensors")
    model_card.write(run, run=run, family="qwen3-vl", step=330)
    assert (
        "\nTrained parts: adapters in the vision tower and the language layers; in full, the connector and the word "
        "embeddings and the output layer.\n" in written(run)[1]
    )


def test_weights_of_the_best_checkpoint_are_said_to_lack_later_steps(run: Path):
    words = "steps after that one are not in them"
    run_folder.write_run(run, MARKS | {"load_best_model_at_end": True}, finished=True)
    checkpoint = add_checkpoint(run, 220)
    for folder, said in ((run, True), (checkpoint, False)):
        model_card.write(folder, run=run, family="qwen-vl", step=220)
        assert (words in written(folder)[1]) is said


def test_flags_that_nobody_gave_are_not_on_it(run: Path):
    derived = {"deepspeed": False, "greater_is_better": False, "metric_for_best_model": "loss"}
    run_folder.write_run(run, MARKS | derived, finished=True)
    model_card.write(run, run=run, family="qwen-vl", step=330)
    assert not [name for name in derived if name in written(run)[1]]
    run_folder.write_run(run, MARKS | {"deepspeed": True}, finished=True)
    model_card.write(run, run=run, family="qwen-vl", step=330)
    assert "\ndeepspeed: true\n" in written(run)[1]
