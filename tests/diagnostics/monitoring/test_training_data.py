"""Are the probes' pictures in the data of the training under way?"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from diagnostics.monitoring.training_data import paths_of, pictures_among, seen_words
from diagnostics.records.probes import Probe


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    found = []
    for at in range(3):
        found.append(tmp_path / f"{at}.png")
        Image.new("RGB", (7 + at, 5), (at, 90, 20)).save(found[-1])
    return found


def test_pictures_are_found_by_name_and_as_copies_among_pictures_and_in_data(pictures, tmp_path):
    copy = tmp_path / "copy.PNG"
    shutil.copy(pictures[0], copy)
    data = tmp_path / "data.json"
    turns = [
        {"from": "user", "value": "Picture 1: <img>1.png</img>\nwhat?"},
        {"from": "assistant", "value": "a"},
    ]
    data.write_text(json.dumps([{"id": "s", "conversations": turns}]))
    assert set(pictures_among(pictures, [copy])) == {pictures[0]}
    assert set(pictures_among(pictures, [data])) == {pictures[1]}
    assert set(pictures_among(pictures, [copy, data])) == {pictures[0], pictures[1]}
    assert pictures_among(pictures, []) == {}
    large = shutil.copy(pictures[2], tmp_path / "2.png_large")  # as some sites name their downloads
    assert set(pictures_among(pictures, [Path(large), data])) == {pictures[1], pictures[2]}


def test_one_path_or_several_of_any_kind(pictures):
    assert paths_of(str(pictures[0])) == paths_of(pictures[0]) == paths_of([pictures[0]]) == (pictures[0],)
    assert paths_of(path for path in pictures) == tuple(pictures)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["gone.png"], "data: gone.png: no such file; expected paths of data files or of pictures"),
        ([{"image": "0.png"}], "data: found dict at place 0, expected paths of data files or of pictures"),
        (b"0.png", "data: found bytes at place 0, expected paths"),
        (3, "data: found int at place 0, expected paths"),
        (["0.png", None], "data: found NoneType at place 1, expected paths"),
        ([], "data: found no file, .* does the pattern fit their names"),
        (Path("images").rglob("*.jpg"), "data: found no file"),
    ],
)
def test_what_is_no_path_is_refused(data, message):
    """An empty list, of a pattern that fits nothing, would pass for data that was looked through."""
    with pytest.raises(ValueError, match=message):
        paths_of(data)


@pytest.mark.parametrize("content", ["no JSON", json.dumps([{"id": "s", "conversations": []}])])
def test_data_that_cannot_be_looked_through_is_refused(pictures, tmp_path, content):
    data = tmp_path / "data.json"
    data.write_text(content)
    with pytest.raises(
        ValueError, match=r"(?s)data: .*data.json.*else give the paths of its pictures instead"
    ):
        pictures_among(pictures, [data])


def test_groups_are_named_with_what_cannot_be_met_then(pictures):
    judged = [
        Probe(f"p-{at}", "towers", (path,), "?", "a", "b", {}, {}, None) for at, path in enumerate(pictures)
    ]
    more = {"where": "is in the training data", "remedy": "draw other probes", "of": "probes"}
    (line,) = seen_words(judged, pictures[1:], **more, stop_when="corrected")
    assert line == (
        "warning: probes: in 2 of 3 probes a picture is in the training data (towers: 2 of 3), the first is p-1: "
        f"{pictures[1]}. What was trained on shows no correction, so these groups get no verdict but "
        '"not held out": draw other probes; until then, --stop_when corrected cannot be met'
    )
    assert seen_words(judged, [], **more, stop_when=None) == []
