"""Tags and values in the event files, read back with TensorBoard's own reader."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, TENSORS, EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.drawing.archive_pictures import ArchivePictures, overview_png, render_board
from diagnostics.drawing.tensorboard import (
    AttentionBoard,
    TaggedPicture,
    card,
    layout,
    map_tag,
    open_command,
    scalars,
    shown_probes,
    verdict_words,
)
from diagnostics.drawing.worker import drawing_pool
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
    assert verdict_words(group).splitlines() == [
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
    assert verdict_words(kept) == "**kept**\n\n- All\\*kept."


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={IMAGES: 0, TENSORS: 0})
    return events.Reload()


def drawn_pictures(attention: Path, per_group: int) -> list[TaggedPicture]:
    with drawing_pool() as pool:
        drawn = list(render_board(ArchivePictures.open(attention), 10, pool, per_group))
    assert all(isinstance(one, TaggedPicture) for one in drawn)
    return drawn  # type: ignore[return-value]


def test_scalars_are_means_over_the_probes_of_now(pairs: list[ProbePair]) -> None:
    values = scalars(pairs)
    assert values["accuracy/sphere-building"] == 1.0
    assert values["margin_nats/sphere-building"] == pytest.approx(2.0 + (0 + 0.1 + 0.2 + 0.3) / 4)
    # half of the attention on the one cell of the region, of 24 cells
    assert values["region_mass/sphere-building/layer_1"] == pytest.approx(0.5)
    assert values["enrichment/sphere-building/layer_3"] == pytest.approx(12.0)
    assert values["visual_share/layer_1"] == pytest.approx(5 / 12)
    assert values["drift_jsd_nats/layer_1"] > 0.1
    assert not any(tag.startswith("enrichment/retention") for tag in values)  # it names no region
    assert len(values) == 2 + 2 + 2 + 2 + 2 + 2


def test_the_base_against_itself_has_not_drifted(tmp_path: Path) -> None:
    of = probes(tmp_path)
    base = records(of, 0)
    values = scalars(pair_all(of, base, base))
    assert values["drift_jsd_nats/layer_1"] == 0.0 and values["accuracy/sphere-building"] == 0.0


def test_a_step_is_written_into_a_writer_that_someone_else_owns(
    tmp_path: Path, pairs: list[ProbePair]
) -> None:
    writer = SummaryWriter(str(tmp_path / "runs"))
    writer.add_scalar("train/loss", 1.5, 10)
    board = AttentionBoard(writer)
    board.write_step(pairs, 10, per_group=2)
    board.write_step(pairs, 20, per_group=2)
    events = read(tmp_path / "runs")
    assert [event.step for event in events.Scalars("accuracy/retention")] == [10, 20]
    assert events.Scalars("train/loss")[0].value == 1.5
    tensors = events.Tags()["tensors"]
    assert sum(tag.startswith("probes/sphere-building/") for tag in tensors) == 2
    assert len(events.Tensors("custom_scalars__config__")) == 1


def test_pictures_go_in_as_they_are_encoded_also_after_the_writer_was_closed(
    tmp_path: Path,
) -> None:
    pictures = drawn_pictures(run_folder(tmp_path, per_group=1), 1)
    writer = SummaryWriter(str(tmp_path / "runs"))
    board = AttentionBoard(writer)
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
    # one probe of each of two groups at two layers, and one overview
    assert len(events.Tags()["images"]) == 5


def test_the_log_of_a_checkpoint_is_bounded(tmp_path: Path) -> None:
    pictures = drawn_pictures(run_folder(tmp_path, per_group=4), 3)
    assert len(pictures) == 2 * 3 * 2 + 1
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
    assert picture is not None and picture.tag == "layers x heads/sphere-building"
    assert overview_png(pairs[4:]) is None


def test_the_card_tells_before_and_now_and_escapes_what_markdown_would_read(pairs: list[ProbePair]) -> None:
    text = card(pairs[0])
    assert "这座塔是什么?" in text and "| base (step 0) | 广州塔 | wrong · -1.50 |" in text
    assert "| now (step 10) | 东方明珠 | right · +2.00 |" in text and "*spheres*" in text
    assert "\\<|im\\_end\\|\\>".replace("<|", "<\\|") in card(pairs[4])


def test_the_layout_names_tags_that_are_written(pairs: list[ProbePair]) -> None:
    import re

    written = scalars(pairs)
    for charts in layout(pairs).values():
        for name, (kind, patterns) in charts.items():
            found = [tag for tag in written for pattern in patterns if re.match(pattern, tag)]
            assert kind == "Multiline" and found, name


def test_the_command_keeps_every_image() -> None:
    assert open_command("out put/runs") == (
        "tensorboard --logdir 'out put/runs' --samples_per_plugin images=1000,text=1000"
    )
