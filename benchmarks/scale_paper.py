"""From measured costs of a row and public figures to tables: 1e6 to 1e9 images on 8 to 1,024 GPUs.

Pure functions; printed by ``python benchmarks/scale.py --paper``. M: measured (``scale.json``),
V: a public figure, A: assumed. Rows cost at 1e9 what they cost at the largest measured number.
"""

from __future__ import annotations

import math

from wcl_ray.clusters.features import IMAGES_A_CLUSTER, MOST_CLUSTERS
from wcl_ray.data.blocks import DESCRIBED
from wcl_ray.data.stream import BLOCK as DEALT
from wcl_ray.data.stream import MOST_BLOCKS, REPLICATED, SHARE
from wcl_ray.kmeans.worker_group import FAN_IN, PARTS

Figures = dict[str, dict[str, dict[str, float]]]

IMAGES = (10**6, 10**8, 10**9)
GPUS = (8, 64, 1024)
CASES = [(n, gpus) for n in IMAGES for gpus in GPUS]
# A node is an AWS p4d.24xlarge: 8 A100, 96 vCPUs of 48 cores, 1,152 GiB, 400 Gb/s (V)
NODE_GPUS, NODE_CORES, NODE_MEMORY, NODE_LINK = 8, 48, 1152 * 2**30, 400e9 / 8
STORE = min(0.3 * NODE_MEMORY, 200e9)  # Ray's default and its ceiling (V, ray_constants.py)
JPEG, RAW = 110e3, 3 * 256**2  # bytes of an image (A; stored at 8/7 of 224 px)
JPEG_32, RAW_32 = 1.2e3, 3 * 32**2  # the same at 32 px (A)
FAST = 16_621 / 8 / 2  # images/s a GPU: ResNet-50 v1.5 on 8 A100, mixed precision, two views (V)
EPYC = 1610.0  # JPEGs of 500 × 375 px a core decodes by libjpeg-turbo (V)
SLOW = 370.0  # the same, SimCLR by FFCV-SSL on 8 GPUs (V)
RENT, SPOT = 32.77 / 8, 1.844  # $ a GPU hour: on demand, and a capacity block of late 2024 (V)
MONTH = 0.023  # $ a GB and month of object storage (A)
BATCH, DIM = 128, 128  # images of a batch on one GPU, size of an embedding (A)
WEIGHTS = 23_508_032 + 2048 * 256 + 256 + 256 * 128 + 128  # ResNet-50 and the default projector
WIDTH = 128  # of the clustered features
CARD = 0.5 * 19.5e12  # operations/s on an A100: half (A) of its float32 peak (V); TF32 is off
FEW_K = 10_000
OPEN = 0.1  # s to read the footer of a file on an object store: three requests of 30 ms (A)
FILE = 1e9  # bytes of a source file (A)
BLOCK = 128 * 2**20  # bytes of a block that Ray Data hands on (V, its default target)
WINDOW = 4096  # images among which a worker composes in mode streaming, at least (the code's)


def paper(figures: Figures) -> str:
    """All tables as Markdown."""
    parts = (measured, keeping, feeding, meeting, steps, driver, workers, kmeans, costs)
    return "\n\n".join(f"### {part.__doc__}\n\n{part(figures)}" for part in parts)


def cost(figures: Figures, name: str, key: str = "cpu") -> float:
    """Of one row, measured with the largest number of rows: seconds (cpu, wall) or bytes (peak)."""
    rows = figures[name]
    return rows[max(rows, key=int)][key]


def measured(figures: Figures) -> str:
    """Measured here: CPU time of the process, and its memory at the peak"""
    head = ["what", "n", "CPU of one", "wall, all", "peak of one", "× the peer's CPU"]
    rows = []
    for name, sizes in figures.items():
        for n, row in sizes.items():
            cells = [name, _n(int(n)), _s(row["cpu"]), _s(int(n) * row["wall"]), _b(row["peak"])]
            rows.append([*cells, f"{row['ratio']:.2g}" if "ratio" in row else ""])
    return _table(head, rows)


def keep_mode(n: float, gpus: int, raw: float, jpeg: float) -> tuple[str, bool, float]:
    """What ``data.keep auto`` picks, whether all workers read all, and the bytes kept."""
    room = SHARE * STORE * nodes(gpus)
    for mode, size in (("raw", raw), ("encoded", jpeg)):
        if n * size <= room:
            shared = nodes(gpus) == 1 or n * size < REPLICATED * STORE
            return mode, shared, n * size
    return "streaming", True, 0.0


def nodes(gpus: int) -> int:
    return gpus // NODE_GPUS


