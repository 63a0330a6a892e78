"""Parquet files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pictures import png

from wcl_ray.config import DataConfig

from .expected import Input, Read, refused


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
