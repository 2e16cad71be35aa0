"""Tags and values in the event files, read back with TensorBoard's own reader."""

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, TENSORS, EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.drawing import board_picture, probe_picture
from diagnostics.drawing.archive_pictures import (
    ArchivePictures,
    draw_archive_picture,
    draw_archive_strip,
    draw_board_pictures,
    draw_board_strip,
    overview_png,
    render_archive,
    render_board,
    render_strips,
)
from diagnostics.drawing.board import AttentionBoard, picture_tags, scalars, shown_probes
from diagnostics.drawing.cards import probe_card, verdict_card
from diagnostics.drawing.sink import NOT_YET, TaggedPicture
from diagnostics.drawing.tags import map_tag
from diagnostics.drawing.tensorboard import (
    TensorBoardSink,
    address,
    groups_and_layers,
    layout,
    open_command,
    plain_flags,
    written_tags,
)
from diagnostics.drawing.worker import drawing_pool
from diagnostics.records.record import AttentionRecord
from tests.diagnostics.show_samples import probes, records, run_folder


@pytest.fixture
def pairs(tmp_path: Path) -> list[ProbePair]:
    of = probes(tmp_path, per_group=4)
    return pair_all(of, records(of, 0), records(of, 10))


def test_a_verdict_shows_its_legs_or_its_reasons() -> None:
    leg = {
        "holds": False,
        "probes": 40,
        "value": 0.5,
        "ci95": [0.4, 0.6],
        "threshold": 0.8,
        "reason": "Half|are.",
    }
    unmeasured = {**leg, "holds": None, "value": None, "ci95": None, "reason": "No guards."}
    group = {
        "verdict": "answers changed, too few right",
        "legs": {"answers": leg, "guards": unmeasured},
        "reasons": ["Half|are.", "No guards."],
    }
    assert verdict_card(group).markdown().splitlines() == [
        "**answers changed, too few right**",
        "",
        "| leg | value | interval | at least | |",
        "|---|---|---|---|---|",
        "| ✗ answers 回答 | 50 % of the answers right | 40 to 60 % | 80 % | Half\\|are. |",
        "| – guards 护栏 |  |  |  | No guards. |",
        "",
        "✓ holds, ✗ does not, – not measured",
    ]
    kept = {**group, "verdict": "kept", "reasons": ["All*kept."]}
    assert verdict_card(kept).markdown() == "**kept**\n\n- All\\*kept."


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={IMAGES: 0, TENSORS: 0})
    return events.Reload()


def drawn_pictures(attention: Path, per_group: int, step: int = 10) -> list[TaggedPicture]:
    with drawing_pool() as pool:
        drawn = list(render_board(ArchivePictures.open(attention), step, pool, per_group))
    assert all(isinstance(one, TaggedPicture) for one in drawn)
    return drawn  # type: ignore[return-value]


def test_scalars_are_means_over_the_probes_of_now(pairs: list[ProbePair]) -> None:
    values = scalars(pairs)
    assert values["2 answers/accuracy/sphere-building"] == 1.0
    assert values["2 answers/margin_nats/sphere-building"] == pytest.approx(2.0 + (0 + 0.1 + 0.2 + 0.3) / 4)
    # half of the attention on the one cell of the region, of 24 cells
    assert values["3 attention/region_mass/sphere-building/layer_1"] == pytest.approx(0.5)
    assert values["3 attention/enrichment/sphere-building/layer_3"] == pytest.approx(12.0)
    assert values["4 drift/visual_share/layer_1"] == pytest.approx(5 / 12)
    assert values["4 drift/drift_jsd_nats/layer_1"] > 0.1
    assert not any("enrichment/retention" in tag for tag in values)  # it names no region
    assert len(values) == 2 + 2 + 2 + 2 + 2 + 2


def test_the_base_against_itself_has_not_drifted(tmp_path: Path) -> None:
    of = probes(tmp_path)
    base = records(of, 0)
    values = scalars(pair_all(of, base, base))
    assert (
        values["4 drift/drift_jsd_nats/layer_1"] == 0.0
        and values["2 answers/accuracy/sphere-building"] == 0.0
    )


def board_of(writer: SummaryWriter, folder: Path, **more: Any) -> AttentionBoard:
    return AttentionBoard([TensorBoardSink(writer, folder, **more)], nullcontext)


