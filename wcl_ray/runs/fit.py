"""Train with Ray Train: resources, restarts, and the last checkpoint."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from wcl_ray import stopping
from wcl_ray.errors import StorageError, TrainingError, UserError, causes, find_user_error
from wcl_ray.evaluate.validate import push_evaluations
from wcl_ray.runs.capacity import Scale
from wcl_ray.runs.folder import add_faults
from wcl_ray.runs.snapshot import SNAPSHOT, repair_snapshot
from wcl_ray.storage import PERMANENT, Folder, storage_error
from wcl_ray.terminal import warn
from wcl_ray.train.failure import EndOnUserError, explain
from wcl_ray.train.metrics_queue import MetricsWriter
from wcl_ray.train.trackers import Row, Trackers
from wcl_ray.train.worker import Task, train_worker

CONTROLLER_RESTARTS = 3


def fit(
    task: Task,
    scale: Scale,
    folder: Folder,
    round_folder: Folder,
    title: str,
    validation: ray.train.ValidationConfig | None = None,
    on_evaluation: Callable[[Row], None] | None = None,
) -> ray.train.Checkpoint:
    """Train a round to its end, from the last checkpoint in its folder if there is one.

    Args:
        on_evaluation: called in a thread with the row of every evaluation.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        UserError: a worker found the input wrong. StorageError: the storage is full or unusable.
        TrainingError: workers failed more often than ``scale.max_failures``.
        ray.train.TrainingFailedError: the workers could not be started.
    """
    trackers = Trackers(folder, task.config.train.trackers)
    follower = MetricsWriter(task.queue, trackers, title, on_evaluation)
    repair_snapshot(round_folder / "train")
    push_evaluations(task.queue, folder)
    try:
        with follower:
            trainer = _trainer(task, scale, round_folder, validation)
            for attempt in range(CONTROLLER_RESTARTS + 1):
                try:
                    result = trainer.fit()
                    break
                except ray.exceptions.ActorDiedError:  # the controller's own node or process
                    follower.read()
                    if follower.error:
                        raise UserError(follower.error) from None
                    if attempt == CONTROLLER_RESTARTS:
                        raise
                    time.sleep(2)
                    trainer = _trainer(task, scale, round_folder, validation)
    except (ray.train.TrainingFailedError, ray.exceptions.RayError, OSError) as error:
        user_error = UserError(follower.error) if follower.error else find_user_error(error)
        if user_error is not None:
            raise user_error from None
        refusal = _storage_refusal(error, round_folder)
        if refusal is not None:
            raise refusal from error
        if isinstance(error, ray.train.WorkerGroupError):
            raise TrainingError(explain(error)) from None
        raise
    except (KeyboardInterrupt, SystemExit):
        if task.start is not None or (round_folder / "train").exists(SNAPSHOT):
            stopping.set_resume_hint(f"{stopping.resume_hint()} from the last checkpoint")
        raise
    finally:
        for close in (functools.partial(add_faults, folder, follower.faults), trackers.close):
            try:
                close()
            except OSError as error:
                warn(f"metrics cannot be written: {error}")
    if follower.failure is not None:
        raise follower.failure
    if result.checkpoint is None:
        raise RuntimeError("training ended without a checkpoint")
    return result.checkpoint


def _storage_refusal(error: BaseException, folder: Folder) -> StorageError | None:
    """The error of the storage that made Ray Train fail, None if the cause is another."""
    os_error = next((e for e in causes(error) if isinstance(e, OSError)), None)
    if os_error is None:
        return None
    at_storage = isinstance(error, (ray.train.ControllerError, OSError))
    if not at_storage and os_error.errno not in PERMANENT:
        return None
    return storage_error(str(os_error.filename or folder.path), os_error)


class _Trainer(TorchTrainer):
    def _register_sigint_handler(self, controller: object) -> None:
        """Install none: Ray Train's handler asks the controller to abort, which waits for its
        cleaner before it stops the workers. They end with the driver anyway."""

    def _create_default_callbacks(self) -> list[Any]:
        """Without the one that starts an actor for data sets: none are passed to this trainer, and
        another process is a second or two of CPU in each start. It would also copy the driver's
        DataContext to the workers; they set what their data sets need. With our own cleaner."""
        callbacks = super()._create_default_callbacks()
        callbacks = [c for c in callbacks if type(c).__name__ != "DatasetsCallback"]
        try:
            from wcl_ray.runs.cleaner_callback import CleanerCallback
        except ImportError:  # a later Ray has moved what it is made of
            warn("this Ray is newer than what was tested: a search may not free what trials held")
            return callbacks
        theirs = CleanerCallback.__base__
        return [CleanerCallback() if type(c) is theirs else c for c in callbacks]


def _trainer(
    task: Task, scale: Scale, folder: Folder, validation: ray.train.ValidationConfig | None
) -> TorchTrainer:
    low, high = scale.min_workers, scale.max_workers
    resources = {"CPU": scale.cpus} | ({"GPU": 1} if scale.gpu else {})
    return _Trainer(
        train_worker,
        train_loop_config={"task": task},
        validation_config=validation,
        scaling_config=ray.train.ScalingConfig(
            num_workers=low if low == high else (low, high),  # type: ignore[arg-type]
            use_gpu=scale.gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=task.config.scale.resize_seconds,
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=folder.path,
            storage_filesystem=folder.fs,
            failure_config=ray.train.FailureConfig(
                max_failures=task.config.scale.max_failures, controller_failure_limit=10
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig("WARNING"),
            callbacks=[EndOnUserError(task.queue, validation is not None)],
        ),
    )
