"""Test accuracy over the information of the clusters, on the demo data.

    pip install -e ".[bench]" && python benchmarks/study.py [--seeds 0 1 2] [--groups 1 2 4 6 12] \\
        [--parts 1 4 16 64] [--picture benchmarks/study.svg]

The controlled study of Tsai et al. (ICLR 2022, arXiv 2202.06670): I(Z;T) varies at fixed H(Z|T),
and H(Z|T) at fixed I(Z;T), where Z is the cluster of an image and T its species, uniform over
twelve. The clusters are given as a table (``--clusters.from``). The species are merged at random
into g groups of equal size, and the images of each species are dealt at random to s parts of their
group, so

    P(z|t) = 1/s for the s parts of the group of t, else 0
    I(Z;T) = log₂ g        H(Z|T) = log₂ s

Both axes share g = 12, s = 4. The second one leads from the labels (s = 1) to SimCLR, which is
log₂(N/12) bits: N images, each a cluster of its own.

Takes the options of jobs/pretrain.py except those of other clusters or data; ``--data.demo-images``
and ``--train.epochs`` set the budget. Each seed has its own beetles, groups and parts. With the
default options it trains nine encoders for each of three seeds, 15 epochs of 3,000 images each:
27 times about 80 s on two cores, about 45 minutes with the evaluations. Finished runs in --storage
are not trained again, and a stopped one continues, so the same command draws the picture again. The
last line is a JSON object with the means and standard deviations over the seeds.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wcl_ray.cli import parse, run_job
from wcl_ray.clusters.quality import Quality, measure
from wcl_ray.config import ClustersConfig, Config, require
from wcl_ray.data.demo import demo_data
from wcl_ray.data.demo_notes import SPECIES
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, table

SHARED = 4  # parts on the axis of I(Z;T)


class Point(NamedTuple):
    """Clusters of known information."""

    groups: int  # of species
    parts: int | None  # of each group; None: single images, that is SimCLR

    @property
    def name(self) -> str:
        return f"{self.groups}x{self.parts}" if self.parts else "simclr"

    @property
    def title(self) -> str:
        if self.parts is None:
            return "SimCLR"
        return "labels" if self == (len(SPECIES), 1) else f"{self.groups} × {self.parts}"

    def bits(self, images: int) -> tuple[float, float]:
        """I(Z;T) and H(Z|T) in closed form."""
        return float(np.log2(self.groups)), float(np.log2(self.parts or images / len(SPECIES)))

    def clusters(self, species: np.ndarray, seed: int) -> np.ndarray:
        """int64 (N,): the cluster of each image; -1 = singleton.

        Args:
            species: int (N,), indices into ``SPECIES``.
            seed: of the groups and the parts. The groups of one seed are nested where one number
                divides the other.
        """
        if self.parts is None:
            return np.full(len(species), -1)
        rng = np.random.default_rng(seed)
        group = (rng.permutation(len(SPECIES)) % self.groups)[species]
        part = np.zeros(len(species), dtype=np.int64)
        for t in range(len(SPECIES)):
            rows = np.flatnonzero(species == t)
            part[rows] = rng.permutation(len(rows)) % self.parts
        return group * self.parts + part


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(Config):
    """Test accuracy over the information of the clusters, on the demo data."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; an encoder is trained for each point with each."""
    groups: tuple[int, ...] = (1, 2, 4, 6, 12)
    """Numbers of groups of species on the axis of I(Z;T); divisors of 12."""
    parts: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of parts of each species on the axis of H(Z|T), before SimCLR."""
    picture: str = "benchmarks/study.svg"
    """File of the picture, .svg or .png."""

    def __post_init__(self) -> None:
        super(Study, self).__post_init__()
        require(self.data.path is None, "the study is one of the demo data; leave out --data.path")
        require(self.method == "cl-infonce", "the study is one of cl-infonce; leave out --method")
        plain = ClustersConfig(samples_per_cluster=self.clusters.samples_per_cluster)
        require(self.clusters == plain, "the study makes its own clusters; leave out --clusters")
        for number in self.groups:
            good = number >= 1 and len(SPECIES) % number == 0
            require(good, f"groups {number} does not divide the {len(SPECIES)} species")
        most = self.data.demo_images // (2 * len(SPECIES))
        for number in (*self.parts, SHARED):
            require(
                1 <= number <= most,
                f"parts {number} is not in 1 to {most}: a part has two images of a species or more",
            )

    @property
    def points(self) -> list[Point]:
        """The points of both axes, without repetition."""
        axes = [Point(number, SHARED) for number in self.groups]
        axes += [Point(len(SPECIES), number) for number in (*self.parts, None)]
        return list(dict.fromkeys(axes))

    def of(self, point: Point, seed: int, uri: str | None) -> Config:
        """The options of one training.

        Args:
            uri: the table of the clusters; None for SimCLR.
        """
        config = Config(**{item.name: getattr(self, item.name) for item in fields(Config)})
        kind = "table" if uri else "instance"
        return replace(
            config,
            seed=seed,
            name=f"{config.name}-{point.name}-{seed}",
            start_or_resume=True,
            resume=False,
            compare=False,  # SimCLR is one of the points
            clusters=replace(config.clusters, kind=kind, from_=uri),
        )


def implied(given: set[str]) -> list[str]:
    return ["--name", "study", "--data.label", "label", "--train.epochs", "15"]


def main() -> None:
    config = parse(cls=Study, prog="study.py", implied=implied)

    def body() -> None:
        from wcl_ray.runs.pretrain import pretrain

        if not importlib.util.find_spec("matplotlib"):
            raise UserError('matplotlib draws the picture; pip install -e ".[bench]"')
        figures: dict[Point, list[dict[str, float]]] = {point: [] for point in config.points}
        for seed in config.seeds:
            ids, species = demo_species(config, seed)
            for point in config.points:
                clusters = point.clusters(species, seed)
                uri = write_table(config, f"{point.name}-{seed}", ids, clusters)
                run = config.of(point, seed, uri if point.parts else None)
                (measured,) = pretrain(run)["variants"].values()
                quality = measure(point.title, clusters, species, run.train.batch_size, 1)
                figures[point].append(measured | information(quality))
        summary = report(figures, config.data.demo_images)
        draw(summary, config.picture)
        put(f"picture: {config.picture}\n")
        print(json.dumps(summary))

    run_job(body)


def demo_species(config: Config, seed: int) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Ids and species, int (N,), of the training images."""
    glob = demo_data(Folder(config.storage, config.data.endpoint), config.data.demo_images, seed)
    folder = Folder(glob.train.rpartition("/")[0], config.data.endpoint)
    rows = pa.concat_tables(
        pq.read_table(pa.BufferReader(folder.read(name)), columns=["id", "label"])
        for name in folder.names()
        if name.startswith("train-")
    )
    return rows["id"], np.array([SPECIES.index(name) for name in rows["label"].to_pylist()])


