"""The state of a k-means fit: the line of an iteration, and the checkpoint."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field

import numpy as np

from wcl_ray.errors import UserError
from wcl_ray.storage import Folder

FILE = "kmeans.npz"


@dataclass(frozen=True)
class Iteration:
    """Figures of one iteration.

    Attributes:
        phase: sample, split or merge with the number of the cycle, or all.
        number: within the phase, from 1. limit: the largest possible number.
        objective: mean squared distance of the rows to their centroids, per granularity.
        moved: share of the rows that changed their cluster (maximum over granularities).
        imbalance: K · Σ p², p = share of the rows in a cluster; 1 is balanced (maximum
            over granularities).
        empty: number of empty clusters; each gets half of another one that can be split.
        seconds: of the whole step. straggler: time of the slowest actor over the median.
        rate: speed of the slowest actor, as a share of that of the bare matrix product.
    """

    phase: str
    number: int
    limit: int
    objective: tuple[float, ...]
    moved: float
    imbalance: float
    empty: int
    seconds: float
    straggler: float
    rate: float

    def __str__(self) -> str:
        objective = " ".join(f"{value:.5f}" for value in self.objective)
        moved = f"{self.moved:.1%}" if self.number > 1 else "-"
        return (
            f"{self.phase:<7} {self.number:>2}/{self.limit}  objective {objective}  "
            f"moved {moved}  imbalance {self.imbalance:.2f}  empty {self.empty}  "
            f"{self.seconds:.2f} s  {self.rate:.0%} of sgemm  straggler {self.straggler:.2f}"
        )


@dataclass
class Work:
    """State of one phase of Lloyd's iterations between two steps.

    Attributes:
        centroids: float32 (ΣK, d), for the next step. before: those of the last step, or None.
        offsets: G + 1 numbers: granularity g has centroids offsets[g] … offsets[g + 1] - 1.
        share: of the rows that are used, chosen by a hash.
        limit: maximum number of steps. number: of steps done.
        active: granularities that have not settled. last: last objective of each granularity.
    """

    phase: str
    centroids: np.ndarray
    offsets: tuple[int, ...]
    share: float
    limit: int
    active: tuple[int, ...]
    before: np.ndarray | None = None
    last: dict[int, float] = field(default_factory=dict)
    number: int = 0

    @staticmethod
    def first(phase: str, parts: list[np.ndarray], share: float, limit: int) -> Work:
        """A phase before its first step; ``parts``: centroids float32 (K, d) per granularity."""
        offsets = tuple(int(x) for x in np.cumsum([0] + [len(part) for part in parts]))
        centroids = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
        return Work(phase, centroids, offsets, share, max(1, limit), tuple(range(len(parts))))

    def part(self, centroids: np.ndarray, g: int) -> np.ndarray:
        """The centroids of granularity g, a view."""
        return centroids[self.offsets[g] : self.offsets[g + 1]]


def save_work(folder: Folder, work: Work, fingerprint: str, history: list[Iteration]) -> None:
    """Write a checkpoint, atomically."""
    fields = {
        "fingerprint": fingerprint,
        "phase": work.phase,
        "offsets": work.offsets,
        "share": work.share,
        "limit": work.limit,
        "active": work.active,
        "last": {str(g): value.hex() for g, value in work.last.items()},
        "number": work.number,
        "history": [asdict(row) for row in history],
    }
    arrays = {"centroids": work.centroids}
    if work.before is not None:
        arrays["before"] = work.before
    sink = io.BytesIO()
    np.savez(sink, facts=np.array(json.dumps(fields)), **arrays)  # type: ignore[arg-type]
    folder.write(FILE, sink.getvalue())


def load_work(
    folder: Folder, fingerprint: str, dimensions: int
) -> tuple[Work, list[Iteration]] | None:
    """Read the checkpoint in a folder, None if there is none.

    Raises:
        UserError: a checkpoint of other vectors or other options.
    """
    if not folder.exists(FILE):
        return None
    with np.load(io.BytesIO(folder.read(FILE)), allow_pickle=False) as stored:
        fields = json.loads(str(stored["facts"]))
        arrays = {name: stored[name] for name in stored.files if name != "facts"}
    width = arrays["centroids"].shape[1]
    if width != dimensions:
        raise UserError(
            f"{folder.uri} holds the k-means of vectors with {width} dimensions, these have "
            f"{dimensions}; use another folder"
        )
    if fields["fingerprint"] != fingerprint:
        raise UserError(
            f"{folder.uri} holds the k-means of other vectors, with other options or of an older "
            "version; use another folder, or remove it to start again"
        )
    work = Work(
        phase=fields["phase"],
        centroids=arrays["centroids"],
        offsets=tuple(fields["offsets"]),
        share=fields["share"],
        limit=fields["limit"],
        active=tuple(fields["active"]),
        before=arrays.get("before"),
        last={int(g): float.fromhex(value) for g, value in fields["last"].items()},
        number=fields["number"],
    )
    rows = [Iteration(**{**row, "objective": tuple(row["objective"])}) for row in fields["history"]]
    return work, rows
