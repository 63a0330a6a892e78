"""WebDataset shards: tar files; members with the same name up to the first dot are one sample."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings, ids_of
from wcl_ray.data.sources.base import (
    FAULT,
    ID,
    IMAGE,
    KEY,
    READ_OPTIONS,
    Keep,
    Source,
    id_column,
    in_random_order,
    kept_rows,
)
from wcl_ray.data.sources.listing import IMAGE_SUFFIXES, Files, escaped, suffix_of
from wcl_ray.data.sources.tables import decode_text
from wcl_ray.errors import UserError, reading
from wcl_ray.registry import FORMATS
from wcl_ray.texts import unique_keys

ROWS = 512  # of an output table, at most
CHUNK = 16 * 2**20  # approximate bytes of an output table
SAMPLED = 50  # samples that define the columns
BUFFER = 8 * 2**20  # bytes per request to an object store
NOT_UTF8 = "its name in the shard is not UTF-8"
Sample = dict[str, Any]


@FORMATS.add("webdataset")
@dataclass(frozen=True)
class WebDatasetSource(Source):
    """Samples of tar shards, see :class:`Source`.

    Attributes:
        schema: types of the metadata columns.
        members: suffixes of the members that are the image, such as ``("jpg", "png")``.
    """

    schema: pa.Schema = None
    members: tuple[str, ...] = IMAGE_SUFFIXES

    def describe(self) -> str:
        count = len(self.files.paths)
        return f"{self.uri}: {count} WebDataset shard{'s' * (count > 1)}"

    @staticmethod
    def count(files: Files) -> int:
        return sum(suffix_of(p) == "tar" for p in files.paths)

    @staticmethod
    def open(files: Files, data: DataConfig) -> WebDatasetSource:
        """Open shards; the first samples of the first shard define the columns.

        Raises:
            UserError: no .tar file, no image in the first samples, several that may be the image,
                or a missing id column.
        """
        paths = tuple(p for p in files.paths if p.lower().endswith(".tar"))
        if not paths:
            raise UserError(
                f"data.path {files.uri} holds no .tar shard (compressed tars cannot be read)"
            )
        files = replace(files, paths=paths)
        samples = list(itertools.islice(_samples(files, paths[0], ()), SAMPLED))
        image, members = _image_members(samples, data.image, paths[0])
        values: dict[str, list[Any]] = {}
        for row, sample in enumerate(samples):
            for name, value in sample["columns"].items():
                values.setdefault(name, [None] * len(samples))[row] = value
        with reading(f"{paths[0]}: the names of the metadata"):
            schema = pa.schema([(name, _type(column)) for name, column in values.items()])
        key = id_column(data, schema, paths[0])
        names = tuple(name for name in schema.names if name != key)
        unread = sorted({suffix for sample in samples for suffix in sample["unread"]})
        notes = (f"not read in {paths[0]}: members .{', .'.join(unread)}",) if unread else ()
        return WebDatasetSource(
            files, names, image, key, schema=schema, members=members, notes=notes
        )

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        return self._read(columns, images=False)

    def images(
        self,
        columns: Sequence[str] = (),
        keep: Keep | None = None,
        seed: Sequence[int] | None = None,
    ) -> Dataset:
        return kept_rows(self._read(columns, images=True, seed=seed), keep)

    def _read(
        self, columns: Sequence[str], images: bool, seed: Sequence[int] | None = None
    ) -> Dataset:
        shards = [{"shard": i} for i in range(len(self.files.paths))]
        shards = in_random_order(shards, seed)
        rows = ray.data.from_items(shards, override_num_blocks=min(len(shards), 1000))
        kwargs = {"source": self, "columns": tuple(columns), "images": images}
        return rows.map_batches(_read_shard, batch_size=1, fn_kwargs=kwargs, **READ_OPTIONS)


def _image_members(
    samples: list[Sample], wanted: str | None, path: str
) -> tuple[str, tuple[str, ...]]:
    """Which member is the image: the given one, else one with a plain suffix (``jpg``, not
    ``mask.png``), else the only one. Returns a name to show, and the suffixes to read."""
    seen = list(dict.fromkeys(suffix for sample in samples for suffix in sample["suffixes"]))
    if not seen:
        raise UserError(
            f"{path}: none of the first {len(samples)} samples holds an image "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    if wanted is not None:
        if wanted.lower() not in seen:
            raise UserError(
                f"data.image {wanted!r} is not a member of the first samples of {path}; their "
                f"images end in: {', '.join(seen)}"
            )
        return wanted, (wanted.lower(),)
    plain = [suffix for suffix in seen if suffix in IMAGE_SUFFIXES]
    ambiguous = any(len(set(plain) & set(sample["suffixes"])) > 1 for sample in samples)
    if ambiguous or (not plain and len(seen) > 1):
        raise UserError(
            f"{path}: {', '.join(plain or seen)} may all be the images; choose one with "
            "--data.image"
        )
    return (plain or seen)[0], IMAGE_SUFFIXES if plain else tuple(seen)


def _type(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeError):
        return pa.string()
    nested = pa.types.is_struct(kind) or pa.types.is_null(kind)
    return pa.string() if nested else kind


def _samples(files: Files, path: str, wanted: tuple[str, ...]) -> Iterator[Sample]:
    """Samples of a shard in order: ``key``, ``columns``, ``image`` (bytes or None) and the
    ``suffixes`` of the image members.

    Args:
        wanted: suffixes of the members to read as the image. Others are skipped, on a local disk
            without reading them; an object store is read in one stream, since one request per
            member would take far longer.
    """
    local = isinstance(files.fs, pafs.LocalFileSystem)
    with _opened(files, path, local) as tar:
        current: Sample | None = None
        while True:
            with reading(path, "is not a readable tar shard (plain, not compressed)"):
                member = tar.next()
            if member is None:
                break
            tar.members = []  # type: ignore[attr-defined]  # or the list of members keeps growing
            if not member.isfile():
                continue
            folder, _, base = member.name.rpartition("/")
            if base.startswith("."):
                continue
            stem, _, suffix = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if current is None or current["name"] != key:
                if current is not None:
                    yield current
                current = {"name": key, "key": escaped(key), "columns": {}, "image": None}
                current |= {"suffixes": [], "unread": [], "fault": None}
                if escaped(key) != key:
                    current["fault"] = f"{NOT_UTF8}; give its encoding with --data.encoding"
            _add(current, tar, member, escaped(suffix).lower(), wanted, path, files.encoding)
        if current is not None:
            yield current


@contextmanager
def _opened(files: Files, path: str, local: bool) -> Iterator[tarfile.TarFile]:
    with reading(path):
        stream = files.fs.open_input_file(path) if local else files.fs.open_input_stream(path)
    with stream:
        with reading(path, "is not a readable tar shard (plain, not compressed)"):
            tar = tarfile.open(  # noqa: SIM115
                fileobj=stream,
                mode="r:" if local else "r|",
                bufsize=BUFFER,
                tarinfo=_Member,
                encoding=files.encoding or "utf-8",
                errors="surrogateescape",
                ignore_zeros=True,  # for concatenated tars
            )
        with tar:
            yield tar


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; tarfile would treat it as the end of the file."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            member = super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error
        if member.size < 0:  # tarfile would seek backwards and loop
            raise tarfile.ReadError(f"a member of negative size at byte {tarfile_.offset}")
        return member


def _add(
    sample: Sample,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    suffix: str,
    wanted: tuple[str, ...],
    path: str,
    encoding: str | None,
) -> None:
    """Add a member to its sample: image bytes, metadata columns, or the suffix of neither."""
    where = f"{path}: {escaped(member.name)}"

    def content() -> bytes:
        if member.issparse():  # may expand to far more bytes
            raise UserError(f"{where} is a sparse member; pack the shard without sparse files")
        with reading(where):
            file = tar.extractfile(member)
            return file.read() if file is not None else b""

    def text() -> str:
        return decode_text(content(), encoding, where).strip()

    if suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
        sample["suffixes"].append(suffix)
        if suffix in wanted and sample["image"] is None:
            sample["image"] = content()
    elif suffix == "json":
        try:
            tree = json.loads(text(), object_pairs_hook=unique_keys)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not valid JSON: {error}") from error
        sample["columns"].update(tree if isinstance(tree, dict) else {"json": tree})
    elif suffix in ("cls", "txt"):
        value: Any = text()
        # not int() of all: 007, 1_000 and +1 would lose their spelling
        if suffix == "cls" and re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value):
            value = int(value)
        sample["columns"][suffix] = value
    else:
        sample["unread"].append(suffix)


def _chunks(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    """Lists of samples, bounded in number and bytes."""
    chunk: list[Sample] = []
    size = 0
    for sample in samples:
        chunk.append(sample)
        size += len(sample["image"] or b"")
        if len(chunk) == ROWS or size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _read_shard(
    shards: pa.Table, source: WebDatasetSource, columns: tuple[str, ...], images: bool
) -> Iterator[pa.Table]:
    for number in shards["shard"].to_pylist():
        path, first = source.files.paths[number], 0
        wanted = source.members if images else ()
        for chunk in _chunks(_samples(source.files, path, wanted)):
            yield _table(chunk, source, columns, path, first, images)
            first += len(chunk)


def _table(
    samples: list[Sample],
    source: WebDatasetSource,
    columns: tuple[str, ...],
    path: str,
    first: int,
    images: bool,
) -> pa.Table:
    if source.id_column:
        column = _column(samples, source.id_column, source, path)
        ids, keys = ids_of(column, source.id_column, path, first)
    else:
        names = [f"{source.files.relative(path)}/{sample['key']}" for sample in samples]
        ids, keys = pa.array(hash_strings(names)), pa.array(names, pa.string())
    arrays: dict[str, Any] = {ID: ids, KEY: keys}
    if images:
        faults = [s["fault"] or (None if s["image"] else "no image") for s in samples]
        arrays[IMAGE] = pa.array([sample["image"] for sample in samples], pa.large_binary())
        arrays[FAULT] = pa.array(faults, pa.string())
    return pa.table(arrays | {name: _column(samples, name, source, path) for name in columns})


def _column(samples: list[Sample], name: str, source: WebDatasetSource, path: str) -> pa.Array:
    kind = source.schema.field(name).type
    values = [sample["columns"].get(name) for sample in samples]
    if pa.types.is_string(kind):
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    try:
        # not pa.array(values, kind), which silently turns 0.5 into the integer 0
        return pa.array(values).cast(kind)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise UserError(
            f"{path}: column {name!r} is of type {kind} in the first samples of the first shard, "
            f"but not everywhere ({error}); use one type"
        ) from error
