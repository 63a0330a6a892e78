"""One trial: a short pretraining run that reports to Ray Tune after every evaluation."""

from __future__ import annotations

import functools
import json
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray import tune

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.similarity import MetadataBits
from wcl_ray.config import ClustersConfig, Config, field_name
from wcl_ray.data.ids import positions_of
from wcl_ray.data.images import Images
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import StorageError, TrainingError, UserError, find_user_error
from wcl_ray.evaluate.validate import Evaluator, logged_figures
from wcl_ray.limits import limit_reached, object_store_full
from wcl_ray.runs.capacity import capacity
from wcl_ray.runs.clusters import build_clusters, build_similarity, qualities
from wcl_ray.runs.folder import ENCODER, claim
from wcl_ray.runs.initial import Start, start_of
from wcl_ray.runs.levels import check_levels
from wcl_ray.runs.moved import table_summaries
from wcl_ray.runs.nodes import connect
from wcl_ray.runs.rounds import Arm, train_rounds
from wcl_ray.runs.shared import Shared
from wcl_ray.search.granularity import restricted
from wcl_ray.search.neighbours import metadata_figure
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.resources import TrialResources
from wcl_ray.search.space import Dimension, decode
from wcl_ray.storage import Folder
from wcl_ray.terminal import say
from wcl_ray.train.failure import THEN_RESUME, final_error
from wcl_ray.train.trackers import Row
from wcl_ray.train.trackers.jsonl import MetricsLog

FAILURE, QUALITY, FINAL = "failure.json", "quality.json", "evaluation.json"


@dataclass(frozen=True)
class Setup:
    """What all trials of a search have in common.

    Attributes:
        folder: of the search.
        images: split into training and validation.
        kept: training and validation images in the object store, with the label; None if streamed.
        counts: numbers of training and of validation images.
        base: reference to the clusters of all images (see ``Granularities``).
        labels: reference to int32 (N,), their labels, or None.
        columns: searched granularity → its columns of ``base``.
        ids: reference to int64 (N,), sorted ids of the training images.
        start: reference to how the trials begin, unless their options want other weights.
        metadata: references to ids and attributes that neighbours are compared by, or None.
        quality: searched granularity → quality of its clusters.
        shared: cache of results that several trials need.
    """

    config: SearchConfig
    folder: Folder
    dimensions: tuple[Dimension, ...]
    granularity: str | None
    images: Images
    kept: tuple[Stream, Stream] | None
    counts: tuple[int, int]
    base: Any
    labels: Any
    columns: dict[Any, tuple[int, ...]]
    quality: dict[Any, dict[str, Any]]
    ids: Any
    start: Any
    metadata: tuple[Any, Any] | None
    resources: TrialResources
    shared: Shared


class StorageRefused(ray.exceptions.RayActorError):
    """The storage refused something, and only the user can fix it. To Tune the trial's process was
    preempted, which does not count as a failure: the search ends (see
    :class:`wcl_ray.search.tuner.ProgressCallback`), and the trial continues when that does."""

    def __init__(self, text: str) -> None:
        super().__init__(error_msg=text, preempted=True)


def trial_folder(search: Folder, trial: str) -> Folder:
    """The run folder of a trial."""
    return search / f"trials/{trial}"


def run_trial(points: dict[str, Any], setup: Setup) -> None:
    """The trainable of Tune: train with the proposed setting, or continue a stopped trial.

    Args:
        points: of the sampler, one for each dimension.
    """
    name = tune.get_context().get_trial_id()
    folder = trial_folder(setup.folder, name)
    try:
        folder.delete(FAILURE)  # of an earlier attempt
        _train(decode(setup.dimensions, points), setup, name, folder)
    except Exception as error:  # Tune's own file holds the traceback of Ray's processes, too
        fault = final_error(object_store_full(error) or error)
        if fault is not None and str(fault).endswith(THEN_RESUME):
            raise StorageRefused(str(fault)) from None
        failure = _failure(find_user_error(error) or limit_reached(error) or error)
        folder.write(FAILURE, json.dumps(failure).encode())
        if fault is None:  # a retry may succeed
            raise


def _failure(error: Exception) -> dict[str, str]:
    """One line about an error and, unless the user can fix it, the traceback."""
    if isinstance(error, (UserError, StorageError)):
        return {"error": str(error)}
    if isinstance(error, TrainingError):
        return {"error": str(error).splitlines()[0], "traceback": str(error)}
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"error": first, "traceback": traceback.format_exc().strip()}


def _train(values: dict[str, Any], setup: Setup, name: str, folder: Folder) -> None:
    try:
        config = setup.config.of_trial(values)
    except ValueError as error:  # limits that depend on several options
        raise UserError(str(error)) from None
    config = replace(config, storage=f"{setup.folder.uri}/trials", name=name)
    # training alone has the seed of the trial: splits, clusters and images to measure stay the same
    same = replace(config, seed=setup.config.seed)
    connect(config.scale)
    claim(folder, same, table_summaries(setup.images))
    started = time.monotonic()
    reporter = _Reporter(setup, folder)
    reporter.replay()
    base, measures = _clusters(same, values, setup)
    if not config.clusters.from_features:
        check_levels(config.loss, base)
    stream = _stream(config, setup, base)
    metadata = _similarity(same, setup, base)
    start = _start(config, setup, folder).with_method(config, base, metadata)
    evaluator = Evaluator(
        start.encoder,
        setup.images,
        setup.counts,
        config.evaluate,
        config.data.stored_size,
        same.seed,
        kept=setup.kept,
        cpus=setup.resources.spare,
        probe=setup.config.objective == "probe",
        extra_metrics=_extra_metrics(setup),
    )
    arm = Arm(
        config,
        folder,
        setup.images,
        stream,
        base,
        evaluator,
        start,
        name,
        setup.resources.scale,
        similarity=metadata,
        on_evaluation=reporter.during,
        shared=setup.shared,
        known_labels=_labels(setup, base.ids),
    )
    assignment = train_rounds(arm)
    if config.clusters.from_features:
        last = json.loads(arm.folder(config.rounds - 1).read("clusters.json"))
        measures = last["quality"][0]
    folder.write(QUALITY, json.dumps(measures).encode())
    if not folder.exists(FINAL):
        figures = logged_figures(evaluator.measure(folder.read(ENCODER), setup.resources.scale.gpu))
        figures["clusters"] = float(assignment.clusters[:, 0].max(initial=-1) + 1)
        folder.write(FINAL, json.dumps(figures, indent=2).encode())
    reporter.report(config.train.epochs, json.loads(folder.read(FINAL)))
    say("trial", f"{name} took {time.monotonic() - started:.0f} s")


