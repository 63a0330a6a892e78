"""Inside a worker: blocks in, composed uint8 batches out, every image once per epoch.

The order is a pure function of (seed, epoch, consumed images, batch size): for kept blocks that
every worker may read it does not even depend on the number of workers, each of which takes its
slice of every global batch. Blocks that are dealt to workers are read a few at a time and let go,
so that their node's object store may drop its copies of other nodes' blocks; there the order hangs
on the nodes of blocks and workers as well. A thread reads and decodes ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from wcl_ray.data import sampler
from wcl_ray.data.augment import Augment
from wcl_ray.data.deal import Piece, Places, deal, nowhere, windows
from wcl_ray.data.decode import Decoded, decode_batch, decode_crops
from wcl_ray.data.prefetch import ahead
from wcl_ray.data.sampler import window_of
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY
from wcl_ray.data.stream import Stream, kept_pixels, positions_of
from wcl_ray.errors import UserError

AHEAD = 3  # batches read before they are asked for
Tables = Callable[[], Iterator[pa.Table]]


@dataclass
class Batch:
    """This worker's part of a global batch: b images.

    Attributes:
        images: uint8 (b, 3, S, S), squashed to a square; or (b, 2, 3, s, s), the crops of both
            views.
        aspect: float32 (b,), width / height of the originals.
        ids: int64 (b,).
        positions: int64 (b,), to be marked as consumed.
        clusters: int64 (b, G); -1 = singleton.
        valid: bool (b,), false for images that cannot be decoded: they have the pixels of another
            image of the batch and are to be left out of the loss.
    """

    images: torch.Tensor
    aspect: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    clusters: torch.Tensor
    valid: torch.Tensor


class Reader:
    """Batches of one worker.

    Args:
        clusters: int32 (N, G), of each position.
        batch_size: B, global; a multiple of world.
        group: m, images of one cluster that stand together.
        threads: decoding threads.
        pin: pin batches in memory for the copy to a GPU.
        window: images among which a batch is composed in mode streaming and where blocks are dealt
            (there at least a block, and no more blocks than ``places.most``).
        places: where dealt blocks lie; the same on all workers but for ``most``.
        augment: in modes encoded and streaming, cut what its views show out of the files.

    Attributes:
        steps: whole global batches of the epoch that was begun last, without those consumed before.
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
        threads: int = 1,
        pin: bool = False,
        window: int | None = None,
        places: Places | None = None,
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
        self.column, _ = sampler.composing_column(clusters)
        self.ids: np.ndarray = ray.get(stream.ids)
        self.steps = self.dropped = 0
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._faults: list[tuple[str, str]] = []
        self._blocks: dict[int, Any] = {}
        self.places = places or nowhere(len(stream.blocks), world)
        if stream.mode != "streaming":
            self.location: np.ndarray = ray.get(stream.location)

    def take_faults(self) -> list[tuple[str, str]]:
        """(key or id, reason) of images that could not be decoded since the last call."""
        faults, self._faults = self._faults, []
        return faults

    def epoch(
        self, epoch: int, consumed: np.ndarray | None, tables: Tables | None = None
    ) -> Iterator[Batch]:
        """The rest of an epoch.

        Args:
            consumed: packed bits of the positions that are left out, or None.
            tables: mode streaming: this worker's rows of :meth:`Stream.dataset`, without the
                consumed images; equally many rows on all workers.
        """
        if self.stream.mode == "streaming":
            assert tables is not None
            self._left(consumed)
            return ahead(self._parallel(self._anew(epoch, tables)), AHEAD)
        order = self.order(epoch, consumed)
        if self.stream.mode == "raw":
            return ahead(self._raw_batches(order), AHEAD)
        return ahead(self._parallel(self._encoded(epoch, order)), AHEAD)

    def order(self, epoch: int, consumed: np.ndarray | None) -> np.ndarray:
        """int64 (steps, b): the positions of this worker's batches (kept blocks)."""
        left = self._left(consumed)
        if self.stream.shared:
            rng = np.random.default_rng([self.seed, epoch])
            order = left[sampler.epoch_order(self._column(left), self.group, self.batch, rng)]
            steps = len(order) // self.batch
            self.dropped = len(order) - steps * self.batch
            mine = order[: steps * self.batch].reshape(steps, self.world, self.local)
            return mine[:, self.rank]
        return self._dealt(left, epoch)

    def _left(self, consumed: np.ndarray | None) -> np.ndarray:
        """int64: positions that are not consumed and, where that is known, readable."""
        left = sampler.unset_positions(consumed, len(self.ids))
        if self.stream.mode != "streaming":
            left = left[self.location[left] >= 0]
        # also of equal parts: n // W images a worker make n // W // b = n // B batches
        self.steps = len(left) // self.batch
        return left

    def _dealt(self, left: np.ndarray, epoch: int) -> np.ndarray:
        """Blocks cut into equal parts; each worker composes within windows of its own blocks."""
        block = self._block_of(self.location[left])
        counts = np.bincount(block, minlength=len(self.stream.blocks))
        rng = np.random.default_rng([self.seed, epoch])
        pieces = deal(counts, self.places, rng)[self.rank]
        steps = len(left) // self.world // self.local
        self.dropped = len(left) - steps * self.batch
        own = np.random.default_rng([self.seed, epoch, 1, self.rank])
        own.shuffle(pieces)  # type: ignore[arg-type]
        mine = self._line(left, block, pieces, epoch)
        order = np.empty(steps * self.local, np.int64)
        begin = 0
        for end in windows(pieces, self.window, self.local, self.places.most):
            part = mine[begin:end]
            within = sampler.epoch_order(self._column(part), self.group, self.local, own)
            order[begin:end] = part[within]
            begin = end
        return order.reshape(steps, self.local)

    def _line(
        self, left: np.ndarray, block: np.ndarray, pieces: list[Piece], epoch: int
    ) -> np.ndarray:
        """Positions of pieces one after the other. Inside a block groups of a cluster stand
        together, so that a cut tears one at most."""
        wanted = np.zeros(len(self.stream.blocks), bool)
        wanted[[number for number, _, _ in pieces]] = True
        left, block = left[wanted[block]], block[wanted[block]]
        by_block = np.argsort(block, kind="stable")
        left, block = left[by_block], block[by_block]
        line = [left[:0]]
        for number, start, stop in pieces:
            first, end = np.searchsorted(block, [number, number + 1])
            inside = left[first:end]
            rng = np.random.default_rng([self.seed, epoch, 2, number])  # as on other workers
            line.append(inside[sampler.compose(self._column(inside), self.group, rng)[start:stop]])
        return np.concatenate(line)

    def _block_of(self, rows: np.ndarray) -> np.ndarray:
        assert self.stream.offsets is not None
        return np.searchsorted(self.stream.offsets, rows, side="right") - 1

    def _column(self, positions: np.ndarray) -> np.ndarray:
        return self.clusters[positions, self.column]

    def _parallel(self, jobs: Iterator[Callable[[], Batch]]) -> Iterator[Batch]:
        """Make batches in the threads of the pool, one thread a batch, in order."""
        waiting: deque[Future[Batch]] = deque()
        for job in jobs:
            waiting.append(self._pool.submit(job))
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _raw_batches(self, order: np.ndarray) -> Iterator[Batch]:
        for positions in self._steps(order):
            yield self._raw(positions, self.location[positions])

    def _encoded(self, epoch: int, order: np.ndarray) -> Iterator[Callable[[], Batch]]:
        """The files are copied before a thread decodes them, and hold no block."""
        for positions in self._steps(order):
            files, names = self._files(self.location[positions])
            yield partial(self._decode, epoch, positions, files, names.__getitem__)

    def _steps(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """The positions of each batch. Dealt blocks are let go after the last batch that needs
        them, and those that come next are asked for, one more with every batch."""
        if self.stream.shared:
            yield from order
            return
        blocks = self._block_of(self.location[order])
        step_of = np.broadcast_to(np.arange(len(order))[:, None], order.shape)
        first = np.full(len(self.stream.blocks), len(order))
        last = np.full(len(self.stream.blocks), -1)
        np.minimum.at(first, blocks, step_of)
        np.maximum.at(last, blocks, step_of)
        turn = np.argsort(first, kind="stable")[: int((last >= 0).sum())]
        opened = asked = 0
        try:
            for step, positions in enumerate(order):
                opened += self._open(np.unique(blocks[step]))
                yield positions
                for number in [n for n in self._blocks if last[n] <= step]:
                    del self._blocks[number]
                asked = max(asked, opened)
                if asked < min(len(turn), opened + self.places.most):
                    ref = self.stream.blocks[turn[asked]]
                    ray.wait(
                        [ref], timeout=0, fetch_local=True
                    )  # starts to fetch it, holds nothing
                    asked += 1
        finally:
            self._blocks.clear()

    def _open(self, numbers: np.ndarray) -> int:
        """Fetch what is not open yet, all at once; returns how many these were."""
        missing = [int(number) for number in numbers if int(number) not in self._blocks]
        tables = ray.get([self.stream.blocks[number] for number in missing])
        self._blocks.update(zip(missing, map(self._view, tables), strict=True))
        return len(missing)

    def _block(self, number: int) -> Any:
        """A block, opened when it is first needed; without a copy where it is on this node."""
        if number not in self._blocks:
            self._open(np.array([number]))
        return self._blocks[number]

    def _view(self, table: pa.Table) -> Any:
        """Raw blocks as (uint8 (rows, 3, S, S), float32 (rows,)) views; else the table."""
        if self.stream.mode != "raw":
            return table
        if table.num_rows == 0:
            return None
        return kept_pixels(table, self.stream.size)

    def _groups(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(block, places in the batch, rows in the block)."""
        assert self.stream.offsets is not None
        block = self._block_of(rows)
        by_block = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[by_block])) + 1
        for places in np.split(by_block, cuts):
            number = int(block[places[0]])
            yield number, places, rows[places] - self.stream.offsets[number]

    def _raw(self, positions: np.ndarray, rows: np.ndarray) -> Batch:
        side = self.stream.size
        images = torch.empty(len(rows), 3, side, side, dtype=torch.uint8, pin_memory=self.pin)
        aspect = np.empty(len(rows), np.float32)
        target = images.numpy()
        for number, places, inside in self._groups(rows):
            pixels, aspects = self._block(number)
            target[places] = pixels[inside]
            aspect[places] = aspects[inside]
        return self._batch(positions, images, torch.from_numpy(aspect))

    def _files(self, rows: np.ndarray) -> tuple[list[bytes | None], list[str | None]]:
        """Image files and the user's own names of rows."""
        files: list[bytes | None] = [None] * len(rows)
        names: list[str | None] = [None] * len(rows)
        for number, places, inside in self._groups(rows):
            part = self._block(number).select([IMAGE, KEY]).take(pa.array(inside))
            for place, file, name in zip(places, *part.to_pydict().values(), strict=True):
                files[place], names[place] = file, name
        return files, names

    def _decode(
        self,
        epoch: int,
        positions: np.ndarray,
        files: list[bytes | None],
        name: Callable[[int], str | None],
        known: dict[int, str] | None = None,
    ) -> Batch:
        """``name`` gives the user's own name of a row, ``known`` the faults found before."""
        decoded = self._pixels(epoch, self.ids[positions], files)
        faults = decoded.faults | (known or {})
        images = decoded.images.pin_memory() if self.pin else decoded.images
        batch = self._batch(positions, images, decoded.aspect)
        if faults:
            listed = [(name(row) or str(int(batch.ids[row])), why) for row, why in faults.items()]
            self._faults.extend(listed)
            if len(faults) == len(positions):
                raise UserError(
                    f"none of {len(faults)} images of a batch can be decoded; the first is "
                    f"{listed[0][0]}: {listed[0][1]}"
                )
            self._replace(batch, faults)
        return batch

    def _pixels(self, epoch: int, ids: np.ndarray, files: list[bytes | None]) -> Decoded:
        augment = self.augment
        if augment is None:
            return decode_batch(files, self.stream.size)
        numbers = torch.from_numpy(ids)

        def boxes(rows: torch.Tensor, aspect: torch.Tensor) -> torch.Tensor:
            return augment.boxes(numbers[rows], aspect, epoch)

        return decode_crops(files, boxes, 2, augment.size)

    def _replace(self, batch: Batch, faults: dict[int, str]) -> None:
        """Put pixels of other images of the batch in place of broken ones, which are not valid.

        All workers keep equal sizes, and batch norm sees images as they are.
        """
        good = [row for row in range(len(batch.ids)) if row not in faults]
        for i, row in enumerate(faults):
            other = good[i % len(good)]
            batch.images[row], batch.aspect[row] = batch.images[other], batch.aspect[other]
            batch.valid[row] = False

    def _batch(self, positions: np.ndarray, images: torch.Tensor, aspect: torch.Tensor) -> Batch:
        return Batch(
            images=images,
            aspect=aspect,
            ids=torch.from_numpy(self.ids[positions]),
            positions=torch.from_numpy(positions.astype(np.int64)),
            clusters=torch.from_numpy(self.clusters[positions].astype(np.int64)),
            valid=torch.ones(len(positions), dtype=torch.bool),
        )

    def _anew(self, epoch: int, tables: Tables) -> Iterator[Callable[[], Batch]]:
        """Compose inside a window of rows that fills, empties in whole batches and fills again."""
        rng = np.random.default_rng([self.seed, epoch, self.rank])
        held: list[pa.Table] = []
        rows = 0
        for table in tables():
            held.append(table.select([ID, KEY, IMAGE, FAULT]))
            rows += table.num_rows
            if rows >= self.window:
                rest = yield from self._window(epoch, pa.concat_tables(held), rng)
                held, rows = [rest], rest.num_rows
        if held:
            rest = yield from self._window(epoch, pa.concat_tables(held), rng)
            rows = rest.num_rows
        self.dropped = rows * self.world

    def _window(
        self, epoch: int, table: pa.Table, rng: np.random.Generator
    ) -> Any:  # a generator that returns the rows left over
        positions = positions_of(self.ids, table[ID].to_numpy())
        order = sampler.epoch_order(self._column(positions), self.group, self.local, rng)
        whole = len(order) // self.local * self.local
        for start in range(0, whole, self.local):
            rows = order[start : start + self.local]
            part = table.take(pa.array(rows))
            known = {i: fault for i, fault in enumerate(part[FAULT].to_pylist()) if fault}
            names = part[KEY].to_pylist()
            files = part[IMAGE].to_pylist()
            name = names.__getitem__
            yield partial(self._decode, epoch, positions[rows], files, name, known)
        return table.take(pa.array(order[whole:]))