def write_table(config: Config, name: str, ids: pa.ChunkedArray, clusters: np.ndarray) -> str:
    """Write a table for ``--clusters.from``; returns its path."""
    folder = Folder(config.storage, config.data.endpoint) / f"{config.name}-clusters"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ids, "cluster": clusters}), sink)
    folder.write(f"{name}.parquet", sink.getvalue().to_pybytes())
    return f"{folder.uri}/{name}.parquet"


def information(quality: Quality) -> dict[str, float]:
    """The measured I(Z;T) and H(Z|T)."""
    return {"i_zt": quality.i_zt or 0.0, "h_z_t": quality.h_z_t or 0.0}


def report(figures: dict[Point, list[dict[str, float]]], images: int) -> dict[str, dict[str, Any]]:
    """Print the table; returns the figures of the JSON line, by name of the point.

    Args:
        figures: point → the evaluation of each seed and the measured information.
    """
    body, summary = [], {}
    for point, runs in figures.items():
        bits = point.bits(images)
        row = [
            point.title,
            str(runs[0]["clusters"]) if point.parts else "-",
            *(f"{value:.2f}" for value in bits),
        ]
        row += [f"{np.mean([run[key] for run in runs]):.2f}" for key in ("i_zt", "h_z_t")]
        figure: dict[str, Any] = {"groups": point.groups, "parts": point.parts}
        figure["seeds"] = len(runs)
        figure |= {"i_zt": round(bits[0], 4), "h_z_t": round(bits[1], 4)}
        for key in ("knn", "probe"):
            values = [run[key] for run in runs]
            mean = float(np.mean(values))
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row.append(f"{mean:.1%} ± {spread:.1%}")
            figure |= {key: round(mean, 4), f"{key}_std": round(spread, 4)}
            figure[f"{key}_seeds"] = [round(value, 4) for value in values]
        row.append(f"{np.mean([run['train_seconds'] for run in runs]):.0f}")
        body.append(row)
        summary[point.name] = figure
    head = ["groups × parts", "K", "I(Z;T)", "H(Z|T)", "measured I", "measured H"]
    put(f"\n{table([*head, 'kNN', 'probe', 'train s'], body)}\n")
    return summary


def draw(summary: dict[str, dict[str, Any]], picture: str) -> None:
    """Draw accuracy over I(Z;T) and over H(Z|T): a dot for each seed, a line through the means.

    Args:
        summary: as from :func:`report`.
        picture: file to write.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    whole, simclr = len(SPECIES), summary["simclr"]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    axes = (
        (left, "i_zt", "I(Z;T)", f"H(Z|T) = {np.log2(SHARED):.0f}", "parts", SHARED),
        (right, "h_z_t", "H(Z|T)", f"I(Z;T) = {np.log2(whole):.2f}", "groups", whole),
    )
    for axis, key, name, fixed, same, value in axes:
        rows = sorted((r for r in summary.values() if r[same] == value), key=lambda r: r[key])
        for metric, title, colour in (("knn", "kNN", "C0"), ("probe", "linear probe", "C1")):
            axis.plot(
                [row[key] for row in rows],
                [100 * row[metric] for row in rows],
                label=title,
                color=colour,
            )
            dots = [(row[key], 100 * value) for row in rows for value in row[f"{metric}_seeds"]]
            axis.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4, alpha=0.6)
            if axis is left:
                axis.axhline(100 * simclr[metric], color=colour, linestyle=":", linewidth=1)
        axis.axhline(100 / whole, color="grey", linestyle="--", linewidth=1, label="chance")
        axis.set_title(f"{fixed} bits")
        axis.set_xlabel(f"{name} in bits")
        axis.margins(x=0.1)
        axis.grid(alpha=0.3)
    left.plot([], [], color="black", linestyle=":", linewidth=1, label="SimCLR")
    left.set_ylabel("test accuracy in %")
    left.set_ylim(0, 100)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for point in (Point(whole, 1), Point(whole, None)):
        if row := summary.get(point.name):
            at = (row["h_z_t"], 100 * min(row["knn_seeds"] + row["probe_seeds"]))
            offset = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center"}
            right.annotate(point.title, at, **offset)
    # the same figures give the same file
    with rc_context({"svg.hashsalt": "study"}):
        figure.savefig(picture, dpi=150, metadata={"Date": None} if picture[-3:] == "svg" else {})


if __name__ == "__main__":
    main()