def _start(config: Config, setup: Setup, folder: Folder) -> Start:
    """How a trial begins; weights of its own are kept in its folder."""
    common: Start | None = ray.get(setup.start).adapt(config)
    if common is not None:
        return common
    start = start_of(config, folder)
    start.keep(folder)
    return start


class _Reporter:
    """Reports every evaluation to Tune once, also those before a restart: the driver may be a new
    one."""

    def __init__(self, setup: Setup, folder: Folder) -> None:
        self._metric, self._folder = setup.config.objective, folder
        self._last = 0

    def replay(self) -> None:
        for row in MetricsLog(self._folder).rows:
            if "loss" not in row and "round" not in row and "epoch" in row:
                self.during(row)

    def during(self, row: Row) -> None:
        """Report the evaluation of a checkpoint."""
        self.report(row["epoch"], {k: v for k, v in row.items() if k not in ("epoch", "step")})

    def report(self, epoch: int, figures: dict[str, Any]) -> None:
        if epoch <= self._last:
            return
        self._last = epoch
        if self._metric not in figures:
            raise UserError(f"the evaluation gives no {self._metric}")
        tune.report({"epoch": epoch, "score": figures[self._metric], **figures})


def _clusters(
    config: Config, values: dict[str, Any], setup: Setup
) -> tuple[Assignment, dict[str, Any]]:
    """Clusters of the training images, and their quality. Clusters that the search or another trial
    has built are not built again."""
    ids: np.ndarray = ray.get(setup.ids)
    value = values.get(setup.granularity) if setup.granularity else None
    if value not in setup.columns and None in setup.columns:  # of features: all singletons
        value = None
    key = _clusters_key(config.clusters, setup.granularity)
    if value in setup.columns and key == _clusters_key(setup.config.clusters, setup.granularity):
        base = ray.get(setup.base)
        if config.clusters.samples_per_cluster == setup.config.clusters.samples_per_cluster:
            return restricted(base, setup.columns[value], ids), setup.quality.get(value, {})
        table = restricted(base, setup.columns[value], base.ids)
    else:

        def build() -> Assignment:
            return build_clusters(config, setup.images.without_validation(), show=False)[
                0
            ].assignment

        table = setup.shared.value(f"clusters of {_clusters_key(config.clusters, None)}", build)
    return table.restrict(ids), qualities(table, _labels(setup, table.ids), config)[0].to_dict()


def _clusters_key(clusters: ClustersConfig, granularity: str | None) -> ClustersConfig:
    """The options that clusters outside of rounds depend on, the others at their defaults."""
    if clusters.kind == "kmeans" and clusters.from_features:
        return ClustersConfig(kind="instance")
    options = ["samples-per-cluster", *([granularity.partition(".")[2]] if granularity else [])]
    default = ClustersConfig()
    names = map(field_name, options)
    return replace(clusters, **{name: getattr(default, name) for name in names})


def _similarity(config: Config, setup: Setup, base: Assignment) -> MetadataBits | None:
    """The metadata that training reads, built once for all trials with the same columns."""
    if not config.uses_metadata:
        return None
    everything: Assignment = ray.get(setup.base)
    clusters = config.clusters

    def build() -> MetadataBits | None:
        return build_similarity(config, setup.images.without_validation(), everything)

    key = f"similarity by {clusters.columns} {clusters.types} {clusters.kind == 'table'}"
    metadata = setup.shared.value(key, build)
    assert metadata is not None
    return replace(metadata, bits=metadata.bits[positions_of(everything.ids, base.ids)])


def _labels(setup: Setup, ids: np.ndarray) -> np.ndarray | None:
    """int32 (N,), labels of the images ``ids``; None if there are none."""
    if setup.labels is None:
        return None
    base, labels = ray.get([setup.base, setup.labels])
    return np.asarray(labels[positions_of(base.ids, ids)])


def _stream(config: Config, setup: Setup, base: Assignment) -> Stream:
    """The stream of a trial: blocks on several nodes are dealt again by its clusters."""
    if setup.kept is not None and setup.kept[0].shared:
        return setup.kept[0]
    source, grows = setup.images.train, capacity(config.scale).grows
    return plan_stream(source, base.ids, config.data, base.clusters[:, 0], grows)


def _extra_metrics(setup: Setup) -> Any:
    if setup.metadata is None:
        return None
    ids, bits = setup.metadata
    neighbours = setup.config.evaluate.neighbours
    return functools.partial(metadata_figure, ids=ids, bits=bits, neighbours=neighbours)
