"""The report's file: whole, self-contained, safe with any text, and with the data its script needs."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from show_samples import LAYERS, SIZE, probes, records

from diagnostics.compare import comparison_of
from diagnostics.pairs import pair_all
from diagnostics.report import PICTURE_WIDTH, headline, report_html


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    of = probes(tmp_path_factory.mktemp("page"), per_group=20)
    pairs = pair_all(of, records(of, 0), records(of, 10))
    return report_html(comparison_of(pairs), pairs)


def data(page: str) -> dict:  # type: ignore[type-arg]
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found.group(1))  # type: ignore[no-any-return]


def test_it_needs_no_network_and_no_other_file(page: str) -> None:
    assert not re.search(r"https?://", page)
    assert not re.search(r'(src|href)="(?!data:)', page) and "@import" not in page and "url(" not in page
    assert "{{" not in page


def test_the_headline_is_made_of_verdicts_alone(page: str) -> None:
    assert "<h1>sphere-building: corrected. retention: kept.</h1>" in page
    verdicts = {"a": {"verdict": "kept"}, "b": {"verdict": "it did not move"}, "c": {"verdict": "kept"}}
    assert headline(verdicts) == "a and c: kept. b: it did not move."


def test_every_group_has_its_card_with_numbers_and_reasons(page: str) -> None:
    assert page.count('<article class="verdict">') == 2
    assert '<span class="pill good">corrected</span>' in page
    assert "<i>0% →</i> 100%" in page and "<i>0.52× →</i> 12.00×" in page and "<i>+0.00 →</i> +0.50" in page
    assert "Hiding the region costs" in page
    # one row for each key layer of the only group with a region
    assert page.count('class="numbers"') == len(LAYERS)
    assert "20 right</text>" in page and "0 right</text>" in page


def test_a_bad_verdict_is_not_green(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=20)
    before, after = records(of, 0), records(of, 10)
    for name in [name for name in after if name.startswith("retention")][:10]:
        record = after[name]
        after[name] = replace(record, scores=replace(record.scores, foil_nats=0.0))
    pairs = pair_all(of, before, after)
    page = report_html(comparison_of(pairs), pairs)
    assert '<span class="pill bad">forgot</span>' in page


def test_text_of_a_probe_can_break_nothing(page: str) -> None:
    # the sample's answer holds tags, its question a control token; "</script>" would end the data
    assert "<b>bright</b>" not in page and "<|im_end|>" not in page
    probe = data(page)["probes"][20]
    assert probe["answer"] == "blue & <b>bright</b>" and probe["question"].endswith("<|im_end|>")


def test_maps_are_one_byte_a_cell_on_a_shared_scale(page: str) -> None:
    content = data(page)
    probe = content["probes"][0]
    assert content["layers"] == list(LAYERS) and [layer["layer"] for layer in probe["layers"]] == list(LAYERS)
    assert probe["grid"] == [4, 6] and probe["extent"] == [0, 0, 1, 1]
    layer = probe["layers"][0]
    before, after = (
        np.frombuffer(base64.b64decode(layer[side]), np.uint8) * layer["peak"] / 255
        for side in ("before", "after")
    )
    assert (before.argmax(), after.argmax()) == (20, 8)
    assert after.max() == pytest.approx(12.0, rel=0.01) and after.mean() == pytest.approx(1.0, rel=0.03)
    assert layer["reading"]["mass"] == pytest.approx([0.5 / 23, 0.5])
    assert probe["boxes"][0] == ["spheres", [[0.33333, 0.25, 0.5, 0.5]]]
    assert len(base64.b64decode(content["heat"])) == len(base64.b64decode(content["swing"])) == 256 * 4


def test_pictures_are_inside_and_small(page: str) -> None:
    picture = data(page)["probes"][0]["picture"]
    image = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/webp;base64,"))))
    assert image.size == (PICTURE_WIDTH, round(PICTURE_WIDTH * SIZE[1] / SIZE[0]))
    assert len(page) < 400_000


def test_it_reads_on_phone_on_paper_and_in_the_dark(page: str) -> None:
    assert 'name="viewport"' in page and "@media print" in page
    assert "prefers-color-scheme: dark" in page and "max-width: 700px" in page and "<noscript>" in page
