"""WebDataset shards: tar files whose members share a key up to the first dot of their name."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings, ids_of
from wcl_ray.data.source import FAULT, ID, IMAGE, IMAGE_SUFFIXES, KEY, Files, Source, id_column
from wcl_ray.errors import UserError

ROWS = 512
LOOK = 50  # samples that tell the columns
Sample = dict[str, Any]


@dataclass(frozen=True)
class WebDatasetSource(Source):
    """See :class:`Source`. ``schema``: types of the metadata columns."""

    schema: pa.Schema = None

    def describe(self) -> str:
        count = len(self.files.paths)
        return f"{self.uri}: {count} WebDataset shard{'s' * (count > 1)}"

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        return self._read(columns, images=False)

    def images(self, columns: Sequence[str] = ()) -> Dataset:
        return self._read(columns, images=True)

    def _read(self, columns: Sequence[str], images: bool) -> Dataset:
        shards = [{"shard": i} for i in range(len(self.files.paths))]
        rows = ray.data.from_items(shards, override_num_blocks=min(len(shards), 1000))
        kwargs = {"source": self, "columns": tuple(columns), "images": images}
        return rows.map_batches(_read_shard, batch_size=1, batch_format="pyarrow", fn_kwargs=kwargs)


def open_files(files: Files, data: DataConfig) -> WebDatasetSource:
    """Open shards by the first samples of the first.

    Raises:
        UserError: no .tar file, no image in the first samples, a missing id column.
    """
    paths = tuple(p for p in files.paths if p.lower().endswith(".tar"))
    if not paths:
        raise UserError(
            f"data.path {files.uri} holds no .tar shard (compressed tars cannot be read)"
        )
    files = Files(files.uri, files.endpoint, files.root, paths)
    samples = list(itertools.islice(_samples(files, paths[0], images=False), LOOK))
    with_image = [s for s in samples if s["image_suffix"]]
    if not with_image:
        raise UserError(
            f"{paths[0]}: none of the first {len(samples)} samples holds an image "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    values: dict[str, list[Any]] = {}
    for row, sample in enumerate(samples):
        for name, value in sample["columns"].items():
            values.setdefault(name, [None] * len(samples))[row] = value
    schema = pa.schema([(name, _type(column)) for name, column in values.items()])
    own_id = id_column(data, schema, paths[0])
    names = tuple(name for name in schema.names if name != own_id)
    image = data.image or with_image[0]["image_suffix"]
    return WebDatasetSource(files, names, image, own_id, schema)


def _type(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()
    nested = pa.types.is_struct(kind) or pa.types.is_null(kind)
    return pa.string() if nested else kind


def _samples(files: Files, path: str, images: bool) -> Iterator[Sample]:
    """Samples of a shard in order; the bytes of images are skipped where they are not wanted."""
    try:
        with (
            files.fs.open_input_file(path) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,
        ):
            current: Sample | None = None
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if current is None or current["key"] != key:
                    if current is not None:
                        yield current
                    current = {"key": key, "columns": {}, "image": None, "image_suffix": ""}
                _add(current, tar, member, suffix.lower(), images)
            if current is not None:
                yield current
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a readable tar shard: {error}") from error


def _add(
    sample: Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, images: bool
) -> None:
    def content() -> bytes:
        file = tar.extractfile(member)
        return file.read() if file is not None else b""

    if suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
        sample["image_suffix"] = sample["image_suffix"] or suffix
        if images and sample["image"] is None:
            sample["image"] = content()
    elif suffix == "json":
        try:
            tree = json.loads(content())
        except ValueError as error:
            raise UserError(f"{member.name} is not valid JSON: {error}") from error
        sample["columns"].update(tree if isinstance(tree, dict) else {"json": tree})
    elif suffix in ("cls", "txt"):
        text = content().decode(errors="replace").strip()
        number = suffix == "cls" and text.lstrip("-").isdigit()
        sample["columns"][suffix] = int(text) if number else text


def _read_shard(
    shards: pa.Table, source: WebDatasetSource, columns: tuple[str, ...], images: bool
) -> Iterator[pa.Table]:
    for number in shards["shard"].to_pylist():
        path = source.files.paths[number]
        samples = _samples(source.files, path, images)
        while part := list(itertools.islice(samples, ROWS)):
            yield _table(part, source, columns, path, images)


def _table(
    samples: list[Sample],
    source: WebDatasetSource,
    columns: tuple[str, ...],
    path: str,
    images: bool,
) -> pa.Table:
    if source.id_column:
        ids, keys = ids_of(_column(samples, source.id_column, source, path), source.id_column, path)
    else:
        names = [f"{source.files.relative(path)}/{sample['key']}" for sample in samples]
        ids, keys = pa.array(hash_strings(names)), pa.array(names, pa.string())
    found: dict[str, Any] = {ID: ids, KEY: keys}
    if images:
        content = [sample["image"] for sample in samples]
        found[IMAGE] = pa.array(content, pa.large_binary())
        found[FAULT] = pa.array([None if c else "no image" for c in content], pa.string())
    return pa.table(found | {name: _column(samples, name, source, path) for name in columns})


def _column(samples: list[Sample], name: str, source: WebDatasetSource, path: str) -> pa.Array:
    kind = source.schema.field(name).type
    values = [sample["columns"].get(name) for sample in samples]
    if pa.types.is_string(kind):
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{path}: column {name!r} is not always of type {kind}: {error}") from error
