"""A table of what people bring: a name, what is made, and what must come out.

Add a row to ``INPUTS``: a function that makes something in a folder and returns the options of the
data (or the folder), and what must come out of it. An input ends in rows or in one line that names
the file, never in a traceback; :mod:`test_inputs` runs them all.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pictures import png
from PIL import Image

from wcl_ray.config import DataConfig

Made = DataConfig | Path


@dataclass(frozen=True)
class Read:
    """Rows come out.

    Attributes:
        rows: how many, those with faults included.
        faults: name of an image → part of the reason.
        values: column → its values, sorted by the image's id or name.
        notes: parts of the warnings.
    """

    rows: int
    faults: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """One line comes out that holds these parts."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class Input:
    name: str
    make: Callable[[Path], Made]
    expected: Read | Refused


def refused(*parts: str) -> Refused:
    return Refused(parts)


# --- images -------------------------------------------------------------------------------------


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 6 % 256, y * 10 % 256, (x + y) * 4 % 256], axis=2).astype(np.uint8)


RGB = Image.fromarray(gradient())
TURNED = Image.Exif()
TURNED[0x0112] = 6


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def one(content: bytes, name: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder

    return make


def picture(name: str, file: str, kind: str, source: Image.Image = RGB, **options: Any) -> Input:
    return Input(name, one(encoded(source, kind, **options), file), Read(1))


def broken(name: str, file: str, content: bytes, reason: str = "") -> Input:
    return Input(name, one(content, file), Read(1, {file: reason}))


MOVING = {"save_all": True, "append_images": [Image.fromarray(255 - gradient())]}
GREY_16 = Image.fromarray((np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16))
CLEAR = Image.fromarray(np.dstack([gradient(), gradient()[..., 0]]))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
PNG, JPEG = encoded(NOISE, "PNG"), encoded(NOISE, "JPEG")

IMAGES = [
    picture("jpeg", "a.jpg", "JPEG"),
    picture("jpeg in grey", "a.jpeg", "JPEG", RGB.convert("L")),
    picture("jpeg in cmyk", "a.JPG", "JPEG", RGB.convert("CMYK")),
    picture("progressive jpeg", "a.jpe", "JPEG", progressive=True),
    picture("jpeg turned by exif", "a.jpg", "JPEG", exif=TURNED),
    picture("jpeg as a browser saves it", "a.jfif", "JPEG"),
    picture("png", "a.png", "PNG"),
    picture("png of 1 bit", "a.png", "PNG", RGB.convert("1")),
    picture("png of 8 bits in grey", "a.png", "PNG", RGB.convert("L")),
    picture("png of 16 bits", "a.png", "PNG", GREY_16),
    picture("png with a palette", "a.png", "PNG", RGB.quantize(7)),
    picture("png with alpha", "a.png", "PNG", CLEAR),
    picture("moving png", "a.png", "PNG", **MOVING),
    picture("webp", "a.webp", "WEBP"),
    picture("lossless webp with alpha", "a.webp", "WEBP", CLEAR, lossless=True),
    picture("moving webp", "a.webp", "WEBP", **MOVING),
    picture("gif", "a.gif", "GIF"),
    picture("moving gif", "a.gif", "GIF", **MOVING),
    picture("bmp", "a.bmp", "BMP"),
    picture("tiff", "a.tif", "TIFF"),
    picture("tiff of 16 bits", "a.tiff", "TIFF", GREY_16),
    picture("tiff of floats", "a.tiff", "TIFF", RGB.convert("F")),
    picture("tiff in lab", "a.tiff", "TIFF", RGB.convert("LAB")),
    picture("portable pixmap", "a.ppm", "PPM"),
    picture("portable greymap", "a.pgm", "PPM", RGB.convert("L")),
    picture("avif", "a.avif", "AVIF"),
    picture("jpeg 2000", "a.jp2", "JPEG2000"),
    picture("a single pixel", "a.png", "PNG", Image.fromarray(gradient(1, 1))),
    picture("a line of 6000 pixels", "a.png", "PNG", Image.fromarray(gradient(1, 6000))),
    picture("png under the name of a jpeg", "a.jpg", "PNG"),
    broken("jpeg cut off", "a.jpg", JPEG[: len(JPEG) // 2]),
    broken("png cut off", "a.png", PNG[: len(PNG) // 2]),
    broken("webp cut off", "a.webp", encoded(NOISE, "WEBP")[:500]),
    broken("gif cut off", "a.gif", encoded(NOISE.quantize(200), "GIF")[:900]),
    broken("tiff cut off", "a.tif", encoded(NOISE, "TIFF")[:900]),
    broken("bmp cut off", "a.bmp", encoded(NOISE, "BMP")[:900]),
    broken("an empty image", "a.png", b"", "empty"),
    broken("text under the name of a jpeg", "a.jpg", b"hello, I am no image", "cannot identify"),
    broken("a web page under the name of a png", "a.png", b"<html>404</html>", "cannot identify"),
    broken("an svg under the name of a png", "a.png", b"<svg xmlns='x'/>", "cannot identify"),
]

# --- metadata tables ----------------------------------------------------------------------------

NAMES = ["1.png", "Käfer.png"]
CSV = "file_name,habitat,legs\n1.png,Grünland,6\nKäfer.png,Wald,8\n"
GOOD = Read(2, values={"habitat": ["Grünland", "Wald"], "legs": [6, 8]})


def with_table(
    content: bytes | str, name: str = "metadata.csv", encoding: str | None = None
) -> Callable[[Path], Made]:
    def make(folder: Path) -> DataConfig:
        for number, image in enumerate(NAMES):
            (folder / image).write_bytes(png(number))
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return DataConfig(path=str(folder), encoding=encoding)

    return make


def lines(*rows: Any) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


ROW_1, ROW_2 = {"file_name": "1.png", "legs": 6}, {"file_name": "Käfer.png", "legs": 8}

TABLES = [
    Input("csv", with_table(CSV), GOOD),
    Input("csv of windows with a mark", with_table(CSV.encode("utf-8-sig")), GOOD),
    Input("csv in utf-16 with a mark", with_table(CSV.encode("utf-16")), GOOD),
    Input("csv in utf-32 with a mark", with_table(CSV.encode("utf-32")), GOOD),
    Input(
        "csv in cp1252",
        with_table(CSV.encode("cp1252")),
        refused("metadata.csv", "line 2", "0xfc", "--data.encoding", "Grünland"),
    ),
    Input("csv in cp1252, told", with_table(CSV.encode("cp1252"), encoding="cp1252"), GOOD),
    Input(
        "csv in utf-16 without a mark",
        with_table("file_name,legs\n1.png,6\n".encode("utf-16-le")),
        refused("NUL", "utf-16-le"),
    ),
    Input("csv with semicolons", with_table(CSV.replace(",", ";")), GOOD),
    Input(
        "csv of a German Excel",
        with_table("sep=;\r\nfile_name;size\r\n1.png;1,5\r\nKäfer.png;2,25\r\n"),
        Read(2, values={"size": [1.5, 2.25]}),
    ),
    Input("csv with tabs", with_table(CSV.replace(",", "\t")), GOOD),
    Input("csv with the line ends of windows", with_table(CSV.replace("\n", "\r\n")), GOOD),
    Input("csv with the line ends of an old mac", with_table(CSV.replace("\n", "\r")), GOOD),
    Input("csv with empty columns", with_table(CSV.replace("\n", ",,\n")), GOOD),
    Input(
        "csv with a line end in a value",
        with_table('file_name,note\n1.png,"a\nb"\nKäfer.png,c\n'),
        Read(2, values={"note": ["a\nb", "c"]}),
    ),
    Input(
        "csv with integers beyond 64 bits",
        with_table(f"file_name,taxon\n1.png,{2**64 - 1}\nKäfer.png,{2**64 - 2}\n"),
        Read(2, values={"taxon": [2**64 - 1, 2**64 - 2]}),
    ),
    Input(
        "csv that is mixed far down",
        with_table("file_name,v,note\n" + f"1.png,7,{'.' * 9000}\n" * 200 + "Käfer.png,x,\n"),
        Read(201),
    ),
    Input(
        "ragged csv",
        with_table(CSV + "3.png,Moor\n"),
        refused("metadata.csv", "line 4 has 2 values, the header has 3"),
    ),
    Input(
        "csv with an open quote",
        with_table(CSV.replace("Grün", '"Grün')),
        refused("metadata.csv", "line 2", "quote"),
    ),
    Input("csv with a NUL", with_table(CSV.replace("Wald", "W\0")), refused("line 3", "NUL")),
    Input("csv with two like columns", with_table("file_name,x,x\n1.png,1,2\n"), refused("'x'")),
    Input("empty csv", with_table(""), refused("metadata.csv is empty")),
    Input("csv without rows", with_table("file_name,x\n"), refused("metadata.csv", "no rows")),
    Input("csv without names", with_table("name,x\n1.png,1\n"), refused("'file_name'")),
    Input(
        "csv of windows paths",
        with_table("file_name,x\n.\\1.png,1\n.\\no.png,2\n"),
        Read(2, {".\\no.png": "file not found"}, notes=("1 images that the metadata table",)),
    ),
    Input(
        "csv of accents as two characters",
        with_table(CSV.replace("Käfer", "Ka\u0308fer")),
        Read(2),
    ),
    Input(
        "csv with columns of our names",
        with_table("file_name,__id,__path,legs\n1.png,1,x,6\nKäfer.png,2,y,8\n"),
        Read(2, values={"legs": [6, 8]}, notes=("'__id'",)),
    ),
    Input("jsonl", with_table(lines(ROW_1, ROW_2), "metadata.jsonl"), Read(2)),
    Input(
        "jsonl with a mark",
        with_table(lines(ROW_1, ROW_2).encode("utf-8-sig"), "metadata.jsonl"),
        Read(2, values={"legs": [6, 8]}),
    ),
    Input(
        "jsonl in cp1252",
        with_table('{"file_name": "Käfer.png"}'.encode("cp1252"), "metadata.jsonl"),
        refused("metadata.jsonl", "line 1", "--data.encoding"),
    ),
    Input(
        "jsonl with one bad line",
        with_table(lines(ROW_1, '{"file_name": '), "metadata.jsonl"),
        refused("metadata.jsonl line 2", "not valid JSON"),
    ),
    Input(
        "jsonl nested deeply",
        with_table(lines('{"file_name": "1.png", "x": ' + "[" * 100_000), "metadata.jsonl"),
        refused("metadata.jsonl line 1", "nested too deeply"),
    ),
    Input(
        "jsonl with a key twice",
        with_table('{"file_name": "1.png", "x": 1, "x": 2}\n', "metadata.jsonl"),
        refused("metadata.jsonl line 1", "'x' occurs twice"),
    ),
    Input(
        "jsonl of lists",
        with_table("[1]\n", "metadata.jsonl"),
        refused("metadata.jsonl line 1", "not an object"),
    ),
    Input(
        "jsonl of two types",
        with_table(lines(ROW_1, ROW_2 | {"legs": "eight"}), "metadata.jsonl"),
        refused("column 'legs'", "line 2"),
    ),
]


def two_tables(first: str, second: str, name: str = "metadata.csv") -> Callable[[Path], Made]:
    def make(folder: Path) -> Path:
        for part, content in (("a", first), ("b", second)):
            (folder / part).mkdir()
            (folder / part / "1.png").write_bytes(png(1))
            (folder / part / name).write_text(content)
        return folder

    return make


TABLES += [
    Input(
        "numbers in one csv, text in another",
        two_tables("file_name,code\n1.png,007\n", "file_name,code\n1.png,A7\n"),
        Read(2, values={"code": ["007", "A7"]}),
    ),
    Input(
        "numbers in one jsonl, text in another",
        two_tables(
            lines({"file_name": "1.png", "code": 7}),
            lines({"file_name": "1.png", "code": "A7"}),
            "metadata.jsonl",
        ),
        refused("b/metadata.jsonl", "'code'", "string", "int64"),
    ),
    Input(
        "a column in one csv only",
        two_tables("file_name,code\n1.png,7\n", "file_name\n1.png\n"),
        Read(2, values={"code": [7, None]}),
    ),
]

# --- Parquet ------------------------------------------------------------------------------------


def parquet(*tables: dict[str, Any], damage: Callable[[bytes], bytes] | None = None) -> Any:
    def make(folder: Path) -> Path:
        for number, columns in enumerate(tables):
            start = 4 * number
            own = {"id": range(start, start + 4), "image": [png(start + i) for i in range(4)]}
            table = pa.table({k: v for k, v in (own | columns).items() if v is not None})
            path = folder / f"{number}.parquet"
            pq.write_table(table, path, row_group_size=2, compression="none", use_dictionary=False)
            if damage is not None and number == len(tables) - 1:
                path.write_bytes(damage(path.read_bytes()))
        return folder

    return make


def twice(folder: Path) -> Path:
    arrays = [pa.array([png(1)]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(arrays, ["image", "x", "x"]), folder / "0.parquet")
    return folder


def hive(folder: Path) -> Path:
    for species, year in (("Käfer%2FX", 7), ("__HIVE_DEFAULT_PARTITION__", 12)):
        part = folder / f"species={species}" / f"year={year}"
        part.mkdir(parents=True)
        pq.write_table(pa.table({"id": [year], "image": [png(year)]}), part / "0.parquet")
    return folder


def hive_splits(folder: Path) -> Path:
    for number, name in enumerate(("train", "test")):
        part = folder / f"split={name}"
        part.mkdir()
        pq.write_table(pa.table({"id": [number], "image": [png(number)]}), part / "0.parquet")
    return folder


def hive_ids(folder: Path) -> DataConfig:
    for number in (1, 2):
        part = folder / f"id={number}"
        part.mkdir()
        pq.write_table(pa.table({"image": [png(number)]}), part / "0.parquet")
    return DataConfig(path=str(folder), id="id")


def latin_text(_: bytes) -> bytes:
    values = pa.array([b"K\xe4fer"] * 4).view(pa.string())
    sink = io.BytesIO()
    pictures = {"id": range(4), "image": [png(i) for i in range(4)], "name": values}
    pq.write_table(pa.table(pictures), sink)
    return sink.getvalue()


def encrypted(content: bytes) -> bytes:
    return b"PARE" + content[4:-4] + b"PARE"


DECIMALS = [pa.array([1, 2, 3, 4], pa.decimal128(p, s)) for p, s in ((5, 1), (9, 2))]

PARQUET = [
    Input("parquet", parquet({"x": [1, 2, 3, 4]}), Read(4, values={"x": [1, 2, 3, 4]})),
    Input(
        "parquet with a broken footer",
        parquet({}, {}, damage=lambda c: c[:-60] + b"\xff" * 50 + c[-10:]),
        refused("1.parquet is not a readable Parquet file"),
    ),
    Input(
        "parquet cut off", parquet({}, {}, damage=lambda c: c[:900]), refused("1.parquet is not")
    ),
    Input("parquet without a byte", parquet({}, {}, damage=lambda c: b""), refused("1.parquet is")),
    Input("encrypted parquet", parquet({}, damage=encrypted), refused("0.parquet", "encrypted")),
    Input(
        "parquet with broken pages",
        parquet({}, {}, damage=lambda c: c[:4] + b"\xff" * 400 + c[404:]),
        refused("1.parquet: rows", "cannot be read"),
    ),
    Input(
        "parquet with text that is not UTF-8",
        parquet({}, damage=latin_text),
        refused("0.parquet", "UTF8"),
    ),
    Input("parquet with two like columns", twice, refused("0.parquet", "'x'")),
    Input(
        "text in one file, numbers in another",
        parquet({"x": [1, 2, 3, 4]}, {"x": list("abcd")}),
        refused("1.parquet: column 'x' is of type string", "int64"),
    ),
    Input("nothing in one file", parquet({"x": [None] * 4}, {"x": list("abcd")}), Read(8)),
    Input("decimals of two widths", parquet(*({"x": d} for d in DECIMALS)), Read(8)),
    Input(
        "categories and text",
        parquet({"x": pa.array(list("aabb")).dictionary_encode()}, {"x": list("abcd")}),
        Read(8),
    ),
    Input(
        "lists of two widths",
        parquet({"x": pa.array([[1]] * 4, pa.list_(pa.int32()))}, {"x": [[2]] * 4}),
        Read(8),
    ),
    Input(
        "lists of categories and of text",
        parquet(
            {"x": pa.array([["a"]] * 4, pa.list_(pa.dictionary(pa.int8(), pa.string())))},
            {"x": [["b"]] * 4},
        ),
        Read(8, values={"x": [["a"]] * 4 + [["b"]] * 4}),
    ),
    Input(
        "structs and text",
        parquet({"x": [{"a": 1}] * 4}, {"x": list("abcd")}),
        refused("1.parquet: column 'x'", "struct"),
    ),
    Input(
        "an extension type",
        parquet({"x": pa.array([b"0123456789abcdef"] * 4, pa.uuid())}),
        Read(4),
    ),
    Input(
        "columns called like our own",
        parquet({n: [1, 2, 3, 4] for n in ("__id", "bucket", "pixels", "feature", "__test")}),
        Read(4, values={"bucket": [1, 2, 3, 4], "pixels": [1, 2, 3, 4]}, notes=("'__id'",)),
    ),
    Input(
        "an id that is empty", parquet({"id": [1, None, 3, 4]}), refused("'id' is empty in row 1")
    ),
    Input(
        "folders of partitions as ids",
        hive_ids,
        refused("'id'", "id=", "leave --data.id out"),
    ),
    Input(
        "folders of partitions",
        hive,
        Read(2, values={"species": ["Käfer/X", None], "year": [7, 12]}),
    ),
]

# --- shards -------------------------------------------------------------------------------------


def tar(
    *members: tuple[str, bytes],
    damage: Callable[[bytes], bytes] | None = None,
    encoding: str = "utf-8",
    told: str | None = None,
) -> Callable[[Path], Made]:
    def make(folder: Path) -> DataConfig:
        sink = io.BytesIO()
        kind = tarfile.GNU_FORMAT
        with tarfile.open(fileobj=sink, mode="w", encoding=encoding, format=kind) as file:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        content = sink.getvalue()
        (folder / "a.tar").write_bytes(damage(content) if damage else content)
        return DataConfig(path=str(folder), encoding=told)

    return make


def second_tar() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tar(*PAIR[2:])(Path(folder))
        return (Path(folder) / "a.tar").read_bytes()


PAIR = (
    ("1.png", png(1)),
    ("1.json", b'{"legs": 6}'),
    ("2.png", png(2)),
    ("2.json", b'{"legs": 8}'),
)
WRONG = b"\xff" * 8
SHARDS = [
    Input("tar", tar(*PAIR), Read(2, values={"legs": [6, 8]})),
    Input("tar cut off", tar(*PAIR, damage=lambda c: c[:3000]), refused("a.tar", "tar shard")),
    Input(
        "tar with a damaged header",
        tar(*PAIR, damage=lambda c: c[:2560] + WRONG + c[2568:]),
        refused("a.tar", "checksum"),
    ),
    Input(
        "tar with absolute and climbing names",
        tar(("/etc/1.png", png(1)), ("../../2.png", png(2))),
        Read(2),
    ),
    Input(
        "tar with names in latin-1",
        tar(("Käfer.png", png(1)), ("2.png", png(2)), encoding="latin-1"),
        Read(2, {"a.tar/K\\xe4fer": "not UTF-8"}),
    ),
    Input(
        "tar with names in latin-1, told",
        tar(("Käfer.png", png(1)), ("2.png", png(2)), encoding="latin-1", told="latin-1"),
        Read(2),
    ),
    Input(
        "tar with text in latin-1",
        tar(("1.png", png(1)), ("1.txt", "Käfer".encode("latin-1"))),
        refused("a.tar: 1.txt", "0xe4", "--data.encoding"),
    ),
    Input(
        "tar with bad json",
        tar(*PAIR[:3], ("2.json", b"{")),
        refused("a.tar: 2.json is not valid JSON"),
    ),
    Input(
        "tar with json nested deeply",
        tar(PAIR[0], ("1.json", b'{"x": ' + b"[" * 100_000)),
        refused("a.tar: 1.json is not valid JSON"),
    ),
    Input(
        "tar with odd classes",
        tar(PAIR[0], ("1.cls", b"--5"), PAIR[2], ("2.cls", b"9" * 5000)),
        Read(2),
    ),
    Input(
        "tar with classes that are no plain numbers",
        tar(PAIR[0], ("1.cls", b"007"), PAIR[2], ("2.cls", b"1_000")),
        Read(2, values={"cls": ["007", "1_000"]}),
    ),
    Input("tar with classes", tar(*PAIR, ("2.cls", b"12\n")), Read(2, values={"cls": [None, 12]})),
    Input(
        "tar with a class of a part",
        tar(PAIR[0], ("1.x.cls", b"5")),
        Read(1, notes=("members .x.cls",)),
    ),
    Input("tars joined end to end", tar(*PAIR[:2], damage=lambda c: c + second_tar()), Read(2)),
    Input(
        "tar with json of a key twice",
        tar(PAIR[0], ("1.json", b'{"x": 1, "x": 2}')),
        refused("a.tar: 1.json", "'x' occurs twice"),
    ),
    Input(
        "tar with members that are not read",
        tar(PAIR[0], ("1.heic", b"x"), ("1.npy", b"x")),
        Read(1, notes=("members .heic, .npy",)),
    ),
]

# --- folders and paths --------------------------------------------------------------------------


def files(*names: str, within: str = "", path: str = "") -> Callable[[Path], Made]:
    """Images of these names in the folder ``within``; opened by ``path`` below the root."""

    def make(root: Path) -> DataConfig:
        for number, name in enumerate(names):
            target = root / within / name
            target.parent.mkdir(parents=True, exist_ok=True)
            image = target.suffix.lower() in (".png", ".jpg")
            target.write_bytes(png(number) if image else b"x")
        return DataConfig(path=f"{root}/{path or within}".rstrip("/"))

    return make


def labelled(make: Callable[[Path], Made]) -> Callable[[Path], Made]:
    def labelled_data(root: Path) -> DataConfig:
        made = make(root)
        assert isinstance(made, DataConfig)
        return DataConfig(path=made.path, label="label")

    return labelled_data


def latin_name(root: Path) -> Path:
    files("a.png", "b.png")(root)
    with open(os.fsencode(root) + b"/K\xe4fer.png", "wb") as stream:
        stream.write(png(3))
    return root


def latin_folder(root: Path) -> Path:
    files("a/1.png")(root)
    os.mkdir(os.fsencode(root) + b"/K\xe4fer")
    with open(os.fsencode(root) + b"/K\xe4fer/1.png", "wb") as stream:
        stream.write(png(3))
    return root


def latin_shard(root: Path) -> Path:
    with open(os.fsencode(root) + b"/K\xe4fer.tar", "wb") as stream:
        stream.write(b"")
    return root


def loop(root: Path) -> Path:
    files("a/1.png", "b/2.png")(root)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    return root


def dangling(root: Path) -> Path:
    files("a.png")(root)
    (root / "gone.png").symlink_to("/no/where.png")
    return root


def no_images(root: Path) -> Path:
    files("a.png")(root)
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "metadata.csv").write_text("file_name\na.png\nfolder.png\npipe.png\n")
    return root


ODD = "photos [2019]? *"
FOLDERS = [
    Input("a folder with brackets", files("1.png", within="photos [2019]"), Read(1)),
    Input("a folder with all of a glob's characters", files("1.png", within=ODD), Read(1)),
    Input("a file with brackets", files("1 [a].png", path="1 [a].png"), Read(1)),
    Input(
        "a glob in a folder with brackets",
        files("1.png", "2.png", "3.jpg", within="photos [2019]", path="photos [2019]/*.png"),
        Read(2),
    ),
    Input("a glob with brackets", files("1.png", "2.png", "3.png", path="[12].png"), Read(2)),
    Input(
        "a glob that names folders",
        files("2019/1.png", "2020/2.png", path="20*"),
        refused("no file matches, only folders do"),
    ),
    Input("classes in other scripts", files("カブトムシ/1.png", "Käfer ü/2.png"), Read(2)),
    Input("a name in latin-1", latin_name, Read(3, {"K\\xe4fer.png": "not UTF-8"})),
    Input("a folder's name in latin-1", latin_folder, Read(2, {"K\\xe4fer/1.png": "not UTF-8"})),
    Input("a shard's name in latin-1", latin_shard, refused("K\\xe4fer.tar", "not UTF-8")),
    Input("a link to a folder above", loop, Read(2, values={"label": ["a", "b"]})),
    Input("a link to nowhere", dangling, Read(2, {"gone.png": "file not found"})),
    Input(
        "a folder and a pipe for images",
        no_images,
        Read(3, {"folder.png": "not a regular file", "pipe.png": "not a regular file"}),
    ),
    Input(
        "images that are not read",
        files("a.png", "b.heic", "c.heic", "d.svg"),
        Read(1, notes=("2 .heic, 1 .svg", "convert")),
    ),
    Input("no image that is read", files("a.heic", "b.heic"), refused(".heic", "convert")),
    Input(
        "tables of other names",
        files("a.png", "labels.csv", "images.csv", "notes.txt"),
        Read(1, notes=("images.csv, labels.csv", "metadata.csv", "1 .txt")),
    ),
    Input(
        "train and val as classes",
        labelled(files("train/cat/1.png", "val/cat/2.png")),
        refused("train, val", "--data.eval-path"),
    ),
    Input(
        "train and val without a label",
        files("train/1.png", "val/2.png"),
        Read(2, notes=("train, val", "--data.eval-path")),
    ),
    Input(
        "train and test within longer names",
        labelled(files("train_images/1.png", "test_images/2.png")),
        refused("train_images, test_images", "/train_images --data.eval-path"),
    ),
    Input(
        "train and val in one folder",
        files("images/train/1.png", "images/val/2.png"),
        Read(2, notes=("images/train, images/val", "/images/train --data.eval-path")),
    ),
    Input(
        "train and val of a class in one folder",
        labelled(files("images/train/1.png", "images/val/2.png")),
        refused("/images/train --data.eval-path"),
    ),
    Input(
        "train and test as partitions",
        hive_splits,
        Read(2, notes=("split=train, split=test", "/split=train --data.eval-path")),
    ),
    Input(
        "train and test in Parquet",
        lambda root: (
            [
                pq.write_table(
                    pa.table({"id": [i], "image": [png(i)]}), root / f"{name}-0000.parquet"
                )
                for i, name in enumerate(("train", "test"))
            ]
            and root
        ),
        Read(2, notes=("train, test", "/train*' --data.eval-path")),
    ),
    Input(
        "sub-folders beside a table",
        lambda root: (files("more/2.png")(root), with_table(CSV)(root))[1],
        Read(2, notes=("sub-folders more",)),
    ),
    Input(
        "images that a table does not name",
        lambda root: (files("extra.png")(root), with_table(CSV)(root))[1],
        Read(2, notes=("1 images that the metadata table does not name",)),
    ),
]

INPUTS = [*IMAGES, *TABLES, *PARQUET, *SHARDS, *FOLDERS]