def references(blocks: int, gpus: int, shared: bool) -> int:
    """References that all workers take: one to the list of each node; to the blocks of their own
    node, and to the positions of each DESCRIBED of them; one worker to those of all nodes."""
    if shared:
        return blocks * gpus
    own = math.ceil(blocks / nodes(gpus) * (1 + 1 / DESCRIBED))
    return gpus * (nodes(gpus) + own) + blocks


def keeping(figures: Figures) -> str:
    """Storage, and what is kept in the object store"""
    head = ["images", "GPUs", "room"]
    for size in ("224 px", "32 px"):
        head += [f"{size}: files", "pixels", "keeps", "blocks"]
    head += ["224 px: references handed to workers, driver's CPU, its memory"]
    hand, memory = (cost(figures, "hand references to a worker", k) for k in ("cpu", "peak"))
    rows = []
    for n, gpus in CASES:
        row, last = [_n(n), _n(gpus), _b(SHARE * STORE * nodes(gpus))], "-"
        for raw, jpeg in ((RAW, JPEG), (RAW_32, JPEG_32)):
            mode, shared, kept = keep_mode(n, gpus, raw, jpeg)
            dealt = max(4 * nodes(gpus), min(MOST_BLOCKS, int(kept / DEALT)))
            blocks = 0 if mode == "streaming" else math.ceil(kept / BLOCK) if shared else dealt
            how = "" if mode == "streaming" else ", shared" if shared else ", dealt"
            row += [_b(n * jpeg), _b(n * raw), mode + how, _n(blocks) if blocks else "-"]
            if raw == RAW and blocks:
                refs = references(blocks, gpus, shared)
                last = f"{_n(refs)}, {_s(refs * hand)}, {_b(refs * memory)}"
        rows.append([*row, last])
    return _table(head, rows)


def feeding(figures: Figures) -> str:
    """Reading and decoding 224 px, when the files are decoded each epoch"""
    rate = 1 / cost(figures, "decode and shrink a JPEG")
    task = cost(figures, "tasks that do nothing")
    head = ["GPUs", "images/s", "cores that decode (M)", "cores (V)", "cores there are", "read"]
    head += ["read a node", "blocks/s through one coordinator", "its CPU at the cost of a task"]
    rows = []
    for gpus in GPUS:
        for each in (SLOW, FAST):
            speed = gpus * each
            read = speed * JPEG
            row = [_n(gpus), f"{speed:,.0f}", f"{speed / rate:,.0f}", f"{speed / EPYC:,.0f}"]
            row += [_n(nodes(gpus) * NODE_CORES), f"{_b(read)}/s"]
            row += [f"{8e-9 * read / nodes(gpus):.1f} Gb/s", f"{read / BLOCK:,.0f}"]
            rows.append([*row, f"{read / BLOCK * task:.1%}"])
    return _table(head, rows) + f"\n\nOne core: {rate:,.0f} images/s (M), {EPYC:,.0f} (V)."


def meeting(figures: Figures) -> str:
    """Other images of an anchor's cluster among the 4,096 of a window in mode streaming"""
    head = ["images", "clusters of 50", "clusters of 1,000", "1,000 clusters"]
    head += ["window for one partner in clusters of 50", "its files"]
    rows = []
    for n in IMAGES:
        windows = [(WINDOW - 1) * (size - 1) / (n - 1) for size in (50, 1000, n / 1000)]
        need = (n - 1) / 49
        row = [_n(n), *(f"{x:.2g}" for x in windows), f"{_n(need)} images"]
        rows.append([*row, _b(need * JPEG)])
    return _table(head, rows)


def steps(figures: Figures) -> str:
    """Network of a step, over the link of a node (one GPU node: NVLink only)"""
    head = ["GPUs", "global batch", "gather", "its gradient", "all-reduce", "seconds on the link"]
    head += ["step of 128 images", "logits of the loss on a GPU"]
    rows = []
    for gpus in GPUS:
        batch = BATCH * gpus
        gather, reduce = batch * 2 * DIM * 4.0, 2 * WEIGHTS * 4.0
        link = 0.0 if nodes(gpus) == 1 else (2 * gather + reduce) / NODE_LINK
        row = [_n(gpus), _n(batch), _b(gather), _b(gather), _b(reduce), _s(link)]
        step = f"{_s(BATCH / FAST)} to {_s(BATCH / SLOW)}"
        rows.append([*row, step, f"2 × {_b(BATCH * 2 * batch * 4)}, and about 8 copies"])
    return _table(head, rows)