def test_a_step_is_written_into_a_writer_that_someone_else_owns(
    tmp_path: Path, pairs: list[ProbePair]
) -> None:
    writer = SummaryWriter(str(tmp_path / "runs"))
    writer.add_scalar("train/loss", 1.5, 10)
    board = board_of(writer, tmp_path / "runs")
    board.write_step(pairs, 0, per_group=2)
    for _ in range(2):  # nothing is written twice
        board.write_step(pairs, 20, per_group=2)
    events = read(tmp_path / "runs")
    assert [event.step for event in events.Scalars("5 guards/accuracy/retention")] == [0, 20]
    assert events.Scalars("train/loss")[0].value == 1.5
    tensors = events.Tags()["tensors"]
    assert sum(tag.startswith("2 answers - sphere-building/") for tag in tensors) == 2
    assert len(events.Tensors("custom_scalars__config__")) == 1
    assert "hparams" not in str(events.Tags())
    # A later start of the same run knows what is there.
    again = board_of(writer, tmp_path / "runs", written=written_tags(tmp_path / "runs"))
    again.write_step(pairs, 20, per_group=2)
    assert written_tags(tmp_path / "runs") == {
        (tag + ("/text_summary" if " - " in tag else ""), step) for tag, step in again.sinks[0].written
    } | {("custom_scalars__config__", 0), ("train/loss", 10)}
    assert len(read(tmp_path / "runs").Scalars("5 guards/accuracy/retention")) == 2


def test_pictures_go_in_as_they_are_encoded_also_after_the_writer_was_closed(
    tmp_path: Path,
) -> None:
    pictures = drawn_pictures(run_folder(tmp_path, per_group=1), 1)
    writer = SummaryWriter(str(tmp_path / "runs"))
    board = board_of(writer, tmp_path / "runs")
    board.write_pictures(pictures, 10)
    writer.close()  # as the Trainer does at the end
    board.write_pictures(pictures, 20)
    events = read(tmp_path / "runs")
    tag = map_tag("sphere-building", "sphere-building-0", 1)
    # Files of one second are read in the order of their names, and file 10 comes before file 9.
    images = sorted(events.Images(tag), key=lambda image: image.step)
    assert [image.step for image in images] == [10, 20]
    assert images[0].encoded_image_string == next(p.png for p in pictures if p.tag == tag)
    assert (images[0].width, images[0].height) == next(p.size for p in pictures if p.tag == tag)
    # one probe of each of two groups at two layers, a strip of each, and one overview
    assert len(events.Tags()["images"]) == 7


def test_sections_come_in_the_order_of_questions_and_guards_after_targets(
    tmp_path: Path, pairs: list[ProbePair]
) -> None:
    assert sorted({tag.split("/")[0] for tag in [*picture_tags(pairs, 1), *scalars(pairs)]}) == [
        "1 verdict", "2 answers", "3 attention", "3 attention - sphere-building", "4 drift",
        "5 guards", "5 guards - retention",
    ]  # fmt: skip
    assert list(layout(list(scalars(pairs)))) == ["sphere-building", "retention", "4 drift: all probes"]


def hparams_of(folder: Path) -> dict[str, Any]:
    """What the HParams tab shows of a folder's one run."""
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    events = read(folder)
    (tag,) = [name for name in events.Tags()["tensors"] if name.startswith("_hparams_")]
    content = events.SummaryMetadata(tag).plugin_data.content
    found = parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def test_a_run_has_one_line_in_the_hparams_tab_and_its_verdict_replaces_none(tmp_path: Path) -> None:
    flags = plain_flags(
        {
            "learning_rate": 1e-3,
            "lora_r": 16,
            "bf16": True,
            "data": ["a", "b"],
            "hub_token": "x",
            "seed": None,
        }
    )
    writer = SummaryWriter(str(tmp_path))
    group = {"verdict": "corrected", "reasons": ["Yes."]}
    lost = {"verdict": "forgot", "reasons": ["No."]}
    for _ in range(2):  # a run, and the same resumed
        board = board_of(writer, tmp_path, flags=flags)
        board.begin(["towers", "retention"])
        assert hparams_of(tmp_path) == {
            "1 verdict: towers": NOT_YET, "5 guards: retention": NOT_YET,
            "learning_rate": 1e-3, "lora_r": 16, "bf16": True, "data": "a b",
        }  # fmt: skip
        board.write_verdicts({"groups": {"towers": group, "retention": lost}}, 10)
        found = hparams_of(tmp_path)
        assert (found["1 verdict: towers"], found["5 guards: retention"]) == ("corrected", "forgot")
    writer.close()
    events = read(tmp_path)
    assert [one.value for one in events.Scalars("1 verdict/corrected/towers")] == [1.0, 1.0]
    assert events.Scalars("5 guards/kept/retention")[0].value == 0.0


