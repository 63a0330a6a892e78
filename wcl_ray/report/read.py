"""What the page of a run shows, read from the run folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wcl_ray.clusters.assignment import FILE as ASSIGNMENT
from wcl_ray.clusters.assignment import stored_ranges
from wcl_ray.errors import UserError, reading
from wcl_ray.evaluate.examples import FILE as EXAMPLES
from wcl_ray.evaluate.examples import Examples
from wcl_ray.runs.folder import BASELINE, RESULTS
from wcl_ray.runs.stored import Stored, read_stored
from wcl_ray.storage import Folder, resolve_input
from wcl_ray.train.trackers import Row
from wcl_ray.train.trackers.jsonl import MetricsLog


@dataclass(frozen=True)
class Variant:
    """One training of a run: the run's own, or its SimCLR baseline.

    Attributes:
        title: unique on the page.
        figures: of its evaluation; empty if there was none.
        rows: of ``metrics.jsonl``.
    """

    title: str
    figures: dict[str, Any]
    rows: Sequence[Row]
    examples: Examples | None


@dataclass(frozen=True)
class RunReport:
    """A finished run.

    Attributes:
        quality: of each granularity, by round (see :class:`wcl_ray.clusters.quality.Quality`).
        sizes: granularity → decreasing sizes of its clusters, of the last round that has any.
        variants: the run's own training, then the baseline.
        images: number of training images.
    """

    name: str
    uri: str
    stored: Stored
    results: dict[str, Any]
    variants: tuple[Variant, ...]
    images: int = 0
    quality: tuple[tuple[int, dict[str, Any]], ...] = ()
    sizes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the run, by section."""
        return self.stored.options

    @property
    def own(self) -> Variant:
        """The run's own training."""
        return self.variants[0]


def read_runs(uris: Sequence[str], endpoint: str | None = None) -> list[RunReport]:
    """Read finished runs; those of the same name get numbers.

    Raises:
        UserError: see :func:`read_run`.
    """
    reports: list[RunReport] = []
    for uri in uris:
        folder = Folder(resolve_input(uri).rstrip("/"), endpoint)
        reports.append(read_run(folder, {r.name for r in reports} if len(uris) > 1 else None))
    return reports


def read_run(folder: Folder, taken: set[str] | None = None) -> RunReport:
    """Read a finished run.

    Args:
        taken: names of the other runs of the page; None: there are none, and the titles of
            variants do without the name of the run.

    Raises:
        UserError: not a run folder, a run that is not finished, or a damaged file.
    """
    stored = read_stored(folder)
    results = read_results(folder)
    figures = results["variants"]
    base = folder.uri.rstrip("/").rpartition("/")[2]
    name, number = base, 2
    while name in (taken or ()):
        name, number = f"{base} ({number})", number + 1
    quality, sizes, images = _read_clusters(folder)
    variants: list[Variant] = []
    for title, values in figures.items() or [("", {})]:
        part = folder if not variants else folder / BASELINE
        shown = title or name
        if taken is not None:
            shown = name if not variants else f"{name}, {title}"
        variants.append(
            Variant(
                title=shown,
                figures=values,
                rows=MetricsLog(part).rows,
                examples=_read_examples(part),
            )
        )
    return RunReport(
        name=name,
        uri=folder.uri,
        stored=stored,
        results=results,
        variants=tuple(variants),
        images=images,
        quality=tuple(quality),
        sizes=sizes,
    )


def read_results(folder: Folder) -> dict[str, Any]:
    """Content of ``results.json``.

    Raises:
        UserError: not a run folder, a run that is not finished, or a damaged file.
    """
    read_stored(folder)
    if not folder.exists(RESULTS):
        raise UserError(
            f"{folder.uri} is not finished: it has no {RESULTS}; finish it with pretrain.py … "
            "--resume"
        )
    with reading(f"{folder.uri}/{RESULTS}", "is damaged"):
        results = dict(json.loads(folder.read(RESULTS)))
        dict(results["variants"])
    return results


def _read_examples(folder: Folder) -> Examples | None:
    if not folder.exists(EXAMPLES):
        return None
    with reading(f"{folder.uri}/{EXAMPLES}", "is damaged"):
        return Examples.from_parquet(folder.read(EXAMPLES))


def _read_clusters(
    folder: Folder,
) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, np.ndarray], int]:
    """Quality by round, sizes of the last clusters, and the number of training images."""
    quality: list[tuple[int, dict[str, Any]]] = []
    sizes: dict[str, np.ndarray] = {}
    images = 0
    for number in (folder / "rounds").names():
        part = folder / f"rounds/{number}"
        with reading(part.uri, "is damaged"):
            if part.exists("clusters.json"):
                summary = json.loads(part.read("clusters.json"))
                quality += [(int(number), q) for q in summary.get("quality", ())]
            if part.exists(ASSIGNMENT):
                images, round_sizes = _read_sizes(part)
                sizes = round_sizes or sizes
    return quality, sizes, images


def _read_sizes(folder: Folder) -> tuple[int, dict[str, np.ndarray]]:
    """Number of images in the assignment of a round, and the sizes of its clusters; no sizes if all
    images are singletons."""
    images, sizes = 0, dict[str, np.ndarray]()
    for part in stored_ranges(folder):
        images += len(part.ids)
        for g, name in enumerate(part.names):
            more, known = part.sizes(g), sizes.get(name, np.empty(0, np.int64))
            total = np.zeros(max(len(more), len(known)), np.int64)
            total[: len(known)] = known
            total[: len(more)] += more
            sizes[name] = total
    return images, sizes if any(map(len, sizes.values())) else {}
