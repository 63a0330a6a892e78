"""The options that change the result of a k-means fit, and the checks of its rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from wcl_ray.errors import UserError
from wcl_ray.kmeans.lloyd import BITS, Stats, exponent_of
from wcl_ray.kmeans.worker import Scan
from wcl_ray.kmeans.worker_group import WorkerGroup

LARGEST = 1e15  # magnitude of values that k-means accepts


@dataclass(frozen=True, kw_only=True)  # checkpoints hold a hash of all fields in this order
class Options:
    """Options that change the result of a fit; see :class:`wcl_ray.kmeans.kmeans.KMeans`.

    Attributes:
        sample_iterations: iterations on the sample before clusters are split and merged.
        split_merge: share of the clusters that each cycle on the sample splits, and then merges
            (:mod:`wcl_ray.kmeans.split_merge`).
        settled: share of moved rows below which a phase ends.
    """

    ks: tuple[int, ...]
    spherical: bool
    iterations: int
    sample: int
    sample_iterations: int = 3
    split_merge: tuple[float, ...] = (0.2, 0.1, 0.05)
    tolerance: float
    settled: float = 1e-3
    min_size: int
    seed: int


@dataclass
class Data:
    """What the coordinator knows about the rows.

    Attributes:
        exponent: of the grid (:mod:`wcl_ray.kmeans.lloyd`).
        fingerprint: identifies the rows and the options. warnings: to show the user.
    """

    rows: int
    dimensions: int
    exponent: int
    fingerprint: str
    warnings: list[str] = field(default_factory=list)


def validate_input(workers: WorkerGroup, options: Options) -> Data:
    """Check the rows of all shards and round them to the grid.

    Raises:
        UserError: no rows, fewer than k, different dimensions, values that are not finite,
            too large or too small, duplicate ids, or all rows equal.
    """
    scans: list[Scan] = workers.ask("scan")
    rows = sum(scan.rows for scan in scans)
    widths = sorted({scan.dimensions for scan in scans if scan.rows})
    if rows == 0:
        raise UserError("k-means: the source has no vectors")
    if len(widths) > 1:
        raise UserError(f"k-means: the vectors have different lengths: {widths}")
    check_finite(scans)
    k = max(options.ks)
    if rows < k:
        raise UserError(f"k-means: k = {k} is more than the {rows} vectors")
    duplicates = workers.duplicates()
    if len(duplicates):
        examples = ", ".join(str(i) for i in duplicates[:5])
        raise UserError(
            f"k-means: {len(duplicates)} ids occur more than once ({examples}); ids must be unique"
        )
    d, largest = widths[0], max(scan.largest for scan in scans)
    if 0 < largest < 1 / LARGEST or largest > LARGEST:
        raise UserError(
            f"k-means: the largest value of the vectors is {largest:.3g}, whose square does not "
            "fit into float32; scale the vectors"
        )
    exponent = exponent_of(largest)
    totals: Stats = workers.total("totals", exponent, d)
    low, high = np.stack(workers.ask("bounds", exponent, d)).transpose(1, 0, 2)
    if (high.max(0) - low.min(0) <= 2.0 ** (exponent - BITS)).all():  # one step of the grid
        equal = "have the same direction" if options.spherical else "are equal"
        raise UserError(f"k-means: all {rows} vectors {equal}; there is nothing to cluster")
    digest = hashlib.sha256(totals.sums.tobytes() + totals.squares.tobytes())
    mark = sum(scan.mark for scan in scans) % 2**64
    digest.update(repr((rows, d, mark, options)).encode())
    data = Data(rows, d, exponent, digest.hexdigest()[:24])
    zeros = sum(scan.zeros for scan in scans)
    if zeros and options.spherical:
        data.warnings.append(f"{zeros} vectors are zero and have no direction")
    if rows < 39 * k:
        data.warnings.append(f"k = {k} leaves {rows / k:.1f} rows per cluster; 39 are recommended")
    return data


def check_finite(scans: list[Scan]) -> None:
    """Raise a UserError that counts and names the rows with NaN or infinite values."""
    bad = [(number, scan) for number, scan in enumerate(scans) if scan.bad]
    if bad:
        counts = ", ".join(f"{scan.bad} in shard {number}" for number, scan in bad[:8])
        ids = [name for _, scan in bad for name in scan.bad_names][:5]
        total = sum(scan.rows for scan in scans)
        raise UserError(
            f"k-means: {sum(scan.bad for _, scan in bad)} of {total} vectors have NaN or infinite "
            f"values ({counts}), the first with ids {', '.join(ids)}; remove or correct them"
        )
