"""Runs the trials with Ray Tune: sampler, scheduler, restarts, and progress on the terminal."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search.optuna import OptunaSearch

from wcl_ray.errors import UserError, causes
from wcl_ray.evaluate.validate import LOGGED
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import SEED
from wcl_ray.search.record import Record
from wcl_ray.search.resources import DRIVER
from wcl_ray.search.results import score_text, values_text
from wcl_ray.search.space import Dimension, decode, encode, grid
from wcl_ray.search.trial import (
    FAILURE,
    QUALITY,
    Setup,
    StorageRefused,
    run_trial,
    trial_folder,
)
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, say, warn

NAME = "tune"
SNAPSHOT_SECONDS = "2"  # between snapshots of Tune's state; a killed driver loses later events


def run_trials(
    setup: Setup,
    record: Record,
    publish: Callable[[], None],
    points: list[dict[str, Any]] | None = None,
) -> bool:
    """Run all trials, or those that are left after a stop.

    Args:
        publish: called when a trial has ended.
        points: the points to try; by default the sampler proposes them.

    Returns:
        Whether it was interrupted.

    Raises:
        UserError: the storage cannot be used.
    """
    _environment()
    config, folder = setup.config, setup.folder
    topic = "trial" if points is None else "full"  # full length
    if points is None:
        points, count = _first_points(config, setup.dimensions)
    else:
        count = len(points)
    searched = tuple(d for d in setup.dimensions if d.key != SEED)
    default = encode(searched, config.plain())
    callbacks = _CALLBACKS[:] = [ProgressCallback(setup, record, publish, default, topic)]
    trainable = tune.with_resources(tune.with_parameters(run_trial, setup=setup), {"CPU": DRIVER})
    state = folder / NAME
    if tune.Tuner.can_restore(state.path, storage_filesystem=folder.fs):
        tuner = tune.Tuner.restore(state.path, trainable, storage_filesystem=folder.fs)
        # the cluster may have another size than at the first start; Tune has no option for it
        tuner._local_tuner._tune_config.max_concurrent_trials = setup.resources.concurrent
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="score",
                mode=config.mode,
                search_alg=OptunaSearch(
                    {d.key: _distribution(d) for d in setup.dimensions},
                    metric="score",
                    mode=config.mode,
                    points_to_evaluate=points,
                    sampler=_sampler(config),
                ),
                scheduler=_scheduler(config),
                num_samples=count,
                max_concurrent_trials=setup.resources.concurrent,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=NAME,
                storage_path=folder.path,
                storage_filesystem=folder.fs,
                failure_config=tune.FailureConfig(max_failures=min(2, config.scale.max_failures)),
                callbacks=list(callbacks),
                verbose=0,
            ),
        )
    tuner.fit()
    return len(record.trials) < count or any(
        row["status"] == "unfinished" for row in record.trials.values()
    )


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _first_points(
    config: SearchConfig, dimensions: tuple[Dimension, ...]
) -> tuple[list[dict[str, Any]], int]:
    """Points to try first, and the number of trials: all cells of a grid, or the default setting,
    for comparison."""
    if config.sampler == "grid":
        cells = grid(dimensions, config.trials)
        return cells, len(cells)
    default = encode(dimensions, config.plain())
    if default is None:
        warn("the default setting lies outside the space: no trial compares with it")
    return ([default] if default is not None else []), config.trials


def _distribution(d: Dimension) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if d.kind == "values":
        return IntDistribution(0, len(d.values) - 1)
    if d.kind == "int":
        return IntDistribution(int(d.low), int(d.high), log=d.log)
    return FloatDistribution(d.low, d.high, log=d.log)


def _sampler(config: SearchConfig) -> Any:
    from optuna.samplers import RandomSampler, TPESampler

    if config.sampler == "random":
        return RandomSampler(seed=config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both options are marked as experimental
        return TPESampler(
            seed=config.seed,
            n_startup_trials=max(4, min(10, config.trials // 3)),
            multivariate=True,  # temperature and granularity depend on each other
            constant_liar=True,  # trials run side by side
        )


def _scheduler(config: SearchConfig) -> Any:
    if config.scheduler == "asha":
        return AsyncHyperBandScheduler(
            time_attr="epoch",
            max_t=config.epochs,
            grace_period=config.least_epochs,
            reduction_factor=2,
        )
    if config.scheduler == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=config.least_epochs)
    return FIFOScheduler()


_CALLBACKS: list[Any] = []  # of the search that this process runs


def _current() -> Any:
    return _CALLBACKS[0]


class ProgressCallback(tune.Callback):
    """Keeps the record and prints a line for every event."""

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        """Unpickle as the callback of this process: Tune stores callbacks for a restored search."""
        return _current, ()

    def __init__(
        self,
        setup: Setup,
        record: Record,
        publish: Callable[[], None],
        default: dict[str, Any] | None,
        topic: str,
    ) -> None:
        self._setup, self._record, self._publish = setup, record, publish
        self._default, self._topic = default, topic
        self._forgot_lost = False
        self._tracebacks: set[str] = set()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._forgot_lost:
            self._forgot_lost = True
            for lost in self._record.forget({trial.trial_id for trial in trials}):
                trial_folder(self._setup.folder, lost).remove()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._begin(trial)
        text = values_text(row["values"]) + " (the default)" * row["default"]
        self._say(trial, "resumes" if row["restarts"] else text)

    def _ensure_row(self, trial: Any) -> None:
        """Add the row of a trial whose process died before Tune reported its start."""
        if trial.trial_id not in self._record.trials:
            self._begin(trial)

    def _begin(self, trial: Any) -> dict[str, Any]:
        points = {d.key: trial.config[d.key] for d in self._setup.dimensions}
        values = decode(self._setup.dimensions, points)
        default = self._default is not None and self._default.items() <= points.items()
        return self._record.start(trial.trial_id, values, default)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" not in result:
            return
        metric = self._setup.config.objective
        figures = {
            key: float(result[key])
            for key in (*LOGGED, metric, "clusters")
            if isinstance(result.get(key), (int, float))
        }
        if self._record.evaluated(trial.trial_id, int(result["epoch"]), figures):
            epochs = self._setup.config.epochs
            score = score_text(metric, result["score"])
            self._say(trial, f"epoch {result['epoch']}/{epochs}  {metric} {score}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        evaluations = self._record.trials[trial.trial_id]["evaluations"]
        finished = str(self._setup.config.epochs) in evaluations
        error = "" if finished else self._error(trial)
        status = "finished" if finished else "failed" if error else "stopped"
        if status == "stopped":
            self._say(trial, "stopped early")
        self._end(trial, status, error)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._stop_if_refused(trial)
        error = self._error(trial) or "its process died"
        trial_folder(self._setup.folder, trial.trial_id).delete(FAILURE)
        self._say(trial, f"failed and is restarted from its last checkpoint: {error}")

    def _stop_if_refused(self, trial: Any) -> None:
        """End the search if the storage refused something, as all trials would fail. To Tune they
        are still running, so they continue when the search does."""
        path = Path(trial.pickled_error_file or "")
        if not path.is_file():
            return
        error = cloudpickle.loads(path.read_bytes())
        refused = next((e for e in causes(error) if type(e) is StorageRefused), None)
        if refused is not None:
            self._end(trial, "failed", str(refused))
            raise UserError(str(refused))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed", self._error(trial) or "its process died")

    def _end(self, trial: Any, status: str, error: str = "") -> None:
        self._ensure_row(trial)
        if error:
            self._say(trial, f"failed: {error}")
        folder = trial_folder(self._setup.folder, trial.trial_id)
        if folder.exists(QUALITY):
            quality = json.loads(folder.read(QUALITY))
        else:
            values = self._record.trials[trial.trial_id]["values"]
            key = self._setup.granularity
            quality = self._setup.quality.get(values.get(key) if key else None, {})
        self._record.end(trial.trial_id, status, quality, error)
        try:
            self._publish()
        except OSError as problem:  # they are written again after the next trial
            warn(f"the results so far cannot be written: {problem}")

    def _error(self, trial: Any) -> str:
        """Why a trial failed, empty if unknown; prints each traceback once."""
        folder: Folder = trial_folder(self._setup.folder, trial.trial_id)
        if not folder.exists(FAILURE):
            return ""
        failure = json.loads(folder.read(FAILURE))
        text = failure.get("traceback", "")
        if text and text not in self._tracebacks:  # trials often fail in the same way
            self._tracebacks.add(text)
            put(text)
        return str(failure["error"])

    def _say(self, trial: Any, text: str) -> None:
        self._ensure_row(trial)
        say(f"{self._topic} {self._record.trials[trial.trial_id]['number']}", text)


def _environment() -> None:
    """Set options of Tune that exist as environment variables only; most silence its output."""
    # a trial that fails for good ends without a score, and the others continue
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints even when told not to
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    for name in ("ray.tune", "ray.train", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="optuna")