def test_what_one_sink_refuses_the_others_still_get(tmp_path: Path, pairs: list[ProbePair]) -> None:
    refused = []

    @contextmanager
    def reporting(name: str) -> Iterator[None]:
        try:
            yield
        except OSError:
            refused.append(name)

    class Full(TensorBoardSink):
        name = "full"

        def _numbers(self, values: Mapping[str, float], step: int) -> None:
            raise OSError("no space left")

    writer = SummaryWriter(str(tmp_path))
    board = AttentionBoard([Full(writer, tmp_path), TensorBoardSink(writer, tmp_path)], reporting)
    board.write_step(pairs, 0)
    assert refused == ["full"] and read(tmp_path).Scalars("5 guards/accuracy/retention")[0].step == 0


def test_a_step_is_written_again_once_it_is_forgotten(tmp_path: Path, pairs: list[ProbePair]) -> None:
    """As where a run is resumed at a step that an earlier start measured on its best checkpoint."""
    board = AttentionBoard(
        [TensorBoardSink(SummaryWriter(str(tmp_path)), tmp_path)], lambda name: nullcontext()
    )
    for _ in range(2):
        board.write_step(pairs, 10)
    assert len(read(tmp_path).Scalars("5 guards/accuracy/retention")) == 1
    board.forget(10)
    board.write_step(pairs, 10)
    assert len(read(tmp_path).Scalars("5 guards/accuracy/retention")) == 2


def test_the_log_of_a_checkpoint_is_bounded(tmp_path: Path) -> None:
    pictures = drawn_pictures(run_folder(tmp_path, per_group=4), 3)
    assert len(pictures) == 2 * 3 * 2 + 2 + 1
    assert all(len(picture.png) <= picture.size[0] * picture.size[1] for picture in pictures)


def test_shown_probes_are_the_first_of_each_group(pairs: list[ProbePair]) -> None:
    assert [pair.probe.id for pair in shown_probes(pairs, 2)] == [
        "sphere-building-0",
        "sphere-building-1",
        "retention-0",
        "retention-1",
    ]


def test_the_overview_needs_a_region(pairs: list[ProbePair]) -> None:
    picture = overview_png(pairs[:4])
    assert picture is not None and picture.tag == "3 attention/layers x heads/sphere-building"
    assert overview_png(pairs[4:]) is None


def test_the_card_tells_before_and_now_and_escapes_what_markdown_would_read(pairs: list[ProbePair]) -> None:
    text = probe_card(pairs[0]).markdown()
    assert "这座塔是什么?" in text and "| base (step 0) | ✗ 广州塔 | -1.50 |" in text
    assert "| now (step 10) | ✓ 东方明珠 | +2.00 |" in text and "*spheres*" in text
    assert "\\<|im\\_end\\|\\>".replace("<|", "<\\|") in probe_card(pairs[4]).markdown()


def test_the_layout_names_tags_that_are_written(pairs: list[ProbePair]) -> None:
    written = list(scalars(pairs))
    charted = []
    for charts in layout(written).values():
        for name, (kind, patterns) in charts.items():
            found = [tag for tag in written for pattern in patterns if re.match(pattern, tag)]
            assert kind == "Multiline" and len(found) == len(patterns), name
            charted += found
    assert sorted(charted) == sorted(written)


def test_the_address_smooths_nothing_and_pins_what_matters_targets_first() -> None:
    split = urlsplit(address(["retention", "a/b"], (1, 3)))
    query = parse_qs(split.query)
    assert query["smoothing"] == ["0"] and split.fragment == "timeseries&_smoothingWeight=0"
    assert [card["tag"] for card in json.loads(query["pinnedCards"][0])] == [
        "2 answers/margin_nats/a%2Fb", "3 attention/enrichment/a%2Fb/layer_3", "5 guards/accuracy/retention",
    ]  # fmt: skip