def driver(figures: Figures) -> str:
    """The driver (integer ids, one granularity)"""
    once = ["sort by id, find duplicates", "number clusters by size", "assignment to Parquet"]
    once += ["fingerprint", "ray.put ids"]
    names = [*once, "hash string ids", "assignment from Parquet"]
    head = ["", "one row", *(_n(n) for n in IMAGES)]
    rows = []
    for name in names:
        each = cost(figures, name)
        rows.append([f"{name}, s", _s(each), *(_s(n * each) for n in IMAGES)])
    each = cost(figures, "position of an id")  # not the driver's: in the tasks that read images
    rows.append(["position of an id, in tasks, s", _s(each), *(_s(n * each) for n in IMAGES)])
    held = {"ids and clusters held": 12.0, "keys of 40 characters held": 48.0}
    peak = max(cost(figures, name, "peak") for name in once)
    held["most memory of a step above"] = peak
    held["assignment.parquet"] = cost(figures, "assignment to Parquet", "bytes")
    held["arrays that every node holds (ids, clusters)"] = 12.0
    held["positions in and beside blocks, on all nodes together"] = 16.0
    for name, size in held.items():
        rows.append([name, f"{size:.1f} B", *(_b(n * size) for n in IMAGES)])
    files = [max(1, int(n * JPEG / FILE)) for n in IMAGES]
    cells = (f"{_n(count)}; {_s(count * OPEN)}" for count in files)
    rows.append(["files; footers in turn", f"{_b(FILE)}; {OPEN} s a footer", *cells])
    return _table(head, rows)


def workers(figures: Figures) -> str:
    """One worker at the start of an epoch; a node has eight"""
    head = ["", "one row", *(_n(n) for n in IMAGES)]
    rows = []
    for name in ("shared", "dealt", "all singletons"):
        name = f"order of an epoch, {name}"
        each, peak = cost(figures, name), cost(figures, name, "peak")
        rows.append([f"{name}, s", _s(each), *(_s(n * each) for n in IMAGES)])
        sizes = (_b(NODE_GPUS * n * peak) for n in IMAGES)
        rows.append([f"{name}, memory of 8 workers", f"{peak:.0f} B", *sizes])
    for name in ("choose the granularity", "list what is left", "merge a bitmap"):
        each = cost(figures, name)
        rows.append([f"{name}, s", _s(each), *(_s(n * each) for n in IMAGES)])
    state = cost(figures, "checkpoint, ResNet-50", "bytes")
    sizes = (f"{_b(state)} + {_b(n / 8)}" for n in IMAGES)
    return _table(head, [*rows, ["checkpoint", "weights, AdamW + 1 bit", *sizes]])


def kmeans(figures: Figures) -> str:
    """k-means: one iteration of all rows, an actor on each GPU, 128 dimensions"""
    head = ["images", "GPUs", "K", "assign to all", "sums, on the CPU"]
    head += ["partial sums", "adding them", "update"]
    head += ["duplicates: references, driver's CPU"]
    add = cost(figures, "add partial sums of 1.04 MB") / 1.04e6
    ask = cost(figures, "sum of 2,304 B")
    ref, centroid = cost(figures, "find duplicates"), cost(figures, "update a centroid of 128")
    assign = cost(figures, "add a row to its cluster")
    rows = []
    for n, gpus in CASES:
        for k in (FEW_K, min(MOST_CLUSTERS, n // IMAGES_A_CLUSTER)):
            size = 8 * k * (WIDTH + 2)
            flat = 2.0 * n * k * WIDTH / (gpus * CARD)
            levels = math.ceil(math.log(gpus, FAN_IN))
            tree = gpus * ask + levels * FAN_IN * size * (1 / NODE_LINK + add)
            row = [_n(n), _n(gpus), _n(k), _s(flat), _s(n / gpus * assign), _b(size)]
            row += [_s(tree), _s(k * centroid)]
            refs = gpus * min(gpus, PARTS)
            rows.append([*row, f"{_n(refs)}, {_s(refs * ref)}"])
    return _table(head, rows)


def costs(figures: Figures) -> str:
    """Time and price of an epoch of ResNet-50 at 224 pixels"""
    head = ["images", "GPUs", "epoch", "price, on demand", "price, capacity block"]
    head += ["100 epochs, on demand", "files, a month"]
    rows = []
    for n, gpus in CASES:
        hours = [n / (gpus * speed) / 3600 for speed in (FAST, SLOW)]
        prices = [[h * gpus * rate for h in hours] for rate in (RENT, SPOT)]
        row = [_n(n), _n(gpus), " to ".join(_s(3600 * h) for h in hours)]
        row += [f"${low:,.0f} to {high:,.0f}" for low, high in prices]
        row.append(f"${100 * prices[0][0]:,.0f} to {100 * prices[0][1]:,.0f}")
        rows.append([*row, f"${n * JPEG / 1e9 * MONTH:,.0f}"])
    return _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _n(count: float) -> str:
    return f"{count:,.0f}" if count < 1e6 else f"{count:.3g}".replace("e+0", "e")


def _b(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def _s(seconds: float) -> str:
    units = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
    for unit, size in units.items():
        if seconds >= (2 * size if size > 1 else size):
            return f"{seconds / size:.3g} {unit}"
    return "0" if seconds else "-"
