"""The driver of a run: sources → clusters → stream → training → evaluation, as resumable steps.

Each step leaves a file in the run folder and is skipped when the file is there; Ray Train itself
goes on from the last checkpoint. What can be wrong with the input is found before training.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.metadata import cluster_metadata
from wcl_ray.clusters.quality import Quality, measure, render
from wcl_ray.config import Config
from wcl_ray.data.demo import make_demo
from wcl_ray.data.source import Source, open_source
from wcl_ray.data.split import held_out
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.run import evaluate_encoder, results_table
from wcl_ray.model.encoder import build_encoder, save_export
from wcl_ray.storage import Folder
from wcl_ray.train.board import start_board
from wcl_ray.train.checkpoint import load_model
from wcl_ray.train.fit import connect, fit, plan_scale
from wcl_ray.train.folder import add_faults, claim, find_run
from wcl_ray.train.worker import Task

ROUND = "rounds/000"


@dataclass(frozen=True)
class Images:
    """The opened sources of a run. Without ``test`` a share of ``train`` is held out."""

    train: Source
    test: Source | None
    label: str | None
    holdout: float  # 0 when there is a test source or no label
    seed: int

    def metadata(self, columns: list[str]) -> ray.data.Dataset:
        """Metadata rows of the training images."""
        return self.keep(self.train.metadata(columns), training=True)

    def keep(self, rows: ray.data.Dataset, training: bool) -> ray.data.Dataset:
        """The rows of one side of the hold-out split."""
        if not self.holdout:
            return rows
        share, seed = self.holdout, self.seed

        def side(table: pa.Table) -> pa.Table:
            out = held_out(table["id"].to_numpy(), share, seed)
            return table.filter(pa.array(out != training))

        return rows.map_batches(side, batch_format="pyarrow", batch_size=None)


def open_images(config: Config) -> Images:
    """Open the sources and check their columns; renders the demo data where no path is given.

    Raises:
        UserError, FileNotFoundError: nothing there, or a column that is not.
    """
    data = config.data
    if data.path is None:
        demo = make_demo(_demo_folder(config), images=data.demo_images, seed=config.seed)
        data = replace(data, path=demo.train, eval_path=demo.test, label=data.label or "label")
    train = open_source(data)
    test = open_source(data, data.eval_path) if data.eval_path else None
    for source in [train] + ([test] if test else []):
        if data.label is not None and data.label not in source.columns:
            raise UserError(
                f"data.label {data.label!r} is not a column of {source.uri}; the columns are: "
                f"{', '.join(source.columns) or '(none)'}"
            )
    holdout = data.holdout if data.label and test is None else 0.0
    return Images(train, test, data.label, holdout, config.seed)


def _demo_folder(config: Config) -> str:
    """Local folder of the rendered demo images (it can always be made again)."""
    storage = Folder(config.storage)
    if storage.local:
        return f"{storage.path}/demo-data"
    raise UserError(
        f"the demo data is rendered to a local folder, but storage is {config.storage}; use a "
        "local --storage, or --data.path"
    )


def pretrain(config: Config) -> dict[str, Any]:
    """Run, continue or look up a pretraining run; prints its progress.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: wrong input or options, before any training.
    """
    started = time.monotonic()
    config, run = find_run(config)
    if run.exists("results.json"):
        results: dict[str, Any] = json.loads(run.read("results.json"))
        print(f"{run.uri} is finished\n\n{results_table(results['variants'])}")
        return results
    connect(config)
    images = open_images(config)
    _say("images", images.train.describe())
    assignment, labels = _clusters(config, images, run)
    claim(run, config)
    stream = _stream(config, images, assignment, run)
    variants = {config.clusters.kind: (config, run, assignment)}
    if config.compare and config.clusters.kind != "instance":
        alone = Assignment.from_rows(
            assignment.ids, np.full((len(assignment.ids), 1), -1, np.int32), ("instance",)
        )
        baseline = replace(config, clusters=replace(config.clusters, kind="instance"))
        variants["instance"] = (baseline, run / "baseline", alone)
    found = {
        name: _train_and_evaluate(one, folder, images, stream, clusters, name)
        for name, (one, folder, clusters) in variants.items()
    }
    results = {"variants": found, "seconds": round(time.monotonic() - started, 1)}
    run.write("results.json", json.dumps(results, indent=2).encode())
    print(f"\n{results_table(found)}\n")
    _say("run", run.uri)
    return results


def _clusters(config: Config, images: Images, run: Folder) -> tuple[Assignment, np.ndarray | None]:
    """Stage 1, or its result from the run folder."""
    folder = run / ROUND
    if folder.exists("assignment.parquet"):
        assignment = Assignment.from_parquet(folder.read("assignment.parquet"))
        _say("clusters", f"{', '.join(assignment.names)}, from {folder.uri}")
        return assignment, None
    raise NotImplementedError


def _say(what: str, text: str) -> None:
    print(f"{what:<10}{text}", flush=True)
