"""Metadata tables beside images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pictures import png

from wcl_ray.config import DataConfig

from .expected import Input, Made, Read, refused

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
