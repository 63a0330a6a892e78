"""Damaged files through the readers: no crash, no hang, no error but a line that names the file.

    python benchmarks/mutate.py                  # 10,000 files
    python benchmarks/mutate.py --files 300

Files of each format are mutated (bytes changed, cut out, doubled, zeroed, the end cut off) and read
in worker processes, each with a bound on time and memory. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing as mp
import resource
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wcl_ray.config import DataConfig
from wcl_ray.data.decode import check_header, decode_batch
from wcl_ray.data.sources import folder as source_folder
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources import parquet as source_parquet
from wcl_ray.data.sources import webdataset as source_webdataset
from wcl_ray.data.sources.base import FAULT, IMAGE, Source
from wcl_ray.data.sources.listing import IMAGE_SUFFIXES
from wcl_ray.errors import find_user_error
from wcl_ray.terminal import table

PRELOAD = ["wcl_ray.data.decode", "wcl_ray.data.sources.folder", "wcl_ray.data.sources.webdataset"]
SECONDS = 20  # for one file
MEMORY = 6 * 2**30  # address space of a worker
ROWS = 12  # of a table or a shard
SIDE = 24
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
    "avif": ("AVIF", {}),
    "jp2": ("JPEG2000", {}),
}
PIECES = [*",;\t\"'{}[]:\n\r\\/-.09aé", "", "\r\n", "null", "NaN", "1e999", "9" * 30, "\\ud800"]
PIECES += ["[" * 2000, '{"a":' * 300, "\ufeff", "\u2028", "\x00"]
TABLES = ("csv", "jsonl", "parquet", "tar")


def formats() -> list[str]:
    """Formats that are mutated: those of images that Pillow was built with, and of tables."""
    return [name for name in PICTURES if name.split(".")[-1] in IMAGE_SUFFIXES] + list(TABLES)


def picture(rng: np.random.Generator, kind: str = "PNG", **options: Any) -> bytes:
    """An encoded picture of smooth colours, so that compressed data are neither empty nor noise."""
    small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
        sink, kind, **options
    )
    return sink.getvalue()


def damaged(kind: str, rng: np.random.Generator) -> bytes:
    """A file of a format with changes: in any of its bytes, or where they go deeper (in the text of
    a table, the footer of Parquet, the members of a shard)."""
    deep = rng.random() < 0.6
    if kind in PICTURES:
        name, options = PICTURES[kind]
        return mutated(picture(rng, name, **options), rng)
    names = [f"{i}.png" for i in range(ROWS)]
    legs, habitat = rng.integers(0, 9, ROWS).tolist(), rng.choice(["käse", "leaf"], ROWS).tolist()
    rows = list(zip(names, legs, habitat, strict=True))
    trees = [{"file_name": n, "legs": k, "habitat": h} for n, k, h in rows]
    if kind in ("csv", "jsonl"):
        lines = [json.dumps(tree, ensure_ascii=False) for tree in trees]
        if kind == "csv":
            lines = [f"{n},{k},{h}" for n, k, h in [("file_name", "legs", "habitat"), *rows]]
        text = "".join(f"{line}\n" for line in lines)
        return retyped(text, rng).encode() if deep else mutated(text.encode(), rng)
    sink = io.BytesIO()
    if kind == "parquet":
        content = {"id": range(ROWS), "image": [picture(rng) for _ in names]}
        pq.write_table(
            pa.table(content | {"legs": legs, "habitat": habitat}),
            sink,
            row_group_size=5,
            compression=str(rng.choice(["snappy", "zstd", "none"])),
        )
        whole = sink.getvalue()
        cut = len(whole) - 2500 if deep else 0
        return whole[:cut] + mutated(whole[cut:], rng)
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, tree in zip(names, trees, strict=True):
            stem = name.removesuffix("png")
            members = {name: picture(rng), f"{stem}json": json.dumps(tree).encode()}
            for member, content_ in (members | {f"{stem}cls": b"3"}).items():
                info, inside = tarfile.TarInfo(member), content_
                if deep and rng.random() < 0.1:
                    if not member.endswith("png") and rng.random() < 0.7:
                        inside = retyped(inside.decode(), rng).encode()
                    else:
                        inside = mutated(inside, rng)
                info.size = len(inside)
                tar.addfile(info, io.BytesIO(inside))
    return sink.getvalue() if deep else mutated(sink.getvalue(), rng)


def retyped(text: str, rng: np.random.Generator) -> str:
    """The text with one to four characters or pieces changed."""
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(text) + 1))
        end = at + int(rng.integers(0, 3) if rng.random() < 0.8 else rng.integers(0, 60))
        piece = str(rng.choice(PIECES))
        text = text[:at] + piece * (int(rng.integers(1, 4))) + text[end:]
    return text


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to four changes of its bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        at = int(rng.integers(len(data)))
        size = int(min(len(data) - at, rng.geometric(0.1)))
        match int(rng.integers(8)):
            case 0 | 1:  # single bytes
                for place in rng.integers(len(data), size=3):
                    data[place] = int(rng.integers(256))
            case 2:
                data[at : at + size] = rng.bytes(size)
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                data[at : at + size] = bytes(size)
            case 6:
                data[at : at + size] = b"\xff" * size
            case 7:
                if rng.random() < 0.3:
                    del data[at:]
                else:  # a number that grows
                    data[at] = min(255, data[at] + 1)
    return bytes(data)


def read_here(source: Source, columns: Sequence[str], images: bool = True) -> Iterator[pa.Table]:
    """What the tasks of a source read, in this process."""
    columns = tuple(columns)
    if isinstance(source, source_folder.FolderSource):
        for part in source.parts(columns, images):
            yield from source_folder._read(part, source.files) if images else [part]
    elif isinstance(source, source_parquet.ParquetSource):
        pieces, types, _ = source.pieces(columns)
        if pieces:
            yield from source_parquet._read_piece(
                pa.Table.from_pylist(pieces), source, types, images
            )
    else:
        assert isinstance(source, source_webdataset.WebDatasetSource)
        shards = pa.table({"shard": range(len(source.files.paths))})
        yield from source_webdataset._read_shard(shards, source, columns, images)


def read(data: DataConfig) -> tuple[int, int]:
    """Read a path with all columns, metadata and images; returns rows and faults."""
    source = open_source(data)
    source.describe()
    known = sum(len(part) for part in read_here(source, source.columns, images=False))
    rows = faults = 0
    for part in read_here(source, source.columns):
        files = part[IMAGE].to_pylist()
        [check_header(file) for file in files]
        bad = decode_batch(files, 16).faults
        given = part[FAULT].to_pylist()
        part.to_pylist()  # text that is none would be found here
        faults += sum(1 for row in range(len(part)) if given[row] or row in bad)
        rows += len(part)
    if rows != known:
        raise AssertionError(f"{known} rows of metadata, {rows} of images")
    return rows, faults


def prepare(folder: Path, kind: str, content: bytes) -> str:
    """Write a file as it would lie in a data set; returns its folder."""
    name = {"csv": "metadata.csv", "jsonl": "metadata.jsonl"}.get(kind, f"0.{kind}")
    (folder / name).write_bytes(content)
    if kind in ("csv", "jsonl"):
        for i in range(ROWS):
            if not (folder / f"{i}.png").exists():
                (folder / f"{i}.png").write_bytes(picture(np.random.default_rng(i)))
    return str(folder)


def trial(root: Path, kind: str, seed: int) -> tuple[str, int, int, str]:
    """Outcome (read, user error or error), rows, faults and the message of one mutated file."""
    rng = np.random.default_rng([seed, *kind.encode()])
    folder = root / kind
    folder.mkdir(exist_ok=True)
    data = DataConfig(path=prepare(folder, kind, damaged(kind, rng)))
    try:
        rows, faults = read(data)
    except Exception as error:
        known = find_user_error(error)
        if known is None:
            return "error", 0, 0, traceback.format_exc()
        lines = str(known).count("\n") + 1
        named = str(folder) in str(known)
        return ("user error" if named and lines == 1 else "error"), 0, 0, str(known)
    return "read", rows, faults, ""


def _work(pipe: Connection, run: Callable[[Path, str, int], tuple[str, int, int, str]]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # Pillow's, of odd files
    with tempfile.TemporaryDirectory() as root:
        pipe.send("ready")
        while True:
            kind, seed = pipe.recv()
            pipe.send(run(Path(root), kind, seed))


class Worker:
    """A process that reads files one by one, and is started again when it dies or hangs."""

    def __init__(self, run: Callable[[Path, str, int], tuple[str, int, int, str]]) -> None:
        self.run = run
        self._start()

    def _start(self) -> None:
        context = mp.get_context("forkserver")  # whose processes inherit no threads
        context.set_forkserver_preload(PRELOAD)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.run), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(120):
            raise TimeoutError("a worker does not start")
        self.pipe.recv()

    def give(self, kind: str, seed: int, seconds: float) -> None:
        self.kind, self.seed, self.until = kind, seed, time.monotonic() + seconds
        self.pipe.send((kind, seed))

    def take(self) -> tuple[str, int, int, str] | None:
        """The outcome, or None while it is read."""
        if self.pipe.poll():
            try:
                outcome: tuple[str, int, int, str] = self.pipe.recv()
                return outcome
            except EOFError:
                self.process.join()
                code = self.process.exitcode
                self._start()
                return "crash", 0, 0, f"the process ended with {code}"
        if time.monotonic() > self.until:
            self.stop()
            self._start()
            return "hang", 0, 0, "no end"
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def mutate(
    count: int,
    seed: int = 0,
    workers: int = 2,
    seconds: float = SECONDS,
    kinds: Sequence[str] = (),
    run: Callable[[Path, str, int], tuple[str, int, int, str]] = trial,
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Read ``count`` mutated files, the formats in turn.

    Returns:
        Counts of each format, and one text for every file that did not come to a good end.
    """
    kinds = kinds or formats()
    jobs = iter([(kinds[i % len(kinds)], seed + i // len(kinds)) for i in range(count)])
    counts = {kind: Counter[str]() for kind in kinds}
    bad: list[str] = []
    busy: list[Worker] = []
    idle = [Worker(run) for _ in range(workers)]
    try:
        while True:
            while idle and (job := next(jobs, None)):
                idle[-1].give(*job, seconds)
                busy.append(idle.pop())
            if not busy:
                break
            wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in list(busy):
                outcome = worker.take()
                if outcome is None:
                    continue
                result, rows, faults, text = outcome
                tally = counts[worker.kind]
                tally.update({"files": 1, result: 1, "rows": rows, "faults": faults})
                if worker.kind in ("parquet", "tar") and result == "read" and rows < ROWS:
                    tally["fewer rows"] += 1
                if result not in ("read", "user error"):
                    bad.append(f"{worker.kind} seed {worker.seed}: {result}: {text}")
                busy.remove(worker)
                idle.append(worker)
    finally:
        for worker in busy + idle:
            worker.stop()
    return counts, bad


COLUMNS = ("files", "read", "rows", "faults", "fewer rows", "user error", "error", "crash", "hang")


def render(counts: dict[str, Counter[str]]) -> str:
    """Table of the counts."""
    body = [[kind, *(f"{tally[c]:,}" for c in COLUMNS)] for kind, tally in counts.items()]
    whole = sum(counts.values(), Counter())
    return table(["format", *COLUMNS], [*body, ["all", *(f"{whole[c]:,}" for c in COLUMNS)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", default=[])
    options = parser.parse_args()
    start = time.monotonic()
    counts, bad = mutate(options.files, options.seed, options.workers, kinds=options.kinds)
    print(render(counts))
    print(f"{time.monotonic() - start:.0f} s")
    for text in bad[:20]:
        print(text)
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
