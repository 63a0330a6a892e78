"""Turns blocks into composed uint8 batches inside a worker; every image once per epoch.

The order is a pure function of (seed, epoch, consumed images, batch size). With shared blocks it
does not depend on the number of workers: each takes its slice of every global batch. Blocks dealt
to workers are read and released a few at a time, so that a node's object store can evict its copies
of other nodes' blocks; their order also depends on the nodes of blocks and workers. A thread reads
and decodes ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from wcl_ray.data import sampler
from wcl_ray.data.augment import Augment
from wcl_ray.data.batch import Batch, BatchMaker
from wcl_ray.data.blocks import Directory, rows_left, unconsumed
from wcl_ray.data.deal import Piece, Places, deal, unknown_places, windows
from wcl_ray.data.pixels import ASPECT, PIXELS, decode_in_tasks, kept_pixels
from wcl_ray.data.prefetch import prefetch
from wcl_ray.data.rows import take_rows
from wcl_ray.data.sampler import window_of
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, PATH, POSITION, FileIndex
from wcl_ray.data.sources.files import read_files
from wcl_ray.data.stream import Stream

AHEAD = 3  # batches read before they are needed
FIRST_WINDOW = 4  # batches in the first window of a streamed epoch
WINDOW_BYTES = 2**29  # of a window of images that tasks have decoded, unless a batch is larger
STREAMED = (ID, KEY, IMAGE, FAULT, POSITION, PIXELS, ASPECT)  # columns that batches are made of
Tables = Callable[[], Iterator[pa.Table]]
Step = tuple[np.ndarray, np.ndarray]  # int64 (b,) each: positions, rows in the blocks or the index


class Reader:
    """Batches of one worker.

    Args:
        clusters: int32 (N, G), of each position.
        batch_size: B, global; a multiple of world.
        group: m, consecutive images of one cluster.
        siblings: put several clusters of the level below into a batch for each of the level above.
        threads: decoding threads.
        pin: pin batches in memory for the copy to a GPU.
        window: images among which a batch is composed if blocks are streamed or dealt (if dealt, at
            least one block and at most ``places.max_blocks``).
        places: where dealt blocks lie; the same on all workers except for ``max_blocks``.
        attributes: uint8 (N, A / 8), packed metadata of each position, for graded positives.
        augment: in all modes but raw, cut the crops of its views out of the files.

    Attributes:
        steps: remaining global batches of the current epoch, without those consumed before it.
        dropped: images of the last epoch that did not fill a global batch, over all workers.
    """

    def __init__(
        self,
        stream: Stream,
        clusters: np.ndarray,
        *,
        rank: int,
        world: int,
        batch_size: int,
        seed: int,
        group: int,
        siblings: bool = False,
        threads: int = 1,
        pin: bool = False,
        window: int | None = None,
        places: Places | None = None,
        attributes: np.ndarray | None = None,
        augment: Augment | None = None,
    ) -> None:
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} is not a multiple of {world} workers")
        self.stream, self.clusters = stream, clusters
        self.rank, self.world, self.batch = rank, world, batch_size
        self.local = batch_size // world
        self.seed, self.group, self.pin = seed, group, pin
        self.window = window or window_of(self.local)
        self.augment = augment
        self.batches = BatchMaker(stream.size, clusters, attributes, augment, pin)
        self.columns = sampler.composing_columns(clusters, siblings)
        self.steps = self.dropped = 0
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._blocks: dict[int, Any] = {}
        if stream.mode == "indexed":
            self.index: FileIndex = ray.get(stream.index)
        if stream.location is not None:
            self.location: np.ndarray = ray.get(stream.location)
        if stream.blocks is not None:
            self.directory = Directory(stream.blocks)
            self.offsets = stream.blocks.offsets
            self.places = places or unknown_places(len(stream.blocks), world)

    def take_faults(self) -> list[tuple[str, str]]:
        """(key or id, reason) of images that failed to decode since the last call."""
        return self.batches.take_faults()

    def epoch(
        self,
        epoch: int,
        consumed: np.ndarray | None,
        tables: Tables | None = None,
        left: np.ndarray | None = None,
    ) -> Iterator[Batch]:
        """The batches of the rest of an epoch.

        Args:
            consumed: packed bits of the positions to skip, or None.
            tables: mode streaming: this worker's rows of :meth:`Stream.dataset`, without the
                consumed images; equally many rows on all workers.
            left: dealt blocks: what :func:`wcl_ray.data.blocks.rows_left` counts, if another
                worker has counted it already.
        """
        if self.stream.mode == "streaming":
            assert tables is not None
            self.steps = (len(self.clusters) - sampler.count_bits(consumed)) // self.batch
            return prefetch(self._parallel(self._streamed_jobs(epoch, tables)), AHEAD)
        if self.stream.shared:
            order = self.order(epoch, consumed)
            steps: Iterator[Step] = ((batch, self.location[batch]) for batch in order)
        else:
            steps = self._dealt_steps(*self._dealt_order(epoch, consumed, left))
        if self.stream.mode == "raw":
            return prefetch((self._raw(positions, rows) for positions, rows in steps), AHEAD)
        return prefetch(self._parallel(self._encoded_jobs(epoch, steps)), AHEAD)

    def order(self, epoch: int, consumed: np.ndarray | None) -> np.ndarray:
        """int64 (steps, b): the positions of this worker's batches (not in mode streaming)."""
        if not self.stream.shared:
            return self._dealt_order(epoch, consumed)[0]
        remaining = self._remaining(consumed)
        rng = np.random.default_rng([self.seed, epoch])
        order = remaining[
            sampler.epoch_order(self._composing(remaining), self.group, self.batch, rng)
        ]
        self.dropped = len(order) - self.steps * self.batch
        batches = order[: self.steps * self.batch].reshape(self.steps, self.world, self.local)
        return batches[:, self.rank]

    def _remaining(self, consumed: np.ndarray | None) -> np.ndarray:
        """int64: positions that are not consumed and are readable."""
        remaining = sampler.unset_positions(consumed, len(self.clusters))
        remaining = remaining[self.location[remaining] >= 0]
        self.steps = len(remaining) // self.batch
        return remaining

    def _dealt_order(
        self, epoch: int, consumed: np.ndarray | None, left: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Blocks cut into equal shares; each worker composes within windows of its own blocks, and
        looks at no others.

        Returns:
            int64 (steps, b) each: positions, and their rows in the concatenated blocks.
        """
        assert self.stream.blocks is not None
        counts = rows_left(self.stream.blocks, consumed) if left is None else left
        rng = np.random.default_rng([self.seed, epoch])
        pieces = deal(counts, self.places, rng)[self.rank]
        # n // W images per worker are n // W // b = n // B batches
        self.steps = int(counts.sum()) // self.batch
        self.dropped = int(counts.sum()) - self.steps * self.batch
        worker_rng = np.random.default_rng([self.seed, epoch, 1, self.rank])
        worker_rng.shuffle(pieces)  # type: ignore[arg-type]
        positions, rows = self._rows_of_pieces(pieces, epoch, consumed)
        order = np.empty(self.steps * self.local, np.int64)
        begin = 0
        for end in windows(pieces, self.window, self.local, self.places.max_blocks):
            clusters = self._composing(positions[begin:end])
            order[begin:end] = begin + sampler.epoch_order(
                clusters, self.group, self.local, worker_rng
            )
            begin = end
        shape = self.steps, self.local
        return positions[order].reshape(shape), rows[order].reshape(shape)

    def _rows_of_pieces(
        self, pieces: list[Piece], epoch: int, consumed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of pieces in sequence, and their rows in the concatenated blocks. Each block is
        composed, so that a cut through it splits at most one group."""
        parts = [np.empty((2, 0), np.int64)]
        in_blocks = self.directory.positions([number for number, _, _ in pieces])
        for (number, start, stop), of_block in zip(pieces, in_blocks, strict=True):
            rows = unconsumed(of_block, consumed)
            rows = rows[np.argsort(of_block[rows])]
            rng = np.random.default_rng([self.seed, epoch, 2, number])  # the same on all workers
            order = sampler.compose(self._composing(of_block[rows]), self.group, rng)
            rows = rows[order[start:stop]]
            parts.append(np.stack([of_block[rows], self.offsets[number] + rows]))
        positions, rows = np.concatenate(parts, axis=1)
        return positions, rows

    def _block_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def _composing(self, positions: np.ndarray) -> np.ndarray:
        """Clusters of positions, as :func:`wcl_ray.data.sampler.compose` takes them."""
        return self.clusters[positions][:, self.columns]

    def _parallel(self, jobs: Iterator[Callable[[], Batch]]) -> Iterator[Batch]:
        """Make batches in the threads of the pool, one thread per batch, in order."""
        waiting: deque[Future[Batch]] = deque()
        for job in jobs:
            waiting.append(self._pool.submit(job))
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encoded_jobs(self, epoch: int, steps: Iterator[Step]) -> Iterator[Callable[[], Batch]]:
        """Files are copied here, so that the decoding threads keep no block alive."""
        for positions, rows in steps:
            if self.stream.mode == "indexed":
                yield partial(self._open_and_decode, epoch, positions, rows)
                continue
            yield partial(self.batches.of_files, epoch, positions, *self._files(rows))

    def _dealt_steps(self, order: np.ndarray, rows: np.ndarray) -> Iterator[Step]:
        """The positions of each batch and their rows. Blocks are released after the last batch that
        needs them; the next ones are fetched ahead, one more with every batch."""
        blocks = self._block_of(rows)
        step_of = np.broadcast_to(np.arange(len(order))[:, None], order.shape)
        first = np.full(len(self.places.blocks), len(order))
        last = np.full(len(self.places.blocks), -1)
        np.minimum.at(first, blocks, step_of)
        np.maximum.at(last, blocks, step_of)
        sequence = np.argsort(first, kind="stable")[: int((last >= 0).sum())]
        opened = requested = 0
        try:
            for step, positions in enumerate(order):
                opened += self._open(np.unique(blocks[step]))
                yield positions, rows[step]
                for number in [n for n in self._blocks if last[n] <= step]:
                    del self._blocks[number]
                requested = max(requested, opened)
                if requested < min(len(sequence), opened + self.places.max_blocks):
                    (block,) = self.directory.get([int(sequence[requested])])
                    ray.wait([block.table], timeout=0, fetch_local=True)  # in the background
                    requested += 1
        finally:
            self._blocks.clear()

    def _open(self, numbers: np.ndarray) -> int:
        """Fetch the blocks that are not open yet, all at once; returns their number."""
        missing = [int(number) for number in numbers if int(number) not in self._blocks]
        tables = ray.get([block.table for block in self.directory.get(missing)])
        self._blocks.update(zip(missing, map(self._view, tables), strict=True))
        return len(missing)

    def _block(self, number: int) -> Any:
        """A block, opened on first use; not copied if it is on this node."""
        if number not in self._blocks:
            self._open(np.array([number]))
        return self._blocks[number]

    def _view(self, table: pa.Table) -> Any:
        """Views uint8 (rows, 3, S, S), float32 (rows,) and of the ids of a raw block; else the
        table."""
        if self.stream.mode != "raw":
            return table
        if table.num_rows == 0:
            return None
        return *kept_pixels(table, self.stream.size), table[ID].to_numpy()

    def _groups(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each block: its number, the indices in the batch, and the rows in the block."""
        block = self._block_of(rows)
        by_block = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[by_block])) + 1
        for indices in np.split(by_block, cuts):
            number = int(block[indices[0]])
            yield number, indices, rows[indices] - self.offsets[number]

    def _raw(self, positions: np.ndarray, rows: np.ndarray) -> Batch:
        side = self.stream.size
        images = torch.empty(len(rows), 3, side, side, dtype=torch.uint8, pin_memory=self.pin)
        aspect, ids = np.empty(len(rows), np.float32), np.empty(len(rows), np.int64)
        target = images.numpy()
        for number, indices, inside in self._groups(rows):
            pixels, aspects, in_block = self._block(number)
            target[indices] = pixels[inside]
            aspect[indices], ids[indices] = aspects[inside], in_block[inside]
        return self.batches.of_pixels(positions, ids, images, torch.from_numpy(aspect))

    def _files(self, rows: np.ndarray) -> tuple[np.ndarray, list[bytes | None], list[str | None]]:
        """Ids, image files and keys of rows."""
        ids = np.empty(len(rows), np.int64)
        files: list[bytes | None] = [None] * len(rows)
        keys: list[str | None] = [None] * len(rows)
        for number, indices, inside in self._groups(rows):
            taken = take_rows(self._block(number).select([ID, IMAGE, KEY]), inside)
            for index, *row in zip(indices, *taken.to_pydict().values(), strict=True):
                ids[index], files[index], keys[index] = row
        return ids, files, keys

    def _open_and_decode(self, epoch: int, positions: np.ndarray, in_index: np.ndarray) -> Batch:
        rows = self.index.rows.take(pa.array(in_index))
        known: list[str | None] = rows[FAULT].to_pylist()
        paths = [
            None if fault else p for fault, p in zip(known, rows[PATH].to_pylist(), strict=True)
        ]
        files, faults = read_files(paths, self.index.files, "")
        reasons = [old or new for old, new in zip(known, faults.to_pylist(), strict=True)]
        broken = {row: reason for row, reason in enumerate(reasons) if reason}
        ids, keys = rows[ID].to_numpy().copy(), rows[KEY].to_pylist()
        return self.batches.of_files(epoch, positions, ids, files.to_pylist(), keys, broken)

    def _streamed_jobs(self, epoch: int, tables: Tables) -> Iterator[Callable[[], Batch]]:
        """Compose within a window of rows that fills, empties in whole batches and refills. The
        first ones are smaller, so that training starts before a whole window has been read."""
        rng = np.random.default_rng([self.seed, epoch, self.rank])
        held: list[pa.Table] = []
        rows, window = 0, min(FIRST_WINDOW * self.local, self.window)
        for table in tables():
            held.append(table.drop_columns([n for n in table.column_names if n not in STREAMED]))
            rows += table.num_rows
            if PIXELS in table.column_names:
                fit = WINDOW_BYTES * table.num_rows // table.nbytes
                window = min(window, max(self.local, fit))
            if rows >= window:
                rest = yield from self._window(epoch, pa.concat_tables(held), rng)
                held, rows = [rest], rest.num_rows
                window = min(2 * window, self.window)
        if held:
            rest = yield from self._window(epoch, pa.concat_tables(held), rng)
            rows = rest.num_rows
        self.dropped = rows * self.world

    def _window(
        self, epoch: int, table: pa.Table, rng: np.random.Generator
    ) -> Any:  # a generator that returns the rows left over
        positions = table[POSITION].to_numpy()
        order = sampler.epoch_order(self._composing(positions), self.group, self.local, rng)
        end = len(order) // self.local * self.local
        for start in range(0, end, self.local):
            rows = order[start : start + self.local]
            yield partial(self.batches.of_streamed, epoch, take_rows(table, rows))
        return take_rows(table, order[end:])

    def dataset(self, epoch: int, consumed: np.ndarray | None, elsewhere: bool = False) -> Dataset:
        """Mode streaming: the images of an epoch that are not consumed, for all workers, in a
        random order of the files.

        Args:
            elsewhere: nodes without GPUs decode images that are not decoded when they are read.
        """
        rows = self.stream.dataset(consumed, (self.seed, epoch))
        when_read = self.stream.decoded_when_read
        if not (when_read or elsewhere):
            return rows
        return decode_in_tasks(rows, self.stream.size, self.augment, epoch, not when_read)
