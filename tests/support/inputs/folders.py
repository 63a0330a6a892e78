"""Folders and paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pictures import png

from wcl_ray.config import DataConfig

from .expected import Input, Made, Read, refused
from .parquet import hive_splits
from .tables import CSV, with_table


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