def test_groups_and_layers_are_read_back_from_tags(pairs: list[ProbePair]) -> None:
    written = [*scalars(pairs), "2 answers/accuracy/a%2Fb%25", "train/loss"]
    assert groups_and_layers(written) == (["a/b%", "retention", "sphere-building"], [1, 3])


def test_a_layer_that_is_trained_on_says_so_in_its_tags_and_is_not_pinned(
    tmp_path: Path, pairs: list[ProbePair]
) -> None:
    written = [*scalars(pairs, [3])]
    assert {tag for tag in written if tag.endswith("trained on")} == {
        f"3 attention/{what}/sphere-building/layer_3, trained on" for what in ("enrichment", "region_mass")
    }
    assert "3 attention/enrichment/sphere-building/layer_1" in written
    assert groups_and_layers(written) == (["retention", "sphere-building"], [1])
    board = AttentionBoard(
        [TensorBoardSink(SummaryWriter(str(tmp_path)), tmp_path)], nullcontext, trained_on=[3]
    )
    board.write_step(pairs, 0)
    assert ("3 attention/enrichment/sphere-building/layer_3, trained on", 0) in written_tags(tmp_path)


def test_pictures_of_a_layer_that_is_trained_on_have_one_tag_from_step_0_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of step 0 do not know yet what the run will train on: the base would fall out of the slider."""
    folder = run_folder(tmp_path, per_group=1)
    for path in (folder / "step-000010").glob("*.safetensors"):
        replace(AttentionRecord.load(path), supervised_layers=(3,)).save(path)
    base, now = ({picture.tag for picture in drawn_pictures(folder, 1, step)} for step in (0, 10))
    assert base == now and "3 attention - sphere-building/sphere-building-0/layer_3" in now
    archive = ArchivePictures.open(folder)
    assert now == set(picture_tags([archive.pair(one, 10) for one in archive.probes], 1))

    written: list[str] = []

    class Noting(board_picture.Pen):
        def write(self, draw: Any, at: Any, text: str, *more: Any, **named: Any) -> Any:
            written.append(text)
            return super().write(draw, at, text, *more, **named)

    monkeypatch.setattr(board_picture, "Pen", Noting)
    draw_board_pictures(archive, archive.probes[0], 10)  # in this process
    for layer in (1, 3):
        draw_board_strip(archive, archive.probes[0], [0, 10], layer)
    assert [one for one in written if one.startswith("layer")] == ["layer 1", "layer 3, trained on"] * 2
    written.clear()
    monkeypatch.setattr(probe_picture, "Pen", Noting)
    assert draw_archive_picture(archive, archive.probes[0], 10) is None
    assert draw_archive_strip(archive, archive.probes[0], [0, 10]) is None
    assert [one for one in written if one.startswith("layer")] == ["layer 1", "layer 3, trained on"] * 2


def test_the_best_model_is_no_step_in_trackers_and_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was loaded at the end, of an earlier step, and measured in place of the last one's."""
    folder = run_folder(tmp_path, per_group=1, steps=(0, 10, 20))
    (folder / "step-000020" / "complete.json").write_text('{"best": "checkpoint-10"}')
    assert drawn_pictures(folder, 1, 20) == [] and drawn_pictures(folder, 1, 10)
    archive = ArchivePictures.open(folder)
    assert archive.training_steps() == [0, 10] and archive.missing_steps() == [10, 20]
    titles: list[str] = []
    monkeypatch.setattr(
        probe_picture, "_title_line", lambda draw, sheet, right, width, pen: titles.append(right)
    )
    with ThreadPoolExecutor(1) as pool:
        assert not any(render_strips(archive, pool, archive.probes[:1]))
        assert [*render_archive(archive, 20, pool)] == [None, None]
    assert titles == ["steps 0 to 10", *["2 key layers  ·  checkpoint-10, the best"] * 2]


def test_the_command_keeps_every_image() -> None:
    assert open_command("out put/runs") == (
        "tensorboard --logdir 'out put/runs' --samples_per_plugin images=1000,text=1000"
    )
