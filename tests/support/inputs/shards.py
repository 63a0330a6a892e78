"""WebDataset shards."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from pictures import png

from wcl_ray.config import DataConfig

from .expected import Input, Made, Read, refused


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
