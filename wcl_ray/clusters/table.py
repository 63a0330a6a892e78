"""Existing clusters: a table of ids and clusters, of another run or the user's own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.types as pat

from wcl_ray.clusters.assignment import Assignment, number_codes
from wcl_ray.clusters.metadata import hashed
from wcl_ray.data.ids import check_ids
from wcl_ray.data.sources.match import find_rows
from wcl_ray.data.sources.table_files import open_table as open_rows
from wcl_ray.data.sources.tables import NAME
from wcl_ray.data.values import decoded, value_names
from wcl_ray.errors import UserError, reading
from wcl_ray.storage import filesystem, resolve_input
from wcl_ray.terminal import say

NO_CLUSTER = -1
OURS = ("id", "key", NAME)  # columns of a table that name the images


@dataclass(frozen=True)
class ClusterTable:
    """A table of ids and clusters.

    Attributes:
        path: of the table, for messages.
        id_column: the column of ``rows`` that holds the ids; all others are granularities.
    """

    path: str
    rows: pa.Table
    id_column: str

    def assign(self, images: Assignment) -> Assignment:
        """The images with the clusters of the table. Images not in it become singletons; their
        number is printed.

        Args:
            images: its clusters are ignored.

        Raises:
            UserError: a duplicate id, no image in the table, or values that cannot be clusters.
        """
        names = [name for name in self.rows.column_names if name != self.id_column]
        codes = [self._codes(name) for name in names]
        rows = self._rows_of(images)
        in_table = rows >= 0
        columns = [
            number_codes(np.where(in_table, code[rows], NO_CLUSTER), ~in_table | missing[rows])
            for code, missing in codes
        ]
        absent = int((~in_table).sum())
        if absent:
            text = f"{absent:,} of {len(rows):,} images are not in {self.path}"
            say("clusters", f"{text}; each is a cluster of its own")
        return replace(images, clusters=np.stack(columns, 1), names=tuple(names))

    def _codes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """int64 (n,) code of each row's cluster, and bool (n,): whether it has none."""
        values = decoded(self.rows[name])
        if pat.is_integer(values.type) and not pat.is_uint64(values.type):
            codes = values.fill_null(NO_CLUSTER).to_numpy().astype(np.int64)
            return codes, codes == NO_CLUSTER
        texts = value_names(values, f"{self.path}: column {name!r}")
        codes = hashed(texts).fill_null(0).to_numpy()
        none = pc.equal(texts, str(NO_CLUSTER)).fill_null(True)
        return codes, none.to_numpy(zero_copy_only=False)

    def _rows_of(self, images: Assignment) -> np.ndarray:
        """int64 (N,): row of each image, -1 = none."""
        column = self.rows[self.id_column]
        check_ids(column, self.id_column, self.path)
        values, ids = decoded(column), pa.array(images.ids)
        names = [ids]  # also where they are hashes of names: a run's table holds these
        if images.keys is not None:  # of unsigned ids only the large ones have a key
            keys = pc.coalesce(images.keys, ids.cast(pa.string()))
            names = [ids, keys] if pat.is_integer(values.type) else [keys]
        for side in names:
            rows, matched, problem = find_rows(side, values)
            if matched:
                return rows
        if problem:
            raise UserError(f"{self.path}: {self.id_column} {problem}")
        key = None if images.keys is None else images.keys[0].as_py()
        example = [self.rows[self.id_column][0].as_py()] if self.rows.num_rows else "nothing"
        raise UserError(
            f"{self.path}: none of its {self.rows.num_rows:,} ids is that of a training image; "
            f"column {self.id_column!r} holds {example}, the images {[key or int(images.ids[0])]}; "
            "ids are those of --data.id, or names of files relative to the data"
        )


def open_table(
    uri: str,
    id_column: str | None,
    columns: tuple[str, ...] = (),
    endpoint: str | None = None,
    encoding: str | None = None,
    others: tuple[str, ...] = (),
) -> ClusterTable:
    """Read only the id and cluster columns of a table.

    Args:
        uri: Parquet file, folder of Parquet files, CSV file, or JSON lines.
        id_column: name of the id column in the data, if any.
        columns: the granularities; by default all columns that do not name the images.
        others: those of ``columns`` that need not be in the table.

    Raises:
        UserError: the table does not exist, cannot be read, or has no id or cluster column.
    """
    fs, path = filesystem(resolve_input(uri), endpoint)
    keys = tuple(dict.fromkeys([*([id_column] if id_column else []), "id", NAME]))
    with reading(f"clusters.from {uri}"):
        if fs.get_file_info(path).type == pafs.FileType.NotFound:
            raise UserError(f"clusters.from {uri}: no such run or file")
    dataset = open_rows(fs, path, f"clusters.from {uri}", encoding, frozenset(keys))
    names = dataset.schema.names
    listed = f"its columns are: {', '.join(names) or '(none)'}"
    key = next((name for name in keys if name in names), None)
    if key is None:
        given = "" if id_column else ", nor is there a --data.id to look for"
        raise UserError(
            f"clusters.from {uri} has no id column called {' or '.join(map(repr, keys))}{given}; "
            f"{listed}; rename the one with the images' ids or file names to {keys[0]!r}"
        )
    columns = tuple(name for name in columns if name in names or name not in others)
    for name in columns:
        if name not in names or name in (key, *OURS):
            similar = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {similar[0]!r}?)" if similar else ""
            raise UserError(
                f"clusters.columns {name!r} is not a cluster column of {uri}{hint}; {listed}"
            )
    granularities = columns or tuple(name for name in names if name not in (*keys, *OURS))
    if not granularities:
        raise UserError(f"clusters.from {uri} has no cluster column beside {key!r}; {listed}")
    with reading(f"clusters.from {uri}"):
        return ClusterTable(uri, dataset.to_table(columns=[key, *granularities]), key)
