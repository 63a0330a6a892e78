"""Ray Train around the workers: resources, restarts, and the last checkpoint."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
import ray.train
from ray.train.torch import TorchTrainer

from wcl_ray import stopping
from wcl_ray.config import Config, ScaleConfig
from wcl_ray.errors import StorageError, TrainingError, UserError, causes, find_user_error
from wcl_ray.evaluate.validate import tell_again
from wcl_ray.runs.capacity import Capacity, capacity
from wcl_ray.runs.folder import add_faults
from wcl_ray.runs.snapshot import mend_snapshot
from wcl_ray.storage import LASTING, Folder, storage_error
from wcl_ray.terminal import warn
from wcl_ray.train.failure import EndOnUserError, explain
from wcl_ray.train.metrics_queue import MetricsWriter
from wcl_ray.train.trackers import Row, Trackers
from wcl_ray.train.worker import Task, train_worker

CONTROLLER_RESTARTS = 3
SNAPSHOT = "checkpoint_manager_snapshot.json"  # of Ray Train; it is there with a first checkpoint


@dataclass(frozen=True)
class Scale:
    """Workers of a run and what each holds.

    Attributes:
        crowded: other runs share the cluster, so that this one may not take what seems free.
    """

    least: int
    most: int
    cpus: float
    gpu: bool
    crowded: bool = False

    def describe(self) -> str:
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        kind = "1 GPU and " if self.gpu else ""
        return f"{count} worker(s) with {kind}{self.cpus:g} CPU(s) each"


def gpus(scale: ScaleConfig, there: Capacity | None = None) -> int:
    """GPUs to use; 0: work on CPUs.

    Raises:
        UserError: none is there though one is demanded.
    """
    if scale.gpu == "no":
        return 0
    there = there or capacity(scale)
    if scale.gpu == "yes" and there.gpus == 0:
        wanted = scale.range()
        if there.grows and wanted:
            return wanted[1]
        raise UserError(
            "scale.gpu is yes, but the cluster has no GPU; use auto or no, or on a cluster that "
            "grows on demand --scale.grows yes and --scale.workers MIN:MAX"
        )
    return there.gpus


def plan_scale(config: Config, streamed: bool) -> Scale:
    """Workers from the options and the cluster, see :func:`divide`."""
    return divide(config, capacity(config.scale), streamed)


def divide(config: Config, there: Capacity, streamed: bool) -> Scale:
    """Workers from the options and what the cluster has.

    Args:
        streamed: Ray Data reads during training and needs CPUs of its own.

    Raises:
        UserError: no GPU though one is demanded; a batch too small for the workers.
    """
    scale = config.scale
    count = gpus(scale, there)
    gpu = count > 0
    first = 1 if there.grows else count  # nodes come while training goes on
    least, most = scale.range() or ((first, count) if gpu else (1, 1))
    if config.train.batch_size < 2 * most:
        raise UserError(
            f"train.batch-size {config.train.batch_size} is too small for {most} workers: each "
            "needs at least 2 images of a batch"
        )
    reading = float(streamed or bool(config.evaluate.every))
    grow = "or, on a cluster that grows on demand, add --scale.grows yes"
    unlimited = scale.grows == "yes"
    free = there.cpus - reading  # reading and evaluating beside training need a CPU of their own
    if free <= 0 and not unlimited and not (gpu and not reading):
        raise UserError(
            f"reading anew or evaluating during training needs 2 CPUs, the cluster has "
            f"{there.cpus:g}; use --data.keep raw and --evaluate.every 0, {grow}"
        )
    share = scale.cpus_per_worker
    if share > there.node_cpus and not unlimited:
        raise UserError(
            f"scale.cpus-per-worker {share:g} is more than the {there.node_cpus:g} CPUs of the "
            f"largest node; lower it, {grow}"
        )
    share = share or (_beside_gpus(there, reading) if gpu else _even(there, most, reading))
    fits = there.workers(share, gpu)
    if fits < least and not unlimited:
        raise UserError(
            f"{least} workers with {'a GPU and ' if gpu else ''}{share:g} CPUs each do not fit, "
            f"only {fits}; lower --scale.workers or --scale.cpus-per-worker, {grow}"
        )
    return Scale(least=least, most=most, cpus=share, gpu=gpu)


def _beside_gpus(there: Capacity, reading: float) -> float:
    """CPUs of each worker on a GPU: its part of its node, all of it where nodes without GPUs are
    there to read and decode, which then have to go there.

    Raises:
        UserError: no CPU is left for the tasks that read.
    """
    kept = 0.0 if there.now >= max(reading, 1.0) else reading
    parts = [(cpus - kept) / gpus for cpus, gpus, _ in there.nodes if gpus]
    least = min(parts, default=1.0)
    if least <= 0 and kept:
        raise UserError(
            "reading anew or evaluating during training needs a CPU beside those of the workers on "
            "every GPU node; use --data.keep raw and --evaluate.every 0, or larger nodes"
        )
    return float(int(least)) if least >= 1 else int(100 * least) / 100


def _even(there: Capacity, most: int, reading: float) -> float:
    """The most CPUs with which ``most`` workers find a place, a CPU left for reading; whole ones
    where each can have one."""
    nodes = sorted(there.nodes, reverse=True)
    if reading and nodes:
        cpus, gpus, count = nodes[0]
        nodes = [(cpus - reading, gpus, 1), (cpus, gpus, count - 1), *nodes[1:]]
    left = Capacity(tuple((c, g, n) for c, g, n in nodes if c > 0 and n))
    parts = {cpus / k for cpus, _, _ in left.nodes for k in range(1, most + 1)}
    shares = {float(int(part)) if part >= 1 else int(1000 * part) / 1000 for part in parts}
    fitting = [share for share in shares if share and left.workers(share, gpu=False) >= most]
    return max(fitting, default=1.0)


def fit(
    task: Task,
    scale: Scale,
    folder: Folder,
    round_folder: Folder,
    title: str,
    validation: ray.train.ValidationConfig | None = None,
    on_evaluation: Callable[[Row], None] | None = None,
) -> ray.train.Checkpoint:
    """Train to the end, or go on from the last checkpoint in the round's folder.

    Args:
        on_evaluation: called in a thread with the row of every evaluation.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        UserError: what a worker found wrong with the input. StorageError: the storage is full, or
            cannot be used.
        TrainingError: workers failed more often than ``scale.max_failures``.
        ray.train.TrainingFailedError: the workers could not be started.
    """
    trackers = Trackers(folder, task.config.train.trackers)
    follower = MetricsWriter(task.queue, trackers, title, on_evaluation)
    mend_snapshot(round_folder / "train")
    tell_again(task.queue, folder)
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
        wrong = UserError(follower.error) if follower.error else find_user_error(error)
        if wrong is not None:
            raise wrong from None
        refused = _refused(error, round_folder)
        if refused is not None:
            raise refused from error
        if isinstance(error, ray.train.WorkerGroupError):
            raise TrainingError(explain(error)) from None
        raise
    except (KeyboardInterrupt, SystemExit):
        if task.start is not None or (round_folder / "train").exists(SNAPSHOT):
            stopping.promise(f"{stopping.promised()} from the last checkpoint")
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


def _refused(error: BaseException, folder: Folder) -> StorageError | None:
    """What the storage refused Ray Train itself; None where it was something else."""
    found = [e for e in causes(error) if isinstance(e, OSError)]
    if not found:
        return None
    at_storage = isinstance(error, (ray.train.ControllerError, OSError))
    if not at_storage and found[0].errno not in LASTING:
        return None
    return storage_error(str(found[0].filename or folder.path), found[0])


class _Trainer(TorchTrainer):
    def _register_sigint_handler(self, controller: object) -> None:
        """Ray Train's own handler asks the controller to abort, which waits up to twelve seconds
        for its cleaner before it stops the workers. They end with the driver."""


def _trainer(
    task: Task, scale: Scale, folder: Folder, validation: ray.train.ValidationConfig | None
) -> TorchTrainer:
    workers = scale.least if scale.least == scale.most else (scale.least, scale.most)
    resources = {"CPU": scale.cpus} | ({"GPU": 1} if scale.gpu else {})
    return _Trainer(
        train_worker,
        train_loop_config={"task": task},
        validation_config=validation,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]
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
