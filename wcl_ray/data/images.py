"""The opened sources of a run, and their hold-out split."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.demo import demo_data
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import ID, Keep, Source
from wcl_ray.data.split import held_groups, held_out
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

SIDES = TRAIN, TEST = "train", "test"
VALIDATION_SALT = 104_729  # so that the validation split does not repeat the test split


@dataclass(frozen=True)
class Side:
    """The training or the other images of the last of two splits, see :class:`Images`."""

    holdout: float
    validation: float
    seed: int
    training: bool

    def choose(self, ids: np.ndarray, groups: pa.ChunkedArray | None) -> np.ndarray:
        """bool (N,): the images on this side; ``groups``: values that no split divides."""

        def held(share: float, seed: int) -> np.ndarray:
            if groups is None:
                return held_out(ids, share, seed)
            return held_groups(groups, ids, share, seed)

        kept: np.ndarray = np.ones(len(ids), dtype=bool)
        if self.holdout:
            kept = held(self.holdout, self.seed)
            if self.training or self.validation:
                kept = ~kept
        if self.validation:
            kept &= held(self.validation, self.seed + VALIDATION_SALT) != self.training
        return kept


@dataclass(frozen=True)
class Images:
    """Sources of a run. Without ``test``, a share of ``train`` is held out if there is a label.

    With ``validation``, a share of the remaining training images is set aside and replaces the test
    images, which are never read.

    Attributes:
        holdout: share held out; 0 if there is a test source or no label.
        group: column whose values neither split divides.
    """

    train: Source
    test: Source | None
    label: str | None
    holdout: float
    seed: int
    group: str | None = None
    validation: float = 0.0

    @property
    def available(self) -> tuple[str, ...]:
        """Metadata columns, without the group column: its values identify groups, so it is used
        only if ``clusters.columns`` names it."""
        return tuple(name for name in self.train.columns if name != self.group)

    def without_validation(self) -> Images:
        """The same sources without a validation split."""
        return replace(self, validation=0.0)

    def metadata(self, columns: Sequence[str] = (), training: bool = True) -> Dataset:
        """Metadata of the training or held-out images of ``train``, see :meth:`Source.metadata`."""
        return self._side(self.train.metadata(self._with_group(columns)), columns, training)

    def train_images(self, keep: Keep | None = None) -> Dataset:
        """The training images with their label, or those of them to keep; see
        :meth:`Source.images`."""
        return self._images(True, keep)

    def test_images(self, keep: Keep | None = None) -> Dataset | None:
        """Images that the encoder never sees, or those of them to keep; None if there is neither a
        label nor validation."""
        if not self.validation:
            if self.label is None:
                return None
            if self.test is not None:
                return self.test.images([self.label], keep)
        return self._images(False, keep)

    def test_metadata(self, columns: Sequence[str] = ()) -> Dataset:
        """Metadata of the test images, see :meth:`Source.metadata`."""
        if self.test is not None and not self.validation:
            return self.test.metadata(columns)
        return self.metadata(columns, training=False)

    def test_count(self) -> int:
        """Number of the test images.

        Raises:
            UserError: the split left none.
        """
        count = int(self.test_metadata().count())
        if not count and (self.test is None or self.validation):
            cause = f": {self.group!r} has too few values" if self.group else ""
            option = "--validation" if self.validation else "--data.holdout"
            raise UserError(f"no image is held out{cause}; use a larger {option} or another --seed")
        return count

    def _with_group(self, columns: Sequence[str]) -> list[str]:
        split = self.group if self.holdout or self.validation else None
        return list(dict.fromkeys([*columns, *([split] if split else [])]))

    def _images(self, training: bool, keep: Keep | None) -> Dataset:
        """Images of a side of the last split, with their label."""
        columns = [self.label] if self.label else []
        if self.group is not None:  # the side of an image depends on more than its id
            rows = self.train.images(self._with_group(columns), keep)
            return self._side(rows, columns, training)
        if not (self.holdout or self.validation):
            return self.train.images(columns, keep)
        side = Side(self.holdout, self.validation, self.seed, training)

        def keep_side(ids: np.ndarray) -> np.ndarray:
            kept = side.choose(ids, None)
            return kept if keep is None else kept & keep(ids)

        return self.train.images(columns, keep_side)

    def _side(self, rows: Dataset, columns: Sequence[str], training: bool) -> Dataset:
        """One side of the last split; the group column is dropped unless it is in ``columns``."""
        if not (self.holdout or self.validation):
            return rows
        group, side = self.group, Side(self.holdout, self.validation, self.seed, training)

        def keep(table: pa.Table) -> Iterator[pa.Table]:  # Ray Data reraises generators' errors
            groups = None if group is None else table[group]
            table = table.filter(pa.array(side.choose(table[ID].to_numpy(), groups)))
            yield table if group is None or group in columns else table.drop_columns([group])

        return rows.map_batches(keep, batch_format="pyarrow", batch_size=None)


def open_images(
    data: DataConfig,
    storage: str,
    seed: int,
    validation: float = 0.0,
    find_tables: Collection[str] = SIDES,
) -> Images:
    """Open the sources and check their columns; renders the demo data if no path is given.

    Args:
        find_tables: sides at whose top a metadata table is looked for, ``train`` and ``test``.

    Raises:
        UserError: a path or a column does not exist.
    """
    if data.path is None:
        if data.table or data.key:
            raise UserError("data.table and data.key need --data.path, the place of the images")
        demo = demo_data(Folder(storage, data.endpoint), data.demo_images, seed)
        data = replace(data, path=demo.train, eval_path=data.eval_path or demo.test)
    train = open_source(data, find_table=TRAIN in find_tables)
    test = None
    if data.eval_path:
        test = open_source(data, data.eval_path, train, TEST in find_tables)
    for note in dict.fromkeys((*train.notes, *(test.notes if test else ()))):
        warn(note)
    for side, source in (("", train), ("test images: ", test)):
        if source is not None and source.match is not None:
            line = side + source.match.describe()
            if source.match.sparse and data.key is None:
                warn(f"{line}: fewer than half; see --data.key")
            else:
                say("table", line)
    if data.label in ("feature", "view"):
        raise UserError(f"data.label {data.label!r} is a name that wcl_ray uses itself; rename it")
    if data.label is not None:
        train.check_columns([data.label], "data.label")
        if test is not None:
            test.check_columns([data.label], "data.label")
    holdout = data.holdout if data.label and test is None else 0.0
    if data.split_by is not None:
        train.check_columns([data.split_by], "data.split-by")
    return Images(train, test, data.label, holdout, seed, data.split_by, validation)
