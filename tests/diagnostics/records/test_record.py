"""Records survive the disk bit for bit, and a bad file says what it is."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from diagnostics.records.record import AttentionRecord, Intervention, Query, Scores
from finetune.families.base import ImageTokens


def a_record(**changes) -> AttentionRecord:
    rng = np.random.default_rng(3)
    rows = rng.random((2, 3, 2, 9), dtype=np.float32)
    record = AttentionRecord(
        probe_id="pearl-night-03",
        group="sphere-building",
        step=50,
        model="output_qwen/checkpoint-50",
        tokens=("这座", "塔", "?", "\n", "<image>", "<image>", "东方", "明", "珠"),
        queries=(Query(5, "answer", "东方"), Query(8, "phrase:东方明珠", "东方明珠")),
        layers=(1, 3),
        rows=rows / rows.sum(-1, keepdims=True),
        image_tokens=(
            ImageTokens(
                np.array([4, 5]),
                (2, 3),
                np.sort(rng.random((6, 4)), axis=1) * 100,
                (120, 80),
                through_connector=True,
            ),
        ),
        connector=(rng.random((2, 6), dtype=np.float32),),
        region_mass={
            "spheres": rng.random((4, 3), dtype=np.float32),
            "body/lower": np.zeros((4, 3), np.float32),
        },
        visual_share=rng.random((4, 3), dtype=np.float32),
        scores=Scores(-0.25, -3.5, "东方明珠"),
        interventions=(
            Intervention("occlusion", "spheres", -1.5, (3.0, 2.5)),
            Intervention("knockout", "spheres", -1.0, (3.0,), layers=(2, 5)),
        ),
        random_mass={"spheres": rng.random((4, 3), dtype=np.float32)},
        sinks=rng.random((2, 9)) > 0.5,
        highest_logit=rng.random((4, 3), dtype=np.float32),
        maps={
            "relative": rng.random((2, 6), dtype=np.float32),
            "gradient": rng.random((2, 6), dtype=np.float32),
        },
        curves={"deletion": np.array([3.0, 1.0], np.float32)},
    )
    return dataclasses.replace(record, **changes)


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        )
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def test_a_record_comes_back_bit_for_bit(tmp_path):
    record = a_record()
    record.save(tmp_path / "step-000050" / "pearl-night-03.safetensors")
    assert same(AttentionRecord.load(tmp_path / "step-000050" / "pearl-night-03.safetensors"), record)
    assert [path.name for path in (tmp_path / "step-000050").iterdir()] == ["pearl-night-03.safetensors"]


def test_without_foil_or_connector(tmp_path):
    record = a_record(scores=Scores(-1.0, None, ""), connector=(), interventions=(), region_mass={})
    record.save(tmp_path / "a.safetensors")
    loaded = AttentionRecord.load(tmp_path / "a.safetensors")
    assert same(loaded, record) and loaded.scores.margin_nats is None


def with_overview() -> AttentionRecord:
    rng = np.random.default_rng(4)
    overview = ImageTokens(np.array([0, 1]), (1, 2), np.sort(rng.random((2, 4)), axis=1), (120, 80), False)
    image = ImageTokens(
        np.arange(2, 8),
        (2, 3),
        np.sort(rng.random((6, 4)), axis=1),
        (120, 80),
        False,
        overview=overview,
        tiles=(2, 1),
    )
    return a_record(image_tokens=(image, a_record().image_tokens[0]), connector=())


def test_an_overview_is_kept(tmp_path):
    with_overview().save(tmp_path / "a.safetensors")
    assert same(AttentionRecord.load(tmp_path / "a.safetensors"), with_overview())


def test_records_from_before_overviews_were_kept_are_read(tmp_path):
    """Their headers say nothing of overviews and tiles."""
    path = tmp_path / "a.safetensors"
    a_record().save(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["attention_record"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for image in header["images"]:
        assert (image.pop("overview"), image.pop("tiles")) == (None, None)
    save_file(arrays, path, metadata={"attention_record": json.dumps(header)})
    assert same(AttentionRecord.load(path), a_record())


def test_places_for_a_region_of_more_cells_may_have_more_than_all_attention(tmp_path):
    """Never more than there are cells; and what a region itself gets is a share."""
    path = tmp_path / "a.safetensors"
    places = {"spheres": np.full((4, 3), 1.6, np.float32)}
    record = a_record(random_mass=places, salient_mass=places)
    record.save(path)
    assert same(AttentionRecord.load(path), record)
    cells = len(record.image_tokens[0].cell_boxes_pixels)
    for kind, mass in (("random_mass", cells + 0.5), ("region_mass", 1.6)):
        whole = {**getattr(record, kind), "spheres": np.full((4, 3), mass, np.float32)}
        dataclasses.replace(record, **{kind: whole}).save(path)
        with pytest.raises(ValueError, match=rf"{kind}/spheres: found .* from 0 to"):
            AttentionRecord.load(path)


def test_precision_and_whether_a_picture_was_trained_on_are_kept_and_older_records_do_not_say(tmp_path):
    path, record = tmp_path / "a.safetensors", a_record(trained_picture=True, precision="bfloat16")
    record.save(path)
    assert same(AttentionRecord.load(path), record)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["attention_record"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    header["trained_picture"] = 1
    save_file(arrays, path, metadata={"attention_record": json.dumps(header)})
    with pytest.raises(ValueError, match="trained_picture: found 1; expected true or false"):
        AttentionRecord.load(path)
    header |= {"trained_picture": True, "precision": 16}
    save_file(arrays, path, metadata={"attention_record": json.dumps(header)})
    with pytest.raises(ValueError, match="precision: found 16; expected text"):
        AttentionRecord.load(path)
    del header["trained_picture"], header["precision"]
    save_file(arrays, path, metadata={"attention_record": json.dumps(header)})
    assert same(AttentionRecord.load(path), a_record())


def test_safetensors_and_numpy_alone_open_it(tmp_path):
    a_record().save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.get_tensor("rows").shape == (2, 3, 2, 9)
        assert json.loads(file.metadata()["attention_record"])["tokens"][6] == "东方"


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    a_record().save(path)
    monkeypatch.setattr(
        "diagnostics.records.record.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        a_record(step=60).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert AttentionRecord.load(path).step == 50


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors: no attention record there"):
        AttentionRecord.load(path)
    a_record().save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.safetensors: broken record .*delete it and probe again"):
        AttentionRecord.load(path)
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(
        ValueError, match=r"a\.safetensors: found a safetensors file without 'attention_record'"
    ):
        AttentionRecord.load(path)
    save_file({"x": np.zeros(2)}, path, metadata={"attention_record": '{"version": 7}'})
    with pytest.raises(ValueError, match="found record version 7, expected 3"):
        AttentionRecord.load(path)
    save_file({"x": np.zeros(2)}, path, metadata={"attention_record": '{"version": 3, "names": {}}'})
    with pytest.raises(ValueError, match="record without 'probe_id'"):
        AttentionRecord.load(path)


@pytest.mark.parametrize("layers", [(), (1, 3)])
@pytest.mark.parametrize("through", [True, False])
def test_of_older_records_whatever_may_have_been_trained_on_was(tmp_path, layers, through):
    """Before it was noted of the resampler: through one, attention that was trained on was trained on there too."""
    path = tmp_path / "a.safetensors"
    image = dataclasses.replace(a_record().image_tokens[0], through_connector=through)
    more = {} if through else {"image_tokens": (dataclasses.replace(image, grid=(1, 2),
            cell_boxes_pixels=image.cell_boxes_pixels[:2]),), "connector": (), "maps": {}}  # fmt: skip
    a_record(supervised_layers=layers, **more).save(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["attention_record"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    assert header.pop("supervised_connector") is False
    save_file(arrays, path, metadata={"attention_record": json.dumps(header)})
    assert AttentionRecord.load(path).supervised_connector is (through and bool(layers))
    save_file(arrays, path, metadata={"attention_record": json.dumps(header | {"supervised_connector": 1})})
    with pytest.raises(ValueError, match="supervised_connector: found 1; expected true or false"):
        AttentionRecord.load(path)
