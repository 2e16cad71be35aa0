"""The kinds of hostile files: how each is made from a sound one, how it is read, and what must not be read as sound."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.endurance.mutations import changed, damaged, hostile_names, text_of


class Kind:
    """A kind of file. ``read`` returns what is unsound in what was accepted, in words; None or "" for nothing."""

    name = ""
    refusals: tuple[type[BaseException], ...] = (ValueError, OSError)

    def __init__(self, world: Path) -> None:
        self.world, self.place = world, world / "mutant"
        self.place.mkdir(parents=True, exist_ok=True)

    def mutate(self, chance: random.Random) -> str:
        """Writes the mutant below ``self.place``; returns what was done, for people."""
        raise NotImplementedError

    def read(self) -> str | None:
        raise NotImplementedError

    def clean(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

    def json_or_bytes(self, content: Any, chance: random.Random, path: Path, *, share: float = 0.85) -> str:
        """A content with changes as JSON, or its bytes damaged."""
        indent = chance.choice((None, None, 1))
        if chance.random() < share:
            made, done = changed(content, chance)
            path.write_text(text_of(made, chance, indent=indent), encoding="utf-8", errors="surrogatepass")
            return "; ".join(map(str, done))
        data, how = damaged(json.dumps(content, ensure_ascii=False, indent=indent).encode(), chance)
        path.write_bytes(data)
        return how


def pictures(folder: Path) -> None:
    """Sound pictures beside what names may point to."""
    hostile_names(folder)
    Image.new("RGB", (40, 20), "navy").save(folder / "a.png")
    Image.new("RGB", (30, 60), "olive").save(folder / "b.jpg")


# ---------------------------------------------------------------------------------------------------------------------
# Training data
# ---------------------------------------------------------------------------------------------------------------------

LOOK = [{"phrase": "the cat", "boxes": [[10, 5, 20, 15]]}]
RELATION = [{"phrase": "the cat", "ends": [[[10, 5, 20, 15]], [[1, 1, 5, 5]]], "image": 0}]
ANSWER = "I see <ref>the cat</ref><box>(100,200),(300,400)</box> here"


def _png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


RECORDS: dict[str, list[Any]] = {
    "qwen-vl": [
        {
            "id": "q1",
            "conversations": [
                {"from": "user", "value": "Picture 1: <img>a.png</img>\nwhat?"},
                {"from": "assistant", "value": "I see the cat", "look_at": LOOK},
            ],
        },
        {
            "id": "q2",
            "system": "Be brief.",
            "conversations": [
                {"from": "user", "value": "Picture 1: <img>b.jpg</img>\nwhere?"},
                {"from": "assistant", "value": ANSWER},
                {"from": "user", "value": "and?"},
                {"from": "assistant", "value": "no", "weight": 0},
            ],
        },
        {
            "id": "q3",
            "conversations": [{"from": "user", "value": "hello"}, {"from": "assistant", "value": "hi"}],
        },
    ],
    "llava": [
        {
            "id": "l1",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat?"},
                {"from": "gpt", "value": "I see the cat", "look_at": RELATION},
            ],
        },
        {
            "id": "l2",
            "image": ["a.png", "b.jpg"],
            "conversations": [
                {"from": "human", "value": "<image><image>\nboth?"},
                {"from": "gpt", "value": "yes"},
            ],
        },
    ],
    "sharegpt": [
        {
            "images": ["a.png"],
            "system": "x",
            "conversations": [
                {"from": "human", "value": "<image>what?"},
                {"from": "gpt", "value": "I see the cat", "look_at": LOOK},
            ],
        },
        {
            "videos": [{"frames": ["a.png", "a.png", "a.png", "a.png"], "fps": 2}],
            "conversations": [{"from": "human", "value": "<video>what?"}, {"from": "gpt", "value": "a film"}],
        },
    ],
    "openai": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what?"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png()}"}},
                    ],
                },
                {"role": "assistant", "content": "I see the cat", "loss_mask": 1},
            ]
        },
        {
            "images": ["b.jpg"],
            "messages": [
                {"role": "user", "content": "<image>where?"},
                {"role": "assistant", "content": '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}'},
            ],
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what?"}],
                },
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "I see the cat"}],
                    "look_at": LOOK,
                },
            ]
        },
    ],
    "alpaca": [
        {"instruction": "<image>what?", "output": "I see the cat", "images": ["a.png"], "look_at": LOOK},
        {
            "instruction": "say",
            "input": "it",
            "output": "yes",
            "system": "s",
            "history": [["a", "b"], ["c", "d"]],
        },
        {"query": "q", "response": "r"},
        {
            "instruction": "<image>where is <ref-object>?",
            "output": "<bbox>",
            "images": ["a.png"],
            "objects": {"ref": ["the cat"], "bbox": [[1, 2, 30, 15]]},
        },
    ],
}


class Data(Kind):
    name = "training data"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        from finetune.samples.source import read

        self._read = read
        pictures(world)
        self.tables: dict[str, Any] = {}

    def mutate(self, chance: random.Random) -> str:
        self.clean()
        form = chance.choice([*RECORDS])
        self.options = {
            "data_format": chance.choice(("auto", "auto", form)),
            "box_units": chance.choice((None, "pixels", "thousandths", "text")),
            "on_bad_sample": chance.choice(("error", "error", "drop")),
            "streaming": chance.random() < 0.15,
            "image_folder": self.world,
        }
        way = chance.random()
        if way < 0.03:
            return f"{form} {self._parquet(chance, form)}"
        if way < 0.05:
            return f"{form} {self._saved(chance, form)}"
        records = RECORDS[form]
        if way < 0.5:
            self.path = self.place / "data.json"
            wrapped = {"version": 1, "data": records} if chance.random() < 0.15 else records
            return f"{form} {self.json_or_bytes(wrapped, chance, self.path)}"
        self.path = self.place / "data.jsonl"
        made, done = changed(records, chance) if chance.random() < 0.85 else (records, [])
        made = made if isinstance(made, list) else [made]
        text = "\n".join(text_of(one, chance) for one in made)
        data, how = text.encode(errors="surrogatepass"), ""
        if not done:
            data, how = damaged(data, chance)
        if chance.random() < 0.03:
            data, how = (
                data.decode(errors="replace").encode(chance.choice(("utf-16", "utf-32", "gb18030"))),
                f"{how} encoded",
            )
        self.path.write_bytes(data)
        return f"{form} {'; '.join(map(str, done))} {how}"

    def _parquet(self, chance: random.Random, form: str) -> str:
        import pyarrow
        from pyarrow import parquet

        if form not in self.tables:
            file = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist(RECORDS[form][-1:]), file)
            self.tables[form] = file.getvalue()
        data, how = damaged(self.tables[form], chance)
        self.path = self.place / "data.parquet"
        self.path.write_bytes(data)
        return f"parquet {how}"

    def _saved(self, chance: random.Random, form: str) -> str:
        import datasets

        sound = self.world / f"saved-{form}"
        if not sound.is_dir():
            datasets.Dataset.from_list(RECORDS[form][-1:]).save_to_disk(str(sound))
        self.path = self.place / "saved"
        shutil.copytree(sound, self.path)
        file = chance.choice(sorted(self.path.iterdir()))
        if file.suffix == ".json":
            return f"{file.name} {self.json_or_bytes(json.loads(file.read_text()), chance, file)}"
        data, how = damaged(file.read_bytes(), chance, head=1000)
        file.write_bytes(data)
        return f"{file.name} {how}"

    def read(self) -> str | None:
        said: list[str] = []
        found = self._read(self.path, **self.options, workers=0, say=said.append)
        if any(len(line.encode("utf-8", "surrogatepass")) >= 2048 for line in said):
            return "a line of more than 2 kB"
        from tests.endurance.hostile import message_fault

        for line in said:
            if fault := message_fault(line):
                return f"said: {fault}"
        for index in range(len(found)):
            if fault := conversation_fault(found[index]):
                return fault
        return None


def conversation_fault(one: Any) -> str:
    """What no sound conversation has."""
    from finetune.samples.conversation import BoxRef, ImageRef, VideoRef

    if not one.turns or all(turn.role != "assistant" for turn in one.turns):
        return "no answer"
    for turn in one.turns:
        boxes = [
            box
            for part in turn.parts
            if isinstance(part, BoxRef) and part.key != "point_2d"
            for box in part.boxes
        ]
        boxes += [box for look in turn.look_at for end in look.ends for box in end]
        for x0, y0, x1, y1 in boxes:
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                return "a box outside its picture"
        for part in turn.parts:
            if isinstance(part, str):
                part.encode()
            if isinstance(part, ImageRef) and not (part.size_pixels and min(part.size_pixels) > 0):
                return "a picture without a size"
            if isinstance(part, VideoRef) and not all(map(math.isfinite, part.seconds)):
                return "a moment that is no number"
            if isinstance(part, BoxRef) and not 0 <= part.image < max(1, len(one.media)):
                return "a box in no picture"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def encoded_pictures() -> dict[str, bytes]:
    """One of each format and mode that Pillow writes."""
    noise = Image.effect_noise((37, 23), 60)
    colour = Image.merge("RGB", [noise, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), noise])
    grey16 = Image.fromarray(np.asarray(noise, np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: dict[str, bytes] = {}

    def save(name: str, picture: Image.Image, kind: str, **options: Any) -> None:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        made[name] = file.getvalue()

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        save(f"png {mode}", colour.convert(mode), "PNG", exif=exif)
    save("png 16", grey16, "PNG")
    save("png plain", colour, "PNG")
    save("png text", colour, "PNG", pnginfo=_text_chunks())
    save("png icc", colour, "PNG", icc_profile=b"\0" * 500)
    save("apng", colour, "PNG", save_all=True, append_images=[colour.rotate(90)])
    save("jpeg", colour, "JPEG", exif=exif)
    save("jpeg progressive", colour, "JPEG", progressive=True)
    save("jpeg cmyk", colour.convert("CMYK"), "JPEG")
    save("jpeg grey", noise, "JPEG")
    save("webp", colour, "WEBP", exif=exif)
    save("webp lossless", colour.convert("RGBA"), "WEBP", lossless=True)
    save("webp film", colour, "WEBP", save_all=True, append_images=[colour.rotate(90)])
    save("gif", colour.convert("P"), "GIF")
    save(
        "gif film",
        colour.convert("P"),
        "GIF",
        save_all=True,
        append_images=[colour.rotate(90).convert("P")],
        loop=0,
    )
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        save(f"tiff {compression}", colour, "TIFF", compression=compression, exif=exif)
    save("tiff group4", noise.convert("1"), "TIFF", compression="group4")
    save("tiff 16", grey16, "TIFF")
    save("tiff float", Image.fromarray(np.asarray(noise, np.float32) / 255), "TIFF")
    save("tiff cmyk", colour.convert("CMYK"), "TIFF")
    save("bmp", colour, "BMP")
    save("bmp P", colour.convert("P"), "BMP")
    save("ico", colour, "ICO")
    save("ppm", colour, "PPM")
    save("tga", colour, "TGA")
    save("pcx", colour, "PCX")
    save("jp2", colour, "JPEG2000")
    save("dds", colour, "DDS")
    save("avif", colour, "AVIF")
    return made


def _text_chunks() -> Any:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 300, zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>', zip=True)
    return info


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Pictures(Kind):
    name = "pictures"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        from finetune.samples import images

        self.images, self.sound = images, encoded_pictures()
        hostile_names(world)

    def mutate(self, chance: random.Random) -> str:
        self.clean()
        self.path = self.place / "mutant.png"
        name = chance.choice([*self.sound])
        content = self.sound[name]
        way = chance.random()
        if way < 0.01:
            chosen = chance.choice(
                (
                    "fifo.png",
                    "loop.png",
                    "zero.png",
                    "folder.png",
                    "empty.png",
                    "a\0b",
                    "x" * 5000,
                    "\x1b[2J.png",
                )
            )
            self.path = self.world / chosen
            return f"{chosen[:30]!r}"
        if way < 0.25 and content.startswith(b"\x89PNG"):
            content, how = self._png(content, chance)
        elif way < 0.3:
            content, how = self._bomb(chance)
        elif way < 0.4:
            content, how = self._size(name, content, chance)
        else:
            content, how = damaged(content, chance, [*self.sound.values()], head=120)
        self.path.write_bytes(content)
        return f"{name} {how}"

    def _png(self, content: bytes, chance: random.Random) -> tuple[bytes, str]:
        """Sound checksums around unsound chunks."""
        chunks, at = [], 8
        while at < len(content):
            (length,) = struct.unpack(">I", content[at : at + 4])
            chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
            at += 12 + length
        how = chance.choice(("header", "header", "order", "extra", "data", "twice"))
        place = chance.randrange(len(chunks))
        kind, data = chunks[place]
        if how == "header":
            values = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            field = chance.randrange(7)
            values[field] = (
                chance.choice((0, 1, 2, 3, 4, 7, 16, 255))
                if field > 1
                else chance.choice((0, 1, 9_999, 60_000, 2**31 - 1, 2**32 - 1))
            )
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *values))
        elif how == "order":
            chance.shuffle(chunks)
        elif how == "extra":
            extra = (
                (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n exif\n 9\n" + b"41" * 9)),
                (b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * 80_000_000)),
                (b"iCCP", b"p\0\0" + zlib.compress(b"\0" * 80_000_000)),
                (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x tiff:Orientation='6'/>")),
                (b"eXIf", bytes(chance.randrange(256) for _ in range(40))),
                (b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\x06\0\0\0\0\0\0\0"),
                (b"acTL", struct.pack(">II", chance.choice((0, 2, 2**31)), 0)),
                (b"PLTE", b"\0" * chance.choice((0, 1, 3, 900))),
                (b"tRNS", b"\0" * chance.choice((0, 1, 300))),
            )
            chunks.insert(chance.randrange(1, len(chunks) + 1), chance.choice(extra))
        elif how == "data":
            chunks[place] = (kind, damaged(data, chance)[0])
        else:
            chunks.insert(place, (kind, data))
        return content[:8] + b"".join(chunk(kind, data) for kind, data in chunks), f"png {how}"

    def _bomb(self, chance: random.Random) -> tuple[bytes, str]:
        """Small files of large pictures."""
        side = chance.choice((9_000, 10_001, 30_000, 65_535, 2**20))
        width, height = chance.choice(((side, side), (side, 1), (1, side), (side, 300)))
        if chance.random() < 0.5:
            rows = zlib.compressobj(9)
            raw = (
                b"".join(rows.compress(b"\0" * (width // 8 + 1)) for _ in range(min(height, 3_000)))
                + rows.flush()
            )
            head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
            made = chunk(b"IHDR", head) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")
            return b"\x89PNG\r\n\x1a\n" + made, f"bomb {width}x{height}"
        wide, high = min(width, 65_535), min(height, 65_535)
        gif = b"GIF89a" + struct.pack("<HHBBB", wide, high, 0xF0, 0, 0) + b"\0" * 6
        frame = b"," + struct.pack("<HHHHB", 0, 0, wide, high, 0) + b"\x02\x02\x4c\x01\0"
        return gif + frame * chance.choice((1, 3, 2_000)) + b";", f"gif bomb {wide}x{high}"

    def _size(self, name: str, content: bytes, chance: random.Random) -> tuple[bytes, str]:
        """Wherever 37 or 23 stands, another number."""
        fresh = chance.choice((0, 1, 22, 38, 255, 9_000, 20_000, 32_768, 65_535, 2**31 - 1))
        layouts = [layout for layout in ("<H", ">H", "<I", ">I") if fresh < 256 ** struct.calcsize(layout)]
        chance.shuffle(layouts)
        for layout in layouts:
            for size in (37, 23):
                needle = struct.pack(layout, size)
                places = [at for at in range(len(content)) if content.startswith(needle, at)]
                if places:
                    at = chance.choice(places)
                    return content[:at] + struct.pack(layout, fresh) + content[
                        at + len(needle) :
                    ], f"size {size} → {fresh}"
        return content, "as it is"

    def read(self) -> str | None:
        opened = told = None
        refused: BaseException | None = None
        sources: list[Any] = [self.path]
        if os.path.isfile(self.path) and self.path.parent == self.place:
            sources.append(self.path.read_bytes())
        for source in sources:
            try:
                told = self.images.size_of(source)
            except ValueError as error:
                refused = error
            try:
                opened = self.images.open_image(source)
            except ValueError as error:
                refused = error
            if opened is not None and told is not None and opened.size != told:
                return "the size of the header is not that of the picture"
            if opened is not None and told is None:
                return "a picture opens whose size is refused"
            if opened is not None and (
                opened.mode != "RGB" or not 0 < opened.size[0] * opened.size[1] <= self.images.MAX_PIXELS
            ):
                return f"a picture of mode {opened.mode} or another size"
        if refused is not None:
            raise refused
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Probe files
# ---------------------------------------------------------------------------------------------------------------------

PROBES = {
    "version": 1,
    "probes": [
        {
            "id": "pearl-1",
            "group": "sphere-building",
            "images": ["a.png"],
            "question": "这座塔是什么?",
            "answer": "东方明珠",
            "foil": "广州塔",
            "regions": {"spheres": [[4, 3, 10, 12], [12, 3, 20, 12]], "body": [[3, 1, 22, 18]]},
            "phrases": {"东方明珠": "spheres"},
            "relation": None,
        },
        {
            "id": "cat-2",
            "group": "retention",
            "images": ["a.png", "b.jpg"],
            "question": "<image><image> Is the cat on the table?",
            "answer": ["yes", "Yes, it is"],
            "foil": "no",
            "regions": {"cat": [[1.5, 2, 9, 9.5]], "table": [[0, 0, 40, 20]]},
            "phrases": {"cat": "cat"},
            "relation": {"phrase": "on", "subject": "cat", "object": "table"},
        },
        {
            "id": "plain-3",
            "group": "neighbour",
            "images": ["b.jpg"],
            "question": "what?",
            "answer": "a thing",
        },
    ],
}


class ProbeFiles(Kind):
    name = "probe files"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        from diagnostics.records import probes
        from finetune.corrective import probe_file

        self.probes, self.writer = probes, probe_file
        pictures(world)
        self.path = world / "probes.json"

    def mutate(self, chance: random.Random) -> str:
        done = self.json_or_bytes(PROBES, chance, self.path)
        self.clean()
        shutil.copyfile(self.path, self.place / "probes.json")
        return done

    def read(self) -> str | None:
        self.probes.readable_probes(self.path) if self.path.stat().st_size % 2 else None
        found = self.probes.read_probes(self.path)
        content = json.loads(self.path.read_text(encoding="utf-8-sig"))
        if self.writer.faults(content, self.path.parent):
            return f"the writer's check refuses it: {self.writer.faults(content, self.path.parent)[0][:80]}"
        ids = [one.id for one in found]
        if len(set(ids)) < len(ids):
            return "an id twice"
        for one in found:
            for text in (
                one.id,
                one.group,
                one.question,
                *one.spellings,
                *([] if one.foil is None else [one.foil]),
            ):
                if not isinstance(text, str) or not text.strip():
                    return "a text that is none"
            size = self.probes.open_image(one.images[0]).size
            for boxes in one.regions.values():
                for x0, y0, x1, y1 in boxes:
                    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]) or isinstance(x0, bool):
                        return "a region outside its picture"
            if not set(one.phrases.values()) <= set(one.regions):
                return "a phrase of no region"
            hash(one.main_region)
        for probe in found:
            text = json.dumps(self.probes._entry(probe, self.path.parent))
            if (
                "\\ud8" in text
                and "\\udc" not in text
                and "\\ude" not in text
                and "\\udd" not in text
                and "\\udf" not in text
            ):
                return "half of a pair"
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


def safetensors_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    from safetensors.numpy import save

    return save(arrays, metadata)


class Records(Kind):
    name = "records"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        from safetensors import safe_open

        from diagnostics.records.record import AttentionRecord
        from tests.diagnostics.show_samples import probes, records

        self.type = AttentionRecord
        made = records(probes(world / "probes", per_group=1), 10)["sphere-building-0"]
        made.save(world / "sound.safetensors")
        self.sound = (world / "sound.safetensors").read_bytes()
        with safe_open(world / "sound.safetensors", framework="numpy") as file:
            self.header = json.loads(file.metadata()["attention_record"])
            self.arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.path = self.place / "record.safetensors"

    def mutate(self, chance: random.Random) -> str:
        self.clean()
        way = chance.random()
        if way < 0.3:
            content, how = damaged(self.sound, chance, head=4_000)
        elif way < 0.45:
            length = int.from_bytes(self.sound[:8], "little")
            head = json.loads(self.sound[8 : 8 + length])
            made, done = changed(head, chance)
            text = text_of(made, chance, ascii_only=True).encode()
            content, how = (
                len(text).to_bytes(8, "little") + text + self.sound[8 + length :],
                f"tensors: {'; '.join(map(str, done))}",
            )
        else:
            header, done = changed(self.header, chance) if chance.random() < 0.7 else (self.header, [])
            arrays = dict(self.arrays)
            if not done or chance.random() < 0.2:
                name = chance.choice([*arrays])
                arrays[name], way_of = reshaped(arrays[name], chance)
                done.append(f"{name} {way_of}")
                if chance.random() < 0.1:
                    del arrays[name]
            content = safetensors_bytes(
                arrays, {"attention_record": text_of(header, chance, ascii_only=True)}
            )
            how = "; ".join(map(str, done))
        self.path.write_bytes(content)
        return how

    def read(self) -> str | None:
        record = self.type.load(self.path)
        record.save(self.world / "again.safetensors")
        again = self.type.load(self.world / "again.safetensors")
        if not np.array_equal(again.rows, record.rows) or again.tokens != record.tokens:
            return "saved again it is another"
        if not all(np.isfinite(one).all() for one in record.region_mass.values()):
            return "a region's mass that is no number"
        cells = len(record.image_tokens[0].cell_boxes_pixels) if record.image_tokens else 1
        for named, most in (
            (record.region_mass, 1.01),
            (record.random_mass, cells),
            (record.salient_mass, cells),
            (record.region_mass_without_sinks, 1.01),
        ):
            for mass in named.values():
                if mass.min() < 0 or mass.max() > most:
                    return f"a region's mass outside 0 to {most}"
        if (
            not np.isfinite(record.visual_share).all()
            or record.visual_share.min() < 0
            or record.visual_share.max() > 1.01
        ):
            return "a share of the picture outside 0 to 1"
        for image in record.image_tokens:
            boxes = image.cell_boxes_pixels
            if (boxes[:, 2] < boxes[:, 0]).any() or (boxes[:, 3] < boxes[:, 1]).any():
                return "a cell whose corners are swapped"
            if len(set(image.positions.tolist())) < len(image.positions):
                return "a position twice"
        for query in record.queries:
            if not 0 <= query.position < len(record.tokens):
                return "a query at no token"
        return None


def reshaped(array: np.ndarray, chance: random.Random) -> tuple[np.ndarray, str]:
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "flat": lambda one: one.reshape(-1),
        "cut": lambda one: one[..., :-1],
        "deeper": lambda one: one[None],
        "half": lambda one: one.astype(np.float16),
        "double": lambda one: one.astype(np.float64),
        "whole": lambda one: one.astype(np.int64) * 1000,
        "nan": lambda one: one.astype(np.float32) * np.nan,
        "one nan": lambda one: np.where(
            np.arange(one.size).reshape(one.shape) == 0, np.nan, one.astype(np.float32)
        ),
        "empty": lambda one: one[:0],
        "negative": lambda one: -one,
        "large": lambda one: one.astype(np.float64) * 1e30,
        "turned": lambda one: one[..., ::-1],
        "transposed": lambda one: one.T,
        "truths": lambda one: one.astype(bool),
    }
    name = chance.choice([*ways])
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(ways[name](array)), name


# ---------------------------------------------------------------------------------------------------------------------
# Settings: DeepSpeed's files, run.yaml
# ---------------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


class DeepSpeedFiles(Kind):
    name = "deepspeed"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        from finetune.flags import deepspeed_file
        from finetune.flags.parse import default_values

        self.file = deepspeed_file
        self.given = {
            **default_values(),
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_grad_norm": 1.0,
            "learning_rate": 1e-5,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-8,
            "weight_decay": 0.0,
            "bf16": False,
            "fp16": False,
        }
        self.sound = [
            json.loads((ROOT / name).read_text()) for name in ("ds_config_zero2.json", "ds_config_zero3.json")
        ]
        self.sound.append(
            {
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 1.0,
                "optimizer": {
                    "type": "AdamW",
                    "params": {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
                },
                "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
            }
        )
        self.path = self.place / "ds.json"

    def mutate(self, chance: random.Random) -> str:
        self.clean()
        self.inline = chance.random() < 0.1
        return self.json_or_bytes(chance.choice(self.sound), chance, self.path)

    def read(self) -> str | None:
        value = str(self.path)
        if self.inline:
            value = self.path.read_bytes().decode("utf-8", "replace")
            if "\0" in value or not value.startswith("{"):
                return None
        faults = list(self.file.faults(value, self.given))
        if faults:
            raise ValueError("\n".join(faults))
        list(self.file.remarks(value, self.given))
        content = json.loads(self.path.read_bytes())
        if any(
            isinstance(value, str) and value != "auto" and value.strip("-").isdigit()
            for value in content.get("zero_optimization", {}).values()
        ):
            return "a number given as text"
        return None


class RunFiles(Kind):
    name = "run.yaml"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        from finetune.flags import run_file
        from finetune.flags.parse import parse

        self.parse, self.flags_of = parse, run_file.flags_of
        (world / "data.json").write_text("[]")
        self.sound = {
            "model_name_or_path": str(world),
            "data_path": str(world / "data.json"),
            "use_lora": True,
            "lora_r": 8,
            "corrective_data": [f"{world / 'data.json'}:0.3"],
            "learning_rate": 1e-4,
            "output_dir": str(world / "out"),
            "max_steps": 5,
            "bf16": False,
            "save_strategy": "no",
            "lr_scheduler_kwargs": {"num_cycles": 1},
            "lora_target_modules": ["q_proj", "v_proj"],
            "report_to": "none",
            "weight_decay": 0.1,
        }
        self.path = self.place / "run.yaml"

    def mutate(self, chance: random.Random) -> str:
        import yaml

        self.clean()
        self.whole = chance.random() < 0.12  # all of parsing takes a tenth of a second
        way = chance.random()
        if way < 0.4:
            return self.json_or_bytes(self.sound, chance, self.path)
        text = yaml.safe_dump(self.sound, sort_keys=False)
        if way < 0.6:
            lines = text.splitlines()
            extra = chance.choice(
                (
                    "a: &a [1]\nb: *a",
                    "? [1, 2]\n: 3",
                    "learning_rate: 1e-4",
                    "max_steps: 0x10",
                    "max_steps: 1_000",
                    "max_steps: 1:30",
                    "use_lora: yes",
                    "use_lora: on",
                    "lora_r: !!python/object/apply:os.system ['true']",
                    "data_path: !!binary aGVsbG8=",
                    "seed: 2026-13-45",
                    "seed: 2026-01-01",
                    "<<: {seed: 3}",
                    "seed: .nan",
                    "learning_rate: .inf",
                    "seed: ~",
                    "--- \nseed: 1",
                    "%YAML 9.9",
                    "\tseed: 1",
                    "seed: " + "[" * 20_000,
                    "seed: {" * 500,
                    "seed: |\n  " + "x" * 100_000,
                    "\x1b[2J: 1",
                    '"\\x1b[2Jred": 1',
                    'output_dir: "\\x1b[31m"',
                    'seed: "\\ud800"',
                    "seed: !<tag:yaml.org,2002:int> x",
                    "config: run.yaml",
                    "seed: " + "9" * 5_000,
                    "!!set {a, b}",
                    "!!omap [a: 1]",
                    "seed: -1",
                    "max_steps: 1.5",
                    "lora_r: '8'",
                    "lora_r: true",
                )
            )
            lines.insert(chance.randrange(len(lines) + 1), extra)
            self.path.write_text("\n".join(lines))
            return extra[:60]
        content, how = damaged(text.encode(), chance)
        self.path.write_bytes(content)
        return how

    def read(self) -> str | None:
        if self.whole:
            self.parse(["--config", str(self.path)])
        else:
            self.flags_of(str(self.path))
        return None


# ---------------------------------------------------------------------------------------------------------------------
# What runs left and read back
# ---------------------------------------------------------------------------------------------------------------------


class States(Kind):
    """A run's folder: run.json, checkpoints' marks, calibration, steps' marks, comparison, look.json, curve's files."""

    name = "run state"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        import torch
        from safetensors.torch import save_file

        from diagnostics.probing.layer_choice import Calibration
        from diagnostics.records.archive import RecordArchive
        from diagnostics.records.measurement_plan import WATCH
        from finetune.model import look_file
        from finetune.training import run_folder
        from tests.diagnostics.show_samples import probes, records

        self.sound = world / "sound"
        self.marks = {
            "learning_rate": 1e-3,
            "lora_target_modules": ["w1"],
            "bf16": True,
            "data_path": "/x/data.json",
            "corrective_data /x/t.json": {"share": 0.3, "repeat": None},
            "samples a step": 8,
        }
        checkpoint = self.sound / "checkpoint-5"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(
            json.dumps(
                {"global_step": 5, "max_steps": 10, "epoch": 1.0, "log_history": [{"loss": 1.0, "step": 1}]}
            )
        )
        torch.save({}, checkpoint / "optimizer.pt")
        save_file({"w": torch.zeros(5, 3)}, checkpoint / "adapter_model.safetensors")
        (checkpoint / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "Qwen/Qwen-VL-Chat"})
        )
        (checkpoint / "adapter_base.json").write_text(json.dumps({"version": 1, "fingerprint": "ab" * 32}))
        run_folder.write_run(self.sound, self.marks, finished=False)
        run_folder.mark_complete(checkpoint, processes=1)
        look_file.write(self.sound, (1, 2), ["ab" * 32], weight=0.5, loss="mass")
        of = probes(world / "probes", per_group=1)
        self.plan = WATCH
        self.ids = [one.id for one in of]
        self.archive = lambda place: RecordArchive(
            place / "attention", self.ids, (1, 3), "run", {"name": "n"}
        )
        self.archive(self.sound).save(0, records(of, 0), WATCH)
        Calibration(
            (1, 3),
            ((1, 0), (3, 1)),
            True,
            ("p1",),
            (1.0, 2.0, None, 3.0),
            (1.0, 1.0, None, 1.0),
            (0.1, 0.01, None, 0.2),
            "why",
        ).save(self.sound / "attention" / "calibration.json")
        self._comparison(world)
        (self.sound / "data_fraction.json").write_text(
            json.dumps({"version": 1, "sources": {"/x/t.json": {"samples": 10, "trained": 5}}})
        )
        from diagnostics import inspect
        from diagnostics.records import architectures
        from tests.finetune.families.tiny_families import ALL

        folder = ALL["qwen-vl"].write(world / "model")
        place = self.sound / "architecture.json"
        architectures.keep(place, inspect._inspected(str(folder), 100, (40, 20)))
        self.names = [path.relative_to(self.sound) for path in sorted(self.sound.rglob("*.json"))]
        self.begin = lambda folder: run_folder.begin(
            folder, self.marks, resume=None, overwrite=False, world_size=1, deepspeed=False
        )
        from finetune import folder_lock

        self.release = folder_lock.release_all

    def _comparison(self, world: Path) -> None:
        from diagnostics.compare import main
        from tests.diagnostics.show_samples import run_folder

        attention = run_folder(world / "compared", per_group=2, guards=1)
        steps = ["--before", str(attention / "step-000000"), "--after", str(attention / "step-000010")]
        main([*steps, "--output_dir", str(world / "compared")])
        (self.sound / "comparison").mkdir(exist_ok=True)
        self.asked = [
            one["id"]
            for one in json.loads((world / "compared" / "comparison" / "comparison.json").read_text())[
                "probes"
            ]
        ]
        shutil.copyfile(
            world / "compared" / "comparison" / "comparison.json",
            self.sound / "comparison" / "comparison.json",
        )
        shutil.copyfile(attention / "probes.json", self.sound / "attention" / "probes.json")

    def mutate(self, chance: random.Random) -> str:
        self.clean()
        self.run = self.place / "run"
        shutil.copytree(self.sound, self.run)
        name = chance.choice(self.names)
        path = self.run / name
        way = chance.random()
        if way < 0.02:
            path.unlink()
            how = chance.choice(("pipe", "loop", "zero", "folder", "gone"))
            if how == "pipe":
                os.mkfifo(path)
            elif how == "folder":
                path.mkdir()
            elif how != "gone":
                path.symlink_to(path.name if how == "loop" else "/dev/zero")
            return f"{name}: {how}"
        return f"{name}: {self.json_or_bytes(json.loads(path.read_text()), chance, path)}"

    def read(self) -> str | None:
        from diagnostics import curve
        from diagnostics.comparison.curve import CurvePoint, curve_of
        from diagnostics.probing.layer_choice import Calibration
        from diagnostics.records import architectures
        from diagnostics.records.archive import begun_there, load_step
        from finetune import export
        from finetune.model import look_file
        from finetune.training import model_card
        from tests.endurance.hostile import message_fault

        refused: list[BaseException] = []

        def tried(work: Callable[[], Any]) -> Any:
            try:
                return work()
            except (ValueError, OSError) as error:
                refused.append(error)
                return None

        try:
            tried(lambda: self.begin(self.run))
        finally:
            self.release()
        tried(lambda: export.history_of(self.run / "checkpoint-5"))
        looked = tried(lambda: look_file.supervised_of(self.run))
        chosen = tried(lambda: Calibration.load(self.run / "attention" / "calibration.json"))
        archive = self.archive(self.run)
        tried(lambda: archive.shortfall(0, self.plan))
        tried(lambda: begun_there(self.run / "attention"))
        tried(lambda: load_step(self.run / "attention", 0))
        tried(lambda: model_card.write(self.run / "checkpoint-5", run=self.run, family="qwen-vl", step=None))
        tried(lambda: architectures.kept(self.run / "architecture.json"))
        tried(lambda: curve._counts(self.run))

        def curved() -> None:
            content = curve.parsed_file(self.run / "comparison" / "comparison.json", "comparison")
            curve.check_comparison(content, "comparison.json")
            points = [
                CurvePoint(one, 0, int(10 * one), 10, content["after"]["step"], content, "x")
                for one in (0.5, 1.0)
            ]
            curve_of(points, dict.fromkeys(self.asked, "picture"))

        tried(curved)
        if looked is not None and not all(type(one) is int for one in looked.layers):
            return "a layer that is no whole number"
        if chosen is not None and (fault := calibration_fault(chosen)):
            return fault
        if refused:
            raise next((error for error in refused if message_fault(str(error))), refused[0])
        return None


def calibration_fault(chosen: Any) -> str:
    if not all(type(one) is int and one >= 0 for one in chosen.layers) or not chosen.layers:
        return "a key layer that is no number"
    if not all(type(layer) is int and type(head) is int for layer, head in chosen.heads):
        return "a head that is no number"
    if (
        not all(isinstance(one, str) for one in chosen.probes)
        or not isinstance(chosen.chosen, bool)
        or not isinstance(chosen.why, str)
    ):
        return "a calibration of other types"
    numbers = (*chosen.enrichment, *chosen.by_chance, *chosen.p_adjusted)
    return (
        ""
        if all(one is None or (type(one) in (int, float) and math.isfinite(one)) for one in numbers)
        else "an enrichment that is no number"
    )


CHEAP: dict[str, type[Kind]] = {
    "data": Data,
    "pictures": Pictures,
    "probes": ProbeFiles,
    "records": Records,
    "deepspeed": DeepSpeedFiles,
    "run": RunFiles,
    "state": States,
}
