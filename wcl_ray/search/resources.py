"""How many trials run at a time, and what resources each holds, without deadlock.

A trial consists of a driver (almost no CPU), its workers as one placement group, and the tasks that
evaluate it. The workers of all concurrent trials leave CPUs for those tasks, and a placement group
gets all of its resources or none. So whatever waits, waits for something that ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from wcl_ray.errors import UserError
from wcl_ray.runs.capacity import Scale, capacity, check_batch, gpus
from wcl_ray.search.options import SearchConfig
from wcl_ray.terminal import warn

DRIVER = 0.01  # CPUs of a trial's driver, which only waits
LEAST_SPARE = 0.1  # CPUs that a task needs at least
SPARE = 0.25  # share of a trial's CPUs for the tasks that evaluate it, at most one CPU


@dataclass(frozen=True)
class TrialResources:
    """The resources of a trial.

    Attributes:
        concurrent: trials at a time.
        scale: workers of a trial.
        spare: CPUs for the tasks that run beside its workers.
    """

    concurrent: int
    scale: Scale
    spare: float

    def describe(self) -> str:
        """The resources in words, for a line of output."""
        return f"{self.concurrent} at a time, each {self.scale.describe()}"


def plan_resources(config: SearchConfig, streamed: bool) -> TrialResources:
    """Divide the connected cluster between trials, see :func:`divide`.

    An autoscaling cluster is divided as if at its largest: trials that do not fit yet wait, and
    their placement groups make it grow.
    """
    cluster = capacity(config.scale)
    totals = {"CPU": cluster.cpus, "GPU": float(gpus(config.scale, cluster))}
    return divide(config, totals, cluster.node_cpus or 1.0, streamed)


def divide(
    config: SearchConfig, cluster: dict[str, float], widest: float, streamed: bool
) -> TrialResources:
    """Divide resources between trials.

    Args:
        cluster: total CPU and GPU, GPUs that may not be used left out.
        widest: CPUs of the largest node.
        streamed: Ray Data reads during training and needs one CPU for each trial.

    Raises:
        UserError: not even one trial fits.
    """
    scale, cpus = config.scale, cluster.get("CPU", 1.0)
    gpu_count = int(cluster.get("GPU", 0))
    low, high = scale.range() or (1, 1)
    check_batch(config.train.batch_size, high)
    reading = 1.0 if streamed else 0.0
    wanted = config.concurrent or max(1, config.trials // 4)
    fitting = gpu_count // low if gpu_count else int(cpus / low)
    if gpu_count and fitting == 0:
        raise UserError(f"a trial has {low} workers, but there are only {gpu_count} GPUs")
    if scale.cpus_per_worker:  # for as many workers as a trial may grow to
        needed = high * scale.cpus_per_worker + reading
        fitting = min(fitting, int((cpus - LEAST_SPARE) / (needed + DRIVER) + 1e-9))
        if fitting == 0:
            raise UserError(
                f"a trial needs {needed:g} CPUs and part of another for its evaluation, the "
                f"cluster has {cpus:g}; lower --scale.cpus-per-worker or --scale.workers"
            )
    concurrent = max(1, min(wanted, fitting, config.trials))
    if config.concurrent > concurrent and config.trials > concurrent:
        warn(f"only {concurrent} trials fit into the cluster at a time, not {config.concurrent}")
    per_trial = cpus / concurrent
    spare = reading + SPARE * min(4.0, per_trial - reading)
    per_worker = (per_trial - spare - DRIVER) / high
    if per_worker <= 0:
        raise UserError(
            f"streaming needs a CPU of its own beside each trial, the cluster has {cpus:g}; "
            "use --data.keep raw or a lower --concurrent"
        )
    rounded = float(int(per_worker)) if per_worker >= 1 else per_worker
    share = scale.cpus_per_worker or min(rounded, widest)
    if scale.cpus_per_worker:  # the rest is for the tasks
        spare = max(LEAST_SPARE, min(1.0, per_trial - DRIVER - share * high))
    workers = Scale(low, high, share, gpu=gpu_count > 0, crowded=True)
    return TrialResources(concurrent, workers, min(1.0, spare))
